//! `seedbed attempt`: what a job script runs.

use std::path::PathBuf;

use super::Result;
use crate::workflow::attempt::{self, Executor, Options};

/// Run one attempt of a cell: gate, claim, launch, verify, seal.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of the submission
    #[arg(long, value_name = "DIR")]
    submission: PathBuf,
    /// Job of the submission
    #[arg(long, value_name = "NAME")]
    job: String,
    /// Slot of the job
    #[arg(long, value_name = "N", default_value_t = 0)]
    slot: u32,
    /// Run as one of several in a job
    #[arg(long, hide = true)]
    packed: bool,
    /// Run for the local executor
    #[arg(long)]
    local: bool,
    /// What stands before the stage's own command, such as `srun --mpi=pmix`
    #[arg(last = true, value_name = "LAUNCHER")]
    launcher: Vec<String>,
}

pub(crate) fn run(args: Args) -> Result<u8> {
    let executor = if args.local { Executor::Local } else { Executor::Slurm };
    let options = Options {
        submission: args.submission,
        job: args.job,
        slot: args.slot,
        launcher: args.launcher,
        executor,
        packed: args.packed,
    };
    Ok(attempt::run(&options)?)
}
