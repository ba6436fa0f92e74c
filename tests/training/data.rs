//! What a training run reads: packed, padded, supervised, prepared ahead; counted, killed and on several ranks.

use seedbed::compute::data::Item;
use seedbed::compute::data::tokens::write_supervised;

use super::*;

/// Samples of several documents, the last batch of an epoch filled up, 8 to 9 steps an epoch.
fn packed() -> Value {
    json!({"packing": "best_fit", "last_batch": "pad", "global_batch": 16, "lanes": 4, "max_steps": 24})
}

fn with(mut params: Value, more: &Value) -> Value {
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params
}

/// Makes an item of every document of the workspace: its first third is the prompt. Returns the number of ids of
/// responses, ends of text included, in the training split.
fn make_supervised(work: &Workspace) -> u64 {
    let mut responses = 0;
    for split in ["train", "val"] {
        let dir = work.base.join("setup/data").join(split);
        let old = Tokens::open(&dir).unwrap();
        let info = old.info().clone();
        let header = TokensHeader {
            split: info.split,
            vocab_size: info.vocab_size,
            tokenizer: info.tokenizer,
            special: info.special,
            sources: info.sources,
        };
        let items: Vec<Item> = (0..old.documents())
            .map(|i| old.document(i))
            .map(|d| Item { ids: old.ids(d.start..d.end - 1), prompt: (d.end - d.start) as usize / 3 })
            .collect();
        if split == "train" {
            responses = items.iter().map(|i| (i.ids.len() + 1 - i.prompt) as u64).sum();
        }
        write_supervised(&dir, &header, items.into_iter().map(Ok)).unwrap();
    }
    responses
}

/// A cell that runs for epochs, not for steps.
fn epochs(work: &Workspace, changed: &Value) -> (PathBuf, PathBuf) {
    let mut params = with(quick(), changed);
    params.as_object_mut().unwrap().remove("max_steps");
    work.cell(&stages::train::SPEC, "train_baseline", &[("setup", "setup")], params)
}

fn train_tokens(run_dir: &Path) -> u64 {
    record(run_dir, 1).metrics["train_tokens"].as_u64().unwrap()
}

#[test]
fn every_token_is_counted_once_an_epoch_however_it_is_packed() {
    let work = Workspace::new();
    let tokens = Tokens::open(&work.base.join("setup/data/train")).unwrap();
    // The first token of a document follows nothing.
    let predicted = tokens.len() - tokens.documents() as u64;
    for packing in ["document", "best_fit"] {
        let (cell, run_dir) = epochs(&work, &json!({"packing": packing, "last_batch": "pad", "epochs": 2}));
        succeed(solo(&cell, 1));
        assert_eq!(train_tokens(&run_dir), 2 * predicted, "{packing}");
        std::fs::remove_dir_all(&run_dir).unwrap();
    }
}

#[test]
fn packed_data_go_on_in_the_middle_of_an_epoch_with_or_without_a_thread() {
    let expected = uninterrupted(packed());
    for (prefetch, moment) in [(0, 10), (1, 14), (64, 19)] {
        let changed = with(packed(), &json!({"prefetch": prefetch}));
        let work = Workspace::new();
        let (cell, run_dir) = work.baseline(changed);
        let mut child = solo(&cell, 1).spawn().unwrap();
        let ready = || steps_done(&run_dir) >= moment && has_checkpoint(&run_dir);
        assert!(kill_when(&mut child, ready), "it ended before step {moment}");
        let log = succeed(solo(&cell, 2));
        // A save begins when the one before is done, so by then the one of step 4 is.
        assert!(log.contains("going on from step"), "{log}");
        assert_eq!(essence(&run_dir, 2), expected, "{prefetch} ahead, killed at step {moment}");
    }
    // The test can tell: another packing is another run.
    assert_ne!(uninterrupted(with(packed(), &json!({"packing": "document"}))).1, expected.1);
}

#[cfg(feature = "mpi")]
#[test]
fn packed_and_supervised_data_are_the_same_on_any_ranks() {
    for (supervised, params) in [
        (false, packed()),
        (true, with(packed(), &json!({"objective": "response"}))),
        (true, with(packed(), &json!({"objective": "response", "packing": "document", "last_batch": "drop"}))),
    ] {
        let mut found = Vec::new();
        for n in [1, 2, 4] {
            let work = Workspace::new();
            if supervised {
                make_supervised(&work);
            }
            let (cell, run_dir) = work.baseline(params.clone());
            succeed(ranks(n, &cell, 1));
            found.push(essence(&run_dir, 1));
        }
        assert!(found.windows(2).all(|w| w[0] == w[1]), "{params}");
    }
}

#[test]
fn responses_are_scored_and_prompts_are_not() {
    let work = Workspace::new();
    let responses = make_supervised(&work);
    let params = json!({"packing": "best_fit", "last_batch": "pad", "objective": "response", "epochs": 3});
    let (cell, run_dir) = epochs(&work, &params);
    let log = succeed(solo(&cell, 1));
    assert!(log.contains("% filling"), "{log}");
    assert_eq!(train_tokens(&run_dir), 3 * responses);
}

#[test]
fn what_does_not_go_together_is_named() {
    let work = Workspace::new();
    for (changed, named) in [
        (json!({"objective": "response"}), "jsonl_prompt_field"),
        (json!({"objective": "response", "packing": "stream"}), "best_fit"),
        (json!({"objective": "prefix", "packing": "best_fit"}), "document"),
    ] {
        let (cell, _) = work.baseline(changed);
        let output = solo(&cell, 1).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(named) && output.status.code() == Some(64), "{text}");
    }
}
