//! `tokens.bin`, `docs.idx` and `tokens.json`: a tokenised split on disk, memory-mapped.
//!
//! `tokens.bin` holds ids as u16 or u32, little-endian, document after document, each ended by the
//! end-of-text id. `docs.idx` holds the u64 offsets, in tokens, at which documents start, and one more for
//! the end. `tokens.json` is written last and says everything else; what it does not promise is never read.
//! Opening checks version, sizes, offsets, ids and all digests, so a damaged file is refused by name.
//!
//! Supervised items have a `prompts.idx` beside them: how many of each document's first ids are its prompt. Items that
//! a training reads by itself are held in memory in the same form.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::compute::{ComputeError, Result};
use crate::record::{Digest, RecordError, files};

/// Format version of `tokens.json`. Version 1 knew no prompts and had no digest of itself; it is read.
pub const TOKENS_VERSION: u32 = 2;

/// Ids with a meaning of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialIds {
    /// Ends every document.
    pub eos: u32,
    /// Starts a text, where the tokenizer has such an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos: Option<u32>,
    /// Fills rows that are too short, where the tokenizer has such an id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad: Option<u32>,
}

impl SpecialIds {
    /// The id that fills short rows: padding if there is one, else end of text.
    pub fn filler(&self) -> u32 {
        self.pad.unwrap_or(self.eos)
    }

    /// All of them, sorted, each once.
    pub fn all(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = [Some(self.eos), self.bos, self.pad].into_iter().flatten().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Where the text came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceDigest {
    /// `generated`, `handbook`, or a file name relative to the source directory.
    pub name: String,
    /// Bytes of text.
    pub bytes: u64,
    /// SHA-256 of the text.
    pub digest: Digest,
}

/// `tokens.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensInfo {
    /// [`TOKENS_VERSION`].
    pub version: u32,
    /// `train`, `val` or `test`.
    pub split: String,
    /// `u16` or `u32`.
    pub dtype: String,
    /// Ids in `tokens.bin`.
    pub tokens: u64,
    /// Documents.
    pub documents: u64,
    /// Ids are below this number.
    pub vocab_size: u32,
    /// SHA-256 of `tokenizer.json`.
    pub tokenizer: Digest,
    /// Ids with a meaning of their own.
    pub special: SpecialIds,
    /// The text that went in.
    pub sources: Vec<SourceDigest>,
    /// SHA-256 of `tokens.bin`.
    pub tokens_digest: Digest,
    /// SHA-256 of `docs.idx`.
    pub docs_digest: Digest,
    /// SHA-256 of `prompts.idx`, where documents have prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts_digest: Option<Digest>,
    /// SHA-256 of everything else in this file, as canonical JSON; absent in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

impl TokensInfo {
    /// What [`Self::digest`] must be.
    fn own_digest(&self) -> Digest {
        // Texts, numbers and lists of them always serialize.
        Digest::of_json(&serde_json::to_value(Self { digest: None, ..self.clone() }).unwrap_or_default())
    }
}

/// What a writer must be told.
#[derive(Debug, Clone)]
pub struct TokensHeader {
    /// `train`, `val` or `test`.
    pub split: String,
    /// Ids are below this number.
    pub vocab_size: u32,
    /// SHA-256 of `tokenizer.json`.
    pub tokenizer: Digest,
    /// Ids with a meaning of their own.
    pub special: SpecialIds,
    /// The text that goes in.
    pub sources: Vec<SourceDigest>,
}

/// A document with a prompt: the first `prompt` ids ask, the others and the end of the text answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Prompt and response, without an end-of-text id.
    pub ids: Vec<u32>,
    /// Ids of the prompt; at most all.
    pub prompt: usize,
}

/// Writes documents of ids (without their end-of-text id, which is added here) into `dir`.
///
/// # Errors
/// An id does not fit the vocabulary, there is no document, `documents` yields an error, or the disk is full.
/// `tokens.json` is there only when everything is.
pub fn write(
    dir: &Path,
    header: &TokensHeader,
    documents: impl IntoIterator<Item = Result<Vec<u32>>>,
) -> Result<TokensInfo> {
    let plain = documents.into_iter().map(|ids| ids.map(|ids| Item { ids, prompt: 0 }));
    write_items(dir, header, plain, Prompts::Absent)
}

/// Writes supervised items as [`write`] does documents, and `prompts.idx` beside them.
///
/// # Errors
/// As [`write`]; a prompt is longer than its item.
pub fn write_supervised(
    dir: &Path,
    header: &TokensHeader,
    items: impl IntoIterator<Item = Result<Item>>,
) -> Result<TokensInfo> {
    write_items(dir, header, items, Prompts::Stored)
}

#[derive(PartialEq)]
enum Prompts {
    Absent,
    Stored,
}

/// Items on their way to the bytes of a split.
struct Packing<'a> {
    header: &'a TokensHeader,
    wide: bool,
    offsets: Vec<u64>,
    prompts: Vec<u8>,
    hasher: Sha256,
}

