//! Filters that are nothing but a path, such as `.pile_test[$row.model].perplexity`: answered without jaq.
//!
//! Most metrics of tables are of this kind, and a table of a large study asks for tens of thousands of them. What is
//! answered here is what jaq answers (a test compares); whatever is not plain, and every error, is left to jaq.

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

use super::filter::to_val;
use super::print;
use crate::record::run_h5::Metrics;
use crate::record::tree;

/// A value tree, or something that can give one.
pub trait Tree: fmt::Debug + Send + Sync {
    /// The tree.
    ///
    /// # Errors
    /// There is none, in words.
    fn tree(&self) -> Result<Cow<'_, Value>, String>;

    /// The value at a path in the flat form of [`crate::record::tree`], if it can be told without the tree. `near` is where it
    /// was found in a tree before.
    fn leaf(&self, path: &str, near: &mut usize) -> Option<Value>;
}

impl Tree for Value {
    fn tree(&self) -> Result<Cow<'_, Value>, String> {
        Ok(Cow::Borrowed(self))
    }

    fn leaf(&self, _: &str, _: &mut usize) -> Option<Value> {
        None
    }
}

impl Tree for Metrics {
    fn tree(&self) -> Result<Cow<'_, Value>, String> {
        Self::tree(self).map(Cow::Owned)
    }

    fn leaf(&self, path: &str, near: &mut usize) -> Option<Value> {
        self.leaf_near(path, near)
    }
}

impl<T: Tree + ?Sized> Tree for std::sync::Arc<T> {
    fn tree(&self) -> Result<Cow<'_, Value>, String> {
        (**self).tree()
    }

    fn leaf(&self, path: &str, near: &mut usize) -> Option<Value> {
        (**self).leaf(path, near)
    }
}

/// A step of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// A member of an object.
    Key(String),
    /// An element of an array.
    Index(usize),
    /// A member whose name is that member of `$row`.
    Row(String),
}

/// A filter that is a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Path {
    steps: Vec<Step>,
    /// In the flat form, if no step depends on `$row`.
    flat: Option<String>,
    /// Where it was found last.
    near: usize,
}

impl Path {
    /// Whether some step depends on `$row`.
    pub(super) fn asks_row(&self) -> bool {
        self.flat.is_none()
    }

    /// The path in the flat form, if no step depends on `$row` and there is one.
    pub(super) fn flat(self) -> Option<String> {
        self.flat.filter(|flat| !flat.is_empty())
    }

    /// The path that a filter is, if it is one.
    pub(super) fn parse(code: &str) -> Option<Self> {
        let mut rest = code.trim_matches([' ', '\t', '\n']).strip_prefix('.')?;
        let mut steps = Vec::new();
        // After its first dot, a path goes on with a name or a bracket, and then with `.name` or a bracket.
        let mut named = true;
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix('[') {
                let (step, after) = bracket(inside)?;
                steps.push(step);
                rest = after;
            } else {
                let name = if named { rest } else { rest.strip_prefix('.')? };
                let end = name.bytes().position(|b| !(b.is_ascii_alphanumeric() || b == b'_')).unwrap_or(name.len());
                let (name, after) = name.split_at(end);
                if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
                    return None;
                }
                steps.push(Step::Key(name.to_owned()));
                rest = after;
            }
            named = false;
        }
        let mut path = Self { steps, flat: None, near: 0 };
        path.flat = path.places(&Value::Null).map(|places| flat(&places));
        Some(path)
    }

    /// The steps on a row; `None` if the row lacks a text that they ask for.
    fn places<'a>(&'a self, row: &'a Value) -> Option<Vec<Place<'a>>> {
        let place = |step: &'a Step| {
            Some(match step {
                Step::Key(key) => Place::Key(key),
                Step::Index(i) => Place::Index(*i),
                Step::Row(name) => Place::Key(row.as_object()?.get(name)?.as_str()?),
            })
        };
        self.steps.iter().map(place).collect()
    }

    /// The answer on `input`, if it is plain that jaq gives it.
    pub(super) fn answer(&mut self, input: &dyn Tree, row: &Value) -> Option<Value> {
        let mut near = self.near;
        let leaf = match &self.flat {
            Some(path) => input.leaf(path, &mut near),
            None => input.leaf(&flat(&self.places(row)?), &mut near),
        };
        self.near = near;
        if let Some(leaf) = leaf {
            return printed(Cow::Owned(leaf));
        }
        let places = self.places(row)?;
        let tree = input.tree().ok()?;
        printed(Cow::Borrowed(follow(&tree, &places)?))
    }
}

