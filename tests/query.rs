//! `seedbed query`: the manual's examples, and the same numbers as jq on the exports.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use seedbed::record::seal::{SEAL_VERSION, digest_outputs};
use seedbed::record::{
    CellKey, Column, Digest, FingerprintSource, Items, Name, Origin, Outcome, RunRecord, Seal, SeriesPoint,
    fingerprint, run_h5,
};

use seedbed::report::query::{Query, Seals, Style, query};

use crate::support::repository;

/// A run as a stage leaves it, sealed.
fn write_run(base: &Path, stage: &str, seed: u32, metrics: Value) -> PathBuf {
    let name = |text: &str| Name::new(text).unwrap();
    let key =
        CellKey { study: name("monotone"), profile: name("quick"), stage: name(stage), arm: None, seed: Some(seed) };
    let source = FingerprintSource {
        version: fingerprint::FINGERPRINT_VERSION,
        kind: stage.into(),
        kind_version: 1,
        params: json!({}),
        seed: Some(seed),
        needs: BTreeMap::new(),
        inputs: BTreeMap::new(),
    };
    let point = |step, value| SeriesPoint { step, value, time_s: 0.5 };
    let items = Items {
        columns: vec![
            ("id".into(), Column::Integers(vec![0, 1])),
            ("nll".into(), Column::Floats(vec![120.5, f64::NAN])),
        ],
    };
    let record = RunRecord {
        key: key.clone(),
        kind: stage.into(),
        fingerprint: source.fingerprint(),
        labels: BTreeMap::new(),
        metrics,
        environment: json!({"duration_s": 1.25}),
        series: BTreeMap::from([("loss".to_owned(), vec![point(40, 3.0), point(80, 2.5), point(120, 2.25)])]),
        items: BTreeMap::from([("pile_test".to_owned(), items)]),
        param_digest: None,
        numerics: json!({"threads": 1}),
    };
    let dir = base.join(key.local_dir());
    run_h5::write_run(&dir.join("run.h5"), &record).unwrap();
    let export = serde_json::to_string_pretty(&record.tree()).unwrap();
    std::fs::write(dir.join("export.json"), export).unwrap();
    Seal {
        version: SEAL_VERSION,
        key,
        fingerprint: source.fingerprint(),
        source,
        outcome: Outcome::Done,
        origin: Origin::Run,
        evidence: None,
        warnings: Vec::new(),
        content: Some(record.content_digest()),
        outputs: digest_outputs(&dir, &["run.h5".into()]).unwrap(),
        read: vec![],
        jobs: vec![],
        attempt: 1,
        host: "n1".into(),
        started_at: chrono::DateTime::UNIX_EPOCH,
        sealed_at: chrono::DateTime::UNIX_EPOCH,
        wall_s: 1.0,
        code: "test".into(),
        digest: Digest::of_bytes(b""),
    }
    .write(&dir)
    .unwrap();
    dir
}

fn seedbed_query(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_seedbed")).arg("query").args(arguments).output().unwrap()
}

