//! Rows by hand, and what holds for rows of any documents.

use super::*;
use crate::compute::data::tokens::{Item, SpecialIds, TokensHeader, write, write_supervised};
use crate::record::Digest;
use proptest::prelude::*;

fn header() -> TokensHeader {
    TokensHeader {
        split: "train".into(),
        vocab_size: 100,
        tokenizer: Digest::of_bytes(b"t"),
        special: SpecialIds { eos: 0, bos: None, pad: Some(1) },
        sources: Vec::new(),
    }
}

pub(crate) fn tokens(documents: Vec<Vec<u32>>) -> (tempfile::TempDir, Arc<Tokens>) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &header(), documents.into_iter().map(Ok)).unwrap();
    let tokens = Arc::new(Tokens::open(dir.path()).unwrap());
    (dir, tokens)
}

/// Items as (prompt, response).
fn items(items: &[(Vec<u32>, Vec<u32>)]) -> (tempfile::TempDir, Arc<Tokens>) {
    let dir = tempfile::tempdir().unwrap();
    let items = items.iter().map(|(p, r)| Ok(Item { ids: [&p[..], r].concat(), prompt: p.len() }));
    write_supervised(dir.path(), &header(), items).unwrap();
    let tokens = Arc::new(Tokens::open(dir.path()).unwrap());
    (dir, tokens)
}

fn reading(packing: Packing, objective: Objective) -> Reading {
    Reading { objective, reset_attention: true, reset_positions: true, ..Reading::causal(packing) }
}

const NONE: i64 = IGNORED;

#[test]
fn stream_rows_overlap_by_their_context_only() {
    let (_dir, tokens) = tokens(vec![vec![10, 11, 12], vec![20, 21], vec![30]]);
    // 10 11 12 0 20 21 0 30 0
    let samples = Samples::new(tokens, 4, Packing::Stream).unwrap();
    assert_eq!(samples.len(), 2);
    let (a, b) = (samples.sample(0), samples.sample(1));
    assert_eq!((a.inputs, a.targets), (vec![10, 11, 12, 0], vec![11, 12, 0, 20]));
    assert_eq!((b.inputs, b.targets), (vec![20, 21, 0, 30], vec![21, 0, 30, 0]));
    assert_eq!(b.segments, [0, 0, 0, 1]);
    assert_eq!(b.origins, [4, 5, 6, 7]);
}

#[test]
fn document_rows_never_mix_and_their_filling_has_no_label() {
    let (_dir, tokens) = tokens(vec![vec![10, 11, 12], vec![], vec![30]]);
    // 10 11 12 0 | 0 | 30 0
    let samples = Samples::new(tokens, 2, Packing::Document).unwrap();
    assert_eq!(samples.len(), 3);
    let rows: Vec<_> = (0..3).map(|i| samples.sample(i)).map(|s| (s.inputs, s.targets)).collect();
    assert_eq!(rows[0], (vec![10, 11], vec![11, 12]));
    assert_eq!(rows[1], (vec![12, 0], vec![0, IGNORED]));
    assert_eq!(rows[2], (vec![30, 0], vec![0, IGNORED]));
}

