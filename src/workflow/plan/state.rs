//! Judging cells: done, stopped, stale (which key changed), missing, queued.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Policy;
use super::cells::{CellDef, Expansion};
use super::gates::{self, Halt};
use crate::record::decision::{Decision, GATE_KIND};
use crate::record::seal::{OutputProblem, Seal};
use crate::record::{Adjust, Change, Digest, Fingerprint, Outcome, Why, fingerprint};
use crate::workflow::study::{On, Study};

/// What was found in a run directory.
#[derive(Debug, Clone)]
pub enum SealView {
    /// A seal that is whole.
    Sealed {
        /// The seal. Its source may lack parameters and needs where its fingerprint is the cell's: the plan has them.
        seal: Box<Seal>,
        /// What is wrong with its outputs.
        problem: Option<OutputProblem>,
    },
    /// A seal that cannot be trusted, and why.
    Damaged(String),
    /// No seal, but the decision of a gate that waits for a person.
    Asked {
        /// The decision.
        decision: Box<Decision>,
        /// Whether its evidence has been confirmed.
        confirmed: bool,
    },
}

/// A job that is queued or running for a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveJob {
    /// Job id, of the array or single job.
    pub id: String,
    /// Its unique name.
    pub name: String,
    /// Array index; `None` for a single job.
    pub slot: Option<u32>,
    /// Whether other cells share it, element or not.
    pub packed: bool,
    /// Fingerprint it was submitted with.
    pub fingerprint: Fingerprint,
    /// What Slurm says, e.g. `PENDING`, or `unknown`.
    pub state: String,
    /// Earlier jobs of the same cell that live, too: links before this one.
    pub before: Vec<LiveJob>,
}

impl LiveJob {
    /// What scontrol and scancel take.
    pub fn element(&self) -> String {
        match self.slot {
            Some(slot) => format!("{}_{slot}", self.id),
            None => self.id.clone(),
        }
    }
}

/// Where a cell stands.
#[derive(Debug, Clone, PartialEq)]
pub enum CellState {
    /// Sealed and fresh. `code` is set when other code than this program's sealed it.
    Done {
        /// The other code's version and revision.
        code: Option<String>,
    },
    /// A gate or kill criterion said stop, here or upstream.
    Stopped(Halt),
    /// A gate waits for a person, here or upstream.
    Waiting(Halt),
    /// Sealed, but under another fingerprint or with other parents.
    Stale(Vec<Change>),
    /// Sealed, but an output is gone or changed.
    MissingOutputs(String),
    /// Sealed, but the seal cannot be trusted.
    Damaged(String),
    /// Never sealed.
    Missing,
    /// A job for it is queued or running.
    Queued(LiveJob),
    /// A job for it is queued or running under another fingerprint.
    QueuedStale(LiveJob),
}

impl CellState {
    /// True if the cell must be submitted.
    pub fn must_run(&self) -> bool {
        matches!(
            self,
            Self::Stale(_) | Self::MissingOutputs(_) | Self::Damaged(_) | Self::Missing | Self::QueuedStale(_)
        )
    }

    /// True if the cell is sealed and fresh.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done { .. })
    }

    /// One word for people and for JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Done { .. } => "done",
            Self::Stopped(_) => "stopped",
            Self::Waiting(_) => "waiting",
            Self::Stale(_) => "stale",
            Self::MissingOutputs(_) => "missing-outputs",
            Self::Damaged(_) => "damaged",
            Self::Missing => "missing",
            Self::Queued(_) => "queued",
            Self::QueuedStale(_) => "queued-stale",
        }
    }

    /// The word, and who said so: `stopped (gate gap)`.
    pub fn label(&self) -> String {
        match self {
            Self::Stopped(halt) | Self::Waiting(halt) => format!("{} ({})", self.word(), halt.source()),
            _ => self.word().to_owned(),
        }
    }

    /// The reason, for people; empty where the word says all.
    pub fn reason(&self) -> String {
        match self {
            Self::Done { code: Some(code) } => format!("by other code {code}"),
            Self::Done { code: None } | Self::Missing => String::new(),
            Self::Stopped(halt) | Self::Waiting(halt) => format!("{}: {}", halt.source(), halt.why),
            Self::MissingOutputs(why) | Self::Damaged(why) => why.clone(),
            Self::Stale(changes) => {
                let mut parts: Vec<String> = changes.iter().take(3).map(ToString::to_string).collect();
                if changes.len() > 3 {
                    parts.push(format!("and {} more", changes.len() - 3));
                }
                parts.join("; ")
            }
            Self::Queued(job) => format!("job {} {}", job.element(), job.state),
            Self::QueuedStale(job) => format!("job {} {} with other parameters", job.element(), job.state),
        }
    }
}

