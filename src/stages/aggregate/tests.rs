//! Aggregations of small made-up studies, from sealed run.h5 files on disk.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::record::cell::CELL_VERSION;
use crate::record::fingerprint::FINGERPRINT_VERSION;
use crate::record::seal::{SEAL_VERSION, digest_outputs};
use crate::record::{
    Cell, CellKey, Digest, FingerprintSource, Name, Need, Origin, Outcome, Resources, Seal, files, run_h5,
};
use crate::stages::context::{Context, write_record};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn key(stage: &str, arm: Option<&str>, seed: Option<u32>) -> CellKey {
    CellKey { study: name("monotone"), profile: name("quick"), stage: name(stage), arm: arm.map(name), seed }
}

fn source(kind: &str, key: &CellKey) -> FingerprintSource {
    FingerprintSource {
        version: FINGERPRINT_VERSION,
        kind: kind.into(),
        kind_version: 1,
        params: json!({"arm": key.arm.as_ref().map_or("", Name::as_str)}),
        seed: key.seed,
        needs: BTreeMap::new(),
        inputs: BTreeMap::new(),
    }
}

fn resources() -> Resources {
    Resources { nodes: 1, tasks_per_node: 1, cpus_per_task: 1, gpus_per_node: 0, mem_bytes: None, time_s: 60 }
}

/// Writes and seals a cell as an attempt would, with times and a host that differ between calls.
fn sealed(base: &Path, kind: &str, key: &CellKey, metrics: Value) -> Need {
    let source = source(kind, key);
    let cell = Cell {
        version: CELL_VERSION,
        kind: kind.into(),
        number: 1,
        fingerprint: source.fingerprint(),
        base: base.into(),
        scratch: None,
        command: vec![],
        outputs: vec![],
        resumable: false,
        labels: BTreeMap::new(),
        key: key.clone(),
        resources: resources(),
        params: json!({}),
        needs: vec![],
        inputs: vec![],
        source: source.clone(),
    };
    let mut record = RunRecord::new(&cell);
    record.metrics = metrics;
    record.environment = json!({"duration_s": std::process::id() as f64 + 0.5, "path": base.to_string_lossy()});
    let dir = cell.run_dir();
    run_h5::write_run(&dir.join("run.h5"), &record).unwrap();
    Seal {
        version: SEAL_VERSION,
        key: key.clone(),
        fingerprint: source.fingerprint(),
        source: source.clone(),
        outcome: Outcome::Done,
        origin: Origin::Run,
        evidence: None,
        warnings: Vec::new(),
        content: Some(record.content_digest()),
        outputs: digest_outputs(&dir, &["run.h5".into()]).unwrap(),
        read: vec![],
        jobs: vec![],
        attempt: 1,
        host: "n1".into(),
        started_at: chrono::DateTime::UNIX_EPOCH,
        sealed_at: chrono::DateTime::UNIX_EPOCH,
        wall_s: 1.0,
        code: "test".into(),
        digest: Digest::of_bytes(b""),
    }
    .write(&dir)
    .unwrap();
    Need {
        key: key.clone(),
        kind: kind.into(),
        number: 1,
        labels: BTreeMap::new(),
        dir: key.local_dir(),
        fingerprint: source.fingerprint(),
    }
}

/// One seed's numbers: perplexities and success rates of baseline and monotonic.
type Numbers = (f64, f64, f64, f64);

fn attacked(rate: f64) -> Value {
    let scope =
        json!({"delta_nats": rate, "success_rates": {"nll_rel": rate, "ppl_rel": rate, "delta_nats": 1.0 - rate}});
    json!({
        "success_rate": rate, "random_control": {"success_rate": rate / 10.0}, "nll_increase_percent": 100.0 * rate,
        "trigger_text": "=cmd \u{1b}[31m", "scopes": {"all": scope, "untouched_targets": scope},
    })
}

