//! The counters of a training run: everything besides parameters and moments that a checkpoint must hold for
//! the run to go on with the same numbers. Stored as JSON in the manifest; floats come back bit for bit.

use serde::{Deserialize, Serialize};

use super::criteria::Watch;

/// Counters after a number of steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done, skipped ones included.
    pub step: u64,
    /// Updates of the parameters.
    pub updates: u64,
    /// Steps that updated nothing: no label, or a gradient that is not finite.
    pub skipped: u64,
    /// Of those, the last ones in a row.
    pub skipped_in_row: u64,
    /// Updates whose gradient was clipped.
    pub clipped: u64,
    /// Labelled tokens of all updates.
    pub tokens: i64,
    /// Summed NLL since the last validation, nats.
    pub window_nll: f64,
    /// Labelled tokens since the last validation.
    pub window_tokens: i64,
    /// Every validation so far.
    pub validations: Vec<Validation>,
    /// The best of them.
    pub best: Option<Best>,
    /// Smallest and largest effective constrained weight at the last check.
    pub constrained_range: Option<[f64; 2]>,
    /// Training time over all attempts, seconds.
    pub seconds: f64,
    /// What kill criteria remember.
    #[serde(default)]
    pub watch: Watch,
}

/// One validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Steps done.
    pub step: u64,
    /// Mean training NLL a token since the validation before, nats; `None` if no step counted.
    pub train_loss: Option<f64>,
    /// Mean validation NLL a token, nats.
    pub loss: f64,
    /// exp of it.
    pub perplexity: f64,
}

/// The best validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Steps done.
    pub step: u64,
    /// Its perplexity.
    pub perplexity: f64,
    /// The checkpoint that holds its parameters.
    pub checkpoint: String,
}

impl State {
    /// Mean training NLL since the last validation.
    pub fn window_loss(&self) -> Option<f64> {
        (self.window_tokens > 0).then(|| self.window_nll / self.window_tokens as f64)
    }

    /// A step without an update.
    pub fn skip(&mut self) {
        self.skipped += 1;
        self.skipped_in_row += 1;
    }

    /// A step with one.
    pub fn update(&mut self, nll: f64, tokens: i64) {
        self.updates += 1;
        self.skipped_in_row = 0;
        self.tokens += tokens;
        self.window_nll += nll;
        self.window_tokens += tokens;
    }
}
