//! The budget: what a study may still cost. Asked when `run_all` is about to submit, and again by the gate of each
//! attempt, which reads the ledger anew.
//!
//! A submission of a study with a budget has a `budget.json` (`docs/formats/budget.md`); without one there is nothing
//! to ask. A person may let a study go beyond its budget: that is journalled with its reason, holds up to what was then
//! expected at worst, and is void under another budget.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::Utc;
use serde::{Deserialize, Serialize};

use super::bill::{self, Bill, Hours};
use super::error::{Result, WorkflowError};
use super::journal::{Entry, Event, Journal};
use super::ledger::{Ledger, Planned};
use super::plan::{CellState, PlannedCell, SealView};
use super::run::{Prepared, Site};
use super::study::{Budget, Price};
use crate::record::{Cell, Name, exit, files};

/// Format version of `budget.json`.
pub const BUDGET_VERSION: u32 = 1;

/// File name in a submission.
pub const BUDGET_FILE: &str = "budget.json";

/// `budget.json`: what the gate of an attempt is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetFile {
    /// [`BUDGET_VERSION`].
    pub version: u32,
    /// The study's budget.
    pub budget: Budget,
    /// The cluster's prices.
    pub price: Price,
    /// What one cell of a stage is expected to take in all, seconds.
    pub expected_s: BTreeMap<Name, f64>,
}

impl BudgetFile {
    /// Writes it into the directory of a submission.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, submission_dir: &Path) -> Result<()> {
        Ok(files::write_json(&submission_dir.join(BUDGET_FILE), self)?)
    }

    /// That of a submission; `None` if its study has no budget.
    ///
    /// # Errors
    /// It is damaged, or of a newer version.
    pub fn read(submission_dir: &Path) -> Result<Option<Self>> {
        match files::read_versioned_json(&submission_dir.join(BUDGET_FILE), BUDGET_VERSION) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// Hours of one GPU.
    GpuHours,
    /// Hours of one core.
    CpuHours,
    /// Money.
    Cost,
    /// Bytes on disk.
    Storage,
}

impl Quantity {
    /// Its key in a study's `[budget]`.
    pub fn key(self) -> &'static str {
        match self {
            Self::GpuHours => "gpu_hours",
            Self::CpuHours => "cpu_hours",
            Self::Cost => "cost",
            Self::Storage => "storage_bytes",
        }
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::GpuHours => "GPU-hours",
            Self::CpuHours => "core-hours",
            Self::Cost => "cost",
            Self::Storage => "GB on disk",
        }
    }

    /// A value of it for people.
    pub fn shown(self, value: f64) -> String {
        match self {
            Self::Cost => format!("{value:.2}"),
            Self::Storage => format!("{:.1}", value / 1e9),
            _ => format!("{value:.1}"),
        }
    }
}

/// One quantity: what is gone, what is on its way, what this call adds, and the limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Which.
    pub quantity: Quantity,
    /// Spent so far.
    pub spent: f64,
    /// Whether it was more than that.
    pub at_least: bool,
    /// What queued and running cells are still expected to take.
    pub queued: f64,
    /// What this call is expected to add.
    pub expected: f64,
    /// What this call and the queued cells take at worst.
    pub worst: f64,
    /// The limit, permissions counted.
    pub limit: Option<f64>,
}

impl Row {
    /// Spent, queued and expected.
    pub fn committed(&self) -> f64 {
        self.spent + self.queued + self.expected
    }

    /// Whether that is above the limit.
    pub fn is_over(&self) -> bool {
        self.limit.is_some_and(|limit| above(self.committed(), limit))
    }

    /// Whether the worst case is above the limit.
    pub fn may_be_over(&self) -> bool {
        self.limit.is_some_and(|limit| above(self.spent + self.worst, limit))
    }

