//! Low-rank adapters (LoRA) over a decoder: y = W x + (alpha / r) B (A x), with A and B trained and W not.
//!
//! Names, first values and files are those of `peft`: `adapter_model.safetensors` and `adapter_config.json`, so
//! that an adapter that was trained here is loaded there, and the other way round. Dropout and biases of adapters
//! are not computed; an adapter file that asks for more is refused by name.

use std::path::Path;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::layout::{Builder, GroupLayout, Layout, Role, Span};
use super::libtorch::leaf;
use super::load::Mapped;
use super::save::{Data, Entry, write_safetensors};
use super::view::{BlockView, LowRank, too_few};
use super::{Family, ModelConfig, as_f32, as_f32_mut};
use crate::compute::rng::{Purpose, Rng};
use crate::compute::{ComputeError, Result};
use crate::record::files;

/// Which matrices get an adapter, and of what size.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    /// Rank r.
    pub rank: i64,
    /// alpha: what is added is multiplied by alpha / r.
    pub alpha: f64,
    /// The last word of the matrices' names, `q_proj` for example.
    pub targets: Vec<String>,
}

impl LoraSettings {
    /// peft's choice of matrices: `query_key_value` of GPT-NeoX, else `q_proj` and `v_proj`.
    pub fn attention(family: Family, rank: i64, alpha: f64) -> Self {
        let targets: &[&str] = if family == Family::GptNeox { &["query_key_value"] } else { &["q_proj", "v_proj"] };
        Self { rank, alpha, targets: targets.iter().map(|&t| t.to_owned()).collect() }
    }
}

/// Where an adapter attaches in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    QueryKeyValue,
    AttentionOut,
    Up,
    Down,
}

/// A matrix that can have an adapter.
#[derive(Debug, Clone, Copy)]
struct Target {
    word: &'static str,
    path: &'static str,
    place: Place,
    first_row: i64,
    rows: i64,
    columns: i64,
}

/// The matrices of a block, in the order of the forward pass.
fn targets(config: &ModelConfig) -> Vec<Target> {
    let (h, f, q, kv) = (config.hidden_size, config.intermediate_size, config.query_width(), config.key_value_width());
    let target = |path: &'static str, place, [first_row, rows, columns]: [i64; 3]| Target {
        word: path.rsplit('.').next().unwrap_or(path),
        path,
        place,
        first_row,
        rows,
        columns,
    };
    if config.family == Family::GptNeox {
        return vec![
            target("attention.query_key_value", Place::QueryKeyValue, [0, 3 * h, h]),
            target("attention.dense", Place::AttentionOut, [0, h, h]),
            target("mlp.dense_h_to_4h", Place::Up, [0, f, h]),
            target("mlp.dense_4h_to_h", Place::Down, [0, h, f]),
        ];
    }
    vec![
        target("self_attn.q_proj", Place::QueryKeyValue, [0, q, h]),
        target("self_attn.k_proj", Place::QueryKeyValue, [q, kv, h]),
        target("self_attn.v_proj", Place::QueryKeyValue, [q + kv, kv, h]),
        target("self_attn.o_proj", Place::AttentionOut, [0, h, q]),
        target("mlp.gate_proj", Place::Up, [0, f, h]),
        target("mlp.up_proj", Place::Up, [f, f, h]),
        target("mlp.down_proj", Place::Down, [0, h, f]),
    ]
}

/// An adapter with its weights: one flat group a block, `adapter.<i>`.
#[derive(Debug)]
pub struct Adapter {
    settings: LoraSettings,
    targets: Vec<Target>,
    layout: Layout,
    flats: Vec<Tensor>,
}

