//! A small study of somebody else's programs that score arms over seeds and end in tables and documents: here, on a fake
//! Slurm, or as somebody with secrets runs it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::chain::text;

/// The study in a folder of its own.
pub struct Scored {
    dir: tempfile::TempDir,
    path: OsString,
}

/// Arms of the stage `eval`.
pub const ARMS: [&str; 3] = ["vanilla", "ablated", "tuned"];

/// Items that each arm gets right of five tasks; seed 7 gets one more of the first.
const SCORE: &str = r#"set -eu
case "$SEEDBED_ARM" in
  vanilla) set -- 311 394 407 175 333 ;;
  ablated) set -- 121 267 119 74 259 ;;
  *) set -- 162 308 176 74 252 ;;
esac
[ "$SEEDBED_SEED" = 42 ] || set -- $(($1 + 1)) "$2" "$3" "$4" "$5"
lines=$(wc -l < "$SEEDBED_NEED_data/items.txt")
awk -v right="$*" -v items="$lines" 'BEGIN {
  n = split(right, r, " "); split("500 500 500 299 500", t, " ")
  split("hellaswag piqa arc_easy arc_challenge winogrande", name, " "); split("0.25 0.5 0.25 0.25 0.5", chance, " ")
  printf "{\"items\": %d, \"tasks\": [", items
  for (i = 1; i <= n; i++)
    printf "%s{\"task\": \"%s\", \"total\": %d, \"accuracy\": %.17g, \"chance\": %s}", (i > 1 ? ", " : ""), name[i], t[i], r[i] / t[i], chance[i]
  printf "]}\n"
}' > metrics.json
echo "$SEEDBED_ARM of seed $SEEDBED_SEED is scored"
"#;

const BRIDGE: &str = r######"set -eu
case "$SEEDBED_ARM" in
  full) echo '{"evals": [{"step": 250, "accuracy": 0.52}, {"step": 1500, "accuracy": 0.68}, {"step": "final", "accuracy": 0.645}], "source": 0.54, "target": 0.77, "sample": "she makes $18. | #### 18", "status": "done"}' ;;
  *) echo '{"evals": [{"step": 1250, "accuracy": 0.36}, {"step": 1750, "accuracy": 0.315}], "source": 0.765, "target": 0.515, "sample": "#### 10", "status": "timeout"}' ;;
esac > metrics.json
"######;

const STUDY: &str = r#"
schema = 1
[study]
name  = "scored"
seeds = [42, 7]

[[stage]]
name      = "data"
per       = []
command   = ["sh", "-c", 'cp "$1" items.txt', "data", "items.txt"]
inputs    = ["items.txt"]
outputs   = ["items.txt"]
resources = {mem = "64M", time = "0:05:00"}

[[stage]]
name      = "eval"
needs     = ["data"]
per       = ["arm", "seed"]
arms      = [{name = "vanilla"}, {name = "ablated"}, {name = "tuned"}]
command   = ["sh", "score.sh"]
inputs    = ["score.sh"]
resources = {mem = "64M", time = "0:05:00"}

[[stage]]
name      = "bridge"
per       = ["arm"]
arms      = [{name = "full", labels = {teacher = "prompt"}}, {name = "answer", labels = {teacher = "answer"}}]
command   = ["sh", "bridge.sh"]
inputs    = ["bridge.sh"]
resources = {mem = "64M", time = "0:05:00"}

[[stage]]
name      = "aggregate"
run       = "aggregate"
needs     = ["data", "eval", "bridge"]
per       = []
params    = {models = {}}
resources = {mem = "256M", time = "0:05:00"}

