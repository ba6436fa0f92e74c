//! Keys and what they print now: cells of tables by `TABLE/ROW/COLUMN`, and the values that a fill file declares.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::spec::ValueSpec;
use crate::record::Digest;
use crate::report::render;
use crate::report::table::{Grid, GridCell, Printed, number};

/// Words that choose a part of a cell when they stand behind its key.
pub const PARTS: [&str; 6] = ["full", "spread", "lower", "upper", "n", "expected"];

/// What a key prints, and where it came from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Value {
    /// As LaTeX: digits, or what the fill file puts around them.
    pub printed: String,
    /// The runs it was computed from: their cells and what they found.
    pub runs: BTreeMap<String, Digest>,
    /// Runs that belong to it and are not there, with the reason.
    pub missing: Vec<String>,
}

/// Why a key prints nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoValue {
    /// Nothing has that name; with what to do.
    Unknown(String),
    /// It has no value now: why.
    Missing(String),
}

impl NoValue {
    /// The reason.
    pub fn why(&self) -> &str {
        match self {
            Self::Unknown(why) | Self::Missing(why) => why,
        }
    }
}

/// A table with what is known of it.
#[derive(Debug, Clone)]
pub struct KnownTable {
    /// The study's name.
    pub study: String,
    /// The table's key.
    pub key: String,
    /// The table, with what is there; or why it cannot be made.
    pub grid: Result<Grid, String>,
    /// Missing runs are shown in it, because it says so; else they are errors.
    pub partial: bool,
}

/// Everything that a key can mean.
#[derive(Debug, Clone, Default)]
pub struct Values {
    /// The tables of the studies.
    pub tables: Vec<KnownTable>,
    /// The values that the fill file declares.
    pub declared: BTreeMap<String, Result<Value, NoValue>>,
}

impl Values {
    /// What a key prints now.
    ///
    /// # Errors
    /// Nothing has that name, or it has no value now.
    pub fn get(&self, key: &str) -> Result<Value, NoValue> {
        if let Some(value) = self.declared.get(key) {
            return value.clone();
        }
        let parts: Vec<&str> = key.split('/').collect();
        let mut problem = None;
        for (study, rest) in [(None, &parts[..]), (parts.first().copied(), parts.get(1..).unwrap_or(&[]))] {
            let (table, row, column, part) = match *rest {
                [table, row, column] => (table, row, column, None),
                [table, row, column, part] if PARTS.contains(&part) => (table, row, column, Some(part)),
                _ => continue,
            };
            match self.cell(study, table, row, column) {
                Ok((known, cell)) => return value_of(known, cell, part, key),
                // What the shorter reading says is what a person meant.
                Err(why) => problem = problem.or(Some(why)),
            }
        }
        Err(problem.unwrap_or_else(|| {
            let declared: Vec<&str> = self.declared.keys().map(String::as_str).collect();
            let tables: Vec<&str> = self.tables.iter().map(|t| t.key.as_str()).collect();
            NoValue::Unknown(format!(
                "`{key}` is no key: use TABLE/ROW/COLUMN of the tables {}{}",
                or_none(&tables),
                if declared.is_empty() { String::new() } else { format!(", or one of {}", declared.join(", ")) }
            ))
        }))
    }

