//! Runs a training: parameters and sealed inputs to the trainer, what it found to the run record.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::stages::{Context, StageError};
use tch::{Device, Tensor};

use crate::compute::ComputeError;
use crate::compute::checkpoint::Checkpoint;
use crate::compute::comm::{Comm, Wire};
use crate::compute::data::{Course, LastBatch, Samples, TrainingGrains, ValidationGrains};
use crate::compute::gpu;
use crate::compute::kernels::gemm::Backend;
use crate::compute::model::{Mask, Model, Variant};
use crate::compute::train::criteria::{COLLAPSE_RATIO, Collapse, Criteria, NoSignal, SIGNAL_NATS};
use crate::compute::train::leakage::{self, Leak};
use crate::compute::train::trace::Trace;
use crate::compute::train::{
    Adafactor, AdamW, Choice, Decay, EngineName, Exact, Finished, Keep, Master, Optimizer, Outcome, Overlap, Plan,
    Precision, Schedule, Settings, Shape, Strict, Surroundings, Trainee, Warmup, health, read_weights, train,
};
use crate::record::{RunRecord, files, progress};

use super::data::Data;

#[derive(Debug, Deserialize)]
pub(super) struct Params {
    epochs: u64,
    max_steps: Option<u64>,
    lr: f64,
    min_lr: f64,
    schedule: String,
    warmup_ratio: f64,
    warmup_steps: Option<u64>,
    optimizer: Option<String>,
    bf16_pure: Option<bool>,
    weight_decay: f64,
    decay_constrained: bool,
    lr_constrained_multiplier: f64,
    beta1: f64,
    beta2: f64,
    adam_eps: f64,
    max_grad_norm: f64,
    global_batch: u64,
    grain_samples: u64,
    lanes: Option<u64>,
    seq_len: Option<u64>,
    pub(super) data: Option<String>,
    pub(super) instructions_from: Option<BTreeMap<String, String>>,
    pub(super) instruction_eval_fraction: Option<f64>,
    pub(super) train_samples: Option<u64>,
    pub(super) eval_samples: Option<u64>,
    pub(super) packing: String,
    pub(super) reset_attention: bool,
    pub(super) reset_positions: bool,
    pub(super) objective: String,
    pub(super) mask: Option<String>,
    pub(super) validation_mask: Option<String>,
    allow_leak: Option<bool>,
    keep: Option<KeepName>,
    last_batch: String,
    val_interval_steps: Option<u64>,
    val_samples: Option<u64>,
    stop_after_skips: u64,
    stop_no_signal_step: Option<u64>,
    stop_no_signal_nats: Option<f64>,
    stop_worse_validations: Option<u64>,
    flag_collapse_step: Option<u64>,
    flag_collapse_ratio: Option<f64>,
    threads_per_rank: u32,
    history_file: String,
    checkpoint_interval_steps: u64,
    keep_last: usize,
    keep_every_steps: u64,
    log_interval_steps: u64,
    collective_timeout_s: u64,
    strict: bool,
    overlap: bool,
    exact: bool,
    prefetch: usize,
    device: DeviceName,
    engine: EngineName,
    gemm: Backend,
    precision: Precision,
    activation_checkpointing: bool,
    dropout: f64,
    wire: String,
}

/// Which weights are left as `best_model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KeepName {
    Best,
    Last,
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DeviceName {
    Cpu,
    Cuda,
}

/// The ranks, and what this one computes on.
fn open(context: &Context, params: &Params) -> Result<(Comm, Device), StageError> {
    let deadline = Duration::from_secs(params.collective_timeout_s);
    if params.device == DeviceName::Cpu {
        return Ok((Comm::open(deadline)?, Device::Cpu));
    }
    gpu::load()?;
    let comm = Comm::open_on_gpus(deadline, &context.run_dir)?;
    let device = comm.gpu();
    Ok((comm, device))
}

/// Trains, on every rank; rank 0 writes.
///
/// # Errors
/// An input is missing or does not fit, the ranks cannot share the lanes, a rank is gone, or the run was asked
/// to stop ([`StageError::Resume`]).
pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
    let params: Params = context.params()?;
    let (comm, device) = open(context, &params)?;
    let result = run_on(context, &params, &comm, device);
    match &result {
        // All ranks end alike: they leave in order. After another error the launcher ends the others.
        Ok(_) | Err(StageError::Resume(_)) => comm.close()?,
        Err(StageError::Compute(ComputeError::Stopped(stop))) => {
            if comm.is_first() {
                context.leave_evidence(stop)?;
            }
            comm.close()?;
        }
        Err(_) => {}
    }
    result
}

