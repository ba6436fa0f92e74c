//! A linear map from the hidden states of one frozen decoder (the reader) to the first embeddings of another (the
//! writer): the map alone is trained, by the writer's loss.
//!
//! Of a row of T tokens the reader sees the first P; the writer sees P translated embeddings in their place and
//! then its own embeddings of the rest. Both decoders read the same ids. Nothing of either is changed, and no
//! gradient of their weights is computed.

use tch::{Device, Kind, Tensor};

use super::batch::Batch;
use super::decoder::embed;
use super::flat::as_f32_mut;
use super::layout::{Builder, Layout, Role};
use super::libtorch::{Ask, Cotangents, Keep, Net, Source, Want, sum_f64};
use super::passes::{Accumulate, GrainAt, GrainSum, Hooks, Passes};
use super::view::too_few;
use crate::compute::rng::{Purpose, Rng};
use crate::compute::{ComputeError, Result};

/// What is translated, and how it is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TranslatorSettings {
    /// Blocks of the reader after which its hidden states are taken.
    pub after: usize,
    /// P: tokens of a row that the writer sees translated.
    pub prefix: usize,
    /// What the writer's forward pass keeps.
    pub keep: Keep,
}

/// Reader, map and writer.
#[derive(Debug)]
pub struct Translator {
    reader: Net,
    writer: Net,
    settings: TranslatorSettings,
    layout: Layout,
    flat: Tensor,
}

/// The reader's and the writer's part of a grain.
struct Grain {
    reader: Batch,
    writer: Batch,
}

impl Translator {
    /// A map with random weights, normal with standard deviation 1 / sqrt(width of the reader), padded for `lanes`
    /// lanes.
    ///
    /// # Errors
    /// A decoder is trainable, or they lie on two devices.
    pub fn new(reader: Net, writer: Net, settings: TranslatorSettings, lanes: usize, seed: u32) -> Result<Self> {
        if [&reader, &writer].iter().any(|net| !net.trainable_flats().is_empty()) || reader.device() != writer.device()
        {
            return Err(ComputeError::Config(
                "a translator stands between two frozen decoders on one device: freeze both".to_owned(),
            ));
        }
        let (from, to) = (reader.config().hidden_size, writer.config().hidden_size);
        let mut group = Builder::new("translator", None);
        group.add("translator.weight", &[to, from], Role::Input);
        let group = group.finish(lanes.max(1));
        let mut flat = Tensor::f_zeros([group.len as i64], (Kind::Float, Device::Cpu))?;
        let std = 1.0 / (from as f64).sqrt();
        let rows = as_f32_mut(&mut flat)[group.spans[0].range()].chunks_mut(from as usize);
        for (row, values) in rows.enumerate() {
            let mut rng = Rng::new(seed, Purpose::Adapter, u32::MAX, row as u64);
            values.iter_mut().for_each(|v| *v = (std * rng.normal()) as f32);
        }
        let flat = flat.f_to(reader.device())?;
        Ok(Self { reader, writer, settings, layout: Layout { groups: vec![group], lanes: lanes.max(1) }, flat })
    }

    /// Its one group, `translator`.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Handle of its weights.
    pub fn flats(&self) -> Vec<Tensor> {
        vec![self.flat.shallow_clone()]
    }

    /// The decoder that reads, and the one that writes.
    pub fn nets(&self) -> [&Net; 2] {
        [&self.reader, &self.writer]
    }

    /// The map `[to, from]` in a flat tensor of its group.
    fn matrix(&self, flat: &Tensor) -> Result<Tensor> {
        let span = &self.layout.groups[0].spans[0];
        Ok(flat.f_detach()?.f_narrow(0, span.offset as i64, span.len as i64)?.f_view(&span.shape[..])?)
    }

    /// The reader gets the first P columns of a batch; the writer all of it.
    fn grain(&self, batch: &Batch) -> Result<Grain> {
        let (t, p) = (batch.seq_len, self.settings.prefix);
        if p == 0 || p >= t {
            return Err(ComputeError::Config(format!(
                "a translator of {p} tokens cannot serve rows of {t}: choose a prefix between 1 and {}",
                t.saturating_sub(1)
            )));
        }
        let cut = |all: &[i32]| -> Vec<i32> { all.chunks(t).flat_map(|row| &row[..p]).copied().collect() };
        let reader = Batch {
            rows: batch.rows,
            seq_len: p,
            ids: cut(&batch.ids),
            targets: Vec::new(),
            positions: batch.positions.as_deref().map(cut),
            segments: batch.segments.as_deref().map(cut),
            prompt_lens: batch.prompt_lens.as_ref().map(|lens| lens.iter().map(|&n| n.min(p as i32)).collect()),
            key_lens: batch.key_lens.as_ref().map(|lens| lens.iter().map(|&n| n.min(p as i32)).collect()),
            loss_weights: None,
            mask: batch.mask,
        };
        Ok(Grain { reader, writer: batch.clone() })
    }

