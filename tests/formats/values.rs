//! The values that the golden files hold: one of everything, every optional field given. Literals, so that a new
//! field does not compile before it is here.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::{DateTime, TimeZone, Utc};
use hdf5::types::{FixedUnicode, TypeDescriptor};
use seedbed::record::decision::{
    self, Condition, Confirmation, Decision, Earlier, Judged, JudgedInput, Missing, Question,
};
use seedbed::record::generation;
use seedbed::record::progress::Line;
use seedbed::record::seal::SealedFile;
use seedbed::record::{
    Adjust, AttemptEnd, AttemptStart, Cell, CellKey, Column, Digest, ExternalInput, FingerprintSource, Items, JobRef,
    Name, Need, Next, Origin, Outcome, Resources, RunRecord, Seal, SeriesPoint, Verdict, Why,
};
use seedbed::report::paper::PaperRecord;
use seedbed::report::paper::record::{KeyRecord, Number, Place, Where, Written};
use seedbed::report::paper::spec::{StudyRef, StudyUnder};
use seedbed::stages::recorded::{RECORDED_VERSION, RecordedFile};
use seedbed::workflow::budget::BudgetFile;
use seedbed::workflow::journal::{BilledStage, Entry, Event, IntendedCell};
use seedbed::workflow::plan::{Again, Link, Pack};
use seedbed::workflow::study::{Budget, Price, Retry, Staging};
use seedbed::workflow::submission::{ExpectedStage, Rules, Submission, SubmittedJob};
use serde_json::json;

pub const STUDY: &str = "schema = 1\n\n[study]\nname = \"monotone\"\n";
const SUBMISSION: &str = "20261121T081500-0a1b2c";

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn digest(of: &str) -> Digest {
    Digest::of_bytes(of.as_bytes())
}

fn at(second: u32) -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 21, 8, 15, second).unwrap()
}

fn key(stage: &str, arm: Option<&str>, seed: Option<u32>) -> CellKey {
    CellKey { study: name("monotone"), profile: name("quick"), stage: name(stage), arm: arm.map(name), seed }
}

fn source() -> FingerprintSource {
    FingerprintSource {
        version: 1,
        kind: "train".into(),
        kind_version: 1,
        params: json!({"lr": 0.001, "max_steps": 120, "model": "constrained"}),
        seed: Some(42),
        needs: BTreeMap::from([("setup".to_owned(), digest("setup"))]),
        inputs: BTreeMap::from([("corpus_dir".to_owned(), digest("corpus"))]),
    }
}

pub fn cell() -> Cell {
    Cell {
        version: 1,
        kind: "train".into(),
        number: 3,
        fingerprint: source().fingerprint(),
        base: "/data/ada/results/monotone/quick".into(),
        scratch: Some("/scratch/ada/seedbed-4f3e2d1c/monotone/quick/train_monotonic/mlp_in/seed-42".into()),
        command: vec!["python3".into(), "train.py".into()],
        outputs: vec!["best_model".into(), "training_history.json".into()],
        resumable: true,
        labels: BTreeMap::from([("variant".to_owned(), "in".to_owned())]),
        key: key("train_monotonic", Some("mlp_in"), Some(42)),
        resources: Resources {
            nodes: 2,
            tasks_per_node: 2,
            cpus_per_task: 1,
            gpus_per_node: 0,
            mem_bytes: Some(2_147_483_648),
            time_s: 600,
        },
        params: json!({"log_every": 20, "lr": 0.001, "max_steps": 120, "model": "constrained"}),
        needs: vec![Need {
            key: key("setup", None, None),
            kind: "setup".into(),
            number: 0,
            labels: BTreeMap::from([("text".to_owned(), "generated".to_owned())]),
            dir: "setup".into(),
            fingerprint: digest("setup"),
        }],
        inputs: vec![ExternalInput {
            name: "corpus_dir".into(),
            path: "/data/ada/corpus".into(),
            digest: digest("corpus"),
        }],
        source: source(),
    }
}

