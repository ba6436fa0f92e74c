//! The one way to write a file: temp + fsync + rename + fsync of the directory.
//!
//! A reader sees the old content or the new one, never a part. Journals are append-only lines; a torn
//! last line is dropped by the reader.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::check_version;
use super::{RecordError, Result};

static NEXT_TEMP: AtomicU64 = AtomicU64::new(0);

/// A name beside `path` that no other writer uses.
fn temp_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let n = NEXT_TEMP.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{}-{n}.tmp", host_name(), std::process::id()))
}

/// Name of this host, as the kernel says.
pub fn host_name() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: the buffer is valid for its whole length and gethostname writes at most that much.
    let rc = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) };
    let end = buffer.iter().position(|&b| b == 0).unwrap_or(buffer.len());
    if rc == 0 { String::from_utf8_lossy(&buffer[..end]).into_owned() } else { "unknown".to_owned() }
}

/// Writes `bytes` to `path`: all of it or nothing, durable when it returns.
/// Directories above it are made.
///
/// # Errors
/// The disk is full, or the directory cannot be written; what was at `path` is still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], for content that is produced piece by piece.
///
/// # Errors
/// As [`write_atomic`], or what `write` returns.
pub fn write_atomic_with(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    make_dirs(&parent_of(path))?;
    replace(path, write)
}

fn replace(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let parent = parent_of(path);
    let temp = temp_beside(path);
    let result = (|| {
        let mut file = File::create(&temp).map_err(RecordError::io("write", &temp))?;
        write(&mut file).map_err(RecordError::io("write", path))?;
        file.sync_all().map_err(RecordError::io("write", path))?;
        std::fs::rename(&temp, path).map_err(RecordError::io("rename onto", path))?;
        sync_dir(&parent)
    })();
    if result.is_err() {
        // The temporary file holds nothing that anyone needs; failing to remove it changes nothing.
        let _ = std::fs::remove_file(&temp);
    }
    result
}

/// Writes files of these names into `dir`, each whole or not at all and durable, as [`write_atomic`] does; when it returns
/// all of them are there. `content` gives the bytes of the one at that place.
///
/// One after the other they would take as long as the disk needs to make something durable, as many times as there are
/// files: here several threads write, the disk is at work before it is waited for, and the directory is synced once.
///
/// # Errors
/// As [`write_atomic`], or what `content` returns; some of the files may be there then.
pub fn write_many<E: From<RecordError> + Send>(
    dir: &Path,
    names: &[String],
    content: impl Fn(usize) -> std::result::Result<Vec<u8>, E> + Sync,
) -> std::result::Result<(), E> {
    make_dirs(dir)?;
    let all: Vec<usize> = (0..names.len()).collect();
    let share = all.len().div_ceil(WRITERS).max(1);
    let write = |share: &[usize]| share.chunks(MOST_OPEN).try_for_each(|few| write_few(dir, names, few, &content));
    std::thread::scope(|scope| {
        let writers: Vec<_> = all.chunks(share).map(|share| scope.spawn(move || write(share))).collect();
        let joined = writers.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect::<Vec<_>>().into_iter().collect::<std::result::Result<(), E>>()
    })?;
    Ok(sync_dir(dir)?)
}

/// More writers than this gain nothing.
const WRITERS: usize = 8;

/// Files that one writer has open at a time.
const MOST_OPEN: usize = 64;

fn write_few<E: From<RecordError>>(
    dir: &Path,
    names: &[String],
    few: &[usize],
    content: &impl Fn(usize) -> std::result::Result<Vec<u8>, E>,
) -> std::result::Result<(), E> {
    let mut open: Vec<(PathBuf, PathBuf, File)> = Vec::new();
    let mut write = || {
        for &i in few {
            let path = dir.join(&names[i]);
            let bytes = content(i)?;
            let temp = temp_beside(&path);
            let mut file = File::create(&temp).map_err(RecordError::io("write", &temp))?;
            let written = file.write_all(&bytes).map_err(RecordError::io("write", &path));
            start_writing(&file);
            open.push((path, temp, file));
            written?;
        }
        for (path, _, file) in &open {
            file.sync_all().map_err(RecordError::io("write", path))?;
        }
        for (path, temp, _) in &open {
            std::fs::rename(temp, path).map_err(RecordError::io("rename onto", path))?;
        }
        Ok(())
    };
    let result = write();
    if result.is_err() {
        // As in write_atomic_with; those that were renamed are not there any more.
        open.iter().for_each(|(_, temp, _)| drop(std::fs::remove_file(temp)));
    }
    result
}

