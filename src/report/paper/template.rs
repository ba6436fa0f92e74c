//! LaTeX with keys in it, `gap of [[gap]]\,\%`, and finding again what was printed from it.
//!
//! Text is compared with spaces and line ends alike, for people wrap their lines anew, and without comments.

use std::ops::Range;

use super::document::Document;
use super::tex::{self, Kind};

/// Longest text that stands in place of a key, bytes, where nothing longer was printed.
const LONGEST: usize = 80;

/// A piece of LaTeX with keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Texts around the keys: one more than there are keys.
    pub texts: Vec<String>,
    /// The keys.
    pub keys: Vec<String>,
}

impl Template {
    /// Reads `text`, in which `[[KEY]]` stands for a value.
    ///
    /// # Errors
    /// What is wrong: a key that does not end, or LaTeX that would reach beyond its place.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut texts, mut keys) = (vec![String::new()], Vec::new());
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("[[") {
            let Some((key, after)) = behind.split_once("]]") else {
                return Err(format!(
                    "`[[{}` does not end: write `[[KEY]]`",
                    behind.chars().take(30).collect::<String>()
                ));
            };
            let key = key.trim();
            check_key(key)?;
            if let Some(last) = texts.last_mut() {
                last.push_str(before);
            }
            keys.push(key.to_owned());
            texts.push(String::new());
            rest = after;
        }
        if let Some(last) = texts.last_mut() {
            last.push_str(rest);
        }
        let template = Self { texts, keys };
        template.check()?;
        Ok(template)
    }

    /// What it says must stay within its braces and its cell.
    fn check(&self) -> Result<(), String> {
        let text = self.texts.join("0");
        let tokens = tex::tokens(&text);
        if tex::unbalanced(&tokens).is_some() {
            return Err(format!("the braces of `{text}` do not pair"));
        }
        if tokens.iter().any(|t| t.kind == Kind::Comment) {
            return Err(format!("`{text}` has a `%`: write `\\%`"));
        }
        if tokens.iter().any(|t| t.kind == Kind::Command && text[t.start..t.end] == *"\\end")
            && !text.contains("\\begin")
        {
            return Err(format!("`{text}` ends an environment that it does not begin"));
        }
        Ok(())
    }

    /// What it says must fit in one cell, too.
    ///
    /// # Errors
    /// It has a separator of cells or rows outside braces.
    pub fn check_cell(&self) -> Result<(), String> {
        let text = self.texts.join("0");
        let piece = Document::piece(&text);
        let mut i = 0;
        while i < piece.toks.len() {
            match piece.kind(i) {
                Some(Kind::Open) => i = piece.close_of(i).unwrap_or(i),
                Some(Kind::Amp) => return Err(format!("`{text}` has an `&`: write `\\&`, or one text a cell")),
                Some(Kind::Command) if matches!(piece.command(i), Some("\\" | "tabularnewline")) => {
                    return Err(format!("`{text}` ends a row: write one text a cell"));
                }
                _ => {}
            }
            i += 1;
        }
        Ok(())
    }

    /// What it says must be text alone.
    ///
    /// # Errors
    /// It has a key.
    pub fn check_keyless(&self) -> Result<(), String> {
        match self.keys.first() {
            Some(key) => Err(format!("`[[{key}]]` cannot stand here: it is text without keys")),
            None => Ok(()),
        }
    }

    /// With a text for each key.
    pub fn fill(&self, printed: &[String]) -> String {
        let mut out = self.texts[0].clone();
        for (value, text) in printed.iter().zip(&self.texts[1..]) {
            out.push_str(value);
            out.push_str(text);
        }
        out
    }

    /// As it was written.
    pub fn source(&self) -> String {
        let keys: Vec<String> = self.keys.iter().map(|k| format!("[[{k}]]")).collect();
        self.fill(&keys)
    }
}

/// A key is names with slashes between them.
pub fn check_key(key: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if key.is_empty() || key.len() > 256 || !key.chars().all(fits) || key.split('/').any(str::is_empty) {
        return Err(format!("`{key}` is no key: use names of letters, digits, `.`, `_` and `-` with `/` between them"));
    }
    Ok(())
}

