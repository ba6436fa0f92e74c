//! The `[[figure]]` section of a study: what a figure shows, checked as a whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::report::section::{Checker, Form, PathStep, SpecProblem, key, words};

/// Keys of a `[[figure]]`.
pub const FIGURE_KEYS: &[&str] = &[
    "key", "kind", "title", "caption", "x_label", "y_label", "scale", "series", "lines", "band", "peak", "table",
    "columns", "error", "level",
];
/// Keys of a line.
pub const LINE_KEYS: &[&str] = &["key", "label", "stage", "arm", "labels"];
const FIGURE: Form = Form::new("a figure", FIGURE_KEYS);
const LINE: Form = Form::new("a line", LINE_KEYS);
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
        let mut check = Checker::default();
        let Some(map) = section.as_object() else {
            check.add(&[], "a figure is a section `[[figure]]`");
            return Err(check.problems);
        };
        check.list::<LineSpec>(map, "lines", &LINE);
        let needs = [("key", json!("k")), ("kind", json!("curves"))];
        let spec: Option<Self> = check.whole(map, &FIGURE, &["lines"], &needs);
        if let Some(spec) = &spec {
            check.figure(spec, stages, tables);
        }
        check.end(spec)
    }
}

impl Checker {
    /// What types cannot say of a figure.
    fn figure(&mut self, spec: &FigureSpec, stages: &[&str], tables: &[Value]) {
        self.name(&[key("key")], &spec.key);
        self.level(spec.level);
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
            (Kind::Curves, _, false) | (Kind::PeakToFinal, true, false) => self.of_series(spec, stages),
            (Kind::Bars, false, _) | (Kind::PeakToFinal, false, true) => self.of_table(spec, tables),
        }
    }

    fn of_series(&mut self, spec: &FigureSpec, stages: &[&str]) {
        if spec.series.as_deref().is_none_or(str::is_empty) {
            self.add(&[], format!("figure `{}` has no `series`: name one, such as \"val_perplexity\"", spec.key));
        }
        if spec.lines.is_empty() {
            self.add(&[], format!("figure `{}` has no `lines`: give at least one", spec.key));
        }
        self.once("lines", spec.lines.iter().map(|l| l.key.as_str()));
        for (i, line) in spec.lines.iter().enumerate() {
            let path = [key("lines"), PathStep::Index(i), key("stage")];
            self.stage(&path, &format!("line `{}` shows", line.key), &line.stage, stages);
        }
    }

    fn of_table(&mut self, spec: &FigureSpec, tables: &[Value]) {
        let keys: Vec<&str> = tables.iter().filter_map(|t| t.get("key")?.as_str()).collect();
        let Some(name) = &spec.table else {
            return self.add(&[], format!("figure `{}` has no `table`: name one of the study's", spec.key));
        };
        let Some(table) = tables.iter().find(|t| t.get("key").and_then(Value::as_str) == Some(name)) else {
            let message = format!("figure `{}` shows the unknown table `{name}`", spec.key);
            return self.unknown(&[key("table")], message, name, keys);
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
                self.unknown(&path, message, column, columns.iter().copied());
            } else if !seen.insert(column) {
                self.add(&path, format!("column `{column}` is named twice: remove one"));
            }
        }
    }
}
