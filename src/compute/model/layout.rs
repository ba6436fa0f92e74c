//! Where every parameter lies: named spans in flat groups, one group for the embedding, one a block, one for
//! the head. Pure arithmetic on a configuration; nothing is allocated, so that Pythia-1.4B is counted at once.
//!
//! Spans begin at multiples of 64 bytes, as libtorch's own allocations do (rows of another alignment may be
//! computed by another kernel, and give other bits). A group is padded so that each lane's share of it is a
//! whole number of chunks of [`CHUNK`] elements.

use super::config::{Family, ModelConfig, Norm};
use super::constraint::{Constraint, Variant};

/// Elements whose squares are summed together in the gradient norm; shard boundaries are multiples of it.
pub const CHUNK: usize = 4096;

/// Elements to which a span's start is aligned: 64 bytes of fp32.
const ALIGN: usize = 16;

/// What a parameter does, as far as optimizer and initialisation care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token embedding, or the output matrix.
    Embedding,
    /// Weight of a norm.
    NormWeight,
    /// Any bias.
    Bias,
    /// A matrix that reads the residual stream.
    Input,
    /// A matrix that writes to the residual stream.
    Output,
}

impl Role {
    /// Whether weight decay applies: not to norms and biases.
    pub fn decays(self) -> bool {
        !matches!(self, Self::NormWeight | Self::Bias)
    }
}

/// One parameter in a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Name as in the Hugging Face layout.
    pub name: String,
    /// Shape.
    pub shape: Vec<i64>,
    /// First element in the group.
    pub offset: usize,
    /// Elements.
    pub len: usize,
    /// What it does.
    pub role: Role,
    /// How the effective weight comes from it.
    pub constraint: Constraint,
}

impl Span {
    /// Elements of the group that it covers.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// Rows and columns of a shape, if it is that of a matrix.
pub fn matrix(shape: &[i64]) -> Option<[usize; 2]> {
    match *shape {
        [rows, columns] => Some([usize::try_from(rows).ok()?, usize::try_from(columns).ok()?]),
        _ => None,
    }
}

/// One flat tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupLayout {
    /// `embed`, `block.<i>` or `head`.
    pub name: String,
    /// Its parameters, by offset.
    pub spans: Vec<Span>,
    /// Elements with padding.
    pub len: usize,
}

/// All groups of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// In the order of the forward pass.
    pub groups: Vec<GroupLayout>,
    /// Lanes that the padding is made for.
    pub lanes: usize,
}

impl Layout {
    /// The layout of a decoder, padded for `lanes` lanes. Query, key and value lie side by side, and so do gate
    /// and up: where h is a multiple of 16 there is no gap, and one product may serve them together.
    pub fn new(config: &ModelConfig, variant: Option<Variant>, lanes: usize) -> Self {
        let lanes = lanes.max(1);
        let names = Names::of(config.family);
        let (h, v) = (config.hidden_size, config.vocab_size);
        let mut groups = Vec::new();
        let mut embed = Builder::new("embed", variant);
        embed.add(names.embed, &[v, h], Role::Embedding);
        groups.push(embed.finish(lanes));
        for i in 0..config.num_hidden_layers {
            let mut block = Builder::new(&format!("block.{i}"), variant);
            let prefix = format!("{}.{i}.", names.layers);
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                block.norm(config.norm, &format!("{prefix}{norm}"), h);
            }
            for linears in linears(config) {
                block.linears(&prefix, &linears);
            }
            groups.push(block.finish(lanes));
        }
        let mut head = Builder::new("head", variant);
        head.norm(config.norm, names.last_norm, h);
        if !config.tie_word_embeddings {
            head.add(names.out, &[v, h], Role::Embedding);
        }
        groups.push(head.finish(lanes));
        Self { groups, lanes }
    }

    /// Every span with its group's number.
    pub fn spans(&self) -> impl Iterator<Item = (usize, &Span)> {
        self.groups.iter().enumerate().flat_map(|(g, group)| group.spans.iter().map(move |s| (g, s)))
    }

    /// Parameters, without padding.
    pub fn num_parameters(&self) -> i64 {
        self.spans().map(|(_, s)| s.len as i64).sum()
    }

    /// Parameters of the feed-forward layers, biases included.
    pub fn ffn_parameters(&self) -> i64 {
        self.spans().filter(|(_, s)| s.name.contains(".mlp.")).map(|(_, s)| s.len as i64).sum()
    }

    /// Elements of all groups, with padding.
    pub fn elements(&self) -> usize {
        self.groups.iter().map(|g| g.len).sum()
    }
}