pub fn attempt_start() -> AttemptStart {
    AttemptStart {
        version: 1,
        attempt: 2,
        key: cell().key,
        fingerprint: source().fingerprint(),
        submission: SUBMISSION.into(),
        job: Some(JobRef { id: "1187_0".into(), restart: 1 }),
        host: "n1".into(),
        pid: 4711,
        boot_id: "6d6f6e6f-746f-6e65-9a6e-6f6e65676174".into(),
        user: "ada".into(),
        started_at: at(20),
        inputs: None,
    }
}

pub fn attempt_end() -> AttemptEnd {
    AttemptEnd {
        version: 1,
        exit_code: 75,
        cause: "checkpointed, to be run again".into(),
        step: Some(60),
        ended_at: at(48),
        wall_s: 28.25,
        verdict: None,
    }
}

/// An end with what was decided.
pub fn judged_end() -> AttemptEnd {
    AttemptEnd {
        exit_code: 1,
        cause: "failed; requeued with activation checkpointing, memory 3072M (2 of 2)".into(),
        verdict: Some(Verdict {
            why: Why::OutOfMemory,
            next: Next::Requeue,
            adjust: Adjust {
                mem_bytes: Some(3_221_225_472),
                time_s: Some(900),
                grace_s: Some(120),
                exclude: vec!["n3".into()],
                activation_checkpointing: true,
            },
        }),
        ..attempt_end()
    }
}

pub fn progress() -> Vec<Line> {
    let line = |step: u64, loss: f64| Line {
        step,
        total: Some(120),
        time_s: step as f64 * 0.25,
        values: BTreeMap::from([("loss".to_owned(), loss), ("lr".to_owned(), 0.001)]),
    };
    vec![line(20, 5.125), line(40, 4.0625), line(60, 3.5)]
}

