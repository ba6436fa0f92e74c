//! Text sources: a directory of plain text, a JSON-lines file, or documents that were generated.
//!
//! Reading is in sorted order and never guesses: compressed files are skipped and counted, files that are no
//! text are refused and counted, bytes that are no UTF-8 are replaced and counted. Equal documents are kept
//! once, so that no test document is also a training document.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::compute::rng::{Purpose, Rng};
use crate::compute::{ComputeError, Result};
use crate::record::{Digest, RecordError, digest};

use super::SourceDigest;

/// One text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Where it came from: a file name and the part within it, or the generator's number.
    pub name: String,
    /// The text, never empty.
    pub text: String,
    /// Bytes of the text that are a prompt, which its end answers; absent for plain text.
    pub prompt: Option<usize>,
}

impl Document {
    /// A text without a prompt.
    pub fn plain(name: String, text: String) -> Self {
        Self { name, text, prompt: None }
    }
}

/// Keys of a JSON line.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    /// Of the text, or of the response.
    pub text: &'a str,
    /// Of the prompt, where lines have one.
    pub prompt: Option<&'a str>,
}

/// Documents, and what happened while they were read.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// The documents, in source order, each text once.
    pub documents: Vec<Document>,
    /// What was read.
    pub sources: Vec<SourceDigest>,
    /// Compressed files that were skipped.
    pub skipped_compressed: u64,
    /// Files or lines without text that were refused.
    pub refused: u64,
    /// Files that held bytes that are no UTF-8.
    pub repaired: u64,
    /// Documents that were dropped because an equal one was there.
    pub duplicates: u64,
    /// True if reading stopped at the size limit.
    pub cut: bool,
}

/// How much to read, and how to cut it.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Stop after this many bytes of text.
    pub max_bytes: u64,
    /// Stop after this many documents.
    pub max_documents: u64,
    /// Cut longer texts at the last empty line (or line, or character) before this many bytes.
    pub max_document_bytes: usize,
}

/// A kind of split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What models are trained on.
    Train,
    /// What the best checkpoint is chosen on.
    Validation,
    /// What results are reported on.
    Test,
}

impl Split {
    /// Every split, in the order in which they are written.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// Its directory and its name in `tokens.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Test => "test",
        }
    }
}

impl Corpus {
    /// Every regular file below `dir`, by sorted name.
    ///
    /// # Errors
    /// The directory cannot be read, or holds no text at all.
    pub fn from_directory(dir: &Path, limits: Limits) -> Result<Self> {
        if !dir.is_dir() {
            return Err(ComputeError::missing(dir, "is no directory: set `corpus_dir` to a directory of plain text"));
        }
        let mut reader = Reader::new(limits);
        for file in digest::files_below(dir)? {
            if reader.full() {
                break;
            }
            let path = dir.join(&file);
            let name = file.to_string_lossy().into_owned();
            if is_compressed(&path) {
                reader.corpus.skipped_compressed += 1;
                continue;
            }
            let bytes = std::fs::read(&path).map_err(RecordError::io("read", &path))?;
            let Some(text) = reader.decode(&bytes) else {
                reader.corpus.refused += 1;
                continue;
            };
            reader.add(&name, &text);
        }
        let skipped = (reader.corpus.refused, reader.corpus.skipped_compressed);
        reader.finish(|| {
            ComputeError::missing(
                dir,
                format!(
                    "holds no plain text ({} files without text, {} compressed): set `corpus_dir` to a directory with text files",
                    skipped.0, skipped.1
                ),
            )
        })
    }

