//! Taking a chain, or a part of it, out of Slurm's queue: children before their parents, so that nothing starts behind a
//! job that was cancelled, and with a part everything that can no longer get its inputs.
//!
//! What is cancelled is written into the journal. Checkpoints and seals stay: `run_all` goes on from them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use chrono::Utc;
use serde::Serialize;

use super::answers::{self, Said};
use super::error::{Result, WorkflowError};
use super::history::{CellFate, CellJob};
use super::journal::{Event, Journal};
use super::slurm::submit::{Found, find_in};
use super::slurm::{Client, Element, Liveness, control, queue};
use super::status::Look;
use super::survey::LOST_AFTER;
use crate::record::{Name, attempt, exit};

/// How long the end of cancelled jobs is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Which part of a study.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// Only these stages.
    pub stages: Option<Vec<Name>>,
    /// Only these seeds.
    pub seeds: Option<Vec<u32>>,
    /// Only jobs that wait for what can never happen.
    pub dead: bool,
}

impl Part {
    fn is_all(&self) -> bool {
        self.stages.is_none() && self.seeds.is_none()
    }
}

/// A queued or running element.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// The cell.
    pub cell: String,
    /// What scancel takes.
    #[serde(serialize_with = "as_text")]
    pub job: Element,
    /// The job's unique name.
    pub name: String,
    /// What Slurm calls its state.
    pub state: String,
    /// Who submitted it.
    pub user: String,
    /// To which cluster.
    pub cluster: String,
    /// The Slurm cluster that has it, where the site has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub home: Option<String>,
    /// How many stages stand before it.
    #[serde(skip)]
    depth: usize,
}

fn as_text<S: serde::Serializer>(element: &Element, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.collect_str(element)
}

/// What is to be cancelled.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    /// Children before their parents.
    pub own: Vec<Target>,
    /// Jobs of other users, who alone can cancel them.
    pub others: Vec<Target>,
    /// Cells whose job is left alone although it may live, with why: nobody can be asked about it here, or cells share it
    /// that are to go on.
    pub unknown: Vec<(String, String)>,
}

/// Finds what `part` of the chain lives.
pub fn targets(look: &Look, part: &Part) -> Targets {
    let hit = hits(look, part);
    let depths = depths(look);
    let mut found = Targets::default();
    let user = attempt::user_name();
    for (cell, jobs) in &look.jobs {
        let index = look.index.get(cell);
        // Cells that the study has no more belong to the whole of it only.
        if !index.map_or(part.is_all(), |i| hit[*i]) {
            continue;
        }
        for job in jobs.iter() {
            let Some(element) = job.element().filter(|_| job.fate == CellFate::Submitted) else { continue };
            let (state, dead) = match look.said(job) {
                Some(Said::Listed(entry)) if entry.is_dead() => (entry.state.word(), true),
                Some(Said::Listed(entry)) if entry.liveness() != Liveness::Ended => (entry.state.word(), false),
                Some(Said::Silent(_)) => {
                    let why =
                        format!("job {element} was submitted to `{}` and cannot be asked about here", job.cluster);
                    found.unknown.push((cell.clone(), why));
                    continue;
                }
                _ => continue,
            };
            if part.dead && !dead {
                continue;
            }
            let target = Target {
                cell: cell.clone(),
                job: element,
                name: job.name.clone(),
                state: state.to_owned(),
                user: job.user.clone(),
                cluster: job.cluster.clone(),
                home: job.home.clone(),
                depth: index.map_or(usize::MAX, |i| depths[*i]),
            };
            if target.user == user { found.own.push(target) } else { found.others.push(target) }
        }
    }
    spare_shared(look, &mut found);
    found.own.sort_by(|a, b| b.depth.cmp(&a.depth).then_with(|| b.job.cmp(&a.job)));
    found
}

