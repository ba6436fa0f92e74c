//! Training: data parallel over ranks, exact to the bit on any allowed number of them and after any kill.
//!
//! A step: every rank runs its lanes' grains; a group's gradient travels to the owners of its shards as soon as
//! the backward pass has it whole ([`exchange`]), and is added in tree order ([`lanes`]); the norm is added in
//! index order ([`norm`]); every owner updates its shard ([`shards`], [`adamw`]: ZeRO-1), and new weights travel
//! while the next forward pass runs. With [`adafactor`] sums of gradients travel to all, and each rank computes the
//! whole update. What is skipped, clipped, validated, saved or stopped follows from numbers
//! that all ranks have, so they decide alike; when a run is not worth its hours, [`criteria`] says so.
//!
//! The promises and the tests that keep them: `docs/numerics.md`.

pub mod adafactor;
pub mod adamw;
pub mod criteria;
pub mod exchange;
pub mod health;
pub mod lanes;
pub mod leakage;
pub mod norm;
pub mod optimizer;
pub mod schedule;
mod seam;
pub mod shards;
pub mod state;
pub mod trace;
pub mod trainee;

mod on_device;
mod report;
mod resume;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tch::{Device, Kind as Type, Tensor};

pub use adafactor::{Adafactor, Master};
pub use adamw::{AdamW, Decay};
pub use criteria::Criteria;
pub use lanes::Plan;
pub use optimizer::Optimizer;
pub use resume::read_weights;
pub use schedule::{Schedule, Shape, Warmup};
pub use state::{Best, State, Validation};
pub use trainee::{Choice, Engine, EngineName, Precision, Trainee};

use super::checkpoint::{Retention, Saver, Superseded, saver};
use super::comm::{Comm, Wire};
use super::data::{Feed, TrainingGrains, ValidationGrains};
use super::model::{Accumulate, CHUNK, GrainAt, GrainSum, Hooks};
use super::{ComputeError, Result, Stop, numerics};
use crate::record::Digest;
use exchange::Exchange;
use lanes::LaneTree;
use optimizer::Reach;
use report::Reporter;
use shards::{Masters, Shards};
use trace::{Span, Trace};

/// What a training run is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Seed of the order of samples.
    pub seed: u32,
    /// How a batch is cut.
    pub plan: Plan,
    /// Steps and rates.
    pub schedule: Schedule,
    /// Who updates, with which numbers.
    pub optimizer: Optimizer,
    /// Largest norm of the mean gradient; 0: not clipped.
    pub max_grad_norm: f64,
    /// Steps between validations; one more comes after the last step.
    pub val_interval_steps: u64,
    /// Grains that are prepared ahead of time; 0: none.
    pub prefetch: usize,
    /// Whose weights a run leaves as the best.
    pub keep: Keep,
    /// Steps between checkpoints; 0: only the best and at a stop.
    pub checkpoint_interval_steps: u64,
    /// Steps between log lines.
    pub log_interval_steps: u64,
    /// Whole checkpoints that stay, besides the best.
    pub keep_last: usize,
    /// Checkpoints whose step is a multiple of this stay too; 0: none.
    pub keep_every_steps: u64,
    /// How long ranks wait for each other's part of a checkpoint.
    pub patience: Duration,
    /// Skipped steps in a row after which the run stops.
    pub stop_after_skips: u64,
    /// What else it is stopped or flagged for.
    pub criteria: Criteria,
    /// Threads of libtorch's kernels.
    pub threads_per_rank: u32,
    /// Whether a resume under another numerics record is refused.
    pub strict: Strict,
    /// Whether gradients and weights travel while the passes go on.
    pub overlap: Overlap,
    /// Whether a number of ranks that does not divide the lanes may run.
    pub exact: Exact,
    /// What gradients are on their way.
    pub wire: Wire,
    /// What happened when; off by default.
    pub trace: Trace,
    /// Floating-point operations a second of one rank, at best: what MFU is relative to. `None`: not told.
    pub peak_flops: Option<f64>,
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

/// Which weights a run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Those of the best validation.
    Best,
    /// Those after the last step; no checkpoint is made for a good validation.
    Last,
}

/// When messages travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// As soon as there is something to send.
    Early,
    /// After the backward pass, and before the next forward pass.
    Late,
}

/// What a number of ranks that does not divide the lanes does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exact {
    /// It is refused.
    Required,
    /// One lane a rank, and the record says that bits may differ.
    Waived,
}

