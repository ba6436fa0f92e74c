//! `seedbed doctor`: whether this site is as its cluster file says, one line a check, with what to type where it fails.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::Result;
use super::output::{self, Format};
use crate::record::exit;
use crate::workflow::doctor::{self, Finding, Outcome, Request};

/// Check the cluster file in use against the site: Slurm's commands, account, partitions, quality of service, limits,
/// requeue, accounting, signals, launcher, modules, directories and programs. Ends with 0 if nothing failed, else with 1.
///
/// Asks Slurm, starts nothing and changes nothing. With --on-nodes one short job a partition checks on a node what only
/// a node can tell: the programs' digest, modules, $TMPDIR, the shared file system, the launcher, the signal.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "EXAMPLES:\n  seedbed doctor\n  seedbed doctor --cluster mysite\n  seedbed doctor --cluster mysite --on-nodes --wait 1800\n  seedbed doctor configs/monotone.toml --profile full --cluster mysite --format json"
)]
pub(crate) struct Args {
    /// A study whose stages' partitions and programs are checked, too
    #[arg(value_name = "STUDY")]
    study: Option<PathBuf>,
    /// Profile of the study
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Where results/ lies [default: the current directory, or where the study's lie]
    #[arg(long, value_name = "DIR", env = "SEEDBED_ROOT")]
    root: Option<PathBuf>,
    /// Cluster file: a path, or a name in configs/clusters
    #[arg(long, value_name = "NAME", env = "SEEDBED_CLUSTER")]
    cluster: Option<String>,
    /// Submit one short job a partition, and check on the nodes
    #[arg(long)]
    on_nodes: bool,
    /// How long those jobs are waited for, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "on_nodes", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait: u64,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn run(args: &Args) -> Result<u8> {
    let request = Request {
        cluster: args.cluster.clone(),
        study: args.study.clone(),
        profile: args.profile.clone(),
        root: args.root.clone(),
        on_nodes: args.on_nodes.then(|| Duration::from_secs(args.wait)),
    };
    let mut printed = Ok(());
    let mut told = |finding: &Finding| {
        if args.format == Format::Text && printed.is_ok() {
            printed = output::text(&line(finding));
        }
    };
    let findings = doctor::examine(&request, &mut told)?;
    printed?;
    let failed = findings.iter().filter(|f| f.outcome == Outcome::Failed).count();
    match args.format {
        Format::Json => output::json(&json!({"ok": failed == 0, "failed": failed, "checks": findings}))?,
        Format::Text if failed == 0 => output::note("nothing failed"),
        Format::Text => output::note(&format!("{} failed", output::plural(failed, "check"))),
    }
    Ok(if failed == 0 { exit::DONE } else { exit::INCOMPLETE })
}

/// One line, whatever programs printed.
fn line(finding: &Finding) -> String {
    let word = match finding.outcome {
        Outcome::Ok => "ok",
        Outcome::Warning => "warning",
        Outcome::Failed => "FAILED",
        Outcome::Skipped => "-",
    };
    let fix = finding.fix.as_ref().map(|fix| format!("; do: {fix}")).unwrap_or_default();
    let text = format!("{word:<8} {:<18} {}{fix}", finding.check, finding.said);
    let plain: String = text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{plain}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let finding = Finding {
            check: "partition(gpu)".to_owned(),
            outcome: Outcome::Failed,
            said: "two\nlines \u{1b}[31m".to_owned(),
            fix: Some("`sinfo -s` lists them".to_owned()),
        };
        assert_eq!(line(&finding), "FAILED   partition(gpu)     two lines  [31m; do: `sinfo -s` lists them\n");
    }
}
