//! Verifying what a stage wrote, moving it to its final names, and sealing it.

use std::path::Path;

use chrono::Utc;
use serde_json::{Value, json};

use crate::record::decision::{DECISION_FILE, GATE_KIND, Verdict};
use crate::record::seal::{self, SEAL_VERSION, SealedFile};
use crate::record::{
    AttemptStart, Cell, Decision, Digest, Origin, Outcome, RecordError, RunRecord, Seal, attempt, files, run_h5,
};
use crate::stages;
use crate::workflow::plan::code;

/// What a foreign program reports its numbers in.
pub const METRICS_FILE: &str = "metrics.json";

/// Names that belong to the run directory itself.
const RESERVED: [&str; 8] =
    ["attempts", "cell.toml", "checkpoints", "invalid.json", "log.txt", "progress.jsonl", "seal.json", "flags"];

/// Why nothing was sealed.
#[derive(Debug)]
pub enum Refusal {
    /// The outputs are not what the stage promised.
    Outputs(String),
    /// A newer attempt owns the cell.
    Superseded,
    /// A file cannot be written.
    Disk(RecordError),
}

impl From<RecordError> for Refusal {
    fn from(error: RecordError) -> Self {
        Self::Disk(error)
    }
}

/// True for a stage that runs on whatever of its inputs is sealed.
pub fn takes_partial_inputs(cell: &Cell) -> bool {
    stages::all_specs().iter().any(|s| s.kind == cell.kind && s.partial_inputs)
}

/// Verifies, publishes and seals the outputs of a finished attempt.
pub fn publish(
    cell: &Cell,
    start: &AttemptStart,
    run_dir: &Path,
    out_dir: &Path,
    read: Vec<SealedFile>,
) -> Result<Seal, Refusal> {
    if cell.kind == "command" {
        record_metrics(cell, out_dir)?;
    }
    let passes = |d: Decision| d.verdict == Verdict::Pass && d.fingerprint == cell.fingerprint;
    if cell.kind == GATE_KIND && !Decision::read(out_dir)?.is_some_and(passes) {
        return Err(Refusal::Outputs(format!("the gate ended with 0 but its {DECISION_FILE} says no pass")));
    }
    let run = verify(cell, out_dir)?;
    let (content, warnings) = (Some(run.content_digest()), warnings(&run));
    let outputs = move_outputs(Some(start.attempt), run_dir, out_dir)?;
    let seal = Seal { content, warnings, ..unsigned(cell, start, run_dir, outputs, read) };
    if attempt::is_superseded(run_dir, start.attempt) {
        return Err(Refusal::Superseded);
    }
    Ok(seal.write(run_dir)?)
}

/// Seals a cell as stopped, with what the stage left as evidence. Of a gate the decision is sealed with it.
pub fn stop(
    cell: &Cell,
    start: &AttemptStart,
    run_dir: &Path,
    out_dir: &Path,
    cause: &str,
    read: Vec<SealedFile>,
) -> Result<(), Refusal> {
    let (evidence, outputs, read) = if cell.kind == GATE_KIND {
        let decision = Decision::read(out_dir)?
            .filter(|d| d.verdict == Verdict::Stop && d.fingerprint == cell.fingerprint)
            .ok_or_else(|| Refusal::Outputs(format!("the gate ended with 78 but its {DECISION_FILE} says no stop")))?;
        let evidence = json!({"verdict": decision.verdict, "why": decision.reason, "evidence": decision.evidence});
        (evidence, move_outputs(Some(start.attempt), run_dir, out_dir)?, read)
    } else {
        let left = files::read_json(&out_dir.join(attempt::EVIDENCE_FILE)).unwrap_or_else(|_| json!(cause));
        (left, Vec::new(), Vec::new())
    };
    let seal =
        Seal { outcome: Outcome::Stopped, evidence: Some(evidence), ..unsigned(cell, start, run_dir, outputs, read) };
    Ok(seal.write(run_dir).map(drop)?)
}

/// Moves what a stage wrote into place without sealing it.
pub fn publish_unsealed(run_dir: &Path, out_dir: &Path) -> Result<(), RecordError> {
    match move_outputs(None, run_dir, out_dir) {
        Ok(_) => Ok(()),
        Err(Refusal::Disk(error)) => Err(error),
        Err(Refusal::Outputs(why)) => Err(RecordError::Value(why)),
        Err(Refusal::Superseded) => Ok(()),
    }
}

fn unsigned(
    cell: &Cell,
    start: &AttemptStart,
    run_dir: &Path,
    outputs: Vec<SealedFile>,
    read: Vec<SealedFile>,
) -> Seal {
    let now = Utc::now();
    let this = (now - start.started_at).num_milliseconds() as f64 / 1000.0;
    let mut wall_s = this.max(0.0);
    let mut jobs = Vec::new();
    for n in 1..=start.attempt {
        if let Ok(earlier) = attempt::read_start(run_dir, n)
            && let Some(job) = earlier.job
            && !jobs.contains(&job.id)
        {
            jobs.push(job.id);
        }
        if n < start.attempt
            && let Ok(Some(end)) = attempt::read_end(run_dir, n)
        {
            wall_s += end.wall_s;
        }
    }
    Seal {
        version: SEAL_VERSION,
        key: cell.key.clone(),
        fingerprint: cell.fingerprint.clone(),
        source: cell.source.clone(),
        outcome: Outcome::Done,
        origin: if cell.kind == stages::recorded::SPEC.kind { Origin::Imported } else { Origin::Run },
        evidence: None,
        warnings: Vec::new(),
        content: None,
        outputs,
        read,
        jobs,
        attempt: start.attempt,
        host: start.host.clone(),
        started_at: start.started_at,
        sealed_at: now,
        wall_s,
        code: code(),
        // Filled in by `Seal::write`.
        digest: Digest::of_bytes(b""),
    }
}

