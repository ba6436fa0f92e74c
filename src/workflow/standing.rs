//! Where a cell stands: its seal first, then what Slurm says of its newest job, then what its newest attempt wrote.
//!
//! Whether something of a cell still runs has three answers: alive, ended, unknown. Alive is what Slurm says; if it
//! cannot be asked, a heartbeat younger than three intervals is *probably running*, and all else is *unknown*. An end is
//! never concluded from silence. Pure: what is judged is given.

use serde::Serialize;

use super::answers::Said;
use super::history::{CellFate, CellJob};
use super::plan::CellState;
use super::slurm::{Element, JobState, Liveness};
use crate::record::{AttemptEnd, AttemptStart, Fingerprint, Next, Why, exit};

/// Where a cell stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// Sealed and fresh.
    Done,
    /// A job of it runs.
    Running,
    /// A job of it waits to run.
    Queued,
    /// Slurm cannot be asked, and its heartbeat is young.
    ProbablyRunning,
    /// Nobody can tell.
    Unknown,
    /// Its job waits for what can never happen.
    Blocked,
    /// It checkpointed, and nothing runs.
    Interrupted,
    /// Its last attempt or job failed.
    Failed,
    /// Its job was cancelled.
    Cancelled,
    /// A gate or kill criterion said stop, here or upstream.
    Stopped,
    /// A gate waits for a person, here or upstream.
    Waiting,
    /// Sealed under other parameters or with other parents.
    Stale,
    /// Sealed, but an output is gone or changed.
    MissingOutputs,
    /// Sealed, but the seal cannot be trusted.
    Damaged,
    /// Nothing of it has run or been submitted.
    Missing,
}

impl Word {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Running => "running",
            Self::Queued => "queued",
            Self::ProbablyRunning => "probably-running",
            Self::Unknown => "unknown",
            Self::Blocked => "blocked",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
            Self::Stale => "stale",
            Self::MissingOutputs => "missing-outputs",
            Self::Damaged => "damaged",
            Self::Missing => "missing",
        }
    }

    /// Whether something of the cell may still happen by itself.
    pub fn may_move(self) -> bool {
        matches!(self, Self::Running | Self::Queued | Self::ProbablyRunning | Self::Unknown)
    }
}

/// Why a job or attempt ended without a seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Its own exit code.
    Exit,
    /// It checkpointed, and was not started again.
    Checkpointed,
    /// It checkpointed again and again and came no further.
    NoProgress,
    /// More memory than it was given.
    OutOfMemory,
    /// Its time limit.
    TimeLimit,
    /// A node failed.
    NodeFailure,
    /// Another job took its place.
    Preempted,
    /// A signal, or it vanished without a word.
    Killed,
    /// A person cancelled it.
    Cancelled,
    /// Slurm cancelled it: what it waited for can never happen.
    DeadDependency,
    /// sbatch refused it.
    Refused,
    /// Whether sbatch took it, nobody knows.
    LostReply,
    /// It finished, and its seal is not there any more.
    SealGone,
    /// Nobody wrote down why.
    Unexplained,
}

/// What an attempt's life looks like from here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pulse {
    /// It has said its end.
    Ended,
    /// Its process is on this host, and lives.
    Lives,
    /// Its process is known to be gone, and it has not said its end.
    Gone,
    /// On another host. Seconds since its last heartbeat, and between two; none without a heartbeat.
    Elsewhere(Option<(f64, f64)>),
}

impl Pulse {
    /// A heartbeat younger than three intervals, in seconds.
    fn young(self) -> Option<f64> {
        match self {
            Self::Elsewhere(Some((age_s, every_s))) if age_s < 3.0 * every_s => Some(age_s.max(0.0)),
            _ => None,
        }
    }
}

/// The newest attempt of a cell.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What it said when it began.
    pub start: AttemptStart,
    /// What it said when it ended.
    pub end: Option<AttemptEnd>,
    /// Whether it lives.
    pub pulse: Pulse,
}

impl Attempt {
    /// Whether it has said its end, and nothing of its job goes on from there.
    fn is_final(&self) -> bool {
        let next = self.end.as_ref().map(|end| end.verdict.as_ref().map(|verdict| verdict.next));
        matches!(next, Some(Some(Next::Nothing | Next::RunAll)))
    }
}

