//! The shell scripts of the repository: every one parses and passes shellcheck, and bad use gets a message and a
//! documented exit code.

use crate::support::repository;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Every file under `scripts/` and `.ci/` that starts as a shell script.
fn shell_scripts() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if fs::read(&path).unwrap().split(|b| *b == b'\n').next().is_some_and(is_shell_line) {
                found.push(path);
            }
        }
    }
    fn is_shell_line(line: &[u8]) -> bool {
        line.starts_with(b"#!") && (line.ends_with(b"sh"))
    }
    let mut found = Vec::new();
    for dir in ["scripts", ".ci"] {
        walk(&repository().join(dir), &mut found);
    }
    found.sort_unstable();
    found
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_scripts_of_the_house_are_found() {
    let names: Vec<_> =
        shell_scripts().iter().map(|p| p.strip_prefix(repository()).unwrap().display().to_string()).collect();
    for name in
        [".ci/run", "scripts/peers", "scripts/quickstart", "scripts/setup", "scripts/slurm-sandbox", "scripts/test"]
    {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
}

#[test]
fn every_script_parses() {
    for script in shell_scripts() {
        let output = Command::new("bash").arg("-n").arg(&script).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn every_script_passes_shellcheck() {
    let Ok(output) = Command::new("shellcheck").args(shell_scripts()).output() else {
        eprintln!("skipped: shellcheck is not installed; scripts/setup names its package");
        return;
    };
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn every_script_stops_at_the_first_error() {
    for script in shell_scripts() {
        assert!(fs::read_to_string(&script).unwrap().contains("\nset -euo pipefail\n"), "{}", script.display());
    }
}

#[test]
fn bad_use_is_named_and_ends_with_64() {
    for (script, words, named) in [
        ("scripts/setup", &["--chekc"][..], "--chekc"),
        ("scripts/test", &["--peer"], "--peer"),
        ("scripts/peers", &["--make"], "--make"),
        ("scripts/quickstart", &["--fast"], "--fast"),
        ("scripts/chaos", &["--round"], "--round"),
        ("scripts/chaos", &["--rounds", "many"], "many"),
        ("scripts/chaos", &["--rounds", "0"], "at least 1"),
        ("scripts/slurm-sandbox", &["exec", "n9", "true"], "n9"),
        ("scripts/slurm-sandbox", &["exec", "n1"], "CMD"),
        ("scripts/slurm-sandbox", &["start"], "usage"),
    ] {
        let output = Command::new(repository().join(script)).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{script} {words:?}: {}", text(&output));
        assert!(text(&output).contains(named), "{script} {words:?}: {}", text(&output));
    }
}

#[test]
fn a_sandbox_directory_that_slurm_cannot_hold_is_refused() {
    for dir in ["relative", "/tmp/a b", "/tmp/$(touch x)", "/tmp/a\nb"] {
        let output = Command::new(repository().join("scripts/slurm-sandbox"))
            .arg("status")
            .env("SEEDBED_SANDBOX_DIR", dir)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(64), "{dir:?}: {}", text(&output));
        assert!(text(&output).contains("SEEDBED_SANDBOX_DIR"), "{}", text(&output));
    }
}

/// Runs a script as the user `nobody`, who has neither root nor sudo; `None` where this test itself is not root.
fn as_nobody(script: &str, words: &[&str]) -> Option<Output> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg("bash")
        .arg(repository().join(script))
        .args(words)
        .output()
        .unwrap();
    Some(output)
}

#[test]
fn without_root_the_sandbox_says_what_to_type_and_ends_with_77() {
    let Some(output) = as_nobody("scripts/slurm-sandbox", &["up"]) else { return };
    assert_eq!(output.status.code(), Some(77), "{}", text(&output));
    assert!(text(&output).contains("sudo"), "{}", text(&output));
    assert_eq!(text(&output).lines().count(), 1, "{}", text(&output));
}
