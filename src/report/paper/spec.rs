//! The fill file beside a paper: which studies it reads, which values it declares, and what of a plain paper it fills.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::template::{Template, check_key};

/// The newest `schema` that this program reads.
pub const SCHEMA: u32 = 1;

/// A fill file.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// [`SCHEMA`].
    #[serde(default)]
    pub schema: u32,
    /// The studies, relative to the file.
    #[serde(default)]
    pub studies: Vec<StudyRef>,
    /// Their profile, where they do not say their own.
    #[serde(default)]
    pub profile: Option<String>,
    /// The folder of generated files, relative to the paper.
    #[serde(default = "default_folder")]
    pub folder: String,
    /// Values by key.
    #[serde(default)]
    pub value: BTreeMap<String, ValueSpec>,
    /// Tables of a plain paper.
    #[serde(default)]
    pub fill: Vec<TableFill>,
    /// Red passages of a plain paper.
    #[serde(default)]
    pub red: Vec<RedFill>,
    /// What stands in the paper where a number is to come.
    #[serde(default = "default_placeholders")]
    pub placeholders: Vec<String>,
    /// Sections whose other numerals are listed.
    #[serde(default)]
    pub sections: Vec<String>,
}

/// The folder of generated files, unless the fill file says another.
pub const FOLDER: &str = "seedbed";

fn default_folder() -> String {
    FOLDER.to_owned()
}

fn default_placeholders() -> Vec<String> {
    ["[pending]", "[TBD]", "XX.X", "\\textbf{??}"].map(str::to_owned).to_vec()
}

/// A study, and under which profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StudyRef {
    /// A study file.
    File(String),
    /// A study file and a profile.
    Profile(StudyUnder),
}

/// A study file and a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyUnder {
    /// The study file.
    pub file: String,
    /// The profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// A declared value: a cell of a table, or a jq filter on runs or on cells.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValueSpec {
    /// A cell, `TABLE/ROW/COLUMN`.
    #[serde(default)]
    pub cell: Option<String>,
    /// What of the cell: `value`, `mean`, `sd`, `median`, `iqm`, `lower`, `upper`, `n`.
    #[serde(default)]
    pub part: Option<String>,
    /// A jq filter that gives one number or text.
    #[serde(default)]
    pub value: Option<String>,
    /// The stage or stages whose runs the filter sees, as an array.
    #[serde(default)]
    pub of: Vec<String>,
    /// The study of these stages.
    #[serde(default)]
    pub study: Option<String>,
    /// Cells whose values the filter sees, as an object by these names.
    #[serde(default)]
    pub cells: BTreeMap<String, String>,
    /// Decimals.
    #[serde(default = "default_digits")]
    pub digits: u8,
    /// It is multiplied by this.
    #[serde(default = "default_scale")]
    pub scale: f64,
    /// LaTeX before it.
    #[serde(default)]
    pub prefix: String,
    /// LaTeX behind it.
    #[serde(default)]
    pub suffix: String,
}

/// What of a cell a declared value may be.
pub const CELL_PARTS: [&str; 8] = ["value", "mean", "sd", "median", "iqm", "lower", "upper", "n"];

fn default_digits() -> u8 {
    2
}

fn default_scale() -> f64 {
    1.0
}

/// What is filled in a table of a plain paper.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableFill {
    /// Its label.
    pub label: String,
    /// Which tabular of it, from 1, if it has several.
    #[serde(default)]
    pub tabular: Option<usize>,
    /// Header cells: their text, and the LaTeX that comes in its place.
    #[serde(default)]
    pub header: BTreeMap<String, String>,
    /// Rows.
    #[serde(default)]
    pub rows: Vec<RowFill>,
    /// LaTeX below the table.
    #[serde(default)]
    pub note: Option<String>,
}

/// A row that is filled, or inserted.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowFill {
    /// Text of its first cell.
    pub first: String,
    /// Text of its second cell, where several rows have that first one.
    #[serde(default)]
    pub second: Option<String>,
    /// LaTeX with keys for the cells from the second on; an empty one stays as it is.
    #[serde(default)]
    pub cells: Vec<String>,
    /// A row of a study's table, `TABLE/ROW`, whose cells are printed from the second column on.
    #[serde(default)]
    pub from: Option<String>,
    /// Inserted behind the row with this first cell, where there is no such row yet.
    #[serde(default)]
    pub after: Option<String>,
}

/// A red passage of a plain paper.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedFill {
    /// How its text begins.
    pub starts: String,
    /// LaTeX with keys that comes in its place.
    #[serde(default)]
    pub text: Option<String>,
    /// Its text stays, only the colour goes.
    #[serde(default)]
    pub keep: bool,
}

impl Spec {
    /// What a paper without a fill file has.
    pub fn empty() -> Self {
        Self { schema: SCHEMA, folder: default_folder(), placeholders: default_placeholders(), ..Self::default() }
    }

