//! Retry by cause: what follows when an attempt has ended, decided from the attempts' records and the study's `[retry]`.
//!
//! No controller decides this: the attempt does while it lives, and `run_all` for one that could not ([`note`]: killed
//! with its node, or at a hard time limit). [`decide`] knows no clock, file or process; [`history`] reads the records.

mod again;

use std::path::Path;

pub use again::{Ends, note};

use super::study::Retry;
use crate::record::{Adjust, AttemptEnd, AttemptStart, Cell, Next, Resources, Verdict, Why, attempt, exit};

/// How a cell can be started again from where it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Its job is put back into the queue, and can be changed there.
    Requeue,
    /// Another job of its chain goes on, with the resources that it was submitted with.
    Link {
        /// This job's number, from 1.
        number: u32,
        /// Jobs in all.
        of: u32,
    },
    /// Only a `run_all` can, for this reason.
    RunAll(&'static str),
}

/// An earlier attempt of the cell.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    /// What it said when it began.
    pub start: AttemptStart,
    /// How it ended; none if it was killed with all that could say so.
    pub end: Option<AttemptEnd>,
}

impl Past {
    fn why(&self) -> Why {
        match &self.end {
            None => Why::Killed,
            Some(AttemptEnd { verdict: Some(verdict), .. }) => verdict.why,
            Some(end) if end.exit_code == i32::from(exit::RESUME) => Why::Checkpointed,
            Some(_) => Why::Failed,
        }
    }

    /// What its successor was to run with.
    fn adjust(&self) -> Option<&Adjust> {
        self.end.as_ref()?.verdict.as_ref().map(|v| &v.adjust)
    }
}

/// The attempts of a cell up to number `last`, oldest first; those that cannot be read are left out.
pub fn history(run_dir: &Path, last: u32) -> Vec<Past> {
    let read = |n| {
        let start = attempt::read_start(run_dir, n).ok()?;
        Some(Past { start, end: attempt::read_end(run_dir, n).ok().flatten() })
    };
    (1..=last).filter_map(read).collect()
}

/// What attempts of `submission` run with now, where that is other than planned. The nodes that an earlier submission kept
/// away from are none of it: Slurm knows those of a newer one by its script, and adds to them.
pub fn in_force(past: &[Past], submission: &str) -> Adjust {
    let Some((last, adjust)) = past.iter().rev().find_map(|p| Some((p, p.adjust()?.clone()))) else {
        return Adjust::default();
    };
    if last.start.submission == submission { adjust } else { Adjust { exclude: Vec::new(), ..adjust } }
}

/// `planned` with what is other in force; never less than planned.
pub fn resources(planned: &Resources, adjust: &Adjust) -> Resources {
    Resources {
        mem_bytes: planned.mem_bytes.max(adjust.mem_bytes),
        time_s: planned.time_s.max(adjust.time_s.unwrap_or(0)),
        ..planned.clone()
    }
}

/// Adds nodes to those that a site's sbatch options exclude: sbatch knows one list only, the last.
pub fn keep_away(options: &mut Vec<String>, nodes: &[String]) {
    if nodes.is_empty() {
        return;
    }
    let list = |option: &String| {
        let rest = option.strip_prefix("--exclude").or_else(|| option.strip_prefix("-x"))?;
        Some(rest.trim_start_matches(['=', ' ']).to_owned())
    };
    let mut excluded: Vec<String> = options.iter().filter_map(list).collect();
    options.retain(|option| list(option).is_none());
    excluded.extend(nodes.iter().cloned());
    options.push(format!("--exclude={}", excluded.join(",")));
}

/// An attempt that has ended.
#[derive(Debug, Clone)]
pub struct Situation<'a> {
    /// Why it ended.
    pub why: Why,
    /// Its cell.
    pub cell: &'a Cell,
    /// Its submission.
    pub submission: &'a str,
    /// What it ran with.
    pub resources: Resources,
    /// How long before its limit it was told, seconds.
    pub grace_s: u32,
    /// What of that is other than planned.
    pub adjust: Adjust,
    /// Nodes that failed under it.
    pub failed_nodes: Vec<String>,
    /// The attempts before it.
    pub past: &'a [Past],
    /// How many attempts in a row, this one among them, came no further.
    pub idle: u32,
    /// How the cell can be started again.
    pub way: Way,
}

