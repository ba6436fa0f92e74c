//! The scripts of the monotone study: one for each stage, sound for bash and shellcheck, and pinned whole.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::repository;

/// The study at full scale below `root`, with stand-ins for the inputs that a person brings.
fn full_study(root: &Path) {
    let copy = |name: &str| {
        let to = root.join(name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(repository().join(name), to).unwrap();
    };
    copy("configs/monotone.toml");
    copy("configs/clusters/example.toml");
    std::fs::create_dir_all(root.join("models/pythia-1.4b")).unwrap();
    std::fs::write(root.join("models/pythia-1.4b/config.json"), "{}").unwrap();
    std::fs::create_dir_all(root.join("data")).unwrap();
    std::fs::write(root.join("data/pile.jsonl"), "{\"text\": \"one\"}\n").unwrap();
}

fn run(root: &Path, program: &str, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
        command.env_remove(name);
    }
    let output = command.args(words).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn eight_stages_are_eight_sound_scripts() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    full_study(root);
    let words = ["generate", "configs/monotone.toml", "--profile", "full", "--cluster", "example", "--local"];
    let output = run(root, env!("CARGO_BIN_EXE_seedbed"), &words);
    let scripts: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let names: Vec<&str> = scripts.iter().filter_map(|s| s.rsplit('/').next()).collect();
    assert_eq!(
        names,
        [
            "job_0_setup.sbatch",
            "job_1_apply_monotonicity.sbatch",
            "job_2_train_baseline.sbatch",
            "job_3_train_monotonic.sbatch",
            "job_4_evaluate.sbatch",
            "job_5_uat.sbatch",
            "job_6_hotflip.sbatch",
            "job_7_aggregate.sbatch"
        ]
    );
    for script in &scripts {
        let bash = Command::new("bash").args(["-n", script]).status().unwrap();
        assert!(bash.success(), "{script}");
    }
    let shellcheck =
        Command::new("shellcheck").args(&scripts).output().expect("shellcheck is installed by scripts/setup");
    assert!(shellcheck.status.success(), "{}", String::from_utf8_lossy(&shellcheck.stdout));
    // Nothing was submitted or run.
    assert!(!root.join("results/monotone/full/setup").exists());
}

#[test]
fn the_whole_chain_is_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    full_study(root);
    let words = ["configs/monotone.toml", "--profile", "full", "--cluster", "example", "--local", "--dry-run"];
    let output = run(root, env!("CARGO_BIN_EXE_run_all"), &words);
    let text = String::from_utf8(output.stdout).unwrap().replace(root.to_str().unwrap(), "/study");
    insta::with_settings!({snapshot_path => "snapshots", prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!("monotone_full_dry_run", text);
    });
    let own = root.join("results/monotone/full/.seedbed");
    let left: Vec<_> = std::fs::read_dir(&own).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["digests.jsonl"], "a dry run leaves but the cache of digests");
}
