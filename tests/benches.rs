//! The scripts in `scripts/bench/`: bad use is named, programs that break the protocol are refused, sides are
//! compared round by round, and a table's rows of one processor never touch another's.
//!
//! The sides here are small shell programs whose times are known; what the real ones do is measured, not tested.

use crate::support::repository;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn bench(name: &str, words: &[&str]) -> Output {
    Command::new("python3")
        // No compiled modules among the sources.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(repository().join("scripts/bench").join(name))
        .args(words)
        .output()
        .unwrap()
}

/// Runs `code` with the modules of the benches at hand.
fn python(code: &str, words: &[&str]) -> Output {
    Command::new("python3")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONPATH", repository().join("scripts/bench"))
        .args(["-c", code])
        .args(words)
        .output()
        .unwrap()
}

fn succeed(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bad_use_of_a_bench_is_named_and_ends_with_64() {
    for script in
        ["attack", "checkpoint", "elastic", "eval", "generate", "gpu", "roofline", "train", "train-link", "train-tiny"]
    {
        for (words, named) in [
            (&["--rouns", "3"][..], "--rouns"),
            (&["--rounds", "0"], "0"),
            (&["train-huge"], "train-huge"),
            (&["--our-options", "gemm=mkl"], "gemm=mkl"),
            (&["--ours", "/nowhere/ours"], "/nowhere/ours"),
        ] {
            let output = bench(script, words);
            assert_eq!(output.status.code(), Some(64), "{script} {words:?}: {}", text(&output));
            assert!(text(&output).contains(named), "{script} {words:?}: {}", text(&output));
        }
    }
}

#[test]
fn bad_use_of_the_benches_of_the_workflow_is_named_and_ends_with_64() {
    for script in ["plan-scale", "submit", "aggregate", "query"] {
        for (words, named) in [(&["--rouns", "3"][..], "--rouns"), (&["--rounds", "0"], "0"), (&["explain"], "explain")]
        {
            let output = bench(script, words);
            assert_eq!(output.status.code(), Some(64), "{script} {words:?}: {}", text(&output));
            assert!(text(&output).contains(named), "{script} {words:?}: {}", text(&output));
        }
    }
    for sizes in ["100", "1000,100", "30,60", "many"] {
        let output = bench("plan-scale", &["--sizes", sizes]);
        assert_eq!(output.status.code(), Some(64), "{sizes}: {}", text(&output));
        assert!(text(&output).contains("multiples of 20") || sizes == "many", "{sizes}: {}", text(&output));
    }
    let nothing = bench("plan-scale", &["--programs", "/nowhere"]);
    assert_eq!(nothing.status.code(), Some(69), "{}", text(&nothing));
    assert!(text(&nothing).contains("/nowhere has no seedbed"), "{}", text(&nothing));
}

#[test]
fn slopes_and_calls_are_computed_from_what_was_measured() {
    let code = r"
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.SourceFileLoader('scale', sys.argv[1])
scale = importlib.util.module_from_spec(importlib.util.spec_from_loader('scale', loader))
loader.exec_module(scale)
print(round(scale.slope([(100, 1.0), (1000, 10.0), (10000, 100.0)]), 6), round(scale.slope([(10, 3.0), (1000, 30000.0)]), 6))
print(sorted(scale.count(sys.argv[2]).items()))
";
    let table = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000600           6       100         7 openat
 40.00    0.000400           2       200           statx
------ ----------- ----------- --------- --------- ----------------
100.00    0.001000           3       300         7 total
";
    let script = repository().join("scripts/bench/plan-scale");
    let said = succeed(python(code, &[script.to_str().unwrap(), table]));
    assert_eq!(said, "1.0 2.0\n[('openat', 100), ('statx', 200)]\n");
}

// --- the table ---------------------------------------------------------------------------------------------

const UPDATE: &str = r"
import json, sys, table
try:
    table.update(sys.argv[1], *json.loads(sys.argv[2]))
except table.TableError as error:
    sys.exit(str(error))
";

fn page(dir: &Path, body: &str) -> PathBuf {
    let path = dir.join("page.md");
    fs::write(&path, format!("# Page\n\n<!-- bench b -->\n{body}<!-- end b -->\n\ntext | with bars\n")).unwrap();
    path
}

fn update(page: &Path, rows: serde_json::Value) -> Output {
    let told = serde_json::json!(["b", ["processor", "name", "ratio"], rows]);
    python(UPDATE, &[page.to_str().unwrap(), &told.to_string()])
}

#[test]
fn a_row_of_one_processor_never_overwrites_anothers() {
    let dir = tempfile::tempdir().unwrap();
    let page = page(dir.path(), "");
    succeed(update(&page, serde_json::json!([["Xeon 8481C", "small", "1.1"], ["Xeon 8481C", "large", "1.2"]])));
    let of_xeon = |text: &str| text.lines().filter(|l| l.contains("Xeon")).map(str::to_owned).collect::<Vec<_>>();
    let before = of_xeon(&fs::read_to_string(&page).unwrap());
    assert_eq!(before, ["| Xeon 8481C | small | 1.1 |", "| Xeon 8481C | large | 1.2 |"]);

    succeed(update(&page, serde_json::json!([["EPYC (family 26 model 2)", "small", "1.4"]])));
    succeed(update(&page, serde_json::json!([["EPYC (family 26 model 2)", "small", "1.5"]])));
    let text = fs::read_to_string(&page).unwrap();
    assert_eq!(of_xeon(&text), before);
    assert_eq!(text.matches("EPYC").count(), 1, "{text}");
    assert!(text.contains("| EPYC (family 26 model 2) | small | 1.5 |\n"), "{text}");

    // Its own row is replaced where it stands; everything around the table stays.
    succeed(update(&page, serde_json::json!([["Xeon 8481C", "small", "0.9"]])));
    let text = fs::read_to_string(&page).unwrap();
    assert_eq!(of_xeon(&text), ["| Xeon 8481C | small | 0.9 |", "| Xeon 8481C | large | 1.2 |"]);
    assert!(text.starts_with("# Page\n\n<!-- bench b -->\n\n| processor | name | ratio |\n|---|---|---|\n"), "{text}");
    assert!(text.ends_with("<!-- end b -->\n\ntext | with bars\n"), "{text}");
}

#[test]
fn bars_and_lines_in_a_cell_do_not_break_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let page = page(dir.path(), "");
    for ratio in ["1", "2"] {
        succeed(update(&page, serde_json::json!([["a|b\nc", "x\\", ratio]])));
    }
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("| a\\|b c | x\\\\ | 2 |\n") && !text.contains("| 1 |"), "{text}");
}

