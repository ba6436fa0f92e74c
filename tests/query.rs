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

use seedbed::report::query::{Load, Query, Reading, RowFormat, Seals, Style, query};

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

/// Sealed runs or a directory of them, without a series or table left out unasked.
fn strict(filter: &str, path: PathBuf, style: Style) -> Query {
    let reading = Reading { seals: Seals::Require, load: Load::Small, always_array: false };
    Query { reading, ..Query::new(filter, &[path], style) }
}

#[test]
fn the_manual_is_true() {
    let dir = tempfile::tempdir().unwrap();
    example_runs(dir.path());
    let manual = manual();
    let mut count = 0;
    let styles = [
        ("", Style::Compact),
        (" raw", Style::Raw),
        (" csv", Style::Rows(RowFormat::Csv)),
        (" tsv", Style::Rows(RowFormat::Tsv)),
        (" latex", Style::Rows(RowFormat::Latex)),
    ];
    for (which, path) in [("run", "evaluate/seed-42"), ("runs", "")] {
        for (name, style) in styles {
            for example in fenced(&manual, &format!("example {which}{name}")) {
                let (filter, expected) = example.split_once("\n--> ").unwrap();
                let expected: Vec<&str> = expected.split("\n--> ").collect();
                let mut out = Vec::new();
                query(&strict(filter, dir.path().join(path), style), &mut out).unwrap();
                let got = String::from_utf8(out).unwrap();
                assert_eq!(got.lines().collect::<Vec<_>>(), expected, "{filter}");
                count += 1;
            }
        }
    }
    assert!(count >= 25, "{count} examples");
}

/// What a checklist of a study of ours says to type, line by line; only the program is another.
const CHECKLIST: [(&str, &str); 4] = [
    (
        "jq '.pile_test.baseline_pythia.perplexity' \\\n    $SCRATCH/foundation_llm_results/evaluation_results.json",
        "6.919",
    ),
    (
        "jq '.pile_test.monotonic_pythia.perplexity' \\\n    $SCRATCH/foundation_llm_results/evaluation_results.json",
        "27.585",
    ),
    ("jq '.results.baseline_pythia.success_rate' \\\n    $SCRATCH/foundation_llm_results/hotflip_results.json", "0.69"),
    (
        "jq '.results.monotonic_pythia.success_rate' \\\n    $SCRATCH/foundation_llm_results/hotflip_results.json",
        "0.425",
    ),
];

