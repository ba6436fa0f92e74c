//! Effective weights: what the forward pass sees of flat groups. A constrained matrix is a function of its
//! stored parameter, and an adapter adds to a matrix; nobody else knows.
//!
//! A group is cut into *runs*: one a parameter, but for those that one product can serve (query, key and value;
//! gate and up), which are one run where they are free and lie without a gap.

use std::collections::BTreeMap;

use tch::Tensor;

use super::config::{ModelConfig, Norm};
use super::constraint::Constraint;
use super::layout::{GroupLayout, Span};
use crate::compute::{ComputeError, Result};

/// Weight and bias of a norm, `[h]` each; a root-mean-square norm has no bias.
#[derive(Debug)]
pub struct NormView {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

/// What an adapter adds to some rows of a linear map: scale B (A x).
#[derive(Debug)]
pub struct LowRank {
    /// First row of the map that it adds to.
    pub(super) first_row: i64,
    /// `[r, in]`.
    pub(super) a: Tensor,
    /// `[rows, r]`.
    pub(super) b: Tensor,
    /// alpha / r.
    pub(super) scale: f64,
}

/// A linear map: weight `[out, in]`, bias `[out]`, adapters.
#[derive(Debug)]
pub struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    pub(super) adapters: Vec<LowRank>,
}

impl Linear {
    /// W x + b, and what adapters add.
    ///
    /// # Errors
    /// Shapes or types do not fit.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.f_linear(&self.weight, self.bias.as_ref())?;
        for adapter in &self.adapters {
            // An adapter may be kept in another type than its base; the product takes the adapter's.
            let low = x.f_to_kind(adapter.a.kind())?.f_linear::<Tensor>(&adapter.a, None)?;
            let more = low.f_linear::<Tensor>(&adapter.b, None)?.f_mul_scalar(adapter.scale)?;
            let mut part = y.f_narrow(-1, adapter.first_row, adapter.b.size()[0])?;
            let _ = part.f_add_(&more.f_to_kind(y.kind())?)?;
        }
        Ok(y)
    }
}

/// Effective weights of one block.
#[derive(Debug)]
pub struct BlockView {
    pub(super) attention_norm: NormView,
    pub(super) mlp_norm: NormView,
    /// GPT-NeoX: per head q, k and v; else all q, all k, all v.
    pub(super) query_key_value: Linear,
    pub(super) attention_out: Linear,
    /// Gate and up if the feed-forward layer is gated.
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// Effective weights of the head; `out` is absent when the embedding serves.
#[derive(Debug)]
pub struct HeadView {
    pub(super) norm: NormView,
    pub(super) out: Option<Tensor>,
}

/// Effective weights of a whole decoder, made from its flat groups.
#[derive(Debug)]
pub struct Views {
    /// `[V, h]`.
    pub embed: Tensor,
    /// By block.
    pub blocks: Vec<BlockView>,
    /// Last norm and output matrix.
    pub head: HeadView,
}

impl Views {
    /// The output matrix `[V, h]`.
    pub fn out(&self) -> &Tensor {
        self.head.out.as_ref().unwrap_or(&self.embed)
    }
}

/// Signs of [`Constraint::SignedSoftplus`] spans of one group, by span.
pub type Signs = BTreeMap<usize, Tensor>;

/// The effective weight of stored parameter `v`, span `i` of its group. Differentiable if `v` is.
///
/// # Errors
/// The span's signs are missing.
pub fn effective(v: &Tensor, i: usize, span: &Span, signs: &Signs) -> Result<Tensor> {
    let v = v.f_view(&span.shape[..])?;
    Ok(match span.constraint {
        Constraint::Dense | Constraint::FreeFromAbs => v,
        Constraint::Softplus => v.f_softplus()?,
        Constraint::SignedSoftplus => {
            let sign = signs
                .get(&i)
                .ok_or_else(|| ComputeError::Failed(format!("`{}` has no signs: make the model again", span.name)))?;
            v.f_softplus()?.f_mul(sign)?
        }
    })
}

/// Spans that lie side by side and are read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First span.
    first: usize,
    /// Spans.
    count: usize,
    /// First element in the group.
    pub(super) offset: usize,
    /// Elements.
    pub(super) len: usize,
}

/// How a group is cut: its runs, and which of them one linear map takes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub(super) runs: Vec<Run>,
    /// Runs of each effective tensor, in the order of the forward pass: more than one are concatenated.
    tensors: Vec<std::ops::Range<usize>>,
}

impl Cut {
    /// The cut of `group`: spans of one linear family that lie side by side become one.
    pub fn of(group: &GroupLayout) -> Self {
        let mut cut = Self { runs: Vec::new(), tensors: Vec::new() };
        let mut i = 0;
        while i < group.spans.len() {
            let same = group.spans[i..].iter().take_while(|s| together(&group.spans[i], s)).count().max(1);
            let first_run = cut.runs.len();
            for (k, span) in group.spans[i..i + same].iter().enumerate() {
                let open = cut.runs[first_run..].last_mut();
                match open.filter(|run| {
                    let last = &group.spans[run.first + run.count - 1];
                    run.offset + run.len == span.offset
                        && last.constraint == Constraint::Dense
                        && span.constraint == Constraint::Dense
                }) {
                    Some(run) => {
                        run.count += 1;
                        run.len += span.len;
                    }
                    None => cut.runs.push(Run { first: i + k, count: 1, offset: span.offset, len: span.len }),
                }
            }
            cut.tensors.push(first_run..cut.runs.len());
            i += same;
        }
        cut
    }

