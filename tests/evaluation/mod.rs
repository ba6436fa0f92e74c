//! Multiple choice, LAMBADA, TruthfulQA and perplexities against the lm-eval package and transformers, and the stages that
//! report them.
//!
//! The numbers come from `scripts/references/lm_eval_fixture.py`: committed ones, and with `SEEDBED_PEERS=<python>` those
//! of other models and items, live.

mod stage;

use std::path::{Path, PathBuf};

use seedbed::compute::comm::Comm;
use seedbed::compute::data::tokens::{TokensHeader, write};
use seedbed::compute::data::{Packing, Samples, Special, TextTokenizer, Tokens};
use seedbed::compute::evaluate::choice::{self, Accuracy, Convention, Outcome};
use seedbed::compute::evaluate::rolling::{self, Document, Perplexities, Windows};
use seedbed::compute::evaluate::{Grain, benchmarks, perplexity};
use seedbed::compute::model::libtorch::Base;
use seedbed::compute::model::{Mask, Model, Net};
use serde_json::Value;
use tch::{Device, Kind};

use crate::data_stages::number;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/evaluation")
}

/// What one model is asked, and what was said of it elsewhere.
struct Case {
    items: PathBuf,
    model: Model,
    net: Net,
    tokenizer: TextTokenizer,
    expected: Value,
    name: &'static str,
}

const GRAIN: Grain = Grain { grain_rows: 8, batch_rows: 16 };
/// Log-likelihoods agree to this, nats.
const CLOSE: f64 = 1e-4;
/// Choices that the other side tells apart by less may be chosen otherwise.
const MARGIN: f64 = 2e-4;

