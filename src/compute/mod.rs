//! What a stage does: ranks, models, data, training, checkpoints, evaluation, generation, attacks.

pub mod attack;
pub mod checkpoint;
pub mod comm;
pub mod data;
pub mod evaluate;
pub mod generate;
pub mod gpu;
pub mod kernels;
pub mod model;
pub mod numerics;
#[cfg(feature = "mpi")]
pub mod plain;
pub mod rng;
pub mod train;

mod error;

pub use error::{ComputeError, Result, Stop};

/// Version of the libtorch that this program was built against.
pub const LIBTORCH_VERSION: &str = match option_env!("SEEDBED_LIBTORCH_VERSION") {
    Some(version) => version,
    None => "unknown",
};
