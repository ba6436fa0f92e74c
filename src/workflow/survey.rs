//! Looking around: seals in run directories, digests of inputs, and which journalled jobs still live.
//! Everything the plan is made from; nothing here changes a result or a job.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use chrono::Utc;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Result, WorkflowError};
use super::journal::{self, Entry, Event, Fate, Journal, JournalJob};
use super::place::Place;
use super::plan::{CellDef, Expansion, LiveJob, SealView, is_gate};
use super::retry::Ends;
use super::slurm::submit::{Found, find_in};
use super::slurm::{Client, Element, JobId, JobState, Liveness, queue};
use super::study::Study;
use crate::record::decision::{self, Verdict};
use crate::record::files::Folder;
use crate::record::{Decision, Digest, RecordError, Seal, attempt, files};

/// How long a job without a reply is looked for before it is believed never to have arrived.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(90);

/// How thoroughly outputs are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Existence and sizes.
    Sizes,
    /// Every byte.
    Digests,
}

/// What lies on disk of the cells of a study.
#[derive(Debug, Default)]
pub struct OnDisk {
    /// Seals, by local name.
    pub seals: BTreeMap<String, SealView>,
    /// Cells that have a run directory, by local name. The others have never begun: there is nothing of them to read.
    pub begun: BTreeSet<String>,
}

impl OnDisk {
    /// Looks at the run directories of `expansion`: one listing for each directory above them, then one open for each
    /// that is there, and of what is sealed one question for each output. A study may have 100,000 cells, and a
    /// network file system answers them one by one, so several ask at once.
    pub fn read(place: &Place, expansion: &Expansion, depth: Depth) -> Self {
        let begun = begun(place, expansion);
        let there: Vec<&CellDef> =
            expansion.cells.iter().zip(&begun).filter(|(_, begun)| **begun).map(|(cell, _)| &**cell).collect();
        let askers = match depth {
            Depth::Sizes => there.len().div_ceil(CELLS_OF_AN_ASKER),
            Depth::Digests => there.len(),
        };
        let share = there.len().div_ceil(askers.clamp(1, MOST_ASKERS)).max(1);
        // Without it each file is asked for by its whole path.
        let folder = Folder::open(&place.base).ok();
        let look = |cells: &[&CellDef]| -> Vec<(String, Option<SealView>)> {
            cells.iter().map(|cell| (cell.key.local_name(), view(place, folder.as_ref(), cell, depth))).collect()
        };
        let found = std::thread::scope(|scope| {
            let askers: Vec<_> = there.chunks(share).map(|cells| scope.spawn(move || look(cells))).collect();
            let joined = askers.into_iter().map(|a| a.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            joined.collect::<Vec<_>>()
        });
        let mut all = Self::default();
        for (name, view) in found.into_iter().flatten() {
            if let Some(view) = view {
                all.seals.insert(name.clone(), view);
            }
            all.begun.insert(name);
        }
        all
    }
}

/// So many cells are asked about faster by one than by two.
const CELLS_OF_AN_ASKER: usize = 64;

/// More askers than this gain nothing.
const MOST_ASKERS: usize = 8;

/// Which cells have a run directory, in their order.
fn begun(place: &Place, expansion: &Expansion) -> Vec<bool> {
    let mut listed: Option<(PathBuf, Option<BTreeSet<OsString>>)> = None;
    let is_there = |cell: &Arc<CellDef>| {
        let run_dir = place.run_dir(&cell.key);
        let (Some(above), Some(name)) = (run_dir.parent(), run_dir.file_name()) else { return true };
        if listed.as_ref().is_none_or(|(dir, _)| dir != above) {
            listed = Some((above.to_path_buf(), names_in(above)));
        }
        // Where there is no listing, each one is asked for.
        let names = listed.as_ref().and_then(|(_, names)| names.as_ref());
        names.is_none_or(|names| names.contains(name))
    };
    expansion.cells.iter().map(is_there).collect()
}

/// What stands in a directory; nothing if it is not there, `None` if it cannot be listed.
fn names_in(dir: &Path) -> Option<BTreeSet<OsString>> {
    match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.file_name())).collect::<std::io::Result<_>>().ok(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Some(BTreeSet::new()),
        Err(_) => None,
    }
}

