//! Seeds that a table expects, several studies, appendices, and problems of whole tables.

use super::*;
use crate::record::{Digest, Name};
use crate::report::table::grid::GridCell;

fn perplexities(section: &mut Value) {
    section["columns"] = json!([{"key": "ppl", "label": "Perplexity", "stage": "evaluate", "metric": ".ppl[$row.model]", "show": "mean_sd"}]);
    section["notes"] = json!([]);
    section["rows"][0]["with"] = json!({"model": "a"});
    section["rows"][1]["with"] = json!({"model": "b"});
}

fn evaluated(study: &str, profile: &str, seed: u32, a: f64, b: f64) -> Expected {
    let mut cell = expected("evaluate", None, Some(seed), Ok(json!({"ppl": {"a": a, "b": b}})));
    cell.key.study = Name::new(study).unwrap();
    cell.key.profile = Name::new(profile).unwrap();
    cell.run.as_mut().unwrap().fingerprint = Digest::of_bytes(cell.key.to_string().as_bytes());
    cell
}

fn three() -> Vec<Expected> {
    (1..=3).map(|s| evaluated("monotone", "quick", s, f64::from(s), 2.0 * f64::from(s))).collect()
}

#[test]
fn a_table_says_how_many_seeds_it_expects() {
    let mut section = table_7();
    perplexities(&mut section);
    section["seeds"] = json!(5);
    let problems = build_now(&spec(&section), &three()).unwrap_err();
    assert_eq!(problems.len(), 2);
    assert!(
        problems[0].contains("3 of 5 runs; missing: evaluate (2 of the 5 seeds that the table expects are not planned")
    );
    section["partial"] = json!("mark");
    let grid = build_now(&spec(&section), &three()).unwrap();
    assert_eq!((grid.rows[0].cells[0].n, grid.rows[0].cells[0].n_expected), (3, 5));
    assert!(!grid.complete);
    section["seeds"] = json!(2);
    let problems = build_now(&spec(&section), &three()).unwrap_err();
    assert!(problems[0].ends_with("3 seeds are planned and the table expects 2: say `seeds = 3`"), "{problems:#?}");
    section["seeds"] = json!(3);
    assert!(build_now(&spec(&section), &three()).unwrap().complete);
}

#[test]
fn a_table_names_the_seeds_that_it_takes() {
    let mut section = table_7();
    perplexities(&mut section);
    section["seeds"] = json!([3, 1]);
    let grid = build_now(&spec(&section), &three()).unwrap();
    assert_eq!((grid.rows[0].cells[0].mean, grid.rows[0].cells[0].n_expected), (Some(2.0), 2));
    assert!(grid.signature.contains("|seeds:1,3|"), "{}", grid.signature);
    section["seeds"] = json!([1, 7]);
    let problems = build_now(&spec(&section), &three()).unwrap_err();
    let said = "1 of 2 runs; missing: evaluate/seed-7 (not planned; `run_all --seeds 7` adds it)";
    assert!(problems[0].contains(said), "{problems:#?}");
}

#[test]
fn cells_of_several_studies_meet_in_one_table() {
    let mut section = table_7();
    perplexities(&mut section);
    section["studies"] = json!(["small", "large/quick"]);
    section["rows"][0]["study"] = json!("small");
    section["rows"][1]["study"] = json!("large");
    let cells = |profile: &str| {
        let mut cells = three();
        cells.extend([evaluated("small", "quick", 1, 5.0, 0.0), evaluated("large", profile, 1, 0.0, 9.0)]);
        cells
    };
    let grid = build_now(&spec(&section), &cells("quick")).unwrap();
    // A third study's cells are no part of it.
    assert_eq!((grid.rows[0].cells[0].mean, grid.rows[1].cells[0].mean), (Some(5.0), Some(9.0)));
    let runs: Vec<String> = grid.rows.iter().map(|r| r.cells[0].runs[0].key.to_string()).collect();
    assert_eq!(runs, ["small/quick/evaluate/seed-1", "large/quick/evaluate/seed-1"]);
    assert_ne!(grid.rows[0].cells[0].runs[0].fingerprint, grid.rows[1].cells[0].runs[0].fingerprint);
    assert!(
        grid.signature.starts_with("table:foundation|studies:large/quick,small/quick|seeds:1|"),
        "{}",
        grid.signature
    );

    let problems = build_now(&spec(&section), &cells("full")).unwrap_err();
    assert_eq!(
        problems,
        ["table `foundation` would mix cells of the profiles `full` and `quick`: give its `studies` one profile"]
    );
    // Without a study of its own, a row finds two runs for one place.
    section["rows"][0].as_object_mut().unwrap().remove("study");
    let problems = build_now(&spec(&section), &cells("quick")).unwrap_err();
    assert!(
        problems[0].contains(
            "small/quick/evaluate/seed-1 and large/quick/evaluate/seed-1 are two runs for one place: narrow the row"
        ),
        "{problems:#?}"
    );
}

