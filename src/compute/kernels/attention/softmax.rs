//! The row-wise parts of attention, over the scores of one block of queries.
//!
//! What a query does not see is set to zero, from the block's first key to its last. Sums are over what it sees, closed
//! up: a gap changes no bit of them.

use super::products::Block;
use crate::compute::kernels::dropout::{self, Dropout};
use crate::compute::kernels::{for_each_isa, math, sums};

for_each_isa! {
    /// exp(scale s - m) in place, m a row's largest scaled score; `inverse` is one over a row's sum, `lse` its
    /// logarithm plus m.
    pub fn forward(block: &Block<'_>, scale: f32, scores: &mut [f32], inverse: &mut [f32], lse: &mut [f32]) {
        let (stride, width) = (block.stride(), block.hi - block.lo);
        for i in 0..block.len() {
            let row = &mut scores[i * stride..][..width];
            let whole = seen(block, i, row);
            let (gap, len) = (gap(block, i), whole.len());
            if gap.0 < gap.1 {
                whole.copy_within(gap.1.., gap.0);
            }
            let seen = &mut whole[..len - (gap.1 - gap.0)];
            let m = sums::max(seen) * scale;
            if m == f32::NEG_INFINITY {
                whole.fill(0.0);
                (inverse[i], lse[i]) = (0.0, f32::NEG_INFINITY);
                continue;
            }
            for s in seen.iter_mut() {
                *s = math::exp(s.mul_add(scale, -m));
            }
            let sum = sums::sum(seen, |p| p);
            (inverse[i], lse[i]) = (sum, m);
            if gap.0 < gap.1 {
                whole.copy_within(gap.0..len - (gap.1 - gap.0), gap.1);
                whole[gap.0..gap.1].fill(0.0);
            }
        }
        for (inverse, lse) in inverse.iter_mut().zip(lse) {
            // A sum is at least 1, for its largest term is, or NaN; or there was none.
            let sum = *inverse;
            let log = math::ln_normal(f64::from(if sum == 0.0 { 1.0 } else { sum }));
            *lse = (f64::from(*lse) + log) as f32;
            *inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        }
    }
}

for_each_isa! {
    /// Scores become probabilities p, `dscores` (the gradient by p) the gradient by the raw scores:
    /// scale p (dp - `dot`).
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        block: &Block<'_>,
        scale: f32,
        lse: &[f32],
        dot: &[f32],
        scores: &mut [f32],
        dscores: &mut [f32],
    ) {
        let (stride, width) = (block.stride(), block.hi - block.lo);
        for i in 0..block.len() {
            let (row, drow) = (&mut scores[i * stride..][..width], &mut dscores[i * stride..][..width]);
            let (p, dp) = (seen(block, i, row), seen(block, i, drow));
            if lse[i] == f32::NEG_INFINITY {
                p.fill(0.0);
                dp.fill(0.0);
                continue;
            }
            let (lse, dot) = (lse[i], dot[i]);
            for (p, dp) in p.iter_mut().zip(dp) {
                let q = math::exp(p.mul_add(scale, -lse));
                *p = q;
                *dp = q * (*dp - dot) * scale;
            }
            close(block, i, row, drow);
        }
    }
}

for_each_isa! {
    /// As [`backward`] with dropout: probabilities are left multiplied by the mask; `first` is its element of key 0
    /// for the block's first query.
    #[allow(clippy::too_many_arguments)]
    pub fn backward_dropped(
        block: &Block<'_>,
        scale: f32,
        lse: &[f32],
        dot: &[f32],
        scores: &mut [f32],
        dscores: &mut [f32],
        dropout: &Dropout,
        first: u64,
        seq_len: usize,
    ) {
        let (stride, width) = (block.stride(), block.hi - block.lo);
        for i in 0..block.len() {
            let (row, drow) = (&mut scores[i * stride..][..width], &mut dscores[i * stride..][..width]);
            let (a, b) = bounds(block, i);
            seen(block, i, row);
            seen(block, i, drow);
            if lse[i] == f32::NEG_INFINITY {
                row.fill(0.0);
                drow.fill(0.0);
                continue;
            }
            let (lse, dot) = (lse[i], dot[i]);
            let number = mask_block(first, i, seq_len, block.lo);
            for c in a / dropout::BLOCK..b.div_ceil(dropout::BLOCK) {
                let factors = dropout.factors(number + c as u64);
                let from = c * dropout::BLOCK;
                let inside = a.max(from)..b.min(from + dropout::BLOCK);
                let factors = &factors[inside.start - from..inside.end - from];
                for ((p, dp), &f) in row[inside.clone()].iter_mut().zip(&mut drow[inside]).zip(factors) {
                    let q = math::exp(p.mul_add(scale, -lse));
                    *p = q * f;
                    *dp = q * (f * *dp - dot) * scale;
                }
            }
            close(block, i, row, drow);
        }
    }
}

