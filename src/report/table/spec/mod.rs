//! The `[[table]]` section of a study: what a table shows, checked as a whole.
//!
//! [`TableSpec::parse`] reports every problem at once, each with its path inside the section, so that the
//! study's reader can show file, line and column.

mod check;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::grid::Env;
use super::number::Rounding;
use crate::report::section::{SpecProblem, words};
use crate::report::stats::Correction;

/// Keys of a `[[table]]`.
pub const TABLE_KEYS: &[&str] = &[
    "key",
    "label",
    "caption",
    "stub",
    "rows",
    "columns",
    "studies",
    "seeds",
    "partial",
    "best",
    "second",
    "level",
    "interval",
    "resamples",
    "bootstrap_seed",
    "allow",
    "test",
    "notes",
    "footnotes",
    "appendix",
    "env",
    "plain",
    "multirow",
    "threeparttable",
];
/// Keys of a row.
pub const ROW_KEYS: &[&str] = &["key", "label", "group", "study", "arm", "labels", "with"];
/// Keys of a column.
pub const COLUMN_KEYS: &[&str] = &[
    "key",
    "label",
    "span",
    "stage",
    "labels",
    "metric",
    "delta",
    "ratio",
    "show",
    "digits",
    "significant",
    "scale",
    "notation",
    "better",
];
/// Keys of a column's `delta`.
pub const DELTA_KEYS: &[&str] = &["of", "from", "from_column", "as"];
/// Keys of a column's `ratio`.
pub const RATIO_KEYS: &[&str] = &["of", "to", "to_column", "error"];
/// Keys of a table's `test`.
pub const TEST_KEYS: &[&str] = &["on", "against", "method", "items", "family", "alpha", "mark", "levels"];
/// Keys of a level of a test.
pub const LEVEL_KEYS: &[&str] = &["alpha", "mark"];
/// Keys of a footnote.
pub const FOOTNOTE_KEYS: &[&str] = &["row", "column", "text"];

/// Ending of the key of a table's appendix.
pub const APPENDIX_ENDING: &str = "-appendix";

/// Fewest runs whose percentile bootstrap is not too narrow to be trusted.
pub const LEAST_BOOTSTRAP: usize = 10;

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
    /// The studies whose cells it reads, `NAME` or `NAME/PROFILE`; this one alone if empty.
    #[serde(default)]
    pub studies: Vec<String>,
    /// The seeds that it expects; those of the plan if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seeds: Option<Seeds>,
    /// What to do with a cell some of whose runs are missing.
    #[serde(default)]
    pub partial: Partial,
    /// Whether the best value of a column that says which is `better` is set in bold.
    #[serde(default)]
    pub best: bool,
    /// Whether the second best is marked, too.
    #[serde(default)]
    pub second: bool,
    /// Level of intervals.
    #[serde(default = "default_level")]
    pub level: f64,
    /// How intervals are made.
    #[serde(default)]
    pub interval: IntervalMethod,
    /// Resamples of a bootstrap, and drawn sign flips of a test.
    #[serde(default = "default_resamples")]
    pub resamples: usize,
    /// Where the random numbers of every cell begin, with its keys.
    #[serde(default)]
    pub bootstrap_seed: u64,
    /// What is done although it is not advised.
    #[serde(default)]
    pub allow: Vec<Allow>,
    /// A test of significance that marks cells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<TestSpec>,
    /// Notes below the table, plain text.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Notes of a row, a column or a cell.
    #[serde(default)]
    pub footnotes: Vec<FootnoteSpec>,
    /// Whether a second table gives the value of each seed.
    #[serde(default)]
    pub appendix: bool,
    /// The LaTeX environment.
    #[serde(default)]
    pub env: Env,
    /// LaTeX without any package but booktabs.
    #[serde(default)]
    pub plain: bool,
    /// Groups of rows in a column of their own.
    #[serde(default)]
    pub multirow: bool,
    /// Notes by `threeparttable`.
    #[serde(default)]
    pub threeparttable: bool,
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
    /// The heading that it stands under, with its neighbours of the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The study whose cells it takes, of a table over several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub study: Option<String>,
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

