//! What compares cells: best and second best, unequal numbers of runs, and tests of significance.

use std::cmp::Ordering;

use super::Builder;
use super::cell::shown;
use super::items::OfCell;
use super::sample::{Sample, pair};
use crate::report::stats::{self, Answer, Degenerate, Resamples};
use crate::report::table::grid::{CellTest, GridCell, Note, Printed, Row};
use crate::report::table::number::significant;
use crate::report::table::spec::{Better, DeltaKind, Show, TableSpec, TestMethod, TestSpec};

/// Marks the best, and if it is asked the second best, of each column that says which end is better. Ranked on raw
/// values, ties judged on what is printed; a column whose cells all print alike has neither.
pub(super) fn mark_best(spec: &TableSpec, rows: &mut [Row]) {
    for (i, column) in spec.columns.iter().enumerate() {
        let Some(better) = column.better.filter(|_| !matches!(column.show, Show::N | Show::Values)) else { continue };
        let of = |row: &Row| row.cells[i].value.filter(|_| !matches!(row.cells[i].printed, Printed::Missing));
        let order =
            |a: &f64, b: &f64| -> Ordering { if better == Better::Higher { a.total_cmp(b) } else { b.total_cmp(a) } };
        let Some(best) = rows.iter().filter_map(of).max_by(order).map(|x| shown(column, x)) else { continue };
        // The second best prints otherwise than the best: what prints alike is tied.
        let rest = rows.iter().filter_map(of).filter(|x| shown(column, *x) != best);
        let Some(second) = rest.max_by(order).map(|x| shown(column, x)) else { continue };
        for row in rows.iter_mut() {
            let text = of(row).map(|x| shown(column, x));
            row.cells[i].best = spec.best && text.as_ref() == Some(&best);
            row.cells[i].second = spec.second && text.as_ref() == Some(&second);
        }
    }
}

/// One test of a family.
struct Planned {
    row: usize,
    column: usize,
    /// Key of what it is compared with.
    against: String,
    left: Vec<f64>,
    right: Vec<f64>,
    n_expected: usize,
    /// Row and column of the metric on each side.
    left_at: (usize, usize),
    right_at: (usize, usize),
}

