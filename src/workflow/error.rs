//! What can go wrong between a study file and a sealed cell. Each variant has its exit code, and each
//! message ends in what to type next.

use std::path::PathBuf;

use super::plan::PlanError;
use super::study::StudyError;
use crate::record::{RecordError, exit};

/// Result of the workflow wing.
pub type Result<T> = std::result::Result<T, WorkflowError>;

/// An error of planning, submitting or running.
#[derive(Debug, thiserror::Error)]
pub enum WorkflowError {
    /// The study or cluster file has problems; each is printed on a line of its own.
    #[error(transparent)]
    Study(#[from] StudyError),
    /// The study cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What lies on disk.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Wrong usage.
    #[error("{0}")]
    Usage(String),
    /// Another run_all holds the lock.
    #[error(
        "another run_all holds this study: {owner} (`{}`); wait for it, or if it is gone for good, run again with --break-lock",
        path.display()
    )]
    Locked {
        /// Who holds it.
        owner: String,
        /// The lock file.
        path: PathBuf,
    },
    /// Jobs are queued under other parameters.
    #[error("{0}")]
    QueuedStale(String),
    /// Slurm refused, or does not answer.
    #[error("{0}")]
    Slurm(String),
    /// A stage binary is missing or does not fit.
    #[error("{0}")]
    Binary(String),
    /// An attempt ended with this exit code.
    #[error("{message}")]
    Attempt {
        /// The code.
        code: u8,
        /// Why.
        message: String,
    },
    /// A program could not be started.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
}

impl WorkflowError {
    /// The documented exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Study(_) | Self::Plan(_) | Self::Usage(_) | Self::Binary(_) => exit::USAGE,
            Self::Attempt { code, .. } => *code,
            Self::Record(e) if e.is_disk_full() => exit::CANNOT_WRITE,
            Self::Record(e) if e.is_not_found() => exit::MISSING_INPUT,
            Self::Record(RecordError::Damaged { .. } | RecordError::Newer { .. }) => exit::STALE_INPUT,
            _ => 1,
        }
    }

    /// An [`WorkflowError::Attempt`].
    pub fn attempt(code: u8, message: impl Into<String>) -> Self {
        Self::Attempt { code, message: message.into() }
    }
}
