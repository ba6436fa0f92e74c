//! Grains: which samples go through a model at once, as the [`Batch`] that it sees.
//!
//! Grain g of step s is a function of (samples, seed, s, g). It knows no rank and has no state, so any number of
//! ranks, and a run that goes on, see the same grains. [`super::prefetch`] prepares them ahead of time.

use std::sync::Arc;

use crate::compute::model::Batch;
use crate::compute::{ComputeError, Result};

use super::{Permutation, Samples};

/// What becomes of the samples at the end of an epoch that do not fill a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastBatch {
    /// They are not used in this epoch; another epoch has another order.
    Drop,
    /// The batch is filled up with rows without a label, which add nothing to any sum.
    Pad,
}

impl LastBatch {
    /// Words in a study.
    pub const WORDS: &'static [&'static str] = &["drop", "pad"];

    /// By its word in a study.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "drop" => Some(Self::Drop),
            "pad" => Some(Self::Pad),
            _ => None,
        }
    }
}

/// How epochs are cut into steps and grains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// Seed of the order of samples.
    pub seed: u32,
    /// Samples of a step.
    pub global_batch: u64,
    /// Samples of a grain.
    pub grain_samples: u64,
    /// What happens at the end of an epoch.
    pub last_batch: LastBatch,
}

/// The grains of a training run.
#[derive(Debug, Clone)]
pub struct TrainingGrains {
    samples: Arc<Samples>,
    course: Course,
}

impl TrainingGrains {
    /// Grains of `samples`.
    ///
    /// # Errors
    /// A grain does not divide the batch, or an epoch does not fill one batch that is to be full.
    pub fn new(samples: Arc<Samples>, course: Course) -> Result<Self> {
        let (batch, grain) = (course.global_batch, course.grain_samples);
        if grain == 0 || batch == 0 || batch % grain != 0 {
            return Err(ComputeError::Config(format!(
                "`grain_samples` = {grain} does not divide `global_batch` = {batch}: choose a divisor"
            )));
        }
        if course.last_batch == LastBatch::Drop {
            samples.check_batch(batch)?;
        }
        Ok(Self { samples, course })
    }

    /// What they are made of.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// Steps in which every sample is seen once (but those that are dropped).
    pub fn steps_per_epoch(&self) -> u64 {
        match self.course.last_batch {
            LastBatch::Drop => self.samples.len() / self.course.global_batch,
            LastBatch::Pad => self.samples.len().div_ceil(self.course.global_batch),
        }
    }

    /// Grains of a step.
    pub fn grains_per_step(&self) -> u64 {
        self.course.global_batch / self.course.grain_samples
    }

    /// Grain `grain` of step `step`, both from 0.
    pub fn batch(&self, step: u64, grain: u64) -> Batch {
        let (per_epoch, course) = (self.steps_per_epoch(), &self.course);
        // An epoch number beyond 2^32 would need more steps than any run has.
        let order = Permutation::new(self.samples.len(), course.seed, (step / per_epoch) as u32);
        let first = (step % per_epoch) * course.global_batch + grain * course.grain_samples;
        let row = |place: u64| (place < self.samples.len()).then(|| order.at(place));
        self.samples.batch((first..first + course.grain_samples).map(row))
    }
}

/// The grains of a validation: every sample once, in the order of the file.
#[derive(Debug, Clone)]
pub struct ValidationGrains {
    samples: Arc<Samples>,
    grain_samples: u64,
    count: u64,
}

impl ValidationGrains {
    /// Grains of the first `limit` samples, or of all. The last one is filled up with rows without a label, so
    /// that all have one shape.
    pub fn new(samples: Arc<Samples>, grain_samples: u64, limit: Option<u64>) -> Self {
        let count = samples.len().min(limit.unwrap_or(u64::MAX));
        Self { samples, grain_samples: grain_samples.max(1), count }
    }

    /// Number of grains.
    pub fn len(&self) -> u64 {
        self.count.div_ceil(self.grain_samples)
    }

    /// True if there is none: the limit was 0.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Samples in all of them.
    pub fn samples(&self) -> u64 {
        self.count
    }

