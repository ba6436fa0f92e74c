//! Damaged papers: mutations of real ones. No panic, no hang, and either a whole fill or nothing.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use seedbed::report::paper::spec::Spec;
use seedbed::report::paper::{self, Document, Force, NoValue, Options, Paper, PaperRecord, Value, Values, tex};

use super::{Desk, fixture};

/// Numbers without a pattern, the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % n.max(1)
    }
}

/// Pieces that matter to a reader of LaTeX.
const PIECES: [&str; 28] = [
    "{",
    "}",
    "\\",
    "%",
    "&",
    "$",
    "\\\\",
    "[",
    "]",
    "\n",
    "\n\n",
    "\\begin{tabular}",
    "\\end{tabular}",
    "\\end{table}",
    "\\verb|",
    "\\input{rows}",
    "\\input{paper}",
    "\\label{tab:foundation-preliminary}",
    "\\textcolor{red}{",
    "\\color{red}",
    "\\iffalse",
    "\\fi",
    "\\end{document}",
    "\\multicolumn{99999999999999999999}{c}",
    "\\multirow{9}{*}{",
    "% seedbed begin foundation\n",
    "\\section{",
    "é",
];

/// A paper with something cut, doubled, moved or put in, one to six times.
fn damaged(text: &str, chance: &mut Chance) -> String {
    let mut text = text.to_owned();
    for _ in 0..=chance.below(6) {
        let place = |chance: &mut Chance, text: &str| {
            let at = chance.below(text.len() + 1);
            (0..=at).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
        };
        let (a, b) = (place(chance, &text), place(chance, &text));
        let (a, b) = (a.min(b), a.max(b));
        // A short piece, as often as not.
        let near = (a..=text.len().min(a + 12)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(a);
        match chance.below(6) {
            0 => text.truncate(b.max(text.len() / 3).min(text.len()).max(0)),
            1 => drop(text.drain(a..near)),
            2 => text.insert_str(a, PIECES[chance.below(PIECES.len())]),
            3 => {
                let copy = text[a..b.min(near.max(a))].to_owned();
                text.insert_str(b, &copy);
            }
            4 => {
                let moved: String = text.drain(a..near).collect();
                let to = place(chance, &text);
                text.insert_str(to, &moved);
            }
            _ => text.replace_range(a..near, PIECES[chance.below(PIECES.len())]),
        }
        while !text.is_char_boundary(text.len()) {
            text.pop();
        }
    }
    text
}

/// A document that comes with LaTeX, with the part of the paper that is filled.
fn with_our_part(name: &str) -> String {
    let found = Command::new("kpsewhich").arg(name).output().expect("kpsewhich is installed by scripts/setup");
    let path = String::from_utf8(found.stdout).unwrap();
    let text = std::fs::read_to_string(path.trim()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let ours = fixture("monotone.tex");
    let part = ours.find("\\subsection{Foundation models}").unwrap()..ours.find("\\section{Conclusion}").unwrap();
    let end = text.rfind("\\end{document}").unwrap();
    format!("{}{}{}", &text[..end], &ours[part], &text[end..])
}

/// What keys print, without a study.
fn values() -> Values {
    let printed = [
        ("gap", "460.7"),
        ("times", "5.6x"),
        ("reduction", "38.4"),
        ("seeds", "2"),
        ("foundation/baseline/perplexity", "6.72"),
        ("foundation/monotonic/perplexity", "37.68"),
        ("foundation/baseline/perplexity/full", "$6.72 \\pm 0.03$"),
        ("foundation/monotonic/perplexity/full", "$37.68 \\pm 0.25$"),
        ("foundation/monotonic/delta/full", "$30.96 \\pm 0.23$"),
        ("foundation/baseline/attack", "69.0"),
        ("foundation/monotonic/attack", "42.5"),
    ];
    let value = |text: &str| -> Result<Value, NoValue> { Ok(Value { printed: text.to_owned(), ..Value::default() }) };
    let declared: BTreeMap<_, _> = printed.into_iter().map(|(key, text)| (key.to_owned(), value(text))).collect();
    Values { declared, ..Values::default() }
}

#[test]
fn a_thousand_damaged_papers_are_read_filled_and_checked() {
    let spec = Spec::parse(&fixture("monotone.fill.toml")).unwrap();
    let (values, empty) = (values(), PaperRecord::empty());
    let rows = fixture("rows.tex");
    let [sample, small] = ["sample2e.tex", "small2e.tex"].map(with_our_part);
    let originals = [fixture("monotone.tex"), fixture("monotone.filled.tex"), sample, small];
    let open = |text: &str| {
        Document::new("paper.tex", text, &mut |name| {
            Ok(match name {
                "rows" => Some(("rows.tex".to_owned(), rows.clone())),
                "paper" => Some(("paper.tex".to_owned(), text.to_owned())),
                _ => None,
            })
        })
    };
    // The record of a fill that was not damaged.
    let document = open(&originals[0]).unwrap();
    let whole = Paper { document: &document, spec: &spec, values: &values, record: &empty };
    let plan = paper::plan(whole, Force::No);
    assert!(plan.problems.is_empty() && plan.unfilled.is_empty(), "{plan:?}");
    assert_eq!(paper::apply(&document, &plan.edits), [("paper.tex".to_owned(), originals[1].clone())]);
    let record = plan.record(whole, Vec::new());
    for text in &originals {
        assert!(open(text).is_ok(), "{:?}", open(text).err());
    }

    let mut chance = Chance(0x5eed_bed5);
    let (mut refused, mut filled) = (0, 0);
    let begun = Instant::now();
    for n in 0..1000 {
        let text = damaged(&originals[n % originals.len()], &mut chance);
        let started = Instant::now();
        let Ok(document) = open(&text) else {
            refused += 1;
            continue;
        };
        for record in [&record, &empty] {
            let paper = Paper { document: &document, spec: &spec, values: &values, record };
            for force in [Force::No, Force::Overwrite] {
                let plan = paper::plan(paper, force);
                if !plan.problems.is_empty() {
                    continue;
                }
                filled += 1;
                for (name, after) in paper::apply(&document, &plan.edits) {
                    assert!(tex::unbalanced(&tex::tokens(&after)).is_none(), "{name} after {text}\n->\n{after}");
                    // A second fill has nothing to do.
                    let document = open(&after).unwrap_or_else(|p| panic!("{p:?}\n{text}\n->\n{after}"));
                    let record = plan.record(paper, Vec::new());
                    let again = paper::plan(Paper { document: &document, record: &record, ..paper }, Force::No);
                    assert!(again.edits.is_empty(), "{:?}\n{text}\n->\n{after}", again.edits);
                }
            }
            paper::check(paper, &Options { sections: vec!["4.3".to_owned()], strict: true }, &|_| None);
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{text}");
    }
    assert!(refused > 200 && filled > 100, "{refused} were refused, {filled} were filled");
    eprintln!("1000 damaged papers in {:.1} s: {refused} refused, {filled} fills", begun.elapsed().as_secs_f64());
}

#[test]
fn the_program_writes_all_of_a_damaged_paper_or_nothing() {
    let desk = Desk::with_plain_paper();
    let original = fixture("monotone.tex");
    let mut chance = Chance(0xbad_7e8);
    let mut codes: BTreeMap<i32, usize> = BTreeMap::new();
    for n in 0..30 {
        let mut text = damaged(&original, &mut chance).into_bytes();
        if n % 10 == 9 {
            let at = chance.below(text.len());
            text[at] = 0xff;
        }
        std::fs::write(desk.path("paper/paper.tex"), &text).unwrap();
        drop(std::fs::remove_file(desk.path("paper/paper.tex.seedbed.json")));
        let before = desk.files();
        let output = desk.paper("fill", &[]);
        let code = output.status.code().unwrap_or(-1);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!([0, 1, 64].contains(&code) && !said.contains("panicked"), "exit {code}: {said}");
        *codes.entry(code).or_default() += 1;
        let after = desk.files();
        if code == 64 {
            assert_eq!(after, before, "{said}");
            assert!(said.contains(".tex:") || said.contains("paper.tex"), "a place: {said}");
        }
        let names: Vec<String> = after.keys().map(|f| f.display().to_string()).collect();
        assert!(names.iter().all(|n| !n.ends_with(".tmp")), "{names:?}");
    }
    assert!(codes.get(&64).is_some_and(|n| *n > 5), "{codes:?}");
}
