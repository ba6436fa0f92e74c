//! Tests that compare item by item, marks by level, and interquartile means over runs and tasks.

use super::*;
use crate::report::stats::{self, Resamples, Statistic};

/// Rows a, b, ... of an accuracy and the items behind it, by seed from 1.
fn with_items(items: &[&[&[u8]]], test: Value) -> (Value, Vec<Expected>) {
    let name = |i: usize| char::from(b'a' + i as u8).to_string();
    let rows: Vec<Value> = (0..items.len()).map(|i| json!({"key": name(i), "arm": name(i)})).collect();
    let mut section = json!({
        "key": "scores", "rows": rows, "test": {"on": ["acc"], "against": "a", "family": "none"},
        "columns": [{"key": "acc", "stage": "evaluate", "metric": ".right | map(if . then 1 else 0 end) | mean"}],
    });
    section["test"]["items"] = json!(".right");
    section["test"].as_object_mut().unwrap().extend(test.as_object().unwrap().clone());
    let mut cells = Vec::new();
    for (i, seeds) in items.iter().enumerate() {
        for (seed, right) in (1u32..).zip(*seeds) {
            let right: Vec<bool> = right.iter().map(|x| *x == 1).collect();
            cells.push(expected("evaluate", Some(&name(i)), Some(seed), Ok(json!({"right": right}))));
        }
    }
    (section, cells)
}

fn test_of(grid: &Grid, row: usize) -> &CellTest {
    grid.rows[row].cells[0].test.as_ref().unwrap()
}

/// `b` items that a alone gets right, `c` that b alone does, and five that both do.
fn split(a_alone: usize, b_alone: usize) -> (Vec<u8>, Vec<u8>) {
    let a = [vec![1; a_alone], vec![0; b_alone], vec![1; 5]].concat();
    let b = [vec![0; a_alone], vec![1; b_alone], vec![1; 5]].concat();
    (a, b)
}

#[test]
fn mcnemar_counts_the_items_that_one_side_alone_gets_right() {
    let (a, b) = split(1, 9);
    for (method, p) in [("mcnemar", stats::mcnemar(9, 1).exact_p), ("mcnemar_mid_p", stats::mcnemar(9, 1).mid_p)] {
        let (section, cells) = with_items(&[&[&a], &[&b]], json!({"method": method}));
        let grid = build_now(&spec(&section), &cells).unwrap();
        let test = test_of(&grid, 1);
        assert_eq!((test.p, test.n, test.method.as_str(), test.mark.as_str()), (Some(p), 15, method, "*"));
        let note = &grid.notes.iter().find(|n| n.mark.is_some()).unwrap().text;
        assert!(
            note.starts_with("Significant: ") && note.contains(" against a on items, 1 test, not corrected"),
            "{note}"
        );
    }
    // 11/512: two-sided, of ten that differ.
    assert!((stats::mcnemar(9, 1).exact_p - 11.0 / 512.0).abs() < 1e-15);
    // A difference is tested by the items of both its sides.
    let (mut section, cells) =
        with_items(&[&[&a], &[&b]], json!({"method": "mcnemar", "on": ["gain"], "against": null}));
    let gain = json!({"key": "gain", "delta": {"of": "acc", "from": "a"}});
    section["columns"].as_array_mut().unwrap().push(gain);
    let grid = build_now(&spec(&section), &cells).unwrap();
    assert_eq!(grid.rows[1].cells[1].test.as_ref().unwrap().p, Some(stats::mcnemar(9, 1).exact_p));
    assert!(grid.rows[0].cells[1].test.is_none());
    // Nothing differs: p is 1, and that is an answer.
    let (section, cells) = with_items(&[&[&a], &[&a]], json!({"method": "mcnemar"}));
    assert_eq!(test_of(&build_now(&spec(&section), &cells).unwrap(), 1).p, Some(1.0));
}

#[test]
fn items_of_several_seeds_are_not_counted_again() {
    let (a, b) = split(1, 9);
    let two: &[&[&[u8]]] = &[&[&a, &a], &[&b, &b]];
    let (section, cells) = with_items(two, json!({"method": "mcnemar"}));
    let problems = build_now(&spec(&section), &cells).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(
        problems[0].starts_with("table `scores`, row `b`, column `acc`: McNemar's test compares one run with one")
            && problems[0].contains("paired_bootstrap"),
        "{problems:#?}"
    );
    // One seed of them.
    let mut one = section.clone();
    one["seeds"] = json!([2]);
    assert_eq!(test_of(&build_now(&spec(&one), &cells).unwrap(), 1).p, Some(stats::mcnemar(9, 1).exact_p));
    // The bootstrap takes each item's mean over the seeds that both have.
    let (c, _) = split(4, 6);
    let (section, cells) = with_items(&[&[&a, &a, &a], &[&b, &c]], json!({"method": "paired_bootstrap"}));
    let mut section = section;
    section["resamples"] = json!(2000);
    let grid = build_now(&spec(&section), &cells).unwrap();
    let number = |right: &[u8]| -> Vec<f64> { right.iter().map(|x| f64::from(*x)).collect() };
    let mean: Vec<f64> = number(&b).iter().zip(number(&c)).map(|(x, y)| (x + y) / 2.0).collect();
    let seed = stats::seed_of(0, &["scores", "b", "acc", "test"]);
    let p = stats::paired_bootstrap_p(&mean, &number(&a), Resamples { count: 2000, seed }).unwrap();
    assert_eq!((test_of(&grid, 1).p, test_of(&grid, 1).n), (Some(p), 15));
    assert!(grid.signature.contains("|resamples:2000|rng:0|test:paired_bootstrap-none-0.05|"), "{}", grid.signature);
}

