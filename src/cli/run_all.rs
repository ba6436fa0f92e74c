//! `run_all`: the whole study, on Slurm or on this machine.

use std::path::Path;

use clap::Parser;

use super::progress::Watch;
use super::study::{PartArgs, StudyArgs};
use super::{CliError, Result, gates, output, plan};
use crate::record::decision::Verdict;
use crate::record::exit;
use crate::workflow::journal::Event;
use crate::workflow::ledger::Ledger;
use crate::workflow::local::{Task, TaskEnd};
use crate::workflow::lock::{Hold, IfHeld, Lock};
use crate::workflow::place::Place;
use crate::workflow::plan::{CellState, Policy};
use crate::workflow::run::{self, Intent, LocalRun, Prepared, Site, Which, prepare};
use crate::workflow::slurm::Client;
use crate::workflow::study::On;
use crate::workflow::{budget, precheck};

/// Run a study: submit its chain to Slurm and return, or run it here where there is no Slurm.
///
/// What is sealed does not run again and what is queued is not submitted twice: run the same command again
/// whenever something was killed or changed.
#[derive(Debug, Parser)]
#[command(
    name = "run_all",
    version,
    after_help = "EXAMPLES:\n  run_all configs/monotone.toml --profile quick\n  run_all configs/monotone.toml --profile full --cluster mysite --dry-run\n  EXPERIMENT_SEED=42 run_all configs/monotone.toml --profile quick\nExit codes: docs/exit-codes.md"
)]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    part: PartArgs,
    /// Show what would run, with its scripts; submit nothing
    #[arg(long)]
    dry_run: bool,
    /// Submit without asking
    #[arg(long, short)]
    yes: bool,
    /// Cancel queued jobs that were submitted with other parameters, and submit anew
    #[arg(long)]
    replace: bool,
    /// Try cells again that a gate or kill criterion stopped
    #[arg(long)]
    retry_stopped: bool,
    /// Digest every sealed output instead of looking at its size, and run again what is damaged
    #[arg(long)]
    verify: bool,
    /// Submit although the bill is above the study's budget, for this reason
    #[arg(long, value_name = "REASON")]
    over_budget: Option<String>,
    /// Take the lock of a run_all that is gone for good
    #[arg(long)]
    break_lock: bool,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let policy = Policy { retry_stopped: args.retry_stopped, replace: args.replace };
    let mut request = args.study.part(&args.part, policy);
    request.verify = args.verify;
    if args.dry_run {
        let mut prepared = prepare(&request, Intent::Look)?;
        prepared.note_retries();
        return dry_run(args, &prepared, policy);
    }
    let study = run::load_study(&request)?;
    let place = Place::new(request.root.as_deref(), &request.study, &study.name, &study.profile)?;
    let site = run::site(&request)?;
    // A local run holds the lock to its end.
    let hold = if matches!(site, Site::Slurm(_)) { Hold::Short } else { Hold::Long };
    let if_held = if args.break_lock { IfHeld::Break } else { IfHeld::Respect };
    let _lock = Lock::take(&place.own(), hold, if_held)?;

    let mut prepared = run::prepare_at(&request, site)?;
    prepared.notes.iter().for_each(|n| output::note(n));
    prepared.check_request(policy)?;
    prepared.refresh_flags()?;
    output::note(plan::table(&prepared).trim_end());
    gates::halted(&prepared, &args.study).iter().for_each(|text| output::note(text));
    if prepared.plan.to_run().next().is_none() {
        clear_dead(&prepared)?;
        run::release_held(&prepared).iter().for_each(|line| output::note(line));
        output::note(plan::bill(&prepared).trim_end());
        return nothing_to_do(args, &prepared);
    }
    let held_back = hold_back(args, &mut prepared)?;
    held_back.iter().for_each(|line| output::note(line));
    let permission = prechecks(args, &prepared)?;
    if let Site::Slurm(_) = prepared.site {
        ask(args)?;
    }
    if let Some(permission) = permission {
        prepared.journal.write(permission)?;
    }
    clear_dead(&prepared)?;
    run::release_held(&prepared).iter().for_each(|line| output::note(line));
    match &prepared.site {
        Site::Local(why) => {
            output::note(&format!("running on this machine ({why})"));
            local(args, &prepared)
        }
        Site::Slurm(_) => {
            let mut prepared = login_stages(args, &request, prepared)?;
            // After stages of the login node all is looked at anew.
            let held_back = hold_back(args, &mut prepared)?.or(held_back);
            let code = slurm(args, &prepared)?;
            held_back.iter().for_each(|line| output::note(line));
            Ok(code)
        }
    }
}

/// Jobs that can never start hold up what waits for their end.
fn clear_dead(prepared: &Prepared) -> Result<()> {
    let cleared = run::clear_dead(prepared)?;
    if !cleared.is_empty() {
        let jobs = output::plural(cleared.len(), "job");
        output::note(&format!(
            "took {jobs} out of the queue that waited for what can never happen: {}",
            cleared.join(", ")
        ));
    }
    Ok(())
}

