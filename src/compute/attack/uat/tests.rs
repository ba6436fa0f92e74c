//! Searches on an exact fp64 model against brute force, and on the native engine bit by bit: batch sizes, ranks, restarts,
//! kills between steps, pruning.

use super::*;
use crate::compute::attack::tests::{Exact, model, texts};
use crate::compute::attack::victim::Native;
use std::time::Duration;

const VOCAB: u64 = 20;
const SEARCHES: [Search; 3] = [Search::Random, Search::Gradient, Search::GradientBySweep];

fn plan(search: Search, length: usize, candidates: usize) -> Plan {
    let allowed: Vec<i64> = (2..VOCAB as i64).collect();
    Plan {
        length,
        search,
        objective: Objective::Raise,
        restarts: vec![0, 1],
        iterations: 4,
        candidates,
        beam: 1,
        pool: pool(&allowed, 12, 42),
        allowed,
        scope: Scope::UntouchedTargets,
        pruning: Pruning::Off,
        seed: 42,
    }
}

fn grain() -> Grain {
    Grain::new(4, 4).unwrap()
}

fn field<'a>(victim: &'a mut dyn Victim, comm: &'a Comm, texts: &'a [Text]) -> Field<'a> {
    Field { victim, comm, texts, survival: Survival::not_asked(), grain: grain() }
}

fn found(victim: &mut dyn Victim, texts: &[Text], plan: &Plan) -> State {
    let (comm, mut state) = (Comm::Solo, State::default());
    let ended = search(&mut field(victim, &comm, texts), plan, &mut state, &mut |_| Ok(Next::GoOn)).unwrap();
    assert_eq!(ended, Ended::Done);
    state
}

fn judged(victim: &mut dyn Victim, texts: &[Text], trigger: &[i64]) -> Judgement {
    judge(&mut field(victim, &Comm::Solo, texts), trigger).unwrap()
}

#[test]
fn a_search_never_ends_worse_than_it_began() {
    let texts = texts(6, 9, VOCAB);
    for search_kind in SEARCHES {
        for (objective, scope) in [
            (Objective::Raise, Scope::All),
            (Objective::Raise, Scope::UntouchedTargets),
            (Objective::Lower, Scope::UntouchedTargets),
        ] {
            for beam in [1, 3] {
                let mut model = Exact::new(VOCAB as i64, 5, 21);
                let plan = Plan { scope, objective, beam, ..plan(search_kind, 3, 4) };
                let state = found(&mut model, &texts, &plan);
                assert_eq!(state.restarts.len(), 2);
                for r in &state.restarts {
                    let worse = |a: f64, b: f64| objective.better(b, a);
                    assert!(!worse(r.loss(), r.first.loss));
                    assert!(r.sweep_losses.windows(2).all(|w| !worse(w[1], w[0])));
                    assert!(r.trigger().len() == 3 && r.beam.len() == 1 && r.done);
                    // What the search believes is what judging finds.
                    let judged = judged(&mut model, &texts, r.trigger());
                    assert!((judged.pair(scope).attacked - r.loss()).abs() < 1e-12);
                    assert!(!worse(state.best(objective).unwrap().loss(), r.loss()));
                }
                assert_ne!(state.restarts[0].first, state.restarts[1].first);
            }
        }
    }
}

#[test]
fn trying_everything_at_one_position_finds_the_best_of_the_vocabulary() {
    let mut model = Exact::new(VOCAB as i64, 5, 22);
    let texts = texts(6, 9, VOCAB);
    let brute: Vec<f64> = (2..VOCAB as i64).map(|id| judged(&mut model, &texts, &[id]).untouched.attacked).collect();
    for (objective, sign) in [(Objective::Raise, 1.0), (Objective::Lower, -1.0)] {
        let best = (2..VOCAB as i64).max_by(|a, b| {
            let loss = |id: i64| sign * brute[id as usize - 2];
            loss(*a).total_cmp(&loss(*b))
        });
        for search_kind in [Search::Gradient, Search::GradientBySweep] {
            let plan = Plan { iterations: 1, objective, ..plan(search_kind, 1, VOCAB as usize) };
            for r in &found(&mut model, &texts, &plan).restarts {
                assert_eq!(r.trigger(), [best.unwrap()]);
            }
        }
    }
}

