//! Checkpoints: everything a training run needs to go on as if it had not stopped.
//!
//! A checkpoint is a directory `step-<step>-attempt-<n>` with one shard file a rank and `manifest.json`, written
//! last and sealed by its own digest. A shard holds ranges of the flat layout (weights, first and second
//! moments); the manifest describes them, so that any number of ranks, and any program, can read them.
//! A directory without a manifest is a write that was killed; a manifest that does not fit its files is damage:
//! it is refused by name, and the checkpoint before it is used. Format: `docs/formats/checkpoint.md`.

mod manifest;
mod retention;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use manifest::{GroupEntry, Kind, Manifest, Part, ShardEntry, SpanEntry};
pub use retention::tidy;

use super::comm::{Comm, f32_bytes, f32_bytes_mut};
use super::model::Layout;
use super::{ComputeError, Result};
use crate::record::{Digest, RecordError, files};

/// File that makes a directory a checkpoint.
pub const MANIFEST_FILE: &str = "manifest.json";

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

/// The directory's name.
pub fn name(step: u64, attempt: u32) -> String {
    format!("step-{step:08}-attempt-{attempt}")
}

/// Step and attempt of a directory's name.
pub(crate) fn parse_name(name: &str) -> Option<(u64, u32)> {
    let (step, attempt) = name.strip_prefix("step-")?.split_once("-attempt-")?;
    Some((step.parse().ok()?, attempt.parse().ok()?))
}

/// Writes a checkpoint below `dir`; all ranks call it with their own shards. `superseded` is asked before the
/// manifest is written, on rank 0.
///
/// # Errors
/// [`ComputeError::Superseded`]; a value is not finite; the directory cannot be written for another reason than
/// a full disk.
pub fn save(comm: &Comm, dir: &Path, snapshot: &Snapshot<'_>, superseded: &dyn Fn() -> bool) -> Result<Saved> {
    let name = name(snapshot.step, snapshot.attempt);
    let target = dir.join(&name);
    let file = format!("shard-{:04}-of-{:04}.bin", comm.rank(), comm.size());
    let finite = snapshot.shards.iter().all(|(_, groups)| groups.iter().all(|g| g.iter().all(|x| x.is_finite())));
    let written = if finite { write_shard(&target.join(&file), snapshot) } else { Err(not_finite(snapshot.step)) };

    // Everybody learns how everybody fared: 0 written, 1 disk full, 2 not finite, 3 another error.
    let (code, digest, bytes) = match &written {
        Ok((digest, bytes)) => (0, digest.as_str().to_owned(), *bytes),
        Err(ComputeError::Record(e)) if e.is_disk_full() => (1, "0".repeat(64), 0),
        Err(ComputeError::Failed(_)) => (2, "0".repeat(64), 0),
        Err(_) => (3, "0".repeat(64), 0),
    };
    let mut report = vec![code];
    report.extend(u64::to_le_bytes(bytes));
    report.extend(digest.as_bytes());
    let reports = comm.all_gather(&report)?;
    let worst = reports.iter().map(|r| r[0]).max().unwrap_or(0);
    if worst > 0 {
        // What this rank wrote is of no use; failing to remove it costs space only, and retention tries again.
        let _ = std::fs::remove_file(target.join(&file));
        comm.barrier()?;
        let _ = std::fs::remove_dir(&target);
        return match (worst, written) {
            (1, _) => Ok(Saved::DiskFull(format!("the disk of `{}` is full", dir.display()))),
            (_, Err(e)) => Err(e),
            (2, _) => Err(not_finite(snapshot.step)),
            _ => Err(ComputeError::Failed(format!(
                "another rank could not write its part of `{}`: look for its message in the log",
                target.display()
            ))),
        };
    }
    let sealed = if comm.is_first() { seal(&target, comm.size(), &reports, snapshot, superseded) } else { Ok(()) };
    let code = match &sealed {
        Ok(()) => 0u8,
        Err(ComputeError::Record(e)) if e.is_disk_full() => 1,
        Err(ComputeError::Superseded) => 2,
        Err(_) => 3,
    };
    match (comm.broadcast(&[code])?.first(), sealed) {
        (Some(0), _) => Ok(Saved::Done(name)),
        (Some(1), _) => {
            let _ = std::fs::remove_file(target.join(&file));
            Ok(Saved::DiskFull(format!("the disk of `{}` is full", dir.display())))
        }
        (_, Err(e)) => Err(e),
        (Some(2), _) => Err(ComputeError::Superseded),
        _ => Err(ComputeError::Failed(format!("rank 0 could not seal `{}`: look for its message", target.display()))),
    }
}

