//! `seedbed logs`: what a cell printed, over all its attempts.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde_json::json;

use super::output::{self, Format};
use super::study::{CellArgs, StudyArgs};
use super::{CliError, Result};
use crate::record::exit;
use crate::record::seal::SEAL_FILE;
use crate::workflow::answers::FRESH_FOR;
use crate::workflow::logs::{Follower, LogLine, job_logs, plain, stage_log};
use crate::workflow::run::Request;
use crate::workflow::status::{Look, Which, look};

/// Print what a stage printed, over all attempts of a cell; each begins with a line `== attempt`.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES:\n  seedbed logs configs/monotone.toml train_baseline --seed 42 --follow\n  \
    seedbed logs configs/monotone.toml setup --job        what Slurm and the attempts say\n  \
    seedbed logs configs/monotone.toml uat --lines 20     the end of every seed's log")]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    cell: CellArgs,
    /// Go on until the cell is done or nothing of it runs or waits any more: across attempts and jobs
    #[arg(long, short)]
    follow: bool,
    /// Only this attempt
    #[arg(long, value_name = "N", conflicts_with = "job")]
    attempt: Option<u32>,
    /// The logs of its jobs instead: what Slurm, the site's modules and the attempts say
    #[arg(long)]
    job: bool,
    /// Only the last N lines of what is there
    #[arg(long, short = 'n', value_name = "N")]
    lines: Option<usize>,
    /// How to print; JSON is one object a line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The logs of one cell.
struct Source {
    cell: String,
    followers: Vec<(std::path::PathBuf, Follower)>,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let which = args.cell.which();
    // Without --follow Slurm has nothing to add.
    let request = Request { local: args.study.local || !args.follow, ..args.study.request() };
    let mut now = look(&request)?;
    let mut sources = sources(args, &now, &which)?;
    let mut printer = Printer { args, many: sources.len() > 1, last: None };
    let found = refresh(args, &now, &which, &mut sources)?;
    for source in &mut sources {
        let over = !args.follow;
        let lines = source.followers.iter_mut().flat_map(|(_, f)| if over { f.rest() } else { f.lines() }).collect();
        printer.print(&source.cell, end(lines, args))?;
    }
    if !args.follow {
        if !found {
            return Err(CliError::Usage(nothing(args, &look(&args.study.request())?, &which)?));
        }
        return Ok(exit::DONE);
    }
    if !found {
        output::note(&nothing(args, &now, &which)?);
    }
    let mut looked = Instant::now();
    let mut all_sealed = false;
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let mut over = false;
        let sealed = !all_sealed && are_sealed(&now, &which)?;
        if looked.elapsed() >= FRESH_FOR || sealed {
            looked = Instant::now();
            all_sealed |= sealed;
            match look(&request) {
                Ok(new) => now = new,
                Err(error) => output::note(&format!("{error}: looking again in {} s", FRESH_FOR.as_secs())),
            }
            refresh(args, &now, &which, &mut sources)?;
            over = !may_move(&now, &which)?;
        }
        for source in &mut sources {
            let lines: Vec<LogLine> =
                source.followers.iter_mut().flat_map(|(_, f)| if over { f.rest() } else { f.lines() }).collect();
            printer.print(&source.cell, lines.into_iter().filter(|l| wanted(l, args)).collect())?;
        }
        if over {
            for i in now.select(&which)? {
                let (cell, standing) = (&now.prepared.plan.cells[i], &now.cells[i].standing);
                let detail =
                    if standing.detail.is_empty() { String::new() } else { format!(": {}", plain(&standing.detail)) };
                output::note(&format!("{} is {}{detail}", cell.def.key.local_name(), standing.word.as_str()));
            }
            return Ok(exit::DONE);
        }
    }
}

fn may_move(look: &Look, which: &Which) -> Result<bool> {
    Ok(look.select(which)?.into_iter().any(|i| look.cells[i].standing.word.may_move()))
}

