//! `configs/prefill-recorded.toml`: from recorded figures to the tables and answers of the summary that they came from.
//! Every printed number follows from its inputs, and from nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use seedbed::record::{CellKey, Digest, Name};
use seedbed::report::document::{Answers, Document, DocumentSpec, Outcomes, asks, build};
use seedbed::report::query::{Job, Limits, evaluate};
use seedbed::report::table::{Expected, Partial, Run};
use seedbed::stages::recorded;
use serde_json::{Value, json};

use crate::support::repository;

const STUDY: &str = "configs/prefill-recorded.toml";
const FIGURES: &str = "results/samples/prefill-recorded.json";

/// Every table, derived number and answer of the summary of 2026-02-15, to the byte.
const PRINTED: [&str; 7] = [
    "# Stage 1-4 Results Summary (2026-02-15)\n",
    "\
## Macro Accuracy by Stage
| Stage | Condition | Macro Accuracy |
|---|---|---:|
| Stage 1 | vanilla causal prefill | 0.6950568562 |
| Stage 2 | prefill bidirectional ablation | 0.3558976000 |
| Stage 4 (from Stage 3B ckpt) | ablated prefill after finetune | 0.4086983278 |

Derived:
- Stage 2 damage vs Stage 1: `-0.3391592562` (retention `0.512x`)
- Stage 4 gain vs Stage 2: `+0.0528007278` (about `+5.28` macro points)
- Stage 4 retention vs Stage 1: `0.5880x`
",
    "\
## Per-Task: Stage 1 vs Stage 2 vs Stage 4
| Task | Stage 1 | Stage 2 | Stage 4 | Delta S4-S2 | Delta S4-S1 |
|---|---:|---:|---:|---:|---:|
| hellaswag | 0.622000 | 0.242000 | 0.324000 | +0.082000 | -0.298000 |
| piqa | 0.788000 | 0.534000 | 0.616000 | +0.082000 | -0.172000 |
| arc_easy | 0.814000 | 0.238000 | 0.352000 | +0.114000 | -0.462000 |
| arc_challenge | 0.585284 | 0.247492 | 0.247492 | +0.000000 | -0.337793 |
| winogrande | 0.666000 | 0.518000 | 0.504000 | -0.014000 | -0.162000 |
",
    "\
## Direct Answer to the Main Questions
### 1) How much does prefill bidirectional attention hurt performance?
- A lot without adaptation: macro drops from `0.6951` to `0.3559` (`-33.9` points).
- This is a near-halving of baseline capability (`0.512x` retention).
",
    "\
### 2) Can this be fixed easily with a bit of finetuning?
- Partially, but not fully: Stage 4 improves over Stage 2 by `+5.28` macro points.
- It does **not** recover close to baseline: Stage 4 is still `-28.64` points below Stage 1.
",
    "\
## Additional Check: Non-Prefill Behavior After Stage 3B Finetune
To test whether finetune just helped the ablated condition while keeping normal behavior intact, we also evaluated under standard non-prefill:
- Vanilla non-prefill macro: `0.6950568562`
- Stage 3B checkpoint non-prefill macro: `0.6199344482`
- Delta: `-0.0751224080` (retention `0.8919x`)

Interpretation:
- Finetuning for the ablated prefill condition improved that condition, but introduced a notable regression relative to vanilla under standard non-prefill evaluation.
",
    "\
## Artifacts
- Stage 1/2 reference summary: `docs\u{2f}RESULTS_STAGE1_STAGE2.md`
- Stage 3B checkpoint: `runs/stage3_finetune_prefill_bidir/20260214-233534/final`
- Stage 4 metrics: `runs/stage4_postft_eval/20260215-093750_final/metrics.json`
- Stage 4 log: `runs/stage4_postft_eval/20260215-093750_final/log.txt`
- Non-prefill vanilla: `runs/nonprefill_compare/20260215-085905_vanilla/metrics.json`
- Non-prefill Stage 3B ckpt: `runs/nonprefill_compare/20260215-091629_prefill_ft_nonprefill_eval/metrics.json`
",
];

