//! From a study file to jobs: study, plan, submission, journal, and what happens inside a job.

pub mod attempt;
pub mod bill;
pub mod budget;
pub mod journal;
pub mod ledger;
pub mod local;
pub mod lock;
pub mod place;
pub mod plan;
pub mod precheck;
pub mod programs;
pub mod run;
pub mod slurm;
pub mod study;
pub mod submission;
pub mod survey;

mod error;

pub use error::{Result, WorkflowError};
