//! What a training reads: setup's tokens, or instructions that are tokenised here; and the masks it reads them under.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::task::{Params, known};
use crate::compute::data::instructions::Instructions;
use crate::compute::data::{Long, Objective, Packing, Reading, Samples, Split, TextTokenizer, Tokens};
use crate::compute::model::{Mask, Model};
use crate::stages::{Context, StageError};

/// Part of the instructions that validate where nobody says.
const EVAL_FRACTION: f64 = 0.02;

/// The samples of a run.
pub(super) struct Data {
    pub train: Arc<Samples>,
    pub validation: Arc<Samples>,
    source: &'static str,
}

impl Data {
    /// Reads it for `model`, which lies with its tokenizer in `source`; rows have `seq_len` inputs.
    pub(super) fn open(
        context: &Context,
        params: &Params,
        source: &Path,
        model: &Model,
        seq_len: usize,
    ) -> Result<Self, StageError> {
        let vocab_size = model.config().vocab_size;
        let is_instructions = params.data.as_deref() == Some("instructions");
        let tokens = if is_instructions {
            let (train, eval) = instructions(context, params)?;
            let tokenizer = TextTokenizer::load(source)?;
            let tokens = |split: Split, of: Instructions| of.tokens(split.name(), &tokenizer, vocab_size);
            [tokens(Split::Train, train)?, tokens(Split::Validation, eval)?]
        } else {
            let data = context.need_dir(context.need_of_kind("setup")?).join("data");
            let open = |split: Split| -> Result<Tokens, StageError> {
                let tokens = Tokens::open(&data.join(split.name()))?;
                tokens.check_model(vocab_size)?;
                Ok(tokens)
            };
            [open(Split::Train)?, open(Split::Validation)?]
        };
        let long = if is_instructions { Long::Cut } else { Long::Windows };
        let reading = reading(params, long)?;
        let [train, validation] = tokens.map(Arc::new);
        Ok(Self {
            train: Arc::new(Samples::read(train, seq_len, reading)?),
            validation: Arc::new(Samples::read(validation, seq_len, validated(params, reading)?)?),
            source: if is_instructions { "instructions" } else { "tokens" },
        })
    }

    /// As results have it.
    pub(super) fn tree(&self) -> Value {
        let split = |samples: &Samples| {
            json!({
                "items": samples.tokens().documents(),
                "dropped": samples.dropped(),
                "truncated": samples.truncated(),
                "samples": samples.len(),
                "digest": samples.tokens().info().tokens_digest,
            })
        };
        json!({"source": self.source, "train": split(&self.train), "eval": split(&self.validation)})
    }

    /// In words, for the log.
    pub(super) fn words(&self) -> String {
        let (train, t) = (&self.train, self.train.seq_len());
        let filling = format!("{} samples of {t} tokens, {:.1} % filling", train.len(), 100.0 * train.filling());
        if self.source == "tokens" {
            return filling;
        }
        format!(
            "{filling}; of {} instructions {} have no label within {t} tokens and are dropped, {} are cut",
            train.tokens().documents(),
            train.dropped(),
            train.truncated()
        )
    }
}

/// Those to train on, and those that validate.
fn instructions(context: &Context, params: &Params) -> Result<(Instructions, Instructions), StageError> {
    let (train, eval): (PathBuf, Option<PathBuf>) = match params.instructions_from.iter().flatten().next() {
        Some((dir, stage)) => {
            let dir = context.need_dir(context.need_of_stage(stage)?).join(dir);
            let eval = dir.join("eval.jsonl");
            (dir.join("train.jsonl"), eval.is_file().then_some(eval))
        }
        None => {
            let given = |name: &str| context.input(name).map(Path::to_path_buf);
            let train = given("instruction_file").ok_or_else(|| {
                StageError::Usage(
                    "`instruction_file` is not given: set it, or `instructions_from`, in the study".to_owned(),
                )
            })?;
            (train, given("instruction_eval_file"))
        }
    };
    let all = Instructions::read(&train)?;
    let (train, eval) = match eval {
        Some(eval) => (all, Instructions::read(&eval)?),
        None => all.split(context.seed(), params.instruction_eval_fraction.unwrap_or(EVAL_FRACTION))?,
    };
    Ok((train.first(params.train_samples), eval.first(params.eval_samples)))
}

fn reading(params: &Params, long: Long) -> Result<Reading, StageError> {
    let objective = known("objective", &params.objective, Objective::parse)?;
    let own = if objective == Objective::Prefix { Mask::Prefix } else { Mask::Causal };
    let mask = params.mask.as_deref().map_or(Ok(own), |word| known("mask", word, Mask::parse))?;
    if objective == Objective::Prefix && mask != Mask::Prefix {
        return Err(StageError::Usage(
            "`objective` = \"prefix\" has a prefix mask: set `objective` = \"response\" for another `mask`".to_owned(),
        ));
    }
    Ok(Reading {
        packing: known("packing", &params.packing, Packing::parse)?,
        long,
        objective,
        mask,
        reset_attention: params.reset_attention,
        reset_positions: params.reset_positions,
    })
}

/// How the validation split is read for a model that is trained by `reading`: the same labels; packed where training
/// packs whole documents; else one document a row, so that each is judged alone; the same mask, unless another is
/// asked for.
fn validated(params: &Params, reading: Reading) -> Result<Reading, StageError> {
    let packing = match reading.packing {
        Packing::BestFit => Packing::BestFit,
        Packing::Stream | Packing::Document => Packing::Document,
    };
    let mask = match params.validation_mask.as_deref() {
        Some(word) => known("validation_mask", word, Mask::parse)?,
        None => reading.mask(),
    };
    // The word `prefix` means the labels and the mask: here the mask is said apart.
    let objective = if reading.objective == Objective::Prefix { Objective::Response } else { reading.objective };
    Ok(Reading { packing, mask, objective, ..reading })
}
