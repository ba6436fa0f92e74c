//! A look at a whole chain: every cell with where it stands, its job, its newest attempt and its progress. Seals first,
//! then one answer of Slurm ([`super::answers`]), then what attempts wrote. Changes nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::answers::{self, Answers, Asked, Said};
use super::error::{Result, WorkflowError};
use super::history::{self, CellFate, CellJob};
use super::journal::{Entry, Journal};
use super::place::Place;
use super::plan::{LiveJob, PlannedCell, SealView};
use super::run::{self, Ground, LOCAL, LiveJobs, Prepared, Request, Site};
use super::slurm::{Client, Element, JobState, Liveness};
use super::standing::{self, Attempt, Evidence, Pulse, Standing, Word};
use super::submission::Submission;
use super::survey::OnDisk;
use crate::record::progress::{self, Line};
use crate::record::{AttemptEnd, AttemptStart, attempt, exit, files};

/// Between two heartbeats where the submission does not say, seconds.
const BEAT_S: f64 = 30.0;

/// A study as it stands.
#[derive(Debug)]
pub struct Look {
    /// The plan, with the jobs that live.
    pub prepared: Prepared,
    /// What Slurm said; none where it had nothing to be asked.
    pub answers: Option<Answers>,
    /// Every cell, in the order of the plan.
    pub cells: Vec<CellLook>,
    /// Where a cell stands in the plan, by local name.
    pub index: BTreeMap<String, usize>,
    /// Every job that was ever intended, by cell, oldest first; also of cells that the study has no more.
    pub jobs: BTreeMap<String, Arc<Vec<CellJob>>>,
}

/// One cell as it stands.
#[derive(Debug, Clone)]
pub struct CellLook {
    /// Where it stands.
    pub standing: Standing,
    /// Every job that was ever intended for it, oldest first; the one that counts is last.
    pub jobs: Arc<Vec<CellJob>>,
    /// Its newest attempt, where that matters.
    pub attempt: Option<Attempt>,
    /// How far it has come, while it may run.
    pub progress: Option<Progress>,
}

/// How far a running cell has come.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The last line that it wrote.
    pub line: Line,
    /// Seconds that are left at its present speed.
    pub left_s: Option<f64>,
}

impl Look {
    /// The job that counts for a cell: the newest; of links, which are submitted together, the one that runs, else the
    /// next one that waits.
    fn current(&self, jobs: &[CellJob]) -> Option<usize> {
        let last = jobs.last()?;
        let links: Vec<usize> = (0..jobs.len()).filter(|&i| jobs[i].submission == last.submission).collect();
        let waits = |wanted: bool| links.iter().copied().find(|&i| pending(self.said(&jobs[i])) == Some(wanted));
        if links.len() == 1 {
            links.last().copied()
        } else {
            waits(false).or_else(|| waits(true)).or(links.last().copied())
        }
    }

    /// Number of cells that stand so.
    pub fn count(&self, word: Word) -> usize {
        self.cells.iter().filter(|c| c.standing.word == word).count()
    }

    /// Whether something may still happen by itself.
    pub fn may_move(&self) -> bool {
        self.cells.iter().any(|c| c.standing.word.may_move())
    }

    /// What is known of a job of a cell.
    pub fn said(&self, job: &CellJob) -> Option<Said<'_>> {
        Some(self.answers.as_ref()?.of(job.element()?, &job.name, &job.cluster))
    }
}

/// Which cells of a stage a person means.
#[derive(Debug, Clone)]
pub struct Which<'a> {
    /// The stage.
    pub stage: &'a str,
    /// Only this arm.
    pub arm: Option<&'a str>,
    /// Only this seed.
    pub seed: Option<u32>,
}

