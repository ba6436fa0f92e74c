//! Multiple choice on small random models: scores against rows alone, batches and ranks, and accuracies by hand.

use std::time::Duration;

use tch::{Device, Kind};

use super::*;
use crate::compute::model::libtorch::{Ask, Base, Keep, Source, Want};
use crate::compute::model::{Batch, Family, Model, ModelConfig, Sizes};

fn net(family: Family) -> Net {
    let sizes = Sizes {
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 24,
        vocab_size: 40,
        max_position_embeddings: 24,
    };
    let model = Model::random(&ModelConfig::new(family, sizes), 5).unwrap();
    Net::of(&model, Base::Frozen, Kind::Float, Device::Cpu).unwrap()
}

fn pairs() -> Vec<Pair> {
    let ids = |n: usize, seed: usize| (0..n).map(|i| ((i * i * 7 + i * seed + 3 * seed) % 40) as u32).collect();
    let mut pairs: Vec<Pair> =
        (0..17).map(|i| Pair { context: ids(1 + i * 5 % 13, i), continuation: ids(1 + i % 4, i + 50) }).collect();
    // Too long for the model, and one that is there twice.
    pairs.push(Pair { context: ids(40, 1), continuation: ids(5, 2) });
    pairs.push(pairs[3].clone());
    pairs
}

/// One row at a time, without padding or grouping.
fn alone(net: &Net, pair: &Pair, mask: Mask) -> f64 {
    let row = pair.cut_to(24);
    let ids: Vec<i32> = row[..row.len() - 1].iter().map(|&id| id as i32).collect();
    let (t, n) = (ids.len(), pair.continuation.len());
    let mut batch = Batch::causal(1, t, ids, vec![-100; t]);
    batch.mask = mask;
    batch.prompt_lens = (mask == Mask::Prefix).then(|| vec![(t - n + 1) as i32]);
    let places = net.places(&batch).unwrap();
    let ask = Ask { logits_at: (0..t as i64).collect(), ..Ask::default() };
    let want = Want { params: false, inputs: false };
    let pass = net.forward(Source::Ids, (&batch, &places), ask, (Keep::Nothing, want)).unwrap();
    let log_p = pass.outputs.logits_pv.unwrap().log_softmax(-1, Kind::Double);
    pair.continuation.iter().enumerate().map(|(i, &id)| log_p.double_value(&[(t - n + i) as i64, i64::from(id)])).sum()
}

#[test]
fn scores_are_those_of_rows_alone_and_no_batch_changes_a_bit() {
    for family in Family::ALL {
        let net = net(family);
        let pairs = pairs();
        for mask in [Mask::Causal, Mask::Full, Mask::Prefix] {
            let run = |batch| score::score(&net, &Comm::Solo, &pairs, mask, Grain::new(4, batch).unwrap()).unwrap();
            let found = run(1);
            for (score, pair) in found.iter().zip(&pairs) {
                let expected = alone(&net, pair, mask);
                assert!((score.log_likelihood - expected).abs() < 1e-4, "{family:?} {mask:?}: {score:?} {expected}");
                assert_eq!(score.tokens, pair.continuation.len());
            }
            assert_eq!(found[18], found[3]);
            for batch in [7, 64] {
                assert_eq!(run(batch), found);
            }
        }
    }
}

#[test]
fn ranks_change_no_bit() {
    let pairs = pairs();
    let alone = {
        let grain = Grain::new(4, 8).unwrap();
        score::score(&net(Family::Llama), &Comm::Solo, &pairs, Mask::Causal, grain).unwrap()
    };
    for ranks in [2, 4] {
        let comms = Comm::in_process(ranks, Duration::from_secs(60), 3).unwrap();
        std::thread::scope(|scope| {
            let runs: Vec<_> = comms
                .into_iter()
                .map(|comm| {
                    let pairs = &pairs;
                    scope.spawn(move || {
                        let grain = Grain::new(4, 8).unwrap();
                        score::score(&net(Family::Llama), &comm, pairs, Mask::Causal, grain).unwrap()
                    })
                })
                .collect();
            for run in runs {
                assert_eq!(run.join().unwrap(), alone);
            }
        });
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
