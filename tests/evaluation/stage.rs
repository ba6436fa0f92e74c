//! The stage kind `multiple_choice` and the benchmarks and windows of `evaluate`, as a job runs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use seedbed::record::{Column, Items, RunRecord, exit, run_h5};
use seedbed::stages::{Context, StageError, context, evaluate, multiple_choice};
use serde_json::{Value, json};

use super::fixtures;
use crate::data_stages::{Study, number, resolved};

const TASKS: [&str; 5] = ["hellaswag", "piqa", "arc_easy", "winogrande", "own"];

/// A cell of `multiple_choice` about setup's model, with the committed items.
fn cell(study: &Study, over: &Value) -> Context {
    let mut params = json!({"model": {"vanilla": "setup"}, "tasks": TASKS, "grain_rows": 4});
    params.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
    let params = resolved(&multiple_choice::SPEC, &params);
    let dir = params.get("task_dir").and_then(Value::as_str).map(PathBuf::from);
    let inputs: Vec<(&str, &Path)> = dir.iter().map(|dir| ("task_dir", dir.as_path())).collect();
    study.context(&multiple_choice::SPEC, "choices", Some(42), &params, &inputs)
}

fn asked(study: &Study, over: &Value) -> Result<(RunRecord, PathBuf), StageError> {
    let mut all = json!({"task_dir": fixtures().join("items")});
    all.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
    let context = cell(study, &all);
    let record = multiple_choice::run(&context)?.unwrap();
    context::write_record(&multiple_choice::SPEC, &context, &record)?;
    Ok((record, context.out_dir))
}

fn integers<'a>(items: &'a Items, name: &str) -> &'a [i64] {
    let Some(Column::Integers(values)) = items.column(name) else { panic!("{name}") };
    values
}

fn lls(items: &Items, name: &str) -> Vec<f64> {
    let Some(Column::Floats(values)) = items.column(name) else { panic!("{name}") };
    values.clone()
}

#[test]
fn results_are_those_of_their_items_and_no_batch_size_changes_a_byte() {
    let (study, _) = Study::prepared();
    let (one, out) = asked(&study, &json!({"batch_size": 1})).unwrap();
    let exported: Value = serde_json::from_slice(&std::fs::read(out.join("metrics.json")).unwrap()).unwrap();
    let tasks = exported["tasks"].as_array().unwrap();
    assert_eq!(tasks.iter().map(|t| t["task"].as_str().unwrap()).collect::<Vec<_>>(), TASKS);
    let stored = run_h5::read_run(&out.join("run.h5")).unwrap();
    let (mut sum, mut chance, mut variance) = (0.0, 0.0, 0.0);
    for task in tasks {
        let items = &stored.items[task["task"].as_str().unwrap()];
        let (gold, chosen) = (integers(items, "gold"), integers(items, "chosen"));
        let n = items.len() as f64;
        assert_eq!(number(task, "/total"), n);
        let right = gold.iter().zip(chosen).filter(|(g, c)| g == c).count() as f64;
        assert_eq!(number(task, "/accuracy"), right / n);
        assert_eq!(integers(items, "right").iter().sum::<i64>() as f64, right);
        assert_eq!(number(task, "/acc"), right / n, "the headline of lm-eval is acc");
        let p = right / n;
        assert!((number(task, "/stderr") - (p * (1.0 - p) / (n - 1.0)).sqrt()).abs() < 1e-15);
        // What was chosen is the largest log-likelihood of those that are stored.
        let choices = integers(items, "choices");
        for (i, &chosen) in chosen.iter().enumerate() {
            let of = |k: i64| lls(items, &format!("ll_{k}"))[i];
            assert!((0..choices[i]).all(|k| of(k) <= of(chosen)), "{task} {i}");
        }
        let guess = choices.iter().map(|&c| 1.0 / c as f64).sum::<f64>() / n;
        assert!((number(task, "/chance") - guess).abs() < 1e-15);
        assert_eq!(number(task, "/delta_to_chance"), number(task, "/accuracy") - number(task, "/chance"));
        assert!(task["digest"].as_str().is_some_and(|d| d.len() == 64));
        sum += right / n;
        chance += number(task, "/chance");
        variance += number(task, "/stderr").powi(2);
    }
    assert!((number(&exported, "/macro_accuracy") - sum / 5.0).abs() < 1e-15);
    assert!((number(&exported, "/macro_chance") - chance / 5.0).abs() < 1e-15);
    assert!((number(&exported, "/macro_stderr") - variance.sqrt() / 5.0).abs() < 1e-15);
    assert!((number(&exported, "/macro_delta_to_chance") - (sum - chance) / 5.0).abs() < 1e-15);
    assert_eq!(exported["mask_patch"], json!({"patched_layers": 0, "restored": null}));
    // ARC's items have 3 to 5 choices: what an item does not have has no value.
    let arc = &stored.items["arc_easy"];
    let absent = integers(arc, "choices").iter().position(|&c| c == 3).unwrap();
    assert!(lls(arc, "ll_3")[absent].is_nan() && integers(arc, "bytes_4")[absent] == -1);

    // Without how long it took.
    let told = |out: &Path| {
        let mut told: Value = serde_json::from_slice(&std::fs::read(out.join("metrics.json")).unwrap()).unwrap();
        told.as_object_mut().unwrap().remove("metadata");
        told
    };
    let before = told(&out);
    for batch in [7, 64] {
        let (record, out) = asked(&study, &json!({"batch_size": batch})).unwrap();
        assert_eq!(record.content_digest(), one.content_digest(), "batch {batch}");
        assert_eq!(told(&out), before, "batch {batch}");
    }
}

