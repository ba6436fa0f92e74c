//! Where a query's values come from: sealed runs, directories of them, JSON files.
//!
//! Values go to the filter as they lie in the file: NaN and infinity stay what they are, whole numbers whole. An array
//! of more than [`ELIDE_ABOVE`] numbers is left out, with a word on what to say to have it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jaq_json::{Val, read};
use serde_json::{Map, Value, json};

use super::QueryError;
use super::filter::{text_val, to_val};
use crate::record::run_h5::{self, RUN_FILE};
use crate::record::{Column, Digest, Items, RecordError, RunRecord, Seal, SeriesPoint};

/// Most numbers of an array, points of a series and rows of a table of items that a filter is given unasked.
pub const ELIDE_ABOVE: usize = 10_000;

/// What to do with a run without a valid seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seals {
    /// Read it, with a warning.
    Warn,
    /// Refuse it.
    Require,
}

/// Which large arrays are loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Load {
    /// None.
    #[default]
    Small,
    /// Those at or below these paths, such as `train_losses` or `@items.pile_test`.
    Paths(Vec<String>),
    /// All, and of several runs the series and items too.
    All,
}

impl Load {
    /// Whether an array at `path` is asked for.
    fn wants(&self, path: &str) -> bool {
        match self {
            Self::Small => false,
            Self::All => true,
            Self::Paths(paths) => paths.iter().any(|p| {
                let p = p.trim_start_matches('.');
                path.strip_prefix(p).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            }),
        }
    }

    /// Whether something below `part` (`@series`) is asked for.
    fn wants_of(&self, part: &str) -> bool {
        match self {
            Self::Small => false,
            Self::All => true,
            Self::Paths(paths) => paths.iter().any(|p| p.trim_start_matches('.').starts_with(part)),
        }
    }
}

/// How paths are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Of runs that are not sealed.
    pub seals: Seals,
    /// Of large arrays.
    pub load: Load,
    /// One run gives an array, too.
    pub always_array: bool,
}

/// What the paths of a query hold.
#[derive(Debug, Default)]
pub struct Gathered {
    /// One input of the filter each.
    pub inputs: Vec<Val>,
    /// For people, on stderr.
    pub warnings: Vec<String>,
}

/// Reads every path. One `run.h5` (or its run directory) gives its tree; several, or a directory that
/// holds run directories, give one array of `{key, meta, metrics}`, sorted by path; each JSON file gives
/// its value.
///
/// # Errors
/// A path that is not there or holds nothing, a damaged file, or, with [`Seals::Require`], a run without
/// a valid seal.
pub fn gather(paths: &[PathBuf], reading: &Reading) -> Result<Gathered, QueryError> {
    let Places { runs, inputs, several } = places(paths, reading)?;
    let mut gathered = Gathered { inputs, warnings: Vec::new() };
    let mut array = Vec::with_capacity(runs.len());
    let mut view = View { load: &reading.load, elided: BTreeMap::new() };
    for path in &runs {
        let digest = check_seal(path, reading.seals, &mut gathered.warnings)?;
        let run = run_h5::read_run(path)?;
        array.push(if several { view.element(&run) } else { view.whole(&run, path, &digest) });
    }
    gathered.warnings.extend(view.elided.iter().map(|(path, (runs, n))| {
        let of = if several { format!(" of {runs} runs") } else { String::new() };
        format!("`{path}`{of} is left out ({n} values): say `--load '{path}'` or `--all-arrays` to have it")
    }));
    if several {
        gathered.inputs.push(array.into_iter().collect());
    } else {
        gathered.inputs.append(&mut array);
    }
    Ok(gathered)
}

/// What the paths of a query lead to.
pub(super) struct Places {
    /// Every `run.h5`, in order.
    pub(super) runs: Vec<PathBuf>,
    /// Values of JSON files.
    pub(super) inputs: Vec<Val>,
    /// Whether the runs are one array.
    pub(super) several: bool,
}

/// Finds the runs, and reads the JSON files.
pub(super) fn places(paths: &[PathBuf], reading: &Reading) -> Result<Places, QueryError> {
    let (mut runs, mut inputs, mut searched) = (Vec::new(), Vec::new(), reading.always_array);
    for path in paths {
        let meta = std::fs::metadata(path)
            .map_err(|e| QueryError::Path { path: path.clone(), what: format!("cannot be read ({e})") })?;
        if !meta.is_dir() {
            if is_hdf5(path) {
                runs.push(path.clone());
            } else {
                inputs.extend(read_json(path)?);
            }
        } else if path.join(RUN_FILE).is_file() {
            runs.push(path.join(RUN_FILE));
        } else {
            let found = runs_below(path)?;
            if found.is_empty() {
                return Err(QueryError::Path { path: path.clone(), what: format!("holds no {RUN_FILE}") });
            }
            runs.extend(found);
            searched = true;
        }
    }
    let several = searched || runs.len() > 1;
    Ok(Places { runs, inputs, several })
}

