//! The programs of a submission: copied by content into `.seedbed/bin/<digest>/`, so that a rebuild never
//! reaches a queued job.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::error::{Result, WorkflowError};
use super::study::{Run, Study};
use crate::record::{Digest, RecordError, files};
use crate::stages::Spec;

/// What a stage binary says of itself under `--describe`.
#[derive(Debug, Deserialize)]
struct Description {
    kind: String,
    version: u32,
    features: Vec<String>,
}

/// Copies `seedbed` and every stage binary that `study` needs, checked, and returns their directory.
///
/// # Errors
/// A binary is missing, has other versions of its stage, or lacks a feature that the study needs.
pub fn install(own: &Path, study: &Study) -> Result<PathBuf> {
    let exe = std::env::current_exe()
        .map_err(|e| WorkflowError::Binary(format!("cannot find this program's own path: {e}")))?;
    let here = exe.parent().unwrap_or(Path::new("/"));
    let mut names = vec!["seedbed"];
    for stage in &study.stages {
        if let Run::Builtin(spec) = &stage.run
            && !names.contains(&spec.binary)
        {
            names.push(spec.binary);
        }
    }
    names.sort_unstable();
    for name in &names {
        let path = here.join(name);
        if !path.is_file() {
            return Err(WorkflowError::Binary(format!(
                "the program `{}` is missing: build it with `cargo build --features {}`",
                path.display(),
                if study.stages.iter().any(|s| s.resources.ranks() > 1) { "mpi" } else { "compute" }
            )));
        }
    }
    let dir = own.join("bin").join(name_of(here, &names)?);
    for stage in &study.stages {
        if let Run::Builtin(spec) = &stage.run {
            check(&here.join(spec.binary), spec, stage.resources.ranks())?;
        }
    }
    for name in &names {
        copy(&here.join(name), &dir.join(name))?;
    }
    Ok(dir)
}

/// Copies `seedbed` and every stage program that is built, and returns their directory.
///
/// # Errors
/// A program cannot be copied.
pub fn install_found(own: &Path) -> Result<PathBuf> {
    let exe = std::env::current_exe()
        .map_err(|e| WorkflowError::Binary(format!("cannot find this program's own path: {e}")))?;
    let here = exe.parent().unwrap_or(Path::new("/"));
    let all = crate::stages::all_specs().iter().map(|spec| spec.binary);
    let mut names: Vec<&str> = all.filter(|name| here.join(name).is_file()).chain(["seedbed"]).collect();
    names.sort_unstable();
    names.dedup();
    let dir = own.join("bin").join(name_of(here, &names)?);
    for name in &names {
        copy(&here.join(name), &dir.join(name))?;
    }
    Ok(dir)
}

/// Whether a stage program starts and is of this version; then its features.
///
/// # Errors
/// It does not start, or runs another version of its stage.
pub fn fits(path: &Path, spec: &Spec) -> Result<Vec<String>> {
    Ok(check(path, spec, 1)?.features)
}

/// The name of the directory that holds these programs of `dir`: a digest of all of them.
fn name_of(dir: &Path, names: &[impl AsRef<str>]) -> Result<String> {
    let mut digests = String::new();
    for name in names.iter().map(AsRef::as_ref) {
        digests.push_str(&format!("{name} {}\n", Digest::of_file(&dir.join(name))?));
    }
    Ok(Digest::of_bytes(digests.as_bytes()).as_str()[..16].to_owned())
}

/// Whether the programs of a submission are no longer those that it was made with; then what to do. Asked at the start
/// of each attempt: a copy may have been cut off, or written over by hand.
///
/// # Errors
/// They cannot be read.
pub fn changed(dir: &Path) -> Result<Option<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(RecordError::io("list", dir))? {
        let name = entry.map_err(RecordError::io("list", dir))?.file_name().to_string_lossy().into_owned();
        // A copy that another call is making.
        if !name.ends_with(".tmp") {
            names.push(name);
        }
    }
    names.sort_unstable();
    let same = dir.file_name().is_some_and(|name| name_of(dir, &names).is_ok_and(|digest| name == digest.as_str()));
    Ok((!same).then(|| {
        let dir = dir.display();
        format!(
            "the programs in {dir} are not those that were submitted: remove that directory, then run `run_all` again"
        )
    }))
}

fn check(path: &Path, spec: &Spec, ranks: u32) -> Result<Description> {
    let output = Command::new(path)
        .arg("--describe")
        .output()
        .map_err(|source| WorkflowError::Start { program: path.display().to_string(), source })?;
    let said: Description = serde_json::from_slice(&output.stdout).map_err(|_| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let why = stderr.lines().next().unwrap_or("it says nothing").to_owned();
        WorkflowError::Binary(format!(
            "the program `{}` does not start ({why}): run `scripts/setup` and build again",
            path.display()
        ))
    })?;
    if said.kind != spec.kind || said.version != spec.version {
        return Err(WorkflowError::Binary(format!(
            "the program `{}` runs `{}` version {}, but this program plans `{}` version {}: build both together",
            path.display(),
            said.kind,
            said.version,
            spec.kind,
            spec.version
        )));
    }
    if ranks > 1 && !said.features.iter().any(|f| f == "mpi") {
        return Err(WorkflowError::Binary(format!(
            "stage kind `{}` is to run on {ranks} ranks, but `{}` was built without MPI: build with `cargo build --features mpi`",
            spec.kind,
            path.display()
        )));
    }
    Ok(said)
}

/// Copies by content: what is there under the digest's directory is right.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.is_file() {
        return Ok(());
    }
    let parent = to.parent().unwrap_or(Path::new("/"));
    files::make_dirs(parent)?;
    let temp = to.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::copy(from, &temp).map_err(RecordError::io("copy", from))?;
    std::fs::rename(&temp, to).map_err(RecordError::io("rename onto", to))?;
    files::sync_dir(parent)?;
    Ok(())
}
