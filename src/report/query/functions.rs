//! Statistics as jq filters: `mean`, `sd`, `median`, `iqm`, `ci95`, each on an array of finite numbers.
//!
//! A statistic without a value (the sd of one run) is `null`; an element that is no finite number is an
//! error that shows it.

use jaq_core::load::parse::Def;
use jaq_core::native::{Filter, Fun, bome, run, v};
use jaq_core::{DataT, Error, RunPtr, load};
use jaq_json::Val;
use jaq_std::ValT as _;

use crate::report::stats::{self, Answer};

/// Definitions in jq itself: none yet of our own beyond the native ones.
pub(super) fn defs() -> impl Iterator<Item = Def<&'static str>> {
    load::parse("def ci95: ci(0.95);", |p| p.defs()).unwrap_or_default().into_iter()
}

/// The native filters.
pub(super) fn funs<D: for<'a> DataT<V<'a> = Val>>() -> impl Iterator<Item = Fun<D>> {
    table().into_vec().into_iter().map(run)
}

/// The finite numbers of an array.
fn numbers(value: Val) -> Result<Vec<f64>, Error<Val>> {
    let items: Vec<Val> = value.into_seq().map_err(|value| Error::typ(value, "array"))?;
    items
        .into_iter()
        .map(|item| match item.as_f64() {
            Some(x) if x.is_finite() => Ok(x),
            _ => Err(Error::typ(item, "finite number")),
        })
        .collect()
}

fn on_numbers(value: Val, statistic: fn(&[f64]) -> Answer<f64>) -> Result<Val, Error<Val>> {
    Ok(statistic(&numbers(value)?).map_or(Val::Null, Val::from))
}

// A function with this return type: an array of closures mapped straight through `run` does not type-check.
fn table<D: for<'a> DataT<V<'a> = Val>>() -> Box<[Filter<RunPtr<D>>]> {
    Box::new([
        ("mean", v(0), |cv| bome(on_numbers(cv.1, stats::mean))),
        ("sd", v(0), |cv| bome(on_numbers(cv.1, stats::sample_sd))),
        ("median", v(0), |cv| bome(on_numbers(cv.1, stats::median))),
        ("iqm", v(0), |cv| bome(on_numbers(cv.1, stats::iqm))),
        ("ci", v(1), |mut cv| {
            let level = cv.0.pop_var();
            bome((|| {
                let level = level.as_f64().ok_or_else(|| Error::typ(level, "confidence level"))?;
                let interval = stats::t_interval(&numbers(cv.1)?, level);
                Ok(interval.map_or(Val::Null, |i| [Val::from(i.lower), Val::from(i.upper)].into_iter().collect()))
            })())
        }),
    ])
}
