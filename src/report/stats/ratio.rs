//! Ratios of two means, with an error.

use serde::Serialize;

use super::describe::{quantile_of_sorted, sum};
use super::interval::t_quantile;
use super::{Answer, Bootstrap, Degenerate, Interval, Resamples, Rng, check, finite, mean, sample_sd};

/// A ratio of means.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// Mean of the left / mean of the right.
    pub ratio: f64,
    /// Propagated standard deviation: |r| sqrt((s1 / m1)^2 + (s2 / m2)^2); absent with one value a side.
    pub sd: Option<f64>,
    /// The same of the standard errors, times t of n - 1 degrees of freedom, n the smaller sample that varies.
    pub interval: Option<Interval>,
}

/// Ratio of the means of two samples that are taken as independent (first-order propagation, as hyperfine does). A side
/// of one value is a constant without an error.
///
/// # Errors
/// An empty side, a value that is not finite, a mean of 0 on the right, or a level outside 0.5 to 0.9999.
pub fn ratio(left: &[f64], right: &[f64], level: f64) -> Answer<Ratio> {
    let (top, bottom) = (mean(left)?, mean(right)?);
    if !(0.5..=0.9999).contains(&level) {
        return Err(Degenerate::OutOfRange);
    }
    if bottom == 0.0 {
        return Err(Degenerate::ZeroDenominator);
    }
    let ratio = top / bottom;
    if !ratio.is_finite() {
        return Err(Degenerate::ZeroDenominator);
    }
    let varies = |values: &[f64]| (values.len() > 1).then(|| sample_sd(values)).transpose();
    let (s1, s2) = (varies(left)?, varies(right)?);
    if s1.is_none() && s2.is_none() {
        return Ok(Ratio { ratio, sd: None, interval: None });
    }
    // |r| sqrt((s1/m1)^2 + (s2/m2)^2) without dividing by m1, which may be 0.
    let combined = |a: f64, b: f64| (a / bottom).hypot(ratio * b / bottom);
    let sd = combined(s1.unwrap_or(0.0), s2.unwrap_or(0.0));
    let error = |s: Option<f64>, n: usize| s.unwrap_or(0.0) / (n as f64).sqrt();
    let se = combined(error(s1, left.len()), error(s2, right.len()));
    let n = [(s1, left.len()), (s2, right.len())].iter().filter(|(s, _)| s.is_some()).map(|(_, n)| *n).min();
    // One of the sides varies, so it has two values.
    let half = finite(t_quantile(0.5 + level / 2.0, n.unwrap_or(2) - 1)? * se)?;
    finite(sd).and(finite(ratio - half)).and(finite(ratio + half))?;
    Ok(Ratio { ratio, sd: Some(sd), interval: Some(Interval { lower: ratio - half, upper: ratio + half }) })
}

/// Percentile bootstrap of a ratio of means of pairs: pairs are drawn with replacement, so what both sides share
/// cancels. `pairs` are taken in the order of their keys by the caller; the answer does not depend on it.
///
/// # Errors
/// Fewer than two pairs, a value that is not finite, no resamples, a level outside 0 to 1, or right sides whose means
/// are not all of one sign.
pub fn bootstrap_ratio(pairs: &[(f64, f64)], level: f64, resamples: Resamples) -> Answer<Bootstrap> {
    let mut pairs = pairs.to_vec();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let (left, right): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    check(&left, 2)?;
    check(&right, 2)?;
    if resamples.count == 0 || !(level > 0.0 && level < 1.0) {
        return Err(Degenerate::OutOfRange);
    }
    // A resample may be one pair n times: with two signs some denominators are near 0.
    if !(right.iter().all(|x| *x > 0.0) || right.iter().all(|x| *x < 0.0)) {
        return Err(Degenerate::ZeroDenominator);
    }
    let n = pairs.len();
    let mut rng = Rng::new(resamples.seed);
    let mut ratios = Vec::with_capacity(resamples.count);
    let mut drawn = vec![0usize; n];
    for _ in 0..resamples.count {
        drawn.iter_mut().for_each(|i| *i = rng.below(n as u64) as usize);
        ratios.push(sum(drawn.iter().map(|i| left[*i])) / sum(drawn.iter().map(|i| right[*i])));
    }
    if ratios.iter().any(|r| !r.is_finite()) {
        return Err(Degenerate::NotFinite);
    }
    ratios.sort_by(f64::total_cmp);
    summary(&ratios, level)
}

