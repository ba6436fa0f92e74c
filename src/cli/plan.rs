//! `seedbed plan`: every cell with its state, and the bill of what is left.

use std::collections::BTreeMap;

use serde_json::json;

use super::Result;
use super::output::{self, Format};
use super::study::{PartArgs, StudyArgs};
use crate::record::exit;
use crate::workflow::bill::{Bill, Hours, resumable};
use crate::workflow::budget::{Quantity, Row};
use crate::workflow::ledger::Ledger;
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
            output::text(&begin_anew(&prepared.bill()))?;
            output::text(&against_budget(&prepared))?;
        }
        Format::Json => output::json(&to_json(&prepared))?,
    }
    Ok(exit::DONE)
}

/// One row a stage and state, or a cell where cells differ.
pub(crate) fn table(prepared: &Prepared) -> String {
    let mut rows = vec![vec!["STAGE".to_owned(), "CELLS".to_owned(), "STATE".to_owned(), "WHY".to_owned()]];
    for (i, stage) in prepared.study.stages.iter().enumerate() {
        let cells = prepared.plan.cells.iter().filter(|c| c.def.stage == i);
        let mut groups: Vec<Group> = Vec::new();
        let mut places: BTreeMap<(String, String), usize> = BTreeMap::new();
        for cell in cells {
            let (word, why, reason) = (cell.state.label(), in_common(&cell.state), cell.state.reason());
            let local = cell.def.key.local_name();
            let short = local.strip_prefix(stage.name.as_str()).and_then(|rest| rest.strip_prefix('/'));
            let short = short.unwrap_or("-").to_owned();
            match places.get(&(word.clone(), why.clone())) {
                Some(&at) => groups[at].names.push(short),
                None => {
                    places.insert((word.clone(), why.clone()), groups.len());
                    groups.push(Group { word, why, reason, names: vec![short] });
                }
            }
        }
        for (k, group) in groups.into_iter().enumerate() {
            let head = if k == 0 { format!("{} {}", stage.number, stage.name) } else { String::new() };
            let array = group.names.len() > 1 && group.why.starts_with("job ");
            rows.push(vec![head, list(&group.names), group.word, if array { group.why } else { group.reason }]);
        }
    }
    output::columns(&rows, output::width())
}

/// Cells of one row.
struct Group {
    word: String,
    /// [`in_common`].
    why: String,
    /// The reason of the first.
    reason: String,
    names: Vec<String>,
}

/// What the reasons of different seeds have in common where they say the same: of an array the job and not the element,
/// of what is stale by its parents that it is so.
fn in_common(state: &CellState) -> String {
    match state {
        CellState::Queued(job) => format!("job {} {}", job.id, job.state),
        CellState::QueuedStale(job) => format!("job {} {} with other parameters", job.id, job.state),
        other => {
            let reason = other.reason();
            if reason.starts_with("needs.") { "needs.".to_owned() } else { reason }
        }
    }
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
    bill_text(prepared, &prepared.bill())
}

/// The same of a bill that is known.
pub(crate) fn bill_text(prepared: &Prepared, bill: &Bill) -> String {
    let (done, all) = prepared.done();
    let mut text = format!("{done} of {} done", output::plural(all, "cell"));
    if bill.cells > 0 {
        text.push_str(&format!(", {} to run: ", bill.cells));
        let pick = |hours: Hours| if bill.worst.gpu_hours > 0.0 { hours.gpu_hours } else { hours.cpu_hours };
        let unit = if bill.worst.gpu_hours > 0.0 { "GPU-hours" } else { "core-hours" };
        let [expected, worst] = [bill.expected, bill.worst].map(|hours| format!("{:.1}", pick(hours)));
        if expected != worst {
            text.push_str(&format!("about {expected}, "));
        }
        text.push_str(&format!("at most {worst} {unit}"));
        if bill.storage_bytes > 0 {
            text.push_str(&format!(", about {} on disk", output::size(bill.storage_bytes)));
        }
        if let Some(cost) = bill.expected.cost(&prepared.cluster.price) {
            let currency = prepared.cluster.price.currency.as_deref().unwrap_or("");
            text.push_str(&format!(", about {cost:.2} {currency}"));
        }
        if let Some((cells, links)) = prepared.links() {
            let (cells, each) = (output::plural(cells, "cell"), if cells == 1 { "" } else { " each" });
            text.push_str(&format!(
                "\nthis site requeues no job: {cells} that can go on from a checkpoint become up to {links} jobs{each}, one behind the other"
            ));
        }
    }
    text.push('\n');
    text
}

