//! Writing weights: our own model directory, which keeps the stored parameters, and the Hugging Face layout,
//! which holds effective weights.
//!
//! Our directory: `parameters.safetensors` (fp32, names as in the Hugging Face layout, V where constrained,
//! `<name>.sign` as I8), tokenizer files, and `model.json`, written last.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Model, as_f32, view};
use crate::compute::Result;
use crate::record::{Digest, RecordError, files};

pub(super) const MODEL_FILE: &str = "model.json";
pub(super) const PARAMETERS_FILE: &str = "parameters.safetensors";
pub(super) const SIGN_SUFFIX: &str = ".sign";
pub(super) const MODEL_VERSION: u32 = 1;

/// Files that belong to a tokenizer or to generation, copied along when they are there.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "generation_config.json",
];

/// `model.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelFile {
    /// [`MODEL_VERSION`].
    pub version: u32,
    /// As `config.json`.
    pub config: Value,
    /// The variant's word; null if unconstrained.
    pub variant: Option<String>,
    /// Digest of all stored parameters.
    pub param_digest: Digest,
    /// Digest of all signs; null without any.
    pub sign_digest: Option<Digest>,
    /// Shape and constraint by name.
    pub parameters: BTreeMap<String, ParameterEntry>,
}

/// One parameter in `model.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ParameterEntry {
    shape: Vec<i64>,
    constraint: String,
}

pub(super) fn save(model: &Model, dir: &Path, tokenizer_from: Option<&Path>) -> Result<()> {
    files::make_dirs(dir)?;
    copy_tokenizer(dir, tokenizer_from)?;
    let mut entries = Vec::new();
    for (g, span) in model.layout.spans() {
        let values = &as_f32(&model.flats[g])[span.range()];
        entries.push(Entry { name: span.name.clone(), shape: span.shape.clone(), data: Data::F32(values) });
    }
    for (group, signs) in model.layout.groups.iter().zip(&model.signs) {
        for (&i, signs) in signs {
            let span = &group.spans[i];
            let name = format!("{}{SIGN_SUFFIX}", span.name);
            entries.push(Entry { name, shape: span.shape.clone(), data: Data::I8(as_f32(signs)) });
        }
    }
    write_safetensors(&dir.join(PARAMETERS_FILE), entries)?;
    let parameters = model.layout.spans().map(|(_, s)| {
        (s.name.clone(), ParameterEntry { shape: s.shape.clone(), constraint: s.constraint.word().to_owned() })
    });
    let file = ModelFile {
        version: MODEL_VERSION,
        config: model.config().to_json(),
        variant: model.variant.map(|v| v.word().to_owned()),
        param_digest: model.param_digest(),
        sign_digest: sign_digest(model),
        parameters: parameters.collect(),
    };
    Ok(files::write_json(&dir.join(MODEL_FILE), &file)?)
}

/// Digest over name and signs, sorted by name; `None` if the variant keeps no signs.
pub(super) fn sign_digest(model: &Model) -> Option<Digest> {
    let mut signs = BTreeMap::new();
    for (group, kept) in model.layout.groups.iter().zip(&model.signs) {
        signs.extend(kept.iter().map(|(&i, s)| (group.spans[i].name.as_str(), s)));
    }
    if signs.is_empty() {
        return None;
    }
    let mut hasher = Sha256::new();
    for (name, signs) in signs {
        hasher.update(format!("{name}\0").as_bytes());
        let bytes: Vec<u8> = as_f32(signs).iter().map(|&x| x as i8 as u8).collect();
        hasher.update(&bytes);
    }
    Some(Digest::finish(hasher))
}

