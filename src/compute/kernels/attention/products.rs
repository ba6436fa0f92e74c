//! The matrix products of attention, tile by tile, without the tiles that nobody sees.

use crate::compute::kernels::Isa;
use crate::compute::kernels::dropout;
use crate::compute::kernels::gemm::{Mat, PANEL, Scratch, Start, Tile, pack_b, run_tile, tile_rows};

/// Memory of which every thread writes its own part.
#[derive(Debug)]
pub struct Span<T> {
    data: *mut T,
    len: usize,
}

impl<T> Clone for Span<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Span<T> {}

// SAFETY: who takes a part promises that no other thread has it.
unsafe impl<T: Send> Sync for Span<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Span<T> {}

impl<T> Span<T> {
    /// The whole.
    pub fn new(data: &mut [T]) -> Self {
        Self { data: data.as_mut_ptr(), len: data.len() }
    }

    /// The address of an element.
    pub fn at(&self, offset: usize) -> *mut T {
        debug_assert!(offset <= self.len);
        self.data.wrapping_add(offset)
    }

    /// A part.
    ///
    /// # Safety
    /// Nobody else uses it while the slice lives, nor does the slice outlive the memory.
    pub unsafe fn slice<'a>(&self, offset: usize, len: usize) -> &'a mut [T] {
        assert!(offset + len <= self.len, "a part lies in its whole");
        // SAFETY: in bounds, and the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset), len) }
    }
}

/// Consecutive queries of one row of tokens, with the keys that they see.
///
/// Scores of a block are rows of [`Block::stride`] floats, of which the first is for key [`Block::lo`].
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// The first query.
    pub from: usize,
    /// First key that each query sees.
    pub first: &'a [u32],
    /// End of those keys.
    pub end: &'a [u32],
    /// Keys between those that each query does not see; empty if there are none.
    pub gaps: &'a [[u32; 2]],
    /// Keys from here on are seen by some query; a whole number of panels and of blocks of dropout.
    pub lo: usize,
    /// Keys from here on are seen by none.
    pub hi: usize,
}

impl<'a> Block<'a> {
    /// Of the queries from `from` on.
    pub fn new(from: usize, first: &'a [u32], end: &'a [u32], gaps: &'a [[u32; 2]]) -> Self {
        let block = Self { from, first, end, gaps, lo: 0, hi: 0 };
        let (lo, hi) = block.seen(0, first.len());
        Self { lo: lo / dropout::BLOCK * dropout::BLOCK, hi, ..block }
    }

    /// Queries.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// Floats from a query's scores to the next's: not a power of two, whose rows would share cache sets.
    pub fn stride(&self) -> usize {
        (self.hi - self.lo).next_multiple_of(dropout::BLOCK) + 16
    }

    /// Keys `(from, to)` that queries `a..b` of the block see, their gaps among them, or `(0, 0)`.
    fn seen(&self, a: usize, b: usize) -> (usize, usize) {
        let (mut from, mut to) = (u32::MAX, 0);
        for (&first, &end) in self.first[a..b].iter().zip(&self.end[a..b]) {
            if first < end {
                from = from.min(first);
                to = to.max(end);
            }
        }
        if to == 0 { (0, 0) } else { (from as usize, to as usize) }
    }

    /// Queries `(from, to)` of the block between which are all that see any of keys `a..b`.
    fn seeing(&self, a: usize, b: usize) -> (usize, usize) {
        let sees = |i: &usize| {
            let (first, end) = (self.first[*i] as usize, self.end[*i] as usize);
            first < b && end > a && first < end
        };
        let from = (0..self.len()).find(sees).unwrap_or(0);
        let to = (from..self.len()).rev().find(sees).map_or(from, |i| i + 1);
        (from, to)
    }
}

/// A right factor of `depth` rows in panels of [`PANEL`] columns.
#[derive(Debug, Clone, Copy)]
pub struct Panels<'a> {
    data: &'a [f32],
    depth: usize,
    cols: usize,
}

impl<'a> Panels<'a> {
    /// `tokens` rows of `dim`, `row` floats apart, as rows of the factor.
    pub fn of_rows(isa: Isa, to: &'a mut Scratch, from: &[f32], row: usize, tokens: usize, dim: usize) -> Self {
        Self::pack(isa, to, Mat::new(from, tokens, dim, row, 1))
    }

    /// The same rows as columns of the factor.
    pub fn of_columns(isa: Isa, to: &'a mut Scratch, from: &[f32], row: usize, tokens: usize, dim: usize) -> Self {
        Self::pack(isa, to, Mat::new(from, tokens, dim, row, 1).t())
    }