fn run_on(context: &Context, params: &Params, comm: &Comm, device: Device) -> Result<Option<RunRecord>, StageError> {
    let source = source_dir(context)?;
    let model = Model::load(&source)?;
    let context_tokens = model.config().max_position_embeddings as u64;
    let seq_len = params.seq_len.unwrap_or(context_tokens);
    if seq_len > context_tokens {
        return Err(StageError::Usage(format!(
            "`seq_len` = {seq_len} is longer than the model's context of {context_tokens}: lower it"
        )));
    }
    let data = Data::open(context, params, &source, &model, seq_len as usize)?;
    if comm.is_first() {
        eprintln!("{}", data.words());
    }
    let course = Course {
        seed: context.seed(),
        global_batch: params.global_batch,
        grain_samples: params.grain_samples,
        last_batch: known("last_batch", &params.last_batch, LastBatch::parse)?,
    };
    let grains = Arc::new(TrainingGrains::new(Arc::clone(&data.train), course)?);
    let validation = ValidationGrains::new(Arc::clone(&data.validation), params.grain_samples, params.val_samples);
    let steps_per_epoch = grains.steps_per_epoch();
    let settings = settings(context, params, device, steps_per_epoch)?;
    let around = Surroundings {
        train: Arc::clone(&grains),
        validation: &validation,
        run_dir: &context.run_dir,
        checkpoint_dir: &context.checkpoint_dir,
        stop_requested: &|| context.stop_requested(),
        superseded: context.superseded(),
    };
    let mut model = model.padded_for(settings.plan.padding(comm.size()))?;
    report_threads(comm, params)?;
    let mut trainee = Trainee::of_model(&model, &choice(params), device)?;
    let guard = Guard::of(comm, params, &model, &mut trainee, &data)?;
    // What the trainee does not share is not needed while it trains.
    drop(model.take_flats());
    let outcome = train(comm, trainee, &settings, &around)?;
    if let Some(path) = &context.trace {
        settings.trace.write(comm, path)?;
    }
    match outcome {
        Outcome::Interrupted(step) => Err(StageError::Resume(step)),
        Outcome::Finished(_) if !comm.is_first() => Ok(None),
        Outcome::Finished(finished) => {
            model.put_flats(finished.last.iter().map(Tensor::shallow_clone).collect())?;
            let mut best = model.duplicate()?;
            if let Some(dir) = &finished.best {
                read_weights(best.flats_mut(), &Checkpoint::open(dir)?)?;
            }
            best.save(&context.out_dir.join("best_model"), Some(&source))?;
            let models = Models { last: &model, best: &best };
            let seen = Seen { data: &data, guard };
            let record = record(context, params, &settings, &finished, (models, seen), steps_per_epoch, comm.size())?;
            files::write_json(&context.out_dir.join(&params.history_file), &record.tree())?;
            Ok(Some(record))
        }
    }
}

/// Where the model lies that training begins from.
fn source_dir(context: &Context) -> Result<PathBuf, StageError> {
    for (kind, output) in [("train", "best_model"), ("apply_monotonicity", "monotonic_initialized")] {
        if context.cell.needs.iter().any(|n| n.kind == kind) {
            return Ok(context.need_dir(context.need_of_kind(kind)?).join(output));
        }
    }
    Ok(context.need_dir(context.need_of_kind("setup")?).join("model"))
}

/// The value of a word, which the kind's fields have checked.
pub(super) fn known<T>(name: &str, word: &str, parse: fn(&str) -> Option<T>) -> Result<T, StageError> {
    parse(word).ok_or_else(|| StageError::Usage(format!("`{name}` = {word:?} is not known: correct it in the study")))
}

/// What was found of labels that leak, with the weights that training begins from. A causal mask is not looked at.
#[derive(Debug, Clone, Copy)]
struct Guard {
    train: Option<leakage::Found>,
    /// `None` too where validation is read as training is.
    validation: Option<leakage::Found>,
}

