//! Makes the sealed results of a study for `scripts/bench/aggregate` and `scripts/bench/query`: a run a cell, with 50
//! metrics and 200 examples, and the metrics as a small JSON file beside it. Or checks all seals, to time that alone.
//!
//! What is written is written by the program's own code; nothing has run. The numbers are a function of arm and seed.
//!
//! usage: results_tree make STUDY ROOT, or results_tree check STUDY ROOT

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use chrono::{DateTime, Utc};
use seedbed::record::{CellKey, Column, Digest, Items, Origin, Outcome, RunRecord, Seal, digest, files, run_h5, seal};
use seedbed::workflow::plan::{self, CellDef};
use seedbed::workflow::run::{Intent, Prepared, Request, prepare};

/// The stage whose cells are made.
const STAGE: &str = "score";

/// Tasks of a run, five metrics each.
const TASKS: [&str; 10] =
    ["arc_challenge", "arc_easy", "boolq", "hellaswag", "lambada", "mmlu", "openbookqa", "piqa", "sciq", "winogrande"];

/// Examples of a run.
const EXAMPLES: u64 = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [what, study, root] = words.as_slice() else {
        return Err("usage: results_tree make|check STUDY ROOT".into());
    };
    let request = Request { study: PathBuf::from(study), root: Some(root.into()), local: true, ..Request::default() };
    let prepared = prepare(&request, Intent::Look)?;
    let cells: Vec<&CellDef> =
        prepared.expansion.cells.iter().map(|c| &**c).filter(|c| c.key.stage.as_str() == STAGE).collect();
    match what.as_str() {
        "make" => make(&prepared, &cells),
        "check" => check(&prepared, &cells),
        other => Err(format!("`{other}` is neither make nor check").into()),
    }
}

fn make(prepared: &Prepared, cells: &[&CellDef]) -> Result<(), Box<dyn Error>> {
    // libhdf5 takes one thread at a time, but the disk does not.
    std::thread::scope(|scope| {
        let writers: Vec<_> = cells
            .chunks(cells.len().div_ceil(4).max(1))
            .map(|share| {
                scope.spawn(|| share.iter().try_for_each(|cell| write(prepared, cell)).map_err(|e| e.to_string()))
            })
            .collect();
        writers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|_| Err("a writer failed".to_owned())))
    })?;
    println!("{} runs", cells.len());
    Ok(())
}

