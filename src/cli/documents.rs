//! What `seedbed aggregate` prints or writes beside the tables: documents, summaries of seeds, and where every number came
//! from.

use std::path::Path;

use super::{Result, output};
use crate::record::{exit, files};
use crate::report::sources;
use crate::report::table::Partial;
use crate::stages::aggregate;
use crate::workflow::plan::CellDef;
use crate::workflow::run::Prepared;

/// Directory of the tables' sources. They name hosts and jobs: not among the tables, which are for others.
const SOURCES_DIR: &str = "sources";

/// Writes documents, and the summaries of an aggregation, below `dir`.
pub(super) fn write(
    dir: &Path,
    prepared: &Prepared,
    cell: Option<&CellDef>,
    inputs: &[aggregate::Input],
    partial: Option<Partial>,
) -> Result<u8> {
    let mut out = aggregate::Out::below(dir);
    if let Some(cell) = cell {
        let params = prepared.study.stages[cell.stage].params_of(cell.key.arm.as_ref());
        aggregate::write_summaries(&mut out, params, inputs, &cell.key)?;
    }
    let (documents, problems) =
        aggregate::documents(&prepared.study.documents, inputs, partial.unwrap_or(Partial::Error));
    problems.iter().for_each(|problem| output::note(problem));
    aggregate::write_documents(&mut out, &documents)?;
    Ok(if problems.is_empty() { exit::DONE } else { exit::INCOMPLETE })
}

/// Prints documents to stdout.
pub(super) fn print(prepared: &Prepared, inputs: &[aggregate::Input], partial: Option<Partial>) -> Result<u8> {
    let (documents, problems) =
        aggregate::documents(&prepared.study.documents, inputs, partial.unwrap_or(Partial::Error));
    problems.iter().for_each(|problem| output::note(problem));
    for document in &documents {
        output::text(&document.markdown)?;
    }
    Ok(if problems.is_empty() { exit::DONE } else { exit::INCOMPLETE })
}

/// Writes where the numbers of tables came from.
pub(super) fn write_sources(dir: &Path, prepared: &Prepared, grids: &[crate::report::table::Grid]) -> Result<()> {
    let results = prepared.place.root.join("results");
    for grid in grids {
        let path = dir.join(SOURCES_DIR).join(format!("{}.json", grid.key));
        files::write_json(&path, &sources::of_grid(grid, &results))?;
    }
    Ok(())
}
