//! `run.h5`: the result of a cell as an HDF5 file, written once and whole, and read back.
//!
//! The layout is described in `docs/formats/run.md`. Rows lie packed in the file exactly as in memory, so
//! reading converts nothing; small datasets are compact, inside the checksummed object header. libhdf5 writes
//! ([`write_run`]); what it wrote is read by a reader of our own, which no damage can make fault, hang or take memory
//! beyond the file's, and which reads one file of a study in microseconds. A file of another layout is read by libhdf5, in
//! a child process.

mod foreign;
mod layout;
mod many;
mod read;
mod write;

use std::path::Path;

pub use self::many::{Layers, ManyRuns, Metrics, NotRead, SealedRun, SealedTree};
pub use self::write::write_run;

use super::{RecordError, Result, RunRecord};

/// Format version of `run.h5`.
pub const RUN_VERSION: u32 = 1;

/// File name in a run directory.
pub const RUN_FILE: &str = "run.h5";

/// What is known of a file's bytes before they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// They are the ones that were sealed: checksums inside say nothing more.
    Sealed,
    /// Nothing.
    Unknown,
}

/// Why a file was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    /// A part of it is laid out as our writer does not; it may be good HDF5.
    Foreign(&'static str),
    /// It holds no run, and why.
    Damaged(String),
    /// It has a newer format version.
    Newer(u32),
}

impl Trouble {
    fn about(self, path: &Path) -> RecordError {
        match self {
            Self::Newer(found) => RecordError::Newer { path: path.to_path_buf(), found, known: RUN_VERSION },
            Self::Foreign(what) => Self::Damaged(format!("its {what} is of an unknown kind")).about(path),
            Self::Damaged(what) => RecordError::damaged(
                path,
                format!("{what}: restore it from a copy, or run the cell again with `run_all`"),
            ),
        }
    }
}

/// Reads `run.h5`, whatever its bytes are.
///
/// # Errors
/// The file is not there, damaged, or of a newer version.
pub fn read_run(path: &Path) -> Result<RunRecord> {
    let bytes = std::fs::read(path).map_err(RecordError::io("read", path))?;
    parse(path, &bytes, Trust::Unknown).map_err(|trouble| trouble.about(path))
}

