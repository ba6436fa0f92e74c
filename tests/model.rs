//! The decoder against `transformers`: logits, losses, gradients, and the way back by an export.
//!
//! The numbers come from `scripts/references/neox.py`. With `SEEDBED_PEERS=<python>` the export is loaded
//! there too, live.

use std::path::{Path, PathBuf};

use seedbed::compute::ComputeError;
use seedbed::compute::model::{Constraint, Input, Model, ModelConfig, Variant, as_f32};
use tch::{Kind, Tensor};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/neox").join(name)
}

/// A tensor of a safetensors file, fp32 or i64.
pub fn stored(path: &Path, name: &str) -> Tensor {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    let kind = match view.dtype() {
        safetensors::Dtype::F32 => Kind::Float,
        safetensors::Dtype::I64 => Kind::Int64,
        other => panic!("{other:?}"),
    };
    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    Tensor::from_data_size(view.data(), &shape, kind)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn small_config() -> ModelConfig {
    ModelConfig::read(&fixture("parallel/config.json")).unwrap()
}

#[test]
fn logits_losses_and_gradients_are_those_of_transformers() {
    for family in ["parallel", "sequential"] {
        let dir = fixture(family);
        let expected = |name: &str| stored(&dir.join("expected.safetensors"), name);
        let model = Model::load(&dir).unwrap();
        let (ids, targets) = (expected("ids"), expected("targets"));
        let logits = model.logits(&Input::Tokens(ids.shallow_clone())).unwrap();
        let d = largest_difference(&logits, &expected("logits"));
        assert!(d <= 1e-4, "{family} logits: {d}");
        let nll = model.nll(&Input::Tokens(ids.shallow_clone()), &targets).unwrap();
        let d = largest_difference(&nll, &expected("nll"));
        assert!(d <= 1e-4, "{family} nll: {d}");
        assert_eq!(nll.get(1).get(12).double_value(&[]), 0.0, "an ignored target costs nothing");

        let (nll, gradient) = model.embedding_gradient(&ids, &targets).unwrap();
        assert!(largest_difference(&nll, &expected("nll")) <= 1e-4);
        let d = largest_difference(&gradient, &expected("gradient.embeddings"));
        assert!(d <= 1e-4, "{family} embedding gradient: {d}");
        assert!(!gradient.requires_grad() && !nll.requires_grad());

        // Flat leaves: one gradient a group, whose spans are the gradients of the parameters.
        let leaves: Vec<Tensor> = model.flats().iter().map(|f| f.detach().set_requires_grad(true)).collect();
        let views = model.views_of(&leaves).unwrap();
        let x = seedbed::compute::model::decoder::embed(&views.embed, &ids).unwrap();
        let logits = model.decoder().logits(&views, &x).unwrap();
        let loss = seedbed::compute::model::decoder::nll(&logits, &targets).unwrap().sum(Kind::Float);
        let gradients = Tensor::f_run_backward(&[loss], &leaves, false, false).unwrap();
        for (g, span) in model.layout().spans() {
            let flat = &as_f32(&gradients[g])[span.range()];
            let want = expected(&format!("gradient.{}", span.name)).reshape([-1]);
            let d = largest_difference(&Tensor::from_slice(flat), &want);
            let size = want.abs().max().double_value(&[]);
            assert!(d <= 1e-4 * size.max(1.0), "{family} {}: {d} of {size}", span.name);
        }
    }
}

#[test]
fn half_precision_and_sharded_files_are_read() {
    let model = Model::load(&fixture("parallel")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    model.export_hf(dir.path(), None, 20_000).unwrap();
    let shards = std::fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".safetensors"));
    assert!(shards.count() >= 3);
    assert_eq!(Model::load(dir.path()).unwrap().param_digest(), model.param_digest());

    for (kind, dtype, limit) in
        [(Kind::Half, safetensors::Dtype::F16, 1e-3), (Kind::BFloat16, safetensors::Dtype::BF16, 1e-2)]
    {
        let half = tempfile::tempdir().unwrap();
        std::fs::copy(fixture("parallel/config.json"), half.path().join("config.json")).unwrap();
        let mut bytes = Vec::new();
        for (g, span) in model.layout().spans() {
            let values = Tensor::from_slice(&as_f32(&model.flats()[g])[span.range()]).to_kind(kind);
            let mut data = vec![0u8; span.len * 2];
            values.copy_data_u8(&mut data, span.len);
            bytes.push((span.name.clone(), span.shape.iter().map(|&n| n as usize).collect::<Vec<_>>(), data));
        }
        let views = bytes.iter().map(|(name, shape, data)| {
            (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize_to_file(views, None, &half.path().join("model.safetensors")).unwrap();
        let read = Model::load(half.path()).unwrap();
        for (a, b) in read.flats().iter().zip(model.flats()) {
            let relative = ((a - b).abs() / (b.abs() + 1e-3)).max().double_value(&[]);
            assert!(relative < limit && relative > 0.0, "{kind:?}: {relative}");
        }
    }
}

#[test]
fn bad_weights_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let source = fixture("parallel");
    let weights = dir.path().join("model.safetensors");
    let config = dir.path().join("config.json");
    let message = || {
        let error = Model::load(dir.path()).unwrap_err();
        (error.to_string(), error.exit_code())
    };
    let (error, code) = message();
    assert!(error.contains("config.json") && code == 66, "{error}");
    std::fs::copy(source.join("config.json"), &config).unwrap();
    let (error, code) = message();
    assert!(error.contains("model.safetensors") && error.contains("copy the weights") && code == 66, "{error}");
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    for n in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&weights, &bytes[..n]).unwrap();
        let (error, code) = message();
        assert!(error.contains("model.safetensors") && error.contains("copy it again") && code == 64, "{n}: {error}");
    }
    std::fs::write(&weights, &bytes).unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"vocab_size\": 40", "\"vocab_size\": 41")).unwrap();
    let (error, _) = message();
    assert!(error.contains("[40, 32]") && error.contains("[41, 32]") && error.contains("embed"), "{error}");
    std::fs::write(&config, text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")).unwrap();
    let (error, _) = message();
    assert!(error.contains("lacks 12") && error.contains("layers.2"), "{error}");
    std::fs::write(&config, text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1")).unwrap();
    let (error, _) = message();
    assert!(error.contains("layers.1") && error.contains("does not use"), "{error}");
    assert!(matches!(Model::load(&dir.path().join("nowhere")), Err(ComputeError::Missing { .. })));
}

#[test]
fn random_weights_have_their_spread_and_their_seed() {
    let mut config = small_config();
    (config.hidden_size, config.head_dim) = (128, 64);
    config.intermediate_size = 512;
    let model = Model::random(&config, 42).unwrap();
    assert_eq!(model.param_digest(), Model::random(&config, 42).unwrap().param_digest());
    assert_ne!(model.param_digest(), Model::random(&config, 43).unwrap().param_digest());
    let std_of = |end: &str| {
        let (g, span) = model.layout().spans().find(|(_, s)| s.name.ends_with(end)).unwrap();
        Tensor::from_slice(&as_f32(&model.flats()[g])[span.range()]).std(false).double_value(&[])
    };
    let (small, wang) = ((2.0f64 / (5.0 * 128.0)).sqrt(), 2.0 / (2.0 * 128.0f64.sqrt()));
    // 65,536 draws: five standard errors of a standard deviation are 1.4 %.
    assert!((std_of("0.mlp.dense_h_to_4h.weight") / small - 1.0).abs() < 0.014);
    assert!((std_of("0.mlp.dense_4h_to_h.weight") / wang - 1.0).abs() < 0.014);
    assert_eq!(std_of("0.mlp.dense_4h_to_h.bias"), 0.0);
}

#[test]
fn a_model_comes_back_from_our_directory_with_its_constraint() {
    let plain = Model::load(&fixture("parallel")).unwrap();
    for variant in Variant::WORDS.iter().map(|w| Variant::parse(w).unwrap()) {
        let model = plain.constrained(variant).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), None).unwrap();
        let read = Model::load(dir.path()).unwrap();
        assert_eq!(read.variant(), Some(variant));
        assert_eq!(read.param_digest(), model.param_digest());
        let ids = Tensor::from_slice(&[1i64, 5, 9, 2]).view([1, 4]);
        let logits = |m: &Model| m.logits(&Input::Tokens(ids.shallow_clone())).unwrap();
        assert_eq!(largest_difference(&logits(&read), &logits(&model)), 0.0);

        // The export holds effective weights and computes the same.
        let out = tempfile::tempdir().unwrap();
        model.export_hf(out.path(), None, 1 << 30).unwrap();
        let exported = Model::load(out.path()).unwrap();
        assert_eq!(exported.variant(), None);
        assert_eq!(largest_difference(&logits(&exported), &logits(&model)), 0.0);

        // One flipped bit in the weights is seen.
        let weights = dir.path().join("parameters.safetensors");
        let mut bytes = std::fs::read(&weights).unwrap();
        let n = bytes.len();
        bytes[n - 5000] ^= 1;
        std::fs::write(&weights, bytes).unwrap();
        let error = Model::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("parameters.safetensors") && error.contains("damaged"), "{error}");
    }
}

