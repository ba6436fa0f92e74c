//! `seedbed ledger`: hours and money, as expected and as they were, and what was wasted.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::Result;
use super::output::{self, Format};
use super::study::StudyArgs;
use crate::record::{Name, exit};
use crate::workflow::bill::{self, Hours};
use crate::workflow::budget::Row;
use crate::workflow::journal::Event;
use crate::workflow::ledger::{Charge, Ledger, Totals, Waste, estimated};
use crate::workflow::run::{Intent, Prepared, prepare};

/// Show what the study has held: GPU-hours, core-hours and money beside their estimates, waste, and what is left of the
/// budget. Changes nothing.
///
/// Every attempt counts: by Slurm's accounting where the site keeps it, else by the attempts' own records. `>=` marks
/// what was more: an attempt that still runs, or was killed and is counted to its last heartbeat.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "EXAMPLES:\n  seedbed ledger configs/monotone.toml --profile full --cluster mysite\n  seedbed ledger configs/monotone.toml --profile full --attempts\n  seedbed ledger configs/monotone.toml --profile full --format json"
)]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    /// Show every attempt, too
    #[arg(long)]
    attempts: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The first table of the ledger, its head first, and how it was counted: for `report.html`.
pub(super) fn sheet(prepared: &Prepared) -> (Vec<Vec<String>>, String) {
    let book = Book::new(prepared);
    let mut lines = book.stages();
    lines.push(book.total());
    (book.rows_of("STAGE", &lines), format!("Counted by {}; >= marks what was more.", book.source()))
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let prepared = prepare(&args.study.request(), Intent::Look)?;
    let book = Book::new(&prepared);
    prepared.notes.iter().chain(&book.ledger.notes).for_each(|n| output::note(n));
    match args.format {
        Format::Text => {
            output::text(&book.text())?;
            if args.attempts {
                output::text(&book.attempts())?;
            }
        }
        Format::Json => output::json(&book.json())?,
    }
    Ok(exit::DONE)
}

/// The ledger with what is beside it on the page.
struct Book<'p> {
    prepared: &'p Prepared,
    ledger: Ledger,
    estimates: BTreeMap<Name, Hours>,
    rows: Vec<Row>,
}

/// One line of the page: a stage, an activity, or all.
struct Line {
    name: String,
    totals: Totals,
    estimate: Hours,
}

impl<'p> Book<'p> {
    fn new(prepared: &'p Prepared) -> Self {
        let ledger = prepared.ledger();
        let now = bill::estimates(&prepared.study, &prepared.plan, &prepared.seals);
        let estimates = estimated(&ledger, &prepared.entries, &prepared.study, &prepared.plan, &now);
        let rows = prepared.rows(&prepared.bill_beside(&ledger), &ledger);
        Self { prepared, ledger, estimates, rows }
    }

    fn cost(&self, hours: Hours) -> Option<f64> {
        hours.cost(&self.prepared.cluster.price)
    }

    fn currency(&self) -> &str {
        self.prepared.cluster.price.currency.as_deref().unwrap_or("cost")
    }

    fn line(&self, name: String, stages: &BTreeSet<&Name>) -> Line {
        let totals = Totals::of(self.ledger.charges.iter().filter(|charge| stages.contains(&charge.stage)));
        let estimate = stages.iter().filter_map(|stage| self.estimates.get(*stage)).copied().sum();
        Line { name, totals, estimate }
    }

    /// One line for each stage of the study, and for what the study has no more.
    fn stages(&self) -> Vec<Line> {
        let study = &self.prepared.study;
        let mut lines: Vec<Line> = study
            .stages
            .iter()
            .map(|stage| self.line(format!("{} {}", stage.number, stage.name), &BTreeSet::from([&stage.name])))
            .collect();
        let gone = self.ledger.charges.iter().map(|charge| &charge.stage).filter(|s| study.stage(s.as_str()).is_none());
        for stage in gone.collect::<BTreeSet<_>>() {
            lines.push(self.line(format!("- {stage}"), &BTreeSet::from([stage])));
        }
        lines
    }

