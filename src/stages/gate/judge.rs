//! From a question and its inputs to a verdict. Fails closed: what has no value does not hold.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::record::decision::{Condition, Judged, JudgedInput, Missing, Question, Verdict};
use crate::report::query::source;
use crate::report::query::{Job, Limits, Outputs, evaluate};
use crate::stages::aggregate::Input;

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) verdict: Verdict,
    pub(super) reason: String,
    pub(super) inputs: Vec<JudgedInput>,
    pub(super) seeds: Option<u32>,
    pub(super) conditions: Vec<Judged>,
}

/// Judges, but for what a person has to say.
pub(super) fn judge(question: &Question, inputs: &[Input]) -> Found {
    let mut inputs: Vec<&Input> = inputs.iter().collect();
    inputs.sort_by(|a, b| a.key.cmp(&b.key));
    let seeds: BTreeSet<u32> = inputs.iter().filter_map(|i| i.key.seed).collect();
    let broken: BTreeSet<u32> = inputs.iter().filter(|i| i.run.is_err()).filter_map(|i| i.key.seed).collect();
    let complete = seeds.len() - broken.len();
    let mut found = Found {
        verdict: Verdict::Undecided,
        reason: String::new(),
        inputs: inputs.iter().map(|i| judged_input(i)).collect(),
        seeds: (!seeds.is_empty()).then_some(complete as u32),
        conditions: Vec::new(),
    };
    let lost: Vec<String> = inputs
        .iter()
        .filter_map(|i| i.run.as_ref().err().map(|why| format!("{} is {why}", i.key.local_name())))
        .collect();
    let shared = inputs.iter().any(|i| i.key.seed.is_none() && i.run.is_err());
    match question.missing {
        Missing::Stop if !lost.is_empty() => {
            found.verdict = Verdict::Stop;
            found.reason = list(&lost);
            return found;
        }
        Missing::Undecided if !lost.is_empty() => {
            found.reason = list(&lost);
            return found;
        }
        Missing::Without if shared => {
            found.reason = list(&lost);
            return found;
        }
        _ => {}
    }
    // Of a seed that lacks a cell none is judged: values that are paired by seed stay paired.
    let kept: Vec<&Input> = inputs.into_iter().filter(|i| i.key.seed.is_none_or(|s| !broken.contains(&s))).collect();
    let least = question.least_seeds.unwrap_or(u32::from(!seeds.is_empty())) as usize;
    if complete < least {
        let missing = if lost.is_empty() { String::new() } else { format!(": {}", list(&lost)) };
        found.reason = format!("{complete} of at least {least} seeds are complete{missing}");
        return found;
    }
    let cells: Vec<(String, Value)> = kept
        .iter()
        .filter_map(|i| Some((i.key.stage.to_string(), source::evidence(i.run.as_ref().ok()?.record().ok()?))))
        .collect();
    found.conditions = evaluate_conditions(&question.conditions, &cells);
    let failed: Vec<String> = found.conditions.iter().filter(|j| !j.holds).map(Judged::in_words).collect();
    found.verdict = if failed.is_empty() { Verdict::Pass } else { Verdict::Stop };
    found.reason = list(&failed);
    found
}

fn judged_input(input: &Input) -> JudgedInput {
    let (content, missing) = match &input.run {
        Ok(found) => (Some(found.content.clone()), None),
        Err(why) => (None, Some(why.clone())),
    };
    JudgedInput { cell: input.key.local_name(), content, missing }
}

/// The first few, and how many more.
fn list(parts: &[String]) -> String {
    const KEEP: usize = 3;
    let mut text = parts.iter().take(KEEP).cloned().collect::<Vec<_>>().join("; ");
    if parts.len() > KEEP {
        text.push_str(&format!("; and {} more", parts.len() - KEEP));
    }
    text
}

/// Every condition on `cells`, each a stage's name with what [`source::evidence`] makes of a result.
pub fn evaluate_conditions(conditions: &[Condition], cells: &[(String, Value)]) -> Vec<Judged> {
    let mut by_stage: BTreeMap<Option<&str>, Value> = BTreeMap::new();
    for of in conditions.iter().map(|c| c.of.as_deref()) {
        let mine = cells.iter().filter(|(stage, _)| of.is_none_or(|of| of == stage));
        by_stage.entry(of).or_insert_with(|| mine.map(|(_, value)| value.clone()).collect());
    }
    // Every key was put in above.
    let inputs: Vec<&Value> =
        conditions.iter().map(|c| by_stage.get(&c.of.as_deref()).unwrap_or(&Value::Null)).collect();
    let row = Value::Null;
    let jobs: Vec<Job<'_>> =
        conditions.iter().zip(&inputs).map(|(c, input)| Job { code: &c.value, input: *input, row: &row }).collect();
    let answers = evaluate(&jobs, Limits::default());
    let one = |((condition, input), answer): ((&Condition, &&Value), Outputs)| {
        let empty = input.as_array().is_some_and(Vec::is_empty);
        result_of(condition, if empty { Err("there is no result to judge".to_owned()) } else { answer })
    };
    conditions.iter().zip(&inputs).zip(answers).map(one).collect()
}

/// A condition with what its filter gave.
pub fn result_of(condition: &Condition, answer: Outputs) -> Judged {
    let mut judged = Judged { condition: condition.clone(), found: None, holds: false, problem: None };
    match answer {
        Err(why) => judged.problem = Some(format!("has no value: {}", first_line(&why))),
        Ok(values) if values.len() != 1 => {
            judged.problem = Some(format!("has {} values: its filter must give one", values.len()));
        }
        Ok(values) => {
            let value = values.into_iter().next().unwrap_or(Value::Null);
            match condition.admits(&value) {
                Ok(holds) => judged.holds = holds && !value.is_null(),
                Err(problem) => judged.problem = Some(problem),
            }
            if value.is_null() {
                judged.problem.get_or_insert_with(|| "is null".to_owned());
            } else {
                judged.found = Some(value);
            }
        }
    }
    judged
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