#[test]
fn a_page_that_cannot_take_the_rows_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for (body, rows, named) in [
        ("<!-- end b -->\n", serde_json::json!([["p", "n", "1"]]), "no one place"),
        ("| processor | other |\n|---|---|\n| p | n |\n", serde_json::json!([["p", "n", "1"]]), "other columns"),
        ("", serde_json::json!([["p", "n"]]), "2 cells for 3 columns"),
    ] {
        let page = page(dir.path(), body);
        let before = fs::read(&page).unwrap();
        let output = update(&page, rows);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(named), "{}", text(&output));
        assert_eq!(fs::read(&page).unwrap(), before);
    }
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["page.md"], "a temporary file was left behind");
}

#[test]
fn the_page_of_the_repository_has_a_place_for_every_bench() {
    let text = fs::read_to_string(repository().join("docs/performance.md")).unwrap();
    for entry in fs::read_dir(repository().join("scripts/bench")).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() || path.extension().is_some() {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(text.contains(&format!("scripts/bench/{name}`")), "docs/performance.md does not tell of {name}");
        assert!(text.contains(&format!("<!-- bench {name} -->")), "docs/performance.md has no place for {name}");
    }
}

// --- the processor -----------------------------------------------------------------------------------------

#[test]
fn a_processor_without_a_number_is_told_by_family_and_model() {
    for (cpuinfo, expected) in [
        (
            "vendor_id : AuthenticAMD\ncpu family : 26\nmodel : 2\nmodel name : AMD EPYC\n",
            "AMD EPYC (family 26 model 2)",
        ),
        (
            "cpu family : 6\nmodel : 143\nmodel name : Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz\n",
            "Intel Xeon Platinum 8481C",
        ),
        (
            "cpu family : 6\nmodel : 106\nmodel name : Intel(R) Xeon(R) Processor @ 2.60GHz\n",
            "Intel Xeon Processor (family 6 model 106)",
        ),
        ("processor : 0\n", "unknown processor"),
    ] {
        let said = succeed(python("import sys, host; print(host.processor(sys.argv[1]))", &[cpuinfo]));
        assert_eq!(said.trim_end(), expected);
    }
}