/// Both models of a directory that `lm_eval_fixture.py` wrote.
fn cases(root: &Path) -> [Case; 2] {
    let all: Value = serde_json::from_slice(&std::fs::read(root.join("expected.json")).unwrap()).unwrap();
    ["neox", "llama"].map(|name| {
        let model = Model::load(&root.join(name)).unwrap();
        let net = Net::of(&model, Base::Frozen, Kind::Float, Device::Cpu).unwrap();
        let tokenizer = TextTokenizer::load(&root.join(name)).unwrap();
        Case { items: root.join("items"), model, net, tokenizer, expected: all[name].clone(), name }
    })
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Largest of each row; the first of equals, as numpy's argmax.
fn argmax(values: &[f64]) -> usize {
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()
}

impl Case {
    fn asked(&self) -> (&Net, &TextTokenizer) {
        (&self.net, &self.tokenizer)
    }

    fn at(&self, path: &str) -> f64 {
        number(&self.expected, path)
    }

    /// A task's log-likelihoods and predictions; how many items could not be told apart.
    fn choices(&self, task: &str) -> usize {
        let found = choice::find(&self.items, task, "validation").unwrap();
        let read = choice::read(&found.files, &found.layout, Convention::LmEval, None).unwrap();
        let ours =
            choice::evaluate(self.asked(), &Comm::Solo, &read.items, Convention::LmEval, Mask::Causal, GRAIN).unwrap();
        let theirs: Vec<Vec<f64>> =
            self.expected[task]["log_likelihoods"].as_array().unwrap().iter().map(floats).collect();
        assert_eq!(ours.outcomes.len(), theirs.len(), "{task}");
        let (mut largest, mut close, mut ties) = (0f64, Vec::new(), 0);
        for ((outcome, theirs), item) in ours.outcomes.iter().zip(&theirs).zip(&read.items) {
            assert_eq!(outcome.scores.len(), theirs.len(), "{task} {}", outcome.number);
            for (k, (score, their)) in outcome.scores.iter().zip(theirs).enumerate() {
                let d = (score.log_likelihood - their).abs();
                assert!(d <= CLOSE, "{} {task} item {} choice {k}: {score:?} and {their}", self.name, outcome.number);
                largest = largest.max(d);
            }
            let characters: Vec<f64> = item.choices.iter().map(|c| c.chars().count() as f64).collect();
            for (rule, by, lengths) in [
                ("sum", (|o| o.by_sum) as fn(&Outcome) -> usize, vec![1.0; theirs.len()]),
                ("characters", |o| o.by_characters, characters),
            ] {
                let values: Vec<f64> = theirs.iter().zip(&lengths).map(|(ll, n)| ll / n).collect();
                let first = argmax(&values);
                let second = (0..values.len()).filter(|&k| k != first).map(|k| values[k]).fold(f64::MIN, f64::max);
                let margin = (values[first] - second) * lengths[first].min(1e9);
                if margin == 0.0 {
                    ties += 1;
                    assert_eq!(by(outcome), first, "{} {task} item {}: a tie", self.name, outcome.number);
                } else if margin > MARGIN {
                    assert_eq!(by(outcome), first, "{} {task} item {} by {rule}", self.name, outcome.number);
                } else {
                    close.push((outcome.number, rule, margin, by(outcome) == first));
                }
            }
        }
        println!("{} {task}: largest difference {largest:e}, ties {ties}, too close: {close:?}", self.name);
        if close.is_empty() {
            for (ours, name) in [(ours.acc, "acc"), (ours.acc_norm, "acc_norm")] {
                self.accuracy(ours, task, name);
            }
            if self.expected[task]["results"].get("acc_bytes").is_some() {
                self.accuracy(ours.acc_bytes, task, "acc_bytes");
            }
        }
        ties
    }

    fn accuracy(&self, ours: Accuracy, task: &str, name: &str) {
        let results = &self.expected[task]["results"];
        let Some(theirs) = results.get(name).and_then(Value::as_f64) else {
            assert!(name == "acc_norm" && task == "winogrande", "{task} has no {name}");
            return;
        };
        assert!((ours.value - theirs).abs() < 1e-12, "{} {task} {name}: {ours:?} {theirs}", self.name);
        let stderr = number(results, &format!("/{name}_stderr"));
        assert!((ours.stderr.unwrap() - stderr).abs() < 1e-12, "{} {task} {name}: {ours:?} {stderr}", self.name);
    }

    fn benchmarks(&self) {
        let run = |name: &str| benchmarks::run(self.asked(), name, &self.items, None, GRAIN).unwrap();
        let lambada = run("lambada");
        let rows = &self.expected["lambada"];
        let theirs: Vec<f64> = rows["log_likelihoods"].as_array().unwrap().iter().flat_map(floats).collect();
        let Some(seedbed::record::Column::Floats(ours)) = lambada.items.column("ll") else { panic!() };
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() <= CLOSE, "{} lambada: {ours} {theirs}", self.name);
        }
        let greedy: Vec<i64> =
            rows["greedy"].as_array().unwrap().iter().map(|g| i64::from(g[0].as_bool().unwrap())).collect();
        assert_eq!(lambada.items.column("right"), Some(&seedbed::record::Column::Integers(greedy.clone())));
        assert!(self.name != "neox" || greedy.contains(&1) && greedy.contains(&0), "{greedy:?}");
        assert!((number(&lambada.values, "/accuracy") - self.at("/lambada/results/acc")).abs() < 1e-12);
        let relative = number(&lambada.values, "/perplexity") / self.at("/lambada/results/perplexity") - 1.0;
        assert!(relative.abs() < CLOSE, "{} lambada: {relative:e}", self.name);

        let truthfulqa = run("truthfulqa");
        for (ours, theirs) in [("/accuracy", "/truthfulqa/results/acc"), ("/mc2", "/truthfulqa_mc2/results/acc")] {
            let d = number(&truthfulqa.values, ours) - self.at(theirs);
            println!("{} truthfulqa{ours}: {d:e}", self.name);
            assert!(d.abs() < CLOSE, "{} truthfulqa{ours}: {d:e}", self.name);
        }
        for name in ["hellaswag", "winogrande"] {
            let found = run(name);
            assert_eq!(number(&found.values, "/total"), found.items.len() as f64);
        }
    }

    fn texts(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.items.join("documents.jsonl")).unwrap();
        let row = |line: &str| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
        text.lines().map(row).collect()
    }

    /// Log-likelihoods of documents by windows, and as one stream.
    fn documents(&self) {
        let texts = self.texts();
        let by = |windows| {
            rolling::documents(self.asked(), &Comm::Solo, texts.iter().map(String::as_str), windows, GRAIN).unwrap()
        };
        let same = |what: &str, ours: &[f64], path: &str| {
            let theirs = floats(self.expected.pointer(path).unwrap());
            assert_eq!(ours.len(), theirs.len(), "{what}");
            let mut largest = 0f64;
            for (i, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
                // A document is as long as several contexts: its sum may be off by as much as several choices.
                let d = (ours - theirs).abs() / f64::max(1.0, theirs.abs() / 100.0);
                assert!(d <= CLOSE, "{} {what} document {i}: {ours} {theirs}", self.name);
                largest = largest.max(d);
            }
            println!("{} {what}: largest difference {largest:e}", self.name);
        };
        let sums = |documents: &[Document]| documents.iter().map(|d| d.log_likelihood).collect::<Vec<_>>();
        let rolled = by(Windows::Rolling);
        same("rolling", &sums(&rolled), "/documents/log_likelihoods");
        let found = Perplexities::of(&rolled).unwrap();
        for (ours, name) in [
            (found.word_perplexity, "word_perplexity"),
            (found.byte_perplexity, "byte_perplexity"),
            (found.bits_per_byte, "bits_per_byte"),
        ] {
            let theirs = self.at(&format!("/documents/results/{name}"));
            assert!((ours / theirs - 1.0).abs() < CLOSE, "{} {name}: {ours} {theirs}", self.name);
        }
        let stride = self.at("/strided/stride") as usize;
        same("strided", &sums(&by(Windows::Strided(stride))), "/strided/log_likelihoods");

        let dir = tempfile::tempdir().unwrap();
        let header = TokensHeader {
            split: "test".into(),
            vocab_size: self.model.config().vocab_size as u32,
            tokenizer: self.tokenizer.digest().clone(),
            special: self.tokenizer.special(),
            sources: Vec::new(),
        };
        write(dir.path(), &header, texts.iter().map(|t| self.tokenizer.encode(t, Special::None))).unwrap();
        let tokens = std::sync::Arc::new(Tokens::open(dir.path()).unwrap());
        let context = self.model.config().max_position_embeddings as usize;
        let samples = Samples::new(tokens, context, Packing::Stream).unwrap();
        let stream = perplexity(&self.model, &samples, None, GRAIN).unwrap();
        let mut sums = vec![0.0; texts.len()];
        for document in &stream.documents {
            sums[document.document] = -document.nll;
        }
        same("stream", &sums, "/stream/log_likelihoods");
    }

    fn all(&self) {
        let ties: usize = ["hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande", "own"]
            .iter()
            .map(|task| self.choices(task))
            .sum();
        assert!(ties >= 4, "equal choices tie: {ties}");
        self.benchmarks();
        self.documents();
    }
}