/// Other lines that the summary has, and what the study's page asks for.
const SAID: [&str; 13] = [
    "## Hypothesis\nRemoving the prefill causal mask will degrade zero-shot capability",
    "- Base model: `mistralai/Ministral-3-3B-Instruct-2512`\n",
    "- Split: `validation`\n",
    "- Eval tasks: `hellaswag, piqa, arc_easy, arc_challenge, winogrande`\n",
    "- Limit: `500` per task (arc_challenge has 299 valid examples)\n",
    "## Stage Definitions\n- Stage 1: Vanilla baseline (standard causal prefill)\n",
    "- Stage 3B: Leakage-safe finetune with prefix-LM objective (`--prompt-bidir-response-causal-train`)\n",
    "- So this objective change is not trivially fixed by a short finetune if your target is full baseline recovery.\n",
    "- Criteria: recovery ratio of at least `0.80x`: `0.5880x`, not met; gain of at least `+5.00` points: `+5.28`, met; both: **not met**.\n",
    "- Chance is `0.3500`: Stage 2 is `+0.59` points from it.\n",
    "| hellaswag | 0.250000 | +0.372000 | -0.008000 | +0.074000 |\n",
    "| macro | 0.350000 | +0.345057 | +0.005898 | +0.058698 |\n",
    // Wilson's intervals of 311 of 500, and of 175 of 299.
    "| Stage 1 | vanilla causal prefill | - | 0.6220 \\[0.5787, 0.6634\\] | 0.7880 \\[",
];

/// The document of the study, over figures.
fn document_of(figures: &Value) -> Document {
    let study: Value = toml::from_str(&fs::read_to_string(repository().join(STUDY)).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("figures.json");
    fs::write(&file, figures.to_string()).unwrap();
    let name = |text: &str| Name::new(text).unwrap();
    let mut expected = Vec::new();
    let mut stages = Vec::new();
    for stage in study["stage"].as_array().unwrap().iter().filter(|stage| stage["run"] == "recorded") {
        stages.push(stage["name"].as_str().unwrap());
        for arm in stage["arms"].as_array().unwrap() {
            let key = CellKey {
                study: name("prefill-recorded"),
                profile: name("default"),
                stage: name(stage["name"].as_str().unwrap()),
                arm: Some(name(arm["name"].as_str().unwrap())),
                seed: None,
            };
            let labels = arm["labels"].as_object().unwrap();
            let labels = labels.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned())).collect();
            let tree = recorded::read(&file, arm["params"]["run"].as_str().unwrap()).unwrap();
            // What is in a digest is looked at elsewhere.
            let digest = Digest::of_bytes(key.to_string().as_bytes());
            let run = Ok(Run { tree: Arc::new(tree), fingerprint: digest.clone(), content: digest, day: None });
            expected.push(Expected { key, labels, run });
        }
    }
    let spec = DocumentSpec::parse(&study["document"][0], &stages).unwrap();
    let asked = asks(&spec, &expected);
    let jobs: Vec<Job<'_>> = asked
        .iter()
        .map(|ask| Job { code: &ask.code, input: &expected[ask.cell].run.as_ref().unwrap().tree, row: &Value::Null })
        .collect();
    let answers: Answers = asked.iter().cloned().zip(evaluate(&jobs, Limits::default())).collect();
    build(&spec, &expected, &answers, &Outcomes::new(), Partial::Error).unwrap()
}

fn figures() -> Value {
    serde_json::from_str(&fs::read_to_string(repository().join(FIGURES)).unwrap()).unwrap()
}

/// Stages that have tasks, and how the table below calls them.
const WITH_TASKS: [(&str, &str); 3] =
    [("S1", "stage1_baseline_eval"), ("S2", "stage2_ablation_eval"), ("S4", "stage4_postft_eval")];
const TASKS: [&str; 5] = ["hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"];

