//! The `[[table]]` section of a study: what a table shows, checked as a whole.
//!
//! [`TableSpec::parse`] reports every problem at once, each with its path inside the section, so that the
//! study's reader can show file, line and column.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::record::Name;
use crate::report::query::{self, Scope};

/// Keys of a `[[table]]`.
pub const TABLE_KEYS: &[&str] =
    &["key", "label", "caption", "stub", "rows", "columns", "partial", "best", "level", "notes"];
/// Keys of a row.
pub const ROW_KEYS: &[&str] = &["key", "label", "arm", "labels", "with"];
/// Keys of a column.
pub const COLUMN_KEYS: &[&str] =
    &["key", "label", "stage", "metric", "delta", "show", "digits", "scale", "notation", "better"];
/// Keys of a column's `delta`.
pub const DELTA_KEYS: &[&str] = &["of", "from", "as"];

/// A table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    /// Its name: of its files, and for people.
    pub key: String,
    /// Its LaTeX label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its caption, plain text.
    #[serde(default)]
    pub caption: String,
    /// Header of the column of row labels.
    #[serde(default)]
    pub stub: String,
    /// Rows, in order.
    pub rows: Vec<RowSpec>,
    /// Columns, in order.
    pub columns: Vec<ColumnSpec>,
    /// What to do with a cell some of whose runs are missing.
    #[serde(default)]
    pub partial: Partial,
    /// Whether the best value of a column that says which is `better` is set in bold.
    #[serde(default)]
    pub best: bool,
    /// Level of intervals.
    #[serde(default = "default_level")]
    pub level: f64,
    /// Footnotes, plain text.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowSpec {
    /// Its name.
    pub key: String,
    /// What is printed; its key if empty.
    #[serde(default)]
    pub label: String,
    /// The arm whose cells it takes, of stages that have arms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// Labels that an arm must have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `$row` in metrics.
    #[serde(default)]
    pub with: BTreeMap<String, String>,
}

/// A column: a metric of a stage's cells, or the difference of another column to a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnSpec {
    /// Its name.
    pub key: String,
    /// What is printed; its key if empty.
    #[serde(default)]
    pub label: String,
    /// The stage whose cells are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// A jq filter on a cell's value tree that gives one number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// In place of stage and metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaSpec>,
    /// What of the runs is printed.
    #[serde(default)]
    pub show: Show,
    /// Decimals.
    #[serde(default = "default_digits")]
    pub digits: u8,
    /// Every value is multiplied by this.
    #[serde(default = "default_scale")]
    pub scale: f64,
    /// How numbers are written.
    #[serde(default)]
    pub notation: Notation,
    /// Which end is better, for bold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub better: Option<Better>,
}

/// The difference of a column's value to that of another row, paired by seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaSpec {
    /// Key of the column.
    pub of: String,
    /// Key of the row that is subtracted.
    pub from: String,
    /// Absolute, or in percent of the other row's value.
    #[serde(default, rename = "as")]
    pub kind: DeltaKind,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant,)* }
    };
}

words! {
    /// How a difference is expressed.
    DeltaKind {
        /// value - other.
        #[default]
        Difference,
        /// 100 (value - other) / other.
        Percent,
    }
}
words! {
    /// What of the runs is printed.
    Show {
        /// The mean.
        #[default]
        Mean,
        /// Mean and sample standard deviation.
        MeanSd,
        /// Mean and t interval.
        MeanCi,
        /// Number of runs of the expected ones.
        N,
    }
}
words! {
    /// How numbers are written.
    Notation {
        /// Digits.
        #[default]
        Plain,
        /// With K, M, B, T for thousands.
        Suffix,
    }
}
words! {
    /// What to do with a cell some of whose runs are missing.
    Partial {
        /// The table is refused.
        #[default]
        Error,
        /// The cell shows what there is, marked, with the reason below.
        Mark,
        /// The cell is shown as missing, with the reason below.
        Drop,
    }
}

/// Which end of a column is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// The largest.
    Higher,
    /// The smallest.
    Lower,
}

fn default_level() -> f64 {
    0.95
}
fn default_digits() -> u8 {
    2
}
fn default_scale() -> f64 {
    1.0
}

