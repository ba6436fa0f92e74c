//! LaTeX: booktabs rules and a siunitx `S` column for each column of numbers.
//!
//! The result is `\input`-able: a `table` float whose settings stay inside it. Numbers line up in an `S`
//! column and their spread or interval in a text column behind it: siunitx 3.2 sets an uncertainty in a table
//! without the space before its sign, and version 2 does not know the keys. siunitx aligns and never rounds;
//! texts in `S` columns are braced, and no macro but the one for bold stands in them.

use super::escape::{Tex, latex};
use super::{mark, plain};
use crate::report::table::{Alignment, Grid, GridCell, Printed};

/// Headers longer than this are broken at a space.
const HEADER_CHARS: usize = 12;

pub(super) fn render(grid: &Grid) -> String {
    let mut out = format!("% {}\n", comment(&grid.signature));
    out.push_str(
        "% written by seedbed, edits are lost; needs \\usepackage{booktabs} and \\usepackage{siunitx} (3.0 or newer)\n",
    );
    out.push_str("\\begin{table}\n  \\centering\n");
    if !grid.caption.is_empty() {
        out.push_str(&format!("  \\caption{{{}}}\n", latex(&grid.caption).0));
    }
    if let Some(label) = &grid.label {
        out.push_str(&format!("  \\label{{{label}}}\n"));
    }
    out.push_str("  \\sisetup{table-align-text-after = false, text-series-to-math = true}%\n");
    out.push_str(&format!("  {}\\setlength{{\\tabcolsep}}{{3pt}}%\n", size(grid)));
    let layouts: Vec<Layout> = (0..grid.columns.len()).map(|i| Layout::of(grid, i)).collect();
    let columns: Vec<String> = layouts.iter().map(Layout::columns).collect();
    out.push_str(&format!("  \\begin{{tabular}}{{l{}}}\n    \\toprule\n", columns.concat()));
    let head: Vec<String> = std::iter::once(format!("{{{}}}", header(&grid.stub)))
        .chain(grid.columns.iter().zip(&layouts).map(|(c, layout)| layout.text(&header(&c.label))))
        .collect();
    out.push_str(&format!("    {} \\\\\n    \\midrule\n", head.join(" & ")));
    for row in &grid.rows {
        let mut cells = vec![format!("{{{}}}", latex(&row.label).0)];
        cells.extend(layouts.iter().zip(&row.cells).map(|(layout, c)| cell(grid, layout, c)));
        out.push_str(&format!("    {} \\\\\n", cells.join(" & ")));
    }
    out.push_str("    \\bottomrule\n  \\end{tabular}\n");
    if !grid.notes.is_empty() {
        out.push_str("  \\par\\smallskip\n  \\begin{minipage}{\\linewidth}\\footnotesize\n");
        for note in &grid.notes {
            let mark = note.mark.as_ref().map(|m| format!("\\textsuperscript{{{m}}} ")).unwrap_or_default();
            out.push_str(&format!("    {mark}{}\\par\n", latex(&note.text).0));
        }
        out.push_str("  \\end{minipage}\n");
    }
    out.push_str("\\end{table}\n");
    out
}

/// A smaller type where the columns would not fit the 345 pt of a standard page.
fn size(grid: &Grid) -> &'static str {
    use unicode_width::UnicodeWidthStr;
    let of_header = |text: &str| broken(text).iter().map(|l| l.width()).max().unwrap_or(0);
    let labels = grid.rows.iter().map(|r| r.label.width()).max().unwrap_or(0).max(of_header(&grid.stub));
    let columns = grid.columns.iter().enumerate().map(|(i, c)| {
        let cells = grid.rows.iter().map(|r| plain(&r.cells[i]).width() + usize::from(r.cells[i].best)).max();
        of_header(&c.label).max(cells.unwrap_or(0))
    });
    // A digit is 5 pt wide at 10 pt, letters a little less on the average.
    let points = 5.0 * (labels + columns.sum::<usize>()) as f64 + 6.0 * (grid.columns.len() + 1) as f64;
    match points {
        ..=345.0 => "",
        ..=380.0 => "\\small",
        _ => "\\footnotesize",
    }
}

