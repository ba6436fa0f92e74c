//! Work in a child process with limits on time and memory, for what may fault or never end.
//!
//! The child is forked: it has all that this process has, answers with bytes through a pipe, and is gone.

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// What a child may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time on the wall; processor time has the same limit, in whole seconds.
    pub time: Duration,
    /// Memory beyond what this process has already, bytes.
    pub mem_bytes: u64,
}

/// Where a child's answer goes.
#[derive(Debug)]
pub struct Answer(OwnedFd);

impl Answer {
    /// Sends `bytes`, and waits until they are taken. Returns whether somebody still listens.
    pub fn send(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            // SAFETY: the pointer and length are those of a live slice, the descriptor is ours.
            let n = unsafe { libc::write(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
            match usize::try_from(n) {
                Ok(n) if n > 0 => bytes = &bytes[n..],
                _ if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        true
    }
}

/// Runs `work` in a child and returns what it sent before it ended or was killed. Whether that is all of it, the bytes must
/// say. The child prints nothing: a fault would, and it is for the caller to tell of.
///
/// # Errors
/// The operating system gives no process or pipe.
pub fn run(limits: Limits, work: impl FnOnce(&mut Answer)) -> std::io::Result<Vec<u8>> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors that pipe2 writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: pipe2 succeeded, so both are open descriptors that nobody else owns.
    let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: the child calls nothing that another thread's lock could hold: it computes on memory it has (the allocator
    // resets its locks on fork), writes to the pipe by write(2) and leaves by _exit(2). Should it hang all the same, the
    // deadline below ends it.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(std::io::Error::last_os_error());
    }
    if pid == 0 {
        drop(reader);
        set_limits(limits);
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut Answer(writer))));
        // SAFETY: ends this process without running destructors or handlers of the parent.
        unsafe { libc::_exit(i32::from(worked.is_err())) }
    }
    drop(writer);
    let bytes = read_until(reader, Instant::now() + limits.time);
    // SAFETY: `pid` is our own child, not yet waited for.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        let mut status = 0;
        while libc::waitpid(pid, &mut status, 0) < 0
            && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
        {}
    }
    bytes
}

/// Everything from the pipe until its end or the deadline.
fn read_until(reader: OwnedFd, deadline: Instant) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::from(reader);
    let mut bytes = Vec::new();
    let mut buffer = [0u8; 1 << 16];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(bytes);
        }
        let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = i32::try_from(left.as_millis().max(1)).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd.
        match unsafe { libc::poll(&mut poll, 1, millis) } {
            1.. => {}
            _ => continue,
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn set_limits(limits: Limits) {
    let set = |resource, value: u64| {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: a valid rlimit. A limit that cannot be set is not fatal: the deadline still holds.
        unsafe { libc::setrlimit(resource, &limit) };
    };
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').next().and_then(|n| n.parse::<u64>().ok()))
        .unwrap_or(0);
    set(libc::RLIMIT_AS, pages * 4096 + limits.mem_bytes);
    set(libc::RLIMIT_CPU, limits.time.as_secs().max(1));
    set(libc::RLIMIT_CORE, 0);
    // SAFETY: a failed allocation or a fault would print to the parent's terminal, and the parent's handlers would, too.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY);
        if null >= 0 {
            libc::dup2(null, 2);
        }
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT] {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Limits = Limits { time: Duration::from_millis(300), mem_bytes: 64 << 20 };

    #[test]
    fn what_is_sent_arrives() {
        let long = vec![7u8; 300_000];
        let limits = Limits { time: Duration::from_secs(20), ..SHORT };
        assert_eq!(run(limits, |answer| assert!(answer.send(&long))).unwrap(), long);
    }

    #[test]
    fn faults_and_loops_end_in_the_child() {
        let started = Instant::now();
        let spin = |answer: &mut Answer| {
            answer.send(b"begun");
            loop {
                std::hint::spin_loop();
            }
        };
        assert_eq!(run(SHORT, spin).unwrap(), b"begun");
        let fault = |answer: &mut Answer| {
            answer.send(b"x");
            // SAFETY: ends this process, the child, as a fault does.
            unsafe { libc::raise(libc::SIGSEGV) };
        };
        assert_eq!(run(SHORT, fault).unwrap(), b"x");
        assert_eq!(run(SHORT, |_| panic!("in the child")).unwrap(), b"");
        let eat = |answer: &mut Answer| {
            let full = vec![1u8; 1 << 30];
            answer.send(&full[..1]);
        };
        assert_eq!(run(SHORT, eat).unwrap(), b"");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
