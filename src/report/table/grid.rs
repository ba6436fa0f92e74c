//! A table whose numbers are settled: what renderers print, and where each number came from.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::spec::{APPENDIX_ENDING, Better, Partial, Show};
use crate::record::{CellKey, Digest, Fingerprint};
use crate::report::stats::Interval;

/// A finished table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Grid {
    /// Its name.
    pub key: String,
    /// Its LaTeX label.
    pub label: Option<String>,
    /// Its caption, plain text.
    pub caption: String,
    /// Header of the column of row labels.
    pub stub: String,
    /// Columns in order.
    pub columns: Vec<Column>,
    /// Rows in order; each has a cell for each column.
    pub rows: Vec<Row>,
    /// Footnotes: those with a mark belong to cells.
    pub notes: Vec<Note>,
    /// Level of intervals.
    pub level: f64,
    /// What to do with partial cells, as it was asked.
    pub partial: Partial,
    /// Whether every cell has all its expected runs.
    pub complete: bool,
    /// How the numbers were made, on one line.
    pub signature: String,
    /// How the LaTeX is set.
    pub layout: Layout,
}

impl Grid {
    /// Whether it has the values of each seed behind another table.
    pub fn is_appendix(&self) -> bool {
        self.key.ends_with(APPENDIX_ENDING)
    }
}

/// How a table's LaTeX is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Layout {
    /// The environment around it.
    pub env: Env,
    /// No package but booktabs: no siunitx columns.
    pub plain: bool,
    /// Groups of rows in a first column of their own, by `multirow`, in place of a heading line.
    pub multirow: bool,
    /// Notes by `threeparttable`.
    pub threeparttable: bool,
}

/// The LaTeX environment of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, serde::Deserialize)]
pub enum Env {
    /// A float in a column.
    #[default]
    #[serde(rename = "table")]
    Table,
    /// A float over both columns.
    #[serde(rename = "table*")]
    Wide,
    /// No float: breaks over pages.
    #[serde(rename = "longtable")]
    Long,
}

/// Column of a grid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    /// Its name.
    pub key: String,
    /// Its header, plain text.
    pub label: String,
    /// The header above it: neighbours with the same one share it.
    pub span: Option<String>,
    /// What of the runs is printed.
    pub show: Show,
    /// Which end is better.
    pub better: Option<Better>,
    /// How its cells line up.
    pub alignment: Alignment,
    /// Its header's note.
    pub note: Option<usize>,
}

/// How the cells of a column line up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Alignment {
    /// On the decimal point: digits before it (with sign), after it, and of the spread.
    Decimal {
        /// Some number is negative.
        negative: bool,
        /// Most digits before the point.
        whole: usize,
        /// Most digits after the point.
        fraction: usize,
        /// Most digits of a spread before and after its point; 0 and 0 without spreads.
        spread: (usize, usize),
    },
    /// On the right.
    Right,
}

/// Row of a grid.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub key: String,
    /// Its label, plain text.
    pub label: String,
    /// The group it stands in: neighbours with the same one share its heading.
    pub group: Option<String>,
    /// Its label's note.
    pub note: Option<usize>,
    /// One cell a column.
    pub cells: Vec<GridCell>,
}

/// A number of a table with everything known about it. Values are scaled, at full precision.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GridCell {
    /// What every format prints.
    pub printed: Printed,
    /// Mean over the runs.
    pub mean: Option<f64>,
    /// Sample standard deviation (divisor n - 1).
    pub sd: Option<f64>,
    /// Median over the runs.
    pub median: Option<f64>,
    /// Interquartile mean over the runs.
    pub iqm: Option<f64>,
    /// What is printed, before it is rounded: the mean, median, ...; a ratio of means is not the mean of the ratios.
    pub value: Option<f64>,
    /// What is printed behind the sign ±, before it is rounded: the sd, or what is propagated to a ratio.
    pub spread: Option<f64>,
    /// Interval of the value at the table's level.
    pub interval: Option<Interval>,
    /// How the interval was made.
    pub interval_kind: Option<IntervalKind>,
    /// Why there is no sd and interval.
    pub degenerate: Option<String>,
    /// Runs in the mean.
    pub n: usize,
    /// Runs the plan expects.
    pub n_expected: usize,
    /// The value of each run, by seed.
    pub values: Vec<SeedValue>,
    /// Expected runs that are not in it, and why.
    pub missing: Vec<MissingRun>,
    /// The runs it was computed from. Cells share them: a run is in many cells.
    #[serde(serialize_with = "runs")]
    pub runs: Vec<Arc<RunRef>>,
    /// It is the best of its column.
    pub best: bool,
    /// It is the second best of its column.
    pub second: bool,
    /// The test against another row.
    pub test: Option<CellTest>,
    /// Indices into the grid's notes.
    pub notes: Vec<usize>,
}

fn runs<S: Serializer>(runs: &[Arc<RunRef>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(runs.iter().map(|run| &**run))
}

/// How an interval was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum IntervalKind {
    /// Student's t of the mean.
    T,
    /// Percentiles of resampled runs.
    Bootstrap,
    /// Percentiles of runs resampled within each task.
    Stratified,
    /// Propagated from two cells' standard errors, taken as independent.
    Propagated,
}

/// A significance test of a cell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CellTest {
    /// Its method, by name.
    pub method: String,
    /// The row it was compared with.
    pub against: String,
    /// Pairs compared.
    pub n: usize,
    /// Two-sided p.
    pub p: Option<f64>,
    /// p after the correction for the family.
    pub adjusted: Option<f64>,
    /// Why there is no p, or why no p of so few pairs could pass.
    pub degenerate: Option<String>,
    /// What is printed behind the number: empty where the test says nothing.
    pub mark: String,
}

/// What a cell prints, rounded once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Printed {
    /// A decimal number, with its spread if one is shown.
    Number {
        /// Digits with an optional sign.
        text: String,
        /// Digits.
        spread: Option<String>,
    },
    /// A number and the ends of its interval.
    Interval {
        /// The number.
        text: String,
        /// Lower end.
        lower: String,
        /// Upper end.
        upper: String,
    },
    /// Something else that is no decimal number: `1.4B`, `2 of 2`, `1.00e300`.
    Text(String),
    /// The value of each run.
    Values(Vec<String>),
    /// The row that a difference is taken from.
    Reference,
    /// No value.
    #[default]
    Missing,
}

/// The value of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeedValue {
    /// Its seed, if the stage has that axis.
    pub seed: Option<u32>,
    /// The value.
    pub value: f64,
}

/// An expected run that a cell lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingRun {
    /// Its cell, within the study.
    pub cell: String,
    /// Why.
    pub reason: String,
}

/// A run that a cell was computed from. No host, path, time or job: a table leaves the house.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RunRef {
    /// Its cell.
    pub key: CellKey,
    /// What made it.
    pub fingerprint: Fingerprint,
    /// What it found.
    pub content: Digest,
}

/// A footnote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    /// `a`, `b`, ... for notes of cells.
    pub mark: Option<String>,
    /// Plain text.
    pub text: String,
}
