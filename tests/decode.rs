//! The stage that generates texts, on a small model, as a job runs it: its lines, its numbers, and what changes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedbed::compute::comm::Comm;
use seedbed::compute::generate::task::Task;
use seedbed::compute::generate::{Engine, Settings, generate};
use seedbed::compute::model::libtorch::{Base, CachedDecoder};
use seedbed::compute::model::native::NativeDecoder;
use seedbed::compute::model::{Mask, Model, Net};
use seedbed::record::generation::{self, Line};
use seedbed::record::{Column, RunRecord};
use seedbed::stages::{StageError, context, decode};
use serde_json::{Value, json};
use tch::{Device, Kind};

use crate::data_stages::{Study, resolved};

const MODELS: [&str; 2] = ["baseline_pythia", "monotonic_pythia"];

const TASK: &str = r#"
prompt = "Q: {question}\nA:"
shot = "Q: {question}\nA: {answer}\n"
stop = ["\n", "e"]
answer_pattern = '\S'
gold = "answer"
group = "kind"
keep = ["question"]
"#;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    /// A task and items of unequal length; `gold` says what is right for the i-th.
    fn new(gold: impl Fn(usize) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("task.toml"), TASK).unwrap();
        // Short: the model has a context of 48 tokens.
        let words = ["a", "b", "c", "d", "e", "f"];
        let line = |i: usize| {
            let question: Vec<&str> = (0..=i % 7).map(|k| words[(i + k) % words.len()]).collect();
            json!({"question": question.join(" "), "answer": gold(i), "kind": if i % 3 == 0 { "a" } else { "b" }})
        };
        let text: String = (0..20).map(|i| format!("{}\n", line(i))).collect();
        std::fs::write(dir.path().join("items.jsonl"), &text).unwrap();
        std::fs::write(dir.path().join("shots.jsonl"), &text).unwrap();
        Self { dir }
    }

    fn inputs(&self) -> Vec<(&'static str, PathBuf)> {
        ["task.toml", "items.jsonl", "shots.jsonl"]
            .map(|file| (&file[..file.find('.').unwrap()], self.dir.path().join(file)))
            .to_vec()
    }

    fn run(&self, study: &Study, params: &Value) -> Result<(RunRecord, PathBuf), StageError> {
        let inputs = self.inputs();
        let inputs: Vec<(&str, &Path)> = inputs.iter().map(|(name, path)| (*name, path.as_path())).collect();
        let context = study.context(&decode::SPEC, "decode", Some(42), &resolved(&decode::SPEC, params), &inputs);
        let record = decode::run(&context)?.unwrap();
        context::write_record(&decode::SPEC, &context, &record).unwrap();
        Ok((record, context.out_dir))
    }
}

fn lines(out: &Path, model: &str) -> Vec<Line> {
    generation::read(&generation::path(out, model)).unwrap()
}

/// What `transformers` generates for the models of `tests/fixtures/families`, with a cache: `scripts/references/generation.py`.
#[test]
fn all_families_say_what_they_say_in_transformers() {
    let root = crate::support::repository().join("tests/fixtures/families");
    let recorded = std::fs::read_to_string(root.join("generated.json")).unwrap();
    let mut all: Vec<Value> = vec![serde_json::from_str(&recorded).unwrap()];
    // Live, and to other prompts.
    if let Some(python) = std::env::var_os("SEEDBED_PEERS") {
        let script = crate::support::repository().join("scripts/references/generation.py");
        let output = std::process::Command::new(python).arg(script).arg(&root).arg("2024").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        all.push(serde_json::from_slice(&output.stdout).unwrap());
    } else {
        eprintln!("recorded numbers only: SEEDBED_PEERS names no python with torch and transformers");
    }
    for (name, expected) in all.iter().flat_map(|recorded| recorded.as_object().unwrap()) {
        let ids = |key: &str| -> Vec<Vec<u32>> { serde_json::from_value(expected[key].clone()).unwrap() };
        let (prompts, expected) = (ids("prompts"), ids("ids"));
        let model = Model::load(&root.join(name)).unwrap();
        let net = Net::of(&model, Base::Frozen, Kind::Float, Device::Cpu).unwrap();
        let settings = Settings {
            max_new_tokens: expected[0].len(),
            ends: Vec::new(),
            stops: Vec::new(),
            batch_rows: 3,
            grain_rows: 2,
        };
        let native = NativeDecoder::new(&model, Mask::Causal, 2).unwrap();
        let libtorch = CachedDecoder::new(&net, Mask::Causal).unwrap();
        for mut engine in [Engine::Native(Box::new(native)), Engine::Libtorch(libtorch)] {
            let found = generate(&mut engine, &|_| Ok(String::new()), &Comm::Solo, &prompts, &settings).unwrap();
            let found: Vec<Vec<u32>> = found.into_iter().map(|text| text.ids).collect();
            assert_eq!(found, expected, "{name} {}", engine.takes_groups());
        }
    }
    assert_eq!(all[0].as_object().unwrap().len(), 5);
}