/// What is known of a cell beside its seal.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence<'a> {
    /// The newest job that was intended for it.
    pub job: Option<&'a CellJob>,
    /// What Slurm says of that job.
    pub said: Option<Said<'a>>,
    /// Its newest attempt.
    pub attempt: Option<&'a Attempt>,
}

/// Where a cell stands, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// In one word.
    pub word: Word,
    /// Whether something of it still runs; none where nothing was ever started.
    pub liveness: Option<Liveness>,
    /// Why the last job or attempt ended, if it ended without a seal.
    pub cause: Option<Cause>,
    /// For people; empty where the word says all.
    pub detail: String,
}

impl Standing {
    fn new(word: Word, liveness: Liveness, detail: impl Into<String>) -> Self {
        Self { word, liveness: Some(liveness), cause: None, detail: detail.into() }
    }

    fn ended(word: Word, cause: Cause, detail: impl Into<String>) -> Self {
        Self { cause: Some(cause), ..Self::new(word, Liveness::Ended, detail) }
    }
}

/// Judges a cell that the plan calls `state`, with the fingerprint that it must have.
pub fn judge(state: &CellState, fingerprint: &Fingerprint, evidence: Evidence) -> Standing {
    let base = match state {
        CellState::Done { .. } => return Standing::new(Word::Done, Liveness::Ended, state.reason()),
        CellState::Stopped(halt) => return Standing::new(Word::Stopped, Liveness::Ended, halt.why.as_str()),
        CellState::Waiting(halt) => return Standing::new(Word::Waiting, Liveness::Ended, halt.why.as_str()),
        CellState::Queued(_) | CellState::QueuedStale(_) | CellState::Missing => Word::Missing,
        CellState::Stale(_) => Word::Stale,
        CellState::MissingOutputs(_) => Word::MissingOutputs,
        CellState::Damaged(_) => Word::Damaged,
    };
    let attempt = evidence.attempt.filter(|a| a.start.fingerprint == *fingerprint);
    // A local attempt that is newer than the job is what counts.
    let job =
        evidence.job.filter(|job| !attempt.is_some_and(|a| a.start.job.is_none() && a.start.started_at > job.time));
    let standing = match job {
        Some(job) if matches!(state, CellState::QueuedStale(_)) => {
            let mut standing = of_job(job, evidence.said, None);
            let why = if job.fingerprint == *fingerprint {
                "a needed cell must run first: `run_all` submits it anew"
            } else {
                "with other parameters: `run_all --replace` submits it anew"
            };
            standing.detail = format!("{}; {why}", standing.detail);
            Some(standing)
        }
        Some(job) if job.fingerprint == *fingerprint => Some(of_job(job, evidence.said, attempt)),
        _ => attempt.map(of_attempt),
    };
    match (base, standing) {
        (_, Some(standing)) if standing.liveness != Some(Liveness::Ended) || base == Word::Missing => standing,
        // The seal that lies there says more than how the last try to replace it ended.
        (Word::Missing, _) => Standing { word: base, liveness: None, cause: None, detail: String::new() },
        (_, standing) => {
            let tried = standing.filter(|s| !matches!(s.cause, None | Some(Cause::SealGone)));
            let again = tried.as_ref().map(|s| format!("; {}", s.detail)).unwrap_or_default();
            let detail = format!("{}{again}", state.reason());
            Standing { cause: tried.and_then(|s| s.cause), ..Standing::new(base, Liveness::Ended, detail) }
        }
    }
}

