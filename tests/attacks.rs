//! The attack stages as whole programs: killed from outside, asked to stop, on several ranks. What they find is what an
//! undisturbed run on one rank finds.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use seedbed::record::{exit, run_h5};
use seedbed::stages::{Spec, hotflip, uat};
use serde_json::{Value, json};

use crate::data_stages::{Study, resolved};

struct Attack {
    spec: &'static Spec,
    program: &'static str,
    params: Value,
}

fn attacks() -> [Attack; 2] {
    // Long enough to be killed on the way: a step takes a few milliseconds.
    let uat = json!({"search": "gradient", "trigger_length": 4, "num_restarts": 2, "num_iterations": 3,
        "num_candidates": 60, "candidates_per_position": 12, "beam": 2, "num_samples": 12, "grain_rows": 2,
        "batch_size": 4, "checkpoint_interval_s": 0.0});
    let hotflip = json!({"mode": "iterative", "num_flips": 4, "num_samples": 40, "grain_rows": 1, "batch_size": 1,
        "checkpoint_interval_s": 0.0});
    [
        Attack { spec: &uat::SPEC, program: env!("CARGO_BIN_EXE_seedbed-uat"), params: uat },
        Attack { spec: &hotflip::SPEC, program: env!("CARGO_BIN_EXE_seedbed-hotflip"), params: hotflip },
    ]
}

/// A cell of its own, and the directory of its run.
fn cell(study: &Study, attack: &Attack, stage: &str) -> (PathBuf, PathBuf) {
    let context = study.context(attack.spec, stage, Some(42), &resolved(attack.spec, &attack.params), &[]);
    (study.dir.path().join(format!("{stage}.toml")), context.run_dir)
}

