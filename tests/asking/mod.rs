//! `seedbed status`, `explain`, `logs` and `cancel` on a fake Slurm: how often it is asked, what is said where it does
//! not answer, and that looking changes nothing.

mod cancel;
mod explain;
mod logs;
mod watch;

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::chain::{Chain, Cluster, text};
use crate::support::fake_slurm::FakeSlurm;

/// A fake Slurm and the study of eight stages on it.
fn chain(seeds: &[u32]) -> (FakeSlurm, Chain) {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 4);
    let chain = Chain::new(Cluster { path: slurm.path(), lines: "" }, seeds);
    (slurm, chain)
}

/// The same, submitted, and nothing starts.
fn held(seeds: &[u32]) -> (FakeSlurm, Chain, Vec<u32>) {
    let (slurm, chain) = chain(seeds);
    slurm.set("hold", 1);
    let jobs = chain.submit(&[]);
    (slurm, chain, jobs)
}

fn go_on(slurm: &FakeSlurm) {
    slurm.set("hold", 0);
    assert!(slurm.run("scontrol", &["release", "1"]).status.success());
}

/// One cell of `seedbed status --format json`.
fn cell<'a>(status: &'a Value, name: &str) -> &'a Value {
    let cells = status["cells"].as_array().unwrap();
    cells.iter().find(|c| c["cell"] == name).unwrap_or_else(|| panic!("no {name} in {status:#}"))
}

/// Calls by command.
fn calls(slurm: &FakeSlurm) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for call in slurm.calls() {
        *counts.entry(call[0].clone()).or_default() += 1;
    }
    counts
}

fn since(before: &BTreeMap<String, usize>, slurm: &FakeSlurm) -> BTreeMap<String, usize> {
    let now = calls(slurm).into_iter();
    now.map(|(name, n)| (name.clone(), n - before.get(&name).unwrap_or(&0))).filter(|(_, n)| *n > 0).collect()
}

fn kill(mut child: Child) -> String {
    child.kill().unwrap();
    text(&child.wait_with_output().unwrap())
}

