//! Several cells in one allocation, and more cells than a site takes: on a fake Slurm.

use serde_json::json;

use crate::support::chain::text;
use crate::support::fake_slurm::FakeSlurm;
use crate::support::work::{Stage, Work};

/// A stage `work` with these lines over `seeds`, and one behind it.
fn work(slurm: &FakeSlurm, cluster: &str, seeds: &str, lines: &str, shell: &str) -> Work {
    let child = "needs = [\"work\"]\nresources = {time = \"0:01:00\"}";
    let stages: [Stage; 2] = [("work", lines, shell), ("child", child, "echo \"$SEEDBED_SEED\" >> \"$D/children\"")];
    Work::new(slurm.path(), cluster, &format!("seeds = {seeds}"), &stages)
}

fn slurm() -> FakeSlurm {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 4);
    slurm.set("kill_wait_ms", 300);
    slurm
}

fn cell(seed: u32) -> String {
    format!("work/seed-{seed}")
}

/// Lines that a script says to sbatch.
fn directives(work: &Work, stage: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for dir in std::fs::read_dir(work.file("results/work/default/.seedbed/submissions")).unwrap() {
        for file in std::fs::read_dir(dir.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with(&format!("work.{stage}.")) {
                let text = std::fs::read_to_string(&path).unwrap();
                let lines = text.lines().filter_map(|line| line.strip_prefix("#SBATCH --")).map(str::to_owned);
                found.push((name, lines.collect()));
            }
        }
    }
    found.sort();
    found.into_iter().map(|(_, lines)| lines).collect()
}

const SIDE_BY_SIDE: &str = "pack = 3\nresources = {mem = \"64M\", time = \"0:01:00\"}";

#[test]
fn cells_share_a_job_side_by_side_and_each_keeps_its_own() {
    let slurm = slurm();
    // Each of the first three goes on when all three have begun.
    let shell = r#"echo "hello from $SEEDBED_SEED"; touch "$D/begun_$SEEDBED_SEED"; if [ "$SEEDBED_SEED" -le 3 ]; then until [ -e "$D/begun_1" ] && [ -e "$D/begun_2" ] && [ -e "$D/begun_3" ]; do sleep 0.05; done; fi; echo "{\"seed\": $SEEDBED_SEED}" > metrics.json"#;
    let work = work(&slurm, "", "[1, 2, 3, 4, 5]", SIDE_BY_SIDE, shell);
    let jobs = work.run();
    for seed in 1..=5 {
        assert_eq!(work.story(&cell(seed)), ["done nothing"], "{}", work.logs());
        assert_eq!(work.metrics(&cell(seed))["seed"], seed);
        assert!(work.is_sealed(&format!("child/seed-{seed}")));
        let own =
            std::fs::read_to_string(work.file(&format!("results/work/default/work/seed-{seed}/log.txt"))).unwrap();
        assert!(own.contains(&format!("\nhello from {seed}\n")) && own.matches("\nhello").count() == 1, "{own}");
        let step = "srun --exact --nodes=1 --ntasks=1 --ntasks-per-node=1 --mem=64M --mpi=none";
        assert!(own.contains(step), "{own}");
    }
    let job = |seed: u32| work.json(&cell(seed), "attempts/1.json")["job"]["id"].clone();
    assert_eq!((job(1), job(2), job(3)), (json!(jobs[0].to_string()), job(1), job(1)));
    assert_eq!((job(4), job(5)), (json!(jobs[1].to_string()), job(4)));
    let said = directives(&work, "work");
    assert!(said[1].contains(&"ntasks-per-node=3".to_owned()) && said[1].contains(&"mem=192M".to_owned()), "{said:?}");
    assert!(said[0].contains(&"ntasks-per-node=2".to_owned()), "what is left over: {said:?}");
    assert!(said.iter().flatten().all(|line| !line.starts_with("array")), "{said:?}");
    let log = work.file(&format!("results/work/default/logs/job_0_work_{}.work+seed-2.out", jobs[0]));
    assert!(std::fs::read_to_string(log).unwrap().contains("sealed"), "a log of its own");
}