pub fn generations() -> Vec<generation::Line> {
    let answered = generation::Line {
        version: 1,
        index: 0,
        prompt: "Q: 3 boxes of 4?\nA:".into(),
        text: " 3 * 4 = 12\n#### 12\n".into(),
        answer: Some("12".into()),
        gold_text: Some("3 * 4 = <<3*4=12>>12\n#### 12".into()),
        gold: Some("12".into()),
        is_match: Some(true),
        finish: "stop".into(),
        stop: Some("Q:".into()),
        prompt_tokens: 9,
        tokens: 14,
        group: Some("products".into()),
        item: serde_json::from_str(r#"{"id": "gsm-1"}"#).unwrap(),
    };
    let invalid = generation::Line {
        version: 1,
        index: 1,
        prompt: "naïve".into(),
        text: String::new(),
        answer: None,
        gold_text: None,
        gold: None,
        is_match: None,
        finish: "end".into(),
        stop: None,
        prompt_tokens: 2,
        tokens: 0,
        group: None,
        item: serde_json::Map::new(),
    };
    vec![answered, invalid]
}

pub fn run() -> RunRecord {
    let points = |values: [f64; 2]| {
        let point = |(i, value): (usize, &f64)| SeriesPoint { step: 20 * (i as u64 + 1), value: *value, time_s: 0.5 };
        values.iter().enumerate().map(point).collect()
    };
    let items = Items {
        columns: vec![
            ("id".to_owned(), Column::Texts(vec!["doc-0".into(), "naïve".into()])),
            ("nll".to_owned(), Column::Floats(vec![1.25, f64::NEG_INFINITY])),
            ("tokens".to_owned(), Column::Integers(vec![64, -1])),
        ],
    };
    RunRecord {
        key: cell().key,
        kind: "train".into(),
        fingerprint: source().fingerprint(),
        labels: cell().labels,
        metrics: json!({
            "best_val_perplexity": 6.918_123_456_789_1,
            "num_epochs": 1,
            "train_losses": [5.125, 4.0625],
            "trigger_ids": [3, 1, 4],
            "constraint_info": {"type": "softplus", "globally_monotonic": false},
            "lambada": null,
            "results": [{"loss": 1.5}, {"loss": 2.5, "why.not": "a [name]"}],
            "skipped": [],
            "empty": {},
        }),
        environment: json!({"training_time_seconds": 28.25, "host": "n1", "rates": [1.5, 2.5]}),
        series: BTreeMap::from([("loss".to_owned(), points([5.125, 4.0625]))]),
        items: BTreeMap::from([("pile_test".to_owned(), items)]),
        param_digest: Some(digest("parameters")),
        numerics: json!({"libtorch": "2.11.0", "threads_per_rank": 1, "lanes": 8}),
    }
}

pub fn seal() -> Seal {
    let file = |path: &str, size_bytes: u64| SealedFile { path: path.into(), size_bytes, digest: digest(path) };
    Seal {
        version: 1,
        key: cell().key,
        fingerprint: source().fingerprint(),
        source: source(),
        outcome: Outcome::Done,
        origin: Origin::Run,
        evidence: Some(json!({"criterion": "none"})),
        warnings: Vec::new(),
        content: Some(run().content_digest()),
        outputs: vec![file("best_model/model.safetensors", 693_248), file("run.h5", 11_264)],
        read: vec![file("setup/run.h5", 9_216)],
        jobs: vec!["1187_0".into()],
        attempt: 2,
        host: "n1".into(),
        started_at: at(20),
        sealed_at: at(52),
        wall_s: 56.5,
        code: "0.1.0 0a1b2c3".into(),
        digest: digest(""),
    }
}

/// A gate that a person confirmed, after a stop under another bound.
pub fn decision() -> Decision {
    let condition = |most: f64| Condition {
        name: "base_rate".into(),
        of: Some("evaluate".into()),
        value: "map(.metrics.rate) | mean".into(),
        least: Some(0.0),
        most: Some(most),
        above: Some(-1.0),
        below: Some(1.0),
        equals: Some(json!(0.25)),
    };
    let judged = |most: f64, holds: bool| Judged {
        condition: condition(most),
        found: Some(json!(0.25)),
        holds,
        problem: Some("has two values".into()),
    };
    let question = Question {
        conditions: vec![condition(0.3)],
        least_seeds: Some(2),
        missing: Missing::Without,
        confirm: Some("the samples were read".into()),
    };
    let input = |cell: &str, missing: Option<&str>| JudgedInput {
        cell: cell.into(),
        content: missing.is_none().then(|| digest(cell)),
        missing: missing.map(Into::into),
    };
    let inputs = vec![input("evaluate/seed-42", None), input("evaluate/seed-1337", Some("not sealed"))];
    Decision {
        version: 1,
        key: key("gap", None, None),
        fingerprint: digest("gap"),
        verdict: decision::Verdict::Pass,
        reason: String::new(),
        evidence: decision::evidence(&question, &inputs),
        confirmation: Some(confirmation(decision::evidence(&question, &inputs))),
        question,
        inputs,
        seeds: Some(1),
        conditions: vec![judged(0.3, true)],
        earlier: vec![Earlier {
            fingerprint: digest("gap before"),
            verdict: decision::Verdict::Stop,
            evidence: digest("evidence before"),
            conditions: vec![judged(0.2, false)],
            decided_at: at(10),
        }],
        decided_at: at(50),
        digest: digest(""),
    }
}

pub fn confirmation(evidence: Digest) -> Confirmation {
    Confirmation {
        version: 1,
        gate: "gap".into(),
        evidence,
        user: "ada".into(),
        host: "n1".into(),
        time: at(45),
        note: Some("read 20 of each".into()),
    }
}

pub fn submission() -> Submission {
    let job = |stage: &str| format!("monotone.{stage}.{SUBMISSION}");
    Submission {
        version: 1,
        name: SUBMISSION.into(),
        study: name("monotone"),
        profile: name("quick"),
        created_at: at(0),
        base: "/data/ada/results/monotone/quick".into(),
        programs: "/data/ada/results/monotone/quick/.seedbed/bin/0123456789abcdef".into(),
        rules: Rules {
            settle_s: 90,
            lease_s: 120,
            beat_s: 30,
            without_progress: 3,
            requeue: true,
            modules: Vec::new(),
            grace_s: None,
            retry: None,
        },
        jobs: vec![
            SubmittedJob {
                name: job("train_monotonic.mlp_in"),
                cells: BTreeMap::from([(1, cell().key.local_name())]),
                link: None,
                pack: None,
                tell: None,
                staging: Staging::default(),
            },
            SubmittedJob {
                name: job("aggregate"),
                cells: BTreeMap::from([(0, "aggregate".to_owned())]),
                link: None,
                pack: None,
                tell: None,
                staging: Staging::default(),
            },
        ],
        stages: vec![
            ExpectedStage {
                name: name("train_monotonic"),
                number: 3,
                cells: vec![(cell().key, source().fingerprint())],
            },
            ExpectedStage {
                name: name("aggregate"),
                number: 7,
                cells: vec![(key("aggregate", None, None), digest("aggregate"))],
            },
        ],
    }
}

/// A submission with rules for retries, and a link.
pub fn linked_submission() -> Submission {
    let before = submission();
    Submission {
        rules: Rules {
            requeue: false,
            modules: Vec::new(),
            grace_s: Some(300),
            retry: Some(Retry {
                without_progress: 3,
                out_of_memory: 2,
                memory_factor: 1.5,
                max_mem_bytes: Some(4_294_967_296),
                time_out: 2,
                time_factor: 1.5,
                max_time_s: Some(86_400),
                node_failure: 3,
                killed: 3,
            }),
            ..before.rules
        },
        jobs: vec![SubmittedJob {
            name: format!("monotone.train_monotonic.mlp_in.{SUBMISSION}-1"),
            cells: BTreeMap::from([(0, cell().key.local_name())]),
            link: Some(Link { number: 2, of: 3 }),
            pack: Some(Pack { cells: 2, in_turn: true }),
            tell: None,
            staging: Staging::default(),
        }],
        stages: vec![],
        ..before
    }
}

/// A cell that is submitted again after its attempts ran out of memory.
pub fn journal_again() -> Entry {
    let again = Again { attempt: 2, why: Why::OutOfMemory, adjust: judged_end().verdict.unwrap().adjust };
    let intended = IntendedCell {
        slot: None,
        pack: Some(Pack { cells: 2, in_turn: true }),
        fingerprint: source().fingerprint(),
        again: Some(again),
    };
    Entry {
        version: 1,
        time: at(9),
        user: "ada".into(),
        cluster: "sandbox".into(),
        event: Event::Intent {
            submission: SUBMISSION.into(),
            job: format!("monotone.train_baseline.{SUBMISSION}"),
            stage: name("train_baseline"),
            cells: BTreeMap::from([("train_baseline/seed-42".to_owned(), intended)]),
        },
    }
}

pub fn journal() -> Vec<Entry> {
    let job = |stage: &str| format!("monotone.{stage}.{SUBMISSION}");
    let intent = |stage: &str, cells: BTreeMap<String, IntendedCell>| Event::Intent {
        submission: SUBMISSION.into(),
        job: job(stage),
        stage: name(stage),
        cells,
    };
    let one = |cell: &str, slot| {
        BTreeMap::from([(
            cell.to_owned(),
            IntendedCell { slot, pack: None, fingerprint: source().fingerprint(), again: None },
        )])
    };
    let events = vec![
        Event::Asked { seeds: vec![42, 1337] },
        intent("train_baseline", one("train_baseline/seed-42", Some(0))),
        Event::Submitted { job: job("train_baseline"), id: "1187".into() },
        intent("uat", one("uat/seed-42", Some(0))),
        Event::Refused { job: job("uat"), message: "Invalid account or account/partition combination".into() },
        intent("aggregate", one("aggregate", None)),
        Event::Uncertain { job: job("aggregate"), reason: "no reply in 30 s".into() },
        Event::Gone { job: job("train_baseline"), slots: vec![0], reason: "replaced by a newer submission".into() },
    ];
    entries(events)
}

/// Events that version 2 of the journal brought.
pub fn journal_v2() -> Vec<Entry> {
    let billed = BilledStage { cells: 2, gpus: 1, cores: 8, expected_s: 5400.0, worst_s: 21_600.0 };
    let budget = |gpu_hours, cpu_hours, storage_bytes, cost| Budget {
        gpu_hours: Some(gpu_hours),
        cpu_hours: Some(cpu_hours),
        storage_bytes: Some(storage_bytes),
        cost: Some(cost),
    };
    entries(vec![
        Event::Billed { submission: SUBMISSION.into(), stages: BTreeMap::from([(name("train_baseline"), billed)]) },
        Event::OverBudget {
            reason: "the deadline is on Friday".into(),
            budget: budget(2.0, 100.0, 1 << 30, 3.5),
            ceiling: budget(12.5, 100.0, 1 << 30, 18.75),
        },
    ])
}

/// What version 3 of the journal brought: the reply of a site with several Slurm clusters.
pub fn journal_v3() -> Vec<Entry> {
    entries(vec![Event::Submitted { job: format!("monotone.train_baseline.{SUBMISSION}"), id: "1187;alps".into() }])
}

fn entries(events: Vec<Event>) -> Vec<Entry> {
    let entry = |(i, event): (usize, Event)| Entry {
        version: event.version(),
        time: at(u32::try_from(i).unwrap()),
        user: "ada".into(),
        cluster: "sandbox".into(),
        event,
    };
    events.into_iter().enumerate().map(entry).collect()
}

pub fn budget_file() -> BudgetFile {
    BudgetFile {
        version: 1,
        budget: Budget {
            gpu_hours: Some(70.0),
            cpu_hours: Some(500.0),
            storage_bytes: Some(1 << 40),
            cost: Some(200.0),
        },
        price: Price { gpu_hour: Some(1.5), cpu_hour: Some(0.02), currency: Some("EUR".into()) },
        expected_s: BTreeMap::from([(name("aggregate"), 600.0), (name("train_monotonic"), 5400.0)]),
    }
}

/// A paper with a cell, a note and a sentence.
pub fn paper_record() -> PaperRecord {
    let label = || "tab:foundation".to_owned();
    let perplexity = "foundation/monotonic/perplexity/full";
    let cell = Where::Cell {
        label: label(),
        tabular: Some(1),
        row: "Pythia-1.4B".into(),
        second: Some("Monotonic".into()),
        column: 3,
    };
    let number = |key: &str, printed: &str| vec![Number { occurrence: 1, key: key.into(), printed: printed.into() }];
    let place = |place: Where, file: &str, template: &str, numbers: Vec<Number>| Place {
        place,
        file: file.into(),
        template: template.into(),
        numbers,
    };
    let runs = ["monotone/quick/evaluate/seed-1337", "monotone/quick/evaluate/seed-42"];
    let key = |printed: &str| KeyRecord {
        printed: printed.into(),
        runs: BTreeMap::from(runs.map(|run| (run.to_owned(), digest(run)))),
    };
    let written = |file: &str, table: Option<&str>| Written {
        file: format!("seedbed/{file}"),
        table: table.map(str::to_owned),
        digest: digest(file),
    };
    PaperRecord {
        version: 1,
        studies: vec![
            StudyRef::File("../configs/monotone.toml".into()),
            StudyRef::Profile(StudyUnder { file: "../configs/gap.toml".into(), profile: Some("full".into()) }),
        ],
        files: vec![written("foundation.tex", Some("foundation")), written("values.tex", None)],
        places: vec![
            place(cell, "paper.tex", &format!("[[{perplexity}]]"), number(perplexity, "$37.68 \\pm 0.25$")),
            place(
                Where::Note { label: label(), tabular: Some(1) },
                "paper.tex",
                "\\par\\smallskip{\\footnotesize Perplexity, not ROUGE-L.\\par}",
                Vec::new(),
            ),
            place(
                Where::Passage { starts: "We expect a gap".into() },
                "sections/results.tex",
                "The gap is [[gap]]\\,\\%.",
                number("gap", "460.7"),
            ),
        ],
        keys: BTreeMap::from([(perplexity.to_owned(), key("$37.68 \\pm 0.25$")), ("gap".to_owned(), key("460.7"))]),
    }
}

/// One line for every group and dataset of an HDF5 file: path, fields with their types, rows, layout, attributes.
/// Widths of texts are those of the longest one.
pub fn structure(path: &Path) -> Vec<String> {
    fn walk(group: &hdf5::Group, lines: &mut Vec<String>) {
        let mut names = group.member_names().unwrap();
        names.sort();
        for name in names {
            if let Ok(sub) = group.group(&name) {
                lines.push(format!("{}/", sub.name()));
                walk(&sub, lines);
                continue;
            }
            let dataset = group.dataset(&name).unwrap();
            let attributes = dataset.attr_names().unwrap().join(", ");
            let layout = format!("{:?}", dataset.layout()).to_lowercase();
            let ty = shown(&dataset.dtype().unwrap().to_descriptor().unwrap());
            let attributes = if attributes.is_empty() { String::new() } else { format!(" @{attributes}") };
            lines.push(format!("{} {ty} x {} {layout}{attributes}", dataset.name(), dataset.size()));
        }
    }
    let file = hdf5::File::open(path).unwrap();
    let mut lines = Vec::new();
    walk(&file, &mut lines);
    lines
}

fn shown(ty: &TypeDescriptor) -> String {
    match ty {
        TypeDescriptor::Compound(compound) => {
            let fields: Vec<String> = compound.fields.iter().map(|f| format!("{} {}", f.name, shown(&f.ty))).collect();
            format!("{{{}}}", fields.join(", "))
        }
        TypeDescriptor::Enum(members) => {
            let names: Vec<&str> = members.members.iter().map(|m| m.name.as_str()).collect();
            format!("enum({})", names.join("|"))
        }
        other => other.to_string(),
    }
}

/// A `run.h5` of which nothing is known but its version.
pub fn write_version_only(path: &Path, version: u32) {
    #[derive(hdf5::H5Type, Clone)]
    #[repr(C)]
    struct Row {
        path: FixedUnicode<7>,
        value: f64,
        kind: u8,
    }
    let file = hdf5::File::create(path).unwrap();
    let row = Row { path: "version".parse().unwrap(), value: f64::from(version), kind: 1 };
    let dataset = file.create_group("meta").unwrap().new_dataset::<Row>().shape([1]).create("metrics").unwrap();
    dataset.write(&[row]).unwrap();
}

/// Paths of the rows of `/meta`: what `run.h5` says of itself.
pub fn meta_paths(path: &Path) -> Vec<String> {
    #[derive(hdf5::H5Type, Clone)]
    #[repr(C)]
    struct Row {
        path: FixedUnicode<200>,
    }
    // A copy: another test may have the file open, and HDF5 wants the same locking of both.
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("run.h5");
    std::fs::copy(path, &copy).unwrap();
    let file = hdf5::File::open(&copy).unwrap();
    let rows = ["meta/metrics", "meta/texts"].map(|name| file.dataset(name).unwrap().read_raw::<Row>().unwrap());
    rows.concat().iter().map(|row| row.path.to_string()).collect()
}

/// Results that were recorded elsewhere: one of a task, and a macro accuracy alone.
pub fn recorded() -> RecordedFile {
    let serde_json::Value::Object(runs) = json!({
        "baseline": {
            "model_id": "m", "mask": "causal",
            "tasks": [{"task": "piqa", "total": 8, "accuracy": 0.75, "chance": 0.5}],
            "recorded": {"run": "runs/eval/20260215-093750_final"},
        },
        "tuned": {"model_id": "m", "mask": "full", "tasks": [], "macro_accuracy": 0.5},
    }) else {
        unreachable!("an object")
    };
    RecordedFile { version: RECORDED_VERSION, source: "a page of results".to_owned(), runs }
}