    /// One document from each line of a JSON-lines file: a text, or a prompt and the response to it, which are
    /// kept to the byte.
    ///
    /// # Errors
    /// The file cannot be read, a line is no JSON object with texts under `fields`, or nothing is left.
    pub fn from_jsonl(path: &Path, fields: Fields<'_>, limits: Limits) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(RecordError::io("read", path))?;
        let mut reader = Reader::new(limits);
        let Some(text) = reader.decode(&bytes) else {
            return Err(ComputeError::input(path, "is no text: set `corpus_file` to a file of JSON lines"));
        };
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            if reader.full() {
                break;
            }
            let value: Value = serde_json::from_str(line).map_err(|e| {
                ComputeError::input(path, format!("line {} is no JSON ({e}): correct or remove that line", i + 1))
            })?;
            let text = |field: &str, key: &str| {
                value.get(field).and_then(Value::as_str).ok_or_else(|| {
                    let line = i + 1;
                    let reason =
                        format!("line {line} has no text under {field:?}: set `{key}` to the key that holds it");
                    ComputeError::input(path, reason)
                })
            };
            let name = format!("line {}", i + 1);
            let body = text(fields.text, "jsonl_field")?;
            match fields.prompt {
                None => reader.push(name, body),
                Some(field) => reader.push_answered(name, text(field, "jsonl_prompt_field")?, body),
            }
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        reader.corpus.sources.push(SourceDigest { name, bytes: bytes.len() as u64, digest: Digest::of_bytes(&bytes) });
        reader.finish(|| ComputeError::missing(path, "holds no text: set `corpus_file` to a file with documents"))
    }

    /// Documents that are in memory already, as one source.
    ///
    /// # Errors
    /// There is no text among them.
    pub fn from_documents(name: &str, documents: impl IntoIterator<Item = Document>, limits: Limits) -> Result<Self> {
        let mut reader = Reader::new(limits);
        let mut all = String::new();
        for document in documents {
            if reader.full() {
                break;
            }
            all.push_str(&document.text);
            all.push('\0');
            reader.push(document.name, &document.text);
        }
        reader.corpus.sources.push(SourceDigest {
            name: name.to_owned(),
            bytes: all.len() as u64,
            digest: Digest::of_bytes(all.as_bytes()),
        });
        reader.finish(|| ComputeError::Config(format!("the {name} corpus holds no text: ask for more documents")))
    }

    /// Adds a text that is cut into documents.
    pub fn add_text(&mut self, name: &str, text: &str, limits: Limits) {
        let mut reader = Reader::resume(std::mem::take(self), limits);
        reader.add(name, text);
        *self = reader.corpus;
    }

    /// Which documents go to training, validation and test: disjoint, in source order within a split.
    /// `test_fraction` of all documents, then `val_fraction` of the rest, at least one each.
    ///
    /// # Errors
    /// There are fewer than three documents.
    pub fn split(&self, seed: u32, val_fraction: f64, test_fraction: f64) -> Result<[Vec<usize>; 3]> {
        let n = self.documents.len();
        if n < 3 {
            return Err(ComputeError::Config(format!(
                "the corpus has {n} documents, and training, validation and test need one each: give it more text or lower `max_document_bytes`"
            )));
        }
        let mut order: Vec<usize> = (0..n).collect();
        Rng::new(seed, Purpose::Split, 0, 0).shuffle(&mut order);
        let share = |fraction: f64, of: usize| ((of as f64 * fraction).round() as usize).max(1);
        let test = share(test_fraction, n).min(n - 2);
        let val = share(val_fraction, n - test).min(n - test - 1);
        let mut parts = [order.split_off(test + val), order.split_off(test), order];
        parts.iter_mut().for_each(|p| p.sort_unstable());
        Ok(parts)
    }

    /// Bytes of text.
    pub fn bytes(&self) -> u64 {
        self.documents.iter().map(|d| d.text.len() as u64).sum()
    }
}

/// By name or by its first bytes (gzip, bzip2, xz, zstd, zip).
fn is_compressed(path: &Path) -> bool {
    const ENDINGS: [&str; 7] = ["gz", "bz2", "xz", "zst", "zip", "lz4", "Z"];
    const MAGICS: [&[u8]; 5] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"];
    if path.extension().is_some_and(|e| ENDINGS.iter().any(|x| e.eq_ignore_ascii_case(x))) {
        return true;
    }
    let mut head = [0u8; 6];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read(&mut f, &mut head)).unwrap_or(0);
    MAGICS.iter().any(|m| head[..read].starts_with(m))
}

struct Reader {
    corpus: Corpus,
    seen: BTreeSet<Digest>,
    bytes: u64,
    limits: Limits,
}