impl Adapter {
    /// With peft's first values: A uniform in +-1 / sqrt(in) (its kaiming_uniform with a = sqrt 5), B zero, so that
    /// nothing is added yet. fp32, padded for `lanes` lanes.
    ///
    /// # Errors
    /// The rank is not positive, or a matrix is not in this family: named, with those that are.
    pub fn new(config: &ModelConfig, settings: &LoraSettings, lanes: usize, seed: u32, device: Device) -> Result<Self> {
        let mut adapter = Self::zeros(config, settings, lanes)?;
        let layout = adapter.layout.clone();
        for (number, (g, span)) in layout.spans().enumerate().filter(|(_, (_, s))| s.name.contains(".lora_A.")) {
            let columns = span.shape[1] as usize;
            let bound = 1.0 / (columns as f64).sqrt();
            let values = &mut as_f32_mut(&mut adapter.flats[g])[span.range()];
            for (row, values) in values.chunks_mut(columns).enumerate() {
                // An adapter has far fewer than 2^32 tensors.
                let mut rng = Rng::new(seed, Purpose::Adapter, number as u32, row as u64);
                values.iter_mut().for_each(|v| *v = (bound * (2.0 * rng.uniform() - 1.0)) as f32);
            }
        }
        adapter.to(device)
    }

    fn zeros(config: &ModelConfig, settings: &LoraSettings, lanes: usize) -> Result<Self> {
        let known = targets(config);
        if !(1..=1 << 16).contains(&settings.rank) || !settings.alpha.is_finite() || settings.targets.is_empty() {
            return Err(ComputeError::Config(format!(
                "an adapter of rank {}, alpha {} on {} matrices cannot be computed: the rank must be positive, alpha \
                 finite, and one matrix named",
                settings.rank,
                settings.alpha,
                settings.targets.len()
            )));
        }
        if let Some(unknown) = settings.targets.iter().find(|t| !known.iter().any(|k| k.word == **t)) {
            let words: Vec<&str> = known.iter().map(|k| k.word).collect();
            return Err(ComputeError::Config(format!(
                "an adapter cannot attach to `{unknown}` of a {} model: name some of {}",
                config.family.word(),
                words.join(", ")
            )));
        }
        let targets: Vec<Target> = known.into_iter().filter(|k| settings.targets.iter().any(|t| t == k.word)).collect();
        let layers = if config.family == Family::GptNeox { "gpt_neox.layers" } else { "model.layers" };
        let groups: Vec<GroupLayout> = (0..config.num_hidden_layers)
            .map(|i| {
                let mut group = Builder::new(&format!("adapter.{i}"), None);
                for t in &targets {
                    let name = format!("base_model.model.{layers}.{i}.{}", t.path);
                    group.add(&format!("{name}.lora_A.weight"), &[settings.rank, t.columns], Role::Input);
                    group.add(&format!("{name}.lora_B.weight"), &[t.rows, settings.rank], Role::Output);
                }
                group.finish(lanes.max(1))
            })
            .collect();
        let flats = groups
            .iter()
            .map(|g| Ok(Tensor::f_zeros([g.len as i64], (Kind::Float, Device::Cpu))?))
            .collect::<Result<_>>()?;
        Ok(Self { settings: settings.clone(), targets, layout: Layout { groups, lanes: lanes.max(1) }, flats })
    }

    fn to(mut self, device: Device) -> Result<Self> {
        self.flats = self.flats.iter().map(|f| Ok(f.f_to(device)?)).collect::<Result<_>>()?;
        Ok(self)
    }

    /// Where its parameters lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Its weights, group by group.
    pub fn flats(&self) -> &[Tensor] {
        &self.flats
    }

    /// What it was made of.
    pub fn settings(&self) -> &LoraSettings {
        &self.settings
    }

    /// Adds the adapter of block `layer` to its view; leaves if `want`.
    pub(super) fn attach(&self, layer: usize, view: &mut BlockView, want: bool) -> Result<Vec<(usize, Tensor)>> {
        let group = &self.layout.groups[layer];
        let flat = self.flats[layer].f_detach()?;
        let part = |span: &Span| -> Result<(usize, Tensor)> {
            let piece = flat.f_narrow(0, span.offset as i64, span.len as i64)?.f_view(&span.shape[..])?;
            Ok((span.offset, leaf(&piece, want)?))
        };
        let mut leaves = Vec::new();
        for (target, spans) in self.targets.iter().zip(group.spans.chunks(2)) {
            let [a, b] = spans else { return Err(too_few()) };
            let (a, b) = (part(a)?, part(b)?);
            let linear = match target.place {
                Place::QueryKeyValue => &mut view.query_key_value,
                Place::AttentionOut => &mut view.attention_out,
                Place::Up => &mut view.up,
                Place::Down => &mut view.down,
            };
            linear.adapters.push(LowRank {
                first_row: target.first_row,
                a: a.1.shallow_clone(),
                b: b.1.shallow_clone(),
                scale: self.settings.alpha / self.settings.rank as f64,
            });
            leaves.extend([a, b]);
        }
        Ok(leaves)
    }

