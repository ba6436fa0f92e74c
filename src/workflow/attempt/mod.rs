//! What happens inside a job, on Slurm and locally alike: slot to cell, gate, claim, launch, judge,
//! verify, publish, seal, flags. No tensors here.
//!
//! [`run`] reads top to bottom. It returns the exit code of the attempt; codes are in
//! [`crate::record::exit`].

mod evidence;
mod follow;
mod gate;
mod inputs;
mod launch;
mod limit;
pub(super) mod modules;
mod pack;
mod publish;
mod staging;
mod tell;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::Utc;

use super::budget;
use super::doctor;
use super::error::{Result, WorkflowError};
use super::programs;
use super::retry;
use super::slurm::{Client, Element};
use super::submission::Submission;
use crate::record::attempt::{self, ATTEMPT_VERSION};
use crate::record::{
    Adjust, AttemptEnd, AttemptStart, Cell, Digest, JobRef, Next, Outcome, RecordError, Seal, Verdict, Why, exit,
    files, flag, progress,
};
use follow::{Known, Standing};
use limit::Limit;

/// What starts an attempt.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of the submission.
    pub submission: PathBuf,
    /// Job of the submission.
    pub job: String,
    /// Slot of the job.
    pub slot: u32,
    /// What stands before the stage's own command: `srun ...`, `mpirun ...`, or nothing.
    pub launcher: Vec<String>,
    /// Where it runs.
    pub executor: Executor,
    /// Whether it is one of several in its job, started by the one that Slurm started.
    pub packed: bool,
}

/// Where an attempt runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executor {
    /// In a Slurm job: output goes to the job's log too, and a checkpoint leads to a requeue.
    Slurm,
    /// Under `run_all --local`, which starts the next attempt itself.
    Local,
}

