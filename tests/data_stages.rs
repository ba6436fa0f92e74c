//! The stages that need no training run: setup, evaluate, uat and hotflip on a small model, as a job runs
//! them. Numbers are checked against each other and against what the files say, not against stored results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedbed::compute::data::tokens::{TokensHeader, write};
use seedbed::compute::data::{Packing, Samples, Special, Split, TextTokenizer, Tokens};
use seedbed::compute::evaluate::{Grain, perplexity};
use seedbed::compute::model::{Model, Variant};
use seedbed::record::{
    Cell, CellKey, Digest, ExternalInput, FingerprintSource, Name, Need, Resources, RunRecord, exit,
};
use seedbed::stages::{Context, Preset, Spec, StageError, context, evaluate, hotflip, setup, uat};
use serde_json::{Map, Value, json};

/// Every parameter of `spec`, with `over` in place of presets.
pub(crate) fn resolved(spec: &Spec, over: &Value) -> Value {
    let mut params = Map::new();
    for field in spec.fields {
        if let Preset::Is(text) = field.preset {
            params.insert(field.name.to_owned(), serde_json::from_str(text).unwrap());
        }
    }
    for (key, value) in over.as_object().unwrap() {
        assert!(spec.field(key).is_some(), "{key} is no parameter of {}", spec.kind);
        params.insert(key.clone(), value.clone());
    }
    Value::Object(params)
}

pub(crate) struct Study {
    pub(crate) dir: tempfile::TempDir,
}

impl Study {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn key(stage: &str, seed: Option<u32>) -> CellKey {
        let name = |s| Name::new(s).unwrap();
        CellKey { study: name("s"), profile: name("quick"), stage: name(stage), arm: None, seed }
    }

    pub(crate) fn context(
        &self,
        spec: &Spec,
        stage: &str,
        seed: Option<u32>,
        params: &Value,
        inputs: &[(&str, &Path)],
    ) -> Context {
        let source = FingerprintSource {
            version: 1,
            kind: spec.kind.to_owned(),
            kind_version: spec.version,
            params: params.clone(),
            seed,
            needs: BTreeMap::new(),
            inputs: BTreeMap::new(),
        };
        let need = |stage: &str, kind: &str, seed| Need {
            key: Self::key(stage, seed),
            kind: kind.to_owned(),
            number: 0,
            labels: BTreeMap::new(),
            dir: Self::key(stage, seed).local_dir(),
            fingerprint: Digest::of_bytes(b"n"),
        };
        let needs = if spec.kind == "setup" {
            Vec::new()
        } else {
            vec![
                need("setup", "setup", None),
                need("train_baseline", "train", seed),
                need("train_monotonic", "train", seed),
            ]
        };
        let cell = Cell {
            version: 1,
            kind: spec.kind.to_owned(),
            number: 0,
            fingerprint: source.fingerprint(),
            base: self.dir.path().to_path_buf(),
            scratch: None,
            command: Vec::new(),
            outputs: Vec::new(),
            resumable: spec.resumable,
            labels: BTreeMap::new(),
            key: Self::key(stage, seed),
            resources: Resources {
                nodes: 1,
                tasks_per_node: 1,
                cpus_per_task: 1,
                gpus_per_node: 0,
                mem_bytes: None,
                time_s: 600,
            },
            params: params.clone(),
            needs,
            inputs: inputs
                .iter()
                .map(|(name, path)| ExternalInput {
                    name: (*name).to_owned(),
                    path: path.to_path_buf(),
                    digest: Digest::of_path(path).unwrap_or_else(|_| Digest::of_bytes(b"none")),
                })
                .collect(),
            source,
        };
        let path = self.dir.path().join(format!("{stage}.toml"));
        std::fs::write(&path, cell.to_toml().unwrap()).unwrap();
        Context::open(&path, 1).unwrap()
    }

    pub(crate) fn run(&self, spec: &Spec, run: context::Run, stage: &str, params: &Value) -> (RunRecord, PathBuf) {
        let seed = (spec.kind != "setup").then_some(42);
        let context = self.context(spec, stage, seed, &resolved(spec, params), &[]);
        let record = run(&context).unwrap().unwrap();
        context::write_record(spec, &context, &record).unwrap();
        (record, context.out_dir)
    }

