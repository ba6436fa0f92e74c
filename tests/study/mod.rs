//! Study files: what is read, and what every kind of bad input gets. Of their parts, [`values`] has times, sizes, resources and
//! parameters, and [`sections`] tables and models.

mod sections;
mod values;

use std::path::PathBuf;

use seedbed::stages::{Field, FieldType, Preset, Role, Spec};
use seedbed::workflow::study::{self, Run, Study, StudyError};
use serde_json::{Value, json};

const fn field(name: &'static str, ty: FieldType, preset: Preset) -> Field {
    Field { name, ty, preset, role: Role::Semantic, help: "a parameter" }
}

fn check(params: &Value) -> Vec<String> {
    let get = |key: &str| params[key].as_i64().unwrap_or(0);
    if get("global_batch") % get("grain_samples") == 0 {
        Vec::new()
    } else {
        vec!["`grain_samples` must divide `global_batch`".to_owned()]
    }
}

static SETUP: Spec = Spec {
    kind: "setup",
    version: 1,
    binary: "seedbed-setup",
    resumable: false,
    parallel: false,
    partial_inputs: false,
    needs: &[],
    outputs: &[],
    export: None,
    help: "sets up",
    fields: &[
        field("corpus_dir", FieldType::Path, Preset::Absent),
        field("sections", FieldType::Tables, Preset::Is("[]")),
    ],
    check: seedbed::stages::spec::no_check,
};

static TRAIN: Spec = Spec {
    kind: "train",
    version: 3,
    binary: "seedbed-train",
    resumable: true,
    parallel: true,
    partial_inputs: false,
    needs: &["setup"],
    outputs: &["best_model"],
    export: Some("history.json"),
    help: "trains",
    fields: &[
        field("lr", FieldType::Number { min: 0.0, max: 1.0 }, Preset::Required),
        field("max_steps", FieldType::Integer { min: 1, max: i64::MAX }, Preset::Is("100")),
        field("schedule", FieldType::OneOf(&["linear", "cosine"]), Preset::Is("\"linear\"")),
        field("clip", FieldType::Number { min: 0.0, max: f64::MAX }, Preset::Is("1")),
        field("global_batch", FieldType::Integer { min: 1, max: 1 << 20 }, Preset::Is("8")),
        field("grain_samples", FieldType::Integer { min: 1, max: 1 << 20 }, Preset::Is("2")),
        field("authors", FieldType::TextMap, Preset::Absent),
        field("models", FieldType::NeedMap, Preset::Absent),
        field("freeze", FieldType::TextList, Preset::Absent),
        field("layers", FieldType::IntegerList, Preset::Absent),
        field("amsgrad", FieldType::Bool, Preset::Absent),
        Field {
            role: Role::Operational,
            ..field("log_every", FieldType::Integer { min: 1, max: 1000 }, Preset::Is("10"))
        },
    ],
    check,
};

pub(super) const SPECS: &[&Spec] = &[&SETUP, &TRAIN];

pub(super) const GOOD: &str = r#"schema = 1
[study]
name = "demo"
seeds = [42, 1337]

[[stage]]
name = "setup"
run = "setup"
per = []
resources = {time = "0:10:00"}

[[stage]]
name = "train"
run = "train"
needs = ["setup"]
resources = {nodes = 2, tasks_per_node = 2, mem = "80G", time = "32:00:00"}
params = {lr = 1e-3}

[profile.quick]
stage.train.params.max_steps = 12
[profile.full]
seeds = [1, 2, 3]
stage.train.params = {max_steps = 1000, schedule = "cosine"}
stage.train.resources.time = "2-00:00:00"
"#;

pub(super) fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.toml");
    std::fs::write(&file, text).unwrap();
    (dir, file)
}

fn load(text: &str, profile: Option<&str>) -> Result<Study, StudyError> {
    let (_dir, file) = write(text);
    study::load(&file, profile, SPECS)
}