#[test]
fn a_beam_that_holds_everything_finds_the_best_pair() {
    let mut model = Exact::new(VOCAB as i64, 5, 27);
    let texts = texts(4, 7, VOCAB);
    let mut best = f64::NEG_INFINITY;
    for a in 2..VOCAB as i64 {
        for b in 2..VOCAB as i64 {
            best = best.max(judged(&mut model, &texts, &[a, b]).untouched.attacked);
        }
    }
    let plan = Plan { beam: 400, iterations: 1, restarts: vec![0], ..plan(Search::Gradient, 2, 400) };
    let state = found(&mut model, &texts, &plan);
    assert!((state.restarts[0].loss() - best).abs() < 1e-12, "{} {best}", state.restarts[0].loss());
    assert_eq!(state.restarts[0].evaluations, 18 * 18);
}

#[test]
fn first_order_gains_rank_as_brute_force_does() {
    let texts = texts(6, 9, VOCAB);
    let mut correlations = Vec::new();
    for seed in 30..36 {
        let mut model = Exact::new(VOCAB as i64, 5, seed);
        let plan = plan(Search::Gradient, 3, VOCAB as usize);
        let trigger = random_trigger(&plan, Survival::not_asked()).unwrap();
        for position in 0..3 {
            let comm = Comm::Solo;
            let mut field = field(&mut model, &comm, &texts);
            let g = gradients(&mut field, &plan, std::slice::from_ref(&trigger), position..position + 1).unwrap();
            let scores = field.victim.products(&g).unwrap();
            let ranked = best_ids(&mut field, &plan, &trigger, position, &g).unwrap();
            assert_eq!(ranked.len(), 17, "all but the id that is there");
            assert!(ranked.windows(2).all(|w| scores[w[0] as usize] >= scores[w[1] as usize]));
            let triggers: Vec<Vec<i64>> = ranked
                .iter()
                .map(|&id| {
                    let mut t = trigger.clone();
                    t[position] = id;
                    t
                })
                .collect();
            let losses = losses(&mut field, &plan, &triggers, &[None; 17]).unwrap();
            let losses: Vec<f64> = losses.into_iter().map(Option::unwrap).collect();
            // Spearman: places in the ranking against places by true loss.
            let place = |i: usize| losses.iter().filter(|&&l| l > losses[i]).count() as f64;
            let d2: f64 = (0..17).map(|i| (i as f64 - place(i)).powi(2)).sum();
            correlations.push(1.0 - 6.0 * d2 / (17.0 * (17.0f64.powi(2) - 1.0)));
        }
    }
    let mean = correlations.iter().sum::<f64>() / correlations.len() as f64;
    // Of 18 random rankings of 17 the mean has a standard deviation of 0.06.
    assert!(mean > 0.2, "{mean} {correlations:?}");
}

#[test]
fn gradients_are_finite_differences_of_the_summed_loss() {
    let texts = texts(5, 9, VOCAB);
    for scope in [Scope::UntouchedTargets, Scope::All] {
        let mut model = Exact::new(VOCAB as i64, 5, 33);
        let plan = Plan { scope, ..plan(Search::Gradient, 3, 4) };
        let triggers: Vec<Vec<i64>> = vec![vec![3, 4, 5], vec![17, 9, 9]];
        let (comm, h) = (Comm::Solo, 5);
        // Of the second and the third position, of both triggers, three rows of texts at a time.
        let mut field = Field { grain: Grain::new(3, 3).unwrap(), ..field(&mut model, &comm, &texts) };
        let all = gradients(&mut field, &plan, &triggers, 1..3).unwrap();
        for (n, (trigger, position)) in triggers.iter().flat_map(|t| [(t, 1), (t, 2)]).enumerate() {
            let scores = model.products(&all[n * h..(n + 1) * h]).unwrap();
            let mut rows = Rows::of(9 + 3);
            texts.iter().for_each(|text| push(&mut rows, trigger, text, scope));
            let (x, targets) = model.tensors(&rows);
            for id in 0..VOCAB as i64 {
                let step = 1e-5;
                let along = (model.e_vh.get(id) - model.e_vh.get(trigger[position])) * step;
                let moved = |sign: f64| {
                    let x = x.copy();
                    let mut of_all_texts = x.select(1, position as i64);
                    of_all_texts += &along * sign;
                    f64::try_from(model.nll_of(&x, &targets).sum(tch::Kind::Double)).unwrap()
                };
                let finite = (moved(1.0) - moved(-1.0)) / (2.0 * step);
                let gain = scores[id as usize] - scores[trigger[position] as usize];
                assert!((gain - finite).abs() < 1e-6 * (1.0 + finite.abs()), "{scope:?} {n} {id}: {gain} {finite}");
            }
        }
    }
}