enum Place<'a> {
    Key(&'a str),
    Index(usize),
}

/// What stands in brackets, and what follows them.
fn bracket(inside: &str) -> Option<(Step, &str)> {
    if let Some(text) = inside.strip_prefix('"') {
        let end = text.find(['"', '\\'])?;
        let (text, after) = text.split_at(end);
        return Some((Step::Key(text.to_owned()), after.strip_prefix("\"]")?));
    }
    if let Some(name) = inside.strip_prefix("$row.") {
        let end = name.find(']')?;
        let (name, after) = name.split_at(end);
        let first = name.bytes().next()?;
        let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !first.is_ascii_digit();
        return fits.then(|| (Step::Row(name.to_owned()), &after[1..]));
    }
    let end = inside.find(']')?;
    let (digits, after) = inside.split_at(end);
    let fits = (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    Some((Step::Index(digits.parse().ok().filter(|_| fits)?), &after[1..]))
}

/// The path as the flat form writes it.
fn flat(steps: &[Place<'_>]) -> String {
    let mut path = String::with_capacity(48);
    for step in steps {
        match step {
            Place::Key(key) => tree::push_key(key, &mut path),
            Place::Index(i) => tree::push_index(*i, &mut path),
        }
    }
    path
}

/// Nothing has nothing inside. What cannot have members is for jaq to say.
fn follow<'v>(value: &'v Value, steps: &[Place<'_>]) -> Option<&'v Value> {
    const NULL: &Value = &Value::Null;
    steps.iter().try_fold(value, |here, step| match (here, step) {
        (Value::Null, _) => Some(NULL),
        (Value::Object(map), Place::Key(key)) => Some(map.get(*key).unwrap_or(NULL)),
        (Value::Array(items), Place::Index(i)) => Some(items.get(*i).unwrap_or(NULL)),
        // To jaq a number is a key that an object of JSON does not have.
        (Value::Object(_), Place::Index(_)) => Some(NULL),
        _ => None,
    })
}

/// The value after it went through jaq and its print: a whole float is an integer then.
fn printed(value: Cow<'_, Value>) -> Option<Value> {
    match &*value {
        Value::Null | Value::Bool(_) => return Some(value.into_owned()),
        Value::Number(n) if !n.is_f64() || n.as_f64().is_some_and(|x| x.fract() != 0.0) => {
            return Some(value.into_owned());
        }
        _ => {}
    }
    serde_json::from_str(&print::compact(&to_val(&value))).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::filter::{Filter, Scope};
    use super::*;

    /// What jaq gives, or none where it gives an error.
    fn of_jaq(code: &str, input: &Value, row: &Value) -> Option<Value> {
        let filter = Filter::compile(code, &["$row"], Scope::Closed).unwrap_or_else(|e| panic!("{code}: {e}"));
        let mut outputs = filter.run(to_val(input), vec![to_val(row)]).ok()?;
        assert_eq!(outputs.len(), 1, "{code}");
        serde_json::from_str(&print::compact(&outputs.pop()?)).ok()
    }

    #[track_caller]
    fn same(code: &str, input: &Value, row: &Value) -> Option<Value> {
        let mut path = Path::parse(code).unwrap_or_else(|| panic!("{code} is not plain"));
        let expected = of_jaq(code, input, row);
        let metrics = Metrics::of(input).unwrap();
        // An error is left to jaq; an answer is its answer, from the tree and from the rows of the file.
        assert_eq!(path.answer(input, row), expected, "{code} on {input}");
        assert_eq!(path.answer(&metrics, row), expected, "{code} on rows of {input}");
        expected
    }

    #[test]
    fn plain_paths_are_answered_as_jaq_answers() {
        let input = json!({
            "a": {"b": 1.5, "whole": 2.0, "large": 1e17, "tiny": 1e-7, "n": 3, "neg": -0.0, "c d": {"e": true}},
            "list": [1, 2, 3], "mixed": [{"x": 1.25}, null, "t"], "none": null, "text": "é", "empty": {}, "no": [],
            "b": {"p": 7.5}, "": {"": 4.5}, "q.r": {"s]": 0.5},
        });
        let row = json!({"model": "b", "n": 3});
        for (code, found) in [
            (".", true),
            (".a.b", true),
            (" .a.b\n", true),
            (".a[\"b\"]", true),
            (".[\"a\"].whole", true),
            (".a.large", true),
            (".a.tiny", true),
            (".a.n", true),
            (".a.neg", true),
            (".a[\"c d\"].e", true),
            (".a[\"c d\"]", true),
            (".list[1]", true),
            (".list[7]", true),
            (".list", true),
            (".mixed[0].x", true),
            (".mixed[1].x.y[3]", true),
            (".mixed[2]", true),
            (".mixed[2].x", false),
            (".none.x[1].y", true),
            (".absent.x", true),
            (".text", true),
            (".text.x", false),
            (".a.b.c", false),
            (".a[0]", true),
            (".list.x", false),
            (".empty", true),
            (".empty.x", true),
            (".no", true),
            (".no[0]", true),
            (".[$row.model].p", true),
            (".a[$row.model]", true),
            (".[\"\"][\"\"]", true),
            (".[\"q.r\"][\"s]\"]", true),
            (".and", true),
            (".def.if", true),
        ] {
            assert_eq!(same(code, &input, &row).is_some(), found, "{code}");
        }
        // Not what a plain path is: left to jaq.
        for (code, row) in [(".a[$row.n]", &row), (".a[$row.absent]", &row), (".a[$row.model]", &json!(null))] {
            assert_eq!(Path::parse(code).unwrap().answer(&input, row), None, "{code}");
        }
    }

    /// A plain path is not given to jaq to be checked: whatever is taken for one must be one.
    #[test]
    fn a_plain_path_compiles() {
        for word in
            "and or not def if then elif else end as reduce foreach try catch label import include module limit first \
                     null true false nan infinite empty error env input inputs debug halt break __loc__ _ A z9 ltrimstr"
                .split_whitespace()
        {
            for code in
                [format!(".{word}"), format!(".a.{word}"), format!(".[\"{word}\"].{word}[$row.{word}][0].{word}")]
            {
                assert!(Path::parse(&code).is_some(), "{code}");
                Filter::compile(&code, &["$row"], Scope::Closed).unwrap_or_else(|e| panic!("{code}: {e}"));
            }
        }
        for code in [".[\"\"]", ".[\"a#b|c(\u{e9}\"]", ".[\"$x\"]", ".[0][\"[\"]", ".[\"// ,\"].a"] {
            assert!(Path::parse(code).is_some(), "{code}");
            Filter::compile(code, &["$row"], Scope::Closed).unwrap_or_else(|e| panic!("{code}: {e}"));
        }
    }

    #[test]
    fn anything_else_is_not_plain() {
        for code in [
            "",
            "a",
            "..",
            ".a.",
            ".a..b",
            ".a|.b",
            ".a.b?",
            ".[]",
            ".a[]",
            ".a[-1]",
            ".a[1:2]",
            ".a[1.5]",
            ".a[\"x\\n\"]",
            ".a[\"\\(.b)\"]",
            ".a[.b]",
            ".1",
            ".a b",
            ".a+1",
            ".a[$row]",
            ".a[$rows.x]",
            ".a[$row.x.y]",
            ".é",
            ".a #x",
            "$row.a",
            ".a[$row.1]",
            ".a[99999999999999999999]",
            ".a[\"x\"",
            ".a\"b\"",
            ".[",
            ".a[",
            ".a,.b",
            "@text",
        ] {
            assert_eq!(Path::parse(code), None, "{code:?}");
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-9i64..9).prop_map(Value::from),
            (-1e9f64..1e9).prop_map(Value::from),
            (-9i32..9).prop_map(|x| Value::from(f64::from(x))),
            "[a-c]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]{1,2}|[.\\[]", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_path_on_any_tree(
            input in tree(),
            steps in prop::collection::vec("\\.[a-c]{1,2}|\\[[0-3]\\]|\\[\"[a-c]\"\\]|\\[\"\\.\"\\]|\\[\\$row\\.m\\]", 0..4),
            m in "[a-c]",
        ) {
            let code = steps.concat();
            let code = if code.starts_with('.') { code } else { format!(".{code}") };
            prop_assume!(input.is_object());
            same(&code, &input, &json!({"m": m}));
        }
    }
}
