//! Where the numbers of a table came from: runs, their files, datasets, parameters, code, jobs and hosts.
//!
//! A table's own files carry only what is the same wherever it is made: of each run its key, fingerprint and content
//! digest. What stands here is read from the seals beside the results, names hosts and jobs, and stays in the house: it
//! is never among the files of `tables/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::record::run_h5::RUN_FILE;
use crate::record::{CellKey, Digest, Fingerprint, Origin, Seal};
use crate::report::render::visible;
use crate::report::table::{Grid, GridCell, Printed, RunRef};

/// Format version of a table's sources.
pub const SOURCES_VERSION: u32 = 1;

/// The sources of a whole table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sources {
    /// [`SOURCES_VERSION`].
    pub version: u32,
    /// Key of the table.
    pub table: String,
    /// How its numbers were made.
    pub signature: String,
    /// Every run behind it, each once.
    pub runs: Vec<RunSource>,
    /// For every cell the runs behind it, as indices into `runs`.
    pub cells: Vec<CellSource>,
}

/// The runs behind a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CellSource {
    /// Key of its row.
    pub row: String,
    /// Key of its column.
    pub column: String,
    /// Indices into [`Sources::runs`].
    pub runs: Vec<usize>,
}

/// A run, with what its seal says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSource {
    /// `study/profile/stage[/arm][/seed-<n>]`.
    pub run: String,
    /// What made it.
    pub fingerprint: Fingerprint,
    /// What it found.
    pub content: Digest,
    /// What its seal says; absent if the seal that the number was made from is no longer there.
    pub seal: Option<SealSource>,
}

/// What a seal says of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SealSource {
    /// `run.h5`, below the root.
    pub file: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// Its digest.
    pub file_digest: Digest,
    /// Digest of the parameters.
    pub params: Digest,
    /// External inputs of the run and of every cell that it was made from.
    pub datasets: Vec<Dataset>,
    /// Version and revision of the program.
    pub code: String,
    /// Run here, or imported.
    pub origin: Origin,
    /// Slurm jobs of all attempts; empty for local ones.
    pub jobs: Vec<String>,
    /// The attempt that sealed.
    pub attempt: u32,
    /// Its host.
    pub host: String,
    /// When it was sealed.
    pub sealed_at: DateTime<Utc>,
}

/// An external input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Dataset {
    /// The cell that read it.
    pub cell: String,
    /// Its declared name.
    pub name: String,
    /// Digest of its content.
    pub digest: Digest,
}

/// One number with everything behind it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trace {
    /// [`SOURCES_VERSION`].
    pub version: u32,
    /// Key of the table.
    pub table: String,
    /// Key of the row.
    pub row: String,
    /// Key of the column.
    pub column: String,
    /// What is printed.
    pub printed: String,
    /// The cell as the table's JSON has it.
    pub cell: GridCell,
    /// How the numbers were made.
    pub signature: String,
    /// The runs behind it.
    pub runs: Vec<RunSource>,
}

/// The sources of every cell of a table. `results` is `<root>/results`.
pub fn of_grid(grid: &Grid, results: &Path) -> Sources {
    let mut shelf = Shelf::new(results);
    let every: BTreeSet<&RunRef> =
        grid.rows.iter().flat_map(|r| &r.cells).flat_map(|c| &c.runs).map(|run| &**run).collect();
    let index: BTreeMap<&RunRef, usize> = every.iter().enumerate().map(|(i, run)| (*run, i)).collect();
    let mut cells = Vec::new();
    for row in &grid.rows {
        for (column, cell) in grid.columns.iter().zip(&row.cells) {
            let runs = cell.runs.iter().filter_map(|run| index.get(&**run).copied()).collect();
            cells.push(CellSource { row: row.key.clone(), column: column.key.clone(), runs });
        }
    }
    Sources {
        version: SOURCES_VERSION,
        table: grid.key.clone(),
        signature: grid.signature.clone(),
        runs: every.into_iter().map(|run| shelf.source(run)).collect(),
        cells,
    }
}

/// The sources of one cell.
///
/// # Errors
/// The table has no such row or column: says which it has.
pub fn trace(grid: &Grid, row: &str, column: &str, results: &Path) -> Result<Trace, String> {
    let names = |what: &str, wanted: &str, known: Vec<&str>| {
        format!("table `{}` has no {what} `{wanted}`: it has {}", grid.key, known.join(", "))
    };
    let found_row = grid
        .rows
        .iter()
        .find(|r| r.key == row)
        .ok_or_else(|| names("row", row, grid.rows.iter().map(|r| r.key.as_str()).collect()))?;
    let cell = grid
        .columns
        .iter()
        .position(|c| c.key == column)
        .and_then(|i| found_row.cells.get(i))
        .ok_or_else(|| names("column", column, grid.columns.iter().map(|c| c.key.as_str()).collect()))?;
    let mut shelf = Shelf::new(results);
    Ok(Trace {
        version: SOURCES_VERSION,
        table: grid.key.clone(),
        row: row.to_owned(),
        column: column.to_owned(),
        printed: printed(&cell.printed),
        cell: cell.clone(),
        signature: grid.signature.clone(),
        runs: cell.runs.iter().map(|run| shelf.source(run)).collect(),
    })
}

