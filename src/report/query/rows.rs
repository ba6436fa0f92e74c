//! Outputs as rows: CSV, TSV and a LaTeX table.
//!
//! An output that is an array is a row; an object is a row whose keys head the columns; an array of arrays or objects is
//! so many rows; anything else is a row of one cell. The first row settles the columns. Texts are hostile and are escaped
//! as those of tables are; numbers print as JSON prints them.

use jaq_json::Val;

use super::functions::tex;
use super::print;
use crate::report::render::csv_text;

/// A format of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFormat {
    /// RFC 4180.
    Csv,
    /// Cells between tabs; tabs and line ends in texts become spaces.
    Tsv,
    /// A `tabular` with the rules of booktabs.
    Latex,
}

/// Takes outputs, gives text.
#[derive(Debug)]
pub(super) struct Rows {
    format: RowFormat,
    header: Option<Vec<String>>,
    width: Option<usize>,
    /// LaTeX needs to know all cells before the first.
    held: Vec<Vec<Val>>,
}

impl Rows {
    pub(super) fn new(format: RowFormat) -> Self {
        Self { format, header: None, width: None, held: Vec::new() }
    }

    /// The text of one output.
    ///
    /// # Errors
    /// It has other columns than the first.
    pub(super) fn push(&mut self, value: &Val) -> Result<String, String> {
        let mut out = String::new();
        match value {
            Val::Arr(items) if !items.is_empty() && items.iter().all(|i| matches!(i, Val::Arr(_) | Val::Obj(_))) => {
                for item in items.iter() {
                    self.row(item, &mut out)?;
                }
            }
            value => self.row(value, &mut out)?,
        }
        Ok(out)
    }

    /// What follows the last output.
    pub(super) fn end(&self) -> String {
        if self.format != RowFormat::Latex {
            return String::new();
        }
        let columns = self.width.unwrap_or(1);
        let number = |i: usize| self.held.iter().all(|row| matches!(row.get(i), Some(Val::Num(_) | Val::Null)));
        let kinds: String = (0..columns).map(|i| if number(i) { 'r' } else { 'l' }).collect();
        let mut out = format!("\\begin{{tabular}}{{{kinds}}}\n\\toprule\n");
        let line = |cells: Vec<String>| format!("{} \\\\\n", cells.join(" & "));
        if let Some(header) = &self.header {
            out.push_str(&line(header.iter().map(|key| tex(&Val::from(key.clone()))).collect()));
            out.push_str("\\midrule\n");
        }
        for row in &self.held {
            let cell = |value: &Val| if matches!(value, Val::Null) { "--".to_owned() } else { tex(value) };
            out.push_str(&line(row.iter().map(cell).collect()));
        }
        out.push_str("\\bottomrule\n\\end{tabular}\n");
        out
    }

    fn row(&mut self, value: &Val, out: &mut String) -> Result<(), String> {
        let cells: Vec<Val> = match value {
            Val::Arr(items) => items.iter().cloned().collect(),
            Val::Obj(map) => {
                let keys: Vec<String> = map.keys().map(text).collect();
                match &self.header {
                    None if self.width.is_some() => {
                        return Err(format!("an object follows rows without keys: {}", short(value)));
                    }
                    None => {
                        self.head(&keys, out);
                        self.header = Some(keys);
                    }
                    Some(header) if keys.len() != header.len() || keys.iter().any(|k| !header.contains(k)) => {
                        return Err(format!(
                            "the keys {} are not those of the first row, {}: name the same ones for every row",
                            keys.join(", "),
                            header.join(", ")
                        ));
                    }
                    Some(_) => {}
                }
                let header = self.header.as_deref().unwrap_or_default();
                header.iter().map(|key| map.get(&Val::from(key.clone())).cloned().unwrap_or_default()).collect()
            }
            other => vec![other.clone()],
        };
        match self.width {
            Some(width) if width != cells.len() => {
                return Err(format!("a row of {} cells follows rows of {width}: {}", cells.len(), short(value)));
            }
            _ => self.width = Some(cells.len()),
        }
        match self.format {
            RowFormat::Csv => push_line(out, cells.iter().map(|cell| scalar(cell, csv_text)), ","),
            RowFormat::Tsv => push_line(out, cells.iter().map(|cell| scalar(cell, plain)), "\t"),
            RowFormat::Latex => self.held.push(cells),
        }
        Ok(())
    }

