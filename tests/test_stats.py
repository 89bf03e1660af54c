"""Statistics: agreement with scipy and statsmodels, invariances, and calibration (a test at 5% rejects 5% of nulls)."""
import itertools, math
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from scipy.optimize import brentq
from scipy.stats import binomtest, chi2, nct, norm, permutation_test, ttest_rel, wilcoxon
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.meta_analysis import effectsize_smd
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired
from em_repro.margins import margin_test
from em_repro.profiles import UserError
from em_repro.stats import (asymmetry, cluster_bootstrap, crossed_bootstrap, equivalence, fdr, hierarchical_bootstrap, max_t, mixed_words, paired,
                            paired_difference, paired_equivalence, paired_yes_no, power_paired, rank_p, rate,
                            smallest_asymmetry, smallest_difference, smallest_effect)

FEW = dict(resamples=99, permutations=99)
quick = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
eighths = st.integers(0, 8)
shares = st.lists(st.tuples(eighths, eighths), min_size=3, max_size=12).map(lambda v: np.array(v) / 8)


def consistent(hits: int, trials: int, share: float) -> bool:
    "Whether a count agrees with a share; wrong once in 10 000 (seeds are fixed, so a pass stays a pass)."
    return binomtest(int(hits), trials, share).pvalue > 1e-4


def at_most(hits: int, trials: int, share: float) -> bool:
    return binomtest(int(hits), trials, share, alternative="greater").pvalue > 1e-4


def covers(interval, truth=0.0): return interval[0] <= truth <= interval[1]


def bounds(interval): return interval.low, interval.high


def answers(seed=0, questions=12, samples=4, effect=0.0):
    rng = np.random.default_rng(seed)
    easy = rng.normal(size=questions)
    rows = list(itertools.product(range(questions), ("x", "y"), range(samples)))
    return pd.DataFrame([dict(question=f"q{i:02}", condition=c, sample=s,
                              score=easy[i] + effect * (c == "x") + rng.normal()) for i, c, s in rows])


# --- paired ---------------------------------------------------------------------------------------------------------

@quick
@given(shares)
def test_paired_agrees_with_scipy(values):
    a, b = values.T
    result = paired_difference(a, b, **FEW)
    assert math.isclose(result.difference, np.mean(a - b), abs_tol=1e-12)
    assert result.interval[0] <= result.difference <= result.interval[1]
    if np.ptp(a - b):
        assert np.allclose([result.t, result.p], ttest_rel(a, b), rtol=1e-9)
        assert math.isclose(result.p_wilcoxon, wilcoxon(a, b).pvalue)
        assert math.isclose(result.dz * math.sqrt(result.n), result.t, rel_tol=1e-9, abs_tol=1e-12)


@quick
@given(shares.filter(lambda v: len(v) <= 9), st.sampled_from(["two-sided", "greater", "less"]))
def test_sign_flip_is_exact_when_questions_are_few(values, alternative):
    d = values[:, 0] - values[:, 1]
    null = np.array([np.dot(signs, d) for signs in itertools.product([1, -1], repeat=len(d))])
    greater, less = np.mean(null >= d.sum() - 1e-9), np.mean(null <= d.sum() + 1e-9)
    expected = {"greater": greater, "less": less, "two-sided": min(1, 2 * min(greater, less))}[alternative]
    result = paired_difference(*values.T, alternative=alternative, resamples=99, permutations=2**9)
    assert math.isclose(result.p_permutation, expected)


def test_alternatives_have_scipys_direction():
    a, b = np.arange(10.0) + 1, np.arange(10.0) + np.linspace(0, 1, 10) ** 2
    for alternative in ("greater", "less"):
        expected = ttest_rel(a, b, alternative=alternative).pvalue
        assert math.isclose(paired_difference(a, b, alternative=alternative, **FEW).p, expected)
        assert (expected < 0.01) == (alternative == "greater")


def test_constant_differences_have_no_invented_certainty():
    same = paired_difference(np.full(5, 0.7), np.full(5, 0.7))
    assert (same.t, same.p, same.p_permutation, same.p_wilcoxon, same.dz, same.interval) == (0, 1, 1, 1, 0, (0, 0))
    lower = paired_difference(np.full(5, 0.1), np.full(5, 0.1 + 0.2))
    assert lower.t == lower.dz == -math.inf and lower.p == lower.p_permutation == 2 / 32
    assert lower.interval == (lower.difference, lower.difference)


def test_averaging_within_question_ignores_duplicates_order_and_names():
    frame = answers(effect=0.5)
    expected = paired(frame, "score", "x", "y", **FEW)
    varied = [pd.concat([frame] * 3), frame.sample(frac=1, random_state=1), frame.astype({"question": "category"}),
              pd.concat([frame, frame[frame.question == "q03"]]),
              pd.concat([frame, frame.assign(condition="z", score=np.nan)])]
    numbers = lambda result: [v for v in result.row().values() if not isinstance(v, str)]
    for other in varied:
        assert np.allclose(numbers(paired(other, "score", "x", "y", **FEW)), numbers(expected), rtol=1e-9)
    renamed = frame.rename(columns={"question": "item", "condition": "arm"}).replace({"x": 1.5, "y": -1.5})
    other = paired(renamed, "score", 1.5, -1.5, condition="arm", unit="item", **FEW)
    assert math.isclose(other.p, expected.p) and other.p_permutation == expected.p_permutation and other.a == "1.5"