#[track_caller]
fn answers(arguments: &[&str]) -> String {
    let output = seedbed_query(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn manual() -> String {
    std::fs::read_to_string(repository().join("docs/query.md")).unwrap()
}

/// The text between a fence that begins with `head` and its end, for each such fence.
fn fenced<'m>(manual: &'m str, head: &str) -> Vec<&'m str> {
    let open = format!("```{head}\n");
    manual.split(&open).skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

fn example_input() -> Value {
    serde_json::from_str(fenced(&manual(), "json input")[0]).unwrap()
}

fn example_runs(base: &Path) {
    let first = example_input();
    let mut second = first.clone();
    second["pile_test"]["baseline_pythia"]["perplexity"] = json!(6.921);
    second["pile_test"]["monotonic_pythia"]["perplexity"] = json!(28.415);
    write_run(base, "evaluate", 42, first);
    write_run(base, "evaluate", 1337, second);
    for seed in [42, 1337] {
        write_run(base, "hotflip", seed, json!({"results": {}}));
    }
}

#[test]
fn the_manual_is_true() {
    let dir = tempfile::tempdir().unwrap();
    example_runs(dir.path());
    let manual = manual();
    let mut count = 0;
    for (which, path) in [("run", "evaluate/seed-42"), ("runs", "")] {
        for example in fenced(&manual, &format!("example {which}")) {
            let (filter, expected) = example.split_once("\n--> ").unwrap();
            let expected: Vec<&str> = expected.split("\n--> ").collect();
            let path = dir.path().join(path);
            let question =
                Query { filter: filter.to_owned(), paths: vec![path], style: Style::Compact, seals: Seals::Require };
            let mut out = Vec::new();
            query(&question, &mut out).unwrap();
            let got = String::from_utf8(out).unwrap();
            assert_eq!(got.lines().collect::<Vec<_>>(), expected, "{filter}");
            count += 1;
        }
    }
    assert!(count >= 13, "{count} examples");
}

#[test]
fn the_same_number_as_jq_on_the_export() {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(dir.path(), "evaluate", 42, example_input());
    let export = run.join("export.json");
    for filter in [".pile_test.baseline_pythia.perplexity", ".pile_test.monotonic_pythia.loss", ".duration_s", "."] {
        let (run, export) = (run.to_str().unwrap(), export.to_str().unwrap());
        // The tree of a run has four keys more.
        let on_run = if filter == "." { "with_entries(select(.key | startswith(\"@\") | not))" } else { filter };
        let ours = answers(&["-c", on_run, run]);
        assert_eq!(ours, answers(&["-c", filter, export]), "{filter}");
        match Command::new("jq").args(["-c", filter, export]).output() {
            Ok(jq) => assert_eq!(ours, String::from_utf8(jq.stdout).unwrap(), "{filter}"),
            Err(_) => eprintln!("skipped: jq is not installed"),
        }
    }
}

#[test]
fn an_unsealed_run_is_a_warning_or_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(dir.path(), "evaluate", 42, json!({"x": 1.5}));
    std::fs::remove_file(run.join("seal.json")).unwrap();
    let path = run.to_str().unwrap();
    let output = seedbed_query(&[".x", path]);
    assert!(output.status.success());
    assert_eq!(output.stdout, b"1.5\n");
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.contains("run.h5") && warning.contains("no valid seal"), "{warning}");
    let output = seedbed_query(&["--sealed", ".x", path]);
    assert_eq!(output.status.code(), Some(65));
    assert!(output.stdout.is_empty());
}

#[test]
fn bad_questions_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(dir.path(), "evaluate", 42, json!({"x": 1.5}));
    let path = run.to_str().unwrap();
    let cut = dir.path().join("cut.h5");
    let bytes = std::fs::read(run.join("run.h5")).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let text = dir.path().join("a.json");
    std::fs::write(&text, "{\"a\": ").unwrap();
    for (arguments, code, said) in [
        ([".x | nosuch", path], 64, "line 1, column 6"),
        ([".x.y", path], 1, "cannot index"),
        ([".x", "/nowhere/at/all"], 66, "/nowhere/at/all"),
        ([".x", empty.to_str().unwrap()], 66, "holds no run.h5"),
        ([".x", cut.to_str().unwrap()], 65, "cut.h5"),
        ([".", text.to_str().unwrap()], 65, "a.json"),
    ] {
        let output = seedbed_query(&arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
        assert!(!error.contains("panicked"), "{error}");
    }
}

#[test]
fn a_reader_that_has_enough_ends_the_query() {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(dir.path(), "evaluate", 42, json!({"x": 1.5}));
    let script = format!("'{}' query 'repeat(.x)' '{}' | head -n 2", env!("CARGO_BIN_EXE_seedbed"), run.display());
    let output = Command::new("timeout").args(["20", "sh", "-c", &script]).output().unwrap();
    assert_eq!(output.stdout, b"1.5\n1.5\n");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
