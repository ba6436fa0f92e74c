//! Our own product: blocks that fit the caches around the innermost loops of one instruction set.
//!
//! An element of C is a sum over blocks of [`DEPTH`] k, added in order to what C held or to the bias; within a
//! block it is one chain of fused multiply-adds from zero, in order of k. Nothing else is promised or needed: how
//! rows and columns are tiled changes no bit, so tiles may differ by instruction set, shape and thread.

use super::matrix::{Mat, MatMut};
use super::pack::{PANEL, Scratch, pack_a, pack_b};
use super::tile::{Start, Tile, run_tile, tile_rows};
use crate::compute::kernels::{Accumulate, Isa, Pool};

/// Values of k in a block: part of what the bits are.
pub(super) const DEPTH: usize = 512;

/// Columns of B that are packed at a time.
const COLUMNS: usize = 2048;

/// Tiles of A that are packed at a time: about 230 KiB, part of a second-level cache.
const TILES: usize = 8;

/// Tiles of A that are packed whole when there are no more: about 550 KiB.
const TILES_AT_ONCE: usize = 19;

/// Multiply-adds below which other threads are not woken.
const ALONE: usize = 1 << 18;

/// Scratch of one thread.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    a: Scratch,
    b: Scratch,
}

/// Where a part of C goes.
#[derive(Clone, Copy)]
struct Out<'a> {
    c: *mut f32,
    row: usize,
    rows: usize,
    cols: usize,
    how: Accumulate,
    /// From the part's first column on.
    bias: Option<&'a [f32]>,
}

/// Memory that each thread uses its own part of.
pub(super) struct Parts<T>(pub(super) *mut T);

// SAFETY: every thread takes the element, or the rows and columns, of its own number.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    pub(super) fn at(&self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

/// `C = A B` (+ bias) or `C += A B` for C with contiguous rows; one of `blocks` for each thread of the pool.
#[allow(clippy::too_many_arguments)] // The three matrices, what to do, and what to do it with.
pub(super) fn run(
    isa: Isa,
    pool: &Pool,
    blocks: &mut [Blocks],
    a: Mat<'_>,
    b: Mat<'_>,
    c: MatMut<'_>,
    how: Accumulate,
    bias: Option<&[f32]>,
) {
    let (m, n) = (c.rows, c.cols);
    if m == 0 || n == 0 {
        return;
    }
    let threads = if m * n * a.cols.max(1) < ALONE { 1 } else { pool.threads().min(blocks.len()) };
    let row = c.row_stride;
    if threads == 1 {
        part(isa, &mut blocks[0], a, b, Out { c: c.data.as_mut_ptr(), row, rows: m, cols: n, how, bias });
        return;
    }
    let (scratch, out) = (Parts(blocks.as_mut_ptr()), Parts(c.data.as_mut_ptr()));
    // The longer side is cut, into whole panels or tiles: less is packed twice.
    let by_cols = n >= m;
    let (size, unit) = if by_cols { (n, PANEL) } else { (m, 8) };
    let units = size.div_ceil(unit);
    pool.run(&|thread| {
        if thread >= threads {
            return;
        }
        let first = (thread * units / threads * unit).min(size);
        let last = ((thread + 1) * units / threads * unit).min(size);
        if first == last {
            return;
        }
        // SAFETY: `blocks` has an element for each thread.
        let blocks = unsafe { &mut *scratch.at(thread) };
        let bias = |first: usize, last: usize| bias.map(|bias| &bias[first..last]);
        if by_cols {
            let out = Out { c: out.at(first), row, rows: m, cols: last - first, how, bias: bias(first, last) };
            part(isa, blocks, a, b.col_range(first, last - first), out);
        } else {
            let out = Out { c: out.at(first * row), row, rows: last - first, cols: n, how, bias: bias(0, n) };
            part(isa, blocks, a.row_range(first, last - first), b, out);
        }
    });
}

/// `C = A B` in blocks of `width` columns, on the calling thread: each block of C is made in `c`, its rows contiguous, and
/// given to `each` with the number of its first column before the next takes its place. A is packed once.
pub(super) fn blocks(
    isa: Isa,
    blocks: &mut Blocks,
    a: Mat<'_>,
    b: Mat<'_>,
    (width, c): (usize, &mut [f32]),
    mut each: impl FnMut(usize, &mut [f32]),
) {
    let (rows, depth, n) = (a.rows, a.cols, b.cols);
    let tiles = Tiles { count: rows.div_ceil(tile_rows(isa)), rows };
    let packed = blocks.a.floats(rows * depth);
    for k in (0..depth).step_by(DEPTH) {
        let part = a.col_range(k, (depth - k).min(DEPTH));
        for t in 0..tiles.count {
            let (first, end) = (tiles.first(t), tiles.first(t + 1));
            pack_a(isa, part.row_range(first, end - first), &mut packed[k * rows + first * part.cols..]);
        }
    }
    let packed = &*packed;
    let left = |k: usize, depth: usize| Left {
        a: a.col_range(k, depth),
        packed: Some(&packed[k * rows..][..rows * depth]),
        tiles,
        range: 0..tiles.count,
    };
    // At least one round of k, so that C is written when there is none.
    let lefts: Vec<_> = (0..depth.max(1)).step_by(DEPTH).map(|k| (k, left(k, (depth - k).min(DEPTH)))).collect();
    let panel = blocks.b.floats(PANEL * depth.min(DEPTH));
    for first in (0..n).step_by(width) {
        let cols = width.min(n - first);
        let c = &mut c[..rows * cols];
        let out = Out { c: c.as_mut_ptr(), row: cols, rows, cols, how: Accumulate::Assign, bias: None };
        for j in (0..cols).step_by(PANEL) {
            for (k, left) in &lefts {
                let right = b.row_range(*k, left.a.cols).col_range(first + j, (cols - j).min(PANEL));
                pack_b(isa, right, panel);
                multiply(isa, left, panel, &out, j, *k == 0);
            }
        }
        each(first, c);
    }
}

