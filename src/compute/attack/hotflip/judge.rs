//! What flips do to texts, in both scopes; and random flips, the control: once, and as the best of as many as an attack
//! looks at the model.

use super::{Budget, Field, Flip, check, eligible_positions, longest};
use crate::compute::Result;
use crate::compute::attack::survival::Survival;
use crate::compute::attack::{Pair, Rows, Scope, Sum, Text, finite, share};
use crate::compute::rng::{Purpose, Rng};

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

/// Clean and attacked losses of every text under its flips. Both scopes compare the same targets before and after.
///
/// # Errors
/// The model refuses, or a loss is not finite.
pub fn judge(field: &mut Field<'_>, flips: &[Vec<Flip>]) -> Result<Vec<Attacked>> {
    let which: Vec<usize> = (0..field.texts.len()).collect();
    let clean = losses(field, &which, flips, false)?;
    let after = losses(field, &which, flips, true)?;
    let join = |k: usize| Attacked {
        id: field.texts[k].id,
        flips: flips[k].clone(),
        all: Pair { clean: clean[k][0], attacked: after[k][0] },
        untouched: Pair { clean: clean[k][1], attacked: after[k][1] },
    };
    Ok(which.into_iter().map(join).collect())
}

/// Mean NLL over all targets and over those that no flip touches, of text `which[i]` with `flips[i]` made or not.
fn losses(field: &mut Field<'_>, which: &[usize], flips: &[Vec<Flip>], made: bool) -> Result<Vec<[f64; 2]>> {
    let (texts, len) = (field.texts, longest(field.texts));
    let victim = &mut *field.victim;
    let found = share::values(field.comm, which.len(), field.grain.in_flight(), 2, &mut |items, to| {
        let mut rows = Rows::of(len);
        for i in items.clone() {
            let now = if made { flipped(&texts[which[i]], &flips[i]) } else { texts[which[i]].ids.clone() };
            rows.push(now.into_iter(), 1);
        }
        let nll = victim.nll(&rows)?;
        finite(&nll)?;
        for ((to, nll), i) in to.chunks_exact_mut(2).zip(rows.split(&nll)).zip(items) {
            let (mut all, mut untouched) = (Sum::default(), Sum::default());
            for (target, &value) in nll.iter().enumerate().map(|(i, v)| (i + 1, v)) {
                all.add(value);
                if flips[i].iter().all(|f| f.position != target) {
                    untouched.add(value);
                }
            }
            to.copy_from_slice(&[all.mean(), untouched.mean()]);
        }
        Ok(())
    })?;
    Ok(found.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect())
}

fn flipped(text: &Text, flips: &[Flip]) -> Vec<i64> {
    let mut ids = text.ids.clone();
    flips.iter().for_each(|flip| ids[flip.position] = flip.id);
    ids
}

/// The control: as many flips, at random positions, to random allowed ids that survive. Drawn by (seed, text, flip), so
/// every model gets the same ones.
///
/// # Errors
/// As [`super::attack`].
pub fn random_control(field: &mut Field<'_>, budget: &Budget, seed: u32) -> Result<Vec<Attacked>> {
    check(field, budget)?;
    let draw = |text: &Text| random_flips(text, budget, seed, 0, field.survival);
    let flips: Vec<Vec<Flip>> = field.texts.iter().map(draw).collect::<Result<_>>()?;
    judge(field, &flips)
}

/// The control that looks at the model as often as an attack: of `draws` random flips of each text those with the largest
/// loss over all targets, the first of equal ones. The first draw is that of [`random_control`].
///
/// # Errors
/// As [`super::attack`].
pub fn random_search(field: &mut Field<'_>, budget: &Budget, seed: u32, draws: u64) -> Result<Vec<Attacked>> {
    check(field, budget)?;
    let mut best: Vec<Option<(f64, Vec<Flip>)>> = vec![None; field.texts.len()];
    let which: Vec<usize> = (0..field.texts.len()).collect();
    for draw in 0..draws.max(1) {
        let one = |text: &Text| random_flips(text, budget, seed, draw, field.survival);
        let flips: Vec<Vec<Flip>> = field.texts.iter().map(one).collect::<Result<_>>()?;
        let found = losses(field, &which, &flips, true)?;
        for ((best, flips), [all, _]) in best.iter_mut().zip(flips).zip(found) {
            if best.as_ref().is_none_or(|b| all > b.0) {
                *best = Some((all, flips));
            }
        }
    }
    let flips: Vec<Vec<Flip>> = best.into_iter().map(|b| b.map_or_else(Vec::new, |b| b.1)).collect();
    judge(field, &flips)
}

/// Draws of an id for one position before it is given up that one survives.
const TRIES: usize = 100;

fn random_flips(text: &Text, budget: &Budget, seed: u32, draw: u64, survival: Survival<'_>) -> Result<Vec<Flip>> {
    // Row numbers of a split are far below 2^32, and so are draws.
    let rng = |n: u64| Rng::new(seed, Purpose::RandomFlip, text.id as u32, draw << 32 | n);
    let eligible = eligible_positions(text, &[], budget);
    // All of them in their order: the first are taken, the others serve where nothing survives.
    let positions = rng(0).distinct(eligible.len(), eligible.len());
    let mut flips = Vec::with_capacity(budget.flips);
    let mut now = text.ids.clone();
    for (n, p) in positions.into_iter().enumerate() {
        if flips.len() == budget.flips {
            break;
        }
        let position = eligible[p];
        let here = text.ids[position];
        let mut rng = rng(n as u64 + 1);
        let others = budget.allowed.len() - usize::from(budget.allowed.binary_search(&here).is_ok());
        for _ in 0..if survival.is_asked() { TRIES } else { 1 } {
            let n = rng.index(others);
            // The n-th of the allowed ids without the one that is there.
            let skipped = budget.allowed.binary_search(&here).is_ok_and(|at| n >= at);
            let id = budget.allowed[n + usize::from(skipped)];
            now[position] = id;
            if survival.holds_flip(text, &now, position)? {
                flips.push(Flip { position, id });
                break;
            }
            now[position] = here;
        }
    }
    Ok(flips)
}
