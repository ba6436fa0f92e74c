//! Finetuning on instructions: response-only labels, masks with their guard and their count, Adafactor; counted, killed,
//! on several ranks, from another training's model.

use seedbed::compute::data::instructions::prompt;
use seedbed::compute::data::{Special, TextTokenizer};
use seedbed::compute::model::{Mask, matrix};

use super::*;

const WORDS: [&str; 8] = ["red", "green", "blue", "salt", "moon", "river", "stone", "glass"];

/// Question and answer `i`.
fn item(i: usize) -> (String, String, String) {
    let word = |k: usize| WORDS[(i * 5 + k * 3 + i / 8) % 8];
    let input = if i % 3 == 0 { String::new() } else { format!("{} {}", word(0), word(1)) };
    let answer = if i % 3 == 0 { word(2).to_owned() } else { format!("{} {}", word(1), word(0)) };
    (format!("Turn around {}.", word(2)), input, answer)
}

fn lines(range: std::ops::Range<usize>) -> String {
    let line = |i| {
        let (instruction, input, output) = item(i);
        json!({"instruction": instruction, "input": input, "output": output}).to_string() + "\n"
    };
    range.map(line).collect()
}

/// A setup cell with a small Llama, its tokenizer, and a directory of instructions, the last of which is far too long.
fn workspace() -> Workspace {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("results/study/quick");
    let setup = base.join("setup");
    let model_dir = setup.join("model");
    std::fs::create_dir_all(&model_dir).unwrap();
    let texts: Vec<String> = (0..48).map(item).map(|(a, b, c)| prompt(&a, &b) + &c).collect();
    TextTokenizer::train(&model_dir, 330, texts.iter().map(String::as_str)).unwrap();
    let sizes = Sizes {
        hidden_size: 16,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        intermediate_size: 40,
        vocab_size: 330,
        max_position_embeddings: 64,
    };
    let mut config = ModelConfig::new(Family::Llama, sizes);
    (config.eos_token_id, config.pad_token_id) = (Some(0), Some(1));
    Model::random(&config, 11).unwrap().save(&model_dir, None).unwrap();
    let long = json!({"instruction": "blue moon ".repeat(60), "output": "no"}).to_string();
    std::fs::create_dir_all(setup.join("sft")).unwrap();
    std::fs::write(setup.join("sft/train.jsonl"), lines(0..40) + &long + "\n").unwrap();
    std::fs::write(setup.join("sft/eval.jsonl"), lines(40..48)).unwrap();
    Workspace { _dir: dir, base }
}

/// 12 steps of 8 items each.
fn sft(changed: &Value) -> Value {
    let mut params = json!({
        "data": "instructions", "instructions_from": {"sft": "setup"}, "objective": "response", "packing": "document",
        "optimizer": "adafactor", "max_steps": 12, "lr": 0.01, "global_batch": 8, "grain_samples": 1, "seq_len": 64,
        "val_interval_steps": 4, "checkpoint_interval_steps": 2, "weight_decay": 0.1,
    });
    params.as_object_mut().unwrap().extend(changed.as_object().unwrap().clone());
    params
}

fn finetune(work: &Workspace, changed: &Value) -> (PathBuf, PathBuf) {
    work.cell(&stages::train::SPEC, "finetune", &[("setup", "setup")], sft(changed))
}

fn finished(changed: Value) -> (String, String, Value) {
    let work = workspace();
    let (cell, run_dir) = finetune(&work, &changed);
    succeed(solo(&cell, 1));
    essence(&run_dir, 1)
}

/// What the cells of the study are: causal, prefix, and both types of weights.
fn cells() -> [Value; 3] {
    [
        json!({"mask": "prefix"}),
        json!({"mask": "prefix", "precision": "bf16"}),
        json!({"precision": "bf16", "bf16_pure": true, "packing": "best_fit", "reset_attention": true}),
    ]
}

