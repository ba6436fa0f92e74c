//! Adjusted p-values of a family of tests. Order is kept.

use super::{Answer, Degenerate};

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
        smallest = smallest.min(p.len() as f64 * p[i] / (rank + 1) as f64);
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
}
