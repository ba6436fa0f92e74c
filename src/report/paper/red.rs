//! Red text: what stands in a paper until somebody replaces it.

use std::collections::BTreeSet;
use std::ops::Range;

use super::document::Document;
use super::tex::Kind;

/// Red text: a placeholder that somebody is to replace.
#[derive(Debug, Clone)]
pub struct Red {
    /// Everything from its command on, or its group; for a bare `\color{red}` the command alone.
    pub outer: Range<usize>,
    /// What is red, for `\textcolor{red}{...}` and `{\color{red} ...}`.
    pub inner: Option<Range<usize>>,
}

impl Document {
    /// Red text, in order.
    pub fn reds(&self) -> Vec<Red> {
        let own = self.red_commands();
        let mut found = Vec::new();
        for i in 0..self.toks.len() {
            let command = match self.command(i) {
                Some(c @ ("textcolor" | "color")) => c,
                Some(c) if own.contains(c) => {
                    if let Some((inner, end)) = self.group(i + 1) {
                        found.push(Red { outer: i..end, inner: Some(inner) });
                    }
                    continue;
                }
                _ => continue,
            };
            let at = self.option(i + 1).unwrap_or(i + 1);
            let Some((color, behind)) = self.group(at) else { continue };
            let color = self.source(color).split_whitespace().collect::<String>().to_lowercase();
            if color != "red" && !color.starts_with("red!") && color != "1,0,0" {
                continue;
            }
            let inner = if command == "textcolor" { self.group(behind) } else { None };
            // `{\color{red} ...}`: the group.
            let open = (0..i).rev().find(|n| !matches!(self.kind(*n), Some(Kind::Space | Kind::Comment)));
            let group = open.and_then(|open| Some((open, self.close_of(open)?))).filter(|_| command == "color");
            let red = match (inner, group) {
                (Some((inner, end)), _) => Red { outer: i..end, inner: Some(inner) },
                (None, Some((open, close))) if behind <= close => {
                    Red { outer: open..close + 1, inner: Some(behind..close) }
                }
                (None, _) => Red { outer: i..behind, inner: None },
            };
            // The definition of a command is no text.
            if !self.source(red.outer.clone()).contains('#') {
                found.push(red);
            }
        }
        found
    }

    /// Commands that the paper defines to make their argument red, such as `\todo`.
    fn red_commands(&self) -> BTreeSet<String> {
        const DEFINITIONS: [&str; 5] = ["newcommand", "renewcommand", "providecommand", "DeclareRobustCommand", "def"];
        let mut found = BTreeSet::new();
        for i in 0..self.toks.len() {
            if !self.command(i).is_some_and(|c| DEFINITIONS.contains(&c)) {
                continue;
            }
            let mut at = self.solid(i + 1);
            if self.kind(at) == Some(Kind::Text) && self.text(at) == "*" {
                at = self.solid(at + 1);
            }
            let (name, mut at) = match self.group(at) {
                Some((inner, behind)) => (self.command(self.solid(inner.start)), behind),
                None => (self.command(at), at + 1),
            };
            at = self.option(at).unwrap_or(at);
            // `\def\todo#1{...}`
            if self.kind(at) == Some(Kind::Text) {
                at += 1;
            }
            let (Some(name), Some((body, _))) = (name, self.group(at)) else { continue };
            let body: String = self.source(body).split_whitespace().collect();
            if body.contains("#1") && (body.contains("\\textcolor{red}") || body.contains("\\color{red}")) {
                found.insert(name.to_owned());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn red_in_every_form() {
        let text = "\\newcommand{\\todo}[1]{\\textcolor{red}{#1}}\\def\\fix#1{{\\color{red}#1}}% \\textcolor{red}{no}\n\
            \\textcolor{red}{a {b}} {\\color{red} c} \\todo{d} \\fix{e} \\textcolor[rgb]{1,0,0}{f} \\textcolor{blue}{g} \\color{red} h";
        let document = Document::new("p.tex", text, &mut |_| Ok(None)).unwrap();
        let reds = document.reds();
        let inner: Vec<String> =
            reds.iter().map(|r| r.inner.clone().map_or("-".to_owned(), |i| document.source(i))).collect();
        assert_eq!(inner, ["a {b}", " c", "d", "e", "f", "-"]);
        let outer: Vec<String> = reds.iter().map(|r| document.source(r.outer.clone())).collect();
        assert_eq!(outer[1..3], ["{\\color{red} c}", "\\todo{d}"]);
    }
}
