//! Universal adversarial triggers: a few ids that, put before many texts, raise their loss (or lower it).
//!
//! Coordinate search over the trigger's positions, with a beam; a candidate takes a place in the beam only by its true loss
//! over the texts, and the present triggers stay in it, so a search never ends worse than it began. `random` draws
//! the candidates of a position from a pool (the historic search); `gradient` takes those with the largest first-order
//! gain over all allowed ids (Wallace et al. 2019), by a new gradient at each position (their GPT-2 variant) or one a sweep
//! (their classifier variant). All restarts take a step together. The trigger is put before the texts as ids: it is never
//! decoded and encoded again, so its length is what it was.

mod judge;
#[cfg(test)]
mod tests;

pub use judge::{Judged, Judgement, judge};

use serde::{Deserialize, Serialize};

use super::survival::Survival;
use super::victim::Victim;
use super::{Ended, Next, Rows, Scope, Text, finite, no_gradient, share};
use crate::compute::comm::Comm;
use crate::compute::evaluate::Grain;
use crate::compute::rng::{Purpose, Rng};
use crate::compute::{ComputeError, Result};

/// Where candidates come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// Drawn from the pool.
    Random,
    /// The largest first-order gains, by a new gradient at each position.
    Gradient,
    /// The same, by one gradient a sweep.
    GradientBySweep,
}

/// What a trigger is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// Raise the loss of the texts: untargeted.
    Raise,
    /// Lower it: the texts are targets that the model is to be made to say.
    Lower,
}

impl Objective {
    fn better(self, a: f64, b: f64) -> bool {
        match self {
            Self::Raise => a > b,
            Self::Lower => a < b,
        }
    }

    /// A number that is larger the better the loss is.
    fn sign(self) -> f64 {
        match self {
            Self::Raise => 1.0,
            Self::Lower => -1.0,
        }
    }
}

/// Whether candidates are given up as soon as they cannot win.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruning {
    /// Every candidate is scored on every text.
    Off,
    /// Where loss is lowered, a candidate whose NLL over some texts exceeds the bar already is not scored on the others. NLL
    /// is never below zero, so it could not have won: the result is the same.
    On,
}

/// A search.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Ids in a trigger.
    pub length: usize,
    /// Where candidates come from.
    pub search: Search,
    /// What is looked for.
    pub objective: Objective,
    /// Numbers of independent searches; the best one counts.
    pub restarts: Vec<u32>,
    /// Sweeps over all positions in one search, at most.
    pub iterations: u32,
    /// Candidates tried at one position for every trigger of the beam.
    pub candidates: usize,
    /// Triggers that are kept from one position to the next; a sweep goes on from the best.
    pub beam: usize,
    /// Ids that first triggers and random candidates come from: see [`pool`].
    pub pool: Vec<i64>,
    /// Ids that gradient candidates come from, sorted.
    pub allowed: Vec<i64>,
    /// Whose loss is looked at.
    pub scope: Scope,
    /// Whether hopeless candidates are given up early: changes time only.
    pub pruning: Pruning,
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

/// A trigger and its loss on the texts, nats per token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scored {
    /// Its ids.
    pub ids: Vec<i64>,
    /// Its loss.
    pub loss: f64,
}

/// One search, on its way or at its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// Its number.
    pub number: u32,
    /// What it draws with.
    pub seed: u32,
    /// The trigger it began with.
    pub first: Scored,
    /// The triggers it has now, best first.
    pub beam: Vec<Scored>,
    /// Loss after each sweep.
    pub sweep_losses: Vec<f64>,
    /// Candidates of every position, where one gradient serves a whole sweep.
    pub candidates: Vec<Vec<i64>>,
    /// Triggers whose loss was asked for.
    pub evaluations: u64,
    /// Triggers whose gradient was asked for.
    pub gradients: u64,
    /// Whether it is over.
    pub done: bool,
}

impl Restart {
    /// The best trigger so far.
    pub fn trigger(&self) -> &[i64] {
        self.beam.first().map_or(&self.first.ids, |b| &b.ids)
    }

    /// Its loss.
    pub fn loss(&self) -> f64 {
        self.beam.first().map_or(self.first.loss, |b| b.loss)
    }

    /// What it cost, in passes of all texts forward; a gradient is one forward and one backward.
    pub fn passes(&self) -> u64 {
        self.evaluations + 2 * self.gradients
    }
}

/// All searches of one model, between two steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// By restart; empty before the first step.
    pub restarts: Vec<Restart>,
    /// Sweeps that are over, and positions of the present one.
    pub sweep: u32,
    /// See [`Self::sweep`].
    pub position: usize,
}

