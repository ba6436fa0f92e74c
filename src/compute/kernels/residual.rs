//! The residual stream: what branches add to it, with their biases and dropout; and sums over rows for the
//! gradient of a bias.

use super::dropout::{BLOCK, Dropout};
use super::{for_each_isa, sums};

for_each_isa! {
    /// out = x + (branch + bias), in rows of h elements.
    pub fn add(h: usize, x: &[f32], branch: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
        let rows = x.chunks_exact(h).zip(branch.chunks_exact(h)).zip(out.chunks_exact_mut(h));
        match bias {
            Some(bias) => {
                for ((x, branch), out) in rows {
                    for (((&x, &branch), &bias), out) in x.iter().zip(branch).zip(bias).zip(out) {
                        *out = x + (branch + bias);
                    }
                }
            }
            None => {
                for ((x, branch), out) in rows {
                    for ((&x, &branch), out) in x.iter().zip(branch).zip(out) {
                        *out = x + branch;
                    }
                }
            }
        }
    }
}

for_each_isa! {
    /// out += branch + bias, in rows of h elements.
    pub fn add_branch(h: usize, branch: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
        for (branch, out) in branch.chunks_exact(h).zip(out.chunks_exact_mut(h)) {
            match bias {
                Some(bias) => {
                    for ((&branch, &bias), out) in branch.iter().zip(bias).zip(out) {
                        *out += branch + bias;
                    }
                }
                None => sums::add(out, branch),
            }
        }
    }
}

for_each_isa! {
    /// total += part.
    pub fn add_to(total: &mut [f32], part: &[f32]) {
        sums::add(total, part);
    }
}

for_each_isa! {
    /// branch = mask (branch + bias), in rows of h elements.
    pub fn drop_out(dropout: &Dropout, h: usize, bias: Option<&[f32]>, branch: &mut [f32]) {
        if let Some(bias) = bias {
            for branch in branch.chunks_exact_mut(h) {
                sums::add(branch, bias);
            }
        }
        for (n, x) in branch.chunks_mut(BLOCK).enumerate() {
            for (x, f) in x.iter_mut().zip(&dropout.factors(n as u64)) {
                *x *= f;
            }
        }
    }
}

for_each_isa! {
    /// dbias += the sum of the rows of dy, of h elements each. `scratch` has h elements.
    pub fn bias_backward(h: usize, dy: &[f32], dbias: &mut [f32], scratch: &mut [f32]) {
        let part = &mut scratch[..h];
        for dy in dy.chunks(h * sums::ROWS) {
            part.fill(0.0);
            for dy in dy.chunks_exact(h) {
                sums::add(part, dy);
            }
            sums::add(dbias, part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::super::dropout::Site;
    use super::super::testing::{close, numbers, same_bits};
    use super::*;

    #[test]
    fn branches_are_added_with_bias_and_mask() {
        let (n, h) = (67, 21);
        let (x, branch, bias) = (numbers(n * h, 1), numbers(n * h, 2), numbers(h, 3));
        let dropout = Dropout::new(0.25, 1, 2, 3, 4, Site::Attention);
        let mut first = None;
        for isa in Isa::all() {
            let (mut with, mut without, mut dropped, mut sums) =
                (vec![0.0; n * h], vec![0.0; n * h], branch.clone(), vec![1.0; h]);
            add(isa, h, &x, &branch, Some(&bias), &mut with);
            add(isa, h, &x, &branch, None, &mut without);
            let mut in_place = x.clone();
            add_branch(isa, h, &branch, Some(&bias), &mut in_place);
            drop_out(isa, &dropout, h, Some(&bias), &mut dropped);
            bias_backward(isa, h, &branch, &mut sums, &mut vec![0.0; h]);
            for i in 0..n * h {
                assert_eq!(with[i], x[i] + (branch[i] + bias[i % h]));
                assert_eq!(without[i], x[i] + branch[i]);
                assert_eq!(in_place[i], x[i] + (branch[i] + bias[i % h]));
                let factor = dropout.factors(i as u64 / 64)[i % 64];
                assert_eq!(dropped[i], (branch[i] + bias[i % h]) * factor);
            }
            let exact: Vec<f64> =
                (0..h).map(|c| 1.0 + branch.iter().skip(c).step_by(h).map(|&x| f64::from(x)).sum::<f64>()).collect();
            close(&sums, &exact, 1e-6);
            same_bits(&mut first, vec![with, without, dropped, sums], isa);
        }
    }
}