/// Text with its spaces single and without comments, and where each byte of it stands in the file.
#[derive(Debug, Clone, Default)]
pub struct Squeezed {
    text: String,
    at: Vec<usize>,
    end: usize,
}

impl Squeezed {
    /// Of some tokens, as far as they lie in `file`.
    pub fn new(document: &Document, tokens: Range<usize>, file: usize) -> Self {
        let mut squeezed = Self::default();
        for tok in document.toks.get(tokens).unwrap_or_default().iter().filter(|t| t.file == file) {
            let (start, end) = (tok.token.start, tok.token.end);
            match tok.token.kind {
                Kind::Comment => continue,
                Kind::Space => squeezed.space(start),
                _ => {
                    squeezed.text.push_str(&document.sources[file].text[start..end]);
                    squeezed.at.extend(start..end);
                }
            }
            squeezed.end = end;
        }
        squeezed
    }

    /// Of a text that stands at byte `offset` of its file.
    pub fn of_text(text: &str, offset: usize) -> Self {
        let document = Document::piece(text);
        let mut squeezed = Self::new(&document, 0..document.toks.len(), 0);
        squeezed.at.iter_mut().for_each(|at| *at += offset);
        squeezed.end += offset;
        squeezed
    }

    fn space(&mut self, at: usize) {
        if !self.text.ends_with(' ') {
            self.text.push(' ');
            self.at.push(at);
        }
    }

    /// Bytes of the file that some of the text covers.
    fn bytes(&self, range: &Range<usize>) -> Range<usize> {
        let place = |i: usize| self.at.get(i).copied().unwrap_or(self.end);
        match range.is_empty() {
            true => place(range.start)..place(range.start),
            // Up to behind the last byte, not to the next one: spaces and comments between stay outside.
            false => place(range.start)..place(range.end - 1) + 1,
        }
    }
}

/// Where a template's text was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// All of it, bytes of the file.
    pub range: Range<usize>,
    /// Bytes of the file that stand for each key.
    pub slots: Vec<Range<usize>>,
    /// What stands there.
    pub found: Vec<String>,
}

fn single_spaced(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_whitespace() {
            true if out.ends_with(' ') => {}
            true => out.push(' '),
            false => out.push(c),
        }
    }
    out
}

impl Template {
    /// Every place in `text` that reads as this template with something for each key. `whole` asks that it is all there is.
    /// `known` are texts that may stand for each key: what was printed, and what is printed now.
    pub fn matches(&self, text: &Squeezed, whole: bool, known: &[Vec<String>]) -> Vec<Match> {
        let texts: Vec<String> = self.texts.iter().map(|t| single_spaced(t)).collect();
        let first = if whole { texts[0].trim_start() } else { texts[0].as_str() };
        let mut found = Vec::new();
        let mut from = 0;
        while from <= text.text.len() {
            let start = match whole {
                true => 0,
                false => match text.text.get(from..).and_then(|rest| rest.find(anchor(&texts))) {
                    Some(n) => from + n,
                    None => break,
                },
            };
            let begin = if whole || !first.is_empty() { Some(start) } else { word_before(&text.text, start) };
            let fit = begin.and_then(|begin| self.fit(text, begin, first, &texts, (whole, known)));
            let next = fit.as_ref().map(|(end, _)| *end).filter(|end| *end > from);
            found.extend(fit.map(|(_, m)| m));
            if whole || found.len() > 1000 {
                break;
            }
            from = next.unwrap_or_else(|| start + text.text[start..].chars().next().map_or(1, char::len_utf8));
        }
        found
    }