/// Where a training run reads and writes, and what it asks on the way.
pub struct Surroundings<'a> {
    /// Grains of training.
    pub train: Arc<TrainingGrains>,
    /// Grains of a validation.
    pub validation: &'a ValidationGrains,
    /// Holds `progress.jsonl`.
    pub run_dir: &'a Path,
    /// Holds checkpoints.
    pub checkpoint_dir: &'a Path,
    /// True once somebody asked to stop.
    pub stop_requested: &'a dyn Fn() -> bool,
    /// Asks whether a newer attempt owns the cell.
    pub superseded: Superseded,
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
    /// fp32 parameters after the last step, by group, in the host's memory.
    pub last: Vec<Tensor>,
    /// The checkpoint at the best validation, which [`read_weights`] reads; `None`: the last parameters are the best, or
    /// those that are kept.
    pub best: Option<PathBuf>,
    /// Counters.
    pub state: State,
    /// The numerics record.
    pub numerics: Value,
}

/// Trains to the end, or to the next request to stop; goes on from the newest usable checkpoint.
///
/// # Errors
/// The ranks cannot share the lanes; a checkpoint or another rank fails; too many steps in a row give no finite
/// gradient; a constrained weight leaves its range.
pub fn train(comm: &Comm, trainee: Trainee, settings: &Settings, around: &Surroundings<'_>) -> Result<Outcome> {
    super::model::set_threads(settings.threads_per_rank);
    let mut trainer = Trainer::begin(comm, trainee, settings, around)?;
    let mut report = Reporter::open(comm, settings, around, &trainer.state, trainer.flops_per_token())?;

    while trainer.state.step < settings.schedule.steps {
        let began = Instant::now();
        let lr = settings.schedule.at(trainer.state.updates);
        let sums = trainer.backward()?;
        let totals = trainer.gather(&sums)?;
        let window = if totals.usable() {
            trainer.update(lr, &totals)?;
            trainer.state.watch.update(totals.sum.nll, totals.sum.tokens)
        } else {
            trainer.state.skip();
            None
        };
        trainer.end_step();
        trainer.state.seconds += began.elapsed().as_secs_f64();
        report.step(&trainer.state, &totals, lr, began.elapsed())?;
        if settings.criteria.look(&mut trainer.state.watch, trainer.state.step, window) {
            report.flag(&trainer.state);
        }
        trainer.stop_after_skips()?;
        if window.is_some() {
            settings.criteria.check_log(&trainer.state)?;
        }

        let last = trainer.state.step == settings.schedule.steps;
        if last || trainer.state.step % settings.val_interval_steps == 0 {
            trainer.settle_best()?;
            let validation = trainer.validate()?;
            report.validation(&validation)?;
            if trainer.is_best(&validation) {
                trainer.save_best(&validation, &mut report)?;
            }
            settings.criteria.check_validations(&trainer.state, settings.schedule.lr)?;
        }
        if totals.stop && !last {
            trainer.save(&mut report)?;
            trainer.settle()?;
            return Ok(Outcome::Interrupted(trainer.state.step));
        }
        let interval = settings.checkpoint_interval_steps;
        if last || (interval > 0 && trainer.state.step % interval == 0) {
            trainer.save(&mut report)?;
        }
    }
    trainer.finish().map(Outcome::Finished)
}

/// What all ranks know of a step.
#[derive(Debug, Clone, Copy)]
struct Totals {
    sum: GrainSum,
    /// Of the mean gradient, before the clip.
    norm: f64,
    /// What gradients are multiplied by: 1 / tokens and the clip.
    factor: f64,
    stop: bool,
}

impl Totals {
    /// Whether the step updates anything.
    fn usable(&self) -> bool {
        self.sum.tokens > 0 && self.norm.is_finite() && self.sum.nll.is_finite()
    }
}

struct Trainer<'a> {
    comm: &'a Comm,
    settings: &'a Settings,
    around: &'a Surroundings<'a>,
    plan: Plan,
    feed: Feed,
    trainee: Trainee,
    state: State,
    numerics: Value,
    tree: LaneTree,
    exchange: Exchange<'a>,
    shards: Shards,
    /// By group: the gradient of the lane that runs; in an update, the sum of all with the own shard whole.
    gradients: Vec<Tensor>,
    saver: Saver,
    /// The step whose checkpoint is being written or was written last by this attempt.
    saved: Option<u64>,
    /// The best before the one that is being written.
    best_before: Option<Option<Best>>,
}

