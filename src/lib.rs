//! Seedbed takes a staged, multi-seed machine-learning study from one TOML file, through Slurm, to the
//! numbers in the paper.
//!
//! Read in this order: [`record`] (what lies on disk), [`workflow`] (from a study file to jobs),
//! [`stages`] (what a stage does), [`report`] (from results to the paper). `docs/architecture.md` has the
//! map and the invariants.

pub mod cli;
#[cfg(feature = "compute")]
pub mod compute;
pub mod record;
pub mod report;
pub mod stages;
pub mod workflow;
