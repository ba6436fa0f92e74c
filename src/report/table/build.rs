//! From a specification and expected cells to a grid.
//!
//! Missing is a join of the plan and the results, never of the files that happen to exist: runs that died
//! are not missing at random.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::grid::{
    Alignment, Column, Grid, GridCell, IntervalKind, Layout, MissingRun, Note, Printed, Row, RunRef, SeedValue,
};
use super::number;
use super::spec::{Better, ColumnSpec, DeltaKind, DeltaSpec, Notation, Partial, RowSpec, Show, TableSpec};
use crate::record::{CellKey, Digest, Fingerprint};
use crate::report::query::Outputs;
use crate::report::stats;

/// A cell that the plan expects, with its result or why there is none.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Which cell.
    pub key: CellKey,
    /// Labels of its arm.
    pub labels: BTreeMap<String, String>,
    /// Its result, or why it is missing ("not sealed", "stale: params.lr changed").
    pub run: Result<Run, String>,
}

/// The result of a cell.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its value tree.
    pub tree: Value,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// Its content digest.
    pub content: Digest,
}

/// A metric to be evaluated: column `column` of row `row` on the run of `cell`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Index of the row.
    pub row: usize,
    /// Index of the column.
    pub column: usize,
    /// Index of the expected cell.
    pub cell: usize,
    /// The jq filter.
    pub metric: String,
    /// The value of `$row`.
    pub row_value: Value,
}

/// Why there is no table: one problem, with its place and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TableProblem(pub String);

/// The metrics that [`build`] needs answered, in the order in which it takes the answers.
pub fn requests(spec: &TableSpec, expected: &[Expected]) -> Vec<Request> {
    let mut list = Vec::new();
    for (row, row_spec) in spec.rows.iter().enumerate() {
        for (column, column_spec) in spec.columns.iter().enumerate() {
            let Some(metric) = &column_spec.metric else { continue };
            for cell in selected(row_spec, column_spec, expected) {
                if expected[cell].run.is_ok() {
                    let row_value = json!(row_spec.with);
                    list.push(Request { row, column, cell, metric: metric.clone(), row_value });
                }
            }
        }
    }
    list
}

/// Builds the grid. `answers` are the outputs of [`requests`], in order.
///
/// # Errors
/// Every problem at once: a metric that gives no number, two runs for one cell, cells that nothing
/// matches, and, unless the table marks or drops them, missing runs.
pub fn build(spec: &TableSpec, expected: &[Expected], answers: &[Outputs]) -> Result<Grid, Vec<TableProblem>> {
    let requests = requests(spec, expected);
    if requests.len() != answers.len() {
        let text = format!("table `{}`: {} of {} metrics were evaluated", spec.key, answers.len(), requests.len());
        return Err(vec![TableProblem(text)]);
    }
    let mut answered = BTreeMap::new();
    for (request, answer) in requests.iter().zip(answers) {
        answered.insert((request.row, request.column, request.cell), answer);
    }
    let mut builder = Builder { spec, expected, answered, problems: Vec::new(), notes: Vec::new() };
    let samples: Vec<Vec<Sample>> = (0..spec.rows.len())
        .map(|row| (0..spec.columns.len()).map(|column| builder.sample(row, column)).collect())
        .collect();
    let mut rows: Vec<Row> = Vec::new();
    for (row, row_spec) in spec.rows.iter().enumerate() {
        let cells = spec
            .columns
            .iter()
            .enumerate()
            .map(|(column, column_spec)| builder.cell(row, column_spec, column, &samples[row]))
            .collect();
        let (key, label) = (row_spec.key.clone(), row_spec.text().to_owned());
        rows.push(Row { key, label, group: None, note: None, cells });
    }
    if !builder.problems.is_empty() {
        return Err(builder.problems);
    }
    if spec.best {
        mark_best(spec, &mut rows);
    }
    let mut notes: Vec<Note> = spec.notes.iter().map(|text| Note { mark: None, text: text.clone() }).collect();
    notes.extend(how_it_was_made(spec, &rows));
    let first_mark = notes.len();
    for (i, text) in builder.notes.into_iter().enumerate() {
        notes.push(Note { mark: Some(mark(i)), text });
    }
    for cell in rows.iter_mut().flat_map(|r| &mut r.cells) {
        cell.notes.iter_mut().for_each(|n| *n += first_mark);
    }
    let columns = spec.columns.iter().enumerate().map(|(i, c)| column(c, rows.iter().map(|r| &r.cells[i]))).collect();
    Ok(Grid {
        key: spec.key.clone(),
        label: spec.label.clone(),
        caption: spec.caption.clone(),
        stub: spec.stub.clone(),
        columns,
        complete: rows.iter().flat_map(|r| &r.cells).all(|c| c.missing.is_empty()),
        signature: signature(spec, expected),
        rows,
        notes,
        level: spec.level,
        partial: spec.partial,
        layout: Layout::default(),
    })
}

