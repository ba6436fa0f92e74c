//! Stage kind `aggregate`: what a study found, for each seed and over all of them.
//!
//! For each complete seed it writes `seed-<n>/final_results.json` and `seed-<n>/experiment_summary.txt`
//! (below the arm's name where the study has arms); over all seeds `multi_seed_results.json`,
//! `multi_seed_summary.txt`, `tables/<key>.{tex,md,csv,html,json,txt}`, `figures/<key>.{svg,png,csv}` and
//! `documents/<key>.{md,json}`. A study without `models` has tables, figures and documents only. A missing or stale seed is
//! an error that
//! names it, exit 66: what is complete has been written by then, and nothing is sealed. With
//! `partial = "mark"` the tables are written too, marked.
//!
//! Nothing that is written depends on where or when it was made: two runs give the same bytes. Numbers come
//! from sealed `run.h5` files only. Needs no tensors.

mod documents;
mod figures;
mod findings;
mod inputs;
mod out;
mod over_seeds;
mod summary;

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

pub use documents::{documents, write_documents};
pub use figures::{figures, write_figures};
pub use inputs::{Found, Input, WholeRun, collect, collect_sealed, collect_whole};
pub use out::{Compared, Difference, Out};

use super::context::{Context, StageError};
use super::spec::{Field, FieldType, Preset, Role, Spec};
use super::subjects::{MODELS, check_models};
use crate::record::{CellKey, RecordError, RunRecord, run_h5};
use crate::report::query::{Job, Limits, Tree, evaluate};
use crate::report::render::{Format, render};
use crate::report::stats::{self, Answer, Bootstrap, Resampling};
use crate::report::table::{Expected, Grid, Partial, Reads, TableProblem, TableSpec, grids_with, requests};

/// Directory of the tables below the run directory.
const TABLES_DIR: &str = "tables";

/// The page over all seeds.
const SUMMARY_FILE: &str = "multi_seed_summary.txt";