    /// The match that begins at `begin`, and where it ends.
    fn fit(
        &self,
        hay: &Squeezed,
        begin: usize,
        first: &str,
        texts: &[String],
        (whole, known): (bool, &[Vec<String>]),
    ) -> Option<(usize, Match)> {
        let text = hay.text.as_str();
        let longest = match whole && self.keys.len() == 1 {
            true => text.len(),
            false => known.iter().flatten().map(String::len).max().unwrap_or(0).max(LONGEST),
        };
        let mut at = begin;
        let mut slots = Vec::new();
        if !text.get(at..)?.starts_with(first) {
            return None;
        }
        at += first.len();
        for (n, behind) in texts[1..].iter().enumerate() {
            let is_last = n + 2 == texts.len();
            let behind = if whole && is_last { behind.trim_end() } else { behind.as_str() };
            let rest = text.get(at..)?;
            let known = known.get(n).map(Vec::as_slice).unwrap_or_default();
            let length = if behind.is_empty() && is_last {
                if whole { rest.len() } else { slot_length(rest, known)? }
            } else {
                let near = rest.char_indices().map(|(i, _)| i).take_while(|i| *i <= longest + behind.len()).last()?;
                let within = rest.get(..near + rest[near..].chars().next().map_or(0, char::len_utf8))?;
                // With nothing between two keys the first takes a word.
                if behind.is_empty() { slot_length(rest, known)? } else { end_of_slot(within, rest, behind)? }
            };
            if length > longest {
                return None;
            }
            slots.push(at..at + length);
            at += length + behind.len();
        }
        if whole && !text.get(at..)?.trim().is_empty() {
            return None;
        }
        let found = slots.iter().map(|s| text[s.clone()].to_owned()).collect();
        let slots = slots.iter().map(|s| hay.bytes(s)).collect();
        Some((at, Match { range: hay.bytes(&(begin..at)), slots, found }))
    }
}

/// Where the text behind a key begins. A point or comma between two digits belongs to the number.
fn end_of_slot(within: &str, rest: &str, behind: &str) -> Option<usize> {
    let digit = |at: usize| rest.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let inside = |at: usize| behind.ends_with(['.', ',']) && at > 0 && digit(at - 1) && digit(at + behind.len());
    within.match_indices(behind).map(|(at, _)| at).find(|at| !inside(*at))
}

/// The text that a search looks for: the first one, or what stands behind the first key.
fn anchor(texts: &[String]) -> &str {
    texts.iter().map(String::as_str).find(|t| !t.is_empty()).unwrap_or("\u{0}")
}

/// Where the word begins that ends at `end`.
fn word_before(text: &str, end: usize) -> Option<usize> {
    let word = text.get(..end)?.rfind(' ').map_or(0, |i| i + 1);
    (word < end).then_some(word)
}

/// How long what stands for a key is at the beginning of a text where nothing of the template follows: one of the known
/// texts with nothing more of its word, else a word. A known text of several words is not looked for by halves.
fn slot_length(text: &str, known: &[String]) -> Option<usize> {
    let stands = |k: &&String| text.strip_prefix(k.as_str()).is_some_and(|rest| word_length(rest) == 0);
    match known.iter().filter(stands).map(String::len).max() {
        Some(length) => Some(length),
        None => known.iter().all(|k| word_length(k) == k.len()).then(|| word_length(text)),
    }
}