/// The seal of a cell, and what is wrong with it.
fn view(place: &Place, folder: Option<&Folder>, cell: &CellDef, depth: Depth) -> Option<SealView> {
    let run_dir = place.run_dir(&cell.key);
    let seal = match folder {
        Some(folder) => Seal::read_below(folder, &run_dir),
        None => Seal::read(&run_dir),
    };
    Some(match seal {
        Ok(None) => return asked(place, cell, &run_dir),
        Ok(Some(seal)) if seal.key != cell.key => SealView::Damaged(format!(
            "its seal is that of {}: delete {}/seal.json and run `run_all` again",
            seal.key,
            run_dir.display()
        )),
        Ok(Some(mut seal)) => {
            let problem = match (depth, folder) {
                (Depth::Sizes, Some(folder)) => seal.check_below(folder, &run_dir),
                (Depth::Sizes, None) => seal.check(&run_dir),
                (Depth::Digests, _) => seal.verify(&run_dir),
            };
            // Most of a seal is what the fingerprint was made from. Where that is what is planned, the plan has it, once
            // for all seeds.
            if seal.fingerprint == cell.fingerprint {
                seal.source.params = Value::Null;
                seal.source.needs = BTreeMap::new();
            }
            SealView::Sealed { seal: Box::new(seal), problem }
        }
        Err(e) => SealView::Damaged(e.to_string()),
    })
}

/// The decision of a gate that waits for a person. One that cannot be read counts as none: the gate is asked again.
fn asked(place: &Place, cell: &CellDef, run_dir: &Path) -> Option<SealView> {
    if !is_gate(cell) {
        return None;
    }
    let decision = Decision::read(run_dir).ok()?.filter(|d| d.verdict == Verdict::Waiting)?;
    let all = decision::confirmations(&place.base).unwrap_or_default();
    let confirmed = decision::confirmation_of(&all, &cell.key.local_name(), &decision.evidence).is_some();
    Some(SealView::Asked { decision: Box::new(decision), confirmed })
}

/// Digests of all external inputs of a study, cached by path, size, modification time and inode.
///
/// # Errors
/// An input cannot be read.
pub fn input_digests(study: &Study, own: &Path) -> Result<BTreeMap<PathBuf, Digest>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for stage in &study.stages {
        let arms: Vec<_> =
            if stage.arms.is_empty() { vec![None] } else { stage.arms.iter().map(|a| Some(&a.name)).collect() };
        for arm in arms {
            paths.extend(stage.inputs_of(arm).into_iter().map(|i| i.path));
        }
    }
    paths.sort();
    paths.dedup();
    let cache_path = own.join("digests.jsonl");
    let cache: Vec<CachedDigest> = files::read_lines(&cache_path).unwrap_or_default();
    let mut digests = BTreeMap::new();
    for path in paths {
        if !path.exists() {
            return Err(WorkflowError::Usage(format!(
                "input `{}` is not there: correct the path in the study file",
                path.display()
            )));
        }
        // A directory is digested anew: its own time does not tell when a file inside has changed.
        let stamp = if path.is_file() { Some(Stamp::of(&path)?) } else { None };
        let known = stamp.as_ref().and_then(|s| cache.iter().rev().find(|c| c.path == path && c.stamp == *s));
        let digest = match known {
            Some(cached) => cached.digest.clone(),
            None => {
                let digest = Digest::of_path(&path)?;
                if let Some(stamp) = stamp {
                    let line = CachedDigest { path: path.clone(), stamp, digest: digest.clone() };
                    let text = serde_json::to_string(&line).map_err(|e| RecordError::Value(e.to_string()))?;
                    // A cache that cannot be written costs time, not correctness.
                    let _ = files::append_line(&cache_path, &text);
                }
                digest
            }
        };
        digests.insert(path, digest);
    }
    Ok(digests)
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    mtime_ns: u128,
    inode: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct CachedDigest {
    path: PathBuf,
    #[serde(flatten)]
    stamp: Stamp,
    digest: Digest,
}

impl Stamp {
    fn of(path: &Path) -> Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path).map_err(RecordError::io("read", path))?;
        let time = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        Ok(Self { size: meta.len(), mtime_ns: time.map_or(0, |t| t.as_nanos()), inode: meta.ino() })
    }
}

/// Which cells have a job that is queued or running, by local name; the newest job of a cell counts.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// The jobs.
    pub jobs: BTreeMap<String, LiveJob>,
    /// Jobs of ours in the queue that wait for what can never happen: they block what waits for their end.
    pub dead: Vec<LiveJob>,
    /// Jobs of ours that Slurm holds because it could not start them: they wait for somebody to let them go.
    pub held: Vec<LiveJob>,
    /// Jobs and elements of unsealed cells that have ended, as far as Slurm remembers them.
    pub ended: Ends,
    /// What could not be found out, for people.
    pub notes: Vec<String>,
}

