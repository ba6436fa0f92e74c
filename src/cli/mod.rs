//! The command line: one file a subcommand, its arguments and its run.
//!
//! Data goes to stdout, the rest to stderr. An error is printed once, here, with its causes, and its kind
//! decides the exit code (`docs/exit-codes.md`).

mod aggregate;
mod attempt;
mod cancel;
mod confirm;
mod doctor;
mod documents;
mod explain;
mod gates;
mod generate;
mod ledger;
mod logs;
mod merged;
mod new;
mod output;
mod page;
mod paper;
mod plan;
mod progress;
mod query;
mod run_all;
mod signoff;
mod stage_data;
mod status;
mod study;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::record::{RecordError, exit};
use crate::report::query::QueryError;
use crate::workflow::WorkflowError;

/// An error at the edge.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Workflow(#[from] WorkflowError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Missing(String),
    #[error("cannot write to the terminal")]
    Output(#[source] std::io::Error),
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Workflow(e) => e.exit_code(),
            Self::Query(e) => e.exit_code(),
            Self::Record(e) if e.is_not_found() => exit::MISSING_INPUT,
            Self::Record(e) if e.is_disk_full() => exit::CANNOT_WRITE,
            Self::Record(_) => exit::STALE_INPUT,
            Self::Usage(_) => exit::USAGE,
            Self::Missing(_) => exit::MISSING_INPUT,
            Self::Output(_) => exit::CANNOT_WRITE,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, CliError>;

/// Takes a staged, multi-seed study from one TOML file, through Slurm, to the numbers in the paper.
#[derive(Debug, Parser)]
#[command(
    name = "seedbed",
    version,
    after_help = "Start a study with `seedbed new NAME`, run it with `run_all STUDY`.\nExit codes: docs/exit-codes.md"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a commented study to start from
    New(new::Args),
    /// Show every cell: done, stale (why), missing, queued; and what the rest costs
    Plan(plan::Args),
    /// Write the sbatch scripts of the chain, submit nothing
    Generate(generate::Args),
    /// Show the chain: seals, jobs, progress
    Status(status::Args),
    /// Show what the study has held and cost, attempt by attempt, and what is left of its budget
    Ledger(ledger::Args),
    /// Say why a cell is not running or not done, and what to do
    Explain(explain::Args),
    /// Print what a cell printed, over all attempts
    Logs(logs::Args),
    /// Cancel the chain, children first
    Cancel(cancel::Args),
    /// Confirm what a gate found, where it waits for a person
    Confirm(confirm::Args),
    /// Print the study's checklist, computed from seals
    Signoff(signoff::Args),
    /// Ask results a question in the jq language
    Query(query::Args),
    /// Fill the study's tables from its sealed results
    Aggregate(aggregate::Args),
    /// Put numbers into a paper, or prove that they still match
    Paper(paper::Args),
    /// Check this site against its cluster file, here and on the nodes
    Doctor(doctor::Args),
    /// What a script runs inside a job
    Attempt(attempt::Args),
    /// Copy data to this node, or take it away
    #[command(hide = true)]
    StageData(stage_data::Args),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The program `seedbed`.
pub fn seedbed() -> ExitCode {
    frame("seedbed", Cli::try_parse(), |cli| match cli.command {
        Command::New(args) => new::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Ledger(args) => ledger::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Logs(args) => logs::run(&args),
        Command::Cancel(args) => cancel::run(&args),
        Command::Confirm(args) => confirm::run(&args),
        Command::Signoff(args) => signoff::run(&args),
        Command::Query(args) => query::run(&args),
        Command::Aggregate(args) => aggregate::run(&args),
        Command::Paper(args) => paper::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::StageData(args) => stage_data::run(&args),
        Command::Attempt(args) => attempt::run(args),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "seedbed", &mut text);
            output::bytes(&text).map(|()| exit::DONE)
        }
    })
}

/// The program `run_all`.
pub fn run_all() -> ExitCode {
    frame("run_all", run_all::Args::try_parse(), |args| run_all::run(&args))
}

/// Parses, runs, prints the error, returns the exit code.
/// Many small blocks come and go in large studies. Each time glibc asks the kernel for a little more, or gives a little
/// back, all threads wait: it asks for more at once here, and keeps it.
fn roomy_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets numbers of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_TOP_PAD, 1 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 16 << 20);
    }
}

fn frame<A>(program: &str, parsed: std::result::Result<A, clap::Error>, run: impl FnOnce(A) -> Result<u8>) -> ExitCode {
    let args = match parsed {
        Ok(args) => args,
        Err(e) => {
            // Nobody is there to tell if the terminal is gone.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { exit::USAGE } else { exit::DONE });
        }
    };
    roomy_heap();
    let filter = tracing_subscriber::EnvFilter::try_from_env("SEEDBED_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(args) {
        Ok(code) => ExitCode::from(code),
        // A reader such as `head` that has enough is no failure.
        Err(CliError::Output(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::from(exit::DONE),
        Err(error) => {
            exit::report(program, &error);
            ExitCode::from(error.exit_code())
        }
    }
}
