//! Reading weights: a directory in the Hugging Face layout, or our own model directory.
//!
//! Files are memory-mapped and copied once, into the flat groups. Every message names the file, what is
//! wrong with it and what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tch::{Kind, Tensor};

use super::save::{MODEL_FILE, ModelFile, PARAMETERS_FILE, SIGN_SUFFIX};
use super::{Family, Model, ModelConfig, Span, Variant, as_f32_mut, save};
use crate::compute::{ComputeError, Result};
use crate::record::{RecordError, files};

pub(super) fn load(dir: &Path) -> Result<Model> {
    if !dir.is_dir() {
        return Err(ComputeError::missing(
            dir,
            "is no directory: name one with config.json, model.safetensors and tokenizer.json",
        ));
    }
    if dir.join(MODEL_FILE).exists() { load_own(dir) } else { load_hf(dir) }
}

fn load_hf(dir: &Path) -> Result<Model> {
    let config = ModelConfig::read(&dir.join("config.json"))?;
    let mut model = Model::zeros(&config, None, 1)?;
    let mut wanted: BTreeSet<String> = model.layout.spans().map(|(_, s)| s.name.clone()).collect();
    for file in weight_files(dir)? {
        let mapped = Mapped::open(&file)?;
        let tensors = mapped.tensors()?;
        fill(&mut model, &mapped, &tensors, &mut wanted)?;
    }
    finish(dir, model, &wanted)
}

fn load_own(dir: &Path) -> Result<Model> {
    let path = dir.join(MODEL_FILE);
    let file = ModelFile::read(&path)?;
    let config = ModelConfig::from_json(&file.config).map_err(|reason| ComputeError::input(&path, reason))?;
    let variant = match &file.variant {
        None => None,
        Some(word) => Some(Variant::parse(word).ok_or_else(|| {
            ComputeError::input(&path, format!("has the unknown variant {word:?}: use the newer Seedbed that wrote it"))
        })?),
    };
    let mut model = Model::zeros(&config, variant, 1)?;
    let mut wanted: BTreeSet<String> = model.layout.spans().map(|(_, s)| s.name.clone()).collect();
    let weights = dir.join(PARAMETERS_FILE);
    let mapped = Mapped::open(&weights)?;
    let tensors = mapped.tensors()?;
    fill(&mut model, &mapped, &tensors, &mut wanted)?;
    load_signs(&mut model, &weights, &tensors)?;
    let model = finish(dir, model, &wanted)?;
    let digest = model.param_digest();
    if digest != file.param_digest {
        return Err(ComputeError::input(
            &weights,
            format!(
                "is damaged: its parameters have digest {}, {MODEL_FILE} promises {}; run the cell that wrote it again",
                digest.short(),
                file.param_digest.short()
            ),
        ));
    }
    if save::sign_digest(&model) != file.sign_digest {
        return Err(ComputeError::input(
            &weights,
            format!("is damaged: its signs are not those of {MODEL_FILE}; run the cell that wrote it again"),
        ));
    }
    Ok(model)
}

fn load_signs(model: &mut Model, path: &Path, tensors: &SafeTensors<'_>) -> Result<()> {
    for (g, group) in model.layout.groups.iter().enumerate() {
        for (i, span) in group.spans.iter().enumerate() {
            if span.constraint != super::Constraint::SignedSoftplus {
                continue;
            }
            let name = format!("{}{SIGN_SUFFIX}", span.name);
            let view = tensors.tensor(&name).map_err(|_| {
                ComputeError::input(path, format!("lacks the signs `{name}`: run the cell that wrote it again"))
            })?;
            if view.dtype() != Dtype::I8 || view.data().len() != span.len {
                return Err(ComputeError::input(
                    path,
                    format!("has signs `{name}` of a wrong shape: run the cell that wrote it again"),
                ));
            }
            let signs: Vec<f32> = view.data().iter().map(|&b| f32::from(b as i8)).collect();
            model.signs[g].insert(i, Tensor::f_from_slice(&signs)?.f_view(&span.shape[..])?);
        }
    }
    Ok(())
}

/// The files with weights: one, or those of the index.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    let value: Value = match files::read_json(&index) {
        Ok(value) => value,
        Err(e) if e.is_not_found() => {
            let advice = if dir.join("pytorch_model.bin").exists() {
                "is not there, only pytorch_model.bin: save the model with safe_serialization=True in transformers"
            } else {
                "is not there, nor is model.safetensors.index.json: copy the weights into the directory"
            };
            return Err(ComputeError::missing(single, advice));
        }
        Err(e) => return Err(ComputeError::input(&index, format!("cannot be used ({e}): copy it again"))),
    };
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| ComputeError::input(&index, "has no `weight_map`: copy it again from the model's source"))?;
    let mut names = BTreeSet::new();
    for name in map.values() {
        let name = name.as_str().filter(|n| !n.contains('/') && !n.is_empty() && *n != "..");
        let name = name.ok_or_else(|| {
            ComputeError::input(&index, "names a file outside the directory: copy it again from the model's source")
        })?;
        names.insert(name.to_owned());
    }
    Ok(names.into_iter().map(|n| dir.join(n)).collect())
}

/// A weight file in memory.
pub(super) struct Mapped {
    path: PathBuf,
    map: Mmap,
}

