//! What stands above and below a run table: a line for each group of runs, and what is to be done about some of them.

use serde_json::{Value, json};

use super::Results;
use super::runs::Row;
use super::spec::{Group, RunTable};
use super::words::plain;
use crate::report::render::markdown_text;

/// The executive summary: of each group where its runs peak and end, and how that compares to both baselines.
pub(super) fn summary(spec: &RunTable, rows: &[Row], results: &mut Results<'_>) -> (String, Value) {
    if spec.summary.is_empty() {
        return (String::new(), json!([]));
    }
    let mut out = "\n## Executive summary\n\n".to_owned();
    let mut numbers = Vec::new();
    for group in &spec.summary {
        let of = |row: &&Row| {
            let arm = results.expected[row.cell].key.arm.as_ref();
            group.arms.is_empty() || arm.is_some_and(|arm| group.arms.iter().any(|own| own == arm.as_str()))
        };
        let mine: Vec<&Row> = rows.iter().filter(of).collect();
        if mine.is_empty() {
            let what =
                format!("the summary `{}`: no run has arm {}: correct `arms`", group.label, group.arms.join(", "));
            results.problem(&what);
            continue;
        }
        let (text, number) = line(spec, group, &mine);
        out.push_str(&text);
        numbers.push(number);
    }
    (out, Value::Array(numbers))
}

fn line(spec: &RunTable, group: &Group, rows: &[&Row]) -> (String, Value) {
    let value = markdown_text(&spec.value_label);
    let peaks = ends(rows.iter().filter_map(|row| Some(row.course?.peak.accuracy)));
    let finals = ends(rows.iter().filter_map(|row| Some(row.course?.last.accuracy)));
    let known = rows.iter().filter(|row| row.course.is_some()).count();
    let runs = if rows.len() == 1 { "1 run".to_owned() } else { format!("{} runs", rows.len()) };
    let mut text = format!("- **{}** ({runs}): ", markdown_text(&group.label));
    match (peaks, finals) {
        (Some(peaks), Some(finals)) => {
            let (peak, last) = (range(peaks, spec.digits), range(finals, spec.digits));
            text.push_str(&format!("{value} peaks at {peak} and ends at {last}"));
            for (name, side) in [("source", Side::Source), ("target", Side::Target)] {
                text.push_str(&compared(rows, name, side, spec.digits));
            }
            if known < rows.len() {
                text.push_str(&format!("; of {} without a number", rows.len() - known));
            }
        }
        _ => text.push_str("no number yet"),
    }
    let unfinished: Vec<String> = rows
        .iter()
        .filter_map(|row| Some(format!("{} ({})", markdown_text(&row.label), markdown_text(row.ended.as_ref()?))))
        .collect();
    if !unfinished.is_empty() {
        text.push_str(&format!("; not done: {}", unfinished.join(", ")));
    }
    text.push_str(".\n");
    let both = |ends: Option<(f64, f64)>| ends.map(|(least, most)| json!({"least": least, "most": most}));
    (text, json!({"label": group.label, "runs": rows.len(), "peak": both(peaks), "final": both(finals)}))
}

/// A baseline of a run.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Target,
}

/// How the ends of runs stand to a baseline of theirs.
fn compared(rows: &[&Row], name: &str, side: Side, digits: u8) -> String {
    let over = |row: &&Row| {
        let baseline = match side {
            Side::Source => row.source,
            Side::Target => row.target,
        };
        Some(row.course?.last.accuracy - baseline?)
    };
    let all: Vec<f64> = rows.iter().filter_map(over).collect();
    let Some((least, most)) = ends(all.iter().copied()) else { return String::new() };
    let above = all.iter().filter(|d| **d > 0.0).count();
    if least > 0.0 {
        format!(", {} above the {name}", range((least, most), digits))
    } else if most < 0.0 {
        format!(", {} below the {name}", range((-most, -least), digits))
    } else {
        format!(", above the {name} in {above} of {}", all.len())
    }
}

/// What is to be done, for each rule that holds of some run.
pub(super) fn actions(spec: &RunTable, rows: &[Row], results: &mut Results<'_>) -> (String, Value) {
    if spec.actions.is_empty() {
        return (String::new(), json!([]));
    }
    let mut out = "\n## Action items\n\n".to_owned();
    let mut found = Vec::new();
    for rule in &spec.actions {
        let mut labels: Vec<&str> = Vec::new();
        for row in rows {
            let place = format!("run {}", results.expected[row.cell].key.local_name());
            if results.holds(&place, row.cell, &rule.when) {
                labels.push(&row.label);
            }
        }
        if !labels.is_empty() {
            let named: Vec<String> = labels.iter().map(|label| markdown_text(label)).collect();
            out.push_str(&format!("{}. {}: {}.\n", found.len() + 1, markdown_text(&rule.text), named.join(", ")));
            found.push(json!({"text": rule.text, "runs": labels}));
        }
    }
    if found.is_empty() {
        out.push_str("None: no rule of the study holds of any run.\n");
    }
    (out, Value::Array(found))
}

/// The least and the most.
fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |ends, x| match ends {
        None => Some((x, x)),
        Some((least, most)) => Some((x.min(least), x.max(most))),
    })
}

/// `0.625 to 0.655`; one number where both print alike.
fn range((least, most): (f64, f64), digits: u8) -> String {
    let (least, most) = (plain(Some(least), digits), plain(Some(most), digits));
    if least == most { least } else { format!("{least} to {most}") }
}