/// One thread's part of C.
fn part(isa: Isa, blocks: &mut Blocks, a: Mat<'_>, b: Mat<'_>, out: Out<'_>) {
    let tiles = Tiles { count: out.rows.div_ceil(tile_rows(isa)), rows: out.rows };
    let packs = packs_a(a, out.cols);
    // At least one round of k, so that C is written when there is none.
    let depths = || (0..a.cols.max(1)).step_by(DEPTH).map(|k| (k, (a.cols - k).min(DEPTH)));
    if tiles.count <= TILES_AT_ONCE {
        // All of A stays in the cache: each panel of B is packed just before its only use.
        for (k, depth) in depths() {
            let left = Left::new(isa, &mut blocks.a, a.col_range(k, depth), tiles, 0..tiles.count, packs);
            let panel = blocks.b.floats(PANEL * depth);
            for j in (0..out.cols).step_by(PANEL) {
                pack_b(isa, b.row_range(k, depth).col_range(j, (out.cols - j).min(PANEL)), panel);
                multiply(isa, &left, panel, &out, j, k == 0);
            }
        }
        return;
    }
    for j0 in (0..out.cols).step_by(COLUMNS) {
        let cols = (out.cols - j0).min(COLUMNS);
        for (k, depth) in depths() {
            let panels = blocks.b.floats(cols.next_multiple_of(PANEL) * depth);
            pack_b(isa, b.row_range(k, depth).col_range(j0, cols), panels);
            for t in (0..tiles.count).step_by(TILES) {
                let range = t..(t + TILES).min(tiles.count);
                let left = Left::new(isa, &mut blocks.a, a.col_range(k, depth), tiles, range, packs);
                for j in (0..cols).step_by(PANEL) {
                    multiply(isa, &left, &panels[j * depth..], &out, j0 + j, k == 0);
                }
            }
        }
    }
}

/// Tiles of nearly equal height over all rows: a last one of two rows would be slow.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    pub(super) count: usize,
    pub(super) rows: usize,
}

impl Tiles {
    /// The first row of a tile.
    pub(super) fn first(self, tile: usize) -> usize {
        tile * self.rows / self.count
    }
}

/// Some tiles' rows of A, all of the columns that it was made from; packed, or where they are.
struct Left<'a> {
    a: Mat<'a>,
    packed: Option<&'a [f32]>,
    tiles: Tiles,
    range: std::ops::Range<usize>,
}

impl<'a> Left<'a> {
    fn new(
        isa: Isa,
        scratch: &'a mut Scratch,
        a: Mat<'a>,
        tiles: Tiles,
        range: std::ops::Range<usize>,
        packs: bool,
    ) -> Self {
        let (from, to) = (tiles.first(range.start), tiles.first(range.end));
        let a = a.row_range(from, to - from);
        let packed = packs.then(|| {
            let packed = scratch.floats(a.rows * a.cols);
            for t in range.clone() {
                let (first, end) = (tiles.first(t) - from, tiles.first(t + 1) - from);
                pack_a(isa, a.row_range(first, end - first), &mut packed[first * a.cols..]);
            }
            &*packed
        });
        Self { a, packed, tiles, range }
    }

    /// Address, stride of rows and stride of k of `rows` rows from `first` on.
    fn at(&self, first: usize, rows: usize) -> (*const f32, usize, usize) {
        match self.packed {
            Some(packed) => (packed[first * self.a.cols..].as_ptr(), 1, rows),
            None => (self.a.row_range(first, rows).data.as_ptr(), self.a.row_stride, self.a.col_stride),
        }
    }
}

/// Some tiles' rows of one panel of C, which begins with column `j`; `begins` if these are the first k.
fn multiply(isa: Isa, left: &Left<'_>, panel: &[f32], out: &Out<'_>, j: usize, begins: bool) {
    let (depth, tiles) = (left.a.cols, left.tiles);
    let start = match (begins, out.how, out.bias) {
        (true, Accumulate::Assign, Some(bias)) => Start::Bias(bias[j..].as_ptr()),
        (true, Accumulate::Assign, None) => Start::Zero,
        _ => Start::Add,
    };
    assert!(panel.len() >= PANEL * depth);
    for t in left.range.clone() {
        let (i, end) = (tiles.first(t), tiles.first(t + 1));
        let (a, a_row, a_k) = left.at(i - tiles.first(left.range.start), end - i);
        // Inside C: the part's rows and columns.
        let c = out.c.wrapping_add(i * out.row + j);
        let (rows, cols, b) = (end - i, (out.cols - j).min(PANEL), panel.as_ptr());
        let tile = Tile { rows, cols, depth, a, a_row, a_k, b, c, c_row: out.row, start };
        // SAFETY: the tile lies in A's block, in one panel and in C, which this thread alone writes.
        unsafe { run_tile(isa, &tile) };
    }
}

/// Whether tiles of A are copied first. A copy costs as much as a fraction of a panel's work; it saves cache misses
/// where rows are a power of two apart, and wide strides.
fn packs_a(a: Mat<'_>, n: usize) -> bool {
    n > 2 * PANEL || (a.row_stride * size_of::<f32>()).is_multiple_of(4096)
}
