//! What happens to a training run when something outside or inside it goes wrong.

use super::*;

#[test]
fn a_loss_that_is_not_finite_is_skipped_and_then_stops_the_run() {
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({
        "lr": 1e30, "warmup_ratio": 0.0, "max_grad_norm": 0.0, "val_interval_steps": 100, "stop_after_skips": 5,
        "checkpoint_interval_steps": 0,
    }));
    let output = solo(&cell, 1).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("skipped") && text.contains("5 steps in a row") && text.contains("lower `lr`"), "{text}");
    // What is no number is in no series.
    let lines = progress::read(&run_dir).unwrap();
    assert_eq!(lines.iter().filter(|l| l.values.contains_key("skipped")).count(), 5);
    assert!(lines.iter().all(|l| l.values.values().all(|v| v.is_finite())));
}

/// Runs the trainer with a small file system under its checkpoints; `None` where that is not allowed.
fn on_small_disk(cell: &Path, run_dir: &Path, size: &str) -> Option<std::process::Output> {
    let checkpoints = run_dir.join("checkpoints");
    std::fs::create_dir_all(&checkpoints).unwrap();
    let script = r#"mount -t tmpfs -o size="$1" tmpfs "$2" || exit 99; exec "$3" --attempt 1 --cell "$4""#;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", size]);
    let output = command.arg(&checkpoints).arg(TRAIN).arg(cell).output().ok()?;
    if output.status.code() == Some(99) || String::from_utf8_lossy(&output.stderr).contains("unshare failed") {
        eprintln!("skipped: no file system can be mounted here");
        return None;
    }
    Some(output)
}

#[test]
fn a_full_disk_costs_the_checkpoint_and_not_the_run() {
    // A checkpoint of the tiny model has 12 bytes for each of 4 x 32,768 elements, 1.57 MB: two fit, three do not.
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({"keep_last": 1}));
    let Some(output) = on_small_disk(&cell, &run_dir, "3400k") else { return };
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("no checkpoint, the disk of") && text.contains("the last one stays and the run goes on"),
        "{text}"
    );
    assert_eq!(record(&run_dir, 1).series["loss"].len(), 24);

    // Where not even one fits the parameters in memory are still there, and here they are the best.
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({}));
    let output = on_small_disk(&cell, &run_dir, "1m").unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && text.contains("no checkpoint, the disk of"), "{text}");
    assert_eq!(essence(&run_dir, 1), uninterrupted(json!({})));
}

/// The other rank is alive and says nothing: the deadline ends the wait.
#[cfg(feature = "mpi")]
#[test]
fn a_rank_that_hangs_ends_the_others_with_71() {
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({"collective_timeout_s": 1, "max_steps": 100_000}));
    let mut child = ranks(2, &cell, 1).spawn().unwrap();
    while steps_done(&run_dir) < 3 {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: a rank of the launcher that this test started.
    unsafe { libc::kill(rank_below(child.id()), libc::SIGSTOP) };
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(71), "{text}");
    assert!(text.contains("waited 1 s for another rank"), "{text}");
}

#[test]
fn a_resume_where_bits_may_differ_says_so_or_is_refused() {
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({}));
    let mut child = solo(&cell, 1).spawn().unwrap();
    assert!(kill_when(&mut child, || steps_done(&run_dir) >= 9 && has_checkpoint(&run_dir)));
    for strict in [true, false] {
        let (cell, _) = work.baseline(json!({"strict": strict}));
        let mut command = solo(&cell, 2);
        // libtorch then takes its kernels for the oldest processors.
        let output = command.env("ATEN_CPU_CAPABILITY", "default").output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(log.contains("instruction_set: ") && log.contains("-> \"default\""), "{log}");
        if strict {
            assert_eq!(output.status.code(), Some(64), "{log}");
        } else {
            assert!(output.status.success(), "{log}");
            let numerics = record(&run_dir, 2).numerics;
            assert_eq!(numerics["bitwise"], false);
            assert!(numerics["bitwise_note"].as_str().unwrap().contains("since step "), "{numerics}");
        }
    }
}
