//! Samples of T inputs and T targets, in an order that is a function and has no state.
//!
//! The position in the data is one integer: position p is sample `permutation(seed, p / n)(p % n)` of the n
//! samples of an epoch. Nothing has to be saved to go on, and ranks need not agree on anything.

use std::sync::Arc;

use crate::compute::model::Batch;
use crate::compute::rng::{Purpose, philox4x32};
use crate::compute::{ComputeError, Result};

use super::Tokens;

/// Target that carries no label.
pub const IGNORED: i64 = -100;

/// How documents become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// The documents, each ended by its end-of-text id, as one stream that is cut every T tokens.
    Stream,
    /// Windows of one document each, the last one filled up with ids that carry no label.
    Document,
}

impl Packing {
    /// The word in a study file.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "stream" => Some(Self::Stream),
            "document" => Some(Self::Document),
            _ => None,
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// T input ids.
    pub inputs: Vec<i64>,
    /// T targets: the id that follows, or [`IGNORED`].
    pub targets: Vec<i64>,
    /// T segment numbers: which document of the row a position belongs to, from 0.
    pub segments: Vec<i64>,
    /// Position of the first input in `tokens.bin`.
    pub start: u64,
}

/// The samples of a split.
#[derive(Debug, Clone)]
pub struct Samples {
    tokens: Arc<Tokens>,
    seq_len: usize,
    packing: Packing,
    /// First input of every window, for [`Packing::Document`].
    windows: Vec<(u64, u64)>,
}

impl Samples {
    /// Samples of `seq_len` inputs.
    ///
    /// # Errors
    /// `seq_len` is 0, or the split does not hold one sample.
    pub fn new(tokens: Arc<Tokens>, seq_len: usize, packing: Packing) -> Result<Self> {
        if seq_len == 0 {
            return Err(ComputeError::Config("the sequence length is 0: set `seq_len` to at least 1".to_owned()));
        }
        let mut windows = Vec::new();
        if packing == Packing::Document {
            for i in 0..tokens.documents() {
                let range = tokens.document(i);
                // A document of one id (its end) predicts nothing.
                let mut start = range.start;
                while start + 1 < range.end {
                    windows.push((start, range.end));
                    start += seq_len as u64;
                }
            }
        }
        let samples = Self { tokens, seq_len, packing, windows };
        if samples.is_empty() {
            return Err(ComputeError::Config(format!(
                "the {} split holds {} tokens, fewer than one sample of {}: give it more text or lower `seq_len`",
                samples.tokens.info().split,
                samples.tokens.len(),
                seq_len + 1
            )));
        }
        Ok(samples)
    }

    /// Samples in one epoch.
    pub fn len(&self) -> u64 {
        match self.packing {
            Packing::Stream => (self.tokens.len().saturating_sub(1)) / self.seq_len as u64,
            Packing::Document => self.windows.len() as u64,
        }
    }

    /// True if there is none; never after [`Self::new`].
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses a global batch that an epoch cannot fill.
    ///
    /// # Errors
    /// The split holds fewer than `global_batch` samples.
    pub fn check_batch(&self, global_batch: u64) -> Result<()> {
        if self.len() < global_batch {
            return Err(ComputeError::Config(format!(
                "the {} split holds {} samples of {} tokens, fewer than one batch of {global_batch}: give it more text, or lower `global_batch` or `seq_len`",
                self.tokens.info().split,
                self.len(),
                self.seq_len
            )));
        }
        Ok(())
    }

    /// T.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// The split they are cut from.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Sample `i` in file order; beyond the last it holds no label.
    pub fn sample(&self, i: u64) -> Sample {
        let t = self.seq_len;
        let (start, end) = match self.packing {
            Packing::Stream => (i * t as u64, self.tokens.len()),
            Packing::Document => {
                self.windows.get(i as usize).copied().unwrap_or((self.tokens.len(), self.tokens.len()))
            }
        };
        let ids = self.tokens.ids(start..(start + t as u64 + 1).min(end));
        let special = self.tokens.info().special;
        let mut inputs = vec![i64::from(special.filler()); t];
        let mut targets = vec![IGNORED; t];
        let mut segments = vec![0; t];
        let mut segment = 0;
        for k in 0..t {
            segments[k] = segment;
            if let Some(&id) = ids.get(k) {
                inputs[k] = i64::from(id);
                segment += i64::from(id == special.eos);
            }
            if let Some(&next) = ids.get(k + 1) {
                targets[k] = i64::from(next);
            }
        }
        Sample { inputs, targets, segments, start }
    }

