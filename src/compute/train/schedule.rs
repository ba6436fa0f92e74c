//! Learning-rate schedules. Pure functions of the step.
//!
//! `neox-v1` is what Pythia was trained with (gpt-neox v1.0, `learning_rates.py`): the cosine runs towards 0
//! over all steps and is clamped at the lowest rate, and the first step has rate 0. `neox-v2` is what the
//! same project computes today: the cosine ends at the lowest rate, and the first step is not lost.
//! `linear`, `cosine` and `constant` are those of `transformers` (their first step has rate 0 where there is
//! a warmup).
//!
//! The step is the number of updates so far: as in gpt-neox and `transformers`, a step that is skipped does not
//! move the schedule on, so a run that skips ends that much before the schedule does.

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

/// Which steps warm up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Warmup {
    /// Part of all steps, 0 to 1.
    Ratio(f64),
    /// So many.
    Steps(u64),
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
    /// The steps in which the rate rises from 0.
    pub warmup: Warmup,
    /// Steps in all.
    pub steps: u64,
}

impl Schedule {
    /// Steps of warmup. A part is rounded up, as `transformers` does; gpt-neox multiplies and keeps the fraction.
    fn warmup_steps(&self) -> f64 {
        let exact = match self.warmup {
            Warmup::Ratio(part) => part * self.steps as f64,
            Warmup::Steps(steps) => steps as f64,
        };
        match self.shape {
            Shape::NeoxV1 | Shape::NeoxV2 => exact,
            // A product that should be whole must not be pushed up by its rounding.
            _ => (exact - 1e-9).ceil().max(0.0),
        }
    }

