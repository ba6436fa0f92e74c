//! A plain paper: rows, headers, notes and red sentences, filled again when results change.

use serde_json::Value;

use seedbed::report::paper::spec::Spec;

use crate::support::repository;

use super::{Desk, NUMBERS, fixture, pdflatex};

/// The second seed finds more.
const OTHER: &str = "42 6.70 37.50 0.69 0.43\n1337 6.74 38.06 0.69 0.41\n";

fn line_of(text: &str, words: &str) -> usize {
    1 + text.lines().position(|l| l.contains(words)).unwrap_or_else(|| panic!("{words} is not in\n{text}"))
}

#[test]
fn a_plain_paper_is_filled_once_and_the_same_again() {
    let desk = Desk::with_plain_paper();
    let said = desk.says("check", &["--section", "4.3"], 1);
    for what in [
        "paper.tex:22: the placeholder `[pending]` is left",
        "paper.tex:17: `The gap is 460.7\\,\\%, or 5.6x, and attack success falls by 38.4\\,\\% at 2 seeds.` goes here",
    ] {
        assert!(said.contains(what), "{what} is not in\n{said}");
    }
    let said = desk.says("fill", &[], 0);
    assert_eq!(desk.read("paper/paper.tex"), fixture("monotone.filled.tex"), "{said}");
    assert_eq!(desk.read("paper/rows.tex"), fixture("rows.tex"));
    // Red that nobody filled stays, and is named.
    assert!(said.contains("paper.tex:13: red text is left"), "{said}");
    assert!(!said.contains("paper.tex:4:"), "a comment is no text: {said}");
    let before = desk.files();
    let said = desk.says("fill", &[], 0);
    assert_eq!(desk.files(), before, "{said}");
    assert!(said.contains("nothing to do"), "{said}");
    let said = desk.says("check", &["--section", "4.3"], 0);
    assert!(said.contains("13 numbers compared: all are those of the results"), "{said}");
    assert!(said.contains("warning: paper.tex:13: red text is left"), "{said}");
    let said = desk.says("check", &["--section", "Summarisation"], 1);
    assert!(said.contains("paper.tex:13: red text is left: `The numbers of this section"), "{said}");
    let log = pdflatex(&desk.path("paper"), "paper.tex");
    for complaint in ["undefined", "Overfull", "Missing character"] {
        assert!(!log.contains(complaint), "{log}");
    }
    // What leaves a trace of how it was made is the record.
    let record: Value = serde_json::from_str(&desk.read("paper/paper.tex.seedbed.json")).unwrap();
    let place = record["places"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["place"]["row"] == "Pythia-1.4B (Monotonic)" && p["place"]["column"] == 4);
    let number = &place.unwrap()["numbers"][0];
    assert_eq!(number["key"], "foundation/monotonic/delta/full");
    assert_eq!((number["occurrence"].as_u64(), &number["printed"]), (Some(1), &Value::from("$30.96 \\pm 0.23$")));
    assert_eq!(record["keys"]["gap"]["runs"].as_object().unwrap().len(), 2, "{record}");
}