/// Indices of the expected cells that a row and a column with a metric speak of.
fn selected(row: &RowSpec, column: &ColumnSpec, expected: &[Expected]) -> Vec<usize> {
    let fits = |cell: &Expected| {
        Some(cell.key.stage.as_str()) == column.stage.as_deref()
            // A stage without arms, such as the baseline's, is the same for every arm.
            && (cell.key.arm.is_none()
                || (row.arm.as_deref().is_none_or(|arm| cell.key.arm.as_ref().is_some_and(|a| a.as_str() == arm))
                    && row.labels.iter().all(|(k, v)| cell.labels.get(k) == Some(v))))
    };
    (0..expected.len()).filter(|i| fits(&expected[*i])).collect()
}

/// The runs of one cell before they are summarised.
#[derive(Debug, Clone, Default)]
struct Sample {
    values: BTreeMap<Option<u32>, f64>,
    missing: Vec<MissingRun>,
    runs: BTreeSet<RunRef>,
    expected: BTreeSet<Option<u32>>,
    /// The row that a difference is taken from.
    reference: bool,
}

struct Builder<'a> {
    spec: &'a TableSpec,
    expected: &'a [Expected],
    answered: BTreeMap<(usize, usize, usize), &'a Outputs>,
    problems: Vec<TableProblem>,
    notes: Vec<String>,
}

