//! The oracle of the tests: the textbook's decoder of all families in f64, by libtorch's autograd, with every
//! mask spelled out. Slow, and written from the definitions, not from the kernels.

use tch::{Device, Kind, Tensor};

use super::super::batch::{Batch, Mask};
use super::super::passes::GrainAt;
use super::super::{Activation, Family, Model, ModelConfig, Norm, as_f32};
use crate::compute::kernels::dropout::{Dropout, Site};
use crate::compute::model::Constraint;

/// Summed NLL, and the gradient of every group.
pub fn gradients(model: &Model, batch: &Batch, dropout: Option<(GrainAt, f64)>) -> (f64, Vec<Tensor>) {
    let leaves: Vec<Tensor> =
        model.flats.iter().map(|f| f.to_kind(Kind::Double).detach().copy().set_requires_grad(true)).collect();
    let total = nll(model, &leaves, batch, dropout);
    let gradients = Tensor::run_backward(&[&total], &leaves, false, false);
    (total.double_value(&[]), gradients)
}

/// Effective weights of a group, in the order of its spans.
fn parts(model: &Model, leaves: &[Tensor], group: usize) -> std::vec::IntoIter<Tensor> {
    let spans = &model.layout.groups[group].spans;
    let parts: Vec<Tensor> = spans
        .iter()
        .enumerate()
        .map(|(i, span)| {
            let v = leaves[group].narrow(0, span.offset as i64, span.len as i64).view(&span.shape[..]);
            match span.constraint {
                Constraint::Dense | Constraint::FreeFromAbs => v,
                Constraint::Softplus => (v.exp() + 1.0).log(),
                Constraint::SignedSoftplus => (v.exp() + 1.0).log() * &model.signs[group][&i],
            }
        })
        .collect();
    parts.into_iter()
}

struct Reference<'a> {
    config: &'a ModelConfig,
    batch: &'a Batch,
    dropout: Option<(GrainAt, f64)>,
}

fn nll(model: &Model, leaves: &[Tensor], batch: &Batch, dropout: Option<(GrainAt, f64)>) -> Tensor {
    let config = model.config();
    let (b, t) = (batch.rows as i64, batch.seq_len as i64);
    let reference = Reference { config, batch, dropout };
    let embed = parts(model, leaves, 0).next().unwrap();
    let ids = Tensor::from_slice(&batch.ids).to_kind(Kind::Int64);
    let mut x = embed.index_select(0, &ids).view([b, t, config.hidden_size]);
    x = reference.drop(x, 0, Site::Embedding);
    for layer in 0..config.num_hidden_layers as usize {
        x = reference.block(&mut parts(model, leaves, layer + 1), layer, &x);
    }
    let mut head = parts(model, leaves, leaves.len() - 1);
    x = reference.norm(&mut head, &x);
    let out = if config.tie_word_embeddings { embed } else { head.next().unwrap() };
    let log_p = x.linear::<Tensor>(&out, None).log_softmax(-1, Kind::Double).view([b * t, config.vocab_size]);
    let targets: Vec<i64> = batch.targets.iter().map(|&t| i64::from(t.max(0))).collect();
    let weights: Vec<f64> = (0..batch.targets.len())
        .map(|i| if batch.targets[i] < 0 { 0.0 } else { batch.loss_weights.as_ref().map_or(1.0, |w| f64::from(w[i])) })
        .collect();
    let chosen = log_p.gather(1, &Tensor::from_slice(&targets).view([-1, 1]), false).view([-1]);
    -(chosen * Tensor::from_slice(&weights)).sum(Kind::Double)
}

