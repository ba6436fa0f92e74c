//! Tables, which are checked by their owner, and the stages that tables and models name.

use super::*;

const TABLE: &str = r#"
[[table]]
key = "main"
caption = "Loss"
rows = [{key = "a"}, {key = "b"}]
columns = [
  {key = "loss", stage = "train", metric = ".loss", digits = 3},
  {key = "delta", delta = {of = "loss", from = "a"}},
]
[profile.more]
table.main.caption = "More"
"#;

#[test]
fn tables_are_checked_by_their_owner() {
    let good = format!("{GOOD}{TABLE}");
    let study = load(&good, Some("more")).unwrap();
    assert_eq!(study.tables[0]["caption"], "More");
    // A kind that makes tables finds them among its parameters.
    assert_eq!(study.stage("setup").unwrap().params["sections"], json!(study.tables));
    wrong(
        "per = []",
        "per = []\nparams = {sections = []}",
        &["10:22: `sections` in stage setup is made of the study's `[[table]]` sections: remove it"],
    );
    let lines = GOOD.lines().count();
    let said = |from: &str, to: &str| -> Vec<String> {
        assert!(TABLE.contains(from), "{from}");
        let found = problems(&format!("{GOOD}{}", TABLE.replacen(from, to, 1)), Some("quick"));
        // Lines of the table, from 1.
        let short = |p: &String| {
            let (line, rest) = p.split_once(':').unwrap();
            format!("{}:{rest}", line.parse::<usize>().unwrap() - lines - 1)
        };
        found.iter().map(short).collect()
    };
    assert_eq!(said("digits", "digts"), ["6:53: table main: unknown key `digts` in a column: did you mean `digits`?",]);
    assert_eq!(
        said("\"train\"", "\"trian\""),
        ["6:18: table main: column `loss` reads the unknown stage `trian`: did you mean `train`?",]
    );
    assert_eq!(said("from = \"a\"", "from = \"c\"").len(), 1);
    assert_eq!(
        said("[profile.more]", "[[table]]\nkey = \"main\"\nrows = []\ncolumns = []\n[profile.more]")[0],
        "10:1: two tables have the key `main`: rename one"
    );
    assert_eq!(said("table.main", "table.mian"), ["10:7: unknown table `mian` in profile more: did you mean `main`?"]);
}

#[test]
fn depth_is_no_danger() {
    for (open, close) in
        [("(", ")"), ("[", "]"), ("{a:", "}"), ("if ", ""), ("-", ""), ("reduce ", ""), ("try ", ""), (". as [", "]")]
    {
        let deep = format!("{}.{}", open.repeat(20_000), close.repeat(20_000));
        let text = format!("{GOOD}{}", TABLE.replace("\".loss\"", &format!("'{deep}'")));
        assert!(!problems(&text, Some("quick")).is_empty(), "{open}");
    }
    for text in ["a = ".to_owned() + &"[".repeat(200_000), "a.".repeat(100_000) + "a = 1", "{a=".repeat(100_000)] {
        assert!(!problems(&text, None).is_empty());
    }
}

#[test]
fn models_are_needed_stages() {
    wrong(
        "lr = 1e-3",
        "lr = 1e-3, models = {a = \"train\"}",
        &["17:22: `models` in stage train names stage `train`, which it does not need: add `train` to its `needs`"],
    );
    // One typing error, one message.
    wrong(
        "[\"setup\"]\nresources = {nodes = 2, tasks_per_node = 2, mem = \"80G\", time = \"32:00:00\"}\nparams = {",
        "[\"setpu\"]\nresources = {nodes = 2, tasks_per_node = 2, mem = \"80G\", time = \"32:00:00\"}\nparams = {models = {a = \"setup\"}, ",
        &["15:10: stage train needs an unknown stage `setpu`: did you mean `setup`?"],
    );
}

#[test]
fn a_stage_that_makes_tables_needs_what_they_read() {
    let text = std::fs::read_to_string(crate::support::repository().join("configs/monotone.toml")).unwrap();
    let cut = text.replace("= [\"setup\", \"apply_monotonicity\", ", "= [\"apply_monotonicity\", ");
    assert_ne!(text, cut);
    let (_dir, file) = write(&cut);
    let error = study::load(&file, Some("quick"), seedbed::stages::all_specs()).unwrap_err().to_string();
    let said = "stage aggregate makes table foundation, which reads stage `setup`: add \"setup\" to its `needs`";
    assert!(error.contains(said), "{error}");
}