    /// One line for each activity that stages name.
    fn activities(&self) -> Vec<Line> {
        let mut activities: BTreeMap<&str, BTreeSet<&Name>> = BTreeMap::new();
        for stage in &self.prepared.study.stages {
            if let Some(activity) = &stage.activity {
                activities.entry(activity).or_default().insert(&stage.name);
            }
        }
        activities.into_iter().map(|(activity, stages)| self.line(activity.to_owned(), &stages)).collect()
    }

    fn total(&self) -> Line {
        let stages = self.ledger.charges.iter().map(|c| &c.stage).chain(self.estimates.keys()).collect();
        self.line("all".to_owned(), &stages)
    }

    fn source(&self) -> &'static str {
        if self.ledger.accounted { "sacct -D" } else { "records of attempts" }
    }

    fn table(&self, head: &str, lines: &[Line]) -> String {
        output::columns(&self.rows_of(head, lines), output::width())
    }

    fn rows_of(&self, head: &str, lines: &[Line]) -> Vec<Vec<String>> {
        let head = [head, "CELLS", "ATTEMPTS", "GPU-HOURS", "EXPECTED", "CORE-HOURS", "EXPECTED"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        let priced = self.cost(Hours::default()).is_some();
        if priced {
            rows[0].extend([self.currency().to_uppercase(), "EXPECTED".to_owned()]);
        }
        for line in lines {
            let totals = &line.totals;
            let least = if totals.at_least { ">=" } else { "" };
            let mut row = vec![line.name.clone(), totals.cells.to_string(), totals.attempts.to_string()];
            row.extend([format!("{least}{:.2}", totals.hours.gpu_hours), format!("{:.2}", line.estimate.gpu_hours)]);
            row.extend([format!("{least}{:.2}", totals.hours.cpu_hours), format!("{:.2}", line.estimate.cpu_hours)]);
            if let (Some(cost), Some(estimate)) = (self.cost(totals.hours), self.cost(line.estimate)) {
                row.extend([format!("{least}{cost:.2}"), format!("{estimate:.2}")]);
            }
            rows.push(row);
        }
        rows
    }

    fn text(&self) -> String {
        let total = self.total();
        let mut lines = self.stages();
        lines.push(self.total());
        let mut text = self.table("STAGE", &lines);
        let activities = self.activities();
        if !activities.is_empty() {
            text.push_str(&format!("\n{}", self.table("ACTIVITY", &activities)));
        }
        let mut rows = vec![["WASTE", "ATTEMPTS", "GPU-HOURS", "CORE-HOURS", "WHERE"].map(str::to_owned).to_vec()];
        for kind in Waste::ALL {
            let Some(hours) = total.totals.waste.get(&kind) else { continue };
            let charges: Vec<&Charge> = self.wasted(kind).collect();
            rows.push(vec![
                kind.word().to_owned(),
                charges.len().to_string(),
                format!("{:.2}", hours.gpu_hours),
                format!("{:.2}", hours.cpu_hours),
                places(&charges),
            ]);
        }
        if rows.len() > 1 {
            text.push_str(&format!("\n{}", output::columns(&rows, output::width())));
        } else {
            text.push_str("\nnothing was wasted\n");
        }
        let limited: Vec<&Row> = self.rows.iter().filter(|row| row.limit.is_some()).collect();
        if !limited.is_empty() {
            text.push('\n');
        }
        for row in limited {
            let limit = row.limit.unwrap_or_default();
            let shown = |value: f64| row.quantity.shown(value);
            let (least, most) = if row.at_least { (">=", "<=") } else { ("", "") };
            text.push_str(&format!(
                "budget: {least}{} of {} {} spent, {most}{} left\n",
                shown(row.spent),
                shown(limit),
                if row.quantity.key() == "cost" { self.currency() } else { row.quantity.name() },
                shown(limit - row.spent),
            ));
        }
        for entry in &self.prepared.entries {
            if let Event::OverBudget { reason, .. } = &entry.event {
                let time = entry.time.format("%F %T UTC");
                text.push_str(&format!("over budget by leave of {} on {time}: {reason}\n", entry.user));
            }
        }
        text.push_str(&format!("counted by {}\n", self.source()));
        text
    }

    fn wasted(&self, kind: Waste) -> impl Iterator<Item = &Charge> {
        self.ledger.charges.iter().filter(move |charge| charge.wasted(kind) != Hours::default())
    }

    fn attempts(&self) -> String {
        let head = ["CELL", "ATTEMPT", "JOB", "START (UTC)", "TIME", "GPU-HOURS", "CORE-HOURS", "WASTE", "END"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for charge in &self.ledger.charges {
            let least = if charge.at_least { ">=" } else { "" };
            let hours = charge.hours();
            rows.push(vec![
                charge.cell.clone(),
                charge.attempt.map_or("-".to_owned(), |n| n.to_string()),
                charge.job.clone().unwrap_or_else(|| "-".to_owned()),
                charge.started_at.format("%F %T").to_string(),
                format!("{least}{}", output::duration(charge.wall_s)),
                format!("{least}{:.2}", hours.gpu_hours),
                format!("{least}{:.2}", hours.cpu_hours),
                charge.waste.map_or("-", Waste::word).to_owned(),
                // What an attempt said is not obeyed by this terminal.
                charge.ended.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect(),
            ]);
        }
        format!("\n{}", output::columns(&rows, output::width()))
    }

    fn hours_json(&self, hours: Hours) -> Value {
        json!({"gpu_hours": hours.gpu_hours, "cpu_hours": hours.cpu_hours, "cost": self.cost(hours)})
    }

    fn line_json(&self, line: &Line) -> Value {
        let totals = &line.totals;
        let waste: serde_json::Map<String, Value> = Waste::ALL
            .into_iter()
            .map(|kind| (kind.word().to_owned(), self.hours_json(totals.waste.get(&kind).copied().unwrap_or_default())))
            .collect();
        json!({
            "name": line.name.split_once(' ').map_or(line.name.as_str(), |(_, name)| name),
            "cells": totals.cells, "attempts": totals.attempts,
            "actual": self.hours_json(totals.hours), "at_least": totals.at_least,
            "expected": self.hours_json(line.estimate), "waste": waste,
        })
    }

    fn json(&self) -> Value {
        let study = &self.prepared.study;
        let lines = |lines: Vec<Line>| lines.iter().map(|line| self.line_json(line)).collect::<Vec<_>>();
        let budget: serde_json::Map<String, Value> = self
            .rows
            .iter()
            .filter(|row| row.limit.is_some())
            .map(|row| (row.quantity.key().to_owned(), row.to_json()))
            .collect();
        json!({
            "study": study.name, "profile": study.profile,
            "source": if self.ledger.accounted { "accounting" } else { "records" },
            "currency": self.prepared.cluster.price.currency,
            "stages": lines(self.stages()), "activities": lines(self.activities()), "all": self.line_json(&self.total()),
            "budget": budget, "attempts": self.ledger.charges,
            "notes": self.prepared.notes.iter().chain(&self.ledger.notes).collect::<Vec<_>>(),
        })
    }
}

/// The attempts of a waste, shortly.
fn places(charges: &[&Charge]) -> String {
    let one = |charge: &Charge| match charge.attempt {
        Some(n) => format!("{} attempt {n}", charge.cell),
        None => format!("{} job {}", charge.cell, charge.job.as_deref().unwrap_or("-")),
    };
    let mut words: Vec<String> = charges.iter().take(3).map(|charge| one(charge)).collect();
    if charges.len() > 3 {
        words.push(format!("and {} more", charges.len() - 3));
    }
    words.join(", ")
}
