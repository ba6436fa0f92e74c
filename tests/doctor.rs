//! `seedbed doctor` on the fake Slurm: what it finds on a site that is as the cluster file says, what it says where
//! something is not, and what its jobs find on nodes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::chain::text;
use crate::support::fake_slurm::FakeSlurm;

/// A folder with a cluster file.
pub struct Office {
    path: OsString,
    dir: tempfile::TempDir,
}

impl Office {
    pub fn new(path: OsString, lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("configs/clusters")).unwrap();
        let file = format!("schema = 1\n[cluster]\nname = \"test\"\n{lines}\n");
        std::fs::write(dir.path().join("configs/clusters/test.toml"), file).unwrap();
        Self { path, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn doctor(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed"));
        command.arg("doctor").args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("PATH", &self.path);
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "TMPDIR", "LOADEDMODULES"] {
            command.env_remove(name);
        }
        command.output().unwrap()
    }

    /// Exit code, and outcome and words of every check.
    pub fn findings(&self, arguments: &[&str]) -> (i32, BTreeMap<String, (String, String)>) {
        let words = [&["--cluster", "test", "--format", "json"], arguments].concat();
        let output = self.doctor(&words);
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
        let mut found = BTreeMap::new();
        for check in value["checks"].as_array().unwrap() {
            let get = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            // Of several programs the worst counts.
            let said = format!("{} {}", get("said"), get("fix"));
            if found.get(&get("check")).is_none_or(|(outcome, _)| outcome != "failed") {
                found.insert(get("check"), (get("outcome"), said));
            }
        }
        let code = output.status.code().unwrap();
        assert_eq!(value["ok"], Value::from(code == 0));
        (code, found)
    }
}

