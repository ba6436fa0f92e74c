//! One table of a file, read key by key: what is wrong is noted, what is right is returned.

use std::ops::RangeInclusive;

use super::problem::{Sink, Span};
use super::tree::{Entry, Node, Table, Tree};
use crate::record::Name;

/// A table with what a reader calls it.
pub(super) struct Section<'a> {
    pub(super) table: &'a Table,
    /// Where it starts: the place of what it lacks.
    pub(super) at: Span,
    /// What people call it: `stage train_baseline`.
    pub(super) what: String,
}

impl<'a> Section<'a> {
    /// The table; keys that are not in `known` are problems.
    pub(super) fn new(
        table: &'a Table,
        at: Span,
        what: impl Into<String>,
        known: &[&'static str],
        sink: &mut Sink,
    ) -> Self {
        let what = what.into();
        for entry in table.entries.iter().filter(|e| !known.contains(&e.key.as_str())) {
            let message = format!("unknown key `{}` in {what}", entry.key);
            sink.unknown(&entry.key_span, message, &entry.key, known.iter().copied());
        }
        Self { table, at, what }
    }

    /// The entry of a key.
    pub(super) fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.table.get(key)
    }

    /// Where a key stands, or else the section.
    pub(super) fn place(&self, key: &str) -> Span {
        self.entry(key).map_or_else(|| self.at.clone(), |e| e.key_span.clone())
    }

    /// Notes that a key is missing.
    pub(super) fn missing(&self, key: &str, help: impl Into<String>, sink: &mut Sink) {
        sink.push(&self.at, format!("{} has no `{key}`", self.what), help);
    }

    fn wrong(&self, key: &str, node: &Node, wanted: &str, sink: &mut Sink) {
        let message = format!("`{key}` in {} must be {wanted}, not {}", self.what, node.value.noun());
        sink.push(&node.span, message, "");
    }

    /// Text with its place.
    pub(super) fn text(&self, key: &str, sink: &mut Sink) -> Option<(&'a str, Span)> {
        let node = &self.entry(key)?.node;
        match &node.value {
            Tree::Text(text) => Some((text, node.span.clone())),
            _ => {
                self.wrong(key, node, "text", sink);
                None
            }
        }
    }

    /// A [`Name`].
    pub(super) fn name(&self, key: &str, sink: &mut Sink) -> Option<Name> {
        let (text, span) = self.text(key, sink)?;
        match Name::new(text) {
            Ok(name) => Some(name),
            Err(problem) => {
                sink.push(&span, format!("`{key}` in {}: {problem}", self.what), "");
                None
            }
        }
    }

