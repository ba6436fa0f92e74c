//! Tables of studies whose stages are programs of somebody else, from `[[table]]` to files: of one study, and of two.

use std::path::PathBuf;
use std::process::{Command, Output};

use seedbed::report::table::TableSpec;
use serde_json::Value;

use crate::support::repository;

/// A study of one stage whose cell of seed s finds s + 1 for the base and `FACTOR` s + 1 for ours.
const STUDY: &str = r#"
schema = 1
[study]
name  = "NAME"
seeds = [1, 2, 3]

[[stage]]
name    = "evaluate"
command = ["sh", "-c", 'printf "{\"base\": {\"x\": %s}, \"ours\": {\"x\": %s}}" $((SEEDBED_SEED + 1)) $((FACTOR * SEEDBED_SEED + 1)) > metrics.json']
resources = {time = "0:05:00"}
"#;

/// What is printed of it.
const SCORES: &str = r#"
[[table]]
key      = "scores"
caption  = "Scores."
best     = true
appendix = true
rows     = [{key = "base", with = {model = "base"}}, {key = "ours", with = {model = "ours"}}]
columns  = [
  {key = "x", stage = "evaluate", metric = ".[$row.model].x", show = "mean_sd", better = "higher"},
  {key = "gain", delta = {of = "x", from = "base"}, show = "mean_ci", digits = 1},
  {key = "times", ratio = {of = "x", to = "base"}, show = "mean", significant = 3},
]
"#;

/// One table of two studies.
const MERGED: &str = r#"
[[table]]
key     = "merged"
studies = ["small", "large"]
rows    = [{key = "small", study = "small"}, {key = "large", study = "large"}]
columns = [{key = "x", stage = "evaluate", metric = ".ours.x"}]
"#;

struct Workspace(tempfile::TempDir);

impl Workspace {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn study(&self, name: &str, factor: u32, tables: &[&str]) {
        let text = STUDY.replace("NAME", name).replace("FACTOR", &factor.to_string());
        std::fs::write(self.path(&format!("{name}.toml")), text + &tables.concat()).unwrap();
    }

    fn program(&self, program: &str, words: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(words).current_dir(self.0.path());
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command.output().unwrap()
    }

    fn run_all(&self, study: &str) {
        let output = self.program(env!("CARGO_BIN_EXE_run_all"), &["--local", study]);
        assert!(output.status.success(), "{}", said(&output));
    }

    fn aggregate(&self, words: &[&str]) -> Output {
        self.program(env!("CARGO_BIN_EXE_seedbed"), &[&["aggregate", "--local"], words].concat())
    }
}

