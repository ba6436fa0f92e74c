//! A jq filter: compiled once, run on values. All of jaq stays behind this file and its neighbours.
//!
//! Two scopes. [`Scope::Open`] is the language for a person at a terminal. [`Scope::Closed`] is for gates
//! and tables: nothing that reads the environment, the clock or other input, prints, or halts; its filters
//! mean the same everywhere. Modules cannot be loaded in either. A filter may still not end, or eat all
//! memory: [`super::limit`] runs it where that does no harm.

use jaq_core::load::{Arena, File, Loader};
use jaq_core::native::Fun;
use jaq_core::{Compiler, Ctx, DataT, Lut, Vars, data, load, native};
use jaq_json::{Num, Val};
use jaq_std::input::{HasInputs, Inputs, RcIter};
use serde_json::Value;

use super::functions;

/// What native filters may see: values, and the inputs that nobody has taken yet.
struct Data;

#[derive(Clone)]
struct Around<'a> {
    lut: &'a Lut<Data>,
    inputs: Inputs<'a, Val>,
}

impl DataT for Data {
    type V<'a> = Val;
    type Data<'a> = Around<'a>;
}

impl<'a> data::HasLut<'a, Data> for Around<'a> {
    fn lut(&self) -> &'a Lut<Data> {
        self.lut
    }
}

impl<'a> HasInputs<'a, Val> for Around<'a> {
    fn inputs(&self) -> Inputs<'a, Val> {
        self.inputs
    }
}

/// `input` and `inputs`. Generic, for mapping them where the type is known does not type-check.
fn reading<D: DataT>() -> Vec<Fun<D>>
where
    for<'a> D::Data<'a>: HasInputs<'a, D::V<'a>>,
{
    jaq_std::input::funs::<D>().into_vec().into_iter().map(native::run).collect()
}

/// The environment, as an open filter sees it.
const ENV: &str = "$ENV";

/// Longest filter text that is compiled, bytes. jaq's parser recurses; this keeps it within any stack.
const MAX_CODE_BYTES: usize = 4096;

/// Deepest nesting of brackets that is compiled.
const MAX_NESTING: usize = 64;

/// What a filter may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The whole language, with `input`, `env`, `now`, `debug`.
    Open,
    /// Values only.
    Closed,
}

/// Native filters and definitions that a closed filter does not have.
const NOT_CLOSED: &[&str] = &[
    "env",
    "now",
    "halt",
    "halt_error",
    "debug",
    "debug_empty",
    "stderr",
    "stderr_empty",
    "localtime",
    "strflocaltime",
];

/// Why a filter has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// It is not jq, or names something that is not there. Shows the line with a caret.
    #[error("the filter does not compile: {what} at line {line}, column {column}\n  {text}\n  {caret}")]
    Compile {
        /// What is wrong.
        what: String,
        /// Line in the filter, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// That line.
        text: String,
        /// Spaces and a `^` below the place.
        caret: String,
    },
    /// It failed on this input, as jq's `error` does.
    #[error("the filter failed: {0}")]
    Run(String),
}

/// A compiled filter.
pub struct Filter {
    compiled: jaq_core::Filter<Data>,
    variables: usize,
    scope: Scope,
}

