//! What tests share: a fake Slurm that really runs job scripts.

pub mod fake_slurm;
