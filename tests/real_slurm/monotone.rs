//! The monotone study's quick profile, on the real Slurm and on this machine: all seals there, training over two nodes
//! with two ranks each on the one and with one rank on the other, and tables that are equal byte by byte.

use super::{run_here, submitted};
use crate::support::repository;
use crate::support::sandbox::{assert_ok, sandbox};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

const STUDY: &str = "configs/monotone.toml";

/// How many ranks trained.
const RANKS: &str = ".ranks";

/// Every file below a folder, by its path there.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        assert!(path.is_file(), "{}", path.display());
        found.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
    }
    found
}

/// A file of HDF5 or JSON, by a jq filter through `seedbed query`.
fn query(filter: &str, path: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_seedbed")).args(["query", filter]).arg(path).output().unwrap();
    assert_ok(&output, &["seedbed", "query", filter]);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn tables_from_four_ranks_on_two_nodes_equal_those_from_one_rank_here() {
    let Some(slurm) = sandbox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (there, here) = (dir.path().join("there"), dir.path().join("here"));

    let jobs = submitted(&slurm, STUDY, &there);
    assert_eq!(jobs.len(), 8, "one sbatch a stage: {jobs:?}");

    // The same study here meanwhile.
    run_here(STUDY, &here);

    slurm.wait_until_gone(&jobs, 1200);
    let status = slurm
        .on("head", 60)
        .arg(env!("CARGO_BIN_EXE_seedbed"))
        .args(["status", STUDY, "--profile", "quick", "--cluster", "sandbox", "--format", "json", "--root"])
        .arg(&there)
        .current_dir(repository())
        .output()
        .unwrap();
    assert_ok(&status, &["seedbed", "status"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["expected"], 6 * 2 + 2, "{status:#}");
    assert_eq!(status["done"], status["expected"], "{status:#}");

    let base = |root: &Path| root.join("results/monotone/quick");
    for stage in ["train_baseline", "train_monotonic"] {
        for seed in ["seed-42", "seed-1337"] {
            let ask = |filter: &str, root: &Path| query(filter, &base(root).join(stage).join(seed).join("run.h5"));
            assert_eq!((ask(RANKS, &there).as_str(), ask(RANKS, &here).as_str()), ("4", "1"), "{stage} {seed}");
            assert_eq!(ask(".final_param_digest", &there), ask(".final_param_digest", &here), "{stage} {seed}");
        }
    }
    let tables = |root: &Path| files(&base(root).join("aggregate/tables"));
    let (those, these) = (tables(&there), tables(&here));
    assert!(these.keys().any(|name| name.ends_with(".tex")), "{:?}", these.keys());
    assert_eq!(those.keys().collect::<Vec<_>>(), these.keys().collect::<Vec<_>>());
    for (name, bytes) in &these {
        assert_eq!(String::from_utf8_lossy(bytes), String::from_utf8_lossy(&those[name]), "{name}");
    }
}
