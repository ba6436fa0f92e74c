//! Attacks on language models: universal triggers ([`uat`]) and token flips ([`hotflip`]).
//!
//! Both report every loss in two scopes and judge success by three metrics, side by side ([`success`]): which
//! conclusion holds often depends on these choices, so no number is given without them. Nothing here is
//! drawn from a stateful generator, and no batch size changes a result.

pub mod hotflip;
pub mod success;
pub mod uat;

use crate::compute::data::Samples;
use crate::compute::rng::{Purpose, Rng};
use crate::compute::{ComputeError, Result};

/// A text to attack: `ids[..T]` are inputs, `ids[1..]` are targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Row number in its split.
    pub id: u64,
    /// T + 1 ids.
    pub ids: Vec<i64>,
}

/// `count` different full rows of a split, drawn by (seed, draw); the same for every model.
///
/// # Errors
/// The split has fewer rows.
pub fn draw_texts(samples: &Samples, count: usize, seed: u32) -> Result<Vec<Text>> {
    let available = samples.len();
    if (available as usize) < count {
        return Err(ComputeError::Config(format!(
            "the attack wants {count} texts, but the {} split has {available} rows of {} tokens: lower `num_samples` or give the study more text",
            samples.tokens().info().split,
            samples.seq_len()
        )));
    }
    let rows = Rng::new(seed, Purpose::AttackSamples, 0, 0).distinct(available as usize, count);
    let text = |row: usize| {
        let start = row as u64 * samples.seq_len() as u64;
        let ids = samples.tokens().ids(start..start + samples.seq_len() as u64 + 1);
        Text { id: row as u64, ids: ids.into_iter().map(i64::from).collect() }
    };
    Ok(rows.into_iter().map(text).collect())
}

/// Ids that an attack may use: those that occur in the training split and are not special.
/// A token that the model never saw would make any model look weak.
pub fn allowed_ids(counts: &[u64], special: &[u32]) -> Vec<i64> {
    let seen = counts.iter().enumerate().filter(|&(id, &n)| n > 0 && !special.contains(&(id as u32)));
    seen.map(|(id, _)| id as i64).collect()
}

/// Which targets are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every target, the adversarial tokens among them: as the historic runs did.
    All,
    /// Only targets that the attack did not touch, in the clean text and in the attacked one.
    UntouchedTargets,
}

impl Scope {
    /// Both, in the order in which they are reported.
    pub const ALL: [Self; 2] = [Self::All, Self::UntouchedTargets];

    /// Its word in studies and results.
    pub fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::UntouchedTargets => "untouched_targets",
        }
    }

    /// By its word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.word() == word)
    }
}

/// Mean NLL of one text before and after, nats, in one scope.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Before.
    pub clean: f64,
    /// After.
    pub attacked: f64,
}

/// A sum of NLL and the number of targets in it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Sum {
    nll: f64,
    tokens: i64,
}

impl Sum {
    pub(crate) fn add(&mut self, nll: f64) {
        self.nll += nll;
        self.tokens += 1;
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.nll += other.nll;
        self.tokens += other.tokens;
    }

    /// Nats per token; 0 if every target was touched.
    pub(crate) fn mean(self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.nll / self.tokens as f64 }
    }
}

/// Index of the largest value; the lowest of equal ones; `None` if every value is minus infinity.
pub(crate) fn arg_max(values: impl IntoIterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, value) in values.into_iter().enumerate() {
        if value > best.map_or(f64::NEG_INFINITY, |b| b.1) {
            best = Some((i, value));
        }
    }
    best.map(|b| b.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_take_the_lowest_index() {
        assert_eq!(arg_max([1.0, 3.0, 3.0]), Some(1));
        assert_eq!(arg_max([f64::NEG_INFINITY, f64::NEG_INFINITY]), None);
        assert_eq!(arg_max([f64::NAN, -1.0]), Some(1));
    }

    #[test]
    fn special_and_unseen_ids_are_not_allowed() {
        assert_eq!(allowed_ids(&[9, 9, 3, 0, 1], &[0, 1]), [2, 4]);
    }
}
