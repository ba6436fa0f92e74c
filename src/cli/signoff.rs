//! `seedbed signoff`: the study's checklist, computed from seals.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};

use super::output::{self, Format};
use super::study::StudyArgs;
use super::{CliError, Result, gates};
use crate::record::decision::Condition;
use crate::record::decision::Verdict;
use crate::record::exit;
use crate::record::run_h5::{self, RUN_FILE};
use crate::report::query::source;
use crate::stages::gate;
use crate::workflow::plan::{PlannedCell, SealView};
use crate::workflow::run::{Intent, Prepared, prepare};

/// Print the study's checklist, computed from seals: every stage, every gate with what it found and who confirmed it,
/// and the conditions of `[signoff]`. Digests every output.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ends with 0 when every item holds, else with 1.\nEXAMPLE:\n  seedbed signoff configs/gap.toml --profile full"
)]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One item of the checklist.
#[derive(Debug, Serialize)]
struct Item {
    /// `stage`, `gate` or `condition`.
    kind: &'static str,
    /// What it is about.
    name: String,
    /// Whether it holds.
    holds: bool,
    /// What was found, in a few words.
    found: String,
    /// Further lines.
    lines: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let mut request = args.study.request();
    request.verify = true;
    let prepared = prepare(&request, Intent::Look)?;
    prepared.notes.iter().for_each(|n| output::note(n));
    let mut items = stages(&prepared);
    items.extend(conditions(&prepared)?);
    let holds = items.iter().filter(|i| i.holds).count();
    let all = holds == items.len();
    let codes: BTreeSet<&str> = prepared
        .seals
        .values()
        .filter_map(|view| match view {
            SealView::Sealed { seal, .. } => Some(seal.code.as_str()),
            _ => None,
        })
        .collect();
    match args.format {
        Format::Text => {
            for item in &items {
                let mark = if item.holds { "x" } else { " " };
                output::text(&format!("[{mark}] {} {}: {}\n", item.kind, item.name, item.found))?;
                for line in &item.lines {
                    output::text(&format!("      {line}\n"))?;
                }
            }
            let seeds: BTreeSet<u32> = prepared.plan.cells.iter().filter_map(|c| c.def.key.seed).collect();
            let seeds: Vec<String> = seeds.iter().map(u32::to_string).collect();
            output::text(&format!("seeds: {}\n", if seeds.is_empty() { "none".to_owned() } else { seeds.join(", ") }))?;
            let codes: Vec<&str> = codes.into_iter().collect();
            output::text(&format!(
                "sealed by: {}\n",
                if codes.is_empty() { "nothing yet".to_owned() } else { codes.join(", ") }
            ))?;
            output::text(&format!("{holds} of {} hold\n", output::plural(items.len(), "item")))?;
        }
        Format::Json => output::json(&json!({
            "study": prepared.study.name, "profile": prepared.study.profile, "holds": all, "items": items, "codes": codes,
        }))?,
    }
    Ok(if all { exit::DONE } else { exit::INCOMPLETE })
}

/// One item for each stage and gate, in the order in which they run.
fn stages(prepared: &Prepared) -> Vec<Item> {
    let mut order: Vec<usize> = Vec::new();
    for cell in &prepared.plan.cells {
        if !order.contains(&cell.def.stage) {
            order.push(cell.def.stage);
        }
    }
    let mut items = Vec::new();
    for index in order {
        let stage = &prepared.study.stages[index];
        let cells: Vec<&PlannedCell> = prepared.plan.cells.iter().filter(|c| c.def.stage == index).collect();
        if stage.is_gate() {
            items.extend(cells.iter().map(|cell| gate_item(prepared, cell)));
            continue;
        }
        let done = cells.iter().filter(|c| c.state.is_done()).count();
        let open = |c: &&&PlannedCell| !c.state.is_done();
        let line = |c: &&PlannedCell| {
            format!("{}: {} {}", c.def.key.local_name(), c.state.label(), c.state.reason()).trim_end().to_owned()
        };
        let mut lines: Vec<String> = cells.iter().filter(open).take(5).map(line).collect();
        if cells.len() - done > lines.len() {
            lines.push(format!("and {} more", cells.len() - done - lines.len()));
        }
        items.push(Item {
            kind: "stage",
            name: stage.name.to_string(),
            holds: done == cells.len(),
            found: format!("{done} of {} sealed and whole", output::plural(cells.len(), "cell")),
            lines,
        });
    }
    items
}

fn gate_item(prepared: &Prepared, cell: &PlannedCell) -> Item {
    let decision = gates::decision_of(prepared, cell);
    let passed = cell.state.is_done() && decision.as_ref().is_some_and(|d| d.verdict == Verdict::Pass);
    let found = if passed {
        Verdict::Pass.word().to_owned()
    } else {
        format!("{} {}", cell.state.label(), cell.state.reason()).trim_end().to_owned()
    };
    Item {
        kind: "gate",
        name: cell.def.key.local_name(),
        holds: passed,
        found,
        lines: decision.as_ref().map(gates::lines).unwrap_or_default(),
    }
}

/// One item for each condition of `[signoff]`.
fn conditions(prepared: &Prepared) -> Result<Vec<Item>> {
    let sections = Value::from(prepared.study.signoff.clone());
    let conditions: Vec<Condition> = gate::conditions_of(&sections).map_err(CliError::Usage)?;
    if conditions.is_empty() {
        return Ok(Vec::new());
    }
    let all = conditions.iter().any(|c| c.of.is_none());
    let asked: BTreeSet<&str> = conditions.iter().filter_map(|c| c.of.as_deref()).collect();
    let mut results = Vec::new();
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for cell in &prepared.plan.cells {
        let stage = &prepared.study.stages[cell.def.stage];
        let name = stage.name.as_str();
        if stage.is_gate() || !(all || asked.contains(name)) {
            continue;
        }
        if cell.state.is_done() {
            let run = run_h5::read_run(&prepared.place.run_dir(&cell.def.key).join(RUN_FILE))?;
            results.push((name.to_owned(), source::evidence(&run)));
        } else {
            open.insert(name);
        }
    }
    let judged = gate::evaluate_conditions(&conditions, &results).into_iter().map(|judged| {
        let missing: Vec<&str> = match &judged.condition.of {
            Some(of) => open.iter().copied().filter(|name| name == of).collect(),
            None => open.iter().copied().collect(),
        };
        let name = judged.condition.name.clone();
        let words = judged.in_words();
        let found = words.strip_prefix(&format!("{name} ")).unwrap_or(&words).to_owned();
        // A number over some of the cells is not the study's.
        if missing.is_empty() {
            return Item { kind: "condition", name, holds: judged.holds, found, lines: Vec::new() };
        }
        let found = format!("not judged: {} is not complete", missing.join(", "));
        Item { kind: "condition", name, holds: false, found, lines: Vec::new() }
    });
    Ok(judged.collect())
}
