//! `run_all` on this machine: foreign programs through plan, attempt, seal and query; kills, edits and bad input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A study in a folder of its own.
struct Workspace {
    dir: tempfile::TempDir,
}

/// Two stages over two seeds and one behind both. `double` reads `count`; a file `slow` makes `count` wait, a
/// file `sick` makes it fail for seed 7.
const STUDY: &str = r#"
schema = 1
[study]
name  = "small"
seeds = [42, 7]

[[stage]]
name    = "count"
command = ["sh", "-c", '''if [ -e "$D/sick" ] && [ "$SEEDBED_SEED" = 7 ]; then echo "out of luck" >&2; exit 3; fi; echo started >> "$D/starts"; while [ -e "$D/slow" ]; do sleep 0.05; done; printf '{"n": %s, "nested": {"half": 0.5}}' "$SEEDBED_SEED" > metrics.json; echo "$EXPERIMENT_SEED" > out.txt''']
resources = {time = "0:05:00"}
outputs = ["out.txt"]

[[stage]]
name    = "double"
needs   = ["count"]
command = ["sh", "-c", 'echo $((2 * $(cat "$SEEDBED_NEED_count/out.txt"))) > twice.txt; echo "{\"n\": $(cat twice.txt)}" > metrics.json']
outputs = ["twice.txt"]
resources = {time = "0:05:00"}

[[stage]]
name    = "total"
needs   = ["double"]
per     = []
command = ["sh", "-c", '''printf "%s\n" "$SEEDBED_NEED_double" | while read -r d; do cat "$d/twice.txt"; done | awk '{s += $1} END {printf "{\"sum\": %d}", s}' > metrics.json''']
resources = {time = "0:05:00"}
"#;

impl Workspace {
    fn new() -> Self {
        Self::in_dir(tempfile::tempdir().unwrap())
    }

    fn in_dir(dir: tempfile::TempDir) -> Self {
        std::fs::write(dir.path().join("small.toml"), STUDY).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn base(&self) -> PathBuf {
        self.path("results/small/default")
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).arg(self.path("small.toml")).current_dir(self.dir.path()).stdin(Stdio::null());
        // The programs find the test's switches there.
        command.env("D", self.dir.path());
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command
    }

    fn run_all(&self, arguments: &[&str]) -> Output {
        let words: Vec<&str> = [&["--local"], arguments].concat();
        self.command(env!("CARGO_BIN_EXE_run_all"), &words).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run_all(arguments);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    }

