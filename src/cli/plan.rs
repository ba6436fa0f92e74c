//! `seedbed plan`: every cell with its state, and the bill of what is left.

use serde_json::json;

use super::Result;
use super::output::{self, Format};
use super::study::{PartArgs, StudyArgs};
use crate::record::exit;
use crate::workflow::plan::{CellState, Policy};
use crate::workflow::run::{Intent, Prepared, prepare};
use crate::workflow::slurm::script;

/// Show every cell and what is left to do; changes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    part: PartArgs,
    /// Digest every output instead of looking at sizes
    #[arg(long)]
    verify: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let mut request = args.study.part(&args.part, Policy::default());
    request.verify = args.verify;
    let prepared = prepare(&request, Intent::Look)?;
    prepared.notes.iter().for_each(|n| output::note(n));
    match args.format {
        Format::Text => {
            output::text(&table(&prepared))?;
            output::text(&left(&prepared))?;
            output::text(&bill(&prepared))?;
        }
        Format::Json => output::json(&to_json(&prepared))?,
    }
    Ok(exit::DONE)
}

/// One row a stage and state, or a cell where cells differ.
pub(crate) fn table(prepared: &Prepared) -> String {
    let mut rows = vec![vec!["STAGE".to_owned(), "CELLS".to_owned(), "STATE".to_owned(), "WHY".to_owned()]];
    for (i, stage) in prepared.study.stages.iter().enumerate() {
        let cells: Vec<_> = prepared.plan.cells.iter().filter(|c| c.def.stage == i).collect();
        let mut groups: Vec<(&'static str, String, Vec<String>)> = Vec::new();
        for cell in cells {
            let (word, reason) = (cell.state.word(), cell.state.reason());
            let local = cell.def.key.local_name();
            let short = local.strip_prefix(&format!("{}/", stage.name)).unwrap_or("-").to_owned();
            match groups.iter_mut().find(|(w, r, _)| *w == word && similar(r, &reason)) {
                Some((_, _, names)) => names.push(short),
                None => groups.push((word, reason, vec![short])),
            }
        }
        for (k, (word, reason, names)) in groups.into_iter().enumerate() {
            let head = if k == 0 { format!("{} {}", stage.number, stage.name) } else { String::new() };
            rows.push(vec![head, list(&names), word.to_owned(), reason]);
        }
    }
    output::columns(&rows, output::width())
}

/// Reasons that say the same of different seeds.
fn similar(a: &str, b: &str) -> bool {
    let plain = |text: &str| {
        text.split(|c: char| !c.is_ascii_alphabetic())
            .filter(|w| !w.is_empty() && w.len() > 2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    a == b || (a.starts_with("needs.") && b.starts_with("needs.") && plain(a).first() == plain(b).first())
}

fn list(names: &[String]) -> String {
    match names {
        [one] => one.clone(),
        [first, .., last] if names.len() > 3 => format!("{first} .. {last} ({})", names.len()),
        _ => names.join(" "),
    }
}

/// What each stage that is left asks for, a cell.
fn left(prepared: &Prepared) -> String {
    let head = ["LEFT", "CELLS", "NODES", "RANKS", "CORES", "GPUS", "MEMORY", "TIME", "DISK"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (i, stage) in prepared.study.stages.iter().enumerate() {
        let cells = prepared.plan.to_run().filter(|c| c.def.stage == i).count();
        if cells == 0 {
            continue;
        }
        let r = &stage.resources;
        rows.push(vec![
            format!("{} {}", stage.number, stage.name),
            cells.to_string(),
            r.nodes.to_string(),
            r.ranks().to_string(),
            (r.ranks() * r.cpus_per_task).to_string(),
            (r.nodes * r.gpus_per_node).to_string(),
            r.mem_bytes.map_or("-".to_owned(), memory),
            script::time_limit(r.time_s),
            stage.storage_bytes.map_or("-".to_owned(), output::size),
        ]);
    }
    if rows.len() == 1 { String::new() } else { format!("\n{}\n", output::columns(&rows, output::width())) }
}

/// Memory as sbatch takes it.
fn memory(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 30) { format!("{}G", bytes >> 30) } else { format!("{}M", bytes.div_ceil(1 << 20)) }
}

/// What is left, in hours, bytes and money.
pub(crate) fn bill(prepared: &Prepared) -> String {
    let (done, all) = prepared.done();
    let bill = prepared.bill();
    let mut text = format!("{done} of {} done", output::plural(all, "cell"));
    if bill.cells > 0 {
        text.push_str(&format!(", {} to run: at most ", bill.cells));
        let hours = if bill.gpu_hours > 0.0 {
            format!("{:.1} GPU-hours", bill.gpu_hours)
        } else {
            format!("{:.1} core-hours", bill.cpu_hours)
        };
        text.push_str(&hours);
        if bill.storage_bytes > 0 {
            text.push_str(&format!(", about {} on disk", output::size(bill.storage_bytes)));
        }
        if let Some(cost) = prepared.cost(&bill) {
            let currency = prepared.cluster.price.currency.as_deref().unwrap_or("");
            text.push_str(&format!(", {cost:.2} {currency}"));
        }
    }
    text.push('\n');
    text
}

fn to_json(prepared: &Prepared) -> serde_json::Value {
    let bill = prepared.bill();
    let cells: Vec<_> = prepared
        .plan
        .cells
        .iter()
        .map(|cell| {
            let changes = match &cell.state {
                CellState::Stale(changes) => json!(changes),
                _ => json!([]),
            };
            json!({
                "key": cell.def.key, "cell": cell.def.key.local_name(), "fingerprint": cell.def.fingerprint,
                "state": cell.state.word(), "reason": cell.state.reason(), "changes": changes,
                "selected": cell.selected,
            })
        })
        .collect();
    json!({
        "study": prepared.study.name, "profile": prepared.study.profile, "root": prepared.place.root,
        "cells": cells,
        "left": {
            "cells": bill.cells, "gpu_hours": bill.gpu_hours, "cpu_hours": bill.cpu_hours,
            "storage_bytes": bill.storage_bytes, "cost": prepared.cost(&bill),
        },
        "notes": prepared.notes,
    })
}
