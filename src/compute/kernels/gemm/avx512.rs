//! The innermost loops with AVX-512: a tile of up to 14 rows and 32 columns of C stays in 28 registers.

use std::arch::x86_64::*;

use super::tile::{Start, Tile};

/// Most rows of a tile.
pub(super) const ROWS: usize = 14;

/// Computes `tile.rows` (1 to [`ROWS`]) by `tile.cols` (1 to 32) elements of C.
///
/// # Safety
/// As for [`Tile`]; the processor has AVX-512 F.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn run(tile: &Tile) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match tile.rows {
                // SAFETY: the caller's promise.
                $($rows => unsafe { by_width::<$rows>(tile) },)*
                _ => unreachable!("a tile has at most 14 rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn by_width<const R: usize>(tile: &Tile) {
    // Packed A: a row of the tile is one float on, a k is R floats on; both known to the compiler.
    let packed = tile.a_row == 1 && tile.a_k == R;
    // SAFETY: the caller's promise.
    unsafe {
        match (tile.cols > 16, packed) {
            (true, true) => rows::<R, 2, true>(tile),
            (true, false) => rows::<R, 2, false>(tile),
            (false, true) => rows::<R, 1, true>(tile),
            (false, false) => rows::<R, 1, false>(tile),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn rows<const R: usize, const V: usize, const PACKED: bool>(tile: &Tile) {
    let (a_row, a_k) = if PACKED { (1, R) } else { (tile.a_row, tile.a_k) };
    // SAFETY: the offsets lie in A's block, B's panel (32 floats a k) and C's rows; columns beyond `cols` are
    // masked off.
    unsafe {
        for r in 0..R {
            _mm_prefetch::<_MM_HINT_T0>(tile.c.add(r * tile.c_row).cast());
            if V == 2 {
                _mm_prefetch::<_MM_HINT_T0>(tile.c.add(r * tile.c_row + 16).cast());
            }
        }
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        let (mut a, mut b) = (tile.a, tile.b);
        for _ in 0..tile.depth {
            let mut columns = [_mm512_setzero_ps(); V];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = _mm512_loadu_ps(b.add(16 * v));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r * a_row));
                for (sum, column) in row.iter_mut().zip(columns) {
                    *sum = _mm512_fmadd_ps(x, column, *sum);
                }
            }
            a = a.add(a_k);
            b = b.add(32);
        }
        for (v, mask) in masks::<V>(tile.cols).into_iter().enumerate() {
            let bias = match tile.start {
                Start::Bias(bias) => _mm512_maskz_loadu_ps(mask, bias.add(16 * v)),
                _ => _mm512_setzero_ps(),
            };
            for (r, row) in sums.iter().enumerate() {
                let c = tile.c.add(r * tile.c_row + 16 * v);
                let sum = match tile.start {
                    Start::Zero => row[v],
                    Start::Bias(_) => _mm512_add_ps(bias, row[v]),
                    Start::Add => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), row[v]),
                };
                _mm512_mask_storeu_ps(c, mask, sum);
            }
        }
    }
}

fn masks<const V: usize>(cols: usize) -> [__mmask16; V] {
    std::array::from_fn(|v| match cols.saturating_sub(16 * v) {
        n @ 0..16 => (1 << n) - 1,
        _ => !0,
    })
}

/// Writes the transpose of 16 rows of 16 floats: `to[16-float row k * to_row] = from[row i * from_row + k]`.
///
/// # Safety
/// Rows `0..rows` of `from` (16 floats each) are readable, the others count as zeros; 16 floats at `to + k * to_row`
/// are writable for k below 16, in ascending order. The processor has AVX-512 F.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn transpose_16x16(from: *const f32, from_row: usize, rows: usize, to: *mut f32, to_row: usize) {
    let mut r = [_mm512_setzero_ps(); 16];
    for (i, row) in r.iter_mut().enumerate().take(rows) {
        // SAFETY: the caller's promise.
        *row = unsafe { _mm512_loadu_ps(from.add(i * from_row)) };
    }
    // Pairs of floats, then pairs of doubles, then quarters of a register twice.
    let mut t = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for i in 0..4 {
        let [a, b, c, d] = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]].map(|x| _mm512_castps_pd(x));
        r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    for i in 0..4 {
        t[i] = _mm512_shuffle_f32x4::<0x88>(r[i], r[i + 4]);
        t[i + 4] = _mm512_shuffle_f32x4::<0xdd>(r[i], r[i + 4]);
        t[i + 8] = _mm512_shuffle_f32x4::<0x88>(r[i + 8], r[i + 12]);
        t[i + 12] = _mm512_shuffle_f32x4::<0xdd>(r[i + 8], r[i + 12]);
    }
    for i in 0..8 {
        r[i] = _mm512_shuffle_f32x4::<0x88>(t[i], t[i + 8]);
        r[i + 8] = _mm512_shuffle_f32x4::<0xdd>(t[i], t[i + 8]);
    }
    for (k, row) in r.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(to.add(k * to_row), *row) };
    }
}

/// Copies `count` rows of `len` floats (at most 32); the rest of 16 or 32 floats of each written row is zero.
///
/// # Safety
/// `from + k * from_row` has `len` readable floats, `to + k * to_row` 16 writable ones (32 if `to_row` is 32), for k
/// below `count`, in ascending order. The processor has AVX-512 F.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn copy_rows(
    from: *const f32,
    from_row: usize,
    count: usize,
    len: usize,
    to: *mut f32,
    to_row: usize,
) {
    let [first, second] = masks::<2>(len);
    for k in 0..count {
        // SAFETY: the caller's promise; masked floats are not read.
        unsafe {
            let (from, to) = (from.add(k * from_row), to.add(k * to_row));
            _mm512_storeu_ps(to, _mm512_maskz_loadu_ps(first, from));
            if to_row == 32 {
                _mm512_storeu_ps(to.add(16), _mm512_maskz_loadu_ps(second, from.wrapping_add(16)));
            }
        }
    }
}
