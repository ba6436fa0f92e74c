//! Documents of small studies. The stage summary is that of a real one, with its numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::record::{CellKey, Digest, Name};
use crate::report::query::{Job, Limits, evaluate};
use crate::report::table::Run;

fn cell(stage: &str, arm: Option<&str>, seed: Option<u32>, run: Result<Value, &str>) -> Expected {
    let name = |s: &str| Name::new(s).unwrap();
    let key = CellKey { study: name("s"), profile: name("p"), stage: name(stage), arm: arm.map(name), seed };
    let digest = |what: &str| Digest::of_bytes(format!("{what} {key}").as_bytes());
    let (fingerprint, content) = (digest("fingerprint"), digest("content"));
    let run =
        run.map(|tree| Run { tree: std::sync::Arc::new(tree), fingerprint, content, day: None }).map_err(str::to_owned);
    Expected { labels: BTreeMap::new(), run, key }
}

fn built(section: &Value, expected: &[Expected], partial: Partial) -> Result<Document, Vec<String>> {
    built_within(Duration::from_secs(10), section, expected, partial)
}

fn built_within(
    time: Duration,
    section: &Value,
    expected: &[Expected],
    partial: Partial,
) -> Result<Document, Vec<String>> {
    let spec = DocumentSpec::parse(section, &["eval", "bridge"]).unwrap();
    let asked = asks(&spec, expected);
    let jobs: Vec<Job> = asked
        .iter()
        .map(|ask| Job { code: &ask.code, input: &expected[ask.cell].run.as_ref().unwrap().tree, row: &Value::Null })
        .collect();
    let limits = Limits { time, ..Limits::default() };
    let answers = asked.iter().cloned().zip(evaluate(&jobs, limits)).collect();
    build(&spec, expected, &answers, &Outcomes::new(), partial)
}

const TASKS: [&str; 5] = ["hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"];

/// The metrics of an evaluation: 500 items a task, 299 of one.
fn metrics(right: [f64; 5]) -> Value {
    let totals = [500.0, 500.0, 500.0, 299.0, 500.0];
    let chances = [0.25, 0.5, 0.25, 0.25, 0.5];
    let tasks: Vec<Value> = (0..5)
        .map(|i| json!({"task": TASKS[i], "total": totals[i], "accuracy": right[i] / totals[i], "chance": chances[i]}))
        .collect();
    json!({"model_id": "m_1", "tasks": tasks})
}

/// Items that each stage of the historic study got right.
const VANILLA: [f64; 5] = [311.0, 394.0, 407.0, 175.0, 333.0];
const ABLATED: [f64; 5] = [121.0, 267.0, 119.0, 74.0, 259.0];
const TUNED: [f64; 5] = [162.0, 308.0, 176.0, 74.0, 252.0];

fn summary() -> Value {
    json!({
        "key": "stages",
        "kind": "stage_summary",
        "title": "Stage 1-4 results summary",
        "date": "2026-02-15",
        "scope": [
            {"label": "Base model", "stage": "eval", "arm": "vanilla", "metric": ".model_id"},
            {"label": "Split", "value": "validation"},
        ],
        "stages": [
            {"key": "s1", "label": "Stage 1", "short": "S1", "condition": "vanilla causal prefill", "definition": "Vanilla baseline", "stage": "eval", "arm": "vanilla"},
            {"key": "s2", "label": "Stage 2", "short": "S2", "condition": "prefill bidirectional", "stage": "eval", "arm": "ablated"},
            {"key": "s4", "label": "Stage 4", "short": "S4", "condition": "after finetune", "stage": "eval", "arm": "tuned"},
            {"key": "plain", "label": "Finetuned, causal", "stage": "eval", "arm": "plain", "listed": false},
        ],
        "compare": [
            {"of": "s2", "to": "s1"},
            {"of": "s4", "to": "s2", "per_task": true},
            {"of": "s4", "to": "s1", "per_task": true},
        ],
        "questions": [
            {"ask": "How much does it hurt?", "of": "s2", "to": "s1"},
            {"ask": "Can it be fixed?", "of": "s4", "from": "s2", "to": "s1"},
        ],
        "checks": [{"title": "non-prefill behavior", "of": "plain", "to": "s1"}],
    })
}

