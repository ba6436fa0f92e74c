//! HotFlip for causal language models: replace a few tokens of a text so that its loss rises.
//!
//! `one_shot` is the historic attack: one gradient, the positions with the largest gradient norm, at each the
//! token with the largest first-order gain, all flips at once. `iterative` is the canonical greedy one: a new
//! gradient for each flip, and the best (position, token) by `(E_b - E_a) . g`. A flip changes the input and,
//! as in the historic run, the label of the position before it. Flips are never undone.

use tch::{Kind, Tensor};

use super::{Pair, Scope, Sum, Text, arg_max};
use crate::compute::evaluate::{Grain, LanguageModel, Row, nll_of_rows, to_f64, to_tensors};
use crate::compute::rng::{Purpose, Rng};
use crate::compute::{ComputeError, Result};

/// How flips are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One gradient for all flips.
    OneShot,
    /// One gradient for each flip.
    Iterative,
}

/// What may be flipped, and how much.
#[derive(Debug, Clone)]
pub struct Budget {
    /// Flips in each text.
    pub flips: usize,
    /// Ids that may be put in, sorted.
    pub allowed: Vec<i64>,
    /// Ids that are never flipped away.
    pub special: Vec<u32>,
}

/// One flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flip {
    /// Position in the text.
    pub position: usize,
    /// The new id.
    pub id: i64,
}

/// One attacked text.
#[derive(Debug, Clone, PartialEq)]
pub struct Attacked {
    /// Row number of the text.
    pub id: u64,
    /// The flips, in the order in which they were chosen.
    pub flips: Vec<Flip>,
    /// Loss before and after over all targets.
    pub all: Pair,
    /// Loss before and after over targets that no flip touched.
    pub untouched: Pair,
}

impl Attacked {
    /// The losses in a scope.
    pub fn pair(&self, scope: Scope) -> Pair {
        match scope {
            Scope::All => self.all,
            Scope::UntouchedTargets => self.untouched,
        }
    }
}

/// Attacks every text by its gradients.
///
/// # Errors
/// The model refuses, a loss is not finite, or the budget cannot be spent.
pub fn attack(
    model: &dyn LanguageModel,
    texts: &[Text],
    mode: Mode,
    budget: &Budget,
    grain: Grain,
) -> Result<Vec<Attacked>> {
    check(texts, budget)?;
    let embedding = model.embedding_vh()?;
    let allowed = Tensor::f_from_slice(&budget.allowed)?.f_to_device(embedding.device())?;
    let allowed_eh = embedding.f_index_select(0, &allowed)?;
    let mut flips = vec![Vec::new(); texts.len()];
    let mut current: Vec<Text> = texts.to_vec();
    let (rounds, each) = match mode {
        Mode::OneShot => (1, budget.flips),
        Mode::Iterative => (budget.flips, 1),
    };
    for _ in 0..rounds {
        for start in (0..texts.len()).step_by(grain.grain_rows) {
            let end = (start + grain.grain_rows).min(texts.len());
            let rows: Vec<Row> = current[start..end].iter().map(row_of).collect();
            let (inputs, targets) = to_tensors(&rows)?;
            let (_, grad_bth) = model.embedding_gradient(&inputs, &targets)?;
            let _no_grad = tch::no_grad_guard();
            for k in start..end {
                let grad_th = grad_bth.f_get((k - start) as i64)?;
                let eligible = eligible_positions(&current[k], &flips[k], budget);
                let chosen = match mode {
                    Mode::OneShot => one_shot(&grad_th, &allowed_eh, &current[k], &eligible, budget, each)?,
                    Mode::Iterative => {
                        vec![best_flip(&grad_th, &allowed_eh, &embedding, &current[k], &eligible, budget)?]
                    }
                };
                for flip in chosen {
                    current[k].ids[flip.position] = flip.id;
                    flips[k].push(flip);
                }
            }
        }
    }
    judge(model, texts, &flips, grain)
}

