//! `seedbed aggregate`: the study's tables, documents, figures and page from what is sealed now, without a job; and whether
//! what an aggregation sealed is still what the runs give.

use std::collections::BTreeSet;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::study::StudyArgs;
use super::{CliError, Result, documents, merged, output, page};
use crate::record::{Need, digest, exit, files};
use crate::report::figure::Figure;
use crate::report::page::{Audience, page as page_text};
use crate::report::render::{self, render};
use crate::report::table::{APPENDIX_ENDING, Grid, Partial};
use crate::stages::aggregate::{self, SPEC};
use crate::workflow::plan::{CellDef, CellState, PlannedCell, SealView};
use crate::workflow::run::{Intent, Prepared, prepare};
use crate::workflow::submission::needs_of;

/// Fill the study's tables and documents from its sealed results, draw its figures, write the page about it.
///
/// Documents are Markdown: they are printed behind the tables as text or Markdown.
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
    /// Write every table in every format below DIR/tables, every figure below DIR/figures, and the page
    /// DIR/report.html; print nothing
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Write DIR/report.html for others: digests in place of hosts, jobs, paths, times and messages; and no DIR/sources
    #[arg(long, requires = "output")]
    public: bool,
    /// Make what the aggregation sealed anew, in memory, and name every file that is not the same; write nothing
    #[arg(long, conflicts_with_all = ["partial", "format", "output"])]
    verify: bool,
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
    /// A page of its own
    Html,
    /// Whole cells with their runs
    Json,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    // What a large study takes is given back by the end of the process, at once and not piece by piece.
    let prepared = ManuallyDrop::new(prepare(&args.study.request(), Intent::Look)?);
    prepared.notes.iter().for_each(|n| output::note(n));
    let cells: Vec<_> =
        prepared.plan.cells.iter().filter(|c| prepared.study.stages[c.def.stage].kind() == SPEC.kind).collect();
    if args.verify {
        return verify(args, &prepared, &cells);
    }
    // A study without an aggregation has its tables and figures all the same, of what they read.
    let study = &prepared.study;
    let nothing = study.tables.is_empty() && study.figures.is_empty() && study.documents.is_empty();
    let groups: Vec<(Vec<String>, Option<&CellDef>, Vec<Need>)> = match cells.as_slice() {
        // Its page tells where it stands.
        [] if nothing && args.output.is_some() => Vec::new(),
        [] if nothing => {
            return Err(CliError::Usage("the study has no tables: add a `[[table]]` (docs/tables.md)".to_owned()));
        }
        [] => vec![(Vec::new(), None, merged::needs_of_tables(&prepared))],
        cells => {
            let needs = |cell: &PlannedCell| needs_of(&prepared.study, &prepared.plan, &cell.def);
            cells.iter().map(|cell| (models(&prepared, cell), Some(&*cell.def), needs(cell))).collect()
        }
    };
    let partial = match args.partial {
        OnMissing::Error => None,
        OnMissing::Mark => Some(Partial::Mark),
        OnMissing::Drop => Some(Partial::Drop),
    };
    let mut code = exit::DONE;
    let mut made = Made::default();
    for (models, cell, needs) in groups {
        let inputs = ManuallyDrop::new(inputs_of(&prepared, &needs));
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
            }
        }
        let models: Vec<&str> = models.iter().map(String::as_str).collect();
        code = code.max(tables(args, &prepared, &models, &inputs, partial, &mut made)?);
        // What is missing was named.
        let whole = partial.is_some() || missing.is_empty();
        if let Some(dir) = &args.output {
            code = code.max(documents::write(dir, &prepared, cell, &inputs, partial)?);
        } else if whole && matches!(args.format, Format::Text | Format::Markdown) {
            code = code.max(documents::print(&prepared, &inputs, partial)?);
        }
    }
    if let Some(dir) = &args.output {
        let mut out = aggregate::Out::below(dir);
        aggregate::write_tables(&mut out, &made.grids)?;
        if !args.public {
            documents::write_sources(dir, &prepared, &made.grids)?;
        }
        aggregate::write_figures(&mut out, &made.figures)?;
        let audience = if args.public { Audience::Public } else { Audience::Own };
        let report = page::of_study(&args.study.request(), &prepared, made)?;
        files::write_atomic(&dir.join("report.html"), page_text(&report, audience).as_bytes())?;
        output::note(&format!("written below {}", dir.display()));
    }
    Ok(code)
}

/// The needed cells as the plan sees them.
fn inputs_of(prepared: &Prepared, needs: &[Need]) -> Vec<aggregate::Input> {
    // The plan has read the seals: nothing is gained by reading them again.
    let known = |need: &Need| match prepared.seals.get(&need.key.local_name()) {
        Some(SealView::Sealed { seal, .. }) => Some(&**seal),
        _ => None,
    };
    let mut inputs = aggregate::collect_sealed(needs, &prepared.place.base, &known);
    merged::judge(prepared, &mut inputs, merged::Judge::Found);
    inputs
}

