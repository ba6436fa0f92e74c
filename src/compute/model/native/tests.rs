//! The passes against the oracle in f64 ([`reference`]), and against themselves bit by bit.

use tch::{Kind, Tensor};

use super::super::batch::{Batch, Mask};
use super::super::config::{Family, Llama3Scaling, QueryScaling, RopeScaling, Sizes, SlidingWindow, YarnScaling};
use super::super::libtorch::{self, LibtorchPasses};
use super::super::passes::{Accumulate, GrainAt, GrainSum, Hooks, NoHooks, Passes};
use super::super::{Activation, Constraint, Model, ModelConfig, Variant, as_f32, as_f32_mut, decoder};
use super::{Activations, NativePasses, Options, reference};
use crate::compute::Result;
use crate::compute::kernels::gemm::Backend;
use crate::compute::rng::{Purpose, Rng};

const CPU: (Kind, tch::Device) = (Kind::Float, tch::Device::Cpu);

const AT: GrainAt = GrainAt { seed: 3, step: 5, grain: 7 };

fn options() -> Options {
    Options { gemm: Backend::Builtin, threads: 1, activations: Activations::Keep, dropout: 0.0 }
}

fn config(family: Family) -> ModelConfig {
    let sizes = Sizes {
        hidden_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 80,
        vocab_size: 67,
        max_position_embeddings: 96,
    };
    let mut config = ModelConfig::new(family, sizes);
    if family == Family::GptNeox {
        config.rotary_dims = 4;
    } else {
        config.num_key_value_heads = 2;
    }
    if family == Family::Mistral {
        config.sliding_window = Some(SlidingWindow { size: 5, first_layer: 1 });
    }
    config.tie_word_embeddings = family == Family::Qwen2;
    config
}

/// A model whose every parameter is away from zero and from each other.
fn model(config: &ModelConfig, variant: Option<Variant>) -> Model {
    let mut model = Model::random(config, 11).unwrap();
    let layout = model.layout().clone();
    for (g, group) in layout.groups.iter().enumerate() {
        for span in &group.spans {
            let mut rng = Rng::new(1, Purpose::Init, g as u32, span.offset as u64);
            let flat = as_f32_mut(&mut model.flats_mut()[g]);
            for x in &mut flat[span.range()] {
                *x += 0.2 * rng.normal() as f32;
            }
        }
    }
    match variant {
        Some(variant) => model.constrained(variant).unwrap(),
        None => model,
    }
}

fn batch(rows: usize, seq_len: usize, vocab: i64) -> Batch {
    let mut rng = Rng::new(2, Purpose::Order, 0, 0);
    let mut draw = || (0..rows * seq_len).map(|_| rng.below(vocab as u64) as i32).collect::<Vec<_>>();
    let (ids, mut targets) = (draw(), draw());
    // Some positions have no label.
    targets.iter_mut().skip(2).step_by(5).for_each(|t| *t = -100);
    Batch::causal(rows, seq_len, ids, targets)
}

fn buffers(model: &Model) -> Vec<Tensor> {
    model.layout().groups.iter().map(|g| Tensor::full([g.len as i64], f64::NAN, CPU)).collect()
}

