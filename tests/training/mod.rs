//! Training as it is run: the binary `seedbed-train` on a cell, killed, resumed, and on several ranks.
//!
//! The promise under test: the same cell ends with the same parameters and the same series, bit for bit,
//! whatever happened on the way.

mod chain;
mod checkpoints;
mod criteria;
mod data;
mod elastic;
mod ended;
mod faults;
mod instructions;
mod memory;
mod seen;
mod trace;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use seedbed::compute::data::tokens::{SpecialIds, TokensHeader, write};
use seedbed::compute::data::{Packing, Samples, Tokens};
use seedbed::compute::model::{
    Accumulate, Family, GrainAt, Model, ModelConfig, NoHooks, Passes, Sizes, Variant, as_f32,
};
use seedbed::record::{
    Cell, CellKey, Digest, FingerprintSource, Name, Need, Resources, RunRecord, attempt, progress, run_h5,
};
use seedbed::stages::{self, Preset, Spec};
use serde_json::{Value, json};

const TRAIN: &str = env!("CARGO_BIN_EXE_seedbed-train");

fn tiny() -> ModelConfig {
    let sizes = Sizes {
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 40,
        vocab_size: 48,
        max_position_embeddings: 16,
    };
    let mut config = ModelConfig::new(Family::GptNeox, sizes);
    (config.rotary_dims, config.eos_token_id, config.pad_token_id) = (4, Some(0), Some(1));
    config
}

/// Documents of a language that can be learnt: each id follows from the one before, with some noise.
fn documents(seed: u64, n: usize) -> Vec<seedbed::compute::Result<Vec<u32>>> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) as u32
    };
    (0..n)
        .map(|_| {
            let mut id = 2 + next() % 46;
            let length = 5 + next() % 40;
            Ok((0..length)
                .map(|_| {
                    id = if next() % 8 == 0 { 2 + next() % 46 } else { 2 + (id * 5 + 3) % 46 };
                    id
                })
                .collect())
        })
        .collect()
}

/// A base directory with a finished `setup` cell of the tiny model, and a train cell behind it.
struct Workspace {
    _dir: tempfile::TempDir,
    base: PathBuf,
}

impl Workspace {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("results/study/quick");
        let setup = base.join("setup");
        let model = Model::random(&tiny(), 11).unwrap();
        model.save(&setup.join("model"), None).unwrap();
        std::fs::write(setup.join("setup_complete.json"), r#"{"model_name": "tiny"}"#).unwrap();
        for (split, seed, n) in [("train", 1, 60), ("val", 2, 9)] {
            let header = TokensHeader {
                split: split.into(),
                vocab_size: 48,
                tokenizer: Digest::of_bytes(b"t"),
                special: SpecialIds { eos: 0, bos: None, pad: Some(1) },
                sources: Vec::new(),
            };
            write(&setup.join("data").join(split), &header, documents(seed, n)).unwrap();
        }
        Self { _dir: dir, base }
    }

    fn key(stage: &str, seed: Option<u32>) -> CellKey {
        let name = |s: &str| Name::new(s).unwrap();
        CellKey { study: name("study"), profile: name("quick"), stage: name(stage), arm: None, seed }
    }

    /// Writes the cell of `stage` and returns its file and run directory.
    fn cell(&self, spec: &Spec, stage: &str, needs: &[(&str, &str)], changed: Value) -> (PathBuf, PathBuf) {
        let mut params = serde_json::Map::new();
        for field in spec.fields {
            if let Preset::Is(text) = field.preset {
                params.insert(field.name.into(), serde_json::from_str(text).unwrap());
            }
        }
        for (name, value) in changed.as_object().unwrap() {
            assert!(spec.field(name).is_some(), "{name}");
            params.insert(name.clone(), value.clone());
        }
        let semantic: serde_json::Map<String, Value> = params
            .iter()
            .filter(|(name, _)| spec.field(name).unwrap().role == stages::Role::Semantic)
            .map(|(n, v)| (n.clone(), v.clone()))
            .collect();
        let source = FingerprintSource {
            version: 1,
            kind: spec.kind.into(),
            kind_version: spec.version,
            params: semantic.into(),
            seed: Some(7),
            needs: BTreeMap::new(),
            inputs: BTreeMap::new(),
        };
        let need = |(stage, kind): &(&str, &str)| Need {
            key: Self::key(stage, (*kind != "setup").then_some(7)),
            kind: (*kind).to_owned(),
            number: 0,
            labels: BTreeMap::new(),
            dir: if *kind == "setup" { "setup".into() } else { format!("{stage}/seed-7").into() },
            fingerprint: Digest::of_bytes(kind.as_bytes()),
        };
        let cell = Cell {
            version: 1,
            kind: spec.kind.into(),
            number: 2,
            fingerprint: source.fingerprint(),
            base: self.base.clone(),
            scratch: None,
            command: Vec::new(),
            outputs: Vec::new(),
            resumable: true,
            labels: BTreeMap::new(),
            key: Self::key(stage, Some(7)),
            resources: Resources {
                nodes: 1,
                tasks_per_node: 1,
                cpus_per_task: 1,
                gpus_per_node: 0,
                mem_bytes: None,
                time_s: 60,
            },
            params: params.into(),
            needs: needs.iter().map(need).collect(),
            inputs: Vec::new(),
            source,
        };
        let run_dir = cell.run_dir();
        std::fs::create_dir_all(&run_dir).unwrap();
        let path = run_dir.join("cell.toml");
        std::fs::write(&path, cell.to_toml().unwrap()).unwrap();
        (path, run_dir)
    }

