//! What a cell survives on a fake Slurm: time limits, preemption, lost nodes, kills, too little memory; by itself where it
//! can, by the next `run_all` where it cannot, and never without end.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::chain::text;
use crate::support::fake_slurm::FakeSlurm;
use crate::support::work::{Stage, Work};

fn slurm() -> FakeSlurm {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 4);
    slurm.set("kill_wait_ms", 300);
    slurm
}

/// A stage `work` and one behind it.
fn work(slurm: &FakeSlurm, cluster: &str, retry: &str, lines: &str, shell: &str) -> Work {
    let child = "needs = [\"work\"]\nresources = {time = \"0:01:00\"}";
    let stages: [Stage; 2] = [("work", lines, shell), ("child", child, "echo child >> \"$D/order\"")];
    Work::new(slurm.path(), cluster, &format!("seeds = [7]\n[retry]\n{retry}"), &stages)
}

const CELL: &str = "work/seed-7";
const CHILD: &str = "child/seed-7";
const RESUMABLE: &str = "resumable = true\nresources = {mem = \"100M\", time = \"0:01:00\"}";

/// What slurmstepd says, and what srun then ends with.
const OUT_OF_MEMORY: &str = r#"[ "$SLURM_MEM_PER_NODE" -ge "$NEEDS" ] || { echo "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have been OOM Killed." >&2; exit 1; }; echo work >> "$D/order"; echo "{\"mem\": $SLURM_MEM_PER_NODE}" > metrics.json"#;

fn out_of_memory(needs: u32) -> String {
    OUT_OF_MEMORY.replace("$NEEDS", &needs.to_string())
}

/// Arguments of the calls of a command, one text a call.
fn calls(slurm: &FakeSlurm, command: &str) -> Vec<String> {
    let asks = |call: &Vec<String>| call.iter().any(|word| word == "--test-only");
    slurm.calls().into_iter().filter(|c| c[0] == command && !asks(c)).map(|call| call[1..].join(" ")).collect()
}

#[test]
fn out_of_memory_is_tried_again_with_more_in_place() {
    let slurm = slurm();
    let work = work(&slurm, "", "", RESUMABLE, &out_of_memory(200));
    let jobs = work.run();
    assert_eq!(work.story(CELL), ["out-of-memory requeue", "out-of-memory requeue", "done nothing"], "{}", work.logs());
    assert_eq!(work.end(CELL, 2)["verdict"]["adjust"]["mem_bytes"], 225u64 << 20);
    assert!(work.end(CELL, 1)["cause"].as_str().unwrap().contains("requeued with memory 150M (1 of 2)"));
    assert_eq!(work.metrics(CELL)["mem"], 225);
    assert!(work.is_sealed(CHILD));
    assert_eq!(work.lines("order"), ["work", "child"], "the child waited");
    assert_eq!(slurm.count("sbatch"), 2);
    let first = format!("requeue {}_0", jobs[0]);
    let changes: Vec<String> =
        calls(&slurm, "scontrol").into_iter().filter(|c| c.starts_with("requeue") || c.starts_with("update")).collect();
    let update = |mem: u32| format!("update jobid={}_0 MinMemoryNode={mem}", jobs[0]);
    assert_eq!(changes, [first.clone(), update(150), first, update(225)]);
    assert_eq!(work.json(CELL, "attempts/3.json")["job"], json!({"id": format!("{}_0", jobs[0]), "restart": 2}));
}

#[test]
fn out_of_memory_ends_where_the_study_says_and_the_next_run_all_begins_there() {
    let slurm = slurm();
    let work = work(&slurm, "", "out_of_memory = 1", RESUMABLE, &out_of_memory(200));
    work.run();
    assert_eq!(work.story(CELL), ["out-of-memory requeue", "out-of-memory nothing"], "{}", work.logs());
    let cause = work.end(CELL, 2)["cause"].as_str().unwrap().to_owned();
    assert!(cause.contains("given up") && cause.contains("2 times"), "{cause}");
    let status = work.seedbed(&["status"]);
    assert!(status.contains("given up: out-of-memory 2 times"), "{status}");
    assert!(!work.is_sealed(CHILD));
    // With as much as it had last, not with what the study says.
    work.run();
    let script = std::fs::read_to_string(calls(&slurm, "sbatch")[2].split(' ').next_back().unwrap()).unwrap();
    assert!(script.contains("#SBATCH --mem=150M\n"), "{script}");
    assert_eq!(work.submitted_again()[CELL]["why"], "out-of-memory");
    // A study that says more is believed.
    let file = work.file("configs/work.toml");
    let study = std::fs::read_to_string(&file).unwrap().replace("mem = \"100M\"", "mem = \"300M\"");
    std::fs::write(&file, study).unwrap();
    work.run();
    assert_eq!(work.metrics(CELL)["mem"], 300);
    assert!(work.is_sealed(CHILD));
}

