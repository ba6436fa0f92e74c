//! A study with a gate between what is measured and what is trained, and what `run_all` must make of it: here, on a fake
//! Slurm and on a real one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use seedbed::workflow::slurm::{Client, Liveness, queue};
use serde_json::Value;

/// A study in a folder of its own: `measure` over three seeds, a gate `gap` over all of them, `train` and `report` behind
/// it. The rate that a seed measures stands in a file `rate_<seed>`; a file `sick_<seed>` makes it fail.
pub struct Gated {
    dir: tempfile::TempDir,
    /// `PATH` with Slurm's commands; absent for a study that runs here.
    slurm: Option<OsString>,
}

const STAGES: &str = r#"
schema = 1
[study]
name  = "gated"
seeds = [1, 2, 3]

[[stage]]
name      = "measure"
command   = ["sh", "-c", '''[ ! -e "$D/sick_$SEEDBED_SEED" ] || exit 3; printf '{"rate": %s}' "$(cat "$D/rate_$SEEDBED_SEED")" > metrics.json''']
resources = {mem = "64M", time = "0:05:00"}

[[stage]]
name      = "train"
needs     = ["measure", "gap"]
command   = ["sh", "-c", '''echo "$SEEDBED_SEED" >> "$D/trained"; [ -z "$SEEDBED_NEED_gap" ] || exit 4; echo '{"loss": 1.5}' > metrics.json''']
resources = {mem = "64M", time = "0:05:00"}

[[stage]]
name      = "report"
needs     = ["train"]
per       = []
command   = ["sh", "-c", "echo '{}' > metrics.json"]
resources = {mem = "64M", time = "0:05:00"}
"#;

impl Gated {
    /// The study with this `[[gate]]`, its name and needs left out.
    pub fn new(slurm: Option<OsString>, gate: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let work = Self { dir, slurm };
        std::fs::create_dir_all(work.path("configs/clusters")).unwrap();
        let cluster = "schema = 1\n[cluster]\nname = \"test\"\nmpi = \"none\"\nfs_settle_s = 0\n";
        std::fs::write(work.path("configs/clusters/test.toml"), cluster).unwrap();
        work.ask(gate);
        for seed in [1, 2, 3] {
            work.rate(seed, "0.25");
        }
        work
    }

