//! Softmax attention over heads that lie in rows of queries, keys and values; forward and backward, in place.
//!
//! A query of row b sees an interval of that row's keys, which says causal, full, prefix and sliding-window masks,
//! segments and padding alike; the interval may have a gap, so that several continuations share what is before them.
//! Scores are made for a block of queries against all keys they see, are never kept, and are made again in the
//! backward pass from the logarithm of each row's sum; parts outside the intervals of a tile's queries are not
//! computed. Memory is O(T) a thread and head.
//!
//! A query that sees nothing gives zeros and has no gradient. The bits of a query's result depend on what it sees, in
//! its order, only: not on other queries, nor on how wide a gap is.
//! It does not turn queries and keys (see `rotary`). Attention to keys that are kept is in [`cached`].

mod cached;
mod products;
mod softmax;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::cached::{Cache, New};
pub use self::products::Span;
use self::products::{Block, Panels};
use super::dropout::{self, Dropout};
use super::gemm::Scratch;
use super::{Isa, Pool};

/// Where heads lie in a row of queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Floats of a token's row.
    pub row: usize,
    /// Where the first head of queries, of keys and of values begins in it.
    pub first: [usize; 3],
    /// Floats from a head to the next of its kind.
    pub step: usize,
    /// Floats of a head.
    pub dim: usize,
    /// Heads of queries.
    pub queries: usize,
    /// Heads of keys, and of values: each serves as many heads of queries as the next.
    pub key_values: usize,
}

/// A grain to attend in.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Where heads lie.
    pub layout: Layout,
    /// B.
    pub rows: usize,
    /// T.
    pub seq_len: usize,
    /// The first key that each token's query sees, `[B, T]`, counted in its own row.
    pub first: &'a [u32],
    /// The end of those keys, `[B, T]`, at most T; none if it is not above the first.
    pub end: &'a [u32],
    /// Keys between the first and the end that a query does not see after all, from and to, `[B, T]`; empty if no
    /// query has such a gap. Equal numbers: this query has none.
    pub gaps: &'a [[u32; 2]],
    /// Factor on scores, above zero.
    pub scale: f32,
    /// Dropout of probabilities: query i and key j of head n in row b are element
    /// `((b queries + n) T + i) T' + j` of the mask, T' being T rounded up to a whole number of its blocks.
    pub dropout: Option<&'a Dropout>,
}

/// What the forward pass read and wrote.
#[derive(Debug, Clone, Copy)]
pub struct Forward<'a> {
    /// `[B, T, row]`.
    pub qkv: &'a [f32],
    /// `[B, T, queries, dim]`.
    pub out: &'a [f32],
    /// `[B, queries, T]`.
    pub lse: &'a [f32],
}

/// Computes attention; keeps its scratch.
#[derive(Debug)]
pub struct Attention {
    isa: Isa,
    pool: Arc<Pool>,
    scratch: Vec<Own>,
}

/// Scratch of one thread.
#[derive(Debug, Default)]
struct Own {
    /// Keys and values as right factors.
    panels: [Scratch; 3],
    /// A block of queries and of output gradients as right factors.
    block: [Scratch; 2],
    /// Scores, and their gradients.
    scores: [Scratch; 2],
    /// For each query of a block.
    rows: Vec<f32>,
    /// Of new tokens beside a cache: logarithms of normalisers, which nobody reads, and the keys that queries see.
    lse: Vec<f32>,
    seen: Vec<u32>,
}

impl Layout {
    /// Floats of a token's output.
    pub fn out_row(&self) -> usize {
        self.queries * self.dim
    }

    /// Where a head begins in a row: of queries (0), or of the keys (1) or values (2) that serve it.
    fn head(&self, kind: usize, n: usize) -> usize {
        let n = if kind == 0 { n } else { n / self.group() };
        self.first[kind] + n * self.step
    }

    /// Heads of queries that share keys.
    fn group(&self) -> usize {
        self.queries / self.key_values
    }
}

