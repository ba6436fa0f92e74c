//! `run.h5` as libhdf5 reads it: for files of another layout than our writer's.
//!
//! A damaged file may make libhdf5 fault or hang, and a seal says only that nobody changed the file since. So libhdf5 reads
//! in a child process with limits.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use hdf5::types::{FloatSize, IntSize, TypeDescriptor};
use hdf5::{Dataset as H5Dataset, Group};
use hdf5_sys::h5a::H5Aread;
use hdf5_sys::h5d::H5Dread;
use hdf5_sys::h5p::H5P_DEFAULT;
use hdf5_sys::h5s::H5S_ALL;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::read::{self, Cell, Dataset, Field, Store, Type};
use super::{Trouble, Trust};
use crate::record::apart::{self, Limits};
use crate::record::run::{Column, Items, RunRecord, SeriesPoint};
use crate::record::{CellKey, Digest};

type Read<T> = Result<T, Trouble>;

/// What a child may take for one file.
const LIMITS: Limits = Limits { time: Duration::from_secs(20), mem_bytes: 1 << 30 };

/// Reads a run with libhdf5 in this process.
pub(super) fn run_here(path: &Path) -> Read<RunRecord> {
    let size = std::fs::metadata(path).map_err(|e| Trouble::Damaged(format!("it cannot be read ({e})")))?.len();
    let file = hdf5::File::with_options()
        .with_fapl(|p| p.libver_v110().file_locking(false))
        .open_as(path, hdf5::OpenMode::Read)
        .map_err(|e| Trouble::Damaged(format!("it is no whole HDF5 file ({e})")))?;
    read::run(&Library { file, size }, Trust::Unknown)
}

/// Reads a run with libhdf5, in a child process.
pub(super) fn run(path: &Path) -> Read<RunRecord> {
    // While the lock of libhdf5 is held, no other thread is inside it: the child finds it as it is between two calls.
    let answer = hdf5::sync::sync(|| {
        apart::run(LIMITS, |answer| {
            let run = run_here(path).map(Wire::of).map_err(WireTrouble::of);
            // Texts, numbers, and maps with text keys always print.
            answer.send(&serde_json::to_vec(&run).unwrap_or_default());
        })
    });
    let bytes = answer.map_err(|e| Trouble::Damaged(format!("it cannot be read in a process of its own ({e})")))?;
    match serde_json::from_slice::<Result<Wire, WireTrouble>>(&bytes) {
        Ok(Ok(wire)) => Ok(wire.run()),
        Ok(Err(trouble)) => Err(trouble.trouble()),
        Err(_) => Err(Trouble::Damaged("it makes libhdf5 fault, or never end".to_owned())),
    }
}

/// A file that libhdf5 has opened, and its size.
struct Library {
    file: hdf5::File,
    size: u64,
}

enum Object {
    Group(Group),
    Dataset(H5Dataset),
}

fn refused(error: hdf5::Error) -> Trouble {
    Trouble::Damaged(format!("libhdf5 cannot read it ({error})"))
}

fn damaged(what: impl Into<String>) -> Trouble {
    Trouble::Damaged(what.into())
}

impl Object {
    fn group(&self) -> Read<&Group> {
        match self {
            Self::Group(group) => Ok(group),
            Self::Dataset(_) => Err(damaged("a dataset stands where a group should be")),
        }
    }

    fn dataset(&self) -> Read<&H5Dataset> {
        match self {
            Self::Dataset(dataset) => Ok(dataset),
            Self::Group(_) => Err(damaged("a group stands where a dataset should be")),
        }
    }
}

fn open(group: &Group, name: &str) -> Read<Object> {
    match group.group(name) {
        Ok(found) => Ok(Object::Group(found)),
        Err(_) => group.dataset(name).map(Object::Dataset).map_err(refused),
    }
}

impl Store for Library {
    type Object = Object;

    fn root(&self) -> Read<Object> {
        self.file.as_group().map(Object::Group).map_err(refused)
    }

    fn member(&self, group: &Object, name: &str) -> Read<Option<Object>> {
        let group = group.group()?;
        let there = group.member_names().map_err(refused)?.iter().any(|member| member == name);
        there.then(|| open(group, name)).transpose()
    }

    fn members(&self, group: &Object) -> Read<Vec<(String, Object)>> {
        let group = group.group()?;
        let names = group.member_names().map_err(refused)?;
        names.into_iter().map(|name| open(group, &name).map(|object| (name, object))).collect()
    }

