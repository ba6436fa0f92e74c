//! What a decoder is: the numbers and switches of a `config.json` in the Hugging Face layout, for five
//! families: GPT-NeoX (Pythia), Llama, Mistral, Qwen2 and Ministral 3.
//!
//! Promises that an architecture, activation or position scaling that the decoder does not compute is
//! refused by name, never approximated. It does not hold weights. The reading and writing of the JSON is in
//! [`json`].

mod json;
mod rotation;

/// Whose names, file layout and special rules a decoder follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// GPT-NeoX, of which Pythia is one: layer norms, one fused query-key-value matrix, biases.
    GptNeox,
    /// Llama: RMS norms, gated feed-forward layers, grouped key-value heads.
    Llama,
    /// Llama with a sliding window.
    Mistral,
    /// Llama with biases on query, key and value, often with tied embeddings.
    Qwen2,
    /// Llama with stretched rotations (YaRN), and queries that grow with their position. The text tower of a
    /// vision-language model.
    Ministral3,
}

impl Family {
    /// All, in the order of the enum.
    pub const ALL: [Self; 5] = [Self::GptNeox, Self::Llama, Self::Mistral, Self::Qwen2, Self::Ministral3];

    /// Its `model_type` in `config.json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::GptNeox => "gpt_neox",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Ministral3 => "ministral3",
        }
    }

    /// By its `model_type`.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.word() == word)
    }

    /// Its class in `transformers`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::GptNeox => "GPTNeoXForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Ministral3 => "Ministral3ForCausalLM",
        }
    }
}

/// The element-wise function of a feed-forward layer.
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
    /// x / (1 + e^-x): `silu` or `swish`.
    Silu,
}

impl Activation {
    /// By its word in `config.json` or in a study.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "gelu" => Some(Self::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            "softplus" => Some(Self::Softplus),
            "silu" | "swish" => Some(Self::Silu),
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
            Self::Silu => "silu",
        }
    }
}

/// The normalisation before attention, feed-forward layer and output matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Layer norm: mean and variance, with weight and bias.
    Layer,
    /// Root mean square: rounded to the compute type before it is multiplied by its weight.
    Rms,
}

/// How the wavelengths of the rotation are stretched beyond the context of the first training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// `rope_type = "llama3"`.
    Llama3(Llama3Scaling),
    /// `rope_type = "yarn"`.
    Yarn(YarnScaling),
}

/// The stretching of long wavelengths that Llama 3.1 came with (`rope_type = "llama3"`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Scaling {
    /// By which wavelengths above the low-frequency limit are multiplied.
    pub factor: f64,
    /// `original_max_position_embeddings / low_freq_factor` is the limit above which all is stretched.
    pub low_freq_factor: f64,
    /// `original_max_position_embeddings / high_freq_factor` is the limit below which nothing is.
    pub high_freq_factor: f64,
    /// Context of the model before the stretching, tokens.
    pub original_max_position_embeddings: i64,
}

/// YaRN (Peng et al. 2023): pairs that turn more than `beta_fast` times within the original context stay, those that
/// turn less than `beta_slow` times are stretched, those between are blended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct YarnScaling {
    /// By which wavelengths are multiplied.
    pub factor: f64,
    /// Context of the model before the stretching, tokens.
    pub original_max_position_embeddings: i64,
    /// Turns within the original context above which nothing is stretched.
    pub beta_fast: f64,
    /// Turns within the original context below which all is.
    pub beta_slow: f64,
    /// Factor of cosines and sines.
    pub attention_factor: f64,
    /// Whether the bounds of the blend are rounded to whole pairs.
    pub truncate: bool,
}

/// Queries grow with their position: they are multiplied by 1 + beta ln(1 + floor(position / original context)).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryScaling {
    /// `llama_4_scaling_beta`.
    pub beta: f64,
    /// Positions below it have the factor 1.
    pub original_max_position_embeddings: i64,
}

/// Attention that looks back a limited number of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlidingWindow {
    /// W: the query at position i sees the keys i - W < j <= i.
    pub size: i64,
    /// First block that has the window; those before it see everything.
    pub first_layer: i64,
}

/// The sizes that every decoder must be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Width h of the residual stream.
    pub hidden_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// Rows V of the embedding.
    pub vocab_size: i64,
    /// Longest input, tokens.
    pub max_position_embeddings: i64,
}

/// A decoder. Fields are named as in `config.json` where that has them.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Names, file layout and special rules.
    pub family: Family,
    /// Width h of the residual stream.
    pub hidden_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Query heads n.
    pub num_attention_heads: i64,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: i64,
    /// Width d of one head.
    pub head_dim: i64,
    /// Width of the feed-forward layer.
    pub intermediate_size: i64,
    /// Rows V of the embedding.
    pub vocab_size: i64,
    /// Longest input, tokens.
    pub max_position_embeddings: i64,
    /// Dimensions of each head that are rotated by position, from the first; even.
    pub rotary_dims: i64,
    /// Base of the rotation's wavelengths.
    pub rope_theta: f64,
    /// Stretching of the wavelengths.
    pub rope_scaling: Option<RopeScaling>,
    /// Growth of the queries with their position.
    pub query_scaling: Option<QueryScaling>,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Kind of all norms.
    pub norm: Norm,
    /// Added to the variance or mean square in norms.
    pub norm_eps: f64,
    /// x + attn(ln1 x) + mlp(ln2 x) if true; else the second norm sees the first sum.
    pub parallel_residual: bool,
    /// down(act(gate x) * up x) if true; else down(act(up x)).
    pub gated_mlp: bool,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output matrix has a bias.
    pub attention_out_bias: bool,
    /// Whether the matrices of the feed-forward layer have biases.
    pub mlp_bias: bool,
    /// Window of the attention, if there is one.
    pub sliding_window: Option<SlidingWindow>,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Id that starts a text.
    pub bos_token_id: Option<i64>,
    /// Id that ends a text.
    pub eos_token_id: Option<i64>,
    /// Further ids that end a text, where `eos_token_id` is a list.
    pub more_eos_token_ids: Vec<i64>,
    /// Id that fills short rows.
    pub pad_token_id: Option<i64>,
}