fn seed_cells(base: &Path, arm: Option<&str>, seed: u32, numbers: Numbers) -> Vec<Need> {
    let (base_ppl, mono_ppl, base_rate, mono_rate) = numbers;
    let models = |a: Value, b: Value| json!({"baseline_pythia": a, "monotonic_pythia": b});
    let ppl = |x: f64| json!({"perplexity": x, "loss": x.ln(), "total_tokens": 1000});
    let history = |x: f64| json!({"best_val_perplexity": x, "train_losses": [2.5, 2.25], "num_epochs": 1, "train_tokens": 61_440});
    let attack = models(attacked(base_rate), attacked(mono_rate));
    let config = json!({"success_metric": "ppl_rel", "loss_scope": "all"});
    vec![
        sealed(base, "train", &key("train_baseline", None, Some(seed)), history(base_ppl)),
        sealed(base, "train", &key("train_monotonic", arm, Some(seed)), history(mono_ppl)),
        sealed(
            base,
            "evaluate",
            &key("evaluate", arm, Some(seed)),
            json!({
                "pile_test": models(ppl(base_ppl), ppl(mono_ppl)), "lambada": null,
                "metadata": {"model_name": "gpt-neox-quick", "unigram_perplexity": 42.0},
            }),
        ),
        sealed(base, "uat", &key("uat", arm, Some(seed)), json!({"attack_config": config, "results": attack})),
        sealed(
            base,
            "hotflip",
            &key("hotflip", arm, Some(seed)),
            json!({"attack_config": config, "results": attack, "statistical_tests": {}}),
        ),
    ]
}

const TWO: [(u32, Numbers); 2] = [(42, (10.0, 12.0, 0.8, 0.2)), (1337, (11.0, 12.1, 0.6, 0.3))];

fn study(base: &Path, seeds: &[(u32, Numbers)]) -> Vec<Need> {
    let mut needs = vec![sealed(base, "setup", &key("setup", None, None), json!({"num_parameters": 170_624}))];
    for (seed, numbers) in seeds {
        needs.extend(seed_cells(base, None, *seed, *numbers));
    }
    needs.sort_by(|a, b| a.key.cmp(&b.key));
    needs
}

fn table() -> Value {
    json!({
        "key": "foundation", "label": "tab:foundation-preliminary", "caption": "Foundation models.", "stub": "Model",
        "rows": [{"key": "baseline", "label": "Baseline", "with": {"model": "baseline_pythia"}},
                 {"key": "monotonic", "label": "Monotonic", "with": {"model": "monotonic_pythia"}}],
        "columns": [
            {"key": "parameters", "label": "Parameters", "stage": "setup", "metric": ".num_parameters", "notation": "suffix"},
            {"key": "ppl", "label": "Perplexity", "stage": "evaluate", "metric": ".pile_test[$row.model].perplexity", "show": "mean_sd"},
            {"key": "attack", "label": "Attack", "stage": "hotflip", "metric": ".results[$row.model].success_rate", "scale": 100, "show": "mean_sd"},
        ],
    })
}

/// The params as a study resolves them: every preset, and what is laid over.
fn params(over: Value) -> Value {
    let mut params: serde_json::Map<String, Value> = SPEC
        .fields
        .iter()
        .filter_map(|f| match f.preset {
            Preset::Is(json) => Some((f.name.to_owned(), serde_json::from_str(json).unwrap())),
            _ => None,
        })
        .collect();
    params.insert("tables".into(), json!([table()]));
    params.extend(over.as_object().unwrap().clone());
    Value::Object(params)
}

/// Runs the aggregation as its binary does; the outputs are in the returned directory.
fn aggregate(base: &Path, needs: Vec<Need>, params: Value) -> (Result<(), StageError>, std::path::PathBuf) {
    let key = key("aggregate", None, None);
    // A cell must not contradict its source.
    let source = FingerprintSource { params: params.clone(), ..source("aggregate", &key) };
    let cell = Cell {
        version: CELL_VERSION,
        kind: "aggregate".into(),
        number: 7,
        fingerprint: source.fingerprint(),
        base: base.into(),
        scratch: None,
        command: vec![],
        outputs: vec![],
        resumable: false,
        labels: BTreeMap::new(),
        key,
        resources: resources(),
        params,
        needs,
        inputs: vec![],
        source,
    };
    let path = cell.run_dir().join("cell.toml");
    files::write_atomic(&path, cell.to_toml().unwrap().as_bytes()).unwrap();
    let context = Context::open(&path, 1).unwrap();
    let result = run(&context).and_then(|record| write_record(&SPEC, &context, &record.unwrap()));
    (result, context.out_dir)
}

fn read_json(path: &Path) -> Value {
    files::read_json(path).unwrap()
}

