//! What follows when the stage has ended: why it did, the verdict in the attempt's record, and the requeue of this job
//! with what the verdict asks for. Nobody else does it: there is no controller.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::evidence::Evidence;
use super::limit::Limit;
use super::{Executor, say};
use crate::record::{Adjust, AttemptEnd, Cell, JobRef, Next, Resources, Verdict, Why, attempt, exit};
use crate::workflow::error::Result;
use crate::workflow::plan::{Link, Pack};
use crate::workflow::retry::{self, Past, Situation, Way};
use crate::workflow::slurm::{Client, Element, JobState, control, queue};
use crate::workflow::study::Retry;
use crate::workflow::submission::Submission;

/// After so long a controller that still knows of a requeue has written it down.
const REQUEUE_HOLDS: Duration = Duration::from_secs(10);
/// How long a requeue waits for a controller that does not answer. The job's own limit may end it sooner.
const CONTROLLER_BACK: Duration = Duration::from_secs(900);

/// An attempt, and what it runs with.
#[derive(Debug)]
pub struct Standing<'a> {
    /// Where it runs.
    pub executor: Executor,
    /// Its submission.
    pub submission: &'a Submission,
    /// Its cell, with the resources and parameters in force.
    pub cell: &'a Cell,
    /// Its number.
    pub attempt: u32,
    /// Its job.
    pub job: Option<&'a JobRef>,
    /// Its place in a chain of jobs.
    pub link: Option<Link>,
    /// How its cell shares the job with others; none if it has the job for itself.
    pub pack: Option<Pack>,
    /// The attempts before it.
    pub past: &'a [Past],
    /// What it runs with that is other than planned.
    pub adjust: &'a Adjust,
    /// When its allocation ends.
    pub limit: Option<Limit>,
    /// The study's rules.
    pub policy: &'a Retry,
}

/// What is known of the stage's end.
#[derive(Debug, Default)]
pub struct Known {
    /// What Slurm and the kernel said.
    pub evidence: Evidence,
    /// Whether this process was told to end.
    pub told_to_end: bool,
}

impl Known {
    /// Whether Slurm says that it ended the step, or never began it. srun of Slurm 22.05 may end with 0 all the same.
    pub fn was_cut_short(&self) -> bool {
        let found = &self.evidence;
        found.launch_failed || found.node_failure || found.preempted || found.time_limit
    }
}

