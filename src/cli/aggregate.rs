//! `seedbed aggregate`: the study's tables from what is sealed now, without a job.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::study::StudyArgs;
use super::{CliError, Result, merged, output};
use crate::record::{Need, digest, exit};
use crate::report::render::{self, render};
use crate::report::table::Partial;
use crate::stages::aggregate::{self, SPEC};
use crate::workflow::plan::SealView;
use crate::workflow::run::{Intent, Prepared, prepare};
use crate::workflow::submission::needs_of;

/// Fill the study's tables from its sealed results.
///
/// A missing or stale cell is an error that names it, unless `--partial mark` says to mark it. The
/// aggregation stage of the study does the same in the chain, and seals what it made.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    /// What to do about missing cells
    #[arg(long, value_enum, default_value_t)]
    partial: OnMissing,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write every table in every format below DIR/tables, and print nothing
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum OnMissing {
    /// Name them and make no table
    #[default]
    Error,
    /// Mark them in the table
    Mark,
    /// Leave them out
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Format {
    /// For a terminal
    #[default]
    Text,
    /// booktabs and siunitx
    Latex,
    /// GitHub's Markdown
    Markdown,
    /// Full precision and printed
    Csv,
    /// Whole cells with their runs
    Json,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let prepared = prepare(&args.study.request(), Intent::Look)?;
    prepared.notes.iter().for_each(|n| output::note(n));
    let cells: Vec<_> =
        prepared.plan.cells.iter().filter(|c| prepared.study.stages[c.def.stage].kind() == SPEC.kind).collect();
    // A study without an aggregation has its tables all the same, of what they read.
    let groups: Vec<Vec<Need>> = match cells.as_slice() {
        [] if prepared.study.tables.is_empty() => {
            return Err(CliError::Usage("the study has no tables: add a `[[table]]` (docs/tables.md)".to_owned()));
        }
        [] => vec![merged::needs_of_tables(&prepared)],
        cells => cells.iter().map(|cell| needs_of(&prepared.study, &prepared.plan, &cell.def)).collect(),
    };
    let partial = match args.partial {
        OnMissing::Error => None,
        OnMissing::Mark => Some(Partial::Mark),
        OnMissing::Drop => Some(Partial::Drop),
    };
    let mut code = exit::DONE;
    for needs in groups {
        // The plan has read the seals: nothing is gained by reading them again.
        let known = |need: &Need| match prepared.seals.get(&need.key.local_name()) {
            Some(SealView::Sealed { seal, .. }) => Some(&**seal),
            _ => None,
        };
        let inputs = aggregate::collect_sealed(&needs, &prepared.place.base, &known);
        let missing: Vec<String> = inputs
            .iter()
            .filter_map(|i| i.run.as_ref().err().map(|why| format!("  {}: {why}", i.key.local_name())))
            .collect();
        if !missing.is_empty() {
            output::note(&format!(
                "{} of {} needed cells are missing:\n{}",
                missing.len(),
                inputs.len(),
                missing.join("\n")
            ));
            if partial.is_none() {
                output::note(&format!("run `run_all {}` to finish them, or say --partial mark", args.study.again()));
                code = exit::MISSING_INPUT;
                continue;
            }
        }
        code = code.max(tables(args, &prepared, &inputs, partial)?);
    }
    Ok(code)
}

fn tables(args: &Args, prepared: &Prepared, inputs: &[aggregate::Input], partial: Option<Partial>) -> Result<u8> {
    let (several, own): (Vec<Value>, Vec<Value>) =
        prepared.study.tables.iter().cloned().partition(aggregate::reads_studies);
    let (mut grids, mut problems) = aggregate::tables(&own, inputs, partial);
    for section in several {
        let of_studies = merged::inputs(&args.study, prepared, &section)?;
        let (more, wrong) = aggregate::tables(&[section], &of_studies, partial);
        grids.extend(more);
        problems.extend(wrong);
    }
    problems.iter().for_each(|p| output::note(&p.0));
    if let Some(dir) = &args.output {
        aggregate::write_tables(dir, &grids)?;
        output::note(&format!("written below {}", dir.display()));
    } else {
        let format = match args.format {
            Format::Text => render::Format::Text,
            Format::Latex => render::Format::Latex,
            Format::Markdown => render::Format::Markdown,
            Format::Csv => render::Format::Csv,
            Format::Json => render::Format::Json,
        };
        for grid in &grids {
            output::text(&render(grid, format))?;
        }
    }
    Ok(if problems.is_empty() { exit::DONE } else { exit::INCOMPLETE })
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
