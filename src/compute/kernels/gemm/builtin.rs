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
const DEPTH: usize = 256;

/// Columns of B that are packed at a time.
const COLUMNS: usize = 2048;

/// Tiles of A that are packed at a time: about 230 KiB, part of a second-level cache.
const TILES: usize = 16;

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
struct Parts<T>(*mut T);

// SAFETY: every thread takes the element, or the rows and columns, of its own number.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    fn at(&self, offset: usize) -> *mut T {
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

/// One thread's part of C.
fn part(isa: Isa, blocks: &mut Blocks, a: Mat<'_>, b: Mat<'_>, out: Out<'_>) {
    let depth_all = a.cols;
    let tiles = out.rows.div_ceil(tile_rows(isa));
    // Tiles of nearly equal height: a last one of two rows would be slow.
    let row_of = |t: usize| t * out.rows / tiles;
    let packs = packs_a(a, out.cols);
    for j0 in (0..out.cols).step_by(COLUMNS) {
        let cols = (out.cols - j0).min(COLUMNS);
        // At least one round, so that C is written when there is no k.
        for k0 in (0..depth_all.max(1)).step_by(DEPTH) {
            let depth = (depth_all - k0).min(DEPTH);
            let panels = blocks.b.floats(cols.next_multiple_of(PANEL) * depth);
            pack_b(isa, b.row_range(k0, depth).col_range(j0, cols), panels);
            for t0 in (0..tiles).step_by(TILES) {
                let t1 = (t0 + TILES).min(tiles);
                let (i0, i1) = (row_of(t0), row_of(t1));
                let a_block = a.row_range(i0, i1 - i0).col_range(k0, depth);
                let packed = blocks.a.floats(if packs { (i1 - i0) * depth } else { 0 });
                if packs {
                    for t in t0..t1 {
                        let (i, rows) = (row_of(t) - i0, row_of(t + 1) - row_of(t));
                        pack_a(isa, a_block.row_range(i, rows), &mut packed[i * depth..]);
                    }
                }
                for j in (0..cols).step_by(PANEL) {
                    for t in t0..t1 {
                        let (i, rows) = (row_of(t), row_of(t + 1) - row_of(t));
                        let (a, a_row, a_k) = if packs {
                            (packed[(i - i0) * depth..].as_ptr(), 1, rows)
                        } else {
                            (a_block.row_range(i - i0, rows).data.as_ptr(), a_block.row_stride, a_block.col_stride)
                        };
                        let start = match (k0, out.how, out.bias) {
                            (0, Accumulate::Assign, Some(bias)) => Start::Bias(bias[j0 + j..].as_ptr()),
                            (0, Accumulate::Assign, None) => Start::Zero,
                            _ => Start::Add,
                        };
                        // Inside C: the part's rows and columns.
                        let c = out.c.wrapping_add(i * out.row + j0 + j);
                        let cols = (cols - j).min(PANEL);
                        let b = panels[j * depth..].as_ptr();
                        let tile = Tile { rows, cols, depth, a, a_row, a_k, b, c, c_row: out.row, start };
                        // SAFETY: the tile lies in A's block, in one panel and in C, which this thread alone writes.
                        unsafe { run_tile(isa, &tile) };
                    }
                }
            }
        }
    }
}

/// Whether tiles of A are copied first. A copy costs as much as a fraction of a panel's work; it saves cache misses
/// where rows are a power of two apart, and wide strides.
fn packs_a(a: Mat<'_>, n: usize) -> bool {
    n > 2 * PANEL || (a.row_stride * size_of::<f32>()).is_multiple_of(4096)
}
