//! What the sections `[[table]]`, `[[figure]]` and `[[document]]` of a study share: how their keys and types are checked.
//!
//! Every problem is reported at once, each with its path inside the section, so that the study's reader can show file,
//! line and column. What the keys mean is for each section's own room. Pure.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::query::{self, Scope};
use crate::record::Name;

/// A step from a section to something inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathStep {
    /// A key.
    Key(String),
    /// An element of an array.
    Index(usize),
}

/// Something wrong in a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecProblem {
    /// Where, from the section.
    pub path: Vec<PathStep>,
    /// What, as a fragment that ends in what to do.
    pub message: String,
    /// The word that is not known, if that is the problem.
    pub word: Option<String>,
    /// What it could have been.
    pub known: Vec<String>,
}

#[cfg(test)]
impl SpecProblem {
    /// `rows.0.key: ...`
    pub(crate) fn said(&self) -> String {
        let step = |step: &PathStep| match step {
            PathStep::Key(key) => key.clone(),
            PathStep::Index(index) => index.to_string(),
        };
        let steps: Vec<String> = self.path.iter().map(step).collect();
        format!("{}: {}", steps.join("."), self.message)
    }
}

/// An enum whose variants are words of a study file; one of them is meant where none is said.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant,)* }
    };
}
pub(super) use words;

/// What a section, or a table inside one, is called in messages, and the keys that it may have.
pub(super) struct Form {
    pub(super) what: &'static str,
    pub(super) keys: &'static [&'static str],
    /// Keys of the tables that some of its keys hold.
    pub(super) inner: &'static [(&'static str, &'static [&'static str])],
}

impl Form {
    pub(super) const fn new(what: &'static str, keys: &'static [&'static str]) -> Self {
        Self { what, keys, inner: &[] }
    }
}

/// The step to a key.
pub(super) fn key(key: &str) -> PathStep {
    PathStep::Key(key.to_owned())
}

/// Gathers the problems of one section.
#[derive(Default)]
pub(super) struct Checker {
    pub(super) problems: Vec<SpecProblem>,
}

impl Checker {
    pub(super) fn add(&mut self, path: &[PathStep], message: impl Into<String>) {
        self.problems.push(SpecProblem { path: path.to_vec(), message: message.into(), word: None, known: vec![] });
    }

    /// A word that is none of those which are known.
    pub(super) fn unknown(
        &mut self,
        path: &[PathStep],
        message: String,
        word: &str,
        known: impl IntoIterator<Item: Into<String>>,
    ) {
        let known = known.into_iter().map(Into::into).collect();
        self.problems.push(SpecProblem { path: path.to_vec(), message, word: Some(word.to_owned()), known });
    }

    fn keys(&mut self, map: &Map<String, Value>, what: &str, known: &[&str], path: &[PathStep]) {
        for name in map.keys().filter(|k| !known.contains(&k.as_str())) {
            let path = [path, &[key(name)]].concat();
            self.unknown(&path, format!("unknown key `{name}` in {what}"), name, known.iter().copied());
        }
    }

    /// The elements of a list of tables, each read on its own, so that each problem has its place.
    pub(super) fn list<T: DeserializeOwned>(&mut self, map: &Map<String, Value>, name: &str, form: &Form) {
        let Some(value) = map.get(name) else { return };
        let Some(items) = value.as_array() else {
            return self.add(&[key(name)], format!("`{name}` must be an array of tables"));
        };
        for (i, item) in items.iter().enumerate() {
            self.part::<T>(item, form, &[key(name), PathStep::Index(i)]);
        }
    }

    /// A table inside the section.
    pub(super) fn part<T: DeserializeOwned>(&mut self, item: &Value, form: &Form, path: &[PathStep]) {
        let Some(map) = item.as_object() else {
            return self.add(path, format!("{} must be a table", form.what));
        };
        let before = self.problems.len();
        self.keys(map, form.what, form.keys, path);
        for (name, known) in form.inner {
            if let Some(Value::Object(inner)) = map.get(*name) {
                self.keys(inner, &format!("`{name}`"), known, &[path, &[key(name)]].concat());
            }
        }
        if self.problems.len() == before
            && let Err(e) = serde_json::from_value::<T>(item.clone())
        {
            self.add(path, format!("{} cannot be read: {e}", form.what));
        }
    }

    /// The section itself, whose `parts` were looked at by [`Self::list`] and [`Self::part`]. `needs` are the keys that it
    /// must have, each with a value that is fine. `None` if anything is wrong so far.
    pub(super) fn whole<T: DeserializeOwned>(
        &mut self,
        map: &Map<String, Value>,
        form: &Form,
        parts: &[&str],
        needs: &[(&str, Value)],
    ) -> Option<T> {
        self.keys(map, form.what, form.keys, &[]);
        let own = |name: &str| form.keys.contains(&name) && !parts.contains(&name);
        for (name, value) in map.iter().filter(|(name, _)| own(name)) {
            // What serde says of it alone is about it.
            let mut alone: Map<String, Value> = needs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
            alone.insert(name.clone(), value.clone());
            if let Err(e) = serde_json::from_value::<T>(Value::Object(alone)) {
                self.add(&[key(name)], format!("`{name}` of {} cannot be read: {e}", form.what));
            }
        }
        for (name, _) in needs.iter().filter(|(name, _)| !map.contains_key(*name)) {
            self.add(&[], format!("{} has no `{name}`: add it", form.what));
        }
        if !self.problems.is_empty() {
            return None;
        }
        match serde_json::from_value(Value::Object(map.clone())) {
            Ok(spec) => Some(spec),
            Err(e) => {
                self.add(&[], format!("{} cannot be read: {e}", form.what));
                None
            }
        }
    }

    /// The spec, if nothing was wrong.
    pub(super) fn end<T>(self, spec: Option<T>) -> Result<T, Vec<SpecProblem>> {
        match spec {
            Some(spec) if self.problems.is_empty() => Ok(spec),
            _ => Err(self.problems),
        }
    }

    pub(super) fn name(&mut self, path: &[PathStep], name: &str) {
        if let Err(problem) = Name::new(name) {
            self.add(path, problem);
        }
    }

    /// The keys of a list's elements: names, each once.
    pub(super) fn once<'a>(&mut self, list: &str, keys: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        for (i, k) in keys.enumerate() {
            let path = [key(list), PathStep::Index(i), key("key")];
            if let Err(problem) = Name::new(k) {
                self.add(&path, problem);
            } else if !seen.insert(k) {
                self.add(&path, format!("`{k}` is the key of two {list}: give each its own"));
            }
        }
    }

    /// A filter on a value tree.
    pub(super) fn filter(&mut self, path: &[PathStep], code: &str) {
        if let Err(e) = query::check(code, &["$row"], Scope::Closed) {
            self.add(path, e.to_string());
        }
    }

    /// A stage of the study; `reader` is what reads it.
    pub(super) fn stage(&mut self, path: &[PathStep], reader: &str, stage: &str, stages: &[&str]) {
        if !stages.contains(&stage) {
            self.unknown(path, format!("{reader} the unknown stage `{stage}`"), stage, stages.iter().copied());
        }
    }

    pub(super) fn digits(&mut self, path: &[PathStep], digits: u8) {
        if digits > 12 {
            self.add(path, "more than 12 decimals: a float has no more to show");
        }
    }

    pub(super) fn level(&mut self, level: f64) {
        if !(0.5..=0.9999).contains(&level) {
            self.add(&[key("level")], "a level lies between 0.5 and 0.9999, such as 0.95");
        }
    }
}
