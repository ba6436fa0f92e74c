//! The stage summary: macro accuracy by stage, comparisons, the table of tasks, direct answers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::spec::{Check, Comparison, Fact, Question, StageRow, StageSummary};
use super::words::{NEAR_HALF, SMALL_REGRESSION, change, degree, moves, plain, points, signed, times};
use super::{Ask, Results, Which, artifacts, cells_of, text_of};
use crate::report::render::markdown_text;
use crate::report::stats;
use crate::report::table::Expected;

/// Values by seed.
type BySeed = BTreeMap<Option<u32>, f64>;

/// What one stage of the summary found.
#[derive(Debug, Default)]
struct Measured {
    cells: Vec<usize>,
    /// Cells whose tasks could be read, with their seeds.
    read: Vec<(Option<u32>, usize)>,
    macro_accuracy: BySeed,
    /// In the order of the cell's own list.
    tasks: Vec<(String, BySeed)>,
    /// Mean chance of the tasks, where every task says it.
    chance: Option<f64>,
}

impl Measured {
    fn task(&self, name: &str) -> Option<&BySeed> {
        self.tasks.iter().find(|(task, _)| task == name).map(|(_, values)| values)
    }
}

fn which<'a>(row: &'a StageRow) -> Which<'a> {
    Which { stage: &row.stage, arm: row.arm.as_deref(), labels: &row.labels }
}

pub(super) fn asks(spec: &StageSummary, expected: &[Expected]) -> Vec<Ask> {
    let mut asks = Vec::new();
    for row in &spec.stages {
        for cell in cells_of(which(row), expected) {
            let codes = [Some(&spec.tasks), spec.macro_accuracy.as_ref()];
            asks.extend(codes.into_iter().flatten().map(|code| Ask { cell, code: code.clone() }));
        }
    }
    for fact in &spec.scope {
        if let (Some(cell), Some(code)) = (fact_cell(fact, expected), &fact.metric) {
            asks.push(Ask { cell, code: code.clone() });
        }
    }
    asks
}

/// The first cell with a result that a line of the scope speaks of, or the first at all.
fn fact_cell(fact: &Fact, expected: &[Expected]) -> Option<usize> {
    let labels = BTreeMap::new();
    let which = Which { stage: fact.stage.as_deref()?, arm: fact.arm.as_deref(), labels: &labels };
    let cells = cells_of(which, expected);
    cells.iter().find(|i| expected[**i].run.is_ok()).or(cells.first()).copied()
}

pub(super) fn build(spec: &StageSummary, results: &mut Results<'_>) -> (String, Value) {
    let measured: BTreeMap<&str, Measured> =
        spec.stages.iter().map(|row| (row.key.as_str(), measure(spec, row, results))).collect();
    same_tasks(spec, &measured, results);
    let page = Page { spec, measured };
    let mut out = String::new();
    page.scope(results, &mut out);
    page.definitions(&mut out);
    page.macro_table(&mut out);
    page.derived(&mut out);
    page.task_table(&mut out);
    page.answers(&mut out);
    for check in &spec.checks {
        page.check(check, &mut out);
    }
    let cells = page.measured.values().flat_map(|m| &m.cells);
    let (text, sources) = artifacts(results.expected, cells);
    out.push_str(&text);
    let mut numbers = page.numbers();
    numbers.insert("runs".to_owned(), sources);
    (out, Value::Object(numbers))
}