fn one_seed() -> Vec<Expected> {
    let arms =
        [("vanilla", VANILLA), ("ablated", ABLATED), ("tuned", TUNED), ("plain", [300.0, 350.0, 360.0, 150.0, 300.0])];
    arms.into_iter().map(|(arm, right)| cell("eval", Some(arm), Some(42), Ok(metrics(right)))).collect()
}

#[test]
fn the_numbers_of_the_historic_summary_come_out() {
    let document = built(&summary(), &one_seed(), Partial::Error).unwrap();
    let text = &document.markdown;
    for said in [
        "# Stage 1-4 results summary (2026-02-15)\n",
        "## Scope\n- Base model: `m_1`\n- Split: `validation`\n- Eval tasks: `hellaswag, piqa, arc_easy, arc_challenge, winogrande`\n- Seeds: `42`\n",
        "- Stage 1: Vanilla baseline\n",
        "| Stage 1 | vanilla causal prefill | 0.6950568562 |\n",
        "| Stage 2 | prefill bidirectional | 0.3558983278 |\n",
        "| Stage 4 | after finetune | 0.4086983278 |\n",
        "- Stage 2 damage vs Stage 1: `-0.3391585284` (about `-33.92` macro points, retention `0.5120x`)\n",
        "- Stage 4 gain vs Stage 2: `+0.0528000000` (about `+5.28` macro points, retention `1.1484x`)\n",
        "- Stage 4 damage vs Stage 1: `-0.2863585284` (about `-28.64` macro points, retention `0.5880x`)\n",
        "| Task | Stage 1 | Stage 2 | Stage 4 | Delta S4-S2 | Delta S4-S1 |\n|---|---:|---:|---:|---:|---:|\n",
        "| hellaswag | 0.622000 | 0.242000 | 0.324000 | +0.082000 | -0.298000 |\n",
        "| arc_challenge | 0.585284 | 0.247492 | 0.247492 | +0.000000 | -0.337793 |\n",
        "| winogrande | 0.666000 | 0.518000 | 0.504000 | -0.014000 | -0.162000 |\n",
        "### 1) How much does it hurt?\n- A lot: macro drops from `0.6951` to `0.3559` (`-33.92` points).\n- This is a near-halving of Stage 1 capability (`0.5120x` retention).\n- Chance is `0.3500`: Stage 2 is `+0.59` points from it.\n",
        "- Partially, but not fully: Stage 4 improves over Stage 2 by `+5.28` macro points.\n",
        "- It does **not** recover close to Stage 1: Stage 4 is still `-28.64` points below Stage 1.\n",
        "- Criteria: recovery ratio of at least `0.80x`: `0.5880x`, not met; gain of at least `+5.00` points: `+5.28`, met; both: **not met**.\n",
        "## Additional Check: non-prefill behavior\n",
        "Interpretation:\n- Finetuned, causal shows a notable regression against Stage 1.\n",
        "| `s/p/eval/vanilla/seed-42` |",
    ] {
        assert!(text.contains(said), "{said}\n---\n{text}");
    }
    assert!(!text.contains("| Finetuned, causal |"), "it is in no table\n{text}");
    assert_eq!(document.numbers["stages"][1]["macro"]["n"], 1);
    assert_eq!(document.numbers["compare"][0]["of"], "s2");
    assert_eq!(document.numbers["runs"].as_array().unwrap().len(), 4);
}

