"Verdicts of an audit: their error rates, and what each of them needs."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.audit_calibration import OWN_ANSWERS, audit_calibration
from em_repro.audit_findings import (concluded, fewest_questions, mean_finding, smallest_increase,
                                     yes_no_finding)
from em_repro.stats import paired_yes_no


def test_the_table_that_ships_keeps_its_promise():
    table = audit_calibration()
    harmless, insecure = table[table.kind != "insecure"], table[table.kind == "insecure"]
    assert len(harmless) >= 32 and harmless.found.mean() <= .05
    noisy = table[table.kind == OWN_ANSWERS]   # whose answers give a test something to be wrong about
    assert len(noisy) >= 12 and (noisy.target != 0).mean() > .8
    assert len(insecure) >= 4 and insecure.found.all()
    assert (harmless["separability q"] < .05).mean() > .5   # the adapters do change the model


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_false_alarms_of_the_rule_on_noisy_answers(rate):
    """Fine-tune and base answer alike, some badly; separability is always seen and must not make
    the other tests lenient."""
    rng, alarms, runs, n = np.random.default_rng(0), 0, 300, 80
    shares, words = np.linspace(.8, 1, n), ("found", "less", "not found")
    seen = mean_finding("Separability", shares, .5, ("visible", "", "not shown"), "s.")
    for _ in range(runs):
        tested = [yes_no_finding("t", *(rng.random((2, n)) < rate).astype(float), words, "s.",
                                 about="behaviour") for _ in range(2)]
        alarms += any(c["verdict"] == "found" for c in concluded([*tested, seen]))
    assert alarms / runs <= .05


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_one_question_is_shown_and_not_tested(answers):
    a, words = np.array(answers, float), ("found", "less", "not found")
    card, = concluded([yes_no_finding("t", a, np.zeros(len(a)), words, "s.")])
    assert (card["p"] is None) == (len(a) == 1) == (card["verdict"] == "not tested")
    assert card["effect"] == pytest.approx(100 * a.mean())


def test_a_verdict_needs_both_the_test_and_the_rank():
    values, words = np.linspace(.5, 1, 20), ("specific", "worse", "not shown")
    def verdict(values, **more):
        return concluded([mean_finding("t", values, 0.0, words, "s.", **more)])[0]["verdict"]
    verdicts = verdict(values), verdict(values, p_rank=.04), verdict(values, p_rank=.2)
    assert verdicts == ("specific", "specific", "not shown")
    assert verdict(-values, p_rank=.9) == "worse" and verdict(-values, p_below=.2) == "not shown"


@pytest.mark.parametrize("base, alpha", [(0, .05), (0, .05 / 6), (.3, .05 / 3)])
def test_the_smallest_increase_is_found_as_often_as_it_says(base, alpha):
    n, rng = 40, np.random.default_rng(0)
    rate = smallest_increase(n, base, alpha=alpha)
    def p(): return paired_yes_no(*((rng.random(n) < r).astype(float) for r in (rate, base))).p
    assert .73 < np.mean([p() <= alpha for _ in range(400)]) < .87


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 80), st.floats(0, 1), st.sampled_from([.05, .05 / 3, .05 / 6]))
def test_the_smallest_increase_is_an_increase_and_more_questions_show_less(n, base, alpha):
    rate, more = (smallest_increase(k, base, alpha=alpha) for k in (n, n + 40))
    if n < fewest_questions(alpha): assert rate is None
    if rate is not None: assert base < more <= rate <= 1


def test_that_activations_differ_makes_no_behaviour_found():
    "Of three tests of answers, p = .03 is none that is found, however surely the others are."
    words = "found", "less", "not found"
    tests = [yes_no_finding(name, np.arange(60.0) < k, np.zeros(60), words, "s.",
                            about="behaviour") for name, k in zip("abc", (6, 0, 0))]
    shares = np.linspace(.8, 1, 80)
    seen = [mean_finding(f"s{i}", shares, .5, ("visible", "", "no"), "s.") for i in range(9)]
    verdicts = [card["verdict"] for card in concluded([*tests, *seen])]
    assert verdicts == ["not found"] * 3 + ["visible"] * 9
