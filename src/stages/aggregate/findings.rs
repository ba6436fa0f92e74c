//! What one seed found: the sections of `final_results.json`.
//!
//! A number that is not there is null with its reason; a division by zero is null with its reason. Status
//! words are computed from numbers here, nowhere typed.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Params;
use super::inputs::{Group, Input};
use crate::record::CellKey;

/// Version of `final_results.json`.
pub(super) const FINAL_VERSION: u32 = 1;

/// Where outcomes are met and warnings begin.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct CriteriaLimits {
    pub(crate) max_gap_percent: f64,
    pub(crate) min_reduction_percent: f64,
    pub(crate) usual_perplexity_min: f64,
    pub(crate) usual_perplexity_max: f64,
    pub(crate) weak_attack_percent: f64,
    pub(crate) pattern_max_gap_percent: f64,
    pub(crate) pattern_min_reduction_percent: f64,
}

/// A value at a path of keys.
pub(super) fn at<'v>(value: &'v Value, path: &[&str]) -> &'v Value {
    path.iter().fold(value, |v, key| v.get(key).unwrap_or(&Value::Null))
}

/// A number at a path of keys.
pub(super) fn number(value: &Value, path: &[&str]) -> Option<f64> {
    at(value, path).as_f64()
}

/// Model names without the ending that all share: baseline, monotonic of baseline_pythia, monotonic_pythia.
pub(super) fn short(name: &str, params: &Params) -> String {
    let ending = name.rfind('_').map(|i| &name[i..]);
    match ending {
        Some(ending)
            if params.models.len() > 1
                && params.models.keys().all(|m| m.len() > ending.len() && m.ends_with(ending)) =>
        {
            name[..name.len() - ending.len()].to_owned()
        }
        _ => name.to_owned(),
    }
}

/// The final results of a complete seed.
pub(super) fn of_seed(group: &Group<'_>, seed: Option<u32>, params: &Params, key: &CellKey) -> Value {
    let null = Value::Null;
    let of_kind = |kind: &str| group.of_kind(kind, seed).unwrap_or(&null);
    let (evaluation, uat, hotflip) = (of_kind("evaluate"), of_kind("uat"), of_kind("hotflip"));
    let training: Map<String, Value> = params
        .models
        .iter()
        .map(|(model, stage)| (short(model, params), training(group.of_stage(stage, seed).unwrap_or(&null))))
        .collect();
    let model_name = [evaluation, hotflip, uat]
        .iter()
        .map(|tree| match at(tree, &["metadata", "model_name"]) {
            Value::Null => at(tree, &["model_name"]),
            name => name,
        })
        .find(|name| !name.is_null())
        .unwrap_or(&null);
    let findings = key_findings(evaluation, hotflip, params);
    let warnings = [warnings(evaluation, uat, hotflip, &findings, params), of_cells(group, seed)].concat();
    let mut sources: Vec<Value> = group
        .cells(seed)
        .filter_map(|i| {
            let found = i.run.as_ref().ok()?;
            Some(json!({"cell": i.key.local_name(), "fingerprint": found.fingerprint, "content": found.content}))
        })
        .collect();
    sources.sort_by_key(|s| s["cell"].as_str().unwrap_or_default().to_owned());
    json!({
        "version": FINAL_VERSION,
        "experiment_info": {
            "study": key.study,
            "profile": key.profile,
            "arm": group.arm,
            "seed": seed,
            "model_name": model_name,
            // The time is in the seal: this file is the same whenever it is made.
            "timestamp": null,
        },
        "training_summary": training,
        "evaluation_summary": evaluation_summary(evaluation),
        "attack_summary": {"uat": attack(uat), "hotflip": attack(hotflip)},
        "criteria": criteria(&findings, &params.limits),
        "warnings": warnings,
        "key_findings": findings,
        "sources": sources,
    })
}

