//! The forward pass of the families, as functions of (parameter view, input): [`embed`],
//! [`Decoder::block`], [`Decoder::head`]. They hold no weights and do not know who trains them.
//!
//! Shapes: B rows, T positions, h width, n heads, d width of a head, V vocabulary. Weights and activations have
//! one type, fp32 or bf16; statistics of norms, rotations, softmax and losses are fp32.

use tch::{Kind, Reduction, Tensor};

use super::config::{Activation, Family, ModelConfig, Norm};
use super::places::{Places, Sight};
use super::view::{BlockView, NormView, Views};
use crate::compute::Result;

/// Takes keys and values of new tokens, gives those of their whole rows: `[B, key-value heads, T, d]` each.
pub(super) type KeptKeys<'a> = dyn FnMut(Tensor, Tensor) -> Result<(Tensor, Tensor)> + 'a;

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

/// Positions whose logits exist together.
const NLL_ROWS: i64 = 512;

/// A decoder without weights: its configuration.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: ModelConfig,
}

impl Decoder {
    /// The decoder of a configuration.
    pub fn new(config: &ModelConfig) -> Self {
        Self { config: config.clone() }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// As [`Self::block`] without dropout, of tokens that are new to their rows: `kept` is told their keys and values
    /// `[B, key-value heads, T, d]` and gives back those of the whole rows; `at` says which of them are seen.
    ///
    /// # Errors
    /// Shapes or types do not fit.
    pub(super) fn block_beside(
        &self,
        layer: usize,
        view: &BlockView,
        x_bth: &Tensor,
        at: &Places,
        kept: &mut KeptKeys<'_>,
    ) -> Result<Tensor> {
        self.whole_block(layer, view, x_bth, at, 0.0, Some(kept))
    }

    /// Block `layer`: `[B, T, h]` to `[B, T, h]`. `dropout`: probability with which attention weights and what
    /// attention and feed-forward layer add are set to zero, by libtorch's generator as it stands.
    ///
    /// # Errors
    /// Shapes or types do not fit.
    pub fn block(&self, layer: usize, view: &BlockView, x_bth: &Tensor, at: &Places, dropout: f64) -> Result<Tensor> {
        self.whole_block(layer, view, x_bth, at, dropout, None)
    }

    fn whole_block(
        &self,
        layer: usize,
        view: &BlockView,
        x_bth: &Tensor,
        at: &Places,
        dropout: f64,
        kept: Option<&mut KeptKeys<'_>>,
    ) -> Result<Tensor> {
        let normed = self.norm(&view.attention_norm, x_bth)?;
        let attention = dropped(self.attention(layer, view, &normed, at, dropout, kept)?, dropout)?;
        if self.config.parallel_residual {
            let mlp = dropped(self.mlp(view, &self.norm(&view.mlp_norm, x_bth)?)?, dropout)?;
            // The order of the reference: mlp + attention + x.
            Ok(mlp.f_add(&attention)?.f_add(x_bth)?)
        } else {
            let middle = attention.f_add(x_bth)?;
            let mlp = dropped(self.mlp(view, &self.norm(&view.mlp_norm, &middle)?)?, dropout)?;
            Ok(mlp.f_add(&middle)?)
        }
    }

    /// Last norm and output matrix: `[B, T, h]` to logits `[B, T, V]`.
    ///
    /// # Errors
    /// Shapes or types do not fit.
    pub fn head(&self, views: &Views, x_bth: &Tensor) -> Result<Tensor> {
        let x = self.norm(&views.head.norm, x_bth)?;
        Ok(x.f_linear::<Tensor>(views.out(), None)?)
    }

    /// All blocks and the head under a causal mask: `[B, T, h]` to logits `[B, T, V]`.
    ///
    /// # Errors
    /// T is longer than the model's context.
    pub fn logits(&self, views: &Views, x_bth: &Tensor) -> Result<Tensor> {
        self.head(views, &self.stream(views, x_bth)?)
    }

    /// NLL of every position of input embeddings `[B, T, h]` under the causal mask, fp32 `[B, T]`, 0 where the target is
    /// -100. Logits exist for [`NLL_ROWS`] labelled positions at a time.
    ///
    /// # Errors
    /// Shapes do not fit, or a target is neither -100 nor in `0..V`.
    pub fn nll(&self, views: &Views, x_bth: &Tensor, targets_bt: &Tensor) -> Result<Tensor> {
        let x = self.stream(views, x_bth)?;
        let x_nh = x.f_reshape([-1, self.config.hidden_size])?;
        let targets_n = targets_bt.f_reshape([-1])?;
        let labelled = targets_n.f_ne(-100)?.f_nonzero()?.f_squeeze_dim(1)?;
        let mut parts = Vec::new();
        for places in labelled.f_split(NLL_ROWS, 0)? {
            let logits_mv = self.head(views, &x_nh.f_index_select(0, &places)?)?;
            parts.push(nll(&logits_mv, &targets_n.f_index_select(0, &places)?)?);
        }
        let all = Tensor::f_zeros([targets_n.size()[0]], (Kind::Float, x.device()))?;
        let all = if parts.is_empty() { all } else { all.f_index_copy(0, &labelled, &Tensor::f_cat(&parts, 0)?)? };
        Ok(all.f_view(&targets_bt.size()[..])?)
    }

    /// The stream behind the last block, of input embeddings `[B, T, h]` under the causal mask.
    fn stream(&self, views: &Views, x_bth: &Tensor) -> Result<Tensor> {
        // A length is not negative.
        let places = Places::causal(&self.config, x_bth.size()[1] as usize, x_bth.device())?;
        let mut x = x_bth.shallow_clone();
        for (layer, view) in views.blocks.iter().enumerate() {
            x = self.block(layer, view, &x, &places, 0.0)?;
        }
        Ok(x)
    }

    /// The norm of the configuration over the last dimension.
    pub(super) fn norm(&self, norm: &NormView, x: &Tensor) -> Result<Tensor> {
        let eps = self.config.norm_eps;
        match self.config.norm {
            Norm::Layer => {
                let width = [self.config.hidden_size];
                Ok(x.f_layer_norm(width, Some(&norm.weight), norm.bias.as_ref(), eps, false)?)
            }
            Norm::Rms => {
                // The order of the reference: the weight comes after the rounding to the input's type.
                let wide = x.f_to_kind(Kind::Float)?;
                let square = wide.f_square()?.f_mean_dim(&[-1i64][..], true, Kind::Float)?;
                let scaled = wide.f_mul(&square.f_add_scalar(eps)?.f_rsqrt()?)?;
                Ok(scaled.f_to_kind(x.kind())?.f_mul(&norm.weight)?)
            }
        }
    }

    fn attention(
        &self,
        layer: usize,
        view: &BlockView,
        x_bth: &Tensor,
        at: &Places,
        dropout: f64,
        kept: Option<&mut KeptKeys<'_>>,
    ) -> Result<Tensor> {
        let (b, t) = (x_bth.size()[0], x_bth.size()[1]);
        let c = &self.config;
        let (n, kv, d) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        let qkv = view.query_key_value.apply(x_bth)?;
        let (q, k, v) = if c.family == Family::GptNeox {
            // Per head q, k and v lie side by side; q and k are rotated together.
            let all = qkv.f_view([b, t, n, 3, d])?;
            let qk = self.rotate(&all.f_narrow(3, 0, 2)?, at)?;
            (qk.f_select(3, 0)?, qk.f_select(3, 1)?, all.f_select(3, 2)?)
        } else {
            let all = qkv.f_view([b, t, n + 2 * kv, d])?;
            let qk = self.rotate(&all.f_narrow(2, 0, n + kv)?, at)?;
            (qk.f_narrow(2, 0, n)?, qk.f_narrow(2, n, kv)?, all.f_narrow(2, n + kv, kv)?)
        };
        let q = match &at.query_factors {
            // The order of the reference: the factor is rounded to the type of the query.
            Some(factors) => {
                let [rows, t] = [factors.size()[0], factors.size()[1]];
                q.f_mul(&factors.f_view([rows, t, 1, 1])?.f_to_kind(q.kind())?)?
            }
            None => q,
        };
        let (q, k, v) = (q.f_transpose(1, 2)?, k.f_transpose(1, 2)?, v.f_transpose(1, 2)?);
        let (k, v) = match kept {
            Some(kept) => kept(k, v)?,
            None => (k, v),
        };
        let (mask, past) = match at.taken_by(layer) {
            Sight::All => (None, false),
            Sight::Past => (None, true),
            Sight::Some(seen) => (Some(seen), false),
        };
        let out_bntd = Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, dropout, past, None, n != kv)?;
        let out_bth = out_bntd.f_transpose(1, 2)?.f_reshape([b, t, n * d])?;
        view.attention_out.apply(&out_bth)
    }