fn of_job(job: &CellJob, said: Option<Said>, attempt: Option<&Attempt>) -> Standing {
    let element = match (&job.fate, job.element()) {
        (CellFate::Refused(message), _) => {
            return Standing::ended(
                Word::Missing,
                Cause::Refused,
                format!("sbatch refused job {}: {message}", job.name),
            );
        }
        (CellFate::Gone { reason, user, time }, _) => {
            let detail = format!("{reason}, by {user} on {}", time.format("%F %T UTC"));
            return Standing::ended(Word::Cancelled, Cause::Cancelled, detail);
        }
        (CellFate::Uncertain(why), _) => {
            let detail = format!("nobody knows whether Slurm took job {} ({why})", job.name);
            return Standing {
                cause: Some(Cause::LostReply),
                ..Standing::new(Word::Unknown, Liveness::Unknown, detail)
            };
        }
        (CellFate::Submitted, None) => {
            return Standing::new(Word::Unknown, Liveness::Unknown, format!("job {} has an id that is none", job.name));
        }
        (CellFate::Submitted, Some(element)) => element,
    };
    // Of this job, not of one before it.
    let attempt = attempt.filter(|a| a.start.job.as_ref().is_some_and(|j| j.id == element.to_string()));
    match said {
        Some(Said::Listed(entry)) if entry.is_dead() => Standing {
            cause: Some(Cause::DeadDependency),
            ..Standing::new(
                Word::Blocked,
                Liveness::Ended,
                format!("job {element} waits for what can never happen: {}", entry.dependency),
            )
        },
        // Of cells that share a job, one may have ended for good while the others run.
        Some(Said::Listed(entry))
            if job.packed && entry.liveness() == Liveness::Alive && attempt.is_some_and(Attempt::is_final) =>
        {
            ended(element, None, attempt)
        }
        Some(Said::Listed(entry)) => match entry.liveness() {
            Liveness::Alive if entry.state == JobState::Pending => {
                Standing::new(Word::Queued, Liveness::Alive, format!("job {element} PENDING ({})", entry.reason))
            }
            Liveness::Alive if entry.state.waits() => {
                let held = "`scontrol release` lets it go on, if it is held";
                let detail = format!("job {element} {} ({}); {held}", entry.state.word(), entry.reason);
                Standing::new(Word::Queued, Liveness::Alive, detail)
            }
            Liveness::Alive if job.packed && attempt.is_none() => {
                let detail = format!("job {element} runs, and this cell has not begun in it");
                Standing::new(Word::Queued, Liveness::Alive, detail)
            }
            Liveness::Alive => {
                let detail = match &entry.state {
                    JobState::Running => format!("job {element}"),
                    other => format!("job {element} {}", other.word()),
                };
                Standing::new(Word::Running, Liveness::Alive, detail)
            }
            Liveness::Unknown => {
                let word = entry.state.word();
                silent(element, attempt, &format!("Slurm calls it {word:?}, a state that this program does not know"))
            }
            Liveness::Ended => ended(element, Some((&entry.state, &entry.reason, None)), attempt),
        },
        Some(Said::Forgotten(record)) => {
            ended(element, record.map(|r| (&r.state, "", r.exit_code.filter(|c| *c != 0))), attempt)
        }
        Some(Said::Silent(last)) => {
            let last = last.map(|e| format!("; when it answered last, it was {}", e.state.word())).unwrap_or_default();
            silent(element, attempt, &format!("Slurm cannot be asked{last}"))
        }
        None => silent(element, attempt, "Slurm was not asked"),
    }
}

/// Nobody can tell whether it is alive: a young heartbeat is a sign, and nothing else is.
fn silent(element: Element, attempt: Option<&Attempt>, why: &str) -> Standing {
    let attempt_of = |a: &Attempt| format!("attempt {} on {}", a.start.attempt, a.start.host);
    match attempt.map(|a| (a, a.pulse)) {
        Some((a, Pulse::Lives)) => {
            let detail = format!("job {element}: {why}; the process of {} lives", attempt_of(a));
            Standing::new(Word::ProbablyRunning, Liveness::Unknown, detail)
        }
        Some((a, pulse)) if pulse.young().is_some() => {
            let age_s = pulse.young().unwrap_or_default();
            let detail = format!("job {element}: {why}; {} wrote a heartbeat {age_s:.0} s ago", attempt_of(a));
            Standing::new(Word::ProbablyRunning, Liveness::Unknown, detail)
        }
        // A stage that said why it ended has ended, unless it is to go on.
        Some((a, Pulse::Ended)) if a.end.as_ref().is_some_and(|e| e.exit_code != i32::from(exit::RESUME)) => {
            ended(element, None, attempt)
        }
        _ => Standing::new(Word::Unknown, Liveness::Unknown, format!("job {element}: {why}")),
    }
}

