//! What holds for every statistic: an answer is a number, whatever the input; otherwise there is a reason.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Numbers as runs have them, and as broken runs have them.
fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => -100.0f64..100.0,
        2 => select(vec![0.0, -0.0, 1.0, 0.1 + 0.2, 0.3]),
        1 => select(vec![f64::MAX, f64::MIN, f64::MIN_POSITIVE, 5e-324, 1e300, -1e300, 1e-300]),
        1 => select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
    ]
}

fn sample() -> impl Strategy<Value = Vec<f64>> {
    proptest::collection::vec(number(), 0..9)
}

fn is_number(what: &str, answer: Answer<f64>) {
    if let Ok(x) = answer {
        assert!(x.is_finite(), "{what} is {x}");
    }
}

fn is_interval(what: &str, answer: Answer<Interval>) {
    if let Ok(Interval { lower, upper }) = answer {
        assert!(lower.is_finite() && upper.is_finite() && lower <= upper, "{what} is {lower} to {upper}");
    }
}

fn is_p(what: &str, p: f64) {
    assert!((0.0..=1.0).contains(&p), "{what} is {p}");
}

const DRAWN: Resamples = Resamples { count: 200, seed: 3 };

proptest! {
    #[test]
    fn answers_are_numbers(x in sample(), y in sample(), p in number()) {
        for (what, answer) in [
            ("mean", mean(&x)),
            ("sd", sample_sd(&x)),
            ("median", median(&x)),
            ("iqm", iqm(&x)),
            ("quantile", quantile(&x, p)),
            ("cohens_d", cohens_d(&x, &y)),
            ("cohens_d_paired", cohens_d_paired(&x, &y)),
            ("cohens_h", cohens_h(p, 0.3)),
            ("ratio", ratio(&x, &y, 0.95).map(|r| r.ratio)),
            ("ratio sd", ratio(&x, &y, 0.95).map(|r| r.sd.unwrap_or(0.0))),
        ] {
            is_number(what, answer);
        }
        let pairs: Vec<(f64, f64)> = x.iter().copied().zip(y.iter().copied()).collect();
        for (what, answer) in [
            ("t", t_interval(&x, 0.95)),
            ("ratio", ratio(&x, &y, 0.95).and_then(|r| r.interval.ok_or(Degenerate::NoVariance))),
            ("bootstrap", bootstrap_mean(&x, 0.95, DRAWN).map(|b| b.interval)),
            ("paired bootstrap", bootstrap_mean_difference(&x, &y, 0.95, DRAWN).map(|b| b.interval)),
            ("bootstrap of a ratio", bootstrap_ratio(&pairs, 0.95, DRAWN).map(|b| b.interval)),
            ("stratified", bootstrap_stratified(&[x.clone(), y.clone()], Statistic::Iqm, 0.95, DRAWN).map(|b| b.interval)),
        ] {
            is_interval(what, answer);
        }
        if let Ok(t) = paired_t(&x, &y) {
            prop_assert!(t.t.is_finite());
            is_p("paired t", t.p);
        }
        if let Ok(flips) = sign_flip(&x, 300, 1) {
            is_p("sign flip", flips.p);
            prop_assert!(flips.p >= flips.smallest_p || flips.p == 1.0);
        }
        // Nothing that is not finite has an answer.
        if x.iter().any(|v| !v.is_finite()) {
            prop_assert!(mean(&x).is_err() && t_interval(&x, 0.95).is_err() && bootstrap_mean(&x, 0.95, DRAWN).is_err());
        }
    }

    #[test]
    fn answers_about_counts_are_numbers(
        b in prop_oneof![0u64..50, 0u64..2_000_000, Just(u64::MAX)],
        c in prop_oneof![0u64..50, 0u64..2_000_000, Just(u64::MAX)],
        table in proptest::collection::vec(proptest::collection::vec(prop_oneof![0u64..9, Just(u64::MAX)], 3), 3),
        p in number(),
    ) {
        let test = mcnemar(b, c);
        is_p("exact", test.exact_p);
        is_p("mid-p", test.mid_p);
        test.chi2.into_iter().chain(test.chi2_corrected).for_each(|(_, p)| is_p("chi2", p));
        is_interval("wilson", wilson(b, c, 0.95));
        is_number("kappa", kappa(&table).map(|k| k.kappa));
        is_number("weighted kappa", weighted_kappa(&table));
        if let Ok(power) = power_two_proportions(p, 0.3, b, c, 0.05) {
            is_p("power", power);
        }
    }

    #[test]
    fn a_correction_makes_no_p_smaller_and_keeps_the_order(p in proptest::collection::vec(0.0f64..=1.0, 0..12)) {
        for correction in [Correction::None, Correction::Holm, Correction::Bonferroni, Correction::BenjaminiHochberg] {
            let adjusted = correction.adjust(&p).unwrap();
            for (i, (own, corrected)) in p.iter().zip(&adjusted).enumerate() {
                prop_assert!(corrected >= own && *corrected <= 1.0, "{correction:?} {own} {corrected}");
                for (other, others) in p.iter().zip(&adjusted).skip(i) {
                    prop_assert!(own > other || corrected <= others, "{correction:?} changes an order");
                }
            }
        }
        let (holm, bonferroni, fdr) = (holm(&p).unwrap(), bonferroni(&p).unwrap(), fdr(&p).unwrap());
        for i in 0..p.len() {
            prop_assert!(fdr[i] <= holm[i] + 1e-15 && holm[i] <= bonferroni[i] + 1e-15);
        }
    }
}