impl Builder<'_> {
    fn problem(&mut self, row: usize, column: usize, what: &str) {
        let (row, column) = (&self.spec.rows[row].key, &self.spec.columns[column].key);
        let text = format!("table `{}`, row `{row}`, column `{column}`: {what}", self.spec.key);
        if !self.problems.iter().any(|p| p.0 == text) {
            self.problems.push(TableProblem(text));
        }
    }

    fn sample(&mut self, row: usize, column: usize) -> Sample {
        let spec = &self.spec.columns[column];
        match &spec.delta {
            Some(delta) => self.delta(row, column, delta),
            None => self.metric(row, column, spec.scale),
        }
    }

    fn metric(&mut self, row: usize, column: usize, scale: f64) -> Sample {
        let mut sample = Sample::default();
        let mut first: BTreeMap<Option<u32>, String> = BTreeMap::new();
        let cells = selected(&self.spec.rows[row], &self.spec.columns[column], self.expected);
        if cells.is_empty() {
            let stage = self.spec.columns[column].stage.clone().unwrap_or_default();
            self.problem(
                row,
                column,
                &format!("no expected cell of stage `{stage}` matches: check `stage`, `arm`, `labels` and `needs`"),
            );
        }
        for index in cells {
            let cell = &self.expected[index];
            let name = cell.key.local_name();
            if let Some(other) = first.insert(cell.key.seed, name.clone()) {
                let text = format!("{other} and {name} are two runs for one place: narrow it with `arm` or `labels`");
                self.problem(row, column, &text);
                continue;
            }
            sample.expected.insert(cell.key.seed);
            let run = match &cell.run {
                Ok(run) => run,
                Err(reason) => {
                    sample.missing.push(MissingRun { cell: name, reason: reason.clone() });
                    continue;
                }
            };
            match self.answered.get(&(row, column, index)).map(|answer| one_number(answer)) {
                Some(Ok(Some(x))) if (x * scale).is_finite() => {
                    sample.values.insert(cell.key.seed, x * scale);
                    let (fingerprint, content) = (run.fingerprint.clone(), run.content.clone());
                    sample.runs.insert(RunRef { key: cell.key.clone(), fingerprint, content });
                }
                Some(Ok(Some(_))) => {
                    sample.missing.push(MissingRun { cell: name, reason: "its value is not finite".to_owned() });
                }
                Some(Ok(None)) => {
                    sample.missing.push(MissingRun { cell: name, reason: "its value is null".to_owned() });
                }
                Some(Err(what)) => self.problem(row, column, &format!("{name}: {what}")),
                None => self.problem(row, column, &format!("{name} was not evaluated")),
            }
        }
        sample
    }

    /// Differences on the seeds that both rows have.
    fn delta(&mut self, row: usize, column: usize, delta: &DeltaSpec) -> Sample {
        let position = |found: Option<usize>| found.unwrap_or(usize::MAX);
        let of = position(self.spec.columns.iter().position(|c| c.key == delta.of));
        let from = position(self.spec.rows.iter().position(|r| r.key == delta.from));
        if of == usize::MAX || from == usize::MAX || self.spec.columns[of].delta.is_some() {
            self.problem(row, column, "the difference names a row or column that is not there");
            return Sample::default();
        }
        let scale = self.spec.columns[of].scale;
        if row == from {
            return Sample { reference: true, ..Sample::default() };
        }
        let (here, there) = (self.metric(row, of, scale), self.metric(from, of, scale));
        let mut sample = Sample {
            missing: here.missing.clone(),
            runs: here.runs.union(&there.runs).cloned().collect(),
            expected: here.expected.union(&there.expected).copied().collect(),
            ..Sample::default()
        };
        for lost in there.missing {
            if !sample.missing.contains(&lost) {
                sample.missing.push(lost);
            }
        }
        for seed in here.expected.symmetric_difference(&there.expected) {
            let cell = seed.map_or_else(|| "the cell without a seed".to_owned(), |s| format!("seed-{s}"));
            sample.missing.push(MissingRun { cell, reason: "only one of the two rows expects it".to_owned() });
        }
        for (seed, x) in &here.values {
            let Some(base) = there.values.get(seed) else { continue };
            let value = match delta.kind {
                DeltaKind::Difference => x - base,
                DeltaKind::Percent if *base == 0.0 => {
                    let cell = seed.map_or_else(|| "the cell without a seed".to_owned(), |s| format!("seed-{s}"));
                    sample.missing.push(MissingRun { cell, reason: "percent of zero".to_owned() });
                    continue;
                }
                DeltaKind::Percent => 100.0 * (x - base) / base,
            };
            sample.values.insert(*seed, value * self.spec.columns[column].scale);
        }
        sample
    }

    fn cell(&mut self, row: usize, spec: &ColumnSpec, column: usize, samples: &[Sample]) -> GridCell {
        let sample = &samples[column];
        let values: Vec<f64> = sample.values.values().copied().collect();
        let (mean, sd) = (stats::mean(&values).ok(), stats::sample_sd(&values));
        let interval = stats::t_interval(&values, self.spec.level).ok();
        let mut cell = GridCell {
            printed: Printed::Missing,
            median: stats::median(&values).ok(),
            iqm: stats::iqm(&values).ok(),
            value: mean,
            interval_kind: interval.map(|_| IntervalKind::T),
            mean,
            sd: sd.ok(),
            interval,
            degenerate: sd.err().map(|e| e.to_string()),
            n: values.len(),
            n_expected: sample.expected.len(),
            values: sample.values.iter().map(|(seed, value)| SeedValue { seed: *seed, value: *value }).collect(),
            missing: sample.missing.clone(),
            runs: sample.runs.iter().cloned().collect(),
            best: false,
            second: false,
            test: None,
            notes: Vec::new(),
        };
        if sample.reference {
            cell.printed = Printed::Reference;
            cell.degenerate = None;
            return cell;
        }
        if !cell.missing.is_empty() {
            let lost: Vec<String> = cell.missing.iter().map(|m| format!("{} ({})", m.cell, m.reason)).collect();
            let text = format!("{} of {} runs; missing: {}", cell.n, cell.n_expected, lost.join(", "));
            match self.spec.partial {
                Partial::Error => self.problem(
                    row,
                    column,
                    &format!("{text}: run `run_all` to finish, or set `partial = \"mark\"` in the table"),
                ),
                Partial::Mark | Partial::Drop => cell.notes.push(self.note(text)),
            }
            if self.spec.partial == Partial::Drop && spec.show != Show::N {
                return cell;
            }
        } else if cell.n == 1 && cell.n_expected == 1 && sample.values.keys().all(Option::is_some) {
            // One seed was planned: the mean stands alone, and says so.
            if matches!(spec.show, Show::MeanSd | Show::MeanCi) {
                cell.notes.push(self.note("one run: no standard deviation and no interval".to_owned()));
            }
        }
        cell.printed = printed(spec, &cell);
        cell
    }

    /// Index of a note, each text once.
    fn note(&mut self, text: String) -> usize {
        self.notes.iter().position(|n| *n == text).unwrap_or_else(|| {
            self.notes.push(text);
            self.notes.len() - 1
        })
    }
}

