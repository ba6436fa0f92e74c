//! A few threads that run one function together.
//!
//! They live as long as the pool, so that a kernel starts within microseconds. The pool gives work no order and
//! adds nothing up: a kernel that uses it splits its results, never a sum.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Threads, the caller's own among them.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One function at a time.
    running: Mutex<()>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    begun: Condvar,
    done: Condvar,
    /// Rounds begun, as in `state`: looked at without the lock by workers that wait for more.
    round: AtomicUsize,
    /// Workers that are not done, as in `state`: looked at without the lock by the caller.
    left: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    work: Option<Work>,
    round: usize,
    left: usize,
    panicked: bool,
    ends: bool,
}

/// The caller's function; it outlives the round, for the caller waits.
#[derive(Clone, Copy)]
struct Work(*const (dyn Fn(usize) + Sync));

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Work")
    }
}

// SAFETY: the function is `Sync`, so that many threads may call it.
unsafe impl Send for Work {}

/// Looks at the next round before a worker sleeps, and at the workers before the caller does: some microseconds.
const LOOKS: usize = 2000;

impl Pool {
    /// The caller's thread alone.
    pub fn alone() -> Self {
        Self { shared: Arc::default(), workers: Vec::new(), running: Mutex::new(()) }
    }

    /// `threads` in all; 0 counts as 1, which starts none.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let mut pool = Self::alone();
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("kernel-{index}"));
            pool.workers.push(thread.spawn(move || work(&shared, index))?);
        }
        Ok(pool)
    }

    /// How many threads run a function.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(0)`, ..., `f(threads - 1)` at once, the first here, and returns when all have.
    ///
    /// # Panics
    /// If one of them does.
    pub fn run(&self, f: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return f(0);
        }
        let _alone = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: only the lifetime is dropped; no worker touches the function after `left` is 0, for which this
        // call waits even if its own part panics.
        let work =
            Work(unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(f) });
        {
            let mut state = lock(&self.shared.state);
            state.work = Some(work);
            state.left = self.workers.len();
            self.shared.left.store(state.left, Ordering::Release);
            state.round += 1;
            self.shared.round.store(state.round, Ordering::Release);
            self.shared.begun.notify_all();
        }
        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        // Parts are nearly equal: going to sleep would take longer than the others still need.
        for _ in 0..LOOKS {
            if self.shared.left.load(Ordering::Acquire) == 0 {
                break;
            }
            std::hint::spin_loop();
        }
        let mut state = lock(&self.shared.state);
        while state.left > 0 {
            state = self.shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.work = None;
        let panicked = std::mem::take(&mut state.panicked);
        drop(state);
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        assert!(!panicked, "a thread of the pool panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.ends = true;
        state.round += 1;
        self.shared.round.store(state.round, Ordering::Release);
        drop(state);
        self.shared.begun.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches panics of the work; there is nothing to learn from it here.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        for _ in 0..LOOKS {
            if shared.round.load(Ordering::Acquire) != seen {
                break;
            }
            std::hint::spin_loop();
        }
        let mut state = lock(&shared.state);
        while state.round == seen {
            state = shared.begun.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        seen = state.round;
        if state.ends {
            return;
        }
        let Some(work) = state.work else { continue };
        drop(state);
        // SAFETY: the caller waits until `left` is 0, so its function is alive.
        let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*work.0)(index) }));
        let mut state = lock(&shared.state);
        state.panicked |= outcome.is_err();
        state.left -= 1;
        shared.left.store(state.left, Ordering::Release);
        if state.left == 0 {
            shared.done.notify_all();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_once_a_round() {
        for threads in [0, 1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads.max(1));
            let counts: Vec<AtomicUsize> = (0..pool.threads()).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..200 {
                pool.run(&|index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == round));
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..3 {
            let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(&|index| assert_ne!(index, bad))));
            assert!(outcome.is_err());
            pool.run(&|_| ());
        }
    }
}
