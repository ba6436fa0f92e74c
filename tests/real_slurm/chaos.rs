//! A short round of the chaos run.

use crate::chaos;
use crate::support::sandbox::sandbox;

#[test]
fn a_short_round_of_faults_changes_no_number_and_loses_no_cell() {
    if sandbox().is_some() {
        chaos::short_round();
    }
}
