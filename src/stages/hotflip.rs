//! Stage kind `hotflip`: token flips against trained models, with a random control of the same budget.
//!
//! Exports `hotflip_results.json`. Every model sees the same texts and the same random flips, so that models
//! are compared text by text.

use serde_json::Value;

use super::subjects::{
    BATCH_SIZE, GRAIN_ROWS, LOSS_SCOPE, MODELS, SAMPLE_TOKENS, SUCCESS_METRIC, SUCCESS_THRESHOLD,
    SUCCESS_THRESHOLD_NATS, THREADS, check_models,
};
use super::{Field, FieldType, Preset, Role, Spec};

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "hotflip",
    version: 1,
    binary: "seedbed-hotflip",
    resumable: false,
    parallel: false,
    partial_inputs: false,
    needs: &["setup", "train"],
    outputs: &[],
    export: Some("hotflip_results.json"),
    help: "token flips against trained models, with a random control",
    fields: &[
        MODELS,
        Field {
            name: "mode",
            ty: FieldType::OneOf(&["one_shot", "iterative"]),
            preset: Preset::Is(r#""one_shot""#),
            role: Role::Semantic,
            help: "one gradient for all flips (historic), or a new one for each",
        },
        Field {
            name: "num_flips",
            ty: FieldType::Integer { min: 1, max: 4096 },
            preset: Preset::Is("10"),
            role: Role::Semantic,
            help: "flips in each text",
        },
        Field {
            name: "num_samples",
            ty: FieldType::Integer { min: 1, max: 1 << 20 },
            preset: Preset::Is("200"),
            role: Role::Semantic,
            help: "texts drawn from the test split",
        },
        SAMPLE_TOKENS,
        LOSS_SCOPE,
        SUCCESS_METRIC,
        SUCCESS_THRESHOLD,
        SUCCESS_THRESHOLD_NATS,
        GRAIN_ROWS,
        BATCH_SIZE,
        THREADS,
    ],
    check,
};

fn check(params: &Value) -> Vec<String> {
    check_models(params)
}

#[cfg(feature = "compute")]
pub use task::run;

#[cfg(feature = "compute")]
mod task {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::{Map, Value, json};

    use super::super::attack_summary::{
        Headline, Scoped, comparison_name, degradations, mean_of, or_null, paired_tests,
    };
    use super::super::subjects::{numerics, open};
    use super::super::{Context, StageError};
    use crate::compute::attack::hotflip::{Attacked, Budget, Mode, attack, random_control};
    use crate::compute::attack::success::{Metric, Thresholds};
    use crate::compute::attack::{Scope, allowed_ids, draw_texts};
    use crate::compute::data::{Packing, Samples};
    use crate::compute::evaluate::{Grain, LanguageModel};
    use crate::record::{Column, Items, RunRecord};
    use crate::report::stats;

    #[derive(Debug, Deserialize)]
    struct Params {
        models: BTreeMap<String, String>,
        mode: String,
        num_flips: usize,
        num_samples: usize,
        sample_tokens: Option<usize>,
        loss_scope: String,
        success_metric: String,
        success_threshold: f64,
        success_threshold_nats: f64,
        grain_rows: usize,
        batch_size: usize,
        threads_per_rank: u32,
    }

    /// Attacks every model on the same texts.
    ///
    /// # Errors
    /// A model or the data cannot be read or do not fit each other, or a loss is not finite.
    pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
        let params: Params = context.params()?;
        let word = |what: &str| StageError::Usage(format!("`{what}` has a value that is not known"));
        let scope = Scope::parse(&params.loss_scope).ok_or_else(|| word("loss_scope"))?;
        let metric = Metric::parse(&params.success_metric).ok_or_else(|| word("success_metric"))?;
        let thresholds = Thresholds { relative: params.success_threshold, nats: params.success_threshold_nats };
        let headline = Headline { scope, metric, thresholds };
        let mode = if params.mode == "iterative" { Mode::Iterative } else { Mode::OneShot };
        let subjects = open(context, &params.models, params.threads_per_rank)?;
        let grain = Grain::new(params.grain_rows, params.batch_size)?;
        let seed = context.seed();

        let room = subjects.models.iter().map(|(_, m)| m.max_len()).min().unwrap_or(0);
        let length = params.sample_tokens.unwrap_or(room);
        if length == 0 || length > room {
            return Err(StageError::Usage(format!(
                "texts of {length} tokens do not fit the {room} positions of a model: lower `sample_tokens`"
            )));
        }
        let samples = Samples::new(subjects.test.clone(), length, Packing::Stream)?;
        let texts = draw_texts(&samples, params.num_samples, seed)?;
        let special = subjects.tokenizer.special_ids();
        let budget =
            Budget { flips: params.num_flips, allowed: allowed_ids(&subjects.train.counts(), &special), special };

