//! What all seeds found together: `multi_seed_results.json`.
//!
//! Sample standard deviation (divisor n - 1), 95 % t interval, tests paired by seed. With three to five
//! seeds no test says much: n stands beside every number.

use serde_json::{Map, Value, json};

use super::Params;
use super::findings::{at, criterion, number};
use crate::report::stats;

/// Version of `multi_seed_results.json`.
const MULTI_VERSION: u32 = 1;

/// Numbers of one model in `final_results.json`: metric name and the path after the model's place.
const OF_MODEL: [(&str, &[&str], &[&str]); 6] = [
    ("perplexity", &["evaluation_summary", "pile_test"], &["perplexity"]),
    ("hotflip_success_rate", &["attack_summary", "hotflip", "results"], &["success_rate"]),
    ("hotflip_random_success_rate", &["attack_summary", "hotflip", "results"], &["random_control", "success_rate"]),
    ("hotflip_delta_nats", &["attack_summary", "hotflip", "results"], &["scopes", "untouched_targets", "delta_nats"]),
    ("uat_nll_increase_percent", &["attack_summary", "uat", "results"], &["nll_increase_percent"]),
    ("uat_success_rate", &["attack_summary", "uat", "results"], &["success_rate"]),
];

/// Metrics whose difference between the models is tested over seeds.
const TESTED: [&str; 3] = ["perplexity", "hotflip_success_rate", "uat_nll_increase_percent"];

/// Results over the complete seeds, of `expected` ones.
pub(super) fn results(complete: &[(Option<u32>, Value)], expected: usize, params: &Params) -> Value {
    let mut metrics = Map::new();
    for model in params.models.keys() {
        for (metric, place, rest) in OF_MODEL {
            let values = values(complete, &[place, &[model.as_str()], rest].concat());
            metrics.insert(format!("{model}_{metric}"), summarise(&values, expected));
        }
    }
    for finding in ["perplexity_gap_percent", "hotflip_reduction_percent"] {
        let values = values(complete, &["key_findings", finding]);
        metrics.insert(finding.to_owned(), summarise(&values, expected));
    }
    let mut tests = Map::new();
    for (metric, place, rest) in OF_MODEL.iter().filter(|m| TESTED.contains(&m.0)) {
        let of = |model: &str| -> Vec<Option<f64>> {
            let path = [place, &[model][..], rest].concat();
            complete.iter().map(|(_, found)| number(found, &path)).collect()
        };
        let pairs: (Vec<f64>, Vec<f64>) =
            of(&params.baseline).into_iter().zip(of(&params.treated)).filter_map(|(b, t)| Some((b?, t?))).unzip();
        tests.insert((*metric).to_owned(), test(&pairs.0, &pairs.1));
    }
    let mean = |key: &str| metrics.get(key).and_then(|m| number(m, &["mean"]));
    let criteria = json!([
        over_seeds(
            criterion("perplexity gap, %", mean("perplexity_gap_percent"), "<", params.limits.max_gap_percent),
            complete,
            0
        ),
        over_seeds(
            criterion(
                "reduction of HotFlip success, %",
                mean("hotflip_reduction_percent"),
                ">",
                params.limits.min_reduction_percent
            ),
            complete,
            1
        ),
    ]);
    let mut results = json!({
        "version": MULTI_VERSION,
        "num_seeds": complete.len(),
        "num_seeds_expected": expected,
        "seeds": complete.iter().filter_map(|(seed, _)| *seed).collect::<Vec<_>>(),
        "statistical_tests": tests,
        "criteria": criteria,
        "per_seed": per_seed(complete),
    });
    if let Some(map) = results.as_object_mut() {
        map.extend(metrics);
    }
    results
}

fn values(complete: &[(Option<u32>, Value)], path: &[&str]) -> Vec<f64> {
    complete.iter().filter_map(|(_, found)| number(found, path)).collect()
}

/// Mean, sd, n and interval; null where there is none, with the reason.
fn summarise(values: &[f64], expected: usize) -> Value {
    let (mean, sd) = (stats::mean(values), stats::sample_sd(values));
    let interval = stats::t_interval(values, 0.95);
    let mut summary = json!({
        "mean": mean.ok(),
        "std": sd.ok(),
        "n": values.len(),
        "n_expected": expected,
        "ci_lower": interval.map(|i| i.lower).ok(),
        "ci_upper": interval.map(|i| i.upper).ok(),
    });
    if let Err(reason) = mean.and(sd) {
        summary["degenerate"] = json!(reason.to_string());
    }
    summary
}

/// Paired t over seeds, baseline less treated, corrected for the tests of this file.
fn test(baseline: &[f64], treated: &[f64]) -> Value {
    let m = TESTED.len();
    match stats::paired_t(baseline, treated) {
        Ok(t) => json!({
            "t_stat": t.t,
            "p_value": t.p,
            "cohens_d": stats::cohens_d_paired(baseline, treated).ok(),
            "n": baseline.len(),
            "p_value_bonferroni": (t.p * m as f64).min(1.0),
            "bonferroni_m": m,
        }),
        Err(reason) => json!({
            "t_stat": null,
            "p_value": null,
            "cohens_d": null,
            "n": baseline.len(),
            "p_value_bonferroni": null,
            "bonferroni_m": m,
            "degenerate": reason.to_string(),
        }),
    }
}

/// A criterion of the mean, with the number of seeds that meet it on their own.
fn over_seeds(mut criterion: Value, complete: &[(Option<u32>, Value)], index: usize) -> Value {
    let met = complete
        .iter()
        .filter(|(_, found)| at(found, &["criteria"]).get(index).is_some_and(|c| c["status"] == "met"))
        .count();
    criterion["seeds_met"] = json!(met);
    criterion
}

/// The key numbers of each seed, for an appendix.
fn per_seed(complete: &[(Option<u32>, Value)]) -> Value {
    complete
        .iter()
        .map(|(seed, found)| {
            json!({
                "seed": seed,
                "perplexity_gap_percent": at(found, &["key_findings", "perplexity_gap_percent"]),
                "hotflip_reduction_percent": at(found, &["key_findings", "hotflip_reduction_percent"]),
                "most_robust_hotflip": at(found, &["key_findings", "most_robust_hotflip"]),
            })
        })
        .collect()
}
