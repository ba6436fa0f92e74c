//! The one source of chance: a counter-based generator, so that every draw is a function of
//! (seed, purpose, step, index) and of nothing that ran before it.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror and Shaw, SC 2011). Key = (seed, purpose); counter = (block, step,
//! index low, index high); one block gives four 32-bit words. Ranks, threads, batch sizes and resumed runs
//! therefore draw the same numbers. It is not for cryptography.

/// What a draw is for. The numbers are part of what a seed means: they never change, new ones are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// First values of parameters (step = tensor, index = element or row).
    Init = 1,
    /// Order of training samples (step = epoch).
    Order = 2,
    /// Dropout masks (step = optimizer step, index = grain and block).
    Dropout = 3,
    /// Generated corpus (step = part, index = document).
    Corpus = 4,
    /// Which documents go to training, validation and test.
    Split = 5,
    /// Which examples an attack uses.
    AttackSamples = 6,
    /// Triggers: first values and candidates (step = restart and sweep, index = position).
    Trigger = 7,
    /// The flips of the random control (step = example, index = flip).
    RandomFlip = 8,
    /// Resampling in statistics.
    Bootstrap = 9,
    /// First values of adapters and translators (step = tensor, index = row).
    Adapter = 10,
    /// Examples before the prompts of a task of generation.
    Shots = 11,
}

/// A short stream of draws at one (seed, purpose, step, index).
#[derive(Debug, Clone)]
pub struct Rng {
    key: [u32; 2],
    counter: [u32; 4],
    words: [u32; 4],
    used: usize,
}

impl Rng {
    /// The stream at one point. Two streams that differ in any argument are independent.
    pub fn new(seed: u32, purpose: Purpose, step: u32, index: u64) -> Self {
        // Truncation is meant: the index is split into its two halves.
        let counter = [0, step, index as u32, (index >> 32) as u32];
        Self { key: [seed, purpose as u32], counter, words: [0; 4], used: 4 }
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox4x32(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        let word = self.words[self.used];
        self.used += 1;
        word
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let low = u64::from(self.next_u32());
        low | u64::from(self.next_u32()) << 32
    }

    /// A whole number in `0..n`, every one equally likely (Lemire 2019); 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// An index below `len`; 0 if `len` is 0.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A standard normal number (Box and Muller; the second of the pair is not kept).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Puts `items` into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.index(i + 1));
        }
    }

    /// `k` different indices below `n`, in the order drawn; all of them if `k >= n`.
    pub fn distinct(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        let k = k.min(n);
        for i in 0..k {
            let j = i + self.index(n - i);
            all.swap(i, j);
        }
        all.truncate(k);
        all
    }
}

/// One block of Philox4x32 with ten rounds.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut a, mut b, mut c, mut d], [mut k0, mut k1]) = (counter, key);
    for _ in 0..10 {
        let p0 = u64::from(a) * 0xD251_1F53;
        let p1 = u64::from(c) * 0xCD9E_8D57;
        (a, b, c, d) = ((p1 >> 32) as u32 ^ b ^ k0, p1 as u32, (p0 >> 32) as u32 ^ d ^ k1, p0 as u32);
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_known_answers() {
        // The vectors that Random123 publishes for philox4x32, 10 rounds.
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox4x32([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn streams_differ_in_every_argument() {
        let first = |s, p, t, i| Rng::new(s, p, t, i).next_u64();
        let here = first(42, Purpose::Init, 1, 7);
        assert_eq!(here, first(42, Purpose::Init, 1, 7));
        for other in [
            first(43, Purpose::Init, 1, 7),
            first(42, Purpose::Order, 1, 7),
            first(42, Purpose::Init, 2, 7),
            first(42, Purpose::Init, 1, 8),
            first(42, Purpose::Init, 1, 7 + (1 << 32)),
        ] {
            assert_ne!(here, other);
        }
    }

    #[test]
    fn moments_of_uniform_and_normal() {
        let n = 20_000;
        let mut rng = Rng::new(1, Purpose::Init, 0, 0);
        let mean = (0..n).map(|_| rng.uniform()).sum::<f64>() / f64::from(n);
        // Five standard errors: 5 / sqrt(12 n).
        assert!((mean - 0.5).abs() < 0.0102, "{mean}");
        let normals: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = normals.iter().sum::<f64>() / f64::from(n);
        let variance = normals.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.036 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn below_is_in_range_and_reaches_everything() {
        let mut rng = Rng::new(3, Purpose::Split, 0, 0);
        let mut seen = [0u32; 7];
        for _ in 0..700 {
            seen[rng.index(7)] += 1;
        }
        assert!(seen.iter().all(|&n| n > 60), "{seen:?}");
        assert_eq!(rng.below(0), 0);
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn distinct_indices_are_distinct() {
        let mut drawn = Rng::new(5, Purpose::AttackSamples, 0, 0).distinct(50, 20);
        assert_eq!(drawn.len(), 20);
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), 20);
        assert!(drawn.iter().all(|&i| i < 50));
        assert_eq!(Rng::new(5, Purpose::AttackSamples, 0, 0).distinct(3, 9).len(), 3);
    }
}
