//! Scoring of choices as `scripts/bench/eval` measures it: one JSON configuration on stdin, a JSON line for each task.
//!
//! Reading the model and the items is timed apart. Before anything is timed a few questions of every task are scored.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::compute::ComputeError;
use crate::compute::comm::Comm;
use crate::compute::evaluate::Grain;
use crate::compute::evaluate::choice::encode::Pair;
use crate::compute::evaluate::choice::score::{Rows, score_as};
use crate::compute::model::libtorch::Base;
use crate::compute::model::{Mask, Model, Net, set_threads};
use crate::record::files;
use crate::stages::StageError;

/// Questions of each task that are scored before the clock runs.
const WARM_UP: usize = 4;

/// What both sides are told.
#[derive(Debug, Deserialize)]
struct Work {
    /// Directory of the weights.
    model: PathBuf,
    /// File of the items.
    items: PathBuf,
    threads_per_rank: u32,
    /// Questions of each task, from its first on; absent: all.
    questions: Option<usize>,
    #[serde(default)]
    ours: Own,
}

/// What this side chooses.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Own {
    /// `packed` or `apart`.
    rows: String,
    /// Rows of a pass.
    batch_size: usize,
}

impl Default for Own {
    fn default() -> Self {
        Self { rows: "packed".to_owned(), batch_size: 64 }
    }
}

#[derive(Debug, Deserialize)]
struct Items {
    tasks: Vec<Task>,
}

/// A task: questions of pairs of a context and a continuation, as ids.
#[derive(Debug, Deserialize)]
struct Task {
    questions: Vec<Vec<(Vec<u32>, Vec<u32>)>>,
}

/// Scores what stdin names, and gives `each` what is to be printed.
///
/// # Errors
/// The configuration, the model or the items cannot be read, or do not fit each other.
pub fn run(each: impl FnMut(Value)) -> Result<(), StageError> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(StageError::failed("reading the configuration from stdin"))?;
    run_configured(&text, each)
}

fn run_configured(text: &str, mut each: impl FnMut(Value)) -> Result<(), StageError> {
    let work: Work = serde_json::from_str(text)
        .map_err(|e| StageError::Usage(format!("stdin is no configuration of this bench: {e}")))?;
    let how = match work.ours.rows.as_str() {
        "packed" => Rows::Packed,
        "apart" => Rows::Apart,
        other => return Err(StageError::Usage(format!("`rows` = {other:?} is not known: use packed or apart"))),
    };
    let begun = Instant::now();
    set_threads(work.threads_per_rank);
    let net = Net::of(&Model::load(&work.model)?, Base::Frozen, tch::Kind::Float, tch::Device::Cpu)?;
    let loading_s = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let items: Items = files::read_json(&work.items)?;
    let pair = |(context, continuation): (Vec<u32>, Vec<u32>)| Pair { context, continuation };
    let tasks: Vec<Vec<Vec<Pair>>> = items
        .tasks
        .into_iter()
        .map(|task| {
            let some = task.questions.into_iter().take(work.questions.unwrap_or(usize::MAX));
            some.map(|question| question.into_iter().map(pair).collect()).collect()
        })
        .collect();
    each(json!({"loading_s": loading_s, "items_s": begun.elapsed().as_secs_f64()}));

    let grain = Grain::new(8, work.ours.batch_size)?;
    let score =
        |pairs: &[Pair]| Ok::<_, ComputeError>(score_as(&net, &Comm::Solo, pairs, (Mask::Causal, grain), how)?.scores);
    for task in &tasks {
        score(&task[..task.len().min(WARM_UP)].concat())?;
    }
    forget_peak();
    let mut all = Vec::new();
    for (number, task) in tasks.iter().enumerate() {
        let pairs = task.concat();
        let begun = Instant::now();
        let scores = score(&pairs)?;
        let seconds = begun.elapsed().as_secs_f64();
        let tokens: usize = scores.iter().map(|s| s.tokens).sum();
        let scores: Vec<f64> = scores.iter().map(|s| s.log_likelihood).collect();
        let loss = -scores.iter().sum::<f64>() / tokens as f64;
        each(json!({"step": number + 1, "loss": loss, "seconds": seconds}));
        all.push(scores);
    }
    each(json!({"scores": all, "peak_rss_bytes": peak_rss_bytes()}));
    Ok(())
}

/// Begins the peak of this process's memory anew, where the kernel lets it.
fn forget_peak() {
    // Without it the peak is that of loading, which is no less true.
    let _ = OpenOptions::new().write(true).open("/proc/self/clear_refs").and_then(|mut file| file.write_all(b"5"));
}

/// The largest resident set since then.
fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::model::{Family, ModelConfig, Sizes};

    #[test]
    fn every_task_is_scored_and_what_is_unknown_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let sizes = Sizes {
            hidden_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 24,
            vocab_size: 40,
            max_position_embeddings: 24,
        };
        let model = dir.path().join("model");
        let config = ModelConfig::new(Family::GptNeox, sizes);
        Model::random(&config, 5).unwrap().export_hf(&model, None, usize::MAX).unwrap();
        let items = dir.path().join("items.json");
        let question = json!([[[1, 2, 3], [4, 5]], [[1, 2, 3], [6]]]);
        files::write_json(&items, &json!({"tasks": [{"questions": [question, question]}, {"questions": [question]}]}))
            .unwrap();
        let ran = |changes: Value| {
            let mut work = json!({"model": model, "items": items, "threads_per_rank": 2});
            work.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            let mut lines = Vec::new();
            run_configured(&work.to_string(), |line| lines.push(line)).map(|()| lines).map_err(|e| e.to_string())
        };
        let packed = ran(json!({})).unwrap();
        assert_eq!((packed[1]["step"].clone(), packed[2]["step"].clone()), (json!(1), json!(2)));
        let scores = &packed[3]["scores"];
        assert_eq!((scores[0].as_array().unwrap().len(), scores[1].as_array().unwrap().len()), (4, 2));
        let total: f64 = scores[1].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).sum();
        assert!((packed[2]["loss"].as_f64().unwrap() + total / 3.0).abs() < 1e-12);
        assert!(packed[3]["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
        let apart = ran(json!({"ours": {"rows": "apart", "batch_size": 1}, "questions": 1})).unwrap();
        assert_eq!(apart[3]["scores"][1], scores[1]);
        assert_eq!(apart[3]["scores"][0].as_array().unwrap().len(), 2);
        for (changes, named) in [
            (json!({"ours": {"rows": "some"}}), "\"some\""),
            (json!({"ours": {"row": "packed"}}), "row"),
            (json!({"items": 3}), "no configuration"),
        ] {
            let error = ran(changes).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
