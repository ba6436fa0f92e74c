//! `seedbed aggregate --output`: tables, figures and the page of a study whose results are made up here, and what a
//! `[[figure]]` section may say.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use seedbed::record::seal::{SEAL_VERSION, digest_outputs};
use seedbed::record::{Digest, Origin, Outcome, RunRecord, Seal, SeriesPoint, run_h5};
use seedbed::workflow::run::{Intent, Request, prepare};
use serde_json::{Value, json};

use crate::support::repository;

/// What must not leave the house.
const CANARIES: [&str; 3] = ["canary-host", "canary-job-4711", "canary-code"];

/// The monotone study with its results, and a section behind it.
struct Study {
    dir: tempfile::TempDir,
}

fn result(kind: &str, stage: &str, seed: u32) -> Value {
    let shift = f64::from(seed % 7) / 10.0;
    let models = |a: Value, b: Value| json!({"baseline_pythia": a, "monotonic_pythia": b});
    let attack = |x: f64| json!({"success_rate": x, "random_control": {"success_rate": 0.01}});
    match kind {
        "setup" => json!({"num_parameters": 170_624, "model_name": "quick"}),
        "evaluate" => {
            json!({"pile_test": models(json!({"perplexity": 6.9 + shift}), json!({"perplexity": 27.5 + shift}))})
        }
        "uat" | "hotflip" => json!({"results": models(attack(0.69 + shift / 10.0), attack(0.19 + shift / 20.0))}),
        _ => json!({"stage": stage, "train_losses": [2.5, 2.0]}),
    }
}

