//! The needed cells as an aggregation sees them: results, or why there are none.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::record::decision::GATE_KIND;
use crate::record::run_h5::RUN_FILE;
use crate::record::{CellKey, Digest, Fingerprint, Name, Need, Outcome, RunRecord, Seal, run_h5};
use crate::report::table::{Expected, Run};

/// A needed cell.
#[derive(Debug, Clone)]
pub struct Input {
    /// Which cell.
    pub key: CellKey,
    /// Its stage kind.
    pub kind: String,
    /// Labels of its arm.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Its result, or why it is missing.
    pub run: Result<Found, String>,
}

/// The result of a needed cell.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its record.
    pub record: RunRecord,
    /// What it was sealed with.
    pub fingerprint: Fingerprint,
    /// What it found.
    pub content: Digest,
}

/// Reads the needed cells but gates, which hand over no data: each is a result only with a valid seal of the planned fingerprint, and if its
/// `run.h5` is the one that was sealed.
pub fn collect(needs: &[Need], base: &Path) -> Vec<Input> {
    needs
        .iter()
        .filter(|need| need.kind != GATE_KIND)
        .map(|need| Input {
            key: need.key.clone(),
            kind: need.kind.clone(),
            labels: need.labels.clone(),
            run: read(&base.join(&need.dir), need),
        })
        .collect()
}

fn read(dir: &Path, need: &Need) -> Result<Found, String> {
    let seal = match Seal::read(dir) {
        Ok(Some(seal)) => seal,
        Ok(None) => return Err("not sealed".to_owned()),
        // The path in the message would tell where this was made.
        Err(_) => return Err("its seal is damaged or was edited".to_owned()),
    };
    if seal.fingerprint != need.fingerprint {
        return Err("stale: sealed under other parameters".to_owned());
    }
    if seal.outcome == Outcome::Stopped {
        return Err("stopped by a gate or kill criterion".to_owned());
    }
    let path = dir.join(RUN_FILE);
    match (seal.output(RUN_FILE), Digest::of_file(&path)) {
        (Some(file), Ok(digest)) if file.digest == digest => {}
        (_, Err(_)) => return Err(format!("its {RUN_FILE} cannot be read")),
        _ => return Err(format!("its {RUN_FILE} is not what was sealed")),
    }
    let record = run_h5::read_run(&path).map_err(|_| format!("its {RUN_FILE} is damaged"))?;
    let content = record.content_digest();
    Ok(Found { record, fingerprint: seal.fingerprint, content })
}

impl Input {
    /// The cell as tables take it. Only what does not depend on where and when it ran.
    pub fn expected(&self) -> Expected {
        let run = self.run.as_ref().map_err(Clone::clone).map(|found| Run {
            tree: found.record.metrics.clone(),
            fingerprint: found.fingerprint.clone(),
            content: found.content.clone(),
        });
        Expected { key: self.key.clone(), labels: self.labels.clone(), run }
    }

    /// The value tree, without times and hosts.
    pub(super) fn tree(&self) -> Option<&Value> {
        self.run.as_ref().ok().map(|found| &found.record.metrics)
    }
}

/// The cells of one arm (or of a study without arms) with its seeds.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub(super) arm: Option<Name>,
    /// Ascending; `None` for a study without seeds.
    pub(super) seeds: Vec<Option<u32>>,
    inputs: Vec<&'a Input>,
}

/// One group for each arm of the cells, or one in all.
pub(super) fn groups(inputs: &[Input]) -> Vec<Group<'_>> {
    let arms: BTreeSet<Option<&Name>> = inputs.iter().filter_map(|i| i.key.arm.as_ref()).map(Some).collect();
    let arms = if arms.is_empty() { BTreeSet::from([None]) } else { arms };
    arms.into_iter()
        .map(|arm| {
            let mine: Vec<&Input> =
                inputs.iter().filter(|i| i.key.arm.is_none() || i.key.arm.as_ref() == arm).collect();
            let seeds: BTreeSet<Option<u32>> = mine.iter().filter_map(|i| i.key.seed).map(Some).collect();
            let seeds = if seeds.is_empty() { vec![None] } else { seeds.into_iter().collect() };
            Group { arm: arm.cloned(), seeds, inputs: mine }
        })
        .collect()
}

impl<'a> Group<'a> {
    /// Cells that a seed has or shares.
    pub(super) fn cells(&self, seed: Option<u32>) -> impl Iterator<Item = &'a Input> {
        self.inputs.iter().copied().filter(move |i| i.key.seed.is_none() || i.key.seed == seed)
    }

    /// Missing cells of a seed, each with its reason.
    pub(super) fn missing(&self, seed: Option<u32>) -> Vec<String> {
        self.cells(seed)
            .filter_map(|i| i.run.as_ref().err().map(|why| format!("{}: {why}", i.key.local_name())))
            .collect()
    }

    /// The tree of the one cell of a kind, for a seed.
    pub(super) fn of_kind(&self, kind: &str, seed: Option<u32>) -> Option<&'a Value> {
        let mut found = self.cells(seed).filter(|i| i.kind == kind);
        match (found.next(), found.next()) {
            (Some(one), None) => one.tree(),
            _ => None,
        }
    }

    /// The tree of a stage, for a seed.
    pub(super) fn of_stage(&self, stage: &str, seed: Option<u32>) -> Option<&'a Value> {
        self.cells(seed).find(|i| i.key.stage.as_str() == stage).and_then(Input::tree)
    }

    /// Directory below the run directory: the arm's, if there are arms.
    pub(super) fn dir(&self) -> PathBuf {
        self.arm.as_ref().map(|a| PathBuf::from(a.as_str())).unwrap_or_default()
    }

    /// Study, profile and arm, for headings.
    pub(super) fn title(&self, key: &CellKey) -> String {
        let arm = self.arm.as_ref().map(|a| format!(", arm {a}")).unwrap_or_default();
        format!("{} / {}{arm}", key.study, key.profile)
    }
}
