//! Several cells in one allocation: an attempt of its own for each, side by side or in turn, with its own log, seal,
//! signals and exit code. When all have ended, the job is put back into the queue for those that are to go on; cells that
//! ended for good are not entered again.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use signal_hook::consts::{SIGCONT, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

use super::{Options, follow, launch, say};
use crate::record::{Adjust, Cell, JobRef, Next, RecordError, Resources, Verdict, Why, attempt, exit, files};
use crate::workflow::error::{Result, WorkflowError};
use crate::workflow::plan::Pack;
use crate::workflow::retry;
use crate::workflow::slurm::{Client, Element, JobState, control};
use crate::workflow::submission::{Submission, SubmittedJob};

/// One cell of the pack.
struct Member {
    slot: u32,
    cell: Cell,
    /// Exit code of its attempt; none while it has not run in this job.
    code: Option<u8>,
}

impl Member {
    fn is_open(&self) -> bool {
        self.code.is_none_or(|code| code == exit::RESUME)
    }

    /// The verdict of its last attempt, if that belongs to this submission.
    fn verdict(&self, submission: &str) -> Option<(u32, Verdict, i32)> {
        let run_dir = self.cell.run_dir();
        let n = attempt::last(&run_dir).ok().filter(|n| *n > 0)?;
        let start = attempt::read_start(&run_dir, n).ok().filter(|start| start.submission == submission)?;
        let end = attempt::read_end(&run_dir, start.attempt).ok()??;
        Some((n, end.verdict?, end.exit_code))
    }
}

/// Runs every cell of `job` that has not ended for good.
///
/// # Errors
/// A cell's file cannot be read, or no attempt can be started.
pub fn run(
    options: &Options,
    submission: &Submission,
    job: &SubmittedJob,
    pack: Pack,
    this: Option<&JobRef>,
) -> Result<u8> {
    let mut members = Vec::new();
    for &slot in job.cells.keys() {
        let cell = submission.cell(&options.submission, &job.name, slot)?;
        members.push(Member { slot, cell, code: None });
    }
    let way = if pack.in_turn { "in turn" } else { "side by side" };
    say(&format!("{} cells of submission {} {way}", members.len(), submission.name));
    for member in &mut members {
        // An attempt of this submission that ended for good; a sealed cell says so itself.
        if let Some((n, verdict, code)) = member.verdict(&submission.name)
            && matches!(verdict.next, Next::Nothing | Next::RunAll)
            && verdict.why != Why::Done
        {
            member.code = Some(u8::try_from(code).ok().filter(|c| *c != exit::DONE && *c != exit::RESUME).unwrap_or(1));
            say(&format!("{} is not entered again: attempt {n} ended for good", member.cell.key));
        }
    }
    let signals = Signals::listen()?;
    let width = if pack.in_turn { 1 } else { members.len() };
    let log_dir = submission.base.join("logs");
    std::thread::scope(|scope| -> Result<()> {
        let handle = signals.forward(scope)?;
        let ran = run_members(options, &mut members, &signals, width, &log_dir, this);
        handle.close();
        ran
    })?;
    let open: Vec<&Member> = members.iter().filter(|m| m.is_open()).collect();
    let cancelled = open.iter().any(|m| m.verdict(&submission.name).is_some_and(|(_, v, _)| v.why == Why::Cancelled));
    if cancelled || (signals.told_to_end() && is_ending(follow::state_of(this).as_ref())) {
        // Slurm puts a job that was preempted back by itself.
        say("the job ends: what is left runs when Slurm, or the next `run_all`, starts it again");
        return Ok(1);
    }
    if open.is_empty() {
        let worst = members.iter().filter_map(|m| m.code).find(|code| *code != exit::DONE);
        return Ok(worst.unwrap_or(exit::DONE));
    }
    let names: Vec<String> = open.iter().map(|m| m.cell.key.local_name()).collect();
    say(&format!("to be entered again: {}", names.join(", ")));
    again(submission, job, pack, this, &open)
}

