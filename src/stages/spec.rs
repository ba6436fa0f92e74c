//! How a stage kind describes itself: its parameters, version, inputs and outputs.
//!
//! A [`Spec`] is data, always compiled, so that a login node without tensors checks a whole study, every
//! stage's parameters included. The kind's own file turns the resolved parameters into its `Params`.

use serde_json::Value;

/// The type of a parameter, with its bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FieldType {
    /// A whole number, both bounds included.
    Integer {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// A finite number, both bounds included. A TOML integer is taken as a number.
    Number {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// `true` or `false`.
    Bool,
    /// Any text without control characters.
    Text,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// An array of texts.
    TextList,
    /// An array of whole numbers, not negative.
    IntegerList,
    /// A table of texts: `{author = "A. Uthor"}`.
    TextMap,
    /// A table of names of needed stages: `{baseline_pythia = "train_baseline"}`.
    NeedMap,
    /// A file or directory, relative to the study file's directory: an external input. The digest of its
    /// content enters the fingerprint, the path does not.
    Path,
    /// The study's `[[table]]` sections, an array of objects: the study file fills it in, and `params` cannot say it.
    Tables,
    /// The study's `[[figure]]` sections, an array of objects; absent where it has none, and `params` cannot say it.
    Figures,
    /// The study's `[[document]]` sections, an array of objects; absent where it has none, and `params` cannot say it.
    Documents,
    /// The conditions of a gate, an array of objects: its `[[gate]]` section fills it in.
    Conditions,
}

/// What a parameter is when the study does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Preset {
    /// The study must say.
    Required,
    /// It is absent.
    Absent,
    /// This JSON text.
    Is(&'static str),
}

/// Whether a parameter may change an output byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It may: it enters the fingerprint.
    Semantic,
    /// A test shows that it does not: it stays outside.
    Operational,
}

/// One parameter of a stage kind.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its key in `params`.
    pub name: &'static str,
    /// Its type.
    pub ty: FieldType,
    /// Its value when the study does not say.
    pub preset: Preset,
    /// Whether it enters the fingerprint.
    pub role: Role,
    /// One line for people, with the unit.
    pub help: &'static str,
}

/// A stage kind.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// The word after `run =` in a study.
    pub kind: &'static str,
    /// Semantic version: raised when the same parameters give other bytes.
    pub version: u32,
    /// The binary, `seedbed-<...>`.
    pub binary: &'static str,
    /// Whether it checkpoints and can be run again after exit 75.
    pub resumable: bool,
    /// Whether it runs on more than one rank.
    pub parallel: bool,
    /// Whether it runs although needed cells are not sealed, and judges by itself what that means. What it
    /// writes before it exits with 66 is published, but not sealed.
    pub partial_inputs: bool,
    /// Kinds among the needed cells that must be there.
    pub needs: &'static [&'static str],
    /// Files or directories that a finished cell has, besides `run.h5`.
    pub outputs: &'static [&'static str],
    /// The JSON file with the cell's value tree, printed from `run.h5`.
    pub export: Option<&'static str>,
    /// One line for people.
    pub help: &'static str,
    /// Its parameters.
    pub fields: &'static [Field],
    /// What no single field can tell: problems of resolved parameters, as fragments that name the key.
    pub check: fn(&Value) -> Vec<String>,
}

/// A [`Spec::check`] for kinds whose fields say everything.
pub fn no_check(_: &Value) -> Vec<String> {
    Vec::new()
}

impl Spec {
    /// The parameter of that name.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|f| f.name == name)
    }
}