/// A job that several cells share ends for all of them: it is cancelled only if all that is open of it is to be.
fn spare_shared(look: &Look, found: &mut Targets) {
    let open = |cell: &str| look.index.get(cell).is_some_and(|i| !look.prepared.plan.cells[*i].state.is_done());
    let mut sharing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (cell, jobs) in &look.jobs {
        for job in jobs.iter().filter(|job| job.packed && open(cell)) {
            sharing.entry(&job.name).or_default().push(cell);
        }
    }
    let cells: BTreeSet<(String, String)> = found.own.iter().map(|t| (t.name.clone(), t.cell.clone())).collect();
    let stays = |target: &Target| {
        let all = sharing.get(target.name.as_str()).into_iter().flatten();
        let left: Vec<&str> =
            all.copied().filter(|c| !cells.contains(&(target.name.clone(), (*c).to_owned()))).collect();
        (!left.is_empty()).then(|| left.join(", "))
    };
    let (spared, own): (Vec<Target>, Vec<Target>) =
        std::mem::take(&mut found.own).into_iter().partition(|t| stays(t).is_some());
    for target in spared {
        let with = stays(&target).unwrap_or_default();
        let why = format!("job {} also runs {with}: cancel all of them, or none", target.job);
        found.unknown.push((target.cell, why));
    }
    found.own = own;
}

/// The cells of the part, and those behind them that can get no inputs any more. A cell that gathers others runs
/// with what there is, unless all that it still waits for is taken away.
fn hits(look: &Look, part: &Part) -> Vec<bool> {
    let cells = &look.prepared.plan.cells;
    let mut hit: Vec<bool> = Vec::with_capacity(cells.len());
    for cell in cells {
        let key = &cell.def.key;
        let stage = part.stages.as_ref().is_none_or(|stages| stages.contains(&key.stage));
        let seed =
            part.seeds.as_ref().is_none_or(|seeds| key.seed.map_or(part.stages.is_some(), |s| seeds.contains(&s)));
        let open = || cell.def.needs.iter().filter(|i| !cells[**i].state.is_done());
        let behind = if cell.fan_in {
            open().next().is_some() && open().all(|i| hit[*i])
        } else {
            !part.dead && open().any(|i| hit[*i])
        };
        hit.push((stage && seed) || behind);
    }
    hit
}

/// How many stages stand before each cell.
fn depths(look: &Look) -> Vec<usize> {
    let mut depths: Vec<usize> = Vec::new();
    for cell in &look.prepared.plan.cells {
        depths.push(cell.def.needs.iter().map(|i| depths[*i] + 1).max().unwrap_or(0));
    }
    depths
}

/// What became of them.
#[derive(Debug, Clone, Default)]
pub struct Cancelled {
    /// Elements that have ended.
    pub ended: Vec<Target>,
    /// Elements that were told to end and have not yet: they may be writing a checkpoint.
    pub ending: Vec<Target>,
}

/// Cancels `targets` in their order. Hold the study's lock.
///
/// # Errors
/// Slurm refuses or does not answer; what was cancelled before is in the journal.
pub fn cancel(look: &Look, client: &Client, targets: &[Target]) -> Result<Cancelled> {
    let slurm = |error: super::slurm::SlurmError| WorkflowError::Slurm(error.to_string());
    let own = look.prepared.place.own();
    for level in targets.chunk_by(|a, b| a.depth == b.depth) {
        for (home, targets) in by_home(level) {
            let elements: Vec<Element> = targets.iter().map(|t| t.job).collect();
            control::cancel(&client.at(home), &elements).map_err(slurm)?;
        }
        answers::forget(&own);
        let mut slots: BTreeMap<(&str, &str), Vec<u32>> = BTreeMap::new();
        for target in level {
            slots.entry((&target.cluster, &target.name)).or_default().extend(target.job.index);
        }
        for ((cluster, job), slots) in slots {
            let reason = "cancelled by `seedbed cancel`".to_owned();
            Journal::open(&own, cluster).write(Event::Gone { job: job.to_owned(), slots, reason })?;
        }
    }
    wait(client, targets)
}

