//! The passes of a decoder in fp32 on the CPU, by hand: forward, and backward block by block, over flat weights
//! and gradients, with the kernels of `compute::kernels`. No tensors, no autograd; a step allocates nothing once
//! its memory fits the grain.
//!
//! Promises: the bits of a gradient depend on the grain, the weights and the GEMM backend only - not on earlier
//! calls, alignment, or whether activations are kept or recomputed. All families; dropout after the
//! embedding, on attention probabilities, and after both branches of a block.

mod block;
mod decode;
mod head;
mod inputs;
mod maps;
mod memory;
mod prefixes;
pub mod score;
pub(super) mod seen;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tch::Tensor;

pub use decode::{NativeDecoder, Step};
pub use memory::Activations;

use self::block::{Block, Engines, Grain};
use self::head::Head;
use self::maps::{Gradient, Group, Maps};
use self::memory::Memory;
use self::seen::Seen;
use super::batch::Batch;
use super::layout::Layout;
use super::passes::{Accumulate, GrainAt, GrainSum, Hooks, Passes};
use super::view::Signs;
use super::{Model, as_f32, as_f32_mut};
use crate::compute::kernels::attention::Attention;
use crate::compute::kernels::dropout::{self, Site};
use crate::compute::kernels::gemm::{Backend, Gemm};
use crate::compute::kernels::memory::Floats;
use crate::compute::kernels::{Isa, Pool, activation, embedding, rotary};
use crate::compute::{ComputeError, Result};

/// How the passes are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Who multiplies matrices.
    pub gemm: Backend,
    /// Threads of this rank.
    pub threads: usize,
    /// What is kept for the backward pass.
    pub activations: Activations,
    /// Probability of dropout in training, `0 <= p < 1`.
    pub dropout: f64,
}

/// The passes of a [`Model`] whose flat groups they share.
#[derive(Debug)]
pub struct NativePasses {
    maps: Maps,
    options: Options,
    weights: Weights,
    engines: Engines,
    table: rotary::Table,
    positions: Vec<u32>,
    seen: Seen,
    memory: Memory,
    prefixes: prefixes::Room,
    held: inputs::Held,
}

impl NativePasses {
    /// Passes over `model`'s memory.
    ///
    /// # Errors
    /// A probability is out of range, or the system gives no threads.
    pub fn new(model: &Model, options: Options) -> Result<Self> {
        if !(0.0..1.0).contains(&options.dropout) {
            return Err(ComputeError::Config(format!(
                "dropout {} is no probability below 1: set it between 0 and 0.99",
                options.dropout
            )));
        }
        let pool = Pool::new(options.threads).map_err(|e| {
            ComputeError::Failed(format!("{} threads cannot be started ({e}): ask for fewer", options.threads))
        })?;
        let pool = Arc::new(pool);
        let maps = Maps::new(model.config(), model.layout())?;
        Ok(Self {
            table: rotary::Table::new(&maps.frequencies, 0),
            weights: Weights::of(&model.layout, &model.flats, &model.signs),
            engines: Engines { gemm: Gemm::new(options.gemm, Arc::clone(&pool)), attention: Attention::new(pool) },
            positions: Vec::new(),
            seen: Seen::default(),
            memory: Memory::default(),
            prefixes: prefixes::Room::default(),
            held: inputs::Held::default(),
            maps,
            options,
        })
    }

    /// Bytes of activations and scratch held now.
    pub fn memory_bytes(&self) -> usize {
        self.memory.bytes() + self.prefixes.bytes() + self.held.bytes()
    }

    /// Prepares positions, rotations, masks and memory for a batch.
    fn begin(&mut self, batch: &Batch, activations: Activations) -> Result<()> {
        self.look(batch)?;
        self.held.forget();
        self.memory.fit(&self.maps, activations, batch.rows, batch.seq_len);
        Ok(())
    }

