//! Where the parameters of a decoder lie in its flat groups, and what the passes need to know of its
//! configuration; and a linear map with its gradients.
//!
//! Maps that read the same input and whose weights lie side by side are one matrix product.

use std::ops::Range;

use crate::compute::kernels::activation::{Function, softplus_weights_backward};
use crate::compute::kernels::gemm::{Gemm, Mat, MatMut};
use crate::compute::kernels::memory::Floats;
use crate::compute::kernels::{Isa, attention, residual};
use crate::compute::model::batch::Batch;
use crate::compute::model::passes::Accumulate;
use crate::compute::model::{Activation, Family, GroupLayout, Layout, ModelConfig, Norm, Span};
use crate::compute::{ComputeError, Result};

/// A norm's parameters in its group.
#[derive(Debug, Clone)]
pub struct NormAt {
    pub weight: Range<usize>,
    /// Layer norms have one, RMS norms have none.
    pub bias: Option<Range<usize>>,
}

/// Rows of a linear map that one matrix product serves.
#[derive(Debug, Clone)]
struct Piece {
    weight: Range<usize>,
    /// Its first output, and how many it has.
    first: usize,
    outputs: usize,
    /// Number of the span whose parameter is not the weight itself.
    constrained: Option<usize>,
}

/// A linear map `y = x W^T + b` in its group, `[N, inputs]` to `[N, outputs]`.
#[derive(Debug, Clone)]
pub struct Linear {
    pub inputs: usize,
    pub outputs: usize,
    pieces: Vec<Piece>,
    /// First outputs of the biases, and where they lie; none if there is no bias.
    biases: Vec<(usize, Range<usize>)>,
}

/// Weights of one group as the passes read them.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// Effective weights.
    pub weights: &'a [f32],
    /// Stored parameters: V where a constraint makes the weight of it.
    pub stored: &'a [f32],
    /// Signs of constrained spans, by span.
    pub signs: &'a [Option<Vec<f32>>],
}

/// A group's gradient, and whether it is begun or added to; or that nobody wants it.
#[derive(Debug)]
pub struct Gradient<'a> {
    pub flat: &'a mut [f32],
    pub how: Accumulate,
    /// False: products by weights are left out, and `flat` is room for twice the width of the stream.
    pub wanted: bool,
}

impl<'a> Gradient<'a> {
    /// A gradient that goes into `flat`.
    pub fn new(flat: &'a mut [f32], how: Accumulate) -> Self {
        Self { flat, how, wanted: true }
    }

    /// None: only the gradient by the input goes on.
    pub fn unwanted(room: &'a mut [f32]) -> Self {
        Self { flat: room, how: Accumulate::Assign, wanted: false }
    }
}

impl Linear {
    /// y = x W^T, without the bias.
    pub fn forward(&self, gemm: &mut Gemm, weights: &[f32], x: &[f32], y: &mut [f32]) -> Result<()> {
        let n = x.len() / self.inputs;
        for p in &self.pieces {
            let w = Mat::rows(&weights[p.weight.clone()], p.outputs, self.inputs);
            let y = MatMut::new(&mut y[p.first..], n, p.outputs, self.outputs, 1);
            gemm.run(Mat::rows(x, n, self.inputs), w.t(), y, Accumulate::Assign)?;
        }
        Ok(())
    }

    /// The effective weights `[outputs, inputs]`; `scratch` serves where they do not lie together.
    pub fn whole<'a>(&self, weights: &'a [f32], scratch: &'a mut Floats) -> &'a [f32] {
        if let [one] = self.pieces.as_slice() {
            return &weights[one.weight.clone()];
        }
        scratch.resize(self.outputs * self.inputs);
        for p in &self.pieces {
            scratch[p.first * self.inputs..][..p.weight.len()].copy_from_slice(&weights[p.weight.clone()]);
        }
        scratch
    }

    /// dx = dy W.
    pub fn input_gradient(&self, gemm: &mut Gemm, weights: &[f32], dy: &[f32], dx: &mut [f32]) -> Result<()> {
        let n = dx.len() / self.inputs;
        let mut how = Accumulate::Assign;
        for p in &self.pieces {
            let w = Mat::rows(&weights[p.weight.clone()], p.outputs, self.inputs);
            let dy = Mat::new(&dy[p.first..], n, p.outputs, self.outputs, 1);
            gemm.run(dy, w, MatMut::rows(dx, n, self.inputs), how)?;
            how = Accumulate::Add;
        }
        Ok(())
    }

