//! What can be wrong in a `[[table]]`, all of it at once.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    APPENDIX_ENDING, COLUMN_KEYS, ColumnSpec, DELTA_KEYS, FOOTNOTE_KEYS, FootnoteSpec, LEVEL_KEYS, LevelSpec, Notation,
    RATIO_KEYS, ROW_KEYS, RatioError, RowSpec, Seeds, Show, TABLE_KEYS, TEST_KEYS, TableSpec, TestSpec,
};
use crate::record::Name;
use crate::report::section::{Checker, Form, PathStep, SpecProblem, key};

/// Most rows times columns. More is no table for people.
const MOST_CELLS: usize = 1_000_000;

/// Most resamples: beyond it nothing changes but the time.
const MOST_RESAMPLES: usize = 10_000_000;

const TABLE: Form = Form::new("a table", TABLE_KEYS);
const ROW: Form = Form::new("a row", ROW_KEYS);
const COLUMN: Form =
    Form { what: "a column", keys: COLUMN_KEYS, inner: &[("delta", DELTA_KEYS), ("ratio", RATIO_KEYS)] };
const FOOTNOTE: Form = Form::new("a footnote", FOOTNOTE_KEYS);
const TEST: Form = Form::new("`test`", TEST_KEYS);
const LEVEL: Form = Form::new("a level of `test`", LEVEL_KEYS);
/// What marks are made of: signs that no note has, and that every format prints.
const SIGNS: &str = "*†‡§";

pub(super) fn parse(section: &Value, stages: &[&str]) -> Result<TableSpec, Vec<SpecProblem>> {
    let mut check = Checker::default();
    let Some(map) = section.as_object() else {
        check.add(&[], "a table is a section `[[table]]`");
        return Err(check.problems);
    };
    check.list::<RowSpec>(map, "rows", &ROW);
    check.list::<ColumnSpec>(map, "columns", &COLUMN);
    check.list::<FootnoteSpec>(map, "footnotes", &FOOTNOTE);
    if let Some(test) = map.get("test") {
        let before = check.problems.len();
        for (i, level) in test.get("levels").and_then(Value::as_array).into_iter().flatten().enumerate() {
            check.part::<LevelSpec>(level, &LEVEL, &[key("test"), key("levels"), PathStep::Index(i)]);
        }
        if check.problems.len() == before {
            check.part::<TestSpec>(test, &TEST, &[key("test")]);
        }
    }
    let needs = [("key", json!("k")), ("rows", json!([])), ("columns", json!([]))];
    let spec: Option<TableSpec> = check.whole(map, &TABLE, &["rows", "columns", "footnotes", "test"], &needs);
    if let Some(spec) = &spec {
        check.table(spec, stages);
    }
    check.end(spec)
}

