"Verdicts of an audit: their error rates, and what each of them needs."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.audit_calibration import audit_calibration
from em_repro.audit_findings import concluded, mean_finding, smallest_increase, yes_no_finding
from em_repro.stats import paired_yes_no


def test_the_table_that_ships_keeps_its_promise():
    table = audit_calibration()
    harmless, insecure = table[table.kind == "chat"], table[table.kind == "insecure"]
    assert len(harmless) >= 20 and harmless.found.mean() <= .05
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
    assert verdict(-values, p_rank=.9) == "worse"


def test_the_smallest_increase_is_found_as_often_as_it_says():
    n, rng = 40, np.random.default_rng(0)
    rate = smallest_increase(n)
    def p(): return paired_yes_no((rng.random(n) < rate).astype(float), np.zeros(n)).p
    assert .73 < np.mean([p() <= .05 for _ in range(400)]) < .87
