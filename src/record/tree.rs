//! A cell's value tree, and its flat form: one row for each number or text, with the path that leads to it.
//!
//! A path joins object keys with dots and adds `[i]` for array elements; a dot, bracket or backslash in a
//! key is escaped by a backslash. Arrays of numbers stay whole. [`unflatten`] undoes [`flatten`] exactly.

use serde_json::{Map, Number, Value};

/// Deepest nesting. What reads JSON stops at 128; this keeps a damaged path within any stack.
const MAX_DEPTH: usize = 256;

/// Largest integer that a float holds exactly.
const MAX_INTEGER: i64 = 1 << 53;

/// What a row of numbers stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A number that was written with a fraction or exponent.
    Number = 0,
    /// A whole number, at most 2^53.
    Integer = 1,
    /// `false` (0) or `true` (1).
    Bool = 2,
    /// A null; its reason may stand in the texts under the same path.
    Null = 3,
    /// An empty object.
    Object = 4,
    /// An empty array.
    Array = 5,
}

impl Kind {
    /// All kinds, in order of their codes.
    pub const ALL: [(Kind, &'static str); 6] = [
        (Kind::Number, "number"),
        (Kind::Integer, "integer"),
        (Kind::Bool, "bool"),
        (Kind::Null, "null"),
        (Kind::Object, "object"),
        (Kind::Array, "array"),
    ];

    /// The kind with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).map(|(kind, _)| *kind)
    }
}

/// An array of numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum NumberArray {
    /// All whole.
    Integers(Vec<i64>),
    /// All with fractions.
    Floats(Vec<f64>),
}

/// The flat form of a value tree, each part in path order of the tree.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Flat {
    /// Path, value, kind.
    pub numbers: Vec<(String, f64, Kind)>,
    /// Path and text.
    pub texts: Vec<(String, String)>,
    /// Path and whole array.
    pub arrays: Vec<(String, NumberArray)>,
}

/// Flattens a tree.
///
/// # Errors
/// An integer beyond 2^53, or a text with a NUL: `run.h5` cannot hold them exactly. Or a tree of more than 256 levels.
pub fn flatten(tree: &Value) -> Result<Flat, String> {
    let mut flat = Flat::default();
    // The empty root object is what no rows mean.
    if tree.as_object().is_some_and(Map::is_empty) {
        return Ok(flat);
    }
    walk(tree, 0, &mut String::new(), &mut flat)?;
    Ok(flat)
}

