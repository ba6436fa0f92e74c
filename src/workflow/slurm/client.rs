//! Running one Slurm command: found on `PATH`, never longer than its time limit, never with the `SLURM_*` and
//! `SBATCH_*` variables of the calling shell.
//!
//! Those variables override what a script says (`SBATCH_TIMELIMIT` beats `#SBATCH --time`), and inside a job
//! they describe that job. Only the three that tell where the cluster is are kept.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use super::config::Limits;

/// Variables that tell where the cluster is.
const KEPT: [&str; 3] = ["SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"];

/// Prefixes of variables that change what a Slurm command does.
const SCRUBBED: [&str; 7] = ["SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_"];

/// Commands that can be sent to another cluster.
const OF_CLUSTERS: [&str; 5] = ["sbatch", "squeue", "sacct", "scancel", "scontrol"];

/// Why a Slurm command gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum SlurmError {
    /// The program is not there.
    #[error("`{program}` is not on PATH: load the site's Slurm module, or run with `--local`")]
    NotFound {
        /// Which program.
        program: String,
    },
    /// It could not be started.
    #[error("cannot start `{program}`")]
    Start {
        /// Which program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It did not end in time, and was killed.
    #[error(
        "`{program}` gave no answer in {limit_s} s: see whether the controller is well (`scontrol ping`), then repeat"
    )]
    Timeout {
        /// Which program.
        program: String,
        /// Its time limit.
        limit_s: u64,
    },
    /// It ended with an error.
    #[error("`{program}` failed{}: {message}", code.map(|c| format!(" with {c}")).unwrap_or_default())]
    Failed {
        /// Which program.
        program: String,
        /// Its exit code; none if a signal ended it.
        code: Option<i32>,
        /// What it said.
        message: String,
    },
    /// Its output is not what this program knows.
    #[error("`{program}` printed what is not understood: {text:?}; its version may be newer than this program")]
    Output {
        /// Which program.
        program: String,
        /// The text.
        text: String,
    },
}

impl SlurmError {
    /// Whether the controller gave no answer, as while it is started again: what it was asked may be asked once more.
    pub fn is_no_answer(&self) -> bool {
        let silent = [
            "Unable to contact slurm controller",
            "Socket timed out",
            "Connection refused",
            "missing socket",
            "Zero Bytes",
        ];
        match self {
            Self::Timeout { .. } => true,
            Self::Failed { message, .. } => silent.iter().any(|words| message.contains(words)),
            _ => false,
        }
    }
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Reply {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error; likewise.
    pub stderr: String,
}

impl Reply {
    /// What it said in its favour: standard error without the program's own prefix, in one line.
    pub fn message(&self) -> String {
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let lines: Vec<&str> = said.lines().map(plain_line).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() { "it said nothing".to_owned() } else { lines.join("; ") }
    }
}

/// A line without `sbatch: error: ` and the like.
fn plain_line(line: &str) -> &str {
    let mut rest = line.trim();
    for word in ["sbatch: ", "squeue: ", "sacct: ", "scontrol: ", "scancel: ", "error: ", "fatal: "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    rest
}

/// Runs Slurm's commands.
#[derive(Debug)]
pub struct Client {
    /// Where to look for programs, as `PATH`.
    path: OsString,
    /// The Slurm cluster that every command is sent to, where a site has several; else the host's own.
    pub(super) cluster: Option<String>,
    /// Time limit of a command that only asks.
    query_limit: Duration,
    /// Time limit of a command that changes something: killing it leaves the outcome unknown.
    change_limit: Duration,
    /// Set once sacct has said that accounting is disabled, so that it is not asked again.
    pub(super) accounting_disabled: Arc<AtomicBool>,
    /// The site's settings, once they were asked for.
    pub(super) limits: Arc<OnceLock<Limits>>,
}

impl Client {
    /// The Slurm that this process' `PATH` finds.
    pub fn new() -> Self {
        Self::with_path(std::env::var_os("PATH").unwrap_or_default())
    }

    /// The Slurm in the directories of `path`, a list as in `PATH`.
    pub fn with_path(path: impl Into<OsString>) -> Self {
        Self {
            path: path.into(),
            cluster: None,
            query_limit: Duration::from_secs(30),
            change_limit: Duration::from_secs(120),
            accounting_disabled: Arc::default(),
            limits: Arc::default(),
        }
    }

    /// The same with other time limits.
    #[must_use]
    pub fn with_limits(mut self, query: Duration, change: Duration) -> Self {
        self.query_limit = query;
        self.change_limit = change;
        self
    }

    /// The same for another Slurm cluster of the site (`-M NAME`); `None`: the host's own.
    #[must_use]
    pub fn at(&self, cluster: Option<&str>) -> Self {
        let same = self.cluster.as_deref() == cluster;
        Self {
            path: self.path.clone(),
            cluster: cluster.map(str::to_owned),
            query_limit: self.query_limit,
            change_limit: self.change_limit,
            accounting_disabled: if same { Arc::clone(&self.accounting_disabled) } else { Arc::default() },
            limits: if same { Arc::clone(&self.limits) } else { Arc::default() },
        }
    }

    /// The Slurm cluster that is asked; `None`: the host's own.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// Where `program` is.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        let executable =
            |path: &Path| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        std::env::split_paths(&self.path)
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(program))
            .find(|path| executable(path))
    }

