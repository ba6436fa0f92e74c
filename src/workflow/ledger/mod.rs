//! The ledger: what every attempt of a study held and for how long, what came of it, and what that costs.
//!
//! Where the site keeps accounts, a charge is one run of a job by `sacct -D`, requeued ones included. Where it keeps
//! none, and on this machine, it is an attempt by its own records; one without an end is billed to its last heartbeat,
//! and shown as at least that. Nothing here changes a file or a job.

mod attempts;
mod totals;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub use totals::{Totals, estimated};

use attempts::{Attempted, all};

use super::bill::Hours;
use super::journal::{Entry, Event};
use super::plan::Pack;
use super::slurm::accounting::{self, Accounting, Record};
use super::slurm::{Client, Element, JobId, Liveness, SlurmError};
use crate::record::{Fingerprint, Name, exit};

/// Why hours brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Waste {
    /// It ended without a result, and no later attempt went on from it.
    Failed,
    /// Its results were set aside, withdrawn or are stale.
    Invalidated,
    /// The devices were held while nothing of the stage ran: starting, waiting at the gate, ending.
    Idle,
}

impl Waste {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Failed, Self::Invalidated, Self::Idle];

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Invalidated => "invalidated",
            Self::Idle => "idle",
        }
    }
}

/// Who says how long devices were held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Slurm's accounting.
    Accounting,
    /// The attempt's end.
    Record,
    /// The attempt's last heartbeat.
    Heartbeat,
}

/// Devices that were held once, by one attempt or by a run of a job that made none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Charge {
    /// The cell's local name.
    pub cell: String,
    /// Its stage.
    pub stage: Name,
    /// What it was to make.
    pub fingerprint: Fingerprint,
    /// The submission that it was told by.
    pub submission: String,
    /// Number of the attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Job or array element; absent for a local attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How it ended, in words.
    pub ended: String,
    /// Seconds.
    pub wall_s: f64,
    /// Whether it was more than that: it still runs, or never said its end.
    pub at_least: bool,
    /// Whether it may still be running.
    pub open: bool,
    /// Time limit of one attempt, seconds.
    pub limit_s: u64,
    /// Who says so.
    pub source: Source,
    /// GPUs.
    pub gpus: u32,
    /// Cores.
    pub cores: u32,
    /// Seconds of it in which nothing of the stage ran; only Slurm can tell.
    pub idle_s: f64,
    /// What the rest brought; nothing for hours that counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waste: Option<Waste>,
}

impl Charge {
    /// What it held, in all.
    pub fn hours(&self) -> Hours {
        Hours::of(self.gpus, self.cores, self.wall_s)
    }

    /// What of it was waste of that kind.
    pub fn wasted(&self, kind: Waste) -> Hours {
        match kind {
            Waste::Idle => Hours::of(self.gpus, self.cores, self.idle_s),
            other if self.waste == Some(other) => Hours::of(self.gpus, self.cores, self.wall_s - self.idle_s),
            _ => Hours::default(),
        }
    }
}

/// What the plan says of a cell, for judging its attempts.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// The fingerprint that is planned.
    pub fingerprint: Fingerprint,
    /// Whether its seal, if there is one, counts.
    pub seal_counts: bool,
}

/// What was held so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ledger {
    /// By cell and time.
    pub charges: Vec<Charge>,
    /// Whether Slurm's accounting was asked and answered.
    pub accounted: bool,
    /// What could not be found out, for people.
    pub notes: Vec<String>,
}

impl Ledger {
    /// The ledger by the attempts' own records below `base`. Without `planned` nothing is judged.
    pub fn of_records(base: &Path, planned: Option<&BTreeMap<String, Planned>>, now: DateTime<Utc>) -> Self {
        let (attempts, notes) = all(base);
        let charges = attempts.iter().map(|attempt| by_record(attempt, planned, now)).collect();
        Self { charges, accounted: false, notes }
    }

