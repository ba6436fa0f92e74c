//! Stage kind `apply_monotonicity`: gives setup's model a constraint on its feed-forward weights.
//!
//! Writes `monotonic_initialized/` (our format: V is kept) and `monotonicity_application_log.json`. The check of
//! the effective weights inspects the constrained tensors, and fails if there are none.

use super::{Field, FieldType, Preset, Role, Spec, spec::no_check};

/// As `compute::model::Variant::WORDS`; a test keeps them together.
const VARIANTS: &[&str] = &["mlp_both", "mlp_in", "mlp_in_attn_out", "sign_frozen", "abs_init_free"];

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "apply_monotonicity",
    version: 1,
    binary: "seedbed-apply-monotonicity",
    resumable: false,
    parallel: false,
    partial_inputs: false,
    needs: &["setup"],
    outputs: &["monotonic_initialized"],
    export: Some("monotonicity_application_log.json"),
    help: "constrains weights of setup's model to be non-negative",
    fields: &[Field {
        name: "variant",
        ty: FieldType::OneOf(VARIANTS),
        preset: Preset::Is(r#""mlp_both""#),
        role: Role::Semantic,
        help: "which weights, and how",
    }],
    check: no_check,
};

#[cfg(feature = "compute")]
pub use task::run;

#[cfg(feature = "compute")]
mod task {
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::super::{Context, StageError};
    use crate::compute::model::{Model, Variant};
    use crate::record::{RunRecord, files};

    #[derive(Debug, Deserialize)]
    struct Params {
        variant: String,
    }

    /// Constrains the model, checks it and saves it.
    ///
    /// # Errors
    /// Setup's model is missing or damaged, an effective weight is outside its constraint, or the disk is full.
    pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
        let params: Params = context.params()?;
        let variant = Variant::parse(&params.variant)
            .ok_or_else(|| StageError::Usage(format!("`variant` = {:?} is not known", params.variant)))?;
        let setup = context.need_dir(context.need_of_kind("setup")?);
        let source = setup.join("model");
        let plain = Model::load(&source)?;
        let model = plain.constrained(variant)?;
        let check = model.check_constraint()?;
        if let Some(name) = check.violated.first() {
            return Err(StageError::BadOutput(format!(
                "`{name}` and {} others have effective weights outside the constraint (smallest {:e}): look for values that are not finite in setup's model",
                check.violated.len() - 1,
                check.min
            )));
        }
        eprintln!("{} tensors constrained, effective weights {:e} to {:e}", check.tensors, check.min, check.max);
        model.save(&context.out_dir.join("monotonic_initialized"), Some(&source))?;

        let summary: Value = files::read_json(&setup.join("setup_complete.json"))?;
        let (all, ffn) = (model.num_parameters(), model.ffn_parameters());
        let tensors: Vec<String> = model.effective_weights()?.iter().map(|(s, _)| s.name.clone()).collect();
        let modules: Vec<String> =
            (0..model.config().num_hidden_layers).map(|i| format!("gpt_neox.layers.{i}.mlp")).collect();
        let mut record = RunRecord::new(&context.cell);
        record.metrics = json!({
            "model_name": summary.get("model_name"),
            "seed": context.cell.key.seed,
            "variant": variant.word(),
            "formula": variant.formula(),
            "num_parameters_before": plain.num_parameters(),
            "num_parameters_after": all,
            "ffn_parameters": ffn,
            "ffn_percentage": 100.0 * ffn as f64 / all as f64,
            "num_ffn_modules": modules.len(),
            "ffn_modules": modules,
            "num_constrained_tensors": check.tensors,
            "constrained_tensors": tensors,
            "weights_checked": check.weights,
            "min_weight": check.min,
            "max_weight": check.max,
            "all_weights_non_negative": check.negative.is_empty(),
        });
        record.param_digest = Some(model.param_digest());
        Ok(Some(record))
    }
}

#[cfg(test)]
mod tests {
    #[cfg(feature = "compute")]
    #[test]
    fn variants_are_those_of_the_model() {
        assert_eq!(super::VARIANTS, crate::compute::model::Variant::WORDS);
    }
}