    /// The table of that name; `STUDY/TABLE` where several studies have one.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn table(&self, name: &str) -> Result<&KnownTable, String> {
        let (study, table) = name.split_once('/').map_or((None, name), |(study, table)| (Some(study), table));
        self.one_table(study, table)
    }

    /// A part of a cell at full precision, with its runs; `key` is TABLE/ROW/COLUMN.
    ///
    /// # Errors
    /// Nothing has that name, or it has no such number now.
    pub fn number(&self, key: &str, part: &str) -> Result<(f64, Value), NoValue> {
        let parts: Vec<&str> = key.split('/').collect();
        let (known, cell) = match *parts {
            [table, row, column] => self.cell(None, table, row, column)?,
            [study, table, row, column] => self.cell(Some(study), table, row, column)?,
            _ => return Err(NoValue::Unknown(format!("`{key}` is no cell: write TABLE/ROW/COLUMN"))),
        };
        let value = value_of(known, cell, None, key)?;
        let number = match part {
            "mean" => cell.mean,
            "sd" => cell.sd,
            "median" => cell.median,
            "iqm" => cell.iqm,
            "lower" => cell.interval.as_ref().map(|i| i.lower),
            "upper" => cell.interval.as_ref().map(|i| i.upper),
            "n" => Some(cell.n as f64),
            _ => cell.value,
        };
        let why = || NoValue::Missing(format!("`{key}` has no {part}"));
        number.filter(|x| x.is_finite()).map(|x| (x, value)).ok_or_else(why)
    }

    fn one_table(&self, study: Option<&str>, table: &str) -> Result<&KnownTable, String> {
        let fits = |t: &&KnownTable| t.key == table && study.is_none_or(|s| t.study == s);
        let found: Vec<&KnownTable> = self.tables.iter().filter(fits).collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] => {
                let known: Vec<&str> = self.tables.iter().map(|t| t.key.as_str()).collect();
                Err(format!("no study has a table `{table}`: use one of {}", or_none(&known)))
            }
            several => {
                let studies: Vec<String> = several.iter().map(|t| format!("{}/{table}", t.study)).collect();
                Err(format!("several studies have a table `{table}`: write {}", studies.join(" or ")))
            }
        }
    }

    fn cell(
        &self,
        study: Option<&str>,
        table: &str,
        row: &str,
        column: &str,
    ) -> Result<(&KnownTable, &GridCell), NoValue> {
        let known = self.one_table(study, table).map_err(NoValue::Unknown)?;
        let grid = known.grid.as_ref().map_err(|why| NoValue::Missing(why.clone()))?;
        let Some(at) = grid.columns.iter().position(|c| c.key == column) else {
            let columns: Vec<&str> = grid.columns.iter().map(|c| c.key.as_str()).collect();
            let why = format!("table `{table}` has no column `{column}`: use one of {}", columns.join(", "));
            return Err(NoValue::Unknown(why));
        };
        let Some(found) = grid.rows.iter().find(|r| r.key == row) else {
            let rows: Vec<&str> = grid.rows.iter().map(|r| r.key.as_str()).collect();
            let why = format!("table `{table}` has no row `{row}`: use one of {}", rows.join(", "));
            return Err(NoValue::Unknown(why));
        };
        found.cells.get(at).map(|cell| (known, cell)).ok_or_else(|| NoValue::Missing("it has no cell".to_owned()))
    }
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "(there are none)".to_owned() } else { names.join(", ") }
}

/// Runs and missing runs of a cell.
pub fn runs_of(cell: &GridCell, study: &str) -> (BTreeMap<String, Digest>, Vec<String>) {
    let runs = cell.runs.iter().map(|r| (r.key.to_string(), r.content.clone())).collect();
    (runs, cell.missing.iter().map(|m| format!("{study}: {} ({})", m.cell, m.reason)).collect())
}

fn value_of(known: &KnownTable, cell: &GridCell, part: Option<&str>, key: &str) -> Result<Value, NoValue> {
    let (runs, missing) = runs_of(cell, &known.study);
    if !missing.is_empty() && !known.partial {
        return Err(NoValue::Missing(format!("{} of {} runs: {}", cell.n, cell.n_expected, missing.join(", "))));
    }
    let none = |what: &str| NoValue::Unknown(format!("`{key}`: this cell has no {what}: its column shows none"));
    let printed = match (part, &cell.printed) {
        (Some("n"), _) => cell.n.to_string(),
        (Some("expected"), _) => cell.n_expected.to_string(),
        (Some("full"), _) => full(cell),
        (Some("spread"), Printed::Number { spread: Some(spread), .. }) => spread.clone(),
        (Some("lower"), Printed::Interval { lower, .. }) => lower.clone(),
        (Some("upper"), Printed::Interval { upper, .. }) => upper.clone(),
        (Some(part), _) => return Err(none(part)),
        (None, Printed::Number { text, .. } | Printed::Interval { text, .. }) => text.clone(),
        (None, _) => full(cell),
    };
    if matches!(cell.printed, Printed::Missing) {
        return Err(NoValue::Missing(format!("no value: {}", missing.join(", "))));
    }
    Ok(Value { printed, runs, missing })
}