    /// One of some words, by its index.
    pub(super) fn one_of(&self, key: &str, words: &[&'static str], sink: &mut Sink) -> Option<&'static str> {
        let (text, span) = self.text(key, sink)?;
        let found = words.iter().find(|w| **w == text).copied();
        if found.is_none() {
            let message = format!("`{key}` in {} cannot be `{text}`", self.what);
            sink.unknown(&span, message, text, words.iter().copied());
        }
        found
    }

    /// An integer within bounds.
    pub(super) fn integer(&self, key: &str, bounds: RangeInclusive<i64>, sink: &mut Sink) -> Option<i64> {
        let node = &self.entry(key)?.node;
        let wanted = format!("an integer from {} to {}", bounds.start(), bounds.end());
        match node.value {
            Tree::Integer(value) if bounds.contains(&value) => Some(value),
            Tree::Integer(value) => {
                sink.push(&node.span, format!("`{key}` in {} must be {wanted}, not {value}", self.what), "");
                None
            }
            _ => {
                self.wrong(key, node, &wanted, sink);
                None
            }
        }
    }

    /// A number, not negative.
    pub(super) fn amount(&self, key: &str, sink: &mut Sink) -> Option<f64> {
        let node = &self.entry(key)?.node;
        match node.value {
            Tree::Integer(value) if value >= 0 => Some(value as f64),
            Tree::Number(value) if value >= 0.0 => Some(value),
            Tree::Integer(_) | Tree::Number(_) => {
                sink.push(&node.span, format!("`{key}` in {} must not be negative", self.what), "");
                None
            }
            _ => {
                self.wrong(key, node, "a number", sink);
                None
            }
        }
    }

    /// A truth value.
    pub(super) fn bool(&self, key: &str, sink: &mut Sink) -> Option<bool> {
        let node = &self.entry(key)?.node;
        match node.value {
            Tree::Bool(value) => Some(value),
            _ => {
                self.wrong(key, node, "true or false", sink);
                None
            }
        }
    }

    /// Text that a rule turns into a value: a time, a size.
    pub(super) fn parsed<T>(&self, key: &str, rule: impl Fn(&str) -> Result<T, String>, sink: &mut Sink) -> Option<T> {
        let (text, span) = self.text(key, sink)?;
        match rule(text) {
            Ok(value) => Some(value),
            Err(problem) => {
                sink.push(&span, format!("`{key}` in {}: {problem}", self.what), "");
                None
            }
        }
    }

    /// An array.
    pub(super) fn array(&self, key: &str, sink: &mut Sink) -> Option<&'a [Node]> {
        let node = &self.entry(key)?.node;
        match &node.value {
            Tree::Array(items) => Some(items),
            _ => {
                self.wrong(key, node, "an array", sink);
                None
            }
        }
    }

    /// Texts with their places; what is no text is noted and left out.
    pub(super) fn texts(&self, key: &str, sink: &mut Sink) -> Vec<(&'a str, Span)> {
        let items = self.array(key, sink).unwrap_or_default();
        let mut texts = Vec::with_capacity(items.len());
        for item in items {
            match &item.value {
                Tree::Text(text) => texts.push((text.as_str(), item.span.clone())),
                _ => self.wrong(key, item, "an array of texts", sink),
            }
        }
        texts
    }

    /// A table with the place of its key.
    pub(super) fn table(&self, key: &str, sink: &mut Sink) -> Option<(&'a Table, Span)> {
        let entry = self.entry(key)?;
        match &entry.node.value {
            Tree::Table(table) => Some((table, entry.key_span.clone())),
            _ => {
                self.wrong(key, &entry.node, "a table", sink);
                None
            }
        }
    }

    /// An array of tables with their places; what is no table is noted and left out.
    pub(super) fn tables(&self, key: &str, sink: &mut Sink) -> Vec<(&'a Table, Span)> {
        let Some(entry) = self.entry(key) else { return Vec::new() };
        let Tree::Array(items) = &entry.node.value else {
            let message =
                format!("`{key}` in {} must be an array of tables, not {}", self.what, entry.node.value.noun());
            sink.push(&entry.key_span, message, format!("write `[[{key}]]`"));
            return Vec::new();
        };
        let mut tables = Vec::with_capacity(items.len());
        for item in items {
            match &item.value {
                Tree::Table(table) => tables.push((table, item.span.clone())),
                _ => self.wrong(key, item, "an array of tables", sink),
            }
        }
        tables
    }

    /// A table of texts, sorted by key; every key is a name.
    pub(super) fn text_map(&self, key: &str, sink: &mut Sink) -> std::collections::BTreeMap<String, String> {
        let mut map = std::collections::BTreeMap::new();
        for entry in self.table(key, sink).map(|(t, _)| t.entries.as_slice()).unwrap_or_default() {
            if let Err(problem) = Name::new(&entry.key) {
                sink.push(&entry.key_span, format!("in `{key}` of {}: {problem}", self.what), "");
                continue;
            }
            match &entry.node.value {
                Tree::Text(text) => {
                    map.insert(entry.key.clone(), text.clone());
                }
                _ => self.wrong(key, &entry.node, "a table of texts", sink),
            }
        }
        map
    }
}