def test_unequal_samples_weigh_questions_equally():
    frame = pd.DataFrame({"question": [1, 1, 1, 1, 2, 1, 2], "condition": list("xxxxxyy")})
    frame["score"] = [1, 1, 1, 1, 0, 0, 0]
    assert paired(frame, "score", "x", "y", **FEW).a_mean == 0.5


def test_exchanging_a_and_b_changes_signs_only():
    frame = answers(3, effect=0.4)
    one, two = paired(frame, "score", "x", "y"), paired(frame, "score", "y", "x")
    assert one.difference == -two.difference and one.t == -two.t and one.p == two.p
    assert np.allclose(one.interval, (-two.interval[1], -two.interval[0]))
    assert math.isclose(one.p_permutation, two.p_permutation, abs_tol=0.01) and one.p_wilcoxon == two.p_wilcoxon


def test_one_seed_one_result_and_no_global_state():
    before = np.random.get_state()[1].copy()
    first, again, other = (paired_difference(np.sin(np.arange(30)), 0.1, seed=s) for s in (1, 1, 2))
    assert first == again and first.interval != other.interval
    assert (np.random.get_state()[1] == before).all()


def test_results_print_as_one_line_and_make_a_row():
    frame = answers()
    matrix = matrix_of(null_units(np.random.default_rng(0)))
    for result in (paired(frame, "score", "x", "y", **FEW), equivalence(frame, "score", "x", "y", 1.0),
                   cluster_bootstrap(frame, "score", resamples=99), asymmetry(matrix),
                   paired_yes_no([1, 0, 1], [0, 0, 1]), max_t(np.eye(3)), smallest_difference(12, 0.3),
                   smallest_difference(12, 0.0), hierarchical_bootstrap(frame.assign(seed=0), "score", "x", "y")):
        assert "\n" not in str(result) and str(result) == repr(result)
        row = result.row()
        assert all(np.isscalar(v) for v in row.values()) and "n" in row and "interval" not in row
    assert {"low", "high", "difference", "p"} <= set(paired(frame, "score", "x", "y", **FEW).row())


# --- calibration ----------------------------------------------------------------------------------------------------

def test_paired_tests_keep_their_level():
    rng, trials = np.random.default_rng(5), 500
    results = [paired_difference(*rng.exponential(size=(2, 20)), seed=i, resamples=19, permutations=199)
               for i in range(trials)]
    for name in ("p", "p_permutation", "p_wilcoxon"):
        p = np.array([getattr(r, name) for r in results])
        assert all(consistent(np.sum(p <= level), trials, level) for level in (0.05, 0.25, 0.5)), name


def test_paired_interval_covers():
    rng, trials = np.random.default_rng(18), 400
    results = [paired_difference(*rng.exponential(size=(2, 60)), seed=i, resamples=499, permutations=9)
               for i in range(trials)]
    assert 0.91 < np.mean([covers(r.interval) for r in results]) < 0.98


def test_questions_keep_the_level_where_completions_do_not():
    rng, trials = np.random.default_rng(6), 300
    by_question, by_completion = 0, 0
    for _ in range(trials):
        propensity = rng.beta(0.1, 0.1, size=(2, 20, 1))
        code = (rng.random((2, 20, 8)) < propensity).astype(float)
        by_question += ttest_rel(*code.mean(-1)).pvalue <= 0.05
        by_completion += ttest_rel(*code.reshape(2, -1)).pvalue <= 0.05
    assert consistent(by_question, trials, 0.05) and by_completion > 0.25 * trials


def test_cluster_bootstrap_covers_where_a_bootstrap_of_rows_does_not():
    rng, trials, whole, single = np.random.default_rng(7), 300, 0, 0
    for i in range(trials):
        level = rng.normal(size=25)
        frame = pd.DataFrame({"question": np.repeat(np.arange(25), 6), "row": range(150)})
        frame["y"] = np.repeat(level, 6) + 0.3 * rng.normal(size=150)
        whole += covers(bounds(cluster_bootstrap(frame, "y", resamples=299, seed=i)))
        single += covers(bounds(cluster_bootstrap(frame, "y", unit="row", resamples=299, seed=i)))
    assert 0.88 < whole / trials < 0.98 and single / trials < 0.75


def test_equivalence_is_claimed_at_the_margin_no_more_often_than_alpha():
    rng, trials = np.random.default_rng(8), 1500
    noise = rng.normal(size=(trials, 25))
    assert at_most(sum(paired_equivalence(0.8 + d, 0 * d, margin=0.8).equivalent for d in noise), trials, 0.05)
    assert np.mean([paired_equivalence(d, 0 * d, margin=0.8).equivalent for d in noise]) > 0.9


