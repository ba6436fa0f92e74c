//! Universal adversarial triggers: a few ids that, put before many texts, raise their loss.
//!
//! Coordinate ascent over the trigger's positions; a candidate replaces an id only if the true loss over the
//! optimisation texts rises, so a trigger is never worse than the one the search began with. `random` draws the
//! candidates of a position from a pool (the historic search); `gradient` takes those with the largest
//! first-order gain over all allowed ids (Wallace et al. 2019), from a new gradient at each position. The trigger
//! is put before the texts as ids: it is never decoded and encoded again, so its length is what it was.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Pair, Scope, Sum, Text};
use crate::compute::data::IGNORED;
use crate::compute::evaluate::{Grain, LanguageModel, Row, nll_of_rows, to_f64, to_tensors};
use crate::compute::rng::{Purpose, Rng};
use crate::compute::{ComputeError, Result};

/// Where candidates come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// Drawn from the pool.
    Random,
    /// The largest first-order gains.
    Gradient,
}

/// A search.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Ids in a trigger.
    pub length: usize,
    /// Where candidates come from.
    pub search: Search,
    /// Independent searches; the best one counts.
    pub restarts: u32,
    /// Sweeps over all positions in one search, at most.
    pub iterations: u32,
    /// Candidates tried at one position.
    pub candidates: usize,
    /// Ids that first triggers and random candidates come from: see [`pool`].
    pub pool: Vec<i64>,
    /// Ids that gradient candidates come from, sorted.
    pub allowed: Vec<i64>,
    /// What is maximised.
    pub scope: Scope,
    /// The cell's seed. Restart r draws with seed + 1000 (r + 1), as the historic runs did.
    pub seed: u32,
}

/// The pool: `size` of the allowed ids, drawn without repetition by (seed), sorted. The historic pool was cut
/// from an unordered set; this one is the same on every run and machine.
pub fn pool(allowed: &[i64], size: usize, seed: u32) -> Vec<i64> {
    let drawn = Rng::new(seed, Purpose::Trigger, u32::MAX, 0).distinct(allowed.len(), size);
    let mut ids: Vec<i64> = drawn.into_iter().map(|i| allowed[i]).collect();
    ids.sort_unstable();
    ids
}

/// One search.
#[derive(Debug, Clone, PartialEq)]
pub struct Restart {
    /// What it drew with.
    pub seed: u32,
    /// The trigger it began with.
    pub first: Vec<i64>,
    /// The trigger it ended with.
    pub trigger: Vec<i64>,
    /// Loss of `first` on the optimisation texts, nats per token.
    pub first_loss: f64,
    /// Loss after each sweep; the last one is that of `trigger`.
    pub sweep_losses: Vec<f64>,
}

impl Restart {
    /// Loss of the trigger it ended with.
    pub fn loss(&self) -> f64 {
        self.sweep_losses.last().copied().unwrap_or(self.first_loss)
    }
}

/// Seed of restart `r` of a cell's seed.
pub fn restart_seed(seed: u32, restart: u32) -> u32 {
    seed.wrapping_add(1000u32.wrapping_mul(restart + 1))
}

/// Searches a trigger on `texts`. Returns every restart; [`best`] picks one.
///
/// # Errors
/// The pool is too small, trigger and text do not fit the model, the model refuses, or a loss is not finite.
pub fn search(model: &dyn LanguageModel, texts: &[Text], plan: &Plan, grain: Grain) -> Result<Vec<Restart>> {
    check(model, texts, plan)?;
    (0..plan.restarts).map(|r| one_search(model, texts, plan, restart_seed(plan.seed, r), grain)).collect()
}

/// The restart with the largest loss on the optimisation texts; the first of equal ones.
pub fn best(restarts: &[Restart]) -> Option<&Restart> {
    super::arg_max(restarts.iter().map(Restart::loss)).map(|i| &restarts[i])
}

/// A trigger of random ids of the pool: the control that costs no search.
pub fn random_trigger(plan: &Plan) -> Vec<i64> {
    draw_trigger(plan, plan.seed)
}

/// Loss of one text without and with a trigger.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// Row number of the text.
    pub id: u64,
    /// With: every target after the trigger's first id. Without: every target of the text.
    pub all: Pair,
    /// The targets of the text alone, in both.
    pub untouched: Pair,
}

impl Judged {
    /// The losses in a scope.
    pub fn pair(&self, scope: Scope) -> Pair {
        match scope {
            Scope::All => self.all,
            Scope::UntouchedTargets => self.untouched,
        }
    }
}