#[test]
fn a_change_of_results_is_told_and_changes_those_numbers_only() {
    let desk = Desk::with_plain_paper();
    desk.says("fill", &[], 0);
    let filled = desk.read("paper/paper.tex");
    // Somebody wraps a sentence anew: its numbers are still ours.
    let wrapped = filled.replace("or 5.6x, and attack success", "or 5.6x,\n  and attack % see below\n  success");
    assert_ne!(wrapped, filled);
    desk.write("paper/paper.tex", &wrapped);
    desk.says("check", &["--section", "4.3"], 0);
    desk.numbers(OTHER);
    // What is sealed is not what would be found now.
    let said = desk.says("check", &[], 1);
    assert!(said.contains("evaluate/seed-1337 (stale: "), "{said}");
    desk.run_all();
    let said = desk.says("check", &[], 1);
    let line = line_of(&wrapped, "Looking closer");
    let expected = format!(
        "paper.tex:{line}: `foundation/monotonic/perplexity` prints 37.68, the results now give 37.78 (changed: small/default/evaluate/seed-1337)\n"
    );
    assert!(said.contains(&expected), "{said}");
    let line = line_of(&wrapped, "(Monotonic) & 1.4B");
    assert!(
        said.contains(&format!(
            "paper.tex:{line}: `foundation/monotonic/attack` prints 42.5, the results now give 42.0"
        )),
        "{said}"
    );
    assert!(!said.contains("foundation/baseline"), "these are what they were: {said}");
    let said = desk.paper("check", &["--format", "json"]);
    let found: Value = serde_json::from_slice(&said.stdout).unwrap();
    let attack =
        found["errors"].as_array().unwrap().iter().find(|f| f["key"] == "foundation/monotonic/attack").unwrap();
    let fields = [&attack["file"], &attack["printed"], &attack["now"], &attack["changed"][0]];
    assert_eq!(fields, ["paper.tex", "42.5", "42.0", "small/default/evaluate/seed-1337"]);
    assert_eq!(attack["line"], line);
    assert_eq!(desk.read("paper/paper.tex"), wrapped, "a check writes nothing");
    desk.says("fill", &[], 0);
    let mut expected = wrapped.clone();
    for (from, to) in [
        ("460.7\\,\\%", "462.2\\,\\%"),
        ("by 38.4\\,\\%", "by 39.1\\,\\%"),
        ("6.72 to 37.68", "6.72 to 37.78"),
        ("$37.68 \\pm 0.25$", "$37.78 \\pm 0.40$"),
        ("$30.96 \\pm 0.23$", "$31.06 \\pm 0.37$"),
        ("42.5\\,\\%", "42.0\\,\\%"),
    ] {
        assert_eq!(expected.matches(from).count(), 1, "{from}");
        expected = expected.replace(from, to);
    }
    assert_eq!(desk.read("paper/paper.tex"), expected);
    desk.says("check", &["--section", "4.3"], 0);
    desk.numbers(NUMBERS);
    desk.run_all();
    desk.says("fill", &[], 0);
    assert_eq!(desk.read("paper/paper.tex"), wrapped);
}

#[test]
fn a_number_that_was_edited_by_hand_stays() {
    let desk = Desk::with_plain_paper();
    desk.says("fill", &[], 0);
    desk.edit("paper/paper.tex", "42.5\\,\\%", "41.5\\,\\%");
    desk.edit("paper/paper.tex", "gap is 460.7", "gap is 300");
    let by_hand = desk.read("paper/paper.tex");
    let said = desk.says("check", &[], 1);
    let line = line_of(&by_hand, "gap is 300");
    assert!(
        said.contains(&format!("paper.tex:{line}: `gap` was edited by hand: 300, where 460.7 was filled in")),
        "{said}"
    );
    assert!(said.contains("`foundation/monotonic/attack` was edited by hand: 41.5, where 42.5"), "{said}");
    let said = desk.says("fill", &[], 1);
    assert!(said.contains("--force"), "{said}");
    assert_eq!(desk.read("paper/paper.tex"), by_hand);
    // Results change: every other number follows, these two do not.
    desk.numbers(OTHER);
    desk.run_all();
    desk.says("fill", &[], 1);
    let text = desk.read("paper/paper.tex");
    assert!(text.contains("gap is 300\\,\\%, or 5.6x, and attack success falls by 39.1"), "{text}");
    assert!(text.contains("$31.06 \\pm 0.37$ & 41.5\\,\\%"), "{text}");
    desk.says("fill", &["--force"], 0);
    let text = desk.read("paper/paper.tex");
    assert!(text.contains("gap is 462.2") && text.contains("& 42.0\\,\\%"), "{text}");
    desk.says("check", &["--section", "4.3"], 0);
}

