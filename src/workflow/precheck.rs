//! What is asked before anything is submitted: is there room on disk, would the site take such jobs, and so many?
//!
//! Each check gives lines for the bill, or an error that says what to do. What a site cannot answer becomes a line, too:
//! the checks find what is certain to fail, and forbid nothing else.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::bill::Bill;
use super::error::{Result, WorkflowError};
use super::place::Place;
use super::plan::PlannedJob;
use super::run::{Prepared, Site};
use super::slurm::allowance::{self, Allowance};
use super::slurm::config::Limits;
use super::slurm::{Client, SlurmError, federation, submit};
use super::study::{Cluster, size_bytes};
use crate::record::{CellKey, attempt, exit, files};

/// Files that one cell makes at the least: records of its attempts, log, results, checkpoints.
const FILES_OF_A_CELL: u64 = 32;

/// What is left somewhere.
#[derive(Debug, Clone, PartialEq)]
struct Left {
    bytes: Option<u64>,
    files: Option<u64>,
    by: String,
}

/// Compares what the cells of `bill` leave on disk with what is left: the least of the file systems of results and
/// scratch, and of what the site's `quota_command` says.
///
/// # Errors
/// Exit code 73 if there is too little.
pub fn storage(place: &Place, cluster: &Cluster, client: &Client, bill: &Bill) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut found: Vec<Left> = Vec::new();
    for dir in [Some(place.base.as_path()), cluster.scratch.as_deref()].into_iter().flatten() {
        found.extend(of_file_system(dir));
    }
    if !cluster.quota_command.is_empty() {
        match of_quota_command(client, &cluster.quota_command) {
            Ok(left) => found.push(left),
            Err(why) => lines.push(format!("`quota_command` told nothing ({why}): only the file systems were asked")),
        }
    }
    let bytes = found.iter().filter_map(|left| Some((left.bytes?, &left.by))).min();
    let inodes = found.iter().filter_map(|left| Some((left.files?, &left.by))).min();
    let need_files = (bill.cells + bill.queued_cells) as u64 * FILES_OF_A_CELL;
    let mut short = Vec::new();
    if let Some((left, by)) = bytes {
        lines.push(format!("disk: {} needed, {} left ({by})", gigabytes(bill.storage_bytes), gigabytes(left)));
        if bill.storage_bytes > left {
            short.push(format!("{} are needed and {} are left ({by})", gigabytes(bill.storage_bytes), gigabytes(left)));
        }
    }
    if let Some((left, by)) = inodes.filter(|(left, _)| need_files > *left) {
        short.push(format!("at least {need_files} files will be made and {left} are left ({by})"));
    }
    if short.is_empty() {
        return Ok(lines);
    }
    Err(WorkflowError::attempt(
        exit::CANNOT_WRITE,
        format!(
            "there is no room for the results: {}; make room, raise the quota, use another --root, or run fewer --seeds",
            short.join(", and ")
        ),
    ))
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// What the file system of `dir`, or of the nearest directory above it that is there, has left for a user.
fn of_file_system(dir: &Path) -> Option<Left> {
    let there = dir.ancestors().find(|dir| dir.is_dir())?;
    let path = CString::new(there.as_os_str().as_bytes()).ok()?;
    // SAFETY: an all-zero statvfs is valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) } != 0 {
        return None;
    }
    // Some file systems have no fixed number of files, and say 0.
    let files = (stat.f_files > 0).then_some(stat.f_favail);
    Some(Left { bytes: Some(stat.f_bavail.saturating_mul(stat.f_frsize)), files, by: there.display().to_string() })
}

/// What the site's own program says is left.
fn of_quota_command(client: &Client, words: &[String]) -> std::result::Result<Left, String> {
    let reply = client.ask_site(words).map_err(|e| match e {
        SlurmError::NotFound { program } => format!("`{program}` is not there"),
        other => other.to_string(),
    })?;
    if !reply.status.success() {
        return Err(format!("it ended with {}: {}", reply.status, reply.message()));
    }
    parse_quota(&reply.stdout).map(|(bytes, files)| Left { bytes: Some(bytes), files, by: "quota_command".to_owned() })
}

