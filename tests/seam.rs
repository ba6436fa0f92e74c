//! What is trained on frozen decoders ends with the same bits on any number of ranks, and after a stop.
//!
//! The ranks are this test program again, started by `mpirun` with the one test [`one_rank`] to run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use seedbed::compute::comm::Comm;
use seedbed::compute::data::tokens::{SpecialIds, TokensHeader, write};
use seedbed::compute::data::{Course, LastBatch, Packing, Samples, Tokens, TrainingGrains, ValidationGrains};
use seedbed::compute::model::libtorch::{Base, Keep, Settings as PassSettings};
use seedbed::compute::model::{Adapter, LoraSettings, Model, Net, Translator, TranslatorSettings, as_f32};
use seedbed::compute::train::{
    AdamW, Exact, Optimizer, Outcome, Overlap, Plan, Schedule, Settings, Shape, Strict, Surroundings, Trainee, Warmup,
    train,
};
use seedbed::record::Digest;
use tch::{Device, Kind};

const LANES: u64 = 4;
const STEPS: u64 = 8;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(name)
}

fn samples(dir: &Path, split: &str, seed: u32) -> Arc<Samples> {
    let header = TokensHeader {
        split: split.into(),
        vocab_size: 40,
        tokenizer: Digest::of_bytes(b"t"),
        special: SpecialIds { eos: 0, bos: None, pad: None },
        sources: Vec::new(),
    };
    let path = dir.join(split);
    if !path.exists() {
        let documents = (0..40u32).map(|d| Ok((0..20).map(|t| 1 + (seed + d * 7 + t * t) % 39).collect()));
        write(&path, &header, documents).unwrap();
    }
    Arc::new(Samples::new(Arc::new(Tokens::open(&path).unwrap()), 12, Packing::Stream).unwrap())
}

fn frozen(name: &str) -> (Model, Net) {
    let model = Model::load(&fixture(name)).unwrap();
    let net = Net::of(&model, Base::Frozen, Kind::Float, Device::Cpu).unwrap();
    (model, net)
}

/// What `kind` asks to train, and the models below it.
fn trainee(kind: &str) -> (Trainee, Vec<Model>) {
    let keep = Keep::Graphs;
    match kind.split_once('/') {
        Some(("lora", name)) => {
            let (model, net) = frozen(name);
            let settings = LoraSettings::attention(model.config().family, 4, 8.0);
            let adapter = Adapter::new(model.config(), &settings, LANES as usize, 5, Device::Cpu).unwrap();
            let settings = PassSettings { keep, dropout: 0.1, ..PassSettings::default() };
            (Trainee::of_net(net.with_adapter(adapter), settings).unwrap(), vec![model])
        }
        _ => {
            let ((reader, from), (writer, to)) = (frozen("llama"), frozen("qwen2"));
            let settings = TranslatorSettings { after: 1, prefix: 4, keep };
            let translator = Translator::new(from, to, settings, LANES as usize, 5).unwrap();
            (Trainee::of_translator(translator), vec![reader, writer])
        }
    }
}