#[test]
fn a_row_of_a_file_that_the_table_inputs_is_filled_there() {
    let desk = Desk::with_plain_paper();
    let row = "{first = \"Reference\", cells = [\"\", \"[[foundation/baseline/perplexity]]\", \"\", \"\"]},\n]";
    desk.edit("paper/paper.fill.toml", "\n]\n", &format!("\n  {row}\n"));
    desk.says("fill", &[], 0);
    assert_eq!(desk.read("paper/rows.tex"), fixture("rows.tex").replace("41.0", "6.72"));
    assert_eq!(desk.read("paper/paper.tex"), fixture("monotone.filled.tex"));
    desk.edit("paper/rows.tex", "6.72", "6.73");
    let said = desk.says("check", &[], 1);
    assert!(said.contains("rows.tex:1: `foundation/baseline/perplexity` was edited by hand: 6.73"), "{said}");
    assert!(said.contains("two places disagree about `foundation/baseline/perplexity`"), "{said}");
}

#[test]
fn rows_of_a_study_s_table_are_printed_whole() {
    let desk = Desk::new();
    let paper = "\\documentclass{article}\n\\usepackage{graphicx,xcolor}\n\\begin{document}\n\\begin{table}\n\\caption{x}\\label{tab:x}\n\
                 \\resizebox{\\textwidth}{!}{%\n\\begin{tabular}{lrrr}\nModel & P & D & A \\\\ \\hline\n\
                 {\\color{red}Pythia-1.4B (Baseline)} & ? & {\\color{red} ?} && \\\\ % last\n\\end{tabular}}\n\\end{table}\n\\end{document}\n";
    desk.write("paper/paper.tex", &paper.replace("&&", "&"));
    desk.write(
        "paper/paper.fill.toml",
        "schema = 1\nstudies = [\"../configs/small.toml\"]\n[[fill]]\nlabel = \"tab:x\"\nnote = \"Over [[foundation/baseline/attack/n]] seeds.\"\nrows = [\n\
         {first = \"Pythia-1.4B (Baseline)\", from = \"foundation/baseline\"},\n\
         {first = \"Pythia-1.4B (Monotonic)\", from = \"small/foundation/monotonic\", after = \"Pythia-1.4B (Baseline)\"},\n]\n",
    );
    desk.says("fill", &[], 0);
    let filled = "{lrrr}\nModel & P & D & A \\\\ \\hline\nPythia-1.4B (Baseline) & $6.72 \\pm 0.03$ & -- & 69.0 \\\\ % last\n\
                  Pythia-1.4B (Monotonic) & $37.68 \\pm 0.25$ & $30.96 \\pm 0.23$ & 42.5 \\\\\n\\end{tabular}}\n\
                  \\par\\smallskip{\\footnotesize Over 2 seeds.\\par}\n\\end{table}";
    let text = desk.read("paper/paper.tex");
    assert!(text.contains(filled), "{text}");
    let before = desk.files();
    desk.says("fill", &[], 0);
    assert_eq!(desk.files(), before);
    desk.says("check", &[], 0);
    pdflatex(&desk.path("paper"), "paper.tex");
    // A row of other columns than the table's.
    desk.write("paper/paper.tex", &paper.replace("{lrrr}", "{lrrrr}").replace("& A", "& A & B").replace("&&", "& &"));
    let said = desk.says("fill", &[], 64);
    assert!(said.contains("table `tab:x` has 5 columns, row `Pythia-1.4B (Baseline)` has 4"), "{said}");
}

#[test]
fn two_places_that_disagree_are_named() {
    let desk = Desk::with_plain_paper();
    desk.says("fill", &[], 0);
    desk.edit("paper/paper.tex", "grows 5.6x", "grows 5.7x");
    let said = desk.says("check", &[], 1);
    assert!(said.contains("two places disagree about `times`: 5.6x at paper.tex:17, 5.7x at paper.tex:20"), "{said}");
}

