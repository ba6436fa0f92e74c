//! Many sealed runs, one after the other: only what is asked for of each, and what they have in common once.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Number, Value};

use super::read::{self, Cell, Rows};
use super::{RUN_FILE, Trouble, Trust, foreign, layout, parse};
use crate::record::files::Folder;
use crate::record::seal::{SealedFile, Vouched};
use crate::record::tree::{self, Flat, Kind};
use crate::record::{Digest, RecordError, RunRecord, Seal};

/// So many different sets of paths are looked at for one that fits. The runs of a stage have one.
const KNOWN: usize = 8;

/// Reads the files that seals vouch for, and what of the seals is needed for that.
#[derive(Debug, Default)]
pub struct ManyRuns {
    folder: Option<Folder>,
    bytes: Vec<u8>,
    seal: Vec<u8>,
    known: Vec<Arc<Paths>>,
}

/// So much of a file is read at first.
const FIRST_BYTES: usize = 128 << 10;

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

/// The two trees of a run, the second to be laid over the first.
#[derive(Debug, Clone)]
pub struct Layers {
    /// What the run found.
    pub metrics: Metrics,
    /// Times, rates, hosts.
    pub environment: Metrics,
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
#[derive(Debug, Default)]
struct Paths {
    width: usize,
    /// All paths, each padded to the width.
    texts: Box<[u8]>,
    kinds: Box<[Kind]>,
}

impl ManyRuns {
    /// For runs most of which lie below a directory.
    pub fn below(dir: &Path) -> Self {
        Self { folder: Folder::open(dir).ok(), ..Self::default() }
    }

    /// What the seal in `run_dir` says of its `run.h5`: `None` if there is no seal or it was withdrawn.
    ///
    /// # Errors
    /// As [`Seal::read`].
    pub fn vouched(&mut self, run_dir: &Path) -> Result<Option<Vouched>, RecordError> {
        match &self.folder {
            Some(folder) => Vouched::read(folder, run_dir, RUN_FILE, &mut self.seal),
            None => Ok(Seal::read(run_dir)?.map(|seal| Vouched::of(&seal, RUN_FILE))),
        }
    }

    /// The metrics of the run in `path`, which `sealed` vouches for.
    ///
    /// # Errors
    /// See [`NotRead`].
    pub fn metrics(&mut self, path: &Path, sealed: &SealedFile) -> Result<SealedRun, NotRead> {
        self.load(path, sealed)?;
        match metrics(&self.bytes, &mut self.known) {
            Err(Trouble::Foreign(_)) => {
                let run = foreign::run(path).map_err(|trouble| trouble.about(path))?;
                Ok(SealedRun { metrics: Metrics::of(&run.metrics)?, param_digest: run.param_digest })
            }
            found => Ok(found.map_err(|trouble| trouble.about(path))?),
        }
    }

    /// The metrics of the run in `path`, and what of its tree depends on time and place and is laid over them.
    ///
    /// # Errors
    /// See [`NotRead`].
    pub fn layers(&mut self, path: &Path, sealed: &SealedFile) -> Result<Layers, NotRead> {
        self.load(path, sealed)?;
        match layers(&self.bytes, &mut self.known) {
            Err(Trouble::Foreign(_)) => {
                let run = foreign::run(path).map_err(|trouble| trouble.about(path))?;
                Ok(Layers { metrics: Metrics::of(&run.metrics)?, environment: Metrics::of(&run.environment)? })
            }
            found => Ok(found.map_err(|trouble| trouble.about(path))?),
        }
    }

    /// The whole tree of the run in `path`, with its key and what else is in `/meta`.
    ///
    /// # Errors
    /// See [`NotRead`].
    pub fn tree(&mut self, path: &Path, sealed: &SealedFile) -> Result<SealedTree, NotRead> {
        self.load(path, sealed)?;
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
        self.load(path, sealed)?;
        Ok(parse(path, &self.bytes, Trust::Sealed).map_err(|trouble| trouble.about(path))?)
    }

    /// Reads the file, if it is the one that was sealed.
    fn load(&mut self, path: &Path, sealed: &SealedFile) -> Result<(), NotRead> {
        let mut file = match &self.folder {
            Some(folder) => folder.file(path),
            None => File::open(path),
        }
        .map_err(NotRead::Unreadable)?;
        // Room for one byte more than there should be: a longer file is another one. It is taken as bytes come, so that a
        // seal that names a huge file costs nothing.
        let most =
            usize::try_from(sealed.size_bytes).ok().and_then(|size| size.checked_add(1)).ok_or(NotRead::Changed)?;
        let mut filled = 0;
        loop {
            if filled == self.bytes.len() {
                self.bytes.resize(most.min((2 * filled).max(FIRST_BYTES)), 0);
            }
            let room = self.bytes.len().min(most);
            match file.read(&mut self.bytes[filled..room]) {
                Ok(n) => {
                    filled += n;
                    // The digest says whether it was all.
                    if n == 0 || filled + 1 >= most {
                        break;
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(NotRead::Unreadable(e)),
            }
        }
        self.bytes.truncate(filled);
        let same = self.bytes.len() as u64 == sealed.size_bytes && Digest::of_bytes(&self.bytes) == sealed.digest;
        if same { Ok(()) } else { Err(NotRead::Changed) }
    }
}

/// Where the parts of a run stand.
struct Parts<'b> {
    file: layout::File<'b>,
    links: Vec<layout::Link<'b>>,
}

impl<'b> Parts<'b> {
    fn open(bytes: &'b [u8]) -> Result<Self, Trouble> {
        let file = layout::File::open(bytes, Trust::Sealed)?;
        let links = file.links(&file.header(file.root())?)?;
        Ok(Self { file, links })
    }