/// What a trigger does to texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Text by text.
    pub texts: Vec<Judged>,
    /// Sums over all texts divided by their tokens, every target.
    pub all: Pair,
    /// The same, targets of the texts alone.
    pub untouched: Pair,
}

impl Judgement {
    /// The losses in a scope.
    pub fn pair(&self, scope: Scope) -> Pair {
        match scope {
            Scope::All => self.all,
            Scope::UntouchedTargets => self.untouched,
        }
    }
}

/// Judges a trigger on `texts`.
///
/// # Errors
/// The model refuses, or a loss is not finite.
pub fn judge(model: &dyn LanguageModel, texts: &[Text], trigger: &[i64], grain: Grain) -> Result<Judgement> {
    let clean = losses(model, texts, &[], grain)?;
    let with = losses(model, texts, trigger, grain)?;
    let total = |losses: &[[Sum; 2]], scope: usize| {
        let mut sum = Sum::default();
        losses.iter().for_each(|l| sum.join(l[scope]));
        sum.mean()
    };
    let pair = |scope| Pair { clean: total(&clean, scope), attacked: total(&with, scope) };
    let judged = |k: usize| {
        let pair = |scope: usize| Pair { clean: clean[k][scope].mean(), attacked: with[k][scope].mean() };
        Judged { id: texts[k].id, all: pair(0), untouched: pair(1) }
    };
    Ok(Judgement { texts: (0..texts.len()).map(judged).collect(), all: pair(0), untouched: pair(1) })
}

fn check(model: &dyn LanguageModel, texts: &[Text], plan: &Plan) -> Result<()> {
    if plan.pool.len() < 2 || plan.allowed.len() < 2 {
        return Err(ComputeError::Config(
            "fewer than two ids may stand in a trigger: raise `num_candidates` or give the study more text".to_owned(),
        ));
    }
    let longest = texts.iter().map(|t| t.ids.len().saturating_sub(1)).max().unwrap_or(0);
    if longest == 0 {
        return Err(ComputeError::Config("there is no text to attack: raise `num_samples`".to_owned()));
    }
    if longest + plan.length > model.max_len() {
        return Err(ComputeError::Config(format!(
            "a text of {longest} tokens and a trigger of {} do not fit the model's {} positions: lower `sample_tokens`",
            plan.length,
            model.max_len()
        )));
    }
    Ok(())
}

fn draw_trigger(plan: &Plan, seed: u32) -> Vec<i64> {
    let id = |position| plan.pool[Rng::new(seed, Purpose::Trigger, 0, position).index(plan.pool.len())];
    (0..plan.length as u64).map(id).collect()
}

fn one_search(model: &dyn LanguageModel, texts: &[Text], plan: &Plan, seed: u32, grain: Grain) -> Result<Restart> {
    let mut known: BTreeMap<Vec<i64>, f64> = BTreeMap::new();
    let mut loss_of = |trigger: &[i64]| -> Result<f64> {
        if let Some(&loss) = known.get(trigger) {
            return Ok(loss);
        }
        let mut sum = Sum::default();
        let scope = usize::from(plan.scope == Scope::UntouchedTargets);
        losses(model, texts, trigger, grain)?.iter().for_each(|l| sum.join(l[scope]));
        known.insert(trigger.to_vec(), sum.mean());
        Ok(sum.mean())
    };
    let first = draw_trigger(plan, seed);
    let first_loss = loss_of(&first)?;
    let (mut trigger, mut loss) = (first.clone(), first_loss);
    let mut sweep_losses = Vec::new();
    for sweep in 0..plan.iterations {
        let before = loss;
        for position in 0..plan.length {
            let candidates = match plan.search {
                Search::Random => random_candidates(plan, seed, sweep, position),
                Search::Gradient => gradient_candidates(model, texts, plan, &trigger, position, grain)?,
            };
            let mut winner = None;
            for id in candidates {
                let mut candidate = trigger.clone();
                candidate[position] = id;
                let found = loss_of(&candidate)?;
                // Of equal ones the first stays, and the present trigger before all.
                if found > loss {
                    (loss, winner) = (found, Some(candidate));
                }
            }
            trigger = winner.unwrap_or(trigger);
        }
        sweep_losses.push(loss);
        if loss <= before {
            break;
        }
    }
    Ok(Restart { seed, first, trigger, first_loss, sweep_losses })
}

fn random_candidates(plan: &Plan, seed: u32, sweep: u32, position: usize) -> Vec<i64> {
    let mut rng = Rng::new(seed, Purpose::Trigger, sweep + 1, position as u64);
    rng.distinct(plan.pool.len(), plan.candidates).into_iter().map(|i| plan.pool[i]).collect()
}

