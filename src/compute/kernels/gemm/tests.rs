//! Products against a triple loop in f64, and bits against bits.

use std::sync::Arc;

use super::*;
use crate::compute::rng::{Purpose, Rng};

/// A matrix with room around it, to be seen through strides.
struct Stored {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    strides: (usize, usize),
}

impl Stored {
    fn new(rng: &mut Rng, rows: usize, cols: usize, strides: (usize, usize)) -> Self {
        let len = rows.saturating_sub(1) * strides.0 + cols.saturating_sub(1) * strides.1 + 1;
        let data = (0..len).map(|_| rng.normal() as f32).collect();
        Self { data, rows, cols, strides }
    }

    fn view(&self) -> Mat<'_> {
        Mat::new(&self.data, self.rows, self.cols, self.strides.0, self.strides.1)
    }

    fn view_mut(&mut self) -> MatMut<'_> {
        MatMut::new(&mut self.data, self.rows, self.cols, self.strides.0, self.strides.1)
    }

    fn at(&self, i: usize, j: usize) -> f32 {
        self.data[i * self.strides.0 + j * self.strides.1]
    }
}

/// By rows, by columns, with gaps; the last, for inputs of the builtin backend only, with no unit stride.
fn strides(kind: usize, rows: usize, cols: usize) -> (usize, usize) {
    match kind {
        0 => (cols.max(1), 1),
        1 => (1, rows.max(1)),
        2 => (cols + 5, 1),
        3 => (1, rows + 3),
        _ => (2 * cols + 1, 2),
    }
}

const SIZES: [(usize, usize, usize); 17] = [
    (1, 1, 1),
    (1, 33, 7),
    (2, 16, 1),
    (3, 5, 300),
    (7, 31, 256),
    (13, 32, 257),
    (14, 64, 16),
    (15, 1, 40),
    (17, 47, 513),
    (28, 96, 33),
    (48, 48, 16),
    (61, 130, 65),
    (100, 17, 31),
    (241, 34, 20),
    (3, 2100, 18),
    (0, 4, 4),
    (5, 6, 0),
];

fn gemm(backend: Backend, threads: usize, isa: Isa) -> Gemm {
    Gemm::with_isa(backend, Arc::new(Pool::new(threads).unwrap()), isa)
}

/// C by f64 and, element by element, the sum of magnitudes that bounds its rounding.
fn reference(a: &Stored, b: &Stored, c: &Stored, how: Accumulate, bias: Option<&[f32]>) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for i in 0..c.rows {
        for j in 0..c.cols {
            let start = match how {
                Accumulate::Add => f64::from(c.at(i, j)),
                Accumulate::Assign => bias.map_or(0.0, |bias| f64::from(bias[j])),
            };
            let terms = (0..a.cols).map(|k| f64::from(a.at(i, k)) * f64::from(b.at(k, j)));
            let (sum, size) = terms.fold((start, start.abs()), |(sum, size), t| (sum + t, size + t.abs()));
            out.push((sum, size));
        }
    }
    out
}

fn assert_close(c: &Stored, expected: &[(f64, f64)], what: &str) {
    for i in 0..c.rows {
        for j in 0..c.cols {
            let (sum, size) = expected[i * c.cols + j];
            let got = f64::from(c.at(i, j));
            assert!((got - sum).abs() <= 4e-6 * size + 1e-30, "{what}: C[{i},{j}] is {got}, not {sum}");
        }
    }
}

#[test]
fn products_are_those_of_a_triple_loop() {
    let mut rng = Rng::new(1, Purpose::Init, 0, 0);
    let runners: Vec<Gemm> = Isa::all()
        .flat_map(|isa| [gemm(Backend::Builtin, 1, isa), gemm(Backend::Builtin, 3, isa)])
        .chain([gemm(Backend::Mkl, 1, Isa::best()), gemm(Backend::OneDnn, 1, Isa::best())])
        .collect();
    for mut runner in runners {
        for (index, (m, n, k)) in SIZES.into_iter().enumerate() {
            // Every pair of layouts meets some size, and every size seven of them.
            for kind in (0..25).filter(|kind| (kind + index) % 4 == 0) {
                let (kind_a, kind_b, kind_c) = (kind % 5, kind / 5, kind % 4);
                if runner.backend() != Backend::Builtin && (kind_a == 4 || kind_b == 4) {
                    continue;
                }
                let a = Stored::new(&mut rng, m, k, strides(kind_a, m, k));
                let b = Stored::new(&mut rng, k, n, strides(kind_b, k, n));
                let mut c = Stored::new(&mut rng, m, n, strides(kind_c, m, n));
                let what = format!("{:?} {} {m} {n} {k} kinds {kind}", runner.backend, runner.isa.name());
                let before = c.data.clone();
                for how in [Accumulate::Assign, Accumulate::Add] {
                    let expected = reference(&a, &b, &c, how, None);
                    runner.run(a.view(), b.view(), c.view_mut(), how).unwrap();
                    assert_close(&c, &expected, &what);
                }
                if kind_c % 2 == 0 {
                    let bias: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
                    let expected = reference(&a, &b, &c, Accumulate::Assign, Some(&bias));
                    runner.run_bias(a.view(), b.view(), &bias, c.view_mut()).unwrap();
                    assert_close(&c, &expected, &what);
                }
                // What lies between C's rows is left alone.
                let (row, col) = c.strides;
                for (at, (x, y)) in c.data.iter().zip(&before).enumerate() {
                    let (long, len) = if col == 1 { (row, n) } else { (col, m) };
                    if at % long.max(1) >= len {
                        assert_eq!(x.to_bits(), y.to_bits(), "{what}: element {at} outside C changed");
                    }
                }
            }
        }
    }
}

