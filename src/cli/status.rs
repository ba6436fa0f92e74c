//! `seedbed status`: the chain as it stands. Changes nothing.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::output::{self, Format};
use super::progress::{Looking, numbers, show, spinner};
use super::study::StudyArgs;
use super::{Result, plan};
use crate::record::{attempt, exit, flag};
use crate::workflow::answers::FRESH_FOR;
use crate::workflow::logs::plain;
use crate::workflow::plan::CellState;
use crate::workflow::standing::Word;
use crate::workflow::status::{CellLook, Look, look, progress};

/// At most so many bars: a terminal has no more lines.
const BARS: usize = 20;

/// Show the chain: seals first, then jobs, then progress. Changes nothing.
///
/// Slurm is asked at most once in 15 seconds, whoever looks, and however many look at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES:\n  seedbed status configs/monotone.toml --profile quick\n  \
    seedbed status configs/monotone.toml --watch\n  \
    seedbed status configs/monotone.toml --format json | jq '.cells[] | select(.state == \"failed\")'\n\
    What each state means: docs/operations.md")]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    /// Show it again every 15 seconds until all cells are sealed, or nothing runs or waits any more
    #[arg(long)]
    watch: bool,
    /// How to print; with --watch JSON is one line a look
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let request = args.study.request();
    let first = look(&request)?;
    if !args.watch {
        print(args, &first)?;
        return Ok(exit::DONE);
    }
    let on_terminal = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
    if on_terminal && args.format == Format::Text {
        return watch_on_terminal(args, first);
    }
    let mut now = first;
    let mut printed = String::new();
    loop {
        let text = match args.format {
            Format::Text => table(&now),
            Format::Json => to_json(&now).to_string(),
        };
        // Lines that say the same again tell a reader nothing.
        if text != printed {
            print(args, &now)?;
            printed = text;
        }
        if is_over(&now) {
            return Ok(exit::DONE);
        }
        std::thread::sleep(FRESH_FOR + Duration::from_millis(50));
        now = look_again(args, now, &output::note);
    }
}

/// Looks again. What cannot be read this time may be read the next.
fn look_again(args: &Args, before: Look, tell: &dyn Fn(&str)) -> Look {
    look(&args.study.request()).unwrap_or_else(|error| {
        tell(&format!("{error}: looking again in {} s", FRESH_FOR.as_secs()));
        before
    })
}

fn is_over(look: &Look) -> bool {
    let (done, all) = look.prepared.done();
    done == all || !look.may_move()
}

fn print(args: &Args, look: &Look) -> Result<()> {
    look.prepared.notes.iter().for_each(|n| output::note(n));
    match args.format {
        Format::Text => {
            output::text(&table(look))?;
            hint(args, look);
            Ok(())
        }
        Format::Json if args.watch => output::text(&format!("{}\n", to_json(look))),
        Format::Json => output::json(&to_json(look)),
    }
}

/// Where to read on about the first cell that needs somebody.
fn hint(args: &Args, look: &Look) {
    let needs_somebody = |c: &&CellLook| {
        matches!(
            c.standing.word,
            Word::Failed | Word::Blocked | Word::Cancelled | Word::Stopped | Word::Waiting | Word::Interrupted
        )
    };
    let Some(at) = look.cells.iter().position(|c| needs_somebody(&c)) else { return };
    let key = &look.prepared.plan.cells[at].def.key;
    let arm = key.arm.as_ref().map(|arm| format!(" --arm {arm}")).unwrap_or_default();
    let seed = key.seed.map(|seed| format!(" --seed {seed}")).unwrap_or_default();
    output::note(&format!("why, and what to do: `seedbed explain {} {}{arm}{seed}`", args.study.again(), key.stage));
}

