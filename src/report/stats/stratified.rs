//! Stratified bootstrap of runs over several tasks: runs are drawn within each task, never across
//! (Agarwal et al. 2021, as rliable does).

use super::describe::{sorted, sum};
use super::ratio::summary;
use super::{Answer, Bootstrap, Degenerate, Resamples, Rng, check};

/// What of the pooled values is resampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    /// Their mean.
    Mean,
    /// Their median.
    Median,
    /// Their interquartile mean.
    Iqm,
}

impl Statistic {
    /// The statistic of values that it may put in order. There is at least one.
    fn of(self, values: &mut [f64]) -> f64 {
        let mean = |values: &[f64]| sum(values.iter().copied()) / values.len() as f64;
        if self == Self::Mean {
            return mean(values);
        }
        values.sort_by(f64::total_cmp);
        match self {
            Self::Mean => mean(values),
            Self::Iqm => {
                let cut = values.len() / 4;
                mean(&values[cut..values.len() - cut])
            }
            Self::Median => {
                let half = values.len() / 2;
                if values.len() % 2 == 1 { values[half] } else { values[half - 1] / 2.0 + values[half] / 2.0 }
            }
        }
    }
}

/// Percentile bootstrap of a statistic of all values pooled. `strata` has the runs of each task; each resample draws as
/// many runs of a task as it has.
///
/// # Errors
/// No strata, one with fewer than two runs (its error cannot be known), a value that is not finite, no resamples, or a
/// level outside 0 to 1.
pub fn bootstrap_stratified(
    strata: &[Vec<f64>],
    statistic: Statistic,
    level: f64,
    resamples: Resamples,
) -> Answer<Bootstrap> {
    if strata.is_empty() {
        return Err(Degenerate::TooFew { have: 0, need: 1 });
    }
    strata.iter().try_for_each(|runs| check(runs, 2))?;
    if resamples.count == 0 || !(level > 0.0 && level < 1.0) {
        return Err(Degenerate::OutOfRange);
    }
    // The order of runs does not matter; that of tasks neither.
    let mut strata: Vec<Vec<f64>> = strata.iter().map(|runs| sorted(runs)).collect();
    strata.sort_by(|a, b| {
        let by_value = a.iter().zip(b).map(|(x, y)| x.total_cmp(y)).find(|o| o.is_ne());
        by_value.unwrap_or_else(|| a.len().cmp(&b.len()))
    });
    let mut rng = Rng::new(resamples.seed);
    let mut pooled = Vec::with_capacity(strata.iter().map(Vec::len).sum());
    let mut found = Vec::with_capacity(resamples.count);
    for _ in 0..resamples.count {
        pooled.clear();
        for runs in &strata {
            for _ in 0..runs.len() {
                pooled.push(runs[rng.below(runs.len() as u64) as usize]);
            }
        }
        found.push(statistic.of(&mut pooled));
    }
    found.sort_by(f64::total_cmp);
    summary(&found, level)
}

#[cfg(test)]
mod tests {
    use super::super::{assert_close, bootstrap_mean, iqm};
    use super::*;

    const DRAWN: Resamples = Resamples { count: 4000, seed: 20_240_501 };

    #[test]
    fn tasks_of_different_level_add_no_width() {
        // Each task is constant: drawing within tasks always finds the same; drawing across would not.
        let strata = [vec![0.1; 3], vec![0.9; 3], vec![0.5; 4]];
        for statistic in [Statistic::Mean, Statistic::Median, Statistic::Iqm] {
            let got = bootstrap_stratified(&strata, statistic, 0.95, DRAWN).unwrap();
            assert_close(got.interval.lower, got.interval.upper, 1e-15);
            assert!(got.se < 1e-15, "{statistic:?}: {got:?}");
        }
        let pooled = bootstrap_mean(&strata.concat(), 0.95, DRAWN).unwrap();
        assert!(pooled.interval.upper - pooled.interval.lower > 0.2);
    }

    #[test]
    fn the_spread_is_that_of_theory() {
        // Var of the mean over tasks: sum of n_t * population variance of task t / N^2.
        let strata = [vec![1.0, 2.0, 3.0, 6.0], vec![10.0, 14.0, 15.0]];
        let variance = |v: &[f64]| {
            let m = v.iter().sum::<f64>() / v.len() as f64;
            v.iter().map(|x| (x - m).powi(2)).sum::<f64>() / v.len() as f64
        };
        let theory = (strata.iter().map(|v| v.len() as f64 * variance(v)).sum::<f64>() / 49.0).sqrt();
        let got = bootstrap_stratified(&strata, Statistic::Mean, 0.95, DRAWN).unwrap();
        // The se of an se of 4000 draws is about 1.1 %.
        assert!((got.se / theory - 1.0).abs() < 0.05, "{} for {theory}", got.se);
    }

    #[test]
    fn statistics_are_those_of_the_pooled_values() {
        let mut values = [7.0, 1.0, 100.0, 3.0, 2.0];
        assert_eq!(Statistic::Iqm.of(&mut values.clone()), iqm(&values).unwrap());
        assert_eq!(Statistic::Median.of(&mut values), 3.0);
        assert_eq!(Statistic::Median.of(&mut [1.0, 4.0]), 2.5);
    }

    #[test]
    fn refusals_and_orders() {
        let one = [vec![1.0, 2.0], vec![3.0]];
        assert_eq!(
            bootstrap_stratified(&one, Statistic::Iqm, 0.95, DRAWN),
            Err(Degenerate::TooFew { have: 1, need: 2 })
        );
        assert_eq!(
            bootstrap_stratified(&[], Statistic::Iqm, 0.95, DRAWN),
            Err(Degenerate::TooFew { have: 0, need: 1 })
        );
        let (a, b) = (vec![1.0, 5.0, 2.0], vec![9.0, 7.0]);
        let there = bootstrap_stratified(&[a.clone(), b.clone()], Statistic::Iqm, 0.95, DRAWN);
        let back = bootstrap_stratified(&[b, a.into_iter().rev().collect()], Statistic::Iqm, 0.95, DRAWN);
        assert_eq!(there, back);
    }
}
