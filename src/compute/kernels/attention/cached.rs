//! Attention of new tokens to all tokens of their row, whose keys and values are kept: what generation computes.
//!
//! Keys and values are kept as the right factors that products read, so that nothing is packed again. The
//! operations and their order are those of [`Attention::forward`]: a token's output has the same bits whether its
//! row comes in one piece or token by token, and whatever rows are beside it.

use super::products::{self, Block, Panels, Span};
use super::{Attention, Layout, Own, softmax};
use crate::compute::kernels::Isa;
use crate::compute::kernels::gemm::PANEL;
use crate::compute::kernels::memory::Floats;

/// Queries of a row that are computed together.
const QUERIES: usize = 64;

/// Keys and values of one row of tokens, in every block of a decoder.
#[derive(Debug, Default)]
pub struct Cache {
    /// By block and head: keys in panels `[capacity / 32, dim, 32]`, then values in panels `[dim / 32, capacity, 32]`.
    data: Floats,
    key_values: usize,
    dim: usize,
    /// Tokens that fit; a whole number of panels.
    capacity: usize,
    /// Tokens that are in it, in every block.
    tokens: usize,
}

impl Cache {
    /// Room for `tokens` tokens in `blocks` blocks with these heads.
    pub fn new(layout: Layout, blocks: usize, tokens: usize) -> Self {
        let (key_values, dim, capacity) = (layout.key_values, layout.dim, tokens.next_multiple_of(PANEL));
        let mut cache = Self { data: Floats::default(), key_values, dim, capacity, tokens: 0 };
        cache.data.resize(blocks * key_values * cache.head());
        cache
    }

    /// Tokens in it.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * self.data.len()
    }

    /// Counts tokens whose keys and values were added in every block.
    pub fn grow(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Floats of one head: keys and values.
    fn head(&self) -> usize {
        self.capacity * (self.dim + self.dim.next_multiple_of(PANEL))
    }
}

/// New tokens of one row.
#[derive(Debug)]
pub struct New<'a> {
    /// What is known of the row; the new tokens are added.
    pub cache: &'a mut Cache,
    /// The first new token among all that are computed together.
    pub at: usize,
    /// First key that each new token sees, counted in its row.
    pub first: Vec<u32>,
    /// End of those keys: at most the tokens of the row with the new ones.
    pub end: Vec<u32>,
}

impl Attention {
    /// Adds keys and values of the new tokens to the caches of block `block`, and attends: `out` `[N, queries, dim]` from
    /// `qkv` `[N, row]`, N being the new tokens of all rows.
    ///
    /// # Panics
    /// If a slice does not fit, or a cache is full.
    pub fn cached(
        &mut self,
        layout: Layout,
        scale: f32,
        block: usize,
        rows: &mut [New<'_>],
        qkv: &[f32],
        out: &mut [f32],
    ) {
        for row in &*rows {
            let (count, cache) = (row.first.len(), &row.cache);
            let whole = cache.tokens + count;
            assert!(whole <= cache.capacity && row.end.len() == count, "new tokens fit their cache");
            assert!(row.end.iter().all(|&end| end as usize <= whole), "keys end within their row");
            assert!((row.at + count) * layout.row <= qkv.len(), "new tokens are among those computed");
            assert!((row.at + count) * layout.out_row() <= out.len(), "slices fit the shape");
            assert!((block + 1) * cache.key_values * cache.head() <= cache.data.len(), "the block is in the cache");
        }
        let data: Vec<Span<f32>> = rows.iter_mut().map(|row| Span::new(&mut row.cache.data)).collect();
        let (rows, out) = (&*rows, Span::new(out));
        let (isa, threads, groups) = (self.isa, self.scratch.len(), layout.key_values);
        let scratch = Span::new(&mut self.scratch);
        let share = |thread: usize| {
            // SAFETY: each thread of the pool has the scratch of its number.
            let own = unsafe { &mut *scratch.at(thread) };
            for unit in (thread..rows.len() * groups).step_by(threads) {
                let (row, kv) = (&rows[unit / groups], unit % groups);
                let head = row.cache.head();
                // SAFETY: this thread alone has this head of this row, in its cache and in `out`.
                unsafe {
                    let data = data[unit / groups].slice((block * groups + kv) * head, head);
                    group(isa, own, (layout, scale), row, kv, data, qkv, out);
                }
            }
        };
        self.pool.run(&share);
    }
}

/// The heads of queries that share head `kv` of keys, in one row.
///
/// # Safety
/// No other thread touches these heads' outputs.
#[allow(clippy::too_many_arguments)]
unsafe fn group(
    isa: Isa,
    own: &mut Own,
    (at, scale): (Layout, f32),
    new: &New<'_>,
    kv: usize,
    data: &mut [f32],
    qkv: &[f32],
    out: Span<f32>,
) {
    let (known, capacity, count) = (new.cache.tokens, new.cache.capacity, new.first.len());
    let n0 = kv * at.group();
    let (keys, values) = data.split_at_mut(capacity * at.dim);
    let rows = |kind, n: usize, token: usize| &qkv[(new.at + token) * at.row + at.head(kind, n)..];
    for i in 0..count {
        let token = known + i;
        let panel = &mut keys[token / PANEL * PANEL * at.dim..][..PANEL * at.dim];
        for (k, &key) in rows(1, n0, i)[..at.dim].iter().enumerate() {
            panel[k * PANEL + token % PANEL] = key;
        }
        for (p, value) in rows(2, n0, i)[..at.dim].chunks(PANEL).enumerate() {
            values[(p * capacity + token) * PANEL..][..value.len()].copy_from_slice(value);
        }
    }
    let keys = Panels::made(keys, at.dim, capacity);
    let values = Panels::made(values, capacity, at.dim);
    let Own { scores, rows: inverse, lse, seen, .. } = own;
    // The queries of a block: of one token in all heads, or of some tokens in one head.
    let mut attend = |block: Block<'_>, queries: &[f32], query_row: usize, out: *mut f32, out_row: usize| {
        let scores = scores[0].floats(block.len() * block.stride());
        inverse.resize(block.len(), 0.0);
        lse.resize(block.len(), 0.0);
        products::scores(isa, &block, queries, query_row, keys, scores);
        softmax::forward(isa, &block, scale, scores, inverse, lse);
        // SAFETY: these heads' outputs of these tokens.
        unsafe {
            products::by_queries(isa, &block, scores, values, out, out_row);
            softmax::scale_rows(isa, inverse, out, out_row, at.dim);
        }
    };
    if count == 1 {
        seen.clear();
        seen.extend(std::iter::repeat_n(new.first[0], at.group()).chain(std::iter::repeat_n(new.end[0], at.group())));
        let (first, end) = seen.split_at(at.group());
        let to = out.at(new.at * at.out_row() + n0 * at.dim);
        attend(Block::new(0, first, end, &[]), rows(0, n0, 0), at.step, to, at.dim);
        return;
    }
    for n in n0..n0 + at.group() {
        for from in (0..count).step_by(QUERIES) {
            let until = (from + QUERIES).min(count);
            let block = Block::new(from, &new.first[from..until], &new.end[from..until], &[]);
            let to = out.at((new.at + from) * at.out_row() + n * at.dim);
            attend(block, rows(0, n, from), at.row, to, at.out_row());
        }
    }
}
