//! CSV: a line a row; for each column what is printed, then the numbers behind it at full precision.

use super::escape::{csv_field, csv_text};
use super::plain;
use crate::report::table::{Grid, Printed};

/// What follows the printed text of a column.
const NUMBERS: [&str; 7] = ["mean", "sd", "ci_lower", "ci_upper", "n", "n_expected", "missing"];

pub(super) fn render(grid: &Grid) -> String {
    let mut out = String::from("row,label");
    for column in &grid.columns {
        out.push_str(&format!(",{}", column.key));
        for number in NUMBERS {
            out.push_str(&format!(",{}_{number}", column.key));
        }
    }
    out.push('\n');
    for row in &grid.rows {
        out.push_str(&format!("{},{}", csv_field(&row.key), csv_text(&row.label)));
        for cell in &row.cells {
            let float = |x: Option<f64>| x.map(|x| format!("{x:?}")).unwrap_or_default();
            let printed = match cell.printed {
                // A difference taken from itself and a value that is not there print as nothing here.
                Printed::Reference | Printed::Missing => String::new(),
                _ => csv_field(&plain(cell)),
            };
            let missing: Vec<String> = cell.missing.iter().map(|m| format!("{}: {}", m.cell, m.reason)).collect();
            let fields = [
                printed,
                float(cell.mean),
                float(cell.sd),
                float(cell.interval.map(|i| i.lower)),
                float(cell.interval.map(|i| i.upper)),
                cell.n.to_string(),
                cell.n_expected.to_string(),
                csv_text(&missing.join("; ")),
            ];
            for field in fields {
                out.push(',');
                out.push_str(&field);
            }
        }
        out.push('\n');
    }
    out
}
