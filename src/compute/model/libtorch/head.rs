//! Output matrix and cross-entropy, in chunks of positions: the logits of a batch never lie in memory at once.
//! The gradient is written by hand: softmax less one at the target, times the position's cotangent.

use tch::{Device, Kind, Tensor};

use super::super::batch::Batch;
use super::net::{Leaves, Net, leaf};
use super::tape::vector_jacobian;
use crate::compute::data::IGNORED;
use crate::compute::{ComputeError, Result};

/// The scored positions of a batch.
pub(super) struct Labels {
    /// Their numbers in `[B T]`, i64.
    rows: Tensor,
    /// The token that follows each.
    targets: Tensor,
    /// Factor on each position's NLL, fp32; absent: 1.
    weights: Option<Tensor>,
    count: i64,
}

impl Labels {
    /// # Errors
    /// A vector of the batch has another length, or a target is not in `0..vocab_size`.
    pub fn of(batch: &Batch, vocab_size: i64, device: Device) -> Result<Self> {
        let places = batch.rows * batch.seq_len;
        if batch.targets.len() != places || batch.loss_weights.as_ref().is_some_and(|w| w.len() != places) {
            return Err(ComputeError::Failed("a batch has not one target a place: report this".to_owned()));
        }
        let mut rows = Vec::new();
        let mut targets = Vec::new();
        let mut weights = Vec::new();
        for (row, &target) in batch.targets.iter().enumerate().filter(|(_, t)| i64::from(**t) != IGNORED) {
            if !(0..vocab_size).contains(&i64::from(target)) {
                return Err(ComputeError::Config(format!(
                    "a target has id {target}, the model {vocab_size} tokens: tokenise the data with the model's tokenizer"
                )));
            }
            // A batch has far fewer than 2^63 positions.
            rows.push(row as i64);
            targets.push(i64::from(target));
            weights.extend(batch.loss_weights.as_ref().map(|w| w[row]));
        }
        let count = rows.len() as i64;
        let there = |ids: &[i64]| -> Result<Tensor> { Ok(Tensor::f_from_slice(ids)?.f_to(device)?) };
        let weights = match &batch.loss_weights {
            Some(_) => Some(Tensor::f_from_slice(&weights)?.f_to(device)?),
            None => None,
        };
        Ok(Self { rows: there(&rows)?, targets: there(&targets)?, weights, count })
    }

    /// Scored positions.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// NLL of the scored positions, `[m]`, into one number for every position, fp32 `[B, T]`; 0 elsewhere.
    pub fn spread(&self, nll_m: &Tensor, batch: &Batch) -> Result<Tensor> {
        let all = Tensor::f_zeros([(batch.rows * batch.seq_len) as i64], (Kind::Float, nll_m.device()))?;
        Ok(all.f_index_copy(0, &self.rows, nll_m)?.f_view([batch.rows as i64, batch.seq_len as i64])?)
    }

    /// The numbers of all positions, `[B, T]`, at the scored ones: `[m]`.
    pub fn gather(&self, all_bt: &Tensor) -> Result<Tensor> {
        Ok(all_bt.f_reshape([-1])?.f_index_select(0, &self.rows)?)
    }
}

/// Where gradients go that are summed over chunks: fp32 `[V, h]`.
pub(super) type OutGradient = Option<Tensor>;

/// What the backward pass of the head gives.
pub(super) struct HeadGradients {
    /// By the hidden states `[B, T, h]`; absent where nobody wants it.
    pub dx_bth: Option<Tensor>,
    /// By the parts of the last norm.
    pub norm: Leaves,
}

/// The rows `rows` of `x_bth` behind the last norm, ready for a backward pass.
struct Normed {
    x_mh: Tensor,
    y_mh: Tensor,
    leaves: Leaves,
}

impl Normed {
    fn of(net: &Net, x_bth: &Tensor, rows: &Tensor, want: [bool; 2]) -> Result<Self> {
        let h = net.config().hidden_size;
        let picked = x_bth.f_detach()?.f_view([-1, h])?.f_index_select(0, rows)?;
        let x_mh = leaf(&picked, want[0])?;
        let (norm, leaves) = net.last_norm(want[1])?;
        let y_mh = net.decoder().norm(&norm, &x_mh)?;
        Ok(Self { x_mh, y_mh, leaves })
    }

    fn backward(self, dy_mh: &Tensor, rows: &Tensor, x_bth: &Tensor) -> Result<HeadGradients> {
        let wants_x = self.x_mh.requires_grad();
        let inputs: Vec<&Tensor> = self.leaves.iter().map(|(_, t)| t).chain(wants_x.then_some(&self.x_mh)).collect();
        let mut gradients = vector_jacobian(&self.y_mh, dy_mh, &inputs)?;
        let dx_bth = match gradients.pop().filter(|_| wants_x) {
            None => None,
            Some(dx_mh) => {
                let size = x_bth.size();
                let all = Tensor::f_zeros([size[0] * size[1], size[2]], (dx_mh.kind(), dx_mh.device()))?;
                // Chosen positions may repeat.
                Some(all.f_index_add(0, rows, &dx_mh)?.f_view(&size[..])?)
            }
        };
        let norm = self.leaves.iter().map(|(at, _)| *at).zip(gradients).collect();
        Ok(HeadGradients { dx_bth, norm })
    }
}

