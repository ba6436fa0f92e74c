//! Against attention written out in f64, whose own gradient is held against finite differences.

use super::super::dropout::Site;
use super::super::testing::{close, numbers, same_bits};
use super::*;

/// A grain with its memory.
struct Case {
    layout: Layout,
    rows: usize,
    seq_len: usize,
    first: Vec<u32>,
    end: Vec<u32>,
    gaps: Vec<[u32; 2]>,
    dropout: Option<Dropout>,
}

/// GPT-NeoX: query, key and value of a head side by side.
fn side_by_side(heads: usize, dim: usize) -> Layout {
    Layout { row: 3 * heads * dim, first: [0, dim, 2 * dim], step: 3 * dim, dim, queries: heads, key_values: heads }
}

/// All queries, then all keys, then all values, and something else behind them.
fn one_after_another(queries: usize, key_values: usize, dim: usize) -> Layout {
    let (k, v) = (queries * dim, (queries + key_values) * dim);
    Layout { row: v + key_values * dim + 3, first: [0, k, v], step: dim, dim, queries, key_values }
}

/// First key, end and gap of each query, by who sees whom.
type Seen = (Vec<u32>, Vec<u32>, Vec<[u32; 2]>);

fn intervals(rows: usize, seq_len: usize, sees: impl Fn(usize, usize, usize) -> bool) -> Seen {
    let mut all: Seen = Default::default();
    for b in 0..rows {
        for i in 0..seq_len {
            let seen: Vec<usize> = (0..seq_len).filter(|&j| sees(b, i, j)).collect();
            let (first, end) = (seen.first().copied().unwrap_or(0), seen.last().map_or(0, |j| j + 1));
            let missing: Vec<usize> = (first..end).filter(|&j| !sees(b, i, j)).collect();
            let gap = missing.first().map_or([0, 0], |&from| [from as u32, (from + missing.len()) as u32]);
            assert!(missing.last().is_none_or(|&last| last + 1 == gap[1] as usize), "an interval with one gap");
            all.0.push(first as u32);
            all.1.push(end as u32);
            all.2.push(gap);
        }
    }
    if all.2.iter().all(|gap| gap[0] == gap[1]) {
        all.2.clear();
    }
    all
}

impl Case {
    fn new(layout: Layout, rows: usize, seq_len: usize, sees: impl Fn(usize, usize, usize) -> bool) -> Self {
        let (first, end, gaps) = intervals(rows, seq_len, sees);
        Self { layout, rows, seq_len, first, end, gaps, dropout: None }
    }

    fn heads(&self) -> Heads<'_> {
        Heads {
            layout: self.layout,
            rows: self.rows,
            seq_len: self.seq_len,
            first: &self.first,
            end: &self.end,
            gaps: &self.gaps,
            scale: 1.0 / (self.layout.dim as f32).sqrt(),
            dropout: self.dropout.as_ref(),
        }
    }

    fn tokens(&self) -> usize {
        self.rows * self.seq_len
    }

    fn qkv(&self, seed: u64) -> Vec<f32> {
        numbers(self.tokens() * self.layout.row, seed)
    }

    fn dout(&self, seed: u64) -> Vec<f32> {
        numbers(self.tokens() * self.layout.out_row(), seed)
    }

    /// Output, lse and gradient.
    fn run(&self, isa: Isa, threads: usize, qkv: &[f32], dout: &[f32]) -> Vec<Vec<f32>> {
        let mut attention = Attention::with_isa(Arc::new(Pool::new(threads).unwrap()), isa);
        // Left from before, to be overwritten.
        let mut out = vec![f32::NAN; dout.len()];
        let mut lse = vec![f32::NAN; self.tokens() * self.layout.queries];
        let mut dqkv = vec![7.0; qkv.len()];
        attention.forward(self.heads(), qkv, &mut out, &mut lse);
        attention.backward(self.heads(), Forward { qkv, out: &out, lse: &lse }, dout, &mut dqkv);
        vec![out, lse, dqkv]
    }

    /// Output, and the gradient by `qkv` of the output's product with `dout`, in f64.
    fn reference(&self, qkv: &[f64], dout: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (at, t, d) = (self.layout, self.seq_len, self.layout.dim);
        let scale = 1.0 / (d as f64).sqrt();
        let per_row = t.next_multiple_of(64);
        let (mut out, mut dqkv) = (vec![0.0; dout.len()], vec![0.0; qkv.len()]);
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>();
        for (b, n, i) in (0..self.rows).flat_map(|b| (0..at.queries).flat_map(move |n| (0..t).map(move |i| (b, n, i))))
        {
            let place = |kind: usize, token: usize| (b * t + token) * at.row + at.head(kind, n);
            let q = place(0, i);
            let gap = self.gaps.get(b * t + i).map_or(0..0, |gap| gap[0] as usize..gap[1] as usize);
            let keys = self.first[b * t + i] as usize..self.end[b * t + i] as usize;
            let keys = keys.filter(move |j| !gap.contains(j));
            let scores: Vec<f64> =
                keys.clone().map(|j| scale * dot(&qkv[q..q + d], &qkv[place(1, j)..][..d])).collect();
            let m = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - m).exp()).sum();
            let factor = |j: usize| {
                let element = ((b * at.queries + n) * t + i) * per_row + j;
                self.dropout.map_or(1.0, |mask| f64::from(mask.factors(element as u64 / 64)[element % 64]))
            };
            let o = (b * t + i) * at.out_row() + n * d;
            let dp: Vec<f64> =
                keys.clone().map(|j| factor(j) * dot(&dout[o..o + d], &qkv[place(2, j)..][..d])).collect();
            let p: Vec<f64> = scores.iter().map(|s| (s - m).exp() / sum).collect();
            let mean = dot(&p, &dp);
            for (k, j) in keys.enumerate() {
                let ds = p[k] * (dp[k] - mean) * scale;
                for c in 0..d {
                    out[o + c] += p[k] * factor(j) * qkv[place(2, j) + c];
                    dqkv[q + c] += ds * qkv[place(1, j) + c];
                    dqkv[place(1, j) + c] += ds * qkv[q + c];
                    dqkv[place(2, j) + c] += p[k] * factor(j) * dout[o + c];
                }
            }
        }
        (out, dqkv)
    }

    /// Ours against the reference. Floats of a row that belong to no head keep what was there.
    fn check(&self, what: &str) {
        let (qkv, dout) = (self.qkv(1), self.dout(2));
        let (wide, dwide) = (in_f64(&qkv), in_f64(&dout));
        let (out, mut dqkv) = self.reference(&wide, &dwide);
        let own = self.layout.key_values * self.layout.dim + self.layout.first[2];
        let others = |x: usize| self.layout.step == self.layout.dim && x % self.layout.row >= own;
        (0..dqkv.len()).filter(|&x| others(x)).for_each(|x| dqkv[x] = 7.0);
        let mut first = None;
        for isa in Isa::all() {
            // Without vector instructions a fused multiply-add is a call.
            let threads: &[usize] = if isa == Isa::best() { &[1, 3] } else { &[1] };
            for &threads in threads {
                let got = self.run(isa, threads, &qkv, &dout);
                println!("{what}, {}", isa.name());
                close(&got[0], &out, 2e-6);
                close(&got[2], &dqkv, 4e-6);
                same_bits(&mut first, got, isa);
            }
        }
    }
}

