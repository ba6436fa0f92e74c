//! Filters of our own: statistics on arrays of finite numbers, tests and effect sizes on counts and on pairs, and numbers
//! and rows as text: `num`, `pm`, `@tex`, `@csv`.
//!
//! A statistic without a value (the sd of one run) is `null`; an element that is no finite number is an
//! error that shows it.

use jaq_core::load::parse::Def;
use std::io::Write as _;

use jaq_core::box_iter::box_once;
use jaq_core::native::{Filter, Fun, bome, run, v};
use jaq_core::{DataT, Error, RunPtr, load};
use jaq_json::{Num, Val};
use jaq_std::ValT as _;

use super::filter::text_val;
use super::print;
use crate::report::render;
use crate::report::stats::{self, Answer, Resamples};
use crate::report::table::number::fixed;

/// Native filters of jaq in whose place [`open`] has its own: `env` fails where a variable is no text, and `debug` is
/// silent without a logger.
pub(super) const REPLACED: &[&str] = &["env", "debug_empty"];

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
def mcnemar_p: mcnemar_p("auto");
def bootstrap_ci: bootstrap_ci(0.95; 10000; 0);
def sign_flip_p: sign_flip_p(100000; 0);
def power: power(0.05);
def sample_size: sample_size(0.8; 0.05);
def csv_cell:
  if . == null then "" elif isboolean then tostring elif isnumber then tostring
  elif isstring then "\"" + gsub("\""; "\"\"") + "\""
  else error(tojson + " cannot stand in a row of @csv") end;
def @csv: if isarray then map(csv_cell) | join(",") else error(tojson + " is no array, and @csv takes one") end;
def tsv_cell:
  if . == null then "" elif isboolean or isnumber then tostring
  elif isstring then gsub("\\\\"; "\\\\") | gsub("\t"; "\\t") | gsub("\n"; "\\n") | gsub("\r"; "\\r")
  else error(tojson + " cannot stand in a row of @tsv") end;
def @tsv: if isarray then map(tsv_cell) | join("\t") else error(tojson + " is no array, and @tsv takes one") end;
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

