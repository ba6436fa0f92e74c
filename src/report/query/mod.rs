//! Questions to results, in the jq language.
//!
//! [`filter`] compiles and runs, [`limit`] bounds what a filter may take, [`plain`] answers mere paths, [`source`] turns
//! runs into values, [`print`] and [`rows`] turn values into text; [`query`] is the whole of `seedbed query`. The manual is
//! `docs/query.md`; its examples are tests.

mod filter;
mod functions;
pub mod limit;
mod plain;
pub mod print;
mod quick;
mod rows;
pub mod source;

use std::io::Write;
use std::path::PathBuf;

pub use filter::{FilterError, InputMode, Scope};
pub use limit::{Job, Limits, Outputs, check, evaluate};
pub use plain::Tree;
pub use print::Style;
pub use rows::RowFormat;
pub use source::{Load, Reading, Seals};

use crate::record::apart::{self, Stderr};
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
    /// The filter did not end, or ate all memory.
    #[error(
        "the filter `{filter}` was stopped: it needs more than {seconds} s or {mib} MiB: make it simpler, or allow more with --time-s and --mem-mib"
    )]
    Stopped {
        /// The filter, cut.
        filter: String,
        /// The limit of time.
        seconds: f64,
        /// The limit of memory.
        mib: u64,
    },
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
            Self::Filter(FilterError::Run(_)) | Self::Engine(_) | Self::Stopped { .. } => exit::INCOMPLETE,
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
    /// How they are read.
    pub reading: Reading,
    /// What the filter runs on.
    pub input: InputMode,
    /// How answers are printed.
    pub style: Style,
    /// What the filter may take.
    pub limits: Limits,
}

impl Query {
    /// A question with what is usual: sealed or not, small arrays, each input in turn.
    pub fn new(filter: &str, paths: &[PathBuf], style: Style) -> Self {
        Self {
            filter: filter.to_owned(),
            paths: paths.to_vec(),
            reading: Reading { seals: Seals::Warn, load: Load::Small, always_array: false },
            input: InputMode::Each,
            style,
            limits: Limits::OF_A_PERSON,
        }
    }
}

/// What the child that runs the filter sends: a kind and a length before the bytes.
const OUTPUT: u8 = b'o';
const FAILED: u8 = b'e';
const DONE: u8 = b'd';

/// Answers a query: prints every output to `out` as it comes, returns warnings for stderr. The filter is
/// compiled before any file is opened, and runs in a process of its own.
///
/// # Errors
/// See [`QueryError`]. Outputs printed before an error stay printed, as with jq.
pub fn query(query: &Query, out: &mut (dyn Write + Send)) -> Result<Vec<String>, QueryError> {
    if let Some(text) = quick::answer(query) {
        return match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(QueryError::Write(e)),
            _ => Ok(Vec::new()),
        };
    }
    limit::deep(|| -> Result<Vec<String>, QueryError> {
        let filter = filter::Filter::compile(&query.filter, &[], Scope::Open)?;
        let gathered = source::gather(&query.paths, &query.reading)?;
        // Of what a filter prints itself nothing is lost; else a child that fails is silent, and told of here.
        let prints = ["debug", "stderr", "halt_error"].iter().any(|word| query.filter.contains(word));
        let stderr = if prints { Stderr::Shared } else { Stderr::Silent };
        let mut answer = Answer { out, unread: Vec::new(), end: None };
        let inputs = gathered.inputs;
        let child = |pipe: &mut apart::Answer| run(query, &filter, inputs, pipe);
        apart::stream(query.limits, stderr, child, |bytes| answer.take(bytes))
            .map_err(|e| QueryError::Engine(limit::no_process(&e)))?;
        match answer.end {
            Some(End::Done) => Ok(gathered.warnings),
            Some(End::Failed(what)) => Err(FilterError::Run(what).into()),
            // A reader such as `head` that has enough ends the query, and that is no failure.
            Some(End::Unwritten(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(gathered.warnings),
            Some(End::Unwritten(e)) => Err(QueryError::Write(e)),
            None => Err(QueryError::Stopped {
                filter: query.filter.chars().take(80).collect::<String>().escape_debug().to_string(),
                seconds: query.limits.time.as_secs_f64(),
                mib: query.limits.mem_bytes >> 20,
            }),
        }
    })
    .map_err(QueryError::Engine)?
}

/// The child's part.
fn run(query: &Query, filter: &filter::Filter, inputs: Vec<jaq_json::Val>, pipe: &mut apart::Answer) {
    let mut send = |kind: u8, text: &str| {
        let mut frame = vec![kind];
        frame.extend_from_slice(&(text.len() as u64).to_le_bytes());
        frame.extend_from_slice(text.as_bytes());
        pipe.send(&frame)
    };
    let mut printer = print::Printer::new(query.style);
    let mut refused = None;
    let ran = filter.run_all(inputs, query.input, Vec::new(), |value| match printer.push(&value) {
        Ok(text) => text.is_empty() || send(OUTPUT, &text),
        Err(what) => {
            refused = Some(what);
            false
        }
    });
    let failed = match (ran, refused) {
        (Err(FilterError::Run(what)), _) | (_, Some(what)) => Some(what),
        (Err(other), _) => Some(other.to_string()),
        (Ok(()), None) => None,
    };
    match failed {
        Some(what) => send(FAILED, &what),
        None => send(OUTPUT, &printer.end()) && send(DONE, ""),
    };
}

/// How an answer ended.
enum End {
    Done,
    Failed(String),
    Unwritten(std::io::Error),
}

/// The parent's part: puts together what the child sends.
struct Answer<'a> {
    out: &'a mut (dyn Write + Send),
    unread: Vec<u8>,
    end: Option<End>,
}

impl Answer<'_> {
    /// Takes more bytes; false when there is nothing more to take.
    fn take(&mut self, bytes: &[u8]) -> bool {
        self.unread.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((kind, text)) = frame(&self.unread[at..]) {
            at += 9 + text.len();
            match kind {
                OUTPUT => {
                    if let Err(e) = self.out.write_all(text) {
                        self.end = Some(End::Unwritten(e));
                    }
                }
                FAILED => self.end = Some(End::Failed(String::from_utf8_lossy(text).into_owned())),
                _ => self.end = Some(End::Done),
            }
            if self.end.is_some() {
                break;
            }
        }
        self.unread.drain(..at);
        if let Err(e) = self.out.flush()
            && self.end.is_none()
        {
            self.end = Some(End::Unwritten(e));
        }
        self.end.is_none()
    }
}

/// The first frame, if all of it is there.
fn frame(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let length = u64::from_le_bytes(bytes.get(1..9)?.try_into().ok()?);
    let end = 9 + usize::try_from(length).ok()?;
    Some((bytes[0], bytes.get(9..end)?))
}