// --- sides -------------------------------------------------------------------------------------------------

/// A side that prints `body`.
fn side(dir: &Path, name: &str, body: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\ncat >/dev/null\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

const COMPARE: &str = r#"
import sys
from side_by_side import BenchError, Comparison, largest_difference, ratio_line, peak
config = {"steps": 3}
comparison = Comparison("fake", [sys.argv[1]], [sys.argv[2]], 1)
try:
    for _ in range(5):
        ours, peer = comparison.round(config, config)
except BenchError as error:
    sys.exit(str(error))
print(largest_difference(ours, peer), peak(comparison.ours))
print(ratio_line("fake", comparison.ratios()))
"#;

#[test]
fn the_ratio_is_ours_over_the_peers_throughput_after_the_warm_up() {
    let dir = tempfile::tempdir().unwrap();
    let ours = side(
        dir.path(),
        "ours",
        r#"echo '{"step": 1, "loss": 2.5, "seconds": 9}'; echo '{"step": 2, "loss": 2.25, "seconds": 0.1}'
           echo; echo '{"step": 3, "loss": 2, "seconds": 0.3}'; echo '{"peak_rss_bytes": 77}'"#,
    );
    let peer = side(
        dir.path(),
        "peer",
        r#"echo '{"step": 1, "loss": 2.5, "seconds": 1}'; echo '{"step": 2, "loss": 2.5, "seconds": 0.5}'
           echo '{"step": 3, "loss": 2, "seconds": 0.5}'"#,
    );
    let said = succeed(python(COMPARE, &[ours.to_str().unwrap(), peer.to_str().unwrap()]));
    // 0.5 s a step against 0.2 s: ours is 2.5 times as fast.
    assert_eq!(said, "0.25 77\nratio fake 2.500 min 2.500 max 2.500\n");
}

#[test]
fn a_side_that_breaks_the_protocol_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let step = |n: u32, seconds: &str| format!(r#"echo '{{"step": {n}, "loss": 2, "seconds": {seconds}}}';"#);
    let good = side(dir.path(), "good", &[step(1, "1"), step(2, "1"), step(3, "1")].concat());
    for (body, named) in [
        ("exit 3".to_owned(), "ended with 3"),
        ("echo hello".to_owned(), "no JSON"),
        ("echo '[1]'".to_owned(), "JSON object"),
        ([step(1, "1"), step(3, "1")].concat(), "step 3 where step 2"),
        ([step(1, "1"), step(2, "1")].concat(), "2 of 3 steps"),
        ([step(1, "1"), step(2, "0"), step(3, "1")].concat(), "step 2 without"),
        ([step(1, "1"), step(2, "NaN"), step(3, "1")].concat(), "step 2 without"),
    ] {
        let bad = side(dir.path(), "bad", &body);
        for pair in [[&good, &bad], [&bad, &good]] {
            let output = python(COMPARE, &[pair[0].to_str().unwrap(), pair[1].to_str().unwrap()]);
            assert_eq!(output.status.code(), Some(1), "{body}: {}", text(&output));
            assert!(text(&output).contains("bad") && text(&output).contains(named), "{body}: {}", text(&output));
        }
    }
}

#[test]
fn tuning_takes_the_fastest_variant_and_passes_over_those_that_fail() {
    let dir = tempfile::tempdir().unwrap();
    // Eager on oneDNN is the fastest; compiled fails, and the fast one is not fp32.
    let peer = dir.path().join("peer");
    fs::write(
        &peer,
        r#"#!/usr/bin/env python3
import json, sys
o = json.load(sys.stdin)["peer"]
if o["compile"]: sys.exit(1)
took = {"mkl": 2, "onednn": 1}[o["linear"]] + o["bucket"] / 100
if o["precision"] == "fast":
    took /= 2
    print(json.dumps({"fp32_gradient_error": 1e-3}))
for step in (1, 2): print(json.dumps({"step": step, "loss": 1, "seconds": took}))
"#,
    )
    .unwrap();
    fs::set_permissions(&peer, fs::Permissions::from_mode(0o755)).unwrap();
    let code = r#"
import sys, json, tuning
space = [("linear", ["mkl", "onednn"]), ("compile", [False, True]), ("bucket", [25, 100]), ("precision", ["fast", "exact"])]
base = {"linear": "mkl", "compile": False, "bucket": 100, "precision": "exact"}
best = tuning.tune("peer", [sys.argv[1]], lambda o, n: {"steps": n, "peer": o}, space, base, 2, 1)
print(json.dumps(best, sort_keys=True))
"#;
    let said = succeed(python(code, &[peer.to_str().unwrap()]));
    assert_eq!(said, "{\"bucket\": 25, \"compile\": false, \"linear\": \"onednn\", \"precision\": \"exact\"}\n");
}

const CHOICES: &str = r#"
import importlib.machinery, importlib.util, sys, types
loader = importlib.machinery.SourceFileLoader('choices', sys.argv[1])
choices = importlib.util.module_from_spec(importlib.util.spec_from_loader('choices', loader))
loader.exec_module(choices)
for task in choices.items(200, 50304)["tasks"]:
    pairs = [pair for question in task["questions"] for pair in question]
    mean = lambda k: round(sum(len(pair[k]) for pair in pairs) / len(pairs))
    same = sum(question[0][0] == question[1][0] for question in task["questions"])
    print(task["name"], mean(0), mean(1), len(pairs), same)
assert choices.items(3, 50) == choices.items(3, 50)
run = lambda scores, seconds=(1, 1, 1, 1, 2): types.SimpleNamespace(facts={"scores": scores}, seconds=list(seconds))
print(choices.largest_difference(run([[1.0, 2.0], [3.0]]), run([[1.0, 2.5], [3.0]])))
for bad in ([[1.0, 2.0]], [[1.0], [3.0]], None):
    try:
        choices.largest_difference(run([[1.0, 2.0], [3.0]]), run(bad))
    except choices.BenchError as error:
        print(error)
both = types.SimpleNamespace(ours=[run([]), run([])], peer=[run([], (2, 3, 4, 5, 6)), run([], (2, 3, 4, 5, 8))])
print(choices.task_ratios(both), choices.rate(both.ours, 12))
"#;

#[test]
fn the_items_of_the_bench_of_choices_have_public_lengths_and_every_score_is_compared() {
    let script = repository().join("scripts/bench/eval");
    let said = succeed(python(CHOICES, &[script.to_str().unwrap()]));
    let lines: Vec<&str> = said.lines().collect();
    let (tasks, rest) = lines.split_at(5);
    // About so many tokens of context and continuation; the choices of all but the last have their context in common.
    for (line, (name, context, continuation, pairs, same)) in tasks.iter().zip([
        ("hellaswag", 60, 25, 800, 200),
        ("piqa", 20, 25, 400, 200),
        ("arc_easy", 30, 6, 800, 200),
        ("arc_challenge", 30, 6, 800, 200),
        ("winogrande", 20, 8, 400, 0),
    ]) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |k: usize| words[k].parse::<i64>().unwrap();
        assert_eq!((words[0], number(3), number(4)), (name, pairs, same), "{line}");
        assert!((number(1) - context).abs() <= 2 && (number(2) - continuation).abs() <= 1, "{line}");
    }
    assert_eq!(rest[0], "0.5");
    assert!(rest[1..4].iter().all(|line| line.contains("the score of every choice")), "{said}");
    assert_eq!(rest[4], "['2.00', '3.00', '4.00', '5.00', '3.50'] 10.0");
}