/// A step from a section to something inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathStep {
    /// A key.
    Key(String),
    /// An element of an array.
    Index(usize),
}

/// Something wrong in a `[[table]]`.
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

impl TableSpec {
    /// Checks a whole section. `stages` are the stages of the study.
    ///
    /// # Errors
    /// Every problem, in the order of the section.
    pub fn parse(section: &Value, stages: &[&str]) -> Result<Self, Vec<SpecProblem>> {
        let mut check = Checker::default();
        check.section(section);
        let spec = match serde_json::from_value::<Self>(section.clone()) {
            Ok(spec) => spec,
            Err(e) => {
                // Rows and columns were tried one by one: what is left is about the section itself.
                if check.problems.is_empty() {
                    check.add(&[], format!("this is no table ({e})"));
                }
                return Err(check.problems);
            }
        };
        check.meaning(&spec, stages);
        if check.problems.is_empty() { Ok(spec) } else { Err(check.problems) }
    }

    /// The column of that key.
    pub fn column(&self, key: &str) -> Option<&ColumnSpec> {
        self.columns.iter().find(|c| c.key == key)
    }
}

impl RowSpec {
    /// What is printed.
    pub fn text(&self) -> &str {
        if self.label.is_empty() { &self.key } else { &self.label }
    }
}

impl ColumnSpec {
    /// What is printed.
    pub fn text(&self) -> &str {
        if self.label.is_empty() { &self.key } else { &self.label }
    }
}

#[derive(Default)]
struct Checker {
    problems: Vec<SpecProblem>,
}

fn key(key: &str) -> PathStep {
    PathStep::Key(key.to_owned())
}

impl Checker {
    fn add(&mut self, path: &[PathStep], message: impl Into<String>) {
        self.problems.push(SpecProblem { path: path.to_vec(), message: message.into(), word: None, known: vec![] });
    }

    fn unknown(
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

    /// Keys and types, level by level.
    fn section(&mut self, section: &Value) {
        let Some(map) = section.as_object() else {
            return self.add(&[], "a table is a section `[[table]]`");
        };
        self.keys(map, "a table", TABLE_KEYS, &[]);
        let before = self.problems.len();
        self.list::<RowSpec>(map, "rows", "a row", ROW_KEYS);
        self.list::<ColumnSpec>(map, "columns", "a column", COLUMN_KEYS);
        // With rows and columns set aside, what serde says is about one of the section's own keys.
        let mut rest = map.clone();
        for name in ["rows", "columns"] {
            if self.problems.len() > before || map.contains_key(name) {
                rest.insert(name.to_owned(), Value::Array(vec![]));
            }
        }
        rest.retain(|k, _| TABLE_KEYS.contains(&k.as_str()));
        if let Err(e) = serde_json::from_value::<TableSpec>(Value::Object(rest.clone())) {
            let wrong = rest.iter().find(|(k, v)| {
                let mut one = Map::from_iter([((*k).clone(), (*v).clone())]);
                for (name, value) in
                    [("key", Value::from("k")), ("rows", Value::Array(vec![])), ("columns", Value::Array(vec![]))]
                {
                    one.entry(name).or_insert(value);
                }
                serde_json::from_value::<TableSpec>(Value::Object(one)).is_err()
            });
            let path: Vec<PathStep> = wrong.map(|(k, _)| key(k)).into_iter().collect();
            self.add(&path, format!("a table cannot be read: {e}"));
        }
    }

    fn list<T: serde::de::DeserializeOwned>(
        &mut self,
        map: &Map<String, Value>,
        name: &str,
        what: &str,
        known: &[&str],
    ) {
        let Some(value) = map.get(name) else { return };
        let Some(items) = value.as_array() else {
            return self.add(&[key(name)], format!("`{name}` must be an array of tables"));
        };
        for (i, item) in items.iter().enumerate() {
            let path = [key(name), PathStep::Index(i)];
            let Some(map) = item.as_object() else {
                self.add(&path, format!("{what} must be a table"));
                continue;
            };
            let before = self.problems.len();
            self.keys(map, what, known, &path);
            if let Some(Value::Object(delta)) = map.get("delta").filter(|_| name == "columns") {
                self.keys(delta, "`delta`", DELTA_KEYS, &[&path[..], &[key("delta")]].concat());
            }
            if self.problems.len() == before
                && let Err(e) = serde_json::from_value::<T>(item.clone())
            {
                self.add(&path, format!("{what} cannot be read: {e}"));
            }
        }
    }

    /// What types cannot say.
    fn meaning(&mut self, spec: &TableSpec, stages: &[&str]) {
        if let Err(problem) = Name::new(&spec.key) {
            self.add(&[key("key")], problem);
        }
        if let Some(label) = &spec.label {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '.' | '_' | '-' | '/');
            if label.is_empty() || !label.chars().all(fits) {
                self.add(&[key("label")], format!("{label:?} is no label: use letters, digits and `:._-/`"));
            }
        }
        if !(0.5..=0.9999).contains(&spec.level) {
            self.add(&[key("level")], "a level lies between 0.5 and 0.9999, such as 0.95");
        }
        for (name, list) in [("rows", spec.rows.is_empty()), ("columns", spec.columns.is_empty())] {
            if list {
                self.add(&[key(name)], format!("table `{}` has no {name}: give at least one", spec.key));
            }
        }
        self.once("rows", spec.rows.iter().map(|r| r.key.as_str()));
        self.once("columns", spec.columns.iter().map(|c| c.key.as_str()));
        for (i, column) in spec.columns.iter().enumerate() {
            let path = [key("columns"), PathStep::Index(i)];
            self.column(spec, column, &path, stages);
        }
    }

