//! A fake Slurm for tests: a folder of its own with the commands in `bin/`, and what a test asks of it.
//!
//! The commands are one small program that needs nothing but the standard library; it is compiled on first use
//! and kept by the digest of its text. What it does is in `program.rs`.

pub mod directives;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use seedbed::workflow::slurm::Client;

const SOURCES: [(&str, &str); 5] = [
    ("commands.rs", include_str!("commands.rs")),
    ("directives.rs", include_str!("directives.rs")),
    ("jobs.rs", include_str!("jobs.rs")),
    ("program.rs", include_str!("program.rs")),
    ("state.rs", include_str!("state.rs")),
];

/// Names under which the program is called; `slurmstepd` is its own.
const NAMES: [&str; 8] = ["sbatch", "squeue", "sacct", "sacctmgr", "scontrol", "scancel", "srun", "slurmstepd"];

/// A Slurm that lives until it is dropped.
pub struct FakeSlurm {
    dir: tempfile::TempDir,
}

impl FakeSlurm {
    /// A cluster that runs two jobs at a time, keeps no accounts and follows the rules of Slurm 22.05.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(dir.path().join("state")).unwrap();
        for name in NAMES {
            // Linked names, not symbolic ones: the program knows itself by them.
            let to = bin.join(name);
            if std::fs::hard_link(program(), &to).is_err() {
                std::fs::copy(program(), &to).unwrap();
            }
        }
        Self { dir }
    }

    /// Where the commands are: to be first in `PATH`.
    pub fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    /// `PATH` with the commands first.
    pub fn path(&self) -> std::ffi::OsString {
        let rest = std::env::var_os("PATH").unwrap_or_default();
        std::env::join_paths([self.bin()].into_iter().chain(std::env::split_paths(&rest))).unwrap()
    }

    /// A client that finds this Slurm.
    pub fn client(&self) -> Client {
        Client::with_path(self.path())
    }

    /// Changes a setting: `rules` (old, new), `accounting` (on, off), `max_running`, `max_submit`,
    /// `federation` (its name), `partition_down` (its name), `max_time`,
    /// `max_user` (of one user, by sacctmgr), `max_array_size`, `min_job_age_ms`, `requeue_delay_ms`, `kill_wait_ms`, `partitions` (a,b),
    /// `hold` (1: nothing starts), `down` (1: the controller does not answer), `ignore_kill_dep` (1: a job whose
    /// dependency can never be met stays in the queue, whatever it says), `warnings` (off: no signal comes before a
    /// time limit), `enforce_memory` (on: a single task that holds more than its job's memory is killed).
    pub fn set(&self, key: &str, value: impl ToString) {
        let path = self.state("config");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut config: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let value = value.to_string();
        config.insert(key, &value);
        std::fs::write(&path, config.iter().map(|(k, v)| format!("{k}={v}\n")).collect::<String>()).unwrap();
    }

    /// Spoils the next call of `command` that has no fault yet: `fail` (does nothing, `text` is its error),
    /// `forget` (does nothing and says nothing), `lose` (does it and reports a lost reply), `hang`, `silent` or `banner`.
    pub fn fault(&self, command: &str, kind: &str, text: &str) {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.state("faults")).unwrap();
        writeln!(file, "{command}\t{kind}\t{text}").unwrap();
    }

    /// Every call so far: the command's name and its arguments.
    pub fn calls(&self) -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(self.state("calls")).unwrap_or_default();
        text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
    }

    /// Number of calls of `command` so far; those of `sbatch` that only ask are `sbatch --test-only`.
    pub fn count(&self, command: &str) -> usize {
        let asks = |call: &[String]| call.iter().any(|word| word == "--test-only");
        let (name, wanted) = command.split_once(' ').map_or((command, false), |(name, _)| (name, true));
        self.calls().iter().filter(|call| call[0] == name && asks(call) == wanted).count()
    }

    /// Mails that were sent: to whom, name and state of the job.
    pub fn mails(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.state("mails")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Runs one of the commands as a user would.
    pub fn run(&self, command: &str, arguments: &[&str]) -> Output {
        Command::new(self.bin().join(command))
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Everything that was ever submitted, `A_i` or `A`, with its state and reason.
    pub fn jobs(&self) -> BTreeMap<String, (String, String)> {
        let output = self.run_unlogged();
        output
            .lines()
            .filter_map(|line| {
                let get = |key: &str| {
                    line.split('\t').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key).map(|(_, v)| v)
                };
                let job = get("job")?;
                let id = get("index").map_or(job.to_owned(), |index| format!("{job}_{index}"));
                Some((id, (get("state")?.to_owned(), get("reason")?.to_owned())))
            })
            .collect()
    }

    /// State of one job or element.
    pub fn state_of(&self, id: &str) -> String {
        self.jobs().get(id).map(|(state, _)| state.clone()).unwrap_or_default()
    }

    /// Waits until `done` holds for the jobs, and returns them.
    pub fn wait_until(
        &self,
        done: impl Fn(&BTreeMap<String, (String, String)>) -> bool,
    ) -> BTreeMap<String, (String, String)> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let jobs = self.jobs();
            if done(&jobs) {
                return jobs;
            }
            assert!(Instant::now() < deadline, "the jobs do not come so far: {jobs:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until nothing runs and nothing can start any more.
    pub fn wait_idle(&self) -> BTreeMap<String, (String, String)> {
        self.wait_until(|jobs| {
            jobs.values().all(|(state, reason)| match state.as_str() {
                "RUNNING" => false,
                "PENDING" => reason == "DependencyNeverSatisfied" || reason == "JobHeldUser",
                _ => true,
            })
        })
    }

    fn run_unlogged(&self) -> String {
        std::fs::read_to_string(self.state("elements")).unwrap_or_default()
    }

    fn state(&self, file: &str) -> PathBuf {
        self.dir.path().join("state").join(file)
    }
}

impl Drop for FakeSlurm {
    fn drop(&mut self) {
        self.set("hold", 1);
        for line in self.run_unlogged().lines().filter(|line| line.contains("\tstate=RUNNING")) {
            for pair in line.split('\t') {
                if let Some(pid) = pair.strip_prefix("pid=").or_else(|| pair.strip_prefix("runner=")) {
                    // A group of the fake's own making; it may have ended by now.
                    let _ = Command::new("kill").args(["-KILL", "--", &format!("-{pid}")]).output();
                }
            }
        }
    }
}

/// The compiled program.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        SOURCES.hash(&mut hasher);
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let program = place.join(format!("fake-slurm-{:016x}", hasher.finish()));
        if program.exists() {
            return program;
        }
        let sources = tempfile::tempdir_in(place).unwrap();
        for (name, text) in SOURCES {
            std::fs::write(sources.path().join(name), text).unwrap();
        }
        let made = sources.path().join("fake-slurm");
        let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition=2024", "-Copt-level=1", "-Dwarnings", "-o"])
            .arg(&made)
            .arg(sources.path().join("program.rs"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Whole or not at all, also when two tests are first.
        std::fs::rename(&made, &program).unwrap();
        program
    })
}