/// A cell as a table with plain columns prints it: number, spread or interval, bold if it is the best, the mark of its test.
pub fn full(cell: &GridCell) -> String {
    let bold = if cell.best { "\\boldmath" } else { "" };
    let math = |inner: String| if cell.best { format!("{{{bold}${inner}$}}") } else { format!("${inner}$") };
    let mark = cell.test.iter().map(|t| t.mark.as_str()).filter(|m| !m.is_empty());
    let mark: String = mark.map(|m| format!("\\textsuperscript{{{}}}", render::tex(m))).collect();
    let text = match &cell.printed {
        Printed::Number { text, spread: None } if text.starts_with('-') => math(text.clone()),
        Printed::Number { text, spread: None } if cell.best => format!("\\textbf{{{text}}}"),
        Printed::Number { text, spread: None } => text.clone(),
        Printed::Number { text, spread: Some(spread) } => math(format!("{text} \\pm {spread}")),
        Printed::Interval { text, lower, upper } => math(format!("{text}\\;[{lower}, {upper}]")),
        Printed::Text(text) if cell.best => format!("\\textbf{{{}}}", render::tex(text)),
        Printed::Text(text) => render::tex(text),
        Printed::Values(values) => render::tex(&values.join(", ")),
        Printed::Reference => "--".to_owned(),
        Printed::Missing => "n/a".to_owned(),
    };
    format!("{text}{mark}")
}

/// What a declared value prints of the answer of its filter.
///
/// # Errors
/// It is neither a finite number nor a text.
pub fn printed(spec: &ValueSpec, answer: &Json) -> Result<String, String> {
    let text = match answer {
        Json::Number(x) => match x.as_f64().map(|x| x * spec.scale).filter(|x| x.is_finite()) {
            Some(x) => number::fixed(x, spec.digits),
            None => return Err(format!("its value is {x}, which is not finite")),
        },
        Json::String(text) => render::tex(text),
        other => {
            let shown: String = other.to_string().chars().take(60).collect();
            return Err(format!("its filter gives {shown}: let it give one number or text"));
        }
    };
    Ok(format!("{}{text}{}", spec.prefix, spec.suffix))
}

/// The file that defines `\seedbed{KEY}` for these keys.
///
/// The macro expands to the stored text: in captions, sections, math and `\num` alike. A key that is not here prints a bold
/// ?? and warns.
pub fn macro_file(values: &BTreeMap<String, String>) -> String {
    let mut out = String::from(MACROS);
    for (key, printed) in values {
        out.push_str(&format!("\\expandafter\\def\\csname seedbed/{key}\\endcsname{{{printed}}}\n"));
    }
    out.push_str("\\endinput\n");
    out
}

/// The key and text of each line of a macro file.
pub fn read_macros(text: &str) -> BTreeMap<String, (String, usize)> {
    let line = |(n, line): (usize, &str)| {
        let rest = line.strip_prefix("\\expandafter\\def\\csname seedbed/")?;
        let (key, rest) = rest.split_once("\\endcsname{")?;
        Some((key.to_owned(), (rest.strip_suffix('}')?.to_owned(), n + 1)))
    };
    text.lines().enumerate().filter_map(line).collect()
}

const MACROS: &str = r"% written by seedbed, edits are lost
\ifdefined\seedbed\else
  \newcommand*\seedbed[1]{\ifcsname seedbed/#1\endcsname\csname seedbed/#1\endcsname\else\seedbedunknown{#1}\fi}
  \protected\def\seedbedunknown#1{\textbf{??}\PackageWarning{seedbed}{There is no value for `#1': run seedbed paper fill}}
  \AtBeginDocument{\ifdefined\pdfstringdefDisableCommands\pdfstringdefDisableCommands{\def\seedbedunknown#1{??}}\fi}
\fi
";
