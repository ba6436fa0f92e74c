//! What attacks ask of a model: losses of many rows, gradients by input embeddings, and products of a gradient with the
//! embeddings of candidates. [`Native`] answers for every family, in fp32 on the CPU.
//!
//! A row's numbers do not depend on the rows it is computed with: so no result depends on how many there are at a time.

use super::Rows;
use crate::compute::kernels::gemm::{Backend, Gemm, Mat, MatMut};
use crate::compute::kernels::{Accumulate, Pool};
use crate::compute::model::native::{Activations, NativePasses, Options};
use crate::compute::model::{Batch, Model, as_f32};
use crate::compute::{ComputeError, Result};

/// What a pass with gradients gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Derived {
    /// NLL of every scored position, in order, nats.
    pub nll: Vec<f64>,
    /// Gradient of their sum by the input embeddings, `[B, T, h]`.
    pub by_inputs: Vec<f64>,
}

/// What may be put at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct Swaps {
    /// E . g of the id that is there.
    pub here: f64,
    /// E . g of the best others, best first; of equal ones the lowest id first.
    pub others: Vec<(i64, f64)>,
}

/// A model under attack.
pub trait Victim {
    /// Longest input, tokens.
    fn max_len(&self) -> usize;

    /// Width of an embedding.
    fn width(&self) -> usize;

    /// NLL of every scored position, in order, nats.
    ///
    /// # Errors
    /// Ids or lengths do not fit the model.
    fn nll(&mut self, rows: &Rows) -> Result<Vec<f64>>;

    /// The same, and its gradient.
    ///
    /// # Errors
    /// As [`Self::nll`].
    fn gradient(&mut self, rows: &Rows) -> Result<Derived>;

    /// E . g for every id of the vocabulary.
    ///
    /// # Errors
    /// The product cannot be computed.
    fn products(&mut self, g: &[f64]) -> Result<Vec<f64>>;

    /// For each row of `g` `[n, h]` the `most` largest E . g among the `allowed` ids (sorted) other than the one in
    /// `here`.
    ///
    /// # Errors
    /// The product cannot be computed.
    fn swaps(&mut self, g: &[f64], here: &[i64], allowed: &[i64], most: usize) -> Result<Vec<Swaps>>;
}

/// The passes of the native engine, with our own products of matrices.
pub struct Native {
    passes: NativePasses,
    gemm: Gemm,
    embedding: tch::Tensor,
    width: usize,
    max_len: usize,
    /// Rows of `allowed`, and which those are.
    gathered: (Vec<i64>, Vec<f32>),
}

impl Native {
    /// Of a model, whose memory it shares.
    ///
    /// # Errors
    /// No threads can be started.
    pub fn new(model: &Model, threads: usize) -> Result<Self> {
        let options = Options { gemm: Backend::Builtin, threads, activations: Activations::Keep, dropout: 0.0 };
        let pool = Pool::new(threads).map_err(|e| {
            ComputeError::Failed(format!("{threads} threads cannot be started ({e}): lower `threads_per_rank`"))
        })?;
        let size = |n: i64| usize::try_from(n).unwrap_or(0);
        Ok(Self {
            passes: NativePasses::new(model, options)?,
            gemm: Gemm::new(Backend::Builtin, pool.into()),
            embedding: model.embedding()?,
            width: size(model.config().hidden_size),
            max_len: size(model.config().max_position_embeddings),
            gathered: Default::default(),
        })
    }
}

fn batch_of(rows: &Rows) -> Result<Batch> {
    let narrow = |ids: &[i64]| -> Result<Vec<i32>> {
        let id = |&id: &i64| i32::try_from(id).map_err(|_| outside(id));
        ids.iter().map(id).collect()
    };
    Ok(Batch::causal(rows.count, rows.len, narrow(&rows.inputs)?, narrow(&rows.targets)?))
}

fn outside(id: i64) -> ComputeError {
    ComputeError::Config(format!("token id {id} is outside of every vocabulary: make the data again"))
}

impl Victim for Native {
    fn max_len(&self) -> usize {
        self.max_len
    }

    fn width(&self) -> usize {
        self.width
    }

    fn nll(&mut self, rows: &Rows) -> Result<Vec<f64>> {
        self.passes.nll(&batch_of(rows)?)
    }

    fn gradient(&mut self, rows: &Rows) -> Result<Derived> {
        let (nll, by_inputs) = self.passes.input_gradient(&batch_of(rows)?)?;
        Ok(Derived { nll, by_inputs: by_inputs.iter().map(|&x| f64::from(x)).collect() })
    }

