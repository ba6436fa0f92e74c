//! Sums with a fixed order: 32 partial sums over the elements in turn, then a balanced tree over them.

/// Partial sums: enough to keep the adders of a core busy on every instruction set.
const PARTS: usize = 32;

/// Sum of `term` over the elements of `x`.
#[inline(always)]
pub fn sum(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut parts = [0f32; PARTS];
    let (whole, rest) = x.as_chunks::<PARTS>();
    for x in whole {
        for k in 0..PARTS {
            parts[k] += term(x[k]);
        }
    }
    for (part, &x) in parts.iter_mut().zip(rest) {
        *part += term(x);
    }
    tree(parts)
}

/// Sum of x y.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut parts = [0f32; PARTS];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<PARTS>(), y.as_chunks::<PARTS>());
    for (x, y) in xs.iter().zip(ys) {
        for k in 0..PARTS {
            parts[k] = x[k].mul_add(y[k], parts[k]);
        }
    }
    for (part, (&x, &y)) in parts.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *part = x.mul_add(y, *part);
    }
    tree(parts)
}

/// Sum of `term` over three rows of the same length.
#[inline(always)]
pub fn sum3(x: &[f32], y: &[f32], z: &[f32], term: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut parts = [0f32; PARTS];
    let ((xs, x_rest), (ys, y_rest), (zs, z_rest)) =
        (x.as_chunks::<PARTS>(), y.as_chunks::<PARTS>(), z.as_chunks::<PARTS>());
    for ((x, y), z) in xs.iter().zip(ys).zip(zs) {
        for k in 0..PARTS {
            parts[k] += term(x[k], y[k], z[k]);
        }
    }
    for (part, ((&x, &y), &z)) in parts.iter_mut().zip(x_rest.iter().zip(y_rest).zip(z_rest)) {
        *part += term(x, y, z);
    }
    tree(parts)
}

/// Largest element; NaN if there is one, negative infinity of none.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut parts = [f32::NEG_INFINITY; PARTS];
    let (whole, rest) = x.as_chunks::<PARTS>();
    for x in whole {
        for k in 0..PARTS {
            parts[k] = larger(parts[k], x[k]);
        }
    }
    for (part, &x) in parts.iter_mut().zip(rest) {
        *part = larger(*part, x);
    }
    parts.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// Not `f32::max`, which drops NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// Balanced tree over partial sums.
#[inline(always)]
pub fn tree(mut parts: [f32; PARTS]) -> f32 {
    let mut n = PARTS / 2;
    while n > 0 {
        for k in 0..n {
            parts[k] += parts[k + n];
        }
        n /= 2;
    }
    parts[0]
}

/// Rows whose contributions to a sum over rows are added together before they join the total: keeps the error of
/// a sum over many rows small.
pub const ROWS: usize = 32;

/// total += part.
#[inline(always)]
pub fn add(total: &mut [f32], part: &[f32]) {
    for (total, &part) in total.iter_mut().zip(part) {
        *total += part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_summed_whole() {
        for n in 0..100 {
            let x: Vec<f32> = (1..=n).map(|i| i as f32).collect();
            let total = (n * (n + 1) / 2) as f32;
            assert_eq!(sum(&x, |x| x), total);
            assert_eq!(dot(&x, &vec![2.0; n]), 2.0 * total);
            assert_eq!(max(&x), if n == 0 { f32::NEG_INFINITY } else { n as f32 });
        }
        for at in [0, 31, 32, 40] {
            let mut x = [1.0; 41];
            x[at] = f32::NAN;
            assert!(max(&x).is_nan());
        }
    }
}
