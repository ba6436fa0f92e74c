//! Plain text for a terminal, at most 80 columns wide, without escape sequences.
//!
//! A table that is wider even with its headers broken is printed row by row, a line for each value.

use unicode_width::UnicodeWidthStr;

use super::{column_mark, groups, mark, plain, row_mark, spans, visible};
use crate::report::table::{Column, Grid, GridCell, Printed, Row};

/// Columns of a terminal.
const WIDTH: usize = 80;

pub(super) fn render(grid: &Grid) -> String {
    let mut out = String::new();
    if !grid.caption.is_empty() {
        out.push_str(&wrap(&visible(&grid.caption), ""));
        out.push('\n');
    }
    match as_columns(grid) {
        Some(table) => out.push_str(&table),
        None => out.push_str(&as_records(grid)),
    }
    let some = |is: fn(&GridCell) -> bool| grid.rows.iter().flat_map(|r| &r.cells).any(is);
    let legend: Vec<&str> = [("* best", some(|c| c.best)), ("+ second best", some(|c| c.second))]
        .iter()
        .filter(|(_, used)| *used)
        .map(|(text, _)| *text)
        .collect();
    if !legend.is_empty() {
        out.push_str(&format!("{}\n", legend.join(", ")));
    }
    for note in &grid.notes {
        let mark = note.mark.as_ref().map(|m| format!("({m}) ")).unwrap_or_default();
        out.push_str(&wrap(&visible(&note.text), &mark));
    }
    out
}

/// A cell in three parts that line up on their own: the number, its spread, and its marks.
fn parts(grid: &Grid, cell: &GridCell) -> [String; 3] {
    let (text, spread) = match &cell.printed {
        Printed::Number { text, spread: Some(spread) } => (text.clone(), format!(" ± {spread}")),
        _ => (visible(&plain(cell)), String::new()),
    };
    let mut marks = if cell.best {
        "*"
    } else if cell.second {
        "+"
    } else {
        ""
    }
    .to_owned();
    if let Some(mark) = &mark(grid, cell) {
        marks.push_str(&format!(" ({})", visible(mark)));
    }
    [text, spread, marks]
}

fn blanks(n: usize) -> String {
    " ".repeat(n)
}

/// The cells of a column: numbers and spreads end in one column each, marks stand behind.
fn column_bodies(grid: &Grid, column: usize) -> Vec<String> {
    let cells: Vec<[String; 3]> = grid.rows.iter().map(|r| parts(grid, &r.cells[column])).collect();
    let widest = |part: usize| cells.iter().map(|c| c[part].width()).max().unwrap_or(0);
    let (spread_width, mark_width) = (widest(1), widest(2));
    cells
        .iter()
        .map(|[text, spread, marks]| {
            let spread = match spread.strip_prefix(" ± ") {
                Some(digits) => format!(" ± {}{digits}", blanks(spread_width - spread.width())),
                // What has no decimals to line up stands at the right end.
                None if matches!(text.as_str(), "–" | "n/a") => String::new(),
                None => blanks(spread_width),
            };
            format!("{text}{spread}{marks}{}", blanks(mark_width - marks.width()))
        })
        .collect()
}

/// The header of a column.
fn header(grid: &Grid, column: &Column) -> String {
    let note = column_mark(grid, column).map(|m| format!(" ({})", visible(m))).unwrap_or_default();
    format!("{}{note}", visible(&column.label))
}

/// The label of a row, below the heading of its group.
fn label(grid: &Grid, row: &Row) -> String {
    let indent = if row.group.is_some() { "  " } else { "" };
    let note = row_mark(grid, row).map(|m| format!(" ({})", visible(m))).unwrap_or_default();
    format!("{indent}{}{note}", visible(&row.label))
}

