//! Percentile bootstrap with its own random numbers.
//!
//! Nothing here touches a global generator, and each cell of a table draws from its own seed
//! ([`seed_of`]), so a new row changes no other row's interval. Values are sorted before they are drawn
//! from, so the order of runs does not matter either.
//!
//! How the mean of n values is resampled, B times:
//!
//! - n^n is at most B: every resample is taken, and the answer is exact.
//! - n is at most [`OWN_DRAWS`], or n B is beyond [`PLAN_BYTES`]: each resample is n draws from the cell's seed.
//! - Else: how often each of n places is drawn in each resample is a [`Plan`], the same for all samples of n values, and
//!   the cell's seed says by a shuffle which value stands at which place. Each resample is still n draws with
//!   replacement; the draws of the plan are made once for a whole table. There are more ways to shuffle 33 values than
//!   there are seeds, and the intervals of different seeds scatter as those of separate draws do (a test compares).
//!
//! Each way gives the same bits on every machine, however many samples are resampled in one call and in whatever order.

mod plan;

use std::collections::BTreeMap;

use serde::Serialize;

use self::plan::Plan;
use super::describe::{sorted, sum};
use super::{Answer, Degenerate, Interval, check};
use crate::record::Digest;

/// Samples of at most so many values are drawn from one by one: there are too few ways to shuffle them.
const OWN_DRAWS: usize = 32;

/// Largest plan, bytes.
const PLAN_BYTES: usize = 32 << 20;

/// SplitMix64 (Steele, Lea and Flood 2014): one 64-bit state, every seed a good one.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, without bias (Lemire 2019). `n` must not be zero.
    pub fn below(&mut self, n: u64) -> u64 {
        debug_assert!(n > 0, "an empty range has no number");
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(n);
            let low = wide as u64;
            if low >= n || low >= n.wrapping_neg() % n {
                return (wide >> 64) as u64;
            }
        }
    }
}

/// Seed of one cell: from the specification's seed and the keys of table, row and column.
pub fn seed_of(seed: u64, keys: &[&str]) -> u64 {
    let mut text = seed.to_string();
    for key in keys {
        // Length before text: ("ab", "c") and ("a", "bc") are different cells.
        text.push_str(&format!("\0{}\0{key}", key.len()));
    }
    // Sixteen hexadecimal digits are 64 bits.
    u64::from_str_radix(&Digest::of_bytes(text.as_bytes()).as_str()[..16], 16).unwrap_or(seed)
}

/// How many resamples, and from which seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Resamples {
    /// Number of resamples; all n^n are enumerated instead when there are no more of them.
    pub count: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// A percentile bootstrap of a mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bootstrap {
    /// Percentile interval (linear interpolation, as `numpy.percentile`).
    pub interval: Interval,
    /// Standard deviation of the resampled means.
    pub se: f64,
    /// Resamples taken.
    pub resamples: usize,
    /// Every possible resample was taken.
    pub exact: bool,
}

/// A sample whose mean is to be resampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resampling<'a> {
    /// The values, in any order.
    pub values: &'a [f64],
    /// Level of the interval, such as 0.95.
    pub level: f64,
    /// How many resamples, and from which seed.
    pub resamples: Resamples,
}

/// Percentile bootstrap of the mean, for `level` such as 0.95.
///
/// # Errors
/// Fewer than two values, one that is not finite, no resamples, or a level outside 0 to 1.
pub fn bootstrap_mean(values: &[f64], level: f64, resamples: Resamples) -> Answer<Bootstrap> {
    let mut answers = bootstrap_means(&[Resampling { values, level, resamples }]);
    answers.pop().unwrap_or(Err(Degenerate::OutOfRange))
}