#[test]
fn a_mask_is_counted_and_leaves_the_model_as_it_was() {
    let (study, _) = Study::prepared();
    let under = |mask: &str| asked(&study, &json!({"mask": mask, "tasks": ["piqa", "own"]})).unwrap().0;
    let [causal, full, prefix] = ["causal", "full", "prefix"].map(under);
    let ll = |record: &RunRecord| lls(&record.items["piqa"], "ll_0");
    assert!(ll(&causal) != ll(&full) && ll(&full) != ll(&prefix) && ll(&prefix) != ll(&causal));
    for (record, layers, restored) in [(&causal, 0, Value::Null), (&full, 2, json!(true)), (&prefix, 2, json!(true))] {
        assert_eq!(record.metrics["mask_patch"], json!({"patched_layers": layers, "restored": restored}));
        assert_eq!(record.metrics["prefill_bidirectional"], json!(layers > 0));
    }
    assert_eq!(under("causal").content_digest(), causal.content_digest());
}

#[test]
fn conventions_limits_and_tasks_of_a_stage() {
    let (study, _) = Study::prepared();
    // The items may be what a needed stage wrote.
    let tasks = study.dir.path().join("setup/tasks");
    std::fs::create_dir_all(&tasks).unwrap();
    for name in ["piqa.jsonl", "winogrande.jsonl"] {
        std::fs::copy(fixtures().join("items").join(name), tasks.join(name)).unwrap();
    }
    std::fs::create_dir(tasks.join("arc_easy")).unwrap();
    std::fs::copy(fixtures().join("parquet/arc_easy.parquet"), tasks.join("arc_easy/validation-0.parquet")).unwrap();
    // An item whose answer is none of its choices is left out, and counted.
    let extra = "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": -1}\n";
    let piqa = std::fs::read_to_string(tasks.join("piqa.jsonl")).unwrap();
    std::fs::write(tasks.join("piqa.jsonl"), format!("{extra}{piqa}")).unwrap();
    let params = json!({"tasks_from": {"tasks": "setup"}, "tasks": ["piqa", "arc_easy", "winogrande"],
                        "convention": "seed", "limit_per_task": 5});
    let context = cell(&study, &params);
    let record = multiple_choice::run(&context).unwrap().unwrap();
    let rows = record.metrics["tasks"].as_array().unwrap();
    assert_eq!(rows[0]["total"], 4);
    assert_eq!((&rows[0]["without_answer"], &rows[1]["without_answer"]), (&json!(1), &json!(0)));
    for row in rows {
        assert_eq!(row["accuracy"], row["acc_tokens"], "the headline of the study is by the mean over tokens");
    }
    let choices = integers(&record.items["arc_easy"], "choices");
    assert_eq!(number(&rows[1], "/chance"), choices.len() as f64 / choices.iter().sum::<i64>() as f64);
    let items = &record.items["piqa"];
    let per_token =
        |k: usize, i: usize| lls(items, &format!("ll_{k}"))[i] / integers(items, &format!("tokens_{k}"))[i] as f64;
    for (i, &chosen) in integers(items, "chosen").iter().enumerate() {
        assert!((0..2).all(|k| per_token(k, i) <= per_token(chosen as usize, i)));
    }
    assert_eq!(integers(items, "id"), [1, 2, 3, 4]);
}