/// Why it ended: the attempt's own word, sharpened by Slurm's; without both nobody knows.
fn ended(element: Element, slurm: Option<(&JobState, &str, Option<i32>)>, attempt: Option<&Attempt>) -> Standing {
    let by_slurm = slurm.and_then(|(state, reason, _)| match state {
        JobState::OutOfMemory => Some(Cause::OutOfMemory),
        JobState::Timeout | JobState::Deadline => Some(Cause::TimeLimit),
        JobState::NodeFail | JobState::BootFail => Some(Cause::NodeFailure),
        JobState::Preempted => Some(Cause::Preempted),
        JobState::Cancelled if reason == "DependencyNeverSatisfied" => Some(Cause::DeadDependency),
        JobState::Cancelled => Some(Cause::Cancelled),
        _ => None,
    });
    let job = match slurm {
        Some((state, _, _)) => format!("job {element} {}", state.word()),
        None => format!("job {element}"),
    };
    let standing = |cause: Cause, detail: String| {
        let word = match cause {
            Cause::Checkpointed => Word::Interrupted,
            Cause::Cancelled | Cause::DeadDependency => Word::Cancelled,
            Cause::SealGone => Word::Missing,
            _ => Word::Failed,
        };
        Standing::ended(word, cause, detail)
    };
    let Some(attempt) = attempt else {
        // Before it claimed the cell: the gate, the site's modules, or Slurm itself.
        return match (by_slurm, slurm.and_then(|(_, _, code)| code)) {
            (Some(Cause::DeadDependency), _) => {
                standing(Cause::DeadDependency, format!("{job} by Slurm: a job that it waited for did not succeed"))
            }
            (Some(cause), _) => standing(cause, format!("{job} before its attempt began")),
            (None, Some(code)) => {
                let detail = format!("{job} with exit {code} ({}) before its attempt began", exit::meaning(code));
                standing(if code > 128 { Cause::Killed } else { Cause::Exit }, detail)
            }
            (None, None) if slurm.is_some() => standing(Cause::Exit, format!("{job} before its attempt began")),
            (None, None) => standing(Cause::Unexplained, format!("{job} has ended, and nobody wrote down why")),
        };
    };
    let (by_attempt, said) = own_cause(attempt);
    let cause = match (by_attempt, by_slurm) {
        (Cause::Checkpointed, Some(Cause::Cancelled)) => Cause::Cancelled,
        (Cause::Exit | Cause::Killed, Some(cause)) if !is_documented(attempt) => cause,
        (cause, _) => cause,
    };
    standing(cause, format!("{said}; {job}"))
}

/// An attempt without a job, or whose job nobody remembers.
fn of_attempt(attempt: &Attempt) -> Standing {
    let start = &attempt.start;
    let name = format!("attempt {} on {}", start.attempt, start.host);
    match attempt.pulse {
        Pulse::Lives => Standing::new(Word::Running, Liveness::Alive, format!("{name}, process {}", start.pid)),
        Pulse::Ended | Pulse::Gone => {
            let (cause, detail) = own_cause(attempt);
            let word = match cause {
                Cause::Checkpointed => Word::Interrupted,
                Cause::SealGone => Word::Missing,
                _ => Word::Failed,
            };
            Standing::ended(word, cause, detail)
        }
        pulse @ Pulse::Elsewhere(_) => match pulse.young() {
            Some(age_s) => Standing::new(
                Word::ProbablyRunning,
                Liveness::Unknown,
                format!("{name} wrote a heartbeat {age_s:.0} s ago"),
            ),
            None => Standing::new(
                Word::Unknown,
                Liveness::Unknown,
                format!("{name} has not said its end, and writes no heartbeat any more"),
            ),
        },
    }
}