    fn column(&mut self, spec: &TableSpec, column: &ColumnSpec, path: &[PathStep], stages: &[&str]) {
        let at = |name: &str| [path, &[key(name)]].concat();
        match (&column.delta, &column.stage, &column.metric) {
            (None, Some(stage), Some(metric)) => {
                if !stages.contains(&stage.as_str()) {
                    let message = format!("column `{}` reads the unknown stage `{stage}`", column.key);
                    self.unknown(&at("stage"), message, stage, stages.iter().copied());
                }
                if let Err(e) = query::check(metric, &["$row"], Scope::Closed) {
                    self.add(&at("metric"), e.to_string());
                }
            }
            (Some(delta), None, None) => {
                if !spec.rows.iter().any(|r| r.key == delta.from) {
                    let message = format!("column `{}` subtracts the unknown row `{}`", column.key, delta.from);
                    self.unknown(&at("delta"), message, &delta.from, spec.rows.iter().map(|r| r.key.clone()));
                }
                match spec.column(&delta.of) {
                    Some(of) if of.delta.is_none() => {}
                    Some(_) => self.add(&at("delta"), "a difference of differences: name a column with a metric"),
                    None => {
                        let message = format!("column `{}` takes the unknown column `{}`", column.key, delta.of);
                        self.unknown(&at("delta"), message, &delta.of, spec.columns.iter().map(|c| c.key.clone()));
                    }
                }
            }
            _ => self.add(path, format!("column `{}` needs either `stage` and `metric`, or `delta`", column.key)),
        }
        if column.digits > 12 {
            self.add(&at("digits"), "more than 12 decimals: a float has no more to show");
        }
        if !column.scale.is_finite() || column.scale == 0.0 {
            self.add(&at("scale"), "a scale is a finite number other than 0");
        }
        if column.notation == Notation::Suffix && !matches!(column.show, Show::Mean | Show::N) {
            self.add(&at("notation"), "numbers with a suffix show the mean only: use `show = \"mean\"`");
        }
    }

