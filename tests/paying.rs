//! What is asked before anything is submitted, the budget, and the ledger: on this machine and on a fake Slurm.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use seedbed::workflow::slurm::accounting::{self, Accounting};
use serde_json::Value;

use crate::support::fake_slurm::FakeSlurm;

/// A study in a folder of its own, on this machine or on a Slurm that is first in `PATH`.
struct Work {
    dir: tempfile::TempDir,
    path: std::ffi::OsString,
    local: bool,
}

impl Work {
    fn local(study: &str) -> Self {
        Self::new(study, "", std::env::var_os("PATH").unwrap_or_default(), true)
    }

    fn on(slurm: &FakeSlurm, study: &str, cluster: &str) -> Self {
        Self::new(study, cluster, slurm.path(), false)
    }

    fn new(study: &str, cluster: &str, path: std::ffi::OsString, local: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("clusters")).unwrap();
        let head = "schema = 1\n[cluster]\nname = \"test\"\nmpi = \"none\"\nfs_settle_s = 0\n";
        std::fs::write(dir.path().join("clusters/test.toml"), format!("{head}{cluster}\n")).unwrap();
        let work = Self { dir, path, local };
        work.write(study);
        work
    }

    fn write(&self, study: &str) {
        let head = "schema = 1\n[study]\nname = \"pay\"\nseeds = [1, 2, 3]\n";
        std::fs::write(self.path("pay.toml"), format!("{head}{study}")).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn base(&self) -> PathBuf {
        self.path("results/pay/default")
    }

    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(words).arg("pay.toml").current_dir(self.dir.path()).stdin(Stdio::null());
        command.args(["--cluster", "test"]).env("PATH", &self.path).env("D", self.dir.path());
        if self.local {
            command.arg("--local");
        }
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command
    }

    fn run_all(&self, words: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_run_all"), words).output().unwrap()
    }

    /// `run_all`, which must end with `code`; what it said.
    fn ends(&self, words: &[&str], code: i32) -> String {
        let output = self.run_all(words);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        said(&output)
    }

    fn seedbed(&self, words: &[&str]) -> String {
        let output = self.command(env!("CARGO_BIN_EXE_seedbed"), words).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn ledger(&self) -> Value {
        serde_json::from_str(&self.seedbed(&["ledger", "--format", "json"])).unwrap()
    }

    /// Events of the journal by name.
    fn events(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.base().join(".seedbed/journal.jsonl")).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["event"] == name).collect()
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A stage that runs `shell`, with further lines.
fn stage(name: &str, shell: &str, lines: &str) -> String {
    format!("[[stage]]\nname = \"{name}\"\ncommand = [\"sh\", \"-c\", '''{shell}''']\n{lines}\n")
}

const SHORT: &str = "resources = {mem = \"64M\", time = \"0:05:00\"}";

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The attempts of a ledger, by cell.
fn attempts<'l>(ledger: &'l Value, cell: &str) -> Vec<&'l Value> {
    ledger["attempts"].as_array().unwrap().iter().filter(|a| a["cell"] == cell).collect()
}

// --- before anything is submitted ------------------------------------------------------------------------------

#[test]
fn what_the_site_would_refuse_is_said_before_the_first_job() {
    let slurm = FakeSlurm::new();
    slurm.set("partitions", "debug,gpu");
    slurm.set("hold", 1);
    let study = [stage("a", "true", SHORT), stage("b", "true", &format!("needs = [\"a\"]\n{SHORT}"))].concat();
    let work = Work::on(&slurm, &study, "partition = \"gpus\"");
    let text = work.ends(&["--yes"], 1);
    assert!(text.contains("stage a, b") && text.contains("invalid partition specified: gpus"), "{text}");
    assert!(text.contains("nothing was submitted"), "{text}");
    assert_eq!((slurm.count("sbatch"), slurm.count("sbatch --test-only")), (0, 1), "one question a shape");
    assert!(work.events("intent").is_empty() && slurm.jobs().is_empty());

    // What is only down for now is said, and submitted.
    let down = "allocation failure: Requested partition configuration not available now";
    std::fs::write(work.path("clusters/test.toml"), "schema = 1\n[cluster]\nname = \"test\"\nmpi = \"none\"\n")
        .unwrap();
    slurm.fault("sbatch --test-only", "fail", down);
    let text = work.ends(&["--yes"], 0);
    assert!(text.contains("not available now") && text.contains("submitted 6 cells in 2 jobs"), "{text}");
}

