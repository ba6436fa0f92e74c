//! Texts that a model generated (docs/formats/generations.md): a JSON line for each item, which later scoring and
//! comparison read.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{RecordError, Result, files};

/// Format version of a line.
pub const GENERATION_VERSION: u32 = 1;

/// The directory of a run that holds them.
pub const GENERATIONS_DIR: &str = "generations";

/// What was generated for one item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Format version.
    pub version: u32,
    /// Number of the item in its file, from 0.
    pub index: u64,
    /// What the model read, shots included.
    pub prompt: String,
    /// What it said, cut before the stop string.
    pub text: String,
    /// The answer in that text; absent if there is none: the item is invalid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The field with the right answer, where items have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold_text: Option<String>,
    /// The right answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<String>,
    /// Whether the answer is the right one; absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_match: Option<bool>,
    /// Why the text ended: `end`, `stop`, `length`, `context`.
    pub finish: String,
    /// The stop string that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens generated, those of the stop string among them.
    pub tokens: u64,
    /// Group of the item, where the task names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Fields of the item that the task keeps.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub item: Map<String, Value>,
}

/// Where the lines of a model lie, in the run directory `dir`.
pub fn path(dir: &Path, model: &str) -> PathBuf {
    dir.join(GENERATIONS_DIR).join(format!("{model}.jsonl"))
}

/// Writes the lines of a model, all or none.
///
/// # Errors
/// The disk is full, or the directory cannot be written.
pub fn write(path: &Path, lines: &[Line]) -> Result<()> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)
            .map_err(|e| RecordError::Value(format!("a generated text cannot be stored ({e}): report this")))?;
        text.push(b'\n');
    }
    files::write_atomic(path, &text)
}

/// Reads them.
///
/// # Errors
/// The file cannot be read, is damaged, or has a newer version.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    files::read_versioned_lines(path, GENERATION_VERSION)
}