/// The allowed ids with the largest `G . E_v` at one position of the trigger, G summed over the texts.
fn gradient_candidates(
    model: &dyn LanguageModel,
    texts: &[Text],
    plan: &Plan,
    trigger: &[i64],
    position: usize,
    grain: Grain,
) -> Result<Vec<i64>> {
    let mut sum_h: Vec<f64> = Vec::new();
    for group in texts.chunks(grain.grain_rows) {
        let rows: Vec<Row> = group.iter().map(|t| row(t, trigger, plan.scope)).collect();
        let (inputs, targets) = to_tensors(&rows)?;
        let (_, grad_bth) = model.embedding_gradient(&inputs, &targets)?;
        let _no_grad = tch::no_grad_guard();
        let at = to_f64(&grad_bth.f_select(1, position as i64)?)?;
        let h = at.len() / group.len();
        sum_h.resize(h, 0.0);
        for row in at.chunks_exact(h) {
            sum_h.iter_mut().zip(row).for_each(|(s, g)| *s += g);
        }
    }
    let embedding_vh = model.embedding_vh()?;
    let _no_grad = tch::no_grad_guard();
    let sum_h = Tensor::f_from_slice(&sum_h)?.f_to_kind(embedding_vh.kind())?.f_to_device(embedding_vh.device())?;
    let scores = to_f64(&embedding_vh.f_matmul(&sum_h)?)?;
    if scores.iter().any(|s| !s.is_finite()) {
        return Err(ComputeError::Failed(
            "the gradient by the embeddings is not finite: the model diverged; look at its training stage".to_owned(),
        ));
    }
    let mut ids: Vec<i64> = plan.allowed.iter().copied().filter(|&id| id != trigger[position]).collect();
    // Stable: of equal scores the lowest id wins.
    ids.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
    ids.truncate(plan.candidates);
    Ok(ids)
}

/// Trigger and text as one row; in the scope of untouched targets only the text's own targets have labels.
fn row(text: &Text, trigger: &[i64], scope: Scope) -> Row {
    let ids: Vec<i64> = trigger.iter().chain(&text.ids).copied().collect();
    let mut targets = ids[1..].to_vec();
    if scope == Scope::UntouchedTargets {
        targets[..trigger.len()].fill(IGNORED);
    }
    Row { inputs: ids[..ids.len() - 1].to_vec(), targets }
}

