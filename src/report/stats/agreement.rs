//! Agreement and difference of two classifiers on the same items.

use serde::Serialize;
use statrs::distribution::{ChiSquared, ContinuousCDF, Normal};

use super::describe::sum;
use super::{Answer, Degenerate, Interval};

/// McNemar's test, all its forms. `None` where a form is 0/0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mcnemar {
    /// Two-sided exact binomial p; 1 when no item differs.
    pub exact_p: f64,
    /// Mid-p: the exact one less the probability of the observed split; 1 when no item differs.
    pub mid_p: f64,
    /// (b - c)^2 / (b + c) and its p with one degree of freedom.
    pub chi2: Option<(f64, f64)>,
    /// The same with Yates' correction, (|b - c| - 1)^2 / (b + c).
    pub chi2_corrected: Option<(f64, f64)>,
}

/// McNemar's test of two fixed classifiers on one set of items: `b` and `c` count the items that only the
/// first, only the second gets right. Tables of several seeds must not be added up: the items repeat.
pub fn mcnemar(b: u64, c: u64) -> Mcnemar {
    // Counts that do not fit are none that anybody counted.
    let n = b.saturating_add(c);
    if n == 0 {
        return Mcnemar { exact_p: 1.0, mid_p: 1.0, chi2: None, chi2_corrected: None };
    }
    let sums = (n <= MOST_SUMMED).then(|| half_binomial(n, b.min(c)));
    let (n, gap) = (n as f64, b.abs_diff(c) as f64);
    let with_p = |statistic: f64| {
        // One degree of freedom is a valid parameter; 1 is the tail at zero.
        let p = ChiSquared::new(1.0).map_or(1.0, |d| d.sf(statistic));
        (statistic, p)
    };
    let (chi2, corrected) = (with_p(gap * gap / n), with_p((gap - 1.0).max(0.0).powi(2) / n));
    // Beyond any test set the normal forms are the exact ones.
    let (exact_p, mid_p) =
        sums.map_or((corrected.1, chi2.1), |(tail, point)| ((2.0 * tail).min(1.0), (2.0 * tail).min(1.0) - point));
    Mcnemar { exact_p, mid_p, chi2: Some(chi2), chi2_corrected: Some(corrected) }
}

/// Up to so many differing items binomial terms are summed: about the square root of this many.
const MOST_SUMMED: u64 = 1 << 40;

/// Below so many, the probability of a split is a product; above, Loader's formula.
const PRODUCT: u64 = 10_000;

/// P[Bin(n, 1/2) <= k] and P[Bin(n, 1/2) = k] for k <= n/2, summed from the largest term down until the rest changes
/// nothing; incomplete-beta routines are off by 2e-13 here.
fn half_binomial(n: u64, k: u64) -> (f64, f64) {
    let point = if k <= PRODUCT { by_product(n, k) } else { by_loader(n, k) };
    let (mut tail, mut term) = (0.0, point);
    for j in (0..=k).rev() {
        tail += term;
        term *= j as f64 / (n - j + 1) as f64;
        if term <= tail * 1e-20 {
            break;
        }
    }
    (tail, point)
}

/// C(n, k) / 2^n as a product that never overflows: halved whenever it exceeds 1.
fn by_product(n: u64, k: u64) -> f64 {
    let (mut point, mut halvings) = (1.0f64, n);
    for i in 1..=k {
        point *= (n - k + i) as f64 / i as f64;
        while point > 1.0 && halvings > 0 {
            point *= 0.5;
            halvings -= 1;
        }
    }
    while halvings > 0 && point > 0.0 {
        let step = halvings.min(1000);
        point *= 0.5f64.powi(step as i32);
        halvings -= step;
    }
    point
}

/// C(n, k) / 2^n without large numbers that cancel (Loader 2000, "Fast and accurate computation of binomial
/// probabilities"). Both k and n - k are large.
fn by_loader(n: u64, k: u64) -> f64 {
    let (all, hits, misses) = (n as f64, k as f64, (n - k) as f64);
    // What Stirling's formula lacks of ln x!.
    let stirling = |x: f64| (1.0 / 12.0 - (1.0 / 360.0 - 1.0 / 1260.0 / (x * x)) / (x * x)) / x;
    let exponent =
        stirling(all) - stirling(hits) - stirling(misses) - deviance(hits, all / 2.0) - deviance(misses, all / 2.0);
    (all / (2.0 * std::f64::consts::PI * hits * misses)).sqrt() * exponent.exp()
}

/// x ln(x / m) + m - x, by its series where x is near m.
fn deviance(x: f64, m: f64) -> f64 {
    if (x - m).abs() >= 0.1 * (x + m) {
        return x * (x / m).ln() + m - x;
    }
    let v = (x - m) / (x + m);
    let (mut total, mut power) = ((x - m) * v, 2.0 * x * v);
    for j in 1..1000 {
        power *= v * v;
        let next = total + power / f64::from(2 * j + 1);
        if next == total {
            break;
        }
        total = next;
    }
    total
}

