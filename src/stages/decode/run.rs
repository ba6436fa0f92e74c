//! Runs a cell of kind `decode`: items to prompts, texts to answers, answers to the record.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tch::{Device, Kind};

use crate::compute::comm::Comm;
use crate::compute::data::{Special, TextTokenizer};
use crate::compute::generate::answer::Tally;
use crate::compute::generate::task::{Item, Task};
use crate::compute::generate::{Engine, Finish, Generated, Settings, generate};
use crate::compute::model::libtorch::{Base, CachedDecoder};
use crate::compute::model::native::NativeDecoder;
use crate::compute::model::{Mask, Model, Net};
use crate::compute::train::Precision;
use crate::compute::{gpu, numerics};
use crate::record::generation::{self, GENERATION_VERSION, Line};
use crate::record::{Column, Items, RunRecord};
use crate::report::stats::{self, Answer};
use crate::stages::subjects::{Subjects, open};
use crate::stages::{Context, StageError};

#[derive(Debug, Deserialize)]
struct Params {
    models: BTreeMap<String, String>,
    num_shots: usize,
    shots_seed: u32,
    max_items: Option<usize>,
    max_new_tokens: usize,
    mask: String,
    special_tokens: String,
    device: String,
    precision: Precision,
    grain_rows: usize,
    batch_size: usize,
    threads_per_rank: u32,
    collective_timeout_s: u64,
}

/// Generates with every model, on every rank; rank 0 writes.
///
/// # Errors
/// A model, the task or the items cannot be read or do not fit each other, logits are not finite, or a rank is gone.
pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
    let params: Params = context.params()?;
    let deadline = Duration::from_secs(params.collective_timeout_s);
    let (comm, device) = if params.device == "cuda" {
        gpu::load()?;
        let comm = Comm::open_on_gpus(deadline, &context.run_dir)?;
        let device = comm.gpu();
        (comm, device)
    } else {
        (Comm::open(deadline)?, Device::Cpu)
    };
    let record = run_on(context, &params, &comm, device)?;
    // All ranks end alike. After an error the launcher ends the others.
    comm.close()?;
    Ok(record)
}

fn run_on(context: &Context, params: &Params, comm: &Comm, device: Device) -> Result<Option<RunRecord>, StageError> {
    let input = |name: &str| {
        context.input(name).ok_or_else(|| StageError::Usage(format!("`{name}` is not given: set it in the study")))
    };
    let task = Task::read(input("task")?)?;
    let shots = match params.num_shots {
        0 => String::new(),
        n => task.shots(input("shots")?, n, params.shots_seed)?,
    };
    let items = task.items(input("items")?, &shots, params.max_items)?;
    let subjects = open(context, &params.models, params.threads_per_rank)?;
    let prompts = prompts(&subjects, &items, &params.special_tokens)?;

    let mut record = RunRecord::new(&context.cell);
    let (mut models, mut seconds, mut load_seconds) = (Map::new(), Map::new(), Map::new());
    for (name, model) in &subjects.models {
        let opened = Instant::now();
        let net;
        let mut engine = if runs_natively(params, device) {
            Engine::Native(Box::new(NativeDecoder::new(model, mask(params), params.threads_per_rank as usize)?))
        } else {
            net = Net::of(model, Base::Frozen, kind(params), device)?;
            Engine::Libtorch(CachedDecoder::new(&net, mask(params))?)
        };
        let begun = Instant::now();
        load_seconds.insert(name.clone(), json!(begun.duration_since(opened).as_secs_f64()));
        let settings = Settings {
            max_new_tokens: params.max_new_tokens,
            ends: ends(model, &subjects.tokenizer),
            stops: task.described.stop.clone(),
            batch_rows: params.batch_size,
            grain_rows: params.grain_rows,
        };
        let decode = |ids: &[u32]| subjects.tokenizer.decode(ids);
        let texts = generate(&mut engine, &decode, comm, &prompts, &settings)?;
        seconds.insert(name.clone(), json!(begun.elapsed().as_secs_f64()));
        if !comm.is_first() {
            continue;
        }
        let lines = lines(&task, &items, &prompts, texts);
        generation::write(&generation::path(&context.out_dir, name), &lines)?;
        let (found, told) = summary(&lines, &task);
        eprintln!("{name}: {told}");
        record.items.insert(format!("generation_{name}"), columns(&lines));
        models.insert(name.clone(), found);
    }
    if !comm.is_first() {
        return Ok(None);
    }
    record.metrics = json!({
        "generation": models,
        "metadata": {
            "seed": context.cell.key.seed,
            "model_name": subjects.model_name,
            "items": items.len(),
            "max_new_tokens": params.max_new_tokens,
            "mask": params.mask,
            "num_shots": params.num_shots,
            "special_tokens": params.special_tokens,
            "decoding": "greedy",
        },
    });
    record.environment = json!({"seconds": seconds, "load_seconds": load_seconds, "duration_s": context.elapsed_s()});
    let native = runs_natively(params, device);
    record.numerics = numerics::record(&numerics::Settings {
        threads_per_rank: params.threads_per_rank,
        lanes: 1,
        grain_samples: params.grain_rows as u64,
        transport: comm.transport(),
        compute_type: if kind(params) == Kind::Float { "fp32" } else { "bf16" },
        engine: if native { "native" } else { "libtorch" },
        gemm: if native { "builtin" } else { "libtorch" },
        device: &gpu::name(device),
        inexact: None,
    });
    Ok(Some(record))
}

