//! `seedbed confirm`: a person's yes to what a gate found, with the digest of the evidence.

use std::io::IsTerminal;

use chrono::Utc;

use super::study::StudyArgs;
use super::{CliError, Result, gates, output};
use crate::record::decision::{self, CONFIRMATION_VERSION, Confirmation};
use crate::record::{Decision, attempt, exit, files};
use crate::workflow::plan::{CellState, PlannedCell, SealView};
use crate::workflow::run::{Intent, Prepared, prepare};
use crate::workflow::{Result as WorkflowResult, WorkflowError};

/// Confirm what a gate found: who, when, and the digest of the evidence. Only a gate that waits can be confirmed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "EXAMPLES:\n  seedbed confirm configs/gap.toml gap\n  seedbed confirm configs/gap.toml gap --evidence 0a1b2c3d --note 'read all flips' --yes"
)]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    /// The gate
    #[arg(value_name = "GATE")]
    gate: String,
    /// Seed of a gate that judges each seed alone
    #[arg(long, value_name = "SEED")]
    seed: Option<u32>,
    /// What to say about it
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Confirm only this evidence: the first digits of its digest, eight or more
    #[arg(long, value_name = "DIGEST")]
    evidence: Option<String>,
    /// Do not ask; needed where there is no terminal
    #[arg(long, short)]
    yes: bool,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let prepared = prepare(&args.study.request(), Intent::Look)?;
    let cell = find(args, &prepared)?;
    let name = cell.def.key.local_name();
    let Some(decision) = waiting(args, &prepared, cell)? else {
        output::note(&format!("gate {name} is confirmed already; `run_all {}` goes on", args.study.again()));
        return Ok(exit::DONE);
    };
    for line in gates::lines(&decision) {
        output::text(&format!("{line}\n"))?;
    }
    output::text(&format!("evidence: {}\n", decision.evidence))?;
    if let Some(wanted) = &args.evidence
        && (wanted.len() < 8 || !decision.evidence.as_str().starts_with(wanted.as_str()))
    {
        return Err(CliError::Usage(format!(
            "the evidence of gate {name} is {}, not {wanted}: look at it again, then name its first eight digits or more",
            decision.evidence.short()
        )));
    }
    let user = attempt::user_name();
    if !args.yes {
        // Silence is no confirmation.
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Err(CliError::Usage("there is no terminal to ask on: say --yes to confirm".to_owned()));
        }
        if output::confirm(&format!("Confirm as {user}?")) != Some(true) {
            return Err(CliError::Usage("nothing was confirmed".to_owned()));
        }
    }
    let said = Confirmation {
        version: CONFIRMATION_VERSION,
        gate: name.clone(),
        evidence: decision.evidence,
        user,
        host: files::host_name(),
        time: Utc::now(),
        note: args.note.clone(),
    };
    decision::confirm(&prepared.place.base, &said)?;
    output::note(&format!("gate {name} is confirmed by {}; `run_all {}` goes on", said.user, args.study.again()));
    Ok(exit::DONE)
}

/// The gate's cell that is meant.
fn find<'p>(args: &Args, prepared: &'p Prepared) -> Result<&'p PlannedCell> {
    let gates: Vec<&str> = prepared.study.stages.iter().filter(|s| s.is_gate()).map(|s| s.name.as_str()).collect();
    if !gates.contains(&args.gate.as_str()) {
        let known = if gates.is_empty() { "none".to_owned() } else { gates.join(", ") };
        return Err(CliError::Usage(format!("the study has no gate `{}`: its gates are {known}", args.gate)));
    }
    let mine = |c: &&PlannedCell| c.def.key.stage.as_str() == args.gate;
    let cells: Vec<&PlannedCell> = prepared.plan.cells.iter().filter(mine).collect();
    let asked: Vec<&PlannedCell> = match (args.seed, cells.as_slice()) {
        (None, [_]) => cells,
        (seed, _) => cells.into_iter().filter(|c| c.def.key.seed == seed && seed.is_some()).collect(),
    };
    match (asked.as_slice(), args.seed) {
        ([one], _) => Ok(one),
        (_, None) => Err(CliError::Usage(format!("gate {} judges each seed alone: say --seed SEED", args.gate))),
        (_, Some(seed)) => Err(CliError::Usage(format!("gate {} has no seed {seed}", args.gate))),
    }
}

/// The decision that waits; `None` if it has been confirmed.
fn waiting(args: &Args, prepared: &Prepared, cell: &PlannedCell) -> WorkflowResult<Option<Decision>> {
    let name = cell.def.key.local_name();
    let refuse = |code: u8, message: String| Err(WorkflowError::attempt(code, message));
    let again = args.study.again();
    match &cell.state {
        CellState::Waiting(halt) if halt.by == name => match gates::decision_of(prepared, cell) {
            Some(decision) => Ok(Some(decision)),
            None => refuse(
                exit::MISSING_INPUT,
                format!("the decision of gate {name} is gone: `run_all {again}` asks it again"),
            ),
        },
        CellState::Waiting(_) => {
            refuse(exit::MISSING_INPUT, format!("gate {name} has not been asked: {}", cell.state.reason()))
        }
        CellState::Stopped(_) => refuse(
            exit::STOPPED,
            format!(
                "{}: a confirmation does not overrule it; change what it judges, or its conditions",
                cell.state.reason()
            ),
        ),
        CellState::Done { .. } => {
            let confirmed = gates::decision_of(prepared, cell).is_some_and(|d| d.confirmation.is_some());
            if confirmed {
                return Ok(None);
            }
            refuse(exit::USAGE, format!("gate {name} has passed and asks for no confirmation"))
        }
        _ if matches!(prepared.seals.get(&name), Some(SealView::Asked { confirmed: true, .. })) => Ok(None),
        _ => refuse(
            exit::MISSING_INPUT,
            format!("gate {name} has not been asked, or what it judges has changed since: `run_all {again}` asks it"),
        ),
    }
}
