//! What an attack needs to go on after a kill: one JSON file of a cell (`docs/formats/attack.md`), written whole or not at
//! all between two steps. Numbers are written so that they are read back bit by bit.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::compute::Result;
use crate::record::{Digest, RecordError, files};

/// Version of the file.
pub const ATTACK_VERSION: u32 = 1;

/// Its name in a checkpoint directory.
pub const ATTACK_FILE: &str = "attack.json";

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept<S> {
    /// Version of the format.
    pub version: u32,
    /// The cell's fingerprint: nothing else is gone on from.
    pub fingerprint: Digest,
    /// Steps done, over all models and attempts.
    pub steps: u64,
    /// What was found so far.
    pub state: S,
}

/// Where the file of a checkpoint directory lies.
pub fn path_in(checkpoint_dir: &Path) -> PathBuf {
    checkpoint_dir.join(ATTACK_FILE)
}

/// Writes it.
///
/// # Errors
/// The disk is full, or the directory cannot be written.
pub fn write<S: Serialize>(checkpoint_dir: &Path, kept: &Kept<S>) -> Result<()> {
    Ok(files::write_json(&path_in(checkpoint_dir), kept)?)
}

/// Reads it; none if there is none, or it belongs to another fingerprint.
///
/// # Errors
/// The file is damaged, or of a newer version: the message says which file to remove.
pub fn read<S: DeserializeOwned>(checkpoint_dir: &Path, fingerprint: &Digest) -> Result<Option<Kept<S>>> {
    let path = path_in(checkpoint_dir);
    if !path.is_file() {
        return Ok(None);
    }
    let damaged = |e: &dyn std::fmt::Display| {
        let reason = format!("is no state of an attack ({e}): remove it, and the attack begins anew");
        crate::compute::ComputeError::input(&path, reason)
    };
    let value: Value = files::read_json(&path).map_err(|e| match e {
        RecordError::Damaged { .. } => damaged(&e),
        other => other.into(),
    })?;
    match value.get("version").and_then(Value::as_u64) {
        Some(version) if version > u64::from(ATTACK_VERSION) => {
            let reason = format!(
                "has version {version}, this program reads up to {ATTACK_VERSION}: go on with the newer program, or remove the file"
            );
            return Err(crate::compute::ComputeError::input(&path, reason));
        }
        _ => {}
    }
    let kept: Kept<S> = serde_json::from_value(value).map_err(|e| damaged(&e))?;
    Ok((kept.fingerprint == *fingerprint).then_some(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Some {
        losses: Vec<f64>,
    }

    #[test]
    fn what_is_written_is_read_bit_by_bit_and_only_under_its_fingerprint() {
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (Digest::of_bytes(b"a"), Digest::of_bytes(b"b"));
        assert_eq!(read::<Some>(dir.path(), &own).unwrap(), None);
        let losses = vec![0.1 + 0.2, 1.0 / 3.0, 5e-324, f64::MAX, -0.0];
        let kept = Kept { version: 1, fingerprint: own.clone(), steps: 7, state: Some { losses } };
        write(dir.path(), &kept).unwrap();
        let found = read::<Some>(dir.path(), &own).unwrap().unwrap();
        let bits = |k: &Kept<Some>| k.state.losses.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!((bits(&found), found.steps), (bits(&kept), 7));
        assert_eq!(read::<Some>(dir.path(), &other).unwrap(), None);
    }

    #[test]
    fn a_damaged_or_newer_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let own = Digest::of_bytes(b"a");
        for (text, named) in [
            ("{", "is no state"),
            ("{\"version\": 1}", "is no state"),
            ("{\"version\": 2, \"other\": 1}", "has version 2"),
        ] {
            std::fs::write(path_in(dir.path()), text).unwrap();
            let error = read::<Some>(dir.path(), &own).unwrap_err().to_string();
            assert!(error.contains(ATTACK_FILE) && error.contains(named) && error.contains("remove"), "{error}");
        }
    }
}