/// Compares what sealed aggregations wrote with what they would write now.
fn verify(args: &Args, prepared: &Prepared, cells: &[&PlannedCell]) -> Result<u8> {
    if cells.is_empty() {
        return Err(CliError::Usage(format!(
            "the study has no stage of kind `{}`, so no summary of it is sealed: add one (docs/tables.md), or leave out \
             --verify",
            SPEC.kind
        )));
    }
    let mut code = exit::DONE;
    let mut same = 0;
    for cell in cells {
        let key = &cell.def.key;
        // Which output is gone or changed is what is asked.
        if !matches!(cell.state, CellState::Done { .. } | CellState::MissingOutputs(_)) {
            let why = [cell.state.label(), cell.state.reason()].join(" ");
            output::note(&format!(
                "{}: {}: nothing to verify; run `run_all {}` first",
                key.local_name(),
                why.trim(),
                args.study.again()
            ));
            code = code.max(exit::MISSING_INPUT);
            continue;
        }
        let inputs = inputs_of(prepared, &needs_of(&prepared.study, &prepared.plan, &cell.def));
        let dir = prepared.place.run_dir(key);
        let params = prepared.study.stages[cell.def.stage].params_of(key.arm.as_ref());
        match aggregate::verify(&dir, params, &inputs, key) {
            Ok(found) => {
                let named: BTreeSet<&PathBuf> = found.differences.iter().map(|d| &d.file).collect();
                same += found.made.iter().filter(|file| !named.contains(file)).count();
                for difference in &found.differences {
                    let file = dir.join(&difference.file);
                    output::text(&format!("{}: {}\n", file.display(), difference.what))?;
                    code = code.max(exit::INCOMPLETE);
                }
            }
            Err(error) => {
                output::note(&format!("{}: {error}", key.local_name()));
                code = code.max(error.exit_code());
            }
        }
    }
    output::note(&format!("{} as the sealed runs give it", output::plural(same, "file")));
    Ok(code)
}

/// The models that an aggregation compares.
fn models(prepared: &Prepared, cell: &PlannedCell) -> Vec<String> {
    let params = prepared.study.stages[cell.def.stage].params_of(cell.def.key.arm.as_ref());
    params.get("models").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

/// What was made of a study's aggregations.
#[derive(Default)]
pub(super) struct Made {
    pub(super) grids: Vec<Grid>,
    pub(super) figures: Vec<Figure>,
    pub(super) problems: Vec<String>,
}

fn tables(
    args: &Args,
    prepared: &Prepared,
    models: &[&str],
    inputs: &[aggregate::Input],
    partial: Option<Partial>,
    made: &mut Made,
) -> Result<u8> {
    let mut sections = prepared.study.tables.clone();
    if partial.is_none() {
        // What is missing was named: only tables that do without it are made.
        sections.retain(|section| aggregate::reads_studies(section) || does_without(section, inputs));
    }
    let (grids, mut problems) = merged::tables(&args.study, prepared, &sections, inputs, partial)?;
    // Figures say of no seed that it is missing: they wait for all, or for a word.
    let whole = partial.is_some() || inputs.iter().all(|i| i.run.is_ok());
    if args.output.is_some() && whole {
        let (figures, more) = aggregate::figures(&prepared.study.figures, models, inputs, &grids);
        problems.extend(more);
        made.figures.extend(figures);
    }
    problems.iter().for_each(|p| output::note(&p.0));
    made.problems.extend(problems.iter().map(|p| p.0.clone()));
    if args.output.is_some() {
        made.grids.extend(grids);
    } else {
        let format = match args.format {
            Format::Text => render::Format::Text,
            Format::Latex => render::Format::Latex,
            Format::Markdown => render::Format::Markdown,
            Format::Csv => render::Format::Csv,
            Format::Html => render::Format::Html,
            Format::Json => render::Format::Json,
        };
        // A value for each seed is for a file, not for a terminal.
        let shown = |grid: &&Grid| format != render::Format::Text || !grid.is_appendix();
        for grid in grids.iter().filter(shown) {
            output::text(&render(grid, format))?;
        }
    }
    Ok(if problems.is_empty() { exit::DONE } else { exit::INCOMPLETE })
}

/// Whether a table says itself what to do about missing cells, or reads none that is missing.
fn does_without(section: &Value, inputs: &[aggregate::Input]) -> bool {
    let says = section.get("partial").and_then(Value::as_str).is_some_and(|word| word != "error");
    let columns = section.get("columns").and_then(Value::as_array).into_iter().flatten();
    let stages: Vec<&str> = columns.filter_map(|column| column.get("stage")?.as_str()).collect();
    says || !inputs.iter().any(|i| i.run.is_err() && stages.contains(&i.key.stage.as_str()))
}

/// The tables of an aggregation as they are printed in a terminal.
pub(crate) fn printed_tables(dir: &Path) -> Vec<String> {
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(dir.join("tables")) {
        Ok(entries) => entries.filter_map(std::result::Result::ok).map(|e| e.path()).collect(),
        Err(_) => Vec::new(),
    };
    let appendix = |path: &PathBuf| path.file_stem().is_some_and(|s| s.to_string_lossy().ends_with(APPENDIX_ENDING));
    paths.retain(|p| p.extension().is_some_and(|e| e == "txt") && !appendix(p));
    paths.sort();
    paths.iter().filter_map(|p| std::fs::read_to_string(p).ok()).collect()
}

/// Every file of an aggregation that a person wants.
pub(crate) fn result_files(dir: &Path) -> Vec<PathBuf> {
    let files = digest::files_below(dir).unwrap_or_default();
    let wanted = |path: &PathBuf| {
        let text = path.to_string_lossy();
        text.starts_with("tables/")
            || text.starts_with("figures/")
            || text.starts_with("documents/")
            || text.ends_with("summary.txt")
            || text.ends_with("results.json")
    };
    files.into_iter().filter(wanted).map(|f| dir.join(f)).collect()
}
