//! On-disk formats: today's reader reads the golden files of `tests/fixtures/formats/v1` to the expected values,
//! the same values give the same bytes, every field has a line in its page of `docs/formats`, a newer version is
//! refused as such, and damage never panics nor reads as another value where a digest guards it.
//!
//! A golden file is written once, by the first version that has the format, and never again:
//! `SEEDBED_WRITE_GOLDEN=1 cargo test formats` writes those that are missing.

mod damage;
mod pages;
mod values;

use std::fs;
use std::path::{Path, PathBuf};

use seedbed::record::decision::{self, Confirmation};
use seedbed::record::generation::{self, GENERATION_VERSION};
use seedbed::record::{Cell, Decision, RecordError, Seal, attempt, files, flag, progress, run_h5};
use seedbed::report::paper::{PAPER_VERSION, PaperRecord};
use seedbed::stages::recorded::{self, RECORDED_VERSION, RecordedFile};
use seedbed::workflow::budget::BudgetFile;
use seedbed::workflow::journal::{self, Journal};
use seedbed::workflow::submission::{self, Submission};

use crate::support::repository;

/// Where the golden files of format version 1 lie.
fn golden() -> PathBuf {
    repository().join("tests/fixtures/formats/v1")
}

/// The record of a paper, below the golden files.
const PAPER_RECORD: &str = "paper/paper.tex.seedbed.json";

fn paper_record(dir: &Path) -> Result<PaperRecord, RecordError> {
    files::read_versioned_json(&dir.join(PAPER_RECORD), PAPER_VERSION)
}

/// Writes every format below `dir` as the program does, at the places that [`golden`] has.
fn write_all(dir: &Path) {
    let run = dir.join("run");
    let cell = values::cell();
    files::write_atomic(&dir.join("cell.toml"), cell.to_toml().unwrap().as_bytes()).unwrap();
    assert!(attempt::claim(&run, &values::attempt_start()).unwrap());
    attempt::beat(&run, 2, 128).unwrap();
    attempt::write_end(&run, 2, &values::attempt_end()).unwrap();
    attempt::write_end(&run, 3, &values::judged_end()).unwrap();
    let mut writer = progress::Writer::resume(&run, 0).unwrap();
    for line in values::progress() {
        writer.write(&line).unwrap();
    }
    run_h5::write_run(&run.join("run.h5"), &values::run()).unwrap();
    generation::write(&generation::path(&run, "baseline"), &values::generations()).unwrap();
    values::seal().write(&run).unwrap();
    let decided = values::decision().write(&run).unwrap();
    // Below `.seedbed` of the directory of results; a golden file's place has no dot.
    let results = tempfile::tempdir().unwrap();
    decision::confirm(results.path(), &values::confirmation(decided.evidence)).unwrap();
    let text = fs::read(decision::confirmations_path(results.path())).unwrap();
    files::write_atomic(&dir.join("own/confirmations.jsonl"), &text).unwrap();
    let lines: Vec<String> = values::journal().iter().map(|e| serde_json::to_string(e).unwrap()).collect();
    for line in lines {
        files::append_line(&dir.join("own/journal.jsonl"), &line).unwrap();
    }
    let again = serde_json::to_string(&values::journal_again()).unwrap();
    files::append_line(&dir.join("again/journal.jsonl"), &again).unwrap();
    files::write_json(&dir.join("links/plan.json"), &values::linked_submission()).unwrap();
    journal::slots(&dir.join("own"), &[42, 1337]).unwrap();
    let submission = dir.join("submission");
    files::write_atomic(&submission.join("study.toml"), values::STUDY.as_bytes()).unwrap();
    let local = cell.key.local_name().replace('/', "+");
    let path = submission.join("cells").join(format!("{local}.toml"));
    files::write_atomic(&path, cell.to_toml().unwrap().as_bytes()).unwrap();
    files::write_json(&submission.join("plan.json"), &values::submission()).unwrap();
    values::budget_file().write(&submission).unwrap();
    files::write_json(&dir.join(PAPER_RECORD), &values::paper_record()).unwrap();
    files::write_json(&dir.join("recorded.json"), &values::recorded()).unwrap();
    write_flag(dir);
}

