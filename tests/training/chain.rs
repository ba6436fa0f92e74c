//! The real trainer in a chain of jobs on the fake Slurm: preempted, out of time again and again, out of memory, stopped by
//! a kill criterion. What it ends with is what an undisturbed run on this machine ends with.

use crate::support::chain::text;
use crate::support::fake_slurm::FakeSlurm;
use crate::support::work::Work;

use super::*;

const CELL: &str = "train/seed-7";
const CHILD: &str = "child/seed-7";

/// A model that is made in a second.
const SETUP: &str = r#"generated_documents = 120, hidden_size = 16, num_attention_heads = 2, intermediate_size = 32, num_hidden_layers = 2, max_position_embeddings = 48, rotary_pct = 0.5, vocab_size = 300"#;

const TRAIN: &str = r#"lr = 3e-3, global_batch = 8, grain_samples = 2, checkpoint_interval_steps = 200"#;

/// Stages `setup`, `train` and a `child` behind it.
fn study(path: std::ffi::OsString, cluster: &str, head: &str, setup: &str, resources: &str, train: &str) -> Work {
    let work = Work::new(path, cluster, "", &[]);
    let study = format!(
        r#"schema = 1
[study]
name = "work"
seeds = [7]
{head}
[[stage]]
name = "setup"
run = "setup"
per = []
resources = {{mem = "8G", time = "0:05:00"}}
params = {{{setup}}}
[[stage]]
name = "train"
run = "train"
needs = ["setup"]
resources = {{{resources}}}
params = {{{train}}}
[[stage]]
name = "child"
needs = ["train"]
command = ["sh", "-c", 'echo child >> "$D/order"; echo "{{}}" > metrics.json']
resources = {{mem = "1G", time = "0:01:00"}}
"#
    );
    std::fs::write(work.file("configs/work.toml"), study).unwrap();
    work
}

/// What counts of a sealed training: the digest of its content, and those of its best model's files.
fn content(work: &Work) -> (String, Vec<String>) {
    assert!(work.is_sealed(CELL), "{}", work.logs());
    let seal = work.json(CELL, "seal.json");
    let outputs = seal["outputs"].as_array().unwrap().iter();
    let model = outputs.filter(|o| o["path"].as_str().unwrap().starts_with("best_model/"));
    (seal["content"].as_str().unwrap().to_owned(), model.map(|o| o["digest"].as_str().unwrap().to_owned()).collect())
}

/// The same study without any disturbance on this machine; seconds of its training, and steps.
fn undisturbed(setup: &str, train: &str) -> ((String, Vec<String>), f64, f64) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let work = study(path, "", "", setup, r#"mem = "8G", time = "0:05:00""#, train);
    let output = work.run_all(&["--local"]);
    assert!(output.status.success(), "{}", text(&output));
    let history = work.json(CELL, "training_history.json");
    let number = |key: &str| history[key].as_f64().unwrap();
    (content(&work), number("training_time_seconds"), number("steps"))
}

/// So many steps of the small training take about `seconds` here.
fn steps_of(seconds: f64) -> u64 {
    let (_, took, steps) = undisturbed(SETUP, &format!("{TRAIN}, max_steps = 400"));
    (seconds * steps / took).ceil() as u64
}

/// The Slurm id of the training's job.
fn job_of_train(jobs: &[u32]) -> String {
    format!("{}_0", jobs[1])
}