#[test]
fn an_appendix_has_the_value_of_each_seed() {
    let mut section = table_7();
    section["appendix"] = json!(true);
    section["partial"] = json!("mark");
    section["rows"][1]["group"] = json!("Constrained");
    let mut cells = two_seeds();
    cells[4].run = Err("failed: out of memory".into());
    let grids = all_now(&spec(&section), &cells).unwrap();
    assert_eq!(grids.len(), 2);
    let appendix = &grids[1];
    assert_eq!(
        (appendix.key.as_str(), appendix.label.as_deref()),
        ("foundation-appendix", Some("tab:foundation-preliminary-appendix"))
    );
    assert_eq!(
        appendix.caption,
        "Foundation models: perplexity & attack success (100 % of the runs). The value of each seed."
    );
    assert_eq!(appendix.layout.env, Env::Long);
    let labels: Vec<(&str, &str)> =
        appendix.rows.iter().map(|r| (r.group.as_deref().unwrap(), r.label.as_str())).collect();
    assert_eq!(
        labels,
        [
            ("Pythia (Baseline)", "42"),
            ("Pythia (Baseline)", "1337"),
            ("Constrained: Pythia (Monotonic)", "42"),
            ("Constrained: Pythia (Monotonic)", "1337"),
        ]
    );
    assert_eq!(
        texts(appendix),
        [
            ["170.6K", "6.91", "ref", "69.0"],
            ["170.6K", "6.93", "ref", "missing"],
            ["170.6K", "27.50", "20.59", "19.0"],
            ["170.6K", "27.70", "20.77", "missing"],
        ]
    );
    let lost = &appendix.rows[1].cells[3];
    assert_eq!(appendix.notes[lost.notes[0]].text, "missing: hotflip/seed-1337 (failed: out of memory)");
    assert_eq!(appendix.rows[2].cells[2].runs.len(), 1, "both sides of the difference are of one run");
    assert!(!appendix.complete);
    assert!(appendix.signature.starts_with("table:foundation-appendix|"), "{}", appendix.signature);
    section["appendix"] = json!(false);
    assert_eq!(all_now(&spec(&section), &cells).unwrap().len(), 1);
}

#[test]
fn a_metric_that_matches_no_run_is_one_message() {
    for partial in ["error", "mark", "drop"] {
        let mut section = table_7();
        section["partial"] = json!(partial);
        section["columns"][1]["metric"] = json!(".pile_tset[$row.model].perplexity");
        let problems = build_now(&spec(&section), &two_seeds()).unwrap_err();
        assert_eq!(
            problems,
            [
                "table `foundation`, column `ppl`: the metric `.pile_tset[$row.model].perplexity` matches no run, it is null \
              in all 4: see what there is with `seedbed query . results/monotone/quick/evaluate/seed-42/run.h5`"
            ]
        );
    }
}

#[test]
fn problems_of_every_column_come_at_once() {
    let mut section = table_7();
    section["columns"][1]["metric"] = json!(".no.such");
    section["columns"][3]["metric"] = json!(".results");
    section["columns"][3]["better"] = json!(null);
    section["test"] = json!({"on": ["ppl"], "against": "baseline", "method": "sign_flip", "family": "none"});
    let problems = build_now(&spec(&section), &two_seeds()).unwrap_err();
    assert_eq!(problems.len(), 4, "{problems:#?}");
    assert!(
        problems.iter().any(|p| p.contains("hotflip/seed-42: the metric gives {") && p.ends_with("(and 1 more runs)"))
    );
    assert!(problems.iter().any(|p| p.contains("the sign-flip test of 2 pairs cannot go below p = 0.5")));
}

