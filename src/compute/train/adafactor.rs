//! Adafactor (Shazeer and Stern 2018) as `transformers` computes it with `scale_parameter = false` and
//! `relative_step = false`: the rate is the schedule's, there is no first moment.
//!
//! Of a matrix `[R, C]` only the means of rows and columns of the second moments are kept, of everything else all of
//! them. An update needs whole matrices, so every rank computes all of it from the whole gradient; every sum has one
//! order, so all ranks come to the same bits.

use crate::compute::kernels::{Isa, for_each_isa};
use crate::compute::model::{GroupLayout, Span, matrix};

use super::adamw::{Decay, Step, rate_and_keep};

/// Added to squares of gradients.
pub(super) const EPS: f32 = 1e-30;

/// Root mean square of an update above which it is scaled down.
pub(super) const CLIP: f64 = 1.0;

/// The second moments' decay in update t is 1 - t^DECAY.
const DECAY: f64 = -0.8;

/// Partial sums of a row. Part of what a result's bits mean.
const PARTS: usize = 8;

/// Numbers of the optimizer that do not change between steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adafactor {
    /// Decoupled weight decay; not applied to norms and biases.
    pub weight_decay: f64,
    /// Whether reparametrised weights (V) decay too.
    pub decay_constrained: Decay,
    /// Factor on the learning rate of reparametrised weights.
    pub lr_constrained_multiplier: f64,
    /// What is kept of weights that are computed with in bf16.
    pub master: Master,
}

/// What an update of bf16 weights adds to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Master {
    /// An fp32 copy, from which the weights are rounded.
    Fp32,
    /// The weights themselves, rounded after every update: small updates are lost.
    Absent,
}

/// Numbers of one pass over a span.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass {
    /// What gradients are multiplied by.
    pub factor: f32,
    /// Decay of second moments.
    pub beta2: f32,
    /// 1 - `beta2`.
    pub one_minus2: f32,
    /// What weights are multiplied by.
    pub keep: f32,
    /// Learning rate.
    pub lr: f64,
}

/// Numbers that are kept of a span: R + C of a matrix, else one an element.
pub fn moments_of(shape: &[i64], len: usize) -> usize {
    matrix(shape).map_or(len, |[rows, columns]| rows.saturating_add(columns))
}

/// Numbers that are kept of a group, span after span.
pub fn moments_of_group(group: &GroupLayout) -> usize {
    group.spans.iter().map(|span| moments_of(&span.shape, span.len)).sum()
}

impl Adafactor {
    /// Updates all of a group from its whole gradient; padding stays as it is. `moments` are those of
    /// [`moments_of_group`].
    pub fn update(&self, group: &GroupLayout, weights: &mut [f32], gradients: &[f32], moments: &mut [f32], step: Step) {
        let mut rest = moments;
        for span in &group.spans {
            let (own, behind) = rest.split_at_mut(moments_of(&span.shape, span.len));
            rest = behind;
            let (weights, gradients) = (&mut weights[span.range()], &gradients[span.range()]);
            let pass = self.pass(span, step);
            match matrix(&span.shape) {
                Some(sizes) => update_matrix(Isa::best(), sizes, weights, gradients, own, pass),
                None => update_vector(Isa::best(), weights, gradients, own, pass),
            }
        }
    }

    /// What is done to a span.
    pub(super) fn pass(&self, span: &Span, step: Step) -> Pass {
        let constrained = (self.decay_constrained, self.lr_constrained_multiplier);
        let (lr, keep) = rate_and_keep(span, step.lr, self.weight_decay, constrained);
        // Exact: at most 2^53 updates.
        let beta2 = 1.0 - (step.update as f64).powf(DECAY);
        Pass {
            factor: step.gradient_factor,
            beta2: beta2 as f32,
            one_minus2: (1.0 - beta2) as f32,
            keep: keep as f32,
            lr,
        }
    }
}

/// What an update is multiplied by, whose squares sum to `squares` over `n` elements.
fn size(squares: f64, n: usize, lr: f64) -> f32 {
    let rms = (squares / n.max(1) as f64).sqrt();
    (lr / (rms / CLIP).max(1.0)) as f32
}