    /// The gradient by the stored weights, dy^T x where nothing constrains them. `scratch` holds the largest
    /// constrained piece.
    pub fn weight_gradient(
        &self,
        gemm: &mut Gemm,
        group: Group<'_>,
        dy: &[f32],
        x: &[f32],
        gradient: &mut Gradient<'_>,
        scratch: &mut [f32],
    ) -> Result<()> {
        if !gradient.wanted {
            return Ok(());
        }
        let n = x.len() / self.inputs;
        for p in &self.pieces {
            let dy = Mat::new(&dy[p.first..], n, p.outputs, self.outputs, 1);
            let x = Mat::rows(x, n, self.inputs);
            let dv = &mut gradient.flat[p.weight.clone()];
            match p.constrained {
                None => gemm.run(dy.t(), x, MatMut::rows(dv, p.outputs, self.inputs), gradient.how)?,
                Some(span) => {
                    let dw = &mut scratch[..p.weight.len()];
                    let to = MatMut::rows(dw, p.outputs, self.inputs);
                    gemm.run(dy.t(), x, to, Accumulate::Assign)?;
                    let signs = group.signs[span].as_deref();
                    softplus_weights_backward(Isa::best(), &group.stored[p.weight.clone()], signs, dw, dv);
                }
            }
        }
        Ok(())
    }

    /// The bias, if there is one; `scratch` serves where its parts do not lie together.
    pub fn bias<'a>(&self, weights: &'a [f32], scratch: &'a mut [f32]) -> Option<&'a [f32]> {
        match self.biases.as_slice() {
            [] => None,
            [(_, range)] => Some(&weights[range.clone()]),
            parts => {
                for (first, range) in parts {
                    scratch[*first..*first + range.len()].copy_from_slice(&weights[range.clone()]);
                }
                Some(&scratch[..self.outputs])
            }
        }
    }

    /// Whether it has a bias.
    pub fn has_bias(&self) -> bool {
        !self.biases.is_empty()
    }

    /// Adds the gradient of the whole bias to its parts.
    pub fn add_bias_gradient(&self, dbias: &[f32], gradient: &mut Gradient<'_>) {
        if !gradient.wanted {
            return;
        }
        for (first, range) in &self.biases {
            residual::add_to(Isa::best(), &mut gradient.flat[range.clone()], &dbias[*first..]);
        }
    }

    /// Ranges of the group that [`Self::weight_gradient`] overwrites if told to.
    fn assigned(&self) -> impl Iterator<Item = Range<usize>> {
        self.pieces.iter().filter(|p| p.constrained.is_none()).map(|p| p.weight.clone())
    }
}

/// The parameters of one block in its group.
#[derive(Debug, Clone)]
pub struct BlockAt {
    pub norm1: NormAt,
    pub norm2: NormAt,
    pub qkv: Linear,
    pub out: Linear,
    pub up: Linear,
    pub down: Linear,
    /// W: queries see the last W positions.
    pub window: Option<usize>,
}

/// Where heads lie in a row of queries, keys and values.
#[derive(Debug, Clone)]
pub struct HeadsAt {
    pub layout: attention::Layout,
    /// First elements of all heads that are turned.
    pub turned: Vec<usize>,
}

impl HeadsAt {
    fn new(config: &ModelConfig) -> Self {
        let (queries, key_values) = (size(config.num_attention_heads), size(config.num_key_value_heads));
        let dim = size(config.head_dim);
        let (first, step, row) = match config.family {
            // Per head query, key and value side by side.
            Family::GptNeox => ([0, dim, 2 * dim], 3 * dim, 3 * queries * dim),
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Ministral3 => {
                let (q, kv) = (queries * dim, key_values * dim);
                ([0, q, q + kv], dim, q + 2 * kv)
            }
        };
        let heads = |first: usize, n: usize| (0..n).map(move |i| first + i * step);
        let turned = heads(first[0], queries).chain(heads(first[1], key_values)).collect();
        Self { layout: attention::Layout { row, first, step, dim, queries, key_values }, turned }
    }
}