#[test]
fn scopes_by_hand() {
    let mut model = Exact::new(VOCAB as i64, 5, 24);
    let texts = texts(1, 9, VOCAB);
    let trigger = [3, 4];
    let found = judged(&mut model, &texts, &trigger);
    let nll = |ids: &[i64], model: &mut Exact| {
        let mut rows = Rows::of(ids.len() - 1);
        rows.push(ids.iter().copied(), 1);
        model.nll(&rows).unwrap()
    };
    let ids: Vec<i64> = trigger.iter().chain(&texts[0].ids).copied().collect();
    let with = nll(&ids, &mut model);
    assert_eq!(with.len(), 11);
    assert!((found.all.attacked - with.iter().sum::<f64>() / 11.0).abs() < 1e-12);
    assert!((found.untouched.attacked - with[2..].iter().sum::<f64>() / 9.0).abs() < 1e-12);
    assert_eq!(found.all.clean, found.untouched.clean);
    let clean = nll(&texts[0].ids, &mut model);
    assert!((found.all.clean - clean.iter().sum::<f64>() / 9.0).abs() < 1e-12);
}

#[test]
fn texts_of_several_lengths_count_by_their_tokens() {
    let mut model = Exact::new(VOCAB as i64, 5, 25);
    let mut all = texts(3, 9, VOCAB);
    all[1].ids.truncate(4);
    let together = judged(&mut model, &all, &[5]);
    let mut sums = [0.0; 2];
    for text in &all {
        let one = judged(&mut model, std::slice::from_ref(text), &[5]);
        let n = (text.ids.len() - 1) as f64;
        sums[0] += one.untouched.attacked * n;
        sums[1] += n;
    }
    assert!((together.untouched.attacked - sums[0] / sums[1]).abs() < 1e-12);
    let plan = plan(Search::Gradient, 1, 3);
    let state = found(&mut model, &all, &plan);
    let judged = judged(&mut model, &all, state.restarts[0].trigger());
    assert!((judged.untouched.attacked - state.restarts[0].loss()).abs() < 1e-12);
}

/// Every search there is, small.
fn plans() -> Vec<Plan> {
    let mut plans = Vec::new();
    for search in SEARCHES {
        for objective in [Objective::Raise, Objective::Lower] {
            for beam in [1, 2] {
                plans.push(Plan { objective, beam, iterations: 2, restarts: vec![0, 1, 2], ..plan(search, 3, 4) });
            }
        }
    }
    plans
}

/// One of every kind of search; both objectives, with and without a beam.
fn some_plans() -> Vec<Plan> {
    plans().into_iter().step_by(5).collect()
}

