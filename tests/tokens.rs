//! Tokens on disk: the files of `tests/fixtures/tokens` were written by a program of its own from the format's page,
//! not by Seedbed. Today's reader reads every version to the expected values, today's writer writes the newest one
//! to the byte, and damage is refused by name or reads the same; it never panics.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use seedbed::compute::data::tokens::{TokensHeader, write, write_supervised};
use seedbed::compute::data::{Item, Objective, Packing, Reading, Samples, SourceDigest, SpecialIds, Tokens};
use seedbed::record::Digest;
use serde_json::Value;

use crate::support::repository;

fn golden(version: &str) -> PathBuf {
    repository().join("tests/fixtures/tokens").join(version)
}

/// Everything that can be asked.
fn content(tokens: &Tokens) -> (String, u32, SpecialIds, Vec<Vec<u32>>, Vec<u64>) {
    let info = tokens.info();
    let documents = (0..tokens.documents()).map(|i| tokens.ids(tokens.document(i))).collect();
    let prompts = (0..tokens.documents()).map(|i| tokens.prompt(i)).collect();
    (info.split.clone(), info.vocab_size, info.special, documents, prompts)
}

#[test]
fn every_version_is_read_to_the_expected_values() {
    let v1 = Tokens::open(&golden("v1")).unwrap();
    let special = SpecialIds { eos: 0, bos: None, pad: Some(1) };
    let documents = vec![vec![5, 511, 7, 0], vec![0], vec![258, 0]];
    assert_eq!(content(&v1), ("train".into(), 512, special, documents, vec![0, 0, 0]));
    assert!(!v1.has_prompts() && v1.info().sources[0].name == "corpus/é.txt");
    let v2 = Tokens::open(&golden("v2")).unwrap();
    let special = SpecialIds { eos: 0, bos: Some(1), pad: Some(2) };
    let documents = vec![vec![5, 69_999, 7, 8, 0], vec![0], vec![65_536, 2, 0]];
    assert_eq!(content(&v2), ("val".into(), 70_000, special, documents, vec![3, 0, 1]));
    assert!(v2.has_prompts() && v2.info().tokenizer == Digest::of_bytes(b"a tokenizer"));
}

#[test]
fn the_newest_version_is_written_to_the_byte() {
    let source = SourceDigest { name: "corpus/é.txt".into(), bytes: 1200, digest: Digest::of_bytes(b"text") };
    let header = TokensHeader {
        split: "val".into(),
        vocab_size: 70_000,
        tokenizer: Digest::of_bytes(b"a tokenizer"),
        special: SpecialIds { eos: 0, bos: Some(1), pad: Some(2) },
        sources: vec![source],
    };
    let item = |ids: &[u32], prompt| Ok(Item { ids: ids.to_vec(), prompt });
    let dir = tempfile::tempdir().unwrap();
    write_supervised(dir.path(), &header, [item(&[5, 69_999, 7, 8], 3), item(&[], 0), item(&[65_536, 2], 1)]).unwrap();
    for file in ["tokens.bin", "docs.idx", "prompts.idx", "tokens.json"] {
        let [ours, theirs] = [dir.path(), &golden("v2")].map(|d| fs::read(d.join(file)).unwrap());
        assert!(ours == theirs, "{file}: {}", String::from_utf8_lossy(&ours));
    }
    // Without prompts there is one file less, and the others are the same.
    let plain = tempfile::tempdir().unwrap();
    write(plain.path(), &header, [Ok(vec![5, 69_999, 7, 8]), Ok(vec![]), Ok(vec![65_536, 2])]).unwrap();
    assert!(!plain.path().join("prompts.idx").exists());
    assert_eq!(content(&Tokens::open(plain.path()).unwrap()).3, content(&Tokens::open(&golden("v2")).unwrap()).3);
}

#[test]
fn every_field_has_a_line_in_its_page() {
    let page = fs::read_to_string(repository().join("docs/formats/tokens.md")).unwrap();
    let json: Value = serde_json::from_slice(&fs::read(golden("v2").join("tokens.json")).unwrap()).unwrap();
    for key in json.as_object().unwrap().keys().chain(json["special"].as_object().unwrap().keys()) {
        assert!(page.contains(&format!("`{key}`")), "docs/formats/tokens.md has no line for {key}");
    }
}

/// Reads all there is, as training does: a file that opens must never make a sample panic.
fn read_all(dir: &Path) -> Result<(), String> {
    let tokens = Arc::new(Tokens::open(dir).map_err(|e| e.to_string())?);
    for packing in [Packing::Stream, Packing::Document, Packing::BestFit] {
        let objective =
            if packing == Packing::Document && tokens.has_prompts() { Objective::Prefix } else { Objective::Causal };
        let reading = Reading { objective, reset_attention: true, reset_positions: true, ..Reading::causal(packing) };
        if let Ok(samples) = Samples::read(tokens.clone(), 2, reading) {
            let batch = samples.batch((0..=samples.len()).map(Some));
            assert!(batch.ids.iter().all(|&id| (id as u32) < tokens.info().vocab_size));
        }
    }
    Ok(())
}

#[test]
fn damage_is_refused_by_name_or_reads_the_same() {
    for (version, files) in [
        ("v1", &["tokens.bin", "docs.idx", "tokens.json"][..]),
        ("v2", &["tokens.bin", "docs.idx", "prompts.idx", "tokens.json"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            fs::copy(golden(version).join(file), dir.path().join(file)).unwrap();
        }
        let expected = content(&Tokens::open(dir.path()).unwrap());
        for file in files {
            let path = dir.path().join(file);
            let bytes = fs::read(&path).unwrap();
            let cuts = (0..bytes.len()).map(|n| bytes[..n].to_vec());
            let longer = [b" ".as_slice(), b"\0", b"}"].map(|end| [&bytes[..], end].concat());
            let flips = (0..bytes.len()).flat_map(|i| {
                [bytes[i] ^ 1, bytes[i] ^ 0x20, bytes[i] ^ 0x80, b'"', b'7', b'}'].map(|to| {
                    let mut changed = bytes.clone();
                    changed[i] = to;
                    changed
                })
            });
            let (mut refused, mut all) = (0, 0);
            for changed in cuts.chain(longer).chain(flips).filter(|changed| *changed != bytes) {
                all += 1;
                // A new file each time: the old one may still be mapped.
                fs::remove_file(&path).unwrap();
                fs::write(&path, &changed).unwrap();
                let what = || format!("{version} {file}: {}", String::from_utf8_lossy(&changed));
                match read_all(dir.path()) {
                    // Of version 1 nothing guards what tokens.json says but its agreement with the other files.
                    Ok(()) if version == "v1" && *file == "tokens.json" => {
                        let found = content(&Tokens::open(dir.path()).unwrap());
                        assert_eq!(found.3, expected.3, "{}", what());
                    }
                    Ok(()) => assert_eq!(content(&Tokens::open(dir.path()).unwrap()), expected, "{}", what()),
                    Err(e) => {
                        refused += 1;
                        // What tokens.json promises and another file does not keep is told of that file.
                        assert!(
                            e.contains(file) || *file == "tokens.json" && e.contains(".idx") || e.contains(".bin"),
                            "{e}"
                        );
                    }
                }
            }
            let least = if version == "v1" && *file == "tokens.json" { all / 2 } else { all - 4 };
            assert!(refused >= least, "{version} {file}: {refused} of {all} refused");
            fs::remove_file(&path).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
    }
}
