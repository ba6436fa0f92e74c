//! One round: the study from its first `run_all` to its last seal, with faults on the way, and what became of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use seedbed::record::{Next, Why};

use super::chance::Chance;
use super::cluster::{kill, soon};
use super::faults::{By, Fault, Kind};
use super::study::{Queued, Study, cells};

/// A round that takes longer has lost its cells.
const LIMIT: Duration = Duration::from_secs(1200);

/// What came of a round.
#[derive(Debug, Default)]
pub struct Round {
    /// Faults with a victim, in order.
    pub faults: Vec<Fault>,
    /// Who healed those that count; none: nobody.
    pub healed: Vec<Option<By>>,
    /// Calls of `run_all` after the first, and those that a fault asked for.
    pub reruns: usize,
    pub allowed: usize,
    /// Calls of `run_all` that were needed although no fault asked for them.
    pub unasked: usize,
    /// Those that Slurm asked for: it could not start a job, and holds it until somebody lets it go.
    pub held: usize,
    /// Cells without a seal.
    pub lost: Vec<String>,
    /// Content digest of each cell, and the tables.
    pub contents: BTreeMap<String, String>,
    pub tables: BTreeMap<String, Vec<u8>>,
}

/// A line for who watches.
pub fn tell(began: Instant, line: &str) {
    eprintln!("{:7.1} s  {line}", began.elapsed().as_secs_f64());
}

/// Runs a round with these faults, in this order as far as there are victims for them.
pub fn round(study: &Study<'_>, mut due: Vec<Kind>, chance: &mut Chance, began: Instant) -> Round {
    let mut found = Round::default();
    let started = Instant::now();
    // Since when a call of `run_all` is due, because a fault asked for it.
    let mut rerun_since: Option<Instant> = Some(Instant::now());
    let mut calls = 0usize;
    let mut idle_since: Option<Instant> = None;
    loop {
        if started.elapsed() > LIMIT {
            tell(began, &format!("given up after {} s:\n{}", LIMIT.as_secs(), study.seedbed(&["status"])));
            break;
        }
        let queue = study.queue();
        let is_idle = queue.as_ref().is_some_and(|queue| queue.is_empty());
        if is_idle && rerun_since.is_none() && study.open().is_empty() {
            break;
        }
        if let Some(since) = rerun_since {
            // Slurm needs a moment to see that a batch shell is dead: a person calls again when the job is gone.
            let seems_to_run = found.faults.last().is_some_and(|fault| {
                let is_it = |job: &Queued| job.cell == fault.cell && !job.state.starts_with("PENDING");
                fault.kind.asks_for_a_rerun()
                    && study.last(&fault.cell) == fault.attempt
                    && queue.as_ref().is_none_or(|queue| queue.iter().any(is_it))
            });
            if seems_to_run && since.elapsed() < Duration::from_secs(60) {
                chance.sleep(200, 1500);
                continue;
            }
            // A result is cut when `run_all` is about to be called anyway; it waits for one to be there.
            if calls > 0
                && let Some(at) = due.iter().position(|k| *k == Kind::Result)
            {
                if let Some(fault) = study.inject(Kind::Result, chance) {
                    tell(began, &format!("{}: {}", Kind::Result.what(), fault.cell));
                    due.remove(at);
                    found.faults.push(fault);
                } else if !is_idle && since.elapsed() < Duration::from_secs(45) {
                    inject_next(study, &mut due, &mut found, chance, began);
                    continue;
                }
            }
            let strike = due.iter().position(|k| *k == Kind::RunAll);
            let (again, fault) = call(study, calls, strike.is_some(), chance, began);
            found.reruns += calls.min(1);
            calls += 1;
            rerun_since = again.then(Instant::now);
            if let Some(fault) = fault {
                due.remove(strike.unwrap_or_default());
                found.allowed += 1;
                found.faults.push(fault);
            }
            idle_since = None;
            continue;
        }
        let held = |job: &Queued| job.state.contains("requeued held");
        if let Some(job) = queue.iter().flatten().find(|job| held(job)) {
            tell(began, &format!("{}: {}", job.cell, job.state));
            study.cluster.repair();
            found.held += 1;
            rerun_since = Some(Instant::now());
        } else if inject_next(study, &mut due, &mut found, chance, began) {
            rerun_since = Some(Instant::now());
        } else if is_idle {
            // Between two looks a job may have ended and another begun.
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() > Duration::from_secs(10) {
                tell(
                    began,
                    &format!("nothing is queued, and no fault asked for a rerun:\n{}", study.seedbed(&["status"])),
                );
                found.unasked += 1;
                rerun_since = Some(Instant::now());
            }
        } else {
            idle_since = None;
        }
        chance.sleep(200, 1500);
    }

    found.lost = study.open();
    show_results(study, &mut found);
    found.healed = found.faults.iter().map(|fault| healed(study, fault)).collect();
    for cell in cells() {
        let content = study.seal(&cell).and_then(|seal| seal.content).map(|digest| digest.to_string());
        found.contents.insert(cell, content.unwrap_or_default());
    }
    found.tables = study.tables();
    found
}