fn native(model: &Model, batch: &Batch, options: Options) -> (GrainSum, Vec<Tensor>) {
    let mut passes = NativePasses::new(model, options).unwrap();
    let mut gradients = buffers(model);
    let sum = passes.backward(batch, AT, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
    (sum, gradients)
}

/// Every parameter's gradient is within 1e-5 of its tensor's largest, the NLL within 1e-6.
#[track_caller]
fn check(model: &Model, batch: &Batch, options: Options, what: &str) {
    let dropout = (options.dropout > 0.0).then_some((AT, options.dropout));
    let (nll, exact) = reference::gradients(model, batch, dropout);
    let (sum, got) = native(model, batch, options);
    assert!((sum.nll - nll).abs() <= 1e-6 * nll.abs().max(1.0), "{what}: NLL {} for {nll}", sum.nll);
    assert_eq!(sum.tokens, batch.targets.iter().filter(|&&t| t >= 0).count() as i64);
    for ((group, got), exact) in model.layout().groups.iter().zip(&got).zip(&exact) {
        let (got, exact) = (as_f32(got), reference::values(exact));
        let mut covered = 0;
        // A gradient that is zero because terms cancel (one key has no softmax to move) is rounding of the others.
        let rounding = 1e-6 * exact.iter().fold(0f64, |m, x| m.max(x.abs()));
        for span in &group.spans {
            let largest = exact[span.range()].iter().fold(0f64, |m, x| m.max(x.abs()));
            for i in span.range() {
                let off = (f64::from(got[i]) - exact[i]).abs();
                assert!(off <= 1e-5 * largest + rounding, "{what}: {} [{i}]: {} for {}", span.name, got[i], exact[i]);
            }
            assert!(got[covered..span.offset].iter().all(|&x| x == 0.0), "{what}: padding of {}", group.name);
            covered = span.range().end;
        }
        assert!(got[covered..].iter().all(|&x| x == 0.0), "{what}: padding of {}", group.name);
    }
}

#[test]
fn the_oracle_is_the_decoder() {
    // What the oracle says of a plain batch, the decoder that is compared with `transformers` says too.
    let config = config(Family::GptNeox);
    let (model, batch) = (model(&config, None), batch(2, 11, config.vocab_size));
    let leaves: Vec<Tensor> =
        model.flats().iter().map(|f| f.to_kind(Kind::Double).detach().copy().set_requires_grad(true)).collect();
    let views = model.views_of(&leaves).unwrap();
    let wide = |x: &[i32]| Tensor::from_slice(x).to_kind(Kind::Int64).view([2, 11]);
    let x = decoder::embed(&views.embed, &wide(&batch.ids)).unwrap();
    let nll = decoder::nll(&model.decoder().logits(&views, &x).unwrap(), &wide(&batch.targets)).unwrap();
    let total = nll.sum(Kind::Double);
    let theirs = Tensor::run_backward(&[&total], &leaves, false, false);
    let (ours_nll, ours) = reference::gradients(&model, &batch, None);
    assert!((total.double_value(&[]) - ours_nll).abs() < 1e-5);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let (ours, theirs) = (reference::values(ours), reference::values(theirs));
        let largest = theirs.iter().fold(0f64, |m, x| m.max(x.abs()));
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= 1e-6 * largest));
    }
}

#[test]
fn gradients_of_all_families_are_those_of_the_oracle() {
    for family in Family::ALL {
        let config = config(family);
        let model = model(&config, None);
        for (rows, seq_len) in [(1, 1), (3, 37), (2, 64)] {
            let batch = batch(rows, seq_len, config.vocab_size);
            for activations in [Activations::Keep, Activations::Recompute] {
                let what = format!("{family:?} {rows} x {seq_len} {activations:?}");
                check(&model, &batch, Options { activations, ..options() }, &what);
            }
        }
    }
}

#[test]
fn every_switch_of_a_configuration_is_computed() {
    for (family, change) in [
        (Family::GptNeox, (|c| c.parallel_residual = false) as fn(&mut ModelConfig)),
        (Family::GptNeox, |c| c.hidden_act = Activation::GeluTanh),
        (Family::GptNeox, |c| c.hidden_act = Activation::Relu),
        (Family::GptNeox, |c| c.hidden_act = Activation::Softplus),
        (Family::GptNeox, |c| (c.qkv_bias, c.attention_out_bias) = (false, false)),
        (Family::GptNeox, |c| c.tie_word_embeddings = true),
        (Family::GptNeox, |c| c.rotary_dims = 0),
        (Family::Llama, |c| (c.qkv_bias, c.attention_out_bias, c.mlp_bias) = (true, true, true)),
        (Family::Llama, |c| c.num_key_value_heads = 1),
        (Family::Llama, |c| (c.head_dim, c.rotary_dims) = (10, 10)),
        // Parts that do not lie side by side.
        (Family::Qwen2, |c| (c.head_dim, c.rotary_dims, c.num_key_value_heads, c.hidden_size) = (2, 2, 1, 7)),
        (Family::Llama, |c| (c.intermediate_size, c.hidden_size, c.mlp_bias) = (9, 7, true)),
    ] {
        let mut config = config(family);
        change(&mut config);
        check(&model(&config, None), &batch(2, 19, config.vocab_size), options(), &format!("{config:?}"));
    }
}

