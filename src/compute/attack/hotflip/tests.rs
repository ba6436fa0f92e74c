//! Flips on an exact fp64 model against finite differences and brute force, and on the native engine bit by bit: batch
//! sizes, ranks, kills between steps.

use std::collections::BTreeSet;
use std::time::Duration;

use tch::Kind;

use super::*;
use crate::compute::attack::tests::{Exact, model, texts};
use crate::compute::attack::victim::Native;
use crate::compute::data::TextTokenizer;

const VOCAB: i64 = 24;

fn budget(flips: usize) -> Budget {
    Budget { flips, allowed: (2..VOCAB).collect(), special: vec![0, 1] }
}

fn field<'a>(victim: &'a mut dyn Victim, comm: &'a Comm, texts: &'a [Text], batch: usize) -> Field<'a> {
    Field { victim, comm, texts, survival: Survival::not_asked(), grain: Grain::new(batch, 2 * batch).unwrap() }
}

fn found(victim: &mut dyn Victim, texts: &[Text], mode: Mode, budget: &Budget) -> Vec<Attacked> {
    let comm = Comm::Solo;
    let mut field = field(victim, &comm, texts, 3);
    let mut state = State::default();
    assert_eq!(attack(&mut field, mode, budget, &mut state, &mut |_| Ok(Next::GoOn)).unwrap(), Ended::Done);
    judge(&mut field, &state.flips).unwrap()
}

/// The best of `draws` random flips of every text, judged.
fn searched(field: &mut Field<'_>, budget: &Budget, draws: u64) -> Vec<Attacked> {
    let mut state = RandomSearch::default();
    let ended = random_search(field, budget, (42, draws), &mut state, &mut |_| Ok(Next::GoOn)).unwrap();
    assert_eq!((ended, state.draw), (Ended::Done, draws));
    judge(field, &state.flips()).unwrap()
}

fn row_of(ids: &[i64]) -> Rows {
    let mut rows = Rows::of(ids.len() - 1);
    rows.push(ids.iter().copied(), 1);
    rows
}

/// What the summed loss gains to first order if the input at each position goes from its embedding to that of each id, by
/// central differences of the loss alone: `[T][V]`.
fn finite_gains(model: &Exact, ids: &[i64]) -> Vec<Vec<f64>> {
    let (x, targets) = model.tensors(&row_of(ids));
    let gain = |position: usize, id: i64| {
        let step = 1e-5;
        let along = (model.e_vh.get(id) - model.e_vh.get(ids[position])) * step;
        let moved = |sign: f64| {
            let x = x.copy();
            let mut row = x.get(0).get(position as i64);
            row += &along * sign;
            f64::try_from(model.nll_of(&x, &targets).sum(Kind::Double)).unwrap()
        };
        (moved(1.0) - moved(-1.0)) / (2.0 * step)
    };
    (0..ids.len() - 1).map(|p| (0..VOCAB).map(|id| gain(p, id)).collect()).collect()
}

/// The norm of the gradient at each position, by central differences.
fn finite_norms(model: &Exact, ids: &[i64]) -> Vec<f64> {
    let (x, targets) = model.tensors(&row_of(ids));
    let by = |position: usize, k: i64| {
        let moved = |by: f64| {
            let x = x.copy();
            let mut number = x.get(0).get(position as i64).get(k);
            number += by;
            f64::try_from(model.nll_of(&x, &targets).sum(Kind::Double)).unwrap()
        };
        (moved(1e-5) - moved(-1e-5)) / 2e-5
    };
    (0..ids.len() - 1).map(|p| (0..model.e_vh.size()[1]).map(|k| by(p, k).powi(2)).sum::<f64>().sqrt()).collect()
}

/// The allowed id with the largest gain at a position whose id is another.
fn best_at(gains: &[f64], here: i64) -> i64 {
    (2..VOCAB).filter(|&id| id != here).max_by(|&a, &b| gains[a as usize].total_cmp(&gains[b as usize])).unwrap()
}