    fn baseline(&self, changed: Value) -> (PathBuf, PathBuf) {
        let mut params = quick();
        params.as_object_mut().unwrap().extend(changed.as_object().unwrap().clone());
        self.cell(&stages::train::SPEC, "train_baseline", &[("setup", "setup")], params)
    }
}

/// 24 steps with a clip that bites, a validation every 6 and a checkpoint every 4.
fn quick() -> Value {
    json!({
        "max_steps": 24, "lr": 0.01, "global_batch": 8, "grain_samples": 1, "max_grad_norm": 0.9,
        "val_interval_steps": 6, "checkpoint_interval_steps": 4, "log_interval_steps": 5,
        "weight_decay": 0.1, "packing": "document",
    })
}

fn solo(cell: &Path, attempt: u32) -> Command {
    let mut command = Command::new(TRAIN);
    command.args(["--attempt", &attempt.to_string(), "--cell"]).arg(cell);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The same on several ranks, as `mpirun` starts them.
#[cfg(feature = "mpi")]
fn ranks(n: u32, cell: &Path, attempt: u32) -> Command {
    let mut command = Command::new("timeout");
    command.args(["120", "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n"]);
    command.arg(n.to_string()).arg(TRAIN).args(["--attempt", &attempt.to_string(), "--cell"]).arg(cell);
    command.env("OMPI_MCA_mpi_yield_when_idle", "1").env("OMPI_MCA_btl", "self,vader,tcp");
    command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{:?}\n{text}", output.status);
    text
}

/// What a finished attempt wrote.
fn record(run_dir: &Path, attempt: u32) -> RunRecord {
    run_h5::read_run(&attempt::out_dir(run_dir, attempt).join("run.h5")).unwrap()
}

/// All that must not depend on what happened: parameters, series, metrics.
fn essence(run_dir: &Path, attempt: u32) -> (String, String, Value) {
    let run = record(run_dir, attempt);
    let best = attempt::out_dir(run_dir, attempt).join("best_model");
    assert_eq!(json!(Model::load(&best).unwrap().param_digest()), run.metrics["best_param_digest"]);
    (run.content_digest().to_string(), run.param_digest.as_ref().unwrap().to_string(), run.metrics)
}

fn uninterrupted(changed: Value) -> (String, String, Value) {
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(changed);
    succeed(solo(&cell, 1));
    essence(&run_dir, 1)
}

/// Waits until `ready`, then kills the process without warning. `false`: it had ended before.
fn kill_when(child: &mut Child, ready: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !ready() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "never came");
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

/// Whether a checkpoint is whole.
fn has_checkpoint(run_dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(run_dir.join("checkpoints")) else { return false };
    entries.flatten().any(|e| e.path().join("manifest.json").exists())
}

fn steps_done(run_dir: &Path) -> u64 {
    progress::read(run_dir).unwrap().last().map_or(0, |l| l.step)
}

#[test]
fn it_learns_and_says_so() {
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({"history_file": "baseline_training_history.json"}));
    let log = succeed(solo(&cell, 1));
    assert!(log.contains("step 5/24") && log.contains("tokens/s") && log.contains("validation loss"), "{log}");
    let run = record(&run_dir, 1);
    let history: Value = serde_json::from_slice(
        &std::fs::read(attempt::out_dir(&run_dir, 1).join("baseline_training_history.json")).unwrap(),
    )
    .unwrap();
    assert_eq!(history, run.tree());
    for key in [
        "train_losses",
        "val_perplexities",
        "best_val_perplexity",
        "training_time_seconds",
        "training_time_hours",
        "num_epochs",
        "seed",
    ] {
        assert!(!history[key].is_null(), "{key}");
    }
    for key in ["learning_rate", "weight_decay", "batch_size", "warmup_ratio", "max_grad_norm"] {
        assert!(history["hyperparameters"][key].is_number(), "{key}");
    }
    assert_eq!(history["val_perplexities"].as_array().unwrap().len(), 4);
    assert!(history["constraint_info"].is_null());
    // A uniform guess costs ln 48 = 3.87 nats; the language has about 0.4 bits of noise and 46 successors.
    let loss = &run.series["loss"];
    assert_eq!(loss.len(), 24);
    assert!((loss[0].value - 48f64.ln()).abs() < 0.6 && loss[23].value < 3.3, "{loss:?}");
    assert_eq!(run.series["val_perplexity"].len(), 4);
    let val = run.series["val_perplexity"][3].value;
    assert!((run.series["val_loss"][3].value.exp() / val - 1.0).abs() < 1e-12);
    let clipped = history["clipped_steps"].as_u64().unwrap();
    assert!((1..24).contains(&clipped), "the clip should act in some steps: {clipped} {:?}", run.series["grad_norm"]);
    assert_eq!(run.series["lr"][0].value, 0.0, "linear warmup begins at 0");
}

