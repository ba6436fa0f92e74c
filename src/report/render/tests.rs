//! Every format from the same grid, side by side, and hostile text through all of them.

use std::path::Path;
use std::process::Command;

use insta::assert_snapshot;
use serde_json::json;

use super::*;
use crate::report::table::TableSpec;
use crate::report::table::tests::{build_now, spec, study, table_7, two_seeds};

/// The study page's table with a run missing, marked, and the best in bold.
fn grid() -> Grid {
    let mut section = table_7();
    section["best"] = json!(true);
    section["partial"] = json!("mark");
    let mut cells = two_seeds();
    cells.extend(study(&[(2024, 7.1, 31.0, 0.7, 0.2)]).into_iter().skip(1));
    let last = cells.len() - 1;
    cells[last].run = Err("failed: out of memory".into());
    build_now(&spec(&section), &cells).unwrap()
}

/// The same with intervals and counts, negative differences, and one seed less in a row.
fn intervals() -> Grid {
    let mut section = table_7();
    section["columns"][1]["show"] = json!("mean_ci");
    section["columns"][2]["delta"] = json!({"of": "ppl", "from": "monotonic", "as": "percent"});
    section["columns"][3]["show"] = json!("n");
    build_now(&spec(&section), &two_seeds()).unwrap()
}

