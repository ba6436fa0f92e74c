//! The run table: for each run its best and its last evaluation, the baselines, a sample and notes.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::spec::{RunRow, RunTable};
use super::words::plain;
use super::{Ask, Meant, Results, artifacts, brief, cells_of, text_of};
use crate::record::CellKey;
use crate::report::render::markdown_text;
use crate::report::stats;
use crate::report::table::Expected;

/// Longest sample that is printed, characters.
const SAMPLE_CHARS: usize = 80;

/// An evaluation on the way, or the final one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Evaluation {
    /// `None` for the one that is called final.
    pub(super) step: Option<u64>,
    pub(super) accuracy: f64,
}

/// What of the evaluations is printed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Course {
    pub(super) peak: Evaluation,
    pub(super) last: Evaluation,
    plateau: Option<f64>,
}

/// A row: a cell, and what the study says of its arm.
struct Entry<'a> {
    cell: usize,
    row: Option<&'a RunRow>,
}

/// The cells in the order of the rows, then of seeds.
fn entries<'a>(spec: &'a RunTable, expected: &[Expected]) -> Vec<Entry<'a>> {
    let labels = BTreeMap::new();
    let cells = |arm: Option<&str>| cells_of(Meant { stage: &spec.stage, arm, labels: &labels }, expected);
    if spec.rows.is_empty() {
        return cells(None).into_iter().map(|cell| Entry { cell, row: None }).collect();
    }
    let of_row = |row: &'a RunRow| cells(Some(&row.arm)).into_iter().map(move |cell| Entry { cell, row: Some(row) });
    spec.rows.iter().flat_map(of_row).collect()
}

pub(super) fn asks(spec: &RunTable, expected: &[Expected]) -> Vec<Ask> {
    let optional = [&spec.source, &spec.target, &spec.sample, &spec.status];
    let codes: Vec<&String> = std::iter::once(&spec.evals)
        .chain(optional.into_iter().flatten())
        .chain(spec.notes.iter().chain(&spec.actions).map(|r| &r.when))
        .collect();
    let of = |entry: Entry<'_>| {
        codes.iter().map(move |code| Ask { cell: entry.cell, code: (*code).clone() }).collect::<Vec<_>>()
    };
    entries(spec, expected).into_iter().flat_map(of).collect()
}

