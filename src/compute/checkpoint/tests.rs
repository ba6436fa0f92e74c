//! Savers as ranks, on threads: no messages are involved.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::saver::Snapshot;
use super::*;
use crate::compute::model::{Constraint, GroupLayout, Layout, Role, Span};
use crate::record::Digest;

/// Two groups, the second one larger than a chunk for one rank.
fn layout() -> Layout {
    let group = |name: &str, rows: usize| GroupLayout {
        name: name.into(),
        spans: vec![Span {
            name: format!("{name}.weight"),
            shape: vec![rows as i64, 1024],
            offset: 0,
            len: rows * 1024,
            role: Role::Embedding,
            constraint: Constraint::Dense,
        }],
        len: (rows * 1024).next_multiple_of(4 * 4096),
    };
    Layout { groups: vec![group("embed", 13), group("head", 1601)], lanes: 4 }
}

const KINDS: [Kind; 3] = [Kind::Weights, Kind::FirstMoment, Kind::SecondMoment];

/// The whole of a group's numbers at a step: every place, kind and step has its own.
fn numbers(group: usize, kind: Kind, step: u64, len: usize) -> Vec<f32> {
    let salt = (group * 3 + kind as usize) as u64 * 1000 + step;
    (0..len as u64).map(|i| ((i * 2_654_435_761 + salt * 97) % 1_000_003) as f32 * 1e-3 - 400.0).collect()
}

struct Run {
    dir: PathBuf,
    attempt: u32,
    retention: Retention,
    superseded: Arc<AtomicBool>,
    patience: Duration,
}

impl Run {
    fn new(dir: &Path) -> Self {
        Self {
            dir: dir.join("checkpoints"),
            attempt: 1,
            retention: Retention { last: 2, every_steps: 0 },
            superseded: Arc::default(),
            patience: Duration::from_secs(20),
        }
    }

    fn place(&self, rank: usize, ranks: usize) -> Place {
        Place {
            dir: self.dir.clone(),
            rank,
            ranks,
            attempt: self.attempt,
            fingerprint: Digest::of_bytes(b"cell"),
            patience: self.patience,
        }
    }

    fn saver(&self, rank: usize, ranks: usize) -> Saver {
        let flag = Arc::clone(&self.superseded);
        let superseded: Superseded = Arc::new(move || flag.load(Ordering::Relaxed));
        Saver::new(self.place(rank, ranks), &layout(), &[], self.retention, superseded)
    }

    /// Saves on `ranks` ranks at once; `spoil` may change the numbers.
    fn save_as(
        &self,
        ranks: usize,
        step: u64,
        needs: &[&str],
        spoil: impl Fn(usize, &mut [f32]),
    ) -> Vec<Result<Outcome>> {
        let mut savers: Vec<Saver> = (0..ranks).map(|rank| self.saver(rank, ranks)).collect();
        for (rank, saver) in savers.iter_mut().enumerate() {
            begin(saver, rank, ranks, step, needs, &spoil);
        }
        // Rank 0 last: the others must be able to wait for it, and it for them.
        savers.iter_mut().map(|s| s.wait().map(|o| o.expect("one was begun"))).collect()
    }

    fn save(&self, step: u64) -> Outcome {
        self.save_as(1, step, &[], |_, _| ()).remove(0).unwrap()
    }

    fn names(&self) -> Vec<String> {
        list(&self.dir).unwrap()
    }

    fn find(&self) -> Found {
        find(&self.dir, &Digest::of_bytes(b"cell")).unwrap()
    }
}

