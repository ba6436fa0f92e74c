//! The values behind a cell: of a metric's runs, or of two cells that are compared seed by seed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Builder;
use crate::report::query::Outputs;
use crate::report::stats;
use crate::report::table::place::two_for_one;
use crate::report::table::spec::{DeltaKind, Seeds, Show};

/// The runs of one cell before they are summarised. Values are scaled.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// By seed, ascending.
    pub(super) values: Vec<(Option<u32>, f64)>,
    /// Of a metric with a number for each task: those of each run, in the order of the values.
    pub(super) tasks: Vec<Vec<f64>>,
    /// Both sides of a comparison, on the seeds that both have.
    pub(super) pairs: Vec<(f64, f64)>,
    /// Expected runs that are not in it.
    pub(super) lost: Vec<Lost>,
    /// Expected cells behind the values, with the seed that each is for.
    pub(super) cells: Vec<(Option<u32>, usize)>,
    /// Seeds that the plan or the table's list expects.
    pub(super) expected: BTreeSet<Option<u32>>,
    /// Seeds that the table expects by number and the plan does not have.
    pub(super) unplanned: usize,
    /// The row that a comparison is made with.
    pub(super) reference: bool,
    /// Of a comparison: seeds that one side alone expects.
    pub(super) one_sided: usize,
    /// Runs that answered, and how many of them with null.
    answered: usize,
    nulls: usize,
}

/// An expected run that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) seed: Option<u32>,
    pub(super) cell: String,
    pub(super) reason: String,
}

impl Sample {
    pub(super) fn numbers(&self) -> Vec<f64> {
        self.values.iter().map(|(_, x)| *x).collect()
    }

    pub(super) fn n_expected(&self) -> usize {
        self.expected.len() + self.unplanned
    }

    /// Whether it is one value that every seed shares.
    pub(super) fn shared(&self) -> bool {
        self.expected.len() == 1 && self.expected.contains(&None)
    }
}

/// Two samples side by side.
pub(super) struct Paired {
    /// Seed, left, right.
    pub(super) values: Vec<(Option<u32>, f64, f64)>,
    /// Seeds that both sides expect.
    pub(super) expected: BTreeSet<Option<u32>>,
    /// Seeds that one side alone expects.
    pub(super) one_sided: usize,
}

/// Pairs by seed. A side whose stage has no seeds is one value for all of the other's.
pub(super) fn pair(left: &Sample, right: &Sample) -> Paired {
    let seeded = |one: &Sample, other: &Sample| one.shared() && !other.shared() && !other.expected.is_empty();
    let constant = |sample: &Sample| sample.values.first().map(|(_, x)| *x);
    if seeded(left, right) || seeded(right, left) {
        let (many, one, flip) = if seeded(left, right) { (right, left, true) } else { (left, right, false) };
        let values = match constant(one) {
            Some(c) => many.values.iter().map(|&(s, x)| if flip { (s, c, x) } else { (s, x, c) }).collect(),
            None => Vec::new(),
        };
        return Paired { values, expected: many.expected.clone(), one_sided: 0 };
    }
    let there: BTreeMap<Option<u32>, f64> = right.values.iter().copied().collect();
    Paired {
        values: left.values.iter().filter_map(|&(s, x)| Some((s, x, *there.get(&s)?))).collect(),
        expected: left.expected.intersection(&right.expected).copied().collect(),
        one_sided: left.expected.symmetric_difference(&right.expected).count(),
    }
}

