//! Rows of a data set as JSON values: JSON lines, or Parquet in the layout of the public data sets (columns of texts and
//! numbers, structs and lists of them).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use crate::compute::{ComputeError, Result};
use crate::record::RecordError;

/// Calls `each(file, number, row)` for the first `limit` rows of files that belong together; numbers go on from file to
/// file. By their names, files end in `.jsonl` or `.parquet`; empty lines are no rows.
///
/// # Errors
/// A file cannot be read, is damaged, or is compressed in a way that is not known; or `each` says so.
pub fn each_row(
    files: &[PathBuf],
    limit: Option<usize>,
    each: &mut dyn FnMut(&Path, usize, Value) -> Result<()>,
) -> Result<()> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut number = 0;
    for path in files {
        let mut next = |row: Value| -> Result<bool> {
            if number < limit {
                each(path, number, row)?;
                number += 1;
            }
            Ok(number < limit)
        };
        let file = File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                ComputeError::missing(path, "is not there: put the data there, as JSON lines or Parquet")
            }
            _ => ComputeError::Record(RecordError::io("read", path)(e)),
        })?;
        if is_parquet(path) { parquet_rows(path, file, &mut next)? } else { json_rows(path, file, &mut next)? }
    }
    Ok(())
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "parquet")
}

type Next<'a> = &'a mut dyn FnMut(Value) -> Result<bool>;

fn json_rows(path: &Path, file: File, next: Next<'_>) -> Result<()> {
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => {
                ComputeError::input(path, format!("has no UTF-8 text in line {}: write the rows as JSON lines", i + 1))
            }
            _ => ComputeError::Record(RecordError::io("read", path)(e)),
        })?;
        if line.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str(&line).map_err(|e| {
            ComputeError::input(path, format!("has a line {} that is no JSON ({e}): correct the line", i + 1))
        })?;
        if !next(row)? {
            break;
        }
    }
    Ok(())
}

fn parquet_rows(path: &Path, file: File, next: Next<'_>) -> Result<()> {
    let damaged = |e: ParquetError| {
        let advice = match &e {
            ParquetError::General(why) | ParquetError::NYI(why) if why.contains("feature") => {
                "write it again with compression=\"snappy\" in pandas or datasets"
            }
            _ => "fetch or write it again",
        };
        ComputeError::input(path, format!("cannot be read as Parquet ({e}): {advice}"))
    };
    // The reader panics on some damaged files.
    let read = || -> Result<()> {
        let reader = SerializedFileReader::new(file).map_err(damaged)?;
        for row in reader.get_row_iter(None).map_err(damaged)? {
            if !next(object(row.map_err(damaged)?))? {
                break;
            }
        }
        Ok(())
    };
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(ComputeError::input(path, "is damaged, or no Parquet file: fetch or write it again")))
}

fn object(row: Row) -> Value {
    Value::Object(row.into_columns().into_iter().map(|(name, field)| (name, json(field))).collect::<Map<_, _>>())
}

/// Texts, numbers, lists and structs as JSON has them; what items do not consist of (times, decimals, bytes) is null.
fn json(field: Field) -> Value {
    match field {
        Field::Bool(x) => x.into(),
        Field::Byte(x) => x.into(),
        Field::Short(x) => x.into(),
        Field::Int(x) => x.into(),
        Field::Long(x) => x.into(),
        Field::UByte(x) => x.into(),
        Field::UShort(x) => x.into(),
        Field::UInt(x) => x.into(),
        Field::ULong(x) => x.into(),
        Field::Float(x) => f64::from(x).into(),
        Field::Double(x) => x.into(),
        Field::Str(text) => text.into(),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(|field| json(field.clone())).collect(),
        _ => Value::Null,
    }
}

