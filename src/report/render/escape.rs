//! Hostile text made harmless, one function a format.

/// LaTeX source. Only [`latex`] makes it from text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::report) struct Tex(pub(in crate::report) String);

/// Makes control characters and marks of direction visible as `[U+001B]`; line ends and tabs become
/// spaces. What is left is one line that moves no cursor and reverses no text.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' | '\u{2028}' | '\u{2029}' => out.push(' '),
            '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{61c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}'
            | '\u{fffe}'..='\u{ffff}'
            | '\u{e0000}'..='\u{e007f}' => out.push_str(&format!("[U+{:04X}]", c as u32)),
            c => out.push(c),
        }
    }
    out
}

/// Text as LaTeX that shows it literally in the encodings OT1 and T1. What these fonts lack shows as its
/// code point, `[U+4E2D]`, for a missing glyph would stop pdflatex.
pub(in crate::report) fn latex(text: &str) -> Tex {
    let mut out = String::with_capacity(text.len() + 8);
    let mut last = ' ';
    for c in visible(text).chars() {
        match c {
            '\\' => out.push_str("\\textbackslash{}"),
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                out.push('\\');
                out.push(c);
            }
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '|' => out.push_str("\\textbar{}"),
            '"' => out.push_str("{\\ttfamily\\char34}"),
            '`' => out.push_str("\\textasciigrave{}"),
            // Two of these in a row would become one other glyph.
            '-' | '\'' | ',' if last == c => {
                out.push_str("{}");
                out.push(c);
            }
            // At the head of a cell or line `[` would be an optional argument.
            '[' => out.push_str("{[}"),
            ']' => out.push_str("{]}"),
            ' '..='~' => out.push(c),
            _ => match beyond_ascii(c) {
                Some(tex) => out.push_str(tex),
                None => out.push_str(&format!("{{[}}U+{:04X}{{]}}", c as u32)),
            },
        }
        last = c;
    }
    Tex(out)
}