    /// The reader's hidden states `[B, P, from]` in fp32, and the writer's input `[B, T, to]`.
    fn input(&self, grain: &Grain) -> Result<(Tensor, Tensor)> {
        let _guard = tch::no_grad_guard();
        let places = self.reader.places(&grain.reader)?;
        let ask = Ask { hidden_after: vec![self.settings.after], ..Ask::default() };
        let nothing = (Keep::Nothing, Want { params: false, inputs: false });
        let read = self.reader.forward(Source::Ids, (&grain.reader, &places), ask, nothing)?;
        let hidden = read.outputs.hidden.into_iter().next().ok_or_else(too_few)?.f_to_kind(Kind::Float)?;
        let translated = hidden.f_linear::<Tensor>(&self.matrix(&self.flat)?, None)?.f_to_kind(self.writer.kind())?;
        let own = embed(&self.writer.embedding()?, &super::libtorch::ids(&grain.writer, &self.writer)?)?;
        let p = self.settings.prefix as i64;
        let rest = own.f_narrow(1, p, own.size()[1] - p)?;
        Ok((hidden, Tensor::f_cat(&[translated, rest], 1)?))
    }
}

impl Passes for Translator {
    fn backward(
        &mut self,
        batch: &Batch,
        _at: GrainAt,
        gradients: &mut [Tensor],
        how: Accumulate,
        hooks: &mut dyn Hooks,
    ) -> Result<GrainSum> {
        hooks.needs(0)?;
        let grain = self.grain(batch)?;
        let (hidden, x_bth) = self.input(&grain)?;
        let places = self.writer.places(&grain.writer)?;
        let ask = Ask { nll: true, ..Ask::default() };
        let want = Want { params: false, inputs: true };
        let written = self.writer.forward(
            Source::Embeddings(&x_bth),
            (&grain.writer, &places),
            ask,
            (self.settings.keep, want),
        )?;
        let nll_bt = written.outputs.nll_bt.as_ref().ok_or_else(too_few)?.shallow_clone();
        let cotangents = Cotangents { nll_bt: Some(nll_bt.f_ones_like()?), ..Cotangents::default() };
        let dx_bth = written.backward(&cotangents, &mut [], Accumulate::Assign)?.ok_or_else(too_few)?;
        let p = self.settings.prefix as i64;
        let d = dx_bth.f_narrow(1, 0, p)?.f_to_kind(Kind::Float)?;
        let flat = gradients.first_mut().ok_or_else(too_few)?;
        if how == Accumulate::Assign {
            let _ = flat.f_zero_()?;
        }
        let (to, from) = (d.size()[2], hidden.size()[2]);
        let _ = self.matrix(flat)?.f_addmm_(&d.f_reshape([-1, to])?.f_tr()?, &hidden.f_reshape([-1, from])?)?;
        hooks.ready(0, flat)?;
        Ok(GrainSum { nll: sum_f64(&nll_bt)?, tokens: batch.labels() })
    }

    fn evaluate(&mut self, batch: &Batch, hooks: &mut dyn Hooks) -> Result<GrainSum> {
        hooks.needs(0)?;
        let grain = self.grain(batch)?;
        let (_, x_bth) = self.input(&grain)?;
        let places = self.writer.places(&grain.writer)?;
        let ask = Ask { nll: true, ..Ask::default() };
        let nothing = (Keep::Nothing, Want { params: false, inputs: false });
        let written = self.writer.forward(Source::Embeddings(&x_bth), (&grain.writer, &places), ask, nothing)?;
        let nll_bt = written.outputs.nll_bt.as_ref().ok_or_else(too_few)?;
        Ok(GrainSum { nll: sum_f64(nll_bt)?, tokens: batch.labels() })
    }

    fn refresh(&mut self) {
        // The map is read anew in every pass.
    }
}
