//! Plans of small studies, written as tables.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::DateTime;
use serde_json::json;

use super::*;
use crate::record::seal::{SEAL_VERSION, Seal};
use crate::record::{Adjust, Digest, Name, Origin, Outcome, Resources};
use crate::workflow::slurm::wishes::Wishes;
use crate::workflow::study::{Arm, Axes, Command, On, Retry, Run, Stage, Staging};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A stage as `name: needs` with its axes.
fn stage(number: u32, stage: &str, needs: &[&str], axes: &str) -> Stage {
    let argv = vec!["true".to_owned(), stage.to_owned()];
    Stage {
        name: name(stage),
        number,
        run: Run::Command(Command { written: argv.clone(), argv, inputs: vec![], outputs: vec![], resumable: false }),
        needs: needs.iter().map(|n| name(n)).collect(),
        axes: Axes { arm: axes.contains('a'), seed: axes.contains('s') },
        on: On::Compute,
        activity: None,
        resources: Resources {
            nodes: 1,
            tasks_per_node: 1,
            cpus_per_task: 1,
            gpus_per_node: 0,
            mem_bytes: None,
            time_s: 60,
        },
        wishes: Wishes::default(),
        staging: Staging::default(),
        max_running: None,
        pack: None,
        expected_s: None,
        storage_bytes: None,
        params: json!({"lr": 0.1}),
        arms: if axes.contains('a') {
            ["x", "y"]
                .iter()
                .map(|a| Arm { name: name(a), labels: BTreeMap::new(), params: json!({"lr": 0.1, "arm": a}) })
                .collect()
        } else {
            vec![]
        },
    }
}

#[test]
fn more_than_a_million_cells_are_refused_before_one_is_made() {
    let study = study_of(vec![stage(0, "train", &[], "as"), stage(1, "gather", &["train"], "")]);
    let seeds: Vec<u32> = (0..500_000).collect();
    let error = expand(&study, &seeds, &BTreeMap::new()).unwrap_err();
    assert_eq!(error, PlanError::TooMany { cells: 1_000_001 });
    assert!(error.to_string().contains("at most 1000000 can be planned"), "{error}");
    let mut wide = stage(0, "train", &[], "as");
    wide.arms = vec![wide.arms[0].clone(); 3_000_000];
    let error = expand(&study_of(vec![wide]), &[1], &BTreeMap::new()).unwrap_err();
    assert_eq!(error, PlanError::TooMany { cells: 3_000_000 });
}

/// The monotone study's shape.
fn eight_stages() -> Study {
    let stages = vec![
        stage(0, "setup", &[], ""),
        stage(1, "apply", &["setup"], "s"),
        stage(2, "baseline", &["setup"], "s"),
        stage(3, "monotonic", &["setup", "apply"], "s"),
        stage(4, "evaluate", &["setup", "baseline", "monotonic"], "s"),
        stage(5, "uat", &["setup", "baseline", "monotonic"], "s"),
        stage(6, "hotflip", &["setup", "baseline", "monotonic"], "s"),
        stage(7, "aggregate", &["evaluate", "uat", "hotflip"], ""),
    ];
    study_of(stages)
}

fn study_of(stages: Vec<Stage>) -> Study {
    Study {
        name: name("m"),
        profile: name("quick"),
        profiles: vec![],
        seeds: vec![42, 1337],
        stages,
        tables: vec![],
        figures: vec![],
        documents: vec![],
        signoff: vec![],
        budget: None,
        retry: Retry::default(),
        file: PathBuf::from("m.toml"),
        text: String::new(),
    }
}

const SEEDS: [u32; 5] = [42, 1337, 2024, 8888, 12345];

fn cells(study: &Study) -> Expansion {
    expand(study, &SEEDS, &BTreeMap::new()).unwrap()
}

/// Slots as they are given in practice: in the order in which seeds were first asked for.
fn slots() -> BTreeMap<u32, u32> {
    SEEDS.iter().enumerate().map(|(i, &s)| (s, i as u32)).collect()
}

fn sealed(expansion: &Expansion, def: &CellDef) -> SealView {
    let read = def.needs.iter().flat_map(|&i| {
        let name = expansion.cells[i].key.local_name();
        reads(&seal_of(expansion, &expansion.cells[i], vec![]), &name)
    });
    let read = read.map(|(path, digest)| crate::record::seal::SealedFile { path, size_bytes: 0, digest }).collect();
    SealView::Sealed { seal: Box::new(seal_of(expansion, def, read)), problem: None }
}

