//! `PAPER.tex.seedbed.json`: what was filled into a paper, from which keys and runs. The page is
//! `docs/formats/paper.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::spec::StudyRef;
use crate::record::Digest;

/// Format version of the record.
pub const PAPER_VERSION: u32 = 1;

/// What was filled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaperRecord {
    /// [`PAPER_VERSION`].
    pub version: u32,
    /// The studies, relative to the paper.
    pub studies: Vec<StudyRef>,
    /// Generated files.
    pub files: Vec<Written>,
    /// What was filled in the paper's own files.
    pub places: Vec<Place>,
    /// What each key printed, and from which runs.
    pub keys: BTreeMap<String, KeyRecord>,
}

/// A generated file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// Its name, relative to the paper.
    pub file: String,
    /// The table in it; none for the file of values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Digest of what was written.
    pub digest: Digest,
}

/// What a place is in the paper.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum Where {
    /// A cell of a table.
    Cell {
        /// The table's label.
        label: String,
        /// Which tabular of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tabular: Option<usize>,
        /// Text of the row's first cell.
        row: String,
        /// Text of its second cell, where it takes both.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        second: Option<String>,
        /// Column, from 1.
        column: usize,
    },
    /// The note below a table.
    Note {
        /// The table's label.
        label: String,
        /// Which tabular of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tabular: Option<usize>,
    },
    /// A sentence that came in the place of red text.
    Passage {
        /// How the red text began.
        starts: String,
    },
}

/// A place that was filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Which.
    pub place: Where,
    /// The file, relative to the paper.
    pub file: String,
    /// What was filled in, with its keys.
    pub template: String,
    /// Its numbers.
    pub numbers: Vec<Number>,
}

/// A number of a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Number {
    /// Which of its place, from 1.
    pub occurrence: usize,
    /// Its key.
    pub key: String,
    /// What was printed.
    pub printed: String,
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// What it printed.
    pub printed: String,
    /// The runs behind it, with what they found.
    pub runs: BTreeMap<String, Digest>,
}

impl PaperRecord {
    /// Of a paper that nothing was filled into.
    pub fn empty() -> Self {
        Self {
            version: PAPER_VERSION,
            studies: Vec::new(),
            files: Vec::new(),
            places: Vec::new(),
            keys: BTreeMap::new(),
        }
    }

    /// What was filled at a place.
    pub fn place(&self, place: &Where) -> Option<&Place> {
        self.places.iter().find(|p| p.place == *place)
    }

    /// Runs behind a key that found something else by now, are new, or are not there any more.
    pub fn changed_runs(&self, key: &str, now: &BTreeMap<String, Digest>) -> Vec<String> {
        let Some(recorded) = self.keys.get(key) else { return Vec::new() };
        let mut changed: Vec<String> = recorded
            .runs
            .iter()
            .filter_map(|(run, then)| match now.get(run) {
                Some(now) if then == now => None,
                Some(_) => Some(run.clone()),
                None => Some(format!("{run} (not there)")),
            })
            .collect();
        changed.extend(now.keys().filter(|run| !recorded.runs.contains_key(*run)).map(|run| format!("{run} (new)")));
        changed
    }
}
