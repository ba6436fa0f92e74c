//! Stage kind `uat`: universal adversarial triggers against trained models.
//!
//! Exports `uat_results.json` and `learned_triggers.csv`. A part of the drawn texts serves to find a trigger, the
//! rest to judge it. Controls are a random trigger, and the best of as many as the search looks at the model. Each
//! model's trigger is put before the texts of the others, too.

use serde_json::Value;

use super::subjects::{
    BATCH_SIZE, CHECKPOINT_INTERVAL_S, COLLECTIVE_TIMEOUT_S, GRAIN_ROWS, LOSS_SCOPE, MODELS, SAMPLE_TOKENS,
    SUCCESS_METRIC, SUCCESS_THRESHOLD, SUCCESS_THRESHOLD_NATS, SURVIVING, THREADS, check_models,
};
use super::{Field, FieldType, Preset, Role, Spec};

/// Name of the table of triggers.
pub const TRIGGERS_FILE: &str = "learned_triggers.csv";

const fn count(name: &'static str, max: i64, preset: &'static str, help: &'static str) -> Field {
    Field { name, ty: FieldType::Integer { min: 1, max }, preset: Preset::Is(preset), role: Role::Semantic, help }
}

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "uat",
    version: 2,
    binary: "seedbed-uat",
    resumable: true,
    parallel: true,
    partial_inputs: false,
    needs: &["setup", "train"],
    outputs: &[TRIGGERS_FILE],
    export: Some("uat_results.json"),
    help: "universal adversarial triggers against trained models",
    fields: &[
        MODELS,
        Field {
            name: "search",
            ty: FieldType::OneOf(&["random", "gradient", "gradient_by_sweep"]),
            preset: Preset::Is(r#""random""#),
            role: Role::Semantic,
            help: "candidates drawn from the pool (historic), or those with the largest first-order gain, by a gradient at each position or one a sweep",
        },
        Field {
            name: "objective",
            ty: FieldType::OneOf(&["untargeted", "targeted"]),
            preset: Preset::Is(r#""untargeted""#),
            role: Role::Semantic,
            help: "raise the loss of texts of the test split, or lower that of `target_texts`",
        },
        Field {
            name: "target_texts",
            ty: FieldType::TextList,
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "what a targeted trigger is to make the model say: texts of at least two tokens",
        },
        count("trigger_length", 1024, "10", "ids in a trigger"),
        count("num_iterations", 100_000, "100", "sweeps over all positions of a trigger, at most"),
        count("num_restarts", 10_000, "5", "independent searches; the best one counts"),
        count("num_candidates", 1 << 20, "200", "ids in the pool of first triggers and random candidates"),
        count(
            "candidates_per_position",
            1 << 20,
            "20",
            "candidates tried at one position for every trigger of the beam",
        ),
        count("beam", 1024, "1", "triggers kept from one position to the next"),
        count("num_samples", 1 << 20, "200", "texts drawn from the test split"),
        Field {
            name: "opt_fraction",
            ty: FieldType::Number { min: 0.0, max: 1.0 },
            preset: Preset::Is("0.4"),
            role: Role::Semantic,
            help: "part of the texts on which triggers are found; the rest judges them",
        },
        SAMPLE_TOKENS,
        SURVIVING,
        LOSS_SCOPE,
        SUCCESS_METRIC,
        SUCCESS_THRESHOLD,
        SUCCESS_THRESHOLD_NATS,
        GRAIN_ROWS,
        BATCH_SIZE,
        Field {
            name: "pruning",
            ty: FieldType::Bool,
            preset: Preset::Is("false"),
            role: Role::Operational,
            help: "a targeted search gives candidates up that cannot win any more; changes time only",
        },
        THREADS,
        CHECKPOINT_INTERVAL_S,
        COLLECTIVE_TIMEOUT_S,
    ],
    check,
};

fn check(params: &Value) -> Vec<String> {
    let mut problems = check_models(params);
    let number = |name: &str| params.get(name).and_then(Value::as_u64);
    if number("num_samples").is_some_and(|n| n < 2) {
        problems.push("`num_samples` must be at least 2: one text to search on and one to judge on".to_owned());
    }
    let texts = params.get("target_texts").and_then(Value::as_array);
    let targeted = params.get("objective").and_then(Value::as_str) == Some("targeted");
    if targeted && texts.is_none_or(Vec::is_empty) {
        problems.push(
            "`objective` = \"targeted\" needs `target_texts`: say what the model is to be made to say".to_owned(),
        );
    }
    if !targeted && texts.is_some() {
        problems
            .push("`target_texts` are read only if `objective` = \"targeted\": take them away, or set it".to_owned());
    }
    if let (Some(tried), Some(pool)) = (number("candidates_per_position"), number("num_candidates")) {
        let random = params.get("search").and_then(Value::as_str).is_none_or(|s| s == "random");
        if random && tried > pool {
            problems.push(format!(
                "`candidates_per_position` = {tried} is more than the `num_candidates` = {pool} ids of the pool"
            ));
        }
    }
    problems
}

#[cfg(feature = "compute")]
pub use task::run;

#[cfg(feature = "compute")]
mod task;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pool_smaller_than_the_candidates_is_refused() {
        let base = json!({"models": {"a": "t"}, "num_samples": 30, "num_candidates": 8, "candidates_per_position": 20});
        let mut gradient = base.clone();
        gradient["search"] = json!("gradient");
        assert_eq!(check(&base).len(), 1);
        assert!(check(&gradient).is_empty());
    }

    #[test]
    fn targets_belong_to_a_targeted_search() {
        let base = json!({"models": {"a": "t"}, "num_samples": 30});
        let with = |objective: &str, texts: Value| {
            let mut params = base.clone();
            params["objective"] = json!(objective);
            if !texts.is_null() {
                params["target_texts"] = texts;
            }
            check(&params).len()
        };
        assert_eq!(with("targeted", json!(["so it is"])), 0);
        assert_eq!(with("untargeted", Value::Null), 0);
        assert_eq!(with("targeted", Value::Null), 1);
        assert_eq!(with("targeted", json!([])), 1);
        assert_eq!(with("untargeted", json!(["so it is"])), 1);
    }
}
