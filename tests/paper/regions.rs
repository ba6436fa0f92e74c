//! Generated files and marked regions, with and without a fill file.

use super::{Desk, pdflatex};
use crate::support::chain::text;

const PAPER: &str = "\\documentclass{article}
\\usepackage{booktabs,siunitx}
\\input{seedbed/values}
\\begin{document}
The gap is \\seedbed{foundation/monotonic/delta}.
\\input{seedbed/foundation}
\\end{document}
";

#[test]
fn a_paper_needs_no_fill_file() {
    let desk = Desk::new();
    desk.write("paper/paper.tex", PAPER);
    let said = desk.says("check", &[], 64);
    assert!(said.contains("no study is named") && said.contains("--study STUDY"), "{said}");
    let said = desk.says("check", &["--study", "configs/small.toml"], 1);
    assert!(said.contains("paper.tex:6: `seedbed/foundation.tex` is not there: run `seedbed paper fill`"), "{said}");
    desk.says("fill", &["--study", "configs/small.toml"], 0);
    assert_eq!(desk.read("paper/paper.tex"), PAPER, "the paper itself has nothing to fill");
    let before = desk.files();
    // The record says which study it was.
    desk.says("fill", &[], 0);
    assert_eq!(desk.files(), before);
    let said = desk.says("check", &[], 0);
    assert!(said.contains("7 numbers compared"), "{said}");
    let log = pdflatex(&desk.path("paper"), "paper.tex");
    assert!(!log.contains("Package seedbed Warning"), "{log}");

    desk.numbers("42 6.70 37.50 0.69 0.43\n1337 6.74 38.06 0.69 0.42\n");
    desk.run_all();
    let said = desk.says("check", &[], 1);
    let changed = "(changed: small/default/evaluate/seed-1337)";
    assert!(
        said.contains(&format!(
            "paper.tex:5: `foundation/monotonic/delta` prints 30.96, the results now give 31.06 {changed}"
        )),
        "{said}"
    );
    let table = desk.read("paper/seedbed/foundation.tex");
    let line = 1 + table.lines().position(|l| l.contains("37.68")).unwrap();
    assert!(said.contains(&format!("seedbed/foundation.tex:{line}: `foundation` prints ")), "{said}");
    assert!(said.contains("37.68") && said.contains("37.78"), "{said}");
    desk.says("fill", &[], 0);
    desk.says("check", &[], 0);

    desk.edit("paper/seedbed/foundation.tex", "37.78", "37.00");
    let said = desk.says("check", &[], 1);
    assert!(said.contains("seedbed/foundation.tex:1: this file was edited by hand"), "{said}");
    desk.edit("paper/paper.tex", "delta}.", "dleta} and \\seedbed{nothing}.");
    let said = desk.says("fill", &[], 1);
    assert!(said.contains("paper.tex:5: `foundation/monotonic/dleta` has no value: table `foundation` has no column `dleta`: use one of perplexity, delta, attack"), "{said}");
    assert!(said.contains("`nothing` is no key: use TABLE/ROW/COLUMN of the tables foundation"), "{said}");
}

#[test]
fn two_papers_of_a_folder_have_files_of_their_own() {
    let desk = Desk::new();
    desk.write("paper/paper.tex", PAPER);
    desk.says("fill", &["--study", "configs/small.toml"], 0);
    desk.write("paper/other.tex", &PAPER.replace("monotonic/delta", "baseline/attack"));
    let mut fill = desk.command(env!("CARGO_BIN_EXE_seedbed"));
    let output = fill.args(["paper", "fill", "paper/other.tex", "--study", "configs/small.toml"]).output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("was written for `paper.tex`") && said.contains("say `folder = "), "{said}");
    desk.says("check", &[], 0);
    // A record whose paper is gone stands in nobody's way.
    std::fs::rename(desk.path("paper/paper.tex"), desk.path("paper/aside")).unwrap();
    let output = fill.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[test]
fn a_marked_region_is_rewritten_and_nothing_else() {
    let desk = Desk::new();
    let paper = "\\documentclass{article}\n\\usepackage{booktabs,siunitx}\n\\begin{document}\nBefore.\r\n% seedbed begin foundation\nold & broken\n  % seedbed end foundation \nBehind.\\label{a}\n\\end{document}";
    desk.write("paper/paper.tex", paper);
    desk.says("fill", &["--study", "configs/small.toml"], 0);
    let filled = desk.read("paper/paper.tex");
    let (head, rest) = filled.split_once("% seedbed begin foundation ").unwrap();
    let (digest, rest) = rest.split_once('\n').unwrap();
    let (inner, tail) = rest.split_once("  % seedbed end").unwrap();
    assert_eq!(head, paper.split_once("% seedbed begin").unwrap().0);
    assert_eq!(tail, paper.split_once("  % seedbed end").unwrap().1);
    assert!(digest.len() == 16 && inner.contains("\\begin{table}") && inner.contains("37.68"), "{filled}");
    let before = desk.files();
    desk.says("fill", &[], 0);
    assert_eq!(desk.files(), before);
    desk.says("check", &[], 0);
    pdflatex(&desk.path("paper"), "paper.tex");

    desk.edit("paper/paper.tex", "37.68", "36.68");
    let by_hand = desk.read("paper/paper.tex");
    let said = desk.says("check", &[], 1);
    assert!(said.contains("paper.tex:5: region `foundation` was edited by hand"), "{said}");
    desk.says("fill", &[], 1);
    assert_eq!(desk.read("paper/paper.tex"), by_hand);
    desk.says("fill", &["--force"], 0);
    assert_eq!(desk.read("paper/paper.tex"), filled);

    desk.numbers("42 6.70 37.50 0.69 0.43\n1337 6.74 38.06 0.69 0.42\n");
    desk.run_all();
    let line = 1 + filled.lines().position(|l| l.contains("37.68")).unwrap();
    let said = desk.says("check", &[], 1);
    assert!(said.contains(&format!("paper.tex:{line}: `foundation` prints ")), "{said}");
    assert!(said.contains("(changed: small/default/evaluate/seed-1337)"), "{said}");
    desk.says("fill", &[], 0);
    assert!(desk.read("paper/paper.tex").contains("37.78"));
}

