//! Multiple choice on small random models: scores against rows alone, batches and ranks, and accuracies by hand.

use std::time::Duration;

use tch::{Device, Kind};

use super::score::{Engine, Rows, Scored};
use super::*;
use crate::compute::model::libtorch::{Ask, Base, Keep, Source, Want};
use crate::compute::model::{Batch, Family, Model, ModelConfig, Sizes, SlidingWindow, Variant, as_f32_mut};

fn net(family: Family) -> Net {
    net_with(family, Kind::Float, |_| ())
}

fn net_with(family: Family, kind: Kind, change: fn(&mut ModelConfig)) -> Net {
    let sizes = Sizes {
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 24,
        vocab_size: 40,
        max_position_embeddings: 24,
    };
    let mut config = ModelConfig::new(family, sizes);
    change(&mut config);
    // Weights so large that choices and positions matter.
    let mut model = Model::random(&config, 5).unwrap();
    for flat in model.flats_mut() {
        as_f32_mut(flat).iter_mut().for_each(|x| *x *= 1.5);
    }
    Net::of(&model, Base::Frozen, kind, Device::Cpu).unwrap()
}

fn pairs() -> Vec<Pair> {
    let ids = |n: usize, seed: usize| (0..n).map(|i| ((i * i * 7 + i * seed + 3 * seed) % 40) as u32).collect();
    let mut pairs: Vec<Pair> =
        (0..17).map(|i| Pair { context: ids(1 + i * 5 % 13, i), continuation: ids(1 + i % 4, i + 50) }).collect();
    // Too long for the model, and one that is there twice.
    pairs.push(Pair { context: ids(40, 1), continuation: ids(5, 2) });
    pairs.push(pairs[3].clone());
    // Choices of two questions, some of which begin alike, are equal but for their last token, or are one token; contexts
    // that differ in their end; and choices of a question that is too long.
    for (context, choices) in [(ids(9, 60), 5), (ids(14, 61), 3), (ids(23, 62), 4)] {
        let choice = |i: usize| [ids(1 + i / 2, 70), ids(i % 3, 80 + i)].concat();
        pairs.extend((0..choices).map(|i| Pair { context: context.clone(), continuation: choice(i) }));
    }
    pairs
        .extend((0..2).map(|i| Pair { context: [ids(12, 90), ids(1 + i, 91 + i)].concat(), continuation: ids(5, 95) }));
    pairs
}

/// One row at a time, without padding or grouping.
fn alone(net: &Net, pair: &Pair, mask: Mask) -> f64 {
    let all = [pair.context.as_slice(), &pair.continuation].concat();
    // Under a full mask the last token is seen, too.
    let read = if mask == Mask::Full { &all[..] } else { &all[..all.len() - 1] };
    let ids: Vec<i32> = read[read.len().saturating_sub(24)..].iter().map(|&id| id as i32).collect();
    let (t, n) = (ids.len(), pair.continuation.len());
    let prompt = if mask == Mask::Full { t - n } else { t - n + 1 };
    let mut batch = Batch::causal(1, t, ids, vec![-100; t]);
    batch.mask = mask;
    batch.prompt_lens = (mask == Mask::Prefix).then(|| vec![prompt as i32]);
    let places = net.places(&batch).unwrap();
    let ask = Ask { logits_at: (0..t as i64).collect(), ..Ask::default() };
    let want = Want { params: false, inputs: false };
    let pass = net.forward(Source::Ids, (&batch, &places), ask, (Keep::Nothing, want)).unwrap();
    let log_p = pass.outputs.logits_pv.unwrap().log_softmax(-1, Kind::Double);
    pair.continuation
        .iter()
        .enumerate()
        .map(|(i, &id)| log_p.double_value(&[(prompt - 1 + i) as i64, i64::from(id)]))
        .sum()
}

const MASKS: [Mask; 3] = [Mask::Causal, Mask::Full, Mask::Prefix];

fn grain(rows: usize, batch: usize) -> Grain {
    Grain::new(rows, batch).unwrap()
}

fn same_bits(a: &[Score], b: &[Score]) {
    let bits = |scores: &[Score]| scores.iter().map(|s| (s.log_likelihood.to_bits(), s.tokens)).collect::<Vec<_>>();
    assert_eq!(bits(a), bits(b));
}