        let mut record = RunRecord::new(&context.cell);
        let (mut results, mut seconds) = (Map::new(), Map::new());
        let mut by_model: Vec<(&str, Scoped)> = Vec::new();
        for (name, model) in &subjects.models {
            let begun = std::time::Instant::now();
            let attacked = attack(model, &texts, mode, &budget, grain)?;
            let control = random_control(model, &texts, &budget, seed, grain)?;
            let mut result = summary(&attacked, &headline);
            result["model_name"] = json!(name);
            result["random_control"] = summary(&control, &headline);
            eprintln!(
                "{name}: success rate {} ({}), random control {}",
                result["success_rate"],
                metric.word(),
                result["random_control"]["success_rate"]
            );
            record.items.insert(format!("hotflip_{name}"), items(&attacked, &control));
            results.insert(name.clone(), result);
            by_model.push((name, scoped(&attacked)));
            seconds.insert(name.clone(), json!(begun.elapsed().as_secs_f64()));
        }
        let mut tests = Map::new();
        for (i, (a, left)) in by_model.iter().enumerate() {
            for (b, right) in &by_model[i + 1..] {
                let found = paired_tests(left.pairs(scope), right.pairs(scope), &headline, seed);
                tests.insert(comparison_name(a, b), found);
            }
        }
        record.metrics = json!({
            "seed": context.cell.key.seed,
            "model_name": subjects.model_name,
            "attack_config": {
                "num_flips": params.num_flips,
                "num_samples": texts.len(),
                "success_threshold": params.success_threshold,
                "success_threshold_nats": params.success_threshold_nats,
                "success_metric": params.success_metric,
                "loss_scope": params.loss_scope,
                "mode": params.mode,
                "sample_tokens": length,
                "allowed_ids": budget.allowed.len(),
            },
            "results": results,
            "statistical_tests": tests,
        });
        record.environment = json!({"seconds": seconds, "duration_s": context.elapsed_s()});
        record.numerics = numerics(params.threads_per_rank, params.grain_rows);
        Ok(Some(record))
    }

    fn scoped(attacked: &[Attacked]) -> Scoped {
        let pairs = |scope| attacked.iter().map(|a| a.pair(scope)).collect();
        Scoped { all: pairs(Scope::All), untouched: pairs(Scope::UntouchedTargets) }
    }

    fn summary(attacked: &[Attacked], headline: &Headline) -> Value {
        let scoped = scoped(attacked);
        let pairs = scoped.pairs(headline.scope);
        let relative = degradations(pairs);
        json!({
            "avg_degradation": or_null(stats::mean(&relative)),
            "std_degradation": or_null(stats::sample_sd(&relative)),
            "success_rate": headline.thresholds.rate(headline.metric, pairs),
            "avg_orig_loss": mean_of(pairs, |p| p.clean),
            "avg_attack_loss": mean_of(pairs, |p| p.attacked),
            "num_samples": pairs.len(),
            "scopes": scoped.summary(&headline.thresholds),
        })
    }

    fn items(attacked: &[Attacked], control: &[Attacked]) -> Items {
        let floats = |of: &[Attacked], value: fn(&Attacked) -> f64| Column::Floats(of.iter().map(value).collect());
        let flips = |a: &Attacked| {
            let each: Vec<String> = a.flips.iter().map(|f| format!("{}:{}", f.position, f.id)).collect();
            each.join(" ")
        };
        Items {
            columns: vec![
                ("id".into(), Column::Integers(attacked.iter().map(|a| a.id as i64).collect())),
                ("clean_all".into(), floats(attacked, |a| a.all.clean)),
                ("attacked_all".into(), floats(attacked, |a| a.all.attacked)),
                ("clean_untouched".into(), floats(attacked, |a| a.untouched.clean)),
                ("attacked_untouched".into(), floats(attacked, |a| a.untouched.attacked)),
                ("control_clean_untouched".into(), floats(control, |a| a.untouched.clean)),
                ("control_all".into(), floats(control, |a| a.all.attacked)),
                ("control_untouched".into(), floats(control, |a| a.untouched.attacked)),
                ("flips".into(), Column::Texts(attacked.iter().map(flips).collect())),
            ],
        }
    }
}