#[test]
fn batch_size_and_ranks_change_no_bit() {
    let texts = texts(5, 9, 40);
    let run = |comm: &Comm, batch: usize, plan: &Plan| {
        let mut native = Native::new(&model(false), 1).unwrap();
        let mut field = Field {
            victim: &mut native,
            comm,
            texts: &texts,
            survival: Survival::not_asked(),
            grain: Grain::new(batch, 2 * batch).unwrap(),
        };
        let mut state = State::default();
        search(&mut field, plan, &mut state, &mut |_| Ok(Next::GoOn)).unwrap();
        let mut random = RandomSearch::default();
        random_search(&mut field, plan, 40, &mut random, &mut |_| Ok(Next::GoOn)).unwrap();
        (state, random, judge(&mut field, &[3, 4, 5]).unwrap())
    };
    for plan in some_plans() {
        let expected = run(&Comm::Solo, 1, &plan);
        assert!(expected.0.restarts.iter().any(|r| r.loss() != r.first.loss), "the search moves");
        for batch in [3, 64] {
            assert_eq!(run(&Comm::Solo, batch, &plan), expected);
        }
        for ranks in [2, 4] {
            let comms = Comm::in_process(ranks, Duration::from_secs(60), 7).unwrap();
            std::thread::scope(|scope| {
                for comm in comms {
                    let (plan, expected, run) = (&plan, &expected, &run);
                    scope.spawn(move || {
                        assert_eq!(&run(&comm, 2, plan), expected, "{ranks} ranks");
                        comm.close().unwrap();
                    });
                }
            });
        }
    }
}

#[test]
fn the_order_of_restarts_and_their_company_change_no_bit() {
    let (model, texts) = (model(false), texts(4, 9, 40));
    let run = |restarts: Vec<u32>, plan: &Plan| {
        let state = found(&mut Native::new(&model, 1).unwrap(), &texts, &Plan { restarts, ..plan.clone() });
        let best = state.best(plan.objective).unwrap().number;
        let mut all = state.restarts;
        all.sort_by_key(|r| r.number);
        (all, best)
    };
    for plan in some_plans() {
        let expected = run(vec![0, 1, 2], &plan);
        assert_eq!(run(vec![2, 0, 1], &plan), expected);
        let alone: Vec<Restart> = (0..3).flat_map(|r| run(vec![r], &plan).0).collect();
        assert_eq!(alone, expected.0);
    }
}

#[test]
fn a_search_that_is_stopped_anywhere_ends_as_if_it_had_not_been() {
    let (model, texts) = (model(false), texts(4, 9, 40));
    for plan in some_plans() {
        let mut native = Native::new(&model, 1).unwrap();
        let expected = found(&mut native, &texts, &plan);
        let (mut state, mut stops) = (State::default(), 0);
        loop {
            let comm = Comm::Solo;
            let mut field = field(&mut native, &comm, &texts);
            let ended = search(&mut field, &plan, &mut state, &mut |_| Ok(Next::Stop)).unwrap();
            // Through text and back, as a kill between two steps would have it.
            state = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
            if ended == Ended::Done {
                break;
            }
            stops += 1;
        }
        assert!(stops >= 4, "{stops}");
        assert_eq!(state, expected);

        let (comm, mut state, mut whole) = (Comm::Solo, RandomSearch::default(), RandomSearch::default());
        let mut field = field(&mut native, &comm, &texts);
        random_search(&mut field, &plan, 80, &mut whole, &mut |_| Ok(Next::GoOn)).unwrap();
        while random_search(&mut field, &plan, 80, &mut state, &mut |_| Ok(Next::Stop)).unwrap() == Ended::Stopped {}
        assert_eq!((state.evaluations, &state), (80, &whole));
    }
}

#[test]
fn giving_up_hopeless_candidates_changes_no_result_and_saves_rows() {
    let mut texts = texts(8, 9, VOCAB);
    // The last texts are short: what is said without them decides often.
    texts[6..].iter_mut().for_each(|text| text.ids.truncate(2));
    let mut saved = 0;
    for plan in plans().into_iter().filter(|p| p.objective == Objective::Lower) {
        let mut models = [Exact::new(VOCAB as i64, 5, 31), Exact::new(VOCAB as i64, 5, 31)];
        // Embeddings far apart make triggers that differ much.
        for model in &mut models {
            model.e_vh = &model.e_vh * 3.0;
        }
        let [mut with, mut without] = models;
        let pruned = found(&mut with, &texts, &Plan { pruning: Pruning::On, ..plan.clone() });
        let full = found(&mut without, &texts, &plan);
        for (a, b) in pruned.restarts.iter().zip(&full.restarts) {
            assert_eq!((a.trigger(), a.evaluations), (b.trigger(), b.evaluations));
            assert!((a.loss() - b.loss()).abs() < 1e-12);
        }
        assert!(with.seen[0] <= without.seen[0]);
        saved += without.seen[0] - with.seen[0];
    }
    assert!(saved > 0, "nothing was given up: the test sees nothing");
}

