//! `seal.json`: the completion flag of a cell, written last.
//!
//! It holds the fingerprint and the JSON it was made from, the digests of the outputs, and what of the
//! parents was read. A seal that was edited is refused; `invalid.json` beside it withdraws it.

mod vouch;

use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::vouch::Vouched;

use super::files::Folder;
use super::{CellKey, Digest, Fingerprint, FingerprintSource, RecordError, Result, files};

/// Format version of `seal.json`.
pub const SEAL_VERSION: u32 = 1;

/// File name of a seal in its run directory.
pub const SEAL_FILE: &str = "seal.json";

/// File name that withdraws a seal.
pub const INVALID_FILE: &str = "invalid.json";

/// How a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Its outputs are there.
    Done,
    /// A gate or kill criterion said stop: descendants are stopped too.
    Stopped,
}

/// Where a seal comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// An attempt ran the cell.
    Run,
    /// Results made elsewhere were imported.
    Imported,
}

/// A file that a seal vouches for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedFile {
    /// Path relative to the run directory; for [`Seal::read`], relative to the profile's directory.
    pub path: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Digest of its content.
    pub digest: Digest,
}

/// The completion flag.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// [`SEAL_VERSION`].
    pub version: u32,
    /// The cell.
    pub key: CellKey,
    /// Digest of [`Self::source`].
    pub fingerprint: Fingerprint,
    /// What the fingerprint was made from.
    pub source: FingerprintSource,
    /// How the cell ended.
    pub outcome: Outcome,
    /// Where the seal comes from.
    pub origin: Origin,
    /// Why it stopped; absent when done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Value>,
    /// What the result warns of, in words: it counts all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Content digest of `run.h5`: equal for equal results, whatever host or time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Digest>,
    /// Outputs, sorted by path.
    pub outputs: Vec<SealedFile>,
    /// The `run.h5` or other sealed files of needed cells as they were read, sorted by path.
    pub read: Vec<SealedFile>,
    /// Slurm job ids of all attempts, in order; empty for local ones.
    pub jobs: Vec<String>,
    /// Number of the attempt that sealed.
    pub attempt: u32,
    /// Host of that attempt.
    pub host: String,
    /// When that attempt began.
    pub started_at: DateTime<Utc>,
    /// When the seal was written.
    pub sealed_at: DateTime<Utc>,
    /// Wall time of all attempts, seconds.
    pub wall_s: f64,
    /// Version and revision of the program.
    pub code: String,
    /// Digest of all fields above.
    pub digest: Digest,
}

/// What is wrong with a seal's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputProblem {
    /// A file is not there.
    Missing(String),
    /// A file has another size or digest.
    Changed(String),
}

impl std::fmt::Display for OutputProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "output `{path}` is gone"),
            Self::Changed(path) => write!(f, "output `{path}` is not what was sealed"),
        }
    }
}

impl Seal {
    fn own_digest(&self) -> Digest {
        // A seal always serializes: strings, numbers and maps with string keys.
        let mut value = serde_json::to_value(self).unwrap_or(Value::Null);
        if let Some(map) = value.as_object_mut() {
            map.remove("digest");
        }
        Digest::of_json(&value)
    }

    /// Fills in the digest of itself and writes the seal. A withdrawal of an older one is kept beside this attempt.
    ///
    /// # Errors
    /// It cannot be written; an older seal is then still there, unless it was withdrawn.
    pub fn write(mut self, run_dir: &Path) -> Result<Self> {
        self.digest = self.own_digest();
        let withdrawn = run_dir.join(INVALID_FILE);
        if withdrawn.exists() {
            // First the seal: without the withdrawal it would count again.
            remove(run_dir)?;
            let to = run_dir.join("attempts").join(format!("{}.invalid.json", self.attempt));
            std::fs::rename(&withdrawn, &to).map_err(RecordError::io("move aside", &withdrawn))?;
        }
        files::write_json(&run_dir.join(SEAL_FILE), &self)?;
        Ok(self)
    }

    /// Reads the seal of a run directory: `None` if there is none or it was withdrawn.
    ///
    /// # Errors
    /// It is damaged, was edited, or has a newer version.
    pub fn read(run_dir: &Path) -> Result<Option<Self>> {
        Self::read_with(run_dir, files::read_bytes, Path::exists)
    }

