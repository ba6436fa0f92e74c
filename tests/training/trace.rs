//! `--trace`: what every rank did when; that a group's gradient travels while the next group's backward runs.

use super::*;

/// An event of a Chrome trace.
#[derive(Debug)]
struct Event {
    name: String,
    rank: u64,
    track: u64,
    group: Option<u64>,
    began: f64,
    ended: f64,
}

fn events(path: &Path) -> Vec<Event> {
    let trace: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let of = |e: &Value| Event {
        name: e["name"].as_str().unwrap().to_owned(),
        rank: e["pid"].as_u64().unwrap(),
        track: e["tid"].as_u64().unwrap(),
        group: e["args"]["group"].as_u64(),
        began: e["ts"].as_f64().unwrap(),
        ended: e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap(),
    };
    trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").map(of).collect()
}

/// Pairs of a gradient on its way and a backward of a later group at the same time on the same rank.
fn overlaps(events: &[Event]) -> usize {
    let backward = |e: &&Event| e.name == "backward";
    let travels = |e: &&Event| e.name == "gradient";
    events
        .iter()
        .filter(travels)
        .map(|g| {
            let meanwhile =
                |b: &&Event| b.rank == g.rank && b.group < g.group && b.began < g.ended && g.began < b.ended;
            events.iter().filter(backward).filter(meanwhile).count()
        })
        .sum()
}

#[cfg(feature = "mpi")]
#[test]
fn a_gradient_travels_while_the_next_backward_runs_and_the_trace_shows_it() {
    for (overlap, expected) in [(true, true), (false, false)] {
        let work = Workspace::new();
        let (cell, run_dir) = work.baseline(json!({"max_steps": 8, "overlap": overlap}));
        let path = run_dir.join("trace.json");
        let mut command = ranks(2, &cell, 1);
        command.env("SEEDBED_TRACE", &path);
        succeed(command);
        let events = events(&path);
        for rank in 0..2 {
            for name in ["forward", "backward", "gather", "update", "validate", "gradient", "weights"] {
                assert!(events.iter().any(|e| e.rank == rank && e.name == name), "{name} on rank {rank}");
            }
        }
        // embed, two blocks, head: every group's gradient travels in each of 8 steps on both ranks.
        assert_eq!(events.iter().filter(|e| e.name == "gradient").count(), 4 * 8 * 2);
        assert!(events.iter().all(|e| e.ended >= e.began));
        // What one thread does, it does one after the other (times are microseconds since 1970, in f64: quarters).
        let mut own: Vec<&Event> =
            events.iter().filter(|e| e.rank == 0 && matches!(e.name.as_str(), "forward" | "backward")).collect();
        own.sort_by(|a, b| a.began.total_cmp(&b.began));
        assert!(own.windows(2).all(|w| w[0].track == w[1].track && w[0].ended <= w[1].began + 1.0));
        assert_eq!(overlaps(&events) > 0, expected, "overlap = {overlap}");
    }
}
