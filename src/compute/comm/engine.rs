//! The thread that owns the library of messages, and moves them while others compute.
//!
//! Work comes through a channel and is answered when it is done. Nothing blocks in the library: the thread tests
//! what is on its way and sleeps between tests, longer each time nothing moved, so that compute on the same core
//! hardly notices that a message is awaited. Somebody who has nothing else to do than wait says so, and is
//! served without long sleeps.
//!
//! Work is cut into *stripes*, one piece of every message; a few stripes are on their way at a time. That bounds
//! the memory of what arrives, and what arrived is added to the own shard while the rest travels. Work of one
//! lane is done in the order in which it came, so all ranks must give it in the same order.
//!
//! After a failure (a rank is gone) no call of the library is made any more, every answer is the failure, and
//! buffers that messages may still refer to are not freed: the process is about to end.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use super::link::Link;
use super::sum::{self, Wire};
use crate::compute::{ComputeError, Result};
use crate::record::exit;

/// Bytes of one message. Small enough that what arrives is added while it is in the cache.
pub(super) const PIECE_BYTES: usize = 512 << 10;

/// Stripes of a lane that are on their way together.
const WINDOW: usize = 6;

/// Tests are this far apart at first, and twice as far each time that nothing moved.
const FIRST_SLEEP: Duration = Duration::from_micros(50);
/// At one a millisecond, waiting took up to 3 % of the core's time on a crowded machine (15 to 20 us a test).
const LAST_SLEEP: Duration = Duration::from_millis(2);
/// While somebody waits: no sleep at all for a while, then short ones.
const EAGER: Duration = Duration::from_micros(150);
const LAST_EAGER_SLEEP: Duration = Duration::from_micros(200);
/// With nothing on its way the library is still called now and then: it may hold a small message back that
/// counts as sent.
const IDLE_SLEEP: Duration = Duration::from_millis(10);

/// Programs start at different times on a busy machine: joining may take this long whatever the deadline.
const LEAST_TO_JOIN: Duration = Duration::from_secs(60);

/// A thread that shows no sign of life this long beyond the deadline hangs inside the library.
const GRACE: Duration = Duration::from_secs(10);

/// Work of one lane is done in order; lanes do not wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// What is waited for at once.
    Messages,
    Gradients,
    Weights,
}

const LANES: [Lane; 3] = [Lane::Messages, Lane::Gradients, Lane::Weights];

impl Lane {
    fn tag(self) -> c_int {
        5 + self as c_int
    }
}

/// Bytes to send to, or room for bytes from, a rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    pub peer: usize,
    pub data: *mut u8,
    pub len: usize,
}

// SAFETY: a region is an address; what may be done with the memory is agreed in `Engine::post`.
unsafe impl Send for Region {}

/// The own shard, to which the other ranks' parts of it are added.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shard {
    pub data: *mut f32,
    /// Elements.
    pub len: usize,
    pub wire: Wire,
}

// SAFETY: as for `Region`.
unsafe impl Send for Shard {}

/// Messages that belong together.
#[derive(Debug)]
pub(super) struct Work {
    pub lane: Lane,
    pub sends: Vec<Region>,
    /// Empty if there is a shard: then every other rank sends as many elements as it has.
    pub receives: Vec<Region>,
    pub shard: Option<Shard>,
}

/// When work was begun and done.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Its first message was posted.
    pub began: Instant,
    /// Its last was complete.
    pub ended: Instant,
}

/// What went over this rank's link, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent to other ranks.
    pub sent: u64,
    /// Received from other ranks.
    pub received: u64,
}

type Answer = std::result::Result<Times, String>;

enum Command {
    Work(Work, SyncSender<Answer>),
    /// Somebody waits: do not sleep long.
    Nudge,
    Close(SyncSender<std::result::Result<(), String>>),
}

#[derive(Debug, Default)]
struct Shared {
    /// Milliseconds since the start at which the thread was seen alive.
    beat: AtomicU64,
    waiting: AtomicUsize,
    sent: AtomicU64,
    received: AtomicU64,
}