#[test]
fn what_a_query_sees_is_what_the_batch_says() {
    let t = 21;
    for family in Family::ALL {
        let config = config(family);
        let model = model(&config, None);
        let plain = batch(3, t, config.vocab_size);
        let n = plain.ids.len();
        let segments: Vec<i32> = (0..n).map(|i| (i % t / (3 + i / t)) as i32).collect();
        let positions = segments.iter().enumerate().map(|(i, &s)| (i % t) as i32 - s * (3 + i / t) as i32);
        let positions: Vec<i32> = positions.map(|p| 2 * p).collect();
        let packed = Batch { segments: Some(segments), positions: Some(positions), ..plain.clone() };
        let padded = Batch { key_lens: Some(vec![21, 9, 1]), ..plain.clone() };
        let mut full = Batch { mask: Mask::Full, ..padded.clone() };
        full.targets[t + 9..].fill(-100);
        let prefix = Batch { mask: Mask::Prefix, prompt_lens: Some(vec![0, 8, 21]), ..plain.clone() };
        let weighted = Batch { loss_weights: Some((0..n).map(|i| (i % 7) as f32 * 0.3).collect()), ..plain.clone() };
        let unlabelled = Batch { targets: vec![-100; n], ..plain.clone() };
        for (batch, what) in [
            (packed, "packed"),
            (padded, "padded"),
            (full, "full"),
            (prefix, "prefix"),
            (weighted, "weighted"),
            (unlabelled, "unlabelled"),
        ] {
            check(&model, &batch, options(), &format!("{family:?} {what}"));
        }
    }
}

#[test]
fn losses_by_position_refuse_weights() {
    let config = config(Family::GptNeox);
    let mut passes = NativePasses::new(&model(&config, None), options()).unwrap();
    let plain = batch(2, 5, config.vocab_size);
    let weighted = Batch { loss_weights: Some(vec![1.0; 10]), ..plain.clone() };
    for error in [passes.nll(&weighted).unwrap_err(), passes.input_gradient(&weighted).map(|_| ()).unwrap_err()] {
        assert!(error.to_string().contains("loss weights"), "{error}");
    }
    let losses = passes.nll(&plain).unwrap();
    assert_eq!(passes.input_gradient(&plain).unwrap().0, losses);
}

#[test]
fn constrained_weights_have_the_gradient_of_their_parameter() {
    let config = config(Family::GptNeox);
    for variant in [Variant::MlpBoth, Variant::MlpIn, Variant::MlpInAttnOut, Variant::SignFrozen, Variant::AbsInitFree]
    {
        let model = model(&config, Some(variant));
        assert!(model.layout().spans().any(|(_, s)| s.constraint != Constraint::Dense));
        check(&model, &batch(2, 13, config.vocab_size), options(), variant.word());
    }
}

#[test]
fn dropout_is_in_the_gradient() {
    for family in [Family::GptNeox, Family::Mistral] {
        let config = config(family);
        let (model, batch) = (model(&config, None), batch(2, 70, config.vocab_size));
        for activations in [Activations::Keep, Activations::Recompute] {
            let options = Options { dropout: 0.3, activations, ..options() };
            check(&model, &batch, options, &format!("{family:?} {activations:?}"));
        }
    }
}

