//! The macro of keyed values under the real pdflatex: captions, sections, math, footnotes, `\num`, and unknown keys.

use std::process::Command;

use super::{Desk, pdflatex};

const PAPER: &str = r#"\documentclass{article}
\usepackage{booktabs,siunitx}
\usepackage{hyperref}
\input{seedbed/values}
\begin{document}
\listoftables
\tableofcontents
\section{A gap of \seedbed{foundation/monotonic/delta} nats}
In math $x = \seedbed{foundation/monotonic/delta/spread} + 1$, as \num{\seedbed{foundation/monotonic/perplexity}} and
\texttt{\seedbed{times}}, in a note\footnote{It is \seedbed{foundation/baseline/attack}.}, and as text: \seedbed{note}.
\section{Unknown \seedbed{no/such/key}}
\begin{table}\caption{It grows \seedbed{times} here, and \seedbed{nothing}.}\centering x\end{table}
\edef\stored{\seedbed{times}}\typeout{STORED=\stored}
\end{document}
"#;

const FILL: &str = r#"schema = 1
studies = ["../configs/small.toml"]
[value.times]
cells = {mono = "foundation/monotonic/perplexity", base = "foundation/baseline/perplexity"}
value = ".mono / .base"
digits = 1
suffix = "x"
[value.note]
of = ["evaluate"]
value = ".[0].metrics.note"
"#;

#[test]
fn keyed_values_print_wherever_text_prints() {
    let desk = Desk::new();
    desk.write("paper/paper.tex", PAPER);
    desk.write("paper/paper.fill.toml", FILL);
    let said = desk.says("fill", &[], 1);
    assert!(said.contains("paper.tex:11: `no/such/key` has no value"), "{said}");
    let dir = desk.path("paper");
    let log = pdflatex(&dir, "paper.tex");
    assert!(log.contains("STORED=5.6x"), "it expands to its text");
    assert!(log.contains("Package seedbed Warning: There is no value for `no/such/key'"), "{log}");
    assert!(log.contains("Package seedbed Warning: There is no value for `nothing'"), "{log}");
    let read = |ending: &str| std::fs::read_to_string(dir.join(format!("paper.{ending}"))).unwrap();
    // The lists hold the digits, not the macro.
    assert!(read("lot").contains("It grows 5.6x here"), "{}", read("lot"));
    assert!(read("toc").contains("A gap of 30.96 nats"), "{}", read("toc"));
    let page = Command::new("pdftotext").args(["-layout", "paper.pdf", "-"]).current_dir(&dir).output().unwrap();
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    for printed in [
        "A gap of 30.96 nats",
        "0.23 + 1",
        "37.68",
        "5.6x",
        "It is 69.0.",
        "50% & more",
        "Unknown ??",
        "It grows 5.6x here, and ??",
    ] {
        assert!(page.contains(printed), "{printed} is not on the page:\n{page}");
    }
    assert!(!page.contains("seedbed") && !page.contains("no/such/key"), "{page}");
    // Bookmarks: digits, and ?? without a font.
    let bookmarks = read("out").replace("\\000", "");
    assert!(bookmarks.contains("30.96") && bookmarks.contains("??"), "{bookmarks}");
    let said = desk.says("check", &[], 1);
    assert!(said.contains("paper.tex:12: `nothing` has no value"), "{said}");
}
