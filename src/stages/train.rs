//! Stage kind `train`: data-parallel training with exact resume.
//!
//! The model comes from the needed `apply_monotonicity` stage if there is one (its constraint with it), else from
//! `setup`; the tokens come from `setup`. Writes `best_model/` (our format: V stays) and the history under
//! `history_file`; the series of every step go into `run.h5`. Every rank runs it; rank 0 writes.

use serde_json::Value;

use super::{Field, FieldType, Preset, Role, Spec};

const fn count(name: &'static str, min: i64, max: i64, preset: Preset, role: Role, help: &'static str) -> Field {
    Field { name, ty: FieldType::Integer { min, max }, preset, role, help }
}

const fn number(name: &'static str, min: f64, max: f64, preset: &'static str, help: &'static str) -> Field {
    Field { name, ty: FieldType::Number { min, max }, preset: Preset::Is(preset), role: Role::Semantic, help }
}

const fn choice(name: &'static str, words: &'static [&'static str], preset: &'static str, help: &'static str) -> Field {
    Field { name, ty: FieldType::OneOf(words), preset: Preset::Is(preset), role: Role::Semantic, help }
}

const fn switch(name: &'static str, preset: &'static str, role: Role, help: &'static str) -> Field {
    Field { name, ty: FieldType::Bool, preset: Preset::Is(preset), role, help }
}

use Preset::{Absent, Is};
use Role::{Operational, Semantic};

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "train",
    version: 2,
    binary: "seedbed-train",
    resumable: true,
    parallel: true,
    partial_inputs: false,
    needs: &["setup"],
    outputs: &["best_model"],
    export: None,
    help: "data-parallel training with checkpoints and exact resume",
    fields: &[
        count("epochs", 1, 100_000, Is("1"), Semantic, "passes over the training split"),
        count("max_steps", 1, 1 << 40, Absent, Semantic, "optimizer steps in all, in place of epochs"),
        number("lr", 0.0, 10.0, "1e-5", "highest learning rate"),
        number("min_lr", 0.0, 10.0, "0.0", "lowest learning rate after the warmup"),
        choice("schedule", SCHEDULES, r#""linear""#, "course of the learning rate"),
        number("warmup_ratio", 0.0, 1.0, "0.1", "part of all steps that warm up"),
        count("warmup_steps", 0, 1 << 40, Absent, Semantic, "steps of warmup, in place of warmup_ratio"),
        number("weight_decay", 0.0, 10.0, "0.01", "decoupled weight decay; norms and biases never decay"),
        switch("decay_constrained", "false", Semantic, "whether V of constrained weights decays (towards W = ln 2)"),
        number("lr_constrained_multiplier", 0.0, 1e4, "1.0", "factor on the learning rate of V"),
        number("beta1", 0.0, 0.999_999, "0.9", "decay of AdamW's first moment"),
        number("beta2", 0.0, 0.999_999, "0.999", "decay of AdamW's second moment"),
        number("adam_eps", 1e-20, 1.0, "1e-8", "added to the root of the second moment"),
        number("max_grad_norm", 0.0, 1e9, "1.0", "clip of the mean gradient's norm; 0: none"),
        count("global_batch", 1, 1 << 24, Is("32"), Semantic, "samples of one optimizer step, over all ranks"),
        count(
            "grain_samples",
            1,
            1 << 16,
            Is("4"),
            Semantic,
            "samples of one forward and backward; divides global_batch",
        ),
        count("lanes", 1, 1 << 16, Absent, Semantic, "sums that are kept apart: a power of two; ranks must divide it"),
        count("seq_len", 1, 1 << 20, Absent, Semantic, "tokens of a sample; absent: the model's context"),
        choice("packing", PACKINGS, r#""stream""#, "how documents become samples"),
        switch("reset_attention", "false", Semantic, "whether attention stays inside a document of a sample"),
        switch("reset_positions", "false", Semantic, "whether positions count from each document's beginning"),
        choice("objective", OBJECTIVES, r#""causal""#, "what is predicted: all text, or responses to prompts"),
        choice("last_batch", LAST_BATCHES, r#""drop""#, "what becomes of an epoch's last batch that is not full"),
        count("val_interval_steps", 1, 1 << 40, Absent, Semantic, "steps between validations; absent: once an epoch"),
        count("val_samples", 1, 1 << 40, Absent, Semantic, "validation windows, at most; absent: all"),
        count(
            "stop_after_skips",
            1,
            1 << 20,
            Is("10"),
            Semantic,
            "steps in a row without a finite gradient that end the run",
        ),
        count(
            "stop_no_signal_step",
            20,
            1 << 40,
            Absent,
            Semantic,
            "by this step the training loss must have fallen, or the run is stopped; absent: not asked",
        ),
        Field {
            name: "stop_no_signal_nats",
            ty: FieldType::Number { min: 1e-9, max: 1e3 },
            preset: Absent,
            role: Semantic,
            help: "nats a token by which it must have fallen; absent: 0.08",
        },
        count(
            "stop_worse_validations",
            1,
            1 << 20,
            Absent,
            Semantic,
            "validations in a row, each worse than the one before, that stop the run; absent: not asked",
        ),
        count(
            "flag_collapse_step",
            20,
            1 << 40,
            Absent,
            Semantic,
            "up to this step a training loss that falls too far is flagged, as labels may leak; absent: not asked",
        ),
        Field {
            name: "flag_collapse_ratio",
            ty: FieldType::Number { min: 1e-9, max: 1.0 },
            preset: Absent,
            role: Semantic,
            help: "part of the first training loss below which that is; absent: 0.5",
        },
        count("threads_per_rank", 1, 256, Is("1"), Semantic, "threads of libtorch's kernels in each rank"),
        Field {
            name: "history_file",
            ty: FieldType::Text,
            preset: Is(r#""training_history.json""#),
            role: Semantic,
            help: "name of the history: baseline_training_history.json, ...",
        },
        count(
            "checkpoint_interval_steps",
            0,
            1 << 40,
            Is("500"),
            Operational,
            "steps between checkpoints; 0: only the best and at a stop",
        ),
        count("keep_last", 1, 1000, Is("2"), Operational, "checkpoints that stay, besides the best"),
        count(
            "keep_every_steps",
            0,
            1 << 40,
            Is("0"),
            Operational,
            "checkpoints at multiples of this stay for good; 0: none",
        ),
        count("log_interval_steps", 1, 1 << 40, Is("10"), Operational, "steps between log lines"),
        count("collective_timeout_s", 1, 86_400, Is("600"), Operational, "longest wait for another rank, seconds"),
        switch("strict", "false", Operational, "refuse to resume where bits may differ"),
        choice("device", &["cpu", "cuda"], r#""cpu""#, "what computes; cuda: a GPU for each rank, by libtorch"),
        choice(
            "engine",
            &["auto", "native", "libtorch"],
            r#""auto""#,
            "who runs the passes; auto: native for fp32 on the CPU",
        ),
        choice("gemm", &["builtin", "mkl", "onednn"], r#""builtin""#, "who multiplies matrices in the native engine"),
        choice(
            "precision",
            &["fp32", "bf16"],
            r#""fp32""#,
            "type of weights and activations; sums and moments are fp32",
        ),
        choice(
            "wire",
            &["fp32", "bf16"],
            r#""fp32""#,
            "gradients between ranks; bf16: half the bytes, other bits on other numbers of ranks",
        ),
        number(
            "dropout",
            0.0,
            0.99,
            "0.0",
            "of embeddings, attention weights, and outputs of attention and feed-forward",
        ),
        switch(
            "activation_checkpointing",
            "false",
            Operational,
            "compute activations again in the backward: less memory, same bits",
        ),
        count("prefetch", 0, 4096, Is("4"), Operational, "grains that a thread prepares ahead of time; 0: none"),
        switch("overlap", "true", Operational, "send gradients and weights while the passes go on"),
        switch("exact", "true", Operational, "refuse a number of ranks that cannot give the same bits"),
    ],
    check,
};

/// As `WORDS` of `Shape`, `Packing`, `Objective` and `LastBatch` in `compute`; a test keeps them together.
const SCHEDULES: &[&str] = &["constant", "linear", "cosine", "neox-v1", "neox-v2"];
const PACKINGS: &[&str] = &["stream", "document", "best_fit"];
const OBJECTIVES: &[&str] = &["causal", "response", "prefix"];
const LAST_BATCHES: &[&str] = &["drop", "pad"];

fn check(params: &Value) -> Vec<String> {
    let integer = |name: &str| params.get(name).and_then(Value::as_u64);
    let mut problems = Vec::new();
    if let (Some(batch), Some(grain)) = (integer("global_batch"), integer("grain_samples")) {
        if grain == 0 || batch % grain != 0 {
            problems.push(format!("`grain_samples` = {grain} does not divide `global_batch` = {batch}"));
        } else if let Some(lanes) = integer("lanes") {
            let largest = 1u64 << (batch / grain).trailing_zeros();
            if !lanes.is_power_of_two() || lanes > largest {
                problems.push(format!(
                    "`lanes` = {lanes} is no power of two that divides the {} grains (global_batch / grain_samples): use at most {largest}",
                    batch / grain
                ));
            }
        }
    }
    let word = |name: &str| params.get(name).and_then(Value::as_str).unwrap_or("");
    if word("engine") == "native" {
        for (name, other) in [("device", "cuda"), ("precision", "bf16")] {
            if word(name) == other {
                problems.push(format!(
                    "`engine` = \"native\" computes in fp32 on the CPU only: set it to \"libtorch\" for `{name}` = \"{other}\""
                ));
            }
        }
    }
    match (word("objective"), word("packing")) {
        ("response" | "prefix", "stream") => problems.push(
            "`packing` = \"stream\" cuts prompts from their responses: set it to \"document\" or \"best_fit\""
                .to_owned(),
        ),
        ("prefix", "best_fit") => {
            problems.push("`objective` = \"prefix\" has one prompt a sample: set `packing` to \"document\"".to_owned())
        }
        _ => {}
    }
    if let (Some(warmup), Some(all)) = (integer("warmup_steps"), integer("max_steps")) {
        if warmup > all {
            problems.push(format!("`warmup_steps` = {warmup} is above `max_steps` = {all}"));
        }
    }
    if let (Some(by), Some(all)) = (integer("stop_no_signal_step"), integer("max_steps")) {
        if by > all {
            problems
                .push(format!("`stop_no_signal_step` = {by} is above `max_steps` = {all}: it would never be asked"));
        }
    }
    for (with, of) in [("stop_no_signal_nats", "stop_no_signal_step"), ("flag_collapse_ratio", "flag_collapse_step")] {
        if params.get(with).is_some() && params.get(of).is_none() {
            problems.push(format!("`{with}` means nothing without `{of}`: say both, or leave it out"));
        }
    }
    if let (Some(min), Some(max)) =
        (params.get("min_lr").and_then(Value::as_f64), params.get("lr").and_then(Value::as_f64))
    {
        if min > max {
            problems.push(format!("`min_lr` = {min} is above `lr` = {max}"));
        }
    }
    if let Some(name) = params.get("history_file").and_then(Value::as_str) {
        if crate::record::Name::new(name).is_err() || !name.ends_with(".json") {
            problems.push(format!("`history_file` = {name:?} is no file name that ends in .json"));
        }
    }
    problems
}

#[cfg(feature = "compute")]
pub use task::run;

#[cfg(feature = "compute")]
mod task {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Duration;

    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::super::{Context, StageError};
    use tch::{Device, Tensor};

    use crate::compute::ComputeError;
    use crate::compute::checkpoint::Checkpoint;
    use crate::compute::comm::{Comm, Wire};
    use crate::compute::data::{
        Course, LastBatch, Objective, Packing, Reading, Samples, Split, Tokens, TrainingGrains, ValidationGrains,
    };
    use crate::compute::gpu;
    use crate::compute::kernels::gemm::Backend;
    use crate::compute::model::{Model, Variant};
    use crate::compute::train::criteria::{COLLAPSE_RATIO, Collapse, Criteria, NoSignal, SIGNAL_NATS};
    use crate::compute::train::trace::Trace;
    use crate::compute::train::{
        AdamW, Choice, Decay, EngineName, Exact, Finished, Outcome, Overlap, Plan, Precision, Schedule, Settings,
        Shape, Strict, Surroundings, Trainee, Warmup, health, read_weights, train,
    };
    use crate::record::{RunRecord, files, progress};

    #[derive(Debug, Deserialize)]
    struct Params {
        epochs: u64,
        max_steps: Option<u64>,
        lr: f64,
        min_lr: f64,
        schedule: String,
        warmup_ratio: f64,
        warmup_steps: Option<u64>,
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
        packing: String,
        reset_attention: bool,
        reset_positions: bool,
        objective: String,
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

    fn run_on(
        context: &Context,
        params: &Params,
        comm: &Comm,
        device: Device,
    ) -> Result<Option<RunRecord>, StageError> {
        let source = source_dir(context)?;
        let model = Model::load(&source)?;
        let data = context.need_dir(context.need_of_kind("setup")?).join("data");
        let context_tokens = model.config().max_position_embeddings as u64;
        let seq_len = params.seq_len.unwrap_or(context_tokens);
        if seq_len > context_tokens {
            return Err(StageError::Usage(format!(
                "`seq_len` = {seq_len} is longer than the model's context of {context_tokens}: lower it"
            )));
        }
        let open = |split: Split, reading: Reading| -> Result<Arc<Samples>, StageError> {
            let tokens = Tokens::open(&data.join(split.name()))?;
            tokens.check_model(model.config().vocab_size)?;
            Ok(Arc::new(Samples::read(Arc::new(tokens), seq_len as usize, reading)?))
        };
        let reading = reading(params)?;
        let (train_set, validation) = (open(Split::Train, reading)?, open(Split::Validation, validated(reading))?);
        if comm.is_first() {
            eprintln!("{} samples of {seq_len} tokens, {:.1} % filling", train_set.len(), 100.0 * train_set.filling());
        }
        let course = Course {
            seed: context.seed(),
            global_batch: params.global_batch,
            grain_samples: params.grain_samples,
            last_batch: known("last_batch", &params.last_batch, LastBatch::parse)?,
        };
        let grains = Arc::new(TrainingGrains::new(train_set, course)?);
        let validation = ValidationGrains::new(validation, params.grain_samples, params.val_samples);
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
        let trainee = Trainee::of_model(&model, &choice(params), device)?;
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
                let record = record(context, params, &settings, &finished, models, steps_per_epoch, comm.size())?;
                files::write_json(&context.out_dir.join(&params.history_file), &record.tree())?;
                Ok(Some(record))
            }
        }
    }

    fn source_dir(context: &Context) -> Result<PathBuf, StageError> {
        if context.cell.needs.iter().any(|n| n.kind == "apply_monotonicity") {
            return Ok(context.need_dir(context.need_of_kind("apply_monotonicity")?).join("monotonic_initialized"));
        }
        Ok(context.need_dir(context.need_of_kind("setup")?).join("model"))
    }

    /// The value of a word, which the kind's fields have checked.
    fn known<T>(name: &str, word: &str, parse: fn(&str) -> Option<T>) -> Result<T, StageError> {
        parse(word)
            .ok_or_else(|| StageError::Usage(format!("`{name}` = {word:?} is not known: correct it in the study")))
    }

    fn reading(params: &Params) -> Result<Reading, StageError> {
        Ok(Reading {
            packing: known("packing", &params.packing, Packing::parse)?,
            objective: known("objective", &params.objective, Objective::parse)?,
            reset_attention: params.reset_attention,
            reset_positions: params.reset_positions,
        })
    }

    /// How the validation split is read for a model that is trained by `reading`: the same objective; packed where
    /// training packs whole documents; else one document a row, so that each is judged alone.
    fn validated(reading: Reading) -> Reading {
        match reading.packing {
            Packing::BestFit => reading,
            Packing::Stream | Packing::Document => Reading { packing: Packing::Document, ..reading },
        }
    }

    fn settings(
        context: &Context,
        params: &Params,
        device: Device,
        steps_per_epoch: u64,
    ) -> Result<Settings, StageError> {
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
            adamw: AdamW {
                beta1: params.beta1,
                beta2: params.beta2,
                eps: params.adam_eps,
                weight_decay: params.weight_decay,
                decay_constrained: if params.decay_constrained { Decay::Applied } else { Decay::Excluded },
                lr_constrained_multiplier: params.lr_constrained_multiplier,
            },
            max_grad_norm: params.max_grad_norm,
            val_interval_steps: params.val_interval_steps.unwrap_or(steps_per_epoch),
            prefetch: params.prefetch,
            checkpoint_interval_steps: params.checkpoint_interval_steps,
            log_interval_steps: params.log_interval_steps,
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
        models: Models<'_>,
        steps_per_epoch: u64,
        ranks: usize,
    ) -> Result<RunRecord, StageError> {
        let state = &finished.state;
        let list = |f: fn(&crate::compute::train::Validation) -> Value| -> Vec<Value> {
            state.validations.iter().map(f).collect()
        };
        let mut record = RunRecord::new(&context.cell);
        record.metrics = json!({
            "seed": context.cell.key.seed,
            "train_losses": list(|v| json!(v.train_loss)),
            "val_perplexities": list(|v| json!(v.perplexity)),
            "val_losses": list(|v| json!(v.loss)),
            "validation_steps": list(|v| json!(v.step)),
            "best_val_perplexity": state.best.as_ref().map(|b| b.perplexity),
            "best_step": state.best.as_ref().map(|b| b.step),
            "best_param_digest": models.best.param_digest(),
            "final_param_digest": models.last.param_digest(),
            "num_epochs": settings.schedule.steps.div_ceil(steps_per_epoch),
            "steps": state.step,
            "steps_per_epoch": steps_per_epoch,
            "updates": state.updates,
            "skipped_steps": state.skipped,
            "clipped_steps": state.clipped,
            "train_tokens": state.tokens,
            "num_parameters": models.last.num_parameters(),
            "hyperparameters": {
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
                "beta1": params.beta1,
                "beta2": params.beta2,
                "adam_eps": params.adam_eps,
                "decay_constrained": params.decay_constrained,
                "lr_constrained_multiplier": params.lr_constrained_multiplier,
            },
        });
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
        record.series = progress::series(&progress::read(&context.run_dir)?);
        record.param_digest = Some(models.last.param_digest());
        record.numerics = finished.numerics.clone();
        Ok(record)
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn batches_and_names_are_checked() {
        assert!(
            check(&json!({"global_batch": 24, "grain_samples": 3, "lanes": 8, "history_file": "h.json"})).is_empty()
        );
        for (params, named) in [
            (json!({"global_batch": 24, "grain_samples": 5}), "grain_samples"),
            (json!({"global_batch": 24, "grain_samples": 4, "lanes": 4}), "at most 2"),
            (json!({"lr": 1e-4, "min_lr": 1e-3}), "min_lr"),
            (json!({"history_file": "../x.json"}), "history_file"),
            (json!({"warmup_steps": 101, "max_steps": 100}), "warmup_steps"),
            (json!({"stop_no_signal_step": 101, "max_steps": 100}), "never be asked"),
            (json!({"stop_no_signal_nats": 0.1}), "stop_no_signal_step"),
            (json!({"flag_collapse_ratio": 0.1}), "flag_collapse_step"),
            (json!({"engine": "native", "device": "cuda"}), "device"),
            (json!({"engine": "native", "precision": "bf16"}), "precision"),
        ] {
            let problems = check(&params);
            assert!(problems.len() == 1 && problems[0].contains(named), "{problems:?}");
        }
    }

    #[cfg(feature = "compute")]
    #[test]
    fn words_are_those_of_the_trainer() {
        use crate::compute::data::{LastBatch, Objective, Packing, Reading};
        use crate::compute::train::Shape;

        assert_eq!(SCHEDULES, Shape::WORDS);
        assert_eq!(PACKINGS, Packing::WORDS);
        assert_eq!(OBJECTIVES, Objective::WORDS);
        assert_eq!(LAST_BATCHES, LastBatch::WORDS);
        assert!(SCHEDULES.iter().all(|w| Shape::parse(w).is_some()));
        assert!(LAST_BATCHES.iter().all(|w| LastBatch::parse(w).is_some()));
        for packing in PACKINGS {
            for objective in OBJECTIVES {
                let reading = Reading {
                    objective: Objective::parse(objective).unwrap(),
                    ..Reading::causal(Packing::parse(packing).unwrap())
                };
                let problems = check(&json!({"packing": packing, "objective": objective}));
                assert_eq!(problems.is_empty(), reading.check().is_ok(), "{packing} {objective}: {problems:?}");
            }
        }
    }
}
