//! Filters run where they can do no harm: in a child process with limits on time and memory.
//!
//! jq is a whole language: a gate, a table metric or a slip of the finger may loop for ever or build a list of 1e12
//! numbers. All filters of one table or gate go to one forked child, which answers a line for each; a child that
//! exceeds a limit, or faults, is killed, and the filter it was working on is named. [`forked`] is the child alone.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::filter::{Filter, FilterError, Scope, to_val};
use super::plain::{self, Tree};
use super::print;

/// Stack of a thread that compiles or runs filters, bytes: jq's parser and its values recurse.
const STACK_BYTES: usize = 64 << 20;

/// What the filters of one call may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time on the wall; processor time has the same limit.
    pub time: Duration,
    /// Memory beyond what the process has already, bytes.
    pub mem_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time: Duration::from_secs(20), mem_bytes: 1 << 30 }
    }
}

impl Limits {
    /// What a person's own query may take, unless they say otherwise.
    pub const OF_A_PERSON: Self = Self { time: Duration::from_secs(60), mem_bytes: 4 << 30 };
}

/// One closed filter on one value, with `$row` bound.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The filter.
    pub code: &'a str,
    /// Its input.
    pub input: &'a dyn Tree,
    /// The value of `$row`.
    pub row: &'a Value,
}

/// Outputs of one filter, or what to tell about it.
pub type Outputs = Result<Vec<Value>, String>;

/// Checks that a filter compiles, and shows the place if it does not.
///
/// # Errors
/// [`FilterError::Compile`].
pub fn check(code: &str, variables: &[&'static str], scope: Scope) -> Result<(), FilterError> {
    // A table of a large study has many columns, and jaq reads its whole library for each.
    if plain::Path::parse(code).is_some_and(|path| !path.asks_row() || variables.contains(&"$row")) {
        return Ok(());
    }
    deep(|| Filter::compile(code, variables, scope).map(|_| ())).unwrap_or_else(|e| Err(FilterError::Run(e)))
}

/// Runs closed filters: those that are nothing but a path here, the others in a child process. The answers are in the order
/// of the jobs; after a job that exceeded a limit, the rest of the child's says so too.
pub fn evaluate(jobs: &[Job<'_>], limits: Limits) -> Vec<Outputs> {
    let mut paths: HashMap<&str, Option<plain::Path>> = HashMap::new();
    let mut answers: Vec<Option<Outputs>> = Vec::with_capacity(jobs.len());
    let mut others = Vec::new();
    for (i, job) in jobs.iter().enumerate() {
        let path = paths.entry(job.code).or_insert_with(|| plain::Path::parse(job.code));
        let answer = path.as_mut().and_then(|path| path.answer(job.input, job.row));
        if answer.is_none() {
            others.push(i);
        }
        answers.push(answer.map(|value| Ok(vec![value])));
    }
    let jobs: Vec<Job<'_>> = others.iter().map(|&i| jobs[i]).collect();
    for (i, answer) in others.into_iter().zip(evaluate_apart(&jobs, limits)) {
        answers[i] = Some(answer);
    }
    // There is an answer for each.
    answers.into_iter().map(|answer| answer.unwrap_or_else(|| Ok(Vec::new()))).collect()
}

/// Runs closed filters in a child process.
fn evaluate_apart(jobs: &[Job<'_>], limits: Limits) -> Vec<Outputs> {
    if jobs.is_empty() {
        return Vec::new();
    }
    let mut bytes = Vec::new();
    let ran = deep(|| {
        let take = |more: &[u8]| {
            bytes.extend_from_slice(more);
            true
        };
        forked(limits, Stderr::Silent, |pipe| answer(jobs, pipe), take)
    });
    if let Err(what) = ran.and_then(|r| r) {
        return vec![Err(what); jobs.len()];
    }
    let mut answers: Vec<Outputs> = bytes
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| line.ends_with(b"\n"))
        .map_while(|line| serde_json::from_slice::<Result<Vec<Value>, String>>(line).ok())
        .take(jobs.len())
        .collect();
    if let Some(job) = jobs.get(answers.len()) {
        let seconds = limits.time.as_secs_f64();
        let mib = limits.mem_bytes >> 20;
        let culprit: String = job.code.chars().take(80).collect();
        answers.push(Err(format!(
            "the filter `{}` was stopped: it needs more than {seconds} s or {mib} MiB: make it simpler",
            culprit.escape_debug()
        )));
        answers.resize(jobs.len(), Err(format!("not tried after `{}` was stopped", culprit.escape_debug())));
    }
    answers
}

/// Runs `work` on a stack that any filter of admitted length fits in.
pub(super) fn deep<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|e| format!("cannot start a thread for the filter: {e}"))?;
        thread.join().map_err(|_| "the filter engine failed on this filter".to_owned())
    })
}

/// What becomes of what a child prints to stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stderr {
    /// Nothing: its failures are told by the parent.
    Silent,
    /// It goes where that of the parent goes.
    Shared,
}