pub(super) fn build(spec: &RunTable, results: &mut Results<'_>) -> (String, Value) {
    let entries = entries(spec, results.expected);
    if entries.is_empty() {
        results
            .problem(&format!("no expected cell of stage `{}` matches: check `stage`, `rows` and `needs`", spec.stage));
    }
    for row in spec.rows.iter().filter(|row| !entries.iter().any(|e| e.row.is_some_and(|r| r.arm == row.arm))) {
        results.problem(&format!("stage `{}` has no expected cell of arm `{}`", spec.stage, row.arm));
    }
    let seeds: std::collections::BTreeSet<_> = entries.iter().map(|e| results.expected[e.cell].key.seed).collect();
    let value = markdown_text(&spec.value_label);
    let mut heads = vec!["Run".to_owned(), "Config".to_owned(), format!("{value} (peak → final)")];
    if spec.plateau.is_some() {
        heads.push("Plateau".to_owned());
    }
    if spec.source.is_some() || spec.target.is_some() {
        heads.push("Source / target".to_owned());
    }
    if spec.sample.is_some() {
        heads.push("Sample output".to_owned());
    }
    heads.push("Notes".to_owned());
    let rows: Vec<Row> = entries
        .iter()
        .map(|entry| {
            let key = results.expected[entry.cell].key.clone();
            let place = format!("run {}", key.local_name());
            row(spec, entry, &key, seeds.len() > 1, &place, results)
        })
        .collect();
    let (mut out, summary) = brief::summary(spec, &rows, results);
    out.push_str(&format!("\n| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len())));
    for row in &rows {
        out.push_str(&format!("| {} |\n", row.cells.join(" | ")));
    }
    out.push_str("\nPeak: the best evaluation behind step 0, the first of equals. Final: the one that the run calls so, else its last.\n");
    let (text, actions) = brief::actions(spec, &rows, results);
    out.push_str(&text);
    let (text, sources) = artifacts("", results.expected, entries.iter().map(|e| &e.cell));
    out.push_str(&text);
    let numbers: Vec<Value> = rows.into_iter().map(|row| row.number).collect();
    (out, json!({"rows": numbers, "summary": summary, "actions": actions, "runs": sources}))
}

/// A row of the table, and what is known of its run.
pub(super) struct Row {
    cells: Vec<String>,
    number: Value,
    pub(super) cell: usize,
    /// What the run is called.
    pub(super) label: String,
    pub(super) course: Option<Course>,
    pub(super) source: Option<f64>,
    pub(super) target: Option<f64>,
    /// How it ended, if not with `done`.
    pub(super) ended: Option<String>,
}

fn row(
    spec: &RunTable,
    entry: &Entry<'_>,
    key: &CellKey,
    name_seed: bool,
    place: &str,
    results: &mut Results<'_>,
) -> Row {
    let course = results.output(place, entry.cell, &spec.evals).and_then(|list| match course(&list, spec.plateau) {
        Ok(course) => Some(course),
        Err(what) => {
            results.problem(&format!("{place}: `{}` {what}", spec.evals));
            None
        }
    });
    let mut optional = |code: &Option<String>| code.as_ref().and_then(|code| results.number(place, entry.cell, code));
    let (source, target) = (optional(&spec.source), optional(&spec.target));
    let mut words = |code: &Option<String>| {
        let value = code.as_ref().and_then(|code| results.output(place, entry.cell, code));
        value.filter(|v| !v.is_null()).map(|v| text_of(&v))
    };
    let (sample, status) = (words(&spec.sample), words(&spec.status));
    let mut notes: Vec<String> = entry.row.map(|row| row.notes.clone()).unwrap_or_default();
    if let Err(why) = &results.expected[entry.cell].run {
        notes.push(format!("missing: {why}"));
    }
    let ended = status.filter(|status| status != "done");
    if let Some(status) = &ended {
        let step = course.and_then(|c| c.last.step);
        let last = step.map(|step| format!(": the last evaluation is that of step {step}")).unwrap_or_default();
        notes.push(format!("{status}{last}"));
    }
    for rule in &spec.notes {
        if results.holds(place, entry.cell, &rule.when) {
            notes.push(rule.text.clone());
        }
    }
    let label = match entry.row.map(|row| row.label.as_str()).filter(|label| !label.is_empty()) {
        Some(label) => label.to_owned(),
        None => key.arm.as_ref().map_or_else(|| key.stage.to_string(), ToString::to_string),
    };
    let label = match key.seed.filter(|_| name_seed) {
        Some(seed) => format!("{label} (seed {seed})"),
        None => label,
    };
    let config = match entry.row.map(|row| row.config.as_str()).filter(|config| !config.is_empty()) {
        Some(config) => config.to_owned(),
        None => {
            let labels = &results.expected[entry.cell].labels;
            labels.iter().map(|(k, v)| format!("{k} = {v}")).collect::<Vec<_>>().join(", ")
        }
    };
    let mut cells = vec![markdown_text(&label), markdown_text(&config), shown(course, spec.digits)];
    if spec.plateau.is_some() {
        cells.push(course.and_then(|c| c.plateau).map_or_else(|| "n/a".to_owned(), |x| plain(Some(x), spec.digits)));
    }
    if spec.source.is_some() || spec.target.is_some() {
        cells.push(format!("{} / {}", plain(source, spec.digits), plain(target, spec.digits)));
    }
    if spec.sample.is_some() {
        cells.push(sample.as_deref().map_or_else(|| "n/a".to_owned(), cut));
    }
    cells.push(markdown_text(&notes.join("; ")));
    let evaluation = |e: Evaluation| json!({"step": e.step, "accuracy": e.accuracy});
    let number = json!({
        "run": key.to_string(),
        "peak": course.map(|c| evaluation(c.peak)),
        "final": course.map(|c| evaluation(c.last)),
        "plateau": course.and_then(|c| c.plateau),
        "source": source,
        "target": target,
        "notes": notes,
    });
    Row { cells, number, cell: entry.cell, label, course, source, target, ended }
}

/// The course of a list of `{step, accuracy}`.
fn course(list: &Value, plateau: Option<usize>) -> Result<Course, String> {
    let wrong = || "gives no array of {step, accuracy} with finite numbers".to_owned();
    let items = list.as_array().filter(|items| !items.is_empty()).ok_or_else(wrong)?;
    let read = |item: &Value| {
        let step = match &item["step"] {
            Value::String(word) if word == "final" => None,
            step => Some(step.as_u64()?),
        };
        Some(Evaluation { step, accuracy: item["accuracy"].as_f64()? })
    };
    let all: Vec<Evaluation> = items.iter().map(read).collect::<Option<_>>().ok_or_else(wrong)?;
    let mut on_the_way: Vec<Evaluation> = all.iter().copied().filter(|e| e.step.is_some()).collect();
    on_the_way.sort_by_key(|e| e.step);
    let finals: Vec<Evaluation> = all.iter().copied().filter(|e| e.step.is_none()).collect();
    let last = match (finals.as_slice(), on_the_way.last()) {
        ([last], _) | ([], Some(last)) => *last,
        ([], None) => return Err(wrong()),
        _ => return Err("gives two final evaluations".to_owned()),
    };
    let started = on_the_way.iter().filter(|e| e.step != Some(0)).chain(&finals);
    let peak = started.fold(None::<Evaluation>, |best, e| match best {
        Some(best) if best.accuracy >= e.accuracy => Some(best),
        _ => Some(*e),
    });
    let before_the_end =
        if finals.is_empty() { on_the_way.split_last().map_or(&[][..], |(_, rest)| rest) } else { &on_the_way };
    let plateau = plateau.and_then(|n| {
        let values: Vec<f64> = before_the_end.iter().rev().take(n).map(|e| e.accuracy).collect();
        stats::median(&values).ok()
    });
    Ok(Course { peak: peak.unwrap_or(last), last, plateau })
}

/// `0.360 (step 1250) → 0.315 (step 1750)`, `0.680 (step 1500) → 0.645`.
fn shown(course: Option<Course>, digits: u8) -> String {
    let Some(course) = course else { return "n/a".to_owned() };
    let of = |e: Evaluation| {
        let step = e.step.map(|step| format!(" (step {step})")).unwrap_or_default();
        format!("{}{step}", plain(Some(e.accuracy), digits))
    };
    format!("{} → {}", of(course.peak), of(course.last))
}

/// A sample in one line, cut and escaped.
fn cut(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(SAMPLE_CHARS) {
        None => format!("“{}”", markdown_text(&text)),
        Some((end, _)) => format!("“{}…”", markdown_text(&text[..end])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course_of(list: Value, plateau: Option<usize>) -> (String, Option<f64>) {
        let course = course(&list, plateau).unwrap();
        (shown(Some(course), 3), course.plateau)
    }

    #[test]
    fn peak_and_final() {
        let eval = |step: u64, accuracy: f64| json!({"step": step, "accuracy": accuracy});
        let last = |accuracy: f64| json!({"step": "final", "accuracy": accuracy});
        // The evaluations of the bridge study's first phase.
        let accuracies = [0.005, 0.52, 0.605, 0.61, 0.635, 0.62, 0.68, 0.635, 0.64];
        let mut list: Vec<Value> = accuracies.iter().enumerate().map(|(i, a)| eval(250 * i as u64, *a)).collect();
        list.push(last(0.645));
        assert_eq!(course_of(json!(list), Some(3)), ("0.680 (step 1500) → 0.645".to_owned(), Some(0.64)));
        // Cut off before the final one.
        let list = json!([eval(250, 0.12), eval(1250, 0.36), eval(1750, 0.315)]);
        assert_eq!(course_of(list, Some(2)), ("0.360 (step 1250) → 0.315 (step 1750)".to_owned(), Some(0.24)));
        // A lucky start before the first step is no peak, and the first of equals is.
        let list = json!([eval(0, 0.9), eval(10, 0.5), eval(20, 0.5)]);
        assert_eq!(course_of(list, None).0, "0.500 (step 10) → 0.500 (step 20)");
        assert_eq!(course_of(json!([last(0.25)]), None).0, "0.250 → 0.250");
        for wrong in [
            json!([]),
            json!(3),
            json!([{"step": 1}]),
            json!([last(0.1), last(0.2)]),
            json!([eval(1, 0.1), {"step": "end", "accuracy": 1}]),
        ] {
            assert!(course(&wrong, None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn samples_are_one_harmless_line() {
        assert_eq!(cut("a\n#### 18"), "“a \\#\\#\\#\\# 18”");
        let long = cut(&"| x ".repeat(100));
        assert!(long.ends_with("…”") && !long.replace("\\|", "").contains('|'), "{long}");
    }
}