impl State {
    /// Whether every search is over.
    pub fn is_done(&self) -> bool {
        !self.restarts.is_empty() && self.restarts.iter().all(|r| r.done)
    }

    /// What all of them cost: see [`Restart::passes`].
    pub fn passes(&self) -> u64 {
        self.restarts.iter().map(Restart::passes).sum()
    }

    /// The restart with the best loss; of equal ones that with the lowest number.
    pub fn best(&self, objective: Objective) -> Option<&Restart> {
        let key = |r: &&Restart| (objective.sign() * r.loss(), std::cmp::Reverse(r.number));
        self.restarts.iter().max_by(|a, b| {
            let (a, b) = (key(a), key(b));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
        })
    }
}

/// Seed of restart `r` of a cell's seed.
pub fn restart_seed(seed: u32, restart: u32) -> u32 {
    seed.wrapping_add(1000u32.wrapping_mul(restart + 1))
}

/// Who computes a search, and with what.
pub struct Field<'a> {
    /// The model.
    pub victim: &'a mut dyn Victim,
    /// The ranks that share the work.
    pub comm: &'a Comm,
    /// The texts.
    pub texts: &'a [Text],
    /// Which ids count as text.
    pub survival: Survival<'a>,
    /// Rows of a pass: those of a grain with gradients, which take memory, and all that may be in flight without.
    pub grain: Grain,
}

/// Searches triggers until all restarts are over. `state` is empty, or what an earlier call left; `after` is called behind
/// every step, on every rank, and may end the search.
///
/// # Errors
/// The pool is too small, trigger and text do not fit the model, the model refuses, a loss is not finite, or what `after`
/// returns.
pub fn search(
    field: &mut Field<'_>,
    plan: &Plan,
    state: &mut State,
    after: &mut dyn FnMut(&State) -> Result<Next>,
) -> Result<Ended> {
    check(field, plan)?;
    if state.restarts.is_empty() {
        begin(field, plan, state)?;
        if after(state)? == Next::Stop {
            return Ok(Ended::Stopped);
        }
    }
    while !state.is_done() {
        step(field, plan, state)?;
        if after(state)? == Next::Stop {
            return Ok(Ended::Stopped);
        }
    }
    Ok(Ended::Done)
}

fn check(field: &Field<'_>, plan: &Plan) -> Result<()> {
    if plan.pool.len() < 2 || plan.allowed.len() < 2 {
        return Err(ComputeError::Config(
            "fewer than two ids may stand in a trigger: raise `num_candidates` or give the study more text".to_owned(),
        ));
    }
    if plan.length == 0 || plan.restarts.is_empty() || plan.candidates == 0 || plan.beam == 0 {
        return Err(ComputeError::Config(
            "a search needs a trigger, a restart, a candidate and a beam of at least 1: raise what is 0".to_owned(),
        ));
    }
    let longest = longest(field.texts);
    if longest == 0 {
        return Err(ComputeError::Config("there is no text to attack: raise `num_samples`".to_owned()));
    }
    let most = field.victim.max_len();
    if longest + plan.length > most {
        return Err(ComputeError::Config(format!(
            "a text of {longest} tokens and a trigger of {} do not fit the model's {most} positions: lower `sample_tokens`",
            plan.length,
        )));
    }
    Ok(())
}

/// Targets of the longest text.
fn longest(texts: &[Text]) -> usize {
    texts.iter().map(|t| t.ids.len().saturating_sub(1)).max().unwrap_or(0)
}

/// Draws of a first trigger before it is given up that one survives.
const DRAWS: u64 = 10_000;

/// The first trigger of random ids of the pool that comes back from text; its draw.
fn draw_trigger(plan: &Plan, seed: u32, step: u32, from: u64, survival: Survival<'_>) -> Result<(Vec<i64>, u64)> {
    for draw in from..from + DRAWS {
        let at = |position: u64| Rng::new(seed, Purpose::Trigger, step, draw * plan.length as u64 + position);
        let ids: Vec<i64> = (0..plan.length as u64).map(|p| plan.pool[at(p).index(plan.pool.len())]).collect();
        if survival.holds(&ids)? {
            return Ok((ids, draw));
        }
    }
    Err(ComputeError::Config(format!(
        "of {DRAWS} random triggers none is the same after decoding and encoding: set `surviving = false`, or raise `num_candidates`"
    )))
}

