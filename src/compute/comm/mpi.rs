//! MPI as a carrier of bytes between ranks: `MPI_Isend`, `MPI_Irecv`, and `MPI_Testall` with a growing sleep.
//!
//! A process that waits inside MPI spins and takes the core from its neighbour's compute; polling with a sleep
//! leaves it free. Errors come back as values, not as an abort. The library is initialised for one thread
//! that makes all calls.

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::ffi;

use crate::compute::{ComputeError, Result};

/// Longest single message; MPI counts are `int`.
const MESSAGE_BYTES: usize = 1 << 30;

/// Polls are this far apart at first, and twice as far each time.
const FIRST_SLEEP: Duration = Duration::from_micros(50);
const LAST_SLEEP: Duration = Duration::from_millis(1);

/// Any number will do: messages between two ranks match in order.
const TAG: c_int = 5;

/// All ranks of `MPI_COMM_WORLD`.
#[derive(Debug)]
pub struct Mpi {
    rank: usize,
    size: usize,
    deadline: Duration,
}

impl Mpi {
    /// Initialises MPI.
    pub fn init(deadline: Duration) -> Result<Self> {
        let Some((universe, _)) = mpi::initialize_with_threading(Threading::Funneled) else {
            return Err(ComputeError::Failed("MPI was initialised twice: report this".to_owned()));
        };
        // Dropped, it would wait in MPI_Finalize for ranks that may be gone: `finalize` does it in order.
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
        // Both are small and not negative.
        Ok(Self { rank: rank as usize, size: size as usize, deadline })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    pub fn exchange(&self, sends: &[(usize, &[u8])], receives: &mut [(usize, &mut [u8])]) -> Result<()> {
        let mut requests = Vec::new();
        for (peer, buffer) in receives.iter_mut() {
            for part in buffer.chunks_mut(MESSAGE_BYTES) {
                let mut request = self.null_request();
                // SAFETY: `part` outlives the request: this function returns only when all are done, or with an
                // error after which the caller makes no MPI call, and Open MPI moves data only inside calls.
                check("post a receive", unsafe {
                    ffi::MPI_Irecv(
                        part.as_mut_ptr().cast::<c_void>(),
                        part.len() as c_int,
                        ffi::RSMPI_UINT8_T,
                        *peer as c_int,
                        TAG,
                        ffi::RSMPI_COMM_WORLD,
                        &mut request,
                    )
                })?;
                requests.push(request);
            }
        }
        for (peer, buffer) in sends {
            for part in buffer.chunks(MESSAGE_BYTES) {
                let mut request = self.null_request();
                // SAFETY: as above; the buffer is only read.
                check("post a send", unsafe {
                    ffi::MPI_Isend(
                        part.as_ptr().cast::<c_void>(),
                        part.len() as c_int,
                        ffi::RSMPI_UINT8_T,
                        *peer as c_int,
                        TAG,
                        ffi::RSMPI_COMM_WORLD,
                        &mut request,
                    )
                })?;
                requests.push(request);
            }
        }
        self.wait_all(&mut requests)
    }

    fn null_request(&self) -> ffi::MPI_Request {
        // SAFETY: a constant of the library.
        unsafe { ffi::RSMPI_REQUEST_NULL }
    }

    fn wait_all(&self, requests: &mut [ffi::MPI_Request]) -> Result<()> {
        if requests.is_empty() {
            return Ok(());
        }
        // SAFETY: MPI_Status is a plain struct of integers that MPI_Testall fills.
        let mut statuses: Vec<ffi::MPI_Status> = vec![unsafe { std::mem::zeroed() }; requests.len()];
        let began = Instant::now();
        let mut sleep = FIRST_SLEEP;
        loop {
            let mut done: c_int = 0;
            // SAFETY: both arrays hold as many entries as announced.
            let rc = unsafe {
                ffi::MPI_Testall(requests.len() as c_int, requests.as_mut_ptr(), &mut done, statuses.as_mut_ptr())
            };
            check("exchange messages (another rank may be gone)", rc)?;
            if done != 0 {
                return Ok(());
            }
            if began.elapsed() > self.deadline {
                return Err(ComputeError::CollectiveTimeout(format!(
                    "rank {} of {} waited {:.0} s for another rank, which is gone or hangs: look for its message in the log; the next attempt goes on from the last checkpoint",
                    self.rank,
                    self.size,
                    self.deadline.as_secs_f64()
                )));
            }
            std::thread::sleep(sleep);
            sleep = (sleep * 2).min(LAST_SLEEP);
        }
    }

    pub fn finalize(self) -> Result<()> {
        // SAFETY: every request has been waited for.
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
