//! Shard files: written and read past the page cache, in chunks, each with its own digest.
//!
//! A few threads take chunk after chunk, so that one is digested while others travel. BLAKE3 rather than SHA-256:
//! it is as strong, five times as fast with AVX-512, and three or more where a processor lacks instructions for
//! SHA (most nodes before 2020), where SHA-256 would be slower than the disk. A digest a chunk rather than one a
//! file: whoever reads a range checks that range, on as many threads as there are.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use super::pages::{PAGE, Pages, Stream};
use crate::record::Digest;

/// Bytes that are digested together. Large enough for the disk, small enough to lie in a cache between two uses.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Bytes of one request to write.
const WRITE_BYTES: usize = 16 << 20;

/// Requests to read that travel at once; two more threads check what came.
const READERS: usize = 3;

/// Buffers between them.
const BUFFERS: usize = 8;

/// Writes the `len` bytes of `content` to `path` as they come, makes them durable, and gives the BLAKE3 of each
/// chunk. A file that lies there is written over in place.
///
/// # Errors
/// The disk is full or refuses.
pub(super) fn write(path: &Path, content: &Stream, len: usize) -> io::Result<Vec<Digest>> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let file = open_direct(&mut options, path)?;
    // The last page is written whole; what is beyond the end is cut off below.
    let padded = len.next_multiple_of(PAGE);
    reserve(&file, padded)?;
    let failed: Mutex<Option<io::Error>> = Mutex::new(None);
    let digests = Mutex::new(vec![None; len.div_ceil(CHUNK_BYTES)]);
    let next = (AtomicUsize::new(0), AtomicUsize::new(0));
    let write_all = || {
        while let Some(bytes) = piece(&next.0, WRITE_BYTES, padded) {
            let at = bytes.start as u64;
            if let Err(e) = content.wait(bytes, len).and_then(|bytes| write_at(&file, bytes, at)) {
                lock(&failed).get_or_insert(e);
                next.0.store(padded, Ordering::Relaxed);
                next.1.store(len, Ordering::Relaxed);
            }
        }
    };
    let digest_all = || {
        while let Some(bytes) = piece(&next.1, CHUNK_BYTES, len) {
            let chunk = bytes.start / CHUNK_BYTES;
            // Without its bytes a chunk is not written either, and that is the error.
            if let Ok(bytes) = content.wait(bytes, len) {
                let digest = digest(bytes);
                lock(&digests)[chunk] = Some(digest);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            write_all();
            digest_all();
        });
        scope.spawn(digest_all);
        write_all();
        digest_all();
    });
    if let Some(e) = lock(&failed).take() {
        return Err(e);
    }
    if file.metadata()?.len() != len as u64 {
        file.set_len(len as u64)?;
    }
    // The size is data; what else the file system remembers of a file is of no use to a reader.
    file.sync_data()?;
    Ok(std::mem::take(&mut *lock(&digests)).into_iter().flatten().collect())
}

/// The next piece of `size` bytes below `end` that nobody has taken.
fn piece(next: &AtomicUsize, size: usize, end: usize) -> Option<Range<usize>> {
    let start = next.fetch_add(size, Ordering::Relaxed);
    (start < end).then(|| start..end.min(start + size))
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
    let rooms = BUFFERS.min(chunks.len());
    let rest = Mutex::new(chunks.into_iter());
    let failed: Mutex<Option<io::Error>> = Mutex::new(None);
    // Empty buffers go one way, full ones the other.
    let (empty, empties) = sync_channel(BUFFERS);
    let (full, fulls) = sync_channel(BUFFERS);
    for _ in 0..rooms {
        // The channel holds all buffers and its other end is here.
        let _ = empty.send(Pages::new(CHUNK_BYTES)?);
    }
    let (empties, fulls) = (Mutex::new(empties), Mutex::new(fulls));
    let fill_all = |full: SyncSender<_>| {
        loop {
            // Of the buffers, at most one a reader is lost, to a failure: there is one for every chunk, or more
            // than readers.
            let Some(read) = lock(&rest).next() else { return };
            if lock(&failed).is_some() {
                return;
            }
            let Ok(mut room) = lock(&empties).recv() else { return };
            let at = read.chunk as u64 * CHUNK_BYTES as u64;
            let bytes = usize::try_from(len.saturating_sub(at)).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            match read_at(&file, &mut room.bytes_mut()[..bytes.next_multiple_of(PAGE)], bytes, at) {
                // The receivers end after the last sender.
                Ok(()) => drop(full.send((read, room, at, bytes))),
                Err(e) => drop(lock(&failed).get_or_insert(e)),
            }
        }
    };
    let check_all = |empty: SyncSender<_>| {
        loop {
            let received = lock(&fulls).recv();
            let Ok((read, room, at, len)) = received else { return };
            let (read, room): (ChunkRead<'_, T>, Pages) = (read, room);
            let bytes = &room.bytes()[..len];
            if read.digest.is_some_and(|promised| *promised != digest(bytes)) {
                let text = format!("bytes {at} to {}", at + len as u64);
                lock(&failed).get_or_insert(io::Error::new(io::ErrorKind::InvalidData, text));
            } else {
                take(read.then, bytes);
            }
            // Readers that have ended want no more buffers.
            let _ = empty.send(room);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            let full = full.clone();
            scope.spawn(|| fill_all(full));
        }
        let other = empty.clone();
        scope.spawn(|| check_all(other));
        drop(full);
        check_all(empty);
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

/// Some file systems open past the page cache and then refuse to go that way; they are asked once more, through it.
/// `asked` says that this request was.
fn leave_direct(file: &File, e: io::Error, asked: &mut bool) -> io::Result<()> {
    if e.raw_os_error() != Some(libc::EINVAL) || std::mem::replace(asked, true) {
        return Err(e);
    }
    // SAFETY: flags of an open descriptor; only the one of direct access changes. Another thread may have done it.
    let done = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        flags >= 0 && libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_DIRECT) >= 0
    };
    if done { Ok(()) } else { Err(e) }
}

fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let (mut done, mut asked) = (0, false);
    while done < bytes.len() {
        match file.write_at(&bytes[done..], at + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => leave_direct(file, e, &mut asked)?,
        }
    }
    Ok(())
}

/// Fills the first `wanted` bytes of `room`, which is a whole number of pages.
fn read_at(file: &File, room: &mut [u8], wanted: usize, at: u64) -> io::Result<()> {
    let (mut done, mut asked) = (0, false);
    while done < wanted {
        match file.read_at(&mut room[done..], at + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => leave_direct(file, e, &mut asked)?,
        }
    }
    Ok(())
}
