//! What a cell survives on the real Slurm: its time limit many times over, too little memory, a preemption, and the death
//! of slurmd with its steps left running.

use serde_json::json;

use crate::support::chain::text;
use crate::support::sandbox::{Sandbox, assert_ok, own_sandbox, sandbox};
use crate::support::work::{Stage, Work};

const CELL: &str = "work/seed-7";
const CHILD: &str = "child/seed-7";

/// A stage `work` and one behind it, and the folder of the commands that lead to the sandbox.
fn work(slurm: &Sandbox, cluster: &str, lines: &str, shell: &str) -> (tempfile::TempDir, Work) {
    let commands = tempfile::tempdir().unwrap();
    let child = "needs = [\"work\"]\nresources = {mem = \"64M\", time = \"0:01:00\"}";
    let stages: [Stage; 2] = [("work", lines, shell), ("child", child, "echo child >> \"$D/order\"")];
    let work = Work::new(slurm.path(commands.path()), cluster, "seeds = [7]", &stages);
    (commands, work)
}

/// Works a unit a second until it is told to stop by the signal or by the end that it was given, and needs 240 units.
const LONG: &str = r#"told=; trap 'told=1' USR2; units=$(cat "$SEEDBED_CHECKPOINT_DIR/units" 2>/dev/null || echo 0); while [ "$units" -lt 240 ]; do if [ -n "$told" ] || [ $((SEEDBED_END_TIME - $(date +%s))) -le "$SEEDBED_GRACE_S" ]; then echo "$units" > "$SEEDBED_CHECKPOINT_DIR/units"; exit 75; fi; sleep 1; units=$((units + 1)); done; echo work >> "$D/order"; echo "{\"units\": $units}" > metrics.json"#;

#[test]
fn four_time_limits_of_work_finish_by_themselves() {
    let Some(slurm) = sandbox() else { return };
    let lines = "resumable = true\nresources = {mem = \"64M\", time = \"0:01:00\"}";
    let (_commands, work) = work(&slurm, "grace_s = 10", lines, LONG);
    let jobs = work.submit();
    work.wait(&jobs, 900);
    let story = work.story(CELL);
    assert!(story.len() > 4, "{story:?}");
    let (last, before) = story.split_last().unwrap();
    assert!(last == "done nothing" && before.iter().all(|s| s == "checkpointed requeue"), "{story:?}\n{}", work.logs());
    assert_eq!(work.metrics(CELL)["units"], 240);
    assert_eq!(work.lines("order"), ["work", "child"], "the child waited through all of it");
    let job = &work.json(CELL, &format!("attempts/{}.json", story.len()))["job"];
    assert_eq!(*job, json!({"id": format!("{}_0", jobs[0]), "restart": story.len() - 1}), "one job all the time");
}

#[test]
fn a_requeued_job_is_given_the_memory_that_its_cause_asks_for() {
    let Some(slurm) = sandbox() else { return };
    let shell = r#"[ "$SLURM_MEM_PER_NODE" -ge 200 ] || { echo "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have been OOM Killed." >&2; exit 1; }; echo work >> "$D/order"; echo "{\"mem\": $SLURM_MEM_PER_NODE}" > metrics.json"#;
    let lines = "resumable = true\nresources = {mem = \"100M\", time = \"0:02:00\"}";
    let (_commands, work) = work(&slurm, "", lines, shell);
    let jobs = work.submit();
    work.wait(&jobs, 120);
    let story = work.story(CELL);
    assert_eq!(story, ["out-of-memory requeue", "out-of-memory requeue", "done nothing"], "{}", work.logs());
    assert_eq!(work.metrics(CELL)["mem"], 225, "both changes took effect");
    assert_eq!(work.lines("order"), ["work", "child"]);
}

#[test]
fn links_carry_a_cell_where_jobs_are_not_requeued() {
    let Some(slurm) = sandbox() else { return };
    let shell = r#"echo x >> "$SEEDBED_CHECKPOINT_DIR/steps"; [ "$(wc -l < "$SEEDBED_CHECKPOINT_DIR/steps")" -ge 3 ] || exit 75; echo work >> "$D/order"; echo "{}" > metrics.json"#;
    let lines = "resumable = true\nexpected = \"0:02:00\"\nresources = {mem = \"64M\", time = \"0:01:00\"}";
    let (_commands, work) = work(&slurm, "requeue = false", lines, shell);
    let output = work.run_all(&[]);
    let said = text(&output);
    assert!(output.status.success() && said.contains("become up to 4 jobs"), "{said}");
    let jobs: Vec<u32> =
        said.lines().filter_map(|line| line.strip_prefix("job ")?.split(' ').next()?.parse().ok()).collect();
    assert_eq!(jobs.len(), 5);
    work.wait(&jobs, 120);
    let story = work.story(CELL);
    assert_eq!(story, ["checkpointed next-link", "checkpointed next-link", "done nothing"], "{}", work.logs());
    assert_eq!(work.lines("order"), ["work", "child"]);
    assert!(work.is_sealed(CHILD));
}

