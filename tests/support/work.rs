//! A small study with programs of a test's own, and what its attempts recorded: on the fake Slurm and on the real one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use seedbed::workflow::slurm::{Client, Liveness, queue};
use serde_json::Value;

use super::chain::text;

/// A study `work` in a folder of its own, whose programs find that folder as `$D`.
pub struct Work {
    path: OsString,
    dir: tempfile::TempDir,
}

/// A stage: name, its other lines, and what `sh` runs.
pub type Stage<'a> = (&'a str, &'a str, &'a str);

impl Work {
    /// A study of these stages on the Slurm that `path` leads to; `head` stands behind `[study]`, `cluster` in the
    /// cluster file.
    pub fn new(path: OsString, cluster: &str, head: &str, stages: &[Stage<'_>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut study = format!("schema = 1\n[study]\nname = \"work\"\n{head}\n");
        for (name, lines, shell) in stages {
            study.push_str(&format!(
                "[[stage]]\nname = \"{name}\"\ncommand = [\"sh\", \"-c\", '''{shell}''']\n{lines}\n"
            ));
        }
        let mpi = if cluster.contains("launcher") { "" } else { "mpi = \"none\"\n" };
        let file = format!("schema = 1\n[cluster]\nname = \"test\"\n{mpi}fs_settle_s = 0\n{cluster}\n");
        std::fs::create_dir_all(dir.path().join("configs/clusters")).unwrap();
        std::fs::write(dir.path().join("configs/work.toml"), study).unwrap();
        std::fs::write(dir.path().join("configs/clusters/test.toml"), file).unwrap();
        Self { path, dir }
    }

    /// A file of the folder `$D`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its lines; none if it is not there.
    pub fn lines(&self, name: &str) -> Vec<String> {
        std::fs::read_to_string(self.file(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn program(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).args(["configs/work.toml", "--cluster", "test"]).current_dir(self.dir.path());
        command.env("PATH", &self.path).env("D", self.dir.path());
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED", "SEEDBED_END_TIME"] {
            command.env_remove(name);
        }
        command
    }

    pub fn run_all(&self, arguments: &[&str]) -> Output {
        self.program(env!("CARGO_BIN_EXE_run_all"), &[&["--yes"], arguments].concat()).output().unwrap()
    }

    /// A command of `seedbed`, however it ends.
    pub fn program_output(&self, command: &str, arguments: &[&str]) -> Output {
        self.program(env!("CARGO_BIN_EXE_seedbed"), &[&[command], arguments].concat()).output().unwrap()
    }

    /// What a command of `seedbed` says; it must succeed.
    pub fn seedbed(&self, arguments: &[&str]) -> String {
        let output = self.program(env!("CARGO_BIN_EXE_seedbed"), arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    /// Makes what Slurm said last too old to be believed.
    pub fn let_answers_age(&self) {
        super::let_answers_age(&self.base());
    }

    /// What `seedbed explain` says of a stage.
    pub fn explain(&self, stage: &str) -> String {
        let output = self.program(env!("CARGO_BIN_EXE_seedbed"), &["explain"]).arg(stage).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    /// `run_all`, which must succeed; the ids of the jobs that it submitted.
    pub fn submit(&self) -> Vec<u32> {
        let output = self.run_all(&[]);
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        Self::ids(&said)
    }

    /// The ids of the jobs that `run_all` says it submitted.
    pub fn ids(said: &str) -> Vec<u32> {
        said.lines().filter_map(|line| line.strip_prefix("job ")?.split(' ').next()?.parse().ok()).collect()
    }

    /// Submits, and waits for the end of it all.
    pub fn run(&self) -> Vec<u32> {
        let jobs = self.submit();
        self.wait(&jobs, 90);
        jobs
    }

    /// Waits until Slurm has nothing more to do for these jobs.
    pub fn wait(&self, jobs: &[u32], limit_s: u64) {
        let client = Client::with_path(&self.path);
        let deadline = Instant::now() + Duration::from_secs(limit_s);
        loop {
            // On a machine that is too busy a controller may not answer at once.
            let found = queue::query(&client, jobs);
            let is_alive = |e: &&queue::Entry| e.liveness() != Liveness::Ended;
            match &found {
                Ok(found) if found.entries().filter(is_alive).count() == 0 => return,
                _ => {}
            }
            assert!(Instant::now() < deadline, "still alive: {found:#?}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for a file of `$D`.
    pub fn wait_for(&self, name: &str, limit_s: u64) {
        let deadline = Instant::now() + Duration::from_secs(limit_s);
        while !self.file(name).exists() {
            assert!(Instant::now() < deadline, "no file {name} in {limit_s} s\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn base(&self) -> PathBuf {
        self.file("results/work/default")
    }

    /// A file of a cell's run directory, as JSON; null if it is not there.
    pub fn json(&self, cell: &str, file: &str) -> Value {
        let text = std::fs::read_to_string(self.base().join(cell).join(file));
        text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
    }

    /// How attempt `n` of a cell ended; null if it did not say.
    pub fn end(&self, cell: &str, n: u32) -> Value {
        self.json(cell, &format!("attempts/{n}.end.json"))
    }

    /// `why next` of every attempt of a cell; `silent` for one that said nothing.
    pub fn story(&self, cell: &str) -> Vec<String> {
        let words = |n| {
            let end = self.end(cell, n);
            let verdict = &end["verdict"];
            match (verdict["why"].as_str(), verdict["next"].as_str()) {
                (Some(why), Some(next)) => format!("{why} {next}"),
                _ => "silent".to_owned(),
            }
        };
        let started = |n: &u32| !self.json(cell, &format!("attempts/{n}.json")).is_null();
        (1..).take_while(started).map(words).collect()
    }

    pub fn is_sealed(&self, cell: &str) -> bool {
        !self.json(cell, "seal.json").is_null()
    }

    /// What a sealed cell's program wrote into `metrics.json`.
    pub fn metrics(&self, cell: &str) -> Value {
        assert!(self.is_sealed(cell), "{cell} is not sealed\n{}", self.logs());
        self.json(cell, "metrics.json")
    }

    /// Cells of the last intent of each job of the journal that ran before: what is written down of that.
    pub fn submitted_again(&self) -> BTreeMap<String, Value> {
        let mut found = BTreeMap::new();
        for line in self.lines("results/work/default/.seedbed/journal.jsonl") {
            let entry: Value = serde_json::from_str(&line).unwrap();
            for (cell, intended) in entry["cells"].as_object().into_iter().flatten() {
                if !intended["again"].is_null() {
                    found.insert(cell.clone(), intended["again"].clone());
                }
            }
        }
        found
    }

    /// All logs of jobs.
    pub fn logs(&self) -> String {
        let entries = std::fs::read_dir(self.base().join("logs")).into_iter().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|p| format!("-- {}\n{}", p.display(), std::fs::read_to_string(p).unwrap())).collect()
    }
}