#[test]
fn two_seeds_worked_out_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let (result, out) = aggregate(dir.path(), study(dir.path(), &TWO), params(json!({})));
    result.unwrap();
    let one = read_json(&out.join("seed-42/final_results.json"));
    assert_eq!(one["experiment_info"]["seed"], 42);
    assert_eq!(one["experiment_info"]["model_name"], "gpt-neox-quick");
    // (12 - 10) / 10 and (0.8 - 0.2) / 0.8.
    assert!((one["key_findings"]["perplexity_gap_percent"].as_f64().unwrap() - 20.0).abs() < 1e-12);
    assert!((one["key_findings"]["hotflip_reduction_percent"].as_f64().unwrap() - 75.0).abs() < 1e-12);
    assert_eq!(one["key_findings"]["most_robust_hotflip"], "monotonic_pythia");
    assert_eq!(one["criteria"][0]["status"], "not met");
    assert_eq!(one["criteria"][1]["status"], "met");
    assert_eq!(one["training_summary"]["baseline"]["final_train_loss"], 2.25);
    assert_eq!(one["evaluation_summary"]["lambada"], Value::Null);
    // nll_rel and ppl_rel fall, delta_nats rises: the metrics disagree, and that is said.
    assert!(one["warnings"].to_string().contains("disagree on the sign"), "{}", one["warnings"]);

    let all = read_json(&out.join("multi_seed_results.json"));
    assert_eq!(all["seeds"], json!([42, 1337]));
    assert_eq!((&all["num_seeds"], &all["num_seeds_expected"]), (&json!(2), &json!(2)));
    let gap = &all["perplexity_gap_percent"];
    // Gaps 20 and 10: mean 15, sd 10 / sqrt 2, interval 15 -+ 12.7062 * 5.
    assert!((gap["mean"].as_f64().unwrap() - 15.0).abs() < 1e-9);
    assert!((gap["std"].as_f64().unwrap() - 10.0 / 2f64.sqrt()).abs() < 1e-9);
    assert!((gap["ci_upper"].as_f64().unwrap() - (15.0 + 12.706204736174694 * 5.0)).abs() < 1e-6);
    assert_eq!(all["criteria"][0]["seeds_met"], 1);
    let test = &all["statistical_tests"]["perplexity"];
    // Differences -2 and -1.1: mean -1.55, sd 0.9 / sqrt 2, t = -1.55 / 0.45.
    assert!((test["t_stat"].as_f64().unwrap() + 1.55 / 0.45).abs() < 1e-9);
    assert_eq!((&test["n"], &test["bonferroni_m"]), (&json!(2), &json!(3)));

    let text = std::fs::read_to_string(out.join("tables/foundation.md")).unwrap();
    assert!(text.contains("| Monotonic | 170.62K | 12.05 ± 0.07 | 25.00 ± 7.07 |"), "{text}");
    for ending in ["tex", "md", "csv", "html", "json", "txt"] {
        assert!(out.join(format!("tables/foundation.{ending}")).is_file(), "{ending}");
    }
    for ending in ["svg", "png", "csv"] {
        assert!(out.join(format!("figures/attack_success.{ending}")).is_file(), "{ending}");
    }
    let summary = std::fs::read_to_string(out.join("seed-42/experiment_summary.txt")).unwrap();
    for said in [
        "gap: 20.0 %",
        "not met  perplexity gap, % < 15.0: 20.00",
        "met      reduction of HotFlip success",
        "random control",
    ] {
        assert!(summary.contains(said), "{said}:\n{summary}");
    }
    assert!(!summary.contains('\u{1b}'));
    // Made anew without a stage, the pages and results of seeds are the same bytes.
    let anew = dir.path().join("anew");
    let inputs = collect(&study(dir.path(), &TWO), dir.path());
    write_summaries(&mut Out::below(&anew), &params(json!({})), &inputs, &key("aggregate", None, None)).unwrap();
    let files = written(&anew);
    assert_eq!(files.len(), 5, "{:?}", files.keys());
    assert!(files.iter().all(|(name, bytes)| written(&out).get(name) == Some(bytes)), "{:?}", files.keys());
    let summary = std::fs::read_to_string(out.join("multi_seed_summary.txt")).unwrap();
    assert!(summary.contains("2 of 2 seeds") && summary.contains("(1 of 2 seeds on their own)"), "{summary}");
}

#[test]
fn what_a_stage_warns_of_is_in_the_results_and_on_the_page_of_its_seed() {
    let dir = tempfile::tempdir().unwrap();
    let needs = study(dir.path(), &TWO);
    let flagged = json!({"best_val_perplexity": 10.0, "warnings": ["suspiciously fast collapse: look at it"]});
    sealed(dir.path(), "train", &key("train_baseline", None, Some(42)), flagged);
    let (result, out) = aggregate(dir.path(), needs, params(json!({})));
    result.unwrap();
    let words = "train_baseline/seed-42: suspiciously fast collapse: look at it";
    for (seed, warns) in [(42, true), (1337, false)] {
        let found = read_json(&out.join(format!("seed-{seed}/final_results.json")));
        assert_eq!(found["warnings"].to_string().contains(words), warns, "{}", found["warnings"]);
        let page = std::fs::read_to_string(out.join(format!("seed-{seed}/experiment_summary.txt"))).unwrap();
        assert_eq!(page.contains(words), warns, "{page}");
    }
}