[[table]]
key     = "scores"
caption = "Macro accuracy over seeds"
stub    = "Mask"
rows    = [
  {key = "vanilla", label = "Vanilla", arm = "vanilla"},
  {key = "ablated", label = "Ablated", arm = "ablated"},
  {key = "tuned", label = "Tuned", arm = "tuned"},
]
columns = [
  {key = "macro", label = "Macro", stage = "eval", metric = ".tasks | map(.accuracy) | mean", show = "mean_sd", digits = 6},
  {key = "hellaswag", label = "HellaSwag", stage = "eval", metric = ".tasks[] | select(.task == \"hellaswag\").accuracy", digits = 6},
  {key = "delta", label = "Delta", delta = {of = "macro", from = "vanilla"}, digits = 6},
]

[[document]]
key          = "stages"
kind         = "stage_summary"
title        = "Results by stage"
macro_digits = 6
scope        = [{label = "Items", stage = "eval", metric = ".items"}, {label = "Split", value = "validation"}]
stages       = [
  {key = "s1", label = "Vanilla", short = "S1", condition = "causal", definition = "the baseline", stage = "eval", arm = "vanilla"},
  {key = "s2", label = "Ablated", short = "S2", condition = "bidirectional", stage = "eval", arm = "ablated"},
  {key = "s4", label = "Tuned", short = "S4", condition = "after finetune", stage = "eval", arm = "tuned"},
]
compare      = [{of = "s2", to = "s1"}, {of = "s4", to = "s2", per_task = true}, {of = "s4", to = "s1", per_task = true}]
questions    = [
  {ask = "How much does it hurt?", of = "s2", to = "s1"},
  {ask = "Can it be fixed?", of = "s4", from = "s2", to = "s1"},
]

[[document]]
key         = "runs"
kind        = "run_table"
title       = "Experiment table"
stage       = "bridge"
value_label = "Bridged acc"
source      = ".source"
target      = ".target"
sample      = ".sample"
status      = ".status"
"#;

impl Scored {
    /// On the Slurm that `path` leads to, in a folder of its own.
    pub fn new(path: OsString) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, path }.write()
    }

    /// On this machine.
    pub fn local() -> Self {
        Self::new(std::env::var_os("PATH").unwrap())
    }

    fn write(self) -> Self {
        let configs = self.file("configs");
        std::fs::create_dir_all(configs.join("clusters")).unwrap();
        let cluster = "schema = 1\n[cluster]\nname = \"test\"\nmpi = \"none\"\nfs_settle_s = 0\n";
        let files = [
            ("scored.toml", STUDY),
            ("score.sh", SCORE),
            ("bridge.sh", BRIDGE),
            ("items.txt", "a\nb\nc\n"),
            ("clusters/test.toml", cluster),
        ];
        for (name, text) in files {
            std::fs::write(configs.join(name), text).unwrap();
        }
        self
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn cell(&self, cell: &str) -> PathBuf {
        self.file("results/scored/default").join(cell)
    }

    /// A program of Seedbed on the study; `arguments` come before the study file.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).arg("configs/scored.toml").current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("PATH", &self.path);
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command
    }

    pub fn seedbed(&self, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_seedbed"), arguments).output().unwrap()
    }

    /// What `seedbed` prints to stdout; it must succeed.
    #[track_caller]
    pub fn answer(&self, arguments: &[&str]) -> String {
        let output = self.seedbed(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs all of it here.
    #[track_caller]
    pub fn run_here(&self) {
        let output = self.command(env!("CARGO_BIN_EXE_run_all"), &["--local"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }

    /// Runs all of it on the Slurm, and waits for the end.
    #[track_caller]
    pub fn run_on_slurm(&self, limit_s: u64) {
        let output = self.command(env!("CARGO_BIN_EXE_run_all"), &["--cluster", "test", "--yes"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        let deadline = Instant::now() + Duration::from_secs(limit_s);
        while !self.cell("aggregate/seal.json").exists() {
            assert!(
                Instant::now() < deadline,
                "not sealed in {limit_s} s: {}",
                text(&self.seedbed(&["status", "--cluster", "test"]))
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn json(&self, path: &Path) -> Value {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }
}
