//! What a decoder is: the numbers and switches of a `config.json` in the Hugging Face layout.
//!
//! Promises that an architecture, activation or position scaling that the decoder does not compute is
//! refused by name, never approximated. It does not hold weights.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::compute::{ComputeError, Result};

/// The element-wise function between the two matrices of a feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x Phi(x), by the error function: what `hidden_act = "gelu"` means.
    Gelu,
    /// The approximation by tanh that GPT-NeoX trains with: `gelu_new`, `gelu_fast`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// max(x, 0): monotone.
    Relu,
    /// ln(1 + e^x): monotone.
    Softplus,
}

impl Activation {
    /// By its word in `config.json` or in a study.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "gelu" => Some(Self::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            "softplus" => Some(Self::Softplus),
            _ => None,
        }
    }

    /// Its word in `config.json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_new",
            Self::Relu => "relu",
            Self::Softplus => "softplus",
        }
    }
}

/// A GPT-NeoX decoder. Fields are named as in `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Width h of the residual stream.
    pub hidden_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// Rows V of the embedding.
    pub vocab_size: i64,
    /// Longest input, tokens.
    pub max_position_embeddings: i64,
    /// Part of each head that is rotated by position, 0 to 1.
    pub rotary_pct: f64,
    /// Base of the rotation's wavelengths.
    pub rotary_emb_base: f64,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f64,
    /// x + attn(ln1 x) + mlp(ln2 x) if true; else the second norm sees the first sum.
    pub use_parallel_residual: bool,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the attention's linear maps have biases.
    pub attention_bias: bool,
    /// Id that starts a text.
    pub bos_token_id: Option<i64>,
    /// Id that ends a text.
    pub eos_token_id: Option<i64>,
    /// Id that fills short rows.
    pub pad_token_id: Option<i64>,
}

impl ModelConfig {
    /// Width of one head.
    pub fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }

    /// Rotated dimensions of each head.
    pub fn rotary_dims(&self) -> i64 {
        // As Python's int(): towards zero.
        (self.head_dim() as f64 * self.rotary_pct) as i64
    }

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
    pub fn from_json(value: &Value) -> std::result::Result<Self, String> {
        let map = value.as_object().ok_or("is no JSON object: copy it again from the model's source")?;
        let family = map.get("model_type").and_then(Value::as_str).unwrap_or("");
        if family != "gpt_neox" {
            return Err(format!("says model_type {family:?}, which is not computed here: use a `gpt_neox` model"));
        }
        let keys = Keys(map);
        let rope = map.get("rope_parameters").and_then(Value::as_object);
        let scaling = map.get("rope_scaling").and_then(Value::as_object).or(rope);
        if let Some(scaling) = scaling {
            let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
            if let Some(kind) = kind.filter(|k| *k != "default") {
                return Err(format!(
                    "asks for rope_scaling {kind:?}, which is not computed here: use a model without it"
                ));
            }
        }
        let rotary = |names: [&str; 3], preset: f64| -> std::result::Result<f64, String> {
            for name in names {
                if let Some(v) = rope.and_then(|r| r.get(name)).or_else(|| map.get(name)).filter(|v| !v.is_null()) {
                    return v.as_f64().ok_or_else(|| format!("has `{name}` that is no number: correct it"));
                }
            }
            Ok(preset)
        };
        let act = map.get("hidden_act").and_then(Value::as_str).unwrap_or("gelu");
        let hidden_act = Activation::parse(act).ok_or_else(|| {
            format!("asks for hidden_act {act:?}, which is not computed here: known are gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, softplus")
        })?;
        let config = Self {
            hidden_size: keys.integer("hidden_size")?,
            num_hidden_layers: keys.integer("num_hidden_layers")?,
            num_attention_heads: keys.integer("num_attention_heads")?,
            intermediate_size: keys.integer("intermediate_size")?,
            vocab_size: keys.integer("vocab_size")?,
            max_position_embeddings: keys.integer("max_position_embeddings")?,
            rotary_pct: rotary(["partial_rotary_factor", "rotary_pct", "rotary_pct"], 0.25)?,
            rotary_emb_base: rotary(["rope_theta", "rotary_emb_base", "rope_theta"], 10_000.0)?,
            hidden_act,
            layer_norm_eps: keys.number("layer_norm_eps", 1e-5)?,
            use_parallel_residual: keys.switch("use_parallel_residual", true)?,
            tie_word_embeddings: keys.switch("tie_word_embeddings", false)?,
            attention_bias: keys.switch("attention_bias", true)?,
            bos_token_id: map.get("bos_token_id").and_then(Value::as_i64),
            eos_token_id: map.get("eos_token_id").and_then(Value::as_i64),
            pad_token_id: map.get("pad_token_id").and_then(Value::as_i64),
        };
        config.check()?;
        Ok(config)
    }

    /// What no single field can tell.
    ///
    /// # Errors
    /// The rest of a sentence: which fields do not fit each other.
    pub fn check(&self) -> std::result::Result<(), String> {
        let positive = [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (name, value) in positive {
            if !(1..=1 << 24).contains(&value) {
                return Err(format!("has {name} = {value}: it must lie between 1 and {}", 1 << 24));
            }
        }
        if self.hidden_size % self.num_attention_heads != 0 {
            return Err(format!(
                "has hidden_size {} that {} heads do not divide: change one of them",
                self.hidden_size, self.num_attention_heads
            ));
        }
        if !(0.0..=1.0).contains(&self.rotary_pct) || self.rotary_dims() % 2 != 0 {
            return Err(format!(
                "rotates {} of {} dimensions of a head (rotary_pct {}): it must be an even number",
                self.rotary_dims(),
                self.head_dim(),
                self.rotary_pct
            ));
        }
        if !(self.rotary_emb_base > 0.0 && self.layer_norm_eps > 0.0) {
            return Err("has a rotary_emb_base or layer_norm_eps that is not positive: correct it".to_owned());
        }
        Ok(())
    }

    /// The content of `config.json`, as `transformers` reads it.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["GPTNeoXForCausalLM"],
            "model_type": "gpt_neox",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "rotary_pct": self.rotary_pct,
            "partial_rotary_factor": self.rotary_pct,
            "rotary_emb_base": self.rotary_emb_base,
            "rope_theta": self.rotary_emb_base,
            "hidden_act": self.hidden_act.word(),
            "layer_norm_eps": self.layer_norm_eps,
            "use_parallel_residual": self.use_parallel_residual,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
            "torch_dtype": "float32",
        })
    }
}

struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn integer(&self, name: &str) -> std::result::Result<i64, String> {
        match self.0.get(name) {
            Some(v) => v.as_i64().ok_or_else(|| format!("has `{name}` that is no whole number: correct it")),
            None => Err(format!("lacks `{name}`: copy it again from the model's source")),
        }
    }

    fn number(&self, name: &str, preset: f64) -> std::result::Result<f64, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(preset),
            Some(v) => v.as_f64().ok_or_else(|| format!("has `{name}` that is no number: correct it")),
        }
    }

    fn switch(&self, name: &str, preset: bool) -> std::result::Result<bool, String> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(preset),
            Some(v) => v.as_bool().ok_or_else(|| format!("has `{name}` that is neither true nor false: correct it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pythia() -> Value {
        json!({
            "model_type": "gpt_neox", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
            "intermediate_size": 8192, "vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25,
            "rotary_emb_base": 10000, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_parallel_residual": true,
            "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 0
        })
    }

    #[test]
    fn synonyms_mean_the_same() {
        let old = ModelConfig::from_json(&pythia()).unwrap();
        assert_eq!(old.rotary_dims(), 32);
        let mut new = pythia();
        let map = new.as_object_mut().unwrap();
        map.remove("rotary_pct");
        map.remove("rotary_emb_base");
        map.insert(
            "rope_parameters".into(),
            json!({"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}),
        );
        assert_eq!(ModelConfig::from_json(&new).unwrap(), old);
        assert_eq!(ModelConfig::from_json(&old.to_json()).unwrap(), old);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (key, value, named) in [
            ("model_type", json!("mamba"), "mamba"),
            ("hidden_act", json!("swish9"), "swish9"),
            ("rope_scaling", json!({"type": "yarn", "factor": 2.0}), "yarn"),
            ("rope_parameters", json!({"rope_type": "llama3"}), "llama3"),
            ("num_attention_heads", json!(15), "15 heads"),
            ("hidden_size", json!("wide"), "hidden_size"),
            ("vocab_size", json!(-1), "vocab_size"),
            ("rotary_pct", json!(0.01), "rotary_pct"),
        ] {
            let mut config = pythia();
            config[key] = value;
            let error = ModelConfig::from_json(&config).unwrap_err();
            assert!(error.contains(named), "{key}: {error}");
        }
    }
}