impl Heads<'_> {
    /// Panics unless the slices of one pass fit.
    fn check(&self, qkv: usize, out: usize, lse: usize) {
        let Layout { row, first, step, dim, queries, key_values } = self.layout;
        let tokens = self.rows * self.seq_len;
        assert!(key_values > 0 && queries.is_multiple_of(key_values), "heads of keys divide heads of queries");
        let last = [queries, key_values, key_values].map(|heads| (heads - 1) * step + dim);
        assert!(first.iter().zip(last).all(|(first, last)| first + last <= row), "heads lie in their row");
        assert!(self.first.len() == tokens && self.end.len() == tokens, "every query has its keys");
        assert!(self.end.iter().all(|&end| end as usize <= self.seq_len), "keys end within their row");
        assert!(self.gaps.is_empty() || self.gaps.len() == tokens, "every query has its gap, or none has one");
        let seen = self.first.iter().zip(self.end);
        let inside = |((first, end), gap): ((&u32, &u32), &[u32; 2])| {
            gap[0] == gap[1] || (*first <= gap[0] && gap[0] < gap[1] && gap[1] <= *end)
        };
        assert!(seen.zip(self.gaps).all(inside), "a gap lies between the keys that are seen");
        assert!(
            qkv == tokens * row && out == tokens * queries * dim && lse == tokens * queries,
            "slices fit the shape"
        );
    }

    /// Queries of a block: as many scores as stay in a second-level cache.
    fn block(&self) -> usize {
        match self.seq_len {
            0..=256 => 128,
            257..=512 => 64,
            _ => 32,
        }
    }

    /// Blocks of queries of row `b`, with the keys that each sees.
    fn blocks(&self, b: usize) -> impl Iterator<Item = Block<'_>> {
        let (first, end) = (&self.first[b * self.seq_len..], &self.end[b * self.seq_len..]);
        let gaps = self.gaps.get(b * self.seq_len..).unwrap_or_default();
        (0..self.seq_len).step_by(self.block()).map(move |from| {
            let to = (from + self.block()).min(self.seq_len);
            Block::new(from, &first[from..to], &end[from..to], gaps.get(from..to).unwrap_or_default())
        })
    }

    /// The dropout mask's element of key 0 for the first query of a block.
    fn element(&self, b: usize, n: usize, block: &Block<'_>) -> u64 {
        let per_row = self.seq_len.next_multiple_of(dropout::BLOCK);
        (((b * self.layout.queries + n) * self.seq_len + block.from) * per_row) as u64
    }
}

impl Attention {
    /// With the widest instructions of this processor.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self::with_isa(pool, Isa::best())
    }

    /// With the instructions of `isa`.
    pub fn with_isa(pool: Arc<Pool>, isa: Isa) -> Self {
        let scratch = std::iter::repeat_with(Own::default).take(pool.threads()).collect();
        Self { isa, pool, scratch }
    }

    /// `out` `[B, T, queries, dim]` from `qkv` `[B, T, row]`; `lse` `[B, queries, T]` keeps the logarithm of each
    /// query's sum of exponentials for the way back.
    ///
    /// # Panics
    /// If a slice does not fit.
    pub fn forward(&mut self, heads: Heads<'_>, qkv: &[f32], out: &mut [f32], lse: &mut [f32]) {
        heads.check(qkv.len(), out.len(), lse.len());
        let (out, lse) = (Span::new(out), Span::new(lse));
        self.for_each_group(heads, |isa, own, b, kv| {
            // SAFETY: this thread alone has this row's heads of the group.
            unsafe { forward_group(isa, own, heads, b, kv, qkv, out, lse) };
        });
    }

    /// The gradient by `qkv` from that by `out`; every head's place in `dqkv` is overwritten.
    ///
    /// # Panics
    /// If a slice does not fit.
    pub fn backward(&mut self, heads: Heads<'_>, of: Forward<'_>, dout: &[f32], dqkv: &mut [f32]) {
        heads.check(of.qkv.len(), of.out.len(), of.lse.len());
        assert!(dout.len() == of.out.len() && dqkv.len() == of.qkv.len(), "slices fit the shape");
        let dqkv = Span::new(dqkv);
        self.for_each_group(heads, |isa, own, b, kv| {
            // SAFETY: this thread alone has this row's heads of the group.
            unsafe { backward_group(isa, own, heads, b, kv, of, dout, dqkv) };
        });
    }

    /// Rows and heads of keys, shared among the threads.
    fn for_each_group(&mut self, heads: Heads<'_>, f: impl Fn(Isa, &mut Own, usize, usize) + Sync) {
        let groups = heads.layout.key_values;
        let (isa, threads) = (self.isa, self.scratch.len());
        let scratch = Span::new(&mut self.scratch);
        self.pool.run(&|thread| {
            // SAFETY: each thread of the pool has the scratch of its number.
            let own = unsafe { &mut *scratch.at(thread) };
            for unit in (thread..heads.rows * groups).step_by(threads) {
                f(isa, own, unit / groups, unit % groups);
            }
        });
    }
}

