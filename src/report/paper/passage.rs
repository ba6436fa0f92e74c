//! Red passages of a plain paper, and notes below its tables.

use super::Finding;
use super::document::Span;
use super::fill::{Edit, Force, Piece, Planner};
use super::plain::{plain, plain_text, squeeze};
use super::record::{Place, Where};
use super::red::Red;
use super::spec::{RedFill, TableFill};
use super::template::{Match, Squeezed, Template};

/// Plans every red passage of the fill file.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let reds = planner.document().reds();
    for fill in &planner.paper.spec.red {
        passage(planner, fill, &reds);
    }
}

fn passage(planner: &mut Planner<'_>, fill: &RedFill, reds: &[Red]) {
    let document = planner.document();
    let wanted = [squeeze(&fill.starts), plain_text(&fill.starts)];
    let begins = |red: &&Red| {
        red.inner.clone().is_some_and(|inner| {
            let text = plain(document, inner);
            wanted.iter().any(|w| text.starts_with(w.as_str()))
        })
    };
    let found: Vec<&Red> = reds.iter().filter(begins).collect();
    let template = fill.text.as_deref().and_then(|text| Template::parse(text).ok());
    match (found.as_slice(), template) {
        ([one, other, ..], _) => {
            let (file, line) = document.place(other.outer.start);
            let text =
                format!("two red passages begin with `{}`, here and at {file}:{line}: say more of it", fill.starts);
            planner.plan.problems.push(document.finding(one.outer.start, text));
        }
        ([red], template) => {
            let Some(span) = document.span(red.outer.clone()).filter(|s| !planner.is_generated(s.file)) else {
                let text = "this red passage reaches over several files, or is generated: replace it by hand";
                return planner.plan.problems.push(document.finding(red.outer.start, text));
            };
            let before = planner.plan.edits.len();
            match template {
                Some(template) => {
                    let place = Where::Passage { starts: fill.starts.clone() };
                    let text = Squeezed::default();
                    planner.settle(Piece { place, span, text, around: ("", ""), fresh: true }, &template);
                }
                None => uncolour(planner, red),
            }
            if planner.plan.edits.len() > before {
                planner.forget_red(red.outer.clone());
            }
        }
        ([], Some(template)) => again(planner, fill, &template),
        // The colour of a passage that was kept is gone.
        ([], None) => {}
    }
}

/// The words stay, the colour goes.
fn uncolour(planner: &mut Planner<'_>, red: &Red) {
    let document = planner.document();
    let Some(inner) = red.inner.clone() else { return };
    let ends = [document.span(red.outer.start..inner.start), document.span(inner.end..red.outer.end)];
    planner.plan.changes.push(document.finding(red.outer.start, "the colour goes, the words stay"));
    for span in ends.into_iter().flatten() {
        planner.plan.edits.push(Edit { span, text: String::new() });
    }
}

/// Every place in the paper's own files that reads as `template`.
fn places(planner: &Planner<'_>, template: &Template, known: &[Vec<String>]) -> Vec<(usize, Match)> {
    let sources = planner.document().sources.iter().enumerate();
    let own = sources.filter(|(file, _)| !planner.is_generated(*file));
    own.flat_map(|(file, source)| {
        template.matches(&Squeezed::of_text(&source.text, 0), false, known).into_iter().map(move |m| (file, m))
    })
    .collect()
}

fn piece(planner: &Planner<'_>, place: Where, file: usize, found: &Match) -> Piece {
    let source = &planner.document().sources[file].text;
    let text = Squeezed::of_text(&source[found.range.clone()], found.range.start);
    Piece { place, span: Span { file, range: found.range.clone() }, text, around: ("", ""), fresh: false }
}

