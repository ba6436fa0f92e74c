//! Gates on the real Slurm: the scenarios of the fake one.

use crate::support::gated::Gated;
use crate::support::sandbox::sandbox;

const RATE: &str = "conditions.base_rate = {of = \"measure\", value = \"map(.metrics.rate) | mean\", most = 0.3}";

fn gated(gate: &str) -> Option<(tempfile::TempDir, Gated)> {
    let slurm = sandbox()?;
    let commands = tempfile::tempdir().unwrap();
    let path = slurm.path(commands.path());
    Some((commands, Gated::new(Some(path), gate)))
}

#[test]
fn a_stop_leaves_no_job_behind_and_other_conditions_let_the_chain_go_on() {
    let Some((_commands, work)) = gated(RATE) else { return };
    work.stops_and_goes_on_under_other_conditions();
}

#[test]
fn a_gate_that_waits_leaves_no_job() {
    let Some((_commands, work)) = gated(&format!("{RATE}\nconfirm = \"the samples were read\"")) else { return };
    work.waits_for_a_person();
}
