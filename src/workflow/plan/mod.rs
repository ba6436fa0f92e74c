//! The plan: what a study asks for, joined with what is sealed and what is queued. Pure: no file, clock,
//! environment or process.
//!
//! [`expand`] makes the cells with their fingerprints, [`Plan::new`] judges each one, and [`jobs`] cuts
//! what is left into arrays with the edges that contracts allow.

mod cells;
mod gates;
mod jobs;
mod pack;
mod state;

pub use cells::{CellDef, Expansion, PlanError, Recipe, expand};
pub use gates::{Halt, is_gate};
pub use jobs::{Chain, Edge, EdgeKind, JobShape, Link, PlannedJob, Target, jobs, links};
pub use pack::Pack;
pub use state::{Again, CellState, LiveJob, PlannedCell, SealView, changed_reads, code, reads};

use std::collections::{BTreeMap, BTreeSet};

use super::study::{On, Study};
use crate::record::{CellKey, FingerprintSource, Name};

/// Every cell of a study with its state.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Cells in an order in which they can run.
    pub cells: Vec<PlannedCell>,
}

impl Plan {
    /// Judges every cell: `seals` holds what was found in the run directories, `live` what the journal and
    /// Slurm say is queued or running, by [`CellKey::local_name`].
    pub fn new(
        study: &Study,
        expansion: &Expansion,
        seals: &BTreeMap<String, SealView>,
        live: &BTreeMap<String, LiveJob>,
        policy: Policy,
    ) -> Self {
        let mut cells = state::judge(study, expansion, seals, live, policy);
        state::requeue_behind_parents(&mut cells);
        Self { cells }
    }

    /// Limits the plan to some seeds and stages; `None` is all. Cells without a seed are always in.
    pub fn select(&mut self, seeds: Option<&[u32]>, stages: Option<&[Name]>) {
        for cell in &mut self.cells {
            let key = &cell.def.key;
            let seed = seeds.is_none_or(|wanted| key.seed.is_none_or(|s| wanted.contains(&s)));
            let stage = stages.is_none_or(|wanted| wanted.contains(&key.stage));
            cell.selected = seed && stage;
        }
    }

    /// Leaves out what would be submitted and is not among `taken`; returns how many cells that are.
    pub fn hold_back(&mut self, taken: &BTreeSet<CellKey>) -> usize {
        let mut left_out = 0;
        for cell in self.cells.iter_mut().filter(|c| c.to_run() && c.on == On::Compute) {
            if !taken.contains(&cell.def.key) {
                cell.selected = false;
                left_out += 1;
            }
        }
        left_out
    }

    /// Queued jobs under other parameters that this call would replace, for which `--replace` must be said.
    /// Cells that gather over seeds are replaced without asking: each new seed changes them.
    pub fn conflicts(&self) -> Vec<&PlannedCell> {
        let other = |cell: &&PlannedCell| match &cell.state {
            CellState::QueuedStale(job) => cell.selected && !cell.fan_in && job.fingerprint != cell.def.fingerprint,
            _ => false,
        };
        self.cells.iter().filter(other).collect()
    }

    /// A cell of this call whose queued job would be replaced, and one that shares the job and is not of this call.
    pub fn torn(&self) -> Option<(&PlannedCell, &PlannedCell)> {
        let shared = |cell: &PlannedCell| match &cell.state {
            CellState::QueuedStale(job) if job.packed => Some(job.id.clone()),
            _ => None,
        };
        self.to_run().find_map(|cell| {
            let id = shared(cell)?;
            let other = self.cells.iter().find(|c| !c.selected && shared(c).as_ref() == Some(&id))?;
            Some((cell, other))
        })
    }

    /// Cells to run whose needed cells are neither sealed, nor queued, nor run by this call.
    pub fn orphans(&self) -> Vec<(&PlannedCell, &PlannedCell)> {
        let mut found = Vec::new();
        for cell in self.to_run().filter(|c| !c.fan_in) {
            for &need in &cell.def.needs {
                let parent = &self.cells[need];
                if parent.state.must_run() && !parent.selected {
                    found.push((cell, parent));
                }
            }
        }
        found
    }

    /// The cell of that key.
    pub fn cell(&self, key: &CellKey) -> Option<&PlannedCell> {
        self.cells.iter().find(|c| c.def.key == *key)
    }

    /// Every cell by its key: for who asks for many.
    pub fn by_key(&self) -> BTreeMap<&CellKey, &PlannedCell> {
        self.cells.iter().map(|cell| (&cell.def.key, cell)).collect()
    }

    /// What the fingerprint of one of the cells is made from.
    pub fn source(&self, def: &CellDef) -> FingerprintSource {
        def.source(|i| &self.cells[i].def)
    }

    /// Cells that must run.
    pub fn to_run(&self) -> impl Iterator<Item = &PlannedCell> {
        self.cells.iter().filter(|c| c.to_run())
    }

    /// Number of cells whose state satisfies `pick`.
    pub fn count(&self, pick: impl Fn(&CellState) -> bool) -> usize {
        self.cells.iter().filter(|c| pick(&c.state)).count()
    }
}

/// Choices of the person who asks for the plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Try cells again that a gate or kill criterion stopped.
    pub retry_stopped: bool,
    /// Submit a cell anew although one with another fingerprint is queued.
    pub replace: bool,
}

#[cfg(test)]
mod tests;
