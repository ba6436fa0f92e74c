//! The needed cells as an aggregation sees them: results, or why there are none.
//!
//! Of each run the metrics are read, in little room: a study may have 10,000 runs. Its series and items are read when
//! somebody asks for them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use chrono::NaiveDate;
use serde_json::Value;

use crate::record::decision::GATE_KIND;
use crate::record::run_h5::{ManyRuns, Metrics, NotRead, RUN_FILE};
use crate::record::seal::{SealedFile, Vouched};
use crate::record::{CellKey, Digest, Fingerprint, Name, Need, Outcome, RecordError, RunRecord, Seal};
use crate::report::query::{Tree, source};
use crate::report::table::{Expected, Run};

/// A needed cell.
#[derive(Debug, Clone)]
pub struct Input {
    /// Which cell.
    pub key: CellKey,
    /// Its stage kind.
    pub kind: String,
    /// Labels of its arm.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Its result, or why it is missing.
    pub run: Result<Found, String>,
}

/// The result of a needed cell.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it found, without times and hosts, series and items.
    pub metrics: Arc<Metrics>,
    /// Digest of its final parameters, if it made some.
    pub param_digest: Option<Digest>,
    /// What it was sealed with.
    pub fingerprint: Fingerprint,
    /// What it found.
    pub content: Digest,
    /// The UTC day on which it was sealed, if it was.
    pub day: Option<NaiveDate>,
    path: PathBuf,
    file: SealedFile,
    tree: OnceLock<Option<Value>>,
    record: OnceLock<Result<Box<RunRecord>, String>>,
}

/// So many runs are read faster by one thread than by two.
const RUNS_OF_A_READER: usize = 64;

/// More readers than this gain nothing.
const MOST_READERS: usize = 8;

/// Reads the needed cells but gates, which hand over no data: each is a result only with a valid seal of the planned
/// fingerprint, and if its `run.h5` is the one that was sealed.
pub fn collect(needs: &[Need], base: &Path) -> Vec<Input> {
    collect_sealed(needs, base, &|_| None)
}

/// As [`collect`], with series and items of every run: one of which these cannot be read is missing.
pub fn collect_whole(needs: &[Need], base: &Path) -> Vec<Input> {
    let mut inputs = collect(needs, base);
    for input in &mut inputs {
        if let Some(why) = input.run.as_ref().ok().and_then(|found| found.record().err()) {
            input.run = Err(why);
        }
    }
    inputs
}

/// As [`collect`]; `known` gives the seals that somebody has read already.
pub fn collect_sealed<'s>(
    needs: &[Need],
    base: &Path,
    known: &(dyn Fn(&Need) -> Option<&'s Seal> + Sync),
) -> Vec<Input> {
    let needs: Vec<&Need> = needs.iter().filter(|need| need.kind != GATE_KIND).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let readers = needs.len().div_ceil(RUNS_OF_A_READER).clamp(1, MOST_READERS.min(cores));
    let read_all = |needs: &[&Need]| -> Vec<Input> {
        let mut runs = ManyRuns::below(base);
        let input = |need: &&Need| Input {
            key: need.key.clone(),
            kind: need.kind.clone(),
            labels: need.labels.clone(),
            run: read(&base.join(&need.dir), need, known(need), &mut runs),
        };
        needs.iter().map(input).collect()
    };
    if readers == 1 {
        return read_all(&needs);
    }
    let share = needs.len().div_ceil(readers);
    std::thread::scope(|scope| {
        let readers: Vec<_> = needs.chunks(share).map(|needs| scope.spawn(|| read_all(needs))).collect();
        let joined = readers.into_iter().map(|r| r.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect()
    })
}

fn read(dir: &Path, need: &Need, known: Option<&Seal>, runs: &mut ManyRuns) -> Result<Found, String> {
    let vouched = match known {
        Some(seal) => Vouched::of(seal, RUN_FILE),
        // The path in the message would tell where this was made.
        None => match runs.vouched(dir).map_err(|_| "its seal is damaged or was edited")? {
            Some(vouched) => vouched,
            None => return Err("not sealed".to_owned()),
        },
    };
    if vouched.fingerprint != need.fingerprint {
        return Err("stale: sealed under other parameters".to_owned());
    }
    if vouched.outcome == Outcome::Stopped {
        return Err("stopped by a gate or kill criterion".to_owned());
    }
    let path = dir.join(RUN_FILE);
    let Some(file) = vouched.file else { return Err(format!("its {RUN_FILE} is not what was sealed")) };
    let run = runs.metrics(&path, &file).map_err(why)?;
    let mut found = Found {
        metrics: Arc::new(run.metrics),
        param_digest: run.param_digest,
        content: vouched.fingerprint.clone(),
        fingerprint: vouched.fingerprint,
        day: Some(vouched.sealed_at.date_naive()),
        path,
        file,
        tree: OnceLock::new(),
        record: OnceLock::new(),
    };
    found.content = match vouched.content {
        Some(content) => content,
        None => found.record()?.content_digest(),
    };
    Ok(found)
}

/// Why a run is missing, in words that do not say where it lies.
fn why(error: NotRead) -> String {
    match error {
        NotRead::Unreadable(_) => format!("its {RUN_FILE} cannot be read"),
        NotRead::Changed => format!("its {RUN_FILE} is not what was sealed"),
        NotRead::Bad(RecordError::Newer { found, known, .. }) => format!(
            "its {RUN_FILE} has format version {found}, this program reads up to {known}: use the newer Seedbed that wrote it"
        ),
        NotRead::Bad(_) => format!("its {RUN_FILE} is damaged"),
    }
}

impl Found {
    /// Of a run in memory.
    ///
    /// # Errors
    /// Its tree holds what `run.h5` cannot.
    pub fn of(record: RunRecord) -> Result<Self, RecordError> {
        let content = record.content_digest();
        Ok(Self {
            metrics: Arc::new(Metrics::of(&record.metrics)?),
            param_digest: record.param_digest.clone(),
            fingerprint: record.fingerprint.clone(),
            file: SealedFile { path: RUN_FILE.to_owned(), size_bytes: 0, digest: content.clone() },
            content,
            day: None,
            path: PathBuf::new(),
            tree: OnceLock::new(),
            record: OnceLock::from(Ok(Box::new(record))),
        })
    }

    /// The value tree, without times and hosts.
    pub fn tree(&self) -> Option<&Value> {
        self.tree.get_or_init(|| Metrics::tree(&self.metrics).ok()).as_ref()
    }

    /// The whole run with its series and items, read when it is asked for first.
    ///
    /// # Errors
    /// The file is not what was sealed any more, in words.
    pub fn record(&self) -> Result<&RunRecord, String> {
        self.record.get_or_init(|| self.read_record().map(Box::new)).as_deref().map_err(Clone::clone)
    }

    fn read_record(&self) -> Result<RunRecord, String> {
        ManyRuns::default().run(&self.path, &self.file).map_err(why)
    }
}

/// A run with its series and items, as a filter reads it: read each time it is asked, for nobody has room for those of a
/// whole study.
#[derive(Debug, Clone, Copy)]
pub struct WholeRun<'a>(pub &'a Found);

