//! The tables of parameters in `docs/study-file.md`, from the kinds themselves.

use std::fmt::Write as _;

use super::params::{integers, numbers};
use crate::stages::{Field, FieldType, Preset, Role, Spec};

/// One section with a table for each kind, as Markdown. Parameters that are operational bear an `o`.
pub fn kinds_markdown(specs: &[&Spec]) -> String {
    let mut text = String::new();
    for spec in specs {
        // Writing into a String cannot fail.
        let _ = write!(text, "### `{}`\n\n{}\n\n", spec.kind, sentence(spec.help));
        let _ = writeln!(text, "{}\n", traits(spec));
        if spec.fields.is_empty() {
            text.push_str("It has no parameters.\n\n");
            continue;
        }
        text.push_str("| Parameter | Type | Preset | | Meaning |\n|---|---|---|---|---|\n");
        for field in spec.fields {
            let role = if field.role == Role::Operational { "o" } else { "" };
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {role} | {} |",
                field.name,
                cell(&kind_of(field.ty)),
                cell(&preset(field)),
                cell(field.help)
            );
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn traits(spec: &Spec) -> String {
    let list = |words: &[&str]| words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
    let mut traits = vec![
        match (spec.parallel, spec.field("lanes")) {
            (false, _) => "Runs on one rank.",
            (true, Some(_)) => "Runs on any number of ranks that divides its lanes.",
            (true, None) => "Runs on any number of ranks.",
        }
        .to_owned(),
        if spec.resumable { "Goes on from its checkpoint." } else { "Starts from the beginning when it is run again." }
            .to_owned(),
    ];
    if !spec.needs.is_empty() {
        traits.push(format!("Needs a stage of kind {}.", list(spec.needs)));
    }
    let mut leaves: Vec<&str> = spec.export.into_iter().collect();
    leaves.extend(spec.outputs);
    if !leaves.is_empty() {
        traits.push(format!("Leaves {} beside `run.h5`.", list(&leaves)));
    }
    traits.join(" ")
}

fn kind_of(ty: FieldType) -> String {
    match ty {
        FieldType::Integer { min, max } => integers(min, max),
        FieldType::Number { min, max } => numbers(min, max),
        FieldType::Bool => "true or false".to_owned(),
        FieldType::Text => "text".to_owned(),
        FieldType::OneOf(words) => words.iter().map(|w| format!("`\"{w}\"`")).collect::<Vec<_>>().join(", "),
        FieldType::TextList => "array of texts".to_owned(),
        FieldType::IntegerList => "array of integers, none negative".to_owned(),
        FieldType::TextMap => "table of texts".to_owned(),
        FieldType::NeedMap => "table of names of needed stages".to_owned(),
        FieldType::Path => "path, from the study file's directory".to_owned(),
        FieldType::Tables => "not said: the file's `[[table]]` sections".to_owned(),
        FieldType::Figures => "not said: the file's `[[figure]]` sections".to_owned(),
        FieldType::Documents => "not said: the file's `[[document]]` sections".to_owned(),
        FieldType::Conditions => "the `conditions` of a `[[gate]]`".to_owned(),
    }
}

fn preset(field: &Field) -> String {
    match field.preset {
        Preset::Required => "*must be said*".to_owned(),
        Preset::Absent => "absent".to_owned(),
        Preset::Is(json) => format!("`{json}`"),
    }
}

/// The words as a sentence.
fn sentence(words: &str) -> String {
    let mut letters = words.trim_end_matches('.').chars();
    match letters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str()),
        None => String::new(),
    }
}

/// Text that stays within its cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
