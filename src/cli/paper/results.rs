//! What the keys of a paper print now: tables and declared values over the sealed results of its studies.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use crate::cli::study::StudyArgs;
use crate::cli::{CliError, Result, merged};
use crate::record::{Need, Seal};
use crate::report::paper::spec::{Spec, ValueSpec};
use crate::report::paper::values::printed;
use crate::report::paper::{KnownTable, NoValue, Value, Values};
use crate::report::query::source::evidence;
use crate::report::query::{Job, Limits, evaluate};
use crate::report::table::{Grid, Partial};
use crate::stages::aggregate::{self, Input, SPEC};
use crate::workflow::run::{Intent, Prepared, Request, prepare};
use crate::workflow::submission::need_of;

/// The results of a paper's studies.
pub(super) struct Loaded {
    pub(super) values: Values,
    /// For people.
    pub(super) notes: Vec<String>,
    /// Hosts, jobs and paths of the runs: what must not leave the house.
    pub(super) secrets: Vec<String>,
    /// Where the runs lie.
    pub(super) runs: Vec<PathBuf>,
}

/// One study with what its cells found.
struct Results {
    name: String,
    inputs: Vec<Input>,
}

/// Reads every study and computes every declared value. With `verify` every output is digested.
///
/// # Errors
/// A study that cannot be read, or two of one name.
pub(super) fn load(
    studies: &[(PathBuf, Option<String>)],
    root: Option<&Path>,
    verify: bool,
    spec: &Spec,
) -> Result<Loaded> {
    let mut loaded = Loaded { values: Values::default(), notes: Vec::new(), secrets: Vec::new(), runs: Vec::new() };
    let mut all: Vec<Results> = Vec::new();
    for (file, profile) in studies {
        let args = StudyArgs {
            study: file.clone(),
            profile: profile.clone(),
            root: root.map(Path::to_path_buf),
            cluster: None,
            // Seals say what is done; Slurm need not be asked.
            local: true,
        };
        let prepared = prepare(&Request { verify, ..args.request() }, Intent::Look)?;
        loaded.notes.extend(prepared.notes.iter().cloned());
        let name = prepared.study.name.to_string();
        if all.iter().any(|r| r.name == name) {
            return Err(CliError::Usage(format!("the study `{name}` is named twice: name it once, with one profile")));
        }
        let inputs = collect(&prepared, needs_of_all(&prepared), false, &mut loaded.secrets, &mut loaded.runs);
        for section in &prepared.study.tables {
            if aggregate::reads_studies(section) {
                let merged = merged::inputs_by(&args, &prepared, section, &mut |other, needs| {
                    collect(other, needs, verify, &mut loaded.secrets, &mut loaded.runs)
                });
                match merged {
                    Ok(inputs) => loaded.values.tables.extend(tables(section, &name, &inputs)),
                    Err(why) => loaded.values.tables.push(without(section, &name, why.to_string())),
                }
            } else {
                loaded.values.tables.extend(tables(section, &name, &inputs));
            }
        }
        all.push(Results { name, inputs });
    }
    declared(spec, &all, &mut loaded.values);
    Ok(loaded)
}

/// Every cell of the study but gates and aggregations.
fn needs_of_all(prepared: &Prepared) -> Vec<Need> {
    let of_results = prepared.plan.cells.iter().filter(|cell| {
        let stage = &prepared.study.stages[cell.def.stage];
        !stage.is_gate() && stage.kind() != SPEC.kind
    });
    let mut needs: Vec<Need> = of_results.map(|cell| need_of(&prepared.study, &cell.def)).collect();
    needs.sort_by(|a, b| a.key.cmp(&b.key));
    needs
}

/// Cells of a study with their results, or why they have none now. With `verify` every output is digested here: the plan did
/// not.
fn collect(
    prepared: &Prepared,
    needs: Vec<Need>,
    verify: bool,
    secrets: &mut Vec<String>,
    runs: &mut Vec<PathBuf>,
) -> Vec<Input> {
    secrets.push(prepared.place.root.display().to_string());
    let mut changed = BTreeSet::new();
    for need in &needs {
        let dir = prepared.place.run_dir(&need.key);
        if let Ok(Some(seal)) = Seal::read(&dir) {
            if verify && seal.verify(&dir).is_some() {
                changed.insert(need.key.clone());
            }
            secrets.extend(seal.jobs.iter().cloned().chain([seal.host]));
        }
        runs.push(dir);
    }
    secrets.sort();
    secrets.dedup();
    let mut inputs = aggregate::collect(&needs, &prepared.place.base);
    merged::judge(prepared, &mut inputs, merged::Judge::All);
    for input in inputs.iter_mut().filter(|input| input.run.is_ok() && changed.contains(&input.key)) {
        input.run = Err("an output is gone or is not what was sealed".to_owned());
    }
    inputs
}

