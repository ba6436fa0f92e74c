//! LaTeX source as tokens with their places.
//!
//! It never fails and never panics: what it does not understand is text. It knows comments, verbatim text,
//! `\url`, what `\iffalse` hides and what stands behind `\end{document}`; it expands nothing. Token spans
//! are byte ranges of the source, in order and without gaps.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `\name`, or `\` and one other character.
    Command,
    /// `{`
    Open,
    /// `}`
    Close,
    /// `[`
    Left,
    /// `]`
    Right,
    /// `&`
    Amp,
    /// `$`
    Math,
    /// Spaces, tabs and line ends.
    Space,
    /// From `%` to before the end of its line.
    Comment,
    /// What TeX reads otherwise or not at all: verbatim text, addresses, text behind the end.
    Opaque,
    /// Anything else.
    Text,
}

/// A token: bytes `start..end` of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// First byte.
    pub start: usize,
    /// Behind the last byte.
    pub end: usize,
}

/// Whether the content of an environment is not LaTeX.
fn is_verbatim(name: &str) -> bool {
    let plain = name.trim_end_matches('*');
    plain.starts_with("lst")
        || plain.to_lowercase().contains("verbatim")
        || matches!(plain, "minted" | "comment" | "filecontents")
}

/// Commands whose argument is an address: `%` and `#` mean themselves there.
const ADDRESSES: [&str; 4] = ["url", "href", "path", "nolinkurl"];

/// Conditionals of TeX, which `\fi` ends.
const CONDITIONALS: [&str; 20] = [
    "if",
    "ifcat",
    "ifx",
    "ifnum",
    "ifdim",
    "ifodd",
    "ifvmode",
    "ifhmode",
    "ifmmode",
    "ifinner",
    "ifvoid",
    "ifhbox",
    "ifvbox",
    "ifeof",
    "iftrue",
    "iffalse",
    "ifcase",
    "ifdefined",
    "ifcsname",
    "iffontchar",
];

/// The tokens of a source.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut reader = Reader { text, bytes: text.as_bytes(), at: 0, depth: 0, tokens: Vec::new() };
    while reader.at < text.len() {
        reader.next();
    }
    reader.tokens
}

/// The name of a command token: `textbf`, `&`.
pub fn name(text: &str, token: Token) -> &str {
    text.get(token.start + 1..token.end).unwrap_or("")
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Braces that are open.
    depth: usize,
    tokens: Vec<Token>,
}