    /// Reads a fill file.
    ///
    /// # Errors
    /// Every problem; the first with its line if it is no such file at all.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let spec: Self = toml::from_str(text).map_err(|e| vec![e.to_string().trim_end().to_owned()])?;
        let problems = spec.problems();
        if problems.is_empty() { Ok(spec) } else { Err(problems) }
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match self.schema {
            SCHEMA => {}
            0 => problems.push(format!("it says no schema: begin it with `schema = {SCHEMA}`")),
            newer => problems.push(format!(
                "schema {newer} is newer than this program, which reads up to {SCHEMA}: use the newer Seedbed"
            )),
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        let parts: Vec<&str> = self.folder.split('/').collect();
        if self.folder.starts_with('/')
            || !self.folder.chars().all(plain)
            || parts.iter().any(|p| p.is_empty() || p.starts_with('.'))
        {
            problems
                .push(format!("folder `{}` must be a simple folder beside the paper, such as `{FOLDER}`", self.folder));
        }
        for (key, value) in &self.value {
            let mut tell = |what: String| problems.push(format!("value `{key}`: {what}"));
            if let Err(what) = check_key(key) {
                tell(what);
            }
            let kinds = [value.cell.is_some(), !value.of.is_empty(), !value.cells.is_empty()];
            if kinds.iter().filter(|k| **k).count() != 1 {
                tell("say one of `cell`, `of` (stages) and `cells`".to_owned());
            }
            if value.cell.is_some() == value.value.is_some() {
                tell("`of` and `cells` need a `value`, a jq filter; `cell` takes none".to_owned());
            }
            if let Some(part) = value.part.as_deref().filter(|p| value.cell.is_none() || !CELL_PARTS.contains(p)) {
                tell(format!("part `{part}` is not known: with `cell` use one of {}", CELL_PARTS.join(", ")));
            }
            if value.digits > 20 || !value.scale.is_finite() {
                tell("`digits` is at most 20, and `scale` a finite number".to_owned());
            }
            for text in [&value.prefix, &value.suffix] {
                if let Err(what) = Template::parse(text).and_then(|t| t.check_keyless()) {
                    tell(what);
                }
            }
        }
        for (n, fill) in self.fill.iter().enumerate() {
            if self.fill[..n].iter().any(|other| other.label == fill.label && other.tabular == fill.tabular) {
                problems.push(format!("fill `{}` stands there twice: put its rows together", fill.label));
            }
            fill.problems(&mut problems);
        }
        for (n, red) in self.red.iter().enumerate() {
            if self.red[..n].iter().any(|other| other.starts == red.starts) {
                problems.push(format!("red `{}` stands there twice: keep one", red.starts));
            }
            if red.starts.trim().is_empty() {
                problems.push("a red passage needs `starts`, the first words of it".to_owned());
            }
            if red.text.is_some() == red.keep {
                problems.push(format!("red `{}`: say either `text` or `keep = true`", red.starts));
            }
            if let Some(Err(what)) = red.text.as_deref().map(Template::parse) {
                problems.push(format!("red `{}`: {what}", red.starts));
            }
        }
        problems
    }
}

impl TableFill {
    fn problems(&self, problems: &mut Vec<String>) {
        let mut tell = |what: String| problems.push(format!("fill `{}`: {what}", self.label));
        for (old, new) in &self.header {
            let checked = Template::parse(new).and_then(|t| t.check_cell().and_then(|()| t.check_keyless()));
            if let Err(what) = checked {
                tell(format!("header `{old}`: {what}"));
            }
        }
        for (n, row) in self.rows.iter().enumerate() {
            let same = |other: &RowFill| other.first == row.first && other.second == row.second;
            if self.rows[..n].iter().any(same) {
                tell(format!("row `{}` stands there twice: keep one", row.first));
            }
            if row.cells.is_empty() == row.from.is_none() {
                tell(format!("row `{}`: say either `cells` or `from`", row.first));
            }
            if let Some(from) = row.from.as_deref().filter(|f| !matches!(f.split('/').count(), 2 | 3)) {
                tell(format!("row `{}`: `from = \"{from}\"` must be TABLE/ROW", row.first));
            }
            for cell in &row.cells {
                if let Err(what) = Template::parse(cell).and_then(|t| t.check_cell()) {
                    tell(format!("row `{}`: {what}", row.first));
                }
            }
        }
        if let Some(Err(what)) = self.note.as_deref().map(Template::parse) {
            tell(format!("note: {what}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_file_is_checked_as_a_whole() {
        let text = r#"
schema = 1
studies = ["a.toml", {file = "b.toml", profile = "full"}]
folder = "../up"
[value.gap]
of = ["evaluate"]
[value.x]
cell = "t/r/c"
part = "most"
[[fill]]
label = "tab:x"
rows = [{first = "a", cells = ["1 & 2"]}, {first = "a", from = "t"}]
[[red]]
starts = "We expect"
"#;
        let problems = Spec::parse(text).unwrap_err();
        let all = problems.join("\n");
        for word in [
            "folder `../up`",
            "value `gap`: `of` and `cells` need a `value`",
            "part `most` is not known",
            "row `a`: `1 & 2` has an `&`",
            "row `a` stands there twice",
            "must be TABLE/ROW",
            "red `We expect`: say either `text` or `keep = true`",
        ] {
            assert!(all.contains(word), "{word} is not in\n{all}");
        }
        assert_eq!(problems.len(), 7, "{all}");
        let error = Spec::parse("schema = 1\nstudys = []\n").unwrap_err().join("\n");
        assert!(error.contains("line 2") && error.contains("studys"), "{error}");
        assert!(Spec::parse("schema = 2").unwrap_err()[0].contains("newer Seedbed"));
        assert!(Spec::parse("").unwrap_err()[0].contains("schema = 1"));
    }
}
