//! The last norm, the output matrix and the loss: chunk by chunk, so that the logits of a whole grain never
//! exist together, and for positions with a label only.

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
        let Memory { norm, dstream, scratch, labelled, targets, weights, .. } = memory;
        labelled.clear();
        labelled.extend((0..batch.targets.len()).filter(|&i| batch.targets[i] >= 0));
        let out = Mat::rows(self.out, vocab, h);
        if let Some(gradient) = &mut gradient {
            scratch.dnorm.fill(0.0);
            if labelled.is_empty() && gradient.how == Accumulate::Assign {
                gradient.flat.fill(0.0);
            }
        }
        let mut nll = 0.0;
        let mut how = gradient.as_ref().map_or(Accumulate::Assign, |g| g.how);
        for chunk in labelled.chunks(maps.rows_of_logits()) {
            let n = chunk.len();
            // The stream's gradient begins in `norm_backward`: until then its memory is free.
            let (rows, drows) = (&mut scratch.branch[..n * h], &mut dstream[..n * h]);
            targets.clear();
            weights.clear();
            for (row, &i) in rows.chunks_exact_mut(h).zip(chunk) {
                row.copy_from_slice(&norm[i * h..][..h]);
                targets.push(batch.targets[i]);
                weights.extend(batch.loss_weights.as_ref().map(|w| w[i]));
            }
            let rows = Mat::rows(rows, n, h);
            let logits = &mut scratch.logits[..n * vocab];
            gemm.run(rows, out.t(), MatMut::rows(logits, n, vocab), Accumulate::Assign)?;
            let back = if gradient.is_some() { Backward::Yes } else { Backward::No };
            let weights = batch.loss_weights.as_ref().map(|_| &weights[..]);
            nll += cross_entropy::nll(Isa::best(), vocab, logits, targets, weights, back);
            if let Some(gradient) = &mut gradient {
                let dlogits = Mat::rows(logits, n, vocab);
                gemm.run(dlogits, out, MatMut::rows(drows, n, h), Accumulate::Assign)?;
                for (drow, &i) in drows.chunks_exact(h).zip(chunk) {
                    scratch.dnorm[i * h..][..h].copy_from_slice(drow);
                }
                gemm.run(dlogits.t(), rows, MatMut::rows(gradient.flat, vocab, h), how)?;
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
