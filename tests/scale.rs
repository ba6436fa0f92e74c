//! What large studies cost: how often `plan`, `status` and `run_all` ask the file system and Slurm, counted on a small
//! one. How long that takes is measured by `scripts/bench/plan-scale` and `scripts/bench/submit`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use crate::support::chain::{Chain, Cluster, text};
use crate::support::fake_slurm::FakeSlurm;

/// Three stages; a file `sick` makes the second fail.
const STUDY: &str = r#"
schema = 1
[study]
name  = "scale"
seeds = [1, 2, 3]

[[stage]]
name    = "make"
command = ["sh", "-c", 'echo "{\"x\": 1}" > metrics.json; mkdir model; echo w > model/w']
resources = {time = "0:05:00"}
outputs = ["model"]

[[stage]]
name    = "train"
needs   = ["make"]
command = ["sh", "-c", 'if [ -e "$D/sick" ]; then exit 3; fi; echo "{\"x\": 2}" > metrics.json']
resources = {time = "0:05:00"}

[[stage]]
name    = "gather"
needs   = ["train"]
per     = []
command = ["sh", "-c", 'exit 1']
resources = {time = "0:05:00"}
"#;

struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    /// Seeds 1 and 2 of `make` and seed 1 of `train` are sealed, seed 2 of `train` has failed, the rest never began.
    fn half_done() -> Self {
        let small = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(small.dir.path().join("scale.toml"), STUDY).unwrap();
        small.run("run_all", &["--seeds", "1,2", "--stages", "make"]);
        small.run("run_all", &["--seeds", "1", "--stages", "train"]);
        std::fs::write(small.dir.path().join("sick"), "").unwrap();
        let failed = small.command("run_all", &["--seeds", "2", "--stages", "train"]).output().unwrap();
        assert!(!failed.status.success(), "{}", text(&failed));
        small
    }

    fn command(&self, program: &str, words: &[&str]) -> Command {
        let program = match program {
            "run_all" => env!("CARGO_BIN_EXE_run_all"),
            _ => env!("CARGO_BIN_EXE_seedbed"),
        };
        self.prepared(Command::new(program), words)
    }

    fn prepared(&self, mut command: Command, words: &[&str]) -> Command {
        command.args(words).arg("scale.toml").arg("--local").current_dir(self.dir.path()).env("D", self.dir.path());
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, program: &str, words: &[&str]) -> String {
        let output = self.command(program, words).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    fn base(&self) -> PathBuf {
        std::fs::canonicalize(self.dir.path()).unwrap().join("results/scale/default")
    }

    /// What a command asks of the file system about each run directory: `open` and `look` with the file, sorted. None
    /// where strace is not installed.
    fn asked(&self, words: &[&str]) -> Option<BTreeMap<String, Vec<String>>> {
        let log = self.dir.path().join("strace.log");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-qq", "-e", "trace=%file,%stat,%fstat", "-e", "signal=none", "-o"]).arg(&log);
        strace.arg(env!("CARGO_BIN_EXE_seedbed"));
        let output = match self.prepared(strace, words).output() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            output => output.unwrap(),
        };
        assert!(output.status.success(), "{}", text(&output));
        // By its whole path, or below the directory that is open.
        let base = self.base().display().to_string();
        let (whole, below) = (format!("{base}/"), format!("<{base}>, \""));
        let mut asked: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in std::fs::read_to_string(log).unwrap().lines() {
            let Some((_, path)) = line.split_once(&below).or_else(|| line.split_once(&whole)) else { continue };
            let path = path.split(['"', '>']).next().unwrap();
            let Some(end) = path.find("seed-").map(|at| at + "seed-1".len()) else { continue };
            let what = if line.contains(" open") { "open" } else { "look" };
            asked.entry(path[..end].to_owned()).or_default().push(format!("{what} {}", path[end..].trim_matches('/')));
        }
        asked.values_mut().for_each(|asked| asked.sort());
        Some(asked)
    }
}

#[test]
fn a_look_at_a_study_asks_each_thing_once() {
    let small = Small::half_done();
    let sealed = |outputs: &[&str]| {
        let mut asked: Vec<String> = outputs.iter().map(|output| format!("look {output}")).collect();
        asked.extend(["look invalid.json".to_owned(), "open seal.json".to_owned()]);
        asked.sort();
        asked
    };
    let made = sealed(&["metrics.json", "model/w", "run.h5"]);
    // One that has failed: whether it is sealed. Those that never began: nothing.
    let plan = BTreeMap::from([
        ("make/seed-1".to_owned(), made.clone()),
        ("make/seed-2".to_owned(), made),
        ("train/seed-1".to_owned(), sealed(&["metrics.json", "run.h5"])),
        ("train/seed-2".to_owned(), vec!["open seal.json".to_owned()]),
    ]);
    let Some(asked) = small.asked(&["plan"]) else {
        eprintln!("skipped: strace is not installed");
        return;
    };
    assert_eq!(asked, plan);
    assert_eq!(small.asked(&["plan"]).unwrap(), plan, "a second look is no cheaper and no dearer");
    // What failed is read once: the listing of its attempts, and the last of them.
    let mut status = plan;
    let attempts =
        ["look attempts", "open attempts", "open attempts/1.end.json", "open attempts/1.json", "open seal.json"];
    status.insert("train/seed-2".to_owned(), attempts.map(str::to_owned).to_vec());
    assert_eq!(small.asked(&["status"]).unwrap(), status);
}

