//! Makes the run directories and the journal of a large study, half of it sealed, for `scripts/bench/plan-scale`.
//!
//! What is written is written by the program's own code: seals, attempts, `run.h5` and the journal are those of a study
//! that was submitted to Slurm and has come half way. Nothing has run: no program of a stage is started.
//!
//! usage: scale_tree STUDY ROOT QUEUE: `QUEUE` becomes what squeue says of the jobs that are left.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use seedbed::record::{
    Adjust, AttemptEnd, AttemptStart, CellKey, Digest, JobRef, Next, Origin, Outcome, RunRecord, Seal, Verdict, Why,
    attempt, exit, files, run_h5, seal,
};
use seedbed::workflow::journal::{self, Event, IntendedCell, Journal};
use seedbed::workflow::plan::{self, CellDef, Chain, JobShape};
use seedbed::workflow::run::{Intent, Prepared, Request, prepare};

const SUBMISSION: &str = "20260101T080000-5eedbd";
const CLUSTER: &str = "scale";

/// Of how many cells of the half that is not sealed the first stage has been tried.
const TRIED: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [study, root, queue] = words.as_slice() else { return Err("usage: scale_tree STUDY ROOT QUEUE".into()) };
    let request = Request { study: study.clone(), root: Some(root.clone()), local: true, ..Request::default() };
    let prepared = prepare(&request, Intent::Look)?;
    let jobs = Jobs::write(&prepared)?;
    let half = prepared.seeds.len() / 2;
    let sealed = |key: &CellKey| key.seed.is_some_and(|seed| seed as usize <= half);
    let sealed: Vec<bool> = prepared.expansion.cells.iter().map(|cell| sealed(&cell.key)).collect();
    seal_all(&prepared, &jobs, &sealed)?;
    let mut waiting = String::new();
    let mut tried = 0;
    for (def, _) in prepared.expansion.cells.iter().zip(&sealed).filter(|(_, sealed)| !**sealed) {
        let job = jobs.of(&def.key);
        let begun = def.needs.is_empty() && def.key.seed.is_some_and(|seed| seed as usize % TRIED == 0);
        if begun {
            tried += 1;
            try_it(&prepared, def, &job, tried)?;
            if tried % 3 == 1 {
                continue;
            }
        }
        let runs = begun && tried % 3 == 0;
        let (state, reason) = match def.needs.is_empty() {
            true if runs => ("RUNNING", "None"),
            true => ("PENDING", "Priority"),
            false => ("PENDING", "Dependency"),
        };
        let index = job.slot.map_or("N/A".to_owned(), |slot| slot.to_string());
        waiting.push_str(&format!("{}|{index}|{state}|{reason}|N/A|N/A|{}|(null)\n", job.id, job.name));
    }
    std::fs::write(queue, waiting)?;
    println!("{} cells, {} sealed, {tried} tried", sealed.len(), sealed.iter().filter(|s| **s).count());
    Ok(())
}

/// The job and array index of a cell.
struct Element<'a> {
    id: u32,
    name: &'a str,
    slot: Option<u32>,
}

impl Element<'_> {
    fn text(&self) -> String {
        self.slot.map_or(self.id.to_string(), |slot| format!("{}_{slot}", self.id))
    }
}

/// Every job of the whole study, as it was submitted.
struct Jobs {
    names: Vec<String>,
    of: BTreeMap<CellKey, (usize, Option<u32>)>,
}

impl Jobs {
    fn write(prepared: &Prepared) -> Result<Self, Box<dyn Error>> {
        let own = prepared.place.own();
        let journal = Journal::open(&own, CLUSTER);
        journal.write(Event::Asked { seeds: prepared.seeds.clone() })?;
        let slots = journal::slots(&own, &prepared.seeds)?;
        let shape = JobShape { chain: Chain::Arrays, max_array_size: 1001, requeue: true, packs: false };
        let fingerprints: BTreeMap<&CellKey, &Digest> =
            prepared.expansion.cells.iter().map(|cell| (&cell.key, &cell.fingerprint)).collect();
        let mut jobs = Self { names: Vec::new(), of: BTreeMap::new() };
        for job in plan::jobs(&prepared.study, &prepared.plan, &slots, shape) {
            let (number, arm) = (jobs.names.len(), job.arm.as_ref().map(|a| format!(".{a}")).unwrap_or_default());
            let name = format!("{}.{}{arm}.{SUBMISSION}-{number}", prepared.study.name, job.stage);
            let intended = job.cells.iter().map(|(slot, key)| {
                let fingerprint = fingerprints[key].clone();
                (key.local_name(), IntendedCell { slot: *slot, pack: job.pack, fingerprint, again: None })
            });
            let (submission, stage, cells) = (SUBMISSION.to_owned(), job.stage.clone(), intended.collect());
            journal.write(Event::Intent { submission, job: name.clone(), stage, cells })?;
            journal.write(Event::Submitted { job: name.clone(), id: id_of(number).to_string() })?;
            jobs.of.extend(job.cells.into_iter().map(|(slot, key)| (key, (number, slot))));
            jobs.names.push(name);
        }
        Ok(jobs)
    }