    /// The ledger of `base`. Slurm's accounting is asked about the journalled jobs of `cluster`, if there is one; where
    /// it does not answer, the attempts' records count, and a note says so.
    pub fn read(
        base: &Path,
        entries: &[Entry],
        slurm: Option<(&Client, &str)>,
        planned: Option<&BTreeMap<String, Planned>>,
        now: DateTime<Utc>,
    ) -> Self {
        let by_records = || Self::of_records(base, planned, now);
        let Some((client, cluster)) = slurm else { return by_records() };
        let jobs = submitted(entries, cluster);
        let Some(since_s) = jobs.values().map(|job| job.since.timestamp()).min() else { return by_records() };
        match accounts(client, &jobs, since_s) {
            Ok(Accounting::Disabled) => by_records(),
            Ok(Accounting::Records(records)) => {
                let (attempts, notes) = all(base);
                Self { charges: join(&attempts, &records, &jobs, planned, now), accounted: true, notes }
            }
            Err(error) => {
                let mut ledger = by_records();
                ledger.notes.push(format!("{error}; hours are counted by the records of attempts"));
                ledger
            }
        }
    }

    /// Seconds that each cell ran usefully under the planned parameters, by local name.
    pub fn done_s(&self, planned: &BTreeMap<String, Planned>) -> BTreeMap<String, f64> {
        let mut done = BTreeMap::new();
        for charge in self.charges.iter().filter(|c| c.waste.is_none() && c.attempt.is_some()) {
            let same = planned.get(&charge.cell).is_some_and(|p| charge.fingerprint == p.fingerprint);
            if same {
                *done.entry(charge.cell.clone()).or_insert(0.0) += charge.wall_s - charge.idle_s;
            }
        }
        done
    }
}

/// A job that was submitted, with the cells of its slots.
struct Job {
    since: DateTime<Utc>,
    /// By slot; several where they share the job.
    cells: BTreeMap<Option<u32>, Vec<(String, Fingerprint)>>,
    pack: Option<Pack>,
    stage: Name,
    submission: String,
    /// The Slurm cluster that has it, where the site has several.
    home: Option<String>,
}

/// What every sacct says of these jobs.
fn accounts(client: &Client, jobs: &BTreeMap<u32, Job>, since_s: i64) -> Result<Accounting, SlurmError> {
    let homes: BTreeSet<Option<&str>> = jobs.values().map(|job| job.home.as_deref()).collect();
    let mut records = Vec::new();
    for home in homes {
        let ids: Vec<u32> = jobs.iter().filter(|(_, job)| job.home.as_deref() == home).map(|(id, _)| *id).collect();
        match accounting::query(&client.at(home), &ids, since_s)? {
            Accounting::Disabled => return Ok(Accounting::Disabled),
            Accounting::Records(more) => records.extend(more),
        }
    }
    Ok(Accounting::Records(records))
}

/// Every job of `cluster` that Slurm ever took, by id, cancelled ones too.
fn submitted(entries: &[Entry], cluster: &str) -> BTreeMap<u32, Job> {
    let mut intents = BTreeMap::new();
    let mut jobs = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.cluster == cluster) {
        match &entry.event {
            Event::Intent { submission, job, stage, cells } => {
                let mut by_slot: BTreeMap<Option<u32>, Vec<(String, Fingerprint)>> = BTreeMap::new();
                for (name, cell) in cells {
                    by_slot.entry(cell.slot).or_default().push((name.clone(), cell.fingerprint.clone()));
                }
                let pack = cells.values().find_map(|cell| cell.pack);
                let (stage, submission) = (stage.clone(), submission.clone());
                intents.insert(job, Job { since: entry.time, cells: by_slot, pack, stage, submission, home: None });
            }
            Event::Submitted { job, id } => {
                if let (Some(intent), Ok(id)) = (intents.remove(job), id.parse::<JobId>()) {
                    jobs.insert(id.id, Job { home: id.cluster, ..intent });
                }
            }
            _ => {}
        }
    }
    jobs
}

