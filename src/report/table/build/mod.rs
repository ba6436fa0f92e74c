//! From a specification and expected cells to grids.
//!
//! Missing is a join of the plan and the results ([`join`]), never of the files that happen to exist: runs that
//! died are not missing at random. [`sample`] has the values behind each cell, [`cell`] what is printed of them,
//! [`marks`] what compares cells, [`items`] the outcomes behind them, [`notes`] what stands below, [`appendix`] the value of each seed.

mod appendix;
mod cell;
mod items;
mod join;
mod marks;
mod notes;
mod sample;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::NaiveDate;
use serde_json::{Value, json};

use super::grid::{Column, Grid, Layout, Note, Row, RunRef};
use super::spec::TableSpec;
use crate::record::{CellKey, Digest, Fingerprint};
use crate::report::query::{Outputs, Tree};
use crate::report::stats::{self, Answer, Bootstrap, Resampling};
use join::Join;
use notes::Notes;
use sample::Sample;

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
    pub tree: Arc<dyn Tree>,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// Its content digest.
    pub content: Digest,
    /// The UTC day on which it was sealed. Tables do not read it; a document does that is dated by its results.
    pub day: Option<NaiveDate>,
}

/// What of a run a filter is to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Its value tree.
    Metrics,
    /// All that it found, as [`crate::report::query::source::evidence`] has it.
    Whole,
}

/// A filter to be evaluated: for column `column` of row `row` on the run of `cell`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// On what.
    pub reads: Reads,
    /// Index of the row.
    pub row: usize,
    /// Index of the column.
    pub column: usize,
    /// Index of the expected cell.
    pub cell: usize,
    /// The jq filter.
    pub metric: Arc<str>,
    /// The value of `$row`.
    pub row_value: Arc<Value>,
}

/// Why there is no table: one problem, with its place and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TableProblem(pub String);

