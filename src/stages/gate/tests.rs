//! The conditions of a real study, on counts whose statistics are known.

use std::collections::BTreeMap;

use serde_json::json;

use super::judge::judge;
use crate::record::decision::{Judged, Question, Verdict};
use crate::record::{CellKey, Column, Digest, Items, Name, RunRecord};
use crate::stages::aggregate::{Found, Input};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A result with a rate, and examples of which the first `right` are right, in reverse order where asked.
fn input(stage: &str, seed: Option<u32>, right: std::ops::Range<i64>, reverse: bool) -> Input {
    let key = CellKey { study: name("gap"), profile: name("quick"), stage: name(stage), arm: None, seed };
    let mut rows: Vec<(String, i64)> = (0..300).map(|i| (format!("q{i}"), i64::from(right.contains(&i)))).collect();
    if reverse {
        rows.reverse();
    }
    let items = Items {
        columns: vec![
            ("id".to_owned(), Column::Texts(rows.iter().map(|r| r.0.clone()).collect())),
            ("pass".to_owned(), Column::Integers(rows.iter().map(|r| r.1).collect())),
        ],
    };
    let rate = (right.end - right.start) as f64 / 300.0;
    let record = RunRecord {
        key: key.clone(),
        kind: "command".into(),
        fingerprint: Digest::of_bytes(b"x"),
        labels: BTreeMap::new(),
        metrics: json!({"rate": rate, "n": 300, "passed": right.end - right.start}),
        environment: json!({"time_s": 1.5}),
        series: BTreeMap::new(),
        items: BTreeMap::from([("talk".to_owned(), items)]),
        param_digest: None,
        numerics: json!({}),
    };
    Input { key, kind: "command".into(), labels: BTreeMap::new(), run: Ok(Found::of(record).unwrap()) }
}

fn lost(stage: &str, seed: Option<u32>) -> Input {
    Input { run: Err("not sealed".to_owned()), ..input(stage, seed, 0..1, false) }
}

fn question(value: serde_json::Value) -> Question {
    serde_json::from_value(value).unwrap()
}

/// The gap study's gate: rates, a paired test, an effect size, an agreement.
fn gap() -> Question {
    let flips = "map(.items.talk) | paired(.id; .pass == 1) | discordant";
    question(json!({"conditions": [
        {"name": "base_rate", "of": "base", "value": "map(.metrics.rate) | mean", "most": 0.3},
        {"name": "base_upper", "of": "base", "value": ".[0].metrics | [.passed, .n] | wilson(0.95)[1]", "below": 0.4},
        {"name": "instruct_rate", "of": "instruct", "value": "map(.metrics.rate) | mean", "least": 0.8},
        {"name": "flips", "value": format!("{flips} | .[1] - .[0]"), "above": 0},
        {"name": "mcnemar", "value": format!("{flips} | mcnemar_p"), "below": 0.01},
        {"name": "cohens_h", "value": "map(.metrics.rate) | cohens_h | -.", "least": 0.5},
        {"name": "kappa", "value": "[[14, 2], [2, 12]] | kappa", "least": 0.7},
        {"name": "no_times", "value": "map(has(\"environment\") or (.metrics | has(\"time_s\"))) | any", "equals": false},
    ]}))
}

fn values(conditions: &[Judged]) -> BTreeMap<&str, f64> {
    conditions.iter().filter_map(|j| Some((j.condition.name.as_str(), j.found.as_ref()?.as_f64()?))).collect()
}

#[track_caller]
fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{found} is not {expected}");
}

