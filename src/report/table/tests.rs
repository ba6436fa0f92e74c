//! Tables of small studies.

mod broken;
mod derived;
mod items;
mod marks;
mod whole;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::record::{CellKey, Digest, Name};
use crate::report::query::{Job, Limits, evaluate};

/// A cell `stage[/arm]` of one seed.
pub(crate) fn expected(stage: &str, arm: Option<&str>, seed: Option<u32>, run: Result<Value, &str>) -> Expected {
    let name = |s: &str| Name::new(s).unwrap();
    let key = CellKey { study: name("monotone"), profile: name("quick"), stage: name(stage), arm: arm.map(name), seed };
    let digest = |what: &str| Digest::of_bytes(format!("{what} {key}").as_bytes());
    let (fingerprint, content) = (digest("fingerprint"), digest("content"));
    Expected {
        labels: BTreeMap::new(),
        run: run.map(|tree| Run { tree: Arc::new(tree), fingerprint, content, day: None }).map_err(str::to_owned),
        key,
    }
}

pub(crate) fn build_now(spec: &TableSpec, expected: &[Expected]) -> Result<Grid, Vec<String>> {
    all_now(spec, expected).map(|mut grids| grids.swap_remove(0))
}

/// The table and its appendix.
pub(crate) fn all_now(spec: &TableSpec, expected: &[Expected]) -> Result<Vec<Grid>, Vec<String>> {
    let requests = requests(spec, expected);
    let jobs: Vec<Job> = requests
        .iter()
        .map(|r| Job { code: &r.metric, input: &expected[r.cell].run.as_ref().unwrap().tree, row: &r.row_value })
        .collect();
    let limits = Limits { time: Duration::from_secs(10), ..Limits::default() };
    grids(spec, expected, &evaluate(&jobs, limits)).map_err(|p| p.into_iter().map(|p| p.0).collect())
}

/// The study page's table, in small.
pub(crate) fn table_7() -> Value {
    json!({
        "key": "foundation",
        "label": "tab:foundation-preliminary",
        "caption": "Foundation models: perplexity & attack success (100 % of the runs).",
        "stub": "Model",
        "rows": [
            {"key": "baseline", "label": "Pythia (Baseline)", "with": {"model": "baseline_pythia"}},
            {"key": "monotonic", "label": "Pythia (Monotonic)", "with": {"model": "monotonic_pythia"}},
        ],
        "columns": [
            {"key": "parameters", "label": "Parameters", "stage": "setup", "metric": ".num_parameters",
             "notation": "suffix", "digits": 1},
            {"key": "ppl", "label": "Perplexity (Clean)", "stage": "evaluate",
             "metric": ".pile_test[$row.model].perplexity", "show": "mean_sd", "better": "lower"},
            {"key": "delta", "label": "Perplexity (Δ)", "delta": {"of": "ppl", "from": "baseline"}, "show": "mean_sd"},
            {"key": "attack", "label": "Attack Success (%)", "stage": "hotflip",
             "metric": ".results[$row.model].success_rate", "scale": 100, "digits": 1, "show": "mean_sd",
             "better": "lower"},
        ],
        "notes": ["Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder."],
    })
}

pub(crate) fn spec(section: &Value) -> TableSpec {
    TableSpec::parse(section, &["setup", "evaluate", "hotflip"]).unwrap()
}

/// Seed, perplexities and success rates of baseline and monotonic.
pub(crate) fn study(seeds: &[(u32, f64, f64, f64, f64)]) -> Vec<Expected> {
    let mut cells = vec![expected("setup", None, None, Ok(json!({"num_parameters": 170_624})))];
    for &(seed, base, mono, base_rate, mono_rate) in seeds {
        let pile =
            json!({"pile_test": {"baseline_pythia": {"perplexity": base}, "monotonic_pythia": {"perplexity": mono}}});
        let flips = json!({"results": {"baseline_pythia": {"success_rate": base_rate}, "monotonic_pythia": {"success_rate": mono_rate}}});
        cells.push(expected("evaluate", None, Some(seed), Ok(pile)));
        cells.push(expected("hotflip", None, Some(seed), Ok(flips)));
    }
    cells
}

pub(crate) fn two_seeds() -> Vec<Expected> {
    study(&[(42, 6.91, 27.5, 0.69, 0.19), (1337, 6.93, 27.7, 0.69, 0.21)])
}

