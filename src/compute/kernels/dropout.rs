//! Dropout: elements are set to 0 with probability p, the others multiplied by 1 / (1 - p).
//!
//! The choice is a function of (seed, step, grain, block, site, element) by Philox counters, so a recomputation,
//! another rank or another instruction set makes the same one.

use super::for_each_isa;
use crate::compute::rng::Purpose;

/// Elements that one call of the generator decides: 16 counters of 4 words.
pub const BLOCK: usize = 64;

/// Where in a block of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// After the embedding.
    Embedding = 0,
    /// Attention probabilities.
    Probabilities = 1,
    /// After the attention's output matrix.
    Attention = 2,
    /// After the feed-forward layer.
    Mlp = 3,
}

/// The mask at one place.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    key: [u32; 2],
    step: u32,
    grain: u32,
    place: u32,
    /// Words below it mean 0.
    threshold: u32,
    /// 1 / (1 - p).
    scale: f32,
}

impl Dropout {
    /// The mask of `site` in `block` with probability `p`, `0 <= p < 1`.
    pub fn new(p: f64, seed: u32, step: u64, grain: u64, block: usize, site: Site) -> Self {
        // Counters have 32 bits for each: runs have fewer steps, and steps fewer grains.
        Self {
            key: [seed, Purpose::Dropout as u32],
            step: step as u32,
            grain: grain as u32,
            place: (block as u32) << 16 | (site as u32) << 12,
            threshold: (p * 4_294_967_296.0) as u32,
            scale: (1.0 / (1.0 - p)) as f32,
        }
    }

    /// Factors (0 or 1 / (1 - p)) of the elements `64 number ..`.
    #[inline(always)]
    pub fn factors(&self, number: u64) -> [f32; BLOCK] {
        let first = number << 4;
        let (mut a, mut b, mut c, mut d) = ([0u32; 16], [self.step; 16], [self.grain; 16], [0u32; 16]);
        for k in 0..16 {
            a[k] = (first as u32).wrapping_add(k as u32);
            d[k] = self.place | (first >> 32) as u32 & 0xFFF;
        }
        let [mut k0, mut k1] = self.key;
        // Philox4x32-10 as in `compute::rng`, sixteen counters side by side.
        for _ in 0..10 {
            for k in 0..16 {
                let p0 = u64::from(a[k]) * 0xD251_1F53;
                let p1 = u64::from(c[k]) * 0xCD9E_8D57;
                let (a0, c0) = ((p1 >> 32) as u32 ^ b[k] ^ k0, (p0 >> 32) as u32 ^ d[k] ^ k1);
                b[k] = p1 as u32;
                d[k] = p0 as u32;
                a[k] = a0;
                c[k] = c0;
            }
            k0 = k0.wrapping_add(0x9E37_79B9);
            k1 = k1.wrapping_add(0xBB67_AE85);
        }
        let mut factors = [0.0; BLOCK];
        for (factors, words) in factors.as_chunks_mut::<16>().0.iter_mut().zip([a, b, c, d]) {
            for k in 0..16 {
                factors[k] = if words[k] < self.threshold { 0.0 } else { self.scale };
            }
        }
        factors
    }
}

for_each_isa! {
    /// x *= mask, where `x[0]` is element `first`, a multiple of [`BLOCK`].
    pub fn apply(dropout: &Dropout, first: u64, x: &mut [f32]) {
        for (n, x) in x.chunks_mut(BLOCK).enumerate() {
            let factors = dropout.factors(first / BLOCK as u64 + n as u64);
            for (x, f) in x.iter_mut().zip(&factors) {
                *x *= f;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::super::testing::same_bits;
    use super::*;
    use crate::compute::rng::philox4x32;

    fn mask(isa: Isa, dropout: &Dropout, first: u64, n: usize) -> Vec<f32> {
        let mut x = vec![1.0; n];
        apply(isa, dropout, first, &mut x);
        x
    }

    #[test]
    fn masks_are_those_of_the_generator_and_the_same_everywhere() {
        let dropout = Dropout::new(0.3, 7, 11, 13, 5, Site::Mlp);
        let mut first = None;
        for isa in Isa::all() {
            let got = mask(isa, &dropout, 0, 1000);
            for (e, &got) in got.iter().enumerate() {
                let counter = [(e / 64 * 16 + e % 16) as u32, 11, 13, 5 << 16 | 3 << 12];
                let word = philox4x32(counter, [7, Purpose::Dropout as u32])[e % 64 / 16];
                let kept = f64::from(word) >= 0.3 * 4_294_967_296.0;
                assert_eq!(got, if kept { (1.0 / 0.7) as f32 } else { 0.0 }, "{e}");
            }
            // A part begins where it is told; elements beyond 2^34 are others.
            assert_eq!(mask(isa, &dropout, 640, 100), got[640..740]);
            assert_ne!(mask(isa, &dropout, 1 << 36, 1000), got);
            same_bits(&mut first, vec![got], isa);
        }
    }

    #[test]
    fn as_many_are_dropped_as_asked_and_places_differ() {
        let n = 200_000;
        let of = |p, seed, step, grain, block, site| {
            mask(Isa::best(), &Dropout::new(p, seed, step, grain, block, site), 0, n)
        };
        for p in [0.0, 0.1, 0.5] {
            let dropped = of(p, 1, 2, 3, 4, Site::Embedding).iter().filter(|&&x| x == 0.0).count() as f64;
            // Five standard errors.
            let n = n as f64;
            assert!((dropped - p * n).abs() <= 5.0 * (p * (1.0 - p) * n).sqrt(), "{p}: {dropped}");
        }
        let here = of(0.5, 1, 2, 3, 4, Site::Attention);
        for other in [
            of(0.5, 2, 2, 3, 4, Site::Attention),
            of(0.5, 1, 3, 3, 4, Site::Attention),
            of(0.5, 1, 2, 4, 4, Site::Attention),
            of(0.5, 1, 2, 3, 5, Site::Attention),
            of(0.5, 1, 2, 3, 4, Site::Probabilities),
        ] {
            // Independent masks of p = 1/2 agree in half of the elements.
            let equal = here.iter().zip(&other).filter(|(a, b)| a == b).count() as f64;
            assert!((equal - 0.5 * n as f64).abs() < 5.0 * (0.25 * n as f64).sqrt(), "{equal}");
        }
    }
}