/// Lets the disk begin with what was written to `file`. It is a hint: [`File::sync_all`] is what makes it durable.
fn start_writing(file: &File) {
    // SAFETY: the descriptor is open for the duration of the call, which takes no memory.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// A directory that many files are opened below: the way to it is gone once.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    fd: OwnedFd,
}

impl Folder {
    /// Opens a directory.
    ///
    /// # Errors
    /// It is none, or not there.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let name = c_name(path)?;
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: the name ends with NUL and lives through the call.
        let fd = unsafe { libc::open(name.as_ptr(), flags) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: open succeeded, so this is an open descriptor that nobody else owns.
        Ok(Self { path: path.to_path_buf(), fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Opens `path`, which may lie below this directory, for reading. A link in its last place is not followed.
    ///
    /// # Errors
    /// As of a file.
    pub fn file(&self, path: &Path) -> std::io::Result<File> {
        let Ok(below) = path.strip_prefix(&self.path) else { return File::open(path) };
        let name = c_name(below)?;
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: the descriptor is open, the name ends with NUL and lives through the call.
        let fd = unsafe { libc::openat(self.fd.as_raw_fd(), name.as_ptr(), flags) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: openat succeeded, so this is an open descriptor that nobody else owns.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Size of the file at `path`, which may lie below this directory.
    ///
    /// # Errors
    /// As of a file.
    pub fn size(&self, path: &Path) -> std::io::Result<u64> {
        let Ok(below) = path.strip_prefix(&self.path) else { return std::fs::metadata(path).map(|m| m.len()) };
        let name = c_name(below)?;
        let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
        // SAFETY: the descriptor is open, the name ends with NUL, and there is room for what is written.
        if unsafe { libc::fstatat(self.fd.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), 0) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: fstatat succeeded, so it has filled this in. A size is not negative.
        Ok(unsafe { stat.assume_init() }.st_size as u64)
    }

    /// All bytes of the file at `path`, as [`read_bytes`] reads them.
    pub(super) fn bytes(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        bytes_of(self.file(path)?)
    }

    /// True if something is at `path`, which may lie below this directory; or if that cannot be told.
    pub fn may_have(&self, path: &Path) -> bool {
        let Ok(below) = path.strip_prefix(&self.path) else { return path.exists() };
        let Ok(name) = c_name(below) else { return true };
        // SAFETY: as above.
        let found = unsafe { libc::faccessat(self.fd.as_raw_fd(), name.as_ptr(), libc::F_OK, 0) } == 0;
        found || std::io::Error::last_os_error().kind() != std::io::ErrorKind::NotFound
    }
}

fn c_name(path: &Path) -> std::io::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(std::io::Error::other)
}

/// Writes `value` as indented JSON with a final newline, atomically.
///
/// # Errors
/// As [`write_atomic`]; [`RecordError::Value`] if it is no JSON.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_atomic(path, json_text(value)?.as_bytes())
}

/// As [`write_json`], in a directory that is there: one that somebody else removed is not made again.
///
/// # Errors
/// As [`write_json`]; the directory is gone.
pub fn write_json_into<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = json_text(value)?;
    replace(path, |file| file.write_all(text.as_bytes()))
}

/// A value as [`write_json`] writes it.
///
/// # Errors
/// It has no JSON.
pub fn json_text<T: Serialize>(value: &T) -> Result<String> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|e| RecordError::Value(format!("cannot print as JSON: {e}")))?;
    text.push('\n');
    Ok(text)
}

/// Creates `path` with complete content, or returns `false` if it already exists.
/// Made with link(2), which is exclusive on network file systems too.
///
/// # Errors
/// The directory cannot be written.
pub fn create_exclusive(path: &Path, bytes: &[u8]) -> Result<bool> {
    let parent = parent_of(path);
    make_dirs(&parent)?;
    let temp = temp_beside(path);
    let result = (|| {
        let mut file = File::create(&temp).map_err(RecordError::io("write", &temp))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(RecordError::io("write", path))?;
        match std::fs::hard_link(&temp, path) {
            Ok(()) => sync_dir(&parent).map(|()| true),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                // A network file system may repeat a request whose reply was lost and report the
                // second one: the link count of our own file tells whether the first succeeded.
                use std::os::unix::fs::MetadataExt;
                Ok(file.metadata().is_ok_and(|m| m.nlink() == 2))
            }
            Err(e) => Err(RecordError::Io { action: "create", path: path.to_path_buf(), source: e }),
        }
    })();
    // As in write_atomic_with: only the link matters.
    let _ = std::fs::remove_file(&temp);
    result
}