#[test]
fn killed_at_any_step_it_ends_with_the_same_bits() {
    let expected = uninterrupted(json!({}));
    for moment in [1, 5, 9, 14, 23] {
        let work = Workspace::new();
        let (cell, run_dir) = work.baseline(json!({}));
        let mut child = solo(&cell, 1).spawn().unwrap();
        let ready = || steps_done(&run_dir) >= moment && (moment < 5 || has_checkpoint(&run_dir));
        assert!(kill_when(&mut child, ready), "it ended before step {moment}");
        let log = succeed(solo(&cell, 2));
        assert!(moment < 5 || log.contains("going on from step"), "{log}");
        assert_eq!(essence(&run_dir, 2), expected, "killed at step {moment}");
    }
}

#[test]
fn killed_while_a_checkpoint_is_written_it_ends_with_the_same_bits() {
    let expected = uninterrupted(json!({"checkpoint_interval_steps": 1}));
    let mut torn = 0;
    for round in 0..4 {
        let work = Workspace::new();
        let (cell, run_dir) = work.baseline(json!({"checkpoint_interval_steps": 1}));
        let checkpoints = run_dir.join("checkpoints");
        let mut child = solo(&cell, 1).spawn().unwrap();
        let half_written = || {
            let after = 3 + 4 * round;
            let Ok(entries) = std::fs::read_dir(&checkpoints) else { return false };
            steps_done(&run_dir) >= after
                && entries.flatten().any(|e| !e.path().join("manifest.json").exists() && e.path().is_dir())
        };
        if !kill_when(&mut child, half_written) {
            continue;
        }
        torn += usize::from(half_written());
        succeed(solo(&cell, 2));
        assert_eq!(essence(&run_dir, 2), expected);
    }
    assert!(torn > 0, "no kill met a checkpoint that was being written");
}

#[test]
fn asked_to_stop_it_saves_and_goes_on() {
    let expected = uninterrupted(json!({"checkpoint_interval_steps": 0}));
    for signal in [libc::SIGUSR2, libc::SIGTERM] {
        let work = Workspace::new();
        let (cell, run_dir) = work.baseline(json!({"checkpoint_interval_steps": 0}));
        let mut child = solo(&cell, 1).spawn().unwrap();
        while steps_done(&run_dir) < 3 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: the process is ours and has not been waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(child.wait().unwrap().code(), Some(75), "checkpointed, run me again");
        let stopped_at = steps_done(&run_dir);
        assert!(stopped_at < 24);
        let log = succeed(solo(&cell, 2));
        assert!(log.contains(&format!("going on from step {stopped_at} of 24")), "{log}");
        assert_eq!(essence(&run_dir, 2), expected);
    }
}

