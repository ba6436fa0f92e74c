//! From a section and results to the numbers of a figure.

use std::collections::{BTreeMap, BTreeSet};

use super::spec::{Band, ErrorBars, FigureSpec, Kind, LineSpec, Peak, Scale};
use super::{Bar, Bars, Body, Curve, Figure, Peaks, Point};
use crate::record::{CellKey, SeriesPoint};
use crate::report::render;
use crate::report::stats;
use crate::report::table::{Grid, Meant, Printed, Row, RunRef, TableProblem, two_for_one};

/// A cell that the plan expects, with its series.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Which cell.
    pub key: &'a CellKey,
    /// Labels of its arm.
    pub labels: &'a BTreeMap<String, String>,
    /// Its result and series, if it has one.
    pub run: Option<(&'a RunRef, &'a BTreeMap<String, Vec<SeriesPoint>>)>,
}

/// Builds a figure from the series of cells, or from the grid of its table.
///
/// # Errors
/// A line that no cell matches, runs without the series or without a common step, a table that was not made.
pub fn build(spec: &FigureSpec, sources: &[Source<'_>], grids: &[Grid]) -> Result<Figure, Vec<TableProblem>> {
    let problem = |what: String| TableProblem(format!("figure `{}`: {what}", spec.key));
    let of_series = || -> Result<Vec<Runs<'_>>, Vec<TableProblem>> {
        let found: Vec<Result<Runs<'_>, String>> = spec.lines.iter().map(|line| runs_of(spec, line, sources)).collect();
        let (good, bad): (Vec<_>, Vec<_>) = found.into_iter().partition(Result::is_ok);
        let bad: Vec<TableProblem> = bad.into_iter().filter_map(Result::err).map(problem).collect();
        if bad.is_empty() { Ok(good.into_iter().flatten().collect()) } else { Err(bad) }
    };
    let of_table = || match grids.iter().find(|g| Some(&g.key) == spec.table.as_ref()) {
        Some(grid) => Ok(grid),
        None => Err(vec![problem(format!("its table `{}` was not made", spec.table.as_deref().unwrap_or_default()))]),
    };
    let (body, y, runs, made) = match (spec.kind, &spec.series) {
        (Kind::Curves, _) => {
            let lines = of_series()?;
            let curves: Result<Vec<Curve>, String> = lines.iter().map(|line| line.curve(spec)).collect();
            let curves = curves.map_err(|e| vec![problem(e)])?;
            (Body::Curves(curves), spec.series.clone(), references(&lines), band_words(spec))
        }
        (Kind::PeakToFinal, Some(series)) => {
            let lines = of_series()?;
            let peaks = lines.iter().map(|line| line.peaks(spec)).collect();
            (
                Body::Peaks(peaks),
                Some(series.clone()),
                references(&lines),
                "Each run from its peak to its end.".to_owned(),
            )
        }
        (Kind::PeakToFinal, None) => {
            let grid = of_table()?;
            let (peaks, runs) = peaks_of(spec, grid).map_err(|e| vec![problem(e)])?;
            (Body::Peaks(peaks), None, runs, "Each run from its peak to its end.".to_owned())
        }
        (Kind::Bars, _) => {
            let grid = of_table()?;
            let (body, y, runs) = bars_of(spec, grid).map_err(|e| vec![problem(e)])?;
            (body, y, runs, error_words(spec, grid))
        }
    };
    let x = match spec.kind {
        Kind::Curves => "step",
        Kind::Bars | Kind::PeakToFinal => "",
    };
    let figure = Figure {
        key: spec.key.clone(),
        title: spec.title.clone(),
        caption: [spec.caption.as_str(), made.as_str()]
            .into_iter()
            .filter(|t| !t.is_empty())
            .collect::<Vec<_>>()
            .join(" "),
        x_label: spec.x_label.clone().unwrap_or_else(|| x.to_owned()),
        y_label: spec.y_label.clone().or(y).unwrap_or_default(),
        log: spec.scale == Scale::Log,
        body,
        runs,
    };
    if figure.values().next().is_none() {
        return Err(vec![problem(
            "there is no value to draw: look at its cells with `seedbed status`, and at `scale`".to_owned(),
        )]);
    }
    Ok(figure)
}