/// A bar for each running cell, and a line for each change.
fn watch_on_terminal(args: &Args, first: Look) -> Result<u8> {
    print(args, &first)?;
    let looking = Looking::new()?;
    let bars = &looking.bars;
    let total = bars.add(ProgressBar::new(0).with_style(summary_style()));
    let mut running: BTreeMap<String, ProgressBar> = BTreeMap::new();
    let mut now = first;
    while !is_over(&now) {
        total.set_length(now.prepared.plan.cells.len() as u64);
        total.set_position(now.prepared.done().0 as u64);
        total.set_message(counts(&now));
        let runs = |c: &CellLook| matches!(c.standing.word, Word::Running | Word::ProbablyRunning);
        let cells = now.prepared.plan.cells.iter().zip(&now.cells).filter(|(_, c)| runs(c)).take(BARS);
        let cells: Vec<_> =
            cells.map(|(cell, _)| (cell.def.key.clone(), now.prepared.place.run_dir(&cell.def.key))).collect();
        running.retain(|name, bar| {
            let stays = cells.iter().any(|(key, _)| key.local_name() == *name);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
        let next = Instant::now() + FRESH_FOR;
        while Instant::now() < next {
            for (key, run_dir) in &cells {
                let bar = running.entry(key.local_name()).or_insert_with(|| {
                    bars.add(ProgressBar::new(0).with_style(spinner()).with_message(key.local_name()))
                });
                match progress(run_dir) {
                    Some(far) => show(bar, key, &far),
                    None => bar.tick(),
                }
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        let tell = |line: &str| drop(bars.println(plain(line)));
        let before: Vec<(String, Word)> = words(&now).collect();
        now = look_again(args, now, &tell);
        for ((cell, word), (i, old)) in words(&now).zip(before.iter().enumerate()) {
            if *old != (cell.clone(), word) {
                tell(&format!("{cell}: {} -> {}  {}", old.1.as_str(), word.as_str(), now.cells[i].standing.detail));
            }
        }
    }
    running.values().for_each(ProgressBar::finish_and_clear);
    total.finish_and_clear();
    drop(looking);
    print(args, &now)?;
    Ok(exit::DONE)
}

fn summary_style() -> ProgressStyle {
    ProgressStyle::with_template("{pos} of {len} cells done  {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn words(look: &Look) -> impl Iterator<Item = (String, Word)> {
    look.prepared.plan.cells.iter().zip(&look.cells).map(|(cell, c)| (cell.def.key.local_name(), c.standing.word))
}

/// `3 running, 4 queued`: everything but what is done.
fn counts(look: &Look) -> String {
    let mut counts: BTreeMap<Word, usize> = BTreeMap::new();
    for cell in &look.cells {
        *counts.entry(cell.standing.word).or_default() += 1;
    }
    let open = counts.iter().filter(|(word, _)| **word != Word::Done);
    open.map(|(word, n)| format!("{n} {}", word.as_str())).collect::<Vec<_>>().join(", ")
}

/// What a person reads of a cell beside its state.
fn detail(cell: &CellLook) -> String {
    let mut text = plain(&cell.standing.detail);
    if let Some(far) = &cell.progress {
        let step = match far.line.total {
            Some(total) => format!("step {}/{total}", far.line.step),
            None => format!("step {}", far.line.step),
        };
        text = [text, step, numbers(far)].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("  ");
    }
    text
}

fn table(look: &Look) -> String {
    let prepared = &look.prepared;
    let mut rows = vec![["CELL", "STATE", "DETAIL"].map(str::to_owned).to_vec()];
    for (cell, seen) in prepared.plan.cells.iter().zip(&look.cells) {
        let word = match seen.standing.word {
            Word::Stopped | Word::Waiting => cell.state.label(),
            word => word.as_str().to_owned(),
        };
        rows.push(vec![cell.def.key.local_name(), word, detail(seen)]);
    }
    let mut text = output::columns(&rows, output::width());
    let flags: Vec<String> = prepared
        .study
        .stages
        .iter()
        .map(|s| {
            let there = flag::path(&prepared.place.base, s.number, &s.name).exists();
            format!("{}{}", s.number, if there { "+" } else { "-" })
        })
        .collect();
    text.push_str(&format!("flags: {}\n", flags.join(" ")));
    let counts = counts(look);
    if !counts.is_empty() {
        text.push_str(&format!("{counts}\n"));
    }
    text.push_str(&plan::bill(prepared));
    text
}

fn to_json(look: &Look) -> serde_json::Value {
    let prepared = &look.prepared;
    let cells: Vec<_> = prepared
        .plan
        .cells
        .iter()
        .zip(&look.cells)
        .map(|(cell, seen)| {
            let job = match &cell.state {
                CellState::Queued(job) | CellState::QueuedStale(job) => {
                    json!({"id": job.element(), "name": job.name, "state": job.state})
                }
                _ => match seen.jobs.last() {
                    Some(job) => json!({"id": job.element().map(|e| e.to_string()), "name": job.name, "state": null}),
                    None => json!(null),
                },
            };
            let newest = seen.attempt.as_ref().map(|a| {
                let end = a.end.as_ref();
                json!({
                    "attempt": a.start.attempt, "host": a.start.host, "started_at": a.start.started_at,
                    "exit_code": end.map(|e| e.exit_code), "why": end.map(|e| &e.cause),
                })
            });
            let far = seen.progress.as_ref().map(
                |p| json!({"step": p.line.step, "total": p.line.total, "values": p.line.values, "left_s": p.left_s}),
            );
            let run_dir = prepared.place.run_dir(&cell.def.key);
            json!({
                "cell": cell.def.key.local_name(), "key": cell.def.key, "state": seen.standing.word,
                "liveness": seen.standing.liveness, "cause": seen.standing.cause, "detail": detail(seen),
                "plan": cell.state.word(), "job": job, "attempts": attempt::last(&run_dir).unwrap_or(0),
                "attempt": newest, "progress": far, "run_dir": run_dir,
            })
        })
        .collect();
    let (done, all) = prepared.done();
    let slurm = look.answers.as_ref().map(|a| {
        json!({
            "asked_at": a.asked_at, "answered_at": a.answered_at, "problem": a.problem,
            "accounting": !a.has_no_accounts(),
        })
    });
    json!({
        "study": prepared.study.name, "profile": prepared.study.profile, "done": done, "expected": all,
        "slurm": slurm, "cells": cells, "notes": prepared.notes,
    })
}