// --- the peer ----------------------------------------------------------------------------------------------

const PARITY: &str = r#"
import sys
import torch
from safetensors.torch import load_file
import neox
expected = load_file(sys.argv[1] + "/expected.safetensors")
for linear in ("mkl", "onednn"):
    model = neox.load(sys.argv[1], linear)
    ids, targets = expected["ids"], expected["targets"]
    logits = model.logits(ids)
    assert (logits - expected["logits"]).abs().max() < 1e-4, linear
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100).backward()
    for name, parameter in model.named_parameters():
        key = name if name.startswith("embed_out") else "gpt_neox." + name
        gradient = expected["gradient." + key]
        assert (parameter.grad - gradient).norm() <= 1e-5 * gradient.norm(), (linear, name)
"#;

/// The peer computes what `transformers` computes, on MKL and on oneDNN: else it would be a straw man.
#[test]
fn the_peer_of_the_training_benches_is_a_gpt_neox() {
    let Some(python) = std::env::var_os("SEEDBED_PEERS") else {
        eprintln!("skipped: it needs the peers, scripts/test --peers");
        return;
    };
    for fixture in ["parallel", "sequential"] {
        let output = Command::new(&python)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONPATH", repository().join("scripts/bench/peers"))
            .args(["-c", PARITY])
            .arg(repository().join("tests/fixtures/neox").join(fixture))
            .output()
            .unwrap();
        succeed(output);
    }
}

