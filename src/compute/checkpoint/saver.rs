//! Saving in the background. [`Saver::begin`] copies this rank's numbers and returns; a thread of low priority
//! writes the copy, digests it, makes it durable, and takes part in the commit (`commit`): files in the
//! checkpoint's directory, no messages, because messages between ranks belong to one thread.
//!
//! What became of a save is learned without waiting by [`Saver::poll`], or by [`Saver::wait`]; all ranks learn
//! the same, because it is read from the directory, but not at the same step: what follows from it for all ranks
//! is decided where all of them have waited.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::commit::{self, Job};
use super::manifest::{self, Dtype, GroupEntry, Kind, Part};
use super::name;
use super::pages::{Filler, Pages, Stream};
use super::retention::Retention;
use crate::compute::model::Layout;
use crate::compute::{ComputeError, Result};
use crate::record::{Digest, RecordError};

/// What a rank holds when a checkpoint is taken.
#[derive(Debug)]
pub struct Snapshot<'a> {
    /// Steps done.
    pub step: u64,
    /// Counters of the trainer; rank 0's are stored.
    pub state: Value,
    /// The numerics record; rank 0's is stored.
    pub numerics: Value,
    /// Other checkpoints that this one needs (the best).
    pub needs: Vec<String>,
    /// This rank's numbers, in the order in which they are stored.
    pub pieces: Vec<Piece<'a>>,
}

/// A range of a group.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Number of the group.
    pub group: usize,
    /// What the numbers are.
    pub kind: Kind,
    /// First element in the group.
    pub first: usize,
    /// The numbers.
    pub values: &'a [f32],
}

/// Where a saver writes, and as whom.
#[derive(Debug, Clone)]
pub struct Place {
    /// Holds the checkpoints' directories.
    pub dir: PathBuf,
    /// This rank.
    pub rank: usize,
    /// All ranks.
    pub ranks: usize,
    /// Number of this attempt.
    pub attempt: u32,
    /// The cell's fingerprint: only an equal one is resumed.
    pub fingerprint: Digest,
    /// How long rank 0 waits for the other ranks' shards, and they for its manifest, before a save counts as
    /// failed.
    pub patience: Duration,
}

/// Asks whether a newer attempt owns the cell; called from the writing thread, before each commit.
pub type Superseded = Arc<dyn Fn() -> bool + Send + Sync>;

/// What became of a save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It lies there, whole and durable.
    Saved {
        /// Its step.
        step: u64,
        /// Its directory's name.
        name: String,
    },
    /// It does not, and what lay there before is untouched.
    NotSaved {
        /// Its step.
        step: u64,
        /// Why.
        trouble: Trouble,
    },
}

/// Why there is no checkpoint. Ranks agree that there is none; the reason may be known to some of them only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// No room.
    #[error("the disk of `{}` is full", .0.display())]
    DiskFull(PathBuf),
    /// A parameter or moment is infinite or NaN: such a checkpoint is never sealed.
    #[error("a parameter or moment is not finite: lower `lr` or `max_grad_norm` and run again")]
    NotFinite,
    /// Another error.
    #[error("{0}")]
    Failed(String),
}

static LONGEST_MS: AtomicU64 = AtomicU64::new(0);

/// The longest save of this process so far, from the copy to the last sync: how early the one before the end of the
/// allocation must begin. Zero before the first.
pub fn longest_save() -> Duration {
    Duration::from_millis(LONGEST_MS.load(Ordering::Relaxed))
}

/// Saves checkpoints of one rank, one at a time.
pub struct Saver {
    place: Arc<Place>,
    groups: Vec<GroupEntry>,
    retention: Retention,
    superseded: Superseded,
    /// Pages for a copy, between saves.
    room: Option<Pages>,
    in_flight: Option<(JoinHandle<Result<Outcome>>, Arc<Stream>)>,
    preparing: Option<JoinHandle<Option<Pages>>>,
}

impl Saver {
    /// A saver for parameters that lie as `layout` says; `frozen` has the digests of groups that are not trained.
    pub fn new(
        place: Place,
        layout: &Layout,
        frozen: &[(usize, Digest)],
        retention: Retention,
        superseded: Superseded,
    ) -> Self {
        Self {
            place: Arc::new(place),
            groups: manifest::group_entries(layout, frozen),
            retention,
            superseded,
            room: None,
            in_flight: None,
            preparing: None,
        }
    }

