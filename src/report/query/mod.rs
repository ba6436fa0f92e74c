//! Questions to results, in the jq language.
//!
//! [`filter`] compiles and runs, [`limit`] bounds what a filter of a study may take, [`plain`] answers mere paths, [`source`] turns runs
//! into values, [`print`] turns values into text; [`query`] is the whole of `seedbed query`. The manual is
//! `docs/query.md`; its examples are tests.

mod filter;
mod functions;
pub mod limit;
mod plain;
pub mod print;
pub mod source;

use std::io::Write;
use std::path::PathBuf;

pub use filter::{FilterError, Scope};
pub use limit::{Job, Limits, Outputs, check, evaluate};
pub use plain::Tree;
pub use print::Style;
pub use source::Seals;

use crate::record::{RecordError, exit};

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The filter does not compile, or failed on its input.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A path that gives nothing.
    #[error("`{}` {what}: name a run.h5, a run directory, a directory of results or a JSON file", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A run without a valid seal, where one is required.
    #[error("`{}` {what}: run `run_all` to finish it, or leave out `--sealed`", path.display())]
    Unsealed {
        /// The `run.h5`.
        path: PathBuf,
        /// What is wrong with its seal.
        what: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The answer cannot be written.
    #[error("cannot write the answer")]
    Write(#[source] std::io::Error),
    /// The process cannot start a thread.
    #[error("{0}")]
    Engine(String),
}

impl QueryError {
    /// The documented exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Filter(FilterError::Compile { .. }) => exit::USAGE,
            Self::Filter(FilterError::Run(_)) | Self::Engine(_) => exit::INCOMPLETE,
            Self::Path { .. } => exit::MISSING_INPUT,
            Self::Unsealed { .. } => exit::STALE_INPUT,
            Self::Record(e) if e.is_not_found() => exit::MISSING_INPUT,
            Self::Record(_) => exit::STALE_INPUT,
            Self::Write(_) => exit::CANNOT_WRITE,
        }
    }
}

/// What `seedbed query FILTER PATH...` is asked.
#[derive(Debug, Clone)]
pub struct Query {
    /// The jq filter.
    pub filter: String,
    /// Runs, directories, JSON files.
    pub paths: Vec<PathBuf>,
    /// How answers are printed.
    pub style: Style,
    /// What to do with runs that are not sealed.
    pub seals: Seals,
}

/// Answers a query: prints every output to `out` as it comes, returns warnings for stderr. The filter is
/// compiled before any file is opened.
///
/// # Errors
/// See [`QueryError`]. Outputs printed before an error stay printed, as with jq.
pub fn query(query: &Query, out: &mut (dyn Write + Send)) -> Result<Vec<String>, QueryError> {
    limit::deep(|| -> Result<Vec<String>, QueryError> {
        let filter = filter::Filter::compile(&query.filter, &[], Scope::Open)?;
        let gathered = source::gather(&query.paths, query.seals)?;
        for input in &gathered.inputs {
            let mut written = Ok(());
            filter.run_each(filter::to_val(input), Vec::new(), |value| {
                written = writeln!(out, "{}", print::print(&value, query.style));
                written.is_ok()
            })?;
            match written {
                // A reader such as `head` that has enough ends the query, and that is no failure.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => break,
                other => other.map_err(QueryError::Write)?,
            }
        }
        Ok(gathered.warnings)
    })
    .map_err(QueryError::Engine)?
}