#[test]
fn the_check_sees_the_constrained_tensors_and_fails_without_any() {
    let plain = Model::load(&fixture("parallel")).unwrap();
    assert!(plain.check_constraint().unwrap_err().to_string().contains("inspected no tensor"));
    let both = plain.constrained(Variant::MlpBoth).unwrap();
    let check = both.check_constraint().unwrap();
    assert_eq!((check.tensors, check.weights), (4, 4 * 32 * 48));
    assert!(check.min >= 0.9e-4 && check.negative.is_empty() && check.violated.is_empty(), "{check:?}");
    // Effective weights begin at |W0| + 1e-4.
    for (span, weight) in both.effective_weights().unwrap() {
        assert_eq!(span.constraint, Constraint::Softplus);
        let w0 = stored(&fixture("parallel/model.safetensors"), &span.name);
        let d = largest_difference(&weight, &(w0.abs() + 1e-4));
        assert!(d < 2e-6, "{}: {d}", span.name);
    }
    let signed = plain.constrained(Variant::SignFrozen).unwrap().check_constraint().unwrap();
    assert!(signed.min < 0.0 && signed.negative.len() == 4 && signed.violated.is_empty(), "{signed:?}");
    assert!(both.constrained(Variant::MlpIn).unwrap_err().to_string().contains("constrained already"));
}