/// Macro accuracies compare only where they are means over the same tasks: within a stage, and between two that the
/// document compares.
fn same_tasks(spec: &StageSummary, measured: &BTreeMap<&str, Measured>, results: &mut Results<'_>) {
    let remedy = "evaluate the same tasks, or let `tasks` choose those that all have";
    let list = |tasks: &BTreeSet<&str>| tasks.iter().map(|task| format!("{task:?}")).collect::<Vec<_>>().join(", ");
    let stages: Vec<(&str, BTreeSet<&str>)> =
        measured.iter().map(|(key, m)| (*key, m.tasks.iter().map(|(task, _)| task.as_str()).collect())).collect();
    let tasks: BTreeMap<&str, &BTreeSet<&str>> = stages.iter().map(|(key, tasks)| (*key, tasks)).collect();
    for (key, found) in measured {
        for (seed, cell) in &found.read {
            let lacks: BTreeSet<&str> =
                found.tasks.iter().filter(|(_, of)| !of.contains_key(seed)).map(|(task, _)| task.as_str()).collect();
            if !lacks.is_empty() {
                let name = results.expected[*cell].key.local_name();
                results.problem(&format!(
                    "stage `{key}`: {name} lacks tasks that other cells of the stage have: {}: {remedy}",
                    list(&lacks)
                ));
            }
        }
    }
    let compared = spec.compare.iter().map(|c| (&c.of, &c.to));
    let compared = compared.chain(spec.checks.iter().map(|c| (&c.of, &c.to)));
    let compared = compared.chain(spec.questions.iter().map(|q| (&q.of, &q.to)));
    let compared = compared.chain(spec.questions.iter().filter_map(|q| Some((&q.of, q.from.as_ref()?))));
    for (of, to) in compared {
        let (Some(left), Some(right)) = (tasks.get(of.as_str()), tasks.get(to.as_str())) else { continue };
        // A stage without results has no tasks: that is told elsewhere.
        let differ: BTreeSet<&str> = left.symmetric_difference(right).copied().collect();
        if !left.is_empty() && !right.is_empty() && !differ.is_empty() {
            results.problem(&format!(
                "stages `{of}` and `{to}` are compared and were evaluated on different tasks, only one of them has {}: \
                 {remedy}",
                list(&differ)
            ));
        }
    }
}

/// Reads a stage's cells.
fn measure(spec: &StageSummary, row: &StageRow, results: &mut Results<'_>) -> Measured {
    let place = format!("stage `{}`", row.key);
    let mut found = Measured::default();
    let mut chances = Vec::new();
    for (seed, cell) in results.by_seed(&place, which(row)) {
        found.cells.push(cell);
        let Some(list) = results.output(&place, cell, &spec.tasks) else { continue };
        let name = results.expected[cell].key.local_name();
        let Some(tasks) = tasks_of(&list) else {
            results.problem(&format!(
                "{place}: {name}: `{}` gives no array of {{task, accuracy}} with finite numbers",
                spec.tasks
            ));
            continue;
        };
        found.read.push((seed, cell));
        let mut accuracies = Vec::new();
        for (task, accuracy, chance) in tasks {
            accuracies.push(accuracy);
            chances.push(chance);
            match found.tasks.iter_mut().find(|(known, _)| *known == task) {
                Some((_, values)) => {
                    if values.insert(seed, accuracy).is_some() {
                        results.problem(&format!("{place}: {name}: task {task:?} is there twice"));
                    }
                }
                None => found.tasks.push((task, BySeed::from([(seed, accuracy)]))),
            }
        }
        let value = match &spec.macro_accuracy {
            Some(code) => results.number(&place, cell, code),
            None => stats::mean(&accuracies).ok(),
        };
        if let Some(value) = value {
            found.macro_accuracy.insert(seed, value);
        }
    }
    let all: Option<Vec<f64>> = chances.into_iter().collect();
    found.chance = all.and_then(|all| stats::mean(&all).ok());
    found
}

/// Task, accuracy, chance of every element; `None` if one is none.
fn tasks_of(list: &Value) -> Option<Vec<(String, f64, Option<f64>)>> {
    let items = list.as_array().filter(|items| !items.is_empty())?;
    items
        .iter()
        .map(|item| {
            Some((item.get("task")?.as_str()?.to_owned(), item.get("accuracy")?.as_f64()?, item["chance"].as_f64()))
        })
        .collect()
}

/// Two stages on the seeds that both have. A side without a seed goes with every one of the other.
fn pairs(of: &BySeed, to: &BySeed) -> Vec<(Option<u32>, f64, f64)> {
    match (of.get(&None), to.get(&None)) {
        (Some(of), None) => to.iter().map(|(seed, to)| (*seed, *of, *to)).collect(),
        (None, Some(to)) => of.iter().map(|(seed, of)| (*seed, *of, *to)).collect(),
        _ => of.iter().filter_map(|(seed, of)| Some((*seed, *of, *to.get(seed)?))).collect(),
    }
}

/// A comparison in numbers.
#[derive(Debug, Clone, Copy)]
struct Compared {
    /// Mean of the differences on common seeds.
    delta: Option<f64>,
    /// Mean of one / mean of the other, on common seeds.
    retention: Option<f64>,
    n: usize,
}

fn compare(of: &BySeed, to: &BySeed) -> Compared {
    let pairs = pairs(of, to);
    let differences: Vec<f64> = pairs.iter().map(|(_, of, to)| of - to).collect();
    let mean = |pick: fn(&(Option<u32>, f64, f64)) -> f64| stats::mean(&pairs.iter().map(pick).collect::<Vec<_>>());
    let retention = match (mean(|p| p.1), mean(|p| p.2)) {
        (Ok(of), Ok(to)) if to != 0.0 => Some(of / to),
        _ => None,
    };
    Compared { delta: stats::mean(&differences).ok(), retention, n: pairs.len() }
}

