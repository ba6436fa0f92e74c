//! Power of the comparison of two proportions, by Cohen's h.
//!
//! Cohen, *Statistical Power Analysis for the Behavioral Sciences* (1988), chapter 6: the arcsine transform makes the
//! variance of a proportion 1/n whatever the proportion, so that a normal test of h has power that depends on h alone.

use statrs::distribution::{ContinuousCDF, Normal};

use super::agreement::cohens_h;
use super::{Answer, Degenerate};

/// Power of the two-sided test of two independent proportions at `alpha`, with `n1` and `n2` items
/// (`statsmodels.stats.power.NormalIndPower` on `proportion_effectsize`).
///
/// # Errors
/// A proportion outside 0 to 1, no items on a side, or an alpha outside 0 to 0.5.
pub fn power_two_proportions(p1: f64, p2: f64, n1: u64, n2: u64, alpha: f64) -> Answer<f64> {
    check_alpha(alpha)?;
    if n1 == 0 || n2 == 0 {
        return Err(Degenerate::TooFew { have: 0, need: 1 });
    }
    let h = cohens_h(p1, p2)?.abs();
    let root = (1.0 / (1.0 / n1 as f64 + 1.0 / n2 as f64)).sqrt();
    Ok(power(h * root, alpha))
}

/// The fewest items on each side with which two proportions are told apart with this power.
///
/// # Errors
/// As [`power_two_proportions`]; a power outside `alpha` to 0.9999, equal proportions, or more than 2^53 items.
pub fn size_two_proportions(p1: f64, p2: f64, power_wanted: f64, alpha: f64) -> Answer<u64> {
    check_alpha(alpha)?;
    if !(power_wanted > alpha && power_wanted <= 0.9999) {
        return Err(Degenerate::OutOfRange);
    }
    let h = cohens_h(p1, p2)?.abs();
    if h == 0.0 {
        return Err(Degenerate::NoEffect);
    }
    let enough = |n: u64| power(h * (n as f64 / 2.0).sqrt(), alpha) >= power_wanted;
    let (mut least, mut most) = (1u64, 1u64);
    while !enough(most) {
        least = most;
        most *= 2;
        if most > 1 << 53 {
            return Err(Degenerate::OutOfRange);
        }
    }
    // Invariant: `most` is enough; nothing below `least` is.
    while least < most {
        let middle = least + (most - least) / 2;
        if enough(middle) { most = middle } else { least = middle + 1 }
    }
    Ok(most)
}

fn check_alpha(alpha: f64) -> Answer<()> {
    if alpha > 0.0 && alpha < 0.5 { Ok(()) } else { Err(Degenerate::OutOfRange) }
}

/// Chance that a normal variable around `shift` leaves the two-sided acceptance region.
fn power(shift: f64, alpha: f64) -> f64 {
    let normal = Normal::standard();
    let critical = normal.inverse_cdf(1.0 - alpha / 2.0);
    normal.sf(critical - shift) + normal.cdf(-critical - shift)
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;

    /// The proportion whose h against 1/2 is `h`.
    fn beside_half(h: f64) -> f64 {
        (std::f64::consts::FRAC_PI_4 + h / 2.0).sin().powi(2)
    }

    #[test]
    fn cohens_table() {
        // Cohen (1988), table 6.4.1: n for power .80 at two-sided .05. h = .2: 392, .5: 63, .8: 25.
        for (h, n, within) in [(0.2, 392, 1), (0.5, 63, 0), (0.8, 25, 0)] {
            let got = size_two_proportions(beside_half(h), 0.5, 0.8, 0.05).unwrap();
            assert!(got.abs_diff(n) <= within, "h = {h}: {got} for {n}");
            let power = |n| power_two_proportions(beside_half(h), 0.5, n, n, 0.05).unwrap();
            assert!(power(got) >= 0.8 && power(got - 1) < 0.8, "h = {h}");
        }
    }

    #[test]
    fn power_has_its_limits() {
        // Without an effect a test is passed as often as alpha says.
        assert_close(power_two_proportions(0.3, 0.3, 50, 70, 0.05).unwrap(), 0.05, 1e-9);
        assert_close(power_two_proportions(0.0, 1.0, 100, 100, 0.05).unwrap(), 1.0, 1e-12);
        // Sides may change.
        let (one, two) =
            (power_two_proportions(0.69, 0.425, 30, 90, 0.05), power_two_proportions(0.425, 0.69, 90, 30, 0.05));
        assert_eq!(one, two);
        assert_eq!(size_two_proportions(0.3, 0.3, 0.8, 0.05), Err(Degenerate::NoEffect));
        assert_eq!(size_two_proportions(0.3, 0.4, 0.04, 0.05), Err(Degenerate::OutOfRange));
        assert_eq!(power_two_proportions(0.3, 0.4, 0, 5, 0.05), Err(Degenerate::TooFew { have: 0, need: 1 }));
        assert_eq!(power_two_proportions(1.3, 0.4, 5, 5, 0.05), Err(Degenerate::OutOfRange));
        assert_eq!(power_two_proportions(0.3, 0.4, 5, 5, 0.0), Err(Degenerate::OutOfRange));
    }
}
