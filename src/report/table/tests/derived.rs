//! Differences and ratios, to a row and to a column.

use super::*;
use crate::report::stats;

/// A table of two scores and what is derived of them.
fn section(columns: Value) -> Value {
    let mut all = vec![
        json!({"key": "before", "stage": "evaluate", "metric": ".before"}),
        json!({"key": "after", "stage": "evaluate", "metric": ".after"}),
    ];
    all.extend(columns.as_array().unwrap().clone());
    let rows = json!([{"key": "base", "arm": "base"}, {"key": "ours", "arm": "ours"}]);
    json!({"key": "scores", "rows": rows, "columns": all})
}

/// Seed, before and after of an arm.
fn scored(arm: &str, values: &[(u32, f64, f64)]) -> Vec<Expected> {
    let cell = |&(seed, before, after): &(u32, f64, f64)| {
        expected("evaluate", Some(arm), Some(seed), Ok(json!({"before": before, "after": after})))
    };
    values.iter().map(cell).collect()
}

fn cells() -> Vec<Expected> {
    let mut cells = scored("base", &[(1, 10.0, 12.0), (2, 11.0, 12.0), (3, 12.0, 15.0)]);
    cells.extend(scored("ours", &[(1, 20.0, 25.0), (2, 23.0, 24.0), (3, 23.0, 29.0)]));
    cells
}

fn grid_of(columns: Value, cells: &[Expected]) -> Grid {
    build_now(&spec(&section(columns)), cells).unwrap()
}

#[test]
fn a_difference_of_columns_pairs_on_the_seeds_of_one_row() {
    let grid = grid_of(
        json!([{"key": "gain", "delta": {"of": "after", "from_column": "before"}, "show": "mean_sd", "digits": 1}]),
        &cells(),
    );
    // 2, 1, 3 and 5, 1, 6: no row is a reference.
    assert_eq!(texts(&grid)[0][2], "2.0±1.0");
    assert_eq!(texts(&grid)[1][2], "4.0±2.6");
    assert_eq!(grid.rows[0].cells[2].runs.len(), 3, "both sides are of one run");
}

#[test]
fn differences_pair_on_the_common_seeds_and_say_how_many() {
    let columns = json!([{"key": "delta", "delta": {"of": "after", "from": "base"}}]);
    let mut less = cells();
    // Seed 3 of the base was never planned; the row has it alone.
    less.retain(|c| c.key.arm.as_ref().unwrap().as_str() != "base" || c.key.seed != Some(3));
    let grid = build_now(&spec(&section(columns.clone())), &less).unwrap();
    let cell = &grid.rows[1].cells[2];
    assert_eq!((cell.n, cell.n_expected, cell.mean), (2, 2, Some(12.5)));
    assert_eq!(cell.runs.len(), 4, "seed 3 is no part of it");
    assert_eq!(grid.notes[cell.notes[0]].text, "paired on the n = 2 seeds that both sides have");
    less.retain(|c| c.key.arm.as_ref().unwrap().as_str() != "base" || c.key.seed == Some(7));
    less.extend(scored("base", &[(7, 1.0, 1.0)]));
    let problems = build_now(&spec(&section(columns.clone())), &less).unwrap_err();
    assert!(problems[0].contains("missing: after (the two sides have no seed in common)"), "{problems:#?}");
    // Whole, the n of the differences is printed once.
    let grid = grid_of(columns, &cells());
    assert_eq!(grid.notes[0].text, "Differences are paired on the common seeds, n = 3.");
    assert!(matches!(grid.rows[0].cells[2].printed, Printed::Reference));
}

