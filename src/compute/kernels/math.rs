//! Elementary functions of one f32, written without branches or calls so that a loop over them becomes vector
//! code, with the same bits on every instruction set.
//!
//! Errors are below two units in the last place unless said otherwise. NaN goes in and comes out. Coefficients
//! are least-maximum fits of the relative error (Lawson's iteration), rounded to f32.

/// log2(e), and ln(2) as the sum of a short and a small number, so that `n * LN_2_HIGH` is exact.
const LOG2_E: f32 = std::f32::consts::LOG2_E;
const LN_2_HIGH: f32 = 0.693_359_375;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// 1.5 * 2^23: adding it rounds to a whole number, which then stands in the low bits.
const ROUND: f32 = 12_582_912.0;

/// e^x. Results below 2^-125 are 0, those above the largest f32 are infinite.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Not `clamp` or `min`: NaN must stay NaN.
    let limited = if x > 89.0 { 89.0 } else { x };
    let limited = if limited < -87.0 { -87.0 } else { limited };
    let shifted = limited.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = (-n).mul_add(LN_2_LOW, (-n).mul_add(LN_2_HIGH, limited));
    let p = 1.381_460_6e-3f32
        .mul_add(r, 8.368_719e-3)
        .mul_add(r, 4.166_839e-2)
        .mul_add(r, 1.666_652_1e-1)
        .mul_add(r, 4.999_999_4e-1)
        .mul_add(r * r, r);
    // 2^(n - 1) from n, which lies between -126 and 128; the other factor of 2 lets the largest results be finite.
    let half = f32::from_bits(shifted.to_bits().wrapping_add(126) << 23);
    let y = (p * half + half) * 2.0;
    if x < -86.6 { 0.0 } else { y }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    sigmoid_and_slope(x).0
}

/// s = 1 / (1 + e^-x) and s (1 - s).
#[inline(always)]
pub fn sigmoid_and_slope(x: f32) -> (f32, f32) {
    let e = exp(-x.abs());
    let large = 1.0 / (1.0 + e);
    let small = e * large;
    (if x < 0.0 { small } else { large }, small * large)
}

/// ln(1 + e^x).
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    let e = exp(-x.abs());
    // ln(1 + e) = 2 artanh(z), z = e / (2 + e) <= 1/3.
    let z = e / (2.0 + e);
    let s = z * z;
    let p = 1.400_607_8e-1f32.mul_add(s, 1.400_088_7e-1).mul_add(s, 2.001_076_5e-1).mul_add(s, 3.333_320_9e-1);
    let log = 2.0 * z.mul_add(p * s, z);
    let positive = if x < 0.0 { 0.0 } else { x };
    positive + log
}

/// The normal distribution up to x, and its density there; each to eight units in the last place where |x| < 1,
/// beyond that to what rounding x^2 / 2 makes of e^(-x^2 / 2).
#[inline(always)]
pub fn normal(x: f32) -> (f32, f32) {
    let a = x.abs();
    let e = exp(-0.5 * x * x);
    // Phi(-a) = e^(-a^2/2) q P(q): the scaled complement of the error function in q = 1 / (1 + 0.21 a).
    let q = 1.0 / 0.21f32.mul_add(a, 1.0);
    let p = (-7.150_938_4e-2f32)
        .mul_add(q, 2.828_634_1e-1)
        .mul_add(q, -3.287_243_5e-1)
        .mul_add(q, 3.476_047_5e-1)
        .mul_add(q, -9.264_108_5e-2)
        .mul_add(q, 1.243_014_5e-1)
        .mul_add(q, 6.934_644_3e-2)
        .mul_add(q, 8.504_575_5e-2)
        .mul_add(q, 8.371_304_7e-2);
    let tail = e * (p * q);
    (if x < 0.0 { tail } else { 1.0 - tail }, e * 0.398_942_28)
}

/// ln(x) of a positive, normal f64, to about 1e-15: the C library's differs between its versions.
pub fn ln_f64(x: f64) -> f64 {
    if !(x >= f64::MIN_POSITIVE && x.is_finite()) {
        return if x == 0.0 {
            f64::NEG_INFINITY
        } else if x == f64::INFINITY {
            x
        } else {
            f64::NAN
        };
    }
    ln_normal(x)
}

