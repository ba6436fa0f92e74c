//! Handing a script to sbatch, and finding out what became of it.
//!
//! A submission whose reply was lost is neither repeated nor forgotten: it is *uncertain*, and is looked up by
//! its job name, which is unique.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use super::script::dependency_word;
use super::{Client, Element, JobId, SlurmError};
use crate::workflow::plan::EdgeKind;

/// A dependency on a job that has an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// Its kind.
    pub kind: EdgeKind,
    /// The parent, or one element of it.
    pub parent: Element,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submitted {
    /// Slurm has the job.
    Accepted(JobId),
    /// Slurm does not have it, and said why.
    Refused(String),
    /// The reply was lost: Slurm may have the job. See [`resolve`].
    Uncertain(String),
}

/// What looking for a job by its name found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Slurm has it.
    Job(JobId),
    /// Slurm answered, and has no such job.
    Nothing,
    /// More than one job has this name.
    Several(Vec<JobId>),
}

/// The value of `--dependency` for `edges`, none if there are no edges. All of them must be met. Neighbours of one kind
/// share its word: a gate behind ten thousand cells that are jobs of their own is still one argument of a process.
pub fn dependency(edges: &[Edge]) -> Option<String> {
    let mut text = String::new();
    for (i, edge) in edges.iter().enumerate() {
        let shares = i > 0 && edges[i - 1].kind == edge.kind && edge.kind != EdgeKind::AfterCorr;
        if !shares {
            text.push_str(if i > 0 { "," } else { "" });
            text.push_str(dependency_word(edge.kind));
        }
        text.push_str(&format!(":{}", edge.parent));
    }
    (!text.is_empty()).then_some(text)
}

/// Submits `script`. Write down the intent first: what happens between sbatch's doing and the reply is lost.
///
/// # Errors
/// sbatch is not there or cannot be started: nothing was submitted.
pub fn submit(client: &Client, script: &Path, edges: &[Edge]) -> Result<Submitted, SlurmError> {
    let mut arguments = vec![OsString::from("--parsable")];
    if let Some(dependency) = dependency(edges) {
        arguments.push(format!("--dependency={dependency}").into());
    }
    arguments.push(script.into());
    let reply = match client.change("sbatch", &arguments) {
        Ok(reply) => reply,
        Err(error @ SlurmError::Timeout { .. }) => return Ok(Submitted::Uncertain(error.to_string())),
        Err(error) => return Err(error),
    };
    let id = JobId::from_reply(&reply.stdout);
    Ok(match (reply.status.code(), id) {
        (Some(0), Some(id)) => Submitted::Accepted(id),
        (Some(0), None) => Submitted::Uncertain(format!("sbatch printed no job id, but {:?}", reply.stdout.trim())),
        (None, _) => Submitted::Uncertain(format!("sbatch was ended by a signal ({})", reply.status)),
        // A filter of the site may fail after the job was taken.
        (Some(_), Some(id)) => Submitted::Uncertain(format!("sbatch failed, but named job {id}: {}", reply.message())),
        (Some(_), None) if is_lost_reply(&reply.stderr) => Submitted::Uncertain(reply.message()),
        (Some(_), None) => Submitted::Refused(reply.message()),
    })
}

/// Whether the controller may have taken the job although sbatch reports an error.
fn is_lost_reply(stderr: &str) -> bool {
    const WORDS: [&str; 6] = [
        "socket timed out",
        "zero bytes were transmitted",
        "unexpected message received",
        "connection reset",
        "connection timed out",
        "message receive failure",
    ];
    let text = stderr.to_lowercase();
    WORDS.iter().any(|word| text.contains(word))
}

/// Asks whether the site would take `script`: its account, partition, limits and sizes. Nothing is submitted.
/// The inner error is what the site objects to.
///
/// # Errors
/// sbatch gives no answer.
pub fn test_only(client: &Client, script: &Path) -> Result<Result<(), String>, SlurmError> {
    let arguments = [OsString::from("--test-only"), script.into()];
    let reply = client.ask("sbatch", &arguments)?;
    Ok(if reply.status.success() { Ok(()) } else { Err(reply.message()) })
}

