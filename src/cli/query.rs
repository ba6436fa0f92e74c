//! `seedbed query`: jq over results, and where a number of a table came from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::output::{self, Format as Facts};
use super::study::StudyArgs;
use super::{CliError, Result, merged};
use crate::record::exit;
use crate::record::run_h5::RUN_FILE;
use crate::report::query::{self, InputMode, Limits, Load, Query, Reading, RowFormat, Seals, Style};
use crate::report::sources;
use crate::report::table::{APPENDIX_ENDING, Grid, Partial};
use crate::stages::aggregate::{self, SPEC};
use crate::workflow::run::{Intent, Prepared, prepare};
use crate::workflow::submission::needs_of;

/// Ask results a question in the jq language.
///
/// One run.h5 or run directory gives its value tree, with "@meta", "@series", "@items" and "@file"
/// beside it; several, a directory of results, or a study file give an array of {key, meta, metrics}.
/// With --trace there is no filter: it prints where one number of a study's table came from.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "EXAMPLES:\n  seedbed query '.pile_test.baseline_pythia.perplexity' results/monotone/quick/evaluate/seed-42\n  seedbed query -r '.[] | select(.key.stage == \"uat\") | .key.seed' results/monotone/quick\n  seedbed query --csv 'map({seed: .key.seed} + .metrics)' configs/monotone.toml --profile quick\n  seedbed query --trace foundation/monotonic/perplexity configs/monotone.toml --profile quick\nThe manual is docs/query.md."
)]
pub(crate) struct Args {
    /// A jq filter (not with --trace), then run.h5 files, run directories, directories of results, one study file, or
    /// JSON files
    #[arg(required = true, value_name = "FILTER PATH")]
    words: Vec<PathBuf>,
    /// Profile of the study, if a study file is asked
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Where the study's results/ lies [default: beside configs/, else beside the study]
    #[arg(long, value_name = "DIR", env = "SEEDBED_ROOT")]
    root: Option<PathBuf>,
    /// Print where a number came from: its runs, their files, datasets, parameters, code, jobs and hosts
    #[arg(long, value_name = "TABLE/ROW/COLUMN", conflicts_with_all = ["null_input", "load", "all_arrays", "sealed"])]
    trace: Option<String>,
    /// Each output on one line
    #[arg(long, short, group = "style")]
    compact: bool,
    /// Texts without quotes
    #[arg(long, short, group = "style")]
    raw: bool,
    /// A line of comma-separated values for each output
    #[arg(long, group = "style")]
    csv: bool,
    /// A line of cells between tabs for each output
    #[arg(long, group = "style")]
    tsv: bool,
    /// A LaTeX table with a row for each output
    #[arg(long, group = "style")]
    latex: bool,
    /// json: all outputs as one JSON array
    #[arg(long, value_enum, group = "style")]
    format: Option<Facts>,
    /// Run the filter once on null; `input` and `inputs` read the values
    #[arg(long, short)]
    null_input: bool,
    /// Load this array although it has more than 10000 numbers, such as train_losses or @items.pile_test
    #[arg(long, value_name = "ARRAY")]
    load: Vec<String>,
    /// Load every array, and of several runs the series and items too
    #[arg(long)]
    all_arrays: bool,
    /// Refuse runs without a valid seal instead of warning
    #[arg(long)]
    sealed: bool,
    /// Most time that the filter may take, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time_s: u64,
    /// Most memory that the filter may take, MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(16..=16_777_216))]
    mem_mib: u64,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    match &args.trace {
        Some(number) => trace(args, number),
        None => ask(args),
    }
}

fn ask(args: &Args) -> Result<u8> {
    let [filter, paths @ ..] = args.words.as_slice() else { return Err(no_paths()) };
    let filter = filter.to_str().ok_or_else(|| CliError::Usage("the filter is not UTF-8".to_owned()))?;
    if paths.is_empty() {
        return Err(no_paths());
    }
    let load = match (args.all_arrays, args.load.is_empty()) {
        (true, _) => Load::All,
        (false, true) => Load::Small,
        (false, false) => Load::Paths(args.load.clone()),
    };
    let (paths, of_study) = match paths {
        [study] if is_study(study) => (sealed_cells(args, study)?, true),
        paths if paths.iter().any(|p| is_study(p)) => {
            return Err(CliError::Usage("a study file is asked alone: name it and no other path".to_owned()));
        }
        paths => (paths.to_vec(), false),
    };
    let seals = if args.sealed { Seals::Require } else { Seals::Warn };
    let query = Query {
        reading: Reading { seals, load, always_array: of_study },
        input: if args.null_input { InputMode::Null } else { InputMode::Each },
        limits: Limits { time: Duration::from_secs(args.time_s), mem_bytes: args.mem_mib << 20 },
        ..Query::new(filter, &paths, style(args))
    };
    let warnings = query::query(&query, &mut std::io::stdout())?;
    for warning in warnings {
        output::note(&format!("seedbed: warning: {warning}"));
    }
    Ok(exit::DONE)
}

fn no_paths() -> CliError {
    CliError::Usage(
        "a query needs a filter and what to ask: seedbed query '.loss' results/STUDY/PROFILE/STAGE/seed-42".to_owned(),
    )
}

