//! A study of eight stages with programs that need no training, and what `run_all` must make of it on any Slurm: the
//! scenarios here run on the fake one and on the real one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use seedbed::workflow::slurm::{Client, Liveness, queue};
use serde_json::Value;

/// A Slurm to submit to.
pub struct Cluster {
    /// `PATH` with its commands.
    pub path: OsString,
    /// Further lines of the cluster file.
    pub lines: &'static str,
}

/// Stages 0 to 7 with what they need, as in the monotone study.
const STAGES: [(&str, &[&str]); 8] = [
    ("setup", &[]),
    ("apply", &["setup"]),
    ("train_baseline", &["setup"]),
    ("train_monotonic", &["apply"]),
    ("evaluate", &["train_baseline", "train_monotonic"]),
    ("uat", &["train_baseline", "train_monotonic"]),
    ("hotflip", &["train_baseline", "train_monotonic"]),
    ("aggregate", &["evaluate", "uat", "hotflip"]),
];

/// A study in a folder of its own.
pub struct Chain {
    cluster: Cluster,
    dir: tempfile::TempDir,
    seeds: Vec<u32>,
}

impl Chain {
    /// The eight stages over `seeds`. A file `sick` makes seed 1337 fail in stage 3; a file `tired` lets stage 2
    /// checkpoint once and go on in another attempt.
    pub fn new(cluster: Cluster, seeds: &[u32]) -> Self {
        Self::timed(cluster, seeds, "0:05:00")
    }

