//! `run.h5`: the result of a cell as an HDF5 file, written once and whole, and read back.
//!
//! The layout is described in `docs/formats/run.md`. Rows lie packed in the file exactly as in memory, so
//! reading converts nothing; small datasets are compact, inside the checksummed object header. A damaged
//! file is refused with its name; shapes are checked against the file's size before anything is allocated.

use std::collections::BTreeMap;
use std::path::Path;

use hdf5::types::{CompoundField, CompoundType, EnumMember, EnumType, FloatSize, IntSize, TypeDescriptor};
use hdf5::{Dataset, File, Group};
use hdf5_sys::h5a::{H5Aread, H5Awrite};
use hdf5_sys::h5d::{H5Dread, H5Dwrite};
use hdf5_sys::h5p::H5P_DEFAULT;
use hdf5_sys::h5s::H5S_ALL;
use serde_json::{Map, Value, json};

use super::error::check_version;
use super::run::{Column, Items, RunRecord, SeriesPoint};
use super::tree::{self, Flat, Kind, NumberArray};
use super::{CellKey, Digest, RecordError, Result};

/// Format version of `run.h5`.
pub const RUN_VERSION: u32 = 1;

/// File name in a run directory.
pub const RUN_FILE: &str = "run.h5";

/// Datasets up to this many bytes are stored compact. The limit of HDF5 is 64 KiB for the whole header.
const COMPACT_BYTES: usize = 60_000;

/// Writes `run` to `path`, durable and atomic.
///
/// # Errors
/// A value that HDF5 cannot hold exactly, or the disk is full.
pub fn write_run(path: &Path, run: &RunRecord) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    super::files::make_dirs(parent)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let result = write_new(&temp, run).and_then(|()| {
        let file = std::fs::File::open(&temp).map_err(RecordError::io("read", &temp))?;
        file.sync_all().map_err(RecordError::io("write", path))?;
        std::fs::rename(&temp, path).map_err(RecordError::io("rename onto", path))?;
        super::files::sync_dir(parent)
    });
    if result.is_err() {
        // Nothing but a part of what could not be written.
        let _ = std::fs::remove_file(&temp);
    }
    result
}

fn write_new(path: &Path, run: &RunRecord) -> Result<()> {
    let file = File::with_options()
        .with_fapl(|p| p.libver_v110().file_locking(false))
        .with_fcpl(|p| p.obj_track_times(false))
        .create(path)
        .map_err(RecordError::hdf5("create", path))?;
    let writer = Writer { path };
    let mut meta = json!({
        "version": RUN_VERSION,
        "seedbed": env!("CARGO_PKG_VERSION"),
        "kind": run.kind,
        "fingerprint": run.fingerprint,
        "key": run.key,
        "labels": run.labels,
        "numerics": run.numerics,
        "content": run.content_digest(),
    });
    if let (Some(digest), Value::Object(map)) = (&run.param_digest, &mut meta) {
        map.insert("param_digest".to_owned(), json!(digest));
    }
    writer.tree(&writer.group(&file, "meta")?, &meta)?;
    writer.tree(&file, &run.metrics)?;
    writer.tree(&writer.group(&file, "environment")?, &run.environment)?;
    let series = writer.group(&file, "series")?;
    for (name, points) in &run.series {
        let columns = vec![
            ("step".to_owned(), Column::Integers(points.iter().map(|p| p.step as i64).collect())),
            ("value".to_owned(), Column::Floats(points.iter().map(|p| p.value).collect())),
            ("time_s".to_owned(), Column::Floats(points.iter().map(|p| p.time_s).collect())),
        ];
        writer.table(&series, &group_name(name)?, &Items { columns })?;
    }
    let items = writer.group(&file, "items")?;
    for (task, table) in &run.items {
        writer.table(&items, &group_name(task)?, table)?;
    }
    file.close().map_err(RecordError::hdf5("write", path))
}

