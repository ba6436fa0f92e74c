//! `attempts/<n>.json`: one start of a cell. The file's creation is the claim: it is made by link(2), so
//! that of two starters one wins, on network file systems too. `<n>.end.json` says how it ended and
//! `<n>.beat` holds a counter that moves while it lives.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{CellKey, Digest, Fingerprint, RecordError, Result, Verdict, files};

/// What a stage that says stop leaves beside its outputs: why, as any JSON, with the words under `why`.
pub const EVIDENCE_FILE: &str = "evidence.json";

/// Format version of the attempt's files.
pub const ATTEMPT_VERSION: u32 = 1;

/// The Slurm job of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRef {
    /// `SLURM_ARRAY_JOB_ID_SLURM_ARRAY_TASK_ID`, or the job id of a single job: what scontrol takes.
    pub id: String,
    /// `SLURM_RESTART_COUNT`.
    pub restart: u32,
}

/// What an attempt says when it starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptStart {
    /// [`ATTEMPT_VERSION`].
    pub version: u32,
    /// Number, from 1.
    pub attempt: u32,
    /// The cell.
    pub key: CellKey,
    /// The cell's fingerprint.
    pub fingerprint: Fingerprint,
    /// Name of the submission.
    pub submission: String,
    /// The Slurm job; absent for a local attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobRef>,
    /// Host it runs on.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// Boot id of the host: a process id means nothing after a reboot.
    pub boot_id: String,
    /// User name.
    pub user: String,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// Digest of what it read of needed cells: what is left of attempts that read otherwise is no part of this one.
    /// Absent in records of programs before it was written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Digest>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptEnd {
    /// [`ATTEMPT_VERSION`].
    pub version: u32,
    /// Exit code of the attempt, as documented.
    pub exit_code: i32,
    /// Why, in words.
    pub cause: String,
    /// Last step that a checkpoint or the progress file knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// When it ended.
    pub ended_at: DateTime<Utc>,
    /// Wall time, seconds.
    pub wall_s: f64,
    /// What was decided; absent in records of programs before it was written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

fn dir(run_dir: &Path) -> PathBuf {
    run_dir.join("attempts")
}

/// The file that claims attempt `n`.
pub fn start_path(run_dir: &Path, n: u32) -> PathBuf {
    dir(run_dir).join(format!("{n}.json"))
}

/// The private directory of an attempt's outputs: the stage writes there, the attempt moves it into place.
pub fn out_dir(run_dir: &Path, n: u32) -> PathBuf {
    run_dir.join(format!(".attempt-{n}"))
}

fn end_path(run_dir: &Path, n: u32) -> PathBuf {
    dir(run_dir).join(format!("{n}.end.json"))
}

fn beat_path(run_dir: &Path, n: u32) -> PathBuf {
    dir(run_dir).join(format!("{n}.beat"))
}

/// Number of the last attempt; 0 if there was none.
///
/// # Errors
/// The directory cannot be listed.
pub fn last(run_dir: &Path) -> Result<u32> {
    let dir = dir(run_dir);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(RecordError::Io { action: "list", path: dir, source: e }),
    };
    let mut last = 0;
    for entry in entries {
        let name = entry.map_err(RecordError::io("list", &dir))?.file_name();
        let number = name.to_str().and_then(|n| n.strip_suffix(".json")).and_then(|n| n.parse::<u32>().ok());
        last = last.max(number.unwrap_or(0));
    }
    Ok(last)
}

/// Claims the attempt that `start` names. `false`: another one was faster.
///
/// # Errors
/// The directory cannot be written.
pub fn claim(run_dir: &Path, start: &AttemptStart) -> Result<bool> {
    let text = serde_json::to_string_pretty(start).map_err(|e| RecordError::Value(e.to_string()))?;
    files::create_exclusive(&start_path(run_dir, start.attempt), format!("{text}\n").as_bytes())
}

/// Reads attempt `n`.
///
/// # Errors
/// It is not there, damaged, or of a newer version.
pub fn read_start(run_dir: &Path, n: u32) -> Result<AttemptStart> {
    files::read_versioned_json(&start_path(run_dir, n), ATTEMPT_VERSION)
}

/// Says how attempt `n` ended.
///
/// # Errors
/// It cannot be written.
pub fn write_end(run_dir: &Path, n: u32, end: &AttemptEnd) -> Result<()> {
    files::write_json(&end_path(run_dir, n), end)
}

