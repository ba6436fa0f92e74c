//! What `run_all` submits a cell with that ran before and is not sealed: what its last attempt decided or, where that one
//! could not say its end, what follows from what Slurm says of its job.

use std::collections::{BTreeMap, BTreeSet};

use super::{Past, Situation, Way, decide, history, in_force, resources};
use crate::record::{Adjust, Cell, Why, attempt};
use crate::workflow::place::Place;
use crate::workflow::plan::{Again, Plan, PlannedCell};
use crate::workflow::slurm::accounting::{self, Accounting};
use crate::workflow::slurm::{Client, Element, JobState};
use crate::workflow::study::Retry;

/// How jobs ended that Slurm still knows.
pub type Ends = BTreeMap<Element, JobState>;

/// Notes in the plan, for every cell that is to run, what its attempts came to. `ends` is what squeue said; accounting is
/// asked once, for the jobs of attempts that nobody knows the end of.
///
/// `begun` are the cells that have a run directory.
pub fn note(
    plan: &mut Plan,
    place: &Place,
    begun: &BTreeSet<String>,
    policy: &Retry,
    mut ends: Ends,
    client: Option<&Client>,
) {
    let mut found: Vec<(usize, Vec<Past>)> = Vec::new();
    let to_run = |cell: &PlannedCell| cell.to_run() && begun.contains(&cell.def.key.local_name());
    for (i, cell) in plan.cells.iter().enumerate().filter(|(_, cell)| to_run(cell)) {
        let run_dir = place.run_dir(&cell.def.key);
        let past = match attempt::last(&run_dir) {
            Ok(last @ 1..) => history(&run_dir, last),
            _ => continue,
        };
        // Results of other parameters are moved aside.
        if past.last().is_some_and(|p| p.start.fingerprint == cell.def.fingerprint) {
            found.push((i, past));
        }
    }
    let silent = |past: &[Past]| past.last().filter(|p| p.end.is_none()).and_then(element).map(|e| (e, since(past)));
    let unknown: Vec<(Element, i64)> =
        found.iter().filter_map(|(_, past)| silent(past)).filter(|(e, _)| !ends.contains_key(e)).collect();
    if let (Some(client), Some(since)) = (client, unknown.iter().map(|(_, s)| *s).min()) {
        let mut ids: Vec<u32> = unknown.iter().map(|(e, _)| e.job).collect();
        ids.sort_unstable();
        ids.dedup();
        // Without an answer the cause stays unknown: the cell runs as before.
        if let Ok(Accounting::Records(records)) = accounting::query(client, &ids, since) {
            // Oldest first: the last run counts.
            ends.extend(records.into_iter().map(|record| (record.element, record.state)));
        }
    }
    for (i, past) in found {
        let key = plan.cells[i].def.key.clone();
        let Ok(cell) = Cell::read(&place.run_dir(&key).join("cell.toml")) else { continue };
        plan.cells[i].again = again(&cell, &past, policy, &ends);
    }
}

fn element(past: &Past) -> Option<Element> {
    past.start.job.as_ref()?.id.parse().ok()
}

fn since(past: &[Past]) -> i64 {
    past.last().map_or(0, |p| p.start.started_at.timestamp())
}

fn again(cell: &Cell, past: &[Past], policy: &Retry, ends: &Ends) -> Option<Again> {
    let (last, before) = past.split_last()?;
    let attempt = last.start.attempt;
    if let Some(end) = &last.end {
        let verdict = end.verdict.clone().filter(|v| v.why != Why::Done)?;
        return Some(Again { attempt, why: verdict.why, adjust: kept(verdict.why, verdict.adjust) });
    }
    let why = match element(last).and_then(|e| ends.get(&e)) {
        Some(JobState::Timeout | JobState::Deadline) => Why::TimeOut,
        Some(JobState::OutOfMemory) => Why::OutOfMemory,
        Some(JobState::NodeFail | JobState::BootFail) => Why::NodeFailure,
        Some(JobState::Preempted) => Why::Preempted,
        Some(JobState::Cancelled) => Why::Cancelled,
        _ => Why::Killed,
    };
    let adjust = in_force(before, &last.start.submission);
    let situation = Situation {
        why,
        cell,
        submission: &last.start.submission,
        resources: resources(&cell.resources, &adjust),
        grace_s: adjust.grace_s.unwrap_or(0),
        adjust,
        // Nodes are called by their hosts' names without the domain.
        failed_nodes: last.start.host.split('.').next().map(str::to_owned).into_iter().collect(),
        past: before,
        idle: 0,
        way: Way::RunAll(""),
    };
    let (verdict, _) = decide(&situation, policy);
    Some(Again { attempt, why, adjust: kept(why, verdict.adjust) })
}

/// A node is kept away from while it is the reason.
fn kept(why: Why, adjust: Adjust) -> Adjust {
    if why == Why::NodeFailure { adjust } else { Adjust { exclude: Vec::new(), ..adjust } }
}
