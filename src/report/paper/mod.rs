//! A paper whose numbers are filled in, and checked against the results.
//!
//! [`tex`] and [`document`] read LaTeX with the place of everything; [`tabular`] finds rows and cells; [`values`] knows what
//! each key prints now; [`plan`](fn@plan) compares the paper, its fill file ([`spec`]) and what was filled last ([`record`])
//! and says which bytes change; [`check`](fn@check) says what is wrong with a paper as it is. Pure: files come in as texts and
//! go out as edits.

mod check;
pub mod document;
mod fill;
mod generated;
mod inputs;
mod numerals;
mod passage;
mod plain;
pub mod record;
pub mod red;
pub mod spec;
mod tabular;
pub mod template;
#[cfg(test)]
mod tests;
pub mod tex;
pub mod values;

use serde::Serialize;

pub use check::{Checked, Options, check};
pub use document::Document;
pub use fill::{Edit, Force, Paper, Plan, apply, plan};
pub use generated::{Generated, VALUES_FILE};
pub use record::{PAPER_VERSION, PaperRecord};
pub use spec::Spec;
pub use values::{KnownTable, NoValue, Value, Values};

/// Something about a place of a paper.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The file, relative to the paper's folder.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What, and what to do.
    pub text: String,
    /// The key that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What the paper prints there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub printed: Option<String>,
    /// What the results say now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<String>,
    /// Runs that changed since it was filled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
}

impl Finding {
    /// About a place.
    pub fn at(place: (String, usize), text: impl Into<String>) -> Self {
        let (file, line) = place;
        Self { file, line, text: text.into(), key: None, printed: None, now: None, changed: Vec::new() }
    }

    /// A number that the paper prints otherwise than the results.
    fn number(place: (String, usize), key: &str, printed: &str, now: &str, changed: Vec<String>) -> Self {
        let runs = if changed.is_empty() { String::new() } else { format!(" (changed: {})", changed.join(", ")) };
        let text = format!("`{key}` prints {printed}, the results now give {now}{runs}");
        Self {
            key: Some(key.to_owned()),
            printed: Some(printed.to_owned()),
            now: Some(now.to_owned()),
            changed,
            ..Self::at(place, text)
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}