/// The one number of an answer; `None` for null.
fn one_number(answer: &Outputs) -> Result<Option<f64>, String> {
    match answer.as_ref().map_err(Clone::clone)?.as_slice() {
        [Value::Null] => Ok(None),
        [Value::Number(n)] => Ok(n.as_f64()),
        // What JSON lacks comes as one of these texts.
        [Value::String(s)] if matches!(s.as_str(), "NaN" | "Infinity" | "-Infinity") => Ok(Some(f64::NAN)),
        [other] => {
            let text: String = other.to_string().chars().take(60).collect();
            Err(format!("the metric gives {}, which is no number", text.escape_debug()))
        }
        outputs => Err(format!("the metric gives {} values: it must give one number", outputs.len())),
    }
}

fn printed(spec: &ColumnSpec, cell: &GridCell) -> Printed {
    if spec.show == Show::N {
        return Printed::Text(format!("{} of {}", cell.n, cell.n_expected));
    }
    let Some(mean) = cell.mean else { return Printed::Missing };
    if spec.notation == Notation::Suffix {
        return Printed::Text(number::with_suffix(mean, spec.digits));
    }
    let text = number::fixed(mean, spec.digits);
    let plain = |s: &str| !s.contains('e');
    match (spec.show, cell.sd, cell.interval) {
        (Show::MeanSd, Some(sd), _) => {
            let spread = number::fixed(sd, spec.digits);
            if plain(&text) && plain(&spread) {
                Printed::Number { text, spread: Some(spread) }
            } else {
                Printed::Text(format!("{text} ± {spread}"))
            }
        }
        (Show::MeanCi, _, Some(interval)) => {
            let (lower, upper) =
                (number::fixed(interval.lower, spec.digits), number::fixed(interval.upper, spec.digits));
            Printed::Interval { text, lower, upper }
        }
        _ if plain(&text) => Printed::Number { text, spread: None },
        _ => Printed::Text(text),
    }
}

/// Marks the best of each column that says which end is better. Ranked on raw values, ties judged on what
/// is printed; a column whose cells all print alike has no best.
fn mark_best(spec: &TableSpec, rows: &mut [Row]) {
    for (i, column) in spec.columns.iter().enumerate() {
        let Some(better) = column.better else { continue };
        let sign = if better == Better::Higher { 1.0 } else { -1.0 };
        let of = |row: &Row| row.cells[i].mean.filter(|_| !matches!(row.cells[i].printed, Printed::Missing));
        let Some(best) = rows.iter().filter_map(|r| of(r)).max_by(|a, b| (sign * a).total_cmp(&(sign * b))) else {
            continue;
        };
        let shown = |x: f64| match column.notation {
            Notation::Plain => number::fixed(x, column.digits),
            Notation::Suffix => number::with_suffix(x, column.digits),
        };
        let best = shown(best);
        let (ties, all) = rows
            .iter()
            .filter_map(|r| of(r))
            .fold((0, 0), |(ties, all), x| (ties + usize::from(shown(x) == best), all + 1));
        if ties == all {
            continue;
        }
        for row in rows.iter_mut() {
            let is_best = of(row).is_some_and(|x| shown(x) == best);
            row.cells[i].best = is_best;
        }
    }
}