/// [`bootstrap_mean`] of each sample: the same numbers, in less time when many samples have as many values.
pub fn bootstrap_means(samples: &[Resampling<'_>]) -> Vec<Answer<Bootstrap>> {
    let mut answers = vec![Err(Degenerate::OutOfRange); samples.len()];
    let mut planned: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (i, sample) in samples.iter().enumerate() {
        let (n, count) = (sample.values.len(), sample.resamples.count);
        if let Err(why) = check(sample.values, 2) {
            answers[i] = Err(why);
        } else if n > OWN_DRAWS && n.saturating_mul(count) <= PLAN_BYTES && in_range(sample.level, count) {
            planned.entry((n, count)).or_default().push(i);
        } else {
            answers[i] = resample(&sorted(sample.values), sample.level, sample.resamples);
        }
    }
    for ((n, count), members) in planned {
        let plan = Plan::new(n, count);
        for group in members.chunks(plan::GROUP) {
            let group_of: Vec<Resampling<'_>> = group.iter().map(|&i| samples[i]).collect();
            for (&i, answer) in group.iter().zip(plan.resample(&group_of)) {
                answers[i] = answer;
            }
        }
    }
    answers
}

/// Paired bootstrap of the mean difference left - right: items are drawn once and the same indices
/// serve both sides.
///
/// # Errors
/// As [`bootstrap_mean`], or different lengths.
pub fn bootstrap_mean_difference(left: &[f64], right: &[f64], level: f64, resamples: Resamples) -> Answer<Bootstrap> {
    if left.len() != right.len() {
        return Err(Degenerate::Unmatched { left: left.len(), right: right.len() });
    }
    check(left, 2)?;
    check(right, 2)?;
    // Drawing pairs and subtracting is drawing differences.
    let differences: Vec<f64> = left.iter().zip(right).map(|(a, b)| a - b).collect();
    resample(&sorted(&differences), level, resamples)
}

/// Two-sided p of the paired bootstrap over items: the share of resamples whose mean difference is at least as far from the
/// observed one as that is from 0, (c + 1) / (N + 1) (Efron and Tibshirani 1993, chapter 16; Berg-Kirkpatrick et al. 2012).
///
/// # Errors
/// Different lengths, fewer than two pairs, a value that is not finite, differences without variance, or no resamples.
pub fn paired_bootstrap_p(left: &[f64], right: &[f64], resamples: Resamples) -> Answer<f64> {
    if left.len() != right.len() {
        return Err(Degenerate::Unmatched { left: left.len(), right: right.len() });
    }
    check(left, 2)?;
    check(right, 2)?;
    if resamples.count == 0 {
        return Err(Degenerate::OutOfRange);
    }
    let differences = sorted(&left.iter().zip(right).map(|(a, b)| a - b).collect::<Vec<f64>>());
    let n = differences.len();
    if differences[0] == differences[n - 1] {
        return Err(Degenerate::NoVariance);
    }
    let mean = sum(differences.iter().copied()) / n as f64;
    if !mean.is_finite() {
        return Err(Degenerate::NotFinite);
    }
    let observed = (mean * n as f64).abs();
    let deviations: Vec<f64> = differences.iter().map(|d| d - mean).collect();
    // Equal sums in another order differ in the last bits; they count as equal.
    let slack = 1e-12 * sum(differences.iter().map(|d| d.abs()));
    let mut rng = Rng::new(resamples.seed);
    let mut reached = 0usize;
    for _ in 0..resamples.count {
        let drawn: f64 = (0..n).map(|_| deviations[rng.below(n as u64) as usize]).sum();
        reached += usize::from(drawn.abs() >= observed - slack);
    }
    Ok((reached + 1) as f64 / (resamples.count + 1) as f64)
}

fn in_range(level: f64, count: usize) -> bool {
    count > 0 && level > 0.0 && level < 1.0
}

fn resample(values: &[f64], level: f64, resamples: Resamples) -> Answer<Bootstrap> {
    if !in_range(level, resamples.count) {
        return Err(Degenerate::OutOfRange);
    }
    let n = values.len();
    let all = u32::try_from(n).ok().and_then(|power| n.checked_pow(power)).filter(|all| *all <= resamples.count);
    let mut means = Vec::with_capacity(all.unwrap_or(resamples.count));
    if let Some(all) = all {
        for code in 0..all {
            let mut digits = code;
            means.push(
                sum((0..n).map(|_| {
                    let x = values[digits % n];
                    digits /= n;
                    x
                })) / n as f64,
            );
        }
    } else {
        let mut rng = Rng::new(resamples.seed);
        for _ in 0..resamples.count {
            means.push(sum((0..n).map(|_| values[rng.below(n as u64) as usize])) / n as f64);
        }
    }
    summary(means, level, if all.is_some() { Taken::All } else { Taken::Drawn })
}

/// Which resamples there are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// Every possible one.
    All,
    /// Drawn ones.
    Drawn,
}

