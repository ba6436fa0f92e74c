//! `run_all` on the real Slurm: the scenarios of the fake one.

use crate::support::chain::{Chain, Cluster};
use crate::support::sandbox::sandbox;

/// A study on the sandbox, and the folder of the commands that lead to it.
fn chain(lines: &'static str) -> Option<(tempfile::TempDir, Chain)> {
    let slurm = sandbox()?;
    let commands = tempfile::tempdir().unwrap();
    let path = slurm.path(commands.path());
    Some((commands, Chain::new(Cluster { path, lines }, &[42, 1337])))
}

#[test]
fn eight_stages_run_to_their_seals() {
    let Some((_commands, chain)) = chain("") else { return };
    chain.runs_to_its_seals();
}

#[test]
fn a_sick_seed_ends_alone_and_is_named() {
    let Some((_commands, chain)) = chain("") else { return };
    chain.survives_a_sick_seed(false);
}

#[test]
fn a_site_without_the_flag_gets_one_job_for_each_cell() {
    let Some((_commands, chain)) = chain("kill_on_invalid_dep = false") else { return };
    chain.survives_a_sick_seed(true);
}

#[test]
fn a_checkpoint_leads_to_a_requeue_in_place() {
    let Some((_commands, chain)) = chain("") else { return };
    chain.goes_on_after_a_checkpoint();
}

#[test]
fn a_chain_is_looked_at_cancelled_and_taken_up() {
    let Some((_commands, chain)) = chain("") else { return };
    chain.is_looked_at_cancelled_and_taken_up();
}

#[test]
fn the_warning_before_the_time_limit_reaches_the_stage() {
    let Some(slurm) = sandbox() else { return };
    let commands = tempfile::tempdir().unwrap();
    let cluster = Cluster { path: slurm.path(commands.path()), lines: "grace_s = 15" };
    Chain::timed(cluster, &[42], "0:01:00").goes_on_after_its_time_limit();
}