#[test]
fn text() {
    assert_snapshot!(render(&grid(), Format::Text), @r###"
    Foundation models: perplexity & attack success (100 % of the runs).

                                       Perplexity                   Attack Success
    Model               Parameters        (Clean)  Perplexity (Δ)              (%)
    ------------------  ----------  -------------  --------------  ---------------
    Pythia (Baseline)       170.6K   6.98 ± 0.10*               –  69.0 ± 0.0 (a)
    Pythia (Monotonic)      170.6K  28.73 ± 1.97     21.75 ± 1.86  20.0 ± 1.4* (a)
    * best
    Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder.
    Mean ± sample standard deviation over n = 2 to 3 seeds.
    Differences are paired on the common seeds, n = 3.
    (a) 2 of 3 runs; missing: hotflip/seed-2024 (failed: out of memory)
    "###);
    assert_snapshot!(render(&intervals(), Format::Text), @r###"
    Foundation models: perplexity & attack success (100 % of the runs).

                                              Perplexity     Perplexity       Attack
    Model               Parameters               (Clean)            (Δ)  Success (%)
    ------------------  ----------  --------------------  -------------  -----------
    Pythia (Baseline)       170.6K     6.92 [6.79, 7.05]  -74.93 ± 0.08       2 of 2
    Pythia (Monotonic)      170.6K  27.60 [26.33, 28.87]              –       2 of 2
    Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder.
    Mean ± sample standard deviation, and 95 % t intervals in brackets, over n = 2
    seeds.
    "###);
}

#[test]
fn latex() {
    assert_snapshot!(render(&grid(), Format::Latex), @r###"
    % table:foundation|seeds:42,1337,2024|sd:n-1|interval:t-0.95|partial:mark|seedbed:0.1.0
    % written by seedbed, edits are lost; needs \usepackage{booktabs} and \usepackage{siunitx} (3.0 or newer)
    \begin{table}
      \centering
      \caption{Foundation models: perplexity \& attack success (100 \% of the runs).}
      \label{tab:foundation-preliminary}
      \sisetup{table-align-text-after = false, text-series-to-math = true}%
      \setlength{\tabcolsep}{3pt}%
      \begin{tabular}{lrS[table-format = 3.2, table-number-alignment = right]@{}lS[table-format = 2.2, table-number-alignment = right]@{}lS[table-format = 3.1, table-number-alignment = right]@{}l}
        \toprule
        {Model} & {Parameters} & \multicolumn{2}{c}{\shortstack{Perplexity\\(Clean)}} & \multicolumn{2}{c}{\shortstack{Perplexity\\($\Delta$)}} & \multicolumn{2}{c}{\shortstack{Attack\\Success (\%)}} \\
        \midrule
        {Pythia (Baseline)} & {170.6K} & \bfseries 6.98 & \boldmath${}\pm 0.10$ & \multicolumn{2}{c}{--} & 69.0 & ${}\pm 0.0$\textsuperscript{a} \\
        {Pythia (Monotonic)} & {170.6K} & 28.73 & ${}\pm 1.97$ & 21.75 & ${}\pm 1.86$ & \bfseries 20.0 & \boldmath${}\pm 1.4$\textsuperscript{a} \\
        \bottomrule
      \end{tabular}
      \par\smallskip
      \begin{minipage}{\linewidth}\footnotesize
        Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder.\par
        Mean $\pm$ sample standard deviation over n = 2 to 3 seeds.\par
        Differences are paired on the common seeds, n = 3.\par
        \textsuperscript{a} 2 of 3 runs; missing: hotflip/seed-2024 (failed: out of memory)\par
      \end{minipage}
    \end{table}
    "###);
    assert_snapshot!(render(&intervals(), Format::Latex), @r###"
    % table:foundation|seeds:42,1337|sd:n-1|interval:t-0.95|partial:error|seedbed:0.1.0
    % written by seedbed, edits are lost; needs \usepackage{booktabs} and \usepackage{siunitx} (3.0 or newer)
    \begin{table}
      \centering
      \caption{Foundation models: perplexity \& attack success (100 \% of the runs).}
      \label{tab:foundation-preliminary}
      \sisetup{table-align-text-after = false, text-series-to-math = true}%
      \footnotesize\setlength{\tabcolsep}{3pt}%
      \begin{tabular}{lrS[table-format = 2.2, table-number-alignment = right]@{}lS[table-format = -2.2, table-number-alignment = right]@{}lr}
        \toprule
        {Model} & {Parameters} & \multicolumn{2}{c}{\shortstack{Perplexity\\(Clean)}} & \multicolumn{2}{c}{\shortstack{Perplexity\\($\Delta$)}} & {\shortstack{Attack\\Success (\%)}} \\
        \midrule
        {Pythia (Baseline)} & {170.6K} & 6.92 & $\;[6.79, 7.05]$ & -74.93 & ${}\pm 0.08$ & {2 of 2} \\
        {Pythia (Monotonic)} & {170.6K} & 27.60 & $\;[26.33, 28.87]$ & \multicolumn{2}{c}{--} & {2 of 2} \\
        \bottomrule
      \end{tabular}
      \par\smallskip
      \begin{minipage}{\linewidth}\footnotesize
        Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder.\par
        Mean $\pm$ sample standard deviation, and 95 \% t intervals in brackets, over n = 2 seeds.\par
      \end{minipage}
    \end{table}
    "###);
}

#[test]
fn markdown() {
    assert_snapshot!(render(&grid(), Format::Markdown), @r###"
    Foundation models: perplexity &amp; attack success (100 % of the runs).

    | Model | Parameters | Perplexity (Clean) | Perplexity (Δ) | Attack Success (%) |
    | --- | ---: | ---: | ---: | ---: |
    | Pythia (Baseline) | 170.6K | **6.98 ± 0.10** | – | 69.0 ± 0.0<sup>a</sup> |
    | Pythia (Monotonic) | 170.6K | 28.73 ± 1.97 | 21.75 ± 1.86 | **20.0 ± 1.4**<sup>a</sup> |

    Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder.

    Mean ± sample standard deviation over n = 2 to 3 seeds.

    Differences are paired on the common seeds, n = 3.

    <sup>a</sup> 2 of 3 runs; missing: hotflip/seed-2024 (failed: out of memory)
    "###);
}

#[test]
fn csv() {
    assert_snapshot!(render(&grid(), Format::Csv), @r###"
    row,label,parameters,parameters_mean,parameters_sd,parameters_ci_lower,parameters_ci_upper,parameters_n,parameters_n_expected,parameters_missing,ppl,ppl_mean,ppl_sd,ppl_ci_lower,ppl_ci_upper,ppl_n,ppl_n_expected,ppl_missing,delta,delta_mean,delta_sd,delta_ci_lower,delta_ci_upper,delta_n,delta_n_expected,delta_missing,attack,attack_mean,attack_sd,attack_ci_lower,attack_ci_upper,attack_n,attack_n_expected,attack_missing
    baseline,Pythia (Baseline),170.6K,170624.0,,,,1,1,,6.98 ± 0.10,6.9799999999999995,0.10440306508910532,6.720648408789828,7.239351591210171,3,3,,,,,,,0,0,,69.0 ± 0.0,69.0,0.0,69.0,69.0,2,3,hotflip/seed-2024: failed: out of memory
    monotonic,Pythia (Monotonic),170.6K,170624.0,,,,1,1,,28.73 ± 1.97,28.733333333333334,1.965536398374076,23.850670242314365,33.6159964243523,3,3,,21.75 ± 1.86,21.75333333333333,1.861245102970947,17.12974418223257,26.37692248443409,3,3,,20.0 ± 1.4,20.0,1.4142135623730951,7.293795263825311,32.70620473617469,2,3,hotflip/seed-2024: failed: out of memory
    "###);
}

#[test]
fn json_has_the_runs_of_each_cell() {
    let value: serde_json::Value = serde_json::from_str(&render(&grid(), Format::Json)).unwrap();
    assert_eq!(value["version"], 1);
    let cell = &value["table"]["rows"][1]["cells"][3];
    assert_snapshot!(serde_json::to_string_pretty(cell).unwrap(), @r###"
    {
      "best": true,
      "degenerate": null,
      "interval": {
        "lower": 7.293795263825311,
        "upper": 32.70620473617469
      },
      "interval_kind": "t",
      "iqm": 20.0,
      "mean": 20.0,
      "median": 20.0,
      "missing": [
        {
          "cell": "hotflip/seed-2024",
          "reason": "failed: out of memory"
        }
      ],
      "n": 2,
      "n_expected": 3,
      "notes": [
        3
      ],
      "printed": {
        "number": {
          "spread": "1.4",
          "text": "20.0"
        }
      },
      "runs": [
        {
          "content": "02fe8b7c9f7d30f44b05ad8daa7a14dc4b3791883f6a8153413b12e8b5935153",
          "fingerprint": "347b013a6eab6022fa9120c511574a14db87b11e8c0a38b1c7c5da40434c08b4",
          "key": {
            "profile": "quick",
            "seed": 42,
            "stage": "hotflip",
            "study": "monotone"
          }
        },
        {
          "content": "db0f42ed66db48abd42f9bccfa3d3bdb59b3ac2417798f690aa1878935325e8c",
          "fingerprint": "23e17b7271cbaf6ee12bcc6745a7e60edcc2701416fa13579cddd9bcf37c9b95",
          "key": {
            "profile": "quick",
            "seed": 1337,
            "stage": "hotflip",
            "study": "monotone"
          }
        }
      ],
      "sd": 1.4142135623730951,
      "second": false,
      "spread": 1.4142135623730951,
      "test": null,
      "value": 20.0,
      "values": [
        {
          "seed": 42,
          "value": 19.0
        },
        {
          "seed": 1337,
          "value": 21.0
        }
      ]
    }
    "###);
}

/// What a study, a model or a log line could hold.
const HOSTILE: [&str; 14] = [
    r"\input{/etc/passwd} \write18{touch x} ^^41 ~ # $x$ %",
    "</script><img src=x onerror=alert(1)>",
    "=HYPERLINK(\"http://evil\",\"click\")",
    "+1-2@SUM(A1)",
    "@cmd|' /C calc'!A0",
    "\u{1b}]0;owned\u{7}\u{1b}[31mred",
    "\u{202e}reversed\u{2066}",
    "nul\0 bell\u{7} tab\t cr\r\nline two",
    "中文 テスト 🎉 e\u{301}",
    "a & b \\\\ \\hline c",
    "| pipe | **bold** _it_ `code` [link](javascript:alert(1)) <!-- -->",
    "-- --- ,, '' `` ?` !` << >> \" ' fi",
    "é ü ß ø Å ñ ç ł ő € ½ µ Δ ± → ≤ “q” – — …",
    "[optional] * {unbalanced } } {",
];

fn hostile() -> Grid {
    let mut section = table_7();
    let all = HOSTILE.join(" ");
    section["caption"] = json!(all);
    section["stub"] = json!(HOSTILE[9]);
    section["notes"] = json!(HOSTILE);
    section["partial"] = json!("mark");
    section["columns"][0]["label"] = json!(HOSTILE[0]);
    section["columns"][1]["label"] = json!(HOSTILE[13]);
    section["rows"] = HOSTILE.iter().enumerate().map(|(i, text)| {
        json!({"key": if i == 0 { "baseline".to_owned() } else { format!("row{i}") }, "label": text, "with": {"model": "baseline_pythia"}})
    }).collect();
    let mut cells = two_seeds();
    cells[4].run = Err(HOSTILE[0].to_owned());
    let spec: TableSpec = spec(&section);
    build_now(&spec, &cells).unwrap()
}

#[test]
fn hostile_text_reaches_no_terminal() {
    for format in [Format::Text, Format::Markdown, Format::Csv, Format::Latex] {
        let text = render(&hostile(), format);
        for c in text.chars().filter(|c| *c != '\n') {
            assert!(!c.is_control(), "{format:?} prints {c:?}");
            assert!(!matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'), "{format:?} prints {c:?}");
        }
    }
    let text = render(&hostile(), Format::Text);
    assert!(text.contains("[U+001B][31mred") && text.contains("[U+202E]reversed"), "{text}");
    for line in text.lines().filter(|l| l.contains(' ')) {
        use unicode_width::UnicodeWidthStr;
        assert!(line.width() <= 80, "{line}");
    }
}

#[test]
fn hostile_csv_is_no_formula_and_stays_in_its_columns() {
    let text = render(&hostile(), Format::Csv);
    let width = text.lines().next().unwrap().split(',').count();
    for line in text.lines().skip(1) {
        let fields = split_csv(line);
        assert_eq!(fields.len(), width, "{line}");
        for field in fields {
            let number = field.parse::<f64>().is_ok();
            assert!(number || !field.starts_with(['=', '+', '-', '@', '\t', '\r']), "{field}");
        }
    }
    assert!(text.contains("\"'=HYPERLINK(\"\"http://evil\"\",\"\"click\"\")\""), "{text}");
}

/// Fields of one RFC 4180 record.
fn split_csv(line: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                field.push('"');
                chars.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields
}

#[test]
fn hostile_markdown_stays_in_its_cells() {
    let text = render(&hostile(), Format::Markdown);
    let bars = |line: &str| {
        let bytes = line.as_bytes();
        (0..bytes.len()).filter(|&i| bytes[i] == b'|' && (i == 0 || bytes[i - 1] != b'\\')).count()
    };
    let rows: Vec<&str> = text.lines().filter(|l| l.starts_with("| ")).collect();
    assert_eq!(rows.len(), 2 + HOSTILE.len());
    assert!(rows.iter().all(|r| bars(r) == 6), "{rows:#?}");
    for tag in ["<img", "</script", "<!--", "[link](", "**bold**", "`code`"] {
        assert!(!text.contains(tag), "{tag}");
    }
}

/// A document around tables; `None` without a TeX that has what they need.
fn compile(tables: &[String], dir: &Path) -> Option<String> {
    let has = |file: &str| Command::new("kpsewhich").arg(file).output().is_ok_and(|o| o.status.success());
    if !has("booktabs.sty") || !has("siunitx.sty") || Command::new("pdflatex").arg("--version").output().is_err() {
        eprintln!("skipped: no pdflatex with booktabs and siunitx (Debian: texlive-latex-recommended texlive-science)");
        return None;
    }
    let mut document = String::from(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage{siunitx}\n\\begin{document}\n\\listoftables\n",
    );
    for (i, table) in tables.iter().enumerate() {
        std::fs::write(dir.join(format!("t{i}.tex")), table).unwrap();
        document.push_str(&format!("\\input{{t{i}}}\n"));
    }
    document.push_str("\\end{document}\n");
    std::fs::write(dir.join("page.tex"), document).unwrap();
    for _ in 0..2 {
        let run = Command::new("pdflatex")
            .args(["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"])
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
    }
    Some(String::from_utf8_lossy(&std::fs::read(dir.join("page.log")).unwrap()).into_owned())
}

/// The text of the page, where poppler is installed.
fn page_text(dir: &Path) -> Option<String> {
    let out = Command::new("pdftotext").args(["-layout", "page.pdf", "-"]).current_dir(dir).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

#[test]
fn latex_compiles_without_an_overfull_box_or_a_missing_glyph() {
    let dir = tempfile::tempdir().unwrap();
    let tables = [render(&grid(), Format::Latex), render(&intervals(), Format::Latex).replace("foundation-pre", "two")];
    let Some(log) = compile(&tables, dir.path()) else { return };
    for complaint in ["Overfull", "Missing character", "undefined", "LaTeX Warning"] {
        assert!(!log.contains(complaint), "{complaint}:\n{log}");
    }
    if let Some(text) = page_text(dir.path()) {
        for printed in ["6.98 ± 0.10", "28.73", "± 1.97", "170.6K", "2 of 3 runs"] {
            assert!(text.contains(printed), "{printed}:\n{text}");
        }
    }
}

#[test]
fn hostile_latex_compiles_and_shows_literally() {
    let dir = tempfile::tempdir().unwrap();
    let Some(log) = compile(&[render(&hostile(), Format::Latex)], dir.path()) else { return };
    assert!(!log.contains("Missing character"), "{log}");
    assert!(!log.contains("(/etc/passwd"), "a file of the machine was opened:\n{log}");
    if let Some(text) = page_text(dir.path()) {
        for shown in [r"\input{/etc/passwd}", "</script><img src=x", "[U+001B]", "[U+4E2D]", "{unbalanced } } {"] {
            assert!(text.contains(shown), "{shown}:\n{text}");
        }
    }
}