/// The end of the thread that others hold.
#[derive(Debug)]
pub(super) struct Engine {
    rank: usize,
    size: usize,
    deadline: Duration,
    began: Instant,
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

/// Work that was given and not yet waited for.
#[derive(Debug)]
pub(super) struct Pending {
    answer: Receiver<Answer>,
}

impl Engine {
    /// Starts the thread, which opens the link.
    pub(super) fn start<L: Link>(
        deadline: Duration,
        open: impl FnOnce() -> Result<L> + Send + 'static,
    ) -> Result<Self> {
        let (commands, inbox) = channel();
        let (ready, opened) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let began = Instant::now();
        let theirs = Arc::clone(&shared);
        let thread = move || {
            wake_on_time();
            match open() {
                Ok(link) => {
                    // The other end waits for this; if it gave up, the process is ending.
                    let _ = ready.send(Ok((link.rank(), link.size())));
                    Thread::new(link, deadline, began, inbox, theirs).run();
                }
                Err(e) => drop(ready.send(Err(e))),
            }
        };
        std::thread::Builder::new().name("messages".to_owned()).spawn(thread).map_err(|e| {
            ComputeError::Failed(format!("cannot start a thread for messages ({e}): raise the limit of processes"))
        })?;
        let joining = deadline.max(LEAST_TO_JOIN);
        let (rank, size) = opened.recv_timeout(joining).map_err(|_| {
            ComputeError::CollectiveTimeout(format!(
                "the ranks did not find each other within {:.0} s: look for a rank that did not start; the next attempt tries again",
                joining.as_secs_f64()
            ))
        })??;
        Ok(Self { rank, size, deadline, began, commands, shared })
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            sent: self.shared.sent.load(Ordering::Relaxed),
            received: self.shared.received.load(Ordering::Relaxed),
        }
    }

    /// Gives work to the thread.
    ///
    /// # Safety
    /// Until [`Self::wait`] has returned `Ok` for it: what is sent stays where it is and unchanged, what is
    /// received into and the own shard stay where they are and are not touched, and none of them overlap. After
    /// an error the memory is never freed while the process runs.
    pub(super) unsafe fn post(&self, work: Work) -> Pending {
        let (done, answer) = sync_channel(1);
        // If the thread has ended, the answer's channel is closed, which `wait` reports.
        let _ = self.commands.send(Command::Work(work, done));
        Pending { answer }
    }

    /// Returns when the work is done.
    pub(super) fn wait(&self, pending: &Pending) -> Result<Times> {
        self.listen(&pending.answer)?.map_err(ComputeError::CollectiveTimeout)
    }

    /// Leaves the ranks in order, when all work is done.
    pub(super) fn close(self) -> Result<()> {
        let (done, answer) = sync_channel(1);
        let _ = self.commands.send(Command::Close(done));
        self.listen(&answer)?.map_err(ComputeError::CollectiveTimeout)
    }

    fn listen<T>(&self, answer: &Receiver<T>) -> Result<T> {
        if let Ok(value) = answer.try_recv() {
            return Ok(value);
        }
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let _ = self.commands.send(Command::Nudge);
        let received = loop {
            match answer.recv_timeout(Duration::from_secs(1)) {
                Ok(value) => break Ok(value),
                Err(RecvTimeoutError::Disconnected) => break Err(thread_is_gone()),
                Err(RecvTimeoutError::Timeout) => self.check_alive(),
            }
        };
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        received
    }

    /// Ends the process if the thread hangs inside the library: it may still write to memory that is lent to it,
    /// so nobody may go on; and it may hold what an orderly end would wait for.
    fn check_alive(&self) {
        let beat = Duration::from_millis(self.shared.beat.load(Ordering::Relaxed));
        if self.began.elapsed().saturating_sub(beat) > self.deadline + GRACE {
            eprintln!(
                "rank {} of {} hangs inside the library of messages: another rank is gone; the next attempt goes on from the last checkpoint",
                self.rank, self.size
            );
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(c_int::from(exit::COLLECTIVE_TIMEOUT)) };
        }
    }
}

fn thread_is_gone() -> ComputeError {
    ComputeError::CollectiveTimeout("the thread that moves messages is gone: report this".to_owned())
}

/// Sleeps of tens of microseconds would otherwise end 50 us late.
fn wake_on_time() {
    #[cfg(target_os = "linux")]
    // SAFETY: changes how exactly this thread's sleeps end.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1000u64);
    }
}

