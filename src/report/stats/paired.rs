//! Tests and effect sizes of matched samples: the same seeds, or the same items, under two conditions.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::describe::sum;
use super::{Answer, Degenerate, Rng, check, finite, mean, sample_sd};

/// Paired t-test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PairedT {
    /// Mean of the differences, left minus right.
    pub mean_difference: f64,
    /// Mean / (sd / sqrt(n)).
    pub t: f64,
    /// n - 1.
    pub df: usize,
    /// Two-sided.
    pub p: f64,
}

/// Differences left - right. Their spread counts as none when it is within the rounding of the
/// subtraction: equal gains at different levels differ in the last bit, and t would be astronomical.
fn differences(left: &[f64], right: &[f64], need: usize) -> Answer<Vec<f64>> {
    if left.len() != right.len() {
        return Err(Degenerate::Unmatched { left: left.len(), right: right.len() });
    }
    check(left, need)?;
    check(right, need)?;
    Ok(left.iter().zip(right).map(|(a, b)| a - b).collect())
}

fn spread(left: &[f64], right: &[f64], differences: &[f64]) -> Answer<f64> {
    let scale = left.iter().chain(right).fold(0.0f64, |m, x| m.max(x.abs()));
    let sd = sample_sd(differences)?;
    if sd <= 8.0 * f64::EPSILON * scale { Err(Degenerate::NoVariance) } else { Ok(sd) }
}

/// Paired t-test of `left` against `right`, two-sided (`scipy.stats.ttest_rel`).
///
/// # Errors
/// Different lengths, fewer than two pairs, a value that is not finite, or differences without variance.
pub fn paired_t(left: &[f64], right: &[f64]) -> Answer<PairedT> {
    let d = differences(left, right, 2)?;
    let sd = spread(left, right, &d)?;
    let mean_difference = mean(&d)?;
    let t = finite(mean_difference / (sd / (d.len() as f64).sqrt()))?;
    let df = d.len() - 1;
    let student = StudentsT::new(0.0, 1.0, df as f64).map_err(|_| Degenerate::OutOfRange)?;
    Ok(PairedT { mean_difference, t, df, p: (2.0 * student.sf(t.abs())).min(1.0) })
}

/// Paired Cohen's d: mean of the differences / their sample sd.
///
/// # Errors
/// As [`paired_t`].
pub fn cohens_d_paired(left: &[f64], right: &[f64]) -> Answer<f64> {
    let d = differences(left, right, 2)?;
    finite(mean(&d)? / spread(left, right, &d)?)
}

/// Sign-flip (randomisation) test of matched differences.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SignFlip {
    /// Two-sided p.
    pub p: f64,
    /// Sign patterns that were tried.
    pub flips: u64,
    /// All 2^n patterns were tried; otherwise drawn ones, with the (c + 1) / (N + 1) correction.
    pub exact: bool,
    /// Smallest p that this n and this number of flips can give.
    pub smallest_p: f64,
}

/// Flips the sign of each difference with probability 1/2; p is the share of patterns whose mean is at
/// least as far from zero as the observed one. All patterns are tried if 2^n <= `max_flips`, else
/// `max_flips` drawn ones.
///
/// # Errors
/// No differences, one that is not finite, or no flips allowed.
pub fn sign_flip(differences: &[f64], max_flips: u64, seed: u64) -> Answer<SignFlip> {
    check(differences, 1)?;
    if max_flips == 0 {
        return Err(Degenerate::OutOfRange);
    }
    let n = differences.len();
    // Sums beyond the range of floats could not be compared.
    finite(differences.iter().map(|d| d.abs()).sum())?;
    let observed = sum(differences.iter().copied()).abs();
    // Equal sums in another order differ in the last bits; they count as equal.
    let slack = 1e-12 * sum(differences.iter().map(|d| d.abs()));
    let reaches = |signed: f64| signed.abs() >= observed - slack;
    let exact = flips_all(n, max_flips);
    if exact {
        let all = 1u64 << n;
        let hits = (0..all)
            .filter(|pattern| {
                reaches(sum(differences.iter().enumerate().map(|(i, d)| if pattern >> i & 1 == 1 { -d } else { *d })))
            })
            .count();
        return Ok(SignFlip {
            p: hits as f64 / all as f64,
            flips: all,
            exact,
            smallest_p: smallest_sign_flip_p(n, max_flips),
        });
    }
    let mut rng = Rng::new(seed);
    let mut hits = 0u64;
    for _ in 0..max_flips {
        let mut bits = 0;
        let signed = sum(differences.iter().enumerate().map(|(i, d)| {
            if i % 64 == 0 {
                bits = rng.next_u64();
            }
            let flip = bits >> (i % 64) & 1 == 1;
            if flip { -d } else { *d }
        }));
        hits += u64::from(reaches(signed));
    }
    let corrected = |hits: u64| (hits + 1) as f64 / (max_flips + 1) as f64;
    Ok(SignFlip { p: corrected(hits), flips: max_flips, exact, smallest_p: smallest_sign_flip_p(n, max_flips) })
}