#[test]
fn studies_with_other_seeds_are_not_pooled() {
    let mut section = table_7();
    perplexities(&mut section);
    section["studies"] = json!(["small", "large/quick"]);
    section["rows"][1]["study"] = json!("large");
    // No seed is there twice.
    let cells: Vec<Expected> = [("small", 1), ("small", 2), ("large", 7), ("large", 8)]
        .map(|(study, seed)| evaluated(study, "quick", seed, f64::from(seed), f64::from(seed)))
        .into();
    let problems = build_now(&spec(&section), &cells).unwrap_err();
    assert_eq!(
        problems,
        [
            "table `foundation`, row `baseline`, column `ppl`: small/quick/evaluate/seed-1 and large/quick/evaluate/seed-7 \
             are two runs for one place: narrow the row with `arm`, `labels` or `study`"
        ]
    );
    section["rows"][0]["study"] = json!("small");
    let grid = build_now(&spec(&section), &cells).unwrap();
    assert_eq!((grid.rows[0].cells[0].mean, grid.rows[1].cells[0].mean), (Some(1.5), Some(7.5)));
    // Arms are no other: each has seeds of its own, and a row without an arm takes none of them.
    section.as_object_mut().unwrap().remove("studies");
    section["rows"] = json!([{"key": "all"}]);
    section["columns"][0]["metric"] = json!(".ppl");
    let arm = |arm: &str, seed: u32| expected("evaluate", Some(arm), Some(seed), Ok(json!({"ppl": 1.0})));
    let problems = build_now(&spec(&section), &[arm("a", 1), arm("b", 2)]).unwrap_err();
    assert!(problems[0].contains("evaluate/a/seed-1 and evaluate/b/seed-2 are two runs"), "{problems:#?}");
}

#[test]
fn a_mistyped_arm_or_label_is_no_shared_cell() {
    let mut section = table_7();
    section["columns"] = json!([{"key": "parameters", "stage": "setup", "metric": ".n"}]);
    section["notes"] = json!([]);
    section["rows"] = json!([{"key": "a", "arm": "tuned"}]);
    let mut arm = expected("evaluate", Some("tuned"), Some(1), Ok(json!({})));
    arm.labels.insert("size".into(), "small".into());
    let cells = [expected("setup", None, None, Ok(json!({"n": 3}))), arm];
    // An arm that another stage has.
    assert_eq!(build_now(&spec(&section), &cells).unwrap().rows[0].cells[0].mean, Some(3.0));
    let said = |row: Value| {
        let mut section = section.clone();
        section["rows"] = json!([row]);
        build_now(&spec(&section), &cells)
    };
    assert!(said(json!({"key": "a", "labels": {"size": "small"}})).is_ok());
    let place = "table `foundation`, row `a`: no expected cell has an arm with";
    let remedy = "correct the row, or the `needs` of the aggregating stage";
    assert_eq!(
        said(json!({"key": "a", "arm": "tunde"})).unwrap_err(),
        [format!("{place} `arm = \"tunde\"`: {remedy}")]
    );
    assert_eq!(
        said(json!({"key": "a", "arm": "tuned", "labels": {"size": "large"}})).unwrap_err(),
        [format!("{place} `arm = \"tuned\"` and `labels.size = \"large\"`: {remedy}")]
    );
}

#[test]
fn rows_and_columns_pivot_on_two_labels_over_several_stages() {
    let cell = |stage: &str, checkpoint: &str, mask: &str, seed: u32, macro_accuracy: f64| {
        let arm = format!("{checkpoint}.{mask}");
        let mut cell = expected(stage, Some(&arm), Some(seed), Ok(json!({"macro_accuracy": macro_accuracy})));
        let labels = [("checkpoint", checkpoint), ("mask", mask)];
        cell.labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        cell
    };
    let mut cells = Vec::new();
    for (seed, more) in [(1, 0.0), (2, 0.2)] {
        cells.push(cell("before", "vanilla", "prefix", seed, 0.1 + more));
        cells.push(cell("before", "vanilla", "full", seed, 0.2 + more));
        cells.push(cell("after", "tuned", "prefix", seed, 0.3 + more));
        cells.push(cell("after", "tuned", "full", seed, 0.4 + more));
    }
    let column = |mask: &str, stage: Value| json!({"key": mask, "stage": stage, "labels": {"mask": mask}, "metric": ".macro_accuracy", "digits": 1});
    let both = || json!(["before", "after"]);
    let table = |columns: Value| {
        let row = |checkpoint: &str| json!({"key": checkpoint, "labels": {"checkpoint": checkpoint}});
        let section = json!({"key": "conditions", "rows": [row("vanilla"), row("tuned")], "columns": columns});
        TableSpec::parse(&section, &["before", "after"]).unwrap()
    };
    let spec = table(json!([column("prefix", both()), column("full", both())]));
    let grid = build_now(&spec, &cells).unwrap();
    let tenths = |cell: &GridCell| (10.0 * cell.mean.unwrap()).round();
    let means: Vec<Vec<f64>> = grid.rows.iter().map(|row| row.cells.iter().map(tenths).collect()).collect();
    assert_eq!(means, [[2.0, 3.0], [4.0, 5.0]]);

    // A mask that no arm has, and a place that two arms would share.
    let none = build_now(&table(json!([column("none", both())])), &cells).unwrap_err();
    assert!(none[0].contains("no expected cell of stage `before`, `after` matches"), "{none:#?}");
    let mut all = column("prefix", both());
    all.as_object_mut().unwrap().remove("labels");
    let two = build_now(&table(json!([all])), &cells).unwrap_err();
    assert!(two[0].contains("are two runs for one place"), "{two:#?}");
}