    /// Some rows as a model sees them; a row that is `None` holds no label.
    pub fn batch(&self, rows: impl IntoIterator<Item = Option<u64>>) -> Batch {
        let mut batch = Batch::causal(0, self.seq_len, Vec::new(), Vec::new());
        for row in rows {
            batch.rows += 1;
            // Beyond every sample there is none.
            let sample = self.sample(row.unwrap_or(self.tokens.len()));
            // Ids are below the vocabulary, which an embedding's size bounds far below 2^31.
            batch.ids.extend(sample.inputs.iter().map(|&id| id as i32));
            batch.targets.extend(sample.targets.iter().map(|&id| id as i32));
        }
        batch
    }

    /// Sample number of position `position` of training with `seed`.
    pub fn at_position(&self, seed: u32, position: u64) -> u64 {
        let n = self.len();
        // An epoch number beyond 2^32 would need more positions than any run has.
        Permutation::new(n, seed, (position / n) as u32).at(position % n)
    }
}

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
pub(crate) mod tests {
    use super::*;
    use crate::compute::data::tokens::{SpecialIds, TokensHeader, write};
    use crate::record::Digest;
    use proptest::prelude::*;

    pub(crate) fn tokens(documents: Vec<Vec<u32>>) -> (tempfile::TempDir, Arc<Tokens>) {
        let dir = tempfile::tempdir().unwrap();
        let header = TokensHeader {
            split: "train".into(),
            vocab_size: 100,
            tokenizer: Digest::of_bytes(b"t"),
            special: SpecialIds { eos: 0, bos: None, pad: Some(1) },
            sources: Vec::new(),
        };
        write(dir.path(), &header, documents.into_iter().map(Ok)).unwrap();
        let tokens = Arc::new(Tokens::open(dir.path()).unwrap());
        (dir, tokens)
    }

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

    #[test]
    fn stream_rows_overlap_by_their_context_only() {
        let (_dir, tokens) = tokens(vec![vec![10, 11, 12], vec![20, 21], vec![30]]);
        // 10 11 12 0 20 21 0 30 0
        let samples = Samples::new(tokens, 4, Packing::Stream).unwrap();
        assert_eq!(samples.len(), 2);
        let (a, b) = (samples.sample(0), samples.sample(1));
        assert_eq!((a.inputs, a.targets), (vec![10, 11, 12, 0], vec![11, 12, 0, 20]));
        assert_eq!((b.inputs, b.targets), (vec![20, 21, 0, 30], vec![21, 0, 30, 0]));
        assert_eq!(b.segments, [0, 0, 0, 1]);
        assert_eq!(b.start, 4);
    }

    #[test]
    fn document_rows_never_mix_and_their_filling_has_no_label() {
        let (_dir, tokens) = tokens(vec![vec![10, 11, 12], vec![], vec![30]]);
        // 10 11 12 0 | 0 | 30 0
        let samples = Samples::new(tokens, 2, Packing::Document).unwrap();
        assert_eq!(samples.len(), 3);
        let rows: Vec<_> = (0..3).map(|i| samples.sample(i)).map(|s| (s.inputs, s.targets)).collect();
        assert_eq!(rows[0], (vec![10, 11], vec![11, 12]));
        assert_eq!(rows[1], (vec![12, 0], vec![0, IGNORED]));
        assert_eq!(rows[2], (vec![30, 0], vec![0, IGNORED]));
    }

    #[test]
    fn every_position_of_an_epoch_is_a_sample_once() {
        let (_dir, tokens) = tokens(vec![(2..90).collect()]);
        let samples = Samples::new(tokens, 4, Packing::Stream).unwrap();
        let n = samples.len();
        for epoch in 0..3 {
            let mut drawn: Vec<u64> = (0..n).map(|i| samples.at_position(7, epoch * n + i)).collect();
            drawn.sort_unstable();
            assert_eq!(drawn, (0..n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn too_little_text_is_one_clear_message() {
        let (_dir, tokens) = tokens(vec![vec![5, 6, 7]]);
        let error = Samples::new(tokens.clone(), 64, Packing::Stream).unwrap_err().to_string();
        assert!(error.contains("fewer than one sample of 65"), "{error}");
        let samples = Samples::new(tokens, 1, Packing::Stream).unwrap();
        let error = samples.check_batch(24).unwrap_err().to_string();
        assert!(error.contains("fewer than one batch of 24"), "{error}");
    }
}