/// The golden journal of format version 2: events that version 1 did not have.
fn golden_journal_v2() -> PathBuf {
    repository().join("tests/fixtures/formats/v2/own/journal.jsonl")
}

/// The text of that journal as the program writes it.
fn journal_v2() -> String {
    values::journal_v2().iter().map(|e| serde_json::to_string(e).unwrap() + "\n").collect()
}

/// The golden confirmations, read at the place that they have in a directory of results.
fn confirmations(dir: &Path) -> Result<Vec<Confirmation>, RecordError> {
    let results = tempfile::tempdir().unwrap();
    let text = fs::read(dir.join("own/confirmations.jsonl")).unwrap();
    files::write_atomic(&decision::confirmations_path(results.path()), &text).unwrap();
    decision::confirmations(results.path())
}

/// A flag says the cells whose seals it found; the seal lies where the cell's key says.
fn write_flag(dir: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    let (cell, mut seal) = (values::cell(), values::seal());
    seal.outputs.clear();
    seal.write(&scratch.path().join(cell.key.local_dir())).unwrap();
    let cells = [(cell.key.clone(), cell.fingerprint)];
    assert!(flag::refresh(scratch.path(), cell.number, &cell.key.stage, &cells).unwrap());
    let text = fs::read(flag::path(scratch.path(), cell.number, &cell.key.stage)).unwrap();
    files::write_atomic(&flag::path(dir, cell.number, &cell.key.stage), &text).unwrap();
}

/// Relative paths of everything below `dir`, sorted.
fn listing(dir: &Path) -> Vec<PathBuf> {
    seedbed::record::digest::files_below(dir).unwrap()
}

#[test]
fn golden_files_are_written_once() {
    if std::env::var_os("SEEDBED_WRITE_GOLDEN").is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    for file in listing(dir.path()) {
        let to = golden().join(&file);
        if !to.exists() {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(dir.path().join(&file), &to).unwrap();
            eprintln!("written: {}", to.display());
        }
    }
    if !golden_journal_v2().exists() {
        files::write_atomic(&golden_journal_v2(), journal_v2().as_bytes()).unwrap();
    }
}

#[test]
fn the_journal_of_version_2_is_read_and_written_to_the_same_bytes() {
    let text = fs::read_to_string(golden_journal_v2()).unwrap();
    assert_eq!(text, journal_v2());
    let own = golden_journal_v2().parent().unwrap().to_path_buf();
    let entries = Journal::open(&own, "sandbox").read().unwrap();
    assert_eq!(entries, values::journal_v2());
    assert!(entries.iter().all(|e| e.version == 2) && values::journal().iter().all(|e| e.version == 1));
}

#[test]
fn the_journal_of_version_3_is_read_and_written_to_the_same_bytes() {
    let own = repository().join("tests/fixtures/formats/v3/own");
    let written: String = values::journal_v3().iter().map(|e| serde_json::to_string(e).unwrap() + "\n").collect();
    assert_eq!(fs::read_to_string(own.join("journal.jsonl")).unwrap(), written);
    let entries = Journal::open(&own, "sandbox").read().unwrap();
    assert_eq!(entries, values::journal_v3());
    assert!(entries.iter().all(|e| e.version == 3));
}

