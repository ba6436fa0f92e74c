//! The element-wise function between the matrices of a feed-forward layer, with the bias before it, forward and
//! backward; plain or gated.
//!
//! Shapes: N rows of f elements; gated: rows of 2 f elements `u = gate | up` and `a = act(gate) up`.

use super::math::{normal, sigmoid, sigmoid_and_slope, softplus};
use super::{for_each_isa, sums};

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// x Phi(x).
    Gelu,
    /// x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), which is GELU's approximation by tanh.
    GeluTanh,
    /// x sigmoid(x).
    Silu,
    /// max(x, 0).
    Relu,
    /// ln(1 + e^x).
    Softplus,
}

/// Elements that are computed side by side.
const LANES: usize = 16;

/// 2 sqrt(2 / pi).
const TANH_SLOPE: f32 = 1.595_769_1;
const TANH_CUBE: f32 = 0.044_715;

#[inline(always)]
fn gelu_tanh_argument(x: f32) -> f32 {
    (TANH_SLOPE * x) * (x * x).mul_add(TANH_CUBE, 1.0)
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    x * normal(x).0
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    let (distribution, density) = normal(x);
    x.mul_add(density, distribution)
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    x * sigmoid(gelu_tanh_argument(x))
}

#[inline(always)]
fn gelu_tanh_slope(x: f32) -> f32 {
    let (s, slope) = sigmoid_and_slope(gelu_tanh_argument(x));
    let inner = TANH_SLOPE * (x * x).mul_add(3.0 * TANH_CUBE, 1.0);
    // Far out the slope is 0 and the rest infinite.
    let bend = if slope == 0.0 { 0.0 } else { (slope * x) * inner };
    s + bend
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x * sigmoid(x)
}

#[inline(always)]
fn silu_slope(x: f32) -> f32 {
    let (s, slope) = sigmoid_and_slope(x);
    slope.mul_add(x, s)
}

/// Not `max`, which drops NaN.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn relu_slope(x: f32) -> f32 {
    if x > 0.0 { 1.0 } else { 0.0 }
}

/// Runs `$rows` with the function and the slope that `$function` names.
macro_rules! by_function {
    ($function:expr, $rows:ident($($arg:expr),*)) => {
        match $function {
            Function::Gelu => $rows($($arg),*, gelu, gelu_slope),
            Function::GeluTanh => $rows($($arg),*, gelu_tanh, gelu_tanh_slope),
            Function::Silu => $rows($($arg),*, silu, silu_slope),
            Function::Relu => $rows($($arg),*, relu, relu_slope),
            Function::Softplus => $rows($($arg),*, softplus, sigmoid),
        }
    };
}

for_each_isa! {
    /// u += bias (if there is one), a = act(u). f is the length of a row.
    pub fn forward(function: Function, f: usize, bias: Option<&[f32]>, u: &mut [f32], a: &mut [f32]) {
        by_function!(function, forward_rows(f, bias, u, a));
    }
}

#[inline(always)]
fn forward_rows(
    f: usize,
    bias: Option<&[f32]>,
    u: &mut [f32],
    a: &mut [f32],
    act: impl Fn(f32) -> f32,
    _: impl Fn(f32) -> f32,
) {
    for (u, a) in u.chunks_exact_mut(f).zip(a.chunks_exact_mut(f)) {
        match bias {
            Some(bias) => {
                for ((u, a), &b) in u.iter_mut().zip(a).zip(bias) {
                    *u += b;
                    *a = act(*u);
                }
            }
            None => {
                for (u, a) in u.iter().zip(a) {
                    *a = act(*u);
                }
            }
        }
    }
}

for_each_isa! {
    /// Replaces u by its gradient `da act'(u)`, and adds the sum over rows to `dbias`. `scratch` has f elements.
    pub fn backward(
        function: Function, f: usize, u: &mut [f32], da: &[f32], dbias: Option<&mut [f32]>, scratch: &mut [f32],
    ) {
        by_function!(function, backward_rows(f, u, da, dbias, scratch));
    }
}

#[inline(always)]
fn backward_rows(
    f: usize,
    u: &mut [f32],
    da: &[f32],
    dbias: Option<&mut [f32]>,
    scratch: &mut [f32],
    _: impl Fn(f32) -> f32,
    slope: impl Fn(f32) -> f32,
) {
    let rows = u.chunks_exact_mut(f).zip(da.chunks_exact(f));
    let Some(dbias) = dbias else {
        for (u, da) in rows {
            for (u, &da) in u.iter_mut().zip(da) {
                *u = da * slope(*u);
            }
        }
        return;
    };
    let part = &mut scratch[..f];
    part.fill(0.0);
    for (n, (u, da)) in rows.enumerate() {
        if n > 0 && n % sums::ROWS == 0 {
            sums::add(dbias, part);
            part.fill(0.0);
        }
        for ((u, &da), part) in u.iter_mut().zip(da).zip(part.iter_mut()) {
            *u = da * slope(*u);
            *part += *u;
        }
    }
    sums::add(dbias, part);
}