/// A trigger of random ids of the pool: the control that costs no search.
///
/// # Errors
/// None of many survives.
pub fn random_trigger(plan: &Plan, survival: Survival<'_>) -> Result<Vec<i64>> {
    Ok(draw_trigger(plan, plan.seed, 0, 0, survival)?.0)
}

fn begin(field: &mut Field<'_>, plan: &Plan, state: &mut State) -> Result<()> {
    let mut firsts = Vec::new();
    for &r in &plan.restarts {
        firsts.push(draw_trigger(plan, restart_seed(plan.seed, r), 0, 0, field.survival)?.0);
    }
    let losses = losses(field, plan, &firsts, &vec![None; firsts.len()])?;
    for ((&number, ids), loss) in plan.restarts.iter().zip(firsts).zip(losses) {
        let first = Scored { ids, loss: loss.ok_or_else(no_gradient)? };
        state.restarts.push(Restart {
            number,
            seed: restart_seed(plan.seed, number),
            beam: vec![first.clone()],
            first,
            sweep_losses: Vec::new(),
            candidates: Vec::new(),
            evaluations: 1,
            gradients: 0,
            done: plan.iterations == 0,
        });
    }
    Ok(())
}

/// One position of every restart that is not over.
fn step(field: &mut Field<'_>, plan: &Plan, state: &mut State) -> Result<()> {
    let (sweep, position) = (state.sweep, state.position);
    let active: Vec<usize> = (0..state.restarts.len()).filter(|&r| !state.restarts[r].done).collect();
    let proposed = propose(field, plan, state, &active)?;

    // The work of all restarts is one list.
    let (mut triggers, mut bars) = (Vec::new(), Vec::new());
    for (&r, proposed) in active.iter().zip(&proposed) {
        let full = state.restarts[r].beam.len() == plan.beam;
        let bar = state.restarts[r].beam.last().map(|b| b.loss).filter(|_| full);
        triggers.extend(proposed.iter().cloned());
        bars.extend(proposed.iter().map(|_| bar));
    }
    let mut found = losses(field, plan, &triggers, &bars)?.into_iter();
    for (&r, proposed) in active.iter().zip(proposed) {
        let restart = &mut state.restarts[r];
        restart.evaluations += proposed.len() as u64;
        // One that was given up cannot be among the best.
        let scored = proposed.into_iter().zip(&mut found).filter_map(|(ids, loss)| Some(Scored { ids, loss: loss? }));
        restart.beam.extend(scored);
        // Stable: of equal ones the present trigger stays, then the first candidate.
        restart.beam.sort_by(|a, b| (plan.objective.sign() * b.loss).total_cmp(&(plan.objective.sign() * a.loss)));
        restart.beam.truncate(plan.beam);
    }
    state.position += 1;
    if state.position == plan.length {
        (state.position, state.sweep) = (0, sweep + 1);
        for &r in &active {
            let restart = &mut state.restarts[r];
            let before = restart.sweep_losses.last().copied().unwrap_or(restart.first.loss);
            let now = restart.loss();
            restart.sweep_losses.push(now);
            restart.beam.truncate(1);
            restart.candidates.clear();
            restart.done = sweep + 1 == plan.iterations || !plan.objective.better(now, before);
        }
    }
    debug_assert!(position < plan.length);
    Ok(())
}

/// New triggers of every active restart, without those it has.
fn propose(field: &mut Field<'_>, plan: &Plan, state: &mut State, active: &[usize]) -> Result<Vec<Vec<Vec<i64>>>> {
    let position = state.position;
    // Whose gradients are needed: all triggers of the beam, or the one that a sweep begins with.
    let mut asked: Vec<(usize, usize)> = Vec::new();
    for &r in active {
        match plan.search {
            Search::Random => {}
            Search::Gradient => asked.extend((0..state.restarts[r].beam.len()).map(|b| (r, b))),
            Search::GradientBySweep if position == 0 => asked.push((r, 0)),
            Search::GradientBySweep => {}
        }
    }
    let triggers: Vec<Vec<i64>> = asked.iter().map(|&(r, b)| state.restarts[r].beam[b].ids.clone()).collect();
    let positions = if plan.search == Search::GradientBySweep { 0..plan.length } else { position..position + 1 };
    let summed = gradients(field, plan, &triggers, positions.clone())?;
    let width = field.victim.width();
    let mut ranked: Vec<Vec<i64>> = Vec::new();
    for (n, &(r, b)) in asked.iter().enumerate() {
        state.restarts[r].gradients += 1;
        let each = positions.len() * width;
        let mut by_position = Vec::new();
        for (p, g) in positions.clone().zip(summed[n * each..(n + 1) * each].chunks_exact(width)) {
            by_position.push(best_ids(field, plan, &triggers[n], p, g)?);
        }
        if plan.search == Search::GradientBySweep {
            debug_assert_eq!(b, 0);
            state.restarts[r].candidates = by_position;
        } else {
            ranked.append(&mut by_position);
        }
    }
    let mut ranked = ranked.into_iter();
    let mut proposed = Vec::new();
    for &r in active {
        let restart = &state.restarts[r];
        let mut new: Vec<Vec<i64>> = Vec::new();
        for b in 0..restart.beam.len() {
            let ids = match plan.search {
                Search::Random => random_candidates(plan, restart.seed, state.sweep, position),
                Search::Gradient => ranked.next().unwrap_or_default(),
                Search::GradientBySweep => restart.candidates[position].clone(),
            };
            for id in ids {
                let mut candidate = restart.beam[b].ids.clone();
                candidate[position] = id;
                let known = restart.beam.iter().any(|s| s.ids == candidate) || new.contains(&candidate);
                // Those of a gradient at this position were asked when they were ranked.
                if !known && (plan.search == Search::Gradient || field.survival.holds(&candidate)?) {
                    new.push(candidate);
                }
            }
        }
        proposed.push(new);
    }
    Ok(proposed)
}

