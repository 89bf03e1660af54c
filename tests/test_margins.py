"""Tests against a margin: what they promise, on data whose answer is known."""
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest, multinomial, norm, ttest_1samp

from em_repro.margins import Sampling, exact_p, margin_test, mean_score, sampling_of, score_interval, sum_of_variances
from em_repro.profiles import UserError
from em_repro.stats import paired_yes_no

quick = settings(max_examples=40, deadline=None, derandomize=True)
counts = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20)).filter(lambda c: 2 <= sum(c))
margins = st.sampled_from([0.1, 0.3])


def differences(more, fewer, same): return np.repeat([1.0, -1.0, 0.0], [more, fewer, same])


def tango(more, fewer, n, margin):
    "Tango's statistic in closed form."
    linear = (2 * n - more + fewer) * margin - more - fewer
    root = np.sqrt(max(0.0, linear**2 + 8 * n * fewer * margin * (1 - margin)))
    variance = n * ((root - linear) / (2 * n) + margin * (1 - margin))
    distance = more - fewer - n * margin
    return distance / np.sqrt(variance) if variance > 1e-9 else np.sign(round(distance, 9)) * np.inf


@quick
@given(counts, margins, st.sampled_from([-1, 1]))
def test_for_yes_no_differences_the_score_is_tangos(found, margin, side):
    more, fewer, same = found
    d, expected = differences(*found), tango(more, fewer, sum(found), side * margin)
    score = mean_score(d, side * margin)
    assert score == pytest.approx(expected, abs=1e-5) or np.isnan(expected) and score == 0


@quick
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=60), margins)
def test_exchanging_the_sides_exchanges_above_and_below(values, margin):
    d = np.array(values) / 4
    there, back = margin_test(d, 0.0, margin), margin_test(-d, 0.0, margin)
    assert there.effect == pytest.approx(-back.effect) and there.low == pytest.approx(-back.high, abs=1e-5)
    assert there.p_within == pytest.approx(back.p_within) and there.p_outside == pytest.approx(back.p_outside)


def test_questions_are_compared_with_themselves():
    "What a question adds to both sides cancels: the test of a and b is that of their differences, and of no others."
    rng = np.random.default_rng(0)
    b, d = rng.random(60) * .8, rng.random(60) * .1 + .1
    found, single = margin_test(b + d, b, .1), margin_test(d, 0.0, .1)
    np.testing.assert_allclose(found[:7], single[:7], rtol=1e-6)
    assert found.p_above < margin_test(b + d, rng.permutation(b), .1).p_above
    assert margin_test(b + d, b, .1, None).p_above < 1e-6 < .01 < margin_test(b + d, rng.permutation(b), .1, None).p_above
    order = rng.permutation(60)
    np.testing.assert_allclose(margin_test((b + d)[order], b[order], .1)[:7], found[:7], rtol=1e-6)


@quick
@given(st.lists(st.integers(-4, 4), min_size=3, max_size=60), margins)
def test_what_is_shown_cannot_be_shown_not_to_be(values, margin):
    found = margin_test(np.array(values) / 4, 0.0, margin)
    assert not (found.p_above <= 0.05 and found.p_below <= 0.05)
    assert not (found.p_within <= 0.05 and found.p_outside <= 0.05)
    assert found.low - 1e-6 <= found.effect <= found.high + 1e-6


@quick
@given(counts, margins)
def test_one_more_change_to_yes_never_raises_p(found, margin):
    "Barnard's convexity: the exact p falls when a question turns from unchanged, or from no, to yes."
    more, fewer, same = found
    n, p = sum(found), exact_p(more, fewer, sum(found), margin)
    if same: assert exact_p(more + 1, fewer, n, margin) <= p + 1e-9
    if fewer: assert exact_p(more, fewer - 1, n, margin) <= p + 1e-9