fn run_members(
    options: &Options,
    members: &mut [Member],
    signals: &Signals,
    width: usize,
    log_dir: &Path,
    this: Option<&JobRef>,
) -> Result<()> {
    let waiting: Vec<usize> = (0..members.len()).filter(|&i| members[i].code.is_none()).collect();
    for group in waiting.chunks(width.max(1)) {
        // Time is nearly over, or the allocation is wanted back: who has not begun begins next time.
        if signals.heard() {
            return Ok(());
        }
        let mut running: Vec<(usize, Child)> = Vec::new();
        for &i in group {
            let log = member_log(log_dir, &members[i].cell, this);
            say(&format!("{}: log {}", members[i].cell.key, log.display()));
            let child = start(options, members[i].slot, &log)?;
            signals.add(&child);
            running.push((i, child));
        }
        for (i, mut child) in running {
            let ended = launch::wait_without_reaping(pid(&child));
            // Before its process id can become another's.
            signals.remove(&child);
            let status = ended.and_then(|()| child.wait());
            let status = status.map_err(|source| WorkflowError::Start { program: "an attempt".into(), source })?;
            // An attempt that a signal ended has not said what follows: like a kill, it is entered again and counted.
            let code = status.code().map_or(exit::RESUME, |code| u8::try_from(code).unwrap_or(1));
            say(&format!("{} ended with exit {code} ({})", members[i].cell.key, exit::meaning(i32::from(code))));
            members[i].code = Some(code);
        }
    }
    Ok(())
}

/// `job_<number>_<stage>_<job id>.<cell>.out`, beside the job's own log.
fn member_log(dir: &Path, cell: &Cell, this: Option<&JobRef>) -> PathBuf {
    let id = this.map_or("local", |job| job.id.as_str());
    let name = cell.key.local_name().replace('/', "+");
    dir.join(format!("job_{}_{}_{id}.{name}.out", cell.number, cell.key.stage))
}

fn start(options: &Options, slot: u32, log: &Path) -> Result<Child> {
    let program =
        std::env::current_exe().map_err(|source| WorkflowError::Start { program: "seedbed".into(), source })?;
    if let Some(dir) = log.parent() {
        files::make_dirs(dir)?;
    }
    let out = OpenOptions::new().create(true).append(true).open(log).map_err(RecordError::io("append to", log))?;
    let err = out.try_clone().map_err(RecordError::io("append to", log))?;
    let mut command = Command::new(&program);
    command.arg("attempt").arg("--submission").arg(&options.submission).arg("--job").arg(&options.job);
    command.args(["--slot", &slot.to_string(), "--packed", "--"]).args(&options.launcher);
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    // SAFETY: prctl with these arguments is async-signal-safe. No attempt goes on without who requeues its job.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.spawn().map_err(|source| WorkflowError::Start { program: program.display().to_string(), source })
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap_or(-1)
}

/// Signals to the job, for every attempt that runs.
struct Signals {
    running: Mutex<Vec<i32>>,
    /// That time is nearly over, or that the job is to end.
    heard: Arc<AtomicBool>,
    /// That the job is to end.
    told: Arc<AtomicBool>,
}

impl Signals {
    fn listen() -> Result<Self> {
        let (heard, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for signal in [SIGUSR2, SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&heard)).map_err(no_handler)?;
        }
        for signal in [SIGTERM, SIGINT] {
            signal_hook::flag::register(signal, Arc::clone(&told)).map_err(no_handler)?;
        }
        Ok(Self { running: Mutex::new(Vec::new()), heard, told })
    }

    fn heard(&self) -> bool {
        self.heard.load(Ordering::SeqCst)
    }

    fn told_to_end(&self) -> bool {
        self.told.load(Ordering::SeqCst)
    }

    fn pids(&self) -> std::sync::MutexGuard<'_, Vec<i32>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, child: &Child) {
        self.pids().push(pid(child));
    }

    fn remove(&self, child: &Child) {
        let gone = pid(child);
        self.pids().retain(|p| *p != gone);
    }

    fn forward<'s>(&'s self, scope: &'s std::thread::Scope<'s, '_>) -> Result<signal_hook::iterator::Handle> {
        let mut signals =
            signal_hook::iterator::Signals::new([SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGCONT]).map_err(no_handler)?;
        let handle = signals.handle();
        scope.spawn(move || {
            for signal in signals.forever().filter(|signal| *signal != SIGCONT) {
                for &pid in self.pids().iter().filter(|pid| **pid > 0) {
                    // SAFETY: a child is reaped after it has left the list, and the list is locked.
                    unsafe { libc::kill(pid, signal) };
                }
            }
        });
        Ok(handle)
    }
}

/// Whether a job that was told to end is on its way out, or back into the queue, without us. Where Slurm does not answer
/// it is: a requeue would bring back what was cancelled.
fn is_ending(state: Option<&JobState>) -> bool {
    !matches!(state, Some(JobState::Running))
}

fn no_handler(source: std::io::Error) -> WorkflowError {
    WorkflowError::Start { program: "the signal handler".into(), source }
}

