//! Sections with mistakes, each found at its place.

use serde_json::json;

use super::*;

fn good() -> Value {
    json!({
        "key": "foundation",
        "label": "tab:foundation-preliminary",
        "rows": [{"key": "baseline", "with": {"model": "baseline_pythia"}}, {"key": "monotonic"}],
        "columns": [
            {"key": "ppl", "stage": "evaluate", "metric": ".pile_test[$row.model].perplexity", "show": "mean_sd"},
            {"key": "gap", "delta": {"of": "ppl", "from": "baseline", "as": "percent"}, "digits": 1},
        ],
    })
}

#[track_caller]
fn problem(edit: impl Fn(&mut Value), path: &str, fragment: &str) {
    let mut section = good();
    edit(&mut section);
    let problems = TableSpec::parse(&section, &["evaluate", "uat"]).unwrap_err();
    let paths: Vec<String> = problems.iter().map(SpecProblem::said).collect();
    assert_eq!(paths.len(), 1, "{paths:#?}");
    assert!(paths[0].starts_with(&format!("{path}:")) && paths[0].contains(fragment), "{paths:#?}");
}

#[test]
fn a_section_survives_its_own_json() {
    let spec = TableSpec::parse(&good(), &["evaluate"]).unwrap();
    assert_eq!(spec.columns[0].show, Show::MeanSd);
    assert_eq!(spec.level, 0.95);
    let again = serde_json::to_value(&spec).unwrap();
    assert_eq!(TableSpec::parse(&again, &["evaluate"]).unwrap(), spec);
}

#[test]
fn problems_have_places() {
    problem(|s| s["colums"] = json!([]), "colums", "unknown key `colums` in a table");
    problem(|s| s["rows"][0]["lable"] = json!("x"), "rows.0.lable", "unknown key `lable` in a row");
    problem(|s| s["columns"][1]["delta"]["form"] = json!("x"), "columns.1.delta.form", "unknown key");
    problem(|s| s["columns"][0]["show"] = json!("median_sd"), "columns.0", "median_sd");
    problem(|s| s["columns"][0]["digits"] = json!(-1), "columns.0", "-1");
    problem(|s| s["columns"][0]["digits"] = json!(40), "columns.0.digits", "12 decimals");
    problem(|s| s["columns"][0]["stage"] = json!("evalute"), "columns.0.stage", "unknown stage");
    problem(|s| s["columns"][0]["stage"] = json!(["evaluate", "evalute"]), "columns.0.stage", "unknown stage");
    problem(|s| s["columns"][0]["stage"] = json!(["evaluate", "evaluate"]), "columns.0.stage", "twice");
    problem(|s| s["columns"][0]["stage"] = json!([]), "columns.0", "a list of names");
    problem(|s| s["columns"][1]["labels"] = json!({"mask": "full"}), "columns.1.labels", "reads none");
    problem(|s| s["columns"][0]["metric"] = json!(".a | env"), "columns.0.metric", "not allowed");
    problem(|s| s["columns"][0]["metric"] = json!(".a |"), "columns.0.metric", "line 1, column 5");
    problem(|s| s["columns"][1]["delta"]["from"] = json!("base"), "columns.1.delta", "unknown row");
    problem(|s| s["columns"][1]["delta"]["of"] = json!("gap"), "columns.1.delta", "difference of differences");
    problem(|s| s["columns"][1]["key"] = json!("ppl"), "columns.1.key", "two columns");
    problem(|s| s["columns"] = json!([]), "columns", "no columns");
    problem(|s| s["rows"] = json!("x"), "rows", "array");
    problem(|s| s["key"] = json!("$(touch x)"), "key", "not a name");
    problem(|s| s["label"] = json!("tab:}\\input{x}"), "label", "no label");
    problem(|s| s["level"] = json!(95), "level", "0.95");
    problem(|s| s["best"] = json!("yes"), "best", "boolean");
    problem(|s| s["partial"] = json!("ignore"), "partial", "ignore");
    problem(|s| s["columns"][0]["stage"] = Value::Null, "columns.0", "either");
    problem(|s| s["key"] = json!("main-appendix"), "key", "appendix = true");
}

#[test]
fn all_problems_come_at_once() {
    let mut section = good();
    section["columns"][0]["stage"] = json!("x");
    section["columns"][0]["scale"] = json!(0);
    section["label"] = json!("{");
    assert_eq!(TableSpec::parse(&section, &["evaluate"]).unwrap_err().len(), 3);
    let no_table = TableSpec::parse(&json!(3), &[]).unwrap_err();
    assert!(no_table[0].message.contains("[[table]]"));
}