impl Filter {
    /// Compiles `code`. `variables` are names with their dollar (`$row`) whose values [`Self::run`] is given.
    ///
    /// # Errors
    /// [`FilterError::Compile`] with the place.
    pub fn compile(code: &str, variables: &[&'static str], scope: Scope) -> Result<Self, FilterError> {
        check_size(code)?;
        let allowed = |name: &str| scope == Scope::Open || !NOT_CLOSED.contains(&name);
        let defs = jaq_core::defs()
            .chain(jaq_std::defs())
            .chain(jaq_json::defs())
            .filter(|def| allowed(def.name))
            .chain(functions::defs());
        let mut funs: Vec<Fun<Data>> = jaq_core::funs()
            .chain(jaq_std::funs())
            .chain(jaq_json::funs())
            .filter(|(name, ..)| allowed(name) && !functions::REPLACED.contains(name))
            .chain(functions::funs())
            .collect();
        let mut globals = variables.to_vec();
        if scope == Scope::Open {
            funs.extend(reading());
            funs.extend(functions::open());
            globals.push(ENV);
        }
        let arena = Arena::default();
        let modules =
            Loader::new(defs).load(&arena, File { path: (), code }).map_err(|errors| first_load_error(code, errors))?;
        load::import(&modules, |_| Err("modules and data files cannot be loaded".to_owned()))
            .map_err(|errors| first_load_error(code, errors))?;
        let compiled = Compiler::default()
            .with_funs(funs)
            .with_global_vars(globals)
            .compile(modules)
            .map_err(|errors| first_compile_error(code, scope, errors))?;
        Ok(Self { compiled, variables: variables.len(), scope })
    }

    /// Every output on `input`, in order. `variables` has a value for each name given to
    /// [`Self::compile`].
    ///
    /// # Errors
    /// [`FilterError::Run`] at the first error; outputs before it are lost.
    pub fn run(&self, input: Val, variables: Vec<Val>) -> Result<Vec<Val>, FilterError> {
        let mut outputs = Vec::new();
        self.run_each(input, variables, |value| {
            outputs.push(value);
            true
        })?;
        Ok(outputs)
    }

    /// As [`Self::run`], giving each output as it comes, until `each` returns false.
    ///
    /// # Errors
    /// [`FilterError::Run`] at the first error.
    pub fn run_each(&self, input: Val, variables: Vec<Val>, each: impl FnMut(Val) -> bool) -> Result<(), FilterError> {
        self.run_all(vec![input], InputMode::Each, variables, each)
    }

    /// Runs on every input in turn. The filters `input` and `inputs` take from the same inputs.
    ///
    /// # Errors
    /// [`FilterError::Run`] at the first error.
    pub fn run_all(
        &self,
        inputs: Vec<Val>,
        mode: InputMode,
        mut variables: Vec<Val>,
        mut each: impl FnMut(Val) -> bool,
    ) -> Result<(), FilterError> {
        if variables.len() != self.variables {
            return Err(FilterError::Run(format!("{} of {} variables are given", variables.len(), self.variables)));
        }
        if self.scope == Scope::Open {
            variables.push(functions::environment());
        }
        let rest = RcIter::new(inputs.into_iter().map(Ok));
        let rest: &RcIter<dyn Iterator<Item = Result<Val, String>>> = &rest;
        let mut null = (mode == InputMode::Null).then_some(Val::Null);
        loop {
            let input = match (mode, null.take()) {
                (InputMode::Null, Some(null)) => null,
                (InputMode::Null, None) => return Ok(()),
                (InputMode::Each, _) => match (&mut &*rest).next() {
                    Some(Ok(input)) => input,
                    _ => return Ok(()),
                },
            };
            let around = Around { lut: &self.compiled.lut, inputs: rest };
            let ctx = Ctx::<Data>::new(around, Vars::new(variables.clone()));
            for output in self.compiled.id.run((ctx, input)) {
                match output {
                    Ok(value) => {
                        if !each(value) {
                            return Ok(());
                        }
                    }
                    Err(exception) => match exception.get_err() {
                        Ok(error) => return Err(FilterError::Run(shorten(&error.to_string()))),
                        // `halt` ends the filter; whatever it printed before counts.
                        Err(_) => return Ok(()),
                    },
                }
            }
        }
    }
}

/// What a filter is run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputMode {
    /// Each input in turn.
    Each,
    /// `null`, once: `input` and `inputs` read.
    Null,
}

/// A JSON value for a filter. Whole numbers stay whole, others are floats.
pub fn to_val(value: &Value) -> Val {
    match value {
        Value::Null => Val::Null,
        Value::Bool(b) => Val::Bool(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Val::Num(Num::from_integral(i)),
            (None, Some(u)) => Val::Num(Num::from_integral(u)),
            (None, None) => Val::Num(Num::Float(n.as_f64().unwrap_or(f64::NAN))),
        },
        Value::String(text) => text_val(text),
        Value::Array(items) => items.iter().map(to_val).collect(),
        Value::Object(map) => Val::obj(map.iter().map(|(key, value)| (text_val(key), to_val(value))).collect()),
    }
}

/// A text for a filter.
pub fn text_val(text: &str) -> Val {
    Val::utf8_str(text.as_bytes().to_vec())
}

/// The error text of jq quotes the whole value; a value tree may have megabytes.
fn shorten(text: &str) -> String {
    const KEEP: usize = 300;
    match text.char_indices().nth(KEEP) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
    }
}

fn check_size(code: &str) -> Result<(), FilterError> {
    if code.len() > MAX_CODE_BYTES {
        let what = format!("{} bytes are too many (at most {MAX_CODE_BYTES})", code.len());
        return Err(at(code, &code[..0], what));
    }
    let (mut depth, mut run) = (0usize, 0usize);
    for (i, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        // Prefix minus is recursive too.
        run = if byte == b'-' {
            run + 1
        } else if byte.is_ascii_whitespace() {
            run
        } else {
            0
        };
        if depth > MAX_NESTING || run > MAX_NESTING {
            let here = code.get(i..i).unwrap_or(&code[..0]);
            return Err(at(code, here, format!("it is nested deeper than {MAX_NESTING}")));
        }
    }
    Ok(())
}

