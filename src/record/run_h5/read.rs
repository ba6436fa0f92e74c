//! From what stands in a file to a [`RunRecord`], whoever read it: our own reader or libhdf5.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{RUN_VERSION, Trouble, Trust};
use crate::record::run::{Column, Items, RunRecord, SeriesPoint};
use crate::record::tree::{self, Flat, Kind, NumberArray};
use crate::record::{CellKey, Digest};

type Read<T> = Result<T, Trouble>;

/// The type of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cell {
    /// 64 bits, signed.
    Integer,
    /// 64 bits.
    Float,
    /// UTF-8 in so many bytes, padded by NUL.
    Text(usize),
    /// One of up to 256 words.
    Code,
    /// Of that size, which means nothing in a run.
    Other(usize),
}

impl Cell {
    pub(super) fn size(self) -> usize {
        match self {
            Self::Integer | Self::Float => 8,
            Self::Code => 1,
            Self::Text(size) | Self::Other(size) => size,
        }
    }
}

/// A column of a table, inside its row.
#[derive(Debug, Clone)]
pub(super) struct Field<'b> {
    pub(super) name: Cow<'b, str>,
    pub(super) offset: usize,
    pub(super) cell: Cell,
}

/// The type of a row.
#[derive(Debug, Clone)]
pub(super) enum Type<'b> {
    Cell(Cell),
    Table { row: usize, fields: Vec<Field<'b>> },
}

/// A dataset of one dimension: `n` rows as they lie in the file. `bytes` is as long as `n` rows are.
#[derive(Debug, Clone)]
pub(super) struct Dataset<'b> {
    pub(super) ty: Type<'b>,
    pub(super) n: usize,
    pub(super) bytes: Cow<'b, [u8]>,
}

/// An HDF5 file, opened.
pub(super) trait Store {
    /// A group or dataset.
    type Object;
    fn root(&self) -> Read<Self::Object>;
    /// A member that is absent is `None`; one that is there and cannot be opened is damage, and no absence.
    fn member(&self, group: &Self::Object, name: &str) -> Read<Option<Self::Object>>;
    fn members(&self, group: &Self::Object) -> Read<Vec<(String, Self::Object)>>;
    fn dataset(&self, object: &Self::Object) -> Read<Dataset<'_>>;
    /// The attribute `path`.
    fn path_of(&self, object: &Self::Object) -> Read<Vec<u8>>;
}

fn damaged(what: impl Into<String>) -> Trouble {
    Trouble::Damaged(what.into())
}

/// The whole run. What it found is digested again and compared, unless the whole file was.
pub(super) fn run<S: Store>(store: &S, trust: Trust) -> Read<RunRecord> {
    let (mut run, content) = tree(store)?;
    let root = store.root()?;
    for (name, items) in tables(store, &root, "series")? {
        let points = points(&name, items)?;
        run.series.insert(name, points);
    }
    run.items = tables(store, &root, "items")?.into_iter().collect();
    if trust == Trust::Unknown && run.content_digest() != content {
        return Err(damaged("its content is not what was written"));
    }
    Ok(run)
}

/// The run without series and items, and the digest of all of its content as it stands in the file.
pub(super) fn tree<S: Store>(store: &S) -> Read<(RunRecord, Digest)> {
    let root = store.root()?;
    let meta = store.member(&root, "meta")?.ok_or_else(|| damaged("it has no /meta: it is not a run of Seedbed"))?;
    let mut meta = value(store, &meta)?;
    let version = meta["version"].as_u64().ok_or_else(|| damaged("/meta has no version"))?;
    check_version(version)?;
    let mut field = |name: &str| meta.get_mut(name).map(Value::take).unwrap_or_default();
    let parse = |name: &str, e: serde_json::Error| damaged(format!("/meta {name}: {e}"));
    let key: CellKey = serde_json::from_value(field("key")).map_err(|e| parse("key", e))?;
    let fingerprint: Digest = serde_json::from_value(field("fingerprint")).map_err(|e| parse("fingerprint", e))?;
    let labels = serde_json::from_value(field("labels")).map_err(|e| parse("labels", e))?;
    let param_digest = serde_json::from_value(field("param_digest")).map_err(|e| parse("param_digest", e))?;
    let content: Digest = serde_json::from_value(field("content")).map_err(|e| parse("content", e))?;
    let environment = match store.member(&root, "environment")? {
        Some(group) => value(store, &group)?,
        None => Value::Object(Map::new()),
    };
    let run = RunRecord {
        key,
        kind: field("kind").as_str().unwrap_or_default().to_owned(),
        fingerprint,
        labels,
        metrics: value(store, &root)?,
        environment,
        series: BTreeMap::new(),
        items: BTreeMap::new(),
        param_digest,
        numerics: field("numerics"),
    };
    Ok((run, content))
}

