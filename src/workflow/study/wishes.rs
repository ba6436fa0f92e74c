//! What jobs ask of a site beside resources: the keys that cluster files and stages share.

use super::problem::Sink;
use super::section::Section;
use super::tree::Tree;
use crate::workflow::slurm::wishes::Wishes;

/// The keys.
pub(super) const KEYS: [&str; 7] = ["partition", "constraint", "reservation", "begin", "nice", "mail", "notify"];

/// Furthest that a job may step back, by Slurm.
const NICEST: i64 = 2_147_483_645;

/// Reads them.
pub(super) fn read(own: &Section<'_>, sink: &mut Sink) -> Wishes {
    let name = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    Wishes {
        partition: partitions(own, sink),
        constraint: plain(
            own,
            "constraint",
            |b| b.is_ascii_graphic() && !b"'\"\\`$;#".contains(&b),
            "as in `a100&nvlink`",
            sink,
        ),
        reservation: plain(
            own,
            "reservation",
            |b| name(b) || b == b',',
            "`scontrol show reservation` lists them",
            sink,
        ),
        begin: plain(
            own,
            "begin",
            |b| b.is_ascii_alphanumeric() || b":+/.-".contains(&b),
            "as in `now+1hour`, `20:00` or `2026-12-24T20:00`",
            sink,
        ),
        nice: own.integer("nice", 0..=NICEST, sink),
        mail: plain(
            own,
            "mail",
            |b| b.is_ascii_graphic() && !b"'\"\\`$;#,<>|&()".contains(&b),
            "write one address, as in `ada@uni.example`",
            sink,
        ),
        notify: program(own, "notify", sink),
    }
}

/// A text of some characters that does not look like an option.
fn plain(own: &Section<'_>, key: &str, fits: impl Fn(u8) -> bool, help: &str, sink: &mut Sink) -> Option<String> {
    let (text, span) = own.text(key, sink)?;
    if text.is_empty() || text.starts_with('-') || !text.bytes().all(fits) {
        sink.push(&span, format!("`{key}` in {} cannot be `{text}`", own.what), help);
        return None;
    }
    Some(text.to_owned())
}

/// One partition, or several of which Slurm takes the one that starts the job first.
fn partitions(own: &Section<'_>, sink: &mut Sink) -> Option<String> {
    let key = "partition";
    let words = match own.entry(key).map(|e| &e.node.value) {
        Some(Tree::Array(_)) => own.texts(key, sink),
        _ => {
            let (text, span) = own.text(key, sink)?;
            text.split(',').map(|word| (word, span.clone())).collect()
        }
    };
    let mut names: Vec<&str> = Vec::new();
    for (word, span) in words {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if word.is_empty() || word.starts_with('-') || !word.bytes().all(plain) {
            sink.push(&span, format!("`{word}` is no name of a partition"), "`sinfo -s` lists them");
        } else if names.contains(&word) {
            sink.push(&span, format!("`partition` in {} names `{word}` twice", own.what), "remove one");
        } else {
            names.push(word);
        }
    }
    (!names.is_empty()).then(|| names.join(","))
}

/// A program and its arguments; nothing if it is not said.
pub(super) fn program(own: &Section<'_>, key: &str, sink: &mut Sink) -> Vec<String> {
    let words: Vec<String> = own.texts(key, sink).into_iter().map(|(text, _)| text.to_owned()).collect();
    let array = matches!(own.entry(key).map(|e| &e.node.value), Some(Tree::Array(_)));
    if array && words.first().is_none_or(String::is_empty) {
        let help = "write the program and each argument as its own text, or leave it out";
        sink.push(&own.place(key), format!("`{key}` in {} names no program", own.what), help);
    }
    words
}