fn begin(saver: &mut Saver, rank: usize, ranks: usize, step: u64, needs: &[&str], spoil: &impl Fn(usize, &mut [f32])) {
    let layout = layout();
    let mut all = Vec::new();
    for (group, g) in layout.groups.iter().enumerate() {
        for kind in KINDS {
            let len = g.len / ranks;
            let mut mine = numbers(group, kind, step, g.len)[rank * len..(rank + 1) * len].to_vec();
            spoil(rank, &mut mine);
            all.push((group, kind, rank * len, mine));
        }
    }
    let pieces =
        all.iter().map(|(group, kind, first, values)| Piece { group: *group, kind: *kind, first: *first, values });
    saver
        .begin(Snapshot {
            step,
            state: json!({"step": step}),
            numerics: json!({"threads": 1}),
            needs: needs.iter().map(|n| (*n).to_owned()).collect(),
            pieces: pieces.collect(),
        })
        .unwrap();
}

fn check_numbers(checkpoint: &Checkpoint, ranks: usize, step: u64) {
    assert_eq!(checkpoint.manifest.state, json!({"step": step}));
    checkpoint.check_layout(&layout()).unwrap();
    for (group, g) in layout().groups.iter().enumerate() {
        for kind in KINDS {
            let expected = numbers(group, kind, step, g.len);
            let len = g.len / ranks;
            for rank in 0..ranks {
                let mut mine = vec![0f32; len];
                checkpoint.read(kind, group, rank * len, &mut mine).unwrap();
                assert!(
                    mine == expected[rank * len..(rank + 1) * len],
                    "group {group} {kind:?} rank {rank} of {ranks}"
                );
            }
        }
    }
}

#[test]
fn any_number_of_ranks_reads_what_any_number_wrote() {
    for ranks in [1, 2, 4] {
        let dir = tempfile::tempdir().unwrap();
        let run = Run::new(dir.path());
        let saved = Outcome::Saved { step: 7, name: "step-00000007-attempt-1".into() };
        for outcome in run.save_as(ranks, 7, &[], |_, _| ()) {
            assert_eq!(outcome.unwrap(), saved);
        }
        let found = run.find();
        assert!(found.refused.is_empty(), "{:?}", found.refused);
        let checkpoint = found.checkpoint.unwrap();
        for readers in [1, 2, 4] {
            check_numbers(&checkpoint, readers, 7);
        }
        // Shards, manifest, and nothing that the commit left.
        let files = entries(&checkpoint.dir).unwrap();
        assert_eq!(files.len(), ranks + 1, "{files:?}");
    }
}

#[test]
fn what_is_not_finite_is_not_sealed_and_removes_nothing() {
    for ranks in [1, 2] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let dir = tempfile::tempdir().unwrap();
            let mut run = Run::new(dir.path());
            run.retention.last = 1;
            run.save(1);
            let outcomes = run.save_as(ranks, 2, &[], |rank, values| {
                if rank == ranks - 1 {
                    values[4097] = bad;
                }
            });
            for outcome in outcomes {
                assert_eq!(outcome.unwrap(), Outcome::NotSaved { step: 2, trouble: Trouble::NotFinite });
            }
            assert_eq!(run.names(), ["step-00000001-attempt-1"]);
            check_numbers(&run.find().checkpoint.unwrap(), 1, 1);
        }
    }
}

#[test]
fn the_last_the_best_and_every_nth_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new(dir.path());
    run.retention = Retention { last: 2, every_steps: 4 };
    let mut saver = run.saver(0, 1);
    for step in 1..=9 {
        let needs: &[&str] = if step > 3 { &["step-00000003-attempt-1"] } else { &[] };
        begin(&mut saver, 0, 1, step, needs, &|_, _| ());
        assert!(matches!(saver.wait().unwrap(), Some(Outcome::Saved { .. })));
        // Files that were written over give what was written last.
        check_numbers(&run.find().checkpoint.unwrap(), 1, step);
    }
    let steps: Vec<u64> = run.names().iter().map(|n| parse_name(n).unwrap().0).collect();
    assert_eq!(steps, [3, 4, 8, 9]);
    let spares = || entries(&run.dir).unwrap().iter().filter(|n| n.starts_with('.')).count();
    assert_eq!(spares(), 1);
    saver.finish().unwrap();
    assert_eq!(spares(), 0);
    for name in run.names() {
        Checkpoint::open(&run.dir.join(name)).unwrap().verify().unwrap();
    }
}

