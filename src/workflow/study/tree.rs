//! A TOML file as a tree that knows where each part of it stands in the text.
//!
//! Tables keep the file's order. Laying a profile over a study copies nodes with their places, so a
//! message about a merged value still points at the line that said it.

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::problem::{Sink, Span, is_control};

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) value: Tree,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(super) enum Tree {
    Text(String),
    Integer(i64),
    Number(f64),
    Bool(bool),
    Array(Vec<Node>),
    Table(Table),
}

/// A table, in file order.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Span,
    pub(super) node: Node,
}

/// Whether a document could be read at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syntax {
    /// The tree is the document; single values in it may still be noted as bad.
    Whole,
    /// The text is not TOML; the tree holds what could be made of it.
    Broken,
}

/// Reads a document. Problems: every syntax error, keys given twice, and values that no study may hold (dates,
/// numbers that are not finite, control characters).
pub(super) fn parse(text: &str, sink: &mut Sink) -> (Table, Syntax) {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut syntax = Syntax::Whole;
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        if error.message() == "duplicate key" {
            sink.push(&span, "this key is given twice", "remove one");
        } else {
            syntax = Syntax::Broken;
            sink.push(&span, format!("this is not TOML: {}", error.message()), "");
        }
    }
    (table(root.get_ref(), sink), syntax)
}

fn table(read: &DeTable<'_>, sink: &mut Sink) -> Table {
    let mut entries: Vec<Entry> = Vec::with_capacity(read.len());
    for (key, value) in read.iter() {
        if key.get_ref().chars().any(is_control) {
            sink.push(&key.span(), "a key holds a control character", "remove it");
        }
        let node = node(value.span(), value.get_ref(), sink);
        entries.push(Entry { key: key.get_ref().to_string(), key_span: key.span(), node });
    }
    entries.sort_by_key(|e| e.key_span.start);
    Table { entries }
}

fn node(span: Span, read: &DeValue<'_>, sink: &mut Sink) -> Node {
    let value = match read {
        DeValue::String(text) => {
            if text.chars().any(is_control) {
                sink.push(&span, "a value holds a newline or another control character", "remove it");
            }
            Tree::Text(text.to_string())
        }
        DeValue::Integer(digits) => {
            Tree::Integer(i64::from_str_radix(digits.as_str(), digits.radix()).unwrap_or_else(|_| {
                sink.push(&span, "this integer is beyond 63 bits", "write a smaller one");
                0
            }))
        }
        DeValue::Float(digits) => {
            let value = digits.as_str().parse().unwrap_or(f64::NAN);
            if !value.is_finite() {
                sink.push(&span, "this is not a finite number", "write a finite one, or leave the key out");
            }
            Tree::Number(value)
        }
        DeValue::Boolean(value) => Tree::Bool(*value),
        DeValue::Datetime(value) => {
            sink.push(&span, "a date or time of day stands here, and no key takes one", "put it in quotes");
            Tree::Text(value.to_string())
        }
        DeValue::Array(items) => {
            Tree::Array(items.iter().map(|item| node(item.span(), item.get_ref(), sink)).collect())
        }
        DeValue::Table(inner) => Tree::Table(table(inner, sink)),
    };
    Node { span, value }
}

impl Tree {
    /// What the value is, with an article, for messages.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Tree::Text(_) => "text",
            Tree::Integer(_) => "an integer",
            Tree::Number(_) => "a number",
            Tree::Bool(_) => "a truth value",
            Tree::Array(_) => "an array",
            Tree::Table(_) => "a table",
        }
    }

    /// The value as JSON.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Tree::Text(text) => Value::from(text.as_str()),
            Tree::Integer(value) => Value::from(*value),
            Tree::Number(value) => Value::from(*value),
            Tree::Bool(value) => Value::from(*value),
            Tree::Array(items) => items.iter().map(|item| item.value.to_json()).collect(),
            Tree::Table(table) => table.to_json(),
        }
    }
}

impl Table {
    /// The entry of that key.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.key == key)
    }

    /// The text under that key, if it is text.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.node.value {
            Tree::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The table as JSON.
    pub(super) fn to_json(&self) -> Value {
        Value::Object(self.entries.iter().map(|e| (e.key.clone(), e.node.value.to_json())).collect())
    }

    /// Lays `over` over this table: tables merge key by key, everything else is replaced.
    pub(super) fn overlay(&mut self, over: &Table) {
        for entry in &over.entries {
            self.put(entry);
        }
    }

    /// Lays one entry over this table.
    pub(super) fn put(&mut self, entry: &Entry) {
        match self.entries.iter_mut().find(|e| e.key == entry.key) {
            Some(mine) => match (&mut mine.node.value, &entry.node.value) {
                (Tree::Table(below), Tree::Table(above)) => below.overlay(above),
                _ => *mine = entry.clone(),
            },
            None => self.entries.push(entry.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Table, Sink) {
        let mut sink = Sink::default();
        let (table, _) = parse(text, &mut sink);
        (table, sink)
    }

    #[test]
    fn an_overlay_merges_tables_and_replaces_the_rest() {
        let (mut base, _) = read("a = {x = 1, y = {z = 2}}\nlist = [1, 2]\nb = 3");
        let (over, _) = read("a.y.z = 4\na.w = 5\nlist = [9]\nb = {c = 1}");
        base.overlay(&over);
        assert_eq!(
            base.to_json(),
            serde_json::json!({"a": {"x": 1, "y": {"z": 4}, "w": 5}, "list": [9], "b": {"c": 1}})
        );
    }

    #[test]
    fn what_no_study_may_hold_is_found_where_it_stands() {
        let text = "a = \"x\\ny\"\nb = nan\nc = 1979-05-27\nd = 99999999999999999999\n\"e\\u0007\" = 1\nf = 1e999";
        let (_, sink) = read(text);
        let places: Vec<_> = super::super::problem::collect("t".as_ref(), text, vec![(None, sink)])
            .iter()
            .map(|p| (p.line, p.column))
            .collect();
        assert_eq!(places, [(1, 5), (2, 5), (3, 5), (4, 5), (5, 1), (6, 5)]);
    }

    #[test]
    fn every_syntax_error_is_reported() {
        let (_, sink) = read("a = \nb = 1\nc = [1,\n[study\nname = 'x'\nb = 2");
        assert!(sink.found.len() >= 3, "{:?}", sink.found);
    }
}
