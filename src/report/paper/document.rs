//! A paper as TeX reads it: its file and the files that it inputs, as one stream of tokens, with what of its structure
//! matters here: labels, environments, sections, red text, keyed values and marked regions.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Finding;
use super::inputs::{self, Spliced, input_name, inputs_of};
use super::plain::plain;
use super::tex::{self, Kind, Token};

/// Environments in each other.
const MAX_NESTING: usize = 1000;

/// A file of the paper.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its name, relative to the paper's folder.
    pub name: String,
    /// Its text.
    pub text: String,
    lines: Vec<usize>,
}

impl Source {
    pub(super) fn new(name: &str, text: &str) -> Self {
        let lines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
        Self { name: name.to_owned(), text: text.to_owned(), lines: std::iter::once(0).chain(lines).collect() }
    }

    /// Line of a byte, from 1.
    pub fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at)
    }
}

/// A token of the stream.
#[derive(Debug, Clone, Copy)]
pub struct Tok {
    /// Index of its file.
    pub file: usize,
    /// What and where it is.
    pub token: Token,
}

/// A place in a file of the paper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Index of the file.
    pub file: usize,
    /// Bytes of it.
    pub range: Range<usize>,
}

/// An environment; positions are those of tokens in the stream.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Its name.
    pub name: String,
    /// Its `\begin`.
    pub begin: usize,
    /// Behind `\begin{name}`.
    pub body: usize,
    /// Its `\end`.
    pub end: usize,
}

/// A section with its number as LaTeX counts.
#[derive(Debug, Clone)]
pub struct Section {
    /// `4.3`; empty for one without a number.
    pub number: String,
    /// Its title as plain text.
    pub title: String,
    level: usize,
    /// Tokens from its command to its end.
    pub tokens: Range<usize>,
}

/// A keyed value in the text: `\seedbed{KEY}`.
#[derive(Debug, Clone)]
pub struct Use {
    /// The key.
    pub key: String,
    /// Its command.
    pub token: usize,
}

/// A marked region.
#[derive(Debug, Clone)]
pub struct Region {
    /// The table that it holds.
    pub table: String,
    /// Digest of what was written into it, from the begin line.
    pub digest: Option<String>,
    /// The comment that begins it.
    pub marker: Span,
    /// The lines between the markers.
    pub inner: Span,
}

/// A paper.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its files; the paper itself is the first.
    pub sources: Vec<Source>,
    /// Its tokens.
    pub toks: Vec<Tok>,
    /// Names that it inputs and that are no files of its folder, with their places.
    pub unread: Vec<(String, (String, usize))>,
    inputs: Vec<(String, usize)>,
    partner: Vec<usize>,
    environments: Vec<Environment>,
}

/// How a file that the paper inputs is read: its name and text, none if it is not in the paper's folder, or why it cannot be
/// read.
pub type Read<'a> = dyn FnMut(&str) -> Result<Option<(String, String)>, String> + 'a;

impl Document {
    /// Reads the paper `name` and, by `read`, what it inputs.
    ///
    /// # Errors
    /// Unbalanced braces in any of the files, two equal labels, markers that do not pair, or a file that cannot be read: all of
    /// them.
    pub fn new(name: &str, text: &str, read: &mut Read<'_>) -> Result<Self, Vec<Finding>> {
        let Spliced { sources, toks, unread, inputs, mut problems } = inputs::splice(name, text, read);
        let mut document = Self { partner: partners(&toks), sources, toks, unread, inputs, environments: Vec::new() };
        document.environments = document.find_environments();
        if problems.is_empty() {
            document.check_labels(&mut problems);
            document.check_regions(&mut problems);
        }
        if problems.is_empty() { Ok(document) } else { Err(problems) }
    }

    /// A piece of LaTeX on its own, whatever it is.
    pub fn piece(text: &str) -> Self {
        let toks: Vec<Tok> = tex::tokens(text).into_iter().map(|token| Tok { file: 0, token }).collect();
        let mut document = Self {
            partner: partners(&toks),
            sources: vec![Source::new("", text)],
            toks,
            unread: Vec::new(),
            inputs: Vec::new(),
            environments: Vec::new(),
        };
        document.environments = document.find_environments();
        document
    }

    /// The kind of a token; `None` behind the last.
    pub fn kind(&self, i: usize) -> Option<Kind> {
        self.toks.get(i).map(|t| t.token.kind)
    }

    /// The text of a token.
    pub fn text(&self, i: usize) -> &str {
        self.toks.get(i).map_or("", |t| &self.sources[t.file].text[t.token.start..t.token.end])
    }

    /// The name of a command; `None` if the token is none.
    pub fn command(&self, i: usize) -> Option<&str> {
        (self.kind(i)? == Kind::Command).then(|| &self.text(i)[1..])
    }

