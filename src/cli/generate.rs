//! `seedbed generate`: the sbatch scripts of the chain, as files; nothing is submitted.

use std::path::PathBuf;

use super::Result;
use super::output;
use super::study::{PartArgs, StudyArgs};
use crate::record::{exit, files};
use crate::workflow::plan::Policy;
use crate::workflow::run::{Intent, prepare};

/// Write one sbatch script for each job of the chain, submit nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    part: PartArgs,
    /// Where to write them [default: slurm/generated/<study>/<profile> below the root]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let mut prepared = prepare(&args.study.part(&args.part, Policy::default()), Intent::Look)?;
    prepared.note_retries();
    prepared.notes.iter().for_each(|n| output::note(n));
    let jobs = prepared.jobs()?;
    if jobs.is_empty() {
        output::note("every cell is sealed or queued: there is nothing to generate");
        return Ok(exit::DONE);
    }
    let written = prepared.write_submission(&jobs)?;
    files::make_dirs(&prepared.place.logs())?;
    let default = prepared
        .place
        .root
        .join("slurm/generated")
        .join(prepared.study.name.as_str())
        .join(prepared.study.profile.as_str());
    let dir = args.output.clone().unwrap_or(default);
    for (job, (_, text)) in jobs.iter().zip(&written.scripts) {
        let number = prepared.study.stage(job.stage.as_str()).map_or(0, |s| s.number);
        let same = jobs.iter().filter(|j| j.stage == job.stage && j.arm == job.arm).count();
        let arm = job.arm.as_ref().map(|a| format!("_{a}")).unwrap_or_default();
        // One script a stage, or one a part where an array had to be split.
        let part = match (same, job.cells.first()) {
            (2.., Some((_, key))) => format!("_from_{}", key.local_name().rsplit('/').next().unwrap_or_default()),
            _ => String::new(),
        };
        let link = job.link.map(|link| format!("_link-{}", link.number)).unwrap_or_default();
        let path = dir.join(format!("job_{number}_{}{arm}{part}{link}.sbatch", job.stage));
        files::write_atomic(&path, text.as_bytes())?;
        output::text(&format!("{}\n", path.display()))?;
    }
    output::note(&format!(
        "submission {} is written and not submitted; `run_all {}` submits the chain",
        written.submission.name,
        args.study.again()
    ));
    Ok(exit::DONE)
}