/// What makes the bootstrap of every sample.
pub type Resample<'a> = &'a dyn Fn(&[Resampling<'_>]) -> Vec<Answer<Bootstrap>>;

/// Most problems of one table that are told one by one: a screen or two, all of one kind.
const MOST_PROBLEMS: usize = 200;

/// The metrics that [`build`] needs answered, in the order in which it takes the answers.
pub fn requests(spec: &TableSpec, expected: &[Expected]) -> Vec<Request> {
    let join = Join::new(spec, expected);
    let metrics: Vec<Option<Arc<str>>> = spec.columns.iter().map(|c| c.metric.as_deref().map(Arc::from)).collect();
    let mut list = Vec::new();
    for (row, row_spec) in spec.rows.iter().enumerate() {
        let row_value = Arc::new(json!(row_spec.with));
        for (column, metric) in metrics.iter().enumerate() {
            let Some(metric) = metric else { continue };
            for cell in join.cells(row, column).into_iter().filter(|i| expected[*i].run.is_ok()) {
                let (metric, row_value) = (metric.clone(), row_value.clone());
                list.push(Request { reads: Reads::Metrics, row, column, cell, metric, row_value });
            }
        }
    }
    let filter = spec.test.as_ref().and_then(|test| test.items.as_deref()).map(Arc::<str>::from);
    let columns = items::columns_of(spec);
    for (row, column) in (0..spec.rows.len()).flat_map(|row| columns.iter().map(move |column| (row, *column))) {
        let row_value = Arc::new(json!(spec.rows[row].with));
        for cell in join.cells(row, column).into_iter().filter(|i| expected[*i].run.is_ok()) {
            // A test that reads items has a filter for them: the specification was checked.
            let metric = filter.clone().unwrap_or_else(|| Arc::from("null"));
            list.push(Request { reads: Reads::Whole, row, column, cell, metric, row_value: row_value.clone() });
        }
    }
    list
}

/// Builds the grid of the table itself. `answers` are the outputs of [`requests`], in order.
///
/// # Errors
/// As [`grids`].
pub fn build(spec: &TableSpec, expected: &[Expected], answers: &[Outputs]) -> Result<Grid, Vec<TableProblem>> {
    let mut grids = grids(spec, expected, answers)?;
    Ok(grids.swap_remove(0))
}

/// Builds the grid of the table and, if it has an appendix, that of the values of each seed behind it.
///
/// # Errors
/// Every problem at once: a metric that gives no number or matches no run, two runs for one cell, cells that
/// nothing matches, two profiles, a test or an interval that so few runs cannot carry, and, unless the table
/// marks or drops them, missing runs.
pub fn grids(spec: &TableSpec, expected: &[Expected], answers: &[Outputs]) -> Result<Vec<Grid>, Vec<TableProblem>> {
    grids_with(spec, expected, answers, &stats::bootstrap_means)
}

/// As [`grids`]; `resample` does what [`stats::bootstrap_means`] does, for a caller that may use threads.
///
/// # Errors
/// As [`grids`].
pub fn grids_with(
    spec: &TableSpec,
    expected: &[Expected],
    answers: &[Outputs],
    resample: Resample<'_>,
) -> Result<Vec<Grid>, Vec<TableProblem>> {
    let join = Join::new(spec, expected);
    let of_items = items::columns_of(spec);
    let columns = || (0..spec.columns.len()).chain(of_items.iter().copied());
    let asked: usize = (0..spec.rows.len())
        .flat_map(|row| columns().map(move |column| (row, column)))
        .flat_map(|(row, column)| join.cells(row, column))
        .filter(|cell| expected[*cell].run.is_ok())
        .count();
    if asked != answers.len() {
        let text = format!("table `{}`: {} of {asked} metrics were evaluated", spec.key, answers.len());
        return Err(vec![TableProblem(text)]);
    }
    let mut builder = Builder {
        spec,
        expected,
        join,
        answers: answers.iter(),
        dead: vec![false; spec.columns.len()],
        problems: Vec::new(),
        untold: 0,
        notes: Notes::default(),
        runs: BTreeMap::new(),
        drawn: BTreeMap::new(),
        items: BTreeMap::new(),
    };
    builder.profiles();
    let (row_notes, column_notes, cell_notes) = builder.footnotes();
    let samples = builder.samples();
    builder.items = builder.items();
    builder.draw(&samples, resample);
    let mut rows: Vec<Row> = Vec::with_capacity(spec.rows.len());
    for (row, row_spec) in spec.rows.iter().enumerate() {
        let mut cells = Vec::with_capacity(spec.columns.len());
        for column in 0..spec.columns.len() {
            let mut cell = builder.cell(row, column, &samples[row][column]);
            if let Some(own) = cell_notes.get(&(row, column)) {
                cell.notes.splice(0..0, own.iter().copied());
            }
            cells.push(cell);
        }
        rows.push(Row {
            key: row_spec.key.clone(),
            label: row_spec.text().to_owned(),
            group: row_spec.group.clone(),
            note: row_notes.get(&row).copied(),
            cells,
        });
    }
    builder.mark_unequal(&mut rows);
    let tested = builder.tests(&samples, &mut rows);
    if !builder.problems.is_empty() {
        if builder.untold > 0 {
            let text = format!("table `{}`: {} more problems of this table", spec.key, builder.untold);
            builder.problems.push(TableProblem(text));
        }
        return Err(builder.problems);
    }
    marks::mark_best(spec, &mut rows);

    let mut notes: Vec<Note> = spec.notes.iter().map(|text| Note { mark: None, text: text.clone() }).collect();
    notes.extend(notes::how_it_was_made(spec, &rows, &samples).into_iter().map(|text| Note { mark: None, text }));
    notes.extend(tested);
    let mut columns: Vec<Column> =
        spec.columns.iter().enumerate().map(|(i, c)| cell::column(c, rows.iter().map(|r| &r.cells[i]))).collect();
    for (column, note) in column_notes {
        columns[column].note = Some(note);
    }
    let lettered = std::mem::take(&mut builder.notes);
    lettered.place(&mut notes, &mut rows, &mut columns);
    let mut grid = Grid {
        key: spec.key.clone(),
        label: spec.label.clone(),
        caption: spec.caption.clone(),
        stub: spec.stub.clone(),
        columns,
        complete: rows.iter().flat_map(|r| &r.cells).all(|c| c.missing.is_empty()),
        signature: notes::signature(spec, &rows, &builder.join, expected),
        rows,
        notes,
        level: spec.level,
        partial: spec.partial,
        layout: Layout {
            env: spec.env,
            plain: spec.plain,
            multirow: spec.multirow,
            threeparttable: spec.threeparttable,
        },
    };
    // A heading that no neighbour shares is one all the same; an empty one is none.
    for row in &mut grid.rows {
        row.group = row.group.take().filter(|g| !g.is_empty());
    }
    let appendix = spec.appendix.then(|| builder.appendix(&grid, &samples));
    Ok(std::iter::once(grid).chain(appendix).collect())
}

struct Builder<'a> {
    spec: &'a TableSpec,
    expected: &'a [Expected],
    join: Join<'a>,
    answers: std::slice::Iter<'a, Outputs>,
    /// Columns whose metric matched no run: told once.
    dead: Vec<bool>,
    problems: Vec<TableProblem>,
    /// Problems beyond those.
    untold: usize,
    notes: Notes,
    /// Runs that cells share, by index of the expected cell.
    runs: BTreeMap<usize, Arc<RunRef>>,
    /// Bootstraps of means, by row and column.
    drawn: BTreeMap<(usize, usize), Answer<Bootstrap>>,
    /// Items of the cells of the test, by row and column.
    items: BTreeMap<(usize, usize), items::OfCell>,
}

impl Builder<'_> {
    /// Notes a problem, each once. What is beyond [`MOST_PROBLEMS`] is counted only.
    fn tell(&mut self, text: String) {
        if self.problems.len() >= MOST_PROBLEMS {
            self.untold += 1;
        } else if !self.problems.iter().any(|p| p.0 == text) {
            self.problems.push(TableProblem(text));
        }
    }

    fn problem(&mut self, row: usize, column: usize, what: &str) {
        let (row, column) = (&self.spec.rows[row].key, &self.spec.columns[column].key);
        self.tell(format!("table `{}`, row `{row}`, column `{column}`: {what}", self.spec.key));
    }

    fn column_problem(&mut self, column: usize, what: &str) {
        let column = &self.spec.columns[column].key;
        self.tell(format!("table `{}`, column `{column}`: {what}", self.spec.key));
    }

    /// The name of a cell in messages: with its study where there are several.
    fn name(&self, cell: usize) -> String {
        let key = &self.expected[cell].key;
        if self.spec.studies.is_empty() { key.local_name() } else { key.to_string() }
    }

    fn run_ref(&mut self, cell: usize) -> Option<Arc<RunRef>> {
        let expected = &self.expected[cell];
        let run = expected.run.as_ref().ok()?;
        let shared = self.runs.entry(cell).or_insert_with(|| {
            let (fingerprint, content) = (run.fingerprint.clone(), run.content.clone());
            Arc::new(RunRef { key: expected.key.clone(), fingerprint, content })
        });
        Some(shared.clone())
    }

    /// Numbers of two profiles do not compare: one is a rehearsal.
    fn profiles(&mut self) {
        let profiles: BTreeSet<&str> = self.join.all().map(|i| self.expected[i].key.profile.as_str()).collect();
        if profiles.len() > 1 {
            let named: Vec<String> = profiles.iter().map(|p| format!("`{p}`")).collect();
            let text = format!(
                "table `{}` would mix cells of the profiles {}: give its `studies` one profile",
                self.spec.key,
                named.join(" and ")
            );
            self.tell(text);
        }
    }

    /// Notes that the table gives its rows, columns and cells.
    #[expect(clippy::type_complexity, reason = "three maps that live for a line")]
    fn footnotes(&mut self) -> (BTreeMap<usize, usize>, BTreeMap<usize, usize>, BTreeMap<(usize, usize), Vec<usize>>) {
        let (mut rows, mut columns) = (BTreeMap::new(), BTreeMap::new());
        let mut cells: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for note in &self.spec.footnotes {
            let row = note.row.as_ref().and_then(|k| self.spec.rows.iter().position(|r| r.key == *k));
            let column = note.column.as_ref().and_then(|k| self.spec.columns.iter().position(|c| c.key == *k));
            match (row, column) {
                (Some(row), Some(column)) => {
                    let index = self.notes.add(note.text.clone());
                    cells.entry((row, column)).or_default().push(index);
                }
                (Some(row), None) => {
                    let text = self.notes.joined(rows.get(&row).copied(), &note.text);
                    rows.insert(row, text);
                }
                (None, Some(column)) => {
                    let text = self.notes.joined(columns.get(&column).copied(), &note.text);
                    columns.insert(column, text);
                }
                (None, None) => {}
            }
        }
        (rows, columns, cells)
    }

    /// The values behind every cell, row by row.
    fn samples(&mut self) -> Vec<Vec<Sample>> {
        let mut samples: Vec<Vec<Sample>> = Vec::with_capacity(self.spec.rows.len());
        for row in 0..self.spec.rows.len() {
            let mut line = Vec::with_capacity(self.spec.columns.len());
            for (column, spec) in self.spec.columns.iter().enumerate() {
                line.push(if spec.metric.is_some() { self.metric(row, column) } else { Sample::default() });
            }
            samples.push(line);
        }
        self.find_dead(&samples);
        for row in 0..self.spec.rows.len() {
            for (column, spec) in self.spec.columns.iter().enumerate() {
                if spec.metric.is_none() {
                    samples[row][column] = self.compared(row, column, &samples);
                }
            }
        }
        samples
    }
}
