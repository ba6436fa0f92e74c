//! The pages of `docs/formats`: every field of what is written stands there as `` `field` ``, and their examples are
//! the golden files, word for word.

use std::collections::BTreeSet;
use std::fs;

use seedbed::workflow::lock::{Hold, IfHeld, Lock};
use seedbed::workflow::{study, survey};
use serde_json::Value;

use super::{golden, values};
use crate::support::repository;

fn page(name: &str) -> String {
    fs::read_to_string(repository().join("docs/formats").join(name)).unwrap()
}

/// Every key of `value`, without those of the objects at the paths `free`, where anybody may choose keys.
/// `*` stands for any key; array elements share their array's path.
fn keys(value: &Value, path: &str, free: &[&str], found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            let named = !free.contains(&path);
            for (key, child) in map {
                if named {
                    found.insert(key.clone());
                }
                let step = if named { key } else { "*" };
                keys(child, &if path.is_empty() { step.to_owned() } else { format!("{path}.{step}") }, free, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, path, free, found)),
        _ => {}
    }
}

/// Checks that `page` mentions every key of the golden file and shows the file.
fn check(page_name: &str, file: &str, free: &[&str]) {
    let text = fs::read_to_string(golden().join(file)).unwrap();
    let page = page(page_name);
    let parsed: Vec<Value> = match file.rsplit('.').next() {
        Some("toml") => vec![toml::from_str(&text).unwrap()],
        Some("jsonl") => text.lines().map(|l| serde_json::from_str(l).unwrap()).collect(),
        _ => vec![serde_json::from_str(&text).unwrap()],
    };
    let mut found = BTreeSet::new();
    parsed.iter().for_each(|value| keys(value, "", free, &mut found));
    assert!(!found.is_empty());
    let lost: Vec<&String> = found.iter().filter(|key| !page.contains(&format!("`{key}`"))).collect();
    assert!(lost.is_empty(), "docs/formats/{page_name} has no line for {lost:?} of {file}");
    assert!(page.contains(&text), "the example of docs/formats/{page_name} is not tests/fixtures/formats/v1/{file}");
}

#[test]
fn every_field_has_a_line_in_its_page() {
    let source = ["source.params", "source.needs", "source.inputs"];
    check("cell.md", "cell.toml", &[&source[..], &["params", "labels", "needs.labels"]].concat());
    check("attempt.md", "run/attempts/2.json", &[]);
    check("attempt.md", "run/attempts/2.end.json", &[]);
    check("attempt.md", "run/attempts/3.end.json", &[]);
    check("journal.md", "again/journal.jsonl", &["cells"]);
    check("submission.md", "links/plan.json", &["jobs.cells"]);
    check("progress.md", "run/progress.jsonl", &["values"]);
    check("generations.md", "run/generations/baseline.jsonl", &["item"]);
    check("seal.md", "run/seal.json", &[&source[..], &["evidence"]].concat());
    check("decision.md", "run/decision.json", &["confirmation"]);
    check("confirmations.md", "own/confirmations.jsonl", &[]);
    check("journal.md", "own/journal.jsonl", &["cells"]);
    check("slots.md", "own/slots.json", &[]);
    check("journal.md", "../v2/own/journal.jsonl", &["stages"]);
    check("journal.md", "../v3/own/journal.jsonl", &[]);
    check("submission.md", "submission/plan.json", &["jobs.cells"]);
    check("budget.md", "submission/budget.json", &["expected_s"]);
    check("recorded.md", "recorded.json", &["runs"]);
    check("paper.md", "paper/paper.tex.seedbed.json", &["keys", "keys.*.runs"]);
    let flag = fs::read_to_string(golden().join("flags/stage_3_train_monotonic_complete.flag")).unwrap();
    assert!(page("flag.md").contains(&flag));
}

#[test]
fn every_event_of_the_journal_has_a_line() {
    let page = page("journal.md");
    for entry in values::journal().into_iter().chain(values::journal_v2()) {
        let event = serde_json::to_value(&entry).unwrap()["event"].as_str().unwrap().to_owned();
        assert!(page.contains(&format!("`{event}`")), "{event}");
    }
}

#[test]
fn every_dataset_and_field_of_a_run_has_a_line() {
    let page = page("run.md");
    let structure = values::structure(&golden().join("run/run.h5"));
    assert!(page.contains(&structure.join("\n")), "the example should be:\n{}", structure.join("\n"));
    for word in ["path", "value", "kind", "text", "step", "time_s", "metrics", "texts", "arrays", "series", "items"] {
        assert!(page.contains(&format!("`{word}`")), "{word}");
    }
    // What /meta says, as the reader sees it: paths of rows.
    let meta = values::meta_paths(&golden().join("run/run.h5"));
    assert!(meta.len() > 8, "{meta:?}");
    for path in meta {
        let field = path.split('.').next().unwrap();
        assert!(page.contains(&format!("`{field}`")), "docs/formats/run.md has no line for {path} of /meta");
    }
}

#[test]
fn the_small_formats_have_their_fields_on_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let lock = Lock::take(dir.path(), Hold::Short, IfHeld::Respect).unwrap();
    let owner: Value = seedbed::record::files::read_json(&dir.path().join("lock")).unwrap();
    drop(lock);
    let hello = repository().join("configs/hello.toml");
    let text = fs::read_to_string(hello).unwrap().replace("# Files that", "inputs = [\"a.txt\"]\n# Files that");
    fs::write(dir.path().join("hello.toml"), text).unwrap();
    fs::write(dir.path().join("a.txt"), "a").unwrap();
    let study = study::load(&dir.path().join("hello.toml"), None, seedbed::stages::all_specs()).unwrap();
    survey::input_digests(&study, dir.path()).unwrap();
    let cached: Vec<Value> = seedbed::record::files::read_lines(&dir.path().join("digests.jsonl")).unwrap();
    assert_eq!(cached.len(), 1);
    let list = page("README.md");
    for value in [&owner, &cached[0]] {
        let mut found = BTreeSet::new();
        keys(value, "", &[], &mut found);
        assert!(found.len() >= 5, "{found:?}");
        let lost: Vec<&String> = found.iter().filter(|key| !list.contains(&format!("`{key}`"))).collect();
        assert!(lost.is_empty(), "docs/formats/README.md has no word of {lost:?}");
    }
}

#[test]
fn every_format_has_a_page_on_the_list() {
    let list = page("README.md");
    for entry in fs::read_dir(repository().join("docs/formats")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let listed = list.contains(&format!("({name})")) || list.contains(&format!("`{name}`"));
        assert!(name == "README.md" || listed, "docs/formats/README.md lacks {name}");
    }
}
