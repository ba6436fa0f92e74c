//! A chain that is run again in part, on the real Slurm.

use crate::support::chain::text;
use crate::support::sandbox::sandbox;
use crate::support::work::{Stage, Work};

/// Stage a runs seeds 1 and 3 again, and stage b all five. a fails for seed 1 and takes long for seed 3; b for 0, 2 and 4
/// waits for neither.
#[test]
fn what_is_sealed_is_waited_for_by_nobody() {
    let Some(slurm) = sandbox() else { return };
    let commands = tempfile::tempdir().unwrap();
    let a = r#"if [ -e "$D/again" ]; then [ "$SEEDBED_SEED" != 1 ] || exit 3; until [ -e "$D/go" ]; do sleep 0.2; done; date +%s%N > "$D/a_ends_$SEEDBED_SEED"; fi; echo "{}" > metrics.json"#;
    let b = r#"date +%s%N > "$D/b_starts_$SEEDBED_SEED"; echo "{}" > metrics.json"#;
    let small = "resources = {mem = \"16M\", time = \"0:05:00\"}";
    let behind = format!("needs = [\"a\"]\n{small}");
    let stages: [Stage; 2] = [("a", small, a), ("b", &behind, b)];
    let work = Work::new(slurm.path(commands.path()), "", "seeds = [0, 1, 2, 3, 4]", &stages);
    let output = work.run_all(&["--stages", "a"]);
    assert!(output.status.success(), "{}", text(&output));
    work.wait(&Work::ids(&text(&output)), 60);
    for seed in [1, 3] {
        std::fs::remove_file(work.file(&format!("results/work/default/a/seed-{seed}/seal.json"))).unwrap();
    }
    std::fs::write(work.file("again"), "").unwrap();

    let output = work.run_all(&[]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let jobs = Work::ids(&said);
    assert_eq!(jobs.len(), 3, "a for two seeds, b behind it for these, b for the other three: {said}");
    // Asked again at once nothing is submitted twice.
    let again = work.run_all(&[]);
    assert!(again.status.success() && Work::ids(&text(&again)).is_empty(), "{}", text(&again));
    for seed in [0, 2, 4] {
        work.wait_for(&format!("results/work/default/b/seed-{seed}/seal.json"), 60);
    }
    assert!(!work.file("a_ends_3").exists(), "a of seed 3 still runs");
    std::fs::write(work.file("go"), "").unwrap();
    work.wait(&jobs, 60);
    assert!(work.is_sealed("a/seed-3") && work.is_sealed("b/seed-3"), "{}", work.logs());
    assert!(!work.is_sealed("a/seed-1") && !work.file("b_starts_1").exists());

    // Seed 1 alone is left; its job of b is gone or dead, and does not stand in the way.
    std::fs::remove_file(work.file("again")).unwrap();
    let output = work.run_all(&[]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    let jobs = Work::ids(&said);
    assert_eq!(jobs.len(), 2, "{said}");
    work.wait(&jobs, 60);
    assert!((0..5).all(|seed| work.is_sealed(&format!("b/seed-{seed}"))), "{}", work.logs());
}