#[test]
fn the_commands_of_a_checklist_work_as_written_on_exports_and_on_runs() {
    let dir = tempfile::tempdir().unwrap();
    let results = dir.path().join("foundation_llm_results");
    std::fs::create_dir(&results).unwrap();
    let rates =
        json!({"results": {"baseline_pythia": {"success_rate": 0.69}, "monotonic_pythia": {"success_rate": 0.425}}});
    for (stage, export, metrics) in
        [("evaluate", "evaluation_results", example_input()), ("hotflip", "hotflip_results", rates)]
    {
        let run = write_run(dir.path(), stage, 42, metrics);
        std::fs::copy(run.join("export.json"), results.join(format!("{export}.json"))).unwrap();
        std::fs::copy(run.join("run.h5"), results.join(format!("{export}.h5"))).unwrap();
    }
    let ours = format!("'{}' query", env!("CARGO_BIN_EXE_seedbed"));
    let has_jq = Command::new("jq").arg("--version").output().is_ok();
    if !has_jq {
        eprintln!("jq is not installed: its own answers are not compared");
    }
    for (command, expected) in CHECKLIST {
        let on_json = command.replacen("jq", &ours, 1);
        let on_hdf5 = on_json.replace("_results.json", "_results.h5");
        let mut commands = vec![on_json, on_hdf5];
        commands.extend(has_jq.then(|| command.to_owned()));
        for command in commands {
            let output = Command::new("sh").args(["-c", &command]).env("SCRATCH", dir.path()).output().unwrap();
            let (said, error) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
            assert_eq!(said.trim(), expected, "{command}\n{error}");
        }
    }
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
fn nan_and_infinity_survive() {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(dir.path(), "evaluate", 42, json!({"x": 1.5}));
    let run = run.to_str().unwrap();
    let nlls = ".\"@items\".pile_test | map(.nll)";
    assert_eq!(answers(&["-c", nlls, run]), "[120.5,\"NaN\"]\n");
    assert_eq!(answers(&["-c", &format!("{nlls} | map(isnan)"), run]), "[false,true]\n");
    assert_eq!(
        answers(&["-c", "\"\\(.x / 0)\", [-1 / 0 | ., isinfinite]", run]),
        "\"Infinity\"\n[\"-Infinity\",true]\n"
    );
    // As Python writes them.
    let python = dir.path().join("python.json");
    std::fs::write(&python, "{\"loss\": NaN, \"ppl\": Infinity, \"gap\": -Infinity, \"n\": null}").unwrap();
    let python = python.to_str().unwrap();
    assert_eq!(
        answers(&["-c", "[.loss, .ppl, .gap, .n], [.loss, .ppl | isnan]", python]),
        "[\"NaN\",\"Infinity\",\"-Infinity\",null]\n[true,false]\n"
    );
    assert_eq!(answers(&["--csv", "[.loss, .ppl, .gap, .n]", python]), "NaN,Infinity,-Infinity,\n");
}

#[test]
fn large_arrays_are_left_out_and_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let long: Vec<f64> = (0..20_000).map(|i| f64::from(i) + 0.5).collect();
    let run = write_run(dir.path(), "train", 42, json!({"losses": long, "short": [1.5, 2.5]}));
    let path = run.to_str().unwrap();
    let output = seedbed_query(&["-c", ".losses, .short", path]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "{\"elided\":true,\"length\":20000,\"values\":20000}\n[1.5,2.5]\n"
    );
    assert!(said.contains("`losses` is left out (20000 values): say `--load 'losses'` or `--all-arrays`"), "{said}");
    for words in [&["--load", "losses"][..], &["--load", ".losses"], &["--all-arrays"]] {
        let output = seedbed_query(&[words, &["-c", ".losses | length, last", path]].concat());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "20000\n19999.5\n", "{words:?}");
        assert!(output.stderr.is_empty());
    }
    // Of several runs, series and items are there when they are asked for.
    write_run(dir.path(), "train", 7, json!({"losses": [1.5]}));
    let all = dir.path().to_str().unwrap();
    assert_eq!(answers(&["-c", "map(has(\"series\"))", all]), "[false,false]\n");
    assert_eq!(answers(&["-c", "map(.series.loss | last.value)", "--load", "@series.loss", all]), "[2.25,2.25]\n");
}

