//! What a cell of kind `uat` does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::attack_frame::{Keeper, attack_numerics, headline, on_ranks, unknown};
use super::super::attack_summary::{Headline, Scoped, csv_field, or_null};
use super::super::subjects::{Subjects, open};
use super::super::{Context, StageError};
use super::TRIGGERS_FILE;
use crate::compute::attack::success::Thresholds;
use crate::compute::attack::survival::Survival;
use crate::compute::attack::uat::{
    Field, Judged, Judgement, Objective, Plan, Pruning, RandomSearch, Restart, Search, State, judge, pool,
    random_search, random_trigger, search,
};
use crate::compute::attack::victim::Native;
use crate::compute::attack::{Ended, Scope, Text, allowed_ids, draw_texts};
use crate::compute::comm::Comm;
use crate::compute::data::{Packing, Samples, Special};
use crate::compute::evaluate::{Grain, LanguageModel};
use crate::record::{Column, Items, RunRecord, SeriesPoint, files};
use crate::report::stats;

#[derive(Debug, Deserialize)]
struct Params {
    models: BTreeMap<String, String>,
    search: String,
    objective: String,
    target_texts: Option<Vec<String>>,
    trigger_length: usize,
    num_iterations: u32,
    num_restarts: u32,
    num_candidates: usize,
    candidates_per_position: usize,
    beam: usize,
    num_samples: usize,
    opt_fraction: f64,
    sample_tokens: Option<usize>,
    surviving: bool,
    loss_scope: String,
    success_metric: String,
    success_threshold: f64,
    success_threshold_nats: f64,
    grain_rows: usize,
    batch_size: usize,
    pruning: bool,
    threads_per_rank: u32,
    checkpoint_interval_s: f64,
    collective_timeout_s: u64,
}

/// What is kept while the cell runs, by model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfModel {
    search: State,
    random: RandomSearch,
}

/// Texts to search on, and to judge on.
struct Texts {
    opt: Vec<Text>,
    eval: Vec<Text>,
    /// Tokens of the longest.
    length: usize,
}

/// Searches and judges a trigger for every model.
///
/// # Errors
/// A model or the data cannot be read or do not fit each other, a loss is not finite, a rank is gone, or the cell was asked
/// to stop ([`StageError::Resume`]).
pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
    let params: Params = context.params()?;
    on_ranks(params.collective_timeout_s, |comm| run_on(context, &params, comm))
}

