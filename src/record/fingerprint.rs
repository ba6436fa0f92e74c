//! What makes a cell's result what it is: the fingerprint, and the JSON it was made from.
//!
//! The source is kept beside the digest in every seal, so that "which key changed" is a diff.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Digest;
use super::digest::{canonical_json, write_text};

/// Digest of a [`FingerprintSource`].
pub type Fingerprint = Digest;

/// Version of the fingerprint's own format.
pub const FINGERPRINT_VERSION: u32 = 1;

/// Everything that may change an output byte of a cell. Paths, resources and ranks never enter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FingerprintSource {
    /// [`FINGERPRINT_VERSION`].
    pub version: u32,
    /// Stage kind (`train`, `command`, ...).
    pub kind: String,
    /// Semantic version of the kind.
    pub kind_version: u32,
    /// Semantic parameters, fully resolved, without nulls.
    pub params: Value,
    /// The cell's seed, if it has one.
    pub seed: Option<u32>,
    /// Fingerprints of the needed cells, by [`super::CellKey::local_name`] (or the whole key for another study's).
    pub needs: BTreeMap<String, Fingerprint>,
    /// Digests of external inputs by declared name.
    pub inputs: BTreeMap<String, Digest>,
}

/// One difference between two sources.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Dotted path of the key, e.g. `params.lr` or `needs.setup`.
    pub key: String,
    /// Value in the old source; `None` if it was not there.
    pub old: Option<Value>,
    /// Value in the new source; `None` if it is gone.
    pub new: Option<Value>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |v: &Option<Value>| match v {
            None => "absent".to_owned(),
            // Digests are long and their digits tell nobody anything.
            Some(Value::String(s)) if s.len() == 64 => s[..8].to_owned(),
            Some(v) => v.to_string(),
        };
        write!(f, "{}: {} -> {}", self.key, text(&self.old), text(&self.new))
    }
}

impl FingerprintSource {
    /// The fingerprint: the digest of [`Self::to_json`].
    pub fn fingerprint(&self) -> Fingerprint {
        let Self { version, kind, kind_version, params, seed, needs, inputs } = self;
        let params = &canonical_json(params);
        Parts { version: *version, kind, kind_version: *kind_version, params, seed: *seed, needs, inputs }.fingerprint()
    }

    /// The source as JSON.
    pub fn to_json(&self) -> Value {
        // Strings, numbers and maps with string keys always serialize.
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

/// A [`FingerprintSource`] whose parameters are canonical text: many cells have the same ones.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// As in the source.
    pub version: u32,
    /// As in the source.
    pub kind: &'a str,
    /// As in the source.
    pub kind_version: u32,
    /// [`canonical_json`] of the parameters.
    pub params: &'a str,
    /// As in the source.
    pub seed: Option<u32>,
    /// As in the source.
    pub needs: &'a BTreeMap<String, Fingerprint>,
    /// As in the source.
    pub inputs: &'a BTreeMap<String, Digest>,
}

impl Parts<'_> {
    /// The same as [`FingerprintSource::fingerprint`].
    pub fn fingerprint(&self) -> Fingerprint {
        let mut text = String::with_capacity(256 + self.params.len() + 128 * (self.needs.len() + self.inputs.len()));
        // Keys in the order of canonical JSON.
        text.push_str("{\"inputs\":");
        write_digests(self.inputs, &mut text);
        text.push_str(",\"kind\":");
        write_text(self.kind, &mut text);
        text.push_str(&format!(",\"kind_version\":{},\"needs\":", self.kind_version));
        write_digests(self.needs, &mut text);
        text.push_str(",\"params\":");
        text.push_str(self.params);
        text.push_str(&match self.seed {
            Some(seed) => format!(",\"seed\":{seed}"),
            None => ",\"seed\":null".to_owned(),
        });
        text.push_str(&format!(",\"version\":{}}}", self.version));
        Digest::of_bytes(text.as_bytes())
    }
}

