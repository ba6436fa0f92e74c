//! Saving in the foreground, for a step loop that waits: the same files, by the same writers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::manifest::Kind;
use super::retention::{self, Retention};
use super::saver::{self, Outcome, Piece, Place, Saver, Trouble};
use crate::compute::comm::Comm;
use crate::compute::model::Layout;
use crate::compute::{ComputeError, Result};
use crate::record::Digest;

/// What a rank holds when a checkpoint is taken.
#[derive(Debug)]
pub struct Snapshot<'a> {
    /// Steps done.
    pub step: u64,
    /// Number of the attempt that writes.
    pub attempt: u32,
    /// The cell's fingerprint: only an equal one is resumed.
    pub fingerprint: &'a Digest,
    /// Counters of the trainer.
    pub state: Value,
    /// The numerics record.
    pub numerics: Value,
    /// Other checkpoints that this one needs (the best).
    pub needs: Vec<String>,
    /// Where parameters lie.
    pub layout: &'a Layout,
    /// This rank's range of every group, by kind.
    pub shards: [(Kind, Vec<&'a [f32]>); 3],
}

/// What became of a save.
#[derive(Debug, Clone, PartialEq)]
pub enum Saved {
    /// It lies there.
    Done(String),
    /// The disk is full; what lay there before is untouched.
    DiskFull(String),
}

/// Writes a checkpoint below `dir`; all ranks call it with their own shards.
///
/// # Errors
/// [`ComputeError::Superseded`]; a value is not finite; the directory cannot be written for another reason than
/// a full disk.
pub fn save(comm: &Comm, dir: &Path, snapshot: &Snapshot<'_>, superseded: &dyn Fn() -> bool) -> Result<Saved> {
    let superseded = superseded();
    let place = place(comm, dir, snapshot.attempt, snapshot.fingerprint);
    let all = Retention { last: usize::MAX, every_steps: 0 };
    let mut saver = Saver::new(place, snapshot.layout, &[], all, Arc::new(move || superseded));
    let mut pieces = Vec::new();
    for group in 0..snapshot.layout.groups.len() {
        for (kind, groups) in &snapshot.shards {
            let values = groups[group];
            pieces.push(Piece { group, kind: *kind, first: values.len() * comm.rank(), values });
        }
    }
    saver.begin(saver::Snapshot {
        step: snapshot.step,
        state: snapshot.state.clone(),
        numerics: snapshot.numerics.clone(),
        needs: snapshot.needs.clone(),
        pieces,
    })?;
    match saver.wait()? {
        Some(Outcome::Saved { name, .. }) => Ok(Saved::Done(name)),
        Some(Outcome::NotSaved { trouble: trouble @ Trouble::DiskFull(_), .. }) => {
            Ok(Saved::DiskFull(trouble.to_string()))
        }
        Some(Outcome::NotSaved { trouble, .. }) => Err(ComputeError::Failed(trouble.to_string())),
        None => Err(ComputeError::Failed("a save that was begun has no end: report this".into())),
    }
}

fn place(comm: &Comm, dir: &Path, attempt: u32, fingerprint: &Digest) -> Place {
    Place {
        dir: dir.to_path_buf(),
        rank: comm.rank(),
        ranks: comm.size(),
        attempt,
        fingerprint: fingerprint.clone(),
        patience: Duration::from_secs(600),
    }
}

/// Removes checkpoints below `dir` that are neither among the last `keep_last` whole ones nor needed by one of
/// them. Called on rank 0 after a checkpoint was sealed by `attempt`.
///
/// # Errors
/// The directory cannot be listed. A directory that cannot be removed is left.
pub fn tidy(dir: &Path, keep_last: usize, attempt: u32, fingerprint: &Digest) -> Result<()> {
    let place = place(&Comm::Solo, dir, attempt, fingerprint);
    retention::tidy(&place, Retention { last: keep_last, every_steps: 0 }, &(Arc::new(|| false) as _))?;
    retention::remove_spare(dir, attempt);
    Ok(())
}
