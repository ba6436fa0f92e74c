//! The `[[document]]` section of a study: which document, of which stages.
//!
//! [`DocumentSpec::parse`] reports every problem at once, each with its path inside the section.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::report::section::{Checker, Form, PathStep, SpecProblem, key};

/// Keys that every document may have.
pub const DOCUMENT_KEYS: &[&str] = &["key", "kind", "title", "date"];

const KINDS: &[&str] = &["stage_summary", "run_table"];
const SUMMARY_KEYS: &[&str] = &[
    "key",
    "kind",
    "title",
    "date",
    "scope",
    "tasks",
    "macro",
    "stages",
    "compare",
    "questions",
    "checks",
    "paired",
    "pivot",
    "artifacts",
    "hypothesis",
    "limit",
    "chance",
    "definitions",
    "intervals",
    "macro_digits",
    "task_digits",
];
const FACT_KEYS: &[&str] = &["label", "value", "stage", "arm", "metric"];
const STAGE_KEYS: &[&str] =
    &["key", "label", "row", "called", "short", "condition", "definition", "stage", "arm", "labels", "listed"];
const COMPARE_KEYS: &[&str] = &["of", "to", "per_task", "show", "retention_digits"];
const QUESTION_KEYS: &[&str] =
    &["ask", "of", "from", "to", "when", "min_retention", "min_gain", "points_digits", "if_met", "if_not_met"];
const CHECK_KEYS: &[&str] = &["title", "text", "of", "to", "subject", "improved", "under"];
const PAIR_KEYS: &[&str] = &["of", "to"];
const ARTIFACT_KEYS: &[&str] = &["label", "value", "stage", "arm", "metric", "file"];
const RUNS_KEYS: &[&str] = &[
    "key",
    "kind",
    "title",
    "date",
    "stage",
    "rows",
    "evals",
    "source",
    "target",
    "sample",
    "status",
    "value_label",
    "notes",
    "digits",
    "plateau",
    "summary",
    "actions",
];
const RUN_KEYS: &[&str] = &["arm", "label", "config", "notes"];
const RULE_KEYS: &[&str] = &["when", "text"];
const GROUP_KEYS: &[&str] = &["label", "arms"];
const READS: &str = "a document reads";

/// A document, checked.
#[derive(Debug, Clone, PartialEq)]
pub enum DocumentSpec {
    /// Macro accuracy by stage, per task, compared, with direct answers.
    Stages(StageSummary),
    /// A row for each run: peak and final evaluation, baselines, a sample, notes.
    Runs(RunTable),
}

/// `kind = "stage_summary"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageSummary {
    pub(super) key: String,
    kind: String,
    pub(super) title: String,
    #[serde(default)]
    pub(super) date: Option<String>,
    #[serde(default)]
    pub(super) scope: Vec<Fact>,
    /// A filter that gives an array of `{task, accuracy}`, with `total` and `chance` where they are known.
    #[serde(default = "default_tasks")]
    pub(super) tasks: String,
    /// A filter that gives the macro accuracy; without it, the mean of the tasks.
    #[serde(default, rename = "macro")]
    pub(super) macro_accuracy: Option<String>,
    pub(super) stages: Vec<StageRow>,
    #[serde(default)]
    pub(super) compare: Vec<Comparison>,
    #[serde(default)]
    pub(super) questions: Vec<Question>,
    #[serde(default)]
    pub(super) checks: Vec<Check>,
    /// Conditions that are compared item by item.
    #[serde(default)]
    pub(super) paired: Vec<Pair>,
    /// A table of macro accuracies by two labels of the arms.
    #[serde(default)]
    pub(super) pivot: Option<Pivot>,
    #[serde(default)]
    pub(super) artifacts: Vec<Artifact>,
    /// What its stages are, in place of what `stages` says of each.
    #[serde(default)]
    pub(super) definitions: Vec<Fact>,
    /// What the study set out to test, in words.
    #[serde(default)]
    pub(super) hypothesis: Option<String>,
    /// A filter that gives how many items of a task were asked for, on the first stage.
    #[serde(default)]
    pub(super) limit: Option<String>,
    /// Whether there is a table of differences to chance.
    #[serde(default)]
    pub(super) chance: bool,
    /// Whether there is a table of every stage and seed with intervals.
    #[serde(default)]
    pub(super) intervals: bool,
    #[serde(default = "default_macro_digits")]
    pub(super) macro_digits: u8,
    #[serde(default = "default_task_digits")]
    pub(super) task_digits: u8,
}