/// `auto`: the exact p below 25 discordant pairs, else that of the corrected statistic.
fn mcnemar_p(value: Val, form: &Val) -> Result<Val, Error<Val>> {
    let shown = value.clone();
    match counts(value)?.as_slice() {
        [b, c] => {
            let test = stats::mcnemar(*b, *c);
            // Without discordant pairs the statistics are 0/0, and nothing speaks against equality.
            let p = |statistic: Option<(f64, f64)>| statistic.map_or(1.0, |(_, p)| p);
            Ok(Val::from(match text_of(form).as_str() {
                "exact" => test.exact_p,
                "mid_p" => test.mid_p,
                "chi2" => p(test.chi2),
                "chi2_corrected" => p(test.chi2_corrected),
                "auto" => test.chi2_corrected.filter(|_| b + c >= 25).map_or(test.exact_p, |(_, p)| p),
                _ => return Err(Error::typ(form.clone(), "one of auto, exact, mid_p, chi2, chi2_corrected")),
            }))
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

/// The two sides of pairs `[left, right]`.
fn sides(value: Val) -> Result<(Vec<f64>, Vec<f64>), Error<Val>> {
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
    Ok((left, right))
}

fn on_pairs(value: Val, statistic: fn(&[f64], &[f64]) -> Answer<f64>) -> Result<Val, Error<Val>> {
    let (left, right) = sides(value)?;
    Ok(statistic(&left, &right).map_or(Val::Null, Val::from))
}

/// Of differences.
fn sign_flip_p(value: Val, flips: &Val, seed: &Val) -> Result<Val, Error<Val>> {
    let whole = |x: &Val| count(x).ok_or_else(|| Error::typ(x.clone(), "count"));
    Ok(stats::sign_flip(&numbers(value)?, whole(flips)?, whole(seed)?).map_or(Val::Null, |test| Val::from(test.p)))
}

/// Of values, or of pairs: then of their mean difference.
fn bootstrap_ci(value: Val, level: &Val, resamples: &Val, seed: &Val) -> Result<Val, Error<Val>> {
    let whole = |x: &Val| count(x).ok_or_else(|| Error::typ(x.clone(), "count"));
    let level = level.as_f64().ok_or_else(|| Error::typ(level.clone(), "confidence level"))?;
    let resamples = Resamples { count: whole(resamples)? as usize, seed: whole(seed)? };
    let of_pairs = matches!(&value, Val::Arr(items) if matches!(items.first(), Some(Val::Arr(_))));
    let found = if of_pairs {
        let (left, right) = sides(value)?;
        stats::bootstrap_mean_difference(&left, &right, level, resamples)
    } else {
        stats::bootstrap_mean(&numbers(value)?, level, resamples)
    };
    Ok(found.map_or(Val::Null, |b| [b.interval.lower, b.interval.upper].into_iter().map(Val::from).collect()))
}

/// Of `[p1, p2, n1, n2]`.
fn power(value: Val, alpha: &Val) -> Result<Val, Error<Val>> {
    let shown = value.clone();
    let alpha = alpha.as_f64().ok_or_else(|| Error::typ(alpha.clone(), "level of a test"))?;
    let items: Vec<Val> = value.into_seq().map_err(|value| Error::typ(value, "[p1, p2, n1, n2]"))?;
    match items.as_slice() {
        [p1, p2, n1, n2] => match (p1.as_f64(), p2.as_f64(), count(n1), count(n2)) {
            (Some(p1), Some(p2), Some(n1), Some(n2)) => {
                Ok(stats::power_two_proportions(p1, p2, n1, n2, alpha).map_or(Val::Null, Val::from))
            }
            _ => Err(Error::typ(shown, "[p1, p2, n1, n2]")),
        },
        _ => Err(Error::typ(shown, "[p1, p2, n1, n2]")),
    }
}

/// Of `[p1, p2]`.
fn sample_size(value: Val, wanted: &Val, alpha: &Val) -> Result<Val, Error<Val>> {
    let shown = value.clone();
    let number = |x: &Val, what: &'static str| x.as_f64().ok_or_else(|| Error::typ(x.clone(), what));
    let (wanted, alpha) = (number(wanted, "power")?, number(alpha, "level of a test")?);
    match numbers(value)?.as_slice() {
        [p1, p2] => {
            let size = stats::size_two_proportions(*p1, *p2, wanted, alpha);
            Ok(size.map_or(Val::Null, |n| Val::Num(Num::from_integral(n))))
        }
        _ => Err(Error::typ(shown, "[proportion, proportion]")),
    }
}

fn adjusted(value: Val, correction: fn(&[f64]) -> Answer<Vec<f64>>) -> Result<Val, Error<Val>> {
    Ok(correction(&numbers(value)?).map_or(Val::Null, |p| p.into_iter().map(Val::from).collect()))
}

/// Text as it is, anything else as JSON on one line.
fn text_of(value: &Val) -> String {
    match value {
        Val::TStr(bytes) | Val::BStr(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Val::Num(_) => print::compact(value).trim_matches('"').to_owned(),
        other => print::compact(other),
    }
}

/// Most decimals of [`num`]: a float has no more to show.
const MOST_DIGITS: f64 = 12.0;

fn digits(value: &Val) -> Result<u8, Error<Val>> {
    let fits = |x: &f64| (0.0..=MOST_DIGITS).contains(x) && x.fract() == 0.0;
    let digits = value.as_f64().filter(fits).ok_or_else(|| Error::typ(value.clone(), "number of decimals, 0 to 12"))?;
    Ok(digits as u8)
}

/// A number with so many decimals, by the one rounding of tables; `n/a` for null.
fn num(value: &Val, decimals: &Val) -> Result<String, Error<Val>> {
    let decimals = digits(decimals)?;
    match value {
        Val::Null => Ok("n/a".to_owned()),
        _ => match value.as_f64() {
            Some(x) if x.is_finite() => Ok(fixed(x, decimals)),
            Some(_) => Ok(text_of(value)),
            None => Err(Error::typ(value.clone(), "number")),
        },
    }
}

/// As [`num`], with a plus before what is not negative.
fn signed(value: &Val, decimals: &Val) -> Result<String, Error<Val>> {
    let text = num(value, decimals)?;
    Ok(if text.starts_with(|c: char| c.is_ascii_digit()) { format!("+{text}") } else { text })
}

/// Mean ± sample standard deviation of an array.
fn pm(value: Val, decimals: &Val) -> Result<String, Error<Val>> {
    let decimals = digits(decimals)?;
    let values = numbers(value)?;
    Ok(match (stats::mean(&values), stats::sample_sd(&values)) {
        (Ok(mean), Ok(sd)) => format!("{} ± {}", fixed(mean, decimals), fixed(sd, decimals)),
        (Ok(mean), Err(_)) => fixed(mean, decimals),
        _ => "n/a".to_owned(),
    })
}

/// LaTeX that shows a value literally. A sign before a digit is set as one, and not as a hyphen.
pub(super) fn tex(value: &Val) -> String {
    let text = text_of(value);
    let mut rest = text.chars();
    match (rest.next(), rest.next()) {
        (Some(sign @ ('-' | '+')), Some('0'..='9')) => format!("${sign}${}", render::tex(&text[1..])),
        _ => render::tex(&text),
    }
}

/// The variables of the environment.
pub(super) fn environment() -> Val {
    let text = |x: std::ffi::OsString| text_val(&x.to_string_lossy());
    Val::obj(std::env::vars_os().map(|(key, value)| (text(key), text(value))).collect())
}

/// The native filters that only an open filter has, in place of jaq's.
pub(super) fn open<D: for<'a> DataT<V<'a> = Val>>() -> impl Iterator<Item = Fun<D>> {
    open_table().into_vec().into_iter().map(run)
}

fn open_table<D: for<'a> DataT<V<'a> = Val>>() -> Box<[Filter<RunPtr<D>>]> {
    Box::new([
        ("env", v(0), |_| box_once(Ok(environment()))),
        ("debug_empty", v(0), |cv| {
            // Nobody is there to tell if stderr is gone.
            let _ = writeln!(std::io::stderr(), "[\"DEBUG:\",{}]", print::compact(&cv.1));
            Box::new(std::iter::empty())
        }),
    ])
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
        ("mcnemar_p", v(1), |mut cv| {
            let form = cv.0.pop_var();
            bome(mcnemar_p(cv.1, &form))
        }),
        ("cohens_h", v(0), |cv| bome(cohens_h(cv.1))),
        ("kappa", v(0), |cv| bome(kappa(cv.1))),
        ("paired_t_p", v(0), |cv| bome(on_pairs(cv.1, |l, r| stats::paired_t(l, r).map(|t| t.p)))),
        ("cohens_d", v(0), |cv| bome(on_pairs(cv.1, stats::cohens_d_paired))),
        ("fdr", v(0), |cv| bome(adjusted(cv.1, stats::fdr))),
        ("holm", v(0), |cv| bome(adjusted(cv.1, stats::holm))),
        ("bonferroni", v(0), |cv| bome(adjusted(cv.1, stats::bonferroni))),
        ("sign_flip_p", v(2), |mut cv| {
            // Arguments come last first.
            let seed = cv.0.pop_var();
            let flips = cv.0.pop_var();
            bome(sign_flip_p(cv.1, &flips, &seed))
        }),
        ("bootstrap_ci", v(3), |mut cv| {
            let seed = cv.0.pop_var();
            let resamples = cv.0.pop_var();
            let level = cv.0.pop_var();
            bome(bootstrap_ci(cv.1, &level, &resamples, &seed))
        }),
        ("power", v(1), |mut cv| {
            let alpha = cv.0.pop_var();
            bome(power(cv.1, &alpha))
        }),
        ("sample_size", v(2), |mut cv| {
            let alpha = cv.0.pop_var();
            let wanted = cv.0.pop_var();
            bome(sample_size(cv.1, &wanted, &alpha))
        }),
        ("num", v(1), |mut cv| {
            let decimals = cv.0.pop_var();
            bome(num(&cv.1, &decimals).map(|text| text_val(&text)))
        }),
        ("signed", v(1), |mut cv| {
            let decimals = cv.0.pop_var();
            bome(signed(&cv.1, &decimals).map(|text| text_val(&text)))
        }),
        ("pm", v(1), |mut cv| {
            let decimals = cv.0.pop_var();
            bome(pm(cv.1, &decimals).map(|text| text_val(&text)))
        }),
        ("@tex", v(0), |cv| box_once(Ok(text_val(&tex(&cv.1))))),
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
