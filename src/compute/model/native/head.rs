//! The last norm, the output matrix and the loss: chunk by chunk, so that the logits of a whole grain never
//! exist together.

use super::block::{Grain, norm_forward, norm_gradient};
use super::maps::Gradient;
use super::memory::Memory;
use crate::compute::Result;
use crate::compute::kernels::Isa;
use crate::compute::kernels::cross_entropy::{self, Backward};
use crate::compute::kernels::gemm::{Gemm, Mat, MatMut};
use crate::compute::model::batch::Batch;
use crate::compute::model::passes::Accumulate;

/// Weights of the head.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Of the last norm, in its group.
    pub norm: &'a [f32],
    /// Output matrix `[V, h]`.
    pub out: &'a [f32],
}

impl Head<'_> {
    /// Summed NLL of a grain, nats; the last stream is in `memory`.
    ///
    /// With `gradient`, that of the output matrix, the logits' gradients go back: into it, and into
    /// `memory.scratch.dnorm`, for [`Self::norm_backward`].
    ///
    /// # Errors
    /// The GEMM backend refuses.
    pub fn loss(
        &self,
        gemm: &mut Gemm,
        grain: &Grain<'_>,
        batch: &Batch,
        memory: &mut Memory,
        mut gradient: Option<Gradient<'_>>,
    ) -> Result<f64> {
        let (maps, h, vocab) = (grain.maps, grain.maps.hidden, grain.maps.vocab);
        let x = &memory.streams[maps.blocks.len()];
        norm_forward(maps, &maps.last_norm, self.norm, x, &mut memory.norm, (&mut memory.mean, &mut memory.rstd));
        let out = Mat::rows(self.out, vocab, h);
        let mut nll = 0.0;
        let mut how = gradient.as_ref().map_or(Accumulate::Assign, |g| g.how);
        let per_chunk = maps.rows_of_logits();
        for first in (0..batch.targets.len()).step_by(per_chunk) {
            let n = per_chunk.min(batch.targets.len() - first);
            let norm = Mat::rows(&memory.norm[first * h..], n, h);
            let logits = &mut memory.scratch.logits[..n * vocab];
            gemm.run(norm, out.t(), MatMut::rows(logits, n, vocab), Accumulate::Assign)?;
            let weights = batch.loss_weights.as_ref().map(|w| &w[first..first + n]);
            let targets = &batch.targets[first..first + n];
            let back = if gradient.is_some() { Backward::Yes } else { Backward::No };
            nll += cross_entropy::nll(Isa::best(), vocab, logits, targets, weights, back);
            if let Some(gradient) = &mut gradient {
                let dlogits = Mat::rows(logits, n, vocab);
                let dnorm = &mut memory.scratch.dnorm[first * h..];
                gemm.run(dlogits, out, MatMut::rows(dnorm, n, h), Accumulate::Assign)?;
                let dout = MatMut::rows(gradient.flat, vocab, h);
                gemm.run(dlogits.t(), norm, dout, how)?;
                how = Accumulate::Add;
            }
        }
        Ok(nll)
    }

    /// The gradient by the last stream, into `memory.dstream`, and by the last norm's parameters.
    pub fn norm_backward(&self, grain: &Grain<'_>, memory: &mut Memory, gradient: &mut Gradient<'_>) {
        let maps = grain.maps;
        memory.dstream.fill(0.0);
        let x = &memory.streams[maps.blocks.len()];
        let (statistics, scratch) = ((&memory.mean[..], &memory.rstd[..]), &mut memory.scratch);
        let (dnorm, dx) = (&scratch.dnorm, &mut memory.dstream);
        norm_gradient(maps, &maps.last_norm, self.norm, x, statistics, dnorm, dx, gradient, &mut scratch.row);
    }
}
