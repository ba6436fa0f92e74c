//! Intervals with a closed form.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use super::{Answer, Degenerate, check, finite, mean, sample_sd};

/// A two-sided interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
}

/// Confidence levels that have an interval. Outside, the tail of the quantile functions is no longer
/// trustworthy, and nobody reports it.
fn check_level(level: f64) -> Answer<()> {
    if (0.5..=0.9999).contains(&level) { Ok(()) } else { Err(Degenerate::OutOfRange) }
}

/// Mean -+ t quantile of n - 1 degrees of freedom x sd / sqrt(n), for `level` such as 0.95.
///
/// # Errors
/// Fewer than two values, one that is not finite, or a level outside 0.5 to 0.9999.
pub fn t_interval(values: &[f64], level: f64) -> Answer<Interval> {
    check(values, 2)?;
    check_level(level)?;
    let half = t_quantile(0.5 + level / 2.0, values.len() - 1)? * sample_sd(values)? / (values.len() as f64).sqrt();
    let centre = mean(values)?;
    Ok(Interval { lower: finite(centre - half)?, upper: finite(centre + half)? })
}

/// Quantile of Student's t with `df` degrees of freedom.
pub(super) fn t_quantile(p: f64, df: usize) -> Answer<f64> {
    let t = StudentsT::new(0.0, 1.0, df as f64).map_err(|_| Degenerate::OutOfRange)?;
    Ok(t.inverse_cdf(p))
}

/// Wilson's score interval of a proportion, without continuity correction.
///
/// # Errors
/// No trials, more successes than trials, or a level outside 0.5 to 0.9999.
pub fn wilson(successes: u64, trials: u64, level: f64) -> Answer<Interval> {
    if trials == 0 {
        return Err(Degenerate::TooFew { have: 0, need: 1 });
    }
    if successes > trials {
        return Err(Degenerate::OutOfRange);
    }
    check_level(level)?;
    let z = Normal::standard().inverse_cdf(0.5 + level / 2.0);
    let (n, p) = (trials as f64, successes as f64 / trials as f64);
    let centre = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    // The ends are exact at 0 and n; rounding would leave 1e-18 of a negative proportion there.
    Ok(Interval {
        lower: if successes == 0 { 0.0 } else { (centre - half) / scale },
        upper: if successes == trials { 1.0 } else { (centre + half) / scale },
    })
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;

    #[test]
    fn t_quantiles() {
        for (df, expected) in
            [(1, 12.706204736174694), (2, 4.302652729749462), (4, 2.776445105197793), (9, 2.262157162798204)]
        {
            assert_close(t_quantile(0.975, df).unwrap(), expected, 1e-13);
        }
    }

    #[test]
    fn t_interval_of_five() {
        let interval = t_interval(&[0.91, 0.93, 0.92, 0.95, 0.89], 0.95).unwrap();
        assert_close(interval.upper - 0.92, 0.027764451051977907, 1e-12);
        assert_close(0.92 - interval.lower, 0.027764451051977907, 1e-12);
        assert_eq!(t_interval(&[1.0], 0.95), Err(Degenerate::TooFew { have: 1, need: 2 }));
        assert_eq!(t_interval(&[1.0, 2.0], 1.0), Err(Degenerate::OutOfRange));
        let none = t_interval(&[6.72; 3], 0.95).unwrap();
        assert_eq!((none.lower, none.upper), (6.72, 6.72));
    }

    #[test]
    fn wilson_intervals() {
        // Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263, 15/148, 0/20, 1/29.
        for (k, n, lower, upper) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let got = wilson(k, n, 0.95).unwrap();
            assert!((got.lower - lower).abs() < 5e-5 && (got.upper - upper).abs() < 5e-5, "{k}/{n}: {got:?}");
        }
        assert_eq!(wilson(20, 20, 0.95).unwrap().upper, 1.0);
        assert!(wilson(0, 0, 0.95).is_err());
        assert!(wilson(3, 2, 0.95).is_err());
    }
}