impl<'a> Packing<'a> {
    fn new(header: &'a TokensHeader) -> Self {
        let wide = header.vocab_size > 1 << 16;
        Self { header, wide, offsets: vec![0], prompts: Vec::new(), hasher: Sha256::new() }
    }

    /// Puts an item and its end-of-text id behind `bytes`.
    fn add(&mut self, Item { ids, prompt }: &Item, bytes: &mut Vec<u8>) -> Result<()> {
        let number = self.offsets.len() - 1;
        match u32::try_from(*prompt) {
            Ok(n) if *prompt <= ids.len() => self.prompts.extend_from_slice(&n.to_le_bytes()),
            _ => {
                return Err(ComputeError::Config(format!(
                    "document {number} has {} ids and a prompt of {prompt}: give it a prompt that is its beginning",
                    ids.len()
                )));
            }
        }
        let first = bytes.len();
        for id in ids.iter().copied().chain([self.header.special.eos]) {
            if id >= self.header.vocab_size {
                return Err(ComputeError::Config(format!(
                    "the tokenizer gives id {id}, but the model has {} embeddings: use the tokenizer that belongs to the model",
                    self.header.vocab_size
                )));
            }
            if self.wide {
                bytes.extend_from_slice(&id.to_le_bytes());
            } else {
                // Below 2^16, as checked above.
                bytes.extend_from_slice(&(id as u16).to_le_bytes());
            }
        }
        self.hasher.update(&bytes[first..]);
        self.offsets.push(self.offsets[number] + ids.len() as u64 + 1);
        Ok(())
    }

    /// What `tokens.json` says of them; `docs` is `docs.idx`.
    fn info(self, stored: &Prompts, docs: &[u8]) -> TokensInfo {
        let header = self.header;
        let mut info = TokensInfo {
            version: TOKENS_VERSION,
            split: header.split.clone(),
            dtype: if self.wide { "u32" } else { "u16" }.to_owned(),
            tokens: self.offsets.last().copied().unwrap_or(0),
            documents: self.offsets.len() as u64 - 1,
            vocab_size: header.vocab_size,
            tokenizer: header.tokenizer.clone(),
            special: header.special,
            sources: header.sources.clone(),
            tokens_digest: Digest::finish(self.hasher),
            docs_digest: Digest::of_bytes(docs),
            prompts_digest: (*stored == Prompts::Stored).then(|| Digest::of_bytes(&self.prompts)),
            digest: None,
        };
        info.digest = Some(info.own_digest());
        info
    }
}

fn write_items(
    dir: &Path,
    header: &TokensHeader,
    items: impl IntoIterator<Item = Result<Item>>,
    stored: Prompts,
) -> Result<TokensInfo> {
    let mut packing = Packing::new(header);
    let mut failure: Option<ComputeError> = None;
    let bin = dir.join("tokens.bin");
    let written = files::write_atomic_with(&bin, |file| {
        let mut out = BufWriter::new(file);
        let mut bytes = Vec::new();
        for item in items {
            bytes.clear();
            if let Err(e) = item.and_then(|item| packing.add(&item, &mut bytes)) {
                failure = Some(e);
                return Err(std::io::Error::other("a document cannot be stored"));
            }
            out.write_all(&bytes)?;
        }
        out.flush()
    });
    if let Some(e) = failure {
        return Err(e);
    }
    written?;
    if packing.offsets.len() == 1 {
        return Err(ComputeError::missing(dir, "would hold no document: give the study a corpus with text in it"));
    }
    let index: Vec<u8> = packing.offsets.iter().flat_map(|o| o.to_le_bytes()).collect();
    files::write_atomic(&dir.join("docs.idx"), &index)?;
    if stored == Prompts::Stored {
        files::write_atomic(&dir.join("prompts.idx"), &packing.prompts)?;
    }
    let info = packing.info(&stored, &index);
    files::write_json(&dir.join("tokens.json"), &info)?;
    Ok(info)
}

