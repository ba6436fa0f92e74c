//! Cached steps against one forward pass, for all families and masks; and texts that nothing but their prompt changes.

use std::time::Duration;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::compute::model::config::{QueryScaling, RopeScaling, Sizes, SlidingWindow, YarnScaling};
use crate::compute::model::libtorch::{Ask, Base, Keep, Source, Want};
use crate::compute::model::{Batch, Family, Mask, Model, ModelConfig, Net, as_f32, as_f32_mut};
use crate::compute::rng::{Purpose, Rng};

const VOCAB: usize = 67;

/// Every family, with what only some models have: grouped heads, a window, stretched rotations, queries that grow
/// within the test's rows, partly rotated heads, none rotated at all.
fn configs() -> Vec<(String, ModelConfig)> {
    let sizes = Sizes {
        hidden_size: 48,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        intermediate_size: 80,
        vocab_size: VOCAB as i64,
        max_position_embeddings: 96,
    };
    let mut all = Vec::new();
    for family in Family::ALL {
        let mut config = ModelConfig::new(family, sizes);
        match family {
            Family::GptNeox => config.rotary_dims = 4,
            // Heads that are wider than a panel, and no whole number of them.
            Family::Llama => config.head_dim = 40,
            Family::Mistral => config.sliding_window = Some(SlidingWindow { size: 7, first_layer: 1 }),
            Family::Qwen2 => config.tie_word_embeddings = true,
            Family::Ministral3 => {
                config.rope_scaling = Some(RopeScaling::Yarn(YarnScaling {
                    factor: 4.0,
                    original_max_position_embeddings: 24,
                    beta_fast: 32.0,
                    beta_slow: 1.0,
                    attention_factor: 1.2,
                    truncate: true,
                }));
                config.query_scaling = Some(QueryScaling { beta: 0.3, original_max_position_embeddings: 12 });
            }
        }
        if family != Family::GptNeox {
            config.num_key_value_heads = 2;
        }
        all.push((format!("{family:?}"), config));
    }
    let mut sequential = ModelConfig::new(Family::GptNeox, sizes);
    (sequential.parallel_residual, sequential.rotary_dims) = (false, 0);
    all.push(("sequential without rotations".to_owned(), sequential));
    all
}

/// A model whose every parameter is away from zero.
fn model(config: &ModelConfig) -> Model {
    let mut model = Model::random(config, 11).unwrap();
    let layout = model.layout().clone();
    for (g, group) in layout.groups.iter().enumerate() {
        for span in &group.spans {
            let mut rng = Rng::new(1, Purpose::Init, g as u32, span.offset as u64);
            for x in &mut as_f32_mut(&mut model.flats_mut()[g])[span.range()] {
                *x += 0.2 * rng.normal() as f32;
            }
        }
    }
    model
}