#[cfg(feature = "mpi")]
#[test]
fn any_number_of_ranks_ends_with_the_same_bits() {
    let expected = uninterrupted(json!({}));
    for n in [2, 4] {
        let work = Workspace::new();
        let (cell, run_dir) = work.baseline(json!({}));
        succeed(ranks(n, &cell, 1));
        assert_eq!(essence(&run_dir, 1), expected, "{n} ranks");
        assert_eq!(record(&run_dir, 1).numerics["transport"], "mpi");
    }
    // Other lanes are other sums: the test can tell.
    assert_ne!(uninterrupted(json!({"lanes": 1})).1, expected.1);
}

#[cfg(feature = "mpi")]
#[test]
fn killed_on_four_ranks_it_goes_on_with_two_and_one() {
    let expected = uninterrupted(json!({}));
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({}));
    for (attempt, n, until) in [(1, 4, 7), (2, 2, 15)] {
        let mut child = ranks(n, &cell, attempt).spawn().unwrap();
        while steps_done(&run_dir) < until {
            assert!(child.try_wait().unwrap().is_none(), "it ended too early");
            std::thread::sleep(Duration::from_millis(1));
        }
        // One rank dies without warning; the launcher ends the others.
        // SAFETY: a rank of the launcher that this test started.
        unsafe { libc::kill(rank_below(child.id()), libc::SIGKILL) };
        assert!(!child.wait().unwrap().success());
    }
    let log = succeed(solo(&cell, 3));
    assert!(log.contains("going on from step"), "{log}");
    assert_eq!(essence(&run_dir, 3), expected);
}

/// A training process below `ancestor` (timeout, mpirun, ranks).
#[cfg(feature = "mpi")]
fn rank_below(ancestor: u32) -> i32 {
    below(ancestor, Path::new(TRAIN))
}

/// A process of `program` below `ancestor`.
#[cfg(feature = "mpi")]
fn below(ancestor: u32, program: &Path) -> i32 {
    all_below(ancestor, program)[0]
}

/// All processes of `program` below `ancestor`.
#[cfg(feature = "mpi")]
fn all_below(ancestor: u32, program: &Path) -> Vec<i32> {
    let mut parents = BTreeMap::new();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let after = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or("");
        let parent: u32 = after.split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
        parents.insert(pid, parent);
        if std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program) {
            found.push(pid);
        }
    }
    let is_below = |mut pid: u32| {
        while let Some(&parent) = parents.get(&pid) {
            if parent == ancestor {
                return true;
            }
            pid = parent;
        }
        false
    };
    found.into_iter().filter(|&pid| is_below(pid)).map(|pid| pid as i32).collect()
}

#[cfg(feature = "mpi")]
#[test]
fn ranks_that_cannot_share_the_lanes_are_refused() {
    let work = Workspace::new();
    let (cell, _) = work.baseline(json!({"lanes": 2}));
    let output = ranks(4, &cell, 1).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("4 ranks cannot share 2 lanes: ask for 1, 2 ranks"), "{text}");
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn without_a_gpu_it_says_what_to_type() {
    if seedbed::compute::gpu::load().is_ok() {
        return;
    }
    let work = Workspace::new();
    let (cell, _) = work.baseline(json!({"device": "cuda"}));
    let output = solo(&cell, 1).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(text.contains("device = \"cpu\""), "{text}");
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used() {
    let expected = uninterrupted(json!({}));
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({}));
    let mut child = solo(&cell, 1).spawn().unwrap();
    assert!(kill_when(&mut child, || steps_done(&run_dir) >= 14));
    let checkpoints = run_dir.join("checkpoints");
    let newest = || {
        let mut names: Vec<_> = std::fs::read_dir(&checkpoints).unwrap().map(|e| e.unwrap().path()).collect();
        names.retain(|p| p.join("manifest.json").exists());
        names.sort();
        names.pop().unwrap()
    };
    let shard = newest().join("shard-0000-of-0001.bin");
    let bytes = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &bytes[..bytes.len() - 1000]).unwrap();
    let log = succeed(solo(&cell, 2));
    assert!(
        log.contains("shard-0000-of-0001.bin") && log.contains("cut short") && log.contains("the one before"),
        "{log}"
    );
    assert_eq!(essence(&run_dir, 2), expected);

    // A changed byte in the manifest is seen too; with all refused, it begins at the beginning.
    for entry in std::fs::read_dir(&checkpoints).unwrap().flatten() {
        let manifest = entry.path().join("manifest.json");
        let text = std::fs::read_to_string(&manifest).unwrap();
        std::fs::write(
            &manifest,
            text.replacen("\"updates\":", "\"updates\": 1", 1).replacen("\"skipped\": 0", "\"skipped\": 1", 1),
        )
        .unwrap();
    }
    let log = succeed(solo(&cell, 3));
    assert!(log.contains("manifest.json") && !log.contains("going on"), "{log}");
    assert_eq!(essence(&run_dir, 3), expected);
}

