//! Numerals in the text of a section that no key stands for.

use std::ops::Range;

use super::Finding;
use super::document::{Document, Span};
use super::tex::Kind;

/// Commands whose first argument holds names and lengths, not results.
const NAMES: [&str; 34] = [
    "ref",
    "eqref",
    "autoref",
    "cref",
    "Cref",
    "pageref",
    "label",
    "cite",
    "citep",
    "citet",
    "citeauthor",
    "citeyear",
    "includegraphics",
    "input",
    "include",
    "begin",
    "end",
    "vspace",
    "hspace",
    "color",
    "textcolor",
    "rowcolor",
    "cellcolor",
    "seedbed",
    "usepackage",
    "bibliography",
    "bibliographystyle",
    "setlength",
    "cmidrule",
    "cline",
    "multicolumn",
    "multirow",
    "setcounter",
    "addtocounter",
];

/// Commands with two such arguments.
const TWO: [&str; 5] = ["setlength", "multicolumn", "multirow", "setcounter", "addtocounter"];

/// Numerals among `tokens` that lie outside `tracked`.
pub(super) fn untracked(
    document: &Document,
    tokens: Range<usize>,
    tracked: &[Span],
    is_generated: &dyn Fn(usize) -> bool,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut i = tokens.start;
    while i < tokens.end {
        if let Some(name) = document.command(i) {
            let at = i + 1;
            if NAMES.contains(&name) {
                i = arguments(document, at, name).min(tokens.end).max(at);
                continue;
            }
            // `\\[2pt]` and options.
            i = if name == "\\" { document.option(at).unwrap_or(at) } else { at };
            continue;
        }
        if document.kind(i) == Some(Kind::Text) && !is_generated(document.toks[i].file) {
            let tok = document.toks[i];
            for numeral in numerals(document.text(i)) {
                let start = tok.token.start + numeral.start;
                if tracked.iter().any(|s| s.file == tok.file && s.range.start <= start && start < s.range.end) {
                    continue;
                }
                let text = format!("untracked: {} is no key's value", &document.text(i)[numeral]);
                found.push(Finding::at(document.line_of(&Span { file: tok.file, range: start..start }), text));
            }
        }
        i += 1;
    }
    found
}

/// Behind the arguments of a command at `at`.
fn arguments(document: &Document, mut at: usize, name: &str) -> usize {
    at = document.option(at).unwrap_or(at);
    let next = document.solid(at);
    // `\cmidrule(lr){2-3}`.
    if document.kind(next) == Some(Kind::Text) && document.text(next).starts_with('(') {
        at = next + 1;
    }
    let mut count = if TWO.contains(&name) { 2 } else { 1 };
    // What a tabular's columns are.
    if name == "begin" {
        let env = document.group(at).map(|(inner, _)| document.source(inner)).unwrap_or_default();
        count += usize::from(env.starts_with("tabular") || env == "longtable" || env == "minipage");
        count += usize::from(env == "tabular*" || env == "tabularx");
    }
    for _ in 0..count {
        match document.group(at) {
            Some((_, behind)) => at = behind,
            None => break,
        }
        at = document.option(at).unwrap_or(at);
    }
    at
}

/// Numerals of a word, with a unit or without: not those of a name such as `T5` or `Pythia-1.4B`, and no ordinals.
fn numerals(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        if !bytes[i].is_ascii_digit() {
            i += 1;
            continue;
        }
        let start = i;
        while i < bytes.len()
            && (bytes[i].is_ascii_digit()
                || (matches!(bytes[i], b'.' | b',') && bytes.get(i + 1).is_some_and(u8::is_ascii_digit)))
        {
            i += 1;
        }
        if !is_of_a_name(&text[..start]) && !is_ordinal(&text[i..]) {
            found.push(start..i);
        }
    }
    found
}

/// Whether what stands before a numeral makes it part of a name: its word begins with a letter, as in `Llama-3.1-8B`.
fn is_of_a_name(before: &str) -> bool {
    let mut behind = ' ';
    let part = |c: &char| {
        let joins = c.is_alphanumeric() || matches!(c, '-' | '_') || (*c == '.' && behind.is_ascii_digit());
        behind = *c;
        joins
    };
    before.chars().rev().take_while(part).last().is_some_and(char::is_alphabetic)
}

/// `2nd` counts no result.
fn is_ordinal(behind: &str) -> bool {
    let word: String = behind.chars().take_while(|c| c.is_alphanumeric()).collect();
    matches!(word.as_str(), "st" | "nd" | "rd" | "th")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerals_are_results_and_not_names() {
        let of = |text: &str| -> Vec<String> { numerals(text).into_iter().map(|r| text[r].to_owned()).collect() };
        assert_eq!(of("5.6x"), ["5.6"]);
        assert_eq!(of("1,024.5,"), ["1,024.5"]);
        assert_eq!(of("(-3)"), ["3"]);
        for name in ["T5", "Pythia-1.4B", "Llama-3.1-8B", "T5-3B", "2nd", "x_1", "größe2"] {
            assert!(of(name).is_empty(), "{name}: {:?}", of(name));
        }
        for (text, expected) in [
            ("≈5.6", vec!["5.6"]),
            ("3.2–4.1", vec!["3.2", "4.1"]),
            ("−7.7", vec!["7.7"]),
            ("6.98±0.1", vec!["6.98", "0.1"]),
            ("5.6×", vec!["5.6"]),
            ("5.6pp", vec!["5.6"]),
            ("5.6pp-7.7pp", vec!["5.6", "7.7"]),
            ("12ms", vec!["12"]),
            ("24GB", vec!["24"]),
            ("3µs", vec!["3"]),
            ("+3.1", vec!["3.1"]),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
        let document = Document::piece(
            "In \\ref{tab:1} and \\seedbed{x/1} it is $5.6$ \\\\[2pt] % 7\n \\begin{tabular}{p{3cm}} 8",
        );
        let found = untracked(&document, 0..document.toks.len(), &[], &|_| false);
        let texts: Vec<&str> = found.iter().map(|f| f.text.as_str()).collect();
        assert_eq!(texts, ["untracked: 5.6 is no key's value", "untracked: 8 is no key's value"]);
    }
}
