#!/usr/bin/env python3
"""Reference numbers for `report::stats`, from SciPy, statsmodels and NumPy.

    python3 scripts/references/statistics.py OUT [SEED]    writes cases with random input and the answers into OUT

A case is {"what": function, "input": [...], "answer": [...], "within": relative error}. Answers of a bootstrap are of
other random numbers than ours: their "within" is absolute, an eighth of the standard error.
"""

import json
import sys
import warnings

import numpy as np
import scipy
import scipy.stats as st
import statsmodels
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_confint, proportion_effectsize

warnings.simplefilter("error")
RESAMPLES = 20_000


def plain(x):
    """NumPy numbers as Python's."""
    if isinstance(x, (list, tuple)):
        return [plain(y) for y in x]
    if isinstance(x, np.ndarray):
        return plain(x.tolist())
    return x.item() if hasattr(x, "item") else x


def cases(seed):
    rng = np.random.default_rng(seed)

    def case(what, given, answer, within=1e-9, absolute=False):
        given, answer = plain(given), plain(answer)
        return {"what": what, "input": given, "answer": answer, "within": within, "absolute": absolute}

    for n in (2, 3, 5, 9, 30, 60):
        x = rng.normal(rng.uniform(-5, 50), rng.uniform(0.01, 4), n)
        y = x + rng.normal(rng.uniform(-0.5, 0.5), 0.7, n)
        z = rng.normal(x.mean() + 1, 2, n + 3)
        level = float(rng.choice([0.9, 0.95, 0.99]))
        yield case("mean", [x], [np.mean(x)])
        yield case("sd", [x], [np.std(x, ddof=1)])
        yield case("median", [x], [np.median(x)])
        yield case("iqm", [x], [st.trim_mean(x, 0.25)])
        p = float(rng.uniform())
        yield case("quantile", [x, p], [np.quantile(x, p)])
        low, high = st.t.interval(level, n - 1, loc=x.mean(), scale=st.sem(x))
        yield case("t_interval", [x, level], [low, high])
        paired = st.ttest_rel(x, y)
        yield case("paired_t", [x, y], [paired.statistic, paired.pvalue])
        d = x - y
        yield case("cohens_d_paired", [x, y], [d.mean() / d.std(ddof=1)])
        # d of two samples from Student's t, another way than pooling.
        t = st.ttest_ind(x, z).statistic
        yield case("cohens_d", [x, z], [t * np.sqrt(1 / len(x) + 1 / len(z))])
        if n <= 9:
            flipped = st.permutation_test(
                (d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
            )
            yield case("sign_flip", [d], [flipped.pvalue])
        if n >= 30:
            standard_error = np.std(x, ddof=1) / np.sqrt(n)

            def boot(data, statistic, **more):
                found = st.bootstrap(
                    data, statistic, n_resamples=RESAMPLES, method="percentile", confidence_level=level, rng=rng, **more
                )
                return list(found.confidence_interval), found.standard_error

            interval, error = boot((x,), np.mean)
            yield case("bootstrap_mean", [x, level], interval, error / 8, True)
            interval, error = boot((x, y), lambda a, b, axis=-1: (a - b).mean(axis=axis), paired=True)
            yield case("bootstrap_mean_difference", [x, y, level], interval, error / 8, True)
            a, b = x - x.min() + 3, y - y.min() + 2
            interval, error = boot((a, b), lambda a, b, axis=-1: a.mean(axis=axis) / b.mean(axis=axis), paired=True)
            yield case("bootstrap_ratio", [a, b, level], interval, error / 8, True)
            strata = [x[:7], x[7:20] + 3, x[20:] - 2]
            draws = [s[rng.integers(0, len(s), (RESAMPLES, len(s)))] for s in strata]
            pooled = np.concatenate(draws, axis=1)
            for name, found in (("iqm", st.trim_mean(pooled, 0.25, axis=1)), ("mean", pooled.mean(axis=1))):
                interval = np.quantile(found, [(1 - level) / 2, 0.5 + level / 2])
                yield case(f"bootstrap_stratified_{name}", [strata, level], interval, found.std() / 8, True)
            assert standard_error > 0

    for _ in range(12):
        b, c = (int(v) for v in rng.integers(0, rng.choice([5, 40, 400]), 2))
        if b + c == 0:
            continue
        table = [[100, b], [c, 100]]
        exact = mcnemar(table, exact=True).pvalue
        chi2, corrected = mcnemar(table, exact=False, correction=False), mcnemar(table, exact=False, correction=True)
        mid = min(1.0, 2 * st.binom.cdf(min(b, c), b + c, 0.5)) - st.binom.pmf(min(b, c), b + c, 0.5)
        answer = [exact, mid, chi2.statistic, chi2.pvalue]
        yield case("mcnemar", [b, c], answer)
        # statsmodels does not cut |b - c| - 1 off at 0.
        if b != c:
            yield case("mcnemar_corrected", [b, c], [corrected.statistic, corrected.pvalue])

    for k in (2, 3, 5):
        table = rng.integers(1, 40, (k, k)) + 30 * np.eye(k, dtype=int)
        found = cohens_kappa(table)
        answer = [found.kappa, found.std_kappa, found.std_kappa0, found.z_value, found.kappa_low, found.kappa_upp]
        yield case("kappa", [table], answer)
        yield case("weighted_kappa", [table], [cohens_kappa(table, wt="linear").kappa])

    for _ in range(6):
        p1, p2 = (float(v) for v in rng.uniform(0, 1, 2))
        n1, n2 = (int(v) for v in rng.integers(5, 400, 2))
        alpha = float(rng.choice([0.01, 0.05, 0.1]))
        h = proportion_effectsize(p1, p2)
        yield case("cohens_h", [p1, p2], [h])
        power = NormalIndPower().power(abs(h), n1, alpha, ratio=n2 / n1, alternative="two-sided")
        yield case("power_two_proportions", [p1, p2, n1, n2, alpha], [power])
        wanted = float(rng.uniform(0.5, 0.95))
        size = NormalIndPower().solve_power(abs(h), power=wanted, alpha=alpha, ratio=1, alternative="two-sided")
        yield case("size_two_proportions", [p1, p2, wanted, alpha], [float(max(1, np.ceil(size)))])
        hits = int(rng.integers(0, n1 + 1))
        yield case("wilson", [hits, n1, 1 - alpha], list(proportion_confint(hits, n1, alpha, method="wilson")))

    for m in (1, 4, 25):
        p = rng.uniform(0, 1, m) ** 3
        for ours, theirs in (("holm", "holm"), ("fdr", "fdr_bh"), ("bonferroni", "bonferroni")):
            yield case(ours, [p], multipletests(p, method=theirs)[1])


def main():
    out, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20240501
    versions = {"numpy": np.__version__, "scipy": scipy.__version__, "statsmodels": statsmodels.__version__}
    lines = [json.dumps(c) for c in cases(seed)]
    with open(out, "w", encoding="utf-8") as file:
        file.write('{"seed": %d, "versions": %s, "cases": [\n' % (seed, json.dumps(versions)))
        file.write(",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