fn in_f64(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Tokens of a branch behind the first third of row `b`.
fn branch(b: usize, t: usize) -> usize {
    (t / (4 + b)).max(1)
}

/// Whether `i` sees `j` in a row that branches behind its first third.
fn sees_in_branches(b: usize, t: usize, i: usize, j: usize) -> bool {
    j < t / 3 || (i >= t / 3 && (i - t / 3) / branch(b, t) == (j - t / 3) / branch(b, t))
}

/// Every mask, over two rows of `t` tokens.
fn masks(t: usize) -> Vec<(&'static str, Box<dyn Fn(usize, usize, usize) -> bool>)> {
    let prompt = [t / 3, 2 * t / 3 + 1];
    let lens = [t - t / 4, t];
    let window = (t / 5).max(1);
    let segment = move |i: usize| 3 * i / t;
    vec![
        ("causal", Box::new(|_, i, j| j <= i)),
        ("full", Box::new(|_, _, _| true)),
        ("prefix", Box::new(move |b, i, j| j <= i || j < prompt[b])),
        ("window", Box::new(move |_, i, j| j <= i && i < j + window)),
        ("segments", Box::new(move |_, i, j| j <= i && segment(i) == segment(j))),
        ("padding", Box::new(move |b, i, j| j <= i && j < lens[b])),
        ("full with padding", Box::new(move |b, _, j| j < lens[b])),
        // Queries of the second row's first half see nothing, nor do some in the middle of a tile.
        ("nothing seen", Box::new(move |b, i, j| j <= i && (b == 0 || i >= t / 2) && i % 7 != 3)),
        ("no query sees", Box::new(move |b, _, _| b == 0)),
        ("branches", Box::new(move |b, i, j| j <= i && sees_in_branches(b, t, i, j))),
        (
            "branches in a window",
            Box::new(move |b, i, j| {
                let at = |x: usize| if x < t / 3 { x } else { t / 3 + (x - t / 3) % branch(b, t) };
                j <= i && sees_in_branches(b, t, i, j) && at(i) < at(j) + t / 4 + 1
            }),
        ),
    ]
}

#[test]
fn the_reference_has_the_gradient_of_finite_differences() {
    for (name, mask) in masks(9) {
        for dropout in [None, Some(Dropout::new(0.3, 1, 2, 3, 4, Site::Probabilities))] {
            let mut case = Case::new(one_after_another(4, 2, 3), 2, 9, &mask);
            case.dropout = dropout;
            let (mut x, dout) = (in_f64(&case.qkv(3)), in_f64(&case.dout(4)));
            let (_, gradient) = case.reference(&x, &dout);
            let loss = |x: &[f64]| case.reference(x, &dout).0.iter().zip(&dout).map(|(o, d)| o * d).sum::<f64>();
            for at in 0..x.len() {
                let (kept, h) = (x[at], 1e-5);
                x[at] = kept + h;
                let above = loss(&x);
                x[at] = kept - h;
                let difference = (above - loss(&x)) / (2.0 * h);
                x[at] = kept;
                assert!((difference - gradient[at]).abs() < 1e-7, "{name} {at}: {difference} {}", gradient[at]);
            }
        }
    }
}

#[test]
fn every_mask_is_attention_in_f64_and_the_same_bits_everywhere() {
    for t in [1, 2, 13, 48, 131] {
        for (name, mask) in masks(t) {
            Case::new(side_by_side(2, 16), 2, t, &mask).check(&format!("{name}, T {t}"));
            let mut case = Case::new(one_after_another(4, 2, 24), 2, t, &mask);
            case.dropout = Some(Dropout::new(0.2, 5, 6, 7, 8, Site::Probabilities));
            case.check(&format!("{name}, T {t}, grouped, dropout"));
        }
    }
}

#[test]
fn long_rows_and_all_widths_of_heads() {
    for (t, dim) in [(257, 64), (190, 128), (513, 16), (2048, 17)] {
        // Causal, and a window; causal only where it takes long.
        for (name, mask) in [&masks(t)[0], &masks(t)[3]].into_iter().take(if t > 600 { 1 } else { 2 }) {
            let mut case = Case::new(side_by_side(1, dim), 1, t, mask);
            case.check(&format!("{name}, T {t}, {dim} wide"));
            if t == 513 {
                case.dropout = Some(Dropout::new(0.1, 5, 6, 7, 8, Site::Probabilities));
                case.check(&format!("{name}, T {t}, {dim} wide, dropout"));
            }
        }
    }
}

#[test]
fn what_a_query_does_not_see_changes_no_bit_of_it() {
    let t = 150;
    let case = Case::new(side_by_side(2, 16), 1, t, |_, i, j| j <= i);
    let (mut qkv, dout) = (case.qkv(1), case.dout(2));
    let before = case.run(Isa::best(), 1, &qkv, &dout);
    for x in &mut qkv[100 * case.layout.row..] {
        *x *= -3.0;
    }
    let after = case.run(Isa::best(), 1, &qkv, &dout);
    let seen = 100 * case.layout.out_row();
    assert_eq!(before[0][..seen], after[0][..seen]);
    assert_ne!(before[0][seen..], after[0][seen..]);
}

#[test]
fn branches_in_one_row_have_the_bits_of_rows_alone() {
    let (trunk, lens) = (37, [5, 1, 33, 12]);
    let layout = side_by_side(2, 16);
    let total = trunk + lens.iter().sum::<usize>();
    let begin = |n: usize| trunk + lens[..n].iter().sum::<usize>();
    let number = |i: usize| (0..4).filter(|&n| i >= begin(n)).count();
    let packed = Case::new(layout, 1, total, |_, i, j| j <= i && (j < trunk || number(i) == number(j)));
    assert_eq!(packed.gaps.len(), total);
    let qkv = packed.qkv(5);
    for isa in Isa::all() {
        let whole = packed.run(isa, 1, &qkv, &packed.dout(6));
        for n in 0..4 {
            let alone = Case::new(layout, 1, trunk + lens[n], |_, i, j| j <= i);
            let places: Vec<usize> = (0..trunk).chain(begin(n)..begin(n) + lens[n]).collect();
            let rows = |all: &[f32], row: usize| -> Vec<f32> {
                places.iter().flat_map(|&i| all[i * row..][..row].iter().copied()).collect()
            };
            let got = alone.run(isa, 1, &rows(&qkv, layout.row), &alone.dout(6));
            assert_eq!(got[0], rows(&whole[0], layout.out_row()), "branch {n}, {}", isa.name());
        }
    }
}

#[test]
fn large_scores_and_what_is_not_finite() {
    let t = 40;
    let case = Case::new(side_by_side(1, 16), 1, t, |_, i, j| j <= i);
    // Scores in the thousands: a row is nearly one-hot, and nothing overflows.
    let qkv: Vec<f32> = case.qkv(1).iter().map(|x| x * 60.0).collect();
    let dout = case.dout(2);
    let (out, _) = case.reference(&in_f64(&qkv), &in_f64(&dout));
    for isa in Isa::all() {
        let got = case.run(isa, 1, &qkv, &dout);
        close(&got[0], &out, 1e-3);
        assert!(got.iter().flatten().all(|x| x.is_finite()));
        let mut bad = qkv.clone();
        bad[20 * case.layout.row + 16] = f32::NAN;
        let got = case.run(isa, 1, &bad, &dout);
        let (seen, poisoned) = got[0].split_at(20 * 16);
        assert!(seen.iter().all(|x| x.is_finite()) && poisoned.iter().all(|x| x.is_nan()));
    }
}