#[test]
fn problems_of_comparisons_have_places() {
    let ratio = |value: Value| move |s: &mut Value| s["columns"][1] = json!({"key": "r", "ratio": value});
    problem(ratio(json!({"of": "ppl", "to": "base"})), "columns.1.ratio", "unknown row `base`");
    problem(ratio(json!({"of": "ppl"})), "columns.1.ratio", "needs either `to = \"ROW\"` or `to_column");
    problem(ratio(json!({"of": "ppl", "to_column": "ppl"})), "columns.1.ratio", "with itself");
    problem(ratio(json!({"of": "ppl", "to": "baseline", "err": 1})), "columns.1.ratio.err", "unknown key");
    problem(
        |s| s["columns"][1] = json!({"key": "r", "ratio": {"of": "ppl", "to": "baseline"}, "show": "median"}),
        "columns.1.show",
        "one of means",
    );
    problem(
        |s| {
            s["columns"][1] =
                json!({"key": "r", "ratio": {"of": "ppl", "to": "baseline", "error": "bootstrap"}, "show": "mean_sd"});
        },
        "columns.1.show",
        "no standard deviation",
    );
    problem(|s| s["columns"][1]["delta"]["from_column"] = json!("ppl"), "columns.1.delta", "needs either `from");
    problem(|s| s["columns"][0]["significant"] = json!(0), "columns.0.significant", "1 to 15");
    problem(|s| s["columns"][1]["significant"] = json!(3), "columns.1.significant", "contradict");
}

#[test]
fn problems_of_the_whole_table_have_places() {
    problem(|s| s["seeds"] = json!("five"), "seeds", "such as 5");
    problem(|s| s["seeds"] = json!([1, -2]), "seeds", "such as [42, 1337]");
    problem(|s| s["seeds"] = json!(0), "seeds", "at least one");
    problem(|s| s["seeds"] = json!([42, 42]), "seeds", "twice");
    problem(|s| s["interval"] = json!("bca"), "interval", "bca");
    problem(|s| s["resamples"] = json!(10), "resamples", "between 100 and");
    problem(|s| s["allow"] = json!(["all"]), "allow", "small_bootstrap");
    problem(|s| s["env"] = json!("tabular"), "env", "tabular");
    problem(
        |s| {
            s["plain"] = json!(true);
            s["multirow"] = json!(true);
        },
        "multirow",
        "no package but booktabs",
    );
    problem(|s| s["footnotes"] = json!([{"text": "x"}]), "footnotes.0", "use `notes`");
    problem(|s| s["footnotes"] = json!([{"row": "x", "text": "x"}]), "footnotes.0.row", "unknown row");
    problem(|s| s["footnotes"] = json!([{"column": "x", "text": "x"}]), "footnotes.0.column", "unknown column");
    problem(|s| s["footnotes"] = json!([{"columm": "x", "text": "x"}]), "footnotes.0.columm", "unknown key");
    let test = |edit: Value| {
        move |s: &mut Value| {
            s["test"] = json!({"on": ["ppl"], "against": "baseline", "method": "paired_t", "family": "holm"});
            s["test"].as_object_mut().unwrap().extend(edit.as_object().unwrap().clone());
        }
    };
    problem(test(json!({"metod": 1})), "test.metod", "unknown key");
    problem(test(json!({"method": "wilcoxon"})), "test", "wilcoxon");
    problem(test(json!({"family": "sidak"})), "test", "sidak");
    problem(test(json!({"on": []})), "test.on", "no column");
    problem(test(json!({"on": ["pppl"]})), "test.on", "unknown column");
    problem(test(json!({"against": "base"})), "test.against", "unknown row");
    problem(test(json!({"against": null})), "test", "needs `against");
    problem(test(json!({"alpha": 0.9})), "test.alpha", "0.05");
}

#[test]
fn problems_of_several_studies_have_places() {
    problem(|s| s["studies"] = json!(["a/full", "b/quick"]), "studies", "`full` and `quick` in one table");
    problem(|s| s["studies"] = json!(["a", "a"]), "studies.1", "twice");
    problem(|s| s["studies"] = json!(["../a"]), "studies.0", "not a name");
    problem(|s| s["rows"][0]["study"] = json!("a"), "rows.0.study", "not among the table's `studies`");
    let mut section = good();
    section["studies"] = json!(["a/full", "b"]);
    section["rows"][0]["study"] = json!("b");
    section["columns"][0]["stage"] = json!("of_another_study");
    let spec = TableSpec::parse(&section, &["evaluate"]).unwrap();
    let refs: Vec<StudyRef<'_>> = spec.study_refs().collect();
    assert_eq!(refs, [StudyRef { study: "a", profile: Some("full") }, StudyRef { study: "b", profile: None }]);
}

#[test]
fn seeds_are_a_number_or_a_list() {
    let seeds = |value: Value| {
        let mut section = good();
        section["seeds"] = value;
        TableSpec::parse(&section, &["evaluate"]).unwrap().seeds.unwrap()
    };
    assert_eq!(seeds(json!(5)), Seeds::Count(5));
    assert_eq!(seeds(json!([42, 1337])), Seeds::List(vec![42, 1337]));
}
