//! The promise of `docs/numerics.md`: parameters, losses and norms are equal as bytes on 1, 2 and 4 ranks, whatever
//! the family, engine, GEMM, type, dropout, overlap and activation checkpointing; and a wrong order of additions
//! is seen.

use seedbed::compute::kernels::gemm::Backend;
use seedbed::compute::train::{Choice, EngineName, Precision};

use super::worker::{self, End, Run};
use super::*;

pub fn run(name: &str, family: &str, choice: Choice) -> Run {
    Run {
        name: name.into(),
        class: name.into(),
        family: family.into(),
        shape: "tiny".into(),
        choice,
        lanes: 8,
        overlap: true,
        steps: 6,
        max_grad_norm: 0.0,
        checkpoint_interval_steps: 0,
        swapped: false,
        nan: None,
        stop_after_skips: 10,
        optimizer: "adamw".into(),
        lora: false,
    }
}

fn native(gemm: Backend) -> Choice {
    Choice { engine: EngineName::Native, gemm, dropout: 0.1, ..Choice::default() }
}

fn libtorch(precision: Precision) -> Choice {
    Choice { engine: EngineName::Libtorch, precision, dropout: 0.1, ..Choice::default() }
}

/// Every family with every engine; variants of a run share its class.
fn matrix() -> Vec<Run> {
    let mut runs = Vec::new();
    for family in ["gpt_neox", "llama", "mistral", "qwen2"] {
        runs.push(run(&format!("{family}-native"), family, native(Backend::Builtin)));
        runs.push(run(&format!("{family}-bf16"), family, libtorch(Precision::Bf16)));
        runs.push(run(&format!("{family}-fp32"), family, libtorch(Precision::Fp32)));
    }
    runs.push(run("gpt_neox-mkl", "gpt_neox", native(Backend::Mkl)));
    runs.push(run("gpt_neox-onednn", "gpt_neox", native(Backend::OneDnn)));
    runs.push(Run { lanes: 4, ..run("gpt_neox-native-4-lanes", "gpt_neox", native(Backend::Builtin)) });
    runs.push(Run { lanes: 4, ..run("qwen2-bf16-4-lanes", "qwen2", libtorch(Precision::Bf16)) });
    for (name, choice) in
        [("gpt_neox-native-no-dropout", native(Backend::Builtin)), ("llama-bf16-no-dropout", libtorch(Precision::Bf16))]
    {
        let family = name.split('-').next().unwrap();
        runs.push(run(name, family, Choice { dropout: 0.0, ..choice }));
    }
    for (name, family, optimizer, choice) in [
        ("llama-native-adafactor", "llama", "adafactor", native(Backend::Builtin)),
        ("qwen2-bf16-adafactor", "qwen2", "adafactor", libtorch(Precision::Bf16)),
        ("llama-bf16-adafactor-pure", "llama", "adafactor-pure", libtorch(Precision::Bf16)),
    ] {
        runs.push(Run { optimizer: optimizer.into(), ..run(name, family, choice) });
    }
    runs
}

/// The same bits by another way: without overlap, and with activation checkpointing.
fn variants(of: &Run) -> Vec<Run> {
    let recomputed = Choice { activation_checkpointing: true, ..of.choice.clone() };
    vec![
        Run { name: format!("{}-late", of.name), overlap: false, ..of.clone() },
        Run { name: format!("{}-recomputed", of.name), choice: recomputed, ..of.clone() },
    ]
}

/// What differs between two ends, by name.
fn differences(a: &End, b: &End) -> Vec<String> {
    let mut found: Vec<String> = a
        .parameters
        .iter()
        .filter(|(name, digest)| b.parameters.get(*name) != Some(digest))
        .map(|p| p.0.clone())
        .collect();
    if a.parameters.len() != b.parameters.len() {
        found.push("the set of parameters".into());
    }
    for (what, a, b) in [("loss", &a.loss, &b.loss), ("norm", &a.norm, &b.norm)] {
        if let Some(step) = (0..a.len().max(b.len())).find(|&i| a.get(i) != b.get(i)) {
            found.push(format!("{what} from step {}", step + 1));
        }
    }
    if (a.clipped, a.skipped) != (b.clipped, b.skipped) {
        found.push("counters".into());
    }
    found
}

/// Sets the clip of each run to the median of its norms without one.
fn clip_half(runs: &mut [Run], dir: &Path) {
    let unclipped = worker::ends(dir, 1, runs);
    for run in runs {
        let mut norms = unclipped[&run.name].norms();
        norms.sort_by(f64::total_cmp);
        run.max_grad_norm = norms[norms.len() / 2] * 0.99;
    }
}