/// Targets by the Slurm cluster that has them.
fn by_home(targets: &[Target]) -> BTreeMap<Option<&str>, Vec<&Target>> {
    let mut groups: BTreeMap<Option<&str>, Vec<&Target>> = BTreeMap::new();
    for target in targets {
        groups.entry(target.home.as_deref()).or_default().push(target);
    }
    groups
}

/// Waits a little for the ends.
fn wait(client: &Client, targets: &[Target]) -> Result<Cancelled> {
    let began = Instant::now();
    let mut pause = Duration::from_millis(250);
    loop {
        let mut alive: BTreeSet<(Option<&str>, Element)> = BTreeSet::new();
        for (home, targets) in by_home(targets) {
            let ids: Vec<u32> = targets.iter().map(|t| t.job.job).collect::<BTreeSet<_>>().into_iter().collect();
            let found = queue::query(&client.at(home), &ids).map_err(|e| WorkflowError::Slurm(e.to_string()))?;
            alive.extend(found.entries().filter(|e| e.liveness() == Liveness::Alive).map(|e| (home, e.element)));
        }
        let lives = |t: &&Target| alive.contains(&(t.home.as_deref(), t.job));
        let (ending, ended): (Vec<_>, Vec<_>) = targets.iter().partition(lives);
        if ending.is_empty() || began.elapsed() >= PATIENCE {
            return Ok(Cancelled {
                ended: ended.into_iter().cloned().collect(),
                ending: ending.into_iter().cloned().collect(),
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(3));
    }
}

/// Finds out what became of jobs whose reply was lost, so that they can be cancelled too. Returns those of which nobody
/// knows yet, with what to do. Hold the study's lock.
///
/// # Errors
/// Slurm does not answer.
pub fn settle(client: &Client, look: &Look) -> Result<Vec<String>> {
    let lost = look.jobs.values().flat_map(|jobs| jobs.iter()).filter(|job| job.is_lost());
    let lost: BTreeMap<&str, &CellJob> = lost.map(|job| (job.name.as_str(), job)).collect();
    let mut open = Vec::new();
    for (name, job) in lost {
        let journal = Journal::open(&look.prepared.place.own(), &job.cluster);
        let job_name = name.to_owned();
        match find_in(client, &look.prepared.cluster.site.clusters, name)
            .map_err(|e| WorkflowError::Slurm(e.to_string()))?
        {
            Found::Job(id) => journal.write(Event::Submitted { job: job_name, id: id.to_string() })?,
            Found::Nothing if (Utc::now() - job.time).to_std().unwrap_or_default() < LOST_AFTER => {
                open.push(format!(
                    "the reply to job `{name}` was lost a moment ago, and it may still arrive: run the same command again in {} s",
                    LOST_AFTER.as_secs()
                ));
            }
            Found::Nothing => {
                let reason = "Slurm knows no job of this name".to_owned();
                journal.write(Event::Gone { job: job_name, slots: Vec::new(), reason })?;
            }
            Found::Several(ids) => {
                for id in ids {
                    let element = Element { job: id.id, index: None };
                    let client = client.at(id.cluster.as_deref());
                    control::cancel(&client, &[element]).map_err(|e| WorkflowError::Slurm(e.to_string()))?;
                }
                let reason = "cancelled by `seedbed cancel`: several jobs had its name".to_owned();
                journal.write(Event::Gone { job: job_name, slots: Vec::new(), reason })?;
            }
        }
    }
    Ok(open)
}

/// The error where a local run holds the study.
pub fn held_by_local_run(owner: &str) -> WorkflowError {
    WorkflowError::attempt(
        exit::INCOMPLETE,
        format!(
            "a local run holds this study: {owner}; press Ctrl-C where it runs, or send its process SIGTERM: it checkpoints and ends"
        ),
    )
}
