//! Many sealed runs, one after the other: only what is asked for of each, and what they have in common once.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Number, Value};

use super::read::{self, Cell, Rows};
use super::{Trouble, Trust, foreign, layout, parse};
use crate::record::seal::SealedFile;
use crate::record::tree::{self, Flat, Kind};
use crate::record::{Digest, RecordError, RunRecord};

/// So many different sets of paths are looked at for one that fits. The runs of a stage have one.
const KNOWN: usize = 8;

/// Reads the files that seals vouch for.
#[derive(Debug, Default)]
pub struct ManyRuns {
    bytes: Vec<u8>,
    known: Vec<Arc<Paths>>,
}

/// Why a sealed file was not read.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    /// The operating system refused.
    #[error("cannot be read")]
    Unreadable(#[source] std::io::Error),
    /// Its bytes are not the ones that were sealed.
    #[error("is not what was sealed")]
    Changed,
    /// It is what was sealed, and no run that this program reads.
    #[error(transparent)]
    Bad(#[from] RecordError),
}

/// What a run found, without its series, its tables of examples, and what depends on time and place.
#[derive(Debug, Clone)]
pub struct SealedRun {
    /// Its numbers and texts.
    pub metrics: Metrics,
    /// Digest of the final parameters, if the stage made some.
    pub param_digest: Option<Digest>,
}

/// A run without its series and its tables of examples.
#[derive(Debug, Clone)]
pub struct SealedTree {
    /// The run.
    pub run: RunRecord,
    /// Digest of all that it found, what was left out here included.
    pub content: Digest,
}

/// The value tree of a run in little room: paths are shared between runs that have the same ones.
#[derive(Debug, Clone)]
pub struct Metrics {
    paths: Arc<Paths>,
    values: Box<[f64]>,
    /// Texts and arrays, if there are some.
    rest: Option<Box<Flat>>,
}

/// Paths and kinds of a table of numbers.
#[derive(Debug)]
struct Paths {
    width: usize,
    /// All paths, each padded to the width.
    texts: Box<[u8]>,
    kinds: Box<[Kind]>,
}

impl ManyRuns {
    /// The metrics of the run in `path`, which `sealed` vouches for.
    ///
    /// # Errors
    /// See [`NotRead`].
    pub fn metrics(&mut self, path: &Path, sealed: &SealedFile) -> Result<SealedRun, NotRead> {
        load(&mut self.bytes, path, sealed)?;
        match metrics(&self.bytes, &mut self.known) {
            Err(Trouble::Foreign(_)) => {
                let run = foreign::run(path).map_err(|trouble| trouble.about(path))?;
                Ok(SealedRun { metrics: Metrics::of(&run.metrics)?, param_digest: run.param_digest })
            }
            found => Ok(found.map_err(|trouble| trouble.about(path))?),
        }
    }

    /// The whole tree of the run in `path`, with its key and what else is in `/meta`.
    ///
    /// # Errors
    /// See [`NotRead`].
    pub fn tree(&mut self, path: &Path, sealed: &SealedFile) -> Result<SealedTree, NotRead> {
        load(&mut self.bytes, path, sealed)?;
        let found = layout::File::open(&self.bytes, Trust::Sealed).and_then(|file| read::tree(&file));
        match found {
            Err(Trouble::Foreign(_)) => {
                let run = foreign::run(path).map_err(|trouble| trouble.about(path))?;
                Ok(SealedTree { content: run.content_digest(), run })
            }
            Err(trouble) => Err(trouble.about(path).into()),
            Ok((run, content)) => Ok(SealedTree { run, content }),
        }
    }

    /// The whole run in `path`.
    ///
    /// # Errors
    /// See [`NotRead`].
    pub fn run(&mut self, path: &Path, sealed: &SealedFile) -> Result<RunRecord, NotRead> {
        load(&mut self.bytes, path, sealed)?;
        Ok(parse(path, &self.bytes, Trust::Sealed).map_err(|trouble| trouble.about(path))?)
    }
}

/// Reads the file into `bytes`, if it is the one that was sealed.
fn load(bytes: &mut Vec<u8>, path: &Path, sealed: &SealedFile) -> Result<(), NotRead> {
    let mut file = File::open(path).map_err(NotRead::Unreadable)?;
    let size = file.metadata().map_err(NotRead::Unreadable)?.len();
    if size != sealed.size_bytes {
        return Err(NotRead::Changed);
    }
    // A file of this process's own disk fits into its memory.
    bytes.resize(usize::try_from(size).map_err(|_| NotRead::Changed)?, 0);
    file.read_exact(bytes).map_err(NotRead::Unreadable)?;
    if Digest::of_bytes(bytes) == sealed.digest { Ok(()) } else { Err(NotRead::Changed) }
}

fn metrics(bytes: &[u8], known: &mut Vec<Arc<Paths>>) -> Result<SealedRun, Trouble> {
    let damaged = |what: &str| Trouble::Damaged(what.to_owned());
    let file = layout::File::open(bytes, Trust::Sealed)?;
    let root = file.header(file.root())?;
    let (mut of_metrics, mut of_texts, mut of_arrays, mut of_meta) = (None, None, None, None);
    for link in file.links(&root)? {
        match link.name {
            "metrics" => of_metrics = Some(link.address),
            "texts" => of_texts = Some(link.address),
            "arrays" => of_arrays = Some(link.address),
            "meta" => of_meta = Some(link.address),
            _ => {}
        }
    }
    let rows = |address: u64| file.header(address).and_then(|header| file.rows(&header)).and_then(Rows::of);
    let meta = file.header(of_meta.ok_or_else(|| damaged("it has no /meta: it is not a run of Seedbed"))?)?;
    let (mut versioned, mut param_digest) = (false, None);
    for link in file.links(&meta)? {
        if link.name == "metrics" {
            let rows = rows(link.address)?;
            let numbers = rows.numbers()?;
            let version = rows.cells(numbers.path).zip(rows.words(numbers.value)).find(|(path, _)| is(path, "version"));
            if let Some((_, version)) = version {
                read::check_version(f64::from_ne_bytes(version) as u64)?;
                versioned = true;
            }
        }
        if link.name == "texts" {
            let rows = rows(link.address)?;
            let (path, text) = (rows.field("path")?, rows.field("text")?);
            let digest = rows.cells(path).zip(rows.cells(text)).find(|(path, _)| is(path, "param_digest"));
            if let Some((_, digest)) = digest {
                let digest = serde_json::from_value(Value::from(read::text(digest)?));
                param_digest = Some(digest.map_err(|e| Trouble::Damaged(format!("/meta param_digest: {e}")))?);
            }
        }
    }
    if !versioned {
        return Err(damaged("/meta has no version"));
    }
    let mut rest = Flat::default();
    if let Some(address) = of_texts {
        read::texts(&rows(address)?, &mut rest)?;
    }
    if let Some(address) = of_arrays {
        for link in file.links(&file.header(address)?)? {
            read::array(&file, &link.address, &mut rest)?;
        }
    }
    let (paths, values) = match of_metrics {
        Some(address) => numbers(&rows(address)?, known)?,
        None => (Arc::new(Paths { width: 0, texts: Box::default(), kinds: Box::default() }), Box::default()),
    };
    let rest = (rest != Flat::default()).then(|| Box::new(rest));
    Ok(SealedRun { metrics: Metrics { paths, values, rest }, param_digest })
}

/// True if a padded text is `text`.
fn is(padded: &[u8], text: &str) -> bool {
    padded.strip_prefix(text.as_bytes()).is_some_and(|rest| rest.first().is_none_or(|b| *b == 0))
}

fn numbers(rows: &Rows<'_>, known: &mut Vec<Arc<Paths>>) -> Result<(Arc<Paths>, Box<[f64]>), Trouble> {
    let numbers = rows.numbers()?;
    let Cell::Text(width) = numbers.path.cell else { return Err(Trouble::Foreign("datatype")) };
    let values = rows.words(numbers.value).map(f64::from_ne_bytes).collect();
    let same = |paths: &Paths| {
        paths.width == width
            && paths.kinds.len() == rows.n
            && (width == 0 || paths.texts.chunks_exact(width).zip(rows.cells(numbers.path)).all(|(a, b)| a == b))
            && paths.kinds.iter().zip(rows.cells(numbers.kind)).all(|(a, b)| *a as u8 == b[0])
    };
    if let Some(found) = known.iter().position(|paths| same(paths)) {
        // The next run most likely has the same.
        known.swap(0, found);
        return Ok((known[0].clone(), values));
    }
    let mut kinds = Vec::with_capacity(rows.n);
    let mut texts = Vec::with_capacity(rows.n * width);
    for (path, kind) in rows.cells(numbers.path).zip(rows.cells(numbers.kind)) {
        read::text(path)?;
        texts.extend_from_slice(path);
        let unknown = || Trouble::Damaged(format!("/metrics has a row of unknown kind {}", kind[0]));
        kinds.push(Kind::from_code(kind[0]).ok_or_else(unknown)?);
    }
    let paths = Arc::new(Paths { width, texts: texts.into(), kinds: kinds.into() });
    known.truncate(KNOWN - 1);
    known.insert(0, paths.clone());
    Ok((paths, values))
}

impl Paths {
    fn iter(&self) -> impl Iterator<Item = (&[u8], Kind)> {
        let path = |i: usize| &self.texts[i * self.width..(i + 1) * self.width];
        self.kinds.iter().enumerate().map(move |(i, kind)| (path(i), *kind))
    }
}

impl Metrics {
    /// Of a tree.
    ///
    /// # Errors
    /// A value that `run.h5` cannot hold.
    pub fn of(tree: &Value) -> Result<Self, RecordError> {
        let Flat { numbers, texts, arrays } = tree::flatten(tree).map_err(RecordError::Value)?;
        let width = numbers.iter().map(|(path, ..)| path.len()).max().unwrap_or(0);
        let mut padded = Vec::with_capacity(numbers.len() * width);
        for (i, (path, ..)) in numbers.iter().enumerate() {
            padded.extend_from_slice(path.as_bytes());
            padded.resize((i + 1) * width, 0);
        }
        let kinds = numbers.iter().map(|(.., kind)| *kind).collect();
        let paths = Arc::new(Paths { width, texts: padded.into(), kinds });
        let rest = Flat { numbers: Vec::new(), texts, arrays };
        let rest = (rest != Flat::default()).then(|| Box::new(rest));
        Ok(Self { paths, values: numbers.iter().map(|(_, value, _)| *value).collect(), rest })
    }

    /// The value tree.
    ///
    /// # Errors
    /// The rows are those of no tree.
    pub fn tree(&self) -> Result<Value, String> {
        let mut flat = self.rest.as_deref().cloned().unwrap_or_default();
        for ((path, kind), value) in self.paths.iter().zip(&self.values) {
            let path = read::text(path).map_err(|_| "a path is not UTF-8".to_owned())?;
            flat.numbers.push((path, *value, kind));
        }
        tree::unflatten(&flat)
    }

    /// The value at a path of the flat form (`results[1].loss`), if it is a number, a truth value, a null, or an empty
    /// object or array. Of anything else, also of what is not there, the tree knows.
    pub fn leaf(&self, path: &str) -> Option<Value> {
        let at = self.paths.iter().position(|(padded, _)| is(padded, path))?;
        leaf_value(self.paths.kinds[at], self.values[at])
    }

    /// True if both have the same paths, in the same place of memory.
    pub fn shares_paths_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.paths, &other.paths)
    }
}

/// As [`tree::unflatten`] does.
fn leaf_value(kind: Kind, value: f64) -> Option<Value> {
    match kind {
        Kind::Number => Number::from_f64(value).map(Value::Number),
        Kind::Integer => Some(Value::from(value as i64)),
        Kind::Bool => Some(Value::Bool(value != 0.0)),
        Kind::Null => Some(Value::Null),
        Kind::Object => Some(Value::Object(serde_json::Map::new())),
        Kind::Array => Some(Value::Array(Vec::new())),
    }
}
