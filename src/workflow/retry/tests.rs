//! Decisions as a table: cause, way, history, and what follows.

use std::path::PathBuf;

use chrono::DateTime;
use serde_json::json;

use super::*;
use crate::record::{CellKey, Digest, FingerprintSource, Name};

const MIB: u64 = 1 << 20;

fn cell(resumable: bool, params: serde_json::Value) -> Cell {
    let name = |text| Name::new(text).unwrap();
    let source = FingerprintSource {
        version: 1,
        kind: "train".into(),
        kind_version: 1,
        params: json!({}),
        seed: None,
        needs: Default::default(),
        inputs: Default::default(),
    };
    Cell {
        version: 1,
        kind: "train".into(),
        number: 0,
        fingerprint: source.fingerprint(),
        base: PathBuf::from("/r"),
        scratch: None,
        command: vec![],
        outputs: vec![],
        resumable,
        labels: Default::default(),
        key: CellKey { study: name("s"), profile: name("p"), stage: name("train"), arm: None, seed: None },
        resources: resources_of(Some(1000 * MIB), 3600),
        params,
        needs: vec![],
        inputs: vec![],
        source,
    }
}

fn resources_of(mem_bytes: Option<u64>, time_s: u64) -> Resources {
    Resources { nodes: 1, tasks_per_node: 1, cpus_per_task: 1, gpus_per_node: 0, mem_bytes, time_s }
}

/// Attempts that ended so, in submission `now` or an earlier one; `None` said nothing.
fn past(cell: &Cell, ends: &[(&str, Option<Why>)]) -> Vec<Past> {
    let one = |(i, (submission, why)): (usize, &(&str, Option<Why>))| Past {
        start: AttemptStart {
            version: 1,
            attempt: i as u32 + 1,
            key: cell.key.clone(),
            fingerprint: Digest::of_bytes(b""),
            submission: (*submission).to_owned(),
            job: None,
            host: "n1".into(),
            pid: 1,
            boot_id: String::new(),
            user: String::new(),
            started_at: DateTime::UNIX_EPOCH,
            inputs: None,
        },
        end: why.map(|why| AttemptEnd {
            version: 1,
            exit_code: 1,
            cause: String::new(),
            step: None,
            ended_at: DateTime::UNIX_EPOCH,
            wall_s: 0.0,
            verdict: Some(Verdict { why, next: Next::Requeue, adjust: Adjust::default() }),
        }),
    };
    ends.iter().enumerate().map(one).collect()
}

fn situation<'a>(why: Why, cell: &'a Cell, past: &'a [Past], way: Way) -> Situation<'a> {
    Situation {
        why,
        cell,
        submission: "now",
        resources: cell.resources.clone(),
        grace_s: 300,
        adjust: Adjust::default(),
        failed_nodes: vec![],
        past,
        idle: 0,
        way,
    }
}

const LINK: Way = Way::Link { number: 2, of: 3 };
const LAST: Way = Way::Link { number: 3, of: 3 };
const ALONE: Way = Way::RunAll("the site does not requeue");

#[test]
fn each_cause_has_its_remedy_and_each_way_its_next() {
    let (train, plain) = (cell(true, json!({"activation_checkpointing": false})), cell(true, json!({})));
    let rigid = cell(false, json!({}));
    for (why, cell, way, next, adjust) in [
        (Why::Done, &train, Way::Requeue, Next::Nothing, ""),
        (Why::Failed, &train, Way::Requeue, Next::Nothing, ""),
        (Why::Cancelled, &train, Way::Requeue, Next::RunAll, ""),
        (Why::Checkpointed, &train, Way::Requeue, Next::Requeue, ""),
        (Why::Checkpointed, &train, LINK, Next::NextLink, ""),
        (Why::Checkpointed, &train, LAST, Next::RunAll, ""),
        (Why::Checkpointed, &train, ALONE, Next::RunAll, ""),
        (Why::Preempted, &train, Way::Requeue, Next::Requeue, ""),
        (Why::Killed, &train, Way::Requeue, Next::Requeue, ""),
        (Why::Killed, &train, LINK, Next::NextLink, ""),
        (Why::NodeFailure, &train, Way::Requeue, Next::Requeue, "not on n2"),
        (Why::OutOfMemory, &train, Way::Requeue, Next::Requeue, "activation checkpointing"),
        (Why::OutOfMemory, &train, LINK, Next::NextLink, "activation checkpointing"),
        (Why::OutOfMemory, &plain, Way::Requeue, Next::Requeue, "memory 1500M"),
        (Why::OutOfMemory, &plain, LINK, Next::RunAll, "memory 1500M"),
        (Why::OutOfMemory, &rigid, ALONE, Next::RunAll, "memory 1500M"),
        (Why::TimeOut, &plain, Way::Requeue, Next::RunAll, "grace 600 s"),
        (Why::TimeOut, &plain, LINK, Next::NextLink, ""),
        (Why::TimeOut, &rigid, ALONE, Next::RunAll, "time 5400 s"),
    ] {
        let mut situation = situation(why, cell, &[], way);
        if why == Why::NodeFailure {
            situation.failed_nodes = vec!["n2".into()];
        }
        let (verdict, reason) = decide(&situation, &Retry::default());
        assert_eq!((verdict.next, verdict.adjust.to_string().as_str()), (next, adjust), "{why} {way:?}: {reason}");
        assert!(next == Next::Nothing || reason.contains(adjust), "{why} {way:?}: {reason}");
    }
}