#[test]
fn an_iterative_round_flips_where_the_finite_difference_is_largest() {
    let all = texts(12, 8, VOCAB as u64);
    let mut model = Exact::new(VOCAB, 5, 11);
    let budget = budget(3);
    // Texts together, and flips after flips: every round is asked by the loss of what the texts are by then.
    let mut work = Work::new(&all, 8, Survival::not_asked());
    let mut now: Vec<Vec<i64>> = all.iter().map(|t| t.ids.clone()).collect();
    let mut done: Vec<Vec<Flip>> = vec![Vec::new(); all.len()];
    for _ in 0..3 {
        work.round(&mut model, (Mode::Iterative, 1), &budget).unwrap();
        for (k, ids) in now.iter_mut().enumerate() {
            let gains = finite_gains(&model, ids);
            let free = (0..8).filter(|&p| done[k].iter().all(|f: &Flip| f.position != p));
            let best = free.map(|position| Flip { position, id: best_at(&gains[position], ids[position]) });
            let gain = |f: &Flip| gains[f.position][f.id as usize];
            let best = best.max_by(|a, b| gain(a).total_cmp(&gain(b))).unwrap();
            assert_eq!(work.flips[k].last(), Some(&best), "text {k} of flips {:?}", work.flips[k]);
            ids[best.position] = best.id;
            done[k].push(best);
        }
    }
}

#[test]
fn one_shot_flips_the_positions_with_the_largest_norms_each_to_the_largest_gain() {
    let all = texts(12, 8, VOCAB as u64);
    let mut model = Exact::new(VOCAB, 5, 12);
    let mut work = Work::new(&all, 8, Survival::not_asked());
    work.round(&mut model, (Mode::OneShot, 3), &budget(3)).unwrap();
    for (text, flips) in all.iter().zip(work.flips()) {
        let (gains, norms) = (finite_gains(&model, &text.ids), finite_norms(&model, &text.ids));
        let mut positions: Vec<usize> = (0..8).collect();
        positions.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]));
        let flip = |position: usize| Flip { position, id: best_at(&gains[position], text.ids[position]) };
        let expected: Vec<Flip> = positions.into_iter().take(3).map(flip).collect();
        assert_eq!(flips, expected);
    }
}

#[test]
fn one_flip_is_near_the_best_of_the_whole_vocabulary() {
    let mut ranks = Vec::new();
    for (seed, text) in texts(20, 8, VOCAB as u64).into_iter().enumerate() {
        let mut model = Exact::new(VOCAB, 5, 40 + seed as u32);
        let flip = found(&mut model, std::slice::from_ref(&text), Mode::Iterative, &budget(1))[0].flips[0];
        assert_ne!(flip.id, text.ids[flip.position]);
        // Only the input changes here: that is what the gradient knows about.
        let mut changed = |position: usize, id: i64| {
            let mut rows = row_of(&text.ids);
            rows.inputs[position] = id;
            model.nll(&rows).unwrap().iter().sum::<f64>()
        };
        let reached = changed(flip.position, flip.id);
        let mut better = 0;
        for (p, id) in (0..8).flat_map(|p| (2..VOCAB).map(move |id| (p, id))) {
            better += usize::from(id != text.ids[p] && changed(p, id) > reached);
        }
        ranks.push(better);
    }
    // Of 8 x 21 flips a random one would have rank 84 in the middle.
    ranks.sort_unstable();
    assert!(ranks[10] < 40, "{ranks:?}");
}