@pytest.mark.parametrize("n, margin", [(16, 0.1), (40, 0.1), (60, 0.1), (100, 0.05), (100, -0.1)])
@pytest.mark.parametrize("no", [0.0, 0.003, 0.031, 0.11, 0.237, 0.44])
def test_the_exact_test_keeps_its_level_whatever_the_share_that_changes_to_no(n, margin, no):
    yes = no + margin
    if yes < 0 or yes + no > 1: pytest.skip("no such share")
    more, fewer = np.nonzero(np.add.outer(np.arange(n + 1), np.arange(n + 1)) <= n)
    chance = multinomial.pmf(np.stack([more, fewer, n - more - fewer], -1), n, [yes, no, 1 - yes - no])
    p = np.array([exact_p(a, b, n, margin) for a, b in zip(more, fewer)])
    for level in (0.01, 0.05, 0.1): assert chance[p <= level].sum() <= level + 5e-4


@quick
@given(st.sampled_from([10, 40]), st.integers(0, 40))
def test_where_no_question_can_change_to_no_it_is_near_the_binomials(n, more):
    "It is the binomial's p or larger, since it does not know that share."
    if more > n: return
    assert exact_p(more, 0, n, 0.1) >= binomtest(more, n, 0.1, "greater").pvalue - 1e-9


def test_no_change_at_all_has_the_p_of_that_chance_and_not_less():
    for n in (16, 40, 60, 100): assert 0.9**n <= margin_test(np.zeros(n), 0.0, 0.1).p_within
    assert margin_test(np.zeros(40), 0.0, 0.1).p_within == pytest.approx(0.0196, abs=0.001)
    assert margin_test(np.zeros(12), 0.0, 0.1).p_within > 0.05


@quick
@given(counts.filter(lambda c: sum(c) >= 5))
def test_the_interval_of_yes_no_differences_is_tangos(found):
    d = differences(*found)
    known = paired_yes_no((d > 0).astype(float), (d < 0).astype(float)).interval
    assert score_interval(d) == pytest.approx(known, abs=1e-4)


def test_the_interval_holds_what_the_score_does_not_reject():
    d = np.random.default_rng(0).integers(-3, 4, 80) / 3
    low, high = score_interval(d)
    z = norm.ppf(0.975)
    assert abs(mean_score(d, low)) == pytest.approx(z, abs=1e-3) and abs(mean_score(d, high)) == pytest.approx(z, abs=1e-3)


@pytest.mark.parametrize("a, b, margin, words", [
    ([0.0, 1.0], [0.0, 0.0], 0.0, "leaves no room"), ([0.0, 1.0], [0.0, 0.0], 1.5, "leaves no room"),
    ([0.0], [0.0], 0.1, "two questions or more"), ([0.0, np.nan], 0.0, 0.1, "finite"), ([3.0, 0.0], 0.0, 0.1, "leave")])
def test_bad_input_is_refused_in_a_sentence(a, b, margin, words):
    with pytest.raises(UserError, match=words) as caught: margin_test(a, b, margin)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("samples", [2, 5])
@pytest.mark.parametrize("rates", [(0.10, 0.0), (0.15, 0.05), (0.55, 0.45), (1.0, 0.9)])
def test_shares_of_several_answers_keep_the_level(samples, rates):
    "150 simulations at the margin exactly; the larger of two p is at most 5% plus Monte-Carlo error."
    rng, above, below, runs = np.random.default_rng(3), 0, 0, 150
    for _ in range(runs):
        a, b = (rng.binomial(samples, r, 100) / samples for r in rates)
        found = margin_test(a, b, 0.1)
        above, below = above + (found.p_above <= 0.05), below + (found.p_below <= 0.05)
    limit = binomtest(int(0.05 * runs), runs).proportion_ci(0.999, "exact").high
    assert above / runs <= limit and below / runs <= limit


# Against the mean of sampled vectors

shares = st.lists(st.integers(-4, 4), min_size=3, max_size=40).map(lambda values: np.array(values) / 4)
vectors = st.lists(st.lists(st.floats(0, 1).map(lambda x: round(x, 3)), min_size=2, max_size=6), min_size=1, max_size=4)


@quick
@given(shares, margins, st.sampled_from([(-1.0, 1.0), (-2.0, 2.0), None]))
def test_without_sampled_vectors_the_test_is_the_old_one_to_the_bit(d, margin, bounds):
    same = margin_test(d, 0.0, margin, bounds, Sampling()), margin_test(d, 0.0, margin, bounds, sampling_of([[.3] * 20, [.4]]))
    assert same[0] == same[1] == margin_test(d, 0.0, margin, bounds)
    for p, mean, side in ((same[0].p_above, margin, 1), (same[0].p_below, margin, -1)):
        if not np.ptp(d): continue
        t = ttest_1samp(side * d, side * mean, alternative="greater").pvalue
        if bounds is None: assert p == t
        elif not same[0].exact: assert p == max(t, float(norm.sf(mean_score(side * d, side * mean, bounds))))


