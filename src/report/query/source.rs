//! Where a query's values come from: sealed runs, directories of them, JSON files.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::QueryError;
use crate::record::run_h5::{self, RUN_FILE};
use crate::record::{Column, Digest, Items, RunRecord, Seal, SeriesPoint, files};

/// What to do with a run without a valid seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seals {
    /// Read it, with a warning.
    Warn,
    /// Refuse it.
    Require,
}

/// What the paths of a query hold.
#[derive(Debug, Default)]
pub struct Gathered {
    /// One input of the filter each.
    pub inputs: Vec<Value>,
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
pub fn gather(paths: &[PathBuf], seals: Seals) -> Result<Gathered, QueryError> {
    let mut gathered = Gathered::default();
    let (mut runs, mut searched) = (Vec::new(), false);
    for path in paths {
        let meta = std::fs::metadata(path)
            .map_err(|e| QueryError::Path { path: path.clone(), what: format!("cannot be read ({e})") })?;
        if !meta.is_dir() {
            if is_hdf5(path) {
                runs.push(path.clone());
            } else {
                gathered.inputs.push(files::read_json(path)?);
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
    let mut array = Vec::with_capacity(runs.len());
    for path in &runs {
        let digest = check_seal(path, seals, &mut gathered.warnings)?;
        let run = run_h5::read_run(path)?;
        array.push(if several { element(&run) } else { whole(&run, path, &digest) });
    }
    if several {
        gathered.inputs.push(Value::Array(array));
    } else {
        gathered.inputs.append(&mut array);
    }
    Ok(gathered)
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
    let mut open = vec![dir.to_path_buf()];
    while let Some(here) = open.pop() {
        let list = std::fs::read_dir(&here)
            .map_err(|e| QueryError::Path { path: here.clone(), what: format!("cannot be listed ({e})") })?;
        for entry in list.flatten() {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && !hidden {
                open.push(entry.path());
            } else if kind.is_file() && entry.file_name() == RUN_FILE {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
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

/// The value of one run: its tree at the root, the rest under `@` keys.
fn whole(run: &RunRecord, path: &Path, digest: &Digest) -> Value {
    let mut tree = match run.tree() {
        Value::Object(map) => map,
        other => Map::from_iter([("value".to_owned(), other)]),
    };
    let series: Map<String, Value> = run.series.iter().map(|(name, points)| (name.clone(), json!(points))).collect();
    let items: Map<String, Value> = run.items.iter().map(|(task, items)| (task.clone(), rows(items))).collect();
    tree.insert("@meta".to_owned(), meta(run));
    tree.insert("@series".to_owned(), Value::Object(series));
    tree.insert("@items".to_owned(), Value::Object(items));
    tree.insert("@file".to_owned(), json!({"path": path.to_string_lossy(), "digest": digest}));
    Value::Object(tree)
}

/// One of several runs.
fn element(run: &RunRecord) -> Value {
    json!({"key": run.key, "meta": meta(run), "metrics": run.tree()})
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

/// A table of examples as an array of objects. A float without a value is null.
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
