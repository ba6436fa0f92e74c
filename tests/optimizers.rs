//! Adafactor and AdamW over 20 steps of a finetune against `transformers` and PyTorch.
//!
//! The numbers come from `scripts/references/optimizers.py`: a small committed fixture, and with
//! `SEEDBED_PEERS=<python>` another random model, live.

use std::path::{Path, PathBuf};

use seedbed::compute::model::{
    Accumulate, Batch, Constraint, GrainAt, GroupLayout, Layout, Model, NoHooks, Role, Span, as_f32,
};
use seedbed::compute::train::adamw::Step;
use seedbed::compute::train::shards::Shards;
use seedbed::compute::train::{
    Adafactor, AdamW, Choice, Decay, EngineName, Master, Optimizer, Precision, Trainee, norm,
};
use tch::{Device, Kind, Tensor};

use crate::model::stored;

const STEPS: usize = 20;

fn adafactor(master: Master) -> Optimizer {
    Optimizer::Adafactor(Adafactor {
        weight_decay: 0.1,
        decay_constrained: Decay::Excluded,
        lr_constrained_multiplier: 1.0,
        master,
    })
}

/// The optimizers as the script makes them, with their highest rates.
fn optimizers() -> [(&'static str, Optimizer, f64); 2] {
    let adamw = AdamW { beta2: 0.999, ..AdamW::default() };
    [("adafactor", adafactor(Master::Fp32), 4e-3), ("adamw", Optimizer::AdamW(adamw), 2e-3)]
}

fn numbers(dir: &Path, name: &str) -> Vec<f64> {
    Vec::<f64>::try_from(stored(&dir.join("expected.safetensors"), name).to_kind(Kind::Double).reshape([-1])).unwrap()
}

/// Losses of 20 steps, and the model after them.
fn train(dir: &Path, optimizer: &Optimizer, lr: f64, choice: &Choice) -> (Vec<f64>, Model) {
    let expected = |name: &str| stored(&dir.join("expected.safetensors"), name);
    let mut model = Model::load(dir).unwrap();
    let mut trainee = Trainee::of_model(&model, choice, Device::Cpu).unwrap();
    let mut shards = Shards::new(optimizer, &trainee.layout, &trainee.flats, 0, 1).unwrap();
    let mut gradients: Vec<Tensor> =
        trainee.layout.groups.iter().map(|g| Tensor::zeros([g.len as i64], (Kind::Float, Device::Cpu))).collect();
    let [rows, length] = [1, 2].map(|axis| expected("ids").size()[axis] as usize);
    let of_step = |name: &str, k: usize| -> Vec<i32> {
        let values = Vec::<i64>::try_from(expected(name).get(k as i64).reshape([-1])).unwrap();
        values.into_iter().map(|x| x as i32).collect()
    };
    let rates = numbers(dir, "lr");
    let mut losses = Vec::new();
    for k in 0..STEPS {
        let batch = Batch::causal(rows, length, of_step("ids", k), of_step("targets", k));
        let at = GrainAt { seed: 1, step: k as u64, grain: 0 };
        let sum = trainee.passes.backward(&batch, at, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
        losses.push(sum.nll / sum.tokens as f64);
        let squares: Vec<f64> = gradients.iter().flat_map(|g| shards.chunk_sums(g).unwrap()).collect();
        let (factor, _) = norm::factor_and_norm(&squares, sum.tokens, 1.0);
        let step = Step { lr: lr * rates[k], update: k as u64 + 1, gradient_factor: factor as f32 };
        for (g, group) in trainee.layout.groups.iter().enumerate() {
            shards.update(optimizer, g, group, &trainee.flats[g], &gradients[g], step).unwrap();
        }
        trainee.passes.refresh();
    }
    let parameters = shards.stored(&trainee.flats).unwrap().into_iter();
    let weights = parameters.filter(|s| s.kind == seedbed::compute::checkpoint::Kind::Weights).map(|s| s.values);
    model.put_flats(weights.collect()).unwrap();
    (losses, model)
}

/// How far the parameters moved, and how far ours are from theirs, at most.
fn distances(dir: &Path, name: &str, model: &Model) -> (f32, f32) {
    let before = Model::load(dir).unwrap();
    let (mut moved, mut off) = (0f32, 0f32);
    for (g, span) in model.layout().spans() {
        let theirs = numbers(dir, &format!("{name}.{}", span.name));
        let (ours, first) = (&as_f32(&model.flats()[g])[span.range()], &as_f32(&before.flats()[g])[span.range()]);
        assert_eq!(ours.len(), theirs.len(), "{}", span.name);
        for ((ours, theirs), first) in ours.iter().zip(&theirs).zip(first) {
            moved = moved.max((*theirs as f32 - first).abs());
            off = off.max((*ours - *theirs as f32).abs());
        }
    }
    (moved, off)
}

fn check(dir: &Path) {
    for (name, optimizer, lr) in optimizers() {
        let theirs = numbers(dir, &format!("{name}.losses"));
        for engine in [EngineName::Native, EngineName::Libtorch] {
            let (losses, model) = train(dir, &optimizer, lr, &Choice { engine, ..Choice::default() });
            for (k, (a, b)) in losses.iter().zip(&theirs).enumerate() {
                assert!((a - b).abs() <= 1e-5 * b, "{name} {engine:?}: step {k} has loss {a}, theirs {b}");
            }
            assert!(theirs[STEPS - 1] < theirs[0] - 0.1, "{name}: something is learnt: {theirs:?}");
            let (moved, off) = distances(dir, name, &model);
            eprintln!("{name} {engine:?}: parameters moved by up to {moved}, ours are off by up to {off:e}");
            assert!(moved > 0.02 && off <= 2e-4 * moved, "{name} {engine:?}: moved {moved}, off {off}");
        }
    }
    // With bf16 weights and fp32 masters: near to it, and not the same.
    for (name, optimizer, lr) in optimizers() {
        let bf16 = Choice { engine: EngineName::Libtorch, precision: Precision::Bf16, ..Choice::default() };
        let (losses, model) = train(dir, &optimizer, lr, &bf16);
        let theirs = numbers(dir, &format!("{name}.losses"));
        assert!((losses[STEPS - 1] / theirs[STEPS - 1] - 1.0).abs() < 0.03, "{name}: {losses:?} {theirs:?}");
        let (moved, off) = distances(dir, name, &model);
        assert!(off > 1e-5 && off < moved, "{name} in bf16: moved {moved}, off {off}");
    }
    check_pure(dir);
}

/// Adafactor over bf16 weights without masters: the same roundings, update after update.
fn check_pure(dir: &Path) {
    let shapes: [(&str, &[i64], Role); 2] = [("matrix", &[9, 14], Role::Input), ("vector", &[11], Role::Bias)];
    for (name, shape, role) in shapes {
        let (gradients, weights) =
            (numbers(dir, &format!("pure.{name}.gradients")), numbers(dir, &format!("pure.{name}.weights")));
        let len = shape.iter().product::<i64>() as usize;
        let constraint = Constraint::Dense;
        let span = Span { name: name.into(), shape: shape.to_vec(), offset: 0, len, role, constraint };
        let layout = Layout { groups: vec![GroupLayout { name: "g".into(), spans: vec![span], len }], lanes: 1 };
        let bf16 = |values: &[f64]| Tensor::from_slice(values).to_kind(Kind::BFloat16);
        let mut flat = bf16(&weights[..len]);
        let (optimizer, with_master) = (adafactor(Master::Absent), adafactor(Master::Fp32));
        let mut shards = Shards::new(&optimizer, &layout, std::slice::from_ref(&flat), 0, 1).unwrap();
        let other_flat = flat.copy();
        let mut other = Shards::new(&with_master, &layout, std::slice::from_ref(&other_flat), 0, 1).unwrap();
        let mut differ = 0;
        for k in 0..STEPS {
            let gradient: Vec<f32> = gradients[k * len..(k + 1) * len].iter().map(|&g| g as f32).collect();
            let gradient = Tensor::from_slice(&gradient);
            let step = Step { lr: 0.01, update: k as u64 + 1, gradient_factor: 1.0 };
            shards.update(&optimizer, 0, &layout.groups[0], &flat, &gradient, step).unwrap();
            other.update(&with_master, 0, &layout.groups[0], &other_flat, &gradient, step).unwrap();
            let ours = Vec::<f32>::try_from(flat.to_kind(Kind::Float)).unwrap();
            let theirs = &weights[(k + 1) * len..(k + 2) * len];
            for (a, b) in ours.iter().zip(theirs) {
                // A bf16 number has 8 bits: two neighbours are at most 2^-7 of it apart.
                assert!((f64::from(*a) - b).abs() <= b.abs() / 128.0, "{name} update {k}: {a} {b}");
                differ += usize::from(f64::from(*a) != *b);
            }
            // The next update begins from the same numbers.
            flat.copy_(&bf16(theirs));
        }
        eprintln!("{name}: {differ} of {} roundings differ", STEPS * len);
        assert!(differ * 100 <= STEPS * len, "{name}: {differ} roundings differ");
        // Masters keep what the rounding of bf16 weights loses.
        let end = Vec::<f32>::try_from(other_flat.to_kind(Kind::Float)).unwrap();
        let theirs = &weights[STEPS * len..];
        assert!(end.iter().zip(theirs).any(|(a, b)| f64::from(*a) != *b), "{name}");
    }
}

#[test]
fn twenty_steps_are_those_of_transformers() {
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/optimizers"));
}

/// Another random model, trained by `transformers` now.
#[test]
fn live_twenty_steps_are_those_of_transformers() {
    let Ok(python) = std::env::var("SEEDBED_PEERS") else {
        eprintln!("skipped: SEEDBED_PEERS names no python with torch and transformers");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/references/optimizers.py");
    let root = tempfile::tempdir().unwrap();
    let dir: PathBuf = root.path().join("model");
    let output = std::process::Command::new(&python).arg(&script).arg(&dir).arg("2024").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    check(&dir);
}