const fn limit(name: &'static str, preset: &'static str, help: &'static str) -> Field {
    let ty = FieldType::Number { min: -1e9, max: 1e9 };
    Field { name, ty, preset: Preset::Is(preset), role: Role::Semantic, help }
}

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "aggregate",
    version: 2,
    binary: "seedbed-aggregate",
    resumable: false,
    parallel: false,
    partial_inputs: true,
    needs: &[],
    outputs: &[SUMMARY_FILE],
    export: Some("multi_seed_results.json"),
    help: "results of each seed, over all seeds, and the study's tables",
    fields: &[
        MODELS,
        Field {
            name: "baseline",
            ty: FieldType::Text,
            preset: Preset::Is(r#""baseline_pythia""#),
            role: Role::Semantic,
            help: "the model that the other is compared with, a name in `models`",
        },
        Field {
            name: "treated",
            ty: FieldType::Text,
            preset: Preset::Is(r#""monotonic_pythia""#),
            role: Role::Semantic,
            help: "the model that is compared, a name in `models`",
        },
        Field {
            name: "partial",
            ty: FieldType::OneOf(&["error", "mark"]),
            preset: Preset::Is(r#""error""#),
            role: Role::Semantic,
            help: "with missing seeds: no tables, or marked ones (never sealed)",
        },
        limit("max_gap_percent", "15", "outcome: the perplexity gap is below this, percent"),
        limit("min_reduction_percent", "40", "outcome: the reduction of attack success is above this, percent"),
        limit("usual_perplexity_min", "8", "warning: a perplexity below this, 1"),
        limit("usual_perplexity_max", "20", "warning: a perplexity above this, 1"),
        limit("weak_attack_percent", "10", "warning: an attack that succeeds less often than this, percent"),
        limit("pattern_max_gap_percent", "20", "warning: a perplexity gap above this, percent"),
        limit("pattern_min_reduction_percent", "30", "warning: a reduction below this, percent"),
        Field {
            name: "tables",
            ty: FieldType::Tables,
            preset: Preset::Is("[]"),
            role: Role::Semantic,
            help: "the study's `[[table]]` sections",
        },
        Field {
            name: "figures",
            ty: FieldType::Figures,
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "the study's `[[figure]]` sections; absent: those that every study has",
        },
        Field {
            name: "documents",
            ty: FieldType::Documents,
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "the study's `[[document]]` sections",
        },
    ],
    check,
};

fn check(params: &Value) -> Vec<String> {
    let Some(models) = params.get("models").and_then(Value::as_object) else { return Vec::new() };
    // A study without models of ours has tables and documents only.
    if models.is_empty() {
        return Vec::new();
    }
    let mut problems = check_models(params);
    for key in ["baseline", "treated"] {
        if let Some(name) = params.get(key).and_then(Value::as_str).filter(|n| !models.contains_key(*n)) {
            let known: Vec<&str> = models.keys().map(String::as_str).collect();
            problems.push(format!("`{key}` is `{name}`, which is not in `models`: use one of {}", known.join(", ")));
        }
    }
    if params.get("baseline").is_some() && params.get("baseline") == params.get("treated") {
        problems.push("`treated` is the same model as `baseline`: name another".to_owned());
    }
    problems
}

/// The parameters, resolved.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Params {
    pub(crate) models: std::collections::BTreeMap<String, String>,
    pub(crate) baseline: String,
    pub(crate) treated: String,
    pub(crate) partial: String,
    #[serde(flatten)]
    pub(crate) limits: findings::CriteriaLimits,
    #[serde(default)]
    pub(crate) tables: Vec<Value>,
    #[serde(default)]
    pub(crate) figures: Vec<Value>,
    #[serde(default)]
    pub(crate) documents: Vec<Value>,
}

impl Params {
    fn model_names(&self) -> Vec<&str> {
        self.models.keys().map(String::as_str).collect()
    }
}

/// Aggregates what the needed cells found.
///
/// # Errors
/// A seed that is not complete ([`StageError::Missing`], after everything else is written), a table that
/// cannot be made, or a file that cannot be written.
pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
    let params: Params = context.params()?;
    let inputs = collect(&context.cell.needs, &context.cell.base);
    let (metrics, grids) = make(&mut Out::below(&context.out_dir), &params, &inputs, &context.cell.key)?;
    for grid in grids.iter().filter(|grid| !grid.is_appendix()) {
        eprintln!("{}", render(grid, Format::Text));
    }
    Ok(Some(RunRecord { metrics, ..RunRecord::new(&context.cell) }))
}

/// Makes anew what the aggregation `key` wrote into its run directory `dir`, and compares. Writes nothing.
///
/// # Errors
/// As [`run`]; a file cannot be read.
pub fn verify(dir: &Path, params: &Value, inputs: &[Input], key: &CellKey) -> Result<Compared, StageError> {
    let params: Params = serde_json::from_value(params.clone())
        .map_err(|e| StageError::Usage(format!("the parameters of {key} are not those of an aggregation: {e}")))?;
    let mut out = Out::against(dir);
    let (metrics, _) = make(&mut out, &params, inputs, key)?;
    if let Some(export) = SPEC.export {
        out.put_json(Path::new(export), &metrics)?;
    }
    let mut compared = out.compared(&[TABLES_DIR, figures::FIGURES_DIR, documents::DOCUMENTS_DIR])?;
    let run_file = Path::new(run_h5::RUN_FILE);
    compared.made.insert(run_file.to_owned());
    match run_h5::read_run(&dir.join(run_file)) {
        Ok(there) => {
            let made = RunRecord { metrics, ..there.clone() };
            if made.content_digest() != there.content_digest() {
                compared.differ(run_file, "has other numbers than are found");
            }
        }
        Err(e) if e.is_not_found() => compared.differ(run_file, "is not there"),
        Err(e) => compared.differ(run_file, e.to_string()),
    }
    Ok(compared)
}

