//! What a stage is given, and the frame around its `run`: arguments, signals, exit codes, and the writing
//! of `run.h5` and its JSON export.
//!
//! A stage writes its outputs into [`Context::out_dir`]; the attempt that started it verifies, publishes
//! and seals them. A stage never seals itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;
use serde::de::DeserializeOwned;

use super::Spec;
use crate::record::{Cell, Need, RecordError, RunRecord, attempt, exit, files, run_h5};

/// Why a stage did not finish. Each kind has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// Wrong parameters or input that no repetition mends: exit 64.
    #[error("{0}")]
    Usage(String),
    /// An input is there but is not what was planned: exit 65.
    #[error("{0}")]
    Stale(String),
    /// An input is missing: exit 66.
    #[error("{0}")]
    Missing(String),
    /// The stage's own check of its outputs failed: exit 70.
    #[error("{0}")]
    BadOutput(String),
    /// Another rank is gone: exit 71.
    #[error("{0}")]
    CollectiveTimeout(String),
    /// A file cannot be written: exit 73.
    #[error("{0}")]
    CannotWrite(String),
    /// Checkpointed at this step, run me again: exit 75.
    #[error("checkpointed at step {0}; it goes on from there when it is started again")]
    Resume(u64),
    /// A newer attempt owns the cell: exit 76.
    #[error("a newer attempt owns this cell; this one publishes nothing")]
    Superseded,
    /// A kill criterion said stop: exit 78.
    #[error("{0}")]
    Stopped(String),
    /// The ground floor refused; exit by its kind.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A computing room refused; exit by its kind.
    #[cfg(feature = "compute")]
    #[error(transparent)]
    Compute(#[from] crate::compute::ComputeError),
    /// Anything else, with its cause: exit 1 means "failed".
    #[error("{what}")]
    Failed {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StageError {
    /// [`StageError::Failed`] for `map_err`.
    pub fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        what: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Failed { what, source: source.into() }
    }

    /// The documented exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::Stale(_) => exit::STALE_INPUT,
            Self::Missing(_) => exit::MISSING_INPUT,
            Self::BadOutput(_) => exit::BAD_OUTPUT,
            Self::CollectiveTimeout(_) => exit::COLLECTIVE_TIMEOUT,
            Self::CannotWrite(_) => exit::CANNOT_WRITE,
            Self::Resume(_) => exit::RESUME,
            Self::Superseded => exit::SUPERSEDED,
            Self::Stopped(_) => exit::STOPPED,
            Self::Record(e) if e.is_not_found() => exit::MISSING_INPUT,
            Self::Record(e) if e.is_disk_full() => exit::CANNOT_WRITE,
            Self::Record(RecordError::Damaged { .. } | RecordError::Newer { .. }) => exit::STALE_INPUT,
            #[cfg(feature = "compute")]
            Self::Compute(e) => e.exit_code(),
            Self::Record(_) | Self::Failed { .. } => 1,
        }
    }
}

/// What a stage is given.
#[derive(Debug)]
pub struct Context {
    /// Everything the plan says about the cell.
    pub cell: Cell,
    /// Number of this attempt.
    pub attempt: u32,
    /// The cell's run directory: holds `progress.jsonl` and what earlier attempts left.
    pub run_dir: PathBuf,
    /// Where outputs are written. Empty and private to this attempt.
    pub out_dir: PathBuf,
    /// Where checkpoints lie, over attempts.
    pub checkpoint_dir: PathBuf,
    /// Where a trace of the run is wanted, if one is.
    pub trace: Option<PathBuf>,
    /// When the process began.
    pub started: Instant,
    stop: Arc<AtomicBool>,
    deadline: Option<Deadline>,
}