#[test]
fn an_input_longer_than_the_context_is_refused() {
    let model = Model::load(&fixture("parallel")).unwrap();
    let ids = Tensor::zeros([1, 33], (Kind::Int64, tch::Device::Cpu));
    let error = model.logits(&Input::Tokens(ids)).unwrap_err().to_string();
    assert!(error.contains("33") && error.contains("32"), "{error}");
}

/// Mean NLL that `transformers` computes on the exported directory, live.
#[test]
fn the_export_has_the_same_perplexity_in_transformers() {
    let Ok(python) = std::env::var("SEEDBED_PEERS") else {
        eprintln!("skipped: SEEDBED_PEERS names no python with torch and transformers");
        return;
    };
    let plain = Model::load(&fixture("parallel")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/references/neox.py");
    let rows: Vec<Vec<i64>> = (0..4).map(|r| (0..20).map(|t| (r * 7 + t * t + 3) % 40).collect()).collect();
    for (model, shard_bytes) in [
        (Model::load(&fixture("parallel")).unwrap(), 1 << 30),
        (Model::load(&fixture("sequential")).unwrap(), 20_000),
        (plain.constrained(Variant::MlpBoth).unwrap(), 1 << 30),
        (plain.constrained(Variant::SignFrozen).unwrap(), 30_000),
    ] {
        let dir = tempfile::tempdir().unwrap();
        model.export_hf(dir.path(), None, shard_bytes).unwrap();
        let ids_file = dir.path().join("ids.json");
        std::fs::write(&ids_file, serde_json::to_string(&rows).unwrap()).unwrap();
        let output = std::process::Command::new(&python)
            .args([&script, Path::new("--perplexity"), dir.path(), &ids_file])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["parameters"], model.num_parameters());

        let ids = Tensor::from_slice(&rows.concat()).view([4, 20]);
        let targets = Tensor::from_slice(&rows.iter().flat_map(|r| r[1..].to_vec()).collect::<Vec<_>>()).view([4, 19]);
        let nll = model.nll(&Input::Tokens(ids.narrow(1, 0, 19)), &targets).unwrap();
        let perplexity = nll.mean(Kind::Double).double_value(&[]).exp();
        let relative = (perplexity / answer["perplexity"].as_f64().unwrap() - 1.0).abs();
        println!("perplexity {perplexity} relative difference {relative:e}");
        assert!(relative <= 1e-5, "{perplexity} {answer}");
    }
}