impl Look {
    /// The cells that are meant, by their place in the plan.
    ///
    /// # Errors
    /// There is no such stage, arm or seed: the message names those there are.
    pub fn select(&self, which: &Which) -> Result<Vec<usize>> {
        let usage = |text: String| Err(WorkflowError::Usage(text));
        let cells =
            || self.prepared.plan.cells.iter().enumerate().filter(|(_, c)| c.def.key.stage.as_str() == which.stage);
        if self.prepared.study.stage(which.stage).is_none() {
            let known: Vec<&str> = self.prepared.study.stages.iter().map(|s| s.name.as_str()).collect();
            return usage(format!("the study has no stage `{}`: its stages are {}", which.stage, known.join(", ")));
        }
        let words = |values: BTreeSet<String>, what: &str| {
            let values: Vec<String> = values.into_iter().collect();
            if values.is_empty() {
                format!("it has no {what}s")
            } else {
                format!("its {what}s are {}", values.join(", "))
            }
        };
        if let Some(arm) = which.arm
            && !cells().any(|(_, c)| c.def.key.arm.as_ref().is_some_and(|a| a.as_str() == arm))
        {
            let arms = cells().filter_map(|(_, c)| c.def.key.arm.as_ref().map(ToString::to_string)).collect();
            return usage(format!("stage `{}` has no arm `{arm}`: {}", which.stage, words(arms, "arm")));
        }
        if let Some(seed) = which.seed
            && !cells().any(|(_, c)| c.def.key.seed == Some(seed))
        {
            let seeds = cells().filter_map(|(_, c)| c.def.key.seed.map(|s| s.to_string())).collect();
            return usage(format!(
                "seed {seed} of stage `{}` was never asked for: {}; `run_all` with --seeds {seed} asks for it",
                which.stage,
                words(seeds, "seed")
            ));
        }
        let meant = |c: &PlannedCell| {
            let key = &c.def.key;
            which.arm.is_none_or(|arm| key.arm.as_ref().is_some_and(|a| a.as_str() == arm))
                && which.seed.is_none_or(|seed| key.seed == Some(seed))
        };
        Ok(cells().filter(|(_, c)| meant(c)).map(|(i, _)| i).collect())
    }
}

/// Looks.
///
/// # Errors
/// The study or cluster file has problems, or the journal is damaged. That Slurm does not answer is no error.
pub fn look(request: &Request) -> Result<Look> {
    let ground = Ground::load(request)?;
    let own = ground.place.own();
    let place = ground.place.clone();
    let journal = Journal::open(&own, LOCAL);
    let entries = journal.read()?;
    let jobs: BTreeMap<_, _> =
        history::of_cells(&entries).into_iter().map(|(cell, jobs)| (cell, Arc::new(jobs))).collect();
    let cluster = request.cluster.is_some().then(|| ground.cluster.name.to_string());
    let mut answers = None;
    let mut ends = Ends::new();
    let mut live = |_: &Site, _: &[Entry], found: &OnDisk| {
        let open = open_jobs(&jobs, found);
        (answers, ends) = ask(request, &place, &open, found, cluster.as_deref());
        Ok(live_jobs(answers.as_ref(), &open))
    };
    let site = Site::Local("a look asks Slurm in its own way".to_owned());
    let mut prepared = run::join(request, ground, site, journal, entries, &mut live)?;
    prepared.notes.extend(answers.iter().flat_map(notes));
    let cells = prepared.plan.cells.iter().enumerate();
    let index = cells.map(|(i, cell)| (cell.def.key.local_name(), i)).collect();
    let mut look = Look { prepared, answers, cells: Vec::new(), index, jobs };
    let mut beats = BTreeMap::new();
    look.cells = (0..look.prepared.plan.cells.len()).map(|i| look.cell(i, &mut ends, &mut beats)).collect();
    Ok(look)
}

/// What a person should know of the answers.
fn notes(answers: &Answers) -> Vec<String> {
    let age = answers.answered_at.map(|time| format!(" (it answered last at {})", time.format("%F %T UTC")));
    let slurm = answers.problem.as_ref().map(|why| format!("{why}{}", age.unwrap_or_default()));
    let accounts = answers.accounting_problem.as_ref().map(|why| format!("{why}: some ends are not explained"));
    slurm.into_iter().chain(accounts).collect()
}

/// A job of a cell that is not sealed with the fingerprint that the job was submitted with.
struct Open<'a> {
    cell: &'a String,
    job: &'a CellJob,
    element: Element,
    /// Whether it is the newest of its cell.
    newest: bool,
}

fn open_jobs<'a>(jobs: &'a BTreeMap<String, Arc<Vec<CellJob>>>, found: &OnDisk) -> Vec<Open<'a>> {
    let sealed = |cell: &str, job: &CellJob| match found.seals.get(cell) {
        Some(SealView::Sealed { seal, problem: None }) => seal.fingerprint == job.fingerprint,
        _ => false,
    };
    let of_cell = |(cell, jobs): (&'a String, &'a Arc<Vec<CellJob>>)| {
        jobs.iter().enumerate().map(move |(i, job)| (cell, job, i + 1 == jobs.len()))
    };
    let submitted = jobs.iter().flat_map(of_cell).filter(|(cell, job, _)| {
        // The journal first: it is at hand.
        job.fate == CellFate::Submitted && !sealed(cell, job)
    });
    submitted.filter_map(|(cell, job, newest)| Some(Open { cell, job, element: job.element()?, newest })).collect()
}

