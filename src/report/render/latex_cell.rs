//! A column of a LaTeX table and its cells: how a number, its spread and its marks are set.

use super::escape::{Tex, latex};
use super::{mark, plain};
use crate::report::table::{Alignment, Grid, GridCell, Printed};

/// How a column of the grid is set: one column of the tabular, or two.
pub(super) struct Layout {
    /// How its numbers are set; none for text on the right.
    number: Option<Number>,
    /// A second column holds what follows the number.
    tail: bool,
    /// Digits before the point of the widest spread.
    spread: usize,
}

/// How numbers line up.
enum Number {
    /// In an `S` column of this `table-format`.
    Siunitx(String),
    /// As math on the right, padded to so many decimals.
    Math(usize),
}

impl Layout {
    /// The format is computed from what is printed: 99.995 prints as 100.00 and needs three places.
    pub(super) fn of(grid: &Grid, index: usize) -> Self {
        let cells = || grid.rows.iter().filter_map(move |r| r.cells.get(index));
        let Alignment::Decimal { negative, whole, fraction, spread } = &grid.columns[index].alignment else {
            return Self { number: None, tail: false, spread: 0 };
        };
        let spreads =
            |c: &GridCell| matches!(c.printed, Printed::Number { spread: Some(_), .. } | Printed::Interval { .. });
        // Marks have a place of their own: siunitx gives a text behind a number none.
        let tail = cells().any(|c| spreads(c) || mark(grid, c).is_some());
        if grid.layout.plain {
            return Self { number: Some(Number::Math(*fraction)), tail, spread: spread.0 };
        }
        let sign = if *negative { "-" } else { "" };
        // Bold digits are wider; a place more leaves room for them.
        let whole = whole + usize::from(cells().any(|c| c.best));
        let point = if *fraction > 0 { format!(".{fraction}") } else { String::new() };
        Self { number: Some(Number::Siunitx(format!("{sign}{whole}{point}"))), tail, spread: spread.0 }
    }

    /// Columns of the tabular that it takes.
    pub(super) fn width(&self) -> usize {
        if self.tail { 2 } else { 1 }
    }

    pub(super) fn columns(&self) -> String {
        match (&self.number, self.tail) {
            (Some(Number::Siunitx(format)), true) => {
                format!("S[table-format = {format}, table-number-alignment = right]@{{}}l")
            }
            (Some(Number::Siunitx(format)), false) => format!("S[table-format = {format}]"),
            (_, true) => "r@{}l".to_owned(),
            (_, false) => "r".to_owned(),
        }
    }

    /// LaTeX that is no number, over the whole width of the column.
    pub(super) fn text(&self, tex: &str) -> String {
        if self.tail { format!("\\multicolumn{{2}}{{c}}{{{tex}}}") } else { format!("{{{tex}}}") }
    }

    pub(super) fn cell(&self, grid: &Grid, cell: &GridCell) -> String {
        let mark = mark(grid, cell).map(|m| format!("\\textsuperscript{{{}}}", latex(&m).0)).unwrap_or_default();
        let (bold, bold_math) = if cell.best { ("\\bfseries ", "\\boldmath") } else { ("", "") };
        match (&cell.printed, &self.number) {
            (Printed::Number { text, .. } | Printed::Interval { text, .. }, Some(number)) => {
                let first = match number {
                    Number::Siunitx(_) if cell.second => format!("{text} {{{}}}", under_number(text)),
                    Number::Siunitx(_) => format!("{bold}{text}"),
                    Number::Math(fraction) => math(text, *fraction, cell),
                };
                if self.tail { format!("{first} & {}{mark}", self.tail_of(cell, bold_math)) } else { first }
            }
            // In a column of texts: math, for the sign of the minus.
            (Printed::Number { text, spread: None }, None) => format!("{{{bold_math}{}}}{mark}", as_math(text, cell)),
            (Printed::Number { text, spread: Some(spread) }, None) => {
                format!("{{{bold_math}{}$ \\pm {spread}$}}{mark}", as_math(text, cell))
            }
            (Printed::Interval { text, lower, upper }, None) => {
                format!("{{{bold_math}{} $[{lower}, {upper}]$}}{mark}", as_math(text, cell))
            }
            (Printed::Reference, _) => self.text("--"),
            (Printed::Text(_) | Printed::Values(_) | Printed::Missing, _) => {
                let Tex(text) = latex(&plain(cell));
                let text = if cell.second { format!("\\underline{{{text}}}") } else { text };
                self.text(&format!("{bold}{text}{mark}"))
            }
        }
    }

    /// What follows a number in a column of its own.
    fn tail_of(&self, cell: &GridCell, bold_math: &str) -> String {
        match &cell.printed {
            Printed::Number { spread: Some(spread), .. } => {
                let own = spread.split('.').next().map_or(0, str::len);
                let room = "0".repeat(self.spread.saturating_sub(own));
                let room = if room.is_empty() { room } else { format!("\\phantom{{{room}}}") };
                format!("{bold_math}${{}}\\pm {room}{spread}$")
            }
            Printed::Interval { lower, upper, .. } => format!("{bold_math}$\\;[{lower}, {upper}]$"),
            _ => String::new(),
        }
    }
}

/// A rule below the number before it, of its width: siunitx takes no number inside a macro.
fn under_number(text: &str) -> String {
    format!("\\llap{{\\underline{{\\phantom{{${text}$}}}}}}")
}

fn as_math(text: &str, cell: &GridCell) -> String {
    if cell.second { format!("$\\underline{{{text}}}$") } else { format!("${text}$") }
}

/// A number as math with as many decimals as the column has, the missing ones invisible.
fn math(text: &str, fraction: usize, cell: &GridCell) -> String {
    let own = text.split_once('.').map_or(0, |(_, digits)| digits.len());
    let point = if own == 0 && fraction > 0 { "." } else { "" };
    let room = format!("{point}{}", "0".repeat(fraction.saturating_sub(own)));
    let room = if room.is_empty() { room } else { format!("\\phantom{{${room}$}}") };
    let bold = if cell.best { "\\boldmath" } else { "" };
    format!("{{{bold}{}}}{room}", as_math(text, cell))
}