many_shares = st.lists(st.integers(-4, 4), min_size=15, max_size=40).map(lambda values: np.array(values) / 4).filter(np.ptp)
many_vectors = st.lists(st.lists(st.integers(0, 8).map(lambda x: x / 8), min_size=8, max_size=12), min_size=1, max_size=3)


@quick
@given(many_shares, margins, many_vectors, st.sampled_from([(-1.0, 1.0), None]))
def test_more_spread_of_vectors_shows_less(d, margin, means, bounds):
    """The interval is wider, nothing is shown at 5% that was not, and the estimate stays.

    From a dozen questions and some vectors on: below, more degrees of freedom may outweigh a little more variance."""
    def scaled(by): return sampling_of([[by * m for m in run] for run in means])
    tests = [margin_test(d, 0.0, margin, bounds, scaled(by)) for by in (0.0, .5, 1.0)]
    for less, more in zip(tests, tests[1:]):
        assert more.effect == less.effect and more.low <= less.low + 1e-5 and more.high >= less.high - 1e-5
        if less.exact: continue
        for p in ("p_above", "p_below", "p_within"): assert getattr(more, p) > .05 - 1e-9 or getattr(less, p) <= .05


@quick
@given(vectors)
def test_the_variance_of_a_mean_over_runs_is_that_of_its_parts(means):
    found, runs = sampling_of(means), len(means)
    assert found.variance == pytest.approx(sum(np.var(run, ddof=1) / len(run) for run in means) / runs**2, abs=1e-15)
    assert sampling_of(means[::-1]).variance == pytest.approx(found.variance)
    most = sum(len(run) - 1 for run in means)
    if found.variance: assert min(len(run) - 1 for run in means) - 1e-9 <= found.df <= most + 1e-9
    twice = sampling_of([*means, *means])   # twice as many runs: half the variance
    assert twice.variance == pytest.approx(found.variance / 2, abs=1e-15)
    assert sum_of_variances(found, Sampling()) == pytest.approx(found, rel=1e-9) or not found.variance


@pytest.mark.parametrize("draws, spread", [(4, .15), (20, .15), (20, 0.0)])
def test_the_level_is_kept_where_vectors_differ_and_is_lost_without_their_error(draws, spread):
    "At the margin exactly, 400 questions and 200 simulations: what is tested is the effect beyond vectors at large."
    rng, runs, found = np.random.default_rng(5), 200, {"sampled": [], "these": []}
    for _ in range(runs):
        answers = rng.random((draws, 400)) < (.4 + spread * rng.normal(size=(draws, 1)))
        own, controls = (rng.random(400) < .5).astype(float), answers.mean(0)
        for name, sampling in (("sampled", sampling_of([answers.mean(1)])), ("these", Sampling())):
            test = margin_test(own, controls, .1, sampling=sampling)
            found[name].append((test.p_above <= .05, test.p_below <= .05, test.p_within <= .05, test.low <= .1 <= test.high))
    sampled, these = (np.mean(found[name], axis=0) for name in found)
    limit = binomtest(int(.05 * runs), runs).proportion_ci(.999, "exact").high
    assert (sampled[:3] <= limit).all() and sampled[3] >= 1 - limit
    assert (these[:2].max() > limit) == bool(spread)


def test_a_test_against_sampled_vectors_is_never_exact():
    yes = np.tile([1.0, 0.0], 20)
    assert margin_test(yes, 0.0, .1).exact and not margin_test(yes, 0.0, .1, sampling=Sampling(.001, 19)).exact


@pytest.mark.parametrize("a, b", [([np.nan, .1, .2], 0), ([.1, .2], [0, np.inf]), ([], []), ([.1], np.nan)])
@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_numbers_that_were_not_measured_are_not_tested(a, b, bounds):
    with pytest.raises(UserError, match="leave out what was not measured"): margin_test(a, b, .1, bounds)
