//! HotFlip for causal language models: replace a few tokens of a text so that its loss rises.
//!
//! `one_shot` is the historic attack: one gradient, the positions with the largest gradient norm, at each the
//! token with the largest first-order gain, all flips at once. `iterative` is the canonical greedy one: a new
//! gradient for each flip, and the best (position, token) by `(E_b - E_a) . g`. A flip changes the input and,
//! as in the historic run, the label of the position before it. Flips are never undone.

mod judge;
#[cfg(test)]
mod tests;

pub use judge::{Attacked, RandomSearch, judge, random_control, random_search};

use serde::{Deserialize, Serialize};

use super::survival::{FlipSurvival, Survival};
use super::victim::Victim;
use super::{Ended, Next, Rows, Text, finite, no_gradient, share};
use crate::compute::comm::Comm;
use crate::compute::evaluate::Grain;
use crate::compute::{ComputeError, Result};

/// How flips are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One gradient for all flips.
    OneShot,
    /// One gradient for each flip.
    Iterative,
}

impl Mode {
    /// What an attack costs, in passes of a text forward; a gradient is one forward and one backward.
    pub fn passes(self, budget: &Budget) -> u64 {
        match self {
            Self::OneShot => 2,
            Self::Iterative => 2 * budget.flips as u64,
        }
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flip {
    /// Position in the text.
    pub position: usize,
    /// The new id.
    pub id: i64,
}

/// All texts of one model, between two steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Flips of the texts that are done, in the order in which they were chosen.
    pub flips: Vec<Vec<Flip>>,
}

/// Who computes an attack, and with what.
pub struct Field<'a> {
    /// The model.
    pub victim: &'a mut dyn Victim,
    /// The ranks that share the texts.
    pub comm: &'a Comm,
    /// The texts.
    pub texts: &'a [Text],
    /// Which ids count as text.
    pub survival: Survival<'a>,
    /// Rows of a pass: those of a grain with gradients, which take memory, and all that may be in flight without.
    pub grain: Grain,
}

/// Chooses the flips of every text. `state` is empty, or what an earlier call left; `after` is called behind every round of
/// passes that ranks take together, on every rank, and may end the attack.
///
/// # Errors
/// The model refuses, a loss is not finite, the budget cannot be spent, or what `after` returns.
pub fn attack(
    field: &mut Field<'_>,
    mode: Mode,
    budget: &Budget,
    state: &mut State,
    after: &mut dyn FnMut(&State) -> Result<Next>,
) -> Result<Ended> {
    check(field, budget)?;
    let (unit, width) = (field.grain.grain_rows, 2 * budget.flips);
    while state.flips.len() < field.texts.len() {
        let begin = state.flips.len();
        let end = (begin + unit * field.comm.size()).min(field.texts.len());
        let (all, survival, victim) = (field.texts, field.survival, &mut *field.victim);
        let found = share::values(field.comm, end - begin, unit, width, &mut |items, to| {
            let texts = &all[begin + items.start..begin + items.end];
            let mut work = Work::new(texts, longest(all), survival);
            let (rounds, each) = match mode {
                Mode::OneShot => (1, budget.flips),
                Mode::Iterative => (budget.flips, 1),
            };
            for _ in 0..rounds {
                work.round(victim, (mode, each), budget)?;
            }
            for (to, flips) in to.chunks_exact_mut(width).zip(work.flips()) {
                // A position and an id are exact in f64. A text of which nothing more could be flipped has fewer.
                to.fill(-1.0);
                for (to, flip) in to.chunks_exact_mut(2).zip(flips) {
                    to.copy_from_slice(&[flip.position as f64, flip.id as f64]);
                }
            }
            Ok(())
        })?;
        for flips in found.chunks_exact(width) {
            let made = flips.chunks_exact(2).filter(|f| f[0] >= 0.0);
            state.flips.push(made.map(|f| Flip { position: f[0] as usize, id: f[1] as i64 }).collect());
        }
        if after(state)? == Next::Stop {
            return Ok(Ended::Stopped);
        }
    }
    Ok(Ended::Done)
}

/// Positions whose id is not special and was not flipped before; the last id of a text is a label only.
fn eligible_positions(text: &Text, done: &[Flip], budget: &Budget) -> Vec<usize> {
    let inputs = text.ids.len().saturating_sub(1);
    let special = |id: i64| budget.special.iter().any(|&s| i64::from(s) == id);
    (0..inputs).filter(|&p| !special(text.ids[p]) && done.iter().all(|f| f.position != p)).collect()
}

fn longest(texts: &[Text]) -> usize {
    texts.iter().map(|t| t.ids.len().saturating_sub(1)).max().unwrap_or(0)
}

