//! Second best, tests of significance, footnotes, groups and unequal numbers of runs.

use super::*;
use crate::report::stats;

/// Rows a, b, c, ... of one metric, each with its values by seed from 1.
fn rows_of(values: &[&[f64]]) -> (Value, Vec<Expected>) {
    let name = |i: usize| char::from(b'a' + i as u8).to_string();
    let rows: Vec<Value> = (0..values.len()).map(|i| json!({"key": name(i), "arm": name(i)})).collect();
    let section = json!({
        "key": "marks",
        "rows": rows,
        "columns": [{"key": "x", "stage": "evaluate", "metric": ".x", "show": "mean_sd", "better": "lower"}],
    });
    let mut cells = Vec::new();
    for (i, values) in values.iter().enumerate() {
        for (seed, x) in (1u32..).zip(*values) {
            cells.push(expected("evaluate", Some(&name(i)), Some(seed), Ok(json!({"x": x}))));
        }
    }
    (section, cells)
}

#[test]
fn best_and_second_are_judged_as_printed() {
    let marked = |values: &[f64]| -> String {
        let rows: Vec<&[f64]> = values.iter().map(std::slice::from_ref).collect();
        let (mut section, cells) = rows_of(&rows);
        section["best"] = json!(true);
        section["second"] = json!(true);
        let grid = build_now(&spec(&section), &cells).unwrap();
        let sign = |c: &GridCell| match (c.best, c.second) {
            (true, false) => 'B',
            (false, true) => 's',
            (false, false) => '.',
            (true, true) => '?',
        };
        grid.rows.iter().map(|r| sign(&r.cells[0])).collect()
    };
    assert_eq!(marked(&[3.0, 1.0, 2.0]), ".Bs");
    // 1.004 and 0.996 print 1.00: both are best, and 1.011 is second with 1.009.
    assert_eq!(marked(&[1.004, 1.011, 0.996, 1.009, 5.0]), "BsBs.");
    assert_eq!(marked(&[1.001, 1.002]), "..", "what prints alike everywhere has no best");
    assert_eq!(marked(&[2.0, 1.0]), "sB");
}

fn with_test(values: &[&[f64]], test: Value) -> Result<Grid, Vec<String>> {
    let (mut section, cells) = rows_of(values);
    section["test"] = json!({"on": ["x"], "against": "a", "method": "paired_t", "family": "holm"});
    section["test"].as_object_mut().unwrap().extend(test.as_object().unwrap().clone());
    build_now(&spec(&section), &cells)
}

const A: [f64; 5] = [1.0, 1.1, 0.9, 1.05, 0.95];
const FAR: [f64; 5] = [2.0, 2.2, 1.85, 2.1, 1.9];
const NEAR: [f64; 5] = [1.1, 1.0, 0.95, 1.0, 1.05];

#[test]
fn a_named_test_marks_what_passes_in_its_family() {
    let grid = with_test(&[&A, &FAR, &NEAR, &A], json!({})).unwrap();
    let tests: Vec<Option<&CellTest>> = grid.rows.iter().map(|r| r.cells[0].test.as_ref()).collect();
    assert!(tests[0].is_none(), "the row that others are compared with");
    let far = tests[1].unwrap();
    let p = stats::paired_t(&FAR, &A).unwrap().p;
    assert_eq!((far.method.as_str(), far.against.as_str(), far.n), ("paired_t", "a", 5));
    assert_eq!(far.p, Some(p));
    // Three tests; the one without an answer counts as 1 in the family.
    assert!((far.adjusted.unwrap() - 3.0 * p).abs() < 1e-15);
    assert_eq!(far.mark, "*");
    let near = tests[2].unwrap();
    assert!(near.p.unwrap() > 0.05 && near.mark.is_empty());
    let same = tests[3].unwrap();
    assert_eq!((same.p, same.degenerate.as_deref()), (None, Some("degenerate: no variance")));
    let note = grid.notes.iter().find(|n| n.mark.as_deref() == Some("*")).unwrap();
    assert_eq!(note.text, "Significant: paired t-test against a on common seeds, Holm over 3 tests, alpha 0.05.");
    assert!(grid.signature.contains("|test:paired_t-holm-0.05|"), "{}", grid.signature);
}

