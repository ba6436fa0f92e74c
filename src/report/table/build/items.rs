//! The outcomes of single items behind a cell, for tests that compare item by item.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Builder;
use crate::report::query::Outputs;
use crate::report::table::spec::{TableSpec, TestMethod, TestSpec};

/// The items of one run: a number each, and where they have names, these.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Items {
    names: Vec<String>,
    outcomes: Vec<f64>,
}

/// Items of the runs of one cell, by seed.
pub(super) type OfCell = BTreeMap<Option<u32>, Items>;

/// Both sides of a comparison.
pub(super) struct Sides {
    pub(super) left: Vec<f64>,
    pub(super) right: Vec<f64>,
}

/// Columns with a metric whose items a test compares.
pub(super) fn columns_of(spec: &TableSpec) -> Vec<usize> {
    let Some(test) = spec.test.as_ref().filter(|test| test.method.reads_items()) else { return Vec::new() };
    let asked = spec.columns.iter().filter(|c| test.on.contains(&c.key));
    let named = asked.flat_map(|c| match &c.delta {
        Some(delta) => [Some(&delta.of), delta.from_column.as_ref()],
        None => [Some(&c.key), None],
    });
    let named: Vec<&String> = named.flatten().collect();
    (0..spec.columns.len()).filter(|i| named.contains(&&spec.columns[*i].key)).collect()
}

impl Builder<'_> {
    /// Takes the answers about items, in the order of the requests.
    pub(super) fn items(&mut self) -> BTreeMap<(usize, usize), OfCell> {
        let mut found = BTreeMap::new();
        let columns = columns_of(self.spec);
        for row in 0..self.spec.rows.len() {
            for &column in &columns {
                let mut of_cell = OfCell::new();
                for index in self.join.cells(row, column) {
                    let answer = if self.expected[index].run.is_ok() { self.answers.next() } else { None };
                    match answer.map(items_of) {
                        Some(Ok(items)) => drop(of_cell.entry(self.expected[index].key.seed).or_insert(items)),
                        Some(Err(what)) => {
                            let name = self.name(index);
                            self.problem(row, column, &format!("{name}: the `items` of its test {what}"));
                        }
                        None => {}
                    }
                }
                found.insert((row, column), of_cell);
            }
        }
        found
    }

    /// The items of two cells side by side: each item's mean over the seeds that both have.
    pub(super) fn sides(
        &mut self,
        test: &TestSpec,
        (row, column): (usize, usize),
        here: &OfCell,
        there: &OfCell,
    ) -> Option<Sides> {
        // A side whose stage has no seeds is one run for all of the other's.
        let only = |side: &OfCell| side.get(&None).filter(|_| side.len() == 1).cloned();
        let (one, other) = (only(here), only(there));
        let seeds = here.keys().chain(there.keys().filter(|seed| !here.contains_key(seed)));
        let pairs: Vec<(&Items, &Items)> = seeds
            .filter_map(|seed| Some((here.get(seed).or(one.as_ref())?, there.get(seed).or(other.as_ref())?)))
            .collect();
        // Of two sides without common runs the sample says what is missing.
        let (first, _) = *pairs.first()?;
        if pairs.iter().any(|(a, b)| !a.fits(first) || !b.fits(first)) {
            let what = "the items that its test compares are not the same in all runs: let `items` select those that all have, \
                        in one order or by name";
            self.problem(row, column, what);
            return None;
        }
        if test.method != TestMethod::PairedBootstrap {
            if pairs.len() > 1 {
                let what = format!(
                    "McNemar's test compares one run with one, and there are {} seeds, whose items repeat: use `method = \
                     \"paired_bootstrap\"`, which takes each item's mean over seeds, or one seed, such as `seeds = [42]`",
                    pairs.len()
                );
                self.problem(row, column, &what);
                return None;
            }
            if pairs.iter().flat_map(|(a, b)| a.outcomes.iter().chain(&b.outcomes)).any(|x| *x != 0.0 && *x != 1.0) {
                self.problem(
                    row,
                    column,
                    "McNemar's test takes items that are right or wrong: let `items` give booleans",
                );
                return None;
            }
        }
        let mean = |side: &dyn Fn(&(&Items, &Items)) -> Vec<f64>| -> Vec<f64> {
            let mut sums = vec![0.0; first.outcomes.len()];
            for pair in &pairs {
                sums.iter_mut().zip(side(pair)).for_each(|(sum, x)| *sum += x);
            }
            sums.into_iter().map(|sum| sum / pairs.len() as f64).collect()
        };
        Some(Sides { left: mean(&|pair| pair.0.outcomes.clone()), right: mean(&|pair| pair.1.outcomes.clone()) })
    }
}

impl Items {
    fn fits(&self, other: &Self) -> bool {
        self.names == other.names && self.outcomes.len() == other.outcomes.len()
    }
}

/// An array of numbers or booleans, or an object of them by the item's name.
fn items_of(answer: &Outputs) -> Result<Items, String> {
    let one = match answer.as_ref().map_err(Clone::clone)?.as_slice() {
        [one] => one,
        many => return Err(format!("give {} values: they must be one array, or one object by name", many.len())),
    };
    let outcome = |value: &Value| match value {
        Value::Bool(right) => Some(f64::from(u8::from(*right))),
        Value::Number(n) => n.as_f64().filter(|x| x.is_finite()),
        _ => None,
    };
    let (names, values): (Vec<String>, Vec<&Value>) = match one {
        Value::Array(list) => (Vec::new(), list.iter().collect()),
        Value::Object(map) => map.iter().map(|(name, value)| (name.clone(), value)).unzip(),
        _ => (Vec::new(), Vec::new()),
    };
    if values.is_empty() {
        let shown: String = one.to_string().chars().take(60).collect();
        return Err(format!("give {}: they must be an array of items, or an object by name", shown.escape_debug()));
    }
    let outcomes: Option<Vec<f64>> = values.iter().map(|value| outcome(value)).collect();
    let outcomes = outcomes.ok_or("hold something that is neither a finite number nor a boolean")?;
    Ok(Items { names, outcomes })
}