fn seal_of(expansion: &Expansion, def: &CellDef, read: Vec<crate::record::seal::SealedFile>) -> Seal {
    Seal {
        version: SEAL_VERSION,
        key: def.key.clone(),
        fingerprint: def.fingerprint.clone(),
        source: def.source(|i| &expansion.cells[i]),
        outcome: Outcome::Done,
        origin: Origin::Run,
        evidence: None,
        warnings: Vec::new(),
        content: Some(Digest::of_bytes(def.key.local_name().as_bytes())),
        outputs: vec![],
        read,
        jobs: vec![],
        attempt: 1,
        host: String::new(),
        started_at: DateTime::UNIX_EPOCH,
        sealed_at: DateTime::UNIX_EPOCH,
        wall_s: 0.0,
        code: code(),
        digest: Digest::of_bytes(b""),
    }
}

/// Seals of every cell whose local name satisfies `pick`.
fn seals(expansion: &Expansion, pick: impl Fn(&str) -> bool) -> BTreeMap<String, SealView> {
    let picked = expansion.cells.iter().filter(|c| pick(&c.key.local_name()));
    picked.map(|def| (def.key.local_name(), sealed(expansion, def))).collect()
}

fn plan_with(study: &Study, seals: &BTreeMap<String, SealView>) -> Plan {
    Plan::new(study, &cells(study), seals, &BTreeMap::new(), Policy::default())
}

const ARRAYS: JobShape = JobShape { chain: Chain::Arrays, max_array_size: 1001, requeue: true, packs: true };

/// A job as one line: `stage[.arm] [slots] <- edges`.
fn print(jobs: &[PlannedJob]) -> String {
    let mut text = String::new();
    for (i, job) in jobs.iter().enumerate() {
        let arm = job.arm.as_ref().map(|a| format!(".{a}")).unwrap_or_default();
        let slots: Vec<String> = job.cells.iter().map(|(s, _)| s.map_or("-".to_owned(), |s| s.to_string())).collect();
        let edges: Vec<String> = job
            .edges
            .iter()
            .map(|e| match &e.target {
                Target::Planned(j) => format!("{:?}:{j}", e.kind),
                Target::Element(j, i) => format!("{:?}:{j}_{i}", e.kind),
                Target::Live(id) => format!("{:?}:live {id}", e.kind),
            })
            .collect();
        let link = job.link.map(|l| format!(" {}/{}", l.number, l.of)).unwrap_or_default();
        text.push_str(&format!("{i} {}{arm}{link} [{}] <- {}\n", job.stage, slots.join(","), edges.join(" ")));
    }
    text
}