    /// Grain `number`; beyond the last it holds no label.
    pub fn batch(&self, number: u64) -> Batch {
        let first = number * self.grain_samples;
        self.samples.batch((first..first + self.grain_samples).map(|i| (i < self.count).then_some(i)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::compute::data::samples::tests::tokens;
    use crate::compute::data::{IGNORED, Packing};

    /// Grains over 11 samples of 4 tokens.
    pub(crate) fn course(global_batch: u64, grain_samples: u64, last_batch: LastBatch) -> TrainingGrains {
        let (_dir, tokens) = tokens(vec![(2..46).collect()]);
        let samples = Arc::new(Samples::new(tokens, 4, Packing::Stream).unwrap());
        assert_eq!(samples.len(), 11);
        TrainingGrains::new(samples, Course { seed: 5, global_batch, grain_samples, last_batch }).unwrap()
    }

    /// First ids of the labelled rows of some steps: which samples were seen. Ids are all different here.
    fn seen(grains: &TrainingGrains, steps: std::ops::Range<u64>) -> Vec<i32> {
        let mut seen = Vec::new();
        for step in steps {
            for grain in 0..grains.grains_per_step() {
                let batch = grains.batch(step, grain);
                assert_eq!((batch.ids.len(), batch.targets.len()), (batch.rows * 4, batch.rows * 4));
                let rows = batch.ids.chunks(4).zip(batch.targets.chunks(4));
                seen.extend(rows.filter(|(_, t)| t[0] != IGNORED as i32).map(|(ids, _)| ids[0]));
            }
        }
        seen
    }

    #[test]
    fn a_padded_epoch_shows_every_sample_once_and_a_cut_one_shows_none_twice() {
        let all: Vec<i32> = (0..11).map(|i| 2 + 4 * i).collect();
        let sorted = |mut seen: Vec<i32>| {
            seen.sort_unstable();
            seen
        };
        for grain in [1, 2, 4] {
            let padded = course(4, grain, LastBatch::Pad);
            assert_eq!(padded.steps_per_epoch(), 3);
            let epochs: Vec<Vec<i32>> = (0..3).map(|e| seen(&padded, 3 * e..3 * e + 3)).collect();
            assert!(epochs.iter().all(|e| sorted(e.clone()) == all), "{epochs:?}");
            assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2], "each epoch has its own order");
            let cut = course(4, grain, LastBatch::Drop);
            assert_eq!(cut.steps_per_epoch(), 2);
            for epoch in 0..3 {
                // The cut epoch begins as the whole one does.
                assert_eq!(seen(&cut, 2 * epoch..2 * epoch + 2), epochs[epoch as usize][..8]);
            }
        }
    }

    #[test]
    fn the_size_of_a_grain_does_not_change_the_samples_of_a_step() {
        let rows = |grain: u64| -> Vec<Vec<i32>> {
            let grains = course(8, grain, LastBatch::Pad);
            (0..4).map(|step| (0..8 / grain).flat_map(|g| grains.batch(step, g).ids).collect()).collect()
        };
        assert_eq!(rows(1), rows(8));
        assert_eq!(rows(2), rows(4));
        assert_eq!(rows(1), rows(2));
    }

    #[test]
    fn a_batch_larger_than_an_epoch_is_padded_or_refused() {
        let padded = course(16, 8, LastBatch::Pad);
        assert_eq!(padded.steps_per_epoch(), 1);
        assert_eq!(padded.batch(0, 0).labels() + padded.batch(0, 1).labels(), 44);
        let samples = padded.samples.clone();
        let course = Course { last_batch: LastBatch::Drop, ..padded.course };
        let error = TrainingGrains::new(samples.clone(), course).unwrap_err().to_string();
        assert!(error.contains("fewer than one batch of 16"), "{error}");
        let error = TrainingGrains::new(samples, Course { grain_samples: 3, ..course }).unwrap_err().to_string();
        assert!(error.contains("does not divide"), "{error}");
    }

    #[test]
    fn a_validation_sees_every_sample_once_in_order() {
        let samples = course(1, 1, LastBatch::Drop).samples;
        for (limit, count, grains) in [(None, 11, 3), (Some(5), 5, 2), (Some(99), 11, 3), (Some(0), 0, 0)] {
            let validation = ValidationGrains::new(samples.clone(), 4, limit);
            assert_eq!((validation.len(), validation.samples()), (grains, count));
            let batches: Vec<Batch> = (0..grains + 1).map(|i| validation.batch(i)).collect();
            assert!(batches.iter().all(|b| b.rows == 4));
            let ids: Vec<i32> = batches.iter().flat_map(|b| b.ids[..].chunks(4).map(|r| r[0])).collect();
            assert_eq!(ids[..count as usize], (0..count).map(|i| 2 + 4 * i as i32).collect::<Vec<_>>());
            assert_eq!(batches.iter().map(Batch::labels).sum::<i64>(), 4 * count as i64);
        }
    }
}