/// Every line with a number in it, by how it begins, with the inputs that it follows from: `S1` a macro accuracy and all that
/// it is the mean of, `S1.piqa` a task. `NV` and `NF` are the two checks without ablation.
fn follows_from() -> Vec<(String, Vec<String>)> {
    let of = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut lines: Vec<(String, Vec<String>)> = [
        ("| Stage 1 | vanilla causal prefill | 0.6950568562", of(&["S1"])),
        ("| Stage 2 | prefill bidirectional ablation | 0.3558976000", of(&["S2"])),
        ("| Stage 4 (from", of(&["S4"])),
        ("- Stage 2 damage vs Stage 1", of(&["S1", "S2"])),
        ("- Stage 4 gain vs Stage 2", of(&["S2", "S4"])),
        ("- Stage 4 retention vs Stage 1", of(&["S1", "S4"])),
        ("| macro |", of(&["S1", "S2", "S4"])),
        ("- A lot without", of(&["S1", "S2"])),
        ("- This is a near-halving", of(&["S1", "S2"])),
        ("- Chance is", of(&["S2"])),
        ("- Partially", of(&["S2", "S4"])),
        ("- It does **not**", of(&["S1", "S4"])),
        ("- Criteria", of(&["S1", "S2", "S4"])),
        ("- Vanilla non-prefill macro", of(&["NV"])),
        ("- Stage 3B checkpoint non-prefill macro", of(&["NF"])),
        ("- Delta:", of(&["NV", "NF"])),
        ("| Stage 1 | vanilla causal prefill | - |", of(&["S1.*"])),
        ("| Stage 2 | prefill bidirectional ablation | - |", of(&["S2.*"])),
        ("| Stage 4 | ablated prefill after finetune | - |", of(&["S4.*"])),
    ]
    .into_iter()
    .map(|(line, inputs)| (line.to_owned(), inputs))
    .collect();
    for task in TASKS {
        let inputs: Vec<String> = ["S1", "S2", "S4"].iter().map(|stage| format!("{stage}.{task}")).collect();
        lines.push((format!("| {task} | 0.622000|0.788000|0.814000|0.585284|0.666000"), inputs.clone()));
        lines.push((format!("| {task} | 0.250000|0.500000"), inputs));
    }
    lines
}

/// Whether a line begins so; behind the last `| ` one of several numbers may stand.
fn begins(line: &str, how: &str) -> bool {
    match how.split_once(" | 0.").filter(|_| how.matches('|').count() >= 3) {
        Some((head, numbers)) if how.starts_with("| ") && !how.starts_with("| Stage") => {
            let rest = line.strip_prefix(&format!("{head} | ")).unwrap_or("");
            format!("0.{numbers}").split('|').any(|number| rest.starts_with(number))
        }
        _ => line.starts_with(how),
    }
}

#[test]
fn the_recorded_figures_give_the_recorded_summary() {
    let document = document_of(&figures());
    for part in PRINTED.iter().chain(&SAID) {
        assert!(document.markdown.contains(part), "{part}\n---\n{}", document.markdown);
    }
    let criterion = &document.numbers["criteria"][0];
    assert_eq!(criterion["met"], false, "{criterion}");
    assert!((criterion["recovery_ratio"].as_f64().unwrap() - 0.588_007_04).abs() < 1e-6, "{criterion}");
    assert!((criterion["gain"].as_f64().unwrap() - 0.052_800_727_8).abs() < 1e-10, "{criterion}");
}