/// A line of the scope: a text, or what a filter gives on the first cell of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    pub(super) label: String,
    #[serde(default)]
    pub(super) value: Option<String>,
    #[serde(default)]
    pub(super) stage: Option<String>,
    #[serde(default)]
    pub(super) arm: Option<String>,
    #[serde(default)]
    pub(super) metric: Option<String>,
}

/// A stage of the summary: cells of one stage and arm of the study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRow {
    pub(super) key: String,
    #[serde(default)]
    pub(super) label: String,
    /// In the table of macro accuracies, in place of `label`.
    #[serde(default)]
    pub(super) row: String,
    /// What answers call the model under this condition ("baseline"), in place of `label`.
    #[serde(default)]
    pub(super) called: String,
    /// For the heads of difference columns.
    #[serde(default)]
    pub(super) short: String,
    #[serde(default)]
    pub(super) condition: String,
    #[serde(default)]
    pub(super) definition: String,
    pub(super) stage: String,
    #[serde(default)]
    pub(super) arm: Option<String>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    /// Whether it is in the two tables, or only in checks.
    #[serde(default = "yes")]
    pub(super) listed: bool,
}

/// Two stages compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    pub(super) of: String,
    pub(super) to: String,
    /// Whether the table of tasks has a column of it.
    #[serde(default)]
    pub(super) per_task: bool,
    /// What of it is printed.
    #[serde(default = "default_show")]
    pub(super) show: Vec<Shown>,
    #[serde(default = "default_retention_digits")]
    pub(super) retention_digits: u8,
}

/// What of a comparison is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    /// The difference.
    Delta,
    /// The same in points of a hundred.
    Points,
    /// The ratio.
    Retention,
}

/// Two stages whose items are compared one by one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    pub(super) of: String,
    pub(super) to: String,
}

/// Labels of arms that make the rows and the columns of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pivot {
    pub(super) rows: String,
    pub(super) columns: String,
}

/// A line of the list of artifacts: a text, or a file of each cell of a stage. With a filter that gives a text, that
/// stands in the place of the cell's name: where a run that was recorded lay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    pub(super) label: String,
    #[serde(default)]
    pub(super) value: Option<String>,
    #[serde(default)]
    pub(super) stage: Option<String>,
    #[serde(default)]
    pub(super) arm: Option<String>,
    #[serde(default)]
    pub(super) metric: Option<String>,
    #[serde(default)]
    pub(super) file: Option<String>,
}

/// A question that the numbers answer: how much `of` lost against `to`, or, with `from`, how much of that it got back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub(super) ask: String,
    pub(super) of: String,
    #[serde(default)]
    pub(super) from: Option<String>,
    pub(super) to: String,
    /// Under what the answer holds ("without adaptation").
    #[serde(default)]
    pub(super) when: String,
    #[serde(default = "default_min_retention")]
    pub(super) min_retention: f64,
    #[serde(default = "default_min_gain")]
    pub(super) min_gain: f64,
    #[serde(default = "default_points_digits")]
    pub(super) points_digits: u8,
    /// What follows where both criteria are met, and where one is not.
    #[serde(default)]
    pub(super) if_met: String,
    #[serde(default)]
    pub(super) if_not_met: String,
}

/// A comparison with a heading of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    pub(super) title: String,
    #[serde(default)]
    pub(super) text: String,
    pub(super) of: String,
    pub(super) to: String,
    /// What was done ("Finetuning for the ablated condition"), in place of the label of `of`.
    #[serde(default)]
    pub(super) subject: String,
    /// What it was done for: whether that improved is said, too.
    #[serde(default)]
    pub(super) improved: Option<Pair>,
    /// Where the regression is looked for ("relative to vanilla under ..."), in place of the label of `to`.
    #[serde(default)]
    pub(super) under: String,
}