#[test]
fn packed_rows_by_hand() {
    let documents = vec![vec![10, 11, 12], vec![20], vec![], (30..39).collect(), vec![50, 51]];
    let (_dir, tokens) = tokens(documents);
    // Lengths with the end: 4, 2, 1 (predicts nothing), 10 = 6 + 4, 3. Best fit: 6; 4 + 2; 4; the 3 goes to none.
    let samples = Samples::read(tokens, 6, reading(Packing::BestFit, Objective::Causal)).unwrap();
    let rows: Vec<Row> = (0..samples.len()).map(|i| samples.row(i)).collect();
    let ids: Vec<&[i32]> = rows.iter().map(|r| &r.ids[..]).collect();
    assert_eq!(ids, [[10, 11, 12, 0, 20, 0], [30, 31, 32, 33, 34, 35], [36, 37, 38, 0, 1, 1], [50, 51, 0, 1, 1, 1]]);
    let none = IGNORED as i32;
    assert_eq!(rows[0].targets, [11, 12, 0, none, 0, none]);
    assert_eq!(rows[1].targets, [31, 32, 33, 34, 35, 36], "a cut document goes on in another row");
    assert_eq!(rows[2].targets, [37, 38, 0, none, none, none]);
    assert_eq!((&rows[0].segments[..], &rows[0].positions[..]), (&[0, 0, 0, 0, 1, 1][..], &[0, 1, 2, 3, 0, 1][..]));
    assert_eq!((&rows[3].segments[..], &rows[3].positions[..]), (&[0, 0, 0, 1, 1, 1][..], &[0, 1, 2, 0, 1, 2][..]));
    assert!((samples.filling() - 5.0 / 24.0).abs() < 1e-15);
    let batch = samples.batch([Some(2), None]);
    assert_eq!((batch.rows, batch.seq_len, batch.labels()), (2, 6, 3));
    assert_eq!(batch.segments.unwrap(), [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(batch.positions.unwrap(), [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 5]);
    assert_eq!((batch.mask, batch.key_lens, batch.prompt_lens), (Mask::Causal, None, None));
}

#[test]
fn a_stream_resets_where_documents_begin() {
    let (_dir, tokens) = tokens(vec![vec![10, 11, 12], vec![20, 21], vec![30]]);
    // 10 11 12 0 20 | 21 0 30 0
    let samples = Samples::read(tokens, 5, reading(Packing::Stream, Objective::Causal)).unwrap();
    let batch = samples.batch([Some(0), Some(1)]);
    assert_eq!(batch.segments.unwrap(), [0, 0, 0, 0, 1, 0, 0, 1, 1, 2]);
    assert_eq!(batch.positions.unwrap(), [0, 1, 2, 3, 0, 0, 1, 0, 1, 0]);
    // The first token of a document is predicted too, as it is without a reset.
    let none = IGNORED as i32;
    assert_eq!(batch.targets, [11, 12, 0, 20, 21, 0, 30, 0, none, none]);
}

#[test]
fn resets_are_independent_and_cost_nothing_where_they_do_nothing() {
    let (_dir, tokens) = tokens(vec![vec![10, 11, 12], vec![20, 21], vec![30]]);
    for packing in [Packing::Stream, Packing::Document, Packing::BestFit] {
        for (reset_attention, reset_positions) in [(false, false), (false, true), (true, false), (true, true)] {
            let reading = Reading { reset_attention, reset_positions, ..Reading::causal(packing) };
            let batch = Samples::read(tokens.clone(), 4, reading).unwrap().batch([Some(0)]);
            let several = packing != Packing::Document;
            assert_eq!(batch.segments.is_some(), several && reset_attention, "{reading:?}");
            assert_eq!(batch.positions.is_some(), several && reset_positions, "{reading:?}");
        }
    }
}

#[test]
fn responses_and_prefixes_by_hand() {
    let all = [(vec![10, 11], vec![12, 13]), (vec![20, 21, 22, 23, 24], vec![25]), (vec![], vec![30])];
    let (_dir, tokens) = items(&all);
    let read = |packing, objective| Samples::read(tokens.clone(), 4, reading(packing, objective)).unwrap();
    let samples = read(Packing::Document, Objective::Prefix);
    // 10 11 12 13 (0) | 20 21 22 23 24 (nothing to predict: left out), 24 25 0 | 30 0
    let batch = samples.batch((0..samples.len()).map(Some));
    let none = IGNORED as i32;
    assert_eq!(batch.ids, [10, 11, 12, 13, 24, 25, 0, 1, 30, 0, 1, 1]);
    assert_eq!(batch.targets, [none, 12, 13, 0, 25, 0, none, none, 0, none, none, none]);
    assert_eq!(batch.prompt_lens.as_deref(), Some(&[2, 1, 0][..]), "of the second item's prompt one id is left");
    assert_eq!(batch.mask, Mask::Prefix);
    let response = read(Packing::Document, Objective::Response).batch((0..samples.len()).map(Some));
    assert_eq!((&response.ids, &response.targets), (&batch.ids, &batch.targets));
    assert_eq!((response.mask, response.prompt_lens), (Mask::Causal, None));
    // Without an objective of their own prompts are text like any other.
    assert_eq!(read(Packing::Document, Objective::Causal).len(), 4);
    // Packed: 24 25 0 and nothing that fits beside it but the 2 of the last item, which fit not.
    let packed = read(Packing::BestFit, Objective::Response);
    assert_eq!(packed.len(), 3);
}

#[test]
fn what_cannot_be_read_is_refused_with_the_keys() {
    for (packing, objective, named) in [
        (Packing::Stream, Objective::Response, "best_fit"),
        (Packing::Stream, Objective::Prefix, "document"),
        (Packing::BestFit, Objective::Prefix, "document"),
    ] {
        let problem = reading(packing, objective).check().unwrap_err();
        assert!(problem.contains("packing") && problem.contains(named), "{problem}");
    }
    let (_dir, tokens) = tokens(vec![vec![5, 6, 7]]);
    let error = Samples::read(tokens, 2, reading(Packing::Document, Objective::Response)).unwrap_err().to_string();
    assert!(error.contains("no prompts") && error.contains("jsonl_prompt_field"), "{error}");
}

/// What is predicted, as (token predicted, the inputs of its segment before it), over all rows; and checks
/// that each segment is a run of one document at its positions.
fn predictions(samples: &Samples) -> Vec<(i32, Vec<i32>)> {
    let mut all = Vec::new();
    for i in 0..samples.len() {
        let row = samples.row(i);
        assert!(row.filled > 0 && row.filled <= samples.seq_len());
        for (k, &target) in row.targets.iter().enumerate().filter(|&(_, &t)| i64::from(t) != NONE) {
            assert!(k < row.filled);
            let from = row.segments.iter().position(|&s| s == row.segments[k]).unwrap();
            assert_eq!(row.positions[k], (k - from) as i32);
            all.push((target, row.ids[from..=k].to_vec()));
        }
        // Filling is behind everything and shares no segment with it.
        let last = row.segments[row.filled - 1];
        assert!(row.segments[..row.filled].is_sorted() && row.segments[row.filled..].iter().all(|&s| s == last + 1));
    }
    all.sort();
    all
}

/// The same from the documents: windows of `t` inputs that begin anew.
fn expected(documents: &[(Vec<u32>, Vec<u32>)], t: usize, objective: Objective) -> Vec<(i32, Vec<i32>)> {
    let mut all = Vec::new();
    for (prompt, response) in documents {
        let ids: Vec<i32> = prompt.iter().chain(response).chain(&[0]).map(|&id| id as i32).collect();
        let first = if objective == Objective::Causal { 1 } else { prompt.len().max(1) };
        for (j, &id) in ids.iter().enumerate().skip(first) {
            all.push((id, ids[(j - 1) / t * t..j].to_vec()));
        }
    }
    all.sort();
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn every_token_is_predicted_once_from_its_own_document(
        documents in prop::collection::vec(
            (prop::collection::vec(2u32..100, 0..12), prop::collection::vec(2u32..100, 0..12)), 1..40),
        t in 1usize..20,
    ) {
        let (_dir, tokens) = items(&documents);
        for packing in [Packing::Document, Packing::BestFit] {
            for objective in [Objective::Causal, Objective::Response] {
                let wanted = expected(&documents, t, objective);
                let Ok(samples) = Samples::read(tokens.clone(), t, reading(packing, objective)) else {
                    prop_assert!(wanted.is_empty());
                    continue;
                };
                prop_assert_eq!(predictions(&samples), wanted);
            }
        }
    }

    #[test]
    fn best_fit_is_a_function_of_lengths_and_never_needs_more_rows_than_next_fit(
        lens in prop::collection::vec(1usize..12, 1..60), t in 1usize..24, other in 2u32..100,
    ) {
        let rows = |id: u32| {
            let (_dir, tokens) = tokens(lens.iter().map(|&n| vec![id; n]).collect());
            let samples = Samples::new(tokens, t, Packing::BestFit).unwrap();
            (0..samples.len()).map(|i| samples.row(i)).map(|r| (r.segments, r.positions, r.origins)).collect::<Vec<_>>()
        };
        let found = rows(2);
        prop_assert_eq!(&found, &rows(other));
        // Next fit, piece after piece: lengths with their end, cut every t.
        let (mut next_fit, mut left) = (0, 0);
        for mut rest in lens.iter().map(|n| n + 1) {
            while rest > 1 {
                let piece = rest.min(t);
                if piece > left {
                    (next_fit, left) = (next_fit + 1, t);
                }
                (left, rest) = (left - piece, rest - piece);
            }
        }
        prop_assert!(found.len() <= next_fit, "{} rows, next fit {next_fit}", found.len());
    }

    #[test]
    fn a_stream_predicts_every_token_but_the_first_once(
        documents in prop::collection::vec(prop::collection::vec(2u32..100, 0..30), 1..20), t in 1usize..20,
    ) {
        let (_dir, tokens) = tokens(documents.clone());
        let all: Vec<i32> = documents.iter().flat_map(|d| d.iter().chain(&[0])).map(|&id| id as i32).collect();
        let Ok(samples) = Samples::new(tokens, t, Packing::Stream) else {
            prop_assert!(all.len() <= t);
            return Ok(());
        };
        // One more row than there are samples: what is left over.
        let rows: Vec<Row> = (0..=samples.len()).map(|i| samples.row(i)).collect();
        let predicted: Vec<i32> =
            rows.iter().flat_map(|r| r.targets.clone()).filter(|&t| i64::from(t) != NONE).collect();
        prop_assert_eq!(&predicted, &all[1..]);
        // A segment ends with the end of a text and nowhere else.
        for row in rows {
            for k in 1..row.filled {
                prop_assert_eq!(row.segments[k] != row.segments[k - 1], row.ids[k - 1] == 0);
                prop_assert_eq!(row.positions[k] == 0, row.ids[k - 1] == 0);
            }
        }
    }
}

#[test]
fn too_little_text_is_one_clear_message() {
    let (_dir, tokens) = tokens(vec![vec![5, 6, 7]]);
    let error = Samples::new(tokens.clone(), 64, Packing::Stream).unwrap_err().to_string();
    assert!(error.contains("fewer than one sample of 65"), "{error}");
    let samples = Samples::new(tokens, 1, Packing::Stream).unwrap();
    let error = samples.check_batch(24).unwrap_err().to_string();
    assert!(error.contains("fewer than one batch of 24"), "{error}");
}