    /// The `}` of a `{`.
    pub fn close_of(&self, open: usize) -> Option<usize> {
        (self.kind(open)? == Kind::Open).then(|| self.partner[open]).filter(|p| *p != usize::MAX)
    }

    /// The first token from `i` on that is neither space nor comment.
    pub fn solid(&self, mut i: usize) -> usize {
        while matches!(self.kind(i), Some(Kind::Space | Kind::Comment)) {
            i += 1;
        }
        i
    }

    /// The `{...}` that follows at `i`: the tokens inside, and the token behind.
    pub fn group(&self, i: usize) -> Option<(Range<usize>, usize)> {
        let open = self.solid(i);
        let close = self.close_of(open)?;
        Some((open + 1..close, close + 1))
    }

    /// Behind the `[...]` that follows at `i`, if one does.
    pub fn option(&self, i: usize) -> Option<usize> {
        let mut at = self.solid(i);
        if self.kind(at)? != Kind::Left {
            return None;
        }
        loop {
            at += 1;
            match self.kind(at)? {
                Kind::Right => return Some(at + 1),
                Kind::Open => at = self.close_of(at)?,
                Kind::Close => return None,
                _ => {}
            }
        }
    }

    /// The source of some tokens without comments.
    pub fn source(&self, tokens: Range<usize>) -> String {
        tokens.filter(|i| self.kind(*i) != Some(Kind::Comment)).map(|i| self.text(i)).collect()
    }

    /// Where a token stands, `file:line`.
    pub fn place(&self, i: usize) -> (String, usize) {
        let Some(tok) = self.toks.get(i.min(self.toks.len().saturating_sub(1))) else {
            return (self.sources[0].name.clone(), 1);
        };
        let source = &self.sources[tok.file];
        (source.name.clone(), source.line(tok.token.start))
    }

    /// Where a span begins, `file:line`.
    pub fn line_of(&self, span: &Span) -> (String, usize) {
        let source = &self.sources[span.file];
        (source.name.clone(), source.line(span.range.start))
    }

    /// A finding at a token.
    pub fn finding(&self, i: usize, text: impl Into<String>) -> Finding {
        Finding::at(self.place(i), text)
    }

    /// The bytes of some tokens, which must lie in one file.
    pub fn span(&self, tokens: Range<usize>) -> Option<Span> {
        let first = self.toks.get(tokens.start)?;
        let last = self.toks.get(tokens.end.checked_sub(1)?)?;
        let whole = self.toks.get(tokens.clone())?;
        let one = whole.iter().all(|t| t.file == first.file) && last.token.end >= first.token.start;
        one.then(|| Span { file: first.file, range: first.token.start..last.token.end })
    }

    /// Whether every brace of some tokens has its partner among them.
    pub fn balanced(&self, tokens: Range<usize>) -> bool {
        let mut depth = 0usize;
        for i in tokens {
            match self.kind(i) {
                Some(Kind::Open) => depth += 1,
                Some(Kind::Close) => match depth.checked_sub(1) {
                    Some(less) => depth = less,
                    None => return false,
                },
                _ => {}
            }
        }
        depth == 0
    }

    /// Environments, in the order of their beginnings.
    pub fn environments(&self) -> &[Environment] {
        &self.environments
    }

    /// Every label with its token.
    pub fn labels(&self) -> Vec<(String, usize)> {
        let found = self.commands("label").filter_map(|i| {
            let (inner, _) = self.group(i + 1)?;
            let label = self.source(inner).trim().to_owned();
            (!label.contains('#')).then_some((label, i))
        });
        found.collect()
    }

    pub(super) fn commands<'a>(&'a self, name: &'a str) -> impl Iterator<Item = usize> + 'a {
        (0..self.toks.len()).filter(move |i| self.command(*i) == Some(name))
    }

    fn find_environments(&self) -> Vec<Environment> {
        let mut open: Vec<(String, usize, usize)> = Vec::new();
        let mut found = Vec::new();
        for i in 0..self.toks.len() {
            let begin = match self.command(i) {
                Some("begin") => true,
                Some("end") => false,
                _ => continue,
            };
            let Some((inner, behind)) = self.group(i + 1) else { continue };
            let name = self.source(inner).trim().to_owned();
            if begin {
                // Nobody nests deeper; a search among more would take long.
                if open.len() < MAX_NESTING {
                    open.push((name, i, behind));
                }
            } else if let Some(at) = open.iter().rposition(|(n, ..)| *n == name) {
                // What is inside and has no end of its own is left out.
                let (name, begin, body) = open.swap_remove(at);
                open.truncate(at);
                found.push(Environment { name, begin, body, end: i });
            }
        }
        found.sort_by_key(|e| e.begin);
        found
    }