impl Guard {
    /// All ranks come to one verdict.
    fn of(comm: &Comm, params: &Params, model: &Model, trainee: &mut Trainee, data: &Data) -> Result<Self, StageError> {
        let mut look = |samples: &Samples, key: &str| -> Result<leakage::Found, StageError> {
            let word = samples.reading().mask().word();
            // At most 2^24 blocks.
            let layers = model.config().num_hidden_layers as usize;
            let mut found = leakage::Found::of(&mut *trainee.passes, samples, layers)?;
            if comm.is_first() {
                eprintln!(
                    "{key} {word}: taken by {} of {layers} attention layers; without it every loss has the bits that it had before",
                    found.experience.patched_layers
                );
                eprintln!("{key} {word}: {}", found.words());
            }
            // On GPUs the ranks' losses may differ in their last bits: whoever sees a leak speaks for all.
            let of_any = comm.all_gather(&[u8::from(found.leaks())])?.concat().contains(&1);
            found.elsewhere = of_any && !found.leaks();
            found.judge(leak(params), key)?;
            Ok(found)
        };
        let read = |samples: &Samples| (samples.reading().mask(), samples.reading().packing);
        let [asked, again] = [&data.train, &data.validation].map(|samples| read(samples).0 != Mask::Causal);
        let again = again && read(&data.train) != read(&data.validation);
        let train = asked.then(|| look(&data.train, "mask")).transpose()?;
        let validation = again.then(|| look(&data.validation, "validation_mask")).transpose()?;
        Ok(Self { train, validation })
    }

    fn leaks(&self) -> bool {
        [self.train, self.validation].iter().flatten().any(leakage::Found::leaks)
    }

    /// How the masks were taken, as a result has it.
    fn patch(&self) -> Value {
        let of = |found: Option<leakage::Found>| {
            json!({
                "patched_layers": found.map_or(0, |found| found.experience.patched_layers),
                "restored": found.map(|found| found.experience.restored),
            })
        };
        let mut patch = of(self.train);
        patch["validation"] = self.validation.map_or(Value::Null, |found| of(Some(found)));
        patch
    }

    /// What leaks, as a result has it; null where nobody looked.
    fn tree(&self, leak: Leak) -> Value {
        let tree = |found: Option<leakage::Found>| found.map_or(Value::Null, |found| found.tree(leak));
        if self.train.is_none() && self.validation.is_none() {
            return Value::Null;
        }
        let mut whole = match tree(self.train) {
            Value::Null => json!({"structural": null, "empirical": null, "allowed": leak == Leak::Allowed}),
            tree => tree,
        };
        whole["validation"] = tree(self.validation);
        whole
    }
}

fn leak(params: &Params) -> Leak {
    if params.allow_leak == Some(true) { Leak::Allowed } else { Leak::Refused }
}

/// Who updates, with which numbers.
fn optimizer(params: &Params) -> Optimizer {
    let decay_constrained = if params.decay_constrained { Decay::Applied } else { Decay::Excluded };
    if params.optimizer.as_deref() == Some("adafactor") {
        return Optimizer::Adafactor(Adafactor {
            weight_decay: params.weight_decay,
            decay_constrained,
            lr_constrained_multiplier: params.lr_constrained_multiplier,
            master: if params.bf16_pure == Some(true) { Master::Absent } else { Master::Fp32 },
        });
    }
    Optimizer::AdamW(AdamW {
        beta1: params.beta1,
        beta2: params.beta2,
        eps: params.adam_eps,
        weight_decay: params.weight_decay,
        decay_constrained,
        lr_constrained_multiplier: params.lr_constrained_multiplier,
    })
}

fn settings(context: &Context, params: &Params, device: Device, steps_per_epoch: u64) -> Result<Settings, StageError> {
    let usage = StageError::Usage;
    let steps = params.max_steps.unwrap_or(params.epochs * steps_per_epoch);
    Ok(Settings {
        seed: context.seed(),
        plan: Plan::new(params.global_batch, params.grain_samples, params.lanes).map_err(usage)?,
        schedule: Schedule {
            shape: known("schedule", &params.schedule, Shape::parse)?,
            lr: params.lr,
            min_lr: params.min_lr,
            warmup: params.warmup_steps.map_or(Warmup::Ratio(params.warmup_ratio), Warmup::Steps),
            steps,
        },
        optimizer: optimizer(params),
        max_grad_norm: params.max_grad_norm,
        val_interval_steps: params.val_interval_steps.unwrap_or(steps_per_epoch),
        prefetch: params.prefetch,
        checkpoint_interval_steps: params.checkpoint_interval_steps,
        log_interval_steps: params.log_interval_steps,
        keep: match params.keep {
            None | Some(KeepName::Best) => Keep::Best,
            Some(KeepName::Last) => Keep::Last,
        },
        keep_last: params.keep_last,
        keep_every_steps: params.keep_every_steps,
        // Longer than the wait for a message: a rank that is gone is told by its silence there.
        patience: Duration::from_secs(2 * params.collective_timeout_s.max(60)),
        stop_after_skips: params.stop_after_skips,
        criteria: criteria(params, steps)?,
        threads_per_rank: params.threads_per_rank,
        overlap: if params.overlap { Overlap::Early } else { Overlap::Late },
        exact: if params.exact { Exact::Required } else { Exact::Waived },
        wire: if params.wire == "bf16" { Wire::Bf16 } else { Wire::Fp32 },
        trace: if context.trace.is_some() { Trace::on() } else { Trace::default() },
        peak_flops: health::peak(&choice(params), device)?,
        strict: if params.strict { Strict::Refuse } else { Strict::GoOn },
        fingerprint: context.cell.fingerprint.clone(),
        attempt: context.attempt,
    })
}

