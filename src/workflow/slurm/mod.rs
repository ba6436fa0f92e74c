//! Slurm: the job script, its submission, the queue, accounting and the site's limits.
//!
//! [`script`] is pure. Everything else runs one Slurm command, found on `PATH`, with a time limit and an
//! environment that holds nothing of the submitting shell's Slurm settings, and parses its output with a pure
//! function. Nothing here decides what is done: only a seal does.

pub mod accounting;
pub mod allowance;
pub mod client;
pub mod config;
pub mod control;
pub mod federation;
pub mod job;
pub mod queue;
pub mod reason;
pub mod script;
pub mod submit;
pub mod wishes;

pub use client::{Client, SlurmError};
pub use job::{Element, JobId, JobState, Liveness};