impl Reference<'_> {
    fn block(&self, w: &mut std::vec::IntoIter<Tensor>, layer: usize, x: &Tensor) -> Tensor {
        let c = self.config;
        let mut norms = vec![w.next().unwrap()];
        norms.extend((1..if c.norm == Norm::Layer { 4 } else { 2 }).map(|_| w.next().unwrap()));
        let norm2 = norms.split_off(norms.len() / 2);
        let attention = self.attention(w, layer, &self.norm(&mut norms.into_iter(), x));
        let attention = self.drop(attention, layer, Site::Attention);
        let middle = x + &attention;
        let input = if c.parallel_residual { x } else { &middle };
        let mlp = self.mlp(w, &self.norm(&mut norm2.into_iter(), input));
        &middle + self.drop(mlp, layer, Site::Mlp)
    }

    fn norm(&self, w: &mut std::vec::IntoIter<Tensor>, x: &Tensor) -> Tensor {
        let (eps, axis) = (self.config.norm_eps, [-1i64]);
        match self.config.norm {
            Norm::Layer => {
                let x = x - x.mean_dim(&axis[..], true, Kind::Double);
                let variance = (&x * &x).mean_dim(&axis[..], true, Kind::Double);
                x / (variance + eps).sqrt() * w.next().unwrap() + w.next().unwrap()
            }
            Norm::Rms => x / ((x * x).mean_dim(&axis[..], true, Kind::Double) + eps).sqrt() * w.next().unwrap(),
        }
    }

    fn mlp(&self, w: &mut std::vec::IntoIter<Tensor>, x: &Tensor) -> Tensor {
        let c = self.config;
        let ups: Vec<Tensor> = (0..1 + i32::from(c.gated_mlp)).map(|_| w.next().unwrap()).collect();
        let biases: Vec<Option<Tensor>> = ups.iter().map(|_| c.mlp_bias.then(|| w.next().unwrap())).collect();
        let mut ups = ups.iter().zip(&biases).map(|(w, b)| x.linear(w, b.as_ref()));
        let first = ups.next().unwrap();
        let active = match c.hidden_act {
            Activation::Gelu => first.gelu("none"),
            Activation::GeluTanh => first.gelu("tanh"),
            Activation::Relu => first.relu(),
            Activation::Softplus => first.softplus(),
            Activation::Silu => first.silu(),
        };
        let active = match ups.next() {
            Some(up) => active * up,
            None => active,
        };
        let down = w.next().unwrap();
        active.linear(&down, c.mlp_bias.then(|| w.next().unwrap()).as_ref())
    }

    fn attention(&self, w: &mut std::vec::IntoIter<Tensor>, layer: usize, x: &Tensor) -> Tensor {
        let c = self.config;
        let (b, t, n, kv, d) = (
            self.batch.rows as i64,
            self.batch.seq_len as i64,
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
        );
        let by_heads = |y: &Tensor, heads: i64| y.view([b, t, heads, -1]).transpose(1, 2);
        let (q, k, v) = if c.family == Family::GptNeox {
            let matrix = w.next().unwrap();
            let y = by_heads(&x.linear(&matrix, c.qkv_bias.then(|| w.next().unwrap()).as_ref()), n);
            (y.narrow(-1, 0, d), y.narrow(-1, d, d), y.narrow(-1, 2 * d, d))
        } else {
            let maps: Vec<Tensor> = (0..3).map(|_| w.next().unwrap()).collect();
            let biases: Vec<Option<Tensor>> = (0..3).map(|_| c.qkv_bias.then(|| w.next().unwrap())).collect();
            let y = |i: usize, heads| by_heads(&x.linear(&maps[i], biases[i].as_ref()), heads);
            (
                y(0, n),
                y(1, kv).repeat_interleave_self_int(n / kv, 1, None),
                y(2, kv).repeat_interleave_self_int(n / kv, 1, None),
            )
        };
        let scores = self.rotate(&q).matmul(&self.rotate(&k).transpose(-1, -2)) / (d as f64).sqrt();
        let p = scores
            .masked_fill(&self.hidden(layer), f64::NEG_INFINITY)
            .softmax(-1, Kind::Double)
            .nan_to_num(0.0, None, None);
        let p = self.drop_probabilities(p, layer);
        let out = w.next().unwrap();
        let bias = c.attention_out_bias.then(|| w.next().unwrap());
        p.matmul(&v).transpose(1, 2).reshape([b, t, n * d]).linear(&out, bias.as_ref())
    }

    /// True where a query does not see a key: `[B, 1, T, T]`.
    fn hidden(&self, layer: usize) -> Tensor {
        let (b, t) = (self.batch.rows, self.batch.seq_len);
        let mut hidden = Vec::new();
        for row in 0..b {
            let of = |lens: &Option<Vec<i32>>, none: usize| lens.as_ref().map_or(none, |l| l[row] as usize);
            for i in 0..t {
                for j in 0..t {
                    let by_mask = match self.batch.mask {
                        Mask::Causal => j <= i,
                        Mask::Full => true,
                        Mask::Prefix => j <= i || j < of(&self.batch.prompt_lens, 0),
                    };
                    let window = self.config.window_of(layer).is_none_or(|w| i < j + w as usize);
                    let segment = self.batch.segments.as_ref().is_none_or(|s| s[row * t + i] == s[row * t + j]);
                    hidden.push(!(by_mask && window && segment && j < of(&self.batch.key_lens, t)));
                }
            }
        }
        Tensor::from_slice(&hidden).view([b as i64, 1, t as i64, t as i64])
    }

    /// Cosines and sines are those of fp32 angles, as everywhere.
    fn rotate(&self, x: &Tensor) -> Tensor {
        let c = self.config;
        let (b, t, r) = (self.batch.rows, self.batch.seq_len, c.rotary_dims as usize);
        if r == 0 {
            return x.shallow_clone();
        }
        let mut angles = Vec::new();
        for i in 0..b * t {
            let position = self.batch.positions.as_ref().map_or(i % t, |p| p[i] as usize) as f32;
            for k in (0..r / 2).chain(0..r / 2) {
                angles.push(position * (1.0 / (c.rope_theta as f32).powf((2 * k) as f32 / r as f32)));
            }
        }
        let of = |f: fn(f32) -> f32| {
            let values: Vec<f64> = angles.iter().map(|&a| f64::from(f(a))).collect();
            Tensor::from_slice(&values).view([b as i64, 1, t as i64, r as i64])
        };
        let half = r as i64 / 2;
        let turned = x.narrow(-1, 0, 2 * half);
        let crossed = Tensor::cat(&[-x.narrow(-1, half, half), x.narrow(-1, 0, half)], -1);
        let turned = turned * of(f32::cos) + crossed * of(f32::sin);
        Tensor::cat(&[turned, x.narrow(-1, 2 * half, c.head_dim - 2 * half)], -1)
    }

    fn factors(&self, block: usize, site: Site, first: usize, n: usize) -> Vec<f64> {
        let (at, p) = self.dropout.unwrap();
        let mask = Dropout::new(p, at.seed, at.step, at.grain, block, site);
        (first..first + n).map(|e| f64::from(mask.factors(e as u64 / 64)[e % 64])).collect()
    }

    fn drop(&self, x: Tensor, block: usize, site: Site) -> Tensor {
        if self.dropout.is_none() {
            return x;
        }
        let factors = Tensor::from_slice(&self.factors(block, site, 0, x.numel()));
        x * factors.view([self.batch.rows as i64, self.batch.seq_len as i64, -1])
    }

    /// Rows of probabilities begin at multiples of 64 elements.
    fn drop_probabilities(&self, p: Tensor, block: usize) -> Tensor {
        if self.dropout.is_none() {
            return p;
        }
        let t = self.batch.seq_len;
        let rows = p.numel() / t;
        let factors: Vec<f64> = (0..rows)
            .flat_map(|row| self.factors(block, Site::Probabilities, row * t.next_multiple_of(64), t))
            .collect();
        let size = p.size();
        p * Tensor::from_slice(&factors).view(&size[..])
    }
}

/// The elements of a tensor of any kind.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_kind(Kind::Double).to_device(Device::Cpu).reshape([-1]);
    Vec::<f64>::try_from(&flat).unwrap()
}

/// Elements of an fp32 tensor.
pub fn floats(tensor: &Tensor) -> Vec<f32> {
    as_f32(tensor).to_vec()
}
