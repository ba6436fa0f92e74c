//! Parameters of a built-in stage against the fields of its kind.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::problem::{Sink, Span};
use super::tree::{Table, Tree};
use crate::stages::{Field, FieldType, Preset, Spec};

/// What parameters are checked with.
pub(super) struct Rules<'r> {
    /// The kind.
    pub(super) spec: &'static Spec,
    /// Directory that relative paths start from.
    pub(super) dir: &'r Path,
    /// The study's tables.
    pub(super) tables: &'r [Value],
    /// The study's figures.
    pub(super) figures: &'r [Value],
    /// The study's documents.
    pub(super) documents: &'r [Value],
    /// Whether a path is there; `None` if nobody asks.
    pub(super) exists: Option<&'r dyn Fn(&Path) -> bool>,
}

/// Every field of the kind, from `table` or its preset. `what` names the owner, `at` is its place.
pub(super) fn resolve(rules: &Rules<'_>, table: &Table, at: &Span, what: &str, sink: &mut Sink) -> Value {
    let spec = rules.spec;
    for entry in table.entries.iter().filter(|e| spec.field(&e.key).is_none()) {
        let message = format!("unknown key `{}` in {what}", entry.key);
        sink.unknown(&entry.key_span, message, &entry.key, spec.fields.iter().map(|f| f.name));
    }
    let before = sink.found.len();
    let mut params = Map::new();
    let mut places: BTreeMap<&str, Span> = BTreeMap::new();
    for field in spec.fields {
        let entry = table.get(field.name);
        let value = match entry {
            None if field.ty == FieldType::Tables => Some(Value::from(rules.tables)),
            None if field.ty == FieldType::Figures && !rules.figures.is_empty() => Some(Value::from(rules.figures)),
            None if field.ty == FieldType::Documents && !rules.documents.is_empty() => {
                Some(Value::from(rules.documents))
            }
            Some(entry) => {
                places.insert(field.name, entry.key_span.clone());
                match value(rules, field, &entry.node.value) {
                    Ok(value) => Some(value),
                    Err(problem) => {
                        sink.push(&entry.node.span, format!("`{}` in {what} {problem}", field.name), "");
                        None
                    }
                }
            }
            None => match field.preset {
                Preset::Required => {
                    let message = format!("{what} has no `{}`", field.name);
                    sink.push(at, message, format!("say `params.{}`: {}", field.name, field.help));
                    None
                }
                Preset::Absent => None,
                Preset::Is(json) => preset(field, json),
            },
        };
        if let Some(value) = value {
            params.insert(field.name.to_owned(), value);
        }
    }
    let params = Value::Object(params);
    // A kind's own check may count on fields that are right one by one.
    if sink.found.len() == before {
        for problem in (spec.check)(&params) {
            let named = problem.split('`').skip(1).step_by(2).find_map(|word| places.get(word));
            sink.push(named.unwrap_or(at), format!("{what}: {problem}"), "");
        }
    }
    params
}

/// A preset as the value that the same words in a study would give.
fn preset(field: &Field, json: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(json).ok()?;
    match (field.ty, value.as_f64()) {
        (FieldType::Number { .. }, Some(number)) => Some(Value::from(number)),
        _ => Some(value),
    }
}

