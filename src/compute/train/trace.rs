//! What happened when, in the format of Chrome's trace viewer (`chrome://tracing`, Perfetto): one process a rank,
//! one track a thread, and one track for each group's gradients and weights on their way. Off, a span costs a
//! test of a pointer.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::compute::comm::Comm;
use crate::compute::{ComputeError, Result};
use crate::record::files;

/// Events that are kept; later ones are counted only.
const MOST_EVENTS: usize = 1 << 20;

/// Tracks of groups on their way begin here; threads have smaller numbers.
const FIRST_GROUP_TRACK: u32 = 1000;

/// Where spans go; nowhere by default. Clones write to the same place.
#[derive(Debug, Clone, Default)]
pub struct Trace(Option<Arc<Recorder>>);

#[derive(Debug)]
struct Recorder {
    began: Instant,
    /// The same moment on the clock that ranks share, microseconds.
    began_us: f64,
    events: Mutex<Events>,
}

#[derive(Debug, Default)]
struct Events {
    list: Vec<Event>,
    lost: u64,
    /// Names of threads' tracks.
    threads: Vec<(u32, String)>,
}

#[derive(Debug, Clone, Copy)]
struct Event {
    name: &'static str,
    group: Option<usize>,
    track: u32,
    began: Instant,
    ended: Instant,
}

thread_local! {
    static TRACK: Cell<u32> = const { Cell::new(0) };
}

static TRACKS: AtomicU32 = AtomicU32::new(1);

/// Records the time from its making to its end.
#[derive(Debug)]
#[must_use = "a span ends when it is dropped"]
pub struct Span<'a> {
    recorder: Option<(&'a Recorder, Instant)>,
    name: &'static str,
    group: Option<usize>,
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        if let Some((recorder, began)) = self.recorder {
            let event =
                Event { name: self.name, group: self.group, track: recorder.track(), began, ended: Instant::now() };
            recorder.push(event);
        }
    }
}

impl Recorder {
    fn push(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.list.len() < MOST_EVENTS {
            events.list.push(event);
        } else {
            events.lost += 1;
        }
    }

    /// The number of this thread.
    fn track(&self) -> u32 {
        TRACK.with(|track| {
            if track.get() == 0 {
                track.set(TRACKS.fetch_add(1, Ordering::Relaxed));
            }
            let number = track.get();
            let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            if events.threads.iter().all(|(n, _)| *n != number) {
                let name = std::thread::current().name().unwrap_or("thread").to_owned();
                events.threads.push((number, name));
            }
            number
        })
    }
}

