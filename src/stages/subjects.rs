//! What evaluation and attacks are done on: trained models by name, and the tokens that setup made.
//!
//! The parameter `models` maps the name that results use to the needed stage that trained the model; every
//! other number of a result then stands under that name.

use serde_json::Value;

use super::{Field, FieldType, Preset, Role};

/// `models`.
pub const MODELS: Field = Field {
    name: "models",
    ty: FieldType::NeedMap,
    preset: Preset::Is(r#"{"baseline_pythia": "train_baseline", "monotonic_pythia": "train_monotonic"}"#),
    role: Role::Semantic,
    help: "name in the results = needed training stage",
};

/// `grain_rows`.
pub const GRAIN_ROWS: Field = Field {
    name: "grain_rows",
    ty: FieldType::Integer { min: 1, max: 4096 },
    preset: Preset::Is("8"),
    role: Role::Semantic,
    help: "rows of one forward pass",
};

/// `batch_size`.
pub const BATCH_SIZE: Field = Field {
    name: "batch_size",
    ty: FieldType::Integer { min: 1, max: 65_536 },
    preset: Preset::Is("16"),
    role: Role::Operational,
    help: "rows in flight; changes speed and memory only",
};

/// `threads_per_rank`.
pub const THREADS: Field = Field {
    name: "threads_per_rank",
    ty: FieldType::Integer { min: 1, max: 256 },
    preset: Preset::Is("1"),
    role: Role::Semantic,
    help: "threads of libtorch's kernels",
};

/// `success_metric`.
pub const SUCCESS_METRIC: Field = Field {
    name: "success_metric",
    ty: FieldType::OneOf(&["nll_rel", "ppl_rel", "delta_nats"]),
    preset: Preset::Is(r#""ppl_rel""#),
    role: Role::Semantic,
    help: "metric of the success rate at the top; all three are always reported",
};

/// `loss_scope`.
pub const LOSS_SCOPE: Field = Field {
    name: "loss_scope",
    ty: FieldType::OneOf(&["all", "untouched_targets"]),
    preset: Preset::Is(r#""untouched_targets""#),
    role: Role::Semantic,
    help: "targets of the losses at the top; both scopes are always reported",
};

/// `success_threshold`.
pub const SUCCESS_THRESHOLD: Field = Field {
    name: "success_threshold",
    ty: FieldType::Number { min: 0.0, max: 100.0 },
    preset: Preset::Is("0.15"),
    role: Role::Semantic,
    help: "rise that counts as success in the two relative metrics, as a part of one",
};

/// `success_threshold_nats`.
pub const SUCCESS_THRESHOLD_NATS: Field = Field {
    name: "success_threshold_nats",
    ty: FieldType::Number { min: 0.0, max: 100.0 },
    // 15 % of the historic baseline's NLL (ln 6.72): its own bar, the same for every model.
    preset: Preset::Is("0.286"),
    role: Role::Semantic,
    help: "rise that counts as success in delta_nats, nats",
};

/// `sample_tokens`.
pub const SAMPLE_TOKENS: Field = Field {
    name: "sample_tokens",
    ty: FieldType::Integer { min: 1, max: 1 << 20 },
    preset: Preset::Absent,
    role: Role::Semantic,
    help: "tokens of one attacked text; absent: what the model can read",
};

/// `surviving`.
pub const SURVIVING: Field = Field {
    name: "surviving",
    ty: FieldType::Bool,
    preset: Preset::Is("true"),
    role: Role::Semantic,
    help: "only ids that are still the same after decoding and encoding, in their place; historic runs did not ask",
};

/// `checkpoint_interval_s`.
pub const CHECKPOINT_INTERVAL_S: Field = Field {
    name: "checkpoint_interval_s",
    ty: FieldType::Number { min: 0.0, max: 1e6 },
    preset: Preset::Is("60.0"),
    role: Role::Operational,
    help: "seconds between two savings of what the attack needs to go on; 0: behind every step",
};

/// `collective_timeout_s`.
pub const COLLECTIVE_TIMEOUT_S: Field = Field {
    name: "collective_timeout_s",
    ty: FieldType::Integer { min: 1, max: 86_400 },
    preset: Preset::Is("1800"),
    role: Role::Operational,
    help: "seconds after which a silent rank counts as gone",
};

/// Problems of `models` that no single field can tell.
pub fn check_models(params: &Value) -> Vec<String> {
    let Some(models) = params.get("models").and_then(Value::as_object) else { return Vec::new() };
    let mut problems = Vec::new();
    if models.is_empty() {
        problems.push("`models` is empty: name at least one, e.g. {baseline_pythia = \"train_baseline\"}".to_owned());
    }
    for name in models.keys() {
        if let Err(e) = crate::record::Name::new(name) {
            problems.push(format!("`models`: {e}"));
        }
    }
    problems
}

#[cfg(feature = "compute")]
pub use opened::{Subjects, load, model_dir, numerics, open};

#[cfg(feature = "compute")]
mod opened {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use serde_json::Value;

    use crate::compute::data::{Split, TextTokenizer, Tokens};
    use crate::compute::model::{Model, set_threads};
    use crate::compute::numerics;
    use crate::record::{Need, files};
    use crate::stages::{Context, StageError};

    /// Everything that evaluation and attacks read.
    pub struct Subjects {
        /// Models by the name that results use, sorted.
        pub models: Vec<(String, Model)>,
        /// What setup calls the model.
        pub model_name: String,
        /// Tokens that models were trained on.
        pub train: Arc<Tokens>,
        /// Tokens that results are reported on.
        pub test: Arc<Tokens>,
        /// The tokenizer of both.
        pub tokenizer: TextTokenizer,
    }

    /// Opens the models named in `models` and the data of the needed setup stage.
    ///
    /// # Errors
    /// A needed stage, a model or a split is not there, is damaged, or does not fit the others.
    pub fn open(
        context: &Context,
        models: &BTreeMap<String, String>,
        threads_per_rank: u32,
    ) -> Result<Subjects, StageError> {
        set_threads(threads_per_rank);
        let setup = context.need_dir(context.need_of_kind("setup")?);
        let summary: Value = files::read_json(&setup.join("setup_complete.json"))?;
        let split = |split: Split| -> Result<Arc<Tokens>, StageError> {
            Ok(Arc::new(Tokens::open(&setup.join("data").join(split.name()))?))
        };
        let (train, test) = (split(Split::Train)?, split(Split::Test)?);
        let mut opened = Vec::new();
        for (name, stage) in models {
            let model = load(&model_dir(context, context.need_of_stage(stage)?))?;
            test.check_model(model.config().vocab_size)?;
            opened.push((name.clone(), model));
        }
        Ok(Subjects {
            models: opened,
            model_name: summary.get("model_name").and_then(Value::as_str).unwrap_or("unnamed").to_owned(),
            train,
            test,
            tokenizer: TextTokenizer::load(&setup.join("model"))?,
        })
    }

    /// Where a needed stage has its model: what setup loaded or made, what was constrained, or the best of a training.
    pub fn model_dir(context: &Context, need: &Need) -> PathBuf {
        let dir = context.need_dir(need);
        match need.kind.as_str() {
            "setup" => dir.join("model"),
            "apply_monotonicity" => dir.join("monotonic_initialized"),
            _ => dir.join("best_model"),
        }
    }

    /// The model of a needed stage.
    ///
    /// # Errors
    /// It is not there, or damaged.
    pub fn load(dir: &Path) -> Result<Model, StageError> {
        if !dir.is_dir() {
            return Err(StageError::Missing(format!(
                "`{}` is not there: run the stage that makes it again with `run_all`",
                dir.display()
            )));
        }
        Ok(Model::load(dir)?)
    }

    /// What the bits of a forward pass depend on.
    pub fn numerics(threads_per_rank: u32, grain_rows: usize) -> Value {
        numerics::record(&numerics::Settings {
            threads_per_rank,
            lanes: 1,
            grain_samples: grain_rows as u64,
            transport: "solo",
            compute_type: "fp32",
            engine: "libtorch",
            gemm: "libtorch",
            device: "cpu",
            inexact: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn model_names_are_checked() {
        assert!(check_models(&json!({"models": {"a": "train"}})).is_empty());
        assert_eq!(check_models(&json!({"models": {}})).len(), 1);
        assert_eq!(check_models(&json!({"models": {"a b": "train"}})).len(), 1);
    }
}
