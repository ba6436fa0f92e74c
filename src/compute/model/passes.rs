//! What a trainer asks of a model: the forward and backward pass of one grain, block by block.
//!
//! Two engines answer: hand-written kernels for fp32 on the CPU, and libtorch's autograd for everything else.
//! The trainer sees flat groups of gradients only.

use tch::Tensor;

use super::batch::Batch;
use crate::compute::Result;
pub use crate::compute::kernels::Accumulate;

/// Sums of one grain, added in grain order by every rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GrainSum {
    /// Summed NLL, nats.
    pub nll: f64,
    /// Labelled tokens.
    pub tokens: i64,
}

/// Where the chance of a grain (dropout) comes from; never from the rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrainAt {
    /// The run's seed.
    pub seed: u32,
    /// Step of the run.
    pub step: u64,
    /// Number of the grain in the step.
    pub grain: u64,
}

/// What the passes tell on their way.
pub trait Hooks {
    /// Before the weights of a group are first read in a forward pass.
    ///
    /// # Errors
    /// They cannot arrive: another rank is gone.
    fn needs(&mut self, group: usize) -> Result<()>;

    /// The gradient of a group is complete: `gradient` is its buffer. From the head to the embedding; a tied
    /// matrix after its last use.
    ///
    /// # Errors
    /// It cannot be sent.
    fn ready(&mut self, group: usize, gradient: &mut Tensor) -> Result<()>;
}

/// Hooks of somebody who is alone and waits for nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn needs(&mut self, _group: usize) -> Result<()> {
        Ok(())
    }

    fn ready(&mut self, _group: usize, _gradient: &mut Tensor) -> Result<()> {
        Ok(())
    }
}

/// The passes of something that is trained: a whole decoder, an adapter over a frozen one, a translator between
/// two. It holds handles of the flat weights, which the trainer changes in place between two steps.
pub trait Passes {
    /// Forward and backward of one grain. The gradient of the summed NLL goes into `gradients`: one flat fp32
    /// tensor a trainable group, with the group's padded length, on the device of the weights.
    ///
    /// # Errors
    /// An id is out of range, a hook fails, or memory is short.
    fn backward(
        &mut self,
        batch: &Batch,
        at: GrainAt,
        gradients: &mut [Tensor],
        how: Accumulate,
        hooks: &mut dyn Hooks,
    ) -> Result<GrainSum>;

    /// The sums of a grain without gradients; dropout is off.
    ///
    /// # Errors
    /// As [`Self::backward`].
    fn evaluate(&mut self, batch: &Batch, hooks: &mut dyn Hooks) -> Result<GrainSum>;

    /// Attention layers that took another mask than a causal one in the last pass; 0 where nobody counts.
    fn patched_layers(&self) -> usize {
        0
    }

    /// The weights were changed: what was made of them is made anew.
    fn refresh(&mut self);
}