fn texts(grid: &Grid) -> Vec<Vec<String>> {
    let text = |c: &GridCell| match &c.printed {
        Printed::Number { text, spread: None } => text.clone(),
        Printed::Number { text, spread: Some(s) } => format!("{text}±{s}"),
        Printed::Interval { text, lower, upper } => format!("{text}[{lower},{upper}]"),
        Printed::Text(text) => text.clone(),
        Printed::Values(values) => values.join(";"),
        Printed::Reference => "ref".into(),
        Printed::Missing => "missing".into(),
    };
    grid.rows.iter().map(|r| r.cells.iter().map(text).collect()).collect()
}

#[test]
fn the_study_page_table() {
    let grid = build_now(&spec(&table_7()), &two_seeds()).unwrap();
    assert_eq!(
        texts(&grid),
        [["170.6K", "6.92±0.01", "ref", "69.0±0.0"], ["170.6K", "27.60±0.14", "20.68±0.13", "20.0±1.4"]]
    );
    assert!(grid.complete);
    let cell = &grid.rows[1].cells[2];
    // Differences pair on the seed: 27.5 - 6.91 and 27.7 - 6.93.
    assert_eq!(cell.values.iter().map(|v| v.seed).collect::<Vec<_>>(), [Some(42), Some(1337)]);
    assert!((cell.mean.unwrap() - 20.68).abs() < 1e-12 && (cell.values[0].value - 20.59).abs() < 1e-12);
    assert_eq!((cell.n, cell.n_expected, cell.runs.len()), (2, 2, 2));
    assert_eq!(grid.rows[0].cells[0].n_expected, 1);
    let notes: Vec<&str> = grid.notes.iter().map(|n| n.text.as_str()).collect();
    assert_eq!(notes[1], "Mean ± sample standard deviation over n = 2 seeds.");
    assert_eq!(
        grid.signature,
        format!(
            "table:foundation|seeds:42,1337|sd:n-1|interval:t-0.95|partial:error|seedbed:{}",
            env!("CARGO_PKG_VERSION")
        )
    );
}

#[test]
fn a_missing_run_is_an_error_that_names_it() {
    let mut cells = two_seeds();
    cells[3].run = Err("not sealed".into());
    let problems = build_now(&spec(&table_7()), &cells).unwrap_err();
    assert_eq!(problems.len(), 3, "{problems:#?}");
    assert_eq!(
        problems[0],
        "table `foundation`, row `baseline`, column `ppl`: 1 of 2 runs; missing: evaluate/seed-1337 (not sealed): \
         run `run_all` to finish, or set `partial = \"mark\"` in the table"
    );
}

#[test]
fn a_partial_cell_is_marked_or_dropped_if_asked() {
    let mut cells = two_seeds();
    cells[3].run = Err("failed: out of memory".into());
    let mut section = table_7();
    section["partial"] = json!("mark");
    let grid = build_now(&spec(&section), &cells).unwrap();
    assert!(!grid.complete);
    let cell = &grid.rows[0].cells[1];
    assert_eq!((cell.n, cell.n_expected, cell.sd), (1, 2, None));
    assert_eq!(texts(&grid)[0][1], "6.91");
    let note = &grid.notes[cell.notes[0]];
    assert_eq!(note.mark.as_deref(), Some("a"));
    assert_eq!(note.text, "1 of 2 runs; missing: evaluate/seed-1337 (failed: out of memory)");
    assert_eq!(grid.rows[0].cells[3].notes, [0usize; 0], "the other column is whole");
    section["partial"] = json!("drop");
    let grid = build_now(&spec(&section), &cells).unwrap();
    assert_eq!(texts(&grid)[1], ["170.6K", "missing", "missing", "20.0±1.4"]);
    assert!(!grid.rows[1].cells[2].notes.is_empty());
}

#[test]
fn null_and_infinite_values_are_missing_with_their_reason() {
    let mut section = table_7();
    section["partial"] = json!("mark");
    section["columns"][1]["metric"] = json!("if $row.model == \"baseline_pythia\" then null else 1e308 * 10 end");
    let grid = build_now(&spec(&section), &two_seeds()).unwrap();
    assert_eq!(grid.rows[0].cells[1].missing[0].reason, "its value is null");
    assert_eq!(grid.rows[1].cells[1].missing[0].reason, "its value is not finite");
    assert_eq!(texts(&grid)[0][1], "missing");
}