// --- results -----------------------------------------------------------------------------------------------

/// In place of a Python with h5py: it knows the numbers from the exports beside the runs, and resamples as slowly as that
/// is written. `OFF` is added to every number.
const OTHER_SIDE: &str = r##"#!/usr/bin/env python3
import json, random, sys
_, script, what, told = sys.argv
told = json.load(open(told))
OFF = 0.0
def value(arm, seed, column):
    found = json.load(open(f"{told['base']}/{told['stage']}/{arm}/seed-{seed}/metrics.json"))
    for key in column.split("."):
        found = found[key]
    return found + OFF
def interval(values):
    means = sorted(sum(random.choices(values, k=len(values))) / len(values) for _ in range(2000))
    return [means[49], means[1949]]
rows = []
for arm in told["arms"]:
    samples = [[value(arm, seed, column) for seed in told["seeds"]] for column in told["columns"]]
    if what == "query":
        print(*samples[0], sep="\n")
    rows.append({"arm": arm, "means": [sum(s) / len(s) for s in samples]})
    if what == "aggregate":
        rows[-1]["intervals"] = [interval(s) for s in samples]
if what != "query":
    print(json.dumps(rows))
"##;

/// The directory of built programs with the one that makes results, if that was built, too.
fn programs_with_examples() -> Option<PathBuf> {
    let programs = Path::new(env!("CARGO_BIN_EXE_seedbed")).parent().unwrap().to_path_buf();
    let there = programs.join("examples/results-tree").exists();
    if !there {
        eprintln!(
            "skipped: examples/results-tree is not built, which `cargo test` does and `cargo test --test` does not"
        );
    }
    there.then_some(programs)
}

fn results_bench(name: &str, words: &[&str], off: &str, dir: &Path, programs: &Path) -> Output {
    let other = dir.join("python");
    fs::write(&other, OTHER_SIDE.replace("OFF = 0.0", &format!("OFF = {off}"))).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    let place = tempfile::tempdir().unwrap();
    let output = Command::new("python3")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SEEDBED_BENCH_DIR", place.path())
        .arg(repository().join("scripts/bench").join(name))
        .args(["--rehearse", "--rounds", "1", "--python"])
        .arg(&other)
        .arg("--programs")
        .arg(programs)
        .args(words)
        .output()
        .unwrap();
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "data was left behind");
    output
}

