//! Training: data parallel over ranks, exact to the bit on any allowed number of them and after any kill.
//!
//! A step: every rank runs its lanes' grains ([`grain`], [`lanes`]); shards of the gradient go to their owners,
//! who add them in tree order; the norm is added in index order ([`norm`]); every owner updates its shard
//! ([`adamw`]: ZeRO-1, moments live only there) and sends it to all. What is skipped, clipped, validated, saved
//! or stopped follows from numbers that all ranks have, so they decide alike.
//!
//! The promises and the tests that keep them: `docs/numerics.md`. Dropout is 0.

pub mod adamw;
pub mod exchange;
pub mod grain;
pub mod lanes;
pub mod norm;
pub mod schedule;
pub mod state;

mod report;

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

pub use adamw::{AdamW, Decay};
pub use lanes::Plan;
pub use schedule::{Schedule, Shape};
pub use state::{Best, State, Validation};

use super::checkpoint::{self, Checkpoint, Kind, Saved, Snapshot};
use super::comm::Comm;
use super::data::{Sample, Samples};
use super::model::{CHUNK, GrainSum, Model, as_f32, as_f32_mut};
use super::{ComputeError, Result, numerics};
use crate::record::Digest;
use lanes::{Gradient, LaneTree};
use report::Reporter;

/// What a training run is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Seed of the order of samples.
    pub seed: u32,
    /// How a batch is cut.
    pub plan: Plan,
    /// Steps and rates.
    pub schedule: Schedule,
    /// The optimizer.
    pub adamw: AdamW,
    /// Largest norm of the mean gradient; 0: not clipped.
    pub max_grad_norm: f64,
    /// Steps between validations; one more comes after the last step.
    pub val_interval_steps: u64,
    /// Validation windows, at most.
    pub val_samples: Option<u64>,
    /// Steps between checkpoints; 0: only the best and at a stop.
    pub checkpoint_interval_steps: u64,
    /// Steps between log lines.
    pub log_interval_steps: u64,
    /// Whole checkpoints that stay, besides the best.
    pub keep_last: usize,
    /// Skipped steps in a row after which the run stops.
    pub stop_after_skips: u64,
    /// Threads of libtorch's kernels.
    pub threads_per_rank: u32,
    /// Whether a resume under another numerics record is refused.
    pub strict: Strict,
    /// The cell's fingerprint.
    pub fingerprint: Digest,
    /// Number of this attempt.
    pub attempt: u32,
}

/// What a resume under another numerics record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strict {
    /// It is refused.
    Refuse,
    /// It goes on, and the record says from which step bits may differ.
    GoOn,
}

/// Where a training run reads and writes, and what it asks on the way.
pub struct Surroundings<'a> {
    /// Training samples.
    pub train: &'a Samples,
    /// Validation samples.
    pub validation: &'a Samples,
    /// Holds `progress.jsonl`.
    pub run_dir: &'a Path,
    /// Holds checkpoints.
    pub checkpoint_dir: &'a Path,
    /// True once somebody asked to stop.
    pub stop_requested: &'a dyn Fn() -> bool,
    /// True if a newer attempt owns the cell.
    pub is_superseded: &'a dyn Fn() -> bool,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// All steps are done.
    Finished(Finished),
    /// It was asked to stop, and saved after this step.
    Interrupted(u64),
}

/// What a finished run leaves.
#[derive(Debug)]
pub struct Finished {
    /// After the last step.
    pub last: Model,
    /// At the best validation.
    pub best: Model,
    /// Counters.
    pub state: State,
    /// The numerics record.
    pub numerics: Value,
}

