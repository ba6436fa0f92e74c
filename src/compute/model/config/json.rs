//! `config.json` as `transformers` writes and reads it: older and newer keys, each family's own defaults.
//!
//! Promises that what is read and is not computed here (another architecture, activation, position scaling,
//! pattern of layers) is refused by name.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{
    Activation, Family, Llama3Scaling, ModelConfig, QueryScaling, RopeScaling, Sizes, SlidingWindow, YarnScaling,
};
use crate::compute::{ComputeError, Result};

type Parsed<T> = std::result::Result<T, String>;

impl ModelConfig {
    /// Reads `config.json` of a model directory.
    ///
    /// # Errors
    /// It is not there, is no JSON, lacks a field, or describes a decoder that is not computed here.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => ComputeError::missing(
                path,
                "is not there: name a directory with config.json, model.safetensors and tokenizer.json",
            ),
            _ => ComputeError::input(path, format!("cannot be read ({e}): check its permissions")),
        })?;
        let value: Value = serde_json::from_str(&text).map_err(|e| {
            ComputeError::input(path, format!("is no JSON ({e}): copy it again from the model's source"))
        })?;
        Self::from_json(&value).map_err(|reason| ComputeError::input(path, reason))
    }

    /// From the content of `config.json`.
    ///
    /// # Errors
    /// The rest of a sentence about the file: which key is wrong, and what to do.
    pub fn from_json(value: &Value) -> Parsed<Self> {
        let map = value.as_object().ok_or("is no JSON object: copy it again from the model's source")?;
        let map = text_tower(map)?;
        let word = map.get("model_type").and_then(Value::as_str).unwrap_or("");
        let family = Family::parse(word).ok_or_else(|| {
            let known: Vec<String> = Family::ALL.iter().map(|f| format!("`{}`", f.word())).collect();
            format!("says model_type {word:?}, which is not computed here: use a model of {}", known.join(", "))
        })?;
        let keys = Keys(map);
        if family == Family::Ministral3 {
            only_known(map)?;
        }
        let sizes = Sizes {
            hidden_size: keys.integer("hidden_size")?,
            num_hidden_layers: keys.integer("num_hidden_layers")?,
            num_attention_heads: keys.integer("num_attention_heads")?,
            intermediate_size: keys.integer("intermediate_size")?,
            vocab_size: keys.integer("vocab_size")?,
            max_position_embeddings: keys.integer("max_position_embeddings")?,
        };
        let mut config = Self::new(family, sizes);
        config.tie_word_embeddings = keys.switch("tie_word_embeddings", false)?;
        config.bos_token_id = map.get("bos_token_id").and_then(Value::as_i64);
        config.pad_token_id = map.get("pad_token_id").and_then(Value::as_i64);
        match map.get("eos_token_id") {
            Some(Value::Array(ids)) => {
                let mut ids = ids.iter().filter_map(Value::as_i64);
                config.eos_token_id = ids.next();
                config.more_eos_token_ids = ids.collect();
            }
            other => config.eos_token_id = other.and_then(Value::as_i64),
        }
        let act = map.get("hidden_act").and_then(Value::as_str).unwrap_or(config.hidden_act.word());
        config.hidden_act = Activation::parse(act).ok_or_else(|| {
            format!(
                "asks for hidden_act {act:?}, which is not computed here: known are gelu, gelu_new, gelu_fast, \
                 gelu_pytorch_tanh, relu, softplus, silu, swish"
            )
        })?;
        config.read_rotation(&keys)?;
        match family {
            Family::GptNeox => {
                config.norm_eps = keys.number("layer_norm_eps", 1e-5)?;
                config.parallel_residual = keys.switch("use_parallel_residual", true)?;
                config.qkv_bias = keys.switch("attention_bias", true)?;
                config.attention_out_bias = config.qkv_bias;
            }
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Ministral3 => {
                let heads = config.num_attention_heads;
                // Mistral's own default differs; every file that means it says so.
                config.num_key_value_heads = keys.optional_integer("num_key_value_heads")?.unwrap_or(heads);
                let eps = if family == Family::Ministral3 { 1e-5 } else { 1e-6 };
                config.norm_eps = keys.number("rms_norm_eps", eps)?;
            }
        }
        match family {
            Family::GptNeox => {}
            Family::Llama => {
                config.qkv_bias = keys.switch("attention_bias", false)?;
                config.attention_out_bias = config.qkv_bias;
                config.mlp_bias = keys.switch("mlp_bias", false)?;
            }
            Family::Mistral | Family::Ministral3 => {
                let size = keys.optional_integer("sliding_window")?;
                config.sliding_window = size.map(|size| SlidingWindow { size, first_layer: 0 });
            }
            Family::Qwen2 => config.sliding_window = qwen2_window(&keys, config.num_hidden_layers)?,
        }
        config.check()?;
        Ok(config)
    }

    /// Everything about positions: head width, rotated part, base and scaling.
    fn read_rotation(&mut self, keys: &Keys<'_>) -> Parsed<()> {
        let rope = keys.0.get("rope_parameters").and_then(Value::as_object);
        let neox = self.family == Family::GptNeox;
        for key in ["rope_parameters", "rope_scaling"] {
            match keys.0.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Object(scaling)) => self.read_scaling(key, scaling)?,
                Some(other) => {
                    return Err(format!("asks for {key} {other}, which is not computed here: use a model without it"));
                }
            }
        }
        let rotary = |names: [&str; 2]| -> Parsed<Option<f64>> {
            for name in names {
                let value = rope.and_then(|r| r.get(name)).or_else(|| keys.0.get(name)).filter(|v| !v.is_null());
                if let Some(value) = value {
                    let number = value.as_f64().ok_or_else(|| format!("has `{name}` that is no number: correct it"))?;
                    return Ok(Some(number));
                }
            }
            Ok(None)
        };
        if !neox {
            let preset = self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0);
            self.head_dim = keys.optional_integer("head_dim")?.unwrap_or(preset);
        }
        let factor = rotary(["partial_rotary_factor", "rotary_pct"])?.unwrap_or(if neox { 0.25 } else { 1.0 });
        if !(0.0..=1.0).contains(&factor) || !neox && factor != 1.0 {
            return Err(format!(
                "has rotary_pct or partial_rotary_factor {factor}, which is not computed for {}: it must be {}",
                self.family.word(),
                if neox { "between 0 and 1" } else { "1" }
            ));
        }
        self.rotary_dims = Self::rotary_part(self.head_dim, factor);
        if let Some(theta) = rotary(["rope_theta", "rotary_emb_base"])? {
            self.rope_theta = theta;
        }
        Ok(())
    }

    /// The scaling that one of its two keys asks for.
    fn read_scaling(&mut self, key: &str, scaling: &Map<String, Value>) -> Parsed<()> {
        if let Some((kind, _)) = scaling.iter().find(|(_, v)| v.is_object()) {
            return Err(format!(
                "has {key} of its own for {kind:?}, which is not computed here: use a model without it"
            ));
        }
        match scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str) {
            Some("default") => Ok(()),
            None if !scaling.contains_key("factor") => Ok(()),
            Some("llama3") if self.family != Family::GptNeox => {
                let number = |name: &str| {
                    let value = scaling.get(name).and_then(Value::as_f64);
                    value.ok_or_else(|| format!("has {key} `llama3` without the number `{name}`: add it"))
                };
                self.rope_scaling = Some(RopeScaling::Llama3(Llama3Scaling {
                    factor: number("factor")?,
                    low_freq_factor: number("low_freq_factor")?,
                    high_freq_factor: number("high_freq_factor")?,
                    original_max_position_embeddings: Keys(scaling)
                        .optional_integer("original_max_position_embeddings")?
                        .unwrap_or(self.max_position_embeddings),
                }));
                Ok(())
            }
            Some("yarn") if self.family != Family::GptNeox => self.read_yarn(key, &Keys(scaling)),
            kind => Err(format!(
                "asks for {key} {:?}, which is not computed here: use a model without it",
                kind.unwrap_or("of no type")
            )),
        }
    }

    /// YaRN's numbers; the factor of cosines and sines is what `mscale` and `mscale_all_dim` come to.
    fn read_yarn(&mut self, key: &str, keys: &Keys<'_>) -> Parsed<()> {
        let number = |name: &str| -> Parsed<Option<f64>> {
            match keys.0.get(name) {
                None | Some(Value::Null) => Ok(None),
                Some(_) => keys.number(name, 0.0).map(Some),
            }
        };
        let needed = |name: &str| format!("has {key} `yarn` without `{name}`: add it");
        let factor = number("factor")?.ok_or_else(|| needed("factor"))?;
        let original = keys
            .optional_integer("original_max_position_embeddings")?
            .ok_or_else(|| needed("original_max_position_embeddings"))?;
        let grown = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
        // Zero counts as absent, as in Python.
        let positive = |name: &str| Ok::<_, String>(number(name)?.filter(|x| *x != 0.0));
        let attention_factor = match (number("attention_factor")?, positive("mscale")?, positive("mscale_all_dim")?) {
            (Some(given), ..) => given,
            (None, Some(mscale), Some(all)) => grown(mscale) / grown(all),
            (None, ..) => grown(1.0),
        };
        self.rope_scaling = Some(RopeScaling::Yarn(YarnScaling {
            factor,
            original_max_position_embeddings: original,
            beta_fast: positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: positive("beta_slow")?.unwrap_or(1.0),
            attention_factor,
            truncate: keys.switch("truncate", true)?,
        }));
        match number("llama_4_scaling_beta")? {
            Some(_) if self.family != Family::Ministral3 => Err(format!(
                "has llama_4_scaling_beta, which is not computed for {}: use a model without it",
                self.family.word()
            )),
            beta => {
                self.query_scaling = beta.map(|beta| QueryScaling { beta, original_max_position_embeddings: original });
                Ok(())
            }
        }
    }

    /// The content of `config.json`, as `transformers` reads it.
    pub fn to_json(&self) -> Value {
        let eos = match (self.eos_token_id, self.more_eos_token_ids.as_slice()) {
            (Some(first), [_, ..]) => json!([&[first][..], &self.more_eos_token_ids[..]].concat()),
            (first, _) => json!(first),
        };
        let mut value = json!({
            "architectures": [self.family.architecture()],
            "model_type": self.family.word(),
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_theta,
            "hidden_act": self.hidden_act.word(),
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": self.pad_token_id,
            "torch_dtype": "float32",
        });
        let mut set = |key: &str, field: Value| value[key] = field;
        if self.family == Family::GptNeox {
            let factor = self.rotary_factor();
            set("rotary_pct", json!(factor));
            set("partial_rotary_factor", json!(factor));
            set("rotary_emb_base", json!(self.rope_theta));
            set("layer_norm_eps", json!(self.norm_eps));
            set("use_parallel_residual", json!(self.parallel_residual));
            set("attention_bias", json!(self.qkv_bias));
            set("hidden_dropout", json!(0.0));
            return value;
        }
        set("num_key_value_heads", json!(self.num_key_value_heads));
        set("head_dim", json!(self.head_dim));
        set("rms_norm_eps", json!(self.norm_eps));
        set("rope_scaling", Value::Null);
        if let Some(RopeScaling::Llama3(s)) = self.rope_scaling {
            let scaling = json!({
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_position_embeddings,
            });
            set("rope_scaling", scaling);
        }
        if let Some(RopeScaling::Yarn(s)) = self.rope_scaling {
            let mut scaling = json!({
                "rope_type": "yarn",
                "rope_theta": self.rope_theta,
                "factor": s.factor,
                "original_max_position_embeddings": s.original_max_position_embeddings,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "attention_factor": s.attention_factor,
                "truncate": s.truncate,
            });
            if let Some(q) = self.query_scaling {
                scaling["llama_4_scaling_beta"] = json!(q.beta);
            }
            set("rope_scaling", Value::Null);
            set("rope_parameters", scaling);
        }
        match self.family {
            Family::GptNeox => {}
            Family::Llama => {
                set("attention_bias", json!(self.qkv_bias));
                set("mlp_bias", json!(self.mlp_bias));
            }
            Family::Mistral | Family::Ministral3 => set("sliding_window", json!(self.sliding_window.map(|w| w.size))),
            Family::Qwen2 => {
                set("use_sliding_window", json!(self.sliding_window.is_some()));
                set("sliding_window", json!(self.sliding_window.map(|w| w.size)));
                let first = self.sliding_window.map_or(self.num_hidden_layers, |w| w.first_layer);
                set("max_window_layers", json!(first));
            }
        }
        value
    }

    /// A factor whose product with the head's width is `rotary_dims` when it is cut to a whole number.
    fn rotary_factor(&self) -> f64 {
        let factor = self.rotary_dims as f64 / self.head_dim as f64;
        if Self::rotary_part(self.head_dim, factor) == self.rotary_dims { factor } else { factor.next_up() }
    }
}