#[test]
fn each_shape_is_asked_about_once_with_its_largest_array() {
    let slurm = FakeSlurm::new();
    slurm.set("hold", 1);
    let large = "resources = {cpus_per_task = 4, time = \"0:05:00\"}";
    let study = [
        stage("all", "true", &format!("needs = [\"c\"]\nper = []\n{SHORT}")),
        stage("a", "true", SHORT),
        stage("b", "true", large),
        stage("c", "true", SHORT),
    ]
    .concat();
    let work = Work::on(&slurm, &study, "");
    work.ends(&["--yes"], 0);
    assert_eq!((slurm.count("sbatch --test-only"), slurm.count("sbatch")), (2, 4));
}

#[test]
fn a_script_says_yes_or_nothing_happens() {
    let slurm = FakeSlurm::new();
    slurm.set("hold", 1);
    let work = Work::on(&slurm, &stage("a", "true", SHORT), "");
    let text = work.ends(&[], 64);
    assert!(text.contains("nothing was submitted") && text.contains("--yes"), "{text}");
    assert_eq!(slurm.count("sbatch"), 0);
    work.ends(&["--yes"], 0);
    assert_eq!(slurm.count("sbatch"), 1);
}

#[test]
fn as_many_jobs_as_the_site_takes_are_submitted_and_the_rest_is_said() {
    let slurm = FakeSlurm::new();
    slurm.set("accounting", "on");
    slurm.set("max_user", 5);
    slurm.set("hold", 1);
    let study = [stage("a", "true", SHORT), stage("b", "true", &format!("needs = [\"a\"]\n{SHORT}"))].concat();
    let work = Work::on(&slurm, &study, "");
    let text = work.ends(&["--yes"], 0);
    assert!(text.contains("1 cell not submitted yet: the site takes 5 of your jobs at a time (QOS normal)"), "{text}");
    assert!(text.trim_end().ends_with("run_all pay.toml --cluster test"), "{text}");
    assert_eq!(slurm.count("sbatch"), 2);
    // All are taken.
    let text = work.ends(&["--yes"], 1);
    assert!(text.contains("5 of your jobs at a time (QOS normal), and 5 are taken"), "{text}");
    assert_eq!(slurm.count("sbatch"), 2);
}

#[test]
fn too_little_room_is_said_before_anything_is_written() {
    let program = |work: &Work, text: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = work.path("quota");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    };
    // A petabyte a cell is more than any disk has.
    let work = Work::local(&stage("a", "true", &format!("{SHORT}\nstorage = \"1000T\"")));
    let text = work.ends(&[], 73);
    assert!(text.contains("there is no room for the results") && text.contains("--root"), "{text}");
    assert!(work.events("billed").is_empty() && !work.base().join(".seedbed/submissions").exists());

    let work = Work::local(&stage("a", "true", &format!("{SHORT}\nstorage = \"10K\"")));
    let file = format!(
        "schema = 1\n[cluster]\nname = \"test\"\nquota_command = [\"{}\", \"left\"]\n",
        work.path("quota").display()
    );
    std::fs::write(work.path("clusters/test.toml"), file).unwrap();
    program(&work, "[ \"$1\" = left ] && echo 20K");
    let text = work.ends(&[], 73);
    assert!(text.contains("(quota_command)"), "{text}");
    program(&work, "echo 1T 40");
    let text = work.ends(&[], 73);
    assert!(text.contains("at least 96 files will be made and 40 are left (quota_command)"), "{text}");
    // Who cannot answer does not forbid.
    program(&work, "echo no quota here >&2; exit 3");
    let text = work.ends(&[], 0);
    assert!(text.contains("`quota_command` told nothing") && text.contains("no quota here"), "{text}");
}