/// Makes every file but `run.h5` and its export; gives the value tree and the tables.
fn make(out: &mut Out<'_>, params: &Params, inputs: &[Input], key: &CellKey) -> Result<(Value, Vec<Grid>), StageError> {
    let Seeds { metrics, mut missing, text } = write_seeds(out, params, inputs, key)?;
    if !missing.is_empty() && params.partial == "mark" {
        let (grids, mut problems) = tables(&own_tables(&params.tables), inputs, Some(Partial::Mark));
        write_tables(out, &grids)?;
        let (made, more) = figures(&params.figures, &params.model_names(), inputs, &grids);
        write_figures(out, &made)?;
        problems.extend(more);
        let (made, more) = documents(&params.documents, inputs, Partial::Mark);
        write_documents(out, &made)?;
        for problem in problems.into_iter().map(|p| p.0).chain(more) {
            eprintln!("{problem}");
        }
    }
    if !missing.is_empty() {
        missing.sort();
        let marked =
            if params.partial == "mark" { "the tables are marked and not sealed" } else { "no table was made" };
        return Err(StageError::Missing(format!(
            "{} of {} needed cells are missing, {marked}: run `run_all` to finish them\n  {}",
            missing.len(),
            inputs.len(),
            missing.join("\n  ")
        )));
    }
    let (grids, mut problems) = tables(&own_tables(&params.tables), inputs, None);
    let (drawn, more) = figures(&params.figures, &params.model_names(), inputs, &grids);
    problems.extend(more);
    let (made, more) = documents(&params.documents, inputs, Partial::Error);
    if !problems.is_empty() || !more.is_empty() {
        let lines: Vec<String> = problems.into_iter().map(|p| p.0).chain(more).collect();
        return Err(StageError::BadOutput(lines.join("\n")));
    }
    write_tables(out, &grids)?;
    write_figures(out, &drawn)?;
    write_documents(out, &made)?;
    out.put(Path::new(SUMMARY_FILE), text.as_bytes())?;
    Ok((metrics, grids))
}

/// What is found over seeds.
struct Seeds {
    /// The value tree of the aggregation.
    metrics: Value,
    /// Missing cells, each with its reason.
    missing: Vec<String>,
    /// The page over all seeds.
    text: String,
}

/// Writes the results and the page of each complete seed, and gives those over all of them. A study without `models`
/// has none of these: only its cells are counted.
fn write_seeds(out: &mut Out<'_>, params: &Params, inputs: &[Input], key: &CellKey) -> Result<Seeds, RecordError> {
    let mut missing: Vec<String> = Vec::new();
    let mut by_arm = serde_json::Map::new();
    let mut metrics = json!({"num_cells": inputs.len()});
    let mut texts = Vec::new();
    for group in &inputs::groups(inputs) {
        let mut complete = Vec::new();
        for seed in &group.seeds {
            let lost = group.missing(*seed);
            if lost.is_empty() && !params.models.is_empty() {
                let found = findings::of_seed(group, *seed, params, key);
                let dir = Path::new(&group.dir()).join(seed.map_or("all".to_owned(), |s| format!("seed-{s}")));
                out.put_json(&dir.join("final_results.json"), &found)?;
                let text = summary::of_seed(&found, params);
                out.put(&dir.join("experiment_summary.txt"), text.as_bytes())?;
                complete.push((*seed, found));
            }
            missing.extend(lost.into_iter().filter(|l| !missing.contains(l)).collect::<Vec<_>>());
        }
        if params.models.is_empty() {
            continue;
        }
        let results = over_seeds::results(&complete, group.seeds.len(), params);
        texts.push(summary::over_seeds(&group.title(key), &results, params));
        match &group.arm {
            Some(arm) => by_arm.insert(arm.to_string(), results),
            None => {
                metrics = results;
                None
            }
        };
    }
    if !by_arm.is_empty() {
        metrics = json!({"arms": by_arm});
    }
    if params.models.is_empty() {
        texts.push(summary::of_cells(key, inputs.len(), missing.len()));
    }
    Ok(Seeds { metrics, missing, text: texts.join("\n") })
}

/// As the stage does: the results and the page of each complete seed, and the page over all of them.
///
/// # Errors
/// The parameters are not those of an aggregation, or a file cannot be written.
pub fn write_summaries(out: &mut Out<'_>, params: &Value, inputs: &[Input], key: &CellKey) -> Result<(), RecordError> {
    let params: Params =
        serde_json::from_value(params.clone()).map_err(|e| RecordError::Value(format!("parameters of {key}: {e}")))?;
    let seeds = write_seeds(out, &params, inputs, key)?;
    out.put(Path::new(SUMMARY_FILE), seeds.text.as_bytes())
}

