//! A grid as text: LaTeX, Markdown, CSV, HTML, JSON and the terminal.
//!
//! Every format prints the digits that the grid has settled and none rounds again. Labels, captions and
//! notes come from studies and models and are hostile: each format escapes all text ([`escape`]). Pure.

mod csv;
pub(in crate::report) mod escape;
pub(in crate::report) mod html;
mod json;
mod latex;
mod latex_cell;
mod markdown;
mod text;

use super::table::{Column, Grid, GridCell, Printed, Row};

/// A format of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// booktabs and siunitx (version 3.0 or newer), to be `\input`.
    Latex,
    /// A pipe table.
    Markdown,
    /// Printed text and full precision, a line a row.
    Csv,
    /// A page of its own that loads and runs nothing.
    Html,
    /// The whole grid with the runs of each cell.
    Json,
    /// Plain text of at most 80 columns.
    Text,
}

impl Format {
    /// The formats that are files, in the order in which they are written.
    pub const FILES: [Format; 6] =
        [Format::Latex, Format::Markdown, Format::Csv, Format::Html, Format::Json, Format::Text];

    /// Ending of its files.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Latex => "tex",
            Format::Markdown => "md",
            Format::Csv => "csv",
            Format::Html => "html",
            Format::Json => "json",
            Format::Text => "txt",
        }
    }
}

/// The table in a format, with a final newline.
pub fn render(grid: &Grid, format: Format) -> String {
    match format {
        Format::Latex => latex::render(grid),
        Format::Markdown => markdown::render(grid),
        Format::Csv => csv::render(grid),
        Format::Html => html::render(grid),
        Format::Json => json::render(grid),
        Format::Text => text::render(grid),
    }
}

/// Text of a study or model with everything that a terminal or a page would act on made visible.
pub use escape::visible;

/// Text of a study or model as LaTeX that shows it literally.
pub fn tex(text: &str) -> String {
    escape::latex(text).0
}

/// Text as a field of a CSV file, which no spreadsheet takes for a formula.
pub fn csv_text(text: &str) -> String {
    escape::csv_text(text)
}

/// Text as Markdown that shows it literally.
pub fn markdown_text(text: &str) -> String {
    escape::markdown(text)
}

/// What a cell prints where no column lines it up.
pub(super) fn plain(cell: &GridCell) -> String {
    match &cell.printed {
        Printed::Number { text, spread: None } => text.clone(),
        Printed::Number { text, spread: Some(spread) } => format!("{text} ± {spread}"),
        Printed::Interval { text, lower, upper } => format!("{text} [{lower}, {upper}]"),
        Printed::Text(text) => text.clone(),
        Printed::Values(values) => values.join(", "),
        Printed::Reference => "–".to_owned(),
        Printed::Missing => "n/a".to_owned(),
    }
}

/// The number that a cell prints, without spread and interval.
pub(super) fn plain_number(cell: &GridCell) -> String {
    match &cell.printed {
        Printed::Number { text, .. } | Printed::Interval { text, .. } => text.clone(),
        _ => plain(cell),
    }
}

/// What stands raised behind a cell: the mark of its test, then those of its notes.
fn mark(grid: &Grid, cell: &GridCell) -> Option<String> {
    let test = cell.test.iter().map(|t| t.mark.as_str()).filter(|m| !m.is_empty());
    let notes = cell.notes.iter().filter_map(|n| grid.notes.get(*n)?.mark.as_deref());
    let marks: Vec<&str> = test.chain(notes).collect();
    (!marks.is_empty()).then(|| marks.join(","))
}

/// What stands raised behind the label of a row.
fn row_mark<'g>(grid: &'g Grid, row: &Row) -> Option<&'g str> {
    grid.notes.get(row.note?)?.mark.as_deref()
}

/// What stands raised behind the header of a column.
fn column_mark<'g>(grid: &'g Grid, column: &Column) -> Option<&'g str> {
    grid.notes.get(column.note?)?.mark.as_deref()
}

/// Neighbouring rows of one group, or of none.
struct Group<'g> {
    /// Its heading.
    label: Option<&'g str>,
    rows: &'g [Row],
}

fn groups(grid: &Grid) -> Vec<Group<'_>> {
    grid.rows
        .chunk_by(|a, b| a.group == b.group)
        .map(|rows| Group { label: rows.first().and_then(|r| r.group.as_deref()), rows })
        .collect()
}

/// True if some row stands in a group.
fn has_groups(grid: &Grid) -> bool {
    grid.rows.iter().any(|r| r.group.is_some())
}

/// The headers above the columns, each with the number of columns below it; none if no column has one.
fn spans(grid: &Grid) -> Option<Vec<(Option<&str>, usize)>> {
    // Columns without a header above them stand alone.
    let same = |a: &Column, b: &Column| a.span.is_some() && a.span == b.span;
    let mut spans = Vec::new();
    for columns in grid.columns.chunk_by(same) {
        spans.push((columns[0].span.as_deref(), columns.len()));
    }
    spans.iter().any(|(span, _)| span.is_some()).then_some(spans)
}

#[cfg(test)]
pub(super) mod tests;