impl Context {
    /// Opens the context of attempt `attempt` of the cell described by `cell_path`.
    ///
    /// # Errors
    /// `cell.toml` cannot be read, or the directories cannot be made.
    pub fn open(cell_path: &Path, attempt: u32) -> Result<Self, StageError> {
        let cell = Cell::read(cell_path)?;
        let run_dir = cell.run_dir();
        // On the node's own disk, where the stage is staged out.
        let staged = std::env::var_os("SEEDBED_OUT_DIR").filter(|dir| !dir.is_empty());
        let out_dir = staged.map_or_else(|| attempt::out_dir(&run_dir, attempt), PathBuf::from);
        let checkpoint_dir = cell.checkpoint_dir();
        files::make_dirs(&out_dir)?;
        let started = Instant::now();
        let get = |name: &str| std::env::var(name).ok();
        // Who cannot go on from a checkpoint gains nothing by stopping early.
        let deadline = if cell.resumable { Deadline::from_environment(get, SystemTime::now(), started) } else { None };
        Ok(Self {
            cell,
            attempt,
            run_dir,
            out_dir,
            checkpoint_dir,
            trace: None,
            started,
            stop: Arc::default(),
            deadline,
        })
    }

    /// The parameters as the stage's own type.
    ///
    /// # Errors
    /// They do not fit it: the cell was written by another version of the program.
    pub fn params<P: DeserializeOwned>(&self) -> Result<P, StageError> {
        serde_json::from_value(self.cell.params.clone()).map_err(|e| {
            StageError::Usage(format!(
                "parameters of cell {} do not fit this program ({e}): submit again with `run_all`",
                self.cell.key
            ))
        })
    }

    /// The cell's seed; 0 for a stage without that axis.
    pub fn seed(&self) -> u32 {
        self.cell.key.seed.unwrap_or(0)
    }

    /// The needed cell of a stage kind.
    ///
    /// # Errors
    /// None, or more than one.
    pub fn need_of_kind(&self, kind: &str) -> Result<&Need, StageError> {
        let mut found = self.cell.needs.iter().filter(|n| n.kind == kind);
        match (found.next(), found.next()) {
            (Some(need), None) => Ok(need),
            (None, _) => Err(StageError::Usage(format!(
                "stage `{}` needs a stage of kind `{kind}`: add it to `needs`",
                self.cell.key.stage
            ))),
            (Some(_), Some(_)) => Err(StageError::Usage(format!(
                "stage `{}` needs several stages of kind `{kind}`: leave one",
                self.cell.key.stage
            ))),
        }
    }

    /// The needed cell of a stage.
    ///
    /// # Errors
    /// None, or more than one.
    pub fn need_of_stage(&self, stage: &str) -> Result<&Need, StageError> {
        let mut found = self.cell.needs.iter().filter(|n| n.key.stage.as_str() == stage);
        match (found.next(), found.next()) {
            (Some(need), None) => Ok(need),
            (None, _) => Err(StageError::Usage(format!(
                "stage `{}` reads stage `{stage}`: add it to `needs`",
                self.cell.key.stage
            ))),
            (Some(_), Some(_)) => Err(StageError::Usage(format!(
                "stage `{}` needs several cells of `{stage}`: one is expected",
                self.cell.key.stage
            ))),
        }
    }

    /// Run directory of a needed cell.
    pub fn need_dir(&self, need: &Need) -> PathBuf {
        self.cell.need_dir(need)
    }

    /// Path of an external input by its declared name.
    pub fn input(&self, name: &str) -> Option<&Path> {
        self.cell.inputs.iter().find(|i| i.name == name).map(|i| i.path.as_path())
    }

