//! Attempts and accounts as tables: what each charge is, and which of it is waste.

use super::attempts::Held;
use super::*;
use crate::record::attempt::ATTEMPT_VERSION;
use crate::record::{AttemptEnd, AttemptStart, CellKey, Digest, JobRef};
use crate::workflow::slurm::JobState;

const BEGAN: i64 = 1_763_709_570;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(BEGAN + second, 0).unwrap()
}

fn print(text: &str) -> Fingerprint {
    Digest::of_bytes(text.as_bytes())
}

/// Attempt `n` of `train/seed-1` that began at `start` and ended with `exit` after `wall_s`, or never said so.
fn attempt(n: u32, start: i64, end: Option<(i32, f64)>) -> Attempted {
    let key = CellKey { study: name("s"), profile: name("p"), stage: name("train"), arm: None, seed: Some(1) };
    Attempted {
        start: AttemptStart {
            version: ATTEMPT_VERSION,
            attempt: n,
            key,
            fingerprint: print("now"),
            submission: "sub".into(),
            job: Some(JobRef { id: "7_0".into(), restart: n - 1 }),
            host: "n1".into(),
            pid: 1,
            boot_id: String::new(),
            user: "ada".into(),
            started_at: at(start),
            inputs: None,
        },
        end: end.map(|(exit_code, wall_s)| AttemptEnd {
            version: ATTEMPT_VERSION,
            exit_code,
            cause: format!("exit {exit_code}"),
            step: None,
            ended_at: at(start + wall_s as i64),
            wall_s,
            verdict: None,
        }),
        beat_s: 30.0,
        later: false,
        void: false,
        sealed: false,
        held: Held { gpus: 4, cores: 8, limit_s: 3600, resumable: true },
    }
}

fn planned() -> BTreeMap<String, Planned> {
    let plan = Planned { fingerprint: print("now"), seal_counts: true };
    BTreeMap::from([("train/seed-1".to_owned(), plan)])
}

#[test]
fn what_brought_nothing_has_a_name() {
    let judged = |change: &dyn Fn(&mut Attempted), end, now| {
        let mut attempt = attempt(1, 0, end);
        change(&mut attempt);
        judge(&attempt, Some(&planned()), at(now))
    };
    let nothing = |_: &mut Attempted| {};
    let later = |a: &mut Attempted| a.later = true;
    // Sealed; checkpointed and waiting; running; killed and its time over; failed.
    assert_eq!(judged(&|a| a.sealed = true, Some((0, 9.0)), 10), None);
    assert_eq!(judged(&nothing, Some((75, 9.0)), 10), None);
    assert_eq!(judged(&nothing, None, 3600), None);
    assert_eq!(judged(&nothing, None, 3600 + 601), Some(Waste::Failed));
    assert_eq!(judged(&nothing, Some((3, 9.0)), 10), Some(Waste::Failed));
    // A later attempt went on from a checkpoint, from a step, from what a killed one left; and did not.
    assert_eq!(judged(&later, Some((75, 9.0)), 10), None);
    assert_eq!(judged(&later, None, 10), None);
    assert_eq!(judged(&later, Some((3, 9.0)), 10), Some(Waste::Failed));
    let step = |a: &mut Attempted| {
        a.later = true;
        a.end.as_mut().unwrap().step = Some(60);
    };
    assert_eq!(judged(&step, Some((137, 9.0)), 10), None);
    let from_the_start = |a: &mut Attempted| {
        a.later = true;
        a.held.resumable = false;
    };
    assert_eq!(judged(&from_the_start, None, 10), Some(Waste::Failed));
    // Set aside, made with other parameters, of a cell that the study has no more, behind a stale seal.
    assert_eq!(judged(&|a| a.void = true, Some((0, 9.0)), 10), Some(Waste::Invalidated));
    assert_eq!(judged(&|a| a.start.fingerprint = print("then"), Some((0, 9.0)), 10), Some(Waste::Invalidated));
    assert_eq!(judged(&|a| a.start.key.seed = Some(2), Some((0, 9.0)), 10), Some(Waste::Invalidated));
    let mut stale = planned();
    stale.get_mut("train/seed-1").unwrap().seal_counts = false;
    let sealed = Attempted { sealed: true, ..attempt(1, 0, Some((0, 9.0))) };
    assert_eq!(judge(&sealed, Some(&stale), at(10)), Some(Waste::Invalidated));
    assert_eq!(judge(&sealed, None, at(10)), None, "without a plan nothing is judged");
}

