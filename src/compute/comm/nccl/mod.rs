//! Ranks with a GPU each, over NCCL.
//!
//! Messages travel on a stream of their own. libtorch computes on the null stream; events order the two: what is
//! sent is complete on the null stream before the messages' stream takes it, and the null stream waits before it
//! reads what came. The processor waits for neither. There is no library reduction: parts are sent to the owner,
//! who adds them in tree order, as over MPI; so the sum is the same.
//!
//! All calls of all ranks come in the same order. A thread watches: if NCCL reports an error, or a message is older
//! than the deadline, it ends the process with 71; whoever waits for a GPU inside libtorch could not be told.
//!
//! NCCL and CUDA are looked up when a rank joins: built with this feature, the program runs without them.

mod library;

use std::collections::VecDeque;
use std::ffi::c_void;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError};
use tch::{Device, Kind, Tensor};

use super::sum::Wire;
use super::{Ranks, Traffic, launch, rendezvous};
use crate::compute::{ComputeError, Result};
use crate::record::exit;
use library::{Handle, LIBRARY_VARIABLE, Status, UniqueId};

/// The watch looks this often.
const LOOK: Duration = Duration::from_millis(200);

/// One of several ranks with a GPU each.
#[derive(Debug)]
pub struct Nccl {
    rank: usize,
    size: usize,
    device: usize,
    /// Carries what lies in the processor's memory, if there is MPI.
    host: Option<Ranks>,
    null: Arc<CudaStream>,
    stream: Arc<CudaStream>,
    inner: Arc<Inner>,
    sent: AtomicU64,
    received: AtomicU64,
    watch: Option<std::thread::JoinHandle<()>>,
}

/// What the watch sees too.
#[derive(Debug)]
struct Inner {
    nccl: library::Nccl,
    deadline: Duration,
    ends: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The communicator, once joined.
    handle: Option<Address>,
    /// Since when this rank has been joining or leaving.
    blocked: Option<Instant>,
    /// Messages on their way, oldest first.
    events: VecDeque<(Instant, CudaEvent)>,
}

#[derive(Debug, Clone, Copy)]
struct Address(Handle);

// SAFETY: NCCL allows asking for a communicator's state from another thread.
unsafe impl Send for Address {}

/// A gradient or weights on their way between GPUs.
#[derive(Debug)]
pub struct OnDevice {
    tensor: Tensor,
    /// What comes for the own shard, rank after rank without the own.
    inbox: Option<Tensor>,
    /// What is sent, where it is not sent as it lies.
    _outbox: Option<Tensor>,
    done: CudaEvent,
}

