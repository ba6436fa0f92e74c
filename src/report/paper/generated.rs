//! What is written as a whole: files of tables and of values, and the marked regions of the paper.

use std::collections::BTreeMap;

use super::Finding;
use super::document::Span;
use super::fill::{Edit, Force, Paper, Plan, Planner};
use super::record::{PaperRecord, Written};
use super::tex;
use super::values::{self, KnownTable, Value};
use crate::record::Digest;
use crate::report::render::{Format, render};
use crate::report::table::Grid;

/// The file of values in the folder of generated files.
pub const VALUES_FILE: &str = "values";

/// The macro of keyed values.
pub(super) const MACRO: &str = "seedbed";

/// A generated file.
#[derive(Debug, Clone)]
pub struct Generated {
    /// Its name, relative to the paper.
    pub file: String,
    /// The table in it.
    pub table: Option<String>,
    /// Its text; none where a result is missing.
    pub text: Option<String>,
    /// Where the paper inputs it.
    pub place: (String, usize),
}

/// Plans every generated file that the paper inputs, and its marked regions.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let document = planner.document();
    let folder = format!("{}/", planner.paper.spec.folder);
    let mut values_place = None;
    for (name, token) in document.inputs() {
        let Some(inside) = name.trim_start_matches("./").strip_prefix(&folder) else { continue };
        let inside = inside.strip_suffix(".tex").unwrap_or(inside);
        let place = document.place(*token);
        if inside == VALUES_FILE {
            values_place.get_or_insert(place);
            continue;
        }
        let file = format!("{folder}{inside}.tex");
        if planner.plan.generated.iter().any(|g| g.file == file) {
            continue;
        }
        let text = table(planner, inside, &place);
        planner.plan.generated.push(Generated { file, table: Some(inside.to_owned()), text, place });
    }
    keyed_values(planner, &folder, values_place);
    for region in document.regions() {
        let place = document.line_of(&region.marker);
        if planner.is_generated(region.marker.file) {
            continue;
        }
        if let Some(text) = table(planner, &region.table, &place) {
            self::region(planner, &region, &text, place);
        }
    }
}

/// The text of a table, if every result is there that it needs.
fn table(planner: &mut Planner<'_>, name: &str, place: &(String, usize)) -> Option<String> {
    let known = match planner.paper.values.table(name) {
        Ok(known) => known,
        Err(why) => {
            planner.plan.unfilled.push(Finding::at(place.clone(), why));
            return None;
        }
    };
    let grid = match &known.grid {
        Ok(grid) => grid,
        Err(why) => {
            planner.plan.unfilled.push(Finding::at(place.clone(), format!("table `{name}` cannot be made: {why}")));
            return None;
        }
    };
    let cells = cells(name, known, grid);
    let mut lost: Vec<&str> = cells.values().flat_map(|v| v.missing.iter().map(String::as_str)).collect();
    lost.sort_unstable();
    lost.dedup();
    if !lost.is_empty() {
        let text = format!("table `{name}` is incomplete: {}", lost.join(", "));
        let finding = Finding::at(place.clone(), text);
        if !known.partial {
            planner.plan.unfilled.push(finding);
            return None;
        }
        planner.plan.partial.push(finding);
    }
    for (key, value) in cells {
        planner.plan.keys.entry(key).or_insert(value);
    }
    Some(render(grid, Format::Latex))
}

/// The text of a table as it would be written now, if nothing of it is missing.
pub(super) fn now(paper: Paper<'_>, name: &str) -> Option<String> {
    let known = paper.values.table(name).ok()?;
    known.grid.as_ref().ok().map(|grid| render(grid, Format::Latex))
}

/// What each cell of a table prints, and from which runs, by key.
fn cells(name: &str, known: &KnownTable, grid: &Grid) -> BTreeMap<String, Value> {
    let mut cells = BTreeMap::new();
    for row in &grid.rows {
        for (column, cell) in grid.columns.iter().zip(&row.cells) {
            let (runs, missing) = values::runs_of(cell, &known.study);
            let value = Value { printed: values::full(cell), runs, missing };
            cells.insert(format!("{name}/{}/{}", row.key, column.key), value);
        }
    }
    cells
}

fn keyed_values(planner: &mut Planner<'_>, folder: &str, place: Option<(String, usize)>) {
    let document = planner.document();
    let mut lines = BTreeMap::new();
    let mut first = None;
    for used in document.uses(MACRO) {
        let tok = document.toks[used.token];
        let source = &document.sources[tok.file];
        // Where the macro is defined it is not used.
        if planner.is_generated(tok.file) {
            continue;
        }
        let place = document.place(used.token);
        first.get_or_insert_with(|| place.clone());
        let end = document.group(used.token + 1).and_then(|(_, behind)| document.toks.get(behind - 1));
        let end = end.map_or(source.text.len(), |t| t.token.end);
        planner.plan.tracked.push(Span { file: tok.file, range: tok.token.start..end.max(tok.token.start) });
        let trimmed = used.key.trim();
        let why = if used.key.contains('#') {
            Some(format!("`\\{MACRO}{{{trimmed}}}` has a key that only TeX knows: write the key out where it is used"))
        } else if trimmed != used.key {
            Some(format!("TeX keeps the spaces of this key and finds no value: write `\\{MACRO}{{{trimmed}}}`"))
        } else {
            None
        };
        if let Some(why) = why {
            planner.plan.unfilled.push(Finding { key: Some(used.key), ..Finding::at(place, why) });
            continue;
        }
        if let Some(value) = planner.value(&used.key, &place) {
            lines.insert(used.key, value.printed);
        }
    }
    let declared: Vec<String> = planner.paper.values.declared.keys().cloned().collect();
    for key in declared {
        // One that is not used and has no value is nobody's problem yet.
        if let Ok(value) = planner.paper.values.get(&key) {
            lines.insert(key, value.printed);
        }
    }
    let file = format!("{folder}{VALUES_FILE}.tex");
    match (place, first) {
        (Some(place), _) => {
            let text = Some(values::macro_file(&lines));
            planner.plan.generated.push(Generated { file, table: None, text, place });
        }
        (None, Some(first)) => {
            let text = format!(
                "`\\{MACRO}` is used here: write `\\input{{{folder}{VALUES_FILE}}}` before \\begin{{document}}"
            );
            planner.plan.unfilled.push(Finding::at(first, text));
            let text = Some(values::macro_file(&lines));
            planner.plan.generated.push(Generated { file, table: None, text, place: (String::new(), 0) });
        }
        (None, None) => {}
    }
}