impl Workspace {
    /// `seedbed query --trace` as JSON; it must succeed.
    #[track_caller]
    fn trace(&self, number: &str, study: &str) -> Value {
        let words = ["query", "--trace", number, study, "--format", "json"];
        let output = self.program(env!("CARGO_BIN_EXE_seedbed"), &words);
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// The runs of a trace, each with the file that its seal names.
fn runs_of(trace: &Value) -> Vec<(&str, &str)> {
    let runs = trace["runs"].as_array().unwrap();
    runs.iter().map(|r| (r["run"].as_str().unwrap(), r["seal"]["file"].as_str().unwrap())).collect()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_study_of_foreign_programs_has_its_tables() {
    let work = Workspace::new();
    work.study("small", 2, &[SCORES]);
    work.run_all("small.toml");
    let output = work.aggregate(&["small.toml", "--output", "out"]);
    assert!(output.status.success(), "{}", said(&output));
    for file in ["scores", "scores-appendix"] {
        for ending in ["tex", "md", "csv", "json", "txt"] {
            assert!(work.path(&format!("out/tables/{file}.{ending}")).is_file(), "{file}.{ending}");
        }
    }
    let json = |file: &str| -> Value {
        serde_json::from_slice(&std::fs::read(work.path(&format!("out/tables/{file}.json"))).unwrap()).unwrap()
    };
    let ours = &json("scores")["table"]["rows"][1]["cells"];
    // 3, 5, 7 against 2, 3, 4.
    assert_eq!(ours[0]["printed"]["number"], serde_json::json!({"text": "5.00", "spread": "2.00"}));
    assert_eq!((&ours[0]["best"], &ours[0]["n"]), (&Value::Bool(true), &Value::from(3)));
    // 1, 2, 3: mean 2, half-width 4.302653 / sqrt 3.
    assert_eq!(ours[1]["printed"]["interval"], serde_json::json!({"text": "2.0", "lower": "-0.5", "upper": "4.5"}));
    assert_eq!(ours[2]["printed"]["number"]["text"], "1.67");
    let appendix = json("scores-appendix");
    let rows = appendix["table"]["rows"].as_array().unwrap();
    let seeds: Vec<&str> = rows.iter().map(|r| r["label"].as_str().unwrap()).collect();
    assert_eq!(seeds, ["1", "2", "3", "1", "2", "3"]);
    assert_eq!(rows[5]["cells"][0]["value"], 7.0);
    // Of the value of one seed one run is told, which is on both sides of its difference.
    for (number, printed) in [("ours-seed-2/x", "5.00"), ("ours-seed-2/gain", "2.0")] {
        let trace = work.trace(&format!("scores-appendix/{number}"), "small.toml");
        let run = ("small/default/evaluate/seed-2", "results/small/default/evaluate/seed-2/run.h5");
        assert_eq!((trace["printed"].as_str(), runs_of(&trace)), (Some(printed), vec![run]), "{trace:#}");
    }
    let words = ["query", "--trace", "scores-appendix/ours-seed-4/x", "small.toml"];
    let output = work.program(env!("CARGO_BIN_EXE_seedbed"), &words);
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    assert!(said(&output).contains("ours-seed-1, ours-seed-2, ours-seed-3"), "{}", said(&output));
    // On the terminal the table; its appendix is for files.
    let output = work.aggregate(&["small.toml"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("5.00 ± 2.00") && !text.contains("The value of each seed."), "{text}");
    let output = work.aggregate(&["small.toml", "--format", "markdown"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("The value of each seed."));
}

#[test]
fn a_table_that_says_mark_is_made_of_what_is_there() {
    let work = Workspace::new();
    let second = SCORES.replace("\"scores\"", "\"marked\"\npartial = \"mark\"").replace("appendix = true", "");
    work.study("small", 2, &[SCORES, &second]);
    work.run_all("small.toml");
    std::fs::remove_file(work.path("results/small/default/evaluate/seed-3/seal.json")).unwrap();
    let output = work.aggregate(&["small.toml"]);
    assert_eq!(output.status.code(), Some(66), "{}", said(&output));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("missing: evaluate/seed-3 (not sealed)") && table.contains("4.00"), "{table}");
    assert_eq!(table.matches("Scores.").count(), 1, "the other table is not made: {table}");
}

#[test]
fn one_table_has_cells_of_two_studies() {
    let work = Workspace::new();
    work.study("small", 2, &[MERGED]);
    work.study("large", 10, &[]);
    work.run_all("small.toml");
    // The other study has a plan, and no runs yet.
    let output = work.aggregate(&["small.toml"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("0 of 3 runs; missing: large/default/evaluate/seed-1 (not sealed)"), "{text}");
    assert!(output.stdout.is_empty(), "{text}");

    work.run_all("large.toml");
    let output = work.aggregate(&["small.toml", "--format", "json"]);
    assert!(output.status.success(), "{}", said(&output));
    let table: Value = serde_json::from_slice(&output.stdout).unwrap();
    let cell = |row: usize| &table["table"]["rows"][row]["cells"][0];
    assert_eq!((&cell(0)["mean"], &cell(1)["mean"]), (&Value::from(5.0), &Value::from(21.0)));
    assert_eq!(cell(1)["runs"][0]["key"]["study"], "large");
    assert_ne!(cell(0)["runs"][0]["fingerprint"], cell(1)["runs"][0]["fingerprint"]);
    assert!(table["table"]["signature"].as_str().unwrap().contains("|studies:large/default,small/default|"));

    // Each number comes from the runs of its own study.
    for (study, printed) in [("small", "5.00"), ("large", "21.00")] {
        let trace = work.trace(&format!("merged/{study}/x"), "small.toml");
        let run = |seed: u32| {
            let run = format!("{study}/default/evaluate/seed-{seed}");
            (run.clone(), format!("results/{run}/run.h5"))
        };
        let expected: Vec<(String, String)> = (1..4).map(run).collect();
        let found: Vec<(String, String)> =
            runs_of(&trace).into_iter().map(|(run, file)| (run.to_owned(), file.to_owned())).collect();
        assert_eq!((trace["printed"].as_str(), found), (Some(printed), expected), "{trace:#}");
    }

    // When the other study moves on, what it sealed is stale, and the table says so.
    work.study("large", 11, &[]);
    let text = said(&work.aggregate(&["small.toml"]));
    assert!(text.contains("large/default/evaluate/seed-1 (stale: sealed under other parameters)"), "{text}");
}

#[test]
fn what_was_made_of_a_withdrawn_run_is_no_result() {
    let work = Workspace::new();
    let refine = "[[stage]]\nname = \"refine\"\nneeds = [\"evaluate\"]\n\
                  command = [\"sh\", \"-c\", \"printf '{\\\"x\\\": %s}' $SEEDBED_SEED > metrics.json\"]\n\
                  resources = {time = \"0:05:00\"}\n";
    let table = |key: &str, rest: &str| {
        format!(
            "[[table]]\nkey = \"{key}\"\n{rest}\ncolumns = [{{key = \"x\", stage = \"refine\", metric = \".x\"}}]\n"
        )
    };
    let own = table("own", "rows = [{key = \"all\"}]");
    work.study("small", 2, &[refine, &own]);
    let merged = table("merged", "studies = [\"small\", \"large\"]\nrows = [{key = \"small\", study = \"small\"}]");
    work.study("large", 3, &[refine, &merged]);
    work.run_all("small.toml");
    let output = work.aggregate(&["large.toml"]);
    assert!(output.status.success(), "{}", said(&output));
    let withdrawn = work.path("results/small/default/evaluate/seed-2/invalid.json");
    std::fs::write(&withdrawn, r#"{"who": "ada", "why": "wrong data"}"#).unwrap();
    let output = work.aggregate(&["small.toml"]);
    assert_eq!(output.status.code(), Some(66), "{}", said(&output));
    assert!(said(&output).contains("refine/seed-2: stale: "), "{}", said(&output));
    let output = work.aggregate(&["large.toml"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("small/default/refine/seed-2 (stale: "), "{}", said(&output));
    let trace = ["query", "--trace", "own/all/x", "small.toml"];
    let output = work.program(env!("CARGO_BIN_EXE_seedbed"), &trace);
    assert!(said(&output).contains("refine/seed-2") && said(&output).contains("stale: "), "{}", said(&output));
}

#[test]
fn what_cannot_be_merged_is_refused_with_its_place() {
    let work = Workspace::new();
    work.study(
        "small",
        2,
        &[&MERGED.replace("\"large\"]", "\"huge\"]").replace("study = \"large\"", "study = \"huge\"")],
    );
    let output = work.aggregate(&["small.toml"]);
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    assert!(
        said(&output)
            .contains("table `merged` reads the study `huge`, and no study file beside small.toml has that name")
    );

    work.study("small", 2, &[&MERGED.replace("\"small\", \"large\"]", "\"small/quick\", \"large/full\"]")]);
    let output = work.aggregate(&["small.toml"]);
    assert_eq!(output.status.code(), Some(64), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("small.toml:14:1: table merged: the profiles `full` and `quick` in one table"), "{text}");

    work.study("small", 2, &[]);
    let output = work.aggregate(&["small.toml"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("the study has no tables: add a `[[table]]`"), "{}", said(&output));
}

#[test]
fn bad_tables_are_told_at_once_and_nothing_is_written() {
    let work = Workspace::new();
    let bad = SCORES
        .replace(".[$row.model].x", ".[$row.model].y")
        .replace("[[table]]", "[[table]]\ntest = {on = [\"gain\"], method = \"sign_flip\", family = \"holm\"}");
    work.study("small", 2, &[&bad]);
    work.run_all("small.toml");
    let output = work.aggregate(&["small.toml", "--output", "out"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("column `x`: the metric `.[$row.model].y` matches no run, it is null in all 6"), "{text}");
    assert!(text.contains("the sign-flip test of 3 pairs cannot go below p = 0.25"), "{text}");
    assert!(!work.path("out/tables").exists());

    // Without rows the study itself is refused, before anything runs.
    let empty = SCORES.lines().filter(|l| !l.starts_with("rows")).collect::<Vec<_>>().join("\n");
    work.study("small", 2, &[&empty.replace("columns  =", "rows = []\ncolumns  =")]);
    let output = work.aggregate(&["small.toml"]);
    assert_eq!(output.status.code(), Some(64));
    let text = said(&output);
    assert!(text.contains("table scores: table `scores` has no rows: give at least one"), "{text}");
    assert!(text.contains("is compared with the unknown row `base`"), "all at once: {text}");
}

#[test]
fn the_tables_of_the_manual_are_right() {
    let page = std::fs::read_to_string(repository().join("docs/tables.md")).unwrap();
    let blocks: Vec<&str> = page.split("```toml\n").skip(1).map(|b| b.split("```").next().unwrap()).collect();
    let mut tables = 0;
    for block in blocks.iter().filter(|b| b.contains("[[table]]")) {
        let file: toml::Table = toml::from_str(block).unwrap_or_else(|e| panic!("{e}\n{block}"));
        for section in file["table"].as_array().unwrap() {
            let section = serde_json::to_value(section).unwrap();
            let columns = section["columns"].as_array().unwrap();
            let stages: Vec<&str> = columns.iter().filter_map(|c| c["stage"].as_str()).collect();
            if let Err(problems) = TableSpec::parse(&section, &stages) {
                panic!("{problems:#?}\n{block}");
            }
            tables += 1;
        }
    }
    assert_eq!(tables, 4, "the manual lost a table, or has another one");
}
