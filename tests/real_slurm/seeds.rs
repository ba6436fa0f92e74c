//! A whole study, submitted by `run_all` on the head itself: the chain goes on after the call has returned, a healthy
//! seed does not wait for a slow one, and the bytes are those of a local run.

use crate::support::repository;
use crate::support::sandbox::{assert_ok, sandbox};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Three stages over three seeds, of which seed 5 is slow in the first, and one cell behind all.
fn write_study(dir: &Path) -> PathBuf {
    let step = |name: &str, needs: &str, shell: &str| {
        format!(
            "[[stage]]\nname = \"{name}\"\n{needs}\noutputs = [\"out.txt\"]\ncommand = [\"sh\", \"-c\", '''{shell}''']\n\
             resources = {{cpus_per_task = 1, mem = \"100M\", time = \"0:05:00\"}}\n\n"
        )
    };
    let text = [
        "schema = 1\n[study]\nname = \"seeds\"\nseeds = [3, 5, 7]\n\n".to_owned(),
        step("first", "", "[ \"$SEEDBED_SEED\" != 5 ] || sleep 20; echo \"$SEEDBED_SEED\" > out.txt"),
        step("second", "needs = [\"first\"]", "cat \"$SEEDBED_NEED_first/out.txt\" > out.txt"),
        step("third", "needs = [\"second\"]", "cat \"$SEEDBED_NEED_second/out.txt\" > out.txt"),
        step(
            "all",
            "needs = [\"third\"]\nper = []",
            "printf '%s\\n' \"$SEEDBED_NEED_third\" | while read -r dir; do cat \"$dir/out.txt\"; done > out.txt",
        ),
    ]
    .concat();
    let study = dir.join("seeds.toml");
    fs::write(&study, text).unwrap();
    study
}

#[test]
fn healthy_seeds_do_not_wait_and_the_bytes_are_those_of_a_local_run() {
    let Some(slurm) = sandbox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let study = write_study(dir.path());
    let submit = || {
        let output = slurm
            .on("head", 120)
            .arg(env!("CARGO_BIN_EXE_run_all"))
            .arg(&study)
            .args(["--yes", "--cluster"])
            .arg(repository().join("configs/clusters/sandbox.toml"))
            .env_remove("EXPERIMENT_SEED")
            .output()
            .unwrap();
        assert_ok(&output, &["run_all"]);
        String::from_utf8(output.stderr).unwrap()
    };
    let ids = |said: &str| -> Vec<String> {
        said.lines().filter_map(|line| line.strip_prefix("job ")?.split(' ').next().map(str::to_owned)).collect()
    };
    let jobs = ids(&submit());
    assert_eq!(jobs.len(), 4, "one sbatch a stage, whatever the number of seeds");
    slurm.wait_until_gone(&jobs, 120);

    let results = dir.path().join("results/seeds/default");
    let made = |cell: &str| fs::metadata(results.join(cell).join("out.txt")).unwrap().modified().unwrap();
    assert!(made("third/seed-3") < made("first/seed-5"), "seed 3 waited for seed 5");
    let again = submit();
    assert!(ids(&again).is_empty() && again.contains("everything is sealed"), "{again}");

    let here = dir.path().join("here");
    let local = Command::new(env!("CARGO_BIN_EXE_run_all"))
        .arg(&study)
        .args(["--local", "--root"])
        .arg(&here)
        .env_remove("EXPERIMENT_SEED")
        .output()
        .unwrap();
    assert_ok(&local, &["run_all", "--local"]);
    for cell in ["first/seed-5", "third/seed-7", "all"] {
        let bytes = |root: &Path| fs::read(root.join("results/seeds/default").join(cell).join("out.txt")).unwrap();
        assert_eq!(bytes(dir.path()), bytes(&here), "{cell}");
    }
    assert_eq!(fs::read(results.join("all/out.txt")).unwrap(), b"3\n5\n7\n");
}