/// Looks for a job by its name, among those that Slurm still knows.
///
/// # Errors
/// squeue gives no answer.
pub fn find_by_name(client: &Client, name: &str) -> Result<Found, SlurmError> {
    let reply = client.ask("squeue", &["-h", "-t", "all", "-o", "%F|%j", "--name", name])?;
    if !reply.status.success() {
        return Err(SlurmError::Failed {
            program: "squeue".to_owned(),
            code: reply.status.code(),
            message: reply.message(),
        });
    }
    Ok(parse_names(&reply.stdout, name, client.cluster()))
}

/// [`find_by_name`] in every one of these Slurm clusters; none named: in the one that the client asks.
///
/// # Errors
/// As [`find_by_name`].
pub fn find_in(client: &Client, clusters: &[String], name: &str) -> Result<Found, SlurmError> {
    if clusters.is_empty() {
        return find_by_name(client, name);
    }
    let mut found = Vec::new();
    for cluster in clusters {
        match find_by_name(&client.at(Some(cluster)), name)? {
            Found::Job(job) => found.push(job),
            Found::Nothing => {}
            Found::Several(jobs) => found.extend(jobs),
        }
    }
    Ok(Found::of(found))
}

impl Found {
    fn of(mut jobs: Vec<JobId>) -> Self {
        match jobs.len() {
            0 => Self::Nothing,
            1 => Self::Job(jobs.remove(0)),
            _ => Self::Several(jobs),
        }
    }
}

fn parse_names(text: &str, name: &str, cluster: Option<&str>) -> Found {
    let ids: BTreeSet<u32> = text
        .lines()
        .filter_map(|line| line.split_once('|'))
        .filter(|(_, found)| found.trim() == name)
        .filter_map(|(id, _)| id.trim().parse().ok())
        .collect();
    Found::of(ids.into_iter().map(|id| JobId { id, cluster: cluster.map(str::to_owned) }).collect())
}

/// What became of an uncertain submission. A request that timed out may still be on its way, so `Nothing` is
/// believed only after `patience`.
///
/// # Errors
/// squeue gives no answer: the submission stays uncertain.
pub fn resolve(client: &Client, clusters: &[String], name: &str, patience: Duration) -> Result<Found, SlurmError> {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(250);
    loop {
        let found = find_in(client, clusters, name)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if found != Found::Nothing || left.is_zero() {
            return Ok(found);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_become_one_option() {
        let edge = |kind, job, index| Edge { kind, parent: Element { job, index } };
        assert_eq!(dependency(&[]), None);
        assert_eq!(
            dependency(&[edge(EdgeKind::AfterCorr, 12, None), edge(EdgeKind::AfterCorr, 13, None)]).as_deref(),
            Some("aftercorr:12,aftercorr:13")
        );
        assert_eq!(
            dependency(&[edge(EdgeKind::AfterAny, 12, Some(3)), edge(EdgeKind::AfterOk, 7, None)]).as_deref(),
            Some("afterany:12_3,afterok:7")
        );
        let three = [
            edge(EdgeKind::AfterAny, 5, None),
            edge(EdgeKind::AfterAny, 6, Some(1)),
            edge(EdgeKind::AfterOk, 7, None),
            edge(EdgeKind::AfterAny, 8, None),
        ];
        assert_eq!(dependency(&three).as_deref(), Some("afterany:5:6_1,afterok:7,afterany:8"));
    }

    #[test]
    fn names_are_compared_whole() {
        let job = |id| JobId { id, cluster: None };
        assert_eq!(parse_names("7|a.b.1\n7|a.b.1\n8|a.b.12\n", "a.b.1", None), Found::Job(job(7)));
        assert_eq!(parse_names("7|a.b.1\n9|a.b.1\n", "a.b.1", None), Found::Several(vec![job(7), job(9)]));
        assert_eq!(parse_names("", "a.b.1", None), Found::Nothing);
    }

    #[test]
    fn lost_replies_are_told_from_refusals() {
        let lost = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation";
        assert!(is_lost_reply(lost));
        assert!(!is_lost_reply("sbatch: error: Batch job submission failed: Invalid account"));
        assert!(!is_lost_reply("sbatch: error: Unable to contact slurm controller (connect failure)"));
    }
}
