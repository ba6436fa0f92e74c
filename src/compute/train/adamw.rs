//! AdamW with decoupled decay (Loshchilov and Hutter 2019), one pass over a range of a flat group.
//!
//! The operations and their order are those of `torch.optim.AdamW`; every element is computed by itself, so a
//! shard gives the bits of the whole. Gradients are multiplied by one factor here (1 / tokens and the clip),
//! so that no scaled copy is ever made.

use std::ops::Range;

use crate::compute::kernels::{Isa, for_each_isa};
use crate::compute::model::{GroupLayout, Span};

/// Numbers of the optimizer that do not change between steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; not applied to norms and biases.
    pub weight_decay: f64,
    /// Whether reparametrised weights (V) decay too, which pulls W towards ln 2.
    pub decay_constrained: Decay,
    /// Factor on the learning rate of reparametrised weights.
    pub lr_constrained_multiplier: f64,
}

/// Whether reparametrised weights decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// As every other matrix.
    Applied,
    /// They do not.
    Excluded,
}

impl Default for AdamW {
    /// As GPT-NeoX trains: beta 0.9 and 0.95, eps 1e-8, decay 0.1.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            decay_constrained: Decay::Excluded,
            lr_constrained_multiplier: 1.0,
        }
    }
}

/// One step of one rank.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Learning rate.
    pub lr: f64,
    /// Updates so far, this one included: for the bias correction.
    pub update: u64,
    /// What gradients are multiplied by.
    pub gradient_factor: f32,
}

/// The part of a group that one rank updates: `first` is the group's element at which the slices begin.
#[derive(Debug)]
pub struct Shard<'a> {
    /// First element in the group.
    pub first: usize,
    /// Parameters.
    pub weights: &'a mut [f32],
    /// Summed gradient.
    pub gradients: &'a [f32],
    /// First moments.
    pub m: &'a mut [f32],
    /// Second moments.
    pub v: &'a mut [f32],
}

impl AdamW {
    /// Updates the spans of `group` that lie in `shard`; padding stays as it is.
    pub fn update(&self, group: &GroupLayout, shard: Shard<'_>, step: Step) {
        for (range, pass) in self.passes(group, shard.first..shard.first + shard.weights.len(), step) {
            let (m, v) = (&mut shard.m[range.clone()], &mut shard.v[range.clone()]);
            update_elements(Isa::best(), &mut shard.weights[range.clone()], &shard.gradients[range], m, v, pass);
        }
    }

    /// The spans of `group` that lie in the elements `own` of it, as ranges of those, and what is done to each.
    pub fn passes(
        &self,
        group: &GroupLayout,
        own: Range<usize>,
        step: Step,
    ) -> impl Iterator<Item = (Range<usize>, Pass)> {
        group.spans.iter().filter_map(move |span| {
            let (from, to) = (span.offset.max(own.start), span.range().end.min(own.end));
            (from < to).then(|| (from - own.start..to - own.start, self.pass(span, step)))
        })
    }

    fn pass(&self, span: &Span, step: Step) -> Pass {
        let constrained = (self.decay_constrained, self.lr_constrained_multiplier);
        let (lr, keep) = rate_and_keep(span, step.lr, self.weight_decay, constrained);
        // A count of steps fits an i32.
        let t = i32::try_from(step.update).unwrap_or(i32::MAX);
        let correction1 = 1.0 - self.beta1.powi(t);
        let correction2 = 1.0 - self.beta2.powi(t);
        Pass {
            factor: step.gradient_factor,
            one_minus1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus2: (1.0 - self.beta2) as f32,
            eps: self.eps as f32,
            keep: keep as f32,
            size: (lr / correction1) as f32,
            root: correction2.sqrt() as f32,
        }
    }
}

/// The learning rate of a span, and what decoupled decay leaves of its weights. `constrained` is about reparametrised
/// ones: whether they decay, and the factor on their rate.
pub(super) fn rate_and_keep(span: &Span, lr: f64, weight_decay: f64, constrained: (Decay, f64)) -> (f64, f64) {
    let own_rate = span.constraint.is_reparametrised();
    let lr = if own_rate { lr * constrained.1 } else { lr };
    let decays = span.role.decays() && !(own_rate && constrained.0 == Decay::Excluded);
    (lr, 1.0 - if decays { lr * weight_decay } else { 0.0 })
}

/// Numbers of one pass over a span: g = `factor` * gradient; m += `one_minus1` (g - m);
/// v = `beta2` v + `one_minus2` g g; w = `keep` w - `size` m / (sqrt(v) / `root` + `eps`).
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Pass {
    pub factor: f32,
    pub one_minus1: f32,
    pub beta2: f32,
    pub one_minus2: f32,
    pub eps: f32,
    pub keep: f32,
    pub size: f32,
    pub root: f32,
}