#[test]
fn nothing_that_was_edited_or_lost_looks_fine_the_second_time() {
    let small = Small::half_done();
    let states = || {
        let plan: serde_json::Value =
            serde_json::from_str(&small.run("seedbed", &["plan", "--format", "json"])).unwrap();
        let cells = plan["cells"].as_array().unwrap().clone();
        let state =
            |c: &serde_json::Value| (c["cell"].as_str().unwrap().to_owned(), c["state"].as_str().unwrap().to_owned());
        cells.iter().map(state).collect::<BTreeMap<_, _>>()
    };
    let fine = states();
    assert_eq!((fine["make/seed-1"].as_str(), fine["train/seed-1"].as_str()), ("done", "done"));
    let dir = small.base().join("make/seed-1");
    let changed = |file: &str, change: &dyn Fn(&PathBuf), state: &str| {
        let path = dir.join(file);
        let before = std::fs::read(&path).ok();
        change(&path);
        assert_eq!(states()["make/seed-1"], state, "{file}");
        match before {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        assert_eq!(states(), fine, "{file} is as it was");
    };
    // In place, so that neither its inode nor the directory's time tells; of the same size, at the same time.
    let edit = |path: &PathBuf| {
        let time = std::fs::metadata(path).unwrap().modified().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, text.replacen("\"attempt\": 1", "\"attempt\": 2", 1)).unwrap();
        std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    };
    changed("seal.json", &edit, "damaged");
    changed("seal.json", &|path| std::fs::remove_file(path).unwrap(), "missing");
    changed("invalid.json", &|path| std::fs::write(path, "{}").unwrap(), "missing");
    changed("metrics.json", &|path| std::fs::write(path, "").unwrap(), "missing-outputs");
    changed("model/w", &|path| std::fs::remove_file(path).unwrap(), "missing-outputs");
}

#[test]
fn an_array_is_one_row_of_the_plan() {
    let slurm = FakeSlurm::new();
    slurm.set("hold", 1);
    let chain = Chain::new(Cluster { path: slurm.path(), lines: "" }, &[1, 2, 3, 4, 5]);
    let jobs = chain.submit(&[]);
    let output = chain.seedbed("plan", &[]).output().unwrap();
    let said = text(&output);
    let row = |start: &str| said.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let rows: Vec<String> = row("1 apply").into_iter().map(words).collect();
    let first = jobs[1];
    assert_eq!(rows, [format!("1 apply seed-1 .. seed-5 (5) queued job {first} PENDING")], "{said}");
    assert_eq!(said.lines().filter(|line| line.contains("PENDING")).count(), 8, "{said}");
    // A single job is named whole.
    assert!(row("7 aggregate")[0].contains(&format!("job {} PENDING", jobs[7])), "{said}");
}

#[test]
fn a_chain_is_submitted_with_few_questions() {
    let slurm = FakeSlurm::new();
    slurm.set("hold", 1);
    let chain = Chain::new(Cluster { path: slurm.path(), lines: "" }, &[1, 2, 3, 4, 5]);
    chain.submit(&[]);
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for call in slurm.calls() {
        let asks = call.iter().any(|word| word == "--test-only");
        *calls.entry(format!("{}{}", call[0], if asks { " --test-only" } else { "" })).or_default() += 1;
    }
    // One shape of job, one array for each stage; what the site allows, and whether it is a federation.
    let expected = [("sbatch", 8), ("sbatch --test-only", 1), ("scontrol", 2)];
    assert_eq!(calls, expected.map(|(name, n)| (name.to_owned(), n)).into());
}

#[test]
fn more_than_a_million_cells_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let seeds: Vec<String> = (1..=100_000).map(|s| s.to_string()).collect();
    let arms: Vec<String> = (0..11).map(|a| format!("{{name = \"a{a}\"}}")).collect();
    let study = format!(
        r#"schema = 1
[study]
name = "huge"
seeds = [{}]
[[stage]]
name = "train"
command = ["true"]
per = ["arm", "seed"]
arms = [{}]
resources = {{time = "0:05:00"}}
[[table]]
key = "t"
rows = [{{key = "a0", arm = "a0"}}]
columns = [{{key = "x", stage = "train", metric = ".x"}}]
"#,
        seeds.join(","),
        arms.join(",")
    );
    std::fs::write(dir.path().join("huge.toml"), study).unwrap();
    for command in ["plan", "status", "aggregate"] {
        let output = Command::new(env!("CARGO_BIN_EXE_seedbed"))
            .args([command, "huge.toml", "--local"])
            .current_dir(dir.path())
            .env_remove("SEEDBED_ROOT")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(64), "{command}: {}", text(&output));
        assert!(
            text(&output).contains("1100000 cells") && text(&output).contains("fewer arms or seeds"),
            "{}",
            text(&output)
        );
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["huge.toml"], "{command} wrote something");
    }
}
