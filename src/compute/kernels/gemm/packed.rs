//! A right factor that is packed once and multiplied often: the weights of a map while text is generated, token by
//! token, when a product has few rows and takes as long as its weights take to be read.
//!
//! An element of the result is the builtin backend's, bit for bit: blocks of [`DEPTH`] k, each one chain of fused
//! multiply-adds from zero, added in order. So it depends on its own row of A and column of B only, and not on how
//! many rows are multiplied together.

use super::builtin::{DEPTH, Parts, Tiles};
use super::matrix::Mat;
use super::pack::{PANEL, Scratch, pack_a, pack_b};
use super::tile::{Start, Tile, run_tile, tile_rows};
use crate::compute::kernels::memory::Floats;
use crate::compute::kernels::{Isa, Pool};

/// Multiply-adds below which other threads are not woken: a pool that waits is woken within some microseconds.
const ALONE: usize = 1 << 16;

/// B `[k, n]` in panels of 32 columns: `panel[32 k + j]`.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    data: Floats,
    depth: usize,
    cols: usize,
}

impl Packed {
    /// The factor of `x W^T` for a weight matrix `[outputs, inputs]` with contiguous rows.
    ///
    /// # Panics
    /// If `weights` is shorter than that.
    pub fn transposed(isa: Isa, weights: &[f32], outputs: usize, inputs: usize) -> Self {
        let mut data = Floats::default();
        data.resize(outputs.next_multiple_of(PANEL) * inputs);
        pack_b(isa, Mat::rows(weights, outputs, inputs).t(), &mut data);
        Self { data, depth: inputs, cols: outputs }
    }

    /// Columns n.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * self.data.len()
    }

    /// `Y = X B`: x `[m, k]`, y `[m, n]`, both with contiguous rows. Threads share the panels.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn product(&self, isa: Isa, pool: &Pool, x: &[f32], y: &mut [f32], scratch: &mut Scratch) {
        let Some(m) = y.len().checked_div(self.cols) else { return };
        assert!(x.len() == m * self.depth && y.len() == m * self.cols, "the shapes of a product fit");
        if m == 0 {
            return;
        }
        let tiles = Tiles { count: m.div_ceil(tile_rows(isa)), rows: m };
        // A single row is contiguous as it is; rows that are a power of two apart would share cache sets.
        let left = if m == 1 { x } else { pack(isa, tiles, Mat::rows(x, m, self.depth), scratch) };
        let panels = self.cols.div_ceil(PANEL);
        let threads = if m * self.depth * self.cols < ALONE { 1 } else { pool.threads() };
        let out = Parts(y.as_mut_ptr());
        let share = |thread: usize| {
            for panel in thread * panels / threads..(thread + 1) * panels / threads {
                // SAFETY: this thread alone writes the columns of its panels, in rows of `cols` floats.
                unsafe { self.panel(isa, tiles, left, panel, out.at(panel * PANEL)) };
            }
        };
        if threads == 1 {
            share(0);
        } else {
            pool.run(&share);
        }
    }

    /// All rows of one panel of Y, which begins at `c`.
    ///
    /// # Safety
    /// `c` begins the columns of this panel in `tiles.rows` rows of [`Self::cols`] floats that nobody else uses.
    unsafe fn panel(&self, isa: Isa, tiles: Tiles, left: &[f32], panel: usize, c: *mut f32) {
        let (j, b) = (panel * PANEL, &self.data[panel * PANEL * self.depth..][..PANEL * self.depth]);
        let cols = (self.cols - j).min(PANEL);
        let mut k = 0;
        // At least one round, so that Y is written when there is no k.
        loop {
            let depth = (self.depth - k).min(DEPTH);
            for t in 0..tiles.count {
                let (first, end) = (tiles.first(t), tiles.first(t + 1));
                let rows = end - first;
                // A tile's rows lie together: `rows` floats a k.
                let a = left[first * self.depth + k * rows..].as_ptr();
                let tile = Tile {
                    rows,
                    cols,
                    depth,
                    a,
                    a_row: 1,
                    a_k: rows,
                    b: b[PANEL * k..].as_ptr(),
                    c: c.wrapping_add(first * self.cols),
                    c_row: self.cols,
                    start: if k == 0 { Start::Zero } else { Start::Add },
                };
                // SAFETY: the tile lies in the packed rows, in one panel, and in columns that the caller promised.
                unsafe { run_tile(isa, &tile) };
            }
            k += depth;
            if k >= self.depth {
                return;
            }
        }
    }
}

/// The rows of A, tile after tile.
fn pack<'a>(isa: Isa, tiles: Tiles, a: Mat<'_>, scratch: &'a mut Scratch) -> &'a [f32] {
    let packed = scratch.floats(a.rows * a.cols);
    for t in 0..tiles.count {
        let (first, end) = (tiles.first(t), tiles.first(t + 1));
        pack_a(isa, a.row_range(first, end - first), &mut packed[first * a.cols..]);
    }
    packed
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Backend, Gemm, MatMut};
    use super::*;
    use crate::compute::kernels::Accumulate;
    use crate::compute::kernels::testing::numbers;

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn a_row_has_the_bits_of_the_builtin_product_whatever_rows_are_beside_it() {
        // (n, k): panels that are not full, several blocks of k, and none.
        for (n, k) in [(1, 1), (33, 40), (96, 512), (64, 1100), (40, 0)] {
            let (w, x) = (numbers(n * k, 1), numbers(40 * k, 2));
            for isa in Isa::all() {
                let packed = Packed::transposed(isa, &w, n, k);
                for threads in [1, 3] {
                    let pool = Arc::new(Pool::new(threads).unwrap());
                    let mut gemm = Gemm::with_isa(Backend::Builtin, Arc::clone(&pool), isa);
                    let mut expected = vec![f32::NAN; 40 * n];
                    let to = MatMut::rows(&mut expected, 40, n);
                    gemm.run(Mat::rows(&x, 40, k), Mat::rows(&w, n, k).t(), to, Accumulate::Assign).unwrap();
                    let mut scratch = Scratch::default();
                    for (first, m) in [(0, 40), (0, 1), (39, 1), (5, 2), (7, 15), (3, 28), (2, 0)] {
                        let mut y = vec![f32::NAN; m * n];
                        packed.product(isa, &pool, &x[first * k..][..m * k], &mut y, &mut scratch);
                        assert_eq!(bits(&y), bits(&expected[first * n..][..m * n]), "{} {n} {k} {m}", isa.name());
                    }
                }
            }
        }
    }
}