/// Appends one line and makes it durable. `line` holds no newline.
///
/// # Errors
/// The file cannot be written.
pub fn append_line(path: &Path, line: &str) -> Result<()> {
    append_lines(path, &[line])
}

/// Appends lines in one write and makes them durable. None of them holds a newline.
///
/// # Errors
/// The file cannot be written.
pub fn append_lines(path: &Path, lines: &[impl AsRef<str>]) -> Result<()> {
    make_dirs(&parent_of(path))?;
    let torn = last_byte(path)?.is_some_and(|b| b != b'\n');
    let mut file =
        OpenOptions::new().create(true).append(true).open(path).map_err(RecordError::io("append to", path))?;
    // A torn last line of a killed writer is ended first, so that it cannot swallow this one.
    let mut text = String::from(if torn { "\n" } else { "" });
    for line in lines.iter().map(AsRef::as_ref) {
        debug_assert!(!line.contains('\n'), "a journal line is one line");
        text.push_str(line);
        text.push('\n');
    }
    file.write_all(text.as_bytes()).map_err(RecordError::io("append to", path))?;
    file.sync_data().map_err(RecordError::io("append to", path))
}

fn last_byte(path: &Path) -> Result<Option<u8>> {
    use std::io::{Seek, SeekFrom};
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(RecordError::Io { action: "read", path: path.to_path_buf(), source: e }),
    };
    if file.seek(SeekFrom::End(0)).map_err(RecordError::io("read", path))? == 0 {
        return Ok(None);
    }
    file.seek(SeekFrom::End(-1)).map_err(RecordError::io("read", path))?;
    let mut byte = [0u8];
    file.read_exact(&mut byte).map_err(RecordError::io("read", path))?;
    Ok(Some(byte[0]))
}

/// Every whole JSON line of a journal, in order. A last line without its newline is dropped; a file
/// that is not there has no lines.
///
/// # Errors
/// The file cannot be read, or a whole line is not a `T`.
pub fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    whole_lines(path)?.into_iter().map(|(n, value)| from_value(path, Some(n), value)).collect()
}

/// As [`read_lines`], for lines that say their format version, which is looked at before anything else.
///
/// # Errors
/// As [`read_lines`]; [`RecordError::Newer`] if a line has a version above `known`.
pub fn read_versioned_lines<T: DeserializeOwned>(path: &Path, known: u32) -> Result<Vec<T>> {
    let read = |(n, value)| {
        check_version(path, version_of(&value), known)?;
        from_value(path, Some(n), value)
    };
    whole_lines(path)?.into_iter().map(read).collect()
}

fn whole_lines(path: &Path) -> Result<Vec<(usize, Value)>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(RecordError::Io { action: "read", path: path.to_path_buf(), source: e }),
    };
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(&[][..], |end| &bytes[..end]);
    let mut lines = Vec::new();
    for (i, line) in whole.split(|&b| b == b'\n').enumerate() {
        match serde_json::from_slice(line) {
            Ok(value) => lines.push((i + 1, value)),
            // An empty line, or a torn one that a later writer ended.
            Err(e) if line.is_empty() || e.is_eof() => {}
            Err(e) => return Err(damaged_line(path, i + 1, &e)),
        }
    }
    Ok(lines)
}

fn damaged_line(path: &Path, n: usize, error: &serde_json::Error) -> RecordError {
    RecordError::damaged(path, format!("line {n}: {error}: restore the file from a copy, or remove that line"))
}

fn from_value<T: DeserializeOwned>(path: &Path, line: Option<usize>, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| match line {
        Some(n) => damaged_line(path, n, &e),
        None => RecordError::damaged(path, e.to_string()),
    })
}

/// The version that a value says; 0 where it says none, and then its reader misses the field.
fn version_of(value: &Value) -> u32 {
    value.get("version").and_then(Value::as_u64).map_or(0, |v| u32::try_from(v).unwrap_or(u32::MAX))
}

