//! What Slurm's queue says: one squeue for many jobs.
//!
//! The controller forgets a job some minutes after its end (`MinJobAge`), so a job that is not listed has
//! ended or never was; which of the two, squeue cannot say. An unknown state is unknown, never an end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Client, Element, JobState, Liveness, SlurmError, reason};

/// Job ids in one call of squeue: a command line stays far below its limit.
const CHUNK: usize = 400;

/// One job or array element that the controller remembers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which.
    pub element: Element,
    /// The job's name: an id alone does not prove that it is the job that was submitted.
    pub name: String,
    /// Its state.
    pub state: JobState,
    /// Why it waits or ended, in Slurm's word.
    pub reason: String,
    /// Start, or the expected one, seconds since 1970.
    pub start_s: Option<i64>,
    /// End, or the latest one that its time limit allows, seconds since 1970.
    pub end_s: Option<i64>,
    /// The dependencies that are left, as Slurm prints them.
    pub dependency: String,
}

impl Entry {
    /// Whether it waits for what can never happen: it looks pending, and never runs.
    pub fn is_dead(&self) -> bool {
        self.state == JobState::Pending && self.reason == "DependencyNeverSatisfied"
    }

    /// Whether Slurm holds it because it could not start it.
    pub fn is_held_by_slurm(&self) -> bool {
        self.state == JobState::Pending && reason::is_held_by_slurm(&self.reason)
    }

    /// Whether it still runs or will run.
    pub fn liveness(&self) -> Liveness {
        if self.is_dead() { Liveness::Ended } else { self.state.liveness() }
    }
}

/// What the controller remembers of the jobs that were asked for.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    entries: BTreeMap<Element, Entry>,
}

impl Queue {
    /// One element; none if the controller has forgotten it.
    pub fn get(&self, element: Element) -> Option<&Entry> {
        self.entries.get(&element)
    }

    /// Every element of a job.
    pub fn of_job(&self, job: u32) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(move |entry| entry.element.job == job)
    }

    /// Everything, by job and index.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }
}

/// Asks for the jobs `ids`, whole arrays of them. No ids: no question.
///
/// # Errors
/// squeue gives no answer; nothing about the jobs follows from that.
pub fn query(client: &Client, ids: &[u32]) -> Result<Queue, SlurmError> {
    let mut queue = Queue::default();
    for chunk in ids.chunks(CHUNK) {
        let list: Vec<_> = chunk.iter().map(u32::to_string).collect();
        // With one id only, a forgotten job is an error; with the dummy before it, an empty answer.
        let list = format!("1,{}", list.join(","));
        let reply = client.ask("squeue", &["-h", "-r", "-t", "all", "-o", FORMAT, "-j", &list])?;
        if reply.status.success() {
            for entry in parse(&reply.stdout)?.into_iter().filter(|e| chunk.contains(&e.element.job)) {
                queue.entries.insert(entry.element, entry);
            }
        } else if !reply.stderr.contains("Invalid job id") {
            return Err(SlurmError::Failed {
                program: "squeue".to_owned(),
                code: reply.status.code(),
                message: reply.message(),
            });
        }
    }
    Ok(queue)
}

/// Array job, array index, state, reason, start, end, name, dependency.
const FORMAT: &str = "%F|%K|%T|%r|%S|%e|%j|%E";

fn parse(text: &str) -> Result<Vec<Entry>, SlurmError> {
    text.lines()
        .filter(|line| line.contains('|'))
        .map(|line| {
            parse_line(line).ok_or_else(|| SlurmError::Output { program: "squeue".to_owned(), text: line.to_owned() })
        })
        .collect()
}

fn parse_line(line: &str) -> Option<Entry> {
    let mut fields = line.splitn(8, '|').map(str::trim);
    let job = fields.next()?.parse().ok()?;
    let index = match fields.next()? {
        "N/A" | "" => None,
        index => Some(index.parse().ok()?),
    };
    let state = JobState::from_word(fields.next()?);
    let reason = fields.next()?.to_owned();
    let (start_s, end_s) = (fields.next()?.parse().ok(), fields.next()?.parse().ok());
    let name = fields.next()?.to_owned();
    let dependency = fields.next().filter(|d| *d != "(null)").unwrap_or_default().to_owned();
    Some(Entry { element: Element { job, index }, name, state, reason, start_s, end_s, dependency })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a Slurm 22.05 printed it.
    const PRINTED: &str = "\
Welcome to the cluster
1|2|PENDING|JobArrayTaskLimit|N/A|N/A|m.a.x|(null)
1|0|RUNNING|None|1763709574|1763716774|m.a.x|(null)
2|1|CANCELLED|DependencyNeverSatisfied|1763709580|1763709580|m.b.x|aftercorr:1_*(failed)
2|2|PENDING|DependencyNeverSatisfied|N/A|N/A|m.b.x|aftercorr:1_*(failed)
3|N/A|COMPLETED|None|1763709585|1763709587|m.c.x|(null)
4|N/A|EXPEDITING|None|N/A|N/A|m.d.x|
";

    #[test]
    fn every_line_is_understood() {
        let entries = parse(PRINTED).unwrap();
        let seen: Vec<_> = entries.iter().map(|e| (e.element.to_string(), e.liveness())).collect();
        let expected = [
            ("1_2", Liveness::Alive),
            ("1_0", Liveness::Alive),
            ("2_1", Liveness::Ended),
            ("2_2", Liveness::Ended),
            ("3", Liveness::Ended),
            ("4", Liveness::Unknown),
        ];
        assert_eq!(seen, expected.map(|(element, liveness)| (element.to_owned(), liveness)));
        assert_eq!((entries[1].start_s, entries[0].start_s), (Some(1_763_709_574), None));
        assert!(entries[3].is_dead() && !entries[2].is_dead());
        assert_eq!((entries[2].name.as_str(), entries[2].dependency.as_str()), ("m.b.x", "aftercorr:1_*(failed)"));
    }

    #[test]
    fn a_line_that_is_not_understood_is_an_error() {
        for line in
            ["x|1|RUNNING|None|N/A|N/A|m|", "1|[0-3]|PENDING|None|N/A|N/A|m|", "1|0|RUNNING|None|N/A|N/A", "1|0"]
        {
            assert!(matches!(parse(line), Err(SlurmError::Output { .. })), "{line}");
        }
    }
}