#[test]
fn budgets_are_spent_exactly_and_within_the_rules() {
    let mut model = Exact::new(VOCAB, 5, 13);
    let mut texts = texts(7, 10, VOCAB as u64);
    texts[2].ids[4] = 0;
    for flips in [1, 3] {
        let budget = budget(flips);
        let mut runs: Vec<Vec<Attacked>> =
            [Mode::OneShot, Mode::Iterative].map(|mode| found(&mut model, &texts, mode, &budget)).into();
        let comm = Comm::Solo;
        let mut field = field(&mut model, &comm, &texts, 3);
        runs.push(random_control(&mut field, &budget, 42).unwrap());
        runs.push(searched(&mut field, &budget, 5));
        for run in &runs {
            for (text, attacked) in texts.iter().zip(run) {
                let positions: BTreeSet<usize> = attacked.flips.iter().map(|f| f.position).collect();
                assert_eq!(positions.len(), flips, "different positions");
                for flip in &attacked.flips {
                    assert!(flip.id >= 2 && flip.id != text.ids[flip.position] && text.ids[flip.position] != 0);
                }
                let clean = loss(text) / 10.0;
                assert!((attacked.all.clean - clean).abs() < 1e-12);
            }
        }
        // More draws, of which the first is the same.
        for (one, many) in runs[2].iter().zip(&runs[3]) {
            assert!(many.all.attacked >= one.all.attacked);
        }
        assert!(runs[2].iter().zip(&runs[3]).any(|(one, many)| many.all.attacked > one.all.attacked));
    }
}

fn loss(text: &Text) -> f64 {
    Exact::new(VOCAB, 5, 13).nll(&row_of(&text.ids)).unwrap().iter().sum()
}

#[test]
fn an_attack_and_its_control_look_at_the_model_as_often() {
    let texts = texts(5, 9, VOCAB as u64);
    for mode in [Mode::OneShot, Mode::Iterative] {
        let mut model = Exact::new(VOCAB, 5, 13);
        let (budget, comm) = (budget(3), Comm::Solo);
        let mut state = State::default();
        attack(&mut field(&mut model, &comm, &texts, 2), mode, &budget, &mut state, &mut |_| Ok(Next::GoOn)).unwrap();
        assert_eq!(model.seen, [0, 5 * mode.passes(&budget) as usize / 2]);
        model.seen = [0; 2];
        searched(&mut field(&mut model, &comm, &texts, 2), &budget, mode.passes(&budget));
        // Besides the draws: the clean texts and the best draw, judged.
        assert_eq!(model.seen, [5 * (mode.passes(&budget) as usize + 2), 0]);
    }
}

#[test]
fn untouched_targets_leave_out_exactly_the_flipped_ones() {
    let mut model = Exact::new(VOCAB, 5, 14);
    let text = &texts(1, 6, VOCAB as u64)[0];
    let flips = vec![vec![Flip { position: 0, id: 3 }, Flip { position: 4, id: 5 }]];
    let comm = Comm::Solo;
    let found = judge(&mut field(&mut model, &comm, std::slice::from_ref(text), 1), &flips).unwrap();
    let mut ids = text.ids.clone();
    (ids[0], ids[4]) = (3, 5);
    let nll = model.nll(&row_of(&ids)).unwrap();
    // Position 0 is no target; position 4 is the target at index 3.
    let kept: f64 = nll.iter().enumerate().filter(|(i, _)| *i != 3).map(|(_, v)| v).sum();
    assert!((found[0].untouched.attacked - kept / 5.0).abs() < 1e-12);
    assert!((found[0].all.attacked - nll.iter().sum::<f64>() / 6.0).abs() < 1e-12);
}

