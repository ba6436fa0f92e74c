//! Staging: what the cluster file or the stage asks for is copied once to each of the job's nodes before the stage starts,
//! compared by digest, and told to the stage in the places where it finds its data anyway; outputs may be written there
//! and copied back. Everything is taken away at the end.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Executor, say};
use crate::record::{AttemptStart, Cell, Digest, Fingerprint, RecordError, Seal, digest, exit, files};
use crate::workflow::study::Staging;

/// Why the stage cannot start.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 65 or 73.
    pub code: u8,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Refusal {
    fn stale(message: String) -> Self {
        Self { code: exit::STALE_INPUT, message }
    }
}

impl From<RecordError> for Refusal {
    fn from(error: RecordError) -> Self {
        Self { code: exit::CANNOT_WRITE, message: format!("stage_in: {error}") }
    }
}

/// What is copied to a node.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    items: Vec<Item>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Item {
    name: String,
    from: PathBuf,
    to: PathBuf,
    /// Of an input: its digest. Of a needed cell: the fingerprint that it is sealed with.
    is: Is,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Is {
    Input(Digest),
    Cell(Fingerprint),
}

/// A cell whose data lies on the node's own disk.
pub struct Staged {
    /// The cell as its stage is told.
    pub cell: Cell,
    /// The directory on the node.
    pub dir: PathBuf,
    /// Where outputs are written, if there.
    out: Option<PathBuf>,
    nodes: u32,
    seedbed: PathBuf,
}

/// Copies what is asked for; none if nothing is.
///
/// # Errors
/// A copy differs from what was planned, or cannot be made.
pub fn enter(
    staging: &Staging,
    cell: &Cell,
    start: &AttemptStart,
    programs: &Path,
    executor: Executor,
) -> Result<Option<Staged>, Refusal> {
    if staging.is_nothing() {
        return Ok(None);
    }
    let base = staging
        .dir
        .clone()
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()).map(PathBuf::from));
    let job = start.job.as_ref().map_or_else(|| start.pid.to_string(), |job| job.id.clone());
    let cell_digest = Digest::of_bytes(cell.key.to_string().as_bytes());
    // One of its own for each attempt: array elements and other users share the disk.
    let name = format!("seedbed-{}-{job}-{}-{}", start.user.replace('/', "_"), cell_digest.short(), start.attempt);
    let dir = base.unwrap_or_else(std::env::temp_dir).join(name);
    let (told, items) = told(cell, &staging.copy, &dir);
    // On this machine all ranks are on one node.
    let nodes = if executor == Executor::Local { 1 } else { cell.resources.nodes };
    let seedbed = programs.join("seedbed");
    let out = staging.out.then(|| dir.join("out"));
    let staged = Staged { cell: told, dir, out, nodes, seedbed };
    match staged.bring(&Task { items }, &cell.run_dir(), start.attempt) {
        Ok(()) => Ok(Some(staged)),
        Err(refusal) => {
            staged.remove();
            Err(refusal)
        }
    }
}

/// The cell with the places of the copies, and what is to be copied.
fn told(cell: &Cell, names: &[String], dir: &Path) -> (Cell, Vec<Item>) {
    let mut told = cell.clone();
    let mut items = Vec::new();
    for (i, input) in cell.inputs.iter().enumerate().filter(|(_, input)| names.contains(&input.name)) {
        let to = dir.join("inputs").join(i.to_string()).join(input.path.file_name().unwrap_or_default());
        let (old, new) = (input.path.to_string_lossy(), to.to_string_lossy().into_owned());
        told.inputs[i].path.clone_from(&to);
        told.command.iter_mut().filter(|word| **word == old).for_each(|word| word.clone_from(&new));
        if let Some(parameter) = told.params.get_mut(&input.name).filter(|_| cell.kind != "command") {
            *parameter = new.into();
        }
        let (name, from, is) = (input.name.clone(), input.path.clone(), Is::Input(input.digest.clone()));
        items.push(Item { name, from, to, is });
    }
    for (i, need) in cell.needs.iter().enumerate() {
        if names.iter().any(|name| name == need.key.stage.as_str()) {
            let to = dir.join("needs").join(need.key.local_dir());
            told.needs[i].dir.clone_from(&to);
            let (name, from) = (need.key.local_name(), cell.need_dir(need));
            items.push(Item { name, from, to, is: Is::Cell(need.fingerprint.clone()) });
        }
    }
    (told, items)
}

impl Staged {
    /// Where the stage writes its outputs; `otherwise` if they are not staged.
    pub fn out_dir<'a>(&'a self, otherwise: &'a Path) -> &'a Path {
        self.out.as_deref().unwrap_or(otherwise)
    }

