//! `flags/stage_<n>_<name>_complete.flag`: derived from seals, for people and for scripts that look for
//! them. Its content is the sorted cells and fingerprints, so two writers write the same bytes.

use std::path::{Path, PathBuf};

use super::{CellKey, Fingerprint, Name, RecordError, Result, Seal, files};

/// Where the flag of a stage lies below the profile's directory.
pub fn path(base: &Path, number: u32, stage: &Name) -> PathBuf {
    base.join("flags").join(format!("stage_{number}_{stage}_complete.flag"))
}

/// Makes the flag of a stage true: there if every expected cell is sealed as done with its fingerprint,
/// else gone. Returns whether it is there.
///
/// # Errors
/// The flag cannot be written or removed. A damaged seal counts as none: the plan reports it.
pub fn refresh(base: &Path, number: u32, stage: &Name, cells: &[(CellKey, Fingerprint)]) -> Result<bool> {
    let path = path(base, number, stage);
    let sealed = |(key, fingerprint): &(CellKey, Fingerprint)| {
        let run_dir = base.join(key.local_dir());
        let seal = Seal::read(&run_dir).ok().flatten();
        seal.is_some_and(|s| {
            s.fingerprint == *fingerprint && s.outcome == super::Outcome::Done && s.check(&run_dir).is_none()
        })
    };
    if !cells.is_empty() && cells.iter().all(sealed) {
        let mut lines: Vec<String> = cells.iter().map(|(key, print)| format!("{key} {print}\n")).collect();
        lines.sort();
        files::write_atomic(&path, lines.concat().as_bytes())?;
        return Ok(true);
    }
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(false),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(RecordError::Io { action: "remove", path, source: e }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::seal;

    #[test]
    fn a_flag_is_there_while_every_cell_is_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let mut seal = seal::tests::example(base, &[]);
        let run_dir = base.join(seal.key.local_dir());
        let cells = [(seal.key.clone(), seal.fingerprint.clone())];
        let stage = seal.key.stage.clone();
        let refresh = || super::refresh(base, 3, &stage, &cells).unwrap();
        assert!(!refresh());
        seal = seal.write(&run_dir).unwrap();
        assert!(refresh());
        let text = std::fs::read_to_string(base.join("flags/stage_3_t_complete.flag")).unwrap();
        assert_eq!(text, format!("s/p/t/seed-42 {}\n", seal.fingerprint));
        std::fs::remove_file(run_dir.join(seal::SEAL_FILE)).unwrap();
        assert!(!refresh());
        assert!(!path(base, 3, &stage).exists());
    }
}
