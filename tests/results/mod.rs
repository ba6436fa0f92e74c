//! What is written of results: the same numbers in every table, document and answer, wherever they were made; where each
//! came from; and nothing of it names who made them.

mod canary;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use seedbed::record::Digest;
use seedbed::record::digest::files_below;

use crate::support::chain::text;
use crate::support::fake_slurm::FakeSlurm;
use crate::support::scored::{ARMS, Scored};

/// Every file below a directory, by name.
fn written(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = files_below(dir).unwrap();
    files.into_iter().map(|f| (f.to_string_lossy().into_owned(), std::fs::read(dir.join(f)).unwrap())).collect()
}

/// The cells of a Markdown table's row that begins with `label`.
fn markdown_row(page: &str, label: &str) -> Vec<String> {
    let line = page
        .lines()
        .find(|line| line.starts_with(&format!("| {label} |")))
        .unwrap_or_else(|| panic!("no {label}:\n{page}"));
    line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The macro accuracy of an arm, its spread, and its difference to the first arm, as each output prints them.
fn everywhere(study: &Scored, out: &Path, arm: &str) -> Vec<(String, [String; 3])> {
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let (label, stage) = match arm {
        "vanilla" => ("Vanilla", "s1"),
        "ablated" => ("Ablated", "s2"),
        _ => ("Tuned", "s4"),
    };
    let spread = |text: &str| -> [String; 2] {
        let (mean, sd) = text.split_once(" ± ").unwrap_or_else(|| panic!("{text}"));
        [mean.to_owned(), sd.to_owned()]
    };
    let mut found = Vec::new();
    let mut tell = |what: &str, [mean, sd]: [String; 2], delta: &str| {
        // A dash where the row is its own reference.
        let delta = if matches!(delta, "–" | "--" | "{--}" | "") { "reference" } else { delta };
        found.push((what.to_owned(), [mean, sd, delta.to_owned()]));
    };

    let row = markdown_row(&read("tables/scores.md"), label);
    tell("tables/scores.md", spread(&row[1]), &row[3]);

    let csv = read("tables/scores.csv");
    let head: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let line: Vec<&str> = csv.lines().find(|l| l.starts_with(&format!("{arm},"))).unwrap().split(',').collect();
    let field = |name: &str| line[head.iter().position(|h| *h == name).unwrap()];
    tell("tables/scores.csv", spread(field("macro")), field("delta"));
    let precise = |name: &str| format!("{:.6}", field(name).parse::<f64>().unwrap());
    tell("tables/scores.csv, full precision", [precise("macro_mean"), precise("macro_sd")], field("delta"));

    let json = study.json(&out.join("tables/scores.json"));
    let rows = json["table"]["rows"].as_array().unwrap();
    let cells = rows.iter().find(|r| r["key"] == *arm).unwrap()["cells"].as_array().unwrap();
    let printed = &cells[0]["printed"]["number"];
    let texts = [printed["text"].as_str().unwrap().to_owned(), printed["spread"].as_str().unwrap().to_owned()];
    tell("tables/scores.json", texts, cells[2]["printed"]["number"]["text"].as_str().unwrap_or(""));

    let page = read("tables/scores.txt");
    let words: Vec<&str> = page.lines().find(|l| l.starts_with(label)).unwrap().split_whitespace().collect();
    assert_eq!(words[2], "±", "{words:?}");
    tell("tables/scores.txt", [words[1].to_owned(), words[3].to_owned()], words.last().unwrap());

    // Numbers with a point in the order in which they are printed: mean, sd, one task, difference.
    let page = read("tables/scores.tex");
    let begin = format!("{{{label}}} &");
    let line = page.lines().find(|l| l.trim_start().starts_with(&begin)).unwrap_or_else(|| panic!("{page}"));
    let words = line.split(|c: char| !matches!(c, '0'..='9' | '.' | '-'));
    let numbers: Vec<&str> = words.filter(|w| w.contains('.')).collect();
    tell("tables/scores.tex", [numbers[0].to_owned(), numbers[1].to_owned()], numbers.get(3).copied().unwrap_or(""));

    for file in [out.join("tables/scores.html"), study.file("out/report.html")] {
        let page = std::fs::read_to_string(&file).unwrap();
        let row = page.split_once(&format!("<th scope=\"row\">{label}</th>")).unwrap_or_else(|| panic!("{page}")).1;
        let cells = row.split("<span class=\"n\">").skip(1);
        let cells: Vec<&str> = cells.map(|cell| cell.split('<').next().unwrap()).take(3).collect();
        tell(file.file_name().unwrap().to_str().unwrap(), spread(cells[0]), cells[2]);
    }

    let page = read("documents/stages.md");
    let row = markdown_row(&page, label);
    let compared = page.lines().find(|l| l.starts_with(&format!("- {label} ")) && l.contains(" vs Vanilla: `"));
    let delta =
        compared.map_or("reference".to_owned(), |l| l.split('`').nth(1).unwrap().trim_start_matches('+').to_owned());
    tell("documents/stages.md", [row[2].clone(), row[3].clone()], &delta);

    let json = study.json(&out.join("documents/stages.json"));
    let stage_of = json["stages"].as_array().unwrap().iter().find(|s| s["key"] == *stage).unwrap();
    let number = |value: &Value| format!("{:.6}", value.as_f64().unwrap());
    let compared = json["compare"].as_array().unwrap().iter().find(|c| c["of"] == *stage && c["to"] == "s1");
    let delta = compared.map_or("reference".to_owned(), |c| number(&c["delta"]));
    tell("documents/stages.json", [number(&stage_of["macro"]["mean"]), number(&stage_of["macro"]["sd"])], &delta);

    let macros = "map(.metrics.tasks | map(.accuracy) | mean)";
    let of = |arm: &str| format!("(map(select(.key.arm == \"{arm}\")) | sort_by(.key.seed) | {macros})");
    let filter = format!("{} | pm(6)", of(arm));
    let both = study.answer(&["query", "-r", &filter]);
    let delta = match arm {
        "vanilla" => "reference".to_owned(),
        arm => {
            let filter = format!(
                "{} as $a | {} as $b | [range($a | length) | $a[.] - $b[.]] | mean | num(6)",
                of(arm),
                of("vanilla")
            );
            study.answer(&["query", "-r", &filter]).trim().to_owned()
        }
    };
    tell("query", spread(both.trim()), &delta);

    let trace = study.answer(&["query", "--trace", &format!("scores/{arm}/macro"), "--format", "json"]);
    let trace: Value = serde_json::from_str(&trace).unwrap();
    tell("query --trace", spread(trace["printed"].as_str().unwrap()), &delta);
    found
}

#[test]
fn the_same_numbers_stand_everywhere() {
    let study = Scored::local();
    study.run_here();
    let output = study.seedbed(&["aggregate", "--output", "out"]);
    assert!(output.status.success(), "{}", text(&output));
    // What the stage sealed and what is made anew are the same bytes.
    let (sealed, anew) = (study.cell("aggregate"), study.file("out"));
    for part in ["tables", "documents"] {
        let (sealed, anew) = (written(&sealed.join(part)), written(&anew.join(part)));
        assert!(!sealed.is_empty() && sealed == anew, "{part}: {:?} {:?}", sealed.keys(), anew.keys());
    }
    for arm in ARMS {
        let found = everywhere(&study, &sealed, arm);
        assert_eq!(found.len(), 12, "{found:?}");
        for (place, numbers) in &found {
            assert_eq!(numbers, &found[0].1, "{arm} in {place} and in {}", found[0].0);
        }
    }
    // Worked out by hand: 0.6950568562 and a fifth of 1/500 more.
    let found = everywhere(&study, &sealed, "vanilla");
    assert_eq!(found[0].1, ["0.695257", "0.000283", "reference"].map(str::to_owned));

    let page = std::fs::read_to_string(sealed.join("documents/stages.md")).unwrap();
    for said in [
        "- Items: `3`\n- Split: `validation`\n- Eval tasks: `hellaswag, piqa, arc_easy, arc_challenge, winogrande`\n- Seeds: `7, 42`\n",
        "- A lot: macro drops from `0.6953` to `0.3561`",
        "both: **not met**",
    ] {
        assert!(page.contains(said), "{said}:\n{page}");
    }
    let page = std::fs::read_to_string(sealed.join("documents/runs.md")).unwrap();
    for said in [
        "| full | teacher = prompt | 0.680 (step 1500) → 0.645 | 0.540 / 0.770 | “she makes \\$18. \\| \\#\\#\\#\\# 18” |  |",
        "| answer | teacher = answer | 0.360 (step 1250) → 0.315 (step 1750) | 0.765 / 0.515 | “\\#\\#\\#\\# 10” | timeout: the last evaluation is that of step 1750 |",
    ] {
        assert!(page.contains(said), "{said}:\n{page}");
    }
}

#[test]
fn two_places_write_the_same_files_and_a_trace_tells_where_each_number_came_from() {
    let here = Scored::local();
    here.run_here();
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 4);
    let there = Scored::new(slurm.path());
    there.run_on_slurm(60);
    for part in ["tables", "documents"] {
        let of = |study: &Scored| written(&study.cell("aggregate").join(part));
        assert!(!of(&here).is_empty() && of(&here) == of(&there), "{part} differ");
    }
    let trace = |study: &Scored| -> Value {
        serde_json::from_str(&study.answer(&["query", "--trace", "scores/tuned/delta", "--format", "json"])).unwrap()
    };
    let (one, other) = (trace(&here), trace(&there));
    assert_eq!(one["cell"], other["cell"]);
    assert!(one["signature"].as_str().unwrap().starts_with("table:scores|"), "{one}");
    // Both arms over both seeds.
    assert_eq!(one["runs"].as_array().unwrap().len(), 4);
    for (study, trace, local) in [(&here, &one, true), (&there, &other, false)] {
        for run in trace["runs"].as_array().unwrap() {
            let seal = &run["seal"];
            let file = study.file(seal["file"].as_str().unwrap());
            assert_eq!(seal["file_digest"], Digest::of_file(&file).unwrap().as_str(), "{run}");
            assert_eq!(seal["size_bytes"], std::fs::metadata(&file).unwrap().len());
            let items = Digest::of_file(&study.file("configs/items.txt")).unwrap();
            let dataset = json!({"cell": "scored/default/data", "name": "items.txt", "digest": items});
            assert!(seal["datasets"].as_array().unwrap().contains(&dataset), "{run}");
            assert_eq!(seal["params"].as_str().unwrap().len(), 64);
            assert!(seal["code"].as_str().unwrap().starts_with(env!("CARGO_PKG_VERSION")), "{run}");
            assert!(!seal["host"].as_str().unwrap().is_empty());
            assert_eq!(seal["jobs"].as_array().unwrap().is_empty(), local, "{run}");
        }
    }
    let page = there.answer(&["query", "--trace", "scores/tuned/delta"]);
    let job = other["runs"][0]["seal"]["jobs"][0].as_str().unwrap();
    for said in [
        "scores / tuned / delta\n",
        "run          scored/default/eval/tuned/seed-42\n",
        "  dataset    ",
        "  code       ",
    ] {
        assert!(page.contains(said), "{said}:\n{page}");
    }
    assert!(page.lines().any(|l| l.starts_with("  jobs ") && l.contains(job)), "{page}");

    // The same for the whole table, apart from what is for others.
    let output = there.seedbed(&["aggregate", "--output", "out"]);
    assert!(output.status.success(), "{}", text(&output));
    let sources = there.json(&there.file("out/sources/scores.json"));
    assert_eq!((sources["runs"].as_array().unwrap().len(), sources["cells"].as_array().unwrap().len()), (6, 9));
    assert!(sources.to_string().contains(job));
    assert!(!std::fs::read_to_string(there.file("out/tables/scores.json")).unwrap().contains("\"jobs\""));

    for (arguments, code, said) in [
        (["query", "--trace", "scores/tuned"], 64, "three keys"),
        (["query", "--trace", "score/tuned/delta"], 64, "its tables are scores"),
        (["query", "--trace", "scores/tund/delta"], 64, "it has vanilla, ablated, tuned"),
        (["query", "--trace", "scores/tuned/dlta"], 64, "it has macro, hellaswag, delta"),
    ] {
        let output = there.seedbed(&arguments);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        assert!(text(&output).contains(said), "{said}: {}", text(&output));
    }
}

