//! The engine on libtorch: any device, fp32 and bf16, all families, masks, dropout, adapters, frozen weights and
//! taps. Autograd works inside a block only; between blocks the gradient is passed by hand ([`tape`]), and output
//! matrix and loss are differentiated by hand in chunks ([`head`]).
//!
//! Types are cast explicitly: weights and activations have the net's type; statistics of norms, rotations,
//! softmax, NLL and the sums of gradients are fp32. Nothing here knows ranks or optimizers.

mod cached;
mod head;
mod net;
mod seam;
mod tape;

use tch::{Kind, Tensor};

pub use cached::{CachedDecoder, Kept};
pub use net::{Base, Net, Want};
pub use seam::{Ask, Cotangents, Forward, Outputs, Source};
pub use tape::{Chance, Keep};

pub(super) use net::leaf;

use super::batch::Batch;
use super::decoder::{dropped, embed};
use super::passes::{Accumulate, GrainAt, GrainSum, Hooks, Passes};
use super::places::Places;
use super::{Model, as_f32};
use crate::compute::{ComputeError, Result};
use head::{HeadGradients, Labels};
use net::Leaves;
use tape::{Pass, Tape, vector_jacobian};

/// How the passes are computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Graphs, or inputs only: activation checkpointing, with the same bits.
    pub keep: Keep,
    /// Probability with which embeddings, attention weights and what a block adds are set to zero in training.
    pub dropout: f64,
    /// Positions whose logits lie in memory at once.
    pub head_rows: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { keep: Keep::Graphs, dropout: 0.0, head_rows: 1024 }
    }
}

/// A net's passes, as a trainer asks for them: of a whole decoder, or of an adapter over a frozen one.
#[derive(Debug)]
pub struct LibtorchPasses {
    net: Net,
    settings: Settings,
    patched: usize,
}

impl LibtorchPasses {
    /// Over the weights of `net`.
    pub fn new(net: Net, settings: Settings) -> Self {
        Self { net, settings, patched: 0 }
    }

    /// Of every parameter of `model`, in fp32 over its own memory.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn of_model(model: &Model, settings: Settings) -> Result<Self> {
        Ok(Self::new(Net::of(model, Base::Trainable, Kind::Float, tch::Device::Cpu)?, settings))
    }

    /// The decoder and its weights.
    pub fn net(&self) -> &Net {
        &self.net
    }
}

impl Passes for LibtorchPasses {
    fn backward(
        &mut self,
        batch: &Batch,
        at: GrainAt,
        gradients: &mut [Tensor],
        how: Accumulate,
        hooks: &mut dyn Hooks,
    ) -> Result<GrainSum> {
        let (net, settings) = (&self.net, self.settings);
        let labels = Labels::of(batch, net.config().vocab_size, net.device())?;
        let places = Places::of(net.config(), batch, net.device())?;
        let chance = Chance { p: settings.dropout, at };
        let want = Want { params: true, inputs: false };
        if let Some(g) = net.base_group(0) {
            hooks.needs(g)?;
        }
        let ids_bt = ids(batch, net)?;
        let embedded = Embedded::of(net, &ids_bt, chance)?;
        let mut tape = Tape::new(Pass { net, places: &places, chance, keep: settings.keep, want });
        let mut x = embedded.x_bth.f_detach()?;
        for layer in 0..net.depth() {
            needs_block(net, layer, hooks)?;
            x = tape.forward(x)?;
        }
        let mut sink = Sink { net, gradients, how };
        if let Some(g) = net.base_group(net.head_group()) {
            hooks.needs(g)?;
        }
        let mut out = sink.out_gradient()?;
        let wants_x = net.trains_below(net.depth());
        let (nll_m, HeadGradients { dx_bth, norm }) =
            head::losses_backward(net, &x, &labels, None, (settings.head_rows, wants_x), &mut out)?;
        sink.head(&norm)?;
        if let Some(g) = net.base_group(net.head_group()) {
            hooks.ready(g, &mut sink.gradients[g])?;
        }
        let mut dx = dx_bth;
        while let Some(dy) = dx.take() {
            let Some((below, gradients)) = tape.backward(&dy)? else {
                sink.embedding(&ids_bt, &embedded.backward(&dy)?)?;
                break;
            };
            let layer = gradients.layer;
            sink.block(gradients.layer, &gradients.base, &gradients.adapter)?;
            for g in [net.adapter_group(layer), net.base_group(layer + 1)].into_iter().flatten() {
                hooks.ready(g, &mut sink.gradients[g])?;
            }
            dx = below;
        }
        if let Some(g) = net.base_group(0) {
            hooks.ready(g, &mut sink.gradients[g])?;
        }
        self.patched = places.patched_layers();
        Ok(GrainSum { nll: sum_f64(&nll_m)?, tokens: labels.count() })
    }

