//! Every format from the same grid, side by side, and hostile text through all of them.

use std::path::Path;
use std::process::Command;

use insta::assert_snapshot;
use serde_json::json;

use super::*;
use crate::report::table::tests::{build_now, spec, study, table_7, two_seeds};
use crate::report::table::{CellTest, Env, Note, TableSpec};

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
    row,label,parameters,parameters_value,parameters_spread,parameters_mean,parameters_sd,parameters_ci_lower,parameters_ci_upper,parameters_n,parameters_n_expected,parameters_missing,ppl,ppl_value,ppl_spread,ppl_mean,ppl_sd,ppl_ci_lower,ppl_ci_upper,ppl_n,ppl_n_expected,ppl_missing,delta,delta_value,delta_spread,delta_mean,delta_sd,delta_ci_lower,delta_ci_upper,delta_n,delta_n_expected,delta_missing,attack,attack_value,attack_spread,attack_mean,attack_sd,attack_ci_lower,attack_ci_upper,attack_n,attack_n_expected,attack_missing
    baseline,Pythia (Baseline),170.6K,170624.0,,170624.0,,,,1,1,,6.98 ± 0.10,6.9799999999999995,0.10440306508910532,6.9799999999999995,0.10440306508910532,6.720648408789828,7.239351591210171,3,3,,,,,,,,,0,0,,69.0 ± 0.0,69.0,0.0,69.0,0.0,69.0,69.0,2,3,hotflip/seed-2024: failed: out of memory
    monotonic,Pythia (Monotonic),170.6K,170624.0,,170624.0,,,,1,1,,28.73 ± 1.97,28.733333333333334,1.965536398374076,28.733333333333334,1.965536398374076,23.850670242314365,33.6159964243523,3,3,,21.75 ± 1.86,21.75333333333333,1.861245102970947,21.75333333333333,1.861245102970947,17.12974418223257,26.37692248443409,3,3,,20.0 ± 1.4,20.0,1.4142135623730951,20.0,1.4142135623730951,7.293795263825311,32.70620473617469,2,3,hotflip/seed-2024: failed: out of memory
    "###);
}