#[test]
fn pruning_changes_no_bit_of_the_native_engine() {
    let (model, texts) = (model(false), texts(8, 9, 40));
    for plan in plans().into_iter().filter(|p| p.objective == Objective::Lower) {
        let run = |pruning| found(&mut Native::new(&model, 1).unwrap(), &texts, &Plan { pruning, ..plan.clone() });
        assert_eq!(run(Pruning::On), run(Pruning::Off));
    }
}

#[test]
fn what_a_search_costs_is_what_the_model_saw() {
    let texts = texts(6, 9, VOCAB);
    for plan in plans() {
        let mut model = Exact::new(VOCAB as i64, 5, 28);
        let state = found(&mut model, &texts, &plan);
        let sum = |f: fn(&Restart) -> u64| state.restarts.iter().map(f).sum::<u64>() as usize;
        assert_eq!(model.seen, [6 * sum(|r| r.evaluations), 6 * sum(|r| r.gradients)]);
        assert_eq!(state.passes() as usize, sum(|r| r.evaluations) + 2 * sum(|r| r.gradients));
        let (comm, mut random) = (Comm::Solo, RandomSearch::default());
        model.seen = [0; 2];
        let mut field = field(&mut model, &comm, &texts);
        random_search(&mut field, &plan, state.passes(), &mut random, &mut |_| Ok(Next::GoOn)).unwrap();
        assert_eq!(model.seen, [6 * state.passes() as usize, 0], "the same budget");
    }
}

#[test]
fn every_trigger_that_is_tried_can_be_typed() {
    use crate::compute::data::TextTokenizer;
    let dir = tempfile::tempdir().unwrap();
    let text = "the river runs under the old bridge and the river runs on and on over 42 boats";
    let tokenizer = TextTokenizer::train(dir.path(), 290, [text, text]).unwrap();
    let special = tokenizer.special_ids();
    let survival = Survival::asked(&tokenizer, &special);
    let vocab = tokenizer.vocab_size() as i64;
    let allowed: Vec<i64> = (2..vocab).collect();
    let texts = texts(3, 7, vocab as u64);
    for search_kind in SEARCHES {
        let mut model = Exact::new(vocab, 5, 29);
        let plan = Plan {
            pool: survival.alone(allowed.clone()).unwrap(),
            allowed: allowed.clone(),
            iterations: 2,
            ..plan(search_kind, 3, 6)
        };
        let comm = Comm::Solo;
        let mut field =
            Field { victim: &mut model, comm: &comm, texts: &texts, survival, grain: Grain::new(4, 64).unwrap() };
        let mut state = State::default();
        search(&mut field, &plan, &mut state, &mut |state| {
            for r in &state.restarts {
                assert!(survival.holds(&r.first.ids)?);
                assert!(r.beam.iter().all(|b| survival.holds(&b.ids).unwrap()), "{:?}", r.beam);
            }
            Ok(Next::GoOn)
        })
        .unwrap();
        assert!(state.restarts.iter().any(|r| r.loss() > r.first.loss));
    }
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
    let mut model = Exact::new(VOCAB as i64, 5, 26);
    let texts = texts(2, 9, VOCAB);
    let comm = Comm::Solo;
    let mut refused = |plan: Plan, texts: &[Text]| {
        let mut field = field(&mut model, &comm, texts);
        search(&mut field, &plan, &mut State::default(), &mut |_| Ok(Next::GoOn)).unwrap_err().to_string()
    };
    assert!(refused(plan(Search::Random, 60, 4), &texts).contains("64 positions"));
    assert!(refused(plan(Search::Random, 2, 4), &[]).contains("num_samples"));
    assert!(refused(Plan { beam: 0, ..plan(Search::Random, 2, 4) }, &texts).contains("at least 1"));
}