/// HDF5 takes `/` for a separator and `.` for the group itself.
fn group_name(name: &str) -> Result<String> {
    if name.is_empty() || name == "." || name.contains('/') || name.contains('\0') {
        return Err(RecordError::Value(format!(
            "{name:?} cannot name a series or a table of items: use letters, digits, `_`, `-`, `.`"
        )));
    }
    Ok(name.to_owned())
}

struct Writer<'a> {
    path: &'a Path,
}

impl Writer<'_> {
    fn group(&self, parent: &Group, name: &str) -> Result<Group> {
        let group = parent.create_group_builder().obj_track_times(false).create(name);
        group.map_err(RecordError::hdf5("write", self.path))
    }

    fn tree(&self, group: &Group, value: &Value) -> Result<()> {
        let flat = tree::flatten(value).map_err(RecordError::Value)?;
        if !flat.numbers.is_empty() {
            let width = flat.numbers.iter().map(|(p, ..)| p.len()).max().unwrap_or(0).max(1);
            let row = RowType::new(&[
                ("path", TypeDescriptor::FixedUnicode(width)),
                ("value", TypeDescriptor::Float(FloatSize::U8)),
                ("kind", kind_type()),
            ]);
            let mut bytes = Vec::with_capacity(flat.numbers.len() * row.size);
            for (path, value, kind) in &flat.numbers {
                push_text(&mut bytes, path, width);
                bytes.extend_from_slice(&value.to_ne_bytes());
                bytes.push(*kind as u8);
            }
            self.rows(group, "metrics", &row.descriptor, flat.numbers.len(), &bytes)?;
        }
        if !flat.texts.is_empty() {
            let width = |pick: fn(&(String, String)) -> usize| flat.texts.iter().map(pick).max().unwrap_or(0).max(1);
            let (paths, texts) = (width(|t| t.0.len()), width(|t| t.1.len()));
            let row = RowType::new(&[
                ("path", TypeDescriptor::FixedUnicode(paths)),
                ("text", TypeDescriptor::FixedUnicode(texts)),
            ]);
            let mut bytes = Vec::with_capacity(flat.texts.len() * row.size);
            for (path, text) in &flat.texts {
                push_text(&mut bytes, path, paths);
                push_text(&mut bytes, text, texts);
            }
            self.rows(group, "texts", &row.descriptor, flat.texts.len(), &bytes)?;
        }
        if !flat.arrays.is_empty() {
            let arrays = self.group(group, "arrays")?;
            for (i, (path, array)) in flat.arrays.iter().enumerate() {
                let dataset = match array {
                    NumberArray::Integers(xs) => {
                        let bytes: Vec<u8> = xs.iter().flat_map(|x| x.to_ne_bytes()).collect();
                        self.rows(&arrays, &i.to_string(), &TypeDescriptor::Integer(IntSize::U8), xs.len(), &bytes)?
                    }
                    NumberArray::Floats(xs) => {
                        let bytes: Vec<u8> = xs.iter().flat_map(|x| x.to_ne_bytes()).collect();
                        self.rows(&arrays, &i.to_string(), &TypeDescriptor::Float(FloatSize::U8), xs.len(), &bytes)?
                    }
                };
                self.path_of_array(&dataset, path)?;
            }
        }
        Ok(())
    }

    /// The path as an attribute. Of fixed length, so that it lies in the checksummed header: texts of variable
    /// length lie in a heap that nothing guards.
    fn path_of_array(&self, dataset: &Dataset, path: &str) -> Result<()> {
        let mut bytes = Vec::new();
        push_text(&mut bytes, path, path.len().max(1));
        let attribute = dataset
            .new_attr_builder()
            .empty_as(&TypeDescriptor::FixedUnicode(bytes.len()))
            .create("path")
            .map_err(RecordError::hdf5("write", self.path))?;
        let file_type = attribute.dtype().map_err(RecordError::hdf5("write", self.path))?;
        // SAFETY: the buffer is one value of exactly the file's own type; the lock of `sync` is held.
        let rc = hdf5::sync::sync(|| unsafe { H5Awrite(attribute.id(), file_type.id(), bytes.as_ptr().cast()) });
        if rc < 0 { Err(disk_full_or(self.path, "path")) } else { Ok(()) }
    }

    fn table(&self, group: &Group, name: &str, items: &Items) -> Result<()> {
        let n = items.len();
        if let Some((column, _)) = items.columns.iter().find(|(_, c)| c.len() != n) {
            return Err(RecordError::Value(format!("column `{column}` of `{name}` has another length than the first")));
        }
        let fields: Vec<(&str, TypeDescriptor)> = items
            .columns
            .iter()
            .map(|(name, column)| {
                let ty = match column {
                    Column::Integers(_) => TypeDescriptor::Integer(IntSize::U8),
                    Column::Floats(_) => TypeDescriptor::Float(FloatSize::U8),
                    Column::Texts(v) => {
                        TypeDescriptor::FixedUnicode(v.iter().map(String::len).max().unwrap_or(0).max(1))
                    }
                };
                (name.as_str(), ty)
            })
            .collect();
        let row = RowType::new(&fields);
        let mut bytes = Vec::with_capacity(n * row.size);
        for i in 0..n {
            for ((_, column), (_, ty)) in items.columns.iter().zip(&fields) {
                match column {
                    Column::Integers(v) => bytes.extend_from_slice(&v[i].to_ne_bytes()),
                    Column::Floats(v) => bytes.extend_from_slice(&v[i].to_ne_bytes()),
                    Column::Texts(v) if v[i].contains('\0') => {
                        return Err(RecordError::Value(format!("a text in items `{name}` holds a NUL byte")));
                    }
                    Column::Texts(v) => push_text(&mut bytes, &v[i], ty.size()),
                }
            }
        }
        self.rows(group, name, &row.descriptor, n, &bytes).map(drop)
    }

    /// One dataset of `n` rows whose bytes are `bytes`.
    fn rows(&self, group: &Group, name: &str, ty: &TypeDescriptor, n: usize, bytes: &[u8]) -> Result<Dataset> {
        let hdf5 = || RecordError::hdf5("write", self.path);
        let compact = bytes.len() <= COMPACT_BYTES && n > 0;
        let layout = if compact {
            hdf5::plist::dataset_create::Layout::Compact
        } else {
            hdf5::plist::dataset_create::Layout::Contiguous
        };
        let dataset = group
            .new_dataset_builder()
            .packed(true)
            .empty_as(ty)
            .shape([n])
            .with_dcpl(|p| p.layout(layout).obj_track_times(false))
            .create(name)
            .map_err(hdf5())?;
        let file_type = dataset.dtype().map_err(hdf5())?;
        if n > 0 {
            debug_assert_eq!(bytes.len(), n * file_type.size());
            // SAFETY: the buffer holds n rows of exactly the file's own type; the lock of `sync` is held.
            let rc = hdf5::sync::sync(|| unsafe {
                H5Dwrite(dataset.id(), file_type.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.as_ptr().cast())
            });
            if rc < 0 {
                return Err(disk_full_or(self.path, name));
            }
        }
        Ok(dataset)
    }
}