/// The curves that every study has: for each of these series that some stage's runs have, all stages and arms that
/// have it. Logarithmic where values differ by more than a hundredfold.
pub fn default_curves(sources: &[Source<'_>], series: &[(&str, &str)]) -> Vec<FigureSpec> {
    let mut specs = Vec::new();
    for (name, label) in series {
        let mut lines: Vec<LineSpec> = Vec::new();
        let (mut least, mut most) = (f64::INFINITY, 0f64);
        for source in sources {
            let Some(points) = source.run.and_then(|(_, all)| all.get(*name)).filter(|p| !p.is_empty()) else {
                continue;
            };
            for point in points {
                (least, most) = (least.min(point.value), most.max(point.value));
            }
            let arm = source.key.arm.as_ref().map(ToString::to_string);
            let stage = source.key.stage.to_string();
            let key = arm.as_ref().map_or_else(|| stage.clone(), |arm| format!("{stage}.{arm}"));
            if !lines.iter().any(|l| l.key == key) {
                let label = arm.as_ref().map_or_else(|| stage.clone(), |arm| format!("{stage}, {arm}"));
                lines.push(LineSpec { key, label, stage, arm, labels: BTreeMap::new() });
            }
        }
        if lines.is_empty() {
            continue;
        }
        specs.push(FigureSpec {
            key: (*name).to_owned(),
            kind: Kind::Curves,
            title: (*label).to_owned(),
            caption: String::new(),
            x_label: None,
            y_label: Some((*label).to_owned()),
            scale: if least > 0.0 && most / least > 100.0 { Scale::Log } else { Scale::Linear },
            series: Some((*name).to_owned()),
            lines,
            band: Band::Range,
            peak: Peak::Lowest,
            table: None,
            columns: Vec::new(),
            error: ErrorBars::Ci,
            level: 0.95,
        });
    }
    specs
}

impl Figure {
    /// Every value that is drawn, ends of bands and intervals included.
    pub(super) fn values(&self) -> Box<dyn Iterator<Item = f64> + '_> {
        let drawn = |x: &f64| x.is_finite() && (!self.log || *x > 0.0);
        match &self.body {
            Body::Curves(curves) => {
                let ends = |p: &Point| [p.mean].into_iter().chain(p.band.into_iter().flat_map(|(a, b)| [a, b]));
                Box::new(curves.iter().flat_map(|c| &c.points).flat_map(ends).filter(drawn))
            }
            Body::Bars { bars, .. } => {
                let ends = |b: &Bar| [b.value].into_iter().chain(b.interval.into_iter().flat_map(|(a, b)| [a, b]));
                Box::new(bars.iter().flat_map(|b| b.bars.iter().flatten()).flat_map(ends).filter(drawn))
            }
            Body::Peaks(peaks) => {
                Box::new(peaks.iter().flat_map(|p| &p.runs).flat_map(|(_, a, b)| [*a, *b]).filter(drawn))
            }
        }
    }
}

/// The runs of a line that have the series.
struct Runs<'a> {
    line: &'a LineSpec,
    n_expected: usize,
    runs: Vec<(&'a RunRef, &'a [SeriesPoint])>,
}

fn runs_of<'a>(spec: &'a FigureSpec, line: &'a LineSpec, sources: &[Source<'a>]) -> Result<Runs<'a>, String> {
    let series = spec.series.as_deref().unwrap_or_default();
    let meant = Meant { stage: &line.stage, arm: line.arm.as_deref(), labels: &line.labels };
    let cells: Vec<&Source<'a>> = sources.iter().filter(|s| meant.fits(s.key, s.labels)).collect();
    if cells.is_empty() {
        return Err(format!(
            "line `{}`: no expected cell of stage `{}` matches: check `stage`, `arm`, `labels` and the `needs` of the \
             aggregating stage",
            line.key, line.stage
        ));
    }
    if let Some((one, other)) = two_for_one(cells.iter().map(|s| s.key)) {
        return Err(format!(
            "line `{}`: {} and {} are two runs for one place: narrow it with `arm` or `labels`",
            line.key,
            cells[one].key.local_name(),
            cells[other].key.local_name()
        ));
    }
    let mut runs = Vec::new();
    for (run, all) in cells.iter().filter_map(|s| s.run) {
        match all.get(series).filter(|points| !points.is_empty()) {
            Some(points) => runs.push((run, points.as_slice())),
            None => {
                let known: Vec<&str> = all.keys().map(String::as_str).collect();
                let there =
                    if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
                return Err(format!("{} has no series `{series}`: {there}", run.key.local_name()));
            }
        }
    }
    Ok(Runs { line, n_expected: cells.len(), runs })
}