/// Groups, headers over columns, second best, tests and notes of rows in every format.
#[test]
fn all_that_a_grid_can_hold() {
    assert_snapshot!(render(&grouped(), Format::Text), @r###"
    Foundation models: perplexity & attack success (100 % of the runs).

                                 Perplexity of the test split
                              -----------------------------------
                  Parameters             Perplexity    Perplexity           Attack
    Model                (b)                (Clean)           (Δ)      Success (%)
    ------------  ----------  ---------------------  ------------  ---------------
    Small & slow
      First           170.6K     6.92 [6.79, 7.05]*             –  69.0 ± 0.0*
      Second (a)      170.6K  27.60 [26.33, 28.87]+  20.68 ± 0.13  20.0 ± 1.4+ (*)
    Large
      Third         1.0, 2.0     6.92 [6.79, 7.05]    0.00 ± 0.00  69.0 ± 0.0
    * best, + second best
    Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder.
    Mean ± sample standard deviation, and 95 % t intervals in brackets, over n = 2
    seeds.
    (a) trained twice as long
    (b) fewer parameters are free
    "###);
    assert_snapshot!(render(&grouped(), Format::Markdown), @r###"
    Foundation models: perplexity &amp; attack success (100 % of the runs).

    | Model | Parameters<sup>b</sup> | Perplexity of the test split: Perplexity (Clean) | Perplexity of the test split: Perplexity (Δ) | Attack Success (%) |
    | --- | ---: | ---: | ---: | ---: |
    | *Small &amp; slow* |  |  |  |  |
    | First | 170.6K | **6.92 \[6.79, 7.05\]** | – | **69.0 ± 0.0** |
    | Second<sup>a</sup> | 170.6K | <ins>27.60 \[26.33, 28.87\]</ins> | 20.68 ± 0.13 | <ins>20.0 ± 1.4</ins><sup>\*</sup> |
    | *Large* |  |  |  |  |
    | Third | 1.0, 2.0 | 6.92 \[6.79, 7.05\] | 0.00 ± 0.00 | 69.0 ± 0.0 |

    Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder.

    Mean ± sample standard deviation, and 95 % t intervals in brackets, over n = 2 seeds.

    <sup>a</sup> trained twice as long

    <sup>b</sup> fewer parameters are free
    "###);
    assert_snapshot!(render(&grouped(), Format::Csv), @r###"
    row,label,group,parameters,parameters_value,parameters_spread,parameters_mean,parameters_sd,parameters_ci_lower,parameters_ci_upper,parameters_n,parameters_n_expected,parameters_missing,ppl,ppl_value,ppl_spread,ppl_mean,ppl_sd,ppl_ci_lower,ppl_ci_upper,ppl_n,ppl_n_expected,ppl_missing,delta,delta_value,delta_spread,delta_mean,delta_sd,delta_ci_lower,delta_ci_upper,delta_n,delta_n_expected,delta_missing,attack,attack_value,attack_spread,attack_mean,attack_sd,attack_ci_lower,attack_ci_upper,attack_n,attack_n_expected,attack_missing,attack_p,attack_p_adjusted
    first,First,Small & slow,170.6K,170624.0,,170624.0,,,,1,1,,"6.92 [6.79, 7.05]",6.92,,6.92,0.014142135623730649,6.792937952638256,7.047062047361744,2,2,,,,,,,,,0,0,,69.0 ± 0.0,69.0,0.0,69.0,0.0,69.0,69.0,2,2,,,
    second,Second,Small & slow,170.6K,170624.0,,170624.0,,,,1,1,,"27.60 [26.33, 28.87]",27.6,,27.6,0.141421356237309,26.32937952638254,28.870620473617464,2,2,,20.68 ± 0.13,20.68,0.12727922061357835,20.68,0.12727922061357835,19.53644157374428,21.82355842625572,2,2,,20.0 ± 1.4,20.0,1.4142135623730951,20.0,1.4142135623730951,7.293795263825311,32.70620473617469,2,2,,0.004,0.008
    third,Third,Large,"1.0, 2.0",170624.0,,170624.0,,,,1,1,,"6.92 [6.79, 7.05]",6.92,,6.92,0.014142135623730649,6.792937952638256,7.047062047361744,2,2,,0.00 ± 0.00,0.0,0.0,0.0,0.0,0.0,0.0,2,2,,69.0 ± 0.0,69.0,0.0,69.0,0.0,69.0,69.0,2,2,,,
    "###);
    assert_snapshot!(render(&grouped(), Format::Latex), @r###"
    % table:foundation|seeds:42,1337|sd:n-1|interval:t-0.95|partial:error|seedbed:0.1.0
    % written by seedbed, edits are lost; needs \usepackage{booktabs} and \usepackage{siunitx} (3.0 or newer)
    \begin{table}
      \centering
      \caption{Foundation models: perplexity \& attack success (100 \% of the runs).}
      \label{tab:foundation-preliminary}
      \sisetup{table-align-text-after = false, text-series-to-math = true}%
      \setlength{\tabcolsep}{3pt}%
      \begin{tabular}{lrS[table-format = 3.2, table-number-alignment = right]@{}lS[table-format = 2.2, table-number-alignment = right]@{}lS[table-format = 3.1, table-number-alignment = right]@{}l}
        \toprule
        &  & \multicolumn{4}{c}{Perplexity of the test split} &  &  \\
        \cmidrule(lr){3-6}
        {Model} & {Parameters\textsuperscript{b}} & \multicolumn{2}{c}{\shortstack{Perplexity\\(Clean)}} & \multicolumn{2}{c}{\shortstack{Perplexity\\($\Delta$)}} & \multicolumn{2}{c}{\shortstack{Attack\\Success (\%)}} \\
        \midrule
        \multicolumn{8}{l}{\textit{Small \& slow}} \\
        \quad {First} & {170.6K} & \bfseries 6.92 & \boldmath$\;[6.79, 7.05]$ & \multicolumn{2}{c}{--} & \bfseries 69.0 & \boldmath${}\pm 0.0$ \\
        \quad {Second}\textsuperscript{a} & {170.6K} & 27.60 {\llap{\underline{\phantom{$27.60$}}}} & $\;[26.33, 28.87]$ & 20.68 & ${}\pm 0.13$ & 20.0 {\llap{\underline{\phantom{$20.0$}}}} & ${}\pm 1.4$\textsuperscript{*} \\
        \addlinespace
        \multicolumn{8}{l}{\textit{Large}} \\
        \quad {Third} & {1.0, 2.0} & 6.92 & $\;[6.79, 7.05]$ & 0.00 & ${}\pm 0.00$ & 69.0 & ${}\pm 0.0$ \\
        \bottomrule
      \end{tabular}
      \par\smallskip
      \begin{minipage}{\linewidth}\footnotesize
        Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder.\par
        Mean $\pm$ sample standard deviation, and 95 \% t intervals in brackets, over n = 2 seeds.\par
        \textsuperscript{a} trained twice as long\par
        \textsuperscript{b} fewer parameters are free\par
      \end{minipage}
    \end{table}
    "###);
    let layout = crate::report::table::Layout { plain: true, multirow: true, ..Default::default() };
    assert_snapshot!(render(&Grid { layout, ..grouped() }, Format::Latex), @r###"
    % table:foundation|seeds:42,1337|sd:n-1|interval:t-0.95|partial:error|seedbed:0.1.0
    % written by seedbed, edits are lost; needs \usepackage{booktabs}
    \begin{table}
      \centering
      \caption{Foundation models: perplexity \& attack success (100 \% of the runs).}
      \label{tab:foundation-preliminary}
      \footnotesize\setlength{\tabcolsep}{3pt}%
      \begin{tabular}{llrr@{}lr@{}lr@{}l}
        \toprule
        &  &  & \multicolumn{4}{c}{Perplexity of the test split} &  &  \\
        \cmidrule(lr){4-7}
        {} & {Model} & {Parameters\textsuperscript{b}} & \multicolumn{2}{c}{\shortstack{Perplexity\\(Clean)}} & \multicolumn{2}{c}{\shortstack{Perplexity\\($\Delta$)}} & \multicolumn{2}{c}{\shortstack{Attack\\Success (\%)}} \\
        \midrule
        {Small \& slow} & {First} & {170.6K} & {\boldmath$6.92$} & \boldmath$\;[6.79, 7.05]$ & \multicolumn{2}{c}{--} & {\boldmath$69.0$} & \boldmath${}\pm 0.0$ \\
        {} & {Second}\textsuperscript{a} & {170.6K} & {$\underline{27.60}$} & $\;[26.33, 28.87]$ & {$20.68$} & ${}\pm 0.13$ & {$\underline{20.0}$} & ${}\pm 1.4$\textsuperscript{*} \\
        \addlinespace
        {Large} & {Third} & {1.0, 2.0} & {$6.92$} & $\;[6.79, 7.05]$ & {$0.00$} & ${}\pm 0.00$ & {$69.0$} & ${}\pm 0.0$ \\
        \bottomrule
      \end{tabular}
      \par\smallskip
      \begin{minipage}{\linewidth}\footnotesize
        Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder.\par
        Mean $\pm$ sample standard deviation, and 95 \% t intervals in brackets, over n = 2 seeds.\par
        \textsuperscript{a} trained twice as long\par
        \textsuperscript{b} fewer parameters are free\par
      \end{minipage}
    \end{table}
    "###);
    let html = render(&grouped(), Format::Html);
    assert_snapshot!(html.split_once("<body>").unwrap().1, @r###"

    <!-- table:foundation|seeds:42,1337|sd:n-1|interval:t-0.95|partial:error|seedbed:0.1.0 -->
    <table class="grid">
    <caption>Foundation models: perplexity &amp; attack success (100 % of the runs).</caption>
    <thead>
    <tr><th></th><th></th><th class="span" colspan="2" scope="colgroup">Perplexity of the test split</th><th></th></tr>
    <tr><th scope="col">Model</th><th scope="col">Parameters<sup>b</sup></th><th scope="col">Perplexity (Clean)</th><th scope="col">Perplexity (Δ)</th><th scope="col">Attack Success (%)</th></tr>
    </thead>
    <tbody class="in">
    <tr><th class="group" colspan="5" scope="rowgroup">Small &amp; slow</th></tr>
    <tr><th scope="row">First</th><td data-value="170624.0"><span class="n">170.6K</span></td><td class="best" data-value="6.92"><span class="n">6.92 [6.79, 7.05]</span></td><td><span class="n">–</span></td><td class="best" data-value="69.0"><span class="n">69.0 ± 0.0</span></td></tr>
    <tr><th scope="row">Second<sup>a</sup></th><td data-value="170624.0"><span class="n">170.6K</span></td><td class="second" data-value="27.6"><span class="n">27.60 [26.33, 28.87]</span></td><td data-value="20.68"><span class="n">20.68 ± 0.13</span></td><td class="second" data-value="20.0"><span class="n">20.0 ± 1.4</span><sup>*</sup></td></tr>
    </tbody>
    <tbody class="in">
    <tr><th class="group" colspan="5" scope="rowgroup">Large</th></tr>
    <tr><th scope="row">Third</th><td data-value="170624.0"><span class="n">1.0, 2.0</span></td><td data-value="6.92"><span class="n">6.92 [6.79, 7.05]</span></td><td data-value="0.0"><span class="n">0.00 ± 0.00</span></td><td data-value="69.0"><span class="n">69.0 ± 0.0</span></td></tr>
    </tbody>
    </table>
    <ul class="notes">
    <li>Perplexity replaces ROUGE-L: Pythia is a decoder, T5 an encoder-decoder.</li>
    <li>Mean ± sample standard deviation, and 95 % t intervals in brackets, over n = 2 seeds.</li>
    <li><sup>a</sup> trained twice as long</li>
    <li><sup>b</sup> fewer parameters are free</li>
    </ul>
    </body>
    </html>
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

/// Keeps a file of a test for whoever wants to look at it, below `target/artefacts`.
pub(crate) fn keep(name: &str, bytes: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/artefacts");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(name), bytes).unwrap();
}

/// Groups, headers over columns, tests, a second best, notes of rows, values of runs: all that a grid can hold.
pub(crate) fn grouped() -> Grid {
    let mut section = table_7();
    section["best"] = json!(true);
    section["columns"][1]["show"] = json!("mean_ci");
    section["rows"] = json!([
        {"key": "first", "label": "First", "with": {"model": "baseline_pythia"}},
        {"key": "second", "label": "Second", "with": {"model": "monotonic_pythia"}},
        {"key": "third", "label": "Third", "with": {"model": "baseline_pythia"}},
    ]);
    section["columns"][2]["delta"]["from"] = json!("first");
    let mut grid = build_now(&spec(&section), &two_seeds()).unwrap();
    grid.rows[0].group = Some("Small & slow".into());
    grid.rows[1].group = Some("Small & slow".into());
    grid.rows[2].group = Some("Large".into());
    grid.columns[1].span = Some("Perplexity of the test split".into());
    grid.columns[2].span = Some("Perplexity of the test split".into());
    for (row, best, second) in [(0, true, false), (1, false, true), (2, false, false)] {
        for column in [1, 3] {
            grid.rows[row].cells[column].best = best;
            grid.rows[row].cells[column].second = second;
        }
    }
    let notes = grid.notes.len();
    grid.notes.push(Note { mark: Some("a".into()), text: "trained twice as long".into() });
    grid.rows[1].note = Some(notes);
    grid.notes.push(Note { mark: Some("b".into()), text: "fewer parameters are free".into() });
    grid.columns[0].note = Some(notes + 1);
    grid.rows[1].cells[3].test = Some(CellTest {
        method: "paired t".into(),
        against: "first".into(),
        n: 2,
        p: Some(0.004),
        adjusted: Some(0.008),
        degenerate: None,
        mark: "*".into(),
    });
    grid.rows[2].cells[0].printed = Printed::Values(vec!["1.0".into(), "2.0".into()]);
    grid
}

/// What a study, a model or a log line could hold.
pub(crate) const HOSTILE: [&str; 15] = [
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
    // Bytes that are no UTF-8, as they are read: `String::from_utf8_lossy(b"bad \xff\xfe bytes")`.
    "bad \u{fffd}\u{fffd} bytes \u{ffff}",
];

pub(crate) fn hostile() -> Grid {
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
    for format in Format::FILES.into_iter().filter(|f| *f != Format::Json) {
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
fn hostile_html_is_text() {
    let text = render(&hostile(), Format::Html);
    for bad in ["<img", "<script", "</script", "<!-- -->"] {
        assert!(!text.contains(bad), "{bad}");
    }
    // Its own head, and one comment with the signature.
    assert_eq!((text.matches("<!--").count(), text.matches("<style>").count()), (1, 1));
    assert!(text.contains("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;") && text.contains("[U+202E]reversed"));
    assert!(text.contains("Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-"));
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

/// Sets tables in a document with these packages, which compiles; its log.
fn compile(class: &str, tables: &[String], packages: &[&str], dir: &Path) -> String {
    let has = |file: &str| Command::new("kpsewhich").arg(file).output().is_ok_and(|o| o.status.success());
    for package in packages {
        let told =
            "`scripts/setup` installs it (Debian: texlive-latex-recommended texlive-latex-extra texlive-science)";
        assert!(has(&format!("{package}.sty")), "no LaTeX with {package} is installed: {told}");
    }
    let mut document = format!("\\documentclass{class}\n");
    packages.iter().for_each(|p| document.push_str(&format!("\\usepackage{{{p}}}\n")));
    document.push_str("\\begin{document}\n\\listoftables\n");
    for (i, table) in tables.iter().enumerate() {
        std::fs::write(dir.join(format!("t{i}.tex")), table).unwrap();
        document.push_str(&format!("\\input{{t{i}}}\n"));
    }
    document.push_str("\\end{document}\n");
    std::fs::write(dir.join("page.tex"), document).unwrap();
    // A longtable knows its widths in the third run.
    for _ in 0..3 {
        let run = Command::new("pdflatex")
            .args(["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"])
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
    }
    String::from_utf8_lossy(&std::fs::read(dir.join("page.log")).unwrap()).into_owned()
}

/// The text of the pages; and the pages as pictures, kept.
fn page_text(dir: &Path, name: &str) -> String {
    let run = |program: &str, arguments: &[&str]| {
        let told = format!("{program} is not installed: `scripts/setup` installs it (Debian: poppler-utils)");
        let output = Command::new(program).args(arguments).current_dir(dir).output().expect(&told);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run("pdftoppm", &["-r", "90", "-png", "page.pdf", "picture"]);
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        if let Some(page) = file.strip_prefix("picture") {
            keep(&format!("{name}{page}"), &std::fs::read(&path).unwrap());
        }
    }
    run("pdftotext", &["-layout", "page.pdf", "-"])
}

/// Every way in which a table can be set, each with its own label.
fn layouts() -> Vec<Grid> {
    let mut grids = Vec::new();
    for env in [Env::Table, Env::Wide, Env::Long] {
        for plain in [false, true] {
            for (multirow, threeparttable) in [(false, false), (true, false), (false, true)] {
                let mut grid = grouped();
                grid.layout = crate::report::table::Layout { env, plain, multirow, threeparttable };
                grid.label = Some(format!("tab:{}", grids.len()));
                grids.push(grid);
            }
        }
    }
    grids
}

const PACKAGES: [&str; 5] = ["booktabs", "siunitx", "longtable", "multirow", "threeparttable"];

/// Complaints of TeX about how a page looks.
const COMPLAINTS: [&str; 4] = ["Overfull", "Missing character", "undefined", "LaTeX Warning"];

#[test]
fn every_layout_compiles_with_the_packages_that_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, rich): (Vec<Grid>, Vec<Grid>) = layouts().into_iter().partition(|g| g.layout.plain);
    for grid in &rich {
        let table = render(grid, Format::Latex);
        let named = table.lines().nth(1).unwrap();
        let layout = grid.layout;
        for (package, used) in [
            ("booktabs", true),
            ("siunitx", true),
            ("longtable", layout.env == Env::Long),
            ("multirow", layout.multirow),
            ("threeparttable", layout.threeparttable && layout.env != Env::Long),
        ] {
            assert_eq!(named.contains(&format!("{{{package}}}")), used, "{package}: {named}");
        }
    }
    // A plain table needs booktabs alone; only a longtable needs longtable.
    for grid in &plain {
        let table = render(grid, Format::Latex);
        let named: Vec<&str> = table.lines().nth(1).unwrap().split("usepackage{").skip(1).collect();
        assert_eq!(named.len(), if grid.layout.env == Env::Long { 2 } else { 1 }, "{named:?}");
    }
    for (name, grids, packages) in
        [("tables", &rich, &PACKAGES[..]), ("tables-plain", &plain, &["booktabs", "longtable"][..])]
    {
        // `table*` is for pages of two columns, where nothing else of these fits.
        for (class, wide) in [("{article}", false), ("[twocolumn]{article}", true)] {
            let tables: Vec<String> = grids
                .iter()
                .filter(|g| (g.layout.env == Env::Wide) == wide)
                .map(|g| render(g, Format::Latex))
                .collect();
            let log = compile(class, &tables, packages, dir.path());
            for complaint in COMPLAINTS {
                assert!(!log.contains(complaint), "{name} {class}: {complaint}:\n{log}");
            }
            let text = page_text(dir.path(), &format!("{name}{}", if wide { "-wide" } else { "" }));
            for printed in ["Small & slow", "Perplexity of the test split", "[26.33, 28.87]", "trained twice as long"] {
                assert_eq!(text.matches(printed).count(), tables.len(), "{name} {class}: {printed}:\n{text}");
            }
        }
    }
}

/// Debian 12 has siunitx 3.2: what is used was there in 3.0.
#[test]
fn keys_of_siunitx_are_those_of_3_0() {
    const KEYS: [&str; 4] = ["table-format", "table-number-alignment", "table-align-text-after", "text-series-to-math"];
    let mut seen = std::collections::BTreeSet::new();
    for grid in layouts().iter().chain([&grid(), &intervals(), &hostile()]) {
        let text = render(grid, Format::Latex);
        let settings = text
            .lines()
            .filter(|l| l.contains("\\sisetup{") || l.contains("\\begin{tabular}") || l.contains("\\begin{longtable}"));
        for line in settings {
            for part in line.split(['{', '}', '[', ']', ',']) {
                if let Some((key, _)) = part.split_once(" = ") {
                    seen.insert(key.trim().to_owned());
                }
            }
        }
    }
    assert_eq!(seen, KEYS.map(str::to_owned).into());
}

#[test]
fn latex_compiles_without_an_overfull_box_or_a_missing_glyph() {
    let dir = tempfile::tempdir().unwrap();
    let tables = [render(&grid(), Format::Latex), render(&intervals(), Format::Latex).replace("foundation-pre", "two")];
    let log = compile("{article}", &tables, &["booktabs", "siunitx"], dir.path());
    for complaint in COMPLAINTS {
        assert!(!log.contains(complaint), "{complaint}:\n{log}");
    }
    let text = page_text(dir.path(), "table-7");
    for printed in ["6.98 ± 0.10", "28.73", "± 1.97", "170.6K", "2 of 3 runs"] {
        assert!(text.contains(printed), "{printed}:\n{text}");
    }
}

#[test]
fn hostile_latex_compiles_and_shows_literally() {
    let dir = tempfile::tempdir().unwrap();
    let log = compile("{article}", &[render(&hostile(), Format::Latex)], &["booktabs", "siunitx"], dir.path());
    assert!(!log.contains("Missing character"), "{log}");
    assert!(!log.contains("(/etc/passwd"), "a file of the machine was opened:\n{log}");
    let text = page_text(dir.path(), "hostile");
    for shown in [
        r"\input{/etc/passwd}",
        "</script><img src=x",
        "[U+001B]",
        "[U+4E2D]",
        "{unbalanced } } {",
        "[U+FFFD]",
        "[U+0000]",
    ] {
        assert!(text.contains(shown), "{shown}:\n{text}");
    }
}
