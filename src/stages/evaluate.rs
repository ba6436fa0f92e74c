//! Stage kind `evaluate`: perplexity of trained models on the test split, as one stream and by windows over documents,
//! and four public benchmarks where their data is there.
//!
//! Exports `evaluation_results.json`. Benchmarks that were not run are null, with the reason beside them. The
//! unigram perplexity of the same split is recorded too: a corpus on which a trained model does not beat it, or
//! comes near 1, is no measure of anything. Conventions: `docs/evaluation.md`.

use serde_json::Value;

use super::subjects::{BATCH_SIZE, GRAIN_ROWS, MODELS, THREADS, check_models};
use super::{Field, FieldType, Preset, Role, Spec};

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "evaluate",
    version: 2,
    binary: "seedbed-evaluate",
    resumable: false,
    parallel: false,
    partial_inputs: false,
    needs: &["setup", "train"],
    outputs: &[],
    export: Some("evaluation_results.json"),
    help: "perplexity of trained models, and benchmarks",
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
            help: "what the result lists, pile_test among them; others are null, with the reason, where benchmark_dir does not have them",
        },
        Field {
            name: "benchmark_dir",
            ty: FieldType::Path,
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "directory with the rows of lambada, hellaswag, winogrande, truthfulqa",
        },
        Field {
            name: "limit_per_benchmark",
            ty: FieldType::Integer { min: 1, max: 1 << 53 },
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "rows of a benchmark that are read, the first ones; absent: all",
        },
        Field {
            name: "windows",
            ty: FieldType::TextList,
            preset: Preset::Is("[]"),
            role: Role::Semantic,
            help: "perplexity of documents by windows: rolling (as lm-eval), strided",
        },
        Field {
            name: "stride",
            ty: FieldType::Integer { min: 1, max: 1 << 20 },
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "tokens by which strided windows move on",
        },
        Field {
            name: "documents_file",
            ty: FieldType::Path,
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "documents for windows, .jsonl or .parquet; absent: those of the test split",
        },
        Field {
            name: "documents_field",
            ty: FieldType::Text,
            preset: Preset::Is(r#""text""#),
            role: Role::Semantic,
            help: "key of the text in a row of documents_file",
        },
        Field {
            name: "max_documents",
            ty: FieldType::Integer { min: 1, max: 1 << 53 },
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "documents for windows, the first ones; absent: all",
        },
        GRAIN_ROWS,
        BATCH_SIZE,
        THREADS,
    ],
    check,
};

/// The perplexity of the test split, among the benchmarks.
const STREAM: &str = "pile_test";

/// Ways to cut documents into windows.
const WINDOWS: &[&str] = &["rolling", "strided"];