impl Builder<'_> {
    /// Marks cells that have fewer runs than others of their row, though none of theirs is missing.
    pub(super) fn mark_unequal(&mut self, rows: &mut [Row]) {
        for row in rows {
            let seeded = |cell: &GridCell| cell.values.iter().any(|v| v.seed.is_some());
            let most = row.cells.iter().filter(|c| seeded(c)).map(|c| c.n).max().unwrap_or(0);
            for (cell, column) in row.cells.iter_mut().zip(&self.spec.columns) {
                let counts = seeded(cell) && cell.missing.is_empty() && column.show != Show::N;
                if counts && cell.n < most {
                    let text = format!("n = {}, where other cells of the row have n = {most}", cell.n);
                    cell.notes.push(self.notes.add(text));
                }
            }
        }
    }

    /// Tests the cells that the table asks for and marks those that pass. What the marks mean, as a note.
    pub(super) fn tests(&mut self, samples: &[Vec<Sample>], rows: &mut [Row]) -> Vec<Note> {
        let Some(test) = self.spec.test.as_ref() else { return Vec::new() };
        let mut planned = self.planned(test, samples);
        if test.method.reads_items() {
            self.take_items(test, &mut planned);
        }
        self.can_pass(test, &planned);
        let found: Vec<Answer<f64>> = planned.iter().map(|p| self.p_of(test.method, p)).collect();
        // What has no answer stays in the family: it cannot make the others easier.
        let family: Vec<f64> = found.iter().map(|p| p.unwrap_or(1.0)).collect();
        let adjusted = test.family.adjust(&family).unwrap_or_else(|_| vec![1.0; family.len()]);
        let hopeless = self.hopeless(test, &planned);
        let levels = test.strictest_first();
        let mut used: Vec<&str> = Vec::new();
        for (i, ((plan, p), adjusted)) in planned.iter().zip(&found).zip(adjusted).enumerate() {
            let cell = &mut rows[plan.row].cells[plan.column];
            let printed = !matches!(cell.printed, Printed::Missing);
            let passed = levels.iter().find(|(alpha, _)| p.is_ok() && adjusted <= *alpha && printed);
            used.extend(passed.map(|(_, mark)| mark));
            cell.test = Some(CellTest {
                method: test.method.name().to_owned(),
                against: plan.against.clone(),
                n: plan.left.len(),
                p: p.ok(),
                adjusted: p.ok().map(|_| adjusted),
                degenerate: p.err().map(|why| why.to_string()).or_else(|| hopeless[i].clone()),
                mark: passed.map_or("", |(_, mark)| mark).to_owned(),
            });
        }
        let m = planned.len();
        let tests = if m == 1 { "1 test".to_owned() } else { format!("{m} tests") };
        let family = match test.family {
            stats::Correction::None => format!("{tests}, not corrected"),
            stats::Correction::Bonferroni => format!("Bonferroni over {tests}"),
            stats::Correction::Holm => format!("Holm over {tests}"),
            stats::Correction::BenjaminiHochberg => format!("Benjamini and Hochberg over {tests}"),
        };
        let against = test.against.as_ref().and_then(|key| self.spec.rows.iter().find(|r| r.key == *key));
        let against = against.map(|row| format!(" against {}", row.text())).unwrap_or_default();
        let on = if test.method.reads_items() { "items, each the mean over common seeds" } else { "common seeds" };
        let on = if matches!(test.method, TestMethod::Mcnemar | TestMethod::McnemarMidP) { "items" } else { on };
        let made = format!("{}{against} on {on}, {family}", test.method.words());
        let without = hopeless.iter().flatten().count();
        let lacking = match without {
            0 => String::new(),
            without => format!("; with the runs that there are, {without} of them could not pass"),
        };
        let how = |alpha: f64| format!("{made}, alpha {alpha}{lacking}");
        let unmarked = |text: &str| vec![Note { mark: None, text: format!("{text}: {}.", how(test.alpha)) }];
        let mut notes: Vec<Note> = Vec::new();
        for (alpha, mark) in levels.iter().rev().filter(|(_, mark)| used.contains(mark)) {
            let text = match notes.is_empty() {
                true => format!("Significant: {}.", how(*alpha)),
                false => format!("The same, alpha {alpha}."),
            };
            notes.push(Note { mark: Some((*mark).to_owned()), text });
        }
        match notes.is_empty() {
            true if without == m => unmarked("No difference can be significant"),
            true => unmarked("No difference is significant"),
            false => notes,
        }
    }

    /// Puts the items of both sides in place of the runs.
    fn take_items(&mut self, test: &TestSpec, planned: &mut Vec<Planned>) {
        let items = std::mem::take(&mut self.items);
        let none = OfCell::new();
        let of = |place: (usize, usize)| items.get(&place).unwrap_or(&none);
        for plan in planned {
            let sides = self.sides(test, (plan.row, plan.column), of(plan.left_at), of(plan.right_at));
            (plan.left, plan.right) = sides.map_or((Vec::new(), Vec::new()), |s| (s.left, s.right));
            plan.n_expected = plan.left.len();
        }
    }

    /// By test: why it cannot pass with the pairs that it has, where runs are missing.
    fn hopeless(&self, test: &TestSpec, planned: &[Planned]) -> Vec<Option<String>> {
        let flips = self.spec.resamples as u64;
        let smallest = |plan: &Planned| match (plan.left.len(), test.method) {
            (0 | 1, _) => 1.0,
            (n, TestMethod::SignFlip) => stats::smallest_sign_flip_p(n, flips),
            (_, TestMethod::PairedBootstrap) => 1.0 / (flips + 1) as f64,
            (_, TestMethod::PairedT | TestMethod::Mcnemar | TestMethod::McnemarMidP) => 0.0,
        };
        // A corrected p is smallest where every p of the family is.
        let least: Vec<f64> = planned.iter().map(smallest).collect();
        let adjusted = test.family.adjust(&least).unwrap_or_else(|_| vec![1.0; least.len()]);
        let why = |((plan, least), adjusted): ((&Planned, &f64), f64)| {
            let pairs = match plan.left.len() {
                1 => "1 pair".to_owned(),
                n => format!("{n} pairs"),
            };
            let text = format!(
                "{pairs} cannot go below p = {}, corrected {}",
                significant(*least, 3),
                significant(adjusted, 3)
            );
            (adjusted > test.alpha).then_some(text)
        };
        planned.iter().zip(&least).zip(adjusted).map(why).collect()
    }

    fn planned(&self, test: &TestSpec, samples: &[Vec<Sample>]) -> Vec<Planned> {
        let against = test.against.as_ref().and_then(|key| self.spec.rows.iter().position(|r| r.key == *key));
        let mut planned = Vec::new();
        for (row, line) in samples.iter().enumerate() {
            for (column, spec) in self.spec.columns.iter().enumerate().filter(|(_, c)| test.on.contains(&c.key)) {
                let sample = &line[column];
                if let Some(delta) = &spec.delta {
                    if sample.reference {
                        continue;
                    }
                    let sides = match delta.kind {
                        DeltaKind::Difference => sample.pairs.iter().copied().unzip(),
                        // Relative differences are tested as they are printed.
                        DeltaKind::Percent => (sample.numbers(), vec![0.0; sample.values.len()]),
                    };
                    let named = delta.from.as_ref().or(delta.from_column.as_ref());
                    let column_of = |key: &String| self.spec.columns.iter().position(|c| c.key == *key);
                    let row_of = |key: &String| self.spec.rows.iter().position(|r| r.key == *key);
                    let of = column_of(&delta.of).unwrap_or(column);
                    let right_at = match (&delta.from, &delta.from_column) {
                        (Some(from), _) => (row_of(from).unwrap_or(row), of),
                        (None, Some(from)) => (row, column_of(from).unwrap_or(of)),
                        (None, None) => (row, of),
                    };
                    planned.push(Planned {
                        left_at: (row, of),
                        right_at,
                        row,
                        column,
                        against: named.cloned().unwrap_or_default(),
                        left: sides.0,
                        right: sides.1,
                        n_expected: sample.n_expected(),
                    });
                } else if let Some(reference) = against.filter(|r| *r != row) {
                    let other = &samples[reference][column];
                    let paired = pair(sample, other);
                    planned.push(Planned {
                        left_at: (row, column),
                        right_at: (reference, column),
                        row,
                        column,
                        against: self.spec.rows[reference].key.clone(),
                        left: paired.values.iter().map(|v| v.1).collect(),
                        right: paired.values.iter().map(|v| v.2).collect(),
                        n_expected: paired.expected.len() + sample.unplanned.max(other.unplanned),
                    });
                }
            }
        }
        planned
    }

    /// Refuses a test that cannot pass whatever the runs say: at the expected n, or with so few resamples.
    fn can_pass(&mut self, test: &TestSpec, planned: &[Planned]) {
        // What passes the strictest level passes all.
        let (m, alpha) = (planned.len(), test.strictest_first()[0].0);
        let flips = self.spec.resamples as u64;
        let place = format!("table `{}`: the {}", self.spec.key, test.method.words());
        let remedy = "give it more seeds or fewer cells, or remove `test`";
        for plan in planned {
            let n = plan.n_expected;
            if n < 2 && test.method.reads_items() {
                // That items are missing or do not fit was said, and so is it of runs.
                continue;
            }
            if n < 2 {
                self.tell(format!("{place} of {n} pair has no spread to judge by: {remedy}"));
                continue;
            }
            if !test.method.draws() {
                continue;
            }
            let needed = stats::resamples_needed(m, alpha);
            let all = test.method == TestMethod::SignFlip && stats::flips_all(n, flips);
            if !all && flips < needed {
                self.tell(format!(
                    "{place} draws {flips} resamples, fewer than 20 x {m} tests / alpha {alpha}: set `resamples = {needed}`"
                ));
                continue;
            }
            if test.method != TestMethod::SignFlip {
                continue;
            }
            let (smallest, largest) = (stats::smallest_sign_flip_p(n, flips), test.family.largest_p(m, alpha));
            if smallest > largest {
                let remedy = "use `method = \"paired_t\"`, more seeds or fewer cells";
                self.tell(format!(
                    "{place} of {n} pairs cannot go below p = {smallest}, and alpha {alpha} with `{}` over {m} tests needs \
                     {}: {remedy}",
                    test.family.name(),
                    significant(largest, 2)
                ));
            }
        }
    }

    fn p_of(&self, method: TestMethod, plan: &Planned) -> Answer<f64> {
        let (row, column) = (&self.spec.rows[plan.row].key, &self.spec.columns[plan.column].key);
        let seed = || stats::seed_of(self.spec.bootstrap_seed, &[&self.spec.key, row, column, "test"]);
        let pairs = || plan.left.iter().zip(&plan.right);
        let won = |a: &f64, b: &f64| a > b;
        let mcnemar = || match plan.left.len() {
            0 => Err(Degenerate::TooFew { have: 0, need: 1 }),
            _ => {
                let (b, c) = (pairs().filter(|(x, y)| won(x, y)).count(), pairs().filter(|(x, y)| won(y, x)).count());
                Ok(stats::mcnemar(b as u64, c as u64))
            }
        };
        match method {
            TestMethod::PairedT => stats::paired_t(&plan.left, &plan.right).map(|t| t.p),
            TestMethod::SignFlip => {
                let differences: Vec<f64> = pairs().map(|(a, b)| a - b).collect();
                stats::sign_flip(&differences, self.spec.resamples as u64, seed()).map(|t| t.p)
            }
            TestMethod::Mcnemar => mcnemar().map(|test| test.exact_p),
            TestMethod::McnemarMidP => mcnemar().map(|test| test.mid_p),
            TestMethod::PairedBootstrap => {
                let resamples = Resamples { count: self.spec.resamples, seed: seed() };
                stats::paired_bootstrap_p(&plan.left, &plan.right, resamples)
            }
        }
    }
}
