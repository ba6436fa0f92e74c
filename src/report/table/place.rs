//! Which expected cells a place of a table, a figure or a document speaks of: those of one arm of one study, one a seed.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::CellKey;

/// Cells of a stage: all of them, those of an arm, or those whose arm has some labels.
#[derive(Debug, Clone, Copy)]
pub struct Meant<'a> {
    /// The stage.
    pub stage: &'a str,
    /// The arm.
    pub arm: Option<&'a str>,
    /// Labels that an arm must have.
    pub labels: &'a BTreeMap<String, String>,
}

impl Meant<'_> {
    /// Whether a cell, whose arm has `labels`, is meant.
    pub fn fits(&self, key: &CellKey, labels: &BTreeMap<String, String>) -> bool {
        key.stage.as_str() == self.stage
            && self.arm.is_none_or(|arm| key.arm.as_ref().is_some_and(|a| a.as_str() == arm))
            && has_labels(labels, self.labels)
    }
}

/// Whether an arm's labels are those that are asked for.
pub(super) fn has_labels(labels: &BTreeMap<String, String>, asked: &BTreeMap<String, String>) -> bool {
    asked.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// Two cells that cannot stand for one place, by their index: of two studies or arms, whatever their seeds are, or of one
/// seed. Pooled they would be a number about nothing.
pub fn two_for_one<'a>(cells: impl IntoIterator<Item = &'a CellKey>) -> Option<(usize, usize)> {
    let cells: Vec<&CellKey> = cells.into_iter().collect();
    let whose = |key: &'a CellKey| (&key.study, &key.arm);
    if let Some(other) = cells.iter().position(|key| whose(key) != whose(cells[0])) {
        return Some((0, other));
    }
    let mut seen = BTreeSet::new();
    let again = cells.iter().position(|key| !seen.insert(key.seed))?;
    Some((cells.iter().position(|key| key.seed == cells[again].seed)?, again))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Name;

    fn key(study: &str, arm: Option<&str>, seed: Option<u32>) -> CellKey {
        let name = |text: &str| Name::new(text).unwrap();
        CellKey { study: name(study), profile: name("p"), stage: name("train"), arm: arm.map(name), seed }
    }

    #[test]
    fn one_place_has_one_arm_of_one_study_and_a_seed_once() {
        let a = |seed| key("s", Some("a"), Some(seed));
        let none: [CellKey; 0] = [];
        assert_eq!(two_for_one(&none), None);
        assert_eq!(two_for_one(&[a(1), a(2), a(3)]), None);
        assert_eq!(two_for_one(&[key("s", None, None)]), None);
        assert_eq!(two_for_one(&[a(1), a(2), key("s", Some("b"), Some(3))]), Some((0, 2)));
        assert_eq!(two_for_one(&[a(1), key("t", Some("a"), Some(3))]), Some((0, 1)));
        assert_eq!(two_for_one(&[a(1), key("s", None, None)]), Some((0, 1)));
        assert_eq!(two_for_one(&[a(1), a(2), a(2)]), Some((1, 2)));
    }

    #[test]
    fn what_is_meant() {
        let labels = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let (of_arm, none) = (labels(&[("size", "small"), ("lr", "1e-3")]), labels(&[]));
        let cell = key("s", Some("a"), Some(1));
        let fits =
            |stage, arm, asked: &[(&str, &str)]| Meant { stage, arm, labels: &labels(asked) }.fits(&cell, &of_arm);
        assert!(fits("train", None, &[]) && fits("train", Some("a"), &[("size", "small")]));
        assert!(!fits("eval", None, &[]) && !fits("train", Some("b"), &[]));
        assert!(!fits("train", None, &[("size", "large")]) && !fits("train", None, &[("width", "1")]));
        assert!(!Meant { stage: "train", arm: Some("a"), labels: &none }.fits(&key("s", None, Some(1)), &none));
    }
}
