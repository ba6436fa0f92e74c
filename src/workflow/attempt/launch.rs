//! Starting a stage and watching it: environment, log, heartbeat, signals, the time limit, exit code, evidence.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGCONT, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use super::evidence::{Evidence, Scanner, oom_kills};
use super::limit::Limit;
use crate::record::decision::GATE_KIND;
use crate::record::{Cell, RecordError, attempt, exit};
use crate::stages;
use crate::workflow::error::{Result, WorkflowError};

/// How long output is still taken after the stage has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// No warning reaches a stage sooner: a program that has not begun to listen would die of it.
const LISTENS_AFTER: Duration = Duration::from_secs(1);

/// What is launched.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The cell.
    pub cell: &'a Cell,
    /// Number of the attempt.
    pub attempt: u32,
    /// Words before the stage's own command.
    pub launcher: &'a [String],
    /// Directory of the stage programs.
    pub programs: &'a Path,
    /// The cell's run directory.
    pub run_dir: &'a Path,
    /// Where the stage writes outputs.
    pub out_dir: &'a Path,
    /// The node's own disk, if something of the cell lies there.
    pub local: Option<&'a Path>,
    /// Between two heartbeats.
    pub beat: Duration,
    /// Whether output goes to our own stdout as well as to `log.txt`.
    pub echo: bool,
    /// When the allocation ends; absent for a local attempt.
    pub limit: Option<Limit>,
    /// Whether nothing but this cell runs in the job.
    pub alone: bool,
}

/// How the stage ended, and what is known of why.
#[derive(Debug, Clone)]
pub struct Report {
    /// How.
    pub ended: Ended,
    /// What Slurm and the kernel said.
    pub evidence: Evidence,
    /// Whether this process was told to end (TERM or INT) while the stage ran.
    pub told_to_end: bool,
}

/// How the stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It returned.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Ended {
    /// Exit code for the attempt, and the cause in words.
    pub fn code_and_cause(self) -> (u8, String) {
        match self {
            Self::Code(code) => (u8::try_from(code).unwrap_or(1), exit::meaning(code).to_owned()),
            Self::Signal(signal) => (u8::try_from(128 + signal).unwrap_or(1), format!("killed by signal {signal}")),
        }
    }
}

/// Runs the stage to its end.
///
/// # Errors
/// The program cannot be started.
pub fn run(launch: &Launch) -> Result<Report> {
    let cell = launch.cell;
    let words = words(launch);
    let (program, arguments) =
        words.split_first().ok_or_else(|| WorkflowError::Usage("the stage has no command".into()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.current_dir(launch.out_dir);
    set_environment(&mut command, launch);
    // SAFETY: prctl with these arguments is async-signal-safe. A stage must not outlive the attempt that
    // owns its cell: it would go on writing beside the next one.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    let mut signals = signal_hook::iterator::Signals::new([SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGCONT])
        .map_err(|source| WorkflowError::Start { program: "the signal handler".into(), source })?;
    // Set by the handler itself: what ended the stage may have come to us in the same moment.
    let (warned, told_to_end) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for (signal, flag) in [(SIGUSR2, &warned), (SIGTERM, &told_to_end), (SIGINT, &told_to_end)] {
        signal_hook::flag::register(signal, Arc::clone(flag))
            .map_err(|source| WorkflowError::Start { program: "the signal handler".into(), source })?;
    }
    let log_path = launch.run_dir.join("log.txt");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(RecordError::io("append to", &log_path))?;
    banner(&log, launch, &words);
    // Of cells that share a job the kernel's count does not say whose it was; srun does.
    let kills = || if launch.alone { oom_kills() } else { 0 };
    let kills_before = kills();
    let mut child = command.spawn().map_err(|source| WorkflowError::Start { program: program.clone(), source })?;

    let started = Instant::now();
    let pid = i32::try_from(child.id()).unwrap_or(-1);
    let over = Arc::new(AtomicBool::new(false));
    let evidence = Mutex::new(Evidence::default());
    let handle = signals.handle();
    let ended = std::thread::scope(|scope| {
        let pipes: [Option<Box<dyn Pipe>>; 2] =
            [child.stdout.take().map(|p| Box::new(p) as _), child.stderr.take().map(|p| Box::new(p) as _)];
        for pipe in pipes.into_iter().flatten() {
            let log = log.try_clone();
            let (evidence, over) = (&evidence, &*over);
            scope.spawn(move || {
                let found = copy(pipe, log.ok(), launch.echo, over);
                evidence.lock().unwrap_or_else(PoisonError::into_inner).add(&found);
            });
        }
        scope.spawn(|| {
            for signal in signals.forever() {
                if signal == SIGUSR2 {
                    std::thread::sleep(LISTENS_AFTER.saturating_sub(started.elapsed()));
                }
                // SIGCONT comes with a preemption's SIGTERM and means nothing by itself.
                if signal != SIGCONT && !over.load(Ordering::SeqCst) {
                    // SAFETY: the child has not been waited for, so the process id is still its own.
                    unsafe { libc::kill(pid, signal) };
                }
            }
        });
        scope.spawn(|| heartbeat(launch, &over));
        if let Some(limit) = launch.limit.filter(|_| cell.resumable) {
            let (warned, over) = (&*warned, &*over);
            scope.spawn(move || warn_before_the_end(limit, pid, warned, over));
        }
        let status = wait_without_reaping(pid);
        over.store(true, Ordering::SeqCst);
        let status = status.and_then(|()| child.wait());
        handle.close();
        status
    });
    let status = ended.map_err(|source| WorkflowError::Start { program: program.clone(), source })?;
    let ended = match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or(0)),
    };
    let mut evidence = evidence.into_inner().unwrap_or_else(PoisonError::into_inner);
    evidence.out_of_memory |= kills() > kills_before;
    Ok(Report { ended, evidence, told_to_end: told_to_end.load(Ordering::SeqCst) })
}

