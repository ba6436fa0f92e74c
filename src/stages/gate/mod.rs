//! Stage kind `gate`: a named list of conditions on results, which says pass or stop.
//!
//! It fails closed: a condition without a value does not hold, and without its inputs there is no verdict. The
//! decision record `decision.json` is written whatever it says. Pass ends with 0, stop with 78 (sealed, too);
//! a gate that waits for a person, or lacks inputs, ends with 66 and is not sealed, so no job stays behind.
//!
//! A gate hands over no data: what comes after it waits for its verdict and reads none of its numbers, so a changed
//! condition makes nothing stale but the gate. Needs no tensors.

mod judge;

use std::path::Path;

use chrono::Utc;
use serde_json::{Map, Value, json};

pub use judge::{evaluate_conditions, result_of};

use super::aggregate;
use super::context::{Context, StageError};
use super::spec::{Field, FieldType, Preset, Role, Spec};
use crate::record::decision::{
    self, Condition, DECISION_FILE, DECISION_VERSION, Decision, Earlier, GATE_KIND, Judged, Question, Verdict,
};
use crate::record::{Digest, RunRecord};
use crate::report::query::{Scope, check as check_filter};

/// Earlier verdicts that a decision carries on, at most.
const MOST_EARLIER: usize = 50;

/// The kind.
pub static SPEC: Spec = Spec {
    kind: GATE_KIND,
    version: 1,
    binary: "seedbed-gate",
    resumable: false,
    parallel: false,
    partial_inputs: true,
    needs: &[],
    outputs: &[DECISION_FILE],
    export: None,
    help: "says pass or stop of results; a study writes it as `[[gate]]`",
    fields: &[
        Field {
            name: "conditions",
            ty: FieldType::Conditions,
            preset: Preset::Is("[]"),
            role: Role::Semantic,
            help: "the gate's conditions",
        },
        Field {
            name: "least_seeds",
            ty: FieldType::Integer { min: 1, max: 100_000 },
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "complete seeds that there must be, at least",
        },
        Field {
            name: "missing",
            ty: FieldType::OneOf(&["undecided", "without", "stop"]),
            preset: Preset::Is(r#""undecided""#),
            role: Role::Semantic,
            help: "what a missing seed means: no verdict, a verdict without it, stop",
        },
        Field {
            name: "confirm",
            ty: FieldType::Text,
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "what a person has to confirm once every condition holds",
        },
    ],
    check,
};

/// Filters that do not compile. Each problem names its condition.
fn check(params: &Value) -> Vec<String> {
    let conditions = params.get("conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |condition: &Value, key: &str| condition.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    conditions
        .iter()
        .filter_map(|condition| {
            let problem = check_filter(&text(condition, "value"), &["$row"], Scope::Closed).err()?;
            // One line: the place in the filter stands in it.
            let line = problem.to_string().lines().next().unwrap_or_default().to_owned();
            Some(format!("`{}`: {line}", text(condition, "name")))
        })
        .collect()
}

/// Judges what the needed cells found.
///
/// # Errors
/// [`StageError::Stopped`] when a condition does not hold; [`StageError::Missing`] while a person has not confirmed, or
/// without the inputs; the decision is written in every case. Or a file cannot be read or written.
pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
    let question: Question = context.params()?;
    let cell = &context.cell;
    let inputs = aggregate::collect_whole(&cell.needs, &cell.base);
    let name = cell.key.local_name();
    let verdict = judge::judge(&question, &inputs);
    let mut decision = Decision {
        version: DECISION_VERSION,
        key: cell.key.clone(),
        fingerprint: cell.fingerprint.clone(),
        verdict: verdict.verdict,
        reason: verdict.reason,
        evidence: decision::evidence(&question, &verdict.inputs),
        question,
        inputs: verdict.inputs,
        seeds: verdict.seeds,
        conditions: verdict.conditions,
        confirmation: None,
        earlier: earlier(&context.run_dir, &cell.base.join(".superseded").join(cell.key.local_dir())),
        decided_at: Utc::now(),
        // Filled in by `Decision::write`.
        digest: Digest::of_bytes(b""),
    };
    if let (Verdict::Pass, Some(asked)) = (decision.verdict, &decision.question.confirm) {
        let all = decision::confirmations(&cell.base)?;
        match decision::confirmation_of(&all, &name, &decision.evidence) {
            Some(said) => decision.confirmation = Some(said.clone()),
            None => {
                decision.reason = format!("a person has to confirm: {asked}");
                decision.verdict = Verdict::Waiting;
            }
        }
    }
    let decision = decision.write(&context.out_dir)?;
    eprint!("{}", in_words(&decision));
    match decision.verdict {
        Verdict::Pass => {
            let mut record = RunRecord::new(cell);
            record.metrics = metrics(&decision);
            Ok(Some(record))
        }
        Verdict::Stop => Err(StageError::Stopped(format!("gate {name} says stop: {}", decision.reason))),
        Verdict::Waiting => Err(StageError::Missing(format!(
            "gate {name} waits: {}; look at {DECISION_FILE} in {}, then `seedbed confirm STUDY {}` and `run_all` again",
            decision.reason,
            context.run_dir.display(),
            cell.key.stage
        ))),
        Verdict::Undecided => Err(StageError::Missing(format!(
            "gate {name} is undecided: {}; `run_all` runs what is missing and asks it again",
            decision.reason
        ))),
    }
}

/// One line a condition, and the verdict.
fn in_words(decision: &Decision) -> String {
    let mut text = String::new();
    for judged in &decision.conditions {
        text.push_str(&format!("  {} {}\n", if judged.holds { "holds:" } else { "fails:" }, judged.in_words()));
    }
    text.push_str(&format!("verdict: {} (evidence {})\n", decision.verdict.word(), decision.evidence.short()));
    text
}

/// What `run.h5` of a gate that passes holds.
fn metrics(decision: &Decision) -> Value {
    let value = |judged: &Judged| json!({"value": judged.found, "holds": judged.holds});
    let conditions: Map<String, Value> =
        decision.conditions.iter().map(|j| (j.condition.name.clone(), value(j))).collect();
    json!({"verdict": decision.verdict.word(), "conditions": conditions, "seeds": decision.seeds})
}

/// Verdicts that this gate gave before: in its run directory, and in those that were moved aside.
fn earlier(run_dir: &Path, shelf: &Path) -> Vec<Earlier> {
    let mut dirs = vec![run_dir.to_path_buf()];
    if let Ok(entries) = std::fs::read_dir(shelf) {
        dirs.extend(entries.flatten().map(|e| e.path()));
    }
    // What cannot be read is history that is lost, and no reason not to judge.
    let found = dirs.iter().filter_map(|dir| Decision::read(dir).ok().flatten());
    let mut all: Vec<Earlier> = Vec::new();
    for old in found {
        all.extend(old.earlier);
        if matches!(old.verdict, Verdict::Pass | Verdict::Stop) {
            all.push(Earlier {
                fingerprint: old.fingerprint,
                verdict: old.verdict,
                evidence: old.evidence,
                conditions: old.conditions,
                decided_at: old.decided_at,
            });
        }
    }
    all.sort_by(|a, b| (a.decided_at, a.evidence.as_str()).cmp(&(b.decided_at, b.evidence.as_str())));
    all.dedup();
    let drop = all.len().saturating_sub(MOST_EARLIER);
    all.split_off(drop)
}

/// Conditions from the JSON of a section, as a study file gives them.
///
/// # Errors
/// They are not conditions.
pub fn conditions_of(section: &Value) -> Result<Vec<Condition>, String> {
    serde_json::from_value(section.clone()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
