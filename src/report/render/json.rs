//! The whole grid, each cell with its runs, at full precision. The format is described in `docs/tables.md`.

use serde::Serialize;

use crate::report::table::Grid;

/// Format version of a table's JSON.
const TABLE_VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    table: &'a Grid,
}

pub(super) fn render(grid: &Grid) -> String {
    // A grid has no maps with other than text keys and no floats that are not finite.
    let mut text = serde_json::to_string_pretty(&Document { version: TABLE_VERSION, table: grid }).unwrap_or_default();
    text.push('\n');
    text
}