#[test]
fn without_an_end_the_last_heartbeat_counts_and_is_marked() {
    let killed = by_record(&attempt(1, 0, None), None, at(9000));
    assert_eq!((killed.wall_s, killed.at_least, killed.source), (30.0, true, Source::Heartbeat));
    assert_eq!(killed.hours(), Hours { gpu_hours: 4.0 * 30.0 / 3600.0, cpu_hours: 8.0 * 30.0 / 3600.0 });
    let ended = by_record(&attempt(1, 0, Some((75, 120.5))), None, at(9000));
    assert_eq!((ended.wall_s, ended.at_least, ended.source), (120.5, false, Source::Record));
}

fn record(index: Option<u32>, state: JobState, start: i64, end: Option<i64>, tres: &str) -> Record {
    Record {
        element: Element { job: 7, index },
        state,
        exit_code: None,
        signal: None,
        elapsed_s: u64::try_from(end.unwrap_or(500) - start).unwrap(),
        alloc_tres: tres.to_owned(),
        submit_s: Some(BEGAN),
        start_s: Some(BEGAN + start),
        end_s: end.map(|end| BEGAN + end),
        nodes: "n1".into(),
    }
}

#[test]
fn accounts_are_joined_with_the_attempts_that_they_carried() {
    let cells = [0u32, 1].map(|i| (Some(i), (format!("train/seed-{}", i + 1), print("now"))));
    let cells = cells.map(|(slot, cell)| (slot, vec![cell])).into();
    let (stage, submission) = (name("train"), "sub".into());
    let job = Job { since: at(0), cells, pack: None, stage, submission, home: None };
    let jobs = BTreeMap::from([(7, job)]);
    let tres = "billing=16,cpu=16,gres/gpu=4,mem=80G,node=1";
    let records = [
        record(Some(0), JobState::Requeued, 10, Some(110), tres),
        record(Some(0), JobState::NodeFail, 120, Some(160), tres),
        record(Some(0), JobState::Running, 200, None, tres),
        // The gate said no: no attempt.
        record(Some(1), JobState::Failed, 20, Some(32), "cpu=16,node=1"),
        // Cancelled before it started.
        Record { start_s: Some(BEGAN + 5), ..record(Some(1), JobState::Cancelled, 5, Some(5), "") },
    ];
    let attempts = [
        Attempted { later: true, ..attempt(1, 12, Some((75, 90.0))) },
        Attempted { later: true, ..attempt(2, 122, None) },
        attempt(3, 202, None),
        // A job that Slurm does not tell of: its own record counts.
        Attempted {
            start: AttemptStart { job: Some(JobRef { id: "9".into(), restart: 0 }), ..attempt(1, 50, None).start },
            ..attempt(1, 50, Some((75, 20.0)))
        },
    ];
    let charges = join(&attempts, &records, &jobs, Some(&planned()), at(500));
    let seen: Vec<_> = charges
        .iter()
        .map(|c| (c.cell.as_str(), c.attempt, c.wall_s, c.idle_s, c.at_least, c.source == Source::Accounting))
        .collect();
    let expected = [
        ("train/seed-1", Some(1), 100.0, 10.0, false, true),
        ("train/seed-1", Some(1), 20.0, 0.0, false, false),
        ("train/seed-1", Some(2), 40.0, 0.0, false, true),
        ("train/seed-1", Some(3), 300.0, 0.0, true, true),
        ("train/seed-2", None, 12.0, 12.0, false, true),
    ];
    assert_eq!(seen, expected);
    // Allocated cores are Slurm's; where a site accounts for no GPUs, those that were asked for.
    assert_eq!((charges[0].gpus, charges[0].cores, charges[4].gpus), (4, 16, 0));
    let totals = Totals::of(charges.iter());
    assert_eq!((totals.cells, totals.attempts, totals.at_least), (2, 5, true));
    let seconds = |hours: Hours| (hours.cpu_hours * 3600.0).round();
    assert_eq!(seconds(totals.hours), 16.0 * (100.0 + 40.0 + 300.0 + 12.0) + 8.0 * 20.0);
    assert_eq!(totals.waste.keys().copied().collect::<Vec<_>>(), [Waste::Idle]);
    assert_eq!(seconds(totals.waste[&Waste::Idle]), 16.0 * (10.0 + 12.0));
}