#[test]
fn a_ratio_of_means_has_a_propagated_error() {
    let ratio =
        |show: &str| json!([{"key": "times", "ratio": {"of": "after", "to": "base"}, "show": show, "digits": 3}]);
    let grid = grid_of(ratio("mean_sd"), &cells());
    // Means 26 and 13, sds sqrt 7 and sqrt 3: 2 sqrt(7/26^2 + 3/13^2).
    let sd = 2.0 * (7.0f64 / 676.0 + 3.0 / 169.0).sqrt();
    let cell = &grid.rows[1].cells[2];
    assert_eq!(texts(&grid)[1][2], format!("2.000±{sd:.3}"));
    assert!((cell.spread.unwrap() - sd).abs() < 1e-12);
    // The ratio of means is not the mean of ratios: 25/12, 24/12, 29/15.
    let of_ratios = (25.0 / 12.0 + 2.0 + 29.0 / 15.0) / 3.0;
    assert!((cell.mean.unwrap() - of_ratios).abs() < 1e-12 && cell.value == Some(2.0));
    assert!(matches!(grid.rows[0].cells[2].printed, Printed::Reference));
    let note =
        "Ratios of means over the common seeds, n = 3; errors are propagated, the two sides taken as independent.";
    assert_eq!(grid.notes[0].text, note);

    let grid = grid_of(ratio("mean_ci"), &cells());
    let cell = &grid.rows[1].cells[2];
    assert_eq!(cell.interval_kind, Some(IntervalKind::Propagated));
    let half = 4.302652729749462 * sd / 3f64.sqrt();
    assert!((cell.interval.unwrap().upper - 2.0 - half).abs() < 1e-9);
}

#[test]
fn a_ratio_may_be_resampled_where_there_are_runs_enough_or_it_is_allowed() {
    let columns = json!([{"key": "kept", "ratio": {"of": "after", "to_column": "before", "error": "bootstrap"},
                          "show": "mean_ci", "digits": 2}]);
    let problems = build_now(&spec(&section(columns.clone())), &cells()).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].contains("column `kept`: a percentile bootstrap of 3 runs is too narrow"), "{problems:#?}");
    let mut allowed = section(columns);
    allowed["allow"] = json!(["small_bootstrap"]);
    allowed["bootstrap_seed"] = json!(7);
    let grid = build_now(&spec(&allowed), &cells()).unwrap();
    let cell = &grid.rows[1].cells[2];
    assert_eq!(cell.interval_kind, Some(IntervalKind::Bootstrap));
    let seed = stats::seed_of(7, &["scores", "ours", "kept"]);
    let pairs = [(25.0, 20.0), (24.0, 23.0), (29.0, 23.0)];
    let expected = stats::bootstrap_ratio(&pairs, 0.95, stats::Resamples { count: 10_000, seed }).unwrap();
    assert_eq!(cell.interval, Some(expected.interval));
    assert!(grid.signature.contains("|resamples:10000|rng:7|"), "{}", grid.signature);
}

#[test]
fn a_ratio_to_zero_is_no_number_and_says_why() {
    let columns = json!([{"key": "times", "ratio": {"of": "after", "to": "base"}, "show": "mean_sd"}]);
    let mut cells = scored("base", &[(1, 1.0, 0.0), (2, 1.0, 0.0)]);
    cells.extend(scored("ours", &[(1, 1.0, 5.0), (2, 1.0, 6.0)]));
    let grid = grid_of(columns, &cells);
    let cell = &grid.rows[1].cells[2];
    assert_eq!((texts(&grid)[1][2].as_str(), cell.value), ("missing", None));
    assert_eq!(grid.notes[cell.notes[0]].text, "degenerate: the denominator is 0 or changes its sign");
}

#[test]
fn a_value_without_a_seed_is_compared_with_every_seed() {
    // The base was evaluated once, before anything was drawn.
    let mut cells = vec![expected("evaluate", Some("base"), None, Ok(json!({"before": 10.0, "after": 10.0})))];
    cells.extend(scored("ours", &[(1, 1.0, 12.0), (2, 1.0, 14.0)]));
    let grid = grid_of(
        json!([
            {"key": "delta", "delta": {"of": "after", "from": "base"}, "show": "mean_sd", "digits": 1},
            {"key": "times", "ratio": {"of": "after", "to": "base"}, "show": "mean_sd", "digits": 2},
        ]),
        &cells,
    );
    // 2 and 4; the constant adds no error: 13/10, sd sqrt 2 / 10.
    assert_eq!(texts(&grid)[1][2..], ["3.0±1.4", "1.30±0.14"]);
    assert_eq!((grid.rows[1].cells[2].n, grid.rows[1].cells[2].n_expected), (2, 2));
    assert_eq!(grid.rows[1].cells[2].runs.len(), 3);
}

