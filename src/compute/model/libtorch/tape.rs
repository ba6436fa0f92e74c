//! The blocks of a decoder, forward and backward one by one: every block's input is a leaf of its own, so that
//! its gradient can be used (sent, freed) while the next one is computed, and a block can be computed again
//! instead of being remembered (activation checkpointing: the same bits, since chance is seeded anew).

use tch::{Kind, Tensor};

use super::super::passes::GrainAt;
use super::super::places::Places;
use super::net::{Leaves, Net, Want};
use crate::compute::Result;
use crate::compute::rng::{Purpose, Rng};

/// What a forward pass keeps for its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Every block's graph.
    Graphs,
    /// Every block's input; graphs are made again (activation checkpointing).
    Inputs,
    /// Nothing: there is no backward pass.
    Nothing,
}

/// Dropout of a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chance {
    /// Probability of a zero.
    pub p: f64,
    /// Where the draws come from.
    pub at: GrainAt,
}

impl Chance {
    /// No dropout.
    pub const NONE: Self = Self { p: 0.0, at: GrainAt { seed: 0, step: 0, grain: 0 } };

    /// Sets libtorch's generators for `place`: 0 is the embedding, i + 1 block i.
    pub(super) fn seed(self, place: usize) {
        if self.p > 0.0 {
            // A step has far fewer than 2^40 grains, a run fewer than 2^32 steps, a decoder fewer than 2^24 blocks.
            let index = self.at.grain << 24 | place as u64;
            let draw = Rng::new(self.at.seed, Purpose::Dropout, self.at.step as u32, index).next_u64();
            tch::manual_seed((draw >> 1) as i64);
        }
    }
}

/// The gradients of one block: parts of its groups, each with its first element in the group.
pub(super) struct BlockGradients {
    pub layer: usize,
    pub base: Leaves,
    pub adapter: Leaves,
}

/// What is remembered of a block.
struct Entry {
    x: Tensor,
    graph: Option<Graph>,
}

struct Graph {
    y: Tensor,
    base: Leaves,
    adapter: Leaves,
}

/// What a pass over the blocks is told.
pub(super) struct Pass<'a> {
    pub net: &'a Net,
    pub places: &'a Places,
    pub chance: Chance,
    pub keep: Keep,
    pub want: Want,
}

/// A pass over the blocks: its memory between forward and backward.
pub(super) struct Tape<'a> {
    pass: Pass<'a>,
    entries: Vec<Entry>,
}

impl<'a> Tape<'a> {
    /// Nothing is remembered yet.
    pub fn new(pass: Pass<'a>) -> Self {
        Self { pass, entries: Vec::new() }
    }

    /// The next block: hidden states `[B, T, h]` to hidden states, detached.
    pub fn forward(&mut self, x_bth: Tensor) -> Result<Tensor> {
        let layer = self.entries.len();
        let pass = &self.pass;
        let wants_x = pass.want.inputs || pass.want.params && pass.net.trains_below(layer);
        let x = super::net::leaf(&x_bth, wants_x && pass.keep != Keep::Nothing)?;
        let (y, graph) = if pass.keep == Keep::Graphs {
            let graph = self.graph(layer, &x)?;
            (graph.y.f_detach()?, Some(graph))
        } else {
            let _guard = tch::no_grad_guard();
            (self.graph(layer, &x)?.y, None)
        };
        self.entries.push(Entry { x, graph });
        if self.pass.keep == Keep::Nothing {
            // The number of entries counts the blocks; their memory is not needed.
            if let Some(last) = self.entries.last_mut() {
                last.x = Tensor::new();
            }
        }
        Ok(y)
    }

    /// The last block that is left: the gradient of its output to that of its input, which is absent where
    /// nobody wants it, and those of its weights.
    pub fn backward(&mut self, dy_bth: &Tensor) -> Result<Option<(Option<Tensor>, BlockGradients)>> {
        let Some(entry) = self.entries.pop() else { return Ok(None) };
        let layer = self.entries.len();
        let graph = match entry.graph {
            Some(graph) => graph,
            None => self.graph(layer, &entry.x)?,
        };
        let leaves: Vec<&Tensor> = graph.base.iter().chain(&graph.adapter).map(|(_, t)| t).collect();
        let wants_x = entry.x.requires_grad();
        let inputs: Vec<&Tensor> = leaves.iter().copied().chain(wants_x.then_some(&entry.x)).collect();
        let mut gradients = vector_jacobian(&graph.y, dy_bth, &inputs)?;
        let dx = if wants_x { gradients.pop() } else { None };
        let mut gradients = gradients.into_iter();
        let mut take = |leaves: &Leaves| leaves.iter().map(|(at, _)| *at).zip(gradients.by_ref()).collect();
        let base = take(&graph.base);
        Ok(Some((dx, BlockGradients { layer, base, adapter: take(&graph.adapter) })))
    }

    /// Blocks that are left.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Forgets the last block: no cotangent reaches it.
    pub fn skip(&mut self) {
        self.entries.pop();
    }

    fn graph(&self, layer: usize, x: &Tensor) -> Result<Graph> {
        let Pass { net, places, chance, want, .. } = &self.pass;
        let block = net.block(layer, want.params)?;
        chance.seed(layer + 1);
        let y = net.decoder().block(layer, &block.view, x, places, chance.p)?;
        Ok(Graph { y, base: block.base, adapter: block.adapter })
    }
}

/// The gradients of `inputs` when that of `y` is `dy`; none if there are no inputs.
pub(super) fn vector_jacobian(y: &Tensor, dy: &Tensor, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    if inputs.is_empty() {
        return Ok(Vec::new());
    }
    // The gradient of the product's sum is dy to the bit.
    let product = y.f_mul(&dy.f_detach()?.f_to_kind(y.kind())?)?.f_sum(Kind::Float)?;
    Ok(Tensor::f_run_backward(&[&product], inputs, false, false)?)
}