#[test]
fn damage_anywhere_is_refused_by_name_and_the_one_before_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::new(dir.path());
    let saver = || -> Vec<_> { run.save_as(2, 2, &[], |_, _| ()).into_iter().map(Result::unwrap).collect() };
    run.save(1);
    let mut seed = 12345u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for file in ["shard-0000-of-0002.bin", "shard-0001-of-0002.bin", MANIFEST_FILE] {
        for damage in ["cut", "flip", "flip", "flip", "longer", "missing"] {
            let path = run.dir.join("step-00000002-attempt-1").join(file);
            let _ = std::fs::remove_dir_all(path.parent().unwrap());
            saver();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = random(bytes.len() as u64) as usize;
            match damage {
                "cut" => bytes.truncate(at),
                "flip" => bytes[at] ^= 1 << random(8),
                "longer" => bytes.extend(*b"}   "),
                _ => {}
            }
            std::fs::write(&path, bytes).unwrap();
            if damage == "missing" {
                std::fs::remove_file(&path).unwrap();
            }
            let found = run.find();
            if file == MANIFEST_FILE && found.checkpoint.as_ref().is_some_and(|c| c.manifest.step == 2) {
                // A flip in white space changes nothing that is said.
                check_numbers(&found.checkpoint.unwrap(), 1, 2);
                continue;
            }
            assert_eq!(found.refused.len(), 1, "{damage} at {at} of {file}");
            assert!(found.refused[0].contains("step-00000002-attempt-1"), "{:?}", found.refused);
            assert!(damage == "missing" || found.refused[0].contains(file), "{:?}", found.refused);
            let checkpoint = found.checkpoint.unwrap();
            assert_eq!(checkpoint.manifest.step, 1, "{damage} at {at} of {file}");
            check_numbers(&checkpoint, 2, 1);
        }
    }
}

#[test]
fn a_rank_that_writes_nothing_costs_the_save_and_not_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new(dir.path());
    run.save(1);
    run.patience = Duration::from_millis(300);
    let mut savers: Vec<Saver> = (0..3).map(|rank| run.saver(rank, 3)).collect();
    begin(&mut savers[0], 0, 3, 2, &[], &|_, _| ());
    begin(&mut savers[1], 1, 3, 2, &[], &|_, _| ());
    for saver in &mut savers[..2] {
        let Some(Outcome::NotSaved { step: 2, trouble: Trouble::Failed(text) }) = saver.wait().unwrap() else {
            panic!("a shard is missing")
        };
        assert!(text.contains("rank 2") && text.contains("look for its message"), "{text}");
    }
    assert_eq!(run.names(), ["step-00000001-attempt-1"]);
    // The third comes when the others have given up.
    begin(&mut savers[2], 2, 3, 2, &[], &|_, _| ());
    assert!(matches!(savers[2].wait().unwrap(), Some(Outcome::NotSaved { .. })));
    assert_eq!(run.find().checkpoint.unwrap().manifest.step, 1);
    // The next save finds what it left, and works.
    run.patience = Duration::from_secs(20);
    assert!(run.save_as(3, 3, &[], |_, _| ()).iter().all(|o| matches!(o, Ok(Outcome::Saved { .. }))));
    assert_eq!(run.names(), ["step-00000001-attempt-1", "step-00000003-attempt-1"]);
}

#[test]
fn a_superseded_writer_commits_and_removes_nothing() {
    for ranks in [1, 2] {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Run::new(dir.path());
        run.retention.last = 1;
        run.save(1);
        run.superseded.store(true, Ordering::Relaxed);
        for outcome in run.save_as(ranks, 2, &[], |_, _| ()) {
            assert!(matches!(outcome, Err(ComputeError::Superseded)), "{outcome:?}");
        }
        assert_eq!(run.find().checkpoint.unwrap().manifest.step, 1);
        assert!(!run.dir.join("step-00000002-attempt-1").join(MANIFEST_FILE).exists());
    }
}

