//! `configs/foreign.toml`: a shell script, a Python script and an MPI program of somebody else, on this machine and on a
//! Slurm. Metrics, exit codes, signals and seals work for them, and the same results come of it everywhere.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::chain::text;
use crate::support::fake_slurm::FakeSlurm;
use crate::support::repository;

const CELLS: [&str; 6] = ["data", "fit/seed-42", "fit/seed-1337", "build", "heat", "summary"];

/// A copy of the study.
struct Foreign {
    dir: tempfile::TempDir,
    path: OsString,
}

impl Foreign {
    /// On the Slurm that `path` leads to; `lines` are added to the cluster file.
    fn new(path: OsString, lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let configs = dir.path().join("configs");
        std::fs::create_dir_all(configs.join("foreign")).unwrap();
        std::fs::create_dir_all(configs.join("clusters")).unwrap();
        for file in [
            "foreign.toml",
            "foreign/data.sh",
            "foreign/fit.py",
            "foreign/build.sh",
            "foreign/heat.c",
            "foreign/summary.sh",
        ] {
            std::fs::copy(repository().join("configs").join(file), configs.join(file)).unwrap();
        }
        let cluster = format!("schema = 1\n[cluster]\nname = \"test\"\nfs_settle_s = 0\n{lines}\n");
        std::fs::write(configs.join("clusters/test.toml"), cluster).unwrap();
        Self { dir, path }
    }

    fn local() -> Self {
        Self::new(std::env::var_os("PATH").unwrap(), "")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn cell(&self, cell: &str) -> PathBuf {
        self.file("results/foreign/default").join(cell)
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.file(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).arg("configs/foreign.toml").current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("PATH", &self.path);
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED", "FOREIGN_PAUSE_S"] {
            command.env_remove(name);
        }
        command
    }

    fn run_all(&self, arguments: &[&str], pause_s: &str) -> Output {
        let mut command = self.command(env!("CARGO_BIN_EXE_run_all"), arguments);
        command.env("FOREIGN_PAUSE_S", pause_s).output().unwrap()
    }

    fn json(&self, cell: &str, file: &str) -> Value {
        let text = std::fs::read_to_string(self.cell(cell).join(file));
        text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
    }

    fn is_sealed(&self, cell: &str) -> bool {
        self.json(cell, "seal.json")["outcome"] == "done"
    }

    /// What every cell found, whatever its host, time, job or attempts: the digest of its content, and of its outputs.
    /// A compiler need not write the same bytes twice.
    fn contents(&self) -> BTreeMap<String, String> {
        let content = |cell: &str| {
            let seal = self.json(cell, "seal.json");
            let outputs = seal["outputs"].as_array().into_iter().flatten();
            let bytes = |o: &&Value| o["path"] != "run.h5" && cell != "build";
            let outputs: Vec<String> =
                outputs.filter(bytes).map(|o| format!("{} {}", o["path"], o["digest"])).collect();
            format!("{} {outputs:?}", seal["content"])
        };
        CELLS.iter().map(|cell| ((*cell).to_owned(), content(cell))).collect()
    }

    /// Exit codes of a cell's attempts.
    fn exits(&self, cell: &str) -> Vec<i64> {
        (1..).map_while(|n| self.json(cell, &format!("attempts/{n}.end.json"))["exit_code"].as_i64()).collect()
    }

    fn log(&self, cell: &str) -> String {
        std::fs::read_to_string(self.cell(cell).join("log.txt")).unwrap_or_default()
    }