for_each_isa! {
    /// u += bias (if there is one), a = act(gate) up. f is the length of a row of a.
    pub fn gated_forward(function: Function, f: usize, bias: Option<&[f32]>, u: &mut [f32], a: &mut [f32]) {
        by_function!(function, gated_forward_rows(f, bias, u, a));
    }
}

#[inline(always)]
fn gated_forward_rows(
    f: usize,
    bias: Option<&[f32]>,
    u: &mut [f32],
    a: &mut [f32],
    act: impl Fn(f32) -> f32,
    _: impl Fn(f32) -> f32,
) {
    for (u, a) in u.chunks_exact_mut(2 * f).zip(a.chunks_exact_mut(f)) {
        if let Some(bias) = bias {
            sums::add(u, bias);
        }
        let (gate, up) = u.split_at(f);
        for ((&gate, &up), a) in gate.iter().zip(up).zip(a) {
            *a = act(gate) * up;
        }
    }
}

for_each_isa! {
    /// Replaces u = gate | up by its gradient, and adds the sum over rows to `dbias`. `scratch` has 2 f elements.
    pub fn gated_backward(
        function: Function, f: usize, u: &mut [f32], da: &[f32], dbias: Option<&mut [f32]>, scratch: &mut [f32],
    ) {
        by_function!(function, gated_backward_rows(f, u, da, dbias, scratch));
    }
}

#[inline(always)]
fn gated_backward_rows(
    f: usize,
    u: &mut [f32],
    da: &[f32],
    mut dbias: Option<&mut [f32]>,
    scratch: &mut [f32],
    act: impl Fn(f32) -> f32,
    slope: impl Fn(f32) -> f32,
) {
    let part = &mut scratch[..2 * f];
    part.fill(0.0);
    for (n, (u, da)) in u.chunks_exact_mut(2 * f).zip(da.chunks_exact(f)).enumerate() {
        let (gate, up) = u.split_at_mut(f);
        let ((gates, gate), (ups, up), (das, da)) =
            (gate.as_chunks_mut::<LANES>(), up.as_chunks_mut::<LANES>(), da.as_chunks::<LANES>());
        let one = |gate: f32, up: f32, da: f32| ((da * up) * slope(gate), da * act(gate));
        for ((gate, up), da) in gates.iter_mut().zip(ups).zip(das) {
            // Copies, so that the compiler sees that nothing overlaps.
            let (g, u) = (*gate, *up);
            for k in 0..LANES {
                (gate[k], up[k]) = one(g[k], u[k], da[k]);
            }
        }
        for ((gate, up), &da) in gate.iter_mut().zip(up).zip(da) {
            (*gate, *up) = one(*gate, *up, da);
        }
        if let Some(dbias) = dbias.as_deref_mut() {
            if n > 0 && n % sums::ROWS == 0 {
                sums::add(dbias, part);
                part.fill(0.0);
            }
            sums::add(part, u);
        }
    }
    if let Some(dbias) = dbias {
        sums::add(dbias, part);
    }
}

for_each_isa! {
    /// w = softplus(v), times the sign if there are signs: the effective weights of a constrained matrix.
    pub fn softplus_weights(v: &[f32], signs: Option<&[f32]>, w: &mut [f32]) {
        match signs {
            None => {
                for (w, &v) in w.iter_mut().zip(v) {
                    *w = softplus(v);
                }
            }
            Some(signs) => {
                for ((w, &v), &sign) in w.iter_mut().zip(v).zip(signs) {
                    *w = softplus(v) * sign;
                }
            }
        }
    }
}