    fn rows(&self, address: u64) -> Result<Rows<'b>, Trouble> {
        Rows::of(self.file.rows(&self.file.header(address)?)?)
    }

    fn group(&self, name: &str) -> Result<Option<Vec<layout::Link<'b>>>, Trouble> {
        let Some(link) = find(&self.links, name) else { return Ok(None) };
        self.file.links(&self.file.header(link)?).map(Some)
    }

    /// Checks the version and gives the digest of the parameters.
    fn meta(&self) -> Result<Option<Digest>, Trouble> {
        let damaged = |what: &str| Trouble::Damaged(what.to_owned());
        let meta = self.group("meta")?.ok_or_else(|| damaged("it has no /meta: it is not a run of Seedbed"))?;
        let rows = self.rows(find(&meta, "metrics").ok_or_else(|| damaged("/meta has no version"))?)?;
        let numbers = rows.numbers()?;
        let mut numbered = rows.cells(numbers.path).zip(rows.words(numbers.value));
        let version = numbered.find(|(path, _)| is(path, "version"));
        let (_, version) = version.ok_or_else(|| damaged("/meta has no version"))?;
        read::check_version(f64::from_ne_bytes(version) as u64)?;
        let Some(texts) = find(&meta, "texts") else { return Ok(None) };
        let rows = self.rows(texts)?;
        let (path, text) = (rows.field("path")?, rows.field("text")?);
        let digest = rows.cells(path).zip(rows.cells(text)).find(|(path, _)| is(path, "param_digest"));
        let Some((_, digest)) = digest else { return Ok(None) };
        let digest = serde_json::from_value(Value::from(read::text(digest)?));
        digest.map(Some).map_err(|e| Trouble::Damaged(format!("/meta param_digest: {e}")))
    }

    /// The tree of a group.
    fn tree(&self, group: &[layout::Link<'b>], known: &mut Vec<Arc<Paths>>) -> Result<Metrics, Trouble> {
        let mut rest = Flat::default();
        if let Some(address) = find(group, "texts") {
            read::texts(&self.rows(address)?, &mut rest)?;
        }
        if let Some(address) = find(group, "arrays") {
            for link in self.file.links(&self.file.header(address)?)? {
                read::array(&self.file, &link.address, &mut rest)?;
            }
        }
        let (paths, values) = match find(group, "metrics") {
            Some(address) => numbers(&self.rows(address)?, known)?,
            None => (Arc::new(Paths::default()), Box::default()),
        };
        let rest = (rest != Flat::default()).then(|| Box::new(rest));
        Ok(Metrics { paths, values, rest })
    }
}

fn find(links: &[layout::Link<'_>], name: &str) -> Option<u64> {
    links.iter().find(|link| link.name == name).map(|link| link.address)
}

fn metrics(bytes: &[u8], known: &mut Vec<Arc<Paths>>) -> Result<SealedRun, Trouble> {
    let parts = Parts::open(bytes)?;
    let param_digest = parts.meta()?;
    Ok(SealedRun { metrics: parts.tree(&parts.links, known)?, param_digest })
}

fn layers(bytes: &[u8], known: &mut Vec<Arc<Paths>>) -> Result<Layers, Trouble> {
    let parts = Parts::open(bytes)?;
    parts.meta()?;
    let metrics = parts.tree(&parts.links, known)?;
    let environment = parts.group("environment")?.unwrap_or_default();
    Ok(Layers { metrics, environment: parts.tree(&environment, known)? })
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
    fn get(&self, i: usize) -> Option<&[u8]> {
        (i < self.kinds.len()).then(|| &self.texts[i * self.width..(i + 1) * self.width])
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], Kind)> {
        self.kinds.iter().enumerate().filter_map(|(i, kind)| Some((self.get(i)?, *kind)))
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

    /// The value at a path of the flat form (`results[1].loss`), if it is a number, a truth value, a null, a text, or an
    /// empty object or array. Of anything else, also of what is not there, the tree knows.
    pub fn leaf(&self, path: &str) -> Option<Value> {
        self.leaf_near(path, &mut 0)
    }

    /// As [`Self::leaf`]. `near` is the row where the path was found in a run before, and is where it was found in this one.
    pub fn leaf_near(&self, path: &str, near: &mut usize) -> Option<Value> {
        let there = self.paths.get(*near).is_some_and(|padded| is(padded, path));
        let found = if there { Some(*near) } else { self.paths.iter().position(|(padded, _)| is(padded, path)) };
        if let Some(at) = found {
            *near = at;
            return leaf_value(self.paths.kinds[at], self.values[at]);
        }
        let texts = &self.rest.as_ref()?.texts;
        texts.iter().find(|(own, _)| own == path).map(|(_, text)| Value::from(text.as_str()))
    }

    /// True if something stands at a path, above it or below it.
    pub fn touches(&self, path: &str) -> bool {
        let ends = |rest: &[u8]| rest.first().is_none_or(|b| matches!(b, 0 | b'.' | b'['));
        let meets = |own: &[u8]| {
            let end = own.iter().position(|b| *b == 0).unwrap_or(own.len());
            let (own, path) = (&own[..end], path.as_bytes());
            own.strip_prefix(path).is_some_and(ends) || path.strip_prefix(own).is_some_and(ends)
        };
        // An empty path is the root: it is above everything.
        path.is_empty()
            || self.paths.iter().any(|(own, _)| meets(own))
            || self.rest.as_ref().is_some_and(|rest| {
                rest.texts.iter().any(|(own, _)| meets(own.as_bytes()))
                    || rest.arrays.iter().any(|(own, _)| meets(own.as_bytes()))
            })
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
