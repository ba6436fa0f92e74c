//! What a generated text answers, and how answers compare: extraction by a pattern, one form, and counts over items.

use std::collections::BTreeMap;

use regex::Regex;
use serde::Deserialize;

/// Which match of a pattern is the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Take {
    /// The first.
    #[default]
    First,
    /// The last.
    Last,
}

/// The form in which answers compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// As they stand, without white space at their ends.
    #[default]
    Text,
    /// Without commas, else as they stand: how the bridge study has it.
    Commas,
    /// As decimal numbers: `1,234.50`, `$1234.5` and `+1234.5.` are one answer. What is no number is none.
    Number,
}

impl Form {
    /// An answer in this form; none if it is empty, or has not this form.
    pub fn of(self, found: &str) -> Option<String> {
        let text = found.trim();
        let text = match self {
            Self::Text => text.to_owned(),
            Self::Commas => text.replace(',', "").trim().to_owned(),
            Self::Number => return number(text),
        };
        (!text.is_empty()).then_some(text)
    }
}

/// A decimal number as digits without leading zeros, a point only before a fraction, `-` only before what is not zero.
fn number(text: &str) -> Option<String> {
    let (negative, text) = match text.strip_prefix(['-', '\u{2212}']) {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let text = text.trim_start_matches('$').trim_end_matches('%').replace(',', "");
    // A sentence may end with the number.
    let text = text.strip_suffix('.').unwrap_or(&text);
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() && part.is_empty() || !digits(whole) || !digits(part) {
        return None;
    }
    let (whole, part) = (whole.trim_start_matches('0'), part.trim_end_matches('0'));
    let sign = if negative && !(whole.is_empty() && part.is_empty()) { "-" } else { "" };
    let whole = if whole.is_empty() { "0" } else { whole };
    Some(if part.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") })
}

/// How an answer is taken out of a text.
#[derive(Debug, Clone)]
pub struct Extraction {
    /// Its first group, or all of it, is the answer; absent: the whole text.
    pub pattern: Option<Regex>,
    /// Which match.
    pub take: Take,
    /// Its form.
    pub form: Form,
}

impl Extraction {
    /// The answer of a text; none if there is none.
    pub fn of(&self, text: &str) -> Option<String> {
        let Some(pattern) = &self.pattern else { return self.form.of(text) };
        let mut matches = pattern.captures_iter(text);
        let found = match self.take {
            Take::First => matches.next(),
            Take::Last => matches.last(),
        }?;
        self.form.of(found.get(1).or_else(|| found.get(0))?.as_str())
    }
}

/// Counts over items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Items.
    pub total: u64,
    /// Items whose text has no answer.
    pub invalid: u64,
    /// Items with a right answer that is known.
    pub with_gold: u64,
    /// Those of them that were answered with it.
    pub gold_matches: u64,
    answers: BTreeMap<String, u64>,
    golds: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts an item: what was answered, and what is right.
    pub fn add(&mut self, answer: Option<&str>, gold: Option<&str>) {
        self.total += 1;
        match answer {
            None => self.invalid += 1,
            Some(answer) => *self.answers.entry(answer.to_owned()).or_default() += 1,
        }
        if let Some(gold) = gold {
            self.with_gold += 1;
            self.gold_matches += u64::from(answer == Some(gold));
            *self.golds.entry(gold.to_owned()).or_default() += 1;
        }
    }

    /// Answers that differ.
    pub fn distinct_answers(&self) -> u64 {
        self.answers.len() as u64
    }

    /// The most frequent answer, the first by its letters among equals, and how often it was given.
    pub fn dominant(&self) -> Option<(&str, u64)> {
        most(&self.answers)
    }

    /// Part of the answers that are the most frequent one: near 1 the model answers everything alike.
    pub fn collapse_share(&self) -> Option<f64> {
        share(self.dominant(), self.total - self.invalid)
    }

    /// The collapse share of the right answers: what the best constant answer would reach.
    pub fn gold_majority_share(&self) -> Option<f64> {
        share(most(&self.golds), self.with_gold)
    }
}

fn most(counts: &BTreeMap<String, u64>) -> Option<(&str, u64)> {
    // The first of the largest: `max_by_key` would take the last.
    counts.iter().rev().max_by_key(|(_, n)| **n).map(|(answer, n)| (answer.as_str(), *n))
}

fn share(most: Option<(&str, u64)>, of: u64) -> Option<f64> {
    most.map(|(_, n)| n as f64 / of as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for (text, expected) in [
            ("1,234", Some("1234")),
            ("1234.", Some("1234")),
            ("$1,234.50", Some("1234.5")),
            ("+007", Some("7")),
            ("-0.00", Some("0")),
            ("\u{2212}3", Some("-3")),
            (".5", Some("0.5")),
            ("50%", Some("50")),
            ("-12.30", Some("-12.3")),
            ("", None),
            (".", None),
            ("-", None),
            ("1.2.3", None),
            ("4 apples", None),
            ("1e5", None),
        ] {
            assert_eq!(Form::Number.of(text).as_deref(), expected, "{text:?}");
        }
        assert_eq!(Form::Commas.of(" 1,234.0 ").as_deref(), Some("1234.0"));
        assert_eq!((Form::Commas.of(","), Form::Text.of(" \n")), (None, None));
        assert_eq!(Form::Text.of(" a, b ").as_deref(), Some("a, b"));
    }

    #[test]
    fn answers_are_taken_by_the_pattern_and_by_nothing_else() {
        let of = |pattern: Option<&str>, take, form, text: &str| {
            Extraction { pattern: pattern.map(|p| Regex::new(p).unwrap()), take, form }.of(text)
        };
        let gsm = Some(r"#### (-?[0-9.,]+)");
        let text = "2 + 2 = 4\n#### 1,004\nQ: and?\n#### 7";
        assert_eq!(of(gsm, Take::First, Form::Commas, text).as_deref(), Some("1004"));
        assert_eq!(of(gsm, Take::Last, Form::Commas, text).as_deref(), Some("7"));
        // A number without the mark is no answer: there is no other way to one.
        assert_eq!(of(gsm, Take::First, Form::Commas, "it is 4"), None);
        assert_eq!(of(gsm, Take::First, Form::Number, "#### 4."), Some("4".into()));
        assert_eq!(of(gsm, Take::First, Form::Number, "#### ,"), None);
        assert_eq!(of(Some("yes|no"), Take::First, Form::Text, "well, no, yes").as_deref(), Some("no"));
        assert_eq!(of(None, Take::First, Form::Text, " Paris\n").as_deref(), Some("Paris"));
    }

    #[test]
    fn items_are_counted() {
        let mut tally = Tally::default();
        assert_eq!((tally.collapse_share(), tally.gold_majority_share(), tally.dominant()), (None, None, None));
        for (answer, gold) in [
            (Some("4"), Some("4")),
            (Some("4"), Some("5")),
            (None, Some("4")),
            (Some("7"), None),
            (Some("9"), Some("7")),
        ] {
            tally.add(answer, gold);
        }
        assert_eq!((tally.total, tally.invalid, tally.with_gold, tally.gold_matches), (5, 1, 4, 1));
        assert_eq!((tally.distinct_answers(), tally.dominant()), (3, Some(("4", 2))));
        assert_eq!((tally.collapse_share(), tally.gold_majority_share()), (Some(0.5), Some(0.5)));
        tally.add(Some("7"), None);
        assert_eq!(tally.dominant(), Some(("4", 2)), "the first among equals");
    }
}