#[test]
fn what_is_unfinished_is_entered_again_and_nothing_else() {
    let slurm = slurm();
    let shell = r#"echo "$SEEDBED_SEED $SEEDBED_ATTEMPT" >> "$D/starts"; case "$SEEDBED_SEED$SEEDBED_ATTEMPT" in 2?) exit 3;; 31) echo x > "$SEEDBED_CHECKPOINT_DIR/x"; exit 75;; esac; echo "{}" > metrics.json"#;
    let work = work(&slurm, "", "[1, 2, 3]", &format!("resumable = true\n{SIDE_BY_SIDE}"), shell);
    let jobs = work.run();
    assert_eq!(work.story(&cell(1)), ["done nothing"]);
    assert_eq!(work.story(&cell(2)), ["failed nothing"], "{}", work.logs());
    assert_eq!(work.story(&cell(3)), ["checkpointed requeue", "done nothing"], "{}", work.logs());
    let mut starts = work.lines("starts");
    starts.sort();
    assert_eq!(starts, ["1 1", "2 1", "3 1", "3 2"]);
    assert_eq!(slurm.state_of(&jobs[0].to_string()), "FAILED");
    let mut children = work.lines("children");
    children.sort();
    assert_eq!(children, ["1", "3"], "one cell that failed holds up its own child only");
    assert_eq!(slurm.count("sbatch"), 2, "the children are not packed: one array behind the pack");
}

#[test]
fn more_memory_for_one_is_more_memory_for_the_job() {
    let slurm = slurm();
    let shell = r#"[ "$SEEDBED_SEED$SEEDBED_ATTEMPT" != 11 ] || { echo "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have been OOM Killed." >&2; exit 1; }; echo "{\"mem\": $SLURM_MEM_PER_NODE}" > metrics.json"#;
    let lines = "resumable = true\npack = 2\nresources = {mem = \"100M\", time = \"0:01:00\"}";
    let work = work(&slurm, "", "[1, 2]", lines, shell);
    work.run();
    assert_eq!(work.story(&cell(1)), ["out-of-memory requeue", "done nothing"], "{}", work.logs());
    assert_eq!(
        (work.metrics(&cell(1))["mem"].clone(), work.metrics(&cell(2))["mem"].clone()),
        (json!(300), json!(200))
    );
    let own = std::fs::read_to_string(work.file("results/work/default/work/seed-1/log.txt")).unwrap();
    assert_eq!((own.matches("--mem=100M").count(), own.matches("--mem=150M").count()), (1, 1), "{own}");
}

#[test]
fn in_turn_one_begins_when_the_one_before_has_ended_and_none_when_time_is_over() {
    let slurm = slurm();
    // The first tells its job that time is nearly over, as Slurm would.
    let shell = r#"echo "begin $SEEDBED_SEED" >> "$D/order"; if [ "$SEEDBED_SEED$SEEDBED_ATTEMPT" = 11 ]; then trap 'echo "told 1" >> "$D/order"; exit 75' USR2; attempt=$PPID; kill -USR2 "$(ps -o ppid= -p "$attempt" | tr -d " ")"; while :; do sleep 0.05; done; fi; sleep 0.2; echo "end $SEEDBED_SEED" >> "$D/order"; echo "{}" > metrics.json"#;
    let lines = "resumable = true\npack = {cells = 3, in_turn = true}\nresources = {time = \"0:01:00\"}";
    let work = work(&slurm, "launcher = \"none\"", "[1, 2, 3]", lines, shell);
    work.run();
    let expected = ["begin 1", "told 1", "begin 1", "end 1", "begin 2", "end 2", "begin 3", "end 3"];
    assert_eq!(work.lines("order"), expected, "{}", work.logs());
    assert!(directives(&work, "work")[0].contains(&"time=00:03:00".to_owned()));
    assert!((1..=3).all(|seed| work.is_sealed(&format!("child/seed-{seed}"))));
}

#[test]
fn links_carry_packs_where_nothing_is_requeued() {
    let slurm = slurm();
    let shell = r#"echo x >> "$SEEDBED_CHECKPOINT_DIR/steps"; [ "$(wc -l < "$SEEDBED_CHECKPOINT_DIR/steps")" -ge "$SEEDBED_SEED" ] || exit 75; echo "{}" > metrics.json"#;
    let work = work(&slurm, "requeue = false", "[1, 2, 3]", &format!("resumable = true\n{SIDE_BY_SIDE}"), shell);
    let jobs = work.run();
    assert_eq!(jobs.len(), 4, "three links, and the children");
    for seed in 1..=3 {
        assert_eq!(work.story(&cell(seed)).len(), seed as usize, "{}", work.logs());
        assert!(work.is_sealed(&format!("child/seed-{seed}")));
    }
}

