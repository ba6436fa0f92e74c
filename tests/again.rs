//! What runs again, and from where: a parent that was made again with other bytes, checkpoints of other inputs, and
//! stages that keep no checkpoint.

use crate::support::chain::text;
use crate::support::fake_slurm::FakeSlurm;
use crate::support::work::Work;

const CHILD: &str = "child/seed-7";
const PARENT: &str = "work/seed-7";

/// `work` writes what the file `bytes` holds, an input that it does not declare; `child` runs `shell`.
fn work(slurm: &FakeSlurm, lines: &str, shell: &str) -> Work {
    let child = format!("needs = [\"work\"]\noutputs = [\"got.txt\"]\nresources = {{time = \"0:01:00\"}}\n{lines}");
    let parent = "outputs = [\"out.txt\"]\nresources = {time = \"0:01:00\"}";
    let make = r#"cp "$D/bytes" out.txt; echo "{}" > metrics.json"#;
    let work = Work::new(slurm.path(), "", "seeds = [7]", &[("work", parent, make), ("child", &child, shell)]);
    holds(&work, "one");
    work
}

fn holds(work: &Work, bytes: &str) {
    std::fs::write(work.file("bytes"), bytes).unwrap();
}

/// A file of a cell's run directory.
fn of(work: &Work, cell: &str, file: &str) -> String {
    std::fs::read_to_string(work.file(&format!("results/work/default/{cell}/{file}"))).unwrap_or_default()
}

/// Takes the parent's output away: it is made again under the same fingerprint.
fn lose_output(work: &Work) {
    std::fs::remove_file(work.file(&format!("results/work/default/{PARENT}/out.txt"))).unwrap();
}

#[test]
fn a_parent_made_again_with_other_bytes_makes_its_child_again_and_with_the_same_does_not() {
    let slurm = FakeSlurm::new();
    let shell = r#"echo x >> "$D/ran"; cp "$SEEDBED_NEED_work/out.txt" got.txt; echo "{}" > metrics.json"#;
    let work = work(&slurm, "", shell);
    work.run();
    assert_eq!((of(&work, CHILD, "got.txt").as_str(), work.lines("ran").len()), ("one", 1), "{}", work.logs());

    holds(&work, "two");
    lose_output(&work);
    let jobs = work.run();
    assert_eq!(jobs.len(), 2, "{}", work.logs());
    assert_eq!((of(&work, CHILD, "got.txt").as_str(), work.lines("ran").len()), ("two", 2), "{}", work.logs());
    assert!(work.logs().contains("is sealed, and stale: work/seed-7/out.txt has changed since; it runs again"));
    let status = work.seedbed(&["status"]);
    assert!(status.contains("2 of 2 cells done"), "{status}");
    assert_eq!(work.run(), [] as [u32; 0]);

    // The plan cannot know yet that it will be the same; the attempt sees it.
    lose_output(&work);
    let jobs = work.run();
    assert_eq!(jobs.len(), 2);
    assert_eq!(work.lines("ran").len(), 2, "{}", work.logs());
    assert!(work.logs().contains("is sealed already; nothing to do"), "{}", work.logs());
    assert_eq!(work.run(), [] as [u32; 0]);
}

/// Keeps what it read in its checkpoint, and goes on from there.
const KEEPS: &str = r#"c="$SEEDBED_CHECKPOINT_DIR/got"; [ -e "$c" ] || cp "$SEEDBED_NEED_work/out.txt" "$c"; if [ -e "$D/tired" ]; then exit 75; fi; cp "$c" got.txt; echo "{}" > metrics.json"#;

#[test]
fn a_checkpoint_of_other_inputs_is_not_gone_on_from() {
    let slurm = FakeSlurm::new();
    let work = work(&slurm, "resumable = true", KEEPS);
    work.run();
    assert_eq!(of(&work, CHILD, "got.txt"), "one", "{}", work.logs());
    // Sealed, and its parent made again.
    holds(&work, "two");
    lose_output(&work);
    work.run();
    assert_eq!(of(&work, CHILD, "got.txt"), "two", "{}", work.logs());
    assert!(work.logs().contains("what they left is set aside, and it begins anew"), "{}", work.logs());
    assert_eq!(of(&work, CHILD, ".checkpoints-before-2/got"), "one", "only a person deletes");
    // With the same inputs it goes on: the checkpoint says three, the input two.
    std::fs::write(work.file(&format!("results/work/default/{CHILD}/checkpoints/got")), "three").unwrap();
    std::fs::remove_file(work.file(&format!("results/work/default/{CHILD}/got.txt"))).unwrap();
    work.run();
    assert_eq!(of(&work, CHILD, "got.txt"), "three", "{}", work.logs());
}

#[test]
fn a_checkpoint_of_an_attempt_that_never_sealed_is_of_its_inputs_too() {
    let slurm = FakeSlurm::new();
    let work = work(&slurm, "resumable = true", KEEPS);
    std::fs::write(work.file("tired"), "").unwrap();
    work.run();
    let story = work.story(CHILD);
    assert!(story.len() > 1 && !work.is_sealed(CHILD), "{story:?}");
    std::fs::remove_file(work.file("tired")).unwrap();
    holds(&work, "two");
    lose_output(&work);
    work.run();
    assert_eq!(of(&work, CHILD, "got.txt"), "two", "{}", work.logs());
}

#[test]
fn a_stage_without_checkpoints_says_so_and_begins_anew_only_by_run_all() {
    let slurm = FakeSlurm::new();
    slurm.set("kill_wait_ms", 300);
    let shell = r#"echo x >> "$D/ran"; touch "$D/started"; [ -e "$D/go" ] || sleep 60; cp "$SEEDBED_NEED_work/out.txt" got.txt; echo "{}" > metrics.json"#;
    let work = work(&slurm, "", shell);
    let plan = work.seedbed(&["plan"]);
    let words = "without checkpoints: work, child (cut short, a cell begins anew, and only by run_all)";
    assert!(plan.contains(words), "{plan}");
    let output = work.run_all(&[]);
    assert!(text(&output).contains(words), "the bill says it: {}", text(&output));
    work.wait_for("started", 30);
    let explained = work.explain("child");
    assert!(explained.contains("its stage keeps no checkpoint: cut short, it begins anew"), "{explained}");

    // Its node is lost, with all that could say something.
    assert!(slurm.run("scontrol", &["fake", "node_fail", "2_0"]).status.success());
    work.wait(&[1, 2], 60);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!((work.story(CHILD), work.lines("ran").len()), (vec!["silent".to_owned()], 1), "{}", work.logs());
    assert_eq!(slurm.state_of("2_0"), "NODE_FAIL", "not put back");
    work.let_answers_age();
    let explained = work.explain("child");
    assert!(explained.contains("from the beginning: its stage keeps no checkpoint"), "{explained}");

    std::fs::write(work.file("go"), "").unwrap();
    let output = work.run_all(&[]);
    let said = text(&output);
    assert!(said.contains("from the beginning: child/seed-7 (it ran before, and left no result)"), "{said}");
    work.wait(&[3], 60);
    assert!(work.is_sealed(CHILD), "{}", work.logs());
}