#[test]
fn the_day_of_the_last_result_dates_a_document() {
    let section = |date: &str| {
        let mut section = summary();
        section["date"] = json!(date);
        section
    };
    let mut cells = one_seed();
    let day = |k: u32| chrono::NaiveDate::from_ymd_opt(2026, 11, k);
    for (k, cell) in cells.iter_mut().enumerate() {
        // The last of them is not the last of the list.
        cell.run.as_mut().unwrap().day = day([3, 21, 20, 9][k]);
    }
    // A stage that the document does not read is not asked.
    cells.push(cell("bridge", None, Some(42), Ok(json!({}))));
    cells.last_mut().unwrap().run.as_mut().unwrap().day = day(30);
    let heading = |date: &str, cells: &[Expected], partial| {
        built(&section(date), cells, partial).unwrap().markdown.lines().next().unwrap().to_owned()
    };
    assert_eq!(heading("results", &cells, Partial::Error), "# Stage 1-4 results summary (2026-11-21)");
    assert_eq!(heading("spring", &cells, Partial::Error), "# Stage 1-4 results summary (spring)");
    let missing: Vec<Expected> =
        cells.iter().map(|cell| Expected { run: Err("not sealed".to_owned()), ..cell.clone() }).collect();
    assert_eq!(heading("results", &missing, Partial::Mark), "# Stage 1-4 results summary");
}

#[test]
fn other_numbers_give_other_words() {
    let mut cells = one_seed();
    let tree = |right| cell("eval", Some("tuned"), Some(42), Ok(metrics(right)));
    // Nearly everything comes back.
    cells[2] = tree([300.0, 380.0, 390.0, 170.0, 330.0]);
    let text = built(&summary(), &cells, Partial::Error).unwrap().markdown;
    assert!(text.contains("- Yes: Stage 4 improves over Stage 2") && text.contains("both: **met**"), "{text}");
    assert!(text.contains("It recovers to `0.9"), "{text}");
    // It gets worse still.
    cells[2] = tree([100.0, 200.0, 100.0, 60.0, 200.0]);
    let text = built(&summary(), &cells, Partial::Error).unwrap().markdown;
    assert!(text.contains("- No: Stage 4 does not improve over Stage 2 (`-"), "{text}");
    assert!(text.contains("- Stage 4 damage vs Stage 2"), "{text}");
    // The ablation helps.
    cells[1] = cell("eval", Some("ablated"), Some(42), Ok(metrics([400.0, 400.0, 450.0, 200.0, 400.0])));
    let text = built(&summary(), &cells, Partial::Error).unwrap().markdown;
    assert!(text.contains("- Not at all: macro rises from") && text.contains("Stage 2 gain vs Stage 1"), "{text}");
    assert!(text.contains("- There was nothing to recover: Stage 4 does not improve over Stage 2"), "{text}");
}

#[test]
fn seeds_are_paired_and_counted() {
    let mut cells = one_seed();
    for (arm, right) in
        [("vanilla", [310.0, 394.0, 407.0, 175.0, 333.0]), ("ablated", [131.0, 267.0, 119.0, 74.0, 259.0])]
    {
        cells.push(cell("eval", Some(arm), Some(7), Ok(metrics(right))));
    }
    let document = built(&summary(), &cells, Partial::Error).unwrap();
    let text = &document.markdown;
    assert!(text.contains("- Seeds: `7, 42`\n") && text.contains("| Macro Accuracy | sd | n |"), "{text}");
    // Differences -0.3347585 and -0.3391585 on the two seeds that both have.
    assert!(
        text.contains("- Stage 2 damage vs Stage 1: `-0.3369585284` (about `-33.70` macro points, retention"),
        "{text}"
    );
    assert!(
        text.contains("vs Stage 2: `+0.0528000000` (about `+5.28` macro points, retention `1.1484x`, n = 1)"),
        "{text}"
    );
}

#[test]
fn arms_are_not_pooled_whatever_their_seeds_are() {
    for seed in [42, 7] {
        let mut section = summary();
        section["stages"][0].as_object_mut().unwrap().remove("arm");
        let mut cells = one_seed();
        cells.iter_mut().skip(1).for_each(|cell| cell.key.seed = Some(seed));
        assert_eq!(
            built(&section, &cells, Partial::Error).unwrap_err()[0],
            format!(
                "document `stages`: stage `s1`: eval/vanilla/seed-42 and eval/ablated/seed-{seed} are two cells for one \
                 place: say `arm` or `labels`"
            )
        );
    }
}

