//! MPI as a carrier of bytes: `MPI_Isend`, `MPI_Irecv` and `MPI_Testsome`, all from the thread that initialised
//! the library, never blocking in it but to join and to leave. Errors come back as values, not as an abort.

use std::ffi::{c_int, c_void};

use mpi::Threading;
use mpi::ffi;

use super::link::Link;
use crate::compute::{ComputeError, Result};

/// What Open MPI is told where the user has not chosen, before it starts. `docs/training.md` says why.
const PREFERENCES: &[(&str, &str)] = &[
    // A process that waits to join or to leave gives its core away.
    ("OMPI_MCA_mpi_yield_when_idle", "1"),
    // Copies through a shared segment, in parts that stay in the cache, took 0.6 of the processor time of
    // process_vm_readv, which containers often forbid besides.
    ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
    // A piece goes over TCP at once, without asking first: between two tests nobody would answer. Its fragments are
    // as large as that, so few of them are made ahead.
    ("OMPI_MCA_btl_tcp_eager_limit", "589824"),
    ("OMPI_MCA_btl_tcp_rndv_eager_limit", "589824"),
    ("OMPI_MCA_btl_tcp_max_send_size", "589824"),
    ("OMPI_MCA_btl_tcp_free_list_num", "8"),
    ("OMPI_MCA_btl_tcp_free_list_inc", "8"),
];

/// A piece and its header fit into what TCP takes at once.
const _: () = assert!(super::engine::PIECE_BYTES + 4096 <= 589_824);

/// All ranks of `MPI_COMM_WORLD`, for one thread.
#[derive(Debug)]
pub(super) struct Mpi {
    rank: usize,
    size: usize,
    indices: Vec<c_int>,
    statuses: Vec<ffi::MPI_Status>,
    /// MPI calls belong to the thread that initialised it.
    _thread: std::marker::PhantomData<*const ()>,
}

/// Sets [`PREFERENCES`] where the environment says nothing.
pub(super) fn set_preferences() {
    for (name, value) in PREFERENCES {
        if std::env::var_os(name).is_none() {
            // SAFETY: called at the start of a stage, before it makes threads that read the environment; the
            // standard library's own readers and writers share a lock.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

impl Mpi {
    /// Initialises MPI; this thread makes all calls.
    pub(super) fn init() -> Result<Self> {
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(ComputeError::Failed("MPI was initialised twice: report this".to_owned()));
        };
        // Dropped, it would wait in MPI_Finalize for ranks that may be gone: `close` does it in order.
        std::mem::forget(universe);
        let (mut rank, mut size): (c_int, c_int) = (0, 0);
        // SAFETY: MPI is initialised; the pointers are valid for the calls.
        unsafe {
            check(
                "set its error handler",
                ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN),
            )?;
            check("tell the rank", ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &mut rank))?;
            check("tell the size", ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &mut size))?;
        }
        Ok(Self {
            // Both are small and not negative.
            rank: rank as usize,
            size: size as usize,
            indices: Vec::new(),
            statuses: Vec::new(),
            _thread: std::marker::PhantomData,
        })
    }
}

fn null_request() -> ffi::MPI_Request {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

impl Link for Mpi {
    type Request = ffi::MPI_Request;

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    unsafe fn send(&mut self, peer: usize, tag: c_int, data: *const u8, len: usize) -> Result<Self::Request> {
        let mut request = null_request();
        // SAFETY: the caller lends the bytes until the request is complete. Pieces are far below 2^31 bytes.
        check("post a send", unsafe {
            ffi::MPI_Isend(
                data.cast::<c_void>(),
                len as c_int,
                ffi::RSMPI_UINT8_T,
                peer as c_int,
                tag,
                ffi::RSMPI_COMM_WORLD,
                &mut request,
            )
        })?;
        Ok(request)
    }

    unsafe fn receive(&mut self, peer: usize, tag: c_int, data: *mut u8, len: usize) -> Result<Self::Request> {
        let mut request = null_request();
        // SAFETY: the caller lends the room until the request is complete.
        check("post a receive", unsafe {
            ffi::MPI_Irecv(
                data.cast::<c_void>(),
                len as c_int,
                ffi::RSMPI_UINT8_T,
                peer as c_int,
                tag,
                ffi::RSMPI_COMM_WORLD,
                &mut request,
            )
        })?;
        Ok(request)
    }

    fn test(&mut self, requests: &mut [Self::Request], done: &mut Vec<usize>) -> Result<()> {
        done.clear();
        self.indices.resize(requests.len(), 0);
        // SAFETY: MPI_Status is a plain struct of integers that MPI_Testsome fills.
        self.statuses.resize(requests.len(), unsafe { std::mem::zeroed() });
        let mut count: c_int = 0;
        // SAFETY: the arrays hold as many entries as announced. With none, MPI still moves what it has queued.
        let rc = unsafe {
            ffi::MPI_Testsome(
                requests.len() as c_int,
                requests.as_mut_ptr(),
                &mut count,
                self.indices.as_mut_ptr(),
                self.statuses.as_mut_ptr(),
            )
        };
        check("exchange messages (another rank may be gone)", rc)?;
        // MPI_UNDEFINED is negative.
        let count = usize::try_from(count).unwrap_or(0);
        done.extend(self.indices[..count].iter().map(|&i| i as usize));
        Ok(())
    }

    fn close(self) -> Result<()> {
        // SAFETY: every request is complete.
        check("finish", unsafe { ffi::MPI_Finalize() })
    }
}

fn check(what: &str, rc: c_int) -> Result<()> {
    if rc == 0 {
        return Ok(());
    }
    let mut text = [0u8; 1024];
    let mut length: c_int = 0;
    // SAFETY: MPI_MAX_ERROR_STRING is at most 1024 in every implementation.
    unsafe { ffi::MPI_Error_string(rc, text.as_mut_ptr().cast(), &mut length) };
    let text = String::from_utf8_lossy(&text[..(length.max(0) as usize).min(text.len())]).into_owned();
    Err(ComputeError::CollectiveTimeout(format!(
        "MPI cannot {what}: {text}; the next attempt goes on from the last checkpoint"
    )))
}