/// Percentiles and spread of resampled statistics in ascending order.
pub(super) fn summary(ascending: &[f64], level: f64) -> Answer<Bootstrap> {
    let count = ascending.len();
    let centre = sum(ascending.iter().copied()) / count as f64;
    let se = (sum(ascending.iter().map(|x| (x - centre).powi(2))) / count.saturating_sub(1).max(1) as f64).sqrt();
    let interval = Interval {
        lower: quantile_of_sorted(ascending, (1.0 - level) / 2.0),
        upper: quantile_of_sorted(ascending, 0.5 + level / 2.0),
    };
    finite(interval.lower).and(finite(interval.upper)).and(finite(se))?;
    Ok(Bootstrap { interval, se, resamples: count, exact: false })
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;

    const DRAWN: Resamples = Resamples { count: 4000, seed: 20_240_501 };

    #[test]
    fn errors_are_propagated() {
        // Means 4 and 2, sds 1 and 0.2: r = 2, sd = 2 sqrt(1/16 + 1/100).
        let left = [3.0, 4.0, 5.0];
        let right = [1.8, 2.0, 2.2];
        let got = ratio(&left, &right, 0.95).unwrap();
        assert_close(got.ratio, 2.0, 1e-15);
        let sd = 2.0 * (1.0f64 / 16.0 + 1.0 / 100.0).sqrt();
        assert_close(got.sd.unwrap(), sd, 1e-12);
        // t of two degrees of freedom.
        let half = 4.302652729749462 * sd / 3f64.sqrt();
        assert_close(got.interval.unwrap().upper - 2.0, half, 1e-10);
        // A constant on the right has no error.
        let by_constant = ratio(&left, &[2.0], 0.95).unwrap();
        assert_close(by_constant.sd.unwrap(), 0.5, 1e-12);
        assert_eq!(ratio(&[3.0], &[2.0], 0.95).unwrap(), Ratio { ratio: 1.5, sd: None, interval: None });
        // A numerator around 0 is no problem.
        assert_close(ratio(&[-1.0, 1.0], &[2.0, 2.0], 0.95).unwrap().sd.unwrap(), 2f64.sqrt() / 2.0, 1e-12);
    }

    #[test]
    fn a_ratio_to_zero_is_degenerate() {
        assert_eq!(ratio(&[1.0, 2.0], &[-1.0, 1.0], 0.95), Err(Degenerate::ZeroDenominator));
        assert_eq!(ratio(&[1.0], &[], 0.95), Err(Degenerate::TooFew { have: 0, need: 1 }));
        let pairs = [(1.0, 1.0), (2.0, -1.0), (3.0, 1.0)];
        assert_eq!(bootstrap_ratio(&pairs, 0.95, DRAWN), Err(Degenerate::ZeroDenominator));
        assert_eq!(bootstrap_ratio(&pairs[..1], 0.95, DRAWN), Err(Degenerate::TooFew { have: 1, need: 2 }));
    }

    #[test]
    fn what_both_sides_share_cancels_in_a_paired_bootstrap() {
        let exact: Vec<(f64, f64)> = (1..=12).map(|i| (3.0 * f64::from(i), f64::from(i))).collect();
        let got = bootstrap_ratio(&exact, 0.95, DRAWN).unwrap();
        assert_close(got.interval.lower, 3.0, 1e-12);
        assert_close(got.interval.upper, 3.0, 1e-12);
        // Taken as independent, the same values have a wide interval.
        let (left, right): (Vec<f64>, Vec<f64>) = exact.into_iter().unzip();
        let wide = ratio(&left, &right, 0.95).unwrap().interval.unwrap();
        assert!(wide.upper - wide.lower > 1.0);
    }

    #[test]
    fn the_order_of_pairs_does_not_matter() {
        let mut pairs: Vec<(f64, f64)> = (0..9).map(|i| (f64::from(i * i % 7) + 1.0, f64::from(i % 4) + 2.0)).collect();
        let one = bootstrap_ratio(&pairs, 0.9, DRAWN).unwrap();
        pairs.reverse();
        assert_eq!(one, bootstrap_ratio(&pairs, 0.9, DRAWN).unwrap());
        assert!(one.interval.lower < one.interval.upper);
        // First-order theory and resampling agree on the size of the error.
        let (left, right): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
        let center = ratio(&left, &right, 0.9).unwrap().ratio;
        assert!(one.interval.lower < center && center < one.interval.upper);
    }
}