/// A foreign program's `metrics.json` becomes the value tree of `run.h5`.
fn record_metrics(cell: &Cell, out_dir: &Path) -> Result<(), Refusal> {
    let path = out_dir.join(METRICS_FILE);
    let mut run = RunRecord::new(cell);
    match files::read_json::<Value>(&path) {
        Ok(metrics) if metrics.is_object() => run.metrics = metrics,
        Ok(_) => {
            return Err(Refusal::Outputs(format!(
                "`{METRICS_FILE}` is not a JSON object: write one, such as {{\"loss\": 1.5}}"
            )));
        }
        Err(e) if e.is_not_found() => {}
        Err(e) => return Err(Refusal::Outputs(format!("{e}: `{METRICS_FILE}` must hold one JSON object without NaN"))),
    }
    let lines = crate::record::progress::read(&cell.run_dir()).unwrap_or_default();
    run.series = crate::record::progress::series(&lines);
    match run_h5::write_run(&out_dir.join(run_h5::RUN_FILE), &run) {
        Err(RecordError::Value(why)) => Err(Refusal::Outputs(format!("`{METRICS_FILE}`: {why}"))),
        other => Ok(other?),
    }
}

/// The texts under `warnings` of a result, so that nobody has to open it to hear of them; cut where one goes on and on.
fn warnings(run: &RunRecord) -> Vec<String> {
    let texts = run.metrics["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.take(20).map(|text| text.chars().take(500).collect()).collect()
}

/// Checks declared outputs and `run.h5`; returns what that holds.
fn verify(cell: &Cell, out_dir: &Path) -> Result<RunRecord, Refusal> {
    let missing: Vec<&String> = cell.outputs.iter().filter(|o| !out_dir.join(o).exists()).collect();
    if !missing.is_empty() {
        let names: Vec<String> = missing.iter().map(|m| format!("`{m}`")).collect();
        return Err(Refusal::Outputs(format!(
            "the stage ended with 0 but did not write {} into its run directory ($SEEDBED_RUN_DIR): see log.txt",
            names.join(", ")
        )));
    }
    let run = match run_h5::read_run(&out_dir.join(run_h5::RUN_FILE)) {
        Ok(run) => run,
        Err(e) => return Err(Refusal::Outputs(format!("{e}: the stage ended with 0 without a whole run.h5"))),
    };
    if run.key != cell.key || run.fingerprint != cell.fingerprint {
        return Err(Refusal::Outputs(format!("run.h5 is that of {} and not of {}", run.key, cell.key)));
    }
    Ok(run)
}

/// Moves every entry of `out_dir` into the run directory. Returns every file with its digest.
fn move_outputs(attempt: Option<u32>, run_dir: &Path, out_dir: &Path) -> Result<Vec<SealedFile>, Refusal> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(out_dir).map_err(RecordError::io("list", out_dir))? {
        let entry = entry.map_err(RecordError::io("list", out_dir))?;
        let name = entry.file_name();
        let name =
            name.to_str().ok_or_else(|| Refusal::Outputs(format!("output {name:?} has a name that is not UTF-8")))?;
        if RESERVED.contains(&name) || name.starts_with(".attempt-") {
            return Err(Refusal::Outputs(format!(
                "the stage wrote `{name}`, a name that Seedbed keeps for itself: choose another"
            )));
        }
        if name.starts_with('.') && name.ends_with(".tmp") {
            std::fs::remove_file(entry.path()).map_err(RecordError::io("remove", entry.path()))?;
            continue;
        }
        names.push(name.to_owned());
    }
    names.sort();
    // Digested, and links refused, before anything moves: a rename changes no byte.
    let outputs = seal::digest_outputs(out_dir, &names).map_err(|e| match e {
        RecordError::Value(why) => Refusal::Outputs(why),
        other => Refusal::Disk(other),
    })?;
    if attempt.is_some_and(|n| attempt::is_superseded(run_dir, n)) {
        return Err(Refusal::Superseded);
    }
    // An older seal does not stand for what comes now: killed in between, the cell has none.
    seal::remove(run_dir)?;
    for name in &names {
        let (from, to) = (out_dir.join(name), run_dir.join(name));
        if to.is_dir() {
            let aside = run_dir.join(format!(".attempt-old-{name}"));
            std::fs::rename(&to, &aside).map_err(RecordError::io("move aside", &to))?;
            std::fs::rename(&from, &to).map_err(RecordError::io("rename onto", &to))?;
            // What cannot be removed now (a file that somebody on NFS still reads) is swept by the next attempt.
            let _ = std::fs::remove_dir_all(&aside);
        } else {
            std::fs::rename(&from, &to).map_err(RecordError::io("rename onto", &to))?;
        }
    }
    files::sync_dir(run_dir)?;
    let _ = std::fs::remove_dir(out_dir);
    Ok(outputs)
}