#[test]
fn max_running_limits_an_array_and_the_cells_of_this_machine() {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 8);
    let marks = r#"echo + >> "$D/marks"; sleep 1; echo - >> "$D/marks""#;
    let most = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        let mut running = 0;
        text.lines()
            .map(|l| {
                running += if l == "+" { 1 } else { -1 };
                running
            })
            .max()
            .unwrap()
    };
    let study = |k: u32| stage("a", marks, &format!("max_running = {k}\n{SHORT}"));
    let work = Work::on(&slurm, &study(2), "throttle = 3");
    work.write(&study(9));
    assert!(work.ends(&["--dry-run"], 0).contains("#SBATCH --array=0-2%3\n"), "the site's own limit is less");
    work.write(&study(2));
    assert!(work.ends(&["--dry-run"], 0).contains("#SBATCH --array=0-2%2\n"));
    work.ends(&["--yes"], 0);
    slurm.wait_until(|jobs| jobs.values().all(|(state, _)| state == "COMPLETED"));
    assert_eq!(most(&work.path("marks")), 2);

    let work = Work::local(&study(1));
    work.ends(&[], 0);
    assert_eq!(most(&work.path("marks")), 1);
    work.write(&study(0));
    let text = work.ends(&[], 64);
    assert!(text.contains("`max_running` in stage a must be an integer from 1"), "{text}");
}

#[test]
fn programs_that_are_not_those_that_were_submitted_do_not_run() {
    let study = [stage("a", "true", SHORT), stage("b", "true", &format!("needs = [\"a\"]\n{SHORT}"))].concat();
    let work = Work::local(&study);
    work.ends(&["--stages", "a"], 0);
    let bin = work.base().join(".seedbed/bin");
    let dir = std::fs::read_dir(&bin).unwrap().next().unwrap().unwrap().path();
    let mut program = std::fs::OpenOptions::new().append(true).open(dir.join("seedbed")).unwrap();
    std::io::Write::write_all(&mut program, b"x").unwrap();
    drop(program);
    let text = work.ends(&[], 1);
    assert!(text.contains("exit 65") && text.contains("remove that directory"), "{text}");
    assert!(!work.base().join("b/seed-1/attempts").exists());
    std::fs::remove_dir_all(dir).unwrap();
    work.ends(&[], 0);
}

// --- the budget ------------------------------------------------------------------------------------------------

/// Two stages of one cell. With 4096 cores a second is more than a core-hour.
fn dear(budget: &str) -> String {
    let lines = |needs: &str| {
        format!(
            "per = []\nneeds = [{needs}]\nexpected = \"0:00:01\"\nresources = {{cpus_per_task = 4096, time = \"0:00:20\"}}"
        )
    };
    [budget.to_owned(), stage("a", "sleep \"$(cat \"$D/time\")\"", &lines("")), stage("b", "true", &lines("\"a\""))]
        .concat()
}

#[test]
fn over_budget_nothing_is_submitted_also_with_yes() {
    let slurm = FakeSlurm::new();
    slurm.set("hold", 1);
    let work = Work::on(&slurm, &dear("[budget]\ncpu_hours = 2.0\n"), "");
    let text = work.ends(&["--yes"], 78);
    assert!(text.contains("2.3 core-hours of 2.0 (0.0 spent, 0.0 queued)") && text.contains("--over-budget"), "{text}");
    assert_eq!((slurm.count("sbatch"), work.events("intent").len()), (0, 0));
    let text = work.ends(&["--yes", "--over-budget", " "], 78);
    assert!(text.contains("above the budget"), "a reason is words: {text}");

    let text = work.ends(&["--yes", "--over-budget", "the deadline"], 0);
    assert!(text.contains("over budget: the deadline"), "{text}");
    let events = work.events("over_budget");
    assert_eq!((events.len(), events[0]["reason"].as_str()), (1, Some("the deadline")));
    assert_eq!((events[0]["version"].as_u64(), events[0]["budget"]["cpu_hours"].as_f64()), (Some(2), Some(2.0)));
    // At worst both take their limits: 2 x 20 s.
    let ceiling = number(&events[0]["ceiling"]["cpu_hours"]);
    assert!((ceiling - 4096.0 * 40.0 / 3600.0).abs() < 1e-6, "{ceiling}");
    // The permission holds, and what is queued is counted once.
    assert_eq!(slurm.count("sbatch"), 2);
    work.ends(&["--yes"], 0);
    let plan: Value = serde_json::from_str(&work.seedbed(&["plan", "--format", "json"])).unwrap();
    let row = &plan["budget"]["cpu_hours"];
    assert!((number(&row["queued"]) - 4096.0 * 2.0 / 3600.0).abs() < 1e-6 && number(&row["expected"]) == 0.0, "{row}");
}

