//! How fast the backends are at given shapes: the roof that a training step is measured against.

use std::sync::Arc;
use std::time::Instant;

use super::{Backend, Gemm, GemmError, Mat, MatMut};
use crate::compute::kernels::{Accumulate, Pool};

/// A linear layer of a step: `tokens` rows, `inputs` to `outputs` features. It stands for three products: forward
/// `x W^T`, `dy W` and `dy^T x`, the last added to what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub tokens: usize,
    /// Features in.
    pub inputs: usize,
    /// Features out.
    pub outputs: usize,
}

/// GFLOP/s of each of `backends` over all three products of all `shapes`, each product as fast as the best of
/// `rounds` rounds, in which backends take turns. On one thread if libtorch uses one.
///
/// # Errors
/// A backend cannot multiply.
pub fn gflops(backends: &[Backend], shapes: &[Shape], rounds: usize) -> Result<Vec<f64>, GemmError> {
    // A pool of one thread starts none, which cannot fail.
    let pool = Arc::new(Pool::alone());
    let mut gemms: Vec<Gemm> = backends.iter().map(|&backend| Gemm::new(backend, Arc::clone(&pool))).collect();
    let mut seconds = vec![0f64; backends.len()];
    let mut flops = 0f64;
    for &Shape { tokens, inputs, outputs } in shapes {
        let [x, w, dy] = [tokens * inputs, outputs * inputs, tokens * outputs].map(numbers);
        let [mut dx, mut dw, mut y] = [tokens * inputs, outputs * inputs, tokens * outputs].map(|n| vec![0f32; n]);
        let mut best = vec![[f64::INFINITY; 3]; backends.len()];
        for _ in 0..rounds.max(1) {
            for (gemm, best) in gemms.iter_mut().zip(&mut best) {
                let (x, w, dy) =
                    (Mat::rows(&x, tokens, inputs), Mat::rows(&w, outputs, inputs), Mat::rows(&dy, tokens, outputs));
                let y = MatMut::rows(&mut y, tokens, outputs);
                let dx = MatMut::rows(&mut dx, tokens, inputs);
                let dw = MatMut::rows(&mut dw, outputs, inputs);
                let start = Instant::now();
                gemm.run(x, w.t(), y, Accumulate::Assign)?;
                let forward = start.elapsed();
                gemm.run(dy, w, dx, Accumulate::Assign)?;
                let inputs = start.elapsed();
                gemm.run(dy.t(), x, dw, Accumulate::Add)?;
                let weights = start.elapsed();
                for (best, time) in best.iter_mut().zip([forward, inputs - forward, weights - inputs]) {
                    *best = best.min(time.as_secs_f64());
                }
            }
        }
        for (total, best) in seconds.iter_mut().zip(best) {
            *total += best.iter().sum::<f64>();
        }
        flops += 6.0 * tokens as f64 * inputs as f64 * outputs as f64;
    }
    Ok(seconds.into_iter().map(|s| flops / s / 1e9).collect())
}

/// Small numbers of both signs: denormals and overflow would be slow.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7919 % 1013) as f32 / 1013.0 - 0.5).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_has_a_speed() {
        let shapes = [Shape { tokens: 24, inputs: 32, outputs: 40 }, Shape { tokens: 5, inputs: 16, outputs: 16 }];
        let speeds = gflops(&Backend::ALL, &shapes, 2).unwrap();
        assert_eq!(speeds.len(), 3);
        assert!(speeds.iter().all(|s| s.is_finite() && *s > 0.0), "{speeds:?}");
    }
}