    /// The runs of a flat tensor, as views of it.
    ///
    /// # Errors
    /// It is shorter than the group.
    pub fn pieces(&self, flat: &Tensor) -> Result<Vec<Tensor>> {
        // One node of autograd cuts them all, so that the gradient of a flat leaf arrives flat.
        let mut sizes = Vec::new();
        let mut wanted = Vec::new();
        let mut at = 0;
        for run in &self.runs {
            if run.offset > at {
                sizes.push((run.offset - at) as i64);
            }
            wanted.push(sizes.len());
            sizes.push(run.len as i64);
            at = run.offset + run.len;
        }
        let total = flat.numel();
        if total < at {
            return Err(too_few());
        }
        if total > at {
            sizes.push((total - at) as i64);
        }
        let all = flat.f_split_with_sizes(&sizes, 0)?;
        Ok(wanted.into_iter().map(|i| all[i].shallow_clone()).collect())
    }

    /// Effective tensors from the runs' pieces.
    ///
    /// # Errors
    /// Signs are missing, or a piece has another length.
    pub fn effective(&self, pieces: &[Tensor], group: &GroupLayout, signs: &Signs) -> Result<Vec<Tensor>> {
        let mut tensors = Vec::new();
        for range in &self.tensors {
            let mut parts = Vec::new();
            for (run, piece) in self.runs[range.clone()].iter().zip(&pieces[range.clone()]) {
                let span = &group.spans[run.first];
                if run.count == 1 {
                    parts.push(effective(piece, run.first, span, signs)?);
                } else {
                    let mut shape = span.shape.clone();
                    shape[0] = group.spans[run.first..run.first + run.count].iter().map(|s| s.shape[0]).sum();
                    parts.push(piece.f_view(&shape[..])?);
                }
            }
            tensors.push(if parts.len() == 1 { parts.remove(0) } else { Tensor::f_cat(&parts, 0)? });
        }
        Ok(tensors)
    }
}

/// Whether two parameters of a block are the same part (weight or bias) of maps that read the same input.
fn together(a: &Span, b: &Span) -> bool {
    const MAPS: [&[&str]; 2] =
        [&["self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."], &["mlp.gate_proj.", "mlp.up_proj."]];
    let of = |span: &Span| {
        let number = MAPS.iter().position(|maps| maps.iter().any(|map| span.name.contains(map)))?;
        Some((number, span.shape.len()))
    };
    of(a).is_some() && of(a) == of(b)
}

impl BlockView {
    /// From a block's effective tensors, in the order of its [`Cut`].
    ///
    /// # Errors
    /// There are too few.
    pub fn assemble(config: &ModelConfig, tensors: Vec<Tensor>) -> Result<Self> {
        let mut parts = Parts(tensors.into_iter());
        Ok(Self {
            attention_norm: parts.norm(config.norm)?,
            mlp_norm: parts.norm(config.norm)?,
            query_key_value: parts.linear(config.qkv_bias)?,
            attention_out: parts.linear(config.attention_out_bias)?,
            up: parts.linear(config.mlp_bias)?,
            down: parts.linear(config.mlp_bias)?,
        })
    }
}

impl HeadView {
    /// From the head's effective tensors, in the order of its [`Cut`].
    ///
    /// # Errors
    /// There are too few.
    pub fn assemble(config: &ModelConfig, tensors: Vec<Tensor>) -> Result<Self> {
        let mut parts = Parts(tensors.into_iter());
        let norm = parts.norm(config.norm)?;
        Ok(Self { norm, out: if config.tie_word_embeddings { None } else { Some(parts.tensor()?) } })
    }
}

struct Parts(std::vec::IntoIter<Tensor>);

impl Parts {
    fn tensor(&mut self) -> Result<Tensor> {
        self.0.next().ok_or_else(too_few)
    }

    fn norm(&mut self, kind: Norm) -> Result<NormView> {
        let weight = self.tensor()?;
        Ok(NormView { weight, bias: if kind == Norm::Layer { Some(self.tensor()?) } else { None } })
    }

    fn linear(&mut self, bias: bool) -> Result<Linear> {
        let weight = self.tensor()?;
        Ok(Linear { weight, bias: if bias { Some(self.tensor()?) } else { None }, adapters: Vec::new() })
    }
}

pub(super) fn too_few() -> ComputeError {
    ComputeError::Failed("the parameters do not fill the decoder: load the model again".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Family, Layout, Sizes, Variant};
    use super::*;

    fn runs(family: Family, hidden_size: i64, variant: Option<Variant>) -> Vec<usize> {
        let sizes = Sizes {
            hidden_size,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            intermediate_size: 48,
            vocab_size: 10,
            max_position_embeddings: 8,
        };
        let layout = Layout::new(&ModelConfig::new(family, sizes), variant, 1);
        Cut::of(&layout.groups[1]).runs.iter().map(|r| r.count).collect()
    }

    #[test]
    fn what_one_product_serves_is_one_run() {
        // Two norms, q k v, o, gate up, down.
        assert_eq!(runs(Family::Llama, 32, None), [1, 1, 3, 1, 2, 1]);
        // The biases of q, k and v too.
        assert_eq!(runs(Family::Qwen2, 32, None), [1, 1, 3, 3, 1, 2, 1]);
        // Gaps between them: the matrices have 36 elements, which are no multiple of 16.
        assert_eq!(runs(Family::Llama, 6, None), [1, 1, 1, 1, 1, 1, 2, 1]);
        assert_eq!(runs(Family::GptNeox, 32, Some(Variant::MlpBoth)), [1; 12]);
    }
}