fn references(lines: &[Runs<'_>]) -> Vec<RunRef> {
    let all: BTreeSet<RunRef> = lines.iter().flat_map(|l| l.runs.iter().map(|(run, _)| (*run).clone())).collect();
    all.into_iter().collect()
}

impl Runs<'_> {
    /// Mean and band at each step that every run has.
    fn curve(&self, spec: &FigureSpec) -> Result<Curve, String> {
        let mut at: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for (_, points) in &self.runs {
            // Of two lines for one step the later counts: it was written after a resume.
            let own: BTreeMap<u64, f64> = points.iter().map(|p| (p.step, p.value)).collect();
            for (step, value) in own {
                at.entry(step).or_default().push(value);
            }
        }
        at.retain(|_, values| values.len() == self.runs.len());
        if at.is_empty() && !self.runs.is_empty() {
            return Err(format!(
                "line `{}`: its runs have no step in common: draw one with the same logging interval",
                self.line.key
            ));
        }
        let points = at
            .into_iter()
            .filter_map(|(step, values)| {
                let mean = stats::mean(&values).ok()?;
                let band = match spec.band {
                    Band::None => None,
                    _ if values.len() < 2 => None,
                    Band::Range => {
                        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
                        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        Some((least, most))
                    }
                    Band::Sd => stats::sample_sd(&values).ok().map(|sd| (mean - sd, mean + sd)),
                    Band::Ci => stats::t_interval(&values, spec.level).ok().map(|i| (i.lower, i.upper)),
                };
                Some(Point { step, mean, band })
            })
            .collect();
        let (key, label) = (self.line.key.clone(), self.line.text().to_owned());
        Ok(Curve { key, label, n: self.runs.len(), n_expected: self.n_expected, points })
    }

    fn peaks(&self, spec: &FigureSpec) -> Peaks {
        let peak = |points: &[SeriesPoint]| {
            let values = points.iter().map(|p| p.value);
            match spec.peak {
                Peak::Highest => values.fold(f64::NEG_INFINITY, f64::max),
                Peak::Lowest => values.fold(f64::INFINITY, f64::min),
            }
        };
        let last = |points: &[SeriesPoint]| points.iter().max_by_key(|p| p.step).map_or(f64::NAN, |p| p.value);
        let runs = self.runs.iter().map(|(run, points)| (run.key.seed, peak(points), last(points))).collect();
        let (key, label) = (self.line.key.clone(), self.line.text().to_owned());
        Peaks { key, label, n_expected: self.n_expected, runs }
    }
}

/// Index of each column that a figure names.
fn columns_of(spec: &FigureSpec, grid: &Grid) -> Result<Vec<usize>, String> {
    let index = |key: &String| {
        grid.columns
            .iter()
            .position(|c| &c.key == key)
            .ok_or_else(|| format!("table `{}` has no column `{key}`: correct `columns`", grid.key))
    };
    spec.columns.iter().map(index).collect()
}

/// The runs behind some columns of a grid.
fn runs_of_columns(grid: &Grid, columns: &[usize]) -> Vec<RunRef> {
    let cells = grid.rows.iter().flat_map(|r| columns.iter().filter_map(|c| r.cells.get(*c)));
    let all: BTreeSet<RunRef> = cells.flat_map(|c| c.runs.iter().map(|run| (**run).clone())).collect();
    all.into_iter().collect()
}

fn row_label(row: &Row) -> String {
    match &row.group {
        Some(group) => format!("{group}: {}", row.label),
        None => row.label.clone(),
    }
}

type BuiltBars = (Body, Option<String>, Vec<RunRef>);

