//! Ranks and the messages between them.
//!
//! There is no reduction here: ranks exchange bytes, and whoever owns a number adds in the order of
//! `docs/numerics.md`, so that the sum does not depend on the transport. Every wait has a deadline: a rank
//! whose peer is gone ends with exit code 71 and not never.
//!
//! [`Comm::Solo`] is one rank without any library. [`mpi`] needs the feature of that name. One process per
//! rank; a `Comm` is used by one thread.

#[cfg(feature = "mpi")]
mod mpi;

use std::time::Duration;

use super::{ComputeError, Result};

/// The ranks of this run.
#[derive(Debug)]
pub enum Comm {
    /// One rank.
    Solo,
    /// Several, over MPI point-to-point messages.
    #[cfg(feature = "mpi")]
    Mpi(mpi::Mpi),
}

impl Comm {
    /// Joins the ranks that the launcher started: `mpirun`, or `srun --mpi=pmix`. A process that no launcher
    /// started is alone. `deadline` bounds every later wait.
    ///
    /// # Errors
    /// Several ranks were started and this program has no MPI, or MPI sees another number of ranks.
    pub fn open(deadline: Duration) -> Result<Self> {
        match launched_ranks(|name| std::env::var(name).ok())? {
            0 | 1 => Ok(Self::Solo),
            n => Self::open_mpi(n, deadline),
        }
    }

    #[cfg(feature = "mpi")]
    fn open_mpi(ranks: usize, deadline: Duration) -> Result<Self> {
        let mpi = mpi::Mpi::init(deadline)?;
        if mpi.size() != ranks {
            return Err(ComputeError::Config(format!(
                "{ranks} ranks were started, but MPI sees {}: start with the launcher of the MPI this program was built with, under Slurm with `srun --mpi=pmix`",
                mpi.size()
            )));
        }
        Ok(Self::Mpi(mpi))
    }

    #[cfg(not(feature = "mpi"))]
    fn open_mpi(ranks: usize, _deadline: Duration) -> Result<Self> {
        Err(ComputeError::Config(format!(
            "{ranks} ranks were started, but this program was built without MPI: build it with `cargo build --release --features mpi`, or ask for one rank"
        )))
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        match self {
            Self::Solo => 0,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.rank(),
        }
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        match self {
            Self::Solo => 1,
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.size(),
        }
    }

