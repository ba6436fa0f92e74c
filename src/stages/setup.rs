//! Stage kind `setup`: checks, model, tokenizer and tokenised data, before anything is trained.
//!
//! The model is a directory in the Hugging Face layout, or one that is made here: random weights from
//! `init_seed`, then `pretrain_steps` of training in place of a download. Writes `model/` (our format, with the
//! tokenizer), `data/{train,val,test}` (the test split as texts, too) and `setup_complete.json`; of a generated world also its
//! tasks (`tasks/`) and instructions (`instructions/`). Every seed of a study shares this one cell.

use serde_json::Value;

use super::{Field, FieldType, Preset, Role, Spec};

const fn count(name: &'static str, min: i64, max: i64, preset: &'static str, help: &'static str) -> Field {
    Field { name, ty: FieldType::Integer { min, max }, preset: Preset::Is(preset), role: Role::Semantic, help }
}

const fn number(name: &'static str, min: f64, max: f64, preset: &'static str, help: &'static str) -> Field {
    Field { name, ty: FieldType::Number { min, max }, preset: Preset::Is(preset), role: Role::Semantic, help }
}

const fn choice(name: &'static str, words: &'static [&'static str], preset: &'static str, help: &'static str) -> Field {
    Field { name, ty: FieldType::OneOf(words), preset: Preset::Is(preset), role: Role::Semantic, help }
}

const fn path(name: &'static str, help: &'static str) -> Field {
    Field { name, ty: FieldType::Path, preset: Preset::Absent, role: Role::Semantic, help }
}

const fn text(name: &'static str, preset: &'static str, help: &'static str) -> Field {
    Field { name, ty: FieldType::Text, preset: Preset::Is(preset), role: Role::Semantic, help }
}

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "setup",
    version: 3,
    binary: "seedbed-setup",
    resumable: true,
    parallel: false,
    partial_inputs: false,
    needs: &[],
    outputs: &["model", "data"],
    export: Some("setup_complete.json"),
    help: "checks, model, tokenizer and tokenised data",
    fields: &[
        text("model_name", r#""generated-neox""#, "what results call the model"),
        text("model_revision", r#""main""#, "revision of the model, for the record"),
        choice("model_source", &["random", "directory"], r#""random""#, "made here, or read from model_dir"),
        path("model_dir", "directory with config.json, safetensors and tokenizer.json"),
        count("init_seed", 0, u32::MAX as i64, "42", "seed of random weights and of pretraining"),
        choice("model_family", FAMILIES, r#""gpt_neox""#, "what a random model is built like"),
        count("hidden_size", 1, 1 << 20, "64", "width of a random model"),
        count("num_hidden_layers", 1, 4096, "3", "blocks of a random model"),
        count("num_attention_heads", 1, 4096, "4", "attention heads of a random model"),
        count("intermediate_size", 1, 1 << 22, "256", "width of its feed-forward layers"),
        count("max_position_embeddings", 2, 1 << 20, "64", "context of a random model, tokens"),
        number("rotary_pct", 0.0, 1.0, "0.25", "part of each head that is rotated by position; of gpt_neox only"),
        choice("hidden_act", ACTIVATIONS, r#""gelu""#, "activation of a random model; silu in those like llama"),
        choice(
            "tokenizer",
            &["bpe", "words"],
            r#""bpe""#,
            "of a random model: byte pairs, or whole words for a small world",
        ),
        count(
            "vocab_size",
            258,
            1 << 20,
            "512",
            "ids of the tokenizer that is trained for a random model; of words at most",
        ),
        count("pretrain_steps", 0, 1 << 40, "0", "steps of training a random model, in place of a download"),
        count("pretrain_global_batch", 1, 1 << 24, "24", "samples of one step of pretraining"),
        count("pretrain_grain_samples", 1, 1 << 16, "24", "samples of one forward and backward of pretraining"),
        number("pretrain_lr", 0.0, 10.0, "3e-3", "highest learning rate of pretraining"),
        number("pretrain_warmup_ratio", 0.0, 1.0, "0.05", "part of the steps of pretraining that warm up"),
        number("pretrain_weight_decay", 0.0, 10.0, "0.01", "decoupled weight decay of pretraining"),
        choice(
            "text_source",
            TEXT_SOURCES,
            r#""generated""#,
            "where text comes from; world: with tasks and instructions",
        ),
        path("corpus_dir", "directory of plain text, read recursively"),
        path("corpus_file", "file of JSON lines"),
        text("jsonl_field", r#""text""#, "key of the text, or of the response, in a JSON line"),
        Field {
            name: "jsonl_prompt_field",
            ty: FieldType::Text,
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "key of the prompt in a JSON line; absent: lines are plain text",
        },
        count("corpus_seed", 0, u32::MAX as i64, "42", "seed of generated text and of the splits"),
        count("generated_documents", 3, 1 << 30, "4000", "documents of generated text"),
        count("world_instructions", 10, 1 << 20, "3000", "instructions of a world, at most; a tenth is for validation"),
        count("max_bytes", 1, 1 << 45, "1073741824", "bytes of text that are read, at most"),
        Field {
            name: "training_samples",
            ty: FieldType::Integer { min: 3, max: 1 << 40 },
            preset: Preset::Absent,
            role: Role::Semantic,
            help: "documents that are read, at most; absent: all",
        },
        count("max_document_bytes", 64, 1 << 30, "16384", "longer texts are cut into documents"),
        number("val_fraction", 0.0, 0.5, "0.1", "part of the documents for validation"),
        number("test_fraction", 0.0, 0.5, "0.1", "part of the documents for the test"),
    ],
    check,
};

const FAMILIES: &[&str] = &["gpt_neox", "llama", "mistral", "qwen2"];
const ACTIVATIONS: &[&str] = &["gelu", "gelu_new", "relu", "silu", "softplus"];
const TEXT_SOURCES: &[&str] = &["generated", "world", "directory", "jsonl"];

fn check(params: &Value) -> Vec<String> {
    let number = |name: &str| params.get(name).and_then(Value::as_u64).unwrap_or(0);
    let word = |name: &str| params.get(name).and_then(Value::as_str).unwrap_or("");
    let mut problems = Vec::new();
    for (source, value, path) in [
        ("model_source", "directory", "model_dir"),
        ("text_source", "directory", "corpus_dir"),
        ("text_source", "jsonl", "corpus_file"),
    ] {
        let (chosen, given) = (word(source) == value, params.get(path).is_some());
        if chosen && !given {
            problems.push(format!("`{source}` = \"{value}\" needs `{path}`"));
        } else if given && !chosen {
            problems.push(format!("`{path}` is given, but `{source}` is \"{}\": set it to \"{value}\"", word(source)));
        }
    }
    if params.get("jsonl_prompt_field").is_some() && word("text_source") != "jsonl" {
        problems.push("`jsonl_prompt_field` is for `text_source` = \"jsonl\": leave it out".to_owned());
    }
    if word("model_source") == "directory" && number("pretrain_steps") > 0 {
        problems.push(
            "`pretrain_steps` trains a random model only: set it to 0 or `model_source` to \"random\"".to_owned(),
        );
    }
    if word("model_source") == "directory" && word("tokenizer") == "words" {
        problems.push(
            "`tokenizer` = \"words\" is for a random model: one that is read has its own, leave it out".to_owned(),
        );
    }
    let (batch, grain) = (number("pretrain_global_batch"), number("pretrain_grain_samples"));
    if grain > 0 && batch % grain != 0 {
        problems.push(format!("`pretrain_grain_samples` = {grain} does not divide `pretrain_global_batch` = {batch}"));
    }
    problems
}

#[cfg(feature = "compute")]
pub use task::run;

#[cfg(feature = "compute")]
mod task {
    use std::io::Write;
    use std::path::Path;
    use std::sync::Arc;

    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::super::subjects::numerics;
    use super::super::{Context, StageError};
    use crate::compute::comm::{Comm, Wire};
    use crate::compute::data::generated::world::{FRAME_WORDS, World};
    use crate::compute::data::text::{Fields, Limits};
    use crate::compute::data::tokens::{TokensHeader, write, write_supervised};
    use crate::compute::data::{
        Corpus, Course, Document, Item, LastBatch, Packing, Samples, Special, Split, TextTokenizer, Tokens, TokensInfo,
        TrainingGrains, ValidationGrains, generated,
    };
    use crate::compute::evaluate::{Grain, perplexity};
    use crate::compute::model::{Activation, Family, Model, ModelConfig, Sizes, set_threads};
    use crate::compute::train::trace::Trace;
    use crate::compute::train::{
        AdamW, Choice, Decay, Exact, Keep, Optimizer, Outcome, Overlap, Plan, Schedule, Settings, Shape, Strict,
        Surroundings, Trainee, Warmup, train,
    };
    use crate::compute::{ComputeError, LIBTORCH_VERSION};
    use crate::record::{RunRecord, files, progress};

    /// Rows on which pretraining is judged: the evaluation stage judges on all of the test split.
    const VALIDATION_ROWS: u64 = 200;

    #[derive(Debug, Deserialize)]
    struct Params {
        model_name: String,
        model_revision: String,
        model_source: String,
        init_seed: u32,
        model_family: String,
        hidden_size: i64,
        num_hidden_layers: i64,
        num_attention_heads: i64,
        intermediate_size: i64,
        max_position_embeddings: i64,
        rotary_pct: f64,
        hidden_act: String,
        tokenizer: String,
        vocab_size: usize,
        pretrain_steps: u64,
        pretrain_global_batch: u64,
        pretrain_grain_samples: u64,
        pretrain_lr: f64,
        pretrain_warmup_ratio: f64,
        pretrain_weight_decay: f64,
        text_source: String,
        jsonl_field: String,
        jsonl_prompt_field: Option<String>,
        corpus_seed: u32,
        generated_documents: u64,
        world_instructions: usize,
        max_bytes: u64,
        training_samples: Option<u64>,
        max_document_bytes: usize,
        val_fraction: f64,
        test_fraction: f64,
    }

    /// Makes model, tokenizer and data.
    ///
    /// # Errors
    /// An input is missing or does not fit the others, or the disk is full.
    pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
        let params: Params = context.params()?;
        set_threads(1);
        let corpus = read_corpus(context, &params)?;
        let parts = corpus.split(params.corpus_seed, params.val_fraction, params.test_fraction)?;
        eprintln!("{} documents, {} bytes of text", corpus.documents.len(), corpus.bytes());

        let model_dir = context.out_dir.join("model");
        let (model, tokenizer) = if params.model_source == "directory" {
            let from = input(context, "model_dir")?;
            let model = Model::load(from)?;
            let tokenizer = TextTokenizer::load(from)?;
            model.save(&model_dir, Some(from))?;
            (model, tokenizer)
        } else {
            let training = parts[0].iter().map(|&i| corpus.documents[i].text.as_str());
            files::make_dirs(&model_dir)?;
            let tokenizer = match params.tokenizer.as_str() {
                "words" => {
                    let frames = [FRAME_WORDS, "go on"];
                    TextTokenizer::train_words(&model_dir, params.vocab_size, training.chain(frames))?
                }
                _ => TextTokenizer::train(&model_dir, params.vocab_size, training)?,
            };
            let model = Model::random(&config(&params, &tokenizer)?, params.init_seed)?;
            (model, tokenizer)
        };
        let vocab_size = model.config().vocab_size;
        tokenizer.check_model(vocab_size)?;

        let data = context.out_dir.join("data");
        let mut splits = serde_json::Map::new();
        for (split, documents) in Split::ALL.into_iter().zip(&parts) {
            let info = tokenise(&data.join(split.name()), split, &corpus, documents, &tokenizer, vocab_size)?;
            eprintln!("{}: {} tokens in {} documents", info.split, info.tokens, info.documents);
            splits.insert(
                info.split.clone(),
                json!({"tokens": info.tokens, "documents": info.documents, "digest": info.tokens_digest}),
            );
        }
        write_texts(&data.join(Split::Test.name()).join("documents.jsonl"), &corpus, &parts[2])?;
        let (model, pretraining) = match params.pretrain_steps {
            0 => (model, Value::Null),
            _ => pretrain(context, &params, model, &data)?,
        };
        if params.model_source == "random" {
            model.save(&model_dir, None)?;
        }
        let world = if params.text_source == "world" { write_world(context, &params)? } else { Value::Null };
        let mut record = record(context, &params, &corpus, &model, &tokenizer);
        record.metrics["data"]["splits"] = Value::Object(splits);
        record.metrics["pretraining"] = pretraining;
        if !world.is_null() {
            record.metrics["world"] = world;
        }
        record.series = progress::series(&progress::read(&context.run_dir)?);
        Ok(Some(record))
    }

    /// Writes the tasks of a world in the layout of the public ones, and its instructions; how many there are.
    fn write_world(context: &Context, params: &Params) -> Result<Value, StageError> {
        let world = World::new(params.corpus_seed);
        let lines = |items: &[Value]| items.iter().map(|item| format!("{item}\n")).collect::<String>();
        let mut counts = serde_json::Map::new();
        for task in world.tasks() {
            let dir = context.out_dir.join("tasks");
            files::write_atomic(&dir.join(task.name).join("validation.jsonl"), lines(&task.items).as_bytes())?;
            let layout = format!("layout = \"{}\"\n", task.layout);
            files::write_atomic(&dir.join(format!("{}.toml", task.name)), layout.as_bytes())?;
            counts.insert(task.name.to_owned(), json!(task.items.len()));
        }
        let instructions = world.instructions(params.world_instructions);
        let (train, eval) = instructions.split_at(instructions.len() - instructions.len() / 10);
        for (name, items) in [("train", train), ("eval", eval)] {
            let path = context.out_dir.join("instructions").join(format!("{name}.jsonl"));
            files::write_atomic(&path, lines(items).as_bytes())?;
        }
        Ok(json!({"tasks": counts, "instructions": {"train": train.len(), "eval": eval.len()}}))
    }

    /// Trains the random model on the training split, as any training stage does, on one rank.
    fn pretrain(context: &Context, params: &Params, model: Model, data: &Path) -> Result<(Model, Value), StageError> {
        let length = usize::try_from(model.config().max_position_embeddings).unwrap_or(usize::MAX);
        let open = |split: Split, packing: Packing| -> Result<Samples, StageError> {
            Ok(Samples::new(Arc::new(Tokens::open(&data.join(split.name()))?), length, packing)?)
        };
        let (train_set, validation) =
            (open(Split::Train, Packing::Stream)?, open(Split::Validation, Packing::Document)?);
        let course = Course {
            seed: params.init_seed,
            global_batch: params.pretrain_global_batch,
            grain_samples: params.pretrain_grain_samples,
            last_batch: LastBatch::Drop,
        };
        let before = perplexity(&model, &validation, Some(VALIDATION_ROWS), Grain::new(8, 8)?)?;
        let settings = Settings {
            seed: params.init_seed,
            plan: Plan::new(params.pretrain_global_batch, params.pretrain_grain_samples, None)
                .map_err(StageError::Usage)?,
            schedule: Schedule {
                shape: Shape::Linear,
                lr: params.pretrain_lr,
                min_lr: 0.0,
                warmup: Warmup::Ratio(params.pretrain_warmup_ratio),
                steps: params.pretrain_steps,
            },
            optimizer: Optimizer::AdamW(AdamW {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: params.pretrain_weight_decay,
                decay_constrained: Decay::Excluded,
                lr_constrained_multiplier: 1.0,
            }),
            max_grad_norm: 1.0,
            val_interval_steps: params.pretrain_steps,
            prefetch: 4,
            keep: Keep::Best,
            checkpoint_interval_steps: 500,
            log_interval_steps: 50,
            keep_last: 1,
            keep_every_steps: 0,
            patience: std::time::Duration::from_secs(600),
            stop_after_skips: 10,
            criteria: Default::default(),
            threads_per_rank: 1,
            strict: Strict::GoOn,
            overlap: Overlap::Late,
            exact: Exact::Required,
            wire: Wire::Fp32,
            trace: Trace::default(),
            peak_flops: None,
            fingerprint: context.cell.fingerprint.clone(),
            attempt: context.attempt,
        };
        let rows = VALIDATION_ROWS.min(validation.len());
        let validation =
            ValidationGrains::new(Arc::new(validation), params.pretrain_grain_samples, Some(VALIDATION_ROWS));
        let around = Surroundings {
            train: Arc::new(TrainingGrains::new(Arc::new(train_set), course)?),
            validation: &validation,
            run_dir: &context.run_dir,
            checkpoint_dir: &context.checkpoint_dir,
            stop_requested: &|| context.stop_requested(),
            superseded: context.superseded(),
        };
        let mut model = model.padded_for(settings.plan.padding(1))?;
        match train(&Comm::Solo, Trainee::of_model(&model, &Choice::default(), tch::Device::Cpu)?, &settings, &around)?
        {
            Outcome::Interrupted(step) => Err(StageError::Resume(step)),
            Outcome::Finished(finished) => {
                let after = finished.state.validations.last();
                let summary = json!({
                    "steps": finished.state.step,
                    "tokens": finished.state.tokens,
                    "val_perplexity_before": before.perplexity,
                    "val_perplexity_after": after.map(|v| v.perplexity),
                    "val_rows": rows,
                });
                model.put_flats(finished.last)?;
                Ok((model, summary))
            }
        }
    }

    fn record(
        context: &Context,
        params: &Params,
        corpus: &Corpus,
        model: &Model,
        tokenizer: &TextTokenizer,
    ) -> RunRecord {
        let mut record = RunRecord::new(&context.cell);
        let (all, ffn) = (model.num_parameters(), model.ffn_parameters());
        record.metrics = json!({
            "model_name": params.model_name,
            "model_revision": params.model_revision,
            "seed": context.cell.key.seed,
            "init_seed": params.init_seed,
            "num_parameters": all,
            "num_trainable_parameters": all,
            "ffn_parameters": ffn,
            "ffn_percentage": 100.0 * ffn as f64 / all as f64,
            "vocab_size": model.config().vocab_size,
            "max_seq_length": model.config().max_position_embeddings,
            "hidden_act": model.config().hidden_act.word(),
            "param_digest": model.param_digest(),
            "tokenizer": {
                "digest": tokenizer.digest(),
                "ids": tokenizer.vocab_size(),
                "eos": tokenizer.special().eos,
                "pad": tokenizer.special().pad,
            },
            "data": {
                "source": params.text_source,
                "documents": corpus.documents.len(),
                "bytes": corpus.bytes(),
                "files": corpus.sources.len(),
                "skipped_compressed": corpus.skipped_compressed,
                "refused": corpus.refused,
                "repaired_utf8": corpus.repaired,
                "duplicates": corpus.duplicates,
                "cut_at_limit": corpus.cut,
            },
        });
        record.environment = json!({
            "device": "cpu",
            "cuda_available": tch::Cuda::is_available(),
            "pytorch_version": LIBTORCH_VERSION,
            // No Python takes part.
            "python_version": null,
            "platform": format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            "duration_s": context.elapsed_s(),
        });
        record.param_digest = Some(model.param_digest());
        record.numerics = numerics(1, 1);
        record
    }

    fn input<'a>(context: &'a Context, name: &str) -> Result<&'a Path, StageError> {
        context.input(name).ok_or_else(|| StageError::Usage(format!("`{name}` is not given: set it in the study")))
    }

    fn read_corpus(context: &Context, params: &Params) -> Result<Corpus, StageError> {
        let limits = Limits {
            max_bytes: params.max_bytes,
            max_documents: params.training_samples.unwrap_or(u64::MAX),
            max_document_bytes: params.max_document_bytes,
        };
        Ok(match params.text_source.as_str() {
            "directory" => Corpus::from_directory(input(context, "corpus_dir")?, limits)?,
            "jsonl" => {
                let fields = Fields { text: &params.jsonl_field, prompt: params.jsonl_prompt_field.as_deref() };
                Corpus::from_jsonl(input(context, "corpus_file")?, fields, limits)?
            }
            "world" => {
                let world = World::new(params.corpus_seed);
                Corpus::from_documents("world", world.documents(params.generated_documents), limits)?
            }
            _ => {
                let documents = generated::documents(params.corpus_seed, params.generated_documents);
                let mut corpus = Corpus::from_documents("generated", documents, limits)?;
                // Documents of the size of the generated ones, so that each split gets some.
                let short = Limits { max_document_bytes: params.max_document_bytes.min(1200), ..limits };
                corpus.add_text("handbook", generated::HANDBOOK, short);
                corpus
            }
        })
    }

    fn config(params: &Params, tokenizer: &TextTokenizer) -> Result<ModelConfig, StageError> {
        let special = tokenizer.special();
        let sizes = Sizes {
            hidden_size: params.hidden_size,
            num_hidden_layers: params.num_hidden_layers,
            num_attention_heads: params.num_attention_heads,
            intermediate_size: params.intermediate_size,
            // Of words there are as many as the text has.
            vocab_size: if params.tokenizer == "words" { tokenizer.vocab_size() } else { params.vocab_size } as i64,
            max_position_embeddings: params.max_position_embeddings,
        };
        let family = Family::parse(&params.model_family)
            .ok_or_else(|| StageError::Usage(format!("`model_family` = {:?} is not known", params.model_family)))?;
        let mut config = ModelConfig::new(family, sizes);
        if family == Family::GptNeox {
            config.rotary_dims = ModelConfig::rotary_part(config.head_dim, params.rotary_pct);
        }
        config.hidden_act = Activation::parse(&params.hidden_act)
            .ok_or_else(|| StageError::Usage(format!("`hidden_act` = {:?} is not known", params.hidden_act)))?;
        config.bos_token_id = special.bos.map(i64::from);
        config.eos_token_id = Some(i64::from(special.eos));
        config.pad_token_id = special.pad.map(i64::from);
        config.check().map_err(|e| StageError::Usage(format!("the model of this stage {e}")))?;
        Ok(config)
    }

    /// Documents as JSON lines, in the order of the tokens: words and bytes are counted on texts, and other programs read them.
    fn write_texts(path: &Path, corpus: &Corpus, documents: &[usize]) -> Result<(), ComputeError> {
        files::write_atomic_with(path, |file| {
            let mut out = std::io::BufWriter::new(file);
            for &i in documents {
                serde_json::to_writer(&mut out, &json!({"text": corpus.documents[i].text}))?;
                out.write_all(b"\n")?;
            }
            out.flush()
        })?;
        Ok(())
    }

    fn tokenise(
        dir: &Path,
        split: Split,
        corpus: &Corpus,
        documents: &[usize],
        tokenizer: &TextTokenizer,
        vocab_size: i64,
    ) -> Result<TokensInfo, ComputeError> {
        let header = TokensHeader {
            split: split.name().to_owned(),
            vocab_size: u32::try_from(vocab_size)
                .map_err(|_| ComputeError::Config(format!("a vocabulary of {vocab_size} is too large")))?,
            tokenizer: tokenizer.digest().clone(),
            special: tokenizer.special(),
            sources: corpus.sources.clone(),
        };
        let encode = |text: &str| tokenizer.encode(text, Special::None);
        let mut documents = documents.iter().map(|&i| &corpus.documents[i]).peekable();
        if documents.peek().is_none_or(|d| d.prompt.is_none()) {
            return write(dir, &header, documents.map(|d: &Document| encode(&d.text)));
        }
        // Prompt and response apart: a token that spans both would show the answer.
        let item = |document: &Document| {
            let (prompt, response) = document.text.split_at(document.prompt.unwrap_or(0));
            let mut ids = encode(prompt)?;
            let prompt = ids.len();
            ids.extend(encode(response)?);
            Ok(Item { ids, prompt })
        };
        write_supervised(dir, &header, documents.map(item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sources_and_paths_go_together() {
        assert!(check(&json!({"model_source": "random", "text_source": "generated"})).is_empty());
        assert_eq!(check(&json!({"model_source": "directory", "text_source": "generated"})).len(), 1);
        let stray = json!({"model_source": "random", "text_source": "generated", "corpus_dir": "x"});
        assert!(check(&stray)[0].contains("set it to \"directory\""));
        let words = json!({"model_source": "directory", "model_dir": "x", "tokenizer": "words"});
        assert!(check(&words)[0].contains("`tokenizer` = \"words\" is for a random model"));
        let prompts = |source: &str| json!({"text_source": source, "corpus_file": "x", "jsonl_prompt_field": "q"});
        assert!(check(&prompts("jsonl")).is_empty());
        assert!(check(&prompts("generated")).iter().any(|p| p.contains("jsonl_prompt_field")));
    }
}