    /// The environment that begins at a token.
    pub fn environment_at(&self, begin: usize) -> Option<&Environment> {
        let at = self.environments.binary_search_by_key(&begin, |e| e.begin).ok()?;
        self.environments.get(at)
    }

    fn check_labels(&self, problems: &mut Vec<Finding>) {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (label, i) in self.labels() {
            if let Some(first) = seen.get(&label) {
                let (file, line) = self.place(*first);
                let text = format!("label `{label}` stands here and at {file}:{line}: give one of them another name");
                problems.push(self.finding(i, text));
            } else {
                seen.insert(label, i);
            }
        }
    }

    /// Sections with numbers, as the standard classes count.
    pub fn sections(&self) -> Vec<Section> {
        const LEVELS: [&str; 4] = ["chapter", "section", "subsection", "subsubsection"];
        let top = usize::from(self.commands("chapter").next().is_none());
        let (mut counts, mut appendix) = ([0usize; 4], false);
        let mut found: Vec<Section> = Vec::new();
        for i in 0..self.toks.len() {
            let Some(command) = self.command(i) else { continue };
            if command == "appendix" {
                (counts, appendix) = ([0; 4], true);
            }
            let Some(level) = LEVELS.iter().position(|l| *l == command) else { continue };
            let mut at = self.solid(i + 1);
            let starred = self.kind(at) == Some(Kind::Text) && self.text(at) == "*";
            at = if starred { at + 1 } else { at };
            at = self.option(at).unwrap_or(at);
            let Some((title, _)) = self.group(at) else { continue };
            for open in found.iter_mut().filter(|s| s.tokens.end == usize::MAX && s.level >= level) {
                open.tokens.end = i;
            }
            let mut number = String::new();
            if !starred {
                counts[level] += 1;
                counts[level + 1..].fill(0);
                let parts: Vec<String> = (top..=level)
                    .map(|l| if l == top && appendix { letter(counts[l]) } else { counts[l].to_string() })
                    .collect();
                number = parts.join(".");
            }
            found.push(Section { number, title: plain(self, title), level, tokens: i..usize::MAX });
        }
        for section in &mut found {
            section.tokens.end = section.tokens.end.min(self.toks.len());
        }
        found
    }

    /// The section that `name` means: by number, title or label.
    ///
    /// # Errors
    /// None or several are called so; the numbers that there are.
    pub fn section(&self, name: &str) -> Result<Section, String> {
        let sections = self.sections();
        let label = self.labels().into_iter().find(|(l, _)| l == name).map(|(_, i)| i);
        let innermost = label.and_then(|i| sections.iter().filter(|s| s.tokens.contains(&i)).next_back());
        if let Some(section) = innermost {
            return Ok(section.clone());
        }
        let fits: Vec<&Section> = sections.iter().filter(|s| s.number == name || s.title == name.trim()).collect();
        match fits.as_slice() {
            [one] => Ok((*one).clone()),
            [] => {
                let known: Vec<String> = sections.iter().map(|s| format!("{} {}", s.number, s.title)).collect();
                Err(format!("there is no section `{name}`: name one of {}", known.join(", ")))
            }
            _ => Err(format!("several sections are called `{name}`: name it by its number or label")),
        }
    }

    /// Keyed values, in order. Spaces in them are spaces for TeX, too.
    pub fn uses(&self, macro_name: &str) -> Vec<Use> {
        let found = self.commands(macro_name).filter_map(|i| {
            let (inner, _) = self.group(i + 1)?;
            // A comment takes the end of its line and the spaces behind that.
            let eaten = |t: &usize| {
                self.kind(*t) == Some(Kind::Space) && t.checked_sub(1).and_then(|b| self.kind(b)) == Some(Kind::Comment)
            };
            let key: String = inner.filter(|t| !eaten(t)).map(|t| self.source(t..t + 1)).collect();
            Some(Use { key, token: i })
        });
        found.collect()
    }

    /// Commands that input a file whose name only TeX knows.
    pub fn unresolved(&self) -> Vec<usize> {
        let defined = |i: usize| {
            let command = |n: usize| i.checked_sub(n).and_then(|at| self.command(at));
            matches!(command(1), Some("let" | "def" | "renewcommand" | "newcommand")) || command(2) == Some("let")
        };
        let is_one = |i: &usize| {
            let Some(arguments) = self.command(*i).and_then(inputs_of) else { return false };
            if input_name(self, *i).is_some() || defined(*i) {
                return false;
            }
            match self.group(i + 1) {
                Some((inner, _)) => !inner.is_empty(),
                None => arguments == 1 && self.kind(self.solid(i + 1)) == Some(Kind::Command),
            }
        };
        (0..self.toks.len()).filter(is_one).collect()
    }

    /// What the paper inputs, with its tokens: the files that were read, and the names of those that were not.
    pub fn inputs(&self) -> &[(String, usize)] {
        &self.inputs
    }