fn not_finite(step: u64) -> ComputeError {
    ComputeError::Failed(format!(
        "a parameter or moment is not finite at step {step}; no checkpoint was written: lower `lr` or `max_grad_norm` and run again"
    ))
}

fn parts_of(snapshot: &Snapshot<'_>, rank: usize, ranks: usize) -> Vec<Part> {
    let mut at = 0;
    let mut parts = Vec::new();
    for (group, layout) in snapshot.layout.groups.iter().enumerate() {
        let len = layout.len / ranks;
        for (kind, _) in &snapshot.shards {
            parts.push(Part { group, kind: *kind, first: rank * len, len, at });
            at += 4 * len as u64;
        }
    }
    parts
}

fn write_shard(path: &Path, snapshot: &Snapshot<'_>) -> Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    files::write_atomic_with(path, |file| {
        for group in 0..snapshot.layout.groups.len() {
            for (_, shards) in &snapshot.shards {
                for block in shards[group].chunks(1 << 18) {
                    let raw = little_endian(block);
                    hasher.update(&raw);
                    file.write_all(&raw)?;
                    bytes += raw.len() as u64;
                }
            }
        }
        Ok(())
    })?;
    Ok((Digest::finish(hasher), bytes))
}

fn little_endian(values: &[f32]) -> std::borrow::Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        f32_bytes(values).into()
    } else {
        values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()
    }
}

fn seal(
    target: &Path,
    ranks: usize,
    reports: &[Vec<u8>],
    snapshot: &Snapshot<'_>,
    superseded: &dyn Fn() -> bool,
) -> Result<()> {
    let shards = reports.iter().enumerate().map(|(rank, report)| {
        let bytes = u64::from_le_bytes(report[1..9].try_into().unwrap_or_default());
        let digest = serde_json::from_value(Value::String(String::from_utf8_lossy(&report[9..]).into_owned()));
        Ok(ShardEntry {
            file: format!("shard-{rank:04}-of-{ranks:04}.bin"),
            bytes,
            digest: digest.map_err(|e| ComputeError::Failed(format!("a rank sent no digest ({e}): report this")))?,
            parts: parts_of(snapshot, rank, ranks),
        })
    });
    let manifest = Manifest::new(snapshot, shards.collect::<Result<_>>()?);
    if superseded() {
        return Err(ComputeError::Superseded);
    }
    Ok(files::write_json(&target.join(MANIFEST_FILE), &manifest.sealed())?)
}

/// A whole checkpoint on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its directory.
    pub dir: PathBuf,
    /// What it says.
    pub manifest: Manifest,
}

/// The newest usable checkpoint, and why newer ones were refused.
#[derive(Debug, Default)]
pub struct Found {
    /// It; `None` if there is none.
    pub checkpoint: Option<Checkpoint>,
    /// A line for every one that was passed over.
    pub refused: Vec<String>,
}

/// Looks for the newest checkpoint below `dir` with this fingerprint whose files, and those of the checkpoints it
/// needs, have the digests that their manifests promise.
///
/// # Errors
/// The directory cannot be listed.
pub fn find(dir: &Path, fingerprint: &Digest) -> Result<Found> {
    let mut found = Found::default();
    for name in list(dir)?.into_iter().rev() {
        let path = dir.join(&name);
        if !path.join(MANIFEST_FILE).exists() {
            found
                .refused
                .push(format!("`{}` was being written when the run ended; the one before is used", path.display()));
            continue;
        }
        match usable(dir, &path, fingerprint) {
            Ok(checkpoint) => {
                found.checkpoint = Some(checkpoint);
                break;
            }
            Err(e) => found.refused.push(format!("{e}; the one before is used")),
        }
    }
    Ok(found)
}