/// How long a number is that stands at the beginning: up to a space, a command, or a sign that ends a sentence.
fn word_length(text: &str) -> usize {
    let end = text.find([' ', '}', '&', ';', '\\', '~', '{']).unwrap_or(text.len());
    let end = text[..end].find("---").unwrap_or(end);
    text[..end].trim_end_matches(['.', ',', ':', ')', '!', '?', '\'']).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hay(text: &str) -> (Document, Squeezed) {
        let document = Document::piece(text);
        let squeezed = Squeezed::new(&document, 0..document.toks.len(), 0);
        (document, squeezed)
    }

    #[track_caller]
    fn found(template: &str, text: &str, whole: bool) -> Vec<Vec<String>> {
        found_of(template, text, whole, &[])
    }

    #[track_caller]
    fn found_of(template: &str, text: &str, whole: bool, known: &[&str]) -> Vec<Vec<String>> {
        let (_, hay) = hay(text);
        let known: [Vec<String>; 1] = [known.iter().map(|k| (*k).to_owned()).collect()];
        let matches = Template::parse(template).unwrap().matches(&hay, whole, &known);
        for m in &matches {
            for (slot, found) in m.slots.iter().zip(&m.found) {
                assert_eq!(&text[slot.clone()], found, "{text:?}");
            }
        }
        matches.into_iter().map(|m| m.found).collect()
    }

    #[test]
    fn what_was_printed_is_found_again() {
        let one = |values: &[&str]| vec![values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>()];
        let template = "The gap is [[gap]] \\% at [[n]] seeds.";
        assert_eq!(found(template, "x The gap is 299.0 \\% at 2 seeds. y", false), one(&["299.0", "2"]));
        // Wrapped anew, with a comment, and one number edited.
        assert_eq!(found(template, "The gap\n  is 300 % old 1\n \\% at 2\nseeds.", false), one(&["300", "2"]));
        assert_eq!(found(template, "The gap was 299.0 \\% at 2 seeds.", false), Vec::<Vec<String>>::new());
        assert_eq!(found("[[a]]", "6.98", true), one(&["6.98"]));
        assert_eq!(found("$[[a]] \\pm [[b]]$", "$6.98 \\pm 0.10$", true), one(&["6.98", "0.10"]));
        assert_eq!(found("from [[a]] to [[b]].", "from 6.72 to 37.68.", false), one(&["6.72", "37.68"]));
        assert_eq!(found("from [[a]], [[b]].", "from 6,72, 37.5.", true), one(&["6,72", "37.5"]));
        assert_eq!(found("[[a]]x worse", "It is 5.6x worse.", false), one(&["5.6"]));
        assert_eq!(found("grew by [[a]]", "It grew by 5.6.", false), one(&["5.6"]));
        assert_eq!(found("is [[a]].", "is 1. is 2.", false), vec![vec!["1".to_owned()], vec!["2".to_owned()]]);
    }

    #[test]
    fn a_last_value_ends_where_what_was_printed_ends() {
        let one = |value: &str| vec![vec![value.to_owned()]];
        let of = |text: &str, known: &str| found_of("grew by [[a]]", text, false, &[known]);
        assert_eq!(of("It grew by 5.6~\\cite{foo}.", "5.6"), one("5.6"));
        assert_eq!(of("It grew by 5.6\\footnote{x}", "9.9"), one("5.6"));
        assert_eq!(of("It grew by 5.6---much.", "5.6"), one("5.6"));
        assert_eq!(of("It grew by $5.6 \\pm 0.1$.", "$5.6 \\pm 0.1$"), one("$5.6 \\pm 0.1$"));
        assert_eq!(of("It grew by 5.6\\,\\%.", "5.6\\,\\%"), one("5.6\\,\\%"));
        // More of the word is an edit.
        assert_eq!(of("It grew by 5.61.", "5.6"), one("5.61"));
        assert_eq!(of("It grew by 5.6-7.2.", "5.6"), one("5.6-7.2"));
        assert_eq!(of("It grew by $5.7 \\pm 0.1$.", "$5.6 \\pm 0.1$"), Vec::<Vec<String>>::new());
        let long = "1, ".repeat(60) + "1";
        assert_eq!(found("x [[a]] y", &format!("x {long} y"), true), one(&long));
        assert_eq!(found_of("x [[a]] y", &format!("z x {long} y"), false, &[&long]), one(&long));
    }

    #[test]
    fn templates_are_checked() {
        for (text, problem) in [
            ("a [[b", "does not end"),
            ("a [[b c]]", "no key"),
            ("a [[/b]]", "no key"),
            ("a {b", "do not pair"),
            ("5 % of", "write `\\%`"),
            ("x \\end{table}", "ends an environment"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
        assert!(Template::parse("a & b").unwrap().check_cell().unwrap_err().contains("`&`"));
        assert!(Template::parse("a \\\\").unwrap().check_cell().unwrap_err().contains("ends a row"));
        assert_eq!(Template::parse("{a & b} [[c/d]]").unwrap().check_cell(), Ok(()));
        let text = "x [[a]][[b/c]] y";
        assert_eq!(Template::parse(text).unwrap().source(), text);
    }
}