impl Reader<'_> {
    fn push(&mut self, kind: Kind, end: usize) {
        match kind {
            Kind::Open => self.depth += 1,
            Kind::Close => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.tokens.push(Token { kind, start: self.at, end });
        self.at = end;
    }

    /// The first place from `from` on that `stop` holds for.
    fn until(&self, from: usize, stop: impl Fn(u8) -> bool) -> usize {
        self.bytes[from..].iter().position(|b| stop(*b)).map_or(self.bytes.len(), |n| from + n)
    }

    fn next(&mut self) {
        let one = self.at + 1;
        match self.bytes[self.at] {
            b'\\' => self.command(),
            b'{' => self.push(Kind::Open, one),
            b'}' => self.push(Kind::Close, one),
            b'[' => self.push(Kind::Left, one),
            b']' => self.push(Kind::Right, one),
            b'&' => self.push(Kind::Amp, one),
            b'$' => self.push(Kind::Math, one),
            b'%' => {
                let end = self.until(one, |b| b == b'\n');
                self.push(Kind::Comment, end);
            }
            b if b.is_ascii_whitespace() => {
                let end = self.until(one, |b| !b.is_ascii_whitespace());
                self.push(Kind::Space, end);
            }
            _ => {
                let end = self.until(one, |b| b.is_ascii_whitespace() || b"\\{}[]&$%".contains(&b));
                self.push(Kind::Text, end);
            }
        }
    }

    fn command(&mut self) {
        let start = self.at + 1;
        let mut end = self.until(start, |b| !b.is_ascii_alphabetic() && b != b'@');
        if end == start {
            // One character, whole.
            end = start + self.text[start..].chars().next().map_or(0, char::len_utf8);
            return self.push(Kind::Command, end);
        }
        let text = self.text;
        let name = &text[start..end];
        match name {
            "verb" | "lstinline" => {
                if let Some(end) = self.inline_verbatim(name, end) {
                    return self.push(Kind::Opaque, end);
                }
            }
            "begin" => return self.environment(end),
            // In braces, and not on a line of its own, it is what some command is to do later.
            "end"
                if (self.depth == 0 || self.begins_line())
                    && text[end..].trim_start_matches([' ', '\t']).starts_with("{document}") =>
            {
                self.push(Kind::Command, end);
                let close = end + text[end..].find('}').map_or(0, |n| n + 1);
                self.argument(close);
                if self.at < text.len() {
                    self.push(Kind::Opaque, text.len());
                }
                return;
            }
            "iffalse" => {
                if let Some(end) = self.hidden(end) {
                    return self.push(Kind::Opaque, end);
                }
            }
            _ if ADDRESSES.contains(&name) => {
                if let Some(end) = self.address(end) {
                    return self.push(Kind::Opaque, end);
                }
            }
            _ => {}
        }
        self.push(Kind::Command, end);
    }

    /// Only spaces stand before this place on its line.
    fn begins_line(&self) -> bool {
        let before = &self.text[..self.at];
        before[before.rfind('\n').map_or(0, |n| n + 1)..].trim().is_empty()
    }

    /// The tokens of `{name}` up to `end`.
    fn argument(&mut self, end: usize) {
        while self.at < end {
            match self.bytes[self.at] {
                b'{' | b'}' | b' ' | b'\t' => self.next(),
                _ => {
                    let stop = self.until(self.at, |b| b"{} \t".contains(&b)).min(end);
                    self.push(Kind::Text, stop);
                }
            }
        }
    }

    /// The end of `\verb|...|`, if it ends on its line.
    fn inline_verbatim(&self, name: &str, from: usize) -> Option<usize> {
        let rest = self.text[from..].strip_prefix('*').unwrap_or(&self.text[from..]);
        let delimiter = rest.chars().next()?;
        let special = delimiter.is_ascii_alphabetic() || delimiter.is_whitespace();
        if special || (name == "lstinline" && matches!(delimiter, '{' | '[')) {
            return None;
        }
        let open = self.text.len() - rest.len() + delimiter.len_utf8();
        let line = self.text[open..].lines().next()?;
        Some(open + line.find(delimiter)? + delimiter.len_utf8())
    }

    /// `\begin`, and the content of an environment that is verbatim.
    fn environment(&mut self, end: usize) {
        let rest = &self.text[end..];
        let inner = rest.trim_start_matches([' ', '\t']);
        let name = inner.strip_prefix('{').and_then(|r| r.split_once('}')).map(|(name, _)| name);
        self.push(Kind::Command, end);
        let Some(name) = name.filter(|n| is_verbatim(n)) else { return };
        let body = end + (rest.len() - inner.len()) + name.len() + 2;
        self.argument(body);
        let close = self.text[body..].find(&format!("\\end{{{name}}}")).map_or(self.text.len(), |n| body + n);
        if close > body {
            self.push(Kind::Opaque, close);
        }
    }

    /// The end of `\iffalse ... \fi`.
    fn hidden(&self, from: usize) -> Option<usize> {
        let (mut at, mut depth, mut braces) = (from, 1usize, 0usize);
        loop {
            at += self.text[at..].find(['\\', '%', '{', '}'])?;
            match self.bytes[at] {
                b'%' => at = self.until(at, |b| b == b'\n'),
                b'{' => (at, braces) = (at + 1, braces + 1),
                // It is an argument: what it hides stands elsewhere.
                b'}' => (at, braces) = (at + 1, braces.checked_sub(1)?),
                _ => {}
            }
            if self.bytes.get(at) != Some(&b'\\') {
                continue;
            }
            let start = at + 1;
            let end = self.until(start.min(self.bytes.len()), |b| !b.is_ascii_alphabetic() && b != b'@');
            match &self.text[start..end] {
                "fi" => depth -= 1,
                word if CONDITIONALS.contains(&word) => depth += 1,
                _ => {}
            }
            if depth == 0 {
                return Some(end);
            }
            // A command of one character is not read as the beginning of another.
            at = if end == start { start + self.text[start..].chars().next()?.len_utf8() } else { end };
        }
    }

    /// The end of the address behind `\url`, which lies on one line.
    fn address(&self, from: usize) -> Option<usize> {
        let open = self.until(from, |b| b != b' ' && b != b'\t');
        if self.bytes.get(open) != Some(&b'{') {
            return None;
        }
        let mut depth = 0usize;
        let mut at = open;
        while at < self.bytes.len() {
            match self.bytes[at] {
                b'\n' => return None,
                b'\\' => at += 1,
                b'{' => depth += 1,
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
            at += 1;
        }
        None
    }
}

/// A brace without its partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unbalanced {
    /// Where it stands.
    pub at: usize,
    /// It is a `{`.
    pub open: bool,
}

