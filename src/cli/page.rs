//! What `report.html` shows of a study: seals, the queue, gates and the ledger, joined with tables and figures.

use super::aggregate::Made;
use super::{Result, gates, ledger};
use crate::record::decision::{Decision, shown};
use crate::report::page::{Cell, Condition, Cost, Gate, Origin, Page};
use crate::workflow::logs::plain;
use crate::workflow::plan::{PlannedCell, SealView, is_gate};
use crate::workflow::run::{Prepared, Request};
use crate::workflow::standing::Word;
use crate::workflow::status::look;

/// The page of a study as it stands now.
pub(super) fn of_study(request: &Request, prepared: &Prepared, made: Made) -> Result<Page> {
    let look = look(request)?;
    let now = &look.prepared;
    let cells = now.plan.cells.iter().zip(&look.cells);
    let cells = cells
        .map(|(cell, seen)| {
            let state = match seen.standing.word {
                Word::Stopped | Word::Waiting => cell.state.label(),
                word => word.as_str().to_owned(),
            };
            Cell { state, detail: plain(&seen.standing.detail), ..of_cell(now, cell) }
        })
        .collect();
    let of_gate = |cell: &PlannedCell| match gates::decision_of(now, cell) {
        Some(decision) => gate(cell, &decision),
        None => Gate {
            name: cell.def.key.local_name(),
            verdict: cell.state.word().to_owned(),
            reason: cell.state.reason(),
            ..Gate::default()
        },
    };
    let (mut rows, note) = ledger::sheet(prepared);
    let head = if rows.is_empty() { Vec::new() } else { rows.remove(0) };
    Ok(Page {
        study: now.study.name.to_string(),
        profile: now.study.profile.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        as_of: chrono::Utc::now().format("%F %T UTC").to_string(),
        problems: made.problems.into_iter().chain(now.notes.clone()).collect(),
        cells,
        tables: made.grids,
        figures: made.figures,
        gates: now.plan.cells.iter().filter(|c| is_gate(&c.def)).map(of_gate).collect(),
        cost: Some(Cost { head: head.iter().map(|word| word.to_lowercase()).collect(), rows, note }),
    })
}

/// What plan and seal say of a cell.
fn of_cell(prepared: &Prepared, cell: &PlannedCell) -> Cell {
    let key = &cell.def.key;
    let seal = match prepared.seals.get(&key.local_name()) {
        Some(SealView::Sealed { seal, .. }) => Some(seal),
        _ => None,
    };
    Cell {
        name: key.local_name(),
        stage: key.stage.to_string(),
        arm: key.arm.as_ref().map(ToString::to_string),
        seed: key.seed,
        done: cell.state.is_done(),
        fingerprint: seal.map(|s| s.fingerprint.to_string()),
        content: seal.and_then(|s| s.content.as_ref()).map(ToString::to_string),
        origin: seal.map(|s| Origin {
            jobs: s.jobs.clone(),
            host: s.host.clone(),
            attempts: s.attempt,
            wall_s: s.wall_s,
            code: s.code.clone(),
            sealed_at: s.sealed_at.format("%F %T UTC").to_string(),
        }),
        ..Cell::default()
    }
}

fn gate(cell: &PlannedCell, decision: &Decision) -> Gate {
    let conditions = decision.conditions.iter().map(|judged| Condition {
        name: judged.condition.name.clone(),
        bounds: judged.condition.bounds(),
        found: judged.found.as_ref().map(shown).or_else(|| judged.problem.clone()).unwrap_or_default(),
        holds: judged.holds,
    });
    let input = |input: &crate::record::decision::JudgedInput| {
        let content = match (&input.content, &input.missing) {
            (Some(digest), _) => Ok(digest.to_string()),
            (None, why) => Err(why.clone().unwrap_or_default()),
        };
        (input.cell.clone(), content)
    };
    Gate {
        name: cell.def.key.local_name(),
        verdict: decision.verdict.word().to_owned(),
        reason: decision.reason.clone(),
        conditions: conditions.collect(),
        inputs: decision.inputs.iter().map(input).collect(),
        evidence: decision.evidence.to_string(),
        confirmed: decision.confirmation.as_ref().map(|c| c.user.clone()),
    }
}
