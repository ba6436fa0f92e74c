//! Stage kind `multiple_choice`: accuracy of one model on tasks that are questions with choices.
//!
//! Items come from a directory of the site or from what a needed stage wrote; models and masks are arms. Exports
//! `metrics.json`; `run.h5` has, for each task, every item with what was chosen and the log-likelihood of each choice.
//! Every rank runs it, the numbers do not depend on how many there are; rank 0 writes. Conventions: `docs/evaluation.md`.

use serde_json::Value;

use super::subjects::{BATCH_SIZE, GRAIN_ROWS, THREADS};
use super::{Field, FieldType, Preset, Role, Spec};

/// As `WORDS` of `Convention` in `compute`; a test keeps them together.
const CONVENTIONS: &[&str] = &["lm-eval", "seed"];

/// As `WORDS` of `Mask` in `compute`.
const MASKS: &[&str] = &["causal", "prefix", "full"];

const fn choice(name: &'static str, words: &'static [&'static str], preset: &'static str, help: &'static str) -> Field {
    Field { name, ty: FieldType::OneOf(words), preset: Preset::Is(preset), role: Role::Semantic, help }
}

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "multiple_choice",
    version: 2,
    binary: "seedbed-multiple-choice",
    resumable: false,
    parallel: true,
    partial_inputs: false,
    needs: &["setup"],
    outputs: &[],
    export: Some("metrics.json"),
    help: "accuracy of a model on questions with choices",
    fields: &[
        Field {
            name: "model",
            ty: FieldType::NeedMap,
            preset: Preset::Required,
            role: Role::Semantic,
            help: "one entry: name in the results = needed stage that has the model (setup, apply_monotonicity, train)",
        },
        Field {
            name: "tasks",
            ty: FieldType::TextList,
            preset: Preset::Is(r#"["hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"]"#),
            role: Role::Semantic,
            help: "names of the tasks: docs/evaluation.md tells where their items lie",
        },
        Field {
            name: "task_dir",
            ty: FieldType::Path,
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "directory with the tasks' items",
        },
        Field {
            name: "tasks_from",
            ty: FieldType::NeedMap,
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "in place of task_dir, one entry: a directory among the outputs = needed stage that writes it",
        },
        Field {
            name: "split",
            ty: FieldType::Text,
            preset: Preset::Is(r#""validation""#),
            role: Role::Semantic,
            help: "split of the tasks: the beginning of the names of its files",
        },
        Field {
            name: "limit_per_task",
            ty: FieldType::Integer { min: 1, max: 1 << 53 },
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "rows of a task that are read, the first ones; absent: all",
        },
        choice("convention", CONVENTIONS, r#""lm-eval""#, "whose prompts, tokens and accuracy"),
        choice("mask", MASKS, r#""causal""#, "who sees whom; prefix: a choice's context sees all of itself"),
        choice("device", &["cpu", "cuda"], r#""cpu""#, "what computes; cuda: a GPU for each rank"),
        choice("precision", &["fp32", "bf16"], r#""fp32""#, "type of weights and activations; sums are fp64"),
        GRAIN_ROWS,
        BATCH_SIZE,
        THREADS,
        Field {
            name: "collective_timeout_s",
            ty: FieldType::Integer { min: 1, max: 86_400 },
            preset: Preset::Is("600"),
            role: Role::Operational,
            help: "longest wait for another rank, seconds",
        },
    ],
    check,
};

fn check(params: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for name in ["model", "tasks_from"] {
        if let Some(map) = params.get(name).and_then(Value::as_object).filter(|map| map.len() != 1) {
            problems.push(format!(
                "`{name}` has {} entries: say one{}",
                map.len(),
                if name == "model" { ", and make an arm of each model" } else { "" }
            ));
        }
    }
    match (params.get("task_dir").is_some(), params.get("tasks_from").is_some()) {
        (false, false) => problems.push(
            "`task_dir` is missing: name the directory with the tasks' items, or the stage that writes it as `tasks_from`"
                .to_owned(),
        ),
        (true, true) => problems.push("`task_dir` and `tasks_from` are both given: leave one out".to_owned()),
        _ => {}
    }
    let names: Vec<&str> =
        params.get("tasks").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() {
        problems.push("`tasks` is empty: name at least one, e.g. [\"piqa\"]".to_owned());
    }
    for (i, name) in names.iter().enumerate() {
        if let Err(e) = crate::record::Name::new(name) {
            problems.push(format!("`tasks`: {e}"));
        }
        if names[..i].contains(name) {
            problems.push(format!("`tasks` names {name:?} twice: remove one"));
        }
    }
    if let Some(Err(e)) = params.get("split").and_then(Value::as_str).map(crate::record::Name::new) {
        problems.push(format!("`split`: {e}"));
    }
    problems
}

#[cfg(feature = "compute")]
pub use task::run;

#[cfg(feature = "compute")]
mod task {
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use serde::Deserialize;
    use serde_json::{Map, Value, json};
    use tch::{Device, Kind};

    use super::super::subjects::{load, model_dir};
    use super::super::{Context, StageError};
    use crate::compute::comm::Comm;
    use crate::compute::data::TextTokenizer;
    use crate::compute::evaluate::Grain;
    use crate::compute::evaluate::choice::encode::Pair;
    use crate::compute::evaluate::choice::score::{Score, engine, score};
    use crate::compute::evaluate::choice::{self, Accuracy, Convention, TaskResult};
    use crate::compute::model::libtorch::Base;
    use crate::compute::model::{Mask, Net, set_threads};
    use crate::compute::{gpu, numerics};
    use crate::record::{RunRecord, files};

    #[derive(Debug, Deserialize)]
    struct Params {
        model: BTreeMap<String, String>,
        tasks: Vec<String>,
        task_dir: Option<PathBuf>,
        tasks_from: Option<BTreeMap<String, String>>,
        split: String,
        limit_per_task: Option<usize>,
        convention: String,
        mask: String,
        device: String,
        precision: String,
        grain_rows: usize,
        batch_size: usize,
        threads_per_rank: u32,
        collective_timeout_s: u64,
    }

    /// Evaluates the model, on every rank; rank 0 writes.
    ///
    /// # Errors
    /// The model or the items of a task are not there or cannot be used, or a rank is gone.
    pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
        let params: Params = context.params()?;
        set_threads(params.threads_per_rank);
        let deadline = Duration::from_secs(params.collective_timeout_s);
        let (comm, device) = if params.device == "cuda" {
            gpu::load()?;
            let comm = Comm::open_on_gpus(deadline, &context.run_dir)?;
            let device = comm.gpu();
            (comm, device)
        } else {
            (Comm::open(deadline)?, Device::Cpu)
        };
        let record = evaluated(context, &params, &comm, device)?;
        let first = comm.is_first();
        // All ranks end alike: they leave in order. After an error the launcher ends the others.
        comm.close()?;
        Ok(first.then_some(record))
    }

    /// The tasks of a cell, with the model that answers them.
    struct Asked {
        net: Net,
        tokenizer: TextTokenizer,
        convention: Convention,
        mask: Mask,
        grain: Grain,
    }

    fn evaluated(context: &Context, params: &Params, comm: &Comm, device: Device) -> Result<RunRecord, StageError> {
        let unknown = |name: &str, word: &str| {
            StageError::Usage(format!("`{name}` = {word:?} is not known: correct it in the study"))
        };
        let one = |map: &BTreeMap<String, String>, name: &str| {
            let entry = map.iter().next().map(|(k, v)| (k.clone(), v.clone()));
            entry.ok_or_else(|| StageError::Usage(format!("`{name}` is empty: say one entry")))
        };
        let mask = Mask::parse(&params.mask).ok_or_else(|| unknown("mask", &params.mask))?;
        let convention =
            Convention::parse(&params.convention).ok_or_else(|| unknown("convention", &params.convention))?;
        let (name, stage) = one(&params.model, "model")?;
        let setup = context.need_dir(context.need_of_kind("setup")?);
        let summary: Value = files::read_json(&setup.join("setup_complete.json"))?;
        let model = load(&model_dir(context, context.need_of_stage(&stage)?))?;
        let tokenizer = TextTokenizer::load(&setup.join("model"))?;
        tokenizer.check_model(model.config().vocab_size)?;
        let dir = match (&params.task_dir, &params.tasks_from) {
            // Where the cell says that the input lies: on the node's own disk, if it is staged in.
            (Some(_), _) => context
                .input("task_dir")
                .ok_or_else(|| StageError::Usage("`task_dir` is no input of this cell: submit it again".to_owned()))?
                .to_path_buf(),
            (None, Some(from)) => {
                let (dir, stage) = one(from, "tasks_from")?;
                context.need_dir(context.need_of_stage(&stage)?).join(dir)
            }
            (None, None) => return Err(StageError::Usage("`task_dir` is missing: name a directory".to_owned())),
        };
        let kind = if params.precision == "bf16" { Kind::BFloat16 } else { Kind::Float };
        let grain = Grain::new(params.grain_rows, params.batch_size)?;
        let net = Net::of(&model, Base::Frozen, kind, device)?;
        let asked = Asked { net, tokenizer, convention, mask, grain };

        // All items first: what is wrong with the last task is said before anything is computed.
        let mut tasks = Vec::new();
        for task in &params.tasks {
            let found = choice::find(&dir, task, &params.split)?;
            let items = choice::read(&found.files, &found.layout, convention, params.limit_per_task)?;
            tasks.push((task, items, found.digest()?));
        }
        let probe = match tasks.first() {
            Some((_, items, _)) if mask != Mask::Causal => {
                choice::pairs(&items.items[..1], &asked.tokenizer, convention)?
            }
            _ => Vec::new(),
        };
        let before = asked.causal(comm, &probe)?;

        let mut record = RunRecord::new(&context.cell);
        let (mut rows, mut seconds, mut results) = (Vec::new(), Map::new(), Vec::new());
        for (task, items, digest) in &tasks {
            let begun = Instant::now();
            let result = choice::evaluate(
                (&asked.net, &asked.tokenizer),
                comm,
                &items.items,
                asked.convention,
                asked.mask,
                asked.grain,
            )?;
            let took = begun.elapsed().as_secs_f64();
            if comm.is_first() {
                let (n, accuracy) = (items.items.len(), result.headline(convention).value);
                eprintln!("{task}: accuracy {accuracy:.4} on {n} items, {took:.1} s");
            }
            seconds.insert((*task).clone(), json!(took));
            rows.push(row(task, &result, convention, items.without_answer, digest.as_str()));
            record.items.insert((*task).clone(), result.table(convention, &items.items));
            results.push(result);
        }
        let after = asked.causal(comm, &probe)?;
        if before != after {
            return Err(StageError::BadOutput(
                "the model answers otherwise under its own mask than before the tasks: report this".to_owned(),
            ));
        }
        record.metrics = json!({
            "model": name,
            "model_id": summary.get("model_name"),
            "model_stage": stage,
            "param_digest": model.param_digest(),
            "prefill_bidirectional": mask != Mask::Causal,
            "mask": params.mask,
            "mask_patch": {
                "patched_layers": results.iter().map(|r| r.patched_layers).min(),
                "restored": (mask != Mask::Causal).then_some(true),
            },
            "convention": params.convention,
            "split": params.split,
            "limit_per_task": params.limit_per_task,
            "tasks": rows,
        });
        let macros = Macro::of(&results, convention);
        record.metrics["macro_accuracy"] = json!(macros.accuracy);
        record.metrics["macro_stderr"] = json!(macros.stderr);
        record.metrics["macro_chance"] = json!(macros.chance);
        record.metrics["macro_delta_to_chance"] = json!(macros.accuracy - macros.chance);
        record.environment =
            json!({"metadata": {"seconds": seconds, "ranks": comm.size(), "duration_s": context.elapsed_s()}});
        let engine = engine(&asked.net)?;
        record.numerics = numerics::record(&numerics::Settings {
            threads_per_rank: params.threads_per_rank,
            lanes: 1,
            grain_samples: params.grain_rows as u64,
            transport: comm.transport(),
            compute_type: &params.precision,
            engine: engine.name(),
            gemm: engine.gemm(),
            device: &gpu::name(device),
            inexact: None,
        });
        Ok(record)
    }

    impl Asked {
        /// Under the mask that the model was made with.
        fn causal(&self, comm: &Comm, pairs: &[Pair]) -> Result<Vec<Score>, StageError> {
            Ok(score(&self.net, comm, pairs, Mask::Causal, self.grain)?)
        }
    }

    /// Unweighted means over tasks.
    struct Macro {
        accuracy: f64,
        stderr: Option<f64>,
        chance: f64,
    }

    impl Macro {
        fn of(results: &[TaskResult], convention: Convention) -> Self {
            let n = results.len() as f64;
            let mean = |of: &dyn Fn(&TaskResult) -> f64| results.iter().map(of).sum::<f64>() / n;
            // Tasks are independent samples.
            let variances: Option<Vec<f64>> =
                results.iter().map(|r| Some(r.headline(convention).stderr?.powi(2))).collect();
            Self {
                accuracy: mean(&|r| r.headline(convention).value),
                stderr: variances.map(|v| v.iter().sum::<f64>().sqrt() / n),
                chance: mean(&|r| r.chance(convention)),
            }
        }
    }

    fn row(task: &str, result: &TaskResult, convention: Convention, without_answer: usize, digest: &str) -> Value {
        let headline = result.headline(convention);
        let chance = result.chance(convention);
        let mut row = json!({
            "task": task,
            "total": result.outcomes.len(),
            "accuracy": headline.value,
            "stderr": headline.stderr,
            "chance": chance,
            "delta_to_chance": headline.value - chance,
            "mean_chance": result.mean_chance,
            "without_answer": without_answer,
            "digest": digest,
        });
        let each: [(&str, Accuracy); 4] = [
            ("acc", result.acc),
            ("acc_norm", result.acc_norm),
            ("acc_bytes", result.acc_bytes),
            ("acc_tokens", result.acc_tokens),
        ];
        for (name, accuracy) in each {
            row[name] = json!(accuracy.value);
            row[format!("{name}_stderr")] = json!(accuracy.stderr);
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_no_field_can_tell_is_checked() {
        let good = json!({"model": {"vanilla": "setup"}, "tasks": ["piqa"], "task_dir": "/x", "split": "test"});
        assert_eq!(check(&good), Vec::<String>::new());
        for (key, value, named) in [
            ("model", json!({}), "`model` has 0"),
            ("model", json!({"a": "setup", "b": "train"}), "arm of each"),
            ("tasks", json!([]), "`tasks` is empty"),
            ("tasks", json!(["piqa", "piqa"]), "twice"),
            ("tasks", json!(["../x"]), "`tasks`"),
            ("task_dir", Value::Null, "`task_dir` is missing"),
            ("tasks_from", json!({"tasks": "world"}), "both given"),
            ("split", json!("a/b"), "`split`"),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            bad.as_object_mut().unwrap().retain(|_, v| !v.is_null());
            let problems = check(&bad);
            assert!(problems.len() == 1 && problems[0].contains(named), "{problems:?}");
        }
        let mut from = json!({"model": {"a": "setup"}, "tasks": ["piqa"], "tasks_from": {"tasks": "world"}});
        assert_eq!(check(&from), Vec::<String>::new());
        from["tasks_from"] = json!({});
        assert_eq!(check(&from).len(), 1);
    }

    #[cfg(feature = "compute")]
    #[test]
    fn words_are_those_of_the_library() {
        assert_eq!(CONVENTIONS, crate::compute::evaluate::choice::Convention::WORDS);
        assert_eq!(MASKS, crate::compute::model::Mask::WORDS);
    }
}