    fn evaluate(&mut self, batch: &Batch, hooks: &mut dyn Hooks) -> Result<GrainSum> {
        let _guard = tch::no_grad_guard();
        let net = &self.net;
        let labels = Labels::of(batch, net.config().vocab_size, net.device())?;
        let places = Places::of(net.config(), batch, net.device())?;
        if let Some(g) = net.base_group(0) {
            hooks.needs(g)?;
        }
        let mut x = embed(&net.embedding()?, &ids(batch, net)?)?;
        let want = Want { params: false, inputs: false };
        let mut tape = Tape::new(Pass { net, places: &places, chance: Chance::NONE, keep: Keep::Nothing, want });
        for layer in 0..net.depth() {
            needs_block(net, layer, hooks)?;
            x = tape.forward(x)?;
        }
        if let Some(g) = net.base_group(net.head_group()) {
            hooks.needs(g)?;
        }
        let nll_m = head::losses(net, &x, &labels, self.settings.head_rows)?;
        self.patched = places.patched_layers();
        Ok(GrainSum { nll: sum_f64(&nll_m)?, tokens: labels.count() })
    }

    fn patched_layers(&self) -> usize {
        self.patched
    }

    fn refresh(&mut self) {
        // Effective weights are made anew in every pass.
    }
}

fn needs_block(net: &Net, layer: usize, hooks: &mut dyn Hooks) -> Result<()> {
    [net.base_group(layer + 1), net.adapter_group(layer)].into_iter().flatten().try_for_each(|g| hooks.needs(g))
}

/// Token ids as i64 `[B, T]` on the net's device.
///
/// # Errors
/// There is not one a place, or one is not in the vocabulary.
pub(super) fn ids(batch: &Batch, net: &Net) -> Result<Tensor> {
    let vocab_size = net.config().vocab_size;
    if let Some(bad) = batch.ids.iter().find(|&&id| !(0..vocab_size).contains(&i64::from(id))) {
        return Err(ComputeError::Config(format!(
            "an input has id {bad}, the model {vocab_size} tokens: tokenise the data with the model's tokenizer"
        )));
    }
    if batch.ids.len() != batch.rows * batch.seq_len {
        return Err(ComputeError::Failed("a batch has not one id a place: report this".to_owned()));
    }
    let ids: Vec<i64> = batch.ids.iter().map(|&id| i64::from(id)).collect();
    let size = [batch.rows as i64, batch.seq_len as i64];
    Ok(Tensor::f_from_slice(&ids)?.f_view(size)?.f_to(net.device())?)
}

/// Embeddings of ids, and the way back through their dropout.
struct Embedded {
    x_bth: Tensor,
    leaf: Option<Tensor>,
}

impl Embedded {
    fn of(net: &Net, ids_bt: &Tensor, chance: Chance) -> Result<Self> {
        let x_bth = embed(&net.embedding()?, ids_bt)?;
        if chance.p <= 0.0 {
            return Ok(Self { x_bth, leaf: None });
        }
        let x_bth = net::leaf(&x_bth, true)?;
        chance.seed(0);
        Ok(Self { x_bth: dropped(x_bth.shallow_clone(), chance.p)?, leaf: Some(x_bth) })
    }