impl Reader {
    fn new(limits: Limits) -> Self {
        Self::resume(Corpus::default(), limits)
    }

    fn resume(corpus: Corpus, limits: Limits) -> Self {
        let seen = corpus.documents.iter().map(|d| Digest::of_bytes(d.text.as_bytes())).collect();
        Self { bytes: corpus.bytes(), corpus, seen, limits }
    }

    fn full(&mut self) -> bool {
        let full =
            self.bytes >= self.limits.max_bytes || self.corpus.documents.len() as u64 >= self.limits.max_documents;
        self.corpus.cut |= full;
        full
    }

    /// The text of `bytes`, or `None` if they are no text: empty, or holding NUL.
    fn decode(&mut self, bytes: &[u8]) -> Option<String> {
        if bytes.contains(&0) {
            return None;
        }
        let text = String::from_utf8_lossy(bytes);
        if text.trim().is_empty() {
            return None;
        }
        self.corpus.repaired += u64::from(matches!(text, std::borrow::Cow::Owned(_)));
        Some(text.into_owned())
    }

    /// One source: its digest, and its text cut into documents.
    fn add(&mut self, name: &str, text: &str) {
        self.corpus.sources.push(SourceDigest {
            name: name.to_owned(),
            bytes: text.len() as u64,
            digest: Digest::of_bytes(text.as_bytes()),
        });
        for (i, part) in cut(text, self.limits.max_document_bytes).into_iter().enumerate() {
            if self.full() {
                return;
            }
            self.push(format!("{name}#{i}"), part);
        }
    }

    fn push(&mut self, name: String, text: &str) {
        self.keep(Document::plain(name, text.trim().to_owned()));
    }

    /// A response that is blank is no document; nothing is trimmed, for a space may belong to the first token.
    fn push_answered(&mut self, name: String, prompt: &str, response: &str) {
        let text = if response.trim().is_empty() { String::new() } else { format!("{prompt}{response}") };
        self.keep(Document { name, text, prompt: Some(prompt.len()) });
    }

    fn keep(&mut self, document: Document) {
        if document.text.is_empty() {
            self.corpus.refused += 1;
        } else if self.seen.insert(Digest::of_bytes(document.text.as_bytes())) {
            self.bytes += document.text.len() as u64;
            self.corpus.documents.push(document);
        } else {
            self.corpus.duplicates += 1;
        }
    }

    fn finish(self, empty: impl FnOnce() -> ComputeError) -> Result<Corpus> {
        if self.corpus.documents.is_empty() { Err(empty()) } else { Ok(self.corpus) }
    }
}