/// Older versions are read, newer ones are not.
pub(super) fn check_version(version: u64) -> Read<()> {
    match u32::try_from(version).unwrap_or(u32::MAX) {
        version if version > RUN_VERSION => Err(Trouble::Newer(version)),
        _ => Ok(()),
    }
}

fn points(name: &str, items: Items) -> Read<Vec<SeriesPoint>> {
    match (items.column("step"), items.column("value"), items.column("time_s")) {
        (Some(Column::Integers(step)), Some(Column::Floats(value)), Some(Column::Floats(time))) => Ok(step
            .iter()
            .zip(value)
            .zip(time)
            .map(|((&step, &value), &time_s)| SeriesPoint { step: step as u64, value, time_s })
            .collect()),
        _ => Err(damaged(format!("series `{name}` lacks step, value or time_s"))),
    }
}

fn tables<S: Store>(store: &S, root: &S::Object, group: &str) -> Read<Vec<(String, Items)>> {
    let Some(group) = store.member(root, group)? else { return Ok(Vec::new()) };
    let mut tables = Vec::new();
    for (name, object) in store.members(&group)? {
        let rows = Rows::of(store.dataset(&object)?)?;
        let mut columns = Vec::with_capacity(rows.fields.len());
        for field in &rows.fields {
            let column = match field.cell {
                Cell::Integer => Column::Integers(rows.words(field).map(i64::from_ne_bytes).collect()),
                Cell::Float => Column::Floats(rows.words(field).map(f64::from_ne_bytes).collect()),
                Cell::Text(_) => Column::Texts(rows.cells(field).map(text).collect::<Read<_>>()?),
                Cell::Code | Cell::Other(_) => {
                    return Err(damaged(format!("column `{}` of `{name}` has an unknown type", field.name)));
                }
            };
            columns.push((field.name.clone().into_owned(), column));
        }
        tables.push((name, Items { columns }));
    }
    Ok(tables)
}

/// The value tree of a group.
pub(super) fn value<S: Store>(store: &S, group: &S::Object) -> Read<Value> {
    tree::unflatten(&flat(store, group)?).map_err(damaged)
}

fn flat<S: Store>(store: &S, group: &S::Object) -> Read<Flat> {
    let mut flat = Flat::default();
    if let Some(object) = store.member(group, "metrics")? {
        let rows = Rows::of(store.dataset(&object)?)?;
        let Numbers { path, value, kind } = rows.numbers()?;
        let cells = rows.cells(path).zip(rows.words(value)).zip(rows.cells(kind));
        for (i, ((path, value), kind)) in cells.enumerate() {
            let code = kind[0];
            let kind =
                Kind::from_code(code).ok_or_else(|| damaged(format!("/metrics row {i} has unknown kind {code}")))?;
            flat.numbers.push((text(path)?, f64::from_ne_bytes(value), kind));
        }
    }
    if let Some(object) = store.member(group, "texts")? {
        texts(&Rows::of(store.dataset(&object)?)?, &mut flat)?;
    }
    if let Some(arrays) = store.member(group, "arrays")? {
        for (_, object) in store.members(&arrays)? {
            array(store, &object, &mut flat)?;
        }
    }
    Ok(flat)
}