fn write_digests(digests: &BTreeMap<String, Digest>, text: &mut String) {
    text.push('{');
    for (i, (name, digest)) in digests.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        write_text(name, text);
        text.push(':');
        write_text(digest.as_str(), text);
    }
    text.push('}');
}

/// The leaves in which two sources differ, sorted by key.
pub fn changes(old: &FingerprintSource, new: &FingerprintSource) -> Vec<Change> {
    let mut found = Vec::new();
    diff("", Some(&old.to_json()), Some(&new.to_json()), &mut found);
    found.sort_by(|a, b| a.key.cmp(&b.key));
    found
}

fn diff(path: &str, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Change>) {
    if old == new {
        return;
    }
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (old, new) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let sub = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            diff(&sub, a.get(key), b.get(key), found);
        }
        return;
    }
    // Of a long command the word that changed, and not all words twice.
    if let (Some(Value::Array(a)), Some(Value::Array(b))) = (old, new)
        && a.len() == b.len()
    {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            diff(&format!("{path}[{i}]"), Some(a), Some(b), found);
        }
        return;
    }
    found.push(Change { key: path.to_owned(), old: old.cloned(), new: new.cloned() });
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_fingerprint_is_the_digest_of_the_json() {
        let digest = |text: &str| Digest::of_bytes(text.as_bytes());
        let mut source = FingerprintSource {
            version: FINGERPRINT_VERSION,
            kind: "a \"kind\"\n".into(),
            kind_version: 7,
            params: json!({"z": [1, 2.0, 1e300, -0.5, null, true], "a": {"ü\u{7f}\u{1}": "\\ / ü \u{2028}"}}),
            seed: None,
            needs: BTreeMap::new(),
            inputs: BTreeMap::new(),
        };
        assert_eq!(source.fingerprint(), Digest::of_json(&source.to_json()));
        source.seed = Some(u32::MAX);
        source.needs = ["b/x/seed-1", "a", "b\u{1}"].map(|name| (name.to_owned(), digest(name))).into();
        source.inputs = ["corpus", "a b", "é"].map(|name| (name.to_owned(), digest(name))).into();
        assert_eq!(source.fingerprint(), Digest::of_json(&source.to_json()));
        // And of the JSON as serde_json prints it, whose keys are sorted.
        assert_eq!(source.fingerprint(), digest(&source.to_json().to_string()));
    }

    #[test]
    fn a_change_names_the_key() {
        let mut old = FingerprintSource {
            version: FINGERPRINT_VERSION,
            kind: "train".into(),
            kind_version: 1,
            params: json!({"lr": 1e-5, "schedule": {"warmup_ratio": 0.1}}),
            seed: Some(42),
            needs: BTreeMap::from([("setup".to_owned(), Digest::of_bytes(b"1"))]),
            inputs: BTreeMap::new(),
        };
        let mut new = old.clone();
        assert!(changes(&old, &new).is_empty());
        assert_eq!(old.fingerprint(), new.fingerprint());
        let words = |last| json!({"command": ["sh", "-c", last], "inputs": ["a"]});
        old.params = words("x");
        new.params = words("y");
        new.params["inputs"] = json!(["a", "b"]);
        let text: Vec<String> = changes(&old, &new).iter().map(ToString::to_string).collect();
        assert_eq!(text, [r#"params.command[2]: "x" -> "y""#, r#"params.inputs: ["a"] -> ["a","b"]"#]);
        old.params = json!({"lr": 1e-5, "schedule": {"warmup_ratio": 0.1}});
        new.params = json!({"lr": 2e-5, "schedule": {"warmup_ratio": 0.1}, "clip": 1.0});
        new.needs.insert("setup".to_owned(), Digest::of_bytes(b"2"));
        let keys: Vec<String> = changes(&old, &new).into_iter().map(|c| c.key).collect();
        assert_eq!(keys, ["needs.setup", "params.clip", "params.lr"]);
        assert_ne!(old.fingerprint(), new.fingerprint());
    }
}
