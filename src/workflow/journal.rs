//! `journal.jsonl`: what was asked for and submitted, in order. Intent stands there before `sbatch` is
//! called, so that a lost reply is known as such and never repeated blindly.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::error::Result;
use super::plan::{Again, Pack};
use super::slurm::JobId;
use super::study::Budget;
use crate::record::{Fingerprint, Name, RecordError, attempt, files};

/// Newest format version of a journal line. A line says the least version that knows its event
/// ([`Event::version`]): what an older program can read, it does read.
pub const JOURNAL_VERSION: u32 = 3;

/// Format version of `slots.json`.
pub const SLOTS_VERSION: u32 = 1;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// [`Event::version`].
    pub version: u32,
    /// When it was written.
    pub time: DateTime<Utc>,
    /// Who wrote it.
    pub user: String,
    /// Name of the cluster, or `local`.
    pub cluster: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// `run_all` was asked for these seeds: they are expected from now on.
    Asked {
        /// The seeds.
        seeds: Vec<u32>,
    },
    /// A job is about to be submitted.
    Intent {
        /// Name of the submission.
        submission: String,
        /// Unique job name.
        job: String,
        /// The stage.
        stage: Name,
        /// Cells by local name, with array index and fingerprint.
        cells: BTreeMap<String, IntendedCell>,
    },
    /// Slurm took the job.
    Submitted {
        /// Unique job name.
        job: String,
        /// Its id; `<id>;<cluster>` where the site has several Slurm clusters.
        id: String,
    },
    /// Slurm refused the job.
    Refused {
        /// Unique job name.
        job: String,
        /// What it said.
        message: String,
    },
    /// Nobody knows whether Slurm took the job.
    Uncertain {
        /// Unique job name.
        job: String,
        /// Why.
        reason: String,
    },
    /// The job was cancelled, or is known never to have been.
    Gone {
        /// Unique job name.
        job: String,
        /// Elements of it that were cancelled; all if empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        slots: Vec<u32>,
        /// Why.
        reason: String,
    },
    /// What the cells of a submission are expected to take, as it was said before they were submitted.
    Billed {
        /// Name of the submission.
        submission: String,
        /// By stage.
        stages: BTreeMap<Name, BilledStage>,
    },
    /// A person let the study go beyond its budget.
    OverBudget {
        /// Why.
        reason: String,
        /// The budget as it was then. Under another one the permission is void.
        budget: Budget,
        /// What may be spent now, in all.
        ceiling: Budget,
    },
}

impl Event {
    /// The least format version that knows this event.
    pub fn version(&self) -> u32 {
        match self {
            // Whoever takes it for a plain id asks the wrong cluster.
            Self::Submitted { id, .. } if id.contains(';') => 3,
            Self::Asked { .. }
            | Self::Intent { .. }
            | Self::Submitted { .. }
            | Self::Refused { .. }
            | Self::Uncertain { .. }
            | Self::Gone { .. } => 1,
            Self::Billed { .. } | Self::OverBudget { .. } => 2,
        }
    }
}

/// What one cell of a stage is expected to take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BilledStage {
    /// Number of cells of the submission.
    pub cells: u32,
    /// GPUs of one cell.
    pub gpus: u32,
    /// Cores of one cell.
    pub cores: u32,
    /// Time of one cell as expected, over all its attempts, seconds.
    pub expected_s: f64,
    /// Time of one cell at worst, seconds.
    pub worst_s: f64,
}

/// A cell of an intended job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntendedCell {
    /// Array index; absent for a single job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// How it shares the job with others, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pack: Option<Pack>,
    /// Fingerprint it is submitted with.
    pub fingerprint: Fingerprint,
    /// What its attempts came to before, if it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Again>,
}

/// A job as the journal knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct JournalJob {
    /// Unique name.
    pub name: String,
    /// Submission it belongs to.
    pub submission: String,
    /// The stage.
    pub stage: Name,
    /// Its cells.
    pub cells: BTreeMap<String, IntendedCell>,
    /// Who submitted it.
    pub user: String,
    /// On which cluster.
    pub cluster: String,
    /// When.
    pub time: DateTime<Utc>,
    /// What is known of it.
    pub fate: Fate,
}

