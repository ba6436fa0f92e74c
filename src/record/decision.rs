//! `decision.json`: what a gate was asked, what it found and what it said; and `confirmations.jsonl`, where a
//! person's word stands that a gate may wait for.
//!
//! A decision is sealed when it says pass or stop. One that waits, or could not be made, lies unsealed in the
//! run directory. Its *evidence* is a digest of the question and of what was judged: a confirmation names it, so
//! that it counts for that evidence only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{CellKey, Digest, Fingerprint, RecordError, Result, files};

/// Format version of `decision.json`.
pub const DECISION_VERSION: u32 = 1;

/// Format version of a line of `confirmations.jsonl`.
pub const CONFIRMATION_VERSION: u32 = 1;

/// File name of a decision in its run directory.
pub const DECISION_FILE: &str = "decision.json";

/// Stage kind of a gate.
pub const GATE_KIND: &str = "gate";

/// What a gate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every condition holds.
    Pass,
    /// A condition does not hold.
    Stop,
    /// Every condition holds, and a person has not confirmed it.
    Waiting,
    /// Inputs are missing: there is no verdict.
    Undecided,
}

impl Verdict {
    /// One word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Stop => "stop",
            Self::Waiting => "waiting",
            Self::Undecided => "undecided",
        }
    }
}

/// What a missing seed means to a gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// No verdict until it is there.
    #[default]
    Undecided,
    /// The seed is left out.
    Without,
    /// The gate says stop.
    Stop,
}

/// A condition: a number, truth value or text that a filter makes of the inputs, and its bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Its name.
    pub name: String,
    /// The stage whose cells the filter gets; all inputs if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// The filter.
    pub value: String,
    /// The value is this or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least: Option<f64>,
    /// The value is this or less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<f64>,
    /// The value is more than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// The value is less than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<f64>,
    /// The value is this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<Value>,
}

impl Condition {
    /// The bounds in words: `at most 0.3`.
    pub fn bounds(&self) -> String {
        let numbers = [("at least", self.least), ("at most", self.most), ("above", self.above), ("below", self.below)];
        let mut parts: Vec<String> =
            numbers.iter().filter_map(|(word, bound)| bound.map(|b| format!("{word} {b}"))).collect();
        parts.extend(self.equals.as_ref().map(|value| format!("equal to {}", shown(value))));
        parts.join(" and ")
    }

    /// Whether `found` is within the bounds.
    ///
    /// # Errors
    /// It is not of the bounds' type: what is wrong, as a fragment.
    pub fn admits(&self, found: &Value) -> std::result::Result<bool, String> {
        let numbers = [self.least, self.most, self.above, self.below];
        let mut holds = true;
        if numbers.iter().any(Option::is_some) {
            let Some(x) = found.as_f64().filter(|x| x.is_finite()) else {
                return Err(format!("is {}, which is no number", shown(found)));
            };
            holds &= self.least.is_none_or(|b| x >= b) && self.most.is_none_or(|b| x <= b);
            holds &= self.above.is_none_or(|b| x > b) && self.below.is_none_or(|b| x < b);
        }
        if let Some(wanted) = &self.equals {
            holds &= match (wanted.as_f64(), found.as_f64()) {
                (Some(wanted), Some(found)) => wanted == found,
                _ => wanted == found,
            };
        }
        Ok(holds)
    }
}

/// A value for people; a long one is cut.
pub fn shown(value: &Value) -> String {
    const KEEP: usize = 120;
    let text = value.to_string();
    match text.char_indices().nth(KEEP) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// What a gate was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Its conditions, in the study's order.
    pub conditions: Vec<Condition>,
    /// Complete seeds that there must be, at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_seeds: Option<u32>,
    /// What a missing seed means.
    #[serde(default)]
    pub missing: Missing,
    /// What a person is asked to confirm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
}

/// A needed cell as the gate saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgedInput {
    /// Its local name.
    pub cell: String,
    /// Content digest of its result; absent if it was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Digest>,
    /// Why it was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A condition with what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judged {
    /// The condition.
    pub condition: Condition,
    /// The value; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Value>,
    /// Whether it holds.
    pub holds: bool,
    /// Why it has no value, or not one of the bounds' type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Judged {
    /// What was found, in words: `base_rate is 0.41, not at most 0.3`.
    pub fn in_words(&self) -> String {
        let name = &self.condition.name;
        match (&self.problem, &self.found) {
            (Some(problem), _) => format!("{name} {problem}"),
            (None, Some(found)) if self.holds => format!("{name} is {}, {}", shown(found), self.condition.bounds()),
            (None, Some(found)) => format!("{name} is {}, not {}", shown(found), self.condition.bounds()),
            (None, None) => format!("{name} was not judged"),
        }
    }
}