    fn once<'a>(&mut self, list: &str, keys: impl Iterator<Item = &'a str>) {
        let mut seen = std::collections::BTreeSet::new();
        for (i, k) in keys.enumerate() {
            let path = [key(list), PathStep::Index(i), key("key")];
            if let Err(problem) = Name::new(k) {
                self.add(&path, problem);
            } else if !seen.insert(k) {
                self.add(&path, format!("`{k}` is the key of two {list}: give each its own"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Value {
        json!({
            "key": "foundation",
            "label": "tab:foundation-preliminary",
            "rows": [{"key": "baseline", "with": {"model": "baseline_pythia"}}, {"key": "monotonic"}],
            "columns": [
                {"key": "ppl", "stage": "evaluate", "metric": ".pile_test[$row.model].perplexity", "show": "mean_sd"},
                {"key": "gap", "delta": {"of": "ppl", "from": "baseline", "as": "percent"}, "digits": 1},
            ],
        })
    }

    #[track_caller]
    fn problem(edit: impl Fn(&mut Value), path: &str, fragment: &str) {
        let mut section = good();
        edit(&mut section);
        let problems = TableSpec::parse(&section, &["evaluate", "uat"]).unwrap_err();
        let paths: Vec<String> = problems
            .iter()
            .map(|p| {
                let steps: Vec<String> = p
                    .path
                    .iter()
                    .map(|s| match s {
                        PathStep::Key(k) => k.clone(),
                        PathStep::Index(i) => i.to_string(),
                    })
                    .collect();
                format!("{}: {}", steps.join("."), p.message)
            })
            .collect();
        assert_eq!(paths.len(), 1, "{paths:#?}");
        assert!(paths[0].starts_with(&format!("{path}:")) && paths[0].contains(fragment), "{paths:#?}");
    }

    #[test]
    fn a_section_survives_its_own_json() {
        let spec = TableSpec::parse(&good(), &["evaluate"]).unwrap();
        assert_eq!(spec.columns[0].show, Show::MeanSd);
        assert_eq!(spec.level, 0.95);
        let again = serde_json::to_value(&spec).unwrap();
        assert_eq!(TableSpec::parse(&again, &["evaluate"]).unwrap(), spec);
    }

    #[test]
    fn problems_have_places() {
        problem(|s| s["colums"] = json!([]), "colums", "unknown key `colums` in a table");
        problem(|s| s["rows"][0]["lable"] = json!("x"), "rows.0.lable", "unknown key `lable` in a row");
        problem(|s| s["columns"][1]["delta"]["form"] = json!("x"), "columns.1.delta.form", "unknown key");
        problem(|s| s["columns"][0]["show"] = json!("median_sd"), "columns.0", "median_sd");
        problem(|s| s["columns"][0]["digits"] = json!(-1), "columns.0", "-1");
        problem(|s| s["columns"][0]["digits"] = json!(40), "columns.0.digits", "12 decimals");
        problem(|s| s["columns"][0]["stage"] = json!("evalute"), "columns.0.stage", "unknown stage");
        problem(|s| s["columns"][0]["metric"] = json!(".a | env"), "columns.0.metric", "not allowed");
        problem(|s| s["columns"][0]["metric"] = json!(".a |"), "columns.0.metric", "line 1, column 5");
        problem(|s| s["columns"][1]["delta"]["from"] = json!("base"), "columns.1.delta", "unknown row");
        problem(|s| s["columns"][1]["delta"]["of"] = json!("gap"), "columns.1.delta", "difference of differences");
        problem(|s| s["columns"][1]["key"] = json!("ppl"), "columns.1.key", "two columns");
        problem(|s| s["columns"] = json!([]), "columns", "no columns");
        problem(|s| s["rows"] = json!("x"), "rows", "array");
        problem(|s| s["key"] = json!("$(touch x)"), "key", "not a name");
        problem(|s| s["label"] = json!("tab:}\\input{x}"), "label", "no label");
        problem(|s| s["level"] = json!(95), "level", "0.95");
        problem(|s| s["best"] = json!("yes"), "best", "boolean");
        problem(|s| s["partial"] = json!("ignore"), "partial", "ignore");
        problem(|s| s["columns"][0]["stage"] = Value::Null, "columns.0", "either");
    }

    #[test]
    fn all_problems_come_at_once() {
        let mut section = good();
        section["columns"][0]["stage"] = json!("x");
        section["columns"][0]["scale"] = json!(0);
        section["label"] = json!("{");
        assert_eq!(TableSpec::parse(&section, &["evaluate"]).unwrap_err().len(), 3);
        let no_table = TableSpec::parse(&json!(3), &[]).unwrap_err();
        assert!(no_table[0].message.contains("[[table]]"));
    }
}