/// The control: as many flips, at random positions, to random allowed ids. Drawn by (seed, text, flip), so every
/// model gets the same ones.
///
/// # Errors
/// As [`attack`].
pub fn random_control(
    model: &dyn LanguageModel,
    texts: &[Text],
    budget: &Budget,
    seed: u32,
    grain: Grain,
) -> Result<Vec<Attacked>> {
    check(texts, budget)?;
    let flips: Vec<Vec<Flip>> = texts
        .iter()
        .map(|text| {
            // Row numbers of a split are far below 2^32.
            let mut rng = Rng::new(seed, Purpose::RandomFlip, text.id as u32, 0);
            let eligible = eligible_positions(text, &[], budget);
            let positions = rng.distinct(eligible.len(), budget.flips);
            let flip = |(n, p): (usize, &usize)| {
                let position = eligible[*p];
                let mut rng = Rng::new(seed, Purpose::RandomFlip, text.id as u32, n as u64 + 1);
                let others = budget.allowed.iter().filter(|&&id| id != text.ids[position]).count();
                let id = budget.allowed.iter().filter(|&&id| id != text.ids[position]).nth(rng.index(others));
                Flip { position, id: id.copied().unwrap_or(text.ids[position]) }
            };
            positions.iter().enumerate().map(flip).collect()
        })
        .collect();
    judge(model, texts, &flips, grain)
}

/// First-order gain of putting each allowed id at each position in place of the id there: `(E_b - E_a) . g`,
/// T x allowed values, row-major. Exact where the loss is linear in the embedding.
///
/// # Errors
/// libtorch refuses.
pub fn first_order_gains(grad_th: &Tensor, allowed_eh: &Tensor, current_th: &Tensor) -> Result<Vec<f64>> {
    let base = to_f64(&current_th.f_mul(grad_th)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?)?;
    let mut scores = to_f64(&grad_th.f_matmul(&allowed_eh.f_transpose(0, 1)?)?)?;
    let width = scores.len() / base.len().max(1);
    for (row, base) in scores.chunks_exact_mut(width.max(1)).zip(base) {
        row.iter_mut().for_each(|s| *s -= base);
    }
    Ok(scores)
}

fn check(texts: &[Text], budget: &Budget) -> Result<()> {
    if budget.allowed.len() < 2 {
        return Err(ComputeError::Config(
            "fewer than two ids may be flipped to: the training text is too small for this attack".to_owned(),
        ));
    }
    for text in texts {
        let free = eligible_positions(text, &[], budget).len();
        if free < budget.flips {
            return Err(ComputeError::Config(format!(
                "a text has {free} positions that may be flipped, fewer than `num_flips` = {}: lower it or use longer texts",
                budget.flips
            )));
        }
    }
    Ok(())
}

/// Input positions whose id is not special and was not flipped before.
fn eligible_positions(text: &Text, done: &[Flip], budget: &Budget) -> Vec<usize> {
    let inputs = text.ids.len().saturating_sub(1);
    let special = |id: i64| budget.special.iter().any(|&s| i64::from(s) == id);
    (0..inputs).filter(|&p| !special(text.ids[p]) && done.iter().all(|f| f.position != p)).collect()
}

fn one_shot(
    grad_th: &Tensor,
    allowed_eh: &Tensor,
    text: &Text,
    eligible: &[usize],
    budget: &Budget,
    count: usize,
) -> Result<Vec<Flip>> {
    let norms = to_f64(&grad_th.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), false)?)?;
    let mut order = eligible.to_vec();
    // Stable: of equal norms the first position wins.
    order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]));
    order.truncate(count);
    let positions: Vec<i64> = order.iter().map(|&p| p as i64).collect();
    let picked_ph = grad_th.f_index_select(0, &Tensor::f_from_slice(&positions)?.f_to_device(grad_th.device())?)?;
    let scores = to_f64(&picked_ph.f_matmul(&allowed_eh.f_transpose(0, 1)?)?)?;
    let flip = |(position, scores): (usize, &[f64])| {
        let without_current = scores
            .iter()
            .zip(&budget.allowed)
            .map(|(&s, &id)| if id == text.ids[position] { f64::NEG_INFINITY } else { s });
        let best = arg_max(without_current).ok_or_else(no_gradient)?;
        Ok(Flip { position, id: budget.allowed[best] })
    };
    order.iter().copied().zip(scores.chunks_exact(budget.allowed.len())).map(flip).collect()
}

fn best_flip(
    grad_th: &Tensor,
    allowed_eh: &Tensor,
    embedding_vh: &Tensor,
    text: &Text,
    eligible: &[usize],
    budget: &Budget,
) -> Result<Flip> {
    let inputs = Tensor::f_from_slice(&text.ids[..text.ids.len() - 1])?.f_to_device(embedding_vh.device())?;
    let current_th = embedding_vh.f_index_select(0, &inputs)?;
    let gains = first_order_gains(grad_th, allowed_eh, &current_th)?;
    let width = budget.allowed.len();
    let gains = eligible.iter().flat_map(|&p| {
        let (gains, current) = (&gains[p * width..(p + 1) * width], text.ids[p]);
        gains.iter().zip(&budget.allowed).map(move |(&g, &id)| if id == current { f64::NEG_INFINITY } else { g })
    });
    let best = arg_max(gains).ok_or_else(no_gradient)?;
    Ok(Flip { position: eligible[best / width], id: budget.allowed[best % width] })
}

