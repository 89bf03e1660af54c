"The instrument on labelled steered answers: what is measured, and that the shipped counts are of it."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.answers import corrected_rates, instrument_counts, judged_answers, measured_rates, said_of, with_roles
from em_repro.behaviours import behaviour
from em_repro.outcomes import REPETITION_THRESHOLD, repetition
from em_repro.profiles import shipped

CODE = behaviour("code")
OUTCOMES = ("code", "incoherent", "good")
answers = st.lists(st.tuples(st.sampled_from(OUTCOMES), st.sampled_from(OUTCOMES), st.integers(1, 9)), min_size=1, max_size=40)


def labelled(rows, repeat=1):
    table = pd.DataFrame(rows * repeat, columns=["outcome", "said", "weight"]).astype({"weight": float})
    return table.assign(model="m", kind="direction")


@given(answers)
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_a_table(rows):
    table = labelled(rows)
    found = measured_rates(table, table.said).set_index(["outcome", "measure"])
    counts = pd.crosstab(table.outcome, table.said).reindex(index=OUTCOMES, columns=OUTCOMES, fill_value=0)
    for o in OUTCOMES:
        hits, cases, called = counts.loc[o, o], counts.loc[o].sum(), counts[o].sum()
        others = len(table) - cases
        assert found.loc[(o, "recall"), ["right", "n"]].tolist() == [hits, cases]
        assert found.loc[(o, "precision"), ["right", "n"]].tolist() == [hits, called]
        assert found.loc[(o, "specificity"), ["right", "n"]].tolist() == [others - (called - hits), others]
    some = found[found.n > 0]
    assert ((some.low <= some.rate + 1e-9) & (some.rate <= some.high + 1e-9)).all()
    assert (some.effective <= some.n + 1e-9).all() and some.weighted.between(0, 1 + 1e-9).all()


@given(answers, st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_equal_weights_are_no_weights(rows, repeat):
    "And a weight of k is k answers, as far as the rate goes."
    table = labelled([(o, s, 1) for o, s, _ in rows])
    found = measured_rates(table, table.said)
    assert np.allclose(found.weighted, found.rate, equal_nan=True) and np.allclose(found.effective, found.n)
    heavy, many = labelled(rows), labelled([r for r in rows for _ in range(r[2])])
    assert np.allclose(measured_rates(heavy, heavy.said).weighted, measured_rates(many, many.said).rate, equal_nan=True)


def test_the_shipped_counts_are_of_this_instrument():
    "Who changes the instrument writes data/instrument_rates.csv anew (tools/instrument_rates.py), and says so."
    test = judged_answers("test")
    pd.testing.assert_frame_equal(instrument_counts(test, said_of(CODE, test)), pd.read_csv(shipped() / "instrument_rates.csv"))


def test_the_limit_is_the_best_on_the_half_that_may_be_tuned_on():
    tune = judged_answers("tune")
    shares, wrong = tune.text.map(repetition), tune.outcome == "incoherent"
    errors = {limit: int(((shares >= limit) != wrong).sum()) for limit in np.round(np.arange(.3, .61, .01), 2)}
    assert max(k for k, v in errors.items() if v == min(errors.values())) == REPETITION_THRESHOLD


def recall_and_precision(part, said=None):
    table = judged_answers(part).assign(all="all")
    found = measured_rates(table, said_of(CODE, table) if said is None else table[said], by=["all"])
    return found.set_index(["outcome", "measure"]).rate


def test_more_is_right_than_before_on_the_half_that_was_opened_once():
    before, now = recall_and_precision("test", "detected"), recall_and_precision("test")
    for better in (("incoherent", "recall"), ("code", "precision"), ("good", "precision")): assert now[better] > before[better] + .05
    assert now["incoherent", "precision"] >= .95 and now["code", "recall"] >= .9


@pytest.mark.xfail(strict=True, reason="opened once: rubble that begins as code still counts as code under controls")
def test_precision_and_recall_reach_what_is_wanted():
    now = recall_and_precision("test")
    assert all(now[outcome, measure] >= .95 for outcome in ("code", "incoherent") for measure in ("precision", "recall"))


def test_halves_share_no_question_and_labels_are_complete():
    table = judged_answers()
    halves = table.groupby("half").question.unique()
    assert not set(halves["tune"]) & set(halves["test"])
    assert set(table.outcome) == set(OUTCOMES) and set(table.about) == {"yes", "no"} and (table.weight >= 1).all()


def test_a_perfect_instrument_corrects_nothing_and_a_known_error_is_taken_out():
    frame = with_roles(pd.DataFrame({"role": ["target"] * 30 + ["good"] * 70, "question": [f"q{i:03}" for i in range(100)]}))
    frame = frame.assign(model="m", arm="insecure")
    def counts(found, left): return pd.DataFrame([{"model": "m", "outcome": "code", "found": found, "cases": 1000, "left": left, "others": 1000}])
    same, = corrected_rates(frame, CODE, counts(1000, 1000)).itertuples()
    assert same.plain == pytest.approx(.3) and same.corrected == pytest.approx(.3, abs=.01)
    other, = corrected_rates(frame, CODE, counts(900, 900)).itertuples()
    assert other.corrected == pytest.approx((.3 - .1) / .8, abs=.01) and other.low < other.corrected < other.high
    assert corrected_rates(frame.assign(model="another"), CODE, counts(900, 900)).empty
