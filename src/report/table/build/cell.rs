//! What a cell prints of its values.

use super::sample::{Lost, Sample};
use super::{Builder, Resample};
use crate::report::stats::{self, Degenerate, Interval, Resamples, Resampling, Statistic};
use crate::report::table::grid::{Alignment, Column, GridCell, IntervalKind, MissingRun, Printed, SeedValue};
use crate::report::table::number;
use crate::report::table::spec::{
    Allow, ColumnSpec, IntervalMethod, LEAST_BOOTSTRAP, Notation, Partial, RatioError, Show,
};

/// The numbers of a cell at full precision.
struct Numbers {
    /// What is printed.
    value: Result<f64, Degenerate>,
    /// What is printed behind ±.
    spread: Option<f64>,
    interval: Result<(Interval, IntervalKind), Degenerate>,
}

impl Builder<'_> {
    pub(super) fn cell(&mut self, row: usize, column: usize, sample: &Sample) -> GridCell {
        let spec = &self.spec.columns[column];
        let values = sample.numbers();
        let (mean, sd) = (stats::mean(&values), stats::sample_sd(&values));
        let n = if spec.ratio.is_some() { sample.pairs.len() } else { values.len() };
        let numbers = self.numbers(row, column, sample, &values);
        let degenerate = numbers.value.err().or(sd.err()).or(numbers.interval.as_ref().err().copied());
        let mut cell = GridCell {
            mean: mean.ok(),
            sd: sd.ok(),
            median: stats::median(&values).ok(),
            iqm: stats::iqm(&values).ok(),
            value: numbers.value.ok(),
            spread: numbers.spread,
            interval: numbers.interval.ok().map(|(interval, _)| interval),
            interval_kind: numbers.interval.ok().map(|(_, kind)| kind),
            degenerate: degenerate.filter(|_| !sample.reference).map(|why| why.to_string()),
            n,
            n_expected: sample.n_expected(),
            ..self.unprinted(sample, |_| true)
        };
        if sample.reference {
            return cell;
        }
        if !cell.missing.is_empty() {
            self.partial(row, column, &mut cell);
            if self.spec.partial == Partial::Drop && spec.show != Show::N {
                return cell;
            }
        } else if let Some(what) = self.lacks(spec, sample, &cell) {
            cell.notes.push(self.notes.add(what));
        }
        if sample.one_sided > 0 && cell.n > 0 {
            let text = format!("paired on the n = {} seeds that both sides have", cell.n);
            cell.notes.push(self.notes.add(text));
        }
        cell.printed = printed(spec, &cell);
        cell
    }

    /// A cell that prints nothing yet: what is there and what is lost of the seeds that `of` it are.
    pub(super) fn unprinted(&mut self, sample: &Sample, of: impl Fn(Option<u32>) -> bool) -> GridCell {
        let seed_value = |&(seed, value): &(Option<u32>, f64)| SeedValue { seed, value };
        let lost = |lost: &Lost| MissingRun { cell: lost.cell.clone(), reason: lost.reason.clone() };
        let runs = sample.cells.iter().filter(|(seed, _)| of(*seed));
        GridCell {
            printed: if sample.reference { Printed::Reference } else { Printed::Missing },
            values: sample.values.iter().filter(|(seed, _)| of(*seed)).map(seed_value).collect(),
            missing: sample.lost.iter().filter(|lost| of(lost.seed)).map(lost).collect(),
            runs: runs.filter_map(|(_, index)| self.run_ref(*index)).collect(),
            ..GridCell::default()
        }
    }

    /// A cell some of whose runs are missing.
    fn partial(&mut self, row: usize, column: usize, cell: &mut GridCell) {
        let text = format!("{} of {} runs; {}", cell.n, cell.n_expected, missing(cell));
        match self.spec.partial {
            // That a metric matches nothing is said once for its column.
            Partial::Error if self.is_dead(column) => {}
            Partial::Error => self.problem(
                row,
                column,
                &format!("{text}: run `run_all` to finish, or set `partial = \"mark\"` in the table"),
            ),
            Partial::Mark | Partial::Drop => cell.notes.push(self.notes.add(text)),
        }
    }

    /// What a whole cell cannot show of what is asked, in words.
    fn lacks(&self, spec: &ColumnSpec, sample: &Sample, cell: &GridCell) -> Option<String> {
        if cell.value.is_none() && spec.show != Show::N && !sample.expected.is_empty() {
            return cell.degenerate.clone();
        }
        let wanting = match spec.show {
            Show::MeanSd => cell.spread.is_none(),
            Show::MeanCi | Show::IqmTasks => cell.interval.is_none(),
            _ => false,
        };
        // A value without a seed has no spread by its nature.
        if !wanting || sample.values.iter().all(|(seed, _)| seed.is_none()) {
            return None;
        }
        if cell.n == 1 {
            return Some("one run: no standard deviation and no interval".to_owned());
        }
        cell.degenerate.clone()
    }

    fn numbers(&mut self, row: usize, column: usize, sample: &Sample, values: &[f64]) -> Numbers {
        let spec = &self.spec.columns[column];
        let level = self.spec.level;
        let none = Err(Degenerate::TooFew { have: values.len().min(1), need: 2 });
        match spec.show {
            Show::Median => return Numbers { value: stats::median(values), spread: None, interval: none },
            Show::IqmTasks => return self.over_tasks(row, column, sample),
            Show::Iqm => return Numbers { value: stats::iqm(values), spread: None, interval: none },
            _ => {}
        }
        if let Some(ratio) = &spec.ratio {
            return self.ratio(column, sample, ratio.error, self.resamples(row, column));
        }
        let interval = if self.spec.interval == IntervalMethod::Bootstrap && spec.show == Show::MeanCi {
            self.enough_to_resample(column, values.len(), "runs");
            let drawn = self.drawn.remove(&(row, column)).unwrap_or(Err(Degenerate::OutOfRange));
            drawn.map(|b| (b.interval, IntervalKind::Bootstrap))
        } else {
            stats::t_interval(values, level).map(|interval| (interval, IntervalKind::T))
        };
        let spread = if spec.show == Show::MeanSd { stats::sample_sd(values).ok() } else { None };
        Numbers { value: stats::mean(values), spread, interval }
    }

    /// The interquartile mean of all runs and tasks; runs are drawn within each task (Agarwal et al. 2021).
    fn over_tasks(&mut self, row: usize, column: usize, sample: &Sample) -> Numbers {
        let runs = sample.tasks.len();
        let tasks = sample.tasks.first().map_or(0, Vec::len);
        if runs > 1 {
            self.enough_to_resample(column, runs * tasks, "numbers");
        }
        let strata: Vec<Vec<f64>> = (0..tasks).map(|t| sample.tasks.iter().map(|run| run[t]).collect()).collect();
        let resamples = self.resamples(row, column);
        let drawn = stats::bootstrap_stratified(&strata, Statistic::Iqm, self.spec.level, resamples);
        Numbers {
            value: stats::iqm(&sample.tasks.concat()),
            spread: None,
            interval: drawn.map(|b| (b.interval, IntervalKind::Stratified)),
        }
    }

    fn ratio(&mut self, column: usize, sample: &Sample, error: RatioError, resamples: Resamples) -> Numbers {
        let spec = &self.spec.columns[column];
        let (scale, level) = (spec.scale, self.spec.level);
        let scaled = |interval: Interval| {
            let (a, b) = (interval.lower * scale, interval.upper * scale);
            Interval { lower: a.min(b), upper: a.max(b) }
        };
        // A value that all seeds share has no error of its own.
        let side = |values: Vec<f64>| {
            let first = values.first().copied();
            match first {
                Some(first) if values.iter().all(|x| *x == first) => vec![first],
                _ => values,
            }
        };
        let (left, right): (Vec<f64>, Vec<f64>) = sample.pairs.iter().copied().unzip();
        let (n, constant) = (left.len(), left.len() > 1 && left.iter().zip(&left[1..]).all(|(a, b)| a == b));
        // What its scale takes beyond the range of floats is no number.
        let fits = |r: stats::Ratio| {
            let ends = r.interval.map_or([r.ratio; 2], |i| [i.lower, i.upper]);
            let all = [r.ratio, r.sd.unwrap_or(0.0), ends[0], ends[1]];
            if all.iter().all(|x| (x * scale).is_finite()) { Ok(r) } else { Err(Degenerate::NotFinite) }
        };
        let found = stats::ratio(&side(left), &side(right), level).and_then(fits);
        let propagated = found.and_then(|r| match r.interval {
            Some(interval) => Ok((scaled(interval), IntervalKind::Propagated)),
            // Both sides are equal over several seeds: the ratio has no error.
            None if n > 1 => {
                let only = r.ratio * scale;
                Ok((Interval { lower: only, upper: only }, IntervalKind::Propagated))
            }
            None => Err(Degenerate::TooFew { have: n, need: 2 }),
        });
        let interval = if error == RatioError::Bootstrap && spec.show == Show::MeanCi {
            self.enough_to_resample(column, n, "runs");
            let drawn = stats::bootstrap_ratio(&sample.pairs, level, resamples);
            drawn.map(|b| scaled(b.interval)).and_then(|interval| {
                let finite = interval.lower.is_finite() && interval.upper.is_finite();
                if finite { Ok((interval, IntervalKind::Bootstrap)) } else { Err(Degenerate::NotFinite) }
            })
        } else {
            propagated
        };
        let sd = found.ok().and_then(|r| r.sd).or((n > 1 && constant).then_some(0.0));
        Numbers {
            value: found.map(|r| r.ratio * scale),
            spread: sd.filter(|_| spec.show == Show::MeanSd).map(|sd| sd * scale.abs()),
            interval,
        }
    }

    /// Where the random numbers of a cell begin: at its keys, so that another row moves none of them.
    fn resamples(&self, row: usize, column: usize) -> Resamples {
        let keys = [self.spec.key.as_str(), &self.spec.rows[row].key, &self.spec.columns[column].key];
        Resamples { count: self.spec.resamples, seed: stats::seed_of(self.spec.bootstrap_seed, &keys) }
    }

    /// Resamples every mean that is to have a bootstrap interval, in one call.
    pub(super) fn draw(&mut self, samples: &[Vec<Sample>], resample: Resample<'_>) {
        if self.spec.interval != IntervalMethod::Bootstrap {
            return;
        }
        let mut places = Vec::new();
        let mut values = Vec::new();
        for (row, line) in samples.iter().enumerate() {
            for (column, spec) in self.spec.columns.iter().enumerate() {
                if spec.show == Show::MeanCi && spec.ratio.is_none() {
                    places.push((row, column));
                    values.push(line[column].numbers());
                }
            }
        }
        let drawn: Vec<Resampling<'_>> = places
            .iter()
            .zip(&values)
            .map(|(&(row, column), values)| Resampling {
                values,
                level: self.spec.level,
                resamples: self.resamples(row, column),
            })
            .collect();
        let answers = resample(&drawn);
        self.drawn = places.into_iter().zip(answers).collect();
    }

    /// A percentile bootstrap of few runs is too narrow: with 5 normal runs a 95 % interval holds the mean in 84 %.
    fn enough_to_resample(&mut self, column: usize, n: usize, what: &str) {
        if (2..LEAST_BOOTSTRAP).contains(&n) && !self.spec.allow.contains(&Allow::SmallBootstrap) {
            let what = format!(
                "a percentile bootstrap of {n} {what} is too narrow, fewer than {LEAST_BOOTSTRAP} need a t interval: remove \
                 the bootstrap, or say `allow = [\"small_bootstrap\"]`"
            );
            self.column_problem(column, &what);
        }
    }
}

