//! Rotary positions: the first r of d dimensions of a head are turned in pairs (k, k + r/2) by an angle that
//! grows with the position, as `transformers` does it ("rotate half"), in place, with the bias of the map that
//! made them; and the way back. Some decoders then multiply the queries by a factor of their position.

use super::{for_each_isa, sums};

/// Cosines and sines by position.
#[derive(Debug, Clone)]
pub struct Table {
    half: usize,
    /// `[positions, half]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Factor of the queries at each position; empty where all are 1.
    queries: Vec<f32>,
}

impl Table {
    /// For pairs that turn by `frequencies` radians a position, and positions below `positions`. Angles are rounded to
    /// fp32 before the cosine, as `transformers` does.
    pub fn new(frequencies: &[f32], positions: usize) -> Self {
        Self::scaled(frequencies, 1.0, positions, |_| 1.0)
    }

    /// As [`Table::new`], with cosines and sines multiplied by `factor`, and queries by what `query` says of their
    /// position.
    pub fn scaled(frequencies: &[f32], factor: f32, positions: usize, query: impl Fn(usize) -> f32) -> Self {
        let angles = (0..positions).flat_map(|t| frequencies.iter().map(move |f| t as f32 * f));
        let (cos, sin) = angles.map(|angle| (angle.cos() * factor, angle.sin() * factor)).unzip();
        let mut queries: Vec<f32> = (0..positions).map(query).collect();
        if queries.iter().all(|q| *q == 1.0) {
            queries.clear();
        }
        Self { half: frequencies.len(), cos, sin, queries }
    }

    /// Rotated dimensions.
    pub fn dims(&self) -> usize {
        2 * self.half
    }

    /// Positions in it.
    pub fn positions(&self) -> usize {
        self.cos.len().checked_div(self.half).unwrap_or(usize::MAX)
    }

    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Where the heads lie that are turned: the first element of each in a row, and the length of a row.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Elements of a row.
    pub row: usize,
    /// First elements of the heads, those of queries first.
    pub starts: &'a [usize],
    /// How many of them are queries.
    pub queries: usize,
    /// Elements of a head.
    pub dim: usize,
}

impl Heads<'_> {
    /// Multiplies the queries of a row by the factor of its position, where there is one.
    #[inline(always)]
    fn grow(&self, table: &Table, position: usize, x: &mut [f32]) {
        if let Some(&factor) = table.queries.get(position) {
            for &start in &self.starts[..self.queries] {
                x[start..start + self.dim].iter_mut().for_each(|x| *x *= factor);
            }
        }
    }
}

for_each_isa! {
    /// x += bias (if there is one), then its heads are turned by their row's position, and its queries grow. x: `[N, row]`.
    pub fn forward(table: &Table, heads: Heads<'_>, positions: &[u32], bias: Option<&[f32]>, x: &mut [f32]) {
        for (x, &position) in x.chunks_exact_mut(heads.row).zip(positions) {
            if let Some(bias) = bias {
                sums::add(x, bias);
            }
            let (cos, sin) = table.at(position as usize);
            for &start in heads.starts {
                let (a, b) = x[start..start + 2 * cos.len()].split_at_mut(cos.len());
                for (((a, b), &c), &s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (a.mul_add(c, -(*b * s)), b.mul_add(c, *a * s));
                }
            }
            heads.grow(table, position as usize, x);
        }
    }
}