#[test]
fn items_are_matched_by_name_and_refused_where_they_do_not_match() {
    let (a, b) = split(1, 9);
    let (mut section, mut cells) = with_items(&[&[&a], &[&b]], json!({"method": "mcnemar"}));
    // By name: the order in which a run has them does not matter.
    section["test"]["items"] = json!("[.names, .right] | transpose | map({key: .[0], value: .[1]}) | from_entries");
    let name = |i: usize| format!("q{i}");
    let named = |right: &[u8], order: &[usize]| {
        let names: Vec<String> = order.iter().map(|i| name(*i)).collect();
        let right: Vec<bool> = order.iter().map(|i| right[*i] == 1).collect();
        json!({"names": names, "right": right})
    };
    let forward: Vec<usize> = (0..15).collect();
    let backward: Vec<usize> = (0..15).rev().collect();
    cells[0] = expected("evaluate", Some("a"), Some(1), Ok(named(&a, &forward)));
    cells[1] = expected("evaluate", Some("b"), Some(1), Ok(named(&b, &backward)));
    assert_eq!(test_of(&build_now(&spec(&section), &cells).unwrap(), 1).p, Some(stats::mcnemar(9, 1).exact_p));

    let refused = |section: &Value, other: Value| {
        let mut cells = cells.clone();
        cells[1] = expected("evaluate", Some("b"), Some(1), Ok(other));
        let problems = build_now(&spec(section), &cells).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        problems[0].clone()
    };
    let said = refused(&section, named(&b, &backward[..14]));
    assert!(
        said.contains("row `b`, column `acc`: the items that its test compares are not the same in all runs"),
        "{said}"
    );
    section["test"]["items"] = json!(".right | map(if . then 1 else 0.5 end)");
    let said = refused(&section, named(&b, &forward));
    assert!(said.contains("right or wrong"), "{said}");
    section["test"]["items"] = json!(".rights");
    let problems = build_now(&spec(&section), &cells).unwrap_err();
    assert!(problems[0].contains("evaluate/a/seed-1: the `items` of its test give null"), "{problems:#?}");
    section["test"]["items"] = json!(".right[]");
    let problems = build_now(&spec(&section), &cells).unwrap_err();
    assert!(problems[0].contains("give 15 values"), "{problems:#?}");
}

#[test]
fn each_level_has_its_mark() {
    // Against a: 9 items against 1 differ, then 14 against none.
    let (one, nine) = split(1, 9);
    let (one, nine) = ([one, vec![0; 20]].concat(), [nine, vec![0; 20]].concat());
    let most = [vec![1; 15], vec![1; 20]].concat();
    let (section, cells) = with_items(
        &[&[&one], &[&nine], &[&most]],
        json!({"method": "mcnemar", "mark": "†", "levels": [{"alpha": 0.01, "mark": "††"}, {"alpha": 1e-12, "mark": "‡"}]}),
    );
    let grid = build_now(&spec(&section), &cells).unwrap();
    assert_eq!([test_of(&grid, 1).mark.as_str(), test_of(&grid, 2).mark.as_str()], ["†", "††"]);
    let notes: Vec<(&str, &str)> =
        grid.notes.iter().filter_map(|n| Some((n.mark.as_deref()?, n.text.as_str()))).collect();
    // A level that nothing passes is not explained.
    assert_eq!(
        notes,
        [
            ("†", "Significant: exact McNemar test against a on items, 2 tests, not corrected, alpha 0.05."),
            ("††", "The same, alpha 0.01."),
        ]
    );
    assert!(grid.signature.contains("|test:mcnemar-none-0.05,0.01,0.000000000001|"), "{}", grid.signature);
    // Where all pass the stricter level, its mark has the whole sentence.
    let (section, cells) =
        with_items(&[&[&one], &[&most]], json!({"method": "mcnemar", "levels": [{"alpha": 0.01, "mark": "**"}]}));
    let grid = build_now(&spec(&section), &cells).unwrap();
    let marked: Vec<&Note> = grid.notes.iter().filter(|n| n.mark.is_some()).collect();
    assert_eq!(marked.len(), 1, "{:?}", grid.notes);
    assert!(marked[0].mark.as_deref() == Some("**") && marked[0].text.ends_with("alpha 0.01."), "{marked:?}");
}

