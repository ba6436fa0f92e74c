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

/// What becomes of what a child prints to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stderr {
    /// Nothing: a fault would print to the parent's terminal, and it is for the caller to tell of.
    Silent,
    /// It goes where that of the parent goes.
    Shared,
}

/// Runs `work` in a silent child and returns what it sent before it ended or was killed. Whether that is all of it, the
/// bytes must say.
///
/// # Errors
/// The operating system gives no process or pipe.
pub fn run(limits: Limits, work: impl FnOnce(&mut Answer)) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let take = |more: &[u8]| {
        bytes.extend_from_slice(more);
        true
    };
    stream(limits, Stderr::Silent, work, take)?;
    Ok(bytes)
}

/// Runs `work` in a child; `take` gets what it sends, as it comes, until it says false. The child is killed when it exceeds
/// a limit, or when nobody takes any more; the time that `take` needs does not count.
///
/// # Errors
/// The operating system gives no process or pipe.
pub fn stream(
    limits: Limits,
    stderr: Stderr,
    work: impl FnOnce(&mut Answer),
    mut take: impl FnMut(&[u8]) -> bool,
) -> std::io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors that pipe2 writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: pipe2 succeeded, so both are open descriptors that nobody else owns.
    let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: the child calls nothing that another thread's lock could hold: it computes on memory it has (the allocator
    // resets its locks on fork), writes to the pipe by write(2) and leaves by _exit(2). Should it hang all the same, the
    // limit of time below ends it.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(std::io::Error::last_os_error());
    }
    if pid == 0 {
        drop(reader);
        set_limits(limits, stderr);
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut Answer(writer))));
        // SAFETY: ends this process without running destructors or handlers of the parent.
        unsafe { libc::_exit(i32::from(worked.is_err())) }
    }
    drop(writer);
    let read = read_until(reader, limits.time, &mut take);
    // SAFETY: `pid` is our own child, not yet waited for.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        let mut status = 0;
        while libc::waitpid(pid, &mut status, 0) < 0
            && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
        {}
    }
    read
}

/// Everything from the pipe until its end, until `limit` has been waited for it, or until `take` says false.
fn read_until(reader: OwnedFd, limit: Duration, take: &mut dyn FnMut(&[u8]) -> bool) -> std::io::Result<()> {
    let mut file = std::fs::File::from(reader);
    let mut buffer = [0u8; 1 << 16];
    let mut left = limit;
    loop {
        let began = Instant::now();
        let mut poll = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = i32::try_from(left.as_millis().max(1)).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd.
        let ready = unsafe { libc::poll(&mut poll, 1, millis) };
        left = left.saturating_sub(began.elapsed());
        match (ready, left.is_zero()) {
            (_, true) => return Ok(()),
            (1.., false) => {}
            _ => continue,
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                if !take(&buffer[..n]) {
                    return Ok(());
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn set_limits(limits: Limits, stderr: Stderr) {
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
    // SAFETY: calls of the system on a descriptor and on signals of this process alone.
    unsafe {
        let null = if stderr == Stderr::Silent { libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY) } else { -1 };
        if null >= 0 {
            libc::dup2(null, 2);
        }
        // The parent's handlers print, too.
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
    fn a_stream_ends_when_nobody_takes_more_and_its_time_is_that_of_the_child() {
        let endless = |answer: &mut Answer| while answer.send(&[1; 1000]) {};
        let (started, mut taken) = (Instant::now(), 0);
        let take = |bytes: &[u8]| {
            // Longer than the child may take in all.
            std::thread::sleep(Duration::from_millis(400));
            taken += bytes.len();
            taken < 100_000
        };
        stream(SHORT, Stderr::Silent, endless, take).unwrap();
        assert!((100_000..200_000).contains(&taken), "{taken}");
        assert!((Duration::from_millis(800)..Duration::from_secs(10)).contains(&started.elapsed()));
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