/// A decoder as the passes see it.
#[derive(Debug, Clone)]
pub struct Maps {
    pub hidden: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub context: usize,
    pub heads: HeadsAt,
    pub norm_eps: f32,
    pub function: Function,
    pub gated: bool,
    pub parallel_residual: bool,
    pub blocks: Vec<BlockAt>,
    pub embedding: Range<usize>,
    pub last_norm: NormAt,
    /// Absent: the embedding serves.
    pub out: Option<Range<usize>>,
    /// Radians a position of every pair of rotated dimensions.
    pub frequencies: Vec<f32>,
    /// The configuration that says what is multiplied by position.
    pub config: ModelConfig,
    /// By group, what must be zero before a gradient is begun: all that no product overwrites.
    pub cleared: Vec<Vec<Range<usize>>>,
}

impl Maps {
    /// Of a decoder with this layout.
    ///
    /// # Errors
    /// The layout is not this configuration's.
    pub fn new(config: &ModelConfig, layout: &Layout) -> Result<Self> {
        let layers = size(config.num_hidden_layers);
        if layout.groups.len() != layers + 2 {
            return Err(foreign());
        }
        let (hidden, intermediate) = (size(config.hidden_size), size(config.intermediate_size));
        let heads = HeadsAt::new(config);
        let mut blocks = Vec::new();
        for (i, group) in layout.groups[1..=layers].iter().enumerate() {
            let mut spans = Spans { group, next: 0 };
            let separate = config.family != Family::GptNeox;
            let ups = if config.gated_mlp { 2 } else { 1 };
            blocks.push(BlockAt {
                norm1: spans.norm(config.norm)?,
                norm2: spans.norm(config.norm)?,
                qkv: spans.linear(if separate { 3 } else { 1 }, hidden, config.qkv_bias)?,
                out: spans.linear(1, heads.layout.out_row(), config.attention_out_bias)?,
                up: spans.linear(ups, hidden, config.mlp_bias)?,
                down: spans.linear(1, intermediate, config.mlp_bias)?,
                window: config.window_of(i).map(size),
            });
        }
        let embedding = Spans { group: &layout.groups[0], next: 0 }.range()?;
        let mut head = Spans { group: &layout.groups[layers + 1], next: 0 };
        let last_norm = head.norm(config.norm)?;
        let out = if config.tie_word_embeddings { None } else { Some(head.range()?) };

        let mut assigned: Vec<Vec<Range<usize>>> = vec![Vec::new(); layers + 2];
        match &out {
            Some(out) => assigned[layers + 1].push(out.clone()),
            None => assigned[0].push(embedding.clone()),
        }
        for (block, assigned) in blocks.iter().zip(&mut assigned[1..]) {
            for linear in [&block.qkv, &block.out, &block.up, &block.down] {
                assigned.extend(linear.assigned());
            }
        }
        let cleared = layout.groups.iter().zip(&mut assigned).map(|(g, a)| gaps(a, g.len)).collect();
        Ok(Self {
            hidden,
            intermediate,
            vocab: size(config.vocab_size),
            context: size(config.max_position_embeddings),
            heads,
            norm_eps: config.norm_eps as f32,
            function: match config.hidden_act {
                Activation::Gelu => Function::Gelu,
                Activation::GeluTanh => Function::GeluTanh,
                Activation::Relu => Function::Relu,
                Activation::Softplus => Function::Softplus,
                Activation::Silu => Function::Silu,
            },
            gated: config.gated_mlp,
            parallel_residual: config.parallel_residual,
            blocks,
            embedding,
            last_norm,
            out,
            frequencies: config.inverse_frequencies(),
            config: config.clone(),
            cleared,
        })
    }

    /// Width of what the first map of the feed-forward layer gives.
    pub fn up_width(&self) -> usize {
        if self.gated { 2 * self.intermediate } else { self.intermediate }
    }

    /// Number of the head's group.
    pub fn head_group(&self) -> usize {
        self.blocks.len() + 1
    }

    /// Rows whose logits exist together: about 32 MiB of them, for products want many rows, and caches few.
    pub fn rows_of_logits(&self) -> usize {
        ((8 << 20) / self.vocab).clamp(128, 4096)
    }

    /// Elements of the largest piece whose parameter is not the weight itself.
    pub fn largest_constrained(&self) -> usize {
        let linears = self.blocks.iter().flat_map(|b| [&b.qkv, &b.out, &b.up, &b.down]);
        let pieces = linears.flat_map(|l| &l.pieces).filter(|p| p.constrained.is_some());
        pieces.map(|p| p.weight.len()).max().unwrap_or(0)
    }

