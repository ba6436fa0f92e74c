//! Axes: from values to places, with round numbers as ticks.

use crate::report::table::number::{fixed, with_suffix};

/// Values beyond this are drawn at it: their differences must stay finite.
const LARGEST: f64 = 1e300;

/// An axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    log: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    /// Value and label, ascending.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis that holds all values. `round` extends it to the next ticks.
    pub(super) fn of(values: impl Iterator<Item = f64>, log: bool, round: bool) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for x in values.filter(|x| x.is_finite()).map(|x| x.clamp(-LARGEST, LARGEST)) {
            (low, high) = (low.min(x), high.max(x));
        }
        if low > high {
            (low, high) = if log { (1.0, 10.0) } else { (0.0, 1.0) };
        }
        if log { Self::log(low, high) } else { Self::linear(low, high, round) }
    }

    fn linear(mut low: f64, mut high: f64, round: bool) -> Self {
        if low == high {
            let room = if low == 0.0 { 1.0 } else { 0.1 * low.abs() };
            (low, high) = (low - room, high + room);
        }
        let step = round_step((high - low) / 5.0);
        if round {
            (low, high) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
        }
        let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
        let mut ticks = Vec::new();
        let mut i = first;
        while i <= last && ticks.len() < 20 {
            ticks.push((i * step, label(i * step, step)));
            i += 1.0;
        }
        Self { log: false, low, high, from: 0.0, to: 1.0, ticks }
    }

    fn log(low: f64, high: f64) -> Self {
        let (low, high) = (low.max(1e-300), high.max(1e-300));
        let decades = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let steps: &[f64] = if decades.1 - decades.0 <= 3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let all: Vec<f64> =
            (decades.0..=decades.1).flat_map(|e| steps.iter().map(move |s| s * 10f64.powi(e))).collect();
        let low = all.iter().copied().filter(|t| *t <= low * (1.0 + 1e-9)).fold(all[0], f64::max);
        let top = all.last().copied().unwrap_or(high);
        let high = all.iter().copied().filter(|t| *t >= high * (1.0 - 1e-9)).fold(top, f64::min);
        let (low, high) = if low < high { (low, high) } else { (low / 2.0, high * 2.0) };
        let inside: Vec<f64> = all.into_iter().filter(|t| (low..=high).contains(t)).collect();
        // At most eight, whatever the number of decades.
        let every = inside.len().div_ceil(8).max(1);
        let every = if steps.len() == 1 { every } else { 1 };
        let ticks = inside.into_iter().step_by(every).map(|t| (t, label(t, t))).collect();
        Self { log: true, low, high, from: 0.0, to: 1.0, ticks }
    }

    /// The axis drawn between two places.
    pub(super) fn between(self, from: f64, to: f64) -> Self {
        Self { from, to, ..self }
    }

    /// Where a value stands; values beyond the axis stand at its ends.
    pub(super) fn at(&self, x: f64) -> f64 {
        let part = if self.log {
            (x.max(1e-300) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (x.clamp(-LARGEST, LARGEST) - self.low) / (self.high - self.low)
        };
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Whether a value can stand on it.
    pub(super) fn admits(&self, x: f64) -> bool {
        x.is_finite() && (!self.log || x > 0.0)
    }
}

/// The next larger of 1, 2, 2.5 and 5 times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powi(step.log10().floor() as i32);
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|n| n * power)
        .find(|s| *s >= step * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

/// A tick as short as it can be read: 0.25, 12.5K, 1e-5.
fn label(x: f64, step: f64) -> String {
    if x == 0.0 || x.abs() < 1e-9 * step {
        return "0".to_owned();
    }
    let trimmed = |text: String| {
        let (head, suffix) = match text.find(|c: char| c.is_ascii_alphabetic()) {
            Some(at) => text.split_at(at),
            None => (text.as_str(), ""),
        };
        let head = if head.contains('.') { head.trim_end_matches('0').trim_end_matches('.') } else { head };
        format!("{head}{suffix}")
    };
    match x.abs() {
        size if size < 1e-3 || size >= 1e15 => trimmed(format!("{x:.2e}")).replace("e0", "").to_owned(),
        size if size >= 1e4 => trimmed(with_suffix(x, 3)),
        _ => {
            let digits = (2.0 - step.log10().floor()).clamp(0.0, 9.0) as u8;
            trimmed(fixed(x, digits))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], log: bool) -> Vec<String> {
        Axis::of(values.iter().copied(), log, true).ticks.into_iter().map(|t| t.1).collect()
    }

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        for (values, log, expected) in [
            (vec![0.0, 1.0], false, "0 0.2 0.4 0.6 0.8 1"),
            (vec![6.9, 28.7], false, "5 10 15 20 25 30"),
            (vec![-3.0, 70.0], false, "-20 0 20 40 60 80"),
            (vec![0.0, 48_000.0], false, "0 10K 20K 30K 40K 50K"),
            (vec![1e-5, 3e-5], false, "1e-5 1.5e-5 2e-5 2.5e-5 3e-5"),
            (vec![5.0, 5.0], false, "4.4 4.6 4.8 5 5.2 5.4 5.6"),
            (vec![7.0, 50_000.0], true, "1 10 100 1000 10K 100K"),
            (vec![12.0, 30.0], true, "10 20 50"),
            (vec![], false, "0 0.2 0.4 0.6 0.8 1"),
        ] {
            assert_eq!(labels(&values, log).join(" "), expected, "{values:?}");
            let axis = Axis::of(values.iter().copied(), log, true).between(300.0, 10.0);
            for x in values {
                assert!((10.0..=300.0).contains(&axis.at(x)), "{x}");
            }
        }
    }

    #[test]
    fn what_no_axis_holds_stands_at_its_end() {
        let axis = Axis::of([1e308, -1e308, f64::NAN].into_iter(), false, true).between(0.0, 1.0);
        assert!(axis.at(1e308).is_finite() && axis.at(-1e308).is_finite());
        assert!(axis.ticks.len() < 20);
        let log = Axis::of([1.0, 10.0].into_iter(), true, true).between(100.0, 0.0);
        assert_eq!((log.at(1.0), log.at(10.0), log.at(0.0)), (100.0, 0.0, 100.0));
        assert!(!log.admits(0.0) && !log.admits(f64::INFINITY) && log.admits(2.0));
    }
}
