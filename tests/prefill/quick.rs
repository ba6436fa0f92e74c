//! The study runs: every stage of `configs/prefill.toml`, with fewer steps than its quick profile. What is asserted are
//! invariants (masks taken off again, leaks found, equal conditions equal), never the direction of an effect.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::repository;

const STUDY: &str = "configs/prefill.toml";

/// Blocks of the quick profile's model.
const LAYERS: u64 = 2;

/// The quick profile with less of everything.
fn shortened() -> String {
    let mut text = fs::read_to_string(repository().join(STUDY)).unwrap();
    for (from, to) in [
        ("generated_documents = 20_000", "generated_documents = 1_500"),
        ("pretrain_steps = 3000", "pretrain_steps = 40"),
        ("max_steps          = 200", "max_steps          = 30"),
        ("max_steps          = 120", "max_steps          = 30"),
        ("val_interval_steps = 50", "val_interval_steps = 30"),
        ("val_interval_steps = 60", "val_interval_steps = 30"),
        ("stop_no_signal_step    = 150", "stop_no_signal_step    = 30"),
        ("flag_collapse_step     = 50", "flag_collapse_step     = 30"),
        ("flag_collapse_step = 50", "flag_collapse_step = 30"),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    // What only the full profile has is no file here.
    text.split("# --- full:").next().unwrap().to_owned()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

#[test]
fn the_study_runs_and_its_invariants_hold() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("configs")).unwrap();
    fs::write(root.join(STUDY), shortened()).unwrap();
    let command = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command.args(words).current_dir(root).output().unwrap()
    };
    let done = command(env!("CARGO_BIN_EXE_run_all"), &[STUDY, "--profile", "quick", "--local"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let base = root.join("results/prefill/quick");

    // Every checkpoint under every mask, with its mask put on and taken off again.
    let mut conditions = BTreeSet::new();
    let mut exports = Vec::new();
    for (stage, arm, mask) in [
        ("stage1_baseline_eval", "vanilla", "causal"),
        ("stage2_ablation_eval", "vanilla.prefix", "prefix"),
        ("stage2_ablation_eval", "vanilla.full", "full"),
        ("stage4_postft_eval", "3A.prefix", "prefix"),
        ("stage4_postft_eval", "3A.full", "full"),
        ("stage4_postft_eval", "3B.prefix", "prefix"),
        ("stage4_postft_eval", "3B.full", "full"),
        ("stage4_postft_eval", "3B-full.prefix", "prefix"),
        ("stage4_postft_eval", "3B-full.full", "full"),
        ("nonprefill_compare", "vanilla", "causal"),
        ("nonprefill_compare", "3A", "causal"),
        ("nonprefill_compare", "3B", "causal"),
        ("nonprefill_compare", "3B-full", "causal"),
    ] {
        let export = json(&base.join(stage).join(arm).join("seed-42/metrics.json"));
        assert_eq!(export["mask"], mask, "{stage}/{arm}");
        assert_eq!(export["prefill_bidirectional"], mask != "causal", "{stage}/{arm}");
        let patch = &export["mask_patch"];
        let wanted = if mask == "causal" { (0, Value::Null) } else { (LAYERS, Value::Bool(true)) };
        assert_eq!(
            (&patch["patched_layers"], &patch["restored"]),
            (&Value::from(wanted.0), &wanted.1),
            "{stage}/{arm}"
        );
        let chances: Vec<f64> =
            export["tasks"].as_array().unwrap().iter().map(|task| task["chance"].as_f64().unwrap()).collect();
        assert_eq!(chances, [0.25, 0.5, 0.25, 0.25, 0.5]);
        conditions.insert((export["model"].as_str().unwrap().to_owned(), mask));
        exports.push(export);
    }
    assert_eq!(conditions.len(), 12, "{conditions:?}");
    // The same model under the same mask, evaluated by two stages: the same numbers.
    assert_eq!(exports[0]["tasks"], exports[9]["tasks"]);

    // What was recorded of the first run has the fields of these exports.
    let recorded = json(&repository().join("results/samples/prefill-recorded.json"));
    for (name, result) in recorded["runs"].as_object().unwrap() {
        for field in result.as_object().unwrap().keys().filter(|field| *field != "recorded") {
            assert!(exports[0].get(field).is_some(), "{name}: no evaluation exports `{field}`");
        }
        for field in result["tasks"].as_array().unwrap().iter().flat_map(|task| task.as_object().unwrap().keys()) {
            assert!(exports[0]["tasks"][0].get(field).is_some(), "{name}: no task exports `{field}`");
        }
    }

    // The guard: no label in sight under `prefix`, every label under `full`, which one stage allowed itself.
    let finetune = |stage: &str| json(&base.join(stage).join("seed-42/summary.json"));
    let (causal, prefix, leak) = (
        finetune("stage3_finetune_causal"),
        finetune("stage3_finetune_prefill_bidir"),
        finetune("stage3_finetune_leak"),
    );
    assert_eq!(causal["mask"]["train"], "causal");
    assert_eq!(prefix["mask"]["train"], "prefix");
    assert_eq!(prefix["leakage"]["structural"]["leaks"], false, "{}", prefix["leakage"]);
    assert_eq!(leak["leakage"]["structural"]["leaks"], true, "{}", leak["leakage"]);
    assert_eq!((&leak["leakage"]["allowed"], &leak["leakage_suspected"]), (&Value::Bool(true), &Value::Bool(true)));
    // All layers of both finetunes took the mask, and gave it back; the causal one had nothing to take.
    for (finetune, layers, restored) in
        [(&causal, 0, Value::Null), (&prefix, LAYERS, Value::Bool(true)), (&leak, LAYERS, Value::Bool(true))]
    {
        let patch = &finetune["mask_patch"];
        assert_eq!((&patch["patched_layers"], &patch["restored"]), (&Value::from(layers), &restored), "{patch}");
        assert_eq!(finetune["hyperparameters"]["keep"], "last");
    }

    // The summary has every condition, every pair and every interval.
    let summary = json(&base.join("aggregate/documents/summary.json"));
    assert_eq!(summary["intervals"].as_array().unwrap().len(), 13);
    let paired = summary["paired"].as_array().unwrap();
    assert_eq!(paired.len(), 13);
    for pair in paired {
        assert_eq!(pair["items"], 600, "{pair}");
        let counted: u64 =
            ["both", "only_first", "only_second", "neither"].iter().map(|k| pair[k].as_u64().unwrap()).sum();
        assert_eq!(counted, 600, "{pair}");
    }
    let page = fs::read_to_string(base.join("aggregate/documents/summary.md")).unwrap();
    for said in ["| Checkpoint | causal | prefix | full |", "| 3B-full | 0.", "## Paired Comparisons", "McNemar"] {
        assert!(page.contains(said), "{said}\n{page}");
    }
    let again = command(env!("CARGO_BIN_EXE_seedbed"), &["aggregate", STUDY, "--profile", "quick"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let printed = String::from_utf8(again.stdout).unwrap();
    // The question about 3A is asked, and all tables are there.
    assert_eq!(summary["criteria"].as_array().map(Vec::len), Some(3), "{}", summary["criteria"]);
    for table in ["postft", "conditions", "causal"] {
        assert!(base.join(format!("aggregate/tables/{table}.csv")).is_file(), "{table}");
    }
    assert!(printed.ends_with(&page), "{printed}");
}

/// The study at full scale, with stand-ins for what a person brings.
#[test]
fn the_full_profile_is_planned_and_generated() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for file in [STUDY, "configs/clusters/example.toml"] {
        let to = root.join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(repository().join(file), to).unwrap();
    }
    for (file, text) in [
        ("models/ministral-3-3b-instruct-2512-bf16/config.json", "{}"),
        ("data/alpaca-cleaned.jsonl", "{\"instruction\": \"a\", \"input\": \"\", \"output\": \"b\"}\n"),
        ("data/tasks/piqa/validation.jsonl", "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": 0}\n"),
    ] {
        let to = root.join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, text).unwrap();
    }
    let words = |first: &[&'static str]| {
        let last = [STUDY, "--profile", "full", "--cluster", "example", "--local"];
        [first, &last].concat()
    };
    let run = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        let output = command.args(words).current_dir(root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let generated = run(env!("CARGO_BIN_EXE_seedbed"), &words(&["generate"]));
    let scripts: Vec<&str> = generated.lines().collect();
    // One for each stage and arm: 1 + 1 + 2 + 3 + 6 + 4 + 1.
    assert_eq!(scripts.len(), 18, "{generated}");
    for script in &scripts {
        assert!(Command::new("bash").args(["-n", script]).status().unwrap().success(), "{script}");
    }
    let dry = run(env!("CARGO_BIN_EXE_run_all"), &[words(&[]), vec!["--dry-run"]].concat());
    for stage in ["stage3_finetune_causal", "stage3_finetune_prefill_bidir", "stage3_finetune_leak"] {
        assert!(dry.contains(stage), "{stage}\n{dry}");
    }
    assert!(!root.join("results/prefill/full/setup").exists());
}