impl<'a> Trainer<'a> {
    fn begin(
        comm: &'a Comm,
        mut trainee: Trainee,
        settings: &'a Settings,
        around: &'a Surroundings<'a>,
    ) -> Result<Self> {
        trainee.check()?;
        let (rank, ranks) = (comm.rank(), comm.size());
        let mut plan = settings.plan;
        if let Err(refusal) = plan.check_ranks(ranks) {
            if settings.exact == Exact::Required {
                return Err(ComputeError::Config(format!("{refusal}, or set exact = false")));
            }
            plan = plan.inexact(ranks).map_err(ComputeError::Config)?;
            trainee.engine.inexact = Some(format!("{ranks} ranks do not share {} lanes", settings.plan.lanes));
        }
        let groups = trainee.layout.groups.len();
        let exchange = Exchange::new(comm, groups).with_wire(settings.wire).with_trace(settings.trace.clone());
        if let Some(note) = exchange.bitwise_note() {
            trainee.engine.inexact.get_or_insert(note.to_owned());
        }
        let numerics = numerics::record(&numerics::Settings {
            threads_per_rank: settings.threads_per_rank,
            lanes: plan.lanes as usize,
            grain_samples: plan.grain_samples,
            transport: comm.transport(),
            compute_type: if trainee.is_bf16() { "bf16" } else { "fp32" },
            engine: &trainee.engine.name,
            gemm: &trainee.engine.gemm,
            device: &trainee.engine.device,
            inexact: trainee.engine.inexact.as_deref(),
        });
        let place = saver::Place {
            dir: around.checkpoint_dir.to_path_buf(),
            rank,
            ranks,
            attempt: settings.attempt,
            fingerprint: settings.fingerprint.clone(),
            patience: settings.patience,
        };
        let retention = Retention { last: settings.keep_last, every_steps: settings.keep_every_steps };
        let shards = Shards::new(&settings.optimizer, &trainee.layout, &trainee.flats, rank, ranks)?;
        let mut saver = Saver::new(place, &trainee.layout, &[], retention, Arc::clone(&around.superseded));
        saver.prepare(shards.stored_bytes(&trainee.layout));
        let mut trainer = Self {
            comm,
            settings,
            around,
            plan,
            feed: Feed::start(Arc::clone(&around.train), 0..0, 0..0, 0),
            state: State::default(),
            numerics,
            tree: LaneTree::new(groups),
            exchange,
            shards,
            gradients: (0..groups).map(|_| Tensor::new()).collect(),
            saver,
            saved: None,
            best_before: None,
            trainee,
        };
        trainer.resume()?;
        let lanes = plan.lanes_of(rank, ranks);
        // A rank has at least one lane, and its lanes follow each other.
        let mine = lanes[0].start..lanes[lanes.len() - 1].end;
        let steps = trainer.state.step..settings.schedule.steps;
        trainer.feed = Feed::start(Arc::clone(&around.train), mine, steps, settings.prefetch);
        Ok(trainer)
    }

    /// This rank's lanes, whose gradients are on their way when it returns; the sums of their grains.
    fn backward(&mut self) -> Result<Vec<GrainSum>> {
        let step = self.state.step;
        let lanes = self.plan.lanes_of(self.comm.rank(), self.comm.size());
        let mut sums = Vec::new();
        for (number, lane) in lanes.iter().enumerate() {
            for (g, group) in self.trainee.layout.groups.iter().enumerate() {
                if self.gradients[g].numel() != group.len {
                    self.gradients[g] = self.tree.buffer(g, group.len, self.trainee.flats[g].device())?;
                }
            }
            for grain in lane.clone() {
                let batch = self.feed.grain(step, grain);
                let at = GrainAt { seed: self.settings.seed, step, grain };
                let how = if grain == lane.start { Accumulate::Assign } else { Accumulate::Add };
                let mut hooks = OnTheWay {
                    exchange: &mut self.exchange,
                    tree: &mut self.tree,
                    lane_ends: grain + 1 == lane.end,
                    all_end: number + 1 == lanes.len(),
                    overlap: self.settings.overlap,
                    trace: &self.settings.trace,
                    span: None,
                };
                sums.push(self.trainee.passes.backward(&batch, at, &mut self.gradients, how, &mut hooks)?);
            }
        }
        if self.settings.overlap == Overlap::Late {
            for g in (0..self.gradients.len()).rev() {
                self.exchange.send_gradient(g, self.tree.take(g)?)?;
            }
        }
        Ok(sums)
    }