/// Attempts that have said their last word, by cell.
type Ends = BTreeMap<String, (AttemptStart, AttemptEnd)>;

fn ask(
    request: &Request,
    place: &Place,
    open: &[Open],
    found: &OnDisk,
    cluster: Option<&str>,
) -> (Option<Answers>, Ends) {
    let mut asked: BTreeMap<u32, Asked> = BTreeMap::new();
    for Open { job, element, newest, .. } in open {
        let asked = asked.entry(element.job).or_insert_with(|| Asked {
            id: element.job,
            name: job.name.clone(),
            cluster: job.cluster.clone(),
            time: job.time,
            home: job.home.clone(),
            open: Vec::new(),
        });
        // Of the jobs of a cell the newest counts.
        if *newest {
            asked.open.push(*element);
        }
    }
    if asked.is_empty() {
        return (None, Ends::new());
    }
    let asked: Vec<Asked> = asked.into_values().collect();
    let client = Client::new();
    let own = place.own();
    let ends = RefCell::new(Ends::new());
    let answers = if request.local {
        Answers::unasked(&own, "Slurm was not asked (--local)")
    } else if client.find("squeue").is_none() {
        let jobs = asked.len();
        let why = format!("{jobs} jobs were submitted to Slurm, and `squeue` is not on PATH: look from where it works");
        Answers::unasked(&own, &why)
    } else {
        let mut cells: BTreeMap<Element, Vec<&String>> = BTreeMap::new();
        for open in open.iter().filter(|open| open.newest) {
            cells.entry(open.element).or_default().push(open.cell);
        }
        // The attempts' own words come before the accounts; a cell that never began has said nothing.
        let told = |element| {
            let said_its_end = |cell: &&String| {
                let last = || last_word(&place.base.join(cell), element);
                let last = found.begun.contains(*cell).then(last).flatten();
                let said = last.is_some();
                ends.borrow_mut().extend(last.map(|last| ((*cell).clone(), last)));
                said
            };
            cells.get(&element).is_some_and(|cells| cells.iter().all(said_its_end))
        };
        answers::ask(&client, &own, &asked, cluster, &told)
    };
    (Some(answers), ends.into_inner())
}

/// The newest attempt, if it is of this job and has written down an end that is one: not a checkpoint.
fn last_word(run_dir: &Path, element: Element) -> Option<(AttemptStart, AttemptEnd)> {
    let n = attempt::last(run_dir).ok().filter(|n| *n > 0)?;
    let start = attempt::read_start(run_dir, n).ok()?;
    let of_job = start.job.as_ref().is_some_and(|job| job.id == element.to_string());
    let end = attempt::read_end(run_dir, n).ok().flatten().filter(|end| end.exit_code != i32::from(exit::RESUME))?;
    of_job.then_some((start, end))
}

fn live_jobs(answers: Option<&Answers>, open: &[Open]) -> LiveJobs {
    let mut live = LiveJobs::new();
    let Some(answers) = answers else { return live };
    for Open { cell, job, element, .. } in open {
        if let Said::Listed(entry) = answers.of(*element, &job.name, &job.cluster)
            && entry.liveness() != Liveness::Ended
        {
            live.insert(
                (*cell).clone(),
                LiveJob {
                    before: Vec::new(),
                    id: element.job.to_string(),
                    name: job.name.clone(),
                    slot: job.slot,
                    packed: job.packed,
                    fingerprint: job.fingerprint.clone(),
                    state: entry.state.word().to_owned(),
                },
            );
        }
    }
    live
}