#[test]
fn eight_stages_are_eight_jobs() {
    let study = eight_stages();
    let jobs = jobs(&study, &plan_with(&study, &BTreeMap::new()), &slots(), ARRAYS);
    insta::assert_snapshot!(print(&jobs), @r"
    0 setup [-] <- 
    1 apply [0,1,2,3,4] <- AfterOk:0
    2 baseline [0,1,2,3,4] <- AfterOk:0
    3 monotonic [0,1,2,3,4] <- AfterCorr:1 AfterOk:0
    4 evaluate [0,1,2,3,4] <- AfterCorr:2 AfterCorr:3 AfterOk:0
    5 uat [0,1,2,3,4] <- AfterCorr:2 AfterCorr:3 AfterOk:0
    6 hotflip [0,1,2,3,4] <- AfterCorr:2 AfterCorr:3 AfterOk:0
    7 aggregate [-] <- AfterAny:4 AfterAny:5 AfterAny:6
    ");
}

#[test]
fn sites_without_arrays_get_one_job_for_each_cell() {
    let study = eight_stages();
    let shape = JobShape { chain: Chain::Singles, max_array_size: 1001, requeue: true, packs: true };
    let jobs = jobs(&study, &plan_with(&study, &BTreeMap::new()), &slots(), shape);
    assert_eq!(jobs.len(), 2 + 6 * 5);
    assert!(jobs.iter().all(|j| j.cells.len() == 1 && j.cells[0].0.is_none()));
    assert!(jobs.iter().flat_map(|j| &j.edges).all(|e| e.kind == EdgeKind::AfterAny));
    assert_eq!(jobs.last().unwrap().edges.len(), 15);
}

#[test]
fn a_rerun_waits_only_for_what_runs_again() {
    let study = eight_stages();
    let expansion = cells(&study);
    // Seeds 1337 and 8888 (slots 1 and 3) lost stage 3; all of stage 4 is missing.
    let lost = ["monotonic/seed-1337", "monotonic/seed-8888"];
    let seals = seals(&expansion, |n| !n.starts_with("evaluate") && n != "aggregate" && !lost.contains(&n));
    let jobs = jobs(&study, &plan_with(&study, &seals), &slots(), ARRAYS);
    insta::assert_snapshot!(print(&jobs), @r"
    0 monotonic [1,3] <- 
    1 evaluate [0,2,4] <- 
    2 evaluate [1,3] <- AfterCorr:0
    3 uat [1,3] <- AfterCorr:0
    4 hotflip [1,3] <- AfterCorr:0
    5 aggregate [-] <- AfterAny:1 AfterAny:2 AfterAny:3 AfterAny:4
    ");
}

#[test]
fn queued_parents_are_waited_for_by_id() {
    let study = eight_stages();
    let expansion = cells(&study);
    let seals = seals(&expansion, |n| ["setup", "apply/"].iter().any(|p| n.starts_with(p)));
    let live = |stage: &str, id: &str| {
        let picked = expansion.cells.iter().filter(|c| c.key.stage.as_str() == stage);
        let of = |c: &CellDef| LiveJob {
            id: id.to_owned(),
            name: String::new(),
            slot: Some(slots()[&c.key.seed.unwrap()]),
            packed: false,
            fingerprint: c.fingerprint.clone(),
            state: "PENDING".to_owned(),
            before: vec![],
        };
        picked.map(|c| (c.key.local_name(), of(c))).collect::<Vec<_>>()
    };
    let live: BTreeMap<String, LiveJob> =
        [live("baseline", "17"), live("monotonic", "18")].concat().into_iter().collect();
    let plan = Plan::new(&study, &expansion, &seals, &live, Policy::default());
    let jobs = jobs(&study, &plan, &slots(), ARRAYS);
    assert!(
        print(&jobs).starts_with("0 evaluate [0,1,2,3,4] <- AfterCorr:live 17 AfterCorr:live 18\n"),
        "{}",
        print(&jobs)
    );
}

#[test]
fn slots_beyond_the_array_limit_go_to_further_arrays() {
    let study = eight_stages();
    let shape = JobShape { chain: Chain::Arrays, max_array_size: 2, requeue: true, packs: true };
    let jobs = jobs(&study, &plan_with(&study, &BTreeMap::new()), &slots(), shape);
    let apply: Vec<Vec<u32>> = jobs
        .iter()
        .filter(|j| j.stage.as_str() == "apply")
        .map(|j| j.cells.iter().map(|(s, _)| s.unwrap()).collect())
        .collect();
    assert_eq!(apply, [vec![0, 1], vec![0, 1], vec![0]]);
    // Chunk k of stage 3 waits for chunk k of stage 1.
    let monotonic: Vec<&PlannedJob> = jobs.iter().filter(|j| j.stage.as_str() == "monotonic").collect();
    let first_apply = jobs.iter().position(|j| j.stage.as_str() == "apply").unwrap();
    for (k, job) in monotonic.iter().enumerate() {
        assert!(job.edges.contains(&Edge { kind: EdgeKind::AfterCorr, target: Target::Planned(first_apply + k) }));
    }
}

#[test]
fn arms_are_arrays_of_their_own() {
    let study = study_of(vec![
        stage(0, "data", &[], ""),
        stage(1, "train", &["data"], "as"),
        stage(2, "eval", &["train"], "as"),
        stage(3, "compare", &["eval"], "s"),
        stage(4, "report", &["compare", "eval"], ""),
    ]);
    let jobs = jobs(&study, &plan_with(&study, &BTreeMap::new()), &slots(), ARRAYS);
    insta::assert_snapshot!(print(&jobs), @r"
    0 data [-] <- 
    1 train.x [0,1,2,3,4] <- AfterOk:0
    2 train.y [0,1,2,3,4] <- AfterOk:0
    3 eval.x [0,1,2,3,4] <- AfterCorr:1
    4 eval.y [0,1,2,3,4] <- AfterCorr:2
    5 compare [0,1,2,3,4] <- AfterCorr:3 AfterCorr:4
    6 report [-] <- AfterAny:3 AfterAny:4 AfterAny:5
    ");
}

/// The words of all stages, one character for each cell.
fn words(plan: &Plan) -> BTreeMap<String, String> {
    let mut words: BTreeMap<String, String> = BTreeMap::new();
    for cell in &plan.cells {
        let word = words.entry(cell.def.key.stage.to_string()).or_default();
        word.push_str(&cell.state.word()[..1]);
    }
    words
}

#[test]
fn a_changed_parameter_makes_descendants_stale_and_names_the_key() {
    let mut study = eight_stages();
    let all = seals(&cells(&study), |_| true);
    assert!(plan_with(&study, &all).cells.iter().all(|c| c.state.is_done()));
    study.stages[1].params = json!({"lr": 0.2});
    let plan = plan_with(&study, &all);
    let words = words(&plan);
    for (stage, expected) in [
        ("setup", "d"),
        ("apply", "sssss"),
        ("baseline", "ddddd"),
        ("monotonic", "sssss"),
        ("evaluate", "sssss"),
        ("uat", "sssss"),
        ("hotflip", "sssss"),
        ("aggregate", "s"),
    ] {
        assert_eq!(words[stage], expected, "{stage}");
    }
    let reason = |stage: &str| plan.cells.iter().find(|c| c.def.key.stage.as_str() == stage).unwrap().state.reason();
    assert_eq!(reason("apply"), "params.lr: 0.1 -> 0.2");
    assert!(reason("monotonic").starts_with("needs.apply/seed-42: "), "{}", reason("monotonic"));
}

#[test]
fn resources_are_outside_the_fingerprint() {
    let mut study = eight_stages();
    let all = seals(&cells(&study), |_| true);
    study.stages[3].resources.nodes = 7;
    study.stages[3].resources.time_s = 1;
    assert!(plan_with(&study, &all).cells.iter().all(|c| c.state.is_done()));
}

#[test]
fn a_parent_that_gave_other_bytes_makes_its_children_stale() {
    let study = eight_stages();
    let expansion = cells(&study);
    let mut all = seals(&expansion, |_| true);
    let Some(SealView::Sealed { seal, .. }) = all.get_mut("baseline/seed-42") else { panic!() };
    seal.content = Some(Digest::of_bytes(b"other bytes"));
    let words = words(&plan_with(&study, &all));
    assert_eq!(words["evaluate"], "sdddd");
    assert_eq!(words["monotonic"], "ddddd");
    assert_eq!(words["aggregate"], "s");
}

#[test]
fn a_stopped_cell_stops_its_descendants_until_it_is_tried_again() {
    let study = eight_stages();
    let expansion = cells(&study);
    let mut found = seals(&expansion, |n| ["setup", "apply/", "baseline/"].iter().any(|p| n.starts_with(p)));
    let def = expansion.cells.iter().find(|c| c.key.local_name() == "monotonic/seed-42").unwrap();
    let mut seal = seal_of(&expansion, def, vec![]);
    seal.outcome = Outcome::Stopped;
    seal.evidence = Some("loss diverged".into());
    found.insert("monotonic/seed-42".to_owned(), SealView::Sealed { seal: Box::new(seal), problem: None });
    let plan = plan_with(&study, &found);
    let state = |name: &str| plan.cells.iter().find(|c| c.def.key.local_name() == name).unwrap().state.clone();
    assert_eq!(state("evaluate/seed-42").word(), "stopped");
    assert!(state("evaluate/seed-42").reason().contains("monotonic/seed-42"));
    assert_eq!(state("evaluate/seed-1337"), CellState::Missing);
    let again = Plan::new(&study, &expansion, &found, &BTreeMap::new(), Policy { retry_stopped: true, replace: false });
    assert_eq!(again.count(|s| *s == CellState::Missing), again.to_run().count());
    assert_eq!(again.count(|s| s.word() == "stopped"), 0);
}

/// A gate over all seeds between two stages.
fn gated() -> Study {
    let mut gate = stage(2, "gap", &["measure"], "");
    gate.run = Run::Builtin(&crate::stages::gate::SPEC);
    gate.params = json!({"conditions": [{"name": "x", "value": ".", "most": 0.3}], "missing": "undecided"});
    study_of(vec![
        stage(0, "measure", &[], "s"),
        stage(1, "train", &["measure", "gap"], "s"),
        gate,
        stage(3, "all", &["train", "gap"], ""),
    ])
}

#[test]
fn a_gate_over_seeds_is_one_job_behind_whatever_became_of_them() {
    let study = gated();
    let jobs = jobs(&study, &plan_with(&study, &BTreeMap::new()), &slots(), ARRAYS);
    insta::assert_snapshot!(print(&jobs), @r"
    0 measure [0,1,2,3,4] <- 
    1 gap [-] <- AfterAny:0
    2 train [0,1,2,3,4] <- AfterCorr:0 AfterOk:1
    3 all [-] <- AfterOk:1 AfterAny:2
    ");
}

#[test]
fn a_gate_enters_no_fingerprint_and_is_judged_by_what_it_read() {
    let mut study = gated();
    let before = cells(&study);
    let all = seals(&before, |_| true);
    assert!(plan_with(&study, &all).cells.iter().all(|c| c.state.is_done()));
    study.stages[2].params["conditions"][0]["most"] = json!(0.4);
    let plan = plan_with(&study, &all);
    let words = words(&plan);
    assert_eq!((words["gap"].as_str(), words["train"].as_str(), words["all"].as_str()), ("s", "ddddd", "d"));
    let gap = plan.cells.iter().find(|c| c.def.key.stage.as_str() == "gap").unwrap();
    assert_eq!(
        gap.state.reason(),
        "verdict: \"pass\" -> \"undecided\"; params.conditions[0].most: 0.3 -> 0.4",
        "the old bound stands beside the new one"
    );
    // A result that differs makes the gate stale; one that is made again, too; what reads the result as well.
    let study = gated();
    for change in ["other bytes", "gone"] {
        let mut found = all.clone();
        match (change, found.get_mut("measure/seed-42")) {
            ("gone", _) => drop(found.remove("measure/seed-42")),
            (_, Some(SealView::Sealed { seal, .. })) => seal.content = Some(Digest::of_bytes(b"other")),
            _ => panic!(),
        }
        let plan = plan_with(&study, &found);
        let gap = plan.cells.iter().find(|c| c.def.key.stage.as_str() == "gap").unwrap();
        assert_eq!(gap.state.word(), "stale", "{change}");
        assert!(gap.state.reason().contains("needs.measure/seed-42"), "{change}");
    }
}

#[test]
fn a_gate_that_stops_halts_also_what_was_sealed_behind_it() {
    let study = gated();
    let expansion = cells(&study);
    let mut found = seals(&expansion, |_| true);
    let Some(SealView::Sealed { seal, .. }) = found.get_mut("gap") else { panic!() };
    seal.outcome = Outcome::Stopped;
    seal.evidence = Some(json!({"why": "x is 0.4, not at most 0.3"}));
    for policy in [Policy::default(), Policy { retry_stopped: true, replace: false }] {
        let plan = Plan::new(&study, &expansion, &found, &BTreeMap::new(), policy);
        for cell in plan.cells.iter().filter(|c| c.def.key.stage.as_str() != "measure") {
            assert_eq!(cell.state.label(), "stopped (gate gap)");
            assert_eq!(cell.state.reason(), "gate gap: x is 0.4, not at most 0.3");
        }
        assert_eq!(plan.to_run().count(), 0);
    }
}

#[test]
fn a_job_counts_as_queued_only_under_the_same_fingerprint() {
    let study = eight_stages();
    let expansion = cells(&study);
    let def = &expansion.cells[0];
    let job = |fingerprint: &Digest| LiveJob {
        id: "5".into(),
        name: String::new(),
        slot: None,
        packed: false,
        fingerprint: fingerprint.clone(),
        state: "RUNNING".into(),
        before: vec![],
    };
    let plan = |fingerprint: &Digest| {
        let live = BTreeMap::from([("setup".to_owned(), job(fingerprint))]);
        Plan::new(&study, &expansion, &BTreeMap::new(), &live, Policy::default())
    };
    assert_eq!(plan(&def.fingerprint).cells[0].state.word(), "queued");
    let other = plan(&Digest::of_bytes(b"other"));
    assert_eq!(other.cells[0].state.word(), "queued-stale");
    let jobs = jobs(&study, &other, &slots(), ARRAYS);
    assert_eq!(jobs[0].replaces.len(), 1);
}

/// Data, a training that can go on and takes three time limits, what reads it, and what gathers it.
fn long_training() -> Study {
    let mut study = study_of(vec![
        stage(0, "data", &[], "s"),
        stage(1, "train", &["data"], "s"),
        stage(2, "eval", &["train"], "s"),
        stage(3, "report", &["eval", "train"], ""),
    ]);
    let train = &mut study.stages[1];
    let Run::Command(command) = &mut train.run else { panic!() };
    command.resumable = true;
    train.expected_s = Some(train.resources.time_s * 2 + 1);
    study
}

#[test]
fn where_nothing_is_requeued_a_cell_is_a_chain_of_links() {
    let study = long_training();
    let two: BTreeMap<u32, u32> = BTreeMap::from([(42, 0), (1337, 1)]);
    let shape = |chain, requeue| JobShape { chain, max_array_size: 1001, requeue, packs: true };
    let expansion = expand(&study, &[42, 1337], &BTreeMap::new()).unwrap();
    let plan = Plan::new(&study, &expansion, &BTreeMap::new(), &BTreeMap::new(), Policy::default());
    let requeued = jobs(&study, &plan, &two, shape(Chain::Arrays, true));
    assert_eq!(requeued.len(), 4, "a site that requeues needs no links");
    let linked = jobs(&study, &plan, &two, shape(Chain::Arrays, false));
    insta::assert_snapshot!(print(&linked), @r"
    0 data [0,1] <- 
    1 train 1/5 [-] <- AfterOk:0_0
    2 train 2/5 [-] <- AfterAny:1
    3 train 3/5 [-] <- AfterAny:2
    4 train 4/5 [-] <- AfterAny:3
    5 train 5/5 [-] <- AfterAny:4
    6 train 1/5 [-] <- AfterOk:0_1
    7 train 2/5 [-] <- AfterAny:6
    8 train 3/5 [-] <- AfterAny:7
    9 train 4/5 [-] <- AfterAny:8
    10 train 5/5 [-] <- AfterAny:9
    11 eval [0] <- AfterOk:5
    12 eval [1] <- AfterOk:10
    13 report [-] <- AfterAny:5 AfterAny:10 AfterAny:11 AfterAny:12
    ");
    let single = jobs(&study, &plan, &two, shape(Chain::Singles, false));
    assert!(single.iter().flat_map(|j| &j.edges).all(|e| e.kind == EdgeKind::AfterAny));
    assert_eq!(single.len(), linked.len() + 1, "each seed of the first stage is a job, too");
    // A stage that starts from the beginning gains nothing by links.
    let mut rigid = study.clone();
    let Run::Command(command) = &mut rigid.stages[1].run else { panic!() };
    command.resumable = false;
    assert_eq!(jobs(&rigid, &plan, &two, shape(Chain::Arrays, false)).len(), 4);
}

#[test]
fn the_number_of_links_follows_from_what_is_expected() {
    let mut study = long_training();
    let shape = JobShape { chain: Chain::Arrays, max_array_size: 1001, requeue: false, packs: true };
    let limit = study.stages[1].resources.time_s;
    for (expected, number) in [(None, 3), (Some(1), 3), (Some(limit), 3), (Some(4 * limit), 6), (Some(u64::MAX), 100)] {
        study.stages[1].expected_s = expected;
        assert_eq!(links(&study.stages[1], shape), Some(number), "{expected:?}");
    }
}

#[test]
fn links_that_are_queued_are_waited_for_and_replaced_as_one() {
    let study = long_training();
    let expansion = expand(&study, &[42], &BTreeMap::new()).unwrap();
    let done = seals(&expansion, |n| n.starts_with("data"));
    let train = &expansion.cells[1];
    let job = |id: &str, fingerprint: &Digest, before: Vec<LiveJob>| LiveJob {
        id: id.into(),
        name: String::new(),
        slot: None,
        packed: false,
        fingerprint: fingerprint.clone(),
        state: "RUNNING".into(),
        before,
    };
    let shape = JobShape { chain: Chain::Arrays, max_array_size: 1001, requeue: false, packs: true };
    let slots = BTreeMap::from([(42, 0)]);
    let plan = |fingerprint: &Digest| {
        let last = job("9", fingerprint, vec![job("7", fingerprint, vec![]), job("8", fingerprint, vec![])]);
        let live = BTreeMap::from([("train/seed-42".to_owned(), last)]);
        Plan::new(&study, &expansion, &done, &live, Policy::default())
    };
    let behind = jobs(&study, &plan(&train.fingerprint), &slots, shape);
    assert!(print(&behind).starts_with("0 eval [0] <- AfterOk:live 9\n"), "{}", print(&behind));
    let anew = jobs(&study, &plan(&Digest::of_bytes(b"other")), &slots, shape);
    let ids: Vec<&str> = anew[0].replaces.iter().map(|j| j.id.as_str()).collect();
    assert_eq!(ids, ["7", "8", "9"]);
}

#[test]
fn cells_that_ask_for_more_than_planned_are_jobs_of_their_own() {
    let study = eight_stages();
    let expansion = cells(&study);
    let found = seals(&expansion, |n| n == "setup" || n.starts_with("apply"));
    let mut plan = plan_with(&study, &found);
    let again = |adjust| Some(Again { attempt: 2, why: crate::record::Why::OutOfMemory, adjust });
    let more = Adjust { mem_bytes: Some(1 << 30), ..Adjust::default() };
    for cell in &mut plan.cells {
        match cell.def.key.local_name().as_str() {
            "baseline/seed-1337" | "baseline/seed-8888" => cell.again = again(more.clone()),
            // Its job asks for nothing else.
            "baseline/seed-2024" => {
                cell.again = again(Adjust { activation_checkpointing: true, ..Adjust::default() });
            }
            _ => {}
        }
    }
    let jobs = jobs(&study, &plan, &slots(), ARRAYS);
    let print = print(&jobs);
    assert!(
        print.starts_with("0 baseline [0,2,4] <- \n1 baseline [1,3] <- \n2 monotonic [0,1,2,3,4] <- \n"),
        "{print}"
    );
    assert!(print.contains("3 evaluate [0,2,4] <- AfterCorr:0 AfterCorr:2\n"), "{print}");
    assert_eq!((jobs[0].adjust.is_nothing(), &jobs[1].adjust), (true, &more));
}

#[test]
fn packs_wait_for_the_ends_of_what_their_cells_need() {
    let mut study = eight_stages();
    let baseline = study.stages.iter().position(|s| s.name.as_str() == "baseline").unwrap();
    study.stages[baseline].pack = Some(Pack { cells: 2, in_turn: false });
    let expansion = cells(&study);
    let found = seals(&expansion, |n| n == "setup" || n.starts_with("apply"));
    let plan = plan_with(&study, &found);
    let jobs = jobs(&study, &plan, &slots(), ARRAYS);
    let text = print(&jobs);
    let seeds = expansion.cells.iter().filter(|c| c.key.stage.as_str() == "baseline").count();
    let packs: Vec<&PlannedJob> = jobs.iter().filter(|j| j.stage.as_str() == "baseline").collect();
    assert_eq!(packs.len(), seeds.div_ceil(2), "{text}");
    assert!(packs.iter().all(|j| j.cells.iter().all(|(index, _)| index.is_none())), "{text}");
    assert_eq!(packs[0].pack, Some(Pack { cells: 2, in_turn: false }));
    assert_eq!((packs[0].elements(), packs[0].cells.len()), (1, 2));
    // What stands behind a pack waits for its end: the gate of each cell decides, and a sick neighbour holds up nobody.
    let behind: Vec<&PlannedJob> = jobs.iter().filter(|j| j.stage.as_str() == "evaluate").collect();
    assert_eq!(behind.len(), packs.len(), "one array for each pack: {text}");
    for job in behind {
        let to_pack =
            job.edges.iter().filter(|e| matches!(e.target, Target::Planned(i) if jobs[i].stage.as_str() == "baseline"));
        assert!(to_pack.clone().count() == 1 && to_pack.clone().all(|e| e.kind == EdgeKind::AfterAny), "{text}");
    }
    // A pack behind an array waits for the elements of its own seeds.
    study.stages[baseline].pack = None;
    let evaluate = study.stages.iter().position(|s| s.name.as_str() == "evaluate").unwrap();
    study.stages[evaluate].pack = Some(Pack { cells: 2, in_turn: true });
    let jobs = super::jobs(&study, &plan, &slots(), ARRAYS);
    let first = jobs.iter().find(|j| j.stage.as_str() == "evaluate").unwrap();
    let elements =
        first.edges.iter().filter(|e| matches!(e.target, Target::Element(..)) && e.kind == EdgeKind::AfterAny);
    assert_eq!(elements.count(), first.edges.len(), "{}", print(&jobs));
}
