"""The verdict rule on situations where the right verdict is known: those that must not be supported first."""
import math
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import norm

from em_repro.profiles import UserError
from em_repro.verdicts import STATES, VERDICTS, asymmetry_ruling, holm, ruling

quick = settings(max_examples=100, deadline=None, derandomize=True)
H, R, O = (0.001, 0.999), (0.999, 0.001), (0.4, 0.6)   # surely holds, surely refuted, open


def decided(*pairs, testable=None, models=None):
    holds, refuted = zip(*pairs)
    return ruling(holds, refuted, testable or [True] * len(pairs), models or list(map(str, range(len(pairs)))))


KNOWN = [   # hypotheses, testable, models, the right verdict, why
    ([R, R], None, None, "contradicted", "both refuted"),
    ([R, O], None, None, "contradicted", "some refuted and none holds"),
    ([R], None, None, "contradicted", "one model can contradict"),
    ([H, R], None, None, "mixed", "one holds, one is refuted"),
    ([H, H, R, O], None, None, "mixed", "the open one changes nothing"),
    ([H, O], None, None, "inconclusive", "not all hold"),
    ([(0.04, 1.0), (0.04, 1.0), R, R], None, None, "inconclusive", "holding at the full level keeps from contradiction"),
    ([O, O], None, None, "inconclusive", "nothing is shown"),
    ([H], None, None, "inconclusive", "one model cannot support a claim about models"),
    ([H, H], None, ["a", "a"], "inconclusive", "two hypotheses about one model"),
    ([H, H, O, O, O], [1, 1, 0, 0, 0], None, "inconclusive", "fewer than half can be tested"),
    ([H, R], [0, 0], None, "not testable", "nothing can be tested"),
    ([R, O], [0, 1], None, "inconclusive", "the refuted one cannot be tested"),
    ([H, H], None, None, "supported", "all hold"),
    ([H, H, R], [1, 1, 0], None, "supported", "all testable ones hold"),
    ([H, H, H, O], [1, 1, 1, 0], ["a", "a", "b", "c"], "supported", "two models are enough"),
]


@pytest.mark.parametrize("pairs, testable, models, verdict, why", KNOWN, ids=[k[-1] for k in KNOWN])
def test_the_right_verdict_is_given(pairs, testable, models, verdict, why):
    assert decided(*pairs, testable=testable and list(map(bool, testable)), models=models).verdict == verdict


p = st.floats(0.0001, 1.0)
hypotheses = st.lists(st.tuples(p, st.booleans(), st.sampled_from("abc")), min_size=1, max_size=8)


def random_ruling(rows):
    holds = [r[0] for r in rows]
    return ruling(holds, [1 - h + 1e-9 for h in holds], [r[1] for r in rows], [r[2] for r in rows])


@quick
@given(hypotheses)
def test_the_p_is_that_of_the_verdict(rows):
    found = random_ruling(rows)
    assert found.verdict in VERDICTS and set(found.states) <= set(STATES) and len(found.states) == len(rows)
    assert (found.p is None) == (found.verdict in ("inconclusive", "not testable"))
    assert found.p is None or found.p <= 0.05
    assert (found.verdict == "supported") == (found.p_supported <= 0.05)
    if found.verdict == "contradicted": assert found.p == found.p_contradicted


@quick
@given(hypotheses, st.randoms())
def test_the_order_of_hypotheses_does_not_matter(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    one, other = random_ruling(rows), random_ruling([rows[i] for i in order])
    assert one[:2] == pytest.approx(other[:2]) or one[:2] == other[:2]
    assert [one.states[i] for i in order] == list(other.states)


@quick
@given(hypotheses)
def test_an_untestable_hypothesis_decides_nothing_but_whether_there_are_enough(rows):
    found = random_ruling(rows)
    changed = random_ruling([(p if can else 1 - p, can, model) for p, can, model in rows])
    assert found == changed


@quick
@given(st.lists(p, min_size=1, max_size=9))
def test_holm_is_bonferroni_for_the_smallest_and_never_falls_below_p(values):
    corrected = holm(values)
    assert (corrected >= np.array(values) - 1e-12).all()
    assert corrected.min() == pytest.approx(min(1, len(values) * min(values)))


def error(truth, verdict, effects, n=500, shared=0.5):
    "Share of simulated claims that get a verdict; effects in standard errors from the margin."
    rng = np.random.default_rng(1)
    z = np.array(effects) + np.sqrt(shared) * rng.normal(size=(n, 1)) + np.sqrt(1 - shared) * rng.normal(size=(n, len(effects)))
    models = list(map(str, range(len(effects))))
    found = [ruling(norm.sf(one), norm.cdf(one), [True] * len(effects), models).verdict for one in z]
    return found.count(verdict) / n


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("verdict, effects", [
    ("supported", [0, 9, 9, 9]), ("supported", [0, 0]), ("supported", [-0.5, 9]), ("contradicted", [0, 0]),
    ("contradicted", [0] * 6), ("contradicted", [0.0] * 36), ("mixed", [0, 9, 9, 9]), ("mixed", [0] * 6), ("mixed", [0, 0, -9])])
def test_a_false_verdict_is_given_in_one_run_of_twenty_at_most(verdict, effects, shared):
    "Effects exactly at the margin are neither above nor below it: the worst case of each verdict."
    assert error(None, verdict, effects, shared=shared) <= 0.05 + 3.3 * np.sqrt(0.05 * 0.95 / 500)


@pytest.mark.parametrize("differ, alike, rank, models, verdict", [
    ([0.001, 0.9, 0.9], [1, 0.3, 0.3], 0.33, 3, "inconclusive"), ([0.3, 0.9, 0.9], [1, 0.3, 0.3], 0.01, 3, "inconclusive"),
    ([0.03, 0.9, 0.9], [1, 0.3, 0.3], 0.01, 3, "inconclusive"), ([0.001, 0.9, 0.9], [1, 0.3, 0.3], 0.01, 3, "supported"),
    ([1, 1, 1], [0.01, 0.04, 0.02], 0.01, 3, "contradicted"), ([1, 1, 1], [0.01, 0.06, 0.02], 0.9, 3, "inconclusive"),
    ([0.001], [1], 0.01, 2, "not testable"), ([0.001, 0.001, 0.001], [1, 1, 1], 0.01, 2, "not testable")])
def test_asymmetry_needs_a_pair_and_a_rank_and_can_be_contradicted(differ, alike, rank, models, verdict):
    found = asymmetry_ruling(differ, alike, rank, models)
    assert found.verdict == verdict and (found.p is None) == (verdict in ("inconclusive", "not testable"))


def test_a_claim_without_hypotheses_is_refused():
    with pytest.raises(UserError, match="no hypothesis"): ruling([], [], [], [])


@pytest.mark.parametrize("ways", [([.001, .9], [1, .3], math.nan), ([.001, math.nan], [1, .3], .02), ([.001, .9], [math.nan, .3], .02), ([], [], .02), ([1.2], [1], .02)])
def test_asymmetry_is_not_ruled_on_without_every_p(ways):
    "The larger of a number and none can be the number, which gave a claim that no rank stood behind."
    with pytest.raises(UserError): asymmetry_ruling(*ways, 3)


@pytest.mark.parametrize("holds, refuted", [([.6, .6], [math.nan, .5]), ([math.nan, .001], [.5, .5])])
def test_a_p_that_is_missing_gives_no_verdict(holds, refuted):
    with pytest.raises(UserError, match="nan is no p"): ruling(holds, refuted, [True, True], ["a", "b"])
