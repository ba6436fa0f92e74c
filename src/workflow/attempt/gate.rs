//! The gate: are my inputs sealed, fresh and whole? Asked inside the job, right before the work.
//!
//! Network file systems show files late, so what is missing or old is looked for again for a while.

use std::path::Path;
use std::time::{Duration, Instant};

use super::publish;
use crate::record::decision::GATE_KIND;
use crate::record::seal::SealedFile;
use crate::record::{Cell, Digest, Need, Outcome, Seal, exit};
use crate::workflow::plan::{changed_reads, reads};

/// Why the cell must not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// 65, 66 or 78.
    pub code: u8,
    /// What is wrong with which input, and what to do.
    pub message: String,
    /// Whether the input is a gate.
    pub gate: bool,
}

impl Refusal {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), gate: false }
    }
}

/// Looks at every input; returns what is read of the parents, for the seal.
///
/// # Errors
/// A [`Refusal`] that names every input that is wrong, after looking for `settle` long.
pub fn check(cell: &Cell, settle: Duration) -> Result<Vec<SealedFile>, Refusal> {
    let began = Instant::now();
    loop {
        match look(cell) {
            // A seal that shows late must not change a verdict.
            Ok(read) if cell.kind == GATE_KIND && began.elapsed() < settle && lacks_inputs(cell) => {
                drop(read);
                std::thread::sleep(Duration::from_secs(2).min(settle));
            }
            Ok(read) => return Ok(read),
            // What was stopped, or has other content, does not change by waiting.
            Err(refusal) if refusal.code == exit::STOPPED || began.elapsed() >= settle => return Err(refusal),
            Err(_) => std::thread::sleep(Duration::from_secs(2).min(settle)),
        }
    }
}

/// Whether a needed cell has no seal yet.
fn lacks_inputs(cell: &Cell) -> bool {
    let unsealed = |need: &Need| !matches!(Seal::read(&cell.need_dir(need)), Ok(Some(_)));
    cell.needs.iter().any(unsealed)
}

/// Why a cell that is sealed under its fingerprint must run all the same, as a plan judges it: a needed cell is not what was
/// read of it. `None`: the seal stands.
pub fn stale(cell: &Cell, seal: &Seal) -> Option<String> {
    if cell.kind == GATE_KIND {
        let results = |files: &[SealedFile]| -> Vec<(String, Digest)> {
            let run = |f: &&SealedFile| f.path.ends_with("/run.h5");
            files.iter().filter(run).map(|f| (f.path.clone(), f.digest.clone())).collect()
        };
        let same = look(cell).is_ok_and(|now| results(&now) == results(&seal.read));
        return (!same).then(|| "what it judges has changed".to_owned());
    }
    // A stop stands until somebody asks for another try.
    if seal.outcome == Outcome::Stopped {
        return None;
    }
    cell.needs.iter().filter(|need| need.kind != GATE_KIND).find_map(|need| {
        let (dir, name) = (cell.need_dir(need), need.key.local_name());
        list_anew(&dir);
        let now = match Seal::read(&dir) {
            Ok(Some(now)) if now.fingerprint == need.fingerprint && now.outcome == Outcome::Done => now,
            _ => return Some(format!("needed cell {name} is not sealed as planned")),
        };
        if let Some(problem) = now.check(&dir) {
            return Some(format!("needed cell {name}: {problem}"));
        }
        changed_reads(seal, &now, &name).first().map(|change| format!("{} has changed since", change.key))
    })
}

/// Listing a directory anew makes a network file system look again.
fn list_anew(dir: &Path) {
    let _ = std::fs::read_dir(dir).map(Iterator::count);
}

fn look(cell: &Cell) -> Result<Vec<SealedFile>, Refusal> {
    let mut refusals: Vec<Refusal> = Vec::new();
    let mut read = Vec::new();
    for need in &cell.needs {
        match look_at(cell, need) {
            Ok(files) => read.extend(files),
            Err(refusal) => refusals.push(Refusal { gate: need.kind == GATE_KIND, ..refusal }),
        }
    }
    // A stage that judges partial inputs itself is told nothing here but what it cannot see. Past a gate nobody goes.
    if publish::takes_partial_inputs(cell) {
        refusals.retain(|r| r.code == exit::STALE_INPUT || r.gate);
    }
    for input in &cell.inputs {
        match Digest::of_path(&input.path) {
            Ok(digest) if digest == input.digest => {}
            Ok(_) => refusals.push(Refusal::new(
                exit::STALE_INPUT,
                format!("input `{}` has changed since the plan was made: run `run_all` again", input.path.display()),
            )),
            Err(_) => refusals.push(Refusal::new(
                exit::MISSING_INPUT,
                format!("input `{}` cannot be read: put it back, then run `run_all` again", input.path.display()),
            )),
        }
    }
    // The worst code, all messages.
    match refusals.iter().map(|r| r.code).max_by_key(|&c| (c == exit::STOPPED, c == exit::MISSING_INPUT, c)) {
        None => {
            read.sort_by(|a: &SealedFile, b| a.path.cmp(&b.path));
            Ok(read)
        }
        Some(code) => {
            let lines: Vec<String> = refusals.into_iter().map(|r| r.message).collect();
            Err(Refusal::new(code, lines.join("\n")))
        }
    }
}

fn look_at(cell: &Cell, need: &Need) -> Result<Vec<SealedFile>, Refusal> {
    let dir = cell.need_dir(need);
    list_anew(&dir);
    let name = need.key.local_name();
    let seal = match Seal::read(&dir) {
        Ok(Some(seal)) => seal,
        Ok(None) => {
            return Err(Refusal::new(
                exit::MISSING_INPUT,
                format!("needed cell {name} is not sealed: `seedbed status` shows why; `run_all` runs it"),
            ));
        }
        Err(e) => return Err(Refusal::new(exit::STALE_INPUT, e.to_string())),
    };
    if seal.fingerprint != need.fingerprint {
        return Err(Refusal::new(
            exit::STALE_INPUT,
            format!("needed cell {name} is sealed under other parameters than planned: run `run_all` again"),
        ));
    }
    if seal.outcome == Outcome::Stopped {
        let said = if need.kind == GATE_KIND { "gate" } else { "needed cell" };
        let why = seal.evidence.as_ref().and_then(|e| e.get("why")).and_then(|w| w.as_str()).map(|w| format!(": {w}"));
        let stopped = if need.kind == GATE_KIND { "says stop" } else { "was stopped by a gate or kill criterion" };
        return Err(Refusal::new(exit::STOPPED, format!("{said} {name} {stopped}{}", why.unwrap_or_default())));
    }
    if let Some(problem) = seal.verify(&dir) {
        return Err(Refusal::new(
            exit::STALE_INPUT,
            format!("needed cell {name}: {problem}: run `run_all --verify` to make it again"),
        ));
    }
    let files = reads(&seal, &name).into_iter().map(|(path, digest)| {
        let size_bytes =
            path.strip_prefix(&format!("{name}/")).and_then(|p| seal.output(p)).map_or(0, |f| f.size_bytes);
        SealedFile { path, size_bytes, digest }
    });
    Ok(files.collect())
}