/// What the journal knows of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Intended; no reply is recorded. Like [`Fate::Uncertain`].
    Intended,
    /// Taken under this id, as [`JobId`] is written.
    Submitted(String),
    /// Nobody knows.
    Uncertain(String),
    /// Refused or cancelled.
    Gone(String),
}

/// The journal of one study and profile.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    cluster: String,
}

impl Journal {
    /// The journal below `own` (a study's `.seedbed`), for writing as `cluster`.
    pub fn open(own: &Path, cluster: &str) -> Self {
        Self { path: own.join("journal.jsonl"), cluster: cluster.to_owned() }
    }

    /// The cluster that it writes as.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Appends an event; durable when it returns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, event: Event) -> Result<()> {
        self.write_all(vec![event])
    }

    /// Appends events in one write; durable when it returns. A writer that is killed leaves the first of them, if any.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_all(&self, events: Vec<Event>) -> Result<()> {
        let line = |event: Event| {
            let entry = Entry {
                version: event.version(),
                time: Utc::now(),
                user: attempt::user_name(),
                cluster: self.cluster.clone(),
                event,
            };
            serde_json::to_string(&entry).map_err(|e| RecordError::Value(e.to_string()).into())
        };
        let lines: Vec<String> = events.into_iter().map(line).collect::<Result<_>>()?;
        if !lines.is_empty() {
            files::append_lines(&self.path, &lines)?;
        }
        Ok(())
    }

    /// All entries.
    ///
    /// # Errors
    /// A whole line is damaged, or was written by a newer program.
    pub fn read(&self) -> Result<Vec<Entry>> {
        Ok(files::read_versioned_lines(&self.path, JOURNAL_VERSION)?)
    }
}

/// Seeds that were ever asked for.
pub fn asked(entries: &[Entry]) -> BTreeSet<u32> {
    let seeds = |entry: &Entry| match &entry.event {
        Event::Asked { seeds } => seeds.clone(),
        _ => Vec::new(),
    };
    entries.iter().flat_map(seeds).collect()
}

/// Every job that was intended, oldest first, with its fate.
pub fn jobs(entries: &[Entry]) -> Vec<JournalJob> {
    let mut jobs: Vec<JournalJob> = Vec::new();
    for entry in entries {
        let (name, fate) = match &entry.event {
            Event::Asked { .. } | Event::Billed { .. } | Event::OverBudget { .. } => continue,
            Event::Intent { submission, job, stage, cells } => {
                jobs.push(JournalJob {
                    name: job.clone(),
                    submission: submission.clone(),
                    stage: stage.clone(),
                    cells: cells.clone(),
                    user: entry.user.clone(),
                    cluster: entry.cluster.clone(),
                    time: entry.time,
                    fate: Fate::Intended,
                });
                continue;
            }
            Event::Submitted { job, id } => (job, Fate::Submitted(id.clone())),
            Event::Refused { job, message } => (job, Fate::Gone(message.clone())),
            Event::Uncertain { job, reason } => (job, Fate::Uncertain(reason.clone())),
            Event::Gone { job, slots, reason } => {
                if let Some(known) = jobs.iter_mut().find(|j| j.name == *job) {
                    if slots.is_empty() {
                        known.fate = Fate::Gone(reason.clone());
                    } else {
                        known.cells.retain(|_, c| c.slot.is_none_or(|s| !slots.contains(&s)));
                    }
                }
                continue;
            }
        };
        if let Some(job) = jobs.iter_mut().find(|j| j.name == *name) {
            job.fate = fate;
        }
    }
    jobs
}

/// The Slurm cluster of every job that was submitted to one by name, by job name.
pub fn homes(entries: &[Entry]) -> BTreeMap<&str, String> {
    let home = |entry: &'_ Entry| -> Option<String> {
        match &entry.event {
            Event::Submitted { id, .. } => id.parse::<JobId>().ok()?.cluster,
            _ => None,
        }
    };
    let mut homes = BTreeMap::new();
    for entry in entries {
        if let (Event::Submitted { job, .. }, Some(home)) = (&entry.event, home(entry)) {
            homes.insert(job.as_str(), home);
        }
    }
    homes
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slots {
    version: u32,
    /// Seeds in the order of their slots.
    seeds: Vec<u32>,
}

