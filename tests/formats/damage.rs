//! Golden files, truncated and with bytes changed: no panic, and no other value where a digest stands guard.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use seedbed::record::run_h5::ManyRuns;
use seedbed::record::seal::SealedFile;
use seedbed::record::{Cell, Column, Digest, Items, RunRecord, Seal, attempt, progress, run_h5};
use seedbed::workflow::journal::{self, Journal};
use seedbed::workflow::submission::Submission;

use super::{golden, values};

/// Every truncation of `bytes` (in steps), then every byte (in steps) with one bit flipped, made a quote, made a digit.
fn mutations(bytes: &[u8], step: usize) -> impl Iterator<Item = (String, Vec<u8>)> {
    let cuts = (0..bytes.len()).step_by(step).map(|n| (format!("cut at {n}"), bytes[..n].to_vec()));
    let flips = (0..bytes.len()).step_by(step).flat_map(|i| {
        let to = [bytes[i] ^ 0x01, bytes[i] ^ 0x20, bytes[i] ^ 0x80, b'"', b'7', b'}'];
        let changed = |b| {
            let mut changed = bytes.to_vec();
            changed[i] = b;
            (format!("byte {i} made {b:#04x}"), changed)
        };
        to.map(changed)
    });
    cuts.collect::<Vec<_>>().into_iter().chain(flips)
}

/// Writes every mutation of the golden `file` to the same place below a new directory and hands the directory to `read`.
fn damage(file: &str, step: usize, mut read: impl FnMut(&Path, &str)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let bytes = fs::read(golden().join(file)).unwrap();
    for (what, bytes) in mutations(&bytes, step) {
        // A new file each time: some file systems flush one that is cut and written again.
        drop(fs::remove_file(&path));
        fs::write(&path, bytes).unwrap();
        read(dir.path(), &what);
    }
}

#[test]
fn a_damaged_seal_is_refused_or_says_the_same() {
    let expected = Seal::read(&golden().join("run")).unwrap();
    let mut refused = 0;
    damage("run/seal.json", 1, |dir, what| match Seal::read(&dir.join("run")) {
        Ok(seal) => assert_eq!(seal, expected, "{what}"),
        Err(e) => {
            refused += 1;
            assert!(e.to_string().contains("seal.json"), "{what}: {e}");
        }
    });
    assert!(refused > 1000, "only {refused} were refused");
}

#[test]
fn a_damaged_cell_never_runs_with_other_parameters() {
    /// What the fingerprint vouches for.
    fn guarded(cell: &Cell) -> impl PartialEq + std::fmt::Debug + use<> {
        let mut params = cell.params.clone();
        // Operational, and so outside.
        params.as_object_mut().unwrap().retain(|key, _| ["lr", "max_steps", "model"].contains(&key.as_str()));
        let needs: Vec<_> = cell.needs.iter().map(|n| (n.key.local_name(), n.fingerprint.clone())).collect();
        let inputs: Vec<_> = cell.inputs.iter().map(|i| (i.name.clone(), i.digest.clone())).collect();
        (cell.kind.clone(), cell.key.seed, cell.fingerprint.clone(), params, needs, inputs)
    }
    let expected = guarded(&values::cell());
    damage("cell.toml", 1, |dir, what| {
        if let Ok(cell) = Cell::read(&dir.join("cell.toml")) {
            assert_eq!(guarded(&cell), expected, "{what}");
        }
    });
}

#[test]
fn a_journal_that_is_cut_loses_its_end_only() {
    let all = values::journal();
    damage("own/journal.jsonl", 1, |dir, what| {
        let read = Journal::open(&dir.join("own"), "x").read();
        if what.starts_with("cut") {
            let read = read.unwrap();
            assert_eq!(read, all[..read.len()], "{what}");
        }
    });
    let all = values::progress();
    damage("run/progress.jsonl", 1, |dir, what| {
        let read = progress::read(&dir.join("run"));
        if what.starts_with("cut") {
            let read = read.unwrap();
            assert_eq!(read, all[..read.len()], "{what}");
        }
    });
}