#[test]
fn golden_files_are_read_to_the_expected_values() {
    let dir = golden();
    let run = dir.join("run");
    assert_eq!(Cell::read(&dir.join("cell.toml")).unwrap(), values::cell());
    assert_eq!(attempt::last(&run).unwrap(), 2);
    assert_eq!(attempt::read_start(&run, 2).unwrap(), values::attempt_start());
    assert_eq!(attempt::read_end(&run, 2).unwrap(), Some(values::attempt_end()));
    assert_eq!(attempt::read_end(&run, 3).unwrap(), Some(values::judged_end()));
    assert_eq!(Journal::open(&dir.join("again"), "sandbox").read().unwrap(), [values::journal_again()]);
    assert_eq!(Submission::read(&dir.join("links")).unwrap(), values::linked_submission());
    assert_eq!(attempt::read_beat(&run, 2), Some(128));
    assert_eq!(progress::read(&run).unwrap(), values::progress());
    assert_eq!(run_h5::read_run(&run.join("run.h5")).unwrap(), values::run());
    assert_eq!(generation::read(&generation::path(&run, "baseline")).unwrap(), values::generations());
    let mut seal = Seal::read(&run).unwrap().unwrap();
    seal.digest = values::seal().digest;
    assert_eq!(seal, values::seal());
    let mut decided = Decision::read(&run).unwrap().unwrap();
    decided.digest = values::decision().digest;
    assert_eq!(decided, values::decision());
    assert_eq!(confirmations(&dir).unwrap(), [values::confirmation(decided.evidence)]);
    assert_eq!(Journal::open(&dir.join("own"), "sandbox").read().unwrap(), values::journal());
    let slots = journal::preview_slots(&dir.join("own"), &[7]).unwrap();
    assert_eq!(slots.into_iter().collect::<Vec<_>>(), [(7, 2), (42, 0), (1337, 1)]);
    let submission = Submission::read(&dir.join("submission")).unwrap();
    assert_eq!(submission, values::submission());
    let job = &submission.jobs[0].name;
    assert_eq!(submission.cell(&dir.join("submission"), job, 1).unwrap(), values::cell());
    assert_eq!(BudgetFile::read(&dir.join("submission")).unwrap(), Some(values::budget_file()));
    assert_eq!(paper_record(&dir).unwrap(), values::paper_record());
    let recorded: RecordedFile = files::read_versioned_json(&dir.join("recorded.json"), RECORDED_VERSION).unwrap();
    assert_eq!(recorded, values::recorded());
    assert_eq!(recorded::read(&dir.join("recorded.json"), "baseline").unwrap()["macro_accuracy"], 0.75);
}

#[test]
fn cells_of_a_submission_lie_together() {
    let golden = repository().join("tests/fixtures/formats/v2/submission");
    let submission = values::submission();
    let job = &submission.jobs[0].name;
    assert_eq!(submission.cell(&golden, job, 1).unwrap(), values::cell());
    let text = submission::lines_of(&[values::cell()]).unwrap();
    assert_eq!(fs::read_to_string(golden.join("cells/0.jsonl")).unwrap(), text);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cells/0.jsonl");
    for damaged in [text.replacen("mlp_in", "mlp_out", 1), text[..text.len() / 2].to_owned(), String::new()] {
        files::write_atomic(&file, damaged.as_bytes()).unwrap();
        let error = submission.cell(dir.path(), job, 1).unwrap_err().to_string();
        assert!(error.contains("0.jsonl") && error.contains("run_all"), "{error}");
    }
}

#[test]
fn the_same_values_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    write_all(dir.path());
    assert_eq!(listing(dir.path()), listing(&golden()));
    // Another version of libhdf5 may lay out a file otherwise: of run.h5 the content counts, and the structure.
    for file in listing(&golden()).into_iter().filter(|f| f.extension().is_none_or(|e| e != "h5")) {
        let texts = [dir.path(), &golden()].map(|d| fs::read_to_string(d.join(&file)).unwrap());
        assert_eq!(texts[0], texts[1], "{}", file.display());
    }
    let runs = [dir.path(), &golden()].map(|d| d.join("run/run.h5"));
    assert_eq!(values::structure(&runs[0]), values::structure(&runs[1]));
    let contents = runs.map(|r| run_h5::read_run(&r).unwrap());
    assert_eq!(contents[0], contents[1]);
    assert_eq!(contents[0].content_digest(), contents[1].content_digest());
}