    fn products(&mut self, g: &[f64]) -> Result<Vec<f64>> {
        let g: Vec<f32> = g.iter().map(|&x| x as f32).collect();
        let table = as_f32(&self.embedding);
        let vocab = table.len() / self.width;
        let mut scores = vec![0.0; vocab];
        let to = MatMut::rows(&mut scores, 1, vocab);
        let table = Mat::rows(table, vocab, self.width).t();
        self.gemm.run(Mat::rows(&g, 1, self.width), table, to, Accumulate::Assign)?;
        Ok(scores.into_iter().map(f64::from).collect())
    }

    fn swaps(&mut self, g: &[f64], here: &[i64], allowed: &[i64], most: usize) -> Result<Vec<Swaps>> {
        let (h, n, a) = (self.width, here.len(), allowed.len());
        let table = as_f32(&self.embedding);
        if self.gathered.0 != allowed {
            let rows = allowed.iter().flat_map(|&id| &table[id as usize * h..][..h]).copied().collect();
            self.gathered = (allowed.to_vec(), rows);
        }
        let g: Vec<f32> = g.iter().map(|&x| x as f32).collect();
        let candidates = Mat::rows(&self.gathered.1, a, h).t();
        let mut scores = vec![0.0; n.min(SCORED_AT_ONCE) * a];
        let mut found = Vec::with_capacity(n);
        for (g, here) in g.chunks(SCORED_AT_ONCE * h).zip(here.chunks(SCORED_AT_ONCE)) {
            let scores = &mut scores[..here.len() * a];
            let to = MatMut::rows(scores, here.len(), a);
            self.gemm.run(Mat::rows(g, here.len(), h), candidates, to, Accumulate::Assign)?;
            for ((scores, &id), g) in scores.chunks_exact(a).zip(here).zip(g.chunks_exact(h)) {
                let at = allowed.binary_search(&id).ok();
                let own = |(e, g): (&f32, &f32)| f64::from(*e) * f64::from(*g);
                found.push(Swaps {
                    here: match at {
                        Some(i) => f64::from(scores[i]),
                        None => table[id as usize * h..][..h].iter().zip(g).map(own).sum(),
                    },
                    others: largest(scores, at, most).into_iter().map(|i| (allowed[i], f64::from(scores[i]))).collect(),
                });
            }
        }
        Ok(found)
    }
}

/// Rows whose scores exist together: products want many rows, and their scores are as many times the vocabulary.
const SCORED_AT_ONCE: usize = 512;

