//! What can go wrong while computing. Every message names the file or key, and ends in what to do; the
//! cause is printed once, by the edge that walks the chain.

use std::path::{Path, PathBuf};

use crate::record::{RecordError, exit};

/// Result of everything in this wing.
pub type Result<T> = std::result::Result<T, ComputeError>;

/// Why a kill criterion said stop: the evidence that the cell is sealed with.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Stop {
    /// Its name, for programs.
    pub criterion: &'static str,
    /// Steps done.
    pub step: u64,
    /// In words, with what to do.
    pub why: String,
    /// The numbers that it was judged by.
    pub values: serde_json::Value,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// An error of a computing room.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// Reading or writing what lies on disk.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// libtorch refused an operation: shapes, types or memory.
    #[error("libtorch refused an operation")]
    Torch(#[from] tch::TchError),
    /// A matrix product cannot be computed.
    #[error(transparent)]
    Gemm(#[from] super::kernels::gemm::GemmError),
    /// A parameter, or a combination of them, that cannot work.
    #[error("{0}")]
    Config(String),
    /// An input is there but cannot be used.
    #[error("`{}` {reason}", path.display())]
    Input {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it and what to do, as the rest of the sentence.
        reason: String,
    },
    /// An input is not there, or holds nothing.
    #[error("`{}` {reason}", path.display())]
    Missing {
        /// The file or directory.
        path: PathBuf,
        /// What is missing and what to do, as the rest of the sentence.
        reason: String,
    },
    /// Another rank is gone.
    #[error("{0}")]
    CollectiveTimeout(String),
    /// A newer attempt owns the cell.
    #[error("a newer attempt owns this cell; this one writes nothing more")]
    Superseded,
    /// A kill criterion said stop, on all ranks.
    #[error("{0}")]
    Stopped(Box<Stop>),
    /// A result that must not be used: a number that is not finite, a check that failed.
    #[error("{0}")]
    Failed(String),
}

impl ComputeError {
    /// An [`ComputeError::Input`] about `path`.
    pub fn input(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Input { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// A [`ComputeError::Missing`] about `path`.
    pub fn missing(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Missing { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// The exit code of a stage that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Record(e) if e.is_disk_full() => exit::CANNOT_WRITE,
            Self::Record(e) if e.is_not_found() => exit::MISSING_INPUT,
            Self::Record(_) | Self::Torch(_) | Self::Gemm(_) => 1,
            Self::Config(_) | Self::Input { .. } => exit::USAGE,
            Self::Missing { .. } => exit::MISSING_INPUT,
            Self::CollectiveTimeout(_) => exit::COLLECTIVE_TIMEOUT,
            Self::Superseded => exit::SUPERSEDED,
            Self::Stopped(_) => exit::STOPPED,
            Self::Failed(_) => exit::BAD_OUTPUT,
        }
    }
}