impl Mapped {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => ComputeError::missing(path, "is not there: copy the weights again"),
            _ => ComputeError::Record(RecordError::io("read", path)(e)),
        })?;
        // SAFETY: the map is read only; a file that another process cuts while it is read may fault, as with
        // any memory map. Weight files are inputs that nobody writes meanwhile.
        let map = unsafe { Mmap::map(&file) }.map_err(RecordError::io("read", path))?;
        Ok(Self { path: path.to_path_buf(), map })
    }

    pub(super) fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.map).map_err(|e| {
            ComputeError::input(
                &self.path,
                format!("is cut short or damaged ({e}): copy it again from the model's source"),
            )
        })
    }

    /// Copies one tensor, widened to fp32, into `target`.
    ///
    /// # Errors
    /// Its shape is not the span's, or its type is none of the three.
    pub(super) fn copy(&self, name: &str, view: &TensorView<'_>, span: &Span, target: &mut [f32]) -> Result<()> {
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        if shape != span.shape {
            return Err(ComputeError::input(
                &self.path,
                format!(
                    "has `{name}` of shape {shape:?} where config.json asks for {:?}: use the config.json that belongs to it",
                    span.shape
                ),
            ));
        }
        let kind = match view.dtype() {
            Dtype::F32 => {
                for (value, bytes) in target.iter_mut().zip(view.data().chunks_exact(4)) {
                    *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
                return Ok(());
            }
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => {
                return Err(ComputeError::input(
                    &self.path,
                    format!("has `{name}` of type {other:?}: save the model in float32, float16 or bfloat16"),
                ));
            }
        };
        let wide = Tensor::f_from_data_size(view.data(), &[span.len as i64], kind)?.f_to_kind(Kind::Float)?;
        target.copy_from_slice(super::as_f32(&wide));
        Ok(())
    }
}

/// Copies what `tensors` (of `mapped`) holds into the groups, and strikes it off `wanted`.
fn fill(model: &mut Model, mapped: &Mapped, tensors: &SafeTensors<'_>, wanted: &mut BTreeSet<String>) -> Result<()> {
    let path = &mapped.path;
    let layout = model.layout.clone();
    let names = super::layout::Names::of(model.config().family);
    let places: BTreeMap<&str, (usize, &Span)> = layout.spans().map(|(g, s)| (s.name.as_str(), (g, s))).collect();
    let tower = model.config().family == Family::Ministral3;
    for (name, view) in tensors.tensors() {
        let Some(name) = (if tower { of_text_tower(&name) } else { Some(name) }) else { continue };
        // Names without the prefix are those of a decoder that was saved without its head.
        let place = places.get(name.as_str()).or_else(|| places.get(format!("{}{name}", names.prefix).as_str()));
        let Some(&(g, span)) = place else {
            if is_ignored(&name) || model.config().tie_word_embeddings && name == names.out {
                continue;
            }
            return Err(ComputeError::input(
                path,
                format!(
                    "has the tensor `{name}`, which this decoder does not use: check that config.json belongs to it"
                ),
            ));
        };
        mapped.copy(&name, &view, span, &mut as_f32_mut(&mut model.flats[g])[span.range()])?;
        wanted.remove(&span.name);
    }
    Ok(())
}

/// The name of a tensor of a vision-language model within its text tower; none for the other towers.
fn of_text_tower(name: &str) -> Option<String> {
    let other = ["vision_tower.", "multi_modal_projector."];
    let whole = name.strip_prefix("model.").unwrap_or(name);
    if other.iter().any(|tower| whole.starts_with(tower)) {
        return None;
    }
    // Older files say `language_model.model.layers`, newer ones `model.language_model.layers`.
    Some(match (name.strip_prefix("language_model."), name.strip_prefix("model.language_model.")) {
        (Some(rest), _) => rest.to_owned(),
        (None, Some(rest)) => format!("model.{rest}"),
        (None, None) => name.to_owned(),
    })
}

/// Buffers that older files carry and that are computed here.
fn is_ignored(name: &str) -> bool {
    [".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq", SIGN_SUFFIX].iter().any(|s| name.ends_with(s))
}

fn finish(dir: &Path, model: Model, wanted: &BTreeSet<String>) -> Result<Model> {
    if let Some(first) = wanted.first() {
        return Err(ComputeError::input(
            dir,
            format!(
                "lacks {} of the model's tensors, first `{first}`: copy all of its safetensors files again",
                wanted.len()
            ),
        ));
    }
    Ok(model)
}

impl ModelFile {
    /// Reads `model.json`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let value: Value = files::read_json(path)?;
        let version = value.get("version").and_then(Value::as_u64).unwrap_or(0);
        if version > u64::from(save::MODEL_VERSION) {
            return Err(ComputeError::Record(RecordError::Newer {
                path: path.to_path_buf(),
                found: u32::try_from(version).unwrap_or(u32::MAX),
                known: save::MODEL_VERSION,
            }));
        }
        serde_json::from_value(value).map_err(|e| {
            ComputeError::Record(RecordError::damaged(path, format!("{e}: run the cell that wrote it again")))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::of_text_tower;

    #[test]
    fn the_text_tower_is_found_by_old_names_and_new_ones() {
        for (name, expected) in [
            ("language_model.model.layers.0.mlp.up_proj.weight", Some("model.layers.0.mlp.up_proj.weight")),
            ("language_model.lm_head.weight", Some("lm_head.weight")),
            ("model.language_model.norm.weight", Some("model.norm.weight")),
            ("lm_head.weight", Some("lm_head.weight")),
            ("model.layers.0.mlp.up_proj.weight", Some("model.layers.0.mlp.up_proj.weight")),
            ("vision_tower.patch_conv.weight", None),
            ("model.vision_tower.patch_conv.weight", None),
            ("model.multi_modal_projector.norm.weight", None),
        ] {
            assert_eq!(of_text_tower(name).as_deref(), expected, "{name}");
        }
    }
}
