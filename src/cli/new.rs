//! `seedbed new`: a commented study to start from.

use std::path::PathBuf;

use super::{CliError, Result, output};
use crate::record::{Name, exit, files};
use crate::workflow::study;

/// Write a commented study to start from.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the study
    name: String,
    /// Where to write it [default: configs/<name>.toml where there is a configs/, else <name>.toml]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let name = Name::new(&args.name).map_err(CliError::Usage)?;
    let file = format!("{name}.toml");
    let default =
        if PathBuf::from("configs").is_dir() { PathBuf::from("configs").join(&file) } else { PathBuf::from(&file) };
    // The text says how it is run from here; a path of the user's own is left to the user.
    let text = study::new_study(&name).replace(&format!("run_all {file}"), &format!("run_all {}", default.display()));
    let path = args.output.clone().unwrap_or(default);
    let written = files::create_exclusive(&path, text.as_bytes())?;
    if !written {
        return Err(CliError::Usage(format!(
            "`{}` is there already: choose another name, or --output FILE",
            path.display()
        )));
    }
    output::text(&format!("{}\n", path.display()))?;
    output::note(&format!("edit it, then look at `seedbed plan {0}` and start it with `run_all {0}`", path.display()));
    Ok(exit::DONE)
}