/// Places of the `most` largest values, largest first, of equal ones the lowest place first; without `not`.
fn largest(values: &[f32], not: Option<usize>, most: usize) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::with_capacity(most + 1);
    // What a value must exceed to be among them.
    let mut bar = f32::NEG_INFINITY;
    for (block, lane) in values.chunks(64).enumerate() {
        // A look at 64 values together costs little; almost none of them holds one that counts.
        if !lane.iter().fold(false, |any, &v| any | (v > bar)) {
            continue;
        }
        for (i, &value) in lane.iter().enumerate().map(|(i, v)| (block * 64 + i, v)) {
            if value > bar && Some(i) != not {
                let at = found.partition_point(|&f| values[f] >= value);
                found.insert(at, i);
                found.truncate(most);
                if found.len() == most {
                    bar = values[found[most - 1]];
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::attack::tests::{model, rows};

    #[test]
    fn the_largest_are_found_in_order_and_ties_take_the_lowest() {
        let values: Vec<f32> = (0..300u32).map(|i| ((i * 7919) % 101) as f32).collect();
        for (not, most) in [(None, 1), (None, 7), (Some(13), 300), (Some(100), 3)] {
            let mut expected: Vec<usize> = (0..300).filter(|&i| Some(i) != not).collect();
            expected.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
            expected.truncate(most);
            assert_eq!(largest(&values, not, most), expected, "{not:?} {most}");
        }
        assert_eq!(largest(&[f32::NAN, 1.0, f32::NEG_INFINITY], None, 3), [1], "what is no number is never best");
    }

    #[test]
    fn losses_and_gradients_are_those_of_the_autograd_and_depend_on_no_company() {
        for tied in [false, true] {
            let model = model(tied);
            let mut native = Native::new(&model, 1).unwrap();
            let rows = rows(9, 13, 40);
            let all = native.nll(&rows).unwrap();
            let derived = native.gradient(&rows).unwrap();
            let tensor = |ids: &[i64]| tch::Tensor::from_slice(ids).view([9, 13]);
            let (nll, gradient) = model.embedding_gradient(&tensor(&rows.inputs), &tensor(&rows.targets)).unwrap();
            let flat =
                |t: &tch::Tensor| Vec::<f64>::try_from(t.to_kind(tch::Kind::Double).contiguous().view(-1)).unwrap();
            let expected: Vec<f64> =
                flat(&nll).into_iter().zip(&rows.targets).filter(|(_, t)| **t >= 0).map(|(v, _)| v).collect();
            assert_eq!(all.len(), expected.len());
            let worst = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst(&all, &expected) < 5e-5, "{}", worst(&all, &expected));
            let expected = flat(&gradient);
            let scale = expected.iter().fold(0f64, |m, x| m.max(x.abs()));
            assert!(worst(&derived.by_inputs, &expected) < 1e-4 * scale, "{}", worst(&derived.by_inputs, &expected));
            // Bit by bit: alone, in company, and with its gradient.
            assert_eq!(derived.nll, all);
            let mut alone = Vec::new();
            for k in 0..9 {
                let one = rows.range(k..k + 1);
                alone.extend(native.nll(&one).unwrap());
                let of_one = native.gradient(&one).unwrap();
                let width = 13 * native.width();
                assert_eq!(of_one.by_inputs, derived.by_inputs[k * width..(k + 1) * width], "row {k}");
            }
            assert_eq!(alone, all);
            // With more threads too.
            let mut threads = Native::new(&model, 3).unwrap();
            assert_eq!((threads.nll(&rows).unwrap(), threads.gradient(&rows).unwrap()), (all, derived));
        }
    }

    #[test]
    fn rows_that_begin_alike_have_the_losses_they_have_alone() {
        let model = model(false);
        let mut native = Native::new(&model, 1).unwrap();
        let mut rows = rows(8, 11, 40);
        for k in 1..8 {
            // 0, 3, 6 and 9 ids in common with the row before, and one row twice.
            let (before, now) = rows.inputs.split_at_mut(k * 11);
            let shared = [0, 3, 6, 9, 11][k % 5];
            now[..shared].copy_from_slice(&before[(k - 1) * 11..][..shared]);
        }
        let all = native.nll(&rows).unwrap();
        let alone: Vec<f64> = (0..8).flat_map(|k| native.nll(&rows.range(k..k + 1)).unwrap()).collect();
        assert_eq!(all, alone);
    }

    #[test]
    fn a_gradient_behind_another_has_the_bits_of_one_that_comes_first() {
        for tied in [false, true] {
            let model = model(tied);
            let mut native = Native::new(&model, 1).unwrap();
            let mut rows = rows(5, 12, 40);
            native.gradient(&rows).unwrap();
            for step in 0..8usize {
                for b in 0..5 {
                    // A flip and its label; in some steps no flip in some rows, or only a target that changes.
                    let p = (step * 5 + b * 7) % 12;
                    match (step + b) % 4 {
                        0 => rows.targets[b * 12 + p] = 3,
                        1 if step % 2 == 0 => rows.targets[b * 12 + p] = crate::compute::data::IGNORED,
                        1 => {}
                        _ => {
                            rows.inputs[b * 12 + p] = (rows.inputs[b * 12 + p] + 11) % 40;
                            rows.targets[b * 12 + (p + 11) % 12] = rows.inputs[b * 12 + p];
                        }
                    }
                }
                if step == 4 {
                    // Losses in between disturb nothing.
                    native.nll(&rows.range(1..4)).unwrap();
                }
                let fresh = Native::new(&model, 1).unwrap().gradient(&rows).unwrap();
                assert_eq!(native.gradient(&rows).unwrap(), fresh, "step {step}");
                assert_eq!(native.gradient(&rows).unwrap(), fresh, "and again, step {step}");
            }
            let other = rows.range(0..3);
            assert_eq!(native.gradient(&other).unwrap(), Native::new(&model, 1).unwrap().gradient(&other).unwrap());
        }
    }

    #[test]
    fn swaps_are_products_with_the_embeddings() {
        let model = model(false);
        let mut native = Native::new(&model, 1).unwrap();
        let table = as_f32(&model.embedding().unwrap()).to_vec();
        let h = native.width();
        let g: Vec<f64> = (0..2 * h).map(|i| f64::from(((i * 37 % 17) as f32 - 8.0) / 8.0)).collect();
        let product = |n: usize, id: i64| -> f64 {
            let e = &table[id as usize * h..][..h];
            e.iter().zip(&g[n * h..]).map(|(e, g)| f64::from(*e) * g).sum()
        };
        let allowed = [2, 3, 5, 8, 13, 21, 34];
        let all = native.products(&g[..h]).unwrap();
        for (id, score) in all.iter().enumerate() {
            assert!((score - product(0, id as i64)).abs() < 1e-6, "{id}");
        }
        let swaps = native.swaps(&g, &[5, 4], &allowed, 3).unwrap();
        for (n, here) in [(0, 5), (1, 4)] {
            let mut expected: Vec<i64> = allowed.into_iter().filter(|&id| id != here).collect();
            expected.sort_by(|&a, &b| product(n, b).total_cmp(&product(n, a)));
            let ids: Vec<i64> = swaps[n].others.iter().map(|s| s.0).collect();
            assert_eq!(ids, expected[..3]);
            assert!((swaps[n].here - product(n, here)).abs() < 1e-6);
        }
    }
}