    fn plan(&self) -> Value {
        let output =
            self.command(env!("CARGO_BIN_EXE_seedbed"), &["plan", "--local", "--format", "json"]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Cell and state, sorted.
    fn states(&self) -> Vec<String> {
        let plan = self.plan();
        let mut states: Vec<String> = plan["cells"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| format!("{} {}", c["cell"].as_str().unwrap(), c["state"].as_str().unwrap()))
            .collect();
        states.sort();
        states
    }

    fn query(&self, filter: &str, path: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seedbed"));
        let output = command.args(["query", "-c", filter]).arg(self.base().join(path)).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// How often the program of `count` was started.
    fn starts(&self) -> usize {
        std::fs::read_to_string(self.path("starts")).map_or(0, |text| text.lines().count())
    }

    fn seal_digests(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for cell in ["count/seed-42", "count/seed-7", "double/seed-42", "double/seed-7", "total"] {
            let text = std::fs::read_to_string(self.base().join(cell).join("seal.json")).unwrap();
            let seal: Value = serde_json::from_str(&text).unwrap();
            found.push((cell.to_owned(), seal["content"].as_str().unwrap().to_owned()));
        }
        found
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited a minute for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_study_runs_to_its_seals_and_a_second_call_does_nothing() {
    let work = Workspace::new();
    work.done(&[]);
    assert!(work.states().iter().all(|s| s.ends_with(" done")), "{:?}", work.states());
    assert_eq!(work.query(".sum", "total"), "98");
    assert_eq!(work.query(".nested.half", "count/seed-42"), "0.5");
    assert_eq!(std::fs::read_to_string(work.base().join("count/seed-7/out.txt")).unwrap(), "7\n");
    assert!(work.base().join("flags/stage_2_total_complete.flag").exists());
    let again = work.done(&[]);
    assert!(again.contains("everything is sealed"), "{again}");
    assert_eq!(work.starts(), 2);
}

#[test]
fn experiment_seed_is_the_seeds_option() {
    let work = Workspace::new();
    let mut command = work.command(env!("CARGO_BIN_EXE_run_all"), &["--local"]);
    let output = command.env("EXPERIMENT_SEED", "7").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(work.query(".sum", "total"), "14");
    assert!(!work.base().join("count/seed-42").exists());
    // Another seed joins: what is behind all seeds is made again.
    work.done(&["--seeds", "42"]);
    assert_eq!(work.query(".sum", "total"), "98");
    assert_eq!(work.starts(), 2);
}

#[test]
fn stages_alone_need_their_inputs() {
    let work = Workspace::new();
    let output = work.run_all(&["--stages", "double"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("add `count` to --stages"), "{}", said(&output));
    let output = work.run_all(&["--stages", "cuont"]);
    assert!(said(&output).contains("its stages are count, double, total"), "{}", said(&output));
    work.done(&["--stages", "count"]);
    work.done(&["--stages", "double"]);
    assert_eq!(work.starts(), 2);
}

#[test]
fn a_changed_parameter_runs_again_what_it_reaches_and_old_results_come_back() {
    let work = Workspace::new();
    work.done(&[]);
    let first = work.seal_digests();
    let text = std::fs::read_to_string(work.path("small.toml")).unwrap();
    std::fs::write(work.path("small.toml"), text.replace("2 * $(cat", "3 * $(cat")).unwrap();
    let plan = work.plan();
    let cells = plan["cells"].as_array().unwrap();
    let of = |cell: &str| cells.iter().find(|c| c["cell"] == cell).unwrap();
    assert_eq!(of("count/seed-42")["state"], "done");
    assert_eq!(of("double/seed-42")["state"], "stale");
    assert_eq!(of("double/seed-42")["changes"][0]["key"], "params.command[2]");
    assert_eq!(of("total")["state"], "stale");
    work.done(&[]);
    assert_eq!(work.query(".sum", "total"), "147");
    assert_eq!(work.starts(), 2, "the unchanged stage did not run again");
    // Back to the old parameters: the old results are moved back, nothing runs.
    std::fs::write(work.path("small.toml"), text).unwrap();
    work.done(&[]);
    assert_eq!(work.seal_digests(), first);
    assert_eq!(
        std::fs::read_dir(work.base().join("double/seed-42/attempts")).unwrap().count(),
        3,
        "1.json, its end, its beat"
    );
}

#[test]
fn one_sick_seed_ends_alone_and_the_next_call_runs_what_is_missing() {
    let work = Workspace::new();
    std::fs::write(work.path("sick"), "").unwrap();
    let output = work.run_all(&[]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("count/seed-7 ended with exit 3") && text.contains("out of luck"), "{text}");
    assert_eq!(
        work.states(),
        ["count/seed-42 done", "count/seed-7 missing", "double/seed-42 done", "double/seed-7 missing", "total missing"]
    );
    std::fs::remove_file(work.path("sick")).unwrap();
    work.done(&[]);
    assert_eq!(work.query(".sum", "total"), "98");
    assert_eq!(work.starts(), 2);
}

/// Kills with SIGKILL, from outside, at several moments; run again, everything ends with the same content.
#[test]
fn kill_nine_at_any_moment_loses_nothing() {
    let clean = Workspace::new();
    clean.done(&[]);
    for delay_ms in [0, 30, 80, 150, 300, 600] {
        let work = Workspace::new();
        let mut child =
            work.command(env!("CARGO_BIN_EXE_run_all"), &["--local"]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        work.done(&[]);
        assert_eq!(work.seal_digests(), clean.seal_digests(), "killed after {delay_ms} ms");
    }
}

/// The attempt and the program it runs are killed while the program works.
#[test]
fn a_killed_attempt_is_taken_over() {
    let work = Workspace::new();
    std::fs::write(work.path("slow"), "").unwrap();
    let mut child = work
        .command(env!("CARGO_BIN_EXE_run_all"), &["--local", "--seeds", "42"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the program starts", || work.starts() == 1);
    let start = std::fs::read_to_string(work.base().join("count/seed-42/attempts/1.json")).unwrap();
    let pid = serde_json::from_str::<Value>(&start).unwrap()["pid"].as_u64().unwrap();
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(!work.base().join("count/seed-42/attempts/1.end.json").exists(), "a killed attempt says nothing");
    std::fs::remove_file(work.path("slow")).unwrap();
    work.done(&["--seeds", "42"]);
    assert_eq!(work.starts(), 2);
    assert!(work.base().join("count/seed-42/attempts/2.json").exists());
}

#[test]
fn two_calls_at_once_the_second_says_who_holds_the_lock() {
    let work = Workspace::new();
    std::fs::write(work.path("slow"), "").unwrap();
    let mut first = work.command(env!("CARGO_BIN_EXE_run_all"), &["--local"]).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the program starts", || work.starts() >= 1);
    let output = work.run_all(&[]);
    let text = said(&output);
    assert!(!output.status.success());
    assert!(text.contains(&format!("process {}", first.id())) && text.contains("--break-lock"), "{text}");
    std::fs::remove_file(work.path("slow")).unwrap();
    assert!(first.wait().unwrap().success());
    assert_eq!(work.query(".sum", "total"), "98");
    assert_eq!(work.starts(), 2);
}

#[test]
fn what_was_damaged_after_sealing_is_named_and_made_again() {
    let damage: [(&str, &dyn Fn(&Path)); 3] = [
        ("damaged", &|dir| {
            let path = dir.join("seal.json");
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.replacen("\"attempt\": 1", "\"attempt\": 2", 1)).unwrap();
        }),
        ("missing-outputs", &|dir| {
            let bytes = std::fs::read(dir.join("run.h5")).unwrap();
            std::fs::write(dir.join("run.h5"), &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("missing-outputs", &|dir| std::fs::remove_file(dir.join("out.txt")).unwrap()),
    ];
    for (state, damage) in damage {
        let work = Workspace::new();
        work.done(&[]);
        let before = work.seal_digests();
        damage(&work.base().join("count/seed-42"));
        assert!(work.states().contains(&format!("count/seed-42 {state}")), "{:?}", work.states());
        work.done(&[]);
        assert_eq!(work.seal_digests(), before);
        assert_eq!(work.starts(), 3);
    }
}

#[test]
fn bytes_that_changed_behind_a_seal_are_found_by_verify_and_by_the_gate() {
    let work = Workspace::new();
    work.done(&["--stages", "count"]);
    std::fs::write(work.base().join("count/seed-42/out.txt"), "43\n").unwrap();
    let output = work.run_all(&["--stages", "double"]);
    let text = said(&output);
    assert!(text.contains("ended with exit 65") && text.contains("out.txt"), "{text}");
    let output = work.command(env!("CARGO_BIN_EXE_seedbed"), &["plan", "--local", "--verify"]).output().unwrap();
    assert!(said(&output).contains("output `out.txt` is not what was sealed"), "{}", said(&output));
}

#[test]
fn a_result_that_was_withdrawn_is_made_again_once() {
    let work = Workspace::new();
    work.done(&[]);
    let dir = work.base().join("count/seed-42");
    std::fs::write(dir.join("invalid.json"), r#"{"who": "ada", "why": "wrong data"}"#).unwrap();
    assert!(work.states().contains(&"count/seed-42 missing".to_owned()), "{:?}", work.states());
    work.done(&[]);
    assert!(work.states().iter().all(|s| s.ends_with(" done")), "{:?}", work.states());
    assert!(dir.join("attempts/2.invalid.json").exists() && !dir.join("invalid.json").exists(), "kept, and over");
    assert_eq!(work.starts(), 3, "once more");
}

#[test]
fn bytes_that_changed_are_mended_by_verify() {
    let work = Workspace::new();
    work.done(&[]);
    let path = work.base().join("count/seed-42/out.txt");
    std::fs::write(&path, "43\n").unwrap();
    work.done(&[]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "43\n", "a look at sizes does not see it");
    work.done(&["--verify"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "42\n");
    assert_eq!(work.starts(), 3);
}

#[test]
fn something_that_a_stage_leaves_behind_does_not_hold_it_up() {
    let work = Workspace::new();
    let path = work.path("small.toml");
    let daemon = "{ sleep 60; } & echo $! >> \"$D/daemons\"; echo started >> \"$D/starts\"";
    std::fs::write(&path, STUDY.replace("echo started >> \"$D/starts\"", daemon)).unwrap();
    let began = Instant::now();
    work.done(&[]);
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    for pid in std::fs::read_to_string(work.path("daemons")).unwrap().lines() {
        let _ = Command::new("kill").arg(pid).status();
    }
}

#[test]
fn a_program_that_breaks_its_word_is_told_how() {
    let cases = [
        ("echo done", "did not write `out.txt`"),
        ("echo x > out.txt; echo '{\"loss\": NaN}' > metrics.json", "metrics.json"),
        ("echo x > out.txt; echo '[1]' > metrics.json", "is not a JSON object"),
        ("echo x > out.txt; echo {} > seal.json", "a name that Seedbed keeps for itself"),
        ("ln -s /etc/hostname out.txt", "is a link"),
    ];
    for (body, expected) in cases {
        let work = Workspace::new();
        let study = format!(
            "schema = 1\n[study]\nname = \"small\"\nseeds = [1]\n[[stage]]\nname = \"count\"\ncommand = ['sh', '-c', '''{body}''']\noutputs = ['out.txt']\nresources = {{time = '0:05:00'}}\n"
        );
        std::fs::write(work.path("small.toml"), study).unwrap();
        let output = work.run_all(&[]);
        let text = said(&output);
        assert!(text.contains("ended with exit 70") && text.contains(expected), "{body}: {text}");
        assert!(!work.base().join("count/seed-1/seal.json").exists());
    }
}

#[test]
fn hostile_names_and_roots_reach_no_shell() {
    let odd = tempfile::Builder::new().prefix("it's $(touch x) a \"root\" %j ").tempdir().unwrap();
    let work = Workspace::in_dir(odd);
    work.done(&[]);
    assert!(!work.path("x").exists());
    let output = work.command(env!("CARGO_BIN_EXE_run_all"), &["--local", "--root", "a\nb"]).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("--root"), "{}", said(&output));
    let text = std::fs::read_to_string(work.path("small.toml")).unwrap();
    std::fs::write(work.path("small.toml"), text.replace("name    = \"count\"", "name = \"$(touch x)\"")).unwrap();
    let output = work.run_all(&[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("small.toml:8:8") && said(&output).contains("is not a name"), "{}", said(&output));
    assert!(!work.path("x").exists());
}

/// A file system of one megabyte: the message names the file, nothing is sealed, and with room it goes on.
#[test]
fn a_full_disk_is_said_and_nothing_is_lost() {
    let work = Workspace::new();
    let small = work.path("small disk");
    std::fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(&small).output();
    if !mounted.is_ok_and(|m| m.status.success()) {
        eprintln!("skipped: a small file system needs root");
        return;
    }
    let filler = small.join("filler");
    let root = small.to_str().unwrap().to_owned();
    // Enough for the programs, then full.
    work.done(&["--root", &root, "--stages", "count", "--seeds", "42"]);
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display())).output();
    let full = work.run_all(&["--root", &root]);
    std::fs::remove_file(&filler).unwrap();
    let freed = work.run_all(&["--root", &root]);
    let unmounted = Command::new("umount").arg(&small).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(full.status.code(), Some(73), "{}", said(&full));
    assert!(said(&full).contains("No space left on device"), "{}", said(&full));
    assert!(freed.status.success(), "{}", said(&freed));
    assert_eq!(work.starts(), 2, "the sealed cell did not run again");
}

#[test]
fn a_stopped_cell_is_tried_again_only_when_asked() {
    let work = Workspace::new();
    let text = std::fs::read_to_string(work.path("small.toml")).unwrap();
    std::fs::write(work.path("small.toml"), text.replace("exit 3; fi", "exit 78; fi")).unwrap();
    std::fs::write(work.path("sick"), "").unwrap();
    assert_eq!(work.run_all(&[]).status.code(), Some(78));
    std::fs::remove_file(work.path("sick")).unwrap();
    assert_eq!(work.run_all(&[]).status.code(), Some(78));
    assert!(work.states().contains(&"total stopped".to_owned()), "{:?}", work.states());
    work.done(&["--retry-stopped"]);
    assert_eq!(work.query(".sum", "total"), "98");
    assert!(work.base().join("count/seed-7/attempts/1.stopped.json").exists(), "the evidence stays");
}

#[test]
fn the_study_may_say_only_what_is_known() {
    let work = Workspace::new();
    let text = std::fs::read_to_string(work.path("small.toml")).unwrap();
    std::fs::write(work.path("small.toml"), text.replace("needs   = [\"count\"]", "neds = [\"count\"]")).unwrap();
    let output = work.run_all(&[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("small.toml:15:1: ") && said(&output).contains("`needs`"), "{}", said(&output));
}

#[test]
fn a_program_that_never_comes_further_is_stopped_and_one_that_does_goes_on() {
    let study = |body: &str| {
        format!(
            "schema = 1\n[study]\nname = \"small\"\nseeds = [1]\n[[stage]]\nname = \"count\"\ncommand = ['sh', '-c', '''{body}''']\nresumable = true\nresources = {{time = '0:05:00'}}\n"
        )
    };
    let attempts = |work: &Workspace| {
        let names =
            std::fs::read_dir(work.base().join("count/seed-1/attempts")).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|n| n.to_str().unwrap().ends_with(".end.json")).count()
    };
    let work = Workspace::new();
    std::fs::write(work.path("small.toml"), study("exit 75")).unwrap();
    let output = work.run_all(&[]);
    assert!(said(&output).contains("made no progress"), "{}", said(&output));
    assert_eq!(attempts(&work), 3);

    let work = Workspace::new();
    let body = r#"n=$(ls "$SEEDBED_CHECKPOINT_DIR" | wc -l); [ "$n" = 5 ] || { sleep 0.02; touch "$SEEDBED_CHECKPOINT_DIR/$n"; exit 75; }"#;
    std::fs::write(work.path("small.toml"), study(body)).unwrap();
    work.done(&[]);
    assert_eq!(attempts(&work), 6);
}