fn style(args: &Args) -> Style {
    match (args.compact, args.raw, args.csv, args.tsv, args.latex, args.format) {
        (true, ..) => Style::Compact,
        (_, true, ..) => Style::Raw,
        (_, _, true, ..) => Style::Rows(RowFormat::Csv),
        (_, _, _, true, ..) => Style::Rows(RowFormat::Tsv),
        (_, _, _, _, true, _) => Style::Rows(RowFormat::Latex),
        (.., Some(Facts::Json)) => Style::Json,
        _ => Style::Pretty,
    }
}

fn is_study(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "toml")
}

/// The study with its seals. Nothing of it runs, and no Slurm is asked.
fn look(study: &StudyArgs) -> Result<Prepared> {
    Ok(prepare(&study.request(), Intent::Look)?)
}

/// The study that is meant, as other commands name one.
fn study_of(args: &Args, study: &Path) -> StudyArgs {
    let (profile, root) = (args.profile.clone(), args.root.clone());
    StudyArgs { study: study.to_path_buf(), profile, root, cluster: None, local: true }
}

/// The run directories of a study's sealed cells.
fn sealed_cells(args: &Args, study: &Path) -> Result<Vec<PathBuf>> {
    let prepared = look(&study_of(args, study))?;
    let (done, other): (Vec<_>, Vec<_>) = prepared.plan.cells.iter().partition(|c| c.state.is_done());
    let mut dirs: Vec<PathBuf> = done.iter().map(|c| prepared.place.run_dir(&c.def.key)).collect();
    dirs.retain(|dir| dir.join(RUN_FILE).is_file());
    dirs.sort();
    if dirs.is_empty() {
        return Err(CliError::Missing(format!(
            "no cell of study {} is sealed under profile {}: run `run_all {}`",
            prepared.study.name,
            prepared.study.profile,
            study.display()
        )));
    }
    if !other.is_empty() {
        let names: Vec<String> = other.iter().take(5).map(|c| c.def.key.local_name()).collect();
        let more = if other.len() > names.len() { ", ..." } else { "" };
        output::note(&format!(
            "seedbed: {} of {} are sealed and asked; not {}{more}",
            done.len(),
            output::plural(prepared.plan.cells.len(), "cell"),
            names.join(", ")
        ));
    }
    Ok(dirs)
}

fn trace(args: &Args, number: &str) -> Result<u8> {
    let [study] = args.words.as_slice() else {
        return Err(CliError::Usage("--trace takes one study file and no filter".to_owned()));
    };
    let parts: Vec<&str> = number.split('/').collect();
    let [table, row, column] = parts.as_slice() else {
        return Err(CliError::Usage(format!("`{number}` is no TABLE/ROW/COLUMN: say three keys with `/` between")));
    };
    if !is_study(study) {
        return Err(CliError::Usage(format!("`{}` is no study file: --trace reads a table of one", study.display())));
    }
    let study = study_of(args, study);
    let prepared = look(&study)?;
    let grid = grid_of(&study, &prepared, table)?;
    let results = prepared.place.root.join("results");
    let trace = sources::trace(&grid, row, column, &results).map_err(CliError::Usage)?;
    if args.format == Some(Facts::Json) {
        output::json(&trace)?;
    } else {
        output::text(&trace.to_text())?;
    }
    Ok(exit::DONE)
}

/// One table of a study, as it is from what is sealed now; what is missing is marked.
fn grid_of(study: &StudyArgs, prepared: &Prepared, table: &str) -> Result<Grid> {
    let key = |section: &serde_json::Value| section["key"].as_str().unwrap_or_default().to_owned();
    let all = &prepared.study.tables;
    // The table of every seed, an appendix, has a key of its own.
    let is_appendix =
        |s: &serde_json::Value| s["appendix"] == true && table.strip_suffix(APPENDIX_ENDING) == Some(key(s).as_str());
    let own = all.iter().filter(|s| key(s) == table || is_appendix(s));
    let sections: Vec<_> = own.cloned().collect();
    let unknown = || {
        let known: Vec<String> = all.iter().map(key).collect();
        CliError::Usage(if known.is_empty() {
            "the study has no [[table]]".to_owned()
        } else {
            format!("the study has no table `{table}`: its tables are {}", known.join(", "))
        })
    };
    if sections.is_empty() {
        return Err(unknown());
    }
    let cell = prepared.plan.cells.iter().find(|c| prepared.study.stages[c.def.stage].kind() == SPEC.kind);
    let needs = match cell {
        Some(cell) => needs_of(&prepared.study, &prepared.plan, &cell.def),
        None => merged::needs_of_tables(prepared),
    };
    let mut inputs = aggregate::collect(&needs, &prepared.place.base);
    merged::judge(prepared, &mut inputs, merged::Judge::Found);
    let (grids, problems) = merged::tables(study, prepared, &sections, &inputs, Some(Partial::Mark))?;
    if !problems.is_empty() {
        let lines: Vec<String> = problems.into_iter().map(|p| p.0).collect();
        return Err(CliError::Missing(lines.join("\n")));
    }
    grids.into_iter().find(|grid| grid.key == table).ok_or_else(unknown)
}
