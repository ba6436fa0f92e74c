//! A study: what one TOML file asks for, checked as a whole.
//!
//! A [`Study`] that exists is sound: names are names, needs are known and acyclic, every parameter has the
//! type and bounds its kind asks for, resources fit a rank layout, and no text in it holds a control
//! character. All problems of a file are reported at once, each with line and column, through profiles too.
//! Nothing here knows seals, Slurm or clocks; the file's grammar is in `docs/study-file.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::record::decision::GATE_KIND;
use crate::record::{Name, Resources};
use crate::stages::{FieldType, Role, Spec};
use crate::workflow::plan::Pack;
use crate::workflow::slurm::wishes::Wishes;

mod cluster;
mod gate;
mod graph;
mod load;
mod params;
mod problem;
mod quantity;
mod reference;
mod retry;
mod section;
mod siblings;
mod stage;
mod staging;
mod template;
mod tree;
mod wishes;

pub use cluster::{Cluster, Price, find_cluster, load_cluster, plain_cluster};
pub use load::load;
pub use problem::{Problem, StudyError};
pub(super) use quantity::bytes as size_bytes;
pub use reference::kinds_markdown;
pub use siblings::claimed_elsewhere;
pub use stage::SaidResources;
pub use staging::Staging;
pub use template::new_study;

/// The newest `schema` of study and cluster files that this program reads.
pub const SCHEMA: i64 = 1;

/// Name of the profile of a study file that has none.
pub const DEFAULT_PROFILE: &str = "default";

/// One study under one profile, checked and resolved.
#[derive(Debug, Clone)]
pub struct Study {
    /// Its name: the first part of every cell key.
    pub name: Name,
    /// The profile that was laid over it.
    pub profile: Name,
    /// Every profile of the file, in file order; empty if it has none.
    pub profiles: Vec<Name>,
    /// Seeds that the file asks for, in file order, each once.
    pub seeds: Vec<u32>,
    /// Stages in file order, which need not be an order of running.
    pub stages: Vec<Stage>,
    /// `[[table]]` sections as JSON; their owner is the report wing.
    pub tables: Vec<Value>,
    /// `[[figure]]` sections as JSON; their owner is the report wing.
    pub figures: Vec<Value>,
    /// `[[document]]` sections as JSON; their owner is the report wing.
    pub documents: Vec<Value>,
    /// The conditions of `[signoff]` as JSON: what its checklist asks of results.
    pub signoff: Vec<Value>,
    /// What the study may cost; `run_all` refuses to submit beyond it.
    pub budget: Option<Budget>,
    /// When a cell is tried again, and when it is given up.
    pub retry: Retry,
    /// The file, as it was named to [`load`].
    pub file: PathBuf,
    /// The file's text, byte for byte: a submission keeps a copy.
    pub text: String,
}

/// One step of a study.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Its name, unique in the study.
    pub name: Name,
    /// Number for flags and job names, unique in the study.
    pub number: u32,
    /// What it runs.
    pub run: Run,
    /// Stages of the same study that it needs, in file order, each once.
    pub needs: Vec<Name>,
    /// Its axes.
    pub axes: Axes,
    /// Where it runs.
    pub on: On,
    /// What kind of work this is, for the ledger of hours.
    pub activity: Option<String>,
    /// Resources of one attempt of one cell.
    pub resources: Resources,
    /// What its jobs ask of a site beside resources.
    pub wishes: Wishes,
    /// What of its data lies on the node's own disk.
    pub staging: Staging,
    /// At most so many cells of one array at a time.
    pub max_running: Option<u32>,
    /// How many of its cells share an allocation.
    pub pack: Option<Pack>,
    /// What one cell takes in all, over its attempts, in seconds, as the study expects it.
    pub expected_s: Option<u64>,
    /// What one finished cell leaves on disk, in bytes, as the study expects it.
    pub storage_bytes: Option<u64>,
    /// Parameters without arms: presets filled in, no nulls; path fields are absolute.
    pub params: Value,
    /// Its arms, in file order; empty unless [`Axes::arm`].
    pub arms: Vec<Arm>,
}

/// A named variant of a stage.
#[derive(Debug, Clone)]
pub struct Arm {
    /// Its name, unique in the stage.
    pub name: Name,
    /// What tables pivot on.
    pub labels: BTreeMap<String, String>,
    /// The stage's parameters with this arm's laid over them, fully resolved.
    pub params: Value,
}

/// What a stage runs.
#[derive(Debug, Clone)]
pub enum Run {
    /// A kind that Seedbed knows.
    Builtin(&'static Spec),
    /// A program of the user's.
    Command(Command),
}

/// A foreign program as a stage. It is started without a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments as the study wrote them: they enter the fingerprint.
    pub written: Vec<String>,
    /// Program and arguments to run: each one that names a declared input is that input's absolute path.
    pub argv: Vec<String>,
    /// Files and directories it reads, beside its needs.
    pub inputs: Vec<Input>,
    /// Files and directories that a finished cell has, relative to its run directory.
    pub outputs: Vec<String>,
    /// Whether it can be run again after exit 75.
    pub resumable: bool,
}

