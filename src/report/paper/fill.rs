//! Which bytes of a paper change so that its numbers are those of the results, and what stands in the way.
//!
//! A number that was filled before is changed only if it still is what was filled: one that somebody edited is reported and
//! left alone. What a fill does not name stays as it is, byte for byte.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::Finding;
use super::document::{Document, Span};
use super::generated::{self, Generated};
use super::passage;
use super::plain::says;
use super::record::{KeyRecord, Number, PAPER_VERSION, PaperRecord, Place, Where};
use super::spec::{RowFill, Spec, TableFill};
use super::tabular::{Cell, Row, Table};
use super::template::{Squeezed, Template};
use super::values::{Value, Values};
use crate::report::render;

/// What a fill looks at.
#[derive(Debug, Clone, Copy)]
pub struct Paper<'a> {
    /// The paper.
    pub document: &'a Document,
    /// Its fill file.
    pub spec: &'a Spec,
    /// What keys print now.
    pub values: &'a Values,
    /// What was filled last.
    pub record: &'a PaperRecord,
}

/// What to do with numbers that were edited by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Report them.
    No,
    /// Write over them.
    Overwrite,
}

/// Bytes of a file that are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Which.
    pub span: Span,
    /// What comes in their place.
    pub text: String,
}

/// What a fill would do.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Why nothing can be filled; then nothing else counts.
    pub problems: Vec<Finding>,
    /// Changes of the paper's own files.
    pub edits: Vec<Edit>,
    /// Generated files as they are to be.
    pub generated: Vec<Generated>,
    /// Numbers that change, and texts that are filled for the first time.
    pub changes: Vec<Finding>,
    /// Numbers that were edited by hand and stay.
    pub by_hand: Vec<Finding>,
    /// What cannot be filled because a result is missing or a key means nothing.
    pub unfilled: Vec<Finding>,
    /// Numbers with fewer runs than expected, which their table allows.
    pub partial: Vec<Finding>,
    /// What the paper prints for each key, and where: before the changes.
    pub prints: BTreeMap<String, Vec<((String, usize), String)>>,
    /// Bytes that hold numbers with keys.
    pub tracked: Vec<Span>,
    /// Red passages that are to be filled, by the first byte.
    pub filled_red: BTreeSet<(usize, usize)>,
    /// The record as it is to be.
    pub places: Vec<Place>,
    /// Every key that the paper uses.
    pub keys: BTreeMap<String, Value>,
}

/// A piece of the paper that a template is compared with.
pub(super) struct Piece {
    /// Which place it is.
    pub(super) place: Where,
    /// Its bytes; empty where something is to be inserted.
    pub(super) span: Span,
    /// Its text.
    pub(super) text: Squeezed,
    /// Put around what is inserted into an empty place.
    pub(super) around: (&'static str, &'static str),
    /// It is a placeholder: whatever stands there goes.
    pub(super) fresh: bool,
}

/// Says what a fill would do.
pub fn plan(paper: Paper<'_>, force: Force) -> Plan {
    let mut planner = Planner { paper, force, plan: Plan::default() };
    for fill in &paper.spec.fill {
        planner.table(fill);
    }
    passage::plan(&mut planner);
    generated::plan(&mut planner);
    planner.no_overlaps();
    planner.plan
}

impl Plan {
    /// The record of a paper that this was done to.
    pub fn record(&self, paper: Paper<'_>, studies: Vec<super::spec::StudyRef>) -> PaperRecord {
        let mut keys = BTreeMap::new();
        for (key, value) in &self.keys {
            keys.insert(key.clone(), KeyRecord { printed: value.printed.clone(), runs: value.runs.clone() });
        }
        // What has no value now keeps what is known of it: the number still stands in the paper.
        let unmade: Vec<String> = self
            .generated
            .iter()
            .filter(|g| g.text.is_none())
            .filter_map(|g| Some(format!("{}/", g.table.as_ref()?)))
            .collect();
        let stands = |key: &String| {
            unmade.iter().any(|table| key.starts_with(table))
                || self.unfilled.iter().any(|f| f.key.as_ref() == Some(key))
                || self.places.iter().flat_map(|p| &p.numbers).any(|n| n.key == *key)
        };
        for (key, old) in &paper.record.keys {
            if !keys.contains_key(key) && stands(key) {
                keys.insert(key.clone(), old.clone());
            }
        }
        let mut places = self.places.clone();
        places.sort_by(|a, b| a.place.cmp(&b.place));
        PaperRecord { version: PAPER_VERSION, studies, files: generated::written(self, paper.record), places, keys }
    }
}