    /// Prepares positions, rotations and masks for a batch.
    fn look(&mut self, batch: &Batch) -> Result<()> {
        self.maps.check(batch)?;
        self.positions.clear();
        match &batch.positions {
            // They were checked not to be negative.
            Some(positions) => self.positions.extend(positions.iter().map(|&p| p as u32)),
            None => self.positions.extend((0..batch.rows).flat_map(|_| 0..batch.seq_len as u32)),
        }
        let longest = self.positions.iter().max().map_or(0, |&p| p as usize + 1);
        if longest > self.table.positions() {
            // Grown by halves, at most to the model's context, which holds every position.
            self.table = table(&self.maps, (longest + longest / 2).min(self.maps.context));
        }
        let window = self.maps.blocks.iter().find_map(|b| b.window);
        self.seen.fill(batch, window, self.maps.blocks.len())
    }

    /// Embedding and blocks. The stream before and after every block is kept.
    fn forward(&mut self, batch: &Batch, dropout: Option<(GrainAt, f64)>, hooks: &mut dyn Hooks) -> Result<()> {
        hooks.needs(0)?;
        self.weights.prepare(0);
        let Self { maps, weights, engines, memory, table, positions, seen, .. } = self;
        let grain = Grain { maps, table, positions, rows: batch.rows, seq_len: batch.seq_len, seen, dropout };
        let table = &weights.group(0).weights[maps.embedding.clone()];
        embedding::gather(table, &batch.ids, maps.hidden, &mut memory.streams[0]);
        if let Some(mask) = grain.mask(0, Site::Embedding) {
            dropout::apply(Isa::best(), &mask, 0, &mut memory.streams[0]);
        }
        let kept = memory.kept.len();
        for (number, at) in maps.blocks.iter().enumerate() {
            hooks.needs(number + 1)?;
            weights.prepare(number + 1);
            let block = Block { number, at, group: weights.group(number + 1) };
            let (before, after) = memory.streams.split_at_mut(number + 1);
            let kept = &mut memory.kept[number % kept];
            block.forward(engines, &grain, &before[number], kept, &mut memory.scratch, &mut after[0])?;
        }
        hooks.needs(maps.head_group())?;
        weights.prepare(maps.head_group());
        Ok(())
    }
}

impl Passes for NativePasses {
    fn backward(
        &mut self,
        batch: &Batch,
        at: GrainAt,
        gradients: &mut [Tensor],
        how: Accumulate,
        hooks: &mut dyn Hooks,
    ) -> Result<GrainSum> {
        self.begin(batch, self.options.activations)?;
        let dropout = (self.options.dropout > 0.0).then_some((at, self.options.dropout));
        self.forward(batch, dropout, hooks)?;

        let Self { maps, weights, engines, memory, table, positions, seen, .. } = self;
        let grain = Grain { maps, table, positions, rows: batch.rows, seq_len: batch.seq_len, seen, dropout };
        let last = maps.head_group();
        if how == Accumulate::Assign {
            for (gradient, ranges) in gradients.iter_mut().zip(&maps.cleared) {
                let flat = as_f32_mut(gradient);
                ranges.iter().for_each(|r| flat[r.clone()].fill(0.0));
            }
        }
        let (head, out) = weights.head(maps);
        let flat = &mut as_f32_mut(&mut gradients[out.0])[out.1];
        let nll = head.loss(&mut engines.gemm, &grain, batch, memory, Some(Gradient::new(flat, how)))?;
        head.norm_backward(&grain, memory, &mut Gradient::new(as_f32_mut(&mut gradients[last]), how));
        hooks.ready(last, &mut gradients[last])?;

        for (number, at) in maps.blocks.iter().enumerate().rev() {
            let block = Block { number, at, group: weights.group(number + 1) };
            let Memory { streams, kept, scratch, dstream, .. } = &mut *memory;
            let n = kept.len();
            let kept = &mut kept[number % n];
            let (before, after) = streams.split_at_mut(number + 1);
            if self.options.activations == Activations::Recompute && number + 1 < maps.blocks.len() {
                // The last block's activations are still there. The stream after a block is not read again.
                block.forward(engines, &grain, &before[number], kept, scratch, &mut after[0])?;
            }
            let mut gradient = Gradient::new(as_f32_mut(&mut gradients[number + 1]), how);
            block.backward(engines, &grain, &before[number], kept, scratch, dstream, &mut gradient)?;
            hooks.ready(number + 1, &mut gradients[number + 1])?;
        }

        if let Some(mask) = grain.mask(0, Site::Embedding) {
            dropout::apply(Isa::best(), &mask, 0, &mut memory.dstream);
        }
        let table = &mut as_f32_mut(&mut gradients[0])[maps.embedding.clone()];
        embedding::scatter_add(table, &batch.ids, maps.hidden, &memory.dstream);
        hooks.ready(0, &mut gradients[0])?;
        Ok(GrainSum { nll, tokens: batch.labels() })
    }