for_each_isa! {
    /// Multiplies by the dropout mask.
    pub fn drop(block: &Block<'_>, dropout: &Dropout, first: u64, seq_len: usize, scores: &mut [f32]) {
        let (stride, width) = (block.stride(), block.hi - block.lo);
        for i in 0..block.len() {
            let row = &mut scores[i * stride..][..width];
            let (a, b) = bounds(block, i);
            let number = mask_block(first, i, seq_len, block.lo);
            for c in a / dropout::BLOCK..b.div_ceil(dropout::BLOCK) {
                let factors = dropout.factors(number + c as u64);
                let from = c * dropout::BLOCK;
                let to = (from + dropout::BLOCK).min(width);
                for (p, f) in row[from..to].iter_mut().zip(&factors) {
                    *p *= f;
                }
            }
        }
    }
}

for_each_isa! {
    /// `dots[i]` = x_i . y_i for rows of `dim` floats, `row` apart.
    pub fn row_dots(x: &[f32], y: &[f32], row: usize, dim: usize, dots: &mut [f32]) {
        for (i, dot) in dots.iter_mut().enumerate() {
            *dot = sums::dot(&x[i * row..][..dim], &y[i * row..][..dim]);
        }
    }
}

/// Multiplies rows of `dim` floats, `row` apart, by their factors.
///
/// # Safety
/// They are writable by this thread alone.
pub unsafe fn scale_rows(isa: crate::compute::kernels::Isa, factors: &[f32], to: *mut f32, row: usize, dim: usize) {
    for (i, &factor) in factors.iter().enumerate() {
        // SAFETY: the caller's promise.
        scale(isa, unsafe { std::slice::from_raw_parts_mut(to.wrapping_add(i * row), dim) }, factor);
    }
}

for_each_isa! {
    fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}

/// Where what query `i` sees begins and ends in its row of scores.
#[inline(always)]
fn bounds(block: &Block<'_>, i: usize) -> (usize, usize) {
    let (first, end) = (block.first[i] as usize, block.end[i] as usize);
    if first < end { (first - block.lo, end - block.lo) } else { (0, 0) }
}

/// What query `i` sees of its row; the rest becomes zero.
#[inline(always)]
fn seen<'a>(block: &Block<'_>, i: usize, row: &'a mut [f32]) -> &'a mut [f32] {
    let (a, b) = bounds(block, i);
    row[..a].fill(0.0);
    row[b..].fill(0.0);
    &mut row[a..b]
}

/// Where the gap of query `i` begins and ends in what it sees; `(0, 0)` if there is none.
#[inline(always)]
fn gap(block: &Block<'_>, i: usize) -> (usize, usize) {
    match block.gaps.get(i) {
        Some(&[from, to]) if from < to => ((from - block.first[i]) as usize, (to - block.first[i]) as usize),
        _ => (0, 0),
    }
}

/// Sets the gap of query `i` to zero in its rows.
#[inline(always)]
fn close(block: &Block<'_>, i: usize, row: &mut [f32], drow: &mut [f32]) {
    let ((from, to), (first, _)) = (gap(block, i), bounds(block, i));
    row[first + from..first + to].fill(0.0);
    drow[first + from..first + to].fill(0.0);
}

/// The number of the mask's block that begins with key `lo` of query `i`.
#[inline(always)]
fn mask_block(first: u64, i: usize, seq_len: usize, lo: usize) -> u64 {
    let per_row = seq_len.next_multiple_of(dropout::BLOCK);
    (first + (i * per_row + lo) as u64) / dropout::BLOCK as u64
}