/// An earlier verdict of the same gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Earlier {
    /// Fingerprint of the gate then.
    pub fingerprint: Fingerprint,
    /// What it said.
    pub verdict: Verdict,
    /// The evidence then.
    pub evidence: Digest,
    /// The conditions then, with what was found.
    pub conditions: Vec<Judged>,
    /// When.
    pub decided_at: DateTime<Utc>,
}

/// A person's word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// [`CONFIRMATION_VERSION`].
    pub version: u32,
    /// The gate's cell, by its local name.
    pub gate: String,
    /// The evidence that was confirmed.
    pub evidence: Digest,
    /// Who.
    pub user: String,
    /// On which host.
    pub host: String,
    /// When.
    pub time: DateTime<Utc>,
    /// What the person says about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// `decision.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// [`DECISION_VERSION`].
    pub version: u32,
    /// The gate's cell.
    pub key: CellKey,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// What it says.
    pub verdict: Verdict,
    /// Why, in words; empty when it passes.
    pub reason: String,
    /// What it was asked.
    pub question: Question,
    /// Every needed cell, sorted.
    pub inputs: Vec<JudgedInput>,
    /// Complete seeds that were judged; absent where no input has a seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeds: Option<u32>,
    /// The conditions with what was found; empty when undecided.
    pub conditions: Vec<Judged>,
    /// Digest of `question` and `inputs`.
    pub evidence: Digest,
    /// The confirmation of this evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmation: Option<Confirmation>,
    /// Earlier verdicts of this gate, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Earlier>,
    /// When it was made.
    pub decided_at: DateTime<Utc>,
    /// Digest of all fields above.
    pub digest: Digest,
}

/// Digest of what is asked and of what is judged. Nothing in it depends on where or when.
pub fn evidence(question: &Question, inputs: &[JudgedInput]) -> Digest {
    // Why a cell is missing is for people; that it is missing counts.
    let inputs: BTreeMap<&str, &Option<Digest>> = inputs.iter().map(|i| (i.cell.as_str(), &i.content)).collect();
    Digest::of_json(&json!({"question": question, "inputs": inputs}))
}

impl Decision {
    fn own_digest(&self) -> Digest {
        // A decision always serializes: strings, finite numbers and maps with string keys.
        let mut value = serde_json::to_value(self).unwrap_or(Value::Null);
        if let Some(map) = value.as_object_mut() {
            map.remove("digest");
        }
        Digest::of_json(&value)
    }

    /// Fills in the digest of itself and writes the decision into `dir`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(mut self, dir: &Path) -> Result<Self> {
        self.digest = self.own_digest();
        files::write_json(&dir.join(DECISION_FILE), &self)?;
        Ok(self)
    }

    /// The decision in `dir`; `None` if there is none.
    ///
    /// # Errors
    /// It is damaged, was edited, or has a newer version.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(DECISION_FILE);
        let decision: Self = match files::read_versioned_json(&path, DECISION_VERSION) {
            Ok(decision) => decision,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e),
        };
        if decision.own_digest() != decision.digest {
            return Err(RecordError::damaged(
                &path,
                "it was edited after it was written: run `run_all` again to judge anew",
            ));
        }
        Ok(Some(decision))
    }

    /// Conditions that the newest verdict under other conditions had otherwise: that verdict, the old condition with
    /// what was found, if there was one, and the new one, if there is one.
    pub fn changed_conditions(&self) -> Vec<(&Earlier, Option<&Judged>, Option<&Condition>)> {
        let now = &self.question.conditions;
        let differs = |e: &&Earlier| !e.conditions.iter().map(|j| &j.condition).eq(now.iter());
        let Some(earlier) = self.earlier.iter().rev().find(differs) else { return Vec::new() };
        let mut changed = Vec::new();
        for old in &earlier.conditions {
            let new = now.iter().find(|c| c.name == old.condition.name);
            if new != Some(&old.condition) {
                changed.push((earlier, Some(old), new));
            }
        }
        let added = now.iter().filter(|c| !earlier.conditions.iter().any(|j| j.condition.name == c.name));
        changed.extend(added.map(|new| (earlier, None, Some(new))));
        changed
    }
}