def test_false_discoveries_stay_at_the_level():
    rng, shares_false = np.random.default_rng(9), []
    effect = np.repeat([0.0, 1.0], [15, 5])
    for _ in range(300):
        draws = rng.normal(size=(20, 20)) + effect[:, None]
        reject, _ = fdr(ttest_rel(draws, np.zeros_like(draws), axis=1).pvalue)
        shares_false.append(reject[:15].sum() / max(1, reject.sum()))
    error = np.std(shares_false) / math.sqrt(len(shares_false))
    assert abs(np.mean(shares_false) - 0.05 * 15 / 20) < 4 * error


def test_rank_p_is_uniform_over_ranks():
    rng = np.random.default_rng(10)
    values = rng.normal(size=20)
    assert sorted(rank_p(v, np.delete(values, i)) for i, v in enumerate(values)) == [(i + 1) / 20 for i in range(20)]
    assert rank_p(values[0], values[1:], larger=False) == rank_p(-values[0], -values[1:])


# --- standardised effects -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [4, 8, 30, 300])
def test_hedges_g_is_unbiased_where_dz_is_not(n):
    draws = np.random.default_rng(20).normal(0.5, 1, size=(40_000, n))
    dz = draws.mean(1) / draws.std(1, ddof=1)
    one = paired_difference(draws[0], **FEW)
    g = dz * one.hedges_g / one.dz
    error = g.std() / math.sqrt(len(g))
    assert abs(g.mean() - 0.5) < 4 * error and (n > 30 or dz.mean() > 0.5 + 4 * error)


def test_hedges_g_and_its_interval_agree_with_scipy_and_statsmodels():
    for n in (3, 10, 24, 200):
        d = np.random.default_rng(n).normal(0.4, 1, n)
        result = paired_difference(d, **FEW)
        assert math.isclose(result.hedges_g, result.t / nct.mean(n - 1, 1) / math.sqrt(n), rel_tol=1e-10)
        usual = effectsize_smd(result.dz, 1.0, (n + 1) / 2, 0.0, 1.0, (n + 1) / 2)[0]  # the same degrees of freedom
        assert math.isclose(result.hedges_g, usual, rel_tol=0.02 if n > 3 else 0.05)
        for bound, tail in zip(result.effect_interval, (0.975, 0.025)):
            exact = brentq(lambda nc: nct.cdf(result.t, n - 1, nc) - tail, -30, 60, xtol=1e-12)
            assert math.isclose(bound, exact / math.sqrt(n), rel_tol=1e-4, abs_tol=1e-5)


def test_the_interval_of_an_effect_excludes_zero_when_t_rejects():
    for d in np.random.default_rng(21).normal(0.5, 1, size=(200, 12)):
        result = paired_difference(d, resamples=20, permutations=19)
        assert (result.p <= 0.05) == (not covers(result.effect_interval))


def test_effects_without_variance_have_no_standardised_size():
    for d in (np.zeros(6), np.full(6, 0.2)):
        result = paired_difference(d, **FEW)
        assert math.isnan(result.hedges_g) and np.isnan(result.effect_interval).all() and result.sd == 0
    assert math.isnan(paired_difference([0.1, 0.4], **FEW).hedges_g)


# --- yes or no ------------------------------------------------------------------------------------------------------

counts = st.tuples(*[st.integers(0, 40)] * 4).filter(lambda c: sum(c) > 1)


def pairs_of(both, first, second, neither):
    a, b = ([1] * both + [1] * first + [0] * second + [0] * neither, [1] * both + [0] * first + [1] * second + [0] * neither)
    return np.array(a), np.array(b)


@quick
@given(counts)
def test_mcnemar_is_exact_and_agrees_with_statsmodels_and_the_binomial(cells):
    both, first, second, neither = cells
    result = paired_yes_no(*pairs_of(*cells))
    expected = mcnemar([[both, first], [second, neither]], exact=True).pvalue if first + second else 1
    assert math.isclose(result.p, min(1, expected), abs_tol=1e-10)
    if first + second: assert math.isclose(result.p, binomtest(first, first + second).pvalue, abs_tol=1e-10)
    assert math.isclose(result.difference, (first - second) / sum(cells), abs_tol=1e-12)


@quick
@given(counts)
def test_the_score_interval_is_mcnemars_test_turned_round(cells):
    both, first, second, neither = cells
    result, turned = paired_yes_no(*pairs_of(*cells)), paired_yes_no(*pairs_of(both, second, first, neither))
    low, high = result.interval
    assert -1 <= low <= result.difference <= high <= 1
    assert np.allclose(turned.interval, (-high, -low), atol=1e-9)
    statistic = (first - second) ** 2 / (first + second) if first + second else 0.0
    if abs(statistic - chi2.ppf(0.95, 1)) > 1e-6: assert (low > 0 or high < 0) == (statistic > chi2.ppf(0.95, 1))


def test_nothing_changed_still_has_a_width():
    z2 = norm.ppf(0.975) ** 2
    result = paired_yes_no(np.ones(20), np.ones(20))
    assert result.p == 1 and np.allclose(result.interval, (-z2 / (20 + z2), z2 / (20 + z2)), atol=1e-10)
    every = paired_yes_no(np.ones(20), np.zeros(20))
    assert every.interval[1] == 1 and every.p == 2 / 2**20


