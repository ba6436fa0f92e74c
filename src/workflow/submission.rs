//! A submission: everything its jobs read, written before they are submitted and never changed.
//!
//! `<.seedbed>/submissions/<time>-<hex>/` holds the study's text, `plan.json` (which job and slot is which
//! cell), a `cell.toml` for each cell, and the job scripts. Editing the study or rebuilding the program
//! never reaches a queued job.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::error::{Result, WorkflowError};
use super::place::Place;
use super::plan::{CellDef, Expansion, Link, Pack, Plan, PlannedCell, PlannedJob};
use super::retry;
use super::slurm::wishes::Tell;
use super::study::{Retry, Run, Staging, Study};
use crate::record::cell::{CELL_VERSION, Cell, ExternalInput, Need};
use crate::record::{CellKey, Digest, Fingerprint, Name, RecordError, files};

/// Format version of `plan.json`.
pub const SUBMISSION_VERSION: u32 = 1;

/// `plan.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// [`SUBMISSION_VERSION`].
    pub version: u32,
    /// Its own name.
    pub name: String,
    /// The study.
    pub study: Name,
    /// The profile.
    pub profile: Name,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// `<root>/results/<study>/<profile>`.
    pub base: PathBuf,
    /// Directory of the programs its jobs run.
    pub programs: PathBuf,
    /// How an attempt behaves.
    pub rules: Rules,
    /// Its jobs.
    pub jobs: Vec<SubmittedJob>,
    /// Every stage of the study with all expected cells, for flags.
    pub stages: Vec<ExpectedStage>,
}

/// How an attempt behaves on this site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// How long a missing or old input is looked for again, seconds.
    pub settle_s: u64,
    /// How long a silent earlier attempt is waited for, seconds.
    pub lease_s: u64,
    /// Between two heartbeats, seconds.
    pub beat_s: u64,
    /// Attempts in a row without progress after which a cell stops.
    pub without_progress: u32,
    /// Whether a job that checkpointed requeues itself.
    pub requeue: bool,
    /// Modules that must be loaded where an attempt starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<String>,
    /// How long before its time limit a stage is told, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_s: Option<u32>,
    /// When a cell is tried again, and when it is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// A job of a submission.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubmittedJob {
    /// Unique name.
    pub name: String,
    /// Cells by slot; a job without an array has slot 0, and one that several cells share has them by their place.
    pub cells: BTreeMap<u32, String>,
    /// Its place in a chain of jobs that run one cell in turn, where jobs are not requeued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    /// How its cells share it; absent where each has its own job or element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pack: Option<Pack>,
    /// Who is told when it ends in a way that people want to know of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tell: Option<Tell>,
    /// What of its cells' data lies on the node's own disk.
    #[serde(default, skip_serializing_if = "Staging::is_nothing")]
    pub staging: Staging,
}

/// A stage with its expected cells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedStage {
    /// Its name.
    pub name: Name,
    /// Its number.
    pub number: u32,
    /// Its cells with their fingerprints.
    pub cells: Vec<(CellKey, Fingerprint)>,
}

impl Submission {
    /// A new submission of `jobs`; nothing is written yet.
    pub fn new(
        study: &Study,
        place: &Place,
        expansion: &Expansion,
        jobs: &[PlannedJob],
        programs: PathBuf,
        rules: Rules,
    ) -> Self {
        let created_at = Utc::now();
        let name = unique_name(created_at);
        let named = jobs.iter().map(|job| {
            let place = |i: usize| if job.pack.is_some() { u32::try_from(i).unwrap_or(u32::MAX) } else { 0 };
            let cells = job.cells.iter().enumerate();
            let cells = cells.map(|(i, (slot, key))| (slot.unwrap_or(place(i)), key.local_name()));
            (job_name(study, job, &name), cells.collect(), job.link, job.pack)
        });
        let mut submitted: Vec<SubmittedJob> = Vec::new();
        let mut same: BTreeMap<String, usize> = BTreeMap::new();
        for (job, cells, link, pack) in named {
            // Arrays of one stage that were split, single jobs of several seeds, and links differ by a number.
            let same = same.entry(job.clone()).or_default();
            let job = if *same == 0 { job } else { format!("{job}-{same}") };
            *same += 1;
            submitted.push(SubmittedJob { name: job, cells, link, pack, tell: None, staging: Staging::default() });
        }
        Self {
            version: SUBMISSION_VERSION,
            study: study.name.clone(),
            profile: study.profile.clone(),
            created_at,
            base: place.base.clone(),
            programs,
            rules,
            jobs: submitted,
            stages: expected_stages(study, expansion),
            name,
        }
    }