/// Leaves out what the site would not take now. Returns what to say of it, now and at the end.
fn hold_back(args: &Args, prepared: &mut Prepared) -> Result<Option<String>> {
    let (held_back, lines) = precheck::hold_back(prepared)?;
    lines.iter().for_each(|line| output::note(line));
    let Some(left) = held_back else { return Ok(None) };
    let taken = if left.queued > 0 { format!(", of which {} were taken", left.queued) } else { String::new() };
    Ok(Some(format!(
        "{} not submitted yet: the site takes {} of your jobs at a time ({}){taken}; when these have ended, type the same \
         again: run_all {}",
        output::plural(left.cells, "cell"),
        left.most,
        left.by,
        args.study.again()
    )))
}

/// Prints the bill, and checks everything that can be known before anything is submitted. Returns the permission to go
/// beyond the budget, where it takes one.
fn prechecks(args: &Args, prepared: &Prepared) -> Result<Option<Event>> {
    let budget = prepared.study.budget.as_ref();
    let ledger = match budget {
        Some(_) => prepared.ledger(),
        None => Ledger::default(),
    };
    ledger.notes.iter().for_each(|n| output::note(n));
    let bill = prepared.bill_beside(&ledger);
    output::note(plan::bill_text(prepared, &bill).trim_end());
    plan::begin_anew(&bill).lines().for_each(output::note);
    let mut permission = None;
    if let Some(budget) = budget {
        let rows = prepared.rows(&bill, &ledger);
        output::note(plan::budget_text(prepared, &rows).trim_end());
        match (budget::check(&rows), &args.over_budget) {
            (Ok(()), _) => {}
            (Err(_), Some(reason)) if !reason.trim().is_empty() => {
                output::note(&format!("over budget: {reason}"));
                permission = Some(budget::permission(reason, budget, &rows));
            }
            (Err(error), _) => return Err(error.into()),
        }
    }
    let nobody = Client::new();
    let client = match &prepared.site {
        Site::Slurm(client) => client,
        Site::Local(_) => &nobody,
    };
    let said = precheck::storage(&prepared.place, &prepared.cluster, client, &bill)?;
    // Room on a disk is worth a line only where the study says what it needs.
    said.iter().filter(|_| bill.storage_bytes > 0).for_each(|line| output::note(line));
    if let Site::Slurm(client) = &prepared.site {
        precheck::site(prepared, client, &prepared.jobs_to_come()?)?.iter().for_each(|line| output::note(line));
    }
    Ok(permission)
}

/// The one question.
fn ask(args: &Args) -> Result<()> {
    let answer = if args.yes { Some(true) } else { output::confirm("Submit?") };
    match answer {
        Some(true) => Ok(()),
        Some(false) => Err(CliError::Usage("nothing was submitted".to_owned())),
        None => Err(CliError::Usage(
            "nothing was submitted: there is no terminal to ask at; say --yes to submit without a question".to_owned(),
        )),
    }
}

fn dry_run(args: &Args, prepared: &Prepared, policy: Policy) -> Result<u8> {
    prepared.notes.iter().for_each(|n| output::note(n));
    prepared.check_request(policy)?;
    output::text(&plan::table(prepared))?;
    output::text(&plan::bill(prepared))?;
    output::text(&plan::begin_anew(&prepared.bill()))?;
    output::text(&plan::against_budget(prepared))?;
    for (name, text) in prepared.preview()? {
        output::text(&format!("\n# ---- {name}\n{text}"))?;
    }
    output::note(&format!("nothing was submitted; `run_all {}` does it", args.study.again()));
    Ok(exit::DONE)
}

fn nothing_to_do(args: &Args, prepared: &Prepared) -> Result<u8> {
    let (done, all) = prepared.done();
    if done == all {
        output::note("everything is sealed; nothing to do");
        show_results(prepared)?;
        return Ok(exit::DONE);
    }
    let any = |pick: fn(&CellState) -> bool| prepared.plan.cells.iter().any(|c| c.selected && pick(&c.state));
    let stopped = any(|s| matches!(s, CellState::Stopped(_)));
    if any(|s| matches!(s, CellState::Queued(_))) || !(stopped || any(|s| matches!(s, CellState::Waiting(_)))) {
        output::note(&format!("nothing to submit; `seedbed status {}` shows what is queued", args.study.again()));
        return Ok(exit::DONE);
    }
    output::note("nothing to run: what is left is stopped, or waits for a person");
    Ok(if stopped { exit::STOPPED } else { exit::INCOMPLETE })
}