/// The same numbers with other strides, `shift` floats into their memory.
fn moved(x: &Stored, kind: usize, shift: usize) -> Stored {
    let (row, col) = strides(kind, x.rows, x.cols);
    let mut data = vec![f32::NAN; shift + x.rows * row + x.cols * col + 1];
    for i in 0..x.rows {
        for j in 0..x.cols {
            data[shift + i * row + j * col] = x.at(i, j);
        }
    }
    Stored { data, strides: (row, col), ..*x }
}

#[test]
fn bits_do_not_depend_on_instructions_threads_strides_or_place() {
    let mut rng = Rng::new(2, Purpose::Init, 0, 0);
    for (m, n, k) in SIZES.into_iter().chain([(130, 200, 700), (200, 70, 300)]) {
        let a = Stored::new(&mut rng, m, k, (k.max(1), 1));
        let b = Stored::new(&mut rng, k, n, (n.max(1), 1));
        let start: Vec<f32> = (0..m * n).map(|_| rng.normal() as f32).collect();
        for how in [Accumulate::Assign, Accumulate::Add] {
            let mut first: Option<Vec<u32>> = None;
            for isa in Isa::all() {
                for (threads, kind, shift) in [(1, 0, 0), (2, 1, 3), (3, 4, 1), (4, 2, 0)] {
                    let (a, b) = (moved(&a, kind, shift), moved(&b, kind, shift));
                    let mut c = vec![0f32; m * n + shift];
                    c[shift..].copy_from_slice(&start);
                    gemm(Backend::Builtin, threads, isa)
                        .run(
                            Mat::new(&a.data[shift..], m, k, a.strides.0, a.strides.1),
                            Mat::new(&b.data[shift..], k, n, b.strides.0, b.strides.1),
                            MatMut::rows(&mut c[shift..], m, n),
                            how,
                        )
                        .unwrap();
                    let bits: Vec<u32> = c[shift..].iter().map(|x| x.to_bits()).collect();
                    let first = first.get_or_insert_with(|| bits.clone());
                    assert!(*first == bits, "{} {threads} threads {m} {n} {k}", isa.name());
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_reaches_its_row_and_column_and_no_other() {
    let (m, n, k) = (19, 37, 21);
    let builtin = Isa::all().map(|isa| gemm(Backend::Builtin, 2, isa));
    let others = [Backend::Mkl, Backend::OneDnn].map(|backend| gemm(backend, 1, Isa::best()));
    for mut runner in builtin.chain(others) {
        for bad in [f32::NAN, f32::INFINITY] {
            let (mut a, mut b, mut c) = (vec![0f32; m * k], vec![1f32; k * n], vec![0f32; m * n]);
            a[4 * k + 20] = bad;
            b[3 * n + 36] = bad;
            runner
                .run(Mat::rows(&a, m, k), Mat::rows(&b, k, n), MatMut::rows(&mut c, m, n), Accumulate::Assign)
                .unwrap();
            for (at, &x) in c.iter().enumerate() {
                // Zero times infinity is not a number either; a row of zeros with infinity times one is infinity.
                let (row, column) = (at / n == 4, at % n == 36);
                let right = match (row, column) {
                    (_, true) => x.is_nan(),
                    (true, false) => x.is_nan() || x == bad,
                    (false, false) => x == 0.0,
                };
                assert!(right, "{:?} {}: {bad} gives {x} at {at}", runner.backend, runner.isa.name());
            }
            // What was in C is overwritten, not multiplied by zero.
            c.fill(bad);
            a.fill(0.0);
            b.fill(1.0);
            runner
                .run(Mat::rows(&a, m, k), Mat::rows(&b, k, n), MatMut::rows(&mut c, m, n), Accumulate::Assign)
                .unwrap();
            assert!(c.iter().all(|&x| x == 0.0), "{:?}", runner.backend);
        }
    }
}

#[test]
fn columns_by_blocks_have_the_bits_of_the_whole() {
    let mut rng = Rng::new(9, Purpose::Init, 0, 0);
    for (m, n, k) in SIZES {
        for kind in [0, 1] {
            let a = Stored::new(&mut rng, m, k, strides(0, m, k));
            let b = Stored::new(&mut rng, k, n, strides(kind, k, n));
            for isa in Isa::all() {
                let mut whole = vec![f32::NAN; m * n];
                let mut gemm = gemm(Backend::Builtin, 1, isa);
                gemm.run(a.view(), b.view(), MatMut::rows(&mut whole, m, n), Accumulate::Assign).unwrap();
                for width in [1, 32, 50, 5000] {
                    let mut room = vec![f32::NAN; m * width.min(n)];
                    let mut next = 0;
                    gemm.by_columns(a.view(), b.view(), (width, &mut room), |first, block| {
                        assert_eq!(first, next);
                        let cols = width.min(n - first);
                        next += cols;
                        for (i, row) in block.chunks_exact(cols).enumerate() {
                            assert_eq!(row, &whole[i * n + first..][..cols], "{m} {n} {k}, {width}, {}", isa.name());
                        }
                        assert_eq!(block.len(), m * cols);
                    });
                    assert_eq!(next, n);
                }
            }
        }
    }
}