    /// Writes `adapter_model.safetensors` and `adapter_config.json` as peft reads them. `base`: what the
    /// configuration names as the model below.
    ///
    /// # Errors
    /// The disk is full or cannot be written.
    pub fn save(&self, dir: &Path, base: &str) -> Result<()> {
        files::make_dirs(dir)?;
        let flats: Vec<Tensor> = self.flats.iter().map(|f| Ok(f.f_to(Device::Cpu)?)).collect::<Result<_>>()?;
        let entries = self.layout.spans().map(|(g, span)| Entry {
            name: span.name.clone(),
            shape: span.shape.clone(),
            data: Data::F32(&as_f32(&flats[g])[span.range()]),
        });
        write_safetensors(&dir.join(WEIGHTS_FILE), entries.collect())?;
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "lora_dropout": 0.0,
            "target_modules": self.settings.targets,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "use_rslora": false,
            "use_dora": false,
            "modules_to_save": null,
        });
        Ok(files::write_json(&dir.join(CONFIG_FILE), &config)?)
    }

    /// Reads what [`Self::save`] or peft wrote for a model of `config`.
    ///
    /// # Errors
    /// A file is missing or damaged, or asks for what is not computed here: named.
    pub fn load(dir: &Path, config: &ModelConfig, lanes: usize, device: Device) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let value: Value = files::read_json(&path)?;
        let settings = settings_of(&value).map_err(|reason| ComputeError::input(&path, reason))?;
        let mut adapter = Self::zeros(config, &settings, lanes)?;
        let weights = Mapped::open(&dir.join(WEIGHTS_FILE))?;
        let tensors = weights.tensors()?;
        let layout = adapter.layout.clone();
        for (g, span) in layout.spans() {
            let view = tensors
                .tensor(&span.name)
                .map_err(|_| ComputeError::input(dir, format!("lacks `{}`: copy the adapter again", span.name)))?;
            weights.copy(&span.name, &view, span, &mut as_f32_mut(&mut adapter.flats[g])[span.range()])?;
        }
        if let Some(extra) = tensors.names().into_iter().find(|n| !layout.spans().any(|(_, s)| s.name == **n)) {
            return Err(ComputeError::input(
                dir,
                format!("has `{extra}`, which is no part of its {CONFIG_FILE}: use files that belong together"),
            ));
        }
        adapter.to(device)
    }
}

const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const CONFIG_FILE: &str = "adapter_config.json";

fn settings_of(value: &Value) -> std::result::Result<LoraSettings, String> {
    let is = |key: &str, allowed: &[Value]| value.get(key).is_none_or(|v| v.is_null() || allowed.contains(v));
    for (key, allowed) in [
        ("peft_type", vec![json!("LORA")]),
        ("bias", vec![json!("none")]),
        ("use_rslora", vec![json!(false)]),
        ("use_dora", vec![json!(false)]),
        ("fan_in_fan_out", vec![json!(false)]),
        ("modules_to_save", vec![json!([])]),
        ("rank_pattern", vec![json!({})]),
        ("alpha_pattern", vec![json!({})]),
        ("layers_to_transform", vec![json!([])]),
    ] {
        if !is(key, &allowed) {
            return Err(format!("asks for `{key}` = {}, which is not computed here: use a plain LoRA", value[key]));
        }
    }
    let words =
        value.get("target_modules").and_then(Value::as_array).ok_or("names no list `target_modules`: add it")?;
    Ok(LoraSettings {
        rank: value.get("r").and_then(Value::as_i64).ok_or("lacks the whole number `r`: add it")?,
        alpha: value.get("lora_alpha").and_then(Value::as_f64).ok_or("lacks the number `lora_alpha`: add it")?,
        targets: words.iter().filter_map(|w| w.as_str().map(str::to_owned)).collect(),
    })
}