/// A file or directory from outside the study.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Input {
    /// The parameter it comes from, or the path as a command stage wrote it.
    pub name: String,
    /// Absolute path.
    pub path: PathBuf,
}

/// Which axes a stage has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axes {
    /// One cell for each arm.
    pub arm: bool,
    /// One cell for each seed.
    pub seed: bool,
}

/// Where a stage runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// In a job.
    Compute,
    /// Before submission, on the machine that submits: downloads.
    Login,
}

/// What a study may cost. A limit that is absent does not limit.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Hours of one GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_hours: Option<f64>,
    /// Hours of one core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_hours: Option<f64>,
    /// Bytes on disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
    /// Money, in the currency of the cluster file's prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

/// When a cell is tried again, and when it is given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Attempts in a row without progress after which a cell stops.
    pub without_progress: u32,
    /// How often it is tried again with more memory.
    pub out_of_memory: u32,
    /// So many times as much memory each time.
    pub memory_factor: f64,
    /// Never more memory than this on a node, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_mem_bytes: Option<u64>,
    /// How often it is submitted again with more time.
    pub time_out: u32,
    /// So many times as much time each time.
    pub time_factor: f64,
    /// Never a longer time limit than this, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_time_s: Option<u64>,
    /// How often it is tried again on other nodes.
    pub node_failure: u32,
    /// How often it is tried again after a signal that nothing explains.
    pub killed: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            without_progress: 3,
            out_of_memory: 2,
            memory_factor: 1.5,
            max_mem_bytes: None,
            time_out: 2,
            time_factor: 1.5,
            max_time_s: None,
            node_failure: 3,
            killed: 3,
        }
    }
}

impl Study {
    /// Whether the end of `stage` is that of the study: one cell in all, behind others, and nothing behind it.
    pub fn ends_with(&self, stage: &Stage) -> bool {
        let needed = self.stages.iter().any(|other| other.needs.contains(&stage.name));
        stage.axes == Axes { arm: false, seed: false } && !stage.needs.is_empty() && !needed
    }

    /// The stage of that name.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|s| s.name.as_str() == name)
    }
}

impl Stage {
    /// Its kind: that of its [`Spec`], or `command`.
    pub fn kind(&self) -> &'static str {
        match &self.run {
            Run::Builtin(spec) => spec.kind,
            Run::Command(_) => "command",
        }
    }

    /// Resolved parameters of one arm, or of the stage if it has no arms.
    pub fn params_of(&self, arm: Option<&Name>) -> &Value {
        arm.and_then(|name| self.arms.iter().find(|a| &a.name == name)).map_or(&self.params, |a| &a.params)
    }

    /// True for a `[[gate]]`.
    pub fn is_gate(&self) -> bool {
        self.kind() == GATE_KIND
    }

    /// Labels of one arm.
    pub fn labels_of(&self, arm: Option<&Name>) -> BTreeMap<String, String> {
        arm.and_then(|name| self.arms.iter().find(|a| &a.name == name)).map(|a| a.labels.clone()).unwrap_or_default()
    }

    /// The parameters that enter the fingerprint: neither operational ones nor paths, whose content's digest
    /// enters instead. A command's words as written are its parameter `command`.
    pub fn semantic_params(&self, arm: Option<&Name>) -> Value {
        let mut params = self.params_of(arm).clone();
        let Some(map) = params.as_object_mut() else { return params };
        match &self.run {
            Run::Builtin(spec) => map
                .retain(|key, _| spec.field(key).is_some_and(|f| f.role == Role::Semantic && f.ty != FieldType::Path)),
            Run::Command(command) => {
                map.insert("command".to_owned(), Value::from(command.written.clone()));
                map.insert("outputs".to_owned(), Value::from(command.outputs.clone()));
            }
        }
        params
    }

    /// Files and directories from outside that one arm reads, sorted by name.
    pub fn inputs_of(&self, arm: Option<&Name>) -> Vec<Input> {
        let mut inputs: Vec<Input> = match &self.run {
            Run::Command(command) => command.inputs.clone(),
            Run::Builtin(spec) => spec
                .fields
                .iter()
                .filter(|f| f.ty == FieldType::Path)
                .filter_map(|f| {
                    let path = self.params_of(arm).get(f.name)?.as_str()?;
                    Some(Input { name: f.name.to_owned(), path: PathBuf::from(path) })
                })
                .collect(),
        };
        inputs.sort();
        inputs
    }
}