/// What an attempt brought.
fn judge(attempt: &Attempted, planned: Option<&BTreeMap<String, Planned>>, now: DateTime<Utc>) -> Option<Waste> {
    let planned = planned?;
    let plan = planned.get(&attempt.cell());
    let other = plan.is_none_or(|plan| plan.fingerprint != attempt.start.fingerprint);
    if attempt.void || other || (attempt.sealed && plan.is_some_and(|plan| !plan.seal_counts)) {
        return Some(Waste::Invalidated);
    }
    if attempt.sealed {
        return None;
    }
    let checkpointed = attempt.end.as_ref().is_some_and(|end| end.exit_code == i32::from(exit::RESUME));
    let came_somewhere = attempt.end.as_ref().is_none_or(|end| end.step.is_some());
    let waits = attempt.is_open(now) || checkpointed;
    let went_on = attempt.held.resumable && (checkpointed || came_somewhere);
    let useful = if attempt.later { went_on } else { waits };
    (!useful).then_some(Waste::Failed)
}

/// The charge of an attempt by its own records.
fn by_record(attempt: &Attempted, planned: Option<&BTreeMap<String, Planned>>, now: DateTime<Utc>) -> Charge {
    let start = &attempt.start;
    let open = attempt.is_open(now);
    Charge {
        cell: attempt.cell(),
        stage: start.key.stage.clone(),
        fingerprint: start.fingerprint.clone(),
        submission: start.submission.clone(),
        attempt: Some(start.attempt),
        job: start.job.as_ref().map(|job| job.id.clone()),
        started_at: start.started_at,
        ended: ended(attempt, open),
        wall_s: attempt.wall_s(),
        at_least: attempt.end.is_none(),
        open,
        limit_s: attempt.held.limit_s,
        source: if attempt.end.is_some() { Source::Record } else { Source::Heartbeat },
        gpus: attempt.held.gpus,
        cores: attempt.held.cores,
        idle_s: 0.0,
        waste: judge(attempt, planned, now),
    }
}

fn ended(attempt: &Attempted, open: bool) -> String {
    match &attempt.end {
        Some(end) => end.cause.clone(),
        None if open => "runs, or was killed".to_owned(),
        None => "never said its end".to_owned(),
    }
}

/// Slurm's runs with the attempts that they carried, then the attempts that Slurm has no run for.
fn join(
    attempts: &[Attempted],
    records: &[Record],
    jobs: &BTreeMap<u32, Job>,
    planned: Option<&BTreeMap<String, Planned>>,
    now: DateTime<Utc>,
) -> Vec<Charge> {
    // By run of Slurm's: the attempts that began in it.
    let mut carried: BTreeMap<usize, Vec<&Attempted>> = BTreeMap::new();
    let mut charges = Vec::new();
    let mut started: BTreeMap<Element, Vec<usize>> = BTreeMap::new();
    for (i, record) in records.iter().enumerate().filter(|(_, record)| record.start_s.is_some()) {
        started.entry(record.element).or_default().push(i);
    }
    for attempt in attempts {
        let element: Option<Element> = attempt.start.job.as_ref().and_then(|job| job.id.parse().ok());
        // Two clusters may give out the same id.
        let ours =
            |element: &Element| jobs.get(&element.job).is_some_and(|job| job.submission == attempt.start.submission);
        let began = attempt.start.started_at.timestamp();
        // Slurm's runs are sorted. A node's clock that is late may put an attempt before the first.
        let run = element.filter(ours).and_then(|element| {
            let runs = started.get(&element)?;
            runs.iter().rev().find(|&&i| records[i].start_s <= Some(began)).or(runs.first()).copied()
        });
        match run {
            Some(run) => carried.entry(run).or_default().push(attempt),
            None => charges.push(by_record(attempt, planned, now)),
        }
    }
    for (i, record) in records.iter().enumerate() {
        let carried = carried.remove(&i).unwrap_or_default();
        charges.extend(shares(record, &carried, jobs, planned, now));
    }
    charges.sort_by(|a, b| (&a.cell, a.started_at).cmp(&(&b.cell, b.started_at)));
    charges
}

