//! A training that is told to end: by signals as a preemption sends them, or by the end of its allocation. It checkpoints,
//! and ends with the bits of a run that nobody disturbed.

use super::*;

/// Small steps, and no checkpoint but the one that is asked for.
fn long(steps: u64) -> Value {
    json!({
        "max_steps": steps, "val_interval_steps": steps, "checkpoint_interval_steps": 0, "log_interval_steps": 100_000,
    })
}

/// So many steps take about `seconds` here.
fn steps_of(seconds: f64) -> u64 {
    let (.., run) = timed(long(400));
    (seconds * 400.0 / run).ceil() as u64
}

/// What a run comes to, and how many seconds it trained.
fn timed(changed: Value) -> ((String, String, Value), f64) {
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(changed);
    succeed(solo(&cell, 1));
    (essence(&run_dir, 1), record(&run_dir, 1).tree()["training_time_seconds"].as_f64().unwrap())
}

/// Slurm sends CONT and then TERM to every process of a job that it preempts.
#[cfg(feature = "mpi")]
#[test]
fn preempted_ranks_checkpoint_together_and_go_on_to_the_same_bits() {
    let changed = long(2000);
    let expected = uninterrupted(changed.clone());
    for n in [2, 4] {
        let work = Workspace::new();
        let (cell, run_dir) = work.baseline(changed.clone());
        let mut launcher = ranks(n, &cell, 1).spawn().unwrap();
        while steps_done(&run_dir) < 5 {
            assert!(launcher.try_wait().unwrap().is_none(), "it ended too early");
            std::thread::sleep(Duration::from_millis(1));
        }
        let pids = all_below(launcher.id(), Path::new(TRAIN));
        assert_eq!(pids.len(), n as usize);
        for signal in [libc::SIGCONT, libc::SIGTERM] {
            for &pid in &pids {
                // SAFETY: a rank of the launcher that this test started.
                unsafe { libc::kill(pid, signal) };
            }
        }
        let output = launcher.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(75), "{text}");
        let stopped_at = steps_done(&run_dir);
        assert!((5..2000).contains(&stopped_at), "{stopped_at}");
        let log = succeed(solo(&cell, 2));
        assert!(log.contains(&format!("going on from step {stopped_at} of 2000")), "{log}");
        assert_eq!(essence(&run_dir, 2), expected, "{n} ranks");
    }
}

#[test]
fn it_checkpoints_by_itself_before_the_end_that_it_was_told() {
    let steps = steps_of(10.0);
    let (expected, _) = timed(long(steps));
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(long(steps));
    let in_seconds = |seconds: u64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        (now.as_secs() + seconds).to_string()
    };
    let began = Instant::now();
    let mut hurried = solo(&cell, 1);
    hurried.env("SEEDBED_END_TIME", in_seconds(7)).env("SEEDBED_GRACE_S", "3");
    let output = hurried.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(75), "{text}");
    let took = began.elapsed();
    assert!(took > Duration::from_secs(2) && took < Duration::from_secs(7), "{took:?}, with 7 s in all");
    let stopped_at = steps_done(&run_dir);
    assert!(stopped_at > 0 && stopped_at < steps);
    // An end that is far away disturbs nobody.
    let mut unhurried = solo(&cell, 2);
    unhurried.env("SEEDBED_END_TIME", in_seconds(3600)).env("SEEDBED_GRACE_S", "3");
    let log = succeed(unhurried);
    assert!(log.contains(&format!("going on from step {stopped_at} of {steps}")), "{log}");
    assert_eq!(essence(&run_dir, 2), expected);
}