/// Reads a JSON file that says its format version, which is looked at before anything else.
///
/// # Errors
/// As [`read_json`]; [`RecordError::Newer`] if its version is above `known`.
pub fn read_versioned_json<T: DeserializeOwned>(path: &Path, known: u32) -> Result<T> {
    versioned_json(path, &read_bytes(path).map_err(RecordError::io("read", path))?, known)
}

/// As [`read_versioned_json`], of the bytes of `path`.
pub(super) fn versioned_json<T: DeserializeOwned>(path: &Path, bytes: &[u8], known: u32) -> Result<T> {
    // Whatever is unusual is looked at anew below, in the order that is promised, and with its reason.
    if let Ok(Versioned { version }) = serde_json::from_slice(bytes)
        && version <= known
        && let Ok(value) = serde_json::from_slice(bytes)
    {
        return Ok(value);
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|e| RecordError::damaged(path, e.to_string()))?;
    check_version(path, version_of(&value), known)?;
    from_value(path, None, value)
}

/// What is read of a file first.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// All bytes of a file: one open and as many reads as it takes. `std::fs::read` asks for the size as well, which on a
/// network file system is a question more for each of many small files.
pub(super) fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    bytes_of(File::open(path)?)
}

fn bytes_of(mut file: File) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; 8192];
    let mut filled = 0;
    loop {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => {
                bytes.truncate(filled);
                return Ok(bytes);
            }
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if filled == bytes.len() {
            bytes.resize(2 * filled, 0);
        }
    }
}

/// Reads a JSON file.
///
/// # Errors
/// It cannot be read, or is not a `T`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_bytes(path).map_err(RecordError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| RecordError::damaged(path, e.to_string()))
}

/// Reads a text file.
///
/// # Errors
/// It cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(RecordError::io("read", path))
}

/// Makes `dir` and what is above it; new ones are for their owner only.
///
/// # Errors
/// It cannot be made.
pub fn make_dirs(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(RecordError::io("create", dir))
}

/// Makes renames and links in `dir` durable.
///
/// # Errors
/// It cannot be opened.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(RecordError::io("sync", dir))
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_creation_happens_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/1.json");
        assert!(create_exclusive(&path, b"first").unwrap());
        assert!(!create_exclusive(&path, b"second").unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn many_files_are_written_whole_or_their_error_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let cells = dir.path().join("cells");
        let names: Vec<String> = (0..300).map(|i| format!("{i}.toml")).collect();
        let text = |i: usize| format!("number = {i}\n").into_bytes();
        write_many(&cells, &names, |i| Ok::<_, RecordError>(text(i))).unwrap();
        for (i, name) in names.iter().enumerate() {
            assert_eq!(std::fs::read(cells.join(name)).unwrap(), text(i));
        }
        assert_eq!(std::fs::read_dir(&cells).unwrap().count(), 300, "no temporary file is left");
        let other = dir.path().join("other");
        let failing = |i| if i == 217 { Err(RecordError::Value("no cell 217".into())) } else { Ok(text(i)) };
        assert_eq!(write_many(&other, &names, failing).unwrap_err().to_string(), "no cell 217");
        let left = std::fs::read_dir(&other).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert!(left.into_iter().all(|name| names.contains(&name)), "a temporary file is left");
        // A directory stands where a file should.
        std::fs::create_dir_all(dir.path().join("third/7.toml/x")).unwrap();
        let error = write_many(&dir.path().join("third"), &names, |i| Ok::<_, RecordError>(text(i))).unwrap_err();
        assert!(error.to_string().contains("third/7.toml"), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.json");
        write_atomic(&path, b"old").unwrap();
        let failed = write_atomic_with(&path, |file| {
            file.write_all(b"half")?;
            Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
        });
        assert!(failed.unwrap_err().is_disk_full());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_torn_line_is_dropped_and_does_not_swallow_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        append_line(&path, r#"{"n":1}"#).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(br#"{"n":"#).unwrap();
        let ns = || -> Vec<serde_json::Value> { read_lines(&path).unwrap() };
        assert_eq!(ns().len(), 1);
        append_line(&path, r#"{"n":2}"#).unwrap();
        assert_eq!(ns(), [serde_json::json!({"n": 1}), serde_json::json!({"n": 2})]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        std::fs::write(&path, "{\"n\":1}\nhello\n").unwrap();
        let error = read_lines::<serde_json::Value>(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