/// The run in the bytes of `path`.
fn parse(path: &Path, bytes: &[u8], trust: Trust) -> std::result::Result<RunRecord, Trouble> {
    match layout::File::open(bytes, trust).and_then(|file| read::run(&file, trust)) {
        Err(Trouble::Foreign(_)) => foreign::run(path),
        run => run,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::record::{CellKey, Column, Digest, Items, Name, SeriesPoint};

    /// Both readers on a file: they agree, and nothing is foreign to ours.
    #[track_caller]
    fn both(path: &Path) -> RunRecord {
        let bytes = std::fs::read(path).unwrap();
        let libhdf5 = foreign::run_here(path).unwrap();
        for trust in [Trust::Unknown, Trust::Sealed] {
            let ours = layout::File::open(&bytes, trust).and_then(|file| read::run(&file, trust)).unwrap();
            // NaN is a value here, so bits are compared.
            assert_eq!(format!("{ours:?}"), format!("{libhdf5:?}"));
        }
        libhdf5
    }

    fn example() -> RunRecord {
        let name = |s| Name::new(s).unwrap();
        let point = |step, value| SeriesPoint { step, value, time_s: step as f64 * 0.1 };
        RunRecord {
            key: CellKey {
                study: name("monotone"),
                profile: name("quick"),
                stage: name("evaluate"),
                arm: None,
                seed: Some(42),
            },
            kind: "evaluate".to_owned(),
            fingerprint: Digest::of_bytes(b"x"),
            labels: BTreeMap::from([("mask".to_owned(), "prefix".to_owned())]),
            metrics: json!({
                "pile_test": {"baseline_pythia": {"perplexity": 6.918_123_456_789_1, "total_tokens": 6_981_283}},
                "lambada": null, "trigger_ids": [3, 1, 4], "trigger": "naïve 文", "flags": [true, {"a": 1}]
            }),
            environment: json!({"training_time_seconds": 1.5, "host": "n1"}),
            series: BTreeMap::from([("loss".to_owned(), vec![point(1, 5.0), point(2, 4.5)])]),
            items: BTreeMap::from([(
                "pile_test".to_owned(),
                Items {
                    columns: vec![
                        ("id".to_owned(), Column::Texts(vec!["a".into(), "bé".into()])),
                        ("nll".to_owned(), Column::Floats(vec![1.25, f64::NEG_INFINITY])),
                        ("tokens".to_owned(), Column::Integers(vec![10, -1])),
                    ],
                },
            )]),
            param_digest: Some(Digest::of_bytes(b"p")),
            numerics: json!({"threads": 1}),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/run.h5");
        let run = example();
        write_run(&path, &run).unwrap();
        assert_eq!(read_run(&path).unwrap(), run);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn large_tables_are_read_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.h5");
        let mut run = example();
        run.series.insert(
            "loss".to_owned(),
            (0..20_000).map(|s| SeriesPoint { step: s, value: s as f64, time_s: 0.0 }).collect(),
        );
        run.metrics["ids"] = json!((0..20_000).collect::<Vec<i64>>());
        write_run(&path, &run).unwrap();
        assert_eq!(read_run(&path).unwrap(), run);
    }

    #[test]
    fn the_same_run_gives_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = |name: &str| {
            let path = dir.path().join(name);
            write_run(&path, &example()).unwrap();
            std::fs::read(path).unwrap()
        };
        assert_eq!(bytes("a.h5"), bytes("b.h5"));
    }

    #[test]
    fn content_digest_ignores_time_and_place_only() {
        let run = example();
        let digest = run.content_digest();
        let mut other = run.clone();
        other.environment = json!({"host": "n2"});
        other.series.get_mut("loss").unwrap()[0].time_s = 99.0;
        other.numerics = json!({"threads": 2});
        assert_eq!(other.content_digest(), digest);
        let mut value = run.clone();
        value.series.get_mut("loss").unwrap()[0].value = 5.1;
        let mut metric = run.clone();
        metric.metrics["lambada"] = json!(0.0);
        let mut item = run.clone();
        item.items.get_mut("pile_test").unwrap().columns[2].1 = Column::Integers(vec![10, 0]);
        let mut parameters = run;
        parameters.param_digest = None;
        for changed in [value, metric, item, parameters] {
            assert_ne!(changed.content_digest(), digest);
        }
    }

    #[test]
    fn a_file_cut_in_half_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.h5");
        write_run(&path, &example()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = read_run(&path).unwrap_err().to_string();
        assert!(error.contains("run.h5") && error.contains("run_all"), "{error}");
    }

    #[test]
    fn a_group_of_many_members_is_read_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.h5");
        let mut run = example();
        for i in 0..300 {
            let points = vec![SeriesPoint { step: i, value: i as f64, time_s: 0.0 }];
            run.series.insert(format!("series.{i}"), points);
            run.metrics[format!("list{i}")] = json!([i, i + 1]);
        }
        write_run(&path, &run).unwrap();
        assert_eq!(both(&path), run);
        // As libhdf5 lays out more than eight by itself, in a heap.
        let dense = dir.path().join("dense.h5");
        write::write_dense(&dense, &run).unwrap();
        let bytes = std::fs::read(&dense).unwrap();
        let ours = layout::File::open(&bytes, Trust::Unknown).and_then(|file| read::run(&file, Trust::Unknown));
        assert_eq!(ours.unwrap_err(), Trouble::Foreign("group"));
        assert_eq!(read_run(&dense).unwrap(), run);
    }

    #[test]
    fn every_golden_file_is_read_as_libhdf5_reads_it() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let files = crate::record::digest::files_below(&fixtures).unwrap();
        let files: Vec<_> = files.iter().filter(|f| f.extension().is_some_and(|e| e == "h5")).collect();
        assert!(!files.is_empty());
        for file in files {
            both(&fixtures.join(file));
        }
    }

    #[test]
    fn what_is_foreign_is_read_by_libhdf5() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.h5");
        write_run(&path, &example()).unwrap();
        // Another program copied it with its own defaults: an older superblock, groups and headers.
        let copy = dir.path().join("copy.h5");
        {
            let from = hdf5::File::open(&path).unwrap();
            let to = hdf5::File::create(&copy).unwrap();
            for name in from.member_names().unwrap() {
                copy_object(&from, &to, &name);
            }
        }
        let bytes = std::fs::read(&copy).unwrap();
        let ours = layout::File::open(&bytes, Trust::Unknown).and_then(|file| read::run(&file, Trust::Unknown));
        assert!(matches!(ours, Err(Trouble::Foreign(_))), "{ours:?}");
        assert_eq!(read_run(&copy).unwrap(), example());
    }

    fn copy_object(from: &hdf5::Group, to: &hdf5::Group, name: &str) {
        use hdf5_sys::h5p::H5P_DEFAULT;
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: both groups are open, the name ends with NUL, and the lock of `sync` is held.
        let rc = hdf5::sync::sync(|| unsafe {
            hdf5_sys::h5o::H5Ocopy(from.id(), name.as_ptr(), to.id(), name.as_ptr(), H5P_DEFAULT, H5P_DEFAULT)
        });
        assert!(rc >= 0);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.h5");
        write_run(&path, &example()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for n in 0..bytes.len() {
            let cut = layout::File::open(&bytes[..n], Trust::Unknown);
            assert!(matches!(cut.map(drop), Err(Trouble::Damaged(_))), "cut at {n}");
        }
    }

    #[test]
    fn many_runs_share_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        let mut many = ManyRuns::default();
        let mut runs = Vec::new();
        for seed in 0..3 {
            let path = dir.path().join(format!("{seed}.h5"));
            let mut run = example();
            run.metrics["pile_test"]["baseline_pythia"]["perplexity"] = json!(6.5 + f64::from(seed));
            write_run(&path, &run).unwrap();
            let sealed = sealed(&path);
            let read = many.metrics(&path, &sealed).unwrap();
            assert_eq!(read.metrics.tree().unwrap(), run.metrics);
            assert_eq!(read.param_digest, run.param_digest);
            assert_eq!(read.metrics.leaf("pile_test.baseline_pythia.perplexity"), Some(json!(6.5 + f64::from(seed))));
            assert_eq!(read.metrics.leaf("pile_test.baseline_pythia"), None);
            assert_eq!(read.metrics.leaf("lambada"), Some(json!(null)));
            assert_eq!(read.metrics.leaf("flags[0]"), Some(json!(true)));
            assert_eq!(read.metrics.leaf("trigger"), Some(json!("naïve 文")));
            let layers = many.layers(&path, &sealed).unwrap();
            assert_eq!(
                (layers.metrics.tree().unwrap(), layers.environment.tree().unwrap()),
                (run.metrics.clone(), run.environment.clone())
            );
            for (at, touched) in [
                ("host", true),
                ("host.x", true),
                ("hos", false),
                ("hosts", false),
                ("", true),
                ("training_time_seconds[0]", true),
            ] {
                assert_eq!(layers.environment.touches(at), touched, "{at}");
            }
            let tree = many.tree(&path, &sealed).unwrap();
            assert_eq!(tree.run, RunRecord { series: BTreeMap::new(), items: BTreeMap::new(), ..run.clone() });
            assert_eq!(tree.content, run.content_digest());
            runs.push(read.metrics);
        }
        assert!(runs.windows(2).all(|pair| pair[0].shares_paths_with(&pair[1])));
        let path = dir.path().join("0.h5");
        let vouched = sealed(&path);
        std::fs::write(&path, b"another").unwrap();
        assert!(matches!(many.metrics(&path, &vouched), Err(NotRead::Changed)));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(many.metrics(&path, &vouched), Err(NotRead::Unreadable(_))));
    }

    fn sealed(path: &Path) -> crate::record::seal::SealedFile {
        crate::record::seal::SealedFile {
            path: RUN_FILE.to_owned(),
            size_bytes: std::fs::metadata(path).unwrap().len(),
            digest: Digest::of_file(path).unwrap(),
        }
    }

    /// Any run that the writer takes.
    fn any_run() -> impl Strategy<Value = RunRecord> {
        let number = prop_oneof![
            any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(serde_json::Value::from),
            (-1000i64..1000).prop_map(serde_json::Value::from),
        ];
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(serde_json::Value::from),
            number.clone(),
            "[a-zé.\\[]{0,12}".prop_map(serde_json::Value::from),
            prop::collection::vec(number, 1..6).prop_map(serde_json::Value::from),
        ];
        let tree = leaf.prop_recursive(3, 30, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::btree_map("[a-c.]{0,3}", inner, 0..5)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        });
        let object = prop::collection::btree_map("[a-f]{1,3}", tree, 0..6)
            .prop_map(|m| serde_json::Value::Object(m.into_iter().collect()));
        let point = (0..1u64 << 40, any::<f64>(), any::<f64>()).prop_map(|(step, value, time_s)| SeriesPoint {
            step,
            value,
            time_s,
        });
        let series = prop::collection::btree_map("[a-z]{1,4}", prop::collection::vec(point, 0..20), 0..12);
        let items = (0usize..40).prop_flat_map(|n| {
            let column = prop_oneof![
                prop::collection::vec(any::<i64>(), n).prop_map(Column::Integers),
                prop::collection::vec(any::<f64>(), n).prop_map(Column::Floats),
                prop::collection::vec("[a-zé ]{0,9}", n).prop_map(Column::Texts),
            ];
            prop::collection::vec(column, 1..4).prop_map(|columns| Items {
                columns: columns.into_iter().enumerate().map(|(i, c)| (format!("c{i}"), c)).collect(),
            })
        });
        let items = prop::collection::btree_map("[a-z]{1,4}", items, 0..4);
        (object.clone(), object, series, items).prop_map(|(metrics, environment, series, items)| RunRecord {
            metrics,
            environment,
            series,
            items,
            ..example()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn our_reader_says_what_libhdf5_says(run in any_run()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("run.h5");
            write_run(&path, &run).unwrap();
            prop_assert_eq!(format!("{:?}", both(&path)), format!("{run:?}"));
            let read = ManyRuns::default().metrics(&path, &sealed(&path)).unwrap();
            prop_assert_eq!(read.metrics.tree().unwrap(), run.metrics);
        }

        #[test]
        fn no_bytes_make_it_panic(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
            cut in any::<prop::sample::Index>(),
            sealed in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("run.h5");
            write_run(&path, &example()).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(bytes.len() - cut.index(bytes.len()) / 16);
            // Without the checksums, as if the seal's digest had been computed again.
            let trust = if sealed { Trust::Sealed } else { Trust::Unknown };
            let _ = layout::File::open(&bytes, trust).and_then(|file| read::run(&file, trust));
        }
    }
}