impl ModelConfig {
    /// A decoder of `family` as its configuration in `transformers` begins: every switch at its default, as many
    /// key-value heads as query heads, no special ids. GPT-NeoX rotates a quarter of each head.
    pub fn new(family: Family, sizes: Sizes) -> Self {
        let neox = family == Family::GptNeox;
        // `check` refuses zero heads; until then no division by them.
        let head_dim = sizes.hidden_size / sizes.num_attention_heads.max(1);
        Self {
            family,
            hidden_size: sizes.hidden_size,
            num_hidden_layers: sizes.num_hidden_layers,
            num_attention_heads: sizes.num_attention_heads,
            num_key_value_heads: sizes.num_attention_heads,
            head_dim,
            intermediate_size: sizes.intermediate_size,
            vocab_size: sizes.vocab_size,
            max_position_embeddings: sizes.max_position_embeddings,
            rotary_dims: if neox { head_dim / 4 } else { head_dim },
            rope_theta: 10_000.0,
            rope_scaling: None,
            query_scaling: None,
            hidden_act: if neox { Activation::Gelu } else { Activation::Silu },
            norm: if neox { Norm::Layer } else { Norm::Rms },
            norm_eps: if neox { 1e-5 } else { 1e-6 },
            parallel_residual: neox,
            gated_mlp: !neox,
            qkv_bias: neox || family == Family::Qwen2,
            attention_out_bias: neox,
            mlp_bias: neox,
            sliding_window: None,
            tie_word_embeddings: false,
            bos_token_id: None,
            eos_token_id: None,
            more_eos_token_ids: Vec::new(),
            pad_token_id: None,
        }
    }

    /// Dimensions that a factor (`rotary_pct`, `partial_rotary_factor`) rotates: as Python's int(), towards zero.
    pub fn rotary_part(head_dim: i64, factor: f64) -> i64 {
        (head_dim as f64 * factor) as i64
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> i64 {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together, which is that of the values.
    pub fn key_value_width(&self) -> i64 {
        self.num_key_value_heads * self.head_dim
    }

    /// Window W of block `layer`, if it has one.
    pub fn window_of(&self, layer: usize) -> Option<i64> {
        // At most 2^24 layers.
        self.sliding_window.filter(|w| layer as i64 >= w.first_layer).map(|w| w.size)
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
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (name, value) in positive {
            if !(1..=1 << 24).contains(&value) {
                return Err(format!("has {name} = {value}: it must lie between 1 and {}", 1 << 24));
            }
        }
        if self.family == Family::GptNeox && self.query_width() != self.hidden_size {
            return Err(format!(
                "has hidden_size {} that {} heads do not divide: change one of them",
                self.hidden_size, self.num_attention_heads
            ));
        }
        if self.num_attention_heads % self.num_key_value_heads != 0 {
            return Err(format!(
                "has {} heads that num_key_value_heads {} does not divide: change one of them",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !(0..=self.head_dim).contains(&self.rotary_dims) || self.rotary_dims % 2 != 0 {
            return Err(format!(
                "rotates {} of {} dimensions of a head (rotary_pct or partial_rotary_factor): it must be an even number",
                self.rotary_dims, self.head_dim
            ));
        }
        if !(self.rope_theta > 0.0 && self.norm_eps > 0.0) {
            return Err("has a rope_theta (rotary_emb_base) or norm eps that is not positive: correct it".to_owned());
        }
        if let Some(RopeScaling::Llama3(s)) = self.rope_scaling {
            let sound = s.factor >= 1.0
                && s.low_freq_factor > 0.0
                && s.high_freq_factor > s.low_freq_factor
                && s.original_max_position_embeddings > 0;
            if !sound {
                return Err("has a rope_scaling `llama3` whose factors do not fit: factor must be at least 1, \
                     high_freq_factor above low_freq_factor above 0"
                    .to_owned());
            }
        }
        if let Some(RopeScaling::Yarn(s)) = self.rope_scaling {
            let sound = s.factor >= 1.0
                && s.beta_slow > 0.0
                && s.beta_fast >= s.beta_slow
                && s.attention_factor > 0.0
                && s.original_max_position_embeddings > 0
                && self.rope_theta != 1.0;
            if !sound {
                return Err(
                    "has a rope_scaling `yarn` whose factors do not fit: factor must be at least 1, beta_fast at \
                     least beta_slow above 0, attention_factor above 0"
                        .to_owned(),
                );
            }
        }
        if let Some(q) = self.query_scaling
            && !(q.beta >= 0.0 && q.original_max_position_embeddings > 0)
        {
            return Err("has a llama_4_scaling_beta that is negative or has no original_max_position_embeddings: \
                 correct it"
                .to_owned());
        }
        if let Some(window) = self.sliding_window {
            if window.size < 1 || window.first_layer < 0 {
                return Err(format!(
                    "has sliding_window {} from layer {}: the first must be positive, the second not negative",
                    window.size, window.first_layer
                ));
            }
        }
        Ok(())
    }
}
