//! How the ranks of a save agree, without messages: through files in the checkpoint's directory.
//!
//! Every rank writes its shard (temporary name, sync, rename) and then `shard-<r>-of-<n>.json`, a report that says
//! what is in it or what went wrong. Rank 0 waits for all reports. If all are good it seals the manifest, which is
//! the one moment at which the checkpoint comes to be; the reports are removed then. Otherwise it removes the
//! shards, leaves the reason in `abandoned`, and takes the directory away once the others have read it and removed
//! their reports. The others wait for one of the two.
//!
//! Everything is looked for by listing the directory: network file systems remember for a while that a name was
//! not there. Directories carry the attempt, so a process that wakes up late meets files of its own only; before
//! a shard gets its name, before the manifest is sealed and before anything old is removed, the writer asks
//! whether a newer attempt owns the cell.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::manifest::{GroupEntry, MANIFEST_VERSION, Manifest, Part, ShardEntry};
use super::pages::Stream;
use super::saver::{Outcome, Place, Superseded, Trouble};
use super::{MANIFEST_FILE, Retention, entries, retention, shard};
use crate::compute::{ComputeError, Result};
use crate::record::{RecordError, files};

/// Left by rank 0 in a directory that will not become a checkpoint.
const ABANDONED: &str = "abandoned";

/// One save of one rank.
pub(super) struct Job {
    pub place: Arc<Place>,
    pub name: String,
    pub step: u64,
    pub state: Value,
    pub numerics: Value,
    pub needs: Vec<String>,
    pub groups: Vec<GroupEntry>,
    pub parts: Vec<Part>,
    pub bytes: usize,
    pub retention: Retention,
    pub superseded: Superseded,
}

/// What a rank tells rank 0.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Written(ShardEntry),
    Trouble(Trouble),
}

/// Writes this rank's shard and takes part in the commit.
///
/// # Errors
/// [`ComputeError::Superseded`].
pub(super) fn run(job: &Job, content: &Stream) -> Result<Outcome> {
    let dir = job.place.dir.join(&job.name);
    let ended = job.write_shard(&dir, content).and_then(|mine| {
        if job.place.rank == 0 { job.gather_and_seal(&dir, mine) } else { job.report_and_wait(&dir, mine) }
    });
    let ended = match ended {
        // A newer attempt may have cleaned up under our hands: whatever went wrong, that is why.
        Err(_) | Ok(Err(_)) if (job.superseded)() => return Err(ComputeError::Superseded),
        Err(ComputeError::Superseded) => return Err(ComputeError::Superseded),
        Err(e) => Err(job.trouble(&e)),
        Ok(ended) => ended,
    };
    Ok(match ended {
        Ok(()) => Outcome::Saved { step: job.step, name: job.name.clone() },
        Err(trouble) => Outcome::NotSaved { step: job.step, trouble },
    })
}

fn shard_file(rank: usize, ranks: usize) -> String {
    format!("shard-{rank:04}-of-{ranks:04}.bin")
}

fn report_file(rank: usize, ranks: usize) -> String {
    format!("shard-{rank:04}-of-{ranks:04}.json")
}

/// Stands for a report for which there was no room: an empty file needs none.
fn failed_file(rank: usize, ranks: usize) -> String {
    format!("shard-{rank:04}-of-{ranks:04}.failed")
}

/// What a failing commit comes to: the inner error is shared by all ranks, the outer one ends this process.
type Ended<T> = Result<std::result::Result<T, Trouble>>;

impl Job {
    fn write_shard(&self, dir: &Path, content: &Stream) -> Ended<ShardEntry> {
        match self.try_write_shard(dir, content) {
            Ok(entry) => Ok(Ok(entry)),
            Err(ComputeError::Superseded) => Err(ComputeError::Superseded),
            Err(e) => Ok(Err(self.trouble(&e))),
        }
    }