fn random_candidates(plan: &Plan, seed: u32, sweep: u32, position: usize) -> Vec<i64> {
    let mut rng = Rng::new(seed, Purpose::Trigger, sweep + 1, position as u64);
    rng.distinct(plan.pool.len(), plan.candidates).into_iter().map(|i| plan.pool[i]).collect()
}

/// The allowed ids with the best first-order gain `G . E_v` at one position of a trigger that survive there.
fn best_ids(field: &mut Field<'_>, plan: &Plan, trigger: &[i64], position: usize, g: &[f64]) -> Result<Vec<i64>> {
    let scores = field.victim.products(g)?;
    if scores.iter().any(|s| !s.is_finite()) {
        return Err(no_gradient());
    }
    let score = |id: i64| plan.objective.sign() * scores.get(id as usize).copied().unwrap_or(f64::NEG_INFINITY);
    let mut ids: Vec<i64> = plan.allowed.iter().copied().filter(|&id| id != trigger[position]).collect();
    // Of equal scores the lowest id wins.
    let order = |a: &i64, b: &i64| score(*b).total_cmp(&score(*a)).then(a.cmp(b));
    if !field.survival.is_asked() && ids.len() > plan.candidates {
        ids.select_nth_unstable_by(plan.candidates, order);
        ids.truncate(plan.candidates);
    }
    ids.sort_unstable_by(order);
    let mut best = Vec::with_capacity(plan.candidates);
    let mut candidate = trigger.to_vec();
    for id in ids {
        if best.len() == plan.candidates {
            break;
        }
        candidate[position] = id;
        if field.survival.holds(&candidate)? {
            best.push(id);
        }
    }
    Ok(best)
}

/// The gradient of the texts' loss by the embeddings of each trigger at `positions`, summed over the texts, in order:
/// `[triggers, positions, h]`.
fn gradients(
    field: &mut Field<'_>,
    plan: &Plan,
    triggers: &[Vec<i64>],
    positions: std::ops::Range<usize>,
) -> Result<Vec<f64>> {
    let (texts, h) = (field.texts, field.victim.width());
    let (len, each) = (longest(texts) + plan.length, positions.len() * h);
    let victim = &mut *field.victim;
    let all =
        share::values(field.comm, triggers.len() * texts.len(), field.grain.grain_rows, each, &mut |items, to| {
            let mut rows = Rows::of(len);
            items.for_each(|i| push(&mut rows, &triggers[i / texts.len()], &texts[i % texts.len()], plan.scope));
            let derived = victim.gradient(&rows)?;
            for (to, by_inputs) in to.chunks_exact_mut(each).zip(derived.by_inputs.chunks_exact(len * h)) {
                to.copy_from_slice(&by_inputs[positions.start * h..positions.end * h]);
            }
            Ok(())
        })?;
    let mut summed = vec![0.0; triggers.len() * each];
    for (i, one) in all.chunks_exact(each.max(1)).enumerate() {
        let trigger = i / texts.len();
        summed[trigger * each..(trigger + 1) * each].iter_mut().zip(one).for_each(|(s, g)| *s += g);
    }
    Ok(summed)
}

