//! What cells are to cost before they run: hours of GPUs and cores, bytes, money. Pure: what it answers depends on
//! the study, the plan and what was measured.
//!
//! A cell counts what is allocated to it, used or not, for as long as it is expected to hold it. What is expected is,
//! in this order: the mean of the stage's cells that are done, what the study says (`expected`), the time limit.

use std::collections::BTreeMap;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

use serde::{Deserialize, Serialize};

use super::journal::BilledStage;
use super::plan::{CellState, Plan, PlannedCell, SealView};
use super::study::{Price, Run, Stage, Study};
use crate::record::{Name, Origin, Resources};

/// Attempts beyond those that the expected time needs, at worst, of a stage that goes on from checkpoints.
const SPARE_ATTEMPTS: f64 = 2.0;

/// The least share of the expected time that a cell which has run before is still to take.
const LEAST_LEFT: f64 = 0.1;

/// Hours of allocated devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Hours {
    /// Of one GPU.
    pub gpu_hours: f64,
    /// Of one core.
    pub cpu_hours: f64,
}

impl Hours {
    /// `gpus` and `cores` held for `wall_s` seconds.
    pub fn of(gpus: u32, cores: u32, wall_s: f64) -> Self {
        let hours = wall_s / 3600.0;
        Self { gpu_hours: f64::from(gpus) * hours, cpu_hours: f64::from(cores) * hours }
    }

    /// Their price; `None` where none is known.
    pub fn cost(self, price: &Price) -> Option<f64> {
        if price.gpu_hour.is_none() && price.cpu_hour.is_none() {
            return None;
        }
        Some(price.gpu_hour.unwrap_or(0.0) * self.gpu_hours + price.cpu_hour.unwrap_or(0.0) * self.cpu_hours)
    }
}

impl Add for Hours {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self { gpu_hours: self.gpu_hours + more.gpu_hours, cpu_hours: self.cpu_hours + more.cpu_hours }
    }
}

impl AddAssign for Hours {
    fn add_assign(&mut self, more: Self) {
        *self = *self + more;
    }
}

impl Mul<f64> for Hours {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        Self { gpu_hours: self.gpu_hours * factor, cpu_hours: self.cpu_hours * factor }
    }
}

impl Sum for Hours {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::default(), Add::add)
    }
}

/// GPUs of one cell.
pub fn gpus(resources: &Resources) -> u32 {
    resources.nodes * resources.gpus_per_node
}

/// Cores of one cell.
pub fn cores(resources: &Resources) -> u32 {
    resources.ranks() * resources.cpus_per_task
}

/// Where an expected time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The time limit: nobody said or measured anything.
    Limit,
    /// The study says it.
    Said,
    /// So many cells of the stage are done.
    Measured(usize),
}

/// What one cell of a stage takes in all its attempts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Seconds, as expected.
    pub expected_s: f64,
    /// Where that comes from.
    pub basis: Basis,
    /// Seconds at worst: every attempt to its limit.
    pub worst_s: f64,
}

impl Estimate {
    /// The estimate of a stage whose finished cells took `measured_s` seconds.
    pub fn of(stage: &Stage, measured_s: &[f64]) -> Self {
        let limit_s = stage.resources.time_s as f64;
        let (expected_s, basis) = match (measured_s.len(), stage.expected_s) {
            (0, Some(said)) => (said as f64, Basis::Said),
            (0, None) => (limit_s, Basis::Limit),
            (n, _) => (measured_s.iter().sum::<f64>() / n as f64, Basis::Measured(n)),
        };
        let attempts = if resumable(stage) { (expected_s / limit_s).ceil().max(1.0) + SPARE_ATTEMPTS } else { 1.0 };
        Self { expected_s, basis, worst_s: limit_s * attempts }
    }

    /// What is left of it for a cell that has run for `done_s` seconds under the same parameters.
    fn after(self, done_s: f64, resumable: bool) -> Self {
        if !resumable {
            return self;
        }
        Self { expected_s: left(self.expected_s, done_s), worst_s: left(self.worst_s, done_s), ..self }
    }
}

/// What is left of `whole_s` seconds after `done_s` of them; never less than a tenth.
pub fn left(whole_s: f64, done_s: f64) -> f64 {
    (whole_s - done_s).max(whole_s * LEAST_LEFT)
}

