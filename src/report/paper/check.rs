//! What is wrong with the numbers of a paper as it is.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Finding;
use super::document::Span;
use super::fill::{Force, Paper, Plan, plan};
use super::generated::{self, MACRO};
use super::numerals;
use super::tex::Kind;
use super::values;
use crate::record::Digest;

/// What a check asks beside the numbers.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Sections in which no red may be left, and whose other numerals are listed.
    pub sections: Vec<String>,
    /// Numerals that no key stands for are errors.
    pub strict: bool,
}

/// What a check found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Checked {
    /// Why the paper cannot be checked at all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Finding>,
    /// What is wrong.
    pub errors: Vec<Finding>,
    /// What may be.
    pub warnings: Vec<Finding>,
    /// Numbers with keys that were compared.
    pub numbers: usize,
}

/// Compares a paper with the results. `current` reads generated files as they are.
pub fn check(paper: Paper<'_>, options: &Options, current: &dyn Fn(&str) -> Option<String>) -> Checked {
    let mut plan = plan(paper, Force::No);
    let mut checked = Checked { problems: plan.problems.clone(), ..Checked::default() };
    if !checked.problems.is_empty() {
        return checked;
    }
    for found in [&plan.changes, &plan.by_hand, &plan.unfilled] {
        checked.errors.extend(found.iter().cloned());
    }
    // Their tables say that missing runs may be shown; a number that is not what they print now is an error of its own.
    checked.warnings.extend(plan.partial.iter().cloned());
    checked.numbers = plan.places.iter().map(|p| p.numbers.len()).sum();
    untold(paper, &plan, &mut checked);
    generated_files(paper, &mut plan, current, &mut checked);
    unread(paper, &plan, current, &mut checked);
    disagreements(&plan, &mut checked);
    placeholders(paper, &mut checked);
    sections(paper, &plan, options, &mut checked);
    for list in [&mut checked.errors, &mut checked.warnings] {
        list.sort();
        list.dedup();
    }
    checked
}

/// Numbers that were filled and that the fill file names no more.
fn untold(paper: Paper<'_>, plan: &Plan, checked: &mut Checked) {
    for place in paper.record.places.iter().filter(|p| !plan.places.iter().any(|now| now.place == p.place)) {
        let numbers: Vec<&str> = place.numbers.iter().map(|n| n.printed.as_str()).collect();
        let text = format!(
            "{} was filled in and the fill file names its place no more: run `seedbed paper fill`",
            if numbers.is_empty() { place.template.clone() } else { numbers.join(", ") }
        );
        checked.errors.push(Finding::at((place.file.clone(), 1), text));
    }
}

fn generated_files(paper: Paper<'_>, plan: &mut Plan, current: &dyn Fn(&str) -> Option<String>, checked: &mut Checked) {
    for file in plan.generated.clone() {
        // Why it cannot be made was said.
        let Some(now) = &file.text else { continue };
        let Some(text) = current(&file.file) else {
            let what = format!("`{}` is not there: run `seedbed paper fill`", file.file);
            checked.errors.push(Finding::at(file.place.clone(), what));
            continue;
        };
        let recorded = paper.record.files.iter().find(|w| w.file == file.file);
        let edited = recorded.is_some_and(|w| w.digest != Digest::of_bytes(text.as_bytes()));
        let before = checked.errors.len();
        match &file.table {
            Some(table) => {
                let cells = plan.keys.keys().filter_map(|k| k.strip_prefix(table)?.strip_prefix('/'));
                checked.numbers += cells.filter(|k| k.split('/').count() == 2).count();
                let found = generated::differences(paper, &plan.keys, table, &text, now);
                checked.errors.extend(found.into_iter().map(|f| Finding { file: file.file.clone(), ..f }));
            }
            None => keyed_values(paper, plan, &text, checked),
        }
        if edited || (text != *now && checked.errors.len() == before) {
            let what =
                if edited { "this file was edited by hand" } else { "this file is not what would be written now" };
            let what = format!("{what}: run `seedbed paper fill`");
            checked.errors.push(Finding::at((file.file.clone(), 1), what));
        }
    }
}

/// What TeX may read and this does not.
fn unread(paper: Paper<'_>, plan: &Plan, current: &dyn Fn(&str) -> Option<String>, checked: &mut Checked) {
    let folder = format!("{}/", paper.spec.folder);
    for i in paper.document.unresolved() {
        let command = paper.document.command(i).unwrap_or_default();
        let text = format!("the file of this `\\{command}` cannot be known without TeX: write its name out");
        checked.errors.push(paper.document.finding(i, text));
    }
    for (name, place) in &paper.document.unread {
        // Of one that is to be generated more was said.
        if name.trim_start_matches("./").starts_with(&folder) {
            continue;
        }
        let is_there = current(name).is_some() || current(&format!("{name}.tex")).is_some();
        let leads_out = name.starts_with('/') || name.split('/').any(|part| part == "..");
        if is_there || leads_out {
            let text = format!("`{name}` lies outside of the paper's folder and is not read: copy it beside the paper");
            checked.errors.push(Finding::at(place.clone(), text));
        } else {
            let text = format!("`{name}` is not in the paper's folder: what it holds is not checked");
            checked.warnings.push(Finding::at(place.clone(), text));
        }
    }
    // Generated once, and not seen to be input now: by TeX it may be.
    for file in paper.record.files.iter().filter(|w| !plan.generated.iter().any(|g| g.file == w.file)) {
        let Some(text) = current(&file.file) else { continue };
        let made = file.table.as_ref().and_then(|table| generated::now(paper, table));
        let edited = file.digest != Digest::of_bytes(text.as_bytes());
        if edited || made.is_some_and(|made| made != text) {
            let what = if edited { "was edited by hand" } else { "is not what would be written now" };
            let text =
                format!("this file {what}, and the paper does not input it by name: input it by name, or delete it");
            checked.errors.push(Finding::at((file.file.clone(), 1), text));
        }
    }
}