#[test]
fn missing_cells_are_problems_or_marked() {
    let mut cells = one_seed();
    cells[1] = cell("eval", Some("ablated"), Some(42), Err("not sealed"));
    let problems = built(&summary(), &cells, Partial::Error).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("document `stages`: stage `s2`: eval/ablated/seed-42 is missing (not sealed)"),
        "{problems:?}"
    );
    let text = built(&summary(), &cells, Partial::Mark).unwrap().markdown;
    assert!(text.contains("| Stage 2 | prefill bidirectional | n/a |"), "{text}");
    assert!(text.contains("- No answer: a number is missing."), "{text}");
    assert!(text.contains("| `s/p/eval/ablated/seed-42` | missing: not sealed |"), "{text}");
    let mut endless = summary();
    endless["macro"] = json!("def f: f; f");
    let problems = built_within(Duration::from_millis(300), &endless, &one_seed(), Partial::Error).unwrap_err();
    assert!(
        problems[0].contains("eval/vanilla/seed-42: the filter `def f: f; f`") && problems[0].contains("was stopped"),
        "{problems:?}"
    );
    cells[1] = cell("eval", Some("ablated"), Some(42), Ok(json!({"tasks": [{"task": "x"}]})));
    let problems = built(&summary(), &cells, Partial::Mark).unwrap_err();
    assert!(problems[0].contains("no array of {task, accuracy}"), "{problems:?}");
    let problems = built(&summary(), &cells[..1], Partial::Mark).unwrap_err();
    assert!(problems[0].contains("no expected cell of stage `eval` matches"), "{problems:?}");
}

fn run_table() -> Value {
    json!({
        "key": "runs",
        "kind": "run_table",
        "title": "Experiment table",
        "stage": "bridge",
        "value_label": "Bridged acc",
        "source": ".source",
        "target": ".target",
        "sample": ".sample",
        "status": ".status",
        "rows": [
            {"arm": "phase1", "label": "phase1_full", "config": "all fixes", "notes": ["Stable baseline"]},
            {"arm": "answer"},
        ],
        "notes": [{"when": ".share > 0.5", "text": "constant outputs"}],
    })
}

fn runs() -> Vec<Expected> {
    let evals = |list: &[(u64, f64)]| -> Vec<Value> {
        list.iter().map(|(step, accuracy)| json!({"step": step, "accuracy": accuracy})).collect()
    };
    let mut first = evals(&[(250, 0.52), (1500, 0.68), (2000, 0.64)]);
    first.push(json!({"step": "final", "accuracy": 0.645}));
    let one = json!({"evals": first, "source": 0.54, "target": 0.77, "sample": "| #### 18 \\input{x}", "status": "done", "share": 0.1});
    let two = json!({"evals": evals(&[(1250, 0.36), (1750, 0.315)]), "source": 0.765, "target": 0.515, "sample": "#### 10", "status": "timeout", "share": 0.92});
    vec![cell("bridge", Some("phase1"), None, Ok(one)), cell("bridge", Some("answer"), None, Ok(two))]
}

#[test]
fn a_row_for_each_run() {
    let document = built(&run_table(), &runs(), Partial::Error).unwrap();
    let text = &document.markdown;
    for said in [
        "| Run | Config | Bridged acc (peak → final) | Source / target | Sample output | Notes |\n",
        "| phase1\\_full | all fixes | 0.680 (step 1500) → 0.645 | 0.540 / 0.770 | “\\| \\#\\#\\#\\# 18 \\\\input\\{x\\}” | Stable baseline |\n",
        "| answer |  | 0.360 (step 1250) → 0.315 (step 1750) | 0.765 / 0.515 | “\\#\\#\\#\\# 10” | timeout: the last evaluation is that of step 1750; constant outputs |\n",
    ] {
        assert!(text.contains(said), "{said}\n---\n{text}");
    }
    assert_eq!(document.numbers["rows"][1]["peak"], json!({"step": 1250, "accuracy": 0.36}));
    let mut unknown = run_table();
    unknown["rows"][1]["arm"] = json!("other");
    assert!(built(&unknown, &runs(), Partial::Error).unwrap_err()[0].contains("no expected cell of arm `other`"));
    let mut wrong = run_table();
    wrong["evals"] = json!(".source");
    assert!(built(&wrong, &runs(), Partial::Error).unwrap_err()[0].contains("gives no array of {step, accuracy}"));
}