/// Cohen's h of two proportions: 2 asin sqrt(p1) - 2 asin sqrt(p2).
///
/// # Errors
/// A proportion outside 0 to 1.
pub fn cohens_h(p1: f64, p2: f64) -> Answer<f64> {
    if (0.0..=1.0).contains(&p1) && (0.0..=1.0).contains(&p2) {
        Ok(2.0 * p1.sqrt().asin() - 2.0 * p2.sqrt().asin())
    } else {
        Err(Degenerate::OutOfRange)
    }
}

/// Cohen's kappa with its errors (Fleiss, Cohen and Everitt 1969).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Kappa {
    /// (p_o - p_e) / (1 - p_e).
    pub kappa: f64,
    /// Asymptotic standard error.
    pub ase: f64,
    /// Asymptotic standard error under kappa = 0.
    pub ase_null: f64,
    /// kappa / ase_null.
    pub z: f64,
    /// kappa -+ 1.96 ase.
    pub interval95: Interval,
}

/// Cohen's kappa of a square table of counts: rows the first rater, columns the second.
///
/// # Errors
/// A table that is not square, is empty, or whose chance agreement is complete.
pub fn kappa(table: &[Vec<u64>]) -> Answer<Kappa> {
    let p = Proportions::new(table)?;
    let k = p.rows.len();
    let observed = sum((0..k).map(|i| p.cells[i][i]));
    let chance = sum((0..k).map(|i| p.rows[i] * p.columns[i]));
    if 1.0 - chance <= f64::EPSILON {
        return Err(Degenerate::FullChanceAgreement);
    }
    let kappa = (observed - chance) / (1.0 - chance);
    let diagonal = sum((0..k).map(|i| p.cells[i][i] * (1.0 - (p.rows[i] + p.columns[i]) * (1.0 - kappa)).powi(2)));
    let mut off = 0.0;
    for i in 0..k {
        for j in (0..k).filter(|j| *j != i) {
            off += p.cells[i][j] * (p.columns[i] + p.rows[j]).powi(2);
        }
    }
    let scale = p.n * (1.0 - chance).powi(2);
    let variance = (diagonal + (1.0 - kappa).powi(2) * off - (kappa - chance * (1.0 - kappa)).powi(2)) / scale;
    let null = chance + chance * chance - sum((0..k).map(|i| p.rows[i] * p.columns[i] * (p.rows[i] + p.columns[i])));
    let ase = variance.max(0.0).sqrt();
    let ase_null = (null / scale).max(0.0).sqrt();
    if ase_null == 0.0 {
        return Err(Degenerate::NoVariance);
    }
    let half = Normal::standard().inverse_cdf(0.975) * ase;
    Ok(Kappa {
        kappa,
        ase,
        ase_null,
        z: kappa / ase_null,
        interval95: Interval { lower: kappa - half, upper: kappa + half },
    })
}

/// Linear-weighted kappa: 1 - sum(w o) / sum(w e) with w = |i - j|.
///
/// # Errors
/// As [`kappa`].
pub fn weighted_kappa(table: &[Vec<u64>]) -> Answer<f64> {
    let p = Proportions::new(table)?;
    let k = p.rows.len();
    let (mut observed, mut chance) = (0.0, 0.0);
    for i in 0..k {
        for j in 0..k {
            let weight = i.abs_diff(j) as f64;
            observed += weight * p.cells[i][j];
            chance += weight * p.rows[i] * p.columns[j];
        }
    }
    if chance <= f64::EPSILON { Err(Degenerate::FullChanceAgreement) } else { Ok(1.0 - observed / chance) }
}

/// A table of counts as proportions of its total.
struct Proportions {
    n: f64,
    cells: Vec<Vec<f64>>,
    rows: Vec<f64>,
    columns: Vec<f64>,
}

impl Proportions {
    fn new(table: &[Vec<u64>]) -> Answer<Self> {
        let k = table.len();
        if table.iter().any(|row| row.len() != k) {
            return Err(Degenerate::OutOfRange);
        }
        let total: u128 = table.iter().flatten().map(|x| u128::from(*x)).sum();
        if total == 0 {
            return Err(Degenerate::TooFew { have: 0, need: 1 });
        }
        let n = total as f64;
        let cells: Vec<Vec<f64>> = table.iter().map(|row| row.iter().map(|&x| x as f64 / n).collect()).collect();
        let rows = cells.iter().map(|row| sum(row.iter().copied())).collect();
        let columns = (0..k).map(|j| sum(cells.iter().map(|row| row[j]))).collect();
        Ok(Self { n, cells, rows, columns })
    }
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;