/// A compile error at `part`, a slice of `code`; or at its end, if jaq names something else.
fn at(code: &str, part: &str, what: impl Into<String>) -> FilterError {
    let base = code.as_ptr() as usize;
    let place = part.as_ptr() as usize;
    let offset = if (base..=base + code.len()).contains(&place) { place - base } else { code.len() };
    let offset = (0..=offset).rev().find(|i| code.is_char_boundary(*i)).unwrap_or(0);
    let before = &code[..offset];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let column = before[line_start..].chars().count() + 1;
    let text: String = code[line_start..].lines().next().unwrap_or("").chars().take(200).collect();
    // Control characters of a hostile study must not reach the terminal.
    let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    FilterError::Compile {
        what: what.into(),
        line: before.matches('\n').count() + 1,
        column,
        text,
        caret: format!("{}^", " ".repeat(column.min(200) - 1)),
    }
}

fn first_load_error(code: &str, errors: load::Errors<&str, ()>) -> FilterError {
    for (_, error) in errors {
        match error {
            load::Error::Io(list) => {
                if let Some((part, what)) = list.into_iter().next() {
                    return at(code, part, what);
                }
            }
            load::Error::Lex(list) => {
                if let Some((expected, found)) = list.into_iter().next() {
                    use load::lex::Expect;
                    let expected = match &expected {
                        // Other delimiters make jaq's own text panic.
                        Expect::Delim(open) => format!("an end of `{}`", open.chars().next().unwrap_or('(')),
                        other => format!("a {}", other.as_str()),
                    };
                    return at(code, found, format!("expected {expected}"));
                }
            }
            load::Error::Parse(list) => {
                if let Some((expected, found)) = list.into_iter().next() {
                    let found_text = if found.is_empty() { "the end".to_owned() } else { format!("`{}`", word(found)) };
                    return at(code, found, format!("expected {}, found {found_text}", expected.as_str()));
                }
            }
        }
    }
    at(code, &code[code.len()..], "it is not jq")
}

fn first_compile_error(
    code: &str,
    scope: Scope,
    errors: load::Errors<&str, (), Vec<jaq_core::compile::Error<&str>>>,
) -> FilterError {
    use jaq_core::compile::Undefined;
    for (_, list) in errors {
        if let Some((part, undefined)) = list.into_iter().next() {
            let closed = scope == Scope::Closed
                && (NOT_CLOSED.contains(&part) || ["$ENV", "input", "inputs", "input_filename"].contains(&part));
            let name = match undefined {
                Undefined::Filter(arity) => format!("filter `{}/{arity}`", word(part)),
                other => format!("{} `{}`", other.as_str(), word(part)),
            };
            let why = if closed { "is not allowed in gates and tables" } else { "is not defined" };
            return at(code, part, format!("{name} {why}"));
        }
    }
    at(code, &code[code.len()..], "it is not jq")
}