#[test]
fn keys_of_two_studies_say_which() {
    let desk = Desk::new();
    desk.write(
        "configs/other.toml",
        &desk.read("configs/small.toml").replace("name  = \"small\"", "name  = \"other\""),
    );
    desk.write("configs/numbers.txt", "42 7.70 37.50 0.69 0.43\n1337 7.74 37.86 0.69 0.42\n");
    desk.run_study("configs/other.toml");
    desk.numbers(super::NUMBERS);
    desk.run_study("configs/small.toml");
    let text = |key: &str| {
        format!(
            "\\documentclass{{article}}\n\\input{{seedbed/values}}\n\\begin{{document}}\n\\seedbed{{{key}}}\n\\end{{document}}\n"
        )
    };
    desk.write("paper/paper.tex", &text("foundation/baseline/perplexity"));
    let studies = ["--study", "configs/small.toml", "--study", "configs/other.toml"];
    let said = desk.says("fill", &studies, 1);
    assert!(
        said.contains("several studies have a table `foundation`: write small/foundation or other/foundation"),
        "{said}"
    );
    desk.write("paper/paper.tex", &text("small/foundation/baseline/perplexity"));
    desk.says("fill", &studies, 0);
    assert!(desk.read("paper/seedbed/values.tex").contains("{6.72}"));
    // The other study has read other numbers than it would today: its keys have no value.
    desk.write("paper/paper.tex", &text("other/foundation/baseline/perplexity/n"));
    let said = desk.says("fill", &[], 1);
    assert!(said.contains("other: evaluate/seed-42 (stale: "), "{said}");
    desk.run_study("configs/other.toml");
    desk.says("fill", &[], 0);
    desk.says("check", &[], 0);
}

#[test]
fn a_table_of_two_studies_knows_what_is_stale_in_each() {
    let desk = Desk::new();
    let other = desk.read("configs/small.toml").replace("name  = \"small\"", "name  = \"other\"");
    desk.write("configs/other.toml", &other.replace("numbers.txt", "more.txt"));
    desk.write("configs/more.txt", "42 7.70 37.50 0.69 0.43\n1337 7.74 37.86 0.69 0.42\n");
    desk.run_study("configs/other.toml");
    let table = "[[table]]\nkey = \"both\"\nstudies = [\"small\", \"other\"]\n\
                 rows = [{key = \"small\", study = \"small\"}, {key = \"other\", study = \"other\"}]\n\
                 columns = [{key = \"ppl\", stage = \"evaluate\", metric = \".pile_test.baseline_pythia.perplexity\"}]\n";
    desk.write("configs/small.toml", &format!("{}{table}", desk.read("configs/small.toml")));
    let text = "\\documentclass{article}\n\\input{seedbed/values}\n\\begin{document}\n\\seedbed{both/small/ppl} and \\seedbed{both/other/ppl}\n\\end{document}\n";
    desk.write("paper/paper.tex", text);
    desk.says("fill", &["--study", "configs/small.toml"], 0);
    let values = desk.read("paper/seedbed/values.tex");
    assert!(
        values.contains("both/small/ppl\\endcsname{6.72}") && values.contains("both/other/ppl\\endcsname{7.72}"),
        "{values}"
    );
    desk.says("check", &[], 0);
    desk.write("configs/more.txt", "42 8.70 37.50 0.69 0.43\n1337 7.74 37.86 0.69 0.42\n");
    let said = desk.says("check", &[], 1);
    assert!(
        said.contains("paper.tex:4: `both/other/ppl` has no value") && said.contains("evaluate/seed-42 (stale"),
        "{said}"
    );
    assert!(!said.contains("`both/small/ppl`"), "{said}");
    desk.run_study("configs/other.toml");
    let said = desk.says("check", &[], 1);
    assert!(
        said.contains(
            "`both/other/ppl` prints 7.72, the results now give 8.22 (changed: other/default/evaluate/seed-42)"
        ),
        "{said}"
    );
    desk.says("fill", &[], 0);
    // Bytes of the other study, beside its metrics.
    let script = desk.path("results/other/default/evaluate/seed-42/metrics.json");
    let sealed = std::fs::read_to_string(&script).unwrap();
    std::fs::write(&script, sealed.replace("8.70", "8.71")).unwrap();
    let said = desk.says("check", &[], 1);
    assert!(said.contains("`both/other/ppl` has no value"), "{said}");
    std::fs::write(&script, sealed).unwrap();
    desk.says("check", &[], 0);
}