impl Trace {
    /// Records from now on.
    pub fn on() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(Some(Arc::new(Recorder {
            began: Instant::now(),
            began_us: since_1970.as_secs_f64() * 1e6,
            events: Mutex::default(),
        })))
    }

    /// True if something is recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins what this thread now does, with the group that it is about.
    pub fn span(&self, name: &'static str, group: Option<usize>) -> Span<'_> {
        Span { recorder: self.0.as_deref().map(|r| (r, Instant::now())), name, group }
    }

    /// A group that was on its way.
    pub fn travelled(&self, name: &'static str, group: usize, began: Instant, ended: Instant) {
        if let Some(recorder) = &self.0 {
            let track = FIRST_GROUP_TRACK.saturating_add(group as u32);
            recorder.push(Event { name, group: Some(group), track, began, ended });
        }
    }

    /// All events so far, as process `rank`.
    pub fn events(&self, rank: usize) -> Vec<Value> {
        let Some(recorder) = &self.0 else { return Vec::new() };
        let events = recorder.events.lock().unwrap_or_else(PoisonError::into_inner);
        let name = |kind: &str, track: u32, name: String| json!({"name": kind, "ph": "M", "pid": rank, "tid": track, "args": {"name": name}});
        let mut all = vec![name("process_name", 0, format!("rank {rank}"))];
        all.extend(events.threads.iter().map(|(track, thread)| name("thread_name", *track, thread.clone())));
        let mut groups: Vec<u32> = events.list.iter().map(|e| e.track).filter(|t| *t >= FIRST_GROUP_TRACK).collect();
        groups.sort_unstable();
        groups.dedup();
        all.extend(
            groups.iter().map(|t| name("thread_name", *t, format!("group {} on its way", t - FIRST_GROUP_TRACK))),
        );
        for event in &events.list {
            let at = |time: Instant| time.saturating_duration_since(recorder.began).as_secs_f64() * 1e6;
            let mut value = json!({
                "name": event.name, "ph": "X", "pid": rank, "tid": event.track,
                "ts": recorder.began_us + at(event.began), "dur": at(event.ended) - at(event.began),
            });
            if let Some(group) = event.group {
                value["args"] = json!({"group": group});
            }
            all.push(value);
        }
        if events.lost > 0 {
            all.push(json!({"name": format!("{} later events were not kept", events.lost), "ph": "i", "s": "g",
                "pid": rank, "tid": 0, "ts": recorder.began_us}));
        }
        all
    }

    /// Writes all ranks' events to one file, from rank 0. All ranks call; without a trace nothing happens.
    ///
    /// # Errors
    /// A rank is gone, or the file cannot be written.
    pub fn write(&self, comm: &Comm, path: &Path) -> Result<()> {
        if !self.is_on() {
            return Ok(());
        }
        let text = serde_json::to_vec(&self.events(comm.rank()))
            .map_err(|e| ComputeError::Failed(format!("the trace cannot be written as JSON ({e}): report this")))?;
        let mut all = Vec::new();
        for (rank, text) in comm.collect(&text)?.into_iter().enumerate() {
            let events: Vec<Value> = serde_json::from_slice(&text).map_err(|e| {
                ComputeError::Failed(format!("rank {rank} sent a trace that is no JSON ({e}): report this"))
            })?;
            all.extend(events);
        }
        if comm.is_first() {
            files::write_json(path, &json!({"displayTimeUnit": "ms", "traceEvents": all}))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ranks_write_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        let comms = Comm::in_process(2, Duration::from_secs(20), 5).unwrap();
        std::thread::scope(|scope| {
            for comm in &comms {
                let path = &path;
                scope.spawn(move || {
                    let trace = Trace::on();
                    {
                        let _outer = trace.span("backward", None);
                        let _inner = trace.span("block", Some(comm.rank()));
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    let began = Instant::now();
                    trace.travelled("gradient", 3, began, began + Duration::from_millis(1));
                    trace.write(comm, path).unwrap();
                });
            }
        });
        let written: Value = files::read_json(&path).unwrap();
        let events = written["traceEvents"].as_array().unwrap();
        let spans = |rank: u64, name: &str| -> Vec<&Value> {
            events.iter().filter(|e| e["ph"] == "X" && e["pid"] == rank && e["name"] == name).collect()
        };
        for rank in 0..2 {
            let (outer, inner) = (spans(rank, "backward"), spans(rank, "block"));
            assert_eq!((outer.len(), inner.len(), spans(rank, "gradient").len()), (1, 1, 1));
            assert_eq!(inner[0]["args"]["group"], rank);
            let time = |e: &Value| (e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap());
            let ((o, od), (i, id)) = (time(outer[0]), time(inner[0]));
            assert!(id >= 2000.0 && o <= i && o + od >= i + id, "{outer:?} {inner:?}");
            assert_eq!(spans(rank, "gradient")[0]["tid"], 1003);
        }
        assert!(events.iter().any(|e| e["name"] == "thread_name" && e["args"]["name"] == "group 3 on its way"));
    }

    #[test]
    fn off_is_nothing() {
        let trace = Trace::default();
        drop(trace.span("x", None));
        trace.travelled("x", 0, Instant::now(), Instant::now());
        assert!(trace.events(0).is_empty());
        trace.write(&Comm::Solo, Path::new("/nonexistent/trace.json")).unwrap();
    }
}