/// Work with what of it is begun and done.
struct Job {
    work: Work,
    answer: SyncSender<Answer>,
    began: Option<Instant>,
    stripes: usize,
    next: usize,
    open: usize,
}

impl Job {
    fn new(work: Work, answer: SyncSender<Answer>) -> Self {
        let longest = match &work.shard {
            // Alone there is nothing to add.
            Some(_) if work.sends.is_empty() => 0,
            // The wire's pieces hold as many elements whatever their type.
            Some(shard) => shard.len * size_of::<f32>(),
            None => work.sends.iter().chain(&work.receives).map(|r| r.len).max().unwrap_or(0),
        };
        Self { work, answer, began: None, stripes: longest.div_ceil(PIECE_BYTES), next: 0, open: 0 }
    }

    fn is_done(&self) -> bool {
        self.next == self.stripes && self.open == 0
    }
}

/// A stripe on its way.
struct Flight {
    lane: usize,
    /// Number of the job in its lane, from the start of the thread.
    job: u64,
    sends: usize,
    receives: usize,
    /// The elements of the own shard that are added to.
    target: Option<(Shard, std::ops::Range<usize>)>,
    /// What arrives for them, rank after rank without the own.
    inbox: Vec<f32>,
    /// What is sent, if it is not sent as it lies.
    outbox: Vec<u16>,
}

/// The jobs of a lane, from number `first`.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    first: u64,
    /// Stripes on their way.
    open: usize,
}

struct Thread<L: Link> {
    link: L,
    deadline: Duration,
    began: Instant,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    queues: [Queue; 3],
    requests: Vec<L::Request>,
    /// For each request: its flight, and whether it receives.
    owners: Vec<(usize, bool)>,
    flights: Vec<Option<Flight>>,
    done: Vec<usize>,
    spare: Vec<Vec<f32>>,
    closing: Option<SyncSender<std::result::Result<(), String>>>,
}

enum Next {
    Go,
    /// Everybody who could send work is gone.
    Leave,
}

impl<L: Link> Thread<L> {
    fn new(link: L, deadline: Duration, began: Instant, commands: Receiver<Command>, shared: Arc<Shared>) -> Self {
        Self {
            link,
            deadline,
            began,
            commands,
            shared,
            queues: Default::default(),
            requests: Vec::new(),
            owners: Vec::new(),
            flights: Vec::new(),
            done: Vec::new(),
            spare: Vec::new(),
            closing: None,
        }
    }

    fn run(mut self) {
        match self.serve() {
            Ok(()) => {
                let Some(closing) = self.closing.take() else {
                    // Nobody is left who could wait; a message may still refer to the buffers.
                    std::mem::forget(self);
                    return;
                };
                let left = self.link.close().map_err(|e| e.to_string());
                let _ = closing.send(left);
            }
            Err(e) => self.refuse(&e.to_string()),
        }
    }

    /// Moves messages until it is told to close.
    fn serve(&mut self) -> Result<()> {
        let mut moved = Instant::now();
        let mut sleep = FIRST_SLEEP;
        loop {
            self.shared.beat.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
            while let Ok(command) = self.commands.try_recv() {
                self.take(command);
            }
            if self.start_stripes()? {
                (moved, sleep) = (Instant::now(), FIRST_SLEEP);
            }
            let mut done = std::mem::take(&mut self.done);
            self.link.test(&mut self.requests, &mut done)?;
            let any = !done.is_empty();
            self.complete(&mut done);
            self.done = done;
            if any {
                (moved, sleep) = (Instant::now(), FIRST_SLEEP);
                continue;
            }
            if self.requests.is_empty() {
                if self.closing.is_some() && self.queues.iter().all(|q| q.jobs.is_empty()) {
                    return Ok(());
                }
                moved = Instant::now();
                if let Next::Leave = self.rest(IDLE_SLEEP) {
                    return Ok(());
                }
                continue;
            }
            if moved.elapsed() > self.deadline {
                return Err(ComputeError::CollectiveTimeout(format!(
                    "rank {} of {} waited {:.0} s for another rank, which is gone or hangs: look for its message in the log; the next attempt goes on from the last checkpoint",
                    self.link.rank(),
                    self.link.size(),
                    self.deadline.as_secs_f64()
                )));
            }
            let awaited = self.shared.waiting.load(Ordering::Relaxed) > 0;
            if awaited && moved.elapsed() < EAGER {
                std::thread::yield_now();
                continue;
            }
            if let Next::Leave = self.rest(if awaited { sleep.min(LAST_EAGER_SLEEP) } else { sleep }) {
                return Ok(());
            }
            sleep = (sleep * 2).min(LAST_SLEEP);
        }
    }