/// Trains `model` to the end, or to the next request to stop; goes on from the newest usable checkpoint.
///
/// # Errors
/// The ranks cannot share the lanes; a checkpoint or another rank fails; too many steps in a row give no finite
/// gradient; a constrained weight leaves its range.
pub fn train(comm: &Comm, model: Model, settings: &Settings, around: &Surroundings<'_>) -> Result<Outcome> {
    settings.plan.check_ranks(comm.size()).map_err(ComputeError::Config)?;
    around.train.check_batch(settings.plan.grains * settings.plan.grain_samples)?;
    super::model::set_threads(settings.threads_per_rank);
    let mut trainer = Trainer::begin(comm, model, settings, around)?;
    let mut report = Reporter::open(comm, settings, around, &trainer.state)?;

    while trainer.state.step < settings.schedule.steps {
        let began = Instant::now();
        let step = trainer.state.step;
        let lr = settings.schedule.at(step);
        let (gradient, sums) = trainer.backward(step)?;
        let totals = trainer.exchange(gradient, &sums)?;
        let (factor, norm) = trainer.factor_and_norm(totals.sum.tokens)?;
        let usable = totals.sum.tokens > 0 && norm.is_finite() && totals.sum.nll.is_finite();
        if usable {
            trainer.state.update(totals.sum.nll, totals.sum.tokens);
            trainer.state.clipped += u64::from(settings.max_grad_norm > 0.0 && norm > settings.max_grad_norm);
            trainer.update(lr, factor)?;
        } else {
            trainer.state.skip();
        }
        trainer.state.step += 1;
        trainer.state.seconds += began.elapsed().as_secs_f64();
        report.step(&trainer.state, &totals.sum, usable, norm, lr, began.elapsed())?;
        trainer.stop_after_skips()?;

        let last = trainer.state.step == settings.schedule.steps;
        if last || trainer.state.step % settings.val_interval_steps == 0 {
            let validation = trainer.validate()?;
            report.validation(&validation)?;
            if trainer.is_best(&validation) {
                trainer.save_best(&validation, &mut report)?;
            }
        }
        if totals.stop && !last {
            trainer.save(&mut report)?;
            return Ok(Outcome::Interrupted(trainer.state.step));
        }
        let interval = settings.checkpoint_interval_steps;
        if last || (interval > 0 && trainer.state.step % interval == 0) {
            trainer.save(&mut report)?;
        }
    }
    trainer.finish().map(Outcome::Finished)
}

/// Sums of a step over all ranks.
struct Totals {
    sum: GrainSum,
    stop: bool,
}

struct Trainer<'a> {
    comm: &'a Comm,
    settings: &'a Settings,
    around: &'a Surroundings<'a>,
    model: Model,
    state: State,
    numerics: Value,
    tree: LaneTree,
    /// This rank's shard of every group: summed gradient and moments.
    gradients: Vec<Vec<f32>>,
    m: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
    /// Room for the other ranks' parts of a shard, by rank and group.
    inbox: Vec<Vec<Vec<f32>>>,
    /// Step and name of the last checkpoint of this attempt.
    saved: Option<(u64, String)>,
}

impl<'a> Trainer<'a> {
    fn begin(comm: &'a Comm, model: Model, settings: &'a Settings, around: &'a Surroundings<'a>) -> Result<Self> {
        let model = model.padded_for(settings.plan.lanes as usize)?;
        let ranks = comm.size();
        let shards = || model.layout().groups.iter().map(|g| vec![0f32; g.len / ranks]).collect::<Vec<_>>();
        let numerics = numerics::record(&numerics::Settings {
            threads_per_rank: settings.threads_per_rank,
            lanes: settings.plan.lanes as usize,
            grain_samples: settings.plan.grain_samples,
            transport: comm.transport(),
        });
        let mut trainer = Self {
            comm,
            settings,
            around,
            state: State::default(),
            numerics,
            tree: LaneTree::default(),
            gradients: shards(),
            m: shards(),
            v: shards(),
            inbox: (1..ranks).map(|_| shards()).collect(),
            saved: None,
            model,
        };
        trainer.resume()?;
        Ok(trainer)
    }

    /// Goes on from the newest usable checkpoint. Rank 0 looks and decides.
    fn resume(&mut self) -> Result<()> {
        let mut chosen = String::new();
        if self.comm.is_first() {
            let found = checkpoint::find(self.around.checkpoint_dir, &self.settings.fingerprint)?;
            found.refused.iter().for_each(|line| eprintln!("checkpoint {line}"));
            chosen = found.checkpoint.map_or(String::new(), |c| {
                c.dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
            });
        }
        let chosen = String::from_utf8_lossy(&self.comm.broadcast(chosen.as_bytes())?).into_owned();
        if chosen.is_empty() {
            return Ok(());
        }
        let checkpoint = Checkpoint::open(&self.around.checkpoint_dir.join(&chosen))?;
        checkpoint.check_layout(self.model.layout())?;
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        read_weights(&mut self.model, &checkpoint)?;
        for (g, (m, v)) in self.m.iter_mut().zip(&mut self.v).enumerate() {
            let first = self.model.layout().groups[g].len / ranks * rank;
            checkpoint.read(Kind::FirstMoment, g, first, m)?;
            checkpoint.read(Kind::SecondMoment, g, first, v)?;
        }
        self.state = serde_json::from_value(checkpoint.manifest.state.clone())
            .map_err(|e| ComputeError::input(&checkpoint.dir, format!("has counters of another program ({e})")))?;
        self.continue_numerics(&checkpoint.manifest.numerics)?;
        if self.comm.is_first() {
            eprintln!("going on from step {} of {}", self.state.step, self.settings.schedule.steps);
        }
        Ok(())
    }

