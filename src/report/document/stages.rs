//! The stage summary: macro accuracy by stage, comparisons, the table of tasks. What is asked of the numbers is
//! answered in [`super::answers`], item by item in [`super::paired`].

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::spec::{Artifact, Comparison, Fact, Pivot, Shown, StageRow, StageSummary};
use super::words::{change, code, name, plain, points, prose, signed, times};
use super::{Ask, Meant, Results, artifacts, cells_of, text_of};
use crate::report::render::markdown_text;
use crate::report::stats;
use crate::report::table::Expected;

/// Values by seed.
pub(super) type BySeed = BTreeMap<Option<u32>, f64>;

/// What one stage of the summary found.
#[derive(Debug, Default)]
pub(super) struct Measured {
    cells: Vec<usize>,
    /// Cells whose tasks could be read, with their seeds.
    pub(super) read: Vec<(Option<u32>, usize)>,
    macro_accuracy: BySeed,
    /// In the order of the cell's own list.
    pub(super) tasks: Vec<(String, BySeed)>,
    /// Items of each task and seed, where the cell says it.
    pub(super) totals: BTreeMap<(String, Option<u32>), u64>,
    /// Chance of each task, where a cell says it.
    chances: BTreeMap<String, f64>,
    /// Mean chance of the tasks, where every task says it.
    pub(super) chance: Option<f64>,
}

impl Measured {
    pub(super) fn task(&self, name: &str) -> Option<&BySeed> {
        self.tasks.iter().find(|(task, _)| task == name).map(|(_, values)| values)
    }
}

pub(super) fn which<'a>(row: &'a StageRow) -> Meant<'a> {
    Meant { stage: &row.stage, arm: row.arm.as_deref(), labels: &row.labels }
}

