//! Stage kind `hotflip`: token flips against trained models, with a random control of the same budget.
//!
//! Exports `hotflip_results.json`. Every model sees the same texts and the same random flips, so that models
//! are compared text by text. Controls are random flips, once and as the best of as many as the attack looks at the
//! model. Each model's flips are made in the texts of the others, too.

use serde_json::Value;

use super::subjects::{
    BATCH_SIZE, CHECKPOINT_INTERVAL_S, COLLECTIVE_TIMEOUT_S, GRAIN_ROWS, LOSS_SCOPE, MODELS, SAMPLE_TOKENS,
    SUCCESS_METRIC, SUCCESS_THRESHOLD, SUCCESS_THRESHOLD_NATS, SURVIVING, THREADS, check_models,
};
use super::{Field, FieldType, Preset, Role, Spec};

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "hotflip",
    version: 2,
    binary: "seedbed-hotflip",
    resumable: true,
    parallel: true,
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
        SURVIVING,
        LOSS_SCOPE,
        SUCCESS_METRIC,
        SUCCESS_THRESHOLD,
        SUCCESS_THRESHOLD_NATS,
        GRAIN_ROWS,
        BATCH_SIZE,
        THREADS,
        CHECKPOINT_INTERVAL_S,
        COLLECTIVE_TIMEOUT_S,
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

    use serde::{Deserialize, Serialize};
    use serde_json::{Map, Value, json};

    use super::super::attack_frame::{Keeper, attack_numerics, headline, on_ranks};
    use super::super::attack_summary::{
        Headline, Scoped, comparison_name, degradations, mean_of, or_null, paired_tests,
    };
    use super::super::subjects::open;
    use super::super::{Context, StageError};
    use crate::compute::attack::hotflip::{
        Attacked, Budget, Field, Mode, RandomSearch, State, attack, judge, random_control, random_search,
    };
    use crate::compute::attack::success::Thresholds;
    use crate::compute::attack::survival::Survival;
    use crate::compute::attack::victim::Native;
    use crate::compute::attack::{Ended, Scope, allowed_ids, draw_texts};
    use crate::compute::comm::Comm;
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
        surviving: bool,
        loss_scope: String,
        success_metric: String,
        success_threshold: f64,
        success_threshold_nats: f64,
        grain_rows: usize,
        batch_size: usize,
        threads_per_rank: u32,
        checkpoint_interval_s: f64,
        collective_timeout_s: u64,
    }

    /// What is kept while the cell runs, by model.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OfModel {
        attack: State,
        random: RandomSearch,
    }

    /// Attacks every model on the same texts.
    ///
    /// # Errors
    /// A model or the data cannot be read or do not fit each other, a loss is not finite, a rank is gone, or the cell was
    /// asked to stop ([`StageError::Resume`]).
    pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
        let params: Params = context.params()?;
        on_ranks(params.collective_timeout_s, |comm| run_on(context, &params, comm))
    }

    fn run_on(context: &Context, params: &Params, comm: &Comm) -> Result<RunRecord, StageError> {
        let thresholds = Thresholds { relative: params.success_threshold, nats: params.success_threshold_nats };
        let headline = headline(&params.loss_scope, &params.success_metric, thresholds)?;
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
        let survival =
            if params.surviving { Survival::asked(&subjects.tokenizer, &special) } else { Survival::not_asked() };
        let allowed = survival.alone(allowed_ids(&subjects.train.counts(), &special))?;
        let budget = Budget { flips: params.num_flips, allowed, special: special.clone() };
        let mut natives = Vec::new();
        for (name, model) in &subjects.models {
            natives.push((name.as_str(), Native::new(model, params.threads_per_rank as usize)?));
        }

        let passes = mode.passes(&budget);
        let mut keeper: Keeper<'_, BTreeMap<String, OfModel>> =
            Keeper::open(context, comm, params.checkpoint_interval_s)?;
        let mut found = keeper.state.clone();
        let mut seconds = Map::new();
        for (name, victim) in &mut natives {
            let begun = std::time::Instant::now();
            let of = found.entry((*name).to_owned()).or_default();
            let mut field = Field { victim, comm, texts: &texts, survival, grain };
            let ended = attack(&mut field, mode, &budget, &mut of.attack, &mut |state| {
                let update = &mut |kept: &mut BTreeMap<String, OfModel>| {
                    kept.entry((*name).to_owned()).or_default().attack = state.clone();
                };
                keeper.step(&format!("{name}_texts"), state.flips.len() as f64, update)
            })?;
            if ended == Ended::Stopped {
                return Err(keeper.resume());
            }
            let ended = random_search(&mut field, &budget, (seed, passes), &mut of.random, &mut |state| {
                let update = &mut |kept: &mut BTreeMap<String, OfModel>| {
                    let kept = kept.entry((*name).to_owned()).or_default();
                    (kept.attack, kept.random) = (of.attack.clone(), state.clone());
                };
                keeper.step(&format!("{name}_random_loss"), state.loss(), update)
            })?;
            if ended == Ended::Stopped {
                return Err(keeper.resume());
            }
            // What is written from here on has all of this model, whenever the last write was.
            keeper.state.insert((*name).to_owned(), of.clone());
            seconds.insert((*name).to_owned(), json!(begun.elapsed().as_secs_f64()));
        }

        let mut record = RunRecord::new(&context.cell);
        let mut results = Map::new();
        let mut by_model: Vec<(&str, Scoped)> = Vec::new();
        let names: Vec<&str> = natives.iter().map(|n| n.0).collect();
        for (k, name) in names.iter().enumerate() {
            let of = &found[*name];
            let flips = &of.attack.flips;
            let mut field = Field { victim: &mut natives[k].1, comm, texts: &texts, survival, grain };
            let attacked = judge(&mut field, flips)?;
            let control = random_control(&mut field, &budget, seed)?;
            let searched = judge(&mut field, &of.random.flips())?;
            let mut result = summary(&attacked, &headline);
            result["model_name"] = json!(name);
            result["passes"] = json!(passes);
            result["random_control"] = summary(&control, &headline);
            result["random_search"] = summary(&searched, &headline);
            result["random_search"]["passes"] = json!(of.random.draw);
            let mut transfer = Map::new();
            for (other, other_name) in names.iter().enumerate().filter(|(other, _)| *other != k) {
                let mut field = Field { victim: &mut natives[other].1, comm, texts: &texts, survival, grain };
                transfer.insert((*other_name).to_owned(), summary(&judge(&mut field, flips)?, &headline));
            }
            result["transfer"] = transfer.into();
            if comm.is_first() {
                eprintln!(
                    "{name}: success rate {} ({}), random control {}",
                    result["success_rate"],
                    headline.metric.word(),
                    result["random_control"]["success_rate"]
                );
            }
            record.items.insert(format!("hotflip_{name}"), items(&attacked, &control));
            results.insert((*name).to_owned(), result);
            by_model.push((name, scoped(&attacked)));
        }
        let mut tests = Map::new();
        for (i, (a, left)) in by_model.iter().enumerate() {
            for (b, right) in &by_model[i + 1..] {
                let found = paired_tests(left.pairs(headline.scope), right.pairs(headline.scope), &headline, seed);
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
                "surviving": params.surviving,
                "allowed_ids": budget.allowed.len(),
            },
            "results": results,
            "statistical_tests": tests,
        });
        record.environment = json!({"seconds": seconds, "duration_s": context.elapsed_s(), "ranks": comm.size()});
        record.numerics = attack_numerics(comm, params.threads_per_rank, params.grain_rows);
        Ok(record)
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
            "avg_flips": or_null(stats::mean(&attacked.iter().map(|a| a.flips.len() as f64).collect::<Vec<_>>())),
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