/// A column: a metric of a stage's cells, or a comparison of another column to a row or a column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnSpec {
    /// Its name.
    pub key: String,
    /// What is printed; its key if empty.
    #[serde(default)]
    pub label: String,
    /// The header above it, shared with its neighbours of the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<String>,
    /// The stage whose cells are read, or several that have a row's arm between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stages>,
    /// Labels that an arm must have, besides those of the row.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// A jq filter on a cell's value tree that gives one number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// In place of stage and metric: a difference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaSpec>,
    /// In place of stage and metric: a ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<RatioSpec>,
    /// What of the runs is printed.
    #[serde(default)]
    pub show: Show,
    /// Decimals; 2 if neither they nor significant digits are said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digits: Option<u8>,
    /// Significant digits, in place of decimals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub significant: Option<u8>,
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

/// The difference of a column's value to that of another row or column, paired by seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaSpec {
    /// Key of the column.
    pub of: String,
    /// Key of the row that is subtracted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Key of the column that is subtracted, in the same row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_column: Option<String>,
    /// Absolute, or in percent of the other value.
    #[serde(default, rename = "as")]
    pub kind: DeltaKind,
}

/// The ratio of a column's mean to that of another row or column, over the common seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatioSpec {
    /// Key of the column.
    pub of: String,
    /// Key of the row that is divided by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Key of the column that is divided by, in the same row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_column: Option<String>,
    /// How its error is found.
    #[serde(default)]
    pub error: RatioError,
}

/// Which cells get a mark of significance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestSpec {
    /// The columns it is about.
    pub on: Vec<String>,
    /// The row that columns with a metric are compared with; differences are compared with 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// The test.
    pub method: TestMethod,
    /// A filter on a whole run that gives its items, for a test that compares item by item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub items: Option<String>,
    /// How p-values are corrected for the number of tests in this table.
    pub family: Correction,
    /// Corrected p-values up to this are marked.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// What a cell that passes shows.
    #[serde(default = "default_mark")]
    pub mark: String,
    /// Smaller alphas, each with a mark of its own.
    #[serde(default)]
    pub levels: Vec<LevelSpec>,
}

/// A smaller alpha of a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LevelSpec {
    /// Corrected p-values up to this have the mark.
    pub alpha: f64,
    /// The mark.
    pub mark: String,
}

impl TestSpec {
    /// Its levels, the strictest first, each an alpha and its mark.
    pub fn strictest_first(&self) -> Vec<(f64, &str)> {
        let mut levels: Vec<(f64, &str)> = self.levels.iter().map(|l| (l.alpha, l.mark.as_str())).collect();
        levels.push((self.alpha, &self.mark));
        levels.sort_by(|a, b| a.0.total_cmp(&b.0));
        levels
    }
}

/// A footnote of a row's label, a column's header or a cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FootnoteSpec {
    /// Key of the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<String>,
    /// Key of the column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Plain text.
    pub text: String,
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
    /// How the error of a ratio is found.
    RatioError {
        /// Relative errors of the two means added in squares: the two sides are taken as independent.
        #[default]
        Propagated,
        /// Common seeds drawn with replacement, the same for both sides.
        Bootstrap,
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
        /// Mean and interval.
        MeanCi,
        /// The median.
        Median,
        /// The interquartile mean.
        Iqm,
        /// The interquartile mean of all runs and tasks, of a metric that gives a number for each task, and its interval.
        IqmTasks,
        /// Number of runs of the expected ones.
        N,
        /// The value of each run, in the order of seeds.
        Values,
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
words! {
    /// How intervals of a mean are made.
    IntervalMethod {
        /// Student's t.
        #[default]
        T,
        /// Percentiles of resampled runs.
        Bootstrap,
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

/// A test of paired values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TestMethod {
    /// Paired t-test over common seeds.
    PairedT,
    /// Sign-flip test over common seeds.
    SignFlip,
    /// McNemar's test of one run against one, item by item: exact.
    Mcnemar,
    /// McNemar's test by mid-p.
    McnemarMidP,
    /// Bootstrap of the mean difference over items, each the mean over common seeds.
    PairedBootstrap,
}

/// What is done although it is not advised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allow {
    /// A percentile bootstrap of fewer than [`LEAST_BOOTSTRAP`] runs.
    SmallBootstrap,
}

/// Stages that a column reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stages(Vec<String>);

impl Stages {
    /// Their names, in the study's words.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl std::fmt::Display for Stages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("`, `"))
    }
}

