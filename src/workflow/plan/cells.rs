//! From a study and its seeds to cells: keys, needs and fingerprints, in an order in which they can run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::gates::is_gate;
use crate::record::fingerprint::FINGERPRINT_VERSION;
use crate::record::{CellKey, Digest, Fingerprint, FingerprintSource, Name};
use crate::workflow::study::{Input, Run, Stage, Study};

/// Semantic version of the `command` kind.
const COMMAND_VERSION: u32 = 1;

/// A cell as the study defines it.
#[derive(Debug, Clone)]
pub struct CellDef {
    /// Its key.
    pub key: CellKey,
    /// Index of its stage in [`Study::stages`].
    pub stage: usize,
    /// Indices of needed cells in [`Expansion::cells`], all smaller than this cell's own.
    pub needs: Vec<usize>,
    /// Files and directories from outside, with their digests.
    pub inputs: Vec<(Input, Digest)>,
    /// What the fingerprint is made from.
    pub source: FingerprintSource,
    /// The fingerprint.
    pub fingerprint: Fingerprint,
}

/// The cells of a study under some seeds.
#[derive(Debug, Clone)]
pub struct Expansion {
    /// Cells: stages in an order in which they can run, then arms, then seeds in ascending order.
    pub cells: Vec<CellDef>,
}

/// What keeps a study from being planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No seed for a stage that has that axis.
    #[error("the study has no seed: give `seeds = [42]` in [study] or `--seeds 42`")]
    NoSeeds,
    /// An external input has no digest.
    #[error("input `{}` of stage `{stage}` cannot be read: check the path in the study file", path.display())]
    Input {
        /// The stage.
        stage: String,
        /// The path.
        path: PathBuf,
    },
    /// Needs that go in a circle or to nowhere; the study's own check has missed it.
    #[error("the needs of stage `{0}` cannot be ordered: run `seedbed plan` on the study to see why")]
    Order(String),
}

/// Expands a study over `seeds` (any order, repeats ignored). `digests` are those of external inputs.
///
/// # Errors
/// No seeds, or an input without a digest.
pub fn expand(study: &Study, seeds: &[u32], digests: &BTreeMap<PathBuf, Digest>) -> Result<Expansion, PlanError> {
    let mut seeds = seeds.to_vec();
    seeds.sort_unstable();
    seeds.dedup();
    if seeds.is_empty() && study.stages.iter().any(|s| s.axes.seed) {
        return Err(PlanError::NoSeeds);
    }
    let mut cells: Vec<CellDef> = Vec::new();
    for index in order(study)? {
        let stage = &study.stages[index];
        let arms: Vec<Option<&Name>> =
            if stage.axes.arm { stage.arms.iter().map(|a| Some(&a.name)).collect() } else { vec![None] };
        let seeds: Vec<Option<u32>> =
            if stage.axes.seed { seeds.iter().copied().map(Some).collect() } else { vec![None] };
        for arm in arms {
            for seed in &seeds {
                let key = CellKey {
                    study: study.name.clone(),
                    profile: study.profile.clone(),
                    stage: stage.name.clone(),
                    arm: arm.cloned(),
                    seed: *seed,
                };
                let cell = define(stage, index, key, &cells, digests)?;
                cells.push(cell);
            }
        }
    }
    Ok(Expansion { cells })
}

fn define(
    stage: &Stage,
    index: usize,
    key: CellKey,
    before: &[CellDef],
    digests: &BTreeMap<PathBuf, Digest>,
) -> Result<CellDef, PlanError> {
    let needs: Vec<usize> = before
        .iter()
        .enumerate()
        .filter(|(_, cell)| stage.needs.contains(&cell.key.stage) && agree(&cell.key, &key))
        .map(|(i, _)| i)
        .collect();
    let arm = key.arm.as_ref();
    let mut inputs = Vec::new();
    for input in stage.inputs_of(arm) {
        let digest = digests
            .get::<Path>(&input.path)
            .cloned()
            .ok_or_else(|| PlanError::Input { stage: stage.name.to_string(), path: input.path.clone() })?;
        inputs.push((input, digest));
    }
    let source = FingerprintSource {
        version: FINGERPRINT_VERSION,
        kind: stage.kind().to_owned(),
        kind_version: match &stage.run {
            Run::Builtin(spec) => spec.version,
            Run::Command(_) => COMMAND_VERSION,
        },
        params: stage.semantic_params(arm),
        seed: key.seed,
        // A gate hands over no data: its conditions change no byte of what is behind it.
        needs: needs
            .iter()
            .filter(|&&i| !is_gate(&before[i]))
            .map(|&i| (before[i].key.local_name(), before[i].fingerprint.clone()))
            .collect(),
        inputs: inputs.iter().map(|(input, digest)| (input.name.clone(), digest.clone())).collect(),
    };
    let fingerprint = source.fingerprint();
    Ok(CellDef { key, stage: index, needs, inputs, source, fingerprint })
}

/// Two cells agree on the axes that both have.
fn agree(a: &CellKey, b: &CellKey) -> bool {
    let same_arm = match (&a.arm, &b.arm) {
        (Some(x), Some(y)) => x == y,
        _ => true,
    };
    let same_seed = match (a.seed, b.seed) {
        (Some(x), Some(y)) => x == y,
        _ => true,
    };
    same_arm && same_seed
}

/// Stage indices so that each comes after what it needs, else in file order.
fn order(study: &Study) -> Result<Vec<usize>, PlanError> {
    let mut done: Vec<usize> = Vec::new();
    while done.len() < study.stages.len() {
        let ready = |i: &usize| {
            !done.contains(i)
                && study.stages[*i].needs.iter().all(|need| done.iter().any(|&d| study.stages[d].name == *need))
        };
        match (0..study.stages.len()).find(ready) {
            Some(next) => done.push(next),
            None => {
                let stuck = (0..study.stages.len()).find(|i| !done.contains(i)).unwrap_or_default();
                return Err(PlanError::Order(study.stages[stuck].name.to_string()));
            }
        }
    }
    Ok(done)
}
