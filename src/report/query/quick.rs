//! One plain path out of many sealed runs, such as `.[].metrics.tasks.mmlu.accuracy`: no tree is built, and jaq is not asked.
//!
//! What is found is what jaq would find (a test compares). Whatever is not usual, a run without a valid seal, a value that is
//! no number or text, a path that leads nowhere, is left to the whole machinery: nothing has been printed by then.

use std::path::{Path as FilePath, PathBuf};

use serde_json::Value;

use super::filter::to_val;
use super::plain::Path;
use super::print::Printer;
use super::{InputMode, Query, source};
use crate::record::run_h5::ManyRuns;

/// So many runs are read faster by one thread than by two.
const RUNS_OF_A_READER: usize = 64;

/// More readers than this gain nothing.
const MOST_READERS: usize = 8;

/// All that the query prints, if it is of this kind and nothing is unusual.
pub(super) fn answer(query: &Query) -> Option<String> {
    let path = path(&query.filter)?;
    if query.input != InputMode::Each {
        return None;
    }
    let runs = source::places(&query.paths, &query.reading).ok()?;
    if !runs.several || !runs.inputs.is_empty() {
        return None;
    }
    let mut text = String::new();
    let mut printer = Printer::new(query.style);
    for value in values(&runs.runs, &path)? {
        text.push_str(&printer.push(&to_val(&value)).ok()?);
    }
    text.push_str(&printer.end());
    Some(text)
}

/// The path below the metrics of every run, in the flat form.
fn path(filter: &str) -> Option<String> {
    let space = [' ', '\t', '\n'];
    let rest = filter.trim_matches(space).strip_prefix(".[]")?;
    let rest = match rest.trim_start_matches(space).strip_prefix('|') {
        // Not `|=`, and not `.[] | .a | f`: a path ends the filter.
        Some(after) => after.trim_start_matches(space),
        None => rest,
    };
    let rest = rest.strip_prefix(".metrics")?;
    match rest.as_bytes().first()? {
        b'.' => Path::parse(rest)?.flat(),
        b'[' => Path::parse(&format!(".{rest}"))?.flat(),
        _ => None,
    }
}

/// The value of every run, in order.
fn values(runs: &[PathBuf], path: &str) -> Option<Vec<Value>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let readers = runs.len().div_ceil(RUNS_OF_A_READER).clamp(1, MOST_READERS.min(cores));
    let share = runs.len().div_ceil(readers).max(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = runs.chunks(share).map(|runs| scope.spawn(|| values_of(runs, path))).collect();
        let joined = readers.into_iter().map(|r| r.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()
    })
    .map(|shares| shares.concat())
}

fn values_of(runs: &[PathBuf], path: &str) -> Option<Vec<Value>> {
    let mut many = ManyRuns::below(&common(runs.first()?, runs.last()?));
    let (mut near, mut nearer) = (0, 0);
    let value = |run: &PathBuf| {
        let vouched = many.vouched(run.parent()?).ok()??;
        let layers = many.layers(run, &vouched.file?).ok()?;
        // What depends on time and place lies over what was found.
        if let Some(over) = layers.environment.leaf_near(path, &mut nearer) {
            return Some(over);
        }
        if layers.environment.touches(path) {
            return None;
        }
        layers.metrics.leaf_near(path, &mut near)
    };
    runs.iter().map(value).collect()
}

/// The deepest directory above both.
fn common(first: &FilePath, last: &FilePath) -> PathBuf {
    first.components().zip(last.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_path_of_every_run() {
        for (filter, expected) in [
            (".[].metrics.a.b", "a.b"),
            (" .[] | .metrics.a[\"b.c\"]\n", "a.b\\.c"),
            (".[]|.metrics[\"a\"][3]", "a[3]"),
            (".[].metrics[\"a\"]", "a"),
        ] {
            assert_eq!(path(filter).as_deref(), Some(expected), "{filter}");
        }
        for filter in [
            ".[].metrics",
            ".[].metrics.",
            ".[].metricsx",
            ".[].key.seed",
            ".[0].metrics.a",
            ".metrics.a",
            ".[].metrics.a | f",
            ".[] |= .metrics.a",
            ".[].metrics[$row.a]",
            ".[] | .metrics.a, .b",
            "..[].metrics.a",
            ".[]?.metrics.a",
            ".[].metrics[]",
            ".[] .metrics.a + 1",
        ] {
            assert_eq!(path(filter), None, "{filter}");
        }
        assert_eq!(common(FilePath::new("/a/b/c/run.h5"), FilePath::new("/a/b/d/run.h5")), FilePath::new("/a/b"));
        assert_eq!(common(FilePath::new("x/run.h5"), FilePath::new("y/run.h5")), FilePath::new(""));
    }
}