#[test]
fn a_summary_and_action_items_follow_from_the_runs() {
    let mut section = run_table();
    section["summary"] = json!([
        {"label": "Phase 1", "arms": ["phase1"]},
        {"label": "Both phases"},
    ]);
    section["actions"] = json!([
        {"when": ".status == \"timeout\"", "text": "Run again with more wall clock"},
        {"when": ".share > 0.5", "text": "Punish constant outputs"},
        {"when": ".evals[-1].accuracy < 0.1", "text": "Look at the collapse"},
    ]);
    let document = built(&section, &runs(), Partial::Error).unwrap();
    let text = &document.markdown;
    for said in [
        "# Experiment table\n\n## Executive summary\n\n",
        "- **Phase 1** (1 run): Bridged acc peaks at 0.680 and ends at 0.645, 0.105 above the source, 0.125 below the target.\n",
        "- **Both phases** (2 runs): Bridged acc peaks at 0.360 to 0.680 and ends at 0.315 to 0.645, above the source in 1 of 2, \
         0.125 to 0.200 below the target; not done: answer (timeout).\n",
        "\n| Run | Config |",
        "\n## Action items\n\n1. Run again with more wall clock: answer.\n2. Punish constant outputs: answer.\n\n## Artifacts\n",
    ] {
        assert!(text.contains(said), "{said}\n---\n{text}");
    }
    assert!(!text.contains("Look at the collapse"), "{text}");
    assert_eq!(document.numbers["summary"][1]["final"], json!({"least": 0.315, "most": 0.645}));
    assert_eq!(document.numbers["actions"][1], json!({"text": "Punish constant outputs", "runs": ["answer"]}));
    // Other results, other words.
    let mut well = runs();
    let evals = json!([{"step": 1250, "accuracy": 0.8}]);
    let tree = json!({"evals": evals, "source": 0.765, "target": 0.515, "sample": "x", "status": "done", "share": 0.1});
    well[1] = cell("bridge", Some("answer"), None, Ok(tree));
    let text = built(&section, &well, Partial::Error).unwrap().markdown;
    assert!(text.contains("0.035 to 0.105 above the source, above the target in 1 of 2.\n"), "{text}");
    assert!(text.contains("\n## Action items\n\nNone: no rule of the study holds of any run.\n"), "{text}");
    // A run without a result is said to have no number.
    let mut lost = runs();
    lost[0] = cell("bridge", Some("phase1"), None, Err("not sealed"));
    let text = built(&section, &lost, Partial::Mark).unwrap().markdown;
    assert!(text.contains("- **Phase 1** (1 run): no number yet.\n"), "{text}");
    section["summary"][0]["arms"] = json!(["phase9"]);
    let problems = DocumentSpec::parse(&section, &["bridge"]).unwrap_err();
    assert!(problems[0].said().starts_with("summary.0.arms: the summary speaks of arm `phase9`"), "{problems:?}");
    section["actions"][0]["when"] = json!(".status");
    section["summary"] = json!([]);
    let problems = built(&section, &runs(), Partial::Error).unwrap_err();
    assert!(problems[0].contains("gives \"done\", not true or false"), "{problems:?}");
}