#[test]
fn the_conditions_of_a_real_study() {
    // 60 of 300 against 243 of 300; the same examples in other orders.
    let inputs = [input("base", None, 0..60, false), input("instruct", None, 57..300, true)];
    let found = judge(&gap(), &inputs);
    let problems: Vec<String> = found.conditions.iter().filter(|j| !j.holds).map(Judged::in_words).collect();
    assert_eq!((found.verdict, problems), (Verdict::Pass, vec![]));
    let values = values(&found.conditions);
    close(values["base_rate"], 0.2);
    close(values["instruct_rate"], 0.81);
    // Only the first passes 57, only the second 240.
    close(values["flips"], 183.0);
    close(values["kappa"], 0.7321);
    // 2 asin sqrt(0.81) - 2 asin sqrt(0.2)
    close(values["cohens_h"], 2.0 * 0.9f64.asin() - 2.0 * 0.2f64.sqrt().asin());
    assert!(values["mcnemar"] < 1e-20);

    // Turned round, the rates fail; so do the signs.
    let turned = [input("base", None, 57..300, false), input("instruct", None, 0..60, true)];
    let found = judge(&gap(), &turned);
    assert_eq!(found.verdict, Verdict::Stop);
    let failed: Vec<&str> = found.conditions.iter().filter(|j| !j.holds).map(|j| j.condition.name.as_str()).collect();
    assert_eq!(failed, ["base_rate", "base_upper", "instruct_rate", "flips", "cohens_h"]);
    assert!(found.reason.starts_with("base_rate is 0.81, not at most 0.3; ") && found.reason.ends_with("and 2 more"));
}

#[test]
fn examples_without_a_partner_are_no_pairs() {
    let mut other = input("instruct", None, 57..300, true);
    let Ok(found) = &mut other.run else { panic!() };
    let mut record = found.record().unwrap().clone();
    let Some(items) = record.items.get_mut("talk") else { panic!() };
    let Column::Texts(ids) = &mut items.columns[0].1 else { panic!() };
    ids[7] = "q9999".to_owned();
    *found = Found::of(record).unwrap();
    let found = judge(&gap(), &[input("base", None, 0..60, false), other]);
    let mcnemar = found.conditions.iter().find(|j| j.condition.name == "mcnemar").unwrap();
    assert!(!mcnemar.holds && mcnemar.problem.as_ref().unwrap().contains("different examples"), "{mcnemar:?}");
}

#[test]
fn of_a_seed_that_lacks_a_cell_none_is_judged() {
    let ask = |missing: &str, least: u32| {
        question(json!({"missing": missing, "least_seeds": least, "conditions": [
            {"name": "n", "value": "map(.key.seed) | unique | length", "least": 1},
            {"name": "cells", "value": "length", "least": 1},
        ]}))
    };
    let inputs = [
        input("base", Some(1), 0..60, false),
        input("base", Some(2), 0..60, false),
        input("base", Some(3), 0..60, false),
        input("instruct", Some(1), 57..300, false),
        lost("instruct", Some(2)),
        input("instruct", Some(3), 57..300, false),
    ];
    let without = judge(&ask("without", 2), &inputs);
    assert_eq!(without.verdict, Verdict::Pass);
    assert_eq!((values(&without.conditions)["n"], values(&without.conditions)["cells"]), (2.0, 4.0));
    assert_eq!(without.seeds, Some(2));
    let few = judge(&ask("without", 3), &inputs);
    assert_eq!(few.verdict, Verdict::Undecided);
    assert_eq!(few.reason, "2 of at least 3 seeds are complete: instruct/seed-2 is not sealed");
    assert_eq!(judge(&ask("undecided", 1), &inputs).verdict, Verdict::Undecided);
    assert_eq!(judge(&ask("stop", 1), &inputs).verdict, Verdict::Stop);
    // What belongs to no seed cannot be left out, and too few seeds are never enough.
    let shared = [lost("setup", None), input("base", Some(1), 0..60, false)];
    assert_eq!(judge(&ask("without", 1), &shared).verdict, Verdict::Undecided);
    assert_eq!(judge(&ask("undecided", 5), &inputs[..3]).verdict, Verdict::Undecided);
    // Nothing to judge is no reason to pass.
    assert_eq!(judge(&ask("without", 1), &[]).verdict, Verdict::Undecided);
    let nothing = judge(&question(json!({"conditions": [{"name": "x", "value": "length", "least": 0}]})), &[]);
    assert_eq!(
        (nothing.verdict, nothing.reason.as_str()),
        (Verdict::Stop, "x has no value: there is no result to judge")
    );
}