fn disk_full_or(path: &Path, name: &str) -> RecordError {
    let source = std::io::Error::last_os_error();
    if source.kind() == std::io::ErrorKind::StorageFull {
        return RecordError::Io { action: "write", path: path.to_path_buf(), source };
    }
    RecordError::Hdf5 {
        action: "write",
        path: path.to_path_buf(),
        source: format!("H5Dwrite of `{name}` failed").into(),
    }
}

/// A packed compound type.
struct RowType {
    descriptor: TypeDescriptor,
    size: usize,
}

impl RowType {
    fn new(fields: &[(&str, TypeDescriptor)]) -> Self {
        let mut offset = 0;
        let fields = fields
            .iter()
            .enumerate()
            .map(|(index, (name, ty))| {
                let field = CompoundField { name: (*name).to_owned(), ty: ty.clone(), offset, index };
                offset += ty.size();
                field
            })
            .collect();
        Self { descriptor: TypeDescriptor::Compound(CompoundType { fields, size: offset }), size: offset }
    }
}

fn kind_type() -> TypeDescriptor {
    let members = Kind::ALL.iter().map(|(kind, name)| EnumMember { name: (*name).to_owned(), value: *kind as u64 });
    TypeDescriptor::Enum(EnumType { size: IntSize::U1, signed: false, members: members.collect() })
}