    /// What a batch must be, that kernels rely on.
    ///
    /// # Errors
    /// It is something else.
    pub fn check(&self, batch: &Batch) -> Result<()> {
        let n = batch.rows * batch.seq_len;
        let per_position = [
            Some(batch.ids.len()),
            Some(batch.targets.len()),
            batch.positions.as_ref().map(Vec::len),
            batch.segments.as_ref().map(Vec::len),
            batch.loss_weights.as_ref().map(Vec::len),
        ];
        let per_row = [batch.prompt_lens.as_ref().map(Vec::len), batch.key_lens.as_ref().map(Vec::len)];
        if per_position.iter().flatten().any(|&len| len != n) || per_row.iter().flatten().any(|&len| len != batch.rows)
        {
            return Err(ComputeError::Failed(format!(
                "a batch of {} rows of {} tokens has parts of other lengths: report this",
                batch.rows, batch.seq_len
            )));
        }
        let longest = batch.positions.iter().flatten().map(|&p| i64::from(p) + 1).max().unwrap_or(0);
        let longest = usize::try_from(longest).unwrap_or(0).max(batch.seq_len);
        if longest > self.context || batch.positions.iter().flatten().any(|&p| p < 0) {
            return Err(ComputeError::Config(format!(
                "an input of {longest} positions is longer than the model's context of {}: shorten it",
                self.context
            )));
        }
        let outside = |&&id: &&i32| id < 0 || id as usize >= self.vocab;
        let mut targets = batch.targets.iter().filter(|&&t| i64::from(t) != crate::compute::data::IGNORED);
        if let Some(id) = batch.ids.iter().find(outside).or_else(|| targets.find(outside)) {
            return Err(ComputeError::Config(format!(
                "token id {id} is outside the vocabulary of {}: use the tokenizer of this model",
                self.vocab
            )));
        }
        Ok(())
    }
}

/// The ranges of `0..len` that `taken` leaves.
fn gaps(taken: &mut [Range<usize>], len: usize) -> Vec<Range<usize>> {
    taken.sort_by_key(|r| r.start);
    let mut gaps = Vec::new();
    let mut at = 0;
    for range in taken.iter() {
        if range.start > at {
            gaps.push(at..range.start);
        }
        at = range.end;
    }
    if len > at {
        gaps.push(at..len);
    }
    gaps
}

/// A size from a configuration that was checked to be positive.
fn size(n: i64) -> usize {
    usize::try_from(n).unwrap_or(0)
}

fn foreign() -> ComputeError {
    ComputeError::Failed("the parameters do not fill the decoder: load the model again".to_owned())
}

/// Takes a group's spans in their order.
struct Spans<'a> {
    group: &'a GroupLayout,
    next: usize,
}

impl Spans<'_> {
    fn take(&mut self) -> Result<(usize, &Span)> {
        let i = self.next;
        self.next += 1;
        self.group.spans.get(i).map(|s| (i, s)).ok_or_else(foreign)
    }

    fn range(&mut self) -> Result<Range<usize>> {
        Ok(self.take()?.1.range())
    }

    fn norm(&mut self, kind: Norm) -> Result<NormAt> {
        let weight = self.range()?;
        Ok(NormAt { weight, bias: if kind == Norm::Layer { Some(self.range()?) } else { None } })
    }

    /// `maps` weights, then as many biases.
    fn linear(&mut self, maps: usize, inputs: usize, bias: bool) -> Result<Linear> {
        let mut linear = Linear { inputs, outputs: 0, pieces: Vec::new(), biases: Vec::new() };
        for _ in 0..maps {
            let (number, span) = self.take()?;
            let constrained = span.constraint.is_reparametrised().then_some(number);
            let (weight, outputs) = (span.range(), span.len / inputs);
            match linear.pieces.last_mut() {
                Some(last)
                    if last.weight.end == weight.start && last.constrained.is_none() && constrained.is_none() =>
                {
                    last.weight.end = weight.end;
                    last.outputs += outputs;
                }
                _ => linear.pieces.push(Piece { weight, first: linear.outputs, outputs, constrained }),
            }
            linear.outputs += outputs;
        }
        let mut first = 0;
        for _ in 0..if bias { maps } else { 0 } {
            let range = self.range()?;
            let len = range.len();
            match linear.biases.last_mut() {
                Some((_, last)) if last.end == range.start => last.end = range.end,
                _ => linear.biases.push((first, range)),
            }
            first += len;
        }
        Ok(linear)
    }
}

/// Whether W is a function of V in any span.
pub fn is_constrained(group: &GroupLayout) -> bool {
    group.spans.iter().any(|s| s.constraint.is_reparametrised())
}
