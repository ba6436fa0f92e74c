//! Gates in a plan: whether a verdict still stands, what waits for a person, and what a stop means to those behind it.
//!
//! A gate hands over no data: what is behind it waits for its verdict, and is not made stale by it.

use std::collections::BTreeMap;

use super::cells::CellDef;
use super::state::{CellState, PlannedCell, SealView};
use crate::record::decision::{Decision, GATE_KIND, Missing, Verdict};
use crate::record::{Change, Digest, Outcome, Seal};

/// Why a cell does not run, and who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halt {
    /// The cell that said so, by its local name: itself, or one upstream.
    pub by: String,
    /// Whether that is a gate.
    pub gate: bool,
    /// What it said.
    pub why: String,
}

impl Halt {
    /// `gate gap`, or the local name of a stage's cell.
    pub fn source(&self) -> String {
        if self.gate { format!("gate {}", self.by) } else { self.by.clone() }
    }
}

/// True for the cell of a gate.
pub fn is_gate(def: &CellDef) -> bool {
    def.recipe.kind == GATE_KIND
}

/// Whether a gate judges although needed cells are missing.
fn judges_without(def: &CellDef) -> bool {
    let missing = def.recipe.params.get("missing").cloned();
    let missing = missing.and_then(|word| serde_json::from_value(word).ok()).unwrap_or(Missing::Undecided);
    is_gate(def) && missing != Missing::Undecided
}

/// Inputs of a gate that are not what it judged: another result, one that was missing then, one that is to be made
/// again. A cell that was missing then and is missing now has not changed.
pub(super) fn changes(
    def: &CellDef,
    was: &dyn Fn(&str) -> Option<Digest>,
    before: &[PlannedCell],
    seals: &BTreeMap<String, SealView>,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for &i in def.needs.iter().filter(|&&i| !is_gate(&before[i].def)) {
        let parent = before[i].def.key.local_name();
        let was = was(&parent);
        let now = match seals.get(&parent) {
            Some(SealView::Sealed { seal, problem: None }) if before[i].state.is_done() => seal.content.clone(),
            _ => None,
        };
        if was == now {
            continue;
        }
        let text = |digest: Option<Digest>, or: &str| {
            serde_json::Value::from(digest.map_or(or.to_owned(), |d| d.as_str().to_owned()))
        };
        changes.push(Change {
            key: format!("needs.{parent}"),
            old: Some(text(was, "missing")),
            new: Some(text(now, before[i].state.word())),
        });
    }
    changes
}

/// What a sealed gate read of a needed cell.
pub(super) fn read_by(seal: &Seal) -> impl Fn(&str) -> Option<Digest> {
    let read: BTreeMap<&str, &Digest> = seal.read.iter().map(|f| (f.path.as_str(), &f.digest)).collect();
    move |parent: &str| read.get(format!("{parent}/run.h5").as_str()).map(|digest| (*digest).clone())
}

/// The verdict of a gate whose question or inputs have changed.
pub(super) fn verdict_falls(seal: &Seal) -> Change {
    let said = if seal.outcome == Outcome::Stopped { Verdict::Stop } else { Verdict::Pass };
    Change { key: "verdict".to_owned(), old: Some(said.word().into()), new: Some(Verdict::Undecided.word().into()) }
}

/// A gate that has asked a person: it waits, unless the answer is there or the question is another one by now.
pub(super) fn asked(
    def: &CellDef,
    decision: &Decision,
    confirmed: bool,
    before: &[PlannedCell],
    seals: &BTreeMap<String, SealView>,
) -> CellState {
    let inputs: BTreeMap<&str, &Option<Digest>> =
        decision.inputs.iter().map(|input| (input.cell.as_str(), &input.content)).collect();
    let judged = |parent: &str| inputs.get(parent).and_then(|content| (*content).clone());
    let stands = decision.verdict == Verdict::Waiting
        && decision.fingerprint == def.fingerprint
        && changes(def, &judged, before, seals).is_empty();
    if confirmed || !stands {
        return CellState::Missing;
    }
    CellState::Waiting(Halt { by: def.key.local_name(), gate: true, why: decision.reason.clone() })
}

/// What the evidence of a stopped cell says.
pub(super) fn stopped(def: &CellDef, seal: &Seal) -> Halt {
    let evidence = seal.evidence.as_ref();
    let why = match evidence.and_then(|e| e.get("why")).and_then(|why| why.as_str()) {
        Some(why) => why.to_owned(),
        None => evidence.map(ToString::to_string).unwrap_or_default(),
    };
    Halt { by: def.key.local_name(), gate: is_gate(def), why }
}

/// What upstream halts a cell in this state: a stop halts also what was sealed before it; a gate that waits halts what
/// has not run.
pub(super) fn halted(def: &CellDef, state: &CellState, before: &[PlannedCell]) -> Option<CellState> {
    let needs = || def.needs.iter().map(|&i| &before[i]);
    let stop = needs().find_map(|need| match &need.state {
        // A gate that judges without a missing seed judges without a stopped one.
        CellState::Stopped(_) if judges_without(def) && !is_gate(&need.def) => None,
        CellState::Stopped(halt) => Some(halt.clone()),
        _ => None,
    });
    let waits = || {
        needs().find_map(|need| match &need.state {
            CellState::Waiting(halt) => Some(halt.clone()),
            _ => None,
        })
    };
    match stop {
        Some(halt) if !matches!(state, CellState::Stopped(_)) => Some(CellState::Stopped(halt)),
        _ if state.must_run() => waits().map(CellState::Waiting),
        _ => None,
    }
}
