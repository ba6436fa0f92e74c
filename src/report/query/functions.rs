//! Statistics as jq filters: `mean`, `sd`, `median`, `iqm`, `ci95`, each on an array of finite numbers; tests and effect
//! sizes, on counts and on pairs.
//!
//! A statistic without a value (the sd of one run) is `null`; an element that is no finite number is an
//! error that shows it.

use jaq_core::load::parse::Def;
use jaq_core::native::{Filter, Fun, bome, run, v};
use jaq_core::{DataT, Error, RunPtr, load};
use jaq_json::Val;
use jaq_std::ValT as _;

use crate::report::stats::{self, Answer};

/// Definitions in jq itself. `paired` matches the rows of two arrays by what `id` gives of each, and refuses rows without
/// a partner: two lists of examples in different orders must not be compared by position.
const DEFS: &str = r#"
def ci95: ci(0.95);
def paired(id; value):
  if type != "array" or length != 2 then error("paired takes an array of two arrays") else . end
  | map(reduce .[] as $row ({};
      ($row | id | tostring) as $id
      | if has($id) then error("the example " + $id + " is there twice") else . + {($id): [$row | value]} end))
  | . as [$left, $right]
  | if ($left | keys) != ($right | keys) then error("the two sides have different examples") else . end
  | [$left | keys[] | [$left[.][0], $right[.][0]]];
def discordant: [map(select(.[0] and (.[1] | not))), map(select((.[0] | not) and .[1]))] | map(length);
"#;

/// [`DEFS`], parsed.
pub(super) fn defs() -> impl Iterator<Item = Def<&'static str>> {
    load::parse(DEFS, |p| p.defs()).unwrap_or_default().into_iter()
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

/// A whole number, not negative.
fn count(value: &Val) -> Option<u64> {
    let x = value.as_f64()?;
    // 2^53: beyond it a float names no single count.
    (x >= 0.0 && x.fract() == 0.0 && x <= 9_007_199_254_740_992.0).then_some(x as u64)
}

/// The counts of an array.
fn counts(value: Val) -> Result<Vec<u64>, Error<Val>> {
    let items: Vec<Val> = value.into_seq().map_err(|value| Error::typ(value, "array"))?;
    items.into_iter().map(|item| count(&item).ok_or_else(|| Error::typ(item, "count"))).collect()
}

fn wilson(value: Val, level: &Val) -> Result<Val, Error<Val>> {
    let level = level.as_f64().ok_or_else(|| Error::typ(level.clone(), "confidence level"))?;
    let shown = value.clone();
    match counts(value)?.as_slice() {
        [successes, trials] => Ok(stats::wilson(*successes, *trials, level)
            .map_or(Val::Null, |i| [Val::from(i.lower), Val::from(i.upper)].into_iter().collect())),
        _ => Err(Error::typ(shown, "[successes, trials]")),
    }
}

/// The exact p below 25 discordant pairs, else that of the corrected statistic.
fn mcnemar_p(value: Val) -> Result<Val, Error<Val>> {
    let shown = value.clone();
    match counts(value)?.as_slice() {
        [b, c] => {
            let test = stats::mcnemar(*b, *c);
            Ok(Val::from(test.chi2_corrected.filter(|_| b + c >= 25).map_or(test.exact_p, |(_, p)| p)))
        }
        _ => Err(Error::typ(shown, "[only first, only second]")),
    }
}

fn cohens_h(value: Val) -> Result<Val, Error<Val>> {
    let shown = value.clone();
    match numbers(value)?.as_slice() {
        [p1, p2] => Ok(stats::cohens_h(*p1, *p2).map_or(Val::Null, Val::from)),
        _ => Err(Error::typ(shown, "[proportion, proportion]")),
    }
}

fn kappa(value: Val) -> Result<Val, Error<Val>> {
    let rows: Vec<Val> = value.into_seq().map_err(|value| Error::typ(value, "table of counts"))?;
    let table: Vec<Vec<u64>> = rows.into_iter().map(counts).collect::<Result<_, _>>()?;
    Ok(stats::kappa(&table).map_or(Val::Null, |k| Val::from(k.kappa)))
}

/// Of pairs `[left, right]`.
fn paired_t_p(value: Val) -> Result<Val, Error<Val>> {
    let pairs: Vec<Val> = value.into_seq().map_err(|value| Error::typ(value, "array of pairs"))?;
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for pair in pairs {
        let shown = pair.clone();
        match numbers(pair)?.as_slice() {
            [l, r] => {
                left.push(*l);
                right.push(*r);
            }
            _ => return Err(Error::typ(shown, "pair of numbers")),
        }
    }
    Ok(stats::paired_t(&left, &right).map_or(Val::Null, |t| Val::from(t.p)))
}

fn fdr(value: Val) -> Result<Val, Error<Val>> {
    Ok(stats::fdr(&numbers(value)?).map_or(Val::Null, |p| p.into_iter().map(Val::from).collect()))
}

// A function with this return type: an array of closures mapped straight through `run` does not type-check.
fn table<D: for<'a> DataT<V<'a> = Val>>() -> Box<[Filter<RunPtr<D>>]> {
    Box::new([
        ("mean", v(0), |cv| bome(on_numbers(cv.1, stats::mean))),
        ("sd", v(0), |cv| bome(on_numbers(cv.1, stats::sample_sd))),
        ("median", v(0), |cv| bome(on_numbers(cv.1, stats::median))),
        ("iqm", v(0), |cv| bome(on_numbers(cv.1, stats::iqm))),
        ("wilson", v(1), |mut cv| {
            let level = cv.0.pop_var();
            bome(wilson(cv.1, &level))
        }),
        ("mcnemar_p", v(0), |cv| bome(mcnemar_p(cv.1))),
        ("cohens_h", v(0), |cv| bome(cohens_h(cv.1))),
        ("kappa", v(0), |cv| bome(kappa(cv.1))),
        ("paired_t_p", v(0), |cv| bome(paired_t_p(cv.1))),
        ("fdr", v(0), |cv| bome(fdr(cv.1))),
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