/// The values of a JSON file. NaN and Infinity, as Python writes them, are numbers.
fn read_json(path: &Path) -> Result<Vec<Val>, QueryError> {
    let bytes = std::fs::read(path).map_err(RecordError::io("read", path))?;
    if let Some(what) = unreadable(&bytes) {
        return Err(RecordError::damaged(path, what).into());
    }
    let values: Result<Vec<Val>, _> = read::parse_many(&bytes).collect();
    match values {
        Ok(values) if !values.is_empty() => Ok(values),
        Ok(_) => Err(RecordError::damaged(path, "it holds no JSON value").into()),
        Err(e) => Err(RecordError::damaged(path, format!("it is no JSON: {e}")).into()),
    }
}

/// Deepest nesting of a JSON file: its reader recurses.
const MAX_DEPTH: usize = 512;

/// What the reader would take and JSON does not have, or what would exhaust its stack.
fn unreadable(bytes: &[u8]) -> Option<String> {
    let (mut depth, mut text, mut escaped) = (0usize, false, false);
    for (i, byte) in bytes.iter().enumerate() {
        match (text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => text = !text,
            (false, b'[' | b'{') => depth += 1,
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            (false, b'#') => return Some(format!("it is no JSON: a `#` at byte {i}")),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Some(format!("it is nested deeper than {MAX_DEPTH} at byte {i}"));
        }
    }
    None
}

/// HDF5 by its first bytes, or by its name when it has none (a file that was cut off at the start).
fn is_hdf5(path: &Path) -> bool {
    use std::io::Read;
    let mut head = [0u8; 8];
    let whole = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut head)).is_ok();
    (whole && &head == b"\x89HDF\r\n\x1a\n") || path.extension().is_some_and(|e| e == "h5")
}

/// Every `run.h5` below a directory, sorted. Hidden directories (superseded cells, attempts under way) and
/// links are left out.
fn runs_below(dir: &Path) -> Result<Vec<PathBuf>, QueryError> {
    let mut found = Vec::new();
    let mut level = vec![dir.to_path_buf()];
    // Level by level, so that several can look: a study has a directory for each run.
    while !level.is_empty() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let lookers = level.len().div_ceil(DIRS_OF_A_LOOKER).clamp(1, cores);
        let lists: Vec<Result<(Vec<PathBuf>, Vec<PathBuf>), QueryError>> = if lookers == 1 {
            level.iter().map(|dir| list(dir)).collect()
        } else {
            std::thread::scope(|scope| {
                let shares = level.chunks(level.len().div_ceil(lookers));
                let lookers: Vec<_> = shares
                    .map(|share| scope.spawn(move || share.iter().map(|dir| list(dir)).collect::<Vec<_>>()))
                    .collect();
                let joined = lookers.into_iter().map(|l| l.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
                joined.flatten().collect()
            })
        };
        level.clear();
        for list in lists {
            let (runs, dirs) = list?;
            found.extend(runs);
            level.extend(dirs);
        }
    }
    found.sort();
    Ok(found)
}

/// So many directories are listed faster by one thread than by two.
const DIRS_OF_A_LOOKER: usize = 64;

/// The runs in the directories of a directory, and those directories in which there is none: of a run nothing more is below
/// its own.
fn list(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), QueryError> {
    let (mut runs, mut dirs) = (Vec::new(), Vec::new());
    let entries = std::fs::read_dir(dir)
        .map_err(|e| QueryError::Path { path: dir.to_path_buf(), what: format!("cannot be listed ({e})") })?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && !name.as_encoded_bytes().starts_with(b".") {
            let run = entry.path().join(RUN_FILE);
            match std::fs::symlink_metadata(&run) {
                Ok(found) if found.is_file() => runs.push(run),
                _ => dirs.push(entry.path()),
            }
        } else if kind.is_file() && name == RUN_FILE {
            runs.push(entry.path());
        }
    }
    Ok((runs, dirs))
}