fn write(prepared: &Prepared, cell: &CellDef) -> Result<(), Box<dyn Error>> {
    let run_dir = prepared.place.run_dir(&cell.key);
    let mut chance = Chance::of(&cell.key);
    let mut tasks = serde_json::Map::new();
    for task in TASKS {
        let accuracy = 0.5 + 0.4 * chance.next();
        tasks.insert(
            task.to_owned(),
            serde_json::json!({
                "accuracy": accuracy,
                "accuracy_norm": accuracy + 0.02 * chance.next(),
                "nll": 2.0 + chance.next(),
                "brier": 0.25 * chance.next(),
                "num_examples": EXAMPLES,
            }),
        );
    }
    let metrics = serde_json::json!({ "tasks": tasks });
    let draw = |chance: &mut Chance| (0..EXAMPLES).map(|_| chance.next()).collect::<Vec<f64>>();
    let outcome = draw(&mut chance).iter().map(|x| i64::from(*x < 0.7)).collect();
    let columns = vec![
        ("id".to_owned(), Column::Texts((0..EXAMPLES).map(|i| format!("{}-{i:05}", TASKS[0])).collect())),
        ("outcome".to_owned(), Column::Integers(outcome)),
        ("logprob".to_owned(), Column::Floats(draw(&mut chance).iter().map(|x| -20.0 * x).collect())),
        ("logprob_best_other".to_owned(), Column::Floats(draw(&mut chance).iter().map(|x| -20.0 * x).collect())),
        ("tokens".to_owned(), Column::Integers((0..EXAMPLES as i64).map(|i| 5 + i % 40).collect())),
    ];
    let run = RunRecord {
        key: cell.key.clone(),
        kind: "command".to_owned(),
        fingerprint: cell.fingerprint.clone(),
        labels: BTreeMap::new(),
        metrics: metrics.clone(),
        environment: serde_json::json!({"duration_s": 12.5, "host": "n17"}),
        series: BTreeMap::new(),
        items: BTreeMap::from([(TASKS[0].to_owned(), Items { columns })]),
        param_digest: None,
        numerics: serde_json::json!({"threads": 1}),
    };
    run_h5::write_run(&run_dir.join(run_h5::RUN_FILE), &run)?;
    files::write_json(&run_dir.join("metrics.json"), &metrics)?;
    let time: DateTime<Utc> = DateTime::from_timestamp(1_767_250_000, 0).unwrap_or_default();
    Seal {
        version: seal::SEAL_VERSION,
        key: cell.key.clone(),
        fingerprint: cell.fingerprint.clone(),
        source: prepared.plan.source(cell),
        outcome: Outcome::Done,
        origin: Origin::Run,
        evidence: None,
        warnings: Vec::new(),
        content: Some(run.content_digest()),
        outputs: seal::digest_outputs(&run_dir, &["metrics.json".to_owned(), run_h5::RUN_FILE.to_owned()])?,
        read: Vec::new(),
        jobs: vec![format!("5000_{}", cell.key.seed.unwrap_or(0))],
        attempt: 1,
        host: "n17".to_owned(),
        started_at: time,
        sealed_at: time,
        wall_s: 3600.0,
        code: plan::code(),
        digest: Digest::of_bytes(b""),
    }
    .write(&run_dir)?;
    Ok(())
}

/// Reads every seal and digests the run that it vouches for, as an aggregation does, and nothing else.
fn check(prepared: &Prepared, cells: &[&CellDef]) -> Result<(), Box<dyn Error>> {
    let threads = std::thread::available_parallelism()?.get();
    let began = Instant::now();
    let checked: usize = std::thread::scope(|scope| {
        let one = |cell: &&CellDef| -> Result<bool, seedbed::record::RecordError> {
            let run_dir = prepared.place.run_dir(&cell.key);
            let Some(seal) = Seal::read(&run_dir)? else { return Ok(false) };
            let digest = Digest::of_file(&run_dir.join(run_h5::RUN_FILE))?;
            Ok(seal.output(run_h5::RUN_FILE).is_some_and(|file| file.digest == digest))
        };
        let checkers: Vec<_> = cells
            .chunks(cells.len().div_ceil(threads).max(1))
            .map(|share| scope.spawn(move || share.iter().filter(|cell| one(cell).unwrap_or(false)).count()))
            .collect();
        checkers.into_iter().map(|c| c.join().unwrap_or(0)).sum()
    });
    if checked != cells.len() {
        return Err(format!("{checked} of {} runs are what was sealed", cells.len()).into());
    }
    println!("{}", serde_json::json!({"cells": checked, "seconds": began.elapsed().as_secs_f64()}));
    Ok(())
}

/// Numbers between 0 and 1 that follow from a cell's arm and seed.
struct Chance {
    of: String,
    drawn: u32,
}

impl Chance {
    fn of(key: &CellKey) -> Self {
        Self { of: digest::canonical_json(&serde_json::json!([key.arm, key.seed])), drawn: 0 }
    }

    fn next(&mut self) -> f64 {
        self.drawn += 1;
        let digest = Digest::of_bytes(format!("{} {}", self.of, self.drawn).as_bytes());
        // Thirteen hexadecimal digits are 52 bits: a float holds them.
        u64::from_str_radix(&digest.as_str()[..13], 16).map_or(0.0, |x| x as f64 / (1u64 << 52) as f64)
    }
}