/// How attempt `n` ended; `None` if it has not said so.
///
/// # Errors
/// The file is damaged, or of a newer version.
pub fn read_end(run_dir: &Path, n: u32) -> Result<Option<AttemptEnd>> {
    match files::read_versioned_json(&end_path(run_dir, n), ATTEMPT_VERSION) {
        Ok(end) => Ok(Some(end)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Moves the heartbeat of attempt `n`.
///
/// # Errors
/// It cannot be written.
pub fn beat(run_dir: &Path, n: u32, counter: u64) -> Result<()> {
    files::write_atomic(&beat_path(run_dir, n), counter.to_string().as_bytes())
}

/// The heartbeat's counter; `None` before the first.
pub fn read_beat(run_dir: &Path, n: u32) -> Option<u64> {
    std::fs::read_to_string(beat_path(run_dir, n)).ok()?.trim().parse().ok()
}

/// When the heartbeat was written last, by the clock of the file system; `None` before the first.
pub fn beaten_at(run_dir: &Path, n: u32) -> Option<std::time::SystemTime> {
    std::fs::metadata(beat_path(run_dir, n)).and_then(|m| m.modified()).ok()
}

/// True if a newer attempt than `n` has claimed the cell. Asked before each commit of a checkpoint and
/// before publishing: a program that finds one exits with [`super::exit::SUPERSEDED`].
pub fn is_superseded(run_dir: &Path, n: u32) -> bool {
    start_path(run_dir, n + 1).exists()
}

/// Boot id of this host, or an empty text where the kernel does not tell.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// True if process `pid` of this host lives.
pub fn process_lives(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    // SAFETY: signal 0 sends nothing; it only asks.
    let rc = unsafe { libc::kill(pid, 0) };
    rc == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// Name of the user who runs this: the account's, as Slurm has it; else by `USER`, `LOGNAME` or the user id.
pub fn user_name() -> String {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(find_user_name).clone()
}

fn find_user_name() -> String {
    // SAFETY: getuid cannot fail.
    let uid = unsafe { libc::getuid() };
    let said = || ["USER", "LOGNAME"].iter().find_map(|v| std::env::var(v).ok().filter(|u| !u.is_empty()));
    // A container may know no such user.
    account_of(uid).or_else(said).unwrap_or_else(|| format!("uid-{uid}"))
}

/// The name that the system knows a user by.
fn account_of(uid: libc::uid_t) -> Option<String> {
    let mut buffer = vec![0 as libc::c_char; 4096];
    // SAFETY: an all-zero passwd is valid.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found: *mut libc::passwd = std::ptr::null_mut();
    // SAFETY: all pointers are valid for the call, and the buffer has the length that is said.
    let rc = unsafe { libc::getpwuid_r(uid, &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut found) };
    if rc != 0 || found.is_null() {
        return None;
    }
    // SAFETY: after success the name is a string that ends inside the buffer.
    let name = unsafe { std::ffi::CStr::from_ptr(entry.pw_name) };
    name.to_str().ok().filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Digest, Name};

    #[test]
    fn one_of_many_claims_wins() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        assert_eq!(last(run).unwrap(), 0);
        let start = |pid| {
            let name = |s| Name::new(s).unwrap();
            AttemptStart {
                version: ATTEMPT_VERSION,
                attempt: 1,
                key: CellKey { study: name("s"), profile: name("p"), stage: name("t"), arm: None, seed: None },
                fingerprint: Digest::of_bytes(b""),
                submission: "x".into(),
                job: None,
                host: "h".into(),
                pid,
                boot_id: String::new(),
                user: "u".into(),
                started_at: DateTime::UNIX_EPOCH,
                inputs: None,
            }
        };
        let wins: Vec<bool> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|i| scope.spawn(move || claim(run, &start(i)).unwrap())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(wins.iter().filter(|w| **w).count(), 1);
        assert_eq!(last(run).unwrap(), 1);
        assert_eq!(read_start(run, 1).unwrap().pid as usize, wins.iter().position(|w| *w).unwrap());
        assert!(!is_superseded(run, 1));
        assert!(is_superseded(run, 0));
    }

    #[test]
    fn processes() {
        assert!(process_lives(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(!process_lives(child.id()));
    }
}