    /// True once Slurm or a person asked to stop, or the allocation is about to end (early enough for a checkpoint that
    /// takes as long as the longest so far): finish the step, checkpoint, return [`StageError::Resume`].
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.deadline.is_some_and(|d| d.is_due(Instant::now(), longest_save()))
    }

    /// True if a newer attempt has claimed the cell.
    pub fn is_superseded(&self) -> bool {
        attempt::is_superseded(&self.run_dir, self.attempt)
    }

    /// The same question for another thread.
    pub fn superseded(&self) -> Arc<dyn Fn() -> bool + Send + Sync> {
        let (run_dir, n) = (self.run_dir.clone(), self.attempt);
        Arc::new(move || attempt::is_superseded(&run_dir, n))
    }

    /// Leaves why a kill criterion said stop, for the seal. One rank does it.
    ///
    /// # Errors
    /// It cannot be written.
    #[cfg(feature = "compute")]
    pub fn leave_evidence(&self, stop: &crate::compute::Stop) -> Result<(), StageError> {
        Ok(files::write_json(&self.out_dir.join(attempt::EVIDENCE_FILE), stop)?)
    }

    /// Seconds since the process began.
    pub fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// How long a checkpoint takes, as far as this process has measured.
fn longest_save() -> Duration {
    #[cfg(feature = "compute")]
    return crate::compute::checkpoint::saver::longest_save();
    #[cfg(not(feature = "compute"))]
    Duration::ZERO
}

/// The end of the allocation, as the attempt told it: Slurm's warning is only the backstop, because it cannot be moved
/// once a job is queued.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    opened: Instant,
    end: Instant,
    grace: Duration,
}

impl Deadline {
    /// From `SEEDBED_END_TIME` (seconds since 1970) and `SEEDBED_GRACE_S`. An end that has passed is no end: a clock
    /// is wrong, and Slurm's warning will tell.
    fn from_environment(get: impl Fn(&str) -> Option<String>, now: SystemTime, opened: Instant) -> Option<Self> {
        let number = |name| get(name)?.parse::<u64>().ok().map(Duration::from_secs);
        let left = (UNIX_EPOCH + number("SEEDBED_END_TIME")?).duration_since(now).ok()?;
        Some(Self { opened, end: opened.checked_add(left)?, grace: number("SEEDBED_GRACE_S")? })
    }

    /// Whether a checkpoint must begin: the grace before the end, or three times what one takes and a minute; never
    /// before half of the time is over.
    fn is_due(&self, now: Instant, save: Duration) -> bool {
        let wanted = if save.is_zero() { self.grace } else { self.grace.max(3 * save + Duration::from_secs(60)) };
        let most = self.end.saturating_duration_since(self.opened) / 2;
        self.end.saturating_duration_since(now) <= wanted.min(most)
    }
}

#[derive(Debug, Parser)]
struct Args {
    /// The cell to run: a `cell.toml` that `run_all` wrote
    #[arg(long, value_name = "FILE", env = "SEEDBED_CELL")]
    cell: PathBuf,
    /// Number of this attempt
    #[arg(long, value_name = "N", env = "SEEDBED_ATTEMPT")]
    attempt: u32,
    /// Write what every rank did when, for chrome://tracing or Perfetto
    #[arg(long, value_name = "FILE", env = "SEEDBED_TRACE")]
    trace: Option<PathBuf>,
}

/// What a stage does: all ranks run it, rank 0 returns the record.
pub type Run = fn(&Context) -> Result<Option<RunRecord>, StageError>;

