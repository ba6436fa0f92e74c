//! Stage kind `uat`: universal adversarial triggers against trained models.
//!
//! Exports `uat_results.json` and `learned_triggers.csv`. A part of the drawn texts serves to find a trigger, the
//! rest to judge it; a random trigger of the same length is the control.

use serde_json::Value;

use super::subjects::{
    BATCH_SIZE, GRAIN_ROWS, LOSS_SCOPE, MODELS, SAMPLE_TOKENS, SUCCESS_METRIC, SUCCESS_THRESHOLD,
    SUCCESS_THRESHOLD_NATS, THREADS, check_models,
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
    version: 1,
    binary: "seedbed-uat",
    resumable: false,
    parallel: false,
    partial_inputs: false,
    needs: &["setup", "train"],
    outputs: &[TRIGGERS_FILE],
    export: Some("uat_results.json"),
    help: "universal adversarial triggers against trained models",
    fields: &[
        MODELS,
        Field {
            name: "search",
            ty: FieldType::OneOf(&["random", "gradient"]),
            preset: Preset::Is(r#""random""#),
            role: Role::Semantic,
            help: "candidates drawn from the pool, or those with the largest first-order gain",
        },
        count("trigger_length", 1024, "10", "ids in a trigger"),
        count("num_iterations", 100_000, "100", "sweeps over all positions of a trigger, at most"),
        count("num_restarts", 10_000, "5", "independent searches; the best one counts"),
        count("num_candidates", 1 << 20, "200", "ids in the pool of first triggers and random candidates"),
        count("candidates_per_position", 1 << 20, "20", "candidates tried at one position"),
        count("num_samples", 1 << 20, "200", "texts drawn from the test split"),
        Field {
            name: "opt_fraction",
            ty: FieldType::Number { min: 0.0, max: 1.0 },
            preset: Preset::Is("0.4"),
            role: Role::Semantic,
            help: "part of the texts on which triggers are found; the rest judges them",
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
    let mut problems = check_models(params);
    let number = |name: &str| params.get(name).and_then(Value::as_u64);
    if number("num_samples").is_some_and(|n| n < 2) {
        problems.push("`num_samples` must be at least 2: one text to search on and one to judge on".to_owned());
    }
    if let (Some(tried), Some(pool)) = (number("candidates_per_position"), number("num_candidates")) {
        let random = params.get("search").and_then(Value::as_str) != Some("gradient");
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
mod task {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::{Map, Value, json};

    use super::super::attack_summary::{Headline, Scoped, csv_field, or_null};
    use super::super::subjects::{Subjects, numerics, open};
    use super::super::{Context, StageError};
    use super::TRIGGERS_FILE;
    use crate::compute::attack::success::{Metric, Thresholds};
    use crate::compute::attack::uat::{Judgement, Plan, Restart, Search, best, judge, pool, random_trigger, search};
    use crate::compute::attack::{Scope, Text, allowed_ids, draw_texts};
    use crate::compute::data::{Packing, Samples};
    use crate::compute::evaluate::{Grain, LanguageModel};
    use crate::record::{Column, Items, RunRecord, SeriesPoint, files};
    use crate::report::stats;

    #[derive(Debug, Deserialize)]
    struct Params {
        models: BTreeMap<String, String>,
        search: String,
        trigger_length: usize,
        num_iterations: u32,
        num_restarts: u32,
        num_candidates: usize,
        candidates_per_position: usize,
        num_samples: usize,
        opt_fraction: f64,
        sample_tokens: Option<usize>,
        loss_scope: String,
        success_metric: String,
        success_threshold: f64,
        success_threshold_nats: f64,
        grain_rows: usize,
        batch_size: usize,
        threads_per_rank: u32,
    }

    /// Searches and judges a trigger for every model.
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
        let subjects = open(context, &params.models, params.threads_per_rank)?;
        let grain = Grain::new(params.grain_rows, params.batch_size)?;
        let seed = context.seed();

        let room = subjects.models.iter().map(|(_, m)| m.max_len()).min().unwrap_or(0);
        let longest = room.saturating_sub(params.trigger_length);
        let length = params.sample_tokens.unwrap_or(longest);
        if length == 0 || length > longest {
            return Err(StageError::Usage(format!(
                "texts of {length} tokens and a trigger of {} do not fit the {room} positions of a model: lower `sample_tokens` or `trigger_length`",
                params.trigger_length
            )));
        }
        let samples = Samples::new(subjects.test.clone(), length, Packing::Stream)?;
        let texts = draw_texts(&samples, params.num_samples, seed)?;
        let split = ((texts.len() as f64 * params.opt_fraction).round() as usize).clamp(1, texts.len() - 1);
        let (opt, eval) = texts.split_at(split);
        let allowed = allowed_ids(&subjects.train.counts(), &subjects.tokenizer.special_ids());
        let plan = Plan {
            length: params.trigger_length,
            search: if params.search == "gradient" { Search::Gradient } else { Search::Random },
            restarts: params.num_restarts,
            iterations: params.num_iterations,
            candidates: params.candidates_per_position,
            pool: pool(&allowed, params.num_candidates, seed),
            allowed,
            scope,
            seed,
        };

        let mut record = RunRecord::new(&context.cell);
        let (mut results, mut seconds) = (Map::new(), Map::new());
        let mut csv = "model,trigger,nll_increase_percent\n".to_owned();
        for (name, model) in &subjects.models {
            let begun = std::time::Instant::now();
            let restarts = search(model, opt, &plan, grain)?;
            let found = best(&restarts).ok_or_else(|| word("num_restarts"))?;
            let judged = judge(model, eval, &found.trigger, grain)?;
            let control = judge(model, eval, &random_trigger(&plan), grain)?;
            let result = result_of(&subjects, &plan, &headline, &restarts, found, &judged, &control)?;
            eprintln!("{name}: loss {} -> {} under the trigger", result["clean_loss"], result["attacked_loss"]);
            let percent = &result["nll_increase_percent"];
            let trigger = result["trigger_text"].as_str().unwrap_or("");
            csv.push_str(&format!("{},{},{percent}\n", csv_field(name), csv_field(trigger)));
            for (r, restart) in restarts.iter().enumerate() {
                record.series.insert(format!("{name}_restart_{r}"), series_of(restart));
            }
            record.items.insert(format!("uat_{name}"), items(&judged, &control));
            results.insert(name.clone(), result);
            seconds.insert(name.clone(), json!(begun.elapsed().as_secs_f64()));
        }
        files::write_atomic(&context.out_dir.join(TRIGGERS_FILE), csv.as_bytes())?;
        record.metrics = json!({
            "seed": context.cell.key.seed,
            "model_name": subjects.model_name,
            "attack_config": config_of(&params, &plan, opt, eval, length),
            "results": results,
        });
        record.environment = json!({"seconds": seconds, "duration_s": context.elapsed_s()});
        record.numerics = numerics(params.threads_per_rank, params.grain_rows);
        Ok(Some(record))
    }

    fn config_of(params: &Params, plan: &Plan, opt: &[Text], eval: &[Text], length: usize) -> Value {
        json!({
            "trigger_length": plan.length,
            "num_iterations": plan.iterations,
            "num_restarts": plan.restarts,
            "num_opt_samples": opt.len(),
            "num_eval_samples": eval.len(),
            "search": params.search,
            "num_candidates": plan.pool.len(),
            "candidates_per_position": plan.candidates,
            "sample_tokens": length,
            "loss_scope": params.loss_scope,
            "success_metric": params.success_metric,
            "success_threshold": params.success_threshold,
            "success_threshold_nats": params.success_threshold_nats,
        })
    }

    fn scoped(judged: &Judgement) -> Scoped {
        let pairs = |scope| judged.texts.iter().map(|t| t.pair(scope)).collect();
        Scoped { all: pairs(Scope::All), untouched: pairs(Scope::UntouchedTargets) }
    }

    fn result_of(
        subjects: &Subjects,
        plan: &Plan,
        headline: &Headline,
        restarts: &[Restart],
        found: &Restart,
        judged: &Judgement,
        control: &Judgement,
    ) -> Result<Value, StageError> {
        let pair = judged.pair(headline.scope);
        let increase = pair.attacked - pair.clean;
        let percent =
            if pair.clean > 0.0 { Ok(100.0 * increase / pair.clean) } else { Err(stats::Degenerate::OutOfRange) };
        let rate = |of: &Judgement| headline.thresholds.rate(headline.metric, scoped(of).pairs(headline.scope));
        let control_pair = control.pair(headline.scope);
        let restarts: Vec<Value> = restarts
            .iter()
            .map(|r| {
                json!({
                    "seed": r.seed,
                    "first_loss": r.first_loss,
                    "final_loss": r.loss(),
                    "sweeps": r.sweep_losses.len(),
                    "trigger_ids": r.trigger,
                })
            })
            .collect();
        Ok(json!({
            "trigger_text": subjects.tokenizer.decode(&ids(&found.trigger))?.replace('\0', "\u{fffd}"),
            "trigger_ids": found.trigger,
            "clean_loss": pair.clean,
            "attacked_loss": pair.attacked,
            "nll_increase": increase,
            "nll_increase_percent": or_null(percent),
            "success_rate": rate(judged),
            "opt_first_loss": found.first_loss,
            "opt_final_loss": found.loss(),
            "scopes": scoped(judged).summary(&headline.thresholds),
            "random_control": {
                "trigger_ids": random_trigger(plan),
                "attacked_loss": control_pair.attacked,
                "nll_increase": control_pair.attacked - control_pair.clean,
                "success_rate": rate(control),
                "scopes": scoped(control).summary(&headline.thresholds),
            },
            "restarts": restarts,
        }))
    }

    fn ids(trigger: &[i64]) -> Vec<u32> {
        // Ids come from the vocabulary, which is far below 2^32.
        trigger.iter().map(|&id| id as u32).collect()
    }

    fn series_of(restart: &Restart) -> Vec<SeriesPoint> {
        let losses = std::iter::once(&restart.first_loss).chain(&restart.sweep_losses);
        losses.enumerate().map(|(step, &value)| SeriesPoint { step: step as u64, value, time_s: 0.0 }).collect()
    }

    fn items(judged: &Judgement, control: &Judgement) -> Items {
        let floats = |of: &Judgement, value: fn(&crate::compute::attack::uat::Judged) -> f64| {
            Column::Floats(of.texts.iter().map(value).collect())
        };
        Items {
            columns: vec![
                ("id".into(), Column::Integers(judged.texts.iter().map(|t| t.id as i64).collect())),
                ("clean".into(), floats(judged, |t| t.all.clean)),
                ("attacked_all".into(), floats(judged, |t| t.all.attacked)),
                ("attacked_untouched".into(), floats(judged, |t| t.untouched.attacked)),
                ("control_all".into(), floats(control, |t| t.all.attacked)),
                ("control_untouched".into(), floats(control, |t| t.untouched.attacked)),
            ],
        }
    }
}

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
}
