//! Two study files that claim one name: their results would lie in one directory.

use std::path::{Path, PathBuf};

use super::load::claimed_name;

/// The first other `.toml` file beside `path`, by name, that claims the study name `name`.
///
/// Files that cannot be read, or are no studies, claim nothing.
pub fn claimed_elsewhere(path: &Path, name: &str) -> Option<PathBuf> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let me = std::fs::canonicalize(path).ok();
    let mut others: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|other| other.extension().is_some_and(|e| e == "toml"))
        .filter(|other| std::fs::canonicalize(other).ok() != me)
        .collect();
    others.sort();
    others.into_iter().find(|other| claimed_name(other).as_deref() == Some(name))
}
