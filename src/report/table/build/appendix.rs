//! The value of each seed behind a table, as a second table that breaks over pages.

use std::collections::BTreeSet;

use super::Builder;
use super::cell::{column, missing, printed};
use super::notes::Notes;
use super::sample::Sample;
use crate::report::stats;
use crate::report::table::grid::{Env, Grid, GridCell, Layout, Note, Printed, Row};
use crate::report::table::spec::{APPENDIX_ENDING, ColumnSpec, RowSpec, Show};

impl Builder<'_> {
    /// The appendix of `grid`. What is missing there is missing here, with its reason.
    pub(super) fn appendix(&mut self, grid: &Grid, samples: &[Vec<Sample>]) -> Grid {
        let shown: Vec<usize> =
            (0..self.spec.columns.len()).filter(|i| self.spec.columns[*i].show != Show::N).collect();
        let specs: Vec<ColumnSpec> = shown
            .iter()
            .map(|i| ColumnSpec { show: Show::Mean, better: None, ..self.spec.columns[*i].clone() })
            .collect();
        let mut lettered = Notes::default();
        let mut rows = Vec::new();
        for (row_spec, line) in self.spec.rows.iter().zip(samples) {
            let mut seeds: BTreeSet<Option<u32>> =
                shown.iter().flat_map(|i| line[*i].expected.iter().copied()).collect();
            // What is shared by all seeds stands in each of their rows.
            if seeds.len() > 1 {
                seeds.remove(&None);
            }
            for seed in seeds {
                let cells = shown.iter().zip(&specs);
                let cells = cells.map(|(i, spec)| self.of_seed(&line[*i], seed, spec, &mut lettered)).collect();
                rows.push(row(row_spec, seed, cells));
            }
        }
        let mut columns: Vec<_> =
            specs.iter().enumerate().map(|(i, spec)| column(spec, rows.iter().map(|r: &Row| &r.cells[i]))).collect();
        let caption = grid.caption.trim_end();
        let caption = match caption.chars().last() {
            None => "The value of each seed.".to_owned(),
            Some('.') => format!("{caption} The value of each seed."),
            Some(_) => format!("{caption}. The value of each seed."),
        };
        let mut notes: Vec<Note> = Vec::new();
        lettered.place(&mut notes, &mut rows, &mut columns);
        Grid {
            key: format!("{}{APPENDIX_ENDING}", grid.key),
            label: grid.label.as_ref().map(|label| format!("{label}{APPENDIX_ENDING}")),
            caption,
            stub: "Seed".to_owned(),
            columns,
            complete: grid.complete,
            signature: grid.signature.replacen(&grid.key, &format!("{}{APPENDIX_ENDING}", grid.key), 1),
            rows,
            notes,
            level: grid.level,
            partial: grid.partial,
            layout: Layout { env: Env::Long, plain: grid.layout.plain, multirow: false, threeparttable: false },
        }
    }

    fn of_seed(&mut self, sample: &Sample, seed: Option<u32>, spec: &ColumnSpec, notes: &mut Notes) -> GridCell {
        let seed = if sample.shared() { None } else { seed };
        let mut cell = self.unprinted(sample, |s| s == seed);
        let value = cell.values.first().map(|v| v.value);
        if value.is_some() {
            cell.missing.clear();
            // What the other side of a comparison has without a seed is behind each of its values.
            let shared = sample.cells.iter().filter(|(s, _)| s.is_none() && seed.is_some());
            cell.runs.extend(shared.filter_map(|(_, index)| self.run_ref(*index)));
        } else {
            cell.runs.clear();
            if cell.missing.is_empty() {
                // What is lost without a seed, such as the one run of the other side, is lost for each of them.
                cell.missing = self.unprinted(sample, |s| s.is_none()).missing;
            }
        }
        let expected = sample.expected.contains(&seed);
        cell = GridCell {
            mean: value,
            median: value,
            iqm: value,
            value,
            n: usize::from(value.is_some()),
            n_expected: usize::from(expected),
            ..cell
        };
        if sample.reference {
            return cell;
        }
        if value.is_none() {
            cell.degenerate = Some(stats::Degenerate::TooFew { have: 0, need: 1 }.to_string());
        }
        cell.printed = printed(spec, &cell);
        if !cell.missing.is_empty() {
            cell.notes.push(notes.add(missing(&cell)));
        } else if cell.printed == Printed::Missing {
            let why = if expected { "degenerate: no number for this seed" } else { "no run of this seed is planned" };
            cell.notes.push(notes.add(why.to_owned()));
        }
        cell
    }
}

fn row(spec: &RowSpec, seed: Option<u32>, cells: Vec<GridCell>) -> Row {
    let (key, label) = match seed {
        Some(seed) => (format!("{}-seed-{seed}", spec.key), seed.to_string()),
        None => (spec.key.clone(), "no seed".to_owned()),
    };
    let group = match spec.group.as_deref().filter(|g| !g.is_empty()) {
        Some(group) => format!("{group}: {}", spec.text()),
        None => spec.text().to_owned(),
    };
    Row { key, label, group: Some(group), note: None, cells }
}