    fn evaluate(&mut self, batch: &Batch, hooks: &mut dyn Hooks) -> Result<GrainSum> {
        self.begin(batch, self.options.activations)?;
        self.forward(batch, None, hooks)?;
        let Self { maps, weights, engines, memory, table, positions, seen, .. } = self;
        let grain = Grain { maps, table, positions, rows: batch.rows, seq_len: batch.seq_len, seen, dropout: None };
        let nll = weights.head(maps).0.loss(&mut engines.gemm, &grain, batch, memory, None)?;
        Ok(GrainSum { nll, tokens: batch.labels() })
    }

    fn patched_layers(&self) -> usize {
        self.seen.patched_layers()
    }

    fn refresh(&mut self) {
        self.held.forget();
        self.weights.groups.iter_mut().for_each(|g| g.stale = true);
    }
}

/// Why nothing can be generated under a mask.
pub(super) fn foreign_mask() -> ComputeError {
    ComputeError::Config(
        "under a full mask every token sees those behind it, so nothing can be generated token by token: use `causal` or `prefix`"
            .to_owned(),
    )
}

/// Rotations of positions below `positions`.
fn table(maps: &Maps, positions: usize) -> rotary::Table {
    let (config, factor) = (&maps.config, maps.config.rotation_factor());
    // No context is longer than 2^24.
    let query = |position: usize| config.query_factor(position as i64);
    rotary::Table::scaled(&maps.frequencies, factor, positions, query)
}

/// Flat weights, shared with the model, and effective weights of groups that have constrained ones.
#[derive(Debug)]
struct Weights {
    groups: Vec<GroupWeights>,
    layout: Layout,
}

#[derive(Debug)]
struct GroupWeights {
    flat: Tensor,
    constrained: bool,
    /// All effective weights of the group, if some are constrained.
    effective: Floats,
    stale: bool,
    signs: Vec<Option<Vec<f32>>>,
}

impl Weights {
    fn of(layout: &Layout, flats: &[Tensor], signs: &[Signs]) -> Self {
        let groups = layout.groups.iter().zip(flats).zip(signs);
        let groups = groups.map(|((layout, flat), signs)| GroupWeights {
            flat: flat.shallow_clone(),
            constrained: maps::is_constrained(layout),
            effective: Floats::default(),
            stale: true,
            signs: (0..layout.spans.len()).map(|i| signs.get(&i).map(|t| as_f32(t).to_vec())).collect(),
        });
        Self { groups: groups.collect(), layout: layout.clone() }
    }

    /// Makes the effective weights of a group, if the weights have changed.
    fn prepare(&mut self, group: usize) {
        let g = &mut self.groups[group];
        if !(g.constrained && g.stale) {
            return;
        }
        let stored = as_f32(&g.flat);
        g.effective.resize(stored.len());
        for (span, signs) in self.layout.groups[group].spans.iter().zip(&g.signs) {
            let (v, w) = (&stored[span.range()], &mut g.effective[span.range()]);
            if span.constraint.is_reparametrised() {
                activation::softplus_weights(Isa::best(), v, signs.as_deref(), w);
            } else {
                w.copy_from_slice(v);
            }
        }
        g.stale = false;
    }

    fn group(&self, group: usize) -> Group<'_> {
        let g = &self.groups[group];
        let stored = as_f32(&g.flat);
        Group { weights: if g.constrained { &g.effective } else { stored }, stored, signs: &g.signs }
    }

    /// The head, and group and range of its output matrix.
    fn head(&self, maps: &Maps) -> (Head<'_>, (usize, std::ops::Range<usize>)) {
        let (group, range) = match &maps.out {
            Some(range) => (maps.head_group(), range.clone()),
            None => (0, maps.embedding.clone()),
        };
        let out = &self.group(group).weights[range.clone()];
        (Head { norm: self.group(maps.head_group()).weights, out }, (group, range))
    }
}
