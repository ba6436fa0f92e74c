//! A grid as text: LaTeX, Markdown, CSV, JSON and the terminal.
//!
//! Every format prints the digits that the grid has settled and none rounds again. Labels, captions and
//! notes come from studies and models and are hostile: each format escapes all text ([`escape`]). Pure.

mod csv;
mod escape;
mod json;
mod latex;
mod markdown;
mod text;

use super::table::{Grid, GridCell, Printed};

/// A format of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// booktabs and siunitx (version 3.0 or newer), to be `\input`.
    Latex,
    /// A pipe table.
    Markdown,
    /// Printed text and full precision, a line a row.
    Csv,
    /// The whole grid with the runs of each cell.
    Json,
    /// Plain text of at most 80 columns.
    Text,
}

impl Format {
    /// The formats that are files, in the order in which they are written.
    pub const FILES: [Format; 5] = [Format::Latex, Format::Markdown, Format::Csv, Format::Json, Format::Text];

    /// Ending of its files.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Latex => "tex",
            Format::Markdown => "md",
            Format::Csv => "csv",
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

/// What a cell prints where no column lines it up.
fn plain(cell: &GridCell) -> String {
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

/// What stands raised behind a cell: the mark of its test, then those of its notes.
fn mark(grid: &Grid, cell: &GridCell) -> Option<String> {
    let test = cell.test.iter().map(|t| t.mark.as_str()).filter(|m| !m.is_empty());
    let notes = cell.notes.iter().filter_map(|n| grid.notes.get(*n)?.mark.as_deref());
    let marks: Vec<&str> = test.chain(notes).collect();
    (!marks.is_empty()).then(|| marks.join(","))
}

#[cfg(test)]
mod tests;
