//! Checkpoints: everything a training run needs to go on as if it had not stopped.
//!
//! A checkpoint is a directory `step-<step>-attempt-<n>` with one shard file a rank and `manifest.json`, written
//! last and sealed by its own digest. A shard holds ranges of the flat layout (weights, first and second
//! moments); the manifest describes them, so that any number of ranks, and any program, can read them.
//! A directory without a manifest is a write that was killed; a manifest that does not fit its files is damage:
//! it is refused by name, and the checkpoint before it is used. Format: `docs/formats/checkpoint.md`.
//!
//! [`Saver`] writes in the background from a copy, while the step loop goes on; [`find`] and [`Checkpoint`] read;
//! [`Retention`] says what stays. Nothing here talks to other ranks but through the directory.

pub mod bench;
mod commit;
mod load;
mod manifest;
mod pages;
mod retention;
pub mod saver;
mod shard;
#[cfg(test)]
mod tests;

use std::path::Path;

pub use load::{Checkpoint, Found, Want, find};
pub use manifest::{Dtype, GroupEntry, Kind, Manifest, Part, ShardEntry, SpanEntry};
pub use retention::Retention;
pub use saver::{Outcome, Piece, Place, Saver, Superseded, Trouble};
pub use shard::CHUNK_BYTES;

use super::{ComputeError, Result};
use crate::record::RecordError;

/// File that makes a directory a checkpoint.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The directory's name.
pub fn name(step: u64, attempt: u32) -> String {
    format!("step-{step:08}-attempt-{attempt}")
}

/// Step and attempt of a directory's name.
pub(crate) fn parse_name(name: &str) -> Option<(u64, u32)> {
    let (step, attempt) = name.strip_prefix("step-")?.split_once("-attempt-")?;
    Some((step.parse().ok()?, attempt.parse().ok()?))
}

/// Names of checkpoint directories, whole or not, by step and attempt.
pub(crate) fn list(dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<_> = entries(dir)?.into_iter().filter_map(|name| Some((parse_name(&name)?, name))).collect();
    names.sort();
    Ok(names.into_iter().map(|(_, name)| name).collect())
}

/// Names in a directory; none if it is not there.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let io = RecordError::io("list", dir);
    match std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned())).collect())
    {
        Ok(names) => Ok(names),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(ComputeError::Record(io(e))),
    }
}