fn start(words: &[&str], program: &str, cell: &Path, attempt: u32) -> Child {
    let (first, rest) = words.split_first().map_or((program, &[][..]), |(f, r)| (*f, r));
    let mut command = Command::new(first);
    command.args(rest);
    if !words.is_empty() {
        command.arg(program);
    }
    command.arg("--cell").arg(cell).args(["--attempt", &attempt.to_string()]);
    command.env("OMPI_MCA_btl_vader_single_copy_mechanism", "none").env("OMPI_MCA_mpi_yield_when_idle", "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn finish(mut child: Child) {
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
}

/// What a run found, and the digest of all of it: nothing of where, when and by how many ranks.
fn found(run_dir: &Path, attempt: u32) -> (String, Value) {
    let out = seedbed::record::attempt::out_dir(run_dir, attempt);
    let record = run_h5::read_run(&out.join(run_h5::RUN_FILE)).unwrap();
    (record.content_digest().to_string(), record.metrics)
}

/// What is kept; null before the first time.
fn kept(run_dir: &Path) -> Value {
    let text = std::fs::read(run_dir.join("checkpoints/attack.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Steps that are kept.
fn steps(run_dir: &Path) -> u64 {
    kept(run_dir)["steps"].as_u64().unwrap_or(0)
}

/// The series of the newest step: which model, and which search of it. Empty before the first.
fn present(run_dir: &Path) -> String {
    let text = std::fs::read_to_string(run_dir.join("progress.jsonl")).unwrap_or_default();
    let line: Value = text.lines().last().and_then(|l| serde_json::from_str(l).ok()).unwrap_or_default();
    line["values"].as_object().and_then(|v| v.keys().next().cloned()).unwrap_or_default()
}

#[test]
fn an_attack_that_is_killed_again_and_again_ends_with_the_same_result() {
    let (study, _) = Study::prepared();
    for attack in attacks() {
        let (cell_path, whole) = cell(&study, &attack, &format!("{}-whole", attack.spec.kind));
        finish(start(&[], attack.program, &cell_path, 1));
        let expected = found(&whole, 1);

        let (cell_path, run_dir) = cell(&study, &attack, &format!("{}-killed", attack.spec.kind));
        let (mut attempt, mut killed, mut killed_in_control) = (0, 0, 0);
        // Far longer than it takes: it may run without optimisation, beside other tests.
        let end = Instant::now() + Duration::from_secs(600);
        loop {
            attempt += 1;
            let before = steps(&run_dir);
            let mut child = start(&[], attack.program, &cell_path, attempt);
            // Killed as soon as two more steps are kept, wherever the next one happens to be; and behind that inside the
            // random search that is the control.
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                assert!(Instant::now() < end, "attempt {attempt} goes no further than step {}", steps(&run_dir));
                let in_control = killed >= 6 && killed_in_control < 2 && present(&run_dir).ends_with("_random_loss");
                if (killed < 6 || in_control) && steps(&run_dir) >= before + 2 {
                    child.kill().unwrap();
                    killed_in_control += u32::from(in_control);
                    break child.wait().unwrap();
                }
                std::thread::sleep(Duration::from_micros(300));
            };
            if status.signal() != Some(9) {
                assert!(status.success(), "{status}");
                break;
            }
            killed += 1;
            assert!(steps(&run_dir) >= before + 2, "a killed attempt loses nothing that was kept");
        }
        assert!(killed >= 3, "{}: only {killed} kills", attack.spec.kind);
        assert!(killed_in_control >= 1, "{}: no kill inside the random search", attack.spec.kind);
        assert_eq!(found(&run_dir, attempt), expected);
        // Every step counts once: nothing that was kept was done again. What is kept at the end is the same, too.
        assert_eq!(kept(&run_dir)["steps"], kept(&whole)["steps"]);
        assert_eq!(kept(&run_dir)["state"], kept(&whole)["state"]);
    }
}

/// Runs a cell until its newest step is of `series`, asks it to stop there, and gives what it kept. Where it was beyond that
/// when it heard of it (on a busy machine), it is done again.
fn stopped_in(study: &Study, attack: &Attack, name: &str, series: &str) -> (PathBuf, PathBuf, Value) {
    for n in 0..8 {
        let (cell_path, run_dir) = cell(study, attack, &format!("{name}-{n}"));
        let mut child = start(&[], attack.program, &cell_path, 1);
        let end = Instant::now() + Duration::from_secs(300);
        while present(&run_dir) != series && Instant::now() < end && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(300));
        }
        // SAFETY: a child that has ended is not asked; one that ends just now was not waited for, so its number is its own.
        if child.try_wait().unwrap().is_none() {
            unsafe { libc::kill(child.id() as i32, libc::SIGUSR2) };
        }
        let code = child.wait().unwrap().code();
        assert!(code == Some(0) || code == Some(i32::from(exit::RESUME)), "{code:?}");
        if code == Some(i32::from(exit::RESUME)) && present(&run_dir) == series {
            let kept = kept(&run_dir);
            return (cell_path, run_dir, kept);
        }
    }
    panic!("{name}: it never stops in {series}");
}

#[test]
fn an_attack_that_is_asked_to_stop_says_75_and_goes_on() {
    let (study, _) = Study::prepared();
    for mut attack in attacks() {
        let kind = attack.spec.kind;
        let (cell_path, whole) = cell(&study, &attack, &format!("{kind}-undisturbed"));
        finish(start(&[], attack.program, &cell_path, 1));
        let expected = found(&whole, 1);
        // No time to keep anything comes but that of the stop.
        attack.params["checkpoint_interval_s"] = json!(1e6);
        let first = if kind == "uat" { "loss" } else { "texts" };
        for series in [
            format!("baseline_pythia_{first}"),
            "baseline_pythia_random_loss".to_owned(),
            format!("monotonic_pythia_{first}"),
        ] {
            let name = format!("{kind}-stopped-{}", series.replace('_', "-"));
            let (cell_path, run_dir, stopped) = stopped_in(&study, &attack, &name, &series);
            assert!(stopped["steps"].as_u64().unwrap() >= 1, "what it found is kept although no time for it had come");
            let ended = &kept(&whole)["state"]["baseline_pythia"];
            let is_over = series.starts_with("monotonic");
            assert_eq!(&stopped["state"]["baseline_pythia"] == ended, is_over, "{series}: all of a model that is over");
            if series.ends_with("random_loss") {
                let draws = |of: &Value| of["random"]["draw"].as_u64().unwrap();
                let present = &stopped["state"]["baseline_pythia"];
                assert!((1..draws(ended)).contains(&draws(present)), "{present}");
            }
            finish(start(&[], attack.program, &cell_path, 2));
            assert_eq!(found(&run_dir, 2), expected, "{series}");
        }
    }
}

#[cfg(feature = "mpi")]
#[test]
fn ranks_change_no_bit_of_an_attack_and_another_number_of_them_goes_on() {
    let (study, _) = Study::prepared();
    let ranks = |n: &'static str| {
        ["timeout", "120", "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", n]
    };
    for attack in attacks() {
        let kind = attack.spec.kind;
        let (cell_path, alone) = cell(&study, &attack, &format!("{kind}-alone"));
        finish(start(&[], attack.program, &cell_path, 1));
        let expected = found(&alone, 1);
        let (cell_path, run_dir) = cell(&study, &attack, &format!("{kind}-two"));
        finish(start(&ranks("2"), attack.program, &cell_path, 1));
        assert_eq!(found(&run_dir, 1), expected);

        // What one rank left, three go on from.
        let (cell_path, run_dir) = cell(&study, &attack, &format!("{kind}-one-then-three"));
        let mut child = start(&[], attack.program, &cell_path, 1);
        while steps(&run_dir) < 3 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(300));
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        finish(start(&ranks("3"), attack.program, &cell_path, 2));
        assert_eq!(found(&run_dir, 2), expected);
    }
}

