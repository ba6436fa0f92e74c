//! What Slurm's accounting says: one sacct for the jobs that squeue no longer knows.
//!
//! Many sites have no accounting. That is an answer, not an error, and is asked only once.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{Client, Element, JobState, SlurmError};

/// One run of a job or array element; a requeued one has several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which.
    pub element: Element,
    /// Its state.
    pub state: JobState,
    /// Exit code of the script.
    pub exit_code: Option<i32>,
    /// Signal that ended it; 0 if none.
    pub signal: Option<i32>,
    /// Time that it ran, seconds.
    pub elapsed_s: u64,
    /// Allocated resources, as Slurm prints them: `billing=8,cpu=8,gres/gpu=4,node=1`.
    pub alloc_tres: String,
    /// When it was submitted, seconds since 1970; a requeue counts.
    pub submit_s: Option<i64>,
    /// When it started.
    pub start_s: Option<i64>,
    /// When it ended.
    pub end_s: Option<i64>,
    /// Its nodes.
    pub nodes: String,
}

impl Record {
    /// Number of allocated devices of a kind, as `gres/gpu` or `cpu`; none if the site does not account for it.
    pub fn tres(&self, kind: &str) -> Option<u32> {
        let items = self.alloc_tres.split(',').filter_map(|item| item.split_once('='));
        items.filter(|(key, _)| *key == kind).find_map(|(_, count)| count.parse().ok())
    }

    /// Number of allocated GPUs.
    pub fn gpus(&self) -> u32 {
        self.tres("gres/gpu").unwrap_or(0)
    }
}

/// What accounting says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accounting {
    /// The site keeps none.
    Disabled,
    /// Every run of every job that was asked for, oldest first.
    Records(Vec<Record>),
}

const FIELDS: &str = "JobID,State,ExitCode,ElapsedRaw,Submit,Start,End,AllocTRES,NodeList";

/// Asks for every run of the jobs `ids`, submitted after `since_s` (seconds since 1970).
///
/// # Errors
/// sacct gives no answer; that the site keeps no accounting is an answer.
pub fn query(client: &Client, ids: &[u32], since_s: i64) -> Result<Accounting, SlurmError> {
    if client.accounting_disabled.load(Ordering::Relaxed) {
        return Ok(Accounting::Disabled);
    }
    let mut records = Vec::new();
    for chunk in ids.chunks(400) {
        let list = chunk.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        // A day earlier: sacct reads the time in the cluster's zone.
        let since = chrono::DateTime::from_timestamp(since_s - 86_400, 0).unwrap_or_default();
        let since = since.format("%Y-%m-%dT%H:%M:%S").to_string();
        let reply = match client.ask("sacct", &["-X", "-D", "-n", "-P", "-j", &list, "-S", &since, "-o", FIELDS]) {
            // No sacct is no accounting.
            Err(SlurmError::NotFound { .. }) => return Ok(disabled(client)),
            reply => reply?,
        };
        if !reply.status.success() {
            if format!("{}{}", reply.stderr, reply.stdout).contains("accounting storage is disabled") {
                return Ok(disabled(client));
            }
            return Err(SlurmError::Failed {
                program: "sacct".to_owned(),
                code: reply.status.code(),
                message: reply.message(),
            });
        }
        records.extend(parse(&reply.stdout)?);
    }
    records.sort_by_key(|record| (record.element, record.submit_s, record.start_s));
    Ok(Accounting::Records(records))
}

fn disabled(client: &Client) -> Accounting {
    client.accounting_disabled.store(true, Ordering::Relaxed);
    Accounting::Disabled
}

fn parse(text: &str) -> Result<Vec<Record>, SlurmError> {
    let mut records = Vec::new();
    for line in text.lines().filter(|line| line.contains('|')) {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let &[id, state, exit, elapsed, submit, start, end, tres, nodes] = fields.as_slice() else {
            return Err(SlurmError::Output { program: "sacct".to_owned(), text: line.to_owned() });
        };
        // Elements that have not started are one row, `12_[3-5]`: squeue knows them.
        let Ok(element) = id.parse::<Element>() else { continue };
        let (exit_code, signal) = exit.split_once(':').unwrap_or((exit, ""));
        records.push(Record {
            element,
            state: JobState::from_word(state),
            exit_code: exit_code.parse().ok(),
            signal: signal.parse().ok(),
            elapsed_s: elapsed.parse().unwrap_or(0),
            alloc_tres: tres.to_owned(),
            submit_s: submit.parse().ok(),
            start_s: start.parse().ok(),
            end_s: end.parse().ok(),
            nodes: nodes.to_owned(),
        });
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_sacct() {
        let text = "\
12_0|REQUEUED|0:0|17|1763709570|1763709574|1763709591|billing=8,cpu=8,gres/gpu=4,mem=80G,node=1|n1
12_0|COMPLETED|0:0|30|1763709591|1763709600|1763709630|billing=8,cpu=8,gres/gpu=4,gres/gpu:a100=4,node=1|n2
12_[1-3]|PENDING|0:0|0|1763709570|Unknown|Unknown||None assigned
13|CANCELLED by 1000|0:15|3|1763709570|1763709574|1763709577|cpu=1|n1
";
        let records = parse(text).unwrap();
        assert_eq!(records.len(), 3);
        assert_eq!((records[0].state.clone(), records[0].gpus()), (JobState::Requeued, 4));
        assert_eq!((records[1].elapsed_s, records[1].gpus()), (30, 4));
        assert_eq!(
            (records[2].state.clone(), records[2].signal, records[2].gpus()),
            (JobState::Cancelled, Some(15), 0)
        );
        assert_eq!(
            (records[0].tres("cpu"), records[2].tres("gres/gpu"), records[2].tres("mem")),
            (Some(8), None, None)
        );
        assert!(parse("12|COMPLETED\n").is_err());
    }
}
