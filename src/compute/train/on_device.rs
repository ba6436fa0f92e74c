//! The passes over a shard that lies on a GPU, by libtorch's operations. Each of them computes an element from the
//! elements at its place, so a shard gives the bits of the whole, however many elements it has. A library's own
//! sum would not: how it adds depends on the shape. Adafactor's means are such sums: every rank computes them of whole
//! matrices, so the shapes are the same, and the record of a run on GPUs says that bits may differ.

use tch::{Kind, Tensor};

use super::adafactor::{Adafactor, CLIP, EPS};
use super::adamw::{Pass, Step};
use crate::compute::Result;
use crate::compute::model::{CHUNK, GroupLayout, matrix};

/// Elements that are worked on at once: what is computed on the way takes little memory beside the shard.
const SLICE: usize = 1 << 24;

/// Sum of squares of each chunk of `values`, in f64, whose length is a multiple of [`CHUNK`]. The halves of a chunk
/// are added to each other until one number is left.
///
/// # Errors
/// libtorch refuses.
pub fn chunk_sums(values: &Tensor) -> Result<Vec<f64>> {
    let mut sums = Vec::with_capacity(values.numel() / CHUNK);
    for (first, len) in slices(values.numel()) {
        let mut squares = values.f_narrow(0, first, len)?.f_to_kind(Kind::Double)?;
        squares = squares.f_square_()?.f_view([-1, CHUNK as i64])?;
        let mut width = CHUNK as i64 / 2;
        while width > 0 {
            squares = squares.f_narrow(1, 0, width)?.f_add(&squares.f_narrow(1, width, width)?)?;
            width /= 2;
        }
        sums.extend(Vec::<f64>::try_from(squares.f_view([-1])?.f_to(tch::Device::Cpu)?)?);
    }
    Ok(sums)
}

/// One pass of AdamW over a range of a flat group: the formulas of [`super::adamw`].
///
/// # Errors
/// libtorch refuses.
pub fn update(weights: &Tensor, gradients: &Tensor, m: &Tensor, v: &Tensor, pass: Pass) -> Result<()> {
    let Pass { factor, one_minus1, beta2, one_minus2, eps, keep, size, root } = pass;
    for (first, len) in slices(weights.numel()) {
        let part = |t: &Tensor| t.f_narrow(0, first, len);
        let (mut w, mut m, mut v) = (part(weights)?, part(m)?, part(v)?);
        let g = part(gradients)?.f_mul_scalar(f64::from(factor))?;
        let _ = m.f_add_(&g.f_sub(&m)?.f_mul_scalar_(f64::from(one_minus1))?)?;
        let squares = g.f_mul_scalar(f64::from(one_minus2))?.f_mul_(&g)?;
        let _ = v.f_mul_scalar_(f64::from(beta2))?.f_add_(&squares)?;
        let mut below = v.f_sqrt()?;
        let _ = below.f_div_scalar_(f64::from(root))?.f_add_scalar_(f64::from(eps))?;
        let step = m.f_div(&below)?.f_mul_scalar_(f64::from(size))?;
        let _ = w.f_mul_scalar_(f64::from(keep))?.f_sub_(&step)?;
    }
    Ok(())
}

/// An update of Adafactor of a whole group: the formulas of [`super::adafactor`].
///
/// # Errors
/// libtorch refuses.
pub fn adafactor(
    optimizer: &Adafactor,
    group: &GroupLayout,
    weights: &Tensor,
    gradients: &Tensor,
    moments: &Tensor,
    step: Step,
) -> Result<()> {
    let mut kept = 0;
    for span in &group.spans {
        let pass = optimizer.pass(span, step);
        let part = |t: &Tensor| t.f_narrow(0, span.offset as i64, span.len as i64)?.f_view(&span.shape[..]);
        let (mut w, g) = (part(weights)?, part(gradients)?.f_mul_scalar(f64::from(pass.factor))?);
        let squares = g.f_square()?.f_add_scalar(f64::from(EPS))?;
        let mut take = |len: usize| {
            kept += len as i64;
            moments.f_narrow(0, kept - len as i64, len as i64)
        };
        let follow = |mut moment: Tensor, now: Tensor| -> Result<Tensor> {
            let _ =
                moment.f_mul_scalar_(f64::from(pass.beta2))?.f_add_(&now.f_mul_scalar(f64::from(pass.one_minus2))?)?;
            Ok(moment)
        };
        let mut u = match matrix(&span.shape) {
            Some([rows, columns]) => {
                let mean = |axis: i64| squares.f_mean_dim(&[axis][..], false, Kind::Float);
                let (row, column) = (follow(take(rows)?, mean(1)?)?, follow(take(columns)?, mean(0)?)?);
                let row = row.f_div(&row.f_mean(Kind::Float)?)?.f_rsqrt()?;
                row.f_unsqueeze(1)?.f_mul(&column.f_rsqrt()?.f_unsqueeze(0)?)?.f_mul(&g)?
            }
            None => follow(take(span.len)?, squares)?.f_rsqrt()?.f_mul(&g)?,
        };
        let rms = u.f_square()?.f_mean(Kind::Float)?.f_sqrt()?.f_div_scalar(CLIP)?.f_clamp_min(1.0)?;
        let _ = u.f_div_(&rms)?.f_mul_scalar_(pass.lr)?;
        let _ = w.f_mul_scalar_(f64::from(pass.keep))?.f_sub_(&u)?;
    }
    Ok(())
}