/// A table of the study and its appendix; with missing runs as it is for what is there, to say of each cell what it lacks.
fn tables(section: &Json, study: &str, inputs: &[Input]) -> Vec<KnownTable> {
    let make = |partial: Option<Partial>| -> std::result::Result<Vec<Grid>, String> {
        let (grids, problems) = aggregate::tables(std::slice::from_ref(section), inputs, partial);
        let problems: Vec<String> = problems.into_iter().map(|p| p.0).collect();
        if problems.is_empty() && !grids.is_empty() { Ok(grids) } else { Err(problems.join("; ")) }
    };
    let known = |grid: Grid, partial: bool| KnownTable {
        study: study.to_owned(),
        key: grid.key.clone(),
        grid: Ok(grid),
        partial,
    };
    match make(None) {
        Ok(grids) => {
            grids.into_iter().map(|grid| (grid.partial != Partial::Error, grid)).map(|(p, g)| known(g, p)).collect()
        }
        Err(why) => match make(Some(Partial::Mark)) {
            Ok(grids) => grids.into_iter().map(|grid| known(grid, false)).collect(),
            Err(_) => vec![without(section, study, why)],
        },
    }
}

/// A table that cannot be made.
fn without(section: &Json, study: &str, why: String) -> KnownTable {
    let key = section.get("key").and_then(Json::as_str).unwrap_or_default().to_owned();
    KnownTable { study: study.to_owned(), key, grid: Err(why), partial: false }
}

fn declared(spec: &Spec, studies: &[Results], values: &mut Values) {
    let mut asked = Vec::new();
    for (key, value) in &spec.value {
        let question = match &value.cell {
            Some(cell) => {
                let part = value.part.as_deref().unwrap_or("value");
                let answer = values.number(cell, part).and_then(|(x, found)| {
                    let printed = printed(value, &json!(x)).map_err(NoValue::Missing)?;
                    Ok(Value { printed, ..found })
                });
                values.declared.insert(key.clone(), answer);
                continue;
            }
            None if value.of.is_empty() => of_cells(value, values),
            None => of_stages(value, studies),
        };
        match question {
            Ok((input, found)) => asked.push((key.clone(), value, input, found)),
            Err(why) => {
                values.declared.insert(key.clone(), Err(why));
            }
        }
    }
    let row = json!({});
    let jobs: Vec<Job<'_>> = asked
        .iter()
        .map(|(_, value, input, _)| Job { code: value.value.as_deref().unwrap_or(""), input, row: &row })
        .collect();
    let answers = evaluate(&jobs, Limits::default());
    for ((key, value, _, found), answer) in asked.iter().zip(answers) {
        let answer = match answer.map_err(NoValue::Unknown).as_deref() {
            Ok([one]) => {
                printed(value, one).map_err(NoValue::Missing).map(|printed| Value { printed, ..found.clone() })
            }
            Ok(several) => {
                let n = several.len();
                Err(NoValue::Unknown(format!("its filter gives {n} values: let it give one number or text")))
            }
            Err(why) => Err(why.clone()),
        };
        values.declared.insert(key.clone(), answer);
    }
}

/// The numbers of cells, by the names that the value gives them.
fn of_cells(spec: &ValueSpec, values: &Values) -> std::result::Result<(Json, Value), NoValue> {
    let mut input = serde_json::Map::new();
    let mut found = Value::default();
    for (name, cell) in &spec.cells {
        let (number, value) = values.number(cell, "value")?;
        input.insert(name.clone(), json!(number));
        found.runs.extend(value.runs);
        found.missing.extend(value.missing);
    }
    Ok((Json::Object(input), found))
}

/// The runs of some stages, as gates see them. All of them must be there.
fn of_stages(spec: &ValueSpec, studies: &[Results]) -> std::result::Result<(Json, Value), NoValue> {
    let names: Vec<&str> = studies.iter().map(|s| s.name.as_str()).collect();
    let study = match (&spec.study, studies) {
        (Some(name), _) => studies.iter().find(|s| s.name == *name),
        (None, [one]) => Some(one),
        (None, _) => None,
    };
    let Some(study) = study else {
        return Err(NoValue::Unknown(format!("say of which study: `study = ` one of {}", names.join(", "))));
    };
    let stages: BTreeSet<&str> = study.inputs.iter().map(|i| i.key.stage.as_str()).collect();
    if let Some(unknown) = spec.of.iter().find(|s| !stages.contains(s.as_str())) {
        let known: Vec<&str> = stages.into_iter().collect();
        return Err(NoValue::Unknown(format!(
            "study `{}` has no stage `{unknown}`: use {}",
            study.name,
            known.join(", ")
        )));
    }
    let mut runs = Vec::new();
    let mut found = Value::default();
    for input in study.inputs.iter().filter(|i| spec.of.iter().any(|s| s == i.key.stage.as_str())) {
        let read = input.run.as_ref().map_err(Clone::clone).and_then(|run| Ok((run.record()?, &run.content)));
        match read {
            Ok((record, content)) => {
                found.runs.insert(input.key.to_string(), content.clone());
                runs.push(evidence(record));
            }
            Err(why) => found.missing.push(format!("{}: {} ({why})", study.name, input.key.local_name())),
        }
    }
    if found.missing.is_empty() {
        Ok((Json::Array(runs), found))
    } else {
        Err(NoValue::Missing(found.missing.join(", ")))
    }
}
