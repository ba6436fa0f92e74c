//! SHA-256 digests and canonical JSON, the two things a fingerprint and a seal are made of.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{RecordError, Result};

/// A digest of 32 bytes as 64 hexadecimal digits; SHA-256 unless a format says otherwise. Copies share their digits: a
/// table of a large study speaks of one run in many cells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Arc<str>);

impl Digest {
    /// Digest of `bytes`.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    /// Digest of the canonical text of `value`.
    pub fn of_json(value: &Value) -> Self {
        Self::of_bytes(canonical_json(value).as_bytes())
    }

    /// Digest of the content of one regular file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_file(path: &Path) -> Result<Self> {
        let mut file = std::fs::File::open(path).map_err(RecordError::io("read", path))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0u8; 1 << 16];
        loop {
            let n = file.read(&mut buffer).map_err(RecordError::io("read", path))?;
            if n == 0 {
                return Ok(Self::finish(hasher));
            }
            hasher.update(&buffer[..n]);
        }
    }

    /// Digest of a directory: of the sorted list of relative file names and their digests.
    /// Names of directories without files do not enter. A symbolic link to a file counts as that file.
    ///
    /// # Errors
    /// Something in it cannot be read.
    pub fn of_directory(dir: &Path) -> Result<Self> {
        let mut hasher = Sha256::new();
        for file in files_below(dir)? {
            let digest = Self::of_file(&dir.join(&file))?;
            hasher.update(format!("{}\0{digest}\n", file.display()).as_bytes());
        }
        Ok(Self::finish(hasher))
    }

    /// Digest of a file or of a directory, whichever `path` is.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_path(path: &Path) -> Result<Self> {
        if path.is_dir() { Self::of_directory(path) } else { Self::of_file(path) }
    }

    /// Digest from a hasher that was fed elsewhere (parameters, tokens).
    pub fn finish(hasher: Sha256) -> Self {
        Self::of_hash(&hasher.finalize().into())
    }

    /// Digest from the 32 bytes of a hash that was computed elsewhere, by whatever function the format says.
    pub fn of_hash(hash: &[u8; 32]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(64);
        for byte in hash {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        Self(text.into())
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first eight digits, for names and messages.
    pub fn short(&self) -> &str {
        &self.0[..8]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text.into()))
        } else {
            Err(serde::de::Error::custom(format!("{text:?} is not a SHA-256 digest of 64 hexadecimal digits")))
        }
    }
}

/// Every regular file below `dir`, as sorted relative paths.
///
/// # Errors
/// A directory cannot be listed.
pub fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(sub) = open.pop() {
        let here = dir.join(&sub);
        for entry in std::fs::read_dir(&here).map_err(RecordError::io("list", &here))? {
            let entry = entry.map_err(RecordError::io("list", &here))?;
            let name = sub.join(entry.file_name());
            let kind = entry.file_type().map_err(RecordError::io("look at", entry.path()))?;
            if kind.is_dir() {
                open.push(name);
            } else if kind.is_file() || entry.path().is_file() {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// JSON with sorted keys and no white space: equal values give equal bytes.
/// A float that is a whole number keeps its `.0`, so that `1` and `1.0` differ.
pub fn canonical_json(value: &Value) -> String {
    let mut out = String::new();
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(&String, &Value)> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_text(key, out);
                out.push(':');
                write_canonical(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out);
            }
            out.push(']');
        }
        Value::String(text) => write_text(text, out),
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// A text as JSON writes it.
pub(super) fn write_text(text: &str, out: &mut String) {
    let plain = |b: u8| b >= 0x20 && b != b'"' && b != b'\\' && b != 0x7f;
    if text.bytes().all(plain) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&Value::from(text).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn canonical_json_sorts_keys_at_every_depth() {
        let value = json!({"b": [1, {"z": null, "a": "x\"y"}], "a": 1.0});
        assert_eq!(canonical_json(&value), r#"{"a":1.0,"b":[1,{"a":"x\"y","z":null}]}"#);
    }

    #[test]
    fn sha256_of_abc() {
        // FIPS 180-4, example of one block.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of_bytes(b"abc").as_str(), expected);
    }

    #[test]
    fn a_directory_digest_sees_names_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let digest_with = |name: &str, text: &str| {
            let sub = dir.path().join(name);
            std::fs::create_dir_all(sub.parent().unwrap()).unwrap();
            std::fs::write(&sub, text).unwrap();
            let digest = Digest::of_directory(dir.path()).unwrap();
            std::fs::remove_file(sub).unwrap();
            digest
        };
        let a = digest_with("x/a", "1");
        assert_eq!(a, digest_with("x/a", "1"));
        assert_ne!(a, digest_with("x/b", "1"));
        assert_ne!(a, digest_with("x/a", "2"));
    }
}
