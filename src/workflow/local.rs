//! The local executor: the same plan on this machine, cell by cell, each in an attempt of its own, as many
//! side by side as there are cores.
//!
//! It is only as alive as the terminal that started it; run the same command again and it goes on.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::error::{Result, WorkflowError};
use crate::record::{CellKey, RecordError, Resources, attempt, exit};

/// A cell to run here.
#[derive(Debug, Clone)]
pub struct Task {
    /// The cell.
    pub key: CellKey,
    /// Its run directory.
    pub run_dir: PathBuf,
    /// Where its attempts say what they decide.
    pub log: PathBuf,
    /// Job of the submission that holds it.
    pub job: String,
    /// Slot of that job.
    pub slot: u32,
    /// Resources of one attempt.
    pub resources: Resources,
    /// At most so many cells of its stage and arm at a time.
    pub max_running: Option<u32>,
    /// Tasks that must end before it starts, by index; all are before it.
    pub needs: Vec<usize>,
    /// Whether it runs although some of `needs` failed.
    pub partial_inputs: bool,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskEnd {
    /// Sealed.
    Done,
    /// Its attempt ended with this code.
    Failed(i32),
    /// A needed cell did not end well.
    Skipped,
    /// The run was interrupted before it ended.
    Interrupted,
}

/// What a watcher is told.
#[derive(Debug)]
pub enum Event<'a> {
    /// A task starts.
    Started(&'a Task),
    /// It runs; its run directory holds its progress.
    Running(&'a Task),
    /// It ended after so long.
    Ended(&'a Task, TaskEnd, Duration),
}

/// Runs all tasks. `watch` is told what happens, several times a second for those that run.
///
/// # Errors
/// An attempt cannot be started at all.
pub fn run(
    submission_dir: &Path,
    programs: &Path,
    tasks: &[Task],
    watch: &mut dyn FnMut(Event),
) -> Result<Vec<TaskEnd>> {
    let interrupts = count_interrupts()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut ends: Vec<Option<TaskEnd>> = vec![None; tasks.len()];
    let mut running: BTreeMap<usize, (Child, Instant)> = BTreeMap::new();
    let mut told = 0;
    while ends.iter().any(Option::is_none) {
        let asked = interrupts.load(Ordering::SeqCst);
        if asked > told {
            told = asked;
            let signal = if asked == 1 { libc::SIGTERM } else { libc::SIGKILL };
            running.values().for_each(|(child, _)| send(child, signal));
        }
        for (i, task) in tasks.iter().enumerate() {
            if ends[i].is_some() || running.contains_key(&i) {
                continue;
            }
            let needs = || task.needs.iter().map(|&n| ends[n]);
            if asked > 0 {
                ends[i] = Some(TaskEnd::Interrupted);
            } else if needs().all(|n| n == Some(TaskEnd::Done)) || (task.partial_inputs && needs().all(|n| n.is_some()))
            {
                let busy: usize = running.keys().map(|&r| width(&tasks[r], cores)).sum();
                let array = |&&r: &&usize| tasks[r].key.stage == task.key.stage && tasks[r].key.arm == task.key.arm;
                let full = task.max_running.is_some_and(|most| running.keys().filter(array).count() >= most as usize);
                if full || (busy > 0 && busy + width(task, cores) > cores) {
                    continue;
                }
                watch(Event::Started(task));
                running.insert(i, (start(submission_dir, programs, task)?, Instant::now()));
            } else if needs().all(|n| n.is_some())
                || needs().any(|n| n.is_some_and(|e| e != TaskEnd::Done) && !task.partial_inputs)
            {
                ends[i] = Some(TaskEnd::Skipped);
                watch(Event::Ended(task, TaskEnd::Skipped, Duration::ZERO));
            }
        }
        let mut ended = Vec::new();
        for (&i, (child, began)) in &mut running {
            match child.try_wait() {
                Ok(Some(status)) => ended.push((i, status.code().unwrap_or(1), began.elapsed())),
                Ok(None) => watch(Event::Running(&tasks[i])),
                Err(source) => return Err(WorkflowError::Start { program: "seedbed attempt".into(), source }),
            }
        }
        for (i, code, took) in ended {
            let again = code == i32::from(exit::RESUME) && interrupts.load(Ordering::SeqCst) == 0;
            let began = running.remove(&i).map(|(_, began)| began);
            if again {
                let child = start(submission_dir, programs, &tasks[i])?;
                running.insert(i, (child, began.unwrap_or_else(Instant::now)));
                continue;
            }
            let end = match code {
                0 => TaskEnd::Done,
                code if code == i32::from(exit::RESUME) => TaskEnd::Interrupted,
                code => TaskEnd::Failed(code),
            };
            ends[i] = Some(end);
            watch(Event::Ended(&tasks[i], end, took));
        }
        if !running.is_empty() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(ends.into_iter().map(|e| e.unwrap_or(TaskEnd::Interrupted)).collect())
}

/// Cores of a task; one that wants more than there are gets the machine for itself.
fn width(task: &Task, cores: usize) -> usize {
    let wanted = task.resources.ranks() as usize * task.resources.cpus_per_task as usize;
    wanted.clamp(1, cores)
}

fn start(submission_dir: &Path, programs: &Path, task: &Task) -> Result<Child> {
    let log = &task.log;
    crate::record::files::make_dirs(log.parent().unwrap_or(Path::new("/")))?;
    let stderr =
        std::fs::OpenOptions::new().create(true).append(true).open(log).map_err(RecordError::io("append to", log))?;
    let seedbed = programs.join("seedbed");
    let mut command = Command::new(&seedbed);
    command.args(["attempt", "--local", "--submission"]).arg(submission_dir);
    command.args(["--job", &task.job, "--slot", &task.slot.to_string(), "--"]);
    command.args(launcher(&task.resources));
    if is_root() {
        command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    }
    // Ranks that wait for a message must not take the core of the one that computes.
    command.env("OMPI_MCA_mpi_yield_when_idle", "1");
    // A group of its own: Ctrl-C in the terminal reaches us, and we ask for a checkpoint.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    command.spawn().map_err(|source| WorkflowError::Start { program: seedbed.display().to_string(), source })
}

/// What stands before a stage's command on this machine.
pub fn launcher(resources: &Resources) -> Vec<String> {
    if resources.ranks() <= 1 {
        return Vec::new();
    }
    let ranks = resources.ranks().to_string();
    ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", &ranks].map(ToOwned::to_owned).to_vec()
}

fn is_root() -> bool {
    // SAFETY: geteuid cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn send(child: &Child, signal: i32) {
    if let Ok(pid) = i32::try_from(child.id())
        && attempt::process_lives(child.id())
    {
        // SAFETY: the child is ours and has not been waited for. TERM goes to the attempt, which forwards
        // it; KILL goes to the whole group.
        unsafe { libc::kill(if signal == libc::SIGKILL { -pid } else { pid }, signal) };
    }
}

fn count_interrupts() -> Result<Arc<AtomicUsize>> {
    let count = Arc::new(AtomicUsize::new(0));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        let count = Arc::clone(&count);
        // SAFETY: an atomic increment is async-signal-safe.
        unsafe {
            signal_hook::low_level::register(signal, move || {
                count.fetch_add(1, Ordering::SeqCst);
            })
        }
        .map_err(|source| WorkflowError::Start { program: "the signal handler".into(), source })?;
    }
    Ok(count)
}
