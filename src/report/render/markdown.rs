//! A pipe table with its caption above and its notes below.

use super::escape::markdown;
use super::{mark, plain};
use crate::report::table::{Grid, Printed};

pub(super) fn render(grid: &Grid) -> String {
    let mut out = String::new();
    if !grid.caption.is_empty() {
        out.push_str(&format!("{}\n\n", markdown(&grid.caption)));
    }
    let mut line = |cells: Vec<String>| out.push_str(&format!("| {} |\n", cells.join(" | ")));
    let head = std::iter::once(&grid.stub).chain(grid.columns.iter().map(|c| &c.label));
    line(head.map(|text| markdown(text)).collect());
    line(std::iter::once("---".to_owned()).chain(grid.columns.iter().map(|_| "---:".to_owned())).collect());
    for row in &grid.rows {
        let mut cells = vec![markdown(&row.label)];
        for cell in &row.cells {
            // Brackets of an interval and what model text might hold are escaped; digits are not touched.
            let mut text = match cell.printed {
                Printed::Number { .. } | Printed::Reference => plain(cell),
                _ => markdown(&plain(cell)),
            };
            if cell.best {
                text = format!("**{text}**");
            }
            if let Some(mark) = &mark(grid, cell) {
                text.push_str(&format!("<sup>{mark}</sup>"));
            }
            cells.push(text);
        }
        line(cells);
    }
    for note in &grid.notes {
        let mark = note.mark.as_ref().map(|m| format!("<sup>{m}</sup> ")).unwrap_or_default();
        out.push_str(&format!("\n{mark}{}\n", markdown(&note.text)));
    }
    out
}
