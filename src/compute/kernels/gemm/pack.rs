//! Copies of blocks of A and B in the order in which the innermost loops read them.
//!
//! B goes into panels of 32 columns: `panel[32 k + j]`, columns beyond the matrix zero. A tile's rows of A go into
//! `panel[rows * k + r]`. Where a source row is contiguous along k it is transposed in registers.

use super::matrix::Mat;
use crate::compute::kernels::{Isa, Level};

/// Columns of a panel of B.
pub const PANEL: usize = 32;

/// Floats that a packed panel may be overwritten by beyond its end.
pub(super) const SLACK: usize = 16;

/// Aligned memory that grows to what is asked for and is used again.
#[derive(Debug, Default)]
pub struct Scratch(Vec<Line>);

/// One cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Scratch {
    /// At least `floats` floats and the slack; what they hold is left from before.
    pub fn floats(&mut self, floats: usize) -> &mut [f32] {
        let lines = (floats + SLACK).div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        // SAFETY: a `Line` is sixteen floats without padding.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// Packs columns of `b` (all of its rows) into `to`, panel after panel.
pub fn pack_b(isa: Isa, b: Mat<'_>, to: &mut [f32]) {
    assert!(to.len() >= b.cols.next_multiple_of(PANEL) * b.rows);
    for first in (0..b.cols).step_by(PANEL) {
        let cols = (b.cols - first).min(PANEL);
        let panel = &mut to[first * b.rows..][..PANEL * b.rows];
        pack_panel(isa, b.col_range(first, cols), panel);
    }
}

/// Packs up to 32 columns.
fn pack_panel(isa: Isa, b: Mat<'_>, panel: &mut [f32]) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa.level() == Level::Avx512 {
        use super::avx512::{copy_rows, transpose_16x16};
        if b.col_stride == 1 {
            // SAFETY: the view's bounds were checked when it was made; the panel has 32 floats a row; AVX-512 is there.
            unsafe { copy_rows(b.data.as_ptr(), b.row_stride, b.rows, b.cols, panel.as_mut_ptr(), PANEL) };
            return;
        }
        if b.row_stride == 1 {
            while done + 16 <= b.rows {
                for half in [0, 16] {
                    // SAFETY: 16 rows of B from `done` on, at most `rows` columns; a half without columns is zeros,
                    // and its address is not read.
                    unsafe {
                        transpose_16x16(
                            b.data.as_ptr().wrapping_add(half * b.col_stride + done),
                            b.col_stride,
                            b.cols.saturating_sub(half).min(16),
                            panel.as_mut_ptr().add(done * PANEL + half),
                            PANEL,
                        );
                    }
                }
                done += 16;
            }
        }
    }
    let _ = isa;
    for (k, row) in panel.chunks_exact_mut(PANEL).enumerate().take(b.rows).skip(done) {
        for (j, x) in row.iter_mut().enumerate() {
            *x = if j < b.cols { b.data[k * b.row_stride + j * b.col_stride] } else { 0.0 };
        }
    }
}

/// Packs the rows of one tile (at most 16), all columns, into `to`; up to [`SLACK`] floats behind it are overwritten.
pub(super) fn pack_a(isa: Isa, a: Mat<'_>, to: &mut [f32]) {
    let rows = a.rows;
    assert!(rows <= 16 && to.len() >= rows * a.cols + SLACK);
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa.level() == Level::Avx512 {
        use super::avx512::{copy_rows, transpose_16x16};
        if a.row_stride == 1 {
            // SAFETY: the view's bounds were checked when it was made; 16 floats at each of `cols` steps of `rows`
            // lie in `to` with its slack; AVX-512 is there.
            unsafe { copy_rows(a.data.as_ptr(), a.col_stride, a.cols, rows, to.as_mut_ptr(), rows) };
            return;
        }
        if a.col_stride == 1 {
            while done + 16 <= a.cols {
                // SAFETY: as above.
                unsafe {
                    let from = a.data.as_ptr().add(done);
                    transpose_16x16(from, a.row_stride, rows, to.as_mut_ptr().add(done * rows), rows);
                }
                done += 16;
            }
        }
    }
    let _ = isa;
    for (k, column) in to.chunks_exact_mut(rows).enumerate().take(a.cols).skip(done) {
        for (r, x) in column.iter_mut().enumerate() {
            *x = a.data[r * a.row_stride + k * a.col_stride];
        }
    }
}