/// `kind = "run_table"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunTable {
    pub(super) key: String,
    kind: String,
    pub(super) title: String,
    #[serde(default)]
    pub(super) date: Option<String>,
    pub(super) stage: String,
    /// Which arms, in this order; without it, every arm.
    #[serde(default)]
    pub(super) rows: Vec<RunRow>,
    /// A filter that gives an array of `{step, accuracy}`; a `step` of `"final"` is the final evaluation.
    #[serde(default = "default_evals")]
    pub(super) evals: String,
    #[serde(default)]
    pub(super) source: Option<String>,
    #[serde(default)]
    pub(super) target: Option<String>,
    #[serde(default)]
    pub(super) sample: Option<String>,
    /// A filter that gives how the run ended: anything but `done` is noted.
    #[serde(default)]
    pub(super) status: Option<String>,
    #[serde(default = "default_value_label")]
    pub(super) value_label: String,
    #[serde(default)]
    pub(super) notes: Vec<Rule>,
    #[serde(default = "default_digits")]
    pub(super) digits: u8,
    /// The median of so many last evaluations before the final one is printed as the plateau.
    #[serde(default)]
    pub(super) plateau: Option<usize>,
    /// Lines above the table, each about some of the runs.
    #[serde(default)]
    pub(super) summary: Vec<Group>,
    /// What is to be done where a filter gives true of some run.
    #[serde(default)]
    pub(super) actions: Vec<Rule>,
}

/// Runs of which a line of the summary speaks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    pub(super) label: String,
    /// Their arms; every run if empty.
    #[serde(default)]
    pub(super) arms: Vec<String>,
}

/// A row of a run table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRow {
    pub(super) arm: String,
    #[serde(default)]
    pub(super) label: String,
    #[serde(default)]
    pub(super) config: String,
    #[serde(default)]
    pub(super) notes: Vec<String>,
}

/// A text that stands where a filter gives true.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub(super) when: String,
    pub(super) text: String,
}

fn yes() -> bool {
    true
}
fn default_tasks() -> String {
    ".tasks".to_owned()
}
fn default_evals() -> String {
    ".evals".to_owned()
}
fn default_value_label() -> String {
    "Accuracy".to_owned()
}
fn default_macro_digits() -> u8 {
    10
}
fn default_task_digits() -> u8 {
    6
}
fn default_digits() -> u8 {
    3
}
fn default_min_retention() -> f64 {
    0.8
}
fn default_min_gain() -> f64 {
    0.05
}
fn default_points_digits() -> u8 {
    2
}
fn default_retention_digits() -> u8 {
    4
}
fn default_show() -> Vec<Shown> {
    vec![Shown::Delta, Shown::Points, Shown::Retention]
}

impl StageRow {
    pub(super) fn text(&self) -> &str {
        if self.label.is_empty() { &self.key } else { &self.label }
    }

    pub(super) fn row(&self) -> &str {
        if self.row.is_empty() { self.text() } else { &self.row }
    }

    pub(super) fn called(&self) -> &str {
        if self.called.is_empty() { self.text() } else { &self.called }
    }

    pub(super) fn short(&self) -> &str {
        if self.short.is_empty() { self.text() } else { &self.short }
    }
}

impl DocumentSpec {
    /// Its name.
    pub fn key(&self) -> &str {
        match self {
            Self::Stages(spec) => &spec.key,
            Self::Runs(spec) => &spec.key,
        }
    }

    /// The word of its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stages(_) => KINDS[0],
            Self::Runs(_) => KINDS[1],
        }
    }

    pub(super) fn title(&self) -> &str {
        match self {
            Self::Stages(spec) => &spec.title,
            Self::Runs(spec) => &spec.title,
        }
    }

    pub(super) fn date(&self) -> Option<&str> {
        match self {
            Self::Stages(spec) => spec.date.as_deref(),
            Self::Runs(spec) => spec.date.as_deref(),
        }
    }

    /// Names of the study's stages that it reads.
    pub fn stages(&self) -> BTreeSet<&str> {
        match self {
            Self::Stages(spec) => {
                let facts = spec.scope.iter().filter_map(|f| f.stage.as_deref());
                let artifacts = spec.artifacts.iter().filter_map(|a| a.stage.as_deref());
                spec.stages.iter().map(|s| s.stage.as_str()).chain(facts).chain(artifacts).collect()
            }
            Self::Runs(spec) => BTreeSet::from([spec.stage.as_str()]),
        }
    }

    /// Checks a whole section. `stages` are the stages of the study.
    ///
    /// # Errors
    /// Every problem, in the order of the section.
    pub fn parse(section: &Value, stages: &[&str]) -> Result<Self, Vec<SpecProblem>> {
        let mut check = Checker::default();
        let Some(map) = section.as_object() else {
            check.add(&[], "a document is a section `[[document]]`");
            return Err(check.problems);
        };
        let spec = match map.get("kind").and_then(Value::as_str) {
            Some("stage_summary") => check.summary(map, stages).map(Self::Stages),
            Some("run_table") => check.run_table(map, stages).map(Self::Runs),
            Some(other) => {
                check.unknown(
                    &[key("kind")],
                    format!("`{other}` is no kind of document"),
                    other,
                    KINDS.iter().copied(),
                );
                None
            }
            None => {
                check.add(&[], format!("a document has no `kind`: say one of {}", KINDS.join(", ")));
                None
            }
        };
        check.end(spec)
    }
}