#[test]
fn a_targeted_search_lowers_what_it_was_told() {
    let (study, _) = Study::prepared();
    let params = |pruning: bool| {
        json!({"search": "gradient", "objective": "targeted", "target_texts": ["the river runs", "so it was said, and more"],
               "trigger_length": 3, "num_restarts": 2, "num_iterations": 3, "num_candidates": 60,
               "candidates_per_position": 12, "pruning": pruning})
    };
    let (record, _) = study.run(&uat::SPEC, uat::run, "uat", &params(false));
    for model in ["baseline_pythia", "monotonic_pythia"] {
        let result = &record.metrics["results"][model];
        let loss = |key: &str| result[key].as_f64().unwrap();
        assert!(loss("opt_final_loss") < loss("opt_first_loss"));
        // What it was searched on is what it is judged on.
        assert!((loss("attacked_loss") - loss("opt_final_loss")).abs() < 1e-12);
        assert!(result["success_rate"].is_null(), "success is a rise");
    }
    assert_eq!(record.metrics["attack_config"]["num_eval_samples"], 2);
    let (pruned, _) = study.run(&uat::SPEC, uat::run, "uat", &params(true));
    assert_eq!(record.metrics["results"], pruned.metrics["results"]);
}

/// Runs a side of `scripts/bench/attack`: losses of its steps, and what it found.
fn side(mut command: Command, config: &Value) -> (Vec<f64>, Value) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), config).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let found = lines.iter().find_map(|l| l.get("found")).unwrap().clone();
    (lines.iter().filter_map(|l| l["loss"].as_f64()).collect(), found)
}

/// The other side of the bench is PyTorch, written apart from this program: it finds the same triggers and flips, with its
/// own batches and with those of the public references.
#[test]
fn pytorch_finds_the_same_triggers_and_flips() {
    let Some(python) = std::env::var_os("SEEDBED_PEERS") else {
        eprintln!("skipped: it needs the peers, scripts/test --peers");
        return;
    };
    let scripts = crate::support::repository().join("scripts/bench/peers");
    let program = env!("CARGO_BIN_EXE_seedbed-bench");
    let dir = tempfile::tempdir().unwrap();
    for fixture in ["parallel", "sequential"] {
        let model = crate::support::repository().join("tests/fixtures/neox").join(fixture);
        let shape: Value = serde_json::from_slice(&std::fs::read(model.join("config.json")).unwrap()).unwrap();
        let vocab = shape["vocab_size"].as_u64().unwrap();
        let batches = dir.path().join("batches.bin");
        let ids = (0..6 * 13u64).map(|i| 1 + (i * i * 7 + i * 13) % (vocab - 1));
        std::fs::write(&batches, ids.flat_map(|id| (id as u32).to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        let mut config = json!({"model": model, "model_config": shape, "batches": batches, "seq_len": 12, "rows_per_rank": 6,
            "steps": 4, "seed": 1, "threads_per_rank": 1, "trigger_length": 4, "candidates": 10});
        let told = dir.path().join("config.json");
        std::fs::write(&told, config.to_string()).unwrap();
        let drawn = Command::new(program).arg("trigger").arg(&told).output().unwrap();
        config["trigger"] = serde_json::from_slice::<Value>(&drawn.stdout).unwrap()["trigger"].clone();
        for attack in ["uat", "hotflip"] {
            config["attack"] = json!(attack);
            let sides = [
                (json!({"batch": 6}), json!({"batch": 4})),
                (json!({"batch": 6, "pruning": true}), json!({"reference": true})),
            ];
            for (ours, peer) in sides {
                (config["ours"], config["peer"]) = (ours, peer);
                let mut command = Command::new(program);
                command.arg("attack");
                let (our_losses, our_found) = side(command, &config);
                let mut command = Command::new(&python);
                command.env("PYTHONDONTWRITEBYTECODE", "1").arg(scripts.join("attack.py"));
                let (losses, found) = side(command, &config);
                assert_eq!(our_found, found, "{fixture} {attack}");
                assert_eq!(our_losses.len(), 4);
                assert!(our_losses.iter().zip(&losses).all(|(a, b)| (a - b).abs() < 1e-5), "{our_losses:?} {losses:?}");
            }
        }
    }
}