#[test]
fn other_numerals_of_a_named_section_are_untracked() {
    let desk = Desk::with_plain_paper();
    desk.edit("paper/paper.tex", "The rest of the paragraph", "It took 17 hours. The rest of the paragraph");
    desk.says("fill", &[], 0);
    let said = desk.says("check", &[], 0);
    assert!(said.contains("warning: paper.tex:18: untracked: 17 is no key's value"), "{said}");
    let said = desk.says("check", &["--strict"], 1);
    assert!(
        said.contains("\npaper.tex:18: untracked: 17") || said.starts_with("paper.tex:18: untracked: 17"),
        "{said}"
    );
    assert!(!said.contains("untracked: 5.6") && !said.contains("untracked: 42.5"), "{said}");
}

/// What an edit of the paper or its fill file makes `fill` and `check` say; nothing is written.
#[track_caller]
fn refused(file: &str, from: &str, to: &str, words: &str) {
    thread_local!(static DESK: Desk = Desk::new());
    DESK.with(|desk| {
        for (from, to) in
            [("monotone.tex", "paper.tex"), ("rows.tex", "rows.tex"), ("monotone.fill.toml", "paper.fill.toml")]
        {
            desk.write(&format!("paper/{to}"), &fixture(from));
        }
        desk.edit(&format!("paper/{file}"), from, to);
        let before = desk.files();
        for action in ["fill", "check"] {
            let said = desk.says(action, &[], 64);
            assert!(said.contains(words), "{words} is not in\n{said}");
        }
        assert_eq!(desk.files(), before);
    });
}

#[test]
fn what_can_be_meant_in_two_ways_is_refused() {
    let rows = "    \\bottomrule";
    for (file, from, to, words) in [
        ("paper.tex", "The rest of", "{The rest of", "paper.tex:19: this `{` is never closed"),
        ("paper.tex", "The rest of", "The} rest of", "paper.tex:19: this `}` closes nothing"),
        ("rows.tex", "41.0", "4{1.0", "rows.tex:1: this `{` is never closed"),
        (
            "paper.tex",
            "\\label{sec:foundation}",
            "\\label{tab:foundation-preliminary}",
            "label `tab:foundation-preliminary` stands here and at paper.tex:14",
        ),
        (
            "paper.tex",
            rows,
            "    Pythia-1.4B (Baseline) & 1 & 2 & 3 & 4 \\\\\n    \\bottomrule",
            "two rows begin with `Pythia-1.4B (Baseline)`, here and at paper.tex:",
        ),
        (
            "paper.tex",
            "Looking closer,",
            "\\textcolor{red}{We expect a gap below it.}",
            "two red passages begin with `We expect a gap below`",
        ),
        ("paper.tex", "Attack Success \\\\", "ROUGE-L (Clean) \\\\", "two header cells `ROUGE-L (Clean)` in one row"),
        ("paper.tex", "ROUGE-L (Clean)", "Rouge", "has no header cell `ROUGE-L (Clean)`: they are Model | "),
        (
            "paper.fill.toml",
            "first = \"Pythia-1.4B (Baseline)\"",
            "first = \"Pythia-6.9B\"",
            "has no row `Pythia-6.9B`: it has Model | T5 & T5-small",
        ),
        (
            "paper.fill.toml",
            "after = \"Pythia-1.4B (Baseline)\"",
            "after = \"T5 & T5-small\"",
            "two rows begin with `T5 & T5-small`",
        ),
        (
            "paper.fill.toml",
            "starts = \"We expect",
            "starts = \"We hope",
            "no red passage begins with `We hope a gap below`",
        ),
        (
            "paper.fill.toml",
            "label  = \"tab:foundation-preliminary\"",
            "label  = \"tab:x\"",
            "no table has the label `tab:x`: the tables are tab:foundation-preliminary",
        ),
        ("paper.fill.toml", "[[gap]]\\\\,\\\\%", "[[gap", "is no key: use names of letters"),
        ("paper.fill.toml", "keep   = true", "kept   = true", "unknown field `kept`"),
        ("paper.tex", "Looking closer,", "% seedbed begin foundation\n", "region `foundation` does not end"),
        ("paper.tex", "Looking closer,", "% seedbed end foundation\n", "region `foundation` ends but does not begin"),
        ("paper.tex", "Looking closer,", "x % seedbed begin foundation\n", "a marker stands alone on its line"),
        (
            "paper.tex",
            "Looking closer,",
            "% seedbed begin a\n% seedbed begin b\n% seedbed end b\n% seedbed end a\n",
            "region `b` begins inside `a`",
        ),
        (
            "paper.tex",
            "Looking closer,",
            "% seedbed begin a\n% seedbed end a\n% seedbed begin a\n% seedbed end a\n",
            "region `a` begins a second time, first at paper.tex:21",
        ),
        ("paper.tex", "Looking closer,", "\\input{paper}", "`paper.tex` inputs itself"),
    ] {
        refused(file, from, to, words);
    }
}