/// Runs one attempt of a cell. Prints what it decides to stderr.
///
/// # Errors
/// The submission cannot be read or the run directory not be written. What the stage did wrong is an exit
/// code, not an error.
pub fn run(options: &Options) -> Result<u8> {
    // Slurm's warning may come before the stage is there to take it: the end of the allocation is known without it.
    // SAFETY: SIG_IGN is a valid disposition.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
    if doctor::is_probe(&options.submission) {
        return doctor::probe(&options.submission, &options.job, &options.launcher);
    }
    let submission = Submission::read(&options.submission)?;
    let job = slurm_job(options.executor);
    let shared = submission.job(&options.job).and_then(|job| job.pack.map(|pack| (job, pack)));
    if let Some((shared, pack)) = shared.filter(|_| !options.packed) {
        return pack::run(options, &submission, shared, pack, job.as_ref());
    }
    let cell = submission.cell(&options.submission, &options.job, options.slot)?;
    let run_dir = cell.run_dir();
    say(&format!("cell {} of submission {}", cell.key, submission.name));

    if let Some(code) = settled(&submission, &cell, &run_dir)? {
        return Ok(code);
    }
    // What may still be writing there ends first: it may seal the cell, and its directory must not move under it.
    let earlier = attempt::last(&run_dir).unwrap_or(0);
    if earlier > 0 && wait_for_silence(&submission, &run_dir, earlier, job.as_ref())? {
        if let Some(code) = settled(&submission, &cell, &run_dir)? {
            return Ok(code);
        }
    }
    if supersede_other_fingerprint(&cell, &run_dir)?
        && let Some(code) = settled(&submission, &cell, &run_dir)?
    {
        return Ok(code);
    }
    let sealed = Seal::read(&run_dir).ok().flatten().filter(|seal| seal.fingerprint == cell.fingerprint);
    let stale = sealed.and_then(|seal| gate::stale(&cell, &seal));
    if let Some(why) = &stale {
        say(&format!("is sealed, and stale: {why}; it runs again"));
    }
    if let Some(why) = programs::changed(&submission.programs)? {
        say(&why);
        return Ok(exit::STALE_INPUT);
    }
    if options.executor == Executor::Slurm
        && let Some(why) = modules::missing(&submission.rules.modules, std::env::var("LOADEDMODULES").ok().as_deref())
    {
        say(&why);
        return Ok(exit::USAGE);
    }
    let told = submission.tell(&options.job);
    let settle = Duration::from_secs(submission.rules.settle_s);
    let read = match gate::check(&cell, settle) {
        Ok(read) => read,
        Err(refusal) => {
            say(&refusal.message);
            tell::of_refusal(told, &submission.name, &cell, refusal.code, &refusal.message);
            return Ok(refusal.code);
        }
    };

    if let Some(why) = budget::refusal(&cell, &options.submission)? {
        say(&why);
        return Ok(exit::STOPPED);
    }

    let read_now = inputs::digest(&read);
    let start = claim(&submission, &cell, &run_dir, job, &read_now)?;
    let n = start.attempt;
    say(&format!("attempt {n} on {}", start.host));
    let past = retry::history(&run_dir, n - 1);
    if inputs::differ(&past, &read_now, stale.is_some()) && inputs::set_aside(&cell, &run_dir, n)? {
        say("earlier attempts read other inputs: what they left is set aside, and it begins anew");
    }
    let adjust = retry::in_force(&past, &submission.name);
    let cell = adjusted(cell, &adjust);
    if !adjust.is_nothing() {
        say(&format!("with {adjust}"));
    }
    let policy = submission.rules.retry.clone().unwrap_or_default();
    let standing = Standing {
        executor: options.executor,
        submission: &submission,
        cell: &cell,
        attempt: n,
        job: start.job.as_ref(),
        link: submission.job(&options.job).and_then(|job| job.link),
        pack: shared.map(|(_, pack)| pack),
        past: &past,
        adjust: &adjust,
        limit: limit(&submission, &cell, &start, adjust.grace_s),
        policy: &policy,
    };
    let began = Instant::now();
    let mut known = Known::default();
    let (code, cause, verdict) = if let Some((code, why)) = standing.stopped_by_an_earlier_link() {
        (code, why, Some(Verdict { why: Why::Failed, next: Next::Nothing, adjust: adjust.clone() }))
    } else if let Some(why) = standing.given_up_before() {
        (1, why, Some(Verdict { why: Why::Killed, next: Next::Nothing, adjust: adjust.clone() }))
    } else {
        let (code, cause) = match attempt_once(options, &standing, &start, read, &mut known) {
            Ok(end) => end,
            // The attempt's own failure is recorded like the stage's: the next one must see that this ended.
            Err(error) => {
                exit::report("seedbed attempt", &error);
                (error.exit_code(), error.to_string())
            }
        };
        (code, cause, None)
    };
    let step = last_step(&run_dir);
    let (verdict, reason) = match verdict {
        Some(verdict) => (verdict, String::new()),
        None if code == exit::DONE => standing.judge(code, &known, None, step),
        None => standing.judge(code, &known, follow::state_of(start.job.as_ref()).as_ref(), step),
    };
    let mut record = |verdict: &Verdict, reason: &str| -> Result<()> {
        let cause = if reason.is_empty() { cause.clone() } else { format!("{cause}; {reason}") };
        say(&format!("attempt {n} ended: {cause} (exit {code}, {})", exit::meaning(i32::from(code))));
        let end = AttemptEnd {
            version: ATTEMPT_VERSION,
            exit_code: i32::from(code),
            cause,
            step,
            ended_at: Utc::now(),
            wall_s: began.elapsed().as_secs_f64(),
            verdict: Some(verdict.clone()),
        };
        if attempt::is_superseded(&run_dir, n) { Ok(()) } else { Ok(attempt::write_end(&run_dir, n, &end)?) }
    };
    record(&verdict, &reason)?;
    tell::of_end(told, &submission.name, &cell, start.job.as_ref(), code, (&verdict, &cause));
    standing.act(code, &verdict, &mut record)
}

/// What `seedbed stage-data` does on a node.
pub fn stage_data(what: &str, path: &Path) -> u8 {
    staging::on_node(what, path)
}

/// The exit code of an attempt that finds the cell sealed and fresh; none if it has to run.
fn settled(submission: &Submission, cell: &Cell, run_dir: &Path) -> Result<Option<u8>> {
    let Some(seal) = own_seal(run_dir, cell).filter(|seal| gate::stale(cell, seal).is_none()) else { return Ok(None) };
    refresh_flag(submission, cell)?;
    Ok(Some(match seal.outcome {
        Outcome::Done => {
            say("is sealed already; nothing to do");
            exit::DONE
        }
        Outcome::Stopped => {
            say("was stopped by a gate or kill criterion; `run_all --retry-stopped` tries it again");
            exit::STOPPED
        }
    }))
}

/// The cell as this attempt runs it: more memory or time than planned, and activations that are computed again, if the
/// attempts before it came to that. None of it is part of the fingerprint.
fn adjusted(mut cell: Cell, adjust: &Adjust) -> Cell {
    cell.resources = retry::resources(&cell.resources, adjust);
    if adjust.activation_checkpointing
        && let Some(parameter) = cell.params.get_mut("activation_checkpointing")
    {
        *parameter = true.into();
    }
    cell
}