/// Every file that an aggregation wrote, by name. run.h5 has no times either.
fn written(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = crate::record::digest::files_below(out).unwrap();
    files.into_iter().map(|f| (f.to_string_lossy().into_owned(), std::fs::read(out.join(&f)).unwrap())).collect()
}

#[test]
fn two_runs_in_two_places_write_the_same_bytes() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, out_a) = aggregate(a.path(), study(a.path(), &TWO), params(json!({})));
    let (second, out_b) = aggregate(b.path(), study(b.path(), &TWO), params(json!({})));
    first.and(second).unwrap();
    let (a_files, b_files) = (written(&out_a), written(&out_b));
    assert!(a_files.len() >= 11, "{:?}", a_files.keys());
    assert_eq!(a_files.keys().collect::<Vec<_>>(), b_files.keys().collect::<Vec<_>>());
    for (name, bytes) in &a_files {
        assert!(Some(bytes) == b_files.get(name), "{name} differs");
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(&*a.path().to_string_lossy()), "{name} names a path");
    }
}

#[test]
fn what_was_written_is_found_again_and_what_was_changed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let needs = study(dir.path(), &TWO);
    let (result, out) = aggregate(dir.path(), needs.clone(), params(json!({})));
    result.unwrap();
    let before = written(&out);
    let verified = |needs: &[Need], params: Value| {
        let inputs = collect(needs, dir.path());
        let found = verify(&out, &params, &inputs, &key("aggregate", None, None))?;
        let said = found.differences.iter().map(|d| format!("{}: {}", d.file.display(), d.what)).collect();
        Ok::<(usize, Vec<String>), StageError>((found.made.len(), said))
    };
    let whole = verified(&needs, params(json!({}))).unwrap();
    assert_eq!((whole.0, whole.1.len()), (before.len(), 0), "{:?}", whole.1);

    let page = String::from_utf8(before["tables/foundation.md"].clone()).unwrap();
    let at = 1 + page.lines().position(|line| line.contains("12.05")).unwrap();
    std::fs::write(out.join("tables/foundation.md"), page.replace("12.05", "12.06")).unwrap();
    std::fs::write(out.join("tables/other.md"), "x").unwrap();
    std::fs::remove_file(out.join("seed-42/final_results.json")).unwrap();
    let (_, said) = verified(&needs, params(json!({}))).unwrap();
    assert_eq!(said.len(), 3, "{said:#?}");
    assert_eq!(said[0], "seed-42/final_results.json: is not there");
    assert!(
        said[1].starts_with(&format!("tables/foundation.md: line {at}: `| Monotonic | 170.62K | 12.06")),
        "{said:#?}"
    );
    assert_eq!(said[2], "tables/other.md: is made by nothing in the study");

    // Another number in one run is another number in the results, the summaries and the record.
    for (name, bytes) in &before {
        std::fs::write(out.join(name), bytes).unwrap();
    }
    std::fs::remove_file(out.join("tables/other.md")).unwrap();
    let mut other = TWO;
    other[0].1.1 = 12.5;
    let (_, said) = verified(&study(dir.path(), &other), params(json!({}))).unwrap();
    for file in ["run.h5", "multi_seed_results.json", "multi_seed_summary.txt", "tables/foundation.tex"] {
        assert!(said.iter().any(|line| line.starts_with(&format!("{file}: "))), "{file}: {said:#?}");
    }
    assert!(!said.iter().any(|line| line.starts_with("seed-1337/")), "{said:#?}");
    assert_eq!(written(&out), before, "nothing is written");

    std::fs::remove_file(dir.path().join("uat/seed-42/seal.json")).unwrap();
    let error = verified(&needs, params(json!({}))).unwrap_err();
    assert_eq!(error.exit_code(), crate::record::exit::MISSING_INPUT, "{error}");
}

#[test]
fn a_missing_seed_is_named_and_nothing_but_the_complete_ones_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let needs = study(dir.path(), &TWO);
    std::fs::remove_file(dir.path().join("hotflip/seed-1337/seal.json")).unwrap();
    let (result, out) = aggregate(dir.path(), needs.clone(), params(json!({})));
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), crate::record::exit::MISSING_INPUT);
    assert!(
        error.to_string().contains("1 of 11 needed cells")
            && error.to_string().contains("hotflip/seed-1337: not sealed"),
        "{error}"
    );
    assert!(out.join("seed-42/final_results.json").is_file());
    assert!(!out.join("seed-1337").exists() && !out.join("tables").exists());

    let (result, out) = aggregate(dir.path(), needs, params(json!({"partial": "mark"})));
    assert!(result.unwrap_err().to_string().contains("marked and not sealed"));
    let text = std::fs::read_to_string(out.join("tables/foundation.txt")).unwrap();
    assert!(text.contains("(a) 1 of 2 runs; missing: hotflip/seed-1337 (not sealed)"), "{text}");
}