/// The bytes that are left, as a number or a size such as `80G`, and behind them the files, if they are told.
fn parse_quota(text: &str) -> std::result::Result<(u64, Option<u64>), String> {
    let mut words = text.split_whitespace();
    let first = words.next().ok_or("it printed nothing")?;
    let bytes = match first.parse::<u64>() {
        Ok(bytes) => bytes,
        Err(_) => size_bytes(first).map_err(|_| format!("it printed {first:?}, and not the bytes that are left"))?,
    };
    let files = match words.next() {
        Some(word) => Some(word.parse().map_err(|_| format!("it printed {word:?}, and not the files that are left"))?),
        None => None,
    };
    Ok((bytes, files))
}

/// Asks the site about `jobs`: would it take one of each shape?
///
/// # Errors
/// It would not: with what it says, before anything is submitted.
pub fn site(prepared: &Prepared, client: &Client, jobs: &[PlannedJob]) -> Result<Vec<String>> {
    if let Some(name) = federation::of(client).map_err(|e| WorkflowError::Slurm(e.to_string()))? {
        return Err(WorkflowError::Slurm(federation::refusal(&name)));
    }
    let mut lines = Vec::new();
    for (script, names) in shapes(prepared, jobs)? {
        match try_script(prepared, client, &script)? {
            Ok(()) => {}
            Err(why) if may_pass(&why) => lines.push(format!("the site would not start {names} now: {why}")),
            Err(why) => {
                return Err(WorkflowError::Slurm(format!(
                    "the site does not take jobs of {names}: {why}; correct `resources` in the study or the cluster file; \
                     nothing was submitted"
                )));
            }
        }
    }
    Ok(lines)
}

/// What does not fit into what the site takes of one user at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBack {
    /// Cells that this call leaves.
    pub cells: usize,
    /// So many jobs the site takes.
    pub most: u32,
    /// What says so.
    pub by: String,
    /// Of which so many are taken.
    pub queued: u32,
}

/// Leaves out of this call the cells behind the first that the site would not take: what is left is closed under
/// dependency. Returns what it left out, and lines for the bill.
///
/// # Errors
/// The site takes none at all now, or Slurm does not answer.
pub fn hold_back(prepared: &mut Prepared) -> Result<(Option<HeldBack>, Vec<String>)> {
    let Site::Slurm(client) = &prepared.site else { return Ok((None, Vec::new())) };
    let limits = Limits::of(client).map_err(|e| WorkflowError::Slurm(e.to_string()))?;
    let of_site = limits.max_job_count.map(|most| Allowance { most, by: "MaxJobCount".to_owned(), queued: 0 });
    let site = &prepared.cluster.site;
    let (account, partition, qos) = (site.account.as_deref(), site.partition.as_deref(), site.qos.as_deref());
    let (of_user, lines) = match allowance::of(client, &attempt::user_name(), account, partition, qos) {
        Ok(allowance) => (allowance, Vec::new()),
        Err(error) => (None, vec![format!("how many jobs the site takes is not known: {error}")]),
    };
    let room = |allowance: &Allowance| allowance.most.saturating_sub(allowance.queued);
    let Some(least) = of_site.into_iter().chain(of_user).min_by_key(room) else { return Ok((None, lines)) };
    let jobs = prepared.jobs_to_come()?;
    let taken = prefix(&jobs, room(&least) as usize);
    let cells = prepared.plan.hold_back(&taken);
    if cells == 0 {
        return Ok((None, lines));
    }
    let Allowance { most, by, queued } = least;
    if taken.is_empty() {
        return Err(WorkflowError::Slurm(format!(
            "the site takes {most} of your jobs at a time ({by}), and {queued} are taken: run the same command again when \
             some have ended; nothing was submitted"
        )));
    }
    Ok((Some(HeldBack { cells, most, by, queued }), lines))
}

