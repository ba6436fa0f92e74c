//! What stands below a table: how its numbers were made, and lettered notes.

use std::collections::{BTreeMap, BTreeSet};

use super::Expected;
use super::join::Join;
use super::sample::Sample;
use crate::report::table::grid::{Column, GridCell, IntervalKind, Note, Printed, Row};
use crate::report::table::number;
use crate::report::table::spec::{IntervalMethod, Partial, RatioError, Show, TableSpec};

/// Notes that get a letter, each text once.
#[derive(Debug, Default)]
pub(super) struct Notes {
    texts: Vec<String>,
    places: BTreeMap<String, usize>,
}

impl Notes {
    /// Index of a note.
    pub(super) fn add(&mut self, text: String) -> usize {
        *self.places.entry(text).or_insert_with_key(|text| {
            self.texts.push(text.clone());
            self.texts.len() - 1
        })
    }

    /// Index of a note that also says what the one at `there` says: a row or a header has room for one.
    pub(super) fn joined(&mut self, there: Option<usize>, text: &str) -> usize {
        match there {
            Some(there) => self.add(format!("{} {text}", self.texts[there])),
            None => self.add(text.to_owned()),
        }
    }

    /// Appends the notes that are used behind `notes` in the order in which a reader meets them, with letters.
    pub(super) fn place(self, notes: &mut Vec<Note>, rows: &mut [Row], columns: &mut [Column]) {
        let first = notes.len();
        let mut order: BTreeMap<usize, usize> = BTreeMap::new();
        let mut met: Vec<usize> = Vec::new();
        {
            let mut meet = |index: &mut usize| {
                let next = met.len();
                let place = *order.entry(*index).or_insert_with(|| {
                    met.push(*index);
                    next
                });
                *index = first + place;
            };
            columns.iter_mut().filter_map(|c| c.note.as_mut()).for_each(&mut meet);
            for row in rows {
                row.note.iter_mut().for_each(&mut meet);
                row.cells.iter_mut().flat_map(|c| &mut c.notes).for_each(&mut meet);
            }
        }
        for (i, index) in met.into_iter().enumerate() {
            notes.push(Note { mark: Some(letter(i)), text: self.texts[index].clone() });
        }
    }
}

/// "n = 3 seeds", "n = 2 to 3 seeds".
fn counts(cells: &[&GridCell]) -> Option<String> {
    let counts: BTreeSet<usize> = cells.iter().map(|c| c.n).filter(|n| *n > 1).collect();
    Some(match (counts.first()?, counts.last()?) {
        (least, most) if least == most => format!("n = {most}"),
        (least, most) => format!("n = {least} to {most}"),
    })
}

/// Whether a number of it is printed: of what is dropped nothing is said.
fn is_there(cell: &GridCell) -> bool {
    !matches!(cell.printed, Printed::Missing | Printed::Reference)
}

/// What the numbers are, once for each kind of them, for readers of the table.
pub(super) fn how_it_was_made(spec: &TableSpec, rows: &[Row], samples: &[Vec<Sample>]) -> Vec<String> {
    let of = |fits: &dyn Fn(usize) -> bool| -> Vec<&GridCell> {
        let columns: Vec<usize> = (0..spec.columns.len()).filter(|i| fits(*i)).collect();
        rows.iter().flat_map(|r| columns.iter().map(|i| &r.cells[*i])).filter(|c| c.n > 1 && is_there(c)).collect()
    };
    let shows = |show: Show| of(&|i| spec.columns[i].show == show && spec.columns[i].ratio.is_none());
    let percent = number::with_suffix(spec.level * 100.0, 2);
    let percent = percent.trim_end_matches('0').trim_end_matches('.');
    let mut notes = Vec::new();
    let (sd, ci) = (shows(Show::MeanSd), shows(Show::MeanCi));
    let interval = match ci.iter().find_map(|c| c.interval_kind) {
        Some(IntervalKind::Bootstrap) => "percentile bootstrap",
        _ => "t",
    };
    let spread_counts = counts(&[sd.clone(), ci.clone()].concat());
    if let Some(n) = &spread_counts {
        notes.push(match (sd.is_empty(), ci.is_empty()) {
            (false, true) => format!("Mean ± sample standard deviation over {n} seeds."),
            (true, _) => format!("Mean and {percent} % {interval} interval over {n} seeds."),
            (false, false) => format!(
                "Mean ± sample standard deviation, and {percent} % {interval} intervals in brackets, over {n} seeds."
            ),
        });
    }
    for (show, words) in
        [(Show::Median, "Median"), (Show::Iqm, "Interquartile mean"), (Show::Values, "Values in the order of seeds,")]
    {
        if let Some(n) = counts(&shows(show)) {
            notes.push(format!("{words} over {n} seeds.").replace(", over", ","));
        }
    }
    let over_tasks = shows(Show::IqmTasks);
    if let Some(n) = counts(&over_tasks) {
        let tasks: BTreeSet<usize> = samples.iter().flatten().filter_map(|s| Some(s.tasks.first()?.len())).collect();
        let tasks: Vec<String> = tasks.iter().map(usize::to_string).collect();
        notes.push(format!(
            "Interquartile mean over runs and tasks, {percent} % intervals of a bootstrap of runs within each task; {n} seeds, \
             {} tasks.",
            tasks.join(" or ")
        ));
    }
    for (error, words) in [
        (RatioError::Propagated, "errors are propagated, the two sides taken as independent"),
        (RatioError::Bootstrap, "errors are a percentile bootstrap over common seeds"),
    ] {
        let ratios = of(&|i| spec.columns[i].ratio.as_ref().is_some_and(|r| r.error == error));
        if let Some(n) = counts(&ratios) {
            let with_error = ratios.iter().any(|c| c.spread.is_some() || c.interval.is_some());
            let words = if with_error { format!("; {words}") } else { String::new() };
            notes.push(format!("Ratios of means over the common seeds, {n}{words}."));
        }
    }
    // Seeds that differences have in common, where the first line does not say it already.
    let is_delta = |i: usize| spec.columns[i].delta.is_some();
    let reference = |r: usize, i: usize| samples[r][i].reference;
    let deltas: Vec<&GridCell> = rows
        .iter()
        .enumerate()
        .flat_map(|(r, row)| row.cells.iter().enumerate().map(move |(i, c)| (r, i, c)))
        .filter(|(r, i, _)| is_delta(*i) && !reference(*r, *i))
        .map(|(_, _, c)| c)
        .filter(|c| is_there(c))
        .collect();
    if let Some(n) = counts(&deltas).filter(|n| spread_counts.as_ref() != Some(n)) {
        notes.push(format!("Differences are paired on the common seeds, {n}."));
    }
    notes
}

