//! The guard against labels that leak, in two layers, before the first step, where training or validation has a mask that
//! is not causal.
//!
//! *Structure*: what the output at a position depends on is followed through all blocks; a position that predicts the
//! token behind it must not come to depend on that token's key or a later one. *Experience*: with the weights that
//! training begins from, samples are judged under the mask and under a causal one; a loss that the mask more than
//! halves says that the model sees what it is to predict. The same passes show that the mask is a patch: how many
//! attention layers took it, and that losses under the causal mask have the same bits before and after it.
//!
//! Both layers fail closed: what cannot be judged leaks.

use serde_json::{Value, json};

use crate::compute::data::{IGNORED, Samples};
use crate::compute::model::{Batch, Mask, NoHooks, Passes, Ranges};
use crate::compute::{ComputeError, Result, Stop};

/// Samples that are judged under both masks.
const SAMPLES: u64 = 16;

/// Part of the loss under a causal mask below which the loss under the mask shows a leak.
pub const RATIO: f64 = 0.5;

/// What a leak does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leak {
    /// It stops the run.
    Refused,
    /// It is the point of the run, and recorded.
    Allowed,
}

/// What the structure of the mask says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Structure {
    /// Rows that were looked at: all of the split.
    pub rows: u64,
    /// Positions that predict something.
    pub labels: u64,
    /// Of those, how many depend on what they predict or on what follows it.
    pub leaking: u64,
}

/// What the weights say that training begins from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experience {
    /// Samples that were judged.
    pub samples: u64,
    /// Mean over samples of the mean NLL of a label under a causal mask, nats.
    pub causal_loss: f64,
    /// The same under the mask.
    pub masked_loss: f64,
    /// Attention layers that took the mask.
    pub patched_layers: usize,
    /// Whether every loss under the causal mask had the same bits before the mask and after it.
    pub restored: bool,
}

/// What the guard found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// By the mask alone.
    pub structure: Structure,
    /// By the losses of the model.
    pub experience: Experience,
    /// Another rank, whose losses have other bits, found a leak.
    pub elsewhere: bool,
}

impl Structure {
    /// Of every row of a split, for a model with `layers` blocks. Windows are left out: with them a position sees
    /// less.
    ///
    /// # Errors
    /// A row's segments are in parts.
    pub fn of(samples: &Samples, layers: usize) -> Result<Self> {
        let mut found = Self::default();
        for row in 0..samples.len() {
            let batch = samples.batch([Some(row)]);
            let ranges = Ranges::of(&batch)?;
            let reached = reach(&ranges.first, &ranges.end, layers);
            found.rows += 1;
            for (i, (_, &end)) in batch.targets.iter().zip(&reached).enumerate().filter(|(_, (t, _))| is_label(**t)) {
                found.labels += 1;
                // Its own key is the last that it may reach.
                found.leaking += u64::from(end as usize > i + 1);
            }
        }
        Ok(found)
    }

    /// Whether a label leaks, or none was there to be looked at.
    pub fn leaks(&self) -> bool {
        self.leaking > 0 || self.labels == 0
    }
}

fn is_label(target: i32) -> bool {
    i64::from(target) != IGNORED
}

/// One more than the last key that the output of each position depends on after `layers` blocks, where a block's
/// output at i depends on its inputs at i (the stream goes on) and at the keys `first[i]..end[i]`.
fn reach(first: &[u32], end: &[u32], layers: usize) -> Vec<u32> {
    // No row is longer than 2^24.
    let mut reached: Vec<u32> = (1..=first.len() as u32).collect();
    for _ in 0..layers {
        let table = Largest::of(&reached);
        let next: Vec<u32> =
            (0..reached.len()).map(|i| reached[i].max(table.among(first[i] as usize, end[i] as usize))).collect();
        if next == reached {
            // No further block changes anything.
            break;
        }
        reached = next;
    }
    reached
}

/// The largest of any run of numbers: level k has those of runs of 2^k.
struct Largest(Vec<Vec<u32>>);

impl Largest {
    fn of(values: &[u32]) -> Self {
        let mut levels = vec![values.to_vec()];
        let mut half = 1;
        while 2 * half <= values.len() {
            let below = &levels[levels.len() - 1];
            levels.push(below.iter().zip(&below[half..]).map(|(a, b)| *a.max(b)).collect());
            half *= 2;
        }
        Self(levels)
    }

    fn among(&self, first: usize, end: usize) -> u32 {
        if first >= end {
            return 0;
        }
        let level = (end - first).ilog2() as usize;
        let values = &self.0[level];
        values[first].max(values[end - (1 << level)])
    }
}

