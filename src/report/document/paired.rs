//! How sure the numbers of a stage summary are: Wilson's interval of each accuracy, and McNemar's exact test of two
//! conditions on the items that both answered. Nothing here says which direction an effect must have.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::spec::{StageRow, StageSummary};
use super::stages::{Page, which};
use super::words::{name, plain};
use super::{Results, cells_of};
use crate::report::render::markdown_text;
use crate::report::stats::{self, Interval};
use crate::report::table::Expected;

/// Level of the intervals.
const LEVEL: f64 = 0.95;

/// Decimals of accuracies, intervals and p.
const DIGITS: u8 = 4;

/// How far accuracy x items may lie from a whole number: a figure that was recorded has six decimals.
const WHOLE: f64 = 1e-3;

/// Right ones of so many.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Counted {
    right: u64,
    total: u64,
}

impl Counted {
    /// `None` where the accuracy is that of no number of items.
    fn of(accuracy: f64, total: u64) -> Option<Self> {
        let right = accuracy * total as f64;
        let whole = (right - right.round()).abs() <= WHOLE && (0.0..=total as f64).contains(&right.round());
        whole.then_some(Self { right: right.round() as u64, total })
    }

    fn interval(self) -> Option<Interval> {
        stats::wilson(self.right, self.total, LEVEL).ok()
    }

    fn shown(self) -> String {
        let accuracy = plain(Some(self.right as f64 / self.total as f64), DIGITS);
        let end = |x: f64| plain(Some(x), DIGITS);
        match self.interval() {
            Some(found) => format!("{accuracy} \\[{}, {}\\]", end(found.lower), end(found.upper)),
            None => accuracy,
        }
    }

    fn numbers(self) -> Value {
        json!({"right": self.right, "total": self.total, "wilson": self.interval()})
    }
}

/// Items of two conditions, counted by who got them right.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Agreement {
    both: u64,
    only_first: u64,
    only_second: u64,
    neither: u64,
}

type OfCell = BTreeMap<String, BTreeMap<i64, bool>>;

impl Agreement {
    /// Over the items that both have.
    fn of(first: &OfCell, second: &OfCell) -> Self {
        let mut found = Self::default();
        for (task, items) in first {
            let Some(others) = second.get(task) else { continue };
            for (id, right) in items {
                match (right, others.get(id)) {
                    (_, None) => {}
                    (true, Some(true)) => found.both += 1,
                    (true, Some(false)) => found.only_first += 1,
                    (false, Some(true)) => found.only_second += 1,
                    (false, Some(false)) => found.neither += 1,
                }
            }
        }
        found
    }

    fn items(self) -> u64 {
        self.both + self.only_first + self.only_second + self.neither
    }
}

/// The cells whose items are paired.
pub(super) fn wants_items(spec: &StageSummary, expected: &[Expected]) -> Vec<usize> {
    let keys: Vec<&String> = spec.paired.iter().flat_map(|pair| [&pair.of, &pair.to]).collect();
    let rows = spec.stages.iter().filter(|row| keys.contains(&&row.key));
    rows.flat_map(|row| cells_of(which(row), expected)).collect()
}