/// One line that says how the numbers were made, after sacrebleu's: the seeds and intervals are those in the cells.
pub(super) fn signature(spec: &TableSpec, rows: &[Row], join: &Join<'_>, expected: &[Expected]) -> String {
    let cells = || rows.iter().flat_map(|r| &r.cells).filter(|c| is_there(c));
    let own: BTreeSet<u32> = cells().flat_map(|c| &c.values).filter_map(|v| v.seed).collect();
    let seeds: Vec<String> = own.iter().map(u32::to_string).collect();
    let partial = match spec.partial {
        Partial::Error => "error",
        Partial::Mark => "mark",
        Partial::Drop => "drop",
    };
    let mut line = format!("table:{}", spec.key);
    let studies: BTreeSet<String> = join
        .all()
        .map(|i| &expected[i].key)
        .filter(|_| !spec.studies.is_empty())
        .map(|key| format!("{}/{}", key.study, key.profile))
        .collect();
    if !studies.is_empty() {
        line.push_str(&format!("|studies:{}", studies.into_iter().collect::<Vec<_>>().join(",")));
    }
    line.push_str(&format!("|seeds:{}|sd:n-1", if seeds.is_empty() { "none".to_owned() } else { seeds.join(",") }));
    let drawn = |show: Show| spec.columns.iter().any(|c| c.show == show);
    let ratios = spec.columns.iter().filter_map(|c| c.ratio.as_ref());
    let bootstrap = spec.interval == IntervalMethod::Bootstrap && drawn(Show::MeanCi);
    let resampled = bootstrap
        || ratios.clone().any(|r| r.error == RatioError::Bootstrap)
        || drawn(Show::IqmTasks)
        || spec.test.as_ref().is_some_and(|t| t.method.draws());
    let kinds: BTreeSet<IntervalKind> = cells().filter_map(|c| c.interval_kind).collect();
    let kinds: Vec<&str> = kinds
        .into_iter()
        .map(|kind| match kind {
            IntervalKind::T => "t",
            IntervalKind::Bootstrap => "bootstrap-percentile",
            IntervalKind::Stratified => "bootstrap-stratified",
            IntervalKind::Propagated => "propagated-t",
        })
        .collect();
    match kinds.as_slice() {
        [] => line.push_str("|interval:none"),
        kinds => line.push_str(&format!("|interval:{}-{}", kinds.join(","), spec.level)),
    }
    if resampled {
        line.push_str(&format!("|resamples:{}|rng:{}", spec.resamples, spec.bootstrap_seed));
    }
    if let Some(test) = &spec.test {
        let alphas: Vec<String> = test.strictest_first().iter().rev().map(|(alpha, _)| alpha.to_string()).collect();
        line.push_str(&format!("|test:{}-{}-{}", test.method.name(), test.family.name(), alphas.join(",")));
    }
    line.push_str(&format!("|partial:{partial}|seedbed:{}", env!("CARGO_PKG_VERSION")));
    line
}

/// a, b, ..., z, aa, ab, ...
fn letter(mut i: usize) -> String {
    let mut text = String::new();
    loop {
        text.insert(0, char::from(b'a' + (i % 26) as u8));
        if i < 26 {
            return text;
        }
        i = i / 26 - 1;
    }
}
