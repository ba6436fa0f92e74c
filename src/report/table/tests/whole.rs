//! Seeds that a table expects, several studies, appendices, and problems of whole tables.

use super::*;
use crate::record::{Digest, Name};

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
