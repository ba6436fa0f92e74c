//! A packed paper compiles with pdflatex alone, and says nothing of where it was made.

use std::path::Path;
use std::process::Command;

use super::{Desk, pdflatex};

/// A graphic of one pixel.
const PNG: [u8; 69] = [
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0, 144, 119, 83,
    222, 0, 0, 0, 12, 73, 68, 65, 84, 120, 156, 99, 248, 223, 192, 0, 0, 4, 1, 1, 128, 197, 42, 24, 93, 0, 0, 0, 0, 73,
    69, 78, 68, 174, 66, 96, 130,
];

fn files(dir: &Path) -> Vec<String> {
    let found = seedbed::record::digest::files_below(dir).unwrap();
    found.into_iter().map(|f| f.display().to_string()).collect()
}

#[test]
fn a_packed_paper_compiles_alone_and_names_nobody() {
    let desk = Desk::new();
    std::fs::create_dir_all(desk.path("paper/figures")).unwrap();
    let here = desk.path("paper").canonicalize().unwrap().display().to_string();
    desk.write(
        "paper/paper.tex",
        &format!(
            "\\documentclass{{article}}\n\\usepackage{{booktabs,siunitx,graphicx,import,own}}\n\\graphicspath{{{{figures/}}}}\n\
             \\input{{seedbed/values}}\n% made in {here} by ada@node17\n\\begin{{document}}\n\\input{{seedbed/foundation}}\n\
             It is \\seedbed{{foundation/baseline/perplexity}}.% job 81723\n\\newcommand\\data[2][]{{}}\\data[sep=comma]{{loss.csv}}\n\\includegraphics{{dot}}\n\\input{{part}}\\import{{sections/}}{{res}}\n\
             \\bibliography{{refs}}\n\\end{{document}}\n% {here}\n"
        ),
    );
    desk.write("paper/part.tex", "A part.\n");
    // An imported file names others as from its own folder: pdflatex finds them there, too.
    desk.write("paper/sections/res.tex", "\\input{own}\\includegraphics{spot}\\subimport{deep}{more}\n");
    desk.write("paper/sections/own.tex", "Own words.\n");
    desk.write("paper/sections/deep/more.tex", "\\input{own}\\input{last}\n");
    desk.write("paper/sections/deep/last.tex", "The last.\n");
    std::fs::write(desk.path("paper/sections/spot.png"), PNG).unwrap();
    desk.write("paper/own.sty", &format!("% {here}\n\\ProvidesPackage{{own}}\n"));
    desk.write("paper/refs.bib", "@misc{a, title={A}}\n");
    std::fs::write(desk.path("paper/figures/dot.png"), PNG).unwrap();
    desk.write("paper/unused.tex", "not input\n");
    desk.write("paper/loss.csv", "step,loss\n1,2\n");

    let out = desk.path("sent");
    let out_text = out.display().to_string();
    let said = desk.says("pack", &[&out_text, "--study", "configs/small.toml"], 1);
    assert!(said.contains("is not there: run `seedbed paper fill`") && said.contains("--unchecked"), "{said}");
    desk.says("fill", &["--study", "configs/small.toml"], 0);
    let said = desk.says("pack", &[&out_text], 1);
    assert!(said.contains("paper.tex:12: `paper.bbl` is not there: run bibtex once"), "{said}");
    desk.write("paper/paper.bbl", "\\begin{thebibliography}{1}\\bibitem{a} A.\\end{thebibliography}\n");
    assert!(!out.exists());
    let said = desk.says("pack", &[&out_text], 0);
    let expected = [
        "figures/dot.png",
        "loss.csv",
        "own.sty",
        "paper.bbl",
        "paper.tex",
        "part.tex",
        "refs.bib",
        "sections/deep/last.tex",
        "sections/deep/more.tex",
        "sections/own.tex",
        "sections/res.tex",
        "sections/spot.png",
        "seedbed/foundation.tex",
        "seedbed/values.tex",
    ];
    assert_eq!(files(&out), expected, "{said}");
    // Nothing of where, by whom and in which job; not even in comments.
    let host = seedbed::record::files::host_name();
    for file in files(&out) {
        let bytes = std::fs::read(out.join(&file)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for word in [here.as_str(), host.as_str(), "ada@node17", "81723", "seed-42"] {
            assert!(!text.contains(word), "{file} names {word}:\n{text}");
        }
    }
    // Elsewhere, with no Seedbed in reach.
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("copy");
    std::fs::rename(&out, &copy)
        .or_else(|_| Command::new("cp").arg("-r").args([&out, &copy]).status().map(drop))
        .unwrap();
    let log = pdflatex(&copy, "paper.tex");
    assert!(!log.contains("Package seedbed Warning"), "{log}");

    for (name, bytes) in desk.files() {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("canary") && !said.contains("canary"), "{}", name.display());
    }
    for word in ["canary-user@there", "/home/canary-home/x"] {
        desk.write("paper/part.tex", &format!("By {word}."));
        let said = desk.says("pack", &[&out_text], 1);
        assert!(said.contains("part.tex:1: this names `"), "{said}");
        desk.write("paper/part.tex", "A part.\n");
    }

    // A host where an earlier attempt ran, and its job.
    let attempts = desk.path("results/small/default/evaluate/seed-42/attempts");
    let first = std::fs::read_to_string(attempts.join("1.json")).unwrap();
    let mut first: serde_json::Value = serde_json::from_str(&first).unwrap();
    first["attempt"] = 2.into();
    first["host"] = "n17".into();
    first["job"] = serde_json::json!({"id": "81723", "restart": 0});
    std::fs::write(attempts.join("2.json"), first.to_string()).unwrap();
    for word in ["n17", "81723"] {
        desk.write("paper/part.tex", &format!("By {word}."));
        let said = desk.says("pack", &[&out_text, "--unchecked"], 1);
        assert!(said.contains(&format!("part.tex:1: this names `{word}`")), "{said}");
    }
    std::fs::remove_file(attempts.join("2.json")).unwrap();
    desk.write("paper/part.tex", "\\newcommand{\\where}{seedbed}\\input{\\where/foundation}");
    for more in [&[][..], &["--unchecked"]] {
        let said = desk.says("pack", &[&[out_text.as_str()], more].concat(), 1);
        assert!(said.contains("part.tex:1: the file ") && said.contains("write its name out"), "{said}");
    }
    desk.write("paper/part.tex", "A part.\n");

    // A path in the text itself, and a folder that is there.
    desk.edit("paper/part.tex", "A part.", &format!("\\texttt{{{here}}}"));
    let said = desk.says("pack", &[&out_text], 1);
    assert!(said.contains("part.tex:1: this names `") && said.contains("nothing was packed"), "{said}");
    desk.write("paper/part.tex", "\\includegraphics{../else/x}\\includegraphics{none}");
    let said = desk.says("pack", &[&out_text], 1);
    assert!(said.contains("part.tex:1: `../else/x` lies outside") && said.contains("`none` is not there"), "{said}");
    desk.write("paper/part.tex", "A part.\n");
    desk.write("sent/mine.txt", "mine");
    let said = desk.says("pack", &[&out_text], 64);
    assert!(said.contains("is there already"), "{said}");
    assert_eq!(files(&out), ["mine.txt"]);
}
