//! `stage_in` and `stage_out`: what a stage reads lies on the node's own disk, and so does what it writes; the results are
//! the same, and nothing stays behind.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use seedbed::stages::all_specs;
use seedbed::workflow::study::{self, StudyError};
use serde_json::Value;

use crate::support::chain::text;
use crate::support::fake_slurm::FakeSlurm;

/// A study of two stages in a folder of its own: `make` reads a file and a directory, `use` reads what `make` left.
struct Place {
    dir: tempfile::TempDir,
}

/// Notes where it finds its data, and adds it up.
const MAKE: &str = r#"printf '%s\n' "$1" "$2" "$PWD" "$SEEDBED_RUN_DIR" > "$D/make"; cat "$1" "$2"/* > all.txt; echo '{"lines": 3}' > metrics.json"#;
const USE: &str = r#"echo "$SEEDBED_NEED_make" > "$D/use"; sum=$(cat "$SEEDBED_NEED_make/all.txt" | tr -d '\n'); echo "{\"sum\": \"$sum\"}" > metrics.json"#;

impl Place {
    fn new(make: &str, using: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("configs/clusters")).unwrap();
        std::fs::create_dir(dir.path().join("configs/corpus")).unwrap();
        for (file, text) in
            [("configs/one.txt", "1\n"), ("configs/corpus/two.txt", "2\n"), ("configs/corpus/three.txt", "3\n")]
        {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let study = format!(
            "schema = 1\n[study]\nname = \"s\"\nseeds = [7]\n[[stage]]\nname = \"make\"\n\
             command = ['sh', '-c', '''{MAKE}''', 'make', 'one.txt', 'corpus']\ninputs = ['one.txt', 'corpus']\n\
             outputs = ['all.txt']\n{make}\n[[stage]]\nname = \"use\"\nneeds = ['make']\n\
             command = ['sh', '-c', '''{USE}''']\n{using}\n"
        );
        std::fs::write(dir.path().join("configs/s.toml"), study).unwrap();
        std::fs::create_dir(dir.path().join("node")).unwrap();
        Self { dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lines(&self, name: &str) -> Vec<String> {
        std::fs::read_to_string(self.file(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn cluster(&self, lines: &str) {
        let text = format!("schema = 1\n[cluster]\nname = \"test\"\nmpi = \"none\"\nfs_settle_s = 0\n{lines}\n");
        std::fs::write(self.file("configs/clusters/test.toml"), text).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_run_all"));
        command.arg("configs/s.toml").args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("D", self.dir.path()).env("TMPDIR", self.file("node"));
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command
    }

    fn local(&self) -> Output {
        self.command(&["--local"]).output().unwrap()
    }

    fn json(&self, file: &str) -> Value {
        let text = std::fs::read_to_string(self.file("results/s/default").join(file));
        text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
    }

    /// Fingerprints and contents of both cells.
    fn results(&self) -> Vec<Value> {
        let of = |cell: &str| {
            let seal = self.json(&format!("{cell}/seed-7/seal.json"));
            vec![seal["fingerprint"].clone(), seal["content"].clone(), seal["outputs"][0]["digest"].clone()]
        };
        ["make", "use"].into_iter().flat_map(of).collect()
    }

    fn nothing_stays(&self) {
        let left: Vec<_> = std::fs::read_dir(self.file("node")).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    fn logs(&self) -> String {
        let logs = std::fs::read_dir(self.file("results/s/default/logs")).into_iter().flatten();
        logs.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
    }
}

const TIME: &str = "resources = {time = '0:05:00', mem = '64M'}";

fn plain() -> Vec<Value> {
    let plain = Place::new(TIME, TIME);
    let output = plain.local();
    assert!(output.status.success(), "{}", text(&output));
    assert!(plain.lines("make")[0].ends_with("configs/one.txt"), "{:?}", plain.lines("make"));
    plain.results()
}

#[test]
fn data_lies_on_the_node_and_the_results_are_the_same() {
    let make = format!("stage_in = ['one.txt', 'corpus']\nstage_out = true\n{TIME}");
    let staged = Place::new(&make, &format!("stage_in = ['make']\n{TIME}"));
    let output = staged.local();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(staged.results(), plain());
    let node = staged.file("node").display().to_string();
    let (made, used) = (staged.lines("make"), staged.lines("use"));
    assert!(made.iter().chain(&used).all(|path| path.starts_with(&node)), "{made:?} {used:?}");
    assert!(made[0].ends_with("/one.txt") && made[1].ends_with("/corpus"), "a copy keeps its name: {made:?}");
    assert!(made[2] == made[3] && made[2].ends_with("/out"), "{made:?}");
    staged.nothing_stays();
    let logs = staged.logs();
    for words in
        ["stage_in one.txt: ", "stage_in corpus: ", "stage_in make/seed-7: ", "digest as planned", "stage_out: "]
    {
        assert!(logs.contains(words), "{words}: {logs}");
    }
    // What is left says where the data is.
    let cell = std::fs::read_to_string(staged.file("results/s/default/use/seed-7/cell.toml")).unwrap();
    assert!(!cell.contains(&node), "{cell}");
}

#[test]
fn a_stage_that_fails_leaves_nothing_behind_and_nothing_is_sealed() {
    let make = format!("stage_in = ['one.txt']\nstage_out = true\n{TIME}");
    let staged = Place::new(&make, TIME);
    let path = staged.file("configs/s.toml");
    let study = std::fs::read_to_string(&path).unwrap().replace("cat \"$1\" \"$2\"/* > all.txt", "exit 3");
    std::fs::write(&path, study).unwrap();
    let output = staged.local();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    staged.nothing_stays();
    assert!(staged.json("make/seed-7/seal.json").is_null());
    assert!(staged.lines("make")[0].starts_with(staged.file("node").to_str().unwrap()));
}

#[test]
fn on_a_slurm_every_node_gets_a_copy_where_the_cluster_file_says() {
    let slurm = FakeSlurm::new();
    // Two nodes: one copier on each, which is here one machine twice.
    let two = "resources = {nodes = 2, time = '0:05:00', mem = '64M'}\nstage_in = ['corpus']";
    let staged = Place::new(two, &format!("stage_in = ['make']\n{TIME}"));
    let local = staged.file("node").join("disk");
    std::fs::create_dir(&local).unwrap();
    staged.cluster(&format!("local_dir = '{}'\nstage_out = ['gate']", local.display()));
    let output = staged.command(&["--cluster", "test", "--yes"]).env("PATH", slurm.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    slurm.wait_idle();
    let logs = staged.logs();
    assert!(!staged.json("use/seed-7/seal.json").is_null(), "{logs}");
    assert_eq!(logs.matches("stage_in corpus: ").count(), 2, "{logs}");
    assert_eq!(logs.matches("stage_in make/seed-7: ").count(), 1, "{logs}");
    assert!(staged.lines("make")[1].starts_with(local.to_str().unwrap()), "{:?}", staged.lines("make"));
    assert!(staged.lines("make")[0].ends_with("configs/one.txt"), "not asked for: {:?}", staged.lines("make"));
    assert_eq!(std::fs::read_dir(&local).unwrap().count(), 0, "nothing stays");
}

/// The problems of a study whose stages say these lines.
fn problems(make: &str, using: &str) -> Vec<String> {
    let place = Place::new(make, using);
    match study::load(&place.file("configs/s.toml"), None, all_specs()) {
        Ok(_) => Vec::new(),
        Err(StudyError::Problems(problems)) => problems.iter().map(|p| format!("{}; {}", p.message, p.help)).collect(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn what_cannot_be_staged_is_refused() {
    let with = |lines: &str| format!("{lines}\n{TIME}");
    for (make, using, said) in [
        (with("stage_in = ['two.txt']"), TIME.to_owned(), "names `two.txt`, which is none of its inputs or needs"),
        (TIME.to_owned(), with("stage_in = ['mak']"), "did you mean `make`"),
        (with("stage_in = ['corpus', 'corpus']"), TIME.to_owned(), "names `corpus` twice"),
        (with("stage_in = 'corpus'"), TIME.to_owned(), "must be an array"),
        (with("stage_out = 'yes'"), TIME.to_owned(), "must be true or false"),
        (
            "stage_out = true\nresources = {nodes = 2, time = '0:05:00'}".to_owned(),
            TIME.to_owned(),
            "outputs would lie on each",
        ),
    ] {
        let found = problems(&make, &using);
        assert!(found.len() == 1 && found[0].contains(said), "{make} {using}: {found:#?}");
    }
    let place = Place::new(TIME, TIME);
    for (lines, said) in [
        ("stage_in.train = ['setup', 'corpus']", "`corpus` in stage_in is neither a kind nor a path of kind train"),
        ("stage_in.trian = []", "unknown kind `trian` in stage_in"),
        ("stage_in.setup = 'corpus_dir'", "must be an array"),
        ("stage_out = ['hotflop']", "unknown kind `hotflop` in stage_out"),
        ("local_dir = '$TMPDIR'", "not an absolute path"),
    ] {
        place.cluster(lines);
        let error = study::load_cluster(&place.file("configs/clusters/test.toml")).unwrap_err().to_string();
        assert!(error.contains(said), "{lines}: {error}");
    }
    place.cluster(
        "stage_in = {setup = ['corpus_dir'], train = ['setup']}\nstage_out = ['hotflip']\nlocal_dir = '/local'",
    );
    study::load_cluster(&place.file("configs/clusters/test.toml")).unwrap();
}

/// What a cluster file says for a kind becomes what the stages of that kind read.
#[test]
fn a_cluster_file_stages_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let lines = "stage_in = {train = ['setup'], command = ['command']}\nstage_out = ['evaluate']";
    std::fs::write(&path, format!("schema = 1\n[cluster]\nname = 'c'\n{lines}\n")).unwrap();
    let cluster = study::load_cluster(&path).unwrap();
    let monotone = crate::support::repository().join("configs/monotone.toml");
    let study = study::load(&monotone, Some("quick"), all_specs()).unwrap().on_cluster(&cluster).unwrap();
    let of = |stage: &str| study.stage(stage).unwrap().staging.clone();
    assert_eq!((of("train_baseline").copy, of("train_baseline").out), (vec!["setup".to_owned()], false));
    assert!(of("evaluate").out && of("evaluate").copy.is_empty());
    let place = Place::new(TIME, TIME);
    let study = study::load(&place.file("configs/s.toml"), None, all_specs()).unwrap().on_cluster(&cluster).unwrap();
    assert_eq!(study.stage("use").unwrap().staging.copy, ["make"]);
    assert!(study.stage("make").unwrap().staging.is_nothing());
}
