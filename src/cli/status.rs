//! `seedbed status`: the chain as it stands. Changes nothing.

use std::time::Duration;

use serde_json::json;

use super::output::{self, Format};
use super::progress::{last_line, numbers};
use super::study::StudyArgs;
use super::{Result, plan};
use crate::record::{attempt, exit, flag};
use crate::workflow::plan::CellState;
use crate::workflow::run::{Intent, Prepared, prepare};

/// Show the chain: seals first, then jobs, then progress. Changes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    /// Show it again every 15 seconds until all cells are sealed
    #[arg(long)]
    watch: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    loop {
        let prepared = prepare(&args.study.request(), Intent::Look)?;
        prepared.notes.iter().for_each(|n| output::note(n));
        match args.format {
            Format::Text => output::text(&table(&prepared))?,
            Format::Json => output::json(&to_json(&prepared))?,
        }
        let (done, all) = prepared.done();
        if !args.watch || done == all {
            return Ok(exit::DONE);
        }
        std::thread::sleep(Duration::from_secs(15));
    }
}

/// What a cell's run directory tells beside its state.
fn detail(prepared: &Prepared, index: usize) -> String {
    let cell = &prepared.plan.cells[index];
    let run_dir = prepared.place.run_dir(&cell.def.key);
    let reason = cell.state.reason();
    let unsealed = matches!(cell.state, CellState::Missing | CellState::Queued(_));
    if !unsealed {
        return reason;
    }
    let mut parts: Vec<String> = if reason.is_empty() { Vec::new() } else { vec![reason] };
    if let Ok(n @ 1..) = attempt::last(&run_dir) {
        match attempt::read_end(&run_dir, n) {
            Ok(Some(end)) => parts.push(format!("attempt {n} ended: {}", end.cause)),
            _ => {
                let line = last_line(&run_dir);
                let step = line.as_ref().map(|l| match l.total {
                    Some(total) => format!(" step {}/{total} {}", l.step, numbers(l)),
                    None => format!(" step {} {}", l.step, numbers(l)),
                });
                parts.push(format!("attempt {n}{}", step.unwrap_or_default()));
            }
        }
    }
    parts.join("; ")
}

fn table(prepared: &Prepared) -> String {
    let mut rows = vec![["CELL", "STATE", "DETAIL"].map(str::to_owned).to_vec()];
    for (i, cell) in prepared.plan.cells.iter().enumerate() {
        rows.push(vec![cell.def.key.local_name(), cell.state.word().to_owned(), detail(prepared, i)]);
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
    text.push_str(&plan::bill(prepared));
    text
}

fn to_json(prepared: &Prepared) -> serde_json::Value {
    let cells: Vec<_> = prepared
        .plan
        .cells
        .iter()
        .enumerate()
        .map(|(i, cell)| {
            let job = match &cell.state {
                CellState::Queued(job) | CellState::QueuedStale(job) => {
                    json!({"id": job.element(), "name": job.name, "state": job.state})
                }
                _ => json!(null),
            };
            let run_dir = prepared.place.run_dir(&cell.def.key);
            json!({
                "cell": cell.def.key.local_name(), "key": cell.def.key, "state": cell.state.word(),
                "detail": detail(prepared, i), "job": job, "run_dir": run_dir,
                "attempts": attempt::last(&run_dir).unwrap_or(0),
            })
        })
        .collect();
    let (done, all) = prepared.done();
    json!({"study": prepared.study.name, "profile": prepared.study.profile, "done": done, "expected": all, "cells": cells})
}