/// What an attempt that does not live says of its end.
fn own_cause(attempt: &Attempt) -> (Cause, String) {
    let name = format!("attempt {} on {}", attempt.start.attempt, attempt.start.host);
    let Some(end) = &attempt.end else { return (Cause::Killed, format!("{name} was killed without a word")) };
    let step = end.step.map(|step| format!(" at step {step}")).unwrap_or_default();
    let code = end.exit_code;
    let verdict = end.verdict.as_ref();
    let gave_up = verdict.is_some_and(|v| v.next == Next::Nothing);
    let left = if verdict.is_some_and(|v| v.next == Next::RunAll) { ", and the next `run_all` submits it" } else { "" };
    let cause = match code {
        code if code == i32::from(exit::RESUME) && !gave_up => {
            return (Cause::Checkpointed, format!("{name} checkpointed{step}{left}"));
        }
        code if code == i32::from(exit::RESUME) => Cause::NoProgress,
        0 => return (Cause::SealGone, format!("{name} finished, and its seal is not there any more")),
        _ if verdict.is_some_and(|v| v.why == Why::OutOfMemory) => Cause::OutOfMemory,
        _ if verdict.is_some_and(|v| v.why == Why::TimeOut) => Cause::TimeLimit,
        _ if verdict.is_some_and(|v| v.why == Why::NodeFailure) => Cause::NodeFailure,
        _ if verdict.is_some_and(|v| v.why == Why::Preempted) => Cause::Preempted,
        code if code > 128 => Cause::Killed,
        _ => Cause::Exit,
    };
    // The words of an attempt and of its stage are others' text.
    let why: String = end.cause.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let why = if why.is_empty() { exit::meaning(code).to_owned() } else { why };
    (cause, format!("{name} ended{step} with exit {code} ({why}){left}"))
}

