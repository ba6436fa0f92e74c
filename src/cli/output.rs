//! Printing: data to stdout, the rest to stderr, tables that fit a terminal, JSON where it is asked for.

use std::io::{IsTerminal, Write};
use std::os::fd::AsRawFd;

use serde::Serialize;

use super::{CliError, Result};

/// How facts are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Writes bytes to stdout.
pub(crate) fn bytes(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// Writes text to stdout.
pub(crate) fn text(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes a value as indented JSON to stdout.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| CliError::Usage(e.to_string()))?;
    bytes(format!("{text}\n").as_bytes())
}

/// A line for a person.
pub(crate) fn note(line: &str) {
    // Nobody is there to tell if stderr is gone.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Asks yes or no; without a terminal nobody answers.
pub(crate) fn confirm(question: &str) -> Option<bool> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return None;
    }
    let _ = write!(std::io::stderr(), "{question} [y/N] ").and_then(|()| std::io::stderr().flush());
    let mut answer = String::new();
    Some(std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Columns of text, as wide as their widest cell; the last one is cut to what a terminal shows.
pub(crate) fn columns(rows: &[Vec<String>], width: usize) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count)
        .map(|i| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            if i + 1 == row.len() {
                line.push_str(cell);
            } else {
                line.push_str(&format!("{cell:<width$}  ", width = widths[i]));
            }
        }
        let line = line.trim_end();
        if line.chars().count() > width {
            text.extend(line.chars().take(width.saturating_sub(1)));
            text.push('…');
        } else {
            text.push_str(line);
        }
        text.push('\n');
    }
    text
}

/// Width of the terminal, or enough for everything where there is none.
pub(crate) fn width() -> usize {
    width_of(&std::io::stdout())
}

/// The same of any output.
pub(crate) fn width_of(output: &(impl IsTerminal + AsRawFd)) -> usize {
    if !output.is_terminal() {
        return usize::MAX;
    }
    // SAFETY: an all-zero winsize is valid, and the pointer is valid for the call.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: see above.
    let rc = unsafe { libc::ioctl(output.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if rc == 0 && size.ws_col > 20 { usize::from(size.ws_col) } else { 80 }
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// Seconds for people.
pub(crate) fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..=99 => format!("{seconds:.1} s"),
        100..=5999 => format!("{}:{:02} min", s / 60, s % 60),
        _ => format!("{}:{:02} h", s / 3600, s % 3600 / 60),
    }
}

/// `1 cell`, `2 cells`.
pub(crate) fn plural(n: usize, word: &str) -> String {
    if n == 1 { format!("{n} {word}") } else { format!("{n} {word}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fit_the_terminal() {
        let rows = [vec!["a".to_owned(), "long word".to_owned()], vec!["bcd".to_owned(), "x".to_owned()]];
        assert_eq!(columns(&rows, 80), "a    long word\nbcd  x\n");
        assert_eq!(columns(&rows, 9), "a    lon…\nbcd  x\n");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1_500_000_000), "1.5 GB");
        assert_eq!(duration(3.25), "3.2 s");
        assert_eq!(duration(125.0), "2:05 min");
        assert_eq!(duration(7260.0), "2:01 h");
        assert_eq!(plural(1, "cell"), "1 cell");
    }
}