impl Serialize for Stages {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Stages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = |v: &Value| v.as_str().map(str::to_owned);
        let stages = match &Value::deserialize(deserializer)? {
            Value::Array(items) if !items.is_empty() => items.iter().map(name).collect::<Option<Vec<_>>>(),
            other => name(other).map(|name| vec![name]),
        };
        stages.map(Self).ok_or_else(|| {
            serde::de::Error::custom("`stage` is the name of a stage, such as \"evaluate\", or a list of names")
        })
    }
}

/// The seeds that a table expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seeds {
    /// So many, whichever the plan has.
    Count(usize),
    /// These, and no others of the plan.
    List(Vec<u32>),
}

impl Serialize for Seeds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(count) => count.serialize(serializer),
            Self::List(seeds) => seeds.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Seeds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let whole = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let seeds = match &value {
            Value::Array(items) => items.iter().map(whole).collect::<Option<Vec<u32>>>().map(Self::List),
            other => whole(other).map(|n| Self::Count(n as usize)),
        };
        seeds.ok_or_else(|| {
            serde::de::Error::custom("`seeds` is how many there must be, such as 5, or which, such as [42, 1337]")
        })
    }
}

fn default_level() -> f64 {
    0.95
}
fn default_alpha() -> f64 {
    0.05
}
fn default_mark() -> String {
    "*".to_owned()
}
fn default_resamples() -> usize {
    10_000
}
fn default_scale() -> f64 {
    1.0
}

/// One of a table's `studies`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StudyRef<'s> {
    /// Its name.
    pub study: &'s str,
    /// Its profile; that of this study's run if absent.
    pub profile: Option<&'s str>,
}

impl TableSpec {
    /// Checks a whole section. `stages` are the stages of the study.
    ///
    /// # Errors
    /// Every problem, in the order of the section.
    pub fn parse(section: &Value, stages: &[&str]) -> Result<Self, Vec<SpecProblem>> {
        check::parse(section, stages)
    }

    /// The column of that key.
    pub fn column(&self, key: &str) -> Option<&ColumnSpec> {
        self.columns.iter().find(|c| c.key == key)
    }

    /// The studies it reads, in order; none if it is about its own study alone.
    pub fn study_refs(&self) -> impl Iterator<Item = StudyRef<'_>> {
        self.studies.iter().map(|text| match text.split_once('/') {
            Some((study, profile)) => StudyRef { study, profile: Some(profile) },
            None => StudyRef { study: text, profile: None },
        })
    }
}

impl RowSpec {
    /// What is printed.
    pub fn text(&self) -> &str {
        if self.label.is_empty() { &self.key } else { &self.label }
    }
}

impl ColumnSpec {
    /// Names of the stages that it reads; none if it is made of other columns.
    pub fn stages(&self) -> impl Iterator<Item = &str> {
        self.stage.iter().flat_map(Stages::iter)
    }

    /// What is printed.
    pub fn text(&self) -> &str {
        if self.label.is_empty() { &self.key } else { &self.label }
    }

    /// How many digits its numbers have.
    pub fn rounding(&self) -> Rounding {
        match (self.significant, self.digits) {
            (Some(digits), _) => Rounding::Significant(digits),
            (None, Some(digits)) => Rounding::Decimals(digits),
            (None, None) => Rounding::Decimals(2),
        }
    }
}

impl TestMethod {
    /// Its name in a study file.
    pub fn name(self) -> &'static str {
        match self {
            Self::PairedT => "paired_t",
            Self::SignFlip => "sign_flip",
            Self::Mcnemar => "mcnemar",
            Self::McnemarMidP => "mcnemar_mid_p",
            Self::PairedBootstrap => "paired_bootstrap",
        }
    }

    /// Its name in a sentence.
    pub fn words(self) -> &'static str {
        match self {
            Self::PairedT => "paired t-test",
            Self::SignFlip => "sign-flip test",
            Self::Mcnemar => "exact McNemar test",
            Self::McnemarMidP => "McNemar test (mid-p)",
            Self::PairedBootstrap => "paired bootstrap",
        }
    }

    /// Whether it compares single items.
    pub fn reads_items(self) -> bool {
        matches!(self, Self::Mcnemar | Self::McnemarMidP | Self::PairedBootstrap)
    }

    /// Whether its p comes from drawn numbers.
    pub fn draws(self) -> bool {
        matches!(self, Self::SignFlip | Self::PairedBootstrap)
    }
}
