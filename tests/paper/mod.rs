//! `seedbed paper`: a study of foreign programs runs here, its numbers go into papers, results change, and the papers are
//! checked and filled again. Papers are compiled by the real pdflatex.

mod damage;
mod killed;
mod macros;
mod pack;
mod plain;
mod regions;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::chain::text;
use crate::support::repository;

/// A study whose two cells find what `numbers.txt` says of their seed.
const STUDY: &str = r#"
schema = 1
[study]
name  = "small"
seeds = [42, 1337]

[[stage]]
name      = "evaluate"
command   = ["sh", "evaluate.sh", "numbers.txt"]
inputs    = ["evaluate.sh", "numbers.txt"]
resources = {time = "0:05:00"}

[[table]]
key     = "foundation"
label   = "tab:foundation"
caption = "Foundation models."
stub    = "Model"
rows    = [
  {key = "baseline",  label = "Pythia-1.4B (Baseline)",  with = {model = "baseline_pythia"}},
  {key = "monotonic", label = "Pythia-1.4B (Monotonic)", with = {model = "monotonic_pythia"}},
]
columns = [
  {key = "perplexity", label = "Perplexity (Clean)", stage = "evaluate", metric = ".pile_test[$row.model].perplexity", show = "mean_sd"},
  {key = "delta", label = "Perplexity (Δ)", delta = {of = "perplexity", from = "baseline"}, show = "mean_sd"},
  {key = "attack", label = "Attack Success (%)", stage = "evaluate", metric = ".hotflip[$row.model]", scale = 100, digits = 1},
]
"#;

const SCRIPT: &str = r#"awk -v seed="$SEEDBED_SEED" '$1 == seed {
  printf "{\"pile_test\": {\"baseline_pythia\": {\"perplexity\": %s}, \"monotonic_pythia\": {\"perplexity\": %s}}, ", $2, $3
  printf "\"hotflip\": {\"baseline_pythia\": %s, \"monotonic_pythia\": %s}, \"note\": \"50%% & more\"}", $4, $5
}' "$1" > metrics.json
"#;

/// Seed, perplexities, success rates.
const NUMBERS: &str = "42 6.70 37.50 0.69 0.43\n1337 6.74 37.86 0.69 0.42\n";

/// A study with sealed results, and a folder for a paper.
pub struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    /// Runs the study.
    pub fn new() -> Self {
        let desk = Self { dir: tempfile::tempdir().unwrap() };
        desk.write("configs/small.toml", STUDY);
        desk.write("configs/evaluate.sh", SCRIPT);
        desk.numbers(NUMBERS);
        desk.run_all();
        desk
    }

    /// With the plain paper of the fixtures, its rows and its fill file.
    pub fn with_plain_paper() -> Self {
        let desk = Self::new();
        for (from, to) in
            [("monotone.tex", "paper.tex"), ("rows.tex", "rows.tex"), ("monotone.fill.toml", "paper.fill.toml")]
        {
            desk.write(&format!("paper/{to}"), &fixture(from));
        }
        desk
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{name} has no {from}:\n{text}");
        self.write(name, &text.replacen(from, to, 1));
    }

    /// What the study is to find from now on.
    pub fn numbers(&self, text: &str) {
        self.write("configs/numbers.txt", text);
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command
    }

    pub fn run_all(&self) {
        self.run_study("configs/small.toml");
    }

    pub fn run_study(&self, study: &str) {
        let output = self.command(env!("CARGO_BIN_EXE_run_all")).args(["--local", study]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }

    /// `seedbed paper ACTION paper/paper.tex ...`.
    pub fn paper(&self, action: &str, arguments: &[&str]) -> Output {
        let mut command = self.command("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_seedbed"), "paper", action, "paper/paper.tex"]).args(arguments);
        // What must never be written anywhere.
        command.env("USER", "canary-user").env("HOME", "/home/canary-home").env("HF_TOKEN", "canary-token");
        command.output().unwrap()
    }

    /// As [`Self::paper`], with what it said; it must end with `code`.
    #[track_caller]
    pub fn says(&self, action: &str, arguments: &[&str], code: i32) -> String {
        let output = self.paper(action, arguments);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        text(&output)
    }

    /// Every file of the paper's folder.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let dir = self.path("paper");
        let names = seedbed::record::digest::files_below(&dir).unwrap();
        names.into_iter().map(|name| (name.clone(), std::fs::read(dir.join(name)).unwrap())).collect()
    }
}

pub fn fixture(name: &str) -> String {
    std::fs::read_to_string(repository().join("tests/fixtures/paper").join(name)).unwrap()
}

/// Runs pdflatex as often as references need; the log.
#[track_caller]
pub fn pdflatex(dir: &Path, name: &str) -> String {
    for _ in 0..2 {
        let run = Command::new("timeout")
            .args(["60", "pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", name])
            .current_dir(dir)
            .output()
            .expect("pdflatex is installed by scripts/setup");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
    }
    let log = dir.join(Path::new(name).with_extension("log"));
    // TeX breaks lines of its log at 79 bytes.
    String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned()
}
