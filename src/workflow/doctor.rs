//! Whether a site is as its cluster file says: one finding a check, each with what to type where it fails. On this node,
//! and by one short job a partition on the nodes. Submits nothing of a study, and leaves nothing behind.

mod here;
mod nodes;
mod site;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{Result, WorkflowError};
use super::slurm::Client;
use super::study::{self, Cluster, Study};
use crate::stages;

pub use nodes::{is_probe, probe};

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Cluster file: a path or a name; absent: Slurm's own defaults.
    pub cluster: Option<String>,
    /// A study whose stages' partitions and programs are looked at, too.
    pub study: Option<PathBuf>,
    /// Its profile.
    pub profile: Option<String>,
    /// The directory that holds `results/`; absent: the current directory, or the study's root.
    pub root: Option<PathBuf>,
    /// How long the jobs on nodes are waited for; absent: none is submitted.
    pub on_nodes: Option<Duration>,
}

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works, and a person should know something.
    Warning,
    /// It does not work.
    Failed,
    /// It could not be looked at, or need not be.
    Skipped,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// What it came to.
    pub outcome: Outcome,
    /// What was found.
    pub said: String,
    /// What to type or to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn new(check: &str, outcome: Outcome, said: impl Into<String>, fix: Option<String>) -> Self {
        Self { check: check.to_owned(), outcome, said: said.into(), fix }
    }

    fn ok(check: &str, said: impl Into<String>) -> Self {
        Self::new(check, Outcome::Ok, said, None)
    }

    fn skipped(check: &str, said: impl Into<String>) -> Self {
        Self::new(check, Outcome::Skipped, said, None)
    }

    fn warning(check: &str, said: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, Outcome::Warning, said, Some(fix.into()))
    }

    fn failed(check: &str, said: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, Outcome::Failed, said, Some(fix.into()))
    }
}

/// What is looked at.
struct Patient {
    cluster: Cluster,
    study: Option<Study>,
    root: PathBuf,
    client: Client,
    /// Whether a person named the cluster file: without one, no Slurm is no fault.
    named: bool,
}

impl Patient {
    /// The partitions that jobs would go to; `None` is the site's own.
    fn partitions(&self) -> Vec<Option<String>> {
        let site = self.cluster.site.partition.iter();
        let stages = self.study.iter().flat_map(|study| &study.stages).filter_map(|s| s.wishes.partition.as_ref());
        let mut names: Vec<Option<String>> = Vec::new();
        for name in site.chain(stages).flat_map(|several| several.split(',')) {
            if !names.iter().flatten().any(|known| known == name) {
                names.push(Some(name.to_owned()));
            }
        }
        let elsewhere = |study: &Study| study.stages.iter().any(|s| s.wishes.partition.is_none());
        let default = self.cluster.site.partition.is_none() && self.study.as_ref().is_none_or(elsewhere);
        if default {
            names.insert(0, None);
        }
        names
    }
}

/// Looks at everything, and tells each finding as it is made.
///
/// # Errors
/// The study or cluster file has problems, or the root cannot be used as one.
pub fn examine(request: &Request, told: &mut dyn FnMut(&Finding)) -> Result<Vec<Finding>> {
    let patient = patient(request)?;
    let mut findings: Vec<Finding> = Vec::new();
    let mut note = |finding: Finding| {
        told(&finding);
        findings.push(finding);
    };
    note(file(request, &patient));
    let ready = site::examine(&patient, &mut note);
    here::examine(&patient, &mut note);
    match (request.on_nodes, ready) {
        (None, _) => {}
        (Some(patience), true) => nodes::examine(&patient, patience, &mut note)?,
        (Some(_), false) => note(Finding::failed(
            "nodes",
            "no job can be submitted from here",
            "mend what failed above, then repeat with --on-nodes",
        )),
    }
    Ok(findings)
}

fn file(request: &Request, patient: &Patient) -> Finding {
    match &request.cluster {
        Some(_) => Finding::ok("cluster-file", patient.cluster.file.display().to_string()),
        None => Finding::ok("cluster-file", "none: Slurm's own defaults (--cluster NAME chooses one)"),
    }
}

fn patient(request: &Request) -> Result<Patient> {
    let beside = request.study.clone().unwrap_or_else(|| PathBuf::from("configs/any.toml"));
    let cluster = match &request.cluster {
        Some(word) => study::load_cluster(&study::find_cluster(word, &beside))?,
        None => study::plain_cluster()?,
    };
    let mut root = request.root.clone().unwrap_or_default();
    let study = match &request.study {
        Some(file) => {
            let study = study::load(file, request.profile.as_deref(), stages::all_specs())?;
            root = super::place::Place::new(request.root.as_deref(), file, &study.name, &study.profile)?.root;
            Some(study.on_cluster(&cluster)?)
        }
        None => None,
    };
    let root = std::path::absolute(if root.as_os_str().is_empty() { ".".into() } else { root })
        .map_err(|e| WorkflowError::Usage(format!("there is no current directory: {e}")))?;
    let client = match cluster.site.clusters.as_slice() {
        [only] => Client::new().at(Some(only)),
        _ => Client::new(),
    };
    Ok(Patient { cluster, study, root, client, named: request.cluster.is_some() })
}