#[test]
fn every_number_moves_with_its_inputs_and_with_no_other() {
    let before = document_of(&figures()).markdown;
    let table = follows_from();
    // Each input moved on its own: 25 more right answers of a task, a macro accuracy that has no tasks, and one that was
    // recorded beside them and is still their mean as far as it is printed.
    let mut moved: Vec<(Vec<String>, Value)> = Vec::new();
    for (short, run) in WITH_TASKS {
        for (i, task) in TASKS.iter().enumerate() {
            let mut figures = figures();
            let result = &mut figures["runs"][run];
            let total = result["tasks"][i]["total"].as_f64().unwrap();
            let more = 25.0 / total;
            result["tasks"][i]["accuracy"] = json!(result["tasks"][i]["accuracy"].as_f64().unwrap() + more);
            if let Some(given) = result["macro_accuracy"].as_f64() {
                result["macro_accuracy"] = json!(given + more / 5.0);
            }
            moved.push((vec![short.to_owned(), format!("{short}.{task}"), format!("{short}.*")], figures));
        }
    }
    for (short, run) in [("NV", "nonprefill_vanilla"), ("NF", "nonprefill_3B")] {
        let mut figures = figures();
        let given = figures["runs"][run]["macro_accuracy"].as_f64().unwrap();
        figures["runs"][run]["macro_accuracy"] = json!(given + 0.01);
        moved.push((vec![short.to_owned()], figures));
    }
    assert_eq!(moved.len(), 17);
    let mut touched: BTreeSet<String> = BTreeSet::new();
    for (inputs, figures) in &moved {
        let after = document_of(figures).markdown;
        assert_eq!(before.lines().count(), after.lines().count(), "{inputs:?}");
        let changed: BTreeSet<&str> =
            before.lines().zip(after.lines()).filter(|(b, a)| b != a).map(|(b, _)| b).collect();
        let follows = |line: &str| {
            table.iter().any(|(how, from)| begins(line, how) && from.iter().any(|input| inputs.contains(input)))
        };
        let wanted: BTreeSet<&str> = before.lines().filter(|line| follows(line)).collect();
        assert_eq!(changed, wanted, "{inputs:?}");
        touched.extend(changed.iter().map(|line| (*line).to_owned()));
    }
    // Every line of the tables has been moved by something: none is typed.
    for (how, _) in &table {
        assert!(touched.iter().any(|line| begins(line, how)), "{how}");
    }
}

#[test]
fn a_macro_accuracy_of_its_own_moves_alone() {
    let before = document_of(&figures()).markdown;
    let mut altered = figures();
    // Within what rounding to six decimals explains.
    altered["runs"]["stage2_ablation_eval"]["macro_accuracy"] = json!(0.355_898_8);
    let after = document_of(&altered).markdown;
    let changed: Vec<&str> = before.lines().zip(after.lines()).filter(|(b, a)| b != a).map(|(_, a)| a).collect();
    // Numbers of four decimals do not see it.
    assert_eq!(
        changed,
        [
            "| Stage 2 | prefill bidirectional ablation | 0.3558988000 |",
            "- Stage 2 damage vs Stage 1: `-0.3391580562` (retention `0.512x`)",
            "- Stage 4 gain vs Stage 2: `+0.0527995278` (about `+5.28` macro points)",
            "| macro | 0.350000 | +0.345057 | +0.005899 | +0.058698 |",
        ]
    );
}

#[test]
fn the_file_is_in_the_format_of_an_evaluation() {
    // The fields of an evaluation's export that a recorded result has; `recorded` says where it lay.
    let fields: BTreeMap<&str, fn(&Value) -> bool> = BTreeMap::from([
        ("model", Value::is_string as fn(&Value) -> bool),
        ("model_id", Value::is_string),
        ("prefill_bidirectional", Value::is_boolean),
        ("mask", Value::is_string),
        ("convention", Value::is_string),
        ("split", Value::is_string),
        ("limit_per_task", Value::is_u64),
        ("tasks", Value::is_array),
        ("macro_accuracy", Value::is_f64),
        ("recorded", Value::is_object),
    ]);
    let figures = figures();
    for (name, result) in figures["runs"].as_object().unwrap() {
        for (field, value) in result.as_object().unwrap() {
            assert!(fields.get(field.as_str()).is_some_and(|fits| fits(value)), "{name}: {field} = {value}");
        }
        assert_eq!(result["prefill_bidirectional"], result["mask"] != "causal", "{name}");
        for task in result["tasks"].as_array().unwrap() {
            let keys: Vec<&str> = task.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(keys, ["accuracy", "chance", "task", "total"], "{name}");
        }
    }
}

