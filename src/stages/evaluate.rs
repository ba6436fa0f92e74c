//! Stage kind `evaluate`: perplexity of trained models on the test split.
//!
//! Exports `evaluation_results.json`. Benchmarks that were not run are null, with the reason beside them. The
//! unigram perplexity of the same split is recorded too: a corpus on which a trained model does not beat it, or
//! comes near 1, is no measure of anything.

use serde_json::Value;

use super::subjects::{BATCH_SIZE, GRAIN_ROWS, MODELS, THREADS, check_models};
use super::{Field, FieldType, Preset, Role, Spec};

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "evaluate",
    version: 1,
    binary: "seedbed-evaluate",
    resumable: false,
    parallel: false,
    partial_inputs: false,
    needs: &["setup", "train"],
    outputs: &[],
    export: Some("evaluation_results.json"),
    help: "perplexity of trained models on the test split",
    fields: &[
        MODELS,
        Field {
            name: "packing",
            ty: FieldType::OneOf(&["stream", "document"]),
            preset: Preset::Is(r#""stream""#),
            role: Role::Semantic,
            help: "rows cut from the stream of documents, or from each document alone",
        },
        Field {
            name: "seq_len",
            ty: FieldType::Integer { min: 1, max: 1 << 20 },
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "tokens of a row; absent: the shortest context of the models",
        },
        Field {
            name: "use_full_eval_sets",
            ty: FieldType::Bool,
            preset: Preset::Is("false"),
            role: Role::Semantic,
            help: "take full_pile_test_size rows in place of quick_pile_test_size",
        },
        Field {
            name: "quick_pile_test_size",
            ty: FieldType::Integer { min: 1, max: 1 << 53 },
            preset: Preset::Is("1000"),
            role: Role::Semantic,
            help: "rows of the test split, at most",
        },
        Field {
            name: "full_pile_test_size",
            ty: FieldType::Integer { min: 1, max: 1 << 53 },
            preset: Preset::Is("10000"),
            role: Role::Semantic,
            help: "rows of the test split, at most, with use_full_eval_sets",
        },
        Field {
            name: "benchmarks",
            ty: FieldType::TextList,
            preset: Preset::Is(r#"["pile_test", "lambada", "hellaswag", "winogrande", "truthfulqa"]"#),
            role: Role::Semantic,
            help: "what the result lists; only pile_test is computed, the others are null with a reason",
        },
        GRAIN_ROWS,
        BATCH_SIZE,
        THREADS,
    ],
    check,
};

/// The only benchmark that is computed.
const COMPUTED: &str = "pile_test";

fn check(params: &Value) -> Vec<String> {
    let mut problems = check_models(params);
    let names: Vec<&str> =
        params.get("benchmarks").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if !names.contains(&COMPUTED) {
        problems.push(format!("`benchmarks` must list `{COMPUTED}`: everything else is compared with it"));
    }
    for name in names {
        if crate::record::Name::new(name).is_err() || name == "metadata" {
            problems.push(format!("`benchmarks`: {name:?} cannot be a name in the result"));
        }
    }
    problems
}

#[cfg(feature = "compute")]
pub use task::run;

#[cfg(feature = "compute")]
mod task {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::{Map, Value, json};

    use super::super::subjects::{numerics, open};
    use super::super::{Context, StageError};
    use super::COMPUTED;
    use crate::compute::data::{Packing, Samples};
    use crate::compute::evaluate::{Evaluation, Grain, LanguageModel, perplexity, unigram_perplexity};
    use crate::record::{Column, Items, RunRecord};

    #[derive(Debug, Deserialize)]
    struct Params {
        models: BTreeMap<String, String>,
        packing: String,
        seq_len: Option<usize>,
        use_full_eval_sets: bool,
        quick_pile_test_size: u64,
        full_pile_test_size: u64,
        benchmarks: Vec<String>,
        grain_rows: usize,
        batch_size: usize,
        threads_per_rank: u32,
    }

    /// Evaluates every model.
    ///
    /// # Errors
    /// A model or the data cannot be read or do not fit each other, or a loss is not finite.
    pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
        let params: Params = context.params()?;
        let subjects = open(context, &params.models, params.threads_per_rank)?;
        let grain = Grain::new(params.grain_rows, params.batch_size)?;
        let shortest = subjects.models.iter().map(|(_, m)| m.max_len()).min().unwrap_or(0);
        let seq_len = params.seq_len.unwrap_or(shortest);
        if seq_len > shortest {
            return Err(StageError::Usage(format!(
                "`seq_len` = {seq_len} is longer than the {shortest} positions of a model: lower it or leave it out"
            )));
        }
        let packing = Packing::parse(&params.packing)
            .ok_or_else(|| StageError::Usage(format!("`packing` = {:?} is not known", params.packing)))?;
        let samples = Samples::new(subjects.test.clone(), seq_len, packing)?;
        let limit = if params.use_full_eval_sets { params.full_pile_test_size } else { params.quick_pile_test_size };
        // As many rows as there are means all of them, the remainder too.
        let limit = (limit < samples.len()).then_some(limit);

        let mut record = RunRecord::new(&context.cell);
        let mut losses = Map::new();
        let mut seconds = Map::new();
        for (name, model) in &subjects.models {
            let begun = std::time::Instant::now();
            let found = perplexity(model, &samples, limit, grain)?;
            eprintln!("{name}: perplexity {:.4} over {} tokens", found.perplexity, found.total_tokens);
            seconds.insert(name.clone(), json!(begun.elapsed().as_secs_f64()));
            record.items.insert(format!("{COMPUTED}_{name}"), items(&found));
            losses.insert(
                name.clone(),
                json!({
                    "perplexity": found.perplexity,
                    "loss": found.loss,
                    "total_tokens": found.total_tokens,
                }),
            );
        }
        let mut metrics = Map::new();
        let mut absent = Map::new();
        for benchmark in &params.benchmarks {
            if benchmark == COMPUTED {
                metrics.insert(benchmark.clone(), Value::Object(std::mem::take(&mut losses)));
            } else {
                metrics.insert(benchmark.clone(), Value::Null);
                absent.insert(benchmark.clone(), json!("not run: this stage has no task of that name"));
            }
        }
        metrics.insert(
            "metadata".into(),
            json!({
                "seed": context.cell.key.seed,
                "model_name": subjects.model_name,
                "use_full_eval_sets": params.use_full_eval_sets,
                "packing": params.packing,
                "seq_len": seq_len,
                "rows": limit.unwrap_or(samples.len()),
                "test_tokens": subjects.test.len(),
                "test_documents": subjects.test.documents(),
                "test_digest": subjects.test.info().tokens_digest,
                "unigram_perplexity": unigram_perplexity(&subjects.train, &subjects.test)?,
                "absent_benchmarks": absent,
            }),
        );
        record.metrics = Value::Object(metrics);
        record.environment = json!({"metadata": {"seconds": seconds, "duration_s": context.elapsed_s()}});
        record.numerics = numerics(params.threads_per_rank, params.grain_rows);
        Ok(Some(record))
    }

    fn items(found: &Evaluation) -> Items {
        let documents = &found.documents;
        Items {
            columns: vec![
                ("id".into(), Column::Integers(documents.iter().map(|d| d.document as i64).collect())),
                ("nll".into(), Column::Floats(documents.iter().map(|d| d.nll).collect())),
                ("tokens".into(), Column::Integers(documents.iter().map(|d| d.tokens).collect())),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn benchmarks_are_checked() {
        let models = json!({"a": "train"});
        assert!(check(&json!({"models": models, "benchmarks": ["pile_test", "lambada"]})).is_empty());
        assert_eq!(check(&json!({"models": models, "benchmarks": ["lambada"]})).len(), 1);
        assert_eq!(check(&json!({"models": models, "benchmarks": ["pile_test", "metadata"]})).len(), 1);
    }
}