/// `moments`: R means of rows, then C means of columns.
fn update_matrix(
    isa: Isa,
    [rows, columns]: [usize; 2],
    weights: &mut [f32],
    gradients: &[f32],
    moments: &mut [f32],
    pass: Pass,
) {
    let (by_row, by_column) = moments.split_at_mut(rows);
    let mut sums = vec![0f64; columns];
    for (mean, gradient) in by_row.iter_mut().zip(gradients.chunks_exact(columns)) {
        let sum = add_squares(isa, gradient, pass.factor, &mut sums);
        *mean = *mean * pass.beta2 + pass.one_minus2 * (sum / columns as f64) as f32;
    }
    for (mean, sum) in by_column.iter_mut().zip(&sums) {
        *mean = *mean * pass.beta2 + pass.one_minus2 * (sum / rows as f64) as f32;
    }
    let all = by_row.iter().map(|&mean| f64::from(mean)).sum::<f64>() / rows as f64;
    let row_factor = |mean: f32| 1.0 / (mean / all as f32).sqrt();
    let column_factors: Vec<f32> = by_column.iter().map(|mean| 1.0 / mean.sqrt()).collect();
    let mut squares = 0.0;
    for (&mean, gradient) in by_row.iter().zip(gradients.chunks_exact(columns)) {
        squares += update_squares(isa, gradient, pass.factor, row_factor(mean), &column_factors);
    }
    let size = size(squares, weights.len(), pass.lr);
    let rows = weights.chunks_exact_mut(columns).zip(gradients.chunks_exact(columns));
    for (&mean, (weights, gradient)) in by_row.iter().zip(rows) {
        apply(isa, weights, gradient, pass.factor, row_factor(mean), &column_factors, pass.keep, size);
    }
}

/// `moments`: one an element.
fn update_vector(isa: Isa, weights: &mut [f32], gradients: &[f32], moments: &mut [f32], pass: Pass) {
    for (v, g) in moments.iter_mut().zip(gradients) {
        let g = g * pass.factor;
        *v = *v * pass.beta2 + pass.one_minus2 * (g * g + EPS);
    }
    let factors: Vec<f32> = moments.iter().map(|v| 1.0 / v.sqrt()).collect();
    let size = size(update_squares(isa, gradients, pass.factor, 1.0, &factors), weights.len(), pass.lr);
    apply(isa, weights, gradients, pass.factor, 1.0, &factors, pass.keep, size);
}

for_each_isa! {
    /// Adds the squares of a row to the sums of the columns; the sum of the row.
    fn add_squares(row: &[f32], factor: f32, columns: &mut [f64]) -> f64 {
        let columns = &mut columns[..row.len()];
        let mut parts = [0f64; PARTS];
        let (chunks, rest) = row.as_chunks::<PARTS>();
        let (whole, last) = columns.split_at_mut(chunks.len() * PARTS);
        for (chunk, sums) in chunks.iter().zip(whole.as_chunks_mut::<PARTS>().0) {
            for k in 0..PARTS {
                let g = chunk[k] * factor;
                let square = f64::from(g * g + EPS);
                parts[k] += square;
                sums[k] += square;
            }
        }
        for (k, (g, sum)) in rest.iter().zip(last).enumerate() {
            let g = g * factor;
            let square = f64::from(g * g + EPS);
            parts[k] += square;
            *sum += square;
        }
        parts.iter().sum()
    }
}

for_each_isa! {
    /// Sum of the squares of a row of the update, before it is scaled.
    fn update_squares(row: &[f32], factor: f32, of_row: f32, of_columns: &[f32]) -> f64 {
        let of_columns = &of_columns[..row.len()];
        let mut parts = [0f64; PARTS];
        let (chunks, rest) = row.as_chunks::<PARTS>();
        let (whole, last) = of_columns.split_at(chunks.len() * PARTS);
        for (chunk, of_columns) in chunks.iter().zip(whole.as_chunks::<PARTS>().0) {
            for k in 0..PARTS {
                let u = f64::from(of_row * of_columns[k] * (chunk[k] * factor));
                parts[k] += u * u;
            }
        }
        for (k, (g, of_column)) in rest.iter().zip(last).enumerate() {
            let u = f64::from(of_row * of_column * (g * factor));
            parts[k] += u * u;
        }
        parts.iter().sum()
    }
}

