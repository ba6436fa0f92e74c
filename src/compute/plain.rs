//! Data-parallel training without the promise of bits: what `scripts/bench/elastic` measures the trainer against.
//!
//! The same engine and grains; but a rank adds all its grains into one buffer, `MPI_Reduce_scatter_block` adds over
//! ranks in whatever order the library likes, and the norm is each rank's own sum and one `MPI_Allreduce`. Two
//! numbers of ranks give two results. It keeps no checkpoint and trains nothing that is kept.

use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::time::Instant;

use mpi::{Threading, ffi};
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::kernels::gemm::Backend;
use super::model::{Accumulate, Batch, GrainAt, Model, NoHooks, as_f32, as_f32_mut, set_threads};
use super::train::adamw::{Shard, Step};
use super::train::{AdamW, Choice, Decay, EngineName, Plan, Trainee};
use super::{ComputeError, Result};

/// What it is told: the protocol of docs/performance.md.
#[derive(Debug, Deserialize)]
pub struct Work {
    model: PathBuf,
    batches: PathBuf,
    seq_len: usize,
    rows_per_rank: usize,
    threads_per_rank: u32,
    steps: u64,
    seed: u32,
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    #[serde(default)]
    ours: Options,
}

/// Of our side's own choices, those that matter here; the rest is for the trainer.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Options {
    grain_samples: usize,
    engine: EngineName,
    gemm: Backend,
}

impl Default for Options {
    fn default() -> Self {
        let choice = Choice::default();
        Self { grain_samples: 1, engine: choice.engine, gemm: choice.gemm }
    }
}

/// Trains, on every rank that the launcher started, and gives rank 0's lines to `say`.
///
/// # Errors
/// The model or the batches cannot be read or do not fit, or MPI fails.
pub fn train(work: &Work, mut say: impl FnMut(Value)) -> Result<()> {
    set_threads(work.threads_per_rank);
    let ranks = Ranks::join()?;
    let grain_rows = work.ours.grain_samples;
    if grain_rows == 0 || work.rows_per_rank % grain_rows != 0 {
        return Err(ComputeError::Config(format!(
            "grains of {grain_rows} rows do not divide {} rows of a rank: choose a divisor",
            work.rows_per_rank
        )));
    }
    let grains = (work.rows_per_rank * ranks.size / grain_rows) as u64;
    let plan = Plan { grain_samples: grain_rows as u64, grains, lanes: ranks.size as u64 };
    let model = Model::load(&work.model)?.padded_for(plan.padding(ranks.size))?;
    let rows = read_rows(work, ranks.size)?;
    let choice = Choice {
        engine: work.ours.engine,
        gemm: work.ours.gemm,
        threads: work.threads_per_rank as usize,
        ..Choice::default()
    };
    let mut trainer = Plain::new(Trainee::of_model(&model, &choice, tch::Device::Cpu)?, ranks, work)?;
    let mut began = Instant::now();
    for step in 0..work.steps {
        let first = (step as usize * trainer.ranks.size + trainer.ranks.rank) * work.rows_per_rank;
        let loss = trainer.step(step, &rows[first..first + work.rows_per_rank], grain_rows)?;
        if trainer.ranks.rank == 0 {
            say(json!({"step": step + 1, "loss": loss, "seconds": began.elapsed().as_secs_f64()}));
        }
        began = Instant::now();
    }
    trainer.ranks.leave()
}

/// Rows of T + 1 ids.
fn read_rows(work: &Work, ranks: usize) -> Result<Vec<Vec<i32>>> {
    let refuse = |why: String| ComputeError::input(&work.batches, why);
    let bytes =
        std::fs::read(&work.batches).map_err(|e| refuse(format!("cannot be read ({e}): make the data again")))?;
    let ids: Vec<i32> = bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let rows: Vec<Vec<i32>> = ids.chunks_exact(work.seq_len + 1).map(<[i32]>::to_vec).collect();
    let needed = work.steps as usize * ranks * work.rows_per_rank;
    if rows.len() < needed {
        return Err(refuse(format!("holds {} rows of {needed}: make the data again", rows.len())));
    }
    Ok(rows)
}