#[test]
fn the_vocabulary_is_cut_into_chunks_of_rows() {
    let mut config = config(Family::GptNeox);
    // 8 Mi logits are 128 rows of this many.
    (config.vocab_size, config.num_hidden_layers) = (66_001, 1);
    (config.hidden_size, config.intermediate_size) = (8, 8);
    config.head_dim = 2;
    config.rotary_dims = 2;
    check(&model(&config, None), &batch(2, 70, config.vocab_size), options(), "chunks");
}

#[test]
fn both_engines_say_the_same() {
    let t = 24;
    for family in Family::ALL {
        let mut config = config(family);
        config.rope_scaling = match family {
            Family::Llama => Some(RopeScaling::Llama3(Llama3Scaling {
                factor: 4.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 32,
            })),
            Family::Ministral3 => Some(RopeScaling::Yarn(YarnScaling {
                factor: 4.0,
                original_max_position_embeddings: 32,
                beta_fast: 4.0,
                beta_slow: 0.5,
                attention_factor: 1.1,
                truncate: true,
            })),
            _ => None,
        };
        config.query_scaling =
            (family == Family::Ministral3).then_some(QueryScaling { beta: 0.4, original_max_position_embeddings: 5 });
        let model = model(&config, None);
        let plain = batch(2, t, config.vocab_size);
        let segments = (0..2 * t).map(|i| (i % t / 7) as i32).collect();
        let positions = (0..2 * t).map(|i| (i % t % 7) as i32).collect();
        let packed = Batch { segments: Some(segments), positions: Some(positions), ..plain.clone() };
        let prefix = Batch { mask: Mask::Prefix, prompt_lens: Some(vec![3, 20]), ..plain.clone() };
        let mut padded = Batch { key_lens: Some(vec![24, 11]), ..plain.clone() };
        // What padding would say is nobody's business.
        padded.targets[t + 11..].fill(-100);
        let full = Batch { mask: Mask::Full, ..padded.clone() };
        let of_segments = Batch { mask: Mask::Full, ..packed.clone() };
        let masks = [(prefix, "prefix"), (full, "full"), (of_segments, "full, packed")];
        let batches = [(plain, "plain"), (packed, "packed"), (padded, "padded")].into_iter().chain(masks);
        for (batch, what) in batches {
            let (sum, ours) = native(&model, &batch, options());
            let mut libtorch = LibtorchPasses::of_model(&model, libtorch::Settings::default()).unwrap();
            let mut theirs = buffers(&model);
            let their_sum = libtorch.backward(&batch, AT, &mut theirs, Accumulate::Assign, &mut NoHooks).unwrap();
            assert_eq!(sum.tokens, their_sum.tokens, "{family:?} {what}");
            let off = (sum.nll / their_sum.nll - 1.0).abs();
            assert!(off <= 2e-6, "{family:?} {what}: the NLL is off by {off:e}");
            for (g, span) in model.layout().spans() {
                let (ours, theirs) = (&as_f32(&ours[g])[span.range()], &as_f32(&theirs[g])[span.range()]);
                let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
                let off = ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                // Both are fp32.
                assert!(off <= 2e-5 * largest, "{family:?} {what}: {} is off by {off} of {largest}", span.name);
            }
        }
    }
}