impl Checker {
    fn summary(&mut self, map: &Map<String, Value>, stages: &[&str]) -> Option<StageSummary> {
        self.list::<Fact>(map, "scope", &Form::new("a line of the scope", FACT_KEYS));
        self.list::<StageRow>(map, "stages", &Form::new("a stage", STAGE_KEYS));
        self.list::<Comparison>(map, "compare", &Form::new("a comparison", COMPARE_KEYS));
        self.list::<Question>(map, "questions", &Form::new("a question", QUESTION_KEYS));
        self.list::<Check>(map, "checks", &Form::new("a check", CHECK_KEYS));
        self.list::<Fact>(map, "definitions", &Form::new("a definition", &FACT_KEYS[..2]));
        self.list::<Pair>(map, "paired", &Form::new("a pair", PAIR_KEYS));
        self.list::<Artifact>(map, "artifacts", &Form::new("an artifact", ARTIFACT_KEYS));
        let needs = [("key", json!("k")), ("kind", json!("k")), ("title", json!("t")), ("stages", json!([]))];
        let parts = ["scope", "stages", "compare", "questions", "checks", "definitions", "paired", "artifacts"];
        let spec: StageSummary = self.whole(map, &Form::new("a document", SUMMARY_KEYS), &parts, &needs)?;
        self.name(&[key("key")], &spec.key);
        self.digits(&[key("macro_digits")], spec.macro_digits);
        self.digits(&[key("task_digits")], spec.task_digits);
        self.filter(&[key("tasks")], &spec.tasks);
        for (name, code) in [("macro", &spec.macro_accuracy), ("limit", &spec.limit)] {
            if let Some(code) = code {
                self.filter(&[key(name)], code);
            }
        }
        for (i, comparison) in spec.compare.iter().enumerate() {
            let path = [key("compare"), PathStep::Index(i), key("retention_digits")];
            self.digits(&path, comparison.retention_digits);
        }
        for (i, question) in spec.questions.iter().enumerate() {
            self.digits(&[key("questions"), PathStep::Index(i), key("points_digits")], question.points_digits);
        }
        for (i, comparison) in spec.compare.iter().enumerate().filter(|(_, c)| c.show.is_empty()) {
            let path = [key("compare"), PathStep::Index(i), key("show")];
            let of = &comparison.of;
            self.add(&path, format!("a comparison of `{of}` that shows nothing: name delta, points or retention"));
        }
        for (i, artifact) in spec.artifacts.iter().enumerate() {
            let path = [key("artifacts"), PathStep::Index(i)];
            match (&artifact.value, &artifact.stage) {
                (Some(_), None) => {}
                (None, Some(stage)) => {
                    self.stage(&[&path[..], &[key("stage")]].concat(), READS, stage, stages);
                    if let Some(metric) = &artifact.metric {
                        self.filter(&[&path[..], &[key("metric")]].concat(), metric);
                    }
                }
                _ => self.add(&path, "an artifact needs either `value` or `stage`"),
            }
        }
        for (i, fact) in spec.scope.iter().enumerate() {
            let path = [key("scope"), PathStep::Index(i)];
            match (&fact.value, &fact.stage, &fact.metric) {
                (Some(_), None, None) => {}
                (None, Some(stage), Some(metric)) => {
                    self.stage(&[&path[..], &[key("stage")]].concat(), READS, stage, stages);
                    self.filter(&[&path[..], &[key("metric")]].concat(), metric);
                }
                _ => self.add(&path, "a line of the scope needs either `value`, or `stage` and `metric`"),
            }
        }
        if spec.stages.is_empty() {
            self.add(&[key("stages")], format!("document `{}` has no stages: give at least one", spec.key));
        }
        let known: Vec<&str> = spec.stages.iter().map(|row| row.key.as_str()).collect();
        self.once("stages", known.iter().copied());
        for (i, row) in spec.stages.iter().enumerate() {
            self.stage(&[key("stages"), PathStep::Index(i), key("stage")], READS, &row.stage, stages);
        }
        let named = spec
            .compare
            .iter()
            .enumerate()
            .flat_map(|(i, c)| [("compare", i, "of", &c.of), ("compare", i, "to", &c.to)])
            .chain(spec.questions.iter().enumerate().flat_map(|(i, q)| {
                let from = q.from.iter().map(move |from| ("questions", i, "from", from));
                [("questions", i, "of", &q.of), ("questions", i, "to", &q.to)].into_iter().chain(from)
            }))
            .chain(
                spec.checks
                    .iter()
                    .enumerate()
                    .flat_map(|(i, c)| [("checks", i, "of", &c.of), ("checks", i, "to", &c.to)]),
            )
            .chain(spec.checks.iter().enumerate().flat_map(|(i, c)| {
                let of = c.improved.iter().flat_map(|pair| [&pair.of, &pair.to]);
                of.map(move |word| ("checks", i, "improved", word))
            }))
            .chain(
                spec.paired
                    .iter()
                    .enumerate()
                    .flat_map(|(i, p)| [("paired", i, "of", &p.of), ("paired", i, "to", &p.to)]),
            );
        for (list, i, field, word) in named {
            if !known.contains(&word.as_str()) {
                let message = format!("`{word}` is none of the document's stages");
                self.unknown(&[key(list), PathStep::Index(i), key(field)], message, word, known.iter().copied());
            }
        }
        Some(spec)
    }