fn check(field: &Field<'_>, budget: &Budget) -> Result<()> {
    if budget.allowed.len() < 2 {
        return Err(ComputeError::Config(
            "fewer than two ids may be flipped to: the training text is too small for this attack".to_owned(),
        ));
    }
    if budget.flips == 0 || field.texts.is_empty() {
        return Err(ComputeError::Config(
            "there is nothing to flip: set `num_flips` and `num_samples` to at least 1".to_owned(),
        ));
    }
    let (longest, most) = (longest(field.texts), field.victim.max_len());
    if longest > most {
        return Err(ComputeError::Config(format!(
            "a text of {longest} tokens does not fit the model's {most} positions: lower `sample_tokens`"
        )));
    }
    for text in field.texts {
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

/// Ids that are looked at for each position before one is given up that none of them survives.
const LOOKED_AT: usize = 16;

/// Some texts that go through the model together.
pub struct Work<'a> {
    /// Tokens of a row.
    len: usize,
    current: Vec<Text>,
    flips: Vec<Vec<Flip>>,
    /// Ids that are looked at for each position, at most.
    most: usize,
    survivals: Vec<FlipSurvival<'a>>,
}

impl<'a> Work<'a> {
    /// Without a flip; rows of `len` tokens.
    pub fn new(texts: &'a [Text], len: usize, survival: Survival<'a>) -> Self {
        Self {
            len,
            current: texts.to_vec(),
            flips: vec![Vec::new(); texts.len()],
            most: if survival.is_asked() { LOOKED_AT } else { 1 },
            survivals: texts.iter().map(|text| survival.of_flips(text)).collect(),
        }
    }

    /// The flips of every text, in the order in which they were chosen.
    pub fn flips(self) -> Vec<Vec<Flip>> {
        self.flips
    }

    /// One gradient, and by it `each` flips of every text. The loss before them, nats per token.
    ///
    /// # Errors
    /// As [`attack`].
    pub fn round(&mut self, victim: &mut dyn Victim, (mode, each): (Mode, usize), budget: &Budget) -> Result<f64> {
        let h = victim.width();
        let mut rows = Rows::of(self.len);
        self.current.iter().for_each(|t| rows.push(t.ids.iter().copied(), 1));
        let derived = victim.gradient(&rows)?;
        finite(&derived.nll)?;
        if derived.by_inputs.iter().any(|g| !g.is_finite()) {
            return Err(no_gradient());
        }
        // What may be put at the positions that are looked at, of all texts in one product.
        let (mut looked_at, mut g, mut here) = (Vec::<Vec<usize>>::new(), Vec::<f64>::new(), Vec::<i64>::new());
        for (k, g_th) in derived.by_inputs.chunks_exact(self.len * h).enumerate() {
            let (current, flips) = (&self.current[k], &self.flips[k]);
            let mut positions = eligible_positions(current, flips, budget);
            if mode == Mode::OneShot {
                // Stable: of equal norms the first position wins.
                let norm = |p: usize| g_th[p * h..][..h].iter().map(|g| g * g).sum::<f64>();
                positions.sort_by(|&a, &b| norm(b).total_cmp(&norm(a)));
                if self.most == 1 {
                    // Every id survives, so these are the ones.
                    positions.truncate(each);
                }
            }
            positions.iter().for_each(|&p| g.extend_from_slice(&g_th[p * h..][..h]));
            here.extend(positions.iter().map(|&p| current.ids[p]));
            looked_at.push(positions);
        }
        let mut swaps = victim.swaps(&g, &here, &budget.allowed, self.most)?.into_iter();
        for (k, positions) in looked_at.into_iter().enumerate() {
            let (current, flips, survival) = (&mut self.current[k], &mut self.flips[k], &mut self.survivals[k]);
            let mut order: Vec<(f64, Flip)> = Vec::new();
            for (position, swaps) in positions.into_iter().zip(&mut swaps) {
                let flip = |(id, score): (i64, f64)| (score - swaps.here, Flip { position, id });
                order.extend(swaps.others.into_iter().map(flip));
            }
            if mode == Mode::Iterative {
                // Stable: of equal gains the first position wins, and there the lowest id.
                order.sort_by(|a, b| b.0.total_cmp(&a.0));
            }
            let before = flips.len();
            for (_, flip) in order {
                if flips.len() == before + each {
                    break;
                }
                if flips[before..].iter().any(|c| c.position == flip.position) {
                    continue;
                }
                let mut now = current.ids.clone();
                now[flip.position] = flip.id;
                if survival.holds(&now, flip.position)? {
                    current.ids = now;
                    flips.push(flip);
                }
            }
        }
        Ok(derived.nll.iter().sum::<f64>() / derived.nll.len().max(1) as f64)
    }
}
