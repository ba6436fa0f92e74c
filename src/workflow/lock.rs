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

impl Owner {
    /// Whether its process is known to have ended. On another host nobody can tell.
    fn is_gone(&self) -> bool {
        self.host == files::host_name() && (self.boot_id != attempt::boot_id() || !attempt::process_lives(self.pid))
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.since.format("%F %T UTC");
        write!(f, "user {} on host {}, process {}, since {since}", self.user, self.host, self.pid)
    }
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
        Self::take_within(own.join("lock"), hold, if_held, PATIENCE)
    }

    /// Takes a lock of another name for something small, and takes it from whoever held it longer than `patience`:
    /// for work that a second one may repeat without harm.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn take_turn(own: &Path, name: &str, patience: Duration) -> Result<Self> {
        let take = |if_held| Self::take_within(own.join(name), Hold::Short, if_held, patience);
        match take(IfHeld::Respect) {
            Err(WorkflowError::Locked { .. }) => take(IfHeld::Break),
            taken => taken,
        }
    }

    /// Who holds the lock below `own`, if somebody does whose process may live, and for how long.
    pub fn holder(own: &Path) -> Option<(String, Hold)> {
        let owner: Owner = files::read_json(&own.join("lock")).ok()?;
        let hold = if owner.long { Hold::Long } else { Hold::Short };
        (!owner.is_gone()).then(|| (owner.to_string(), hold))
    }

    fn take_within(path: PathBuf, hold: Hold, if_held: IfHeld, patience: Duration) -> Result<Self> {
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
            if holder.is_gone() || if_held == IfHeld::Break {
                remove(&path, true)?;
                continue;
            }
            if holder.long || began.elapsed() >= patience {
                return Err(WorkflowError::Locked { owner: holder.to_string(), path });
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
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.stale.{}.{}", files::host_name(), std::process::id()));
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
        Lock::take_within(own.join("lock"), Hold::Short, if_held, Duration::from_millis(300))
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
        assert_eq!(Lock::holder(dir.path()), None);
        let _held = take(dir.path(), IfHeld::Respect).unwrap();
        let (owner, hold) = Lock::holder(dir.path()).unwrap();
        assert!(owner.contains(&format!("process {}", std::process::id())) && hold == Hold::Short, "{owner}");
    }

    #[test]
    fn a_turn_is_waited_for_and_then_taken() {
        let dir = tempfile::tempdir().unwrap();
        let turn = |patience_ms| Lock::take_turn(dir.path(), "turn", Duration::from_millis(patience_ms)).unwrap();
        let first = turn(0);
        let began = Instant::now();
        let second = turn(300);
        assert!(began.elapsed() >= Duration::from_millis(300));
        drop(first);
        assert!(second.path.exists(), "whoever lost the turn does not end that of the next");
        assert_eq!(Lock::holder(dir.path()), None, "it is not the lock of the study");
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