/// The whole of a stage binary: parses arguments, runs the stage, writes `run.h5` and the export.
pub fn main(spec: &'static Spec, run: Run) -> ExitCode {
    use clap::{CommandFactory, FromArgMatches};
    let mut command = Args::command();
    command = command.name(spec.binary).about(spec.help).version(env!("CARGO_PKG_VERSION")).after_help(
        "`seedbed attempt` starts this program inside a job; by hand, name a cell.toml of a submission.\nExit codes: docs/exit-codes.md",
    );
    if std::env::args().nth(1).as_deref() == Some("--describe") {
        return describe(spec);
    }
    let args = match command.try_get_matches().and_then(|m| Args::from_arg_matches(&m)) {
        Ok(args) => args,
        Err(e) => {
            // Nobody is there to tell if the terminal is gone.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { exit::USAGE } else { exit::DONE });
        }
    };
    match run_stage(spec, run, &args) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => {
            exit::report(spec.binary, &error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints what the planner checks before it submits this binary.
fn describe(spec: &Spec) -> ExitCode {
    use std::io::Write;
    let mut features = Vec::new();
    if cfg!(feature = "compute") {
        features.push("compute");
    }
    if cfg!(feature = "mpi") {
        features.push("mpi");
    }
    let text = serde_json::json!({"kind": spec.kind, "version": spec.version, "features": features});
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(_) => ExitCode::from(exit::CANNOT_WRITE),
    }
}

fn run_stage(spec: &Spec, run: Run, args: &Args) -> Result<(), StageError> {
    let context = Context { trace: args.trace.clone(), ..Context::open(&args.cell, args.attempt)? };
    if context.cell.kind != spec.kind {
        return Err(StageError::Usage(format!(
            "{} runs stages of kind `{}`, but cell {} is of kind `{}`: start `seedbed-{}`",
            spec.binary,
            spec.kind,
            context.cell.key,
            context.cell.kind,
            context.cell.kind.replace('_', "-"),
        )));
    }
    listen(spec, &context.stop)?;
    let result = run(&context);
    // Of several ranks the stage knows which one speaks.
    #[cfg(feature = "compute")]
    if let (false, Err(StageError::Compute(crate::compute::ComputeError::Stopped(stop)))) = (spec.parallel, &result) {
        context.leave_evidence(stop)?;
    }
    if let Some(record) = result? {
        write_record(spec, &context, &record)?;
    }
    Ok(())
}

/// USR2 comes a grace before the time limit. A stage that cannot resume goes on: it may still finish.
fn listen(spec: &Spec, stop: &Arc<AtomicBool>) -> Result<(), StageError> {
    use signal_hook::consts::{SIGTERM, SIGUSR2};
    let hook = |signal, flag: &Arc<AtomicBool>| {
        signal_hook::flag::register(signal, Arc::clone(flag)).map_err(StageError::failed("cannot listen for signals"))
    };
    if spec.resumable {
        hook(SIGUSR2, stop)?;
        hook(SIGTERM, stop)?;
    } else {
        hook(SIGUSR2, &Arc::default())?;
    }
    Ok(())
}

/// Writes `run.h5` and, printed from it, the JSON export.
///
/// # Errors
/// The files cannot be written, or a value cannot be stored.
pub fn write_record(spec: &Spec, context: &Context, record: &RunRecord) -> Result<(), StageError> {
    let path = context.out_dir.join(run_h5::RUN_FILE);
    run_h5::write_run(&path, record)?;
    if let Some(export) = spec.export {
        let stored = run_h5::read_run(&path)?;
        files::write_json(&context.out_dir.join(export), &stored.tree())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_begins_before_the_end() {
        let (now, opened) = (UNIX_EPOCH + Duration::from_secs(1_000_000), Instant::now());
        let told = |end: &str, grace: &str| {
            let (end, grace) = (end.to_owned(), grace.to_owned());
            let get = move |name: &str| match name {
                "SEEDBED_END_TIME" => Some(end.clone()),
                "SEEDBED_GRACE_S" => Some(grace.clone()),
                _ => None,
            };
            Deadline::from_environment(get, now, opened)
        };
        let seconds = Duration::from_secs;
        let hour = told("1003600", "300").unwrap();
        // (save, first second at which it is due)
        for (save, due) in [(0, 3300), (10, 3300), (80, 3300), (100, 3240), (500, 3600 - 1560), (2000, 1800)] {
            assert!(!hour.is_due(opened + seconds(due - 1), seconds(save)), "{save}");
            assert!(hour.is_due(opened + seconds(due), seconds(save)), "{save}");
        }
        // A grace that is longer than half of the time.
        let minute = told("1000060", "300").unwrap();
        assert!(
            !minute.is_due(opened + seconds(29), Duration::ZERO) && minute.is_due(opened + seconds(30), seconds(1))
        );
        for (end, grace) in [("999999", "300"), ("", "300"), ("1003600", ""), ("x", "1")] {
            assert!(told(end, grace).is_none(), "{end} {grace}");
        }
    }
}
