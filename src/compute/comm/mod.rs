//! Ranks and the messages between them.
//!
//! No library reduces here: ranks exchange bytes, and whoever owns a number adds in the order of
//! `docs/numerics.md`, so that the sum does not depend on the transport. One thread owns the library of messages
//! and never blocks in it ([`engine`]); others wait for it, or compute on while gradients and weights travel
//! ([`Comm::reduce`], [`Comm::gather`]). Every wait has a deadline: a rank whose peer is gone ends with exit code
//! 71 and not never.
//!
//! [`Comm::Solo`] is one rank without any library. MPI needs the feature `mpi`, several GPUs the feature `nccl`.

mod engine;
mod launch;
mod lent;
mod link;
mod local;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(any(feature = "nccl", test))]
mod rendezvous;
mod sum;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use engine::{Times, Traffic};
pub use lent::InFlight;
#[cfg(feature = "nccl")]
pub use nccl::{Nccl, OnDevice};
pub use sum::Wire;
use tch::{Device, Tensor};

use super::{ComputeError, Result};
use engine::{Engine, Lane, Region, Work};

/// The ranks of this run.
#[derive(Debug)]
pub enum Comm {
    /// One rank.
    Solo,
    /// Several, by messages.
    Ranks(Ranks),
    /// Several with a GPU each.
    #[cfg(feature = "nccl")]
    Nccl(Box<Nccl>),
}

impl Ranks {
    fn traffic(&self) -> Traffic {
        self.engine.traffic()
    }

    fn exchange(&self, sends: &[(usize, &[u8])], receives: &mut [(usize, &mut [u8])]) -> Result<()> {
        let region = |peer: usize, data: *mut u8, len: usize| Region { peer, data, len };
        let work = Work {
            lane: Lane::Messages,
            sends: sends.iter().map(|(peer, s)| region(*peer, s.as_ptr().cast_mut(), s.len())).collect(),
            receives: receives.iter_mut().map(|(peer, s)| region(*peer, s.as_mut_ptr(), s.len())).collect(),
            shard: None,
        };
        // SAFETY: the slices are borrowed until this function returns, which it does when all is done, or with an
        // error after which the engine touches no buffer.
        let pending = unsafe { self.engine.post(work) };
        self.engine.wait(&pending).map(|_| ())
    }

    fn close(self) -> Result<()> {
        self.engine.close()
    }
}

/// A tensor on its way.
#[derive(Debug)]
pub enum Travelling<'a> {
    /// Between processors.
    Host(InFlight<'a>),
    /// Between GPUs.
    #[cfg(feature = "nccl")]
    Device(&'a Nccl, OnDevice),
}

impl Travelling<'_> {
    /// Returns the tensor when it may be used again, and when it travelled, where that is known. On a GPU the
    /// processor does not wait: what libtorch does next with the tensor is ordered behind the messages.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn wait(self) -> Result<(Tensor, Option<Times>)> {
        match self {
            Self::Host(flight) => flight.wait(),
            #[cfg(feature = "nccl")]
            Self::Device(nccl, flight) => Ok((nccl.finish(flight)?, None)),
        }
    }
}

/// One of several ranks.
#[derive(Debug)]
pub struct Ranks {
    engine: Engine,
    transport: &'static str,
}

impl Comm {
    /// Joins the ranks that the launcher started: `mpirun`, or `srun --mpi=pmix`. A process that no launcher
    /// started is alone. `deadline` bounds every later wait. Called at the start of a program, while it has no
    /// other threads that read the environment.
    ///
    /// # Errors
    /// Several ranks were started and this program has no MPI, or MPI sees another number of ranks.
    pub fn open(deadline: Duration) -> Result<Self> {
        match launch::ranks(|name| std::env::var(name).ok())? {
            0 | 1 => Ok(Self::Solo),
            n => Self::open_mpi(n, deadline),
        }
    }

    #[cfg(feature = "mpi")]
    fn open_mpi(ranks: usize, deadline: Duration) -> Result<Self> {
        mpi::set_preferences();
        let engine = Engine::start(deadline, mpi::Mpi::init)?;
        if engine.size() != ranks {
            return Err(ComputeError::Config(format!(
                "{ranks} ranks were started, but MPI sees {}: start with the launcher of the MPI this program was built with, under Slurm with `srun --mpi=pmix`",
                engine.size()
            )));
        }
        Ok(Self::Ranks(Ranks { engine, transport: "mpi" }))
    }

    #[cfg(not(feature = "mpi"))]
    fn open_mpi(ranks: usize, _deadline: Duration) -> Result<Self> {
        Err(ComputeError::Config(format!(
            "{ranks} ranks were started, but this program was built without MPI: build it with `cargo build --release --features mpi`, or ask for one rank"
        )))
    }