/// Runs the stages of the login node, then looks again.
fn login_stages(args: &Args, request: &run::Request, prepared: Prepared) -> Result<Prepared> {
    let count = prepared.plan.to_run().filter(|c| c.on == On::Login).count();
    if count == 0 {
        return Ok(prepared);
    }
    output::note(&format!("running {} on this node first", output::plural(count, "cell")));
    let mut watch = Watch::new(count);
    let ran = run::run_local(&prepared, Which::Login, &mut |e| watch.event(e))?;
    if failures(args, &ran) != exit::DONE {
        return Err(CliError::Usage("a stage of the login node did not finish: nothing was submitted".to_owned()));
    }
    Ok(prepare(request, Intent::Act)?)
}

fn slurm(args: &Args, prepared: &Prepared) -> Result<u8> {
    let mut count = 0;
    let submitted = run::submit(prepared, &mut |job| {
        count += job.cells;
        let behind = if job.dependency.is_empty() { String::new() } else { format!(" behind {}", job.dependency) };
        output::note(&format!("job {} {} ({}){behind}", job.id, job.name, output::plural(job.cells, "cell")));
    })?;
    output::note(&format!(
        "submitted {} in {}; the chain goes on without you",
        output::plural(count, "cell"),
        output::plural(submitted.len(), "job")
    ));
    output::note(&format!("  watch:  seedbed status {} --watch", args.study.again()));
    output::note(&format!("  logs:   {}", prepared.place.logs().display()));
    Ok(exit::DONE)
}

fn local(args: &Args, prepared: &Prepared) -> Result<u8> {
    let total = prepared.plan.to_run().count();
    let mut watch = Watch::new(total);
    let ran = run::run_local(prepared, Which::All, &mut |e| watch.event(e))?;
    let code = failures(args, &ran);
    if code == exit::DONE {
        show_results(prepared)?;
    }
    Ok(code)
}

/// Tells of every cell that did not end well; the exit code of the whole.
fn failures(args: &Args, ran: &LocalRun) -> u8 {
    let (mut failed_cells, mut stopped, mut open) = (false, false, false);
    let mut interrupted = false;
    for (task, end) in &ran.tasks {
        match end {
            TaskEnd::Done => {}
            TaskEnd::Interrupted => interrupted = true,
            TaskEnd::Skipped => open = true,
            TaskEnd::Failed(failed) => {
                stopped |= *failed == i32::from(exit::STOPPED);
                if let Some(decision) = gates::said(task) {
                    open = true;
                    let verdict = decision.verdict.word();
                    output::note(&format!("\ngate {}: {verdict}", task.key.local_name()));
                    gates::lines(&decision).iter().for_each(|line| output::note(&format!("  {line}")));
                    if decision.verdict == Verdict::Waiting {
                        output::note(&format!("  then: {}", gates::confirm_command(&task.key, &args.study)));
                    }
                    continue;
                }
                failed_cells |= *failed != i32::from(exit::STOPPED);
                output::note(&format!(
                    "\n{} ended with exit {failed} ({}):",
                    task.key.local_name(),
                    exit::meaning(*failed)
                ));
                explain(task);
                if *failed == i32::from(exit::STOPPED) {
                    output::note(&format!(
                        "  then: change the study, then `run_all {0}`; or `run_all {0} --retry-stopped` to try it as it is",
                        args.study.again()
                    ));
                }
            }
        }
    }
    if interrupted {
        output::note(&format!("interrupted: `run_all {}` goes on from here", args.study.again()));
        return exit::RESUME;
    }
    match (failed_cells, stopped, open) {
        (false, false, false) => exit::DONE,
        (false, true, _) => exit::STOPPED,
        (true, ..) => {
            output::note(&format!("\nmend the cause and run again what is missing: `run_all {}`", args.study.again()));
            exit::INCOMPLETE
        }
        (false, false, true) => exit::INCOMPLETE,
    }
}

/// The ends of what the attempt and the stage said.
fn explain(task: &Task) {
    let log = task.run_dir.join("log.txt");
    for (path, lines) in [(&log, 8), (&task.log, 3)] {
        for line in tail(path, lines) {
            output::note(&format!("  | {line}"));
        }
    }
    output::note(&format!("  whole log: {}", log.display()));
}

fn tail(path: &Path, lines: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let all: Vec<&str> = text.lines().collect();
    // What a program printed is not obeyed by this terminal.
    let plain = |line: &&str| line.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    all[all.len().saturating_sub(lines)..].iter().map(plain).collect()
}

/// The study's tables and where everything lies.
fn show_results(prepared: &Prepared) -> Result<()> {
    for cell in &prepared.plan.cells {
        let stage = &prepared.study.stages[cell.def.stage];
        if stage.kind() != "aggregate" {
            continue;
        }
        let dir = prepared.place.run_dir(&cell.def.key);
        for table in super::aggregate::printed_tables(&dir) {
            output::text(&format!("\n{table}"))?;
        }
        output::note("");
        for path in super::aggregate::result_files(&dir) {
            output::note(&format!("  {}", path.display()));
        }
    }
    output::note(&format!("  {}", prepared.place.base.display()));
    Ok(())
}