impl Tree for WholeRun<'_> {
    fn tree(&self) -> Result<Cow<'_, Value>, String> {
        match self.0.record.get() {
            Some(record) => record.as_deref().map(source::evidence).map(Cow::Owned).map_err(Clone::clone),
            None => self.0.read_record().map(|record| Cow::Owned(source::evidence(&record))),
        }
    }

    fn leaf(&self, _: &str, _: &mut usize) -> Option<Value> {
        None
    }
}

impl Input {
    /// The cell as tables take it. But for the day, only what does not depend on where and when it ran.
    pub fn expected(&self) -> Expected {
        let run = self.run.as_ref().map_err(Clone::clone).map(|found| Run {
            tree: found.metrics.clone(),
            fingerprint: found.fingerprint.clone(),
            content: found.content.clone(),
            day: found.day,
        });
        Expected { key: self.key.clone(), labels: self.labels.clone(), run }
    }

    /// The value tree, without times and hosts.
    pub(super) fn tree(&self) -> Option<&Value> {
        self.run.as_ref().ok().and_then(Found::tree)
    }
}

/// The cells of one arm (or of a study without arms) with its seeds.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) arm: Option<Name>,
    /// Ascending; `None` for a study without seeds.
    pub(super) seeds: Vec<Option<u32>>,
    inputs: Vec<&'a Input>,
}

/// One group for each arm of the cells, or one in all.
pub(super) fn groups(inputs: &[Input]) -> Vec<Group<'_>> {
    let arms: BTreeSet<Option<&Name>> = inputs.iter().filter_map(|i| i.key.arm.as_ref()).map(Some).collect();
    let arms = if arms.is_empty() { BTreeSet::from([None]) } else { arms };
    arms.into_iter()
        .map(|arm| {
            let mine: Vec<&Input> =
                inputs.iter().filter(|i| i.key.arm.is_none() || i.key.arm.as_ref() == arm).collect();
            let seeds: BTreeSet<Option<u32>> = mine.iter().filter_map(|i| i.key.seed).map(Some).collect();
            let seeds = if seeds.is_empty() { vec![None] } else { seeds.into_iter().collect() };
            Group { arm: arm.cloned(), seeds, inputs: mine }
        })
        .collect()
}

impl<'a> Group<'a> {
    /// Cells that a seed has or shares.
    pub(super) fn cells(&self, seed: Option<u32>) -> impl Iterator<Item = &'a Input> {
        self.inputs.iter().copied().filter(move |i| i.key.seed.is_none() || i.key.seed == seed)
    }

    /// Missing cells of a seed, each with its reason.
    pub(super) fn missing(&self, seed: Option<u32>) -> Vec<String> {
        self.cells(seed)
            .filter_map(|i| i.run.as_ref().err().map(|why| format!("{}: {why}", i.key.local_name())))
            .collect()
    }

    /// The tree of the one cell of a kind, for a seed.
    pub(super) fn of_kind(&self, kind: &str, seed: Option<u32>) -> Option<&'a Value> {
        let mut found = self.cells(seed).filter(|i| i.kind == kind);
        match (found.next(), found.next()) {
            (Some(one), None) => one.tree(),
            _ => None,
        }
    }

    /// The tree of a stage, for a seed.
    pub(super) fn of_stage(&self, stage: &str, seed: Option<u32>) -> Option<&'a Value> {
        self.cells(seed).find(|i| i.key.stage.as_str() == stage).and_then(Input::tree)
    }

    /// Directory below the run directory: the arm's, if there are arms.
    pub(super) fn dir(&self) -> PathBuf {
        self.arm.as_ref().map(|a| PathBuf::from(a.as_str())).unwrap_or_default()
    }

    /// Study, profile and arm, for headings.
    pub(super) fn title(&self, key: &CellKey) -> String {
        let arm = self.arm.as_ref().map(|a| format!(", arm {a}")).unwrap_or_default();
        format!("{} / {}{arm}", key.study, key.profile)
    }
}