#[test]
fn what_is_sealed_is_made_anew_and_every_file_that_differs_is_named() {
    let study = Scored::local();
    let verify = || study.seedbed(&["aggregate", "--verify"]);
    let output = verify();
    assert_eq!(output.status.code(), Some(66), "{}", text(&output));
    assert!(text(&output).contains("aggregate: missing: nothing to verify; run `run_all"), "{}", text(&output));
    study.run_here();
    // Beside the results every look keeps what it knows of digests.
    let results = || -> BTreeMap<String, Vec<u8>> {
        written(&study.file("results")).into_iter().filter(|(name, _)| !name.contains("/.seedbed/")).collect()
    };
    let sealed = results();
    let output = verify();
    assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output));
    // Of one table, two documents, two texts over seeds and the record.
    assert!(text(&output).contains("13 files as the sealed runs give it"), "{}", text(&output));

    let table = study.cell("aggregate/tables/scores.tex");
    let edited = std::fs::read_to_string(&table).unwrap().replacen("0.695257", "0.695258", 1);
    std::fs::write(&table, edited).unwrap();
    std::fs::remove_file(study.cell("aggregate/documents/runs.md")).unwrap();
    let output = verify();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(said.len(), 2, "{said:#?}");
    assert!(said[0].contains("aggregate/tables/scores.tex: line ") && said[0].contains("0.695258"), "{said:#?}");
    assert!(said[1].ends_with("aggregate/documents/runs.md: is not there"), "{said:#?}");
    let mut expected = sealed;
    expected.remove("scored/default/aggregate/documents/runs.md").unwrap();
    expected.insert("scored/default/aggregate/tables/scores.tex".into(), std::fs::read(&table).unwrap());
    assert!(results() == expected, "nothing is written");

    std::fs::remove_file(study.cell("eval/tuned/seed-7/seal.json")).unwrap();
    let output = verify();
    assert_eq!(output.status.code(), Some(66), "{}", text(&output));
}