impl Nccl {
    /// Joins `size` ranks as `rank`, on the GPU of this process's number on its node. The id comes over `host`, or
    /// through a file in `dir`, which all ranks see.
    ///
    /// # Errors
    /// There is no CUDA, no NCCL or no GPU for this rank, or the ranks do not find each other.
    pub(super) fn join(rank: usize, size: usize, host: Option<Ranks>, dir: &Path, deadline: Duration) -> Result<Self> {
        let device = device()?;
        let nccl = library::Nccl::load(std::env::var_os(LIBRARY_VARIABLE))?;
        let context = CudaContext::new(device).map_err(cuda("use the GPU"))?;
        let null = context.default_stream();
        let stream = context.new_stream().map_err(cuda("make a stream"))?;
        let inner = Arc::new(Inner { nccl, deadline, ends: AtomicBool::new(false), seen: Mutex::default() });
        let watch = {
            let (inner, context) = (Arc::clone(&inner), Arc::clone(&context));
            std::thread::Builder::new()
                .name("nccl watch".to_owned())
                .spawn(move || inner.watch(rank, size, &context))
                .map_err(|e| ComputeError::Failed(format!("cannot start a thread ({e}): raise the limit of processes")))?
        };
        let (id, published) = agree(&inner.nccl, rank, size, host.as_ref(), dir, deadline)?;
        inner.seen().blocked = Some(Instant::now());
        let handle = inner.nccl.join(id, rank, size)?;
        // All have read it.
        drop(published);
        {
            let mut seen = inner.seen();
            seen.blocked = None;
            seen.handle = Some(Address(handle));
        }
        if rank == 0 {
            eprintln!("{size} ranks over NCCL {}", inner.nccl.version());
        }
        let (sent, received) = Default::default();
        Ok(Self { rank, size, device, host, null, stream, inner, sent, received, watch: Some(watch) })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The GPU of this rank, as libtorch numbers it.
    pub fn device(&self) -> Device {
        Device::Cuda(self.device)
    }

    pub(super) fn traffic(&self) -> Traffic {
        let host = self.host.as_ref().map(Ranks::traffic).unwrap_or_default();
        Traffic {
            sent: host.sent + self.sent.load(Ordering::Relaxed),
            received: host.received + self.received.load(Ordering::Relaxed),
        }
    }

    /// As `Comm::exchange`: over MPI, or through the GPU's memory.
    pub(super) fn exchange(&self, sends: &[(usize, &[u8])], receives: &mut [(usize, &mut [u8])]) -> Result<()> {
        if let Some(host) = &self.host {
            return host.exchange(sends, receives);
        }
        let out: Vec<(usize, Tensor)> = sends
            .iter()
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(peer, bytes)| {
                let there = Tensor::f_from_data_size(bytes, &[bytes.len() as i64], Kind::Uint8)?;
                Ok((*peer, there.f_to_device(self.device())?))
            })
            .collect::<Result<_>>()?;
        let back: Vec<(usize, Tensor)> = receives
            .iter()
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(peer, room)| Ok((*peer, Tensor::f_empty([room.len() as i64], (Kind::Uint8, self.device()))?)))
            .collect::<Result<_>>()?;
        let part = |(peer, tensor): &(usize, Tensor)| (*peer, tensor.data_ptr(), tensor.numel());
        // SAFETY: both lists live until the copies below, which wait for the messages.
        let done = unsafe {
            self.post(
                &out.iter().map(part).map(|(p, d, n)| (p, d.cast_const(), n)).collect::<Vec<_>>(),
                &back.iter().map(part).collect::<Vec<_>>(),
            )
        }?;
        self.null.wait(&done).map_err(cuda("order its streams"))?;
        for ((_, room), (_, there)) in receives.iter_mut().filter(|(_, bytes)| !bytes.is_empty()).zip(&back) {
            // To the processor's memory on the null stream, which waits for the messages.
            there.f_to_device(Device::Cpu)?.f_copy_data_u8(room, there.numel())?;
        }
        // Before `out` is freed.
        done.synchronize().map_err(cuda("wait for messages"))
    }

    /// Begins to add all ranks' gradients of a group: fp32, contiguous, on this rank's GPU.
    ///
    /// # Errors
    /// The tensor is another one, or NCCL refuses.
    pub(super) fn reduce(&self, gradient: Tensor, wire: Wire) -> Result<OnDevice> {
        self.check(&gradient, Some(Kind::Float))?;
        let len = gradient.numel() / self.size;
        let kind = match wire {
            Wire::Fp32 => Kind::Float,
            Wire::Bf16 => Kind::BFloat16,
        };
        let bytes = wire.bytes(len);
        let outbox = if wire == Wire::Bf16 { Some(gradient.f_to_kind(kind)?) } else { None };
        // From libtorch's own pool, on the null stream: whatever used that memory before is ordered by the event.
        let inbox = Tensor::f_empty([((self.size - 1) * len) as i64], (kind, self.device()))?;
        let from = outbox.as_ref().unwrap_or(&gradient).data_ptr().cast::<u8>();
        let room = inbox.data_ptr().cast::<u8>();
        let sends: Vec<_> =
            // SAFETY: the buffer holds a part for every rank.
            self.others().map(|p| (p, unsafe { from.add(p * bytes) }.cast::<c_void>().cast_const(), bytes)).collect();
        let receives: Vec<_> = self
            .others()
            .enumerate()
            // SAFETY: the inbox holds a part for every other rank.
            .map(|(k, p)| (p, unsafe { room.add(k * bytes) }.cast::<c_void>(), bytes))
            .collect();
        // SAFETY: the tensors are kept in what is returned, which gives them up only behind `done`.
        let done = unsafe { self.post(&sends, &receives) }?;
        Ok(OnDevice { tensor: gradient, inbox: Some(inbox), _outbox: outbox, done })
    }

    /// Begins to gather a group's weights: contiguous, on this rank's GPU.
    ///
    /// # Errors
    /// As [`Self::reduce`].
    pub(super) fn gather(&self, weights: Tensor) -> Result<OnDevice> {
        self.check(&weights, None)?;
        let bytes = weights.numel() / self.size * weights.kind().elt_size_in_bytes();
        let data = weights.data_ptr().cast::<u8>();
        // SAFETY: the tensor holds a part for every rank.
        let at = |p: usize| unsafe { data.add(p * bytes) }.cast::<c_void>();
        let sends: Vec<_> = self.others().map(|p| (p, at(self.rank).cast_const(), bytes)).collect();
        let receives: Vec<_> = self.others().map(|p| (p, at(p), bytes)).collect();
        // SAFETY: as in `reduce`; the parts do not overlap.
        let done = unsafe { self.post(&sends, &receives) }?;
        Ok(OnDevice { tensor: weights, inbox: None, _outbox: None, done })
    }

    /// Orders the null stream behind the messages and, for a gradient, adds what came to the own part. The
    /// processor does not wait.
    ///
    /// # Errors
    /// CUDA or libtorch refuses.
    pub(super) fn finish(&self, flight: OnDevice) -> Result<Tensor> {
        self.null.wait(&flight.done).map_err(cuda("order its streams"))?;
        if let Some(inbox) = &flight.inbox {
            let len = (flight.tensor.numel() / self.size) as i64;
            let own = flight.tensor.f_narrow(0, self.rank as i64 * len, len)?;
            let mut parts = Vec::new();
            for k in 0..self.size as i64 - 1 {
                parts.push(inbox.f_narrow(0, k * len, len)?.f_to_kind(Kind::Float)?);
            }
            parts.insert(self.rank, own.shallow_clone());
            add_tree(&mut parts)?;
            if self.rank != 0 {
                // The tree leaves its sum in rank 0's part.
                let mut own = own;
                own.f_copy_(&parts[0])?;
            }
        }
        Ok(flight.tensor)
    }

    /// Leaves the ranks in order, when all have come here.
    pub(super) fn close(mut self) -> Result<()> {
        self.stream.synchronize().map_err(cuda("wait for messages"))?;
        let handle = {
            let mut seen = self.inner.seen();
            seen.blocked = Some(Instant::now());
            seen.events.clear();
            seen.handle.take()
        };
        if let Some(Address(handle)) = handle {
            // SAFETY: it was joined, nothing is on its way, and nobody else has it any more.
            unsafe { self.inner.nccl.leave(handle) }?;
        }
        self.inner.ends.store(true, Ordering::Relaxed);
        if let Some(watch) = self.watch.take() {
            // It ends within a look.
            let _ = watch.join();
        }
        self.host.take().map_or(Ok(()), Ranks::close)
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.size).filter(move |&p| p != rank)
    }

    fn check(&self, tensor: &Tensor, kind: Option<Kind>) -> Result<()> {
        let fits = tensor.device() == self.device()
            && tensor.is_contiguous()
            && tensor.numel() % self.size == 0
            && kind.is_none_or(|k| k == tensor.kind());
        if fits {
            return Ok(());
        }
        Err(ComputeError::Failed(format!(
            "a {:?} tensor of {} elements on {:?} cannot travel between {} GPUs: report this",
            tensor.kind(),
            tensor.numel(),
            tensor.device(),
            self.size
        )))
    }

    /// Posts messages behind what the null stream has to do; the event says when they are done.
    ///
    /// # Safety
    /// The memory is this GPU's, sends and receives do not overlap, and until the event nothing but the messages
    /// writes or frees it.
    unsafe fn post(
        &self,
        sends: &[(usize, *const c_void, usize)],
        receives: &[(usize, *mut c_void, usize)],
    ) -> Result<CudaEvent> {
        let Some(Address(handle)) = self.inner.seen().handle else {
            return Err(ComputeError::Failed("a message after the ranks were left: report this".to_owned()));
        };
        self.stream.join(&self.null).map_err(cuda("order its streams"))?;
        // SAFETY: the communicator and the stream live as long as `self`; the memory is as the caller says, and
        // complete: the stream waits for the null stream.
        unsafe { self.inner.nccl.post(handle, self.stream.cu_stream().cast(), sends, receives) }?;
        let bytes = |list: &mut dyn Iterator<Item = usize>| list.sum::<usize>() as u64;
        self.sent.fetch_add(bytes(&mut sends.iter().map(|s| s.2)), Ordering::Relaxed);
        self.received.fetch_add(bytes(&mut receives.iter().map(|r| r.2)), Ordering::Relaxed);
        let event = || self.stream.record_event(None).map_err(cuda("note an event"));
        self.inner.seen().events.push_back((Instant::now(), event()?));
        event()
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.inner.ends.store(true, Ordering::Relaxed);
    }
}