    fn backward(&self, dx_bth: &Tensor) -> Result<Tensor> {
        let Some(leaf) = &self.leaf else { return Ok(dx_bth.shallow_clone()) };
        vector_jacobian(&self.x_bth, dx_bth, &[leaf])?.pop().ok_or_else(super::view::too_few)
    }
}

/// Where gradients of groups go: flat fp32 buffers, a trainable group each.
struct Sink<'a> {
    net: &'a Net,
    gradients: &'a mut [Tensor],
    how: Accumulate,
}

impl Sink<'_> {
    /// The place of the output matrix's gradient, with zeros in it where it is begun; none if it is frozen.
    fn out_gradient(&mut self) -> Result<Option<Tensor>> {
        for g in [self.net.base_group(0), self.net.base_group(self.net.head_group())].into_iter().flatten() {
            if self.how == Accumulate::Assign {
                let _ = self.gradients[g].f_zero_()?;
            }
        }
        match self.net.base_group(self.net.out_group()) {
            None => Ok(None),
            Some(g) => Ok(Some(self.net.matrix_in(g, &self.gradients[g])?)),
        }
    }

    /// The last norm's; its group was begun with zeros by [`Self::out_gradient`].
    fn head(&mut self, norm: &Leaves) -> Result<()> {
        match self.net.base_group(self.net.head_group()) {
            None => Ok(()),
            Some(g) => store(&mut self.gradients[g], norm, Accumulate::Add),
        }
    }

    fn block(&mut self, layer: usize, base: &Leaves, adapter: &Leaves) -> Result<()> {
        if let Some(g) = self.net.base_group(layer + 1) {
            store(&mut self.gradients[g], base, self.how)?;
        }
        match self.net.adapter_group(layer) {
            None => Ok(()),
            Some(g) => store(&mut self.gradients[g], adapter, self.how),
        }
    }

    /// Adds the rows of `dx_bth` to those of their ids; the group was begun by [`Self::out_gradient`].
    fn embedding(&mut self, ids_bt: &Tensor, dx_bth: &Tensor) -> Result<()> {
        let Some(g) = self.net.base_group(0) else { return Ok(()) };
        let mut table = self.net.matrix_in(0, &self.gradients[g])?;
        let h = self.net.config().hidden_size;
        let (ids, rows) = (ids_bt.f_view([-1])?, dx_bth.f_to_kind(Kind::Float)?.f_reshape([-1, h])?);
        let _ = if table.device().is_cuda() {
            // Sorted by id, so that the order of additions is fixed; `index_add_` is not there.
            table.f_add_(&Tensor::f_embedding_dense_backward(&rows, &ids, self.net.config().vocab_size, -1, false)?)?
        } else {
            table.f_index_add_(0, &ids, &rows)?
        };
        Ok(())
    }
}

/// Puts the parts of a group's gradient into its flat buffer.
fn store(flat: &mut Tensor, parts: &Leaves, how: Accumulate) -> Result<()> {
    if how == Accumulate::Assign {
        // Padding, and gaps between parts.
        let covered: usize = parts.iter().map(|(_, part)| part.numel()).sum();
        if covered < flat.numel() {
            let _ = flat.f_zero_()?;
        }
    }
    for (at, part) in parts {
        let part = part.f_detach()?.f_view([-1])?;
        let mut place = flat.f_narrow(0, *at as i64, part.numel() as i64)?;
        match how {
            Accumulate::Assign => place.f_copy_(&part)?,
            Accumulate::Add => drop(place.f_add_(&part)?),
        }
    }
    Ok(())
}

/// f64 sum in element order: libtorch's own sum depends on the number of threads.
pub(super) fn sum_f64(nll: &Tensor) -> Result<f64> {
    let flat = nll.f_detach()?.f_to(tch::Device::Cpu)?.f_contiguous()?;
    Ok(as_f32(&flat).iter().map(|&x| f64::from(x)).sum())
}