/// Tells the stage that its time is nearly over, unless Slurm has: its warning cannot be moved on a queued job.
fn warn_before_the_end(limit: Limit, pid: i32, warned: &AtomicBool, over: &AtomicBool) {
    let at = Instant::now() + limit.warn_in().max(LISTENS_AFTER);
    while !over.load(Ordering::SeqCst) && !warned.load(Ordering::SeqCst) {
        if Instant::now() >= at {
            // SAFETY: the child has not been waited for, so the process id is still its own.
            unsafe { libc::kill(pid, SIGUSR2) };
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until the child has ended and leaves it a zombie, so that its process id cannot be reused while a
/// signal is being forwarded.
pub(super) fn wait_without_reaping(pid: i32) -> std::io::Result<()> {
    loop {
        // SAFETY: an all-zero siginfo_t is valid; waitid fills it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is valid for the call.
        let rc = unsafe { libc::waitid(libc::P_PID, pid as libc::id_t, &raw mut info, libc::WEXITED | libc::WNOWAIT) };
        if rc == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The launcher's words, then the stage's.
fn words(launch: &Launch) -> Vec<String> {
    let mut words = launch.launcher.to_vec();
    if launch.cell.kind == "command" {
        words.extend(launch.cell.command.iter().cloned());
    } else {
        let binary =
            stages::all_specs().iter().find(|s| s.kind == launch.cell.kind).map_or("seedbed-unknown", |s| s.binary);
        let path: PathBuf = launch.programs.join(binary);
        words.push(path.to_string_lossy().into_owned());
        words.push("--cell".to_owned());
        words.push(launch.run_dir.join("cell.toml").to_string_lossy().into_owned());
        words.push("--attempt".to_owned());
        words.push(launch.attempt.to_string());
    }
    words
}

fn set_environment(command: &mut Command, launch: &Launch) {
    let cell = launch.cell;
    command.env("SEEDBED_CELL", launch.run_dir.join("cell.toml"));
    command.env("SEEDBED_ATTEMPT", launch.attempt.to_string());
    command.env("SEEDBED_RUN_DIR", launch.out_dir);
    command.env("SEEDBED_CHECKPOINT_DIR", cell.checkpoint_dir());
    for (name, value) in
        [("SEEDBED_STUDY", &cell.key.study), ("SEEDBED_PROFILE", &cell.key.profile), ("SEEDBED_STAGE", &cell.key.stage)]
    {
        command.env(name, value.as_str());
    }
    // Never the submitting shell's: a cell without the axis has no seed and no arm.
    match cell.key.seed {
        Some(seed) => command.env("SEEDBED_SEED", seed.to_string()).env("EXPERIMENT_SEED", seed.to_string()),
        None => command.env_remove("SEEDBED_SEED").env_remove("EXPERIMENT_SEED"),
    };
    match &cell.key.arm {
        Some(arm) => command.env("SEEDBED_ARM", arm.as_str()),
        None => command.env_remove("SEEDBED_ARM"),
    };
    // A gate hands over no data.
    for need in cell.needs.iter().filter(|n| n.kind != GATE_KIND) {
        // SEEDBED_NEED_<stage>: with one cell its run directory, with several their directories, one a line.
        let name = format!("SEEDBED_NEED_{}", need.key.stage.as_str().replace(['-', '.'], "_"));
        let dirs: Vec<String> = cell
            .needs
            .iter()
            .filter(|n| n.key.stage == need.key.stage)
            .map(|n| cell.need_dir(n).to_string_lossy().into_owned())
            .collect();
        command.env(name, dirs.join("\n"));
    }
    match launch.local {
        Some(dir) => command.env("SEEDBED_LOCAL_DIR", dir).env("SEEDBED_OUT_DIR", launch.out_dir),
        None => command.env_remove("SEEDBED_LOCAL_DIR").env_remove("SEEDBED_OUT_DIR"),
    };
    match launch.limit {
        Some(limit) => command
            .env("SEEDBED_END_TIME", limit.end.timestamp().to_string())
            .env("SEEDBED_GRACE_S", limit.grace.as_secs().to_string()),
        None => command.env_remove("SEEDBED_END_TIME").env_remove("SEEDBED_GRACE_S"),
    };
    let threads = cell.params.get("threads_per_rank").and_then(serde_json::Value::as_u64).unwrap_or(1);
    if cell.kind != "command" {
        command.env("OMP_NUM_THREADS", threads.to_string());
        command.env("MKL_NUM_THREADS", threads.to_string());
    }
    command.env("HDF5_USE_FILE_LOCKING", "FALSE");
}

fn banner(mut log: &std::fs::File, launch: &Launch, words: &[String]) {
    let time = chrono::Utc::now().format("%F %T UTC");
    let host = crate::record::files::host_name();
    // A log that cannot be written is no reason not to work.
    let _ = writeln!(log, "== attempt {} at {time} on {host}: {}", launch.attempt, words.join(" "));
}

/// A pipe that can be waited for.
trait Pipe: Read + AsRawFd + Send {}

impl<T: Read + AsRawFd + Send> Pipe for T {}

/// Copies a pipe to the log, and to our stdout if asked, until it closes; once the stage is over, for [`DRAIN`] at most:
/// something that it left behind may hold the pipe for ever. Returns what was found in it.
fn copy(mut pipe: Box<dyn Pipe>, mut log: Option<std::fs::File>, echo: bool, over: &AtomicBool) -> Evidence {
    let mut scanner = Scanner::default();
    let mut buffer = [0u8; 8192];
    let mut until: Option<Instant> = None;
    loop {
        if until.is_none() && over.load(Ordering::SeqCst) {
            until = Some(Instant::now() + DRAIN);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return scanner.finish();
        }
        if !readable(pipe.as_raw_fd(), Duration::from_millis(200)) {
            continue;
        }
        match pipe.read(&mut buffer) {
            Ok(0) => return scanner.finish(),
            Ok(n) => {
                scanner.feed(&buffer[..n]);
                if let Some(file) = &mut log
                    && file.write_all(&buffer[..n]).is_err()
                {
                    // A full disk: the stage goes on, its log ends here.
                    log = None;
                }
                if echo {
                    let mut out = std::io::stdout().lock();
                    let _ = out.write_all(&buffer[..n]).and_then(|()| out.flush());
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return scanner.finish(),
        }
    }
}

/// Waits until there is something to read, or the end of the pipe.
fn readable(fd: i32, patience: Duration) -> bool {
    let mut asked = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, valid for the call.
    unsafe { libc::poll(&raw mut asked, 1, i32::try_from(patience.as_millis()).unwrap_or(1000)) > 0 }
}

/// The first beat is written however soon the program ends: an attempt without one has not begun.
fn heartbeat(launch: &Launch, over: &AtomicBool) {
    for counter in 1.. {
        // A missed beat costs nothing but a longer wait of the next attempt.
        let _ = attempt::beat(launch.run_dir, launch.attempt, counter);
        let next = Instant::now() + launch.beat;
        while Instant::now() < next {
            if over.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
