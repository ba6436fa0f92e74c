//! What `scripts/bench/` asks of this program: data for a bench, and a training cell to run on it.
//!
//! `seedbed-bench COMMAND CONFIG DIR` reads the JSON configuration that the other side of a bench reads too
//! (docs/performance.md, "The protocol") and prints one JSON object. `data` writes a model with random weights,
//! generated tokens, and `batches.bin`: the rows of every step as the trainer will take them, i32 little-endian,
//! T + 1 ids each. `cell` writes the training cell that `seedbed-train` is measured on. A bench so measures the
//! program that users run, on the same weights and batches as the other side. `gemm CONFIG` times GEMMs at the step's
//! shapes. `checkpoint-save` and `checkpoint-load` time one in DIR ([`crate::compute::checkpoint::bench`]). `plain
//! CONFIG`, under `mpirun`, trains without the promise of bits ([`crate::compute::plain`]) and prints a line a step.
//! `generate CONFIG` generates texts ([`crate::compute::generate`]) and prints a line for each time it did so.
//! `score` scores choices ([`score`]). `trigger CONFIG` and `attack` belong to attacks ([`attack`]).

mod attack;
mod score;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Preset, Role, Spec, StageError, train};
use crate::compute::checkpoint;
use crate::compute::comm::Comm;
use crate::compute::data::tokens::{SpecialIds, TokensHeader, write};
use crate::compute::data::{Course, LastBatch, Packing, Samples, Tokens, TrainingGrains};
use crate::compute::generate::{Engine, Settings, generate};
use crate::compute::kernels::gemm::{Backend, Shape, gflops};
use crate::compute::model::native::NativeDecoder;
use crate::compute::model::{Mask, Model, ModelConfig};
use crate::compute::rng::{Purpose, Rng};
use crate::record::{Cell, CellKey, Digest, FingerprintSource, Name, Need, Resources, exit, files};

/// What both sides of a bench are told; keys that only the other side or the script reads are passed over.
#[derive(Debug, Deserialize)]
struct Config {
    /// `config.json` of the model.
    model_config: Value,
    seq_len: u64,
    rows_per_rank: u64,
    ranks: u64,
    threads_per_rank: u64,
    steps: u64,
    seed: u32,
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    /// Saves of `checkpoint-save`, of which the last is timed.
    #[serde(default)]
    saves: u64,
    /// Parameters of the stage that are this side's own choice: grain, lanes, GEMM.
    #[serde(default)]
    ours: Map<String, Value>,
}

impl Config {
    fn model(&self) -> Result<ModelConfig, StageError> {
        ModelConfig::from_json(&self.model_config).map_err(|reason| StageError::Usage(format!("the model {reason}")))
    }

    fn rows_per_step(&self) -> u64 {
        self.rows_per_rank * self.ranks
    }
}

