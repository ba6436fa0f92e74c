//! Stage kind `train`: data-parallel training with exact resume.
//!
//! The model comes from the needed `train` stage if there is one, else from `apply_monotonicity` (its constraint with
//! it), else from `setup`; the tokens come from `setup`, or from instructions that this stage reads. Writes `best_model/` (our format: V stays) and the history under
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

/// What the study need not say, and then is as `help` says.
const fn absent(name: &'static str, ty: FieldType, help: &'static str) -> Field {
    Field { name, ty, preset: Preset::Absent, role: Role::Semantic, help }
}

const fn switch(name: &'static str, preset: &'static str, role: Role, help: &'static str) -> Field {
    Field { name, ty: FieldType::Bool, preset: Preset::Is(preset), role, help }
}

use Preset::{Absent, Is};
use Role::{Operational, Semantic};

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "train",
    version: 3,
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
        absent(
            "optimizer",
            FieldType::OneOf(OPTIMIZERS),
            "who updates: adamw, or adafactor without relative steps and scaled parameters; absent: adamw",
        ),
        absent(
            "bf16_pure",
            FieldType::Bool,
            "bf16 weights without fp32 masters, as some finetune (adafactor only); absent: false",
        ),
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
        absent(
            "data",
            FieldType::OneOf(DATA),
            "what is read: setup's tokens, or instructions as JSON lines; absent: tokens",
        ),
        absent(
            "instruction_file",
            FieldType::Path,
            "JSON lines with instruction, input (optional) and output, to train on",
        ),
        absent("instruction_eval_file", FieldType::Path, "the same, for validation; absent: a part of the others"),
        absent(
            "instructions_from",
            FieldType::NeedMap,
            "directory among the outputs = needed stage: its train.jsonl, and its eval.jsonl if there is one",
        ),
        absent(
            "instruction_eval_fraction",
            FieldType::Number { min: 1e-6, max: 0.5 },
            "part of the instructions that validate where no other do; absent: 0.02",
        ),
        absent(
            "train_samples",
            FieldType::Integer { min: 1, max: 1 << 40 },
            "instructions that are trained on, at most; absent: all",
        ),
        absent(
            "eval_samples",
            FieldType::Integer { min: 1, max: 1 << 40 },
            "instructions that validate, at most; absent: all",
        ),
        choice("packing", PACKINGS, r#""stream""#, "how documents become samples"),
        switch("reset_attention", "false", Semantic, "whether attention stays inside a document of a sample"),
        switch("reset_positions", "false", Semantic, "whether positions count from each document's beginning"),
        choice("objective", OBJECTIVES, r#""causal""#, "what is predicted: all text, or responses to prompts"),
        absent(
            "mask",
            FieldType::OneOf(MASKS),
            "who sees whom in training; absent: causal, or prefix with objective = \"prefix\"",
        ),
        absent("validation_mask", FieldType::OneOf(MASKS), "who sees whom in validation; absent: as in training"),
        absent("allow_leak", FieldType::Bool, "train although the mask shows what is to be predicted; absent: false"),
        absent(
            "keep",
            FieldType::OneOf(KEEPS),
            "the weights in best_model: of the best validation, or after the last step; absent: best",
        ),
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
            "from this step on the training loss must have fallen, or the run is stopped; absent: not asked",
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
            "before this step a training loss that falls too far is flagged, as labels may leak; absent: not asked",
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
const MASKS: &[&str] = &["causal", "prefix", "full"];
const OPTIMIZERS: &[&str] = &["adamw", "adafactor"];
const KEEPS: &[&str] = &["best", "last"];
const DATA: &[&str] = &["tokens", "instructions"];

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
    if matches!((word("objective"), word("packing")), ("response" | "prefix", "stream")) {
        problems.push(
            "`packing` = \"stream\" cuts prompts from their responses: set it to \"document\" or \"best_fit\""
                .to_owned(),
        );
    }
    check_masks(params, &mut problems);
    check_data(params, &mut problems);
    if params.get("bf16_pure").and_then(Value::as_bool) == Some(true)
        && (word("optimizer") != "adafactor" || word("precision") != "bf16")
    {
        problems.push(
            "`bf16_pure` = true is for `optimizer` = \"adafactor\" and `precision` = \"bf16\": set both, or leave it out"
                .to_owned(),
        );
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

/// Masks: what a prompt is needed for, and what would show a label.
fn check_masks(params: &Value, problems: &mut Vec<String>) {
    let word = |name: &str| params.get(name).and_then(Value::as_str);
    let objective = word("objective").unwrap_or("causal");
    let own = if objective == "prefix" { "prefix" } else { "causal" };
    let mask = word("mask").unwrap_or(own);
    let validation = word("validation_mask").unwrap_or(mask);
    if objective == "prefix" && mask != "prefix" {
        problems.push(format!(
            "`objective` = \"prefix\" has a prefix mask, and `mask` is \"{mask}\": set `objective` to \"response\""
        ));
    }
    let packing = word("packing").unwrap_or("document");
    let named = [("mask", mask), ("validation_mask", validation)];
    let asked = named.into_iter().take(if word("validation_mask").is_some() { 2 } else { 1 });
    let may_leak = params.get("allow_leak").and_then(Value::as_bool) == Some(true);
    for (name, mask) in asked {
        // A validation reads documents where training reads a stream.
        let cuts = packing == "best_fit" || packing == "stream" && name == "mask" && objective == "causal";
        if mask == "prefix" && cuts {
            let key = if objective == "prefix" && name == "mask" { "objective" } else { name };
            problems.push(format!("`{key}` = \"prefix\" has one prompt a sample: set `packing` to \"document\""));
        }
        let leaks = mask == "full" || mask == "prefix" && objective == "causal";
        if leaks && !may_leak {
            let labels = if objective == "causal" { "of prompts, too, are" } else { "are" };
            problems.push(format!(
                "`{name}` = \"{mask}\" shows tokens that {labels} to be predicted: choose another, or set `allow_leak` to true if that is the point"
            ));
        }
    }
}

/// Where instructions come from.
fn check_data(params: &Value, problems: &mut Vec<String>) {
    let given = |name: &str| params.get(name).is_some();
    let is_instructions = params.get("data").and_then(Value::as_str) == Some("instructions");
    if !is_instructions {
        const OF_INSTRUCTIONS: [&str; 6] = [
            "instruction_file",
            "instruction_eval_file",
            "instructions_from",
            "instruction_eval_fraction",
            "train_samples",
            "eval_samples",
        ];
        for name in OF_INSTRUCTIONS.into_iter().filter(|name| given(name)) {
            problems.push(format!("`{name}` is for `data` = \"instructions\": set that, or leave it out"));
        }
        return;
    }
    if given("instruction_file") == given("instructions_from") {
        problems.push(
            "`data` = \"instructions\" needs `instruction_file` or `instructions_from`: give one of them".to_owned(),
        );
    }
    if given("instruction_eval_file") && given("instructions_from") {
        problems.push(
            "`instruction_eval_file` goes with `instruction_file`: `instructions_from` finds its own eval.jsonl"
                .to_owned(),
        );
    }
    if given("instruction_eval_file") && given("instruction_eval_fraction") {
        problems
            .push("`instruction_eval_fraction` means nothing with `instruction_eval_file`: leave one out".to_owned());
    }
    if params.get("instructions_from").and_then(Value::as_object).is_some_and(|map| map.len() != 1) {
        problems.push("`instructions_from` names one directory: `{sft = \"world\"}`".to_owned());
    }
    if params.get("objective").and_then(Value::as_str).is_none_or(|objective| objective == "causal") {
        problems.push(
            "`data` = \"instructions\" predicts responses only: set `objective` to \"response\" and `packing` to \"document\" or \"best_fit\""
                .to_owned(),
        );
    }
}

#[cfg(feature = "compute")]
pub use task::run;

#[cfg(feature = "compute")]
mod data;
#[cfg(feature = "compute")]
mod task;

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

    #[test]
    fn what_leaks_or_is_not_said_is_a_problem() {
        let sft =
            json!({"data": "instructions", "instruction_file": "x", "objective": "response", "packing": "document"});
        let with = |more: Value| {
            let mut params = sft.clone();
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            params.as_object_mut().unwrap().retain(|_, value| !value.is_null());
            check(&params)
        };
        for fine in [
            json!({}),
            json!({"mask": "prefix"}),
            json!({"objective": "prefix"}),
            json!({"objective": "prefix", "mask": "prefix"}),
            json!({"mask": "full", "allow_leak": true, "validation_mask": "causal"}),
            json!({"packing": "best_fit", "mask": "full", "allow_leak": true}),
            json!({"instruction_file": null, "instructions_from": {"sft": "world"}}),
            json!({"optimizer": "adafactor", "bf16_pure": true, "precision": "bf16"}),
            json!({"instruction_eval_fraction": 0.1, "train_samples": 5, "eval_samples": 5}),
        ] {
            assert_eq!(with(fine.clone()), Vec::<String>::new(), "{fine}");
        }
        for (more, named) in [
            (json!({"mask": "full"}), "`mask` = \"full\" shows tokens"),
            (json!({"validation_mask": "full"}), "`validation_mask` = \"full\" shows tokens"),
            (json!({"objective": "prefix", "mask": "causal"}), "set `objective` to \"response\""),
            (json!({"mask": "prefix", "packing": "best_fit"}), "`mask` = \"prefix\" has one prompt"),
            (json!({"objective": "prefix", "packing": "best_fit"}), "`objective` = \"prefix\" has one prompt"),
            (json!({"objective": "causal"}), "responses only"),
            (json!({"data": null, "instruction_file": null, "train_samples": 5}), "`train_samples` is for `data`"),
            (json!({"data": "tokens"}), "`instruction_file` is for `data`"),
            (json!({"instruction_file": null}), "give one of them"),
            (json!({"instructions_from": {"sft": "world"}}), "give one of them"),
            (json!({"instruction_file": null, "instructions_from": {"a": "b", "c": "d"}}), "one directory"),
            (json!({"instruction_eval_file": "y", "instruction_eval_fraction": 0.1}), "leave one out"),
            (json!({"bf16_pure": true, "precision": "bf16"}), "`bf16_pure`"),
            (json!({"bf16_pure": true, "optimizer": "adafactor"}), "`bf16_pure`"),
        ] {
            let problems = with(more.clone());
            assert!(problems.len() == 1 && problems[0].contains(named), "{more}: {problems:?}");
        }
        // Plain text under a prefix mask predicts the prompt as well.
        let plain = json!({"mask": "prefix", "packing": "document", "objective": "causal"});
        assert!(check(&plain)[0].contains("of prompts, too"), "{:?}", check(&plain));
    }

    #[cfg(feature = "compute")]
    #[test]
    fn words_are_those_of_the_trainer() {
        use crate::compute::data::{LastBatch, Objective, Packing, Reading};
        use crate::compute::model::Mask;
        use crate::compute::train::Shape;

        assert_eq!(MASKS, Mask::WORDS);
        assert!(MASKS.iter().all(|w| Mask::parse(w).is_some_and(|mask| mask.word() == *w)));
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
                for mask in MASKS.iter().filter(|_| *objective != "prefix") {
                    let reading = Reading { mask: Mask::parse(mask).unwrap(), ..reading };
                    let params = json!({"packing": packing, "objective": objective, "mask": mask, "allow_leak": true});
                    let problems = check(&params);
                    assert_eq!(problems.is_empty(), reading.check().is_ok(), "{params}: {problems:?}");
                }
            }
        }
    }
}