impl Page<'_> {
    /// Every stage and seed with the interval of each accuracy.
    pub(super) fn intervals(&self, out: &mut String) -> Value {
        let mut numbers = Vec::new();
        if !self.spec.intervals {
            return json!(numbers);
        }
        let tasks = self.tasks();
        let heads: Vec<String> = tasks.iter().map(|task| name(task)).collect();
        out.push_str(&format!(
            "\n## Every Condition with 95 % Intervals\n| Stage | Condition | Seed | {} | all items |\n|---|---|---:|{}\n",
            heads.join(" | "),
            "---:|".repeat(heads.len() + 1)
        ));
        for row in &self.spec.stages {
            let found = &self.measured[row.key.as_str()];
            for (seed, _) in &found.read {
                let mut cells = vec![
                    markdown_text(row.text()),
                    markdown_text(&row.condition),
                    seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string()),
                ];
                let (mut all, mut of_tasks) = (Some(Counted { right: 0, total: 0 }), serde_json::Map::new());
                for task in &tasks {
                    let accuracy = found.task(task).and_then(|values| values.get(seed)).copied();
                    let total = found.totals.get(&(task.clone(), *seed)).copied();
                    let counted = accuracy.zip(total).and_then(|(accuracy, total)| Counted::of(accuracy, total));
                    all = all
                        .zip(counted)
                        .map(|(all, one)| Counted { right: all.right + one.right, total: all.total + one.total });
                    cells.push(counted.map_or_else(|| plain(accuracy, DIGITS), Counted::shown));
                    of_tasks.insert(task.clone(), counted.map_or(Value::Null, Counted::numbers));
                }
                let all = all.filter(|all| all.total > 0);
                cells.push(all.map_or_else(|| "n/a".to_owned(), Counted::shown));
                out.push_str(&format!("| {} |\n", cells.join(" | ")));
                let all = all.map_or(Value::Null, Counted::numbers);
                numbers.push(json!({"key": row.key, "seed": seed, "tasks": of_tasks, "all": all}));
            }
        }
        out.push_str("\nWilson's score intervals, one seed each: the items are the same for all seeds.\n");
        json!(numbers)
    }

    /// Conditions against each other, item by item.
    pub(super) fn paired(&self, results: &mut Results<'_>, out: &mut String) -> Value {
        let mut numbers = Vec::new();
        if self.spec.paired.is_empty() {
            return json!(numbers);
        }
        let mut rows = String::new();
        for pair in &self.spec.paired {
            let (Some(first), Some(second)) = (self.row(&pair.of), self.row(&pair.to)) else { continue };
            for (seed, of, to) in self.common(first, second) {
                let place = format!("pair `{}` and `{}`", pair.of, pair.to);
                let (Some(of), Some(to)) = (outcomes(&place, of, results), outcomes(&place, to, results)) else {
                    continue;
                };
                let found = Agreement::of(&of, &to);
                if found.items() == 0 {
                    continue;
                }
                let p = stats::mcnemar(found.only_first, found.only_second).exact_p;
                rows.push_str(&format!(
                    "| {} vs {} | {} | {} | {} | {} | {} | {} | {} |\n",
                    self.label(&pair.of),
                    self.label(&pair.to),
                    seed.map_or_else(|| "-".to_owned(), |seed| seed.to_string()),
                    found.items(),
                    found.both,
                    found.only_first,
                    found.only_second,
                    found.neither,
                    if p < 5e-5 { "< 0.0001".to_owned() } else { plain(Some(p), DIGITS) }
                ));
                numbers.push(json!({
                    "of": pair.of, "to": pair.to, "seed": seed, "items": found.items(), "both": found.both,
                    "only_first": found.only_first, "only_second": found.only_second, "neither": found.neither,
                    "exact_p": p,
                }));
            }
        }
        out.push_str("\n## Paired Comparisons\n");
        if rows.is_empty() {
            out.push_str("The results hold no outcomes of single items: nothing can be paired.\n");
        } else {
            out.push_str(&format!(
                "| Comparison | Seed | Items | Both right | Only the first | Only the second | Neither | p |\n|---|---:|---:|---:|---:|---:|---:|---:|\n{rows}\n\
                 McNemar's exact test, two-sided, over the items of all tasks that both conditions answered; p is not corrected for the number of rows.\n"
            ));
        }
        json!(numbers)
    }

    /// Cells of two stages on the seeds that both have. A side without a seed goes with every one of the other.
    fn common(&self, first: &StageRow, second: &StageRow) -> Vec<(Option<u32>, usize, usize)> {
        let read = |row: &StageRow| &self.measured[row.key.as_str()].read;
        let fits = |a: Option<u32>, b: Option<u32>| a == b || a.is_none() || b.is_none();
        let pairs = read(first).iter().flat_map(|(a, of)| {
            let others = read(second).iter().filter(move |(b, _)| fits(*a, *b));
            others.map(move |(b, to)| (a.or(*b), *of, *to))
        });
        pairs.collect()
    }
}

/// The outcomes of a cell's items; `None` where it has none.
fn outcomes(place: &str, cell: usize, results: &mut Results<'_>) -> Option<OfCell> {
    match results.outcomes.get(&cell)? {
        Ok(found) => Some(found.clone()).filter(|found| !found.is_empty()),
        Err(why) => {
            let name = results.expected[cell].key.local_name();
            let why = why.clone();
            results.problem(&format!("{place}: the items of {name}: {why}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_from_figures_with_six_decimals() {
        assert_eq!(Counted::of(0.585_284, 299), Some(Counted { right: 175, total: 299 }));
        assert_eq!(Counted::of(0.622, 500).map(|c| c.right), Some(311));
        assert_eq!(Counted::of(0.6221, 500), None);
        assert_eq!(Counted::of(1.002, 500), None);
        // Wilson, 1927: 311 of 500, z = 1.959964.
        assert_eq!(Counted { right: 311, total: 500 }.shown(), "0.6220 \\[0.5787, 0.6634\\]");
    }

    #[test]
    fn items_are_paired_by_task_and_number() {
        let of = |task: &str, right: &[(i64, bool)]| (task.to_owned(), right.iter().copied().collect());
        let first = OfCell::from([of("a", &[(0, true), (1, true), (2, false), (5, true)]), of("b", &[(0, true)])]);
        let second = OfCell::from([of("a", &[(0, true), (1, false), (2, true), (3, true)]), of("c", &[(0, true)])]);
        let found = Agreement::of(&first, &second);
        assert_eq!(found, Agreement { both: 1, only_first: 1, only_second: 1, neither: 0 });
    }
}