/// The ids of a split: in a file, or in memory.
#[derive(Debug)]
enum Ids {
    Mapped(Mmap),
    Held(Vec<u8>),
}

impl std::ops::Deref for Ids {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
        }
    }
}

/// A tokenised split, open for reading.
#[derive(Debug)]
pub struct Tokens {
    dir: PathBuf,
    info: TokensInfo,
    offsets: Vec<u64>,
    /// Ids of each document's prompt, where they have one.
    prompts: Option<Vec<u32>>,
    map: Ids,
    wide: bool,
}

impl Tokens {
    /// Supervised items in memory, as if [`write_supervised`] had written them and [`Self::open`] had opened them.
    /// `from` is where they were read, for messages.
    ///
    /// # Errors
    /// As [`write_supervised`].
    pub fn of_items(from: &Path, header: &TokensHeader, items: impl IntoIterator<Item = Result<Item>>) -> Result<Self> {
        let (mut packing, mut bytes) = (Packing::new(header), Vec::new());
        for item in items {
            packing.add(&item?, &mut bytes)?;
        }
        if packing.offsets.len() == 1 {
            return Err(ComputeError::missing(from, "holds no item for this split: give it more lines"));
        }
        let offsets = packing.offsets.clone();
        let prompts = packing.prompts.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let wide = packing.wide;
        let index: Vec<u8> = offsets.iter().flat_map(|o| o.to_le_bytes()).collect();
        let info = packing.info(&Prompts::Stored, &index);
        let (dir, map) = (from.to_path_buf(), Ids::Held(bytes));
        Ok(Self { dir, info, offsets, prompts: Some(prompts), map, wide })
    }