/// The charges of one run of a job: one, or one for each cell that shares it, of equal parts of what it held: of its
/// devices side by side, of its time in turn.
fn shares(
    record: &Record,
    carried: &[&Attempted],
    jobs: &BTreeMap<u32, Job>,
    planned: Option<&BTreeMap<String, Planned>>,
    now: DateTime<Utc>,
) -> Vec<Charge> {
    let whole = |carried: &[&Attempted]| by_account(record, carried, jobs, planned, now);
    let shared = jobs.get(&record.element.job).and_then(|job| {
        let pack = job.pack?;
        Some((pack, job.cells.get(&record.element.index)?))
    });
    let Some((pack, cells)) = shared else { return whole(carried).into_iter().collect() };
    let n = u32::try_from(cells.len()).unwrap_or(u32::MAX).max(1);
    let share = |(cell, fingerprint): &(String, Fingerprint)| {
        let own: Vec<&Attempted> = carried.iter().copied().filter(|a| a.cell() == *cell).collect();
        let mut charge = whole(&own)?;
        charge.cell.clone_from(cell);
        if own.is_empty() {
            charge.fingerprint = fingerprint.clone();
        }
        if pack.in_turn {
            let worked_s = charge.wall_s - charge.idle_s;
            charge.wall_s /= f64::from(n);
            // Who was quick leaves time to the others: it is idle only as a whole.
            charge.idle_s = (charge.wall_s - worked_s).max(0.0);
        } else {
            charge.gpus /= n;
            charge.cores /= n;
        }
        Some(charge)
    };
    cells.iter().filter_map(share).collect()
}

/// The charge of one run of a job; none if it never started.
fn by_account(
    record: &Record,
    carried: &[&Attempted],
    jobs: &BTreeMap<u32, Job>,
    planned: Option<&BTreeMap<String, Planned>>,
    now: DateTime<Utc>,
) -> Option<Charge> {
    let job = jobs.get(&record.element.job)?;
    let (cell, fingerprint) = job.cells.get(&record.element.index)?.first()?;
    let started_at = record.start_s.and_then(|s| DateTime::from_timestamp(s, 0))?;
    let last = carried.last().copied();
    let held = last.map(|attempt| attempt.held).unwrap_or_default();
    let wall_s = record.elapsed_s as f64;
    let running = record.end_s.is_none() && record.state.liveness() == Liveness::Alive;
    if last.is_none() && !running && record.elapsed_s == 0 {
        return None;
    }
    // Who was killed has not said how long it worked: nothing of its time is known to be idle.
    let worked_s = carried.iter().map(|a| a.end.as_ref().map_or(wall_s, |end| end.wall_s)).sum::<f64>();
    let idle_s = if last.is_none() && running { 0.0 } else { (wall_s - worked_s).clamp(0.0, wall_s) };
    Some(Charge {
        cell: cell.clone(),
        stage: job.stage.clone(),
        fingerprint: last.map_or(fingerprint, |a| &a.start.fingerprint).clone(),
        submission: job.submission.clone(),
        attempt: last.map(|attempt| attempt.start.attempt),
        job: Some(record.element.to_string()),
        started_at,
        ended: last.map_or_else(|| record.state.word().to_lowercase(), |attempt| ended(attempt, running)),
        wall_s,
        at_least: running,
        open: running,
        limit_s: held.limit_s,
        source: Source::Accounting,
        // A site may not account for GPUs: then those that were asked for count.
        gpus: record.tres("gres/gpu").unwrap_or(held.gpus),
        cores: record.tres("cpu").unwrap_or(held.cores),
        idle_s,
        waste: last.and_then(|attempt| judge(attempt, planned, now)),
    })
}

#[cfg(test)]
mod tests;