/// What stops or flags a run of so many steps.
fn criteria(params: &Params, steps: u64) -> Result<Criteria, StageError> {
    if let Some(by) = params.stop_no_signal_step.filter(|by| *by > steps) {
        return Err(StageError::Usage(format!(
            "`stop_no_signal_step` = {by} is behind the last step, {steps}: lower it"
        )));
    }
    let nats = params.stop_no_signal_nats.unwrap_or(SIGNAL_NATS);
    let ratio = params.flag_collapse_ratio.unwrap_or(COLLAPSE_RATIO);
    Ok(Criteria {
        no_signal: params.stop_no_signal_step.map(|by_step| NoSignal { by_step, nats }),
        worse_validations: params.stop_worse_validations,
        collapse: params.flag_collapse_step.map(|until_step| Collapse { until_step, ratio }),
    })
}

/// What a run leaves.
#[derive(Clone, Copy)]
struct Models<'a> {
    last: &'a Model,
    best: &'a Model,
}

/// What a run read.
#[derive(Clone, Copy)]
struct Seen<'a> {
    data: &'a Data,
    guard: Guard,
}

/// How the model is computed.
fn choice(params: &Params) -> Choice {
    Choice {
        engine: params.engine,
        gemm: params.gemm,
        precision: params.precision,
        activation_checkpointing: params.activation_checkpointing,
        dropout: params.dropout,
        threads: params.threads_per_rank as usize,
    }
}

/// Ranks, threads and processors, as they are: the launcher binds.
fn report_threads(comm: &Comm, params: &Params) -> Result<(), StageError> {
    let mine = format!("{:<64.64}", health::allowed_processors());
    let all = comm.all_gather(mine.as_bytes())?;
    if comm.is_first() {
        let cores: Vec<String> = all.iter().map(|c| String::from_utf8_lossy(c).trim().to_owned()).collect();
        eprintln!(
            "{} rank{} ({}), {} thread{} each, on processors {}",
            comm.size(),
            if comm.size() == 1 { "" } else { "s" },
            comm.transport(),
            params.threads_per_rank,
            if params.threads_per_rank == 1 { "" } else { "s" },
            cores.join(" | "),
        );
    }
    Ok(())
}

