//! What a token of a sample sees, asked of both engines: its own document where attention is reset, the prompt
//! behind it where the mask is a prefix, and never what it is to predict.

use seedbed::compute::data::tokens::write_supervised;
use seedbed::compute::data::{IGNORED, Item, Objective, Reading};
use seedbed::compute::kernels::gemm::Backend;
use seedbed::compute::model::native::{Activations, NativePasses, Options};
use seedbed::compute::model::{Batch, LibtorchPasses, libtorch};

use super::*;

/// 40 short items of the tiny model's vocabulary; `prompts` tells a prompt's length from an item's.
fn split(prompts: impl Fn(usize) -> usize) -> (tempfile::TempDir, Arc<Tokens>) {
    let dir = tempfile::tempdir().unwrap();
    let header = TokensHeader {
        split: "train".into(),
        vocab_size: 48,
        tokenizer: Digest::of_bytes(b"t"),
        special: SpecialIds { eos: 0, bos: None, pad: Some(1) },
        sources: Vec::new(),
    };
    let short = documents(3, 40).into_iter().enumerate().map(|(i, d)| {
        let ids: Vec<u32> = d?.into_iter().take(3 + i % 6).collect();
        Ok(Item { prompt: prompts(ids.len()), ids })
    });
    write_supervised(dir.path(), &header, short).unwrap();
    let tokens = Arc::new(Tokens::open(dir.path()).unwrap());
    (dir, tokens)
}

fn read(tokens: &Arc<Tokens>, reading: Reading) -> (Samples, Batch) {
    let samples = Samples::read(tokens.clone(), 16, reading).unwrap();
    let batch = samples.batch((0..samples.len()).map(Some));
    (samples, batch)
}