/// Where the rows of a data set lie in a directory: `NAME/SPLIT.jsonl`, `NAME/SPLIT.parquet`, the shards
/// `NAME/SPLIT-*.parquet` in order, `NAME.jsonl` or `NAME.parquet`.
///
/// # Errors
/// None of them is there ([`ComputeError::Missing`]), or more than one.
pub fn find(dir: &Path, name: &str, split: &str) -> Result<Vec<PathBuf>> {
    let own = dir.join(name);
    let mut shards = Vec::new();
    if own.is_dir() {
        for entry in std::fs::read_dir(&own).map_err(RecordError::io("list", &own))? {
            let path = entry.map_err(RecordError::io("list", &own))?.path();
            let starts = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&format!("{split}-")));
            if starts && is_parquet(&path) {
                shards.push(path);
            }
        }
        shards.sort();
    }
    let single = [
        own.join(format!("{split}.jsonl")),
        own.join(format!("{split}.parquet")),
        dir.join(format!("{name}.jsonl")),
        dir.join(format!("{name}.parquet")),
    ];
    let mut found: Vec<Vec<PathBuf>> = single.into_iter().filter(|p| p.is_file()).map(|p| vec![p]).collect();
    found.extend((!shards.is_empty()).then_some(shards));
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(ComputeError::missing(
            dir,
            format!(
                "has no rows of `{name}`: put them into {name}/{split}.jsonl, {name}/{split}.parquet, {name}.jsonl or {name}.parquet there"
            ),
        )),
        _ => {
            let names: Vec<String> = found.iter().map(|f| f[0].display().to_string()).collect();
            Err(ComputeError::input(
                dir,
                format!("has rows of `{name}` in several places ({}): leave one", names.join(", ")),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Files that pandas wrote (`scripts/references/lm_eval_fixture.py`), and their rows as JSON lines.
    const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/evaluation");

    fn parquet(name: &str) -> PathBuf {
        Path::new(FIXTURES).join("parquet").join(name).with_extension("parquet")
    }

    fn all(files: &[PathBuf], limit: Option<usize>) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        each_row(files, limit, &mut |_, number, row| {
            assert_eq!(number, rows.len());
            rows.push(row);
            Ok(())
        })?;
        Ok(rows)
    }

    #[test]
    fn parquet_files_hold_what_the_json_lines_do() {
        // Nested columns; compressed in two ways and not at all.
        for (name, rows) in [("arc_easy", 10), ("piqa", 4), ("winogrande", 11)] {
            let lines = Path::new(FIXTURES).join("items").join(name).with_extension("jsonl");
            let (found, expected) = (all(&[parquet(name)], None).unwrap(), all(&[lines], Some(rows)).unwrap());
            assert_eq!(found.len(), rows, "{name}");
            assert_eq!(found, expected, "{name}");
        }
        let shards = [parquet("piqa"), parquet("piqa")];
        assert_eq!(all(&shards, Some(6)).unwrap().len(), 6);
        let error = all(&[parquet("hellaswag")], None).unwrap_err().to_string();
        assert!(error.contains("hellaswag.parquet") && error.contains("snappy"), "{error}");
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let bytes = std::fs::read(parquet("arc_easy")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let good = all(&[parquet("arc_easy")], None).unwrap();
        let (mut refused, mut other) = (0, 0);
        for at in (0..bytes.len()).step_by(7) {
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 0x55;
            std::fs::write(&path, &spoilt).unwrap();
            match all(&[path.clone()], None) {
                Err(e) => {
                    refused += 1;
                    assert!(e.to_string().contains("x.parquet"), "{e}");
                }
                Ok(rows) => other += usize::from(rows != good),
            }
        }
        println!("{refused} refused, {other} read with other values (the study's digest of the file tells those)");
        assert!(refused > 0);
        for cut in [0, 3, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(all(&[path.clone()], None).unwrap_err().to_string().contains("x.parquet"));
        }
    }

    #[test]
    fn lines_are_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, "{\"a\": 1}\n\n{\"a\": 2}\n").unwrap();
        assert_eq!(all(&[path.clone()], None).unwrap(), [json!({"a": 1}), json!({"a": 2})]);
        assert_eq!(all(&[path.clone()], Some(0)).unwrap(), Vec::<Value>::new());
        std::fs::write(&path, "{\"a\": 1}\n\n{").unwrap();
        let error = all(&[path.clone()], None).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("a.jsonl"), "{error}");
        std::fs::write(&path, b"{}\n\xff\n").unwrap();
        assert!(all(&[path.clone()], None).unwrap_err().to_string().contains("line 2"));
        assert_eq!(all(&[dir.path().join("b.jsonl")], None).unwrap_err().exit_code(), 66);
    }

    #[test]
    fn rows_are_found_in_one_place_only() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let find = |name: &str| find(dir.path(), name, "validation");
        assert_eq!(find("piqa").unwrap_err().exit_code(), 66);
        let shards = ["piqa/validation-00000-of-00002.parquet", "piqa/validation-00001-of-00002.parquet"].map(touch);
        touch("piqa/train-00000-of-00001.parquet");
        assert_eq!(find("piqa").unwrap(), shards);
        touch("piqa.jsonl");
        let error = find("piqa").unwrap_err().to_string();
        assert!(error.contains("several places") && error.contains("piqa.jsonl"), "{error}");
        assert_eq!(find("arc_easy").unwrap_err().exit_code(), 66);
        let one = touch("arc_easy/validation.parquet");
        assert_eq!(find("arc_easy").unwrap(), [one]);
    }
}