    /// `ranks` ranks inside this process, one for each of its threads, for tests: what they send arrives late, in
    /// an order that `seed` chooses.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn in_process(ranks: usize, deadline: Duration, seed: u64) -> Result<Vec<Self>> {
        let board = Arc::new(local::Switchboard::default());
        (0..ranks)
            .map(|rank| {
                let board = Arc::clone(&board);
                let engine = Engine::start(deadline, move || Ok(local::Local::new(board, rank, ranks, seed)))?;
                Ok(Self::Ranks(Ranks { engine, transport: "threads" }))
            })
            .collect()
    }

    /// As [`Self::open`], for ranks that compute on a GPU each: the one of this process's number on its node.
    /// Without MPI they find each other through a file in `dir`, which all see, named after the job and its step.
    ///
    /// # Errors
    /// As [`Self::open`]; there is no CUDA, no NCCL or no GPU for this rank.
    pub fn open_on_gpus(deadline: Duration, dir: &Path) -> Result<Self> {
        let ranks = launch::ranks(|name| std::env::var(name).ok())?;
        if ranks <= 1 { Ok(Self::Solo) } else { Self::open_nccl(ranks, deadline, dir) }
    }

    #[cfg(feature = "nccl")]
    fn open_nccl(ranks: usize, deadline: Duration, dir: &Path) -> Result<Self> {
        let (rank, host) = if cfg!(feature = "mpi") {
            match Self::open_mpi(ranks, deadline)? {
                Self::Ranks(host) => (host.engine.rank(), Some(host)),
                _ => (0, None),
            }
        } else {
            (launch::rank(|name| std::env::var(name).ok())?, None)
        };
        Ok(Self::Nccl(Box::new(Nccl::join(rank, ranks, host, dir, deadline)?)))
    }

    #[cfg(not(feature = "nccl"))]
    fn open_nccl(ranks: usize, _deadline: Duration, _dir: &Path) -> Result<Self> {
        Err(ComputeError::Config(format!(
            "{ranks} ranks with a GPU each were started, but this program was built without NCCL: build it with `cargo build --release --features mpi,nccl`, or ask for one rank"
        )))
    }

    /// The GPU that this rank's tensors are on; the first one for a rank alone.
    pub fn gpu(&self) -> Device {
        match self {
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => nccl.device(),
            _ => Device::Cuda(0),
        }
    }

    /// Whether waiting for a tensor leaves the processor free: its work is ordered on the GPU.
    pub fn orders_on_device(&self) -> bool {
        match self {
            #[cfg(feature = "nccl")]
            Self::Nccl(_) => true,
            _ => false,
        }
    }

    /// The thread of messages, if there is one.
    fn ranks(&self) -> Option<&Ranks> {
        match self {
            Self::Ranks(ranks) => Some(ranks),
            _ => None,
        }
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        match self {
            Self::Solo => 0,
            Self::Ranks(ranks) => ranks.engine.rank(),
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => nccl.rank(),
        }
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        match self {
            Self::Solo => 1,
            Self::Ranks(ranks) => ranks.engine.size(),
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => nccl.size(),
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
            Self::Ranks(ranks) => ranks.transport,
            #[cfg(feature = "nccl")]
            Self::Nccl(_) => "nccl",
        }
    }

    /// What was sent and received so far.
    pub fn traffic(&self) -> Traffic {
        match self {
            Self::Solo => Traffic::default(),
            Self::Ranks(ranks) => ranks.traffic(),
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => nccl.traffic(),
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
            Self::Ranks(ranks) => ranks.exchange(sends, receives),
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => nccl.exchange(sends, receives),
        }
    }

    /// Begins to add all ranks' gradients of a group, fp32. Every rank owns an equal part of it, by rank; when the
    /// tensor comes back, the own part is the sum over ranks, and the rest has no meaning. Groups are given in the
    /// same order on all ranks.
    ///
    /// # Errors
    /// The ranks do not divide the length.
    pub fn reduce(&self, gradient: Tensor, wire: Wire) -> Result<Travelling<'_>> {
        match self {
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => Ok(Travelling::Device(nccl, nccl.reduce(gradient, wire)?)),
            _ => Ok(Travelling::Host(lent::reduce(self, gradient, wire)?)),
        }
    }

    /// Begins to gather a group's weights: every rank sends its own part to all. Groups are given in the same
    /// order on all ranks.
    ///
    /// # Errors
    /// The ranks do not divide the length.
    pub fn gather(&self, weights: Tensor) -> Result<Travelling<'_>> {
        match self {
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => Ok(Travelling::Device(nccl, nccl.gather(weights)?)),
            _ => Ok(Travelling::Host(lent::gather(self, weights)?)),
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

    /// Everybody's bytes, by rank, on rank 0; nothing elsewhere.
    ///
    /// # Errors
    /// As [`Self::exchange`].
    pub fn collect(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.all_gather(&(mine.len() as u64).to_le_bytes())?;
        if !self.is_first() {
            self.exchange(&[(0, mine)], &mut [])?;
            return Ok(Vec::new());
        }
        let length = |bytes: &Vec<u8>| bytes.as_slice().try_into().map_or(0, u64::from_le_bytes) as usize;
        let mut all: Vec<Vec<u8>> = lengths.iter().map(|bytes| vec![0; length(bytes)]).collect();
        all[0].copy_from_slice(mine);
        let mut receives: Vec<(usize, &mut [u8])> =
            all.iter_mut().enumerate().skip(1).map(|(peer, bytes)| (peer, bytes.as_mut_slice())).collect();
        self.exchange(&[], &mut receives)?;
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

    /// Leaves the ranks in order, when all have come here. Not called after an error: the process then ends, and
    /// the launcher ends the others.
    ///
    /// # Errors
    /// A rank is gone, or MPI refuses.
    pub fn close(self) -> Result<()> {
        // Who is last to leave finds nobody to wait for in the library, where there is no deadline.
        self.barrier()?;
        match self {
            Self::Solo => Ok(()),
            Self::Ranks(ranks) => ranks.close(),
            #[cfg(feature = "nccl")]
            Self::Nccl(nccl) => nccl.close(),
        }
    }
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
    fn solo_is_everybody() {
        let comm = Comm::Solo;
        assert_eq!(comm.all_gather_f64(&[1.5, -2.0]).unwrap(), [1.5, -2.0]);
        assert_eq!(comm.broadcast(b"x").unwrap(), b"x");
        comm.barrier().unwrap();
        assert!(comm.exchange(&[(1, b"x")], &mut []).is_err());
        comm.close().unwrap();
    }
}
