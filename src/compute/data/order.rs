//! The order in which samples are read: a function of (seed, epoch, place) that has no state.
//!
//! The position in the data is one integer: position p is sample `permutation(seed, p / n)(p % n)` of the n
//! samples of an epoch. Nothing has to be saved to go on, and ranks need not agree on anything.

use crate::compute::rng::{Purpose, philox4x32};

/// A permutation of `0..n` that is computed where it is asked: a Feistel network of six rounds over the next
/// power of four, walked until it falls below n.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    seed: u32,
    epoch: u32,
}

impl Permutation {
    /// The order of `n` samples in one epoch.
    pub fn new(n: u64, seed: u32, epoch: u32) -> Self {
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        Self { n, half_bits: bits.div_ceil(2).max(1), seed, epoch }
    }

    /// Where `i` goes; `i` itself if it is not below n.
    pub fn at(&self, i: u64) -> u64 {
        if i >= self.n {
            return i;
        }
        let mut x = i;
        loop {
            x = self.encrypt(x);
            // At most three of four values lie at or above n, so the walk is short; it always comes back.
            if x < self.n {
                return x;
            }
        }
    }

    fn encrypt(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for round in 0..6 {
            let counter = [right as u32, round, self.epoch, 0];
            let word = u64::from(philox4x32(counter, [self.seed, Purpose::Order as u32])[0]);
            (left, right) = (right, left ^ (word & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_permutation_reaches_everything_once(n in 1u64..3000, seed: u32, epoch in 0u32..9) {
            let order = Permutation::new(n, seed, epoch);
            let mut seen = vec![false; n as usize];
            for i in 0..n {
                let j = order.at(i) as usize;
                prop_assert!(!seen[j]);
                seen[j] = true;
            }
        }
    }

    #[test]
    fn orders_differ_between_epochs_and_seeds_and_are_mixed() {
        let n = 1000;
        let order = |seed, epoch| -> Vec<u64> { (0..n).map(|i| Permutation::new(n, seed, epoch).at(i)).collect() };
        assert_ne!(order(42, 0), order(42, 1));
        assert_ne!(order(42, 0), order(43, 0));
        // A random order keeps about one neighbour pair in n; a weak one keeps many.
        let kept = order(42, 0).windows(2).filter(|w| w[1] == w[0] + 1).count();
        assert!(kept < 10, "{kept}");
    }
}