/// What cells of a call, and those that are queued already, are to cost.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bill {
    /// Cells to run.
    pub cells: usize,
    /// What they are expected to take.
    pub expected: Hours,
    /// What they take at worst.
    pub worst: Hours,
    /// Cells that are queued or running already.
    pub queued_cells: usize,
    /// What those are still expected to take.
    pub queued: Hours,
    /// What those take at worst.
    pub queued_worst: Hours,
    /// Bytes that finished cells leave, where the study says: of those to run and those that are queued.
    pub storage_bytes: u64,
    /// By stage, one cell of it, with the number of its cells to run.
    pub stages: BTreeMap<Name, BilledStage>,
    /// Stages to run that keep no checkpoint: a cell of them that is cut short begins anew. In the order of the plan.
    pub rigid: Vec<Name>,
    /// Cells of those that ran before and left no result, as far as it is known, by local name.
    pub anew: Vec<String>,
}

impl Bill {
    /// The bill of the cells that `plan` selects. `done_s` has the seconds that cells have run for already, under
    /// the parameters that are planned, by local name.
    pub fn new(study: &Study, plan: &Plan, seals: &BTreeMap<String, SealView>, done_s: &BTreeMap<String, f64>) -> Self {
        let estimates = estimates(study, plan, seals);
        let mut bill = Self::default();
        for cell in &plan.cells {
            let to_run = cell.to_run();
            let queued = matches!(cell.state, CellState::Queued(_));
            if !to_run && !queued {
                continue;
            }
            let stage = &study.stages[cell.def.stage];
            let (gpus, cores) = (gpus(&stage.resources), cores(&stage.resources));
            let whole = estimates[cell.def.stage];
            let done = done_s.get(&cell.def.key.local_name()).copied().unwrap_or(0.0);
            let left = whole.after(done, resumable(stage));
            let (expected, worst) = (Hours::of(gpus, cores, left.expected_s), Hours::of(gpus, cores, left.worst_s));
            bill.storage_bytes += stage.storage_bytes.unwrap_or(0);
            if queued {
                bill.queued_cells += 1;
                bill.queued += expected;
                bill.queued_worst += worst;
                continue;
            }
            if !resumable(stage) && !stage.is_gate() {
                if bill.rigid.last() != Some(&stage.name) {
                    bill.rigid.push(stage.name.clone());
                }
                // Nothing of it is sealed, and it has run: whatever it did is lost.
                if matches!(cell.state, CellState::Missing) && (cell.again.is_some() || done > 0.0) {
                    bill.anew.push(cell.def.key.local_name());
                }
            }
            bill.cells += 1;
            bill.expected += expected;
            bill.worst += worst;
            let empty = BilledStage { cells: 0, gpus, cores, expected_s: whole.expected_s, worst_s: whole.worst_s };
            bill.stages.entry(stage.name.clone()).or_insert(empty).cells += 1;
        }
        bill
    }
}

/// The estimate of every stage, in the order of the study.
pub fn estimates(study: &Study, plan: &Plan, seals: &BTreeMap<String, SealView>) -> Vec<Estimate> {
    let mut measured: Vec<Vec<f64>> = vec![Vec::new(); study.stages.len()];
    let took = |cell: &PlannedCell| match (&cell.state, seals.get(&cell.def.key.local_name())) {
        (CellState::Done { .. }, Some(SealView::Sealed { seal, .. })) if seal.origin == Origin::Run => {
            Some(seal.wall_s)
        }
        _ => None,
    };
    for cell in &plan.cells {
        measured[cell.def.stage].extend(took(cell));
    }
    study.stages.iter().zip(&measured).map(|(stage, measured)| Estimate::of(stage, measured)).collect()
}

/// Whether a stage goes on from a checkpoint.
pub fn resumable(stage: &Stage) -> bool {
    match &stage.run {
        Run::Builtin(spec) => spec.resumable,
        Run::Command(command) => command.resumable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_has_run_is_billed_for_the_rest() {
        assert_eq!(
            (left(100.0, 0.0), left(100.0, 60.0), left(100.0, 95.0), left(100.0, 500.0)),
            (100.0, 40.0, 10.0, 10.0)
        );
        let whole = Estimate { expected_s: 100.0, basis: Basis::Said, worst_s: 300.0 };
        let rest = whole.after(60.0, true);
        assert_eq!((rest.expected_s, rest.worst_s), (40.0, 240.0));
        assert_eq!(whole.after(60.0, false), whole, "it starts from the beginning");
    }

    #[test]
    fn prices_apply_to_all_that_is_held() {
        let hours = Hours::of(4, 8, 1800.0);
        assert_eq!(hours, Hours { gpu_hours: 2.0, cpu_hours: 4.0 });
        let price = Price { gpu_hour: Some(1.5), cpu_hour: Some(0.25), currency: None };
        assert_eq!(hours.cost(&price), Some(4.0));
        assert_eq!(hours.cost(&Price::default()), None);
    }
}