/// Weighted NLL of the scored positions, fp32 `[m]`, detached.
pub(super) fn losses(net: &Net, x_bth: &Tensor, labels: &Labels, chunk: i64) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let normed = Normed::of(net, x_bth, &labels.rows, [false; 2])?;
    let out = net.out()?;
    let mut parts = Vec::new();
    for (first, len) in chunks(labels.count, chunk) {
        let logits = normed.y_mh.f_narrow(0, first, len)?.f_mm(&out.f_tr()?)?.f_to_kind(Kind::Float)?;
        let target = labels.targets.f_narrow(0, first, len)?.f_unsqueeze(1)?;
        parts.push(weighted(
            logits.f_logsumexp(&[1i64][..], true)?.f_sub(&logits.f_gather(1, &target, false)?)?,
            labels,
            first,
        )?);
    }
    joined(parts, x_bth.device())
}

/// As [`losses`], with the gradient of the sum of NLL times `cotangent_m` (absent: 1) by the hidden states, the
/// last norm, and the output matrix, which is added to `out_gradient`.
pub(super) fn losses_backward(
    net: &Net,
    x_bth: &Tensor,
    labels: &Labels,
    cotangent_m: Option<&Tensor>,
    (chunk, wants_x): (i64, bool),
    out_gradient: &mut OutGradient,
) -> Result<(Tensor, HeadGradients)> {
    let normed = Normed::of(net, x_bth, &labels.rows, [wants_x, out_gradient.is_some()])?;
    let (y_mh, out) = (normed.y_mh.f_detach()?, net.out()?);
    let mut parts = Vec::new();
    let mut dy_parts = Vec::new();
    {
        let _guard = tch::no_grad_guard();
        for (first, len) in chunks(labels.count, chunk) {
            let y = y_mh.f_narrow(0, first, len)?;
            let mut logits = y.f_mm(&out.f_tr()?)?.f_to_kind(Kind::Float)?;
            let target = labels.targets.f_narrow(0, first, len)?.f_unsqueeze(1)?;
            let total = logits.f_logsumexp(&[1i64][..], true)?;
            parts.push(weighted(total.f_sub(&logits.f_gather(1, &target, false)?)?, labels, first)?);
            // From here on `logits` holds its own gradient.
            let mut d = logits.f_sub_(&total)?.f_exp_()?;
            let one = Tensor::f_full([len, 1], -1.0, (Kind::Float, d.device()))?;
            d = d.f_scatter_add_(1, &target, &one)?;
            for factor in labels.weights.iter().chain(cotangent_m) {
                d = d.f_mul_(&factor.f_narrow(0, first, len)?.f_unsqueeze(1)?)?;
            }
            let d = d.f_to_kind(y.kind())?;
            dy_parts.push(d.f_mm(&out)?);
            add_product(out_gradient, &d, &y)?;
        }
    }
    let dy_mh = if dy_parts.is_empty() { y_mh.f_zeros_like()? } else { Tensor::f_cat(&dy_parts, 0)? };
    Ok((joined(parts, x_bth.device())?, normed.backward(&dy_mh, &labels.rows, x_bth)?))
}

/// Logits at the positions `rows` of `[B T]`: `[P, V]`, detached.
pub(super) fn logits_at(net: &Net, x_bth: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    Ok(Normed::of(net, x_bth, rows, [false; 2])?.y_mh.f_mm(&net.out()?.f_tr()?)?)
}

/// The backward pass of [`logits_at`] for the cotangent `d_pv`.
pub(super) fn logits_backward(
    net: &Net,
    x_bth: &Tensor,
    rows: &Tensor,
    d_pv: &Tensor,
    wants_x: bool,
    out_gradient: &mut OutGradient,
) -> Result<HeadGradients> {
    let normed = Normed::of(net, x_bth, rows, [wants_x, out_gradient.is_some()])?;
    let y_ph = normed.y_mh.f_detach()?;
    let d = d_pv.f_detach()?.f_to_kind(y_ph.kind())?;
    add_product(out_gradient, &d, &y_ph)?;
    let dy_ph = d.f_mm(&net.out()?)?;
    normed.backward(&dy_ph, rows, x_bth)
}

/// out_gradient += d^T y, in fp32.
fn add_product(out_gradient: &mut OutGradient, d: &Tensor, y: &Tensor) -> Result<()> {
    let Some(sum) = out_gradient else { return Ok(()) };
    let transposed = d.f_tr()?;
    let _ = if d.kind() == Kind::Float {
        sum.f_addmm_(&transposed, y)?
    } else if d.device().is_cuda() {
        // The product leaves the multiplication in fp32.
        sum.f_add_(&transposed.f_mm_dtype(y, Kind::Float)?)?
    } else {
        sum.f_add_(&transposed.f_mm(y)?)?
    };
    Ok(())
}

fn weighted(nll: Tensor, labels: &Labels, first: i64) -> Result<Tensor> {
    let nll = nll.f_squeeze_dim(1)?;
    match &labels.weights {
        None => Ok(nll),
        Some(weights) => Ok(nll.f_mul(&weights.f_narrow(0, first, nll.size()[0])?)?),
    }
}

fn joined(parts: Vec<Tensor>, device: Device) -> Result<Tensor> {
    if parts.is_empty() {
        return Ok(Tensor::f_zeros([0], (Kind::Float, device))?);
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}

/// First position and length of every chunk of `count` positions.
fn chunks(count: i64, chunk: i64) -> impl Iterator<Item = (i64, i64)> {
    let chunk = chunk.max(1);
    (0..count.max(0)).step_by(chunk as usize).map(move |first| (first, chunk.min(count - first)))
}
