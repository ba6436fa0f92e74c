//! Our side of `scripts/bench/attack`: searches on the model and texts that the other side has, too.
//!
//! `seedbed-bench attack` reads a JSON configuration on stdin and prints JSON lines (docs/performance.md, "The protocol"): one
//! a step, which is a position of a trigger or a flip of every text, then what was found. Time counts from the first pass on:
//! models and texts are loaded before. `seedbed-bench trigger CONFIG` prints the trigger that a search begins with.

use std::path::PathBuf;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::compute::attack::survival::Survival;
use crate::compute::attack::victim::Native;
use crate::compute::attack::{Next, Scope, Text, hotflip, uat};
use crate::compute::comm::Comm;
use crate::compute::evaluate::Grain;
use crate::compute::model::Model;
use crate::stages::StageError;

/// What both sides are told; keys that only the other side or the script reads are passed over.
#[derive(Debug, Deserialize)]
struct Config {
    model: PathBuf,
    /// Rows of `seq_len` + 1 ids, i32 little-endian.
    batches: PathBuf,
    seq_len: usize,
    #[serde(rename = "rows_per_rank")]
    rows: usize,
    steps: u32,
    seed: u32,
    threads_per_rank: usize,
    attack: What,
    #[serde(default)]
    trigger_length: usize,
    #[serde(default)]
    candidates: usize,
    ours: Ours,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Uat,
    Hotflip,
}

#[derive(Debug, Deserialize)]
struct Ours {
    /// Rows of a pass.
    batch: usize,
    #[serde(default)]
    pruning: bool,
}

/// What one of the commands that read [`Config`] prints last.
///
/// # Errors
/// The configuration, the model or the texts cannot be read, or the attack refuses.
pub fn run(config: &Value, print: &mut dyn FnMut(&Value)) -> Result<(), StageError> {
    let told: Config = serde_json::from_value(config.clone())
        .map_err(|e| StageError::Usage(format!("the configuration of an attack is wrong: {e}")))?;
    crate::compute::model::set_threads(told.threads_per_rank as u32);
    let model = Model::load(&told.model)?;
    let texts = texts(&told)?;
    let mut native = Native::new(&model, told.threads_per_rank)?;
    let ids: Vec<i64> = (1..model.config().vocab_size).collect();
    let mut clock = Clock { step: 0, last: Instant::now() };
    match told.attack {
        What::Uat => {
            let plan = plan(&told, ids);
            let (comm, mut state) = (Comm::Solo, uat::State::default());
            let grain = Grain::new(told.ours.batch, told.ours.batch)?;
            let mut field =
                uat::Field { victim: &mut native, comm: &comm, texts: &texts, survival: Survival::not_asked(), grain };
            uat::search(&mut field, &plan, &mut state, &mut |state| {
                let loss = state.restarts[0].loss();
                if state.position == 0 && state.sweep == 0 {
                    // The loss of the first trigger: both sides begin with it.
                    clock.last = Instant::now();
                    return Ok(Next::GoOn);
                }
                print(&clock.tick(loss));
                Ok(if clock.step == told.steps { Next::Stop } else { Next::GoOn })
            })?;
            print(&json!({"found": [state.restarts[0].trigger()]}));
        }
        What::Hotflip => {
            let flips = rounds(&told, &mut native, &texts, ids, &mut |loss| print(&clock.tick(loss)))?;
            print(&json!({"found": flips}));
        }
    }
    print(&json!({"peak_rss_bytes": peak_rss_bytes()}));
    Ok(())
}

/// The trigger that a search begins with.
///
/// # Errors
/// The configuration cannot be read.
pub fn trigger(config: &Value) -> Result<Value, StageError> {
    #[derive(Deserialize)]
    struct Sizes {
        seed: u32,
        trigger_length: usize,
        model_config: Value,
    }
    let told: Sizes = serde_json::from_value(config.clone())
        .map_err(|e| StageError::Usage(format!("the configuration of an attack is wrong: {e}")))?;
    let vocab = told.model_config.get("vocab_size").and_then(Value::as_i64).unwrap_or(0);
    let plan = uat::Plan {
        length: told.trigger_length,
        seed: uat::restart_seed(told.seed, 0),
        ..plan_of(told.seed, (1..vocab).collect())
    };
    Ok(json!({"trigger": uat::random_trigger(&plan, Survival::not_asked())?}))
}

struct Clock {
    step: u32,
    last: Instant,
}

impl Clock {
    fn tick(&mut self, loss: f64) -> Value {
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        (self.step, self.last) = (self.step + 1, now);
        json!({"step": self.step, "loss": loss, "seconds": seconds})
    }
}

fn plan_of(seed: u32, ids: Vec<i64>) -> uat::Plan {
    uat::Plan {
        length: 1,
        search: uat::Search::Gradient,
        objective: uat::Objective::Lower,
        restarts: vec![0],
        iterations: u32::MAX,
        candidates: 1,
        beam: 1,
        pool: ids.clone(),
        allowed: ids,
        scope: Scope::UntouchedTargets,
        pruning: uat::Pruning::Off,
        seed,
    }
}

fn plan(told: &Config, ids: Vec<i64>) -> uat::Plan {
    uat::Plan {
        length: told.trigger_length,
        candidates: told.candidates,
        pruning: if told.ours.pruning { uat::Pruning::On } else { uat::Pruning::Off },
        ..plan_of(told.seed, ids)
    }
}

/// A flip of every text in each step; `told.ours.batch` texts go through the model at a time.
fn rounds(
    told: &Config,
    native: &mut Native,
    texts: &[Text],
    allowed: Vec<i64>,
    tick: &mut dyn FnMut(f64),
) -> Result<Vec<Vec<i64>>, StageError> {
    let budget = hotflip::Budget { flips: told.steps as usize, allowed, special: Vec::new() };
    let (longest, everything) = (told.seq_len, Survival::not_asked());
    let mut work: Vec<hotflip::Work<'_>> =
        texts.chunks(told.ours.batch.max(1)).map(|texts| hotflip::Work::new(texts, longest, everything)).collect();
    for _ in 0..told.steps {
        let mut mean = 0.0;
        for (work, texts) in work.iter_mut().zip(texts.chunks(told.ours.batch.max(1))) {
            let loss = work.round(native, (hotflip::Mode::Iterative, 1), &budget)?;
            mean += loss * texts.len() as f64 / told.rows as f64;
        }
        tick(mean);
    }
    let ids = |flips: Vec<hotflip::Flip>| flips.iter().flat_map(|f| [f.position as i64, f.id]).collect();
    Ok(work.into_iter().flat_map(hotflip::Work::flips).map(ids).collect())
}

fn texts(told: &Config) -> Result<Vec<Text>, StageError> {
    let bytes = std::fs::read(&told.batches).map_err(StageError::failed("reading the texts"))?;
    let ids: Vec<i64> =
        bytes.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap_or_default()))).collect();
    let rows = ids.chunks_exact(told.seq_len + 1).take(told.rows).enumerate();
    Ok(rows.map(|(id, ids)| Text { id: id as u64, ids: ids.to_vec() }).collect())
}

fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}