/// As [`ln_f64`], of a number that is positive and normal, or NaN: for loops.
#[inline(always)]
pub fn ln_normal(x: f64) -> f64 {
    // x = m 2^n with m in [1/sqrt(2), sqrt(2)); ln m = 2 artanh((m - 1) / (m + 1)).
    let bits = x.to_bits();
    let exponent = (bits.wrapping_sub(0x3FE6_A09E_667F_3BCD) as i64) >> 52;
    let m = f64::from_bits(bits.wrapping_sub((exponent as u64) << 52));
    // A number below 2^11 is exact in the low bits of 1.5 * 2^52: a conversion that is vector code everywhere.
    let n = f64::from_bits(0x4338_0000_0000_0000_u64.wrapping_add(exponent as u64)) - 6_755_399_441_055_744.0;
    let z = (m - 1.0) / (m + 1.0);
    let s = z * z;
    // |z| <= 0.172: the series ends where s^10 / 21 is below 1e-16.
    let series = (1.0 / 19.0f64)
        .mul_add(s, 1.0 / 17.0)
        .mul_add(s, 1.0 / 15.0)
        .mul_add(s, 1.0 / 13.0)
        .mul_add(s, 1.0 / 11.0)
        .mul_add(s, 1.0 / 9.0)
        .mul_add(s, 1.0 / 7.0)
        .mul_add(s, 1.0 / 5.0)
        .mul_add(s, 1.0 / 3.0)
        .mul_add(s, 1.0);
    n * std::f64::consts::LN_2 + 2.0 * z * series
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error of `f` against `exact` over `points`, in units of the exact result's last place.
    fn worst(points: impl Iterator<Item = f32>, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        points.fold(0.0, |worst, x| {
            let (y, exact) = (f64::from(f(x)), exact(f64::from(x)));
            let last_place = (exact.abs().max(2.0f64.powi(-120)).log2().floor() - 23.0).exp2();
            assert!(y.is_finite() && exact.is_finite(), "{x}");
            worst.max((y - exact).abs() / last_place)
        })
    }

    fn range(from: f32, to: f32) -> impl Iterator<Item = f32> {
        let n = 100_003;
        (0..=n).map(move |i| from + (to - from) * (i as f32 / n as f32))
    }

    #[test]
    fn errors_are_below_two_units_in_the_last_place() {
        assert!(worst(range(-86.5, 88.7), exp, f64::exp) < 1.5, "{}", worst(range(-86.5, 88.7), exp, f64::exp));
        let exact = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!(worst(range(-80.0, 40.0), sigmoid, exact) < 2.5, "{}", worst(range(-80.0, 40.0), sigmoid, exact));
        let exact = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
        assert!(worst(range(-80.0, 90.0), softplus, exact) < 2.5, "{}", worst(range(-80.0, 90.0), softplus, exact));
        let phi = |x: f64| 0.5 * statrs::function::erf::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        let got = worst(range(-1.0, 12.0), |x| normal(x).0, phi);
        assert!(got < 8.0, "{got}");
        let got = worst(range(-12.0, -1.0), |x| normal(x).0, phi);
        assert!(got < 80.0, "{got}");
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let got = worst(range(-3.0, 3.0), |x| normal(x).1, density);
        assert!(got < 6.0, "{got}");
    }

    #[test]
    fn ends_and_special_values() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!((exp(-100.0), exp(f32::NEG_INFINITY), exp(100.0)), (0.0, 0.0, f32::INFINITY));
        assert!([exp(f32::NAN), sigmoid(f32::NAN), softplus(f32::NAN), normal(f32::NAN).0].iter().all(|y| y.is_nan()));
        assert_eq!((sigmoid(-200.0), sigmoid(200.0)), (0.0, 1.0));
        assert_eq!((softplus(-200.0), softplus(200.0)), (0.0, 200.0));
        assert_eq!((normal(-40.0), normal(40.0)), ((0.0, 0.0), (1.0, 0.0)));
        assert_eq!(normal(0.0).0, 0.5);
    }

    #[test]
    fn logarithm_in_f64() {
        for k in 0..20_000 {
            let x = (f64::from(k) * 0.035 - 350.0).exp();
            let exact = x.ln();
            assert!((ln_f64(x) - exact).abs() <= 4e-16 * exact.abs().max(1.0), "{x}");
        }
        assert_eq!((ln_f64(1.0), ln_f64(0.0)), (0.0, f64::NEG_INFINITY));
        assert!(ln_f64(f64::NAN).is_nan() && ln_f64(-1.0).is_nan() && ln_f64(f64::INFINITY) == f64::INFINITY);
    }
}
