//! The sandbox itself: that its nodes are nodes, that MPI runs over them, and that Slurm keeps the promises that the
//! chain of a study stands on.

use crate::support::repository;
use crate::support::sandbox::{assert_ok, sandbox};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

#[test]
fn exec_keeps_directory_input_and_status() {
    let Some(slurm) = sandbox() else { return };
    let dir = tempfile::Builder::new().prefix("a b'").tempdir().unwrap();
    let mut child = slurm
        .on("n2", 20)
        .args(["sh", "-c", "pwd; hostname; cat; exit 7"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"from outside").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\nn2\nfrom outside", dir.path().display()));
}

#[test]
fn nodes_do_not_share_loopback_or_hostname() {
    let Some(slurm) = sandbox() else { return };
    let interfaces = |node| {
        let output = slurm.on(node, 20).args(["ip", "-br", "address"]).output().unwrap();
        assert_ok(&output, &["ip"]);
        String::from_utf8(output.stdout).unwrap()
    };
    assert_ne!(interfaces("n1"), interfaces("n2"));
    let machine = Command::new("ip").args(["-br", "address"]).output().unwrap();
    assert!(!String::from_utf8(machine.stdout).unwrap().contains("10.77.0."), "the machine's network was touched");
    let names = slurm.head(&["srun", "--nodes=4", "--ntasks-per-node=1", "--label", "hostname"]);
    let mut names: Vec<_> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["0: n1", "1: n2", "2: n3", "3: n4"]);
}

#[test]
fn mpi_ranks_on_two_nodes_talk_point_to_point() {
    let Some(slurm) = sandbox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("exchange");
    let built = Command::new("mpicc")
        .arg("-o")
        .arg(&program)
        .arg(repository().join("tests/fixtures/exchange.c"))
        .output()
        .unwrap();
    assert_ok(&built, &["mpicc"]);
    let output = slurm
        .on("head", 60)
        .args(["srun", "--mpi=pmix", "--nodes=2", "--ntasks-per-node=2"])
        .arg(&program)
        .env("OMPI_MCA_mpi_yield_when_idle", "1")
        .output()
        .unwrap();
    assert_ok(&output, &["srun", "--mpi=pmix"]);
    let mut lines: Vec<_> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    lines.sort_unstable();
    let split: Vec<Vec<&str>> = lines.iter().map(|line| line.split(' ').collect()).collect();
    assert_eq!(split.len(), 4, "{lines:?}");
    for (rank, words) in split.iter().enumerate() {
        // rank, number of ranks, own host, sender, sender's host
        assert_eq!(words[0], rank.to_string());
        assert_eq!(words[1], "4");
        assert_eq!(words[3], ((rank + 2) % 4).to_string());
        assert_ne!(words[2], words[4], "rank {rank} heard from its own node: {lines:?}");
    }
}

/// One element requeues itself and one fails: its own child ends, the others run, and what waits behind all fires.
#[test]
fn a_sick_array_element_stops_its_own_children_only() {
    let Some(slurm) = sandbox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("parent.sh");
    fs::write(
        &parent,
        "#!/bin/bash\n\
         if [[ $SLURM_ARRAY_TASK_ID == 1 && -z ${SLURM_RESTART_COUNT:-} ]]; then\n  \
           scontrol requeue \"${SLURM_ARRAY_JOB_ID}_1\"; sleep 60; exit 75\n\
         fi\n\
         [[ $SLURM_ARRAY_TASK_ID != 2 ]] || exit 3\n\
         : >\"parent-$SLURM_ARRAY_TASK_ID-${SLURM_RESTART_COUNT:-0}\"\n",
    )
    .unwrap();
    let child = dir.path().join("child.sh");
    fs::write(&child, "#!/bin/bash\n: >\"$1-${SLURM_ARRAY_TASK_ID:-all}\"\n").unwrap();
    let name = format!("sick-{}", std::process::id());
    let submit = |words: &[&str]| {
        let output = slurm
            .on("head", 60)
            .args([
                "sbatch",
                "--parsable",
                "--job-name",
                &name,
                "--output=/dev/null",
                "--requeue",
                "--kill-on-invalid-dep=yes",
            ])
            .args(words)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_ok(&output, words);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let first = submit(&["--array=0-2", parent.to_str().unwrap()]);
    let script = child.to_str().unwrap();
    let second = submit(&["--array=0-2", &format!("--dependency=aftercorr:{first}"), script, "second"]);
    let third = submit(&["--array=0-2", &format!("--dependency=aftercorr:{second}"), script, "third"]);
    submit(&[&format!("--dependency=afterany:{first}:{second}:{third}"), script, "last"]);
    slurm.wait_until_ended(&name, 90);

    let mut made: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".sh"))
        .collect();
    made.sort_unstable();
    assert_eq!(made, ["last-all", "parent-0-0", "parent-1-1", "second-0", "second-1", "third-0", "third-1"]);
}
