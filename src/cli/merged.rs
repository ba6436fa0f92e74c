//! The cells that tables read where no aggregation says it: of a study without one, and of several studies, each under
//! its own plan with its own fingerprints.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::study::StudyArgs;
use super::{CliError, Result, output};
use crate::record::Need;
use crate::report::document::DocumentSpec;
use crate::report::table::{Grid, Partial, StudyRef, TableProblem, TableSpec};
use crate::stages::aggregate::{self, Input};
use crate::workflow::plan::CellState;
use crate::workflow::run::{Intent, Prepared, Request, prepare};
use crate::workflow::study::claimed_elsewhere;
use crate::workflow::submission::need_of;

/// The expected cells of a `[[table]]` with `studies`, of the stages that it reads. A study lies beside this one and
/// is found by the name that its file claims; it is read under the profile that the table says, else under this one's.
pub(super) fn inputs(args: &StudyArgs, prepared: &Prepared, section: &Value) -> Result<Vec<Input>> {
    inputs_by(args, prepared, section, &mut |other, needs| {
        let mut inputs = aggregate::collect(&needs, &other.place.base);
        judge(other, &mut inputs, Judge::Found);
        inputs
    })
}

/// Which inputs get the plan's word for why they are no results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judge {
    /// Those that were found; of the others their reason is known.
    Found,
    /// All: the plan knows more of a stale cell.
    All,
}

/// What a plan would run again is no result, though its own seal is whole: a run that it needs is not what it was.
pub(super) fn judge(prepared: &Prepared, inputs: &mut [Input], which: Judge) {
    let undone = prepared.plan.cells.iter().filter(|cell| !matches!(cell.state, CellState::Done { .. }));
    let states: BTreeMap<_, _> = undone.map(|cell| (&cell.def.key, &cell.state)).collect();
    for input in inputs.iter_mut().filter(|input| which == Judge::All || input.run.is_ok()) {
        let why = match states.get(&input.key) {
            Some(CellState::Done { .. }) | None => continue,
            Some(state @ CellState::Stale(_)) => format!("stale: {}", state.reason()),
            Some(CellState::MissingOutputs(_)) => "an output is gone or is not what was sealed".to_owned(),
            Some(CellState::Damaged(_)) => "its seal is damaged or was edited".to_owned(),
            Some(CellState::Missing | CellState::Queued(_) | CellState::QueuedStale(_)) => "not sealed".to_owned(),
            Some(CellState::Stopped(_) | CellState::Waiting(_)) => "stopped by a gate or kill criterion".to_owned(),
        };
        input.run = Err(why);
    }
}

/// As [`inputs`]; `collect` reads the cells of each study.
pub(super) fn inputs_by(
    args: &StudyArgs,
    prepared: &Prepared,
    section: &Value,
    collect: &mut dyn FnMut(&Prepared, Vec<Need>) -> Vec<Input>,
) -> Result<Vec<Input>> {
    let spec = TableSpec::parse(section, &[]).map_err(|problems| {
        let lines: Vec<String> = problems.into_iter().map(|p| p.message).collect();
        CliError::Usage(lines.join("\n"))
    })?;
    let stages: BTreeSet<&str> = spec.columns.iter().flat_map(|column| column.stages()).collect();
    let mut found = Vec::new();
    for named in spec.study_refs() {
        let other = prepare(&request(args, prepared, &spec.key, named)?, Intent::Look)?;
        other.notes.iter().for_each(|n| output::note(n));
        let wanted = other.plan.cells.iter().filter(|c| stages.contains(c.def.key.stage.as_str()));
        let needs: Vec<_> = wanted.map(|c| need_of(&other.study, &c.def)).collect();
        found.extend(collect(&other, needs));
    }
    Ok(found)
}

/// The tables of some sections, those over several studies too. `of_this` are the cells of this study.
pub(super) fn tables(
    args: &StudyArgs,
    prepared: &Prepared,
    sections: &[Value],
    of_this: &[Input],
    partial: Option<Partial>,
) -> Result<(Vec<Grid>, Vec<TableProblem>)> {
    let (several, own): (Vec<Value>, Vec<Value>) = sections.iter().cloned().partition(aggregate::reads_studies);
    let (mut grids, mut problems) = aggregate::tables(&own, of_this, partial);
    for section in several {
        let of_studies = inputs(args, prepared, &section)?;
        let (more, wrong) = aggregate::tables(&[section], &of_studies, partial);
        grids.extend(more);
        problems.extend(wrong);
    }
    Ok((grids, problems))
}

/// The cells that the tables, figures and documents of a study read which has no aggregation.
pub(super) fn needs_of_tables(prepared: &Prepared) -> Vec<Need> {
    let own = prepared.study.tables.iter().filter(|section| !aggregate::reads_studies(section));
    let columns = own.filter_map(|section| section.get("columns")?.as_array()).flatten();
    let figures = prepared.study.figures.iter().filter_map(|section| section.get("lines")?.as_array()).flatten();
    let mut stages: BTreeSet<String> =
        columns.chain(figures).filter_map(|part| Some(part.get("stage")?.as_str()?.to_owned())).collect();
    let all: Vec<&str> = prepared.study.stages.iter().map(|stage| stage.name.as_str()).collect();
    for document in prepared.study.documents.iter().filter_map(|section| DocumentSpec::parse(section, &all).ok()) {
        stages.extend(document.stages().into_iter().map(str::to_owned));
    }
    let read = prepared.plan.cells.iter().filter(|c| stages.contains(c.def.key.stage.as_str()));
    let mut needs: Vec<Need> = read.map(|c| need_of(&prepared.study, &c.def)).collect();
    needs.sort_by(|a, b| a.key.cmp(&b.key));
    needs
}

fn request(args: &StudyArgs, prepared: &Prepared, table: &str, named: StudyRef<'_>) -> Result<Request> {
    let file = if prepared.study.name.as_str() == named.study {
        args.study.clone()
    } else {
        claimed_elsewhere(&args.study, named.study).ok_or_else(|| {
            CliError::Usage(format!(
                "table `{table}` reads the study `{}`, and no study file beside {} has that name: put it there, or mend \
                 `studies`",
                named.study,
                args.study.display()
            ))
        })?
    };
    let profile = named.profile.unwrap_or(prepared.study.profile.as_str()).to_owned();
    Ok(Request { study: file, profile: Some(profile), ..args.request() })
}