fn check(params: &Value) -> Vec<String> {
    let mut problems = check_models(params);
    let list = |name: &str| -> Vec<&str> {
        params.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let names = list("benchmarks");
    if !names.contains(&STREAM) {
        problems.push(format!("`benchmarks` lacks `{STREAM}`, which this stage is for: add it"));
    }
    for name in names {
        if crate::record::Name::new(name).is_err() || ["metadata", "documents"].contains(&name) {
            problems.push(format!("`benchmarks`: {name:?} cannot be a name in the result"));
        }
    }
    let windows = list("windows");
    for (i, word) in windows.iter().enumerate() {
        if !WINDOWS.contains(word) {
            problems.push(format!("`windows` cannot be {word:?}: say {}", WINDOWS.join(" or ")));
        } else if windows[..i].contains(word) {
            problems.push(format!("`windows` names {word:?} twice: remove one"));
        }
    }
    match (windows.contains(&"strided"), params.get("stride").is_some()) {
        (true, false) => problems.push("`windows` has strided: say by how many tokens, as `stride`".to_owned()),
        (false, true) => {
            problems.push("`stride` means nothing without strided `windows`: add it, or leave it out".to_owned())
        }
        _ => {}
    }
    for name in ["documents_file", "max_documents"] {
        if params.get(name).is_some() && windows.is_empty() {
            problems.push(format!("`{name}` means nothing without `windows`: say [\"rolling\"], or leave it out"));
        }
    }
    problems
}

#[cfg(feature = "compute")]
pub use task::run;

#[cfg(feature = "compute")]
mod task {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::time::Instant;

    use serde::Deserialize;
    use serde_json::{Map, Value, json};
    use tch::{Device, Kind};

    use super::super::subjects::{Subjects, numerics, open};
    use super::super::{Context, StageError};
    use super::STREAM;
    use crate::compute::ComputeError;
    use crate::compute::comm::Comm;
    use crate::compute::data::{Packing, Samples};
    use crate::compute::evaluate::rolling::{self, Document, Perplexities, Windows};
    use crate::compute::evaluate::{
        Evaluation, Grain, LanguageModel, benchmarks, perplexity, rows, unigram_perplexity,
    };
    use crate::compute::model::Net;
    use crate::compute::model::libtorch::Base;
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
        limit_per_benchmark: Option<usize>,
        windows: Vec<String>,
        stride: Option<usize>,
        documents_field: String,
        max_documents: Option<usize>,
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
        let own = context.need_dir(context.need_of_kind("setup")?).join("data/test/documents.jsonl");
        let own_sizes: Vec<(u64, u64)> = texts(&own, "text", None)?.iter().map(|text| rolling::sizes(text)).collect();
        if own_sizes.len() != subjects.test.documents() {
            return Err(StageError::Stale(format!(
                "`{}` has {} documents, the tokens beside it {}: run the setup stage again",
                own.display(),
                own_sizes.len(),
                subjects.test.documents()
            )));
        }
        let documents = match (params.windows.is_empty(), context.input("documents_file")) {
            (true, _) => Vec::new(),
            (false, None) => texts(&own, "text", params.max_documents)?,
            (false, Some(file)) => texts(file, &params.documents_field, params.max_documents)?,
        };

        let mut record = RunRecord::new(&context.cell);
        let mut found = Results::default();
        for (name, model) in &subjects.models {
            let begun = Instant::now();
            let evaluation = perplexity(model, &samples, limit, grain)?;
            eprintln!("{name}: perplexity {:.4} over {} tokens", evaluation.perplexity, evaluation.total_tokens);
            record.items.insert(format!("{STREAM}_{name}"), table(&sized(&evaluation, &own_sizes)));
            found.stream(name, &evaluation, &own_sizes, limit.is_none())?;
            let net = Net::of(model, Base::Frozen, Kind::Float, Device::Cpu)?;
            let asked = (&net, &subjects.tokenizer);
            for word in &params.windows {
                let windows = match (word.as_str(), params.stride) {
                    ("strided", Some(stride)) => Windows::Strided(stride),
                    _ => Windows::Rolling,
                };
                let texts = documents.iter().map(String::as_str);
                let sums = rolling::documents(asked, &Comm::Solo, texts, windows, grain)?;
                let rows: Vec<(usize, Document)> = sums.into_iter().enumerate().collect();
                record.items.insert(format!("{word}_{name}"), table(&rows));
                found.windows(word, name, &rows)?;
            }
            for benchmark in params.benchmarks.iter().filter(|b| *b != STREAM) {
                if let Some(items) = found.benchmark(benchmark, name, context.input("benchmark_dir"), |dir| {
                    benchmarks::run(asked, benchmark, dir, params.limit_per_benchmark, grain)
                })? {
                    record.items.insert(format!("{benchmark}_{name}"), items);
                }
            }
            found.seconds.insert(name.clone(), json!(begun.elapsed().as_secs_f64()));
        }
        let mut metadata = metadata(context, &params, &subjects)?;
        metadata["seq_len"] = json!(seq_len);
        metadata["rows"] = json!(limit.unwrap_or(samples.len()));
        metadata["absent_benchmarks"] = Value::Object(found.absent);
        metadata["absent_conventions"] = json!(limit.map(|n| format!(
            "{n} of {} rows were scored, so some documents only in part: raise quick_pile_test_size for words and bytes",
            samples.len()
        )));
        found.metrics.insert("metadata".into(), metadata);
        record.metrics = Value::Object(found.metrics);
        record.environment = json!({"metadata": {"seconds": found.seconds, "duration_s": context.elapsed_s()}});
        record.numerics = numerics(params.threads_per_rank, params.grain_rows);
        Ok(Some(record))
    }

    fn metadata(context: &Context, params: &Params, subjects: &Subjects) -> Result<Value, StageError> {
        Ok(json!({
            "seed": context.cell.key.seed,
            "model_name": subjects.model_name,
            "use_full_eval_sets": params.use_full_eval_sets,
            "packing": params.packing,
            "test_tokens": subjects.test.len(),
            "test_documents": subjects.test.documents(),
            "test_digest": subjects.test.info().tokens_digest,
            "unigram_perplexity": unigram_perplexity(&subjects.train, &subjects.test)?,
            "stride": params.stride,
        }))
    }

    /// The value tree as it grows, model by model.
    #[derive(Default)]
    struct Results {
        metrics: Map<String, Value>,
        absent: Map<String, Value>,
        seconds: Map<String, Value>,
    }

    impl Results {
        fn under(&mut self, key: &str) -> &mut Value {
            self.metrics.entry(key.to_owned()).or_insert_with(|| json!({}))
        }

        fn stream(
            &mut self,
            model: &str,
            found: &Evaluation,
            sizes: &[(u64, u64)],
            whole: bool,
        ) -> Result<(), StageError> {
            let documents: Vec<Document> = sized(found, sizes).into_iter().map(|(_, d)| d).collect();
            let by = Perplexities::of(&documents)?;
            let of_whole = |value: f64| whole.then_some(value);
            self.under(STREAM)[model] = json!({
                "perplexity": found.perplexity,
                "loss": found.loss,
                "total_tokens": found.total_tokens,
                "word_perplexity": of_whole(by.word_perplexity),
                "byte_perplexity": of_whole(by.byte_perplexity),
                "bits_per_byte": of_whole(by.bits_per_byte),
            });
            Ok(())
        }

        fn windows(&mut self, word: &str, model: &str, rows: &[(usize, Document)]) -> Result<(), StageError> {
            let documents: Vec<Document> = rows.iter().map(|(_, d)| *d).collect();
            let by = Perplexities::of(&documents)?;
            eprintln!("{model}: {word} windows, {:.4} bits a byte", by.bits_per_byte);
            let mut value = json!(by);
            value["log_likelihood"] = json!(documents.iter().map(|d| d.log_likelihood).sum::<f64>());
            value["documents"] = json!(documents.len());
            for (key, of) in
                [("tokens", (|d| d.tokens) as fn(&Document) -> u64), ("words", |d| d.words), ("bytes", |d| d.bytes)]
            {
                value[key] = json!(documents.iter().map(of).sum::<u64>());
            }
            self.under("documents")[word][model] = value;
            Ok(())
        }

        /// What `run` finds, or null with the reason; the items, if there are some.
        fn benchmark(
            &mut self,
            name: &str,
            model: &str,
            dir: Option<&Path>,
            run: impl Fn(&Path) -> Result<benchmarks::Found, ComputeError>,
        ) -> Result<Option<Items>, StageError> {
            let known = benchmarks::SPLITS.iter().any(|(known, _)| *known == name);
            let absent = match dir {
                _ if !known => "not run: this stage has no task of that name".to_owned(),
                None => "not run: the study names no benchmark_dir".to_owned(),
                Some(dir) => match run(dir) {
                    Ok(found) => {
                        eprintln!("{model}: {name} accuracy {:.4}", found.values["accuracy"].as_f64().unwrap_or(0.0));
                        self.under(name)[model] = found.values;
                        return Ok(Some(found.items));
                    }
                    // Said without the directory's path, which is not the same everywhere.
                    Err(ComputeError::Missing { path, reason }) if path == dir => {
                        format!("not run: benchmark_dir {reason}")
                    }
                    Err(e) => return Err(e.into()),
                },
            };
            self.metrics.insert(name.to_owned(), Value::Null);
            self.absent.insert(name.to_owned(), json!(absent));
            Ok(None)
        }
    }

    /// The texts of a file, the first `limit` of them.
    fn texts(file: &Path, field: &str, limit: Option<usize>) -> Result<Vec<String>, StageError> {
        let mut texts = Vec::new();
        rows::each_row(&[PathBuf::from(file)], limit, &mut |path, number, row| {
            let text = row.get(field).and_then(Value::as_str).map(str::to_owned);
            texts.push(text.ok_or_else(|| {
                ComputeError::input(
                    path,
                    format!("has no text `{field}` in row {number}: correct it or documents_field"),
                )
            })?);
            Ok(())
        })?;
        Ok(texts)
    }

    /// Documents that were scored in a stream, with their numbers.
    fn sized(found: &Evaluation, sizes: &[(u64, u64)]) -> Vec<(usize, Document)> {
        let of = |d: &crate::compute::evaluate::DocumentLoss| {
            let (words, bytes) = sizes[d.document];
            // A count is not negative.
            (d.document, Document { log_likelihood: -d.nll, tokens: d.tokens as u64, words, bytes })
        };
        found.documents.iter().map(of).collect()
    }

    fn table(rows: &[(usize, Document)]) -> Items {
        let integers =
            |of: &dyn Fn(&(usize, Document)) -> u64| Column::Integers(rows.iter().map(|row| of(row) as i64).collect());
        Items {
            columns: vec![
                ("id".into(), integers(&|(i, _)| *i as u64)),
                ("nll".into(), Column::Floats(rows.iter().map(|(_, d)| -d.log_likelihood).collect())),
                ("tokens".into(), integers(&|(_, d)| d.tokens)),
                ("words".into(), integers(&|(_, d)| d.words)),
                ("bytes".into(), integers(&|(_, d)| d.bytes)),
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

    #[test]
    fn windows_are_checked() {
        for (windows, more, named) in [
            (json!(["rolling"]), json!({}), None),
            (json!(["rolling", "strided"]), json!({"stride": 8}), None),
            (json!(["strided"]), json!({}), Some("as `stride`")),
            (json!(["rolling"]), json!({"stride": 8}), Some("`stride` means nothing")),
            (json!(["sliding"]), json!({}), Some("rolling or strided")),
            (json!(["rolling", "rolling"]), json!({}), Some("twice")),
            (json!([]), json!({"max_documents": 3}), Some("`max_documents`")),
        ] {
            let mut params = json!({"models": {"a": "train"}, "benchmarks": ["pile_test"], "windows": windows});
            params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let problems = check(&params);
            match named {
                None => assert_eq!(problems, Vec::<String>::new()),
                Some(named) => assert!(problems.len() == 1 && problems[0].contains(named), "{problems:?}"),
            }
        }
    }
}