fn usable(dir: &Path, path: &Path, fingerprint: &Digest) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    if &checkpoint.manifest.fingerprint != fingerprint {
        return Err(ComputeError::input(path, "belongs to another fingerprint (other parameters or inputs)"));
    }
    checkpoint.verify()?;
    for name in &checkpoint.manifest.needs {
        Checkpoint::open(&dir.join(name))
            .and_then(|c| c.verify())
            .map_err(|e| ComputeError::input(path, format!("needs `{name}`, which cannot be used ({e})")))?;
    }
    Ok(checkpoint)
}

/// Names of checkpoint directories, whole or not, by step and attempt.
pub(crate) fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ComputeError::Record(RecordError::io("list", dir)(e))),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(RecordError::io("list", dir))?.file_name().to_string_lossy().into_owned();
        if let Some(key) = parse_name(&name) {
            names.push((key, name));
        }
    }
    names.sort();
    Ok(names.into_iter().map(|(_, name)| name).collect())
}

impl Checkpoint {
    /// Reads the manifest.
    ///
    /// # Errors
    /// It is missing, damaged, newer, or its seal is not its own.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = Manifest::read(&dir.join(MANIFEST_FILE))?;
        Ok(Self { dir: dir.to_path_buf(), manifest })
    }

    /// Compares every shard with the manifest's size and digest.
    ///
    /// # Errors
    /// A shard is missing, cut short or changed: named.
    pub fn verify(&self) -> Result<()> {
        for shard in &self.manifest.shards {
            let path = self.dir.join(&shard.file);
            let size = match std::fs::metadata(&path) {
                Ok(m) => m.len(),
                Err(_) => return Err(ComputeError::missing(&path, "is not there")),
            };
            if size != shard.bytes {
                return Err(ComputeError::input(
                    &path,
                    format!("is cut short or damaged: {size} bytes where its manifest promises {}", shard.bytes),
                ));
            }
            if Digest::of_file(&path)? != shard.digest {
                return Err(ComputeError::input(&path, "is damaged: its digest is not the one of its manifest"));
            }
        }
        Ok(())
    }

    /// Refuses a layout that is not the checkpoint's.
    ///
    /// # Errors
    /// A group or parameter differs.
    pub fn check_layout(&self, layout: &Layout) -> Result<()> {
        if self.manifest.groups == manifest::group_entries(layout) {
            return Ok(());
        }
        Err(ComputeError::input(
            &self.dir,
            "holds another model (names, shapes or lanes differ): move it away, or go back to the parameters it was made with",
        ))
    }

    /// Reads `target.len()` elements of a group, from element `first` on, whatever ranks wrote them.
    ///
    /// # Errors
    /// A shard cannot be read, or no shard holds the range.
    pub fn read(&self, kind: Kind, group: usize, first: usize, target: &mut [f32]) -> Result<()> {
        use std::io::{Read, Seek, SeekFrom};
        let end = first + target.len();
        let mut filled = 0;
        for shard in &self.manifest.shards {
            for part in shard.parts.iter().filter(|p| p.kind == kind && p.group == group) {
                let (from, to) = (part.first.max(first), (part.first + part.len).min(end));
                if from >= to {
                    continue;
                }
                let path = self.dir.join(&shard.file);
                let slice = &mut target[from - first..to - first];
                let offset = part.at + 4 * (from - part.first) as u64;
                let read = std::fs::File::open(&path).and_then(|mut f| {
                    f.seek(SeekFrom::Start(offset))?;
                    f.read_exact(f32_bytes_mut(slice))
                });
                read.map_err(RecordError::io("read", &path))?;
                if cfg!(target_endian = "big") {
                    slice.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits().swap_bytes()));
                }
                filled += to - from;
            }
        }
        if filled != target.len() {
            return Err(ComputeError::input(
                &self.dir,
                "does not hold the whole model: remove it, the one before is used",
            ));
        }
        Ok(())
    }
}