    /// Opens `dir` and checks everything: version, type, sizes, offsets, digests, ids.
    ///
    /// # Errors
    /// A file is not there, is newer, or is not what `tokens.json` says.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokens.json");
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let found: Versioned = files::read_json(&path)?;
        if found.version > TOKENS_VERSION {
            return Err(RecordError::Newer { path, found: found.version, known: TOKENS_VERSION }.into());
        }
        let info: TokensInfo = files::read_json(&path)?;
        if info.version == 0 || (info.version > 1 && info.digest.is_none()) {
            return Err(damaged(&path, format!("it says version {} and is not like one", info.version)));
        }
        if info.digest.as_ref().is_some_and(|digest| *digest != info.own_digest()) {
            return Err(damaged(&path, "its content does not have the digest that it says".to_owned()));
        }
        if info.special.all().iter().any(|&id| id >= info.vocab_size) {
            return Err(damaged(&path, format!("a special id is not below its {} ids", info.vocab_size)));
        }
        let wide = match info.dtype.as_str() {
            "u16" => false,
            "u32" => true,
            other => return Err(damaged(&path, format!("type {other:?} is neither u16 nor u32"))),
        };
        let docs = dir.join("docs.idx");
        let index = std::fs::read(&docs).map_err(RecordError::io("read", &docs))?;
        let expected = info.documents.checked_add(1).and_then(|n| n.checked_mul(8));
        if expected != Some(index.len() as u64) {
            return Err(damaged(&docs, format!("{} bytes do not hold {} documents", index.len(), info.documents)));
        }
        if Digest::of_bytes(&index) != info.docs_digest {
            return Err(damaged(&docs, "its digest is not the one in tokens.json".to_owned()));
        }
        let offsets: Vec<u64> = index
            .chunks_exact(8)
            .map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
            .collect();
        let ordered = offsets.first() == Some(&0)
            && offsets.last() == Some(&info.tokens)
            && offsets.windows(2).all(|w| w[0] < w[1]);
        if !ordered {
            return Err(damaged(&docs, "its offsets are not increasing from 0 to the number of tokens".to_owned()));
        }
        let prompts = match &info.prompts_digest {
            Some(digest) => Some(read_prompts(&dir.join("prompts.idx"), digest, &offsets)?),
            None => None,
        };
        let bin = dir.join("tokens.bin");
        let file = std::fs::File::open(&bin).map_err(RecordError::io("read", &bin))?;
        // SAFETY: the file is written once by rename and never changed in place by this program.
        let map = unsafe { Mmap::map(&file) }.map_err(RecordError::io("map", &bin))?;
        let width = if wide { 4 } else { 2 };
        if info.tokens.checked_mul(width) != Some(map.len() as u64) {
            return Err(damaged(&bin, format!("{} bytes do not hold {} ids of {width} bytes", map.len(), info.tokens)));
        }
        if Digest::of_bytes(&map) != info.tokens_digest {
            return Err(damaged(&bin, "its digest is not the one in tokens.json".to_owned()));
        }
        let tokens = Self { dir: dir.to_path_buf(), info, offsets, prompts, map: Ids::Mapped(map), wide };
        tokens.check_ids(&bin)?;
        Ok(tokens)
    }

    /// Every id is in the vocabulary, and every document ends as one.
    fn check_ids(&self, bin: &Path) -> Result<()> {
        let (vocab_size, eos) = (self.info.vocab_size, self.info.special.eos);
        for start in (0..self.len()).step_by(BLOCK as usize) {
            if let Some(id) = self.ids(start..start + BLOCK).into_iter().find(|&id| id >= vocab_size) {
                return Err(damaged(bin, format!("id {id} is not below the {vocab_size} that tokens.json says")));
            }
        }
        match (0..self.documents()).find(|&i| self.ids(self.offsets[i + 1] - 1..self.offsets[i + 1]) != [eos]) {
            Some(i) => Err(damaged(bin, format!("document {i} does not end with the end-of-text id {eos}"))),
            None => Ok(()),
        }
    }

    /// What `tokens.json` says.
    pub fn info(&self) -> &TokensInfo {
        &self.info
    }

    /// Number of ids.
    pub fn len(&self) -> u64 {
        self.info.tokens
    }

    /// True if there is no id; a file that opens has at least one.
    pub fn is_empty(&self) -> bool {
        self.info.tokens == 0
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Range of document `i` in tokens, its end-of-text id included; empty beyond the last.
    pub fn document(&self, i: usize) -> std::ops::Range<u64> {
        match (self.offsets.get(i), self.offsets.get(i + 1)) {
            (Some(&start), Some(&end)) => start..end,
            _ => self.info.tokens..self.info.tokens,
        }
    }

    /// Whether every document says which of its ids are its prompt.
    pub fn has_prompts(&self) -> bool {
        self.prompts.is_some()
    }

    /// Ids of the prompt of document `i`; 0 where documents have none.
    pub fn prompt(&self, i: usize) -> u64 {
        self.prompts.as_ref().and_then(|prompts| prompts.get(i)).map_or(0, |&n| u64::from(n))
    }

    /// The document that holds token `at`.
    pub fn document_of(&self, at: u64) -> usize {
        self.offsets.partition_point(|&o| o <= at).saturating_sub(1).min(self.documents() - 1)
    }

    /// Ids of `range`, cut at the end of the file.
    pub fn ids(&self, range: std::ops::Range<u64>) -> Vec<u32> {
        let end = range.end.min(self.info.tokens) as usize;
        let start = (range.start as usize).min(end);
        if self.wide {
            let bytes = self.map[start * 4..end * 4].chunks_exact(4);
            bytes.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        } else {
            let bytes = self.map[start * 2..end * 2].chunks_exact(2);
            bytes.map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect()
        }
    }

    /// How often each id occurs; the length is the vocabulary.
    pub fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0u64; self.info.vocab_size as usize];
        // In blocks, so that a large split is never in memory at once.
        for start in (0..self.info.tokens).step_by(BLOCK as usize) {
            for id in self.ids(start..start + BLOCK) {
                if let Some(n) = counts.get_mut(id as usize) {
                    *n += 1;
                }
            }
        }
        counts
    }

    /// Refuses a model with fewer embeddings than the tokens need.
    ///
    /// # Errors
    /// The vocabulary of the tokens is larger than `model_vocab`.
    pub fn check_model(&self, model_vocab: i64) -> Result<()> {
        if i64::from(self.info.vocab_size) > model_vocab {
            return Err(ComputeError::input(
                &self.dir,
                format!(
                    "was made with {} ids, but the model has {model_vocab} embeddings: run the setup stage again with the model's own tokenizer",
                    self.info.vocab_size
                ),
            ));
        }
        Ok(())
    }
}