impl Inner {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks until the ranks are left.
    fn watch(&self, rank: usize, size: usize, context: &Arc<CudaContext>) {
        if context.bind_to_thread().is_err() {
            return;
        }
        while !self.ends.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK);
            let mut seen = self.seen();
            while seen.events.front().is_some_and(|(_, event)| event.is_complete()) {
                seen.events.pop_front();
            }
            let oldest = seen.events.front().map(|(since, _)| *since).or(seen.blocked);
            // SAFETY: the handle is taken away before it is freed.
            let status = seen.handle.map_or(library::SUCCESS, |Address(h)| unsafe { self.nccl.async_error(h) });
            drop(seen);
            let verdict = verdict(status, oldest.map(|since| since.elapsed()), self.deadline, |s| self.nccl.meaning(s));
            if let Some(why) = verdict {
                eprintln!("rank {rank} of {size}: {why}; the next attempt goes on from the last checkpoint");
                // SAFETY: ends the process at once. Others may wait inside CUDA for what never comes.
                unsafe { libc::_exit(i32::from(exit::COLLECTIVE_TIMEOUT)) };
            }
        }
    }
}

/// Why the process must end, if it must.
fn verdict(
    status: Status,
    oldest: Option<Duration>,
    deadline: Duration,
    meaning: impl Fn(Status) -> String,
) -> Option<String> {
    if status != library::SUCCESS && status != library::IN_PROGRESS {
        return Some(format!("NCCL reports: {} (another rank may be gone)", meaning(status)));
    }
    oldest.filter(|age| *age > deadline).map(|_| {
        format!(
            "waited {:.0} s for another rank, which is gone or hangs: look for its message in the log",
            deadline.as_secs_f64()
        )
    })
}