    /// What it is, for programs.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "limit": self.limit, "spent": self.spent, "at_least": self.at_least, "queued": self.queued,
            "expected": self.expected, "worst": self.worst, "over": self.is_over(),
            "remaining": self.limit.map(|limit| limit - self.spent),
        })
    }

    /// `81.2 GPU-hours of 70.0 (12.0 spent, 0.0 queued)`.
    pub fn words(&self) -> String {
        let limit = self.limit.unwrap_or_default();
        let (committed, limit) = (self.quantity.shown(self.committed()), self.quantity.shown(limit));
        let (spent, queued) = (self.quantity.shown(self.spent), self.quantity.shown(self.queued));
        format!("{committed} {} of {limit} ({spent} spent, {queued} queued)", self.quantity.name())
    }
}

/// More than a rounding error above.
fn above(value: f64, limit: f64) -> bool {
    value > limit * (1.0 + 1e-9) + 1e-9
}

/// What was spent so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Hours.
    pub hours: Hours,
    /// Whether it was more than that.
    pub at_least: bool,
    /// Bytes of sealed outputs.
    pub bytes: u64,
}

/// One row for every quantity; for money only where there is a price.
pub fn rows(bill: &Bill, spent: Spent, price: &Price, limit: &Budget) -> Vec<Row> {
    let worst = bill.worst + bill.queued_worst;
    let hours = |quantity, pick: fn(Hours) -> f64, limit| Row {
        quantity,
        spent: pick(spent.hours),
        at_least: spent.at_least,
        queued: pick(bill.queued),
        expected: pick(bill.expected),
        worst: pick(worst),
        limit,
    };
    let mut rows = vec![
        hours(Quantity::GpuHours, |h| h.gpu_hours, limit.gpu_hours),
        hours(Quantity::CpuHours, |h| h.cpu_hours, limit.cpu_hours),
    ];
    if let Some(gone) = spent.hours.cost(price) {
        let cost = |hours: Hours| hours.cost(price).unwrap_or(0.0);
        rows.push(Row {
            quantity: Quantity::Cost,
            spent: gone,
            at_least: spent.at_least,
            queued: cost(bill.queued),
            expected: cost(bill.expected),
            worst: cost(worst),
            limit: limit.cost,
        });
    }
    rows.push(Row {
        quantity: Quantity::Storage,
        spent: spent.bytes as f64,
        at_least: false,
        queued: 0.0,
        expected: bill.storage_bytes as f64,
        worst: bill.storage_bytes as f64,
        limit: limit.storage_bytes.map(|bytes| bytes as f64),
    });
    rows
}

/// What holds now: the budget, or what a person permitted beyond it.
pub fn in_force(budget: &Budget, entries: &[Entry]) -> Budget {
    let mut limit = budget.clone();
    let permissions = entries.iter().filter_map(|entry| match &entry.event {
        Event::OverBudget { budget: then, ceiling, .. } if then == budget => Some(ceiling),
        _ => None,
    });
    for ceiling in permissions {
        let raise = |limit: &mut Option<f64>, to: Option<f64>| *limit = limit.zip(to).map(|(a, b)| a.max(b)).or(*limit);
        raise(&mut limit.gpu_hours, ceiling.gpu_hours);
        raise(&mut limit.cpu_hours, ceiling.cpu_hours);
        raise(&mut limit.cost, ceiling.cost);
        limit.storage_bytes =
            limit.storage_bytes.zip(ceiling.storage_bytes).map(|(a, b)| a.max(b)).or(limit.storage_bytes);
    }
    limit
}

/// The permission to spend what `rows` come to at worst.
pub fn permission(reason: &str, budget: &Budget, rows: &[Row]) -> Event {
    let worst = |quantity| {
        let row = rows.iter().find(|row| row.quantity == quantity)?;
        row.limit.map(|limit| (row.spent + row.worst).max(row.committed()).max(limit))
    };
    let ceiling = Budget {
        gpu_hours: worst(Quantity::GpuHours),
        cpu_hours: worst(Quantity::CpuHours),
        storage_bytes: worst(Quantity::Storage).map(|bytes| bytes as u64),
        cost: worst(Quantity::Cost),
    };
    Event::OverBudget { reason: reason.to_owned(), budget: budget.clone(), ceiling }
}