    /// Marked regions.
    pub fn regions(&self) -> Vec<Region> {
        self.find_regions(&mut Vec::new())
    }

    fn check_regions(&self, problems: &mut Vec<Finding>) {
        self.find_regions(problems);
    }

    fn find_regions(&self, problems: &mut Vec<Finding>) -> Vec<Region> {
        let mut found: Vec<Region> = Vec::new();
        let mut open: Option<(String, Option<String>, usize)> = None;
        for i in 0..self.toks.len() {
            let Some((begins, table, digest)) =
                (self.kind(i) == Some(Kind::Comment)).then(|| marker(self.text(i))).flatten()
            else {
                continue;
            };
            let tok = self.toks[i];
            let source = &self.sources[tok.file];
            let line_start = source.text[..tok.token.start].rfind('\n').map_or(0, |n| n + 1);
            if !source.text[line_start..tok.token.start].trim().is_empty() {
                problems.push(self.finding(i, "a marker stands alone on its line: put it on one of its own"));
                continue;
            }
            match (begins, open.take()) {
                (true, None) => {
                    if let Some(first) = found.iter().find(|r| r.table == table) {
                        let (file, line) = self.line_of(&first.marker);
                        let text = format!("region `{table}` begins a second time, first at {file}:{line}: keep one");
                        problems.push(self.finding(i, text));
                    }
                    open = Some((table, digest, i));
                }
                (true, Some((outer, ..))) => {
                    let text = format!("region `{table}` begins inside `{outer}`: end that one first");
                    problems.push(self.finding(i, text));
                }
                (false, None) => {
                    problems
                        .push(self.finding(i, format!("region `{table}` ends but does not begin: remove this line")));
                }
                (false, Some((name, digest, begin))) => {
                    let first = self.toks[begin];
                    if name != table || first.file != tok.file {
                        let text = format!("region `{table}` ends where `{name}` should: end that one first");
                        problems.push(self.finding(i, text));
                        continue;
                    }
                    let from = (first.token.end + 1).min(line_start);
                    // Without the `\r` of a file with such line ends.
                    let words = self.text(begin).trim_end().len();
                    found.push(Region {
                        table,
                        digest,
                        marker: Span { file: tok.file, range: first.token.start..first.token.start + words },
                        inner: Span { file: tok.file, range: from..line_start },
                    });
                }
            }
        }
        if let Some((table, _, begin)) = open {
            let text = format!("region `{table}` does not end: write `% seedbed end {table}` behind it");
            problems.push(self.finding(begin, text));
        }
        found
    }
}

/// What a comment marks: whether it begins a region, the table, the digest.
fn marker(comment: &str) -> Option<(bool, String, Option<String>)> {
    let mut words = comment.trim_start_matches('%').split_whitespace();
    if words.next()? != "seedbed" {
        return None;
    }
    let begins = match words.next()? {
        "begin" => true,
        "end" => false,
        _ => return None,
    };
    let table = words.next()?.to_owned();
    // Other words behind it are a person's.
    let is_digest = |word: &&str| word.len() == 16 && word.bytes().all(|b| b.is_ascii_hexdigit());
    Some((begins, table, words.next().filter(is_digest).map(str::to_owned)))
}

fn letter(n: usize) -> String {
    match u32::try_from(n).ok().and_then(|n| char::from_u32(64 + n)).filter(char::is_ascii_uppercase) {
        Some(c) => c.to_string(),
        None => n.to_string(),
    }
}

fn partners(toks: &[Tok]) -> Vec<usize> {
    let mut partner = vec![usize::MAX; toks.len()];
    let mut open = Vec::new();
    for (i, tok) in toks.iter().enumerate() {
        match tok.token.kind {
            Kind::Open => open.push(i),
            Kind::Close => {
                if let Some(start) = open.pop() {
                    partner[start] = i;
                }
            }
            _ => {}
        }
    }
    partner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_numbered_as_latex_does() {
        let text = "\\section{A}\\section*{B}\\section[short]{C \\emph{d}}\\label{sec:c}\\subsection{E}x\\label{sec:e}\\appendix\\section{F}\\subsection{G}";
        let document = Document::new("p.tex", text, &mut |_| Ok(None)).unwrap();
        let numbers: Vec<String> = document.sections().iter().map(|s| format!("{} {}", s.number, s.title)).collect();
        assert_eq!(numbers, ["1 A", " B", "2 C d", "2.1 E", "A F", "A.1 G"]);
        assert_eq!(document.section("sec:e").unwrap().number, "2.1");
        assert_eq!(document.section("C d").unwrap().number, "2");
        assert!(document.section("3").unwrap_err().contains("2.1 E"));
        let book = Document::piece("\\chapter{X}\\section{Y}");
        assert_eq!(book.sections()[1].number, "1.1");
    }
}
