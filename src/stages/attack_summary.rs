//! Numbers of an attack as its result file holds them: both loss scopes, all three success metrics, and the paired
//! tests between models. Shared by `uat` and `hotflip`.
//!
//! A statistic without an answer is null, with the reason beside it; it is never NaN and never 0.

use serde_json::{Map, Value, json};

use crate::compute::attack::success::{Metric, Thresholds};
use crate::compute::attack::{Pair, Scope};
use crate::report::stats::{self, Answer, Resamples};

/// What stands at the top of a result.
#[derive(Debug, Clone, Copy)]
pub struct Headline {
    /// Targets of the losses.
    pub scope: Scope,
    /// Metric of the success rate.
    pub metric: Metric,
    /// The bars.
    pub thresholds: Thresholds,
}

/// Losses of the same texts in both scopes.
#[derive(Debug, Clone, Default)]
pub struct Scoped {
    /// Over all targets.
    pub all: Vec<Pair>,
    /// Over untouched targets.
    pub untouched: Vec<Pair>,
}

impl Scoped {
    /// The losses in a scope.
    pub fn pairs(&self, scope: Scope) -> &[Pair] {
        match scope {
            Scope::All => &self.all,
            Scope::UntouchedTargets => &self.untouched,
        }
    }

    /// Both scopes, each with means, degradation and success rates.
    pub fn summary(&self, thresholds: &Thresholds) -> Value {
        let scopes = Scope::ALL.map(|s| (s.word().to_owned(), scope_summary(self.pairs(s), thresholds)));
        Value::Object(scopes.into_iter().collect())
    }
}

/// Relative rises of NLL; a clean loss of 0 has none.
pub fn degradations(pairs: &[Pair]) -> Vec<f64> {
    pairs.iter().filter(|p| p.clean > 0.0).map(|p| (p.attacked - p.clean) / p.clean).collect()
}

/// Rises in nats.
fn deltas(pairs: &[Pair]) -> Vec<f64> {
    pairs.iter().map(|p| p.attacked - p.clean).collect()
}

/// A statistic, or null.
pub fn or_null(answer: Answer<f64>) -> Value {
    answer.map_or(Value::Null, |v| json!(v))
}

/// Mean of one side of the pairs, or null.
pub fn mean_of(pairs: &[Pair], side: fn(&Pair) -> f64) -> Value {
    or_null(stats::mean(&pairs.iter().map(side).collect::<Vec<_>>()))
}

fn scope_summary(pairs: &[Pair], thresholds: &Thresholds) -> Value {
    let rates: Map<String, Value> =
        Metric::ALL.iter().map(|&m| (m.word().to_owned(), json!(thresholds.rate(m, pairs)))).collect();
    let relative = degradations(pairs);
    json!({
        "clean_loss": mean_of(pairs, |p| p.clean),
        "attacked_loss": mean_of(pairs, |p| p.attacked),
        "delta_nats": or_null(stats::mean(&deltas(pairs))),
        "degradation": or_null(stats::mean(&relative)),
        "degradation_std": or_null(stats::sample_sd(&relative)),
        "success_rates": rates,
        "num_samples": pairs.len(),
    })
}

/// `baseline_vs_monotonic` of `baseline_pythia` and `monotonic_pythia`: what both names end in is left out.
pub fn comparison_name(a: &str, b: &str) -> String {
    let ending = a.rsplit_once('_').map(|(_, e)| e).filter(|e| b.rsplit_once('_').is_some_and(|(_, f)| f == *e));
    let short = |name: &str| match ending {
        Some(e) => name[..name.len() - e.len() - 1].to_owned(),
        None => name.to_owned(),
    };
    format!("{}_vs_{}", short(a), short(b))
}