#[test]
fn a_checkpoint_of_other_parameters_is_not_resumed() {
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({"max_steps": 8}));
    succeed(solo(&cell, 1));
    let (cell, _) = work.baseline(json!({"max_steps": 8, "lr": 0.02}));
    let log = succeed(solo(&cell, 2));
    assert!(log.contains("another fingerprint") && !log.contains("going on"), "{log}");
    assert_eq!(essence(&run_dir, 2), uninterrupted(json!({"max_steps": 8, "lr": 0.02})));
}

#[test]
fn a_superseded_attempt_commits_nothing() {
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({"checkpoint_interval_steps": 1}));
    let claim = attempt::start_path(&run_dir, 2);
    std::fs::create_dir_all(claim.parent().unwrap()).unwrap();
    std::fs::write(&claim, "{}").unwrap();
    let output = solo(&cell, 1).output().unwrap();
    assert_eq!(output.status.code(), Some(76), "{}", String::from_utf8_lossy(&output.stderr));
    let whole = std::fs::read_dir(run_dir.join("checkpoints")).unwrap().flatten();
    assert!(!whole.into_iter().any(|e| e.path().join("manifest.json").exists()));
}

#[test]
fn operational_parameters_change_no_bit() {
    let changed = uninterrupted(json!({"checkpoint_interval_steps": 7, "log_interval_steps": 1, "keep_last": 5}));
    assert_eq!(changed, uninterrupted(json!({})));
}

#[test]
fn the_gradient_of_lanes_is_the_gradient_of_the_batch() {
    let work = Workspace::new();
    let tokens = Arc::new(Tokens::open(&work.base.join("setup/data/train")).unwrap());
    let samples = Samples::new(tokens, 16, Packing::Document).unwrap();
    let rows: Vec<u64> = (0..8).collect();
    let batch = |rows: &[u64]| samples.batch(rows.iter().map(|&i| Some(i)));
    let model = Model::load(&work.base.join("setup/model")).unwrap().constrained(Variant::MlpBoth).unwrap();
    let groups = model.layout().groups.len();
    let buffers = || -> Vec<tch::Tensor> {
        model.flats().iter().map(|f| tch::Tensor::full(f.size(), 9.0, (tch::Kind::Float, tch::Device::Cpu))).collect()
    };
    let mut passes = seedbed::compute::model::libtorch::LibtorchPasses::of_model(&model, Default::default()).unwrap();
    let at = GrainAt { seed: 7, step: 0, grain: 0 };
    let mut whole = buffers();
    let sum = passes.backward(&batch(&rows), at, &mut whole, Accumulate::Assign, &mut NoHooks).unwrap();
    let mut tree = seedbed::compute::train::lanes::LaneTree::new(groups);
    let (mut nll, mut labels) = (0.0, 0);
    for lane in rows.chunks(2) {
        let mut total = buffers();
        for (row, how) in lane.iter().zip([Accumulate::Assign, Accumulate::Add]) {
            let row = batch(std::slice::from_ref(row));
            let of_grain = passes.backward(&row, at, &mut total, how, &mut NoHooks).unwrap();
            nll += of_grain.nll;
            labels += of_grain.tokens;
        }
        total.into_iter().enumerate().for_each(|(g, t)| tree.push(g, t).unwrap());
    }
    let lanes: Vec<tch::Tensor> = (0..groups).map(|g| tree.take(g).unwrap()).collect();
    assert_eq!(labels, sum.tokens);
    assert!(labels < 8 * 16, "some rows should have positions without labels");
    assert!((nll / sum.nll - 1.0).abs() < 1e-6);
    for (a, b) in lanes.iter().zip(&whole) {
        let scale = b.abs().max().double_value(&[]);
        let difference = (a - b).abs().max().double_value(&[]);
        assert!(difference <= 1e-5 * scale, "{difference} of {scale}");
    }
}