#[test]
fn outputs_in_other_formats() {
    let dir = tempfile::tempdir().unwrap();
    example_runs(dir.path());
    let all = dir.path().join("evaluate");
    let all = all.to_str().unwrap();
    let rows = "sort_by(.key.seed)[] | {seed: .key.seed, ppl: .metrics.pile_test.baseline_pythia.perplexity}";
    assert_eq!(answers(&["--csv", rows, all]), "seed,ppl\n42,6.919\n1337,6.921\n");
    assert_eq!(answers(&["--tsv", rows, all]), "seed\tppl\n42\t6.919\n1337\t6.921\n");
    assert!(answers(&["--latex", rows, all]).contains("seed & ppl \\\\\n\\midrule\n42 & 6.919 \\\\\n"));
    let json: Value = serde_json::from_str(&answers(&["--format", "json", rows, all])).unwrap();
    assert_eq!(json, json!([{"seed": 42, "ppl": 6.919}, {"seed": 1337, "ppl": 6.921}]));
    assert_eq!(answers(&["--format", "json", "empty", all]), "[]\n");
    assert_eq!(answers(&["-n", "-c", "[inputs | length]", all]), "[2]\n");
    let output = seedbed_query(&["--csv", "[1], [1, 2]", all]);
    assert_eq!((output.status.code(), output.stdout), (Some(1), b"1\n".to_vec()));
    assert!(String::from_utf8_lossy(&output.stderr).contains("a row of 2 cells follows rows of 1"));
    let output = seedbed_query(&["--csv", "--tsv", ".", all]);
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn a_filter_that_does_not_end_is_stopped_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = write_run(dir.path(), "evaluate", 42, json!({"x": 1.5}));
    let path = run.to_str().unwrap();
    for (filter, first) in
        [("def f: f; f", ""), ("last(repeat(1))", ""), (".x, [range(1e12)]", "1.5\n"), ("def f: 1 + f; f", "")]
    {
        let began = std::time::Instant::now();
        let output = seedbed_query(&["--time-s", "1", "--mem-mib", "64", filter, path]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(began.elapsed().as_secs() < 20, "{filter}");
        assert_eq!(output.status.code(), Some(1), "{filter}: {error}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), first, "{filter}");
        let said = format!("the filter `{filter}` was stopped: it needs more than 1 s or 64 MiB");
        assert!(error.contains(&said) && error.contains("--time-s"), "{error}");
    }
    // What a filter prints itself comes, too.
    let output = seedbed_query(&["-c", ".x | debug | stderr | . + 1", path]);
    assert_eq!(output.stdout, b"2.5\n");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("[\"DEBUG:\",1.5]") && error.contains("1.5"), "{error}");
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
    let deep = dir.path().join("deep.json");
    std::fs::write(&deep, "[".repeat(1_000_000)).unwrap();
    let blank = dir.path().join("blank.json");
    std::fs::write(&blank, " \n").unwrap();
    for (arguments, code, said) in [
        ([".x | nosuch", path], 64, "line 1, column 6"),
        ([".x.y", path], 1, "cannot index"),
        ([".x", "/nowhere/at/all"], 66, "/nowhere/at/all"),
        ([".x", empty.to_str().unwrap()], 66, "holds no run.h5"),
        ([".x", cut.to_str().unwrap()], 65, "cut.h5"),
        ([".", text.to_str().unwrap()], 65, "a.json"),
        ([".", deep.to_str().unwrap()], 65, "nested deeper than 512"),
        ([".", blank.to_str().unwrap()], 65, "holds no JSON value"),
        ([".x | meen", path], 64, "  .x | meen\n       ^"),
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

/// One path out of many runs has a short way; it says what the long one says, in every style.
#[test]
fn one_path_out_of_many_runs_is_what_jaq_says() {
    let dir = tempfile::tempdir().unwrap();
    let results = dir.path().join("results");
    for seed in 1..=70u32 {
        let metrics = json!({
            "acc": f64::from(seed) / 7.0, "whole": f64::from(seed), "n": seed, "flag": seed % 2 == 0, "none": null, "text": "a\"b é",
            "tiny": 1e-7 * f64::from(seed), "deep": {"a.b": [{"x": 0.5}], "list": [1, 2]}, "duration_s": 9.5,
            "part": if seed == 3 { json!("a text") } else { json!(1.5) },
        });
        write_run(&results, "evaluate", seed, metrics);
    }
    let paths = [
        ".acc",
        ".whole",
        ".n",
        ".flag",
        ".none",
        ".text",
        ".tiny",
        ".deep[\"a.b\"][0].x",
        ".duration_s",
        ".part",
        // The long way, by both: an array, an object, nothing, an error.
        ".deep.list",
        ".deep.list[1]",
        ".deep",
        ".absent",
        ".acc.x",
    ];
    for style in [Style::Compact, Style::Pretty, Style::Raw] {
        for path in paths {
            let ask = |filter: String| {
                let mut out = Vec::new();
                let answered = query(&strict(&filter, results.clone(), style), &mut out);
                (String::from_utf8(out).unwrap(), answered.map_err(|e| e.to_string()))
            };
            // What begins with a bracket is no path.
            let long = ask(format!("(.[].metrics{path})"));
            for short in [format!(".[].metrics{path}"), format!(" .[] | .metrics{path} ")] {
                assert_eq!(ask(short.clone()), long, "{short}");
            }
        }
    }
    // Of an unsealed run the long way warns.
    std::fs::remove_file(results.join("evaluate/seed-5/seal.json")).unwrap();
    let output = seedbed_query(&["-c", ".[].metrics.acc", results.to_str().unwrap()]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 70);
    assert!(String::from_utf8_lossy(&output.stderr).contains("seed-5"), "{}", String::from_utf8_lossy(&output.stderr));
}
