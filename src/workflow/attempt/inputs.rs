//! What an attempt reads of needed cells, and whether the attempts before it read the same. What they left (checkpoints, the
//! series so far) is a part of this one only then: bytes of other inputs must not get into a result through a checkpoint.

use std::path::Path;

use serde_json::Value;

use crate::record::seal::SealedFile;
use crate::record::{Cell, Digest, RecordError, progress};
use crate::workflow::retry::Past;

/// Digest of what is read.
pub fn digest(read: &[SealedFile]) -> Digest {
    let by_path = read.iter().map(|file| (file.path.clone(), Value::from(file.digest.as_str())));
    Digest::of_json(&Value::Object(by_path.collect()))
}

/// Whether the attempts before this one read something else. Records of earlier programs do not say; a seal that is stale
/// does.
pub fn differ(past: &[Past], inputs: &Digest, stale: bool) -> bool {
    match past.iter().rev().find_map(|p| p.start.inputs.as_ref()) {
        Some(before) => before != inputs,
        None => stale && !past.is_empty(),
    }
}

/// Renames what earlier attempts left for later ones, so that attempt `n`, which owns the cell, begins anew. True if there
/// was something.
///
/// # Errors
/// It cannot be renamed.
pub fn set_aside(cell: &Cell, run_dir: &Path, n: u32) -> Result<bool, RecordError> {
    let checkpoints = cell.checkpoint_dir();
    let kept = match &cell.scratch {
        // Beside it: another file system may be the home of the run directory.
        Some(scratch) => {
            let name = scratch.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            scratch.with_file_name(format!(".{name}-before-{n}"))
        }
        None => run_dir.join(format!(".checkpoints-before-{n}")),
    };
    let series = run_dir.join(progress::PROGRESS_FILE);
    let some = move_away(&checkpoints, &kept)?;
    Ok(move_away(&series, &run_dir.join(format!(".progress-before-{n}.jsonl")))? || some)
}

fn move_away(from: &Path, to: &Path) -> Result<bool, RecordError> {
    match std::fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(RecordError::io("move aside", from)(e)),
    }
}
