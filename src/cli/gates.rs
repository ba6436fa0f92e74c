//! What people are told about gates: what a gate found, what it waits for, and what its conditions were before.

use super::output;
use super::study::StudyArgs;
use crate::record::decision::{Condition, Confirmation, Earlier, Judged, Verdict, shown};
use crate::record::{CellKey, Decision};
use crate::workflow::local::Task;
use crate::workflow::plan::{CellState, PlannedCell, is_gate};
use crate::workflow::run::Prepared;

/// A cell that stopped or waits by its own word, and not one behind it.
fn halts_itself(cell: &PlannedCell) -> bool {
    match &cell.state {
        CellState::Stopped(halt) | CellState::Waiting(halt) => halt.by == cell.def.key.local_name(),
        _ => false,
    }
}

/// One paragraph for each gate or kill criterion that said stop, and for each gate that waits for a person.
pub(crate) fn halted(prepared: &Prepared, again: &StudyArgs) -> Vec<String> {
    let mut told = Vec::new();
    for cell in prepared.plan.cells.iter().filter(|c| halts_itself(c)) {
        let behind = prepared.plan.cells.iter().filter(|c| match &c.state {
            CellState::Stopped(halt) | CellState::Waiting(halt) => {
                halt.by == cell.def.key.local_name() && c.def.key != cell.def.key
            }
            _ => false,
        });
        let mut text = format!("{} {}", cell.state.label(), cell.state.reason());
        text.push_str(&format!("\n  behind it: {}", output::plural(behind.count(), "cell")));
        if !is_gate(&cell.def) {
            let run_all = format!("run_all {}", again.again());
            text.push_str(&format!("\n  then:      change the study, then `{run_all}`"));
            text.push_str(&format!("; or `{run_all} --retry-stopped` to try it as it is"));
            told.push(text);
            continue;
        }
        let record = prepared.place.run_dir(&cell.def.key).join(crate::record::decision::DECISION_FILE);
        text.push_str(&format!("\n  record:    {}", record.display()));
        if matches!(cell.state, CellState::Waiting(_)) {
            text.push_str(&format!("\n  confirm:   {}", confirm_command(&cell.def.key, again)));
        }
        told.push(text);
    }
    told
}

/// What a person types to confirm.
pub(crate) fn confirm_command(key: &CellKey, again: &StudyArgs) -> String {
    let seed = key.seed.map(|s| format!(" --seed {s}")).unwrap_or_default();
    format!("seedbed confirm {} {}{seed}", again.again(), key.stage)
}

/// What a gate said in a local run, if the task is one and did not pass.
pub(crate) fn said(task: &Task) -> Option<Decision> {
    let decision = Decision::read(&task.run_dir).ok()??;
    (decision.key == task.key && decision.verdict != Verdict::Pass).then_some(decision)
}

/// One line a condition, then what a person said, then what the conditions were at an earlier verdict.
pub(crate) fn lines(decision: &Decision) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for judged in &decision.conditions {
        lines.push(format!("{} {}", if judged.holds { "holds:" } else { "fails:" }, judged.in_words()));
    }
    if decision.conditions.is_empty() && !decision.reason.is_empty() {
        lines.push(decision.reason.clone());
    }
    let read = decision.inputs.iter().filter(|i| i.content.is_some()).count();
    let seeds =
        decision.seeds.map(|n| format!(", {}", output::plural(n as usize, "complete seed"))).unwrap_or_default();
    lines.push(format!("judged: {read} of {}{seeds}", output::plural(decision.inputs.len(), "result")));
    match (&decision.question.confirm, &decision.confirmation) {
        (Some(asked), None) => lines.push(format!("to confirm: {asked}")),
        (Some(asked), Some(said)) => lines.push(format!("confirmed {}: {asked}", by(said))),
        _ => {}
    }
    for (earlier, old, new) in decision.changed_conditions() {
        lines.push(format!("changed: {}", change(earlier, old, new)));
    }
    lines
}

/// `by ada on 2026-11-21 08:15 UTC (the flip audit is in order)`.
fn by(said: &Confirmation) -> String {
    let note = said.note.as_ref().map(|n| format!(" ({n})")).unwrap_or_default();
    format!("by {} on {}{note}", said.user, said.time.format("%F %R UTC"))
}

fn change(earlier: &Earlier, old: Option<&Judged>, new: Option<&Condition>) -> String {
    let in_words = |condition: &Condition| {
        let of = condition.of.as_ref().map(|of| format!(" of {of}")).unwrap_or_default();
        format!("`{}`{of} {}", condition.value, condition.bounds())
    };
    let name = old.map(|j| &j.condition).or(new).map_or("", |c| c.name.as_str());
    let then = match old {
        None => "absent".to_owned(),
        Some(judged) => {
            let found = judged.found.as_ref().map(|f| format!(" (it was {})", shown(f))).unwrap_or_default();
            format!("{}{found}", in_words(&judged.condition))
        }
    };
    let now = new.map_or("absent".to_owned(), in_words);
    let when = earlier.decided_at.format("%F %R UTC");
    format!("{name}: {then} when the verdict was {} on {when}; now {now}", earlier.verdict.word())
}

/// The decision of a gate's cell, if it is that of the plan.
pub(crate) fn decision_of(prepared: &Prepared, cell: &PlannedCell) -> Option<Decision> {
    if !is_gate(&cell.def) {
        return None;
    }
    let decision = Decision::read(&prepared.place.run_dir(&cell.def.key)).ok()??;
    (decision.fingerprint == cell.def.fingerprint).then_some(decision)
}
