//! Where a text ends by what it says: at the first of some strings, which may begin and end within tokens.

use super::Decode;
use crate::compute::Result;

/// Looks for stop strings in one text as it grows.
#[derive(Debug, Clone)]
pub struct Stops {
    strings: Vec<String>,
}

impl Stops {
    /// For these strings; an empty one stops nothing.
    pub fn new(strings: &[String]) -> Self {
        Self { strings: strings.to_vec() }
    }

    /// Whether the text of `ids` holds a stop string. A character that is not complete yet is no match.
    ///
    /// # Errors
    /// The tokenizer refuses the ids.
    pub fn is_reached(&self, ids: &[u32], decode: &Decode<'_>) -> Result<bool> {
        if self.strings.iter().all(String::is_empty) {
            return Ok(false);
        }
        // The whole text: what an id means may depend on those before it.
        Ok(self.first(&decode(ids)?).is_some())
    }

    /// The text before the stop string that begins first, and which one that is: of several at one place the first of the list.
    pub fn cut(&self, mut text: String) -> (String, Option<usize>) {
        let Some((at, which)) = self.first(&text) else { return (text, None) };
        text.truncate(at);
        (text, Some(which))
    }

    fn first(&self, text: &str) -> Option<(usize, usize)> {
        let places = self.strings.iter().enumerate().filter(|(_, s)| !s.is_empty());
        places.filter_map(|(which, s)| Some((text.find(s.as_str())?, which))).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(strings: &[&str]) -> Stops {
        Stops::new(&strings.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_first_string_cuts() {
        let cut = |strings: &[&str], text: &str| stops(strings).cut(text.to_owned());
        assert_eq!(cut(&["\n\n", "Q:"], "a Q: b\n\nc"), ("a ".into(), Some(1)));
        assert_eq!(cut(&["Q: x", "Q:"], "Q: x"), (String::new(), Some(0)));
        assert_eq!(cut(&["Q:", "Q: x"], "Q: x"), (String::new(), Some(0)));
        assert_eq!(cut(&["###END###"], "a ###END##"), ("a ###END##".into(), None));
        assert_eq!(cut(&["", "ü"], "müde"), ("m".into(), Some(1)));
        assert_eq!(cut(&[], "text"), ("text".into(), None));
    }

    #[test]
    fn strings_are_found_across_tokens_and_in_whole_characters_only() {
        // Ids are bytes: any string lies across tokens, and a character may be half there.
        let decode = |ids: &[u32]| -> Result<String> {
            let bytes: Vec<u8> = ids.iter().map(|&id| id as u8).collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        for (strings, text, tokens) in [
            (&["Q:"][..], "4 apples\nQ: how", 11),
            (&["ü"], "müde", 3),
            (&["User:", "\n\n"], "yes.\n\nUser:", 6),
            (&["#"], "none", usize::MAX),
            (&[""], "none", usize::MAX),
        ] {
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            let reached = (1..=ids.len()).find(|&n| stops(strings).is_reached(&ids[..n], &decode).unwrap());
            assert_eq!(reached.unwrap_or(usize::MAX), tokens, "{text}");
        }
    }
}
