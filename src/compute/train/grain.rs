//! One grain: its tensors, its forward and backward, its sums.

use tch::{Kind, Tensor};

use super::lanes::Gradient;
use crate::compute::Result;
use crate::compute::data::{IGNORED, Sample};
use crate::compute::model::{GrainSum, Model, as_f32, decoder};

/// Inputs and targets of some samples, i64 `[B, T]` each, and the number of labels.
///
/// # Errors
/// libtorch refuses.
pub fn batch(samples: &[Sample]) -> Result<(Tensor, Tensor, i64)> {
    let rows = samples.len() as i64;
    let inputs: Vec<i64> = samples.iter().flat_map(|s| s.inputs.iter().copied()).collect();
    let targets: Vec<i64> = samples.iter().flat_map(|s| s.targets.iter().copied()).collect();
    let labels = targets.iter().filter(|&&t| t != IGNORED).count() as i64;
    Ok((
        Tensor::f_from_slice(&inputs)?.f_view([rows, -1])?,
        Tensor::f_from_slice(&targets)?.f_view([rows, -1])?,
        labels,
    ))
}

/// A row of `seq_len` positions without a label.
pub fn blank(seq_len: usize) -> Sample {
    Sample { inputs: vec![0; seq_len], targets: vec![IGNORED; seq_len], segments: vec![0; seq_len], start: 0 }
}

/// Flat leaves over the model's memory, whose gradients arrive flat.
///
/// # Errors
/// libtorch refuses.
pub fn leaves(model: &Model) -> Result<Vec<Tensor>> {
    model.flats().iter().map(|f| Ok(f.f_detach()?.f_set_requires_grad(true)?)).collect()
}

/// Forward and backward of the summed NLL: its gradient by every group, and its sums.
///
/// # Errors
/// An id is out of range, or libtorch refuses.
pub fn backward(model: &Model, leaves: &[Tensor], samples: &[Sample]) -> Result<(Gradient, GrainSum)> {
    let (ids_bt, targets_bt, tokens) = batch(samples)?;
    let views = model.views_of(leaves)?;
    let x_bth = decoder::embed(&views.embed, &ids_bt)?;
    let nll_bt = decoder::nll(&model.decoder().logits(&views, &x_bth)?, &targets_bt)?;
    let gradient = Tensor::f_run_backward(&[nll_bt.f_sum(Kind::Float)?], leaves, false, false)?;
    Ok((gradient, GrainSum { nll: sum_f64(&nll_bt)?, tokens }))
}

/// Sums of a grain without gradients.
///
/// # Errors
/// As [`backward`].
pub fn evaluate(model: &Model, samples: &[Sample]) -> Result<GrainSum> {
    let _guard = tch::no_grad_guard();
    let (ids_bt, targets_bt, tokens) = batch(samples)?;
    let nll_bt = model.nll(&crate::compute::model::Input::Tokens(ids_bt), &targets_bt)?;
    Ok(GrainSum { nll: sum_f64(&nll_bt)?, tokens })
}

/// f64 sum in element order: libtorch's own sum depends on the number of threads.
fn sum_f64(nll_bt: &Tensor) -> Result<f64> {
    let flat = nll_bt.f_detach()?.f_contiguous()?;
    Ok(as_f32(&flat).iter().map(|&x| f64::from(x)).sum())
}
