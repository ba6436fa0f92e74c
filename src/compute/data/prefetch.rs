//! Grains ahead of time: one thread prepares what a rank asks for next, while the rank computes.
//!
//! The thread is an expectation, not a source of truth: what it prepared is used only where it is what was
//! asked for, else the grain is made on the spot. No result depends on it, only time does.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::compute::model::Batch;

use super::TrainingGrains;

/// A grain by its step and its number in the step.
type At = (u64, u64);

/// The grains of one rank, some of them ready before they are asked for.
#[derive(Debug)]
pub struct Feed {
    grains: Arc<TrainingGrains>,
    /// What the thread prepares; absent without one.
    ready: Option<Receiver<(At, Batch)>>,
    /// Taken from the queue, and not yet asked for.
    front: Option<(At, Batch)>,
    thread: Option<JoinHandle<()>>,
}

impl Feed {
    /// Prepares the grains `mine` of the steps `steps`, in that order, at most `ahead` before they are asked
    /// for; with 0, or where no thread can be had, every grain is made when it is asked for.
    pub fn start(
        grains: Arc<TrainingGrains>,
        mine: std::ops::Range<u64>,
        steps: std::ops::Range<u64>,
        ahead: usize,
    ) -> Self {
        let mut feed = Self { grains, ready: None, front: None, thread: None };
        if ahead == 0 {
            return feed;
        }
        // One more is ready in the thread's hands.
        let (send, receive) = sync_channel(ahead - 1);
        let source = feed.grains.clone();
        let work = move || {
            for at in steps.flat_map(|step| mine.clone().map(move |grain| (step, grain))) {
                if send.send((at, source.batch(at.0, at.1))).is_err() {
                    return;
                }
            }
        };
        if let Ok(thread) = std::thread::Builder::new().name("prefetch".to_owned()).spawn(work) {
            feed.ready = Some(receive);
            feed.thread = Some(thread);
        }
        feed
    }

    /// What the grains are made of.
    pub fn grains(&self) -> &TrainingGrains {
        &self.grains
    }

    /// Grain `grain` of step `step`.
    pub fn grain(&mut self, step: u64, grain: u64) -> Batch {
        let asked = (step, grain);
        loop {
            if self.front.is_none() {
                self.front = self.ready.as_ref().and_then(|ready| ready.recv().ok());
            }
            match self.front.take() {
                Some((at, batch)) if at == asked => return batch,
                // Passed over: it will not be asked for any more.
                Some((at, _)) if at < asked => {}
                // Not prepared: asked for again, or another rank's.
                later => {
                    self.front = later;
                    return self.grains.batch(step, grain);
                }
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // Without a receiver the thread's next send fails, and it ends.
        self.ready = None;
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::data::LastBatch;
    use crate::compute::data::grains::tests::course;

    #[test]
    fn whatever_is_asked_for_is_what_the_grains_are() {
        let grains = Arc::new(course(4, 1, LastBatch::Pad));
        // In order; with gaps; twice; backwards; beyond the end.
        let asked: [&[At]; 5] = [
            &[(2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 2), (5, 1)],
            &[(2, 2), (4, 1), (5, 2)],
            &[(2, 1), (2, 1), (2, 2), (2, 2), (3, 1)],
            &[(3, 2), (2, 1), (3, 1), (4, 1)],
            &[(9, 1), (2, 1), (9, 2), (0, 3)],
        ];
        for ahead in [0, 1, 2, 64] {
            for asked in asked {
                let mut feed = Feed::start(grains.clone(), 1..3, 2..6, ahead);
                for &(step, grain) in asked {
                    assert_eq!(feed.grain(step, grain), grains.batch(step, grain), "{step} {grain} ahead {ahead}");
                }
            }
        }
    }

    #[test]
    fn the_thread_runs_ahead_as_far_as_it_may_and_ends_with_its_feed() {
        let mut feed = Feed::start(Arc::new(course(4, 1, LastBatch::Pad)), 0..4, 0..1000, 3);
        feed.grain(0, 0);
        // What was asked for came from the queue, and more is on its way.
        let ready = feed.ready.as_ref().unwrap().recv().unwrap();
        assert_eq!(ready.0, (0, 1));
        drop(ready);
        assert!(!feed.thread.as_ref().unwrap().is_finished(), "it waits: 4000 grains do not fit the queue");
        // Ends although the thread waits for room.
        drop(feed);
    }
}