/// Puts the version after `known` in place of the first version of `file` in a copy of the golden files, and reads it.
fn newer(file: &str, known: u32, read: impl Fn(&Path) -> Result<(), String>) {
    let dir = tempfile::tempdir().unwrap();
    for f in listing(&golden()) {
        let to = dir.path().join(&f);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(golden().join(&f), to).unwrap();
    }
    let path = dir.path().join(file);
    let text = fs::read_to_string(&path).unwrap();
    // A newer version has fields that this program does not know: the version must be looked at first.
    let next = known + 1;
    let changed = [
        ("\"version\": 1,", format!("\"of_the_future\": true,\n  \"version\": {next},")),
        ("\"version\":1,", format!("\"of_the_future\":true,\"version\":{next},")),
        ("version = 1\n", format!("of_the_future = true\nversion = {next}\n")),
    ];
    let newer = changed.iter().fold(text.clone(), |text, (old, new)| text.replacen(old, new, 1));
    assert_ne!(newer, text, "{file} says no version");
    fs::write(&path, newer).unwrap();
    let error = read(dir.path()).expect_err(file);
    let name = Path::new(file).file_name().unwrap().to_str().unwrap();
    for word in [name, &format!("format version {next}"), &format!("reads up to {known}"), "newer Seedbed"] {
        assert!(error.contains(word), "{file}: {error}");
    }
}

#[test]
fn a_newer_version_is_refused_as_such() {
    fn text<T, E: ToString>(result: Result<T, E>) -> Result<(), String> {
        result.map(drop).map_err(|e| e.to_string())
    }
    newer("cell.toml", 1, |dir| text(Cell::read(&dir.join("cell.toml"))));
    newer("run/attempts/2.json", 1, |dir| text(attempt::read_start(&dir.join("run"), 2)));
    newer("run/attempts/2.end.json", 1, |dir| text(attempt::read_end(&dir.join("run"), 2)));
    newer("run/seal.json", 1, |dir| text(Seal::read(&dir.join("run"))));
    newer("own/journal.jsonl", journal::JOURNAL_VERSION, |dir| text(Journal::open(&dir.join("own"), "x").read()));
    newer("own/slots.json", 1, |dir| text(journal::slots(&dir.join("own"), &[1])));
    newer("submission/plan.json", 1, |dir| text(Submission::read(&dir.join("submission"))));
    newer("submission/budget.json", 1, |dir| text(BudgetFile::read(&dir.join("submission"))));
    newer("run/decision.json", 1, |dir| text(Decision::read(&dir.join("run"))));
    newer("own/confirmations.jsonl", 1, |dir| text(confirmations(dir)));
    newer("recorded.json", RECORDED_VERSION, |dir| text(recorded::read(&dir.join("recorded.json"), "baseline")));
    newer("run/generations/baseline.jsonl", GENERATION_VERSION, |dir| {
        text(generation::read(&generation::path(&dir.join("run"), "baseline")))
    });
    newer(PAPER_RECORD, PAPER_VERSION, |dir| text(paper_record(dir)));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.h5");
    values::write_version_only(&path, 2);
    let error = run_h5::read_run(&path).unwrap_err().to_string();
    assert!(error.contains("run.h5") && error.contains("format version 2"), "{error}");
}

#[test]
fn a_cell_that_contradicts_its_fingerprint_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cell.toml");
    let text = fs::read_to_string(golden().join("cell.toml")).unwrap();
    // What stands before `[source]` is what the stage runs with.
    for (from, to, named) in [
        ("kind = \"train\"", "kind = \"evaluate\"", "kind"),
        ("seed = 42", "seed = 43", "seed"),
        ("lr = 0.001", "lr = 0.002", "`lr`"),
        ("model = \"constrained\"\n", "", "`model`"),
        ("name = \"corpus_dir\"", "name = \"corpus\"", "`corpus_dir`"),
    ] {
        assert!(text.contains(from), "{from}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let error = Cell::read(&path).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("run_all"), "{from}: {error}");
    }
    // An operational parameter, or where something lies, may differ.
    fs::write(&path, text.replacen("log_every = 20", "log_every = 50", 1)).unwrap();
    Cell::read(&path).unwrap();
}
