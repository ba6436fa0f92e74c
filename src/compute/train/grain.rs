//! The whole-graph engine: forward and backward of a grain by libtorch's autograd in one piece.

use tch::{Kind, Tensor};

use crate::compute::model::{Accumulate, Batch, GrainAt, GrainSum, Hooks, Input, Mask, Model, Passes, as_f32, decoder};
use crate::compute::{ComputeError, Result};

/// A model's passes as one graph.
#[derive(Debug)]
pub struct Graph {
    model: Model,
}

impl Graph {
    /// Over the memory of `model`.
    pub fn new(model: &Model) -> Self {
        Self { model: model.alias() }
    }
}

fn tensors(batch: &Batch) -> Result<(Tensor, Tensor)> {
    // It has one mask, and no silent other meaning for those it does not have.
    let Batch { positions: None, segments: None, key_lens: None, loss_weights: None, mask: Mask::Causal, .. } = batch
    else {
        return Err(ComputeError::Config(
            "this engine has neither resets nor a prefix mask: set `reset_attention` and `reset_positions` to false and `objective` to \"causal\" or \"response\"".to_owned(),
        ));
    };
    let wide = |ids: &[i32]| -> Result<Tensor> {
        let ids: Vec<i64> = ids.iter().map(|&i| i64::from(i)).collect();
        Ok(Tensor::f_from_slice(&ids)?.f_view([batch.rows as i64, batch.seq_len as i64])?)
    };
    Ok((wide(&batch.ids)?, wide(&batch.targets)?))
}

impl Passes for Graph {
    fn backward(
        &mut self,
        batch: &Batch,
        _at: GrainAt,
        gradients: &mut [Tensor],
        how: Accumulate,
        hooks: &mut dyn Hooks,
    ) -> Result<GrainSum> {
        (0..gradients.len()).try_for_each(|g| hooks.needs(g))?;
        let leaves: Vec<Tensor> =
            self.model.flats().iter().map(|f| Ok(f.f_detach()?.f_set_requires_grad(true)?)).collect::<Result<_>>()?;
        let (ids_bt, targets_bt) = tensors(batch)?;
        let views = self.model.views_of(&leaves)?;
        let x_bth = decoder::embed(&views.embed, &ids_bt)?;
        let nll_bt = decoder::nll(&self.model.decoder().logits(&views, &x_bth)?, &targets_bt)?;
        let new = Tensor::f_run_backward(&[nll_bt.f_sum(Kind::Float)?], &leaves, false, false)?;
        for (g, (gradient, new)) in gradients.iter_mut().zip(&new).enumerate().rev() {
            match how {
                Accumulate::Assign => gradient.f_copy_(new)?,
                Accumulate::Add => drop(gradient.f_add_(new)?),
            }
            hooks.ready(g, gradient)?;
        }
        Ok(GrainSum { nll: sum_f64(&nll_bt)?, tokens: batch.labels() })
    }

    fn evaluate(&mut self, batch: &Batch, hooks: &mut dyn Hooks) -> Result<GrainSum> {
        let _guard = tch::no_grad_guard();
        (0..self.model.flats().len()).try_for_each(|g| hooks.needs(g))?;
        let (ids_bt, targets_bt) = tensors(batch)?;
        let nll_bt = self.model.nll(&Input::Tokens(ids_bt), &targets_bt)?;
        Ok(GrainSum { nll: sum_f64(&nll_bt)?, tokens: batch.labels() })
    }

    fn refresh(&mut self) {
        self.model.flats_mut();
    }
}

/// f64 sum in element order: libtorch's own sum depends on the number of threads.
fn sum_f64(nll_bt: &Tensor) -> Result<f64> {
    let flat = nll_bt.f_detach()?.f_contiguous()?;
    Ok(as_f32(&flat).iter().map(|&x| f64::from(x)).sum())
}