fn wait_for_step(work: &Work, step: u64) {
    let run_dir = work.file(&format!("results/work/default/{CELL}"));
    let began = Instant::now();
    while !run_dir.join("progress.jsonl").exists() || steps_done(&run_dir) < step {
        assert!(began.elapsed() < Duration::from_secs(120), "it does not come to step {step}: {}", work.logs());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn preempted_by_cont_and_term_it_checkpoints_and_ends_with_the_same_content() {
    let train = format!("{TRAIN}, max_steps = {}", steps_of(6.0));
    let (expected, ..) = undisturbed(SETUP, &train);
    let slurm = FakeSlurm::new();
    slurm.set("kill_wait_ms", 20_000);
    let work = study(slurm.path(), "", "", SETUP, r#"mem = "8G", time = "0:10:00""#, &train);
    let jobs = work.submit();
    wait_for_step(&work, 50);
    // CONT and TERM to all processes of the job: the script and, with one rank, the trainer.
    assert!(slurm.run("scontrol", &["fake", "preempt", &job_of_train(&jobs)]).status.success());
    work.wait(&jobs, 240);
    assert_eq!(work.story(CELL), ["checkpointed requeue", "done nothing"], "{}", work.logs());
    assert_eq!(work.end(CELL, 1)["exit_code"], 75);
    let (step, log) = (work.end(CELL, 1)["step"].as_u64().unwrap(), work.logs());
    assert!(step >= 50 && log.contains(&format!("going on from step {step} of ")), "{log}");
    assert_eq!(content(&work), expected);
    assert!(work.is_sealed(CHILD) && slurm.count("sbatch") == 3, "the child waited in its job");
}

/// A training of more than twelve seconds, what it comes to, and how long it took. How fast the machine is may change at any
/// moment.
fn long_enough() -> (String, (String, Vec<String>), f64) {
    let tries = (0..4).map(|_| {
        let train = format!("{TRAIN}, max_steps = {}", steps_of(22.0));
        let (expected, took, _) = undisturbed(SETUP, &train);
        (train, expected, took)
    });
    tries.into_iter().find(|(.., took)| *took >= 12.0).unwrap()
}

#[test]
fn a_training_of_four_time_limits_finishes_by_itself_with_the_same_content() {
    let (train, expected, took) = long_enough();
    // An attempt trains for half of it at most: it begins to checkpoint there.
    let limit_s = (took / 4.0).floor().clamp(3.0, 30.0) as u64;
    let slurm = FakeSlurm::new();
    // Nobody tells the attempt: it knows its end.
    slurm.set("warnings", "off");
    slurm.set("kill_wait_ms", 300);
    let resources = format!(r#"mem = "8G", time = "0:00:{limit_s:02}""#);
    let head = "[retry]\nwithout_progress = 30";
    let work = study(slurm.path(), "", head, SETUP, &resources, &train);
    let jobs = work.submit();
    work.wait(&jobs, 600);
    let story = work.story(CELL);
    let (last, before) = story.split_last().unwrap();
    assert!(last == "done nothing" && before.iter().all(|s| s == "checkpointed requeue"), "{story:?}\n{}", work.logs());
    assert!(before.len() >= 4, "{story:?}: {took} s in limits of {limit_s} s");
    for n in 1..=before.len() as u32 {
        assert!(work.end(CELL, n)["wall_s"].as_f64().unwrap() < limit_s as f64, "{}", work.end(CELL, n));
    }
    assert_eq!(content(&work), expected, "after {} attempts", story.len());
    assert!(work.is_sealed(CHILD) && slurm.count("sbatch") == 3);
}

/// Activations are most of what it holds: 128 samples go through six blocks at once.
const WIDE: &str = r#"generated_documents = 400, hidden_size = 64, num_attention_heads = 4, intermediate_size = 256, num_hidden_layers = 6, max_position_embeddings = 64, vocab_size = 300"#;

const HEAVY: &str = r#"lr = 1e-3, max_steps = 3, global_batch = 128, grain_samples = 128, checkpoint_interval_steps = 0, val_samples = 8"#;

#[test]
fn out_of_memory_it_recomputes_activations_and_ends_with_the_same_content() {
    let run = |mem: &str, more: &str| {
        let slurm = FakeSlurm::new();
        slurm.set("enforce_memory", "on");
        let resources = format!(r#"mem = "{mem}", time = "0:10:00""#);
        let work = study(slurm.path(), "", "", WIDE, &resources, &format!("{HEAVY}{more}"));
        let jobs = work.submit();
        work.wait(&jobs, 300);
        // Of setup, the training, the child.
        let mark = |l: &str| l.strip_prefix("fake: peak ")?.strip_suffix(" kB")?.parse().ok();
        let peaks: Vec<u64> = work.logs().lines().filter_map(mark).collect();
        (work, peaks)
    };
    let peak_of = |work: &Work, peaks: &[u64]| -> u64 {
        assert_eq!(work.story(CELL), ["done nothing"], "{}", work.logs());
        *peaks.iter().max().unwrap()
    };
    let (plain, plain_peaks) = run("30G", "");
    let (careful, careful_peaks) = run("30G", ", activation_checkpointing = true");
    let (most, least) = (peak_of(&plain, &plain_peaks), peak_of(&careful, &careful_peaks));
    let expected = content(&plain);
    assert_eq!(content(&careful), expected);
    assert!(most > least + 50_000, "activations are {most} - {least} kB");

    let between = format!("{}M", (most + least) / 2 / 1024);
    let (work, _) = run(&between, "");
    assert_eq!(work.story(CELL), ["out-of-memory requeue", "done nothing"], "{}", work.logs());
    assert_eq!(work.end(CELL, 1)["verdict"]["adjust"], json!({"activation_checkpointing": true}));
    assert!(work.end(CELL, 1)["cause"].as_str().unwrap().contains("activation checkpointing"));
    assert_eq!(content(&work), expected);
    assert!(work.is_sealed(CHILD));
}

const HOPELESS: &str = "lr = 0.0, max_steps = 60, global_batch = 8, grain_samples = 2, stop_no_signal_step = 25";

#[test]
fn a_stopped_training_stops_what_is_behind_it_and_run_all_says_what_to_type() {
    let slurm = FakeSlurm::new();
    let work = study(slurm.path(), "", "", SETUP, r#"mem = "8G", time = "0:05:00""#, HOPELESS);
    let jobs = work.submit();
    work.wait(&jobs, 300);
    let seal = work.json(CELL, "seal.json");
    assert_eq!((&seal["outcome"], &seal["evidence"]["criterion"]), (&json!("stopped"), &json!("no-learning-signal")));
    assert_eq!(seal["evidence"]["step"], 30);
    assert!(seal["evidence"]["values"]["first_loss"].is_number(), "{seal:#}");
    assert_eq!(work.end(CELL, 1)["exit_code"], 78);
    assert!(!work.is_sealed(CHILD) && work.lines("order").is_empty(), "the child never ran");

    let status = work.seedbed(&["status"]);
    let line = |cell: &str| status.lines().find(|l| l.starts_with(cell)).unwrap_or_default().to_owned();
    for cell in [CELL, CHILD] {
        let line = line(cell);
        assert!(
            line.contains(&format!("stopped ({CELL})")) && line.contains("no learning signal by step 30"),
            "{status}"
        );
    }
    let explained = work.explain("child");
    assert!(
        explained.contains("train/seed-7, which it needs, said stop: no learning signal by step 30"),
        "{explained}"
    );

    let output = work.run_all(&[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(78), "{said}");
    for words in [
        "no learning signal by step 30",
        "behind it: 1 cell",
        "change the study, then `run_all configs/work.toml --cluster test`",
        "`run_all configs/work.toml --cluster test --retry-stopped`",
    ] {
        assert!(said.contains(words), "{words:?} in:\n{said}");
    }
    assert_eq!(slurm.count("sbatch"), 3, "nothing was submitted");
    // A study that was mended goes on.
    let file = work.file("configs/work.toml");
    let mended = std::fs::read_to_string(&file).unwrap().replace("lr = 0.0", "lr = 3e-3");
    std::fs::write(&file, mended).unwrap();
    let jobs = work.submit();
    work.wait(&jobs, 300);
    assert!(work.is_sealed(CHILD), "{}", work.logs());
}

#[test]
fn a_suspicious_collapse_is_shown_wherever_one_looks() {
    let slurm = FakeSlurm::new();
    let train = format!("{TRAIN}, max_steps = 30, flag_collapse_step = 30, flag_collapse_ratio = 0.9999");
    let work = study(slurm.path(), "", "", SETUP, r#"mem = "8G", time = "0:05:00""#, &train);
    let jobs = work.submit();
    work.wait(&jobs, 300);
    assert!(work.is_sealed(CHILD), "a flag stops nothing: {}", work.logs());
    let warnings = &work.json(CELL, "seal.json")["warnings"];
    assert!(warnings[0].as_str().unwrap().starts_with("suspiciously fast collapse"), "{warnings}");
    let status = work.seedbed(&["status"]);
    assert!(status.contains("warns: suspiciously fast collapse"), "{status}");
    let explained = work.explain("train");
    assert!(explained.contains("suspiciously fast collapse") && explained.contains("docs/training.md"), "{explained}");
}