fn column<'a>(spec: &ColumnSpec, cells: impl Iterator<Item = &'a GridCell>) -> Column {
    let (mut negative, mut whole, mut fraction, mut spread) = (false, 0, 0, (0, 0));
    let mut decimal = true;
    let places = |text: &str| {
        let digits = text.trim_start_matches('-');
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        (whole.len(), fraction.len())
    };
    for cell in cells {
        match &cell.printed {
            Printed::Number { text, spread: own } => {
                negative |= text.starts_with('-');
                let (w, f) = places(text);
                (whole, fraction) = (whole.max(w), fraction.max(f));
                if let Some(own) = own {
                    let (w, f) = places(own);
                    spread = (spread.0.max(w), spread.1.max(f));
                }
            }
            Printed::Interval { text, .. } if !text.contains('e') => {
                negative |= text.starts_with('-');
                let (w, f) = places(text);
                (whole, fraction) = (whole.max(w), fraction.max(f));
            }
            Printed::Interval { .. } | Printed::Text(_) | Printed::Values(_) => decimal = false,
            Printed::Reference | Printed::Missing => {}
        }
    }
    let alignment =
        if decimal && whole > 0 { Alignment::Decimal { negative, whole, fraction, spread } } else { Alignment::Right };
    let (key, label) = (spec.key.clone(), spec.text().to_owned());
    Column { key, label, span: None, show: spec.show, better: spec.better, alignment }
}

/// What the spread is, once, for readers of the table.
fn how_it_was_made(spec: &TableSpec, rows: &[Row]) -> Option<Note> {
    let spread = |show: Show| {
        spec.columns
            .iter()
            .enumerate()
            .filter(move |(_, c)| c.show == show)
            .flat_map(|(i, _)| rows.iter().map(move |r| &r.cells[i]).filter(|c| c.n > 1))
    };
    let counts: BTreeSet<usize> = spread(Show::MeanSd).chain(spread(Show::MeanCi)).map(|c| c.n).collect();
    let n = match (counts.first(), counts.last()) {
        (Some(least), Some(most)) if least == most => format!("n = {most} seeds"),
        (Some(least), Some(most)) => format!("n = {least} to {most} seeds"),
        _ => return None,
    };
    let percent = number::with_suffix(spec.level * 100.0, 2);
    let percent = percent.trim_end_matches('0').trim_end_matches('.');
    let text = match (spread(Show::MeanSd).next().is_some(), spread(Show::MeanCi).next().is_some()) {
        (true, false) => format!("Mean ± sample standard deviation over {n}."),
        (false, _) => format!("Mean and {percent} % t interval over {n}."),
        (true, true) => {
            format!("Mean ± sample standard deviation, and {percent} % t intervals in brackets, over {n}.")
        }
    };
    Some(Note { mark: None, text })
}

/// One line that says how the numbers were made, after sacrebleu's.
fn signature(spec: &TableSpec, expected: &[Expected]) -> String {
    let seeds: BTreeSet<u32> = expected.iter().filter_map(|c| c.key.seed).collect();
    let seeds: Vec<String> = seeds.iter().map(u32::to_string).collect();
    let partial = match spec.partial {
        Partial::Error => "error",
        Partial::Mark => "mark",
        Partial::Drop => "drop",
    };
    format!(
        "table:{}|seeds:{}|sd:n-1|interval:t-{}|partial:{partial}|seedbed:{}",
        spec.key,
        if seeds.is_empty() { "none".to_owned() } else { seeds.join(",") },
        spec.level,
        env!("CARGO_PKG_VERSION")
    )
}

/// a, b, ..., z, aa, ab, ...
fn mark(mut i: usize) -> String {
    let mut text = String::new();
    loop {
        text.insert(0, char::from(b'a' + (i % 26) as u8));
        if i < 26 {
            return text;
        }
        i = i / 26 - 1;
    }
}
