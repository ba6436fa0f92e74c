//! Handing a chain to Slurm, job by job: intent, sbatch, reply.
//!
//! The journal has the intent before sbatch is called, and what became of a job before the next one is submitted: the
//! two are one write, for a disk takes as long over each as sbatch does.

use std::collections::BTreeMap;

use super::{Prepared, Site, reply, slurm};
use crate::record::{CellKey, files};
use crate::workflow::error::{Result, WorkflowError};
use crate::workflow::journal::{self, Event, IntendedCell};
use crate::workflow::plan::{self, PlannedCell, PlannedJob, Target};
use crate::workflow::slurm::{Element, submit};

/// A job that Slurm has taken.
#[derive(Debug, Clone)]
pub struct SubmittedJob {
    /// Its unique name.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// Number of its cells.
    pub cells: usize,
    /// What it waits for, as sbatch was told.
    pub dependency: String,
}

/// Submits the chain. `told` hears of each job as it is taken.
///
/// # Errors
/// Slurm refuses a job, or nobody knows whether it took one; what was submitted before stays queued and is
/// known to the journal.
pub fn submit(prepared: &Prepared, told: &mut dyn FnMut(&SubmittedJob)) -> Result<Vec<SubmittedJob>> {
    let Site::Slurm(client) = &prepared.site else {
        return Err(WorkflowError::Slurm("there is no Slurm to submit to: run with --local".to_owned()));
    };
    let journal = &prepared.journal;
    journal.write(Event::Asked { seeds: prepared.seeds.clone() })?;
    prepared.set_stopped_aside()?;
    let jobs = prepared.jobs()?;
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let written = prepared.write_submission(&jobs)?;
    files::make_dirs(&prepared.place.logs())?;
    let submission = &written.submission;
    // What is written down with the next intent.
    let mut said = vec![Event::Billed { submission: submission.name.clone(), stages: prepared.bill().stages }];
    let cells = prepared.plan.by_key();
    let mut taken: Vec<SubmittedJob> = Vec::new();
    // No dependency leads from one Slurm cluster to another: the whole chain goes where its first job went.
    let homes = journal::homes(&prepared.entries);
    let mut home = client.cluster().map(str::to_owned).or_else(|| prepared.home());
    for (i, job) in jobs.iter().enumerate() {
        if !job.replaces.is_empty() {
            journal.write_all(std::mem::take(&mut said))?;
            reply::replace(client, &homes, journal, job)?;
        }
        let name = submission.jobs[i].name.clone();
        let edges = edges(job, &taken)?;
        let (submission, stage) = (submission.name.clone(), job.stage.clone());
        said.push(Event::Intent { submission, job: name.clone(), stage, cells: intended(&cells, job) });
        journal.write_all(std::mem::take(&mut said))?;
        let reply = submit::submit(&client.at(home.as_deref()), &written.scripts[i].0, &edges).map_err(slurm)?;
        let clusters = home.as_ref().map_or(prepared.cluster.site.clusters.as_slice(), std::slice::from_ref);
        let id = reply::settle(client, clusters, journal, &name, reply)?;
        home = home.or_else(|| id.cluster.clone());
        said.push(Event::Submitted { job: name.clone(), id: id.to_string() });
        let dependency = submit::dependency(&edges).unwrap_or_default();
        taken.push(SubmittedJob { name, id: id.id, cells: job.cells.len(), dependency });
        // Said before it is written down: whoever is killed in between finds the job by its name.
        taken.last().into_iter().for_each(&mut *told);
    }
    journal.write_all(said)?;
    Ok(taken)
}

fn edges(job: &PlannedJob, taken: &[SubmittedJob]) -> Result<Vec<submit::Edge>> {
    let edge = |edge: &plan::Edge| {
        let parent = match &edge.target {
            Target::Planned(i) => Element { job: taken[*i].id, index: None },
            Target::Element(i, index) => Element { job: taken[*i].id, index: Some(*index) },
            Target::Live(id) => {
                id.parse().map_err(|_| WorkflowError::Slurm(format!("the journal has a job id {id:?} that is none")))?
            }
        };
        Ok(submit::Edge { kind: edge.kind, parent })
    };
    job.edges.iter().map(edge).collect()
}

fn intended(plan: &BTreeMap<&CellKey, &PlannedCell>, job: &PlannedJob) -> BTreeMap<String, IntendedCell> {
    let cells = job.cells.iter().filter_map(|(slot, key)| {
        let cell = plan.get(key)?;
        let (fingerprint, again) = (cell.def.fingerprint.clone(), cell.again.clone());
        Some((key.local_name(), IntendedCell { slot: *slot, pack: job.pack, fingerprint, again }))
    });
    cells.collect()
}
