//! Which expected cells each place of a table speaks of.

use std::collections::BTreeMap;

use super::Expected;
use crate::report::table::place::has_labels;
use crate::report::table::spec::{ColumnSpec, RowSpec, Seeds, TableSpec};

fn labelled(row: &RowSpec, cell: &Expected) -> bool {
    has_labels(&cell.labels, &row.labels)
}

/// The cells of one stage.
#[derive(Default)]
struct OfStage<'a> {
    /// Of a stage without arms, such as the baseline's: the same for every arm.
    shared: Vec<usize>,
    by_arm: BTreeMap<&'a str, Vec<usize>>,
}

/// Expected cells by stage and arm, of the studies and seeds that the table is about.
pub(super) struct Join<'a> {
    spec: &'a TableSpec,
    expected: &'a [Expected],
    stages: BTreeMap<&'a str, OfStage<'a>>,
    /// By row: whether some arm of its study is what `arm` and `labels` say.
    known: Vec<bool>,
}

impl<'a> Join<'a> {
    pub(super) fn new(spec: &'a TableSpec, expected: &'a [Expected]) -> Self {
        let mut stages: BTreeMap<&str, OfStage<'_>> =
            spec.columns.iter().flat_map(ColumnSpec::stages).map(|stage| (stage, OfStage::default())).collect();
        let listed = |seed: Option<u32>| match (&spec.seeds, seed) {
            (Some(Seeds::List(seeds)), Some(seed)) => seeds.contains(&seed),
            _ => true,
        };
        let studies: Vec<&str> = spec.study_refs().map(|s| s.study).collect();
        for (i, cell) in expected.iter().enumerate() {
            let of_study = studies.is_empty() || studies.contains(&cell.key.study.as_str());
            let Some(stage) = stages.get_mut(cell.key.stage.as_str()) else { continue };
            if of_study && listed(cell.key.seed) {
                match &cell.key.arm {
                    None => stage.shared.push(i),
                    Some(arm) => stage.by_arm.entry(arm.as_str()).or_default().push(i),
                }
            }
        }
        let mut arms: BTreeMap<&str, Vec<&Expected>> = BTreeMap::new();
        for cell in expected.iter().filter(|c| studies.is_empty() || studies.contains(&c.key.study.as_str())) {
            if let Some(arm) = &cell.key.arm {
                arms.entry(arm.as_str()).or_default().push(cell);
            }
        }
        let is_known = |row: &RowSpec| {
            let fits = |cell: &&Expected| {
                row.study.as_ref().is_none_or(|study| cell.key.study.as_str() == study) && labelled(row, cell)
            };
            match &row.arm {
                Some(arm) => arms.get(arm.as_str()).is_some_and(|cells| cells.iter().any(fits)),
                None => row.labels.is_empty() || arms.values().flatten().any(fits),
            }
        };
        let known = spec.rows.iter().map(is_known).collect();
        Self { spec, expected, stages, known }
    }

    /// Whether a row names an arm that there is, or none. Of a mistyped arm the shared cells would be shown.
    pub(super) fn knows(&self, row: usize) -> bool {
        self.known[row]
    }

    /// Every cell that the table may speak of, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = usize> {
        self.stages.values().flat_map(|s| s.shared.iter().chain(s.by_arm.values().flatten()).copied())
    }

    /// The cells of a row and a column with a metric, in the order of the plan.
    pub(super) fn cells(&self, row: usize, column: usize) -> Vec<usize> {
        if !self.known[row] {
            return Vec::new();
        }
        let (row, column) = (&self.spec.rows[row], &self.spec.columns[column]);
        let mut cells = Vec::new();
        for stage in column.stages().filter_map(|stage| self.stages.get(stage)) {
            let arms = stage.by_arm.iter().filter(|(arm, _)| row.arm.as_deref().is_none_or(|own| own == **arm));
            let fits =
                |i: &usize| labelled(row, &self.expected[*i]) && has_labels(&self.expected[*i].labels, &column.labels);
            cells.extend(arms.flat_map(|(_, cells)| cells.iter().copied()).filter(fits));
            cells.extend(&stage.shared);
        }
        if let Some(study) = &row.study {
            cells.retain(|i| self.expected[*i].key.study.as_str() == study);
        }
        cells.sort_unstable();
        cells
    }
}
