//! Five families, the libtorch engine, adapters and translators against `transformers` and PyTorch.
//!
//! The numbers come from `scripts/references/families.py`: small committed fixtures, and with
//! `SEEDBED_PEERS=<python>` other random models, live.

use std::path::{Path, PathBuf};

use seedbed::compute::model::libtorch::{Ask, Base, Cotangents, Keep, Settings, Source, Want};
use seedbed::compute::model::native::{NativeDecoder, Step};
use seedbed::compute::model::passes::NoHooks;
use seedbed::compute::model::{
    Accumulate, Adapter, Batch, GrainAt, Hooks, LibtorchPasses, LoraSettings, Mask, Model, Net, Passes, Translator,
    TranslatorSettings, as_f32, as_f32_mut,
};
use tch::{Device, Kind, Tensor};

use crate::model::stored;

const MODELS: [&str; 5] = ["llama", "mistral", "qwen2", "ministral", "neox_tied"];
const AT: GrainAt = GrainAt { seed: 42, step: 3, grain: 1 };

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

/// A model of a directory that `families.py` wrote, and what it expects.
struct Case {
    dir: PathBuf,
    model: Model,
}

impl Case {
    fn of(root: &Path, name: &str) -> Self {
        let dir = root.join(name);
        Self { model: Model::load(&dir).unwrap(), dir }
    }

    fn expected(&self, name: &str) -> Tensor {
        stored(&self.dir.join("expected.safetensors"), name)
    }

    fn i32s(&self, name: &str) -> Vec<i32> {
        Vec::<i64>::try_from(self.expected(name).reshape([-1])).unwrap().iter().map(|&x| x as i32).collect()
    }

    fn batch(&self) -> Batch {
        let size = self.expected("ids").size();
        Batch::causal(size[0] as usize, size[1] as usize, self.i32s("ids"), self.i32s("targets"))
    }

    fn net(&self, base: Base, kind: Kind) -> Net {
        Net::of(&self.model, base, kind, Device::Cpu).unwrap()
    }

    /// Logits `[B T, V]`.
    fn logits(&self, batch: &Batch, kind: Kind) -> Tensor {
        let net = self.net(Base::Frozen, kind);
        let places = net.places(batch).unwrap();
        let all = (0..(batch.rows * batch.seq_len) as i64).collect();
        let ask = Ask { logits_at: all, ..Ask::default() };
        let want = Want { params: false, inputs: false };
        let pass = net.forward(Source::Ids, (batch, &places), ask, (Keep::Nothing, want)).unwrap();
        pass.outputs.logits_pv.unwrap()
    }

    fn lora(&self) -> (Net, PathBuf) {
        let neox = self.dir.ends_with("neox_tied");
        let targets: &[&str] = if neox { &["query_key_value"] } else { &["q_proj", "v_proj"] };
        let settings = LoraSettings { rank: 4, alpha: 8.0, targets: targets.iter().map(|&t| t.to_owned()).collect() };
        let mut adapter = Adapter::new(self.model.config(), &settings, 1, 1, Device::Cpu).unwrap();
        let file = self.dir.join("lora.safetensors");
        adapter = filled(adapter, &file);
        (self.net(Base::Frozen, Kind::Float).with_adapter(adapter), file)
    }
}

/// `adapter` with the weights of `file`.
fn filled(adapter: Adapter, file: &Path) -> Adapter {
    let layout = adapter.layout().clone();
    for (g, span) in layout.spans() {
        let values = stored(file, &span.name).reshape([-1]);
        let mut flat = adapter.flats()[g].shallow_clone();
        as_f32_mut(&mut flat)[span.range()].copy_from_slice(as_f32(&values));
    }
    adapter
}