#[test]
fn every_cause_is_bounded() {
    let (plain, policy) = (cell(true, json!({})), Retry::default());
    let next = |why, ends: &[(&str, Option<Why>)]| {
        let past = past(&plain, ends);
        decide(&situation(why, &plain, &past, Way::Requeue), &policy)
    };
    // What a node or a person did is counted anew when somebody runs it again; what grows is not.
    for (why, most, anew) in [(Why::Killed, 3, true), (Why::NodeFailure, 3, true), (Why::OutOfMemory, 2, false)] {
        let ends = |submission, n| vec![(submission, Some(why)); n];
        assert_eq!(next(why, &ends("now", most - 1)).0.next, Next::Requeue, "{why}");
        let (verdict, reason) = next(why, &ends("now", most));
        assert_eq!(verdict.next, Next::Nothing, "{why}");
        assert!(reason.starts_with("given up: ") && reason.contains("`run_all` again"), "{reason}");
        let expected = if anew { Next::Requeue } else { Next::Nothing };
        assert_eq!(next(why, &ends("before", most)).0.next, expected, "{why}");
    }
    assert_eq!(next(Why::TimeOut, &[("before", Some(Why::TimeOut)); 2]).0.next, Next::Nothing);
    // One that could not say its end was killed.
    assert_eq!(next(Why::Killed, &[("now", None); 3]).0.next, Next::Nothing);
    assert_eq!(next(Why::Killed, &[("now", Some(Why::Checkpointed)); 9]).0.next, Next::Requeue);
}

#[test]
fn no_progress_ends_it_with_the_reason() {
    let plain = cell(true, json!({}));
    for why in [Why::Checkpointed, Why::Preempted, Why::Killed] {
        for way in [Way::Requeue, LINK, ALONE] {
            let mut situation = situation(why, &plain, &[], way);
            situation.idle = 2;
            assert_ne!(decide(&situation, &Retry::default()).0.next, Next::Nothing, "{why}");
            situation.idle = 3;
            let (verdict, reason) = decide(&situation, &Retry::default());
            assert_eq!(verdict.next, Next::Nothing, "{why}");
            assert!(reason.contains("3 attempts in a row made no progress") && reason.contains("log.txt"), "{reason}");
        }
    }
}

#[test]
fn memory_and_time_grow_from_what_they_are_and_have_a_ceiling() {
    let (train, rigid) = (cell(true, json!({"activation_checkpointing": false})), cell(false, json!({})));
    let policy = Retry { max_mem_bytes: Some(2000 * MIB), max_time_s: Some(6000), ..Retry::default() };
    let mut out = situation(Why::OutOfMemory, &train, &[], Way::Requeue);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let (verdict, _) = decide(&out, &policy);
        seen.push((verdict.next, verdict.adjust.to_string()));
        out.resources = resources(&train.resources, &verdict.adjust);
        out.adjust = verdict.adjust;
    }
    let also = |mem: &str| format!("activation checkpointing, memory {mem}");
    assert_eq!(
        seen,
        [
            (Next::Requeue, "activation checkpointing".to_owned()),
            (Next::Requeue, also("1500M")),
            (Next::Requeue, also("2000M")),
            (Next::Nothing, also("2000M")),
        ]
    );
    let mut late = situation(Why::TimeOut, &rigid, &[], ALONE);
    for expected in [5400, 6000] {
        let (verdict, _) = decide(&late, &policy);
        assert_eq!(verdict.adjust.time_s, Some(expected));
        late.resources = resources(&rigid.resources, &verdict.adjust);
        late.adjust = verdict.adjust;
    }
    assert_eq!(decide(&late, &policy).0.next, Next::Nothing);
    let mut unsaid = situation(Why::OutOfMemory, &rigid, &[], Way::Requeue);
    unsaid.resources.mem_bytes = None;
    let (verdict, reason) = decide(&unsaid, &policy);
    assert!(verdict.next == Next::Nothing && reason.contains("`resources.mem`"), "{reason}");
    // What is in force never takes away what the study says by now.
    let adjust = Adjust { mem_bytes: Some(10), time_s: Some(10), ..Adjust::default() };
    assert_eq!(resources(&rigid.resources, &adjust), rigid.resources);
}

#[test]
fn nodes_are_added_to_those_that_the_site_excludes() {
    let options = |given: &str, nodes: &[&str]| {
        let nodes: Vec<String> = nodes.iter().map(|n| (*n).to_owned()).collect();
        let mut options = vec![given.to_owned()];
        keep_away(&mut options, &nodes);
        options.join(" ")
    };
    assert_eq!(options("--exclude=n3", &[]), "--exclude=n3");
    assert_eq!(options("--exclusive", &["n1", "n2"]), "--exclusive --exclude=n1,n2");
    for given in ["--exclude=n[13-14]", "--exclude n[13-14]", "-x n[13-14]", "-xn[13-14]"] {
        assert_eq!(options(given, &["n1"]), "--exclude=n[13-14],n1", "{given}");
    }
}