    /// Sleeps, or takes a command.
    fn rest(&mut self, time: Duration) -> Next {
        match self.commands.recv_timeout(time) {
            Ok(command) => {
                self.take(command);
                Next::Go
            }
            Err(RecvTimeoutError::Timeout) => Next::Go,
            Err(RecvTimeoutError::Disconnected) => Next::Leave,
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Work(work, answer) => {
                let lane = work.lane as usize;
                self.queues[lane].jobs.push_back(Job::new(work, answer));
                // Work without a message is done when its turn comes.
                self.retire(lane);
            }
            Command::Nudge => {}
            Command::Close(answer) => self.closing = Some(answer),
        }
    }

    /// Begins as many stripes as the windows allow.
    fn start_stripes(&mut self) -> Result<bool> {
        let mut any = false;
        for lane in LANES {
            while self.queues[lane as usize].open < WINDOW {
                let queue = &self.queues[lane as usize];
                let Some(index) = queue.jobs.iter().position(|job| job.next < job.stripes) else { break };
                self.start_stripe(lane, index)?;
                any = true;
            }
        }
        Ok(any)
    }

    fn start_stripe(&mut self, lane: Lane, index: usize) -> Result<()> {
        let queue = &mut self.queues[lane as usize];
        let number = queue.first + index as u64;
        let job = &mut queue.jobs[index];
        let stripe = job.next;
        job.next += 1;
        job.open += 1;
        job.began.get_or_insert_with(Instant::now);
        queue.open += 1;
        let slot = self.flights.iter().position(Option::is_none).unwrap_or_else(|| {
            self.flights.push(None);
            self.flights.len() - 1
        });
        let mut flight = Flight {
            lane: lane as usize,
            job: number,
            sends: 0,
            receives: 0,
            target: None,
            inbox: Vec::new(),
            outbox: Vec::new(),
        };
        let mut receives = Vec::new();
        let mut sends = Vec::new();
        if let Some(shard) = job.work.shard {
            let per_piece = PIECE_BYTES / size_of::<f32>();
            let range = stripe * per_piece..((stripe + 1) * per_piece).min(shard.len);
            let (rank, size) = (self.link.rank(), self.link.size());
            let piece = shard.wire.bytes(range.len());
            flight.inbox = self.spare.pop().unwrap_or_default();
            flight.inbox.resize((size - 1) * range.len(), 0.0);
            let room = flight.inbox.as_mut_ptr().cast::<u8>();
            for (k, peer) in (0..size).filter(|&p| p != rank).enumerate() {
                // SAFETY: the inbox has a piece of fp32, the longest wire, for each other rank.
                receives.push(Region { peer, data: unsafe { room.add(k * piece) }, len: piece });
            }
            if shard.wire == Wire::Bf16 {
                flight.outbox.resize(job.work.sends.len() * range.len(), 0);
            }
            for (k, region) in job.work.sends.iter().enumerate() {
                // SAFETY: every region to send is as long as the shard, and lent until the job is done.
                let data = unsafe { region.data.cast::<f32>().add(range.start) };
                let data = match shard.wire {
                    Wire::Fp32 => data.cast::<u8>(),
                    Wire::Bf16 => {
                        let out = &mut flight.outbox[k * range.len()..(k + 1) * range.len()];
                        // SAFETY: as above.
                        sum::to_bf16(unsafe { std::slice::from_raw_parts(data, range.len()) }, out);
                        out.as_mut_ptr().cast::<u8>()
                    }
                };
                sends.push(Region { peer: region.peer, data, len: piece });
            }
            flight.target = Some((shard, range));
        } else {
            let piece = |region: &Region| {
                let from = (stripe * PIECE_BYTES).min(region.len);
                let to = (from + PIECE_BYTES).min(region.len);
                // SAFETY: within the region.
                (to > from).then(|| Region {
                    peer: region.peer,
                    data: unsafe { region.data.add(from) },
                    len: to - from,
                })
            };
            receives.extend(job.work.receives.iter().filter_map(piece));
            sends.extend(job.work.sends.iter().filter_map(piece));
        }
        flight.receives = receives.len();
        flight.sends = sends.len();
        // In its slot before anything is posted: should that fail, its buffers are kept.
        self.flights[slot] = Some(flight);
        for region in receives {
            // SAFETY: inside a region that `post`'s caller lent, or in the flight's inbox, whose heap memory
            // stays where it is until the flight is complete.
            let request = unsafe { self.link.receive(region.peer, lane.tag(), region.data, region.len) }?;
            self.requests.push(request);
            self.owners.push((slot, true));
            self.shared.received.fetch_add(region.len as u64, Ordering::Relaxed);
        }
        for region in sends {
            // SAFETY: as above; the outbox is not written again.
            let request = unsafe { self.link.send(region.peer, lane.tag(), region.data, region.len) }?;
            self.requests.push(request);
            self.owners.push((slot, false));
            self.shared.sent.fetch_add(region.len as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes note of complete requests: adds what arrived, answers for what is done.
    fn complete(&mut self, done: &mut [usize]) {
        // From the back, so that what is swapped into a place was looked at already.
        done.sort_unstable_by(|a, b| b.cmp(a));
        for &index in done.iter() {
            drop(self.requests.swap_remove(index));
            let (slot, receives) = self.owners.swap_remove(index);
            let Some(flight) = &mut self.flights[slot] else { continue };
            if receives {
                flight.receives -= 1;
                if flight.receives == 0 {
                    if let Some((shard, range)) = flight.target.take() {
                        // SAFETY: the shard is lent for writing until the job is done, the range is inside it,
                        // and regions do not overlap.
                        let own = unsafe { std::slice::from_raw_parts_mut(shard.data.add(range.start), range.len()) };
                        sum::add(self.link.rank(), own, &flight.inbox, shard.wire);
                    }
                }
            } else {
                flight.sends -= 1;
            }
            if flight.sends == 0 && flight.receives == 0 {
                let (lane, job) = (flight.lane, flight.job);
                if let Some(flight) = self.flights[slot].take() {
                    if flight.inbox.capacity() > 0 {
                        self.spare.push(flight.inbox);
                    }
                }
                let queue = &mut self.queues[lane];
                queue.open -= 1;
                queue.jobs[(job - queue.first) as usize].open -= 1;
                self.retire(lane);
            }
        }
    }

    /// Answers for the jobs at the head of a lane that are done.
    fn retire(&mut self, lane: usize) {
        let queue = &mut self.queues[lane];
        while queue.jobs.front().is_some_and(Job::is_done) {
            if let Some(job) = queue.jobs.pop_front() {
                queue.first += 1;
                let ended = Instant::now();
                // Somebody who does not want to know has dropped the other end.
                let _ = job.answer.send(Ok(Times { began: job.began.unwrap_or(ended), ended }));
            }
        }
    }

    /// Answers everything with a failure, until nobody asks any more.
    fn refuse(self, failure: &str) {
        let Self { link, queues, requests, flights, commands, shared, began, closing, .. } = self;
        // A message may still refer to them.
        std::mem::forget((link, requests, flights));
        for job in queues.into_iter().flat_map(|q| q.jobs) {
            let _ = job.answer.send(Err(failure.to_owned()));
        }
        if let Some(closing) = closing {
            let _ = closing.send(Err(failure.to_owned()));
        }
        loop {
            shared.beat.store(began.elapsed().as_millis() as u64, Ordering::Relaxed);
            match commands.recv_timeout(Duration::from_secs(1)) {
                Ok(Command::Work(_, answer)) => drop(answer.send(Err(failure.to_owned()))),
                Ok(Command::Close(answer)) => drop(answer.send(Err(failure.to_owned()))),
                Ok(Command::Nudge) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