/// Refuses a bill that is above the budget.
///
/// # Errors
/// Exit code 78, with every quantity that is above.
pub fn check(rows: &[Row]) -> Result<()> {
    let over: Vec<String> = rows.iter().filter(|row| row.is_over()).map(Row::words).collect();
    if over.is_empty() {
        return Ok(());
    }
    Err(WorkflowError::attempt(
        exit::STOPPED,
        format!(
            "the bill is above the budget of the study: {}; run fewer --seeds or --stages, or say --over-budget REASON",
            over.join(", ")
        ),
    ))
}

/// The gate's question before an attempt of `cell`: is there budget left for it? What other attempts have held and are
/// expected to hold yet counts. `Some` says why there is none.
///
/// # Errors
/// `budget.json` or the journal is damaged.
pub fn refusal(cell: &Cell, submission_dir: &Path) -> Result<Option<String>> {
    let Some(told) = BudgetFile::read(submission_dir)? else { return Ok(None) };
    let entries = Journal::open(&cell.base.join(".seedbed"), "").read()?;
    let limit = in_force(&told.budget, &entries);
    let now = Utc::now();
    let ledger = Ledger::of_records(&cell.base, None, now);

    let own = cell.key.local_name();
    let expected_s = |stage: &Name| told.expected_s.get(stage).copied().unwrap_or(f64::INFINITY);
    let running: Hours = ledger
        .charges
        .iter()
        .filter(|charge| charge.open && charge.cell != own)
        .map(|charge| {
            let whole = expected_s(&charge.stage).min(charge.limit_s as f64);
            Hours::of(charge.gpus, charge.cores, (whole - charge.wall_s).max(0.0))
        })
        .sum();
    let same = ledger.charges.iter().filter(|c| c.cell == own && c.fingerprint == cell.fingerprint);
    let done_s = if cell.resumable { same.map(|charge| charge.wall_s).sum() } else { 0.0 };
    let (gpus, cores) = (bill::gpus(&cell.resources), bill::cores(&cell.resources));
    let need_s = bill::left(expected_s(&cell.key.stage), done_s).min(cell.resources.time_s as f64);
    let bill = Bill { queued: running, expected: Hours::of(gpus, cores, need_s), ..Bill::default() };
    let spent = Spent { hours: ledger.totals().hours, at_least: true, bytes: 0 };
    let hours = Budget { storage_bytes: None, ..limit };
    let over: Vec<String> =
        rows(&bill, spent, &told.price, &hours).iter().filter(|row| row.is_over()).map(Row::words).collect();
    Ok((!over.is_empty()).then(|| {
        format!(
            "the budget of the study does not cover this attempt: {}; nothing was started. Raise `budget` in the study, \
             or say --over-budget REASON, with `run_all`",
            over.join(", ")
        )
    }))
}

impl Prepared {
    /// The bill of the cells of this call.
    pub fn bill(&self) -> Bill {
        Bill::new(&self.study, &self.plan, &self.seals, &BTreeMap::new())
    }

    /// The bill of what is left of them, by the ledger.
    pub fn bill_beside(&self, ledger: &Ledger) -> Bill {
        Bill::new(&self.study, &self.plan, &self.seals, &ledger.done_s(&self.planned()))
    }

    /// What the plan says of every cell, for judging its attempts.
    pub fn planned(&self) -> BTreeMap<String, Planned> {
        let seal_counts = |state: &CellState| matches!(state, CellState::Done { .. } | CellState::Stopped(_));
        let of = |cell: &PlannedCell| Planned {
            fingerprint: cell.def.fingerprint.clone(),
            seal_counts: seal_counts(&cell.state),
        };
        self.plan.cells.iter().map(|cell| (cell.def.key.local_name(), of(cell))).collect()
    }

    /// What the study has held so far.
    pub fn ledger(&self) -> Ledger {
        let slurm = match &self.site {
            Site::Slurm(client) => Some((client, self.journal.cluster())),
            Site::Local(_) => None,
        };
        Ledger::read(&self.place.base, &self.entries, slurm, Some(&self.planned()), Utc::now())
    }