/// Whether a seal lies in every cell: then it is looked at once more, and not only when Slurm's answer is old.
fn are_sealed(look: &Look, which: &Which) -> Result<bool> {
    let run_dir = |i: usize| look.prepared.place.run_dir(&look.prepared.plan.cells[i].def.key);
    Ok(look.select(which)?.into_iter().all(|i| run_dir(i).join(SEAL_FILE).exists()))
}

fn sources(args: &Args, look: &Look, which: &Which) -> Result<Vec<Source>> {
    let cells = look.select(which)?;
    let source = |i: usize| {
        let key = &look.prepared.plan.cells[i].def.key;
        let path = stage_log(&look.prepared.place.run_dir(key));
        let followers = if args.job { Vec::new() } else { vec![(path.clone(), Follower::new(path))] };
        Source { cell: key.local_name(), followers }
    };
    Ok(cells.into_iter().map(source).collect())
}

/// Takes up logs of jobs that have come; whether there is any log.
fn refresh(args: &Args, look: &Look, which: &Which, sources: &mut [Source]) -> Result<bool> {
    if args.job {
        for (i, source) in look.select(which)?.into_iter().zip(sources.iter_mut()) {
            let cell = &look.prepared.plan.cells[i].def;
            let number = look.prepared.study.stages[cell.stage].number;
            for path in job_logs(&look.prepared.place, number, &cell.key, &look.cells[i].jobs) {
                if !source.followers.iter().any(|(known, _)| *known == path) {
                    source.followers.push((path.clone(), Follower::new(path)));
                }
            }
        }
    }
    Ok(sources.iter().any(|s| s.followers.iter().any(|(path, _)| path.is_file())))
}

/// What to say where there is no log.
fn nothing(args: &Args, look: &Look, which: &Which) -> Result<String> {
    let first = look.select(which)?.into_iter().next();
    let state = first.map_or("not there", |i| look.cells[i].standing.word.as_str());
    let seed = which.seed.map(|seed| format!(" --seed {seed}")).unwrap_or_default();
    let other = if args.job { "" } else { "; --job shows what its jobs said" };
    Ok(format!(
        "stage `{}`{seed} has written no log yet, its state is {state}: `seedbed explain {} {}{seed}` says why{other}",
        which.stage,
        args.study.again(),
        which.stage
    ))
}

fn wanted(line: &LogLine, args: &Args) -> bool {
    args.attempt.is_none_or(|n| line.attempt == Some(n))
}

/// The last lines of those that are wanted.
fn end(lines: Vec<LogLine>, args: &Args) -> Vec<LogLine> {
    let mut lines: Vec<LogLine> = lines.into_iter().filter(|line| wanted(line, args)).collect();
    match args.lines {
        Some(n) if n < lines.len() => lines.split_off(lines.len() - n),
        _ => lines,
    }
}

struct Printer<'a> {
    args: &'a Args,
    many: bool,
    last: Option<String>,
}

impl Printer<'_> {
    /// Lines of one cell; of several cells each is named before its lines, as tail does.
    fn print(&mut self, cell: &str, lines: Vec<LogLine>) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        if self.many && self.args.format == Format::Text && self.last.as_deref() != Some(cell) {
            text.push_str(&format!("{}==> {cell} <==\n", if self.last.is_some() { "\n" } else { "" }));
            self.last = Some(cell.to_owned());
        }
        // What a program printed is not obeyed by a terminal; a file or a pipe gets it as it is.
        let on_terminal = std::io::stdout().is_terminal();
        for line in lines {
            match self.args.format {
                Format::Text if on_terminal => text.push_str(&plain(&line.text)),
                Format::Text => text.push_str(&line.text),
                Format::Json => {
                    text.push_str(&json!({"cell": cell, "attempt": line.attempt, "text": line.text}).to_string());
                }
            }
            text.push('\n');
        }
        output::text(&text)
    }
}