fn walk(value: &Value, depth: usize, path: &mut String, flat: &mut Flat) -> Result<(), String> {
    if depth > MAX_DEPTH {
        let start: String = path.chars().take(60).collect();
        return Err(format!("the tree is nested deeper than {MAX_DEPTH} below `{start}...`"));
    }
    let mut leaf = |number: f64, kind| flat.numbers.push((path.clone(), number, kind));
    match value {
        Value::Null => leaf(0.0, Kind::Null),
        Value::Bool(b) => leaf(f64::from(u8::from(*b)), Kind::Bool),
        Value::Number(n) => match number(n, path)? {
            Leaf::Integer(i) => leaf(i as f64, Kind::Integer),
            Leaf::Float(x) => leaf(x, Kind::Number),
        },
        Value::String(text) if text.contains('\0') => {
            return Err(format!("the text at `{path}` holds a NUL byte, which `run.h5` cannot store"));
        }
        Value::String(text) => flat.texts.push((path.clone(), text.clone())),
        Value::Object(map) if map.is_empty() => leaf(0.0, Kind::Object),
        Value::Array(items) if items.is_empty() => leaf(0.0, Kind::Array),
        Value::Object(map) => {
            for (key, child) in map {
                if key.contains('\0') {
                    return Err(format!("a key under `{path}` holds a NUL byte, which `run.h5` cannot store"));
                }
                let length = path.len();
                push_key(key, path);
                walk(child, depth + 1, path, flat)?;
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            if let Some(array) = number_array(items, path)? {
                flat.arrays.push((path.clone(), array));
                return Ok(());
            }
            for (i, child) in items.iter().enumerate() {
                let length = path.len();
                push_index(i, path);
                walk(child, depth + 1, path, flat)?;
                path.truncate(length);
            }
        }
    }
    Ok(())
}

enum Leaf {
    Integer(i64),
    Float(f64),
}

fn number(n: &Number, path: &str) -> Result<Leaf, String> {
    if n.is_f64() {
        return n.as_f64().map(Leaf::Float).ok_or_else(|| format!("the number at `{path}` is not finite"));
    }
    match n.as_i64() {
        Some(i) if (-MAX_INTEGER..=MAX_INTEGER).contains(&i) => Ok(Leaf::Integer(i)),
        _ => Err(format!(
            "the integer {n} at `{path}` is beyond 2^53, which `run.h5` cannot hold exactly: store it as text"
        )),
    }
}

fn number_array(items: &[Value], path: &str) -> Result<Option<NumberArray>, String> {
    if !items.iter().all(Value::is_number) {
        return Ok(None);
    }
    let (mut integers, mut floats) = (Vec::new(), Vec::new());
    for item in items {
        if let Value::Number(n) = item {
            match number(n, path)? {
                Leaf::Integer(i) => integers.push(i),
                Leaf::Float(x) => floats.push(x),
            }
        }
    }
    Ok(match (integers.is_empty(), floats.is_empty()) {
        (false, true) => Some(NumberArray::Integers(integers)),
        (true, false) => Some(NumberArray::Floats(floats)),
        // A mixed array keeps the kind of each element by standing as single rows.
        _ => None,
    })
}

/// Adds a member of an object to a path.
pub(crate) fn push_key(key: &str, path: &mut String) {
    // The root's own path is empty; an empty key is not.
    if !path.is_empty() {
        path.push('.');
    }
    if key.is_empty() {
        path.push_str("\\e");
    }
    for c in key.chars() {
        if matches!(c, '.' | '[' | ']' | '\\') {
            path.push('\\');
        }
        path.push(c);
    }
}

/// Adds an element of an array to a path.
pub(crate) fn push_index(i: usize, path: &mut String) {
    path.push_str(&format!("[{i}]"));
}

#[derive(Debug, PartialEq)]
enum Step {
    Key(String),
    Index(usize),
}

fn parse_path(path: &str) -> Result<Vec<Step>, String> {
    let bad = || format!("`{path}` is not a path");
    let mut steps = Vec::new();
    let mut chars = path.chars().peekable();
    if path.is_empty() {
        return Ok(steps);
    }
    loop {
        if chars.peek() == Some(&'[') {
            chars.next();
            let digits: String = std::iter::from_fn(|| chars.next_if(char::is_ascii_digit)).collect();
            if chars.next() != Some(']') {
                return Err(bad());
            }
            steps.push(Step::Index(digits.parse().map_err(|_| bad())?));
        } else {
            let mut key = String::new();
            while let Some(c) = chars.next_if(|c| !matches!(c, '.' | '[')) {
                match c {
                    '\\' => match chars.next().ok_or_else(bad)? {
                        'e' => {}
                        escaped => key.push(escaped),
                    },
                    ']' => return Err(bad()),
                    c => key.push(c),
                }
            }
            steps.push(Step::Key(key));
        }
        if steps.len() > MAX_DEPTH {
            return Err(format!("a path is nested deeper than {MAX_DEPTH}"));
        }
        match chars.peek() {
            None => return Ok(steps),
            Some('[') => {}
            Some('.') => {
                chars.next();
            }
            Some(_) => return Err(bad()),
        }
    }
}

/// Builds the tree again.
///
/// # Errors
/// A path that is none, an index out of order, or two rows that claim one place: the file is damaged.
pub fn unflatten(flat: &Flat) -> Result<Value, String> {
    let mut root = Value::Null;
    let mut seen_any = false;
    let mut put = |path: &str, value: Value| -> Result<(), String> {
        seen_any = true;
        place(&mut root, &parse_path(path)?, value).map_err(|e| format!("`{path}`: {e}"))
    };
    for (path, x, kind) in &flat.numbers {
        put(
            path,
            match kind {
                Kind::Number => Number::from_f64(*x).map(Value::Number).ok_or("a number is not finite")?,
                Kind::Integer => Value::from(*x as i64),
                Kind::Bool => Value::Bool(*x != 0.0),
                Kind::Null => Value::Null,
                Kind::Object => Value::Object(Map::new()),
                Kind::Array => Value::Array(Vec::new()),
            },
        )?;
    }
    for (path, text) in &flat.texts {
        put(path, Value::from(text.as_str()))?;
    }
    for (path, array) in &flat.arrays {
        put(
            path,
            match array {
                NumberArray::Integers(xs) => Value::from(xs.clone()),
                NumberArray::Floats(xs) => Value::from(xs.clone()),
            },
        )?;
    }
    if !seen_any {
        return Ok(Value::Object(Map::new()));
    }
    densify(&mut root)?;
    Ok(root)
}

/// While a tree is built, an array is an object whose keys are NUL and the zero-padded index: rows of
/// numbers and texts come apart, so elements do not arrive in order.
fn index_key(i: usize) -> String {
    format!("\0{i:012}")
}

fn place(root: &mut Value, steps: &[Step], value: Value) -> Result<(), String> {
    let mut here = root;
    for step in steps {
        if here.is_null() {
            *here = Value::Object(Map::new());
        }
        let key = match step {
            Step::Key(key) => key.clone(),
            Step::Index(i) => index_key(*i),
        };
        here = here.as_object_mut().ok_or("two values claim one place")?.entry(key).or_insert(Value::Null);
    }
    if !here.is_null() {
        return Err("two values claim one place".to_owned());
    }
    *here = value;
    Ok(())
}

fn densify(value: &mut Value) -> Result<(), String> {
    let Value::Object(map) = value else { return Ok(()) };
    for child in map.values_mut() {
        densify(child)?;
    }
    if !map.keys().any(|k| k.starts_with('\0')) {
        return Ok(());
    }
    let mut entries: Vec<(String, Value)> = std::mem::take(map).into_iter().collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    if entries.iter().enumerate().any(|(i, (key, _))| *key != index_key(i)) {
        return Err("an array has holes or is also an object".to_owned());
    }
    *value = Value::Array(entries.into_iter().map(|(_, v)| v).collect());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn flat_rows_carry_paths() {
        let tree = json!({
            "pile_test": {"baseline": {"perplexity": 6.5, "total_tokens": 12}},
            "results": [{"loss": 1.0}, {"loss": 2.5, "ok": true, "why": null}],
            "ids": [1, 2, 3], "losses": [1.5, 2.0], "mixed": [1, 2.5],
            "a.b[0]": "text", "empty": {}, "none": []
        });
        let flat = flatten(&tree).unwrap();
        let paths: Vec<&str> = flat.numbers.iter().map(|(p, ..)| p.as_str()).collect();
        assert!(paths.contains(&"results[1].loss") && paths.contains(&"mixed[0]"), "{paths:?}");
        assert_eq!(flat.texts[0].0, "a\\.b\\[0\\]");
        assert_eq!(flat.arrays.len(), 2);
        assert_eq!(unflatten(&flat).unwrap(), tree);
    }

    #[test]
    fn what_cannot_be_held_exactly_is_refused() {
        assert!(flatten(&json!({"n": (1i64 << 53) + 1})).unwrap_err().contains("`n`"));
        assert!(flatten(&json!({"t": "a\u{0}b"})).unwrap_err().contains("`t`"));
    }

    #[test]
    fn depth_has_an_end() {
        let mut deep = Value::from(1);
        for _ in 0..100_000 {
            deep = Value::Object(Map::from_iter([("a".to_owned(), deep)]));
        }
        assert!(flatten(&deep).unwrap_err().contains("deeper than 256"));
        // Taken apart level by level: to drop it whole would take the stack.
        while let Some(inside) = deep.get_mut("a").map(Value::take) {
            deep = inside;
        }
        for path in ["a.".repeat(30_000) + "a", "[0]".repeat(20_000)] {
            let flat = Flat { texts: vec![(path, String::new())], ..Flat::default() };
            assert!(unflatten(&flat).unwrap_err().contains("deeper than 256"));
        }
    }

    #[test]
    fn damaged_rows_are_refused() {
        let rows = |paths: &[&str]| Flat {
            numbers: paths.iter().map(|p| ((*p).to_owned(), 1.0, Kind::Number)).collect(),
            ..Flat::default()
        };
        for bad in [&["a", "a"][..], &["a", "a.b"], &["a[0]", "a[2]"], &["a[0]", "a.b"], &["a["], &["a]b"], &["a\\"]] {
            assert!(unflatten(&rows(bad)).is_err(), "{bad:?}");
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-MAX_INTEGER..=MAX_INTEGER).prop_map(Value::from),
            any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(Value::from),
            "[a-z.\\[\\]\\\\é\"]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c.\\[\\]\\\\]{0,3}", inner, 0..4)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn unflatten_undoes_flatten(tree in prop::collection::btree_map("[a-c.\\[\\]\\\\e]{0,3}", tree(), 0..4)) {
            let tree = Value::Object(tree.into_iter().collect());
            prop_assert_eq!(unflatten(&flatten(&tree).unwrap()).unwrap(), tree);
        }

        #[test]
        fn no_path_panics(paths in prop::collection::vec("[a-b.\\[\\]\\\\0-9]{0,8}", 0..5)) {
            let flat = Flat { texts: paths.into_iter().map(|p| (p, String::new())).collect(), ..Flat::default() };
            let _ = unflatten(&flat);
        }
    }
}
