//! What the journal knows of each cell: every job that was ever intended for it, oldest first, also those that were
//! refused, lost or cancelled. [`super::journal::jobs`] keeps only what may still live.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::journal::{Entry, Event};
use super::slurm::{Element, JobId};
use crate::record::Fingerprint;

/// A job that was intended for a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellJob {
    /// Its unique name.
    pub name: String,
    /// Submission it belongs to.
    pub submission: String,
    /// Array index; none for a single job.
    pub slot: Option<u32>,
    /// Whether other cells share the job.
    pub packed: bool,
    /// Fingerprint it was submitted with.
    pub fingerprint: Fingerprint,
    /// Who submitted it.
    pub user: String,
    /// On which cluster.
    pub cluster: String,
    /// When.
    pub time: DateTime<Utc>,
    /// The id that Slurm gave it, if it is known.
    pub id: Option<u32>,
    /// The Slurm cluster that has it, where the site has several.
    pub home: Option<String>,
    /// What became of it, as far as the journal knows.
    pub fate: CellFate,
}

impl CellJob {
    /// What scontrol and scancel take; none without an id.
    pub fn element(&self) -> Option<Element> {
        self.id.map(|job| Element { job, index: self.slot })
    }

    /// Whether nobody knows if Slurm took it.
    pub fn is_lost(&self) -> bool {
        matches!(self.fate, CellFate::Uncertain(_))
    }
}

/// What became of a job, for one cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CellFate {
    /// Slurm took it.
    Submitted,
    /// The reply was lost: nobody knows whether Slurm took it.
    Uncertain(String),
    /// Slurm refused it, and said why.
    Refused(String),
    /// It was cancelled, or is known never to have been.
    Gone {
        /// Why.
        reason: String,
        /// Who wrote that down.
        user: String,
        /// When.
        time: DateTime<Utc>,
    },
}

/// The jobs of every cell, by local name.
pub fn of_cells(entries: &[Entry]) -> BTreeMap<String, Vec<CellJob>> {
    let mut cells: BTreeMap<String, Vec<CellJob>> = BTreeMap::new();
    // Where the jobs of a name stand.
    let mut places: BTreeMap<&str, Vec<(String, usize)>> = BTreeMap::new();
    for entry in entries {
        let (name, id, fate): (_, Option<JobId>, _) = match &entry.event {
            Event::Intent { submission, job, cells: intended, .. } => {
                for (cell, at) in intended {
                    // Nearly every cell has one.
                    let jobs = cells.entry(cell.clone()).or_insert_with(|| Vec::with_capacity(1));
                    places.entry(job).or_default().push((cell.clone(), jobs.len()));
                    jobs.push(CellJob {
                        name: job.clone(),
                        submission: submission.clone(),
                        slot: at.slot,
                        packed: at.pack.is_some(),
                        fingerprint: at.fingerprint.clone(),
                        user: entry.user.clone(),
                        cluster: entry.cluster.clone(),
                        time: entry.time,
                        id: None,
                        home: None,
                        fate: CellFate::Uncertain("no reply of sbatch is written down".to_owned()),
                    });
                }
                continue;
            }
            Event::Submitted { job, id } => (job, id.parse().ok(), CellFate::Submitted),
            Event::Refused { job, message } => (job, None, CellFate::Refused(message.clone())),
            Event::Uncertain { job, reason } => (job, None, CellFate::Uncertain(reason.clone())),
            Event::Gone { job, reason, .. } => {
                let gone = CellFate::Gone { reason: reason.clone(), user: entry.user.clone(), time: entry.time };
                (job, None, gone)
            }
            // Events that are about no job.
            _ => continue,
        };
        for (cell, at) in places.get(name.as_str()).into_iter().flatten() {
            let Some(job) = cells.get_mut(cell).and_then(|jobs| jobs.get_mut(*at)) else { continue };
            if let Event::Gone { slots, .. } = &entry.event
                && !slots.is_empty()
                && !job.slot.is_some_and(|slot| slots.contains(&slot))
            {
                continue;
            }
            if let Some(id) = &id {
                job.id = Some(id.id);
                job.home.clone_from(&id.cluster);
            }
            job.fate = fate.clone();
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Digest, Name};
    use crate::workflow::journal::{IntendedCell, JOURNAL_VERSION};

    #[test]
    fn every_job_of_a_cell_is_kept_with_its_fate() {
        let entry = |event| Entry {
            version: JOURNAL_VERSION,
            time: DateTime::UNIX_EPOCH,
            user: "ada".into(),
            cluster: "alps".into(),
            event,
        };
        let intent = |job: &str, slots: &[Option<u32>]| {
            let cell = |slot: &Option<u32>| {
                let name = slot.map_or("all".to_owned(), |s| format!("train/seed-{s}"));
                (name, IntendedCell { slot: *slot, pack: None, fingerprint: Digest::of_bytes(b""), again: None })
            };
            let cells = slots.iter().map(cell).collect();
            entry(Event::Intent { submission: "s".into(), job: job.into(), stage: Name::new("train").unwrap(), cells })
        };
        let gone = |job: &str, slots: Vec<u32>| Event::Gone { job: job.into(), slots, reason: "cancelled".into() };
        let entries = [
            entry(Event::Asked { seeds: vec![0, 1] }),
            intent("a", &[Some(0), Some(1)]),
            entry(Event::Submitted { job: "a".into(), id: "7".into() }),
            entry(gone("a", vec![1])),
            intent("b", &[Some(1)]),
            entry(Event::Refused { job: "b".into(), message: "Invalid account".into() }),
            intent("c", &[Some(1)]),
            entry(Event::Uncertain { job: "c".into(), reason: "timed out".into() }),
            intent("d", &[None]),
            entry(Event::Submitted { job: "d".into(), id: "9".into() }),
            entry(gone("d", Vec::new())),
        ];
        let cells = of_cells(&entries);
        let fates = |cell: &str| {
            let word = |job: &CellJob| match &job.fate {
                CellFate::Submitted => format!("{} taken as {}", job.name, job.element().unwrap()),
                CellFate::Uncertain(why) | CellFate::Refused(why) => format!("{} {why}", job.name),
                CellFate::Gone { reason, user, .. } => format!("{} {reason} by {user}", job.name),
            };
            cells[cell].iter().map(word).collect::<Vec<_>>()
        };
        assert_eq!(fates("train/seed-0"), ["a taken as 7_0"]);
        assert_eq!(fates("train/seed-1"), ["a cancelled by ada", "b Invalid account", "c timed out"]);
        assert_eq!(fates("all"), ["d cancelled by ada"]);
        assert_eq!(cells["all"][0].element().unwrap().to_string(), "9");
    }
}