    /// Bits are promised only under one numerics record.
    fn continue_numerics(&mut self, old: &Value) -> Result<()> {
        let mut changed = numerics::differences(old, &self.numerics);
        if let Some(note) = old.get("bitwise_note").and_then(Value::as_str) {
            self.numerics["bitwise"] = json!(false);
            self.numerics["bitwise_note"] = json!(note);
        }
        if changed.is_empty() {
            return Ok(());
        }
        if self.settings.strict == Strict::Refuse {
            return Err(ComputeError::Config(format!(
                "the checkpoint was made where bits may differ ({}): run on the same kind of machine, or set strict = false",
                changed.join(", ")
            )));
        }
        changed.insert(0, format!("since step {}", self.state.step));
        self.numerics["bitwise"] = json!(false);
        self.numerics["bitwise_note"] = json!(changed.join("; "));
        if self.comm.is_first() {
            eprintln!("bits may differ {}", changed.join("; "));
        }
        Ok(())
    }

    /// The samples of one grain of a step.
    fn samples(&self, step: u64, grain: u64) -> Vec<Sample> {
        let plan = &self.settings.plan;
        let batch = plan.grains * plan.grain_samples;
        // The last, incomplete batch of an epoch is dropped.
        let per_epoch = self.around.train.len() / batch;
        let first =
            (step / per_epoch) * self.around.train.len() + (step % per_epoch) * batch + grain * plan.grain_samples;
        (first..first + plan.grain_samples)
            .map(|p| self.around.train.sample(self.around.train.at_position(self.settings.seed, p)))
            .collect()
    }

    /// This rank's lanes: their summed gradient, and the sums of their grains.
    fn backward(&mut self, step: u64) -> Result<(Gradient, Vec<GrainSum>)> {
        let leaves = grain::leaves(&self.model)?;
        let mut sums = Vec::new();
        for lane in self.settings.plan.lanes_of(self.comm.rank(), self.comm.size()) {
            let mut total: Option<Gradient> = None;
            for number in lane {
                let (gradient, sum) = grain::backward(&self.model, &leaves, &self.samples(step, number))?;
                sums.push(sum);
                match &mut total {
                    None => total = Some(self.tree.begin_lane(gradient)?),
                    Some(total) => lanes::add_to(total, &gradient)?,
                }
            }
            if let Some(total) = total {
                self.tree.push(total)?;
            }
        }
        Ok((self.tree.take()?, sums))
    }

    /// Sends every owner its shard and adds the own one in tree order; gathers sums and the wish to stop.
    fn exchange(&mut self, gradient: Gradient, sums: &[GrainSum]) -> Result<Totals> {
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        let peers: Vec<usize> = (0..ranks).filter(|&p| p != rank).collect();
        let mut sends = Vec::new();
        let mut receives = Vec::new();
        for (&peer, room) in peers.iter().zip(&mut self.inbox) {
            for (flat, room) in gradient.iter().zip(room) {
                sends.push((peer, &as_f32(flat)[peer * room.len()..(peer + 1) * room.len()]));
                receives.push((peer, room.as_mut_slice()));
            }
        }
        self.comm.exchange_f32(&sends, &mut receives)?;
        for (g, (flat, own)) in gradient.iter().zip(&mut self.gradients).enumerate() {
            let len = own.len();
            own.copy_from_slice(&as_f32(flat)[rank * len..(rank + 1) * len]);
            let mut parts: Vec<&mut [f32]> = self.inbox.iter_mut().map(|room| room[g].as_mut_slice()).collect();
            parts.insert(rank, own);
            lanes::add_ranks(&mut parts);
            if rank != 0 {
                // The tree leaves its sum in rank 0's part.
                let (first, rest) = parts.split_at_mut(rank);
                rest[0].copy_from_slice(first[0]);
            }
        }
        self.tree.reuse(gradient);

        // Rank after rank is grain after grain: lanes are contiguous.
        let stop = (self.around.stop_requested)();
        let mut mine: Vec<f64> = sums.iter().flat_map(|s| [s.nll, s.tokens as f64]).collect();
        mine.push(f64::from(u8::from(stop)));
        let all = self.comm.all_gather_f64(&mine)?;
        let mut totals = Totals { sum: GrainSum::default(), stop: false };
        for of_rank in all.chunks(mine.len()) {
            for sum in of_rank[..mine.len() - 1].chunks(2) {
                totals.sum.nll += sum[0];
                totals.sum.tokens += sum[1] as i64;
            }
            totals.stop |= of_rank[mine.len() - 1] != 0.0;
        }
        Ok(totals)
    }