#[test]
fn a_file_that_is_cut_is_no_file() {
    fn same_or_refused<T: PartialEq + std::fmt::Debug, E>(what: &str, read: Result<T, E>, expected: &T) {
        if let (true, Ok(read)) = (what.starts_with("cut"), read) {
            assert_eq!(&read, expected, "{what}");
        }
    }
    let (start, end) = (values::attempt_start(), Some(values::attempt_end()));
    damage("run/attempts/2.json", 1, |dir, what| {
        same_or_refused(what, attempt::read_start(&dir.join("run"), 2), &start);
    });
    damage("run/attempts/2.end.json", 1, |dir, what| {
        same_or_refused(what, attempt::read_end(&dir.join("run"), 2), &end);
    });
    damage("run/attempts/2.beat", 1, |dir, _| {
        let _ = attempt::read_beat(&dir.join("run"), 2);
    });
    damage("submission/plan.json", 3, |dir, what| {
        same_or_refused(what, Submission::read(&dir.join("submission")), &values::submission());
    });
    let slots = journal::preview_slots(&golden().join("own"), &[]).unwrap();
    damage("own/slots.json", 1, |dir, what| {
        same_or_refused(what, journal::preview_slots(&dir.join("own"), &[]), &slots);
    });
}

/// Damage of every kind, at places spread over the whole file: cuts, bits, bytes, blocks that are gone, doubled or
/// elsewhere, and large numbers where there were small ones.
fn damaged_runs(bytes: &[u8], n: usize) -> impl Iterator<Item = (String, Vec<u8>)> {
    (0..n).map(move |i| {
        // 2654435761 is odd, so that places do not repeat early.
        let at = i.wrapping_mul(2_654_435_761) % bytes.len();
        let mut changed = bytes.to_vec();
        let rest = changed.len() - at;
        let block = |most: usize| at..at + rest.min(most);
        match i % 10 {
            0 => changed.truncate(at),
            1..=4 => changed[at] ^= 1 << (i / 10 % 8),
            5 => changed[at] = changed[at].wrapping_add(1),
            6 => changed[block(8)].fill(0xff),
            7 => changed[block(64)].fill(0),
            8 => drop(changed.splice(at..at, bytes[..rest.min(32)].to_vec())),
            _ => changed[block(400)].reverse(),
        }
        (format!("damage {i} at {at}"), changed)
    })
}

/// A run as an evaluation of many examples leaves it: too large for its headers.
fn large_run() -> RunRecord {
    let mut run = values::run();
    let text = |i: i64| format!("document-{i}");
    let columns = vec![
        ("id".to_owned(), Column::Texts((0..4000).map(text).collect())),
        ("nll".to_owned(), Column::Floats((0..4000).map(|i| f64::from(i) / 7.0).collect())),
        ("tokens".to_owned(), Column::Integers((0..4000).collect())),
    ];
    run.items.insert("large".to_owned(), Items { columns });
    run
}

/// All that the content digest vouches for; a time is outside of it.
fn found(run: &RunRecord) -> String {
    let steps: Vec<_> =
        run.series.iter().map(|(n, s)| (n, s.iter().map(|p| (p.step, p.value)).collect::<Vec<_>>())).collect();
    format!("{:?} {:?} {steps:?} {:?} {:?}", run.key, run.metrics, run.items, run.param_digest)
}

#[test]
fn a_thousand_damaged_runs_are_refused_or_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large.h5");
    run_h5::write_run(&large, &large_run()).unwrap();
    let (mut refused, mut same, mut resealed_read) = (0, 0, 0);
    for (name, from, n) in [("golden", golden().join("run/run.h5"), 600), ("large", large, 400)] {
        let bytes = fs::read(&from).unwrap();
        let expected = found(&run_h5::read_run(&from).unwrap());
        let path = dir.path().join("run.h5");
        for (what, damaged) in damaged_runs(&bytes, n) {
            let what = format!("{name}, {what}");
            drop(fs::remove_file(&path));
            fs::write(&path, &damaged).unwrap();
            let began = Instant::now();
            match run_h5::read_run(&path) {
                Ok(run) => {
                    assert_eq!(found(&run), expected, "{what}");
                    same += 1;
                }
                Err(e) => {
                    let text = e.to_string();
                    assert!(
                        text.contains("run.h5") && (text.contains("run_all") || text.contains("newer")),
                        "{what}: {e}"
                    );
                    refused += 1;
                }
            }
            // As if somebody had sealed the damage: nothing inside is checked by a digest any more.
            let size_bytes = damaged.len() as u64;
            let sealed = SealedFile { path: "run.h5".to_owned(), size_bytes, digest: Digest::of_bytes(&damaged) };
            let mut many = ManyRuns::default();
            resealed_read += usize::from(many.run(&path, &sealed).is_ok());
            drop(many.metrics(&path, &sealed).map(|run| run.metrics.tree()));
            drop(many.tree(&path, &sealed));
            assert!(began.elapsed() < Duration::from_secs(70), "{what} took {:?}", began.elapsed());
        }
    }
    assert!(refused > 500, "{refused} refused, {same} read");
    assert!(resealed_read > 0, "no file with a new digest was read");
}