fn no_gradient() -> ComputeError {
    ComputeError::Failed(
        "the gradient by the embeddings is not finite: the model diverged; look at its training stage".to_owned(),
    )
}

fn row_of(text: &Text) -> Row {
    let t = text.ids.len() - 1;
    Row { inputs: text.ids[..t].to_vec(), targets: text.ids[1..].to_vec() }
}

/// Clean and attacked losses. Both scopes compare the same targets before and after.
fn judge(model: &dyn LanguageModel, texts: &[Text], flips: &[Vec<Flip>], grain: Grain) -> Result<Vec<Attacked>> {
    let attacked = |k: usize| {
        let mut text = texts[k].clone();
        for flip in &flips[k] {
            text.ids[flip.position] = flip.id;
        }
        text
    };
    let measure = |text: &dyn Fn(usize) -> Text| -> Result<Vec<[f64; 2]>> {
        let mut means = Vec::with_capacity(texts.len());
        nll_of_rows(model, texts.len(), &|k| row_of(&text(k)), grain, &mut |k, nll| {
            let (mut all, mut untouched) = (Sum::default(), Sum::default());
            for (target, &value) in nll.iter().enumerate().map(|(i, v)| (i + 1, v)) {
                all.add(value);
                if flips[k].iter().all(|f| f.position != target) {
                    untouched.add(value);
                }
            }
            means.push([all.mean(), untouched.mean()]);
        })?;
        Ok(means)
    };
    let clean = measure(&|k| texts[k].clone())?;
    let after = measure(&attacked)?;
    let join = |k: usize| Attacked {
        id: texts[k].id,
        flips: flips[k].clone(),
        all: Pair { clean: clean[k][0], attacked: after[k][0] },
        untouched: Pair { clean: clean[k][1], attacked: after[k][1] },
    };
    Ok((0..texts.len()).map(join).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::evaluate::tests::TinyModel;

    const VOCAB: i64 = 24;

    fn texts(n: u64, length: usize) -> Vec<Text> {
        let text = |id| {
            let mut rng = Rng::new(4, Purpose::AttackSamples, 7, id);
            Text { id, ids: (0..=length).map(|_| 2 + rng.below(VOCAB as u64 - 2) as i64).collect() }
        };
        (0..n).map(text).collect()
    }

    fn budget(flips: usize) -> Budget {
        Budget { flips, allowed: (2..VOCAB).collect(), special: vec![0, 1] }
    }

    fn loss(model: &TinyModel, ids: &[i64]) -> f64 {
        let (inputs, targets) = to_tensors(&[row_of(&Text { id: 0, ids: ids.to_vec() })]).unwrap();
        f64::try_from(model.nll(&inputs, &targets).unwrap().sum(Kind::Double)).unwrap()
    }

    #[test]
    fn first_order_gain_is_the_finite_difference_along_the_flip() {
        let model = TinyModel::new(VOCAB, 5, 11);
        let text = &texts(1, 8)[0];
        let (inputs, targets) = to_tensors(&[row_of(text)]).unwrap();
        let (_, grad) = model.embedding_gradient(&inputs, &targets).unwrap();
        let x = model.e_vh.index_select(0, &inputs.view([-1])).view([1, 8, -1]);
        let gains = first_order_gains(&grad.get(0), &model.e_vh, &x.get(0)).unwrap();
        for position in 0..8 {
            let current = model.e_vh.get(text.ids[position]);
            for id in 0..VOCAB {
                let step = 1e-5;
                let along = (model.e_vh.get(id) - &current) * step;
                let moved = |sign: f64| {
                    let x = x.copy();
                    let mut row = x.get(0).get(position as i64);
                    row += &along * sign;
                    f64::try_from(model.nll_of_embeddings(&x, &targets).sum(Kind::Double)).unwrap()
                };
                let finite = (moved(1.0) - moved(-1.0)) / (2.0 * step);
                let gain = gains[position * VOCAB as usize + id as usize];
                assert!((gain - finite).abs() < 1e-6 * (1.0 + finite.abs()), "{position} {id}: {gain} {finite}");
            }
        }
    }

    #[test]
    fn one_flip_is_near_the_best_of_the_whole_vocabulary() {
        let model = TinyModel::new(VOCAB, 5, 12);
        let mut ranks = Vec::new();
        for text in texts(20, 8) {
            let found =
                attack(&model, std::slice::from_ref(&text), Mode::Iterative, &budget(1), Grain::new(1, 1).unwrap());
            let flip = found.unwrap()[0].flips[0];
            assert_ne!(flip.id, text.ids[flip.position]);
            // Only the input changes here: that is what the gradient knows about.
            let (_, targets) = to_tensors(&[row_of(&text)]).unwrap();
            let changed = |position: usize, id: i64| {
                let mut inputs = text.ids[..8].to_vec();
                inputs[position] = id;
                let inputs = Tensor::from_slice(&inputs).view([1, -1]);
                f64::try_from(model.nll(&inputs, &targets).unwrap().sum(Kind::Double)).unwrap()
            };
            let reached = changed(flip.position, flip.id);
            let better = (0..8)
                .flat_map(|p| (2..VOCAB).map(move |id| (p, id)))
                .filter(|&(p, id)| id != text.ids[p] && changed(p, id) > reached)
                .count();
            ranks.push(better);
        }
        // Of 8 x 21 flips a random one would have rank 84 in the middle.
        ranks.sort_unstable();
        assert!(ranks[10] < 30, "{ranks:?}");
    }

    #[test]
    fn budgets_are_spent_exactly_and_within_the_rules() {
        let model = TinyModel::new(VOCAB, 5, 13);
        let mut texts = texts(7, 10);
        texts[2].ids[4] = 0;
        let grain = Grain::new(3, 3).unwrap();
        for flips in [1, 3] {
            let runs = [
                attack(&model, &texts, Mode::OneShot, &budget(flips), grain).unwrap(),
                attack(&model, &texts, Mode::Iterative, &budget(flips), grain).unwrap(),
                random_control(&model, &texts, &budget(flips), 42, grain).unwrap(),
            ];
            for run in &runs {
                for (text, attacked) in texts.iter().zip(run) {
                    let positions: std::collections::BTreeSet<usize> =
                        attacked.flips.iter().map(|f| f.position).collect();
                    assert_eq!(positions.len(), flips, "different positions");
                    for flip in &attacked.flips {
                        assert!(flip.id >= 2 && flip.id != text.ids[flip.position] && text.ids[flip.position] != 0);
                    }
                    let clean = loss(&model, &text.ids) / 10.0;
                    assert!((attacked.all.clean - clean).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn untouched_targets_leave_out_exactly_the_flipped_ones() {
        let model = TinyModel::new(VOCAB, 5, 14);
        let text = &texts(1, 6)[0];
        let flips = vec![vec![Flip { position: 0, id: 3 }, Flip { position: 4, id: 5 }]];
        let found = judge(&model, std::slice::from_ref(text), &flips, Grain::new(1, 1).unwrap()).unwrap();
        let mut ids = text.ids.clone();
        (ids[0], ids[4]) = (3, 5);
        let (inputs, targets) = to_tensors(&[row_of(&Text { id: 0, ids })]).unwrap();
        let nll = to_f64(&model.nll(&inputs, &targets).unwrap()).unwrap();
        // Position 0 is no target; position 4 is the target at index 3.
        let kept: f64 = nll.iter().enumerate().filter(|(i, _)| *i != 3).map(|(_, v)| v).sum();
        assert!((found[0].untouched.attacked - kept / 5.0).abs() < 1e-12);
        assert!((found[0].all.attacked - nll.iter().sum::<f64>() / 6.0).abs() < 1e-12);
    }

    #[test]
    fn batch_size_changes_no_bit() {
        let model = TinyModel::new(VOCAB, 5, 15);
        let texts = texts(11, 9);
        for mode in [Mode::OneShot, Mode::Iterative] {
            let run = |batch| attack(&model, &texts, mode, &budget(2), Grain::new(4, batch).unwrap()).unwrap();
            assert_eq!(run(1), run(64));
        }
    }

    #[test]
    fn a_budget_that_cannot_be_spent_is_refused() {
        let model = TinyModel::new(VOCAB, 5, 16);
        let error = attack(&model, &texts(1, 3), Mode::OneShot, &budget(4), Grain::new(1, 1).unwrap()).unwrap_err();
        assert!(error.to_string().contains("num_flips"), "{error}");
    }
}