    fn try_write_shard(&self, dir: &Path, content: &Stream) -> Result<ShardEntry> {
        let place = &self.place;
        files::make_dirs(dir)?;
        let file = shard_file(place.rank, place.ranks);
        let temp = dir.join(format!(".{file}.tmp"));
        retention::take_spare(&place.dir, place.attempt, &file, &temp);
        let (result, named) = std::thread::scope(|scope| {
            // The names so far are made durable while the content is written: what the file system has to do for them
            // would otherwise be done, and waited for, with the manifest.
            let named = scope.spawn(|| files::sync_dir(&place.dir));
            (shard::write(&temp, content, self.bytes), named.join())
        });
        let result = result.map_err(|e| ComputeError::Record(RecordError::io("write", &temp)(e)));
        let result = result.and_then(|blake3| {
            named.map_err(|_| ComputeError::Failed("a thread that syncs ended early: report this".to_owned()))??;
            if !content.is_finite() {
                return Err(ComputeError::Failed(Trouble::NotFinite.to_string()));
            }
            self.check_superseded()?;
            let path = dir.join(&file);
            std::fs::rename(&temp, &path).map_err(RecordError::io("rename onto", &path))?;
            if place.rank != 0 {
                // What rank 0 writes is synced with the manifest.
                files::sync_dir(dir)?;
            }
            Ok(ShardEntry { file, bytes: self.bytes as u64, digest: None, blake3, parts: self.parts.clone() })
        });
        if result.is_err() {
            // Nobody was told of it yet; failing to remove it costs space, and retention tries again.
            let _ = std::fs::remove_file(&temp);
            if place.ranks == 1 {
                let _ = std::fs::remove_dir(dir);
            }
        }
        result
    }

    fn check_superseded(&self) -> Result<()> {
        if (self.superseded)() { Err(ComputeError::Superseded) } else { Ok(()) }
    }

    fn trouble(&self, error: &ComputeError) -> Trouble {
        match error {
            ComputeError::Record(e) if e.is_disk_full() => Trouble::DiskFull(self.place.dir.clone()),
            ComputeError::Failed(text) if *text == Trouble::NotFinite.to_string() => Trouble::NotFinite,
            e => {
                let cause = std::error::Error::source(e).map_or(String::new(), |c| format!(": {c}"));
                Trouble::Failed(format!("{e}{cause}"))
            }
        }
    }

    /// Rank 0: collects what the ranks wrote, and seals it.
    fn gather_and_seal(&self, dir: &Path, mine: std::result::Result<ShardEntry, Trouble>) -> Ended<()> {
        let ranks = self.place.ranks;
        let mut reports = vec![mine];
        let began = Instant::now();
        let mut pause = Pause::default();
        while reports.len() < ranks {
            let rank = reports.len();
            let path = dir.join(report_file(rank, ranks));
            let names = entries(dir)?;
            let there = names.contains(&report_file(rank, ranks));
            match there.then(|| files::read_json::<Report>(&path)) {
                Some(Ok(Report::Written(entry))) => reports.push(Ok(entry)),
                Some(Ok(Report::Trouble(trouble))) => reports.push(Err(trouble)),
                _ if names.contains(&failed_file(rank, ranks)) => {
                    reports.push(Err(Trouble::DiskFull(self.place.dir.clone())));
                }
                _ if began.elapsed() > self.place.patience => {
                    let seconds = began.elapsed().as_secs();
                    reports.push(Err(Trouble::Failed(format!(
                        "the shard of rank {rank} of `{}` did not come within {seconds} s: look for its message in the log",
                        dir.display()
                    ))));
                }
                _ => {
                    self.check_superseded()?;
                    pause.sleep();
                }
            }
        }
        let sealed = match reports.into_iter().collect() {
            Err(trouble) => Err(trouble),
            Ok(shards) => match self.seal(dir, shards) {
                Err(ComputeError::Superseded) => return Err(ComputeError::Superseded),
                sealed => sealed.map_err(|e| self.trouble(&e)),
            },
        };
        match &sealed {
            Err(trouble) => self.abandon(dir, trouble),
            Ok(()) => {
                for rank in 1..ranks {
                    // A report that stays harms nobody.
                    let _ = std::fs::remove_file(dir.join(report_file(rank, ranks)));
                }
                // What cannot be removed now is removed after the next save.
                let _ = retention::tidy(&self.place, self.retention, &self.superseded, &self.name);
            }
        }
        Ok(sealed)
    }

