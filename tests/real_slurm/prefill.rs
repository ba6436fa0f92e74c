//! The prefill study's quick profile on the real Slurm: the finetunes 3A and 3B run side by side as jobs of their own, and
//! the summary is that of the same study here, byte by byte but for the day in its title.

use std::fs;
use std::path::Path;
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{run_here, submitted};
use crate::support::sandbox::sandbox;

const STUDY: &str = "configs/prefill.toml";

/// When the first attempt of a cell began, and when it had ended.
fn span(cell: &Path) -> [DateTime<Utc>; 2] {
    [("1.json", "started_at"), ("1.end.json", "ended_at")].map(|(file, field)| {
        let path = cell.join("attempts").join(file);
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let value: Value = serde_json::from_slice(&text).unwrap();
        value[field].as_str().unwrap().parse().unwrap()
    })
}

#[test]
fn finetunes_run_side_by_side_and_the_summary_is_that_of_a_run_here() {
    let Some(slurm) = sandbox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (there, here) = (dir.path().join("there"), dir.path().join("here"));
    let begun = Instant::now();
    let jobs = submitted(&slurm, STUDY, &there);
    assert_eq!(jobs.len(), 18, "one sbatch a stage and arm: {jobs:?}");
    slurm.wait_until_gone(&jobs, 900);
    eprintln!("the quick profile took {:.0} s on the sandbox", begun.elapsed().as_secs_f64());

    let base = |root: &Path| root.join("results/prefill/quick");
    let cell = |stage: &str| base(&there).join(stage).join("seed-42");
    let (a, b) = (span(&cell("stage3_finetune_causal")), span(&cell("stage3_finetune_prefill_bidir")));
    assert!(a[0] < b[1] && b[0] < a[1], "3A {a:?} and 3B {b:?} did not run at one time");

    let begun = Instant::now();
    run_here(STUDY, &here);
    eprintln!("and {:.0} s here", begun.elapsed().as_secs_f64());
    let files = [
        "documents/summary.md",
        "documents/summary.json",
        "tables/postft.csv",
        "tables/conditions.csv",
        "tables/causal.csv",
    ];
    for file in files {
        let [those, these] = [&there, &here].map(|root| {
            let text = fs::read_to_string(base(root).join("aggregate").join(file)).unwrap();
            // The day of the results stands in the title: one run may end before midnight, the other behind it.
            match text.strip_prefix("# ") {
                Some(page) => page.split_once('\n').unwrap().1.to_owned(),
                None => text,
            }
        });
        assert_eq!(those, these, "{file}");
    }
}
