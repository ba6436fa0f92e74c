//! The frame around both attacks: ranks, what is kept between steps, and the words that studies use.
//!
//! Every rank does the same steps; rank 0 keeps the state, so that a killed cell goes on behind its last kept step and ends
//! with the same result, on any number of ranks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::attack_summary::Headline;
use super::{Context, StageError};
use crate::compute::attack::state::{ATTACK_VERSION, Kept, read, write};
use crate::compute::attack::success::{Metric, Thresholds};
use crate::compute::attack::{Next, Scope, share};
use crate::compute::comm::Comm;
use crate::compute::{ComputeError, Result, numerics};
use crate::record::{Digest, RunRecord, progress};

/// What is kept of an attack while it runs.
pub struct Keeper<'a, S> {
    context: &'a Context,
    comm: &'a Comm,
    /// As it was read, and what is written at the next time: [`Self::step`] brings it up to date, and so does whoever has
    /// found something between two steps.
    pub state: S,
    fingerprint: Digest,
    steps: u64,
    interval: Duration,
    written: Instant,
    series: Option<progress::Writer>,
}

impl<'a, S: Serialize + DeserializeOwned + Default> Keeper<'a, S> {
    /// Opens what an earlier attempt of the cell kept; all ranks see the same.
    ///
    /// # Errors
    /// The file is damaged or newer, or a rank is gone.
    pub fn open(context: &'a Context, comm: &'a Comm, interval_s: f64) -> Result<Self> {
        let fingerprint = context.cell.fingerprint.clone();
        let mut mine = Vec::new();
        if comm.is_first() {
            let kept: Option<Kept<S>> = read(&context.checkpoint_dir, &fingerprint)?;
            mine = serde_json::to_vec(&kept).map_err(unprintable)?;
        }
        let text = comm.broadcast(&mine)?;
        let kept: Option<Kept<S>> = serde_json::from_slice(&text).map_err(unprintable)?;
        let (steps, state) = kept.map_or_else(Default::default, |k| (k.steps, k.state));
        let series = if comm.is_first() { Some(progress::Writer::resume(&context.run_dir, steps)?) } else { None };
        if comm.is_first() && steps > 0 {
            eprintln!("going on behind step {steps}");
        }
        let interval = Duration::from_secs_f64(interval_s);
        Ok(Self { context, comm, state, fingerprint, steps, interval, written: Instant::now(), series })
    }

    /// Behind every step, on every rank: notes its number, keeps the state if it is time (`update` brings it up to date), and
    /// says whether to go on.
    ///
    /// # Errors
    /// The state cannot be written, a newer attempt owns the cell, or a rank is gone.
    pub fn step(&mut self, name: &str, value: f64, update: &mut dyn FnMut(&mut S)) -> Result<Next> {
        self.steps += 1;
        if let Some(series) = &mut self.series {
            let values = BTreeMap::from([(name.to_owned(), value)]);
            series.write(&progress::Line {
                step: self.steps,
                total: None,
                time_s: self.context.elapsed_s(),
                values,
            })?;
        }
        let stop = share::any(self.comm, self.context.stop_requested())?;
        if self.comm.is_first() && (stop || self.written.elapsed() >= self.interval) {
            if self.context.is_superseded() {
                return Err(ComputeError::Superseded);
            }
            if let Some(series) = &mut self.series {
                series.sync()?;
            }
            update(&mut self.state);
            let kept = Kept {
                version: ATTACK_VERSION,
                fingerprint: self.fingerprint.clone(),
                steps: self.steps,
                state: &self.state,
            };
            write(&self.context.checkpoint_dir, &kept)?;
            self.written = Instant::now();
        }
        Ok(if stop { Next::Stop } else { Next::GoOn })
    }

    /// The error of an attack that was asked to stop.
    pub fn resume(&self) -> StageError {
        StageError::Resume(self.steps)
    }
}

fn unprintable(e: serde_json::Error) -> ComputeError {
    ComputeError::Failed(format!("the state of an attack cannot be told to other ranks ({e}): report this"))
}

/// Runs an attack on the ranks that the launcher started; rank 0 returns the record.
///
/// # Errors
/// Ranks and program do not fit, or what `attack` returns.
pub fn on_ranks(
    timeout_s: u64,
    attack: impl FnOnce(&Comm) -> std::result::Result<RunRecord, StageError>,
) -> std::result::Result<Option<RunRecord>, StageError> {
    let comm = Comm::open(Duration::from_secs(timeout_s))?;
    let result = attack(&comm);
    let first = comm.is_first();
    // All ranks end alike: they leave in order. After another error the launcher ends the others.
    if matches!(result, Ok(_) | Err(StageError::Resume(_))) {
        comm.close()?;
    }
    result.map(|record| first.then_some(record))
}

/// What stands at the top of a result, by the words of a study.
///
/// # Errors
/// A word is not known.
pub fn headline(scope: &str, metric: &str, thresholds: Thresholds) -> std::result::Result<Headline, StageError> {
    let scope = Scope::parse(scope).ok_or_else(|| unknown("loss_scope"))?;
    let metric = Metric::parse(metric).ok_or_else(|| unknown("success_metric"))?;
    Ok(Headline { scope, metric, thresholds })
}

/// A parameter whose value the program does not know.
pub fn unknown(what: &str) -> StageError {
    StageError::Usage(format!("`{what}` has a value that is not known: correct it in the study"))
}

/// What the bits of an attack depend on.
pub fn attack_numerics(comm: &Comm, threads_per_rank: u32, grain_rows: usize) -> Value {
    numerics::record(&numerics::Settings {
        threads_per_rank,
        lanes: 1,
        grain_samples: grain_rows as u64,
        transport: comm.transport(),
        compute_type: "fp32",
        engine: "native",
        gemm: "builtin",
        device: "cpu",
        inexact: None,
    })
}