/// First element and length of the slices of `elements`; all but the last are whole chunks.
fn slices(elements: usize) -> impl Iterator<Item = (i64, i64)> {
    (0..elements).step_by(SLICE).map(move |first| (first as i64, SLICE.min(elements - first) as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::train::norm;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 31 + seed * 97) as f32).sin() * 10f32.powi((i % 5) as i32 - 3)).collect()
    }

    #[test]
    fn sums_are_those_of_the_slices_and_of_any_cut() {
        let n = SLICE + 3 * CHUNK;
        let flat = values(n, 1);
        let tensor = Tensor::from_slice(&flat);
        let sums = chunk_sums(&tensor).unwrap();
        assert_eq!(sums.len(), n / CHUNK);
        for (a, b) in sums.iter().zip(norm::chunk_sums(&flat)) {
            assert!((a / b - 1.0).abs() < 1e-14, "{a} {b}");
        }
        let cut = (5 * CHUNK) as i64;
        let both: Vec<f64> = [tensor.narrow(0, 0, cut), tensor.narrow(0, cut, n as i64 - cut)]
            .iter()
            .flat_map(|part| chunk_sums(part).unwrap())
            .collect();
        assert!(both.iter().zip(&sums).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert!(!chunk_sums(&Tensor::from_slice(&[f32::NAN; CHUNK])).unwrap()[0].is_finite());
    }

    /// Needs a GPU.
    #[test]
    fn on_cuda_losses_gradients_and_updates_are_those_of_the_cpu() {
        use tch::Device;

        use crate::compute::gpu;
        use crate::compute::model::{Accumulate, Batch, Family, GrainAt, Model, ModelConfig, NoHooks, Sizes};
        use crate::compute::train::shards::Shards;
        use crate::compute::train::{AdamW, Choice, Decay, EngineName, Master, Optimizer, Trainee};

        if gpu::load().is_err() {
            eprintln!("skipped: there is no GPU");
            return;
        }
        let sizes = Sizes {
            hidden_size: 64,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            intermediate_size: 128,
            vocab_size: 67,
            max_position_embeddings: 32,
        };
        let optimizers = [
            Optimizer::AdamW(AdamW::default()),
            Optimizer::Adafactor(Adafactor {
                weight_decay: 0.01,
                decay_constrained: Decay::Excluded,
                lr_constrained_multiplier: 1.0,
                master: Master::Fp32,
            }),
        ];
        let ids: Vec<i32> = (0..64).map(|i| i * 7 % 67).collect();
        let batch = Batch::causal(2, 32, ids.clone(), ids.iter().map(|i| i * 3 % 67).collect());
        for (family, optimizer) in Family::ALL.into_iter().flat_map(|f| optimizers.iter().map(move |o| (f, o))) {
            let model = Model::random(&ModelConfig::new(family, sizes), 3).unwrap();
            let ends = [Device::Cpu, Device::Cuda(0)].map(|device| {
                let choice = Choice { engine: EngineName::Libtorch, ..Choice::default() };
                let mut trainee = Trainee::of_model(&model.duplicate().unwrap(), &choice, device).unwrap();
                let mut shards = Shards::new(optimizer, &trainee.layout, &trainee.flats, 0, 1).unwrap();
                let mut gradients: Vec<Tensor> = trainee.flats.iter().map(Tensor::zeros_like).collect();
                let mut seen = Vec::new();
                for update in 1..=3 {
                    let at = GrainAt { seed: 1, step: update, grain: 0 };
                    let how = Accumulate::Assign;
                    let sum = trainee.passes.backward(&batch, at, &mut gradients, how, &mut NoHooks).unwrap();
                    let squares: f64 = gradients.iter().flat_map(|g| shards.chunk_sums(g).unwrap()).sum();
                    seen.extend([sum.nll, squares.sqrt()]);
                    let step = Step { lr: 1e-3, update, gradient_factor: 1.0 / 64.0 };
                    for (g, group) in trainee.layout.groups.iter().enumerate() {
                        shards.update(optimizer, g, group, &trainee.flats[g], &gradients[g], step).unwrap();
                    }
                    trainee.passes.refresh();
                }
                seen
            });
            for (cpu, cuda) in ends[0].iter().zip(&ends[1]) {
                assert!((cpu / cuda - 1.0).abs() < 1e-4, "{family:?}, {optimizer:?}: {cpu} {cuda}");
            }
        }
    }
}