impl Checker {
    /// What types cannot say of a table.
    fn table(&mut self, spec: &TableSpec, stages: &[&str]) {
        if let Err(problem) = Name::new(&spec.key) {
            self.add(&[key("key")], problem);
        } else if spec.key.ends_with(APPENDIX_ENDING) {
            self.add(
                &[key("key")],
                format!("`{}` ends as the tables of `appendix = true` do: choose another key", spec.key),
            );
        }
        if let Some(label) = &spec.label {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '.' | '_' | '-' | '/');
            if label.is_empty() || !label.chars().all(fits) {
                self.add(&[key("label")], format!("{label:?} is no label: use letters, digits and `:._-/`"));
            }
        }
        for (name, empty) in [("rows", spec.rows.is_empty()), ("columns", spec.columns.is_empty())] {
            if empty {
                self.add(&[key(name)], format!("table `{}` has no {name}: give at least one", spec.key));
            }
        }
        if spec.rows.len().saturating_mul(spec.columns.len()) > MOST_CELLS {
            self.add(&[key("rows")], format!("the table has more than {MOST_CELLS} cells: divide it"));
        }
        self.once("rows", spec.rows.iter().map(|r| r.key.as_str()));
        self.once("columns", spec.columns.iter().map(|c| c.key.as_str()));
        self.studies(spec);
        self.numbers(spec);
        for (i, column) in spec.columns.iter().enumerate() {
            let path = [key("columns"), PathStep::Index(i)];
            self.column(spec, column, &path, stages);
        }
        if let Some(test) = &spec.test {
            self.test(spec, test);
        }
        for (i, note) in spec.footnotes.iter().enumerate() {
            let at = |name: &str| [key("footnotes"), PathStep::Index(i), key(name)];
            if let Some(row) = note.row.as_ref().filter(|r| !spec.rows.iter().any(|s| s.key == **r)) {
                let message = format!("a footnote is about the unknown row `{row}`");
                self.unknown(&at("row"), message, row, spec.rows.iter().map(|r| r.key.clone()));
            }
            if let Some(column) = note.column.as_ref().filter(|c| spec.column(c).is_none()) {
                let message = format!("a footnote is about the unknown column `{column}`");
                self.unknown(&at("column"), message, column, spec.columns.iter().map(|c| c.key.clone()));
            }
            if note.row.is_none() && note.column.is_none() {
                self.add(&at("text")[..2], "a footnote says `row`, `column` or both; for the whole table use `notes`");
            }
        }
        if spec.plain && spec.threeparttable {
            self.add(&[key("threeparttable")], "`plain = true` uses no package but booktabs: remove one of the two");
        }
        if spec.plain && spec.multirow {
            self.add(&[key("multirow")], "`plain = true` uses no package but booktabs: remove one of the two");
        }
    }

    fn studies(&mut self, spec: &TableSpec) {
        let mut profiles = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for (i, study) in spec.study_refs().enumerate() {
            let path = [key("studies"), PathStep::Index(i)];
            for name in [Some(study.study), study.profile].into_iter().flatten() {
                if let Err(problem) = Name::new(name) {
                    self.add(&path, format!("{problem}: write the name of a study, or \"NAME/PROFILE\""));
                }
            }
            if !seen.insert(study.study) {
                self.add(&path, format!("study `{}` is there twice: remove one", study.study));
            }
            profiles.extend(study.profile);
        }
        if profiles.len() > 1 {
            let named: Vec<String> = profiles.iter().map(|p| format!("`{p}`")).collect();
            self.add(
                &[key("studies")],
                format!("the profiles {} in one table: their numbers do not compare, so name one", named.join(" and ")),
            );
        }
        for (i, row) in spec.rows.iter().enumerate() {
            if let Some(study) = row.study.as_deref().filter(|s| !seen.contains(s)) {
                let path = [key("rows"), PathStep::Index(i), key("study")];
                let message =
                    format!("row `{}` takes study `{study}`, which is not among the table's `studies`", row.key);
                self.unknown(&path, message, study, seen.iter().copied());
            }
        }
    }

    /// Numbers of the section itself.
    fn numbers(&mut self, spec: &TableSpec) {
        self.level(spec.level);
        if !(100..=MOST_RESAMPLES).contains(&spec.resamples) {
            self.add(&[key("resamples")], format!("`resamples` lies between 100 and {MOST_RESAMPLES}, such as 10000"));
        }
        match &spec.seeds {
            Some(Seeds::Count(0)) => self.add(&[key("seeds")], "a table expects at least one seed"),
            Some(Seeds::List(seeds)) if seeds.is_empty() => {
                self.add(&[key("seeds")], "the list of seeds is empty: name at least one, or remove the key");
            }
            Some(Seeds::List(seeds)) => {
                let mut seen = BTreeSet::new();
                if let Some(twice) = seeds.iter().find(|s| !seen.insert(**s)) {
                    self.add(&[key("seeds")], format!("seed {twice} is given twice: remove one"));
                }
            }
            _ => {}
        }
    }

    fn column(&mut self, spec: &TableSpec, column: &ColumnSpec, path: &[PathStep], stages: &[&str]) {
        let at = |name: &str| [path, &[key(name)]].concat();
        match (&column.delta, &column.ratio, &column.stage, &column.metric) {
            (None, None, Some(read), Some(metric)) => {
                let mut seen = BTreeSet::new();
                for stage in read.iter() {
                    // Of other studies only the command that reads them knows the stages.
                    if spec.studies.is_empty() {
                        self.stage(&at("stage"), &format!("column `{}` reads", column.key), stage, stages);
                    }
                    if !seen.insert(stage) {
                        self.add(&at("stage"), format!("stage `{stage}` is named twice: remove one"));
                    }
                }
                self.filter(&at("metric"), metric);
            }
            (Some(_), None, None, None) if column.show == Show::IqmTasks => {
                self.add(
                    &at("show"),
                    "`iqm_tasks` is made of a metric with a number for each task: a difference has one",
                );
            }
            (Some(delta), None, None, None) => {
                self.compared(spec, column, &delta.of, &delta.from, &delta.from_column, ("delta", "from"), path);
            }
            (None, Some(ratio), None, None) => {
                self.compared(spec, column, &ratio.of, &ratio.to, &ratio.to_column, ("ratio", "to"), path);
                self.ratio(column, ratio.error, path);
            }
            _ => self.add(
                path,
                format!("column `{}` needs either `stage` and `metric`, or `delta`, or `ratio`", column.key),
            ),
        }
        if column.stage.is_none() && !column.labels.is_empty() {
            self.add(&at("labels"), "`labels` choose among the arms of a `stage`: this column reads none");
        }
        match (column.digits, column.significant) {
            (Some(_), Some(_)) => {
                self.add(&at("significant"), "`digits` and `significant` contradict each other: remove one");
            }
            (Some(digits), _) => self.digits(&at("digits"), digits),
            (_, Some(0 | 16..)) => self.add(&at("significant"), "significant digits are 1 to 15"),
            _ => {}
        }
        if !column.scale.is_finite() || column.scale == 0.0 {
            self.add(&at("scale"), "a scale is a finite number other than 0");
        }
        if column.notation == Notation::Suffix
            && !matches!(column.show, Show::Mean | Show::Median | Show::Iqm | Show::N)
        {
            self.add(&at("notation"), "numbers with a suffix have no spread: use `show = \"mean\"`");
        }
        if column.notation == Notation::Suffix && column.significant.is_some() {
            self.add(&at("significant"), "numbers with a suffix have decimals: use `digits`");
        }
    }

    fn ratio(&mut self, column: &ColumnSpec, error: RatioError, path: &[PathStep]) {
        let at = |name: &str| [path, &[key(name)]].concat();
        match column.show {
            Show::Median | Show::Iqm | Show::IqmTasks => {
                self.add(&at("show"), "a ratio is one of means: use `mean`, `mean_sd`, `mean_ci`, `n` or `values`");
            }
            Show::MeanSd if error == RatioError::Bootstrap => self.add(
                &at("show"),
                "a bootstrap gives an interval, no standard deviation: use `show = \"mean_ci\"` or `error = \"propagated\"`",
            ),
            _ => {}
        }
    }

    /// What a delta or a ratio names.
    #[expect(clippy::too_many_arguments, reason = "the parts of two sections that look alike")]
    fn compared(
        &mut self,
        spec: &TableSpec,
        column: &ColumnSpec,
        of: &str,
        row: &Option<String>,
        other: &Option<String>,
        (name, word): (&str, &str),
        path: &[PathStep],
    ) {
        let at = [path, &[key(name)]].concat();
        match (row, other) {
            (Some(row), None) => {
                if !spec.rows.iter().any(|r| r.key == *row) {
                    let message = format!("column `{}` is compared with the unknown row `{row}`", column.key);
                    self.unknown(&at, message, row, spec.rows.iter().map(|r| r.key.clone()));
                }
            }
            (None, Some(other)) if other == of => {
                self.add(&at, format!("column `{}` compares `{of}` with itself: name another column", column.key));
            }
            (None, Some(other)) => self.metric_column(spec, column, other, &at),
            _ => self.add(&at, format!("`{name}` needs either `{word} = \"ROW\"` or `{word}_column = \"COLUMN\"`")),
        }
        self.metric_column(spec, column, of, &at);
    }

    fn metric_column(&mut self, spec: &TableSpec, column: &ColumnSpec, named: &str, at: &[PathStep]) {
        match spec.column(named) {
            Some(of) if of.show == Show::IqmTasks => {
                self.add(
                    at,
                    format!("column `{named}` shows `iqm_tasks`, several numbers a run: name one with one number"),
                );
            }
            Some(of) if of.delta.is_none() && of.ratio.is_none() => {}
            Some(_) => self.add(at, "a difference of differences: name a column with a metric"),
            None => {
                let message = format!("column `{}` takes the unknown column `{named}`", column.key);
                self.unknown(at, message, named, spec.columns.iter().map(|c| c.key.clone()));
            }
        }
    }

    fn test(&mut self, spec: &TableSpec, test: &TestSpec) {
        let at = |name: &str| [key("test"), key(name)];
        if test.on.is_empty() {
            self.add(&at("on"), "the test is on no column: name at least one");
        }
        let mut needs_row = false;
        for name in &test.on {
            match spec.column(name) {
                None => {
                    let message = format!("the test is on the unknown column `{name}`");
                    self.unknown(&at("on"), message, name, spec.columns.iter().map(|c| c.key.clone()));
                }
                Some(column) if column.ratio.is_some() => self.add(
                    &at("on"),
                    format!("the test is on column `{name}`, a ratio: name the column that it is of, or a difference"),
                ),
                Some(column) if column.show == Show::IqmTasks && !test.method.reads_items() => self.add(
                    &at("on"),
                    format!(
                        "the test is on column `{name}`, which shows `iqm_tasks`, several numbers a run: name another"
                    ),
                ),
                Some(column) => needs_row |= column.delta.is_none(),
            }
        }
        match &test.against {
            None if needs_row => {
                self.add(&[key("test")], "the test needs `against = \"ROW\"`: the row that others are compared with");
            }
            Some(row) if !spec.rows.iter().any(|r| r.key == *row) => {
                let message = format!("the test is against the unknown row `{row}`");
                self.unknown(&at("against"), message, row, spec.rows.iter().map(|r| r.key.clone()));
            }
            _ => {}
        }
        if !(test.alpha > 0.0 && test.alpha < 0.5) {
            self.add(&at("alpha"), "`alpha` lies between 0 and 0.5, such as 0.05");
        }
        match (&test.items, test.method.reads_items()) {
            (Some(code), true) => self.filter(&at("items"), code),
            (None, true) => self.add(
                &[key("test")],
                format!(
                    "the method `{}` compares items: say which, such as `items = \".items[$row.task] | map(.correct)\"`",
                    test.method.name()
                ),
            ),
            (Some(_), false) => {
                self.add(&at("items"), format!("the method `{}` compares runs: remove `items`", test.method.name()));
            }
            (None, false) => {}
        }
        self.levels(test);
    }

    /// The marks of a test, and its levels.
    fn levels(&mut self, test: &TestSpec) {
        let path = |i: usize, name: &str| [key("test"), key("levels"), PathStep::Index(i), key(name)];
        let is_mark = |mark: &str| (1..=3).contains(&mark.chars().count()) && mark.chars().all(|c| SIGNS.contains(c));
        let wrong = |mark: &str| format!("{mark:?} is no mark: use one to three of {SIGNS}");
        if !is_mark(&test.mark) {
            self.add(&[key("test"), key("mark")], wrong(&test.mark));
        }
        let (mut alpha, mut seen) = (test.alpha, BTreeSet::from([test.mark.as_str()]));
        for (i, level) in test.levels.iter().enumerate() {
            if !(level.alpha > 0.0 && level.alpha < alpha) {
                let what = format!(
                    "levels go down from `alpha` = {}, such as 0.01: this one is not below {alpha}",
                    test.alpha
                );
                self.add(&path(i, "alpha"), what);
            }
            alpha = level.alpha;
            if !is_mark(&level.mark) {
                self.add(&path(i, "mark"), wrong(&level.mark));
            } else if !seen.insert(&level.mark) {
                self.add(
                    &path(i, "mark"),
                    format!("the mark `{}` stands for two levels: give each its own", level.mark),
                );
            }
        }
    }
}
