//! `manifest.json`: what a checkpoint is, and where in its shards everything lies.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Snapshot;
use crate::compute::model::Layout;
use crate::compute::{ComputeError, Result};
use crate::record::{Digest, RecordError, files};

/// Format version.
pub const MANIFEST_VERSION: u32 = 1;

/// What the numbers of a part are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Stored parameters.
    Weights,
    /// First moments.
    FirstMoment,
    /// Second moments.
    SecondMoment,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// The cell's fingerprint.
    pub fingerprint: Digest,
    /// The attempt that wrote it.
    pub attempt: u32,
    /// Steps done.
    pub step: u64,
    /// Counters of the trainer.
    pub state: Value,
    /// The numerics record.
    pub numerics: Value,
    /// Other checkpoints that this one needs.
    pub needs: Vec<String>,
    /// Flat groups.
    pub groups: Vec<GroupEntry>,
    /// Files.
    pub shards: Vec<ShardEntry>,
    /// Digest of all of the above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

/// One flat group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupEntry {
    /// Its name.
    pub name: String,
    /// Elements, with padding.
    pub len: usize,
    /// Parameters.
    pub spans: Vec<SpanEntry>,
}

/// One parameter in a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpanEntry {
    /// Name as in the Hugging Face layout.
    pub name: String,
    /// `F32`.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<i64>,
    /// First element in the group.
    pub offset: usize,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// Its name in the directory.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of it.
    pub digest: Digest,
    /// What it holds.
    pub parts: Vec<Part>,
}

/// A range of a group in a file: fp32, little-endian.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Number of the group.
    pub group: usize,
    /// What the numbers are.
    pub kind: Kind,
    /// First element in the group.
    pub first: usize,
    /// Elements.
    pub len: usize,
    /// First byte in the file.
    pub at: u64,
}

/// The groups of a layout as a manifest lists them.
pub(super) fn group_entries(layout: &Layout) -> Vec<GroupEntry> {
    let span = |s: &crate::compute::model::Span| SpanEntry {
        name: s.name.clone(),
        dtype: "F32".to_owned(),
        shape: s.shape.clone(),
        offset: s.offset,
    };
    let group = |g: &crate::compute::model::GroupLayout| GroupEntry {
        name: g.name.clone(),
        len: g.len,
        spans: g.spans.iter().map(span).collect(),
    };
    layout.groups.iter().map(group).collect()
}

impl Manifest {
    pub(super) fn new(snapshot: &Snapshot<'_>, shards: Vec<ShardEntry>) -> Self {
        Self {
            version: MANIFEST_VERSION,
            fingerprint: snapshot.fingerprint.clone(),
            attempt: snapshot.attempt,
            step: snapshot.step,
            state: snapshot.state.clone(),
            numerics: snapshot.numerics.clone(),
            needs: snapshot.needs.clone(),
            groups: group_entries(snapshot.layout),
            shards,
            digest: None,
        }
    }

    /// With its digest.
    pub(super) fn sealed(mut self) -> Self {
        self.digest = Some(self.own_digest());
        self
    }

    fn own_digest(&self) -> Digest {
        let unsealed = Self { digest: None, ..self.clone() };
        // Strings, numbers and JSON values always serialize.
        Digest::of_json(&serde_json::to_value(&unsealed).unwrap_or(Value::Null))
    }

    /// Reads and checks a manifest.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let value: Value = files::read_json(path).map_err(|e| match e {
            e if e.is_not_found() => ComputeError::missing(path, "is not there"),
            e => ComputeError::input(path, format!("is damaged: {e}")),
        })?;
        let version = value.get("version").and_then(Value::as_u64).unwrap_or(0);
        if version > u64::from(MANIFEST_VERSION) {
            return Err(ComputeError::Record(RecordError::Newer {
                path: path.to_path_buf(),
                found: u32::try_from(version).unwrap_or(u32::MAX),
                known: MANIFEST_VERSION,
            }));
        }
        let manifest: Self =
            serde_json::from_value(value).map_err(|e| ComputeError::input(path, format!("is damaged: {e}")))?;
        if manifest.digest.as_ref() != Some(&manifest.own_digest()) {
            return Err(ComputeError::input(path, "was changed after it was sealed"));
        }
        let plain = |name: &str| !name.is_empty() && !name.contains('/') && name != "..";
        if !manifest.shards.iter().all(|s| plain(&s.file)) || !manifest.needs.iter().all(|n| plain(n)) {
            return Err(ComputeError::input(path, "names a file outside its directory"));
        }
        Ok(manifest)
    }
}