    fn seal(&self, dir: &Path, shards: Vec<ShardEntry>) -> Result<()> {
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            fingerprint: self.place.fingerprint.clone(),
            attempt: self.place.attempt,
            step: self.step,
            state: self.state.clone(),
            numerics: self.numerics.clone(),
            needs: self.needs.clone(),
            groups: self.groups.clone(),
            shards,
            digest: None,
        };
        self.check_superseded()?;
        // The directory's own name is durable since the shard was written.
        Ok(files::write_json_into(&dir.join(MANIFEST_FILE), &manifest.sealed())?)
    }

    /// Rank 0: takes back what was begun.
    fn abandon(&self, dir: &Path, trouble: &Trouble) {
        let (place, began) = (&self.place, Instant::now());
        // The room that a spare takes is what is missing now.
        retention::remove_spare(&place.dir, place.attempt);
        for rank in 0..place.ranks {
            let _ = std::fs::remove_file(dir.join(shard_file(rank, place.ranks)));
        }
        if place.ranks > 1 {
            let reason = serde_json::to_vec(trouble).unwrap_or_default();
            // On a full disk an empty one still fits.
            let path = dir.join(ABANDONED);
            let _ = files::write_atomic(&path, &reason).or_else(|_| files::create_exclusive(&path, b"").map(drop));
            let mut pause = Pause::default();
            let waits = |names: Vec<String>| names.iter().any(|n| n.ends_with(".json") || n.ends_with(".failed"));
            while began.elapsed() < place.patience && entries(dir).is_ok_and(waits) && !(self.superseded)() {
                pause.sleep();
            }
        }
        // What is left has no manifest and is passed over.
        let _ = std::fs::remove_dir_all(dir);
    }

    /// The other ranks: tells rank 0, and waits for what it makes of it.
    fn report_and_wait(&self, dir: &Path, mine: std::result::Result<ShardEntry, Trouble>) -> Ended<()> {
        let place = &self.place;
        let path = dir.join(report_file(place.rank, place.ranks));
        let mut report = match mine {
            Ok(entry) => Report::Written(entry),
            Err(trouble) => Report::Trouble(trouble),
        };
        let failed = dir.join(failed_file(place.rank, place.ranks));
        let tell = |report: &Report| {
            files::write_json_into(&path, report).is_ok()
                || matches!(report, Report::Trouble(_)) && files::create_exclusive(&failed, b"").is_ok()
        };
        let began = Instant::now();
        let mut pause = Pause::default();
        let mut told = tell(&report);
        loop {
            let names = entries(dir)?;
            if names.iter().any(|n| n == MANIFEST_FILE) {
                return Ok(Ok(()));
            }
            let given_up = Trouble::Failed(format!("`{}` was given up: look for the message of rank 0", dir.display()));
            if names.iter().any(|n| n == ABANDONED) {
                let reason = std::fs::read(dir.join(ABANDONED)).ok();
                let reason = reason.and_then(|text| serde_json::from_slice(&text).ok());
                // Says that it was read: rank 0 then removes the directory.
                let _ = std::fs::remove_file(&path);
                let _ = std::fs::remove_file(&failed);
                return Ok(Err(reason.unwrap_or(given_up)));
            }
            // A little longer than rank 0, so that it is the one who decides.
            if names.is_empty() && !dir.exists() || began.elapsed() > place.patience * 5 / 4 {
                return Ok(Err(given_up));
            }
            self.check_superseded()?;
            pause.sleep();
            if !told && began.elapsed() > Duration::from_secs(1) {
                // The disk took the shard and has no room for the report: then not for the shard either.
                let _ = std::fs::remove_file(dir.join(shard_file(place.rank, place.ranks)));
                report = Report::Trouble(Trouble::DiskFull(place.dir.clone()));
            }
            told = told || tell(&report);
        }
    }
}

/// Short waits that grow.
#[derive(Default)]
struct Pause(Duration);

impl Pause {
    fn sleep(&mut self) {
        self.0 = (self.0 * 3 / 2).clamp(Duration::from_millis(2), Duration::from_millis(250));
        std::thread::sleep(self.0);
    }
}