/// Trigger and text as one row; in the scope of untouched targets only the text's own targets are scored.
fn push(rows: &mut Rows, trigger: &[i64], text: &Text, scope: Scope) {
    let first = if scope == Scope::UntouchedTargets { trigger.len() + 1 } else { 1 };
    rows.push(trigger.iter().chain(&text.ids).copied(), first);
}

/// Sum of NLL of every (trigger, text), triggers first, and the number of targets of each text.
fn sums(field: &mut Field<'_>, plan: &Plan, triggers: &[Vec<i64>], texts: &[Text]) -> Result<Vec<f64>> {
    let len = longest(field.texts) + plan.length;
    let victim = &mut *field.victim;
    share::values(field.comm, triggers.len() * texts.len(), field.grain.in_flight(), 1, &mut |items, to| {
        let mut rows = Rows::of(len);
        items.for_each(|i| push(&mut rows, &triggers[i / texts.len()], &texts[i % texts.len()], plan.scope));
        let nll = victim.nll(&rows)?;
        finite(&nll)?;
        for (to, nll) in to.iter_mut().zip(rows.split(&nll)) {
            *to = nll.iter().sum();
        }
        Ok(())
    })
}

/// Targets of a text behind a trigger that are in scope.
fn targets(text: &Text, plan: &Plan) -> i64 {
    let own = text.ids.len() as i64 - 1;
    if plan.scope == Scope::UntouchedTargets { own } else { own + plan.length as i64 }
}

/// Parts that the texts are cut into where candidates may be given up.
const PARTS: usize = 4;

/// The loss of each trigger over all texts, nats per token; none where it was given up because it is above its bar.
fn losses(field: &mut Field<'_>, plan: &Plan, triggers: &[Vec<i64>], bars: &[Option<f64>]) -> Result<Vec<Option<f64>>> {
    let texts = field.texts;
    let tokens: i64 = texts.iter().map(|t| targets(t, plan)).sum();
    let prunes = plan.pruning == Pruning::On && plan.objective == Objective::Lower;
    let part = if prunes { texts.len().div_ceil(PARTS) } else { texts.len() };
    let mut totals = vec![0.0; triggers.len()];
    let mut alive: Vec<usize> = (0..triggers.len()).collect();
    let mean = |total: f64| total / tokens as f64;
    for texts in texts.chunks(part.max(1)) {
        let present: Vec<Vec<i64>> = alive.iter().map(|&i| triggers[i].clone()).collect();
        let found = sums(field, plan, &present, texts)?;
        for (&i, found) in alive.iter().zip(found.chunks_exact(texts.len())) {
            found.iter().for_each(|nll| totals[i] += nll);
        }
        if prunes {
            alive.retain(|&i| bars[i].is_none_or(|bar| mean(totals[i]) <= bar));
        }
    }
    let mut losses = vec![None; triggers.len()];
    alive.into_iter().for_each(|i| losses[i] = Some(mean(totals[i])));
    Ok(losses)
}

/// The best of random triggers: the control that looks at the model as often as a search did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomSearch {
    /// Triggers that were scored.
    pub evaluations: u64,
    /// The next draw.
    pub draw: u64,
    /// The best of them.
    pub best: Option<Scored>,
}

/// Random triggers scored between two calls of `after`.
const DRAWN_AT_ONCE: u64 = 32;

/// Scores `evaluations` random triggers of the pool; a state that is not empty goes on.
///
/// # Errors
/// As [`search`].
pub fn random_search(
    field: &mut Field<'_>,
    plan: &Plan,
    evaluations: u64,
    state: &mut RandomSearch,
    after: &mut dyn FnMut(&RandomSearch) -> Result<Next>,
) -> Result<Ended> {
    check(field, plan)?;
    while state.evaluations < evaluations {
        let mut triggers = Vec::new();
        for _ in 0..DRAWN_AT_ONCE.min(evaluations - state.evaluations) {
            // A step that no sweep reaches.
            let (ids, draw) = draw_trigger(plan, plan.seed, u32::MAX - 1, state.draw, field.survival)?;
            triggers.push(ids);
            state.draw = draw + 1;
        }
        let bar = state.best.as_ref().map(|b| b.loss);
        let losses = losses(field, plan, &triggers, &vec![bar; triggers.len()])?;
        state.evaluations += triggers.len() as u64;
        for (ids, loss) in triggers.into_iter().zip(losses) {
            let Some(loss) = loss else { continue };
            if state.best.as_ref().is_none_or(|best| plan.objective.better(loss, best.loss)) {
                state.best = Some(Scored { ids, loss });
            }
        }
        if after(state)? == Next::Stop {
            return Ok(Ended::Stopped);
        }
    }
    Ok(Ended::Done)
}