    fn dataset(&self, object: &Object) -> Read<Dataset<'_>> {
        let dataset = object.dataset()?;
        let name = dataset.name();
        let ty = dataset.dtype().map_err(refused)?;
        let descriptor = ty.to_descriptor().map_err(refused)?;
        if dataset.ndim() != 1 {
            return Err(damaged(format!("`{name}` has not one dimension")));
        }
        let n = dataset.size();
        // A damaged shape asks for more than there is in the world.
        let bytes = n.checked_mul(ty.size()).filter(|&b| b as u64 <= self.size.max(1) * MOST_FOLD);
        let bytes = bytes.ok_or_else(|| damaged(format!("`{name}` claims to be larger than the file")))?;
        let mut buffer = vec![0u8; bytes];
        if n > 0 {
            // SAFETY: the buffer holds n rows of exactly the file's own type; the lock of `sync` is held.
            let rc = hdf5::sync::sync(|| unsafe {
                H5Dread(dataset.id(), ty.id(), H5S_ALL, H5S_ALL, H5P_DEFAULT, buffer.as_mut_ptr().cast())
            });
            if rc < 0 {
                return Err(damaged(format!("`{name}` cannot be read")));
            }
        }
        let ty = match &descriptor {
            TypeDescriptor::Compound(compound) => {
                let field = |f: &hdf5::types::CompoundField| Field {
                    name: Cow::Owned(f.name.clone()),
                    offset: f.offset,
                    cell: cell(&f.ty),
                };
                Type::Table { row: compound.size, fields: compound.fields.iter().map(field).collect() }
            }
            other => Type::Cell(cell(other)),
        };
        Ok(Dataset { ty, n, bytes: Cow::Owned(buffer) })
    }

    fn path_of(&self, object: &Object) -> Read<Vec<u8>> {
        let dataset = object.dataset()?;
        let name = dataset.name();
        let attribute = dataset.attr("path").map_err(refused)?;
        let ty = attribute.dtype().map_err(refused)?;
        let TypeDescriptor::FixedUnicode(width) = ty.to_descriptor().map_err(refused)? else {
            return Err(damaged(format!("`{name}` has a path of another type than text")));
        };
        if attribute.size() != 1 || width as u64 > self.size {
            return Err(damaged(format!("`{name}` has a path that claims to be larger than the file")));
        }
        let mut bytes = vec![0u8; width];
        // SAFETY: the buffer holds one value of exactly the file's own type; the lock of `sync` is held.
        let rc = hdf5::sync::sync(|| unsafe { H5Aread(attribute.id(), ty.id(), bytes.as_mut_ptr().cast()) });
        if rc < 0 { Err(damaged(format!("the path of `{name}` cannot be read"))) } else { Ok(bytes) }
    }
}

/// Compression makes a file smaller than its data, by at most this.
const MOST_FOLD: u64 = 64;

fn cell(ty: &TypeDescriptor) -> Cell {
    match ty {
        TypeDescriptor::Integer(IntSize::U8) => Cell::Integer,
        TypeDescriptor::Float(FloatSize::U8) => Cell::Float,
        TypeDescriptor::FixedUnicode(width) => Cell::Text(*width),
        TypeDescriptor::Enum(_) | TypeDescriptor::Unsigned(IntSize::U1) if ty.size() == 1 => Cell::Code,
        other => Cell::Other(other.size()),
    }
}

/// A run on its way from the child. Floats travel as their bits: JSON has no NaN.
#[derive(Serialize, Deserialize)]
struct Wire {
    key: CellKey,
    kind: String,
    fingerprint: Digest,
    labels: BTreeMap<String, String>,
    metrics: Value,
    environment: Value,
    series: BTreeMap<String, Vec<(u64, u64, u64)>>,
    items: BTreeMap<String, Vec<(String, WireColumn)>>,
    param_digest: Option<Digest>,
    numerics: Value,
}

#[derive(Serialize, Deserialize)]
enum WireColumn {
    Integers(Vec<i64>),
    Floats(Vec<u64>),
    Texts(Vec<String>),
}

#[derive(Serialize, Deserialize)]
enum WireTrouble {
    Damaged(String),
    Newer(u32),
}

impl WireTrouble {
    fn of(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Damaged(what) => Self::Damaged(what),
            Trouble::Foreign(what) => Self::Damaged(format!("its {what} is of an unknown kind")),
            Trouble::Newer(version) => Self::Newer(version),
        }
    }

    fn trouble(self) -> Trouble {
        match self {
            Self::Damaged(what) => Trouble::Damaged(what),
            Self::Newer(version) => Trouble::Newer(version),
        }
    }
}

impl Wire {
    fn of(run: RunRecord) -> Self {
        let point = |p: &SeriesPoint| (p.step, p.value.to_bits(), p.time_s.to_bits());
        let column = |column: Column| match column {
            Column::Integers(v) => WireColumn::Integers(v),
            Column::Floats(v) => WireColumn::Floats(v.into_iter().map(f64::to_bits).collect()),
            Column::Texts(v) => WireColumn::Texts(v),
        };
        Self {
            key: run.key,
            kind: run.kind,
            fingerprint: run.fingerprint,
            labels: run.labels,
            metrics: run.metrics,
            environment: run.environment,
            series: run.series.into_iter().map(|(name, points)| (name, points.iter().map(point).collect())).collect(),
            items: run
                .items
                .into_iter()
                .map(|(task, items)| (task, items.columns.into_iter().map(|(n, c)| (n, column(c))).collect()))
                .collect(),
            param_digest: run.param_digest,
            numerics: run.numerics,
        }
    }

    fn run(self) -> RunRecord {
        let point =
            |(step, value, time_s)| SeriesPoint { step, value: f64::from_bits(value), time_s: f64::from_bits(time_s) };
        let column = |column: WireColumn| match column {
            WireColumn::Integers(v) => Column::Integers(v),
            WireColumn::Floats(v) => Column::Floats(v.into_iter().map(f64::from_bits).collect()),
            WireColumn::Texts(v) => Column::Texts(v),
        };
        RunRecord {
            key: self.key,
            kind: self.kind,
            fingerprint: self.fingerprint,
            labels: self.labels,
            metrics: self.metrics,
            environment: self.environment,
            series: self
                .series
                .into_iter()
                .map(|(name, points)| (name, points.into_iter().map(point).collect()))
                .collect(),
            items: self
                .items
                .into_iter()
                .map(|(task, columns)| {
                    (task, Items { columns: columns.into_iter().map(|(n, c)| (n, column(c))).collect() })
                })
                .collect(),
            param_digest: self.param_digest,
            numerics: self.numerics,
        }
    }
}