impl Builder<'_> {
    /// The runs of a row in a column with a metric.
    pub(super) fn metric(&mut self, row: usize, column: usize) -> Sample {
        let spec = &self.spec.columns[column];
        let mut sample = Sample::default();
        if !self.join.knows(row) {
            self.unknown_arm(row);
            return sample;
        }
        let cells = self.join.cells(row, column);
        if cells.is_empty() {
            let stage = spec.stage.as_ref().map(ToString::to_string).unwrap_or_default();
            let what = format!(
                "no expected cell of stage `{stage}` matches: check `stage`, `arm`, `labels`, `study`, `seeds` and `needs`"
            );
            self.problem(row, column, &what);
            return sample;
        }
        if let Some((one, other)) = two_for_one(cells.iter().map(|index| &self.expected[*index].key)) {
            let text = format!(
                "{} and {} are two runs for one place: narrow the row with `arm`, `labels` or `study`",
                self.name(cells[one]),
                self.name(cells[other])
            );
            self.problem(row, column, &text);
        }
        let mut wrong: Option<(usize, String, usize)> = None;
        let mut by_task: BTreeMap<Option<u32>, Vec<f64>> = BTreeMap::new();
        for index in cells {
            let cell = &self.expected[index];
            let seed = cell.key.seed;
            // Taken in any case, so that the next cell gets its own.
            let answer = if cell.run.is_ok() { self.answers.next() } else { None };
            if !sample.expected.insert(seed) {
                continue;
            }
            let lost = |reason: &str| Lost { seed, cell: self.name(index), reason: reason.to_owned() };
            let answer = answer.map(|answer| match spec.show {
                Show::IqmTasks => number_by_task(answer, spec.scale),
                _ => one_number(answer).map(|x| x.map(|x| (x * spec.scale, Vec::new()))),
            });
            match (&cell.run, answer) {
                (Err(reason), _) => sample.lost.push(lost(reason)),
                (Ok(_), Some(Ok(Some((x, tasks))))) => {
                    sample.answered += 1;
                    if x.is_finite() {
                        sample.values.push((seed, x));
                        by_task.insert(seed, tasks);
                        sample.cells.push((seed, index));
                    } else {
                        sample.lost.push(lost("its value is not finite"));
                    }
                }
                (Ok(_), Some(Ok(None))) => {
                    sample.answered += 1;
                    sample.nulls += 1;
                    sample.lost.push(lost("its value is null"));
                }
                (Ok(_), Some(Err(what))) => match &mut wrong {
                    Some((_, _, more)) => *more += 1,
                    None => wrong = Some((index, what, 0)),
                },
                (Ok(_), None) => self.problem(row, column, &format!("{} was not evaluated", self.name(index))),
            }
        }
        if let Some((index, what, more)) = wrong {
            let more = if more > 0 { format!(" (and {more} more runs)") } else { String::new() };
            self.problem(row, column, &format!("{}: {what}{more}", self.name(index)));
        }
        sample.values.sort_unstable_by_key(|(seed, _)| *seed);
        sample.cells.sort_unstable();
        if spec.show == Show::IqmTasks {
            sample.tasks = by_task.into_values().collect();
            let counts: BTreeSet<usize> = sample.tasks.iter().map(Vec::len).collect();
            if counts.len() > 1 {
                let what = format!("its runs have {counts:?} tasks: let the metric give those that all runs have");
                self.problem(row, column, &what);
                sample.tasks.clear();
            }
        }
        self.expect_seeds(row, column, &mut sample);
        sample
    }

    /// Told once for a row.
    fn unknown_arm(&mut self, row: usize) {
        let spec = &self.spec.rows[row];
        let mut said: Vec<String> = spec.arm.iter().map(|arm| format!("`arm = {arm:?}`")).collect();
        said.extend(spec.labels.iter().map(|(k, v)| format!("`labels.{k} = {v:?}`")));
        if let Some(study) = &spec.study {
            said.push(format!("`study = {study:?}`"));
        }
        self.tell(format!(
            "table `{}`, row `{}`: no expected cell has an arm with {}: correct the row, or the `needs` of the \
             aggregating stage",
            self.spec.key,
            spec.key,
            said.join(" and ")
        ));
    }

    /// Holds the plan's seeds against those that the table expects.
    fn expect_seeds(&mut self, row: usize, column: usize, sample: &mut Sample) {
        let planned = sample.expected.iter().flatten().count();
        if planned == 0 {
            return;
        }
        let stage = self.spec.columns[column].stages().next().unwrap_or_default().to_owned();
        match &self.spec.seeds {
            Some(Seeds::Count(count)) if planned > *count => {
                let what =
                    format!("{planned} seeds are planned and the table expects {count}: say `seeds = {planned}`");
                self.problem(row, column, &what);
            }
            Some(Seeds::Count(count)) if planned < *count => {
                sample.unplanned = count - planned;
                let reason = format!(
                    "{} of the {count} seeds that the table expects are not planned; add them to the study's `seeds`",
                    sample.unplanned
                );
                sample.lost.push(Lost { seed: None, cell: stage, reason });
            }
            Some(Seeds::List(seeds)) => {
                for seed in seeds.iter().filter(|s| !sample.expected.contains(&Some(**s))).copied().collect::<Vec<_>>()
                {
                    sample.expected.insert(Some(seed));
                    let reason = format!("not planned; `run_all --seeds {seed}` adds it");
                    sample.lost.push(Lost { seed: Some(seed), cell: format!("{stage}/seed-{seed}"), reason });
                }
            }
            _ => {}
        }
    }

    /// Finds the columns whose metric is null in every run: a wrong path, not a missing value.
    pub(super) fn find_dead(&mut self, samples: &[Vec<Sample>]) {
        for (column, spec) in self.spec.columns.iter().enumerate() {
            let Some(metric) = &spec.metric else { continue };
            let of = |f: fn(&Sample) -> usize| samples.iter().map(|row| f(&row[column])).sum::<usize>();
            let (answered, nulls) = (of(|s| s.answered), of(|s| s.nulls));
            if answered > 0 && nulls == answered {
                self.dead[column] = true;
                let shown: String = metric.chars().take(80).collect();
                let one = self.join.all().filter(|i| self.expected[*i].run.is_ok());
                let one = one.map(|i| &self.expected[i].key).filter(|k| spec.stages().any(|s| s == k.stage.as_str()));
                let look = one.min().map(|k| format!(": see what there is with `seedbed query . results/{k}/run.h5`"));
                let what = format!(
                    "the metric `{}` matches no run, it is null in all {nulls}{}",
                    shown.escape_debug(),
                    look.unwrap_or_default()
                );
                self.column_problem(column, &what);
            }
        }
    }

    /// Two cells with metrics, compared on the seeds that both have.
    pub(super) fn compared(&mut self, row: usize, column: usize, samples: &[Vec<Sample>]) -> Sample {
        let spec = &self.spec.columns[column];
        let (of, other_row, other_column) = match (&spec.delta, &spec.ratio) {
            (Some(delta), _) => (&delta.of, &delta.from, &delta.from_column),
            (None, Some(ratio)) => (&ratio.of, &ratio.to, &ratio.to_column),
            (None, None) => return Sample::default(),
        };
        let column_of = |key: &str| self.spec.columns.iter().position(|c| c.key == key && c.metric.is_some());
        let row_of = |key: &str| self.spec.rows.iter().position(|r| r.key == key);
        let other = match (other_row, other_column) {
            (Some(key), None) => row_of(key).zip(column_of(of)),
            (None, Some(key)) => Some(row).zip(column_of(key)),
            _ => None,
        };
        let (Some(of), Some(other)) = (column_of(of), other) else {
            self.problem(row, column, "the comparison names a row or column that is not there");
            return Sample::default();
        };
        if (row, of) == other {
            return Sample { reference: true, ..Sample::default() };
        }
        let (here, there) = (&samples[row][of], &samples[other.0][other.1]);
        let paired = pair(here, there);
        // Only what both sides expect can be compared, and be missing.
        let both = |seed: &Option<u32>| seed.is_none() || paired.expected.contains(seed);
        let cells = here.cells.iter().chain(&there.cells).filter(|(seed, _)| both(seed));
        let mut sample = Sample {
            cells: cells.copied().collect(),
            one_sided: paired.one_sided,
            expected: paired.expected.clone(),
            unplanned: here.unplanned.max(there.unplanned),
            ..Sample::default()
        };
        sample.cells.sort_unstable();
        sample.cells.dedup();
        for lost in here.lost.iter().chain(&there.lost).filter(|lost| both(&lost.seed)) {
            if !sample.lost.contains(lost) {
                sample.lost.push(lost.clone());
            }
        }
        let name =
            |seed: Option<u32>| seed.map_or_else(|| "the cell without a seed".to_owned(), |s| format!("seed-{s}"));
        if sample.expected.is_empty() && paired.one_sided > 0 {
            let reason = "the two sides have no seed in common".to_owned();
            sample.lost.push(Lost { seed: None, cell: self.spec.columns[of].key.clone(), reason });
        }
        let mut used: BTreeSet<Option<u32>> = BTreeSet::new();
        for (seed, x, base) in paired.values {
            let value = match (&spec.delta, spec.ratio.is_some()) {
                (Some(delta), _) if delta.kind == DeltaKind::Percent && base == 0.0 => {
                    sample.lost.push(Lost { seed, cell: name(seed), reason: "percent of zero".to_owned() });
                    continue;
                }
                (Some(delta), _) if delta.kind == DeltaKind::Percent => 100.0 * (x - base) / base,
                (Some(_), _) => x - base,
                _ => x / base,
            };
            sample.pairs.push((x, base));
            used.insert(seed);
            if (value * spec.scale).is_finite() {
                sample.values.push((seed, value * spec.scale));
            } else if spec.ratio.is_none() {
                // A ratio of means has a value where that of one seed has none; a difference has not.
                sample.pairs.pop();
                used.remove(&seed);
                sample.lost.push(Lost { seed, cell: name(seed), reason: "its value is not finite".to_owned() });
            }
        }
        // A run without its other half is in no number.
        sample.cells.retain(|(seed, _)| used.contains(seed) || (seed.is_none() && !used.is_empty()));
        sample
    }

    /// Whether a column, or one that it is made of, matched no run.
    pub(super) fn is_dead(&self, column: usize) -> bool {
        let spec = &self.spec.columns[column];
        let made_of = spec.delta.iter().flat_map(|d| [Some(&d.of), d.from_column.as_ref()]);
        let made_of = made_of.chain(spec.ratio.iter().flat_map(|r| [Some(&r.of), r.to_column.as_ref()])).flatten();
        let dead_key = |key: &String| self.spec.columns.iter().zip(&self.dead).any(|(c, dead)| *dead && c.key == *key);
        self.dead[column] || made_of.into_iter().any(dead_key)
    }
}