/// Forks; the child runs `work`, and `take` gets what it writes, as it comes, until it says false. The child is killed
/// when it exceeds a limit; the time that `take` needs does not count.
///
/// # Errors
/// The system gives no pipe or process.
pub(super) fn forked(
    limits: Limits,
    stderr: Stderr,
    work: impl FnOnce(&Pipe),
    mut take: impl FnMut(&[u8]) -> bool,
) -> Result<(), String> {
    let mut ends = [0; 2];
    let os_error = |what: &str| format!("cannot {what} for the filter: {}", std::io::Error::last_os_error());
    // SAFETY: `ends` has room for the two descriptors that pipe2 writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(os_error("open a pipe"));
    }
    // SAFETY: pipe2 succeeded, so both are open descriptors that nobody else owns.
    let (reader, writer) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: the child calls nothing that another thread's lock could hold: it computes on memory it has
    // (the allocator resets its locks on fork), writes to the pipe by write(2) and leaves by _exit(2). Should
    // it hang all the same, the deadline below ends it.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(os_error("start a process"));
    }
    if pid == 0 {
        drop(reader);
        set_limits(limits, stderr);
        work(&Pipe(writer));
        // SAFETY: ends this process without running destructors or handlers of the parent.
        unsafe { libc::_exit(0) }
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

/// The child's end of the pipe.
pub(super) struct Pipe(OwnedFd);

impl Pipe {
    /// Writes all of it; false when the parent is gone. What a signal cuts off the parent misses and says.
    pub(super) fn write(&self, mut rest: &[u8]) -> bool {
        use std::os::fd::AsRawFd;
        while !rest.is_empty() {
            // SAFETY: the pointer and length are those of a live slice.
            let n = unsafe { libc::write(self.0.as_raw_fd(), rest.as_ptr().cast(), rest.len()) };
            match usize::try_from(n) {
                Ok(n) if n > 0 => rest = &rest[n..],
                _ => return false,
            }
        }
        true
    }
}

/// Everything from the pipe until its end, or until `limit` has been waited for it.
fn read_until(reader: OwnedFd, limit: Duration, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), String> {
    use std::os::fd::AsRawFd;
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
            Err(e) => return Err(format!("cannot read from the filter's process: {e}")),
        }
    }
}

/// The child of [`evaluate`]: a line for each job.
fn answer(jobs: &[Job<'_>], pipe: &Pipe) {
    let mut compiled = HashMap::new();
    for job in jobs {
        let answer: Outputs = run(job, &mut compiled).map_err(|e| e.to_string());
        // Texts, numbers, arrays and objects with text keys always print.
        let mut line = serde_json::to_vec(&answer).unwrap_or_default();
        line.push(b'\n');
        if !pipe.write(&line) {
            return;
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
    // SAFETY: a failed allocation or a fault would print to the parent's terminal; the parent names the
    // filter instead.
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

/// Runs a filter, compiled once for all jobs that have it.
fn run<'a>(
    job: &Job<'a>,
    compiled: &mut HashMap<&'a str, Result<Filter, FilterError>>,
) -> Result<Vec<Value>, FilterError> {
    let filter = compiled.entry(job.code).or_insert_with(|| Filter::compile(job.code, &["$row"], Scope::Closed));
    let filter = filter.as_ref().map_err(Clone::clone)?;
    let input = job.input.tree().map_err(FilterError::Run)?;
    let outputs = filter.run(to_val(&input), vec![to_val(job.row)])?;
    outputs
        .iter()
        .map(|value| {
            serde_json::from_str(&print::compact(value)).map_err(|e| FilterError::Run(format!("no JSON came out: {e}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answers(codes: &[&str], limits: Limits) -> Vec<Outputs> {
        let (input, row) = (json!({"a": [1, 2.5]}), json!({"model": "b"}));
        let jobs: Vec<Job> = codes.iter().map(|code| Job { code, input: &input, row: &row }).collect();
        evaluate(&jobs, limits)
    }

    #[test]
    fn answers_come_in_order() {
        let got = answers(&[".a[1]", ".a | mean", "$row.model", ".a[]", "error(\"x\")", "env"], Limits::default());
        assert_eq!(
            got[..4],
            [Ok(vec![json!(2.5)]), Ok(vec![json!(1.75)]), Ok(vec![json!("b")]), Ok(vec![json!(1), json!(2.5)])]
        );
        assert!(got[4].as_ref().unwrap_err().contains('x'));
        assert!(got[5].as_ref().unwrap_err().contains("not allowed"));
    }

    #[test]
    fn a_filter_that_does_not_end_is_stopped_and_named() {
        let limits = Limits { time: Duration::from_millis(300), mem_bytes: 64 << 20 };
        for endless in ["def f: f; f", "last(repeat(1))", "[range(1e12)]", "[repeat(\"x\" * 1000)]", "def f: 1 + f; f"]
        {
            let started = Instant::now();
            let got = answers(&[".a | .[0]", endless, ".a | .[0]", ".a[0]"], limits);
            assert!(started.elapsed() < Duration::from_secs(5), "{endless}");
            assert_eq!(got[0], Ok(vec![json!(1)]), "{endless}");
            let problem = got[1].as_ref().unwrap_err();
            assert!(problem.contains("0.3 s or 64 MiB") && problem.contains(&endless[..5]), "{problem}");
            assert!(got[2].as_ref().unwrap_err().contains("not tried"), "{endless}");
            // A mere path needs no child.
            assert_eq!(got[3], Ok(vec![json!(1)]), "{endless}");
        }
    }

    #[test]
    fn checking_shows_the_place() {
        assert_eq!(check(".a | mean", &[], Scope::Closed), Ok(()));
        let error = check(".a | meen", &[], Scope::Closed).unwrap_err().to_string();
        assert!(error.ends_with("line 1, column 6\n  .a | meen\n       ^"), "{error}");
    }
}
