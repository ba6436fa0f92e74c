//! `[retry]`: when a cell is tried again, and when it is given up.

use super::problem::Sink;
use super::section::Section;
use super::{Retry, quantity};

/// Keys of `[retry]`.
const KEYS: &[&str] = &[
    "without_progress",
    "out_of_memory",
    "memory_factor",
    "max_mem",
    "time_out",
    "time_factor",
    "max_time",
    "node_failure",
    "killed",
];

/// Reads the section of the file; what it does not say is as preset.
pub(super) fn read(top: &Section<'_>, sink: &mut Sink) -> Retry {
    let preset = Retry::default();
    let Some((table, at)) = top.table("retry", sink) else { return preset };
    let own = Section::new(table, at, "[retry]", KEYS, sink);
    let mut count = |key: &str, least: i64, preset: u32| {
        own.integer(key, least..=1000, sink).and_then(|n| u32::try_from(n).ok()).unwrap_or(preset)
    };
    let without_progress = count("without_progress", 1, preset.without_progress);
    let out_of_memory = count("out_of_memory", 0, preset.out_of_memory);
    let time_out = count("time_out", 0, preset.time_out);
    let node_failure = count("node_failure", 0, preset.node_failure);
    let killed = count("killed", 0, preset.killed);
    let mut factor = |key: &str, preset: f64| match own.amount(key, sink) {
        Some(factor) if factor > 1.0 && factor <= 100.0 => factor,
        Some(factor) => {
            let message = format!("`{key}` in [retry] must be above 1 and at most 100, not {factor}");
            sink.push(&own.place(key), message, "");
            preset
        }
        None => preset,
    };
    let memory_factor = factor("memory_factor", preset.memory_factor);
    let time_factor = factor("time_factor", preset.time_factor);
    Retry {
        without_progress,
        out_of_memory,
        memory_factor,
        max_mem_bytes: own.parsed("max_mem", quantity::bytes, sink),
        time_out,
        time_factor,
        max_time_s: own.parsed("max_time", quantity::time_s, sink),
        node_failure,
        killed,
    }
}