/// For each text the sums over all targets and over its own targets.
fn losses(model: &dyn LanguageModel, texts: &[Text], trigger: &[i64], grain: Grain) -> Result<Vec<[Sum; 2]>> {
    let mut found = Vec::with_capacity(texts.len());
    nll_of_rows(model, texts.len(), &|k| row(&texts[k], trigger, Scope::All), grain, &mut |_, nll| {
        let mut sums = [Sum::default(); 2];
        for (i, &value) in nll.iter().enumerate() {
            sums[0].add(value);
            if i >= trigger.len() {
                sums[1].add(value);
            }
        }
        found.push(sums);
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::evaluate::tests::TinyModel;
    use tch::Kind;

    const VOCAB: i64 = 20;

    fn texts(n: u64) -> Vec<Text> {
        let text = |id| {
            let mut rng = Rng::new(6, Purpose::AttackSamples, 3, id);
            Text { id, ids: (0..=9).map(|_| 2 + rng.below(VOCAB as u64 - 2) as i64).collect() }
        };
        (0..n).map(text).collect()
    }

    fn plan(search: Search, length: usize, candidates: usize) -> Plan {
        let allowed: Vec<i64> = (2..VOCAB).collect();
        Plan {
            length,
            search,
            restarts: 2,
            iterations: 4,
            candidates,
            pool: pool(&allowed, 12, 42),
            allowed,
            scope: Scope::UntouchedTargets,
            seed: 42,
        }
    }

    fn grain() -> Grain {
        Grain::new(4, 4).unwrap()
    }

    #[test]
    fn a_search_never_ends_below_where_it_began() {
        let model = TinyModel::new(VOCAB, 5, 21);
        for search_kind in [Search::Random, Search::Gradient] {
            for scope in Scope::ALL {
                let plan = Plan { scope, ..plan(search_kind, 3, 4) };
                let restarts = search(&model, &texts(6), &plan, grain()).unwrap();
                assert_eq!(restarts.len(), 2);
                for r in &restarts {
                    assert!(r.loss() >= r.first_loss);
                    assert!(r.sweep_losses.windows(2).all(|w| w[1] >= w[0]));
                    assert_eq!(r.trigger.len(), 3);
                    // What the search believes is what judging finds.
                    let judged = judge(&model, &texts(6), &r.trigger, grain()).unwrap();
                    assert_eq!(judged.pair(scope).attacked, r.loss());
                }
                assert_ne!(restarts[0].first, restarts[1].first);
                assert!(restarts.iter().all(|r| best(&restarts).unwrap().loss() >= r.loss()));
            }
        }
    }

    #[test]
    fn trying_everything_at_one_position_finds_the_best_of_the_vocabulary() {
        let model = TinyModel::new(VOCAB, 5, 22);
        let texts = texts(6);
        let plan = Plan { iterations: 1, ..plan(Search::Gradient, 1, VOCAB as usize) };
        let restarts = search(&model, &texts, &plan, grain()).unwrap();
        let brute: Vec<f64> =
            (2..VOCAB).map(|id| judge(&model, &texts, &[id], grain()).unwrap().untouched.attacked).collect();
        let best_id = 2 + super::super::arg_max(brute.iter().copied()).unwrap() as i64;
        for r in &restarts {
            assert_eq!(r.trigger, [best_id]);
        }
    }

    #[test]
    fn the_best_gradient_candidates_beat_random_ones_on_average() {
        let model = TinyModel::new(VOCAB, 5, 23);
        let texts = texts(6);
        let plan = plan(Search::Gradient, 2, 4);
        let trigger = random_trigger(&plan);
        let loss = |id: i64| {
            let mut t = trigger.clone();
            t[0] = id;
            judge(&model, &texts, &t, grain()).unwrap().untouched.attacked
        };
        let mean = |ids: &[i64]| ids.iter().map(|&id| loss(id)).sum::<f64>() / ids.len() as f64;
        let chosen = gradient_candidates(&model, &texts, &plan, &trigger, 0, grain()).unwrap();
        assert_eq!(chosen.len(), 4);
        assert!(!chosen.contains(&trigger[0]));
        assert!(mean(&chosen) > mean(&plan.allowed), "{} {}", mean(&chosen), mean(&plan.allowed));
    }

    #[test]
    fn scopes_by_hand() {
        let model = TinyModel::new(VOCAB, 5, 24);
        let texts = texts(1);
        let trigger = [3, 4];
        let found = judge(&model, &texts, &trigger, grain()).unwrap();
        let ids: Vec<i64> = trigger.iter().chain(&texts[0].ids).copied().collect();
        let inputs = Tensor::from_slice(&ids[..11]).view([1, -1]);
        let targets = Tensor::from_slice(&ids[1..]).view([1, -1]);
        let nll = to_f64(&model.nll(&inputs, &targets).unwrap()).unwrap();
        assert_eq!(nll.len(), 11);
        assert!((found.all.attacked - nll.iter().sum::<f64>() / 11.0).abs() < 1e-12);
        assert!((found.untouched.attacked - nll[2..].iter().sum::<f64>() / 9.0).abs() < 1e-12);
        assert_eq!(found.all.clean, found.untouched.clean);
        let clean = model
            .nll(
                &Tensor::from_slice(&texts[0].ids[..9]).view([1, -1]),
                &Tensor::from_slice(&texts[0].ids[1..]).view([1, -1]),
            )
            .unwrap();
        assert!((found.all.clean - f64::try_from(clean.mean(Kind::Double)).unwrap()).abs() < 1e-12);
    }

    #[test]
    fn batch_size_changes_no_bit() {
        let model = TinyModel::new(VOCAB, 5, 25);
        let run =
            |batch| search(&model, &texts(7), &plan(Search::Random, 3, 5), Grain::new(3, batch).unwrap()).unwrap();
        assert_eq!(run(1), run(64));
    }

    #[test]
    fn the_pool_is_sorted_small_and_the_same_every_time() {
        let allowed: Vec<i64> = (10..500).collect();
        let ids = pool(&allowed, 30, 42);
        assert_eq!(ids.len(), 30);
        assert!(ids.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(ids, pool(&allowed, 30, 42));
        assert_ne!(ids, pool(&allowed, 30, 43));
        assert_eq!(pool(&allowed, 9999, 42), allowed);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let model = TinyModel::new(VOCAB, 5, 26);
        let error = search(&model, &texts(2), &plan(Search::Random, 60, 4), grain()).unwrap_err().to_string();
        assert!(error.contains("64 positions"), "{error}");
    }
}
