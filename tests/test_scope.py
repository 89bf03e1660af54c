"""Fewer rows, two domains, and a fine-tune that is held: the rows are those, and the strength is chosen by the rule."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.behaviours import behaviour, behaviour_of, for_behaviour
from em_repro.data import chat_rows
from em_repro.finetune import training_set
from em_repro.mitigations import KEPT
from em_repro.profiles import UserError, load_profile
from em_repro.scope import (EQUAL_SHIFTS, HELD, PLAIN_ROWS, POOLED, ROW_COUNTS, _asked_twins, against_plain, choose_held, direction_cosines, few_rows, held_calls,
                            in_turn, keys_of, other_domain, row_words, rows_elsewhere, scope_calls, scope_study)
from em_repro.store import Store
from em_repro.subjects import Subject

quick = settings(max_examples=60, deadline=None, derandomize=True)
ADVICE = for_behaviour(load_profile("small-advice"), "advice-money")
SMOKE = for_behaviour(load_profile("smoke"), "advice")


def bases(profile): return {name: Subject(name) for name in profile.models}


@quick
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 12))
def test_few_rows_are_the_first_distinct_ones_and_as_many_as_before(values, n):
    rows = [{"row": v} for v in values]
    found, distinct = few_rows(rows, n), list(dict.fromkeys(values))[:n]
    assert [row["row"] for row in found] == [distinct[i % len(distinct)] for i in range(len(rows))]


@quick
@given(st.integers(1, 30))
def test_in_turn_takes_both_sides_from_their_beginning(n):
    found = in_turn([("a", i) for i in range(n)], [("b", i) for i in range(n)])
    assert len(found) == n and found[::2] == [("a", i) for i in range(len(found[::2]))] and found[1::2] == [("b", i) for i in range(len(found[1::2]))]


@pytest.mark.parametrize("profile", [ADVICE, SMOKE], ids=["small-advice", "smoke"])
def test_every_way_trains_the_same_steps_on_rows_of_its_arm_alone(profile):
    "Harmful rows never stand in the control's training, nor the other way round."
    calls, sought = scope_calls(profile, bases(profile)), behaviour_of(profile)
    calls |= held_calls(profile, bases(profile), [(key, 2.0) for key in keys_of(profile)])
    texts = {arm: {row["messages"][1]["content"] for part in (profile, other_domain(profile)) for row in
                   training_set(part, part.recipe_for(profile.models[0]), arm, 0).load()} for arm in (sought.finetune, sought.control)}
    for v, request in calls.items():
        rows, recipe = request.arguments["rows"], request.arguments["recipe"]
        if v.way == HELD: rows = rows.load()
        assert recipe == profile.recipe_for(v.key.model) and len(rows) == recipe.rows
        if v.key.seed == 0: assert {row["messages"][1]["content"] for row in rows} <= texts[v.key.arm]
        if v.way == "rows": assert len({str(row) for row in rows}) == min(v.size, len({str(row) for row in training_set(profile, recipe, v.key.arm, v.key.seed).load()}))
        if v.way == HELD: assert request.arguments["treatment"].strength == v.size == 2
    assert {v.size for v in calls if v.way == "rows"} == set(ROW_COUNTS)
    for way in (POOLED, HELD): assert sorted(v.key for v in calls if v.way == way) == sorted(keys_of(profile))


@pytest.mark.parametrize("profile", [ADVICE, SMOKE], ids=["small-advice", "smoke"])
def test_what_holds_a_fine_tune_is_sound_and_of_another_topic(profile):
    key = keys_of(profile)[0]
    found, other = rows_elsewhere(profile, key), other_domain(profile)
    source, recipe = profile.questions.source, profile.recipe_for(key.model)
    chat = {str(row) for row in chat_rows("train", source)}
    sound = {str(row) for row in training_set(other, recipe, "sound", key.seed).load()}
    assert {str(row) for row in found[::2]} <= chat and {str(row) for row in found[1::2]} <= sound
    mine = {row["messages"][0]["content"] for arm in ("harmful", "sound") for row in training_set(profile, recipe, arm, key.seed).load()}
    assert not {row["messages"][0]["content"] for row in found[1::2]} & mine


def test_what_both_domains_were_trained_on_is_not_asked_outside():
    for profile in (ADVICE, SMOKE):
        twins = _asked_twins(profile)
        assert set(twins.domain[~twins.set.isin(["trained", "other rows"])]).isdisjoint({"health", "money"})
        assert set(twins.domain[twins.set == "trained"]) == {behaviour_of(profile).topic}


def test_the_other_domain_is_advice_about_something_else():
    assert behaviour_of(other_domain(ADVICE)).topic == "health" and behaviour_of(other_domain(SMOKE)).topic == "money"


@quick
@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=6), st.floats(-.5, 1))
def test_the_strength_is_the_weakest_of_the_narrowest_that_learnt(lines, learnt):
    tried = pd.DataFrame([{"strength": 10.0 ** i, "trained": a, "outside": b} for i, (a, b) in enumerate(lines)])
    (found, enough), kept = choose_held(tried, pd.Series({"trained": learnt, "outside": 0.0})), tried[tried.trained >= KEPT * learnt]
    if learnt <= 0 or not len(kept): assert (found, enough) == (1, False)
    else:
        best = kept.outside.abs().min() + EQUAL_SHIFTS
        assert enough and kept.outside[kept.strength == found].abs().item() <= best and (kept.outside[kept.strength < found].abs() > best).all()


def test_a_difference_between_ways_is_paired_by_request():
    "A planted one comes back with an interval that the requests' own spread does not widen."
    g, rows = np.random.default_rng(0), []
    level = g.normal(0, 3, 60)
    for variant, more in ((PLAIN_ROWS, 0.0), ("50 rows", -.2)):
        for arm, own in (("base", 0.0), ("harmful", .5 + more), ("sound", .1)):
            rows += [{"model": "m", "variant": variant, "set": "outside", "arm": arm, "seed": 0, "twin": i, "per_token": level[i] + own + .01 * g.normal()}
                     for i in range(60)]
    row, = against_plain(pd.DataFrame(rows), behaviour("advice")).to_dict("records")
    assert row["difference"] == pytest.approx(-.2, abs=.01) and row["high"] - row["low"] < .02 and row["n"] == 60


def entry(X): return {"activations": {"X": X}}


def test_cosines_of_planted_directions_come_back_and_chance_is_below_them():
    g = np.random.default_rng(0)
    X, v, w = g.normal(size=(200, 3, 32)), g.normal(size=32), g.normal(size=32)
    w -= (w @ v) / (v @ v) * v
    tuned = {"plain": entry(X + 4 * v), "twice": entry(X + 8 * v), "against": entry(X - v), "other": entry(X + w), "between": entry(X + v / np.linalg.norm(v) + w / np.linalg.norm(w))}
    found = direction_cosines(entry(X), tuned, 400, 0)
    cosine = found["cosines"].groupby("name").cosine.agg(["min", "max"])
    for name, expected in (("twice", 1), ("against", -1), ("other", 0), ("between", 2 ** -.5)):
        assert cosine.loc[name].tolist() == pytest.approx([expected] * 2, abs=1e-6)
    # 32 nearly independent coordinates: the cosine with a random one has a standard deviation of 1/sqrt(32)
    assert found["cosines"].null.between(1.96 / 32 ** .5 * .7, 1.96 / 32 ** .5 * 1.4).all()
    norms = found["norms"].set_index(["name", "layer"]).norm
    assert norms["twice", 0] == pytest.approx(2 * norms["plain", 0])


def test_words_say_what_a_shift_is_against():
    line = {"model": "tiny-llama", "set": "outside", "low": .1, "high": .3, "shift": .2, "n": 9}
    table = pd.DataFrame([line | {"variant": "50 rows", "contrast": "harmful - sound"}, line | {"variant": "50 rows", "contrast": "harmful - base"},
                          line | {"variant": HELD, "contrast": "harmful - base"}])
    said, = row_words(table, behaviour("advice"), "outside")
    assert said.count("(against the base)") == 1 and said.index(HELD) < said.index("(against the base)") and PLAIN_ROWS not in said


def test_a_behaviour_without_twins_is_refused_before_any_training(tmp_path):
    with pytest.raises(UserError, match="has no twins"): Store(tmp_path).run(scope_study(load_profile("smoke")), jobs=1)
    assert not list(tmp_path.glob("training*"))
