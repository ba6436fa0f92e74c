//! `report::stats` against SciPy, statsmodels and NumPy.
//!
//! The numbers come from `scripts/references/statistics.py`. With `SEEDBED_PEERS=<python>` other random input is
//! compared, live.

use std::path::Path;
use std::process::Command;

use seedbed::report::stats::{self, Resamples, Statistic};
use serde_json::Value;

use crate::support::repository;

/// Resamples of ours, as many as theirs.
const DRAWN: Resamples = Resamples { count: 20_000, seed: 20_240_501 };

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(number).collect()
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

fn table(value: &Value) -> Vec<Vec<u64>> {
    value.as_array().unwrap().iter().map(|row| row.as_array().unwrap().iter().map(count).collect()).collect()
}

/// Our answers to a case.
fn ours(what: &str, given: &[Value]) -> Vec<f64> {
    let x = |i: usize| numbers(&given[i]);
    let ends = |i: stats::Interval| vec![i.lower, i.upper];
    match what {
        "mean" => vec![stats::mean(&x(0)).unwrap()],
        "sd" => vec![stats::sample_sd(&x(0)).unwrap()],
        "median" => vec![stats::median(&x(0)).unwrap()],
        "iqm" => vec![stats::iqm(&x(0)).unwrap()],
        "quantile" => vec![stats::quantile(&x(0), number(&given[1])).unwrap()],
        "t_interval" => ends(stats::t_interval(&x(0), number(&given[1])).unwrap()),
        "paired_t" => {
            let t = stats::paired_t(&x(0), &x(1)).unwrap();
            vec![t.t, t.p]
        }
        "cohens_d_paired" => vec![stats::cohens_d_paired(&x(0), &x(1)).unwrap()],
        "cohens_d" => vec![stats::cohens_d(&x(0), &x(1)).unwrap()],
        "sign_flip" => {
            let test = stats::sign_flip(&x(0), 1 << 12, 1).unwrap();
            assert!(test.exact);
            vec![test.p]
        }
        "mcnemar" => {
            let test = stats::mcnemar(count(&given[0]), count(&given[1]));
            let (statistic, p) = test.chi2.unwrap();
            vec![test.exact_p, test.mid_p, statistic, p]
        }
        "mcnemar_corrected" => {
            let (statistic, p) = stats::mcnemar(count(&given[0]), count(&given[1])).chi2_corrected.unwrap();
            vec![statistic, p]
        }
        "kappa" => {
            let k = stats::kappa(&table(&given[0])).unwrap();
            vec![k.kappa, k.ase, k.ase_null, k.z, k.interval95.lower, k.interval95.upper]
        }
        "weighted_kappa" => vec![stats::weighted_kappa(&table(&given[0])).unwrap()],
        "cohens_h" => vec![stats::cohens_h(number(&given[0]), number(&given[1])).unwrap()],
        "power_two_proportions" => {
            let [p1, p2, n1, n2, alpha] = given else { panic!("{given:?}") };
            let power = stats::power_two_proportions(number(p1), number(p2), count(n1), count(n2), number(alpha));
            vec![power.unwrap()]
        }
        "size_two_proportions" => {
            let [p1, p2, power, alpha] = given else { panic!("{given:?}") };
            let size = stats::size_two_proportions(number(p1), number(p2), number(power), number(alpha));
            vec![size.unwrap() as f64]
        }
        "wilson" => ends(stats::wilson(count(&given[0]), count(&given[1]), number(&given[2])).unwrap()),
        "holm" => stats::holm(&x(0)).unwrap(),
        "fdr" => stats::fdr(&x(0)).unwrap(),
        "bonferroni" => stats::bonferroni(&x(0)).unwrap(),
        "bootstrap_mean" => ends(stats::bootstrap_mean(&x(0), number(&given[1]), DRAWN).unwrap().interval),
        "bootstrap_mean_difference" => {
            ends(stats::bootstrap_mean_difference(&x(0), &x(1), number(&given[2]), DRAWN).unwrap().interval)
        }
        "bootstrap_ratio" => {
            let pairs: Vec<(f64, f64)> = x(0).into_iter().zip(x(1)).collect();
            ends(stats::bootstrap_ratio(&pairs, number(&given[2]), DRAWN).unwrap().interval)
        }
        "bootstrap_stratified_iqm" | "bootstrap_stratified_mean" => {
            let statistic = if what.ends_with("iqm") { Statistic::Iqm } else { Statistic::Mean };
            let strata: Vec<Vec<f64>> = given[0].as_array().unwrap().iter().map(numbers).collect();
            ends(stats::bootstrap_stratified(&strata, statistic, number(&given[1]), DRAWN).unwrap().interval)
        }
        other => panic!("no such case: {other}"),
    }
}

/// Compares every case of a file; the functions that it asked.
fn compare(path: &Path) -> std::collections::BTreeMap<String, (usize, f64)> {
    let text = std::fs::read_to_string(path).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let mut asked = std::collections::BTreeMap::new();
    for case in file["cases"].as_array().unwrap() {
        let what = case["what"].as_str().unwrap();
        let (answer, within) = (numbers(&case["answer"]), number(&case["within"]));
        let got = ours(what, case["input"].as_array().unwrap());
        assert_eq!(got.len(), answer.len(), "{what}");
        for (got, expected) in got.iter().zip(&answer) {
            let scale = if case["absolute"] == true { 1.0 } else { expected.abs().max(1e-12) };
            let off = (got - expected).abs() / scale;
            assert!(off <= within, "{what}{}: {got} is not {expected}: off by {off:e}", case["input"]);
            let entry = asked.entry(what.to_owned()).or_insert((0, 0.0f64));
            *entry = (entry.0 + 1, entry.1.max(off / within));
        }
    }
    asked
}

/// Every function that is compared with a peer. A new one belongs here and into the script.
const FUNCTIONS: usize = 26;

#[test]
fn the_numbers_are_those_of_scipy_and_statsmodels() {
    let asked = compare(&repository().join("tests/fixtures/statistics.json"));
    assert_eq!(asked.len(), FUNCTIONS, "{asked:?}");
}

#[test]
fn other_numbers_are_those_of_scipy_and_statsmodels_live() {
    let Ok(python) = std::env::var("SEEDBED_PEERS") else {
        eprintln!("skipped: SEEDBED_PEERS names no python with scipy and statsmodels");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("cases.json");
    for seed in ["1", "2", "3"] {
        let script = repository().join("scripts/references/statistics.py");
        let run = Command::new(&python).arg(script).arg(&out).arg(seed).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let asked = compare(&out);
        assert_eq!(asked.len(), FUNCTIONS, "{asked:?}");
        for (what, (numbers, worst)) in asked {
            println!("seed {seed} {what}: {numbers} numbers, worst {worst:.3} of what is allowed");
        }
    }
}