fn mean(values: &BySeed) -> Option<f64> {
    stats::mean(&values.values().copied().collect::<Vec<_>>()).ok()
}

fn sd(values: &BySeed) -> Option<f64> {
    stats::sample_sd(&values.values().copied().collect::<Vec<_>>()).ok()
}

struct Page<'a> {
    spec: &'a StageSummary,
    measured: BTreeMap<&'a str, Measured>,
}

impl Page<'_> {
    fn listed(&self) -> impl Iterator<Item = &StageRow> {
        self.spec.stages.iter().filter(|row| row.listed)
    }

    fn row(&self, key: &str) -> Option<&StageRow> {
        self.spec.stages.iter().find(|row| row.key == key)
    }

    fn label(&self, key: &str) -> String {
        self.row(key).map(|row| markdown_text(row.text())).unwrap_or_default()
    }

    fn macro_of(&self, key: &str) -> Option<f64> {
        self.measured.get(key).and_then(|m| mean(&m.macro_accuracy))
    }

    fn compared(&self, of: &str, to: &str) -> Compared {
        match (self.measured.get(of), self.measured.get(to)) {
            (Some(of), Some(to)) => compare(&of.macro_accuracy, &to.macro_accuracy),
            _ => Compared { delta: None, retention: None, n: 0 },
        }
    }

    /// Tasks in the order of the first stage that has them.
    fn tasks(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for row in &self.spec.stages {
            for (task, _) in &self.measured[row.key.as_str()].tasks {
                if !names.contains(task) {
                    names.push(task.clone());
                }
            }
        }
        names
    }

    /// True if some stage has more than one seed: then spreads are printed, and n.
    fn has_seeds(&self) -> bool {
        self.measured.values().any(|m| m.macro_accuracy.len() > 1)
    }

    fn scope(&self, results: &mut Results<'_>, out: &mut String) {
        let mut lines = Vec::new();
        for fact in &self.spec.scope {
            let text = match (&fact.value, &fact.metric) {
                (Some(value), _) => value.clone(),
                (None, Some(code)) => match fact_cell(fact, results.expected) {
                    Some(cell) => {
                        let place = format!("scope `{}`", fact.label);
                        results.output(&place, cell, code).map_or_else(|| "n/a".to_owned(), |v| text_of(&v))
                    }
                    None => "n/a".to_owned(),
                },
                (None, None) => continue,
            };
            lines.push(format!("- {}: {}\n", markdown_text(&fact.label), markdown_text(&text)));
        }
        let seeds: BTreeSet<u32> =
            self.measured.values().flat_map(|m| m.macro_accuracy.keys().copied().flatten()).collect();
        if !seeds.is_empty() {
            let seeds: Vec<String> = seeds.iter().map(u32::to_string).collect();
            lines.push(format!("- Seeds: {}\n", seeds.join(", ")));
        }
        let tasks: Vec<String> = self.tasks().iter().map(|task| markdown_text(task)).collect();
        if !tasks.is_empty() {
            lines.push(format!("- Tasks: {}\n", tasks.join(", ")));
        }
        out.push_str(&format!("\n## Scope\n\n{}", lines.concat()));
    }

    fn definitions(&self, out: &mut String) {
        let defined: Vec<&StageRow> = self.spec.stages.iter().filter(|row| !row.definition.is_empty()).collect();
        if defined.is_empty() {
            return;
        }
        out.push_str("\n## Stage definitions\n\n");
        for row in defined {
            out.push_str(&format!("- {}: {}\n", markdown_text(row.text()), markdown_text(&row.definition)));
        }
    }

    fn macro_table(&self, out: &mut String) {
        let seeds = self.has_seeds();
        out.push_str("\n## Macro accuracy by stage\n\n| Stage | Condition | Macro accuracy |");
        out.push_str(if seeds { " sd | n |\n|---|---|---:|---:|---:|\n" } else { "\n|---|---|---:|\n" });
        for row in self.listed() {
            let values = &self.measured[row.key.as_str()].macro_accuracy;
            out.push_str(&format!(
                "| {} | {} | {} |",
                markdown_text(row.text()),
                markdown_text(&row.condition),
                plain(mean(values), self.spec.macro_digits)
            ));
            if seeds {
                out.push_str(&format!(" {} | {} |", plain(sd(values), self.spec.macro_digits), values.len()));
            }
            out.push('\n');
        }
        if seeds {
            out.push_str("\nMean over seeds and sample standard deviation (divisor n - 1).\n");
        }
    }

    /// `(n = 3)` where there are seeds to count.
    fn counted(&self, n: usize) -> String {
        if self.has_seeds() { format!(", n = {n}") } else { String::new() }
    }

    fn derived(&self, out: &mut String) {
        if self.spec.compare.is_empty() {
            return;
        }
        out.push_str("\nDerived:\n\n");
        for Comparison { of, to, .. } in &self.spec.compare {
            let found = self.compared(of, to);
            out.push_str(&format!(
                "- {} {} vs {}: `{}` (`{}` macro points, retention `{}`{})\n",
                self.label(of),
                found.delta.map_or("change", change),
                self.label(to),
                signed(found.delta, self.spec.macro_digits),
                points(found.delta),
                times(found.retention),
                self.counted(found.n),
            ));
        }
    }

    fn task_table(&self, out: &mut String) {
        let rows: Vec<&StageRow> = self.listed().collect();
        let deltas: Vec<&Comparison> = self.spec.compare.iter().filter(|c| c.per_task).collect();
        let short = |key: &str| self.row(key).map(|row| markdown_text(row.short())).unwrap_or_default();
        let heads: Vec<String> = rows.iter().map(|row| markdown_text(row.text())).collect();
        out.push_str(&format!("\n## Per task: {}\n\n| Task |", heads.join(" vs ")));
        heads.iter().for_each(|head| out.push_str(&format!(" {head} |")));
        deltas.iter().for_each(|c| out.push_str(&format!(" Delta {}-{} |", short(&c.of), short(&c.to))));
        out.push_str(&format!("\n|---|{}\n", "---:|".repeat(heads.len() + deltas.len())));
        for task in self.tasks() {
            let digits = self.spec.task_digits;
            out.push_str(&format!("| {} |", markdown_text(&task)));
            for row in &rows {
                let values = self.measured[row.key.as_str()].task(&task);
                out.push_str(&format!(" {} |", plain(values.and_then(mean), digits)));
            }
            for delta in &deltas {
                out.push_str(&format!(" {} |", signed(self.task_delta(delta, &task).and_then(|c| c.delta), digits)));
            }
            out.push('\n');
        }
    }

    fn task_delta(&self, comparison: &Comparison, task: &str) -> Option<Compared> {
        let of = self.measured.get(comparison.of.as_str())?.task(task)?;
        let to = self.measured.get(comparison.to.as_str())?.task(task)?;
        Some(compare(of, to))
    }

    fn answers(&self, out: &mut String) {
        if self.spec.questions.is_empty() {
            return;
        }
        out.push_str("\n## Direct answers to the main questions\n");
        for (i, question) in self.spec.questions.iter().enumerate() {
            out.push_str(&format!("\n### {}) {}\n\n", i + 1, markdown_text(&question.ask)));
            let lines = match &question.from {
                None => self.lost(question),
                Some(from) => self.recovered(question, from),
            };
            lines.iter().for_each(|line| out.push_str(&format!("- {line}\n")));
        }
    }

    /// How much `of` lost against `to`.
    fn lost(&self, question: &Question) -> Vec<String> {
        let Compared { delta, retention, .. } = self.compared(&question.of, &question.to);
        let (of, to) = (self.macro_of(&question.of), self.macro_of(&question.to));
        let Some(change) = delta else { return vec!["No answer: a number is missing.".to_owned()] };
        let mut lines = vec![format!(
            "{}: macro {} from `{}` to `{}` (`{}` points).",
            degree(change, retention),
            moves(change),
            plain(to, 4),
            plain(of, 4),
            points(delta)
        )];
        match retention {
            Some(r) if change < 0.0 && NEAR_HALF.contains(&r) => {
                lines.push(format!(
                    "This is a near-halving of what {} had (`{}` retention).",
                    self.label(&question.to),
                    times(retention)
                ));
            }
            Some(_) => lines.push(format!("`{}` of {} is left.", times(retention), self.label(&question.to))),
            None => {}
        }
        let chance = self.measured.get(question.of.as_str()).and_then(|m| m.chance);
        if let (Some(of), Some(chance)) = (of, chance) {
            lines.push(format!(
                "Chance is `{}`: {} is `{}` points from it.",
                plain(Some(chance), 4),
                self.label(&question.of),
                points(Some(of - chance))
            ));
        }
        lines
    }

    /// How much of what `from` lost against `to` the stage `of` got back.
    fn recovered(&self, question: &Question, from: &str) -> Vec<String> {
        let (gain, rest) = (self.compared(&question.of, from), self.compared(&question.of, &question.to));
        let (Some(gained), Some(missing), Some(kept)) = (gain.delta, rest.delta, rest.retention) else {
            return vec!["No answer: a number is missing.".to_owned()];
        };
        let (of, from, to) = (self.label(&question.of), self.label(from), self.label(&question.to));
        let (kept_enough, gained_enough) = (kept >= question.min_retention, gained >= question.min_gain);
        let verdict = match (kept_enough && gained_enough, gained > 0.0) {
            (true, _) => "Yes",
            (false, true) => "Partially, but not fully",
            (false, false) => "No",
        };
        let verb = if gained > 0.0 { "improves over" } else { "does not improve over" };
        let mut lines = vec![format!("{verdict}: {of} {verb} {from} (`{}` macro points).", points(gain.delta))];
        let asked = times(Some(question.min_retention));
        lines.push(if kept_enough {
            format!("It recovers to `{}` of {to}; at least `{asked}` was asked.", times(rest.retention))
        } else {
            let side = if missing < 0.0 { "below" } else { "above" };
            format!(
                "It does **not** recover close to {to}: {of} is still `{}` points {side} it (retention `{}`, at least `{asked}` was asked).",
                points(rest.delta),
                times(rest.retention)
            )
        });
        let met = |met: bool| if met { "met" } else { "not met" };
        lines.push(format!(
            "Criteria: retention {}, gain of at least `{}` points {}; both: **{}**.",
            met(kept_enough),
            points(Some(question.min_gain)),
            met(gained_enough),
            met(kept_enough && gained_enough)
        ));
        lines
    }

    fn check(&self, check: &Check, out: &mut String) {
        let found = self.compared(&check.of, &check.to);
        out.push_str(&format!("\n## Additional check: {}\n\n", markdown_text(&check.title)));
        if !check.text.is_empty() {
            out.push_str(&format!("{}\n\n", markdown_text(&check.text)));
        }
        let digits = self.spec.macro_digits;
        for key in [&check.to, &check.of] {
            out.push_str(&format!("- {} macro: `{}`\n", self.label(key), plain(self.macro_of(key), digits)));
        }
        out.push_str(&format!(
            "- Delta: `{}` (retention `{}`{})\n",
            signed(found.delta, digits),
            times(found.retention),
            self.counted(found.n)
        ));
        let words = match (found.delta, found.retention) {
            (Some(d), _) if d >= 0.0 => "no regression",
            (Some(_), Some(r)) if r >= SMALL_REGRESSION => "a small regression",
            (Some(_), _) => "a notable regression",
            (None, _) => return,
        };
        let (of, to) = (self.label(&check.of), self.label(&check.to));
        out.push_str(&format!("\nInterpretation: {of} shows {words} against {to}.\n"));
    }

    /// Everything above at full precision.
    fn numbers(&self) -> Map<String, Value> {
        let by_seed = |values: &BySeed| -> Value {
            values.iter().map(|(seed, value)| json!({"seed": seed, "value": value})).collect()
        };
        let stages: Vec<Value> = self
            .spec
            .stages
            .iter()
            .map(|row| {
                let found = &self.measured[row.key.as_str()];
                let tasks: Vec<Value> = found
                    .tasks
                    .iter()
                    .map(|(task, values)| json!({"task": task, "mean": mean(values), "values": by_seed(values)}))
                    .collect();
                json!({
                    "key": row.key,
                    "macro": {
                        "mean": mean(&found.macro_accuracy),
                        "sd": sd(&found.macro_accuracy),
                        "n": found.macro_accuracy.len(),
                        "values": by_seed(&found.macro_accuracy),
                    },
                    "chance": found.chance,
                    "tasks": tasks,
                })
            })
            .collect();
        let pairs = self.spec.compare.iter().map(|c| (&c.of, &c.to));
        let pairs = pairs.chain(self.spec.checks.iter().map(|c| (&c.of, &c.to)));
        let compare: Vec<Value> = pairs
            .map(|(of, to)| {
                let found = self.compared(of, to);
                json!({"of": of, "to": to, "delta": found.delta, "retention": found.retention, "n": found.n})
            })
            .collect();
        Map::from_iter([("stages".to_owned(), json!(stages)), ("compare".to_owned(), json!(compare))])
    }
}
