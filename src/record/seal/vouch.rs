//! What a seal vouches for, of many cells: read from the text as it stands.
//!
//! A seal's digest is that of its canonical JSON. The text of a seal has the same values in another order, so the canonical
//! text is a matter of moving pieces; when it has the digest, it is what was sealed, and the few fields that a reader of
//! results needs are taken from it. Whatever is unusual is left to [`Seal::read`].

use std::io::Read;
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::{INVALID_FILE, Outcome, SEAL_FILE, SEAL_VERSION, Seal, SealedFile};
use crate::record::files::Folder;
use crate::record::{Digest, Fingerprint, Result};

/// Longest seal that is looked at here.
const MOST_BYTES: usize = 64 << 10;

/// Deepest nesting that is looked at here.
const MAX_DEPTH: usize = 64;

/// What a valid seal says of its cell and of one of its files.
#[derive(Debug, Clone, PartialEq)]
pub struct Vouched {
    /// What the cell was sealed under.
    pub fingerprint: Fingerprint,
    /// How it ended.
    pub outcome: Outcome,
    /// Content digest of its `run.h5`.
    pub content: Option<Digest>,
    /// When it was sealed.
    pub sealed_at: DateTime<Utc>,
    /// The file, if the seal names it.
    pub file: Option<SealedFile>,
}

impl Vouched {
    /// Of a seal.
    pub fn of(seal: &Seal, file: &str) -> Self {
        Self {
            fingerprint: seal.fingerprint.clone(),
            outcome: seal.outcome,
            content: seal.content.clone(),
            sealed_at: seal.sealed_at,
            file: seal.output(file).cloned(),
        }
    }

    /// Reads what the seal in `run_dir` says of `file`: `None` if there is no seal or it was withdrawn. `buffer` is used
    /// again from one seal to the next.
    ///
    /// # Errors
    /// As [`Seal::read`].
    pub fn read(folder: &Folder, run_dir: &Path, file: &str, buffer: &mut Vec<u8>) -> Result<Option<Self>> {
        // A part of a seal has another digest, so nothing is lost by reading once.
        buffer.resize(MOST_BYTES, 0);
        let read = folder.file(&run_dir.join(SEAL_FILE)).and_then(|mut seal| seal.read(buffer));
        if let Some(vouched) = read.ok().and_then(|n| parse(&buffer[..n], file)) {
            return Ok((!folder.may_have(&run_dir.join(INVALID_FILE))).then_some(vouched));
        }
        Ok(Seal::read(run_dir)?.map(|seal| Self::of(&seal, file)))
    }
}

/// The digest of the seal with this text, but for its own: as it is computed when a seal is written. `None` if something
/// about the text is unusual.
pub(super) fn digest_of(text: &[u8]) -> Option<Digest> {
    Some(Digest::finish(Sha256::new_with_prefix(&Top::of(text)?.canonical)))
}

/// What the text of a seal says, if its digest is right and nothing about it is unusual.
fn parse(text: &[u8], file: &str) -> Option<Vouched> {
    let top = Top::of(text)?;
    if top.read::<u32>("version")? != SEAL_VERSION {
        return None;
    }
    if top.read::<Digest>("digest")? != Digest::finish(Sha256::new_with_prefix(&top.canonical)) {
        return None;
    }
    let outputs: Vec<SealedFile> = top.read("outputs")?;
    Some(Vouched {
        fingerprint: top.read("fingerprint")?,
        outcome: top.read("outcome")?,
        content: if top.has("content") { Some(top.read("content")?) } else { None },
        sealed_at: top.read("sealed_at")?,
        file: outputs.into_iter().find(|f| f.path == file),
    })
}

/// The outermost object: its canonical text without the digest, and its fields as they stand.
struct Top<'t> {
    canonical: Vec<u8>,
    fields: Vec<(&'t [u8], &'t [u8])>,
}

impl<'t> Top<'t> {
    fn of(text: &'t [u8]) -> Option<Self> {
        let mut top = Self { canonical: Vec::with_capacity(text.len()), fields: Vec::with_capacity(20) };
        let mut rest = Tokens(text);
        top.object(&mut rest)?;
        rest.space();
        rest.0.is_empty().then_some(top)
    }

    fn object(&mut self, rest: &mut Tokens<'t>) -> Option<()> {
        let mut pieces = Vec::with_capacity(20);
        rest.members(|rest, key| {
            let begin = self.canonical.len();
            let whole = rest.0;
            value(rest, &mut self.canonical, 1)?;
            self.fields.push((key, &whole[..whole.len() - rest.0.len()]));
            if key == b"digest" {
                self.canonical.truncate(begin);
            } else {
                pieces.push((key, begin..self.canonical.len()));
            }
            Some(())
        })?;
        sort(pieces, &mut self.canonical, 0);
        Some(())
    }

    fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(key, _)| *key == name.as_bytes())
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let (_, text) = self.fields.iter().find(|(key, _)| *key == name.as_bytes())?;
        serde_json::from_slice(text).ok()
    }
}

/// Appends the canonical text of the value that stands first.
fn value<'t>(rest: &mut Tokens<'t>, out: &mut Vec<u8>, depth: usize) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    rest.space();
    match rest.0.first()? {
        b'{' => {
            let begin = out.len();
            let mut pieces = Vec::new();
            rest.members(|rest, key| {
                let start = out.len();
                value(rest, out, depth + 1)?;
                pieces.push((key, start..out.len()));
                Some(())
            })?;
            sort(pieces, out, begin);
        }
        b'[' => {
            out.push(b'[');
            let mut first = true;
            rest.elements(|rest| {
                if !std::mem::take(&mut first) {
                    out.push(b',');
                }
                value(rest, out, depth + 1)
            })?;
            out.push(b']');
        }
        b'"' => {
            let text = rest.string()?;
            out.push(b'"');
            out.extend_from_slice(text);
            out.push(b'"');
        }
        _ => {
            let end = rest.0.iter().position(|b| matches!(b, b',' | b'}' | b']') || b.is_ascii_whitespace())?;
            let (scalar, after) = rest.0.split_at(end);
            out.extend_from_slice(scalar);
            rest.0 = after;
        }
    }
    Some(())
}

