//! A decoder with the weights of one pass: flat groups of one type on one device, trainable or frozen, and
//! adapters over them. The only way to a block's weights is [`Net::block`], so that whatever else they may come
//! from later is a matter of this file.

use tch::{Device, Kind, Tensor};

use super::super::decoder::Decoder;
use super::super::layout::Layout;
use super::super::lora::Adapter;
use super::super::view::{BlockView, Cut, HeadView, NormView, Signs, too_few};
use super::super::{Model, ModelConfig};
use crate::compute::Result;

/// Whether the weights of a decoder are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// They are: their gradients are computed.
    Trainable,
    /// They are not: no gradient of them is computed or allocated.
    Frozen,
}

/// Whose gradients a pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Those of the trainable groups.
    pub params: bool,
    /// Those of the input embeddings.
    pub inputs: bool,
}

/// A decoder and its weights.
#[derive(Debug)]
pub struct Net {
    decoder: Decoder,
    layout: Layout,
    cuts: Vec<Cut>,
    signs: Vec<Signs>,
    flats: Vec<Tensor>,
    base: Base,
    adapter: Option<Adapter>,
}

/// The parts of a group as leaves of autograd, each with its first element in the group.
pub(super) type Leaves = Vec<(usize, Tensor)>;

/// The effective weights of a block, and what they were made from.
pub(super) struct Block {
    pub view: BlockView,
    pub base: Leaves,
    pub adapter: Leaves,
}

impl Net {
    /// The decoder of `model` with weights of type `kind` on `device`: the same memory if that is theirs already.
    ///
    /// # Errors
    /// Memory is short.
    pub fn of(model: &Model, base: Base, kind: Kind, device: Device) -> Result<Self> {
        let there =
            |t: &Tensor, kind| -> Result<Tensor> { Ok(t.f_detach()?.f_to_device_(device, kind, false, false)?) };
        let signs = model
            .signs
            .iter()
            .map(|signs| signs.iter().map(|(&i, sign)| Ok((i, there(sign, kind)?))).collect::<Result<Signs>>());
        Ok(Self {
            decoder: model.decoder().clone(),
            layout: model.layout().clone(),
            cuts: model.layout().groups.iter().map(Cut::of).collect(),
            signs: signs.collect::<Result<_>>()?,
            flats: model.flats().iter().map(|f| there(f, kind)).collect::<Result<_>>()?,
            base,
            adapter: None,
        })
    }

    /// With `adapter` over its weights.
    #[must_use]
    pub fn with_adapter(mut self, adapter: Adapter) -> Self {
        self.adapter = Some(adapter);
        self
    }

    /// The adapter, if there is one.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// The decoder without its weights.
    pub(super) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The groups that are trained: the decoder's if they are not frozen, then the adapter's.
    pub fn trainable_layout(&self) -> Layout {
        let base = self.layout.groups.iter().filter(|_| self.base == Base::Trainable);
        let adapter = self.adapter.iter().flat_map(|a| &a.layout().groups);
        Layout { groups: base.chain(adapter).cloned().collect(), lanes: self.layout.lanes }
    }

    /// Handles of the weights of [`Self::trainable_layout`], group by group.
    pub fn trainable_flats(&self) -> Vec<Tensor> {
        let base = self.flats.iter().filter(|_| self.base == Base::Trainable);
        base.chain(self.adapter.iter().flat_map(Adapter::flats)).map(Tensor::shallow_clone).collect()
    }

    /// Configuration, layout, weights and signs, if they are fp32 in memory and no adapter changes them: what kernels
    /// read without libtorch.
    pub(in super::super) fn plain(&self) -> Option<(&ModelConfig, &Layout, &[Tensor], &[Signs])> {
        let plain = self.adapter.is_none() && self.kind() == Kind::Float && self.device() == Device::Cpu;
        plain.then_some((self.config(), &self.layout, &self.flats, &self.signs))
    }

    /// Handles of the decoder's own weights.
    pub fn flats(&self) -> &[Tensor] {
        &self.flats
    }

    /// Device of the weights.
    pub fn device(&self) -> Device {
        self.flats.first().map_or(Device::Cpu, Tensor::device)
    }

    /// Type of weights and activations.
    pub fn kind(&self) -> Kind {
        self.flats.first().map_or(Kind::Float, Tensor::kind)
    }

    /// Parameters that multiply in every pass: all but the input embedding, unless it is the output matrix too.
    pub fn counted_parameters(&self) -> i64 {
        let c = self.config();
        let embedding = if c.tie_word_embeddings { 0 } else { c.vocab_size * c.hidden_size };
        self.layout.num_parameters() - embedding
    }