fn push_text(bytes: &mut Vec<u8>, text: &str, width: usize) {
    let end = bytes.len() + width;
    bytes.extend_from_slice(text.as_bytes());
    bytes.resize(end, 0);
}

/// Reads `run.h5`.
///
/// Meant for files whose digest has been checked against their seal: a damaged file may make libhdf5
/// itself fault or hang before this function sees it.
///
/// # Errors
/// The file is not there, damaged, or of a newer version.
pub fn read_run(path: &Path) -> Result<RunRecord> {
    let size = std::fs::metadata(path).map_err(RecordError::io("read", path))?.len();
    let file = File::with_options()
        .with_fapl(|p| p.libver_v110().file_locking(false))
        .open_as(path, hdf5::OpenMode::Read)
        .map_err(|e| {
            RecordError::damaged(path, format!("it is no whole HDF5 file ({e}): run the cell again with `run_all`"))
        })?;
    Reader { path, size }.run(&file)
}

struct Reader<'a> {
    path: &'a Path,
    size: u64,
}

/// The rows of a dataset with their fields.
struct Rows {
    n: usize,
    row: usize,
    bytes: Vec<u8>,
    fields: Vec<CompoundField>,
}

impl Reader<'_> {
    fn damaged(&self, reason: impl Into<String>) -> RecordError {
        RecordError::damaged(self.path, reason)
    }

    fn hdf5(&self) -> impl FnOnce(hdf5::Error) -> RecordError {
        RecordError::hdf5("read", self.path)
    }

    fn run(&self, file: &File) -> Result<RunRecord> {
        let meta =
            self.tree(&file.group("meta").map_err(|_| self.damaged("it has no /meta: it is not a run of Seedbed"))?)?;
        let version = meta["version"].as_u64().ok_or_else(|| self.damaged("/meta has no version"))?;
        check_version(self.path, u32::try_from(version).unwrap_or(u32::MAX), RUN_VERSION)?;
        let field = |name: &str| meta.get(name).cloned().unwrap_or(Value::Null);
        let parse = |name: &str, e: serde_json::Error| self.damaged(format!("/meta {name}: {e}"));
        let key: CellKey = serde_json::from_value(field("key")).map_err(|e| parse("key", e))?;
        let fingerprint: Digest = serde_json::from_value(field("fingerprint")).map_err(|e| parse("fingerprint", e))?;
        let labels = serde_json::from_value(field("labels")).map_err(|e| parse("labels", e))?;
        let param_digest = serde_json::from_value(field("param_digest")).map_err(|e| parse("param_digest", e))?;
        let content: Digest = serde_json::from_value(field("content")).map_err(|e| parse("content", e))?;
        let mut series = BTreeMap::new();
        for (name, items) in self.tables(file, "series")? {
            series.insert(name.clone(), self.points(&name, items)?);
        }
        let environment = match self.group(file, "environment")? {
            Some(group) => self.tree(&group)?,
            None => Value::Object(Map::new()),
        };
        let run = RunRecord {
            key,
            kind: field("kind").as_str().unwrap_or_default().to_owned(),
            fingerprint,
            labels,
            metrics: self.tree(file)?,
            environment,
            series,
            items: self.tables(file, "items")?.into_iter().collect(),
            param_digest,
            numerics: field("numerics"),
        };
        if run.content_digest() != content {
            return Err(
                self.damaged("its content is not what was written: restore it from a copy, or run the cell again")
            );
        }
        Ok(run)
    }

    fn points(&self, name: &str, items: Items) -> Result<Vec<SeriesPoint>> {
        match (items.column("step"), items.column("value"), items.column("time_s")) {
            (Some(Column::Integers(step)), Some(Column::Floats(value)), Some(Column::Floats(time))) => Ok(step
                .iter()
                .zip(value)
                .zip(time)
                .map(|((&step, &value), &time_s)| SeriesPoint { step: step as u64, value, time_s })
                .collect()),
            _ => Err(self.damaged(format!("series `{name}` lacks step, value or time_s"))),
        }
    }

    /// A member that is absent is `None`; one that is there and cannot be opened is damage, and no absence.
    fn group(&self, parent: &Group, name: &str) -> Result<Option<Group>> {
        self.has(parent, name)?.then(|| parent.group(name).map_err(self.hdf5())).transpose()
    }

    /// As [`Self::group`].
    fn dataset(&self, parent: &Group, name: &str) -> Result<Option<Dataset>> {
        self.has(parent, name)?.then(|| parent.dataset(name).map_err(self.hdf5())).transpose()
    }

    fn has(&self, parent: &Group, name: &str) -> Result<bool> {
        Ok(parent.member_names().map_err(self.hdf5())?.iter().any(|member| member == name))
    }

    fn tables(&self, file: &File, group: &str) -> Result<Vec<(String, Items)>> {
        let Some(group) = self.group(file, group)? else { return Ok(Vec::new()) };
        let mut tables = Vec::new();
        for name in group.member_names().map_err(self.hdf5())? {
            let rows = self.rows(&group.dataset(&name).map_err(self.hdf5())?)?;
            let mut columns = Vec::new();
            for field in &rows.fields {
                let column = match field.ty {
                    TypeDescriptor::Integer(IntSize::U8) => {
                        Column::Integers((0..rows.n).map(|i| i64::from_ne_bytes(rows.word(i, field))).collect())
                    }
                    TypeDescriptor::Float(FloatSize::U8) => {
                        Column::Floats((0..rows.n).map(|i| f64::from_ne_bytes(rows.word(i, field))).collect())
                    }
                    TypeDescriptor::FixedUnicode(_) => {
                        Column::Texts((0..rows.n).map(|i| self.text(rows.cell(i, field))).collect::<Result<_>>()?)
                    }
                    _ => return Err(self.damaged(format!("column `{}` of `{name}` has an unknown type", field.name))),
                };
                columns.push((field.name.clone(), column));
            }
            tables.push((name, Items { columns }));
        }
        Ok(tables)
    }

    fn tree(&self, group: &Group) -> Result<Value> {
        let mut flat = Flat::default();
        if let Some(dataset) = self.dataset(group, "metrics")? {
            let rows = self.rows(&dataset)?;
            let (path, value, kind) =
                (self.field(&rows, "path")?, self.field(&rows, "value")?, self.field(&rows, "kind")?);
            if value.ty.size() != 8 || kind.ty.size() != 1 {
                return Err(self.damaged("/metrics has fields of unknown types"));
            }
            for i in 0..rows.n {
                let code = rows.cell(i, kind)[0];
                let kind = Kind::from_code(code)
                    .ok_or_else(|| self.damaged(format!("/metrics row {i} has unknown kind {code}")))?;
                flat.numbers.push((self.text(rows.cell(i, path))?, f64::from_ne_bytes(rows.word(i, value)), kind));
            }
        }
        if let Some(dataset) = self.dataset(group, "texts")? {
            let rows = self.rows(&dataset)?;
            let (path, text) = (self.field(&rows, "path")?, self.field(&rows, "text")?);
            for i in 0..rows.n {
                flat.texts.push((self.text(rows.cell(i, path))?, self.text(rows.cell(i, text))?));
            }
        }
        if let Some(arrays) = self.group(group, "arrays")? {
            for name in arrays.member_names().map_err(self.hdf5())? {
                let dataset = arrays.dataset(&name).map_err(self.hdf5())?;
                let path = self.path_of_array(&dataset)?;
                let (ty, n, bytes) = self.raw(&dataset)?;
                if bytes.len() != n * 8 {
                    return Err(self.damaged(format!("array `{path}` has an unknown type")));
                }
                // chunks_exact(8) yields slices of 8 bytes.
                let words = bytes.chunks_exact(8).map(|c| <[u8; 8]>::try_from(c).unwrap_or_default());
                let array = match ty {
                    TypeDescriptor::Integer(_) => NumberArray::Integers(words.map(i64::from_ne_bytes).collect()),
                    TypeDescriptor::Float(_) => NumberArray::Floats(words.map(f64::from_ne_bytes).collect()),
                    _ => return Err(self.damaged(format!("array `{path}` has an unknown type"))),
                };
                flat.arrays.push((path, array));
            }
        }
        tree::unflatten(&flat).map_err(|e| self.damaged(e))
    }

    fn path_of_array(&self, dataset: &Dataset) -> Result<String> {
        let attribute = dataset.attr("path").map_err(self.hdf5())?;
        let ty = attribute.dtype().map_err(self.hdf5())?;
        let TypeDescriptor::FixedUnicode(width) = ty.to_descriptor().map_err(self.hdf5())? else {
            return Err(self.damaged(format!("`{}` has a path of another type than text", dataset.name())));
        };
        if attribute.size() != 1 || width as u64 > self.size {
            return Err(self.damaged(format!("`{}` has a path that claims to be larger than the file", dataset.name())));
        }
        let mut bytes = vec![0u8; width];
        // SAFETY: the buffer holds one value of exactly the file's own type; the lock of `sync` is held.
        let rc = hdf5::sync::sync(|| unsafe { H5Aread(attribute.id(), ty.id(), bytes.as_mut_ptr().cast()) });
        if rc < 0 {
            return Err(self.damaged(format!("the path of `{}` cannot be read", dataset.name())));
        }
        self.text(&bytes)
    }

    fn field<'r>(&self, rows: &'r Rows, name: &str) -> Result<&'r CompoundField> {
        rows.fields
            .iter()
            .find(|f| f.name == name)
            .ok_or_else(|| self.damaged(format!("a table lacks the field `{name}`")))
    }

    fn rows(&self, dataset: &Dataset) -> Result<Rows> {
        let (ty, n, bytes) = self.raw(dataset)?;
        let TypeDescriptor::Compound(compound) = ty else {
            return Err(self.damaged(format!("`{}` is no table", dataset.name())));
        };
        if compound.fields.iter().any(|f| f.offset + f.ty.size() > compound.size) || bytes.len() != n * compound.size {
            return Err(self.damaged(format!("`{}` has rows that overlap", dataset.name())));
        }
        Ok(Rows { n, row: compound.size, bytes, fields: compound.fields })
    }

    /// The dataset's bytes, as they lie in the file.
    fn raw(&self, dataset: &Dataset) -> Result<(TypeDescriptor, usize, Vec<u8>)> {
        let ty = dataset.dtype().map_err(self.hdf5())?;
        let descriptor = ty.to_descriptor().map_err(self.hdf5())?;
        if dataset.ndim() != 1 {
            return Err(self.damaged(format!("`{}` has not one dimension", dataset.name())));
        }
        let n = dataset.size();
        let bytes = n.checked_mul(ty.size()).filter(|&b| b as u64 <= self.size);
        let bytes =
            bytes.ok_or_else(|| self.damaged(format!("`{}` claims to be larger than the file", dataset.name())))?;
        let mut buffer = vec![0u8; bytes];
        if n > 0 {
            // SAFETY: the buffer holds n rows of exactly the file's own type; the lock of `sync` is held.
            let rc = hdf5::sync::sync(|| unsafe {
                H5Dread(dataset.id(), ty.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer.as_mut_ptr().cast())
            });
            if rc < 0 {
                return Err(self.damaged(format!("`{}` cannot be read", dataset.name())));
            }
        }
        Ok((descriptor, n, buffer))
    }

    fn text(&self, bytes: &[u8]) -> Result<String> {
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        String::from_utf8(bytes[..end].to_vec()).map_err(|_| self.damaged("a text is not UTF-8"))
    }
}

