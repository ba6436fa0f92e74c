//! Adding the ranks' parts of a shard, in fp32, by the balanced tree over rank numbers.

/// What gradients are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wire {
    /// As they are.
    #[default]
    Fp32,
    /// Rounded to the nearest bf16, half the bytes. The owner's own part is not rounded, so the sum depends on
    /// the number of ranks.
    Bf16,
}

impl Wire {
    /// Bytes of `elements` numbers.
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Self::Fp32 => elements * 4,
            Self::Bf16 => elements * 2,
        }
    }
}

/// Elements that are added at a time, in the nearest cache.
const BLOCK: usize = 1024;

/// Adds to `own`, the part of `rank`, those of all other ranks, which lie in `inbox` rank after rank, each as long
/// as `own`, in the wire's type.
pub(super) fn add(rank: usize, own: &mut [f32], inbox: &[f32], wire: Wire) {
    let len = own.len();
    if len == 0 {
        return;
    }
    let others = inbox.len() / len;
    if others == 1 && wire == Wire::Fp32 {
        // Two numbers have one sum, whoever comes first.
        for (own, other) in own.iter_mut().zip(inbox) {
            *own += other;
        }
        return;
    }
    let halves = as_halves(inbox);
    let mut parts = vec![0f32; (others + 1) * BLOCK];
    for (at, own) in own.chunks_mut(BLOCK).enumerate() {
        let n = own.len();
        for (part, room) in parts.chunks_mut(BLOCK).enumerate() {
            let room = &mut room[..n];
            if part == rank {
                room.copy_from_slice(own);
                continue;
            }
            let from = (part - usize::from(part > rank)) * len + at * BLOCK;
            match wire {
                Wire::Fp32 => room.copy_from_slice(&inbox[from..from + n]),
                Wire::Bf16 => from_bf16(&halves[from..from + n], room),
            }
        }
        tree(&mut parts, others + 1, n);
        own.copy_from_slice(&parts[..n]);
    }
}

/// Adds `ranks` parts of `n` elements, [`BLOCK`] apart; the sum is in the first.
fn tree(parts: &mut [f32], ranks: usize, n: usize) {
    let mut step = 1;
    while step < ranks {
        for left in (0..ranks - step).step_by(2 * step) {
            let (a, b) = parts.split_at_mut((left + step) * BLOCK);
            for (a, b) in a[left * BLOCK..left * BLOCK + n].iter_mut().zip(&b[..n]) {
                *a += b;
            }
        }
        step *= 2;
    }
}

/// The nearest bf16, ties to even; what is not a number stays none.
pub(super) fn to_bf16(from: &[f32], to: &mut [u16]) {
    for (from, to) in from.iter().zip(to) {
        let bits = from.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        *to = if from.is_nan() { (bits >> 16) as u16 | 0x40 } else { (rounded >> 16) as u16 };
    }
}

fn from_bf16(from: &[u16], to: &mut [f32]) {
    for (from, to) in from.iter().zip(to) {
        *to = f32::from_bits(u32::from(*from) << 16);
    }
}

fn as_halves(values: &[f32]) -> &[u16] {
    // SAFETY: the same memory; every bit pattern is a u16, whose alignment is smaller.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len() * 2) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::train::lanes;

    /// Numbers whose sum depends on the order.
    fn part(rank: usize, len: usize) -> Vec<f32> {
        (0..len).map(|i| ((rank * 97 + i * 31) as f32).sin() * 10f32.powi((rank % 5) as i32)).collect()
    }

    #[test]
    fn the_owner_adds_by_the_tree_over_ranks() {
        for ranks in [2, 3, 4, 8] {
            for len in [1, 7, BLOCK, 2 * BLOCK + 5] {
                let parts: Vec<Vec<f32>> = (0..ranks).map(|r| part(r, len)).collect();
                let mut expected = parts.clone();
                lanes::add_ranks(&mut expected.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
                for rank in 0..ranks {
                    let mut own = parts[rank].clone();
                    let inbox: Vec<f32> =
                        parts.iter().enumerate().filter(|(r, _)| *r != rank).flat_map(|(_, p)| p.clone()).collect();
                    add(rank, &mut own, &inbox, Wire::Fp32);
                    assert_eq!(own, expected[0], "{ranks} ranks, {len} elements, owner {rank}");
                }
            }
        }
    }

    #[test]
    fn halves_are_rounded_as_libtorch_rounds() {
        let values: Vec<f32> = (0..4096u32)
            .map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)))
            .chain([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0])
            .collect();
        let mut halves = vec![0u16; values.len()];
        to_bf16(&values, &mut halves);
        let mut back = vec![0f32; values.len()];
        from_bf16(&halves, &mut back);
        let there = tch::Tensor::from_slice(&values).to_kind(tch::Kind::BFloat16).to_kind(tch::Kind::Float);
        let there = Vec::<f32>::try_from(&there).unwrap();
        for ((value, ours), theirs) in values.iter().zip(&back).zip(&there) {
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{value}");
        }
    }

    #[test]
    fn what_comes_as_halves_is_added_in_fp32() {
        let len = BLOCK + 3;
        let parts: Vec<Vec<f32>> = (0..4).map(|r| part(r, len)).collect();
        let rank = 2;
        // As it lies in an inbox: pieces of halves one after the other, in room for fp32.
        let mut halves = vec![0u16; 3 * len];
        for (k, r) in [0, 1, 3].into_iter().enumerate() {
            to_bf16(&parts[r], &mut halves[k * len..(k + 1) * len]);
        }
        let round = |x: f32| {
            let mut h = [0u16];
            to_bf16(&[x], &mut h);
            f32::from_bits(u32::from(h[0]) << 16)
        };
        let mut inbox = vec![0f32; 3 * len];
        for (k, pair) in halves.chunks(2).enumerate() {
            let high = pair.get(1).copied().unwrap_or(0);
            inbox[k] = f32::from_bits(u32::from(pair[0]) | u32::from(high) << 16);
        }
        let mut own = parts[rank].clone();
        add(rank, &mut own, &inbox, Wire::Bf16);
        for i in 0..len {
            let expected = (round(parts[0][i]) + round(parts[1][i])) + (parts[2][i] + round(parts[3][i]));
            assert_eq!(own[i].to_bits(), expected.to_bits(), "{i}");
        }
    }
}
