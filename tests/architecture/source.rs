//! Every path that a Rust file names: in `use` trees and in bodies, with `super`, `self` and imported names resolved.
//!
//! It reads tokens, not types: a name that a macro pastes together, or a method, is not seen.

use std::collections::BTreeMap;

/// A path that a file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// `crate::record::cell::Cell`, `std::fs::read`; `crate::x::*` for a glob.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// In code that is compiled for tests only.
    pub test: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

/// Paths of the file of module `module`, in order.
pub fn paths(module: &str, text: &str) -> Vec<Named> {
    let tokens = tokens(text);
    let file: Vec<String> = module.split("::").filter(|s| !s.is_empty()).map(str::to_owned).collect();
    let all_test = file.last().is_some_and(|last| last == "tests");
    let mut reader =
        Reader { tokens: &tokens, at: 0, scope: file, imports: BTreeMap::new(), found: Vec::new(), test: all_test };
    // Imports may stand below what uses them: they are gathered first.
    reader.read(all_test);
    let imports = std::mem::take(&mut reader.imports);
    reader = Reader { imports, at: 0, found: Vec::new(), test: all_test, ..reader };
    reader.read(all_test);
    reader.found
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    /// The module that the reader is in.
    scope: Vec<String>,
    /// What imported names stand for.
    imports: BTreeMap<String, Vec<String>>,
    found: Vec<Named>,
    test: bool,
}