#[test]
fn a_rehearsal_of_tables_and_queries_compares_numbers_and_writes_its_rows() {
    let Some(programs) = programs_with_examples() else { return };
    let dir = tempfile::tempdir().unwrap();
    for (name, measured, lines) in [
        ("aggregate", &["aggregate-fast", "aggregate-read-one", "aggregate-scale"][..], &["scale aggregate "][..]),
        ("query", &["query", "query-jq"], &["ratio query-jq ", "h5dump "]),
    ] {
        let page = dir.path().join("page.md");
        fs::write(&page, format!("<!-- bench {name} -->\n<!-- end {name} -->\n")).unwrap();
        let doc = ["--doc", page.to_str().unwrap()];
        let said = succeed(results_bench(name, &[measured, &doc].concat(), "0.0", dir.path(), &programs));
        assert!(lines.iter().all(|line| said.lines().any(|l| l.starts_with(line))), "{said}");
        let table = fs::read_to_string(&page).unwrap();
        assert!(measured.iter().all(|m| table.contains(&format!("| {m} |"))), "{table}");
    }
    for (name, measured) in [("aggregate", "aggregate-read"), ("query", "query")] {
        let output = results_bench(name, &[measured], "1e-6", dir.path(), &programs);
        assert_eq!(output.status.code(), Some(69), "{}", text(&output));
        assert!(text(&output).contains("do not do the same work"), "{}", text(&output));
    }
}

/// The peers in Python do that work.
#[test]
fn the_peers_of_the_results_benches_find_the_same_numbers() {
    let Some(python) = std::env::var_os("SEEDBED_PEERS") else {
        eprintln!("skipped: it needs the peers, scripts/test --peers");
        return;
    };
    let Some(programs) = programs_with_examples() else { return };
    for name in ["aggregate", "query"] {
        let place = tempfile::tempdir().unwrap();
        let output = Command::new("python3")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("SEEDBED_BENCH_DIR", place.path())
            .arg(repository().join("scripts/bench").join(name))
            .args(["--rehearse", "--rounds", "1", "--python"])
            .arg(&python)
            .arg("--programs")
            .arg(&programs)
            .output()
            .unwrap();
        let said = succeed(output);
        assert!(said.lines().filter(|l| l.starts_with("ratio ")).count() >= 3, "{said}");
    }
}

// --- a rehearsal -------------------------------------------------------------------------------------------

/// The real programs on a very small model: our side against a peer that repeats what our side did.
#[cfg(feature = "mpi")]
#[test]
fn a_rehearsal_compares_writes_its_table_and_ends_with_the_ratio() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.md");
    fs::write(&page, "<!-- bench elastic -->\n<!-- end elastic -->\n").unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_seedbed-bench")).parent().unwrap();
    let output = Command::new("python3")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SEEDBED_BENCH_DIR", dir.path())
        .arg(repository().join("scripts/bench/elastic"))
        .args(["--rehearse", "--rounds", "1", "elastic-small", "--programs"])
        .arg(programs)
        .arg("--doc")
        .arg(&page)
        .output()
        .unwrap();
    let said = succeed(output);
    let last = said.lines().last().unwrap();
    let words: Vec<_> = last.split(' ').collect();
    assert!(words[..2] == ["ratio", "elastic-small"] && words[3] == "min" && words[5] == "max", "{said}");
    assert!([2, 4, 6].iter().all(|&i| words[i].parse::<f64>().unwrap() > 0.0), "{said}");
    assert!(said.lines().any(|l| l.starts_with("host ") && l.contains(" mkl ") && l.contains(" onednn ")), "{said}");
    let table = fs::read_to_string(&page).unwrap();
    assert!(table.contains("| elastic-small |") && table.contains("| processor | name |"), "{table}");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["page.md"], "data was left behind");
}

/// A peer that computes something else is found out by its losses.
#[cfg(feature = "mpi")]
#[test]
fn a_peer_with_other_losses_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let peer = side(
        dir.path(),
        "peer",
        r#"for s in 1 2 3 4; do echo "{\"step\": $s, \"loss\": 3.5, \"seconds\": 0.01}"; done"#,
    );
    let programs = Path::new(env!("CARGO_BIN_EXE_seedbed-bench")).parent().unwrap();
    let output = bench(
        "elastic",
        &[
            "--rehearse",
            "--rounds",
            "1",
            "elastic-small",
            "--programs",
            programs.to_str().unwrap(),
            "--peer",
            peer.to_str().unwrap(),
        ],
    );
    assert_eq!(output.status.code(), Some(69), "{}", text(&output));
    assert!(text(&output).contains("do not do the same work"), "{}", text(&output));
    let lines = text(&output);
    assert!(!lines.lines().any(|l| l.starts_with("ratio ")), "{lines}");
}