#[test]
fn medians_iqms_and_values() {
    let columns = json!([
        {"key": "median", "stage": "evaluate", "metric": ".after", "show": "median", "digits": 1},
        {"key": "iqm", "stage": "evaluate", "metric": ".after", "show": "iqm", "digits": 1},
        {"key": "values", "stage": "evaluate", "metric": ".after", "show": "values", "digits": 0},
        {"key": "precise", "stage": "evaluate", "metric": ".after / 1000", "show": "mean_sd", "significant": 2},
    ]);
    let mut cells = scored("base", &[(3, 0.0, 3.0), (1, 0.0, 1.0), (2, 0.0, 2.0), (4, 0.0, 100.0)]);
    cells.extend(scored("ours", &[(1, 0.0, 5.0), (2, 0.0, 5.0), (3, 0.0, 5.0), (4, 0.0, 5.0)]));
    let grid = grid_of(columns, &cells);
    // Sorted by seed, not as they came. The mean 0.0265 to two digits; its sd 0.0490 at the same place.
    assert_eq!(texts(&grid)[0][2..], ["2.5", "2.5", "1;2;3;100", "0.027±0.049"]);
    assert_eq!(texts(&grid)[1][5], "0.0050±0.0000");
    let cell = &grid.rows[0].cells[2];
    assert_eq!((cell.value, cell.median, cell.interval), (Some(2.5), Some(2.5), None));
    let notes: Vec<&str> = grid.notes.iter().map(|n| n.text.as_str()).collect();
    assert_eq!(
        notes,
        [
            "Mean ± sample standard deviation over n = 4 seeds.",
            "Median over n = 4 seeds.",
            "Interquartile mean over n = 4 seeds.",
            "Values in the order of seeds, n = 4 seeds.",
        ]
    );
}

#[test]
fn a_new_row_moves_no_other_interval() {
    let mut section = section(json!([]));
    section["columns"][0]["show"] = json!("mean_ci");
    section["interval"] = json!("bootstrap");
    section["bootstrap_seed"] = json!(11);
    let many = |arm: &str, shift: f64| {
        let values: Vec<(u32, f64, f64)> =
            (0..12).map(|s| (s, f64::from(s * s % 7) * 0.37 + f64::from(s) * 0.113 + shift, 0.0)).collect();
        scored(arm, &values)
    };
    let cells = [many("base", 0.0), many("ours", 3.0), many("third", 1.0)].concat();
    let before = build_now(&spec(&section), &cells).unwrap();
    section["rows"].as_array_mut().unwrap().insert(0, json!({"key": "third", "arm": "third"}));
    let after = build_now(&spec(&section), &cells).unwrap();
    for (was, is) in before.rows.iter().zip(&after.rows[1..]) {
        assert_eq!(was.cells[0].interval, is.cells[0].interval);
        assert_eq!(was.cells[0].interval_kind, Some(IntervalKind::Bootstrap));
    }
    assert_eq!(before.notes[0].text, "Mean and 95 % percentile bootstrap interval over n = 12 seeds.");
    // And not by the same draws: shifted values have shifted intervals only if the seed is the same.
    let width = |row: &Row| row.cells[0].interval.map(|i| i.upper - i.lower).unwrap();
    assert!((width(&before.rows[0]) - width(&before.rows[1])).abs() > 1e-9);
}

#[test]
fn a_partial_difference_comes_from_its_own_runs() {
    let mut section = section(json!([{"key": "delta", "delta": {"of": "after", "from": "base"}}]));
    section["partial"] = json!("mark");
    let mut partial = cells();
    // Seed 2 of the base is missing: that of the other arm is in no difference.
    partial[1].run = Err("not sealed".into());
    let grid = build_now(&spec(&section), &partial).unwrap();
    let cell = &grid.rows[1].cells[2];
    assert_eq!((cell.n, cell.n_expected), (2, 3));
    let runs: Vec<String> = cell.runs.iter().map(|r| r.key.local_name()).collect();
    let mut sorted = runs.clone();
    sorted.sort();
    assert_eq!(
        sorted,
        ["evaluate/base/seed-1", "evaluate/base/seed-3", "evaluate/ours/seed-1", "evaluate/ours/seed-3"]
    );
}