# --- max-T ----------------------------------------------------------------------------------------------------------

families = st.tuples(st.integers(1, 5), st.integers(2, 7), st.integers(0, 10_000)).map(
    lambda v: np.random.default_rng(v[2]).integers(-3, 4, v[:2]) / 4)


def by_definition(d, turn):
    "Westfall and Young's step-down adjusted p over all sign patterns, written as in their book."
    size = np.sqrt((d**2).sum(1)); size[size == 0] = 1
    signs = np.array(list(itertools.product([1, -1], repeat=d.shape[1])))
    observed, null = turn(d.sum(1) / size), turn(signs @ d.T / size)
    adjusted, largest, order = np.zeros(len(d)), 0.0, np.argsort(-observed)
    for place, h in enumerate(order):
        largest = max(largest, np.mean(null[:, order[place:]].max(1) >= observed[h] - 1e-9))
        adjusted[h] = largest
    return adjusted


@quick
@given(families, st.sampled_from(["two-sided", "greater", "less"]))
def test_max_t_is_the_step_down_procedure(d, alternative):
    turn = {"two-sided": np.abs, "greater": np.positive, "less": np.negative}[alternative]
    result = max_t(d, alternative=alternative)
    assert result.exact and np.allclose(result.table.p_adjusted, by_definition(d, turn), atol=1e-10)
    assert (result.table.p_adjusted >= result.table.p - 1e-12).all()
    assert result.rejected == result.table.reject.sum() == (result.table.p_adjusted <= 0.05).sum()


@quick
@given(families, st.sampled_from(["greater", "less"]))
def test_one_hypothesis_is_scipys_permutation_test(d, alternative):
    for row, p in zip(d, max_t(d, alternative=alternative).table.p):
        expected = permutation_test((row,), np.mean, permutation_type="samples", alternative=alternative).pvalue
        assert math.isclose(p, expected, abs_tol=1e-10)


def test_max_t_depends_on_neither_scale_nor_order_nor_copies():
    d = np.random.default_rng(22).normal(size=(6, 30)) + np.array([0.7, 0.5, 0.3, 0, 0, 0])[:, None]
    p = max_t(d).table.p_adjusted.to_numpy()
    order = [3, 0, 5, 1, 4, 2]
    assert np.allclose(max_t(d[order]).table.p_adjusted, p[order])
    assert np.allclose(max_t(d * np.array([1, 10, 0.1, 3, 5, 7])[:, None]).table.p_adjusted, p)
    assert np.allclose(max_t(np.vstack([d, d])).table.p_adjusted, np.tile(p, 2))
    assert (p < multipletests(max_t(d).table.p, method="bonferroni")[1] + 0.02).all()
    assert max_t(pd.DataFrame(d, index=list("abcdef"))).table.index.tolist() == list("abcdef")


def test_max_t_of_nothing():
    result = max_t(np.zeros((3, 40)))
    assert (result.table.p_adjusted == 1).all() and result.rejected == 0 and not result.exact


# --- questions by seeds ---------------------------------------------------------------------------------------------

def crossed(of_question, of_seed, noise=0.0, rng=None, copies=1):
    n, k = len(of_question), len(of_seed)
    values = of_question[:, None] + of_seed + (noise * rng.normal(size=(n, k)) if noise else 0)
    return pd.DataFrame({"question": np.repeat(range(n), k), "seed": np.tile(range(k), n), "y": values.ravel()})


def width(interval): return interval[1] - interval[0]


def test_both_sources_of_variance_are_in_the_interval():
    "Additive effects: the variance is that of the mean question plus that of the mean seed, the latter without bias."
    rng = np.random.default_rng(23)
    for k in (2, 4, 12):
        of_question, of_seed = rng.normal(size=200), 0.3 * rng.normal(size=k)
        result = hierarchical_bootstrap(crossed(of_question, of_seed), "y", resamples=20_000, level=0.5)
        alone = hierarchical_bootstrap(crossed(0 * of_question, of_seed), "y", resamples=20_000)
        expected = math.sqrt(of_question.var() / 200 + of_seed.var(ddof=1) / k)
        if k == 12: assert math.isclose(width(result.interval) / (2 * norm.ppf(0.75)), expected, rel_tol=0.05)
        assert alone.interval[0] >= of_seed.min() - 1e-12 and alone.interval[1] <= of_seed.max() + 1e-12


def test_drawing_one_seed_less_makes_the_variance_right():
    for k in (2, 3, 7):
        weights = np.random.default_rng(0).multinomial(k - 1, np.full(k, 1 / k), size=200_000) / (k - 1)
        values = np.arange(k) ** 1.5
        assert math.isclose((weights @ values).var(), values.var(ddof=1) / k, rel_tol=0.02)


def test_seeds_that_agree_add_nothing():
    of_question = np.random.default_rng(24).normal(size=40)
    many, one = (hierarchical_bootstrap(crossed(of_question, np.zeros(k)), "y") for k in (8, 1))
    assert np.allclose(many.interval, one.interval, atol=0.02) and many.note == ""
    plain = cluster_bootstrap(crossed(of_question, np.zeros(1)), "y", resamples=9999)
    assert np.allclose(one.interval, (plain.low, plain.high), atol=0.03)
    assert "one seed" in one.note and "questions only" in str(one)