/// What of a training history does not depend on the machine.
fn training(history: &Value) -> Value {
    let last = |key: &str| at(history, &[key]).as_array().and_then(|a| a.last()).cloned().unwrap_or(Value::Null);
    if history.is_null() {
        return Value::Null;
    }
    json!({
        "best_val_perplexity": at(history, &["best_val_perplexity"]),
        "final_train_loss": last("train_losses"),
        "final_val_perplexity": last("val_perplexities"),
        "num_epochs": at(history, &["num_epochs"]),
        "steps": at(history, &["steps"]),
        "train_tokens": at(history, &["train_tokens"]),
        "hyperparameters": at(history, &["hyperparameters"]),
        "constraint_info": at(history, &["constraint_info"]),
    })
}

fn evaluation_summary(evaluation: &Value) -> Value {
    let mut summary: Map<String, Value> = evaluation.as_object().cloned().unwrap_or_default();
    let metadata = summary.remove("metadata").unwrap_or(Value::Null);
    summary.insert("unigram_perplexity".to_owned(), at(&metadata, &["unigram_perplexity"]).clone());
    Value::Object(summary)
}

fn attack(tree: &Value) -> Value {
    if tree.is_null() {
        return Value::Null;
    }
    json!({
        "attack_config": at(tree, &["attack_config"]),
        "results": at(tree, &["results"]),
        "statistical_tests": at(tree, &["statistical_tests"]),
    })
}

/// 100 (treated - baseline) / baseline, or why there is none.
fn percent_of(difference: Option<f64>, baseline: Option<f64>, what: &str) -> Result<f64, String> {
    match (difference, baseline) {
        (Some(_), Some(0.0)) => Err(format!("{what} of the baseline is 0")),
        (Some(d), Some(b)) if (100.0 * d / b).is_finite() => Ok(100.0 * d / b),
        (Some(_), Some(_)) => Err(format!("{what} is not finite")),
        _ => Err(format!("{what} is not there for both models")),
    }
}

fn key_findings(evaluation: &Value, hotflip: &Value, params: &Params) -> Value {
    let perplexity = |model: &str| number(evaluation, &["pile_test", model, "perplexity"]);
    let rate = |model: &str| number(hotflip, &["results", model, "success_rate"]);
    let minus = |a: Option<f64>, b: Option<f64>| Some(a? - b?);
    let (base, treated) = (params.baseline.as_str(), params.treated.as_str());
    let gap = percent_of(minus(perplexity(treated), perplexity(base)), perplexity(base), "the perplexity");
    let reduction = percent_of(minus(rate(base), rate(treated)), rate(base), "the HotFlip success rate");
    let mut reasons = Map::new();
    let mut value = |key: &str, result: Result<f64, String>| match result {
        Ok(x) => json!(x),
        Err(why) => {
            reasons.insert(key.to_owned(), json!(why));
            Value::Null
        }
    };
    let gap = value("perplexity_gap_percent", gap);
    let reduction = value("hotflip_reduction_percent", reduction);
    // The same finding under every success metric and loss scope: they may disagree, and that is a finding.
    let mut by_metric = Map::new();
    for scope in ["all", "untouched_targets"] {
        for metric in ["nll_rel", "ppl_rel", "delta_nats"] {
            let rate = |model: &str| number(hotflip, &["results", model, "scopes", scope, "success_rates", metric]);
            let found = percent_of(minus(rate(base), rate(treated)), rate(base), "the HotFlip success rate");
            by_metric.insert(format!("{metric}/{scope}"), found.map_or(Value::Null, |x| json!(x)));
        }
    }
    let mut rates: Vec<(f64, String)> = params.models.keys().filter_map(|m| Some((rate(m)?, m.clone()))).collect();
    rates.sort_by(|a, b| a.0.total_cmp(&b.0));
    let most_robust = match rates.as_slice() {
        [] => {
            reasons.insert("most_robust_hotflip".to_owned(), json!("no HotFlip success rate is there"));
            Value::Null
        }
        [first, second, ..] if first.0 == second.0 => {
            reasons.insert("most_robust_hotflip".to_owned(), json!("the lowest success rate is shared"));
            Value::Null
        }
        [first, ..] => json!(first.1),
    };
    json!({
        "perplexity_gap_percent": gap,
        "hotflip_reduction_percent": reduction,
        "hotflip_reduction_percent_by_metric": by_metric,
        "most_robust_hotflip": most_robust,
        "reasons": reasons,
    })
}