/// What cannot go on from a checkpoint, and what of that has run before.
pub(crate) fn begin_anew(bill: &Bill) -> String {
    let names: Vec<String> = bill.rigid.iter().map(ToString::to_string).collect();
    if names.is_empty() {
        return String::new();
    }
    let mut text =
        format!("without checkpoints: {} (cut short, a cell begins anew, and only by run_all)\n", names.join(", "));
    if !bill.anew.is_empty() {
        text.push_str(&format!("from the beginning: {} (it ran before, and left no result)\n", list(&bill.anew)));
    }
    text
}

/// The bill against the study's budget; nothing where it has none.
pub(crate) fn against_budget(prepared: &Prepared) -> String {
    if prepared.study.budget.is_none() {
        return String::new();
    }
    let ledger = prepared.ledger();
    let rows = prepared.rows(&prepared.bill_beside(&ledger), &ledger);
    let over = rows.iter().filter(|row| row.is_over()).map(|row| format!("over budget: {}\n", row.words()));
    budget_text(prepared, &rows) + &over.collect::<String>()
}

/// One line for each quantity that has a limit, and what would not fit at worst.
pub(crate) fn budget_text(prepared: &Prepared, rows: &[Row]) -> String {
    let head = ["BUDGET", "SPENT", "QUEUED", "THIS CALL", "AT WORST", "LIMIT"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    let mut notes = String::new();
    for row in rows {
        let Some(limit) = row.limit else { continue };
        let name = match row.quantity {
            Quantity::Cost => prepared.cluster.price.currency.as_deref().unwrap_or("cost"),
            other => other.name(),
        };
        let shown = |value: f64| row.quantity.shown(value);
        let least = if row.at_least { ">=" } else { "" };
        lines.push(vec![
            name.to_owned(),
            format!("{least}{}", shown(row.spent)),
            shown(row.queued),
            shown(row.expected),
            shown(row.spent + row.worst),
            shown(limit),
        ]);
        if row.may_be_over() && !row.is_over() {
            let name = row.quantity.name();
            notes
                .push_str(&format!("at worst the {name} do not suffice: the gate then stops what they do not cover\n"));
        }
    }
    let limits = prepared.study.budget.as_ref();
    if limits.is_some_and(|b| b.cost.is_some()) && !rows.iter().any(|row| row.quantity == Quantity::Cost) {
        notes.push_str("the budget limits the cost, and the cluster file says no `price`: it is not checked\n");
    }
    let table = if lines.len() > 1 { output::columns(&lines, output::width()) } else { String::new() };
    format!("{table}{notes}")
}

fn to_json(prepared: &Prepared) -> serde_json::Value {
    let ledger = match prepared.study.budget {
        Some(_) => prepared.ledger(),
        None => Ledger::default(),
    };
    let bill = prepared.bill_beside(&ledger);
    let cost = |hours: Hours| hours.cost(&prepared.cluster.price);
    let budget: serde_json::Map<String, serde_json::Value> = prepared
        .rows(&bill, &ledger)
        .iter()
        .filter(|row| row.limit.is_some())
        .map(|row| (row.quantity.key().to_owned(), row.to_json()))
        .collect();
    let cells: Vec<_> = prepared
        .plan
        .cells
        .iter()
        .map(|cell| {
            let changes = match &cell.state {
                CellState::Stale(changes) => json!(changes),
                _ => json!([]),
            };
            let by = match &cell.state {
                CellState::Stopped(halt) | CellState::Waiting(halt) => json!(halt.source()),
                _ => json!(null),
            };
            json!({
                "key": cell.def.key, "cell": cell.def.key.local_name(), "fingerprint": cell.def.fingerprint,
                "state": cell.state.word(), "reason": cell.state.reason(), "changes": changes, "by": by,
                "selected": cell.selected,
                "resumable": resumable(&prepared.study.stages[cell.def.stage]),
            })
        })
        .collect();
    json!({
        "study": prepared.study.name, "profile": prepared.study.profile, "root": prepared.place.root,
        "cells": cells,
        "left": {
            "cells": bill.cells, "gpu_hours": bill.expected.gpu_hours, "cpu_hours": bill.expected.cpu_hours,
            "storage_bytes": bill.storage_bytes, "cost": cost(bill.expected), "begin_anew": bill.anew,
            "worst": {
                "gpu_hours": bill.worst.gpu_hours, "cpu_hours": bill.worst.cpu_hours, "cost": cost(bill.worst),
            },
        },
        "budget": budget,
        "notes": prepared.notes,
    })
}