#[test]
fn lines_and_numbers_agree_and_no_batch_size_changes_them() {
    let (study, _) = Study::prepared();
    let params = |batch: u32| json!({"max_new_tokens": 12, "batch_size": batch});
    let first = Files::new(|_| "z".to_owned());
    let (_, out) = first.run(&study, &params(4)).unwrap();
    let answers: Vec<String> =
        lines(&out, MODELS[0]).into_iter().map(|l| l.answer.unwrap_or_else(|| "none".to_owned())).collect();
    assert!(answers.iter().any(|a| a != "none"), "{answers:?}");

    // Now every second item is right, as the first model answers.
    let files = Files::new(|i| if i % 2 == 0 { answers[i].clone() } else { "ZZ".to_owned() });
    let (record, out) = files.run(&study, &params(1)).unwrap();
    for model in MODELS {
        let (found, lines) = (&record.metrics["generation"][model], lines(&out, model));
        assert_eq!(lines.len(), 20);
        let count = |test: &dyn Fn(&Line) -> bool| json!(lines.iter().filter(|l| test(l)).count());
        assert_eq!(found["invalid"], count(&|l| l.answer.is_none()));
        assert_eq!(found["gold_matches"], count(&|l| l.is_match == Some(true)));
        for finish in ["end", "stop", "length", "context"] {
            assert_eq!(found["finish"][finish], count(&|l| l.finish == finish), "{finish}");
        }
        let mut answers: BTreeMap<&str, usize> = BTreeMap::new();
        lines.iter().filter_map(|l| l.answer.as_deref()).for_each(|a| *answers.entry(a).or_default() += 1);
        assert_eq!(found["distinct_answers"], json!(answers.len()));
        let most = answers.values().max().map(|&n| n as f64 / answers.values().sum::<usize>() as f64);
        assert_eq!(found["collapse_share"], json!(most));
        assert_eq!(found["accuracy"].as_f64().unwrap(), found["gold_matches"].as_f64().unwrap() / 20.0);
        let groups = found["groups"].as_array().unwrap();
        let sum: u64 = groups.iter().map(|g| g["gold_matches"].as_u64().unwrap()).sum();
        assert_eq!((groups.len(), json!(sum)), (2, found["gold_matches"].clone()));
        match record.items[&format!("generation_{model}")].column("is_match") {
            Some(Column::Integers(matches)) => {
                let expected: Vec<i64> = lines.iter().map(|l| i64::from(l.is_match == Some(true))).collect();
                assert_eq!(*matches, expected);
            }
            other => panic!("{other:?}"),
        }
        for line in &lines {
            assert!(!line.text.contains(['\n', 'e']), "{line:?}");
            assert_eq!(line.finish == "stop", line.stop.is_some(), "{line:?}");
            assert_eq!(line.prompt, format!("Q: {}\nA:", line.item["question"].as_str().unwrap()));
            assert!(line.tokens <= 12 && (line.finish != "length" || line.tokens == 12), "{line:?}");
        }
    }
    let right = record.metrics["generation"][MODELS[0]]["gold_matches"].as_u64().unwrap();
    let expected = answers.iter().step_by(2).filter(|a| *a != "none").count() as u64;
    assert_eq!(right, expected);
    let exported: Value = serde_json::from_slice(&std::fs::read(out.join("generation_results.json")).unwrap()).unwrap();
    assert_eq!(exported["generation"][MODELS[0]]["gold_matches"], json!(right));

    let bytes = |out: &Path| MODELS.map(|model| std::fs::read(generation::path(out, model)).unwrap());
    let (one, mut before) = (record.content_digest(), bytes(&out));
    for params in [params(7), json!({"max_new_tokens": 12, "batch_size": 64, "threads_per_rank": 2})] {
        let (record, out) = files.run(&study, &params).unwrap();
        assert_eq!(record.content_digest(), one);
        assert_eq!(bytes(&out), before);
        before = bytes(&out);
    }
}