#[test]
fn scores_are_those_of_rows_alone_and_no_batch_changes_a_bit() {
    let windowed: fn(&mut ModelConfig) = |c| c.sliding_window = Some(SlidingWindow { size: 5, first_layer: 1 });
    let cases = Family::ALL.map(|family| (family, (|_| ()) as fn(&mut ModelConfig)));
    for (family, change) in cases.into_iter().chain([(Family::Mistral, windowed)]) {
        let (net, wide) = (net_with(family, Kind::Float, change), net_with(family, Kind::Double, change));
        assert_eq!((score::engine(&net).unwrap(), score::engine(&wide).unwrap()), (Engine::Native, Engine::Libtorch));
        let pairs = pairs();
        for mask in MASKS {
            for net in [&net, &wide] {
                let run = |batch| score::score(net, &Comm::Solo, &pairs, mask, grain(4, batch)).unwrap();
                let found = run(1);
                for (score, pair) in found.iter().zip(&pairs) {
                    let expected = alone(&wide, pair, mask);
                    let off = (score.log_likelihood - expected).abs();
                    assert!(off < 1e-4, "{family:?} {mask:?}: {score:?} {expected}");
                    assert_eq!(score.tokens, pair.continuation.len());
                }
                assert_eq!(found[18], found[3]);
                for batch in [7, 64] {
                    same_bits(&run(batch), &found);
                }
            }
        }
    }
}

/// Prompt and answer are one text under a full mask: what is to be predicted is in sight, a single token too.
#[test]
fn under_a_full_mask_the_target_is_seen_and_every_layer_is_counted() {
    for kind in [Kind::Float, Kind::Double] {
        let net = net_with(Family::Llama, kind, |_| ());
        let pairs: Vec<Pair> = (0..8u32).map(|i| Pair { context: vec![1, 2, 3], continuation: vec![4 + i] }).collect();
        let run = |mask| score::score_as(&net, &Comm::Solo, &pairs, (mask, grain(4, 16)), Rows::Packed).unwrap();
        let [causal, full, prefix] = MASKS.map(run);
        assert_eq!([causal.patched_layers, full.patched_layers, prefix.patched_layers], [0, 2, 2]);
        // Without the target nothing tells the choices apart but the one distribution behind the prompt.
        let total = |scored: &Scored| scored.scores.iter().map(|s| s.log_likelihood.exp()).sum::<f64>();
        assert!(total(&prefix) < 1.0 && total(&causal) < 1.0);
        for (full, prefix) in full.scores.iter().zip(&prefix.scores) {
            assert!((full.log_likelihood - prefix.log_likelihood).abs() > 1e-3, "{full:?} {prefix:?}");
        }
        // What the model cannot read at once.
        let long = [Pair { context: vec![1], continuation: vec![2; 24] }];
        let said = |mask| score::score(&net, &Comm::Solo, &long, mask, grain(1, 1));
        assert!(said(Mask::Causal).is_ok());
        assert!(said(Mask::Full).unwrap_err().to_string().contains("longer than the 23"));
    }
}

#[test]
fn what_is_shared_changes_no_bit_of_the_native_engine() {
    let pairs = pairs();
    for family in [Family::GptNeox, Family::Qwen2, Family::Mistral] {
        let net = net_with(family, Kind::Float, |c| c.sliding_window = Some(SlidingWindow { size: 4, first_layer: 0 }));
        for mask in MASKS {
            let run = |pairs: &[Pair], how| {
                score::score_as(&net, &Comm::Solo, pairs, (mask, grain(4, 16)), how).unwrap().scores
            };
            let packed = run(&pairs, Rows::Packed);
            same_bits(&run(&pairs, Rows::Apart), &packed);
            // Nor do other pairs, their order, or threads.
            for (i, pair) in pairs.iter().enumerate() {
                same_bits(&run(std::slice::from_ref(pair), Rows::Packed), &packed[i..=i]);
            }
            let reversed: Vec<Pair> = pairs.iter().rev().cloned().collect();
            let mut found = run(&reversed, Rows::Packed);
            found.reverse();
            same_bits(&found, &packed);
        }
    }
}

