//! What `scripts/bench/checkpoint` times on our side: saves and loads of a model's training state, by the writers
//! and readers that training uses.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::saver::{Outcome, Piece, Place, Saver, Snapshot};
use super::{Checkpoint, Kind, Retention, Want, list};
use crate::compute::model::{Layout, ModelConfig};
use crate::compute::{ComputeError, Result};
use crate::record::Digest;

const KINDS: [Kind; 3] = [Kind::Weights, Kind::FirstMoment, Kind::SecondMoment];

/// Saves the state of a model below `dir` as often as `saves` says, as one rank that keeps one checkpoint. Of the
/// last save: `bytes`, `seconds` until it was durable, and `held_s`, for which a step loop would have stood still. The
/// first two write new files, the others over what the one before the last left.
///
/// # Errors
/// A save fails.
pub fn save(config: &ModelConfig, dir: &Path, saves: u64) -> Result<Value> {
    let layout = Layout::new(config, None, 8);
    let state: Vec<(usize, Kind, Vec<f32>)> = (0..layout.groups.len())
        .flat_map(|group| KINDS.map(|kind| (group, kind, numbers(layout.groups[group].len))))
        .collect();
    let place = Place {
        dir: dir.to_path_buf(),
        rank: 0,
        ranks: 1,
        attempt: 1,
        fingerprint: Digest::of_bytes(b"bench"),
        patience: Duration::from_secs(60),
    };
    let retention = Retention { last: 1, every_steps: 0 };
    let bytes = 12 * layout.elements();
    let mut saver = Saver::new(place, &layout, &[], retention, Arc::new(|| false));
    saver.prepare(bytes);
    let mut last = Value::Null;
    for step in 1..=saves {
        let pieces = state.iter().map(|(group, kind, values)| Piece { group: *group, kind: *kind, first: 0, values });
        let snapshot =
            Snapshot { step, state: json!({}), numerics: json!({}), needs: Vec::new(), pieces: pieces.collect() };
        let began = Instant::now();
        saver.begin(snapshot)?;
        let held_s = began.elapsed().as_secs_f64();
        match saver.wait()? {
            Some(Outcome::Saved { .. }) => {}
            Some(Outcome::NotSaved { trouble, .. }) => return Err(ComputeError::Failed(trouble.to_string())),
            None => return Err(ComputeError::Failed("a save that was begun has no end: report this".into())),
        }
        let seconds = began.elapsed().as_secs_f64();
        last = json!({"step": step, "bytes": bytes, "seconds": seconds, "held_s": held_s});
    }
    saver.finish()?;
    Ok(last)
}

/// Loads the newest checkpoint below `dir`, all of it, into fresh memory, and checks it on the way: `bytes` and
/// `seconds`.
///
/// # Errors
/// There is none, or it cannot be used.
pub fn load(config: &ModelConfig, dir: &Path) -> Result<Value> {
    let layout = Layout::new(config, None, 8);
    let newest = list(dir)?.pop().ok_or_else(|| ComputeError::missing(dir, "has no checkpoint: save one first"))?;
    let began = Instant::now();
    let checkpoint = Checkpoint::open(&dir.join(newest))?;
    checkpoint.check_layout(&layout)?;
    let mut state: Vec<(usize, Kind, Vec<f32>)> = (0..layout.groups.len())
        .flat_map(|group| KINDS.map(|kind| (group, kind, vec![0f32; layout.groups[group].len])))
        .collect();
    let wants = state.iter_mut().map(|(group, kind, target)| Want { group: *group, kind: *kind, first: 0, target });
    checkpoint.load(wants.collect())?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(json!({"step": 1, "bytes": 12 * layout.elements(), "seconds": seconds}))
}

/// Finite numbers that do not compress.
fn numbers(len: usize) -> Vec<f32> {
    let mut x = len as u64;
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from_bits(0x3c00_0000 | (x >> 41) as u32) - 0.01
    };
    (0..len).map(|_| next()).collect()
}
