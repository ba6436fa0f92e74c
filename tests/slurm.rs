//! Submission, queue and accounting against the fake Slurm, and the fake itself against what a real Slurm 22.05
//! was seen to do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use seedbed::workflow::plan::EdgeKind;
use seedbed::workflow::slurm::accounting::{self, Accounting};
use seedbed::workflow::slurm::config::{Limits, Presence};
use seedbed::workflow::slurm::submit::{Edge, Found, Submitted, find_by_name, resolve, submit, test_only};
use seedbed::workflow::slurm::{Client, Element, JobState, Liveness, SlurmError, control, queue};

use crate::support::fake_slurm::FakeSlurm;

/// A fake Slurm with a folder for scripts and what they leave.
struct Place {
    slurm: FakeSlurm,
    client: Client,
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let slurm = FakeSlurm::new();
        slurm.set("max_running", 8);
        Self { client: slurm.client(), slurm, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A script with `options` (words for `#SBATCH` lines) and `body`.
    fn script(&self, name: &str, options: &str, body: &str) -> PathBuf {
        let path = self.path(&format!("{name}.sbatch"));
        let lines: String = options.split_whitespace().map(|o| format!("#SBATCH {o}\n")).collect();
        let here = self.dir.path().display();
        let text = format!(
            "#!/bin/bash\n#SBATCH --job-name={name}\n#SBATCH --output={here}/{name}_%A_%a.out\n\
             #SBATCH --open-mode=append\n{lines}cd {here}\n{body}\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Submits, and returns the id.
    fn submit(&self, name: &str, options: &str, edges: &[Edge], body: &str) -> u32 {
        match submit(&self.client, &self.script(name, options, body), edges).unwrap() {
            Submitted::Accepted(id) => id.id,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// States of the elements 0 to n - 1 of an array, in one line.
    fn states(&self, job: u32, n: u32) -> String {
        (0..n).map(|index| self.slurm.state_of(&format!("{job}_{index}"))).collect::<Vec<_>>().join(" ")
    }
}

fn after(kind: EdgeKind, job: u32) -> Edge {
    Edge { kind, parent: Element { job, index: None } }
}

const ARRAY: &str = "--array=0-2 --kill-on-invalid-dep=yes";
const FAIL_ONE: &str = r#"sleep 0.1; [ "$SLURM_ARRAY_TASK_ID" != 1 ]"#;

#[test]
fn a_sick_element_ends_its_own_children_and_the_aggregator_fires() {
    let place = Place::new();
    let a = place.submit("a", ARRAY, &[], FAIL_ONE);
    let b = place.submit("b", ARRAY, &[after(EdgeKind::AfterCorr, a)], "true");
    let c = place.submit("c", ARRAY, &[after(EdgeKind::AfterCorr, b), after(EdgeKind::AfterCorr, a)], "true");
    let end = place.submit("end", "--kill-on-invalid-dep=yes", &[after(EdgeKind::AfterAny, c)], "touch fired");
    place.slurm.wait_idle();
    assert_eq!(place.states(a, 3), "COMPLETED FAILED COMPLETED");
    assert_eq!(place.states(b, 3), "COMPLETED CANCELLED COMPLETED");
    assert_eq!(place.states(c, 3), "COMPLETED CANCELLED COMPLETED");
    assert!(place.path("fired").exists());

    let found = queue::query(&place.client, &[a, b, c, end]).unwrap();
    let sick = found.get(Element { job: c, index: Some(1) }).unwrap();
    assert_eq!((&sick.state, sick.reason.as_str()), (&JobState::Cancelled, "DependencyNeverSatisfied"));
    assert_eq!(found.of_job(end).next().unwrap().state, JobState::Completed);
    assert_eq!(place.slurm.count("squeue"), 1, "four jobs are one question");
}

#[test]
fn without_the_flag_a_dead_element_hangs_what_is_behind_it() {
    let place = Place::new();
    let a = place.submit("a", "--array=0-2", &[], FAIL_ONE);
    let b = place.submit("b", "--array=0-2", &[after(EdgeKind::AfterCorr, a)], "true");
    let end = place.submit("end", "", &[after(EdgeKind::AfterAny, b)], "true");
    place.slurm.wait_until(|jobs| jobs.values().filter(|(state, _)| state == "COMPLETED").count() == 4);
    let found = queue::query(&place.client, &[b, end]).unwrap();
    let dead = found.get(Element { job: b, index: Some(1) }).unwrap();
    assert!(dead.is_dead() && dead.liveness() == Liveness::Ended, "{dead:?}");
    assert_eq!(found.of_job(end).next().unwrap().liveness(), Liveness::Alive);
}

#[test]
fn an_element_that_requeues_itself_keeps_its_children_waiting() {
    let place = Place::new();
    let body = r#"
        if [ -z "${SLURM_RESTART_COUNT:-}" ]; then
            touch "first_$SLURM_ARRAY_TASK_ID"
            scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"; sleep 20; exit 75
        fi
        touch "second_$SLURM_ARRAY_TASK_ID""#;
    let a = place.submit("a", "--array=0-1 --requeue --kill-on-invalid-dep=yes", &[], body);
    let check = r#"[ -e "second_$SLURM_ARRAY_TASK_ID" ]"#;
    let b = place.submit("b", "--array=0-1 --kill-on-invalid-dep=yes", &[after(EdgeKind::AfterCorr, a)], check);
    place.slurm.wait_idle();
    assert_eq!(place.states(a, 2), "COMPLETED COMPLETED");
    assert_eq!(place.states(b, 2), "COMPLETED COMPLETED");
    assert!(place.path("first_0").exists() && place.path("first_1").exists());

    let forbidden = place.submit("c", "--no-requeue", &[], "sleep 20");
    place.slurm.wait_until(|jobs| jobs[&forbidden.to_string()].0 == "RUNNING");
    let element = Element { job: forbidden, index: None };
    let error = control::requeue(&place.client, element).unwrap_err().to_string();
    assert!(error.contains("presently disabled"), "{error}");
    control::cancel(&place.client, &[element]).unwrap();
    place.slurm.wait_idle();
    assert_eq!(place.slurm.state_of(&forbidden.to_string()), "CANCELLED");
    control::cancel(&place.client, &[element, Element { job: 9999, index: None }]).unwrap();
}

#[test]
fn the_warning_reaches_the_program_that_the_script_became() {
    let place = Place::new();
    // As a job script does: exec, so that the batch process is the program.
    let program = place.path("program");
    let text = "#!/bin/bash\ntrap 'touch warned; exit 75' USR2\nfor _ in $(seq 100); do sleep 0.05; done\n";
    std::fs::write(&program, text).unwrap();
    let exec = format!("exec bash {}", program.display());
    let a = place.submit("a", "--time=00:00:03 --signal=B:USR2@2", &[], &exec);
    let b = place.submit("b", "--time=00:00:01", &[], "sleep 30");
    let c = place.submit("c", "", &[after(EdgeKind::AfterOk, b)], "true");
    place.slurm.set("kill_wait_ms", 100);
    place.slurm.wait_idle();
    assert!(place.path("warned").exists());
    let state = |id: u32| place.slurm.jobs()[&id.to_string()].clone();
    assert_eq!(state(a).0, "FAILED");
    assert_eq!(state(b).0, "TIMEOUT");
    assert_eq!(state(c), ("PENDING".to_owned(), "DependencyNeverSatisfied".to_owned()));
}

#[test]
fn a_forgotten_parent_is_met_by_an_old_slurm_and_refused_by_a_new_one() {
    let place = Place::new();
    place.slurm.set("min_job_age_ms", 0);
    let a = place.submit("a", "", &[], "false");
    place.slurm.wait_idle();
    let b = place.submit("b", "", &[after(EdgeKind::AfterOk, a)], "true");
    place.slurm.wait_idle();
    assert_eq!(place.slurm.state_of(&b.to_string()), "COMPLETED", "behind a parent that had failed");
    place.slurm.set("rules", "new");
    let script = place.script("c", "", "true");
    let refused = submit(&place.client, &script, &[after(EdgeKind::AfterOk, a)]).unwrap();
    assert!(matches!(&refused, Submitted::Refused(why) if why.contains("dependency problem")), "{refused:?}");
    // Forgotten is no error, and no answer.
    let found = queue::query(&place.client, &[a]).unwrap();
    assert_eq!(found.entries().count(), 0);
}

#[test]
fn preemption_and_a_lost_node_requeue_and_a_log_is_appended() {
    let place = Place::new();
    place.slurm.set("kill_wait_ms", 100);
    let body = "echo \"run ${SLURM_RESTART_COUNT:-0}\"; [ \"${SLURM_RESTART_COUNT:-0}\" = 2 ] || sleep 20";
    let a = place.submit("a", "--requeue --array=4", &[], body);
    for (restart, kind) in ["preempt", "node_fail"].into_iter().enumerate() {
        let line = format!("run {restart}");
        let log = place.path(&format!("a_{a}_4.out"));
        place.slurm.wait_until(|_| std::fs::read_to_string(&log).unwrap_or_default().contains(&line));
        assert!(place.slurm.run("scontrol", &["fake", kind, &format!("{a}_4")]).status.success());
    }
    place.slurm.wait_idle();
    assert_eq!(place.slurm.state_of(&format!("{a}_4")), "COMPLETED");
    let log = std::fs::read_to_string(place.path(&format!("a_{a}_4.out"))).unwrap();
    assert_eq!(log, "run 0\nrun 1\nrun 2\n");

    assert_eq!(accounting::query(&place.client, &[a], 1_000_000_000).unwrap(), Accounting::Disabled);
    assert_eq!(accounting::query(&place.client, &[a], 1_000_000_000).unwrap(), Accounting::Disabled);
    assert_eq!(place.slurm.count("sacct"), 1, "asked once");
    place.slurm.set("accounting", "on");
    let Accounting::Records(records) = accounting::query(&place.slurm.client(), &[a], 1_000_000_000).unwrap() else {
        panic!("accounting is on");
    };
    let states: Vec<_> = records.iter().map(|r| r.state.word()).collect();
    assert_eq!(states, ["PREEMPTED", "NODE_FAIL", "COMPLETED"]);
}

#[test]
fn a_lost_reply_is_uncertain_and_found_by_name() {
    let place = Place::new();
    for (kind, job) in [("lose", "m.a.1"), ("silent", "m.a.2"), ("hang", "m.a.3")] {
        let client = place.slurm.client().with_limits(Duration::from_secs(10), Duration::from_millis(700));
        let script = place.script(job, "--array=0-1", "true");
        place.slurm.fault("sbatch", kind, "");
        let calls = place.slurm.count("sbatch");
        let outcome = submit(&client, &script, &[]).unwrap();
        assert!(matches!(outcome, Submitted::Uncertain(_)), "{kind}: {outcome:?}");
        assert_eq!(place.slurm.count("sbatch"), calls + 1, "{kind}: sbatch is not repeated");
        let found = resolve(&client, &[], job, Duration::from_secs(5)).unwrap();
        assert!(matches!(found, Found::Job(_)), "{kind}: {found:?}");
    }
    assert_eq!(find_by_name(&place.client, "m.a").unwrap(), Found::Nothing);
    // Two jobs of one name are not guessed between.
    let script = place.script("m.b.1", "", "true");
    submit(&place.client, &script, &[]).unwrap();
    submit(&place.client, &script, &[]).unwrap();
    assert!(matches!(find_by_name(&place.client, "m.b.1").unwrap(), Found::Several(jobs) if jobs.len() == 2));
}

#[test]
fn refusals_name_their_cause_and_banners_are_tolerated() {
    let place = Place::new();
    place.slurm.set("partitions", "debug,gpu");
    let script = place.script("a", "--partition=gpus", "true");
    let outcome = submit(&place.client, &script, &[]).unwrap();
    assert!(matches!(&outcome, Submitted::Refused(why) if why.contains("invalid partition specified: gpus")));
    assert!(test_only(&place.client, &script).unwrap().unwrap_err().contains("gpus"));
    let script = place.script("a", "--partition=gpu", "true");
    assert_eq!(test_only(&place.client, &script).unwrap(), Ok(()));
    assert!(place.slurm.jobs().is_empty(), "nothing was submitted");

    place.slurm.fault("sbatch", "banner", "");
    assert!(matches!(submit(&place.client, &script, &[]).unwrap(), Submitted::Accepted(id) if id.id == 1));
    let script = place.script("b", "--array=0-1001", "true");
    let outcome = submit(&place.client, &script, &[]).unwrap();
    assert!(matches!(&outcome, Submitted::Refused(why) if why.contains("Invalid job array")), "{outcome:?}");
    place.slurm.fault("sbatch", "fail", "Batch job submission failed: Invalid account");
    let outcome = submit(&place.client, &place.script("c", "", "true"), &[]).unwrap();
    assert_eq!(outcome, Submitted::Refused("Batch job submission failed: Invalid account".to_owned()));
}

#[test]
fn whether_there_is_a_slurm() {
    let place = Place::new();
    assert_eq!(Presence::of(&place.client).unwrap(), Presence::Ready);
    let limits = Limits::of(&place.client).unwrap();
    assert_eq!((limits.max_array_index(), limits.accounting), (1000, Some(false)));
    place.slurm.set("down", 1);
    assert!(matches!(Presence::of(&place.client).unwrap(), Presence::NotAnswering(_)));
    assert!(matches!(queue::query(&place.client, &[1]), Err(SlurmError::Failed { .. })));
    let script = place.script("a", "", "true");
    let outcome = submit(&place.client, &script, &[]).unwrap();
    assert!(matches!(&outcome, Submitted::Refused(why) if why.contains("Unable to contact")), "{outcome:?}");

    assert_eq!(Presence::of(&Client::with_path(place.dir.path())).unwrap(), Presence::NotInstalled);
    // What the programs say on a machine that belongs to no cluster.
    let bin = place.path("bin");
    std::fs::create_dir(&bin).unwrap();
    for name in ["sbatch", "scontrol"] {
        let said = "scontrol: fatal: Could not establish a configuration source";
        write_program(&bin.join(name), &format!("#!/bin/sh\necho '{said}' >&2\nexit 1\n"));
    }
    let client = Client::with_path(std::env::join_paths([bin.as_path(), Path::new("/bin")]).unwrap());
    assert!(matches!(Presence::of(&client).unwrap(), Presence::NotConfigured(_)));
}

fn write_program(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn the_shell_s_slurm_settings_do_not_reach_sbatch() {
    // In a process of its own, because the environment of this one is shared by all tests.
    let place = Place::new();
    let script = place.script("a", "--time=00:30:00", "env > environment");
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "slurm::submit_as_told", "--ignored", "--nocapture"])
        .env("SEEDBED_TEST_SUBMIT", &script)
        .env("PATH", place.slurm.path())
        .env("SBATCH_TIMELIMIT", "7")
        .env("SLURM_JOB_ID", "77")
        .env("SLURM_CONF", "/etc/slurm/of-this-cluster.conf")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    place.slurm.wait_idle();
    let environment = std::fs::read_to_string(place.path("environment")).unwrap();
    assert!(environment.contains("SLURM_CONF=/etc/slurm/of-this-cluster.conf"), "{environment}");
    assert!(environment.contains("SLURM_JOB_ID=1\n"), "{environment}");
    assert!(!environment.contains("SBATCH_TIMELIMIT"), "{environment}");
    let found = queue::query(&place.client, &[1]).unwrap();
    let entry = found.get(Element { job: 1, index: None }).unwrap();
    assert_eq!(entry.state, JobState::Completed);
}

#[test]
#[ignore = "run by the_shell_s_slurm_settings_do_not_reach_sbatch in its own process"]
fn submit_as_told() {
    let script = std::env::var_os("SEEDBED_TEST_SUBMIT").expect("the script");
    let outcome = submit(&Client::new(), Path::new(&script), &[]).unwrap();
    assert!(matches!(outcome, Submitted::Accepted(_)), "{outcome:?}");
}