for_each_isa! {
    /// dv += dw sigmoid(v), times the sign if there are signs: the gradient through [`softplus_weights`].
    pub fn softplus_weights_backward(v: &[f32], signs: Option<&[f32]>, dw: &[f32], dv: &mut [f32]) {
        match signs {
            None => {
                for ((dv, &v), &dw) in dv.iter_mut().zip(v).zip(dw) {
                    *dv += dw * sigmoid(v);
                }
            }
            Some(signs) => {
                for (((dv, &v), &dw), &sign) in dv.iter_mut().zip(v).zip(dw).zip(signs) {
                    *dv += (dw * sign) * sigmoid(v);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::super::testing::{close, numbers, same_bits};
    use super::*;

    const ALL: [Function; 5] = [Function::Gelu, Function::GeluTanh, Function::Silu, Function::Relu, Function::Softplus];

    /// Value in f64, by the textbook.
    fn exact(function: Function, x: f64) -> f64 {
        match function {
            Function::Gelu => x * 0.5 * statrs::function::erf::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            Function::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }
            Function::Silu => x / (1.0 + (-x).exp()),
            Function::Relu => x.max(0.0),
            Function::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
        }
    }

    /// Slope by central differences in f64; exact for the bend at 0, which no test point touches.
    fn exact_slope(function: Function, x: f64) -> f64 {
        let d = 1e-5;
        (exact(function, x + d) - exact(function, x - d)) / (2.0 * d)
    }

    fn wide(n: usize, seed: u64) -> Vec<f32> {
        numbers(n, seed).into_iter().map(|x| 4.0 * x).collect()
    }

    #[test]
    fn functions_and_slopes_follow_their_definition() {
        let (n, f) = (67, 37);
        for function in ALL {
            let mut first = None;
            for isa in Isa::all() {
                let (mut u, bias, da) = (wide(n * f, 1), numbers(f, 2), numbers(n * f, 3));
                let inner: Vec<f64> = u.iter().enumerate().map(|(i, u)| f64::from(u + bias[i % f])).collect();
                let mut a = vec![0.0; n * f];
                forward(isa, function, f, Some(&bias), &mut u, &mut a);
                close(&a, &inner.iter().map(|&x| exact(function, x)).collect::<Vec<_>>(), 2e-7);
                let mut dbias = vec![1.0; f];
                backward(isa, function, f, &mut u, &da, Some(&mut dbias), &mut vec![0.0; f]);
                let du: Vec<f64> =
                    inner.iter().zip(&da).map(|(&x, &da)| f64::from(da) * exact_slope(function, x)).collect();
                close(&u, &du, 1e-6);
                let sums: Vec<f64> = (0..f).map(|c| 1.0 + du.iter().skip(c).step_by(f).sum::<f64>()).collect();
                close(&dbias, &sums, 1e-6);
                same_bits(&mut first, vec![a, u, dbias], isa);
            }
        }
    }

    #[test]
    fn gates_multiply() {
        let (n, f) = (35, 19);
        for function in ALL {
            let mut first = None;
            for isa in Isa::all() {
                let (mut u, bias, da) = (wide(n * 2 * f, 1), numbers(2 * f, 2), numbers(n * f, 3));
                let inner: Vec<f64> = u.iter().enumerate().map(|(i, u)| f64::from(u + bias[i % (2 * f)])).collect();
                let mut a = vec![0.0; n * f];
                gated_forward(isa, function, f, Some(&bias), &mut u, &mut a);
                let (mut exact_a, mut exact_du) = (vec![0.0; n * f], vec![0.0; n * 2 * f]);
                for i in 0..n * f {
                    let (gate, up) = (i / f * 2 * f + i % f, i / f * 2 * f + f + i % f);
                    let da = f64::from(da[i]);
                    exact_a[i] = exact(function, inner[gate]) * inner[up];
                    exact_du[gate] = da * inner[up] * exact_slope(function, inner[gate]);
                    exact_du[up] = da * exact(function, inner[gate]);
                }
                close(&a, &exact_a, 2e-7);
                let mut dbias = vec![1.0; 2 * f];
                gated_backward(isa, function, f, &mut u, &da, Some(&mut dbias), &mut vec![0.0; 2 * f]);
                close(&u, &exact_du, 1e-6);
                let sums: Vec<f64> =
                    (0..2 * f).map(|c| 1.0 + exact_du.iter().skip(c).step_by(2 * f).sum::<f64>()).collect();
                close(&dbias, &sums, 1e-6);
                same_bits(&mut first, vec![a, u, dbias], isa);
            }
        }
    }

    #[test]
    fn far_out_nothing_overflows() {
        for function in ALL {
            for x in [-1e30f32, -200.0, 200.0, 1e30] {
                let (mut u, mut a) = ([x], [0.0]);
                forward(Isa::best(), function, 1, None, &mut u, &mut a);
                assert_eq!(a[0], x.max(0.0), "{function:?} {x}");
                backward(Isa::best(), function, 1, &mut u, &[1.0], None, &mut []);
                assert_eq!(u[0], if x > 0.0 { 1.0 } else { 0.0 }, "{function:?} {x}");
            }
            let (mut u, mut a) = ([f32::NAN], [0.0]);
            forward(Isa::best(), function, 1, None, &mut u, &mut a);
            assert!(a[0].is_nan(), "{function:?}");
        }
    }

    #[test]
    fn constrained_weights_and_their_gradient() {
        let (v, dw) = (wide(1000, 1), numbers(1000, 2));
        let signs: Vec<f32> = numbers(1000, 3).iter().map(|x| x.signum()).collect();
        for signs in [None, Some(&signs[..])] {
            let mut first = None;
            for isa in Isa::all() {
                let sign = |i: usize| signs.map_or(1.0, |s| f64::from(s[i]));
                let (mut w, mut dv) = (vec![0.0; 1000], vec![1.0; 1000]);
                softplus_weights(isa, &v, signs, &mut w);
                softplus_weights_backward(isa, &v, signs, &dw, &mut dv);
                let exact_w: Vec<f64> =
                    (0..1000).map(|i| sign(i) * exact(Function::Softplus, f64::from(v[i]))).collect();
                close(&w, &exact_w, 2e-7);
                let exact_dv: Vec<f64> =
                    (0..1000).map(|i| 1.0 + f64::from(dw[i]) * sign(i) / (1.0 + (-f64::from(v[i])).exp())).collect();
                close(&dv, &exact_dv, 2e-7);
                same_bits(&mut first, vec![w, dv], isa);
            }
        }
    }
}
