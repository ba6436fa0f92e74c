//! What the innermost loops are given, and the one that needs no vector instructions.

use crate::compute::kernels::{Isa, Level};

/// A tile of C and what it is made of.
///
/// To run it, `a + r * a_row + k * a_k` must be readable for r below `rows` and k below `depth`; `b + 32 k` to
/// `b + 32 k + 31` likewise; C's `rows` rows of `cols` floats, `c_row` apart, writable by this thread alone; a
/// bias has `cols` floats.
#[derive(Debug, Clone, Copy)]
pub struct Tile {
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
    pub a: *const f32,
    pub a_row: usize,
    pub a_k: usize,
    pub b: *const f32,
    pub c: *mut f32,
    pub c_row: usize,
    pub start: Start,
}

/// What the sum over k is added to.
#[derive(Debug, Clone, Copy)]
pub enum Start {
    Zero,
    Bias(*const f32),
    /// What C holds.
    Add,
}

/// Most rows of a tile.
pub fn tile_rows(isa: Isa) -> usize {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => super::avx512::ROWS,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => super::avx2::ROWS,
        _ => ROWS,
    }
}

/// Computes a tile.
///
/// # Safety
/// As for [`Tile`].
pub unsafe fn run_tile(isa: Isa, tile: &Tile) {
    // SAFETY: the caller's promise; an `Isa` exists only where the processor has it.
    unsafe {
        match isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => super::avx512::run(tile),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => super::avx2::run(tile),
            _ => run(tile),
        }
    }
}

/// Most rows of a portable tile.
const ROWS: usize = 4;

/// Computes a tile by the operations of the vector paths, in their order.
///
/// # Safety
/// As for [`Tile`].
unsafe fn run(tile: &Tile) {
    for r in 0..tile.rows {
        for j in 0..tile.cols {
            let mut sum = 0f32;
            // SAFETY: the caller's promise.
            unsafe {
                for k in 0..tile.depth {
                    sum = (*tile.a.add(r * tile.a_row + k * tile.a_k)).mul_add(*tile.b.add(32 * k + j), sum);
                }
                let c = tile.c.add(r * tile.c_row + j);
                *c = match tile.start {
                    Start::Zero => sum,
                    Start::Bias(bias) => *bias.add(j) + sum,
                    Start::Add => *c + sum,
                };
            }
        }
    }
}
