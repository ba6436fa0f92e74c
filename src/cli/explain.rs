//! `seedbed explain`: why a cell is not running, or not done.

use serde_json::json;

use super::Result;
use super::output::{self, Format};
use super::study::{CellArgs, StudyArgs};
use crate::record::exit;
use crate::workflow::explain::{Explanation, explain};
use crate::workflow::logs::plain;
use crate::workflow::status::look;

/// Say why a cell is not running or not done, and what to do about it. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "EXAMPLES:\n  seedbed explain configs/monotone.toml evaluate --seed 42\n  \
    seedbed explain configs/monotone.toml aggregate --format json\nEvery cause: docs/operations.md")]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    cell: CellArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let look = look(&args.study.request())?;
    look.prepared.notes.iter().for_each(|n| output::note(n));
    let cells = look.select(&args.cell.which())?;
    let study = args.study.again();
    let explained: Vec<Explanation> = cells.into_iter().map(|i| explain(&look, i, &study)).collect();
    match args.format {
        Format::Text => output::text(&explained.iter().map(text).collect::<Vec<_>>().join("\n"))?,
        Format::Json => {
            let prepared = &look.prepared;
            output::json(&json!({
                "study": prepared.study.name, "profile": prepared.study.profile, "cells": explained,
                "notes": prepared.notes,
            }))?;
        }
    }
    Ok(exit::DONE)
}

fn text(explained: &Explanation) -> String {
    let mut text = format!("{} is {}\n", explained.cell, explained.state.as_str());
    let mut about = explained.cell.as_str();
    for reason in &explained.reasons {
        if reason.cell != about {
            about = &reason.cell;
            text.push_str(&format!("  {about}:\n"));
        }
        let indent = if about == explained.cell { "  " } else { "    " };
        text.push_str(&format!("{indent}{}\n", plain(&reason.text)));
        reason.log.iter().for_each(|line| text.push_str(&format!("{indent}  | {line}\n")));
        reason.advice.iter().for_each(|advice| text.push_str(&format!("{indent}-> {}\n", plain(advice))));
    }
    text
}
