//! Ranks that are this test program itself: many small trainings in one start of `mpirun`, through the library.
//!
//! The parent writes a plan of runs; every rank reads it and trains one after the other; rank 0 writes what each
//! ended with. Faults and wrong orders are planted around the passes, never inside the product.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use seedbed::compute::comm::Comm;
use seedbed::compute::data::tokens::{SpecialIds, TokensHeader, write};
use seedbed::compute::data::{
    Course, IGNORED, LastBatch, Packing, Samples, Split, Tokens, TrainingGrains, ValidationGrains,
};
use seedbed::compute::model::libtorch::{self, Base, Net};
use seedbed::compute::model::{
    Accumulate, Adapter, Batch, Family, GrainAt, GrainSum, Hooks, LoraSettings, Model, ModelConfig, Passes, Sizes,
    SlidingWindow, as_f32,
};
use seedbed::compute::train::{
    Adafactor, AdamW, Choice, Decay, Exact, Master, Optimizer, Outcome, Overlap, Plan, Schedule, Settings, Shape,
    Strict, Surroundings, Trainee, Warmup, train,
};
use seedbed::compute::{ComputeError, Result};
use seedbed::record::{Digest, progress};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// One training.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// Its own name.
    pub name: String,
    /// Runs of one class end with the same bits.
    pub class: String,
    pub family: String,
    /// `tiny`; `bench`: the shape of the benches, whose shards cut tensors and whose products split K; or `tall-N`:
    /// N layers of 1.8 M parameters each that see 8 tokens at a time, so that parameters are all that takes memory.
    pub shape: String,
    /// `adamw`, `adafactor`, or `adafactor-pure`: without fp32 masters.
    pub optimizer: String,
    /// An adapter is trained, and the model below it is frozen.
    pub lora: bool,
    pub choice: Choice,
    pub lanes: u64,
    pub overlap: bool,
    pub steps: u64,
    /// 0: no clip.
    pub max_grad_norm: f64,
    pub checkpoint_interval_steps: u64,
    /// The grains of lanes 1 and 2 change places (of 0 and 1 it would not show: a + b = b + a).
    pub swapped: bool,
    /// On this rank, in this step: a position's loss is not a number.
    pub nan: Option<(usize, Vec<u64>)>,
    pub stop_after_skips: u64,
}

impl Run {
    fn optimizer(&self) -> Optimizer {
        let adafactor = |master| {
            Optimizer::Adafactor(Adafactor {
                weight_decay: 0.1,
                decay_constrained: Decay::Excluded,
                lr_constrained_multiplier: 1.0,
                master,
            })
        };
        match self.optimizer.as_str() {
            "adafactor" => adafactor(Master::Fp32),
            "adafactor-pure" => adafactor(Master::Absent),
            _ => Optimizer::AdamW(AdamW::default()),
        }
    }
}

/// What it ended with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Digest of every parameter, by name.
    pub parameters: BTreeMap<String, String>,
    /// Bits of the loss of every step, and of its norm.
    pub loss: Vec<String>,
    pub norm: Vec<String>,
    pub clipped: u64,
    pub skipped: u64,
    /// The error that ended it.
    pub error: Option<String>,
    pub exit_code: u8,
    pub bitwise: bool,
    /// What rank 0 held at most, while steps went on and while a checkpoint was written.
    pub memory: Option<Held>,
}

