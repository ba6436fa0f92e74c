//! Where the files of an aggregation go: below a directory, or beside what lies there already, to be compared with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::record::{RecordError, digest, files};

/// Takes each file once it is made.
#[derive(Debug)]
pub struct Out<'a> {
    dir: &'a Path,
    compared: Option<Compared>,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Compared {
    /// Files that were made.
    pub made: BTreeSet<PathBuf>,
    /// Files that are not what was made, or that nothing makes, in the order in which they were found.
    pub differences: Vec<Difference>,
}

/// A file that is not what it would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The file, below the run directory.
    pub file: PathBuf,
    /// What is wrong with it, as a fragment.
    pub what: String,
}

impl<'a> Out<'a> {
    /// Files are written below `dir`.
    pub fn below(dir: &'a Path) -> Self {
        Self { dir, compared: None }
    }

    /// Files are compared with those below `dir`; nothing is written.
    pub(super) fn against(dir: &'a Path) -> Self {
        Self { dir, compared: Some(Compared::default()) }
    }

    /// A file, by its name below the directory.
    pub(super) fn put(&mut self, name: &Path, bytes: &[u8]) -> Result<(), RecordError> {
        let path = self.dir.join(name);
        let Some(compared) = &mut self.compared else { return files::write_atomic(&path, bytes) };
        compared.made.insert(name.to_owned());
        match std::fs::read(&path) {
            Ok(there) if there == bytes => {}
            Ok(there) => compared.differ(name, first_difference(&there, bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => compared.differ(name, "is not there"),
            Err(e) => return Err(RecordError::io("read", &path)(e)),
        }
        Ok(())
    }

    /// A value as indented JSON.
    pub(super) fn put_json<T: Serialize>(&mut self, name: &Path, value: &T) -> Result<(), RecordError> {
        self.put(name, files::json_text(value)?.as_bytes())
    }

    /// Ends a comparison: below `dirs` there must be no file that was not made.
    pub(super) fn compared(self, dirs: &[&str]) -> Result<Compared, RecordError> {
        let mut compared = self.compared.unwrap_or_default();
        for dir in dirs.iter().filter(|dir| self.dir.join(dir).is_dir()) {
            for file in digest::files_below(&self.dir.join(dir))? {
                let name = Path::new(dir).join(file);
                if !compared.made.contains(&name) {
                    compared.differ(&name, "is made by nothing in the study");
                }
            }
        }
        Ok(compared)
    }
}

impl Compared {
    pub(super) fn differ(&mut self, file: &Path, what: impl Into<String>) {
        self.differences.push(Difference { file: file.to_owned(), what: what.into() });
    }
}

/// Where two different files begin to differ.
fn first_difference(there: &[u8], made: &[u8]) -> String {
    let (Ok(there), Ok(made)) = (std::str::from_utf8(there), std::str::from_utf8(made)) else {
        return "is other bytes than are made".to_owned();
    };
    let (mut has, mut would) = (there.split('\n'), made.split('\n'));
    let mut line = 0;
    loop {
        line += 1;
        match (has.next(), would.next()) {
            (Some(a), Some(b)) if a == b => {}
            (a, b) => return format!("line {line}: {}, and would be {}", shown(a), shown(b)),
        }
    }
}

/// A line in a message.
fn shown(line: Option<&str>) -> String {
    let Some(line) = line else { return "nothing".to_owned() };
    let cut: String = line.chars().take(100).collect();
    let more = if cut.len() < line.len() { "…" } else { "" };
    format!("`{}{more}`", cut.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_names_what_differs_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut out = Out::below(dir.path());
        for name in ["tables/a.md", "tables/b.md", "tables/old.md", "figures/a.png"] {
            out.put(Path::new(name), b"one\ntwo\n").unwrap();
        }
        let mut out = Out::against(dir.path());
        out.put(Path::new("tables/a.md"), b"one\ntwo\n").unwrap();
        out.put(Path::new("tables/b.md"), b"one\ntwo\nthree\n").unwrap();
        out.put(Path::new("tables/c.md"), b"x").unwrap();
        out.put(Path::new("figures/a.png"), b"\xff").unwrap();
        let found = out.compared(&["tables", "figures", "documents"]).unwrap();
        let said: Vec<String> = found.differences.iter().map(|d| format!("{} {}", d.file.display(), d.what)).collect();
        assert_eq!(
            said,
            [
                "tables/b.md line 3: ``, and would be `three`",
                "tables/c.md is not there",
                "figures/a.png is other bytes than are made",
                "tables/old.md is made by nothing in the study",
            ]
        );
        assert_eq!(found.made.len(), 4);
        assert!(!dir.path().join("tables/c.md").exists());
        assert_eq!(std::fs::read(dir.path().join("tables/b.md")).unwrap(), b"one\ntwo\n");
        assert_eq!(first_difference(b"a", b"a\nb"), "line 2: nothing, and would be `b`");
    }
}