#[test]
fn labels_and_items_are_counted_to_the_token() {
    let work = workspace();
    let tokenizer = TextTokenizer::load(&work.base.join("setup/model")).unwrap();
    let length = |text: &str| tokenizer.encode(text, Special::None).unwrap().len();
    // Of every answer its tokens and the end of the text; a batch of 40 is an epoch.
    let labels: usize = (0..40).map(|i| length(&item(i).2) + 1).sum();
    for packing in ["document", "best_fit"] {
        let mut params =
            sft(&json!({"packing": packing, "global_batch": 4, "lanes": 4, "last_batch": "pad", "epochs": 2}));
        params.as_object_mut().unwrap().remove("max_steps");
        let (cell, run_dir) = work.cell(&stages::train::SPEC, packing, &[("setup", "setup")], params);
        let log = succeed(solo(&cell, 1));
        assert!(
            log.contains("of 41 instructions 1 have no label within 64 tokens and are dropped, 1 are cut"),
            "{log}"
        );
        let metrics = record(&run_dir, 1).metrics;
        assert_eq!(metrics["train_tokens"], json!(2 * labels), "{packing}");
        let data = &metrics["data"];
        assert_eq!(data["source"], "instructions");
        for (split, items, dropped) in [("train", 41, 1), ("eval", 8, 0)] {
            assert_eq!((&data[split]["items"], &data[split]["dropped"]), (&json!(items), &json!(dropped)), "{split}");
        }
        let samples = data["train"]["samples"].as_u64().unwrap();
        assert!(if packing == "document" { samples == 40 } else { samples < 40 }, "{data}");
        assert_eq!(metrics["hyperparameters"]["optimizer"], "adafactor");
        assert_eq!(
            (&metrics["mask"]["train"], &metrics["mask_patch"]["patched_layers"]),
            (&json!("causal"), &json!(0))
        );
        assert_eq!((&metrics["leakage"], &metrics["leakage_suspected"]), (&Value::Null, &json!(false)));
        let [train, eval] = ["train_loss", "eval_loss"].map(|name| metrics[name].as_f64().unwrap());
        let series = record(&run_dir, 1).series;
        let mean = series["loss"].iter().map(|p| p.value).sum::<f64>() / series["loss"].len() as f64;
        assert!((train / mean - 1.0).abs() < 1e-12 && eval == series["val_loss"].last().unwrap().value, "{metrics}");
        assert!(series["loss"].last().unwrap().value < series["loss"][0].value - 0.2, "it learns");
    }
    // Fewer, and an evaluation split that is drawn.
    std::fs::remove_file(work.base.join("setup/sft/eval.jsonl")).unwrap();
    let few = json!({"train_samples": 16, "instruction_eval_fraction": 0.25, "eval_samples": 6, "max_steps": 2});
    let (cell, run_dir) = finetune(&work, &few);
    succeed(solo(&cell, 1));
    let data = record(&run_dir, 1).metrics["data"].clone();
    assert_eq!((&data["train"]["items"], &data["eval"]["items"]), (&json!(16), &json!(6)), "{data}");
}

#[test]
fn killed_on_the_way_it_ends_with_the_same_bits() {
    for changed in cells() {
        let expected = finished(changed.clone());
        let work = workspace();
        let (cell, run_dir) = finetune(&work, &changed);
        let mut child = solo(&cell, 1).spawn().unwrap();
        let ready = || steps_done(&run_dir) >= 5 && has_checkpoint(&run_dir);
        assert!(kill_when(&mut child, ready), "it ended too early");
        let log = succeed(solo(&cell, 2));
        assert!(log.contains("going on from step"), "{log}");
        assert_eq!(essence(&run_dir, 2), expected, "{changed}");
        let manifest = std::fs::read_dir(run_dir.join("checkpoints")).unwrap().flatten().map(|e| e.path());
        let manifest = manifest.map(|p| p.join("manifest.json")).find(|p| p.exists()).unwrap();
        let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        let parts = manifest["shards"][0]["parts"].as_array().unwrap();
        let means: u64 =
            parts.iter().filter(|p| p["kind"] == "second_moment_means").map(|p| p["len"].as_u64().unwrap()).sum();
        let model = Model::load(&work.base.join("setup/model")).unwrap();
        let of_span = |shape: &[i64], len: usize| matrix(shape).map_or(len, |[r, c]| r + c) as u64;
        assert_eq!(means, model.layout().spans().map(|(_, s)| of_span(&s.shape, s.len)).sum::<u64>());
        assert!(!parts.iter().any(|p| p["kind"] == "second_moment" || p["kind"] == "first_moment"));
    }
}

