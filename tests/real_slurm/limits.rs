//! More cells than the real Slurm takes of one user, and several cells in one of its jobs.

use std::time::{Duration, Instant};

use crate::support::chain::text;
use crate::support::sandbox::{accounting_sandbox, sandbox};
use crate::support::work::{Stage, Work};

const TEN: &str = "seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]";

#[test]
fn eight_stages_of_ten_seeds_pass_where_the_site_takes_twenty_jobs() {
    let Some(slurm) = accounting_sandbox("AccountingStorageEnforce=limits,qos") else { return };
    slurm.head(&["sacctmgr", "-i", "modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=20"]);
    let commands = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..8).map(|i| format!("s{i}")).collect();
    let lines: Vec<String> = (0..8)
        .map(|i| if i == 0 { String::new() } else { format!("needs = [\"s{}\"]\n", i - 1) })
        .map(|needs| format!("{needs}resources = {{mem = \"16M\", time = \"0:01:00\"}}"))
        .collect();
    let of = |name, lines| -> Stage { (name, lines, "echo \"{}\" > metrics.json") };
    let stages: Vec<Stage> = names.iter().zip(&lines).map(|(n, l)| of(n, l)).collect();
    let work = Work::new(slurm.path(commands.path()), "launcher = \"none\"", TEN, &stages);
    let first = text(&work.run_all(&[]));
    let line = "60 cells not submitted yet: the site takes 20 of your jobs at a time (QOS normal)";
    assert!(first.contains(line), "{first}");
    let mut jobs = Work::ids(&first);
    assert_eq!(jobs.len(), 2);
    // Typed again and again: what has room follows, behind what still runs; nothing is refused.
    let deadline = Instant::now() + Duration::from_secs(240);
    loop {
        let output = work.run_all(&[]);
        let said = text(&output);
        assert!(output.status.success() || said.contains("are taken: run the same command again"), "{said}");
        jobs.extend(Work::ids(&said));
        if output.status.success() && !said.contains("not submitted yet") {
            break;
        }
        assert!(Instant::now() < deadline, "{said}");
        std::thread::sleep(Duration::from_secs(2));
    }
    work.wait(&jobs, 180);
    for (stage, seed) in (0..8).flat_map(|stage| (0..10).map(move |seed| (stage, seed))) {
        assert_eq!(work.story(&format!("s{stage}/seed-{seed}")), ["done nothing"], "once each\n{}", work.logs());
    }

    // In packs of five the whole chain fits: sixteen jobs.
    let packed: Vec<String> = lines.iter().map(|l| format!("pack = 5\n{l}")).collect();
    let stages: Vec<Stage> = names.iter().zip(&packed).map(|(n, l)| of(n, l)).collect();
    let work = Work::new(slurm.path(commands.path()), "launcher = \"none\"", TEN, &stages);
    let jobs = work.submit();
    assert_eq!(jobs.len(), 16);
    work.wait(&jobs, 180);
    assert!((0..10).all(|seed| work.is_sealed(&format!("s7/seed-{seed}"))), "{}", work.logs());
}

#[test]
fn cells_of_one_job_run_side_by_side_and_the_unfinished_is_entered_again() {
    let Some(slurm) = sandbox() else { return };
    let commands = tempfile::tempdir().unwrap();
    // Each begins, and goes on when all four have; then one checkpoints once, and one fails.
    let shell = r#"echo "$SEEDBED_SEED $SEEDBED_ATTEMPT $SLURM_STEP_ID $SLURM_NTASKS" >> "$D/starts"; touch "$D/begun_$SEEDBED_SEED"; for s in 1 2 3 4; do until [ -e "$D/begun_$s" ]; do sleep 0.1; done; done; case "$SEEDBED_SEED$SEEDBED_ATTEMPT" in 2?) exit 3;; 31) echo x > "$SEEDBED_CHECKPOINT_DIR/x"; exit 75;; esac; echo "{}" > metrics.json"#;
    let lines = "resumable = true\npack = 4\nresources = {mem = \"64M\", time = \"0:05:00\"}";
    let child = "needs = [\"work\"]\nresources = {mem = \"64M\", time = \"0:01:00\"}";
    let stages: [Stage; 2] = [("work", lines, shell), ("child", child, "echo \"$SEEDBED_SEED\" >> \"$D/children\"")];
    let work = Work::new(slurm.path(commands.path()), "", "seeds = [1, 2, 3, 4]", &stages);
    let jobs = work.submit();
    assert_eq!(jobs.len(), 2, "one pack, and the array behind it");
    work.wait(&jobs, 180);
    let story = |seed: u32| work.story(&format!("work/seed-{seed}")).join(", ");
    assert_eq!(story(1), "done nothing", "{}", work.logs());
    assert_eq!(story(2), "failed nothing", "{}", work.logs());
    assert_eq!(story(3), "checkpointed requeue, done nothing", "{}", work.logs());
    assert_eq!(story(4), "done nothing", "{}", work.logs());
    let starts = work.lines("starts");
    assert_eq!(starts.len(), 5, "{starts:?}");
    let steps: std::collections::BTreeSet<&str> = starts[..4].iter().filter_map(|s| s.split(' ').nth(2)).collect();
    assert_eq!(steps.len(), 4, "a step for each: {starts:?}");
    assert!(starts.iter().all(|s| s.ends_with(" 1")), "one task each: {starts:?}");
    let mut children = work.lines("children");
    children.sort();
    assert_eq!(children, ["1", "3", "4"]);
    assert_eq!(work.json("work/seed-3", "attempts/2.json")["job"]["restart"], 1, "the same job");
}