#[test]
fn a_stage_that_cannot_go_on_says_so_and_the_next_run_all_brings_more_memory() {
    let slurm = slurm();
    let rigid = RESUMABLE.replace("resumable = true\n", "");
    let work = work(&slurm, "", "", &rigid, &out_of_memory(150));
    work.run();
    assert_eq!(work.story(CELL), ["out-of-memory run-all"]);
    let cause = work.end(CELL, 1)["cause"].as_str().unwrap().to_owned();
    assert!(cause.contains("cannot go on from a checkpoint") && cause.contains("memory 150M"), "{cause}");
    assert_eq!(calls(&slurm, "scontrol").iter().filter(|c| c.starts_with("requeue")).count(), 0);
    assert!(!work.is_sealed(CHILD), "cancelled with its parent");
    let jobs = work.run();
    assert_eq!(jobs.len(), 2, "the cell and what waits for it");
    assert_eq!(work.metrics(CELL)["mem"], 150);
    assert!(work.is_sealed(CHILD));
    let again = json!({"attempt": 1, "why": "out-of-memory", "adjust": {"mem_bytes": 150u64 << 20}});
    assert_eq!(work.submitted_again()[CELL], again);
    assert!(!work.submitted_again().contains_key(CHILD), "it never ran");
}

#[test]
fn a_kill_that_nothing_explains_is_tried_again_as_often_as_the_study_says() {
    let shell = r#"echo x >> "$D/starts"; echo x >> "$SEEDBED_CHECKPOINT_DIR/$SEEDBED_ATTEMPT"; [ "$(wc -l < "$D/starts")" -ge 3 ] || kill -9 $$; echo "{}" > metrics.json"#;
    let slurm = slurm();
    let healed = work(&slurm, "", "killed = 2", RESUMABLE, shell);
    healed.run();
    assert_eq!(healed.story(CELL), ["killed requeue", "killed requeue", "done nothing"], "{}", healed.logs());
    assert!(calls(&slurm, "scontrol").iter().all(|c| !c.starts_with("update")), "with the same resources");
    assert!(healed.is_sealed(CHILD));

    let slurm = self::slurm();
    let given_up = work(&slurm, "", "killed = 1", RESUMABLE, shell);
    given_up.run();
    assert_eq!(given_up.story(CELL), ["killed requeue", "killed nothing"]);
    // A person who runs it again begins to count anew.
    given_up.run();
    assert!(given_up.is_sealed(CELL) && given_up.is_sealed(CHILD));
}