impl Standing<'_> {
    /// The attempts of this submission that said nothing at their end, counted back from this one: as many as the
    /// study allows, and the cell is given up before it starts. The reason.
    pub fn given_up_before(&self) -> Option<String> {
        let silent = |p: &&Past| p.end.is_none() && p.start.submission == self.submission.name;
        let silent = self.past.iter().rev().take_while(silent).count();
        (silent > self.policy.killed as usize).then(|| {
            format!(
                "given up: {silent} attempts in a row were killed before they could say why; see `sacct` and the nodes' state, then `run_all` again"
            )
        })
    }

    /// Why an earlier link says that this one must not go on; with the exit code.
    pub fn stopped_by_an_earlier_link(&self) -> Option<(u8, String)> {
        self.link.filter(|link| link.number > 1)?;
        let of_ours = self.past.iter().filter(|p| p.start.submission == self.submission.name);
        let final_end = |p: &Past| {
            let end = p.end.clone()?;
            let verdict = end.verdict.as_ref()?;
            let is_final = matches!(verdict.next, Next::Nothing | Next::RunAll) && verdict.why != Why::Done;
            is_final.then_some((p.start.attempt, end))
        };
        let (attempt, end) = of_ours.filter_map(final_end).next()?;
        let code = u8::try_from(end.exit_code).ok().filter(|&c| c != exit::DONE).unwrap_or(1);
        Some((code, format!("attempt {attempt}, of an earlier link, ended for good: {}", end.cause)))
    }

    /// Judges the end of the attempt.
    pub fn judge(&self, code: u8, known: &Known, state: Option<&JobState>, step: Option<u64>) -> (Verdict, String) {
        let why = why(code, known, self.limit.as_ref(), state, self.link.is_some(), self.job.is_some());
        let situation = Situation {
            why,
            cell: self.cell,
            submission: &self.submission.name,
            resources: self.resources(),
            grace_s: self.limit.map_or(0, |l| u32::try_from(l.grace.as_secs()).unwrap_or(u32::MAX)),
            adjust: self.adjust.clone(),
            failed_nodes: known.evidence.failed_nodes.iter().cloned().collect(),
            past: self.past,
            idle: self.idle(step),
            way: self.way(why),
        };
        let (verdict, mut reason) = retry::decide(&situation, self.policy);
        if self.executor == Executor::Local && verdict.next == Next::Requeue {
            "`run_all` starts it again".clone_into(&mut reason);
        }
        (verdict, reason)
    }

    fn way(&self, why: Why) -> Way {
        let site_requeues = self.submission.rules.requeue && self.job.is_some();
        match (self.executor, self.link) {
            (Executor::Local, _) if why == Why::Checkpointed => Way::Requeue,
            (Executor::Local, _) => Way::RunAll(""),
            _ if !self.cell.resumable => {
                Way::RunAll("the stage cannot go on from a checkpoint, so it is not run again by itself")
            }
            (Executor::Slurm, Some(link)) => Way::Link { number: link.number, of: link.of },
            (Executor::Slurm, None) if site_requeues => Way::Requeue,
            (Executor::Slurm, None) => Way::RunAll("this site does not let a job be requeued"),
        }
    }

    /// What the job was given: where the study says nothing, Slurm does.
    fn resources(&self) -> Resources {
        let mebibytes = std::env::var("SLURM_MEM_PER_NODE").ok().and_then(|text| text.parse::<u64>().ok());
        let own = self.executor == Executor::Slurm && self.pack.is_none();
        let given = mebibytes.filter(|&m| m > 0 && own).map(|m| m << 20);
        Resources { mem_bytes: given.max(self.cell.resources.mem_bytes), ..self.cell.resources.clone() }
    }

    /// How many attempts in a row came no further: they ended at the same step as this one or, where a stage reports no
    /// steps, left no newer file among the checkpoints.
    fn idle(&self, step: Option<u64>) -> u32 {
        let goes_on = |end: &AttemptEnd| match &end.verdict {
            Some(verdict) => verdict.next != Next::Nothing,
            None => end.exit_code == i32::from(exit::RESUME),
        };
        let earlier = self.past.iter().rev();
        if let Some(step) = step {
            let same = |p: &&Past| p.end.as_ref().is_some_and(|e| goes_on(e) && e.step == Some(step));
            return earlier.take_while(same).count() as u32;
        }
        let (run_dir, newest) = (self.cell.run_dir(), newest_file(&self.cell.checkpoint_dir()));
        let wrote_nothing = |n: u32| match (newest, modified(&attempt::start_path(&run_dir, n))) {
            (Some(newest), Some(start)) => newest < start,
            _ => true,
        };
        if !wrote_nothing(self.attempt) {
            return 0;
        }
        let same = |p: &&Past| p.end.as_ref().is_some_and(goes_on) && wrote_nothing(p.start.attempt);
        1 + earlier.take_while(same).count() as u32
    }

    /// Does what the verdict says; returns the exit code of this process. `record` writes the end anew when the verdict
    /// could not be carried out.
    pub fn act(&self, code: u8, verdict: &Verdict, record: &mut dyn FnMut(&Verdict, &str) -> Result<()>) -> Result<u8> {
        match verdict.next {
            Next::Nothing if code == exit::RESUME => Ok(1),
            Next::Nothing | Next::RunAll => Ok(code),
            Next::NextLink => Ok(exit::RESUME),
            Next::Requeue if self.executor == Executor::Local => Ok(exit::RESUME),
            // Slurm does it.
            Next::Requeue if verdict.why == Why::Preempted => Ok(exit::RESUME),
            // Whoever started the cells of this job does it, when all have ended.
            Next::Requeue if self.pack.is_some() => Ok(exit::RESUME),
            Next::Requeue => self.requeue(code, verdict, record),
        }
    }

    fn requeue(&self, code: u8, verdict: &Verdict, record: &mut dyn FnMut(&Verdict, &str) -> Result<()>) -> Result<u8> {
        let Some(element) = self.job.and_then(|job| job.id.parse::<Element>().ok()) else { return Ok(code) };
        let client = Client::new();
        say(&format!("requeueing job {element}"));
        // From here on Slurm's signals to this job must not end us, nor the commands that we start: without this the
        // change of a requeued job took effect in half of the cases only.
        ignore_signals();
        if let Err(error) = control::requeue_soon(&client, element, CONTROLLER_BACK) {
            say(&error.to_string());
            let verdict = Verdict { next: Next::RunAll, ..verdict.clone() };
            record(&verdict, &format!("it could not be requeued ({error}): `run_all` submits it"))?;
            return Ok(code);
        }
        let (new, old) = (&verdict.adjust, self.adjust);
        let change = control::Change {
            mem_bytes: new.mem_bytes.filter(|_| new.mem_bytes != old.mem_bytes),
            time_s: new.time_s.filter(|_| new.time_s != old.time_s),
            exclude: if new.exclude == old.exclude { Vec::new() } else { new.exclude.clone() },
        };
        match control::update_soon(&client, element, &change, Duration::from_secs(20)) {
            Ok(()) => {}
            Err(error) => {
                say(&error.to_string());
                record(verdict, &format!("requeued as it was: the job could not be changed ({error})"))?;
            }
        }
        // Slurm ends this job now. A controller that was killed in this moment has forgotten what it was asked, and shows
        // the job as running: it writes down what it knows every five seconds. So this attempt stays until it has seen
        // that the requeue holds. Should all be slow, 75 keeps the children waiting all the same.
        for _ in 0..30 {
            std::thread::sleep(REQUEUE_HOLDS);
            if attempt::is_superseded(&self.cell.run_dir(), self.attempt) {
                break;
            }
            match state_of(self.job) {
                Some(JobState::Running) => {
                    say(&format!("job {element} still runs: requeueing it again"));
                    if let Err(error) = control::requeue_soon(&client, element, CONTROLLER_BACK) {
                        say(&error.to_string());
                    } else if let Err(error) = control::update_soon(&client, element, &change, Duration::from_secs(20))
                    {
                        say(&error.to_string());
                    }
                }
                Some(_) => break,
                // The controller does not answer.
                None => {}
            }
        }
        Ok(exit::RESUME)
    }
}