/// When this attempt's allocation ends; none for a local one.
fn limit(submission: &Submission, cell: &Cell, start: &AttemptStart, grace_s: Option<u32>) -> Option<Limit> {
    let job = start.job.as_ref()?;
    let grace_s = submission.rules.grace_s.unwrap_or(300).max(grace_s.unwrap_or(0));
    let client = Client::new();
    let ask = Some(&client);
    Some(Limit::of(job, cell.resources.time_s, grace_s, ask, |name| std::env::var(name).ok()))
}

/// Launches the stage and judges what it did. Returns exit code and cause.
fn attempt_once(
    options: &Options,
    standing: &Standing,
    start: &AttemptStart,
    read: Vec<crate::record::seal::SealedFile>,
    known: &mut Known,
) -> Result<(u8, String)> {
    let (submission, cell) = (standing.submission, standing.cell);
    let run_dir = cell.run_dir();
    let out_dir = attempt::out_dir(&run_dir, start.attempt);
    prepare(cell, &run_dir, &out_dir)?;
    let asked = submission.job(&options.job).map(|job| job.staging.clone()).unwrap_or_default();
    let staged = match staging::enter(&asked, cell, start, &submission.programs, options.executor) {
        Ok(staged) => staged,
        Err(refusal) => return Ok((refusal.code, refusal.message)),
    };
    if let Some(staged) = &staged {
        files::write_atomic(&run_dir.join("cell.toml"), staged.cell.to_toml()?.as_bytes())?;
    }
    let report = launch::run(&launch::Launch {
        cell: staged.as_ref().map_or(cell, |staged| &staged.cell),
        attempt: start.attempt,
        launcher: &launcher(options, standing),
        programs: &submission.programs,
        run_dir: &run_dir,
        out_dir: staged.as_ref().map_or(&out_dir, |staged| staged.out_dir(&out_dir)),
        local: staged.as_ref().map(|staged| staged.dir.as_path()),
        beat: Duration::from_secs(submission.rules.beat_s.max(1)),
        echo: options.executor == Executor::Slurm,
        limit: standing.limit,
        alone: standing.pack.is_none(),
    });
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            if let Some(staged) = staged {
                staged.leave(&out_dir, false)?;
            }
            return Err(error);
        }
    };
    let ended = report.ended;
    *known = Known { evidence: report.evidence, told_to_end: report.told_to_end };
    let superseded = attempt::is_superseded(&run_dir, start.attempt);
    let (code, cause) = match ended.code_and_cause() {
        // Its processes may go on, on a node that Slurm has lost: this is no success, whatever lies there.
        (exit::DONE, _) if known.was_cut_short() => (1, "cut short, although srun ended with 0".to_owned()),
        ended => ended,
    };
    if let Some(staged) = staged {
        let counts = [exit::DONE, exit::STOPPED, exit::MISSING_INPUT].contains(&code) && !superseded;
        staged.leave(&out_dir, counts)?;
        if !superseded {
            // What is left says where the data is, not where its copy was.
            files::write_atomic(&run_dir.join("cell.toml"), cell.to_toml()?.as_bytes())?;
        }
    }
    if superseded {
        return Ok((exit::SUPERSEDED, "a newer attempt owns the cell; nothing was published".to_owned()));
    }
    let partial = publish::takes_partial_inputs(cell) && code == exit::MISSING_INPUT;
    match code {
        exit::DONE => match publish::publish(cell, start, &run_dir, &out_dir, read) {
            Ok(seal) => {
                refresh_flag(submission, cell)?;
                return Ok((exit::DONE, format!("sealed {} ({} files)", cell.key, seal.outputs.len())));
            }
            Err(publish::Refusal::Outputs(why)) if known.told_to_end => {
                return Ok((1, format!("told to end, and ended with 0 without its outputs: {why}")));
            }
            Err(publish::Refusal::Outputs(why)) => return Ok((exit::BAD_OUTPUT, why)),
            Err(publish::Refusal::Superseded) => {
                return Ok((exit::SUPERSEDED, "a newer attempt owns the cell; nothing was sealed".to_owned()));
            }
            Err(publish::Refusal::Disk(error)) => return Err(error.into()),
        },
        exit::STOPPED => {
            match publish::stop(cell, start, &run_dir, &out_dir, &cause, read) {
                Ok(()) => {}
                Err(publish::Refusal::Outputs(why)) => return Ok((exit::BAD_OUTPUT, why)),
                Err(publish::Refusal::Superseded) => {
                    return Ok((exit::SUPERSEDED, "a newer attempt owns the cell; nothing was sealed".to_owned()));
                }
                Err(publish::Refusal::Disk(error)) => return Err(error.into()),
            }
            refresh_flag(submission, cell)?;
        }
        _ if partial => {
            publish::publish_unsealed(&run_dir, &out_dir)?;
            refresh_flag(submission, cell)?;
        }
        _ => {}
    }
    // What is left is a part of a result; the log and the checkpoints stay.
    match std::fs::remove_dir_all(&out_dir) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(RecordError::io("remove", &out_dir)(e).into()),
    }
    Ok((code, cause))
}