/// Gives every seed of `wanted` its slot: those in `slots.json` keep theirs, new ones get the next, in the
/// order of `wanted`. A slot is never renumbered.
///
/// # Errors
/// The file is damaged or cannot be written.
pub fn slots(own: &Path, wanted: &[u32]) -> Result<BTreeMap<u32, u32>> {
    let path = own.join("slots.json");
    let known = read_slots(&path)?;
    let seeds = extended(&known, wanted);
    if seeds.len() > known.len() {
        files::write_json(&path, &Slots { version: SLOTS_VERSION, seeds: seeds.clone() })?;
    }
    Ok(numbered(&seeds))
}

/// The slots that [`slots`] would give; nothing is written.
///
/// # Errors
/// The file is damaged.
pub fn preview_slots(own: &Path, wanted: &[u32]) -> Result<BTreeMap<u32, u32>> {
    let known = read_slots(&own.join("slots.json"))?;
    Ok(numbered(&extended(&known, wanted)))
}

fn read_slots(path: &Path) -> Result<Vec<u32>> {
    match files::read_versioned_json::<Slots>(path, SLOTS_VERSION) {
        Ok(slots) => Ok(slots.seeds),
        Err(e) if e.is_not_found() => Ok(Vec::new()),
        Err(e) => Err(e.into()),
    }
}

fn extended(known: &[u32], wanted: &[u32]) -> Vec<u32> {
    let mut seeds = known.to_vec();
    for seed in wanted {
        if !seeds.contains(seed) {
            seeds.push(*seed);
        }
    }
    seeds
}

fn numbered(seeds: &[u32]) -> BTreeMap<u32, u32> {
    seeds.iter().enumerate().map(|(slot, &seed)| (seed, slot as u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Digest;

    #[test]
    fn a_job_without_a_reply_stays_uncertain() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "c1");
        let intent = |job: &str| Event::Intent {
            submission: "s1".into(),
            job: job.into(),
            stage: Name::new("train").unwrap(),
            cells: [0, 1]
                .map(|s| {
                    (
                        format!("train/seed-{s}"),
                        IntendedCell { slot: Some(s), pack: None, fingerprint: Digest::of_bytes(b""), again: None },
                    )
                })
                .into(),
        };
        journal.write(Event::Asked { seeds: vec![42, 7] }).unwrap();
        for job in ["a", "b", "c"] {
            journal.write(intent(job)).unwrap();
        }
        journal.write(Event::Submitted { job: "a".into(), id: "17".into() }).unwrap();
        journal.write(Event::Uncertain { job: "b".into(), reason: "timed out".into() }).unwrap();
        journal.write(Event::Asked { seeds: vec![7, 9] }).unwrap();
        journal.write(Event::Gone { job: "a".into(), slots: vec![1], reason: "cancelled".into() }).unwrap();
        let entries = journal.read().unwrap();
        assert_eq!(asked(&entries), BTreeSet::from([7, 9, 42]));
        let jobs = jobs(&entries);
        let fates: Vec<&Fate> = jobs.iter().map(|j| &j.fate).collect();
        assert_eq!(fates, [&Fate::Submitted("17".into()), &Fate::Uncertain("timed out".into()), &Fate::Intended]);
        assert_eq!(jobs[0].cells.keys().collect::<Vec<_>>(), ["train/seed-0"]);
        assert_eq!(jobs[0].cluster, "c1");
        assert!(homes(&entries).is_empty() && entries.iter().all(|e| e.version == 1));
        journal.write(Event::Submitted { job: "c".into(), id: "19;alps".into() }).unwrap();
        let entries = journal.read().unwrap();
        assert_eq!(homes(&entries), BTreeMap::from([("c", "alps".to_owned())]));
        assert_eq!(entries.last().unwrap().version, 3, "an older program would ask another cluster about job 19");
    }

    #[test]
    fn slots_are_given_once() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(slots(dir.path(), &[42, 1337]).unwrap(), BTreeMap::from([(42, 0), (1337, 1)]));
        assert_eq!(slots(dir.path(), &[7, 1337]).unwrap(), BTreeMap::from([(42, 0), (1337, 1), (7, 2)]));
    }
}
