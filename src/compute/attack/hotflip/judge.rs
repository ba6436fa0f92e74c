//! What flips do to texts, in both scopes; and random flips, the control: once, and as the best of as many as an attack
//! looks at the model.

use serde::{Deserialize, Serialize};

use super::{Budget, Field, Flip, check, eligible_positions, longest};
use crate::compute::Result;
use crate::compute::attack::survival::{FlipSurvival, Survival};
use crate::compute::attack::{Ended, Next, Pair, Rows, Scope, Sum, Text, finite, share};
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
    let mut survivals = survivals(field.texts, field.survival);
    let flips = drawn(field.texts, &mut survivals, budget, seed, 0)?;
    judge(field, &flips)
}

/// The best of random flips of every text, between two draws.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomSearch {
    /// The next draw: so many are done.
    pub draw: u64,
    /// Text by text the best of them; empty before the first.
    pub best: Vec<Drawn>,
}

/// Random flips of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drawn {
    /// In the order in which they were drawn.
    pub flips: Vec<Flip>,
    /// Mean NLL over all targets, nats.
    pub loss: f64,
}

impl RandomSearch {
    /// The best flips of every text: what is judged.
    pub fn flips(&self) -> Vec<Vec<Flip>> {
        self.best.iter().map(|best| best.flips.clone()).collect()
    }

    /// Mean of their losses over the texts, nats.
    pub fn loss(&self) -> f64 {
        self.best.iter().map(|best| best.loss).sum::<f64>() / self.best.len().max(1) as f64
    }
}

/// The control that looks at the model as often as an attack: of `draws` random flips of each text those with the largest
/// loss over all targets, the first of equal ones. The first draw is that of [`random_control`]. `state` is empty, or what an
/// earlier call left; `after` is called behind every draw of all texts, on every rank, and may end the search.
///
/// # Errors
/// As [`super::attack`].
pub fn random_search(
    field: &mut Field<'_>,
    budget: &Budget,
    (seed, draws): (u32, u64),
    state: &mut RandomSearch,
    after: &mut dyn FnMut(&RandomSearch) -> Result<Next>,
) -> Result<Ended> {
    check(field, budget)?;
    let mut survivals = survivals(field.texts, field.survival);
    let which: Vec<usize> = (0..field.texts.len()).collect();
    while state.draw < draws {
        let flips = drawn(field.texts, &mut survivals, budget, seed, state.draw)?;
        let found = losses(field, &which, &flips, true)?;
        let new = flips.into_iter().zip(found).map(|(flips, [loss, _])| Drawn { flips, loss });
        if state.best.is_empty() {
            state.best = new.collect();
        } else {
            state
                .best
                .iter_mut()
                .zip(new)
                .filter(|(best, new)| new.loss > best.loss)
                .for_each(|(best, new)| *best = new);
        }
        state.draw += 1;
        if after(state)? == Next::Stop {
            return Ok(Ended::Stopped);
        }
    }
    Ok(Ended::Done)
}

fn survivals<'a>(texts: &'a [Text], survival: Survival<'a>) -> Vec<FlipSurvival<'a>> {
    texts.iter().map(|text| survival.of_flips(text)).collect()
}

/// Random flips of every text.
fn drawn(
    texts: &[Text],
    survivals: &mut [FlipSurvival<'_>],
    budget: &Budget,
    seed: u32,
    draw: u64,
) -> Result<Vec<Vec<Flip>>> {
    texts.iter().zip(survivals).map(|(text, survival)| random_flips(text, survival, budget, (seed, draw))).collect()
}

/// Draws of an id for one position before it is given up that one survives.
const TRIES: usize = 100;

fn random_flips(
    text: &Text,
    survival: &mut FlipSurvival<'_>,
    budget: &Budget,
    (seed, draw): (u32, u64),
) -> Result<Vec<Flip>> {
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
        for _ in 0..TRIES {
            let n = rng.index(others);
            // The n-th of the allowed ids without the one that is there.
            let skipped = budget.allowed.binary_search(&here).is_ok_and(|at| n >= at);
            let id = budget.allowed[n + usize::from(skipped)];
            now[position] = id;
            if survival.holds(&now, position)? {
                flips.push(Flip { position, id });
                break;
            }
            now[position] = here;
        }
    }
    Ok(flips)
}