/// What stands before the stage's command: for a cell that shares its job, srun with the cell's own part of it.
fn launcher(options: &Options, standing: &Standing) -> Vec<String> {
    let mut words = options.launcher.clone();
    if let Some(pack) = standing.pack.filter(|_| words.first().is_some_and(|word| word == "srun")) {
        words.splice(1..1, pack.step(&standing.cell.resources));
    }
    words
}

/// The cell's own seal, if it is whole, fresh, and its outputs are what was sealed. Whoever submitted a sealed cell may have
/// seen that they are not.
fn own_seal(run_dir: &Path, cell: &Cell) -> Option<Seal> {
    let seal = Seal::read(run_dir).ok().flatten()?;
    (seal.fingerprint == cell.fingerprint && seal.verify(run_dir).is_none()).then_some(seal)
}

/// Renames a run directory of another fingerprint into `.superseded/`, and moves one of this fingerprint
/// back from there: true then. Only `seedbed clean` deletes.
fn supersede_other_fingerprint(cell: &Cell, run_dir: &Path) -> Result<bool> {
    let path = run_dir.join("cell.toml");
    let shelf = |print: &crate::record::Fingerprint| {
        cell.base.join(".superseded").join(cell.key.local_dir()).join(print.short())
    };
    if run_dir.exists() {
        match Cell::read(&path) {
            Ok(old) if old.fingerprint == cell.fingerprint => return Ok(false),
            Ok(old) => {
                let aside = free_name(&shelf(&old.fingerprint));
                files::make_dirs(aside.parent().unwrap_or(&cell.base))?;
                std::fs::rename(run_dir, &aside).map_err(RecordError::io("move aside", run_dir))?;
                say(&format!("results of other parameters moved to {}", aside.display()));
            }
            // Claimed but never started, or nothing of ours: it is taken over as it is.
            Err(e) if e.is_not_found() => return Ok(false),
            // A file system that does not answer is no damage.
            Err(e) if !matches!(e, RecordError::Damaged { .. }) => return Err(e.into()),
            Err(e) => {
                let aside = free_name(&cell.base.join(".superseded").join(cell.key.local_dir()).join("damaged"));
                files::make_dirs(aside.parent().unwrap_or(&cell.base))?;
                std::fs::rename(run_dir, &aside).map_err(RecordError::io("move aside", run_dir))?;
                say(&format!("{e}; the run directory moved to {}", aside.display()));
            }
        }
    }
    let kept = shelf(&cell.fingerprint);
    if kept.join("cell.toml").is_file()
        && Cell::read(&kept.join("cell.toml")).is_ok_and(|c| c.fingerprint == cell.fingerprint)
    {
        files::make_dirs(run_dir.parent().unwrap_or(&cell.base))?;
        std::fs::rename(&kept, run_dir).map_err(RecordError::io("move back", &kept))?;
        say("earlier results of these parameters moved back");
        return Ok(true);
    }
    Ok(false)
}

fn free_name(path: &Path) -> PathBuf {
    let numbered = (1..).map(|i| if i == 1 { path.to_path_buf() } else { path.with_extension(i.to_string()) });
    numbered.into_iter().find(|p| !p.exists()).unwrap_or_else(|| path.to_path_buf())
}

/// Claims the next attempt. Waits while an earlier one may still be writing.
fn claim(
    submission: &Submission,
    cell: &Cell,
    run_dir: &Path,
    job: Option<JobRef>,
    inputs: &Digest,
) -> Result<AttemptStart> {
    loop {
        let last = attempt::last(run_dir)?;
        if last > 0 {
            wait_for_silence(submission, run_dir, last, job.as_ref())?;
            if attempt::last(run_dir)? != last {
                continue;
            }
        }
        let start = AttemptStart {
            version: ATTEMPT_VERSION,
            attempt: last + 1,
            key: cell.key.clone(),
            fingerprint: cell.fingerprint.clone(),
            submission: submission.name.clone(),
            job: job.clone(),
            host: files::host_name(),
            pid: std::process::id(),
            boot_id: attempt::boot_id(),
            user: attempt::user_name(),
            started_at: Utc::now(),
            inputs: Some(inputs.clone()),
        };
        if attempt::claim(run_dir, &start)? {
            return Ok(start);
        }
    }
}