/// The smallest p that a sign-flip test of `n` differences can give with at most `max_flips` patterns.
pub fn smallest_sign_flip_p(n: usize, max_flips: u64) -> f64 {
    if flips_all(n, max_flips) { (2.0 / (1u64 << n) as f64).min(1.0) } else { 1.0 / (max_flips + 1) as f64 }
}

/// Whether all 2^n patterns are tried.
pub fn flips_all(n: usize, max_flips: u64) -> bool {
    n < 63 && (1u64 << n) <= max_flips
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;

    #[test]
    fn paired_t_golden_vector() {
        let d = [0.01, 0.02, 0.03, 0.02, 0.02];
        let got = paired_t(&d, &[0.0; 5]).unwrap();
        assert_close(got.t, 6.32455532033676, 1e-12);
        assert_close(got.p, 0.003198202152335128, 1e-12);
        assert_eq!(got.df, 4);
        assert_close(cohens_d_paired(&d, &[0.0; 5]).unwrap(), 6.32455532033676 / 5f64.sqrt(), 1e-12);
        let back = paired_t(&[0.0; 5], &d).unwrap();
        assert_eq!((back.t, back.p), (-got.t, got.p));
    }

    #[test]
    fn equal_gains_are_degenerate_at_any_level() {
        assert_eq!(paired_t(&[6.72; 3], &[6.72; 3]), Err(Degenerate::NoVariance));
        // 0.93 - 0.91, 0.95 - 0.93 and 0.43 - 0.41 differ in the last bit.
        let (left, right) = ([0.93, 0.95, 0.43], [0.91, 0.93, 0.41]);
        assert_eq!(paired_t(&left, &right), Err(Degenerate::NoVariance));
        assert_eq!(cohens_d_paired(&left, &right), Err(Degenerate::NoVariance));
        assert_eq!(paired_t(&[1.0], &[2.0]), Err(Degenerate::TooFew { have: 1, need: 2 }));
        assert_eq!(paired_t(&[1.0], &[2.0, 3.0]), Err(Degenerate::Unmatched { left: 1, right: 2 }));
    }

    #[test]
    fn sign_flip_of_four_is_exact() {
        let got = sign_flip(&[0.02, 0.01, 0.03, -0.01], 10_000, 1).unwrap();
        assert_eq!((got.p, got.flips, got.exact), (6.0 / 16.0, 16, true));
        // Five seeds cannot go below 0.0625.
        let five = sign_flip(&[1.0, 2.0, 3.0, 4.0, 5.0], 10_000, 1).unwrap();
        assert_eq!((five.p, five.smallest_p), (0.0625, 0.0625));
        assert_eq!(smallest_sign_flip_p(5, 16), 1.0 / 17.0, "drawn where all are too many");
    }

    #[test]
    fn drawn_flips_agree_with_all_of_them() {
        let d = [0.4, -0.1, 0.3, 0.25, -0.2, 0.15, 0.05, 0.35, -0.3, 0.1];
        let exact = sign_flip(&d, 1024, 0).unwrap();
        let drawn = sign_flip(&d, 1000, 7).unwrap();
        assert!(exact.exact && !drawn.exact);
        assert!((exact.p - drawn.p).abs() < 4.0 * (exact.p / 1000.0).sqrt(), "{exact:?} {drawn:?}");
        assert_eq!(drawn, sign_flip(&d, 1000, 7).unwrap());
        assert_eq!(sign_flip(&[0.0; 30], 999, 3).unwrap().p, 1.0, "identical systems are not significant");
    }
}
