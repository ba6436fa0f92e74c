//! Whether ids are still the same after they were decoded and encoded again: only then somebody can type the attack.
//!
//! Ids that no text encodes to (two halves of a word that has an id of its own, parts of a character) make an attack look
//! stronger than anyone could make it. Special ids are not text: what stands between them is looked at piece by piece.

use super::Text;
use crate::compute::Result;
use crate::compute::data::{Special, TextTokenizer};

/// The question, of a tokenizer; or nobody asks, and everything survives.
#[derive(Clone, Copy)]
pub struct Survival<'a> {
    tokenizer: Option<(&'a TextTokenizer, &'a [u32])>,
}

impl std::fmt::Debug for Survival<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.tokenizer.is_some() { "Survival::asked" } else { "Survival::not_asked" })
    }
}

impl<'a> Survival<'a> {
    /// By this tokenizer, whose special ids are given, sorted.
    pub fn asked(tokenizer: &'a TextTokenizer, special: &'a [u32]) -> Self {
        Self { tokenizer: Some((tokenizer, special)) }
    }

    /// Everything survives.
    pub fn not_asked() -> Self {
        Self { tokenizer: None }
    }

    /// Whether anybody asks.
    pub fn is_asked(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// Whether these ids come back.
    ///
    /// # Errors
    /// The tokenizer refuses what it decoded itself.
    pub fn holds(&self, ids: &[i64]) -> Result<bool> {
        let Some((tokenizer, special)) = self.tokenizer else { return Ok(true) };
        // Ids come from a vocabulary, which is far below 2^32.
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        for piece in ids.split(|id| special.binary_search(id).is_ok()).filter(|p| !p.is_empty()) {
            if tokenizer.encode(&tokenizer.decode(piece)?, Special::None)? != piece {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The question for flips of one text.
    pub fn of_flips(self, text: &'a Text) -> FlipSurvival<'a> {
        FlipSurvival { survival: self, text, unflipped: None }
    }

    /// Those of `ids` that come back alone.
    ///
    /// # Errors
    /// As [`Self::holds`].
    pub fn alone(&self, ids: Vec<i64>) -> Result<Vec<i64>> {
        let mut kept = Vec::with_capacity(ids.len());
        for id in ids {
            if self.holds(&[id])? {
                kept.push(id);
            }
        }
        Ok(kept)
    }
}

/// The question for flips of one text. Whether the text comes back without a flip is found out once, when it is needed.
#[derive(Debug, Clone)]
pub struct FlipSurvival<'a> {
    survival: Survival<'a>,
    text: &'a Text,
    unflipped: Option<bool>,
}

impl FlipSurvival<'_> {
    /// Whether `now`, the text with flips, the newest at `position`, comes back. A text that was cut out of a longer one
    /// may not come back even without a flip; then the id and its two neighbours must.
    ///
    /// # Errors
    /// As [`Survival::holds`].
    pub fn holds(&mut self, now: &[i64], position: usize) -> Result<bool> {
        if !self.survival.is_asked() || self.survival.holds(now)? {
            return Ok(true);
        }
        let unflipped = match self.unflipped {
            Some(known) => known,
            None => *self.unflipped.insert(self.survival.holds(&self.text.ids)?),
        };
        if unflipped {
            return Ok(false);
        }
        self.survival.holds(&now[position.saturating_sub(1)..(position + 2).min(now.len())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 3] = [
        "the river runs under the old bridge and the river runs on",
        "an old bridge over the river, and 42 boats below",
        "boats run under bridges; bridges run over boats",
    ];

    #[test]
    fn what_comes_back_is_what_somebody_can_type() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = TextTokenizer::train(dir.path(), 300, TEXTS).unwrap();
        let special = tokenizer.special_ids();
        let survival = Survival::asked(&tokenizer, &special);
        let ids: Vec<i64> = tokenizer.encode(TEXTS[0], Special::None).unwrap().into_iter().map(i64::from).collect();
        assert!(survival.holds(&ids).unwrap());
        // Between special ids, too, wherever they stand.
        let with_ends: Vec<i64> = [&[0][..], &ids, &[0, 0], &ids, &[1]].concat();
        assert!(survival.holds(&with_ends).unwrap());
        // A word letter by letter is another word to the tokenizer; half of a character is none.
        let letter = |c: &str| i64::from(tokenizer.encode(c, Special::None).unwrap()[0]);
        let spelled: Vec<i64> = " river".split("").filter(|c| !c.is_empty()).map(letter).collect();
        assert_eq!(spelled.len(), 6);
        assert!(!survival.holds(&spelled).unwrap(), "`river` was seen often enough for longer ids");
        let half = i64::from(tokenizer.encode("\u{e9}", Special::None).unwrap()[0]);
        assert_eq!(survival.alone(vec![letter("t"), half]).unwrap(), [letter("t")]);
        assert_eq!(Survival::not_asked().alone(vec![half]).unwrap(), [half]);
    }

    #[test]
    fn a_text_that_was_cut_is_judged_around_the_flip() {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = TextTokenizer::train(dir.path(), 300, TEXTS).unwrap();
        let special = tokenizer.special_ids();
        let survival = Survival::asked(&tokenizer, &special);
        let id = |c: &str| i64::from(tokenizer.encode(c, Special::None).unwrap()[0]);
        let half = id("\u{e9}");
        // It begins with half of a character, so it never comes back as a whole.
        let text = Text { id: 0, ids: vec![half, id(","), id("4"), id(";"), id("2")] };
        assert!(!survival.holds(&text.ids).unwrap());
        let mut flips = survival.of_flips(&text);
        let mut flipped = |position: usize, to: i64| {
            let mut now = text.ids.clone();
            now[position] = to;
            flips.holds(&now, position).unwrap()
        };
        assert!(flipped(3, id("!")));
        assert!(!flipped(3, half));
        assert!(!flipped(1, id("!")), "its neighbour is half of a character");
    }
}