/// The cells of the first jobs that together are at most `room`. An array may be cut; links of one cell stay together.
fn prefix(jobs: &[PlannedJob], room: usize) -> BTreeSet<CellKey> {
    let mut taken = BTreeSet::new();
    let mut left = room;
    for job in jobs.iter().filter(|job| job.link.is_none_or(|link| link.number == 1)) {
        let needed = job.link.map_or(job.elements(), |link| link.of as usize);
        let array = job.link.is_none() && job.pack.is_none();
        let fits = if needed <= left {
            job.cells.len()
        } else if array {
            left
        } else {
            0
        };
        taken.extend(job.cells.iter().take(fits).map(|(_, key)| key.clone()));
        if needed > left {
            break;
        }
        left -= needed;
    }
    taken
}

/// The script of the largest job of each shape (what sbatch is asked for, but for name, log and array), with the stages
/// that have it.
fn shapes(prepared: &Prepared, jobs: &[PlannedJob]) -> Result<Vec<(String, String)>> {
    // Stages of equal resources have equal scripts but for their names: one of each is enough.
    let mut largest: Vec<(&PlannedJob, Vec<&str>)> = Vec::new();
    for job in jobs {
        let resources = |job: &PlannedJob| {
            let stage = prepared.study.stage(job.stage.as_str());
            (stage.map(|stage| (&stage.resources, &stage.wishes)), job.pack)
        };
        match largest.iter_mut().find(|(known, _)| resources(known) == resources(job)) {
            Some((known, names)) => {
                if job.cells.len() > known.cells.len() {
                    *known = job;
                }
                if !names.contains(&job.stage.as_str()) {
                    names.push(job.stage.as_str());
                }
            }
            None => largest.push((job, vec![job.stage.as_str()])),
        }
    }
    let alone: Vec<PlannedJob> =
        largest.iter().map(|(job, _)| PlannedJob { edges: Vec::new(), ..(*job).clone() }).collect();
    let scripts = prepared.preview_of(&alone)?;
    let names = largest.into_iter().map(|(_, names)| format!("stage {}", names.join(", ")));
    Ok(scripts.into_iter().map(|(_, text)| text).zip(names).collect())
}

/// What sbatch would say to a script.
fn try_script(prepared: &Prepared, client: &Client, text: &str) -> Result<std::result::Result<(), String>> {
    let path = prepared.place.own().join("precheck.sbatch");
    files::write_atomic(&path, text.as_bytes())?;
    let reply = submit::test_only(client, &path).map_err(|e| WorkflowError::Slurm(e.to_string()));
    // Left behind it would only be written over by the next.
    let _ = std::fs::remove_file(&path);
    reply
}

/// Whether sbatch may take what it would not start now: nodes and partitions that are down come back.
fn may_pass(why: &str) -> bool {
    let words =
        ["not available now", "Requested nodes are busy", "Required node not available", "Required partition not"];
    words.iter().any(|word| why.contains(word)) || why.contains("temporarily")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_quota_command_prints() {
        assert_eq!(parse_quota("1024\n"), Ok((1024, None)));
        assert_eq!(parse_quota(" 80G 12000 of your project\n"), Ok((80 << 30, Some(12_000))));
        for wrong in ["", "plenty", "80G many", "-1"] {
            assert!(parse_quota(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_file_system_is_that_of_the_nearest_directory() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("not/there/yet");
        let left = of_file_system(&deep).unwrap();
        assert_eq!(left.by, dir.path().display().to_string());
        assert!(left.bytes.unwrap() > 0);
    }

    #[test]
    fn what_may_pass() {
        assert!(may_pass("allocation failure: Requested partition configuration not available now"));
        assert!(!may_pass("allocation failure: Invalid account or account/partition combination specified"));
    }
}
