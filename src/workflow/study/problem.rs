//! What is wrong with a study or cluster file, and where: one list, all at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of a file.
pub(super) type Span = Range<usize>;

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
    text.chars().flat_map(|c| if is_control(c) { c.escape_unicode().collect() } else { vec![c] }).collect()
}

/// True for characters that steer a terminal, a line reader or the direction of text.
pub(super) fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Why a study or cluster file was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// The file cannot be read.
    #[error("cannot read `{}`: check the path", path.display())]
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

/// A problem by its place in the text, before lines are counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    at: usize,
    message: String,
    help: String,
}

/// Gathers problems of one reading of a file.
#[derive(Debug, Default)]
pub(super) struct Sink {
    pub(super) found: Vec<Found>,
}

impl Sink {
    /// Notes a problem at the start of `span`.
    pub(super) fn push(&mut self, span: &Span, message: impl Into<String>, help: impl Into<String>) {
        self.found.push(Found { at: span.start, message: message.into(), help: help.into() });
    }

    /// Where problems were noted.
    pub(super) fn places(&self) -> BTreeSet<usize> {
        self.found.iter().map(|f| f.at).collect()
    }

    /// Forgets problems at places where something is known to be wrong already.
    pub(super) fn forget(&mut self, places: &BTreeSet<usize>) {
        self.found.retain(|f| !places.contains(&f.at));
    }

    /// Notes an unknown word: the nearest known one, or all of them.
    pub(super) fn unknown<'k>(
        &mut self,
        span: &Span,
        message: impl Into<String>,
        word: &str,
        known: impl IntoIterator<Item = &'k str>,
    ) {
        let known: Vec<&str> = known.into_iter().collect();
        self.push(span, message, suggestion(word, &known));
    }
}

/// `did you mean ...?`, or what there is.
pub(super) fn suggestion(word: &str, known: &[&str]) -> String {
    let mut seen = BTreeSet::new();
    let known: Vec<&str> = known.iter().copied().filter(|k| seen.insert(*k)).collect();
    let near = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(word, k), *k))
        .filter(|(distance, k)| *distance <= 1 + k.chars().count().min(word.chars().count()) / 3)
        .min();
    match near {
        Some((_, k)) => format!("did you mean `{k}`?"),
        None if known.is_empty() => String::from("there is none to name"),
        None => format!("use one of {}", known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// Puts the findings of several readings together, once each. A finding that only some readings have says
/// which: `readings` are named by `labels`.
pub(super) fn collect(file: &Path, text: &str, readings: Vec<(Option<String>, Sink)>) -> Vec<Problem> {
    let all = readings.len();
    let mut seen: BTreeMap<Found, Vec<Option<String>>> = BTreeMap::new();
    for (label, sink) in readings {
        for found in sink.found {
            let labels = seen.entry(found).or_default();
            if labels.last() != Some(&label) {
                labels.push(label.clone());
            }
        }
    }
    seen.into_iter()
        .map(|(found, labels)| {
            let names: Vec<String> = labels.iter().flatten().map(|l| l.to_string()).collect();
            let says_so = |name: &String| found.message.contains(&format!("profile {name}"));
            let message = if labels.len() < all && !names.is_empty() && !names.iter().all(says_so) {
                format!("{} (profile {})", found.message, names.join(", "))
            } else {
                found.message
            };
            let (line, column) = position(text, found.at);
            Problem { file: file.to_path_buf(), line, column, message, help: found.help }
        })
        .collect()
}

/// Line and column of a byte, both from 1, the column in characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.bytes().filter(|b| *b == b'\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_offered() {
        let known = ["lr", "schedule", "warmup_ratio", "max_steps"];
        assert_eq!(suggestion("lrr", &known), "did you mean `lr`?");
        assert_eq!(suggestion("warmup_ration", &known), "did you mean `warmup_ratio`?");
        assert_eq!(suggestion("maxsteps", &known), "did you mean `max_steps`?");
        assert_eq!(suggestion("zzzzz", &["lr", "clip"]), "use one of `lr`, `clip`");
    }

    #[test]
    fn positions_count_characters_from_one() {
        assert_eq!(position("ab\ncdé = 1", 3), (2, 1));
        assert_eq!(position("ab\ncdé = 1", 8), (2, 5));
        assert_eq!(position("", 7), (1, 1));
    }

    #[test]
    fn a_message_cannot_steer_a_terminal() {
        let problem = Problem {
            file: "a\u{1b}[2J.toml".into(),
            line: 1,
            column: 2,
            message: "unknown key `x\u{202e}y`".into(),
            help: String::new(),
        };
        assert_eq!(problem.to_string(), "a\\u{1b}[2J.toml:1:2: unknown key `x\\u{202e}y`");
    }
}