/// Whether the attempt ended with a code that says more than *failed*.
fn is_documented(attempt: &Attempt) -> bool {
    attempt.end.as_ref().is_some_and(|end| end.exit_code != 1 && exit::meaning(end.exit_code) != exit::meaning(2))
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};

    use super::*;
    use crate::record::attempt::ATTEMPT_VERSION;
    use crate::record::{CellKey, Digest, JobRef, Name};
    use crate::workflow::slurm::accounting::Record;
    use crate::workflow::slurm::queue::Entry;

    fn print() -> Fingerprint {
        Digest::of_bytes(b"now")
    }

    fn job(fate: CellFate) -> CellJob {
        CellJob {
            home: None,
            name: "m.train.1".into(),
            submission: "1".into(),
            packed: false,
            slot: Some(0),
            fingerprint: print(),
            user: "ada".into(),
            cluster: "alps".into(),
            time: DateTime::UNIX_EPOCH,
            id: Some(7),
            fate,
        }
    }

    /// Attempt 2 of a job, or a local one; `code` is that of its end.
    fn attempt(job: Option<&str>, code: Option<i32>, pulse: Pulse) -> Attempt {
        let name = |s| Name::new(s).unwrap();
        let start = AttemptStart {
            version: ATTEMPT_VERSION,
            attempt: 2,
            key: CellKey { study: name("m"), profile: name("p"), stage: name("train"), arm: None, seed: Some(1) },
            fingerprint: print(),
            submission: "1".into(),
            job: job.map(|id| JobRef { id: id.into(), restart: 0 }),
            host: "n1".into(),
            pid: 1,
            boot_id: String::new(),
            user: "ada".into(),
            started_at: DateTime::UNIX_EPOCH + TimeDelta::seconds(60),
            inputs: None,
        };
        let end = code.map(|code| AttemptEnd {
            version: ATTEMPT_VERSION,
            exit_code: code,
            cause: exit::meaning(code).into(),
            step: Some(60),
            ended_at: DateTime::UNIX_EPOCH,
            wall_s: 1.0,
            verdict: None,
        });
        Attempt { start, end, pulse }
    }

    fn entry(state: &str, reason: &str) -> Entry {
        Entry {
            element: Element { job: 7, index: Some(0) },
            name: "m.train.1".into(),
            state: JobState::from_word(state),
            reason: reason.into(),
            start_s: None,
            end_s: None,
            dependency: "aftercorr:6_*(failed)".into(),
        }
    }

    fn record(state: &str, exit_code: i32) -> Record {
        Record {
            element: Element { job: 7, index: Some(0) },
            state: JobState::from_word(state),
            exit_code: Some(exit_code),
            signal: Some(0),
            elapsed_s: 1,
            alloc_tres: String::new(),
            submit_s: None,
            start_s: None,
            end_s: None,
            nodes: String::new(),
        }
    }

    /// `word liveness cause`.
    fn stand(said: Option<Said>, attempt: Option<&Attempt>) -> String {
        let job = job(CellFate::Submitted);
        shown(&judge(&CellState::Missing, &print(), Evidence { job: Some(&job), said, attempt }))
    }

    fn shown(standing: &Standing) -> String {
        let liveness = standing.liveness.map_or("-".to_owned(), |l| format!("{l:?}"));
        let cause = standing.cause.map_or("-".to_owned(), |c| format!("{c:?}"));
        format!("{} {liveness} {cause}", standing.word.as_str())
    }

    #[test]
    fn slurm_s_word_counts_while_it_answers() {
        let of_job = |code| attempt(Some("7_0"), code, Pulse::Ended);
        let earlier = attempt(Some("6_0"), Some(3), Pulse::Ended);
        let cases: [(Entry, Option<Attempt>, &str); 16] = [
            (entry("PENDING", "Priority"), None, "queued Alive -"),
            // Requeued after a checkpoint: it lives, whatever its last attempt said.
            (entry("PENDING", "BeginTime"), Some(of_job(Some(75))), "queued Alive -"),
            (entry("RUNNING", "None"), None, "running Alive -"),
            (entry("COMPLETING", "None"), Some(of_job(Some(3))), "running Alive -"),
            (entry("SUSPENDED", "None"), None, "running Alive -"),
            (entry("PENDING", "DependencyNeverSatisfied"), None, "blocked Ended DeadDependency"),
            (entry("EXPEDITING", "None"), None, "unknown Unknown -"),
            (entry("FAILED", "NonZeroExitCode"), Some(of_job(Some(3))), "failed Ended Exit"),
            (entry("FAILED", "NonZeroExitCode"), Some(of_job(Some(75))), "interrupted Ended Checkpointed"),
            (entry("FAILED", "NonZeroExitCode"), Some(earlier), "failed Ended Exit"),
            (entry("CANCELLED", "DependencyNeverSatisfied"), None, "cancelled Ended DeadDependency"),
            (entry("CANCELLED", "None"), Some(of_job(Some(75))), "cancelled Ended Cancelled"),
            (entry("TIMEOUT", "TimeLimit"), Some(of_job(None)), "failed Ended TimeLimit"),
            // srun returns 1 where the memory ran out: Slurm knows better.
            (entry("OUT_OF_MEMORY", "OutOfMemory"), Some(of_job(Some(1))), "failed Ended OutOfMemory"),
            (entry("FAILED", "NonZeroExitCode"), Some(of_job(Some(70))), "failed Ended Exit"),
            (entry("COMPLETED", "None"), Some(of_job(Some(0))), "missing Ended SealGone"),
        ];
        for (entry, attempt, expected) in cases {
            assert_eq!(stand(Some(Said::Listed(&entry)), attempt.as_ref()), expected, "{entry:?} {attempt:?}");
        }
    }

    #[test]
    fn what_slurm_forgot_has_ended_and_why_is_told_by_attempts_then_accounts() {
        let of_job = |code| attempt(Some("7_0"), code, Pulse::Elsewhere(None));
        let cases: [(Option<Record>, Option<Attempt>, &str); 9] = [
            (None, None, "failed Ended Unexplained"),
            (None, Some(of_job(Some(3))), "failed Ended Exit"),
            (None, Some(of_job(Some(75))), "interrupted Ended Checkpointed"),
            (None, Some(of_job(None)), "failed Ended Killed"),
            (Some(record("NODE_FAIL", 0)), Some(of_job(None)), "failed Ended NodeFailure"),
            (Some(record("PREEMPTED", 0)), Some(of_job(None)), "failed Ended Preempted"),
            (Some(record("FAILED", 66)), None, "failed Ended Exit"),
            (Some(record("FAILED", 137)), None, "failed Ended Killed"),
            (Some(record("CANCELLED by 1000", 0)), None, "cancelled Ended Cancelled"),
        ];
        for (record, attempt, expected) in cases {
            assert_eq!(stand(Some(Said::Forgotten(record.as_ref())), attempt.as_ref()), expected, "{record:?}");
        }
    }

    #[test]
    fn silence_is_no_end_and_only_a_young_heartbeat_is_a_sign_of_life() {
        let with = |code, pulse| attempt(Some("7_0"), code, pulse);
        let beat = |age_s| Pulse::Elsewhere(Some((age_s, 30.0)));
        let last = entry("RUNNING", "None");
        let cases: [(Option<Attempt>, &str); 9] = [
            (None, "unknown Unknown -"),
            (Some(with(None, beat(89.0))), "probably-running Unknown -"),
            (Some(with(None, beat(-2.0))), "probably-running Unknown -"),
            (Some(with(None, beat(91.0))), "unknown Unknown -"),
            (Some(with(None, Pulse::Elsewhere(None))), "unknown Unknown -"),
            (Some(with(None, Pulse::Lives)), "probably-running Unknown -"),
            // It may have been requeued; that it failed for good it has said itself.
            (Some(with(Some(75), Pulse::Ended)), "unknown Unknown -"),
            (Some(with(Some(3), Pulse::Ended)), "failed Ended Exit"),
            (Some(attempt(Some("6_0"), None, beat(1.0))), "unknown Unknown -"),
        ];
        for (attempt, expected) in cases {
            for said in [Some(Said::Silent(Some(&last))), Some(Said::Silent(None)), None] {
                assert_eq!(stand(said, attempt.as_ref()), expected, "{attempt:?} {said:?}");
            }
        }
        let job = job(CellFate::Submitted);
        let said = Some(Said::Silent(Some(&last)));
        let standing = judge(&CellState::Missing, &print(), Evidence { job: Some(&job), said, attempt: None });
        assert_eq!(standing.detail, "job 7_0: Slurm cannot be asked; when it answered last, it was RUNNING");
    }

    #[test]
    fn what_never_reached_slurm() {
        let stand = |fate| {
            let job = CellJob { id: None, ..job(fate) };
            shown(&judge(&CellState::Missing, &print(), Evidence { job: Some(&job), ..Evidence::default() }))
        };
        assert_eq!(stand(CellFate::Refused("no".into())), "missing Ended Refused");
        assert_eq!(stand(CellFate::Uncertain("lost".into())), "unknown Unknown LostReply");
        let gone = CellFate::Gone { reason: "cancelled".into(), user: "ada".into(), time: DateTime::UNIX_EPOCH };
        assert_eq!(stand(gone), "cancelled Ended Cancelled");
        let never = judge(&CellState::Missing, &print(), Evidence::default());
        assert_eq!((shown(&never), never.detail.as_str()), ("missing - -".to_owned(), ""));
    }

    #[test]
    fn local_attempts_count_where_they_are_the_newest() {
        let local = |code, pulse| attempt(None, code, pulse);
        let job = job(CellFate::Submitted);
        for (attempt, expected) in [
            (local(None, Pulse::Lives), "running Alive -"),
            (local(None, Pulse::Gone), "failed Ended Killed"),
            (local(Some(75), Pulse::Ended), "interrupted Ended Checkpointed"),
            (local(Some(1), Pulse::Ended), "failed Ended Exit"),
            (local(None, Pulse::Elsewhere(Some((1.0, 5.0)))), "probably-running Unknown -"),
            (local(None, Pulse::Elsewhere(Some((99.0, 5.0)))), "unknown Unknown -"),
        ] {
            for job in [None, Some(&job)] {
                let evidence = Evidence { job, said: None, attempt: Some(&attempt) };
                assert_eq!(shown(&judge(&CellState::Missing, &print(), evidence)), expected, "{attempt:?} {job:?}");
            }
            // Of other parameters: it says nothing of this cell.
            let evidence = Evidence { job: None, said: None, attempt: Some(&attempt) };
            assert_eq!(shown(&judge(&CellState::Missing, &Digest::of_bytes(b"other"), evidence)), "missing - -");
        }
    }

    #[test]
    fn a_seal_says_more_than_the_last_try_to_replace_it() {
        let job = job(CellFate::Submitted);
        let state = CellState::MissingOutputs("output `a` is gone".into());
        let failed = attempt(Some("7_0"), Some(3), Pulse::Ended);
        let said = Some(Said::Forgotten(None));
        let standing = judge(&state, &print(), Evidence { job: Some(&job), said, attempt: Some(&failed) });
        assert_eq!(shown(&standing), "missing-outputs Ended Exit");
        assert!(standing.detail.starts_with("output `a` is gone; attempt 2 on n1 ended at step 60 with exit 3"));
        let alive = entry("EXPEDITING", "None");
        let standing =
            judge(&state, &print(), Evidence { job: Some(&job), said: Some(Said::Listed(&alive)), attempt: None });
        assert_eq!(shown(&standing), "unknown Unknown -");
        let done = judge(
            &CellState::Done { code: None },
            &print(),
            Evidence { job: Some(&job), said, attempt: Some(&failed) },
        );
        assert_eq!(shown(&done), "done Ended -");
    }
}