    /// True on rank 0, which writes and speaks.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// How messages travel, for the numerics record.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Solo => "solo",
            #[cfg(feature = "mpi")]
            Self::Mpi(_) => "mpi",
        }
    }

    /// Sends and receives, all at once; returns when everything has arrived and everything sent may be reused.
    /// Between two ranks messages match in the order of the slices.
    ///
    /// # Errors
    /// The deadline passed, or MPI reports a lost peer. Nothing may be exchanged after that.
    pub fn exchange(&self, sends: &[(usize, &[u8])], receives: &mut [(usize, &mut [u8])]) -> Result<()> {
        match self {
            Self::Solo if sends.is_empty() && receives.is_empty() => Ok(()),
            Self::Solo => Err(ComputeError::Failed("a message to another rank, and there is none: report this".into())),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.exchange(sends, receives),
        }
    }

    /// As [`Self::exchange`], for fp32 numbers.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn exchange_f32(&self, sends: &[(usize, &[f32])], receives: &mut [(usize, &mut [f32])]) -> Result<()> {
        let sends: Vec<(usize, &[u8])> = sends.iter().map(|&(peer, s)| (peer, f32_bytes(s))).collect();
        let mut receives: Vec<(usize, &mut [u8])> =
            receives.iter_mut().map(|(peer, s)| (*peer, f32_bytes_mut(s))).collect();
        self.exchange(&sends, &mut receives)
    }

    /// Everybody's bytes, by rank; all ranks give equally many.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn all_gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (rank, size) = (self.rank(), self.size());
        let mut all = vec![mine.to_vec(); size];
        let sends: Vec<(usize, &[u8])> = (0..size).filter(|&p| p != rank).map(|p| (p, mine)).collect();
        let mut receives: Vec<(usize, &mut [u8])> =
            all.iter_mut().enumerate().filter(|(p, _)| *p != rank).map(|(p, b)| (p, b.as_mut_slice())).collect();
        self.exchange(&sends, &mut receives)?;
        Ok(all)
    }

    /// Everybody's numbers, rank after rank; all ranks give equally many.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn all_gather_f64(&self, mine: &[f64]) -> Result<Vec<f64>> {
        let bytes: Vec<u8> = mine.iter().flat_map(|x| x.to_le_bytes()).collect();
        let all = self.all_gather(&bytes)?.concat();
        // chunks_exact(8) yields slices of 8 bytes.
        Ok(all.chunks_exact(8).map(|c| f64::from_le_bytes(c.try_into().unwrap_or_default())).collect())
    }

    /// Rank 0's bytes, on every rank. What other ranks pass is ignored.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn broadcast(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let peers: Vec<usize> = (1..self.size()).collect();
        let mut length = (bytes.len() as u64).to_le_bytes();
        if self.is_first() {
            let sends: Vec<(usize, &[u8])> = peers.iter().map(|&p| (p, &length[..])).collect();
            self.exchange(&sends, &mut [])?;
            let sends: Vec<(usize, &[u8])> = peers.iter().map(|&p| (p, bytes)).collect();
            self.exchange(&sends, &mut [])?;
            return Ok(bytes.to_vec());
        }
        self.exchange(&[], &mut [(0, &mut length[..])])?;
        let mut received = vec![0; u64::from_le_bytes(length) as usize];
        self.exchange(&[], &mut [(0, &mut received[..])])?;
        Ok(received)
    }

    /// Returns when every rank has come here.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn barrier(&self) -> Result<()> {
        self.all_gather(&[0]).map(|_| ())
    }

    /// Leaves the ranks in order. Not called after an error: the process then ends, and the launcher ends the
    /// others.
    ///
    /// # Errors
    /// MPI refuses.
    pub fn close(self) -> Result<()> {
        match self {
            Self::Solo => Ok(()),
            #[cfg(feature = "mpi")]
            Self::Mpi(mpi) => mpi.finalize(),
        }
    }
}

/// How many ranks the launcher started, by the environment it gives; 0 if there is no launcher.
fn launched_ranks(get: impl Fn(&str) -> Option<String>) -> Result<usize> {
    for name in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"] {
        if let Some(text) = get(name) {
            return text.trim().parse().map_err(|_| {
                ComputeError::Config(format!(
                    "the launcher's variable {name} is {text:?}, which is no number: start with mpirun or srun"
                ))
            });
        }
    }
    Ok(0)
}

/// The bytes of fp32 numbers, as they lie in memory.
pub fn f32_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: every byte of an f32 is initialised, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// As [`f32_bytes`], to be changed.
pub fn f32_bytes_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: as above, and every bit pattern is an f32.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), std::mem::size_of_val(values)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_says_how_many() {
        let ranks = |pairs: &[(&str, &str)]| {
            launched_ranks(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(ranks(&[]).unwrap(), 0);
        assert_eq!(ranks(&[("OMPI_COMM_WORLD_SIZE", "4")]).unwrap(), 4);
        // srun without an MPI plugin starts every task as a rank of its own: the step's count tells.
        assert_eq!(ranks(&[("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_NTASKS", "8")]).unwrap(), 2);
        assert!(ranks(&[("OMPI_COMM_WORLD_SIZE", "x")]).unwrap_err().to_string().contains("OMPI_COMM_WORLD_SIZE"));
    }

    #[test]
    fn solo_is_everybody() {
        let comm = Comm::Solo;
        assert_eq!(comm.all_gather_f64(&[1.5, -2.0]).unwrap(), [1.5, -2.0]);
        assert_eq!(comm.broadcast(b"x").unwrap(), b"x");
        comm.barrier().unwrap();
        assert!(comm.exchange(&[(1, b"x")], &mut []).is_err());
        comm.close().unwrap();
    }
}