#[test]
fn what_another_rank_has_begun_meanwhile_stays() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::new(dir.path());
    run.save(1);
    let shard = |step: u64, attempt: u32| run.dir.join(name(step, attempt)).join("shard-0001-of-0002.bin");
    // A rank that saw the seal of step 3 writes step 4; the beginning of step 2 nobody will end.
    for (step, attempt) in [(2, 1), (4, 1)] {
        std::fs::create_dir_all(shard(step, attempt).parent().unwrap()).unwrap();
        std::fs::write(shard(step, attempt), b"numbers").unwrap();
    }
    run.save(3);
    assert!(shard(4, 1).exists() && !shard(2, 1).exists(), "{:?}", run.names());
}

#[test]
fn what_a_newer_attempt_or_another_cell_wrote_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new(dir.path());
    run.retention.last = 1;
    run.attempt = 2;
    run.save(5);
    run.attempt = 1;
    run.save(3);
    run.save(4);
    // The one that counts is not ours; what we sealed just now stays too, and what we wrote before goes.
    assert_eq!(run.names(), ["step-00000004-attempt-1", "step-00000005-attempt-2"]);
    let manifest = run.dir.join("step-00000009-attempt-1");
    std::fs::create_dir_all(&manifest).unwrap();
    let mut other = run.find().checkpoint.unwrap().manifest;
    other.fingerprint = Digest::of_bytes(b"another cell");
    crate::record::files::write_json(&manifest.join(MANIFEST_FILE), &other.sealed()).unwrap();
    run.attempt = 2;
    run.save(6);
    assert_eq!(run.names(), ["step-00000006-attempt-2", "step-00000009-attempt-1"]);
}

/// A damaged one of a later step does not push out what was written since.
#[test]
fn what_was_refused_does_not_count_as_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = Run::new(dir.path());
    run.retention.last = 1;
    run.save(4);
    let name = name(9, 1);
    std::fs::create_dir_all(run.dir.join(&name)).unwrap();
    std::fs::write(run.dir.join(&name).join(MANIFEST_FILE), "{").unwrap();
    run.attempt = 2;
    for step in [5, 6] {
        run.save(step);
        check_numbers(&run.find().checkpoint.unwrap(), 1, step);
    }
    assert_eq!(run.names(), ["step-00000006-attempt-2"]);
}