fn summary(mut found: Vec<f64>, level: f64, taken: Taken) -> Answer<Bootstrap> {
    found.sort_by(f64::total_cmp);
    let centre = sum(found.iter().copied()) / found.len() as f64;
    // The enumerated distribution is the whole population; drawn resamples are a sample of it.
    let divisor = if taken == Taken::All { found.len() } else { found.len().saturating_sub(1).max(1) };
    let se = (sum(found.iter().map(|m| (m - centre).powi(2))) / divisor as f64).sqrt();
    let interval =
        Interval { lower: quantile(&found, (1.0 - level) / 2.0), upper: quantile(&found, 0.5 + level / 2.0) };
    finite(Bootstrap { interval, se, resamples: found.len(), exact: taken == Taken::All })
}

/// Values so large that their sums overflow have no bootstrap.
fn finite(bootstrap: Bootstrap) -> Answer<Bootstrap> {
    let Bootstrap { interval: Interval { lower, upper }, se, .. } = bootstrap;
    if lower.is_finite() && upper.is_finite() && se.is_finite() { Ok(bootstrap) } else { Err(Degenerate::NotFinite) }
}

/// Quantile of ascending values by linear interpolation (Hyndman and Fan's type 7).
fn quantile(ascending: &[f64], p: f64) -> f64 {
    let (below, above, part) = place(ascending.len(), p);
    between(ascending[below], ascending[above], part)
}

/// The two order statistics between which a quantile of `n` values lies, and how far from the first.
fn place(n: usize, p: f64) -> (usize, usize, f64) {
    let place = p * (n - 1) as f64;
    let below = place.floor() as usize;
    (below, (below + 1).min(n - 1), place - below as f64)
}

fn between(low: f64, high: f64, part: f64) -> f64 {
    if low == high { low } else { low + (high - low) * part }
}

#[cfg(test)]
mod tests {
    use super::super::assert_close;
    use super::*;
    use proptest::{prop_assert, prop_assert_eq, proptest};

    const DRAWN: Resamples = Resamples { count: 1000, seed: 20_240_501 };