    fn bring(&self, task: &Task, run_dir: &Path, attempt: u32) -> Result<(), Refusal> {
        make_private(&self.dir)?;
        if let Some(out) = &self.out {
            files::make_dirs(out)?;
        }
        if self.nodes <= 1 || task.items.is_empty() {
            return copy_all(task);
        }
        // One copier on each node. The file lies where all of them see it.
        let shared = run_dir.join(format!(".attempt-staging-{attempt}"));
        let path = shared.join("task.json");
        files::write_json(&path, task)?;
        let code = self.on_each_node(&["copy", &path.to_string_lossy()]);
        // A later attempt takes it away, if this one cannot.
        let _ = std::fs::remove_dir_all(&shared);
        match code {
            Some(0) => Ok(()),
            Some(code @ (65 | 73)) => {
                let message = "stage_in failed on a node: the log of the job says which and why".to_owned();
                Err(Refusal { code: u8::try_from(code).unwrap_or(exit::CANNOT_WRITE), message })
            }
            _ => {
                let message = format!(
                    "stage_in could not be started on {} nodes (`srun --overlap`): see the log of the job, or leave `stage_in` out",
                    self.nodes
                );
                Err(Refusal { code: exit::CANNOT_WRITE, message })
            }
        }
    }

    /// Runs `seedbed stage-data` once on each node; its exit code.
    fn on_each_node(&self, words: &[&str]) -> Option<i32> {
        let mut command = Command::new("srun");
        command.args(["--overlap", "--mpi=none", "--ntasks-per-node=1", "--cpus-per-task=1", "--kill-on-bad-exit=1"]);
        command.args([format!("--nodes={}", self.nodes), format!("--ntasks={}", self.nodes)]);
        command.arg(&self.seedbed).arg("stage-data").args(words).stdin(Stdio::null());
        command.status().ok()?.code()
    }

    /// Copies outputs back, each compared by digest, and takes everything away. `wanted`: whether the outputs count.
    ///
    /// # Errors
    /// An output cannot be copied.
    pub fn leave(self, out_dir: &Path, wanted: bool) -> Result<(), RecordError> {
        let back = match &self.out {
            Some(out) if wanted => copy_back(out, out_dir),
            _ => Ok(()),
        };
        self.remove();
        back
    }

    fn remove(&self) {
        if self.nodes > 1 {
            self.on_each_node(&["remove", &self.dir.to_string_lossy()]);
        } else {
            remove(&self.dir);
        }
    }
}

fn make_private(dir: &Path) -> Result<(), RecordError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(RecordError::io("make", dir))
}

/// What `seedbed stage-data` does on a node. Returns the exit code.
pub fn on_node(what: &str, path: &Path) -> u8 {
    if what == "remove" {
        remove(path);
        return exit::DONE;
    }
    let task: Result<Task, RecordError> = files::read_json(path);
    match task.map_err(Refusal::from).and_then(|task| copy_all(&task)) {
        Ok(()) => exit::DONE,
        Err(refusal) => {
            say(&format!("{}: {}", files::host_name(), refusal.message));
            refusal.code
        }
    }
}

/// Only a directory that [`enter`] has made.
fn remove(dir: &Path) {
    if dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seedbed-")) {
        match std::fs::remove_dir_all(dir) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => say(&format!("{} stays: {e}", dir.display())),
        }
    }
}

fn copy_all(task: &Task) -> Result<(), Refusal> {
    for item in &task.items {
        let began = Instant::now();
        let bytes = copy_one(item)?;
        say(&format!(
            "stage_in {}: {:.1} MB in {:.1} s to {} on {}, digest as planned",
            item.name,
            bytes as f64 / 1e6,
            began.elapsed().as_secs_f64(),
            item.to.display(),
            files::host_name()
        ));
    }
    Ok(())
}