/// The first brace that has no partner: a `}` too many, else the innermost `{` that nothing closes.
pub fn unbalanced(tokens: &[Token]) -> Option<Unbalanced> {
    let mut open = Vec::new();
    for token in tokens {
        match token.kind {
            Kind::Open => open.push(token.start),
            Kind::Close => {
                if open.pop().is_none() {
                    return Some(Unbalanced { at: token.start, open: false });
                }
            }
            _ => {}
        }
    }
    open.last().map(|at| Unbalanced { at: *at, open: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kinds and texts, spaces left out.
    fn shown(text: &str) -> Vec<String> {
        let found = tokens(text);
        let mut at = 0;
        for token in &found {
            assert_eq!(token.start, at, "a gap in {text:?}");
            assert!(token.end > token.start && text.is_char_boundary(token.end), "{text:?}");
            at = token.end;
        }
        assert_eq!(at, text.len());
        let solid = found.iter().filter(|t| t.kind != Kind::Space);
        solid.map(|t| format!("{:?} {}", t.kind, &text[t.start..t.end])).collect()
    }

    #[test]
    fn commands_groups_and_comments() {
        assert_eq!(
            shown("a\\textbf{b}\\& % x & y\nc & d \\\\[2pt]"),
            [
                "Text a",
                "Command \\textbf",
                "Open {",
                "Text b",
                "Close }",
                "Command \\&",
                "Comment % x & y",
                "Text c",
                "Amp &",
                "Text d",
                "Command \\\\",
                "Left [",
                "Text 2pt",
                "Right ]"
            ]
        );
        assert_eq!(shown("50\\% of \\é"), ["Text 50", "Command \\%", "Text of", "Command \\é"]);
        assert_eq!(shown("\\"), ["Command \\"]);
    }

    #[test]
    fn what_tex_does_not_read_as_usual_is_opaque() {
        assert_eq!(shown("\\verb|{%|x"), ["Opaque \\verb|{%|", "Text x"]);
        assert_eq!(shown("\\verb{"), ["Command \\verb", "Open {"], "it does not end on its line");
        assert_eq!(shown("\\url{a%20b{}}c"), ["Opaque \\url{a%20b{}}", "Text c"]);
        assert_eq!(
            shown("\\begin{verbatim}{{%\n\\end{verbatim}z"),
            [
                "Command \\begin",
                "Open {",
                "Text verbatim",
                "Close }",
                "Opaque {{%\n",
                "Command \\end",
                "Open {",
                "Text verbatim",
                "Close }",
                "Text z"
            ]
        );
        assert_eq!(shown("\\iffalse { \\ifx a \\fi & \\fi b"), ["Opaque \\iffalse { \\ifx a \\fi & \\fi", "Text b"]);
        assert_eq!(shown("{\\iffalse}b\\fi").len(), 5, "an argument hides nothing here");
        assert_eq!(shown("\\begin{lstcode}{\\end{lstcode}").iter().filter(|t| t.starts_with("Opaque")).count(), 1);
        assert_eq!(
            shown("{\n \\end{document}{").last().unwrap(),
            "Opaque {",
            "a brace that is not closed hides no end"
        );
        assert!(!shown("{\\end{document}} {x}").iter().any(|t| t.starts_with("Opaque")));
        let end = shown("\\end{document} } rest");
        assert_eq!(end.last().unwrap(), "Opaque  } rest");
    }

    #[test]
    fn braces_have_partners() {
        let of = |text: &str| unbalanced(&tokens(text)).map(|u| (u.at, u.open));
        assert_eq!(of("{a{b}}\\{ % {\n\\verb|{|"), None);
        assert_eq!(of("{a}}"), Some((3, false)));
        assert_eq!(of("{a{b}"), Some((0, true)));
    }

    #[test]
    fn any_text_has_tokens() {
        let pieces = [
            "\\",
            "{",
            "}",
            "%",
            "\n",
            "\\verb",
            "|",
            "é",
            "\\url{",
            "\\begin{verbatim}",
            "\\iffalse",
            "\\fi",
            "\\end{document}",
            "&",
            "x",
        ];
        // Every sequence of three and, by a step through the rest, longer ones.
        for n in 0..pieces.len().pow(3) {
            let mut text = String::new();
            let mut rest = n * 7919;
            for _ in 0..6 {
                text.push_str(pieces[rest % pieces.len()]);
                rest /= pieces.len();
                rest += n;
            }
            shown(&text);
        }
    }
}
