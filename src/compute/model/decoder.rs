//! The GPT-NeoX forward pass, as functions of (parameter view, input): [`embed`], [`Decoder::block`],
//! [`Decoder::head`]. They hold no weights and do not know who trains them.
//!
//! Shapes: B rows, T positions, h width, n heads, d width of a head, V vocabulary. Statistics of norms,
//! softmax and losses are fp32.

use tch::{Kind, Reduction, Tensor};

use super::config::{Activation, Family, ModelConfig};
use super::constraint::Constraint;
use super::layout::GroupLayout;
use crate::compute::{ComputeError, Result};

/// Weight and bias of a layer norm, `[h]` each.
#[derive(Debug)]
pub struct Norm {
    weight: Tensor,
    bias: Tensor,
}

/// A linear map: weight `[out, in]`, bias `[out]`.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }
}

/// Effective weights of one block.
#[derive(Debug)]
pub struct BlockView {
    attention_norm: Norm,
    mlp_norm: Norm,
    query_key_value: Linear,
    attention_out: Linear,
    up: Linear,
    down: Linear,
}

/// Effective weights of the head; `out` is absent when the embedding serves.
#[derive(Debug)]
pub struct HeadView {
    norm: Norm,
    out: Option<Tensor>,
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

/// Parts of a flat group as effective weights, by span. With a leaf that wants gradients they are
/// differentiable, and the group's gradient arrives as one flat tensor.
///
/// `signs[i]` belongs to span i of [`Constraint::SignedSoftplus`].
pub fn effective_parts(
    flat: &Tensor,
    layout: &GroupLayout,
    signs: &std::collections::BTreeMap<usize, Tensor>,
) -> Result<Vec<Tensor>> {
    let parts = layout.parts();
    let sizes: Vec<i64> = parts.iter().map(|p| p.0).collect();
    let pieces = flat.f_split_with_sizes(&sizes, 0)?;
    let spans = pieces.iter().zip(&parts).filter(|(_, part)| part.1).map(|(piece, _)| piece).zip(&layout.spans);
    spans
        .enumerate()
        .map(|(i, (piece, span))| {
            let v = piece.f_view(&span.shape[..])?;
            Ok(match span.constraint {
                Constraint::Dense | Constraint::FreeFromAbs => v,
                Constraint::Softplus => v.f_softplus()?,
                Constraint::SignedSoftplus => {
                    let sign = signs.get(&i).ok_or_else(|| {
                        ComputeError::Failed(format!("`{}` has no signs: make the model again", span.name))
                    })?;
                    v.f_softplus()?.f_mul(sign)?
                }
            })
        })
        .collect()
}

impl Views {
    /// From the parts of every group, in layout order.
    ///
    /// # Errors
    /// Groups or parts are missing: the layout is not this configuration's.
    pub fn assemble(config: &ModelConfig, groups: Vec<Vec<Tensor>>) -> Result<Self> {
        let mut groups = groups.into_iter().map(|g| Parts(g.into_iter()));
        let mut next = || groups.next().ok_or_else(too_few);
        let embed = next()?.tensor()?;
        let mut blocks = Vec::new();
        for _ in 0..config.num_hidden_layers {
            let mut parts = next()?;
            blocks.push(BlockView {
                attention_norm: parts.norm()?,
                mlp_norm: parts.norm()?,
                query_key_value: parts.linear(config.qkv_bias)?,
                attention_out: parts.linear(config.attention_out_bias)?,
                up: parts.linear(config.mlp_bias)?,
                down: parts.linear(config.mlp_bias)?,
            });
        }
        let mut parts = next()?;
        let norm = parts.norm()?;
        let out = if config.tie_word_embeddings { None } else { Some(parts.tensor()?) };
        Ok(Self { embed, blocks, head: HeadView { norm, out } })
    }
}

struct Parts(std::vec::IntoIter<Tensor>);

impl Parts {
    fn tensor(&mut self) -> Result<Tensor> {
        self.0.next().ok_or_else(too_few)
    }

    fn norm(&mut self) -> Result<Norm> {
        Ok(Norm { weight: self.tensor()?, bias: self.tensor()? })
    }

    fn linear(&mut self, bias: bool) -> Result<Linear> {
        Ok(Linear { weight: self.tensor()?, bias: if bias { Some(self.tensor()?) } else { None } })
    }
}

pub(super) fn too_few() -> ComputeError {
    ComputeError::Failed("the parameters do not fill the decoder: load the model again".to_owned())
}

/// Rows of the embedding `[V, h]` for ids `[B, T]`: `[B, T, h]`.
///
/// # Errors
/// An id is not in `0..V`.
pub fn embed(weight: &Tensor, ids_bt: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_embedding(weight, ids_bt, -1, false, false)?)
}

/// NLL of every position, fp32 `[B, T]`, zero where the target is -100.
///
/// # Errors
/// Shapes do not fit, or a target is neither -100 nor in `0..V`.
pub fn nll(logits_btv: &Tensor, targets_bt: &Tensor) -> Result<Tensor> {
    let size = logits_btv.size();
    let rows = logits_btv.f_reshape([-1, size[size.len() - 1]])?.f_to_kind(Kind::Float)?;
    let loss = rows.f_cross_entropy_loss::<Tensor>(&targets_bt.f_reshape([-1])?, None, Reduction::None, -100, 0.0)?;
    Ok(loss.f_view(&targets_bt.size()[..])?)
}

/// A decoder without weights: its configuration and the table of rotations.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    /// `[max_position_embeddings, rotary dims]`.
    cos: Tensor,
    sin: Tensor,
}