    fn head(&self, keys: &[String], out: &mut String) {
        match self.format {
            RowFormat::Csv => push_line(out, keys.iter().map(|key| csv_text(key)), ","),
            RowFormat::Tsv => push_line(out, keys.iter().map(|key| plain(key)), "\t"),
            RowFormat::Latex => {}
        }
    }
}

fn push_line(out: &mut String, cells: impl Iterator<Item = String>, between: &str) {
    out.push_str(&cells.collect::<Vec<_>>().join(between));
    out.push('\n');
}

/// A cell: nothing for null, numbers without quotes, everything else as a text.
fn scalar(value: &Val, escape: fn(&str) -> String) -> String {
    match value {
        Val::Null => String::new(),
        Val::Num(_) | Val::Bool(_) => text(value),
        other => escape(&text(other)),
    }
}

/// A text as it is; anything else as JSON on one line, NaN and infinity without quotes.
fn text(value: &Val) -> String {
    match value {
        Val::TStr(bytes) | Val::BStr(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Val::Num(_) => print::compact(value).trim_matches('"').to_owned(),
        other => print::compact(other),
    }
}

fn plain(text: &str) -> String {
    crate::report::render::visible(text)
}

fn short(value: &Val) -> String {
    let text = print::compact(value);
    match text.char_indices().nth(80) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::filter::to_val;
    use super::*;
    use serde_json::{Value, json};

    fn rows(format: RowFormat, outputs: &[Value]) -> Result<String, String> {
        let mut rows = Rows::new(format);
        let mut out = String::new();
        for output in outputs {
            out.push_str(&rows.push(&to_val(output))?);
        }
        Ok(out + &rows.end())
    }

    #[test]
    fn one_row_an_output() {
        let outputs = [json!({"seed": 42, "x": 6.5}), json!({"x": null, "seed": 7})];
        assert_eq!(rows(RowFormat::Csv, &outputs).unwrap(), "seed,x\n42,6.5\n7,\n");
        assert_eq!(rows(RowFormat::Tsv, &outputs).unwrap(), "seed\tx\n42\t6.5\n7\t\n");
        assert_eq!(
            rows(RowFormat::Latex, &outputs).unwrap(),
            "\\begin{tabular}{rr}\n\\toprule\nseed & x \\\\\n\\midrule\n42 & 6.5 \\\\\n7 & -- \\\\\n\\bottomrule\n\\end{tabular}\n"
        );
        assert_eq!(rows(RowFormat::Csv, &[json!([[1, "a,b"], [2, "c"]])]).unwrap(), "1,\"a,b\"\n2,c\n");
        assert_eq!(rows(RowFormat::Csv, &[json!(1.5), json!("x")]).unwrap(), "1.5\nx\n");
    }

    #[test]
    fn rows_of_other_columns_are_refused() {
        let refused = |outputs: &[Value]| rows(RowFormat::Csv, outputs).unwrap_err();
        assert!(refused(&[json!({"a": 1}), json!({"b": 1})]).contains("not those of the first row"));
        assert!(refused(&[json!([1, 2]), json!([1])]).contains("1 cells follows rows of 2"));
        assert!(refused(&[json!([1]), json!({"a": 1})]).contains("without keys"));
    }

    #[test]
    fn hostile_texts_stay_texts() {
        let output = [json!(["=HYPERLINK(\"x\")", "a_b & \\input{x}", "\u{1b}[31m\t", -0.5])];
        let csv = rows(RowFormat::Csv, &output).unwrap();
        assert!(csv.starts_with("\"'=HYPERLINK(\"\"x\"\")\",") && csv.ends_with(",-0.5\n"), "{csv}");
        assert!(!csv.contains('\u{1b}'));
        assert_eq!(rows(RowFormat::Tsv, &output).unwrap().matches('\t').count(), 3);
        let latex = rows(RowFormat::Latex, &output).unwrap();
        assert!(latex.contains("a\\_b \\& \\textbackslash{}input\\{x\\}") && latex.contains("& $-$0.5"), "{latex}");
    }
}