/// The part of a configuration that describes the decoder: of a vision-language model its text tower. The vision
/// tower is left out, by name; its tensors are skipped when weights are read.
fn text_tower(map: &Map<String, Value>) -> Parsed<&Map<String, Value>> {
    let quantised = |map: &Map<String, Value>| {
        let method = map.get("quantization_config")?.get("quant_method")?.as_str()?.to_owned();
        Some(format!(
            "has weights that are quantised ({method}), which are not read: use the release in bf16, whose name often \
             ends in -BF16"
        ))
    };
    if let Some(problem) = quantised(map) {
        return Err(problem);
    }
    if map.get("model_type").and_then(Value::as_str) != Some("mistral3") {
        return Ok(map);
    }
    let text = map.get("text_config").and_then(Value::as_object);
    let text =
        text.ok_or("says model_type \"mistral3\" without a `text_config`: copy it again from the model's source")?;
    quantised(text).map_or(Ok(text), Err)
}

/// Keys of a Ministral 3 that change nothing that is computed here.
const WITHOUT_EFFECT: [&str; 12] = [
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "chunk_size_feed_forward",
    "dtype",
    "initializer_range",
    "is_encoder_decoder",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torch_dtype",
    "use_cache",
];

/// The family is young: a key that is not known may be a rule that is not computed.
fn only_known(map: &Map<String, Value>) -> Parsed<()> {
    const COMPUTED: [&str; 17] = [
        "bos_token_id",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pad_token_id",
        "rms_norm_eps",
        "rope_parameters",
        "sliding_window",
        "tie_word_embeddings",
        "vocab_size",
    ];
    const OF_ROPE: [&str; 14] = [
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "factor",
        "llama_4_scaling_beta",
        "max_position_embeddings",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rope_theta",
        "rope_type",
        "truncate",
        "type",
    ];
    let others = ["rope_scaling", "rope_theta", "transformers_version"];
    let known = |key: &str| COMPUTED.contains(&key) || WITHOUT_EFFECT.contains(&key) || others.contains(&key);
    let unknown = map.iter().find(|(key, value)| !known(key) && !value.is_null()).map(|(key, _)| key.clone());
    let in_rope = ["rope_parameters", "rope_scaling"].iter().find_map(|name| {
        let rope = map.get(*name)?.as_object()?;
        rope.keys().find(|key| !OF_ROPE.contains(&key.as_str())).map(|key| format!("{name}.{key}"))
    });
    match unknown.or(in_rope) {
        None => Ok(()),
        Some(key) => Err(format!(
            "has `{key}`, which is not known of a ministral3 and may change what it computes: remove it if it does not"
        )),
    }
}