/// Forward of the heads of queries that share head `kv` of keys, in row `b`.
///
/// # Safety
/// No other thread touches these heads' outputs.
#[allow(clippy::too_many_arguments)]
unsafe fn forward_group(
    isa: Isa,
    own: &mut Own,
    heads: Heads<'_>,
    b: usize,
    kv: usize,
    qkv: &[f32],
    out: Span<f32>,
    lse: Span<f32>,
) {
    let (at, t) = (heads.layout, heads.seq_len);
    let n0 = kv * at.group();
    let [keys, values, _] = &mut own.panels;
    let rows = |kind, n: usize| &qkv[b * t * at.row + at.head(kind, n)..];
    let keys = Panels::of_columns(isa, keys, rows(1, n0), at.row, t, at.dim);
    let values = Panels::of_rows(isa, values, rows(2, n0), at.row, t, at.dim);
    for n in n0..n0 + at.group() {
        for block in heads.blocks(b) {
            let scores = own.scores[0].floats(block.len() * block.stride());
            own.rows.resize(block.len(), 0.0);
            let queries = &rows(0, n)[block.from * at.row..];
            products::scores(isa, &block, queries, at.row, keys, scores);
            // SAFETY: this head's part of `lse`.
            let lse = unsafe { lse.slice((b * at.queries + n) * t + block.from, block.len()) };
            softmax::forward(isa, &block, heads.scale, scores, &mut own.rows, lse);
            if let Some(dropout) = heads.dropout {
                softmax::drop(isa, &block, dropout, heads.element(b, n, &block), t, scores);
            }
            // SAFETY: this head's part of these queries' outputs.
            unsafe {
                let out = out.at((b * t + block.from) * at.out_row() + n * at.dim);
                products::by_queries(isa, &block, scores, values, out, at.out_row());
                softmax::scale_rows(isa, &own.rows, out, at.out_row(), at.dim);
            }
        }
    }
}

/// Backward of the same.
///
/// # Safety
/// No other thread touches these heads' gradients.
#[allow(clippy::too_many_arguments)]
unsafe fn backward_group(
    isa: Isa,
    own: &mut Own,
    heads: Heads<'_>,
    b: usize,
    kv: usize,
    of: Forward<'_>,
    dout: &[f32],
    dqkv: Span<f32>,
) {
    let (at, t) = (heads.layout, heads.seq_len);
    let n0 = kv * at.group();
    let rows = |kind, n: usize| &of.qkv[b * t * at.row + at.head(kind, n)..];
    let gradient = |kind, n: usize| dqkv.at(b * t * at.row + at.head(kind, n));
    let [keys, keys_by_rows, values] = &mut own.panels;
    let keys = Panels::of_columns(isa, keys, rows(1, n0), at.row, t, at.dim);
    let keys_by_rows = Panels::of_rows(isa, keys_by_rows, rows(1, n0), at.row, t, at.dim);
    let values = Panels::of_columns(isa, values, rows(2, n0), at.row, t, at.dim);
    for kind in [1, 2] {
        for token in 0..t {
            // SAFETY: this head's place in a token's row.
            unsafe { std::slice::from_raw_parts_mut(gradient(kind, n0).wrapping_add(token * at.row), at.dim) }
                .fill(0.0);
        }
    }
    for n in n0..n0 + at.group() {
        for block in heads.blocks(b) {
            let [scores, dscores] = &mut own.scores;
            let scores = scores.floats(block.len() * block.stride());
            let dscores = dscores.floats(block.len() * block.stride());
            let queries = &rows(0, n)[block.from * at.row..];
            let first_out = (b * t + block.from) * at.out_row() + n * at.dim;
            let (out, dout) = (&of.out[first_out..], &dout[first_out..]);
            products::scores(isa, &block, queries, at.row, keys, scores);
            products::scores(isa, &block, dout, at.out_row(), values, dscores);
            own.rows.resize(block.len(), 0.0);
            softmax::row_dots(isa, out, dout, at.out_row(), at.dim, &mut own.rows);
            let lse = &of.lse[(b * at.queries + n) * t + block.from..][..block.len()];
            match heads.dropout {
                None => softmax::backward(isa, &block, heads.scale, lse, &own.rows, scores, dscores),
                Some(dropout) => {
                    let element = heads.element(b, n, &block);
                    softmax::backward_dropped(
                        isa,
                        &block,
                        heads.scale,
                        lse,
                        &own.rows,
                        scores,
                        dscores,
                        dropout,
                        element,
                        t,
                    );
                }
            }
            let [query_panels, dout_panels] = &mut own.block;
            let query_panels = Panels::of_rows(isa, query_panels, queries, at.row, block.len(), at.dim);
            let dout_panels = Panels::of_rows(isa, dout_panels, dout, at.out_row(), block.len(), at.dim);
            // SAFETY: these heads' places in this row's tokens.
            unsafe {
                let dq = gradient(0, n).wrapping_add(block.from * at.row);
                products::by_queries(isa, &block, dscores, keys_by_rows, dq, at.row);
                products::by_keys(isa, &block, dscores, query_panels, gradient(1, n0), at.row);
                products::by_keys(isa, &block, scores, dout_panels, gradient(2, n0), at.row);
            }
        }
    }
}
