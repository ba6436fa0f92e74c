//! Signs of trouble in a run: how far a loss or a norm lies from those before it, and how fast the machine could
//! be.

use std::collections::VecDeque;

use tch::Device;

use super::trainee::{Choice, EngineName, Precision};
use crate::compute::kernels::gemm::{Backend, Shape, gflops};
use crate::compute::{ComputeError, Result, gpu};

/// Values that a z-score is taken over.
const WINDOW: usize = 128;

/// Values needed before a z-score says anything.
const ENOUGH: usize = 16;

/// Recent values of a series.
#[derive(Debug, Default)]
pub struct Recent {
    values: VecDeque<f64>,
}

impl Recent {
    /// (value - mean) / standard deviation of the values before it; `None` while there are few, or if they do not
    /// vary. A value that is not finite is not remembered.
    pub fn z_score(&mut self, value: f64) -> Option<f64> {
        let n = self.values.len() as f64;
        let mean = self.values.iter().sum::<f64>() / n;
        let variance = self.values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0);
        let z = (self.values.len() >= ENOUGH && variance > 0.0).then(|| (value - mean) / variance.sqrt());
        if value.is_finite() {
            self.values.push_back(value);
            if self.values.len() > WINDOW {
                self.values.pop_front();
            }
        }
        z
    }
}

/// What this rank's threads could do in fp32 matrix products of this engine, FLOP/s: what MFU is relative to on a
/// CPU; on a GPU, what its maker says. `None` where that is not known. Takes some hundredths of a second.
///
/// # Errors
/// The backend cannot multiply.
pub fn peak(choice: &Choice, device: Device) -> Result<Option<f64>> {
    if device != Device::Cpu {
        return Ok(gpu::peak_flops(&gpu::name(device), choice.precision));
    }
    let backend = match (choice.engine, choice.precision) {
        (_, Precision::Bf16) => return Ok(None),
        (EngineName::Libtorch, _) => Backend::Mkl,
        _ => choice.gemm,
    };
    let shape = Shape { tokens: 512, inputs: 512, outputs: 512 };
    let rates = gflops(&[backend], &[shape], 2).map_err(|e| ComputeError::Config(e.to_string()))?;
    Ok(rates.first().map(|r| r * 1e9 * choice.threads as f64))
}

/// The processors that this process may run on, as `0-3,8`.
pub fn allowed_processors() -> String {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("Cpus_allowed_list:"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_far_from_those_before_it_stands_out() {
        let mut recent = Recent::default();
        for i in 0..ENOUGH {
            assert_eq!(recent.z_score(if i % 2 == 0 { 1.0 } else { 3.0 }), None);
        }
        // Mean 2, standard deviation sqrt(16/15).
        let z = recent.z_score(4.0).unwrap();
        assert!((z - 2.0 / (16.0f64 / 15.0).sqrt()).abs() < 1e-12, "{z}");
        assert!(recent.z_score(f64::NAN).is_some_and(f64::is_nan));
        assert!(recent.z_score(2.0).unwrap().is_finite(), "what is not finite is not remembered");
        let mut flat = Recent::default();
        (0..40).for_each(|_| assert_eq!(flat.z_score(1.0), None));
        for i in 0..500 {
            recent.z_score(f64::from(i));
        }
        assert_eq!(recent.values.len(), WINDOW);
    }
}