impl Study {
    fn new(figures: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for part in ["configs/clusters", "configs/corpus", "slurm"] {
            fs::create_dir_all(dir.path().join(part)).unwrap();
        }
        let text = fs::read_to_string(repository().join("configs/monotone.toml")).unwrap();
        fs::write(dir.path().join("configs/monotone.toml"), format!("{text}\n{figures}")).unwrap();
        fs::copy(repository().join("configs/corpus/handbook.txt"), dir.path().join("configs/corpus/handbook.txt"))
            .unwrap();
        let study = Self { dir };
        study.seal_all();
        study
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn base(&self) -> PathBuf {
        self.path("results/monotone/quick")
    }

    /// Writes and seals a result for every cell but the last, as attempts would.
    fn seal_all(&self) {
        let request = Request {
            study: self.path("configs/monotone.toml"),
            profile: Some("quick".to_owned()),
            local: true,
            ..Request::default()
        };
        let prepared = prepare(&request, Intent::Look).unwrap();
        for cell in prepared.plan.cells.iter().filter(|c| c.def.key.stage.as_str() != "aggregate") {
            let def = &cell.def;
            let kind = prepared.study.stages[def.stage].kind();
            let seed = def.key.seed.unwrap_or(0);
            let points = |end: f64| {
                (1..=40u64)
                    .map(|i| SeriesPoint {
                        step: 3 * i,
                        value: end + 30.0 / (i as f64 + f64::from(seed % 4)),
                        time_s: 0.1,
                    })
                    .collect::<Vec<_>>()
            };
            let mut series = BTreeMap::new();
            if kind == "train" {
                series.insert("loss".to_owned(), points(2.0));
                series.insert("val_perplexity".to_owned(), points(7.0));
            }
            let record = RunRecord {
                key: def.key.clone(),
                kind: kind.to_owned(),
                fingerprint: def.fingerprint.clone(),
                labels: BTreeMap::new(),
                metrics: result(kind, def.key.stage.as_str(), seed),
                environment: json!({"host": CANARIES[0]}),
                series,
                items: BTreeMap::new(),
                param_digest: None,
                numerics: json!({}),
            };
            let run_dir = prepared.place.run_dir(&def.key);
            fs::create_dir_all(&run_dir).unwrap();
            run_h5::write_run(&run_dir.join("run.h5"), &record).unwrap();
            Seal {
                version: SEAL_VERSION,
                key: def.key.clone(),
                fingerprint: def.fingerprint.clone(),
                source: prepared.plan.source(def),
                outcome: Outcome::Done,
                origin: Origin::Run,
                evidence: None,
                warnings: vec![],
                content: Some(record.content_digest()),
                outputs: digest_outputs(&run_dir, &["run.h5".to_owned()]).unwrap(),
                read: vec![],
                jobs: vec![CANARIES[1].to_owned()],
                attempt: 1,
                host: CANARIES[0].to_owned(),
                started_at: "2026-01-02T03:04:05Z".parse().unwrap(),
                sealed_at: "2026-01-02T03:05:05Z".parse().unwrap(),
                wall_s: 60.0,
                code: CANARIES[2].to_owned(),
                digest: Digest::of_bytes(b""),
            }
            .write(&run_dir)
            .unwrap();
        }
    }

    fn aggregate(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed"));
        command.args(["aggregate", "configs/monotone.toml", "--profile", "quick", "--local"]).args(arguments);
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command.current_dir(self.dir.path()).output().unwrap()
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn files(dir: &Path) -> Vec<String> {
    let found = seedbed::record::digest::files_below(dir).unwrap();
    found.into_iter().map(|f| f.to_string_lossy().into_owned()).collect()
}

#[test]
fn a_study_without_figures_gets_those_that_every_study_has() {
    let study = Study::new("");
    let output = study.aggregate(&["--output", "out"]);
    assert!(output.status.success(), "{}", said(&output));
    let out = study.path("out");
    let mut expected: Vec<String> = ["tex", "md", "csv", "html", "json", "txt"]
        .iter()
        .map(|e| format!("tables/foundation.{e}"))
        .chain(["report.html".to_owned()])
        .collect();
    for figure in ["attack_success", "loss", "val_perplexity", "foundation-perplexity", "foundation-attack"] {
        expected.extend(["svg", "png", "csv"].iter().map(|e| format!("figures/{figure}.{e}")));
    }
    let found = files(&out);
    for file in &expected {
        assert!(found.contains(file), "{file}: {found:?}");
    }
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let curves = read("figures/val_perplexity.csv");
    assert!(
        curves.starts_with("step,train_baseline,train_baseline_lower,train_baseline_upper,train_monotonic,"),
        "{curves}"
    );
    assert_eq!(curves.lines().count(), 41);
    // The seeds end 42 % 7 = 0 and 1337 % 7 = 0 tenths above 69: the same numbers as in the table.
    let bars = read("figures/attack_success.csv");
    assert!(
        bars.lines().any(|l| l.starts_with("0,hotflip,69.0,")) || bars.lines().any(|l| l.starts_with("0,uat,69.0,")),
        "{bars}"
    );
    let page = read("report.html");
    for there in ["monotone / quick", "<svg", "train_baseline", CANARIES[0], CANARIES[1], "foundation"] {
        assert!(page.contains(there), "{there}");
    }
    // For whoever wants to look.
    let artefacts = repository().join("target/artefacts");
    fs::create_dir_all(&artefacts).unwrap();
    for file in found.iter().filter(|f| f.ends_with(".png") || *f == "report.html") {
        fs::copy(out.join(file), artefacts.join(format!("study-{}", file.replace('/', "-")))).unwrap();
    }
    // Twice the same bytes, but for the page, which says when it was written.
    assert!(study.aggregate(&["--output", "again"]).status.success());
    for file in found.iter().filter(|f| *f != "report.html") {
        assert_eq!(fs::read(out.join(file)).unwrap(), fs::read(study.path("again").join(file)).unwrap(), "{file}");
    }
    // What is for others tells no host, job or path.
    let output = study.aggregate(&["--output", "public", "--public"]);
    assert!(output.status.success(), "{}", said(&output));
    let root = study.dir.path().to_str().unwrap().to_owned();
    assert!(files(&study.path("out")).contains(&"sources/foundation.json".to_owned()));
    for file in files(&study.path("public")) {
        let bytes = fs::read(study.path("public").join(&file)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for canary in CANARIES.iter().copied().chain([root.as_str(), "2026-01-02"]) {
            assert!(!text.contains(canary), "{file} tells {canary}");
        }
    }
    assert_eq!(study.aggregate(&["--public"]).status.code(), Some(64), "--public is about the page");
}

#[test]
fn figures_of_a_study_take_the_place_of_the_usual_ones() {
    let study = Study::new(
        r#"
[[figure]]
key = "curves"
kind = "curves"
series = "val_perplexity"
lines = [{key = "a", label = "Baseline", stage = "train_baseline"}]
[[figure]]
key = "bars"
kind = "bars"
table = "foundation"
columns = ["perplexity"]
"#,
    );
    let output = study.aggregate(&["--output", "out"]);
    assert!(output.status.success(), "{}", said(&output));
    let figures: Vec<String> = files(&study.path("out")).into_iter().filter(|f| f.starts_with("figures/")).collect();
    assert_eq!(
        figures,
        ["bars.csv", "bars.png", "bars.svg", "curves.csv", "curves.png", "curves.svg"].map(|f| format!("figures/{f}"))
    );
}

#[test]
fn an_unfinished_study_has_a_page_that_says_so() {
    let study = Study::new("");
    fs::remove_file(study.base().join("hotflip/seed-42/seal.json")).unwrap();
    let output = study.aggregate(&["--output", "out"]);
    assert_eq!(output.status.code(), Some(66), "{}", said(&output));
    // What seeds found that are whole is written; a table or figure over all of them is not.
    let written = files(&study.path("out"));
    assert!(written.contains(&"report.html".to_owned()), "{written:?}");
    assert!(!written.iter().any(|f| f.starts_with("tables/") || f.starts_with("figures/")), "{written:?}");
    let page = fs::read_to_string(study.path("out/report.html")).unwrap();
    // Fourteen cells; one has lost its seal, and the aggregation never ran.
    assert!(page.contains("<p>12 of 14 cells are done."), "{}", &page[..4000]);
    let output = study.aggregate(&["--output", "marked", "--partial", "mark"]);
    assert!(output.status.success(), "{}", said(&output));
    let page = fs::read_to_string(study.path("marked/report.html")).unwrap();
    assert!(page.contains("missing: hotflip/seed-42 (not sealed)"));
}

#[test]
fn problems_of_figures_have_their_places() {
    let study = Study::new("");
    let file = study.path("configs/monotone.toml");
    let good = fs::read_to_string(&file).unwrap();
    let lines = good.lines().count();
    let told = |section: &str| -> Vec<String> {
        fs::write(&file, format!("{good}\n{section}")).unwrap();
        let output = study.aggregate(&[]);
        assert_eq!(output.status.code(), Some(64), "{}", said(&output));
        let short = |line: &str| {
            let (number, rest) = line.split_once("monotone.toml:")?.1.split_once(':')?;
            Some(format!("{}:{rest}", number.parse::<usize>().ok()? - lines - 1))
        };
        said(&output).lines().filter_map(short).collect()
    };
    let bars = "[[figure]]\nkey = \"b\"\nkind = \"bars\"\n";
    assert_eq!(
        told(&format!("{bars}table = \"fundation\"\ncolumns = [\"perplexity\"]\n")),
        ["4:1: figure b: figure `b` shows the unknown table `fundation`: did you mean `foundation`?"]
    );
    assert_eq!(
        told(&format!("{bars}table = \"foundation\"\ncolumns = [\"perplexity\"]\ntitel = \"x\"\n")),
        ["6:1: figure b: unknown key `titel` in a figure: did you mean `title`?"]
    );
    let curves = "[[figure]]\nkey = \"c\"\nkind = \"curves\"\nseries = \"loss\"\n";
    assert_eq!(
        told(&format!("{curves}lines = [{{key = \"a\", stage = \"train_basline\"}}]\n")),
        ["5:22: figure c: line `a` shows the unknown stage `train_basline`: did you mean `train_baseline`?"]
    );
    let twice = format!("{curves}lines = [{{key = \"a\", stage = \"train_baseline\"}}]\n").repeat(2);
    assert_eq!(told(&twice), ["7:1: two figures have the key `c`: rename one"]);
    // The aggregating stage reads only what it needs.
    let cut = good.replace("\"apply_monotonicity\", \"train_baseline\", ", "\"apply_monotonicity\", ");
    assert_ne!(cut, good);
    fs::write(&file, format!("{cut}\n{curves}lines = [{{key = \"a\", stage = \"train_baseline\"}}]\n")).unwrap();
    let output = said(&study.aggregate(&[]));
    assert!(
        output.contains(
            "stage aggregate makes figure c, which shows stage `train_baseline`: add \"train_baseline\" to its `needs`"
        ),
        "{output}"
    );
}

#[test]
fn a_study_without_tables_has_a_page_with_its_gates() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("configs")).unwrap();
    fs::copy(repository().join("configs/gated.toml"), dir.path().join("configs/gated.toml")).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(dir.path());
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command.output().unwrap()
    };
    let run_all = run(env!("CARGO_BIN_EXE_run_all"), &["configs/gated.toml", "--local", "--yes"]);
    let decision = fs::read_to_string(dir.path().join("results/gated/default/gap/decision.json"));
    let decision: Value = serde_json::from_str(&decision.unwrap_or_else(|_| panic!("{}", said(&run_all)))).unwrap();
    for (out, options) in [("own", &["--output", "own"][..]), ("public", &["--output", "public", "--public"])] {
        let arguments = [&["aggregate", "configs/gated.toml", "--local"], options].concat();
        let output = run(env!("CARGO_BIN_EXE_seedbed"), &arguments);
        assert!(output.status.success(), "{}", said(&output));
        let page = fs::read_to_string(dir.path().join(out).join("report.html")).unwrap();
        let evidence = decision["evidence"].as_str().unwrap();
        let content = decision["inputs"][0]["content"].as_str().unwrap();
        for there in ["base_rate", "at most 0.3", "waiting", evidence, content, "4 of 7 cells are done."] {
            assert!(page.contains(there), "{out}: {there}");
        }
        // What a person has to do is for those who run the study.
        assert_eq!(page.contains("a person has to confirm"), out == "own");
        assert!(!page.contains(dir.path().to_str().unwrap()));
    }
}
