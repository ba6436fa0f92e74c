//! Tensors that are lent to messages: given away with the work and handed back when it is done.
//!
//! A tensor is a counted handle of its storage, which stays alive and in place while the handle lives. Whoever
//! forgets an [`InFlight`] loses the memory, and nothing else: what a message refers to is never freed. Dropping
//! one waits. Other handles may reach the same storage; as everywhere in libtorch, who holds them must not use
//! them meanwhile.

use std::mem::ManuallyDrop;

use tch::{Device, Kind, Tensor};

use super::engine::{Lane, Pending, Region, Shard, Work};
use super::{Comm, Times, Wire};
use crate::compute::{ComputeError, Result};

/// A tensor in this processor's memory that is on its way.
#[derive(Debug)]
pub struct InFlight<'a> {
    comm: &'a Comm,
    /// `None` once it is done; or from the start, if there is nobody to send to.
    pending: Option<Pending>,
    times: Option<Times>,
    buffer: ManuallyDrop<Tensor>,
}

impl InFlight<'_> {
    /// Returns the tensor when the work is done, and when that was; without times if there was nobody to send to.
    ///
    /// # Errors
    /// A rank is gone. Its memory is then not freed.
    pub fn wait(mut self) -> Result<(Tensor, Option<Times>)> {
        self.finish()?;
        // SAFETY: taken once: `self` is forgotten right after.
        let buffer = unsafe { ManuallyDrop::take(&mut self.buffer) };
        let times = self.times;
        std::mem::forget(self);
        Ok((buffer, times))
    }

    fn finish(&mut self) -> Result<()> {
        if let (Some(ranks), Some(pending)) = (self.comm.ranks(), &self.pending) {
            self.times = Some(ranks.engine.wait(pending)?);
            self.pending = None;
        }
        Ok(())
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.finish().is_ok() {
            // SAFETY: not taken: `wait` forgets the value when it takes the buffer.
            unsafe { ManuallyDrop::drop(&mut self.buffer) };
        }
    }
}

pub(super) fn reduce(comm: &Comm, gradient: Tensor, wire: Wire) -> Result<InFlight<'_>> {
    let (data, bytes) = memory(comm, &gradient)?;
    if gradient.kind() != Kind::Float {
        return Err(ComputeError::Failed("a gradient that is not fp32 was to be added: report this".to_owned()));
    }
    let part = part_bytes(comm, bytes, size_of::<f32>())?;
    begin(comm, gradient, |rank, size| {
        // SAFETY: `part_bytes` says that the parts of all ranks are inside the buffer.
        let at = |r: usize| unsafe { data.add(r * part) };
        Work {
            lane: Lane::Gradients,
            sends: others(rank, size).map(|peer| Region { peer, data: at(peer), len: part }).collect(),
            receives: Vec::new(),
            shard: Some(Shard { data: at(rank).cast(), len: part / size_of::<f32>(), wire }),
        }
    })
}

pub(super) fn gather(comm: &Comm, weights: Tensor) -> Result<InFlight<'_>> {
    let (data, bytes) = memory(comm, &weights)?;
    let part = part_bytes(comm, bytes, 1)?;
    begin(comm, weights, |rank, size| {
        // SAFETY: as above.
        let at = |r: usize| unsafe { data.add(r * part) };
        Work {
            lane: Lane::Weights,
            sends: others(rank, size).map(|peer| Region { peer, data: at(rank), len: part }).collect(),
            receives: others(rank, size).map(|peer| Region { peer, data: at(peer), len: part }).collect(),
            shard: None,
        }
    })
}

/// The address of a tensor's first byte, and the number of its bytes. Who is alone sends nothing, and may have it on
/// a GPU.
fn memory(comm: &Comm, tensor: &Tensor) -> Result<(*mut u8, usize)> {
    if comm.size() > 1 && (tensor.device() != Device::Cpu || !tensor.is_contiguous()) {
        return Err(ComputeError::Failed(format!(
            "a tensor on {:?} was to travel between processors: several ranks with a GPU each need the feature `nccl` (`cargo build --release --features mpi,nccl`)",
            tensor.device()
        )));
    }
    Ok((tensor.data_ptr().cast(), tensor.numel() * tensor.kind().elt_size_in_bytes()))
}

fn others(rank: usize, size: usize) -> impl Iterator<Item = usize> {
    (0..size).filter(move |&p| p != rank)
}

fn part_bytes(comm: &Comm, bytes: usize, unit: usize) -> Result<usize> {
    let ranks = comm.size();
    if bytes % (ranks * unit) != 0 {
        return Err(ComputeError::Failed(format!("{ranks} ranks cannot share {bytes} bytes: report this")));
    }
    Ok(bytes / ranks)
}

fn begin(comm: &Comm, buffer: Tensor, work: impl FnOnce(usize, usize) -> Work) -> Result<InFlight<'_>> {
    let pending = match comm.ranks() {
        None => None,
        // SAFETY: the buffer is owned by what is returned, which frees it only when the work is done, and gives no
        // access before; parts do not overlap.
        Some(ranks) => Some(unsafe { ranks.engine.post(work(comm.rank(), comm.size())) }),
    };
    Ok(InFlight { comm, pending, times: None, buffer: ManuallyDrop::new(buffer) })
}