/// The file's digest; it must be the one its seal vouches for.
fn check_seal(path: &Path, seals: Seals, warnings: &mut Vec<String>) -> Result<Digest, QueryError> {
    let digest = Digest::of_file(path)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let problem = match Seal::read(dir) {
        Ok(Some(seal)) => match seal.output(RUN_FILE) {
            Some(file) if file.digest == digest => return Ok(digest),
            Some(_) => "is not the file that was sealed".to_owned(),
            None => "is not among the outputs that its seal names".to_owned(),
        },
        Ok(None) => "has no valid seal: its cell is not done".to_owned(),
        Err(e) => format!("has no valid seal ({e})"),
    };
    match seals {
        Seals::Require => Err(QueryError::Unsealed { path: path.to_path_buf(), what: problem }),
        Seals::Warn => {
            warnings.push(format!("`{}` {problem}", path.display()));
            Ok(digest)
        }
    }
}

/// Runs as a filter sees them.
struct View<'a> {
    load: &'a Load,
    /// What was left out: of how many runs, and the most values of one.
    elided: BTreeMap<String, (usize, usize)>,
}

impl View<'_> {
    /// The value of one run: its tree at the root, the rest under `@` keys.
    fn whole(&mut self, run: &RunRecord, path: &Path, digest: &Digest) -> Val {
        let tree = self.tree(&run.tree(), &mut String::new());
        let mut tree = match tree {
            Val::Obj(map) => (*map).clone(),
            other => std::iter::once((text_val("value"), other)).collect(),
        };
        tree.insert(text_val("@meta"), to_val(&meta(run)));
        tree.insert(text_val("@series"), self.series(run));
        tree.insert(text_val("@items"), self.items(run));
        let file = json!({"path": path.to_string_lossy(), "digest": digest});
        tree.insert(text_val("@file"), to_val(&file));
        Val::obj(tree)
    }

    /// One of several runs.
    fn element(&mut self, run: &RunRecord) -> Val {
        let mut parts = vec![
            (text_val("key"), to_val(&json!(run.key))),
            (text_val("meta"), to_val(&meta(run))),
            (text_val("metrics"), self.tree(&run.tree(), &mut String::new())),
        ];
        if self.load.wants_of("@series") {
            parts.push((text_val("series"), self.series(run)));
        }
        if self.load.wants_of("@items") {
            parts.push((text_val("items"), self.items(run)));
        }
        Val::obj(parts.into_iter().collect())
    }

    /// A value tree in which large arrays of numbers are left out.
    fn tree(&mut self, value: &Value, path: &mut String) -> Val {
        let length = path.len();
        match value {
            Value::Array(items) => {
                let n = numbers_in(value);
                if n > ELIDE_ABOVE && !self.load.wants(path) {
                    return self.leave_out(path, items.len(), n);
                }
                let mut found = Vec::with_capacity(items.len());
                for (i, item) in items.iter().enumerate() {
                    if item.is_object() || item.is_array() {
                        path.push_str(&format!("[{i}]"));
                        found.push(self.tree(item, path));
                        path.truncate(length);
                    } else {
                        found.push(to_val(item));
                    }
                }
                found.into_iter().collect()
            }
            Value::Object(map) => {
                let mut found = Vec::with_capacity(map.len());
                for (key, child) in map {
                    if length > 0 {
                        path.push('.');
                    }
                    path.push_str(key);
                    found.push((text_val(key), self.tree(child, path)));
                    path.truncate(length);
                }
                Val::obj(found.into_iter().collect())
            }
            other => to_val(other),
        }
    }

    /// What stands in place of a large array.
    fn leave_out(&mut self, path: &str, rows: usize, n: usize) -> Val {
        let entry = self.elided.entry(path.to_owned()).or_insert((0, 0));
        *entry = (entry.0 + 1, entry.1.max(n));
        to_val(&json!({"elided": true, "length": rows, "values": n}))
    }

    fn series(&mut self, run: &RunRecord) -> Val {
        let of = |(name, points): (&String, &Vec<SeriesPoint>)| {
            let path = format!("@series.{name}");
            let value = if points.len() > ELIDE_ABOVE && !self.load.wants(&path) {
                self.leave_out(&path, points.len(), points.len())
            } else {
                points.iter().map(point).collect()
            };
            (text_val(name), value)
        };
        Val::obj(run.series.iter().map(of).collect())
    }

    fn items(&mut self, run: &RunRecord) -> Val {
        let of = |(task, items): (&String, &Items)| {
            let path = format!("@items.{task}");
            let value = if items.len() > ELIDE_ABOVE && !self.load.wants(&path) {
                self.leave_out(&path, items.len(), items.len() * items.columns.len())
            } else {
                (0..items.len()).map(|i| row(items, i)).collect()
            };
            (text_val(task), value)
        };
        Val::obj(run.items.iter().map(of).collect())
    }
}