/// Puts the values from `begin` on into the order of their keys, with the keys.
fn sort(mut pieces: Vec<(&[u8], std::ops::Range<usize>)>, out: &mut Vec<u8>, begin: usize) {
    pieces.sort_unstable_by_key(|(key, _)| *key);
    let values = out.split_off(begin);
    out.push(b'{');
    for (i, (key, range)) in pieces.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(key);
        out.extend_from_slice(b"\":");
        out.extend_from_slice(&values[range.start - begin..range.end - begin]);
    }
    out.push(b'}');
}

/// JSON text, taken from the front.
struct Tokens<'t>(&'t [u8]);

impl<'t> Tokens<'t> {
    fn space(&mut self) {
        let end = self.0.iter().position(|b| !b.is_ascii_whitespace()).unwrap_or(self.0.len());
        self.0 = &self.0[end..];
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.space();
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(())
    }

    /// True if the byte is next; then it is taken.
    fn next_is(&mut self, byte: u8) -> bool {
        self.take(byte).is_some()
    }

    /// What stands between quotes, as it stands.
    fn string(&mut self) -> Option<&'t [u8]> {
        self.take(b'"')?;
        let text = self.0;
        let mut at = 0;
        loop {
            match text.get(at)? {
                b'"' => break,
                b'\\' => at += 2,
                _ => at += 1,
            }
        }
        self.0 = &text[at + 1..];
        Some(&text[..at])
    }

    /// The members of an object; keys with escapes are unusual.
    fn members(&mut self, mut each: impl FnMut(&mut Self, &'t [u8]) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        if self.next_is(b'}') {
            return Some(());
        }
        loop {
            let key = self.string().filter(|key| !key.contains(&b'\\'))?;
            self.take(b':')?;
            self.space();
            each(self, key)?;
            if self.next_is(b'}') {
                return Some(());
            }
            self.take(b',')?;
        }
    }

    fn elements(&mut self, mut each: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.take(b'[')?;
        if self.next_is(b']') {
            return Some(());
        }
        loop {
            each(self)?;
            if self.next_is(b']') {
                return Some(());
            }
            self.take(b',')?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    fn golden() -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats/v1/run/seal.json");
        std::fs::read(path).unwrap()
    }

    #[test]
    fn the_text_says_what_the_seal_says() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("run.h5"), "h5").unwrap();
        std::fs::write(dir.path().join("w"), "abc").unwrap();
        let plain = example(dir.path(), &["run.h5".into(), "w".into()]);
        let mut odd = plain.clone();
        odd.source.params = serde_json::json!({
            "lr": 1e-5, "b": {"z": [], "a": {}}, "text": "a\"b\\c\n\u{7f}é \u{1f600}", "list": [1, -2.5e300, null, true, [[]]],
        });
        odd.fingerprint = odd.source.fingerprint();
        odd.content = Some(Digest::of_bytes(b"content"));
        odd.host = "<&>".to_owned();
        for seal in [plain, odd] {
            let written = seal.write(dir.path()).unwrap();
            let text = std::fs::read(dir.path().join(SEAL_FILE)).unwrap();
            for file in written.outputs.iter().map(|f| f.path.as_str()).chain(["none"]) {
                let expected = Vouched::of(&written, file);
                assert_eq!(parse(&text, file), Some(expected.clone()), "{file}");
                let folder = Folder::open(dir.path()).unwrap();
                let read = Vouched::read(&folder, dir.path(), file, &mut Vec::new()).unwrap();
                assert_eq!(read, Some(expected));
            }
        }
        assert!(parse(&golden(), "run.h5").unwrap().file.is_some());
    }

    #[test]
    fn what_is_no_seal_is_left_to_the_careful_reader() {
        let text = golden();
        let same = parse(&text, "run.h5");
        // Every byte made another: a digest that is right by chance would be needed to say another thing.
        for i in 0..text.len() {
            for byte in [text[i] ^ 1, b'"', b'{', b'9', b' '] {
                let mut changed = text.clone();
                changed[i] = byte;
                let found = parse(&changed, "run.h5");
                assert!(found.is_none() || found == same, "byte {i} made {byte}");
            }
            // Only the newline at its end says nothing.
            assert!(parse(&text[..i], "run.h5").is_none() || i + 1 == text.len(), "cut at {i}");
        }
        assert_eq!(parse(&[b"[".repeat(100_000), b"{\"a\":".repeat(100_000)].concat(), "run.h5"), None);
        assert_eq!(parse(&b"{\"a\":".repeat(100_000), "run.h5"), None);
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let read = || Vouched::read(&folder, dir.path(), "run.h5", &mut Vec::new());
        assert_eq!(read().unwrap(), None);
        std::fs::write(dir.path().join(SEAL_FILE), &text).unwrap();
        assert_eq!(read().unwrap(), same);
        std::fs::write(dir.path().join(INVALID_FILE), "{}").unwrap();
        assert_eq!(read().unwrap(), None);
        std::fs::write(dir.path().join(SEAL_FILE), "{}").unwrap();
        assert!(read().is_err());
    }
}