/// `met`, `not met` or `unknown`, with the number and its limit.
pub(super) fn criterion(name: &str, value: Option<f64>, relation: &str, limit: f64) -> Value {
    let status = match value {
        None => "unknown",
        Some(x) if (relation == "<" && x < limit) || (relation == ">" && x > limit) => "met",
        Some(_) => "not met",
    };
    json!({"name": name, "value": value, "relation": relation, "limit": limit, "status": status})
}

fn criteria(findings: &Value, limits: &CriteriaLimits) -> Value {
    json!([
        criterion("perplexity gap, %", number(findings, &["perplexity_gap_percent"]), "<", limits.max_gap_percent),
        criterion(
            "reduction of HotFlip success, %",
            number(findings, &["hotflip_reduction_percent"]),
            ">",
            limits.min_reduction_percent
        ),
    ])
}

/// What the cells of a seed warn of themselves.
fn of_cells(group: &Group<'_>, seed: Option<u32>) -> Vec<String> {
    let warns = |input: &Input| -> Vec<String> {
        let texts = input.tree().and_then(|tree| tree.get("warnings")).and_then(Value::as_array);
        let texts = texts.into_iter().flatten().filter_map(Value::as_str);
        texts.map(|text| format!("{}: {text}", input.key.local_name())).collect()
    };
    let mut found: Vec<String> = group.cells(seed).flat_map(warns).collect();
    found.sort();
    found
}

/// What deserves a second look. None of it is an error.
fn warnings(evaluation: &Value, uat: &Value, hotflip: &Value, findings: &Value, params: &Params) -> Vec<String> {
    let limits = &params.limits;
    let mut found = Vec::new();
    for model in params.models.keys() {
        let usual = limits.usual_perplexity_min..=limits.usual_perplexity_max;
        if let Some(x) = number(evaluation, &["pile_test", model, "perplexity"]).filter(|x| !usual.contains(x)) {
            found.push(format!(
                "perplexity of {model} is {x:.2}, outside the usual {} to {}",
                limits.usual_perplexity_min, limits.usual_perplexity_max
            ));
        }
    }
    for (attack, tree) in [("UAT", uat), ("HotFlip", hotflip)] {
        let rate = number(tree, &["results", &params.baseline, "success_rate"]).map(|x| 100.0 * x);
        if let Some(x) = rate.filter(|x| *x < limits.weak_attack_percent) {
            found.push(format!(
                "{attack} succeeds on {x:.1} % of the baseline's texts, below {} %: a weak attack",
                limits.weak_attack_percent
            ));
        }
    }
    if let Some(x) = number(findings, &["perplexity_gap_percent"]).filter(|x| *x > limits.pattern_max_gap_percent) {
        found.push(format!("perplexity gap {x:.1} % is above {} %: off the pattern", limits.pattern_max_gap_percent));
    }
    let reduction = number(findings, &["hotflip_reduction_percent"]);
    if let Some(x) = reduction.filter(|x| *x < limits.pattern_min_reduction_percent) {
        found.push(format!("reduction {x:.1} % is below {} %: off the pattern", limits.pattern_min_reduction_percent));
    }
    let signs: Vec<bool> = at(findings, &["hotflip_reduction_percent_by_metric"])
        .as_object()
        .into_iter()
        .flat_map(|m| m.values())
        .filter_map(Value::as_f64)
        .map(|x| x > 0.0)
        .collect();
    if signs.contains(&true) && signs.contains(&false) {
        found.push("success metrics and loss scopes disagree on the sign of the reduction".to_owned());
    }
    found
}
