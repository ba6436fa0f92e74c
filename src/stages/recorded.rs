//! Stage kind `recorded`: a result that was recorded elsewhere becomes the result of a cell.
//!
//! The file holds results in the format of an evaluation's own export, each under a name
//! (`docs/formats/recorded.md`); a cell takes one of them. Its seal says `origin = imported`: nobody ran it here. What
//! contradicts itself is refused: an accuracy that is that of no number of items, or a macro accuracy that is not the
//! mean of its tasks. Needs no tensors.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::context::{Context, StageError};
use super::spec::{Field, FieldType, Preset, Role, Spec, no_check};
use crate::record::{RecordError, RunRecord, files};

/// Version of the file.
pub const RECORDED_VERSION: u32 = 1;

/// A figure that was printed with six decimals times so many items may miss a whole number by this.
const WHOLE: f64 = 1e-3;

/// A macro accuracy may miss the mean of its tasks by what rounding to six decimals does.
const ROUNDED: f64 = 1e-6;

/// Beyond this a macro accuracy is another number than the mean, and that is said.
const SAME: f64 = 1e-9;

/// The kind.
pub static SPEC: Spec = Spec {
    kind: "recorded",
    version: 1,
    binary: "seedbed-recorded",
    resumable: false,
    parallel: false,
    partial_inputs: false,
    needs: &[],
    outputs: &[],
    export: Some("metrics.json"),
    help: "a result that was recorded elsewhere, taken from a file",
    fields: &[
        Field {
            name: "file",
            ty: FieldType::Path,
            preset: Preset::Required,
            role: Role::Semantic,
            help: "JSON file with the recorded results",
        },
        Field {
            name: "run",
            ty: FieldType::Text,
            preset: Preset::Required,
            role: Role::Semantic,
            help: "which of the file's results",
        },
    ],
    check: no_check,
};

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedFile {
    /// [`RECORDED_VERSION`].
    pub version: u32,
    /// What they were taken from, for people.
    pub source: String,
    /// Results by name, each as an evaluation exports it.
    pub runs: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct Params {
    run: String,
}

/// Takes one result over.
///
/// # Errors
/// The file is not there or not of this version, has no such result, or one that contradicts itself.
pub fn run(context: &Context) -> Result<Option<RunRecord>, StageError> {
    let params: Params = context.params()?;
    let path = context.input("file").ok_or_else(|| StageError::Usage("`file` is not given: set it".to_owned()))?;
    let mut record = RunRecord::new(&context.cell);
    record.metrics = read(path, &params.run)?;
    for warning in record.metrics["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        eprintln!("{warning}");
    }
    Ok(Some(record))
}

/// The result of that name, checked, with its macro accuracy.
///
/// # Errors
/// As [`run`].
pub fn read(path: &Path, name: &str) -> Result<Value, StageError> {
    let file: RecordedFile = files::read_versioned_json(path, RECORDED_VERSION).map_err(|e| match e {
        RecordError::Damaged { .. } => StageError::Usage(format!("{e}: see docs/formats/recorded.md")),
        other => StageError::Record(other),
    })?;
    let shown = path.display();
    let Some(found) = file.runs.get(name) else {
        let known: Vec<&str> = file.runs.keys().map(String::as_str).collect();
        return Err(StageError::Usage(format!(
            "{shown} has no result `{name}`: set `run` to one of {}",
            known.join(", ")
        )));
    };
    let mut result = found.clone();
    let warning =
        complete(&mut result).map_err(|what| StageError::Usage(format!("{shown}: result `{name}`: {what}")))?;
    if let Value::Object(map) = &mut result {
        map.insert("source".to_owned(), json!(file.source));
        if let Some(warning) = warning {
            map.insert("warnings".to_owned(), json!([warning]));
        }
    }
    Ok(result)
}

/// Checks the tasks and fills in the macro accuracy; what is to be said of them.
fn complete(result: &mut Value) -> Result<Option<String>, String> {
    let Some(map) = result.as_object_mut() else { return Err("is no object: give one as metrics.json has it".into()) };
    let tasks = match map.get("tasks") {
        Some(Value::Array(tasks)) => tasks,
        _ => return Err("has no `tasks`: give an array, an empty one where only the macro accuracy is known".into()),
    };
    let (mut names, mut accuracies) = (Vec::new(), Vec::new());
    for task in tasks {
        let name = task["task"].as_str().ok_or("a task has no `task`: give its name")?;
        let number =
            |key: &str| task[key].as_f64().ok_or_else(|| format!("task {name:?} has no number `{key}`: add it"));
        let (accuracy, total) = (number("accuracy")?, number("total")?);
        if names.contains(&name) {
            return Err(format!("task {name:?} is there twice: leave one"));
        }
        if !(0.0..=1.0).contains(&accuracy) {
            return Err(format!("task {name:?} has an accuracy of {accuracy}: give a part of one"));
        }
        if total < 1.0 || total.fract() != 0.0 {
            return Err(format!("task {name:?} has {total} items: give a whole number"));
        }
        let right = accuracy * total;
        if (right - right.round()).abs() > WHOLE {
            return Err(format!(
                "task {name:?}: an accuracy of {accuracy} is {right:.3} right answers of {total}: correct one of them"
            ));
        }
        if let Some(chance) = task.get("chance").filter(|chance| !chance.is_null())
            && !chance.as_f64().is_some_and(|chance| chance > 0.0 && chance <= 1.0)
        {
            return Err(format!("task {name:?} has a chance of {chance}: give a part of one"));
        }
        names.push(name);
        accuracies.push(accuracy);
    }
    if let Some(run) = map.get("recorded").and_then(|recorded| recorded["run"].as_str())
        && !is_run_id(run.rsplit('/').next().unwrap_or_default())
    {
        return Err(format!(
            "`recorded.run` = {run:?} ends in no run id: it is YYYYmmdd-HHMMSS, with _LABEL behind it or without"
        ));
    }
    let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
    let given = match map.get("macro_accuracy") {
        None | Some(Value::Null) if accuracies.is_empty() => {
            return Err("has neither tasks nor a `macro_accuracy`: give one of them".into());
        }
        None | Some(Value::Null) => {
            map.insert("macro_accuracy".to_owned(), json!(mean));
            return Ok(None);
        }
        Some(value) => value.as_f64().filter(|x| (0.0..=1.0).contains(x)),
    };
    let Some(given) = given else { return Err("has a `macro_accuracy` that is no part of one: correct it".into()) };
    if accuracies.is_empty() || (given - mean).abs() <= SAME {
        return Ok(None);
    }
    if (given - mean).abs() > ROUNDED {
        return Err(format!(
            "`macro_accuracy` = {given} is not the mean of its tasks, {mean:.10}: correct one of them, or leave `macro_accuracy` out"
        ));
    }
    Ok(Some(format!(
        "macro_accuracy {given:.10} stands as it was recorded; the mean of the recorded tasks is {mean:.10}"
    )))
}

/// Whether a text is the name of a run as the prefill study gives it: `20260215-093750_final`, or without a label.
fn is_run_id(text: &str) -> bool {
    let (time, label) = text.split_once('_').map_or((text, None), |(time, label)| (time, Some(label)));
    let valid = chrono::NaiveDateTime::parse_from_str(time, "%Y%m%d-%H%M%S").is_ok() && time.len() == 15;
    let word = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    valid && label.is_none_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runs_have_a_grammar() {
        for good in ["20260215-093750", "20260215-093750_final", "20260215-091629_prefill_ft_nonprefill_eval"] {
            assert!(is_run_id(good), "{good}");
        }
        for bad in
            ["", "final", "20260215-093750_", "2026-02-15", "20261315-093750", "20260215-093750_a b", "2026215-93750"]
        {
            assert!(!is_run_id(bad), "{bad}");
        }
    }

    fn task(name: &str, accuracy: f64, total: u64) -> Value {
        json!({"task": name, "accuracy": accuracy, "total": total, "chance": 0.25})
    }

    #[test]
    fn the_macro_accuracy_is_the_mean_or_what_was_recorded_beside_it() {
        let mut result = json!({"tasks": [task("a", 0.5, 4), task("b", 0.25, 4)]});
        assert_eq!(complete(&mut result), Ok(None));
        assert_eq!(result["macro_accuracy"], 0.375);
        let mut rounded = json!({"tasks": [task("a", 0.333_333, 3), task("b", 0.5, 4)], "macro_accuracy": 0.416_666});
        assert!(complete(&mut rounded).unwrap().unwrap().contains("0.4166660000 stands as it was recorded"));
        assert_eq!(rounded["macro_accuracy"], 0.416_666);
        let mut alone = json!({"tasks": [], "macro_accuracy": 0.6});
        assert_eq!(complete(&mut alone), Ok(None));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (result, named) in [
            (json!(3), "no object"),
            (json!({}), "no `tasks`"),
            (json!({"tasks": []}), "neither tasks nor"),
            (json!({"tasks": [{"accuracy": 0.5}]}), "no `task`"),
            (json!({"tasks": [{"task": "a", "accuracy": 0.5}]}), "`total`"),
            (json!({"tasks": [task("a", 0.5, 4), task("a", 0.5, 4)]}), "twice"),
            (json!({"tasks": [task("a", 1.5, 4)]}), "accuracy of 1.5"),
            (json!({"tasks": [task("a", 0.5, 0)]}), "0 items"),
            (json!({"tasks": [task("a", 0.51, 4)]}), "2.040 right answers of 4"),
            (json!({"tasks": [{"task": "a", "accuracy": 0.5, "total": 4, "chance": 0}]}), "chance of 0"),
            (
                json!({"tasks": [task("a", 0.5, 4)], "macro_accuracy": 0.51}),
                "is not the mean of its tasks, 0.5000000000",
            ),
            (json!({"tasks": [task("a", 0.5, 4)], "macro_accuracy": "x"}), "no part of one"),
            (json!({"tasks": [task("a", 0.5, 4)], "recorded": {"run": "runs/eval/final"}}), "no run id"),
        ] {
            let mut result = result;
            let error = complete(&mut result).unwrap_err();
            assert!(error.contains(named), "{named}: {error}");
        }
    }

    #[test]
    fn a_file_names_its_results_and_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        let write = |value: &Value| std::fs::write(&path, value.to_string()).unwrap();
        write(&json!({"version": 1, "source": "a page", "runs": {"one": {"tasks": [task("a", 0.5, 4)]}}}));
        assert_eq!(read(&path, "one").unwrap()["source"], "a page");
        let error = read(&path, "two").unwrap_err();
        assert!(error.to_string().contains("no result `two`: set `run` to one of one"), "{error}");
        assert_eq!(error.exit_code(), crate::record::exit::USAGE);
        write(&json!({"version": 2, "source": "", "runs": {}}));
        assert!(read(&path, "one").unwrap_err().to_string().contains("version 2"));
        write(&json!({"version": 1, "runs": {}}));
        assert!(read(&path, "one").unwrap_err().to_string().contains("docs/formats/recorded.md"));
        assert_eq!(read(&dir.path().join("none"), "one").unwrap_err().exit_code(), crate::record::exit::MISSING_INPUT);
    }
}
