//! Whatever runs say, a table prints numbers, or that there is none.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => -100.0f64..100.0,
        2 => select(vec![0.0, -0.0, 1.0, 0.3]),
        2 => select(vec![f64::MAX, f64::MIN, 5e-324, 1e300, -1e300, 1e-300, 1e12, -999_999_999_999.5]),
        2 => select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
    ]
}

/// What a filter answers where JSON has no such number.
fn answer(x: f64) -> Value {
    match serde_json::Number::from_f64(x) {
        Some(number) => Value::Number(number),
        None if x.is_nan() => json!("NaN"),
        None => json!("Infinity"),
    }
}

/// Every way to show and to compare.
fn section(rounding: (&str, u8)) -> Value {
    let (word, digits) = rounding;
    let metric = |show: &str| json!({"key": show, "stage": "evaluate", "metric": ".x", "show": show, "better": "lower", word: digits});
    let mut columns: Vec<Value> = ["mean", "mean_sd", "mean_ci", "median", "iqm", "n", "values"].map(metric).to_vec();
    columns.extend([
        json!({"key": "delta", "delta": {"of": "mean", "from": "a"}, "show": "mean_ci", word: digits}),
        json!({"key": "percent", "delta": {"of": "mean", "from": "a", "as": "percent"}, "show": "mean_sd", word: digits}),
        json!({"key": "other", "delta": {"of": "mean", "from_column": "mean_sd"}, "show": "values", word: digits}),
        json!({"key": "ratio", "ratio": {"of": "mean", "to": "a"}, "show": "mean_sd", "scale": 1e10, word: digits}),
        json!({"key": "bounds", "ratio": {"of": "mean", "to": "a"}, "show": "mean_ci", word: digits}),
        json!({"key": "drawn", "ratio": {"of": "mean", "to": "a", "error": "bootstrap"}, "show": "mean_ci"}),
        json!({"key": "short", "stage": "evaluate", "metric": ".x", "notation": "suffix"}),
    ]);
    json!({
        "key": "broken", "partial": "mark", "best": true, "second": true, "appendix": true,
        "interval": "bootstrap", "allow": ["small_bootstrap"], "resamples": 100,
        "rows": [{"key": "a", "arm": "a"}, {"key": "b", "arm": "b"}],
        "columns": columns,
        "test": {"on": ["mean", "delta"], "against": "a", "method": "paired_t", "family": "holm"},
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn no_table_prints_what_is_no_number(
        values in proptest::collection::vec((number(), number()), 2..6),
        rounding in select(vec![("digits", 2), ("digits", 0), ("digits", 12), ("significant", 1), ("significant", 4)]),
    ) {
        let spec = spec(&section(rounding));
        let mut cells = Vec::new();
        let mut said = Vec::new();
        for (seed, (a, b)) in (1u32..).zip(values) {
            for (arm, x) in [("a", a), ("b", b)] {
                cells.push(expected("evaluate", Some(arm), Some(seed), Ok(json!({}))));
                said.push(answer(x));
            }
        }
        let answers: Vec<_> = requests(&spec, &cells).iter().map(|r| Ok(vec![said[r.cell].clone()])).collect();
        let grids = grids(&spec, &cells, &answers).unwrap();
        prop_assert_eq!(grids.len(), 2);
        for grid in &grids {
            for (row, texts) in grid.rows.iter().zip(texts(grid)) {
                for (cell, text) in row.cells.iter().zip(texts) {
                    prop_assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
                    prop_assert!(!text.contains("-0.00") || text.contains(|c: char| ('1'..='9').contains(&c)), "{text}");
                    // A cell without a value says why, or how many runs it lacks.
                    prop_assert!(
                        cell.value.is_some() || cell.printed != Printed::Missing || !cell.notes.is_empty(),
                        "{cell:?}"
                    );
                    prop_assert!(!(cell.best && cell.second));
                    for x in [cell.value, cell.spread, cell.mean, cell.sd, cell.median, cell.iqm].into_iter().flatten() {
                        prop_assert!(x.is_finite());
                    }
                    if let Some(interval) = cell.interval {
                        prop_assert!(interval.lower <= interval.upper && interval.upper.is_finite());
                    }
                }
            }
        }
    }
}
