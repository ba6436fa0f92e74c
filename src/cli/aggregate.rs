//! `seedbed aggregate`: the study's tables from what is sealed.

use std::path::{Path, PathBuf};

use super::Result;
use super::output;
use super::study::StudyArgs;
use crate::record::{digest, exit};
use crate::workflow::run::{Intent, prepare};

/// Fill the study's tables from its sealed results.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let prepared = prepare(&args.study.request(), Intent::Look)?;
    for cell in prepared.plan.cells.iter().filter(|c| prepared.study.stages[c.def.stage].kind() == "aggregate") {
        let dir = prepared.place.run_dir(&cell.def.key);
        for table in printed_tables(&dir) {
            output::text(&table)?;
        }
    }
    Ok(exit::DONE)
}

/// The tables of an aggregation as they are printed in a terminal.
pub(crate) fn printed_tables(dir: &Path) -> Vec<String> {
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(dir.join("tables")) {
        Ok(entries) => entries.filter_map(std::result::Result::ok).map(|e| e.path()).collect(),
        Err(_) => Vec::new(),
    };
    paths.retain(|p| p.extension().is_some_and(|e| e == "txt"));
    paths.sort();
    paths.iter().filter_map(|p| std::fs::read_to_string(p).ok()).collect()
}

/// Every file of an aggregation that a person wants.
pub(crate) fn result_files(dir: &Path) -> Vec<PathBuf> {
    let files = digest::files_below(dir).unwrap_or_default();
    let wanted = |path: &PathBuf| {
        let text = path.to_string_lossy();
        text.starts_with("tables/") || text.ends_with("summary.txt") || text.ends_with("results.json")
    };
    files.into_iter().filter(wanted).map(|f| dir.join(f)).collect()
}