#[test]
fn the_signature_has_the_seeds_and_intervals_of_the_cells() {
    let mut section = table_7();
    perplexities(&mut section);
    let signature = |section: &Value, cells: &[Expected]| build_now(&spec(section), cells).unwrap().signature;
    assert!(signature(&section, &three()).contains("|seeds:1,2,3|sd:n-1|interval:t-0.95|"));
    // One seed has no interval; a seed whose run is missing is none of the table's.
    let mut cells = three();
    cells[1].run = Err("not sealed".into());
    cells[2].run = Err("not sealed".into());
    section["partial"] = json!("mark");
    let said = signature(&section, &cells);
    assert!(said.contains("|seeds:1|sd:n-1|interval:none|"), "{said}");
    section["partial"] = json!("drop");
    let said = signature(&section, &cells);
    assert!(said.contains("|seeds:none|sd:n-1|interval:none|"), "{said}");
    // Seeds of an arm that no row takes, and intervals of two kinds.
    section["partial"] = json!("error");
    section["rows"] = json!([{"key": "a", "arm": "a"}]);
    section["columns"] = json!([
        {"key": "x", "stage": "evaluate", "metric": ".x", "show": "mean_sd"},
        {"key": "y", "stage": "evaluate", "metric": ".y"},
        {"key": "times", "ratio": {"of": "x", "to_column": "y", "error": "bootstrap"}, "show": "mean_ci"},
    ]);
    section["allow"] = json!(["small_bootstrap"]);
    let cell = |arm: &str, seed: u32| {
        expected("evaluate", Some(arm), Some(seed), Ok(json!({"x": seed, "y": f64::from(seed).sqrt() + 1.0})))
    };
    let said = signature(&section, &[cell("a", 1), cell("a", 2), cell("a", 3), cell("b", 9)]);
    assert!(said.contains("|seeds:1,2,3|sd:n-1|interval:t,bootstrap-percentile-0.95|resamples:"), "{said}");
}

#[test]
fn what_is_dropped_is_not_counted_below() {
    let mut section = table_7();
    perplexities(&mut section);
    section["partial"] = json!("drop");
    let mut cells = three();
    let run = cells[2].run.as_mut().unwrap();
    run.tree = std::sync::Arc::new(json!({"ppl": {"a": null, "b": 6.0}}));
    let grid = build_now(&spec(&section), &cells).unwrap();
    assert_eq!((grid.rows[0].cells[0].n, grid.rows[1].cells[0].n), (2, 3));
    assert_eq!(grid.notes[0].text, "Mean ± sample standard deviation over n = 3 seeds.");
}

#[test]
fn an_appendix_says_why_a_seed_has_no_number() {
    let mut section = table_7();
    section["appendix"] = json!(true);
    section["partial"] = json!("mark");
    section["notes"] = json!([]);
    section["rows"] = json!([{"key": "ours", "arm": "ours"}]);
    section["columns"] = json!([
        {"key": "x", "stage": "evaluate", "metric": ".x"},
        {"key": "zero", "stage": "evaluate", "metric": ".zero"},
        {"key": "base", "stage": "setup", "metric": ".x"},
        {"key": "times", "ratio": {"of": "x", "to_column": "zero"}},
        {"key": "gain", "delta": {"of": "x", "from_column": "base"}},
    ]);
    let cell =
        |seed: u32, zero: f64| expected("evaluate", Some("ours"), Some(seed), Ok(json!({"x": 6.0, "zero": zero})));
    let cells = [cell(1, 0.0), cell(2, 3.0), expected("setup", None, None, Err("not sealed"))];
    let appendix = all_now(&spec(&section), &cells).unwrap().swap_remove(1);
    let said = |row: usize, column: usize| -> Vec<&str> {
        appendix.rows[row].cells[column].notes.iter().map(|n| appendix.notes[*n].text.as_str()).collect()
    };
    assert_eq!(texts(&appendix)[0], ["6.00", "0.00", "missing", "missing", "missing"]);
    assert_eq!(said(0, 3), ["degenerate: no number for this seed"]);
    assert_eq!((texts(&appendix)[1][3].as_str(), said(1, 3).len()), ("2.00", 0));
    assert_eq!(said(0, 4), ["missing: setup (not sealed)"]);
    assert_eq!(said(1, 4), ["missing: setup (not sealed)"]);
}