/// As version 1 wrote it: one digest a file, no types; and numbers of half the width.
#[test]
fn older_manifests_and_half_numbers_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("step-00000003-attempt-1");
    std::fs::create_dir_all(&path).unwrap();
    let values: Vec<f32> = (0..4096).map(|i| i as f32 - 7.5).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(path.join("shard-0000-of-0001.bin"), &bytes).unwrap();
    let mut manifest = json!({
        "version": 1, "fingerprint": Digest::of_bytes(b"cell"), "attempt": 1, "step": 3, "state": {}, "numerics": {},
        "needs": [],
        "groups": [{"name": "embed", "len": 4096,
            "spans": [{"name": "w", "dtype": "F32", "shape": [4096], "offset": 0}]}],
        "shards": [{"file": "shard-0000-of-0001.bin", "bytes": bytes.len(), "digest": Digest::of_bytes(&bytes),
            "parts": [{"group": 0, "kind": "weights", "first": 0, "len": 4096, "at": 0}]}],
    });
    let seal = |manifest: &mut serde_json::Value| {
        manifest.as_object_mut().unwrap().remove("digest");
        manifest["digest"] = json!(Digest::of_json(manifest));
        std::fs::write(path.join(MANIFEST_FILE), manifest.to_string()).unwrap();
    };
    seal(&mut manifest);
    let mut read = vec![0f32; 100];
    let open = || find(dir.path(), &Digest::of_bytes(b"cell")).unwrap();
    open().checkpoint.unwrap().read(Kind::Weights, 0, 50, &mut read).unwrap();
    assert_eq!(read, values[50..150]);
    let mut damaged = bytes.clone();
    damaged[777] ^= 4;
    std::fs::write(path.join("shard-0000-of-0001.bin"), &damaged).unwrap();
    let found = open();
    assert!(found.checkpoint.is_none() && found.refused[0].contains("shard-0000-of-0001.bin"), "{:?}", found.refused);

    // The upper half of an fp32 number is a bf16 number: whole numbers below 256 keep their value.
    let halves: Vec<u8> = (0..4096u32).flat_map(|i| ((i % 256) as f32).to_le_bytes()[2..].to_vec()).collect();
    std::fs::write(path.join("shard-0000-of-0001.bin"), &halves).unwrap();
    manifest["version"] = json!(2);
    manifest["shards"][0] = json!({"file": "shard-0000-of-0001.bin", "bytes": halves.len(),
        "blake3": [shard::digest(&halves)],
        "parts": [{"group": 0, "kind": "weights", "dtype": "BF16", "first": 0, "len": 4096, "at": 0}]});
    seal(&mut manifest);
    open().checkpoint.unwrap().read(Kind::Weights, 0, 200, &mut read).unwrap();
    assert!(read.iter().enumerate().all(|(i, &x)| x == ((200 + i) % 256) as f32));

    manifest["version"] = json!(4);
    seal(&mut manifest);
    let found = open();
    assert!(found.refused[0].contains("version 4") && found.refused[0].contains(MANIFEST_FILE), "{:?}", found.refused);
    // Ranges outside of the file never reach the reader.
    manifest["version"] = json!(2);
    manifest["shards"][0]["parts"][0]["at"] = json!(8);
    seal(&mut manifest);
    assert!(open().refused[0].contains("outside its files"));

    // Means of second moments: a matrix has as many as rows and columns, whatever the group's length.
    manifest["version"] = json!(3);
    manifest["groups"][0]["spans"] = json!([{"name": "w", "dtype": "F32", "shape": [16, 256], "offset": 0},
        {"name": "b", "dtype": "F32", "shape": [5], "offset": 4096}]);
    for (len, sound) in [(16 + 256 + 5, true), (16 + 256 + 6, false)] {
        manifest["shards"][0]["parts"][0] =
            json!({"group": 0, "kind": "second_moment_means", "dtype": "BF16", "first": 0, "len": len, "at": 0});
        seal(&mut manifest);
        let found = open();
        assert_eq!(found.checkpoint.is_some(), sound, "{len}: {:?}", found.refused);
    }
}

#[test]
fn frozen_groups_are_known_by_their_digest() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run::new(dir.path());
    let frozen = [(0, Digest::of_bytes(b"base"))];
    let mut saver = Saver::new(run.place(0, 1), &layout(), &frozen, run.retention, Arc::new(|| false));
    let adapter = numbers(1, Kind::Weights, 1, layout().groups[1].len);
    let pieces = vec![Piece { group: 1, kind: Kind::Weights, first: 0, values: &adapter }];
    saver.begin(Snapshot { step: 1, state: json!({}), numerics: json!({}), needs: vec![], pieces }).unwrap();
    saver.finish().unwrap();
    let checkpoint = run.find().checkpoint.unwrap();
    checkpoint.check_layout(&layout()).unwrap();
    checkpoint.check_frozen(&frozen).unwrap();
    for other in [vec![], vec![(0, Digest::of_bytes(b"other"))], vec![(1, Digest::of_bytes(b"base"))]] {
        let text = checkpoint.check_frozen(&other).unwrap_err().to_string();
        assert!(text.contains("frozen") && text.contains("`embed`"), "{text}");
    }
    let mut read = vec![0f32; adapter.len()];
    checkpoint.read(Kind::Weights, 1, 0, &mut read).unwrap();
    assert!(read == adapter);
    assert!(checkpoint.read(Kind::Weights, 0, 0, &mut [0.0]).is_err(), "the base is not in the checkpoint");
}