    /// The factor on gradients (1 / tokens and clip) and the norm of the mean gradient.
    fn factor_and_norm(&self, tokens: i64) -> Result<(f64, f64)> {
        let mine: Vec<f64> = self.gradients.iter().flat_map(|g| norm::chunk_sums(g)).collect();
        let gathered = self.comm.all_gather_f64(&mine)?;
        let chunks: Vec<usize> = self.gradients.iter().map(|g| g.len() / CHUNK).collect();
        let ordered = norm::in_layout_order(&gathered, &chunks, self.comm.size());
        Ok(norm::factor_and_norm(&ordered, tokens.max(1), self.settings.max_grad_norm))
    }

    /// Updates the own shard of every group and exchanges the new weights.
    fn update(&mut self, lr: f64, factor: f64) -> Result<()> {
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        let step = adamw::Step { lr, update: self.state.updates, gradient_factor: factor as f32 };
        let layout = self.model.layout().clone();
        let flats = self.model.flats_mut();
        for (g, group) in layout.groups.iter().enumerate() {
            let len = group.len / ranks;
            let shard = adamw::Shard {
                first: rank * len,
                weights: &mut as_f32_mut(&mut flats[g])[rank * len..(rank + 1) * len],
                gradients: &self.gradients[g],
                m: &mut self.m[g],
                v: &mut self.v[g],
            };
            self.settings.adamw.update(group, shard, step);
        }
        let mut sends = Vec::new();
        let mut receives = Vec::new();
        for flat in flats {
            let len = flat.numel() / ranks;
            let mut own: &[f32] = &[];
            for (peer, part) in as_f32_mut(flat).chunks_mut(len).enumerate() {
                if peer == rank {
                    own = part;
                } else {
                    receives.push((peer, part));
                }
            }
            sends.extend((0..ranks).filter(|&p| p != rank).map(|p| (p, own)));
        }
        self.comm.exchange_f32(&sends, &mut receives)
    }

    fn stop_after_skips(&self) -> Result<()> {
        if self.state.skipped_in_row < self.settings.stop_after_skips.max(1) {
            return Ok(());
        }
        Err(ComputeError::Stopped(format!(
            "{} steps in a row, the last one {}, gave no finite gradient: lower `lr`, or look at the data",
            self.state.skipped_in_row, self.state.step
        )))
    }

    /// Perplexity of the validation split, and the check of constrained weights.
    fn validate(&mut self) -> Result<Validation> {
        self.check_constraint()?;
        let (rank, ranks) = (self.comm.rank() as u64, self.comm.size() as u64);
        let rows = self.settings.plan.grain_samples;
        let samples = self.around.validation;
        let count = samples.len().min(self.settings.val_samples.unwrap_or(u64::MAX));
        let grains = count.div_ceil(rows);
        let mut mine = Vec::new();
        for turn in 0..grains.div_ceil(ranks) {
            let number = turn * ranks + rank;
            // Beyond the last grain a rank adds zeros: all ranks send equally much.
            let sum = if number < grains {
                // The last grain is filled up with rows without labels: every grain has the same shape.
                let row = |i| if i < count { samples.sample(i) } else { grain::blank(samples.seq_len()) };
                let rows: Vec<Sample> = (number * rows..(number + 1) * rows).map(row).collect();
                grain::evaluate(&self.model, &rows)?
            } else {
                GrainSum::default()
            };
            mine.extend([sum.nll, sum.tokens as f64]);
        }
        let all = self.comm.all_gather_f64(&mine)?;
        let (mut nll, mut tokens) = (0.0, 0i64);
        for turn in 0..mine.len() / 2 {
            for of_rank in all.chunks(mine.len()) {
                nll += of_rank[2 * turn];
                tokens += of_rank[2 * turn + 1] as i64;
            }
        }
        let loss = nll / tokens as f64;
        let validation =
            Validation { step: self.state.step, train_loss: self.state.window_loss(), loss, perplexity: loss.exp() };
        if !validation.perplexity.is_finite() {
            return Err(ComputeError::Stopped(format!(
                "the validation loss at step {} is {loss}: lower `lr`, or look at the data",
                self.state.step
            )));
        }
        self.state.window_nll = 0.0;
        self.state.window_tokens = 0;
        self.state.validations.push(validation);
        Ok(validation)
    }

