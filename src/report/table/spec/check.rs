//! What can be wrong in a `[[table]]`, all of it at once.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    APPENDIX_ENDING, COLUMN_KEYS, ColumnSpec, DELTA_KEYS, FOOTNOTE_KEYS, FootnoteSpec, Notation, PathStep, RATIO_KEYS,
    ROW_KEYS, RatioError, RowSpec, Seeds, Show, SpecProblem, TABLE_KEYS, TEST_KEYS, TableSpec, TestSpec,
};
use crate::record::Name;
use crate::report::query::{self, Scope};

/// Most rows times columns. More is no table for people.
const MOST_CELLS: usize = 1_000_000;

/// Most resamples: beyond it nothing changes but the time.
const MOST_RESAMPLES: usize = 10_000_000;

pub(super) fn parse(section: &Value, stages: &[&str]) -> Result<TableSpec, Vec<SpecProblem>> {
    let mut check = Checker::default();
    check.section(section);
    let spec = match serde_json::from_value::<TableSpec>(section.clone()) {
        Ok(spec) => spec,
        Err(e) => {
            // Rows, columns and the like were tried one by one: what is left is about the section itself.
            if check.problems.is_empty() {
                check.add(&[], format!("this is no table ({e})"));
            }
            return Err(check.problems);
        }
    };
    check.meaning(&spec, stages);
    if check.problems.is_empty() { Ok(spec) } else { Err(check.problems) }
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
        self.list::<FootnoteSpec>(map, "footnotes", "a footnote", FOOTNOTE_KEYS);
        if let Some(test) = map.get("test") {
            self.part::<TestSpec>(test, "`test`", TEST_KEYS, &[key("test")]);
        }
        // With these set aside, what serde says is about one of the section's own keys.
        let mut rest = map.clone();
        for name in ["rows", "columns", "footnotes"] {
            if name != "footnotes" && self.problems.len() > before || map.contains_key(name) {
                rest.insert(name.to_owned(), Value::Array(vec![]));
            }
        }
        rest.remove("test");
        rest.retain(|k, _| TABLE_KEYS.contains(&k.as_str()));
        if serde_json::from_value::<TableSpec>(Value::Object(rest.clone())).is_ok() {
            return;
        }
        // One at a time, so that each has its place.
        let alone = |k: &str, v: &Value| {
            let mut one = Map::from_iter([(k.to_owned(), v.clone())]);
            for (name, value) in
                [("key", Value::from("k")), ("rows", Value::Array(vec![])), ("columns", Value::Array(vec![]))]
            {
                one.entry(name).or_insert(value);
            }
            serde_json::from_value::<TableSpec>(Value::Object(one)).err()
        };
        let wrong: Vec<(&String, serde_json::Error)> =
            rest.iter().filter_map(|(k, v)| Some((k, alone(k, v)?))).collect();
        for (name, e) in &wrong {
            self.add(&[key(name)], format!("`{name}` cannot be read: {e}"));
        }
        if wrong.is_empty()
            && let Err(e) = serde_json::from_value::<TableSpec>(Value::Object(rest))
        {
            self.add(&[], format!("a table cannot be read: {e}"));
        }
    }

    fn list<T: DeserializeOwned>(&mut self, map: &Map<String, Value>, name: &str, what: &str, known: &[&str]) {
        let Some(value) = map.get(name) else { return };
        let Some(items) = value.as_array() else {
            return self.add(&[key(name)], format!("`{name}` must be an array of tables"));
        };
        for (i, item) in items.iter().enumerate() {
            self.part::<T>(item, what, known, &[key(name), PathStep::Index(i)]);
        }
    }

    /// A table inside the section.
    fn part<T: DeserializeOwned>(&mut self, item: &Value, what: &str, known: &[&str], path: &[PathStep]) {
        let Some(map) = item.as_object() else {
            return self.add(path, format!("{what} must be a table"));
        };
        let before = self.problems.len();
        self.keys(map, what, known, path);
        for (name, known) in [("delta", DELTA_KEYS), ("ratio", RATIO_KEYS)] {
            if let Some(Value::Object(inner)) = map.get(name).filter(|_| what == "a column") {
                self.keys(inner, &format!("`{name}`"), known, &[path, &[key(name)]].concat());
            }
        }
        if self.problems.len() == before
            && let Err(e) = serde_json::from_value::<T>(item.clone())
        {
            self.add(path, format!("{what} cannot be read: {e}"));
        }
    }

    /// What types cannot say.
    fn meaning(&mut self, spec: &TableSpec, stages: &[&str]) {
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
        if !(0.5..=0.9999).contains(&spec.level) {
            self.add(&[key("level")], "a level lies between 0.5 and 0.9999, such as 0.95");
        }
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
            (None, None, Some(stage), Some(metric)) => {
                // Of other studies only the command that reads them knows the stages.
                if spec.studies.is_empty() && !stages.contains(&stage.as_str()) {
                    let message = format!("column `{}` reads the unknown stage `{stage}`", column.key);
                    self.unknown(&at("stage"), message, stage, stages.iter().copied());
                }
                if let Err(e) = query::check(metric, &["$row"], Scope::Closed) {
                    self.add(&at("metric"), e.to_string());
                }
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
        match (column.digits, column.significant) {
            (Some(_), Some(_)) => {
                self.add(&at("significant"), "`digits` and `significant` contradict each other: remove one");
            }
            (Some(13..), _) => self.add(&at("digits"), "more than 12 decimals: a float has no more to show"),
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
            Show::Median | Show::Iqm => {
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
    }

    fn once<'a>(&mut self, list: &str, keys: impl Iterator<Item = &'a str>) {
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
}