/// The program `seedbed-bench`: exit 64 for wrong usage, else the stage's codes.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.as_slice() {
        [command, config] if command == "plain" => plain(Path::new(config)),
        [command, config] if command == "generate" => generation(Path::new(config)),
        [command] if command == "score" => score::run(|line| println!("{line}")),
        [command] if command == "attack" => attacks(),
        _ => answer(&words).map(|value| println!("{value}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            exit::report("seedbed-bench", &error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn answer(words: &[String]) -> Result<Value, StageError> {
    if let [command, config] = words {
        if command == "gemm" {
            return gemm(&files::read_json(Path::new(config))?);
        }
        if command == "trigger" {
            return attack::trigger(&files::read_json(Path::new(config))?);
        }
    }
    let [command, config, dir] = words else {
        return Err(StageError::Usage(
            "usage: seedbed-bench data|cell|checkpoint-save|checkpoint-load CONFIG DIR, gemm|plain|generate|trigger CONFIG, or score|attack < CONFIG"
                .to_owned(),
        ));
    };
    let config: Config = files::read_json(Path::new(config))?;
    let dir = std::path::absolute(dir).map_err(StageError::failed("finding the directory"))?;
    match command.as_str() {
        "data" => data(&config, &dir),
        "cell" => cell(&config, &dir),
        "checkpoint-save" => Ok(checkpoint::bench::save(&config.model()?, &dir, config.saves)?),
        "checkpoint-load" => Ok(checkpoint::bench::load(&config.model()?, &dir)?),
        other => Err(StageError::Usage(format!("`{other}` is no command: use data, cell or checkpoint-save"))),
    }
}

#[cfg(feature = "mpi")]
fn plain(config: &Path) -> Result<(), StageError> {
    let work: crate::compute::plain::Work = files::read_json(config)?;
    Ok(crate::compute::plain::train(&work, |line| println!("{line}"))?)
}

#[cfg(not(feature = "mpi"))]
fn plain(_config: &Path) -> Result<(), StageError> {
    Err(StageError::Usage("this program was built without MPI: build it with `cargo build --features mpi`".to_owned()))
}

/// What [`generation`] reads of a configuration.
#[derive(Debug, Deserialize)]
struct Generation {
    /// Directory of the model.
    model: PathBuf,
    prompts: Vec<Vec<u32>>,
    max_new_tokens: usize,
    threads_per_rank: usize,
    /// How often.
    steps: u64,
}

/// Continues all prompts together, by greedy decoding in fp32, and no id ends a text.
fn generation(config: &Path) -> Result<(), StageError> {
    let work: Generation = files::read_json(config)?;
    let begun = Instant::now();
    let model = Model::load(&work.model)?;
    let decoder = NativeDecoder::new(&model, Mask::Causal, work.threads_per_rank)?;
    let mut engine = Engine::Native(Box::new(decoder));
    let load_seconds = begun.elapsed().as_secs_f64();
    let settings = Settings {
        max_new_tokens: work.max_new_tokens,
        ends: Vec::new(),
        stops: Vec::new(),
        batch_rows: work.prompts.len(),
        grain_rows: work.prompts.len(),
    };
    let mut ids = Vec::new();
    for step in 1..=work.steps {
        let begun = Instant::now();
        // Nobody makes text of ids, on neither side.
        let texts = generate(&mut engine, &|_| Ok(String::new()), &Comm::Solo, &work.prompts, &settings)?;
        let seconds = begun.elapsed().as_secs_f64();
        println!("{}", json!({"step": step, "loss": 0.0, "seconds": seconds}));
        ids = texts.into_iter().map(|text| text.ids).collect();
    }
    let peak = files::read_text(Path::new("/proc/self/status"))?;
    let peak =
        peak.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    println!("{}", json!({"ids": ids, "load_seconds": load_seconds, "peak_rss_bytes": peak.map(|kb| 1024 * kb)}));
    Ok(())
}

/// Reads its configuration on stdin, as the other side does.
fn attacks() -> Result<(), StageError> {
    let config: Value =
        serde_json::from_reader(std::io::stdin()).map_err(StageError::failed("reading the configuration"))?;
    attack::run(&config, &mut |line| println!("{line}"))
}

/// Where the parts of a bench lie.
struct Place {
    base: PathBuf,
}

impl Place {
    fn of(dir: &Path) -> Self {
        Self { base: dir.join("results/bench/quick") }
    }

    fn setup(&self) -> PathBuf {
        self.base.join("setup")
    }

    fn split(&self, split: &str) -> PathBuf {
        self.setup().join("data").join(split)
    }
}

// --- GEMM --------------------------------------------------------------------------------------------------

/// Rounds of each product; the best counts.
const GEMM_ROUNDS: usize = 5;

/// GFLOP/s of each backend on one thread at the shapes of a step, all layers and the head weighed as they occur; and of the
/// faster of MKL and oneDNN, layer by layer.
fn gemm(config: &GemmConfig) -> Result<Value, StageError> {
    crate::compute::model::set_threads(1);
    let c = &config.model_config;
    let (h, f, layers) = (c.hidden_size, c.intermediate_size, c.num_hidden_layers);
    let linears = [(h, 3 * h, layers), (h, h, layers), (h, f, layers), (f, h, layers), (h, c.vocab_size, 1)];
    let mut seconds = [0f64; Backend::ALL.len()];
    let (mut best, mut flops) = (0f64, 0f64);
    for (inputs, outputs, times) in linears {
        let shape = Shape { tokens: config.grain_tokens, inputs, outputs };
        let rates = gflops(&Backend::ALL, &[shape], GEMM_ROUNDS)
            .map_err(|e| StageError::Failed { what: "measuring GEMMs".to_owned(), source: e.into() })?;
        let work = 6.0 * (config.grain_tokens * inputs * outputs * times) as f64 / 1e9;
        flops += work;
        let library = |backend: Backend| Backend::ALL.iter().position(|&b| b == backend).map_or(0.0, |i| rates[i]);
        best += work / library(Backend::Mkl).max(library(Backend::OneDnn));
        seconds.iter_mut().zip(&rates).for_each(|(total, rate)| *total += work / rate);
    }
    let named = Backend::ALL.iter().zip(seconds).map(|(b, s)| (b.name().to_owned(), json!(flops / s)));
    let mut answer: Map<String, Value> = named.collect();
    answer.insert("best".to_owned(), json!(flops / best));
    Ok(answer.into())
}

/// What [`gemm`] reads of a configuration.
#[derive(Debug, Deserialize)]
struct GemmConfig {
    model_config: Sizes,
    grain_tokens: usize,
}

#[derive(Debug, Deserialize)]
struct Sizes {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
}

// --- data --------------------------------------------------------------------------------------------------

fn data(config: &Config, dir: &Path) -> Result<Value, StageError> {
    let place = Place::of(dir);
    let shape = config.model()?;
    let model = Model::random(&shape, config.seed)?;
    let model_dir = place.setup().join("model");
    files::make_dirs(&place.setup())?;
    model.export_hf(&model_dir, None, usize::MAX)?;
    files::write_json(&place.setup().join("setup_complete.json"), &json!({"model_name": "bench"}))?;

    let vocab = u32::try_from(shape.vocab_size)
        .map_err(|_| StageError::Usage("`vocab_size` is beyond 32 bits: lower it".to_owned()))?;
    let rows = config.rows_per_step() * config.steps;
    for (split, documents, length) in [("train", rows.max(64), config.seq_len), ("val", 2, config.seq_len)] {
        let header = TokensHeader {
            split: split.to_owned(),
            vocab_size: vocab,
            tokenizer: Digest::of_bytes(b"bench"),
            special: SpecialIds { eos: 0, bos: None, pad: None },
            sources: Vec::new(),
        };
        files::make_dirs(&place.split(split))?;
        // Each document is one id longer than a sample with its end, so that there is one sample a document at least.
        let text = (0..=documents).map(|d| Ok(document(config.seed, split, d, length as usize, vocab)));
        write(&place.split(split), &header, text)?;
    }
    let batches = dir.join("batches.bin");
    write_batches(config, &place.split("train"), &batches)?;
    Ok(json!({"model": model_dir, "batches": batches, "parameters": model.num_parameters()}))
}

/// A language that can be learnt: an id follows from the one before, but for one in four.
fn document(seed: u32, split: &str, number: u64, length: usize, vocab: u32) -> Vec<u32> {
    let mut rng = Rng::new(seed, Purpose::Init, u32::from(split == "train"), number);
    let ids = u64::from(vocab.max(3) - 1);
    let mut id = rng.below(ids);
    (0..length)
        .map(|_| {
            id = if rng.below(4) == 0 { rng.below(ids) } else { (id * 5 + 3) % ids };
            // 0 ends a document; the others fit the vocabulary, which fits u32.
            1 + id as u32
        })
        .collect()
}

/// The rows in the order in which the trainer takes them.
fn write_batches(config: &Config, split: &Path, path: &Path) -> Result<(), StageError> {
    let samples = Samples::new(Arc::new(Tokens::open(split)?), config.seq_len as usize, Packing::Stream)?;
    let rows = config.rows_per_step();
    samples.check_batch(rows * config.steps)?;
    // Rows of a step lie in order whatever the grain, so one grain tells them all.
    let course = Course { seed: config.seed, global_batch: rows, grain_samples: rows, last_batch: LastBatch::Drop };
    let grains = TrainingGrains::new(Arc::new(samples), course)?;
    let t = config.seq_len as usize;
    let mut bytes = Vec::with_capacity(rows as usize * config.steps as usize * (t + 1) * 4);
    for step in 0..config.steps {
        let batch = grains.batch(step, 0);
        for (ids, targets) in batch.ids.chunks(t).zip(batch.targets.chunks(t)) {
            // In a stream the target of an input is the next input; the last target closes the row.
            bytes.extend(ids.iter().chain(targets.last()).flat_map(|id| id.to_le_bytes()));
        }
    }
    Ok(files::write_atomic(path, &bytes)?)
}

// --- the cell ----------------------------------------------------------------------------------------------

fn cell(config: &Config, dir: &Path) -> Result<Value, StageError> {
    let place = Place::of(dir);
    let spec = &train::SPEC;
    let params = params(config, spec)?;
    let problems = (spec.check)(&Value::Object(params.clone()));
    if !problems.is_empty() {
        return Err(StageError::Usage(problems.join("; ")));
    }
    let semantic: Map<String, Value> = params
        .iter()
        .filter(|(name, _)| spec.field(name).is_some_and(|f| f.role == Role::Semantic))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let source = FingerprintSource {
        version: 1,
        kind: spec.kind.to_owned(),
        kind_version: spec.version,
        params: semantic.into(),
        seed: Some(config.seed),
        needs: BTreeMap::new(),
        inputs: BTreeMap::new(),
    };
    let need = Need {
        key: key("setup", None)?,
        kind: "setup".to_owned(),
        number: 0,
        labels: BTreeMap::new(),
        dir: "setup".into(),
        fingerprint: Digest::of_bytes(b"setup"),
    };
    let cell = Cell {
        version: crate::record::cell::CELL_VERSION,
        kind: spec.kind.to_owned(),
        number: 2,
        fingerprint: source.fingerprint(),
        base: place.base,
        scratch: None,
        command: Vec::new(),
        outputs: Vec::new(),
        resumable: spec.resumable,
        labels: BTreeMap::new(),
        key: key("train", Some(config.seed))?,
        resources: Resources {
            nodes: 1,
            tasks_per_node: config.ranks as u32,
            cpus_per_task: config.threads_per_rank as u32,
            gpus_per_node: 0,
            mem_bytes: None,
            time_s: 3600,
        },
        params: params.into(),
        needs: vec![need],
        inputs: Vec::new(),
        source,
    };
    let run_dir = cell.run_dir();
    files::make_dirs(&run_dir)?;
    let path = run_dir.join("cell.toml");
    files::write_atomic(&path, cell.to_toml()?.as_bytes())?;
    Ok(json!({"cell": path, "run_dir": run_dir}))
}

/// The stage's presets, what the configuration says, and this side's own choices.
fn params(config: &Config, spec: &Spec) -> Result<Map<String, Value>, StageError> {
    let mut params = Map::new();
    for field in spec.fields {
        if let Preset::Is(text) = field.preset {
            // Presets are JSON; a test of the study file reads every one.
            params.insert(field.name.to_owned(), serde_json::from_str(text).unwrap_or(Value::Null));
        }
    }
    let said = json!({
        "max_steps": config.steps,
        "lr": config.lr,
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "beta1": config.beta1,
        "beta2": config.beta2,
        "adam_eps": config.eps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "global_batch": config.rows_per_step(),
        "grain_samples": 1,
        "seq_len": config.seq_len,
        "threads_per_rank": config.threads_per_rank,
        "packing": "stream",
        "val_interval_steps": config.steps,
        "val_samples": 1,
        "checkpoint_interval_steps": 0,
        "log_interval_steps": config.steps,
        "collective_timeout_s": 120,
    });
    let said = said.as_object().into_iter().flatten();
    for (name, value) in said.chain(&config.ours) {
        if spec.field(name).is_none() {
            return Err(StageError::Usage(format!("`{name}` is no parameter of the stage `train`: take it away")));
        }
        params.insert(name.clone(), value.clone());
    }
    Ok(params)
}

fn key(stage: &str, seed: Option<u32>) -> Result<CellKey, StageError> {
    let name = |text: &str| Name::new(text).map_err(StageError::Usage);
    Ok(CellKey { study: name("bench")?, profile: name("quick")?, stage: name(stage)?, arm: None, seed })
}
