//! Documents of a study, computed from its results: what a person would else write by hand under the numbers.
//!
//! A `[[document]]` section names a kind ([`DocumentSpec`]), [`asks`] says which filters are to be run on which cells, and
//! [`build`] makes Markdown and the same numbers as JSON of the answers. Every number is rounded by the one rounding of
//! tables, every word about a number is chosen by the number, and all text is escaped. Pure. The manual is
//! `docs/documents.md`.

mod answers;
mod brief;
mod paired;
mod runs;
mod spec;
mod stages;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

pub use spec::{DOCUMENT_KEYS, DocumentSpec};

use crate::report::query::Outputs;
use crate::report::render::markdown_text;
use crate::report::table::{Expected, Meant, Partial, two_for_one};

/// Format version of a document's JSON.
pub const DOCUMENT_VERSION: u32 = 1;

/// The `date` of a document that bears the day of its results.
const DATED_BY_RESULTS: &str = "results";

/// A finished document.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its name, and that of its files.
    pub key: String,
    /// Its text.
    pub markdown: String,
    /// Its numbers at full precision.
    pub numbers: Value,
}

/// A filter to be run on the tree of an expected cell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// Index of the cell.
    pub cell: usize,
    /// The filter.
    pub code: String,
}

/// What the filters gave.
pub type Answers = BTreeMap<Ask, Outputs>;

/// Whether a cell got each item right, by task and the item's number; or why that cannot be told. A cell without items
/// has no tasks here.
pub type Outcomes = BTreeMap<usize, Result<BTreeMap<String, BTreeMap<i64, bool>>, String>>;

/// The filters that [`build`] needs answered. Cells without a result are not asked.
pub fn asks(spec: &DocumentSpec, expected: &[Expected]) -> Vec<Ask> {
    let asked = match spec {
        DocumentSpec::Stages(spec) => stages::asks(spec, expected),
        DocumentSpec::Runs(spec) => runs::asks(spec, expected),
    };
    let with_results = asked.into_iter().filter(|ask| expected.get(ask.cell).is_some_and(|c| c.run.is_ok()));
    with_results.collect::<BTreeSet<Ask>>().into_iter().collect()
}

/// The cells of whose items [`build`] needs the outcomes: indices of those that have a result.
pub fn wants_items(spec: &DocumentSpec, expected: &[Expected]) -> Vec<usize> {
    let wanted = match spec {
        DocumentSpec::Stages(spec) => paired::wants_items(spec, expected),
        DocumentSpec::Runs(_) => Vec::new(),
    };
    let with_results = wanted.into_iter().filter(|cell| expected.get(*cell).is_some_and(|c| c.run.is_ok()));
    with_results.collect::<BTreeSet<usize>>().into_iter().collect()
}

/// Builds the document. Missing cells are problems, unless `partial` says to go on: then they show as `n/a`.
///
/// # Errors
/// Every problem at once, each with the document, the place and the cell.
pub fn build(
    spec: &DocumentSpec,
    expected: &[Expected],
    answers: &Answers,
    outcomes: &Outcomes,
    partial: Partial,
) -> Result<Document, Vec<String>> {
    let key = spec.key().to_owned();
    let mut results = Results { expected, answers, outcomes, partial, key, problems: Vec::new() };
    let (body, numbers) = match spec {
        DocumentSpec::Stages(spec) => stages::build(spec, &mut results),
        DocumentSpec::Runs(spec) => runs::build(spec, &mut results),
    };
    if !results.problems.is_empty() {
        return Err(results.problems);
    }
    let date = dated(spec, expected).map(|date| format!(" ({})", markdown_text(&date))).unwrap_or_default();
    let markdown = format!("# {}{date}\n{body}", markdown_text(spec.title()));
    let mut document = json!({"version": DOCUMENT_VERSION, "key": spec.key(), "kind": spec.kind()});
    if let (Value::Object(document), Value::Object(numbers)) = (&mut document, numbers) {
        document.extend(numbers);
    }
    Ok(Document { key: spec.key().to_owned(), markdown, numbers: document })
}

/// What stands behind the title: what the section says, or the last day on which one of the results was sealed.
fn dated(spec: &DocumentSpec, expected: &[Expected]) -> Option<String> {
    let said = spec.date()?;
    if said != DATED_BY_RESULTS {
        return Some(said.to_owned());
    }
    let stages = spec.stages();
    let results = expected.iter().filter(|cell| stages.contains(cell.key.stage.as_str()));
    results.filter_map(|cell| cell.run.as_ref().ok()?.day).max().map(|day| day.to_string())
}

