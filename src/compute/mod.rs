//! What a stage does: ranks, models, data, training, checkpoints, evaluation, attacks.

pub mod attack;
pub mod data;
pub mod evaluate;
pub mod model;
pub mod rng;

mod error;

pub use error::{ComputeError, Result};