fn ids(count: usize, seed: u32) -> Vec<u32> {
    let mut rng = Rng::new(seed, Purpose::Order, 0, 0);
    (0..count).map(|_| rng.below(VOCAB as u64) as u32).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Logits of all tokens in one piece, by the native decoder.
fn whole(decoder: &mut NativeDecoder, ids: &[u32], prompt: usize) -> Vec<f32> {
    let mut cache = decoder.cache(ids.len());
    decoder.advance(&mut [Step { cache: &mut cache, ids, prompt, wanted: ids.len() }]).unwrap().to_vec()
}

/// The same by the training's libtorch engine, which knows no cache.
fn reference(model: &Model, ids: &[u32], prompt: usize, mask: Mask) -> Tensor {
    let net = Net::of(model, Base::Frozen, Kind::Float, Device::Cpu).unwrap();
    let batch = Batch {
        rows: 1,
        seq_len: ids.len(),
        ids: ids.iter().map(|&id| id as i32).collect(),
        targets: vec![-100; ids.len()],
        prompt_lens: Some(vec![prompt as i32]),
        mask,
        ..Batch::default()
    };
    let places = net.places(&batch).unwrap();
    let ask = Ask { logits_at: (0..ids.len() as i64).collect(), ..Ask::default() };
    let want = Want { params: false, inputs: false };
    let pass = net.forward(Source::Ids, (&batch, &places), ask, (Keep::Nothing, want)).unwrap();
    pass.outputs.logits_pv.unwrap()
}

#[track_caller]
fn close(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = got.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(off <= 2e-5 * largest, "{what}: off by {off} of {largest}");
}

#[test]
fn a_prompt_and_cached_steps_are_one_forward_with_the_same_mask() {
    let (t, prompt) = (75, 41);
    let all = ids(t, 1);
    for (name, config) in configs() {
        let model = model(&config);
        for mask in [Mask::Causal, Mask::Prefix] {
            let what = format!("{name} {mask:?}");
            let mut decoder = NativeDecoder::new(&model, mask, 1).unwrap();
            let one = whole(&mut decoder, &all, prompt);
            let expected = reference(&model, &all, prompt, mask);
            close(&one, as_f32(&expected), &what);
            assert_ne!(
                bits(&one),
                bits(&whole(&mut decoder, &[&[all[0] ^ 1], &all[1..]].concat(), prompt)),
                "{what}: what is read matters"
            );

            // The prompt, three tokens together, then one by one: the same bits.
            let mut cache = decoder.cache(t);
            let mut steps = Vec::new();
            let pieces = [prompt, 3].into_iter().chain(std::iter::repeat_n(1, t - prompt - 3));
            let mut at = 0;
            for n in pieces {
                let step = Step { cache: &mut cache, ids: &all[at..at + n], prompt, wanted: n };
                steps.extend_from_slice(decoder.advance(&mut [step]).unwrap());
                at += n;
            }
            assert_eq!(bits(&steps), bits(&one), "{what}");

            // libtorch, beside a shorter row that is padded.
            let net = Net::of(&model, Base::Frozen, Kind::Float, Device::Cpu).unwrap();
            let cached = CachedDecoder::new(&net, mask).unwrap();
            let (mut kept, mut logits) = cached.begin(&[&all[..prompt], &all[..9]], t).unwrap();
            for (i, &id) in all.iter().enumerate().skip(prompt) {
                let row = &as_f32(&logits)[..VOCAB];
                close(row, &as_f32(&expected)[(i - 1) * VOCAB..][..VOCAB], &format!("{what} libtorch {i}"));
                logits = cached.next(&mut kept, &[id, all[9 + i - prompt]], &[true, true]).unwrap();
            }
            if mask == Mask::Causal {
                let short = &as_f32(&expected)[(9 + t - prompt - 1) * VOCAB..][..VOCAB];
                close(&as_f32(&logits)[VOCAB..], short, &format!("{what} libtorch, the shorter row"));
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others_with_any_threads() {
    for (name, config) in configs() {
        let model = model(&config);
        let rows: Vec<Vec<u32>> = [40, 3, 61, 17, 1].into_iter().map(|n| ids(n, n as u32)).collect();
        let mut alone = NativeDecoder::new(&model, Mask::Prefix, 1).unwrap();
        let expected: Vec<Vec<u32>> = rows.iter().map(|ids| bits(&whole(&mut alone, ids, ids.len()))).collect();
        for threads in [1, 3] {
            let mut decoder = NativeDecoder::new(&model, Mask::Prefix, threads).unwrap();
            let mut caches: Vec<Cache> = rows.iter().map(|ids| decoder.cache(ids.len())).collect();
            let mut steps: Vec<Step<'_>> = caches
                .iter_mut()
                .zip(&rows)
                .map(|(cache, ids)| Step { cache, ids, prompt: ids.len(), wanted: ids.len() })
                .collect();
            let logits = bits(decoder.advance(&mut steps).unwrap());
            assert_eq!(logits, expected.concat(), "{name} {threads}");
        }
    }
}

/// A letter for an id, so that strings lie across tokens; a few ids say two.
fn text(ids: &[u32]) -> Result<String> {
    let letters = ids.iter().map(|&id| match id {
        0..=25 => char::from(b'a' + id as u8).to_string(),
        26..=51 => char::from(b'A' + (id - 26) as u8).to_string(),
        id => format!("{}{}", id % 10, id / 10),
    });
    Ok(letters.collect())
}

fn settings(max_new_tokens: usize, batch_rows: usize) -> Settings {
    Settings { max_new_tokens, ends: Vec::new(), stops: Vec::new(), batch_rows, grain_rows: 3 }
}

fn prompts() -> Vec<Vec<u32>> {
    [12, 5, 30, 12, 1, 7, 19, 2, 30, 64].into_iter().enumerate().map(|(i, n)| ids(n, i as u32)).collect()
}

fn native(model: &Model, mask: Mask) -> Engine<'static> {
    Engine::Native(Box::new(NativeDecoder::new(model, mask, 1).unwrap()))
}

/// Greedy texts without a cache: the whole row again for every token, by the engine that trains.
fn by_hand(model: &Model, prompt: &[u32], mask: Mask, count: usize) -> Vec<u32> {
    let mut row = prompt.to_vec();
    for _ in 0..count {
        let logits = reference(model, &row, prompt.len(), mask);
        row.push(greedy(&as_f32(&logits)[(row.len() - 1) * VOCAB..]).unwrap());
    }
    row.split_off(prompt.len())
}

#[test]
fn texts_are_what_the_model_says_without_a_cache() {
    for (name, config) in configs() {
        let model = model(&config);
        for mask in [Mask::Causal, Mask::Prefix] {
            let found =
                generate(&mut native(&model, mask), &text, &Comm::Solo, &prompts()[..4], &settings(9, 3)).unwrap();
            for (prompt, found) in prompts().iter().zip(&found) {
                assert_eq!(found.ids, by_hand(&model, prompt, mask, 9), "{name} {mask:?}");
                assert_eq!((found.finish, &found.text), (Finish::Length, &text(&found.ids).unwrap()));
            }
        }
    }
}

/// Texts by our kernels, then by libtorch in bf16. Rows end at different times, so that others take their places.
fn both(comm: &Comm, batch_rows: usize) -> Vec<Generated> {
    let model = model(&configs().swap_remove(2).1);
    let settings =
        Settings { stops: vec!["E".to_owned(), "k".to_owned()], ends: vec![3, 50], ..settings(24, batch_rows) };
    let net = Net::of(&model, Base::Frozen, Kind::BFloat16, Device::Cpu).unwrap();
    let engines = [native(&model, Mask::Prefix), Engine::Libtorch(CachedDecoder::new(&net, Mask::Prefix).unwrap())];
    let texts =
        engines.into_iter().map(|mut engine| generate(&mut engine, &text, comm, &prompts(), &settings).unwrap());
    texts.flatten().collect()
}

#[test]
fn no_text_depends_on_batch_size_or_ranks() {
    let first = both(&Comm::Solo, 1);
    let ways: std::collections::BTreeSet<&str> = first.iter().map(|g| g.finish.word()).collect();
    assert!(ways.len() > 1, "rows end in one way only: {ways:?}");
    for batch in [3, 7, 64] {
        assert_eq!(both(&Comm::Solo, batch), first, "batch of {batch}");
    }
    for ranks in [2, 4] {
        let comms = Comm::in_process(ranks, Duration::from_secs(30), 5).unwrap();
        std::thread::scope(|scope| {
            let threads: Vec<_> = comms.iter().map(|comm| scope.spawn(move || both(comm, 2))).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), first, "{ranks} ranks");
            }
        });
    }
}

#[test]
fn a_text_ends_as_it_was_told_to() {
    let (_, config) = configs().swap_remove(1);
    let model = model(&config);
    let prompt = vec![ids(20, 4)];
    let run = |settings: &Settings| {
        generate(&mut native(&model, Mask::Causal), &text, &Comm::Solo, &prompt, settings).unwrap().remove(0)
    };
    let long = run(&settings(200, 1));
    assert_eq!((long.finish, long.ids.len()), (Finish::Context, 96 - 20));
    let short = run(&settings(5, 1));
    assert_eq!((short.finish, short.ids.as_slice()), (Finish::Length, &long.ids[..5]));

    // A string over the border of two tokens, inside the text of the first ten.
    let ten = text(&long.ids[..10]).unwrap();
    let second = text(&long.ids[..1]).unwrap().len();
    let stop = &ten[second - 1..second + 1];
    let at = ten.find(stop).unwrap();
    let stopped = run(&Settings { stops: vec!["never".into(), stop.to_owned()], ..settings(50, 1) });
    assert_eq!((stopped.finish, stopped.stop, stopped.text.as_str()), (Finish::Stop, Some(1), &ten[..at]));
    assert!(stopped.ids.len() <= 2 && long.ids.starts_with(&stopped.ids));

    // An id that ends a text is no part of it.
    let end = long.ids[3];
    let first = long.ids.iter().position(|id| *id == end).unwrap();
    let ended = run(&Settings { ends: vec![end], ..settings(50, 1) });
    assert_eq!((ended.finish, ended.ids.as_slice()), (Finish::End, &long.ids[..first]));
}

#[test]
fn what_cannot_be_generated_is_refused() {
    let (_, config) = configs().swap_remove(1);
    let model = model(&config);
    let error = NativeDecoder::new(&model, Mask::Full, 1).unwrap_err().to_string();
    assert!(error.contains("full mask") && error.contains("`causal` or `prefix`"), "{error}");
    let net = Net::of(&model, Base::Frozen, Kind::Float, Device::Cpu).unwrap();
    assert!(CachedDecoder::new(&net, Mask::Full).is_err());
    for (prompt, named) in [(ids(96, 1), "96 tokens"), (Vec::new(), "0 tokens"), (vec![VOCAB as u32], "id 67")] {
        let error = generate(&mut native(&model, Mask::Causal), &text, &Comm::Solo, &[prompt], &settings(5, 1))
            .unwrap_err()
            .to_string();
        assert!(error.contains(named), "{error}");
    }
    let none = generate(&mut native(&model, Mask::Causal), &text, &Comm::Solo, &[vec![1]], &settings(0, 1));
    assert!(none.unwrap_err().to_string().contains("`max_new_tokens`"));

    // Logits that are no numbers.
    let mut broken = self::model(&config);
    as_f32_mut(&mut broken.flats_mut()[0]).fill(f32::NAN);
    let error = generate(&mut native(&broken, Mask::Causal), &text, &Comm::Solo, &[vec![1]], &settings(5, 1));
    assert!(error.unwrap_err().to_string().contains("not finite"));
}

#[test]
fn among_equal_logits_the_lowest_id_is_next() {
    assert_eq!(greedy(&[0.0, 2.0, 1.0, 2.0]).unwrap(), 1);
    assert_eq!(greedy(&[-1.0, -1.0]).unwrap(), 0);
    assert!(greedy(&[0.0, f32::NAN]).is_err() && greedy(&[f32::INFINITY]).is_err());
}
