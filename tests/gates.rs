//! Gates: verdicts, missing seeds, confirmations, and when they are asked again; here and on a fake Slurm.

use seedbed::workflow::study;

use crate::support::chain::text;
use crate::support::fake_slurm::FakeSlurm;
use crate::support::gated::Gated;

const RATE: &str = "conditions.base_rate = {of = \"measure\", value = \"map(.metrics.rate) | mean\", most = 0.3}";

fn here(gate: &str) -> Gated {
    Gated::new(None, gate)
}

#[test]
fn a_gate_that_stops_is_not_asked_again_until_its_conditions_change() {
    here(RATE).stops_and_goes_on_under_other_conditions();
}

#[test]
fn a_gate_waits_for_a_person() {
    here(&format!("{RATE}\nconfirm = \"the samples were read\"")).waits_for_a_person();
}

#[test]
fn on_slurm_a_gate_over_seeds_is_one_job_and_a_stop_leaves_none_behind() {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 4);
    let work = Gated::new(Some(slurm.path()), RATE);
    work.stops_and_goes_on_under_other_conditions();
    let submitted: Vec<Vec<String>> = slurm.calls().into_iter().filter(|c| c[0].ends_with("sbatch")).collect();
    let gate: Vec<&Vec<String>> = submitted.iter().filter(|c| c.iter().any(|w| w.contains("gated.gap."))).collect();
    assert_eq!(gate.len(), 2, "one call each time it is asked: {submitted:?}");
    assert!(gate[0].iter().any(|w| w.starts_with("--dependency=afterany:")), "{gate:?}");
}

#[test]
fn on_slurm_a_gate_that_waits_leaves_no_job() {
    let slurm = FakeSlurm::new();
    slurm.set("max_running", 4);
    Gated::new(Some(slurm.path()), &format!("{RATE}\nconfirm = \"the samples were read\"")).waits_for_a_person();
}

#[test]
fn a_changed_condition_runs_nothing_again_behind_the_gate() {
    let work = here(RATE);
    assert_eq!(work.run_all().0, 0);
    assert_eq!(work.trained(), 3);
    work.ask(&RATE.replace("0.3", "0.4"));
    let states = work.states();
    assert_eq!((states["gap"].0.as_str(), states["train/seed-1"].0.as_str()), ("stale", "done"));
    assert_eq!(work.run_all().0, 0);
    assert_eq!(work.trained(), 3, "a gate changes no byte of what is behind it");
    // Tightened below what was found: what was trained does not count any more.
    work.ask(&RATE.replace("0.3", "0.2"));
    assert_eq!(work.run_all().0, 78);
    assert_eq!(work.states()["train/seed-1"], ("stopped".to_owned(), "gate gap".to_owned()));
    assert_eq!(work.states()["report"], ("stopped".to_owned(), "gate gap".to_owned()));
    // And back: the earlier decision is moved back, and with it everything that had been done.
    work.ask(RATE);
    assert_eq!(work.run_all().0, 0);
    assert!(work.stages().values().all(|s| s == "done"), "{:?}", work.stages());
    assert_eq!(work.trained(), 3);
}

#[test]
fn a_gate_is_asked_again_when_what_it_judged_has_changed() {
    let work = here(RATE);
    assert_eq!(work.run_all().0, 0);
    // The same again: the content is the same, and so is the verdict.
    work.measure_again(2);
    assert_eq!(work.run_all().0, 0);
    let asked = work.asked();
    assert!(work.stages().values().all(|s| s == "done"), "{:?}", work.stages());
    assert_eq!(work.decision()["verdict"], "pass");
    // Another number under the same fingerprint.
    work.rate(2, "0.95");
    work.measure_again(2);
    let (code, said) = work.run_all();
    assert_eq!(code, 78, "{said}");
    assert_eq!(work.asked(), asked + 1);
    assert_eq!(work.decision()["verdict"], "stop");
    assert_eq!(work.decision()["earlier"].as_array().unwrap().last().unwrap()["verdict"], "pass");
    assert_eq!(work.states()["train/seed-2"].0, "stopped");
}

#[test]
fn a_confirmation_counts_for_its_evidence_only() {
    let work = here(&format!("{RATE}\nconfirm = \"the samples were read\""));
    work.run_all();
    assert!(work.seedbed("confirm", &["gap", "--yes"]).status.success());
    let said = text(&work.seedbed("confirm", &["gap", "--yes"]));
    assert!(said.contains("is confirmed already"), "{said}");
    // Before the gate is asked again the evidence changes.
    work.rate(1, "0.26");
    work.measure_again(1);
    work.run_all();
    assert_eq!(work.states()["gap"].0, "waiting");
    assert_eq!(work.trained(), 0);
}

