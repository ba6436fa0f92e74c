//! What a reader sees of a piece of LaTeX, as plain text: enough to find a row by its first cell, not to set a page.

use std::ops::Range;

use super::document::Document;
use super::tex::Kind;

/// Commands whose arguments a reader does not see as words.
const SILENT: [&str; 25] = [
    "footnote",
    "footnotemark",
    "tnote",
    "label",
    "ref",
    "eqref",
    "autoref",
    "cref",
    "Cref",
    "pageref",
    "cite",
    "citep",
    "citet",
    "vspace",
    "hspace",
    "rowcolor",
    "cellcolor",
    "color",
    "index",
    "input",
    "include",
    "cmidrule",
    "cline",
    "includegraphics",
    "phantom",
];

/// Commands of which the last argument is seen, with how many stand before it.
const LAST_SEEN: [(&str, usize); 9] = [
    ("textcolor", 1),
    ("multirow", 2),
    ("multicolumn", 2),
    ("colorbox", 1),
    ("scalebox", 1),
    ("resizebox", 2),
    ("raisebox", 1),
    ("rotatebox", 1),
    ("parbox", 1),
];

/// Commands that print a character.
const SIGNS: [(&str, &str); 34] = [
    ("Delta", "Δ"),
    ("pm", "±"),
    ("times", "×"),
    ("cdot", "·"),
    ("alpha", "α"),
    ("beta", "β"),
    ("gamma", "γ"),
    ("delta", "δ"),
    ("epsilon", "ε"),
    ("lambda", "λ"),
    ("mu", "μ"),
    ("sigma", "σ"),
    ("tau", "τ"),
    ("leq", "≤"),
    ("le", "≤"),
    ("geq", "≥"),
    ("ge", "≥"),
    ("approx", "≈"),
    ("to", "→"),
    ("rightarrow", "→"),
    ("leftarrow", "←"),
    ("uparrow", "↑"),
    ("downarrow", "↓"),
    ("infty", "∞"),
    ("textbackslash", "\\"),
    ("textasciitilde", "~"),
    ("textasciicircum", "^"),
    ("textless", "<"),
    ("textgreater", ">"),
    ("textbar", "|"),
    ("ss", "ß"),
    ("ae", "æ"),
    ("o", "ø"),
    ("dots", "…"),
];

/// Plain text of some tokens: one line, spaces single.
pub fn plain(document: &Document, tokens: Range<usize>) -> String {
    let mut out = String::new();
    walk(document, tokens, &mut out, 0);
    squeeze(&out)
}

/// Plain text of a piece of LaTeX on its own.
pub fn plain_text(tex: &str) -> String {
    let document = Document::piece(tex);
    plain(&document, 0..document.toks.len())
}

/// One line, spaces single.
pub fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether `wanted`, which a person wrote as plain text or as LaTeX, is the text that `tokens` print.
pub fn says(document: &Document, tokens: Range<usize>, wanted: &str) -> bool {
    let text = plain(document, tokens);
    text == squeeze(wanted) || text == plain_text(wanted)
}

fn walk(document: &Document, tokens: Range<usize>, out: &mut String, depth: usize) {
    // Deeper than any page: what nests deeper prints nothing.
    if depth > 200 {
        return;
    }
    let mut i = tokens.start;
    while i < tokens.end {
        let text = document.text(i);
        match document.kind(i) {
            None => return,
            Some(Kind::Space) => out.push(' '),
            Some(Kind::Comment | Kind::Open | Kind::Close | Kind::Math) => {}
            Some(Kind::Command) => {
                i = command(document, i, tokens.end, out, depth);
                continue;
            }
            Some(Kind::Text) => text.chars().for_each(|c| out.push(if c == '~' { ' ' } else { c })),
            Some(Kind::Opaque | Kind::Amp | Kind::Left | Kind::Right) => out.push_str(text),
        }
        i += 1;
    }
}

/// A command at `i`; the token to go on at.
fn command(document: &Document, i: usize, end: usize, out: &mut String, depth: usize) -> usize {
    let name = document.command(i).unwrap_or("");
    let mut at = i + 1;
    if let Some((_, before)) = LAST_SEEN.iter().find(|(n, _)| *n == name) {
        for _ in 0..*before {
            at = document.option(at).unwrap_or(at);
            match document.group(at) {
                Some((_, behind)) if behind <= end => at = behind,
                // `\multirow{2}*{text}`: a width without braces.
                _ if document.kind(document.solid(at)) == Some(Kind::Text) => at = document.solid(at) + 1,
                _ => {}
            }
        }
        at = document.option(at).unwrap_or(at);
        if let Some((inner, behind)) = document.group(at).filter(|(_, behind)| *behind <= end) {
            walk(document, inner, out, depth + 1);
            return behind;
        }
        return at.min(end).max(i + 1);
    }
    if SILENT.contains(&name) || name == "begin" || name == "end" {
        at = document.option(at).unwrap_or(at);
        while let Some((_, behind)) = document.group(at).filter(|(_, behind)| *behind <= end) {
            at = behind;
            if name != "cmidrule" {
                break;
            }
        }
        return at.min(end).max(i + 1);
    }
    if let Some((_, sign)) = SIGNS.iter().find(|(n, _)| *n == name) {
        out.push_str(sign);
        // The space behind a word of a command ends it.
        return if document.kind(at) == Some(Kind::Space) { at + 1 } else { at };
    }
    match name {
        "&" | "%" | "$" | "#" | "_" | "{" | "}" => out.push_str(name),
        "\\" | "," | ";" | ":" | " " | "quad" | "qquad" | "newline" | "tabularnewline" | "\n" => out.push(' '),
        _ if name.chars().next().is_some_and(|c| c.is_ascii_alphabetic()) => {
            at = document.option(at).filter(|behind| *behind <= end).unwrap_or(at);
            if document.kind(at) == Some(Kind::Space) && at < end {
                at += 1;
            }
        }
        _ => {}
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_sees() {
        for (tex, text) in [
            ("Pythia-1.4B (Baseline)", "Pythia-1.4B (Baseline)"),
            ("\\textcolor{red}{\\textbf{Pythia}  {1.4B}}", "Pythia 1.4B"),
            ("\\multirow{2}{*}{T5\\footnote{small}}", "T5"),
            ("\\multirow{2}*{T5}", "T5"),
            ("\\multicolumn{2}{c}{A \\& B}", "A & B"),
            ("ROUGE-L ($\\Delta$)", "ROUGE-L (Δ)"),
            ("a~b\\,c % d & e\n  f", "a b c f"),
            ("\\shortstack{Attack\\\\Success}", "Attack Success"),
            ("100\\,\\%", "100 %"),
            ("{\\bfseries x}", "x"),
            ("\\rowcolor{gray!10} x", "x"),
            ("\\textcolor{red}{a", "a"),
            ("\\multirow", ""),
        ] {
            assert_eq!(plain_text(tex), text, "{tex}");
        }
    }
}