#[test]
fn a_stale_or_changed_result_counts_as_missing() {
    let dir = tempfile::tempdir().unwrap();
    let mut needs = study(dir.path(), &TWO);
    needs.iter_mut().find(|n| n.key.local_name() == "uat/seed-42").unwrap().fingerprint = Digest::of_bytes(b"new");
    let changed = dir.path().join("evaluate/seed-1337/run.h5");
    std::fs::copy(dir.path().join("evaluate/seed-42/run.h5"), changed).unwrap();
    let (result, _) = aggregate(dir.path(), needs, params(json!({})));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("uat/seed-42: stale: sealed under other parameters"), "{error}");
    assert!(error.contains("evaluate/seed-1337: its run.h5 is not what was sealed"), "{error}");
}

#[test]
fn equal_seeds_are_degenerate_and_zero_divides_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let same = (6.72, 27.0, 0.0, 0.0);
    let (result, out) = aggregate(dir.path(), study(dir.path(), &[(1, same), (2, same), (3, same)]), params(json!({})));
    result.unwrap();
    let one = read_json(&out.join("seed-1/final_results.json"));
    assert_eq!(one["key_findings"]["hotflip_reduction_percent"], Value::Null);
    assert_eq!(
        one["key_findings"]["reasons"]["hotflip_reduction_percent"],
        "the HotFlip success rate of the baseline is 0"
    );
    assert_eq!(one["key_findings"]["reasons"]["most_robust_hotflip"], "the lowest success rate is shared");
    assert_eq!(one["criteria"][1]["status"], "unknown");
    let all = read_json(&out.join("multi_seed_results.json"));
    assert_eq!(all["baseline_pythia_perplexity"]["std"], 0.0);
    assert_eq!(all["statistical_tests"]["perplexity"]["degenerate"], "degenerate: no variance");
    assert_eq!(all["hotflip_reduction_percent"]["n"], 0);
    let text = std::fs::read_to_string(out.join("tables/foundation.md")).unwrap();
    assert!(text.contains("6.72 ± 0.00"), "{text}");
}

#[test]
fn arms_have_their_own_results_and_share_what_has_no_arm() {
    let dir = tempfile::tempdir().unwrap();
    let mut needs = seed_cells(dir.path(), Some("mlp_in"), 42, TWO[0].1);
    needs.extend(seed_cells(dir.path(), Some("mlp_both"), 42, (10.0, 15.0, 0.8, 0.4)));
    needs.sort_by(|a, b| a.key.cmp(&b.key));
    needs.dedup_by(|a, b| a.key == b.key);
    let (result, out) = aggregate(dir.path(), needs, params(json!({"tables": []})));
    result.unwrap();
    let gap = |arm: &str| {
        let found = read_json(&out.join(arm).join("seed-42/final_results.json"));
        assert_eq!(found["training_summary"]["baseline"]["best_val_perplexity"], 10.0);
        found["key_findings"]["perplexity_gap_percent"].as_f64().unwrap()
    };
    assert!((gap("mlp_in") - 20.0).abs() < 1e-9 && (gap("mlp_both") - 50.0).abs() < 1e-9);
    let all = read_json(&out.join("multi_seed_results.json"));
    assert_eq!(all["arms"]["mlp_in"]["num_seeds"], 1);
}

#[test]
fn a_table_that_reads_what_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut section = table();
    section["columns"][1]["metric"] = json!(".no_such.perplexity");
    section["columns"][2]["stage"] = json!("probe");
    let (result, _) = aggregate(dir.path(), study(dir.path(), &TWO), params(json!({"tables": [section]})));
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), crate::record::exit::BAD_OUTPUT);
    assert!(error.to_string().contains("table foundation: column `attack` reads the unknown stage `probe`"), "{error}");
}

#[test]
fn params_are_checked() {
    let problems = |over: Value| check(&params(over));
    assert!(problems(json!({})).is_empty());
    assert!(problems(json!({"treated": "other"}))[0].contains("`treated` is `other`"));
    assert!(problems(json!({"treated": "baseline_pythia"}))[0].contains("same model"));
}