pub(super) fn asks(spec: &StageSummary, expected: &[Expected]) -> Vec<Ask> {
    let mut asks = Vec::new();
    for row in &spec.stages {
        for cell in cells_of(which(row), expected) {
            let codes = [Some(&spec.tasks), spec.macro_accuracy.as_ref()];
            asks.extend(codes.into_iter().flatten().map(|code| Ask { cell, code: code.clone() }));
        }
    }
    if let (Some(row), Some(code)) = (spec.stages.first(), &spec.limit) {
        asks.extend(cells_of(which(row), expected).first().map(|cell| Ask { cell: *cell, code: code.clone() }));
    }
    for artifact in &spec.artifacts {
        if let Some(code) = &artifact.metric {
            asks.extend(artifact_cells(artifact, expected).into_iter().map(|cell| Ask { cell, code: code.clone() }));
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
    let which = Meant { stage: fact.stage.as_deref()?, arm: fact.arm.as_deref(), labels: &labels };
    let cells = cells_of(which, expected);
    cells.iter().find(|i| expected[**i].run.is_ok()).or(cells.first()).copied()
}

fn artifact_cells(artifact: &Artifact, expected: &[Expected]) -> Vec<usize> {
    let labels = BTreeMap::new();
    let Some(stage) = artifact.stage.as_deref() else { return Vec::new() };
    cells_of(Meant { stage, arm: artifact.arm.as_deref(), labels: &labels }, expected)
}

pub(super) fn build(spec: &StageSummary, results: &mut Results<'_>) -> (String, Value) {
    let measured: BTreeMap<&str, Measured> =
        spec.stages.iter().map(|row| (row.key.as_str(), measure(spec, row, results))).collect();
    same_tasks(spec, &measured, results);
    let page = Page { spec, measured };
    let mut out = String::new();
    if let Some(hypothesis) = &spec.hypothesis {
        out.push_str(&format!("\n## Hypothesis\n{}\n", prose(hypothesis)));
    }
    page.scope(results, &mut out);
    page.definitions(&mut out);
    page.macro_table(&mut out);
    page.derived(&mut out);
    page.task_table(&mut out);
    page.chance_table(&mut out);
    page.answers(&mut out);
    for check in &spec.checks {
        page.check(check, &mut out);
    }
    if let Some(pivot) = &spec.pivot {
        page.pivot(pivot, results, &mut out);
    }
    let intervals = page.intervals(&mut out);
    let paired = page.paired(results, &mut out);
    let listed: String = spec.artifacts.iter().flat_map(|artifact| lines_of(artifact, results)).collect();
    let cells = page.measured.values().flat_map(|m| &m.cells);
    let (text, sources) = artifacts(&listed, results.expected, cells);
    out.push_str(&text);
    let mut numbers = page.numbers();
    numbers.insert("intervals".to_owned(), intervals);
    numbers.insert("paired".to_owned(), paired);
    numbers.insert("runs".to_owned(), sources);
    (out, Value::Object(numbers))
}

/// The lines of an artifact: one, or one for each cell.
fn lines_of(artifact: &Artifact, results: &mut Results<'_>) -> Vec<String> {
    let line = |text: &str| format!("- {}: {}\n", markdown_text(&artifact.label), code(text));
    if let Some(value) = &artifact.value {
        return vec![line(value)];
    }
    let place = format!("artifact `{}`", artifact.label);
    let mut lines = Vec::new();
    for cell in artifact_cells(artifact, results.expected) {
        let recorded = match &artifact.metric {
            Some(code) => match results.output(&place, cell, code) {
                None => continue,
                Some(Value::Null) => None,
                Some(value) => Some(text_of(&value)),
            },
            None => None,
        };
        let name = recorded.unwrap_or_else(|| results.expected[cell].key.to_string());
        let file = artifact.file.as_deref().map(|file| format!("/{file}")).unwrap_or_default();
        lines.push(line(&format!("{name}{file}")));
    }
    lines
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
    let compared = compared.chain(spec.paired.iter().map(|p| (&p.of, &p.to)));
    let compared = compared.chain(spec.checks.iter().filter_map(|c| c.improved.as_ref()).map(|p| (&p.of, &p.to)));
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
        // A macro accuracy may be all that is known.
        let Some(tasks) = tasks_of(&list).filter(|tasks| !tasks.is_empty() || spec.macro_accuracy.is_some()) else {
            results.problem(&format!(
                "{place}: {name}: `{}` gives no array of {{task, accuracy}} with finite numbers",
                spec.tasks
            ));
            continue;
        };
        found.read.push((seed, cell));
        let mut accuracies = Vec::new();
        for Task { task, accuracy, total, chance } in tasks {
            accuracies.push(accuracy);
            chances.push(chance);
            if let Some(total) = total {
                found.totals.insert((task.clone(), seed), total);
            }
            if let Some(chance) = chance {
                found.chances.insert(task.clone(), chance);
            }
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

/// What a cell says of one task.
struct Task {
    task: String,
    accuracy: f64,
    total: Option<u64>,
    chance: Option<f64>,
}

/// Every element; `None` if one is no task.
fn tasks_of(list: &Value) -> Option<Vec<Task>> {
    let task = |item: &Value| {
        Some(Task {
            task: item.get("task")?.as_str()?.to_owned(),
            accuracy: item.get("accuracy")?.as_f64()?,
            total: item["total"].as_f64().filter(|n| n.fract() == 0.0 && *n > 0.0).map(|n| n as u64),
            chance: item["chance"].as_f64(),
        })
    };
    list.as_array()?.iter().map(task).collect()
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
pub(super) struct Compared {
    /// Mean of the differences on common seeds.
    pub(super) delta: Option<f64>,
    /// Mean of one / mean of the other, on common seeds.
    pub(super) retention: Option<f64>,
    pub(super) n: usize,
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

/// The document while it is written.
pub(super) struct Page<'a> {
    pub(super) spec: &'a StageSummary,
    pub(super) measured: BTreeMap<&'a str, Measured>,
}

impl Page<'_> {
    fn listed(&self) -> impl Iterator<Item = &StageRow> {
        self.spec.stages.iter().filter(|row| row.listed)
    }

    pub(super) fn row(&self, key: &str) -> Option<&StageRow> {
        self.spec.stages.iter().find(|row| row.key == key)
    }

    pub(super) fn label(&self, key: &str) -> String {
        self.row(key).map(|row| markdown_text(row.text())).unwrap_or_default()
    }

    pub(super) fn macro_of(&self, key: &str) -> Option<f64> {
        self.measured.get(key).and_then(|m| mean(&m.macro_accuracy))
    }

    pub(super) fn compared(&self, of: &str, to: &str) -> Compared {
        match (self.measured.get(of), self.measured.get(to)) {
            (Some(of), Some(to)) => compare(&of.macro_accuracy, &to.macro_accuracy),
            _ => Compared { delta: None, retention: None, n: 0 },
        }
    }

    /// Tasks in the order of the first stage that has them.
    pub(super) fn tasks(&self) -> Vec<String> {
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
    pub(super) fn has_seeds(&self) -> bool {
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
            lines.push(format!("- {}: {}\n", markdown_text(&fact.label), code(&text)));
        }
        let tasks = self.tasks();
        if !tasks.is_empty() {
            lines.push(format!("- Eval tasks: {}\n", code(&tasks.join(", "))));
        }
        lines.extend(self.limit(results));
        let seeds: BTreeSet<u32> =
            self.measured.values().flat_map(|m| m.macro_accuracy.keys().copied().flatten()).collect();
        if !seeds.is_empty() {
            let seeds: Vec<String> = seeds.iter().map(u32::to_string).collect();
            lines.push(format!("- Seeds: {}\n", code(&seeds.join(", "))));
        }
        out.push_str(&format!("\n## Scope\n{}", lines.concat()));
    }

    /// How many items of a task were asked for, and of which tasks there were fewer.
    fn limit(&self, results: &mut Results<'_>) -> Option<String> {
        let (row, filter) = (self.spec.stages.first()?, self.spec.limit.as_ref()?);
        let cell = *cells_of(which(row), results.expected).first()?;
        let Some(limit) = results.number("limit", cell, filter) else {
            return Some("- Limit: none\n".to_owned());
        };
        let found = &self.measured[row.key.as_str()];
        let fewer = found.tasks.iter().filter_map(|(task, _)| {
            let total = found.totals.iter().filter(|((of, _), _)| of == task).map(|(_, total)| *total).min()?;
            ((total as f64) < limit).then(|| format!("{} has {total} valid examples", name(task)))
        });
        let fewer: Vec<String> = fewer.collect();
        let fewer = if fewer.is_empty() { String::new() } else { format!(" ({})", fewer.join(", ")) };
        Some(format!("- Limit: {} per task{fewer}\n", code(&plain(Some(limit), 0))))
    }

    fn definitions(&self, out: &mut String) {
        let text_of = |fact: &'_ Fact| (fact.label.clone(), fact.value.clone().unwrap_or_default());
        let mut defined: Vec<(String, String)> = self.spec.definitions.iter().map(text_of).collect();
        if defined.is_empty() {
            defined = self.spec.stages.iter().map(|row| (row.text().to_owned(), row.definition.clone())).collect();
        }
        defined.retain(|(_, text)| !text.is_empty());
        if defined.is_empty() {
            return;
        }
        out.push_str("\n## Stage Definitions\n");
        for (label, text) in defined {
            out.push_str(&format!("- {}: {}\n", markdown_text(&label), prose(&text)));
        }
    }

    fn macro_table(&self, out: &mut String) {
        let seeds = self.has_seeds();
        out.push_str("\n## Macro Accuracy by Stage\n| Stage | Condition | Macro Accuracy |");
        out.push_str(if seeds { " sd | n |\n|---|---|---:|---:|---:|\n" } else { "\n|---|---|---:|\n" });
        for row in self.listed() {
            let values = &self.measured[row.key.as_str()].macro_accuracy;
            out.push_str(&format!(
                "| {} | {} | {} |",
                markdown_text(row.row()),
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

    /// `, n = 3` where there are seeds to count.
    pub(super) fn counted(&self, n: usize) -> String {
        if self.has_seeds() { format!(", n = {n}") } else { String::new() }
    }

    fn derived(&self, out: &mut String) {
        if self.spec.compare.is_empty() {
            return;
        }
        out.push_str("\nDerived:\n");
        for comparison in &self.spec.compare {
            let Comparison { of, to, show, retention_digits, .. } = comparison;
            let found = self.compared(of, to);
            let (of, to) = (self.label(of), self.label(to));
            let retention = times(found.retention, *retention_digits);
            let points = format!("`{}` macro points", points(found.delta, 2));
            let has = |shown: Shown| show.contains(&shown);
            let (what, number) = if has(Shown::Delta) {
                (found.delta.map_or("change", change), signed(found.delta, self.spec.macro_digits))
            } else if has(Shown::Points) {
                (found.delta.map_or("change", change), points.clone())
            } else {
                ("retention", retention.clone())
            };
            let number = if number.starts_with('`') { number } else { format!("`{number}`") };
            let mut behind = Vec::new();
            if has(Shown::Points) && has(Shown::Delta) {
                behind.push(format!("about {points}"));
            }
            if has(Shown::Retention) && (has(Shown::Delta) || has(Shown::Points)) {
                behind.push(format!("retention `{retention}`"));
            }
            if self.has_seeds() {
                behind.push(format!("n = {}", found.n));
            }
            let behind = if behind.is_empty() { String::new() } else { format!(" ({})", behind.join(", ")) };
            out.push_str(&format!("- {of} {what} vs {to}: {number}{behind}\n"));
        }
    }

    fn task_table(&self, out: &mut String) {
        let rows: Vec<&StageRow> = self.listed().collect();
        let deltas: Vec<&Comparison> = self.spec.compare.iter().filter(|c| c.per_task).collect();
        let short = |key: &str| self.row(key).map(|row| markdown_text(row.short())).unwrap_or_default();
        let heads: Vec<String> = rows.iter().map(|row| markdown_text(row.text())).collect();
        out.push_str(&format!("\n## Per-Task: {}\n| Task |", heads.join(" vs ")));
        heads.iter().for_each(|head| out.push_str(&format!(" {head} |")));
        deltas.iter().for_each(|c| out.push_str(&format!(" Delta {}-{} |", short(&c.of), short(&c.to))));
        out.push_str(&format!("\n|---|{}\n", "---:|".repeat(heads.len() + deltas.len())));
        for task in self.tasks() {
            let digits = self.spec.task_digits;
            out.push_str(&format!("| {} |", name(&task)));
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

    /// Accuracy above what guessing reaches.
    fn chance_table(&self, out: &mut String) {
        if !self.spec.chance {
            return;
        }
        let rows: Vec<&StageRow> = self.listed().collect();
        out.push_str("\n## Delta to Chance\n| Task | Chance |");
        rows.iter().for_each(|row| out.push_str(&format!(" {} |", markdown_text(row.text()))));
        out.push_str(&format!("\n|---|---:|{}\n", "---:|".repeat(rows.len())));
        let digits = self.spec.task_digits;
        let chance = |task: &str| self.measured.values().find_map(|found| found.chances.get(task)).copied();
        for task in self.tasks() {
            let chance = chance(&task);
            out.push_str(&format!("| {} | {} |", name(&task), plain(chance, digits)));
            for row in &rows {
                let found = self.measured[row.key.as_str()].task(&task).and_then(mean);
                let delta = found.zip(chance).map(|(found, chance)| found - chance);
                out.push_str(&format!(" {} |", signed(delta, digits)));
            }
            out.push('\n');
        }
        let chance = self.measured.values().find_map(|found| found.chance);
        out.push_str(&format!("| macro | {} |", plain(chance, digits)));
        for row in &rows {
            let delta = self.macro_of(&row.key).zip(chance).map(|(found, chance)| found - chance);
            out.push_str(&format!(" {} |", signed(delta, digits)));
        }
        out.push('\n');
    }

    /// Macro accuracies by two labels: rows and columns in the order of the stages.
    fn pivot(&self, pivot: &Pivot, results: &mut Results<'_>, out: &mut String) {
        let mut places: Vec<(String, String, &str)> = Vec::new();
        for row in &self.spec.stages {
            let Some(cell) = self.measured[row.key.as_str()].cells.first() else { continue };
            let labels = &results.expected[*cell].labels;
            let (Some(at), Some(across)) = (labels.get(&pivot.rows), labels.get(&pivot.columns)) else { continue };
            places.push((at.clone(), across.clone(), row.key.as_str()));
        }
        if places.is_empty() {
            let (rows, columns) = (&pivot.rows, &pivot.columns);
            results.problem(&format!(
                "pivot: no arm of its stages has both labels `{rows}` and `{columns}`: give `labels` to the arms"
            ));
            return;
        }
        let distinct = |pick: &dyn Fn(&(String, String, &str)) -> String| {
            let mut names: Vec<String> = Vec::new();
            for name in places.iter().map(pick) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            names
        };
        let (rows, columns) = (distinct(&|p| p.0.clone()), distinct(&|p| p.1.clone()));
        let title = |label: &str| {
            let mut letters = label.chars();
            letters.next().map(|first| first.to_uppercase().collect::<String>() + letters.as_str()).unwrap_or_default()
        };
        let (by, across) = (markdown_text(&title(&pivot.rows)), markdown_text(&title(&pivot.columns)));
        out.push_str(&format!("\n## Macro Accuracy by {by} and {across}\n| {by} |"));
        columns.iter().for_each(|column| out.push_str(&format!(" {} |", markdown_text(column))));
        out.push_str(&format!("\n|---|{}\n", "---:|".repeat(columns.len())));
        for row in &rows {
            out.push_str(&format!("| {} |", markdown_text(row)));
            for column in &columns {
                // Stages that share a place were evaluated alike: the first one stands there.
                let found = places.iter().find(|(r, c, _)| r == row && c == column);
                let value = found.and_then(|(_, _, key)| self.macro_of(key));
                out.push_str(&format!(" {} |", plain(value, self.spec.macro_digits)));
            }
            out.push('\n');
        }
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
        Map::from_iter([
            ("hypothesis".to_owned(), json!(self.spec.hypothesis)),
            ("stages".to_owned(), json!(stages)),
            ("compare".to_owned(), json!(compare)),
            ("criteria".to_owned(), self.criteria()),
        ])
    }
}
