//! The study's documents, from the needed cells.

use std::path::Path;

use serde_json::Value;

use super::Input;
use crate::record::{RecordError, files};
use crate::report::document::{Answers, Document, DocumentSpec, asks, build};
use crate::report::query::{Job, Limits, evaluate};
use crate::report::table::{Expected, Partial};

/// Directory of the documents below the run directory.
const DOCUMENTS_DIR: &str = "documents";

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
        match build(&spec, &expected, &answers, partial) {
            Ok(document) => made.push(document),
            Err(found) => problems.extend(found),
        }
    }
    (made, problems)
}

/// Writes every document as Markdown, and its numbers as JSON, below `documents/`.
///
/// # Errors
/// A file cannot be written.
pub fn write_documents(dir: &Path, documents: &[Document]) -> Result<(), RecordError> {
    for document in documents {
        let path = |ending: &str| dir.join(DOCUMENTS_DIR).join(format!("{}.{ending}", document.key));
        files::write_atomic(&path("md"), document.markdown.as_bytes())?;
        files::write_json(&path("json"), &document.numbers)?;
    }
    Ok(())
}