@pytest.mark.parametrize("k, few", [(1, True), (2, True), (5, True), (6, False), (20, False)])
def test_few_seeds_are_said(k, few):
    note = hierarchical_bootstrap(crossed(np.arange(5.0), np.arange(float(k))), "y", resamples=50).note
    assert bool(note) == few


def test_a_difference_by_seeds_needs_the_same_seeds():
    rng = np.random.default_rng(25)
    x, y = (crossed(rng.normal(size=20), rng.normal(size=6)) for _ in range(2))
    both = pd.concat([x.assign(condition="x"), y.assign(condition="y")])
    expected = hierarchical_bootstrap(x.assign(y=x.y - y.y), "y")
    assert hierarchical_bootstrap(both, "y", "x", "y") == expected
    assert hierarchical_bootstrap(pd.concat([both, both]).sample(frac=1, random_state=0), "y", "x", "y").n == 20
    with pytest.raises(UserError, match="different seeds"):
        hierarchical_bootstrap(both[(both.condition == "x") | (both.seed < 3)], "y", "x", "y")


# --- equivalence ----------------------------------------------------------------------------------------------------

@quick
@given(shares, st.floats(0.01, 0.8))
def test_equivalence_of_numbers_agrees_with_statsmodels_and_with_its_interval(values, margin):
    a, b = values.T + 1  # no shares of yes
    result = paired_equivalence(a, b, margin)
    if not np.ptp(a - b): return
    assert math.isclose(result.p, ttost_paired(a, b, -margin, margin)[0], rel_tol=1e-7, abs_tol=1e-12)
    assert result.equivalent == (result.p <= 0.05)
    inside = min(margin - result.interval[1], result.interval[0] + margin)
    assert abs(inside) < 1e-9 or result.equivalent == (inside > 0)


@quick
@given(shares, st.floats(0.01, 0.8))
def test_equivalence_of_shares_is_the_test_against_the_margin(values, margin):
    a, b = values.T
    result, test = paired_equivalence(a, b, margin), margin_test(a, b, margin)
    assert result.p == test.p_within and result.equivalent == (result.p <= 0.05)
    assert test.low - 1e-6 <= result.interval[0] and result.interval[1] <= test.high + 1e-6


def test_equivalence_without_a_change_is_as_strong_as_n_allows():
    few, many = (paired_equivalence(np.zeros(n), np.zeros(n), margin=0.1) for n in (12, 60))
    assert few.p > 0.05 and not few.equivalent and 0.9**60 <= many.p < 0.01 and many.equivalent
    assert paired_equivalence(np.full(30, 0.3), np.full(30, 0.1), margin=0.2).p > 0.05
    assert paired_equivalence(np.full(30, 3.0), np.full(30, 3.0), margin=0.2).p == 1  # no share, and no spread


def test_equivalence_of_a_table_uses_question_means():
    frame = answers(4)
    means = frame.pivot_table(index="question", columns="condition", values="score")
    expected = ttost_paired(means.x, means.y, -1, 1)[0]
    for table in (frame, pd.concat([frame] * 5)):
        assert math.isclose(equivalence(table, "score", "x", "y", 1.0).p, expected, rel_tol=1e-9)


# --- false discovery rate -------------------------------------------------------------------------------------------

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)


@quick
@given(p_values, st.sampled_from(["bh", "by"]), st.randoms(use_true_random=False))
def test_fdr_agrees_with_statsmodels_and_ignores_order(p, method, random):
    reject, q = fdr(p, method)
    expected = multipletests(p, 0.05, f"fdr_{method}")
    assert (reject == expected[0]).all() and np.allclose(q, expected[1])
    order = np.array(random.sample(range(len(p)), len(p)))
    assert np.allclose(fdr(p[order], method)[1], q[order]) and (fdr(p[order], method)[0] == reject[order]).all()
    assert (q >= p - 1e-12).all()


@quick
@given(p_values)
def test_bh_is_the_step_up_procedure(p):
    ordered = np.sort(p)
    passed = np.flatnonzero(ordered <= 0.05 * np.arange(1, len(p) + 1) / len(p))
    threshold = ordered[passed[-1]] if len(passed) else -1
    assert (fdr(p)[0] == (p <= threshold)).all()


def test_fdr_keeps_nan_and_shape():
    p = np.array([[0.01, np.nan], [0.02, 0.9]])
    reject, q = fdr(p)
    assert np.allclose(q, [[0.03, np.nan], [0.03, 0.9]], equal_nan=True)
    assert reject.tolist() == [[True, False], [True, False]]
    assert not fdr([np.nan])[0].any() and fdr([])[1].shape == (0,)


# --- bootstrap and rates --------------------------------------------------------------------------------------------

