//! The study's documents, from the needed cells.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::inputs::Found;
use super::{Input, Out};
use crate::record::{Column, Items, RecordError};
use crate::report::document::{Answers, Document, DocumentSpec, Outcomes, asks, build, wants_items};
use crate::report::query::{Job, Limits, evaluate};
use crate::report::table::{Expected, Partial};

/// Directory of the documents below the run directory.
pub(super) const DOCUMENTS_DIR: &str = "documents";

/// Every document that can be made of what is there, and what keeps the others from being made.
pub fn documents(sections: &[Value], inputs: &[Input], partial: Partial) -> (Vec<Document>, Vec<String>) {
    let (mut made, mut problems) = (Vec::new(), Vec::new());
    let expected: Vec<Expected> = inputs.iter().map(Input::expected).collect();
    let stages: std::collections::BTreeSet<&str> = inputs.iter().map(|i| i.key.stage.as_str()).collect();
    let stages: Vec<&str> = stages.into_iter().collect();
    for section in sections {
        let spec = match DocumentSpec::parse(section, &stages) {
            Ok(spec) => spec,
            Err(found) => {
                let name = section.get("key").and_then(Value::as_str).unwrap_or("without a key");
                problems.extend(found.into_iter().map(|p| format!("document {name}: {}", p.message)));
                continue;
            }
        };
        let asked = asks(&spec, &expected);
        let jobs: Vec<Job<'_>> = asked
            .iter()
            .filter_map(|ask| {
                let input = &expected.get(ask.cell)?.run.as_ref().ok()?.tree;
                Some(Job { code: &ask.code, input, row: &Value::Null })
            })
            .collect();
        let outputs = evaluate(&jobs, Limits::default());
        let answers: Answers = asked.into_iter().zip(outputs).collect();
        let items = wants_items(&spec, &expected).into_iter();
        let outcomes: Outcomes =
            items.filter_map(|cell| Some((cell, outcomes_of(inputs[cell].run.as_ref().ok()?)))).collect();
        match build(&spec, &expected, &answers, &outcomes, partial) {
            Ok(document) => made.push(document),
            Err(found) => problems.extend(found),
        }
    }
    (made, problems)
}

/// Which items of each task a cell got right, of the tasks whose items say it (`id` and `right`).
fn outcomes_of(found: &Found) -> Result<BTreeMap<String, BTreeMap<i64, bool>>, String> {
    let right = |items: &Items| match (items.column("id"), items.column("right")) {
        (Some(Column::Integers(ids)), Some(Column::Integers(right))) => {
            Some(ids.iter().copied().zip(right.iter().map(|right| *right != 0)).collect())
        }
        _ => None,
    };
    let items = &found.record()?.items;
    Ok(items.iter().filter_map(|(task, items)| Some((task.clone(), right(items)?))).collect())
}

/// Writes every document as Markdown, and its numbers as JSON, below `documents/`.
///
/// # Errors
/// A file cannot be written.
pub fn write_documents(out: &mut Out<'_>, documents: &[Document]) -> Result<(), RecordError> {
    for document in documents {
        let path = |ending: &str| Path::new(DOCUMENTS_DIR).join(format!("{}.{ending}", document.key));
        out.put(&path("md"), document.markdown.as_bytes())?;
        out.put_json(&path("json"), &document.numbers)?;
    }
    Ok(())
}