/// The verdict, and its reason for people.
pub fn decide(s: &Situation<'_>, policy: &Retry) -> (Verdict, String) {
    let mut adjust = s.adjust.clone();
    let outcome = match s.why {
        Why::Done | Why::Failed => Err(String::new()),
        Why::Cancelled => Ok((String::new(), Some("it was cancelled"))),
        Why::Checkpointed | Why::Preempted => not_idle(s, policy).map(|()| (String::new(), None)),
        Why::Killed => not_idle(s, policy).and_then(|()| turn(s, policy.killed, Over::Submission)),
        Why::NodeFailure => {
            for node in s.failed_nodes.iter().filter(|n| !s.adjust.exclude.contains(n)) {
                adjust.exclude.push(node.clone());
            }
            adjust.exclude.sort();
            turn(s, policy.node_failure, Over::Submission)
        }
        Why::OutOfMemory => turn(s, policy.out_of_memory, Over::Everything).and_then(|turn| {
            more_memory(s, policy, &mut adjust)?;
            Ok(turn)
        }),
        Why::TimeOut if matches!(s.way, Way::Link { .. }) && s.cell.resumable => {
            not_idle(s, policy).map(|()| (String::new(), None))
        }
        Why::TimeOut => turn(s, policy.time_out, Over::Everything).and_then(|turn| {
            more_time(s, policy, &mut adjust)?;
            Ok((turn.0, Some("its time was over")))
        }),
    };
    match outcome {
        Err(given_up) => (Verdict { why: s.why, next: Next::Nothing, adjust: s.adjust.clone() }, given_up),
        Ok((turn, only_run_all)) => {
            let way = only_run_all.map_or(s.way, Way::RunAll);
            let (next, mut reason) = go(way, &adjust, &s.adjust);
            if adjust != s.adjust {
                reason = format!("{reason} with {adjust}");
            }
            if !turn.is_empty() {
                reason = format!("{reason} ({turn})");
            }
            (Verdict { why: s.why, next, adjust }, reason)
        }
    }
}

/// Reason for people, and a reason for which only `run_all` can go on.
type Turn = (String, Option<&'static str>);

fn go(way: Way, adjust: &Adjust, before: &Adjust) -> (Next, String) {
    match way {
        Way::Requeue => (Next::Requeue, "requeued".to_owned()),
        Way::Link { .. } if adjust.of_the_job() != before.of_the_job() => {
            (Next::RunAll, "the other links have the old resources: `run_all` submits it".to_owned())
        }
        Way::Link { number, of } if number < of => (Next::NextLink, format!("link {} of {of} goes on", number + 1)),
        Way::Link { of, .. } => {
            (Next::RunAll, format!("this was the last of {of} links: `run_all` submits it from where it is"))
        }
        Way::RunAll("") => (Next::RunAll, "`run_all` submits it".to_owned()),
        Way::RunAll(why) => (Next::RunAll, format!("{why}: `run_all` submits it")),
    }
}

fn not_idle(s: &Situation<'_>, policy: &Retry) -> Result<(), String> {
    if s.idle < policy.without_progress {
        return Ok(());
    }
    Err(format!(
        "given up: {} attempts in a row made no progress; look at {} and give the stage more time, then `run_all` again",
        s.idle,
        s.cell.run_dir().join("log.txt").display()
    ))
}

/// Which attempts are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// Those of this submission: a person who runs it again begins to count anew.
    Submission,
    /// All: what grows with each of them is bounded.
    Everything,
}

/// `2 of 3`, or why there is no further turn.
fn turn(s: &Situation<'_>, most: u32, over: Over) -> Result<Turn, String> {
    let same = |p: &&Past| p.why() == s.why && (over == Over::Everything || p.start.submission == s.submission);
    let before = s.past.iter().filter(same).count() as u32;
    if before < most {
        return Ok((format!("{} of {most}", before + 1), None));
    }
    let times = if before == 0 { "once".to_owned() } else { format!("{} times", before + 1) };
    Err(format!(
        "given up: {} {times}; `[retry]` of the study allows {most} more tries; mend it, then `run_all` again",
        s.why
    ))
}

/// Recomputing activations first, where the stage can: it costs time, not memory, and changes no bit.
fn more_memory(s: &Situation<'_>, policy: &Retry, adjust: &mut Adjust) -> Result<(), String> {
    let parameter = s.cell.params.get("activation_checkpointing").and_then(serde_json::Value::as_bool);
    if parameter == Some(false) && !adjust.activation_checkpointing {
        adjust.activation_checkpointing = true;
        return Ok(());
    }
    let Some(now) = s.resources.mem_bytes else {
        return Err("given up: out of memory, and the study does not say how much it asks for: set `resources.mem`, then `run_all` again".to_owned());
    };
    // Whole mebibytes, as Slurm counts.
    let wanted = (now as f64 * policy.memory_factor / f64::from(1 << 20)).ceil() as u64 * (1 << 20);
    match wanted.min(policy.max_mem_bytes.unwrap_or(u64::MAX)) {
        more if more > now => {
            adjust.mem_bytes = Some(more);
            Ok(())
        }
        _ => Err("given up: out of memory with as much as `max_mem` in [retry] allows; raise it, or take more ranks, then `run_all` again".to_owned()),
    }
}

/// A stage that can go on is told earlier; else it gets more time.
fn more_time(s: &Situation<'_>, policy: &Retry, adjust: &mut Adjust) -> Result<(), String> {
    let now = s.resources.time_s;
    let earlier = u64::from(s.grace_s).saturating_mul(2).max(60).min(now / 2);
    if s.cell.resumable && earlier > u64::from(s.grace_s) {
        adjust.grace_s = u32::try_from(earlier).ok();
        return Ok(());
    }
    let wanted = (now as f64 * policy.time_factor).ceil() as u64;
    match wanted.min(policy.max_time_s.unwrap_or(u64::MAX)) {
        more if more > now => {
            adjust.time_s = Some(more);
            Ok(())
        }
        _ => Err("given up: its time limit is as long as `max_time` in [retry] allows; raise it, or make the stage smaller, then `run_all` again".to_owned()),
    }
}

#[cfg(test)]
mod tests;