/// The files that change, with their texts.
///
/// `edits` do not overlap.
pub fn apply(document: &Document, edits: &[Edit]) -> Vec<(String, String)> {
    let mut by_file: BTreeMap<usize, Vec<&Edit>> = BTreeMap::new();
    for edit in edits {
        by_file.entry(edit.span.file).or_default().push(edit);
    }
    let mut changed = Vec::new();
    for (file, mut edits) in by_file {
        // Insertions at one place stay in their order: the sort is stable.
        edits.sort_by_key(|e| (e.span.range.start, e.span.range.end));
        let source = &document.sources[file];
        let (mut text, mut at) = (String::new(), 0);
        for edit in edits {
            text.push_str(&source.text[at..edit.span.range.start]);
            text.push_str(&edit.text);
            at = edit.span.range.end;
        }
        text.push_str(&source.text[at..]);
        if text != source.text {
            changed.push((source.name.clone(), text));
        }
    }
    changed
}

pub(super) struct Planner<'a> {
    pub(super) paper: Paper<'a>,
    pub(super) force: Force,
    pub(super) plan: Plan,
}

impl<'a> Planner<'a> {
    pub(super) fn document(&self) -> &'a Document {
        self.paper.document
    }

    /// True for files that a fill writes as a whole.
    pub(super) fn is_generated(&self, file: usize) -> bool {
        let name = &self.document().sources[file].name;
        name.strip_prefix(&self.paper.spec.folder).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The value of a key, which the paper prints at `place`.
    pub(super) fn value(&mut self, key: &str, place: &(String, usize)) -> Option<Value> {
        match self.paper.values.get(key) {
            Ok(value) => {
                if !value.missing.is_empty() {
                    let text = format!("`{key}` is incomplete: {}", value.missing.join(", "));
                    self.plan.partial.push(Finding { key: Some(key.to_owned()), ..Finding::at(place.clone(), text) });
                }
                self.plan.keys.insert(key.to_owned(), value.clone());
                Some(value)
            }
            Err(none) => {
                let text = format!("`{key}` has no value: {}", none.why());
                self.plan.unfilled.push(Finding { key: Some(key.to_owned()), ..Finding::at(place.clone(), text) });
                None
            }
        }
    }

    fn table(&mut self, fill: &TableFill) {
        let document = self.document();
        let table = match Table::find(document, &fill.label, fill.tabular) {
            Ok(table) => table,
            Err(problem) => return self.plan.problems.push(problem),
        };
        if let Some(tok) = table.rows.first().and_then(|r| document.toks.get(r.cells[0].whole.start))
            && self.is_generated(tok.file)
        {
            let text = format!("table `{}` stands in a generated file: leave it out of the fill file", fill.label);
            return self.plan.problems.push(document.finding(table.rows[0].cells[0].whole.start, text));
        }
        for (old, new) in &fill.header {
            self.header(&table, fill, old, new);
        }
        for row in &fill.rows {
            self.row(&table, fill, row);
        }
        if let Some(note) = &fill.note {
            passage::note(self, fill, table.behind, note);
        }
    }

    /// A header cell is replaced where it has the old text, and is done where it has the new one.
    fn header(&mut self, table: &Table, fill: &TableFill, old: &str, new: &str) {
        let document = self.document();
        let cells = |text: &str| -> Vec<(usize, Cell)> {
            let rows = table.rows[..table.header].iter().enumerate();
            rows.flat_map(|(n, row)| row.cells.iter().map(move |c| (n, c.clone())))
                .filter(|(_, c)| says(document, c.content.clone(), text))
                .collect()
        };
        let (mut found, mut done) = (cells(old), cells(new));
        // The same words may be what is to lose its colour.
        let is_new = |(_, c): &(usize, Cell)| document.source(c.content.clone()) == new;
        done.extend(found.iter().filter(|c| is_new(c)).cloned());
        found.retain(|c| !is_new(c));
        let mut rows: Vec<usize> = found.iter().map(|(n, _)| *n).collect();
        rows.dedup();
        let place = table.rows.first().map_or(0, |r| r.cells[0].whole.start);
        if found.is_empty() && done.is_empty() {
            let texts: Vec<String> = table.rows[..table.header]
                .iter()
                .flat_map(|r| &r.cells)
                .map(|c| super::plain::plain(document, c.content.clone()))
                .filter(|t| !t.is_empty())
                .collect();
            let text = format!("table `{}` has no header cell `{old}`: they are {}", fill.label, texts.join(" | "));
            return self.plan.problems.push(document.finding(place, text));
        }
        if rows.len() < found.len() {
            let text = format!("table `{}` has two header cells `{old}` in one row: fill them by hand", fill.label);
            return self.plan.problems.push(document.finding(place, text));
        }
        for (_, cell) in found {
            // Keys in headers print once, by the table's rows; here they are text.
            if let Some(span) = insertion_or_content(document, &cell) {
                self.forget_red(cell.content.clone());
                let text = format!("header `{old}` becomes `{new}`");
                self.plan.changes.push(document.finding(cell.content.start, text));
                self.plan.edits.push(Edit { span, text: new.to_owned() });
            }
        }
    }

    fn row(&mut self, table: &Table, fill: &TableFill, row: &RowFill) {
        let document = self.document();
        let place = document.place(table.rows.first().map_or(0, |r| r.cells[0].whole.start));
        let Some(templates) = self.templates(row, &place) else { return };
        match table.row(document, &row.first, row.second.as_deref()) {
            Err(problem) => self.plan.problems.push(problem),
            Ok(Some(found)) => {
                let columns = found.columns();
                if row.from.is_some() && templates.len() + 1 != columns {
                    return self.other_columns(fill, row, found, columns, templates.len() + 1);
                }
                self.unwrap_red(found.cells[0].content.clone());
                for (n, template) in templates.iter().enumerate().filter(|(_, t)| !is_empty(t)) {
                    self.cell(found, fill, row, n + 2, template);
                }
            }
            Ok(None) => match &row.after {
                Some(after) => self.insert(table, fill, row, after, &templates),
                None => {
                    let rows: Vec<&str> = table.rows.iter().map(|r| r.first.as_str()).collect();
                    let text = format!(
                        "table `{}` has no row `{}`: it has {}; say `after = \"ROW\"` to insert it",
                        fill.label,
                        row.first,
                        rows.join(" | ")
                    );
                    self.plan.problems.push(Finding::at(place, text));
                }
            },
        }
    }

    /// The template of each cell from the second on.
    fn templates(&mut self, row: &RowFill, place: &(String, usize)) -> Option<Vec<Template>> {
        let texts: Vec<String> = match &row.from {
            None => row.cells.clone(),
            Some(from) => {
                let table = from.rsplit_once('/').map_or(from.as_str(), |(table, _)| table);
                match self.paper.values.table(table).map(|t| &t.grid) {
                    Ok(Ok(grid)) => grid.columns.iter().map(|c| format!("[[{from}/{}/full]]", c.key)).collect(),
                    Ok(Err(why)) => {
                        let text = format!("row `{}` cannot be filled: {why}", row.first);
                        self.plan.unfilled.push(Finding::at(place.clone(), text));
                        return None;
                    }
                    Err(why) => {
                        let text = format!("row `{}`: `from`: {why}", row.first);
                        self.plan.problems.push(Finding::at(place.clone(), text));
                        return None;
                    }
                }
            }
        };
        // The fill file was checked when it was read.
        texts.iter().map(|text| Template::parse(text).ok()).collect()
    }

    fn cell(&mut self, found: &Row, fill: &TableFill, row: &RowFill, column: usize, template: &Template) {
        let document = self.document();
        let start = found.cells[0].whole.start;
        let Some(cell) = found.cell(column) else {
            let text = format!("row `{}` of table `{}` has no column {column}", row.first, fill.label);
            return self.plan.problems.push(document.finding(start, text));
        };
        let Some(span) = insertion_or_content(document, cell) else {
            let text = format!(
                "column {column} of row `{}` has braces that do not pair, or reaches over several files: fill it by hand",
                row.first
            );
            return self.plan.problems.push(document.finding(start, text));
        };
        let text = Squeezed::new(document, cell.content.clone(), span.file);
        let around = if cell.whole.is_empty() { (" ", " ") } else { (" ", "") };
        let place = Where::Cell {
            label: fill.label.clone(),
            tabular: fill.tabular,
            row: row.first.clone(),
            second: row.second.clone(),
            column,
        };
        let before = self.plan.edits.len();
        self.settle(Piece { place, span, text, around, fresh: cell.content.is_empty() }, template);
        if self.plan.edits.len() > before {
            self.forget_red(cell.content.clone());
        }
    }

    fn other_columns(&mut self, fill: &TableFill, row: &RowFill, at: &Row, columns: usize, given: usize) {
        let text = format!(
            "table `{}` has {columns} columns, row `{}` has {given}: give a text for each by `cells`",
            fill.label, row.first
        );
        self.plan.problems.push(self.paper.document.finding(at.cells[0].whole.start, text));
    }

    fn insert(&mut self, table: &Table, fill: &TableFill, row: &RowFill, after: &str, templates: &[Template]) {
        let document = self.document();
        let above = match table.row(document, after, None) {
            Ok(Some(above)) => above,
            Ok(None) => {
                let rows: Vec<&str> = table.rows.iter().map(|r| r.first.as_str()).collect();
                let text = format!(
                    "table `{}` has no row `{after}` to insert behind: it has {}",
                    fill.label,
                    rows.join(" | ")
                );
                let start = table.rows.first().map_or(0, |r| r.cells[0].whole.start);
                return self.plan.problems.push(document.finding(start, text));
            }
            Err(problem) => return self.plan.problems.push(problem),
        };
        let start = above.cells[0].whole.start;
        let columns = table.rows.iter().map(Row::columns).max().unwrap_or(0);
        if templates.len() + 1 != columns {
            return self.other_columns(fill, row, above, columns, templates.len() + 1);
        }
        let last = above.cells.last().map_or(start, |c| c.content.end.max(c.whole.start));
        let at = above.ending.clone().map_or(last, |e| e.end);
        let Some(tok) = at.checked_sub(1).and_then(|i| document.toks.get(i)) else { return };
        let (file, byte) = (tok.file, tok.token.end);
        let where_ = document.place(at.saturating_sub(1));
        let mut cells = vec![as_tex(&row.first)];
        for (n, template) in templates.iter().enumerate() {
            let values: Option<Vec<Value>> = template.keys.iter().map(|key| self.value(key, &where_)).collect();
            let Some(values) = values else { return };
            let printed: Vec<String> = values.into_iter().map(|v| v.printed).collect();
            cells.push(template.fill(&printed));
            let place = Where::Cell {
                label: fill.label.clone(),
                tabular: fill.tabular,
                row: row.first.clone(),
                second: row.second.clone(),
                column: n + 2,
            };
            if !is_empty(template) {
                self.remember(place, file, template, &printed);
            }
        }
        let source = &document.sources[file].text;
        // Behind a comment on the same line; with the indentation of the row above.
        let line_end = source[byte..].find('\n').map_or(source.len(), |n| byte + n);
        let rest = source[byte..line_end].trim();
        let byte = if rest.is_empty() || rest.starts_with('%') {
            byte + source[byte..line_end].trim_end().len()
        } else {
            byte
        };
        let first = document.toks[start..]
            .iter()
            .find(|t| t.file == file && !source[t.token.start..t.token.end].trim().is_empty());
        let line_start = first.map_or(byte, |t| source[..t.token.start].rfind('\n').map_or(0, |n| n + 1));
        let indent: String = source[line_start..].chars().take_while(|c| *c == ' ' || *c == '\t').collect();
        let end = if above.ending.is_none() { " \\\\" } else { "" };
        let text = format!("{end}\n{indent}{} \\\\", cells.join(" & "));
        self.plan.changes.push(Finding::at(where_, format!("row `{}` goes behind this one", row.first)));
        self.plan.edits.push(Edit { span: Span { file, range: byte..byte }, text });
    }

    /// Compares a piece of the paper with what its template prints now, and plans what follows.
    pub(super) fn settle(&mut self, piece: Piece, template: &Template) {
        let document = self.document();
        let place = document.line_of(&piece.span);
        let old = self.paper.record.place(&piece.place).cloned();
        let values: Option<Vec<Value>> = template.keys.iter().map(|key| self.value(key, &place)).collect();
        // Without a value it stays as it is, and so does what is known of it.
        let Some(values) = values else {
            self.plan.places.extend(old);
            return;
        };
        let now: Vec<String> = values.iter().map(|v| v.printed.clone()).collect();
        let known: Vec<Vec<String>> = now.iter().map(|text| vec![text.clone()]).collect();
        let found = template.matches(&piece.text, true, &known).pop();
        let was = old.as_ref().and_then(|old| {
            let template = Template::parse(&old.template).ok()?;
            let found = template.matches(&piece.text, true, &self.known(&template, Some(old))).pop()?;
            Some((template, found))
        });
        match (old, was) {
            (_, _) if piece.fresh => self.write_all(piece, template, &now),
            (Some(old), Some((was, found))) => {
                let mut numbers = old.numbers.clone();
                let mut kept = false;
                for ((i, slot), text) in found.slots.iter().enumerate().zip(&found.found) {
                    let text = text.trim();
                    let printed = old.numbers.get(i).map_or("", |n| n.printed.as_str());
                    let same_key = was.keys == template.keys;
                    let span = Span { file: piece.span.file, range: slot.clone() };
                    let at = document.line_of(&span);
                    let key = was.keys[i].clone();
                    self.plan.prints.entry(key.clone()).or_default().push((at.clone(), text.to_owned()));
                    self.plan.tracked.push(span.clone());
                    let is_now = same_key && text == now[i];
                    if text != printed && !is_now && self.force == Force::No {
                        kept = true;
                        let now = if same_key { format!(", the results give {}", now[i]) } else { String::new() };
                        let text = format!(
                            "`{key}` was edited by hand: {text}, where {printed} was filled in{now}: `--force` writes over it"
                        );
                        self.plan.by_hand.push(Finding { key: Some(key), ..Finding::at(at, text) });
                        continue;
                    }
                    if was == *template {
                        if let Some(number) = numbers.get_mut(i) {
                            number.printed.clone_from(&now[i]);
                        }
                        if !is_now {
                            let changed = self.paper.record.changed_runs(&key, &values[i].runs);
                            self.plan.changes.push(Finding::number(at, &key, text, &now[i], changed));
                            self.plan.edits.push(Edit { span, text: now[i].clone() });
                        }
                    }
                }
                if was == *template || kept {
                    self.plan.places.push(Place { numbers, ..old });
                } else {
                    self.write_all(piece, template, &now);
                }
            }
            // It says what it should, whoever wrote it.
            (_, _)
                if found
                    .as_ref()
                    .is_some_and(|f| f.found.iter().map(|t| t.trim()).eq(now.iter().map(String::as_str))) =>
            {
                let found = found.map(|f| f.slots).unwrap_or_default();
                for (slot, (key, text)) in found.into_iter().zip(template.keys.iter().zip(&now)) {
                    let span = Span { file: piece.span.file, range: slot };
                    self.plan.prints.entry(key.clone()).or_default().push((document.line_of(&span), text.clone()));
                    self.plan.tracked.push(span);
                }
                self.remember(piece.place, piece.span.file, template, &now);
            }
            (Some(old), None) if self.force == Force::No => {
                let text = format!(
                    "this was edited by hand: `{}` was filled in, the results give `{}`: `--force` writes over it",
                    was_filled(&old),
                    template.fill(&now)
                );
                self.plan.by_hand.push(Finding::at(place, text));
                self.plan.places.push(old);
            }
            _ => self.write_all(piece, template, &now),
        }
    }

    /// What may stand for each key of a template: what was printed there, and what it prints now.
    pub(super) fn known(&self, template: &Template, old: Option<&Place>) -> Vec<Vec<String>> {
        let of = |(n, key): (usize, &String)| {
            let was = old.and_then(|old| Some(old.numbers.get(n)?.printed.clone()));
            was.into_iter().chain(self.paper.values.get(key).ok().map(|v| v.printed)).collect()
        };
        template.keys.iter().enumerate().map(of).collect()
    }

    fn write_all(&mut self, piece: Piece, template: &Template, now: &[String]) {
        let text = template.fill(now);
        let at = self.document().line_of(&piece.span);
        self.plan.changes.push(Finding::at(at, format!("`{text}` goes here")));
        let text = match piece.span.range.is_empty() {
            true => format!("{}{text}{}", piece.around.0, piece.around.1),
            false => text,
        };
        self.remember(piece.place, piece.span.file, template, now);
        self.plan.edits.push(Edit { span: piece.span, text });
    }

    pub(super) fn remember(&mut self, place: Where, file: usize, template: &Template, printed: &[String]) {
        let number = |(i, (key, printed)): (usize, (&String, &String))| Number {
            occurrence: i + 1,
            key: key.clone(),
            printed: printed.clone(),
        };
        let numbers = template.keys.iter().zip(printed).enumerate().map(number).collect();
        let file = self.document().sources[file].name.clone();
        self.plan.places.push(Place { place, file, template: template.source(), numbers });
    }

    /// The colour of what stays in a filled row goes.
    fn unwrap_red(&mut self, tokens: Range<usize>) {
        let document = self.document();
        for red in document.reds() {
            let Some(inner) = red.inner.clone() else { continue };
            if red.outer.start < tokens.start || red.outer.end > tokens.end {
                continue;
            }
            self.forget_red(red.outer.clone());
            let before = document.span(red.outer.start..inner.start);
            let behind = document.span(inner.end..red.outer.end);
            for span in [before, behind].into_iter().flatten() {
                self.plan.edits.push(Edit { span, text: String::new() });
            }
        }
    }

    /// Red among these tokens is not left over.
    pub(super) fn forget_red(&mut self, tokens: Range<usize>) {
        for i in tokens {
            if let Some(tok) = self.document().toks.get(i) {
                self.plan.filled_red.insert((tok.file, tok.token.start));
            }
        }
    }

    /// Two edits of the same bytes would lose one of them.
    fn no_overlaps(&mut self) {
        let mut edits: Vec<&Edit> = self.plan.edits.iter().collect();
        edits.sort_by_key(|e| (e.span.file, e.span.range.start, e.span.range.end));
        for pair in edits.windows(2) {
            let (a, b) = (&pair[0].span, &pair[1].span);
            if a.file == b.file && (b.range.start < a.range.end || (a == b && !a.range.is_empty())) {
                let text = "two entries of the fill file are about the same text here: keep one of them";
                self.plan.problems.push(Finding::at(self.paper.document.line_of(b), text));
                return;
            }
        }
    }
}

fn was_filled(old: &Place) -> String {
    let printed: Vec<String> = old.numbers.iter().map(|n| n.printed.clone()).collect();
    Template::parse(&old.template).map_or_else(|_| old.template.clone(), |t| t.fill(&printed))
}

fn is_empty(template: &Template) -> bool {
    template.keys.is_empty() && template.texts[0].trim().is_empty()
}

/// A first cell as LaTeX: what has commands is LaTeX already.
pub(super) fn as_tex(text: &str) -> String {
    if text.contains(['\\', '$', '{']) { text.to_owned() } else { render::tex(text) }
}

/// The bytes of a cell's content, or where it would stand.
fn insertion_or_content(document: &Document, cell: &Cell) -> Option<Span> {
    if !cell.content.is_empty() {
        return document.span(cell.content.clone()).filter(|_| document.balanced(cell.content.clone()));
    }
    // Behind the separator.
    let tok = document.toks.get(cell.whole.start.checked_sub(1)?)?;
    Some(Span { file: tok.file, range: tok.token.end..tok.token.end })
}