#[test]
fn batch_size_ranks_and_stops_change_no_bit() {
    let texts = texts(7, 9, 40);
    let budget = Budget { flips: 3, allowed: (2..40).collect(), special: vec![0, 1] };
    for mode in [Mode::OneShot, Mode::Iterative] {
        let run = |comm: &Comm, batch: usize, next: Next| {
            let mut native = Native::new(&model(false), 1).unwrap();
            let mut field = field(&mut native, comm, &texts, batch);
            let (mut state, mut stops) = (State::default(), 0);
            while attack(&mut field, mode, &budget, &mut state, &mut |_| Ok(next)).unwrap() == Ended::Stopped {
                state = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
                stops += 1;
            }
            let mut random = RandomSearch::default();
            while random_search(&mut field, &budget, (42, 4), &mut random, &mut |_| Ok(next)).unwrap() == Ended::Stopped
            {
                random = serde_json::from_str(&serde_json::to_string(&random).unwrap()).unwrap();
                stops += 1;
            }
            (judge(&mut field, &state.flips).unwrap(), random, stops)
        };
        let expected = run(&Comm::Solo, 1, Next::GoOn);
        for batch in [2, 64] {
            assert_eq!(run(&Comm::Solo, batch, Next::GoOn), expected);
        }
        let stopped = run(&Comm::Solo, 2, Next::Stop);
        assert_eq!((stopped.0, stopped.1), (expected.0.clone(), expected.1.clone()));
        assert_eq!(stopped.2, 4 + 4, "texts are done two at a time, and then there are four draws");
        for ranks in [2, 4] {
            let comms = Comm::in_process(ranks, Duration::from_secs(60), 3).unwrap();
            std::thread::scope(|scope| {
                for comm in comms {
                    let (expected, run) = (&expected, &run);
                    scope.spawn(move || {
                        assert_eq!(&run(&comm, 2, Next::GoOn), expected, "{ranks} ranks");
                        comm.close().unwrap();
                    });
                }
            });
        }
    }
}

#[test]
fn flips_can_be_typed_where_that_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let text = "the river runs under the old bridge and the river runs on";
    let tokenizer = TextTokenizer::train(dir.path(), 290, [text, text]).unwrap();
    let special = tokenizer.special_ids();
    let survival = Survival::asked(&tokenizer, &special);
    let vocab = tokenizer.vocab_size() as i64;
    let ids = tokenizer.encode(text, crate::compute::data::Special::None).unwrap();
    let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
    let texts = [Text { id: 0, ids: ids.clone() }, Text { id: 1, ids: ids.into_iter().rev().collect() }];
    let budget = Budget { flips: 4, allowed: (2..vocab).collect(), special: special.clone() };
    let mut model = Exact::new(vocab, 5, 17);
    let comm = Comm::Solo;
    let mut lost = 0;
    for mode in [Mode::OneShot, Mode::Iterative] {
        for asked in [true, false] {
            let mut field = Field {
                survival: if asked { survival } else { Survival::not_asked() },
                ..field(&mut model, &comm, &texts, 2)
            };
            let mut state = State::default();
            attack(&mut field, mode, &budget, &mut state, &mut |_| Ok(Next::GoOn)).unwrap();
            let mut now = texts[0].ids.clone();
            for flip in &state.flips[0] {
                now[flip.position] = flip.id;
            }
            if asked {
                assert!(survival.holds(&now).unwrap(), "{mode:?}: {now:?}");
                assert_eq!(state.flips[0].len(), 4);
            } else {
                lost += usize::from(!survival.holds(&now).unwrap());
            }
            let control = random_control(&mut field, &budget, 42).unwrap();
            if asked {
                let mut now = texts[0].ids.clone();
                control[0].flips.iter().for_each(|f| now[f.position] = f.id);
                assert!(survival.holds(&now).unwrap());
            }
        }
    }
    assert!(lost > 0, "without asking everything survived, too: the test sees nothing");
}

#[test]
fn a_budget_that_cannot_be_spent_is_refused() {
    let mut model = Exact::new(VOCAB, 5, 16);
    let (texts, comm) = (texts(1, 3, VOCAB as u64), Comm::Solo);
    let mut state = State::default();
    let mut field = field(&mut model, &comm, &texts, 1);
    let error = attack(&mut field, Mode::OneShot, &budget(4), &mut state, &mut |_| Ok(Next::GoOn)).unwrap_err();
    assert!(error.to_string().contains("num_flips"), "{error}");
}
