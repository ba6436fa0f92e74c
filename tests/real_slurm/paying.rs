//! What is asked before submission, the gate's budget, and the ledger, on the real Slurm: the ledger with accounting
//! (slurmdbd and MariaDB) against `sacct -D`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::sandbox::{Sandbox, accounting_sandbox, assert_ok, sandbox};

struct Work<'s> {
    slurm: &'s Sandbox,
    dir: tempfile::TempDir,
}

impl<'s> Work<'s> {
    fn new(slurm: &'s Sandbox, study: &str, cluster: &str) -> Self {
        let work = Self { slurm, dir: tempfile::tempdir().unwrap() };
        fs::create_dir(work.dir.path().join("clusters")).unwrap();
        let head = "schema = 1\n[cluster]\nname = \"test\"\nmpi = \"none\"\nfs_settle_s = 0\n";
        fs::write(work.dir.path().join("clusters/test.toml"), format!("{head}{cluster}\n")).unwrap();
        fs::write(work.study(), format!("schema = 1\n[study]\nname = \"pay\"\nseeds = [1, 2]\n{study}")).unwrap();
        work
    }

    fn study(&self) -> PathBuf {
        self.dir.path().join("pay.toml")
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("results/pay/default")
    }

    /// A program of ours on the head, with the study.
    fn on_head(&self, program: &str, words: &[&str]) -> Output {
        let mut command: Command = self.slurm.on("head", 120);
        command.arg(program).args(words).arg(self.study()).args(["--cluster", "test"]).env_remove("EXPERIMENT_SEED");
        command.output().unwrap()
    }

    /// `run_all --yes`; the ids of its jobs.
    fn submit(&self) -> Vec<String> {
        let output = self.on_head(env!("CARGO_BIN_EXE_run_all"), &["--yes"]);
        assert_ok(&output, &["run_all"]);
        let said = String::from_utf8(output.stderr).unwrap();
        said.lines().filter_map(|line| line.strip_prefix("job ")?.split(' ').next().map(str::to_owned)).collect()
    }

    fn ledger(&self) -> Value {
        let output = self.on_head(env!("CARGO_BIN_EXE_seedbed"), &["ledger", "--format", "json"]);
        assert_ok(&output, &["ledger"]);
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn stage(name: &str, shell: &str, lines: &str) -> String {
    format!("[[stage]]\nname = \"{name}\"\ncommand = [\"sh\", \"-c\", '''{shell}''']\n{lines}\n")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_partition_that_is_not_there_is_said_before_the_first_job() {
    let Some(slurm) = sandbox() else { return };
    let study = stage("a", "true", "resources = {mem = \"64M\", time = \"0:05:00\"}");
    let work = Work::new(&slurm, &study, "partition = \"nowhere\"");
    let output = work.on_head(env!("CARGO_BIN_EXE_run_all"), &["--yes"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the site does not take jobs of stage a") && said.contains("nowhere"), "{said}");
    let journal = fs::read_to_string(work.base().join(".seedbed/journal.jsonl")).unwrap_or_default();
    assert!(!journal.contains("intent"), "{journal}");
}

#[test]
fn a_queued_job_whose_budget_others_spent_does_not_start() {
    let Some(slurm) = sandbox() else { return };
    let lines = |needs: &str, seconds: u32| {
        format!(
            "per = []\nneeds = [{needs}]\nexpected = \"0:00:0{seconds}\"\n\
             resources = {{cpus_per_task = 8, mem = \"64M\", time = \"0:05:00\"}}"
        )
    };
    // 16 core-seconds are expected of 24, and the first stage alone takes 40.
    let study = [
        "[budget]\ncpu_hours = 0.00667\n".to_owned(),
        stage("a", "sleep 5", &lines("", 1)),
        stage("b", "true", &lines("\"a\"", 1)),
    ];
    let work = Work::new(&slurm, &study.concat(), "");
    let jobs = work.submit();
    assert_eq!(jobs.len(), 2);
    slurm.wait_until_gone(&jobs, 120);
    assert!(work.base().join("a/seal.json").exists() && !work.base().join("b/attempts").exists());
    let log = log(&work.base(), "b");
    assert!(log.contains("the budget of the study does not cover this attempt"), "{log}");
    let output = work.on_head(env!("CARGO_BIN_EXE_run_all"), &["--yes"]);
    assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stderr));
}

fn log(base: &Path, stage: &str) -> String {
    let logs = fs::read_dir(base.join("logs")).unwrap().map(|entry| entry.unwrap().path());
    let of_stage = logs.filter(|path| path.to_str().unwrap().contains(&format!("_{stage}_")));
    of_stage.map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn the_ledger_counts_requeued_attempts_as_accounts_do() {
    let Some(slurm) = accounting_sandbox("") else { return };
    // Each seed checkpoints once, is requeued in place, and goes on.
    let shell = r#"sleep 3; mark="$SEEDBED_CHECKPOINT_DIR/mark"; [ -e "$mark" ] || { touch "$mark"; exit 75; }"#;
    let lines = "resumable = true\nresources = {cpus_per_task = 2, mem = \"64M\", time = \"0:05:00\"}";
    let work = Work::new(&slurm, &stage("a", shell, lines), "price = {cpu_hour = 3600.0, currency = \"EUR\"}");
    let jobs = work.submit();
    assert_eq!(jobs.len(), 1);
    slurm.wait_until_gone(&jobs, 180);
    let ledger = work.ledger();
    let charges = ledger["attempts"].as_array().unwrap();
    assert_eq!(charges.len(), 4, "{ledger:#}");
    assert!(charges.iter().all(|charge| charge["at_least"] == false && charge["waste"].is_null()), "{ledger:#}");
    let wall_s: f64 = charges.iter().map(|charge| number(&charge["wall_s"])).sum();
    assert!(wall_s >= 4.0 * 3.0, "{wall_s}");
    assert_ne!(ledger["source"], "records", "{ledger:#}");
    let format = "--format=JobID,ElapsedRaw,AllocTRES";
    let said = slurm.head(&["sacct", "-X", "-D", "-n", "-P", "-S", "now-1hour", "-j", &jobs[0], format]);
    let mut accounts: Vec<(String, f64)> = Vec::new();
    let mut core_s = 0.0;
    for line in said.lines() {
        let fields: Vec<&str> = line.split('|').collect();
        let elapsed: f64 = fields[1].parse().unwrap();
        let cpus = fields[2].split(',').find_map(|item| item.strip_prefix("cpu=")).unwrap_or("0");
        core_s += elapsed * cpus.parse::<f64>().unwrap();
        accounts.push((fields[0].to_owned(), elapsed));
    }
    assert_eq!(accounts.len(), 4, "{said}");
    accounts.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let mut ours: Vec<(String, f64)> =
        charges.iter().map(|c| (c["job"].as_str().unwrap().to_owned(), number(&c["wall_s"]))).collect();
    ours.sort_by(|a, b| a.partial_cmp(b).unwrap());
    for (ours, account) in ours.iter().zip(&accounts) {
        assert!(ours.0 == account.0 && (ours.1 - account.1).abs() <= 2.0, "{ours:?} and {account:?}");
    }
    let cost = number(&ledger["all"]["actual"]["cost"]);
    assert!((cost - core_s).abs() < 1e-6, "{cost} and {core_s}");
    // What the attempts wrote down themselves is less: the rest is the start, and the wait for the requeue.
    for charge in charges {
        assert!(number(&charge["idle_s"]) < number(&charge["wall_s"]), "{charge}");
    }
}
