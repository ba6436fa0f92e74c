//! A pipe table with its caption above and its notes below.
//!
//! Pipe tables have no headers over several columns and no groups: such a header stands before that of each of its
//! columns, and a group has a row of its own for its name.

use super::escape::markdown;
use super::{column_mark, groups, mark, plain, row_mark};
use crate::report::table::{Grid, Printed};

pub(super) fn render(grid: &Grid) -> String {
    let mut out = String::new();
    if !grid.caption.is_empty() {
        out.push_str(&format!("{}\n\n", markdown(&grid.caption)));
    }
    let mut line = |cells: Vec<String>| out.push_str(&format!("| {} |\n", cells.join(" | ")));
    let head = grid.columns.iter().map(|c| {
        let above = c.span.as_ref().map(|span| format!("{}: ", markdown(span))).unwrap_or_default();
        let note = column_mark(grid, c).map(|m| format!("<sup>{}</sup>", markdown(m))).unwrap_or_default();
        format!("{above}{}{note}", markdown(&c.label))
    });
    line(std::iter::once(markdown(&grid.stub)).chain(head).collect());
    line(std::iter::once("---".to_owned()).chain(grid.columns.iter().map(|_| "---:".to_owned())).collect());
    let rows = groups(grid).into_iter().flat_map(|group| {
        let heading = group.label.map(Err);
        heading.into_iter().chain(group.rows.iter().map(Ok))
    });
    for row in rows {
        let row = match row {
            Ok(row) => row,
            Err(group) => {
                let blanks = grid.columns.iter().map(|_| String::new());
                line(std::iter::once(format!("*{}*", markdown(group))).chain(blanks).collect());
                continue;
            }
        };
        let note = row_mark(grid, row).map(|m| format!("<sup>{}</sup>", markdown(m))).unwrap_or_default();
        let mut cells = vec![format!("{}{note}", markdown(&row.label))];
        for cell in &row.cells {
            // Brackets of an interval and what model text might hold are escaped; digits are not touched.
            let mut text = match cell.printed {
                Printed::Number { .. } | Printed::Reference => plain(cell),
                _ => markdown(&plain(cell)),
            };
            if cell.best {
                text = format!("**{text}**");
            } else if cell.second {
                text = format!("<ins>{text}</ins>");
            }
            if let Some(mark) = &mark(grid, cell) {
                text.push_str(&format!("<sup>{}</sup>", markdown(mark)));
            }
            cells.push(text);
        }
        line(cells);
    }
    for note in &grid.notes {
        let mark = note.mark.as_ref().map(|m| format!("<sup>{}</sup> ", markdown(m))).unwrap_or_default();
        out.push_str(&format!("\n{mark}{}\n", markdown(&note.text)));
    }
    out
}
