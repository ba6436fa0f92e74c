//! Learning-rate schedules. Pure functions of the step.
//!
//! `neox-v1` is what Pythia was trained with (gpt-neox v1.0, `learning_rates.py`): the cosine runs towards 0
//! over all steps and is clamped at the lowest rate, and the first step has rate 0. `neox-v2` is what the
//! same project computes today: the cosine ends at the lowest rate, and the first step is not lost.
//! `linear`, `cosine` and `constant` are those of `transformers` (their first step has rate 0 where there is
//! a warmup).

use std::f64::consts::PI;

/// The shape of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Warmup, then the highest rate.
    Constant,
    /// Warmup, then a straight line to the lowest rate at the end.
    Linear,
    /// Warmup, then half a cosine to the lowest rate at the end.
    Cosine,
    /// As Pythia was trained.
    NeoxV1,
    /// As gpt-neox computes today.
    NeoxV2,
}

impl Shape {
    /// Words in a study.
    pub const WORDS: &'static [&'static str] = &["constant", "linear", "cosine", "neox-v1", "neox-v2"];

    /// By its word in a study.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "constant" => Self::Constant,
            "linear" => Self::Linear,
            "cosine" => Self::Cosine,
            "neox-v1" => Self::NeoxV1,
            "neox-v2" => Self::NeoxV2,
            _ => return None,
        })
    }
}

/// A schedule over a number of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Shape.
    pub shape: Shape,
    /// Highest rate.
    pub lr: f64,
    /// Lowest rate after the warmup.
    pub min_lr: f64,
    /// Part of all steps that warm up, 0 to 1.
    pub warmup_ratio: f64,
    /// Steps in all.
    pub steps: u64,
}

impl Schedule {
    /// Steps of warmup. Rounded up, as `transformers` does; gpt-neox multiplies and keeps the fraction.
    fn warmup(&self) -> f64 {
        let exact = self.warmup_ratio * self.steps as f64;
        match self.shape {
            Shape::NeoxV1 | Shape::NeoxV2 => exact,
            // A product that should be whole must not be pushed up by its rounding.
            _ => (exact - 1e-9).ceil().max(0.0),
        }
    }

    /// Rate of optimizer step `step`, from 0.
    pub fn at(&self, step: u64) -> f64 {
        let (n, w, it) = (self.steps as f64, self.warmup(), step as f64);
        match self.shape {
            Shape::NeoxV1 => return neox_v1(self.lr, self.min_lr, n, w, it),
            // The count of steps includes this one.
            Shape::NeoxV2 => return neox_v2(self.lr, self.min_lr, n, w, it + 1.0),
            _ => {}
        }
        if it < w {
            return self.lr * it / w.max(1.0);
        }
        let progress = ((it - w) / (n - w).max(1.0)).min(1.0);
        let rest = match self.shape {
            Shape::Linear => 1.0 - progress,
            Shape::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            _ => 1.0,
        };
        self.min_lr + (self.lr - self.min_lr) * rest
    }
}

/// gpt-neox v1.0: `hi/2 (1 + cos(pi (n' - w) / N))` clamped at `lo`, with `n' = min(it, N - w)`.
pub fn neox_v1(hi: f64, lo: f64, steps: f64, warmup: f64, it: f64) -> f64 {
    let n = it.min(steps - warmup);
    if warmup > 0.0 && it <= warmup {
        return hi * n / warmup;
    }
    (hi / 2.0 * (1.0 + (PI * (n - warmup) / steps).cos())).max(lo)
}

/// gpt-neox today: the cosine from `hi` to `lo` over the steps after the warmup.
pub fn neox_v2(hi: f64, lo: f64, steps: f64, warmup: f64, it: f64) -> f64 {
    if warmup > 0.0 && it <= warmup {
        return hi * it / warmup;
    }
    let progress = ((it - warmup) / (steps - warmup).max(1.0)).min(1.0);
    lo + (hi - lo) / 2.0 * (1.0 + (PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neox_schedules_are_those_of_pythia() {
        // Step, rate as trained, rate by today's code: Pythia-1.4B's 143,000 steps, computed with mpmath at 50
        // digits from the two sources' formulas (they round to the published table).
        let table: [(f64, f64, f64); 7] = [
            (10_000.0, 1.982328393160719e-4, 1.983773602999659e-4),
            (36_000.0, 1.725197917027877e-4, 1.747905067004536e-4),
            (71_500.0, 1.031410759078128e-4, 1.114279367451327e-4),
            (100_000.0, 4.397350052700076e-5, 5.795769350220235e-5),
            (115_000.0, 2.018348271415503e-5, 3.682162908119745e-5),
            (130_000.0, 2.0e-5, 2.371913945249985e-5),
            (143_000.0, 2.0e-5, 2.0e-5),
        ];
        for (it, v1, v2) in table {
            for (got, want) in
                [(neox_v1(2e-4, 2e-5, 143_000.0, 1430.0, it), v1), (neox_v2(2e-4, 2e-5, 143_000.0, 1430.0, it), v2)]
            {
                assert!((got / want - 1.0).abs() < 1e-12, "{it}: {got:e} {want:e}");
            }
        }
        let schedule = |shape| Schedule { shape, lr: 2e-4, min_lr: 2e-5, warmup_ratio: 0.01, steps: 143_000 };
        assert_eq!(schedule(Shape::NeoxV1).at(0), 0.0);
        assert!(schedule(Shape::NeoxV2).at(0) > 0.0);
        // Flat from step 115,139 on.
        assert!(schedule(Shape::NeoxV1).at(115_138) > 2e-5);
        assert_eq!(schedule(Shape::NeoxV1).at(115_139), 2e-5);
    }

    #[test]
    fn linear_warms_up_and_ends_at_the_lowest() {
        let linear = Schedule { shape: Shape::Linear, lr: 1.0, min_lr: 0.0, warmup_ratio: 0.1, steps: 100 };
        assert_eq!([linear.at(0), linear.at(5), linear.at(10), linear.at(55)], [0.0, 0.5, 1.0, 0.5]);
        assert!((linear.at(99) - 1.0 / 90.0).abs() < 1e-15);
        assert_eq!(linear.at(100), 0.0);
        let cosine = Schedule { shape: Shape::Cosine, min_lr: 0.2, ..linear };
        assert!((cosine.at(55) - 0.6).abs() < 1e-12 && (cosine.at(100) - 0.2).abs() < 1e-12);
        let constant = Schedule { shape: Shape::Constant, warmup_ratio: 0.0, ..linear };
        assert_eq!([constant.at(0), constant.at(99)], [1.0, 1.0]);
    }
}
