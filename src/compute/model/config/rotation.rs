//! The angular speed of every rotated pair of dimensions, with Llama 3's stretching of long wavelengths.

use super::{Llama3Scaling, ModelConfig};

impl ModelConfig {
    /// Radians a position of pair k, `0 <= k < rotary_dims / 2`: theta^(-2k / rotary_dims), stretched where the
    /// configuration says so. Every step is rounded to fp32, as in `transformers`.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let dims = self.rotary_dims as f32;
        let plain = (0..self.rotary_dims / 2).map(|k| 1.0 / (self.rope_theta as f32).powf((2 * k) as f32 / dims));
        match self.rope_scaling {
            None => plain.collect(),
            Some(scaling) => plain.map(|f| stretched(f, scaling)).collect(),
        }
    }
}

/// `_compute_llama3_parameters` of `transformers`: wavelengths below the high-frequency limit stay, those above
/// the low-frequency limit are multiplied by the factor, those between are blended.
fn stretched(frequency: f32, scaling: Llama3Scaling) -> f32 {
    let old_context = scaling.original_max_position_embeddings as f32;
    let (factor, low, high) = (scaling.factor as f32, scaling.low_freq_factor as f32, scaling.high_freq_factor as f32);
    let wavelength = std::f32::consts::TAU / frequency;
    if wavelength > old_context / low {
        frequency / factor
    } else if wavelength < old_context / high {
        frequency
    } else {
        let smooth = (old_context / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Family, Sizes};
    use super::*;

    #[test]
    fn long_waves_are_stretched_and_short_ones_are_not() {
        let sizes = Sizes {
            hidden_size: 2048,
            num_hidden_layers: 1,
            num_attention_heads: 32,
            intermediate_size: 8,
            vocab_size: 8,
            max_position_embeddings: 131_072,
        };
        let mut config = ModelConfig::new(Family::Llama, sizes);
        config.rope_theta = 5e5;
        let plain = config.inverse_frequencies();
        config.rope_scaling = Some(Llama3Scaling {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        });
        let scaled = config.inverse_frequencies();
        assert_eq!(plain.len(), 32);
        assert_eq!((plain[0], scaled[0]), (1.0, 1.0));
        assert_eq!(scaled[31], plain[31] / 32.0);
        let between = scaled.iter().zip(&plain).filter(|(s, p)| *s < p && **s > *p / 32.0).count();
        assert!((1..8).contains(&between), "{between}");
    }
}