#[test]
fn what_a_missing_seed_means_is_said_by_the_gate() {
    for (rule, code, verdict, after) in [
        ("", 1, "undecided", "missing"),
        ("missing = \"stop\"", 1, "stop", "stopped"),
        ("missing = \"without\"\nleast_seeds = 2", 1, "pass", "mixed"),
        ("missing = \"without\"\nleast_seeds = 3", 1, "undecided", "missing"),
    ] {
        let work = here(&format!("{rule}\n{RATE}"));
        std::fs::write(work.path("sick_3"), "").unwrap();
        let (ended, said) = work.run_all();
        assert_eq!(ended, code, "{rule}: {said}");
        let decision = work.decision();
        assert_eq!(decision["verdict"], verdict, "{rule}: {said}");
        assert_eq!(decision["seeds"], 2, "{rule}");
        let lost = &decision["inputs"][2];
        assert!(lost["content"].is_null() && lost["missing"] == "not sealed", "{rule}: {lost}");
        assert_eq!(work.stages()["train"], after, "{rule}");
        assert_eq!(work.base().join("gap/seal.json").exists(), verdict != "undecided", "{rule}");
        // Once the seed is there, the gate is asked of all three.
        std::fs::remove_file(work.path("sick_3")).unwrap();
        work.run_all();
        let (ended, said) = work.run_all();
        assert_eq!(ended, 0, "{rule}: {said}");
        assert_eq!((work.decision()["verdict"].as_str(), work.decision()["seeds"].as_u64()), (Some("pass"), Some(3)));
        assert_eq!(work.trained(), 3, "{rule}: each seed once");
    }
}

#[test]
fn a_gate_fails_closed() {
    for (condition, why) in [
        ("value = \"map(.metrics.nothing) | mean\", most = 0.3", "has no value"),
        ("value = \"map(.metrics.rate)[]\", most = 0.3", "has 3 values"),
        ("value = \"empty\", most = 0.3", "has 0 values"),
        ("value = \"null\", most = 0.3", "is null, which is no number"),
        ("value = \"0 / 0\", most = 0.3", "which is no number"),
        ("value = \"error(\\\"x\\\")\", most = 0.3", "has no value"),
        ("value = \"map(.metrics.rate) | mean == 0.25\", equals = \"true\"", "is true, not equal to \"true\""),
    ] {
        let work = here(&format!("conditions.odd = {{of = \"measure\", {condition}}}"));
        let (code, said) = work.run_all();
        assert_eq!(code, 78, "{condition}: {said}");
        assert!(said.contains(why), "{condition}: {said}");
        assert_eq!(work.trained(), 0, "{condition}");
    }
}

#[test]
fn a_record_that_was_edited_is_noticed() {
    let work = here(RATE);
    assert_eq!(work.run_all().0, 0);
    let path = work.base().join("gap/decision.json");
    let record = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, record.replacen("0.25", "0.15", 1)).unwrap();
    let signoff = work.seedbed("signoff", &[]);
    assert_eq!(signoff.status.code(), Some(1));
    assert!(text(&signoff).contains("[ ] gate gap: missing-outputs"), "{}", text(&signoff));
}

#[test]
fn what_cannot_be_confirmed_says_why() {
    let work = here(RATE);
    let refused = |words: &[&str], code: i32, part: &str| {
        let output = work.seedbed("confirm", words);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(part), "{said}");
    };
    refused(&["gpa"], 64, "its gates are gap");
    refused(&["gap", "--yes"], 66, "`run_all configs/gated.toml --local` asks it");
    work.run_all();
    refused(&["gap", "--yes"], 64, "asks for no confirmation");
    work.ask(&RATE.replace("0.3", "0.2"));
    work.run_all();
    refused(&["gap", "--yes"], 78, "a confirmation does not overrule it");
}