#[test]
fn problems_of_a_section_have_places() {
    let problem = |base: Value, edit: &dyn Fn(&mut Value), fragment: &str| {
        let mut section = base;
        edit(&mut section);
        let problems = DocumentSpec::parse(&section, &["eval", "bridge"]).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].message.contains(fragment), "{fragment}: {problems:?}");
        problems[0].path.len()
    };
    assert_eq!(problem(summary(), &|s| s["kind"] = json!("stages"), "no kind of document"), 1);
    assert_eq!(problem(summary(), &|s| s["stagse"] = json!([]), "unknown key `stagse` in a document"), 1);
    assert_eq!(problem(summary(), &|s| s["stages"][0]["stage"] = json!("evl"), "unknown stage `evl`"), 3);
    assert_eq!(problem(summary(), &|s| s["compare"][0]["of"] = json!("s3"), "none of the document's stages"), 3);
    assert_eq!(problem(summary(), &|s| s["questions"][1]["from"] = json!("s3"), "none of the document's stages"), 3);
    assert_eq!(problem(summary(), &|s| s["tasks"] = json!(".tasks |"), "line 1, column 9"), 1);
    assert_eq!(problem(summary(), &|s| s["tasks"] = json!("env"), "not allowed"), 1);
    assert_eq!(problem(summary(), &|s| s["scope"][0]["value"] = json!("x"), "either `value`"), 2);
    let twice = |s: &mut Value| {
        let again = s["stages"][3].clone();
        s["stages"].as_array_mut().unwrap().push(again);
    };
    assert_eq!(problem(summary(), &twice, "key of two stages"), 3);
    assert_eq!(problem(summary(), &|s| s["task_digits"] = json!(40), "12 decimals"), 1);
    assert_eq!(problem(run_table(), &|s| s["notes"][0]["when"] = json!("nosuch"), "not defined"), 3);
    assert_eq!(problem(run_table(), &|s| s["rows"][0]["lable"] = json!("x"), "unknown key `lable` in a row"), 3);
    assert_eq!(problem(run_table(), &|s| s["plateau"] = json!(0), "plateau"), 1);
    assert_eq!(problem(run_table(), &|s| s["digits"] = json!("three"), "`digits` of a document cannot be read"), 1);
    assert_eq!(problem(run_table(), &|s| drop(s.as_object_mut().unwrap().remove("title")), "has no `title`"), 0);
    assert!(DocumentSpec::parse(&json!(3), &[]).is_err());
    assert_eq!(
        DocumentSpec::parse(&run_table(), &["bridge"]).unwrap().stages().into_iter().collect::<Vec<_>>(),
        ["bridge"]
    );
}

#[test]
fn stages_with_other_tasks_are_not_compared() {
    let task = |name: &str, accuracy: f64| json!({"task": name, "accuracy": accuracy});
    let of = |arm: &str, seed: u32, tasks: &[Value]| cell("eval", Some(arm), Some(seed), Ok(json!({"tasks": tasks})));
    let stage = |key: &str| json!({"key": key, "label": key, "stage": "eval", "arm": key});
    let section = |more: Value| {
        let mut section =
            json!({"key": "s", "kind": "stage_summary", "title": "T", "stages": [stage("vanilla"), stage("tuned")]});
        section.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        section
    };
    let both = [task("easy", 0.9), task("hard", 0.1)];
    let cells = [of("vanilla", 1, &both), of("tuned", 1, &both[..1])];
    let said = "document `s`: stages `tuned` and `vanilla` are compared and were evaluated on different tasks, only one of \
                them has \"hard\": evaluate the same tasks, or let `tasks` choose those that all have";
    for comparison in [
        json!({"compare": [{"of": "tuned", "to": "vanilla"}]}),
        json!({"questions": [{"ask": "?", "of": "tuned", "to": "vanilla"}]}),
        json!({"checks": [{"title": "c", "of": "tuned", "to": "vanilla"}]}),
    ] {
        assert_eq!(built(&section(comparison), &cells, Partial::Error).unwrap_err(), [said]);
    }
    assert!(built(&section(json!({})), &cells, Partial::Error).is_ok(), "side by side nothing is compared");
    let chosen = json!({
        "tasks": ".tasks | map(select(.task == \"easy\"))",
        "compare": [{"of": "tuned", "to": "vanilla"}],
    });
    let text = built(&section(chosen), &cells, Partial::Error).unwrap().markdown;
    assert!(text.contains("`+0.00` macro points"), "{text}");
    // Seeds of one stage.
    let seeds = [of("vanilla", 1, &both), of("vanilla", 2, &both[1..]), of("tuned", 1, &both)];
    assert_eq!(
        built(&section(json!({})), &seeds, Partial::Mark).unwrap_err(),
        [
            "document `s`: stage `vanilla`: eval/vanilla/seed-2 lacks tasks that other cells of the stage have: \"easy\": \
             evaluate the same tasks, or let `tasks` choose those that all have"
        ]
    );
}