#[test]
fn what_matches_nothing_or_twice_is_an_error() {
    let mut cells = two_seeds();
    cells.retain(|c| c.key.stage.as_str() != "hotflip");
    cells.push(expected("hotflip", Some("a"), Some(42), Ok(json!({"results": {}}))));
    cells.push(expected("hotflip", Some("b"), Some(42), Ok(json!({"results": {}}))));
    let problems = build_now(&spec(&table_7()), &cells).unwrap_err();
    assert!(
        problems.iter().any(|p| p.contains("hotflip/a/seed-42 and hotflip/b/seed-42 are two runs")),
        "{problems:#?}"
    );
    cells.truncate(3);
    let problems = build_now(&spec(&table_7()), &cells).unwrap_err();
    assert!(problems[0].contains("no expected cell of stage `hotflip`"), "{problems:#?}");
    let mut section = table_7();
    section["columns"][1]["metric"] = json!(".pile_test");
    let problems = build_now(&spec(&section), &two_seeds()).unwrap_err();
    assert!(problems[0].contains("evaluate/seed-42: the metric gives {"), "{problems:#?}");
    section["columns"][1]["metric"] = json!("1, 2");
    let problems = build_now(&spec(&section), &two_seeds()).unwrap_err();
    assert!(problems[0].contains("gives 2 values"), "{problems:#?}");
}

#[test]
fn one_seed_has_no_spread_and_says_so() {
    let grid = build_now(&spec(&table_7()), &study(&[(42, 6.91, 27.5, 0.69, 0.19)])).unwrap();
    assert_eq!(texts(&grid)[0][1], "6.91");
    let cell = &grid.rows[0].cells[1];
    assert_eq!(cell.degenerate.as_deref(), Some("1 of at least 2 values"));
    assert_eq!(grid.notes[cell.notes[0]].text, "one run: no standard deviation and no interval");
    assert_eq!(grid.rows[0].cells[0].notes, [0usize; 0], "the number of parameters has no seed");
}

#[test]
fn the_best_is_marked_and_ties_are_judged_as_printed() {
    let mut section = table_7();
    section["best"] = json!(true);
    let best = |cells: &[Expected], column: usize| -> Vec<bool> {
        build_now(&spec(&section), cells).unwrap().rows.iter().map(|r| r.cells[column].best).collect()
    };
    assert_eq!(best(&two_seeds(), 1), [true, false]);
    // 6.921 and 6.919 print alike: nothing is best.
    let tied = study(&[(42, 6.921, 6.919, 0.5, 0.4)]);
    assert_eq!(best(&tied, 1), [false, false]);
    assert_eq!(best(&tied, 3), [false, true]);
}

#[test]
fn intervals_and_counts() {
    let mut section = table_7();
    section["columns"][1]["show"] = json!("mean_ci");
    section["columns"][3]["show"] = json!("n");
    let cells = study(&[
        (1, 0.91, 1.0, 0.0, 0.0),
        (2, 0.93, 1.0, 0.0, 0.0),
        (3, 0.92, 1.0, 0.0, 0.0),
        (4, 0.95, 1.0, 0.0, 0.0),
        (5, 0.89, 1.0, 0.0, 0.0),
    ]);
    let grid = build_now(&spec(&section), &cells).unwrap();
    // Mean 0.92, half-width 0.0278.
    assert_eq!(texts(&grid)[0][1], "0.92[0.89,0.95]");
    assert_eq!(texts(&grid)[0][3], "5 of 5");
    let decimal = Alignment::Decimal { negative: false, whole: 1, fraction: 2, spread: (0, 0) };
    assert_eq!(grid.columns[1].alignment, decimal);
    assert_eq!(grid.columns[3].alignment, Alignment::Right);
    assert_eq!(
        grid.notes[1].text,
        "Mean ± sample standard deviation, and 95 % t intervals in brackets, over n = 5 seeds."
    );
    let Alignment::Decimal { negative, whole, fraction, spread } = grid.columns[2].alignment else { panic!() };
    assert_eq!((negative, whole, fraction, spread), (false, 1, 2, (1, 2)));
}

#[test]
fn a_percent_of_zero_is_missing() {
    let mut section = table_7();
    section["partial"] = json!("mark");
    section["columns"][2]["delta"]["as"] = json!("percent");
    let grid =
        build_now(&spec(&section), &study(&[(42, 0.0, 27.5, 0.69, 0.19), (1337, 10.0, 20.0, 0.69, 0.21)])).unwrap();
    let cell = &grid.rows[1].cells[2];
    assert_eq!((cell.mean, cell.n, cell.n_expected), (Some(100.0), 1, 2));
    assert_eq!(cell.missing, [MissingRun { cell: "seed-42".into(), reason: "percent of zero".into() }]);
}
