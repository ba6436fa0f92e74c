//! Every attempt that left a record, those of other parameters in `.superseded/` too, with the devices that it held.
//! Only looks. What cannot be read is named and left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};

use crate::record::seal::INVALID_FILE;
use crate::record::{AttemptEnd, AttemptStart, Cell, Name, Seal, attempt};
use crate::workflow::bill;
use crate::workflow::submission::Submission;

/// How long after its time limit an attempt without an end may still be said to run: two hosts' clocks differ.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(10);

/// Depth of a run directory below the study's: stage, arm, seed.
const DEEPEST: usize = 3;

/// One attempt, as its files tell.
#[derive(Debug, Clone)]
pub struct Attempted {
    /// The claim.
    pub start: AttemptStart,
    /// The end; absent while it runs, and for ever if it was killed.
    pub end: Option<AttemptEnd>,
    /// Seconds that it lived at least, by its heartbeat.
    pub beat_s: f64,
    /// Whether a later attempt of the same run directory claimed the cell.
    pub later: bool,
    /// Whether its results were set aside, withdrawn, or belong to a seal of another attempt.
    pub void: bool,
    /// Whether the run directory's seal is its own.
    pub sealed: bool,
    /// What it held.
    pub held: Held,
}

/// What the cells of one stage of one submission hold.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Held {
    /// GPUs.
    pub gpus: u32,
    /// Cores.
    pub cores: u32,
    /// Time limit of an attempt, seconds.
    pub limit_s: u64,
    /// Whether the stage goes on from a checkpoint.
    pub resumable: bool,
}

impl Held {
    fn of(cell: &Cell) -> Self {
        Self {
            gpus: bill::gpus(&cell.resources),
            cores: bill::cores(&cell.resources),
            limit_s: cell.resources.time_s,
            resumable: cell.resumable,
        }
    }
}

impl Attempted {
    /// The cell's local name.
    pub fn cell(&self) -> String {
        self.start.key.local_name()
    }

    /// Seconds that it ran; at least those, where it has not said its end.
    pub fn wall_s(&self) -> f64 {
        self.end.as_ref().map_or(self.beat_s, |end| end.wall_s)
    }

    /// Whether it may still be running: it has said no end, no later one has taken the cell, and its time is not over.
    pub fn is_open(&self, now: DateTime<Utc>) -> bool {
        let limit = TimeDelta::try_seconds(i64::try_from(self.held.limit_s).unwrap_or(0)).unwrap_or_default();
        self.end.is_none() && !self.later && now < self.start.started_at + limit + CLOCKS_DIFFER
    }
}

/// Every attempt below `base` (`<root>/results/<study>/<profile>`), by cell and number, and what could not be read.
pub fn all(base: &Path) -> (Vec<Attempted>, Vec<String>) {
    let mut reader =
        Reader { own: base.join(".seedbed"), held: BTreeMap::new(), beats: BTreeMap::new(), notes: vec![] };
    let mut found = Vec::new();
    for dir in run_dirs(base, base) {
        found.extend(reader.attempts(&dir, false));
    }
    for dir in run_dirs(base, &base.join(".superseded")) {
        found.extend(reader.attempts(&dir, true));
    }
    let key = |a: &Attempted| (a.start.key.clone(), a.start.started_at, a.start.attempt);
    found.sort_by_cached_key(key);
    (found, reader.notes)
}

/// Directories with attempts below `top`.
fn run_dirs(base: &Path, top: &Path) -> Vec<PathBuf> {
    fn visit(base: &Path, dir: &Path, left: usize, found: &mut Vec<PathBuf>) {
        if dir != base && dir.join("attempts").is_dir() {
            found.push(dir.to_path_buf());
        }
        if left == 0 {
            return;
        }
        // A directory that cannot be listed holds no attempts that can be counted.
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let other = ["attempts", "checkpoints", "flags", "logs"].contains(&&*name) || name.starts_with('.');
            if !other && entry.file_type().is_ok_and(|t| t.is_dir()) {
                visit(base, &entry.path(), left - 1, found);
            }
        }
    }
    let mut found = Vec::new();
    // What is set aside lies one deeper: by fingerprint.
    visit(base, top, if top == base { DEEPEST } else { DEEPEST + 1 }, &mut found);
    found.sort();
    found
}

/// Reads run directories, and what it needs of submissions once.
struct Reader {
    own: PathBuf,
    held: BTreeMap<(String, Name), Option<Held>>,
    beats: BTreeMap<String, u64>,
    notes: Vec<String>,
}

impl Reader {
    fn attempts(&mut self, run_dir: &Path, superseded: bool) -> Vec<Attempted> {
        let seal = Seal::read(run_dir).ok().flatten();
        let withdrawn = run_dir.join(INVALID_FILE).exists();
        let last = match attempt::last(run_dir) {
            Ok(last) => last,
            Err(error) => {
                self.notes.push(format!("{error}: its attempts are not counted"));
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for n in 1..=last {
            let start = match attempt::read_start(run_dir, n) {
                Ok(start) => start,
                Err(error) if error.is_not_found() => continue,
                Err(error) => {
                    self.notes.push(format!("{error}: the attempt is not counted"));
                    continue;
                }
            };
            let end = attempt::read_end(run_dir, n).unwrap_or_else(|error| {
                self.notes.push(format!("{error}: the attempt counts as one without an end"));
                None
            });
            let beats = attempt::read_beat(run_dir, n).unwrap_or(0).saturating_sub(1);
            let beat_s = if end.is_none() && beats > 0 { beats * self.beat_s(&start.submission) } else { 0 };
            let sealed = seal.as_ref().is_some_and(|seal| seal.attempt == n);
            // One that has sealed, and whose seal is there no more, was done over.
            let once = end.as_ref().is_some_and(|end| end.exit_code == 0) && !sealed;
            found.push(Attempted {
                held: self.held(&start, run_dir),
                end,
                beat_s: beat_s as f64,
                later: n < last,
                void: superseded || withdrawn || once,
                sealed,
                start,
            });
        }
        found
    }

    /// What an attempt held: by its submission, else by the cell in the run directory.
    fn held(&mut self, start: &AttemptStart, run_dir: &Path) -> Held {
        let key = (start.submission.clone(), start.key.stage.clone());
        if let Some(held) = self.held.get(&key) {
            return held.unwrap_or_default();
        }
        let dir = self.own.join("submissions").join(&start.submission);
        let told = Submission::read(&dir).and_then(|told| told.cell_named(&dir, &start.key.local_name())).ok();
        let held = told.or_else(|| Cell::read(&run_dir.join("cell.toml")).ok()).map(|cell| Held::of(&cell));
        if held.is_none() {
            self.notes.push(format!(
                "nobody knows what the attempts of stage {} in submission {} held: they count no devices",
                key.1, key.0
            ));
        }
        self.held.insert(key, held);
        held.unwrap_or_default()
    }

    /// Seconds between two heartbeats of a submission's attempts.
    fn beat_s(&mut self, submission: &str) -> u64 {
        if let Some(beat_s) = self.beats.get(submission) {
            return *beat_s;
        }
        let read = Submission::read(&self.own.join("submissions").join(submission));
        let beat_s = read.map_or(0, |submission| submission.rules.beat_s);
        self.beats.insert(submission.to_owned(), beat_s);
        beat_s
    }
}