impl Reader<'_> {
    fn peek(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |t| &t.text)
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |t| t.line)
    }

    fn read(&mut self, all_test: bool) {
        // For each open brace: the length of the scope outside, and whether the outside is a test.
        let mut open: Vec<(usize, bool)> = Vec::new();
        let mut entering: Option<String> = None;
        let mut for_tests = false;
        let before = self.scope.len();
        while self.at < self.tokens.len() {
            match self.peek(0) {
                "#" if (1..=6).map(|i| self.peek(i)).eq(["[", "cfg", "(", "test", ")", "]"]) => {
                    for_tests = true;
                    self.at += 7;
                }
                "mod" if is_name(self.peek(1)) && self.peek(2) == "{" => {
                    entering = Some(self.peek(1).to_owned());
                    self.at += 2;
                }
                "use" => {
                    self.at += 1;
                    let outer = self.test;
                    self.test |= for_tests;
                    self.use_tree(Vec::new(), true);
                    self.test = outer;
                    for_tests = false;
                }
                "{" => {
                    open.push((self.scope.len(), self.test));
                    self.scope.extend(entering.take());
                    self.test |= for_tests;
                    for_tests = false;
                    self.at += 1;
                }
                "}" => {
                    if let Some((length, test)) = open.pop() {
                        self.scope.truncate(length);
                        self.test = test;
                    }
                    self.at += 1;
                }
                ";" => {
                    for_tests = false;
                    self.at += 1;
                }
                name if is_name(name) && (self.peek(1) == "::" || name == "crate") => self.body_path(),
                // A method or field is no path's beginning.
                "." => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.scope.truncate(before);
        self.test = all_test;
    }

    /// One branch of a `use` tree, from its first segment on.
    fn use_tree(&mut self, mut path: Vec<String>, first: bool) {
        let line = self.line();
        if first && self.peek(0) == "::" {
            self.at += 1;
        }
        loop {
            match self.peek(0).to_owned().as_str() {
                "{" => {
                    self.at += 1;
                    while !matches!(self.peek(0), "}" | "") {
                        self.use_tree(path.clone(), path.is_empty());
                        if self.peek(0) == "," {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "*" => {
                    self.at += 1;
                    path.push("*".to_owned());
                    let absolute = self.absolute(&path);
                    self.tell(absolute, line);
                    return;
                }
                name if is_name(name) => {
                    self.at += 1;
                    path.push(name.to_owned());
                    if self.peek(0) == "::" {
                        self.at += 1;
                        continue;
                    }
                    // `a::{self}` is `a`.
                    if path.len() > 1 && path.last().is_some_and(|l| l == "self") {
                        path.pop();
                    }
                    let mut known = path.last().cloned().unwrap_or_default();
                    if self.peek(0) == "as" {
                        known = self.peek(1).to_owned();
                        self.at += 2;
                    }
                    let absolute = self.absolute(&path);
                    self.tell(absolute.clone(), line);
                    self.imports.insert(known, absolute);
                    return;
                }
                _ => {
                    self.at += 1;
                    return;
                }
            }
        }
    }

    fn body_path(&mut self) {
        let line = self.line();
        let mut path = vec![self.peek(0).to_owned()];
        self.at += 1;
        while self.peek(0) == "::" && is_name(self.peek(1)) {
            path.push(self.peek(1).to_owned());
            self.at += 2;
        }
        if path == ["crate"] {
            // `pub(crate)`.
            return;
        }
        let absolute = match self.imports.get(&path[0]) {
            Some(known) => known.iter().chain(&path[1..]).cloned().collect(),
            None => self.absolute(&path),
        };
        self.tell(absolute, line);
    }

    /// `path` from the crate's root or another crate's name.
    fn absolute(&self, path: &[String]) -> Vec<String> {
        let program = self.scope.first().is_some_and(|s| s == "bin");
        let mut base = match path[0].as_str() {
            "seedbed" if program => return [vec!["crate".to_owned()], path[1..].to_vec()].concat(),
            "crate" if !program => return path.to_vec(),
            "self" | "super" => self.scope.clone(),
            _ => return path.to_vec(),
        };
        let mut rest = path;
        while let Some((head, tail)) = rest.split_first() {
            match head.as_str() {
                "self" => {}
                "super" => drop(base.pop()),
                _ => break,
            }
            rest = tail;
        }
        [vec!["crate".to_owned()], base, rest.to_vec()].concat()
    }

    fn tell(&mut self, path: Vec<String>, line: usize) {
        self.found.push(Named { path: path.join("::"), line, test: self.test });
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The file without comments, texts and characters. `::` is one token.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut tokens = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < chars.len() {
        let start = i;
        match chars[i] {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && chars[i] != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 || i >= chars.len() {
                        break;
                    }
                }
            }
            '"' => i = end_of_text(&chars, i),
            '\'' => {
                // A character, or a lifetime, which has no closing quote.
                if at(i + 1) == '\\' {
                    i += 3;
                    while i < chars.len() && chars[i - 1] != '\'' {
                        i += 1;
                    }
                } else if at(i + 2) == '\'' {
                    i += 3;
                } else {
                    i += 1;
                }
            }
            'r' | 'b' if raw_hashes(&chars, i).is_some() => {
                let (from, hashes) = raw_hashes(&chars, i).unwrap();
                let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                i = from;
                while i < chars.len() && !chars[i..].starts_with(&close) {
                    i += 1;
                }
                i += close.len();
            }
            c if c.is_alphanumeric() || c == '_' => {
                while i < chars.len() && (chars[i].is_alphanumeric() || chars[i] == '_') {
                    i += 1;
                }
                tokens.push(Token { text: chars[start..i].iter().collect(), line });
            }
            ':' if at(i + 1) == ':' => {
                tokens.push(Token { text: "::".to_owned(), line });
                i += 2;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(Token { text: c.to_string(), line });
                }
                i += 1;
            }
        }
        line += chars[start..i.min(chars.len())].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

/// One behind the closing quote of the text that opens at `i`.
fn end_of_text(chars: &[char], mut i: usize) -> usize {
    i += 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// For `r"`, `r#"`, `br#"` at `i`: where the text begins, and how many hashes close it.
fn raw_hashes(chars: &[char], mut i: usize) -> Option<(usize, usize)> {
    if chars[i] == 'b' {
        i += 1;
    }
    if chars.get(i) != Some(&'r') {
        return None;
    }
    let hashes = chars[i + 1..].iter().take_while(|&&c| c == '#').count();
    (chars.get(i + 1 + hashes) == Some(&'"')).then_some((i + 2 + hashes, hashes))
}