    /// Rotates the first r of d dimensions, as two halves: (a, b) -> (a cos - b sin, b cos + a sin). `x` has the
    /// shape `[B, T, .., d]`; the products are fp32.
    fn rotate(&self, x: &Tensor, at: &Places) -> Result<Tensor> {
        let Some((cos, sin)) = &at.rotation else { return Ok(x.shallow_clone()) };
        let (r, d) = (self.config.rotary_dims, self.config.head_dim);
        let size = x.size();
        let mut shape = vec![1; size.len()];
        (shape[0], shape[1], shape[size.len() - 1]) = (cos.size()[0], cos.size()[1], r / 2);
        let (cos, sin) = (cos.f_view(&shape[..])?, sin.f_view(&shape[..])?);
        let (a, b) = (x.f_narrow(-1, 0, r / 2)?, x.f_narrow(-1, r / 2, r / 2)?);
        let first = a.f_mul(&cos)?.f_sub(&b.f_mul(&sin)?)?.f_to_kind(x.kind())?;
        let second = b.f_mul(&cos)?.f_add(&a.f_mul(&sin)?)?.f_to_kind(x.kind())?;
        if r == d {
            return Ok(Tensor::f_cat(&[first, second], -1)?);
        }
        Ok(Tensor::f_cat(&[first, second, x.f_narrow(-1, r, d - r)?], -1)?)
    }

    fn mlp(&self, view: &BlockView, x_bth: &Tensor) -> Result<Tensor> {
        let up = view.up.apply(x_bth)?;
        let active = if self.config.gated_mlp {
            let f = self.config.intermediate_size;
            self.activation(&up.f_narrow(-1, 0, f)?)?.f_mul(&up.f_narrow(-1, f, f)?)?
        } else {
            self.activation(&up)?
        };
        view.down.apply(&active)
    }

    fn activation(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self.config.hidden_act {
            Activation::Gelu => x.f_gelu("none")?,
            Activation::GeluTanh => x.f_gelu("tanh")?,
            Activation::Relu => x.f_relu()?,
            Activation::Softplus => x.f_softplus()?,
            Activation::Silu => x.f_silu()?,
        })
    }
}

/// `x` with elements set to zero with probability `p`, the others scaled by 1 / (1 - p).
pub(super) fn dropped(x: Tensor, p: f64) -> Result<Tensor> {
    if p > 0.0 { Ok(x.f_dropout(p, true)?) } else { Ok(x) }
}