fn keyed_values(paper: Paper<'_>, plan: &mut Plan, text: &str, checked: &mut Checked) {
    let stored = values::read_macros(text);
    for used in paper.document.uses(MACRO) {
        let Some(now) = plan.keys.get(&used.key) else { continue };
        checked.numbers += 1;
        let place = paper.document.place(used.token);
        if let Some((printed, _)) = stored.get(&used.key) {
            plan.prints.entry(used.key.clone()).or_default().push((place.clone(), printed.clone()));
        }
        match stored.get(&used.key) {
            Some((printed, _)) if *printed == now.printed => {}
            Some((printed, _)) => {
                let changed = paper.record.changed_runs(&used.key, &now.runs);
                checked.errors.push(Finding::number(place, &used.key, printed, &now.printed, changed));
            }
            None => {
                let text = format!("`{}` has no stored value: run `seedbed paper fill`", used.key);
                checked.errors.push(Finding { key: Some(used.key), ..Finding::at(place, text) });
            }
        }
    }
}

/// One key, two texts.
fn disagreements(plan: &Plan, checked: &mut Checked) {
    for (key, prints) in &plan.prints {
        let texts: BTreeSet<&str> = prints.iter().map(|(_, text)| text.as_str()).collect();
        if let [((file, line), _), ..] = prints.as_slice()
            && texts.len() > 1
        {
            let places: Vec<String> =
                prints.iter().map(|((file, line), text)| format!("{text} at {file}:{line}")).collect();
            let text = format!("two places disagree about `{key}`: {}", places.join(", "));
            checked.errors.push(Finding { key: Some(key.clone()), ..Finding::at((file.clone(), *line), text) });
        }
    }
}

fn placeholders(paper: Paper<'_>, checked: &mut Checked) {
    for (n, source) in paper.document.sources.iter().enumerate() {
        // Comments are no text: with spaces in their place everything else stays where it is.
        let mut text = source.text.clone().into_bytes();
        for token in super::tex::tokens(&source.text).into_iter().filter(|t| t.kind == Kind::Comment) {
            text[token.start..token.end].fill(b' ');
        }
        let text = String::from_utf8_lossy(&text);
        if is_generated(paper, n) {
            continue;
        }
        for placeholder in paper.spec.placeholders.iter().filter(|p| !p.is_empty()) {
            for (at, _) in text.match_indices(placeholder.as_str()) {
                let what = format!("the placeholder `{placeholder}` is left");
                checked.errors.push(Finding::at((source.name.clone(), source.line(at)), what));
            }
        }
    }
}

fn is_generated(paper: Paper<'_>, file: usize) -> bool {
    let name = &paper.document.sources[file].name;
    name.strip_prefix(&paper.spec.folder).is_some_and(|rest| rest.starts_with('/'))
}

fn sections(paper: Paper<'_>, plan: &Plan, options: &Options, checked: &mut Checked) {
    let document = paper.document;
    let mut strict = Vec::new();
    for (name, must) in options.sections.iter().map(|s| (s, true)).chain(paper.spec.sections.iter().map(|s| (s, false)))
    {
        match document.section(name) {
            Ok(section) => {
                let tracked: &[Span] = &plan.tracked;
                let found = numerals::untracked(document, section.tokens.clone(), tracked, &|f| is_generated(paper, f));
                if options.strict { &mut checked.errors } else { &mut checked.warnings }.extend(found);
                if must {
                    strict.push(section.tokens);
                }
            }
            Err(why) => checked.problems.push(document.finding(0, why)),
        }
    }
    for red in document.reds() {
        let tok = document.toks[red.outer.start];
        if plan.filled_red.contains(&(tok.file, tok.token.start)) || is_generated(paper, tok.file) {
            continue;
        }
        let words = super::plain::plain(document, red.inner.clone().unwrap_or(0..0));
        let shown: String = words.chars().take(40).collect();
        let finding = document.finding(red.outer.start, format!("red text is left: `{shown}`"));
        let must = strict.iter().any(|s| s.contains(&red.outer.start));
        if must { &mut checked.errors } else { &mut checked.warnings }.push(finding);
    }
}
