//! Kill criteria in a running training: what stops it, at which step, with which evidence; on any number of ranks and
//! after a kill.

use super::*;

/// No update changes a weight: nothing is learnt.
fn learns_nothing() -> Value {
    json!({"lr": 0.0, "max_steps": 60, "stop_no_signal_step": 33})
}

/// The rate grows until the weights are worse with every step.
fn grows_worse() -> Value {
    json!({"lr": 2.0, "warmup_ratio": 1.0, "max_steps": 48, "val_interval_steps": 2, "stop_worse_validations": 3})
}

/// The evidence of a training that must be stopped.
fn evidence(mut command: Command, run_dir: &Path, attempt: u32) -> Value {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{text}");
    let path = attempt::out_dir(run_dir, attempt).join("evidence.json");
    let evidence: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(text.contains(evidence["why"].as_str().unwrap()), "{text}");
    assert!(!attempt::out_dir(run_dir, attempt).join("run.h5").exists(), "nothing that could be taken for a result");
    evidence
}

fn stopped(changed: Value) -> (Value, u64) {
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(changed);
    let evidence = evidence(solo(&cell, 1), &run_dir, 1);
    (evidence, steps_done(&run_dir))
}

#[test]
fn a_training_without_a_signal_is_stopped_with_its_evidence() {
    let (evidence, steps) = stopped(learns_nothing());
    assert_eq!(
        (evidence["criterion"].as_str(), evidence["step"].as_u64(), steps),
        // At the first log from step 33 on.
        (Some("no-learning-signal"), Some(40), 40)
    );
    let number = |key: &str| evidence["values"][key].as_f64().unwrap();
    assert!(number("first_loss") - number("lowest_loss") < 0.08 && number("nats") == 0.08, "{evidence}");
    assert!((number("first_loss") - 48f64.ln()).abs() < 0.3, "{evidence}");
    // One that learns goes on to the same weights as without the question.
    let asked = uninterrupted(json!({"max_steps": 40, "stop_no_signal_step": 33, "stop_worse_validations": 4}));
    assert_eq!(asked.1, uninterrupted(json!({"max_steps": 40})).1);
    assert_eq!((asked.2.get("collapse"), asked.2.get("warnings")), (None, None));
}

#[test]
fn a_validation_that_is_worse_again_and_again_stops_the_run() {
    let (evidence, steps) = stopped(grows_worse());
    assert_eq!(evidence["criterion"], "validation-worse");
    assert_eq!(evidence["step"], json!(steps));
    let losses: Vec<f64> = serde_json::from_value(evidence["values"]["validation_losses"].clone()).unwrap();
    assert!(losses.len() == 4 && losses.windows(2).all(|pair| pair[1] > pair[0]), "{evidence}");
    assert_eq!((&evidence["values"]["lr"], &evidence["values"]["advised_lr"]), (&json!(2.0), &json!(1.0)));
}

#[test]
fn a_loss_that_is_not_finite_leaves_its_evidence_too() {
    let (evidence, steps) = stopped(json!({
        "lr": 1e30, "warmup_ratio": 0.0, "max_grad_norm": 0.0, "val_interval_steps": 100, "stop_after_skips": 5,
        "checkpoint_interval_steps": 0,
    }));
    assert_eq!(
        (evidence["criterion"].as_str(), &evidence["values"]["skipped_in_row"]),
        (Some("no-finite-gradient"), &json!(5))
    );
    assert_eq!(evidence["step"], json!(steps));
    let (evidence, _) = stopped(json!({
        "lr": 1e30, "warmup_ratio": 0.0, "max_grad_norm": 0.0, "val_interval_steps": 3, "stop_after_skips": 5,
        "checkpoint_interval_steps": 0,
    }));
    assert_eq!(evidence["criterion"], "validation-not-finite", "{evidence}");
}

/// What a criterion decides at a step it decides there on any number of ranks.
#[cfg(feature = "mpi")]
#[test]
fn any_number_of_ranks_comes_to_the_same_verdict() {
    for changed in [learns_nothing(), grows_worse()] {
        let expected = stopped(changed.clone()).0;
        for n in [2, 4] {
            let work = Workspace::new();
            let (cell, run_dir) = work.baseline(changed.clone());
            assert_eq!(evidence(ranks(n, &cell, 1), &run_dir, 1), expected, "{n} ranks");
        }
    }
}

/// What a criterion remembers is in the checkpoint.
#[test]
fn killed_on_the_way_it_comes_to_the_same_verdict() {
    for (changed, moments) in [(learns_nothing(), [14, 25]), (grows_worse(), [5, 9])] {
        let (expected, last) = stopped(changed.clone());
        for moment in moments {
            assert!(moment < last, "{expected}");
            let work = Workspace::new();
            let (cell, run_dir) = work.baseline(changed.clone());
            let mut child = solo(&cell, 1).spawn().unwrap();
            if !kill_when(&mut child, || steps_done(&run_dir) >= moment && has_checkpoint(&run_dir)) {
                continue;
            }
            assert_eq!(evidence(solo(&cell, 2), &run_dir, 2), expected, "killed at step {moment}");
        }
    }
}

#[test]
fn a_suspicious_collapse_is_a_flag_and_no_stop() {
    // Any fall at all counts as one here.
    let changed = json!({"flag_collapse_step": 24, "flag_collapse_ratio": 0.999});
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(changed.clone());
    let log = succeed(solo(&cell, 1));
    assert!(log.contains("suspiciously fast collapse"), "{log}");
    let expected = essence(&run_dir, 1);
    let warnings = expected.2["warnings"].as_array().unwrap();
    assert!(warnings.len() == 1 && warnings[0].as_str().unwrap().contains("by step 20"), "{warnings:?}");
    assert_eq!(expected.2["collapse"]["flagged"], true);
    assert_eq!(expected.2["collapse"]["step"], 20);
    assert_eq!(expected.2["leakage_suspected"], true);
    // The weights are those of a run that nobody looked at.
    assert_eq!(expected.1, uninterrupted(json!({})).1);
    // Killed behind it, the flag stays.
    let work = Workspace::new();
    let (cell, run_dir) = work.baseline(changed);
    let mut child = solo(&cell, 1).spawn().unwrap();
    if kill_when(&mut child, || steps_done(&run_dir) >= 21) {
        succeed(solo(&cell, 2));
        assert_eq!(essence(&run_dir, 2), expected);
    }
    // One that was looked for and not found says so.
    let (_, _, metrics) = uninterrupted(json!({"flag_collapse_step": 24, "flag_collapse_ratio": 0.01}));
    assert_eq!((&metrics["collapse"]["flagged"], metrics.get("warnings")), (&json!(false), None));
    assert_eq!(metrics["leakage_suspected"], false);
}

#[test]
fn a_criterion_that_could_never_be_asked_is_refused() {
    let work = Workspace::new();
    let (cell, _) = work.baseline(json!({"max_steps": 24, "stop_no_signal_step": 25}));
    let output = solo(&cell, 1).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(text.contains("`stop_no_signal_step` = 25 is behind the last step, 24"), "{text}");
}
