//! Filters run where they can do no harm: in a child process with limits on time and memory.
//!
//! jq is a whole language: a gate, a table metric or a slip of the finger may loop for ever or build a list of 1e12
//! numbers. All filters of one table or gate go to one forked child, which answers a line for each; a child that
//! exceeds a limit, or faults, is killed, and the filter it was working on is named.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::filter::{Filter, FilterError, Scope, to_val};
use super::plain::{self, Tree};
use super::print;
pub use crate::record::apart::Limits;
use crate::record::apart::{self, Answer};

/// Stack of a thread that compiles or runs filters, bytes: jq's parser and its values recurse.
const STACK_BYTES: usize = 64 << 20;

/// What the filters of one call, such as those of a table, may take together.
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
    let ran = deep(|| apart::run(limits, |pipe| answer(jobs, pipe)).map_err(|e| no_process(&e)));
    let bytes = match ran.and_then(|r| r) {
        Ok(bytes) => bytes,
        Err(what) => return vec![Err(what); jobs.len()],
    };
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

/// That the system gives no process for a filter.
pub(super) fn no_process(why: &std::io::Error) -> String {
    format!("cannot run the filter in a process of its own: {why}")
}

/// The child of [`evaluate`]: a line for each job.
fn answer(jobs: &[Job<'_>], pipe: &mut Answer) {
    let mut compiled = HashMap::new();
    for job in jobs {
        let answer: Outputs = run(job, &mut compiled).map_err(|e| e.to_string());
        // Texts, numbers, arrays and objects with text keys always print.
        let mut line = serde_json::to_vec(&answer).unwrap_or_default();
        line.push(b'\n');
        if !pipe.send(&line) {
            return;
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
    use std::time::Instant;

    use serde_json::json;

    use super::*;

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
