//! The gradient's norm, the same on every rank: squares are summed in f64 per chunk of 4096 elements with a
//! fixed number of partial sums, chunk sums are gathered and added in index order.

use crate::compute::kernels::{Isa, for_each_isa};
use crate::compute::model::CHUNK;

/// Partial sums of a chunk. Part of what a result's bits mean.
const PARTS: usize = 8;

/// Sum of squares of each chunk of `values`, whose length is a multiple of [`CHUNK`].
pub fn chunk_sums(values: &[f32]) -> Vec<f64> {
    values.chunks(CHUNK).map(|chunk| sum_of_squares(Isa::best(), chunk)).collect()
}

for_each_isa! {
    fn sum_of_squares(chunk: &[f32]) -> f64 {
        let mut parts = [0f64; PARTS];
        // A chunk is a whole number of rows.
        for row in chunk.as_chunks::<PARTS>().0 {
            for k in 0..PARTS {
                let x = f64::from(row[k]);
                parts[k] += x * x;
            }
        }
        parts.iter().sum()
    }
}

/// Chunk sums of all ranks in the order of the flat layout. `gathered` holds rank after rank; a rank's part
/// holds, group after group, `chunks[g]` sums of its own shard.
pub fn in_layout_order(gathered: &[f64], chunks: &[usize], ranks: usize) -> Vec<f64> {
    let per_rank: usize = chunks.iter().sum();
    let mut ordered = Vec::with_capacity(gathered.len());
    let mut at = 0;
    for &n in chunks {
        for rank in 0..ranks {
            let from = rank * per_rank + at;
            ordered.extend_from_slice(&gathered[from..from + n]);
        }
        at += n;
    }
    ordered
}

/// What gradients are multiplied by: 1 / tokens and the clip, formed once in f64. Second: the norm of the mean
/// gradient before the clip.
pub fn factor_and_norm(chunk_sums: &[f64], tokens: i64, max_norm: f64) -> (f64, f64) {
    let norm = chunk_sums.iter().sum::<f64>().sqrt() / tokens as f64;
    let clip = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    (clip / tokens as f64, norm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_does_not_depend_on_the_cut() {
        let groups = [8 * CHUNK, 16 * CHUNK];
        let flat: Vec<Vec<f32>> = groups
            .iter()
            .map(|&n| (0..n).map(|i| ((i * 2_654_435_761) % 1000) as f32 * 1e-3 - 0.5).collect())
            .collect();
        let whole: Vec<f64> = flat.iter().flat_map(|g| chunk_sums(g)).collect();
        for ranks in [1, 2, 4, 8] {
            let gathered: Vec<f64> = (0..ranks)
                .flat_map(|r| {
                    flat.iter().flat_map(move |g| chunk_sums(&g[r * g.len() / ranks..(r + 1) * g.len() / ranks]))
                })
                .collect();
            let chunks: Vec<usize> = groups.iter().map(|n| n / CHUNK / ranks).collect();
            assert_eq!(in_layout_order(&gathered, &chunks, ranks), whole, "{ranks}");
        }
        let exact: f64 = flat.iter().flatten().map(|&x| f64::from(x) * f64::from(x)).sum();
        let (factor, norm) = factor_and_norm(&whole, 10, 1.0);
        assert!((norm / (exact.sqrt() / 10.0) - 1.0).abs() < 1e-12);
        assert!((factor / (1.0 / (norm + 1e-6) / 10.0) - 1.0).abs() < 1e-12, "clipped");
        assert_eq!(factor_and_norm(&[1.0], 4, 1.0).0, 0.25, "not clipped");
        assert_eq!(factor_and_norm(&[1e6], 1, 0.0).0, 1.0, "clip off");
        assert!(!factor_and_norm(&[f64::NAN], 1, 1.0).1.is_finite());
    }
}