    fn run_table(&mut self, map: &Map<String, Value>, stages: &[&str]) -> Option<RunTable> {
        self.list::<RunRow>(map, "rows", &Form::new("a row", RUN_KEYS));
        self.list::<Rule>(map, "notes", &Form::new("a note", RULE_KEYS));
        self.list::<Rule>(map, "actions", &Form::new("an action", RULE_KEYS));
        self.list::<Group>(map, "summary", &Form::new("a line of the summary", GROUP_KEYS));
        let needs = [("key", json!("k")), ("kind", json!("k")), ("title", json!("t")), ("stage", json!("s"))];
        let spec: RunTable =
            self.whole(map, &Form::new("a document", RUNS_KEYS), &["rows", "notes", "actions", "summary"], &needs)?;
        self.name(&[key("key")], &spec.key);
        self.digits(&[key("digits")], spec.digits);
        self.stage(&[key("stage")], READS, &spec.stage, stages);
        let filters =
            [("source", &spec.source), ("target", &spec.target), ("sample", &spec.sample), ("status", &spec.status)];
        self.filter(&[key("evals")], &spec.evals);
        for (name, code) in filters {
            if let Some(code) = code {
                self.filter(&[key(name)], code);
            }
        }
        for (list, rules) in [("notes", &spec.notes), ("actions", &spec.actions)] {
            for (i, rule) in rules.iter().enumerate() {
                self.filter(&[key(list), PathStep::Index(i), key("when")], &rule.when);
            }
        }
        let shown: Vec<&str> = spec.rows.iter().map(|row| row.arm.as_str()).collect();
        for (i, group) in spec.summary.iter().enumerate() {
            for arm in group.arms.iter().filter(|arm| !shown.is_empty() && !shown.contains(&arm.as_str())) {
                let message = format!("the summary speaks of arm `{arm}`, which is no row");
                self.unknown(&[key("summary"), PathStep::Index(i), key("arms")], message, arm, shown.iter().copied());
            }
        }
        if spec.plateau == Some(0) {
            self.add(&[key("plateau")], "a plateau of no evaluations: say 3, or leave it out");
        }
        Some(spec)
    }
}