/// Cells with their answers, and what was wrong with them.
struct Results<'a> {
    expected: &'a [Expected],
    answers: &'a Answers,
    outcomes: &'a Outcomes,
    partial: Partial,
    key: String,
    problems: Vec<String>,
}

/// Indices of the expected cells that are meant.
fn cells_of(meant: Meant<'_>, expected: &[Expected]) -> Vec<usize> {
    (0..expected.len()).filter(|i| meant.fits(&expected[*i].key, &expected[*i].labels)).collect()
}

impl Results<'_> {
    fn problem(&mut self, what: &str) {
        let text = format!("document `{}`: {what}", self.key);
        if !self.problems.contains(&text) {
            self.problems.push(text);
        }
    }

    /// The cells that are meant, one for each seed.
    fn by_seed(&mut self, place: &str, meant: Meant<'_>) -> BTreeMap<Option<u32>, usize> {
        let cells = cells_of(meant, self.expected);
        if let Some((one, other)) = two_for_one(cells.iter().map(|index| &self.expected[*index].key)) {
            let name = |i: usize| self.expected[cells[i]].key.local_name();
            let (one, other) = (name(one), name(other));
            self.problem(&format!("{place}: {one} and {other} are two cells for one place: say `arm` or `labels`"));
        }
        if cells.is_empty() {
            self.problem(&format!(
                "{place}: no expected cell of stage `{}` matches: check `stage`, `arm`, `labels` and `needs`",
                meant.stage
            ));
        }
        // Of two for one seed the first: that there are two is told.
        cells.into_iter().rev().map(|index| (self.expected[index].key.seed, index)).collect()
    }

    /// The one output of a filter on a cell; `None` where the cell has no result, which is told here.
    fn output(&mut self, place: &str, cell: usize, code: &str) -> Option<Value> {
        let name = self.expected[cell].key.local_name();
        if let Err(why) = &self.expected[cell].run {
            if self.partial == Partial::Error {
                let text =
                    format!("{place}: {name} is missing ({why}): run `run_all` to finish, or mark what is missing");
                self.problem(&text);
            }
            return None;
        }
        let said = match self.answers.get(&Ask { cell, code: code.to_owned() }) {
            None => "it was not evaluated".to_owned(),
            Some(Err(what)) => what.clone(),
            Some(Ok(outputs)) => match outputs.as_slice() {
                [one] => return Some(one.clone()),
                many => format!("it gives {} values and must give one", many.len()),
            },
        };
        self.problem(&format!("{place}: {name}: the filter `{code}`: {said}"));
        None
    }

    /// As [`Self::output`], true or false; what has no answer is false.
    fn holds(&mut self, place: &str, cell: usize, code: &str) -> bool {
        match self.output(place, cell, code) {
            Some(Value::Bool(holds)) => holds,
            Some(Value::Null) | None => false,
            Some(other) => {
                self.problem(&format!("{place}: `{code}` gives {other}, not true or false"));
                false
            }
        }
    }

    /// As [`Self::output`], a finite number; `None` for null too.
    fn number(&mut self, place: &str, cell: usize, code: &str) -> Option<f64> {
        match self.output(place, cell, code)? {
            Value::Null => None,
            Value::Number(n) => n.as_f64(),
            other => {
                let name = self.expected[cell].key.local_name();
                let shown: String = other.to_string().chars().take(60).collect();
                self.problem(&format!("{place}: {name}: `{code}` gives {}, which is no number", shown.escape_debug()));
                None
            }
        }
    }
}

/// A text for a page: texts as they are, anything else as JSON.
fn text_of(value: &Value) -> String {
    match value {
        Value::Null => "n/a".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text_of).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// The lines that a document lists, and the cells that it was made from, with what each found.
fn artifacts<'a>(listed: &str, expected: &'a [Expected], cells: impl Iterator<Item = &'a usize>) -> (String, Value) {
    let cells: BTreeSet<usize> = cells.copied().collect();
    let between = if listed.is_empty() { "" } else { "\n" };
    let mut text = format!("\n## Artifacts\n{listed}{between}| Cell | Content digest |\n|---|---|\n");
    let mut list = Vec::new();
    for cell in cells.iter().map(|i| &expected[*i]) {
        let found = match &cell.run {
            Ok(run) => {
                list.push(json!({"run": cell.key.to_string(), "fingerprint": run.fingerprint, "content": run.content}));
                format!("`{}`", &run.content.as_str()[..16])
            }
            Err(why) => format!("missing: {}", markdown_text(why)),
        };
        text.push_str(&format!("| `{}` | {found} |\n", cell.key));
    }
    text.push_str("\nThe first 16 digits of each digest; what a cell found is in its `run.h5`.\n");
    (text, Value::Array(list))
}