    /// Runs a small setup and publishes it.
    pub(crate) fn prepared() -> (Self, RunRecord) {
        let study = Self::new();
        let (record, out) = study.run(&setup::SPEC, setup::run, "setup", &small());
        study.publish(out);
        (study, record)
    }

    /// Publishes what setup wrote, with its model under both training stages (the second one constrained).
    fn publish(&self, out: PathBuf) {
        std::fs::rename(&out, self.dir.path().join("published")).unwrap();
        std::fs::remove_dir_all(self.dir.path().join("setup")).unwrap();
        std::fs::rename(self.dir.path().join("published"), self.dir.path().join("setup")).unwrap();
        let model = Model::load(&self.dir.path().join("setup/model")).unwrap();
        let best = |stage: &str| self.dir.path().join(stage).join("seed-42/best_model");
        model.save(&best("train_baseline"), None).unwrap();
        model.constrained(Variant::parse("mlp_both").unwrap()).unwrap().save(&best("train_monotonic"), None).unwrap();
    }
}

/// A setup that takes a second.
fn small() -> Value {
    json!({"generated_documents": 120, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32,
           "num_hidden_layers": 2, "max_position_embeddings": 48, "rotary_pct": 0.5, "vocab_size": 300})
}

pub(crate) fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number at {path} in {value:#}"))
}

#[test]
fn setup_makes_disjoint_splits_that_belong_together() {
    let (study, record) = Study::prepared();
    let dir = study.dir.path().join("setup");
    let tree: Value = serde_json::from_slice(&std::fs::read(dir.join("setup_complete.json")).unwrap()).unwrap();
    for key in [
        "model_name",
        "model_revision",
        "num_parameters",
        "num_trainable_parameters",
        "ffn_parameters",
        "ffn_percentage",
        "vocab_size",
        "max_seq_length",
        "device",
        "cuda_available",
        "pytorch_version",
        "platform",
    ] {
        assert!(tree.get(key).is_some_and(|v| !v.is_null()), "{key}");
    }
    // Two embeddings 300 x 16; a block has 12 h^2-like matrices; counted by the model itself against its layout.
    let model = Model::load(&dir.join("model")).unwrap();
    assert_eq!(tree["num_parameters"], json!(model.num_parameters()));
    assert_eq!(tree["ffn_parameters"], json!(2 * (2 * 16 * 32 + 16 + 32)));
    assert_eq!(tree["param_digest"], json!(model.param_digest()));
    assert_eq!(record.param_digest, Some(model.param_digest()));

    let tokenizer = TextTokenizer::load(&dir.join("model")).unwrap();
    let mut texts = Vec::new();
    for split in Split::ALL {
        let tokens = Tokens::open(&dir.join("data").join(split.name())).unwrap();
        assert_eq!(&tokens.info().tokenizer, tokenizer.digest());
        for i in 0..tokens.documents() {
            texts.push(tokenizer.decode(&tokens.ids(tokens.document(i))).unwrap());
        }
    }
    let all = texts.len();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), all, "no document is in two splits");
    assert_eq!(json!(all), tree["data"]["documents"]);
}

#[test]
fn setup_is_the_same_every_time() {
    let digest = || Study::prepared().1.content_digest();
    assert_eq!(digest(), digest());
}

#[test]
fn pretraining_learns_from_a_corpus_that_is_neither_trivial_nor_noise() {
    let study = Study::new();
    let mut params = small();
    params.as_object_mut().unwrap().extend(
        json!({"generated_documents": 400, "hidden_size": 32, "pretrain_steps": 150}).as_object().unwrap().clone(),
    );
    let (record, out) = study.run(&setup::SPEC, setup::run, "setup", &params);
    let pretraining = &record.metrics["pretraining"];
    let [before, after] = ["/val_perplexity_before", "/val_perplexity_after"].map(|at| number(pretraining, at));
    let open = |split: Split| Tokens::open(&out.join("data").join(split.name())).unwrap();
    let unigram =
        seedbed::compute::evaluate::unigram_perplexity(&open(Split::Train), &open(Split::Validation)).unwrap();
    assert!(after < unigram && unigram < before, "{after} {unigram} {before}");
    assert!(after > 1.5, "{after}: the text repeats itself");
    assert_eq!(record.series["loss"].last().map(|p| p.step), Some(150));
}