impl End {
    /// The norms as numbers.
    pub fn norms(&self) -> Vec<f64> {
        self.norm.iter().map(|h| f64::from_bits(u64::from_str_radix(h, 16).unwrap())).collect()
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Work {
    dir: PathBuf,
    runs: Vec<Run>,
}

const PLAN: &str = "SEEDBED_TEST_PLAN";

/// The command that trains `runs` on `ranks` ranks below `dir`.
pub fn command(dir: &Path, ranks: u32, runs: &[Run]) -> Command {
    std::fs::create_dir_all(dir).unwrap();
    let plan = dir.join(format!("plan-{ranks}.json"));
    let work = Work { dir: dir.to_path_buf(), runs: runs.to_vec() };
    std::fs::write(&plan, serde_json::to_vec(&work).unwrap()).unwrap();
    let program = std::env::current_exe().unwrap();
    let mut command = if ranks == 1 {
        Command::new(&program)
    } else {
        let mut command = Command::new("timeout");
        command.args(["400", "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]);
        command.arg(ranks.to_string()).arg(&program);
        command.env("OMPI_MCA_mpi_yield_when_idle", "1").env("OMPI_MCA_btl", "self,vader,tcp");
        command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
        command
    };
    command.args(["--exact", "training::worker::a_rank", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(PLAN, &plan).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Trains `runs` on `ranks` ranks and reads what they ended with.
pub fn ends(dir: &Path, ranks: u32, runs: &[Run]) -> BTreeMap<String, End> {
    let output = command(dir, ranks, runs).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{ranks} ranks: {:?}\n{text}", output.status);
    read_ends(dir, runs)
}

/// Reads what runs ended with.
pub fn read_ends(dir: &Path, runs: &[Run]) -> BTreeMap<String, End> {
    let read = |run: &Run| {
        let text = std::fs::read(dir.join(&run.name).join("end.json")).unwrap();
        (run.name.clone(), serde_json::from_slice(&text).unwrap())
    };
    runs.iter().map(read).collect()
}

/// Runs as a rank of a test that started this program again.
#[test]
#[ignore = "other tests start it in processes of its own"]
fn a_rank() {
    let Ok(plan) = std::env::var(PLAN) else { return };
    let work: Work = serde_json::from_slice(&std::fs::read(plan).unwrap()).unwrap();
    let comm = Comm::open(Duration::from_secs(60)).unwrap();
    for run in &work.runs {
        let dir = work.dir.join(&run.name);
        let end = run_one(&comm, &dir, run);
        if comm.is_first() {
            std::fs::write(dir.join("end.json"), serde_json::to_vec(&end).unwrap()).unwrap();
        }
    }
    comm.close().unwrap();
}

/// The model of a run: random weights, the same on every rank.
pub fn model(run: &Run) -> Model {
    let family = Family::parse(&run.family).unwrap();
    let sizes = match run.shape.as_str() {
        "bench" => Sizes {
            hidden_size: 512,
            num_hidden_layers: 8,
            num_attention_heads: 8,
            intermediate_size: 2048,
            vocab_size: 8192,
            max_position_embeddings: 256,
        },
        tall if tall.starts_with("tall-") => Sizes {
            hidden_size: 384,
            num_hidden_layers: tall["tall-".len()..].parse().unwrap(),
            num_attention_heads: 6,
            intermediate_size: 1536,
            vocab_size: 52,
            max_position_embeddings: 8,
        },
        _ => Sizes {
            hidden_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            intermediate_size: 88,
            vocab_size: 52,
            max_position_embeddings: 24,
        },
    };
    let mut config = ModelConfig::new(family, sizes);
    if family != Family::GptNeox {
        config.num_key_value_heads = 2;
    }
    config.tie_word_embeddings = family == Family::Qwen2;
    if family == Family::Mistral {
        config.sliding_window = Some(SlidingWindow { size: 7, first_layer: 0 });
    }
    Model::random(&config, 3).unwrap()
}

fn tokens(dir: &Path, split: &str, vocab: u64, documents: u64, length: u64) -> Arc<Tokens> {
    let texts: Vec<Vec<u32>> = (0..documents)
        .map(|d| {
            let mut ids: Vec<u32> = Vec::new();
            let mut x = d * 7919 + 13;
            for _ in 0..length - d % 5 {
                // A walk with short-range structure, so that there is something to learn.
                x = (x * 5 + 3 + (x >> 3) % 3) % (vocab - 2);
                ids.push(2 + x as u32);
            }
            ids.push(0);
            ids
        })
        .collect();
    let header = TokensHeader {
        split: split.into(),
        vocab_size: vocab as u32,
        tokenizer: Digest::of_bytes(b"t"),
        special: SpecialIds { eos: 0, bos: None, pad: Some(1) },
        sources: Vec::new(),
    };
    let target = dir.join(split);
    write(&target, &header, texts.into_iter().map(Ok)).unwrap();
    Arc::new(Tokens::open(&target).unwrap())
}

fn run_one(comm: &Comm, dir: &Path, run: &Run) -> End {
    let bench = run.shape == "bench";
    let (seq_len, grain_samples, grains) = match run.shape.as_str() {
        "bench" => (256, 2, 4),
        "tiny" => (24, 2, 8),
        _ => (8, 1, 4),
    };
    let plan = Plan::new(grain_samples * grains, grain_samples, Some(run.lanes)).unwrap();
    let mut model = model(run).padded_for(plan.padding(comm.size())).unwrap();
    if comm.is_first() {
        std::fs::create_dir_all(dir).unwrap();
        let vocab = model.config().vocab_size as u64;
        tokens(dir, "train", vocab, 40, if bench { 400 } else { 60 });
        tokens(dir, "val", vocab, 3, 60);
    }
    comm.barrier().unwrap();
    let open = |split: Split| {
        let tokens = Arc::new(Tokens::open(&dir.join(split.name())).unwrap());
        Arc::new(Samples::new(tokens, seq_len, Packing::Document).unwrap())
    };
    let course = Course { seed: 7, global_batch: grain_samples * grains, grain_samples, last_batch: LastBatch::Drop };
    let settings = Settings {
        seed: 7,
        plan,
        schedule: Schedule {
            shape: Shape::Linear,
            lr: 3e-3,
            min_lr: 0.0,
            warmup: Warmup::Ratio(0.1),
            steps: run.steps,
        },
        optimizer: run.optimizer(),
        max_grad_norm: run.max_grad_norm,
        val_interval_steps: run.steps,
        prefetch: 2,
        keep: seedbed::compute::train::Keep::Best,
        checkpoint_interval_steps: run.checkpoint_interval_steps,
        log_interval_steps: 1,
        keep_last: 2,
        keep_every_steps: 0,
        patience: Duration::from_secs(60),
        stop_after_skips: run.stop_after_skips,
        criteria: Default::default(),
        threads_per_rank: 1,
        overlap: if run.overlap { Overlap::Early } else { Overlap::Late },
        exact: Exact::Waived,
        wire: Default::default(),
        trace: Default::default(),
        peak_flops: None,
        strict: Strict::GoOn,
        fingerprint: Digest::of_bytes(run.name.as_bytes()),
        attempt: 1,
    };
    let watch = Watch::default();
    let around = Surroundings {
        train: Arc::new(TrainingGrains::new(open(Split::Train), course).unwrap()),
        validation: &ValidationGrains::new(open(Split::Validation), grain_samples, None),
        run_dir: dir,
        checkpoint_dir: &dir.join("checkpoints"),
        stop_requested: &|| {
            watch.step(run);
            false
        },
        superseded: Arc::new(|| false),
    };
    let mut trainee = if run.lora {
        let net = Net::of(&model, Base::Frozen, Kind::Float, Device::Cpu).unwrap();
        let lora = LoraSettings::attention(model.config().family, 1, 1.0);
        let adapter = Adapter::new(model.config(), &lora, run.lanes as usize, 5, Device::Cpu).unwrap();
        Trainee::of_net(net.with_adapter(adapter), libtorch::Settings::default()).unwrap()
    } else {
        Trainee::of_model(&model, &run.choice, Device::Cpu).unwrap()
    };
    // As the stage does: the trainee keeps what it shares.
    drop(model.take_flats());
    let inner = std::mem::replace(&mut trainee.passes, Box::new(Nothing));
    trainee.passes = Box::new(Around { inner, run: run.clone(), rank: comm.rank(), grains: around.train.clone() });
    let result = std::thread::scope(|scope| {
        let watching = run.shape.starts_with("tall").then(|| scope.spawn(|| watch.look()));
        let result = train(comm, trainee, &settings, &around);
        watch.phase.store(Watch::OVER, Ordering::SeqCst);
        if let Some(thread) = watching {
            thread.join().unwrap();
        }
        result
    });
    let lines = if comm.is_first() { progress::read(dir).unwrap() } else { Vec::new() };
    let bits = |name: &str| -> Vec<String> {
        lines.iter().filter_map(|l| l.values.get(name)).map(|v| format!("{:016x}", v.to_bits())).collect()
    };
    let mut end = End {
        parameters: BTreeMap::new(),
        loss: bits("loss"),
        norm: bits("grad_norm"),
        clipped: 0,
        skipped: lines.iter().filter(|l| l.values.contains_key("skipped")).count() as u64,
        error: None,
        exit_code: 0,
        bitwise: false,
        memory: watch.held(),
    };
    match result {
        Ok(Outcome::Finished(finished)) => {
            end.clipped = finished.state.clipped;
            end.bitwise = finished.numerics["bitwise"] == true;
            if run.lora {
                return end;
            }
            model.put_flats(finished.last).unwrap();
            for (g, span) in model.layout().spans() {
                let bytes: Vec<u8> =
                    as_f32(&model.flats()[g])[span.range()].iter().flat_map(|x| x.to_le_bytes()).collect();
                end.parameters.insert(span.name.clone(), Digest::of_bytes(&bytes).to_string());
            }
        }
        Ok(Outcome::Interrupted(step)) => panic!("nobody asked to stop at {step}"),
        Err(error) => {
            end.exit_code = error.exit_code();
            end.error = Some(error.to_string());
        }
    }
    end
}

/// What a process held at most, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub steps: u64,
    pub save: u64,
}

/// Looks how much memory this process holds, while it trains.
#[derive(Default)]
struct Watch {
    phase: AtomicU64,
    calls: AtomicU64,
    most: [AtomicU64; 2],
}

impl Watch {
    /// In steps without a save; from a step that a checkpoint follows to the last one; all is over.
    const STEPS: u64 = 1;
    const SAVE: u64 = 2;
    const OVER: u64 = 3;

    /// A step has its gradients.
    fn step(&self, run: &Run) {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if !run.shape.starts_with("tall") {
            return;
        }
        if call == 3 {
            // Room for a checkpoint's copy is touched once in the background, and then offered back.
            let began = Instant::now();
            while memory(["LazyFree:"]) == [0] {
                assert!(began.elapsed() < Duration::from_secs(60), "no memory is offered back");
                std::thread::sleep(Duration::from_millis(5));
            }
            self.phase.store(Self::STEPS, Ordering::SeqCst);
        } else if call == run.checkpoint_interval_steps {
            self.phase.store(Self::SAVE, Ordering::SeqCst);
        } else if call == run.steps {
            self.phase.store(0, Ordering::SeqCst);
        }
    }

    fn look(&self) {
        loop {
            let before = self.phase.load(Ordering::SeqCst);
            // Its own, without what was offered back: the kernel may take that.
            let [all, offered] = memory(["Anonymous:", "LazyFree:"]);
            let held = all - offered;
            match self.phase.load(Ordering::SeqCst) {
                Self::OVER => return,
                // Else it is not known in which of the two.
                after if after == before && after > 0 => {
                    self.most[after as usize - 1].fetch_max(held, Ordering::SeqCst);
                }
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn held(&self) -> Option<Held> {
        let [steps, save] = [0, 1].map(|i| self.most[i].load(Ordering::SeqCst));
        (steps > 0).then_some(Held { steps, save })
    }
}

/// Bytes of each kind that this process has.
fn memory<const N: usize>(kinds: [&str; N]) -> [u64; N] {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    kinds.map(|kind| {
        let line = text.lines().find(|l| l.starts_with(kind)).unwrap();
        1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    })
}

/// The passes of a run, with unequal labels and what else is planted.
struct Around {
    inner: Box<dyn Passes>,
    run: Run,
    rank: usize,
    grains: Arc<TrainingGrains>,
}

impl Around {
    /// Labels of grain 1 are all masked, of others more or fewer.
    fn masked(&self, batch: &Batch, at: GrainAt) -> Batch {
        let mut batch = batch.clone();
        for (i, target) in batch.targets.iter_mut().enumerate() {
            if at.grain == 1 || (i as u64 * 2_654_435_761 + at.step) % 11 < at.grain {
                *target = IGNORED as i32;
            }
        }
        if let Some((rank, steps)) = &self.run.nan {
            if *rank == self.rank && steps.contains(&at.step) {
                let mut weights = vec![1.0; batch.targets.len()];
                if let Some(labelled) = batch.targets.iter().position(|&t| i64::from(t) != IGNORED) {
                    weights[labelled] = f32::NAN;
                }
                batch.loss_weights = Some(weights);
            }
        }
        batch
    }
}

impl Passes for Around {
    fn backward(
        &mut self,
        batch: &Batch,
        at: GrainAt,
        gradients: &mut [Tensor],
        how: Accumulate,
        hooks: &mut dyn Hooks,
    ) -> Result<GrainSum> {
        let per_lane = self.grains.grains_per_step() / self.run.lanes;
        let lane = at.grain / per_lane;
        let (mut batch, mut at) = (batch.clone(), at);
        if self.run.swapped && (lane == 1 || lane == 2) {
            at.grain = (3 - lane) * per_lane + at.grain % per_lane;
            batch = self.grains.batch(at.step, at.grain);
        }
        self.inner.backward(&self.masked(&batch, at), at, gradients, how, hooks)
    }

    fn evaluate(&mut self, batch: &Batch, hooks: &mut dyn Hooks) -> Result<GrainSum> {
        self.inner.evaluate(batch, hooks)
    }

    fn patched_layers(&self) -> usize {
        self.inner.patched_layers()
    }

    fn refresh(&mut self) {
        self.inner.refresh();
    }
}

/// Holds a place.
struct Nothing;

impl Passes for Nothing {
    fn backward(
        &mut self,
        _: &Batch,
        _: GrainAt,
        _: &mut [Tensor],
        _: Accumulate,
        _: &mut dyn Hooks,
    ) -> Result<GrainSum> {
        Err(ComputeError::Failed("never asked".into()))
    }

    fn evaluate(&mut self, _: &Batch, _: &mut dyn Hooks) -> Result<GrainSum> {
        Err(ComputeError::Failed("never asked".into()))
    }

    fn refresh(&mut self) {}
}