    /// Floating-point operations of attention in a training step, a token of a full context: 12 L h T.
    pub fn attention_flops_per_token(&self) -> i64 {
        let c = self.config();
        12 * c.num_hidden_layers * c.query_width() * c.max_position_embeddings
    }

    /// Number of blocks.
    pub(super) fn depth(&self) -> usize {
        self.flats.len().saturating_sub(2)
    }

    /// Number, among the trainable groups, of the decoder's group `g`; none if they are frozen.
    pub(super) fn base_group(&self, g: usize) -> Option<usize> {
        (self.base == Base::Trainable).then_some(g)
    }

    /// Number, among the trainable groups, of the adapter's group of block `layer`.
    pub(super) fn adapter_group(&self, layer: usize) -> Option<usize> {
        self.adapter.as_ref()?;
        Some(layer + if self.base == Base::Trainable { self.flats.len() } else { 0 })
    }

    /// Whether anything below block `layer` (embedding included) is trained.
    pub(super) fn trains_below(&self, layer: usize) -> bool {
        self.base == Base::Trainable || self.adapter.is_some() && layer > 0
    }

    /// Number of the head's group.
    pub(super) fn head_group(&self) -> usize {
        self.flats.len() - 1
    }

    /// The parts of a flat tensor of group `g`, as leaves if they are trained and wanted.
    fn leaves(&self, g: usize, want: bool) -> Result<Leaves> {
        let pieces = self.cuts[g].pieces(&self.flats[g].f_detach()?)?;
        let runs = self.cuts[g].runs.iter().map(|run| run.offset);
        runs.zip(pieces).map(|(at, piece)| Ok((at, leaf(&piece, want && self.base == Base::Trainable)?))).collect()
    }

    /// The effective weights of block `layer`; as leaves if `want` and trained.
    pub(super) fn block(&self, layer: usize, want: bool) -> Result<Block> {
        let g = layer + 1;
        let base = self.leaves(g, want)?;
        let pieces: Vec<Tensor> = base.iter().map(|(_, t)| t.shallow_clone()).collect();
        let tensors = self.cuts[g].effective(&pieces, &self.layout.groups[g], &self.signs[g])?;
        let mut view = BlockView::assemble(self.config(), tensors)?;
        let adapter = match &self.adapter {
            None => Vec::new(),
            Some(adapter) => adapter.attach(layer, &mut view, want)?,
        };
        let keep = |leaves: Leaves| leaves.into_iter().filter(|(_, t)| t.requires_grad()).collect();
        Ok(Block { view, base: keep(base), adapter: keep(adapter) })
    }

    /// The last norm, with its leaves if `want` and trained.
    pub(super) fn last_norm(&self, want: bool) -> Result<(NormView, Leaves)> {
        let g = self.head_group();
        let mut leaves = self.leaves(g, want)?;
        let pieces: Vec<Tensor> = leaves.iter().map(|(_, t)| t.shallow_clone()).collect();
        let tensors = self.cuts[g].effective(&pieces, &self.layout.groups[g], &self.signs[g])?;
        let view = HeadView::assemble(self.config(), tensors)?;
        // The output matrix is differentiated by hand.
        leaves.truncate(leaves.len() - usize::from(view.out.is_some()));
        leaves.retain(|(_, t)| t.requires_grad());
        Ok((view.norm, leaves))
    }

    /// The embedding `[V, h]`.
    pub fn embedding(&self) -> Result<Tensor> {
        self.matrix(0)
    }

    /// The output matrix `[V, h]`, which is the embedding if they are tied.
    pub(super) fn out(&self) -> Result<Tensor> {
        self.matrix(self.out_group())
    }

    /// The group that holds the output matrix.
    pub(super) fn out_group(&self) -> usize {
        if self.config().tie_word_embeddings { 0 } else { self.head_group() }
    }

    /// The last parameter of group `g` as a matrix: the embedding or the output matrix, which are never
    /// constrained.
    fn matrix(&self, g: usize) -> Result<Tensor> {
        self.matrix_in(g, &self.flats[g])
    }

    /// The place of that matrix in a flat tensor of its group, gradients for example.
    pub(super) fn matrix_in(&self, g: usize, flat: &Tensor) -> Result<Tensor> {
        let span = self.layout.groups[g].spans.last().ok_or_else(too_few)?;
        Ok(flat.f_detach()?.f_narrow(0, span.offset as i64, span.len as i64)?.f_view(&span.shape[..])?)
    }
}

/// A leaf over the memory of `piece`, which wants a gradient if `want`.
pub(in super::super) fn leaf(piece: &Tensor, want: bool) -> Result<Tensor> {
    let piece = piece.f_detach()?;
    if want { Ok(piece.f_set_requires_grad(true)?) } else { Ok(piece) }
}