#[test]
fn what_is_missing_or_wrong_is_said_with_its_place() {
    let (study, _) = Study::prepared();
    let fails = |over: Value| asked(&study, &over).unwrap_err();
    let error = fails(json!({"tasks": ["piqa", "mmlu"]}));
    assert_eq!(error.exit_code(), exit::MISSING_INPUT);
    assert!(error.to_string().contains("mmlu.toml"), "{error}");
    let error = fails(json!({"tasks": ["arc_challenge"], "task_dir": fixtures().join("parquet")}));
    assert_eq!(error.exit_code(), exit::MISSING_INPUT);
    assert!(error.to_string().contains("arc_challenge/validation.parquet"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures().join("items/piqa.jsonl"), dir.path().join("winogrande.jsonl")).unwrap();
    let error = fails(json!({"task_dir": dir.path(), "tasks": ["winogrande"]}));
    assert_eq!(error.exit_code(), exit::USAGE);
    assert!(error.to_string().contains("item 0") && error.to_string().contains("`sentence`"), "{error}");
    let error = fails(json!({"model": {"x": "elsewhere"}}));
    assert!(error.exit_code() == exit::USAGE && error.to_string().contains("`needs`"), "{error}");
}

/// One rank, and the program under `mpirun`: the same results, items and export.
#[cfg(feature = "mpi")]
#[test]
fn the_number_of_ranks_changes_no_byte() {
    let (study, _) = Study::prepared();
    let context = cell(&study, &json!({"task_dir": fixtures().join("items")}));
    let file = study.dir.path().join("choices.toml");
    let mut results = Vec::new();
    for ranks in [1usize, 2, 4] {
        let mut command = Command::new("timeout");
        command.args(["120", "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]);
        command.arg(ranks.to_string()).arg(env!("CARGO_BIN_EXE_seedbed-multiple-choice"));
        command.arg("--cell").arg(&file).args(["--attempt", &ranks.to_string()]);
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{ranks} ranks: {}", String::from_utf8_lossy(&output.stderr));
        let out = seedbed::record::attempt::out_dir(&context.run_dir, ranks as u32);
        let run = run_h5::read_run(&out.join("run.h5")).unwrap();
        assert_eq!(run.environment["metadata"]["ranks"], json!(ranks));
        results.push((run.content_digest(), run.metrics, run.items));
    }
    let first = format!("{:?}", results[0]);
    assert!(results.iter().all(|r| format!("{r:?}") == first));
}

#[test]
fn benchmarks_and_windows_of_the_evaluation() {
    let (study, _) = Study::prepared();
    let run = |over: &Value, inputs: &[(&str, &Path)]| {
        let params = resolved(&evaluate::SPEC, over);
        let context = study.context(&evaluate::SPEC, "evaluate", Some(42), &params, inputs);
        let record = evaluate::run(&context).map(Option::unwrap);
        record.inspect(|record| context::write_record(&evaluate::SPEC, &context, record).unwrap())
    };
    let items = fixtures().join("items");
    // What of the four is not there is null, with the reason.
    let some = tempfile::tempdir().unwrap();
    for name in ["lambada", "hellaswag", "truthfulqa"] {
        std::fs::copy(items.join(format!("{name}.jsonl")), some.path().join(format!("{name}.jsonl"))).unwrap();
    }
    let all = run(
        &json!({"windows": ["rolling", "strided"], "stride": 16, "max_documents": 6, "limit_per_benchmark": 4}),
        &[("benchmark_dir", some.path())],
    )
    .unwrap();
    let m = &all.metrics;
    for model in ["baseline_pythia", "monotonic_pythia"] {
        for name in ["lambada", "hellaswag", "truthfulqa"] {
            assert_eq!(m[name][model]["total"], 4, "{name}");
            let right = integers(&all.items[&format!("{name}_{model}")], "right").iter().sum::<i64>() as f64;
            assert_eq!(number(m, &format!("/{name}/{model}/accuracy")), right / 4.0);
        }
        for word in ["rolling", "strided"] {
            let found = &m["documents"][word][model];
            let rows = &all.items[&format!("{word}_{model}")];
            let [nll, tokens, words, bytes] = [
                lls(rows, "nll").iter().sum::<f64>(),
                integers(rows, "tokens").iter().sum::<i64>() as f64,
                integers(rows, "words").iter().sum::<i64>() as f64,
                integers(rows, "bytes").iter().sum::<i64>() as f64,
            ];
            assert_eq!(rows.len(), 6);
            let at = |key: &str| number(found, &format!("/{key}"));
            assert!((at("token_perplexity") / (nll / tokens).exp() - 1.0).abs() < 1e-12);
            assert!((at("word_perplexity") / (nll / words).exp() - 1.0).abs() < 1e-12);
            assert!((at("byte_perplexity") / (nll / bytes).exp() - 1.0).abs() < 1e-12);
            assert!((at("bits_per_byte") - nll / bytes / 2f64.ln()).abs() < 1e-12);
            assert_eq!((at("documents"), at("bytes")), (6.0, bytes));
        }
        let stream = &m["pile_test"][model];
        assert!(number(stream, "/bits_per_byte") > 0.0 && number(stream, "/word_perplexity") > 1.0);
        assert!(
            lls(&all.items[&format!("rolling_{model}")], "nll") != lls(&all.items[&format!("strided_{model}")], "nll")
        );
    }
    assert_eq!(m["winogrande"], Value::Null);
    let why = m["metadata"]["absent_benchmarks"]["winogrande"].as_str().unwrap();
    assert!(why.contains("winogrande.jsonl") && !why.contains(some.path().to_str().unwrap()), "{why}");
    assert_eq!(m["metadata"]["absent_benchmarks"].as_object().unwrap().len(), 1);

    // Documents of a file of one's own, and part of a split.
    let documents = items.join("documents.jsonl");
    let own =
        run(&json!({"windows": ["rolling"], "quick_pile_test_size": 3}), &[("documents_file", documents.as_path())])
            .unwrap();
    assert_eq!(own.metrics["documents"]["rolling"]["baseline_pythia"]["documents"], 10);
    assert_eq!(own.metrics["pile_test"]["baseline_pythia"]["word_perplexity"], Value::Null);
    let why = own.metrics["metadata"]["absent_conventions"].as_str().unwrap();
    assert!(why.starts_with("3 of ") && why.contains("quick_pile_test_size"), "{why}");
    let error =
        run(&json!({"windows": ["rolling"], "documents_field": "body"}), &[("documents_file", documents.as_path())])
            .unwrap_err();
    assert!(error.exit_code() == exit::USAGE && error.to_string().contains("`body`"), "{error}");
}
