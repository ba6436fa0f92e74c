//! Names and keys: what a cell is called, everywhere.
//!
//! A [`CellKey`] names the run directory, the checkpoints, the result and the expected entry of a table.
//! A name that exists has been checked: it can go into a path or a job name as it is.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A checked name: letters, digits, `_`, `-`, and single dots inside; at most 64 bytes. Copies share their text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Checks `text` against `[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*`, at most 64 bytes.
    ///
    /// # Errors
    /// A fragment that says what a name may hold.
    pub fn new(text: &str) -> Result<Self, String> {
        let part = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        let ok = text.len() <= 64
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && text.split('.').all(part);
        if ok {
            Ok(Self(text.into()))
        } else {
            Err(format!(
                "{text:?} is not a name: use letters, digits, `_`, `-` and single dots inside, a letter or digit first, at most 64 bytes"
            ))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Name::new(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// Study / profile / stage [/ arm] [/ seed]; arm and seed are there only if the stage has the axis.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellKey {
    /// The study.
    pub study: Name,
    /// The profile of the study.
    pub profile: Name,
    /// The stage.
    pub stage: Name,
    /// The arm, if the stage has that axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<Name>,
    /// The seed, if the stage has that axis. Every other `seed` is printed from this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
}

impl CellKey {
    /// `<stage>[/<arm>][/seed-<n>]`: the run directory below `<root>/results/<study>/<profile>`, and
    /// the name of the cell within one study and profile.
    pub fn local_name(&self) -> String {
        let mut text = self.stage.to_string();
        if let Some(arm) = &self.arm {
            text.push('/');
            text.push_str(arm.as_str());
        }
        if let Some(seed) = self.seed {
            text.push_str(&format!("/seed-{seed}"));
        }
        text
    }

    /// [`Self::local_name`] as a path.
    pub fn local_dir(&self) -> PathBuf {
        PathBuf::from(self.local_name())
    }
}

impl fmt::Display for CellKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.study, self.profile, self.local_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "x".repeat(65);
        for good in ["a", "mlp_in", "pythia-1.4b", "3B", "a.b.c", "x".repeat(64).as_str()] {
            assert!(Name::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a..b", "a.", ".a", "-a", "_a", "a b", "a/b", "$(touch x)", "a\n", "é", "a'b", &long]
        {
            assert!(Name::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_print_as_paths() {
        let name = |s| Name::new(s).unwrap();
        let mut key =
            CellKey { study: name("m"), profile: name("quick"), stage: name("uat"), arm: None, seed: Some(42) };
        assert_eq!(key.to_string(), "m/quick/uat/seed-42");
        key.arm = Some(name("mlp_in"));
        assert_eq!(key.local_name(), "uat/mlp_in/seed-42");
    }
}