/// Puts the job back into the queue for `open`, with what their verdicts ask for; or leaves it to the next link.
fn again(
    submission: &Submission,
    job: &SubmittedJob,
    pack: Pack,
    this: Option<&JobRef>,
    open: &[&Member],
) -> Result<u8> {
    if job.link.is_some() {
        return Ok(exit::RESUME);
    }
    let verdicts: Vec<(&Member, u32, Verdict)> =
        open.iter().filter_map(|m| m.verdict(&submission.name).map(|(n, verdict, _)| (*m, n, verdict))).collect();
    // Slurm does it.
    if verdicts.iter().any(|(_, _, verdict)| verdict.why == Why::Preempted) {
        return Ok(exit::RESUME);
    }
    let Some(element) = this.and_then(|job| job.id.parse::<Element>().ok()) else { return Ok(exit::RESUME) };
    let client = Client::new();
    let refused = if submission.rules.requeue {
        say(&format!("requeueing job {element}"));
        follow::ignore_signals();
        control::requeue(&client, element).err().map(|error| error.to_string())
    } else {
        Some("this site does not let a job be requeued".to_owned())
    };
    if let Some(why) = refused {
        say(&format!("{why}: `run_all` submits what is left"));
        for (member, n, verdict) in &verdicts {
            let run_dir = member.cell.run_dir();
            if let Ok(Some(mut end)) = attempt::read_end(&run_dir, *n) {
                end.verdict = Some(Verdict { next: Next::RunAll, ..verdict.clone() });
                end.cause = format!("{}; it could not be requeued ({why})", end.cause);
                attempt::write_end(&run_dir, *n, &end)?;
            }
        }
        return Ok(1);
    }
    let change = change(pack, &verdicts.iter().map(|(m, _, v)| (&m.cell.resources, &v.adjust)).collect::<Vec<_>>());
    if let Err(error) = control::update_soon(&client, element, &change, Duration::from_secs(20)) {
        say(&format!("requeued as it was: the job could not be changed ({error})"));
    }
    // Slurm ends this job now; should it be slow, 75 keeps the children waiting all the same.
    std::thread::sleep(Duration::from_secs(120));
    Ok(exit::RESUME)
}

/// What the job must ask for so that each cell gets what its verdict says: the greatest of each, for all.
fn change(pack: Pack, open: &[(&Resources, &Adjust)]) -> control::Change {
    let mut exclude: Vec<String> = open.iter().flat_map(|(_, adjust)| adjust.exclude.iter().cloned()).collect();
    exclude.sort();
    exclude.dedup();
    let asks = |pick: fn(&Adjust) -> bool| open.iter().any(|(_, adjust)| pick(adjust));
    let whole = |(planned, adjust): &(&Resources, &Adjust)| pack.resources(&retry::resources(planned, adjust));
    let most = open.iter().map(whole);
    control::Change {
        mem_bytes: most.clone().filter_map(|r| r.mem_bytes).max().filter(|_| asks(|a| a.mem_bytes.is_some())),
        time_s: most.map(|r| r.time_s).max().filter(|_| asks(|a| a.time_s.is_some())),
        exclude,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_was_told_to_end_is_put_back_only_while_slurm_says_that_it_runs() {
        assert!(!is_ending(Some(&JobState::Running)));
        for state in [Some(JobState::Completing), Some(JobState::Cancelled), Some(JobState::Pending), None] {
            assert!(is_ending(state.as_ref()), "{state:?}");
        }
    }

    #[test]
    fn a_pack_asks_for_what_its_hungriest_cell_needs() {
        let cell = Resources {
            nodes: 1,
            tasks_per_node: 1,
            cpus_per_task: 1,
            gpus_per_node: 0,
            mem_bytes: Some(1 << 30),
            time_s: 100,
        };
        let hungry = Adjust { mem_bytes: Some(2 << 30), exclude: vec!["n2".into()], ..Adjust::default() };
        let slow = Adjust { time_s: Some(300), exclude: vec!["n1".into(), "n2".into()], ..Adjust::default() };
        let plain = Adjust::default();
        let side = Pack { cells: 3, in_turn: false };
        assert_eq!(change(side, &[(&cell, &plain)]), control::Change::default());
        let found = change(side, &[(&cell, &plain), (&cell, &hungry)]);
        assert_eq!((found.mem_bytes, found.time_s, found.exclude), (Some(6 << 30), None, vec!["n2".to_owned()]));
        let turns = Pack { cells: 3, in_turn: true };
        let found = change(turns, &[(&cell, &slow), (&cell, &hungry)]);
        assert_eq!((found.mem_bytes, found.time_s), (Some(2 << 30), Some(900)));
        assert_eq!(found.exclude, ["n1", "n2"]);
    }
}