struct Plain<'a> {
    trainee: Trainee,
    ranks: Ranks,
    work: &'a Work,
    adamw: AdamW,
    gradients: Vec<Tensor>,
    /// The own part of every group: summed gradient, first and second moments.
    sums: Vec<Vec<f32>>,
    m: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl<'a> Plain<'a> {
    fn new(trainee: Trainee, ranks: Ranks, work: &'a Work) -> Result<Self> {
        trainee.check()?;
        let groups = &trainee.layout.groups;
        let shards = || groups.iter().map(|g| vec![0f32; g.len / ranks.size]).collect::<Vec<_>>();
        let zeros = |len: usize| Tensor::f_zeros([len as i64], (Kind::Float, tch::Device::Cpu));
        Ok(Self {
            gradients: groups.iter().map(|g| Ok(zeros(g.len)?)).collect::<Result<_>>()?,
            sums: shards(),
            m: shards(),
            v: shards(),
            adamw: AdamW {
                beta1: work.beta1,
                beta2: work.beta2,
                eps: work.eps,
                weight_decay: work.weight_decay,
                decay_constrained: Decay::Excluded,
                lr_constrained_multiplier: 1.0,
            },
            trainee,
            ranks,
            work,
        })
    }

    /// One step on this rank's rows; the loss over all ranks.
    fn step(&mut self, step: u64, rows: &[Vec<i32>], grain_rows: usize) -> Result<f64> {
        let (mut nll, mut tokens) = (0.0, 0.0);
        for (number, rows) in rows.chunks(grain_rows).enumerate() {
            let t = self.work.seq_len;
            let ids = rows.iter().flat_map(|r| &r[..t]).copied().collect();
            let targets = rows.iter().flat_map(|r| &r[1..]).copied().collect();
            let batch = Batch::causal(rows.len(), t, ids, targets);
            let how = if number == 0 { Accumulate::Assign } else { Accumulate::Add };
            let at = GrainAt { seed: self.work.seed, step, grain: number as u64 };
            let sum = self.trainee.passes.backward(&batch, at, &mut self.gradients, how, &mut NoHooks)?;
            nll += sum.nll;
            tokens += sum.tokens as f64;
        }
        let mut squares = 0.0;
        for (gradient, sum) in self.gradients.iter().zip(&mut self.sums) {
            self.ranks.reduce_scatter(as_f32(gradient), sum)?;
            squares += sum_of_squares(sum);
        }
        let mut totals = [nll, tokens, squares];
        self.ranks.all_reduce(&mut totals)?;
        let [nll, tokens, squares] = totals;
        let norm = squares.sqrt() / tokens;
        let clip = if self.work.max_grad_norm > 0.0 { (self.work.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let told = Step { lr: self.work.lr, update: step + 1, gradient_factor: (clip / tokens) as f32 };
        for (g, group) in self.trainee.layout.groups.iter().enumerate() {
            let len = self.sums[g].len();
            let first = self.ranks.rank * len;
            let flat = as_f32_mut(&mut self.trainee.flats[g]);
            let shard = Shard {
                first,
                weights: &mut flat[first..first + len],
                gradients: &self.sums[g],
                m: &mut self.m[g],
                v: &mut self.v[g],
            };
            self.adamw.update(group, shard, told);
            self.ranks.all_gather(flat, len)?;
        }
        self.trainee.passes.refresh();
        Ok(nll / tokens)
    }
}

/// In eight partial sums, which a compiler turns into vectors.
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut parts = [0f64; 8];
    // A shard is a whole number of chunks of 4096.
    for row in values.chunks_exact(8) {
        for (part, &x) in parts.iter_mut().zip(row) {
            *part += f64::from(x) * f64::from(x);
        }
    }
    parts.iter().sum()
}

/// All ranks of `MPI_COMM_WORLD`, by the library's own collectives.
struct Ranks {
    rank: usize,
    size: usize,
}

impl Ranks {
    fn join() -> Result<Self> {
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(ComputeError::Failed("MPI was initialised twice: report this".to_owned()));
        };
        // `leave` finalises in order; a rank that failed must not wait for the others.
        std::mem::forget(universe);
        let (mut rank, mut size): (c_int, c_int) = (0, 0);
        // SAFETY: MPI is initialised; the pointers are valid for the calls.
        unsafe {
            check("tell the rank", ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &mut rank))?;
            check("tell the size", ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &mut size))?;
        }
        // Both are small and not negative.
        Ok(Self { rank: rank as usize, size: size as usize })
    }

    fn reduce_scatter(&self, all: &[f32], own: &mut [f32]) -> Result<()> {
        assert_eq!(all.len(), own.len() * self.size, "a part for every rank");
        // SAFETY: the buffers have the lengths that the count says, by the assertion, and do not overlap.
        check("add gradients", unsafe {
            ffi::MPI_Reduce_scatter_block(
                all.as_ptr().cast::<c_void>(),
                own.as_mut_ptr().cast::<c_void>(),
                own.len() as c_int,
                ffi::RSMPI_FLOAT,
                ffi::RSMPI_SUM,
                ffi::RSMPI_COMM_WORLD,
            )
        })
    }

    fn all_reduce(&self, values: &mut [f64]) -> Result<()> {
        let own = values.to_vec();
        // SAFETY: both buffers hold `own.len()` numbers and do not overlap.
        check("add sums", unsafe {
            ffi::MPI_Allreduce(
                own.as_ptr().cast::<c_void>(),
                values.as_mut_ptr().cast::<c_void>(),
                own.len() as c_int,
                ffi::RSMPI_DOUBLE,
                ffi::RSMPI_SUM,
                ffi::RSMPI_COMM_WORLD,
            )
        })
    }

    /// Every rank's `len` numbers of `flat` go to all.
    fn all_gather(&self, flat: &mut [f32], len: usize) -> Result<()> {
        assert_eq!(flat.len(), len * self.size, "a part for every rank");
        // MPI forbids that buffers overlap, and the crate has no MPI_IN_PLACE.
        let own = flat[self.rank * len..(self.rank + 1) * len].to_vec();
        // SAFETY: the buffers have the lengths that the counts say, by the assertion, and do not overlap.
        check("gather weights", unsafe {
            ffi::MPI_Allgather(
                own.as_ptr().cast::<c_void>(),
                len as c_int,
                ffi::RSMPI_FLOAT,
                flat.as_mut_ptr().cast::<c_void>(),
                len as c_int,
                ffi::RSMPI_FLOAT,
                ffi::RSMPI_COMM_WORLD,
            )
        })
    }

    fn leave(&self) -> Result<()> {
        // SAFETY: MPI is initialised, and no call follows.
        check("end", unsafe { ffi::MPI_Finalize() })
    }
}

fn check(what: &str, code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    Err(ComputeError::Failed(format!("MPI could not {what} (code {code}): see its message above")))
}