    /// Waits for all gradients; gathers the sums of grains, the norm and the wish to stop.
    fn gather(&mut self, sums: &[GrainSum]) -> Result<Totals> {
        let _span = self.settings.trace.span("gather", None);
        self.gradients = self.exchange.finish_gradients()?;
        let stop = (self.around.stop_requested)();
        // One message: sums of grains, the wish to stop, sums of squares.
        let mut mine: Vec<f64> = sums.iter().flat_map(|s| [s.nll, s.tokens as f64]).collect();
        mine.push(f64::from(u8::from(stop)));
        let head = mine.len();
        for gradient in &self.gradients {
            mine.extend(self.shards.chunk_sums(gradient)?);
        }
        let all = self.comm.all_gather_f64(&mine)?;
        let mut totals = Totals { sum: GrainSum::default(), norm: 0.0, factor: 0.0, stop: false };
        let mut squares = Vec::with_capacity(all.len());
        // Rank after rank is grain after grain: lanes are contiguous.
        for of_rank in all.chunks(mine.len()) {
            for sum in of_rank[..head - 1].chunks(2) {
                totals.sum.nll += sum[0];
                totals.sum.tokens += sum[1] as i64;
            }
            totals.stop |= of_rank[head - 1] != 0.0;
            squares.extend_from_slice(&of_rank[head..]);
        }
        let ranks = self.comm.size();
        let chunks: Vec<usize> = self.trainee.layout.groups.iter().map(|g| g.len / CHUNK / ranks).collect();
        let ordered = norm::in_layout_order(&squares, &chunks, ranks);
        (totals.factor, totals.norm) =
            norm::factor_and_norm(&ordered, totals.sum.tokens.max(1), self.settings.max_grad_norm);
        Ok(totals)
    }

    /// Updates every group, or the own shard of each; new weights are on their way when it returns.
    fn update(&mut self, lr: f64, totals: &Totals) -> Result<()> {
        let _span = self.settings.trace.span("update", None);
        self.state.update(totals.sum.nll, totals.sum.tokens);
        self.state.clipped += u64::from(self.settings.max_grad_norm > 0.0 && totals.norm > self.settings.max_grad_norm);
        let step = adamw::Step { lr, update: self.state.updates, gradient_factor: totals.factor as f32 };
        let reach = self.settings.optimizer.reach();
        if reach == Reach::Whole {
            // They travel as weights do: everybody's own shard to all.
            for (g, gradient) in self.gradients.iter().enumerate() {
                self.exchange.send_weights(g, gradient)?;
            }
        }
        for (g, group) in self.trainee.layout.groups.iter().enumerate() {
            let flat = &self.trainee.flats[g];
            if reach == Reach::Whole {
                self.exchange.wait_weights(g)?;
            }
            self.shards.update(&self.settings.optimizer, g, group, flat, &self.gradients[g], step)?;
            if reach == Reach::Own {
                self.exchange.send_weights(g, flat)?;
                if self.settings.overlap == Overlap::Late {
                    self.exchange.wait_weights(g)?;
                }
            }
        }
        self.trainee.passes.refresh();
        Ok(())
    }

    fn end_step(&mut self) {
        for (g, gradient) in self.gradients.iter_mut().enumerate() {
            self.tree.reuse(g, std::mem::replace(gradient, Tensor::new()));
        }
        self.state.step += 1;
    }

    fn flops_per_token(&self) -> f64 {
        self.trainee.flops_per_token
    }

    fn stop_after_skips(&self) -> Result<()> {
        if self.state.skipped_in_row < self.settings.stop_after_skips.max(1) {
            return Ok(());
        }
        Err(ComputeError::Stopped(Box::new(Stop {
            criterion: "no-finite-gradient",
            step: self.state.step,
            why: format!(
                "{} steps in a row, the last one {}, gave no finite gradient: lower `lr`, or look at the data",
                self.state.skipped_in_row, self.state.step
            ),
            values: json!({"skipped_in_row": self.state.skipped_in_row, "skipped": self.state.skipped}),
        })))
    }

