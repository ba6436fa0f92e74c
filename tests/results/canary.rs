//! A study run by somebody with secrets, on a machine with a name, in a home directory, in a clone with a password in its
//! remote: none of it stands in what is for others, and the secrets stand nowhere.

use std::path::{Path, PathBuf};
use std::process::Command;

use seedbed::record::digest::files_below;

use crate::support::chain::text;
use crate::support::scored::Scored;

const TOKEN: &str = "hf_canaryTokenQ7x";
const USER: &str = "canaryuserq7";
const HOST: &str = "canaryhostq7";
const PASSWORD: &str = "canarypasswordq7";

/// Files of the run directories that are for others.
fn is_for_others(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    let below = |part: &str| path.components().any(|c| c.as_os_str() == part);
    below("tables")
        || below("documents")
        || below("figures")
        || below("flags")
        || name == "report.html"
        || name.ends_with("summary.txt")
        || name.ends_with("results.json")
}

/// `program` with these arguments under another host name; without the right to that, as it is.
fn renamed(program: &Path, arguments: &[&str]) -> Option<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    for flags in [&["--uts"][..], &["--user", "--map-root-user", "--uts"]] {
        let probe = Command::new("unshare").args(flags).args(["hostname", HOST]).output();
        if probe.is_ok_and(|o| o.status.success()) {
            words.push("unshare".to_owned());
            words.extend(flags.iter().map(|f| (*f).to_owned()));
            words.extend(["sh".to_owned(), "-c".to_owned(), format!("hostname {HOST} && exec \"$0\" \"$@\"")]);
            words.push(program.display().to_string());
            words.extend(arguments.iter().map(|a| (*a).to_owned()));
            return Some(words);
        }
    }
    None
}

fn holds(path: &Path, word: &str) -> bool {
    let bytes = std::fs::read(path).unwrap();
    bytes.windows(word.len()).any(|w| w == word.as_bytes())
}

#[test]
fn nothing_for_others_names_who_made_it_and_secrets_are_written_nowhere() {
    let study = Scored::local();
    let dir = study.file("");
    let home = dir.to_string_lossy().trim_end_matches('/').to_owned();
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&dir).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    git(&["init", "-q"]);
    git(&["remote", "add", "origin", &format!("https://{USER}:{PASSWORD}@git.example/x.git")]);

    let run = |program: &str, arguments: &[&str]| {
        let words = renamed(Path::new(program), &[arguments, &["configs/scored.toml"]].concat());
        let mut command = match &words {
            Some(words) => {
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]);
                command
            }
            None => {
                let mut command = Command::new(program);
                command.args(arguments).arg("configs/scored.toml");
                command
            }
        };
        command.current_dir(&dir).env("HF_TOKEN", TOKEN).env("USER", USER).env("LOGNAME", USER).env("HOME", &home);
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    run(env!("CARGO_BIN_EXE_run_all"), &["--local"]);
    run(env!("CARGO_BIN_EXE_seedbed"), &["aggregate", "--output", "out", "--public"]);
    run(env!("CARGO_BIN_EXE_seedbed"), &["aggregate", "--output", "own"]);
    let printed = run(env!("CARGO_BIN_EXE_seedbed"), &["aggregate", "--format", "latex"]);
    let host = if renamed(Path::new("true"), &[]).is_some() {
        HOST.to_owned()
    } else {
        // Nobody may rename this machine: its own name must do.
        seedbed::record::files::host_name()
    };

    let all: Vec<PathBuf> = files_below(&dir).unwrap().into_iter().filter(|f| !f.starts_with(".git")).collect();
    let secrets: Vec<_> = all.iter().filter(|f| holds(&dir.join(f), TOKEN) || holds(&dir.join(f), PASSWORD)).collect();
    assert!(secrets.is_empty(), "a secret stands in {secrets:?}");

    let (for_others, private): (Vec<_>, Vec<_>) = all
        .iter()
        .filter(|f| f.starts_with("results") || f.starts_with("out"))
        .filter(|f| !f.components().any(|c| c.as_os_str() == ".seedbed"))
        .partition(|f| is_for_others(f));
    assert!(for_others.len() > 25, "{for_others:?}");
    let words = [USER, &host, &home];
    for file in &for_others {
        for word in words {
            assert!(!holds(&dir.join(file), word), "{} names {word}", file.display());
        }
    }
    // A log says on which node an attempt ran and what it started, and stays in the house; who ran it is not its business.
    let logs: Vec<_> = all.iter().filter(|f| f.ends_with("log.txt")).collect();
    assert_eq!(logs.len(), 10, "{logs:?}");
    for log in logs {
        assert!(!holds(&dir.join(log), USER), "{} names {USER}", log.display());
    }
    for word in words {
        assert!(!printed.contains(word), "the printed tables name {word}");
    }
    // The canaries are really there: what stays in the house names the machine and the place.
    for (word, name) in [(&host, "seal.json"), (&home, "cell.toml")] {
        assert!(private.iter().any(|f| f.ends_with(name) && holds(&dir.join(f), word)), "no {name} names {word}");
    }
    // So do the sources of a table, which what is public does not have.
    assert!(holds(&dir.join("own/sources/scores.json"), &host));
    assert!(!dir.join("out/sources").exists());
}