/// The same with the program: a damaged run whose seal was made again is read, or refused with its name and 65.
#[test]
fn a_damaged_run_with_a_new_seal_ends_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("evaluate/seed-42");
    fs::create_dir_all(&run).unwrap();
    let bytes = fs::read(golden().join("run/run.h5")).unwrap();
    for (what, damaged) in damaged_runs(&bytes, 40) {
        drop(fs::remove_file(run.join("run.h5")));
        fs::write(run.join("run.h5"), &damaged).unwrap();
        let mut seal = values::seal();
        seal.outputs.retain(|file| file.path == "run.h5");
        seal.outputs[0].size_bytes = damaged.len() as u64;
        seal.outputs[0].digest = Digest::of_bytes(&damaged);
        seal.write(&run).unwrap();
        for place in [dir.path(), &run] {
            let output =
                Command::new(env!("CARGO_BIN_EXE_seedbed")).args(["query", "-c", "."]).arg(place).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            match output.status.code() {
                Some(0) => {}
                Some(65) => assert!(said.contains("run.h5") && output.stdout.is_empty(), "{what}: {said}"),
                other => panic!("{what}: {other:?} {said}"),
            }
        }
    }
}

const STUDY: &str = r#"
schema = 1
[study]
name  = "small"
seeds = [1, 2]

[[stage]]
name    = "score"
command = ["sh", "-c", 'echo "{\"acc\": 0.5, \"list\": [1, 2, 3], \"who\": \"x\"}" > metrics.json']
resources = {time = "0:05:00"}

[[table]]
key     = "scores"
rows    = [{key = "all"}]
columns = [{key = "acc", stage = "score", metric = ".acc"}]
"#;

/// `aggregate` with a run that is damaged under a seal that says so is right: a table of all runs, or none and no file.
#[test]
fn a_table_of_a_damaged_run_is_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("small.toml"), STUDY).unwrap();
    let program = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        for name in ["SEEDBED_ROOT", "SEEDBED_CLUSTER", "EXPERIMENT_SEED"] {
            command.env_remove(name);
        }
        command.args(words).args(["small.toml", "--local"]).current_dir(dir.path()).output().unwrap()
    };
    let made = program(env!("CARGO_BIN_EXE_run_all"), &[]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let run = dir.path().join("results/small/default/score/seed-2");
    let bytes = fs::read(run.join("run.h5")).unwrap();
    let seal = Seal::read(&run).unwrap().unwrap();
    let (mut tables, mut refused) = (0, 0);
    for (n, (what, damaged)) in damaged_runs(&bytes, 60).enumerate() {
        drop(fs::remove_file(run.join("run.h5")));
        fs::write(run.join("run.h5"), &damaged).unwrap();
        let mut forged = seal.clone();
        let file = forged.outputs.iter_mut().find(|f| f.path == "run.h5").unwrap();
        (file.size_bytes, file.digest) = (damaged.len() as u64, Digest::of_bytes(&damaged));
        forged.write(&run).unwrap();
        let out = format!("out-{n}");
        let output = program(env!("CARGO_BIN_EXE_seedbed"), &["aggregate", "--output", &out]);
        let said = String::from_utf8_lossy(&output.stderr);
        // A table that is there is of both runs. What is damaged may also be what only the page reads: it says so.
        let table = fs::read_to_string(dir.path().join(&out).join("tables/scores.csv"));
        if let Ok(table) = &table {
            let (head, row) = table.split_once('\n').unwrap();
            let at = head.split(',').position(|c| c == "acc_n").unwrap();
            assert_eq!(row.split(',').nth(at), Some("2"), "{what}: {table}");
        }
        match output.status.code() {
            Some(0) => {
                assert!(table.is_ok(), "{what}: {said}");
                tables += 1;
            }
            // A missing run, or a metric that is no number any more.
            Some(66 | 1) => {
                assert!(said.contains("seed-2") || said.contains("scores"), "{what}: {said}");
                refused += 1;
            }
            other => panic!("{what}: {other:?} {said}"),
        }
    }
    assert!(tables > 5 && refused > 5, "{tables} tables, {refused} refused");
}
