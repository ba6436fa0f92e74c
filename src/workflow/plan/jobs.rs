//! Cutting what is left to run into jobs: one array per stage and arm, with native dependency edges.
//!
//! An array is split where its cells wait for different jobs, so that an edge between arrays joins equal
//! slots only. Edges to what is sealed are left out: nothing waits for a job that Slurm has forgotten.
//!
//! Cells that are packed share a job that is no array; it waits for the end of everything that one of them needs, and
//! the gate of each decides.
//!
//! Where a job may not be requeued, a stage that needs several time limits is a chain of links: one job for each cell
//! and link, each behind the one before, and what waits for the cell waits for the last.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gates::is_gate;
use super::{CellState, LiveJob, Pack, Plan, PlannedCell};
use crate::record::{Adjust, CellKey, Name};
use crate::workflow::study::{On, Run, Stage, Study};

/// How cells become jobs on a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobShape {
    /// How the chain is carried.
    pub chain: Chain,
    /// `MaxArraySize`: every index is below it. Slots beyond go to further arrays.
    pub max_array_size: u32,
    /// Whether a job that checkpointed can be put back into the queue; else stages that can go on are chains of links.
    pub requeue: bool,
    /// Whether stages that say so have several cells in a job.
    pub packs: bool,
}

/// The place of a job in a chain of jobs that run one cell in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its number, from 1.
    pub number: u32,
    /// Jobs in all.
    pub of: u32,
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
    /// One element of an array of this plan: the array's index here, the element's there.
    Element(usize, u32),
    /// A job or element that Slurm knows already, by id.
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
    /// Its place in a chain of links.
    pub link: Option<Link>,
    /// How its cells share it; none for a job or element of one cell.
    pub pack: Option<Pack>,
    /// What it asks for that is other than planned.
    pub adjust: Adjust,
}

/// Links of one cell of a stage: enough for the time that it is expected to take, and two for what nobody expects;
/// none where its job can be requeued, or where it cannot go on from a checkpoint.
pub fn links(stage: &Stage, shape: JobShape) -> Option<u32> {
    let resumable = match &stage.run {
        Run::Builtin(spec) => spec.resumable,
        Run::Command(command) => command.resumable,
    };
    let limit = stage.resources.time_s.max(1);
    let needed = stage.expected_s.unwrap_or(limit).div_ceil(limit).max(1);
    (resumable && !shape.requeue).then(|| u32::try_from(needed).unwrap_or(u32::MAX).saturating_add(2).min(MOST_LINKS))
}