#[cfg(feature = "mpi")]
#[test]
fn all_engines_and_families_end_with_the_same_bits_on_1_2_and_4_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let mut runs = matrix();
    clip_half(&mut runs, &dir.path().join("unclipped"));
    let all: Vec<Run> = runs.iter().flat_map(|r| std::iter::once(r.clone()).chain(variants(r))).collect();
    let one = worker::ends(&dir.path().join("1"), 1, &all);
    for run in &all {
        let end = &one[&run.name];
        assert_eq!(end.error, None, "{}", run.name);
        assert!(end.bitwise, "{}", run.name);
        assert_eq!(end.loss.len(), 6, "{}", run.name);
        assert!((1..6).contains(&end.clipped), "{}: clipped in {} of 6 steps", run.name, end.clipped);
        assert_eq!(differences(&one[&run.class], end), [""; 0], "{} on one rank", run.name);
    }
    // Nothing is compared with itself: engines, types and dropout do differ.
    for (a, b) in [
        ("gpt_neox-native", "gpt_neox-fp32"),
        ("gpt_neox-native", "gpt_neox-native-no-dropout"),
        ("llama-bf16", "llama-fp32"),
        ("gpt_neox-native", "gpt_neox-native-4-lanes"),
        ("llama-native", "llama-native-adafactor"),
        ("qwen2-bf16", "qwen2-bf16-adafactor"),
        ("llama-bf16", "llama-bf16-adafactor-pure"),
    ] {
        assert_ne!(one[a].parameters, one[b].parameters, "{a} {b}");
    }
    for ranks in [2, 4] {
        let ends = worker::ends(&dir.path().join(ranks.to_string()), ranks, &all);
        for run in &all {
            assert_eq!(differences(&one[&run.class], &ends[&run.name]), [""; 0], "{} on {ranks} ranks", run.name);
        }
    }
}

/// Products that split K and shards that cut tensors.
#[cfg(feature = "mpi")]
#[test]
fn at_the_shape_of_the_benches_the_bits_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let bench = |name: &str, choice: Choice| Run {
        shape: "bench".into(),
        lanes: 4,
        steps: 2,
        checkpoint_interval_steps: 1,
        max_grad_norm: 1.0,
        ..run(name, "gpt_neox", choice)
    };
    let runs = [
        bench("builtin", native(Backend::Builtin)),
        bench("onednn", Choice { dropout: 0.0, ..native(Backend::OneDnn) }),
        bench("bf16", libtorch(Precision::Bf16)),
    ];
    let one = worker::ends(&dir.path().join("1"), 1, &runs);
    for ranks in [2, 4] {
        let ends = worker::ends(&dir.path().join(ranks.to_string()), ranks, &runs);
        for run in &runs {
            assert_eq!(one[&run.name].error, None);
            assert_eq!(differences(&one[&run.name], &ends[&run.name]), [""; 0], "{} on {ranks} ranks", run.name);
        }
    }
    // Killed on four ranks once a checkpoint is whole, it goes on with two.
    let dir_of_killed = dir.path().join("killed");
    let mut launcher = worker::command(&dir_of_killed, 4, &runs[..1]).spawn().unwrap();
    let manifest = dir_of_killed.join("builtin/checkpoints/step-00000001-attempt-1/manifest.json");
    let began = Instant::now();
    while !manifest.exists() {
        assert!(launcher.try_wait().unwrap().is_none(), "it ended too early");
        assert!(began.elapsed() < Duration::from_secs(120), "never came");
        std::thread::sleep(Duration::from_millis(2));
    }
    let program = std::env::current_exe().unwrap();
    // SAFETY: a rank of the launcher that this test started.
    unsafe { libc::kill(below(launcher.id(), &program), libc::SIGKILL) };
    assert!(!launcher.wait().unwrap().success());
    assert!(!dir_of_killed.join("builtin/end.json").exists());
    let ends = worker::ends(&dir_of_killed, 2, &runs[..1]);
    assert_eq!(differences(&one["builtin"], &ends["builtin"]), [""; 0], "killed on 4, gone on with 2");
}

/// The comparison sees an order: two lanes that change places give other bits, and the tests above would fail.
#[test]
fn a_wrong_order_of_lanes_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    for (shape, steps) in [("tiny", 4), ("bench", 2)] {
        let right = Run {
            shape: shape.into(),
            lanes: 4,
            steps,
            ..run("right", "gpt_neox", Choice { dropout: 0.0, ..native(Backend::Builtin) })
        };
        let swapped = Run { name: "swapped".into(), swapped: true, ..right.clone() };
        let ends = worker::ends(&dir.path().join(shape), 1, &[right, swapped]);
        let found = differences(&ends["right"], &ends["swapped"]);
        assert!(found.iter().any(|d| d.contains("weight")), "{shape}: {found:?}");
    }
}

#[cfg(feature = "mpi")]
#[test]
fn a_nan_on_one_rank_makes_all_skip_the_same_steps() {
    let dir = tempfile::tempdir().unwrap();
    let faulty = |name: &str, steps: Vec<u64>, stop_after_skips| Run {
        nan: Some((1, steps)),
        steps: 8,
        stop_after_skips,
        ..run(name, "gpt_neox", native(Backend::Builtin))
    };
    let mut torch = faulty("bf16", vec![2], 3);
    torch.choice = libtorch(Precision::Bf16);
    let runs = [faulty("twice", vec![2, 4], 2), torch, faulty("in-a-row", vec![3, 4, 5], 3)];
    let command = worker::command(&dir.path().join("2"), 2, &runs).output().unwrap();
    let log = String::from_utf8_lossy(&command.stderr).into_owned();
    assert!(command.status.success(), "{log}");
    let ends = worker::read_ends(&dir.path().join("2"), &runs);
    assert_eq!((ends["twice"].skipped, ends["twice"].error.clone()), (2, None), "{log}");
    assert_eq!((ends["bf16"].skipped, ends["bf16"].error.clone()), (1, None), "{log}");
    assert!(log.contains("step 3/8  skipped (not finite)"), "{log}");
    let end = &ends["in-a-row"];
    assert_eq!((end.skipped, end.exit_code), (3, 78), "{log}");
    assert!(end.error.as_ref().unwrap().contains("3 steps in a row, the last one 6"), "{end:?}");
}
