//! `seedbed cancel`: the whole chain and parts of it, children first; and what it does not touch.

use std::process::Output;

use super::{calls, cell, chain, go_on, held, since};
use crate::support::chain::{Chain, text};
use crate::support::fake_slurm::FakeSlurm;

fn cancel(chain: &Chain, arguments: &[&str]) -> Output {
    chain.seedbed("cancel", arguments).arg("--yes").output().unwrap()
}

/// It must succeed; what it says.
fn cancelled(chain: &Chain, arguments: &[&str]) -> String {
    let output = cancel(chain, arguments);
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// The jobs of each call of scancel.
fn scancels(slurm: &FakeSlurm) -> Vec<Vec<u32>> {
    let calls = slurm.calls();
    let calls = calls.iter().filter(|call| call[0] == "scancel");
    calls.map(|c| c[1..].iter().map(|id| id.split('_').next().unwrap().parse().unwrap()).collect()).collect()
}

#[test]
fn the_whole_chain_goes_children_first_and_comes_back() {
    let (slurm, chain, jobs) = held(&[42, 1337]);
    let said = cancelled(&chain, &[]);
    assert!(said.contains("cancelled 15 cells"), "{said}");
    assert!(slurm.jobs().values().all(|(state, _)| state == "CANCELLED"), "{:?}", slurm.jobs());
    let order = scancels(&slurm);
    assert_eq!(order.first().unwrap(), &[jobs[7]], "the aggregation first");
    assert!(order.last().unwrap().iter().all(|job| *job == jobs[0]), "and stage 0 last: {order:?}");
    let place = |job: u32| order.iter().position(|call| call.contains(&job)).unwrap();
    for (parent, child) in [(0, 1), (0, 2), (1, 3), (3, 4), (2, 5), (6, 7)] {
        assert!(place(jobs[child]) < place(jobs[parent]), "{child} before {parent}: {order:?}");
    }
    let status = chain.json("status", &[]);
    let setup = cell(&status, "setup/seed-42");
    assert_eq!((&setup["state"], &setup["liveness"]), (&"cancelled".into(), &"ended".into()));
    assert!(setup["detail"].as_str().unwrap().contains("cancelled by `seedbed cancel`"), "{setup:#}");
    // Once more does nothing; and the chain comes back.
    let before = calls(&slurm);
    assert!(cancelled(&chain, &[]).contains("there is nothing to cancel"));
    assert!(!since(&before, &slurm).contains_key("scancel"));
    assert_eq!(chain.submit(&[]).len(), 8);
}

#[test]
fn a_chain_is_looked_at_cancelled_and_taken_up() {
    let (_slurm, chain) = chain(&[42, 1337]);
    chain.is_looked_at_cancelled_and_taken_up();
}

#[test]
fn one_seed_goes_with_what_is_behind_it_and_the_others_stay() {
    let (slurm, chain, jobs) = held(&[42, 1337]);
    cancelled(&chain, &["--stages", "train_monotonic", "--seeds", "1337"]);
    let states = chain.states();
    for stage in ["train_monotonic", "evaluate", "uat", "hotflip"] {
        assert_eq!(states[&format!("{stage}/seed-1337")], "cancelled");
        assert_eq!(states[&format!("{stage}/seed-42")], "queued");
    }
    for cell in ["setup/seed-1337", "train_baseline/seed-1337", "aggregate"] {
        assert_eq!(states[cell], "queued", "{cell}");
    }
    go_on(&slurm);
    chain.wait(&jobs);
    let mut open = chain.not_done();
    open.sort();
    assert_eq!(
        open,
        ["aggregate", "evaluate/seed-1337", "hotflip/seed-1337", "train_monotonic/seed-1337", "uat/seed-1337"]
    );
    let again = chain.submit(&[]);
    chain.wait(&again);
    assert_eq!(chain.not_done(), Vec::<String>::new());
}

#[test]
fn what_gathers_all_goes_when_all_that_it_waits_for_goes() {
    let (_slurm, chain, _) = held(&[42, 1337]);
    cancelled(&chain, &["--seeds", "42,1337"]);
    let states = chain.states();
    assert!(states.values().all(|state| state == "cancelled"), "{states:?}");
}

#[test]
fn a_running_cell_is_told_to_end_and_goes_on_later() {
    let (slurm, chain) = chain(&[42]);
    slurm.set("kill_wait_ms", 2000);
    chain.touch("slow");
    let jobs = chain.submit(&["--stages", "setup,train_baseline"]);
    slurm.wait_until(|_| chain.base().join("train_baseline/seed-42/log.txt").exists());
    let said = cancelled(&chain, &[]);
    assert!(said.contains("(1 running)") && said.contains("cancelled 1 cell"), "{said}");
    assert_eq!(slurm.state_of(&format!("{}_0", jobs[1])), "CANCELLED");
    chain.remove("slow");
    let again = chain.submit(&["--stages", "setup,train_baseline"]);
    assert_eq!(again.len(), 1, "what is sealed stays sealed");
    chain.wait(&again);
    assert_eq!(chain.states()["train_baseline/seed-42"], "done");
}

#[test]
fn jobs_that_can_never_start_are_found_and_cleared() {
    let (slurm, chain) = chain(&[42, 1337]);
    slurm.set("ignore_kill_dep", 1);
    chain.touch("sick");
    chain.submit(&[]);
    slurm.wait_until(|jobs| {
        let dead = jobs.values().filter(|(_, reason)| reason == "DependencyNeverSatisfied").count();
        dead == 3 && jobs.values().filter(|(state, _)| state == "COMPLETED").count() == 2 * 7 - 4
    });
    let states = chain.states();
    for stage in ["evaluate", "uat", "hotflip"] {
        assert_eq!(states[&format!("{stage}/seed-1337")], "blocked");
    }
    assert_eq!(states["aggregate"], "queued", "it would wait for ever");
    let said = cancelled(&chain, &["--dead"]);
    assert!(said.contains("cancelled 3 cells"), "{said}");
    slurm.wait_idle();
    assert_eq!(slurm.jobs().values().filter(|(state, _)| state == "PENDING").count(), 0, "{:?}", slurm.jobs());
    assert_eq!(chain.states()["evaluate/seed-42"], "done");
}

#[test]
fn run_all_takes_dead_jobs_out_of_the_queue_itself() {
    let (slurm, chain) = chain(&[42, 1337]);
    slurm.set("ignore_kill_dep", 1);
    chain.touch("sick");
    chain.submit(&[]);
    slurm.wait_until(|jobs| jobs.values().filter(|(_, reason)| reason == "DependencyNeverSatisfied").count() == 3);
    chain.remove("sick");
    let again = chain.submit(&[]);
    assert_eq!(again.len(), 5, "what failed, and what stands behind it");
    chain.wait(&again);
    slurm.wait_idle();
    assert_eq!(slurm.jobs().values().filter(|(state, _)| state == "PENDING").count(), 0, "{:?}", slurm.jobs());
    assert_eq!(chain.states()["aggregate"], "done");
}

#[test]
fn a_job_whose_reply_was_lost_is_found_by_its_name() {
    let (slurm, chain) = chain(&[42]);
    slurm.set("hold", 1);
    for kind in ["banner", "hang"] {
        slurm.fault("sbatch", kind, "");
    }
    let mut run_all = chain.start_run_all();
    slurm.wait_until(|jobs| jobs.len() == 2);
    run_all.kill().unwrap();
    run_all.wait().unwrap();
    assert_eq!(chain.states()["apply/seed-42"], "unknown");
    let said = cancelled(&chain, &[]);
    assert!(said.contains("cancelled 2 cells"), "{said}");
    assert!(slurm.jobs().values().all(|(state, _)| state == "CANCELLED"), "{:?}", slurm.jobs());
}

#[test]
fn nobody_cancels_for_another_and_nothing_where_slurm_is_silent() {
    let (slurm, chain, _) = held(&[42]);
    let journal = chain.base().join(".seedbed/journal.jsonl");
    let ours = std::fs::read_to_string(&journal).unwrap();
    let user = format!("\"user\":\"{}\"", seedbed::record::attempt::user_name());
    std::fs::write(&journal, ours.replace(&user, "\"user\":\"somebody-else\"")).unwrap();
    let output = cancel(&chain, &[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("somebody-else can cancel it"), "{said}");
    std::fs::write(&journal, ours).unwrap();
    slurm.set("down", 1);
    let output = cancel(&chain, &[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot be asked about here"), "{said}");
    slurm.set("down", 0);
    assert_eq!(slurm.count("scancel"), 0);
    assert!(cancelled(&chain, &[]).contains("cancelled 8 cells"));
}

#[test]
fn a_stage_that_is_not_there_is_named() {
    let (_slurm, chain) = chain(&[42]);
    let output = cancel(&chain, &["--stages", "uta"]);
    assert_eq!(output.status.code(), Some(64), "{}", text(&output));
    assert!(text(&output).contains("its stages are setup"), "{}", text(&output));
    assert!(cancelled(&chain, &[]).contains("nothing was ever submitted"));
}