/// Our kernels compute fp32 on the CPU; libtorch the rest.
fn runs_natively(params: &Params, device: Device) -> bool {
    device == Device::Cpu && kind(params) == Kind::Float
}

fn kind(params: &Params) -> Kind {
    match params.precision {
        Precision::Fp32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

fn mask(params: &Params) -> Mask {
    if params.mask == "prefix" { Mask::Prefix } else { Mask::Causal }
}

/// The ids that end a text: the model's, else the tokenizer's.
fn ends(model: &Model, tokenizer: &TextTokenizer) -> Vec<u32> {
    let config = model.config();
    let said = config.eos_token_id.iter().chain(&config.more_eos_token_ids);
    let mut ends: Vec<u32> = said.filter_map(|&id| u32::try_from(id).ok()).collect();
    if ends.is_empty() {
        ends.push(tokenizer.special().eos);
    }
    ends
}

/// Ids of every prompt. A prompt without any begins as a text begins.
fn prompts(subjects: &Subjects, items: &[Item], special: &str) -> Result<Vec<Vec<u32>>, StageError> {
    let tokenizer = &subjects.tokenizer;
    let special = if special == "none" { Special::None } else { Special::Default };
    let context = subjects.models.iter().map(|(_, m)| m.config().max_position_embeddings).min().unwrap_or(0);
    let mut prompts = Vec::new();
    for item in items {
        let mut ids = tokenizer.encode(&item.prompt, special)?;
        if ids.is_empty() {
            ids.push(tokenizer.special().bos.unwrap_or(tokenizer.special().eos));
        }
        // Every model gets the same items.
        if ids.len() as i64 >= context {
            return Err(StageError::Usage(format!(
                "the prompt of item {} has {} tokens, and a model a context of {context}: shorten the prompt or lower `num_shots`",
                item.number,
                ids.len()
            )));
        }
        prompts.push(ids);
    }
    Ok(prompts)
}

fn lines(task: &Task, items: &[Item], prompts: &[Vec<u32>], texts: Vec<Generated>) -> Vec<Line> {
    let line = |((item, prompt), text): ((&Item, &Vec<u32>), Generated)| {
        let answer = task.answer.of(&text.text);
        Line {
            version: GENERATION_VERSION,
            index: item.number as u64,
            prompt: item.prompt.clone(),
            is_match: item.gold.as_ref().map(|gold| answer.as_ref() == Some(gold)),
            answer,
            text: text.text,
            gold_text: item.gold_text.clone(),
            gold: item.gold.clone(),
            finish: text.finish.word().to_owned(),
            stop: text.stop.map(|which| task.described.stop[which].clone()),
            prompt_tokens: prompt.len() as u64,
            tokens: text.ids.len() as u64,
            group: item.group.clone(),
            item: item.kept.clone(),
        }
    };
    items.iter().zip(prompts).zip(texts).map(line).collect()
}

/// The numbers of one model, and a sentence about them.
fn summary(lines: &[Line], task: &Task) -> (Value, String) {
    let mut tally = Tally::default();
    let mut groups: BTreeMap<&str, Tally> = BTreeMap::new();
    for line in lines {
        let (answer, gold) = (line.answer.as_deref(), line.gold.as_deref());
        tally.add(answer, gold);
        if let Some(group) = &line.group {
            groups.entry(group).or_default().add(answer, gold);
        }
    }
    let finishes: Map<String, Value> = Finish::ALL
        .iter()
        .map(|f| (f.word().to_owned(), json!(lines.iter().filter(|l| l.finish == f.word()).count())))
        .collect();
    let tokens: Vec<f64> = lines.iter().map(|l| l.tokens as f64).collect();
    let mut found = numbers(&tally);
    found.insert("finish".to_owned(), finishes.into());
    found.insert("tokens".to_owned(), json!(lines.iter().map(|l| l.tokens).sum::<u64>()));
    found.insert("median_tokens".to_owned(), or_null(stats::median(&tokens)));
    if task.described.gold.is_none() {
        found.insert("gold_absent".to_owned(), json!("the task names no `gold`: nobody knows what is right"));
    }
    if !groups.is_empty() {
        // A list, for a group may have any name.
        let groups = groups.into_iter().map(|(name, tally)| {
            let mut of = numbers(&tally);
            of.insert("group".to_owned(), json!(storable(name)));
            Value::Object(of)
        });
        found.insert("groups".to_owned(), groups.collect());
    }
    let told = format!("{} items, {} invalid, {} right", tally.total, tally.invalid, tally.gold_matches);
    (Value::Object(found), told)
}

fn numbers(tally: &Tally) -> Map<String, Value> {
    let rate = |n: u64, of: u64| if of == 0 { Value::Null } else { json!(n as f64 / of as f64) };
    let interval = |n: u64, of: u64| match stats::wilson(n, of, 0.95) {
        Ok(interval) => (json!(interval.lower), json!(interval.upper)),
        Err(_) => (Value::Null, Value::Null),
    };
    let (matches, golds) = (tally.gold_matches, tally.with_gold);
    let (lower, upper) = interval(matches, golds);
    let (invalid_lower, invalid_upper) = interval(tally.invalid, tally.total);
    let known = |value: Value| if golds == 0 { Value::Null } else { value };
    let found = json!({
        "total": tally.total,
        "invalid": tally.invalid,
        "invalid_rate": rate(tally.invalid, tally.total),
        "invalid_rate_lower": invalid_lower,
        "invalid_rate_upper": invalid_upper,
        "gold_matches": known(json!(matches)),
        "accuracy": rate(matches, golds),
        "accuracy_lower": lower,
        "accuracy_upper": upper,
        "distinct_answers": tally.distinct_answers(),
        "dominant_answer": tally.dominant().map(|(answer, _)| storable(answer)),
        "collapse_share": tally.collapse_share(),
        "gold_majority_share": tally.gold_majority_share(),
    });
    match found {
        Value::Object(found) => found,
        _ => Map::new(),
    }
}

/// Text without what HDF5 takes for its end.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn or_null(answer: Answer<f64>) -> Value {
    answer.map_or(Value::Null, |v| json!(v))
}

/// A row an item, for paired tests. -1: not known.
fn columns(lines: &[Line]) -> Items {
    let integers = |value: &dyn Fn(&Line) -> i64| Column::Integers(lines.iter().map(value).collect());
    let finish = |line: &Line| Finish::ALL.iter().position(|f| f.word() == line.finish).map_or(-1, |i| i as i64);
    Items {
        columns: vec![
            ("id".into(), integers(&|l| l.index as i64)),
            ("is_valid".into(), integers(&|l| i64::from(l.answer.is_some()))),
            ("is_match".into(), integers(&|l| l.is_match.map_or(-1, i64::from))),
            ("finish".into(), integers(&finish)),
            ("prompt_tokens".into(), integers(&|l| l.prompt_tokens as i64)),
            ("tokens".into(), integers(&|l| l.tokens as i64)),
        ],
    }
}
