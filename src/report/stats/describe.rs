//! Centre and spread of one sample.

use super::{Answer, Degenerate, check, finite};

/// Sum with Neumaier's compensation: the order of runs does not show in the printed digits.
pub(super) fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut total, mut lost) = (0.0f64, 0.0f64);
    for x in values {
        let next = total + x;
        lost += if total.abs() >= x.abs() { (total - next) + x } else { (x - next) + total };
        total = next;
    }
    total + lost
}

/// Arithmetic mean. Equal values give that value exactly.
///
/// # Errors
/// No values, or one that is not finite.
pub fn mean(values: &[f64]) -> Answer<f64> {
    check(values, 1)?;
    if values.iter().all(|x| *x == values[0]) {
        return Ok(values[0]);
    }
    finite(sum(values.iter().copied()) / values.len() as f64)
}

/// Sample standard deviation, divisor n - 1. Equal values give 0 exactly.
///
/// # Errors
/// Fewer than two values, or one that is not finite.
pub fn sample_sd(values: &[f64]) -> Answer<f64> {
    check(values, 2)?;
    let centre = mean(values)?;
    finite((sum(values.iter().map(|x| (x - centre).powi(2))) / (values.len() - 1) as f64).sqrt())
}

/// Median; the mean of the two middle values when their number is even.
///
/// # Errors
/// As [`mean`].
pub fn median(values: &[f64]) -> Answer<f64> {
    check(values, 1)?;
    let sorted = sorted(values);
    let half = sorted.len() / 2;
    Ok(if sorted.len() % 2 == 1 { sorted[half] } else { sorted[half - 1] / 2.0 + sorted[half] / 2.0 })
}

/// Interquartile mean: drops the floor(n/4) lowest and highest values, mean of the rest
/// (`scipy.stats.trim_mean(0.25)`; pool runs and tasks before, as rliable does).
///
/// # Errors
/// As [`mean`].
pub fn iqm(values: &[f64]) -> Answer<f64> {
    check(values, 1)?;
    let sorted = sorted(values);
    let cut = sorted.len() / 4;
    mean(&sorted[cut..sorted.len() - cut])
}

/// Quantile by linear interpolation (Hyndman and Fan's type 7, `numpy.quantile`).
///
/// # Errors
/// As [`mean`], or `p` outside 0 to 1.
pub fn quantile(values: &[f64], p: f64) -> Answer<f64> {
    check(values, 1)?;
    if !(0.0..=1.0).contains(&p) {
        return Err(Degenerate::OutOfRange);
    }
    Ok(quantile_of_sorted(&sorted(values), p))
}

/// [`quantile`] of ascending values, of which there is at least one.
pub(super) fn quantile_of_sorted(ascending: &[f64], p: f64) -> f64 {
    let place = p * (ascending.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(ascending.len() - 1);
    let (low, high) = (ascending[below], ascending[above]);
    let share = place - below as f64;
    // Without the difference, which may be beyond the range of floats.
    if low == high { low } else { low * (1.0 - share) + high * share }
}

/// Cohen's d of two samples that are not matched: difference of the means / pooled standard deviation.
///
/// # Errors
/// Fewer than two values on a side, one that is not finite, or no variance on either side.
pub fn cohens_d(left: &[f64], right: &[f64]) -> Answer<f64> {
    let (a, b) = (sample_sd(left)?, sample_sd(right)?);
    let (n, m) = (left.len() as f64, right.len() as f64);
    let pooled = (((n - 1.0) * a * a + (m - 1.0) * b * b) / (n + m - 2.0)).sqrt();
    let scale = left.iter().chain(right).fold(0.0f64, |most, x| most.max(x.abs()));
    // Within the rounding of the values there is no spread to divide by.
    if pooled <= 8.0 * f64::EPSILON * scale {
        return Err(Degenerate::NoVariance);
    }
    finite((mean(left)? - mean(right)?) / pooled)
}

/// The values in ascending order; all are finite.
pub(super) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;

    #[test]
    fn golden_vectors() {
        let accuracies = [0.91, 0.93, 0.92, 0.95, 0.89];
        assert_close(mean(&accuracies).unwrap(), 0.92, 1e-15);
        assert_close(sample_sd(&accuracies).unwrap(), 0.02236067977499788, 1e-13);
        assert_eq!(iqm(&(1..=10).map(f64::from).collect::<Vec<_>>()), Ok(5.5));
        assert_eq!(iqm(&[1.0, 2.0, 3.0, 4.0, 100.0]), Ok(3.0));
        assert_eq!(iqm(&[1.0, 2.0, 3.0]), Ok(2.0));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Ok(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Ok(2.5));
    }

    #[test]
    fn equal_runs_have_exactly_no_spread() {
        // (6.72 + 6.72 + 6.72) / 3 is not 6.72 in binary: a spread of 1e-15 would make d and t huge.
        let equal = [6.72; 3];
        assert_eq!(mean(&equal), Ok(6.72));
        assert_eq!(sample_sd(&equal), Ok(0.0));
    }

    #[test]
    fn degenerate_cases_are_answers() {
        assert_eq!(mean(&[]), Err(Degenerate::TooFew { have: 0, need: 1 }));
        assert_eq!(sample_sd(&[1.0]), Err(Degenerate::TooFew { have: 1, need: 2 }));
        assert_eq!(mean(&[1.0, f64::NAN]), Err(Degenerate::NotFinite));
        assert_eq!(iqm(&[f64::INFINITY]), Err(Degenerate::NotFinite));
    }

    #[test]
    fn quantiles_and_effects() {
        // numpy.quantile([1, 2, 4, 8], [0, 0.25, 0.5, 0.9, 1]).
        for (p, expected) in [(0.0, 1.0), (0.25, 1.75), (0.5, 3.0), (0.9, 6.8), (1.0, 8.0)] {
            assert_close(quantile(&[8.0, 1.0, 4.0, 2.0], p).unwrap(), expected, 1e-14);
        }
        assert_eq!(quantile(&[1.0], 1.5), Err(Degenerate::OutOfRange));
        // Means 3 and 5, sample variances 2.5 and 10 of 5 values each: -2 / sqrt(6.25).
        let d = cohens_d(&[1.0, 2.0, 3.0, 4.0, 5.0], &[1.0, 3.0, 5.0, 7.0, 9.0]).unwrap();
        assert_close(d, -0.8, 1e-14);
        assert_eq!(cohens_d(&[0.1 + 0.2, 0.3], &[0.3, 0.3]), Err(Degenerate::NoVariance));
        assert_eq!(cohens_d(&[1.0], &[1.0, 2.0]), Err(Degenerate::TooFew { have: 1, need: 2 }));
    }
}