/// Where the confirmations of a study and profile stand; `base` is its directory of results.
pub fn confirmations_path(base: &Path) -> PathBuf {
    base.join(".seedbed").join("confirmations.jsonl")
}

/// Every confirmation, oldest first.
///
/// # Errors
/// A whole line is damaged, or was written by a newer program.
pub fn confirmations(base: &Path) -> Result<Vec<Confirmation>> {
    files::read_versioned_lines(&confirmations_path(base), CONFIRMATION_VERSION)
}

/// Writes a confirmation; durable when it returns.
///
/// # Errors
/// The file cannot be written.
pub fn confirm(base: &Path, confirmation: &Confirmation) -> Result<()> {
    let line = serde_json::to_string(confirmation).map_err(|e| RecordError::Value(e.to_string()))?;
    files::append_line(&confirmations_path(base), &line)
}

/// The first confirmation of this evidence for this gate.
pub fn confirmation_of<'c>(all: &'c [Confirmation], gate: &str, evidence: &Digest) -> Option<&'c Confirmation> {
    all.iter().find(|c| c.gate == gate && c.evidence == *evidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(bounds: Value) -> Condition {
        let mut all = json!({"name": "x", "value": "."});
        all.as_object_mut().unwrap().extend(bounds.as_object().unwrap().clone());
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn bounds_are_exact_at_their_ends() {
        for (bounds, found, holds) in [
            (json!({"most": 0.3}), json!(0.3), Some(true)),
            (json!({"most": 0.3}), json!(0.300_000_000_000_000_1), Some(false)),
            (json!({"below": 0.3}), json!(0.3), Some(false)),
            (json!({"least": 5}), json!(5), Some(true)),
            (json!({"above": 5}), json!(5), Some(false)),
            (json!({"least": 0, "below": 1}), json!(1), Some(false)),
            (json!({"equals": true}), json!(true), Some(true)),
            (json!({"equals": true}), json!(1), Some(false)),
            (json!({"equals": 1}), json!(1.0), Some(true)),
            (json!({"equals": "ok"}), json!("OK"), Some(false)),
            (json!({"most": 0.3}), Value::Null, None),
            (json!({"most": 0.3}), json!("0.1"), None),
            (json!({"most": 0.3}), json!([0.1]), None),
            (json!({"equals": true}), Value::Null, Some(false)),
        ] {
            assert_eq!(condition(bounds.clone()).admits(&found).ok(), holds, "{bounds} {found}");
        }
        assert_eq!(condition(json!({"least": 0, "below": 1})).bounds(), "at least 0 and below 1");
    }

    #[test]
    fn a_confirmation_counts_for_its_evidence_only() {
        let dir = tempfile::tempdir().unwrap();
        let question = Question {
            conditions: vec![condition(json!({"most": 1}))],
            least_seeds: None,
            missing: Missing::Stop,
            confirm: None,
        };
        let input = |content: &[u8]| JudgedInput {
            cell: "a/seed-1".into(),
            content: Some(Digest::of_bytes(content)),
            missing: None,
        };
        let first = evidence(&question, &[input(b"1")]);
        assert_ne!(first, evidence(&question, &[input(b"2")]));
        let mut other = question.clone();
        other.conditions[0].most = Some(2.0);
        assert_ne!(first, evidence(&other, &[input(b"1")]));
        assert_eq!(confirmations(dir.path()).unwrap(), []);
        let said = Confirmation {
            version: CONFIRMATION_VERSION,
            gate: "gap".into(),
            evidence: first.clone(),
            user: "ada".into(),
            host: "n1".into(),
            time: DateTime::UNIX_EPOCH,
            note: None,
        };
        confirm(dir.path(), &said).unwrap();
        let all = confirmations(dir.path()).unwrap();
        assert_eq!(confirmation_of(&all, "gap", &first), Some(&said));
        assert_eq!(confirmation_of(&all, "pilot", &first), None);
        assert_eq!(confirmation_of(&all, "gap", &evidence(&other, &[input(b"1")])), None);
    }
}
