//! The real Slurm that `scripts/test` brings up with `scripts/slurm-sandbox`: for tests that need a controller and
//! four nodes and not a fake. Without `SEEDBED_TEST_SLURM=1` there is none, and the test says so and ends.
//! Promises that no call outlives its time limit.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use seedbed::workflow::slurm::Client;

/// A sandbox that is up.
pub struct Sandbox {
    script: PathBuf,
    /// Its directory, if it is one test's own: it is taken down at the end.
    own: Option<PathBuf>,
    /// Holds that directory.
    _parent: Option<tempfile::TempDir>,
}

/// The sandbox, or `None` after a line that says that this test was skipped.
pub fn sandbox() -> Option<Sandbox> {
    if std::env::var_os("SEEDBED_TEST_SLURM").is_none_or(|v| v != "1") {
        eprintln!("skipped: needs a real Slurm; ./scripts/test brings one up");
        return None;
    }
    let script = super::repository().join("scripts/slurm-sandbox");
    let status = Command::new(&script).arg("status").output().expect("slurm-sandbox starts");
    assert!(
        status.status.success(),
        "SEEDBED_TEST_SLURM is set but the sandbox is not up: {}",
        String::from_utf8_lossy(&status.stderr)
    );
    Some(Sandbox { script, own: None, _parent: None })
}

/// A sandbox of one test's own, for what would disturb others; `lines` are added to its slurm.conf. `None` as for
/// [`sandbox`].
pub fn own_sandbox(lines: &str) -> Option<Sandbox> {
    own(&[], lines)
}

/// [`own_sandbox`] with slurmdbd and MariaDB, and an account for us. `None` also where these are not installed.
pub fn accounting_sandbox(lines: &str) -> Option<Sandbox> {
    let there = |program: &str| Path::new("/usr/sbin").join(program).exists();
    if sandbox().is_some() && !(there("slurmdbd") && there("mariadbd")) {
        eprintln!("skipped: needs slurmdbd and mariadbd; `scripts/slurm-sandbox up --accounting` installs them");
        return None;
    }
    let slurm = own(&["--accounting"], lines)?;
    slurm.head(&["sacctmgr", "-i", "add", "account", "lab"]);
    slurm.head(&["sacctmgr", "-i", "add", "user", "root", "account=lab"]);
    Some(slurm)
}

fn own(words: &[&str], lines: &str) -> Option<Sandbox> {
    sandbox()?;
    let dir = tempfile::Builder::new().prefix("seedbed-own").tempdir().unwrap();
    // Its daemons run as other users, too.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut own = Sandbox::start(&dir.path().join("sandbox"), words, lines);
    own._parent = Some(dir);
    Some(own)
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Sandbox {
    /// Starts one in `dir` with these words of `up`, and with `lines` added to its slurm.conf; it is taken down when it is
    /// dropped.
    pub fn start(dir: &Path, words: &[&str], lines: &str) -> Self {
        let script = super::repository().join("scripts/slurm-sandbox");
        let own = Self { script, own: Some(dir.to_owned()), _parent: None };
        let output = own.call("up").args(words).env("SEEDBED_SANDBOX_LINES", lines).output().unwrap();
        assert_ok(&output, &["slurm-sandbox", "up"]);
        own
    }

    /// Takes it down, if it is one test's own.
    pub fn stop(&self) {
        if self.own.is_some() {
            // What is left is named by the next `up`; a test that fails already says why.
            let _ = self.call("down").output();
        }
    }

    /// A call of the script.
    pub fn call(&self, word: &str) -> Command {
        let mut command = Command::new(&self.script);
        command.arg(word);
        if let Some(dir) = self.dir() {
            command.env("SEEDBED_SANDBOX_DIR", dir);
        }
        command
    }

    /// Where its files are, if it is one test's own.
    pub fn dir(&self) -> Option<PathBuf> {
        self.own.clone()
    }

    /// A command on a node (`head`, `n1` to `n4`), to be completed with its words; killed after `limit_s` seconds.
    pub fn on(&self, node: &str, limit_s: u32) -> Command {
        let mut command = Command::new("timeout");
        command.arg("--kill-after=5").arg(limit_s.to_string()).arg(&self.script).args(["exec", node]);
        if let Some(dir) = self.dir() {
            command.env("SEEDBED_SANDBOX_DIR", dir);
        }
        command
    }

    /// A client whose commands run on the head; `dir` gets a folder `bin` with them.
    pub fn client(&self, dir: &Path) -> Client {
        Client::with_path(self.path(dir))
    }

    /// `PATH` with Slurm's commands first, each of which runs on the head: for programs outside that submit.
    pub fn path(&self, dir: &Path) -> OsString {
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin).expect("the folder can be made");
        for name in ["sbatch", "squeue", "sacct", "sacctmgr", "scontrol", "scancel"] {
            // Without itself in PATH, or the node would find it again.
            let script = self.script.display();
            let dir = self.dir().map(|d| format!("export SEEDBED_SANDBOX_DIR='{}'\n", d.display())).unwrap_or_default();
            let text =
                format!("#!/bin/bash\n{dir}PATH=${{PATH#\"${{0%/*}}\":}}\nexec '{script}' exec head {name} \"$@\"\n");
            let path = bin.join(name);
            std::fs::write(&path, text).expect("the program can be written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("the mode can be set");
        }
        let rest = std::env::var_os("PATH").unwrap_or_default();
        std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&rest))).expect("no `:` in a path")
    }

    /// The standard output of a command on the head, which must succeed within a minute.
    pub fn head(&self, words: &[&str]) -> String {
        let output = self.on("head", 60).args(words).output().expect("slurm-sandbox starts");
        assert_ok(&output, words);
        String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
    }

    /// Waits until none of these jobs (ids) is pending or running; panics with the queue after `limit_s` seconds.
    pub fn wait_until_gone(&self, ids: &[String], limit_s: u64) {
        let began = Instant::now();
        loop {
            let queue = self.head(&["squeue", "--noheader", "--states=PD,R,CG,S,CF", "--format=%F %K %T %r"]);
            let ours = |line: &&str| line.split(' ').next().is_some_and(|id| ids.iter().any(|i| i == id));
            let left: Vec<&str> = queue.lines().filter(ours).collect();
            if left.is_empty() {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(limit_s), "still queued after {limit_s} s: {left:?}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// `squeue` of one job, one line a task: state and reason. Empty when it has ended.
    pub fn queue(&self, job: &str) -> String {
        self.head(&["squeue", "--noheader", "--array", "--states=PD,R,CG,S,CF", "--format=%i %T %r", "--name", job])
    }

    /// Waits until no job of that name is pending or running; panics with the queue after `limit_s` seconds.
    pub fn wait_until_ended(&self, name: &str, limit_s: u64) {
        let began = Instant::now();
        loop {
            let queue = self.queue(name);
            if queue.is_empty() {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(limit_s), "still queued after {limit_s} s:\n{queue}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// Panics with both outputs unless the command succeeded.
pub fn assert_ok(output: &Output, what: &[&str]) {
    assert!(
        output.status.success(),
        "{what:?} ended with {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