/// Columns of the table as groups, its rows as bars. With one column, its rows are the groups.
fn bars_of(spec: &FigureSpec, grid: &Grid) -> Result<BuiltBars, String> {
    let columns = columns_of(spec, grid)?;
    let bar = |row: &Row, column: usize| -> Result<Option<Bar>, String> {
        // What the table drops is not drawn either.
        let cell = row.cells.get(column).filter(|c| !matches!(c.printed, Printed::Missing | Printed::Reference));
        let Some(cell) = cell else { return Ok(None) };
        let Some(value) = cell.value.or(cell.mean).filter(|x| x.is_finite()) else { return Ok(None) };
        let interval = match spec.error {
            ErrorBars::Ci => cell.interval.map(|i| (i.lower, i.upper)),
            ErrorBars::Sd => match (cell.spread, cell.sd) {
                // The sd of the runs is that of their mean, not of a ratio of means or a median.
                (None, Some(_)) if cell.value != cell.mean => {
                    return Err(format!(
                        "row `{}`, column `{}`: the table prints no standard deviation of it: give the column \
                         `show = \"mean_sd\"`, or say `error = \"ci\"` or `error = \"none\"`",
                        row.key, grid.columns[column].key
                    ));
                }
                (spread, sd) => spread.or(sd).map(|sd| (value - sd, value + sd)),
            },
            ErrorBars::None => None,
        };
        Ok(Some(Bar { value, printed: render::plain_number(cell), interval, n: cell.n }))
    };
    let runs = runs_of_columns(grid, &columns);
    if let [only] = columns.as_slice() {
        let column = &grid.columns[*only];
        let groups = grid.rows.iter().map(|r| (r.key.clone(), row_label(r))).collect();
        let bars = grid.rows.iter().map(|r| bar(r, *only)).collect::<Result<_, _>>()?;
        let bars = vec![Bars { key: column.key.clone(), label: column.label.clone(), bars }];
        return Ok((Body::Bars { groups, bars }, Some(column.label.clone()), runs));
    }
    let groups = columns.iter().map(|c| (grid.columns[*c].key.clone(), grid.columns[*c].label.clone())).collect();
    let bars = grid
        .rows
        .iter()
        .map(|row| -> Result<Bars, String> {
            let bars = columns.iter().map(|c| bar(row, *c)).collect::<Result<_, _>>()?;
            Ok(Bars { key: row.key.clone(), label: row_label(row), bars })
        })
        .collect::<Result<_, _>>()?;
    Ok((Body::Bars { groups, bars }, None, runs))
}

/// Peak and end of each row, paired by seed.
fn peaks_of(spec: &FigureSpec, grid: &Grid) -> Result<(Vec<Peaks>, Vec<RunRef>), String> {
    let columns = columns_of(spec, grid)?;
    let [peak, last] = columns.as_slice() else {
        return Err("peaks take two columns: that of the peak, then that of the end".to_owned());
    };
    let peaks = grid
        .rows
        .iter()
        .map(|row| {
            let (peak, last) = (&row.cells[*peak], &row.cells[*last]);
            let dropped = [peak, last].iter().any(|c| matches!(c.printed, Printed::Missing));
            let runs = peak.values.iter().filter(|_| !dropped).filter_map(|p| {
                let end = last.values.iter().find(|l| l.seed == p.seed)?;
                Some((p.seed, p.value, end.value))
            });
            Peaks { key: row.key.clone(), label: row_label(row), n_expected: peak.n_expected, runs: runs.collect() }
        })
        .collect();
    Ok((peaks, runs_of_columns(grid, &columns)))
}

/// What the band of a curve is, for readers.
fn band_words(spec: &FigureSpec) -> String {
    let band = match spec.band {
        Band::Range => "; band: from the lowest to the highest seed",
        Band::Sd => "; band: a sample standard deviation to both sides",
        Band::Ci => return format!("Line: mean over seeds; band: {} % t interval of the mean.", percent(spec.level)),
        Band::None => "",
    };
    format!("Line: mean over seeds{band}.")
}

fn error_words(spec: &FigureSpec, grid: &Grid) -> String {
    match spec.error {
        ErrorBars::Ci => format!("Error bars: {} % intervals.", percent(grid.level)),
        ErrorBars::Sd => {
            let columns = columns_of(spec, grid).unwrap_or_default();
            let cells = grid.rows.iter().flat_map(|r| columns.iter().filter_map(|c| r.cells.get(*c)));
            // A spread that is not the sd of the runs is that of a ratio.
            let ratios = cells.filter_map(|c| c.spread.map(|s| Some(s) != c.sd)).any(|other| other);
            let more = if ratios { "; of a ratio, as it is propagated from both" } else { "" };
            format!("Error bars: a sample standard deviation to both sides{more}.")
        }
        ErrorBars::None => String::new(),
    }
}

fn percent(level: f64) -> String {
    let text = format!("{:.2}", 100.0 * level);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
