//! Checkpoints of runs that are killed, frozen and starved of room, from outside.

use super::*;

/// Directories of checkpoints that are being written: without a manifest.
fn unsealed(run_dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(run_dir.join("checkpoints")) else { return 0 };
    let unsealed = |path: PathBuf| {
        path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("step-"))
            && !path.join("manifest.json").exists()
    };
    entries.flatten().filter(|e| unsealed(e.path())).count()
}

/// Killed again and again wherever it happens to be, most often inside a save: there is one after every step.
#[test]
fn killed_at_any_moment_of_a_save_it_ends_with_the_same_bits() {
    let changed = json!({"checkpoint_interval_steps": 1, "keep_last": 1});
    let expected = uninterrupted(changed.clone());
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(changed);
    let (mut attempt, mut inside) = (1, 0);
    for delay_us in (0..12).map(|i| 150 * i * i) {
        let mut child = solo(&cell, attempt).spawn().unwrap();
        // A new directory of this attempt: a save has begun. Then the kill comes a little later every time.
        let mark = format!("attempt-{attempt}");
        let begun = || {
            let entries = std::fs::read_dir(run_dir.join("checkpoints"));
            entries.is_ok_and(|e| e.flatten().any(|e| e.file_name().to_string_lossy().ends_with(&mark)))
        };
        let killed = kill_when(&mut child, || {
            let ready = begun();
            if ready {
                std::thread::sleep(Duration::from_micros(delay_us));
            }
            ready
        });
        if !killed {
            break;
        }
        inside += usize::from(unsealed(&run_dir) > 0);
        assert!(steps_done(&run_dir) >= newest_step(&run_dir), "a checkpoint was ahead of the series");
        attempt += 1;
    }
    assert!(inside >= 3, "only {inside} kills came inside a save");
    let log = succeed(solo(&cell, attempt));
    assert!(log.contains("going on from step"), "{log}");
    assert_eq!(essence(&run_dir, attempt), expected);
    assert_eq!(unsealed(&run_dir), 0, "what the kills left is gone");
}

/// Step of the newest whole checkpoint.
fn newest_step(run_dir: &Path) -> u64 {
    let entries = std::fs::read_dir(run_dir.join("checkpoints")).unwrap().flatten();
    let step = |name: String| name.strip_prefix("step-")?.split('-').next()?.parse().ok();
    let whole = entries.filter(|e| e.path().join("manifest.json").exists());
    whole.filter_map(|e| step(e.file_name().to_string_lossy().into_owned())).max().unwrap_or(0)
}

/// Frozen inside a save, replaced by a next attempt, and awake again when that one has ended.
#[test]
fn a_writer_that_wakes_up_late_touches_nothing_of_its_successor() {
    let changed = json!({"checkpoint_interval_steps": 1, "keep_last": 2});
    let expected = uninterrupted(changed.clone());
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(changed);
    let mut zombie = solo(&cell, 1).spawn().unwrap();
    while steps_done(&run_dir) < 4 || unsealed(&run_dir) == 0 {
        assert!(zombie.try_wait().unwrap().is_none(), "it ended before it was frozen");
    }
    let signal = |number| {
        // SAFETY: a process that this test started and has not waited for.
        unsafe { libc::kill(zombie.id() as i32, number) };
    };
    signal(libc::SIGSTOP);
    let claim = attempt::start_path(&run_dir, 2);
    std::fs::create_dir_all(claim.parent().unwrap()).unwrap();
    std::fs::write(&claim, "{}").unwrap();
    succeed(solo(&cell, 2));
    let contents = || {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(run_dir.join("checkpoints")).unwrap().flatten() {
            for file in std::fs::read_dir(entry.path()).unwrap().flatten() {
                all.insert(file.path(), Digest::of_file(&file.path()).unwrap());
            }
        }
        all
    };
    let before = contents();
    assert!(before.keys().any(|path| path.ends_with("manifest.json")));
    signal(libc::SIGCONT);
    let output = zombie.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(76), "{text}");
    assert_eq!(contents(), before);
    assert_eq!(essence(&run_dir, 2), expected);
}

/// Two ranks, one of which finds no room: both go on, and both know that there is no checkpoint.
#[cfg(feature = "mpi")]
#[test]
fn a_disk_that_is_full_for_one_rank_stops_none() {
    // 12 bytes for each of 4 x 32,768 elements, half of them a rank: one checkpoint fits, two do not.
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(json!({"keep_last": 1}));
    let checkpoints = run_dir.join("checkpoints");
    std::fs::create_dir_all(&checkpoints).unwrap();
    let script = r#"mount -t tmpfs -o size=2500k tmpfs "$1" || exit 99; shift; "$@"; code=$?; ls -R "$CHECKPOINTS" >&2; exit $code"#;
    let run = ranks(2, &cell, 1);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(&checkpoints);
    command.arg(run.get_program()).args(run.get_args()).env("CHECKPOINTS", &checkpoints);
    for (name, value) in run.get_envs() {
        command.env(name, value.unwrap());
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(99) || text.contains("unshare failed") {
        eprintln!("skipped: no file system can be mounted here");
        return;
    }
    assert!(output.status.success(), "{text}");
    assert!(text.contains("no checkpoint, the disk of") && text.contains("the run goes on"), "{text}");
    assert_eq!(record(&run_dir, 1).series["loss"].len(), 24);
    assert!(text.contains("manifest.json") && !text.contains("abandoned"), "{text}");
    assert!(!text.lines().any(|file| file.ends_with(".tmp")), "{text}");
}
