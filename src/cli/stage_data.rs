//! `seedbed stage-data`: what an attempt runs once on each of several nodes, to copy data there and to take it away.

use std::path::PathBuf;

use super::Result;
use crate::workflow::attempt;

/// What to do on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Copy what a file says
    Copy,
    /// Remove a directory that a copy has made
    Remove,
}

/// Copy data to this node, or take it away. Started by an attempt; not for people.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to do
    what: What,
    /// The file, or the directory
    path: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let what = if args.what == What::Remove { "remove" } else { "copy" };
    Ok(attempt::stage_data(what, &args.path))
}