/// Characters that every LaTeX can set.
fn beyond_ascii(c: char) -> Option<&'static str> {
    Some(match c {
        '\u{a0}' => "~",
        '±' => "$\\pm$",
        '×' => "$\\times$",
        '·' => "$\\cdot$",
        '÷' => "$\\div$",
        '−' => "$-$",
        '–' => "--",
        '—' => "---",
        '‘' => "`",
        '’' => "'",
        '“' => "``",
        '”' => "''",
        '…' => "\\dots{}",
        '°' => "$^{\\circ}$",
        '²' => "$^{2}$",
        '³' => "$^{3}$",
        '†' => "$\\dagger$",
        '‡' => "$\\ddagger$",
        '≤' => "$\\leq$",
        '≥' => "$\\geq$",
        '≠' => "$\\neq$",
        '≈' => "$\\approx$",
        '→' => "$\\to$",
        '←' => "$\\leftarrow$",
        '↑' => "$\\uparrow$",
        '↓' => "$\\downarrow$",
        '∞' => "$\\infty$",
        '√' => "$\\surd$",
        'Δ' | '∆' => "$\\Delta$",
        'Σ' => "$\\Sigma$",
        'Ω' => "$\\Omega$",
        'Φ' => "$\\Phi$",
        'Γ' => "$\\Gamma$",
        'Λ' => "$\\Lambda$",
        'Θ' => "$\\Theta$",
        'Π' => "$\\Pi$",
        'Ψ' => "$\\Psi$",
        'α' => "$\\alpha$",
        'β' => "$\\beta$",
        'γ' => "$\\gamma$",
        'δ' => "$\\delta$",
        'ε' => "$\\varepsilon$",
        'η' => "$\\eta$",
        'θ' => "$\\theta$",
        'κ' => "$\\kappa$",
        'λ' => "$\\lambda$",
        'μ' | 'µ' => "$\\mu$",
        'π' => "$\\pi$",
        'ρ' => "$\\rho$",
        'σ' => "$\\sigma$",
        'τ' => "$\\tau$",
        'φ' => "$\\varphi$",
        'χ' => "$\\chi$",
        'ψ' => "$\\psi$",
        'ω' => "$\\omega$",
        '§' => "\\S{}",
        '¶' => "\\P{}",
        '©' => "\\copyright{}",
        'ß' => "\\ss{}",
        'æ' => "\\ae{}",
        'Æ' => "\\AE{}",
        'œ' => "\\oe{}",
        'Œ' => "\\OE{}",
        'ø' => "\\o{}",
        'Ø' => "\\O{}",
        'å' => "\\aa{}",
        'Å' => "\\AA{}",
        'ł' => "\\l{}",
        'Ł' => "\\L{}",
        'à' => "\\`a",
        'á' => "\\'a",
        'â' => "\\^a",
        'ã' => "\\~a",
        'ä' => "\\\"a",
        'À' => "\\`A",
        'Á' => "\\'A",
        'Â' => "\\^A",
        'Ã' => "\\~A",
        'Ä' => "\\\"A",
        'ç' => "\\c{c}",
        'Ç' => "\\c{C}",
        'è' => "\\`e",
        'é' => "\\'e",
        'ê' => "\\^e",
        'ë' => "\\\"e",
        'È' => "\\`E",
        'É' => "\\'E",
        'Ê' => "\\^E",
        'Ë' => "\\\"E",
        'ì' => "\\`{\\i}",
        'í' => "\\'{\\i}",
        'î' => "\\^{\\i}",
        'ï' => "\\\"{\\i}",
        'Í' => "\\'I",
        'Ï' => "\\\"I",
        'ñ' => "\\~n",
        'Ñ' => "\\~N",
        'ò' => "\\`o",
        'ó' => "\\'o",
        'ô' => "\\^o",
        'õ' => "\\~o",
        'ö' => "\\\"o",
        'Ó' => "\\'O",
        'Ô' => "\\^O",
        'Ö' => "\\\"O",
        'ù' => "\\`u",
        'ú' => "\\'u",
        'û' => "\\^u",
        'ü' => "\\\"u",
        'Ú' => "\\'U",
        'Ü' => "\\\"U",
        'ý' => "\\'y",
        'ÿ' => "\\\"y",
        'č' => "\\v{c}",
        'š' => "\\v{s}",
        'ž' => "\\v{z}",
        'ř' => "\\v{r}",
        'ě' => "\\v{e}",
        'Č' => "\\v{C}",
        'Š' => "\\v{S}",
        'Ž' => "\\v{Z}",
        'ć' => "\\'c",
        'ń' => "\\'n",
        'ś' => "\\'s",
        'ő' => "\\H{o}",
        'ű' => "\\H{u}",
        'ğ' => "\\u{g}",
        _ => return None,
    })
}

/// Text inside a cell of a Markdown table, literal in CommonMark and in the GitHub dialect.
pub(super) fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in visible(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '{' | '}' | '|' | '~' | '$' | '#' | '!' | '@' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    // `https://` and `www.` would become links by themselves.
    out.replace("://", "\\://").replace("www.", "www\\.")
}

/// Text of an HTML or XML element, or of an attribute in quotes.
pub(in crate::report) fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in visible(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A CSV field (RFC 4180). A text that a spreadsheet would take for a formula gets an apostrophe before it.
pub(in crate::report) fn csv_text(text: &str) -> String {
    let text = visible(text);
    let guarded = match text.trim_start().chars().next() {
        Some('=' | '+' | '-' | '@' | '＝' | '＋' | '－' | '＠') => format!("'{text}"),
        _ => text,
    };
    csv_field(&guarded)
}

/// A CSV field whose text is ours: digits and signs.
pub(super) fn csv_field(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r', ';']) || text.starts_with(' ') || text.ends_with(' ') {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