/// One rank of [`run`]: `SEEDBED_SEAM` = `<kind> <directory> <step at which it is asked to stop>`.
#[test]
#[ignore = "started by the other tests, as a rank"]
fn one_rank() {
    let Ok(told) = std::env::var("SEEDBED_SEAM") else { return };
    let words: Vec<&str> = told.split(' ').collect();
    let (kind, dir, stop) = (words[0], PathBuf::from(words[1]), words[2].parse::<u64>().unwrap());
    let comm = Comm::open(Duration::from_secs(60)).unwrap();
    let course = Course { seed: 3, global_batch: 8, grain_samples: 2, last_batch: LastBatch::Drop };
    let (trainee, below) = trainee(kind);
    let digests: Vec<_> = below.iter().map(Model::param_digest).collect();
    let settings = Settings {
        seed: 3,
        plan: Plan::new(8, 2, Some(LANES)).unwrap(),
        schedule: Schedule { shape: Shape::Cosine, lr: 0.01, min_lr: 0.0, warmup: Warmup::Ratio(0.1), steps: STEPS },
        optimizer: Optimizer::AdamW(AdamW::default()),
        max_grad_norm: 0.2,
        val_interval_steps: 4,
        prefetch: 2,
        keep: seedbed::compute::train::Keep::Best,
        checkpoint_interval_steps: 3,
        log_interval_steps: 1,
        keep_last: 2,
        keep_every_steps: 0,
        patience: std::time::Duration::from_secs(60),
        wire: Default::default(),
        trace: Default::default(),
        stop_after_skips: 3,
        criteria: Default::default(),
        threads_per_rank: 1,
        strict: Strict::Refuse,
        overlap: Overlap::Early,
        exact: Exact::Required,
        peak_flops: None,
        fingerprint: Digest::of_bytes(kind.as_bytes()),
        attempt: 1,
    };
    let steps = std::cell::Cell::new(0);
    let around = Surroundings {
        train: Arc::new(TrainingGrains::new(samples(&dir, "train", 1), course).unwrap()),
        validation: &ValidationGrains::new(samples(&dir, "val", 2), 2, Some(4)),
        run_dir: &dir,
        checkpoint_dir: &dir.join("checkpoints"),
        stop_requested: &|| {
            steps.set(steps.get() + 1);
            steps.get() == stop
        },
        superseded: std::sync::Arc::new(|| false),
    };
    let outcome = train(&comm, trainee, &settings, &around).unwrap();
    if comm.is_first() {
        match outcome {
            Outcome::Interrupted(step) => println!("interrupted {step}"),
            Outcome::Finished(finished) => {
                let bytes: Vec<u8> = finished
                    .last
                    .iter()
                    .flat_map(|t| as_f32(t).iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
                    .collect();
                assert!(finished.state.clipped > 0 && finished.state.clipped <= STEPS, "{:?}", finished.state);
                println!("digest {}", Digest::of_bytes(&bytes));
            }
        }
    }
    assert_eq!(below.iter().map(Model::param_digest).collect::<Vec<_>>(), digests, "what is frozen");
    comm.close().unwrap();
}

/// What the first of `ranks` ranks prints.
fn run(kind: &str, dir: &Path, ranks: u32, stop: u64) -> String {
    // One process makes the data, before there are several.
    (samples(dir, "train", 1), samples(dir, "val", 2));
    let program = std::env::current_exe().unwrap();
    let mut command = if ranks == 1 {
        Command::new(&program)
    } else {
        let mut command = Command::new("timeout");
        command.args(["120", "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]);
        command.arg(ranks.to_string()).arg(&program);
        command
    };
    command.args(["seam::one_rank", "--exact", "--ignored", "--nocapture", "--test-threads", "1"]);
    command.env("SEEDBED_SEAM", format!("{kind} {} {stop}", dir.display()));
    command.env("OMPI_MCA_mpi_yield_when_idle", "1").env("OMPI_MCA_btl", "self,vader,tcp");
    command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let line = text.lines().find_map(|l| l.find("digest ").or(l.find("interrupted ")).map(|at| l[at..].to_owned()));
    line.unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn adapters_and_translators_end_with_the_same_bits_on_any_number_of_ranks() {
    let counts: &[u32] = if cfg!(feature = "mpi") { &[1, 2, 4] } else { &[1] };
    let mut seen = Vec::new();
    for kind in ["translator", "lora/qwen2", "lora/neox_tied"] {
        let mut digests = Vec::new();
        for &ranks in counts {
            let dir = tempfile::tempdir().unwrap();
            digests.push(run(kind, dir.path(), ranks, 0));
        }
        // Stopped on the most ranks, and gone on with fewer.
        let dir = tempfile::tempdir().unwrap();
        assert!(run(kind, dir.path(), counts[counts.len() - 1], 5).starts_with("interrupted"));
        digests.push(run(kind, dir.path(), counts[counts.len() / 2], 0));
        println!("{kind} {digests:?}");
        assert!(digests[0].starts_with("digest ") && digests.iter().all(|d| *d == digests[0]), "{kind}: {digests:?}");
        seen.push(digests.swap_remove(0));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "each trains something else");
}
