//! The innermost loops with AVX2 and FMA: a tile of up to 6 rows and 16 columns of C stays in 12 registers.

use std::arch::x86_64::*;

use super::tile::{Start, Tile};

/// Most rows of a tile.
pub(super) const ROWS: usize = 6;

/// Computes `tile.rows` (1 to [`ROWS`]) by `tile.cols` (1 to 32) elements of C.
///
/// # Safety
/// As for [`Tile`]; the processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run(tile: &Tile) {
    // Half a panel at a time; a half without columns is not touched.
    for half in 0..tile.cols.div_ceil(16) {
        // SAFETY: the half's columns are part of the tile.
        unsafe {
            let part = Tile {
                cols: (tile.cols - 16 * half).min(16),
                b: tile.b.add(16 * half),
                c: tile.c.add(16 * half),
                start: match tile.start {
                    Start::Bias(bias) => Start::Bias(bias.add(16 * half)),
                    other => other,
                },
                ..*tile
            };
            match tile.rows {
                1 => rows::<1>(&part),
                2 => rows::<2>(&part),
                3 => rows::<3>(&part),
                4 => rows::<4>(&part),
                5 => rows::<5>(&part),
                6 => rows::<6>(&part),
                _ => unreachable!("a tile has at most 6 rows"),
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const R: usize>(tile: &Tile) {
    // SAFETY: the offsets lie in A's block, B's panel (32 floats a k) and C's rows; columns beyond `cols` are
    // masked off.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        let (mut a, mut b) = (tile.a, tile.b);
        for _ in 0..tile.depth {
            let columns = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
            for (r, row) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*a.add(r * tile.a_row));
                row[0] = _mm256_fmadd_ps(x, columns[0], row[0]);
                row[1] = _mm256_fmadd_ps(x, columns[1], row[1]);
            }
            a = a.add(tile.a_k);
            b = b.add(32);
        }
        for v in 0..2 {
            let mask = mask(tile.cols.saturating_sub(8 * v));
            for (r, row) in sums.iter().enumerate() {
                // A wrapping offset: with few columns the second half lies outside and is masked off whole.
                let c = tile.c.wrapping_add(r * tile.c_row + 8 * v);
                let sum = match tile.start {
                    Start::Zero => row[v],
                    Start::Bias(bias) => _mm256_add_ps(_mm256_maskload_ps(bias.wrapping_add(8 * v), mask), row[v]),
                    Start::Add => _mm256_add_ps(_mm256_maskload_ps(c, mask), row[v]),
                };
                _mm256_maskstore_ps(c, mask, sum);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn mask(columns: usize) -> __m256i {
    // At most 8 matter.
    let n = _mm256_set1_epi32(columns.min(8) as i32);
    _mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}