#[cfg(feature = "mpi")]
#[test]
fn any_number_of_ranks_ends_with_the_same_bits() {
    for changed in cells() {
        let expected = finished(changed.clone());
        for n in [2, 4] {
            let work = workspace();
            let (cell, run_dir) = finetune(&work, &changed);
            succeed(ranks(n, &cell, 1));
            assert_eq!(essence(&run_dir, 1), expected, "{changed} on {n} ranks");
        }
    }
    // From four ranks to one: each of them reads what rank 0 kept of the second moments.
    let changed = cells()[1].clone();
    let work = workspace();
    let (cell, run_dir) = finetune(&work, &changed);
    let mut child = ranks(4, &cell, 1).spawn().unwrap();
    while !(steps_done(&run_dir) >= 5 && has_checkpoint(&run_dir)) {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
    // SAFETY: a rank of the launcher that this test started.
    unsafe { libc::kill(rank_below(child.id()), libc::SIGKILL) };
    assert!(!child.wait().unwrap().success());
    succeed(solo(&cell, 2));
    assert_eq!(essence(&run_dir, 2), finished(changed));
}

#[test]
fn a_mask_is_counted_and_a_leak_is_stopped_unless_it_is_wanted() {
    let work = workspace();
    // What a study cannot say, a cell that was made otherwise can: the guard stops it before the first step.
    let (cell, run_dir) = finetune(&work, &json!({"mask": "full"}));
    let output = solo(&cell, 1).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("labels leak under `mask`") && text.contains("allow_leak"), "{text}");
    let evidence = std::fs::read(attempt::out_dir(&run_dir, 1).join("evidence.json")).unwrap();
    let evidence: Value = serde_json::from_slice(&evidence).unwrap();
    assert_eq!((&evidence["criterion"], &evidence["step"]), (&json!("label-leakage"), &json!(0)), "{evidence}");
    assert_eq!((steps_done(&run_dir), has_checkpoint(&run_dir)), (0, false));
    // A validation that leaks is no better.
    let (cell, run_dir) = work.cell(
        &stages::train::SPEC,
        "validation",
        &[("setup", "setup")],
        sft(&json!({"mask": "causal", "validation_mask": "full"})),
    );
    let output = solo(&cell, 1).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{text}");
    assert!(text.contains("labels leak under `validation_mask`"), "{text}");
    assert_eq!((steps_done(&run_dir), has_checkpoint(&run_dir)), (0, false));

    for (name, changed, mask, leaks) in [
        ("wanted", json!({"mask": "full", "allow_leak": true, "validation_mask": "causal"}), Mask::Full, true),
        ("prefix", json!({"mask": "prefix"}), Mask::Prefix, false),
        ("objective", json!({"objective": "prefix"}), Mask::Prefix, false),
    ] {
        let (cell, run_dir) = work.cell(&stages::train::SPEC, name, &[("setup", "setup")], sft(&changed));
        let log = succeed(solo(&cell, 1));
        assert!(log.contains(&format!("mask {}: taken by 2 of 2 attention layers", mask.word())), "{log}");
        let metrics = record(&run_dir, 1).metrics;
        assert_eq!(metrics["mask"]["train"], mask.word());
        assert_eq!(metrics["mask"]["validation"], if leaks { "causal" } else { mask.word() });
        // A validation that is read as training is, or under a causal mask, is not looked at again.
        assert_eq!(metrics["mask_patch"], json!({"patched_layers": 2, "restored": true, "validation": null}));
        assert_eq!(metrics["leakage"]["validation"], Value::Null);
        let structural = &metrics["leakage"]["structural"];
        assert_eq!(structural["rows"], 40);
        assert_eq!(structural["leaks"], leaks, "{structural}");
        assert_eq!(structural["leaking_labels"].as_u64().unwrap() > 0, leaks);
        assert_eq!((&metrics["leakage"]["allowed"], &metrics["leakage_suspected"]), (&json!(leaks), &json!(leaks)));
        let empirical = &metrics["leakage"]["empirical"];
        assert_eq!(empirical["samples"], 16);
        // Random weights cannot use what they see.
        let ratio = empirical["ratio"].as_f64().unwrap();
        assert!((0.8..1.2).contains(&ratio) && ratio != 1.0, "{empirical}");
    }
    // One that is read otherwise is.
    for (name, changed, leaks) in [
        ("full-alone", json!({"mask": "causal", "validation_mask": "full", "allow_leak": true}), true),
        ("prefix-alone", json!({"mask": "causal", "validation_mask": "prefix"}), false),
    ] {
        let (cell, run_dir) = work.cell(&stages::train::SPEC, name, &[("setup", "setup")], sft(&changed));
        succeed(solo(&cell, 1));
        let metrics = record(&run_dir, 1).metrics;
        let patch =
            json!({"patched_layers": 0, "restored": null, "validation": {"patched_layers": 2, "restored": true}});
        assert_eq!(metrics["mask_patch"], patch, "{name}");
        let leakage = &metrics["leakage"];
        assert_eq!((&leakage["structural"], &leakage["allowed"]), (&Value::Null, &json!(leaks)), "{leakage}");
        let structural = &leakage["validation"]["structural"];
        assert_eq!((&structural["rows"], &structural["leaks"]), (&json!(8), &json!(leaks)), "{leakage}");
        assert_eq!(metrics["leakage_suspected"], leaks);
    }
    // The two ways to say it are one.
    let [a, b] = ["prefix", "objective"]
        .map(|name| record(&work.base.join(format!("{name}/seed-7")), 1).metrics["final_param_digest"].clone());
    assert_eq!(a, b);
}

