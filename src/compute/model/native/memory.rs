//! What the passes keep and reuse: activations of every block, and scratch. It grows to the largest grain seen
//! and is not given back; a step allocates nothing.

use super::maps::Maps;
use crate::compute::kernels::memory::Floats;

/// Whether activations inside blocks are kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// All of them.
    #[default]
    Keep,
    /// Only the input of each block: its forward runs again right before its backward. The same bits, less memory,
    /// a third more work.
    Recompute,
}

/// What one block's backward reads of its forward. N positions; widths as in [`Maps`].
#[derive(Debug, Default)]
pub struct Kept {
    /// Statistics of both norms, `[N]` each; means of layer norms only.
    pub mean1: Floats,
    pub rstd1: Floats,
    pub mean2: Floats,
    pub rstd2: Floats,
    /// What the norms gave, `[N, h]`.
    pub norm1: Floats,
    pub norm2: Floats,
    /// Queries, keys and values, turned: `[N, qkv]`.
    pub qkv: Floats,
    /// Logarithms of the attention's normalisers, `[B, heads, T]`.
    pub lse: Floats,
    /// What attention gave, `[N, heads * d]`.
    pub attended: Floats,
    /// The stream between attention and feed-forward layer, `[N, h]`; used where one follows the other.
    pub middle: Floats,
    /// Before and after the activation, `[N, up]` and `[N, f]`.
    pub up: Floats,
    pub active: Floats,
}

impl Kept {
    /// Makes room for `attending` positions in the first half of a block and `finishing` in the second.
    pub fn fit(&mut self, maps: &Maps, attending: usize, finishing: usize) {
        let (h, heads) = (maps.hidden, &maps.heads.layout);
        self.mean1.resize(attending);
        self.rstd1.resize(attending);
        self.norm1.resize(attending * h);
        self.qkv.resize(attending * heads.row);
        self.lse.resize(attending * heads.queries);
        self.attended.resize(attending.max(finishing) * heads.out_row());
        self.mean2.resize(finishing);
        self.rstd2.resize(finishing);
        self.norm2.resize(finishing * h);
        self.middle.resize(if maps.parallel_residual { 0 } else { finishing * h });
        self.up.resize(finishing * maps.up_width());
        self.active.resize(finishing * maps.intermediate);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let statistics = [&self.mean1, &self.rstd1, &self.mean2, &self.rstd2, &self.lse];
        let streams = [&self.norm1, &self.norm2, &self.qkv, &self.attended, &self.middle, &self.up, &self.active];
        bytes_of(statistics.into_iter().chain(streams))
    }
}

/// Memory that is written and read within one block or one chunk.
#[derive(Debug, Default)]
pub struct Scratch {
    /// What a branch adds to the stream, or its gradient under dropout: `[N, h]`.
    pub branch: Floats,
    /// Gradient of a norm's output, `[N, h]`.
    pub dnorm: Floats,
    /// Gradients as in [`Kept`].
    pub dqkv: Floats,
    pub dattended: Floats,
    pub dactive: Floats,
    /// Of [`Kept::up`], where that must stay as it is.
    pub dup: Floats,
    /// Logits of a chunk of rows.
    pub logits: Floats,
    /// Rows of a few vectors: sums over rows that grow, and biases that do not lie together.
    pub row: Floats,
    pub bias: Floats,
    /// Gradient of an effective weight whose parameter is another.
    pub dweight: Floats,
}

impl Scratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let gradients = [&self.dnorm, &self.dqkv, &self.dattended, &self.dactive, &self.dup, &self.dweight];
        bytes_of([&self.branch, &self.logits, &self.row, &self.bias].into_iter().chain(gradients))
    }
}

/// Bytes of all of these.
pub fn bytes_of<'a>(floats: impl IntoIterator<Item = &'a Floats>) -> usize {
    floats.into_iter().map(|f| 4 * f.len()).sum()
}

/// All memory of the passes but weights and gradients.
#[derive(Debug, Default)]
pub struct Memory {
    /// Input of every block, and the last one's output, `[N, h]`; with recomputation and without.
    pub streams: Vec<Floats>,
    /// By block; one for all with recomputation.
    pub kept: Vec<Kept>,
    /// Last norm: statistics and result.
    pub mean: Floats,
    pub rstd: Floats,
    pub norm: Floats,
    /// Gradient of the stream, `[N, h]`.
    pub dstream: Floats,
    pub scratch: Scratch,
    /// Positions that have a label; labels and weights of a chunk of them.
    pub labelled: Vec<usize>,
    pub targets: Vec<i32>,
    pub weights: Vec<f32>,
    fits: Option<(usize, usize)>,
}

impl Memory {
    /// Makes everything as large as `rows` rows of `seq_len` tokens need.
    pub fn fit(&mut self, maps: &Maps, activations: Activations, rows: usize, seq_len: usize) {
        if self.fits == Some((rows, seq_len)) {
            return;
        }
        let (n, h) = (rows * seq_len, maps.hidden);
        let kept = match activations {
            Activations::Keep => maps.blocks.len(),
            Activations::Recompute => 1,
        };
        self.streams.resize_with(maps.blocks.len() + 1, Floats::default);
        self.kept.resize_with(kept, Kept::default);
        for stream in &mut self.streams {
            stream.resize(n * h);
        }
        for k in &mut self.kept {
            k.fit(maps, n, n);
        }
        self.mean.resize(n);
        self.rstd.resize(n);
        self.norm.resize(n * h);
        self.dstream.resize(n * h);
        let s = &mut self.scratch;
        s.branch.resize(n * h);
        s.dnorm.resize(n * h);
        s.dqkv.resize(n * maps.heads.layout.row);
        s.dattended.resize(n * maps.heads.layout.out_row());
        s.dactive.resize(n * maps.intermediate);
        s.logits.resize(n.min(maps.rows_of_logits()) * maps.vocab);
        let widest = maps.heads.layout.row.max(maps.up_width()).max(h);
        s.row.resize(2 * widest);
        s.bias.resize(2 * widest);
        s.dweight.resize(maps.largest_constrained());
        self.fits = Some((rows, seq_len));
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let own = [&self.mean, &self.rstd, &self.norm, &self.dstream];
        let kept: usize = self.kept.iter().map(Kept::bytes).sum();
        kept + self.scratch.bytes() + bytes_of(self.streams.iter().chain(own))
    }
}