def test_fast_and_general_paths_agree_on_unequal_groups():
    rng = np.random.default_rng(11)
    frame = pd.DataFrame({"question": np.repeat(list("abcdefgh"), rng.integers(1, 6, 8))})
    frame["y"] = rng.random(len(frame))
    fast, slow = (cluster_bootstrap(frame, statistic, resamples=150) for statistic in ("y", lambda t: t.y.mean()))
    assert np.allclose([fast.estimate, *bounds(fast)], [slow.estimate, *bounds(slow)]) and fast.n == 8
    assert math.isclose(fast.estimate, frame.y.mean())


def test_a_question_drawn_twice_counts_as_two():
    frame = answers(12, questions=6).assign(score=lambda t: (t.score > 0).astype(float))
    grouped = cluster_bootstrap(frame, lambda t: t.groupby("question").score.mean().mean(), resamples=150)
    plain = cluster_bootstrap(frame, "score", resamples=150)
    assert np.allclose(bounds(grouped), bounds(plain))
    assert cluster_bootstrap(frame, lambda t: t.question.nunique(), resamples=50).low == 6


def test_rate_is_a_mean_over_questions_and_stays_in_range():
    frame = pd.DataFrame({"question": [1] * 9 + [2, 3], "code": [True] * 9 + [False, True]})
    result = rate(frame, "code")
    assert math.isclose(result.estimate, 2 / 3) and 0 <= result.low < result.estimate < result.high <= 1


@pytest.mark.parametrize("n", [1, 10, 100])
def test_unanimous_rates_get_exact_bounds(n):
    none, every = (rate(pd.DataFrame({"question": range(n), "code": v}), "code") for v in (0, 1))
    assert none.low == 0 and math.isclose(none.high, 1 - 0.025 ** (1 / n)) and none.resamples == 0
    assert every.high == 1 and math.isclose(every.low, 0.025 ** (1 / n))
    third = rate(pd.DataFrame({"question": np.repeat(range(n), 3), "code": [0, 0, 1] * n}), "code")
    assert third.low < 1 / 3 < third.high


# --- asymmetry ------------------------------------------------------------------------------------------------------

def matrix_of(units, names=None):
    names = names or [f"family {i}" for i in range(len(units))]
    return pd.DataFrame(np.asarray(units).mean(-1), index=names, columns=names).mask(np.eye(len(names), dtype=bool))


def null_units(rng, k=4, n=30):
    "No asymmetry on average; a question may be easy for a receiver whoever gives, or hard for a donor."
    return rng.normal(size=(1, k, n)) + 0.5 * rng.normal(size=(k, 1, n)) + 0.4 * rng.normal(size=(k, k, n))


def test_asymmetry_keeps_its_level():
    rng, trials = np.random.default_rng(13), 300
    results = []
    for i in range(trials):
        units = null_units(rng)
        results.append(asymmetry(matrix_of(units), units, permutations=199, resamples=20, seed=i))
    for name in ("p", "p_roles"):
        p = np.array([getattr(r, name) for r in results])
        assert all(consistent(np.sum(p <= level), trials, level) for level in (0.05, 0.5)), name


def test_exchanging_pairs_independently_would_not_keep_it():
    rng, trials, joint, pairwise = np.random.default_rng(19), 250, 0, 0
    first, second = np.triu_indices(6, 1)
    for i in range(trials):
        units = rng.normal(size=(1, 6, 30)) + 0.2 * rng.normal(size=(6, 6, 30))
        gap = units[first, second] - units[second, first]
        result = asymmetry(matrix_of(units), units, permutations=199, resamples=10, seed=i)
        null = np.abs((rng.choice([-1, 1], size=(199, *gap.shape)) * gap).mean(-1)).mean(-1)
        joint += result.p <= 0.05
        pairwise += (1 + np.sum(null >= result.statistic)) / 200 <= 0.05
    assert consistent(joint, trials, 0.05) and not at_most(pairwise, trials, 0.05)


def test_role_exchange_of_a_bare_matrix_keeps_its_level():
    rng, trials = np.random.default_rng(14), 200
    p = [asymmetry(matrix_of(rng.normal(size=(4, 4, 1))), resamples=20).p_roles for _ in range(trials)]
    assert at_most(np.sum(np.array(p) <= 0.05), trials, 0.05) and 1 / 32 <= min(p) <= 0.05


def given_effects(seed=15, n=40):
    rng = np.random.default_rng(seed)
    units = 0.3 * rng.normal(size=(4, 4, n))
    units[2] += 0.6; units[:, 1] += 0.5
    return units


def test_asymmetry_finds_giver_and_receiver():
    units = given_effects()
    result = asymmetry(matrix_of(units, list("abcd")), units)
    assert result.p < 0.001 and result.p_roles < 0.001 and (result.top_donor, result.top_receiver) == ("c", "b")
    assert result.donor_stability > 0.95 and result.n == 40 and result.families == 4
    assert (result.donors.low < result.donors.score).all() and (result.donors.score < result.donors.high).all()
    assert np.allclose(result.pairs.there - result.pairs.back, result.pairs.difference)
    assert math.isclose(result.pairs.difference.abs().mean(), result.statistic)


