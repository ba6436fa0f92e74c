//! Tests on a real Slurm (`scripts/slurm-sandbox`). `scripts/test` counts those of this module when it skips them.

mod chain;
mod chaos;
mod commands;
mod foreign;
mod gates;
mod limits;
mod monotone;
mod nodes;
mod partly;
mod paying;
mod prefill;
mod seeds;
mod sites;
mod surviving;

use std::path::Path;
use std::process::Command;

use crate::support::repository;
use crate::support::sandbox::{Sandbox, assert_ok};

/// Submits the quick profile of a study; the jobs.
fn submitted(slurm: &Sandbox, study: &str, root: &Path) -> Vec<String> {
    let output = slurm
        .on("head", 120)
        .arg(env!("CARGO_BIN_EXE_run_all"))
        .args([study, "--profile", "quick", "--cluster", "sandbox", "--yes", "--root"])
        .arg(root)
        .current_dir(repository())
        .env_remove("EXPERIMENT_SEED")
        .output()
        .unwrap();
    assert_ok(&output, &["run_all"]);
    let said = String::from_utf8(output.stderr).unwrap();
    said.lines().filter_map(|line| line.strip_prefix("job ")?.split(' ').next().map(str::to_owned)).collect()
}

/// Runs the quick profile of a study on this machine.
fn run_here(study: &str, root: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_run_all"))
        .args([study, "--profile", "quick", "--local", "--root"])
        .arg(root)
        .current_dir(repository())
        .env_remove("EXPERIMENT_SEED")
        .output()
        .unwrap();
    assert_ok(&output, &["run_all", "--local"]);
}