/// The runs that a cell lacks, in words.
pub(super) fn missing(cell: &GridCell) -> String {
    let lost: Vec<String> = cell.missing.iter().map(|m| format!("{} ({})", m.cell, m.reason)).collect();
    format!("missing: {}", lost.join(", "))
}

/// A number of a column as it is printed.
pub(super) fn shown(spec: &ColumnSpec, x: f64) -> String {
    match spec.notation {
        Notation::Plain => spec.rounding().print(x),
        // Suffixes have decimals.
        Notation::Suffix => number::with_suffix(x, spec.digits.unwrap_or(2)),
    }
}

/// Digits that stand in a column of numbers: scientific ones do not.
fn decimal(text: &str) -> bool {
    !text.contains('e')
}

pub(super) fn printed(spec: &ColumnSpec, cell: &GridCell) -> Printed {
    if spec.show == Show::N {
        return Printed::Text(format!("{} of {}", cell.n, cell.n_expected));
    }
    if spec.show == Show::Values && !cell.values.is_empty() {
        return Printed::Values(cell.values.iter().map(|v| shown(spec, v.value)).collect());
    }
    let Some(value) = cell.value else { return Printed::Missing };
    let text = shown(spec, value);
    if spec.notation == Notation::Suffix {
        return Printed::Text(text);
    }
    let like = |x: f64| spec.rounding().print_like(value, x);
    match (spec.show, cell.spread, cell.interval) {
        (Show::MeanSd, Some(spread), _) => {
            let spread = like(spread);
            if decimal(&text) && decimal(&spread) {
                Printed::Number { text, spread: Some(spread) }
            } else {
                Printed::Text(format!("{text} ± {spread}"))
            }
        }
        (Show::MeanCi | Show::IqmTasks, _, Some(interval)) => {
            let (lower, upper) = (like(interval.lower), like(interval.upper));
            if decimal(&text) && decimal(&lower) && decimal(&upper) {
                Printed::Interval { text, lower, upper }
            } else {
                Printed::Text(format!("{text} [{lower}, {upper}]"))
            }
        }
        _ if decimal(&text) => Printed::Number { text, spread: None },
        _ => Printed::Text(text),
    }
}

