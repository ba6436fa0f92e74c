//! The few functions of NCCL that are used, looked up when the program runs: it is built and starts without NCCL.

use std::ffi::{CStr, OsString, c_char, c_int, c_void};

use libloading::Library;

use crate::compute::{ComputeError, Result};

/// Where NCCL may be, besides the search path of the loader.
pub(super) const LIBRARY_VARIABLE: &str = "SEEDBED_NCCL";

/// Names under which it is installed: the one that programs are linked with, and that of development packages.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub [u8; UniqueId::BYTES]);

impl UniqueId {
    pub(super) const BYTES: usize = 128;
}

/// `ncclComm_t`.
pub(super) type Handle = *mut c_void;
/// `cudaStream_t`.
pub(super) type Stream = *mut c_void;
/// `ncclResult_t`: 0 is success, 7 that something is under way.
pub(super) type Status = c_int;

pub(super) const SUCCESS: Status = 0;
pub(super) const IN_PROGRESS: Status = 7;

/// `ncclUint8`: everything travels as bytes.
const UINT8: c_int = 1;

type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> Status;
type CommInitRank = unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> Status;
type OfComm = unsafe extern "C" fn(Handle) -> Status;
type CommGetAsyncError = unsafe extern "C" fn(Handle, *mut Status) -> Status;
type Group = unsafe extern "C" fn() -> Status;
type Send = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, Stream) -> Status;
type Recv = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, Stream) -> Status;
type GetErrorString = unsafe extern "C" fn(Status) -> *const c_char;
type GetVersion = unsafe extern "C" fn(*mut c_int) -> Status;

/// NCCL.
pub(super) struct Nccl {
    get_unique_id: GetUniqueId,
    comm_init_rank: CommInitRank,
    comm_destroy: OfComm,
    comm_get_async_error: CommGetAsyncError,
    group_start: Group,
    group_end: Group,
    send: Send,
    recv: Recv,
    get_error_string: GetErrorString,
    get_version: GetVersion,
    /// The functions are its.
    _library: Library,
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nccl").finish_non_exhaustive()
    }
}

impl Nccl {
    /// Looks for the library.
    ///
    /// # Errors
    /// There is none, or it lacks a function; the message says what to type.
    pub(super) fn load(chosen: Option<OsString>) -> Result<Self> {
        let names: Vec<OsString> = match chosen {
            Some(path) => vec![path],
            None => NAMES.iter().map(OsString::from).collect(),
        };
        let mut last = String::new();
        for name in &names {
            // SAFETY: loading NCCL runs its initialisers, which have no preconditions.
            match unsafe { Library::new(name) } {
                Ok(library) => return Self::functions(library).map_err(|e| absent(&told(&e))),
                Err(e) => last = told(&e),
            }
        }
        Err(absent(&last))
    }