    #[test]
    fn mcnemar_golden_vectors() {
        // b, c, exact, chi2 corrected and p, chi2 and p.
        for (b, c, exact, corrected, corrected_p, chi2, chi2_p) in [
            (15, 19, 0.60759136127308, 0.264705882, 0.606905427, 0.470588235, 0.492716677),
            (121, 59, 4.43444926375518e-06, 20.6722222, 5.45009483e-06, 21.3555556, 3.81513587e-06),
            (70, 59, 0.378687662693119, 0.775193798, 0.378615089, 0.937984496, 0.332796717),
            (80, 59, 0.0894523149944692, 2.87769784, 0.089814344, 3.17266187, 0.074880314),
        ] {
            for (b, c) in [(b, c), (c, b)] {
                let got = mcnemar(b, c);
                assert_close(got.exact_p, exact, 1e-13);
                assert_close(got.chi2_corrected.unwrap().0, corrected, 1e-8);
                assert_close(got.chi2_corrected.unwrap().1, corrected_p, 1e-8);
                assert_close(got.chi2.unwrap().0, chi2, 1e-8);
                assert_close(got.chi2.unwrap().1, chi2_p, 1e-8);
            }
        }
        for (b, c, exact, mid) in [
            (30, 60, 0.00206026568096308, 0.00151651319445722),
            (10, 30, 0.00222143377322936, 0.00145049101411132),
            (10, 10, 1.0, 0.823802947998047),
            (0, 5, 0.0625, 0.03125),
            (1, 9, 0.021484375, 0.01171875),
        ] {
            let got = mcnemar(b, c);
            assert_close(got.exact_p, exact, 1e-12);
            assert_close(got.mid_p, mid, 1e-12);
        }
    }

    #[test]
    fn mcnemar_without_a_difference_is_one() {
        let got = mcnemar(0, 0);
        assert_eq!((got.exact_p, got.mid_p, got.chi2), (1.0, 1.0, None));
    }

    #[test]
    fn mcnemar_of_large_counts_stays_a_probability() {
        let got = mcnemar(500_000, 501_000);
        assert!(got.exact_p > 0.3 && got.exact_p < 0.33, "{got:?}");
        assert!((got.exact_p - got.chi2_corrected.unwrap().1).abs() < 1e-6);
        // Both ways to the probability of a split, where one takes over from the other.
        for (n, k) in [(40_000, 20_000), (41_000, 19_500), (100_000, 49_900), (25_000, 10_001)] {
            assert_close(by_loader(n, k), by_product(n, k), 1e-10);
        }
        // 10^12 and more items, which would take hours one by one.
        let huge = mcnemar(1_000_000_000_000, 1_000_001_000_000);
        assert_close(huge.exact_p, huge.chi2_corrected.unwrap().1, 1e-6);
        assert!(mcnemar(u64::MAX, u64::MAX).exact_p <= 1.0);
        // Binomial(2000, 1/2) at 0: 2^-1999 is below the smallest f64.
        assert_eq!(mcnemar(0, 2000).exact_p, 0.0);
    }

    #[test]
    fn kappa_golden_vector() {
        let table = [vec![0, 4, 1], vec![0, 8, 0], vec![0, 1, 5]];
        let got = kappa(&table).unwrap();
        assert_close(got.kappa, 107.0 / 221.0, 1e-14);
        assert_close(got.ase, 0.1380135783058146, 1e-12);
        assert_close(got.ase_null, 0.1483982818901329, 1e-12);
        assert_close(got.z, 3.2625909799013253, 1e-12);
        assert_close(got.interval95.lower, 0.213661253, 1e-8);
        assert_close(got.interval95.upper, 0.754664539, 1e-8);
        assert_close(weighted_kappa(&table).unwrap(), 0.4701195219123506, 1e-13);
    }

    #[test]
    fn kappa_has_no_value_where_chance_agrees_fully() {
        assert_eq!(kappa(&[vec![7, 0], vec![0, 0]]), Err(Degenerate::FullChanceAgreement));
        assert_eq!(kappa(&[vec![0, 0], vec![0, 0]]), Err(Degenerate::TooFew { have: 0, need: 1 }));
        assert_eq!(kappa(&[vec![1], vec![0, 0]]), Err(Degenerate::OutOfRange));
    }

    #[test]
    fn cohens_h_golden_vectors() {
        assert_close(cohens_h(0.5, 0.4).unwrap(), 0.20135792079033088, 1e-13);
        assert_close(cohens_h(0.3, 0.4).unwrap(), -0.2101589252771574, 1e-13);
        assert_close(cohens_h(1.0, 0.0).unwrap(), std::f64::consts::PI, 1e-15);
        assert_eq!(cohens_h(1.1, 0.0), Err(Degenerate::OutOfRange));
    }
}
