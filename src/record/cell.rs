//! `cell.toml`: everything a stage is told, and nothing else. It is written once, into the submission,
//! and copied into the run directory when an attempt claims the cell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::check_version;
use super::{CellKey, Digest, Fingerprint, FingerprintSource, RecordError, Result, files};

/// Format version of `cell.toml`.
pub const CELL_VERSION: u32 = 1;

/// What a stage is told about the cell it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// [`CELL_VERSION`].
    pub version: u32,
    /// Stage kind: a built-in one, or `command`.
    pub kind: String,
    /// Number of the stage, for its flag and job name.
    pub number: u32,
    /// Digest of [`Self::source`].
    pub fingerprint: Fingerprint,
    /// Absolute `<root>/results/<study>/<profile>`: what [`Need::dir`] is relative to.
    pub base: PathBuf,
    /// Absolute directory for checkpoints, when it is not inside the run directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scratch: Option<PathBuf>,
    /// Command of a foreign stage; empty for a built-in one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Declared outputs, relative to the run directory.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// Whether the stage can be run again after exit 75.
    pub resumable: bool,
    /// Labels of the cell's arm: tables pivot on them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The cell.
    pub key: CellKey,
    /// Resources of one attempt.
    pub resources: Resources,
    /// Every parameter, resolved; a parameter that is absent is not there.
    pub params: Value,
    /// Needed cells, sorted by key.
    #[serde(default)]
    pub needs: Vec<Need>,
    /// External inputs, sorted by name.
    #[serde(default)]
    pub inputs: Vec<ExternalInput>,
    /// What the fingerprint was made from.
    pub source: FingerprintSource,
}

/// A needed cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// Its key.
    pub key: CellKey,
    /// Its stage kind.
    pub kind: String,
    /// Its stage number.
    pub number: u32,
    /// Labels of its arm.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its run directory, relative to [`Cell::base`] (absolute for another study's).
    pub dir: PathBuf,
    /// The fingerprint it must be sealed with.
    pub fingerprint: Fingerprint,
}

/// A file or directory from outside the study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalInput {
    /// Its declared name: the parameter (`corpus_dir`) or the path as the study wrote it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Digest of its content when the plan was made.
    pub digest: Digest,
}

/// Resources of one attempt of a cell. Operational: none of them changes a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Nodes.
    pub nodes: u32,
    /// Ranks on each node.
    pub tasks_per_node: u32,
    /// Cores of each rank.
    pub cpus_per_task: u32,
    /// GPUs on each node.
    #[serde(default)]
    pub gpus_per_node: u32,
    /// Memory on each node, bytes; absent: the site's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_bytes: Option<u64>,
    /// Time limit, seconds.
    pub time_s: u64,
}

impl Resources {
    /// Ranks in all.
    pub fn ranks(&self) -> u32 {
        self.nodes * self.tasks_per_node
    }
}

impl Cell {
    /// Run directory of this cell.
    pub fn run_dir(&self) -> PathBuf {
        self.base.join(self.key.local_dir())
    }

    /// Run directory of a needed cell.
    pub fn need_dir(&self, need: &Need) -> PathBuf {
        self.base.join(&need.dir)
    }

    /// Where checkpoints of this cell lie.
    pub fn checkpoint_dir(&self) -> PathBuf {
        self.scratch.clone().unwrap_or_else(|| self.run_dir().join("checkpoints"))
    }

    /// The file's text.
    ///
    /// # Errors
    /// A parameter that TOML cannot hold (a null, an integer beyond 63 bits).
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| RecordError::Value(format!("cannot write cell {}: {e}", self.key)))
    }

    /// Reads `cell.toml`.
    ///
    /// # Errors
    /// It is not there, is damaged, newer, its fingerprint is not that of its source, or it says something
    /// otherwise than the source does.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&files::read_text(path)?, path)
    }

    /// Reads the text of a `cell.toml` that stands in the file `path`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let versioned: Versioned = toml::from_str(text).map_err(|e| RecordError::damaged(path, e.to_string()))?;
        check_version(path, versioned.version, CELL_VERSION)?;
        let cell: Self = toml::from_str(text).map_err(|e| RecordError::damaged(path, e.to_string()))?;
        if cell.source.fingerprint() != cell.fingerprint {
            return Err(RecordError::damaged(
                path,
                "its fingerprint is not that of its source: submit again with `run_all`",
            ));
        }
        if let Some(what) = cell.disagreement() {
            return Err(RecordError::damaged(
                path,
                format!("its {what} is not what its fingerprint was made from: submit again with `run_all`"),
            ));
        }
        Ok(cell)
    }

    /// What the cell says otherwise than the source of its fingerprint does: a stage must not run with other
    /// values than those that it is sealed under.
    fn disagreement(&self) -> Option<String> {
        let source = &self.source;
        if self.kind != source.kind {
            return Some("kind".to_owned());
        }
        if self.key.seed != source.seed {
            return Some("seed".to_owned());
        }
        // A command's words and outputs stand among its semantic parameters, and beside them in the cell.
        let beside = |key: &str| self.kind == "command" && (key == "command" || key == "outputs");
        let params = source.params.as_object().into_iter().flatten();
        for (key, value) in params.filter(|(key, _)| !beside(key)) {
            if self.params.get(key) != Some(value) {
                return Some(format!("parameter `{key}`"));
            }
        }
        for (name, fingerprint) in &source.needs {
            let named = |need: &&Need| need.key.local_name() == *name || need.key.to_string() == *name;
            if self.needs.iter().find(named).is_none_or(|need| need.fingerprint != *fingerprint) {
                return Some(format!("needed cell `{name}`"));
            }
        }
        for (name, digest) in &source.inputs {
            if self.inputs.iter().find(|input| input.name == *name).is_none_or(|input| input.digest != *digest) {
                return Some(format!("input `{name}`"));
            }
        }
        None
    }
}