/// Every table that can be made of what is there, and what keeps the others from being made. `partial`
/// overrides what the tables say about missing runs.
pub fn tables(sections: &[Value], inputs: &[Input], partial: Option<Partial>) -> (Vec<Grid>, Vec<TableProblem>) {
    let (mut made, mut problems) = (Vec::new(), Vec::new());
    let expected: Vec<Expected> = inputs.iter().map(Input::expected).collect();
    let stages: std::collections::BTreeSet<&str> = inputs.iter().map(|i| i.key.stage.as_str()).collect();
    let stages: Vec<&str> = stages.into_iter().collect();
    for section in sections {
        let mut spec = match TableSpec::parse(section, &stages) {
            Ok(spec) => spec,
            Err(found) => {
                let name = section.get("key").and_then(Value::as_str).unwrap_or("without a key");
                problems.extend(found.into_iter().map(|p| TableProblem(format!("table {name}: {}", p.message))));
                continue;
            }
        };
        if let Some(partial) = partial {
            spec.partial = partial;
        }
        let requests = requests(&spec, &expected);
        let whole: Vec<Option<WholeRun<'_>>> =
            inputs.iter().map(|input| input.run.as_ref().ok().map(WholeRun)).collect();
        let jobs: Vec<Job<'_>> = requests
            .iter()
            .filter_map(|r| {
                let input: &dyn Tree = match r.reads {
                    Reads::Metrics => &expected.get(r.cell)?.run.as_ref().ok()?.tree,
                    Reads::Whole => whole.get(r.cell)?.as_ref()?,
                };
                Some(Job { code: &r.metric, input, row: &r.row_value })
            })
            .collect();
        match grids_with(&spec, &expected, &evaluate(&jobs, Limits::default()), &resample) {
            Ok(found) => made.extend(found),
            Err(found) => problems.extend(found),
        }
    }
    (made, problems)
}

/// [`stats::bootstrap_means`] by as many threads as there are cores. The numbers are the same.
fn resample(samples: &[Resampling<'_>]) -> Vec<Answer<Bootstrap>> {
    let threads =
        std::thread::available_parallelism().map_or(1, usize::from).min(samples.len().div_ceil(SAMPLES_OF_A_THREAD));
    if threads < 2 {
        return stats::bootstrap_means(samples);
    }
    std::thread::scope(|scope| {
        let shares = samples.chunks(samples.len().div_ceil(threads));
        let threads: Vec<_> = shares.map(|share| scope.spawn(|| stats::bootstrap_means(share))).collect();
        let joined = threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect()
    })
}

/// So few samples are resampled faster by one thread than by two.
const SAMPLES_OF_A_THREAD: usize = 8;

/// Whether a `[[table]]` reads cells of several studies. A cell of one study cannot: it knows its own needs only.
pub fn reads_studies(section: &Value) -> bool {
    section.get("studies").and_then(Value::as_array).is_some_and(|studies| !studies.is_empty())
}

/// The tables that an aggregation makes; the others are named, with who makes them.
fn own_tables(sections: &[Value]) -> Vec<Value> {
    let (others, own): (Vec<Value>, Vec<Value>) = sections.iter().cloned().partition(reads_studies);
    for section in others {
        let key = section.get("key").and_then(Value::as_str).unwrap_or("without a key");
        eprintln!("table {key} reads several studies: `seedbed aggregate` makes it");
    }
    own
}

/// Writes every table in every format below `tables/`.
///
/// # Errors
/// A file cannot be written.
pub fn write_tables(out: &mut Out<'_>, grids: &[Grid]) -> Result<(), RecordError> {
    for grid in grids {
        for format in Format::FILES {
            let path = Path::new(TABLES_DIR).join(format!("{}.{}", grid.key, format.extension()));
            out.put(&path, render(grid, format).as_bytes())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
