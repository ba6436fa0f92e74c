//! Adjusted p-values of a family of tests. Order is kept.

use serde::{Deserialize, Serialize};

use super::{Answer, Degenerate};

/// How the p-values of a family are corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    /// Not at all.
    None,
    /// Bonferroni: the chance of any false mark.
    Bonferroni,
    /// Holm: the same, never weaker.
    Holm,
    /// Benjamini and Hochberg: the expected share of false marks among the marks.
    BenjaminiHochberg,
}

impl Correction {
    /// Its name in a study file.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bonferroni => "bonferroni",
            Self::Holm => "holm",
            Self::BenjaminiHochberg => "benjamini_hochberg",
        }
    }

    /// The corrected p-values, in order.
    ///
    /// # Errors
    /// A p outside 0 to 1.
    pub fn adjust(self, p: &[f64]) -> Answer<Vec<f64>> {
        match self {
            Self::None => check_p(p).map(|()| p.to_vec()),
            Self::Bonferroni => bonferroni(p),
            Self::Holm => holm(p),
            Self::BenjaminiHochberg => fdr(p),
        }
    }

    /// The largest p with which a test of a family of `m` can still pass `alpha`, if all go as well as they can.
    pub fn largest_p(self, m: usize, alpha: f64) -> f64 {
        match self {
            // Equal p-values pass Benjamini and Hochberg together.
            Self::None | Self::BenjaminiHochberg => alpha,
            Self::Bonferroni | Self::Holm => alpha / m.max(1) as f64,
        }
    }
}

/// Resamples that a family of `m` tests at `alpha` needs: 20 m / alpha. With them the smallest corrected p is a
/// twentieth of alpha, so that the noise of drawing does not decide.
pub fn resamples_needed(m: usize, alpha: f64) -> u64 {
    // 500 / 0.05 is 10000.000000000002 in binary.
    (20.0 * m as f64 / alpha * (1.0 - 1e-12)).ceil() as u64
}

fn check_p(p: &[f64]) -> Answer<()> {
    if p.iter().all(|p| (0.0..=1.0).contains(p)) { Ok(()) } else { Err(Degenerate::OutOfRange) }
}

/// Indices in ascending order of p.
fn ascending(p: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    order
}

/// Bonferroni: min(1, m p).
///
/// # Errors
/// A p outside 0 to 1.
pub fn bonferroni(p: &[f64]) -> Answer<Vec<f64>> {
    check_p(p)?;
    Ok(p.iter().map(|x| (x * p.len() as f64).min(1.0)).collect())
}

/// Holm's step-down: adjusted(i) = max over j <= i of min(1, (m - j + 1) p(j)).
///
/// # Errors
/// A p outside 0 to 1.
pub fn holm(p: &[f64]) -> Answer<Vec<f64>> {
    check_p(p)?;
    let mut adjusted = vec![0.0; p.len()];
    let mut largest = 0.0f64;
    for (rank, i) in ascending(p).into_iter().enumerate() {
        largest = largest.max(((p.len() - rank) as f64 * p[i]).min(1.0));
        adjusted[i] = largest;
    }
    Ok(adjusted)
}

/// Benjamini and Hochberg's step-up: adjusted(i) = min over j >= i of min(1, m p(j) / j).
///
/// # Errors
/// A p outside 0 to 1.
pub fn fdr(p: &[f64]) -> Answer<Vec<f64>> {
    check_p(p)?;
    let mut adjusted = vec![0.0; p.len()];
    let mut smallest = 1.0f64;
    for (rank, i) in ascending(p).into_iter().enumerate().rev() {
        // m / m may round to less than 1: a correction makes no p smaller.
        smallest = smallest.min((p.len() as f64 * p[i] / (rank + 1) as f64).max(p[i]));
        adjusted[i] = smallest;
    }
    Ok(adjusted)
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;

    #[track_caller]
    fn check(got: Vec<f64>, expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.into_iter().zip(expected) {
            assert_close(got, *expected, 1e-9);
        }
    }

    #[test]
    fn holm_golden_vectors() {
        check(holm(&[0.01, 0.04, 0.03, 0.005]).unwrap(), &[0.03, 0.06, 0.06, 0.02]);
        check(
            holm(&[0.001, 0.002, 0.003, 0.004, 0.005, 0.05, 0.06, 0.07, 0.08, 0.09]).unwrap(),
            &[0.01, 0.018, 0.024, 0.028, 0.03, 0.25, 0.25, 0.25, 0.25, 0.25],
        );
        // statsmodels, stats/tests/test_multi.py, pval0.
        check(
            holm(&[
                0.838541367553,
                0.642193923795,
                0.680845947633,
                0.967833824309,
                0.71626938238,
                0.177096952723,
                5.23656777208e-05,
                0.0202732688798,
                0.00028140506198,
                0.0149877310796,
            ])
            .unwrap(),
            &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.000523656777208, 0.1419128821586, 0.00253264555782, 0.1199018486368],
        );
    }

    #[test]
    fn fdr_and_bonferroni() {
        // R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "BH"), worked by hand: m p / rank = .02, .04, .04, .02.
        check(fdr(&[0.01, 0.04, 0.03, 0.005]).unwrap(), &[0.02, 0.04, 0.04, 0.02]);
        check(bonferroni(&[0.01, 0.04, 0.3]).unwrap(), &[0.03, 0.12, 0.9]);
        check(bonferroni(&[0.5, 0.6]).unwrap(), &[1.0, 1.0]);
        assert_eq!(holm(&[]), Ok(vec![]));
        assert_eq!(fdr(&[f64::NAN]), Err(Degenerate::OutOfRange));
    }

    #[test]
    fn corrections_by_name() {
        let p = [0.01, 0.04, 0.03, 0.005];
        check(Correction::None.adjust(&p).unwrap(), &p);
        check(Correction::Holm.adjust(&p).unwrap(), &holm(&p).unwrap());
        check(Correction::Bonferroni.adjust(&p).unwrap(), &[0.04, 0.16, 0.12, 0.02]);
        check(Correction::BenjaminiHochberg.adjust(&p).unwrap(), &[0.02, 0.04, 0.04, 0.02]);
        let all = [Correction::None, Correction::Holm, Correction::Bonferroni, Correction::BenjaminiHochberg];
        for correction in all {
            let text = serde_json::to_value(correction).unwrap();
            assert_eq!(text, correction.name());
            assert_eq!(correction.adjust(&[1.5]), Err(Degenerate::OutOfRange));
            // A family whose p are all the largest one passes; a little more does not.
            let (m, alpha) = (7, 0.05);
            let largest = correction.largest_p(m, alpha);
            let best = |p: f64| correction.adjust(&vec![p; m]).unwrap()[0];
            assert!(best(largest) <= alpha * (1.0 + 1e-12) && best(largest * 1.01) > alpha, "{correction:?}");
        }
    }

    #[test]
    fn resamples_for_a_family() {
        assert_eq!(resamples_needed(1, 0.05), 400);
        assert_eq!(resamples_needed(500, 0.05), 200_000);
        assert_eq!(resamples_needed(3, 0.01), 6_000);
    }
}