#[test]
fn a_shared_job_is_cancelled_and_replaced_for_all_its_cells() {
    let slurm = slurm();
    slurm.set("hold", 1);
    let lines = format!("params = {{lr = 1}}\n{SIDE_BY_SIDE}");
    let work = work(&slurm, "", "[1, 2, 3]", &lines, "echo \"{}\" > metrics.json");
    let first = work.submit();
    let output = work.program_output("cancel", &["--seeds", "2", "--stages", "work", "--yes"]);
    let said = text(&output);
    assert!(said.contains("also runs work/seed-1, work/seed-3: cancel all of them, or none"), "{said}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(slurm.state_of(&first[0].to_string()), "PENDING");

    let path = work.file("configs/work.toml");
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap().replace("lr = 1", "lr = 2")).unwrap();
    let said = text(&work.run_all(&[]));
    assert!(said.contains("--replace"), "{said}");
    let output = work.run_all(&["--replace"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(slurm.state_of(&first[0].to_string()), "CANCELLED");
    let status = work.seedbed(&["status"]);
    assert_eq!(status.matches("queued").count(), 7, "six cells and the sum: {status}");
}

#[test]
fn a_cancelled_pack_is_not_put_back_into_the_queue() {
    let slurm = slurm();
    let shell =
        r#"trap 'exit 75' TERM; touch "$D/begun"; until [ -e "$D/go" ]; do sleep 0.05; done; echo "{}" > metrics.json"#;
    let lines = "resumable = true\npack = {cells = 3, in_turn = true}\nresources = {time = \"0:05:00\"}";
    let work = work(&slurm, "launcher = \"none\"", "[1, 2, 3]", lines, shell);
    let jobs = work.submit();
    work.wait_for("begun", 30);
    let output = work.program_output("cancel", &["--yes"]);
    assert!(output.status.success(), "{}", text(&output));
    work.wait(&jobs, 60);
    assert!(slurm.calls().iter().all(|call| call[0] != "scontrol" || call[1] != "requeue"), "{}", work.logs());
    assert_eq!(slurm.state_of(&jobs[0].to_string()), "CANCELLED");
    // What was begun goes on, and the rest begins.
    std::fs::write(work.file("go"), "").unwrap();
    work.run();
    assert!((1..=3).all(|seed| work.is_sealed(&format!("child/seed-{seed}"))), "{}", work.logs());
}

#[test]
fn what_shares_a_job_with_a_cell_that_goes_anew_goes_anew_with_it() {
    let slurm = slurm();
    slurm.set("hold", 1);
    let stages: [Stage; 3] = [
        ("a", "resources = {time = \"0:01:00\"}", "echo \"{}\" > metrics.json"),
        (
            "b",
            "needs = [\"a\"]\npack = 3\nresources = {mem = \"64M\", time = \"0:01:00\"}",
            "echo \"{}\" > metrics.json",
        ),
        ("c", "needs = [\"b\"]\nresources = {time = \"0:01:00\"}", "echo \"{}\" > metrics.json"),
    ];
    let work = Work::new(slurm.path(), "", "seeds = [1, 2, 3]", &stages);
    let first = work.submit();
    assert_eq!(first.len(), 3);
    // The job of a is gone for one seed: its pack waits for nothing.
    assert!(slurm.run("scancel", &[&format!("{}_0", first[0])]).status.success());
    let output = work.run_all(&["--seeds", "1"]);
    let said = text(&output);
    assert!(output.status.code() == Some(64) && said.contains("its job also runs b/seed-"), "{said}");
    assert_eq!(slurm.state_of(&first[1].to_string()), "PENDING", "nothing was cancelled");
    let again = work.submit();
    assert_eq!(slurm.state_of(&first[1].to_string()), "CANCELLED");
    slurm.set("hold", 0);
    slurm.run("scontrol", &["release", "1"]);
    work.wait(&again, 60);
    work.wait(&first, 60);
    assert!((1..=3).all(|seed| work.is_sealed(&format!("c/seed-{seed}"))), "{}", work.logs());
}

#[test]
fn a_cell_that_has_failed_is_shown_so_while_its_neighbours_run() {
    let slurm = slurm();
    let shell = r#"[ "$SEEDBED_SEED" != 2 ] || exit 3; touch "$D/begun"; until [ -e "$D/go" ]; do sleep 0.05; done; echo "{}" > metrics.json"#;
    let work = work(&slurm, "", "[1, 2]", "pack = 2\nresources = {mem = \"64M\", time = \"0:01:00\"}", shell);
    let jobs = work.submit();
    work.wait_for("begun", 30);
    work.wait_for("results/work/default/work/seed-2/attempts/1.end.json", 30);
    let status = work.seedbed(&["status"]);
    let line = |cell: &str| status.lines().find(|l| l.starts_with(cell)).unwrap_or_default().to_owned();
    assert!(line("work/seed-1").contains("running") && line("work/seed-2").contains("failed"), "{status}");
    std::fs::write(work.file("go"), "").unwrap();
    work.wait(&jobs, 60);
    assert!(work.is_sealed("child/seed-1") && !work.is_sealed("child/seed-2"));
}

#[test]
fn a_chain_that_is_too_long_for_the_site_goes_in_pieces() {
    let slurm = FakeSlurm::new();
    slurm.set("accounting", "on");
    slurm.set("max_user", 20);
    slurm.set("max_running", 8);
    let names: Vec<String> = (0..8).map(|i| format!("s{i}")).collect();
    let lines: Vec<String> = (0..8)
        .map(|i| if i == 0 { String::new() } else { format!("needs = [\"s{}\"]\n", i - 1) })
        .map(|needs| format!("{needs}resources = {{time = \"0:01:00\"}}"))
        .collect();
    let stages: Vec<Stage> =
        names.iter().zip(&lines).map(|(n, l)| (n.as_str(), l.as_str(), "echo \"{}\" > metrics.json")).collect();
    let seeds = "seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]";
    let work = Work::new(slurm.path(), "launcher = \"none\"", seeds, &stages);
    for left in [60, 40, 20, 0] {
        let output = work.run_all(&[]);
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        let line = format!("{left} cells not submitted yet: the site takes 20 of your jobs at a time (QOS normal)");
        assert_eq!(said.contains(&line), left > 0, "{said}");
        work.wait(&Work::ids(&said), 90);
    }
    assert!((0..10).all(|seed| work.is_sealed(&format!("s7/seed-{seed}"))), "{}", work.logs());

    // The same in packs of five: sixteen jobs.
    let packed: Vec<String> = lines.iter().map(|l| format!("pack = 5\n{l}")).collect();
    let stages: Vec<Stage> =
        names.iter().zip(&packed).map(|(n, l)| (n.as_str(), l.as_str(), "echo \"{}\" > metrics.json")).collect();
    let work = Work::new(slurm.path(), "launcher = \"none\"", seeds, &stages);
    let jobs = work.run();
    assert_eq!(jobs.len(), 16);
    assert!((0..10).all(|seed| work.is_sealed(&format!("s7/seed-{seed}"))), "{}", work.logs());
}

#[test]
fn hours_of_a_shared_job_are_shared() {
    let slurm = slurm();
    slurm.set("accounting", "on");
    let shell = "sleep 1; echo \"{}\" > metrics.json";
    let work = work(
        &slurm,
        "",
        "[1, 2]",
        "pack = 2\nresources = {cpus_per_task = 2, mem = \"64M\", time = \"0:01:00\"}",
        shell,
    );
    work.run();
    let ledger: serde_json::Value =
        serde_json::from_str(work.seedbed(&["ledger", "--format", "json"]).trim_start()).unwrap();
    let charges: Vec<_> = ledger["attempts"].as_array().unwrap().iter().filter(|c| c["stage"] == "work").collect();
    assert_eq!(charges.len(), 2, "{ledger:#}");
    for (charge, seed) in charges.iter().zip([1, 2]) {
        assert_eq!((&charge["cell"], &charge["cores"]), (&json!(cell(seed)), &json!(2)), "{charge:#}");
        assert_eq!(charge["source"], "accounting");
    }
}

#[test]
fn what_cannot_be_packed_is_named() {
    let slurm = slurm();
    let cases = [
        ("", "pack = 2\nresources = {time = \"0:01:00\"}", "does not say what memory each takes"),
        ("", "pack = 1\nresources = {time = \"0:01:00\"}", "an integer from 2 to 1000"),
        ("", "pack = 2\nper = []\nresources = {time = \"0:01:00\"}", "the stage has no seeds"),
        ("launcher = [\"mpirun\"]", SIDE_BY_SIDE, "would give each the whole allocation"),
        (
            "launcher = \"none\"",
            "pack = 2\nresources = {gpus_per_node = 1, time = \"0:01:00\"}",
            "each would see all GPUs",
        ),
        ("pack = {in_turn = true}", "resources = {time = \"0:01:00\"}", "cells"),
    ];
    for (cluster, lines, expected) in cases {
        let work = work(&slurm, cluster, "[1, 2]", lines, "true");
        let output = work.run_all(&["--dry-run"]);
        assert_eq!(output.status.code(), Some(64), "{lines}: {}", text(&output));
        assert!(text(&output).contains(expected), "{lines}: {}", text(&output));
    }
    // A site can force it; a stage without seeds stays as it is.
    let work = work(&slurm, "pack = {cells = 2, in_turn = true}", "[1, 2]", "resources = {time = \"0:01:00\"}", "true");
    let said = text(&work.run_all(&["--dry-run"]));
    assert!(said.contains("#SBATCH --time=00:02:00"), "{said}");
}
