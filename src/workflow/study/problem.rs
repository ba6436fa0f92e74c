//! What is wrong with a study or cluster file, and where.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong in a file, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do; empty if the message says it.
    pub help: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}:{}:{}: {}", self.file.display(), self.line, self.column, self.message);
        f.write_str(&printable(&text))?;
        if self.help.is_empty() { Ok(()) } else { write!(f, ": {}", printable(&self.help)) }
    }
}

/// The text with control characters escaped: a message may quote hostile bytes, a terminal must not obey them.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
}

/// Why a study or cluster file was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file was read and is not sound. Sorted by position, never empty.
    #[error("{}", list(.0))]
    Problems(Vec<Problem>),
}

/// One problem a line.
fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}