    /// Runs a command that only asks.
    ///
    /// # Errors
    /// It is not there, cannot be started, or does not end in time.
    pub(super) fn ask<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> Result<Reply, SlurmError> {
        self.run(program, arguments, self.query_limit)
    }

    /// Runs a program of the site's that only tells something, as Slurm's own are run.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn ask_site(&self, words: &[String]) -> Result<Reply, SlurmError> {
        let (program, arguments) = words.split_first().map_or(("", words), |(program, rest)| (program.as_str(), rest));
        self.ask(program, arguments)
    }

    /// Runs a person's program with `variables` in its environment, for at most `limit`.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn tell_site(
        &self,
        words: &[String],
        variables: &[(&str, String)],
        limit: Duration,
    ) -> Result<Reply, SlurmError> {
        let (program, arguments) = words.split_first().map_or(("", words), |(program, rest)| (program.as_str(), rest));
        self.run_with(program, arguments, variables, limit)
    }

    /// Runs a command that changes something.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub(super) fn change<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A]) -> Result<Reply, SlurmError> {
        self.run(program, arguments, self.change_limit)
    }

    fn run<A: AsRef<OsStr>>(&self, program: &str, arguments: &[A], limit: Duration) -> Result<Reply, SlurmError> {
        self.run_with(program, arguments, &[], limit)
    }

    fn run_with<A: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: &[A],
        variables: &[(&str, String)],
        limit: Duration,
    ) -> Result<Reply, SlurmError> {
        let found = self.find(program).ok_or_else(|| SlurmError::NotFound { program: program.to_owned() })?;
        let mut command = Command::new(found);
        if let Some(cluster) = self.cluster.as_deref().filter(|_| OF_CLUSTERS.contains(&program)) {
            command.args(["-M", cluster]);
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // In a group of its own: Ctrl-C at the terminal must not lose a reply, and a time-out ends all of it.
        command.process_group(0);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_scrubbed(name)) {
            command.env_remove(name);
        }
        // Times as seconds since 1970, whatever the zone of this host.
        command.env("SLURM_TIME_FORMAT", "%s").env("PATH", &self.path);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        if program == "sbatch" {
            // sbatch hands its environment on to the job.
            command.env_remove("SLURM_TIME_FORMAT");
        }
        let child = command.spawn().map_err(|source| SlurmError::Start { program: program.to_owned(), source })?;
        wait(child, limit).ok_or_else(|| SlurmError::Timeout { program: program.to_owned(), limit_s: limit.as_secs() })
    }
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

fn is_scrubbed(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    SCRUBBED.iter().any(|prefix| name.starts_with(prefix)) && !KEPT.contains(&name.as_ref())
}

