//! Where a study's files lie: the root, the directory of one profile, and what is inside it.

use std::path::{Path, PathBuf};

use super::error::{Result, WorkflowError};
use crate::record::{CellKey, Name};

/// The directories of one study under one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Absolute root.
    pub root: PathBuf,
    /// `<root>/results/<study>/<profile>`.
    pub base: PathBuf,
}

impl Place {
    /// The place of `study` under `profile`. Without `root` it is the parent of `configs/` when the study
    /// lies in one, else the study's own directory.
    ///
    /// # Errors
    /// The root holds a newline or NUL, is not UTF-8, or the current directory is gone.
    pub fn new(root: Option<&Path>, study_file: &Path, study: &Name, profile: &Name) -> Result<Self> {
        let root = match root {
            Some(root) => root.to_path_buf(),
            None => default_root(study_file),
        };
        let root = std::path::absolute(&root)
            .map_err(|e| WorkflowError::Usage(format!("cannot make `{}` absolute: {e}", root.display())))?;
        let fits = root.to_str().is_some_and(|text| !text.chars().any(char::is_control));
        if !fits {
            return Err(WorkflowError::Usage(format!(
                "the root {root:?} holds a newline, another control character or is not UTF-8: choose another with --root"
            )));
        }
        let base = root.join("results").join(study.as_str()).join(profile.as_str());
        Ok(Self { root, base })
    }

    /// Run directory of a cell.
    pub fn run_dir(&self, key: &CellKey) -> PathBuf {
        self.base.join(key.local_dir())
    }

    /// What Seedbed keeps for itself.
    pub fn own(&self) -> PathBuf {
        self.base.join(".seedbed")
    }

    /// Logs of Slurm jobs.
    pub fn logs(&self) -> PathBuf {
        self.base.join("logs")
    }

    /// Submissions, newest last by name.
    pub fn submissions(&self) -> PathBuf {
        self.own().join("submissions")
    }
}

fn default_root(study_file: &Path) -> PathBuf {
    let absolute = std::path::absolute(study_file).unwrap_or_else(|_| study_file.to_path_buf());
    let dir = absolute.parent().unwrap_or(Path::new("/"));
    match (dir.file_name(), dir.parent()) {
        (Some(name), Some(above)) if name == "configs" => above.to_path_buf(),
        _ => dir.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_beside_configs() {
        let name = |s| Name::new(s).unwrap();
        let base = |root: Option<&str>, file: &str| {
            Place::new(root.map(Path::new), Path::new(file), &name("m"), &name("quick")).map(|p| p.base)
        };
        assert_eq!(base(None, "/a/configs/m.toml").unwrap(), Path::new("/a/results/m/quick"));
        assert_eq!(base(None, "/a/b/m.toml").unwrap(), Path::new("/a/b/results/m/quick"));
        assert_eq!(base(Some("/scratch/x y"), "/a/m.toml").unwrap(), Path::new("/scratch/x y/results/m/quick"));
        assert!(base(Some("/a\nb"), "/a/m.toml").unwrap_err().to_string().contains("--root"));
    }
}
