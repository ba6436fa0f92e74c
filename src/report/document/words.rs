//! Numbers as a document prints them, and the words that follow from them.

use crate::report::render::markdown_text;
use crate::report::table::number::fixed;

/// A number, or `n/a`.
pub(super) fn plain(x: Option<f64>, digits: u8) -> String {
    x.map_or_else(|| "n/a".to_owned(), |x| fixed(x, digits))
}

/// With its sign, zero too.
pub(super) fn signed(x: Option<f64>, digits: u8) -> String {
    match x {
        None => "n/a".to_owned(),
        Some(x) => {
            let text = fixed(x, digits);
            if text.starts_with('-') { text } else { format!("+{text}") }
        }
    }
}

/// A difference of parts of one, in points of a hundred.
pub(super) fn points(x: Option<f64>, digits: u8) -> String {
    signed(x.map(|x| 100.0 * x), digits)
}

/// A ratio, as `0.5120x`.
pub(super) fn times(x: Option<f64>, digits: u8) -> String {
    x.map_or_else(|| "n/a".to_owned(), |x| format!("{}x", fixed(x, digits)))
}

/// Text as code, where it can stand there as it is; else escaped.
pub(super) fn code(text: &str) -> String {
    let plain = !text.is_empty() && text.chars().all(|c| c == ' ' || c.is_ascii_graphic() && c != '`');
    if plain && text.trim() == text { format!("`{text}`") } else { markdown_text(text) }
}

/// Text of a study; what stands between two backquotes is code.
pub(super) fn prose(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    if parts.len() % 2 == 0 {
        return markdown_text(text);
    }
    let shown = |(i, part): (usize, &&str)| if i % 2 == 0 { markdown_text(part) } else { code(part) };
    parts.iter().enumerate().map(shown).collect()
}

/// The name of a task: an underscore inside a word means nothing in Markdown and stays as it is.
pub(super) fn name(text: &str) -> String {
    let word = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric());
    if text.split('_').all(word) { text.to_owned() } else { markdown_text(text) }
}

/// What a difference is called.
pub(super) fn change(delta: f64) -> &'static str {
    if delta < 0.0 {
        "damage"
    } else if delta > 0.0 {
        "gain"
    } else {
        "change"
    }
}

/// How much a drop to this part of what was there is.
pub(super) fn degree(delta: f64, retention: Option<f64>) -> &'static str {
    match retention {
        _ if delta >= 0.0 => "Not at all",
        Some(r) if r < 0.6 => "A lot",
        Some(r) if r < 0.9 => "Noticeably",
        Some(_) => "A little",
        None => "It does",
    }
}

/// What happened to a number.
pub(super) fn moves(delta: f64) -> &'static str {
    if delta < 0.0 {
        "drops"
    } else if delta > 0.0 {
        "rises"
    } else {
        "stays"
    }
}

/// Between these the rest is called half.
pub(super) const NEAR_HALF: std::ops::RangeInclusive<f64> = 0.45..=0.55;

/// From this part on a regression is called small.
pub(super) const SMALL_REGRESSION: f64 = 0.95;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_the_numbers() {
        assert_eq!((degree(-0.3, Some(0.51)), moves(-0.3), change(-0.3)), ("A lot", "drops", "damage"));
        assert_eq!(degree(-0.1, Some(0.85)), "Noticeably");
        assert_eq!(degree(-0.01, Some(0.99)), "A little");
        assert_eq!((degree(0.0, Some(1.0)), moves(0.0), change(0.0)), ("Not at all", "stays", "change"));
        assert_eq!((degree(0.1, Some(1.1)), moves(0.1), change(0.1)), ("Not at all", "rises", "gain"));
    }

    #[test]
    fn signs_are_always_printed() {
        assert_eq!(signed(Some(0.082), 6), "+0.082000");
        assert_eq!(signed(Some(0.0), 6), "+0.000000");
        assert_eq!(signed(Some(-1e-9), 6), "+0.000000");
        assert_eq!((points(Some(0.052_800_727_8), 2), points(Some(-0.339_159), 1)), ("+5.28".into(), "-33.9".into()));
        assert_eq!((times(Some(0.588_008_7), 4), times(None, 4)), ("0.5880x".to_owned(), "n/a".to_owned()));
        assert_eq!(times(Some(0.512_04), 3), "0.512x");
    }

    #[test]
    fn only_what_is_harmless_stays_as_it_is() {
        assert_eq!((code("a_b/c-1.0"), code("a`b"), code("")), ("`a_b/c-1.0`".into(), "a\\`b".into(), String::new()));
        assert_eq!((prose("a `b_c` [d]"), prose("a ` b")), ("a `b_c` \\[d\\]".into(), "a \\` b".to_owned()));
        assert_eq!((code("é"), code(" a")), ("é".to_owned(), " a".to_owned()));
        assert_eq!(
            (name("arc_challenge"), name("_a"), name("a__b")),
            ("arc_challenge".into(), "\\_a".into(), "a\\_\\_b".into())
        );
    }
}
