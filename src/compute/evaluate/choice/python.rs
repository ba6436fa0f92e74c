//! Text as Python sees it: results must be those of evaluation code that was written there.

/// Whether `str.isspace` holds: Unicode's white space, and the four separators of ASCII.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.rstrip()`.
pub fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `len(str)`: code points.
pub fn len(text: &str) -> usize {
    text.chars().count()
}

/// `str.capitalize()`: the first character in title case, all others in lower case.
pub fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    // A sigma is final or not by what stands before it, so the whole text is lowered at once.
    let lower = text.to_lowercase();
    let skipped = first.to_lowercase().count();
    let rest = lower.chars().skip(skipped);
    title(first).chars().chain(rest).collect()
}

/// `len(re.split(r"\s+", text))`: white space at an end splits off an empty word, which counts.
pub fn words(text: &str) -> usize {
    let mut runs = 0;
    let mut inside = false;
    for c in text.chars() {
        let space = is_space(c);
        runs += usize::from(space && !inside);
        inside = space;
    }
    runs + 1
}

/// `re.sub(r"\[.*?\]", "", text)`: bracketed parts that hold no line break are taken out.
pub fn without_brackets(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        let line = rest[open..].find('\n').unwrap_or(rest.len() - open);
        match rest[open..open + line].find(']') {
            Some(close) => {
                kept.push_str(&rest[..open]);
                rest = &rest[open + close + 1..];
            }
            None => {
                kept.push_str(&rest[..=open]);
                rest = &rest[open + 1..];
            }
        }
    }
    kept.push_str(rest);
    kept
}

/// Title case of a character, where that is not its upper case: digraphs, and letters that come apart.
fn title(c: char) -> String {
    let mapped = match c {
        '\u{1c4}'..='\u{1c6}' => "\u{1c5}",
        '\u{1c7}'..='\u{1c9}' => "\u{1c8}",
        '\u{1ca}'..='\u{1cc}' => "\u{1cb}",
        '\u{1f1}'..='\u{1f3}' => "\u{1f2}",
        // Georgian letters have capitals that no title begins with.
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => return c.to_string(),
        // Iota subscript: the capital with the iota beside it.
        '\u{1f80}'..='\u{1f87}' | '\u{1f90}'..='\u{1f97}' | '\u{1fa0}'..='\u{1fa7}' => {
            return char::from_u32(c as u32 + 8).unwrap_or(c).to_string();
        }
        '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}' => return c.to_string(),
        '\u{1fb3}' | '\u{1fbc}' => "\u{1fbc}",
        '\u{1fc3}' | '\u{1fcc}' => "\u{1fcc}",
        '\u{1ff3}' | '\u{1ffc}' => "\u{1ffc}",
        '\u{1fb2}' => "\u{1fba}\u{345}",
        '\u{1fb4}' => "\u{386}\u{345}",
        '\u{1fb7}' => "\u{391}\u{342}\u{345}",
        '\u{1fc2}' => "\u{1fca}\u{345}",
        '\u{1fc4}' => "\u{389}\u{345}",
        '\u{1fc7}' => "\u{397}\u{342}\u{345}",
        '\u{1ff2}' => "\u{1ffa}\u{345}",
        '\u{1ff4}' => "\u{38f}\u{345}",
        '\u{1ff7}' => "\u{3a9}\u{342}\u{345}",
        _ => return title_of_upper(c),
    };
    mapped.to_owned()
}

/// A letter that becomes several capitals (`ß`, `ﬁ`, `և`) keeps only the first.
fn title_of_upper(c: char) -> String {
    let mut upper = c.to_uppercase();
    let first = upper.next().into_iter();
    let rest: String = upper.collect();
    // `ŉ` is an apostrophe and a capital.
    if c == '\u{149}' { first.chain(rest.chars()).collect() } else { first.collect::<String>() + &rest.to_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_python_does_it() {
        assert_eq!(strip("\u{1f}\u{a0} a b \u{2003}\n"), "a b");
        assert_eq!(rstrip(" a \u{85}"), " a");
        for (text, expected) in [
            ("", ""),
            ("john SMITH Runs", "John smith runs"),
            ("élan VITAL", "Élan vital"),
            ("ßa", "Ssa"),
            ("ﬁx", "Fix"),
            ("ǆep", "ǅep"),
            ("ᾳβΓ", "ᾼβγ"),
            ("ŉOrm", "ʼNorm"),
            ("ΟΔΟΣ ΣΟΦΟΣ", "Οδος σοφος"),
            ("İSTANBUL", "İstanbul"),
            ("4 BOATS", "4 boats"),
            ("ქართული", "ქართული"),
        ] {
            assert_eq!(capitalize(text), expected, "{text}");
        }
        for (text, expected) in [("", 1), ("a", 1), ("a  b", 2), (" a b\n", 4), ("\u{1c}a", 2)] {
            assert_eq!(words(text), expected, "{text:?}");
        }
        for (text, expected) in [
            ("a [title] b", "a  b"),
            ("[header] x [[y] z]", " x  z]"),
            ("a [b\nc] d [e]", "a [b\nc] d "),
            ("[[a", "[[a"),
            ("é[ü]ß]", "éß]"),
        ] {
            assert_eq!(without_brackets(text), expected, "{text:?}");
        }
    }
}