/// The digest that stands in a region's first line.
fn short(text: &str) -> String {
    Digest::of_bytes(text.as_bytes()).as_str()[..16].to_owned()
}

fn region(planner: &mut Planner<'_>, region: &super::document::Region, text: &str, place: (String, usize)) {
    let document = planner.document();
    let inside = &document.sources[region.inner.file].text[region.inner.range.clone()];
    planner.plan.tracked.push(region.inner.clone());
    if tex::unbalanced(&tex::tokens(inside)).is_some() {
        let text =
            format!("the braces inside of region `{}` do not pair: mend them, or empty the region", region.table);
        return planner.plan.problems.push(Finding::at(place, text));
    }
    if inside == text && region.digest.as_deref() == Some(&short(text)) {
        return;
    }
    let edited = region.digest.as_deref().is_some_and(|digest| digest != short(inside));
    if edited && inside != text && planner.force == Force::No {
        let text = format!("region `{}` was edited by hand: `--force` writes it anew", region.table);
        return planner.plan.by_hand.push(Finding::at(place, text));
    }
    let (file, line) = place.clone();
    let changes = differences(planner.paper, &planner.plan.keys, &region.table, inside, text);
    if region.digest.is_none() || changes.is_empty() {
        planner.plan.changes.push(Finding::at(place, format!("region `{}` gets its table", region.table)));
    }
    if region.digest.is_some() {
        planner.plan.changes.extend(changes.into_iter().map(|f| Finding {
            file: file.clone(),
            line: line + f.line,
            ..f
        }));
    }
    let marker = format!("% seedbed begin {} {}", region.table, short(text));
    planner.plan.edits.push(Edit { span: region.marker.clone(), text: marker });
    // A file that ends with the begin line has no line end before the region.
    planner.plan.edits.push(Edit { span: region.inner.clone(), text: text.to_owned() });
}

/// Files that were written, for the record; what could not be made keeps what was said of it.
pub(super) fn written(plan: &Plan, old: &PaperRecord) -> Vec<Written> {
    let entry = |g: &Generated| match &g.text {
        Some(text) => {
            Some(Written { file: g.file.clone(), table: g.table.clone(), digest: Digest::of_bytes(text.as_bytes()) })
        }
        None => old.files.iter().find(|w| w.file == g.file).cloned(),
    };
    let mut files: Vec<Written> = plan.generated.iter().filter_map(entry).collect();
    files.sort_by(|a, b| a.file.cmp(&b.file));
    files
}

/// Lines of a generated table that differ, with the runs of their row that changed. Lines count from 1; the file is left empty.
pub(super) fn differences(
    paper: Paper<'_>,
    keys: &BTreeMap<String, Value>,
    table: &str,
    old: &str,
    new: &str,
) -> Vec<Finding> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let mut found = Vec::new();
    for n in 0..old.len().max(new.len()) {
        let (was, now) = (old.get(n).copied().unwrap_or(""), new.get(n).copied().unwrap_or(""));
        if was == now {
            continue;
        }
        let changed = runs_of_line(paper, keys, table, now);
        let cells = |line: &str| -> Vec<String> {
            line.trim().trim_end_matches("\\\\").split(" & ").map(|c| c.trim().to_owned()).collect()
        };
        let (a, b) = (cells(was), cells(now));
        let (was, now) = if a.len() == b.len() {
            let pairs = a.iter().zip(&b).filter(|(a, b)| a != b);
            let (was, now): (Vec<&str>, Vec<&str>) = pairs.map(|(a, b)| (a.as_str(), b.as_str())).unzip();
            (was.join(" & "), now.join(" & "))
        } else {
            (was.trim().to_owned(), now.trim().to_owned())
        };
        found.push(Finding::number((String::new(), n + 1), table, &was, &now, changed));
    }
    found
}

/// The runs that changed behind the cells of the row that a line of LaTeX holds.
fn runs_of_line(paper: Paper<'_>, keys: &BTreeMap<String, Value>, table: &str, line: &str) -> Vec<String> {
    let Ok(Ok(grid)) = paper.values.table(table).map(|t| &t.grid) else { return Vec::new() };
    let first = line.split('&').next().unwrap_or("");
    let label = |row: &crate::report::table::Row| crate::report::render::tex(&row.label);
    let rows = grid.rows.iter().filter(|row| first.contains(&label(row)));
    let Some(row) = rows.max_by_key(|row| row.label.len()) else { return Vec::new() };
    let prefix = format!("{table}/{}/", row.key);
    let differs = |key: &str, value: &Value| paper.record.keys.get(key).is_none_or(|old| old.printed != value.printed);
    let cells = keys.iter().filter(|(key, value)| key.starts_with(&prefix) && differs(key, value));
    let mut runs: Vec<String> = cells.flat_map(|(key, value)| paper.record.changed_runs(key, &value.runs)).collect();
    runs.sort();
    runs.dedup();
    runs
}