/// A number for each task, scaled, behind their interquartile mean; `None` for null.
fn number_by_task(answer: &Outputs, scale: f64) -> Result<Option<(f64, Vec<f64>)>, String> {
    let wrong = |shown: &str| {
        let shown: String = shown.chars().take(60).collect();
        Err(format!(
            "the metric gives {}: `iqm_tasks` takes an array with a number for each task",
            shown.escape_debug()
        ))
    };
    match answer.as_ref().map_err(Clone::clone)?.as_slice() {
        [Value::Null] => Ok(None),
        [one @ Value::Array(list)] if !list.is_empty() => {
            let numbers: Option<Vec<f64>> = list.iter().map(|x| Some(x.as_f64()? * scale)).collect();
            match numbers {
                // What is not finite is said of the run.
                Some(tasks) => Ok(Some((stats::iqm(&tasks).unwrap_or(f64::NAN), tasks))),
                None => wrong(&one.to_string()),
            }
        }
        [other] => wrong(&other.to_string()),
        many => wrong(&format!("{} values", many.len())),
    }
}

/// The one number of an answer; `None` for null.
fn one_number(answer: &Outputs) -> Result<Option<f64>, String> {
    match answer.as_ref().map_err(Clone::clone)?.as_slice() {
        [Value::Null] => Ok(None),
        [Value::Number(n)] => Ok(n.as_f64()),
        // What JSON lacks comes as one of these texts.
        [Value::String(s)] if matches!(s.as_str(), "NaN" | "Infinity" | "-Infinity") => Ok(Some(f64::NAN)),
        [other] => {
            let text: String = other.to_string().chars().take(60).collect();
            Err(format!("the metric gives {}, which is no number", text.escape_debug()))
        }
        outputs => Err(format!("the metric gives {} values: it must give one number", outputs.len())),
    }
}