#[test]
fn results_agree_with_their_items_and_no_batch_size_changes_them() {
    let (study, _) = Study::prepared();

    let evaluated = |batch: u32| study.run(&evaluate::SPEC, evaluate::run, "evaluate", &json!({"batch_size": batch}));
    let (one, out) = evaluated(1);
    let exported: Value = serde_json::from_slice(&std::fs::read(out.join("evaluation_results.json")).unwrap()).unwrap();
    for model in ["baseline_pythia", "monotonic_pythia"] {
        let at = |key: &str| number(&exported, &format!("/pile_test/{model}/{key}"));
        assert_eq!(at("perplexity"), at("loss").exp());
        let items = &one.items[&format!("pile_test_{model}")];
        let tokens = match items.column("tokens") {
            Some(seedbed::record::Column::Integers(v)) => v.iter().sum::<i64>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(at("total_tokens"), tokens as f64);
    }
    let test = Tokens::open(&study.dir.path().join("setup/data/test")).unwrap();
    assert_eq!(number(&exported, "/pile_test/baseline_pythia/total_tokens"), (test.len() - 1) as f64);
    // An untrained model is no better than guessing among 300 ids.
    assert!(number(&exported, "/pile_test/baseline_pythia/perplexity") > 250.0);
    for absent in ["lambada", "hellaswag", "winogrande", "truthfulqa"] {
        assert_eq!(exported[absent], Value::Null);
        assert!(exported["metadata"]["absent_benchmarks"][absent].is_string());
    }
    assert_eq!(exported["metadata"]["seed"], 42);
    assert_eq!(exported["metadata"]["absent_conventions"], Value::Null);
    assert_eq!(one.content_digest(), evaluated(64).0.content_digest());

    let uat_params = |search: &str, batch: u32| {
        json!({"search": search, "trigger_length": 3, "num_restarts": 2, "num_iterations": 2, "num_candidates": 50,
               "candidates_per_position": 5, "num_samples": 10, "grain_rows": 4, "batch_size": batch})
    };
    for search in ["random", "gradient", "gradient_by_sweep"] {
        let run = |batch| study.run(&uat::SPEC, uat::run, "uat", &uat_params(search, batch));
        let (record, out) = run(1);
        let m = &record.metrics;
        assert_eq!(m["attack_config"]["num_opt_samples"], 4);
        assert_eq!(m["attack_config"]["num_eval_samples"], 6);
        for model in ["baseline_pythia", "monotonic_pythia"] {
            let r = &m["results"][model];
            assert!(number(r, "/opt_final_loss") >= number(r, "/opt_first_loss"));
            let (clean, attacked) = (number(r, "/clean_loss"), number(r, "/attacked_loss"));
            assert_eq!(number(r, "/nll_increase"), attacked - clean);
            let scope = &r["scopes"]["untouched_targets"];
            assert!((number(scope, "/attacked_loss") - attacked).abs() < 1e-9, "texts have equal lengths");
            assert_eq!(r["trigger_ids"].as_array().unwrap().len(), 3);
            // The control looked at the model as often, and its best trigger is judged in the same way.
            let cost = |r: &Value| number(r, "/evaluations") + 2.0 * number(r, "/gradients");
            let passes: f64 = r["restarts"].as_array().unwrap().iter().map(cost).sum();
            assert_eq!((number(r, "/passes"), number(r, "/random_search/passes")), (passes, passes));
            assert_eq!(number(r, "/random_search/clean_loss"), clean);
            // Transfer: this trigger before the other model's texts, whose clean loss is that of its own attack.
            let other = if model == "baseline_pythia" { "monotonic_pythia" } else { "baseline_pythia" };
            let there = &r["transfer"][other];
            assert_eq!(there["clean_loss"], m["results"][other]["clean_loss"]);
            assert_ne!(there["attacked_loss"], r["attacked_loss"]);
            assert!(there["trigger_ids"].is_null());
        }
        let csv = std::fs::read_to_string(out.join("learned_triggers.csv")).unwrap();
        assert!(csv.starts_with("model,trigger,nll_increase_percent\nbaseline_pythia,"));
        assert_eq!(record.content_digest(), run(64).0.content_digest());
    }

    for mode in ["one_shot", "iterative"] {
        let run = |batch: u32| {
            let params = json!({"mode": mode, "num_flips": 3, "num_samples": 10, "grain_rows": 4, "batch_size": batch});
            study.run(&hotflip::SPEC, hotflip::run, "hotflip", &params).0
        };
        let record = run(1);
        let m = &record.metrics;
        for model in ["baseline_pythia", "monotonic_pythia"] {
            let r = &m["results"][model];
            assert_eq!(r["success_rate"], r["scopes"]["untouched_targets"]["success_rates"]["ppl_rel"]);
            assert_eq!(r["random_control"]["num_samples"], 10);
            assert_eq!(r["passes"], if mode == "one_shot" { 2 } else { 6 });
            assert_eq!(r["random_search"]["passes"], r["passes"]);
            let all = |of: &Value| number(of, "/scopes/all/attacked_loss");
            assert!(all(&r["random_search"]) >= all(&r["random_control"]), "the best of several draws");
            let other = if model == "baseline_pythia" { "monotonic_pythia" } else { "baseline_pythia" };
            let of_other = number(&m["results"][other], "/scopes/all/clean_loss");
            assert_eq!(number(r, &format!("/transfer/{other}/scopes/all/clean_loss")), of_other);
        }
        assert_eq!(m["statistical_tests"]["baseline_vs_monotonic"]["n"], 10);
        assert_eq!(record.content_digest(), run(64).content_digest());
    }
}

/// The directory that `scripts/references/neox_directory.py` wrote with transformers and tokenizers.
fn foreign() -> (PathBuf, Value) {
    let dir = crate::support::repository().join("tests/fixtures/neox/directory");
    let expected = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
    (dir, expected)
}

#[test]
fn a_foreign_tokenizer_and_model_give_the_ids_and_perplexity_of_their_own_libraries() {
    let (dir, expected) = foreign();
    let tokenizer = TextTokenizer::load(&dir).unwrap();
    let texts: Vec<&str> = expected["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let ids: Vec<Vec<u32>> = texts.iter().map(|t| tokenizer.encode(t, Special::None).unwrap()).collect();
    assert_eq!(json!(ids), expected["ids"]);
    for (text, ids) in texts.iter().zip(&ids) {
        assert_eq!(&tokenizer.decode(ids).unwrap(), text);
    }
    let model = Model::load(&dir).unwrap();
    assert_eq!(json!(model.num_parameters()), expected["num_parameters"]);

    let out = tempfile::tempdir().unwrap();
    let header = TokensHeader {
        split: "test".into(),
        vocab_size: model.config().vocab_size as u32,
        tokenizer: tokenizer.digest().clone(),
        special: tokenizer.special(),
        sources: Vec::new(),
    };
    write(out.path(), &header, ids.into_iter().map(Ok)).unwrap();
    let tokens = std::sync::Arc::new(Tokens::open(out.path()).unwrap());
    let length = expected["seq_len"].as_u64().unwrap() as usize;
    let samples = Samples::new(tokens, length, Packing::Stream).unwrap();
    let found = perplexity(&model, &samples, None, Grain::new(4, 8).unwrap()).unwrap();
    assert_eq!(json!(found.total_tokens), expected["tokens"]);
    let relative = found.perplexity / number(&expected, "/perplexity") - 1.0;
    assert!(relative.abs() <= 1e-5, "{} differs by {relative:e}", found.perplexity);
}

#[test]
fn text_it_has_never_seen_and_a_foreign_model_go_through() {
    // Every Debian has these; some are links to others, so that equal texts must be found.
    let licences = Path::new("/usr/share/common-licenses");
    assert!(licences.is_dir(), "this test reads the licence texts that Debian's base-files installs");
    let (dir, _) = foreign();
    let study = Study::new();
    let mut params = resolved(
        &setup::SPEC,
        &json!({"model_name": "foreign", "model_source": "directory", "text_source": "directory",
                "max_document_bytes": 2000}),
    );
    params["model_dir"] = json!(dir);
    params["corpus_dir"] = json!(licences);
    let inputs = [("model_dir", dir.as_path()), ("corpus_dir", licences)];
    let context = study.context(&setup::SPEC, "setup", None, &params, &inputs);
    let record = setup::run(&context).unwrap().unwrap();
    context::write_record(&setup::SPEC, &context, &record).unwrap();
    assert!(number(&record.metrics, "/data/documents") > 50.0);
    assert!(number(&record.metrics, "/data/duplicates") > 0.0);
    study.publish(context.out_dir);

    let (evaluated, _) = study.run(&evaluate::SPEC, evaluate::run, "evaluate", &json!({"quick_pile_test_size": 50}));
    let loss = number(&evaluated.metrics, "/pile_test/baseline_pythia/loss");
    assert!(loss > 4.0, "random weights cannot know licences: {loss}");
    let flips = json!({"num_flips": 2, "num_samples": 8});
    let (flipped, _) = study.run(&hotflip::SPEC, hotflip::run, "hotflip", &flips);
    assert_eq!(flipped.metrics["results"]["baseline_pythia"]["num_samples"], 8);
}

#[test]
fn bad_input_gets_one_clear_message_and_its_exit_code() {
    let study = Study::new();
    let fails = |over: Value, inputs: &[(&str, &Path)]| -> StageError {
        let mut params = small();
        params.as_object_mut().unwrap().extend(over.as_object().unwrap().clone());
        let mut params = resolved(&setup::SPEC, &params);
        for (name, path) in inputs {
            params[*name] = json!(path);
        }
        setup::run(&study.context(&setup::SPEC, "setup", None, &params, inputs)).unwrap_err()
    };
    let empty = tempfile::tempdir().unwrap();
    let error = fails(json!({"text_source": "directory"}), &[("corpus_dir", empty.path())]);
    assert_eq!(error.exit_code(), exit::MISSING_INPUT, "{error}");
    assert!(error.to_string().contains("corpus_dir"), "{error}");

    std::fs::write(empty.path().join("one.txt"), "short").unwrap();
    let error = fails(json!({"text_source": "directory"}), &[("corpus_dir", empty.path())]);
    assert_eq!(error.exit_code(), exit::USAGE, "{error}");
    assert!(error.to_string().contains("1 documents"), "{error}");

    let error = fails(json!({"model_source": "directory"}), &[("model_dir", empty.path())]);
    assert_eq!(error.exit_code(), exit::MISSING_INPUT, "{error}");
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model_is_refused() {
    let (study, _) = Study::prepared();
    // A model of 300 embeddings with a tokenizer of more ids.
    let model_dir = tempfile::tempdir().unwrap();
    let model = Model::load(&study.dir.path().join("setup/model")).unwrap();
    model.export_hf(model_dir.path(), None, 1 << 30).unwrap();
    let texts: Vec<String> = seedbed::compute::data::generated::documents(1, 50).map(|d| d.text).collect();
    TextTokenizer::train(model_dir.path(), 400, texts.iter().map(String::as_str)).unwrap();
    let mut params = resolved(&setup::SPEC, &json!({"model_source": "directory", "generated_documents": 50}));
    params["model_dir"] = json!(model_dir.path());
    let fresh = Study::new();
    let context = fresh.context(&setup::SPEC, "setup", None, &params, &[("model_dir", model_dir.path())]);
    let error = setup::run(&context).unwrap_err();
    assert_eq!(error.exit_code(), exit::USAGE);
    let text = error.to_string();
    assert!(text.contains("tokenizer.json") && text.contains("300 embeddings"), "{text}");
}