/// The study and its figures below a folder of their own.
fn copied() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in [STUDY, FIGURES] {
        let to = dir.path().join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(repository().join(file), to).unwrap();
    }
    dir
}

fn command(root: &Path, program: &str, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
        command.env_remove(name);
    }
    command.args(words).current_dir(root).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn aggregate_prints_the_summary_from_imported_cells_and_never_an_old_number() {
    let dir = copied();
    let root = dir.path();
    let (seedbed, run_all) = (env!("CARGO_BIN_EXE_seedbed"), env!("CARGO_BIN_EXE_run_all"));
    let done = command(root, run_all, &[STUDY, "--local"]);
    assert!(done.status.success(), "{}", text(&done));
    let base = root.join("results/prefill-recorded/default");
    for cell in ["stage1_baseline_eval/vanilla", "stage4_postft_eval/3B.full", "nonprefill_compare/3B"] {
        let seal: Value = serde_json::from_slice(&fs::read(base.join(cell).join("seal.json")).unwrap()).unwrap();
        assert_eq!(seal["origin"], "imported", "{cell}");
    }
    let seal: Value = serde_json::from_slice(&fs::read(base.join("aggregate/seal.json")).unwrap()).unwrap();
    assert_eq!(seal["origin"], "run");
    let told = |cell: &str| fs::read_to_string(base.join(cell).join("log.txt")).unwrap();
    assert!(
        told("stage2_ablation_eval/vanilla.full")
            .contains("0.3558976000 stands as it was recorded; the mean of the recorded tasks is 0.3558983278")
    );

    let printed = command(root, seedbed, &["aggregate", STUDY]);
    assert!(printed.status.success(), "{}", text(&printed));
    let page = String::from_utf8(printed.stdout).unwrap();
    for part in PRINTED.iter().chain(&SAID) {
        assert!(page.contains(part), "{part}\n---\n{page}");
    }
    assert_eq!(page, fs::read_to_string(base.join("aggregate/documents/summary.md")).unwrap());

    // One figure is corrected: what was imported of it is no result any more, until it is imported again.
    let file = root.join(FIGURES);
    let old = fs::read_to_string(&file).unwrap();
    let new = old.replacen("\"accuracy\": 0.324,", "\"accuracy\": 0.424,", 1);
    assert_ne!(old, new);
    fs::write(&file, &new).unwrap();
    let stale = command(root, seedbed, &["aggregate", STUDY]);
    assert_eq!(stale.status.code(), Some(66), "{}", text(&stale));
    assert!(
        !text(&stale).contains("0.4086983278") && text(&stale).contains("stage4_postft_eval/3B.full: stale"),
        "{}",
        text(&stale)
    );
    let again = command(root, run_all, &[STUDY, "--local"]);
    assert!(again.status.success(), "{}", text(&again));
    let page = text(&command(root, seedbed, &["aggregate", STUDY]));
    for part in [
        "| Stage 4 (from Stage 3B ckpt) | ablated prefill after finetune | 0.4286983278 |",
        "- Stage 4 gain vs Stage 2: `+0.0728007278` (about `+7.28` macro points)",
        "| hellaswag | 0.622000 | 0.242000 | 0.424000 | +0.182000 | -0.198000 |",
        "- Stage 2 damage vs Stage 1: `-0.3391592562` (retention `0.512x`)",
    ] {
        assert!(page.contains(part), "{part}\n---\n{page}");
    }

    // A figure that contradicts the others is refused, with both numbers.
    fs::write(&file, old.replacen("\"accuracy\": 0.242,", "\"accuracy\": 0.342,", 1)).unwrap();
    let refused = command(root, run_all, &[STUDY, "--local"]);
    assert!(!refused.status.success());
    let log = told("stage2_ablation_eval/vanilla.full");
    assert!(
        log.contains("`macro_accuracy` = 0.3558976 is not the mean of its tasks, 0.3758983278"),
        "{log}\n{}",
        text(&refused)
    );
}