#[test]
fn choices_and_perplexities_are_those_of_lm_eval_and_transformers() {
    for case in cases(&fixtures()) {
        case.all();
    }
}

#[test]
fn other_models_and_items_live() {
    let Ok(python) = std::env::var("SEEDBED_PEERS") else {
        eprintln!("skipped: SEEDBED_PEERS names no python with lm-eval");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/references/lm_eval_fixture.py");
    for seed in ["1", "2"] {
        let dir = tempfile::tempdir().unwrap();
        let output = std::process::Command::new(&python).arg(&script).arg(dir.path()).arg(seed).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for case in cases(dir.path()) {
            case.all();
        }
    }
}

#[test]
fn what_is_compared_can_be_told_apart() {
    // The oracle's own rules, by hand.
    assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
    let [neox, llama] = cases(&fixtures());
    // A tokenizer without and one with a token that begins texts: both conventions are in the fixture.
    assert_eq!(neox.tokenizer.encode("a", Special::Default).unwrap().len(), 1);
    assert_eq!(llama.tokenizer.encode("a", Special::Default).unwrap()[0], llama.tokenizer.special().bos.unwrap());
    // Where nothing stands between context and choice, the tokens of the pair are not those of its parts.
    let found = choice::find(&neox.items, "own", "validation").unwrap();
    let read = choice::read(&found.files, &found.layout, Convention::LmEval, None).unwrap();
    let together = choice::pairs(&read.items, &neox.tokenizer, Convention::LmEval).unwrap();
    let apart = choice::pairs(&read.items, &neox.tokenizer, Convention::Seed).unwrap();
    let other = together.iter().zip(&apart).filter(|(a, b)| a.continuation != b.continuation).count();
    assert!(other >= 3, "{other} merges over the border");
    let texts: Vec<String> = neox.texts();
    assert!(texts.iter().any(|t| t.is_empty()) && texts.iter().any(|t| t.len() > 1000));
}
