//! The `[[figure]]` section of a study: what a figure shows, checked as a whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::record::Name;
use crate::report::table::{PathStep, SpecProblem};

/// Keys of a `[[figure]]`.
pub const FIGURE_KEYS: &[&str] = &[
    "key", "kind", "title", "caption", "x_label", "y_label", "scale", "series", "lines", "band", "peak", "table",
    "columns", "error", "level",
];
/// Keys of a line.
pub const LINE_KEYS: &[&str] = &["key", "label", "stage", "arm", "labels"];
/// What error bars may be.
pub const ERROR_WORDS: &[&str] = &["ci", "sd", "none"];

/// A figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FigureSpec {
    /// Its name: of its files, and for people.
    pub key: String,
    /// What is drawn.
    pub kind: Kind,
    /// Printed above it, plain text.
    #[serde(default)]
    pub title: String,
    /// Printed below it on pages, plain text.
    #[serde(default)]
    pub caption: String,
    /// Name of the horizontal axis; its kind's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_label: Option<String>,
    /// Name of the vertical axis; the series or column if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y_label: Option<String>,
    /// The vertical axis.
    #[serde(default)]
    pub scale: Scale,
    /// The series of `run.h5` that curves and peaks are made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<String>,
    /// The lines, in order.
    #[serde(default)]
    pub lines: Vec<LineSpec>,
    /// What the band of a curve shows.
    #[serde(default)]
    pub band: Band,
    /// Which end of a series is its peak.
    #[serde(default)]
    pub peak: Peak,
    /// The table whose numbers are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// Columns of that table, in order.
    #[serde(default)]
    pub columns: Vec<String>,
    /// What the error bars show.
    #[serde(default)]
    pub error: ErrorBars,
    /// Level of the intervals of a band.
    #[serde(default = "default_level")]
    pub level: f64,
}

/// A line: the cells of a stage, or of one arm of it, over its seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineSpec {
    /// Its name.
    pub key: String,
    /// What is printed; its key if empty.
    #[serde(default)]
    pub label: String,
    /// The stage whose cells it shows.
    pub stage: String,
    /// The arm of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// Labels that an arm must have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl LineSpec {
    /// What is printed.
    pub fn text(&self) -> &str {
        if self.label.is_empty() { &self.key } else { &self.label }
    }
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
    /// What a figure draws.
    Kind {
        /// A series over steps, a line for each arm, a band over seeds.
        #[default]
        Curves,
        /// Numbers of a table with intervals.
        Bars,
        /// Where each run stood best, and where it ended.
        PeakToFinal,
    }
}
words! {
    /// How the vertical axis counts.
    Scale {
        /// Evenly.
        #[default]
        Linear,
        /// By powers of ten. Values that are not positive are left out.
        Log,
    }
}
words! {
    /// The band around a curve.
    Band {
        /// From the lowest to the highest run.
        #[default]
        Range,
        /// A sample standard deviation to both sides.
        Sd,
        /// The t interval of the mean.
        Ci,
        /// None.
        None,
    }
}
words! {
    /// Which end of a series is its peak.
    Peak {
        /// The largest value: accuracies.
        #[default]
        Highest,
        /// The smallest value: losses.
        Lowest,
    }
}
words! {
    /// What error bars show.
    ErrorBars {
        /// The interval of the table.
        #[default]
        Ci,
        /// A sample standard deviation to both sides.
        Sd,
        /// Nothing.
        None,
    }
}

fn default_level() -> f64 {
    0.95
}