pub(super) fn texts(rows: &Rows<'_>, flat: &mut Flat) -> Read<()> {
    let (path, value) = (rows.field("path")?, rows.field("text")?);
    if ![path, value].iter().all(|f| matches!(f.cell, Cell::Text(_))) {
        return Err(damaged("/texts has fields of unknown types"));
    }
    for (path, value) in rows.cells(path).zip(rows.cells(value)) {
        flat.texts.push((text(path)?, text(value)?));
    }
    Ok(())
}

pub(super) fn array<S: Store>(store: &S, object: &S::Object, flat: &mut Flat) -> Read<()> {
    let path = text(&store.path_of(object)?)?;
    let data = store.dataset(object)?;
    // Rows of eight bytes, all of them.
    let words = data.bytes.chunks_exact(8).map(|c| <[u8; 8]>::try_from(c).unwrap_or_default());
    let array = match data.ty {
        Type::Cell(Cell::Integer) => NumberArray::Integers(words.map(i64::from_ne_bytes).collect()),
        Type::Cell(Cell::Float) => NumberArray::Floats(words.map(f64::from_ne_bytes).collect()),
        _ => return Err(damaged(format!("array `{path}` has an unknown type"))),
    };
    flat.arrays.push((path, array));
    Ok(())
}

/// The text before the padding.
pub(super) fn text(bytes: &[u8]) -> Read<String> {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).map(str::to_owned).map_err(|_| damaged("a text is not UTF-8"))
}

/// The rows of a table. Every field lies inside its row, and there are as many bytes as the rows need.
pub(super) struct Rows<'b> {
    pub(super) n: usize,
    pub(super) row: usize,
    pub(super) bytes: Cow<'b, [u8]>,
    pub(super) fields: Vec<Field<'b>>,
}

/// The fields of a table of numbers.
pub(super) struct Numbers<'r, 'b> {
    pub(super) path: &'r Field<'b>,
    pub(super) value: &'r Field<'b>,
    pub(super) kind: &'r Field<'b>,
}

impl<'b> Rows<'b> {
    pub(super) fn of(data: Dataset<'b>) -> Read<Self> {
        let Type::Table { row, fields } = data.ty else { return Err(damaged("a dataset in it is no table")) };
        let outside = |f: &Field<'_>| f.offset.checked_add(f.cell.size()).is_none_or(|end| end > row);
        if row == 0 || fields.iter().any(outside) || data.n.checked_mul(row) != Some(data.bytes.len()) {
            return Err(damaged("a table has rows that overlap"));
        }
        Ok(Self { n: data.n, row, bytes: data.bytes, fields })
    }

    pub(super) fn field(&self, name: &str) -> Read<&Field<'b>> {
        self.fields.iter().find(|f| f.name == name).ok_or_else(|| damaged(format!("a table lacks the field `{name}`")))
    }

    pub(super) fn numbers(&self) -> Read<Numbers<'_, 'b>> {
        let numbers = Numbers { path: self.field("path")?, value: self.field("value")?, kind: self.field("kind")? };
        match (numbers.path.cell, numbers.value.cell, numbers.kind.cell) {
            (Cell::Text(_), Cell::Float, Cell::Code) => Ok(numbers),
            _ => Err(damaged("/metrics has fields of unknown types")),
        }
    }

    /// The bytes of a field, row by row.
    pub(super) fn cells(&self, field: &Field<'_>) -> impl Iterator<Item = &[u8]> {
        let (start, end) = (field.offset, field.offset + field.cell.size());
        self.bytes.chunks_exact(self.row).map(move |row| &row[start..end])
    }

    /// As [`Self::cells`], of a field of eight bytes.
    pub(super) fn words(&self, field: &Field<'_>) -> impl Iterator<Item = [u8; 8]> {
        self.cells(field).map(|cell| cell.try_into().unwrap_or_default())
    }
}