#[test]
fn the_gate_reads_the_ledger_again_before_each_attempt() {
    let work = Work::local(&dear("[budget]\ncpu_hours = 2.5\n"));
    std::fs::write(work.path("time"), "4").unwrap();
    // Expected are 2.3 core-hours; the first stage takes 4.6, and the second does not start.
    let output = work.run_all(&[]);
    let text = said(&output);
    assert!(!output.status.success() && text.contains("b ended with exit 78"), "{text}");
    let logs: String = std::fs::read_dir(work.base().join("logs"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert!(logs.contains("the budget of the study does not cover this attempt"), "{logs}");
    assert!(work.base().join("a/seal.json").exists() && !work.base().join("b/attempts").exists());
    // The next call sees it before it starts anything.
    let text = work.ends(&[], 78);
    assert!(text.contains("the bill is above the budget") && !text.contains("(0.0 spent"), "{text}");
    let ledger = work.ledger();
    assert!(number(&ledger["budget"]["cpu_hours"]["remaining"]) < -2.0, "{ledger:#}");
    work.ends(&["--over-budget", "worth it"], 0);
    assert!(work.base().join("b/seal.json").exists());
    let page = work.seedbed(&["ledger"]);
    assert!(page.contains("over budget by leave of") && page.contains("worth it"), "{page}");
}

#[test]
fn on_slurm_the_gate_of_a_queued_job_counts_what_others_spent() {
    let slurm = FakeSlurm::new();
    let work = Work::on(&slurm, &dear("[budget]\ncpu_hours = 2.5\n"), "");
    std::fs::write(work.path("time"), "3").unwrap();
    work.ends(&["--yes"], 0);
    let jobs = slurm.wait_idle();
    assert_eq!((jobs["1"].0.as_str(), jobs["2"].0.as_str()), ("COMPLETED", "FAILED"), "{jobs:?}");
    assert!(!work.base().join("b/attempts").exists());
}

// --- the ledger ------------------------------------------------------------------------------------------------

#[test]
fn every_attempt_is_counted_and_waste_has_a_name() {
    let shell = r#"sleep 0.2; [ ! -e "$D/sick" ] || [ "$SEEDBED_SEED" != 2 ]"#;
    let study = |shell: &str| {
        let lines = "activity = \"training\"\nresources = {cpus_per_task = 4096, time = \"0:01:00\"}";
        [stage("a", shell, lines), stage("b", "true", &format!("needs = [\"a\"]\nper = []\n{SHORT}"))].concat()
    };
    let work = Work::local(&study(shell));
    std::fs::write(work.path("sick"), "").unwrap();
    work.ends(&[], 1);
    std::fs::remove_file(work.path("sick")).unwrap();
    let ledger = work.ledger();
    assert_eq!(attempts(&ledger, "a/seed-2")[0]["waste"], "failed", "{ledger:#}");
    work.ends(&[], 0);

    let ledger = work.ledger();
    assert_eq!(ledger["source"], "records");
    let (a, all) = (&ledger["stages"][0], &ledger["all"]);
    assert_eq!((a["name"].as_str(), a["cells"].as_u64(), a["attempts"].as_u64()), (Some("a"), Some(3), Some(4)));
    assert_eq!(all["attempts"].as_u64(), Some(5));
    assert_eq!(ledger["activities"][0]["actual"], a["actual"]);
    // Hours are cores times the time that the attempts themselves wrote down.
    let mut wall_s = 0.0;
    for (seed, n) in [(1, 1), (2, 1), (2, 2), (3, 1)] {
        let path = work.base().join(format!("a/seed-{seed}/attempts/{n}.end.json"));
        let end: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        wall_s += number(&end["wall_s"]);
    }
    let cpu_hours = number(&a["actual"]["cpu_hours"]);
    assert!((cpu_hours - 4096.0 * wall_s / 3600.0).abs() < 1e-9, "{cpu_hours} of {wall_s} s");
    // Three cells of a minute's limit were expected, once each: a failed attempt makes no new cell.
    let expected = number(&a["expected"]["cpu_hours"]);
    assert!((expected - 3.0 * 4096.0 / 60.0).abs() < 1e-6, "{expected}");
    let waste = |ledger: &Value, kind: &str| number(&ledger["stages"][0]["waste"][kind]["cpu_hours"]);
    let failed = number(&attempts(&ledger, "a/seed-2")[0]["wall_s"]) * 4096.0 / 3600.0;
    assert!((waste(&ledger, "failed") - failed).abs() < 1e-9 && waste(&ledger, "invalidated") == 0.0, "{ledger:#}");
    let page = work.seedbed(&["ledger", "--attempts"]);
    assert!(
        page.contains("failed") && page.contains("a/seed-2 attempt 1") && page.contains("counted by records"),
        "{page}"
    );

    // Other parameters: what was made before is invalidated, whether it was set aside already or not.
    work.write(&study(&format!("{shell}; true")));
    let before = work.ledger();
    let all_of_a: f64 = number(&before["stages"][0]["actual"]["cpu_hours"]);
    assert!((waste(&before, "invalidated") - all_of_a).abs() < 1e-9, "{before:#}");
    work.ends(&["--stages", "a", "--seeds", "1"], 0);
    let after = work.ledger();
    assert_eq!(after["stages"][0]["attempts"].as_u64(), Some(5), "set aside, and still counted");
    assert!((waste(&after, "invalidated") - all_of_a).abs() < 1e-9, "{after:#}");
    // Four cells of two sets of parameters were submitted, and two are still to come.
    let expected = number(&after["stages"][0]["expected"]["cpu_hours"]);
    assert!(expected > 4.0 * 4096.0 / 60.0 - 1e-6, "{expected}");
}

#[test]
fn an_attempt_without_an_end_is_billed_to_its_last_heartbeat() {
    let shell = r#"echo $$ > "$D/started"; while [ -e "$D/slow" ]; do sleep 0.05; done"#;
    let lines = "per = []\nresources = {cpus_per_task = 2, time = \"0:05:00\"}";
    let work = Work::local(&stage("a", shell, lines));
    std::fs::write(work.path("slow"), "").unwrap();
    let mut child = work.command(env!("CARGO_BIN_EXE_run_all"), &[]).stderr(Stdio::null()).spawn().unwrap();
    let beat = work.base().join("a/attempts/1.beat");
    wait_until("two heartbeats", || {
        std::fs::read_to_string(&beat).is_ok_and(|t| t.trim().parse::<u64>().is_ok_and(|n| n >= 2))
    });
    let ledger = work.ledger();
    let running = attempts(&ledger, "a")[0];
    assert_eq!((running["at_least"].as_bool(), running["open"].as_bool()), (Some(true), Some(true)), "{running}");
    // So many intervals of five seconds as the counter went up.
    let wall_s = number(&running["wall_s"]);
    assert!(wall_s >= 5.0 && wall_s % 5.0 == 0.0 && running["source"] == "heartbeat", "{running}");
    assert!(work.seedbed(&["ledger"]).contains(">=0.00"), "what is not over is marked");

    let start: Value =
        serde_json::from_str(&std::fs::read_to_string(work.base().join("a/attempts/1.json")).unwrap()).unwrap();
    let pid = start["pid"].as_u64().unwrap().to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    child.wait().unwrap();
    std::fs::remove_file(work.path("slow")).unwrap();
    work.ends(&[], 0);
    let ledger = work.ledger();
    let killed = attempts(&ledger, "a")[0];
    // It starts from the beginning: nobody went on from the killed one.
    assert_eq!((killed["at_least"].as_bool(), killed["waste"].as_str()), (Some(true), Some("failed")), "{killed}");
    assert!(number(&killed["wall_s"]) >= 5.0);
    assert_eq!(ledger["all"]["at_least"], true);
}

#[test]
fn with_accounting_every_run_of_a_job_counts_as_sacct_has_it() {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 4);
    slurm.set("accounting", "on");
    slurm.set("kill_wait_ms", 100);
    // Each seed checkpoints once and is requeued.
    let shell = r#"sleep 1.2; rested="$D/rested_$SEEDBED_SEED"; [ -e "$rested" ] || { touch "$rested"; exit 75; }"#;
    let lines = "resumable = true\nresources = {cpus_per_task = 2, gpus_per_node = 3, time = \"0:05:00\"}";
    let price = "price = {gpu_hour = 36.0, cpu_hour = 3.6, currency = \"EUR\"}";
    let work = Work::on(&slurm, &stage("a", shell, lines), price);
    work.ends(&["--yes"], 0);
    slurm.wait_until(|jobs| jobs.values().all(|(state, _)| state == "COMPLETED"));

    let Accounting::Records(records) = accounting::query(&slurm.client(), &[1], 1_000_000_000).unwrap() else {
        panic!("accounting is on");
    };
    assert_eq!(records.len(), 6, "{records:?}");
    let ledger = work.ledger();
    assert_eq!((ledger["source"].as_str(), ledger["all"]["attempts"].as_u64()), (Some("accounting"), Some(6)));
    let mut by_job: BTreeMap<(String, i64), f64> = BTreeMap::new();
    for charge in ledger["attempts"].as_array().unwrap() {
        let began = chrono::DateTime::parse_from_rfc3339(charge["started_at"].as_str().unwrap()).unwrap().timestamp();
        by_job.insert((charge["job"].as_str().unwrap().to_owned(), began), number(&charge["wall_s"]));
        assert_eq!((charge["gpus"].as_u64(), charge["cores"].as_u64()), (Some(3), Some(2)));
        assert!(charge["attempt"].is_u64() && charge["waste"].is_null(), "{charge}");
    }
    for record in &records {
        let key = (record.element.to_string(), record.start_s.unwrap());
        assert_eq!(by_job.get(&key), Some(&(record.elapsed_s as f64)), "{key:?} of {by_job:?}");
    }
    let seconds: u64 = records.iter().map(|r| r.elapsed_s).sum();
    let cost = number(&ledger["all"]["actual"]["cost"]);
    assert!((cost - seconds as f64 * (3.0 * 0.01 + 2.0 * 0.001)).abs() < 1e-9, "{cost} for {seconds} s");

    // The attempts' own records know nothing of the seconds before and after them.
    slurm.set("accounting", "off");
    let ledger = work.ledger();
    assert_eq!((ledger["source"].as_str(), ledger["all"]["attempts"].as_u64()), (Some("records"), Some(6)));
    for charge in ledger["attempts"].as_array().unwrap() {
        let began = chrono::DateTime::parse_from_rfc3339(charge["started_at"].as_str().unwrap()).unwrap().timestamp();
        let job = charge["job"].as_str().unwrap();
        let of_job = by_job.iter().filter(|((id, start), _)| id == job && *start <= began);
        let (_, elapsed) = of_job.max_by_key(|((_, start), _)| *start).unwrap();
        let wall_s = number(&charge["wall_s"]);
        assert!(wall_s >= 1.2 && wall_s <= elapsed + 1.0, "{charge} and {elapsed}");
    }
}

fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited a minute for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