    /// Rate of the update that comes after `updates` others.
    pub fn at(&self, updates: u64) -> f64 {
        let (n, w, it) = (self.steps as f64, self.warmup_steps(), updates as f64);
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

    #[track_caller]
    fn close(got: f64, want: f64, what: u64) {
        assert!(got == want || (got / want - 1.0).abs() < 1e-12, "{what}: {got:e} {want:e}");
    }

    #[test]
    fn neox_schedules_are_those_of_pythia() {
        // Step, rate as trained, rate by today's code: Pythia-1.4B's 143,000 steps, computed with 50 digits from
        // the two sources' formulas (they round to the published table).
        let table: [(u64, f64, f64); 13] = [
            (1, 1.398_601_398_601_398_7e-7, 1.398_601_398_601_398_7e-7),
            (715, 1e-4, 1e-4),
            (1430, 2e-4, 2e-4),
            (1431, 1.999_999_999_758_677_6e-4, 1.999_999_999_778_4e-4),
            (10_000, 1.982_328_393_160_719e-4, 1.983_773_602_999_659e-4),
            (36_000, 1.725_197_917_027_877e-4, 1.747_905_067_004_536e-4),
            (71_500, 1.031_410_759_078_128e-4, 1.114_279_367_451_327e-4),
            (100_000, 4.397_350_052_700_076e-5, 5.795_769_350_220_235e-5),
            (115_000, 2.018_348_271_415_503e-5, 3.682_162_908_119_745e-5),
            (115_138, 2.000_120_566_014_206e-5, 3.666_152_862_842_244_9e-5),
            (115_139, 2e-5, 3.666_037_098_840_389_5e-5),
            (130_000, 2e-5, 2.371_913_945_249_985e-5),
            (143_000, 2e-5, 2e-5),
        ];
        let schedule = |shape, warmup| Schedule { shape, lr: 2e-4, min_lr: 2e-5, warmup, steps: 143_000 };
        for warmup in [Warmup::Ratio(0.01), Warmup::Steps(1430)] {
            for (it, v1, v2) in table {
                close(schedule(Shape::NeoxV1, warmup).at(it), v1, it);
                // Its count includes the update itself.
                close(schedule(Shape::NeoxV2, warmup).at(it - 1), v2, it);
            }
            assert_eq!(schedule(Shape::NeoxV1, warmup).at(0), 0.0, "the first update is lost");
        }
        // The published table, to its digits.
        let published = [
            (10_000, 1.9823e-4, 1.9838e-4),
            (36_000, 1.7252e-4, 1.7479e-4),
            (71_500, 1.0314e-4, 1.1143e-4),
            (100_000, 4.397e-5, 5.796e-5),
            (115_000, 2.018e-5, 3.683e-5),
            (130_000, 2e-5, 2.372e-5),
        ];
        for (it, v1, v2) in published {
            let ratio = Warmup::Ratio(0.01);
            let found = [schedule(Shape::NeoxV1, ratio).at(it), schedule(Shape::NeoxV2, ratio).at(it - 1)];
            assert!((found[0] - v1).abs() < 1e-8 && (found[1] - v2).abs() < 1.1e-8, "{it}: {found:?}");
        }
    }

    #[test]
    fn neox_schedules_of_few_steps() {
        // The same formulas with 60 digits: a warmup longer than half of the steps, and one with a fraction.
        let long = Schedule { shape: Shape::NeoxV1, lr: 1e-3, min_lr: 1e-4, warmup: Warmup::Steps(6), steps: 10 };
        let flat = 6.666_666_666_666_667e-4;
        let end = 9.045_084_971_874_737e-4;
        let wanted = [0.0, 1e-3 / 6.0, 1e-3 / 3.0, 5e-4, flat, flat, flat, end, end, end];
        wanted.iter().zip(0..).for_each(|(&want, it)| close(long.at(it), want, it));
        let fraction = Schedule { shape: Shape::NeoxV2, warmup: Warmup::Ratio(0.25), ..long };
        let wanted = [
            4e-4,
            8e-4,
            9.901_664_203_302_125e-4,
            9.140_576_474_687_263e-4,
            7.75e-4,
            5.970_378_084_704_44e-4,
            4.109_423_525_312_737e-4,
            2.488_912_271_385_138e-4,
            1.389_045_440_608_296e-4,
            1e-4,
        ];
        wanted.iter().zip(0..).for_each(|(&want, it)| close(fraction.at(it), want, it));
    }

    #[test]
    fn the_others_are_those_of_transformers() {
        // `get_{linear,cosine,constant}_schedule_with_warmup` and `get_cosine_with_min_lr_schedule_with_warmup` of
        // transformers 5.23, 37 of 1000 steps of warmup, rate 3e-4, lowest rate 3e-5 in the last.
        let steps = [0, 1, 36, 37, 38, 250, 637, 999];
        let rise = [0.0, 8.108108108108107e-06, 0.0002918918918918919, 0.0003];
        let table: [(Shape, f64, [f64; 4]); 4] = [
            (
                Shape::Linear,
                0.0,
                [0.0002996884735202492, 0.0002336448598130841, 0.00011308411214953269, 3.115264797507788e-07],
            ),
            (
                Shape::Cosine,
                0.0,
                [0.00029999920180675264, 0.00026522059913636263, 9.344623279802406e-05, 7.981932473477559e-10],
            ),
            (Shape::Constant, 0.0, [0.0003; 4]),
            (
                Shape::Cosine,
                3e-5,
                [0.00029999928162607734, 0.00026869853922272636, 0.00011410160951822165, 3.0000718373922615e-05],
            ),
        ];
        for (shape, min_lr, fall) in table {
            for warmup in [Warmup::Steps(37), Warmup::Ratio(0.037)] {
                let schedule = Schedule { shape, lr: 3e-4, min_lr, warmup, steps: 1000 };
                for (it, want) in steps.into_iter().zip(rise.into_iter().chain(fall)) {
                    // Their cosine loses digits where it is small; ours must agree to what they hold.
                    let (got, room) = (schedule.at(it), 1e-18 + 1e-12 * want);
                    assert!((got - want).abs() < room, "{shape:?} {it}: {got:e} {want:e}");
                }
            }
        }
        let linear = Schedule { shape: Shape::Linear, lr: 1.0, min_lr: 0.5, warmup: Warmup::Ratio(0.0), steps: 10 };
        assert_eq!([linear.at(0), linear.at(5), linear.at(10), linear.at(99)], [1.0, 0.75, 0.5, 0.5]);
        // A part that is no whole step is rounded up; a product that should be whole is not pushed up by its rounding.
        let part = |ratio: f64| Schedule { warmup: Warmup::Ratio(ratio), steps: 100, ..linear }.warmup_steps();
        assert_eq!([part(0.07), part(0.071), part(0.0), part(1.0)], [7.0, 8.0, 0.0, 100.0]);
    }
}