    fn wait_until(&self, what: &str, limit_s: u64, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(limit_s);
        while !done() {
            let logs: String = CELLS.iter().map(|cell| format!("-- {cell}\n{}", self.log(cell))).collect();
            assert!(Instant::now() < deadline, "not in {limit_s} s: {what}\n{logs}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The content of an undisturbed run on this machine.
fn undisturbed() -> BTreeMap<String, String> {
    let local = Foreign::local();
    let output = local.run_all(&["--local"], "0");
    assert!(output.status.success(), "{}", text(&output));
    let metrics = local.json("summary", "metrics.json");
    assert_eq!(metrics["slope"]["n"], 2, "{metrics}");
    let slope = metrics["slope"]["mean"].as_f64().unwrap();
    assert!((1.5..2.5).contains(&slope), "the line is y = 2 x + 1: {metrics}");
    assert_eq!(local.json("heat", "metrics.json")["cells"], 64);
    let mut query = Command::new(env!("CARGO_BIN_EXE_seedbed"));
    let output =
        query.args(["query", "-c", ".heat.most > 2 and .cells == 64"]).arg(local.cell("heat")).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "true\n", "metrics.json became results");
    local.contents()
}

#[test]
fn foreign_programs_run_here_and_a_signal_costs_nothing() {
    let expected = undisturbed();
    let local = Foreign::local();
    let mut command = local.command(env!("CARGO_BIN_EXE_run_all"), &["--local"]);
    command.env("FOREIGN_PAUSE_S", "0.02").stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = command.spawn().unwrap();
    local.wait_until("fit counts its steps", 60, || local.log("fit/seed-42").contains("step 50"));
    let pid = local.json("fit/seed-42", "attempts/1.json")["pid"].to_string();
    assert!(Command::new("kill").args(["-USR2", &pid]).status().unwrap().success());
    assert!(running.wait().unwrap().success());
    assert_eq!((local.exits("fit/seed-42"), local.exits("fit/seed-1337")), (vec![75, 0], vec![0]));
    assert!(local.log("fit/seed-42").contains("goes on at step"), "{}", local.log("fit/seed-42"));
    assert_eq!(local.contents(), expected);
}

/// The study on a Slurm: one seed is told to stop, is requeued and goes on; the results are those of this machine.
pub fn runs_on_a_slurm(path: OsString, lines: &str, limit_s: u64) {
    let expected = undisturbed();
    let slurm = Foreign::new(path.clone(), lines);
    let output = slurm.run_all(&["--cluster", "test", "--yes"], "0.02");
    assert!(output.status.success(), "{}", text(&output));
    slurm.wait_until("fit counts its steps", limit_s, || slurm.log("fit/seed-42").contains("step 50"));
    let job = slurm.json("fit/seed-42", "attempts/1.json")["job"]["id"].as_str().unwrap().to_owned();
    let mut warn = Command::new("scancel");
    let warned = warn.args(["--batch", "--signal=USR2", &job]).env("PATH", &path).status().unwrap();
    assert!(warned.success());
    slurm.wait_until("everything is sealed", limit_s, || CELLS.iter().all(|cell| slurm.is_sealed(cell)));
    assert_eq!((slurm.exits("fit/seed-42"), slurm.exits("fit/seed-1337")), (vec![75, 0], vec![0]));
    assert_eq!(slurm.contents(), expected);
    // Editing a script makes stale what it made, and what follows, and nothing else.
    slurm.edit("configs/foreign/fit.py", "loss = sum(", "loss = 2 * sum(");
    let arguments = ["plan", "--cluster", "test", "--format", "json"];
    let output = slurm.command(env!("CARGO_BIN_EXE_seedbed"), &arguments).output().unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    let cells = plan["cells"].as_array().unwrap().iter();
    let stale = cells.filter(|c| c["state"] == "stale").map(|c| c["cell"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(stale, ["fit/seed-42", "fit/seed-1337", "summary"]);
}

#[test]
fn foreign_programs_run_on_a_slurm_with_the_same_results() {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 4);
    runs_on_a_slurm(slurm.path(), "", 60);
}

#[test]
fn exit_codes_of_foreign_programs_are_understood() {
    let local = Foreign::local();
    // An unstable time step: the study stops there, and says why.
    local.edit("configs/foreign.toml", "\"500\", \"0.25\"", "\"500\", \"0.75\"");
    // A script that fails.
    local.edit("configs/foreign/data.sh", "set -eu\n", "set -eu\necho 'no data today' >&2\nexit 3\n");
    let output = local.run_all(&["--local"], "0");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("no data today"), "{}", text(&output));
    let seal = local.json("heat", "seal.json");
    assert_eq!((&seal["outcome"], &seal["evidence"]["r"]), (&Value::from("stopped"), &Value::from(0.75)));
    assert_eq!((local.exits("heat"), local.exits("data")), (vec![78], vec![3]));
    assert!(local.is_sealed("build") && !local.is_sealed("data"));
    for cell in ["fit/seed-42", "summary"] {
        assert!(!Path::exists(&local.cell(cell).join("attempts/1.json")), "{cell} has no input, and must not start");
    }
}