    /// Perplexity of the validation split, and the check of constrained weights.
    fn validate(&mut self) -> Result<Validation> {
        let _span = self.settings.trace.span("validate", None);
        self.check_constraint()?;
        let (rank, ranks) = (self.comm.rank() as u64, self.comm.size() as u64);
        let grains = self.around.validation;
        let mut mine = Vec::new();
        for turn in 0..grains.len().div_ceil(ranks) {
            let number = turn * ranks + rank;
            // Beyond the last grain a rank adds zeros: all ranks send equally much.
            let sum = if number < grains.len() {
                let mut hooks = Arrival { exchange: &mut self.exchange };
                self.trainee.passes.evaluate(&grains.batch(number), &mut hooks)?
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
            return Err(ComputeError::Stopped(Box::new(Stop {
                criterion: "validation-not-finite",
                step: self.state.step,
                why: format!(
                    "the validation loss at step {} is {loss}, its perplexity {}: lower `lr`, or look at the data",
                    self.state.step, validation.perplexity
                ),
                // JSON has no number for it.
                values: json!({"validation_loss": loss.to_string()}),
            })));
        }
        self.state.window_nll = 0.0;
        self.state.window_tokens = 0;
        self.state.validations.push(validation);
        Ok(validation)
    }

    fn check_constraint(&mut self) -> Result<()> {
        let Some(mut model) = self.trainee.constrained.take() else { return Ok(()) };
        self.exchange.drain()?;
        let elsewhere = model.flats().is_empty();
        if elsewhere {
            model.put_flats(self.parameters()?)?;
        }
        self.state.constrained_range = Some(Trainee::check_constraint(&model, self.state.step)?);
        if elsewhere {
            model.take_flats();
        }
        self.trainee.constrained = Some(model);
        Ok(())
    }

    /// The last parameters, and where the best lie.
    fn finish(mut self) -> Result<Finished> {
        self.settle()?;
        self.exchange.drain()?;
        let best =
            if self.settings.keep == Keep::Last || self.last_is_best() { None } else { Some(self.best_on_disk()?) };
        let last = self.parameters()?;
        self.saver.finish()?;
        Ok(Finished { last, best, state: self.state, numerics: self.numerics })
    }

    /// The whole fp32 parameters, by group, in the host's memory: that of the trainee where they lie there. With bf16
    /// the masters of all ranks are gathered.
    fn parameters(&mut self) -> Result<Vec<Tensor>> {
        let host = |flats: &[Tensor]| -> Result<Vec<Tensor>> {
            flats.iter().map(|f| Ok(f.f_to(Device::Cpu)?.f_to_kind(Type::Float)?)).collect()
        };
        let masters = match self.shards.masters() {
            Masters::Absent => return host(&self.trainee.flats),
            Masters::Whole(masters) => return host(masters),
            Masters::Own(masters) => masters,
        };
        let mut whole = Vec::new();
        for (g, (group, master)) in self.trainee.layout.groups.iter().zip(masters).enumerate() {
            let flat = Tensor::f_zeros([group.len as i64], (Type::Float, master.device()))?;
            flat.f_narrow(0, (self.comm.rank() * master.numel()) as i64, master.numel() as i64)?.f_copy_(master)?;
            self.exchange.send_weights(g, &flat)?;
            self.exchange.wait_weights(g)?;
            whole.push(flat.f_to(Device::Cpu)?);
        }
        Ok(whole)
    }
}

/// What happens on the way through a grain.
struct OnTheWay<'a, 'c> {
    exchange: &'a mut Exchange<'c>,
    tree: &'a mut LaneTree,
    /// This grain is the last of its lane.
    lane_ends: bool,
    /// This lane is the rank's last.
    all_end: bool,
    overlap: Overlap,
    trace: &'a Trace,
    /// What this thread does until the next call.
    span: Option<Span<'a>>,
}

impl Hooks for OnTheWay<'_, '_> {
    fn needs(&mut self, group: usize) -> Result<()> {
        self.span = None;
        self.exchange.wait_weights(group)?;
        self.span = Some(self.trace.span("forward", Some(group)));
        Ok(())
    }

    fn ready(&mut self, group: usize, gradient: &mut Tensor) -> Result<()> {
        self.span = None;
        if self.lane_ends {
            self.send(group, gradient)?;
        }
        self.span = group.checked_sub(1).map(|next| self.trace.span("backward", Some(next)));
        Ok(())
    }
}

impl OnTheWay<'_, '_> {
    /// The lane's sum of a group is whole.
    fn send(&mut self, group: usize, gradient: &mut Tensor) -> Result<()> {
        self.tree.push(group, std::mem::replace(gradient, Tensor::new()))?;
        if self.all_end && self.overlap == Overlap::Early {
            self.exchange.send_gradient(group, self.tree.take(group)?)?;
        }
        Ok(())
    }
}

/// New weights arrive before they are read.
struct Arrival<'a, 'c> {
    exchange: &'a mut Exchange<'c>,
}

impl Hooks for Arrival<'_, '_> {
    fn needs(&mut self, group: usize) -> Result<()> {
        self.exchange.wait_weights(group)
    }

    fn ready(&mut self, _group: usize, _gradient: &mut Tensor) -> Result<()> {
        Ok(())
    }
}
