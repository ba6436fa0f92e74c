//! Statistics of runs and of matched examples.
//!
//! Pure: numbers in, numbers out; randomness comes from a seed that the caller gives. A case without an
//! answer (one run, no variance, no items) is a [`Degenerate`], never a NaN. Definitions and sources are
//! with each function; `docs/statistics.md` says when to use which.

mod agreement;
mod bootstrap;
mod describe;
mod interval;
mod multiple;
mod paired;
mod power;
mod ratio;
mod stratified;

pub use agreement::{Kappa, Mcnemar, cohens_h, kappa, mcnemar, weighted_kappa};
pub use bootstrap::{
    Bootstrap, Resamples, Resampling, Rng, bootstrap_mean, bootstrap_mean_difference, bootstrap_means,
    paired_bootstrap_p, seed_of,
};
pub use describe::{cohens_d, iqm, mean, median, quantile, sample_sd};
pub use interval::{Interval, t_interval, wilson};
pub use multiple::{Correction, bonferroni, fdr, holm, resamples_needed};
pub use paired::{PairedT, SignFlip, cohens_d_paired, flips_all, paired_t, sign_flip, smallest_sign_flip_p};
pub use power::{power_two_proportions, size_two_proportions};
pub use ratio::{Ratio, bootstrap_ratio, ratio};
pub use stratified::{Statistic, bootstrap_stratified};

/// Why a statistic has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Degenerate {
    /// Fewer values than the definition needs.
    #[error("{have} of at least {need} values")]
    TooFew {
        /// Values given.
        have: usize,
        /// Values needed.
        need: usize,
    },
    /// All values, or all differences, are equal: a ratio to their spread says nothing.
    #[error("degenerate: no variance")]
    NoVariance,
    /// An input is NaN or infinite.
    #[error("a value is not finite")]
    NotFinite,
    /// The two samples that should be matched have different lengths.
    #[error("{left} values against {right}")]
    Unmatched {
        /// Values on the left.
        left: usize,
        /// Values on the right.
        right: usize,
    },
    /// A count, proportion or level outside its range.
    #[error("outside the range of its definition")]
    OutOfRange,
    /// The denominator of a ratio is 0, or has no one sign.
    #[error("degenerate: the denominator is 0 or changes its sign")]
    ZeroDenominator,
    /// Two proportions are equal: no number of items tells them apart.
    #[error("degenerate: the proportions are equal")]
    NoEffect,
    /// Chance agreement is complete: kappa is 0/0.
    #[error("degenerate: chance agreement is complete")]
    FullChanceAgreement,
}

/// A statistic, or why there is none.
pub type Answer<T> = Result<T, Degenerate>;

/// Checks that there are at least `need` values, all finite.
fn check(values: &[f64], need: usize) -> Answer<()> {
    if values.len() < need {
        return Err(Degenerate::TooFew { have: values.len(), need });
    }
    if values.iter().all(|x| x.is_finite()) { Ok(()) } else { Err(Degenerate::NotFinite) }
}

/// A result that is a number: sums of huge values are none.
fn finite(x: f64) -> Answer<f64> {
    if x.is_finite() { Ok(x) } else { Err(Degenerate::NotFinite) }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
#[track_caller]
fn assert_close(got: f64, expected: f64, relative: f64) {
    let off = (got - expected).abs();
    assert!(off <= relative * expected.abs().max(f64::MIN_POSITIVE), "{got:?} is not {expected:?} (off by {off:e})");
}