/// The column of a grid, with the places that its printed cells need.
pub(super) fn column<'c>(spec: &ColumnSpec, cells: impl Iterator<Item = &'c GridCell>) -> Column {
    let (mut negative, mut whole, mut fraction, mut spread) = (false, 0, 0, (0, 0));
    let mut all_decimal = true;
    let places = |text: &str| {
        let digits = text.trim_start_matches('-');
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        (whole.len(), fraction.len())
    };
    for cell in cells {
        match &cell.printed {
            Printed::Number { text, spread: own } => {
                negative |= text.starts_with('-');
                let (w, f) = places(text);
                (whole, fraction) = (whole.max(w), fraction.max(f));
                if let Some(own) = own {
                    let (w, f) = places(own);
                    spread = (spread.0.max(w), spread.1.max(f));
                }
            }
            Printed::Interval { text, .. } => {
                negative |= text.starts_with('-');
                let (w, f) = places(text);
                (whole, fraction) = (whole.max(w), fraction.max(f));
            }
            Printed::Text(_) | Printed::Values(_) => all_decimal = false,
            Printed::Reference | Printed::Missing => {}
        }
    }
    let alignment = if all_decimal && whole > 0 {
        Alignment::Decimal { negative, whole, fraction, spread }
    } else {
        Alignment::Right
    };
    Column {
        key: spec.key.clone(),
        label: spec.text().to_owned(),
        span: spec.span.clone().filter(|s| !s.is_empty()),
        show: spec.show,
        better: spec.better,
        alignment,
        note: None,
    }
}
