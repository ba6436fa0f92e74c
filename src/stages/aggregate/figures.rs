//! The study's figures: those of its `[[figure]]` sections, or where it has none those that every study has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::{Input, Out, tables};
use crate::record::{RecordError, SeriesPoint};
use crate::report::figure::{Figure, FigureSpec, Format, Source, build, default_curves};
use crate::report::table::{Grid, Partial, RunRef, TableProblem};

/// Directory of the figures below the run directory.
pub(super) const FIGURES_DIR: &str = "figures";

/// Series that are drawn where a study has no `[[figure]]`, with what their axis is called.
const CURVES: [(&str, &str); 2] = [("loss", "training loss"), ("val_perplexity", "validation perplexity")];

/// Key of the figure of attacks where a study has no `[[figure]]`.
const ATTACKS: &str = "attack_success";

/// Every figure that can be made of what is there, and what keeps the others from being made.
///
/// `sections` are the study's `[[figure]]` sections, `grids` its finished tables. Without sections: curves of loss and
/// perplexity over training steps, the success of each attack on each of `models`, and bars for each column of a table
/// that says which end is better.
pub fn figures(
    sections: &[Value],
    models: &[&str],
    inputs: &[Input],
    grids: &[Grid],
) -> (Vec<Figure>, Vec<TableProblem>) {
    let mut problems = Vec::new();
    let drawn = drawn_stages(sections, inputs);
    let mut found: Vec<Option<(RunRef, &BTreeMap<String, Vec<SeriesPoint>>)>> = Vec::new();
    for input in inputs {
        // Series are large: only those that are drawn are read.
        let run = input.run.as_ref().ok().filter(|_| drawn.contains(input.key.stage.as_str()));
        found.push(match run.map(|run| (run, run.record())) {
            None => None,
            Some((run, Ok(record))) => {
                let (key, fingerprint) = (input.key.clone(), run.fingerprint.clone());
                Some((RunRef { key, fingerprint, content: run.content.clone() }, &record.series))
            }
            Some((_, Err(why))) => {
                problems.push(TableProblem(format!("{}: its series are missing: {why}", input.key.local_name())));
                None
            }
        });
    }
    let sources: Vec<Source<'_>> = inputs
        .iter()
        .zip(&found)
        .map(|(i, found)| Source {
            key: &i.key,
            labels: &i.labels,
            run: found.as_ref().map(|(run, series)| (run, *series)),
        })
        .collect();
    if sections.is_empty() {
        return (defaults(models, inputs, &sources, grids), problems);
    }
    let stages: Vec<&str> = inputs.iter().map(|i| i.key.stage.as_str()).collect();
    let tables: Vec<Value> = grids
        .iter()
        .map(|g| json!({"key": g.key, "columns": g.columns.iter().map(|c| json!({"key": c.key})).collect::<Vec<_>>()}))
        .collect();
    let mut figures = Vec::new();
    for section in sections {
        let made = match FigureSpec::parse(section, &stages, &tables) {
            Ok(spec) => build(&spec, &sources, grids),
            Err(found) => {
                let name = section.get("key").and_then(Value::as_str).unwrap_or("without a key");
                let problem = |message: &str| TableProblem(format!("figure {name}: {message}"));
                Err(found.iter().map(|p| problem(&p.message)).collect())
            }
        };
        match made {
            Ok(figure) => figures.push(figure),
            Err(found) => problems.extend(found),
        }
    }
    (figures, problems)
}

/// The stages whose series are drawn: those that the lines of sections name; without sections those that train, for
/// the series of an attack count its own iterations.
fn drawn_stages<'a>(sections: &'a [Value], inputs: &'a [Input]) -> BTreeSet<&'a str> {
    if sections.is_empty() {
        let trains = inputs.iter().filter(|i| matches!(i.kind.as_str(), "train" | "command"));
        return trains.map(|i| i.key.stage.as_str()).collect();
    }
    let lines = sections.iter().filter_map(|s| s.get("lines")?.as_array()).flatten();
    lines.filter_map(|line| line.get("stage")?.as_str()).collect()
}

fn defaults(models: &[&str], inputs: &[Input], sources: &[Source<'_>], grids: &[Grid]) -> Vec<Figure> {
    let mut figures = Vec::new();
    // Nobody asked for these: what cannot be drawn (runs without a step in common) is left out.
    figures.extend(default_curves(sources, &CURVES).iter().filter_map(|spec| build(spec, sources, grids).ok()));
    let attacks = attack_table(models, inputs);
    let bars = grids.iter().flat_map(|grid| {
        let better = grid.columns.iter().filter(|c| c.better.is_some());
        better.map(move |c| (grid, format!("{}-{}", grid.key, c.key), vec![c.key.clone()], grid.caption.clone()))
    });
    let all = attacks.as_ref().map(|grid| {
        let columns = grid.columns.iter().map(|c| c.key.clone()).collect();
        (grid, ATTACKS.to_owned(), columns, "Texts on which an attack succeeds".to_owned())
    });
    for (grid, key, columns, title) in all.into_iter().chain(bars) {
        let mut section = json!({"key": key, "kind": "bars", "title": title, "table": grid.key, "columns": columns});
        if key == ATTACKS {
            section["y_label"] = json!("success, %");
        }
        let one = [json!({"key": grid.key, "columns": columns.iter().map(|c| json!({"key": c})).collect::<Vec<_>>()})];
        // What a table has no numbers for has no bars, and is no mistake of the study.
        if let Ok(spec) = FigureSpec::parse(&section, &[], &one)
            && let Ok(figure) = build(&spec, sources, std::slice::from_ref(grid))
        {
            figures.push(figure);
        }
    }
    figures
}

/// The success rate of each attack (a column) on each model (a row), where the study has attacks.
fn attack_table(models: &[&str], inputs: &[Input]) -> Option<Grid> {
    let mut columns: Vec<Value> = Vec::new();
    for input in inputs.iter().filter(|i| matches!(i.kind.as_str(), "uat" | "hotflip")) {
        let (stage, arm) = (input.key.stage.as_str(), input.key.arm.is_some());
        // Arms are bars of tables that say which: nobody can tell here what they stand for.
        if !arm && !columns.iter().any(|c| c["key"] == stage) {
            columns.push(json!({
                "key": stage, "label": stage, "stage": stage, "metric": ".results[$row.model].success_rate",
                "scale": 100, "digits": 1, "show": "mean_ci",
            }));
        }
    }
    if columns.is_empty() || models.is_empty() {
        return None;
    }
    let rows: Vec<Value> = models.iter().map(|m| json!({"key": m, "label": m, "with": {"model": m}})).collect();
    let section = json!({"key": ATTACKS, "rows": rows, "columns": columns, "partial": "mark"});
    tables(&[section], inputs, Some(Partial::Mark)).0.pop()
}

/// Writes every figure in every format below `figures/`.
///
/// # Errors
/// A file cannot be written.
pub fn write_figures(out: &mut Out<'_>, figures: &[Figure]) -> Result<(), RecordError> {
    for figure in figures {
        for format in Format::FILES {
            let path = Path::new(FIGURES_DIR).join(format!("{}.{}", figure.key, format.extension()));
            out.put(&path, &figure.file(format))?;
        }
    }
    Ok(())
}