/// Asks Slurm about the journal's jobs. `client` is absent where there is no Slurm. Cells named in `sealed`
/// need no asking.
///
/// # Errors
/// Slurm does not answer, or a job may be alive on a cluster that cannot be asked from here.
pub fn live(
    client: Option<&Client>,
    cluster: &str,
    entries: &[Entry],
    sealed: &dyn Fn(&str, &JournalJob) -> bool,
) -> Result<Live> {
    let mut live = Live::default();
    let mut asked: Vec<(JournalJob, JobId)> = Vec::new();
    for job in journal::jobs(entries) {
        let open = job.cells.keys().any(|cell| !sealed(cell, &job));
        let Fate::Submitted(id) = &job.fate else { continue };
        if !open {
            continue;
        }
        if job.cluster != cluster {
            return Err(WorkflowError::Slurm(format!(
                "job {id} ({}) of user {} may still run on cluster `{}`: wait for it or cancel it there, then run `run_all` again",
                job.name, job.user, job.cluster
            )));
        }
        if let Ok(id) = id.parse() {
            asked.push((job, id));
        }
    }
    if asked.is_empty() {
        return Ok(live);
    }
    let Some(client) = client else {
        return Err(WorkflowError::Slurm(format!(
            "{} jobs were submitted to Slurm, which does not answer here: run this where `squeue` works",
            asked.len()
        )));
    };
    let mut queues = BTreeMap::new();
    for (_, home) in &asked {
        let home = home.cluster.as_deref();
        if !queues.contains_key(&home) {
            let there = asked.iter().filter(|(_, id)| id.cluster.as_deref() == home);
            let ids: Vec<u32> = there.map(|(_, id)| id.id).collect();
            // What was submitted without a name is with the cluster of this host.
            let queue = queue::query(&client.at(home), &ids).map_err(|e| WorkflowError::Slurm(e.to_string()))?;
            queues.insert(home, queue);
        }
    }
    let user = attempt::user_name();
    for (job, JobId { id, cluster: home }) in &asked {
        let Some(queue) = queues.get(&home.as_deref()) else { continue };
        for (cell, intended) in &job.cells {
            let element = Element { job: *id, index: intended.slot };
            // Slurm has forgotten what is not there: it ended. Its number may be another job's by now.
            let Some(entry) = queue.get(element).filter(|entry| entry.name == job.name) else { continue };
            let is_dead = entry.is_dead() && job.user == user;
            if entry.liveness() == Liveness::Ended && !is_dead {
                live.ended.insert(element, entry.state.clone());
                continue;
            }
            let mut found = LiveJob {
                id: id.to_string(),
                name: job.name.clone(),
                slot: intended.slot,
                packed: intended.pack.is_some(),
                fingerprint: intended.fingerprint.clone(),
                state: entry.state.word().to_owned(),
                before: Vec::new(),
            };
            if is_dead {
                live.dead.push(found);
                continue;
            }
            if entry.is_held_by_slurm() && job.user == user {
                live.held.push(found.clone());
            }
            // Links of one cell: what waits for it waits for the last, and it stands where the one that runs stands.
            if let Some(mut earlier) = live.jobs.remove(cell) {
                if found.state == JobState::Pending.word() {
                    found.state.clone_from(&earlier.state);
                }
                found.before = std::mem::take(&mut earlier.before);
                found.before.push(earlier);
            }
            live.jobs.insert(cell.clone(), found);
        }
    }
    Ok(live)
}

/// Finds out what became of jobs whose reply was lost, and writes it down. Returns whether there were any.
///
/// # Errors
/// Slurm does not answer; a job that was intended moments ago may still be on its way.
pub fn settle_uncertain(
    client: &Client,
    clusters: &[String],
    journal: &Journal,
    entries: &[Entry],
    cluster: &str,
) -> Result<bool> {
    let mut settled = false;
    for job in journal::jobs(entries).into_iter().filter(|j| j.cluster == cluster) {
        if !matches!(job.fate, Fate::Intended | Fate::Uncertain(_)) {
            continue;
        }
        settled = true;
        let found = find_in(client, clusters, &job.name).map_err(|e| WorkflowError::Slurm(e.to_string()))?;
        match found {
            Found::Job(id) => journal.write(Event::Submitted { job: job.name, id: id.to_string() })?,
            Found::Nothing => {
                let age = (Utc::now() - job.time).to_std().unwrap_or_default();
                if age < LOST_AFTER {
                    return Err(WorkflowError::Slurm(format!(
                        "the reply to job `{}` was lost {} s ago and Slurm does not show it yet: run `run_all` again in {} s",
                        job.name,
                        age.as_secs(),
                        (LOST_AFTER - age).as_secs() + 1
                    )));
                }
                let reason = "Slurm knows no job of this name".to_owned();
                journal.write(Event::Gone { job: job.name, slots: Vec::new(), reason })?;
            }
            Found::Several(ids) => {
                let ids: Vec<String> = ids.iter().map(|i| i.id.to_string()).collect();
                return Err(WorkflowError::Slurm(format!(
                    "several jobs are named `{}` ({}): cancel all but one with scancel, then run `run_all` again",
                    job.name,
                    ids.join(", ")
                )));
            }
        }
    }
    Ok(settled)
}
