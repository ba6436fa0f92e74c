//! `seedbed logs`: over all attempts, of jobs, as it grows.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use super::{chain, go_on};
use crate::support::chain::{Chain, text};

fn lines(chain: &Chain, arguments: &[&str]) -> Vec<String> {
    let output = chain.seedbed("logs", arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_log_has_all_attempts_and_can_be_cut() {
    let (_slurm, chain) = chain(&[42, 7]);
    chain.touch("tired");
    let jobs = chain.submit(&["--stages", "setup,train_baseline"]);
    chain.wait(&jobs);
    let starts = |lines: &[String], what: &str| lines.iter().filter(|l| l.starts_with(what)).count();
    let all = lines(&chain, &["train_baseline", "--seed", "42"]);
    assert_eq!((starts(&all, "== attempt 1 "), starts(&all, "== attempt 2 ")), (1, 1), "{all:?}");
    let second = lines(&chain, &["train_baseline", "--seed", "42", "--attempt", "2"]);
    assert_eq!((starts(&second, "== attempt 1 "), starts(&second, "== attempt 2 ")), (0, 1), "{second:?}");
    let both = lines(&chain, &["train_baseline", "--lines", "1"]);
    assert_eq!(starts(&both, "==> train_baseline/seed-"), 2, "{both:?}");
    assert_eq!(starts(&both, "== attempt 2 "), 2, "{both:?}");
    let job = lines(&chain, &["train_baseline", "--seed", "42", "--job"]);
    assert!(
        job.iter().any(|l| l.contains("attempt 1 ended")) && job.iter().any(|l| l.contains("attempt 2 ended")),
        "{job:?}"
    );
    let json = lines(&chain, &["train_baseline", "--seed", "42", "--format", "json"]);
    let json: Vec<Value> = json.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&json[0]["cell"], &json[0]["attempt"]), (&"train_baseline/seed-42".into(), &1.into()));
    assert_eq!(json.last().unwrap()["attempt"], 2);
}

#[test]
fn following_begins_before_the_first_attempt_and_ends_with_the_seal() {
    let (slurm, chain) = chain(&[42]);
    slurm.set("hold", 1);
    chain.touch("tired");
    let jobs = chain.submit(&["--stages", "setup,train_baseline"]);
    let mut command = chain.seedbed("logs", &["train_baseline", "--seed", "42", "--follow"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = said.next().unwrap().unwrap();
    assert!(first.contains("has written no log yet, its state is queued"), "{first}");
    go_on(&slurm);
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && log.contains("== attempt 1 ") && log.contains("== attempt 2 "), "{log}");
    let rest: Vec<String> = said.map(Result::unwrap).collect();
    assert_eq!(rest, ["train_baseline/seed-42 is done"]);
    chain.wait(&jobs);
}

#[test]
fn what_is_not_there_is_said_with_what_to_type() {
    let (_slurm, chain) = chain(&[42]);
    let say = |arguments: &[&str]| {
        let output = chain.seedbed("logs", arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{}", text(&output));
        text(&output)
    };
    assert!(say(&["seutp"]).contains("its stages are setup, apply"));
    assert!(say(&["setup", "--seed", "7"]).contains("its seeds are 42; `run_all` with --seeds 7 asks for it"));
    assert!(say(&["setup", "--arm", "x"]).contains("it has no arms"));
    assert!(
        say(&["setup", "--seed", "42"]).contains("seedbed explain configs/chain.toml --cluster test setup --seed 42")
    );
}
