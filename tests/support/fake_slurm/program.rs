//! A fake Slurm: sbatch, squeue, sacct, sacctmgr, scontrol, scancel and srun in one program, told apart by its name.
//!
//! It is compiled by itself when a test first asks for it, from the standard library alone. Its state lies in
//! the folder `state` beside the folder of the program; there is no daemon: every command that changes
//! something schedules, and every running job has a small process that runs its script and then schedules.
//! Scripts really run, so exit codes, signals, logs and flags are real. It has what Seedbed uses, no more.

mod commands;
mod directives;
mod jobs;
mod state;

use std::path::Path;
use std::time::Duration;

/// What a command prints, and its exit code.
#[derive(Default)]
pub struct Answer {
    pub out: String,
    pub err: String,
    pub code: i32,
}

impl Answer {
    pub fn ok(out: impl Into<String>) -> Self {
        Self { out: out.into(), ..Self::default() }
    }

    pub fn error(err: impl Into<String>) -> Self {
        Self { err: err.into(), code: 1, ..Self::default() }
    }
}

fn main() {
    let exe = std::env::current_exe().unwrap();
    let bin = exe.parent().unwrap().to_owned();
    let main = bin.parent().unwrap().join("state");
    let name = exe.file_name().unwrap().to_string_lossy().into_owned();
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let words = arguments.clone();
    // Another cluster of the site: its own jobs and ids, in a folder of its own.
    let named = (arguments.first().is_some_and(|word| word == "-M")).then(|| arguments.drain(..2).nth(1).unwrap());
    let cluster = named.or_else(|| std::env::var("FAKE_CLUSTER").ok());
    let root = commands::root_of(&main, cluster.as_deref());
    match name.as_str() {
        "slurmstepd" => return jobs::run(&root, &bin, &arguments[0]),
        "srun" => commands::srun(&root, &arguments),
        _ => {}
    }
    std::fs::create_dir_all(&root).unwrap();
    std::fs::create_dir_all(&main).unwrap();
    state::append(&main.join("calls"), &[&[name.clone()], words.as_slice()].concat().join("\t"));
    let answer = answer(&root, &bin, &name, &arguments);
    print!("{}", answer.out);
    eprint!("{}", answer.err);
    std::process::exit(answer.code);
}

/// The command's answer, spoiled if a fault waits for this command.
fn answer(root: &Path, bin: &Path, name: &str, arguments: &[String]) -> Answer {
    // A question is not spoiled by what waits for a submission.
    let asks = name == "sbatch" && arguments.iter().any(|a| a == "--test-only");
    let fault = take_fault(root, if asks { "sbatch --test-only" } else { name });
    let (kind, text) = fault.as_deref().map_or(("", ""), |f| f.split_once('\t').unwrap_or((f, "")));
    if kind == "fail" {
        return Answer::error(format!("{name}: error: {text}\n"));
    }
    if kind == "forget" {
        return Answer::default();
    }
    if state::config(root).get("down").is_some_and(|v| v == "1") {
        return match (name, arguments.first().map(String::as_str)) {
            ("scontrol", Some("ping")) => {
                Answer { out: "Slurmctld(primary) at fake is DOWN\n".to_owned(), code: 1, ..Answer::default() }
            }
            _ => Answer::error(format!("{name}: error: Unable to contact slurm controller (connect failure)\n")),
        };
    }
    let mut answer = match name {
        _ if arguments == ["--version"] => Answer::ok("slurm-wlm 22.05.8\n"),
        "sbatch" => commands::sbatch(root, bin, arguments),
        "squeue" => commands::squeue(root, arguments),
        "sacct" => commands::sacct(root, arguments),
        "sacctmgr" => commands::sacctmgr(root, arguments),
        "scontrol" => commands::scontrol(root, bin, arguments),
        "scancel" => commands::scancel(root, bin, arguments),
        _ => Answer::error(format!("the fake Slurm has no {name}\n")),
    };
    match kind {
        "lose" => {
            let said = "Batch job submission failed: Socket timed out on send/recv operation";
            answer = Answer::error(format!("{name}: error: {said}\n"));
        }
        "hang" => std::thread::sleep(Duration::from_secs(600)),
        "silent" => answer.out.clear(),
        "banner" => answer.out = format!("Welcome, user 7\n{}Have a nice day\n", answer.out),
        _ => {}
    }
    answer
}

/// Takes the first fault that was set for this command.
fn take_fault(root: &Path, name: &str) -> Option<String> {
    let _lock = state::Controller::open(root);
    let path = root.join("faults");
    let text = std::fs::read_to_string(&path).ok()?;
    let mut lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.split('\t').next() == Some(name))?;
    let fault = lines.remove(at).split_once('\t').map(|(_, fault)| fault.to_owned());
    std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    fault
}
