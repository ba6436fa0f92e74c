//! Shard files: written and read past the page cache, in chunks, each with its own digest.
//!
//! A few threads take chunk after chunk, so that one is digested while others travel. BLAKE3 rather than SHA-256:
//! it is as strong, five times as fast with AVX-512, and three or more where a processor lacks instructions for
//! SHA (most nodes before 2020), where SHA-256 would be slower than the disk. A digest a chunk rather than one a
//! file: whoever reads a range checks that range, on as many threads as there are.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::pages::{PAGE, Pages};
use crate::record::Digest;

/// Bytes that are digested together. Large enough for the disk, small enough to lie in a cache between two uses.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Threads of one shard: two requests travel while one chunk is digested.
const THREADS: usize = 3;

/// What a writer learned of the bytes on their way.
#[derive(Debug)]
pub(super) struct Written {
    /// BLAKE3 of each chunk.
    pub digests: Vec<Digest>,
    /// Whether all numbers are finite.
    pub finite: bool,
}

/// Writes the first `len` bytes of `content`, fp32 numbers, to `path` and makes them durable. A file that lies there
/// is written over in place. The first number that is not finite ends the writing.
///
/// # Errors
/// The disk is full or refuses.
pub(super) fn write(path: &Path, content: &Pages, len: usize) -> io::Result<Written> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let file = open_direct(&mut options, path)?;
    let padded = len.next_multiple_of(PAGE);
    reserve(&file, padded)?;
    let chunks = len.div_ceil(CHUNK_BYTES);
    let next = AtomicUsize::new(0);
    let digests = Mutex::new(vec![None; chunks]);
    let failed: Mutex<Option<io::Error>> = Mutex::new(None);
    let finite = AtomicBool::new(true);
    let work = || {
        yield_to_computing();
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                return;
            }
            let from = chunk * CHUNK_BYTES;
            let bytes = &content.bytes()[from..len.min(from + CHUNK_BYTES)];
            let digest = digest(bytes);
            if !f32_finite(bytes) {
                finite.store(false, Ordering::Relaxed);
                next.store(chunks, Ordering::Relaxed);
            }
            // The last page is written whole; what is beyond the end is cut off below.
            let whole = &content.bytes()[from..padded.min(from + CHUNK_BYTES)];
            match write_at(&file, whole, from as u64) {
                // The lists are short and nothing panics while they are held.
                Ok(()) => lock(&digests)[chunk] = Some(digest),
                Err(e) => {
                    lock(&failed).get_or_insert(e);
                    next.store(chunks, Ordering::Relaxed);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS.min(chunks) {
            scope.spawn(work);
        }
        work();
    });
    if let Some(e) = lock(&failed).take() {
        return Err(e);
    }
    if !finite.load(Ordering::Relaxed) {
        return Ok(Written { digests: Vec::new(), finite: false });
    }
    file.set_len(len as u64)?;
    file.sync_all()?;
    let digests = std::mem::take(&mut *lock(&digests)).into_iter().flatten().collect();
    Ok(Written { digests, finite: true })
}

/// One chunk to be read: its number, and who gets it.
pub(super) struct ChunkRead<'a, T> {
    /// Number in the file.
    pub chunk: usize,
    /// Digest that it must have; `None` where the whole file was checked before.
    pub digest: Option<&'a Digest>,
    /// What happens to it.
    pub then: T,
}

/// Reads chunks of the file at `path`, which has `len` bytes, checks them, and hands them to `take`.
///
/// # Errors
/// It cannot be read; [`io::ErrorKind::InvalidData`] if a chunk has another digest: the text says which bytes.
pub(super) fn read<T: Send>(
    path: &Path,
    len: u64,
    chunks: Vec<ChunkRead<'_, T>>,
    take: &(dyn Fn(T, &[u8]) + Sync),
) -> io::Result<()> {
    let file = open_direct(OpenOptions::new().read(true), path)?;
    let threads = THREADS.min(chunks.len());
    let rest = Mutex::new(chunks.into_iter());
    let failed: Mutex<Option<io::Error>> = Mutex::new(None);
    let work = || {
        let result = (|| -> io::Result<()> {
            let mut room = Pages::new(CHUNK_BYTES)?;
            loop {
                let next = lock(&rest).next();
                let Some(ChunkRead { chunk, digest: promised, then }) = next else { return Ok(()) };
                if lock(&failed).is_some() {
                    return Ok(());
                }
                let from = chunk as u64 * CHUNK_BYTES as u64;
                let bytes = usize::try_from(len.saturating_sub(from)).unwrap_or(usize::MAX).min(CHUNK_BYTES);
                read_at(&file, &mut room.bytes_mut()[..bytes.next_multiple_of(PAGE)], bytes, from)?;
                let bytes = &room.bytes()[..bytes];
                if promised.is_some_and(|promised| *promised != digest(bytes)) {
                    let end = from + bytes.len() as u64;
                    return Err(io::Error::new(io::ErrorKind::InvalidData, format!("bytes {from} to {end}")));
                }
                take(then, bytes);
            }
        })();
        if let Err(e) = result {
            lock(&failed).get_or_insert(e);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match lock(&failed).take() {
        Some(e) => Err(e),
        None => Ok(()),
    }
}

/// BLAKE3 of `bytes`.
pub(super) fn digest(bytes: &[u8]) -> Digest {
    Digest::of_hash(blake3::hash(bytes).as_bytes())
}

/// Whether no fp32 number in `bytes` is infinite or NaN.
pub(super) fn f32_finite(bytes: &[u8]) -> bool {
    // In blocks, without a branch inside: vector instructions.
    bytes.chunks(4096).all(|block| {
        let bits = block.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        !bits.fold(false, |bad, bits| bad | (bits & 0x7f80_0000 == 0x7f80_0000))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Opens past the page cache, or through it where the file system cannot do that.
fn open_direct(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    match options.custom_flags(libc::O_DIRECT).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => options.custom_flags(0).open(path),
        opened => opened,
    }
}

/// Asks for the room on the disk at once: a full disk shows before anything was written, and the file is in one
/// piece. Not every file system can; those that cannot are written without.
fn reserve(file: &File, len: usize) -> io::Result<()> {
    let bytes = libc::off_t::try_from(len).map_err(io::Error::other)?;
    if bytes == 0 || file.metadata()?.len() >= len as u64 {
        return Ok(());
    }
    // SAFETY: the descriptor is open for writing.
    let rc = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes) };
    let e = io::Error::last_os_error();
    if rc == 0 || matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)) {
        Ok(())
    } else {
        Err(e)
    }
}

/// Some file systems open past the page cache and then refuse to write so; they get it through the cache.
fn leave_direct(file: &File, e: io::Error) -> io::Result<()> {
    // SAFETY: flags of an open descriptor.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if e.raw_os_error() != Some(libc::EINVAL) || flags < 0 || flags & libc::O_DIRECT == 0 {
        return Err(e);
    }
    // SAFETY: as above; only the flag of direct access changes.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_DIRECT) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_at(&bytes[done..], at + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => leave_direct(file, e)?,
        }
    }
    Ok(())
}

/// Fills the first `wanted` bytes of `room`, which is a whole number of pages.
fn read_at(file: &File, room: &mut [u8], wanted: usize, at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < wanted {
        match file.read_at(&mut room[done..], at + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => leave_direct(file, e)?,
        }
    }
    Ok(())
}

/// Lets the step loop go first where both want one core. On Linux this is of the calling thread only.
pub(super) fn yield_to_computing() {
    // SAFETY: changes a number of this thread's scheduling; failing to only costs speed.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}