/// The JSON of a value, if it has the field's type and bounds; else what it must be.
fn value(rules: &Rules<'_>, field: &Field, value: &Tree) -> Result<Value, String> {
    let not = |wanted: String| Err(format!("must be {wanted}, not {}", value.noun()));
    match (field.ty, value) {
        (FieldType::Integer { min, max }, Tree::Integer(i)) => {
            if (min..=max).contains(i) {
                Ok(Value::from(*i))
            } else {
                Err(format!("must be {}, not {i}", integers(min, max)))
            }
        }
        (FieldType::Integer { min, max }, _) => not(integers(min, max)),
        (FieldType::Number { min, max }, Tree::Integer(_) | Tree::Number(_)) => {
            let number = match value {
                Tree::Integer(i) => *i as f64,
                Tree::Number(x) => *x,
                _ => f64::NAN,
            };
            if (min..=max).contains(&number) {
                Ok(Value::from(number))
            } else {
                Err(format!("must be {}, not {number}", numbers(min, max)))
            }
        }
        (FieldType::Number { min, max }, _) => not(numbers(min, max)),
        (FieldType::Bool, Tree::Bool(b)) => Ok(Value::from(*b)),
        (FieldType::Bool, _) => not("true or false".to_owned()),
        (FieldType::Text, Tree::Text(text)) => Ok(Value::from(text.as_str())),
        (FieldType::Text, _) => not("text".to_owned()),
        (FieldType::OneOf(words), Tree::Text(text)) => {
            if words.contains(&text.as_str()) {
                Ok(Value::from(text.as_str()))
            } else {
                Err(format!("cannot be `{text}`: {}", super::problem::suggestion(text, words)))
            }
        }
        (FieldType::OneOf(words), _) => not(format!("one of {}", words.join(", "))),
        (FieldType::TextList, Tree::Array(items)) => items
            .iter()
            .map(|item| match &item.value {
                Tree::Text(text) => Ok(Value::from(text.as_str())),
                other => Err(format!("must be an array of texts, and holds {}", other.noun())),
            })
            .collect(),
        (FieldType::TextList, _) => not("an array of texts".to_owned()),
        (FieldType::IntegerList, Tree::Array(items)) => items
            .iter()
            .map(|item| match &item.value {
                Tree::Integer(i) if *i >= 0 => Ok(Value::from(*i)),
                Tree::Integer(i) => Err(format!("must be an array of integers that are not negative, and holds {i}")),
                other => Err(format!("must be an array of integers, and holds {}", other.noun())),
            })
            .collect(),
        (FieldType::IntegerList, _) => not("an array of integers".to_owned()),
        (FieldType::TextMap | FieldType::NeedMap, Tree::Table(table)) => {
            let mut map = Map::new();
            for entry in &table.entries {
                crate::record::Name::new(&entry.key).map_err(|problem| format!("has a bad key: {problem}"))?;
                match &entry.node.value {
                    Tree::Text(text) => map.insert(entry.key.clone(), Value::from(text.as_str())),
                    other => return Err(format!("must be a table of texts, and holds {}", other.noun())),
                };
            }
            Ok(Value::Object(map))
        }
        (FieldType::TextMap, _) => not("a table of texts".to_owned()),
        (FieldType::NeedMap, _) => not("a table of names of needed stages".to_owned()),
        (FieldType::Path, Tree::Text(text)) => {
            let path = absolute(rules.dir, text)?;
            match rules.exists {
                Some(exists) if !exists(Path::new(&path)) => {
                    Err(format!("names `{path}`, which is not there: create it, or correct the path"))
                }
                _ => Ok(Value::from(path)),
            }
        }
        (FieldType::Path, _) => not("a path in quotes".to_owned()),
        (FieldType::Tables, _) => Err("is made of the study's `[[table]]` sections: remove it".to_owned()),
        (FieldType::Figures, _) => Err("is made of the study's `[[figure]]` sections: remove it".to_owned()),
        (FieldType::Documents, _) => Err("is made of the study's `[[document]]` sections: remove it".to_owned()),
        (FieldType::Conditions, _) => Err("is made of a `[[gate]]` section: write one".to_owned()),
    }
}

/// A path from a study: absolute, `.` and `..` resolved by their words.
///
/// # Errors
/// A fragment that says what is wrong.
pub(super) fn absolute(dir: &Path, text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("must name a file or directory, not nothing".to_owned());
    }
    let mut path = std::path::PathBuf::new();
    for part in dir.join(text).components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                path.pop();
            }
            other => path.push(other),
        }
    }
    path.to_str().map(str::to_owned).ok_or_else(|| "lies below a directory whose name is not UTF-8".to_owned())
}

/// The integers between two bounds, in words.
pub(super) fn integers(min: i64, max: i64) -> String {
    match (min, max) {
        (i64::MIN, i64::MAX) => "an integer".to_owned(),
        (_, i64::MAX) => format!("an integer, at least {min}"),
        (i64::MIN, _) => format!("an integer, at most {max}"),
        _ => format!("an integer from {min} to {max}"),
    }
}

/// The numbers between two bounds, in words.
pub(super) fn numbers(min: f64, max: f64) -> String {
    match (min <= f64::MIN, max >= f64::MAX) {
        (true, true) => "a number".to_owned(),
        (false, true) => format!("a number, at least {min}"),
        (true, false) => format!("a number, at most {max}"),
        (false, false) => format!("a number from {min} to {max}"),
    }
}
