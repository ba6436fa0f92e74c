//! The study of foreign programs on the real Slurm: MPI ranks of somebody else's program under `srun --mpi=pmix`, and a
//! Python script that is warned, requeued in place, and goes on.

use crate::foreign::runs_on_a_slurm;
use crate::support::sandbox::sandbox;

#[test]
fn foreign_programs_run_on_a_real_slurm_with_the_same_results() {
    let Some(slurm) = sandbox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let lines = "partition = \"debug\"\nmpi = \"pmix\"\nexports = {OMPI_MCA_mpi_yield_when_idle = \"1\"}";
    runs_on_a_slurm(slurm.path(dir.path()), lines, 180);
}