#[test]
fn an_interquartile_mean_over_runs_and_tasks() {
    let runs = [[0.1, 0.5, 0.9], [0.2, 0.6, 0.8], [0.1, 0.7, 0.95], [0.15, 0.55, 0.85]];
    let cells: Vec<Expected> = (1u32..)
        .zip(runs)
        .map(|(seed, tasks)| expected("evaluate", None, Some(seed), Ok(json!({"tasks": tasks}))))
        .collect();
    let section = json!({
        "key": "over", "rows": [{"key": "all"}], "appendix": true, "resamples": 2000,
        "columns": [
            {"key": "tasks", "stage": "evaluate", "metric": ".tasks", "show": "iqm_tasks", "scale": 100, "digits": 3},
            {"key": "pooled", "stage": "evaluate", "metric": ".tasks | mean", "show": "iqm", "scale": 100, "digits": 3},
        ],
    });
    let grids = all_now(&spec(&section), &cells).unwrap();
    let cell = &grids[0].rows[0].cells[0];
    let pooled: Vec<f64> = runs.concat().iter().map(|x| x * 100.0).collect();
    assert_eq!(cell.value, Some(stats::iqm(&pooled).unwrap()));
    let strata: Vec<Vec<f64>> = (0..3).map(|t| runs.iter().map(|run| run[t] * 100.0).collect()).collect();
    let resamples = Resamples { count: 2000, seed: stats::seed_of(0, &["over", "all", "tasks"]) };
    let interval = stats::bootstrap_stratified(&strata, Statistic::Iqm, 0.95, resamples).unwrap().interval;
    assert_eq!(cell.interval, Some(interval));
    assert_eq!((cell.n, cell.n_expected, cell.interval_kind), (4, 4, Some(IntervalKind::Stratified)));
    assert!(matches!(&cell.printed, Printed::Interval { .. }), "{:?}", cell.printed);
    // Beside it, the interquartile mean of the four runs is another number.
    assert_ne!(grids[0].rows[0].cells[1].value, cell.value);
    let note = "Interquartile mean over runs and tasks, 95 % intervals of a bootstrap of runs within each task; n = 4 seeds, 3 \
                tasks.";
    assert!(grids[0].notes.iter().any(|n| n.text == note), "{:#?}", grids[0].notes);
    assert!(
        grids[0].signature.contains("|interval:bootstrap-stratified-0.95|resamples:2000|rng:0|"),
        "{}",
        grids[0].signature
    );
    // The appendix has that of each run.
    let of_run: Vec<Option<f64>> = grids[1].rows.iter().map(|row| row.cells[0].value).collect();
    assert_eq!(of_run[0], Some(stats::iqm(&[10.0, 50.0, 90.0]).unwrap()));
    assert_eq!(of_run.len(), 4);

    let refused = |edit: &dyn Fn(&mut Vec<Expected>), said: &str| {
        let mut cells = cells.clone();
        edit(&mut cells);
        let problems = build_now(&spec(&section), &cells).unwrap_err();
        assert!(problems.iter().any(|p| p.contains(said)), "{problems:#?}");
    };
    let other = |seed, tree: Value| expected("evaluate", None, Some(seed), Ok(tree));
    refused(&|cells| cells[1] = other(2, json!({"tasks": [0.1, 0.2]})), "its runs have {2, 3} tasks");
    refused(&|cells| cells[1] = other(2, json!({"tasks": 0.5})), "takes an array with a number for each task");
    refused(&|cells| cells.truncate(2), "a percentile bootstrap of 6 numbers is too narrow");
}

#[test]
fn problems_of_items_and_levels_have_places() {
    let (a, b) = split(1, 9);
    let (section, _) = with_items(&[&[&a], &[&b]], json!({"method": "mcnemar"}));
    let said = |edit: &dyn Fn(&mut Value)| -> String {
        let mut section = section.clone();
        edit(&mut section);
        let problems = TableSpec::parse(&section, &["evaluate"]).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        problems[0].said()
    };
    assert!(
        said(&|s| drop(s["test"].as_object_mut().unwrap().remove("items"))).starts_with("test: the method `mcnemar`")
    );
    assert!(said(&|s| s["test"]["items"] = json!(".right |")).starts_with("test.items: "));
    assert!(
        said(&|s| s["test"]["method"] = json!("paired_t"))
            .starts_with("test.items: the method `paired_t` compares runs")
    );
    assert!(said(&|s| s["test"]["mark"] = json!("a")).starts_with("test.mark: \"a\" is no mark"));
    assert!(
        said(&|s| s["test"]["levels"] = json!([{"alpha": 0.1, "mark": "**"}])).starts_with("test.levels.0.alpha: ")
    );
    assert!(said(&|s| s["test"]["levels"] = json!([{"alpha": 0.01, "mark": "*"}])).starts_with("test.levels.0.mark: "));
    assert!(
        said(&|s| s["test"]["levels"] = json!([{"alpha": 0.01, "mrk": "*"}])).starts_with("test.levels.0.mrk: unknown")
    );
    let iqm = |s: &mut Value| s["columns"][0]["show"] = json!("iqm_tasks");
    let delta = json!({"key": "gain", "delta": {"of": "acc", "from": "a"}});
    assert!(
        said(&|s| {
            iqm(s);
            s["columns"].as_array_mut().unwrap().push(delta.clone());
        })
        .starts_with("columns.1.delta: column `acc` shows `iqm_tasks`")
    );
}
