//! Changing jobs that exist: requeue in place, change what a waiting one asks for, cancel.

use std::time::{Duration, Instant};

use super::script::time_limit;
use super::{Client, Element, SlurmError};

/// Asks for a job to be run again, in place: what waits behind it goes on waiting. Called from inside the job
/// its process is ended soon after; exit then with a code that is not 0, in case it is not.
///
/// # Errors
/// The site or the job forbids it, or there is no answer.
pub fn requeue(client: &Client, element: Element) -> Result<(), SlurmError> {
    change(client, "scontrol", &["requeue", &element.to_string()])
}

/// [`requeue`], repeated while nobody answers: a controller that is started again comes back, and what only it can do is
/// worth waiting for. A job that waits already is as it should be: Slurm put it back, or a call without an answer did.
///
/// # Errors
/// As for [`requeue`]; no answer after `patience`.
pub fn requeue_soon(client: &Client, element: Element, patience: Duration) -> Result<(), SlurmError> {
    let deadline = Instant::now() + patience;
    loop {
        match requeue(client, element) {
            Err(error) if error.is_no_answer() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_secs(1));
            }
            Err(SlurmError::Failed { message, .. }) if message.contains("Job is pending execution") => return Ok(()),
            done => return done,
        }
    }
}

/// Lets a job go on that is held.
///
/// # Errors
/// It is not the caller's to let go, or there is no answer.
pub fn release(client: &Client, element: Element) -> Result<(), SlurmError> {
    change(client, "scontrol", &["release", &element.to_string()])
}

/// What a job that waits is to ask for from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Memory on each node, bytes.
    pub mem_bytes: Option<u64>,
    /// Time limit, seconds.
    pub time_s: Option<u64>,
    /// Nodes to keep away from, beside those that it keeps away from already.
    pub exclude: Vec<String>,
}

/// Changes a job that waits. Slurm refuses it for one that runs. No change: nothing is done.
///
/// # Errors
/// Slurm refuses, or there is no answer.
pub fn update(client: &Client, element: Element, wanted: &Change) -> Result<(), SlurmError> {
    let mut words = vec!["update".to_owned(), format!("jobid={element}")];
    if let Some(bytes) = wanted.mem_bytes {
        words.push(format!("MinMemoryNode={}", bytes.div_ceil(1 << 20)));
    }
    if let Some(time_s) = wanted.time_s {
        words.push(format!("TimeLimit={}", time_limit(time_s)));
    }
    if !wanted.exclude.is_empty() {
        // The new list takes the place of the old one.
        let mut nodes: Vec<String> = excluded(client, element)?.into_iter().collect();
        nodes.extend(wanted.exclude.iter().cloned());
        words.push(format!("ExcNodeList={}", nodes.join(",")));
    }
    if words.len() == 2 { Ok(()) } else { change(client, "scontrol", &words) }
}

/// The list of nodes that a job keeps away from, as Slurm writes it: one text, or none.
fn excluded(client: &Client, element: Element) -> Result<Option<String>, SlurmError> {
    let reply = client.ask("squeue", &["-h", "-j", &element.to_string(), "-o", "%x"])?;
    if !reply.status.success() {
        let (program, code) = ("squeue".to_owned(), reply.status.code());
        return Err(SlurmError::Failed { program, code, message: reply.message() });
    }
    let list = reply.stdout.lines().map(str::trim).find(|line| !line.is_empty() && *line != "(null)");
    Ok(list.map(str::to_owned))
}

/// Sends SIGUSR2 to the batch shell of a job, as the warning before its time limit does.
///
/// # Errors
/// Slurm refuses, or there is no answer.
pub fn warn(client: &Client, element: Element) -> Result<(), SlurmError> {
    change(client, "scancel", &["--batch", "--signal=USR2", &element.to_string()])
}

/// Asks Slurm to mail `user` when this job, or this element alone, fails: for a job that is about to.
///
/// # Errors
/// Slurm refuses, or there is no answer.
pub fn mail_failure(client: &Client, element: Element, user: &str) -> Result<(), SlurmError> {
    let types = if element.index.is_some() { "FAIL,ARRAY_TASKS" } else { "FAIL" };
    let words = ["update", &format!("jobid={element}"), &format!("MailUser={user}"), &format!("MailType={types}")];
    change(client, "scontrol", &words)
}

/// [`update`] for a job that is on its way back into the queue: repeated until it is there.
///
/// # Errors
/// Slurm's last refusal after `patience`.
pub fn update_soon(client: &Client, element: Element, change: &Change, patience: Duration) -> Result<(), SlurmError> {
    let deadline = Instant::now() + patience;
    loop {
        match update(client, element, change) {
            Err(SlurmError::Failed { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(100));
            }
            done => return done,
        }
    }
}

/// Cancels jobs or array elements. One that has ended already is no error. No elements: nothing is done.
///
/// # Errors
/// Slurm refuses, or there is no answer.
pub fn cancel(client: &Client, elements: &[Element]) -> Result<(), SlurmError> {
    for chunk in elements.chunks(400) {
        let list: Vec<_> = chunk.iter().map(ToString::to_string).collect();
        match change(client, "scancel", &list) {
            Err(SlurmError::Failed { message, .. }) if message.contains("Invalid job id") => {}
            result => result?,
        }
    }
    Ok(())
}

fn change(client: &Client, program: &str, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Result<(), SlurmError> {
    let reply = client.change(program, arguments)?;
    if reply.status.success() {
        return Ok(());
    }
    Err(SlurmError::Failed { program: program.to_owned(), code: reply.status.code(), message: reply.message() })
}