fn engines(model: &Model) -> [(&'static str, Box<dyn Passes>); 2] {
    let options = Options { gemm: Backend::Builtin, threads: 1, activations: Activations::Keep, dropout: 0.0 };
    [
        ("libtorch", Box::new(LibtorchPasses::of_model(model, libtorch::Settings::default()).unwrap())),
        ("native", Box::new(NativePasses::new(model, options).unwrap())),
    ]
}

fn nll(passes: &mut dyn Passes, batch: &Batch) -> f64 {
    let sum = passes.evaluate(batch, &mut NoHooks).unwrap();
    assert_eq!(sum.tokens, batch.labels());
    sum.nll
}

/// The gradient of all groups, one after the other.
fn gradient(model: &Model, passes: &mut dyn Passes, batch: &Batch) -> Vec<f32> {
    let mut gradients: Vec<tch::Tensor> = model.flats().iter().map(|f| f.full_like(9.0)).collect();
    let at = GrainAt { seed: 1, step: 0, grain: 0 };
    passes.backward(batch, at, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
    gradients.iter().flat_map(|g| as_f32(g).to_vec()).collect()
}

fn close(a: &[f32], b: &[f32], relative: f32) -> bool {
    let scale = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(scale > 0.1 && a.len() == b.len());
    a.iter().zip(b).all(|(a, b)| (a - b).abs() <= relative * scale)
}

#[test]
fn packed_documents_that_are_reset_are_documents_alone() {
    let (_dir, tokens) = split(|_| 0);
    let model = Model::random(&tiny(), 11).unwrap();
    let (_, alone) = read(&tokens, Reading::causal(Packing::Document));
    for (name, mut passes) in engines(&model) {
        let (want, want_gradient) = (nll(&mut *passes, &alone), gradient(&model, &mut *passes, &alone));
        for (reset_attention, reset_positions) in [(true, true), (true, false), (false, true), (false, false)] {
            let reading = Reading { reset_attention, reset_positions, ..Reading::causal(Packing::BestFit) };
            let (_, packed) = read(&tokens, reading);
            assert!(packed.rows * 3 < alone.rows * 2 && packed.labels() == alone.labels());
            let found = nll(&mut *passes, &packed);
            let found_gradient = gradient(&model, &mut *passes, &packed);
            // Rotary positions act by their differences, so within a document it is attention that counts.
            assert_eq!((found / want - 1.0).abs() < 1e-6, reset_attention, "{name} {reading:?}: {found} {want}");
            assert_eq!(close(&found_gradient, &want_gradient, 1e-5), reset_attention, "{name} {reading:?}");
        }
        // Without a reset of attention that of positions makes a difference.
        let mixed = |reset_positions| Reading { reset_positions, ..Reading::causal(Packing::BestFit) };
        let [a, b] = [true, false].map(|reset| nll(&mut *passes, &read(&tokens, mixed(reset)).1));
        assert!((a / b - 1.0).abs() > 1e-6, "{name}: {a} {b}");
    }
}

#[test]
fn another_document_of_the_sample_changes_nothing() {
    let (_dir, tokens) = split(|_| 0);
    let model = Model::random(&tiny(), 11).unwrap();
    for packing in [Packing::Stream, Packing::BestFit] {
        for reset in [true, false] {
            let (_, batch) =
                read(&tokens, Reading { reset_attention: reset, reset_positions: reset, ..Reading::causal(packing) });
            // Where the second document of each row begins and ends; nothing else is scored.
            let first_of = |row: usize| &batch.ids[row * 16..(row + 1) * 16];
            let mut scored = batch.clone();
            let mut changed = 0;
            for row in 0..batch.rows {
                let ends: Vec<usize> = (0..16).filter(|&k| first_of(row)[k] == 0).collect();
                for k in 0..16 {
                    let second = ends.first().is_some_and(|&e| k > e) && ends.get(1).is_none_or(|&e| k < e);
                    if !second {
                        scored.targets[row * 16 + k] = IGNORED as i32;
                    }
                }
            }
            let mut other = scored.clone();
            for row in 0..batch.rows {
                for k in 0..16 {
                    let id = &mut other.ids[row * 16 + k];
                    if *id == 0 {
                        break;
                    }
                    *id = 2 + (*id + 7) % 46;
                    changed += 1;
                }
            }
            assert!(changed > 40 && scored.labels() > 40, "{changed} {}", scored.labels());
            for (name, mut passes) in engines(&model) {
                let [a, b] = [&scored, &other].map(|b| nll(&mut *passes, b));
                assert_eq!(a == b, reset, "{name} {packing:?}: {a} {b}");
            }
        }
    }
}

#[test]
fn a_prefix_sees_itself_and_not_the_response() {
    let model = Model::random(&tiny(), 11).unwrap();
    let reading = |objective| Reading { objective, ..Reading::causal(Packing::Document) };
    for (prompts, one) in [(Box::new(|n: usize| n / 2) as Box<dyn Fn(usize) -> usize>, false), (Box::new(|_| 1), true)]
    {
        let (_dir, tokens) = split(prompts);
        let (_, prefix) = read(&tokens, reading(Objective::Prefix));
        let (_, response) = read(&tokens, reading(Objective::Response));
        assert_eq!((&prefix.ids, &prefix.targets), (&response.ids, &response.targets));
        for (name, mut passes) in engines(&model) {
            // A prompt of one token sees what a causal mask shows it.
            let [a, b] = [&prefix, &response].map(|b| nll(&mut *passes, b));
            assert_eq!((a / b - 1.0).abs() < 1e-6, one, "{name}: {a} {b}");
        }
        // What is predicted first is scored alone; the responses' inputs are others: nothing changes.
        let mut scored = prefix.clone();
        let mut other = prefix.clone();
        for row in 0..prefix.rows {
            let prompt = prefix.prompt_lens.as_ref().unwrap()[row] as usize;
            for k in 0..16 {
                let at = row * 16 + k;
                if k + 1 != prompt {
                    (scored.targets[at], other.targets[at]) = (IGNORED as i32, IGNORED as i32);
                }
                if k >= prompt {
                    other.ids[at] = 2 + (other.ids[at] + 5) % 46;
                }
            }
        }
        for (name, mut passes) in engines(&model) {
            let [a, b] = [&scored, &other].map(|b| nll(&mut *passes, b));
            assert!(a == b && scored.labels() == scored.rows as i64, "{name}: {a} {b}");
        }
    }
}
