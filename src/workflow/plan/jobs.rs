//! Cutting what is left to run into jobs: one array per stage and arm, with native dependency edges.
//!
//! An array is split where its cells wait for different jobs, so that an edge between arrays joins equal
//! slots only. Edges to what is sealed are left out: nothing waits for a job that Slurm has forgotten.

use std::collections::BTreeMap;

use super::{CellState, LiveJob, Plan};
use crate::record::{CellKey, Name};
use crate::workflow::study::{On, Study};

/// How cells become jobs on a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobShape {
    /// How the chain is carried.
    pub chain: Chain,
    /// `MaxArraySize`: every index is below it. Slots beyond go to further arrays.
    pub max_array_size: u32,
}

/// How the chain is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// Arrays with `aftercorr`; needs `--kill-on-invalid-dep`.
    Arrays,
    /// One job for each cell with `afterany`; the gate inside each job decides.
    Singles,
}

/// What Slurm waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EdgeKind {
    /// Element i after element i.
    AfterCorr,
    /// After success.
    AfterOk,
    /// After the end, whatever it was.
    AfterAny,
}

/// The job that is waited for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Another job of this plan, by index.
    Planned(usize),
    /// A job that Slurm knows already, by id.
    Live(String),
}

/// A dependency.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// Its kind.
    pub kind: EdgeKind,
    /// What it waits for.
    pub target: Target,
}

/// One `sbatch` call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedJob {
    /// The stage.
    pub stage: Name,
    /// The arm, if the stage has that axis.
    pub arm: Option<Name>,
    /// Array indices with their cells; `None` is a job without an array.
    pub cells: Vec<(Option<u32>, CellKey)>,
    /// What it waits for, sorted.
    pub edges: Vec<Edge>,
    /// Queued jobs that this one replaces.
    pub replaces: Vec<LiveJob>,
}

/// Cuts the cells of `plan` that must run into jobs. `slots` gives every seed its slot.
/// A stage that runs on the login node is not among them: it has run before anything is submitted.
pub fn jobs(study: &Study, plan: &Plan, slots: &BTreeMap<u32, u32>, shape: JobShape) -> Vec<PlannedJob> {
    let mut jobs: Vec<PlannedJob> = Vec::new();
    let mut job_of: BTreeMap<&CellKey, usize> = BTreeMap::new();
    let mut first_of_stage = 0;
    let mut stage_now = None;
    for cell in plan.to_run().filter(|c| c.on == On::Compute) {
        if stage_now != Some(cell.def.stage) {
            stage_now = Some(cell.def.stage);
            first_of_stage = jobs.len();
        }
        let key = &cell.def.key;
        let mut edges: Vec<Edge> = Vec::new();
        for &need in &cell.def.needs {
            let parent = &plan.cells[need];
            let target = match (&parent.state, job_of.get(&parent.def.key)) {
                (_, Some(&job)) => Target::Planned(job),
                (CellState::Queued(job), None) => Target::Live(job.id.clone()),
                // Sealed, stopped, or run on the login node before this job is submitted.
                _ => continue,
            };
            let single_parent = match &parent.state {
                CellState::Queued(job) => job.slot.is_none(),
                _ => shape.chain == Chain::Singles || parent.def.key.seed.is_none(),
            };
            let kind = edge_kind(&parent.def.key, key, shape.chain, single_parent);
            edges.push(Edge { kind, target });
        }
        edges.sort();
        edges.dedup();
        let slot = key.seed.and_then(|s| slots.get(&s).copied());
        let (chunk, index) = match (shape.chain, slot) {
            (Chain::Arrays, Some(slot)) => {
                let size = shape.max_array_size.max(1);
                (Some(slot / size), Some(slot % size))
            }
            _ => (None, None),
        };
        let replaces = match &cell.state {
            CellState::QueuedStale(job) => vec![job.clone()],
            _ => Vec::new(),
        };
        let joins = |job: &PlannedJob| {
            index.is_some()
                && job.stage == key.stage
                && job.arm == key.arm
                && job.edges == edges
                && job.cells.first().is_some_and(|(_, first)| {
                    let slot = first.seed.and_then(|s| slots.get(&s).copied());
                    slot.map(|s| s / shape.max_array_size.max(1)) == chunk
                })
        };
        let at = match jobs[first_of_stage..].iter().position(joins) {
            Some(at) => first_of_stage + at,
            None => {
                let (stage, arm) = (key.stage.clone(), key.arm.clone());
                jobs.push(PlannedJob { stage, arm, cells: Vec::new(), edges, replaces: Vec::new() });
                jobs.len() - 1
            }
        };
        jobs[at].cells.push((index, key.clone()));
        jobs[at].replaces.extend(replaces);
        job_of.insert(key, at);
    }
    for job in &mut jobs {
        job.cells.sort();
    }
    debug_assert!(jobs.iter().all(|j| study.stage(j.stage.as_str()).is_some()));
    jobs
}

fn edge_kind(parent: &CellKey, child: &CellKey, chain: Chain, single_parent: bool) -> EdgeKind {
    let fan_in = (parent.seed.is_some() && child.seed.is_none())
        || (parent.arm.is_some() && child.arm.is_none() && child.seed.is_none());
    if chain == Chain::Singles || fan_in {
        EdgeKind::AfterAny
    } else if single_parent {
        EdgeKind::AfterOk
    } else {
        EdgeKind::AfterCorr
    }
}
