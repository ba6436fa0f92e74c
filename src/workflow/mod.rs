//! From a study file to jobs: study, plan, submission, journal, and what happens inside a job.

pub mod answers;
pub mod attempt;
pub mod bill;
pub mod budget;
pub mod cancel;
pub mod doctor;
pub mod explain;
pub mod history;
pub mod journal;
pub mod ledger;
pub mod local;
pub mod lock;
pub mod logs;
pub mod place;
pub mod plan;
pub mod precheck;
pub mod programs;
pub mod retry;
pub mod run;
pub mod slurm;
pub mod standing;
pub mod status;
pub mod study;
pub mod submission;
pub mod survey;

mod error;

pub use error::{Result, WorkflowError};