/// More links of one cell than this would be a mistake in `expected`.
const MOST_LINKS: u32 = 100;

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
        let stage = &study.stages[cell.def.stage];
        let links = links(stage, shape);
        let pack = stage.pack.filter(|_| shape.packs);
        let mut edges: Vec<Edge> = Vec::new();
        for &need in &cell.def.needs {
            let parent = &plan.cells[need];
            let target = match (&parent.state, job_of.get(&parent.def.key)) {
                (_, Some(&job)) => Target::Planned(job),
                (CellState::Queued(job), None) => Target::Live(job.id.clone()),
                // Sealed, stopped, or run on the login node before this job is submitted.
                _ => continue,
            };
            let (array, packed) = match &target {
                Target::Planned(job) => {
                    (jobs[*job].cells.iter().any(|(index, _)| index.is_some()), jobs[*job].pack.is_some())
                }
                _ => (live_slot(parent).is_some(), live_packed(parent)),
            };
            // Of a job that several cells share, one may end badly and the others well.
            let shared = packed || pack.is_some();
            // One job over all seeds: it judges what is there, whatever became of the rest.
            let kind = if shared || (is_gate(&cell.def) && key.seed.is_none()) {
                EdgeKind::AfterAny
            } else {
                edge_kind(&parent.def.key, key, shape.chain, array && links.is_none())
            };
            // A job that is no array although it has a seed waits for the elements of its own seeds only.
            let own = array && parent.def.key.seed.is_some() && key.seed.is_some();
            let own = own && (kind == EdgeKind::AfterOk || pack.is_some());
            let target = match target {
                Target::Planned(job) if own => {
                    jobs[job].index_of(&parent.def.key).map_or(target, |index| Target::Element(job, index))
                }
                Target::Live(id) if own => {
                    Target::Live(live_slot(parent).map_or(id.clone(), |index| format!("{id}_{index}")))
                }
                target => target,
            };
            edges.push(Edge { kind, target });
        }
        edges.sort();
        edges.dedup();
        let slot = key.seed.and_then(|s| slots.get(&s).copied()).filter(|_| links.is_none() && pack.is_none());
        let (chunk, index) = match (shape.chain, slot) {
            (Chain::Arrays, Some(slot)) => {
                let size = shape.max_array_size.max(1);
                (Some(slot / size), Some(slot % size))
            }
            _ => (None, None),
        };
        let mut replaces = Vec::new();
        if let CellState::QueuedStale(job) = &cell.state {
            replaces.extend(job.before.iter().cloned());
            replaces.push(job.clone());
        }
        let adjust = cell.again.as_ref().map(|again| again.adjust.of_the_job()).unwrap_or_default();
        let joins = |job: &PlannedJob| {
            if let Some(pack) = pack {
                return job.arm == key.arm && job.adjust == adjust && job.cells.len() < pack.cells as usize;
            }
            index.is_some()
                && job.stage == key.stage
                && job.arm == key.arm
                && job.edges == edges
                && job.adjust == adjust
                && job.cells.first().is_some_and(|(_, first)| {
                    let slot = first.seed.and_then(|s| slots.get(&s).copied());
                    slot.map(|s| s / shape.max_array_size.max(1)) == chunk
                })
        };
        let at = match jobs[first_of_stage..].iter().position(joins) {
            Some(at) => first_of_stage + at,
            None => {
                let (stage, arm) = (key.stage.clone(), key.arm.clone());
                let link = links.map(|of| Link { number: 1, of });
                let at = jobs.len();
                let (cells, replaces) = (Vec::new(), Vec::new());
                jobs.push(PlannedJob { stage, arm, cells, edges: edges.clone(), replaces, link, pack, adjust });
                for number in 2..=links.unwrap_or(1) {
                    let mut next = jobs[at].clone();
                    next.edges = vec![Edge { kind: EdgeKind::AfterAny, target: Target::Planned(jobs.len() - 1) }];
                    next.link = links.map(|of| Link { number, of });
                    jobs.push(next);
                }
                at
            }
        };
        jobs[at].replaces.extend(replaces);
        if pack.is_some() {
            jobs[at].edges.extend(edges);
        }
        let last = at + links.map_or(0, |of| of as usize - 1);
        for job in &mut jobs[at..=last] {
            job.cells.push((index, key.clone()));
        }
        job_of.insert(key, last);
    }
    for job in &mut jobs {
        job.cells.sort();
        job.edges.sort();
        job.edges.dedup();
        job.replaces.dedup_by(|a, b| a.id == b.id && a.slot == b.slot);
        if let Some(pack) = &mut job.pack {
            pack.cells = u32::try_from(job.cells.len()).unwrap_or(u32::MAX);
        }
        // What is left over of the last pack.
        job.pack = job.pack.filter(|pack| pack.cells > 1);
    }
    debug_assert!(jobs.iter().all(|j| study.stage(j.stage.as_str()).is_some()));
    jobs
}

impl PlannedJob {
    /// How many jobs Slurm counts: elements one by one.
    pub fn elements(&self) -> usize {
        if self.pack.is_some() { 1 } else { self.cells.len() }
    }

    /// The array index of a cell; none for a job without an array.
    fn index_of(&self, key: &CellKey) -> Option<u32> {
        self.cells.iter().find(|(_, cell)| cell == key)?.0
    }
}

fn live_slot(cell: &PlannedCell) -> Option<u32> {
    match &cell.state {
        CellState::Queued(job) => job.slot,
        _ => None,
    }
}

fn live_packed(cell: &PlannedCell) -> bool {
    matches!(&cell.state, CellState::Queued(job) if job.packed)
}

/// `elements`: element i of the child waits for element i of the parent.
fn edge_kind(parent: &CellKey, child: &CellKey, chain: Chain, elements: bool) -> EdgeKind {
    let fan_in = (parent.seed.is_some() && child.seed.is_none())
        || (parent.arm.is_some() && child.arm.is_none() && child.seed.is_none());
    if chain == Chain::Singles || fan_in {
        EdgeKind::AfterAny
    } else if elements {
        EdgeKind::AfterCorr
    } else {
        EdgeKind::AfterOk
    }
}