/// Ids that are looked at in one go, so that a large split is never in memory at once.
const BLOCK: u64 = 1 << 20;

fn read_prompts(path: &Path, digest: &Digest, offsets: &[u64]) -> Result<Vec<u32>> {
    let bytes = std::fs::read(path).map_err(RecordError::io("read", path))?;
    if bytes.len() != (offsets.len() - 1) * 4 {
        return Err(damaged(path, format!("{} bytes do not hold {} prompts", bytes.len(), offsets.len() - 1)));
    }
    if Digest::of_bytes(&bytes) != *digest {
        return Err(damaged(path, "its digest is not the one in tokens.json".to_owned()));
    }
    let prompts: Vec<u32> = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    // The end of the text is never part of a prompt.
    match prompts.iter().zip(offsets.windows(2)).position(|(&prompt, d)| u64::from(prompt) >= d[1] - d[0]) {
        Some(i) => Err(damaged(path, format!("the prompt of document {i} is longer than the document"))),
        None => Ok(prompts),
    }
}

fn damaged(path: &Path, reason: String) -> ComputeError {
    RecordError::damaged(path, format!("{reason}; run the setup stage again with `run_all --stages setup`")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(vocab_size: u32) -> TokensHeader {
        TokensHeader {
            split: "train".into(),
            vocab_size,
            tokenizer: Digest::of_bytes(b"t"),
            special: SpecialIds { eos: 0, bos: None, pad: Some(1) },
            sources: Vec::new(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for vocab_size in [512, 70_000] {
            let dir = tempfile::tempdir().unwrap();
            let last = vocab_size - 1;
            let documents = vec![Ok(vec![5, last]), Ok(vec![]), Ok(vec![7])];
            let info = write(dir.path(), &header(vocab_size), documents).unwrap();
            assert_eq!(info.dtype, if vocab_size == 512 { "u16" } else { "u32" });
            let tokens = Tokens::open(dir.path()).unwrap();
            assert_eq!((tokens.len(), tokens.documents()), (6, 3));
            assert_eq!(tokens.ids(0..6), [5, last, 0, 0, 7, 0]);
            assert_eq!(tokens.ids(4..99), [7, 0]);
            assert_eq!(tokens.document(1), 3..4);
            let owners: Vec<usize> = (0..6).map(|i| tokens.document_of(i)).collect();
            assert_eq!(owners, [0, 0, 0, 1, 2, 2]);
            assert_eq!(tokens.counts()[0], 3);
            assert!(tokens.check_model(i64::from(vocab_size)).is_ok());
            assert!(tokens.check_model(i64::from(vocab_size) - 1).is_err());
        }
    }

    #[test]
    fn prompts_are_kept_with_their_items() {
        let dir = tempfile::tempdir().unwrap();
        let item = |ids: &[u32], prompt| Ok(Item { ids: ids.to_vec(), prompt });
        let items = [item(&[5, 6, 7], 2), item(&[], 0), item(&[8], 1)];
        let info = write_supervised(dir.path(), &header(512), items).unwrap();
        assert_eq!(std::fs::read(dir.path().join("prompts.idx")).unwrap(), [2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        let tokens = Tokens::open(dir.path()).unwrap();
        assert!(tokens.has_prompts() && *tokens.info() == info);
        assert_eq!([0, 1, 2, 3].map(|i| tokens.prompt(i)), [2, 0, 1, 0]);
        assert_eq!(tokens.ids(0..9), [5, 6, 7, 0, 0, 8, 0]);
        // In memory they are the same.
        let items = [item(&[5, 6, 7], 2), item(&[], 0), item(&[8], 1)];
        let held = Tokens::of_items(Path::new("x.jsonl"), &header(512), items).unwrap();
        assert!(*held.info() == info && held.ids(0..9) == tokens.ids(0..9));
        assert_eq!([0, 1, 2].map(|i| (held.prompt(i), held.document(i))), [(2, 0..4), (0, 4..5), (1, 5..7)]);
        let error = Tokens::of_items(Path::new("x.jsonl"), &header(512), []).unwrap_err().to_string();
        assert!(error.contains("x.jsonl"), "{error}");
        let error = write_supervised(dir.path(), &header(512), [item(&[5], 2)]).unwrap_err().to_string();
        assert!(error.contains("document 0 has 1 ids and a prompt of 2"), "{error}");
    }

    #[test]
    fn an_id_outside_the_vocabulary_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(dir.path(), &header(512), vec![Ok(vec![512])]).unwrap_err();
        assert!(error.to_string().contains("id 512"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(write(dir.path(), &header(512), Vec::new()).is_err(), "no document");
    }

    #[test]
    fn every_kind_of_damage_is_refused_by_name() {
        fn changed(name: &'static str, how: impl Fn(&mut Vec<u8>) + 'static) -> (&'static str, Box<dyn Fn(&Path)>) {
            let spoil = move |dir: &Path| {
                let mut bytes = std::fs::read(dir.join(name)).unwrap();
                how(&mut bytes);
                std::fs::write(dir.join(name), bytes).unwrap();
            };
            (name, Box::new(spoil))
        }
        /// Changes `tokens.json` and gives it the digest of what it says now.
        fn lied(how: impl Fn(&mut TokensInfo) + 'static) -> impl Fn(&mut Vec<u8>) {
            move |bytes| {
                let mut info: TokensInfo = serde_json::from_slice(bytes).unwrap();
                how(&mut info);
                info.digest = Some(info.own_digest());
                *bytes = serde_json::to_vec(&info).unwrap();
            }
        }
        let damage = [
            changed("tokens.bin", |b| b[0] ^= 1),
            changed("tokens.bin", |b| b.truncate(b.len() / 2)),
            changed("docs.idx", |b| *b = vec![0; 8]),
            changed("docs.idx", |b| b[8] ^= 1),
            changed("prompts.idx", |b| b[0] ^= 1),
            changed("prompts.idx", |b| b.truncate(3)),
            changed("tokens.json", |b| *b = b"{\"version\": 2".to_vec()),
            changed("tokens.json", |b| b.retain(|&c| c != b'm')),
            changed("tokens.json", |b| *b = String::from_utf8_lossy(b).replace("train", "test").into_bytes()),
            changed("tokens.json", lied(|info| info.dtype = "u8".into())),
            changed("tokens.json", lied(|info| info.special.eos = 512)),
        ];
        for (i, (name, spoil)) in damage.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            write_supervised(dir.path(), &header(512), [Ok(Item { ids: vec![5, 6, 7], prompt: 1 })]).unwrap();
            Tokens::open(dir.path()).unwrap();
            spoil(dir.path());
            let error = Tokens::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(name), "{i} {name}: {error}");
        }
        // What no digest can tell: the files agree, and the ids do not fit what is said about them.
        for (lie, named) in [
            (
                Box::new(|info: &mut TokensInfo| info.vocab_size = 7) as Box<dyn Fn(&mut TokensInfo)>,
                "id 7 is not below",
            ),
            (Box::new(|info| info.special.eos = 2), "document 0 does not end"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &header(512), [Ok(vec![5, 6, 7])]).unwrap();
            changed("tokens.json", lied(lie)).1(dir.path());
            let error = Tokens::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains("tokens.bin") && error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_newer_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokens.json"), b"{\"version\": 3}").unwrap();
        assert!(Tokens::open(dir.path()).unwrap_err().to_string().contains("format version 3"));
    }
}