#[test]
fn five_watchers_ask_slurm_once_in_fifteen_seconds() {
    let (slurm, chain, _) = held(&[42, 1337]);
    let before = calls(&slurm);
    let began = Instant::now();
    let watcher = || {
        let mut command = chain.seedbed("status", &["--watch"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let watchers: Vec<Child> = (0..5).map(|_| watcher()).collect();
    std::thread::sleep(Duration::from_secs(20));
    let seconds = began.elapsed().as_secs();
    let asked = since(&before, &slurm);
    let said: Vec<String> = watchers.into_iter().map(kill).collect();
    for text in &said {
        assert!(text.contains("setup/seed-42") && text.contains("queued"), "{text}");
    }
    // At once, and every 15 seconds from then on: five that ask for themselves would have asked ten times.
    let most = 1 + usize::try_from(seconds / 15).unwrap();
    let once = BTreeMap::from([("squeue".to_owned(), most)]);
    assert_eq!(asked, once, "in {seconds} s");
    // Whoever comes while the answer is fresh gets it.
    chain.let_answers_age();
    for _ in 0..3 {
        assert_eq!(cell(&chain.json("status", &[]), "setup/seed-42")["state"], "queued");
    }
    assert_eq!(since(&before, &slurm), BTreeMap::from([("squeue".to_owned(), most + 1)]));
}

#[test]
fn ids_are_asked_for_together_and_only_those_that_are_not_sealed() {
    let (slurm, chain, jobs) = held(&[42]);
    chain.json("status", &[]);
    let list = |slurm: &FakeSlurm| {
        let calls = slurm.calls();
        let last = calls.iter().rev().find(|call| call[0] == "squeue").unwrap().clone();
        last[last.iter().position(|word| word == "-j").unwrap() + 1].clone()
    };
    let ids = |jobs: &[u32]| jobs.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    assert_eq!(list(&slurm), format!("1,{}", ids(&jobs)));
    go_on(&slurm);
    chain.wait(&jobs);
    let before = calls(&slurm);
    chain.let_answers_age();
    assert_eq!(chain.not_done(), Vec::<String>::new());
    assert_eq!(since(&before, &slurm), BTreeMap::new(), "all is sealed: there is nothing to ask");
}

#[test]
fn a_submission_is_seen_at_once() {
    let (slurm, chain, _) = held(&[42]);
    assert_eq!(chain.states().len(), 8);
    let before = calls(&slurm);
    chain.submit(&["--seeds", "7"]);
    let submitted = since(&before, &slurm)["squeue"];
    assert_eq!(chain.states()["setup/seed-42"], "queued");
    assert_eq!(chain.states()["uat/seed-7"], "queued", "new jobs are not in the old answer");
    assert_eq!(since(&before, &slurm)["squeue"], submitted + 1);
}

/// One seed dies; then Slurm forgets all of it.
fn forgotten(accounting: &str) -> (FakeSlurm, Chain, BTreeMap<String, usize>) {
    let (slurm, chain) = chain(&[42, 1337]);
    slurm.set("accounting", accounting);
    chain.touch("sick");
    let jobs = chain.submit(&[]);
    chain.wait(&jobs);
    slurm.set("min_job_age_ms", 0);
    let before = calls(&slurm);
    (slurm, chain, before)
}

#[test]
fn without_accounting_ends_are_told_by_attempts_and_never_guessed() {
    let (slurm, chain, before) = forgotten("off");
    let status = chain.json("status", &[]);
    let sick = cell(&status, "train_monotonic/seed-1337");
    assert_eq!(
        (&sick["state"], &sick["cause"], &sick["liveness"]),
        (&"failed".into(), &"exit".into(), &"ended".into())
    );
    assert!(sick["detail"].as_str().unwrap().contains("ended with exit 3"), "{sick:#}");
    // It never began, and nobody is left who knows why: Slurm has ended it, and that is all.
    let behind = cell(&status, "evaluate/seed-1337");
    assert_eq!((&behind["cause"], &behind["liveness"]), (&"unexplained".into(), &"ended".into()), "{behind:#}");
    assert_eq!(status["slurm"]["accounting"], false);
    for _ in 0..3 {
        chain.let_answers_age();
        chain.json("status", &[]);
    }
    let asked = since(&before, &slurm);
    assert_eq!((asked["squeue"], asked["sacct"]), (4, 1), "that there is no accounting is remembered");
}

#[test]
fn accounting_is_asked_only_for_what_is_still_unknown() {
    let (slurm, chain, before) = forgotten("on");
    let status = chain.json("status", &[]);
    assert_eq!(cell(&status, "train_monotonic/seed-1337")["cause"], "exit");
    for stage in ["evaluate", "uat", "hotflip"] {
        let behind = cell(&status, &format!("{stage}/seed-1337"));
        assert_eq!((&behind["state"], &behind["cause"]), (&"cancelled".into(), &"cancelled".into()), "{behind:#}");
    }
    // The aggregation was refused by its gate: Slurm alone has its exit code.
    let aggregate = cell(&status, "aggregate");
    assert!(aggregate["detail"].as_str().unwrap().contains("exit 66 (missing input)"), "{aggregate:#}");
    chain.let_answers_age();
    chain.json("status", &[]);
    let asked = since(&before, &slurm);
    assert_eq!((asked["squeue"], asked["sacct"]), (2, 1), "an end does not change");
    // One question for all jobs that nothing else explains: not for the sick stage, whose attempt has said its end.
    let calls = slurm.calls();
    let sacct = calls.iter().find(|call| call[0] == "sacct").unwrap();
    let ids = &sacct[sacct.iter().position(|word| word == "-j").unwrap() + 1];
    assert_eq!(ids.split(',').count(), 4, "{sacct:?}");
}

#[test]
fn an_accounting_that_fails_is_said_and_left_alone_for_a_while() {
    let (slurm, chain, before) = forgotten("on");
    slurm.fault("sacct", "fail", "Unable to contact slurmdbd");
    let status = chain.json("status", &[]);
    assert_eq!(cell(&status, "evaluate/seed-1337")["cause"], "unexplained");
    assert!(status["notes"].to_string().contains("Unable to contact slurmdbd"), "{status:#}");
    chain.let_answers_age();
    chain.json("status", &[]);
    assert_eq!(since(&before, &slurm)["sacct"], 1);
}

#[test]
fn a_state_that_is_not_known_is_unknown_and_nothing_is_submitted_twice() {
    let (slurm, chain, jobs) = held(&[42]);
    let job = jobs[0].to_string();
    assert!(slurm.run("scontrol", &["fake", "shown", &job, "EXPEDITING"]).status.success());
    let status = chain.json("status", &[]);
    let setup = cell(&status, "setup/seed-42");
    assert_eq!((&setup["state"], &setup["liveness"]), (&"unknown".into(), &"unknown".into()), "{setup:#}");
    assert!(setup["detail"].as_str().unwrap().contains("\"EXPEDITING\""), "{setup:#}");
    assert_eq!(chain.submit(&[]), Vec::<u32>::new());
    assert!(slurm.run("scontrol", &["fake", "shown", &job, ""]).status.success());
    chain.let_answers_age();
    assert_eq!(chain.states()["setup/seed-42"], "queued");
}

#[test]
fn a_controller_that_is_down_makes_nothing_ended_and_is_not_asked_by_everybody() {
    let (slurm, chain, jobs) = held(&[42]);
    assert_eq!(chain.states()["setup/seed-42"], "queued");
    let journal = std::fs::read(chain.base().join(".seedbed/journal.jsonl")).unwrap();
    slurm.set("down", 1);
    chain.let_answers_age();
    let before = calls(&slurm);
    for _ in 0..4 {
        let status = chain.json("status", &[]);
        for cell in status["cells"].as_array().unwrap() {
            assert_eq!((&cell["state"], &cell["liveness"]), (&"unknown".into(), &"unknown".into()), "{cell:#}");
        }
        let detail = cell(&status, "setup/seed-42")["detail"].as_str().unwrap();
        assert!(detail.contains("when it answered last, it was PENDING"), "{detail}");
        assert!(status["notes"].to_string().contains("Unable to contact slurm controller"), "{status:#}");
    }
    assert_eq!(since(&before, &slurm), BTreeMap::from([("squeue".to_owned(), 1)]));
    slurm.set("down", 0);
    chain.let_answers_age();
    assert_eq!(chain.states()["setup/seed-42"], "queued", "it is there again");
    assert_eq!(std::fs::read(chain.base().join(".seedbed/journal.jsonl")).unwrap(), journal, "looking changes nothing");
    go_on(&slurm);
    chain.wait(&jobs);
    assert_eq!(chain.not_done(), Vec::<String>::new());
}

#[test]
fn jobs_of_another_cluster_are_unknown_and_their_ids_are_not_taken_for_ours() {
    let (slurm, chain, _) = held(&[42]);
    // The same study, looked at from a cluster of another name that has jobs with the same ids.
    let other = FakeSlurm::new();
    other.set("hold", 1);
    for _ in 0..8 {
        let script = chain.path("other.sh");
        std::fs::write(&script, "#!/bin/sh\n#SBATCH --job-name=somebody\ntrue\n").unwrap();
        assert!(other.run("sbatch", &[script.to_str().unwrap()]).status.success());
    }
    let look = |slurm: &FakeSlurm| {
        let mut command = chain.program(env!("CARGO_BIN_EXE_seedbed"));
        command.args(["status", "configs/chain.toml", "--format", "json"]).env("PATH", slurm.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let there = look(&other);
    assert_eq!(cell(&there, "setup/seed-42")["state"], "unknown", "{there:#}");
    // At home the jobs prove by their names that it is their cluster, whatever it is called.
    chain.let_answers_age();
    let home = look(&slurm);
    assert_eq!(cell(&home, "setup/seed-42")["state"], "queued", "{home:#}");
}

#[test]
fn a_watch_ends_when_nothing_can_happen_any_more() {
    let (slurm, chain) = chain(&[42, 1337]);
    chain.touch("sick");
    let jobs = chain.submit(&[]);
    chain.wait(&jobs);
    let began = Instant::now();
    let output = chain.seedbed("status", &["--watch"]).output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && began.elapsed() < Duration::from_secs(10), "{said}");
    assert!(said.contains("cancelled") && said.contains("seedbed explain configs/chain.toml"), "{said}");
    drop(slurm);
}

#[test]
fn running_cells_have_their_step_loss_rate_and_time_left() {
    let (slurm, chain) = chain(&[42]);
    chain.touch("slow");
    let jobs = chain.submit(&["--stages", "setup,train_baseline"]);
    slurm.wait_until(|_| chain.base().join("train_baseline/seed-42/log.txt").exists());
    let line = |step, time_s| {
        format!(r#"{{"step":{step},"total":400,"time_s":{time_s},"values":{{"loss":2.5,"tokens_per_s":1200.0}}}}"#)
    };
    let lines = format!("{}\n{}\n", line(100, 10.0), line(200, 20.0));
    std::fs::write(chain.base().join("train_baseline/seed-42/progress.jsonl"), lines).unwrap();
    let status = chain.json("status", &[]);
    let train = cell(&status, "train_baseline/seed-42");
    assert_eq!((&train["state"], &train["liveness"]), (&"running".into(), &"alive".into()), "{train:#}");
    assert_eq!((&train["progress"]["step"], &train["progress"]["left_s"]), (&200.into(), &20.0.into()));
    let said = text(&chain.seedbed("status", &[]).output().unwrap());
    assert!(said.contains("step 200/400  loss 2.500  1200 tok/s  20.0 s left"), "{said}");
    slurm.run("scancel", &[&jobs[1].to_string()]);
    chain.wait(&jobs);
}