#[test]
fn a_result_that_is_not_there_leaves_its_places_alone() {
    let desk = Desk::with_plain_paper();
    desk.says("fill", &[], 0);
    let filled = desk.read("paper/paper.tex");
    let seal = desk.path("results/small/default/evaluate/seed-42/seal.json");
    std::fs::rename(&seal, seal.with_extension("aside")).unwrap();
    let said = desk.says("fill", &[], 1);
    assert!(said.contains("`gap` has no value: 1 of 2 runs: small: evaluate/seed-42 (not sealed)"), "{said}");
    assert_eq!(desk.read("paper/paper.tex"), filled);
    let said = desk.says("check", &[], 1);
    assert!(said.contains("small: evaluate/seed-42 (not sealed)"), "{said}");
    std::fs::rename(seal.with_extension("aside"), &seal).unwrap();
    desk.says("check", &["--section", "4.3"], 0);
    // Bytes that are not those that were sealed, though their number is the same.
    let metrics = desk.path("results/small/default/evaluate/seed-42/metrics.json");
    let text = std::fs::read_to_string(&metrics).unwrap();
    std::fs::write(&metrics, text.replace("37.50", "37.40")).unwrap();
    let said = desk.says("check", &[], 1);
    assert!(said.contains("evaluate/seed-42 ("), "{said}");
    let record = desk.read("paper/paper.tex.seedbed.json");
    desk.write("paper/paper.tex.seedbed.json", &record[..record.len() / 2]);
    let said = desk.says("fill", &[], 65);
    assert!(said.contains("paper.tex.seedbed.json` is damaged") && said.contains("delete it and fill again"), "{said}");
    // Without the record the paper still says what it should, and is recorded anew.
    std::fs::remove_file(desk.path("paper/paper.tex.seedbed.json")).unwrap();
    std::fs::write(&metrics, &text).unwrap();
    desk.says("fill", &[], 0);
    assert_eq!((desk.read("paper/paper.tex"), desk.read("paper/paper.tex.seedbed.json")), (filled.clone(), record));
    // An unknown key is named with what there is.
    desk.edit("paper/paper.fill.toml", "[[gap]]\\\\,", "[[gapp]]\\\\,");
    let said = desk.says("fill", &[], 1);
    assert!(said.contains("`gapp` has no value: `gapp` is no key"), "{said}");
    assert_eq!(desk.read("paper/paper.tex"), filled);
}

#[test]
fn the_fill_files_of_the_documents_are_fill_files() {
    let mut count = 0;
    for page in ["docs/paper.md", "docs/monotone.md"] {
        let text = std::fs::read_to_string(repository().join(page)).unwrap();
        for block in text.split("```toml\n").skip(1) {
            let lines = block.lines().take_while(|l| !l.trim_start().starts_with("```"));
            let block: String = lines.map(|l| format!("{}\n", l.trim_start())).collect();
            // A part of one, or of a study.
            let part = block.contains("[[fill]]") && !block.contains("schema");
            let block = if part { format!("schema = 1\n{block}") } else { block };
            if block.contains("studies") || part {
                count += 1;
                Spec::parse(&block).unwrap_or_else(|problems| panic!("{page}:\n{block}\n{problems:#?}"));
            }
        }
    }
    assert_eq!(count, 3);
}