fn record(
    context: &Context,
    params: &Params,
    settings: &Settings,
    finished: &Finished,
    (models, seen): (Models<'_>, Seen<'_>),
    steps_per_epoch: u64,
    ranks: usize,
) -> Result<RunRecord, StageError> {
    let state = &finished.state;
    let list = |f: fn(&crate::compute::train::Validation) -> Value| -> Vec<Value> {
        state.validations.iter().map(f).collect()
    };
    // Where the last weights are kept no checkpoint knows the best.
    let lowest =
        || state.validations.iter().map(|v| (v.step, v.perplexity)).reduce(|a, b| if b.1 < a.1 { b } else { a });
    let best = state.best.as_ref().map(|b| (b.step, b.perplexity)).or_else(lowest);
    let mut record = RunRecord::new(&context.cell);
    record.series = progress::series(&progress::read(&context.run_dir)?);
    let losses = record.series.get("loss").map_or(&[][..], |points| points);
    let train_loss = losses.iter().map(|point| point.value).sum::<f64>() / losses.len() as f64;
    record.metrics = json!({
        "seed": context.cell.key.seed,
        "train_losses": list(|v| json!(v.train_loss)),
        "val_perplexities": list(|v| json!(v.perplexity)),
        "val_losses": list(|v| json!(v.loss)),
        "validation_steps": list(|v| json!(v.step)),
        "best_val_perplexity": best.map(|(_, perplexity)| perplexity),
        "best_step": best.map(|(step, _)| step),
        "best_param_digest": (settings.keep == Keep::Best).then(|| models.best.param_digest()),
        "final_param_digest": models.last.param_digest(),
        "num_epochs": settings.schedule.steps.div_ceil(steps_per_epoch),
        "steps": state.step,
        "steps_per_epoch": steps_per_epoch,
        "updates": state.updates,
        "skipped_steps": state.skipped,
        "clipped_steps": state.clipped,
        "train_tokens": state.tokens,
        "num_parameters": models.last.num_parameters(),
        "train_loss": train_loss,
        "eval_loss": state.validations.last().map(|v| v.loss),
        "hyperparameters": hyperparameters(params, settings),
    });
    let masks = [&seen.data.train, &seen.data.validation].map(|samples| samples.reading().mask().word());
    record.metrics["mask"] = json!({"train": masks[0], "validation": masks[1]});
    record.metrics["mask_patch"] = seen.guard.patch();
    record.metrics["leakage"] = seen.guard.tree(leak(params));
    record.metrics["leakage_suspected"] = json!(state.watch.collapsed.is_some() || seen.guard.leaks());
    record.metrics["data"] = seen.data.tree();
    if settings.criteria.collapse.is_some() {
        let collapsed = state.watch.collapsed;
        record.metrics["collapse"] = json!({
            "flagged": collapsed.is_some(),
            "step": collapsed.map(|c| c.step),
            "loss": collapsed.map(|c| c.loss),
            "first_loss": state.watch.first,
        });
        if let Some(collapsed) = collapsed {
            record.metrics["warnings"] = json!([collapsed.words()]);
        }
    }
    if let Some(variant) = models.last.variant() {
        record.metrics["constraint_info"] = constraint_info(models.last, variant, state.constrained_range)?;
    }
    let seconds = state.seconds;
    record.environment = json!({
        "training_time_seconds": seconds,
        "training_time_hours": seconds / 3600.0,
        "tokens_per_second": if seconds > 0.0 { state.tokens as f64 / seconds } else { 0.0 },
        "ranks": ranks,
    });
    record.param_digest = Some(models.last.param_digest());
    record.numerics = finished.numerics.clone();
    Ok(record)
}

/// What the study set, as results list it.
fn hyperparameters(params: &Params, settings: &Settings) -> Value {
    let is_adamw = matches!(settings.optimizer, Optimizer::AdamW(_));
    let of_adamw = |value: f64| is_adamw.then_some(value);
    json!({
        "learning_rate": params.lr,
        "min_learning_rate": params.min_lr,
        "weight_decay": params.weight_decay,
        "batch_size": params.global_batch,
        "grain_samples": params.grain_samples,
        "lanes": settings.plan.lanes,
        "warmup_ratio": params.warmup_ratio,
        "warmup_steps": params.warmup_steps,
        "max_grad_norm": params.max_grad_norm,
        "schedule": params.schedule,
        "packing": params.packing,
        "reset_attention": params.reset_attention,
        "reset_positions": params.reset_positions,
        "objective": params.objective,
        "last_batch": params.last_batch,
        "allow_leak": params.allow_leak.unwrap_or(false),
        "keep": if settings.keep == Keep::Last { "last" } else { "best" },
        "optimizer": if is_adamw { "adamw" } else { "adafactor" },
        "bf16_pure": params.bf16_pure.unwrap_or(false),
        "beta1": of_adamw(params.beta1),
        "beta2": of_adamw(params.beta2),
        "adam_eps": of_adamw(params.adam_eps),
        "decay_constrained": params.decay_constrained,
        "lr_constrained_multiplier": params.lr_constrained_multiplier,
    })
}

fn constraint_info(model: &Model, variant: Variant, range: Option<[f64; 2]>) -> Result<Value, StageError> {
    let check = model.check_constraint()?;
    Ok(json!({
        "type": variant.word(),
        "formula": variant.formula(),
        "scope": model.effective_weights()?.iter().map(|(s, _)| s.name.clone()).collect::<Vec<_>>(),
        "globally_monotonic": false,
        "tensors_checked": check.tensors,
        "weights_checked": check.weights,
        "min_weight": range.map_or(check.min, |r| r[0]),
        "max_weight": range.map_or(check.max, |r| r[1]),
        "all_weights_non_negative": check.negative.is_empty(),
    }))
}
