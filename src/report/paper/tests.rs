//! Papers that are filled, edited and checked without files.

use std::collections::BTreeMap;

use crate::report::table::{GridCell, Printed};

use super::values::full;
use super::{Checked, Document, Force, Options, Paper, PaperRecord, Plan, Spec, Value, Values, apply, check, plan};

/// A paper in its folder.
struct Bench {
    files: BTreeMap<String, String>,
    fill: String,
    values: Values,
    record: PaperRecord,
}

impl Bench {
    fn new(text: &str, fill: &str, keys: &[(&str, &str)]) -> Self {
        let value = |text: &str| Ok(Value { printed: text.to_owned(), ..Value::default() });
        let declared = keys.iter().map(|(key, text)| ((*key).to_owned(), value(text))).collect();
        let files = BTreeMap::from([("p.tex".to_owned(), text.to_owned())]);
        let values = Values { declared, ..Values::default() };
        Self { files, fill: format!("schema = 1\n{fill}"), values, record: PaperRecord::empty() }
    }

    fn with<T>(&self, f: impl FnOnce(Paper<'_>) -> T) -> T {
        let document = Document::new("p.tex", &self.files["p.tex"], &mut |name| {
            let found = [name.to_owned(), format!("{name}.tex")].into_iter().find(|n| self.files.contains_key(n));
            Ok(found.map(|n| (n.clone(), self.files[&n].clone())))
        })
        .unwrap();
        let spec = Spec::parse(&self.fill).unwrap();
        f(Paper { document: &document, spec: &spec, values: &self.values, record: &self.record })
    }

    fn fill(&mut self) -> Plan {
        let (plan, changed, record) = self.with(|paper| {
            let plan = plan(paper, Force::No);
            (plan.clone(), apply(paper.document, &plan.edits), plan.record(paper, Vec::new()))
        });
        assert!(plan.problems.is_empty(), "{:?}", plan.problems);
        let generated = plan.generated.iter().filter_map(|g| Some((g.file.clone(), g.text.clone()?)));
        self.files.extend(generated.chain(changed));
        self.record = record;
        plan
    }

    fn check(&self) -> Checked {
        let options = Options { sections: Vec::new(), strict: true };
        self.with(|paper| check(paper, &options, &|name| self.files.get(name).cloned()))
    }

    /// Fills until there is nothing to do: at once.
    #[track_caller]
    fn settled(&mut self) {
        self.fill();
        let (files, record) = (self.files.clone(), self.record.clone());
        self.fill();
        assert_eq!((&self.files, &self.record), (&files, &record), "a second fill changes nothing");
        let found = self.check();
        assert!(found.problems.is_empty() && found.errors.is_empty(), "{found:?}\n{:?}", self.files);
    }

    fn edit(&mut self, from: &str, to: &str) {
        let text = self.files["p.tex"].replacen(from, to, 1);
        assert_ne!(text, self.files["p.tex"]);
        self.files.insert("p.tex".to_owned(), text);
    }

    #[track_caller]
    fn finds(&self, words: &str) {
        let found = self.check();
        assert!(found.errors.iter().any(|f| f.text.contains(words)), "{words} is not in {found:#?}");
    }
}

const RED: &str = "[[red]]\nstarts = \"We expect\"\n";

#[test]
fn a_copy_of_a_sentence_does_not_hide_the_edit_of_the_other() {
    let fill = format!("{RED}text = \"The estimate is [[k]] in all.\"");
    let mut bench = Bench::new("Abstract.\n\n\\textcolor{red}{We expect much.}\n", &fill, &[("k", "3.2769")]);
    bench.settled();
    bench.edit("Abstract.", "Abstract. The estimate is 3.2769 in all.");
    bench.settled();
    bench.edit("\n\nThe estimate is 3.2769", "\n\nThe estimate is 3.9999");
    bench.finds("3.2769 at p.tex:1; 3.9999 at p.tex:3");
    let edited = bench.files.clone();
    assert!(!bench.fill().by_hand.is_empty());
    assert_eq!(bench.files, edited);
    // Both follow the results.
    bench.edit("3.9999", "3.2769");
    bench.values.declared.insert("k".to_owned(), Ok(Value { printed: "4.1".to_owned(), ..Value::default() }));
    bench.finds("`k` prints 3.2769, the results now give 4.1");
    bench.settled();
    assert_eq!(bench.files["p.tex"].matches("is 4.1 in").count(), 2);
}

#[test]
fn a_last_value_is_found_again_whatever_follows_it() {
    let long = "0.12345, ".repeat(12) + "1";
    for value in ["5.6", "$5.6 \\pm 0.1$", "5.6\\,\\%", "{\\boldmath$-5.6$}", long.as_str()] {
        for behind in ["~\\cite{foo}", "\\footnote{x}", ".", " and", "---much", ")", ""] {
            let text = format!("So \\textcolor{{red}}{{We expect growth}}{behind}\n");
            let mut bench = Bench::new(&text, &format!("{RED}text = \"It grew by [[k]]\""), &[("k", value)]);
            bench.settled();
            assert_eq!(bench.files["p.tex"], format!("So It grew by {value}{behind}\n"));
        }
    }
    let mut bench = Bench::new(
        "\\textcolor{red}{We expect growth}~\\cite{foo}",
        &format!("{RED}text = \"It grew by [[k]]\""),
        &[("k", "5.6")],
    );
    bench.settled();
    bench.edit("5.6", "5.61");
    bench.finds("`k` was edited by hand: 5.61, where 5.6 was filled in");
}

#[test]
fn a_row_is_inserted_once_whatever_its_first_cell_says() {
    for first in ["Foo – bar", "naïve", "模型", "a_b & c", "50 %"] {
        let text = "\\begin{table}\\label{tab:x}\n\\begin{tabular}{lr}\nM & P \\\\ \\hline\nA & 1 \\\\\n\\end{tabular}\n\\end{table}\n";
        let fill = format!(
            "[[fill]]\nlabel = \"tab:x\"\nrows = [{{first = \"{first}\", after = \"A\", cells = [\"[[k]]\"]}}]"
        );
        let mut bench = Bench::new(text, &fill, &[("k", "6.72")]);
        bench.settled();
        assert_eq!(bench.files["p.tex"].matches("6.72").count(), 1, "{first}");
    }
}

#[test]
fn a_cell_of_many_values_is_found_again() {
    let long = "0.12345, ".repeat(12) + "1";
    let text = "\\begin{table}\\label{tab:x}\n\\begin{tabular}{lr}\nM & P \\\\ \\hline\nA & 1 \\\\\n\\end{tabular}\n\\end{table}\n";
    let fill = "[[fill]]\nlabel = \"tab:x\"\nrows = [{first = \"A\", cells = [\"[[k]] m and [[k]]\"]}]";
    let mut bench = Bench::new(text, fill, &[("k", &long)]);
    bench.edit("A & 1", "A & ");
    bench.settled();
}

#[test]
fn keys_that_tex_does_not_find_are_errors() {
    let text = "\\input{seedbed/values}\n\\newcommand{\\val}[1]{\\seedbed{own/#1}}\n\\val{pi}\n";
    let mut bench = Bench::new(text, "", &[("own/pi", "3.1"), ("pi", "3.1")]);
    bench.fill();
    bench.finds("write the key out");
    let mut bench = Bench::new("\\input{seedbed/values}\n\\seedbed{ pi }\n", "", &[("pi", "3.1")]);
    bench.fill();
    bench.finds("write `\\seedbed{pi}`");
    // What a comment takes are no spaces.
    Bench::new("\\input{seedbed/values}\n\\seedbed{%\n  pi}\n", "", &[("pi", "3.1")]).settled();
}

#[test]
fn what_is_input_by_other_names_is_not_passed_over() {
    let mut bench = Bench::new("\\input{seedbed/values}\n\\seedbed{pi}\n", "", &[("pi", "3.1")]);
    bench.settled();
    bench.edit("\\input{seedbed/values}", "\\newcommand{\\tabs}{seedbed}\\input{\\tabs/values}");
    let values = bench.files["seedbed/values.tex"].replace("3.1", "3.2");
    bench.files.insert("seedbed/values.tex".to_owned(), values);
    bench.finds("the file of this `\\input` cannot be known without TeX: write its name out");
    for (text, words) in [
        ("\\newcommand{\\s}[1]{\\include{s/#1}}\\s{a}", "of this `\\include` cannot"),
        ("\\input\\jobname", "of this `\\input` cannot"),
        ("\\import{../sections/}{res}", "`../sections/res` lies outside"),
        ("\\input{../sections/res}", "`../sections/res` lies outside"),
        ("\\input{/tmp/res}", "`/tmp/res` lies outside"),
        ("\\InputIfFileExists{part}{}{}", "the placeholder `[pending]` is left"),
        ("\\import{./}{part}", "the placeholder `[pending]` is left"),
    ] {
        let mut bench = Bench::new(text, "", &[]);
        bench.files.insert("part.tex".to_owned(), "[pending]".to_owned());
        bench.finds(words);
    }
    let bench = Bench::new("\\let\\old\\input \\renewcommand{\\input}[1]{x}\\input{glyphtounicode}", "", &[]);
    let found = bench.check();
    assert!(found.errors.is_empty(), "{found:?}");
    assert!(
        found.warnings.iter().any(|f| f.text.contains("`glyphtounicode` is not in the paper's folder")),
        "{found:?}"
    );
}

#[test]
fn a_generated_file_that_is_input_no_more_is_still_what_was_written() {
    let mut bench = Bench::new("\\input{seedbed/values}\n\\seedbed{pi}\n", "", &[("pi", "3.1")]);
    bench.settled();
    bench.edit("\\input{seedbed/values}\n\\seedbed{pi}\n", "x\n");
    let found = bench.check();
    assert!(found.errors.is_empty(), "{found:?}");
    bench.files.insert("seedbed/values.tex".to_owned(), "other".to_owned());
    bench.finds("was edited by hand, and the paper does not input it by name");
    bench.settled();
}

#[test]
fn a_number_that_its_table_shows_with_missing_runs_is_a_warning() {
    let mut bench = Bench::new("\\input{seedbed/values}\n\\seedbed{pi}\n", "", &[]);
    let missing = vec!["hello: throw/seed-42 (not sealed)".to_owned()];
    bench.values.declared.insert("pi".to_owned(), Ok(Value { printed: "3.1".to_owned(), missing, ..Value::default() }));
    bench.settled();
    let found = bench.check();
    assert!(found.warnings.iter().any(|f| f.text.contains("`pi` is incomplete: hello: throw/seed-42")), "{found:?}");
}

#[test]
fn words_behind_a_region_s_table_are_no_digest() {
    let document = Document::new(
        "p.tex",
        "% seedbed begin own first table\n% seedbed end own\n% seedbed begin two 0123456789abcdef\n% seedbed end two\n",
        &mut |_| Ok(None),
    )
    .unwrap();
    let digests: Vec<Option<String>> = document.regions().into_iter().map(|r| r.digest).collect();
    assert_eq!(digests, [None, Some("0123456789abcdef".to_owned())]);
}

#[test]
fn the_best_is_bold_whatever_it_says() {
    let printed = Printed::Text("1.00e300_x".to_owned());
    let mut cell = GridCell { printed, n: 1, n_expected: 1, best: true, ..GridCell::default() };
    assert_eq!(full(&cell), "\\textbf{1.00e300\\_x}");
    cell.best = false;
    assert_eq!(full(&cell), "1.00e300\\_x");
}