for_each_isa! {
    fn update_elements(weights: &mut [f32], gradients: &[f32], m: &mut [f32], v: &mut [f32], pass: Pass) {
        let Pass { factor, one_minus1, beta2, one_minus2, eps, keep, size, root } = pass;
        // Slices of one length, by index: the compiler drops the bounds checks.
        let n = weights.len();
        let (gradients, m, v) = (&gradients[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            let g = gradients[i] * factor;
            m[i] += one_minus1 * (g - m[i]);
            v[i] = v[i] * beta2 + one_minus2 * g * g;
            weights[i] = weights[i] * keep - size * (m[i] / (v[i].sqrt() / root + eps));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::model::{Constraint, Role};

    fn group(role: Role, constraint: Constraint, len: usize) -> GroupLayout {
        let span = Span { name: "w".into(), shape: vec![len as i64], offset: 0, len, role, constraint };
        GroupLayout { name: "g".into(), spans: vec![span], len }
    }

    fn optimizer() -> AdamW {
        AdamW { lr_constrained_multiplier: 10.0, ..AdamW::default() }
    }

    fn stored(name: &str) -> Vec<f32> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/neox/adamw.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    #[test]
    fn five_steps_are_those_of_pytorch_in_any_shards() {
        let (gradients, weights) = (stored("gradients"), stored("weights"));
        let group = group(Role::Input, Constraint::Dense, 40);
        for cuts in [vec![0, 40], vec![0, 16, 40]] {
            let mut w = weights[..40].to_vec();
            let (mut m, mut v) = (vec![0.0; 40], vec![0.0; 40]);
            for k in 0..5 {
                for cut in cuts.windows(2) {
                    let r = cut[0]..cut[1];
                    // The factor undoes a gradient that is twice as large.
                    let doubled: Vec<f32> = gradients[40 * k..][r.clone()].iter().map(|g| 2.0 * g).collect();
                    let shard = Shard {
                        first: cut[0],
                        weights: &mut w[r.clone()],
                        gradients: &doubled,
                        m: &mut m[r.clone()],
                        v: &mut v[r],
                    };
                    optimizer().update(&group, shard, Step { lr: 0.01, update: k as u64 + 1, gradient_factor: 0.5 });
                }
                for (a, b) in w.iter().zip(&weights[40 * (k + 1)..]) {
                    assert!((a - b).abs() <= 1e-6, "step {k}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn tensors_are_updated_as_slices_are_and_in_any_shards() {
        use crate::compute::model::as_f32;
        use crate::compute::train::on_device;
        use tch::Tensor;

        let (gradients, weights) = (stored("gradients"), stored("weights"));
        let group = group(Role::Input, Constraint::Dense, 40);
        let mut first = None;
        for cuts in [vec![0, 40], vec![0, 16, 40]] {
            let w = Tensor::from_slice(&weights[..40]);
            let (m, v) = (Tensor::zeros_like(&w), Tensor::zeros_like(&w));
            for k in 0..5 {
                let g = Tensor::from_slice(&gradients[40 * k..40 * (k + 1)]) * 2.0;
                let step = Step { lr: 0.01, update: k as u64 + 1, gradient_factor: 0.5 };
                for cut in cuts.windows(2) {
                    let own = |t: &Tensor| t.narrow(0, cut[0] as i64, (cut[1] - cut[0]) as i64);
                    for (range, pass) in optimizer().passes(&group, cut[0]..cut[1], step) {
                        let part = |t: &Tensor| own(t).narrow(0, range.start as i64, range.len() as i64);
                        on_device::update(&part(&w), &part(&g), &part(&m), &part(&v), pass).unwrap();
                    }
                }
                for (a, b) in as_f32(&w).iter().zip(&weights[40 * (k + 1)..]) {
                    assert!((a - b).abs() <= 1e-6, "step {k}: {a} {b}");
                }
            }
            let bits: Vec<u32> = [&w, &m, &v].iter().flat_map(|t| as_f32(t).iter().map(|x| x.to_bits())).collect();
            assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits);
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (gradients, weights) = (stored("gradients"), stored("weights"));
        let pass = Pass {
            factor: 0.7,
            one_minus1: 0.1,
            beta2: 0.95,
            one_minus2: 0.05,
            eps: 1e-8,
            keep: 0.999,
            size: 0.01,
            root: 0.3,
        };
        let mut first = None;
        for isa in Isa::all() {
            let (mut w, mut m, mut v) = (weights[..37].to_vec(), vec![0.1; 37], vec![0.2; 37]);
            update_elements(isa, &mut w, &gradients[..37], &mut m, &mut v, pass);
            let bits: Vec<u32> = [w, m, v].concat().iter().map(|x| x.to_bits()).collect();
            assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{}", isa.name());
        }
    }

    #[test]
    fn groups_have_their_own_rate_and_decay() {
        let step = Step { lr: 0.01, update: 1, gradient_factor: 1.0 };
        let after = |role, constraint, gradient: f32| {
            let (mut w, mut m, mut v) = ([1.0f32], [0.0], [0.0]);
            let shard = Shard { first: 0, weights: &mut w, gradients: &[gradient], m: &mut m, v: &mut v };
            optimizer().update(&group(role, constraint, 1), shard, step);
            w[0]
        };
        // Without gradient only the decay moves: 1 - 0.01 * 0.1.
        assert_eq!(after(Role::Input, Constraint::Dense, 0.0), 0.999);
        assert_eq!(after(Role::Embedding, Constraint::Dense, 0.0), 0.999);
        assert_eq!(after(Role::Bias, Constraint::Dense, 0.0), 1.0);
        assert_eq!(after(Role::NormWeight, Constraint::Dense, 0.0), 1.0);
        assert_eq!(after(Role::Input, Constraint::Softplus, 0.0), 1.0);
        assert_eq!(after(Role::Input, Constraint::FreeFromAbs, 0.0), 0.999);
        // A first step moves by the rate.
        assert!((after(Role::Bias, Constraint::Dense, 3.0) - 0.99).abs() < 1e-6);
        assert!((after(Role::Input, Constraint::Softplus, 3.0) - 0.9).abs() < 1e-6);
    }
}
