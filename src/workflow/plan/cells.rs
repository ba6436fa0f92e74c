//! From a study and its seeds to cells: keys, needs and fingerprints, in an order in which they can run.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::gates::is_gate;
use crate::record::digest::canonical_json;
use crate::record::fingerprint::{FINGERPRINT_VERSION, Parts};
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
    /// Indices of needed cells in [`Expansion::cells`], ascending and all smaller than this cell's own.
    pub needs: Vec<usize>,
    /// What it has in common with the other seeds of its stage and arm.
    pub recipe: Arc<Recipe>,
    /// The fingerprint.
    pub fingerprint: Fingerprint,
}

/// What all cells of one stage and arm have in common of what their fingerprints are made from.
#[derive(Debug)]
pub struct Recipe {
    /// Stage kind.
    pub kind: String,
    /// Its semantic version.
    pub kind_version: u32,
    /// Semantic parameters.
    pub params: Value,
    /// Files and directories from outside, with their digests.
    pub inputs: Vec<(Input, Digest)>,
    /// The parameters as canonical JSON.
    params_text: String,
}

impl Recipe {
    fn new(stage: &Stage, arm: Option<&Name>, digests: &BTreeMap<PathBuf, Digest>) -> Result<Self, PlanError> {
        let mut inputs = Vec::new();
        for input in stage.inputs_of(arm) {
            let digest = digests
                .get::<Path>(&input.path)
                .cloned()
                .ok_or_else(|| PlanError::Input { stage: stage.name.to_string(), path: input.path.clone() })?;
            inputs.push((input, digest));
        }
        let kind_version = match &stage.run {
            Run::Builtin(spec) => spec.version,
            Run::Command(_) => COMMAND_VERSION,
        };
        let params = stage.semantic_params(arm);
        Ok(Self { kind: stage.kind().to_owned(), kind_version, params_text: canonical_json(&params), params, inputs })
    }

    fn input_digests(&self) -> BTreeMap<String, Digest> {
        self.inputs.iter().map(|(input, digest)| (input.name.clone(), digest.clone())).collect()
    }
}

impl CellDef {
    /// What the fingerprint is made from; `cells` are those of the plan that this cell is in.
    pub fn source<'a>(&self, cells: impl Fn(usize) -> &'a CellDef) -> FingerprintSource {
        FingerprintSource {
            version: FINGERPRINT_VERSION,
            kind: self.recipe.kind.clone(),
            kind_version: self.recipe.kind_version,
            params: self.recipe.params.clone(),
            seed: self.key.seed,
            needs: needed(&self.needs, cells),
            inputs: self.recipe.input_digests(),
        }
    }
}

/// The fingerprints of needed cells by name. A gate hands over no data: its conditions change no byte of what is behind
/// it.
fn needed<'a>(needs: &[usize], cells: impl Fn(usize) -> &'a CellDef) -> BTreeMap<String, Fingerprint> {
    let needs = needs.iter().map(|&i| cells(i)).filter(|cell| !is_gate(cell));
    needs.map(|cell| (cell.key.local_name(), cell.fingerprint.clone())).collect()
}

/// Most cells of a study. Beyond, a list of them is no plan that anybody reads, and a slip of the finger is more likely.
pub const MOST_CELLS: usize = 1_000_000;

/// The cells of a study under some seeds.
#[derive(Debug, Clone)]
pub struct Expansion {
    /// Cells: stages in an order in which they can run, then arms, then seeds in ascending order.
    pub cells: Vec<Arc<CellDef>>,
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
    /// More cells than can be planned.
    #[error(
        "the study has {cells} cells, stages x arms x seeds, and at most {MOST_CELLS} can be planned: give it fewer arms or seeds, or make it several studies"
    )]
    TooMany {
        /// How many there would be.
        cells: usize,
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
    let of_stage = |stage: &Stage| {
        let arms = if stage.axes.arm { stage.arms.len() } else { 1 };
        arms.saturating_mul(if stage.axes.seed { seeds.len() } else { 1 })
    };
    let count = study.stages.iter().fold(0usize, |sum, stage| sum.saturating_add(of_stage(stage)));
    if count > MOST_CELLS {
        return Err(PlanError::TooMany { cells: count });
    }
    let mut cells: Vec<Arc<CellDef>> = Vec::new();
    let mut blocks: Vec<Block> = Vec::new();
    for index in order(study)? {
        let stage = &study.stages[index];
        let arms: Vec<Option<&Name>> =
            if stage.axes.arm { stage.arms.iter().map(|a| Some(&a.name)).collect() } else { vec![None] };
        let seeds: Vec<Option<u32>> =
            if stage.axes.seed { seeds.iter().copied().map(Some).collect() } else { vec![None] };
        let begin = cells.len();
        for arm in &arms {
            let recipe = Arc::new(Recipe::new(stage, *arm, digests)?);
            let inputs = recipe.input_digests();
            for (s, seed) in seeds.iter().enumerate() {
                let parents = blocks.iter().filter(|block| stage.needs.contains(&block.stage.name));
                let needs: Vec<usize> = parents.flat_map(|parent| parent.agreeing(*arm, seed.map(|_| s))).collect();
                let parts = Parts {
                    version: FINGERPRINT_VERSION,
                    kind: &recipe.kind,
                    kind_version: recipe.kind_version,
                    params: &recipe.params_text,
                    seed: *seed,
                    needs: &needed(&needs, |i| &cells[i]),
                    inputs: &inputs,
                };
                let fingerprint = parts.fingerprint();
                let (study, profile) = (study.name.clone(), study.profile.clone());
                let key = CellKey { study, profile, stage: stage.name.clone(), arm: arm.cloned(), seed: *seed };
                cells.push(Arc::new(CellDef { key, stage: index, needs, recipe: recipe.clone(), fingerprint }));
            }
        }
        blocks.push(Block { stage, begin, seeds: seeds.len() });
    }
    Ok(Expansion { cells })
}

/// Where the cells of one stage stand: arm by arm, and of each the seeds.
struct Block<'a> {
    stage: &'a Stage,
    begin: usize,
    /// Cells of one arm.
    seeds: usize,
}

impl Block<'_> {
    /// The cells that agree with `arm` and the seed of that place on the axes that both have. An arm of the same name
    /// need not be there.
    fn agreeing(&self, arm: Option<&Name>, seed: Option<usize>) -> impl Iterator<Item = usize> {
        let arms: Range<usize> = match arm {
            _ if !self.stage.axes.arm => 0..1,
            None => 0..self.stage.arms.len(),
            Some(arm) => self.stage.arms.iter().position(|a| a.name == *arm).map_or(0..0, |at| at..at + 1),
        };
        let seeds = match seed {
            Some(seed) if self.stage.axes.seed => seed..seed + 1,
            _ => 0..self.seeds,
        };
        let (begin, width) = (self.begin, self.seeds);
        arms.flat_map(move |arm| seeds.clone().map(move |seed| begin + arm * width + seed))
    }
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