for_each_isa! {
    /// The gradient before the rotation from that after it, in place; its sum over rows is added to `dbias`.
    /// `scratch` has a row's elements.
    pub fn backward(
        table: &Table, heads: Heads<'_>, positions: &[u32], dx: &mut [f32], dbias: Option<&mut [f32]>,
        scratch: &mut [f32],
    ) {
        let (mut dbias, part) = (dbias, &mut scratch[..heads.row]);
        part.fill(0.0);
        for (n, (dx, &position)) in dx.chunks_exact_mut(heads.row).zip(positions).enumerate() {
            let (cos, sin) = table.at(position as usize);
            heads.grow(table, position as usize, dx);
            for &start in heads.starts {
                let (a, b) = dx[start..start + 2 * cos.len()].split_at_mut(cos.len());
                for (((a, b), &c), &s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (a.mul_add(c, *b * s), b.mul_add(c, -(*a * s)));
                }
            }
            if let Some(dbias) = dbias.as_deref_mut() {
                if n > 0 && n % sums::ROWS == 0 {
                    sums::add(dbias, part);
                    part.fill(0.0);
                }
                sums::add(part, dx);
            }
        }
        if let Some(dbias) = dbias {
            sums::add(dbias, part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::super::testing::{close, numbers, same_bits};
    use super::*;

    #[test]
    fn heads_are_turned_and_turned_back() {
        // Two heads of 6, of which 4 dimensions turn, in rows of 20; the second row stands at position 5.
        let table = Table::new(&[1.0, 0.01], 8);
        let heads = Heads { row: 20, starts: &[0, 9], queries: 1, dim: 6 };
        let bias = numbers(20, 2);
        let mut first = None;
        for isa in Isa::all() {
            let mut x = numbers(40, 1);
            let mut exact: Vec<f64> = x.iter().enumerate().map(|(i, x)| f64::from(x + bias[i % 20])).collect();
            let before = exact.clone();
            for (row, position) in [(0, 2.0), (1, 5.0)] {
                for start in [0, 9] {
                    for k in 0..2 {
                        let angle = position * 1e4f64.powf(-(k as f64) / 2.0);
                        let i = row * 20 + start + k;
                        exact[i] = before[i] * angle.cos() - before[i + 2] * angle.sin();
                        exact[i + 2] = before[i + 2] * angle.cos() + before[i] * angle.sin();
                    }
                }
            }
            forward(isa, &table, heads, &[2, 5], Some(&bias), &mut x);
            close(&x, &exact, 3e-7);
            let turned = x.clone();
            let mut dbias = vec![1.0; 20];
            backward(isa, &table, heads, &[2, 5], &mut x, Some(&mut dbias), &mut [0.0; 20]);
            // A rotation's transpose is its inverse.
            close(&x, &before, 5e-7);
            let sums: Vec<f64> = (0..20).map(|i| 1.0 + before[i] + before[i + 20]).collect();
            close(&dbias, &sums, 5e-7);
            same_bits(&mut first, vec![turned, x, dbias], isa);
        }
    }

    #[test]
    fn queries_grow_and_their_gradient_does() {
        // The first head is a query of 4, the second a key; position 3 has the factor 2, and all turns are doubled.
        let query = |t: usize| if t < 2 { 1.0 } else { 2.0 };
        let (plain, grown) = (Table::new(&[0.5], 4), Table::scaled(&[0.5], 2.0, 4, query));
        let heads = Heads { row: 8, starts: &[0, 4], queries: 1, dim: 4 };
        for isa in Isa::all() {
            for (position, factor) in [(1, 1.0f32), (3, 2.0)] {
                let (mut x, mut y) = (numbers(8, 1), numbers(8, 1));
                forward(isa, &plain, heads, &[position], None, &mut x);
                forward(isa, &grown, heads, &[position], None, &mut y);
                for i in 0..8 {
                    let turned = if i % 4 < 2 { 2.0 } else { 1.0 };
                    let expected = x[i] * turned * if i < 4 { factor } else { 1.0 };
                    assert!((y[i] - expected).abs() <= 1e-6, "{i}: {} {expected}", y[i]);
                }
                // <forward(x), d> = <x, backward(d)> for a linear map.
                let (x, d) = (numbers(8, 1), numbers(8, 2));
                let mut back = d.clone();
                backward(isa, &grown, heads, &[position], &mut back, None, &mut [0.0; 8]);
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                assert!((dot(&y, &d) - dot(&x, &back)).abs() < 1e-5);
            }
        }
    }
}