fn run_on(context: &Context, params: &Params, comm: &Comm) -> Result<RunRecord, StageError> {
    let thresholds = Thresholds { relative: params.success_threshold, nats: params.success_threshold_nats };
    let headline = headline(&params.loss_scope, &params.success_metric, thresholds)?;
    let subjects = open(context, &params.models, params.threads_per_rank)?;
    let grain = Grain::new(params.grain_rows, params.batch_size)?;
    let texts = texts(context, params, &subjects)?;
    let special = subjects.tokenizer.special_ids();
    let survival =
        if params.surviving { Survival::asked(&subjects.tokenizer, &special) } else { Survival::not_asked() };
    let plan = plan(context, params, &subjects, survival, headline.scope)?;
    let mut natives = Vec::new();
    for (name, model) in &subjects.models {
        natives.push((name.as_str(), Native::new(model, params.threads_per_rank as usize)?));
    }

    let mut keeper: Keeper<'_, BTreeMap<String, OfModel>> = Keeper::open(context, comm, params.checkpoint_interval_s)?;
    let mut found: BTreeMap<String, OfModel> = keeper.state.clone();
    let mut seconds = Map::new();
    for (name, native) in &mut natives {
        let begun = std::time::Instant::now();
        let of = found.entry((*name).to_owned()).or_default();
        let mut field = Field { victim: native, comm, texts: &texts.opt, survival, grain };
        let ended = search(&mut field, &plan, &mut of.search, &mut |state| {
            let loss = state.best(plan.objective).map_or(0.0, Restart::loss);
            let update = &mut |kept: &mut BTreeMap<String, OfModel>| {
                kept.entry((*name).to_owned()).or_default().search = state.clone();
            };
            keeper.step(&format!("{name}_loss"), loss, update)
        })?;
        if ended == Ended::Stopped {
            return Err(keeper.resume());
        }
        let passes = of.search.passes();
        let ended = random_search(&mut field, &plan, passes, &mut of.random, &mut |state| {
            let loss = state.best.as_ref().map_or(0.0, |best| best.loss);
            let update = &mut |kept: &mut BTreeMap<String, OfModel>| {
                let kept = kept.entry((*name).to_owned()).or_default();
                (kept.search, kept.random) = (of.search.clone(), state.clone());
            };
            keeper.step(&format!("{name}_random_loss"), loss, update)
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
    let mut csv = "model,trigger,nll_increase_percent\n".to_owned();
    let names: Vec<&str> = natives.iter().map(|n| n.0).collect();
    for (k, name) in names.iter().enumerate() {
        let of = &found[*name];
        let best = of.search.best(plan.objective).ok_or_else(|| unknown("num_restarts"))?;
        let mut on = |k: usize, trigger: &[i64]| {
            let victim = &mut natives[k].1;
            judge(&mut Field { victim, comm, texts: &texts.eval, survival, grain }, trigger)
        };
        let judged = on(k, best.trigger())?;
        let control_trigger = random_trigger(&plan, survival)?;
        let control = on(k, &control_trigger)?;
        let report = Report { subjects: &subjects, headline: &headline, objective: plan.objective };
        let mut result = report.of(best.trigger(), &judged)?;
        result["opt_first_loss"] = json!(best.first.loss);
        result["opt_final_loss"] = json!(best.loss());
        result["passes"] = json!(of.search.passes());
        result["random_control"] = report.of(&control_trigger, &control)?;
        if let Some(random) = &of.random.best {
            let judged = on(k, &random.ids)?;
            result["random_search"] = report.of(&random.ids, &judged)?;
            result["random_search"]["opt_final_loss"] = json!(random.loss);
            result["random_search"]["passes"] = json!(of.random.evaluations);
        }
        let mut transfer = Map::new();
        for (other, other_name) in names.iter().enumerate().filter(|(other, _)| *other != k) {
            let mut there = report.of(best.trigger(), &on(other, best.trigger())?)?;
            // The trigger is told already.
            if let Some(there) = there.as_object_mut() {
                there.retain(|key, _| !key.starts_with("trigger"));
            }
            transfer.insert((*other_name).to_owned(), there);
        }
        result["transfer"] = transfer.into();
        result["restarts"] = of.search.restarts.iter().map(of_restart).collect();
        if comm.is_first() {
            eprintln!("{name}: loss {} -> {} under the trigger", result["clean_loss"], result["attacked_loss"]);
        }
        let text = result["trigger_text"].as_str().unwrap_or("");
        csv.push_str(&format!("{},{},{}\n", csv_field(name), csv_field(text), result["nll_increase_percent"]));
        for restart in &of.search.restarts {
            record.series.insert(format!("{name}_restart_{}", restart.number), series_of(restart));
        }
        record.items.insert(format!("uat_{name}"), items(&judged, &control));
        results.insert((*name).to_owned(), result);
    }
    if comm.is_first() {
        files::write_atomic(&context.out_dir.join(TRIGGERS_FILE), csv.as_bytes())?;
    }
    record.metrics = json!({
        "seed": context.cell.key.seed,
        "model_name": subjects.model_name,
        "attack_config": config_of(params, &plan, &texts),
        "results": results,
    });
    record.environment = json!({"seconds": seconds, "duration_s": context.elapsed_s(), "ranks": comm.size()});
    record.numerics = attack_numerics(comm, params.threads_per_rank, params.grain_rows);
    Ok(record)
}

fn texts(context: &Context, params: &Params, subjects: &Subjects) -> Result<Texts, StageError> {
    let room = subjects.models.iter().map(|(_, m)| m.max_len()).min().unwrap_or(0);
    let longest = room.saturating_sub(params.trigger_length);
    if let Some(targets) = &params.target_texts {
        let mut opt = Vec::new();
        for (id, text) in targets.iter().enumerate() {
            let ids: Vec<i64> = subjects.tokenizer.encode(text, Special::None)?.into_iter().map(i64::from).collect();
            if !(2..=longest + 1).contains(&ids.len()) {
                return Err(StageError::Usage(format!(
                    "target text {} has {} tokens: give it between 2 and {}",
                    id + 1,
                    ids.len(),
                    longest + 1
                )));
            }
            opt.push(Text { id: id as u64, ids });
        }
        let length = opt.iter().map(|t| t.ids.len() - 1).max().unwrap_or(0);
        return Ok(Texts { eval: opt.clone(), opt, length });
    }
    let length = params.sample_tokens.unwrap_or(longest);
    if length == 0 || length > longest {
        return Err(StageError::Usage(format!(
            "texts of {length} tokens and a trigger of {} do not fit the {room} positions of a model: lower `sample_tokens` or `trigger_length`",
            params.trigger_length
        )));
    }
    let samples = Samples::new(subjects.test.clone(), length, Packing::Stream)?;
    let mut opt = draw_texts(&samples, params.num_samples, context.seed())?;
    let split = ((opt.len() as f64 * params.opt_fraction).round() as usize).clamp(1, opt.len() - 1);
    let eval = opt.split_off(split);
    Ok(Texts { opt, eval, length })
}

fn plan(
    context: &Context,
    params: &Params,
    subjects: &Subjects,
    survival: Survival<'_>,
    scope: Scope,
) -> Result<Plan, StageError> {
    let allowed = allowed_ids(&subjects.train.counts(), &subjects.tokenizer.special_ids());
    let allowed = survival.alone(allowed)?;
    let seed = context.seed();
    Ok(Plan {
        length: params.trigger_length,
        search: match params.search.as_str() {
            "random" => Search::Random,
            "gradient" => Search::Gradient,
            "gradient_by_sweep" => Search::GradientBySweep,
            _ => return Err(unknown("search")),
        },
        objective: if params.objective == "targeted" { Objective::Lower } else { Objective::Raise },
        restarts: (0..params.num_restarts).collect(),
        iterations: params.num_iterations,
        candidates: params.candidates_per_position,
        beam: params.beam,
        pool: pool(&allowed, params.num_candidates, seed),
        allowed,
        scope,
        pruning: if params.pruning { Pruning::On } else { Pruning::Off },
        seed,
    })
}

fn config_of(params: &Params, plan: &Plan, texts: &Texts) -> Value {
    json!({
        "trigger_length": plan.length,
        "num_iterations": plan.iterations,
        "num_restarts": plan.restarts.len(),
        "num_opt_samples": texts.opt.len(),
        "num_eval_samples": texts.eval.len(),
        "search": params.search,
        "objective": params.objective,
        "num_candidates": plan.pool.len(),
        "candidates_per_position": plan.candidates,
        "beam": plan.beam,
        "sample_tokens": texts.length,
        "surviving": params.surviving,
        "allowed_ids": plan.allowed.len(),
        "loss_scope": params.loss_scope,
        "success_metric": params.success_metric,
        "success_threshold": params.success_threshold,
        "success_threshold_nats": params.success_threshold_nats,
    })
}

/// How results are told.
struct Report<'a> {
    subjects: &'a Subjects,
    headline: &'a Headline,
    objective: Objective,
}

impl Report<'_> {
    /// What a trigger does.
    fn of(&self, trigger: &[i64], judged: &Judgement) -> Result<Value, StageError> {
        let headline = self.headline;
        let pair = judged.pair(headline.scope);
        let increase = pair.attacked - pair.clean;
        let percent =
            if pair.clean > 0.0 { Ok(100.0 * increase / pair.clean) } else { Err(stats::Degenerate::OutOfRange) };
        // Success is a rise: a search for a fall has none, and is judged by its losses.
        let rate = (self.objective == Objective::Raise)
            .then(|| headline.thresholds.rate(headline.metric, scoped(judged).pairs(headline.scope)));
        // Ids come from the vocabulary, which is far below 2^32.
        let ids: Vec<u32> = trigger.iter().map(|&id| id as u32).collect();
        Ok(json!({
            "trigger_text": self.subjects.tokenizer.decode(&ids)?.replace('\0', "\u{fffd}"),
            "trigger_ids": trigger,
            "clean_loss": pair.clean,
            "attacked_loss": pair.attacked,
            "nll_increase": increase,
            "nll_increase_percent": or_null(percent),
            "success_rate": rate,
            "scopes": scoped(judged).summary(&headline.thresholds),
        }))
    }
}

fn scoped(judged: &Judgement) -> Scoped {
    let pairs = |scope| judged.texts.iter().map(|t| t.pair(scope)).collect();
    Scoped { all: pairs(Scope::All), untouched: pairs(Scope::UntouchedTargets) }
}

fn of_restart(restart: &Restart) -> Value {
    json!({
        "seed": restart.seed,
        "first_loss": restart.first.loss,
        "final_loss": restart.loss(),
        "sweeps": restart.sweep_losses.len(),
        "evaluations": restart.evaluations,
        "gradients": restart.gradients,
        "trigger_ids": restart.trigger(),
    })
}

fn series_of(restart: &Restart) -> Vec<SeriesPoint> {
    let losses = std::iter::once(&restart.first.loss).chain(&restart.sweep_losses);
    losses.enumerate().map(|(step, &value)| SeriesPoint { step: step as u64, value, time_s: 0.0 }).collect()
}

fn items(judged: &Judgement, control: &Judgement) -> Items {
    let floats = |of: &Judgement, value: fn(&Judged) -> f64| Column::Floats(of.texts.iter().map(value).collect());
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