#[test]
fn a_program_that_fails_by_itself_is_not_run_again() {
    let slurm = slurm();
    let work = work(&slurm, "", "", RESUMABLE, r#"echo x >> "$D/starts"; exit 3"#);
    work.run();
    assert_eq!((work.story(CELL), work.lines("starts").len()), (vec!["failed nothing".to_owned()], 1));
    assert_eq!(work.end(CELL, 1)["exit_code"], 3);
}

#[test]
fn a_cell_that_makes_no_progress_stops_with_the_reason() {
    let slurm = slurm();
    let work = work(&slurm, "", "without_progress = 2", RESUMABLE, "exit 75");
    work.run();
    assert_eq!(work.story(CELL), ["checkpointed requeue", "checkpointed nothing"]);
    let status = work.seedbed(&["status"]);
    assert!(status.contains("2 attempts in a row made no progress"), "{status}");
    assert_eq!(slurm.state_of("1_0"), "FAILED");
    assert!(!work.is_sealed(CHILD));
}

#[test]
fn the_attempt_knows_the_end_and_tells_the_stage_though_slurm_says_nothing() {
    let slurm = slurm();
    slurm.set("warnings", "off");
    // Told 4 s before its limit of 8 s; the end is written down by the first attempt.
    let shell = r#"if [ "$SEEDBED_ATTEMPT" = 1 ]; then echo "$SEEDBED_END_TIME $SEEDBED_GRACE_S" > "$D/told"; trap 'touch "$SEEDBED_CHECKPOINT_DIR/x"; exit 75' USR2; while :; do sleep 0.1; done; fi; echo "{}" > metrics.json"#;
    let lines = "resumable = true\nresources = {time = \"0:00:08\"}";
    let work = work(&slurm, "grace_s = 10", "", lines, shell);
    let jobs = work.submit();
    work.wait_for("told", 30);
    let asked = slurm.run("squeue", &["-h", "-j", &format!("1,{}", jobs[0]), "-o", "%e"]);
    let end = String::from_utf8(asked.stdout).unwrap();
    work.wait(&jobs, 60);
    assert_eq!(work.lines("told"), [format!("{} 4", end.trim())], "{}", work.logs());
    assert_eq!(work.story(CELL), ["checkpointed requeue", "done nothing"], "{}", work.logs());
    let wall_s = work.end(CELL, 1)["wall_s"].as_f64().unwrap();
    assert!((1.0..7.5).contains(&wall_s), "told {wall_s} s after the start");
}

#[test]
fn a_hard_time_limit_is_recorded_and_the_next_run_all_gives_more_time() {
    let shell = r#"[ "$SEEDBED_ATTEMPT" != 1 ] || sleep 60; echo "{}" > metrics.json"#;
    let lines = "resources = {time = \"0:00:02\"}";
    // Once the attempt has time to say so, once it is killed with its job.
    for (wait_ms, story) in [(3000, "time-out run-all"), (0, "silent")] {
        let slurm = slurm();
        slurm.set("kill_wait_ms", wait_ms);
        let work = work(&slurm, "", "", lines, shell);
        work.run();
        assert_eq!(work.story(CELL), [story], "{}", work.logs());
        assert!(!work.is_sealed(CHILD));
        work.run();
        let again = json!({"attempt": 1, "why": "time-out", "adjust": {"time_s": 3}});
        assert_eq!(work.submitted_again()[CELL], again, "{story}");
        let script = std::fs::read_to_string(calls(&slurm, "sbatch")[2].split(' ').next_back().unwrap()).unwrap();
        assert!(script.contains("#SBATCH --time=00:00:03\n"), "{script}");
        assert!(work.is_sealed(CELL) && work.is_sealed(CHILD));
    }
}

#[test]
fn what_slurm_has_forgotten_is_asked_of_accounting() {
    let slurm = slurm();
    slurm.set("kill_wait_ms", 0);
    slurm.set("min_job_age_ms", 0);
    slurm.set("accounting", "on");
    let shell = r#"[ "$SEEDBED_ATTEMPT" != 1 ] || sleep 60; echo "{}" > metrics.json"#;
    let work = work(&slurm, "", "", "resources = {time = \"0:00:02\"}", shell);
    work.run();
    slurm.wait_idle();
    assert_eq!((work.story(CELL), slurm.count("sacct")), (vec!["silent".to_owned()], 0));
    work.run();
    assert_eq!(work.submitted_again()[CELL]["why"], "time-out");
    assert!(work.is_sealed(CELL));
}

#[test]
fn a_node_that_failed_under_a_stage_is_kept_away_from() {
    let shell = r#"[ "$SEEDBED_ATTEMPT" != 1 ] || { echo "srun: error: Node failure on n7" >&2; exit 1; }; echo "{}" > metrics.json"#;
    let slurm = slurm();
    let work = work(&slurm, "options = [\"--exclude=n[1-3]\"]", "", RESUMABLE, shell);
    work.run();
    assert_eq!(work.story(CELL), ["node-failure requeue", "done nothing"], "{}", work.logs());
    assert!(
        calls(&slurm, "scontrol").contains(&"update jobid=1_0 ExcNodeList=n[1-3],n7".to_owned()),
        "{:?}",
        slurm.calls()
    );
    assert!(work.is_sealed(CHILD));
}

/// Waits in its first attempt until it is ended from outside, and asks for a checkpoint when it is told to end.
const WAITS: &str = r#"if [ "$SEEDBED_ATTEMPT" = 1 ]; then trap 'touch "$SEEDBED_CHECKPOINT_DIR/x"; exit 75' TERM; touch "$D/started"; while :; do sleep 0.1; done; fi; echo work >> "$D/order"; echo "{}" > metrics.json"#;

#[test]
fn preemption_and_a_lost_node_put_the_job_back_and_it_goes_on() {
    for (kind, first) in [("preempt", "checkpointed requeue"), ("node_fail", "silent")] {
        let slurm = slurm();
        slurm.set("kill_wait_ms", 2000);
        let work = work(&slurm, "", "", RESUMABLE, WAITS);
        let jobs = work.submit();
        work.wait_for("started", 30);
        assert!(slurm.run("scontrol", &["fake", kind, &format!("{}_0", jobs[0])]).status.success());
        work.wait(&jobs, 60);
        assert_eq!(work.story(CELL), [first, "done nothing"], "{kind}: {}", work.logs());
        assert_eq!(work.lines("order"), ["work", "child"], "{kind}: the child waited");
        assert_eq!(slurm.count("sbatch"), 2);
    }
}

#[test]
fn a_stage_that_cannot_go_on_is_not_silently_run_again_after_a_preemption() {
    let slurm = slurm();
    slurm.set("kill_wait_ms", 2000);
    let work = work(&slurm, "", "", "resources = {time = \"0:01:00\"}", &WAITS.replace("exit 75", "exit 1"));
    let jobs = work.submit();
    work.wait_for("started", 30);
    assert!(slurm.run("scontrol", &["fake", "preempt", &format!("{}_0", jobs[0])]).status.success());
    work.wait(&jobs, 60);
    assert_eq!(work.story(CELL), ["killed run-all"], "{}", work.logs());
    let cause = work.end(CELL, 1)["cause"].as_str().unwrap().to_owned();
    assert!(cause.contains("cannot go on from a checkpoint, so it is not run again by itself"), "{cause}");
    assert!(!work.is_sealed(CELL) && !work.is_sealed(CHILD));
    work.run();
    assert!(work.is_sealed(CELL) && work.is_sealed(CHILD));
}

#[test]
fn node_after_node_that_takes_the_attempt_with_it_ends_somewhere() {
    let slurm = slurm();
    let shell = r#"echo x >> "$D/starts"; touch "$D/started_$SEEDBED_ATTEMPT"; sleep 60"#;
    let work = work(&slurm, "", "killed = 1", RESUMABLE, shell);
    let jobs = work.submit();
    for n in 1..=2 {
        work.wait_for(&format!("started_{n}"), 30);
        assert!(slurm.run("scontrol", &["fake", "node_fail", &format!("{}_0", jobs[0])]).status.success());
    }
    work.wait(&jobs, 60);
    assert_eq!(work.story(CELL), ["silent", "silent", "killed nothing"], "{}", work.logs());
    assert_eq!(work.lines("starts").len(), 2, "the third was not started");
}

#[test]
fn a_warning_that_comes_too_early_ends_neither_the_shell_nor_the_attempt_nor_the_stage() {
    let slurm = slurm();
    // As from a Slurm that finds the limit within the grace: from the script's first line on.
    let cluster = "lines = ['[ -e \"$D/warned\" ] || { touch \"$D/warned\"; (i=0; while [ $i -lt 60 ]; do kill -USR2 $$; sleep 0.01; i=$((i + 1)); done) & }']";
    let shell = r#"trap 'echo told >> "$D/told"' USR2; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 0.1; done; echo work >> "$D/order"; echo "{}" > metrics.json"#;
    let work = work(&slurm, cluster, "", RESUMABLE, shell);
    work.run();
    assert_eq!(work.story(CELL), ["done nothing"], "{}", work.logs());
    assert!(!work.lines("told").is_empty(), "the stage is told, a little later");
    assert_eq!(work.lines("order"), ["work", "child"]);
}

#[test]
fn a_step_that_was_cut_short_is_tried_again_though_srun_ends_with_0() {
    let slurm = slurm();
    // As seen on a Slurm 22.05. The second words are those of a rank that was killed because another could not be started.
    let shell = r#"case $SEEDBED_ATTEMPT in 1) echo "srun: error: task 3 launch failed: Unspecified error" >&2;; 2) echo "srun: launch/slurm: launch_p_step_launch: StepId=22.0 aborted before step completely launched." >&2; exit 137;; 3) echo "srun: error: Node failure on n2" >&2; echo half > out.txt;; *) echo made > out.txt; echo work >> "$D/order"; echo "{}" > metrics.json;; esac"#;
    let lines = format!("outputs = [\"out.txt\"]\n{RESUMABLE}");
    let work = work(&slurm, "", "", &lines, shell);
    work.run();
    let story = work.story(CELL);
    assert_eq!(story[3..], ["done nothing"], "{story:?}\n{}", work.logs());
    assert!(story[..3].iter().all(|end| end == "node-failure requeue"), "{story:?}\n{}", work.logs());
    assert_eq!(
        std::fs::read_to_string(work.file("results/work/default").join(CELL).join("out.txt")).unwrap(),
        "made\n"
    );
    assert!(work.end(CELL, 1)["cause"].as_str().unwrap().starts_with("cut short, although srun ended with 0"));
    assert_eq!(work.lines("order"), ["work", "child"]);
}

/// Its first attempt is killed when it is told.
const DIES_WHEN_TOLD: &str = r#"if [ "$SEEDBED_ATTEMPT" = 1 ]; then touch "$D/started"; while [ ! -e "$D/die" ]; do sleep 0.05; done; kill -9 $$; fi; echo work >> "$D/order"; echo "{}" > metrics.json"#;

#[test]
fn a_requeue_that_a_killed_controller_forgot_is_asked_for_again() {
    let slurm = slurm();
    let work = work(&slurm, "", "", RESUMABLE, DIES_WHEN_TOLD);
    let jobs = work.submit();
    work.wait_for("started", 30);
    slurm.fault("scontrol", "forget", "");
    std::fs::write(work.file("die"), "").unwrap();
    work.wait(&jobs, 90);
    assert_eq!(work.story(CELL), ["killed requeue", "done nothing"], "{}", work.logs());
    assert_eq!(work.lines("order"), ["work", "child"], "the child waited");
    assert_eq!(calls(&slurm, "scontrol").iter().filter(|call| call.starts_with("requeue")).count(), 2);
}

#[test]
fn a_requeue_waits_for_a_controller_that_is_started_again() {
    let slurm = slurm();
    let work = work(&slurm, "", "", RESUMABLE, DIES_WHEN_TOLD);
    let jobs = work.submit();
    work.wait_for("started", 30);
    slurm.set("down", 1);
    std::fs::write(work.file("die"), "").unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while calls(&slurm, "scontrol").iter().filter(|call| call.starts_with("requeue")).count() < 2 {
        assert!(Instant::now() < deadline, "{:?}\n{}", slurm.calls(), work.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(work.story(CELL), ["killed requeue"]);
    slurm.set("down", 0);
    work.wait(&jobs, 60);
    assert_eq!(work.story(CELL), ["killed requeue", "done nothing"], "{}", work.logs());
    assert_eq!(work.lines("order"), ["work", "child"], "the child waited");
}

#[test]
fn a_zombie_publishes_nothing() {
    let slurm = slurm();
    // The first attempt, forgotten by Slurm, ends well in the middle of the second.
    let shell = r#"if [ "$SEEDBED_ATTEMPT" = 1 ]; then touch "$D/started"; while [ ! -e "$D/second" ]; do sleep 0.05; done; date +%s > "$D/alive_1"; echo "{\"from\": 1}" > metrics.json; touch "$D/first_ends"; exit 0; fi; touch "$D/second"; date +%s > "$D/alive_2"; while [ ! -e "$D/first_ends" ]; do sleep 0.05; done; sleep 2; echo "{\"from\": 2}" > metrics.json"#;
    let work = work(&slurm, "", "", RESUMABLE, shell);
    let jobs = work.submit();
    work.wait_for("started", 30);
    assert!(slurm.run("scontrol", &["fake", "zombie", &format!("{}_0", jobs[0])]).status.success());
    work.wait(&jobs, 60);
    let second = |file: &str| work.lines(file)[0].parse::<i64>().unwrap();
    assert!((second("alive_1") - second("alive_2")).abs() <= 1, "both were alive at once");
    assert_eq!(work.story(CELL), ["silent", "done nothing"], "{}", work.logs());
    assert_eq!(work.metrics(CELL)["from"], 2);
    assert_eq!(work.json(CELL, "seal.json")["attempt"], 2);
    assert!(work.logs().contains("a newer attempt owns the cell; nothing was published"), "{}", work.logs());
}

/// Goes one step further in each attempt, and is done after `$STEPS`.
const STEPS: &str = r#"echo x >> "$SEEDBED_CHECKPOINT_DIR/steps"; sleep 0.02; [ "$(wc -l < "$SEEDBED_CHECKPOINT_DIR/steps")" -ge $STEPS ] || exit 75; echo work >> "$D/order"; echo "{}" > metrics.json"#;

const LONG: &str = "resumable = true\nexpected = \"0:02:00\"\nresources = {time = \"0:01:00\"}";

#[test]
fn where_nothing_is_requeued_links_carry_a_cell_to_its_seal() {
    let slurm = slurm();
    let work = work(&slurm, "requeue = false", "", LONG, &STEPS.replace("$STEPS", "3"));
    let output = work.run_all(&[]);
    let said = text(&output);
    assert!(
        output.status.success() && said.contains("1 cell that can go on from a checkpoint become up to 4 jobs"),
        "{said}"
    );
    let jobs: Vec<u32> = (1..=5).collect();
    work.wait(&jobs, 60);
    assert_eq!(slurm.count("sbatch"), 4 + 1, "2 expected and 2 to spare, and the child");
    assert_eq!(
        work.story(CELL),
        ["checkpointed next-link", "checkpointed next-link", "done nothing"],
        "{}",
        work.logs()
    );
    let states: Vec<String> = jobs.iter().take(4).map(|job| slurm.state_of(&job.to_string())).collect();
    assert_eq!(states, ["FAILED", "FAILED", "COMPLETED", "COMPLETED"], "the last link has nothing to do");
    assert!(work.is_sealed(CHILD));
    assert_eq!(work.lines("order"), ["work", "child"], "the child waited for the last link");
    assert!(calls(&slurm, "scontrol").iter().all(|c| !c.starts_with("requeue")));
    assert_eq!(work.submit(), Vec::<u32>::new());
}

#[test]
fn the_last_link_fails_where_there_is_no_seal_and_run_all_goes_on_from_there() {
    let slurm = slurm();
    let work = work(&slurm, "requeue = false", "", LONG, &STEPS.replace("$STEPS", "6"));
    work.run();
    let story = work.story(CELL);
    assert_eq!(story.len(), 4, "{story:?}");
    assert_eq!(story[3], "checkpointed run-all");
    assert!(work.end(CELL, 4)["cause"].as_str().unwrap().contains("this was the last of 4 links"));
    assert_eq!(slurm.state_of("4"), "FAILED");
    assert!(!work.is_sealed(CHILD));
    work.run();
    assert_eq!(work.story(CELL).len(), 6, "two more steps");
    assert!(work.is_sealed(CELL) && work.is_sealed(CHILD));
}

#[test]
fn links_behind_one_that_failed_for_good_end_at_once() {
    let slurm = slurm();
    let work = work(&slurm, "requeue = false", "", LONG, r#"echo x >> "$D/starts"; exit 3"#);
    work.run();
    assert_eq!(work.lines("starts").len(), 1, "{}", work.logs());
    assert_eq!(work.end(CELL, 4)["exit_code"], 3);
    assert!(!work.is_sealed(CHILD));
}

#[test]
fn a_second_run_all_sees_links_as_one_and_replace_cancels_all_of_them() {
    let slurm = slurm();
    slurm.set("hold", 1);
    let work = work(&slurm, "requeue = false", "", LONG, &STEPS.replace("$STEPS", "2"));
    assert_eq!(work.submit().len(), 5);
    assert_eq!(work.submit(), Vec::<u32>::new(), "all of it is queued");
    let file = work.file("configs/work.toml");
    let study = std::fs::read_to_string(&file).unwrap().replace("sleep 0.02", "sleep 0.03");
    std::fs::write(&file, study).unwrap();
    let refused = text(&work.run_all(&[]));
    assert!(refused.contains("--replace"), "{refused}");
    assert!(work.run_all(&["--replace"]).status.success());
    let states: Vec<String> = (1..=4).map(|job| slurm.state_of(&job.to_string())).collect();
    assert_eq!(states, ["CANCELLED"; 4]);
    slurm.set("hold", 0);
    assert!(slurm.run("scontrol", &["release", "6"]).status.success());
    work.wait(&(1..=10).collect::<Vec<_>>(), 60);
    assert!(work.is_sealed(CELL) && work.is_sealed(CHILD), "{}", work.logs());
}