    fn check_constraint(&mut self) -> Result<()> {
        if self.model.variant().is_none() {
            return Ok(());
        }
        let check = self.model.check_constraint()?;
        if let Some(name) = check.violated.first() {
            return Err(ComputeError::Failed(format!(
                "`{name}` and {} others have effective weights outside their constraint at step {} (smallest {:e}): lower `lr`",
                check.violated.len() - 1,
                self.state.step,
                check.min
            )));
        }
        self.state.constrained_range = Some([check.min, check.max]);
        Ok(())
    }

    fn is_best(&self, validation: &Validation) -> bool {
        self.state.best.as_ref().is_none_or(|best| validation.perplexity < best.perplexity)
    }

    /// Makes this step the best and saves it. Without room on the disk the old best stays.
    fn save_best(&mut self, validation: &Validation, report: &mut Reporter) -> Result<()> {
        let name = checkpoint::name(self.state.step, self.settings.attempt);
        let best = Best { step: validation.step, perplexity: validation.perplexity, checkpoint: name };
        let old = self.state.best.replace(best);
        if !self.save(report)? {
            self.state.best = old;
        }
        Ok(())
    }

    /// Saves a checkpoint; `false` if the disk is full, which the log says and the run survives.
    fn save(&mut self, report: &mut Reporter) -> Result<bool> {
        if self.saved.as_ref().is_some_and(|(step, _)| *step == self.state.step) {
            return Ok(true);
        }
        self.check_constraint()?;
        report.sync()?;
        let name = checkpoint::name(self.state.step, self.settings.attempt);
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        let weights = self.model.flats().iter().map(|flat| {
            let flat = as_f32(flat);
            let len = flat.len() / ranks;
            &flat[rank * len..(rank + 1) * len]
        });
        let best = self.state.best.as_ref().map(|b| b.checkpoint.clone()).filter(|b| *b != name);
        let snapshot = Snapshot {
            step: self.state.step,
            attempt: self.settings.attempt,
            fingerprint: &self.settings.fingerprint,
            state: serde_json::to_value(&self.state)
                .map_err(|e| ComputeError::Failed(format!("the counters cannot be stored ({e}): report this")))?,
            numerics: self.numerics.clone(),
            needs: best.into_iter().collect(),
            layout: self.model.layout(),
            shards: [
                (Kind::Weights, weights.collect()),
                (Kind::FirstMoment, self.m.iter().map(Vec::as_slice).collect()),
                (Kind::SecondMoment, self.v.iter().map(Vec::as_slice).collect()),
            ],
        };
        match checkpoint::save(self.comm, self.around.checkpoint_dir, &snapshot, self.around.is_superseded)? {
            Saved::Done(name) => {
                if self.comm.is_first() {
                    let s = self.settings;
                    checkpoint::tidy(self.around.checkpoint_dir, s.keep_last, s.attempt, &s.fingerprint)?;
                }
                self.saved = Some((self.state.step, name));
                Ok(true)
            }
            Saved::DiskFull(message) => {
                if self.comm.is_first() {
                    eprintln!(
                        "step {}: no checkpoint, {message}; the last one stays and the run goes on",
                        self.state.step
                    );
                }
                Ok(false)
            }
        }
    }

    /// The last and the best parameters.
    fn finish(self) -> Result<Finished> {
        let best = self.state.best.as_ref().ok_or_else(|| {
            ComputeError::Failed(
                "no checkpoint could be written, so there is no best model: free space and run again".into(),
            )
        })?;
        let checkpoint = Checkpoint::open(&self.around.checkpoint_dir.join(&best.checkpoint))?;
        checkpoint.check_layout(self.model.layout())?;
        if self.comm.is_first() {
            checkpoint.verify()?;
        }
        let mut best_model = self.model.duplicate()?;
        read_weights(&mut best_model, &checkpoint)?;
        Ok(Finished { last: self.model, best: best_model, state: self.state, numerics: self.numerics })
    }
}

fn read_weights(model: &mut Model, checkpoint: &Checkpoint) -> Result<()> {
    for (g, flat) in model.flats_mut().iter_mut().enumerate() {
        checkpoint.read(Kind::Weights, g, 0, as_f32_mut(flat))?;
    }
    Ok(())
}