/// Tests of two models on the same texts, a less b: paired t of degradation and of nats, McNemar of success.
pub fn paired_tests(a: &[Pair], b: &[Pair], headline: &Headline, seed: u32) -> Value {
    let tests = 3.0;
    let corrected = |p: f64| json!((p * tests).min(1.0));
    let paired = |left: &[f64], right: &[f64]| {
        let mut found = match stats::paired_t(left, right) {
            Ok(t) => json!({
                "t_stat": t.t,
                "df": t.df,
                "mean_difference": t.mean_difference,
                "p_value": t.p,
                "p_value_bonferroni": corrected(t.p),
                "cohens_d": or_null(stats::cohens_d_paired(left, right)),
            }),
            Err(reason) => json!({
                "t_stat": null,
                "df": null,
                "mean_difference": or_null(mean_difference(left, right)),
                "p_value": null,
                "p_value_bonferroni": null,
                "cohens_d": null,
                "degenerate": reason.to_string(),
            }),
        };
        let resamples = Resamples { count: 1000, seed: u64::from(seed) };
        let bootstrap = stats::bootstrap_mean_difference(left, right, 0.95, resamples).ok();
        found["bootstrap_ci_lower"] = json!(bootstrap.map(|b| b.interval.lower));
        found["bootstrap_ci_upper"] = json!(bootstrap.map(|b| b.interval.upper));
        found["n"] = json!(left.len());
        found["bonferroni_m"] = json!(tests as i64);
        found
    };
    let mut result = paired(&degradations(a), &degradations(b));
    result["delta_nats"] = paired(&deltas(a), &deltas(b));
    let success = |p: &Pair| headline.thresholds.success(headline.metric, *p);
    let only = |x: &[Pair], y: &[Pair]| x.iter().zip(y).filter(|(x, y)| success(x) && !success(y)).count() as u64;
    let (only_a, only_b) = (only(a, b), only(b, a));
    let mcnemar = stats::mcnemar(only_a, only_b);
    result["mcnemar"] = json!({
        "metric": headline.metric.word(),
        "only_first": only_a,
        "only_second": only_b,
        "exact_p": mcnemar.exact_p,
        "exact_p_bonferroni": corrected(mcnemar.exact_p),
        "chi2_corrected": mcnemar.chi2_corrected.map(|c| c.0),
        "chi2_corrected_p": mcnemar.chi2_corrected.map(|c| c.1),
    });
    if only_a + only_b == 0 {
        result["mcnemar"]["degenerate"] = json!("degenerate: both models succeed on the same texts");
    }
    result["loss_scope"] = json!(headline.scope.word());
    result
}

fn mean_difference(left: &[f64], right: &[f64]) -> Answer<f64> {
    if left.len() != right.len() {
        return Err(stats::Degenerate::Unmatched { left: left.len(), right: right.len() });
    }
    stats::mean(&left.iter().zip(right).map(|(a, b)| a - b).collect::<Vec<_>>())
}

/// A CSV field that no spreadsheet runs: quoted where needed, and a leading formula sign is disarmed.
pub fn csv_field(text: &str) -> String {
    let disarmed =
        if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() };
    if disarmed.contains([',', '"', '\n', '\r']) { format!("\"{}\"", disarmed.replace('"', "\"\"")) } else { disarmed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(values: &[(f64, f64)]) -> Vec<Pair> {
        values.iter().map(|&(clean, attacked)| Pair { clean, attacked }).collect()
    }

    fn headline() -> Headline {
        let thresholds = Thresholds { relative: 0.15, nats: 0.286 };
        Headline { scope: Scope::All, metric: Metric::PplRel, thresholds }
    }

    #[test]
    fn a_summary_worked_out_by_hand() {
        let found = scope_summary(&pairs(&[(2.0, 3.0), (4.0, 4.2)]), &headline().thresholds);
        assert_eq!(found["clean_loss"], 3.0);
        assert_eq!(found["attacked_loss"], 3.6);
        // 0.5 and 0.05: mean 0.275, sample standard deviation 0.45 / sqrt 2.
        assert!((found["degradation"].as_f64().unwrap() - 0.275).abs() < 1e-12);
        assert!((found["degradation_std"].as_f64().unwrap() - 0.45 / 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(found["success_rates"], json!({"nll_rel": 0.5, "ppl_rel": 1.0, "delta_nats": 0.5}));
    }

    #[test]
    fn equal_models_are_degenerate_and_not_nan() {
        let same = pairs(&[(2.0, 3.0), (4.0, 4.2), (1.0, 1.5)]);
        let found = paired_tests(&same, &same, &headline(), 42);
        assert_eq!(found["t_stat"], Value::Null);
        assert_eq!(found["degenerate"], "degenerate: no variance");
        assert_eq!(found["mean_difference"], 0.0);
        assert_eq!(found["mcnemar"]["exact_p"], 1.0);
        assert!(found["mcnemar"]["degenerate"].is_string());
        assert_eq!(found["n"], 3);
    }

    #[test]
    fn paired_t_by_hand() {
        // Differences 0.4, 0.05, 0.45: mean 0.3, sd 0.2179449, t = 0.3 / (0.2179449 / sqrt 3).
        let a = pairs(&[(2.0, 3.0), (2.0, 2.5), (2.0, 3.5)]);
        let b = pairs(&[(2.0, 2.2), (2.0, 2.4), (2.0, 2.6)]);
        let found = paired_tests(&a, &b, &headline(), 42);
        assert!((found["t_stat"].as_f64().unwrap() - 2.3841582).abs() < 1e-6, "{found}");
    }

    #[test]
    fn comparison_names() {
        assert_eq!(comparison_name("baseline_pythia", "monotonic_pythia"), "baseline_vs_monotonic");
        assert_eq!(comparison_name("a", "b_c"), "a_vs_b_c");
    }

    #[test]
    fn csv_fields_are_disarmed() {
        assert_eq!(csv_field("plain"), "plain");
        assert_eq!(csv_field("=cmd()"), "'=cmd()");
        assert_eq!(csv_field("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
    }
}
