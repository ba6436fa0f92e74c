//! What stands around the calls of sbatch: to which Slurm cluster one goes, what its reply was, which jobs the new one
//! replaces, who is told of its end; and jobs that are there and need a hand: the dead are taken out, the held let go.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Prepared, Site, slurm};
use crate::workflow::error::{Result, WorkflowError};
use crate::workflow::journal::{self, Event, Journal};
use crate::workflow::plan::{CellState, LiveJob, PlannedJob};
use crate::workflow::slurm::submit::{self, Found, Submitted};
use crate::workflow::slurm::wishes::Tell;
use crate::workflow::slurm::{Client, Element, JobId, control};

impl Prepared {
    /// The Slurm cluster that has the chain's queued jobs; none where there is but one, or nothing is queued.
    pub(super) fn home(&self) -> Option<String> {
        let homes = journal::homes(&self.entries);
        let live = self.plan.cells.iter().filter_map(|cell| match &cell.state {
            CellState::Queued(job) | CellState::QueuedStale(job) => Some(job),
            _ => None,
        });
        live.filter_map(|job| homes.get(job.name.as_str())).next().cloned()
    }

    /// Who is told of the end of a job; of links, the last one's.
    pub(super) fn tell(&self, job: &PlannedJob) -> Option<Tell> {
        let stage = self.study.stage(job.stage.as_str())?;
        let last = job.link.is_none_or(|link| link.number == link.of);
        stage.wishes.over(&self.cluster.site.wishes).tell(last && self.study.ends_with(stage))
    }
}

/// The id of a job, whatever the reply was.
pub(super) fn settle(
    client: &Client,
    clusters: &[String],
    journal: &Journal,
    name: &str,
    reply: Submitted,
) -> Result<JobId> {
    match reply {
        Submitted::Accepted(id) => Ok(id),
        Submitted::Refused(message) => {
            journal.write(Event::Refused { job: name.to_owned(), message: message.clone() })?;
            Err(WorkflowError::Slurm(format!(
                "sbatch refused job `{name}`: {message}; correct the study or the cluster file and run `run_all` again: \
                 what is queued stays queued"
            )))
        }
        Submitted::Uncertain(reason) => {
            journal.write(Event::Uncertain { job: name.to_owned(), reason: reason.clone() })?;
            match submit::resolve(client, clusters, name, Duration::from_secs(20)) {
                Ok(Found::Job(id)) => Ok(id),
                _ => Err(WorkflowError::Slurm(format!(
                    "nobody knows whether Slurm took job `{name}` ({reason}): run `run_all` again in two minutes; \
                     it looks the job up by its name and submits it only if it is not there"
                ))),
            }
        }
    }
}

/// Takes jobs out of the queue that wait for what can never happen. Returns their elements.
///
/// # Errors
/// Slurm refuses, or the journal cannot be written.
pub fn clear_dead(prepared: &Prepared) -> Result<Vec<String>> {
    let Site::Slurm(client) = &prepared.site else { return Ok(Vec::new()) };
    let reason = "cancelled by `run_all`: it waited for what can never happen";
    take_out(client, &journal::homes(&prepared.entries), &prepared.journal, &prepared.dead, reason)?;
    let mut cleared: Vec<String> = prepared.dead.iter().map(LiveJob::element).collect();
    cleared.dedup();
    Ok(cleared)
}

/// Lets jobs go on that Slurm holds because it could not start them. Returns a line for each.
pub fn release_held(prepared: &Prepared) -> Vec<String> {
    let Site::Slurm(client) = &prepared.site else { return Vec::new() };
    let homes = journal::homes(&prepared.entries);
    let mut elements: Vec<(Option<&str>, Element)> = Vec::new();
    for job in &prepared.held {
        let home = homes.get(job.name.as_str()).map(String::as_str);
        elements.extend(job.element().parse().ok().map(|element| (home, element)));
    }
    // The cells of a pack share a job.
    elements.sort_unstable();
    elements.dedup();
    let line = |(home, element): (Option<&str>, Element)| match control::release(&client.at(home), element) {
        Ok(()) => format!("job {element}, which Slurm could not start and held, goes on"),
        Err(error) => format!(
            "job {element} is held by Slurm, which could not start it, and does not let it go: {error}; ask the site's \
             administrators to say `scontrol release {element}`"
        ),
    };
    elements.into_iter().map(line).collect()
}

/// Cancels jobs, each on the Slurm cluster that has it.
fn take_out(
    client: &Client,
    homes: &BTreeMap<&str, String>,
    journal: &Journal,
    jobs: &[LiveJob],
    reason: &str,
) -> Result<()> {
    let mut elements: BTreeMap<Option<&str>, Vec<Element>> = BTreeMap::new();
    for old in jobs {
        let home = homes.get(old.name.as_str()).map(String::as_str);
        elements.entry(home).or_default().extend(old.element().parse::<Element>().ok());
    }
    for (home, elements) in elements {
        control::cancel(&client.at(home), &elements).map_err(slurm)?;
    }
    for old in jobs {
        let slots = old.slot.into_iter().collect();
        journal.write(Event::Gone { job: old.name.clone(), slots, reason: reason.to_owned() })?;
    }
    Ok(())
}

/// Cancels the queued jobs that a new one takes the place of.
pub(super) fn replace(
    client: &Client,
    homes: &BTreeMap<&str, String>,
    journal: &Journal,
    job: &PlannedJob,
) -> Result<()> {
    if job.replaces.is_empty() {
        Ok(())
    } else {
        take_out(client, homes, journal, &job.replaces, "replaced by a newer submission")
    }
}