/// `keep = "last"`: what is left is the end of the run, whatever validation said, and no checkpoint is made for a good one.
#[test]
fn the_last_weights_are_kept_where_the_study_says_so() {
    // The rate grows until no weight means anything: the last validation is not the best.
    let grows_worse = json!({"lr": 1.0, "warmup_ratio": 1.0, "val_interval_steps": 2, "checkpoint_interval_steps": 0});
    let with = |keep: &str| {
        let mut changed = grows_worse.clone();
        changed["keep"] = json!(keep);
        let work = workspace();
        let (cell, run_dir) = finetune(&work, &changed);
        succeed(solo(&cell, 1));
        let kept = Model::load(&attempt::out_dir(&run_dir, 1).join("best_model")).unwrap().param_digest();
        let checkpoints = std::fs::read_dir(run_dir.join("checkpoints")).unwrap().count();
        (json!(kept), record(&run_dir, 1).metrics, checkpoints)
    };
    let (best, last) = (with("best"), with("last"));
    for name in ["final_param_digest", "best_step", "best_val_perplexity", "val_losses"] {
        assert_eq!(best.1[name], last.1[name], "{name}");
    }
    assert!(best.1["best_step"].as_u64().unwrap() < 12, "{}", best.1["val_losses"]);
    assert_eq!((&best.0, &last.0), (&best.1["best_param_digest"], &last.1["final_param_digest"]));
    assert_ne!(best.0, last.0);
    assert_eq!(last.1["best_param_digest"], Value::Null);
    assert_eq!(last.1["hyperparameters"]["keep"], "last");
    assert!(last.2 < best.2, "{} {}", last.2, best.2);
}

/// A model that has learnt to look at its own answer is found out by its losses alone.
#[test]
fn the_losses_of_a_model_that_cheats_give_it_away() {
    let work = workspace();
    let cheat = json!({
        "mask": "full", "allow_leak": true, "optimizer": "adamw", "lr": 0.02, "max_steps": 200, "global_batch": 8,
        "weight_decay": 0.0, "checkpoint_interval_steps": 0, "val_interval_steps": 200, "schedule": "constant",
    });
    let (cell, first) = work.cell(&stages::train::SPEC, "cheat", &[("setup", "setup")], sft(&cheat));
    succeed(solo(&cell, 1));
    std::fs::rename(attempt::out_dir(&first, 1).join("best_model"), first.join("best_model")).unwrap();
    // What a finetune begins from is the model of the training that it needs.
    let needs = [("setup", "setup"), ("cheat", "train")];
    let again = sft(&json!({"mask": "full", "allow_leak": true, "max_steps": 2}));
    let (cell, run_dir) = work.cell(&stages::train::SPEC, "again", &needs, again);
    succeed(solo(&cell, 1));
    let empirical = record(&run_dir, 1).metrics["leakage"]["empirical"].clone();
    let [causal, masked] = ["causal_loss", "masked_loss"].map(|name| empirical[name].as_f64().unwrap());
    eprintln!("{empirical}");
    assert_eq!(empirical["leaks"], true);
    assert!(masked < 0.5 * causal, "{empirical}");
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let work = workspace();
    let sft_dir = work.base.join("setup/sft");
    std::fs::write(sft_dir.join("eval.jsonl"), "{\"instruction\": \"x\"}\n").unwrap();
    for (prepare, code, named) in [
        (Box::new(|| ()) as Box<dyn Fn()>, 64, "eval.jsonl` line 1 has no text under \"output\""),
        (Box::new(|| std::fs::remove_file(sft_dir.join("train.jsonl")).unwrap()), 66, "train.jsonl` is not there"),
    ] {
        prepare();
        let (cell, _) = finetune(&work, &json!({}));
        let output = solo(&cell, 1).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(named) && output.status.code() == Some(code), "{code}: {text}");
    }
}