/// Numbers in an array, and in the arrays inside it.
fn numbers_in(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(numbers_in).sum(),
        Value::Number(_) => 1,
        _ => 0,
    }
}

fn point(point: &SeriesPoint) -> Val {
    let parts =
        [("step", to_val(&json!(point.step))), ("value", Val::from(point.value)), ("time_s", Val::from(point.time_s))];
    Val::obj(parts.into_iter().map(|(key, value)| (text_val(key), value)).collect())
}

fn row(items: &Items, i: usize) -> Val {
    let cell = |column: &Column| match column {
        Column::Integers(v) => v.get(i).map(|x| to_val(&json!(x))),
        Column::Floats(v) => v.get(i).map(|x| Val::from(*x)),
        Column::Texts(v) => v.get(i).map(|x| text_val(x)),
    };
    let fields = items.columns.iter().map(|(name, column)| (text_val(name), cell(column).unwrap_or_default()));
    Val::obj(fields.collect())
}

/// A run as a gate's filters see it: as one of several, with its series and items, and without times.
pub fn evidence(run: &RunRecord) -> Value {
    let series: Map<String, Value> = run.series.iter().map(|(name, points)| (name.clone(), steps(points))).collect();
    let items: Map<String, Value> = run.items.iter().map(|(task, items)| (task.clone(), rows(items))).collect();
    json!({"key": run.key, "meta": meta(run), "metrics": run.metrics, "series": series, "items": items})
}

/// A series without its times.
fn steps(points: &[SeriesPoint]) -> Value {
    points.iter().map(|p| json!({"step": p.step, "value": p.value})).collect()
}

fn meta(run: &RunRecord) -> Value {
    json!({
        "key": run.key,
        "name": run.key.local_name(),
        "kind": run.kind,
        "labels": run.labels,
        "fingerprint": run.fingerprint,
        "content": run.content_digest(),
        "param_digest": run.param_digest,
        "numerics": run.numerics,
    })
}

/// A table of examples as an array of objects, for gates. A float without a value is null.
fn rows(items: &Items) -> Value {
    let cell = |column: &Column, i: usize| match column {
        Column::Integers(v) => v.get(i).map(|x| json!(x)),
        Column::Floats(v) => v.get(i).map(|x| json!(x)),
        Column::Texts(v) => v.get(i).map(|x| json!(x)),
    };
    (0..items.len())
        .map(|i| {
            let fields = items.columns.iter().map(|(name, c)| (name.clone(), cell(c, i).unwrap_or(Value::Null)));
            Value::Object(fields.collect())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::print;
    use super::*;

    fn seen(tree: &Value, load: &Load) -> (Value, Vec<String>) {
        let mut view = View { load, elided: BTreeMap::new() };
        let value = view.tree(tree, &mut String::new());
        (serde_json::from_str(&print::compact(&value)).unwrap(), view.elided.into_keys().collect())
    }

    #[test]
    fn large_arrays_are_left_out_unless_they_are_asked_for() {
        let long: Vec<f64> = (0..=ELIDE_ABOVE).map(|i| i as f64 + 0.5).collect();
        let square = vec![vec![1.5; 200]; 200];
        let tree = json!({"a": {"long": long, "short": [1, 2]}, "square": square, "rows": [{"x": long}], "ab": 1});
        let (value, elided) = seen(&tree, &Load::Small);
        assert_eq!(elided, ["a.long", "rows[0].x", "square"]);
        assert_eq!(value["a"]["long"], json!({"elided": true, "length": ELIDE_ABOVE + 1, "values": ELIDE_ABOVE + 1}));
        assert_eq!(value["square"], json!({"elided": true, "length": 200, "values": 40_000}));
        assert_eq!(value["a"]["short"], json!([1, 2]));
        let (value, elided) = seen(&tree, &Load::Paths(vec![".a".to_owned()]));
        assert_eq!(elided, ["rows[0].x", "square"]);
        assert_eq!(value["a"]["long"].as_array().unwrap().len(), ELIDE_ABOVE + 1);
        assert_eq!(seen(&tree, &Load::Paths(vec!["a.lon".to_owned()])).1, ["a.long", "rows[0].x", "square"]);
        assert_eq!(seen(&tree, &Load::All), (tree, vec![]));
    }
}