/// Injects the first fault that has a victim. Whether it asks for `run_all`.
fn inject_next(study: &Study<'_>, due: &mut Vec<Kind>, found: &mut Round, chance: &mut Chance, began: Instant) -> bool {
    for at in 0..due.len() {
        let kind = due[at];
        if matches!(kind, Kind::RunAll | Kind::Result) {
            continue;
        }
        let Some(fault) = study.inject(kind, chance) else { continue };
        let shown = fault.shown.as_deref().unwrap_or("no effect, does not count");
        tell(began, &format!("{}: {} attempt {}: {shown}", kind.what(), fault.cell, fault.attempt));
        if fault.shown.is_some() {
            due.remove(at);
        } else {
            // It comes again later, but not before the others.
            let kind = due.remove(at);
            due.push(kind);
        }
        // Struck or not, the batch shell may be dead.
        let asks = kind.asks_for_a_rerun();
        found.allowed += usize::from(asks);
        found.faults.push(fault);
        return asks;
    }
    false
}

/// Types `run_all`; with `strike` kills it in mid-submission. Whether it must be typed again, and the fault.
fn call(study: &Study<'_>, number: usize, strike: bool, chance: &mut Chance, began: Instant) -> (bool, Option<Fault>) {
    let before = study.intents();
    let shape = chance.below(3);
    let (mut child, said) = study.run_all(shape);
    if strike {
        let most = if number == 0 { 7 } else { 3 };
        let after = before + 1 + chance.below(most);
        let ended = |child: &mut std::process::Child| child.try_wait().unwrap().is_some();
        let reached = soon(Duration::from_secs(120), || {
            if study.intents() >= after {
                return study.run_all_process().map(Some);
            }
            ended(&mut child).then_some(None)
        });
        chance.sleep(0, 40);
        let alive = reached.flatten().is_some_and(kill);
        child.wait().unwrap();
        let submitted = study.journal().iter().filter(|entry| entry["event"] == "submitted").count();
        let intents = study.intents();
        tell(began, &format!("kill -9 of run_all: alive {alive}, {intents} intents, {submitted} replies"));
        if alive {
            let shown = format!("the journal ends with {intents} intents and {submitted} replies");
            let fault = Fault { kind: Kind::RunAll, cell: String::new(), attempt: 0, shown: Some(shown) };
            return (true, Some(fault));
        }
    }
    loop {
        let status = child.wait().unwrap();
        let text = std::fs::read_to_string(&said).unwrap_or_default();
        if status.success() {
            tell(began, &format!("run_all: {}", text.lines().last().unwrap_or_default()));
            return (false, None);
        }
        tell(began, &format!("run_all ended with {status}: {text}"));
        // What it asks for: a job whose reply was lost moments ago is not submitted twice.
        let wait =
            text.rsplit_once("run `run_all` again in ").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
        let Some(wait) = wait else {
            std::thread::sleep(Duration::from_secs(5));
            return (true, None);
        };
        std::thread::sleep(Duration::from_secs(wait));
        child = study.run_all(shape).0;
    }
}

/// Whether results that were cut were made again.
fn show_results(study: &Study<'_>, found: &mut Round) {
    for fault in found.faults.iter_mut().filter(|f| f.kind == Kind::Result) {
        let (n, last) = (fault.attempt, study.last(&fault.cell));
        let again = study
            .journal()
            .iter()
            .any(|entry| entry["event"] == "intent" && !entry["cells"][&fault.cell].is_null() && last > n);
        fault.shown = again.then(|| format!("attempt {last} made it again"));
    }
}

/// Who started again what a fault had ended.
fn healed(study: &Study<'_>, fault: &Fault) -> Option<By> {
    if matches!(fault.kind, Kind::RunAll | Kind::Result) {
        return study.open().is_empty().then_some(By::RunAll);
    }
    study.seal(&fault.cell)?;
    let n = fault.attempt;
    let (Some(this), Some(next)) = (study.start(&fault.cell, n), study.start(&fault.cell, n + 1)) else {
        // It had sealed; what was cancelled behind it ran all the same.
        return Some(By::RunAll);
    };
    if this.submission != next.submission {
        return Some(By::RunAll);
    }
    let by_itself = study.end(&fault.cell, n).and_then(|end| end.verdict);
    let by_itself = by_itself.is_some_and(|v| v.next == Next::Requeue && v.why != Why::Preempted);
    Some(if by_itself { By::Attempt } else { By::Slurm })
}