#[test]
fn nothing_significant_is_said_so() {
    let grid = with_test(&[&A, &NEAR], json!({"family": "none"})).unwrap();
    let said =
        "No difference is significant: paired t-test against a on common seeds, 1 test, not corrected, alpha 0.05.";
    assert!(grid.notes.iter().any(|n| n.text == said && n.mark.is_none()), "{:#?}", grid.notes);
}

#[test]
fn differences_are_tested_where_they_stand() {
    let (mut section, cells) = rows_of(&[&A, &FAR, &NEAR]);
    section["columns"].as_array_mut().unwrap().push(json!({"key": "d", "delta": {"of": "x", "from": "a"}}));
    section["test"] = json!({"on": ["d"], "method": "paired_t", "family": "benjamini_hochberg"});
    let grid = build_now(&spec(&section), &cells).unwrap();
    let test = grid.rows[1].cells[1].test.as_ref().unwrap();
    assert_eq!(test.p, Some(stats::paired_t(&FAR, &A).unwrap().p));
    assert_eq!((test.against.as_str(), test.mark.as_str()), ("a", "*"));
    assert!(grid.rows[0].cells[1].test.is_none() && grid.rows[1].cells[0].test.is_none());
}

#[test]
fn a_test_that_cannot_pass_is_refused() {
    let flips = json!({"method": "sign_flip"});
    let problems = with_test(&[&A, &FAR, &NEAR], flips.clone()).unwrap_err();
    assert_eq!(
        problems,
        [
            "table `marks`: the sign-flip test of 5 pairs cannot go below p = 0.0625, and alpha 0.05 with `holm` over 2 tests \
          needs 0.025: use `method = \"paired_t\"`, more seeds or fewer cells"
        ]
    );
    // Seven seeds reach 2/128, which passes alone and not in a family of four.
    let seven: Vec<f64> = (0..7).map(|i| 1.0 + f64::from(i) / 10.0).collect();
    let more: Vec<f64> = seven.iter().map(|x| x * x + 1.0).collect();
    let grid = with_test(&[&seven, &more], flips.clone()).unwrap();
    assert_eq!(grid.rows[1].cells[0].test.as_ref().unwrap().p, Some(2.0 / 128.0));
    assert_eq!(with_test(&[&seven, &more, &more, &more, &more], flips.clone()).unwrap_err().len(), 1);
    assert!(with_test(&[&[1.0], &[2.0]], json!({})).unwrap_err()[0].contains("of 1 pair has no spread"));
}

#[test]
fn too_few_resamples_for_a_family_are_refused() {
    let twenty: Vec<f64> = (0..20).map(|i| f64::from(i * i % 11)).collect();
    let other: Vec<f64> = twenty.iter().map(|x| x + 1.0 + x * x / 100.0).collect();
    let (mut section, cells) = rows_of(&[&twenty, &other, &other]);
    section["test"] = json!({"on": ["x"], "against": "a", "method": "sign_flip", "family": "holm"});
    section["resamples"] = json!(799);
    let problems = build_now(&spec(&section), &cells).unwrap_err();
    assert_eq!(
        problems,
        [
            "table `marks`: the sign-flip test draws 799 resamples, fewer than 20 x 2 tests / alpha 0.05: set `resamples = 800`"
        ]
    );
    section["resamples"] = json!(800);
    let grid = build_now(&spec(&section), &cells).unwrap();
    assert_eq!(grid.rows[1].cells[0].test.as_ref().unwrap().p, Some(1.0 / 801.0));
    assert!(grid.signature.contains("|resamples:800|rng:0|"), "{}", grid.signature);
}