    /// The bill against the budget, one row a quantity.
    pub fn rows(&self, bill: &Bill, ledger: &Ledger) -> Vec<Row> {
        let totals = ledger.totals();
        let bytes = sealed_bytes(&self.seals);
        let spent = Spent { hours: totals.hours, at_least: totals.at_least, bytes };
        let limit = in_force(&self.study.budget.clone().unwrap_or_default(), &self.entries);
        rows(bill, spent, &self.cluster.price, &limit)
    }

    /// What the gates of a submission are told, where the study has a budget.
    pub(super) fn budget_file(&self) -> Option<BudgetFile> {
        let expected = bill::estimates(&self.study, &self.plan, &self.seals);
        let stages = self.study.stages.iter().zip(expected);
        Some(BudgetFile {
            version: BUDGET_VERSION,
            budget: self.study.budget.clone()?,
            price: self.cluster.price.clone(),
            expected_s: stages.map(|(stage, estimate)| (stage.name.clone(), estimate.expected_s)).collect(),
        })
    }
}

/// Bytes of everything that is sealed.
fn sealed_bytes(seals: &BTreeMap<String, SealView>) -> u64 {
    let outputs = seals.values().filter_map(|view| match view {
        SealView::Sealed { seal, .. } => Some(&seal.outputs),
        SealView::Damaged(_) | SealView::Asked { .. } => None,
    });
    outputs.flatten().map(|file| file.size_bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(gpu_hours: f64) -> Hours {
        Hours { gpu_hours, cpu_hours: 10.0 * gpu_hours }
    }

    fn bill() -> Bill {
        Bill {
            cells: 2,
            expected: hours(20.0),
            worst: hours(60.0),
            queued_cells: 1,
            queued: hours(4.0),
            queued_worst: hours(8.0),
            ..Bill::default()
        }
    }

    fn spent(gpu_hours: f64) -> Spent {
        Spent { hours: hours(gpu_hours), ..Spent::default() }
    }

    fn entry(event: Event) -> Entry {
        Entry { version: event.version(), time: Utc::now(), user: "ada".into(), cluster: "c".into(), event }
    }

    #[test]
    fn what_is_spent_queued_and_expected_must_fit() {
        let budget = Budget { gpu_hours: Some(70.0), ..Budget::default() };
        let rows = |gone| rows(&bill(), spent(gone), &Price::default(), &budget);
        assert!(check(&rows(46.0)).is_ok(), "46 + 4 + 20 are 70");
        let error = check(&rows(46.1)).unwrap_err();
        assert_eq!(error.exit_code(), exit::STOPPED);
        assert!(error.to_string().contains("70.1 GPU-hours of 70.0 (46.1 spent, 4.0 queued)"), "{error}");
        assert!(rows(46.0)[0].may_be_over() && !rows(2.0)[0].may_be_over(), "2 + 60 + 8 are 70");
    }

    #[test]
    fn money_is_limited_where_there_is_a_price() {
        let budget = Budget { cost: Some(50.0), ..Budget::default() };
        let price = Price { gpu_hour: Some(2.0), ..Price::default() };
        let over = |price: &Price| check(&rows(&bill(), spent(2.0), price, &budget)).is_err();
        assert!(over(&price) && !over(&Price::default()));
    }

    #[test]
    fn a_permission_holds_up_to_its_ceiling_and_under_its_budget() {
        let budget = Budget { gpu_hours: Some(30.0), ..Budget::default() };
        let rows_then = rows(&bill(), spent(10.0), &Price::default(), &budget);
        let entries = [entry(permission("the deadline", &budget, &rows_then))];
        let limit = in_force(&budget, &entries);
        assert_eq!(limit, Budget { gpu_hours: Some(78.0), ..Budget::default() }, "10 spent, 60 and 8 at worst");
        assert!(check(&rows(&bill(), spent(54.0), &Price::default(), &limit)).is_ok());
        assert!(check(&rows(&bill(), spent(54.1), &Price::default(), &limit)).is_err());
        let lowered = Budget { gpu_hours: Some(20.0), ..Budget::default() };
        assert_eq!(in_force(&lowered, &entries), lowered);
        // What had no limit has none afterwards.
        assert_eq!(limit.cpu_hours, None);
    }
}