#[test]
fn a_study_file_is_asked_for_its_sealed_cells() {
    let study = Scored::local();
    let output = study.seedbed(&["query", "length"]);
    assert_eq!(output.status.code(), Some(66), "{}", text(&output));
    assert!(
        text(&output).contains("no cell of study scored is sealed under profile default: run `run_all"),
        "{}",
        text(&output)
    );
    study.run_here();
    assert_eq!(
        study.answer(&["query", "-c", "map(.key.stage) | group_by(.) | map([.[0], length])"]),
        "[[\"aggregate\",1],[\"bridge\",2],[\"data\",1],[\"eval\",6]]\n"
    );
    assert_eq!(
        study.answer(&["query", "-c", "map(select(.key.stage == \"bridge\").metrics.status)"]),
        "[\"timeout\",\"done\"]\n"
    );
    // One cell withdrawn: it is left out, and named.
    std::fs::remove_file(study.cell("bridge/full/seal.json")).unwrap();
    let output = study.seedbed(&["query", "-c", "map(select(.key.stage == \"bridge\").key.arm)"]);
    assert_eq!(output.stdout, b"[\"answer\"]\n", "{}", text(&output));
    assert!(
        text(&output).contains("8 of 10 cells are sealed and asked; not bridge/full, aggregate"),
        "{}",
        text(&output)
    );
    let output = study.seedbed(&["query", ".", "--profile", "fast"]);
    assert_eq!(output.status.code(), Some(64), "{}", text(&output));
    let output = study.seedbed(&["query", ".", "configs"]);
    assert_eq!(output.status.code(), Some(64), "{}", text(&output));
    assert!(text(&output).contains("a study file is asked alone"), "{}", text(&output));
}