/// Problems as `line:column: message: help`.
fn problems(text: &str, profile: Option<&str>) -> Vec<String> {
    match load(text, profile) {
        Ok(_) => Vec::new(),
        Err(StudyError::Problems(problems)) => problems
            .iter()
            .map(|p| p.to_string())
            .map(|p| p.split_once("x.toml:").map(|(_, rest)| rest.to_owned()).unwrap_or(p))
            .collect(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_study_is_resolved() {
    let study = load(GOOD, Some("quick")).unwrap();
    assert_eq!((study.name.as_str(), study.profile.as_str()), ("demo", "quick"));
    assert_eq!(study.profiles.iter().map(|p| p.as_str()).collect::<Vec<_>>(), ["quick", "full"]);
    assert_eq!(study.seeds, [42, 1337]);
    let train = study.stage("train").unwrap();
    assert_eq!(train.number, 1);
    assert_eq!(train.kind(), "train");
    assert_eq!((train.resources.ranks(), train.resources.mem_bytes), (4, Some(80 << 30)));
    assert_eq!(train.resources.time_s, 115_200);
    assert_eq!(
        train.params,
        json!({"lr": 1e-3, "max_steps": 12, "schedule": "linear", "clip": 1.0, "global_batch": 8,
               "grain_samples": 2, "log_every": 10})
    );
    assert!(train.semantic_params(None).get("log_every").is_none());
    assert!(train.axes.seed && !train.axes.arm);
    let setup = study.stage("setup").unwrap();
    assert!(!setup.axes.seed && matches!(setup.run, Run::Builtin(_)));

    let full = load(GOOD, Some("full")).unwrap();
    assert_eq!(full.seeds, [1, 2, 3]);
    let train = full.stage("train").unwrap();
    assert_eq!((&train.params["max_steps"], &train.params["schedule"]), (&json!(1000), &json!("cosine")));
    assert_eq!((train.resources.time_s, train.resources.nodes), (172_800, 2));
}

#[test]
fn a_profile_must_be_chosen() {
    assert_eq!(
        problems(GOOD, None),
        [
            "19:2: this study has profiles, and none was chosen: say `--profile quick` or `--profile full`, or set `default_profile` in [study]"
        ]
    );
    assert_eq!(problems(GOOD, Some("quik")), ["19:2: there is no profile `quik`: did you mean `quick`?"]);
    let preset = GOOD.replace("seeds = [42, 1337]", "seeds = [42, 1337]\ndefault_profile = \"quick\"");
    assert_eq!(load(&preset, None).unwrap().profile.as_str(), "quick");
    let wrong = preset.replace("default_profile = \"quick\"", "default_profile = \"quack\"");
    assert_eq!(
        problems(&wrong, None),
        ["5:19: `default_profile` is `quack`, and there is no such profile: did you mean `quick`?"]
    );
    let none = GOOD.split("[profile.quick]").next().unwrap();
    assert_eq!(load(none, None).unwrap().profile.as_str(), "default");
    assert_eq!(load(none, Some("default")).unwrap().profile.as_str(), "default");
    assert_eq!(problems(none, Some("quick")).len(), 1);
}

/// One change of [`GOOD`], and all that is said about it.
#[track_caller]
fn wrong(from: &str, to: &str, said: &[&str]) {
    assert!(GOOD.contains(from), "{from}");
    assert_eq!(problems(&GOOD.replacen(from, to, 1), Some("quick")), said, "{to}");
}

#[test]
fn unknown_keys_name_the_nearest() {
    wrong("{lr = 1e-3}", "{lr = 1e-3, lrr = 2}", &["17:22: unknown key `lrr` in stage train: did you mean `lr`?"]);
    wrong("per = []", "per = []\nneed = []", &["10:1: unknown key `need` in stage setup: did you mean `needs`?"]);
    wrong("nodes = 2,", "node = 2,", &["16:14: unknown key `node` in resources of stage train: did you mean `nodes`?"]);
    wrong(
        "seeds = [42, 1337]",
        "seed = [42, 1337]",
        &[
            "4:1: unknown key `seed` in [study]: did you mean `seeds`?",
            // Profile full brings its own seeds.
            "12:1: stage train runs per seed, and the study has no seeds (profile quick): say `seeds = [42]` in [study], or `per = []`",
        ],
    );
    wrong("run = \"train\"", "run = \"trian\"", &["14:7: unknown kind `trian` in stage train: did you mean `train`?"]);
    wrong("[study]", "stagge = 1\n[study]", &["2:1: unknown key `stagge` in the study file: did you mean `stage`?"]);
}

#[test]
fn overlays_keep_places_and_name_what_they_miss() {
    wrong(
        "max_steps = 12",
        "max_stepz = 12",
        &["20:20: unknown key `max_stepz` in stage train (profile quick): did you mean `max_steps`?"],
    );
    wrong(
        "stage.train.params.max_steps = 12",
        "stage.trian.params.max_steps = 12",
        &["20:7: unknown stage `trian` in profile quick: did you mean `train`?"],
    );
    // A profile that was not asked for is checked too.
    wrong(
        "schedule = \"cosine\"",
        "schedule = \"cosin\"",
        &["23:52: `schedule` in stage train cannot be `cosin`: did you mean `cosine`? (profile full)"],
    );
    wrong(
        "stage.train.params.max_steps = 12",
        "stage.train.name = \"x\"",
        &["20:13: profile quick renames stage train: remove `name`: a profile cannot rename"],
    );
    wrong(
        "[profile.quick]",
        "[profile.\"a b\"]\n[profile.quick]",
        &[
            "19:10: profile: \"a b\" is not a name: use letters, digits, `_`, `-` and single dots inside, a letter or digit first, at most 64 bytes",
        ],
    );
}

#[test]
fn seeds() {
    wrong("[42, 1337]", "[42, 1337, 42]", &["4:20: seed 42 is given twice (profile quick): remove one"]);
    wrong(
        "[42, 1337]",
        "[4294967296]",
        &["4:10: a seed is an integer from 0 to 4294967295, not 4294967296 (profile quick)"],
    );
    wrong(
        "[42, 1337]",
        "[-1, 0.5, \"a\"]",
        &[
            "4:10: a seed is an integer from 0 to 4294967295, not -1 (profile quick)",
            "4:14: a seed is an integer from 0 to 4294967295, not a number (profile quick)",
            "4:19: a seed is an integer from 0 to 4294967295, not text (profile quick)",
        ],
    );
    wrong("[42, 1337]", "42", &["4:9: `seeds` in [study] must be an array, not an integer (profile quick)"]);
}

#[test]
fn names() {
    for name in ["$(touch x)", "a b", "", "../up", "a'b", "x\\\"y"] {
        let found = problems(&GOOD.replacen("name = \"train\"", &format!("name = \"{name}\""), 1), Some("quick"));
        assert!(found.iter().any(|p| p.contains("13:8") && p.contains("is not a name")), "{name}: {found:?}");
    }
    let found = problems(&GOOD.replacen("\"demo\"", "\"a\\nb\"", 1), Some("quick"));
    assert_eq!(found, ["3:8: a value holds a newline or another control character: remove it"]);
    wrong(
        "name = \"setup\"",
        "name = \"flags\"",
        &[
            "7:1: a stage cannot be named `flags`: results keep other things there",
            "15:10: stage train needs an unknown stage `setup`: use one of `flags`, `train`",
        ],
    );
    wrong(
        "name = \"setup\"",
        "",
        &[
            "6:1: stage number 0 has no `name`: say `name = \"...\"`",
            "15:10: stage train needs an unknown stage `setup`: use one of `train`",
        ],
    );
}

#[test]
fn needs_and_cycles() {
    wrong("[\"setup\"]", "[\"setpu\"]", &["15:10: stage train needs an unknown stage `setpu`: did you mean `setup`?"]);
    wrong(
        "[\"setup\"]",
        "[]",
        &["15:1: stage train needs no stage of kind `setup`, and kind `train` reads one: add `setup` to its `needs`"],
    );
    wrong("[\"setup\"]", "[\"setup\", \"setup\"]", &["15:19: stage train needs `setup` twice: remove one"]);
    wrong(
        "[\"setup\"]",
        "[\"setup\", \"other/full:train\"]",
        &[
            "15:19: stage train needs `other/full:train` of another study, which this version cannot do: name a stage of this study",
        ],
    );
    wrong(
        "lr = 1e-3",
        "lr = 1e-3, models = {a = \"setup\", b = \"setpu\"}",
        &["17:22: `models` in stage train names stage `setpu`, which it does not need: did you mean `setup`?"],
    );
    wrong("[\"setup\"]", "[\"setup\", \"train\"]", &["15:19: a cycle: train needs train: remove one of these needs"]);
    wrong(
        "per = []",
        "per = []\nneeds = [\"train\"]",
        &["16:10: a cycle: setup needs train needs setup: remove one of these needs"],
    );
    wrong(
        "name = \"train\"",
        "name = \"setup\"",
        &[
            "12:1: two stages are named `setup`: rename one",
            "15:1: stage setup needs no stage of kind `setup`, and kind `train` reads one: add `setup` to its `needs`",
            "20:7: unknown stage `train` in profile quick: use one of `setup`",
            "23:7: unknown stage `train` in profile full: use one of `setup`",
        ],
    );
    wrong(
        "name = \"train\"",
        "name = \"train\"\nnumber = 0",
        &["14:1: stages setup and train both have number 0: give every stage its own `number`"],
    );
    wrong(
        "per = []",
        "per = []\non = \"login\"\nneeds = [\"train\"]",
        &[
            "11:10: stage setup runs before submission and needs `train`, which runs in a job: set `on = \"login\"` there too, or `on = \"compute\"` here",
            "17:10: a cycle: setup needs train needs setup: remove one of these needs",
        ],
    );
}

pub(super) const ARMS: &str = r#"schema = 1
study = {name = "demo", seeds = [1]}
[[stage]]
name = "setup"
run = "setup"
per = []
resources = {time = "90"}
[[stage]]
name = "sweep"
run = "train"
per = ["arm", "seed"]
needs = ["setup"]
resources = {time = "1h"}
params = {lr = 0.1, max_steps = 5}
arms = [
  {name = "hot", labels = {temperature = "hot"}, params = {lr = 0.5}},
  {name = "cold", params = {authors = {a = "b"}}},
]
"#;

#[test]
fn arms_lay_their_parameters_over_the_stages() {
    let study = load(ARMS, None).unwrap();
    let sweep = study.stage("sweep").unwrap();
    assert_eq!(sweep.arms.len(), 2);
    let hot = Some(&sweep.arms[0].name);
    assert_eq!((&sweep.params_of(hot)["lr"], &sweep.params_of(hot)["max_steps"]), (&json!(0.5), &json!(5)));
    assert_eq!(sweep.labels_of(hot)["temperature"], "hot");
    assert_eq!(sweep.params_of(Some(&sweep.arms[1].name))["authors"], json!({"a": "b"}));
    assert_eq!(sweep.params["lr"], json!(0.1));

    let said = |from: &str, to: &str| problems(&ARMS.replacen(from, to, 1), None);
    assert_eq!(said("\"cold\"", "\"hot\""), ["17:4: stage sweep has two arms `hot`: rename one"]);
    assert_eq!(said("\"cold\"", "\"seed-1\""), ["17:4: arm `seed-1` starts with `seed-`: choose another name"]);
    assert_eq!(
        said("{lr = 0.5}", "{lr = 5}"),
        ["16:65: `lr` in arm hot of stage sweep must be a number from 0 to 1, not 5"]
    );
    assert_eq!(
        said("[\"arm\", \"seed\"]", "[\"seed\"]"),
        ["15:1: stage sweep has arms and not the axis `arm`: say `per = [\"arm\", \"seed\"]`",]
    );
    assert_eq!(
        said("[\"arm\", \"seed\"]", "[\"arms\", \"seed\"]"),
        [
            "11:8: `per` in stage sweep cannot hold `arms`: did you mean `arm`?",
            "15:1: stage sweep has arms and not the axis `arm`: say `per = [\"arm\", \"seed\"]`",
        ]
    );
    // A required parameter may come from every arm.
    assert_eq!(
        said("params = {lr = 0.1, max_steps = 5}", ""),
        ["17:19: arm cold of stage sweep has no `lr`: say `params.lr`: a parameter"]
    );
}

pub(super) const COMMAND: &str = r#"schema = 1
study = {name = "words", seeds = [1]}
[[stage]]
name = "count"
command = ["sh", "my script.sh", "-c", "$(touch x)"]
inputs = ["my script.sh"]
outputs = ["counts.csv", "plots/a.svg"]
resources = {time = "1h"}
params = {words = 3, deep = {list = [1, "a", true]}}
"#;

#[test]
fn a_command_is_started_without_a_shell() {
    let (dir, file) = write(COMMAND);
    std::fs::write(dir.path().join("my script.sh"), "").unwrap();
    let study = study::load(&file, None, SPECS).unwrap();
    let stage = study.stage("count").unwrap();
    let Run::Command(command) = &stage.run else { panic!() };
    let script = dir.path().join("my script.sh");
    assert_eq!(command.argv, ["sh", script.to_str().unwrap(), "-c", "$(touch x)"]);
    assert_eq!(command.written[1], "my script.sh");
    assert_eq!(stage.inputs_of(None)[0].path, script);
    // No path enters the fingerprint.
    let semantic = stage.semantic_params(None);
    assert!(!semantic.to_string().contains(dir.path().to_str().unwrap()), "{semantic}");
    assert_eq!(semantic["command"][1], "my script.sh");
    assert_eq!(semantic["deep"]["list"], json!([1, "a", true]));

    let said = |from: &str, to: &str| {
        std::fs::write(&file, COMMAND.replacen(from, to, 1)).unwrap();
        match study::load(&file, None, SPECS) {
            Err(StudyError::Problems(p)) => {
                p.iter().map(|p| format!("{}: {}: {}", p.line, p.message, p.help)).collect()
            }
            other => vec![format!("{other:?}")],
        }
    };
    assert_eq!(
        said("inputs = [\"my script.sh\"]", ""),
        [
            "5: `my script.sh` in the command of stage count is a file, and no declared input: say `inputs = [\"my script.sh\"]`",
        ]
    );
    assert!(
        said("inputs = [\"my script.sh\"]", "inputs = [\"gone.sh\"]")[1]
            .contains("input `gone.sh` of stage count is not there")
    );
    for output in ["/etc/passwd", "../x", "a//b", "./a", "a/..", "", "seal.json", ".hidden", "attempts/1.json"] {
        let found = said("counts.csv", output);
        assert!(found[0].starts_with(&format!("7: output `{output}` of stage count")), "{output}: {found:?}");
    }
    assert_eq!(
        said("[\"sh\", \"my script.sh\", \"-c\", \"$(touch x)\"]", "[]")[0],
        "5: `command` in stage count names no program: write the program and each argument as its own text"
    );
    assert_eq!(said("-c", "a\\nb")[0], "5: a value holds a newline or another control character: remove it");
    assert_eq!(
        said("command =", "run = \"train\"\ncommand =")[0],
        "6: stage count has both `run` and `command`: keep one"
    );
    assert!(said("words = 3", "command = 3")[0].contains("cannot have a parameter `command`"));
}

#[test]
fn files_that_are_no_studies() {
    let dir = tempfile::tempdir().unwrap();
    let gone = study::load(&dir.path().join("gone.toml"), None, SPECS).unwrap_err();
    assert!(matches!(gone, StudyError::Io { .. }), "{gone}");
    let said = |path: &std::path::Path| study::load(path, None, SPECS).unwrap_err().to_string();
    assert!(said(dir.path()).contains("this is no plain file"));
    let file = dir.path().join("bytes.toml");
    std::fs::write(&file, b"schema = 1\n# \xff\n").unwrap();
    assert!(said(&file).ends_with("bytes.toml:2:3: a byte here is not UTF-8: save the file as UTF-8"));
    std::fs::write(&file, "").unwrap();
    let empty = said(&file);
    for part in ["has no `schema`", "has no `study`", "has no `stage`"] {
        assert!(empty.contains(part), "{empty}");
    }
    std::fs::write(&file, "schema = 2\nstudy = {name = 'x'}\nstage = []").unwrap();
    assert!(said(&file).contains("1:1: this file has schema 2, and this program reads up to 1"));
}

#[test]
fn two_files_may_not_claim_one_name() {
    let (dir, file) = write(GOOD);
    std::fs::write(dir.path().join("another.toml"), GOOD).unwrap();
    std::fs::write(dir.path().join("broken.toml"), "[[[").unwrap();
    let error = study::load(&file, Some("quick"), SPECS).unwrap_err().to_string();
    assert!(
        error.contains("x.toml:3:8: study `demo` is also the name of") && error.contains("another.toml"),
        "{error}"
    );
    std::fs::write(dir.path().join("another.toml"), GOOD.replace("\"demo\"", "\"demo2\"")).unwrap();
    assert!(study::load(&file, Some("quick"), SPECS).is_ok());
}

#[test]
fn external_inputs_must_be_there_for_the_profile_that_is_asked_for() {
    let text = GOOD.replace("[profile.quick]", "[profile.quick]\nstage.setup.params.corpus_dir = 'my text'");
    let (dir, file) = write(&text);
    let error = study::load(&file, Some("quick"), SPECS).unwrap_err().to_string();
    assert!(error.contains("x.toml:20:33: `corpus_dir` in stage setup names"), "{error}");
    assert!(study::load(&file, Some("full"), SPECS).is_ok());
    std::fs::create_dir(dir.path().join("my text")).unwrap();
    let study = study::load(&file, Some("quick"), SPECS).unwrap();
    let setup = study.stage("setup").unwrap();
    assert_eq!(setup.inputs_of(None), [study::Input { name: "corpus_dir".into(), path: dir.path().join("my text") }]);
    assert_eq!(setup.semantic_params(None), json!({"sections": []}));
}

/// Everything that is wrong, at once, in the order of the file.
#[test]
fn all_problems_come_at_once() {
    let text = GOOD
        .replace("seeds = [42, 1337]", "seeds = [42, 42]")
        .replace("run = \"setup\"", "run = \"stup\"")
        .replace("0:10:00", "10 min")
        .replace("nodes = 2", "nodes = 3")
        .replace("lr = 1e-3", "lrr = 1e-3")
        .replace("max_steps = 12", "max_steps = 1.5");
    let lines: Vec<usize> =
        problems(&text, Some("quick")).iter().map(|p| p.split(':').next().unwrap().parse().unwrap()).collect();
    assert_eq!(lines, [4, 8, 10, 16, 17, 17, 20]);
}

#[test]
fn text_that_is_no_toml() {
    assert_eq!(
        problems("schema = \n[study\nname = 'x'\n", None),
        [
            "1:10: this is not TOML: string values must be quoted, expected literal string",
            "2:7: this is not TOML: unclosed table, expected `]`"
        ]
    );
}

#[test]
fn a_cluster_brings_resources_by_kind() {
    let (dir, file) = write(GOOD);
    let cluster = |text: &str| {
        let path = dir.path().join("site.toml");
        std::fs::write(&path, format!("schema = 1\n[cluster]\nname = \"site\"\n{text}")).unwrap();
        study::load_cluster(&path)
    };
    let good = cluster("resources.setup = {mem = \"2G\", time = \"2h\"}").unwrap();
    let study = study::load(&file, Some("quick"), SPECS).unwrap().on_cluster(&good).unwrap();
    let setup = &study.stage("setup").unwrap().resources;
    assert_eq!((setup.mem_bytes, setup.time_s, setup.nodes), (Some(2 << 30), 7200, 1));
    assert_eq!(study.stage("train").unwrap().resources.ranks(), 4);

    let misfit = cluster("resources.setup.nodes = 2").unwrap();
    let error = study::load(&file, Some("quick"), SPECS).unwrap().on_cluster(&misfit).unwrap_err().to_string();
    assert!(error.ends_with(
        "site.toml:1:1: resources of kind setup here and of stage setup together start 2 ranks, and kind `setup` runs on one: set nodes = 1 and tasks_per_node = 1"
    ), "{error}");
    let unknown = cluster("resources.stup.nodes = 2\nresources.setup.node = 2").unwrap_err().to_string();
    assert!(unknown.contains("site.toml:4:11: unknown kind `stup` in resources: did you mean `setup`?"), "{unknown}");
    assert!(
        unknown.contains("site.toml:5:17: unknown key `node` in resources of kind setup: did you mean `nodes`?"),
        "{unknown}"
    );
}
