//! The angular speed of every rotated pair of dimensions, with Llama 3's and YaRN's stretching of long wavelengths,
//! and the growth of queries with their position.

use super::{Llama3Scaling, ModelConfig, RopeScaling, YarnScaling};

impl ModelConfig {
    /// Radians a position of pair k, `0 <= k < rotary_dims / 2`: theta^(-2k / rotary_dims), stretched where the
    /// configuration says so. Every step is rounded to fp32, as in `transformers`.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let dims = self.rotary_dims as f32;
        let plain = (0..self.rotary_dims / 2).map(|k| 1.0 / (self.rope_theta as f32).powf((2 * k) as f32 / dims));
        match self.rope_scaling {
            None => plain.collect(),
            Some(RopeScaling::Llama3(scaling)) => plain.map(|f| stretched(f, scaling)).collect(),
            Some(RopeScaling::Yarn(scaling)) => self.yarn(scaling),
        }
    }

    /// Factor of cosines and sines.
    pub fn rotation_factor(&self) -> f32 {
        match self.rope_scaling {
            Some(RopeScaling::Yarn(scaling)) => scaling.attention_factor as f32,
            _ => 1.0,
        }
    }

    /// Factor of the query at `position`, rounded to fp32 as in `transformers`.
    pub fn query_factor(&self, position: i64) -> f32 {
        self.query_scaling.map_or(1.0, |q| {
            let contexts = (position as f32 / q.original_max_position_embeddings as f32).floor();
            1.0 + q.beta as f32 * (1.0 + contexts).ln()
        })
    }

    /// `_compute_yarn_parameters` of `transformers`.
    fn yarn(&self, s: YarnScaling) -> Vec<f32> {
        let (dims, pairs) = (self.rotary_dims as f64, self.rotary_dims / 2);
        // The pair that turns `turns` times within the original context.
        let pair = |turns: f64| {
            let context = s.original_max_position_embeddings as f64;
            dims * (context / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.rope_theta.ln())
        };
        let (low, high) = (pair(s.beta_fast), pair(s.beta_slow));
        let (low, high) = if s.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dims - 1.0));
        let high = if low == high { high + 0.001 } else { high };
        let (low, width) = (low as f32, (high - low) as f32);
        let factor = s.factor as f32;
        (0..pairs)
            .map(|k| {
                let power = (self.rope_theta as f32).powf((2 * k) as f32 / self.rotary_dims as f32);
                let kept = 1.0 - ((k as f32 - low) / width).clamp(0.0, 1.0);
                1.0 / (factor * power) * (1.0 - kept) + 1.0 / power * kept
            })
            .collect()
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
        config.rope_scaling = Some(RopeScaling::Llama3(Llama3Scaling {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        }));
        let scaled = config.inverse_frequencies();
        assert_eq!(plain.len(), 32);
        assert_eq!((plain[0], scaled[0]), (1.0, 1.0));
        assert_eq!(scaled[31], plain[31] / 32.0);
        let between = scaled.iter().zip(&plain).filter(|(s, p)| *s < p && **s > *p / 32.0).count();
        assert!((1..8).contains(&between), "{between}");
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_stretches_slow_ones() {
        let sizes = Sizes {
            hidden_size: 3072,
            num_hidden_layers: 1,
            num_attention_heads: 24,
            intermediate_size: 8,
            vocab_size: 8,
            max_position_embeddings: 262_144,
        };
        let mut config = ModelConfig::new(Family::Ministral3, sizes);
        config.rope_theta = 1e6;
        let plain = config.inverse_frequencies();
        config.rope_scaling = Some(RopeScaling::Yarn(YarnScaling {
            factor: 16.0,
            original_max_position_embeddings: 16_384,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
            truncate: true,
        }));
        let scaled = config.inverse_frequencies();
        assert_eq!((plain.len(), scaled[0]), (64, plain[0]));
        assert!((scaled[63] / plain[63] * 16.0 - 1.0).abs() < 1e-6);
        // Pair k turns 16384 theta^(-2k/128) / 2 pi times: 32 times at k = 20.4, once at 36.4.
        assert_eq!(scaled.iter().zip(&plain).filter(|(s, p)| s == p).count(), 21);
        let stretched = scaled.iter().zip(&plain).filter(|(s, p)| (*s / *p * 16.0 - 1.0).abs() < 1e-6).count();
        assert_eq!(stretched, 64 - 37);
    }

    #[test]
    fn queries_grow_by_whole_contexts() {
        let sizes = Sizes {
            hidden_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            intermediate_size: 8,
            vocab_size: 8,
            max_position_embeddings: 64,
        };
        let mut config = ModelConfig::new(Family::Ministral3, sizes);
        assert_eq!(config.query_factor(1 << 20), 1.0);
        config.query_scaling = Some(super::super::QueryScaling { beta: 0.1, original_max_position_embeddings: 16 });
        assert_eq!((config.query_factor(0), config.query_factor(15)), (1.0, 1.0));
        assert!((config.query_factor(16) - 1.069_314_7).abs() < 1e-6);
        assert_eq!(config.query_factor(16), config.query_factor(31));
        assert!((config.query_factor(48) - (1.0 + 0.1 * 4f32.ln())).abs() < 1e-6);
    }
}