    #[test]
    fn splitmix64_reference() {
        // First outputs for seed 1234567, as published with the reference implementation.
        let mut rng = Rng::new(1_234_567);
        let got: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(got, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn all_27_resamples_of_three() {
        let got = bootstrap_mean(&[0.90, 0.92, 0.97], 0.95, Resamples { count: 27, seed: 0 }).unwrap();
        assert!(got.exact && got.resamples == 27);
        assert_close(got.se, 0.016996731711975934, 1e-12);
        // One resample of 27 is all 0.90 and one all 0.97: 2.5 % of 26 steps is 0.65 of the way to the next mean.
        let next = (0.90 + 0.90 + 0.92) / 3.0;
        assert_close(got.interval.lower, 0.90 + 0.65 * (next - 0.90), 1e-12);
    }

    #[test]
    fn equal_values_have_no_width() {
        let got = bootstrap_mean(&[6.72; 8], 0.95, DRAWN).unwrap();
        assert_close(got.interval.lower, 6.72, 1e-15);
        assert_close(got.interval.upper, 6.72, 1e-15);
    }

    #[test]
    fn the_paired_p_is_that_of_the_normal_test_where_items_are_many() {
        // 400 items that differ by 1 in b and by -1 in c of them: z = (b - c) / sqrt(n var).
        let p_of = |b: usize, c: usize| {
            let left: Vec<f64> = (0..400).map(|i| f64::from(u8::from(i < b))).collect();
            let right: Vec<f64> = (0..400).map(|i| f64::from(u8::from((b..b + c).contains(&i)))).collect();
            let (n, gap) = (400.0, b as f64 - c as f64);
            let z = gap / ((b + c) as f64 - gap * gap / n).sqrt();
            let resamples = Resamples { count: 20_000, seed: 3 };
            (paired_bootstrap_p(&left, &right, resamples).unwrap(), z)
        };
        // Sums are whole numbers: both tails of the normal distribution beyond 13.5 / 6.746, 0.0454. Of 20,000 draws the error
        // of that is 0.0015.
        let (p, z) = p_of(30, 16);
        assert!((z - 2.0753).abs() < 1e-4 && (p - 0.0454).abs() < 0.005, "{p} {z}");
        let (p, _) = p_of(16, 30);
        assert!((p - 0.0454).abs() < 0.005, "{p}");
        assert!(p_of(20, 20).0 > 0.95 && p_of(60, 5).0 == 1.0 / 20_001.0);
        let all = Resamples { count: 100, seed: 1 };
        assert_eq!(paired_bootstrap_p(&[1.0; 5], &[0.0; 5], all), Err(Degenerate::NoVariance));
        assert_eq!(paired_bootstrap_p(&[1.0], &[0.0], all), Err(Degenerate::TooFew { have: 1, need: 2 }));
    }

    #[test]
    fn refusals() {
        assert_eq!(bootstrap_mean(&[1.0], 0.95, DRAWN), Err(Degenerate::TooFew { have: 1, need: 2 }));
        assert_eq!(bootstrap_mean(&[1.0, 2.0], 1.0, DRAWN), Err(Degenerate::OutOfRange));
        let none = Resamples { count: 0, seed: 1 };
        assert_eq!(bootstrap_mean(&[1.0, 2.0], 0.95, none), Err(Degenerate::OutOfRange));
        let unmatched = bootstrap_mean_difference(&[1.0, 2.0], &[1.0], 0.95, DRAWN);
        assert_eq!(unmatched, Err(Degenerate::Unmatched { left: 2, right: 1 }));
    }

    /// Values of a skewed sample, as accuracies over many seeds are.
    fn skewed(n: usize) -> Vec<f64> {
        let mut rng = Rng::new(n as u64);
        (0..n).map(|_| 0.9 + 0.05 * -((rng.below(1 << 40) + 1) as f64 / (1u64 << 40) as f64).ln()).collect()
    }

    /// What each resample drawn on its own gives.
    fn own_draws(values: &[f64], resamples: Resamples) -> Bootstrap {
        resample(&sorted(values), 0.95, resamples).unwrap()
    }

    #[test]
    fn a_plan_gives_what_separate_draws_give() {
        for n in [33, 100] {
            let values = skewed(n);
            let sd = super::super::sample_sd(&values).unwrap();
            // The exact standard error of a resampled mean.
            let se = sd * ((n - 1) as f64 / n as f64).sqrt() / (n as f64).sqrt();
            let (mut planned, mut drawn) = (Vec::new(), Vec::new());
            for seed in 0..100 {
                let resamples = Resamples { count: 1000, seed };
                let one = bootstrap_mean(&values, 0.95, resamples).unwrap();
                assert!((one.se / se - 1.0).abs() < 0.1, "n {n}: {} for {se}", one.se);
                planned.push(one.interval.lower);
                drawn.push(own_draws(&values, resamples).interval.lower);
            }
            let of = |xs: &[f64]| (super::super::mean(xs).unwrap(), super::super::sample_sd(xs).unwrap());
            let ((m1, s1), (m2, s2)) = (of(&planned), of(&drawn));
            // Both scatter around one place, and as much: 100 seeds know a spread to 7 %.
            assert!((m1 - m2).abs() < 5.0 * (s1 * s1 + s2 * s2).sqrt() / 10.0, "n {n}: {m1} and {m2}");
            assert!((0.7..1.3).contains(&(s1 / s2)), "n {n}: {s1} and {s2}");
        }
    }

    #[test]
    fn many_samples_at_once_are_each_on_its_own() {
        let sizes = [100, 5, 33, 100, 12, 40, 100];
        let samples: Vec<Vec<f64>> = sizes.iter().map(|&n| skewed(n)).collect();
        let wanted: Vec<Resampling<'_>> = samples
            .iter()
            .zip(0..)
            .map(|(values, seed)| Resampling { values, level: 0.9, resamples: Resamples { count: 777, seed } })
            .collect();
        let one_by_one: Vec<_> = wanted.iter().map(|w| bootstrap_mean(w.values, w.level, w.resamples)).collect();
        assert!(one_by_one.iter().all(Result::is_ok));
        assert_eq!(bootstrap_means(&wanted), one_by_one);
        let mut backwards: Vec<_> = wanted.iter().rev().copied().collect();
        backwards.truncate(3);
        assert_eq!(bootstrap_means(&backwards)[..], one_by_one.into_iter().rev().take(3).collect::<Vec<_>>()[..]);
    }

    #[test]
    fn the_same_bits_everywhere() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i * i % 101) / 101.0).collect();
        let got = bootstrap_mean(&values, 0.95, DRAWN).unwrap();
        // Of a second implementation, in Python: the plan, the shuffle and the sums as they are described above.
        let expected = [0.44435643564356436, 0.5599084158415841, 0.030492184987288614];
        assert_eq!([got.interval.lower, got.interval.upper, got.se], expected);
    }

    #[test]
    fn equal_values_have_no_width_in_a_plan_either() {
        let got = bootstrap_mean(&[0.1; 64], 0.95, DRAWN).unwrap();
        assert_eq!((got.interval.lower, got.interval.upper, got.se), (0.1, 0.1, 0.0));
        let huge = bootstrap_mean(&[[f64::MAX, -f64::MAX].repeat(20), vec![1.0]].concat(), 0.95, DRAWN);
        assert_eq!(huge, Err(Degenerate::NotFinite));
    }

    #[test]
    fn cells_have_their_own_seeds() {
        assert_eq!(seed_of(7, &["t", "row", "col"]), seed_of(7, &["t", "row", "col"]));
        assert_ne!(seed_of(7, &["t", "ab", "c"]), seed_of(7, &["t", "a", "bc"]));
        assert_ne!(seed_of(7, &["t"]), seed_of(8, &["t"]));
    }

    proptest! {
        #[test]
        fn order_and_level_of_the_data_do_not_matter(
            mut values in proptest::collection::vec(-100.0f64..100.0, 6..60),
            shift in -50.0f64..50.0,
        ) {
            let one = bootstrap_mean(&values, 0.95, DRAWN).unwrap();
            let shifted: Vec<f64> = values.iter().map(|x| x + shift).collect();
            values.reverse();
            prop_assert_eq!(one, bootstrap_mean(&values, 0.95, DRAWN).unwrap());
            let moved = bootstrap_mean(&shifted, 0.95, DRAWN).unwrap();
            prop_assert!((moved.interval.lower - one.interval.lower - shift).abs() < 1e-10);
            prop_assert!((moved.interval.upper - one.interval.upper - shift).abs() < 1e-10);
            prop_assert!(one.interval.lower <= one.interval.upper);
        }

        #[test]
        fn pairs_are_differences(pairs in proptest::collection::vec((-9.0f64..9.0, -9.0f64..9.0), 6..12)) {
            let (left, right): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let d: Vec<f64> = left.iter().zip(&right).map(|(a, b)| a - b).collect();
            let paired = bootstrap_mean_difference(&left, &right, 0.9, DRAWN).unwrap();
            prop_assert_eq!(paired, bootstrap_mean(&d, 0.9, DRAWN).unwrap());
        }
    }
}