#[test]
fn the_checklist_is_computed_from_seals() {
    let work = here(RATE);
    let text_of = |words: &[&str]| {
        let output = work.seedbed("signoff", words);
        (output.status.code(), text(&output))
    };
    let (code, said) = text_of(&[]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("[ ] stage measure: 0 of 3 cells sealed and whole") && said.contains("0 of 4 items hold"),
        "{said}"
    );
    let study = work.path("configs/gated.toml");
    let with = std::fs::read_to_string(&study).unwrap()
        + "[signoff]\nconditions.loss = {of = \"train\", value = \"map(.metrics.loss) | max\", below = 2}\n\
           conditions.rate = {of = \"measure\", value = \"map(.metrics.rate) | min\", above = 0.5}\n";
    std::fs::write(&study, with).unwrap();
    assert!(text_of(&[]).1.contains("[ ] condition loss: not judged: train is not complete"));
    assert_eq!(work.run_all().0, 0);
    let (code, said) = text_of(&[]);
    assert_eq!(code, Some(1), "{said}");
    for line in [
        "[x] stage train: 3 of 3 cells sealed and whole",
        "[x] gate gap: pass",
        "[x] condition loss: is 1.5, below 2",
        "[ ] condition rate: is 0.25, not above 0.5",
        "seeds: 1, 2, 3",
        "5 of 6 items hold",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    // An output that changed behind its seal is seen.
    let run = work.base().join("train/seed-2/run.h5");
    let mut bytes = std::fs::read(&run).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&run, bytes).unwrap();
    let (_, said) = text_of(&[]);
    assert!(said.contains("[ ] stage train: 2 of 3 cells sealed and whole"), "{said}");
    assert!(said.contains("train/seed-2: missing-outputs output `run.h5` is not what was sealed"), "{said}");
    let (_, json) = text_of(&["--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["holds"].as_bool(), json["items"].as_array().map(Vec::len)), (Some(false), Some(6)));
}

#[test]
fn a_gate_may_judge_each_seed_alone() {
    let work = here(&format!("per = [\"seed\"]\n{RATE}"));
    work.rate(2, "0.9");
    let (code, said) = work.run_all();
    assert_eq!(code, 78, "{said}");
    let states = work.states();
    let halted = ("stopped".to_owned(), "gate gap/seed-2".to_owned());
    for cell in ["gap/seed-2", "train/seed-2", "report"] {
        assert_eq!(states[cell], halted, "{cell}");
    }
    for cell in ["gap/seed-1", "train/seed-1", "train/seed-3"] {
        assert_eq!(states[cell].0, "done", "{cell}");
    }
    let output = work.seedbed("confirm", &["gap", "--yes"]);
    assert!(text(&output).contains("say --seed SEED"), "{}", text(&output));
}

#[test]
fn a_gate_that_cannot_be_asked_is_said_with_its_place() {
    for (gate, part) in [
        (
            "conditions.x = {value = \".[\", most = 1}",
            "`value` in condition x of gate gap: the filter does not compile",
        ),
        ("conditions.x = {value = \"env\", most = 1}", "is not allowed in gates"),
        ("conditions.x = {value = \".\"}", "condition x of gate gap has no bound: say `least`"),
        ("conditions.x = {most = 1}", "condition x of gate gap has no `value`"),
        ("conditions.x = {of = \"train\", value = \".\", most = 1}", "names `train`, which is not needed"),
        ("conditions.x = {value = \".\", least = 2, most = 1}", "no value is within the bounds"),
        ("conditions.x = {value = \".\", most = \"1\"}", "must be a number, not text"),
        ("conditions.x = {value = \".\", mots = 1}", "did you mean `most`?"),
        ("", "gate gap has no `conditions`"),
        ("confirm = \" \"", "`confirm` in gate gap is empty"),
        ("missing = \"without\"\nconfirm = \"x\"", "gate gap has no `least_seeds`"),
        ("per = [\"seed\"]\nleast_seeds = 2\nconfirm = \"x\"", "`least_seeds` in gate gap means nothing"),
        ("per = [\"arm\"]\nconfirm = \"x\"", "cannot hold `arm`"),
        ("confirm = \"x\"\n[[stage]]\nname = \"b\"\nrun = \"gate\"\nresources = {time = 5}", "write it as `[[gate]]`"),
        ("confirm = \"x\"\n[signoff]\nconditions.y = {of = \"gap\", value = \".\", most = 1}", "names `gap`"),
    ] {
        let work = here(gate);
        let output = work.seedbed("plan", &[]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(64), "{gate}: {said}");
        assert!(said.contains("gated.toml:") && said.contains(part), "{gate}: {said}");
    }
}

#[test]
fn a_profile_lays_its_own_bounds_over_a_gate() {
    let work = here(&format!("{RATE}\n[profile.strict]\ngate.gap.conditions.base_rate.most = 0.2\n[profile.seed]\n"));
    let most = |profile: &str| {
        let file = work.path("configs/gated.toml");
        let study = study::load(&file, Some(profile), seedbed::stages::all_specs()).unwrap();
        study.stage("gap").unwrap().params["conditions"][0]["most"].clone()
    };
    assert_eq!((most("strict"), most("seed")), (0.2.into(), 0.3.into()));
}