impl Rows {
    fn cell(&self, i: usize, field: &CompoundField) -> &[u8] {
        let start = i * self.row + field.offset;
        &self.bytes[start..start + field.ty.size()]
    }

    /// The eight bytes of a field that was checked to have eight.
    fn word(&self, i: usize, field: &CompoundField) -> [u8; 8] {
        let mut word = [0u8; 8];
        let cell = self.cell(i, field);
        let n = cell.len().min(8);
        word[..n].copy_from_slice(&cell[..n]);
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Name;

    fn example() -> RunRecord {
        let name = |s| Name::new(s).unwrap();
        let point = |step, value| SeriesPoint { step, value, time_s: step as f64 * 0.1 };
        RunRecord {
            key: CellKey {
                study: name("monotone"),
                profile: name("quick"),
                stage: name("evaluate"),
                arm: None,
                seed: Some(42),
            },
            kind: "evaluate".to_owned(),
            fingerprint: Digest::of_bytes(b"x"),
            labels: BTreeMap::from([("mask".to_owned(), "prefix".to_owned())]),
            metrics: json!({
                "pile_test": {"baseline_pythia": {"perplexity": 6.918_123_456_789_1, "total_tokens": 6_981_283}},
                "lambada": null, "trigger_ids": [3, 1, 4], "trigger": "naïve 文", "flags": [true, {"a": 1}]
            }),
            environment: json!({"training_time_seconds": 1.5, "host": "n1"}),
            series: BTreeMap::from([("loss".to_owned(), vec![point(1, 5.0), point(2, 4.5)])]),
            items: BTreeMap::from([(
                "pile_test".to_owned(),
                Items {
                    columns: vec![
                        ("id".to_owned(), Column::Texts(vec!["a".into(), "bé".into()])),
                        ("nll".to_owned(), Column::Floats(vec![1.25, f64::NEG_INFINITY])),
                        ("tokens".to_owned(), Column::Integers(vec![10, -1])),
                    ],
                },
            )]),
            param_digest: Some(Digest::of_bytes(b"p")),
            numerics: json!({"threads": 1}),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/run.h5");
        let run = example();
        write_run(&path, &run).unwrap();
        assert_eq!(read_run(&path).unwrap(), run);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn large_tables_are_read_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.h5");
        let mut run = example();
        run.series.insert(
            "loss".to_owned(),
            (0..20_000).map(|s| SeriesPoint { step: s, value: s as f64, time_s: 0.0 }).collect(),
        );
        run.metrics["ids"] = json!((0..20_000).collect::<Vec<i64>>());
        write_run(&path, &run).unwrap();
        assert_eq!(read_run(&path).unwrap(), run);
    }

    #[test]
    fn the_same_run_gives_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = |name: &str| {
            let path = dir.path().join(name);
            write_run(&path, &example()).unwrap();
            std::fs::read(path).unwrap()
        };
        assert_eq!(bytes("a.h5"), bytes("b.h5"));
    }

    #[test]
    fn content_digest_ignores_time_and_place_only() {
        let run = example();
        let digest = run.content_digest();
        let mut other = run.clone();
        other.environment = json!({"host": "n2"});
        other.series.get_mut("loss").unwrap()[0].time_s = 99.0;
        other.numerics = json!({"threads": 2});
        assert_eq!(other.content_digest(), digest);
        let mut value = run.clone();
        value.series.get_mut("loss").unwrap()[0].value = 5.1;
        let mut metric = run.clone();
        metric.metrics["lambada"] = json!(0.0);
        let mut item = run.clone();
        item.items.get_mut("pile_test").unwrap().columns[2].1 = Column::Integers(vec![10, 0]);
        let mut parameters = run;
        parameters.param_digest = None;
        for changed in [value, metric, item, parameters] {
            assert_ne!(changed.content_digest(), digest);
        }
    }

    #[test]
    fn a_file_cut_in_half_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.h5");
        write_run(&path, &example()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = read_run(&path).unwrap_err().to_string();
        assert!(error.contains("run.h5") && error.contains("run_all"), "{error}");
    }
}