fn buffers(lens: impl Iterator<Item = usize>) -> Vec<Tensor> {
    // What was there before must not matter.
    lens.map(|n| Tensor::full([n as i64], 7.0, (Kind::Float, Device::Cpu))).collect()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

/// Largest difference over the largest of `b`.
fn relative(a: &Tensor, b: &Tensor) -> f64 {
    largest_difference(a, b) / b.abs().max().double_value(&[])
}

fn bytes(tensors: &[Tensor]) -> Vec<u32> {
    tensors.iter().flat_map(|t| as_f32(t).iter().map(|x| x.to_bits()).collect::<Vec<_>>()).collect()
}

/// Logits of every row, token by token behind half of it, beside a cache: those of transformers in one piece.
fn check_cached(case: &Case, name: &str) {
    let batch = case.batch();
    let vocab = case.model.config().vocab_size as usize;
    let expected = case.expected("logits").reshape([-1]);
    let mut decoder = NativeDecoder::new(&case.model, Mask::Causal, 1).unwrap();
    for (ids, expected) in batch.ids.chunks(batch.seq_len).zip(as_f32(&expected).chunks(batch.seq_len * vocab)) {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let half = ids.len() / 2;
        let mut cache = decoder.cache(ids.len());
        let mut got = Vec::new();
        for piece in std::iter::once(&ids[..half]).chain(ids[half..].chunks(1)) {
            let step = Step { cache: &mut cache, ids: piece, prompt: half, wanted: piece.len() };
            got.extend_from_slice(decoder.advance(&mut [step]).unwrap());
        }
        let d = got.iter().zip(expected).fold(0f32, |d, (a, b)| d.max((a - b).abs()));
        assert!(d <= 1e-4 && got.len() == expected.len(), "{name} cached logits: {d}");
    }
}

/// Logits in fp32, the most likely tokens in bf16, and what [`check_passes`] sees.
fn check_model(case: &Case, name: &str) {
    check_cached(case, name);
    let batch = case.batch();
    let (b, t) = (batch.rows as i64, batch.seq_len as i64);
    let logits = case.logits(&batch, Kind::Float).view([b, t, -1]);
    let d = largest_difference(&logits, &case.expected("logits"));
    assert!(d <= 1e-4, "{name} logits: {d}");

    // bf16: the most likely token is that of transformers in bf16, or as likely in fp32 as rounding can tell.
    let top = case.logits(&batch, Kind::BFloat16).to_kind(Kind::Float).view([b, t, -1]).argmax(-1, false);
    let reference = case.expected("top_bf16");
    let fp32 = case.expected("logits");
    let of = |top: &Tensor| fp32.gather(-1, &top.unsqueeze(-1), false);
    let loss = (of(&reference) - of(&top)).max().double_value(&[]) / fp32.abs().max().double_value(&[]);
    let agreement = top.eq_tensor(&reference).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    println!("{name}: logits {d:e}, top-1 agreement {agreement}, at most {loss:e} less likely");
    assert!(agreement >= 0.9 && loss <= 2e-2, "{name} bf16: {agreement} {loss}");
    check_passes(case, name);
}

/// Losses and every gradient of the engine, with graphs and without, in small chunks and in one.
fn check_passes(case: &Case, name: &str) {
    let batch = case.batch();
    for keep in [Keep::Graphs, Keep::Inputs] {
        for head_rows in [3, 1024] {
            let settings = Settings { keep, dropout: 0.0, head_rows };
            let mut passes = LibtorchPasses::new(case.net(Base::Trainable, Kind::Float), settings);
            let layout = passes.net().trainable_layout();
            assert_eq!(&layout, case.model.layout());
            let mut gradients = buffers(layout.groups.iter().map(|g| g.len));
            let sum = passes.backward(&batch, AT, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
            let nll = case.expected("nll").sum(Kind::Double).double_value(&[]);
            assert!((sum.nll - nll).abs() <= 1e-4 && sum.tokens == batch.labels(), "{name}: {sum:?} {nll}");
            assert!((passes.evaluate(&batch, &mut NoHooks).unwrap().nll - nll).abs() <= 1e-4);
            let mut covered = 0;
            for (g, span) in layout.spans() {
                let found = Tensor::from_slice(&as_f32(&gradients[g])[span.range()]);
                let wanted = case.expected(&format!("gradient.{}", span.name)).reshape([-1]);
                let d = largest_difference(&found, &wanted);
                let size = wanted.abs().max().double_value(&[]);
                assert!(d <= 1e-4 * size.max(1.0) && size > 0.0, "{name} {}: {d} of {size}", span.name);
                covered += span.len;
            }
            let written: usize = gradients.iter().map(|g| as_f32(g).iter().filter(|x| **x != 0.0).count()).sum();
            assert!(written <= covered, "padding stays zero");

            // Another grain on top of the first: the sum, in the same buffers.
            let once: Vec<Tensor> = gradients.iter().map(Tensor::copy).collect();
            passes.backward(&batch, AT, &mut gradients, Accumulate::Add, &mut NoHooks).unwrap();
            for (twice, once) in gradients.iter().zip(&once) {
                assert!(largest_difference(twice, &(once * 2.0)) <= 1e-4 * once.abs().max().double_value(&[]));
            }
        }
    }
}

/// The gradient of the NLL by the embeddings, and that the frozen decoder has none.
fn check_frozen(case: &Case, name: &str) {
    let batch = case.batch();
    let net = case.net(Base::Frozen, Kind::Float);
    let places = net.places(&batch).unwrap();
    let x = Tensor::embedding(&net.embedding().unwrap(), &case.expected("ids"), -1, false, false);
    for keep in [Keep::Graphs, Keep::Inputs] {
        let ask = Ask { nll: true, ..Ask::default() };
        let want = Want { params: true, inputs: true };
        let pass = net.forward(Source::Embeddings(&x), (&batch, &places), ask, (keep, want)).unwrap();
        assert!(largest_difference(pass.outputs.nll_bt.as_ref().unwrap(), &case.expected("nll")) <= 1e-4);
        let ones = Cotangents { nll_bt: Some(x.ones_like().select(2, 0)), ..Cotangents::default() };
        // There is no buffer for a gradient of the base: one would be out of range.
        let gradient = pass.backward(&ones, &mut [], Accumulate::Assign).unwrap().unwrap();
        let d = relative(&gradient, &case.expected("gradient.embeddings"));
        println!("{name}: gradient of the embeddings {d:e}");
        assert!(d <= 1e-5, "{name}: {d}");
    }
    assert!(net.trainable_flats().is_empty() && net.flats().iter().all(|f| !f.requires_grad()));
}

fn check_lora(case: &Case, name: &str) {
    let digest = case.model.param_digest();
    let (net, file) = case.lora();
    let batch = case.batch();
    let places = net.places(&batch).unwrap();
    let all = (0..(batch.rows * batch.seq_len) as i64).collect();
    let ask = Ask { logits_at: all, ..Ask::default() };
    let want = Want { params: false, inputs: false };
    let pass = net.forward(Source::Ids, (&batch, &places), ask, (Keep::Nothing, want)).unwrap();
    let logits = pass.outputs.logits_pv.unwrap().view([batch.rows as i64, batch.seq_len as i64, -1]);
    let d = largest_difference(&logits, &stored(&file, "logits"));
    assert!(d <= 1e-4, "{name} with an adapter: {d}");

    for keep in [Keep::Graphs, Keep::Inputs] {
        let mut passes = LibtorchPasses::new(case.lora().0, Settings { keep, ..Settings::default() });
        let layout = passes.net().trainable_layout();
        assert!(layout.groups.iter().all(|g| g.name.starts_with("adapter.")));
        let mut gradients = buffers(layout.groups.iter().map(|g| g.len));
        passes.backward(&batch, AT, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
        for (g, span) in layout.spans() {
            let found = Tensor::from_slice(&as_f32(&gradients[g])[span.range()]);
            let d = relative(&found, &stored(&file, &format!("gradient.{}", span.name)).reshape([-1]));
            assert!(d <= 2e-5, "{name} {}: {d}", span.name);
        }
        assert!(passes.net().flats().iter().all(|f| !f.requires_grad() && !f.grad().defined()));
    }
    assert_eq!(case.model.param_digest(), digest, "the base's bytes");
}

fn check_translator(root: &Path) {
    let (reader, writer) = (Case::of(root, "llama"), Case::of(root, "qwen2"));
    let file = root.join("translator.safetensors");
    for keep in [Keep::Graphs, Keep::Inputs] {
        let settings = TranslatorSettings { after: 1, prefix: 5, keep };
        let nets = [&reader, &writer].map(|case| case.net(Base::Frozen, Kind::Float));
        let [from, to] = nets;
        let mut translator = Translator::new(from, to, settings, 1, 1).unwrap();
        let span = translator.layout().groups[0].spans[0].clone();
        let mut flat = translator.flats().remove(0);
        as_f32_mut(&mut flat)[span.range()].copy_from_slice(as_f32(&stored(&file, "weight").reshape([-1])));
        let mut gradients = buffers(translator.layout().groups.iter().map(|g| g.len));
        let batch = reader.batch();
        let sum = translator.backward(&batch, AT, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
        let nll = stored(&file, "nll").double_value(&[]);
        assert!((sum.nll - nll).abs() <= 1e-3, "{sum:?} {nll}");
        assert!((translator.evaluate(&batch, &mut NoHooks).unwrap().nll - sum.nll).abs() <= 1e-6);
        let found = Tensor::from_slice(&as_f32(&gradients[0])[span.range()]);
        let d = relative(&found, &stored(&file, "gradient").reshape([-1]));
        println!("gradient of the translator {d:e}");
        assert!(d <= 1e-5, "{d}");
    }
}

#[test]
fn logits_losses_and_gradients_are_those_of_transformers() {
    for name in MODELS {
        check_model(&Case::of(&fixtures(), name), name);
    }
    // GPT-NeoX with both residuals and both GELUs.
    for name in ["parallel", "sequential"] {
        check_passes(&Case::of(&crate::model::fixture("."), name), name);
    }
}

#[test]
fn the_gradient_of_embeddings_goes_through_frozen_decoders() {
    for name in MODELS {
        check_frozen(&Case::of(&fixtures(), name), name);
    }
}

#[test]
fn gradients_of_adapters_and_translators_are_those_of_pytorch() {
    for name in MODELS {
        check_lora(&Case::of(&fixtures(), name), name);
    }
    check_translator(&fixtures());
}

#[test]
fn prefixes_packed_documents_and_padding_are_seen_as_in_transformers() {
    for name in ["llama", "neox_tied"] {
        let case = Case::of(&fixtures(), name);
        let plain = case.batch();
        let (b, t) = (plain.rows as i64, plain.seq_len as i64);
        let logits = |batch: &Batch| case.logits(batch, Kind::Float).view([b, t, -1]);
        let check = |what: &str, found: &Tensor, wanted: &Tensor| {
            let d = largest_difference(found, wanted);
            assert!(d <= 1e-4, "{name} {what}: {d}");
            assert!(largest_difference(found, &logits(&plain).narrow(1, 0, found.size()[1])) > 1e-2, "{what} matters");
        };
        let prefix = Batch { mask: Mask::Prefix, prompt_lens: Some(case.i32s("prompt_lens")), ..plain.clone() };
        check("prefix", &logits(&prefix), &case.expected("logits.prefix"));
        let packed =
            Batch { segments: Some(case.i32s("segments")), positions: Some(case.i32s("positions")), ..plain.clone() };
        check("packed", &logits(&packed), &case.expected("logits.packed"));
        let lens = case.i32s("key_lens");
        let padded = Batch { mask: Mask::Full, key_lens: Some(lens.clone()), ..plain.clone() };
        let (found, wanted) = (logits(&padded), case.expected("logits.padded"));
        for (row, &len) in lens.iter().enumerate() {
            let real = |x: &Tensor| x.narrow(0, row as i64, 1).narrow(1, 0, i64::from(len));
            let d = largest_difference(&real(&found), &real(&wanted));
            assert!(d <= 1e-4, "{name} padded: {d}");
        }
        // A causal token does not see padding behind it.
        let causal = Batch { key_lens: Some(lens), ..plain.clone() };
        assert_eq!(largest_difference(&logits(&causal), &logits(&plain)), 0.0);
    }
}

/// Notes the order of calls.
#[derive(Default)]
struct Order(Vec<String>);

impl Hooks for Order {
    fn needs(&mut self, group: usize) -> seedbed::compute::Result<()> {
        self.0.push(format!("needs {group}"));
        Ok(())
    }

    fn ready(&mut self, group: usize, gradient: &mut Tensor) -> seedbed::compute::Result<()> {
        let full = as_f32(gradient).iter().any(|x| *x != 0.0);
        self.0.push(format!("{} {group}", if full { "ready" } else { "empty" }));
        Ok(())
    }
}

#[test]
fn groups_are_asked_for_on_the_way_up_and_told_on_the_way_down() {
    for (name, tied) in [("llama", false), ("qwen2", true)] {
        let case = Case::of(&fixtures(), name);
        let mut passes = LibtorchPasses::of_model(&case.model, Settings::default()).unwrap();
        let mut order = Order::default();
        let mut gradients = buffers(case.model.layout().groups.iter().map(|g| g.len));
        passes.backward(&case.batch(), AT, &mut gradients, Accumulate::Assign, &mut order).unwrap();
        let wanted =
            ["needs 0", "needs 1", "needs 2", "needs 3", "ready 3", "ready 2", "ready 1", "ready 0"].map(str::to_owned);
        assert_eq!(order.0, wanted, "{tied}");

        // The base is frozen: only the adapter's two groups are spoken of.
        let mut passes = LibtorchPasses::new(case.lora().0, Settings::default());
        let mut order = Order::default();
        let mut gradients = buffers(passes.net().trainable_layout().groups.iter().map(|g| g.len));
        passes.backward(&case.batch(), AT, &mut gradients, Accumulate::Assign, &mut order).unwrap();
        assert_eq!(order.0, ["needs 0", "needs 1", "ready 1", "ready 0"]);
    }
}

#[test]
fn a_grain_without_labels_adds_zeros() {
    for name in MODELS {
        let case = Case::of(&fixtures(), name);
        let mut batch = case.batch();
        batch.targets.fill(-100);
        let mut passes = LibtorchPasses::of_model(&case.model, Settings::default()).unwrap();
        let mut gradients = buffers(case.model.layout().groups.iter().map(|g| g.len));
        let sum = passes.backward(&batch, AT, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
        assert_eq!((sum.nll, sum.tokens), (0.0, 0));
        assert!(gradients.iter().all(|g| as_f32(g).iter().all(|x| *x == 0.0)));
        assert_eq!(passes.evaluate(&batch, &mut NoHooks).unwrap(), sum);
    }
}

#[test]
fn weights_of_the_loss_scale_its_gradient() {
    let case = Case::of(&fixtures(), "mistral");
    let run = |batch: &Batch| {
        let mut passes = LibtorchPasses::of_model(&case.model, Settings::default()).unwrap();
        let mut gradients = buffers(case.model.layout().groups.iter().map(|g| g.len));
        let sum = passes.backward(batch, AT, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
        (sum.nll, Tensor::cat(&gradients, 0))
    };
    let batch = case.batch();
    let half = |first: usize| {
        let weights = (0..batch.targets.len()).map(|i| if i % 2 == first { 1.0 } else { 0.25 }).collect();
        run(&Batch { loss_weights: Some(weights), ..batch.clone() })
    };
    let ((a, da), (b, db), (whole, dwhole)) = (half(0), half(1), run(&batch));
    assert!((a + b - 1.25 * whole).abs() < 1e-4 && (a - b).abs() > 1e-3, "{a} {b} {whole}");
    assert!(relative(&(da + db), &(dwhole * 1.25)) < 1e-5);
}

#[test]
fn dropout_comes_from_the_grain_and_checkpointing_changes_no_bit() {
    for name in MODELS {
        let case = Case::of(&fixtures(), name);
        for kind in [Kind::Float, Kind::BFloat16] {
            let run = |keep: Keep, dropout: f64, at: GrainAt| {
                let net = case.net(Base::Trainable, kind);
                let mut passes = LibtorchPasses::new(net, Settings { keep, dropout, head_rows: 5 });
                let mut gradients = buffers(case.model.layout().groups.iter().map(|g| g.len));
                passes.backward(&case.batch(), at, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
                bytes(&gradients)
            };
            for dropout in [0.0, 0.1] {
                assert_eq!(run(Keep::Graphs, dropout, AT), run(Keep::Inputs, dropout, AT), "{name} {kind:?} {dropout}");
            }
            let dropped = run(Keep::Graphs, 0.1, AT);
            assert_ne!(dropped, run(Keep::Graphs, 0.0, AT));
            for other in [GrainAt { seed: 43, ..AT }, GrainAt { step: 4, ..AT }, GrainAt { grain: 2, ..AT }] {
                assert_ne!(dropped, run(Keep::Inputs, 0.1, other), "{other:?}");
            }
        }
    }
}

#[test]
fn gradients_in_bf16_are_near_those_in_fp32() {
    for name in MODELS {
        let case = Case::of(&fixtures(), name);
        let run = |kind| {
            let mut passes = LibtorchPasses::new(case.net(Base::Trainable, kind), Settings::default());
            let mut gradients = buffers(case.model.layout().groups.iter().map(|g| g.len));
            passes.backward(&case.batch(), AT, &mut gradients, Accumulate::Assign, &mut NoHooks).unwrap();
            Tensor::cat(&gradients, 0)
        };
        let (a, b) = (run(Kind::BFloat16), run(Kind::Float));
        let distance = (&a - &b).norm().double_value(&[]) / b.norm().double_value(&[]);
        println!("{name}: bf16 gradient {distance:e} from fp32");
        assert!(distance > 1e-5 && distance < 5e-2, "{name}: {distance}");
    }
}

#[test]
fn cotangents_of_any_output_are_those_of_autograd() {
    let case = Case::of(&fixtures(), "llama");
    let batch = case.batch();
    let x = Tensor::embedding(&case.model.embedding().unwrap(), &case.expected("ids"), -1, false, false);
    // No draws: libtorch's generator is one for all tests of this process.
    let random = |size: &[i64], seed: i64| {
        let n: i64 = size.iter().product();
        (Tensor::arange(n, (Kind::Float, Device::Cpu)) * 1.7 + seed as f64).sin().view(size)
    };
    let at: Vec<i64> = vec![0, 5, 5, 20];
    let (b, t, h) = (batch.rows as i64, batch.seq_len as i64, x.size()[2]);
    let cotangents = Cotangents {
        nll_bt: Some(random(&[b, t], 1)),
        logits_pv: Some(random(&[4, 40], 2)),
        hidden: vec![Some(random(&[b, t, h], 3)), None, Some(random(&[b, t, h], 4))],
    };
    // The oracle: one graph over everything.
    let leaves: Vec<Tensor> = case.model.flats().iter().map(|f| f.detach().set_requires_grad(true)).collect();
    let views = case.model.views_of(&leaves).unwrap();
    let x_leaf = x.detach().set_requires_grad(true);
    let places = seedbed::compute::model::Places::of(case.model.config(), &batch, Device::Cpu).unwrap();
    let decoder = case.model.decoder();
    let one = decoder.block(0, &views.blocks[0], &x_leaf, &places, 0.0).unwrap();
    let two = decoder.block(1, &views.blocks[1], &one, &places, 0.0).unwrap();
    let logits = decoder.head(&views, &two).unwrap();
    let nll = seedbed::compute::model::decoder::nll(&logits, &case.expected("targets")).unwrap();
    let picked = logits.view([b * t, -1]).index_select(0, &Tensor::from_slice(&at));
    let hidden = |i: usize| cotangents.hidden[i].as_ref().unwrap();
    let total = (nll * cotangents.nll_bt.as_ref().unwrap()).sum(Kind::Float)
        + (picked * cotangents.logits_pv.as_ref().unwrap()).sum(Kind::Float)
        + (&one * hidden(0)).sum(Kind::Float)
        + (&x_leaf * hidden(2)).sum(Kind::Float);
    let inputs: Vec<&Tensor> = leaves[1..].iter().chain([&x_leaf]).collect();
    let wanted = Tensor::f_run_backward(&[total], &inputs, false, false).unwrap();

    let net = case.net(Base::Trainable, Kind::Float);
    let places = net.places(&batch).unwrap();
    let ask = Ask { nll: true, logits_at: at, hidden_after: vec![1, 2, 0] };
    for keep in [Keep::Graphs, Keep::Inputs] {
        let want = Want { params: true, inputs: true };
        let pass = net.forward(Source::Embeddings(&x), (&batch, &places), ask.clone(), (keep, want)).unwrap();
        assert!(largest_difference(&pass.outputs.hidden[0], &one) == 0.0);
        let mut gradients = buffers(case.model.layout().groups.iter().map(|g| g.len));
        let dx = pass.backward(&cotangents, &mut gradients, Accumulate::Assign).unwrap().unwrap();
        assert!(relative(&dx, &wanted[3]) <= 1e-5);
        for g in 1..4 {
            let d = relative(&gradients[g], &wanted[g - 1]);
            assert!(d <= 1e-5, "group {g}: {d}");
        }
        assert!(as_f32(&gradients[0]).iter().all(|x| *x == 0.0), "no id was embedded");
    }
    // Only the first block is run for its hidden states, and only its weights get a gradient.
    let ask = Ask { hidden_after: vec![1], ..Ask::default() };
    let want = Want { params: true, inputs: false };
    let pass = net.forward(Source::Ids, (&batch, &places), ask, (Keep::Graphs, want)).unwrap();
    let mut gradients = buffers(case.model.layout().groups.iter().map(|g| g.len));
    let one_tap = Cotangents { hidden: vec![Some(random(&[b, t, h], 3))], ..Cotangents::default() };
    assert!(pass.backward(&one_tap, &mut gradients, Accumulate::Assign).unwrap().is_none());
    let filled: Vec<bool> = gradients.iter().map(|g| as_f32(g).iter().any(|x| *x != 0.0)).collect();
    assert_eq!(filled, [true, true, false, false]);
}

#[test]
fn models_and_adapters_come_back_from_their_files() {
    for name in MODELS {
        let case = Case::of(&fixtures(), name);
        let dir = tempfile::tempdir().unwrap();
        case.model.save(&dir.path().join("own"), None).unwrap();
        case.model.export_hf(&dir.path().join("hf"), None, 20_000).unwrap();
        for way in ["own", "hf"] {
            let back = Model::load(&dir.path().join(way)).unwrap();
            assert_eq!(back.config(), case.model.config(), "{name} {way}");
            assert_eq!(back.param_digest(), case.model.param_digest(), "{name} {way}");
        }
        let index = std::fs::read_to_string(dir.path().join("hf/model.safetensors.index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index["metadata"]["total_size"], case.model.num_parameters() * 4);
        assert_eq!(index["weight_map"].get("lm_head.weight").is_some(), !case.model.config().tie_word_embeddings);

        let (net, _) = case.lora();
        let adapter = net.adapter().unwrap();
        adapter.save(dir.path(), "base").unwrap();
        let back = Adapter::load(dir.path(), case.model.config(), 1, Device::Cpu).unwrap();
        assert_eq!(back.settings(), adapter.settings());
        assert_eq!(bytes(back.flats()), bytes(adapter.flats()));
    }
    let dir = tempfile::tempdir().unwrap();
    let case = Case::of(&fixtures(), "llama");
    case.lora().0.adapter().unwrap().save(dir.path(), "base").unwrap();
    let path = dir.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"use_dora\": false", "\"use_dora\": true")).unwrap();
    let error = Adapter::load(dir.path(), case.model.config(), 1, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("use_dora"), "{error}");
    let bad = LoraSettings { rank: 4, alpha: 8.0, targets: vec!["query".to_owned()] };
    let error = Adapter::new(case.model.config(), &bad, 1, 1, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("`query`") && error.contains("q_proj"), "{error}");
}

#[test]
fn a_new_adapter_adds_nothing_and_has_the_spread_of_peft() {
    let case = Case::of(&fixtures(), "qwen2");
    let family = case.model.config().family;
    let settings = LoraSettings::attention(family, 8, 16.0);
    let adapter = Adapter::new(case.model.config(), &settings, 4, 42, Device::Cpu).unwrap();
    for (g, span) in adapter.layout().spans() {
        let values = &as_f32(&adapter.flats()[g])[span.range()];
        if span.name.contains("lora_B") {
            assert!(values.iter().all(|x| *x == 0.0));
        } else {
            let bound = 1.0 / (span.shape[1] as f32).sqrt();
            let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            assert!(largest <= bound && largest > 0.9 * bound, "{}: {largest} of {bound}", span.name);
        }
    }
    let net = case.net(Base::Frozen, Kind::Float).with_adapter(adapter);
    let mut with = LibtorchPasses::new(net, Settings::default());
    let mut without = LibtorchPasses::of_model(&case.model, Settings::default()).unwrap();
    let batch = case.batch();
    assert_eq!(with.evaluate(&batch, &mut NoHooks).unwrap(), without.evaluate(&batch, &mut NoHooks).unwrap());
}

/// Other random models, made and answered by `transformers` now; and our exports, loaded there.
#[test]
fn live_peers_agree() {
    let Ok(python) = std::env::var("SEEDBED_PEERS") else {
        eprintln!("skipped: SEEDBED_PEERS names no python with torch and transformers");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/references/families.py");
    let run = |args: &[&Path]| {
        let output = std::process::Command::new(&python).arg(&script).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let root = tempfile::tempdir().unwrap();
    run(&[root.path(), Path::new("2024")]);
    for name in MODELS {
        let case = Case::of(root.path(), name);
        check_model(&case, name);
        check_frozen(&case, name);
        check_lora(&case, name);
        let export = root.path().join(format!("{name}-export"));
        case.model.export_hf(&export, Some(&case.dir), 20_000).unwrap();
        let batch = case.batch();
        let (ids, answer) = (root.path().join("ids.json"), root.path().join("answer.safetensors"));
        let rows: Vec<&[i32]> = batch.ids.chunks(batch.seq_len).collect();
        std::fs::write(&ids, serde_json::to_string(&rows).unwrap()).unwrap();
        run(&[Path::new("--logits"), &export, &ids, &answer]);
        let ours = case.logits(&batch, Kind::Float).view([batch.rows as i64, batch.seq_len as i64, -1]);
        let d = largest_difference(&ours, &stored(&answer, "logits"));
        println!("{name}: the export's logits {d:e}");
        assert!(d <= 1e-4, "{name}: {d}");
        assert_eq!(stored(&answer, "parameters").int64_value(&[]), case.model.num_parameters());
    }
    check_translator(root.path());
}