    /// Of `depth` rows and `cols` columns that lie in panels already.
    pub fn made(data: &'a [f32], depth: usize, cols: usize) -> Self {
        assert!(data.len() >= depth * cols.next_multiple_of(PANEL), "panels hold their factor");
        Self { data, depth, cols }
    }

    fn pack(isa: Isa, to: &'a mut Scratch, b: Mat<'_>) -> Self {
        let data = to.floats(b.rows * b.cols.next_multiple_of(PANEL));
        pack_b(isa, b, data);
        Self { data, depth: b.rows, cols: b.cols }
    }

    /// The address of row `k` of the panel that begins with column `j`.
    fn at(&self, k: usize, j: usize) -> *const f32 {
        debug_assert!(k <= self.depth && j.is_multiple_of(PANEL));
        self.data[j * self.depth + k * PANEL..].as_ptr()
    }
}

/// Rows of tiles of nearly equal height in `rows`.
fn tiles(isa: Isa, rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(tile_rows(isa));
    (0..count).map(move |t| (t * rows / count, (t + 1) * rows / count))
}

/// Scores of a block: `left` (its rows `row` floats apart) times the columns of `right`, where some query of a tile
/// sees some key of a panel; the others are left as they are.
pub fn scores(isa: Isa, block: &Block<'_>, left: &[f32], row: usize, right: Panels<'_>, to: &mut [f32]) {
    let left = Mat::new(left, block.len(), right.depth, row, 1);
    let stride = block.stride();
    assert!(to.len() >= block.len() * stride && block.hi <= right.cols);
    for (a, b) in tiles(isa, block.len()) {
        let (from, to_key) = block.seen(a, b);
        for j in (from / PANEL * PANEL..to_key).step_by(PANEL) {
            let tile = Tile {
                rows: b - a,
                cols: PANEL,
                depth: right.depth,
                a: left.address(a, 0),
                a_row: row,
                a_k: 1,
                b: right.at(0, j),
                c: to[a * stride + j - block.lo..].as_mut_ptr(),
                c_row: stride,
                start: Start::Zero,
            };
            // SAFETY: the left factor was checked; a panel has `depth` rows; a whole panel of columns fits a
            // block's stride, and its rows fit `to`.
            unsafe { run_tile(isa, &tile) };
        }
    }
}

/// For each query of the block its scores times the rows of `right`: overwrites `len` rows of `to`, `row` apart.
///
/// # Safety
/// Those rows' floats, as many as `right` has columns, are writable by this thread alone.
pub unsafe fn by_queries(isa: Isa, block: &Block<'_>, scores: &[f32], right: Panels<'_>, to: *mut f32, row: usize) {
    let stride = block.stride();
    assert!(scores.len() >= block.len() * stride && block.hi <= right.depth);
    for (a, b) in tiles(isa, block.len()) {
        let (from, to_key) = block.seen(a, b);
        let left = &scores[a * stride + from.saturating_sub(block.lo)..];
        for j in (0..right.cols).step_by(PANEL) {
            let tile = Tile {
                rows: b - a,
                cols: (right.cols - j).min(PANEL),
                depth: to_key - from,
                a: left.as_ptr(),
                a_row: stride,
                a_k: 1,
                b: right.at(from, j),
                c: to.wrapping_add(a * row + j),
                c_row: row,
                start: Start::Zero,
            };
            // SAFETY: keys that a tile sees lie in the block's scores and in the panel; the caller's promise for C.
            unsafe { run_tile(isa, &tile) };
        }
    }
}

/// For each key that the block sees its scores times the rows of `right`, one for each query: added to that key's row
/// of `to`.
///
/// # Safety
/// Rows `lo..hi` of `to`, `row` floats apart and as long as `right` has columns, are writable by this thread alone.
pub unsafe fn by_keys(isa: Isa, block: &Block<'_>, scores: &[f32], right: Panels<'_>, to: *mut f32, row: usize) {
    let stride = block.stride();
    assert!(scores.len() >= block.len() * stride && right.depth == block.len());
    for (a, b) in tiles(isa, block.hi - block.lo) {
        let (from, to_query) = block.seeing(block.lo + a, block.lo + b);
        if from == to_query {
            continue;
        }
        let left = &scores[from * stride + a..];
        for j in (0..right.cols).step_by(PANEL) {
            let tile = Tile {
                rows: b - a,
                cols: (right.cols - j).min(PANEL),
                depth: to_query - from,
                a: left.as_ptr(),
                a_row: 1,
                a_k: stride,
                b: right.at(from, j),
                c: to.wrapping_add((block.lo + a) * row + j),
                c_row: row,
                start: Start::Add,
            };
            // SAFETY: the queries and keys lie in the block's scores, the queries in the panel; the caller's promise
            // for C.
            unsafe { run_tile(isa, &tile) };
        }
    }
}