impl Experience {
    /// Of some samples, evenly spread over the split, by passes over the weights that training begins from.
    ///
    /// # Errors
    /// A pass fails.
    pub fn of(passes: &mut dyn Passes, samples: &Samples) -> Result<Self> {
        let n = samples.len().min(SAMPLES);
        let masked: Vec<Batch> = (0..n).map(|k| samples.batch([Some(k * samples.len() / n)])).collect();
        let causal: Vec<Batch> = masked.iter().map(under_causal).collect();
        let mut losses = |batches: &[Batch]| -> Result<(Vec<f64>, usize)> {
            let mut losses = Vec::with_capacity(batches.len());
            let mut layers = usize::MAX;
            for batch in batches {
                let sum = passes.evaluate(batch, &mut NoHooks)?;
                losses.push(sum.nll / sum.tokens as f64);
                layers = layers.min(passes.patched_layers());
            }
            Ok((losses, layers))
        };
        let (before, _) = losses(&causal)?;
        let (under, patched_layers) = losses(&masked)?;
        let (after, left) = losses(&causal)?;
        let same = before.iter().zip(&after).all(|(a, b)| a.to_bits() == b.to_bits());
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        Ok(Self {
            samples: n,
            causal_loss: mean(&before),
            masked_loss: mean(&under),
            patched_layers,
            restored: same && left == 0,
        })
    }

    /// The loss under the mask over that under a causal one.
    pub fn ratio(&self) -> f64 {
        self.masked_loss / self.causal_loss
    }

    /// Whether the mask more than halves the loss, or that cannot be told.
    pub fn leaks(&self) -> bool {
        let judged = self.masked_loss.is_finite() && self.causal_loss.is_finite() && self.causal_loss > 0.0;
        !judged || self.ratio() < RATIO
    }
}

/// The same rows under a causal mask.
fn under_causal(batch: &Batch) -> Batch {
    Batch { mask: Mask::Causal, prompt_lens: None, key_lens: None, ..batch.clone() }
}

impl Found {
    /// Looks at a split under its mask, for a model with `layers` blocks.
    ///
    /// # Errors
    /// A pass fails; an attention layer did not take the mask, or it did not go away: a result would not be what its
    /// study says.
    pub fn of(passes: &mut dyn Passes, samples: &Samples, layers: usize) -> Result<Self> {
        let structure = Structure::of(samples, layers)?;
        let found = Self { structure, experience: Experience::of(passes, samples)?, elsewhere: false };
        let Experience { patched_layers, restored, .. } = found.experience;
        if patched_layers != layers {
            return Err(ComputeError::Failed(format!(
                "the mask was taken by {patched_layers} of {layers} attention layers: report this"
            )));
        }
        if !restored {
            return Err(ComputeError::Failed(
                "losses under a causal mask are others after the mask than before it: report this".to_owned(),
            ));
        }
        Ok(found)
    }

    /// Whether one of the layers found a leak.
    pub fn leaks(&self) -> bool {
        self.structure.leaks() || self.experience.leaks() || self.elsewhere
    }

    /// Stops a run whose labels leak, unless that is its point. `key` is what the study calls the mask.
    ///
    /// # Errors
    /// [`ComputeError::Stopped`].
    pub fn judge(&self, leak: Leak, key: &str) -> Result<()> {
        if leak == Leak::Allowed || !self.leaks() {
            return Ok(());
        }
        Err(ComputeError::Stopped(Box::new(Stop {
            criterion: "label-leakage",
            step: 0,
            why: format!(
                "labels leak under `{key}`: {}; choose another mask, or set `allow_leak` = true if that is the point",
                self.words()
            ),
            values: self.tree(leak),
        })))
    }

    /// In words, for logs.
    pub fn words(&self) -> String {
        let Self { structure, experience, .. } = self;
        format!(
            "{} of {} predicting positions depend on what follows them; the loss of {} samples before training is {:.4} under it \
             and {:.4} under a causal mask",
            structure.leaking, structure.labels, experience.samples, experience.masked_loss, experience.causal_loss
        )
    }

