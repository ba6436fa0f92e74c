//! What the launcher tells a process about itself, by its environment.

use crate::compute::{ComputeError, Result};

/// How many ranks were started; 0 if there is no launcher.
pub(super) fn ranks(get: impl Fn(&str) -> Option<String>) -> Result<usize> {
    Ok(first(&["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"], get)?.unwrap_or(0))
}

/// This process among all, where no MPI tells.
#[cfg_attr(not(feature = "nccl"), allow(dead_code))]
pub(super) fn rank(get: impl Fn(&str) -> Option<String>) -> Result<usize> {
    first(&["OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"], get)?.ok_or_else(|| {
        ComputeError::Config("the launcher does not tell this rank its number: start with srun or mpirun".to_owned())
    })
}

/// The number of this process among those on its node: it chooses the device. 0 without a launcher.
#[cfg_attr(not(feature = "nccl"), allow(dead_code))]
pub(super) fn local_rank(get: impl Fn(&str) -> Option<String>) -> Result<usize> {
    Ok(first(&["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "LOCAL_RANK"], get)?.unwrap_or(0))
}

/// The GPU of a process: its own number on the node, or the only one that it sees.
#[cfg_attr(not(feature = "nccl"), allow(dead_code))]
pub(super) fn device(local_rank: usize, visible: usize) -> Result<usize> {
    match visible {
        0 => Err(ComputeError::Config(
            "this rank sees no GPU: ask for one a task (`gpus_per_node` = `tasks_per_node` in [stage.resources]), or look at CUDA_VISIBLE_DEVICES"
                .to_owned(),
        )),
        // Slurm shows a task only its own with --gpus-per-task.
        1 => Ok(0),
        n if local_rank < n => Ok(local_rank),
        n => Err(ComputeError::Config(format!(
            "rank {local_rank} of this node has no GPU, there are {n}: ask for `gpus_per_node` = `tasks_per_node`"
        ))),
    }
}

/// The first of the variables that is set.
fn first(names: &[&str], get: impl Fn(&str) -> Option<String>) -> Result<Option<usize>> {
    for name in names {
        if let Some(text) = get(name) {
            return text.trim().parse().map(Some).map_err(|_| {
                ComputeError::Config(format!(
                    "the launcher's variable {name} is {text:?}, which is no number: start with mpirun or srun"
                ))
            });
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
    }

    #[test]
    fn the_launcher_says_how_many() {
        assert_eq!(ranks(environment(&[])).unwrap(), 0);
        assert_eq!(ranks(environment(&[("OMPI_COMM_WORLD_SIZE", "4")])).unwrap(), 4);
        // srun without an MPI plugin starts every task as a rank of its own: the step's count tells.
        assert_eq!(ranks(environment(&[("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_NTASKS", "8")])).unwrap(), 2);
        let refused = ranks(environment(&[("OMPI_COMM_WORLD_SIZE", "x")])).unwrap_err();
        assert!(refused.to_string().contains("OMPI_COMM_WORLD_SIZE"));
    }

    #[test]
    fn the_launcher_says_which_on_the_node() {
        assert_eq!(local_rank(environment(&[])).unwrap(), 0);
        assert_eq!(local_rank(environment(&[("SLURM_LOCALID", "3"), ("SLURM_PROCID", "11")])).unwrap(), 3);
        // mpirun inside a Slurm step: the step has one task, mpirun's own count is right.
        let both = [("SLURM_LOCALID", "0"), ("OMPI_COMM_WORLD_LOCAL_RANK", "1")];
        assert_eq!(local_rank(environment(&both)).unwrap(), 1);
        assert!(local_rank(environment(&[("SLURM_LOCALID", "")])).is_err());
    }

    #[test]
    fn every_rank_of_a_node_has_its_own_gpu() {
        assert_eq!(device(0, 1).unwrap(), 0);
        assert_eq!(device(3, 4).unwrap(), 3);
        assert_eq!(device(3, 1).unwrap(), 0, "it sees only its own");
        assert!(device(0, 0).unwrap_err().to_string().contains("CUDA_VISIBLE_DEVICES"));
        let beyond = device(2, 2).unwrap_err().to_string();
        assert!(beyond.contains("there are 2") && beyond.contains("tasks_per_node"), "{beyond}");
    }
}