def test_asymmetry_does_not_depend_on_the_order_of_families():
    units, order = given_effects() * 0.3, [3, 1, 0, 2]
    one = asymmetry(matrix_of(units, list("abcd")), units)
    two = asymmetry(matrix_of(units[np.ix_(order, order)], list("dbac")), units[np.ix_(order, order)])
    columns = matrix_of(units, list("abcd"))[list("cadb")]
    three = asymmetry(columns, units[:, [2, 0, 3, 1]])
    for other in (two, three):
        assert math.isclose(one.statistic, other.statistic) and one.p == other.p and one.p_roles == other.p_roles
        assert np.allclose(one.donors.sort_index(), other.donors.sort_index())
        assert one.top_receiver == other.top_receiver


def test_transposing_exchanges_donors_and_receivers():
    units = given_effects()
    one, two = asymmetry(matrix_of(units), units), asymmetry(matrix_of(units.swapaxes(0, 1)), units.swapaxes(0, 1))
    assert one.p == two.p and one.top_donor == two.top_receiver and np.allclose(one.donors, two.receivers)


def test_a_circle_is_asymmetric_without_roles():
    rng = np.random.default_rng(16)
    units = 0.2 * rng.normal(size=(3, 3, 30))
    units -= units.mean(-1, keepdims=True)
    for i in range(3): units[i, (i + 1) % 3] += 0.5
    result = asymmetry(matrix_of(units), units)
    assert result.p < 0.001 and result.p_roles > 0.5


def test_asymmetry_of_little():
    units = given_effects()[:2, :2]
    two = asymmetry(matrix_of(units), units)
    assert "one pair" in two.note and "one pair" in str(two) and len(two.pairs) == 1
    assert two.p == pytest.approx(paired_difference(units[0, 1], units[1, 0]).p_permutation, abs=0.03)
    bare = asymmetry(matrix_of(given_effects()))
    assert math.isnan(bare.p) and math.isnan(bare.donor_stability) and bare.donors.low.isna().all() and bare.n == 0
    flat = asymmetry(matrix_of(np.ones((3, 3, 5))), np.ones((3, 3, 5)))
    assert flat.statistic == 0 and flat.p == 1 and flat.p_roles == 1


# --- power ----------------------------------------------------------------------------------------------------------

def test_power_agrees_with_simulation():
    rng, trials = np.random.default_rng(17), 4000
    draws = rng.normal(0.5, 1, size=(trials, 20))
    assert consistent(np.sum(ttest_rel(draws, 0 * draws, axis=1).pvalue <= 0.05), trials, power_paired(20, 0.5))


@pytest.mark.parametrize("n", [2, 3, 8, 100, 5000])
def test_smallest_effect_inverts_power(n):
    assert math.isclose(power_paired(n, smallest_effect(n)), 0.8, abs_tol=1e-6)
    ladder = [power_paired(n, dz) for dz in np.linspace(0, 12 / math.sqrt(n), 25)]
    assert math.isclose(ladder[0], 0.05, abs_tol=1e-6) and np.all(np.diff(ladder) > -1e-6)


@pytest.mark.parametrize("n, sd", [(10, 0.2), (100, 3.0)])
def test_the_smallest_difference_has_its_power(n, sd):
    found = smallest_difference(n, sd)
    assert math.isclose(TTestPower().power(found.difference / sd, n, 0.05), 0.8, abs_tol=1e-10)
    rng, trials = np.random.default_rng(26), 4000
    draws = rng.normal(found.difference, sd, size=(trials, n))
    assert consistent(np.sum(ttest_rel(draws, 0 * draws, axis=1).pvalue <= 0.05), trials, 0.8)
    still = smallest_difference(n, 0.0)
    assert math.isnan(still.difference) and "do not vary" in str(still) and found.row()["note"] == ""


def test_the_smallest_asymmetry_has_its_power():
    rng, n, k = np.random.default_rng(27), 60, 3
    units = rng.normal(0, .3, (k, k, n))
    size, names = smallest_asymmetry(units), list("abc")
    def found(size):
        "How often a run with this noise and this difference in every pair, of whichever sign, is called asymmetric."
        hits = 0
        for seed in range(200):
            run = rng.normal(0, .3, (k, k, n))
            for i, j in ((0, 1), (0, 2), (1, 2)): run[i, j] += size * rng.choice([-1, 1])
            hits += asymmetry(matrix_of(run), run, permutations=199, resamples=10, seed=seed).p <= .05
        return hits
    assert consistent(found(size), 200, .8) and consistent(found(0.0), 200, .05)
    with pytest.raises(UserError): smallest_asymmetry(units, power=.04)
    pairs = units.copy()
    pairs[np.arange(k), np.arange(k)] = np.nan   # the diagonal does not matter
    assert smallest_asymmetry(pairs) == size


# --- errors ---------------------------------------------------------------------------------------------------------