    /// Writes the submission: `cells` that its jobs run, the study's text and `plan.json`, which is last.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, study: &Study, place: &Place, plan: &Plan, scratch: Option<&Path>) -> Result<PathBuf> {
        let dir = self.dir(place);
        files::write_atomic(&dir.join("study.toml"), study.text.as_bytes())?;
        let cells: BTreeMap<String, &PlannedCell> = plan.cells.iter().map(|c| (c.def.key.local_name(), c)).collect();
        let planned = |local: &String| {
            let cell = cells.get(local).copied();
            cell.ok_or_else(|| WorkflowError::Usage(format!("cell {local} is not in the plan")))
        };
        let locals = self.locals();
        let planned: Vec<&PlannedCell> = locals.iter().map(|local| planned(local)).collect::<Result<_>>()?;
        let shares: Vec<&[&PlannedCell]> = planned.chunks(CELLS_OF_A_FILE).collect();
        let names: Vec<String> = (0..shares.len()).map(file_of_cells).collect();
        files::write_many(&dir.join(CELLS), &names, |n| {
            let told = |planned: &&PlannedCell| {
                let mut cell = cell_of(study, place, plan, &planned.def, scratch);
                if let Some(again) = &planned.again {
                    cell.resources = retry::resources(&cell.resources, &again.adjust);
                }
                Ok(cell)
            };
            let cells: Vec<Cell> = shares[n].iter().map(told).collect::<Result<_>>()?;
            Ok::<_, WorkflowError>(lines_of(&cells)?.into_bytes())
        })?;
        files::write_json(&dir.join("plan.json"), self)?;
        Ok(dir)
    }

    /// Takes the name `preview`, so that two dry runs print the same.
    pub fn name_as_preview(&mut self) {
        let name = std::mem::replace(&mut self.name, "preview".to_owned());
        for job in &mut self.jobs {
            job.name = job.name.replace(&name, "preview");
        }
    }

    /// Its directory.
    pub fn dir(&self, place: &Place) -> PathBuf {
        place.submissions().join(&self.name)
    }

    /// Reads `plan.json` of a submission.
    ///
    /// # Errors
    /// It is not there, damaged or newer.
    pub fn read(dir: &Path) -> Result<Self> {
        Ok(files::read_versioned_json(&dir.join("plan.json"), SUBMISSION_VERSION)?)
    }

    /// The job of that name.
    pub fn job(&self, name: &str) -> Option<&SubmittedJob> {
        self.jobs.iter().find(|j| j.name == name)
    }

    /// Who is told of the end of `job`.
    pub fn tell(&self, job: &str) -> Option<&Tell> {
        self.jobs.iter().find(|j| j.name == job)?.tell.as_ref()
    }

    /// The cell that runs in `slot` of `job`.
    ///
    /// # Errors
    /// The submission has no such job or slot, or the cell's file is damaged.
    pub fn cell(&self, dir: &Path, job: &str, slot: u32) -> Result<Cell> {
        let job = self
            .jobs
            .iter()
            .find(|j| j.name == job)
            .ok_or_else(|| WorkflowError::Usage(format!("submission {} has no job `{job}`", self.name)))?;
        let local = job.cells.get(&slot).ok_or_else(|| {
            WorkflowError::Usage(format!("job `{}` of submission {} has no slot {slot}", job.name, self.name))
        })?;
        self.cell_named(dir, local)
    }

    /// The cell of that local name.
    ///
    /// # Errors
    /// It is not in the submission, or its file is damaged.
    pub fn cell_named(&self, dir: &Path, local: &str) -> Result<Cell> {
        let alone = dir.join(CELLS).join(format!("{}.toml", local.replace('/', "+")));
        let locals = self.locals();
        let number = locals.partition_point(|other| other.as_str() < local) / CELLS_OF_A_FILE;
        let path = dir.join(CELLS).join(file_of_cells(number));
        let text = match files::read_text(&path) {
            Ok(text) => text,
            // A submission of an older program, which gave each cell a file.
            Err(e) if e.is_not_found() && alone.exists() => return Ok(Cell::read(&alone)?),
            Err(e) => return Err(e.into()),
        };
        let named = format!("\"cell\":\"{local}\"");
        let line = text.lines().find(|line| line.contains(&named));
        let line =
            line.ok_or_else(|| RecordError::damaged(&path, format!("it has no cell {local}: {SUBMIT_AGAIN}")))?;
        let line: CellLine =
            serde_json::from_str(line).map_err(|e| RecordError::damaged(&path, format!("{e}: {SUBMIT_AGAIN}")))?;
        Ok(Cell::parse(&line.toml, &path)?)
    }

    /// Every cell that its jobs run, sorted.
    fn locals(&self) -> Vec<&String> {
        let locals: BTreeSet<&String> = self.jobs.iter().flat_map(|j| j.cells.values()).collect();
        locals.into_iter().collect()
    }
}