#[test]
fn shots_masks_and_types_change_what_is_said() {
    let (study, _) = Study::prepared();
    let files = Files::new(|_| "a".to_owned());
    let base = json!({"max_new_tokens": 8, "max_items": 6});
    let with = |more: Value| {
        let mut params = base.clone();
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (record, out) = files.run(&study, &params).unwrap();
        (record, lines(&out, MODELS[0]))
    };
    let (plain, texts) = with(json!({}));
    assert_eq!(plain.numerics["engine"], "native");
    let (prefix, _) = with(json!({"mask": "prefix"}));
    assert_eq!(prefix.metrics["metadata"]["mask"], "prefix");
    assert_eq!(texts.len(), 6);
    let (_, shot) = with(json!({"shots": "shots.jsonl", "num_shots": 1}));
    assert!(shot.iter().all(|l| l.prompt.starts_with("Q: ") && l.prompt.matches("A:").count() == 2));
    let shots: std::collections::BTreeSet<&str> = shot.iter().map(|l| l.prompt.split("A:").next().unwrap()).collect();
    assert_eq!(shots.len(), 1, "all items have the same example");
    let (half, _) = with(json!({"precision": "bf16"}));
    assert_eq!((&half.numerics["engine"], &half.numerics["compute_type"]), (&json!("libtorch"), &json!("bf16")));
}

#[test]
fn the_task_that_comes_with_seedbed_reads_word_problems() {
    let task = Task::read(&crate::support::repository().join("configs/tasks/word-problems.toml")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("items.jsonl");
    let line = json!({"question": "3 boxes of 4?", "answer": "3 * 4 = <<3*4=12>>12\n#### 1,012"});
    std::fs::write(&path, format!("{line}\n")).unwrap();
    let shots = task.shots(&path, 1, 42).unwrap();
    let items = task.items(&path, &shots, None).unwrap();
    assert_eq!(items[0].prompt, "Q: 3 boxes of 4?\nA: 3 * 4 = <<3*4=12>>12\n#### 1,012\n\nQ: 3 boxes of 4?\nA:");
    assert_eq!(items[0].gold.as_deref(), Some("1012"));
    assert_eq!(task.answer.of(" so\n#### 1012\n").as_deref(), Some("1012"));
}

#[test]
fn what_cannot_be_asked_is_named() {
    let (study, _) = Study::prepared();
    let files = Files::new(|_| "a".to_owned());
    let error = |params: &Value| files.run(&study, params).unwrap_err().to_string();
    let long = error(&json!({"shots": "shots.jsonl", "num_shots": 20}));
    assert!(
        long.contains("prompt of item 0") && long.contains("context of 48") && long.contains("`num_shots`"),
        "{long}"
    );
    std::fs::write(files.dir.path().join("items.jsonl"), "{\"question\": 1}\n").unwrap();
    assert!(error(&json!({})).contains("item 0 that has no `answer`"), "{}", error(&json!({})));
    std::fs::write(files.dir.path().join("task.toml"), "prompt = 3").unwrap();
    let task = error(&json!({}));
    assert!(task.contains("task.toml") && task.contains("docs/generation.md"), "{task}");
}
