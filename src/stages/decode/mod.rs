//! Stage kind `decode`: texts that models generate greedily, and the answers in them.
//!
//! A task file says how prompts are made of items and what an answer is ([`crate::compute::generate::task`]). Writes a
//! JSON line for each item and model below `generations/`, and exports `generation_results.json`: invalid texts, right
//! answers, and how much of the answers is one and the same. Every rank generates a part; rank 0 writes.

use serde_json::Value;

use super::subjects::{BATCH_SIZE, GRAIN_ROWS, MODELS, THREADS, check_models};
use super::{Field, FieldType, Preset, Role, Spec};
use crate::record::generation::GENERATIONS_DIR;

#[cfg(feature = "compute")]
mod run;

#[cfg(feature = "compute")]
pub use run::run;

const fn count(name: &'static str, min: i64, max: i64, preset: Preset, role: Role, help: &'static str) -> Field {
    Field { name, ty: FieldType::Integer { min, max }, preset, role, help }
}

const fn choice(name: &'static str, words: &'static [&'static str], preset: &'static str, help: &'static str) -> Field {
    Field { name, ty: FieldType::OneOf(words), preset: Preset::Is(preset), role: Role::Semantic, help }
}

const fn file(name: &'static str, preset: Preset, help: &'static str) -> Field {
    Field { name, ty: FieldType::Path, preset, role: Role::Semantic, help }
}

use Preset::{Absent, Is, Required};
use Role::{Operational, Semantic};

/// The kind. Not `generate`: that is a subcommand, which writes scripts.
pub static SPEC: Spec = Spec {
    kind: "decode",
    version: 1,
    binary: "seedbed-decode",
    resumable: false,
    parallel: true,
    partial_inputs: false,
    needs: &["setup"],
    outputs: &[GENERATIONS_DIR],
    export: Some("generation_results.json"),
    help: "texts that models generate greedily, and the answers in them",
    fields: &[
        MODELS,
        file("task", Required, "how prompts are made, where texts end, what an answer is: a TOML file"),
        file("items", Required, "what is asked: JSON lines"),
        file("shots", Absent, "where examples before every prompt are drawn from: JSON lines"),
        count("num_shots", 0, 1000, Is("0"), Semantic, "examples before every prompt, the same for all"),
        count("shots_seed", 0, u32::MAX as i64, Is("42"), Semantic, "seed of the draw of examples"),
        count("max_items", 1, 1 << 40, Absent, Semantic, "items, at most; absent: all"),
        count("max_new_tokens", 1, 1 << 20, Is("256"), Semantic, "tokens of a text, at most"),
        choice("mask", &["causal", "prefix"], r#""causal""#, "prefix: tokens of a prompt see all of it"),
        choice(
            "special_tokens",
            &["default", "none"],
            r#""default""#,
            "whether the tokenizer adds its special tokens to prompts, and reads their spellings",
        ),
        choice("device", &["cpu", "cuda"], r#""cpu""#, "what computes; cuda: a GPU for each rank, by libtorch"),
        choice("precision", &["fp32", "bf16"], r#""fp32""#, "type of weights and activations"),
        GRAIN_ROWS,
        BATCH_SIZE,
        THREADS,
        count("collective_timeout_s", 1, 86_400, Is("600"), Operational, "longest wait for another rank, seconds"),
    ],
    check,
};

fn check(params: &Value) -> Vec<String> {
    let mut problems = check_models(params);
    let shots = params.get("num_shots").and_then(Value::as_u64).unwrap_or(0);
    match (shots > 0, params.get("shots").is_some_and(|v| !v.is_null())) {
        (true, false) => problems.push(format!("`num_shots` = {shots} needs `shots`, a file of examples: name it")),
        (false, true) => problems.push("`shots` is read with `num_shots` only: say how many examples".to_owned()),
        _ => {}
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shots_and_their_number_go_together() {
        let models = json!({"a": "train"});
        for (params, problems) in [
            (json!({"models": models}), 0),
            (json!({"models": models, "num_shots": 8, "shots": "train.jsonl"}), 0),
            (json!({"models": models, "num_shots": 8}), 1),
            (json!({"models": models, "num_shots": 0, "shots": "train.jsonl"}), 1),
            (json!({"models": {}}), 1),
        ] {
            assert_eq!(check(&params).len(), problems, "{params}");
        }
    }
}