/// Waits in its first attempt until it is told to end, and checkpoints.
const WAITS: &str = r#"if [ "$SEEDBED_ATTEMPT" = 1 ]; then trap 'touch "$SEEDBED_CHECKPOINT_DIR/x"; exit 75' TERM; touch "$D/started"; while :; do sleep 0.1; done; fi; echo work >> "$D/order"; echo "{}" > metrics.json"#;

#[test]
fn a_preempted_job_checkpoints_and_goes_on_while_its_child_waits() {
    let lines = "PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n\
                 PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=120 State=UP";
    let Some(slurm) = own_sandbox(lines) else { return };
    let stage = "resumable = true\nresources = {cpus_per_task = 8, mem = \"64M\", time = \"0:05:00\"}";
    let (_commands, work) = work(&slurm, "partition = \"debug\"", stage, WAITS);
    let jobs = work.submit();
    work.wait_for("started", 60);
    slurm.head(&["srun", "--partition=urgent", "--nodes=4", "--exclusive", "--mpi=none", "sleep", "3"]);
    work.wait(&jobs, 120);
    let story = work.story(CELL);
    assert!(
        story == ["preempted requeue", "done nothing"] || story == ["cancelled run-all", "done nothing"],
        "{story:?}"
    );
    assert_eq!(work.lines("order"), ["work", "child"], "{}", work.logs());
    assert_eq!(work.json(CELL, "attempts/2.json")["job"]["restart"], 1, "the same job");
}

#[test]
fn a_zombie_that_outlives_slurmd_publishes_nothing() {
    let Some(slurm) = own_sandbox("") else { return };
    // The first attempt ends well while the second works.
    let shell = r#"if [ "$SEEDBED_ATTEMPT" = 1 ]; then touch "$D/started"; while [ ! -e "$D/second" ]; do sleep 0.1; done; date +%s > "$D/alive_1"; echo "{\"from\": 1}" > metrics.json; touch "$D/first_ends"; exit 0; fi; touch "$D/second"; date +%s > "$D/alive_2"; while [ ! -e "$D/first_ends" ]; do sleep 0.1; done; sleep 3; echo "{\"from\": 2}" > metrics.json"#;
    let stage = "resumable = true\nresources = {mem = \"64M\", time = \"0:05:00\"}";
    let (_commands, work) = work(&slurm, "", stage, shell);
    let jobs = work.submit();
    work.wait_for("started", 60);
    let host = work.json(CELL, "attempts/1.json")["host"].as_str().unwrap().to_owned();
    let pid_file = slurm.dir().unwrap().join(format!("run/slurmd-{host}.pid"));
    let kill = format!("kill -KILL \"$(cat '{}')\"", pid_file.display());
    assert_ok(&slurm.on(&host, 20).args(["sh", "-c", &kill]).output().unwrap(), &["kill", "slurmd"]);
    work.wait(&jobs, 180);
    let logs = || format!("{:?}\n{}\n{}", work.story(CELL), work.logs(), slurm.head(&["scontrol", "show", "node"]));
    let second = |file: &str| {
        let lines = work.lines(file);
        lines.first().unwrap_or_else(|| panic!("no {file}: {}", logs())).parse::<i64>().unwrap()
    };
    assert!((second("alive_1") - second("alive_2")).abs() <= 1, "both attempts were alive in one second");
    // srun learns that the node is gone and ends, with 0, while what it started goes on: no success.
    let story = work.story(CELL);
    assert!(["silent", "node-failure requeue"].contains(&story[0].as_str()), "{story:?}\n{}", work.logs());
    assert_eq!(story[1..], ["done nothing"], "{}", work.logs());
    assert_eq!(work.metrics(CELL)["from"], 2);
    assert_ne!(work.json(CELL, "attempts/2.json")["host"], host, "on another node");
    assert_eq!(work.json(CELL, "seal.json")["attempt"], 2);
    assert!(work.is_sealed(CHILD));
}
