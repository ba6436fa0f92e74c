//! `seedbed query`: jq over results.

use std::path::PathBuf;

use super::Result;
use super::output;
use crate::record::exit;
use crate::report::query::{self, Query, Seals, Style};

/// Ask results a question in the jq language.
///
/// One run.h5 or run directory gives its value tree, with "@meta", "@series", "@items" and "@file"
/// beside it; several, or a directory of results, give an array of {key, meta, metrics}.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "EXAMPLES:\n  seedbed query '.pile_test.baseline_pythia.perplexity' results/monotone/quick/evaluate/seed-42\n  seedbed query -r '.[] | select(.key.stage == \"uat\") | .key.seed' results/monotone/quick\nThe manual is docs/query.md."
)]
pub(crate) struct Args {
    /// A jq filter
    filter: String,
    /// run.h5 files, run directories, directories of results, JSON files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Each output on one line
    #[arg(long, short)]
    compact: bool,
    /// Texts without quotes
    #[arg(long, short, conflicts_with = "compact")]
    raw: bool,
    /// Refuse runs without a valid seal instead of warning
    #[arg(long)]
    sealed: bool,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let style = match (args.compact, args.raw) {
        (true, _) => Style::Compact,
        (_, true) => Style::Raw,
        _ => Style::Pretty,
    };
    let seals = if args.sealed { Seals::Require } else { Seals::Warn };
    let query = Query { filter: args.filter.clone(), paths: args.paths.clone(), style, seals };
    let warnings = query::query(&query, &mut std::io::stdout())?;
    for warning in warnings {
        output::note(&format!("seedbed: warning: {warning}"));
    }
    Ok(exit::DONE)
}