/// The first characters of what jaq points at.
fn word(part: &str) -> String {
    part.chars().take(24).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::print;
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn give(input: Value, code: &str, outputs: &[&str]) {
        let filter = Filter::compile(code, &["$row"], Scope::Closed).unwrap();
        let row = to_val(&json!({"model": "b"}));
        let got = filter.run(to_val(&input), vec![row]).unwrap();
        assert_eq!(got.iter().map(print::compact).collect::<Vec<_>>(), outputs, "{code}");
    }

    #[track_caller]
    fn refused(code: &str, place: (usize, usize), fragment: &str) {
        match Filter::compile(code, &[], Scope::Closed).map(|_| ()).unwrap_err() {
            FilterError::Compile { what, line, column, .. } => {
                assert!(what.contains(fragment), "{code}: {what}");
                assert_eq!((line, column), place, "{code}: {what}");
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_language() {
        let tree = json!({"pile_test": {"a": {"perplexity": 6.919}, "b": {"perplexity": 27.585}}, "n": 3});
        give(tree.clone(), ".pile_test.a.perplexity", &["6.919"]);
        give(tree.clone(), ".pile_test[$row.model].perplexity", &["27.585"]);
        give(
            tree.clone(),
            ".pile_test | to_entries[] | [.key, .value.perplexity]",
            &["[\"a\",6.919]", "[\"b\",27.585]"],
        );
        give(tree, ".n + 1, .absent", &["4", "null"]);
        give(json!([3, 1, 2]), "sort | map(. * 2) | add", &["12"]);
        give(json!("a-b"), "ascii_upcase | split(\"-\")", &["[\"A\",\"B\"]"]);
    }

    #[test]
    fn statistics_are_filters() {
        let accuracies = json!([0.91, 0.93, 0.92, 0.95, 0.89]);
        give(accuracies.clone(), "mean, sd | . * 1e6 | round", &["920000", "22361"]);
        give(accuracies.clone(), "median", &["0.92"]);
        give(accuracies, "ci95 | map(. * 1e6 | round)", &["[892236,947764]"]);
        give(json!([1, 2, 3, 4, 100]), "iqm", &["3"]);
        give(json!([7]), "mean, sd, ci95", &["7", "null", "null"]);
        let filter = Filter::compile("mean", &[], Scope::Closed).unwrap();
        let error = filter.run(to_val(&json!([1, "x"])), vec![]).unwrap_err().to_string();
        assert!(error.contains("\"x\"") && error.contains("number"), "{error}");
        assert!(Filter::compile("[0 / 0] | mean", &[], Scope::Closed).unwrap().run(Val::Null, vec![]).is_err());
    }

    #[test]
    fn errors_have_places() {
        refused(".a | nosuch(1)", (1, 6), "filter `nosuch/1` is not defined");
        refused(".a |\n  $x", (2, 3), "variable `$x`");
        refused("[1, 2", (1, 6), "expected an end of `[`");
        refused(".a | ", (1, 6), "found the end");
        refused("", (1, 1), "found the end");
        refused("import \"x\" as x; .", (1, 9), "load");
        refused("import \"x\" as $x; .", (1, 9), "load");
        refused("\"abc", (1, 5), "expected");
    }

    #[test]
    fn closed_filters_see_values_only() {
        for code in [
            "env",
            "$ENV",
            "$__prog_args",
            "now",
            "input",
            "inputs",
            "input_filename",
            "input_line_number",
            "debug",
            "debug(1)",
            "stderr",
            "halt",
            "halt(3)",
            "halt_error",
            "localtime",
            "env.HOME",
            "$ENV.HOME",
            "get_search_list",
            "getpath([]) | env",
        ] {
            let error = Filter::compile(code, &[], Scope::Closed).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("not allowed") || error.contains("not defined"), "{code}: {error}");
        }
        assert!(Filter::compile("env, now, debug, $row, $ENV.HOME, input", &["$row"], Scope::Open).is_ok());
    }

    #[test]
    fn open_filters_read_the_inputs_that_are_left() {
        let run = |code: &str, mode| {
            let filter = Filter::compile(code, &[], Scope::Open).unwrap();
            let inputs = [1, 2, 3].map(|i| to_val(&json!(i))).to_vec();
            let mut got = Vec::new();
            filter
                .run_all(inputs, mode, vec![], |v| {
                    got.push(print::compact(&v));
                    true
                })
                .map(|()| got)
        };
        assert_eq!(run(". * 2", InputMode::Each).unwrap(), ["2", "4", "6"]);
        assert_eq!(run("[., input]", InputMode::Each).unwrap(), ["[1,2]", "[3]"]);
        assert_eq!(run("[inputs] | add", InputMode::Null).unwrap(), ["6"]);
        assert_eq!(run("reduce inputs as $x (.; . + $x)", InputMode::Each).unwrap(), ["6"]);
        assert_eq!(run("$ENV | type", InputMode::Null).unwrap(), ["\"object\""]);
    }

    #[test]
    fn hostile_filters_are_refused_not_fatal() {
        for code in [
            "(".repeat(4000),
            "-".repeat(4000),
            "[".repeat(100_000),
            "- ".repeat(2000),
            ".|".repeat(2000) + ".",
            ".,".repeat(2000) + ".",
            ".a".repeat(2000),
            "try ".repeat(1000) + ".",
            "def f: ".repeat(500) + ".",
            "if . then ".repeat(300) + ".",
            "reduce . as $x (0; ".repeat(200),
            "\"\\(".repeat(1000),
            ". as $x | ".repeat(400) + ".",
            "label $x | ".repeat(350) + ".",
            "\u{1b}[31m\0".to_owned(),
            ".a as [[[[[[[[[[[[$x".to_owned(),
            "@".to_owned(),
            "$".to_owned(),
            "é".repeat(2000),
            "\"\\ud800".to_owned(),
        ] {
            let ran = super::super::limit::deep(|| {
                Filter::compile(&code, &[], Scope::Closed).and_then(|f| f.run(Val::Null, vec![])).is_ok()
            });
            assert!(ran.is_ok(), "{}", code.chars().take(12).collect::<String>());
        }
    }
}
