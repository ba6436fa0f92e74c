//! `manifest.json`: what a checkpoint is, and where in its shards everything lies.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::shard::CHUNK_BYTES;
use crate::compute::model::{Layout, matrix};
use crate::compute::{ComputeError, Result};
use crate::record::{Digest, RecordError, files};

/// Format version. Version 1 had one SHA-256 a shard and no types in its parts, version 2 no means of second moments;
/// both are still read.
pub const MANIFEST_VERSION: u32 = 3;

/// What the numbers of a part are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Stored parameters; the fp32 master where the model computes in bf16.
    Weights,
    /// First moments.
    FirstMoment,
    /// Second moments.
    SecondMoment,
    /// Of each parameter, in the order of the group: if it is a matrix, the means of its second moments over the
    /// elements of each row, then over those of each column; else its second moments. They count from 0 without gaps.
    SecondMomentMeans,
}

/// Type of stored numbers, by the names of safetensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE single precision.
    #[default]
    F32,
    /// Its upper half.
    #[serde(rename = "BF16")]
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
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
    /// For a group that is not trained: digest of its parameters, which lie in no shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Digest>,
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
    /// SHA-256 of it: version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// BLAKE3 of each piece of [`CHUNK_BYTES`], the last one as long as it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blake3: Vec<Digest>,
    /// What it holds.
    pub parts: Vec<Part>,
}

/// A range of a group in a file, little-endian.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Number of the group.
    pub group: usize,
    /// What the numbers are.
    pub kind: Kind,
    /// Their type.
    #[serde(default)]
    pub dtype: Dtype,
    /// First element in the group.
    pub first: usize,
    /// Elements.
    pub len: usize,
    /// First byte in the file.
    pub at: u64,
}

/// The groups of a layout as a manifest lists them; `frozen` has the digests of those that are not trained.
pub(super) fn group_entries(layout: &Layout, frozen: &[(usize, Digest)]) -> Vec<GroupEntry> {
    let span = |s: &crate::compute::model::Span| SpanEntry {
        name: s.name.clone(),
        dtype: "F32".to_owned(),
        shape: s.shape.clone(),
        offset: s.offset,
    };
    let group = |(number, g): (usize, &crate::compute::model::GroupLayout)| GroupEntry {
        name: g.name.clone(),
        len: g.len,
        spans: g.spans.iter().map(span).collect(),
        frozen: frozen.iter().find(|(n, _)| *n == number).map(|(_, digest)| digest.clone()),
    };
    layout.groups.iter().enumerate().map(group).collect()
}

impl GroupEntry {
    /// How many numbers of a kind the group has.
    fn numbers(&self, kind: Kind) -> usize {
        if kind != Kind::SecondMomentMeans {
            return self.len;
        }
        let of_span = |span: &SpanEntry| match matrix(&span.shape) {
            Some([rows, columns]) => rows.saturating_add(columns),
            None => span.shape.iter().map(|&n| usize::try_from(n).unwrap_or(0)).fold(1, usize::saturating_mul),
        };
        self.spans.iter().map(of_span).fold(0, usize::saturating_add)
    }
}

impl ShardEntry {
    /// Refuses parts that do not lie in the file and digests that do not cover it: from here on, offsets are safe
    /// to compute with.
    fn is_sound(&self, groups: &[GroupEntry], version: u32) -> bool {
        let plain = !self.file.is_empty() && !self.file.contains('/') && self.file != "..";
        let digested = match version {
            1 => self.digest.is_some() && self.blake3.is_empty(),
            _ => self.digest.is_none() && self.blake3.len() as u64 == self.bytes.div_ceil(CHUNK_BYTES as u64),
        };
        let inside = |part: &Part| {
            let bytes = (part.len as u64).checked_mul(part.dtype.bytes() as u64);
            let end = bytes.and_then(|bytes| bytes.checked_add(part.at));
            let last = part.first.checked_add(part.len);
            end.is_some_and(|end| end <= self.bytes)
                && part.at % part.dtype.bytes() as u64 == 0
                && groups.get(part.group).is_some_and(|g| last.is_some_and(|last| last <= g.numbers(part.kind)))
        };
        plain && digested && self.parts.iter().all(inside)
    }
}

impl Manifest {
    /// With its digest.
    pub(super) fn sealed(mut self) -> Self {
        self.digest = None;
        // Strings, numbers and JSON values always serialize.
        self.digest = Some(Digest::of_json(&serde_json::to_value(&self).unwrap_or(Value::Null)));
        self
    }

    /// Reads and checks a manifest.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut value: Value = files::read_json(path).map_err(|e| match e {
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
            serde_json::from_value(value.clone()).map_err(|e| ComputeError::input(path, format!("is damaged: {e}")))?;
        // Of the file's own keys, not of this version's: an older manifest has fewer.
        value.as_object_mut().and_then(|keys| keys.remove("digest"));
        if manifest.digest.as_ref() != Some(&Digest::of_json(&value)) {
            return Err(ComputeError::input(path, "was changed after it was sealed"));
        }
        let plain = |name: &String| super::parse_name(name).is_some();
        if !manifest.needs.iter().all(plain)
            || !manifest.shards.iter().all(|s| s.is_sound(&manifest.groups, manifest.version))
        {
            return Err(ComputeError::input(path, "describes ranges outside its files"));
        }
        Ok(manifest)
    }
}