/// A comment ends at its line's end, whatever it holds.
fn comment(text: &str) -> String {
    super::visible(text)
}

/// How a column of the grid is set.
struct Layout {
    /// `table-format` of its `S` column; none for text on the right.
    format: Option<String>,
    /// Digits before the point of the widest spread; none without a column for spreads.
    spread: Option<usize>,
}

impl Layout {
    /// The format is computed from what is printed: 99.995 prints as 100.00 and needs three places.
    fn of(grid: &Grid, index: usize) -> Self {
        let cells = || grid.rows.iter().filter_map(move |r| r.cells.get(index));
        match &grid.columns[index].alignment {
            Alignment::Decimal { negative, whole, fraction, spread } => {
                let sign = if *negative { "-" } else { "" };
                // Bold digits are wider; a place more leaves room for them.
                let whole = whole + usize::from(cells().any(|c| c.best));
                let point = if *fraction > 0 { format!(".{fraction}") } else { String::new() };
                let has_spread = |c: &GridCell| {
                    matches!(c.printed, Printed::Number { spread: Some(_), .. } | Printed::Interval { .. })
                };
                Self {
                    format: Some(format!("{sign}{whole}{point}")),
                    spread: cells().any(has_spread).then_some(spread.0),
                }
            }
            Alignment::Right => Self { format: None, spread: None },
        }
    }

    fn columns(&self) -> String {
        match (&self.format, self.spread) {
            (Some(format), Some(_)) => format!("S[table-format = {format}, table-number-alignment = right]@{{}}l"),
            (Some(format), None) => format!("S[table-format = {format}]"),
            (None, _) => "r".to_owned(),
        }
    }

    /// LaTeX that is no number, over the whole width of the column.
    fn text(&self, tex: &str) -> String {
        if self.spread.is_some() { format!("\\multicolumn{{2}}{{c}}{{{tex}}}") } else { format!("{{{tex}}}") }
    }
}

/// The lines of a header.
fn broken(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= HEADER_CHARS => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A header, broken at spaces when it is long.
fn header(text: &str) -> String {
    let lines: Vec<String> = broken(text).iter().map(|line| latex(line).0).collect();
    if lines.len() > 1 { format!("\\shortstack{{{}}}", lines.join("\\\\")) } else { lines.concat() }
}

fn cell(grid: &Grid, layout: &Layout, cell: &GridCell) -> String {
    let mark = mark(grid, cell).map(|m| format!("\\textsuperscript{{{m}}}")).unwrap_or_default();
    let (bold, bold_math) = if cell.best { ("\\bfseries ", "\\boldmath") } else { ("", "") };
    let second = match (&cell.printed, layout.spread) {
        (Printed::Number { spread: Some(spread), .. }, Some(widest)) => {
            let own = spread.split('.').next().map_or(0, str::len);
            let room = "0".repeat(widest.saturating_sub(own));
            let room = if room.is_empty() { room } else { format!("\\phantom{{{room}}}") };
            format!("{bold_math}${{}}\\pm {room}{spread}$")
        }
        (Printed::Interval { lower, upper, .. }, Some(_)) => format!("{bold_math}$\\;[{lower}, {upper}]$"),
        _ => String::new(),
    };
    match &cell.printed {
        Printed::Number { text, .. } | Printed::Interval { text, .. } if layout.format.is_some() => {
            if layout.spread.is_some() {
                format!("{bold}{text} & {second}{mark}")
            } else if mark.is_empty() {
                format!("{bold}{text}")
            } else {
                format!("{bold}{text} {{{mark}}}")
            }
        }
        // In a column of texts: math, for the sign of the minus.
        Printed::Number { text, spread: None } => format!("{{{bold_math}${text}$}}{mark}"),
        Printed::Number { text, spread: Some(spread) } => format!("{{{bold_math}${text} \\pm {spread}$}}{mark}"),
        Printed::Interval { text, lower, upper } => {
            format!("{{{bold_math}${text}$ $[{lower}, {upper}]$}}{mark}")
        }
        Printed::Reference => layout.text("--"),
        Printed::Text(_) | Printed::Values(_) | Printed::Missing => {
            let Tex(text) = latex(&plain(cell));
            layout.text(&format!("{bold}{text}{mark}"))
        }
    }
}