/// What the queue says of this job; none if it does not answer, or there is none.
pub fn state_of(job: Option<&JobRef>) -> Option<JobState> {
    let element: Element = job?.id.parse().ok()?;
    let queue = queue::query(&Client::new(), &[element.job]).ok()?;
    queue.get(element).map(|entry| entry.state.clone())
}

/// Why an attempt with this exit code ended. `links`: jobs are not requeued here; `slurm`: it has a job.
fn why(code: u8, known: &Known, limit: Option<&Limit>, state: Option<&JobState>, links: bool, slurm: bool) -> Why {
    let evidence = &known.evidence;
    match code {
        exit::DONE => return Why::Done,
        // What the program or its gate said of itself.
        exit::USAGE
        | exit::STALE_INPUT
        | exit::MISSING_INPUT
        | exit::BAD_OUTPUT
        | exit::CANNOT_WRITE
        | exit::SUPERSEDED
        | exit::STOPPED => return Why::Failed,
        exit::RESUME => {}
        _ if evidence.out_of_memory => return Why::OutOfMemory,
        _ if evidence.node_failure || evidence.launch_failed => return Why::NodeFailure,
        _ => {}
    }
    if known.told_to_end || evidence.time_limit || state.is_some_and(|s| *s != JobState::Running) {
        if evidence.time_limit || limit.is_some_and(Limit::is_over) {
            return Why::TimeOut;
        }
        if evidence.preempted {
            return Why::Preempted;
        }
        match state {
            Some(JobState::Running) => {}
            // Slurm does not answer. Of a job that was preempted or cancelled it knows what follows: one of the two it was,
            // or a person told the process itself to end.
            None if slurm => return if links { Why::Preempted } else { Why::Cancelled },
            None => {}
            Some(JobState::Preempted | JobState::Requeued | JobState::Pending | JobState::RequeueHold) => {
                return Why::Preempted;
            }
            // squeue says COMPLETING of a job that was cancelled and of one that was preempted. Who cancels a chain
            // of links cancels all of them.
            Some(_) => return if links { Why::Preempted } else { Why::Cancelled },
        }
    }
    match code {
        exit::RESUME => Why::Checkpointed,
        exit::COLLECTIVE_TIMEOUT | 129.. => Why::Killed,
        // It was told to end, whatever it made of that.
        _ if known.told_to_end => Why::Killed,
        _ => Why::Failed,
    }
}