impl Decoder {
    /// Computes the rotations, in fp32 as `transformers` does.
    ///
    /// # Errors
    /// The family is not computed.
    pub fn new(config: &ModelConfig) -> Result<Self> {
        if config.family != Family::GptNeox {
            return Err(ComputeError::Config(format!(
                "a model of family `{}` is not computed: use a `gpt_neox` model",
                config.family.word()
            )));
        }
        let dims = config.rotary_dims;
        let half = dims / 2;
        let mut cos = Vec::new();
        let mut sin = Vec::new();
        // inv_freq and the angle are rounded to fp32 before cosine and sine: parity with the reference.
        let inverse: Vec<f32> =
            (0..half).map(|k| 1.0 / (config.rope_theta as f32).powf((2 * k) as f32 / dims as f32)).collect();
        for t in 0..config.max_position_embeddings {
            for k in 0..dims {
                let angle = t as f32 * inverse[(k % half) as usize];
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        let shape = [config.max_position_embeddings, dims];
        Ok(Self {
            config: config.clone(),
            cos: Tensor::f_from_slice(&cos)?.f_view(shape)?,
            sin: Tensor::f_from_slice(&sin)?.f_view(shape)?,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// One block: `[B, T, h]` to `[B, T, h]`, causal attention.
    ///
    /// # Errors
    /// T is longer than the model's context.
    pub fn block(&self, view: &BlockView, x_bth: &Tensor) -> Result<Tensor> {
        let attention = self.attention(view, &self.norm(&view.attention_norm, x_bth)?)?;
        if self.config.parallel_residual {
            let mlp = self.mlp(view, &self.norm(&view.mlp_norm, x_bth)?)?;
            // The order of the reference: mlp + attention + x.
            Ok(mlp.f_add(&attention)?.f_add(x_bth)?)
        } else {
            let middle = attention.f_add(x_bth)?;
            let mlp = self.mlp(view, &self.norm(&view.mlp_norm, &middle)?)?;
            Ok(mlp.f_add(&middle)?)
        }
    }

    /// Last norm and output matrix: `[B, T, h]` to logits `[B, T, V]`.
    pub fn head(&self, views: &Views, x_bth: &Tensor) -> Result<Tensor> {
        let x = self.norm(&views.head.norm, x_bth)?;
        let out = views.head.out.as_ref().unwrap_or(&views.embed);
        Ok(x.f_linear::<Tensor>(out, None)?)
    }

    /// All blocks and the head: `[B, T, h]` to logits `[B, T, V]`.
    ///
    /// # Errors
    /// T is longer than the model's context.
    pub fn logits(&self, views: &Views, x_bth: &Tensor) -> Result<Tensor> {
        let mut x = x_bth.shallow_clone();
        for view in &views.blocks {
            x = self.block(view, &x)?;
        }
        self.head(views, &x)
    }

    fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        let eps = self.config.norm_eps;
        Ok(x.f_layer_norm([self.config.hidden_size], Some(&norm.weight), Some(&norm.bias), eps, false)?)
    }

    fn attention(&self, view: &BlockView, x_bth: &Tensor) -> Result<Tensor> {
        let (b, t) = (x_bth.size()[0], x_bth.size()[1]);
        if t > self.config.max_position_embeddings {
            return Err(ComputeError::Config(format!(
                "an input of {t} tokens is longer than the model's context of {}: shorten it",
                self.config.max_position_embeddings
            )));
        }
        let (n, d, r) = (self.config.num_attention_heads, self.config.head_dim, self.config.rotary_dims);
        // Per head q, k and v lie side by side: [B, T, n, 3d] -> three of [B, n, T, d].
        let qkv_bntd = view.query_key_value.apply(x_bth)?.f_view([b, t, n, 3 * d])?.f_transpose(1, 2)?;
        let mut qkv = qkv_bntd.f_chunk(3, -1)?.into_iter();
        let (Some(q), Some(k), Some(v)) = (qkv.next(), qkv.next(), qkv.next()) else { return Err(too_few()) };
        let (q, k) = if r == 0 { (q, k) } else { (self.rotate(&q, t, r, d)?, self.rotate(&k, t, r, d)?) };
        let out_bntd = Tensor::f_scaled_dot_product_attention::<Tensor>(&q, &k, &v, None, 0.0, true, None, false)?;
        let out_bth = out_bntd.f_transpose(1, 2)?.f_reshape([b, t, n * d])?;
        view.attention_out.apply(&out_bth)
    }

    /// Rotates the first r of d dimensions, as two halves: (a, b) -> (a cos - b sin, b cos + a sin).
    fn rotate(&self, x_bntd: &Tensor, t: i64, r: i64, d: i64) -> Result<Tensor> {
        let (cos, sin) = (self.cos.f_narrow(0, 0, t)?, self.sin.f_narrow(0, 0, t)?);
        let turned = x_bntd.f_narrow(-1, 0, r)?;
        let (a, b) = (turned.f_narrow(-1, 0, r / 2)?, turned.f_narrow(-1, r / 2, r / 2)?);
        let crossed = Tensor::f_cat(&[b.f_neg()?, a], -1)?;
        let rotated = turned.f_mul(&cos)?.f_add(&crossed.f_mul(&sin)?)?;
        if r == d {
            return Ok(rotated);
        }
        Ok(Tensor::f_cat(&[rotated, x_bntd.f_narrow(-1, r, d - r)?], -1)?)
    }

    fn mlp(&self, view: &BlockView, x_bth: &Tensor) -> Result<Tensor> {
        let up = view.up.apply(x_bth)?;
        let active = match self.config.hidden_act {
            Activation::Gelu => up.f_gelu("none")?,
            Activation::GeluTanh => up.f_gelu("tanh")?,
            Activation::Relu => up.f_relu()?,
            Activation::Softplus => up.f_softplus()?,
            Activation::Silu => up.f_silu()?,
        };
        view.down.apply(&active)
    }
}