/// Runs a command that is none of Slurm's, in a group of its own, with the environment of this process. Nothing if it
/// cannot be started, or was killed at its time limit.
pub fn run_limited(mut command: Command, limit: Duration) -> Option<Reply> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    wait(command.spawn().ok()?, limit)
}

/// The child's reply, or nothing if it was killed at its time limit.
fn wait(mut child: Child, limit: Duration) -> Option<Reply> {
    let deadline = Instant::now() + limit;
    let (sender, ended) = mpsc::channel();
    let stdout = drain(child.stdout.take(), Some(sender));
    let stderr = drain(child.stderr.take(), None);
    let mut pause = Duration::from_millis(20);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            // The end of its output is the end of the program, or nearly: a chain waits for many of them in turn.
            Ok(None) if Instant::now() < deadline => match ended.recv_timeout(pause) {
                Ok(()) => pause = Duration::from_micros(100),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
            },
            _ => {
                kill_group(child.id());
                // It has been killed; what it ended with says nothing.
                let _ = child.wait();
                return None;
            }
        }
    };
    // A grandchild may hold the pipe open: what came in time counts.
    let rest = |receiver: mpsc::Receiver<Vec<u8>>| {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
        String::from_utf8_lossy(&receiver.recv_timeout(left).unwrap_or_default()).into_owned()
    };
    Some(Reply { status, stdout: rest(stdout), stderr: rest(stderr) })
}

/// What comes out of a pipe, once it has ended; `ended` is told first.
fn drain(pipe: Option<impl Read + Send + 'static>, ended: Option<mpsc::Sender<()>>) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A broken pipe ends the text; the exit status tells whether that matters.
            let _ = pipe.read_to_end(&mut bytes);
        }
        // Nobody listens any more if the command timed out.
        let _ = ended.map(|ended| ended.send(()));
        let _ = sender.send(bytes);
    });
    receiver
}

fn kill_group(pid: u32) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: kill(2) takes no memory; the group is that of a child which has not been waited for, so its
        // id is not in use by anyone else.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that finds one program of that text.
    fn client(dir: &Path, program: &str, text: &str) -> Client {
        let path = dir.join(program);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        Client::with_path(std::env::join_paths([dir, Path::new("/usr/bin"), Path::new("/bin")]).unwrap())
            .with_limits(Duration::from_millis(300), Duration::from_secs(10))
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let client = client(dir.path(), "squeue", "#!/bin/sh\nsleep 77 &\necho $! > \"${0%/*}/pid\"\nsleep 77\n");
        let start = Instant::now();
        let error = client.ask("squeue", &["-h"]).unwrap_err();
        assert!(matches!(error, SlurmError::Timeout { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
        let pid: i32 = std::fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
        let gone = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            status.is_empty() || status.contains(") Z ")
        });
        assert!(gone, "its child is still there");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::with_path(dir.path());
        assert!(client.ask("sinfo", &["-h"]).unwrap_err().to_string().contains("`sinfo` is not on PATH"));
        // Not executable.
        std::fs::write(dir.path().join("sinfo"), "").unwrap();
        assert!(client.find("sinfo").is_none());
    }

    #[test]
    fn messages_are_plain() {
        let dir = tempfile::tempdir().unwrap();
        let text = "#!/bin/sh\necho 'sbatch: error: invalid partition specified: nope' >&2\nexit 1\n";
        let reply = client(dir.path(), "sbatch", text).change("sbatch", &["x"]).unwrap();
        assert_eq!(reply.message(), "invalid partition specified: nope");
    }

    #[test]
    fn only_the_cluster_s_address_survives() {
        for name in ["SBATCH_TIMELIMIT", "SLURM_JOB_ID", "SQUEUE_STATES", "SLURM_CONF_X"] {
            assert!(is_scrubbed(OsStr::new(name)), "{name}");
        }
        for name in ["SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "PATH", "MY_SLURM_X"] {
            assert!(!is_scrubbed(OsStr::new(name)), "{name}");
        }
    }
}