    /// Makes room for a snapshot of `bytes` bytes in the background, so that [`Self::begin`] need not: the first
    /// touch of memory costs more than the copy.
    pub fn prepare(&mut self, bytes: usize) {
        if self.room.is_some() || self.in_flight.is_some() || self.preparing.is_some() {
            return;
        }
        let make = move || {
            yield_to_computing();
            let mut room = Pages::new(bytes).ok()?;
            room.touch();
            room.offer_back();
            Some(room)
        };
        // Without a thread, `begin` makes the room itself.
        self.preparing = std::thread::Builder::new().name("checkpoint-room".into()).spawn(make).ok();
    }

    /// Copies the snapshot and starts to write it. All ranks call it with their own pieces, after [`Self::wait`] or
    /// [`Self::poll`] gave the outcome of the save before.
    ///
    /// # Errors
    /// A save is in flight; there is no memory for the copy.
    pub fn begin(&mut self, snapshot: Snapshot<'_>) -> Result<()> {
        if self.in_flight.is_some() {
            return Err(ComputeError::Failed("a save was begun before the one before had ended: report this".into()));
        }
        let began = Instant::now();
        let bytes = snapshot.pieces.iter().map(|p| size_of_val(p.values)).sum();
        let mut parts = Vec::with_capacity(snapshot.pieces.len());
        let mut at = 0;
        for piece in &snapshot.pieces {
            let (group, kind, first, len) = (piece.group, piece.kind, piece.first, piece.values.len());
            parts.push(Part { group, kind, dtype: Dtype::F32, first, len, at });
            at += size_of_val(piece.values) as u64;
        }
        let job = Job {
            place: Arc::clone(&self.place),
            name: name(snapshot.step, self.place.attempt),
            step: snapshot.step,
            state: snapshot.state,
            numerics: snapshot.numerics,
            needs: snapshot.needs,
            groups: self.groups.clone(),
            parts,
            bytes,
            retention: self.retention,
            superseded: Arc::clone(&self.superseded),
        };
        let (mut filler, stream) = Filler::new(self.room_for(bytes)?, bytes);
        let content = Arc::clone(&stream);
        let write = move || {
            yield_to_computing();
            let outcome = commit::run(&job, &content);
            if matches!(outcome, Ok(Outcome::Saved { .. })) {
                // At least one: it has been measured.
                let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
                LONGEST_MS.fetch_max(took_ms, Ordering::Relaxed);
            }
            outcome
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(write);
        let thread = thread.map_err(RecordError::io("start a thread to write", &self.place.dir))?;
        self.in_flight = Some((thread, stream));
        // What is copied is on its way to the disk while the rest is copied.
        snapshot.pieces.iter().for_each(|piece| filler.push(piece.values));
        Ok(())
    }

    /// What became of the save in flight, if that is known; `None` if it is not, or if there is none.
    ///
    /// # Errors
    /// [`ComputeError::Superseded`]: a newer attempt owns the cell.
    pub fn poll(&mut self) -> Result<Option<Outcome>> {
        match &self.in_flight {
            Some((thread, _)) if thread.is_finished() => self.wait(),
            _ => Ok(None),
        }
    }

    /// Waits for the save in flight; `None` if there is none.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn wait(&mut self) -> Result<Option<Outcome>> {
        let Some((thread, stream)) = self.in_flight.take() else { return Ok(None) };
        let outcome = thread
            .join()
            .map_err(|_| ComputeError::Failed("the thread that writes checkpoints ended early: report this".into()))?;
        // Neither the thread nor the one that filled it has it any more.
        self.room = Arc::into_inner(stream).map(Stream::into_pages).map(|mut room| {
            room.offer_back();
            room
        });
        outcome.map(Some)
    }

    /// Waits for the save in flight, and gives back memory and files kept for the next one.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn finish(mut self) -> Result<Option<Outcome>> {
        let outcome = self.wait();
        if self.place.rank == 0 {
            super::retention::remove_spare(&self.place.dir, self.place.attempt);
        }
        outcome
    }

    fn room_for(&mut self, bytes: usize) -> Result<Pages> {
        let prepared = self.preparing.take().and_then(|thread| thread.join().ok().flatten());
        match self.room.take().or(prepared) {
            Some(room) if room.len() >= bytes => Ok(room),
            _ => Pages::new(bytes).map_err(|e| {
                ComputeError::Failed(format!(
                    "there is no memory for a checkpoint's copy of {bytes} bytes ({e}): ask for more memory or more ranks"
                ))
            }),
        }
    }
}

/// Lets the step loop go first where both want one core. Of the calling thread, and of those that it starts.
fn yield_to_computing() {
    // SAFETY: changes a number of this thread's scheduling (of the thread's alone, on Linux); failing to only costs
    // speed.
    unsafe { libc::nice(10) };
}