/// The passage is red no more: the sentence that came in its place.
fn again(planner: &mut Planner<'_>, fill: &RedFill, template: &Template) {
    let document = planner.document();
    let place = Where::Passage { starts: fill.starts.clone() };
    let old = planner.paper.record.place(&place).cloned();
    let searched = old.as_ref().and_then(|old| Template::parse(&old.template).ok());
    let searched = searched.as_ref().unwrap_or(template);
    let known = planner.known(searched, old.as_ref());
    let found = places(planner, searched, &known);
    match (found.as_slice(), old) {
        ([(file, found)], Some(_)) => {
            let piece = piece(planner, place, *file, found);
            planner.settle(piece, template);
        }
        ([(file, found)], None) => {
            let now: Option<Vec<String>> =
                template.keys.iter().map(|key| planner.paper.values.get(key).ok().map(|v| v.printed)).collect();
            let same = now.is_some_and(|now| found.found.iter().map(|t| t.trim()).eq(now.iter().map(String::as_str)));
            let piece = piece(planner, place, *file, found);
            if same || planner.force == Force::Overwrite {
                return planner.settle(piece, template);
            }
            let text = format!(
                "this reads as the text for `{}`, and no record says who wrote its numbers {}: `--force` writes over them",
                fill.starts,
                found.found.join(", ")
            );
            planner.plan.by_hand.push(Finding::at(document.line_of(&piece.span), text));
        }
        ([], None) => {
            let text =
                format!("no red passage begins with `{}`: give its first words as they are printed", fill.starts);
            planner.plan.problems.push(document.finding(0, text));
        }
        ([], Some(old)) => {
            let text = format!(
                "the text that was filled in for `{}` is not there any more: its numbers are not tracked; take it out of the fill file, or make it red again",
                fill.starts
            );
            planner.plan.by_hand.push(Finding::at((old.file.clone(), 1), text));
            planner.plan.places.push(old);
        }
        (several, Some(old)) => copies(planner, fill, several, old, template),
        (_, None) => {
            let text = format!("the text for `{}` stands there several times: make the passage red again", fill.starts);
            planner.plan.problems.push(document.finding(0, text));
        }
    }
}

/// A sentence that stands there several times, in an abstract too: every one says what was filled in, and all are filled;
/// else nobody knows which of them is which.
fn copies(planner: &mut Planner<'_>, fill: &RedFill, found: &[(usize, Match)], old: Place, template: &Template) {
    let document = planner.document();
    let was: Vec<&str> = old.numbers.iter().map(|n| n.printed.as_str()).collect();
    let says = |m: &Match| m.found.iter().map(|t| t.trim()).eq(was.iter().copied());
    if found.iter().all(|(_, m)| says(m)) {
        for (file, m) in found {
            let piece = piece(planner, old.place.clone(), *file, m);
            planner.settle(piece, template);
        }
        // It is one place of the record, and copies of it may be asked for by another entry, too.
        planner.plan.places.dedup_by(|a, b| a.place == b.place);
        let mut seen: Vec<Edit> = Vec::new();
        planner.plan.edits.retain(|edit| {
            let new = edit.span.range.is_empty() || !seen.contains(edit);
            seen.extend(new.then(|| edit.clone()));
            new
        });
        return;
    }
    let places: Vec<String> = found
        .iter()
        .map(|(file, m)| {
            let (name, line) = document.line_of(&Span { file: *file, range: m.range.clone() });
            format!("{} at {name}:{line}", m.found.join(", "))
        })
        .collect();
    let text = format!(
        "{} sentences read as the text for `{}`, where {} was filled in: {}; let all of them say that, or word the others differently",
        found.len(),
        fill.starts,
        was.join(", "),
        places.join("; ")
    );
    let (file, m) = found.iter().find(|(_, m)| !says(m)).unwrap_or(&found[0]);
    let at = document.line_of(&Span { file: *file, range: m.range.clone() });
    planner.plan.by_hand.push(Finding::at(at, text));
    planner.plan.places.push(old);
}

/// The note below a table.
pub(super) fn note(planner: &mut Planner<'_>, fill: &TableFill, behind: usize, note: &str) {
    let document = planner.document();
    let whole = format!("\\par\\smallskip{{\\footnotesize {note}\\par}}");
    // The fill file was checked when it was read.
    let Ok(template) = Template::parse(&whole) else { return };
    let Some(tok) = behind.checked_sub(1).and_then(|i| document.toks.get(i)) else { return };
    let (file, byte) = (tok.file, tok.token.end);
    let place = Where::Note { label: fill.label.clone(), tabular: fill.tabular };
    let old = planner.paper.record.place(&place).cloned();
    let searched = old.as_ref().and_then(|old| Template::parse(&old.template).ok());
    let source = &document.sources[file].text;
    let searched = searched.as_ref().unwrap_or(&template);
    let known = planner.known(searched, old.as_ref());
    let found = searched.matches(&Squeezed::of_text(&source[byte..], byte), false, &known);
    let here = found.iter().find(|m| source[byte..m.range.start].trim().is_empty());
    match (here, old) {
        (Some(found), _) => {
            let piece = piece(planner, place, file, found);
            planner.settle(piece, &template);
        }
        (None, Some(old)) if planner.force == Force::No => {
            let text = "the note below this table was edited by hand: `--force` writes it anew";
            planner.plan.by_hand.push(document.finding(behind - 1, text));
            planner.plan.places.push(old);
        }
        (None, _) => {
            let span = Span { file, range: byte..byte };
            planner
                .settle(Piece { place, span, text: Squeezed::default(), around: ("\n", ""), fresh: true }, &template);
        }
    }
}
