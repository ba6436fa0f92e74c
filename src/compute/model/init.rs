//! Random first weights, as GPT-NeoX begins Pythia (`small_init`, `wang_init`): matrices that read the
//! residual stream and embeddings are normal with std sqrt(2 / (5 h)), those that write to it with
//! 2 / (L sqrt(h)); biases 0, norm weights 1.
//!
//! Every row of every tensor has its own stream of (seed, tensor, row), so the numbers do not depend on
//! libtorch or on the order of filling.

use super::layout::Role;
use super::{Model, as_f32_mut};
use crate::compute::rng::{Purpose, Rng};

/// Fills `model` (unconstrained) with random weights.
pub(super) fn randomise(model: &mut Model, seed: u32) {
    let h = model.config().hidden_size as f64;
    let small = (2.0 / (5.0 * h)).sqrt();
    let wang = 2.0 / (model.config().num_hidden_layers as f64 * h.sqrt());
    let layout = model.layout.clone();
    let flats = model.flats_mut();
    for (number, (g, span)) in layout.spans().enumerate() {
        let values = &mut as_f32_mut(&mut flats[g])[span.range()];
        let std = match span.role {
            Role::Bias => continue,
            Role::NormWeight => {
                values.fill(1.0);
                continue;
            }
            Role::Embedding | Role::Input => small,
            Role::Output => wang,
        };
        let columns = span.shape.last().map_or(1, |&n| n as usize);
        for (row, values) in values.chunks_mut(columns).enumerate() {
            // A model has far fewer than 2^32 tensors.
            let mut rng = Rng::new(seed, Purpose::Init, number as u32, row as u64);
            values.iter_mut().for_each(|v| *v = (std * rng.normal()) as f32);
        }
    }
}
