//! Slurm: the job script, its submission, the queue, accounting and the site's limits.
//!
//! [`script`] is pure. Everything else runs one Slurm command, found on `PATH`, with a time limit, and
//! parses its output with a pure function. Nothing here decides what is done: only a seal does.

pub mod script;