/// Copies under another name, compares, and renames: who finds the place taken finds it whole.
fn copy_one(item: &Item) -> Result<u64, Refusal> {
    let parent = item.to.parent().unwrap_or(Path::new("/"));
    let own = format!(".{}-{}", files::host_name(), std::process::id());
    // A directory of its own, so that the copy of a file keeps its name.
    let aside = parent.join(own);
    let temp = aside.join(item.to.file_name().unwrap_or_default());
    let copied = (|| {
        make_private(&aside)?;
        let paths = match &item.is {
            Is::Input(_) if item.from.is_file() => vec![PathBuf::new()],
            Is::Input(_) => digest::files_below(&item.from)?,
            Is::Cell(_) => sealed_files(item)?,
        };
        let mut bytes = 0;
        for path in paths {
            let (from, to) = match path.as_os_str().is_empty() {
                true => (item.from.clone(), temp.clone()),
                false => (item.from.join(&path), temp.join(&path)),
            };
            make_private(to.parent().unwrap_or(parent))?;
            bytes += std::fs::copy(&from, &to).map_err(RecordError::io("copy", &from))?;
        }
        if let Some(problem) = differs(item, &temp)? {
            return Err(Refusal::stale(format!("stage_in: the copy of {} {problem}: run `run_all` again", item.name)));
        }
        match std::fs::rename(&temp, &item.to) {
            Ok(()) => Ok(bytes),
            // Another copier of this node was first.
            Err(_) if item.to.exists() => match differs(item, &item.to)? {
                None => Ok(bytes),
                Some(problem) => Err(Refusal::stale(format!("stage_in: the copy of {} {problem}", item.name))),
            },
            Err(e) => Err(RecordError::io("rename onto", &item.to)(e).into()),
        }
    })();
    // What was renamed is no longer there.
    let _ = std::fs::remove_dir_all(&aside);
    copied
}

/// The files of a sealed cell, its seal among them.
fn sealed_files(item: &Item) -> Result<Vec<PathBuf>, Refusal> {
    let seal = Seal::read(&item.from)?
        .ok_or_else(|| Refusal::stale(format!("stage_in: {} is no longer sealed: run `run_all` again", item.name)))?;
    let mut paths: Vec<PathBuf> = seal.outputs.iter().map(|file| PathBuf::from(&file.path)).collect();
    paths.push(PathBuf::from(crate::record::seal::SEAL_FILE));
    Ok(paths)
}

/// In what a copy is not what was planned.
fn differs(item: &Item, copy: &Path) -> Result<Option<String>, RecordError> {
    Ok(match &item.is {
        Is::Input(digest) => (Digest::of_path(copy)? != *digest).then(|| "has another digest than planned".to_owned()),
        Is::Cell(fingerprint) => match Seal::read(copy)? {
            Some(seal) if seal.fingerprint == *fingerprint => seal.verify(copy).map(|problem| problem.to_string()),
            _ => Some("is sealed under other parameters than planned".to_owned()),
        },
    })
}

/// Copies every output, and compares.
fn copy_back(out: &Path, out_dir: &Path) -> Result<(), RecordError> {
    let began = Instant::now();
    let mut bytes = 0;
    for path in digest::files_below(out)? {
        let (from, to) = (out.join(&path), out_dir.join(&path));
        files::make_dirs(to.parent().unwrap_or(out_dir))?;
        bytes += std::fs::copy(&from, &to).map_err(RecordError::io("copy", &from))?;
        if Digest::of_file(&from)? != Digest::of_file(&to)? {
            return Err(RecordError::damaged(&to, "it is not what was copied: is the file system well?"));
        }
    }
    say(&format!(
        "stage_out: {:.1} MB in {:.1} s from {}, digests equal",
        bytes as f64 / 1e6,
        began.elapsed().as_secs_f64(),
        out.display()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(dir: &Path, digest: Digest) -> Item {
        let (from, to) = (dir.join("from"), dir.join("node/inputs/0/from"));
        Item { name: "corpus".into(), from, to, is: Is::Input(digest) }
    }

    #[test]
    fn a_copy_is_whole_and_what_was_planned_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir_all(from.join("a")).unwrap();
        std::fs::write(from.join("a/b.txt"), "text").unwrap();
        std::fs::write(from.join("c.txt"), "more").unwrap();
        let good = item(dir.path(), Digest::of_path(&from).unwrap());
        assert_eq!(copy_one(&good).unwrap(), 8);
        assert_eq!(Digest::of_path(&good.to).unwrap(), Digest::of_path(&from).unwrap());
        // Another copier of the same node.
        assert_eq!(copy_one(&good).unwrap(), 8);
        let left: Vec<_> = std::fs::read_dir(good.to.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "no part stays: {left:?}");

        std::fs::remove_dir_all(dir.path().join("node")).unwrap();
        let other = item(dir.path(), Digest::of_bytes(b"another"));
        let refusal = copy_one(&other).unwrap_err();
        assert_eq!(refusal.code, exit::STALE_INPUT);
        assert!(refusal.message.contains("the copy of corpus has another digest"), "{}", refusal.message);
        assert!(!other.to.exists());
        std::fs::remove_dir_all(&from).unwrap();
        assert_eq!(copy_one(&good).unwrap_err().code, exit::CANNOT_WRITE);
    }

    #[test]
    fn only_what_we_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        for (name, stays) in [("seedbed-ada-12_3-abc-1", false), ("precious", true)] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            assert_eq!(on_node("remove", &path), 0);
            assert_eq!(path.exists(), stays, "{name}");
        }
    }
}
