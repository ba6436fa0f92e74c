//! Sites on the real Slurm: the doctor's jobs on real nodes, and mail that Slurm itself sends.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::chain::text;
use crate::support::sandbox::{own_sandbox, sandbox};
use crate::support::work::Work;

#[test]
fn the_doctor_finds_a_real_site_sound_and_names_what_is_not() {
    let Some(slurm) = sandbox() else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("configs/clusters")).unwrap();
    let examine = |lines: &str, arguments: &[&str]| {
        let file = format!("schema = 1\n[cluster]\nname = \"test\"\n{lines}\n");
        std::fs::write(dir.path().join("configs/clusters/test.toml"), file).unwrap();
        let mut command = slurm.on("head", 200);
        command.args([env!("CARGO_BIN_EXE_seedbed"), "doctor", "--cluster", "test", "--format", "json"]);
        let output = command.args(arguments).current_dir(dir.path()).output().unwrap();
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
        (output.status.code().unwrap(), value)
    };
    let of = |value: &Value, check: &str| {
        let found = value["checks"].as_array().unwrap().iter().find(|c| c["check"] == check);
        let found = found.unwrap_or_else(|| panic!("no {check}: {value:#}"));
        (found["outcome"].as_str().unwrap().to_owned(), found["said"].as_str().unwrap().to_owned())
    };
    let (code, value) = examine("partition = \"debug\"\nmpi = \"pmix\"", &["--on-nodes", "--wait", "120"]);
    assert_eq!(code, 0, "{value:#}");
    for (check, words) in [
        ("slurm", "slurm"),
        ("controller", "answers"),
        ("federation", "none"),
        ("partition(debug)", "UP"),
        ("job(debug)", "sbatch would take one"),
        ("launcher", "srun --mpi=pmix"),
        ("nodes(debug)", "answered after"),
        ("nodes(debug) programs", "by digest"),
        ("nodes(debug) tmpdir", "GB left"),
        ("nodes(debug) launcher", "starts programs"),
        ("nodes(debug) signal", "SIGUSR2 reaches the attempt"),
    ] {
        let (outcome, said) = of(&value, check);
        assert!(outcome == "ok" && said.contains(words), "{check}: {outcome}: {said}");
    }
    assert!(!dir.path().join("results").exists(), "nothing is left behind");

    let (code, value) = examine("partition = \"debgu\"\nmpi = \"pmix3000\"", &[]);
    assert_eq!(code, 1, "{value:#}");
    assert!(of(&value, "partition(debgu)").1.contains("debug"), "{value:#}");
    assert_eq!((of(&value, "job(debgu)").0.as_str(), of(&value, "launcher").0.as_str()), ("failed", "failed"));
}

/// Slurm mails one failed element and the end of the study, and no other job.
#[test]
fn slurm_mails_the_first_failure_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (program, mails) = (dir.path().join("mail"), dir.path().join("mails"));
    std::fs::write(&program, format!("#!/bin/sh\necho \"$@\" >> '{}'\n", mails.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let Some(slurm) = own_sandbox(&format!("MailProg={}", program.display())) else { return };
    let resources = "resources = {mem = '64M', time = '0:05:00'}";
    let behind = format!("needs = ['count']\nper = []\n{resources}");
    let stages = [("count", resources, "exit 3"), ("end", &*behind, "echo '{}' > metrics.json")];
    let lines = "partition = 'debug'\nmail = 'ada@uni.example'";
    let work = Work::new(slurm.path(dir.path()), lines, "seeds = [1, 2, 3]", &stages);
    work.run();
    let read = || std::fs::read_to_string(&mails).unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(40);
    while read().lines().count() < 2 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(500));
    }
    // Any more would come now.
    std::thread::sleep(Duration::from_secs(5));
    let mails = read();
    let lines: Vec<&str> = mails.lines().collect();
    let of = |stage: &str| {
        lines.iter().filter(|l| l.contains(&format!("work.{stage}.")) && l.contains("ada@uni.example")).count()
    };
    assert_eq!((of("count"), of("end"), lines.len()), (1, 1, 2), "{mails}\n{}", work.logs());
    assert!(lines.iter().all(|line| line.contains("Failed")), "{mails}");
}

/// Data is copied once to each of two real nodes, read there by the ranks of both, and taken away.
#[test]
fn data_is_staged_to_both_nodes_of_a_job() {
    let Some(slurm) = sandbox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let read = r#"path=$(sed -n 's/^path = "\(.*\)"$/\1/p' "$SEEDBED_CELL" | head -n 1); echo "$path $(cat "$path")" > "$D/seen_$SLURM_NODEID"; [ "$SLURM_NODEID" != 0 ] || echo '{}' > metrics.json"#;
    let lines =
        "inputs = ['data.txt']\nstage_in = ['data.txt']\nresources = {nodes = 2, mem = '64M', time = '0:05:00'}";
    let cluster = "partition = 'debug'\nlocal_dir = '/tmp'";
    let work = Work::new(slurm.path(dir.path()), cluster, "seeds = [1]", &[("read", lines, read)]);
    std::fs::write(work.file("configs/data.txt"), "forty-two\n").unwrap();
    work.run();
    assert!(work.is_sealed("read/seed-1"), "{}", work.logs());
    for node in ["0", "1"] {
        let seen = work.lines(&format!("seen_{node}"));
        let (path, text) = seen[0].split_once(' ').unwrap();
        assert!(path.starts_with("/tmp/seedbed-") && path.ends_with("/data.txt") && text == "forty-two", "{seen:?}");
        let left = slurm.on("n1", 20).args(["test", "-e", path]).status().unwrap();
        assert!(!left.success(), "{path} stays");
    }
    let logs = work.logs();
    let hosts: std::collections::BTreeSet<&str> =
        logs.lines().filter(|l| l.contains("stage_in data.txt: ")).filter_map(|l| l.split(" on ").nth(1)).collect();
    assert_eq!(hosts.len(), 2, "once on each of two nodes: {logs}");
}