/// What a cell prints, on one line.
fn printed(printed: &Printed) -> String {
    match printed {
        Printed::Number { text, spread: None } | Printed::Text(text) => text.clone(),
        Printed::Number { text, spread: Some(spread) } => format!("{text} ± {spread}"),
        Printed::Interval { text, lower, upper } => format!("{text} [{lower}, {upper}]"),
        Printed::Values(values) => values.join(", "),
        Printed::Reference => "reference".to_owned(),
        Printed::Missing => "n/a".to_owned(),
    }
}

/// Seals, each read once.
struct Shelf<'a> {
    results: &'a Path,
    seals: BTreeMap<PathBuf, Option<Seal>>,
}

impl<'a> Shelf<'a> {
    fn new(results: &'a Path) -> Self {
        Self { results, seals: BTreeMap::new() }
    }

    /// The seal in a directory below the results, if it vouches for that fingerprint.
    fn seal(&mut self, dir: &Path, fingerprint: &Fingerprint) -> Option<Seal> {
        let results = self.results;
        let seal = self.seals.entry(dir.to_path_buf()).or_insert_with(|| Seal::read(&results.join(dir)).ok().flatten());
        seal.as_ref().filter(|seal| seal.fingerprint == *fingerprint).cloned()
    }

    fn source(&mut self, run: &RunRef) -> RunSource {
        let name = run.key.to_string();
        let seal = self.seal(Path::new(&name), &run.fingerprint);
        let seal = seal.and_then(|seal| {
            let file = seal.output(RUN_FILE)?.clone();
            let mut datasets = BTreeSet::new();
            self.datasets(&run.key, &seal, &mut BTreeSet::new(), &mut datasets);
            Some(SealSource {
                file: Path::new("results").join(&name).join(RUN_FILE),
                size_bytes: file.size_bytes,
                file_digest: file.digest,
                params: Digest::of_json(&seal.source.params),
                datasets: datasets.into_iter().collect(),
                code: seal.code,
                origin: seal.origin,
                jobs: seal.jobs,
                attempt: seal.attempt,
                host: seal.host,
                sealed_at: seal.sealed_at,
            })
        });
        RunSource { run: name, fingerprint: run.fingerprint.clone(), content: run.content.clone(), seal }
    }

    /// The inputs of a cell and of all that it was made from.
    fn datasets(&mut self, key: &CellKey, seal: &Seal, seen: &mut BTreeSet<String>, found: &mut BTreeSet<Dataset>) {
        let cell = key.to_string();
        if !seen.insert(cell.clone()) {
            return;
        }
        for (name, digest) in &seal.source.inputs {
            found.insert(Dataset { cell: cell.clone(), name: name.clone(), digest: digest.clone() });
        }
        for (need, fingerprint) in &seal.source.needs {
            // Of this study by its local name, of another by its whole key.
            let here = Path::new(key.study.as_str()).join(key.profile.as_str()).join(need);
            let parent = self.seal(&here, fingerprint).or_else(|| self.seal(Path::new(need), fingerprint));
            if let Some(parent) = parent {
                self.datasets(&parent.key.clone(), &parent, seen, found);
            }
        }
    }
}

impl Trace {
    /// For people.
    pub fn to_text(&self) -> String {
        let mut out = format!("{} / {} / {}\n", self.table, self.row, self.column);
        let mut line = |label: &str, text: String| out.push_str(&format!("{label:<12} {}\n", visible(&text)));
        let cell = &self.cell;
        line("printed", self.printed.clone());
        if let Some(value) = cell.value {
            line("value", format!("{value:?} from {} of {} runs", cell.n, cell.n_expected));
        }
        if let Some(sd) = cell.sd {
            line("sd", format!("{sd:?}"));
        }
        if let Some(interval) = cell.interval {
            line("interval", format!("{:?} to {:?}", interval.lower, interval.upper));
        }
        if let Some(why) = &cell.degenerate {
            line("no spread", why.clone());
        }
        for value in &cell.values {
            let seed = value.seed.map_or_else(|| "no seed".to_owned(), |seed| format!("seed {seed}"));
            line("", format!("{seed}: {:?}", value.value));
        }
        for missing in &cell.missing {
            line("missing", format!("{}: {}", missing.cell, missing.reason));
        }
        line("made by", self.signature.clone());
        for run in &self.runs {
            line("run", run.run.clone());
            line("  made from", run.fingerprint.to_string());
            line("  content", run.content.to_string());
            let Some(seal) = &run.seal else {
                line("  seal", "no longer there, or of another fingerprint: run `seedbed plan`".to_owned());
                continue;
            };
            line("  file", format!("{} ({} bytes)", seal.file.display(), seal.size_bytes));
            line("  digest", seal.file_digest.to_string());
            line("  parameters", seal.params.to_string());
            for dataset in &seal.datasets {
                line("  dataset", format!("{} {} of {}", dataset.digest, dataset.name, dataset.cell));
            }
            line("  code", seal.code.clone());
            let jobs = if seal.jobs.is_empty() { "none, local".to_owned() } else { seal.jobs.join(", ") };
            line("  jobs", jobs);
            line("  host", format!("{}, attempt {}, sealed {}", seal.host, seal.attempt, seal.sealed_at.to_rfc3339()));
        }
        out
    }
}