/// Returns once attempt `n` cannot be writing any more: it has said its end, its process is known to be
/// gone, this is the requeue of its own job, or its heartbeat stood still for a lease. True if it had to be waited for.
fn wait_for_silence(submission: &Submission, run_dir: &Path, n: u32, job: Option<&JobRef>) -> Result<bool> {
    let earlier = match attempt::read_start(run_dir, n) {
        Ok(earlier) => earlier,
        Err(e) if e.is_not_found() => return Ok(false),
        Err(e) => return Err(e.into()),
    };
    let same_job = job.is_some() && job.map(|j| &j.id) == earlier.job.as_ref().map(|j| &j.id);
    let lease = Duration::from_secs(submission.rules.lease_s);
    let mut beat = attempt::read_beat(run_dir, n);
    let mut still_since = Instant::now();
    let mut told = false;
    loop {
        let here = earlier.host == files::host_name();
        let gone = here && (earlier.boot_id != attempt::boot_id() || !attempt::process_lives(earlier.pid));
        if attempt::read_end(run_dir, n)?.is_some() || gone || same_job || still_since.elapsed() >= lease {
            return Ok(told);
        }
        if !told {
            say(&format!("attempt {n} may still be running (process {} on {}); waiting", earlier.pid, earlier.host));
            told = true;
        }
        std::thread::sleep(Duration::from_millis(500));
        let now = attempt::read_beat(run_dir, n);
        if now != beat {
            beat = now;
            still_since = Instant::now();
        }
    }
}

fn prepare(cell: &Cell, run_dir: &Path, out_dir: &Path) -> Result<()> {
    files::write_atomic(&run_dir.join("cell.toml"), cell.to_toml()?.as_bytes())?;
    if out_dir.exists() {
        std::fs::remove_dir_all(out_dir).map_err(RecordError::io("remove", out_dir))?;
    }
    // Parts of earlier attempts: this one owns the cell now.
    for entry in std::fs::read_dir(run_dir).map_err(RecordError::io("list", run_dir))? {
        let entry = entry.map_err(RecordError::io("list", run_dir))?;
        if entry.file_name().to_string_lossy().starts_with(".attempt-") {
            std::fs::remove_dir_all(entry.path()).map_err(RecordError::io("remove", entry.path()))?;
        }
    }
    files::make_dirs(out_dir)?;
    let checkpoints = cell.checkpoint_dir();
    files::make_dirs(&checkpoints)?;
    if cell.scratch.is_some() {
        let link = run_dir.join("checkpoints");
        match std::os::unix::fs::symlink(&checkpoints, &link) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(RecordError::io("link", &link)(e).into()),
        }
    }
    Ok(())
}

fn refresh_flag(submission: &Submission, cell: &Cell) -> Result<()> {
    for stage in submission.stages.iter().filter(|s| s.name == cell.key.stage) {
        flag::refresh(&cell.base, stage.number, &stage.name, &stage.cells)?;
    }
    Ok(())
}

fn last_step(run_dir: &Path) -> Option<u64> {
    progress::read(run_dir).ok()?.last().map(|line| line.step)
}

fn slurm_job(executor: Executor) -> Option<JobRef> {
    if executor == Executor::Local {
        return None;
    }
    let get = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let id = Element::from_environment(get)?.to_string();
    let restart = get("SLURM_RESTART_COUNT").and_then(|v| v.parse().ok()).unwrap_or(0);
    Some(JobRef { id, restart })
}

/// A line for the log of the job.
fn say(line: &str) {
    use std::io::Write;
    let time = Utc::now().format("%F %T");
    // Nobody is there to tell if stderr is gone.
    let _ = writeln!(std::io::stderr(), "{time} seedbed: {line}");
}

impl From<publish::Refusal> for WorkflowError {
    fn from(refusal: publish::Refusal) -> Self {
        match refusal {
            publish::Refusal::Outputs(why) => Self::attempt(exit::BAD_OUTPUT, why),
            publish::Refusal::Superseded => Self::attempt(exit::SUPERSEDED, "a newer attempt owns the cell"),
            publish::Refusal::Disk(error) => Self::Record(error),
        }
    }
}
