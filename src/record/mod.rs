//! Ground floor: what every wing shares and nothing else.
//!
//! Cells and their keys, what lies in a run directory (attempts, progress, seal, `run.h5`), exit codes,
//! digests and the one way to write a file. Nothing here knows Slurm, tensors or tables.

pub mod apart;
pub mod attempt;
pub mod cell;
pub mod decision;
pub mod digest;
pub mod exit;
pub mod files;
pub mod fingerprint;
pub mod flag;
pub mod generation;
pub mod key;
pub mod progress;
pub mod run;
pub mod run_h5;
pub mod seal;
pub mod tree;
pub mod verdict;

mod error;

pub use attempt::{AttemptEnd, AttemptStart, JobRef};
pub use cell::{Cell, ExternalInput, Need, Resources};
pub use decision::Decision;
pub use digest::Digest;
pub use error::RecordError;
pub use fingerprint::{Change, Fingerprint, FingerprintSource};
pub use key::{CellKey, Name};
pub use run::{Column, Items, RunRecord, SeriesPoint};
pub use seal::{Origin, Outcome, Seal};
pub use verdict::{Adjust, Next, Verdict, Why};

/// Result of everything on the ground floor.
pub type Result<T> = std::result::Result<T, RecordError>;
