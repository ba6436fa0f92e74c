//! CSV: a line a row; for each column what is printed, then the numbers behind it at full precision. A column with
//! tests has their p-values too.

use super::escape::{csv_field, csv_text};
use super::{has_groups, plain};
use crate::report::table::{Grid, Printed};

/// What follows the printed text of a column.
const NUMBERS: [&str; 9] = ["value", "spread", "mean", "sd", "ci_lower", "ci_upper", "n", "n_expected", "missing"];

/// What follows where some cell was tested.
const TEST: [&str; 2] = ["p", "p_adjusted"];

pub(super) fn render(grid: &Grid) -> String {
    let mut out = String::from("row,label");
    let grouped = has_groups(grid);
    if grouped {
        out.push_str(",group");
    }
    let tested: Vec<bool> =
        (0..grid.columns.len()).map(|i| grid.rows.iter().any(|r| r.cells[i].test.is_some())).collect();
    for (column, tested) in grid.columns.iter().zip(&tested) {
        out.push_str(&format!(",{}", column.key));
        for number in NUMBERS.iter().chain(if *tested { &TEST[..] } else { &[] }) {
            out.push_str(&format!(",{}_{number}", column.key));
        }
    }
    out.push('\n');
    for row in &grid.rows {
        out.push_str(&format!("{},{}", csv_field(&row.key), csv_text(&row.label)));
        if grouped {
            out.push_str(&format!(",{}", csv_text(row.group.as_deref().unwrap_or_default())));
        }
        for (cell, tested) in row.cells.iter().zip(&tested) {
            let float = |x: Option<f64>| x.map(|x| format!("{x:?}")).unwrap_or_default();
            let printed = match cell.printed {
                // A difference taken from itself and a value that is not there print as nothing here.
                Printed::Reference | Printed::Missing => String::new(),
                _ => csv_field(&plain(cell)),
            };
            let missing: Vec<String> = cell.missing.iter().map(|m| format!("{}: {}", m.cell, m.reason)).collect();
            let mut fields = vec![
                printed,
                float(cell.value),
                float(cell.spread),
                float(cell.mean),
                float(cell.sd),
                float(cell.interval.map(|i| i.lower)),
                float(cell.interval.map(|i| i.upper)),
                cell.n.to_string(),
                cell.n_expected.to_string(),
                csv_text(&missing.join("; ")),
            ];
            if *tested {
                let test = cell.test.as_ref();
                fields.extend([float(test.and_then(|t| t.p)), float(test.and_then(|t| t.adjusted))]);
            }
            for field in fields {
                out.push(',');
                out.push_str(&field);
            }
        }
        out.push('\n');
    }
    out
}