pub(super) fn ignore_signals() {
    for signal in [libc::SIGTERM, libc::SIGCONT] {
        // SAFETY: SIG_IGN is a valid disposition, and is inherited by the commands that are started.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn newest_file(dir: &Path) -> Option<SystemTime> {
    let files = crate::record::digest::files_below(dir).unwrap_or_default();
    files.iter().filter_map(|file| modified(&dir.join(file))).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes() {
        let limit = |seconds: i64| {
            let end = chrono::Utc::now() + chrono::TimeDelta::seconds(seconds);
            Limit { end, grace: Duration::from_secs(10) }
        };
        let known = |words: &str| Known {
            told_to_end: words.contains("told"),
            evidence: Evidence {
                out_of_memory: words.contains("oom"),
                time_limit: words.contains("limit"),
                preempted: words.contains("preempted"),
                node_failure: words.contains("node"),
                launch_failed: words.contains("launch"),
                ..Evidence::default()
            },
        };
        let (running, completing) = (Some(JobState::Running), Some(JobState::Completing));
        for (code, words, left, state, expected) in [
            (0, "told oom", 100, &running, Why::Done),
            (3, "", 100, &running, Why::Failed),
            (78, "told limit", -1, &running, Why::Failed),
            (1, "oom", 100, &running, Why::OutOfMemory),
            (137, "oom told", 100, &running, Why::OutOfMemory),
            (1, "node", 100, &running, Why::NodeFailure),
            (137, "launch", 100, &running, Why::NodeFailure),
            (137, "", 100, &running, Why::Killed),
            (71, "", 100, &running, Why::Killed),
            (143, "told", 100, &running, Why::Killed),
            (143, "told", 100, &None, Why::Cancelled),
            (75, "told", 100, &None, Why::Cancelled),
            (143, "told", 3, &None, Why::TimeOut),
            (1, "told", 100, &running, Why::Killed),
            (143, "told", 3, &completing, Why::TimeOut),
            (143, "limit", 100, &completing, Why::TimeOut),
            (1, "told", 100, &completing, Why::Cancelled),
            (1, "told preempted", 100, &completing, Why::Preempted),
            (143, "told", 100, &Some(JobState::Preempted), Why::Preempted),
            (75, "", 100, &running, Why::Checkpointed),
            (75, "", 3, &running, Why::Checkpointed),
            (75, "", 100, &None, Why::Checkpointed),
            (75, "told", 100, &running, Why::Checkpointed),
            (75, "told", 3, &completing, Why::TimeOut),
            (75, "told", 100, &completing, Why::Cancelled),
            (75, "", 100, &completing, Why::Cancelled),
            (75, "oom", 100, &running, Why::Checkpointed),
        ] {
            let found = why(code, &known(words), Some(&limit(left)), state.as_ref(), false, true);
            assert_eq!(found, expected, "{code} {words} {left} {state:?}");
        }
        // Where nothing is requeued a link that was ended from outside is followed by the next.
        assert_eq!(why(75, &known("told"), Some(&limit(100)), completing.as_ref(), true, true), Why::Preempted);
    }
}
