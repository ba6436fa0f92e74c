//! Writing `run.h5` with libhdf5.

use std::path::Path;

use hdf5::plist::group_create::LinkPhaseChange;
use hdf5::types::{CompoundField, CompoundType, EnumMember, EnumType, FloatSize, IntSize, TypeDescriptor};
use hdf5::{Dataset, File, Group};
use hdf5_sys::h5a::H5Awrite;
use hdf5_sys::h5d::H5Dwrite;
use hdf5_sys::h5p::H5P_DEFAULT;
use hdf5_sys::h5s::H5S_ALL;
use serde_json::{Value, json};

use super::RUN_VERSION;
use crate::record::run::{Column, Items, RunRecord};
use crate::record::tree::{self, Kind, NumberArray};
use crate::record::{RecordError, Result, files};

/// Datasets up to this many bytes are stored compact. The limit of HDF5 is 64 KiB for the whole header.
const COMPACT_BYTES: usize = 60_000;

/// Up to so many members a group keeps in its own header, where our reader finds them. libhdf5 by itself moves more than
/// eight into a heap.
const HEADER_MEMBERS: usize = 4096;

/// Writes `run` to `path`, durable and atomic.
///
/// # Errors
/// A value that HDF5 cannot hold exactly, or the disk is full.
pub fn write_run(path: &Path, run: &RunRecord) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    files::make_dirs(parent)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temp = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let result = write_new(&temp, run, Groups::InTheHeader).and_then(|()| {
        let file = std::fs::File::open(&temp).map_err(RecordError::io("read", &temp))?;
        file.sync_all().map_err(RecordError::io("write", path))?;
        std::fs::rename(&temp, path).map_err(RecordError::io("rename onto", path))?;
        files::sync_dir(parent)
    });
    if result.is_err() {
        // Nothing but a part of what could not be written.
        let _ = std::fs::remove_file(&temp);
    }
    result
}

/// Where the members of a large group stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Groups {
    InTheHeader,
    #[cfg(test)]
    AsLibhdf5Likes,
}

fn write_new(path: &Path, run: &RunRecord, groups: Groups) -> Result<()> {
    let file = File::with_options()
        .with_fapl(|p| p.libver_v110().file_locking(false))
        .with_fcpl(|p| p.obj_track_times(false))
        .create(path)
        .map_err(RecordError::hdf5("create", path))?;
    let writer = Writer { path, groups };
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
    writer.tree(&writer.group(&file, "meta", 0)?, &meta)?;
    writer.tree(&file, &run.metrics)?;
    writer.tree(&writer.group(&file, "environment", 0)?, &run.environment)?;
    let series = writer.group(&file, "series", run.series.len())?;
    for (name, points) in &run.series {
        let columns = vec![
            ("step".to_owned(), Column::Integers(points.iter().map(|p| p.step as i64).collect())),
            ("value".to_owned(), Column::Floats(points.iter().map(|p| p.value).collect())),
            ("time_s".to_owned(), Column::Floats(points.iter().map(|p| p.time_s).collect())),
        ];
        writer.table(&series, &group_name(name)?, &Items { columns })?;
    }
    let items = writer.group(&file, "items", run.items.len())?;
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
    groups: Groups,
}

impl Writer<'_> {
    /// A group of so many members.
    fn group(&self, parent: &Group, name: &str, members: usize) -> Result<Group> {
        let mut builder = parent.create_group_builder().obj_track_times(false);
        if self.groups == Groups::InTheHeader && (9..=HEADER_MEMBERS).contains(&members) {
            let most = HEADER_MEMBERS as u32;
            builder =
                builder.with_gcpl(|g| g.link_phase_change(LinkPhaseChange { max_compact: most, min_dense: most }));
        }
        builder.create(name).map_err(RecordError::hdf5("write", self.path))
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
            let arrays = self.group(group, "arrays", flat.arrays.len())?;
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

/// As [`write_run`], with the groups as libhdf5 lays them out by itself.
#[cfg(test)]
pub(super) fn write_dense(path: &Path, run: &RunRecord) -> Result<()> {
    write_new(path, run, Groups::AsLibhdf5Likes)
}