    fn functions(library: Library) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: the types are those of nccl.h, the same in every version 2 that has send and receive (2.7).
        unsafe {
            Ok(Self {
                get_unique_id: *library.get(b"ncclGetUniqueId\0")?,
                comm_init_rank: *library.get(b"ncclCommInitRank\0")?,
                comm_destroy: *library.get(b"ncclCommDestroy\0")?,
                comm_get_async_error: *library.get(b"ncclCommGetAsyncError\0")?,
                group_start: *library.get(b"ncclGroupStart\0")?,
                group_end: *library.get(b"ncclGroupEnd\0")?,
                send: *library.get(b"ncclSend\0")?,
                recv: *library.get(b"ncclRecv\0")?,
                get_error_string: *library.get(b"ncclGetErrorString\0")?,
                get_version: *library.get(b"ncclGetVersion\0")?,
                _library: library,
            })
        }
    }

    pub(super) fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; UniqueId::BYTES]);
        // SAFETY: the pointer is valid for the call.
        self.check("make an id", unsafe { (self.get_unique_id)(&mut id) })?;
        Ok(id)
    }

    /// Joins the others on the current device; blocks until all have come.
    pub(super) fn join(&self, id: UniqueId, rank: usize, ranks: usize) -> Result<Handle> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        let status = unsafe { (self.comm_init_rank)(&mut handle, ranks as c_int, id, rank as c_int) };
        self.check("join the ranks", status)?;
        Ok(handle)
    }

    /// `SUCCESS`, `IN_PROGRESS`, or what went wrong since.
    ///
    /// # Safety
    /// `handle` is alive.
    pub(super) unsafe fn async_error(&self, handle: Handle) -> Status {
        let mut status = SUCCESS;
        // SAFETY: as the caller says.
        let rc = unsafe { (self.comm_get_async_error)(handle, &mut status) };
        if rc == SUCCESS { status } else { rc }
    }

    /// Posts all of `sends` and `receives`, (rank, device address, bytes), as one group on `stream`.
    ///
    /// # Safety
    /// `handle` and `stream` are alive; the memory is the device's, and lent until the stream has come there.
    pub(super) unsafe fn post(
        &self,
        handle: Handle,
        stream: Stream,
        sends: &[(usize, *const c_void, usize)],
        receives: &[(usize, *mut c_void, usize)],
    ) -> Result<()> {
        // SAFETY: as the caller says; between start and end nothing returns early, so that a group is closed.
        let (posted, ended) = unsafe {
            self.check("begin a group", (self.group_start)())?;
            let mut posted = SUCCESS;
            for &(peer, data, bytes) in sends {
                posted = first_of(posted, (self.send)(data, bytes, UINT8, peer as c_int, handle, stream));
            }
            for &(peer, data, bytes) in receives {
                posted = first_of(posted, (self.recv)(data, bytes, UINT8, peer as c_int, handle, stream));
            }
            (posted, (self.group_end)())
        };
        self.check("post messages", posted)?;
        self.check("start messages", ended)
    }

    /// Frees the communicator.
    ///
    /// # Safety
    /// `handle` is alive, and not used again.
    pub(super) unsafe fn leave(&self, handle: Handle) -> Result<()> {
        // SAFETY: as the caller says.
        self.check("leave the ranks", unsafe { (self.comm_destroy)(handle) })
    }

    /// `2.27.3`.
    pub(super) fn version(&self) -> String {
        let mut code = 0;
        // SAFETY: the pointer is valid for the call.
        let status = unsafe { (self.get_version)(&mut code) };
        if status == SUCCESS { version_text(code) } else { "unknown".to_owned() }
    }

    /// What a status means, in NCCL's words.
    pub(super) fn meaning(&self, status: Status) -> String {
        // SAFETY: the library returns a constant text, or null.
        let text = unsafe { (self.get_error_string)(status) };
        if text.is_null() {
            return format!("status {status}");
        }
        // SAFETY: not null, and it ends with a zero.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    fn check(&self, what: &str, status: Status) -> Result<()> {
        if status == SUCCESS || status == IN_PROGRESS {
            return Ok(());
        }
        Err(ComputeError::CollectiveTimeout(format!(
            "NCCL cannot {what}: {}; set NCCL_DEBUG=WARN to see why; the next attempt goes on from the last checkpoint",
            self.meaning(status)
        )))
    }
}

fn first_of(earlier: Status, now: Status) -> Status {
    if earlier == SUCCESS { now } else { earlier }
}

/// From `ncclGetVersion`'s number.
fn version_text(code: c_int) -> String {
    let thousand = if code < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", code / thousand, code % thousand / 100, code % 100)
}

/// What the loader says: the file or the function that it misses.
fn told(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// What to do without NCCL.
fn absent(why: &str) -> ComputeError {
    ComputeError::Config(format!(
        "several GPUs talk over NCCL, and libnccl.so.2 cannot be loaded ({why}): install libnccl2 (or `pip install nvidia-nccl-cu12`) and name the file in {LIBRARY_VARIABLE}, or its directory in LD_LIBRARY_PATH; one rank needs none"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_nccl_it_says_what_to_type() {
        let error = Nccl::load(Some("/nonexistent/libnccl.so.2".into())).unwrap_err();
        assert_eq!(error.exit_code(), crate::record::exit::USAGE);
        let text = error.to_string();
        assert!(
            text.contains("libnccl2") && text.contains(LIBRARY_VARIABLE) && text.contains("/nonexistent"),
            "{text}"
        );
        // A library that is another one.
        let other = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"];
        if let Some(path) = other.iter().find(|p| std::path::Path::new(p).exists()) {
            let text = Nccl::load(Some(path.into())).unwrap_err().to_string();
            assert!(text.contains("ncclGetUniqueId"), "{text}");
        }
    }

    #[test]
    fn versions_read_as_released() {
        assert_eq!(version_text(2708), "2.7.8");
        assert_eq!(version_text(21_805), "2.18.5");
        assert_eq!(version_text(22_703), "2.27.3");
    }
}