#[test]
fn a_document_that_cannot_be_is_refused_before_anything_runs() {
    let study = Scored::local();
    let path = study.file("configs/scored.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    for (from, to, said) in [
        ("kind         = \"stage_summary\"", "kind         = \"stages\"", "`stages` is no kind of document"),
        ("compare      = [{of = \"s2\"", "compare      = [{of = \"s3\"", "none of the document's stages"),
        ("key         = \"runs\"", "key         = \"stages\"", "two documents have the key `stages`"),
        (
            "needs     = [\"data\", \"eval\", \"bridge\"]",
            "needs     = [\"data\", \"eval\"]",
            "makes document runs, which reads stage `bridge`",
        ),
        ("value_label = ", "value_lable = ", "did you mean `value_label`?"),
    ] {
        assert!(good.contains(from), "{from}");
        std::fs::write(&path, good.replace(from, to)).unwrap();
        let output = study.seedbed(&["plan", "--local"]);
        assert_eq!(output.status.code(), Some(64), "{from}: {}", text(&output));
        assert!(text(&output).contains(said) && text(&output).contains("scored.toml:"), "{said}: {}", text(&output));
    }
    // A profile lays keys over a document.
    std::fs::write(&path, format!("{good}\n[profile.quick]\ndocument.runs.title = \"Rehearsal\"\n")).unwrap();
    let output = study.seedbed(&["plan", "--local", "--profile", "quick"]);
    assert!(output.status.success(), "{}", text(&output));
}