/// A cell with its state.
#[derive(Debug, Clone)]
pub struct PlannedCell {
    /// What the study defines.
    pub def: Arc<CellDef>,
    /// Where it runs.
    pub on: On,
    /// Where it stands.
    pub state: CellState,
    /// Whether this call is about it: `--seeds` and `--stages` leave others alone.
    pub selected: bool,
    /// Whether it gathers cells over an axis that it has not itself.
    pub fan_in: bool,
    /// What its attempts came to, if it is submitted again.
    pub again: Option<Again>,
}

/// What the attempts of a cell came to that is submitted again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Again {
    /// The last one.
    pub attempt: u32,
    /// Why it ended.
    pub why: Why,
    /// What it is submitted with that is other than planned.
    #[serde(default, skip_serializing_if = "Adjust::is_nothing")]
    pub adjust: Adjust,
}

impl PlannedCell {
    /// True if it is to be submitted by this call.
    pub fn to_run(&self) -> bool {
        self.selected && self.state.must_run()
    }
}

/// Version and revision of this program, as seals record it.
pub fn code() -> String {
    match option_env!("SEEDBED_REVISION") {
        Some(revision) => format!("{} {revision}", env!("CARGO_PKG_VERSION")),
        None => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

pub(super) fn judge(
    study: &Study,
    expansion: &Expansion,
    seals: &BTreeMap<String, SealView>,
    live: &BTreeMap<String, LiveJob>,
    policy: Policy,
) -> Vec<PlannedCell> {
    let mut cells: Vec<PlannedCell> = Vec::new();
    for def in &expansion.cells {
        let name = def.key.local_name();
        let mut state = match seals.get(&name) {
            None => CellState::Missing,
            Some(SealView::Damaged(why)) => CellState::Damaged(why.clone()),
            Some(SealView::Sealed { seal, problem }) => sealed(def, seal, problem.as_ref(), &cells, seals, policy),
            Some(SealView::Asked { decision, confirmed }) => gates::asked(def, decision, *confirmed, &cells, seals),
        };
        // What stopped upstream stops here, unless it is to be tried again.
        if let Some(halted) = gates::halted(def, &state, &cells) {
            state = halted;
        }
        if state.must_run()
            && let Some(job) = live.get(&name)
        {
            state = if job.fingerprint == def.fingerprint {
                CellState::Queued(job.clone())
            } else {
                CellState::QueuedStale(job.clone())
            };
        }
        let parents = || def.needs.iter().map(|&i| &cells[i].def.key);
        let fan_in = parents()
            .any(|p| (p.seed.is_some() && def.key.seed.is_none()) || (p.arm.is_some() && def.key.arm.is_none()));
        let on = study.stages[def.stage].on;
        cells.push(PlannedCell { def: def.clone(), on, state, selected: true, fan_in, again: None });
    }
    cells
}

/// A queued cell whose parent is to run again waits for a job that cannot satisfy it, or will start too
/// early: it is submitted anew behind the parent's new job.
pub(super) fn requeue_behind_parents(cells: &mut [PlannedCell]) {
    // What shares a job with a cell that goes anew goes anew, and what stands behind it, too.
    while behind_parents(cells) | beside_replaced(cells) {}
}

fn behind_parents(cells: &mut [PlannedCell]) -> bool {
    let mut changed = false;
    for i in 0..cells.len() {
        if let CellState::Queued(job) = &cells[i].state
            && cells[i].def.needs.iter().any(|&p| cells[p].to_run())
        {
            let job = job.clone();
            cells[i].state = CellState::QueuedStale(job);
            changed = true;
        }
    }
    changed
}

/// A job that several cells share is replaced for all of them.
fn beside_replaced(cells: &mut [PlannedCell]) -> bool {
    let mut changed = false;
    let replaced: BTreeSet<String> = cells
        .iter()
        .filter_map(|cell| match &cell.state {
            CellState::QueuedStale(job) if job.packed => Some(job.id.clone()),
            _ => None,
        })
        .collect();
    for cell in cells {
        if let CellState::Queued(job) = &cell.state
            && job.packed
            && replaced.contains(&job.id)
        {
            let job = job.clone();
            cell.state = CellState::QueuedStale(job);
            changed = true;
        }
    }
    changed
}

fn sealed(
    def: &CellDef,
    seal: &Seal,
    problem: Option<&OutputProblem>,
    before: &[PlannedCell],
    seals: &BTreeMap<String, SealView>,
    policy: Policy,
) -> CellState {
    let gate = gates::is_gate(def);
    if seal.fingerprint != def.fingerprint {
        let mut changed = fingerprint::changes(&seal.source, &def.source(|i| &before[i].def));
        if gate {
            changed.insert(0, gates::verdict_falls(seal));
        }
        return CellState::Stale(changed);
    }
    // Asked again of the same inputs a gate would say the same.
    if seal.outcome == Outcome::Stopped && !gate {
        return if policy.retry_stopped { CellState::Missing } else { CellState::Stopped(gates::stopped(def, seal)) };
    }
    if let Some(problem) = problem {
        return CellState::MissingOutputs(problem.to_string());
    }
    if gate {
        let mut changed = gates::changes(def, &gates::read_by(seal), before, seals);
        if !changed.is_empty() {
            changed.insert(0, gates::verdict_falls(seal));
        }
        return match seal.outcome {
            _ if !changed.is_empty() => CellState::Stale(changed),
            Outcome::Stopped => CellState::Stopped(gates::stopped(def, seal)),
            Outcome::Done => CellState::Done { code: other_code(seal) },
        };
    }
    // Equal fingerprints, but a parent was run again and gave other bytes; or it will be run again.
    let mut changed: Vec<Change> = Vec::new();
    for &i in def.needs.iter().filter(|&&i| !gates::is_gate(&before[i].def)) {
        let parent = before[i].def.key.local_name();
        if before[i].state.must_run() || matches!(before[i].state, CellState::Queued(_)) {
            let why = serde_json::Value::from(before[i].state.word());
            changed.push(Change { key: format!("needs.{parent}"), old: Some("done".into()), new: Some(why) });
            continue;
        }
        if let Some(SealView::Sealed { seal: now, .. }) = seals.get(&parent) {
            changed.extend(changed_reads(seal, now, &parent));
        }
    }
    if changed.is_empty() { CellState::Done { code: other_code(seal) } } else { CellState::Stale(changed) }
}

/// What a sealed cell read of a needed cell that this one, sealed again since, holds otherwise.
pub fn changed_reads(seal: &Seal, now: &Seal, parent: &str) -> Vec<Change> {
    // Sorted by path; a cell that gathers has read thousands.
    let sorted = |path: &str| seal.read.binary_search_by(|f| f.path.as_str().cmp(path)).ok().map(|at| &seal.read[at]);
    let changed = |(path, digest): (String, Digest)| {
        let old = sorted(&path).or_else(|| seal.read.iter().find(|f| f.path == path))?;
        let (old, new) = (Some(old.digest.as_str().into()), Some(digest.as_str().into()));
        (old != new).then_some(Change { key: path, old, new })
    };
    reads(now, parent).into_iter().filter_map(changed).collect()
}

/// The code that sealed, if it was not this program's.
fn other_code(seal: &Seal) -> Option<String> {
    (seal.code != code()).then(|| seal.code.clone())
}

/// What a child reads of a sealed parent, by path below the profile's directory. For `run.h5` it is the
/// content digest: a parent that ran again to the same content leaves its children fresh. A built-in
/// stage's JSON, CSV and text files are printed from `run.h5` and do not count. Of a gate nothing is read.
pub fn reads(seal: &Seal, parent: &str) -> Vec<(String, Digest)> {
    if seal.source.kind == GATE_KIND {
        return Vec::new();
    }
    let derived = |path: &str| {
        let printed = [".h5", ".json", ".csv", ".txt"].iter().any(|end| path.ends_with(end));
        path == "run.h5" || (seal.source.kind != "command" && printed && !path.contains('/'))
    };
    let run = seal.content.iter().map(|content| (format!("{parent}/run.h5"), content.clone()));
    let files = seal.outputs.iter().filter(|f| !derived(&f.path));
    run.chain(files.map(|f| (format!("{parent}/{}", f.path), f.digest.clone()))).collect()
}
