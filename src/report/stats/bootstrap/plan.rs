//! How often each of n places is drawn in each of B resamples, and the means that follow from it.
//!
//! A mean needs no more of a resample than these counts. They are drawn once, whatever the number of samples; then a
//! sample's B means are a product of the counts with its values. Every mean is one sum in the order of the places:
//! neither the width of vectors nor the number of samples beside it changes a bit.

use super::super::describe::sorted;
use super::super::{Answer, Interval, mean};
use super::{Bootstrap, Resampling, Rng, between, finite, place};

/// Resamples that are worked on together; their sums fit into registers.
const LANES: usize = 16;

/// Samples that are worked on together.
pub(super) const GROUP: usize = 8;

/// Seed of all plans. Together with the number of values it says which plan; more resamples continue the same one.
const PLAN_SEED: u64 = 0x5eed_bed0_b007_57a9;

/// The counts of all resamples of samples of n values.
pub(super) struct Plan {
    n: usize,
    count: usize,
    /// For each block of [`LANES`] resamples, for each place, the counts of the block's resamples. A count beyond 255
    /// has a probability below 1e-500, of n places drawn n times.
    counts: Vec<u8>,
}

impl Plan {
    pub(super) fn new(n: usize, count: usize) -> Self {
        let blocks = count.div_ceil(LANES);
        let mut counts = vec![0u8; blocks * n * LANES];
        let mut rng = Rng::new(PLAN_SEED ^ (n as u64));
        for block in counts.chunks_exact_mut(n * LANES) {
            for lane in 0..LANES {
                for _ in 0..n {
                    let drawn = &mut block[rng.below(n as u64) as usize * LANES + lane];
                    *drawn = drawn.saturating_add(1);
                }
            }
        }
        Self { n, count, counts }
    }

    /// The bootstrap of each sample; all have the plan's number of values, finite ones, and of resamples.
    pub(super) fn resample(&self, samples: &[Resampling<'_>]) -> Vec<Answer<Bootstrap>> {
        let placed: Vec<(f64, Vec<f64>)> = samples.iter().map(deviations).collect();
        let mut means: Vec<Vec<f64>> = samples.iter().map(|_| vec![0.0; self.counts.len() / self.n.max(1)]).collect();
        let mut block = vec![0.0f64; self.n * LANES];
        for (b, counts) in self.counts.chunks_exact(self.n * LANES).enumerate() {
            for (wide, count) in block.iter_mut().zip(counts) {
                *wide = f64::from(*count);
            }
            for ((_, values), means) in placed.iter().zip(&mut means) {
                let of_block = &mut means[b * LANES..(b + 1) * LANES];
                of_block.copy_from_slice(&sums(&block, values));
            }
        }
        samples
            .iter()
            .zip(placed)
            .zip(means)
            .map(|((sample, (centre, _)), mut sums)| {
                sums.truncate(self.count);
                summary(sums, centre, self.n, sample.level)
            })
            .collect()
    }
}

/// The mean of a sample, and what its values deviate from it, at the places that its seed gives them. Sums of deviations
/// lose no digits to the mean, and those of equal values are 0.
fn deviations(sample: &Resampling<'_>) -> (f64, Vec<f64>) {
    let mut values = sorted(sample.values);
    // Finite values have a mean; a sum that overflows shows in the end.
    let centre = mean(&values).unwrap_or(f64::NAN);
    let mut rng = Rng::new(sample.resamples.seed);
    for i in (1..values.len()).rev() {
        values.swap(i, rng.below(i as u64 + 1) as usize);
    }
    values.iter_mut().for_each(|x| *x -= centre);
    (centre, values)
}

/// Count times value, summed over the places, for each resample of a block.
fn sums(block: &[f64], values: &[f64]) -> [f64; LANES] {
    let mut sums = [0.0; LANES];
    for (counts, x) in block.chunks_exact(LANES).zip(values) {
        for (sum, count) in sums.iter_mut().zip(counts) {
            *sum += count * x;
        }
    }
    sums
}

/// From the sums of deviations of all resamples.
fn summary(mut sums: Vec<f64>, centre: f64, n: usize, level: f64) -> Answer<Bootstrap> {
    let (mut ones, mut squares) = ([0.0; LANES], [0.0; LANES]);
    for block in sums.chunks(LANES) {
        for ((one, square), x) in ones.iter_mut().zip(&mut squares).zip(block) {
            *one += x;
            *square += x * x;
        }
    }
    let (n, count) = (n as f64, sums.len() as f64);
    let (total, squares): (f64, f64) = (ones.iter().sum(), squares.iter().sum());
    let variance = (squares - total * total / count).max(0.0) / (count - 1.0).max(1.0);
    let [lower, upper] = quantiles(&mut sums, [(1.0 - level) / 2.0, 0.5 + level / 2.0]);
    let interval = Interval { lower: centre + lower / n, upper: centre + upper / n };
    finite(Bootstrap { interval, se: variance.sqrt() / n, resamples: sums.len(), exact: false })
}

/// Two quantiles, the lower one first. Only the order statistics that they need are looked for.
fn quantiles(values: &mut [f64], [lower, upper]: [f64; 2]) -> [f64; 2] {
    let n = values.len();
    let (first, ..) = place(n, lower);
    let mut at = |from: usize, p: f64| {
        let (below, above, part) = place(n, p);
        // What stands before `from` is no larger than what stands behind.
        let (_, low, rest) = values[from..].select_nth_unstable_by(below - from, f64::total_cmp);
        let low = *low;
        let high = if above == below { low } else { rest.iter().copied().fold(f64::INFINITY, f64::min) };
        between(low, high, part)
    };
    [at(0, lower), at(first, upper)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_resample_draws_as_many_as_there_are() {
        let plan = Plan::new(40, 100);
        for block in plan.counts.chunks_exact(40 * LANES) {
            for lane in 0..LANES {
                let drawn: u32 = block.iter().skip(lane).step_by(LANES).map(|c| u32::from(*c)).sum();
                assert_eq!(drawn, 40);
            }
        }
        // More resamples go on where fewer end.
        let more = Plan::new(40, 200);
        assert_eq!(more.counts[..plan.counts.len()], plan.counts);
        // A place is drawn once on average, and 1 - 1/n is its variance.
        let large = Plan::new(64, 16_000);
        let of_place = large.counts.chunks_exact(64 * LANES).flat_map(|b| &b[5 * LANES..6 * LANES]);
        let (mean, square) =
            of_place.fold((0.0, 0.0), |(m, s), c| (m + f64::from(*c) / 16e3, s + f64::from(*c).powi(2) / 16e3));
        assert!((mean - 1.0).abs() < 0.04, "{mean}");
        assert!((square - mean * mean - 63.0 / 64.0).abs() < 0.06, "{square}");
    }

    proptest! {
        #[test]
        fn the_quantiles_of_a_sorted_list(
            mut values in prop::collection::vec(-5.0f64..5.0, 1..60),
            level in 0.01f64..0.99,
        ) {
            let [p, q] = [(1.0 - level) / 2.0, 0.5 + level / 2.0];
            let got = quantiles(&mut values.clone(), [p, q]);
            values.sort_by(f64::total_cmp);
            prop_assert_eq!(got, [super::super::quantile(&values, p), super::super::quantile(&values, q)]);
        }
    }
}
