//! `seedbed explain`: every cause that a chain can be in, by its name, with what to type.

use serde_json::Value;

use seedbed::workflow::lock::{Hold, IfHeld, Lock};

use super::{chain, held};
use crate::support::chain::{Chain, Cluster, text};
use crate::support::fake_slurm::FakeSlurm;

/// The reasons of one cell: `cell: cause`, the nearest first.
fn causes(chain: &Chain, arguments: &[&str]) -> Vec<String> {
    let reasons = reasons(chain, arguments);
    reasons.iter().map(|r| format!("{}: {}", r["cell"].as_str().unwrap(), r["cause"].as_str().unwrap())).collect()
}

fn reasons(chain: &Chain, arguments: &[&str]) -> Vec<Value> {
    let said = chain.json("explain", arguments);
    let cells = said["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 1, "{said:#}");
    cells[0]["reasons"].as_array().unwrap().clone()
}

fn said(chain: &Chain, arguments: &[&str]) -> String {
    let output = chain.seedbed("explain", arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// A study of three stages with these bodies, in place of the eight.
fn small(bodies: [&str; 3], more: &str) -> Chain {
    let slurm = FakeSlurm::new();
    let chain = Chain::new(Cluster { path: slurm.path(), lines: "" }, &[42]);
    let mut study = "schema = 1\n[study]\nname = \"chain\"\nseeds = [42]\n".to_owned();
    for (i, (name, body)) in ["first", "second", "third"].iter().zip(bodies).enumerate() {
        let needs = if i == 0 { String::new() } else { format!("needs = [\"{}\"]\n", ["first", "second"][i - 1]) };
        study.push_str(&format!(
            "[[stage]]\nname = \"{name}\"\n{needs}command = ['sh', '-c', '''{body}''']\nresources = {{time = \"0:05:00\"}}\n"
        ));
        if i == 0 {
            study.push_str(more);
        }
    }
    std::fs::write(chain.path("configs/chain.toml"), study).unwrap();
    chain
}

fn run_here(chain: &Chain) -> String {
    text(&chain.run_all(&["--local"]))
}

#[test]
fn a_sick_seed_is_the_root_of_all_behind_it() {
    let (_slurm, chain) = chain(&[42, 1337]);
    chain.touch("sick");
    let jobs = chain.submit(&[]);
    chain.wait(&jobs);
    let root = "train_monotonic/seed-1337: failed";
    assert_eq!(causes(&chain, &["train_monotonic", "--seed", "1337"]), [root]);
    let behind = ["evaluate/seed-1337: cancelled-by-slurm", "evaluate/seed-1337: parent-not-done", root];
    assert_eq!(causes(&chain, &["evaluate", "--seed", "1337"]), behind);
    assert_eq!(causes(&chain, &["aggregate"]), ["aggregate: before-attempt", "aggregate: parent-not-done", root]);
    assert_eq!(causes(&chain, &["setup", "--seed", "1337"]), ["setup/seed-1337: done"]);
    // The stage of a healthy seed is done, and its flag says that another is not.
    assert_eq!(causes(&chain, &["uat", "--seed", "42"]), ["uat/seed-42: done", "uat/seed-42: flag-missing"]);

    let gate = &reasons(&chain, &["aggregate"])[0];
    assert!(gate["log"].to_string().contains("needed cell uat/seed-1337 is not sealed"), "{gate:#}");
    let text = said(&chain, &["evaluate", "--seed", "1337"]);
    for words in [
        "evaluate/seed-1337 is cancelled\n",
        "it needs train_monotonic/seed-1337, which is failed",
        "  train_monotonic/seed-1337:\n",
        "ended with exit 3 (failed)",
        "-> `seedbed logs configs/chain.toml --cluster test train_monotonic --seed 1337` shows the log",
        "-> `run_all configs/chain.toml --cluster test` runs it again",
    ] {
        assert!(text.contains(words), "{words:?} in:\n{text}");
    }
}

#[test]
fn what_waits_says_for_what_down_to_slurm_s_reason() {
    let (_slurm, chain, _) = held(&[42]);
    assert_eq!(causes(&chain, &["setup"]), ["setup/seed-42: slurm-reason"]);
    let expected = ["evaluate/seed-42: dependency", "evaluate/seed-42: parent-not-done", "setup/seed-42: slurm-reason"];
    assert_eq!(causes(&chain, &["evaluate"]), expected);
    let text = said(&chain, &["evaluate"]);
    assert!(text.contains("PENDING (PartitionDown): its partition takes jobs and starts none"), "{text}");
    assert!(text.contains("-> sinfo -s"), "{text}");
    // A seed that nobody asked for, and a stage that is not there.
    for (arguments, words) in
        [(["evaluate", "--seed", "7"], "with --seeds 7"), (["evalute", "--seed", "42"], "its stages are")]
    {
        let output = chain.seedbed("explain", &arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64));
        let said = crate::support::chain::text(&output);
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn what_sbatch_said_and_did_not_say() {
    let (slurm, refused) = chain(&[42]);
    slurm.fault("sbatch", "fail", "Batch job submission failed: Invalid account");
    assert!(!refused.run_all(&[]).status.success());
    assert_eq!(causes(&refused, &["setup"]), ["setup/seed-42: refused"]);
    assert_eq!(causes(&refused, &["apply"]), ["apply/seed-42: parent-not-done", "setup/seed-42: refused"]);
    assert!(said(&refused, &["setup"]).contains("Invalid account"));

    let (slurm, lost) = chain(&[42]);
    slurm.set("hold", 1);
    slurm.fault("sbatch", "hang", "");
    let mut run_all = lost.start_run_all();
    slurm.wait_until(|jobs| jobs.len() == 1);
    run_all.kill().unwrap();
    run_all.wait().unwrap();
    assert_eq!(causes(&lost, &["setup"]), ["setup/seed-42: lost-reply"]);
    assert!(said(&lost, &["setup"]).contains("never submits it twice"));
}

#[test]
fn a_job_that_can_never_start() {
    let (slurm, chain) = chain(&[42, 1337]);
    slurm.set("ignore_kill_dep", 1);
    chain.touch("sick");
    chain.submit(&[]);
    slurm.wait_until(|jobs| jobs.values().filter(|(_, reason)| reason == "DependencyNeverSatisfied").count() == 3);
    let expected =
        ["uat/seed-1337: dead-dependency", "uat/seed-1337: parent-not-done", "train_monotonic/seed-1337: failed"];
    assert_eq!(causes(&chain, &["uat", "--seed", "1337"]), expected);
    assert!(
        said(&chain, &["uat", "--seed", "1337"]).contains("`seedbed cancel configs/chain.toml --cluster test --dead`")
    );
}

#[test]
fn a_job_that_slurm_could_not_start_and_holds() {
    let (slurm, chain, jobs) = held(&[42]);
    let (setup, _) =
        slurm.jobs().into_iter().find(|(id, _)| id.split('_').next() == Some(&jobs[0].to_string())).unwrap();
    assert!(slurm.run("scontrol", &["fake", "launch_failed", &setup]).status.success());
    slurm.set("hold", 0);
    assert_eq!(chain.states()["setup/seed-42"], "queued");
    assert_eq!(causes(&chain, &["setup"]), ["setup/seed-42: slurm-reason"]);
    let told = said(&chain, &["setup"]);
    assert!(told.contains("could not start it on a node") && told.contains("`run_all` lets it go on"), "{told}");

    let submitted = slurm.count("sbatch");
    let again = text(&chain.run_all(&[]));
    assert!(again.contains(&format!("job {setup}, which Slurm could not start and held, goes on")), "{again}");
    assert_eq!(slurm.count("sbatch"), submitted, "nothing is submitted twice");
    chain.wait(&jobs);
    assert_eq!(chain.not_done(), Vec::<String>::new());
}

#[test]
fn a_checkpoint_that_nobody_goes_on_from() {
    let slurm = FakeSlurm::new();
    let chain = Chain::new(Cluster { path: slurm.path(), lines: "options = ['--no-requeue']" }, &[42]);
    chain.touch("tired");
    let jobs = chain.submit(&["--stages", "setup,train_baseline"]);
    chain.wait(&jobs);
    assert_eq!(chain.states()["train_baseline/seed-42"], "interrupted");
    assert_eq!(causes(&chain, &["train_baseline"]), ["train_baseline/seed-42: checkpointed"]);
    assert!(said(&chain, &["train_baseline"]).contains("goes on from the checkpoint"));
}

#[test]
fn cancelled_by_a_person_and_submitted_by_nobody() {
    let (_slurm, chain, _) = held(&[42]);
    assert!(chain.seedbed("cancel", &["--stages", "uat", "--yes"]).status().unwrap().success());
    let uat = causes(&chain, &["uat"]);
    assert_eq!(uat[..2], ["uat/seed-42: cancelled", "uat/seed-42: parent-not-done"]);

    let (_slurm, fresh) = super::chain(&[42]);
    assert_eq!(causes(&fresh, &["setup"]), ["setup/seed-42: never-submitted"]);
    let lock = Lock::take(&fresh.base().join(".seedbed"), Hold::Short, IfHeld::Respect).unwrap();
    assert_eq!(causes(&fresh, &["setup"]), ["setup/seed-42: run-all-at-work"]);
    drop(lock);
}

#[test]
fn seals_that_are_stale_damaged_withdrawn_or_without_their_files() {
    let bodies = ["echo 1 > out.txt", "true", "true"];
    let chain = small(bodies, "outputs = [\"out.txt\"]\n");
    let ran = run_here(&chain);
    let first = || causes(&chain, &["first"]);
    assert_eq!(first(), ["first/seed-42: done"], "{ran}");
    let flag = chain.base().join("flags/stage_0_first_complete.flag");
    std::fs::remove_file(&flag).unwrap();
    assert_eq!(first(), ["first/seed-42: done", "first/seed-42: flag-missing"]);
    run_here(&chain);
    assert!(flag.exists());

    let file = chain.path("configs/chain.toml");
    let study = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, study.replace("echo 1", "echo 2")).unwrap();
    assert_eq!(first(), ["first/seed-42: parameter-changed"]);
    let second = causes(&chain, &["second"]);
    assert_eq!(
        second,
        ["second/seed-42: parent-changed", "second/seed-42: parent-not-done", "first/seed-42: parameter-changed"]
    );
    assert!(said(&chain, &["first"]).contains("echo 2"), "{}", said(&chain, &["first"]));
    std::fs::write(&file, study).unwrap();
    assert_eq!(first(), ["first/seed-42: done"]);

    let dir = chain.base().join("first/seed-42");
    std::fs::write(dir.join("invalid.json"), r#"{"who": "ada", "when": "today", "why": "wrong \u001b corpus"}"#)
        .unwrap();
    assert_eq!(first()[0], "first/seed-42: seal-withdrawn");
    assert!(said(&chain, &["first"]).contains("withdrawn by ada: wrong ? corpus"), "{}", said(&chain, &["first"]));
    std::fs::remove_file(dir.join("invalid.json")).unwrap();

    std::fs::rename(dir.join("out.txt"), dir.join("aside")).unwrap();
    assert_eq!(first(), ["first/seed-42: outputs-missing"]);
    std::fs::rename(dir.join("aside"), dir.join("out.txt")).unwrap();
    let seal = std::fs::read_to_string(dir.join("seal.json")).unwrap();
    std::fs::write(dir.join("seal.json"), seal.replacen("\"attempt\": 1", "\"attempt\": 2", 1)).unwrap();
    assert_eq!(first(), ["first/seed-42: seal-damaged"]);
    std::fs::remove_file(dir.join("seal.json")).unwrap();
    assert_eq!(first(), ["first/seed-42: seal-gone"]);
}

#[test]
fn results_that_warn_are_told_with_what_to_look_at() {
    let warnings =
        r#"{"warnings": ["UAT succeeds on 2.0 % of the texts: a weak attack", "perplexity gap 30 % is above 20 %"]}"#;
    let body = format!("mkdir seed-1 seed-2; for i in 1 2; do echo '{warnings}' > seed-$i/final_results.json; done");
    let chain = small([&body, "true", "true"], "outputs = [\"seed-1\", \"seed-2\"]\n");
    let ran = run_here(&chain);
    let expected = ["first/seed-42: done", "first/seed-42: weak-attack", "first/seed-42: off-pattern"];
    assert_eq!(causes(&chain, &["first"]), expected, "{ran}");
    let text = said(&chain, &["first"]);
    assert!(text.contains("(seed-1/final_results.json, seed-2/final_results.json): UAT succeeds on 2.0 %"), "{text}");
    assert!(text.contains("docs/troubleshooting.md, \"Weak attacks\""), "{text}");
}

#[test]
fn a_stop_reaches_all_behind_it() {
    let chain = small(["echo '\"no signal\"' > evidence.json; exit 78", "true", "true"], "");
    run_here(&chain);
    assert_eq!(causes(&chain, &["first"]), ["first/seed-42: stopped"]);
    let third = causes(&chain, &["third"]);
    assert_eq!(third, ["third/seed-42: stopped-upstream"]);
    let text = said(&chain, &["third"]);
    assert!(text.contains("no signal") && text.contains("--retry-stopped"), "{text}");
}

#[test]
fn exit_codes_have_their_names() {
    for (body, cause) in [
        ("exit 1", "failed"),
        ("exit 64", "wrong-usage"),
        ("exit 65", "stale-input"),
        ("exit 66", "missing-input"),
        ("true", "bad-outputs"),
        ("exit 71", "collective-timeout"),
        ("exit 73", "cannot-write"),
        ("no-such-program-anywhere", "no-program"),
        ("kill -9 $$", "killed"),
    ] {
        let chain = small([&format!("echo a hint; {body}"), "true", "true"], "outputs = [\"out.txt\"]\n");
        let ran = run_here(&chain);
        assert_eq!(causes(&chain, &["first"]), [format!("first/seed-42: {cause}")], "{ran}");
        let log = reasons(&chain, &["first"])[0]["log"].to_string();
        assert!(log.contains("a hint"), "{log}");
        assert_eq!(chain.states()["first/seed-42"], "failed");
    }
}
