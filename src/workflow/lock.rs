//! The lock of one study and profile: an exclusively created file that says who holds it.
//!
//! No flock: it lies on some network file systems. A holder whose process is gone is taken over when it
//! was on this host; on another host nobody can tell, so it is named and `--break-lock` decides.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::error::{Result, WorkflowError};
use crate::record::{RecordError, attempt, files};

/// How long a short hold of another is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who holds the lock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Owner {
    user: String,
    host: String,
    pid: u32,
    boot_id: String,
    since: DateTime<Utc>,
    /// A long hold (a local run) is not waited for.
    long: bool,
}

/// A held lock; released when dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    owner: Owner,
}

/// How long the lock will be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// For a submission: others wait for it.
    Short,
    /// For a whole local run: others are told at once.
    Long,
}

/// What to do about a lock that somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfHeld {
    /// Wait for a short hold, then say who holds it.
    Respect,
    /// Take it: `--break-lock`.
    Break,
}

impl Lock {
    /// Takes the lock below `own` (a study's `.seedbed`).
    ///
    /// # Errors
    /// [`WorkflowError::Locked`], or the file cannot be written.
    pub fn take(own: &Path, hold: Hold, if_held: IfHeld) -> Result<Self> {
        Self::take_within(own, hold, if_held, PATIENCE)
    }

    fn take_within(own: &Path, hold: Hold, if_held: IfHeld, patience: Duration) -> Result<Self> {
        let path = own.join("lock");
        let owner = Owner {
            user: attempt::user_name(),
            host: files::host_name(),
            pid: std::process::id(),
            boot_id: attempt::boot_id(),
            since: Utc::now(),
            long: hold == Hold::Long,
        };
        let text = serde_json::to_string(&owner).map_err(|e| RecordError::Value(e.to_string()))?;
        let began = Instant::now();
        let mut unreadable = 0;
        loop {
            if files::create_exclusive(&path, format!("{text}\n").as_bytes())? {
                return Ok(Self { path, owner });
            }
            let holder: Owner = match files::read_json(&path) {
                Ok(holder) => holder,
                // Released between the two calls.
                Err(e) if e.is_not_found() => continue,
                Err(e) => {
                    unreadable += 1;
                    if unreadable > 3 && if_held != IfHeld::Break {
                        return Err(e.into());
                    }
                    remove(&path, if_held == IfHeld::Break)?;
                    continue;
                }
            };
            let same_host = holder.host == owner.host;
            let gone = same_host && (holder.boot_id != owner.boot_id || !attempt::process_lives(holder.pid));
            if gone || if_held == IfHeld::Break {
                remove(&path, true)?;
                continue;
            }
            if holder.long || began.elapsed() >= patience {
                let owner = format!(
                    "user {} on host {}, process {}, since {}",
                    holder.user,
                    holder.host,
                    holder.pid,
                    holder.since.format("%F %T UTC")
                );
                return Err(WorkflowError::Locked { owner, path });
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn remove(path: &Path, wanted: bool) -> Result<()> {
    if !wanted {
        std::thread::sleep(Duration::from_millis(100));
        return Ok(());
    }
    // Renamed first: of two that take over, one wins, and the other's new lock is not removed.
    let aside = path.with_file_name(format!(".lock.stale.{}.{}", files::host_name(), std::process::id()));
    match std::fs::rename(path, &aside) {
        Ok(()) => std::fs::remove_file(&aside).map_err(|e| RecordError::io("remove", &aside)(e).into()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(RecordError::io("remove", path)(e).into()),
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Only our own: somebody may have broken it meanwhile. Failing to remove it is seen by the next.
        if files::read_json::<Owner>(&self.path).is_ok_and(|o| o == self.owner) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(own: &Path, if_held: IfHeld) -> Result<Lock> {
        Lock::take_within(own, Hold::Short, if_held, Duration::from_millis(300))
    }

    #[test]
    fn the_second_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path(), IfHeld::Respect).unwrap();
        let error = take(dir.path(), IfHeld::Respect).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())) && error.contains("--break-lock"),
            "{error}"
        );
        let broken = take(dir.path(), IfHeld::Break).unwrap();
        drop(first);
        assert!(broken.path.exists(), "the broken holder does not remove the new lock");
        drop(broken);
        take(dir.path(), IfHeld::Respect).unwrap();
    }

    #[test]
    fn a_dead_holder_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let owner = |host: String, pid| Owner {
            user: "u".into(),
            host,
            pid,
            boot_id: attempt::boot_id(),
            since: DateTime::UNIX_EPOCH,
            long: false,
        };
        files::write_json(&dir.path().join("lock"), &owner(files::host_name(), child.id())).unwrap();
        drop(take(dir.path(), IfHeld::Respect).unwrap());
        files::write_json(&dir.path().join("lock"), &owner("elsewhere".into(), child.id())).unwrap();
        assert!(take(dir.path(), IfHeld::Respect).unwrap_err().to_string().contains("elsewhere"));
    }
}