/// A mask is a patch of every attention layer, in training and without; gone, nothing is left of it.
#[test]
fn a_mask_is_taken_by_every_layer_and_leaves_no_bit_behind() {
    let t = 21;
    for family in Family::ALL {
        let config = config(family);
        let model = model(&config, None);
        let causal = batch(3, t, config.vocab_size);
        let prefix = Batch { mask: Mask::Prefix, prompt_lens: Some(vec![1, 8, 20]), ..causal.clone() };
        let full = Batch { mask: Mask::Full, key_lens: Some(vec![21, 9, 12]), ..causal.clone() };
        for activations in [Activations::Keep, Activations::Recompute] {
            let keep = if activations == Activations::Keep { libtorch::Keep::Graphs } else { libtorch::Keep::Inputs };
            let settings = libtorch::Settings { keep, ..libtorch::Settings::default() };
            let mut engines: [Box<dyn Passes>; 2] = [
                Box::new(NativePasses::new(&model, Options { activations, ..options() }).unwrap()),
                Box::new(LibtorchPasses::of_model(&model, settings).unwrap()),
            ];
            for passes in &mut engines {
                let mut run = |batch: &Batch| {
                    let mut gradients = buffers(&model);
                    let sum = passes.backward(batch, AT, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
                    let in_training = passes.patched_layers();
                    let alone = passes.evaluate(batch, &mut NoHooks).unwrap();
                    assert_eq!(in_training, passes.patched_layers());
                    (in_training, [sum, alone].map(|s| s.nll.to_bits()), bits(&gradients))
                };
                let before = run(&causal);
                assert_eq!(before.0, 0, "{family:?}");
                for (batch, word) in [(&prefix, "prefix"), (&full, "full")] {
                    let patched = run(batch);
                    assert_eq!(patched.0, config.num_hidden_layers as usize, "{family:?} {word}");
                    assert!(patched.1 != before.1 && patched.2 != before.2, "{family:?} {word} changes something");
                    assert!(run(&causal) == before, "{family:?} after {word}");
                }
            }
        }
    }
}

fn bits(gradients: &[Tensor]) -> Vec<u32> {
    gradients.iter().flat_map(reference::floats).map(f32::to_bits).collect()
}

#[test]
fn bits_do_not_depend_on_what_was_kept_or_computed_before() {
    for (family, dropout) in [(Family::GptNeox, 0.0), (Family::Qwen2, 0.1), (Family::GptNeox, 0.1)] {
        let config = config(family);
        let model = model(&config, (family == Family::GptNeox).then_some(Variant::SignFrozen));
        let (small, large) = (batch(2, 37, config.vocab_size), batch(4, 50, config.vocab_size));
        let options = Options { dropout, ..options() };
        let (sum, first) = native(&model, &small, options);
        let recompute = Options { activations: Activations::Recompute, ..options };
        let (again, recomputed) = native(&model, &small, recompute);
        assert_eq!((bits(&first), sum), (bits(&recomputed), again));

        let mut passes = NativePasses::new(&model, options).unwrap();
        let mut gradients = buffers(&model);
        for batch in [&large, &small] {
            passes.backward(batch, AT, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
        }
        assert_eq!(bits(&first), bits(&gradients));
        // Memory that begins anywhere.
        let whole: Vec<Tensor> = model.layout().groups.iter().map(|g| Tensor::zeros([g.len as i64 + 3], CPU)).collect();
        let mut shifted: Vec<Tensor> = whole.iter().map(|t| t.narrow(0, 3, t.size()[0] - 3)).collect();
        passes.backward(&small, AT, &mut shifted, Accumulate::Assign, &mut NoHooks).unwrap();
        assert_eq!(bits(&first), bits(&shifted));
        // Another grain draws other masks.
        let other = GrainAt { grain: 8, ..AT };
        passes.backward(&small, other, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
        assert_eq!(bits(&first) == bits(&gradients), dropout == 0.0);
        // An evaluation has no dropout and does not care what was before it.
        let evaluated = passes.evaluate(&small, &mut NoHooks).unwrap();
        let undropped = native(&model, &small, Options { dropout: 0.0, ..options }).0;
        assert_eq!(evaluated, undropped);
    }
}

#[test]
fn gradients_add_up() {
    for (family, variant) in [(Family::GptNeox, Some(Variant::MlpBoth)), (Family::Qwen2, None)] {
        let config = config(family);
        let (model, batch) = (model(&config, variant), batch(2, 17, config.vocab_size));
        let (_, once) = native(&model, &batch, options());
        let mut passes = NativePasses::new(&model, options()).unwrap();
        let mut twice = buffers(&model);
        for how in [Accumulate::Assign, Accumulate::Add] {
            passes.backward(&batch, AT, &mut twice, how, &mut NoHooks).unwrap();
        }
        for (once, twice) in once.iter().zip(&twice) {
            let largest = as_f32(once).iter().fold(0f32, |m, x| m.max(x.abs()));
            for (once, twice) in as_f32(once).iter().zip(as_f32(twice)) {
                assert!((2.0 * once - twice).abs() <= 2e-6 * largest, "{once} {twice}");
            }
        }
    }
}

#[test]
fn changed_weights_are_seen_after_a_refresh() {
    let config = config(Family::GptNeox);
    let (mut model, batch) = (model(&config, Some(Variant::MlpBoth)), batch(2, 9, config.vocab_size));
    let mut passes = NativePasses::new(&model, options()).unwrap();
    let before = passes.evaluate(&batch, &mut NoHooks).unwrap();
    for flat in model.flats_mut() {
        as_f32_mut(flat).iter_mut().for_each(|x| *x *= 0.5);
    }
    passes.refresh();
    let after = passes.evaluate(&batch, &mut NoHooks).unwrap();
    assert_ne!(before, after);
    assert_eq!(after, NativePasses::new(&model, options()).unwrap().evaluate(&batch, &mut NoHooks).unwrap());
}

#[derive(Default)]
struct Recorded(Vec<(char, usize)>);

impl Hooks for Recorded {
    fn needs(&mut self, group: usize) -> Result<()> {
        self.0.push(('n', group));
        Ok(())
    }

    fn ready(&mut self, group: usize, gradient: &mut Tensor) -> Result<()> {
        assert!(as_f32(gradient).iter().all(|x| x.is_finite()), "a gradient is ready when it is whole");
        self.0.push(('r', group));
        Ok(())
    }
}

#[test]
fn groups_are_needed_in_order_and_ready_in_reverse() {
    for family in [Family::GptNeox, Family::Qwen2] {
        let config = config(family);
        let (model, batch) = (model(&config, None), batch(1, 9, config.vocab_size));
        for activations in [Activations::Keep, Activations::Recompute] {
            let mut passes = NativePasses::new(&model, Options { activations, ..options() }).unwrap();
            let (mut hooks, mut gradients) = (Recorded::default(), buffers(&model));
            passes.backward(&batch, AT, &mut gradients, Accumulate::Assign, &mut hooks).unwrap();
            let (needs, ready) = ((0..4).map(|g| ('n', g)), (0..4).rev().map(|g| ('r', g)));
            assert_eq!(hooks.0, needs.chain(ready).collect::<Vec<_>>());
        }
    }
}

#[test]
fn wrong_batches_are_refused() {
    let config = config(Family::GptNeox);
    let model = model(&config, None);
    let mut passes = NativePasses::new(&model, options()).unwrap();
    let good = batch(2, 9, config.vocab_size);
    let with = |change: fn(&mut Batch)| {
        let mut batch = good.clone();
        change(&mut batch);
        batch
    };
    for (batch, word) in [
        (with(|b| b.ids[3] = 67), "67 is outside"),
        (with(|b| b.targets[3] = -1), "-1 is outside"),
        (with(|b| b.positions = Some(vec![96; 18])), "97 positions"),
        (with(|b| b.segments = Some(vec![1; 17])), "other lengths"),
        (with(|b| b.segments = Some((0..18).map(|i| i % 2).collect())), "in two parts"),
        (batch(1, 97, config.vocab_size), "97 positions"),
    ] {
        let error = passes.evaluate(&batch, &mut NoHooks).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(NativePasses::new(&model, Options { dropout: 1.0, ..options() }).is_err());
}