    /// As [`Self::read`]; most run directories lie below `folder`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_below(folder: &Folder, run_dir: &Path) -> Result<Option<Self>> {
        Self::read_with(run_dir, |path| folder.bytes(path), |path| folder.may_have(path))
    }

    fn read_with(
        run_dir: &Path,
        bytes: impl Fn(&Path) -> std::io::Result<Vec<u8>>,
        exists: impl Fn(&Path) -> bool,
    ) -> Result<Option<Self>> {
        let path = run_dir.join(SEAL_FILE);
        let text = match bytes(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(RecordError::io("read", &path)(e)),
        };
        let seal: Self = files::versioned_json(&path, &text, SEAL_VERSION).map_err(|e| hint(e, &path))?;
        // Of most seals the text has the digest; what is written in another way is printed again.
        let whole = || vouch::digest_of(&text).is_some_and(|d| d == seal.digest) || seal.own_digest() == seal.digest;
        if !whole() || seal.source.fingerprint() != seal.fingerprint {
            return Err(RecordError::damaged(
                &path,
                "it was edited after it was written: delete it and run `run_all` again to redo the cell",
            ));
        }
        if exists(&run_dir.join(INVALID_FILE)) {
            return Ok(None);
        }
        Ok(Some(seal))
    }

    /// Takes the seal away for another try, and keeps it beside the attempt that made it.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn set_aside(&self, run_dir: &Path) -> Result<()> {
        let from = run_dir.join(SEAL_FILE);
        let to = run_dir.join("attempts").join(format!("{}.stopped.json", self.attempt));
        std::fs::rename(&from, &to).map_err(RecordError::io("move aside", &from))?;
        files::sync_dir(run_dir)
    }

    /// Looks for what a plan can see cheaply: outputs that are gone or have another size.
    pub fn check(&self, run_dir: &Path) -> Option<OutputProblem> {
        self.check_with(run_dir, |path| std::fs::metadata(path).map(|m| m.len()))
    }

    /// As [`Self::check`]; most run directories lie below `folder`.
    pub fn check_below(&self, folder: &Folder, run_dir: &Path) -> Option<OutputProblem> {
        self.check_with(run_dir, |path| folder.size(path))
    }

    fn check_with(&self, run_dir: &Path, size: impl Fn(&Path) -> std::io::Result<u64>) -> Option<OutputProblem> {
        self.outputs.iter().find_map(|file| match size(&run_dir.join(&file.path)) {
            Err(_) => Some(OutputProblem::Missing(file.path.clone())),
            Ok(size) if size != file.size_bytes => Some(OutputProblem::Changed(file.path.clone())),
            Ok(_) => None,
        })
    }

    /// Digests every output.
    pub fn verify(&self, run_dir: &Path) -> Option<OutputProblem> {
        self.check(run_dir).or_else(|| {
            self.outputs.iter().find_map(|file| match Digest::of_file(&run_dir.join(&file.path)) {
                Ok(digest) if digest == file.digest => None,
                Ok(_) => Some(OutputProblem::Changed(file.path.clone())),
                Err(_) => Some(OutputProblem::Missing(file.path.clone())),
            })
        })
    }

    /// The entry of an output.
    pub fn output(&self, path: &str) -> Option<&SealedFile> {
        self.outputs.iter().find(|f| f.path == path)
    }
}

/// Removes the seal of a run directory whose outputs are about to be others; none there is no error.
///
/// # Errors
/// It cannot be removed.
pub fn remove(run_dir: &Path) -> Result<()> {
    let path = run_dir.join(SEAL_FILE);
    match std::fs::remove_file(&path) {
        Ok(()) => files::sync_dir(run_dir),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(RecordError::io("remove", &path)(e)),
    }
}

fn hint(error: RecordError, path: &Path) -> RecordError {
    match error {
        RecordError::Damaged { reason, .. } => {
            RecordError::damaged(path, format!("{reason}: delete it and run `run_all` again to redo the cell"))
        }
        other => other,
    }
}

