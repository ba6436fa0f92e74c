//! Sums over a ledger, and what its cells were expected to take when they were submitted.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Charge, Ledger, Waste};
use crate::record::{Fingerprint, Name};
use crate::workflow::bill::{self, Estimate, Hours};
use crate::workflow::journal::{BilledStage, Entry, Event};
use crate::workflow::plan::Plan;
use crate::workflow::study::Study;

/// What some charges come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Number of cells that were started.
    pub cells: usize,
    /// Number of charges.
    pub attempts: usize,
    /// Hours that were held.
    pub hours: Hours,
    /// Whether it was more than that.
    pub at_least: bool,
    /// What of it was waste, by name.
    pub waste: BTreeMap<Waste, Hours>,
}

impl Totals {
    /// The sum of `charges`.
    pub fn of<'c>(charges: impl Iterator<Item = &'c Charge>) -> Self {
        let mut totals = Self::default();
        let mut cells = BTreeSet::new();
        for charge in charges {
            cells.insert(&charge.cell);
            totals.attempts += 1;
            totals.hours += charge.hours();
            totals.at_least |= charge.at_least;
            for kind in Waste::ALL {
                let wasted = charge.wasted(kind);
                if wasted != Hours::default() {
                    *totals.waste.entry(kind).or_default() += wasted;
                }
            }
        }
        totals.cells = cells.len();
        totals
    }
}

impl Ledger {
    /// The sum of all charges.
    pub fn totals(&self) -> Totals {
        Totals::of(self.charges.iter())
    }
}

/// What was expected of the cells of each stage, once for each set of parameters: as it was billed when they were first
/// submitted, and for cells of the plan that never were, as it is now.
pub fn estimated(
    ledger: &Ledger,
    entries: &[Entry],
    study: &Study,
    plan: &Plan,
    now: &[Estimate],
) -> BTreeMap<Name, Hours> {
    let mut bills: BTreeMap<&str, &BTreeMap<Name, BilledStage>> = BTreeMap::new();
    // The first submission of each cell under each fingerprint.
    let mut first: BTreeMap<(&str, &Fingerprint), (&str, &Name)> = BTreeMap::new();
    for entry in entries {
        match &entry.event {
            Event::Billed { submission, stages } => {
                bills.insert(submission, stages);
            }
            Event::Intent { submission, stage, cells, .. } => {
                for (name, cell) in cells {
                    first.entry((name.as_str(), &cell.fingerprint)).or_insert((submission.as_str(), stage));
                }
            }
            _ => {}
        }
    }
    // What ran on this machine was never handed to Slurm.
    for charge in &ledger.charges {
        let key = (charge.cell.as_str(), &charge.fingerprint);
        first.entry(key).or_insert((charge.submission.as_str(), &charge.stage));
    }
    let mut stages: BTreeMap<Name, Hours> = BTreeMap::new();
    for ((cell, fingerprint), (submission, stage)) in &first {
        let billed = bills.get(submission).and_then(|stages| stages.get(*stage));
        let of_cell = |c: &&Charge| c.cell == *cell && c.fingerprint == **fingerprint;
        let hours = match billed {
            Some(billed) => Hours::of(billed.gpus, billed.cores, billed.expected_s),
            // Submitted by a program that wrote no bill: then its limit was the estimate.
            None => ledger
                .charges
                .iter()
                .find(of_cell)
                .map_or_else(Hours::default, |charge| Hours::of(charge.gpus, charge.cores, charge.limit_s as f64)),
        };
        *stages.entry((*stage).clone()).or_default() += hours;
    }
    for cell in plan.cells.iter().filter(|cell| cell.state.must_run()) {
        let name = cell.def.key.local_name();
        if first.contains_key(&(name.as_str(), &cell.def.fingerprint)) {
            continue;
        }
        let stage = &study.stages[cell.def.stage];
        let r = &stage.resources;
        let hours = Hours::of(bill::gpus(r), bill::cores(r), now[cell.def.stage].expected_s);
        *stages.entry(stage.name.clone()).or_default() += hours;
    }
    stages
}
