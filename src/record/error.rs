//! What can go wrong on the ground floor. Every variant names the file or key it is about; the text
//! never repeats its cause, which is printed once, by the edge that walks the chain.

use std::path::{Path, PathBuf};

/// An error of reading or writing what lies on disk.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The operating system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was tried: "read", "write", "create".
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A file is there, but its content is not what its format promises.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to type next.
        reason: String,
    },
    /// A file was written by a newer Seedbed.
    #[error(
        "`{}` has format version {found}, this program reads up to {known}: use the newer Seedbed that wrote it",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Newest version this program reads.
        known: u32,
    },
    /// A value that cannot be stored or does not fit its type.
    #[error("{0}")]
    Value(String),
    /// libhdf5 refused.
    #[error("HDF5 cannot {action} `{}`", path.display())]
    Hdf5 {
        /// What was tried.
        action: &'static str,
        /// The HDF5 file.
        path: PathBuf,
        /// What the library says.
        source: hdf5::Error,
    },
}

impl RecordError {
    /// An [`RecordError::Io`] for `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// A [`RecordError::Damaged`] about `path`.
    pub fn damaged(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// A [`RecordError::Hdf5`] for `map_err`.
    pub fn hdf5(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(hdf5::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Hdf5 { action, path, source }
    }

    /// True if the cause is a file that is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    /// True if the cause is a full disk or an exhausted quota.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
    }
}

/// Refuses a format version newer than `known`.
///
/// # Errors
/// [`RecordError::Newer`] if `found > known`.
pub(crate) fn check_version(path: &Path, found: u32, known: u32) -> Result<(), RecordError> {
    if found > known {
        return Err(RecordError::Newer { path: path.to_path_buf(), found, known });
    }
    Ok(())
}
