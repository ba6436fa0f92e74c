//! What tests of kernels share: numbers that look random, and comparisons.

use super::Isa;

/// Numbers between -2 and 2, uniform, by element and `seed`.
pub fn numbers(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|i| {
            let x = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
            let x = (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((x ^ x >> 32) >> 40) as f32 / (1u64 << 22) as f32 - 2.0
        })
        .collect()
}

/// Every element is within `relative` of the largest exact one.
#[track_caller]
pub fn close(got: &[f32], exact: &[f64], relative: f64) {
    assert_eq!(got.len(), exact.len());
    let largest = exact.iter().fold(1e-30f64, |m, e| m.max(e.abs()));
    for (i, (&got, &exact)) in got.iter().zip(exact).enumerate() {
        let off = (f64::from(got) - exact).abs() / largest;
        assert!(off <= relative, "element {i}: {got} for {exact}, off by {off:.2e} of the largest");
    }
}

/// The first results are kept, later ones have the same bits.
#[track_caller]
pub fn same_bits(first: &mut Option<Vec<Vec<f32>>>, got: Vec<Vec<f32>>, isa: Isa) {
    let bits = |all: &[Vec<f32>]| all.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    match first {
        None => *first = Some(got),
        Some(first) => assert_eq!(bits(first), bits(&got), "{}", isa.name()),
    }
}