/// Adds the parts by the balanced tree over ranks, in place; the sum is in the first.
fn add_tree(parts: &mut [Tensor]) -> Result<()> {
    let mut step = 1;
    while step < parts.len() {
        for i in (0..parts.len() - step).step_by(2 * step) {
            let (left, right) = parts.split_at_mut(i + step);
            // Element by element there is one way to add.
            let _ = left[i].f_add_(&right[0])?;
        }
        step *= 2;
    }
    Ok(())
}

/// The id of the communicator, which rank 0 makes.
fn agree(
    nccl: &library::Nccl,
    rank: usize,
    size: usize,
    host: Option<&Ranks>,
    dir: &Path,
    deadline: Duration,
) -> Result<(UniqueId, Option<rendezvous::Published>)> {
    let id = if rank == 0 { Some(nccl.unique_id()?) } else { None };
    if let Some(host) = host {
        let mut bytes = id.map_or([0; UniqueId::BYTES], |id| id.0);
        if rank == 0 {
            let sends: Vec<(usize, &[u8])> = (1..size).map(|peer| (peer, bytes.as_slice())).collect();
            host.exchange(&sends, &mut [])?;
        } else {
            host.exchange(&[], &mut [(0, bytes.as_mut_slice())])?;
        }
        return Ok((UniqueId(bytes), None));
    }
    let name = rendezvous::file_name(|name| std::env::var(name).ok())?;
    if let Some(id) = id {
        let published = rendezvous::publish(dir, &name, size, &id.0)?;
        return Ok((id, Some(published)));
    }
    let bytes = rendezvous::wait_for(dir, &name, size, UniqueId::BYTES, deadline)?;
    let mut id = UniqueId([0; UniqueId::BYTES]);
    // `wait_for` returns as many bytes as were asked for.
    id.0.copy_from_slice(&bytes);
    Ok((id, None))
}

/// The GPU of this process.
fn device() -> Result<usize> {
    // SAFETY: loads the driver's library, or finds that there is none.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err(no_driver());
    }
    let visible = CudaContext::device_count().map_err(|_| no_driver())?;
    launch::device(launch::local_rank(|name| std::env::var(name).ok())?, usize::try_from(visible).unwrap_or(0))
}

fn no_driver() -> ComputeError {
    ComputeError::Config(
        "this node has no CUDA driver (libcuda.so.1): ask for a GPU (`gpus_per_node = 1` in [stage.resources]), or set `device = \"cpu\"`"
            .to_owned(),
    )
}

fn cuda(what: &'static str) -> impl Fn(DriverError) -> ComputeError {
    move |e| {
        ComputeError::CollectiveTimeout(format!(
            "CUDA cannot {what} ({e:?}); look at `nvidia-smi` on this node; the next attempt goes on from the last checkpoint"
        ))
    }
}

#[cfg(test)]
mod tests;
