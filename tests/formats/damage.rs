//! Golden files, truncated and with bytes changed: no panic, and no other value where a digest stands guard.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use seedbed::record::{Cell, Seal, attempt, files, progress, run_h5};
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

/// The environment variable that makes [`child_that_reads_runs`] read: a directory with one file a mutation.
const CHILD: &str = "SEEDBED_TEST_DAMAGED_RUNS";

/// Not a test by itself: [`a_damaged_run_is_refused_or_says_the_same`] starts it, because a damaged file may make
/// libhdf5 fault or hang. Prints a line before and after each file, from `first` on.
#[test]
fn child_that_reads_runs() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let first: usize = fs::read_to_string(dir.join("first")).unwrap().parse().unwrap();
    let expected = values::run();
    for n in first.. {
        let path = dir.join(format!("{n}.h5"));
        if !path.exists() {
            break;
        }
        println!("\nread {n}");
        let verdict = match std::panic::catch_unwind(|| run_h5::read_run(&path)) {
            Err(_) => "panicked".to_owned(),
            Ok(Err(e)) if e.to_string().contains(".h5") => "refused".to_owned(),
            Ok(Err(e)) => format!("unnamed {e}"),
            // A time is outside the content digest, and so are host and machine: all else must be equal.
            Ok(Ok(run)) if run == expected => "same".to_owned(),
            Ok(Ok(run)) => format!("other {run:?}"),
        };
        println!("\nverdict {n} {verdict}");
    }
    println!("\nall read");
}

#[test]
fn a_damaged_run_is_refused_or_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(golden().join("run/run.h5")).unwrap();
    let mut count = 0;
    // A fixed walk over the file: cuts, and single bits.
    for (n, bytes) in (0..bytes.len()).step_by(97).map(|n| bytes[..n].to_vec()).chain(flips(&bytes, 400)).enumerate() {
        fs::write(dir.path().join(format!("{n}.h5")), bytes).unwrap();
        count = n + 1;
    }
    let (mut first, mut faults) = (0, Vec::new());
    let (mut refused, mut same) = (0, 0);
    while first < count {
        files::write_atomic(&dir.path().join("first"), first.to_string().as_bytes()).unwrap();
        let (lines, ended) = run_child(dir.path());
        for line in &lines {
            if let Some(rest) = line.strip_prefix("verdict ") {
                let (n, verdict) = rest.split_once(' ').unwrap();
                match verdict {
                    "refused" => refused += 1,
                    "same" => same += 1,
                    other => panic!("mutation {n}: {other}"),
                }
                first = n.parse::<usize>().unwrap() + 1;
            }
        }
        if !lines.iter().any(|l| l == "all read") {
            faults.push(format!("{first}: {ended}"));
            first += 1;
        }
    }
    assert!(refused > count / 2, "{refused} of {count} refused, {same} read");
    // libhdf5's own faults, which is why results from elsewhere are read after their digest, or in a child.
    assert!(faults.len() <= 8, "libhdf5 faulted or hung on {} of {count}: {faults:?}", faults.len());
}

/// `n` copies with one bit flipped, at places spread over the whole file.
fn flips(bytes: &[u8], n: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..n).map(move |i| {
        let mut changed = bytes.to_vec();
        // 2654435761 is odd, so that places do not repeat early.
        changed[i * 2_654_435_761 % bytes.len()] ^= 1 << (i % 8);
        changed
    })
}

/// Lines of a child over the rest of `dir`, and how it ended.
fn run_child(dir: &Path) -> (Vec<String>, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "formats::damage::child_that_reads_runs", "--nocapture", "--test-threads=1"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| drop(send.send(line))));
    let mut lines = Vec::new();
    let mut heard = Instant::now();
    loop {
        match receive.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                lines.push(line);
                heard = Instant::now();
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                return (lines, child.wait().unwrap().to_string());
            }
            Err(_) if heard.elapsed() > Duration::from_secs(20) => {
                child.kill().unwrap();
                return (lines, format!("hung, {}", child.wait().unwrap()));
            }
            Err(_) => {}
        }
    }
}
