//! From a study file to jobs: study, plan, submission, journal, and what happens inside a job.

pub mod plan;
pub mod slurm;
pub mod study;