/// Every regular file of `paths` (files or directories below `run_dir`), with size and digest, sorted.
/// A link is refused: what it points to could change behind the seal.
///
/// # Errors
/// A path is not there, is a link, or cannot be read.
pub fn digest_outputs(run_dir: &Path, paths: &[String]) -> Result<Vec<SealedFile>> {
    let mut found = Vec::new();
    for name in paths {
        let path = run_dir.join(name);
        let meta = std::fs::symlink_metadata(&path).map_err(RecordError::io("read", &path))?;
        let files = if meta.is_dir() {
            super::digest::files_below(&path)?.into_iter().map(|f| Path::new(name).join(f)).collect()
        } else {
            vec![Path::new(name).to_path_buf()]
        };
        for file in files {
            let full = run_dir.join(&file);
            let meta = std::fs::symlink_metadata(&full).map_err(RecordError::io("read", &full))?;
            if !meta.is_file() {
                return Err(RecordError::Value(format!(
                    "output `{}` is a link or a special file: a stage must write regular files",
                    full.display()
                )));
            }
            let path = file.to_str().ok_or_else(|| {
                RecordError::Value(format!("output `{}` has a name that is not UTF-8", full.display()))
            })?;
            found.push(SealedFile { path: path.to_owned(), size_bytes: meta.len(), digest: Digest::of_file(&full)? });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.dedup_by(|a, b| a.path == b.path);
    Ok(found)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::record::{FingerprintSource, Name, fingerprint::FINGERPRINT_VERSION};
    use std::collections::BTreeMap;

    pub(crate) fn example(run_dir: &Path, outputs: &[String]) -> Seal {
        let source = FingerprintSource {
            version: FINGERPRINT_VERSION,
            kind: "command".into(),
            kind_version: 1,
            params: serde_json::json!({"lr": 0.1}),
            seed: Some(42),
            needs: BTreeMap::new(),
            inputs: BTreeMap::new(),
        };
        let name = |s| Name::new(s).unwrap();
        Seal {
            version: SEAL_VERSION,
            key: CellKey { study: name("s"), profile: name("p"), stage: name("t"), arm: None, seed: Some(42) },
            fingerprint: source.fingerprint(),
            source,
            outcome: Outcome::Done,
            origin: Origin::Run,
            evidence: None,
            warnings: Vec::new(),
            content: None,
            outputs: digest_outputs(run_dir, outputs).unwrap(),
            read: Vec::new(),
            jobs: vec!["17_0".into()],
            attempt: 1,
            host: "n1".into(),
            started_at: DateTime::UNIX_EPOCH,
            sealed_at: DateTime::UNIX_EPOCH,
            wall_s: 1.5,
            code: "test".into(),
            digest: Digest::of_bytes(b""),
        }
    }

    #[test]
    fn an_edited_seal_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        std::fs::create_dir(run.join("model")).unwrap();
        std::fs::write(run.join("model/w"), "abc").unwrap();
        std::fs::write(run.join("run.h5"), "h5").unwrap();
        let seal = example(run, &["run.h5".into(), "model".into()]).write(run).unwrap();
        assert_eq!(Seal::read(run).unwrap(), Some(seal.clone()));
        assert_eq!(seal.outputs.len(), 2);
        assert_eq!(seal.verify(run), None);
        let path = run.join(SEAL_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in [("\"attempt\": 1", "\"attempt\": 2"), ("0.1", "0.2"), ("\"n1\"", "\"n2\"")] {
            assert!(text.contains(from));
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = Seal::read(run).unwrap_err().to_string();
            assert!(error.contains("seal.json") && error.contains("edited"), "{error}");
        }
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(Seal::read(run).unwrap_err().to_string().contains("run_all"));
    }

    #[test]
    fn outputs_are_watched() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        std::fs::write(run.join("a.json"), "abc").unwrap();
        let seal = example(run, &["a.json".into()]);
        std::fs::write(run.join("a.json"), "abd").unwrap();
        assert_eq!(seal.check(run), None, "the size is the same");
        assert_eq!(seal.verify(run), Some(OutputProblem::Changed("a.json".into())));
        std::fs::write(run.join("a.json"), "ab").unwrap();
        assert_eq!(seal.check(run), Some(OutputProblem::Changed("a.json".into())));
        std::fs::remove_file(run.join("a.json")).unwrap();
        assert_eq!(seal.check(run), Some(OutputProblem::Missing("a.json".into())));
        std::os::unix::fs::symlink("/etc/hostname", run.join("a.json")).unwrap();
        assert!(digest_outputs(run, &["a.json".into()]).unwrap_err().to_string().contains("link"));
    }

    #[test]
    fn a_withdrawn_seal_counts_as_none_and_a_newer_one_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        example(run, &[]).write(run).unwrap();
        std::fs::write(run.join(INVALID_FILE), "{}").unwrap();
        assert_eq!(Seal::read(run).unwrap(), None);
        let path = run.join(SEAL_FILE);
        let newer = std::fs::read_to_string(&path).unwrap().replacen("\"version\": 1", "\"version\": 9", 1);
        std::fs::write(&path, newer).unwrap();
        assert!(matches!(Seal::read(run), Err(RecordError::Newer { found: 9, .. })));
    }
}