#[test]
fn a_constrained_model_stays_non_negative_and_learns() {
    let work = Workspace::new();
    let (cell, first) = work.cell(
        &stages::apply_monotonicity::SPEC,
        "apply_monotonicity",
        &[("setup", "setup")],
        json!({"variant": "mlp_both"}),
    );
    let mut apply = Command::new(env!("CARGO_BIN_EXE_seedbed-apply-monotonicity"));
    apply.args(["--attempt", "1", "--cell"]).arg(&cell).stderr(Stdio::piped()).stdout(Stdio::piped());
    succeed(apply);
    let out = attempt::out_dir(&first, 1);
    let log: Value =
        serde_json::from_slice(&std::fs::read(out.join("monotonicity_application_log.json")).unwrap()).unwrap();
    assert_eq!(log["num_constrained_tensors"], 4);
    assert_eq!(log["all_weights_non_negative"], true);
    assert!(log["min_weight"].as_f64().unwrap() >= 0.9e-4 && log["max_weight"].as_f64().unwrap() < 1.0, "{log}");
    assert_eq!(log["model_name"], "tiny");
    assert_eq!(log["num_parameters_before"], log["num_parameters_after"]);
    std::fs::rename(out.join("monotonic_initialized"), first.join("monotonic_initialized")).unwrap();

    let mut params = quick();
    params.as_object_mut().unwrap().insert("lr_constrained_multiplier".into(), json!(5.0));
    let needs = [("setup", "setup"), ("apply_monotonicity", "apply_monotonicity")];
    let (cell, run_dir) = work.cell(&stages::train::SPEC, "train_monotonic", &needs, params.clone());
    let mut child = solo(&cell, 1).spawn().unwrap();
    assert!(kill_when(&mut child, || steps_done(&run_dir) >= 9));
    succeed(solo(&cell, 2));
    let run = record(&run_dir, 2);
    let info = &run.metrics["constraint_info"];
    assert_eq!(info["type"], "mlp_both");
    assert_eq!(info["globally_monotonic"], false);
    assert_eq!(info["tensors_checked"], 4);
    assert!(info["min_weight"].as_f64().unwrap() >= 0.0);
    let loss = &run.series["loss"];
    assert!(loss[23].value < loss[0].value, "{loss:?}");
    let best = Model::load(&attempt::out_dir(&run_dir, 2).join("best_model")).unwrap();
    assert_eq!(best.variant(), Some(Variant::MlpBoth));
    // V moved, and is stored as V.
    let start = Model::load(&first.join("monotonic_initialized")).unwrap();
    let (g, span) = start.layout().spans().find(|(_, s)| s.name.ends_with("0.mlp.dense_h_to_4h.weight")).unwrap();
    let moved = as_f32(&best.flats()[g])[span.range()]
        .iter()
        .zip(&as_f32(&start.flats()[g])[span.range()])
        .map(|(a, b)| (a - b).abs())
        .fold(0.0f32, f32::max);
    assert!(moved > 0.05, "{moved}");

    // In bf16 the weights that are checked are made of the masters, wherever those lie.
    params.as_object_mut().unwrap().insert("precision".into(), json!("bf16"));
    let (cell, run_dir) = work.cell(&stages::train::SPEC, "train_bf16", &needs, params);
    succeed(solo(&cell, 1));
    let info = record(&run_dir, 1).metrics["constraint_info"].clone();
    assert_eq!((&info["tensors_checked"], &info["all_weights_non_negative"]), (&json!(4), &json!(true)));
    let range = ["min_weight", "max_weight"].map(|name| info[name].as_f64().unwrap());
    assert!(range[0] >= 0.0 && range[1] > range[0], "{info}");
}

#[test]
fn too_little_text_and_missing_inputs_are_named() {
    let work = Workspace::new();
    for (changed, code, named) in [
        (json!({"global_batch": 4096}), 64, "fewer than one batch of 4096"),
        (json!({"seq_len": 64}), 64, "longer than the model's context of 16"),
    ] {
        let (cell, _) = work.baseline(changed);
        let output = solo(&cell, 1).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(named), "{text}");
        assert_eq!(output.status.code(), Some(code), "{text}");
    }
    std::fs::remove_file(work.base.join("setup/data/train/tokens.bin")).unwrap();
    let (cell, _) = work.baseline(json!({}));
    let output = solo(&cell, 1).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("tokens.bin") && output.status.code() == Some(66), "{text}");
}