    /// The same with a time limit for stage 2, which with a file `slow` works until it is told to stop.
    pub fn timed(cluster: Cluster, seeds: &[u32], limit: &str) -> Self {
        // Nothing of it may reach a shell or an sbatch line unquoted.
        let dir = tempfile::Builder::new().prefix("it's 100%j $(touch pwned) \"#\" ").tempdir().unwrap();
        let mut study = format!("schema = 1\n[study]\nname = \"chain\"\nseeds = {seeds:?}\n");
        for (stage, needs) in STAGES {
            let body = match stage {
                "train_monotonic" => {
                    r#"if [ -e "$CHAIN_MARKS/sick" ] && [ "$SEEDBED_SEED" = 1337 ]; then exit 3; fi; "#
                }
                "train_baseline" => {
                    r#"rested="$CHAIN_MARKS/rested_$SEEDBED_SEED"; if [ ! -e "$rested" ]; then if [ -e "$CHAIN_MARKS/tired" ]; then touch "$rested"; exit 75; fi; if [ -e "$CHAIN_MARKS/slow" ]; then trap 'touch "$rested"; exit 75' USR2; while :; do sleep 0.2; done; fi; fi; "#
                }
                _ => "",
            };
            let command = ["sh", "-c", &format!(r#"{body}echo "{{\"x\": 1}}" > metrics.json"#)];
            let words: Vec<_> = command.iter().map(|word| format!("'''{word}'''")).collect();
            study.push_str(&format!("[[stage]]\nname = \"{stage}\"\ncommand = [{}]\n", words.join(", ")));
            let time = if stage == "train_baseline" { limit } else { "0:05:00" };
            study.push_str(&format!("needs = {needs:?}\nresources = {{mem = \"64M\", time = \"{time}\"}}\n"));
            match stage {
                "aggregate" => study.push_str("per = []\n"),
                "train_baseline" => study.push_str("resumable = true\n"),
                _ => {}
            }
        }
        let file = "schema = 1\n[cluster]\nname = \"test\"\nmpi = \"none\"\nfs_settle_s = 0\n";
        std::fs::create_dir_all(dir.path().join("configs/clusters")).unwrap();
        std::fs::write(dir.path().join("configs/chain.toml"), study).unwrap();
        std::fs::write(dir.path().join("configs/clusters/test.toml"), format!("{file}{}\n", cluster.lines)).unwrap();
        Self { cluster, dir, seeds: seeds.to_vec() }
    }

    pub fn touch(&self, file: &str) {
        std::fs::write(self.dir.path().join(file), "").unwrap();
    }

    pub fn remove(&self, file: &str) {
        std::fs::remove_file(self.dir.path().join(file)).unwrap();
    }

    /// A program of ours, where the study and its Slurm are.
    pub fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // Jobs inherit it: a study may not name what lies outside without declaring it.
        command.env("PATH", &self.cluster.path).env("CHAIN_MARKS", self.dir.path()).current_dir(self.dir.path());
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command
    }

    /// `run_all` on the study.
    pub fn run_all(&self, arguments: &[&str]) -> Output {
        let mut command = self.program(env!("CARGO_BIN_EXE_run_all"));
        command.args(["configs/chain.toml", "--cluster", "test", "--yes"]).args(arguments).output().unwrap()
    }

    /// `run_all`, started and not waited for.
    pub fn start_run_all(&self) -> Child {
        let mut command = self.program(env!("CARGO_BIN_EXE_run_all"));
        command.args(["configs/chain.toml", "--cluster", "test", "--yes"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// `run_all`, which must succeed; the ids of the jobs that it submitted.
    pub fn submit(&self, arguments: &[&str]) -> Vec<u32> {
        let output = self.run_all(arguments);
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        said.lines().filter_map(|line| line.strip_prefix("job ")?.split(' ').next()?.parse().ok()).collect()
    }

    /// `seedbed` with a subcommand about the study.
    pub fn seedbed(&self, subcommand: &str, arguments: &[&str]) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_seedbed"));
        command.args([subcommand, "configs/chain.toml"]).args(arguments).args(["--cluster", "test"]);
        command.stdin(Stdio::null());
        command
    }

    /// What `seedbed` says as JSON; it must succeed.
    pub fn json(&self, subcommand: &str, arguments: &[&str]) -> Value {
        let output = self.seedbed(subcommand, arguments).args(["--format", "json"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Makes what Slurm said last too old to be believed, as if 15 seconds had gone by.
    pub fn let_answers_age(&self) {
        super::let_answers_age(&self.base());
    }

    /// A file of the study's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// State of every cell, by `seedbed status`.
    pub fn states(&self) -> BTreeMap<String, String> {
        let status = self.json("status", &[]);
        let cells = status["cells"].as_array().unwrap().iter();
        cells.map(|c| (c["cell"].as_str().unwrap().to_owned(), c["state"].as_str().unwrap().to_owned())).collect()
    }

    /// Cells that are not done.
    pub fn not_done(&self) -> Vec<String> {
        self.states().into_iter().filter(|(_, state)| state != "done").map(|(cell, _)| cell).collect()
    }

    /// Waits until Slurm has nothing more to do for these jobs.
    pub fn wait(&self, jobs: &[u32]) {
        let client = Client::with_path(&self.cluster.path);
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let found = queue::query(&client, jobs).unwrap();
            let alive: Vec<_> = found.entries().filter(|e| e.liveness() != Liveness::Ended).collect();
            if alive.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "still alive: {alive:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The study's results.
    pub fn base(&self) -> PathBuf {
        self.dir.path().join("results/chain/default")
    }

    /// Whether a cell was ever started.
    pub fn was_started(&self, cell: &str) -> bool {
        self.base().join(cell).join("attempts/1.json").exists()
    }

    /// All logs of a stage's jobs.
    pub fn log(&self, stage: &str) -> String {
        let logs = std::fs::read_dir(self.base().join("logs")).unwrap().map(|entry| entry.unwrap().path());
        let mut hits: Vec<_> = logs.filter(|path| path.to_str().unwrap().contains(&format!("_{stage}_"))).collect();
        hits.sort();
        hits.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }

    fn cells(&self, stages: &[&str], seed: u32) -> Vec<String> {
        stages.iter().map(|stage| format!("{stage}/seed-{seed}")).collect()
    }

    /// A healthy chain: every cell sealed, one sbatch call for each stage, and nothing to do afterwards.
    pub fn runs_to_its_seals(&self) {
        let jobs = self.submit(&[]);
        assert_eq!(jobs.len(), STAGES.len(), "one job for each stage");
        self.wait(&jobs);
        assert_eq!(self.not_done(), Vec::<String>::new(), "{}{}", self.log("setup"), self.log("aggregate"));
        assert_eq!(self.states().len(), 7 * self.seeds.len() + 1);
        assert_eq!(self.submit(&[]), Vec::<u32>::new(), "everything is sealed");
        assert!(!self.dir.path().join("pwned").exists(), "a part of a path was run");
    }

    /// One seed dies in stage 3: its own later cells end, the others finish, and the aggregation runs and names it. Once
    /// it is well, `run_all` runs only what is missing. `per_cell`: the site has one job for each cell.
    pub fn survives_a_sick_seed(&self, per_cell: bool) {
        self.touch("sick");
        let jobs = self.submit(&[]);
        assert_eq!(jobs.len(), if per_cell { 7 * self.seeds.len() + 1 } else { STAGES.len() });
        self.wait(&jobs);
        let later = ["evaluate", "uat", "hotflip"];
        let mut expected = self.cells(&["train_monotonic", "evaluate", "uat", "hotflip"], 1337);
        expected.push("aggregate".to_owned());
        expected.sort();
        assert_eq!(self.not_done(), expected);
        for cell in self.cells(&later, 1337) {
            assert!(!self.was_started(&cell), "{cell} has no input, and must not start");
        }
        let log = self.log("aggregate");
        assert!(log.contains("seed-1337") && !log.contains("seed-42"), "it names the missing seed only: {log}");
        self.gate_refused(&jobs);

        self.remove("sick");
        let again = self.submit(&[]);
        assert_eq!(again.len(), 5, "stage 3 to 7 of one seed");
        self.wait(&again);
        assert_eq!(self.not_done(), Vec::<String>::new());
    }

    /// The aggregation's job has ended with exit code 66.
    fn gate_refused(&self, jobs: &[u32]) {
        let last = jobs.last().unwrap().to_string();
        let output =
            self.program("squeue").args(["-h", "-t", "all", "-j", &format!("1,{last}"), "-o", "%i %T"]).output();
        let said = text(&output.unwrap());
        assert!(said.contains(&format!("{last} FAILED")), "{said}");
    }

    /// A stage that checkpoints is requeued in place while its children wait.
    pub fn goes_on_after_a_checkpoint(&self) {
        self.touch("tired");
        self.checkpoints_once();
    }

    /// The warning before the time limit reaches the stage, which checkpoints, is requeued and goes on.
    pub fn goes_on_after_its_time_limit(&self) {
        self.touch("slow");
        self.checkpoints_once();
        let log = self.log("train_baseline");
        assert!(log.contains("attempt 1 ended") && log.contains("attempt 2 ended"), "one log of both: {log}");
    }

    /// While stage 2 works it is looked at: what runs, what waits, and for what. Then all is cancelled, and comes back.
    pub fn is_looked_at_cancelled_and_taken_up(&self) {
        self.touch("slow");
        let jobs = self.submit(&[]);
        let log = |seed: &u32| self.base().join(format!("train_baseline/seed-{seed}/log.txt"));
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.seeds.iter().all(|seed| log(seed).exists()) {
            assert!(Instant::now() < deadline, "stage 2 does not start: {}", self.log("train_baseline"));
            std::thread::sleep(Duration::from_millis(100));
        }
        let seed = self.seeds[0].to_string();
        let states = self.states();
        assert_eq!(states[&format!("setup/seed-{seed}")], "done");
        assert_eq!(states[&format!("train_baseline/seed-{seed}")], "running");
        assert_eq!((states[&format!("uat/seed-{seed}")].as_str(), states["aggregate"].as_str()), ("queued", "queued"));
        let said = self.json("explain", &["uat", "--seed", &seed]);
        let reasons = said["cells"][0]["reasons"].as_array().unwrap();
        let told = |r: &Value| format!("{} {}", r["cell"].as_str().unwrap(), r["cause"].as_str().unwrap());
        let told: Vec<String> = reasons.iter().map(told).collect();
        assert_eq!(told[..2], [format!("uat/seed-{seed} dependency"), format!("uat/seed-{seed} parent-not-done")]);
        assert!(told.contains(&format!("train_baseline/seed-{seed} running")), "{told:?}");

        let output = self.seedbed("cancel", &["--yes"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let states = self.states();
        assert!(states.values().all(|state| state == "done" || state == "cancelled"), "{states:#?}");
        assert_eq!(states["aggregate"], "cancelled");
        self.wait(&jobs);
        self.remove("slow");
        let again = self.submit(&[]);
        self.wait(&again);
        assert_eq!(self.not_done(), Vec::<String>::new());
    }

    fn checkpoints_once(&self) {
        let jobs = self.submit(&["--stages", "setup,train_baseline,apply,train_monotonic,evaluate"]);
        assert_eq!(jobs.len(), 5);
        self.wait(&jobs);
        for seed in &self.seeds {
            let end = |n: u32| {
                let path = self.base().join(format!("train_baseline/seed-{seed}/attempts/{n}.end.json"));
                let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                serde_json::from_str::<Value>(&text).unwrap()["exit_code"].clone()
            };
            assert_eq!((end(1), end(2)), (Value::from(75), Value::from(0)));
        }
        let states = self.states();
        for cell in states.keys().filter(|cell| cell.starts_with("evaluate/")) {
            assert_eq!(states[cell], "done", "{cell}");
        }
    }
}

/// Both outputs of a program.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
