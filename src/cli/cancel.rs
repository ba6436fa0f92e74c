//! `seedbed cancel`: takes a study's chain out of Slurm's queue, children before their parents.

use serde_json::json;

use super::output::{self, Format};
use super::study::{PartArgs, StudyArgs};
use super::{CliError, Result};
use crate::record::{Name, exit};
use crate::workflow::answers;
use crate::workflow::cancel::{self, Cancelled, Part, Target, Targets};
use crate::workflow::lock::{Hold, IfHeld, Lock};
use crate::workflow::place::Place;
use crate::workflow::run::load_study;
use crate::workflow::slurm::Client;
use crate::workflow::status::look;

/// Cancel the whole chain of a study, or a part of it with all that waits behind it.
///
/// Children go before their parents, so that nothing starts behind a job that was cancelled. Seals and checkpoints
/// stay: `run_all` goes on from them.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES:\n  seedbed cancel configs/monotone.toml\n  \
    seedbed cancel configs/monotone.toml --seeds 1337     one seed, in every stage\n  \
    seedbed cancel configs/monotone.toml --dead           only jobs that can never start")]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    part: PartArgs,
    /// Only jobs that wait for what can never happen
    #[arg(long)]
    dead: bool,
    /// Cancel without asking
    #[arg(long, short)]
    yes: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let request = args.study.request();
    let study = load_study(&request)?;
    let place = Place::new(request.root.as_deref(), &request.study, &study.name, &study.profile)?;
    let own = place.own();
    if let Some((owner, Hold::Long)) = Lock::holder(&own) {
        return Err(cancel::held_by_local_run(&owner).into());
    }
    let part = Part { stages: stages(args, &study)?, seeds: args.part.seeds.clone(), dead: args.dead };
    if !own.join("journal.jsonl").exists() {
        return nothing(args, "nothing was ever submitted", &Targets::default(), &[]);
    }
    // No run_all submits meanwhile; and what Slurm said some seconds ago is not enough here.
    let _lock = Lock::take(&own, Hold::Short, IfHeld::Respect)?;
    answers::forget(&own);
    let mut now = look(&request)?;
    let client = Client::new();
    let mut open = Vec::new();
    if now.jobs.values().flat_map(|jobs| jobs.iter()).any(|job| job.is_lost()) {
        open = cancel::settle(&client, &now)?;
        now = look(&request)?;
    }
    now.prepared.notes.iter().chain(&open).for_each(|n| output::note(n));
    let found = cancel::targets(&now, &part);
    for target in &found.others {
        output::note(&format!(
            "job {} ({}) is {}'s: only {} can cancel it",
            target.job, target.cell, target.user, target.user
        ));
    }
    found.unknown.iter().for_each(|(cell, why)| output::note(&format!("{cell}: {why}")));
    let incomplete = !found.others.is_empty() || !found.unknown.is_empty() || !open.is_empty();
    if found.own.is_empty() {
        nothing(args, "nothing of it is queued or running", &found, &open)?;
        return Ok(if incomplete { exit::INCOMPLETE } else { exit::DONE });
    }
    output::note(&listed(&found));
    match if args.yes { Some(true) } else { output::confirm("Cancel?") } {
        Some(true) => {}
        Some(false) => return Err(CliError::Usage("nothing was cancelled".to_owned())),
        None => {
            let why = "nothing was cancelled: there is no terminal to ask at; say --yes to cancel without a question";
            return Err(CliError::Usage(why.to_owned()));
        }
    }
    let cancelled = cancel::cancel(&now, &client, &found.own)?;
    match args.format {
        Format::Json => output::json(&to_json(&cancelled, &found, &open))?,
        Format::Text => said(args, &cancelled)?,
    }
    Ok(if incomplete { exit::INCOMPLETE } else { exit::DONE })
}

fn stages(args: &Args, study: &crate::workflow::study::Study) -> Result<Option<Vec<Name>>> {
    let Some(words) = &args.part.stages else { return Ok(None) };
    let stage = |word: &String| match study.stage(word) {
        Some(stage) => Ok(stage.name.clone()),
        None => {
            let known: Vec<&str> = study.stages.iter().map(|s| s.name.as_str()).collect();
            Err(CliError::Usage(format!("the study has no stage `{word}`: its stages are {}", known.join(", "))))
        }
    };
    words.iter().map(stage).collect::<Result<_>>().map(Some)
}

fn nothing(args: &Args, why: &str, found: &Targets, open: &[String]) -> Result<u8> {
    match args.format {
        Format::Json => output::json(&to_json(&Cancelled::default(), found, open))?,
        Format::Text => output::note(&format!("{why}: there is nothing to cancel")),
    }
    Ok(exit::DONE)
}

/// What is to be cancelled, a line a job.
fn listed(found: &Targets) -> String {
    let mut lines: Vec<String> = Vec::new();
    for of_job in found.own.chunk_by(|a, b| a.job.job == b.job.job) {
        let cells: Vec<&str> = of_job.iter().map(|t| t.cell.as_str()).collect();
        let shown = if cells.len() > 4 {
            format!("{} and {} more", cells[..3].join(", "), cells.len() - 3)
        } else {
            cells.join(", ")
        };
        let running = of_job.iter().filter(|t| t.state != "PENDING").count();
        let running = if running > 0 { format!("  ({running} running)") } else { String::new() };
        lines.push(format!("  job {} {shown}{running}", of_job[0].job.job));
    }
    format!("to cancel, in this order:\n{}", lines.join("\n"))
}

fn said(args: &Args, cancelled: &Cancelled) -> Result<()> {
    let all = cancelled.ended.len() + cancelled.ending.len();
    output::text(&format!("cancelled {}\n", output::plural(all, "cell")))?;
    if !cancelled.ending.is_empty() {
        let jobs: Vec<String> = cancelled.ending.iter().take(5).map(|t| t.job.to_string()).collect();
        output::note(&format!(
            "{} still ending, with time for a checkpoint: {}",
            output::plural(cancelled.ending.len(), "job"),
            jobs.join(", ")
        ));
    }
    output::note(&format!("seals and checkpoints stay; `run_all {}` goes on from them", args.study.again()));
    Ok(())
}

fn to_json(cancelled: &Cancelled, found: &Targets, open: &[String]) -> serde_json::Value {
    let unknown: Vec<_> = found.unknown.iter().map(|(cell, why)| json!({"cell": cell, "why": why})).collect();
    let others: &[Target] = &found.others;
    json!({
        "cancelled": cancelled.ended, "ending": cancelled.ending, "of_others": others, "unknown": unknown,
        "uncertain": open,
    })
}
