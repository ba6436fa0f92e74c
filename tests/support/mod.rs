//! What tests share: a fake Slurm that really runs job scripts, and the real one of `scripts/slurm-sandbox`.

pub mod chain;
pub mod fake_slurm;
pub mod gated;
pub mod sandbox;
pub mod work;

use std::path::PathBuf;

/// The root of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