/// Parts of at most `limit` bytes, each ending after the last empty line in reach; else after a line; else
/// after a character.
fn cut(text: &str, limit: usize) -> Vec<&str> {
    let limit = limit.max(4);
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > limit {
        let mut reach = limit;
        while !rest.is_char_boundary(reach) {
            reach -= 1;
        }
        let head = &rest[..reach];
        // A part shorter than half the limit would make documents needlessly small.
        let at = |pattern: &str| head.rfind(pattern).map(|p| p + pattern.len()).filter(|&p| p * 2 >= limit);
        let end = at("\n\n").or_else(|| at("\n")).unwrap_or(reach);
        parts.push(&rest[..end]);
        rest = &rest[end..];
    }
    parts.push(rest);
    parts.into_iter().filter(|p| !p.trim().is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: Fields<'_> = Fields { text: "text", prompt: None };
    const LIMITS: Limits = Limits { max_bytes: 1 << 20, max_documents: 1000, max_document_bytes: 100 };

    #[test]
    fn a_directory_is_read_in_order_and_everything_else_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        put("b.txt", b"second file");
        put("a/deep.txt", b"first file");
        put("copy.txt", b"second file");
        put("zipped.gz", b"\x1f\x8bxx");
        put("zipped-without-ending", b"\x1f\x8bxx");
        put("binary", b"ab\0cd");
        put("empty", b"");
        put("latin.txt", b"caf\xe9 au lait");
        let corpus = Corpus::from_directory(dir.path(), LIMITS).unwrap();
        let texts: Vec<&str> = corpus.documents.iter().map(|d| d.text.as_str()).collect();
        assert_eq!(texts, ["first file", "second file", "caf\u{fffd} au lait"]);
        assert_eq!((corpus.skipped_compressed, corpus.refused), (2, 2));
        assert_eq!((corpus.repaired, corpus.duplicates), (1, 1));
        assert_eq!(corpus.sources.len(), 4);
    }

    #[test]
    fn an_empty_corpus_names_the_directory_and_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let error = Corpus::from_directory(dir.path(), LIMITS).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(dir.path().to_str().unwrap()) && text.contains("corpus_dir"), "{text}");
        assert_eq!(error.exit_code(), crate::record::exit::MISSING_INPUT);
    }

    #[test]
    fn json_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.jsonl");
        std::fs::write(&path, "{\"text\": \"one\"}\n\n{\"text\": \"two\\nlines\"}\n").unwrap();
        let corpus = Corpus::from_jsonl(&path, TEXT, LIMITS).unwrap();
        assert_eq!(corpus.documents.len(), 2);
        assert_eq!(corpus.documents[1].text, "two\nlines");
        let body = Fields { text: "body", ..TEXT };
        let error = Corpus::from_jsonl(&path, body, LIMITS).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("jsonl_field"), "{error}");
        std::fs::write(&path, "{\"text\": \"one\"}\n{\"te").unwrap();
        assert!(Corpus::from_jsonl(&path, TEXT, LIMITS).unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn prompts_and_responses_are_kept_to_the_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.jsonl");
        let lines = [
            r#"{"q": "2 + 2 = ", "text": "4\n"}"#,
            r#"{"q": "2 + 2 =", "text": " 4\n"}"#,
            r#"{"q": "no answer", "text": "  "}"#,
            r#"{"q": "", "text": "é"}"#,
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let fields = Fields { text: "text", prompt: Some("q") };
        let corpus = Corpus::from_jsonl(&path, fields, LIMITS).unwrap();
        let found: Vec<_> = corpus.documents.iter().map(|d| (d.text.as_str(), d.prompt)).collect();
        assert_eq!(found, [("2 + 2 = 4\n", Some(8)), ("é", Some(0))]);
        assert_eq!((corpus.duplicates, corpus.refused), (1, 1), "the same text cut elsewhere is the same text");
        let error = Corpus::from_jsonl(&path, Fields { prompt: Some("question"), ..fields }, LIMITS).unwrap_err();
        assert!(error.to_string().contains("jsonl_prompt_field"), "{error}");
    }

    #[test]
    fn cutting_loses_nothing_and_prefers_empty_lines() {
        let text = format!("{}\n\n{}\n{}", "a".repeat(60), "b".repeat(30), "é".repeat(120));
        let parts = cut(&text, 100);
        assert_eq!(parts.concat(), text);
        assert_eq!(parts[0], format!("{}\n\n", "a".repeat(60)));
        assert!(parts.iter().all(|p| p.len() <= 100));
    }

    #[test]
    fn splits_are_disjoint_complete_and_depend_on_the_seed() {
        let documents = (0..100).map(|i| Document::plain(i.to_string(), format!("text {i}")));
        let corpus = Corpus::from_documents("numbers", documents, LIMITS).unwrap();
        let parts = corpus.split(1, 0.1, 0.05).unwrap();
        assert_eq!(parts.each_ref().map(Vec::len), [85, 10, 5]);
        let mut all: Vec<usize> = parts.concat();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_eq!(parts, corpus.split(1, 0.1, 0.05).unwrap());
        assert_ne!(parts, corpus.split(2, 0.1, 0.05).unwrap());
    }

    #[test]
    fn limits_stop_the_reading() {
        let documents = (0..100).map(|i| Document::plain(i.to_string(), format!("text {i}")));
        let limits = Limits { max_documents: 7, ..LIMITS };
        let corpus = Corpus::from_documents("numbers", documents, limits).unwrap();
        assert_eq!(corpus.documents.len(), 7);
        assert!(corpus.cut);
        assert!(corpus.split(1, 0.1, 0.1).is_ok());
    }
}
