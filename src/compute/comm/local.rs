//! Ranks that are threads of one process, for tests that need many of them: messages arrive late, in another
//! order between different pairs of ranks, and are copied only on arrival, so that whoever changes a buffer too
//! early is found out.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::link::Link;
use crate::compute::{ComputeError, Result};

/// A message that was posted at one end.
struct Posted {
    data: *mut u8,
    len: usize,
    done: Arc<AtomicBool>,
}

// SAFETY: an address; it is lent until `done`.
unsafe impl Send for Posted {}

#[derive(Default)]
struct Post {
    sends: VecDeque<Posted>,
    receives: VecDeque<Posted>,
}

/// What lies between all ranks: (from, to, tag) to what was posted.
#[derive(Default)]
pub(super) struct Switchboard {
    posts: Mutex<HashMap<(usize, usize, c_int), Post>>,
}

impl Switchboard {
    fn posts(&self) -> MutexGuard<'_, HashMap<(usize, usize, c_int), Post>> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One rank's end.
pub(super) struct Local {
    board: Arc<Switchboard>,
    rank: usize,
    size: usize,
    /// State of the delays.
    chance: u64,
}

impl Local {
    pub(super) fn new(board: Arc<Switchboard>, rank: usize, size: usize, seed: u64) -> Self {
        Self { board, rank, size, chance: seed ^ (rank as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    fn heads(&mut self) -> bool {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.chance >> 62 != 0
    }

    fn post(&self, from: usize, to: usize, tag: c_int, data: *mut u8, len: usize) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        let posted = Posted { data, len, done: Arc::clone(&done) };
        let mut posts = self.board.posts();
        let post = posts.entry((from, to, tag)).or_default();
        let queue = if from == self.rank { &mut post.sends } else { &mut post.receives };
        queue.push_back(posted);
        done
    }
}

impl Link for Local {
    type Request = Arc<AtomicBool>;

    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    unsafe fn send(&mut self, peer: usize, tag: c_int, data: *const u8, len: usize) -> Result<Self::Request> {
        Ok(self.post(self.rank, peer, tag, data.cast_mut(), len))
    }

    unsafe fn receive(&mut self, peer: usize, tag: c_int, data: *mut u8, len: usize) -> Result<Self::Request> {
        Ok(self.post(peer, self.rank, tag, data, len))
    }

    fn test(&mut self, requests: &mut [Self::Request], done: &mut Vec<usize>) -> Result<()> {
        done.clear();
        let board = Arc::clone(&self.board);
        for (&(_, to, _), post) in board.posts().iter_mut() {
            if to != self.rank {
                continue;
            }
            while !post.sends.is_empty() && !post.receives.is_empty() && self.heads() {
                let (Some(send), Some(receive)) = (post.sends.pop_front(), post.receives.pop_front()) else { break };
                if send.len != receive.len {
                    return Err(ComputeError::Failed(format!(
                        "a message of {} bytes meets room for {}: the ranks do not call in the same order",
                        send.len, receive.len
                    )));
                }
                // SAFETY: both are lent until they are done, and no two ranks share memory.
                unsafe { std::ptr::copy_nonoverlapping(send.data, receive.data, send.len) };
                send.done.store(true, Ordering::Release);
                receive.done.store(true, Ordering::Release);
            }
        }
        done.extend(requests.iter().enumerate().filter(|(_, r)| r.load(Ordering::Acquire)).map(|(i, _)| i));
        Ok(())
    }

    fn close(self) -> Result<()> {
        Ok(())
    }
}