#[test]
fn a_sound_site_is_told_line_by_line() {
    let slurm = FakeSlurm::new();
    slurm.set("accounting", "on");
    slurm.set("partitions", "debug,gpu");
    let office = Office::new(slurm.path(), "partition = ['debug', 'gpu']\naccount = 'lab'\nqos = 'normal'");
    let output = office.doctor(&["--cluster", "test"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let lines: Vec<&str> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    for (check, words) in [
        ("cluster-file", "test.toml"),
        ("slurm", "slurm-wlm 22.05.8 in "),
        ("controller", "cluster `fake` answers"),
        ("federation", "none"),
        ("accounting", "on"),
        ("account", "`lab`"),
        ("qos", "`normal`"),
        ("partition(debug)", "UP, time limit UNLIMITED"),
        ("partition(gpu)", "UP"),
        ("job(debug)", "sbatch would take one"),
        ("limits", "array index below 1001"),
        ("requeue", "jobs requeue themselves"),
        ("signal", "SIGUSR2 300 s before a time limit; 30 sec"),
        ("launcher", "srun --mpi=pmix"),
        ("modules", "none are asked for"),
        ("results", "GB left"),
        ("program", "seedbed "),
    ] {
        let of_check = |line: &&str| line.starts_with(&format!("ok       {check} ")) && line.contains(words);
        assert_eq!(lines.iter().copied().filter(of_check).count(), 1, "{check}: {said}");
    }
    assert!(said.contains("nothing failed"), "{said}");
    assert!(slurm.jobs().is_empty(), "nothing was submitted");
    assert!(!office.file("results").exists(), "nothing is left behind");
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    let slurm = FakeSlurm::new();
    slurm.set("accounting", "on");
    slurm.set("partitions", "debug,gpu");
    slurm.set("partition_down", "gpu");
    slurm.set("federation", "alpine");
    let lines = "partition = ['gpus', 'gpu']\naccount = 'lap'\nqos = 'high'\nmpi = 'pmi3'\nmax_array_size = 5000\n\
                 scratch = '/proc/nowhere'\nnotify = ['/nowhere/tell']\nquota_command = ['/nowhere/quota']\n\
                 container = ['no-such-apptainer', 'exec']\nmodules = ['gcc/12']\nclusters = ['alps', 'b']";
    let office = Office::new(slurm.path(), lines);
    let (code, found) = office.findings(&[]);
    assert_eq!(code, 1);
    for (check, outcome, words) in [
        ("federation", "failed", "`alpine`"),
        ("account", "failed", "`lap` is none of yours (there are: lab)"),
        ("qos", "failed", "`high` is none of yours"),
        ("partition(gpus)", "failed", "`gpus` is no partition here (there are: debug, gpu)"),
        ("partition(gpu)", "warning", "DOWN"),
        ("limits", "failed", "more than the site's 1001"),
        ("launcher", "failed", "there are: none, pmi2, pmix, pmix_v4"),
        ("scratch", "failed", "correct `scratch`"),
        ("notify", "failed", "`/nowhere/tell`"),
        ("quota_command", "failed", "`/nowhere/quota`"),
        ("container", "failed", "`no-such-apptainer` is not found"),
        ("modules", "failed", "modules"),
        ("cluster(alps)", "ok", "answers"),
    ] {
        let (is, said) = found.get(check).unwrap_or_else(|| panic!("{check}: {found:#?}"));
        assert!(is == outcome && said.contains(words), "{check}: {is}: {said}");
    }
}

#[test]
fn a_controller_that_is_down_and_a_machine_without_slurm() {
    let slurm = FakeSlurm::new();
    slurm.set("down", 1);
    let office = Office::new(slurm.path(), "");
    let (code, found) = office.findings(&["--on-nodes"]);
    assert_eq!(
        (code, found["controller"].0.as_str(), found["nodes"].0.as_str()),
        (1, "failed", "failed"),
        "{found:#?}"
    );

    let bin = tempfile::tempdir().unwrap();
    for name in ["bash", "sh"] {
        std::os::unix::fs::symlink(format!("/bin/{name}"), bin.path().join(name)).unwrap();
    }
    let office = Office::new(bin.path().into(), "");
    // Without a cluster file a machine without Slurm is no fault; with one it is.
    let output = office.doctor(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("`run_all` runs studies on this machine"), "{}", text(&output));
    let (code, found) = office.findings(&[]);
    assert!(code == 1 && found["slurm"].1.contains("`sbatch`, `squeue`"), "{found:#?}");
    let output = office.doctor(&["--cluster", "nowhere"]);
    assert_ne!(output.status.code(), Some(0), "{}", text(&output));
    assert!(text(&output).contains("nowhere.toml"), "{}", text(&output));
}

#[test]
fn one_job_a_partition_looks_at_the_nodes() {
    let slurm = FakeSlurm::new();
    slurm.set("partitions", "debug,gpu");
    let office =
        Office::new(slurm.path(), "partition = 'debug,gpu'\nmpi = 'none'\nexports = {LOADEDMODULES = 'gcc/12.2'}");
    let (code, found) = office.findings(&["--on-nodes", "--wait", "60"]);
    assert_eq!(code, 0, "{found:#?}");
    for partition in ["debug", "gpu"] {
        for (check, words) in [
            ("", "answered after"),
            (" node", ""),
            (" programs", "by digest"),
            (" modules", "none are asked for"),
            (" tmpdir", "GB left"),
            (" launcher", "starts programs"),
            (" signal", "SIGUSR2 reaches the attempt"),
        ] {
            let (is, said) = &found[&format!("nodes({partition}){check}")];
            assert!(is == "ok" && said.contains(words), "{partition}{check}: {is}: {said}");
        }
    }
    assert_eq!(slurm.jobs().len(), 2);
    assert!(slurm.jobs().values().all(|(state, _)| state == "COMPLETED"), "{:?}", slurm.jobs());
    assert!(!office.file("results").exists(), "nothing is left behind");
}

#[test]
fn nodes_that_are_not_as_the_login_node_are_told_apart() {
    let slurm = FakeSlurm::new();
    let modules = tempfile::tempdir().unwrap();
    let program = modules.path().join("module");
    std::fs::write(&program, "#!/bin/sh\nexit 0\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = [modules.path().to_path_buf(), slurm.bin()].into_iter();
    let path = std::env::join_paths(path.chain(std::env::split_paths(&std::env::var_os("PATH").unwrap()))).unwrap();
    let lines =
        "launcher = ['false']\nmodules = ['gcc/12']\nexports = {LOADEDMODULES = 'gcc/11', TMPDIR = '/proc/nowhere'}";
    let (code, found) = Office::new(path.clone(), lines).findings(&["--on-nodes", "--wait", "60"]);
    assert_eq!(code, 1);
    for (check, words) in [
        ("modules", "loaded: gcc/11"),
        ("launcher", "`false` failed"),
        ("tmpdir", "ask the site for the node's own disk"),
    ] {
        let (is, said) = &found[&format!("nodes(default) {check}")];
        assert!(is == "failed" && said.contains(words), "{check}: {is}: {said}");
    }
    // A job that ends before it can look at anything: what it printed is told.
    let lines = "lines = ['echo no such module >&2; exit 64']";
    let (code, found) = Office::new(path.clone(), lines).findings(&["--on-nodes", "--wait", "60"]);
    assert!(code == 1 && found["nodes(default)"].1.contains("no such module"), "{found:#?}");
    // And one that does not start in time is taken away.
    slurm.set("hold", 1);
    let (code, found) = Office::new(path, "").findings(&["--on-nodes", "--wait", "2"]);
    let (is, said) = &found["nodes(default)"];
    assert!(code == 1 && is == "failed" && said.contains("pending (PartitionDown)"), "{said}");
    assert!(slurm.jobs().values().any(|(state, _)| state == "CANCELLED"), "{:?}", slurm.jobs());
}

#[test]
fn a_study_s_own_partitions_and_programs_are_looked_at() {
    let slurm = FakeSlurm::new();
    slurm.set("partitions", "debug,gpu");
    let office = Office::new(slurm.path(), "");
    let study = "schema = 1\n[study]\nname = \"s\"\nseeds = [1]\n[[stage]]\nname = \"a\"\ncommand = [\"true\"]\n\
                 partition = \"huge\"\nnotify = [\"/nowhere/tell\"]\nresources = {time = \"1:00:00\"}\n";
    std::fs::write(office.file("configs/s.toml"), study).unwrap();
    let (code, found) = office.findings(&["configs/s.toml"]);
    assert_eq!(code, 1);
    assert!(found["partition(huge)"].1.contains("there are: debug, gpu"), "{found:#?}");
    assert!(found["job(huge)"].1.contains("invalid partition specified: huge"), "{found:#?}");
    assert_eq!(found["notify"].0, "failed");
    assert!(!found.contains_key("partition"), "no job goes to the site's own: {found:#?}");
}
