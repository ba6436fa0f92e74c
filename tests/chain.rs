//! `run_all` on a fake Slurm: the chain, one sick seed, checkpoints, and everything that can go wrong between sbatch
//! and its reply.

use crate::support::chain::{Chain, Cluster, text};
use crate::support::fake_slurm::FakeSlurm;

/// A fake Slurm and a study on it.
fn chain(lines: &'static str, seeds: &[u32]) -> (FakeSlurm, Chain) {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 4);
    let chain = Chain::new(Cluster { path: slurm.path(), lines }, seeds);
    (slurm, chain)
}

#[test]
fn eight_stages_are_eight_calls_whatever_the_number_of_seeds() {
    let (slurm, chain) = chain("", &[42, 7, 1337]);
    chain.runs_to_its_seals();
    assert_eq!(slurm.count("sbatch"), 8);
}

#[test]
fn a_sick_seed_ends_alone_and_is_named() {
    let (slurm, chain) = chain("", &[42, 1337]);
    chain.survives_a_sick_seed(false);
    assert_eq!(slurm.count("sbatch"), 13);
}

#[test]
fn a_site_without_the_flag_gets_one_job_for_each_cell() {
    let (slurm, chain) = chain("kill_on_invalid_dep = false", &[42, 1337]);
    chain.survives_a_sick_seed(true);
    let calls = slurm.calls();
    let dependencies = calls.iter().flatten().filter(|word| word.starts_with("--dependency="));
    assert!(dependencies.clone().count() > 0 && dependencies.clone().all(|d| !d.contains("aftercorr")), "{calls:?}");
}

#[test]
fn a_checkpoint_leads_to_a_requeue_in_place() {
    let (slurm, chain) = chain("", &[42, 1337]);
    chain.goes_on_after_a_checkpoint();
    assert_eq!(slurm.count("sbatch"), 5);
}

#[test]
fn the_warning_before_the_time_limit_reaches_the_stage() {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 4);
    let cluster = Cluster { path: slurm.path(), lines: "grace_s = 10" };
    // Four seconds to the warning, then four to checkpoint.
    Chain::timed(cluster, &[42], "0:00:08").goes_on_after_its_time_limit();
}

#[test]
fn a_root_that_no_script_can_name_is_refused() {
    let (slurm, chain) = chain("", &[42]);
    let output = chain.run_all(&["--root", "a\nb"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("control character") || said.contains("newline"), "{said}");
    assert_eq!(slurm.count("sbatch"), 0);
}

#[test]
fn a_lost_reply_is_found_by_name_and_nothing_is_submitted_twice() {
    let (slurm, chain) = chain("", &[42]);
    slurm.set("hold", 1);
    for kind in ["lose", "silent", "lose"] {
        slurm.fault("sbatch", kind, "");
    }
    let jobs = chain.submit(&[]);
    assert_eq!((jobs.len(), slurm.count("sbatch"), slurm.jobs().len()), (8, 8, 8));
    assert_eq!(chain.submit(&[]), Vec::<u32>::new(), "all of it is queued");
    assert_eq!(slurm.count("sbatch"), 8);
    slurm.set("hold", 0);
    assert!(slurm.run("scontrol", &["release", "1"]).status.success());
    chain.wait(&jobs);
    assert_eq!(chain.not_done(), Vec::<String>::new());
}

#[test]
fn a_run_all_that_is_killed_while_it_submits_is_taken_up_by_the_next() {
    let (slurm, chain) = chain("", &[42, 1337]);
    slurm.set("hold", 1);
    // Slurm takes the third job, and the reply never comes.
    for kind in ["banner", "banner", "hang"] {
        slurm.fault("sbatch", kind, "");
    }
    let mut first = chain.start_run_all();
    slurm.wait_until(|jobs| jobs.len() == 6);
    first.kill().unwrap();
    first.wait().unwrap();
    let jobs = chain.submit(&[]);
    assert_eq!((jobs.len(), slurm.count("sbatch")), (5, 3 + 5), "stages 3 to 7, each once");
    assert_eq!(slurm.jobs().len(), 7 * 2 + 1);
    slurm.set("hold", 0);
    assert!(slurm.run("scontrol", &["release", "1"]).status.success());
    chain.wait(&jobs);
    assert_eq!(chain.not_done(), Vec::<String>::new());
}

#[test]
fn a_refusal_in_the_middle_leaves_what_is_queued_and_goes_on_from_there() {
    let (slurm, chain) = chain("", &[42, 1337]);
    slurm.set("hold", 1);
    for kind in ["banner", "banner", "fail"] {
        slurm.fault("sbatch", kind, "Batch job submission failed: Invalid account");
    }
    let output = chain.run_all(&[]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("Invalid account"), "{said}");
    let jobs = chain.submit(&[]);
    assert_eq!(jobs.len(), 6, "stages 2 to 7");
    assert_eq!(slurm.count("sbatch"), 3 + 6);
    slurm.set("hold", 0);
    assert!(slurm.run("scontrol", &["release", "1"]).status.success());
    chain.wait(&jobs);
    assert_eq!(chain.not_done(), Vec::<String>::new());
}

#[test]
fn a_controller_that_is_down_is_said_and_nothing_changes() {
    let (slurm, chain) = chain("", &[42]);
    slurm.set("down", 1);
    let output = chain.run_all(&[]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("does not answer"), "{said}");
    assert_eq!(slurm.count("sbatch"), 0);
    // Looking goes on without it.
    assert_eq!(chain.not_done().len(), 8);
}

#[test]
fn seeds_join_later_and_the_study_wide_cell_waits_for_all() {
    let (slurm, chain) = chain("", &[42, 1337]);
    slurm.set("hold", 1);
    let first = chain.submit(&["--seeds", "42"]);
    let second = chain.submit(&["--seeds", "1337"]);
    assert_eq!((first.len(), second.len()), (8, 8));
    slurm.set("hold", 0);
    assert!(slurm.run("scontrol", &["release", "1"]).status.success());
    chain.wait(&[first, second].concat());
    assert_eq!(chain.not_done(), Vec::<String>::new());
}