FRAME = answers()
GAP = FRAME.assign(score=FRAME.score.where(FRAME.index != 3))
NAMELESS = FRAME.assign(question=FRAME.question.where(FRAME.question != "q01"))
def without_largest_nan(table): return 1.0 if table.score.max() == FRAME.score.max() else math.nan
HOLE = matrix_of(given_effects())
HOLE.iloc[0, 1] = np.nan
SEEDS = crossed(np.arange(4.0), np.arange(3.0))
WRONG = {
    "no column 'scor'": lambda: paired(FRAME, "scor", "x", "y"),
    "no column 'arm'": lambda: paired(FRAME, "score", "x", "y", condition="arm"),
    "choose from 'x', 'y'": lambda: paired(FRAME, "score", "x", "base"),
    "occur in only one": lambda: paired(FRAME.drop(FRAME.index[-4:]), "score", "x", "y"),
    "NaN or infinite in 1 of 96": lambda: paired(GAP, "score", "x", "y"),
    "neither numeric": lambda: paired(FRAME.assign(score="good"), "score", "x", "y"),
    "is empty in 8 rows": lambda: paired(NAMELESS, "score", "x", "y"),
    "no rows": lambda: cluster_bootstrap(FRAME.head(0), "score"),
    "unknown alternative 'both'": lambda: paired(FRAME, "score", "x", "y", alternative="both"),
    "two questions or more": lambda: paired_difference([1.0], [2.0]),
    "are not pairs": lambda: paired_difference([1.0, 2.0, 3.0], [2.0, 1.0]),
    "hold NaN": lambda: paired_difference([1.0, np.nan], [2.0, 1.0]),
    "different indexes": lambda: paired_difference(pd.Series([1, 2], list("ab")), pd.Series([1, 2], list("ba"))),
    "margin of 0": lambda: equivalence(FRAME, "score", "x", "y", 0),
    "margin of nan": lambda: equivalence(FRAME, "score", "x", "y", math.nan),
    "alpha 0.7": lambda: equivalence(FRAME, "score", "x", "y", 1, alpha=0.7),
    "unknown method": lambda: fdr([0.1], "bonferroni"),
    "in 0..1": lambda: fdr([0.1, 1.2]),
    "leaves 0..1": lambda: rate(FRAME, "score"),
    "one question says nothing": lambda: cluster_bootstrap(FRAME[FRAME.question == "q00"], "score"),
    "the statistic of the whole table is nan": lambda: cluster_bootstrap(FRAME, lambda t: math.nan),
    "of 99 resamples": lambda: cluster_bootstrap(FRAME, without_largest_nan, resamples=99),
    "no rank of nan": lambda: rank_p(math.nan, [1]),
    "among 0 draws": lambda: rank_p(1, []),
    "same two or more families": lambda: asymmetry(pd.DataFrame([[0, 1], [1, 0]], list("ab"), list("ac"))),
    "do not fit": lambda: asymmetry(matrix_of(given_effects()), given_effects()[:3]),
    "NaN or infinity off": lambda: asymmetry(HOLE),
    "not the mean": lambda: asymmetry(matrix_of(given_effects()), given_effects()[::-1]),
    "no test with n = 1": lambda: power_paired(1, 0.5),
    "neither yes nor no": lambda: paired_yes_no([0.5, 1], [0, 1]),
    "shape (3,) are not tested": lambda: max_t([1.0, 2.0, 3.0]),
    "shape (1, 2) are not tested": lambda: max_t([[1.0, np.nan]]),
    "unknown alternative 'more'": lambda: max_t([[1.0, 2.0]], alternative="more"),
    "have no answer": lambda: hierarchical_bootstrap(SEEDS.drop(3), "y"),
    "'seed' is empty in 1 rows": lambda: hierarchical_bootstrap(SEEDS.assign(seed=SEEDS.seed.where(SEEDS.index > 0)), "y"),
    "one condition was given": lambda: hierarchical_bootstrap(SEEDS.assign(condition="x"), "y", a="x"),
    "no column 'seed'": lambda: hierarchical_bootstrap(FRAME, "score"),
    "one question says": lambda: hierarchical_bootstrap(SEEDS[SEEDS.question == 0], "y"),
    "standard deviation of nan": lambda: smallest_difference(10, math.nan),
    "alpha < power": lambda: smallest_effect(10, power=0.01),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_input_is_one_sentence(sentence):
    with pytest.raises(UserError) as caught: WRONG[sentence]()
    message = str(caught.value)
    assert sentence in message and "\n" not in message and ": " in message


def intervals(runs, fitted):
    ends = {f"{name} {end}": value for name in ("questions", "mixed") for end, value in (("low", .1), ("high", .3))}
    return {"runs": runs, **ends, "run sd": .05, "question sd": .2} | ({} if fitted else {"mixed low": math.nan, "mixed high": math.nan})


def test_a_model_that_was_trained_once_is_no_failed_fit():
    said = mixed_words(pd.DataFrame([intervals(4, True), intervals(4, True), intervals(1, False)]), .05)
    assert "in 2 of 2 models" in said and "1 model was trained once" in said and "no fit" not in said
    assert "no fit in 1 of 2 models" in mixed_words(pd.DataFrame([intervals(4, True), intervals(4, False)]), .05)


def test_a_table_with_a_gap_has_no_crossed_interval():
    with pytest.raises(UserError, match="no finite number"): crossed_bootstrap(pd.DataFrame([[.1, .2], [math.nan, .3]]))
