//! Negative log-likelihood of target tokens, and its gradient in place of the logits: for a chunk of rows at a
//! time, so that the logits of a whole batch never exist together. Where no gradient is wanted, the vocabulary may come
//! in blocks, too ([`take_block`]).
//!
//! Softmax in fp32 in the fixed order of [`super::sums`]; logarithm and sums of the NLL in f64.

use super::math::{exp, ln_f64};
use super::{for_each_isa, sums};

/// What becomes of the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backward {
    /// They are replaced by the gradient of the summed NLL.
    Yes,
    /// They are lost.
    No,
}

for_each_isa! {
    /// Summed NLL of a chunk, nats. `logits`: `[n, vocab]`; `targets`: `[n]`, negative where nothing is scored (NLL
    /// and gradient are 0 there); `weights`: `[n]`, factors on NLL and gradient. Targets are below `vocab`.
    pub fn nll(
        vocab: usize, logits: &mut [f32], targets: &[i32], weights: Option<&[f32]>, backward: Backward,
    ) -> f64 {
        let mut total = 0.0;
        for (n, (row, &target)) in logits.chunks_exact_mut(vocab).zip(targets).enumerate() {
            let Ok(target) = usize::try_from(target) else {
                row.fill(0.0);
                continue;
            };
            let weight = weights.map_or(1.0, |w| w[n]);
            let max = sums::max(row);
            let at_target = row[target];
            for x in row.iter_mut() {
                *x = exp(*x - max);
            }
            let sum = sums::sum(row, |x| x);
            total += f64::from(weight) * (ln_f64(f64::from(sum)) + (f64::from(max) - f64::from(at_target)));
            if backward == Backward::Yes {
                let scale = weight / sum;
                for x in row.iter_mut() {
                    *x *= scale;
                }
                row[target] -= weight;
            }
        }
        total
    }
}

for_each_isa! {
    /// Takes the next block of the vocabulary into each row's largest logit so far and the sum of exponentials below it.
    /// `logits`: `[n, cols]`; `max`: `[n]`, begun with negative infinity; `total`: `[n]`, begun with 0. The NLL of a
    /// target is `ln sum + max - logit`. Bits depend on how the vocabulary is cut, and on nothing else.
    pub fn take_block(cols: usize, logits: &[f32], max: &mut [f32], total: &mut [f32]) {
        for ((row, max), total) in logits.chunks_exact(cols).zip(max).zip(total) {
            let own = sums::max(row);
            let m = if own > *max || own.is_nan() { own } else { *max };
            *total = total.mul_add(exp(*max - m), sums::sum(row, |x| exp(x - m)));
            *max = m;
        }
    }
}

/// The NLL of a target from what [`take_block`] has left, nats.
pub fn nll_of(logit: f32, max: f32, total: f32) -> f64 {
    ln_f64(f64::from(total)) + (f64::from(max) - f64::from(logit))
}

#[cfg(test)]
mod tests {
    use super::super::Isa;
    use super::super::testing::{close, numbers, same_bits};
    use super::*;

    #[test]
    fn nll_and_gradient_follow_their_definition() {
        for (n, vocab) in [(1, 1), (3, 7), (5, 160), (4, 1003)] {
            let logits: Vec<f32> = numbers(n * vocab, 1).into_iter().map(|x| 10.0 * x).collect();
            let targets: Vec<i32> = (0..n).map(|i| if i == 1 { -100 } else { (i * 7919 % vocab) as i32 }).collect();
            let weights = numbers(n, 2);
            let (mut total, mut gradient) = (0.0, vec![0.0; n * vocab]);
            for i in 0..n {
                let Ok(target) = usize::try_from(targets[i]) else { continue };
                let row: Vec<f64> = logits[i * vocab..][..vocab].iter().map(|&x| f64::from(x)).collect();
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                total += f64::from(weights[i]) * (sum.ln() - row[target]);
                for v in 0..vocab {
                    let hit = f64::from(u8::from(v == target));
                    gradient[i * vocab + v] = f64::from(weights[i]) * (row[v].exp() / sum - hit);
                }
            }
            let mut first = None;
            for isa in Isa::all() {
                let mut got = logits.clone();
                let nll_sum = nll(isa, vocab, &mut got, &targets, Some(&weights), Backward::Yes);
                assert!((nll_sum - total).abs() <= 1e-6 * total.abs().max(1.0), "{nll_sum} {total}");
                close(&got, &gradient, 1e-6);
                let mut lost = logits.clone();
                assert_eq!(nll(isa, vocab, &mut lost, &targets, Some(&weights), Backward::No), nll_sum);
                got.push(nll_sum as f32);
                same_bits(&mut first, vec![got], isa);
            }
        }
    }

    #[test]
    fn a_vocabulary_in_blocks_has_the_same_nll() {
        let (n, vocab) = (5, 1003);
        // The largest logit is in the first block, in the last, and somewhere.
        let mut logits: Vec<f32> = numbers(n * vocab, 1).into_iter().map(|x| 10.0 * x).collect();
        (logits[0], logits[2 * vocab - 1]) = (40.0, 40.0);
        for block in [1, 7, 64, 1003, 2000] {
            let mut first = None;
            for isa in Isa::all() {
                let (mut max, mut total) = (vec![f32::NEG_INFINITY; n], vec![0.0; n]);
                for from in (0..vocab).step_by(block) {
                    let cols = block.min(vocab - from);
                    let part: Vec<f32> = logits.chunks(vocab).flat_map(|row| row[from..][..cols].to_vec()).collect();
                    take_block(isa, cols, &part, &mut max, &mut total);
                }
                for i in 0..n {
                    let row = &logits[i * vocab..][..vocab];
                    let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                    for target in [0, 500, vocab - 1] {
                        let (got, exact) = (nll_of(row[target], max[i], total[i]), sum.ln() - f64::from(row[target]));
                        assert!((got - exact).abs() <= 2e-6 * exact.abs().max(1.0), "{block}: {got} {exact}");
                    }
                }
                same_bits(&mut first, vec![max, total], isa);
            }
        }
        let (mut max, mut total) = ([f32::NEG_INFINITY; 2], [0.0; 2]);
        take_block(Isa::best(), 2, &[1.0, 2.0, f32::NAN, 0.0], &mut max, &mut total);
        take_block(Isa::best(), 2, &[3.0, 1.0, 0.0, 0.0], &mut max, &mut total);
        assert!(nll_of(3.0, max[0], total[0]).is_finite() && nll_of(0.0, max[1], total[1]).is_nan());
    }

    #[test]
    fn a_nan_is_seen_and_a_masked_row_is_not() {
        for targets in [[1, 1], [-100, 1]] {
            let mut logits = [f32::NAN, 0.0, 0.0, 1.0, 2.0, 3.0];
            let sum = nll(Isa::best(), 3, &mut logits, &targets, None, Backward::Yes);
            assert_eq!(sum.is_nan(), targets[0] == 1);
            assert_eq!(logits[1].is_nan(), targets[0] == 1);
        }
    }
}