/// Every stage with all its expected cells.
pub fn expected_stages(study: &Study, expansion: &Expansion) -> Vec<ExpectedStage> {
    let stages = study.stages.iter().enumerate().map(|(i, stage)| ExpectedStage {
        name: stage.name.clone(),
        number: stage.number,
        cells: expansion
            .cells
            .iter()
            .filter(|c| c.stage == i)
            .map(|c| (c.key.clone(), c.fingerprint.clone()))
            .collect(),
    });
    stages.collect()
}

/// Where the cells of a submission lie in its directory.
const CELLS: &str = "cells";

/// Cells in one file. A file for each would take longer to make durable than Slurm takes for the whole chain; of one for
/// all, each job would read what a hundred thousand others read.
const CELLS_OF_A_FILE: usize = 100;

const SUBMIT_AGAIN: &str = "submit again with `run_all`";

fn file_of_cells(number: usize) -> String {
    format!("{number}.jsonl")
}

/// One line of a file of cells.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CellLine<'a> {
    /// Its local name.
    cell: Cow<'a, str>,
    /// Its `cell.toml`, which says its version.
    toml: Cow<'a, str>,
}

/// The text of a file of cells.
///
/// # Errors
/// A parameter that TOML cannot hold.
pub fn lines_of(cells: &[Cell]) -> Result<String> {
    let mut text = String::new();
    for cell in cells {
        let line = CellLine { cell: cell.key.local_name().into(), toml: cell.to_toml()?.into() };
        text.push_str(&serde_json::to_string(&line).map_err(|e| RecordError::Value(e.to_string()))?);
        text.push('\n');
    }
    Ok(text)
}

/// What the stage is told.
fn cell_of(study: &Study, place: &Place, plan: &Plan, def: &CellDef, scratch: Option<&Path>) -> Cell {
    let stage = &study.stages[def.stage];
    let arm = def.key.arm.as_ref();
    let needs = needs_of(study, plan, def);
    let (command, outputs, resumable) = match &stage.run {
        Run::Builtin(spec) => (Vec::new(), spec.outputs.iter().map(|o| (*o).to_owned()).collect(), spec.resumable),
        Run::Command(command) => (command.argv.clone(), command.outputs.clone(), command.resumable),
    };
    // Roots of two users or two projects may share one scratch.
    let root = Digest::of_bytes(place.root.to_string_lossy().as_bytes());
    let scratch = scratch.map(|s| {
        let own = format!("seedbed-{}", root.short());
        // Checkpoints of other parameters are none of this cell's.
        s.join(own)
            .join(study.name.as_str())
            .join(study.profile.as_str())
            .join(def.key.local_dir())
            .join(def.fingerprint.short())
    });
    Cell {
        version: CELL_VERSION,
        kind: stage.kind().to_owned(),
        number: stage.number,
        fingerprint: def.fingerprint.clone(),
        base: place.base.clone(),
        scratch,
        command,
        outputs,
        resumable,
        labels: stage.labels_of(arm),
        key: def.key.clone(),
        resources: stage.resources.clone(),
        params: stage.params_of(arm).clone(),
        needs,
        inputs: def
            .recipe
            .inputs
            .iter()
            .map(|(input, digest)| ExternalInput {
                name: input.name.clone(),
                path: input.path.clone(),
                digest: digest.clone(),
            })
            .collect(),
        source: plan.source(def),
    }
}

/// The needed cells of a cell, sorted by key.
pub fn needs_of(study: &Study, plan: &Plan, def: &CellDef) -> Vec<Need> {
    let mut needs: Vec<Need> = def.needs.iter().map(|&i| need_of(study, &plan.cells[i].def)).collect();
    needs.sort_by(|a, b| a.key.cmp(&b.key));
    needs
}

/// A cell as those that need it see it.
pub fn need_of(study: &Study, def: &CellDef) -> Need {
    let stage = &study.stages[def.stage];
    Need {
        key: def.key.clone(),
        kind: stage.kind().to_owned(),
        number: stage.number,
        labels: stage.labels_of(def.key.arm.as_ref()),
        dir: def.key.local_dir(),
        fingerprint: def.fingerprint.clone(),
    }
}

fn job_name(study: &Study, job: &PlannedJob, submission: &str) -> String {
    let arm = job.arm.as_ref().map(|a| format!(".{a}")).unwrap_or_default();
    format!("{}.{}{arm}.{submission}", study.name, job.stage)
}

/// Time, then digits that make it unique among submissions of one second.
fn unique_name(now: DateTime<Utc>) -> String {
    let noise =
        format!("{}:{}:{}", files::host_name(), std::process::id(), now.timestamp_nanos_opt().unwrap_or_default());
    format!("{}-{}", now.format("%Y%m%dT%H%M%S"), &Digest::of_bytes(noise.as_bytes()).as_str()[..6])
}