impl Look {
    /// `ends` are attempts that were read already, `beats` what submissions say of heartbeats.
    fn cell(&self, index: usize, ends: &mut Ends, beats: &mut BTreeMap<String, f64>) -> CellLook {
        let cell = &self.prepared.plan.cells[index];
        let name = cell.def.key.local_name();
        let mut jobs = self.jobs.get(&name).cloned().unwrap_or_default();
        // A cell that is done needs no more reading, and of one that never began there is nothing to read.
        let attempt = if cell.state.is_done() || !self.prepared.begun.contains(&name) {
            None
        } else if let Some((start, end)) = ends.remove(&name) {
            Some(Attempt { start, end: Some(end), pulse: Pulse::Ended })
        } else {
            let run_dir = self.prepared.place.run_dir(&cell.def.key);
            newest_attempt(&self.prepared.place, &run_dir, self.answers.as_ref(), beats)
        };
        if let Some(current) = self.current(&jobs).filter(|current| current + 1 < jobs.len()) {
            let jobs = Arc::make_mut(&mut jobs);
            let current = jobs.remove(current);
            jobs.push(current);
        }
        let newest = jobs.last();
        let evidence = Evidence { job: newest, said: newest.and_then(|job| self.said(job)), attempt: attempt.as_ref() };
        let mut standing = standing::judge(&cell.state, &cell.def.fingerprint, evidence);
        let warnings = match self.prepared.seals.get(&name) {
            Some(SealView::Sealed { seal, .. }) if cell.state.is_done() => seal.warnings.as_slice(),
            _ => &[],
        };
        for warning in warnings {
            let before = if standing.detail.is_empty() { "" } else { "; " };
            standing.detail.push_str(&format!("{before}warns: {warning}"));
        }
        let runs = matches!(standing.word, Word::Running | Word::ProbablyRunning);
        let progress = if runs { progress(&self.prepared.place.run_dir(&cell.def.key)) } else { None };
        CellLook { standing, jobs, attempt, progress }
    }
}

fn pending(said: Option<Said<'_>>) -> Option<bool> {
    match said {
        Some(Said::Listed(entry)) if entry.liveness() == Liveness::Alive => Some(entry.state == JobState::Pending),
        _ => None,
    }
}

fn newest_attempt(
    place: &Place,
    run_dir: &Path,
    answers: Option<&Answers>,
    beats: &mut BTreeMap<String, f64>,
) -> Option<Attempt> {
    let n = attempt::last(run_dir).ok().filter(|n| *n > 0)?;
    let start = attempt::read_start(run_dir, n).ok()?;
    let end = attempt::read_end(run_dir, n).ok().flatten();
    let here = start.host == files::host_name();
    let pulse = if end.is_some() {
        Pulse::Ended
    } else if here && start.boot_id == attempt::boot_id() {
        if attempt::process_lives(start.pid) { Pulse::Lives } else { Pulse::Gone }
    } else if here {
        Pulse::Gone
    } else {
        let of_submission = || {
            let read = Submission::read(&place.submissions().join(&start.submission));
            read.map_or(BEAT_S, |submission| submission.rules.beat_s as f64)
        };
        let every_s = *beats.entry(start.submission.clone()).or_insert_with(of_submission);
        Pulse::Elsewhere(heartbeat(place, run_dir, n, answers).map(|age_s| (age_s, every_s)))
    };
    Some(Attempt { start, end, pulse })
}

/// Age of the last heartbeat by the clock of the file system, seconds.
fn heartbeat(place: &Place, run_dir: &Path, n: u32, answers: Option<&Answers>) -> Option<f64> {
    let written: DateTime<Utc> = attempt::beaten_at(run_dir, n)?.into();
    let now = answers.map_or_else(Utc::now, |answers| answers.file_time(&place.own()));
    Some((now - written).num_milliseconds() as f64 / 1000.0)
}

/// How far a cell has come, from the end of its progress file.
pub fn progress(run_dir: &Path) -> Option<Progress> {
    let lines = progress::tail(run_dir).ok()?;
    let line = lines.last()?.clone();
    Some(Progress { left_s: left_s(&lines), line })
}

/// Seconds to the last step at the speed of the last lines of this attempt: of earlier ones the clock began anew.
fn left_s(lines: &[Line]) -> Option<f64> {
    let last = lines.last()?;
    let total = last.total?;
    let pairs = lines.windows(2).rev();
    let same = pairs.take_while(|p| p[0].time_s < p[1].time_s && p[0].step < p[1].step).count();
    let first = &lines[lines.len() - 1 - same];
    if same == 0 {
        return None;
    }
    let step_s = (last.time_s - first.time_s) / (last.step - first.step) as f64;
    Some(total.saturating_sub(last.step) as f64 * step_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_that_of_the_present_attempt() {
        let line = |step, time_s| Line { step, total: Some(100), time_s, values: BTreeMap::new() };
        assert_eq!(left_s(&[]), None);
        assert_eq!(left_s(&[line(10, 5.0)]), None, "one line has no speed");
        assert_eq!(left_s(&[line(10, 5.0), line(20, 10.0)]), Some(40.0));
        // Resumed: the clock began anew at step 20, and is twice as fast.
        assert_eq!(left_s(&[line(10, 50.0), line(20, 90.0), line(30, 3.0), line(50, 8.0)]), Some(12.5));
        assert_eq!(left_s(&[line(90, 1.0), line(100, 2.0)]), Some(0.0));
    }
}