pub(super) fn export_hf(model: &Model, dir: &Path, tokenizer_from: Option<&Path>, shard_bytes: usize) -> Result<()> {
    files::make_dirs(dir)?;
    copy_tokenizer(dir, tokenizer_from)?;
    files::write_json(&dir.join("config.json"), &model.config().to_json())?;
    // Groups of (group, span) that fit a shard; a tensor larger than a shard has one of its own.
    let mut shards: Vec<Vec<(usize, usize)>> = vec![Vec::new()];
    let (mut filled, mut total) = (0, 0);
    for (g, group) in model.layout.groups.iter().enumerate() {
        for (i, span) in group.spans.iter().enumerate() {
            let bytes = span.len * 4;
            if filled > 0 && filled + bytes > shard_bytes {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            total += bytes;
            if let Some(shard) = shards.last_mut() {
                shard.push((g, i));
            }
        }
    }
    let n = shards.len();
    let mut weight_map = Map::new();
    for (k, shard) in shards.iter().enumerate() {
        let name =
            if n == 1 { "model.safetensors".to_owned() } else { format!("model-{:05}-of-{n:05}.safetensors", k + 1) };
        // Effective weights are made for one shard at a time.
        let mut effective = Vec::new();
        for &(g, i) in shard {
            effective.push(effective_weight(model, g, i)?);
        }
        let mut entries = Vec::new();
        for (&(g, i), weight) in shard.iter().zip(&effective) {
            let span = &model.layout.groups[g].spans[i];
            weight_map.insert(span.name.clone(), json!(name));
            entries.push(Entry { name: span.name.clone(), shape: span.shape.clone(), data: Data::F32(as_f32(weight)) });
        }
        write_safetensors(&dir.join(&name), entries)?;
    }
    if n > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        files::write_json(&dir.join("model.safetensors.index.json"), &index)?;
    }
    Ok(())
}

fn effective_weight(model: &Model, g: usize, i: usize) -> Result<tch::Tensor> {
    let _guard = tch::no_grad_guard();
    let span = &model.layout.groups[g].spans[i];
    let v = model.flats[g].detach().f_narrow(0, span.offset as i64, span.len as i64)?;
    let w = view::effective(&v, i, span, &model.signs[g])?;
    Ok(w.f_contiguous()?)
}

fn copy_tokenizer(dir: &Path, from: Option<&Path>) -> Result<()> {
    let Some(from) = from else { return Ok(()) };
    for name in TOKENIZER_FILES {
        let source = from.join(name);
        if source.is_file() {
            let bytes = std::fs::read(&source).map_err(RecordError::io("read", &source))?;
            files::write_atomic(&dir.join(name), &bytes)?;
        }
    }
    Ok(())
}

pub(super) enum Data<'a> {
    F32(&'a [f32]),
    I8(&'a [f32]),
}

pub(super) struct Entry<'a> {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) data: Data<'a>,
}

impl Entry<'_> {
    fn bytes(&self) -> usize {
        match self.data {
            Data::F32(values) => values.len() * 4,
            Data::I8(values) => values.len(),
        }
    }
}

/// Writes a safetensors file, piece by piece and atomically: header, then data by falling alignment and name.
pub(super) fn write_safetensors(path: &Path, mut entries: Vec<Entry<'_>>) -> Result<()> {
    entries.sort_by(|a, b| {
        let wide = |e: &Entry<'_>| matches!(e.data, Data::F32(_));
        wide(b).cmp(&wide(a)).then_with(|| a.name.cmp(&b.name))
    });
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0;
    for entry in &entries {
        let dtype = if matches!(entry.data, Data::F32(_)) { "F32" } else { "I8" };
        let end = at + entry.bytes();
        header.insert(entry.name.clone(), json!({"dtype": dtype, "shape": entry.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = Value::Object(header).to_string();
    // Data begins at a multiple of eight.
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    files::write_atomic_with(path, |file| {
        let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for entry in &entries {
            match entry.data {
                Data::F32(values) => values.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))?,
                Data::I8(values) => values.iter().try_for_each(|x| out.write_all(&[*x as i8 as u8]))?,
            }
        }
        out.flush()
    })?;
    Ok(())
}