/// What a family calls its parts.
pub(super) struct Names {
    pub(super) embed: &'static str,
    layers: &'static str,
    last_norm: &'static str,
    pub(super) out: &'static str,
    /// What names of a decoder without its head lack.
    pub(super) prefix: &'static str,
}

impl Names {
    pub(super) fn of(family: Family) -> Self {
        match family {
            Family::GptNeox => Self {
                embed: "gpt_neox.embed_in.weight",
                layers: "gpt_neox.layers",
                last_norm: "gpt_neox.final_layer_norm",
                out: "embed_out.weight",
                prefix: "gpt_neox.",
            },
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Ministral3 => Self {
                embed: "model.embed_tokens.weight",
                layers: "model.layers",
                last_norm: "model.norm",
                out: "lm_head.weight",
                prefix: "model.",
            },
        }
    }
}

/// Linear maps that read the same input: their weights lie side by side, then their biases.
struct Linears {
    /// Name and rows of each.
    outs: Vec<(&'static str, i64)>,
    columns: i64,
    role: Role,
    bias: bool,
}

/// The linear maps of a block, in the order of the forward pass.
fn linears(config: &ModelConfig) -> Vec<Linears> {
    let (h, f) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.query_width(), config.key_value_width());
    let neox = config.family == Family::GptNeox;
    let (qkv, out, up, down) = if neox {
        (
            vec![("attention.query_key_value", 3 * h)],
            "attention.dense",
            vec![("mlp.dense_h_to_4h", f)],
            "mlp.dense_4h_to_h",
        )
    } else {
        (
            vec![("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
            "self_attn.o_proj",
            vec![("mlp.gate_proj", f), ("mlp.up_proj", f)],
            "mlp.down_proj",
        )
    };
    vec![
        Linears { outs: qkv, columns: h, role: Role::Input, bias: config.qkv_bias },
        Linears { outs: vec![(out, h)], columns: q, role: Role::Output, bias: config.attention_out_bias },
        Linears { outs: up, columns: h, role: Role::Input, bias: config.mlp_bias },
        Linears { outs: vec![(down, h)], columns: f, role: Role::Output, bias: config.mlp_bias },
    ]
}

pub(super) struct Builder {
    group: GroupLayout,
    variant: Option<Variant>,
}

impl Builder {
    pub(super) fn new(name: &str, variant: Option<Variant>) -> Self {
        Self { group: GroupLayout { name: name.to_owned(), spans: Vec::new(), len: 0 }, variant }
    }

    pub(super) fn add(&mut self, name: &str, shape: &[i64], role: Role) {
        // The configuration was checked: every size lies between 1 and 2^24.
        let len = shape.iter().map(|&n| n as usize).product::<usize>();
        let offset = self.group.len.next_multiple_of(ALIGN);
        let constraint = self.variant.map_or(Constraint::Dense, |v| v.constraint(name));
        self.group.spans.push(Span { name: name.to_owned(), shape: shape.to_vec(), offset, len, role, constraint });
        self.group.len = offset + len;
    }

    fn norm(&mut self, kind: Norm, name: &str, h: i64) {
        self.add(&format!("{name}.weight"), &[h], Role::NormWeight);
        if kind == Norm::Layer {
            self.add(&format!("{name}.bias"), &[h], Role::Bias);
        }
    }

    fn linears(&mut self, prefix: &str, linears: &Linears) {
        for (name, rows) in &linears.outs {
            self.add(&format!("{prefix}{name}.weight"), &[*rows, linears.columns], linears.role);
        }
        for (name, rows) in linears.outs.iter().filter(|_| linears.bias) {
            self.add(&format!("{prefix}{name}.bias"), &[*rows], Role::Bias);
        }
    }

    pub(super) fn finish(mut self, lanes: usize) -> GroupLayout {
        self.group.len = self.group.len.next_multiple_of(lanes * CHUNK);
        self.group
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::model::config::Sizes;

    fn config(h: i64, layers: i64, heads: i64, f: i64, v: i64) -> ModelConfig {
        of_family(Family::GptNeox, h, layers, heads, f, v)
    }

    fn of_family(family: Family, h: i64, layers: i64, heads: i64, f: i64, v: i64) -> ModelConfig {
        let sizes = Sizes {
            hidden_size: h,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            intermediate_size: f,
            vocab_size: v,
            max_position_embeddings: 2048,
        };
        ModelConfig::new(family, sizes)
    }

    #[test]
    fn published_models_have_their_published_sizes() {
        // Llama-3.2-1B, Mistral-7B-v0.1 and Qwen2-0.5B, as their cards count them.
        let mut llama = of_family(Family::Llama, 2048, 16, 32, 8192, 128_256);
        (llama.num_key_value_heads, llama.tie_word_embeddings) = (8, true);
        let mut mistral = of_family(Family::Mistral, 4096, 32, 32, 14_336, 32_000);
        mistral.num_key_value_heads = 8;
        let mut qwen2 = of_family(Family::Qwen2, 896, 24, 14, 4864, 151_936);
        (qwen2.num_key_value_heads, qwen2.tie_word_embeddings) = (2, true);
        for (config, parameters) in [(llama, 1_235_814_400), (mistral, 7_241_732_096), (qwen2, 494_032_768)] {
            let layout = Layout::new(&config, None, 8);
            assert_eq!(layout.num_parameters(), parameters);
            for group in &layout.groups[1..layout.groups.len() - 1] {
                // One product may serve q, k and v, another gate and up.
                for [first, second] in [["q_proj.w", "k_proj.w"], ["k_proj.w", "v_proj.w"], ["gate_proj", "up_proj"]] {
                    let at = |part: &str| group.spans.iter().find(|s| s.name.contains(part)).unwrap().range();
                    assert_eq!(at(first).end, at(second).start, "{first} {second}");
                }
            }
        }
    }

    #[test]
    fn pythia_1_4b_is_counted_without_memory() {
        let layout = Layout::new(&config(2048, 24, 16, 8192, 50304), None, 8);
        assert_eq!(layout.num_parameters(), 1_414_647_808);
        assert_eq!(layout.ffn_parameters(), 805_552_128);
        let matrices: usize =
            layout.spans().filter(|(_, s)| s.name.contains(".mlp.") && s.shape.len() == 2).map(|(_, s)| s.len).sum();
        assert_eq!(matrices, 805_306_368);
    }

    #[test]
    fn spans_are_aligned_disjoint_and_shards_are_whole_chunks() {
        for (h, f, v) in [(64, 256, 257), (20, 33, 7), (6, 10, 3)] {
            for lanes in [1, 2, 4, 8] {
                let layout = Layout::new(&config(h, 3, 2, f, v), Some(Variant::MlpBoth), lanes);
                for group in &layout.groups {
                    let mut end = 0;
                    for span in &group.spans {
                        assert!(span.offset >= end && span.offset % ALIGN == 0, "{}", span.name);
                        end = span.range().end;
                    }
                    assert!(end <= group.len && group.len % (lanes * CHUNK) == 0);
                }
            }
        }
    }

    #[test]
    fn variants_choose_their_matrices() {
        let count = |variant| {
            let layout = Layout::new(&config(64, 3, 4, 256, 100), variant, 1);
            layout.spans().filter(|(_, s)| s.constraint != Constraint::Dense).count()
        };
        assert_eq!(count(None), 0);
        assert_eq!(count(Some(Variant::MlpBoth)), 6);
        assert_eq!(count(Some(Variant::MlpIn)), 3);
        assert_eq!(count(Some(Variant::MlpInAttnOut)), 6);
        assert_eq!(count(Some(Variant::SignFrozen)), 6);
        assert_eq!(count(Some(Variant::AbsInitFree)), 6);
    }
}