#[test]
fn fewer_runs_in_a_row_are_marked_though_none_is_missing() {
    let mut section = table_7();
    section["columns"] = json!([
        {"key": "many", "stage": "evaluate", "metric": ".x"},
        {"key": "few", "stage": "hotflip", "metric": ".x"},
        {"key": "once", "stage": "setup", "metric": ".x"},
        {"key": "count", "stage": "hotflip", "metric": ".x", "show": "n"},
    ]);
    section["notes"] = json!([]);
    let cell = |stage: &str, seed: Option<u32>| expected(stage, None, seed, Ok(json!({"x": 1.0})));
    let mut cells: Vec<Expected> = (1..=5).map(|s| cell("evaluate", Some(s))).collect();
    cells.extend((1..=3).map(|s| cell("hotflip", Some(s))));
    cells.push(cell("setup", None));
    let grid = build_now(&spec(&section), &cells).unwrap();
    let said = |i: usize| grid.rows[0].cells[i].notes.iter().map(|n| grid.notes[*n].text.as_str()).collect::<Vec<_>>();
    assert_eq!(said(1), ["n = 3, where other cells of the row have n = 5"]);
    assert!(said(0).is_empty() && said(2).is_empty() && said(3).is_empty());
    assert!(grid.complete);
}

#[test]
fn footnotes_groups_and_spans() {
    let mut section = table_7();
    section["footnotes"] = json!([
        {"row": "monotonic", "column": "ppl", "text": "of the cell"},
        {"column": "attack", "text": "of the header"},
        {"row": "baseline", "text": "of the row"},
        {"row": "baseline", "text": "and more of it"},
    ]);
    section["rows"][0]["group"] = json!("Pythia");
    section["rows"][1]["group"] = json!("Pythia");
    section["columns"][1]["span"] = json!("Perplexity");
    section["columns"][2]["span"] = json!("Perplexity");
    section["env"] = json!("table*");
    section["multirow"] = json!(true);
    section["threeparttable"] = json!(true);
    let grid = build_now(&spec(&section), &two_seeds()).unwrap();
    let note = |index: usize| (grid.notes[index].mark.clone().unwrap(), grid.notes[index].text.as_str());
    // Letters in the order in which a reader meets them: headers, then rows.
    assert_eq!(note(grid.columns[3].note.unwrap()), ("a".into(), "of the header"));
    assert_eq!(note(grid.rows[0].note.unwrap()), ("b".into(), "of the row and more of it"));
    assert_eq!(note(grid.rows[1].cells[1].notes[0]), ("c".into(), "of the cell"));
    assert_eq!(grid.notes.iter().filter(|n| n.mark.is_some()).count(), 3, "what is used, and nothing else");
    assert_eq!(grid.rows[1].group.as_deref(), Some("Pythia"));
    assert_eq!(grid.columns[2].span.as_deref(), Some("Perplexity"));
    assert_eq!(grid.columns[3].span, None);
    assert_eq!(grid.layout, Layout { env: Env::Wide, plain: false, multirow: true, threeparttable: true });
}

#[test]
fn a_test_that_lost_its_runs_says_that_it_could_not_pass() {
    let six = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02];
    let far = six.map(|x| 2.0 * x * x + 5.0);
    let (mut section, mut cells) = rows_of(&[&six, &far, &far]);
    section["test"] = json!({"on": ["x"], "against": "a", "method": "sign_flip", "family": "none"});
    section["partial"] = json!("mark");
    // Six pairs reach 2/64. The second row lost one run, and five cannot go below 0.0625.
    cells[6].run = Err("not sealed".into());
    let grid = build_now(&spec(&section), &cells).unwrap();
    let test = |row: usize| grid.rows[row].cells[0].test.as_ref().unwrap();
    assert_eq!((test(1).n, test(1).p, test(1).mark.as_str()), (5, Some(0.0625), ""));
    assert_eq!(test(1).degenerate.as_deref(), Some("5 pairs cannot go below p = 0.0625, corrected 0.0625"));
    assert_eq!((test(2).n, test(2).degenerate.as_deref(), test(2).mark.as_str()), (6, None, "*"));
    let said = |grid: &Grid| grid.notes.iter().map(|n| n.text.clone()).find(|t| t.contains("sign-flip")).unwrap();
    assert_eq!(
        said(&grid),
        "Significant: sign-flip test against a on common seeds, 2 tests, not corrected, alpha 0.05; with the runs that \
         there are, 1 of them could not pass."
    );
    // The row that all are compared with lost one: nothing can be said.
    cells[0].run = Err("not sealed".into());
    let grid = build_now(&spec(&section), &cells).unwrap();
    assert_eq!(
        said(&grid),
        "No difference can be significant: sign-flip test against a on common seeds, 2 tests, not corrected, alpha 0.05; \
         with the runs that there are, 2 of them could not pass."
    );
}