impl FigureSpec {
    /// Checks a whole section. `stages` are the stages of the study, `tables` its `[[table]]` sections.
    ///
    /// # Errors
    /// Every problem, in the order of the section.
    pub fn parse(section: &Value, stages: &[&str], tables: &[Value]) -> Result<Self, Vec<SpecProblem>> {
        let mut check = Checker { problems: Vec::new() };
        let Some(map) = section.as_object() else {
            check.add(&[], "a figure is a section `[[figure]]`");
            return Err(check.problems);
        };
        check.keys(map, "a figure", FIGURE_KEYS, &[]);
        let lines = check.lines(map);
        // What serde says of the section is about one of its own keys: each is tried alone.
        for (name, value) in map.iter().filter(|(k, _)| FIGURE_KEYS.contains(&k.as_str()) && *k != "lines") {
            let mut one = Map::from_iter([("key".to_owned(), "k".into()), ("kind".to_owned(), "curves".into())]);
            one.insert(name.clone(), value.clone());
            if let Err(e) = serde_json::from_value::<Self>(Value::Object(one)) {
                check.add(&[key(name)], format!("a figure cannot be read: {e}"));
            }
        }
        for name in ["key", "kind"].iter().filter(|name| !map.contains_key(**name)) {
            check.add(&[], format!("a figure has no `{name}`: give it one"));
        }
        if !check.problems.is_empty() {
            return Err(check.problems);
        }
        let mut rest = map.clone();
        rest.remove("lines");
        let spec = match serde_json::from_value::<Self>(Value::Object(rest)) {
            Ok(spec) => Self { lines, ..spec },
            Err(e) => {
                check.add(&[], format!("this is no figure ({e})"));
                return Err(check.problems);
            }
        };
        check.meaning(&spec, stages, tables);
        if check.problems.is_empty() { Ok(spec) } else { Err(check.problems) }
    }
}

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

    fn unknown(&mut self, path: &[PathStep], message: String, word: &str, known: &[&str]) {
        let known = known.iter().map(|k| (*k).to_owned()).collect();
        self.problems.push(SpecProblem { path: path.to_vec(), message, word: Some(word.to_owned()), known });
    }

    fn keys(&mut self, map: &Map<String, Value>, what: &str, known: &[&str], path: &[PathStep]) {
        for name in map.keys().filter(|k| !known.contains(&k.as_str())) {
            self.unknown(&[path, &[key(name)]].concat(), format!("unknown key `{name}` in {what}"), name, known);
        }
    }

    fn lines(&mut self, map: &Map<String, Value>) -> Vec<LineSpec> {
        let Some(value) = map.get("lines") else { return Vec::new() };
        let Some(items) = value.as_array() else {
            self.add(&[key("lines")], "`lines` must be an array of tables");
            return Vec::new();
        };
        let mut lines = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let path = [key("lines"), PathStep::Index(i)];
            let Some(map) = item.as_object() else {
                self.add(&path, "a line must be a table");
                continue;
            };
            let before = self.problems.len();
            self.keys(map, "a line", LINE_KEYS, &path);
            match serde_json::from_value::<LineSpec>(item.clone()) {
                Ok(line) => lines.push(line),
                Err(e) if self.problems.len() == before => self.add(&path, format!("a line cannot be read: {e}")),
                Err(_) => {}
            }
        }
        lines
    }

    /// What types cannot say.
    fn meaning(&mut self, spec: &FigureSpec, stages: &[&str], tables: &[Value]) {
        if let Err(problem) = Name::new(&spec.key) {
            self.add(&[key("key")], problem);
        }
        if !(0.5..=0.9999).contains(&spec.level) {
            self.add(&[key("level")], "a level lies between 0.5 and 0.9999, such as 0.95");
        }
        let from_series = spec.series.is_some() || !spec.lines.is_empty();
        let from_table = spec.table.is_some() || !spec.columns.is_empty();
        match (spec.kind, from_series, from_table) {
            (Kind::Curves, _, true) => self.add(&[], "curves are made of a series: say `series` and `lines`, no table"),
            (Kind::Bars, true, _) => self.add(&[], "bars are made of a table: say `table` and `columns`, no series"),
            (Kind::PeakToFinal, true, true) | (Kind::PeakToFinal, false, false) => {
                self.add(
                    &[],
                    "peaks are made of `series` and `lines`, or of `table` and two `columns`: say one of both",
                );
            }
            (Kind::Curves, _, false) | (Kind::PeakToFinal, true, false) => self.series(spec, stages),
            (Kind::Bars, false, _) | (Kind::PeakToFinal, false, true) => self.table(spec, tables),
        }
    }

    fn series(&mut self, spec: &FigureSpec, stages: &[&str]) {
        if spec.series.as_deref().is_none_or(str::is_empty) {
            self.add(&[], format!("figure `{}` has no `series`: name one, such as \"val_perplexity\"", spec.key));
        }
        if spec.lines.is_empty() {
            self.add(&[], format!("figure `{}` has no `lines`: give at least one", spec.key));
        }
        let mut seen = BTreeSet::new();
        for (i, line) in spec.lines.iter().enumerate() {
            let at = |name: &str| [key("lines"), PathStep::Index(i), key(name)];
            if let Err(problem) = Name::new(&line.key) {
                self.add(&at("key"), problem);
            } else if !seen.insert(&line.key) {
                self.add(&at("key"), format!("`{}` is the key of two lines: give each its own", line.key));
            }
            if !stages.contains(&line.stage.as_str()) {
                let message = format!("line `{}` shows the unknown stage `{}`", line.key, line.stage);
                self.unknown(&at("stage"), message, &line.stage, stages);
            }
        }
    }

    fn table(&mut self, spec: &FigureSpec, tables: &[Value]) {
        let keys: Vec<&str> = tables.iter().filter_map(|t| t.get("key")?.as_str()).collect();
        let Some(name) = &spec.table else {
            return self.add(&[], format!("figure `{}` has no `table`: name one of the study's", spec.key));
        };
        let Some(table) = tables.iter().find(|t| t.get("key").and_then(Value::as_str) == Some(name)) else {
            let message = format!("figure `{}` shows the unknown table `{name}`", spec.key);
            return self.unknown(&[key("table")], message, name, &keys);
        };
        let columns = table.get("columns").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let columns: Vec<&str> = columns.iter().filter_map(|c| c.get("key")?.as_str()).collect();
        if spec.columns.is_empty() {
            self.add(&[], format!("figure `{}` has no `columns`: name some of table `{name}`", spec.key));
        }
        if spec.kind == Kind::PeakToFinal && !matches!(spec.columns.len(), 0 | 2) {
            self.add(&[key("columns")], "peaks take two columns: that of the peak, then that of the end");
        }
        let mut seen = BTreeSet::new();
        for (i, column) in spec.columns.iter().enumerate() {
            let path = [key("columns"), PathStep::Index(i)];
            if !columns.contains(&column.as_str()) {
                let message = format!("figure `{}` shows the unknown column `{column}` of table `{name}`", spec.key);
                self.unknown(&path, message, column, &columns);
            } else if !seen.insert(column) {
                self.add(&path, format!("column `{column}` is named twice: remove one"));
            }
        }
    }
}