/// The table in columns, or `None` if it does not fit.
fn as_columns(grid: &Grid) -> Option<String> {
    let labels: Vec<String> = grid.rows.iter().map(|r| label(grid, r)).collect();
    let bodies: Vec<Vec<String>> = (0..grid.columns.len()).map(|i| column_bodies(grid, i)).collect();
    let body_width = |i: usize| bodies[i].iter().map(|c| c.width()).max().unwrap_or(0);
    let label_width = labels.iter().map(|l| l.width()).max().unwrap_or(0);
    let headers: Vec<String> = grid.columns.iter().map(|c| header(grid, c)).collect();
    let stub = visible(&grid.stub);
    let widest = headers.iter().chain([&stub]).map(|h| h.width()).max().unwrap_or(0);
    let spans = spans(grid);
    // Headers are broken at spaces, as little as is needed.
    for limit in (1..=widest.max(1)).rev() {
        let broken: Vec<Vec<String>> = headers.iter().map(|h| break_at(h, limit)).collect();
        let stub = break_at(&stub, limit);
        let head_width = |lines: &[String]| lines.iter().map(|l| l.width()).max().unwrap_or(0);
        let first = label_width.max(head_width(&stub));
        let mut widths: Vec<usize> = (0..headers.len()).map(|i| body_width(i).max(head_width(&broken[i]))).collect();
        // A header over several columns is never broken: it widens the last of them.
        if let Some(spans) = &spans {
            let mut column = 0;
            for (span, count) in spans {
                let below = &mut widths[column..column + count];
                let room = below.iter().sum::<usize>() + 2 * (count - 1);
                let wanted = span.map_or(0, |s| visible(s).width());
                below[count - 1] += wanted.saturating_sub(room);
                column += count;
            }
        }
        let total = first + widths.iter().map(|w| w + 2).sum::<usize>();
        if total > WIDTH {
            continue;
        }
        let mut out = String::new();
        if let Some(spans) = &spans {
            let (mut names, mut rules) = (blanks(first), blanks(first));
            let mut column = 0;
            for (span, count) in spans {
                let room = widths[column..column + count].iter().sum::<usize>() + 2 * (count - 1);
                let text = span.map(visible).unwrap_or_default();
                let left = (room - text.width()) / 2;
                names.push_str(&format!("  {}{text}{}", blanks(left), blanks(room - left - text.width())));
                rules.push_str(&format!("  {}", if span.is_some() { "-".repeat(room) } else { blanks(room) }));
                column += count;
            }
            out.push_str(&format!("{}\n{}\n", names.trim_end(), rules.trim_end()));
        }
        let line = |out: &mut String, label: &str, cells: &[&str]| {
            let mut text = format!("{label}{}", " ".repeat(first - label.width()));
            for (cell, width) in cells.iter().zip(&widths) {
                text.push_str(&format!("{}{cell}", " ".repeat(width + 2 - cell.width())));
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        let depth = broken.iter().chain([&stub]).map(Vec::len).max().unwrap_or(1);
        let at = |lines: &[String], level: usize| -> String {
            // The last line of every header stands on the rule.
            (level + lines.len()).checked_sub(depth).and_then(|i| lines.get(i)).cloned().unwrap_or_default()
        };
        for level in 0..depth {
            let cells: Vec<String> = broken.iter().map(|lines| at(lines, level)).collect();
            line(&mut out, &at(&stub, level), &cells.iter().map(String::as_str).collect::<Vec<_>>());
        }
        let rules: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
        line(&mut out, &"-".repeat(first), &rules.iter().map(String::as_str).collect::<Vec<_>>());
        let mut r = 0;
        for group in groups(grid) {
            if let Some(label) = group.label {
                line_over(&mut out, label);
            }
            for _ in group.rows {
                line(&mut out, &labels[r], &bodies.iter().map(|b| b[r].as_str()).collect::<Vec<_>>());
                r += 1;
            }
        }
        return Some(out);
    }
    None
}

/// The heading of a group, over the whole width.
fn line_over(out: &mut String, group: &str) {
    out.push_str(&wrap(&visible(group), ""));
}

fn as_records(grid: &Grid) -> String {
    let mut out = String::new();
    for group in groups(grid) {
        if let Some(label) = group.label {
            line_over(&mut out, label);
        }
        for row in group.rows {
            let indent = if group.label.is_some() { "  " } else { "" };
            out.push_str(&wrap(label(grid, row).trim_start(), indent));
            for (column, cell) in grid.columns.iter().zip(&row.cells) {
                let text = parts(grid, cell).concat();
                let above = column.span.as_ref().map(|s| format!("{}: ", visible(s))).unwrap_or_default();
                out.push_str(&wrap(&format!("{above}{}: {text}", header(grid, column)), &format!("{indent}  ")));
            }
        }
    }
    out
}

/// `text` in lines of at most `limit` columns, broken at spaces only.
fn break_at(text: &str, limit: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= limit => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Lines of at most 80 columns, the first after `lead`, the others indented below it. A word that is longer
/// stands on a line of its own.
fn wrap(text: &str, lead: &str) -> String {
    let indent = " ".repeat(lead.width());
    let lines = break_at(text, WIDTH - indent.len());
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        out.push_str(&format!("{}{line}\n", if i == 0 { lead } else { &indent }));
    }
    out
}