#[test]
fn constrained_weights_are_the_effective_ones() {
    let sizes = Sizes {
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 24,
        vocab_size: 40,
        max_position_embeddings: 24,
    };
    for variant in [Variant::MlpBoth, Variant::SignFrozen] {
        let model = Model::random(&ModelConfig::new(Family::GptNeox, sizes), 5).unwrap().constrained(variant).unwrap();
        let run = |kind| {
            let net = Net::of(&model, Base::Frozen, kind, Device::Cpu).unwrap();
            score::score(&net, &Comm::Solo, &pairs(), Mask::Causal, grain(4, 64)).unwrap()
        };
        for (ours, wide) in run(Kind::Float).iter().zip(run(Kind::Double)) {
            assert!((ours.log_likelihood - wide.log_likelihood).abs() < 1e-4, "{ours:?} {wide:?}");
        }
    }
}

#[test]
fn ranks_change_no_bit() {
    let pairs = pairs();
    for (kind, batch) in [(Kind::Float, 1), (Kind::Float, 64), (Kind::Double, 8)] {
        let net = move || net_with(Family::Llama, kind, |_| ());
        let run = move |comm: &Comm, pairs: &[Pair]| {
            score::score(&net(), comm, pairs, Mask::Causal, grain(4, batch)).unwrap()
        };
        let alone = run(&Comm::Solo, &pairs);
        for ranks in [2, 4] {
            let comms = Comm::in_process(ranks, Duration::from_secs(60), 3).unwrap();
            std::thread::scope(|scope| {
                let pairs = &pairs;
                let runs: Vec<_> = comms.into_iter().map(|comm| scope.spawn(move || run(&comm, pairs))).collect();
                for found in runs {
                    same_bits(&found.join().unwrap(), &alone);
                }
            });
        }
    }
}

#[test]
fn a_continuation_that_cannot_be_scored_is_refused() {
    let net = net(Family::GptNeox);
    let refused = |continuation: Vec<u32>| {
        let pair = Pair { context: vec![1], continuation };
        score::score(&net, &Comm::Solo, &[pair], Mask::Causal, Grain::new(1, 1).unwrap()).unwrap_err().to_string()
    };
    assert!(refused(Vec::new()).contains("no token"));
    assert!(refused(vec![1; 25]).contains("25 tokens"));
    assert!(refused(vec![40]).contains("id 40 is outside"));
    let bare = Pair { context: Vec::new(), continuation: vec![1] };
    let error = score::score(&net, &Comm::Solo, &[bare], Mask::Causal, grain(1, 1)).unwrap_err().to_string();
    assert!(error.contains("no token before it"), "{error}");
}

#[test]
fn a_diverged_model_is_an_error_and_not_a_number() {
    for kind in [Kind::Float, Kind::Double] {
        let net = net_with(Family::GptNeox, kind, |_| ());
        let _ = tch::no_grad(|| net.flats()[1].shallow_clone().fill_(f64::NAN));
        let error = score::score(&net, &Comm::Solo, &pairs(), Mask::Causal, grain(4, 4)).unwrap_err().to_string();
        assert!(error.contains("not finite"), "{error}");
    }
}

#[test]
fn accuracies_by_hand() {
    let item = |gold| Item {
        number: 0,
        pairs: vec![Default::default(); 3],
        choices: vec!["ab".into(), "abcdé".into(), "x".into()],
        gold,
    };
    let score = |log_likelihood, tokens| Score { log_likelihood, tokens };
    // A character: -2, -1, -4; a byte: -2, -0.83, -4; a token: -4, -5, -2.
    let outcome = Outcome::new(&item(1), vec![score(-4.0, 1), score(-5.0, 1), score(-4.0, 2)]);
    assert_eq!((outcome.by_sum, outcome.by_characters, outcome.by_bytes, outcome.by_tokens), (0, 1, 1, 2));
    let accuracy = Accuracy::of([true, true, false, true].into_iter());
    // Sample variance of 1, 1, 0, 1 is 0.25.
    assert_eq!((accuracy.value, accuracy.stderr), (0.75, Some(0.25)));
    assert_eq!(Accuracy::of([true].into_iter()).stderr, None);
    assert_eq!(first_largest([f64::NAN, -1.0, -1.0].into_iter()), 1);
}