    /// Writes the study with another gate.
    pub fn ask(&self, gate: &str) {
        let resources = "resources = {mem = \"64M\", time = \"0:05:00\"}";
        let text = format!("{STAGES}\n[[gate]]\nname = \"gap\"\nneeds = [\"measure\"]\n{resources}\n{gate}\n");
        std::fs::write(self.path("configs/gated.toml"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a seed is to measure.
    pub fn rate(&self, seed: u32, rate: &str) {
        std::fs::write(self.path(&format!("rate_{seed}")), rate).unwrap();
    }

    /// Measures a seed anew: its seal goes.
    pub fn measure_again(&self, seed: u32) {
        std::fs::remove_file(self.base().join(format!("measure/seed-{seed}/seal.json"))).unwrap();
    }

    pub fn base(&self) -> PathBuf {
        self.path("results/gated/default")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).env("D", self.dir.path()).args(arguments).stdin(Stdio::null());
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        match &self.slurm {
            None => command.arg("--local"),
            Some(path) => command.env("PATH", path).args(["--cluster", "test"]),
        };
        command
    }

    /// A subcommand about the study.
    pub fn seedbed(&self, subcommand: &str, arguments: &[&str]) -> Output {
        let words = [&[subcommand, "configs/gated.toml"], arguments].concat();
        self.command(env!("CARGO_BIN_EXE_seedbed"), &words).output().unwrap()
    }

    /// `run_all`, and on Slurm the end of its jobs; what it said, and its exit code.
    pub fn run_all(&self) -> (i32, String) {
        let output = self.command(env!("CARGO_BIN_EXE_run_all"), &["configs/gated.toml", "--yes"]).output().unwrap();
        let said = text(&output);
        let jobs: Vec<u32> =
            said.lines().filter_map(|line| line.strip_prefix("job ")?.split(' ').next()?.parse().ok()).collect();
        if let Some(path) = &self.slurm {
            wait(path, &jobs);
        }
        (output.status.code().unwrap_or(-1), said)
    }

    /// State of every cell, and by whom.
    pub fn states(&self) -> BTreeMap<String, (String, String)> {
        let output = self.seedbed("plan", &["--format", "json"]);
        assert!(output.status.success(), "{}", text(&output));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let word = |cell: &Value, key: &str| cell[key].as_str().unwrap_or_default().to_owned();
        let cells = plan["cells"].as_array().unwrap().iter();
        cells.map(|c| (word(c, "cell"), (word(c, "state"), word(c, "by")))).collect()
    }

    /// The one state of each stage, and `mixed` where cells differ.
    pub fn stages(&self) -> BTreeMap<String, String> {
        let mut stages: BTreeMap<String, String> = BTreeMap::new();
        for (cell, (state, _)) in self.states() {
            let stage = cell.split('/').next().unwrap().to_owned();
            let entry = stages.entry(stage).or_insert_with(|| state.clone());
            if *entry != state {
                *entry = "mixed".to_owned();
            }
        }
        stages
    }

    /// How often a cell of `train` was started.
    pub fn trained(&self) -> usize {
        std::fs::read_to_string(self.path("trained")).map_or(0, |text| text.lines().count())
    }

    /// How often the gate was asked since its question was last changed.
    pub fn asked(&self) -> usize {
        (1..).take_while(|n| self.base().join(format!("gap/attempts/{n}.json")).exists()).count()
    }

    /// The gate's decision record.
    pub fn decision(&self) -> Value {
        json(&self.base().join("gap/decision.json"))
    }

    /// The gate's seal.
    pub fn seal(&self) -> Value {
        json(&self.base().join("gap/seal.json"))
    }

    /// A gate that stops: nothing behind it runs, no job stays, and `run_all` does not ask it again; with other
    /// conditions it is asked, the old ones stand beside the new ones, and the chain goes on.
    pub fn stops_and_goes_on_under_other_conditions(&self) {
        self.rate(2, "0.9");
        let (code, said) = self.run_all();
        if self.slurm.is_none() {
            assert_eq!(code, 78, "{said}");
            assert!(said.contains("gap: stop") && said.contains("fails: base_rate is 0.4"), "{said}");
        }
        assert_eq!(self.trained(), 0, "nothing behind the gate runs");
        let states = self.states();
        let stopped = ("stopped".to_owned(), "gate gap".to_owned());
        assert_eq!(states["measure/seed-2"].0, "done");
        for cell in ["gap", "train/seed-1", "train/seed-2", "train/seed-3", "report"] {
            assert_eq!(states[cell], stopped, "{cell}");
        }
        let status = text(&self.seedbed("status", &[]));
        assert!(status.lines().any(|l| l.starts_with("train/seed-1") && l.contains("stopped (gate gap)")), "{status}");
        let seal = self.seal();
        assert_eq!(seal["outcome"], "stopped");
        assert_eq!(seal["outputs"][0]["path"], "decision.json", "sealed also when the verdict is stop");
        let read = seal["read"].as_array().unwrap().iter();
        assert_eq!(read.filter(|f| f["path"].as_str().unwrap().ends_with("/run.h5")).count(), 3, "what it judged");

        let (code, said) = self.run_all();
        assert_eq!(code, 78, "{said}");
        assert_eq!((self.asked(), self.trained()), (1, 0), "of the same inputs it is not asked again");
        assert!(said.contains("stopped (gate gap)") && said.contains("decision.json"), "{said}");

        self.ask("conditions.base_rate = {of = \"measure\", value = \"map(.metrics.rate) | mean\", most = 0.5}");
        let plan = text(&self.seedbed("plan", &[]));
        assert!(plan.contains("verdict: \"stop\" -> \"undecided\"; params.conditions[0].most: 0.3 -> 0.5"), "{plan}");
        let (code, said) = self.run_all();
        assert_eq!(code, 0, "{said}");
        assert!(self.stages().values().all(|s| s == "done"), "{:?}\n{said}", self.stages());
        assert_eq!(self.trained(), 3);
        let decision = self.decision();
        assert_eq!(decision["verdict"], "pass");
        assert_eq!(decision["earlier"][0]["verdict"], "stop");
        assert_eq!(decision["earlier"][0]["conditions"][0]["condition"]["most"], 0.3);
        let signoff = self.seedbed("signoff", &[]);
        let said = text(&signoff);
        assert!(signoff.status.success(), "{said}");
        let old = "changed: base_rate: `map(.metrics.rate) | mean` of measure at most 0.3 (it was 0.4";
        assert!(said.contains(old) && said.contains("when the verdict was stop"), "{said}");
        assert!(said.contains("[x] gate gap: pass") && said.contains("holds: base_rate is 0.4"), "{said}");
    }

    /// A gate that asks a person: no job stays, nothing behind it runs; once it is confirmed the chain goes on.
    pub fn waits_for_a_person(&self) {
        let (_, said) = self.run_all();
        assert_eq!(self.trained(), 0, "{said}");
        let states = self.states();
        let waiting = ("waiting".to_owned(), "gate gap".to_owned());
        for cell in ["gap", "train/seed-1", "report"] {
            assert_eq!(states[cell], waiting, "{cell}: {said}");
        }
        assert!(!self.base().join("gap/seal.json").exists(), "a gate that waits is not sealed");
        let (code, said) = self.run_all();
        assert_eq!((code, self.asked()), (1, 1), "it is not asked again: {said}");
        assert!(said.contains("seedbed confirm configs/gated.toml --") && said.contains(" gap\n"), "{said}");

        let output = self.seedbed("confirm", &["gap"]);
        assert_eq!(output.status.code(), Some(64), "silence is no confirmation");
        let output = self.seedbed("confirm", &["gap", "--yes", "--evidence", "00000000"]);
        assert!(output.status.code() == Some(64) && text(&output).contains("is "), "{}", text(&output));
        let evidence = self.decision()["evidence"].as_str().unwrap().to_owned();
        let output = self.seedbed("confirm", &["gap", "--yes", "--evidence", &evidence[..8], "--note", "read it"]);
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("holds: base_rate is 0.25, at most 0.3"), "{}", text(&output));

        let (code, said) = self.run_all();
        assert_eq!(code, 0, "{said}");
        assert!(self.stages().values().all(|s| s == "done"), "{:?}\n{said}", self.stages());
        let confirmation = &self.decision()["confirmation"];
        assert_eq!(
            (confirmation["evidence"].as_str(), confirmation["note"].as_str()),
            (Some(&*evidence), Some("read it"))
        );
        assert!(confirmation["user"].as_str().is_some_and(|u| !u.is_empty()));
        let signoff = text(&self.seedbed("signoff", &[]));
        assert!(signoff.contains("confirmed by ") && signoff.contains("(read it): the samples were read"), "{signoff}");
    }
}

/// Both outputs of a program.
fn text(output: &Output) -> String {
    super::chain::text(output)
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Waits until Slurm has nothing more to do for these jobs.
fn wait(path: &OsString, jobs: &[u32]) {
    let client = Client::with_path(path);
    let deadline = Instant::now() + Duration::from_secs(120);
    while !jobs.is_empty() {
        let found = queue::query(&client, jobs).unwrap();
        if found.entries().all(|e| e.liveness() == Liveness::Ended) {
            return;
        }
        assert!(Instant::now() < deadline, "jobs {jobs:?} are still alive");
        std::thread::sleep(Duration::from_millis(100));
    }
}