/// Qwen2 has a window only if it says so, and only from block `max_window_layers` on; newer files list the kind
/// of every layer as well.
fn qwen2_window(keys: &Keys<'_>, layers: i64) -> Parsed<Option<SlidingWindow>> {
    let size = if keys.switch("use_sliding_window", false)? { keys.optional_integer("sliding_window")? } else { None };
    let mut first_layer = keys.optional_integer("max_window_layers")?.unwrap_or(28);
    if let Some(kinds) = keys.0.get("layer_types").and_then(Value::as_array) {
        let sliding = |kind: &Value| kind.as_str() == Some("sliding_attention");
        let known = kinds.iter().all(|k| sliding(k) || k.as_str() == Some("full_attention"));
        let first = kinds.iter().position(sliding).unwrap_or(kinds.len());
        if !known || kinds.len() as i64 != layers || !kinds[first..].iter().all(sliding) {
            return Err("has `layer_types` that are not full_attention followed by sliding_attention, which is not \
                 computed here: use a model whose last layers alone have a window"
                .to_owned());
        }
        first_layer = first as i64;
        if first_layer < layers && size.is_none() {
            return Err("has `layer_types` with sliding_attention but no window: set use_sliding_window and \
                 sliding_window"
                .to_owned());
        }
    }
    // A window that no layer has is none.
    Ok(size.filter(|_| first_layer < layers).map(|size| SlidingWindow { size, first_layer }))
}

struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn integer(&self, name: &str) -> Parsed<i64> {
        self.optional_integer(name)?.ok_or_else(|| format!("lacks `{name}`: copy it again from the model's source"))
    }

    fn optional_integer(&self, name: &str) -> Parsed<Option<i64>> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => v.as_i64().map(Some).ok_or_else(|| format!("has `{name}` that is no whole number: correct it")),
        }
    }

    fn number(&self, name: &str, preset: f64) -> Parsed<f64> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(preset),
            Some(v) => v.as_f64().ok_or_else(|| format!("has `{name}` that is no number: correct it")),
        }
    }

    fn switch(&self, name: &str, preset: bool) -> Parsed<bool> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(preset),
            Some(v) => v.as_bool().ok_or_else(|| format!("has `{name}` that is neither true nor false: correct it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::model::config::Norm;

    fn pythia() -> Value {
        json!({
            "model_type": "gpt_neox", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
            "intermediate_size": 8192, "vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25,
            "rotary_emb_base": 10000, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_parallel_residual": true,
            "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 0
        })
    }

    /// As published with Llama-3.2-1B.
    fn llama() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256,
            "max_position_embeddings": 131072, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true,
            "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009]
        })
    }

    /// As published with Qwen2-0.5B.
    fn qwen2() -> Value {
        json!({
            "model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
            "max_position_embeddings": 131072, "max_window_layers": 21, "sliding_window": 131072,
            "use_sliding_window": false, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
            "tie_word_embeddings": true, "bos_token_id": 151643, "eos_token_id": 151643
        })
    }

    fn read(value: &Value) -> ModelConfig {
        let config = ModelConfig::from_json(value).unwrap();
        assert_eq!(ModelConfig::from_json(&config.to_json()).unwrap(), config);
        config
    }

    fn with(mut value: Value, key: &str, field: Value) -> Value {
        value[key] = field;
        value
    }

    #[test]
    fn synonyms_mean_the_same() {
        let old = read(&pythia());
        assert_eq!(old.rotary_dims, 32);
        let mut new = pythia();
        let map = new.as_object_mut().unwrap();
        map.remove("rotary_pct");
        map.remove("rotary_emb_base");
        map.insert(
            "rope_parameters".into(),
            json!({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}),
        );
        assert_eq!(read(&new), old);

        let old = read(&llama());
        let mut new = llama();
        let map = new.as_object_mut().unwrap();
        let mut rope = map.remove("rope_scaling").unwrap();
        rope["rope_theta"] = map.remove("rope_theta").unwrap();
        map.insert("rope_parameters".into(), rope);
        assert_eq!(read(&new), old);
    }

    #[test]
    fn every_rotated_part_survives_its_factor() {
        for head_dim in 1..=256 {
            for rotary_dims in (0..=head_dim).step_by(2) {
                let mut config = read(&pythia());
                (config.head_dim, config.rotary_dims) = (head_dim, rotary_dims);
                assert_eq!(ModelConfig::rotary_part(head_dim, config.rotary_factor()), rotary_dims, "{head_dim}");
            }
        }
    }

    #[test]
    fn each_family_has_its_own_rules() {
        let llama = read(&llama());
        assert_eq!((llama.num_key_value_heads, llama.head_dim, llama.rotary_dims), (8, 64, 64));
        assert_eq!((llama.norm, llama.norm_eps, llama.gated_mlp), (Norm::Rms, 1e-5, true));
        assert_eq!(llama.more_eos_token_ids, [128_008, 128_009]);
        assert!(!llama.qkv_bias && !llama.mlp_bias && !llama.parallel_residual && llama.tie_word_embeddings);

        let qwen2_config = read(&qwen2());
        assert!(qwen2_config.qkv_bias && !qwen2_config.attention_out_bias);
        assert_eq!((qwen2_config.sliding_window, qwen2_config.head_dim), (None, 64));
        let windowed = with(with(qwen2(), "use_sliding_window", json!(true)), "sliding_window", json!(4096));
        let windowed = read(&windowed);
        assert_eq!(windowed.sliding_window, Some(SlidingWindow { size: 4096, first_layer: 21 }));
        assert_eq!((windowed.window_of(20), windowed.window_of(21)), (None, Some(4096)));

        let mistral = with(with(super::tests::llama(), "model_type", json!("mistral")), "rope_scaling", json!(null));
        assert_eq!(read(&mistral).sliding_window, None);
        assert_eq!(read(&with(mistral.clone(), "sliding_window", json!(null))).sliding_window, None);
        let window = read(&with(mistral, "sliding_window", json!(4096)));
        assert_eq!((window.window_of(0), window.window_of(15)), (Some(4096), Some(4096)));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (config, key, value, named) in [
            (pythia(), "model_type", json!("mamba"), "mamba"),
            (pythia(), "hidden_act", json!("swish9"), "swish9"),
            (pythia(), "rope_scaling", json!({"type": "yarn", "factor": 2.0}), "yarn"),
            (pythia(), "rope_parameters", json!({"rope_type": "llama3"}), "llama3"),
            (pythia(), "num_attention_heads", json!(15), "15 heads"),
            (pythia(), "hidden_size", json!("wide"), "hidden_size"),
            (pythia(), "vocab_size", json!(-1), "vocab_size"),
            (pythia(), "rotary_pct", json!(0.01), "rotary_pct"),
            (llama(), "rope_scaling", json!({"rope_type": "longrope"}), "longrope"),
            (llama(), "rope_scaling", json!("yarn"), "yarn"),
            (llama(), "rope_scaling", json!({"factor": 2.0}), "of no type"),
            (llama(), "rope_parameters", json!({"rope_type": "linear", "factor": 2.0}), "linear"),
            (llama(), "rope_parameters", json!({"full_attention": {"rope_theta": 1e6}}), "full_attention"),
            (llama(), "rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), "low_freq_factor"),
            (llama(), "num_key_value_heads", json!(7), "num_key_value_heads 7"),
            (llama(), "partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
            (llama(), "head_dim", json!(7), "of 7 dimensions"),
            (llama(), "hidden_act", json!("relu2"), "relu2"),
            (qwen2(), "layer_types", json!(["chunked_attention"]), "layer_types"),
        ] {
            let error = ModelConfig::from_json(&with(config, key, value)).unwrap_err();
            assert!(error.contains(named) && error.contains(':'), "{key}: {error}");
        }
    }

    /// The text tower as published with Ministral-3-3B.
    fn ministral() -> Value {
        json!({
            "model_type": "mistral3",
            "vision_config": {"model_type": "pixtral", "hidden_size": 1024},
            "text_config": {
                "model_type": "ministral3", "hidden_size": 3072, "num_hidden_layers": 26, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9216, "vocab_size": 131072,
                "max_position_embeddings": 262144, "hidden_act": "silu", "rms_norm_eps": 1e-5, "use_cache": true,
                "sliding_window": null, "tie_word_embeddings": true, "attention_dropout": 0.0,
                "rope_parameters": {"type": "yarn", "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0,
                    "original_max_position_embeddings": 16384, "max_position_embeddings": 262144, "beta_fast": 32.0,
                    "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
            }
        })
    }

    #[test]
    fn the_text_tower_of_a_vision_model_is_read() {
        let config = read(&ministral());
        assert_eq!((config.family, config.hidden_size, config.query_width()), (Family::Ministral3, 3072, 4096));
        let Some(RopeScaling::Yarn(yarn)) = config.rope_scaling else { panic!("{config:?}") };
        assert_eq!((yarn.factor, yarn.attention_factor, config.rope_theta), (16.0, 1.0, 1e6));
        assert_eq!(config.query_scaling.map(|q| q.original_max_position_embeddings), Some(16384));
        assert!(config.tie_word_embeddings && !config.qkv_bias && config.sliding_window.is_none());

        let changed = |edit: &dyn Fn(&mut Value)| {
            let mut value = ministral();
            edit(&mut value);
            ModelConfig::from_json(&value)
        };
        let one = changed(&|v| v["text_config"]["rope_parameters"]["mscale_all_dim"] = json!(null)).unwrap();
        let Some(RopeScaling::Yarn(yarn)) = one.rope_scaling else { panic!() };
        assert!((yarn.attention_factor - (0.1 * 16f64.ln() + 1.0)).abs() < 1e-12);
        for (edit, named) in [
            (&(|v: &mut Value| v["text_config"]["layer_rules"] = json!(1)) as &dyn Fn(&mut Value), "layer_rules"),
            (&|v| v["text_config"]["rope_parameters"]["gamma"] = json!(1), "rope_parameters.gamma"),
            (&|v| v["text_config"]["rope_parameters"]["factor"] = json!(null), "factor"),
            (&|v| v["text_config"]["rope_parameters"]["beta_fast"] = json!(0.5), "beta_fast"),
            (&|v| v["quantization_config"] = json!({"quant_method": "fp8"}), "fp8"),
            (&|v| v["text_config"] = json!(null), "text_config"),
        ] {
            let error = changed(edit).unwrap_err();
            assert!(error.contains(named) && error.contains(':'), "{error}");
        }
    }
}