    fn of(&self, key: &CellKey) -> Element<'_> {
        let (number, slot) = self.of[key];
        Element { id: id_of(number), name: &self.names[number], slot }
    }
}

fn id_of(number: usize) -> u32 {
    5000 + number as u32
}

fn seal_all(prepared: &Prepared, jobs: &Jobs, sealed: &[bool]) -> Result<(), Box<dyn Error>> {
    let cells = &prepared.expansion.cells;
    let mut seals: BTreeMap<usize, Seal> = BTreeMap::new();
    // Parents stand before their children.
    for (i, def) in cells.iter().enumerate().filter(|(i, _)| sealed[*i]) {
        let run_dir = prepared.place.run_dir(&def.key);
        let start = claim(&run_dir, def, &jobs.of(&def.key), 1)?;
        end(&run_dir, &start, exit::DONE, Why::Done)?;
        let metrics = serde_json::json!({"loss": 2.5 + f64::from(def.key.seed.unwrap_or(0)) / 1e6, "accuracy": 0.75});
        files::write_json(&run_dir.join("metrics.json"), &metrics)?;
        let run = RunRecord {
            key: def.key.clone(),
            kind: "command".to_owned(),
            fingerprint: def.fingerprint.clone(),
            labels: BTreeMap::new(),
            metrics,
            environment: serde_json::json!({}),
            series: BTreeMap::new(),
            items: BTreeMap::new(),
            param_digest: None,
            numerics: serde_json::json!({}),
        };
        run_h5::write_run(&run_dir.join(run_h5::RUN_FILE), &run)?;
        let outputs = seal::digest_outputs(&run_dir, &["metrics.json".to_owned(), run_h5::RUN_FILE.to_owned()])?;
        let mut read = Vec::new();
        for parent in &def.needs {
            let (seal, name) = (&seals[parent], cells[*parent].key.local_name());
            for (path, digest) in plan::reads(seal, &name) {
                let size_bytes = seal.outputs.iter().find(|f| path.ends_with(&f.path)).map_or(0, |f| f.size_bytes);
                read.push(seal::SealedFile { path, size_bytes, digest });
            }
        }
        read.sort_by(|a, b| a.path.cmp(&b.path));
        let seal = Seal {
            version: seal::SEAL_VERSION,
            key: def.key.clone(),
            fingerprint: def.fingerprint.clone(),
            source: prepared.plan.source(def),
            outcome: Outcome::Done,
            origin: Origin::Run,
            evidence: None,
            warnings: Vec::new(),
            content: Some(run.content_digest()),
            outputs,
            read,
            jobs: vec![jobs.of(&def.key).text()],
            attempt: 1,
            host: start.host,
            started_at: start.started_at,
            sealed_at: start.started_at + TimeDelta::seconds(3600),
            wall_s: 3600.0,
            code: plan::code(),
            digest: Digest::of_bytes(b""),
        };
        seals.insert(i, seal.write(&run_dir)?);
    }
    Ok(())
}

/// An attempt that failed, one that checkpointed, or one that runs.
fn try_it(prepared: &Prepared, def: &CellDef, job: &Element<'_>, number: usize) -> Result<(), Box<dyn Error>> {
    let run_dir = prepared.place.run_dir(&def.key);
    let first = claim(&run_dir, def, job, 1)?;
    end(&run_dir, &first, exit::RESUME, Why::Checkpointed)?;
    let second = claim(&run_dir, def, job, 2)?;
    attempt::beat(&run_dir, 2, 7)?;
    match number % 3 {
        0 => Ok(()),
        1 => end(&run_dir, &second, 1, Why::Failed),
        _ => end(&run_dir, &second, exit::RESUME, Why::Checkpointed),
    }
}

fn claim(run_dir: &Path, def: &CellDef, job: &Element<'_>, n: u32) -> Result<AttemptStart, Box<dyn Error>> {
    let start = AttemptStart {
        version: attempt::ATTEMPT_VERSION,
        attempt: n,
        key: def.key.clone(),
        fingerprint: def.fingerprint.clone(),
        submission: SUBMISSION.to_owned(),
        job: Some(JobRef { id: job.text(), restart: n - 1 }),
        host: "n17".to_owned(),
        pid: 4242,
        boot_id: "b17".to_owned(),
        user: attempt::user_name(),
        started_at: time(),
        inputs: None,
    };
    if !attempt::claim(run_dir, &start)? {
        return Err(format!("{} is not empty: give an empty ROOT", run_dir.display()).into());
    }
    Ok(start)
}

fn end(run_dir: &Path, start: &AttemptStart, code: impl Into<i32>, why: Why) -> Result<(), Box<dyn Error>> {
    let end = AttemptEnd {
        version: attempt::ATTEMPT_VERSION,
        exit_code: code.into(),
        cause: "as the bench wants it".to_owned(),
        step: Some(120),
        ended_at: start.started_at + TimeDelta::seconds(3600),
        wall_s: 3600.0,
        verdict: Some(Verdict { why, next: Next::Nothing, adjust: Adjust::default() }),
    };
    Ok(attempt::write_end(run_dir, start.attempt, &end)?)
}

fn time() -> DateTime<Utc> {
    DateTime::from_timestamp(1_767_250_000, 0).unwrap_or_default()
}