for_each_isa! {
    /// Subtracts a row of the update.
    fn apply(
        weights: &mut [f32],
        row: &[f32],
        factor: f32,
        of_row: f32,
        of_columns: &[f32],
        keep: f32,
        size: f32,
    ) {
        let n = weights.len();
        let (row, of_columns) = (&row[..n], &of_columns[..n]);
        for i in 0..n {
            let u = of_row * of_columns[i] * (row[i] * factor);
            weights[i] = weights[i] * keep - size * u;
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;
    use crate::compute::model::{Constraint, Role, as_f32};
    use crate::compute::train::on_device;

    fn group(shapes: &[&[i64]]) -> GroupLayout {
        let mut spans = Vec::new();
        let mut offset = 0;
        for (i, shape) in shapes.iter().enumerate() {
            let len = shape.iter().product::<i64>() as usize;
            let role = if shape.len() == 2 { Role::Input } else { Role::Bias };
            let constraint = Constraint::Dense;
            spans.push(Span { name: format!("w{i}"), shape: shape.to_vec(), offset, len, role, constraint });
            offset = (offset + len).next_multiple_of(16);
        }
        GroupLayout { name: "g".into(), spans, len: offset }
    }

    fn optimizer() -> Adafactor {
        Adafactor {
            weight_decay: 0.1,
            decay_constrained: Decay::Excluded,
            lr_constrained_multiplier: 1.0,
            master: Master::Fp32,
        }
    }

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 31 + seed * 97) as f32).sin() * 3f32.powi((i % 5) as i32 - 2)).collect()
    }

    /// The paper's algorithm 4 for a matrix, written out in f64.
    #[test]
    fn updates_are_those_of_the_paper() {
        let (r, c) = (7, 11);
        let group = group(&[&[7, 11], &[5]]);
        let mut weights = values(group.len, 1);
        let mut moments = vec![0f32; moments_of_group(&group)];
        assert_eq!(moments.len(), r + c + 5);
        let (mut rows, mut columns, mut vector) = (vec![0f64; r], vec![0f64; c], vec![0f64; 5]);
        let mut exact: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
        let mut clipped = 0;
        for update in 1..=20u64 {
            let gradient = values(group.len, 5 + update as usize);
            let step = Step { lr: 0.01, update, gradient_factor: 0.5 };
            optimizer().update(&group, &mut weights, &gradient, &mut moments, step);
            let beta = 1.0 - (update as f64).powf(-0.8);
            let square = |i: usize| (0.5 * f64::from(gradient[i])).powi(2) + 1e-30;
            for (i, row) in rows.iter_mut().enumerate() {
                *row = beta * *row + (1.0 - beta) * (0..c).map(|j| square(i * c + j)).sum::<f64>() / c as f64;
            }
            for (j, column) in columns.iter_mut().enumerate() {
                *column = beta * *column + (1.0 - beta) * (0..r).map(|i| square(i * c + j)).sum::<f64>() / r as f64;
            }
            let mean = rows.iter().sum::<f64>() / r as f64;
            let matrix: Vec<f64> = (0..r * c)
                .map(|k| 0.5 * f64::from(gradient[k]) / (rows[k / c] * columns[k % c] / mean).sqrt())
                .collect();
            let at = group.spans[1].offset;
            for (k, v) in vector.iter_mut().enumerate() {
                *v = beta * *v + (1.0 - beta) * square(at + k);
            }
            let bias: Vec<f64> = (0..5).map(|k| 0.5 * f64::from(gradient[at + k]) / vector[k].sqrt()).collect();
            for (first, u, decay) in [(0, matrix, 0.1), (at, bias, 0.0)] {
                let rms = (u.iter().map(|u| u * u).sum::<f64>() / u.len() as f64).sqrt();
                clipped += usize::from(rms > 1.0);
                for (k, u) in u.iter().enumerate() {
                    exact[first + k] -= 0.01 * decay * exact[first + k] + 0.01 * u / rms.max(1.0);
                }
            }
            for (w, e) in weights.iter().zip(&exact) {
                assert!((f64::from(*w) - e).abs() <= 2e-6 * e.abs().max(1.0), "update {update}: {w} {e}");
            }
        }
        assert!((1..40).contains(&clipped), "some updates are scaled down, some are not: {clipped}");
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let pass = Pass { factor: 0.7, beta2: 0.6, one_minus2: 0.4, keep: 0.999, lr: 0.02 };
        let mut first = None;
        for isa in Isa::all() {
            let (mut w, mut m) = (values(13 * 21, 1), values(13 + 21, 2));
            m.iter_mut().for_each(|m| *m = m.abs());
            update_matrix(isa, [13, 21], &mut w, &values(13 * 21, 3), &mut m, pass);
            let (mut x, mut v) = (values(21, 4), vec![0.5; 21]);
            update_vector(isa, &mut x, &values(21, 5), &mut v, pass);
            let bits: Vec<u32> = [w, m, x, v].concat().iter().map(|x| x.to_bits()).collect();
            assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{}", isa.name());
        }
    }

    #[test]
    fn tensors_compute_the_same() {
        let group = group(&[&[6, 9], &[7], &[3, 1]]);
        let (mut weights, mut moments) = (values(group.len, 1), vec![0f32; moments_of_group(&group)]);
        let (w, m) = (Tensor::from_slice(&weights), Tensor::from_slice(&moments));
        for update in 1..=5 {
            let gradient = values(group.len, 9 + update as usize);
            let step = Step { lr: 0.03, update, gradient_factor: 1.5 };
            optimizer().update(&group, &mut weights, &gradient, &mut moments, step);
            on_device::adafactor(&optimizer(), &group, &w, &Tensor::from_slice(&gradient), &m, step).unwrap();
        }
        for (a, b) in as_f32(&w).iter().zip(&weights).chain(as_f32(&m).iter().zip(&moments)) {
            assert!((a - b).abs() <= 3e-6 * b.abs().max(1.0), "{a} {b}");
        }
    }

    #[test]
    fn a_gradient_of_zeros_moves_nothing_but_the_decay() {
        let group = group(&[&[4, 4], &[3]]);
        let (mut weights, mut moments) = (vec![1f32; group.len], vec![0f32; moments_of_group(&group)]);
        let step = Step { lr: 0.01, update: 1, gradient_factor: 1.0 };
        optimizer().update(&group, &mut weights, &vec![0f32; group.len], &mut moments, step);
        assert!(weights[..16].iter().all(|&w| w == 0.999) && weights[16..].iter().all(|&w| w == 1.0), "{weights:?}");
    }
}