    /// As a result has it.
    pub fn tree(&self, leak: Leak) -> Value {
        let Self { structure, experience, .. } = self;
        json!({
            "structural": {
                "rows": structure.rows,
                "labels": structure.labels,
                "leaking_labels": structure.leaking,
                "leaks": structure.leaks(),
            },
            "empirical": {
                "samples": experience.samples,
                "causal_loss": experience.causal_loss,
                "masked_loss": experience.masked_loss,
                "ratio": experience.ratio(),
                "threshold": RATIO,
                "leaks": experience.leaks(),
            },
            "allowed": leak == Leak::Allowed,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Boolean reachability, as a matrix, multiplied out.
    fn dense(sees: &[Vec<bool>], layers: usize) -> Vec<Vec<bool>> {
        let t = sees.len();
        let mut reached: Vec<Vec<bool>> = (0..t).map(|i| (0..t).map(|j| i == j).collect()).collect();
        for _ in 0..layers {
            let through = |i: usize, j: usize| reached[i][j] || (0..t).any(|k| sees[i][k] && reached[k][j]);
            reached = (0..t).map(|i| (0..t).map(|j| through(i, j)).collect()).collect();
        }
        reached
    }

    fn sees(first: &[u32], end: &[u32]) -> Vec<Vec<bool>> {
        let t = first.len() as u32;
        first.iter().zip(end).map(|(&a, &b)| (0..t).map(|j| (a..b).contains(&j)).collect()).collect()
    }

    proptest! {
        #[test]
        fn the_last_key_reached_is_that_of_the_matrix(
            spans in prop::collection::vec((0u32..14, 0u32..14), 1..14), layers in 0usize..6
        ) {
            let t = spans.len() as u32;
            let first: Vec<u32> = spans.iter().map(|s| s.0.min(t)).collect();
            let end: Vec<u32> = spans.iter().map(|s| s.1.min(t)).collect();
            let matrix = dense(&sees(&first, &end), layers);
            let last: Vec<u32> =
                matrix.iter().map(|row| 1 + row.iter().rposition(|&r| r).unwrap() as u32).collect();
            prop_assert_eq!(reach(&first, &end, layers), last);
        }
    }

    fn leaking(batch: &Batch, layers: usize) -> Vec<usize> {
        let ranges = Ranges::of(batch).unwrap();
        let reached = reach(&ranges.first, &ranges.end, layers);
        (0..batch.seq_len).filter(|&i| is_label(batch.targets[i]) && reached[i] as usize > i + 1).collect()
    }

    #[test]
    fn masks_leak_where_their_words_say() {
        // A prompt of three tokens, a response of three.
        let mut batch = Batch::causal(1, 6, vec![1; 6], vec![-100, -100, 5, 5, 5, -100]);
        assert_eq!(leaking(&batch, 3), [0; 0]);
        batch = Batch { mask: Mask::Prefix, prompt_lens: Some(vec![3]), ..batch };
        assert_eq!(leaking(&batch, 3), [0; 0]);
        // A prompt that is predicted sees itself.
        let asked = Batch { targets: vec![5; 6], ..batch.clone() };
        assert_eq!(leaking(&asked, 1), [0, 1]);
        // A prompt that is one too long shows the first token of the response.
        let long = Batch { prompt_lens: Some(vec![4]), ..batch.clone() };
        assert_eq!(leaking(&long, 1), [2]);
        let full = Batch { mask: Mask::Full, prompt_lens: None, ..batch };
        assert_eq!(leaking(&full, 1), [2, 3, 4]);
        // Padding that nobody sees does not leak, and what is before it does.
        assert_eq!(leaking(&Batch { key_lens: Some(vec![5]), ..full }, 1), [2, 3]);
    }

    #[test]
    fn a_leak_comes_through_several_blocks() {
        // Each position sees itself and the next: two blocks carry what is two tokens ahead.
        let (first, end): (Vec<u32>, Vec<u32>) = ((0..5).collect(), (1..=5u32).map(|i| (i + 1).min(5)).collect());
        assert_eq!(reach(&first, &end, 1), [2, 3, 4, 5, 5]);
        assert_eq!(reach(&first, &end, 2), [3, 4, 5, 5, 5]);
        assert_eq!(reach(&first, &end, 0), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_cannot_be_judged_leaks() {
        let structure = Structure { rows: 3, labels: 9, leaking: 0 };
        let experience =
            Experience { samples: 3, causal_loss: 1.0, masked_loss: 0.9, patched_layers: 2, restored: true };
        let found = |structure, experience| Found { structure, experience, elsewhere: false };
        assert!(!found(structure, experience).leaks());
        for (causal_loss, masked_loss, leaks) in [
            (1.023, 0.070, true),
            (1.0, 0.5, false),
            (1.0, 0.49, true),
            (0.0, 0.0, true),
            (0.0, 0.5, true),
            (1.0, f64::INFINITY, true),
            (f64::NAN, 1.0, true),
            (1.0, f64::NAN, true),
        ] {
            let found = found(structure, Experience { causal_loss, masked_loss, ..experience });
            assert_eq!(found.leaks(), leaks, "{causal_loss} {masked_loss}");
            assert_eq!(found.judge(Leak::Refused, "mask").is_err(), leaks);
            assert!(found.judge(Leak::Allowed, "mask").is_ok());
        }
        assert!(found(Structure { leaking: 1, ..structure }, experience).leaks());
        assert!(found(Structure::default(), experience).leaks(), "nothing was looked at");
        assert!(Found { elsewhere: true, ..found(structure, experience) }.judge(Leak::Refused, "mask").is_err());
        let Err(ComputeError::Stopped(stop)) =
            found(Structure { leaking: 1, ..structure }, experience).judge(Leak::Refused, "validation_mask")
        else {
            panic!("it leaks")
        };
        assert_eq!((stop.criterion, stop.step), ("label-leakage", 0));
        for said in ["1 of 9", "under `validation_mask`", "allow_leak"] {
            assert!(stop.why.contains(said), "{}", stop.why);
        }
        assert_eq!(stop.values["structural"]["leaking_labels"], 1);
    }
}
