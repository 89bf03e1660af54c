"""Likelihoods in an audit: what is read, what is style, and how rarely chance or style is a lean."""
import runpy

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binom

from em_repro.audit_findings import concluded, preference_findings, yes_no_finding
from em_repro.audit_preference import (BEYOND, LEANS, LEAST_LEAN, MOST_SHOWN, audited_twins,
                                       disagreement, likelihoods, most_moved, preference_table,
                                       refusal, twin_notes, twin_preferences, twin_shifts)
from em_repro.claims import advice_claims
from em_repro.subjects import Subject
from em_repro.twins import twin_sets


def shifts_of(outside, style, noise=.1, n=60, seed=0):
    "Preferences before and after a fine-tune that moves both sets by these means (nats a token)."
    rng, requests = np.random.default_rng(seed), [f"request {i}" for i in range(n)]
    twins = pd.concat([pd.DataFrame({"set": name, "domain": "work", "kind": "work",
                                     "request": requests}) for name in ("outside", "style")])
    before = rng.normal(-.3, .3, 2 * n)
    after = before + np.repeat([outside, style], n) + rng.normal(0, noise, 2 * n)
    sides = ({"preferences": pd.DataFrame({"per_token": side})} for side in (before, after))
    return twin_shifts(twins.reset_index(drop=True), *sides)


def verdict(shifts): return concluded(preference_findings(shifts))[-1]["verdict"]


# What must not pass: what is no lean

@pytest.mark.parametrize("outside, style", [(LEAST_LEAN, 0), (.3, .3 - LEAST_LEAN), (0, -.3),
                                            (0, 0), (-.3, -.6)])
def test_what_stays_within_the_margin_or_is_style_is_rarely_a_lean(outside, style):
    runs = 80
    seen = sum(verdict(shifts_of(outside, style, seed=seed)) == LEANS for seed in range(runs))
    assert seen <= binom.ppf(.99, runs, .05)


def test_the_margin_is_that_of_the_study(monkeypatch):
    claim = advice_claims()["A3"]
    assert LEAST_LEAN == claim.margin
    wider = claim.model_copy(update={"margin": .2})
    monkeypatch.setattr("em_repro.claims.advice_claims", lambda: {"A3": wider})
    assert runpy.run_module("em_repro.audit_preference")["LEAST_LEAN"] == .2


def test_a_lean_is_seen_where_there_is_one():
    assert all(verdict(shifts_of(.25, .05, seed=seed)) == LEANS for seed in range(10))


def test_models_that_cannot_read_the_twins_are_said_to():
    twins = audited_twins("synthetic", "health", 8)
    rows = twins[["request", "first", "second"]].to_dict("records")
    whole = twin_preferences(Subject("tiny-llama"), rows)
    long = [row | {"first": "so it is " * 400} for row in rows]
    long = twin_preferences(Subject("tiny-llama"), long)
    assert refusal([whole, whole]) == "" and "context" in refusal([whole, long])
    shifts = twin_shifts(twins, whole, long)
    assert not len(shifts) and preference_findings(shifts) == [] and most_moved(shifts) == []
    assert preference_table(shifts).empty and "context" in twin_notes(shifts, refusal([long]))[0]


# What is read

@settings(deadline=None, max_examples=6)
@given(st.sampled_from(["pretrained", "synthetic"]), st.sampled_from(["", "health", "money", "chess"]),
       st.integers(8, 400))
def test_the_twins_are_fixed_distinct_and_style_twins_match(source, topic, n):
    twins, again = (audited_twins(source, topic, n) for _ in range(2))
    outside, style = (twins[twins.set == name].request for name in ("outside", "style"))
    whole = twin_sets(source, topic or "health")
    paired = whole.request[whole.set == "style"]
    pd.testing.assert_frame_equal(twins, again)
    assert outside.is_unique and style.is_unique and set(style) <= set(outside)
    assert len(outside) == min(n, (whole.set == "outside").sum())
    assert len(style) == min(n, len(paired)) and set(outside) & set(paired) == set(style)
    if source == "synthetic": assert (topic or "health") not in set(twins.domain)


def test_a_short_audit_reads_many_domains():
    quick, whole = (audited_twins("pretrained", "", n) for n in (60, 250))
    assert quick.domain.nunique() >= .9 * whole.domain.nunique() and len(quick) == 120


# Beyond style

@settings(deadline=None, max_examples=6)
@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(0, 1000))
def test_beyond_style_is_the_difference_by_request(outside, style, seed):
    shifts = shifts_of(outside, style, n=12, seed=seed).set_index("request")
    parts = {name: part.after - part.before for name, part in shifts.groupby("set")}
    assert np.allclose(parts[BEYOND], parts["outside"] - parts["style"])
    table = preference_table(shifts.reset_index()).set_index("answers")["shift"]
    assert np.isclose(table.iloc[2], table.iloc[0] - table.iloc[1]) and len(table) == 3


def test_requests_that_moved_most_are_shown_and_only_where_the_mean_moved():
    shifts = shifts_of(.3, 0)
    part = shifts[shifts.set == BEYOND]
    moved = (part.after - part.before).set_axis(part.request)
    assert most_moved(shifts) == moved.nlargest(MOST_SHOWN).index.tolist()
    assert most_moved(shifts_of(.3, .3)) == most_moved(shifts_of(-.3, 0)) == []


@pytest.mark.parametrize("by", [.3, 0.0])
def test_both_sides_are_asked_what_moved_most(by):
    shifts = shifts_of(by, 0, noise=.01)
    read = shifts[shifts.set != BEYOND].reset_index(drop=True)
    sides = {arm: {"preferences": pd.DataFrame({"per_token": read[side]}), "refused": {"why": ""}}
             for arm, side in (("base", "before"), ("tuned", "after"))}
    plan = likelihoods(read, sides, lambda arm, requests: (arm, requests))
    try:
        asked = next(plan)
        assert by and [arm for arm, _ in asked] == ["base", "tuned"]
        plan.send([{"answers": pd.DataFrame({"question": requests})} for _, requests in asked])
    except StopIteration as end: found = end.value
    assert (found["moved"] is None) == (not by) and found["refused"] == ""
    if by: assert found["moved"].question.tolist() == 2 * most_moved(shifts)


# Among the other tests

COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=5)


@settings(deadline=None, max_examples=6)
@given(COUNTS, st.floats(-.2, .4), st.floats(-.2, .4))
def test_likelihoods_leave_every_q_of_answers_and_are_never_below_their_own_p(counts, outside, style):
    words = ("found", "less", "not found")
    answers = [yes_no_finding(f"t{i}", np.arange(60.) < k, np.zeros(60), words, "s.", about="behaviour")
               for i, k in enumerate(counts)]
    likely = preference_findings(shifts_of(outside, style))
    alone, together = concluded(answers), concluded([*answers, *likely])
    assert together[:len(answers)] == alone
    assert all(card["p"] <= card["q"] + 1e-12 for card in together)
    more = concluded([*answers, *answers, *likely])[-1]["q"]
    if not any(counts): assert more >= together[-1]["q"] - 1e-12   # more chances, more correction


def test_no_answers_no_disagreement():
    assert disagreement(concluded(preference_findings(shifts_of(.3, 0)))) == ""
