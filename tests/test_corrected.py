"Gains corrected for the instrument's errors: known errors are taken out, unknown ones are named, the shipped counts are of the labels."
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro import audit_errors
from em_repro.answers import ROLES, instrument_counts, judged_answers, said_of
from em_repro.behaviours import behaviour
from em_repro.controls import ranked_kinds
from em_repro.corrected import (COUNTED, NOT_CORRECTED, NOT_LABELLED, TOO_FEW, Labelled, Side, about_counts, confusion_counts, corrected_gain,
                                corrected_gains, errors_said, gains_said, gains_shown, labelled_errors, uninformative, true_shares, why_not_corrected)
from em_repro.profiles import load_profile, shipped

ROOT = Path(__file__).resolve().parents[1]
CODE, SMALL = behaviour("code"), load_profile("small")
OUTCOMES = ("code", "incoherent", "good")   # in the order of ROLES
SOUND = np.eye(3)
EVEN = np.array([[.95, .05, 0], [.08, .87, .05], [.02, .06, .92]])
UNEVEN = np.array([[.93, .07, 0], [.35, .55, .10], [0, .02, .98]])   # rubble counts as code, or as good


def called(truth, errors, questions, rng):
    "One answer a question, one-hot by what it is called."
    return np.eye(3)[[rng.choice(3, p=errors[i]) for i in rng.choice(3, questions, p=truth)]]


def labels(errors, sizes, rng): return np.array([rng.multinomial(n, e) for n, e in zip(sizes, errors)], float)


# The correction itself


simplex = st.lists(st.floats(.05, 1), min_size=3, max_size=3).map(lambda xs: np.array(xs) / sum(xs))


@given(simplex, st.lists(simplex, min_size=3, max_size=3), st.floats(.0, .45))
@settings(max_examples=50, deadline=None)
def test_known_errors_are_taken_out_exactly(truth, wrong, much):
    errors = (1 - much) * np.eye(3) + much * np.array(wrong)
    assert not uninformative(errors)
    assert np.allclose(true_shares(truth @ errors, errors), truth)


def test_two_outcomes_are_rogan_and_gladens():
    se, sp, seen = .9, .8, .5
    errors = np.array([[se, 1 - se, 0], [1 - sp, sp, 0], [0, 0, 1.0]])
    assert true_shares(np.array([seen, 1 - seen, 0]), errors)[0] == pytest.approx((seen + sp - 1) / (se + sp - 1))


@pytest.mark.parametrize("se, sp", [(.5, .5), (.3, .6), (.2, .8)])
def test_an_instrument_no_better_than_chance_corrects_nothing(se, sp):
    errors = np.array([[se, 1 - se, 0], [1 - sp, sp, 0], [0, 0, 1.0]])
    assert uninformative(errors)
    rng = np.random.default_rng(0)
    side = Side(called([.3, .3, .4], SOUND, 50, rng), 40 * SOUND, (9, 10))
    found = corrected_gain(side, side._replace(counts=40 * errors), draws=100)
    assert found.corrected[list(ROLES)].isna().all() and set(found.note[list(ROLES)]) == {NOT_CORRECTED}
    assert "cannot be corrected" in NOT_CORRECTED and not found.note["about"]   # which asks for other labels
    assert not np.isnan(found.raw).any()


def test_what_was_not_labelled_is_not_corrected():
    side = Side(np.eye(3)[[0, 1, 2, 2]], np.diag([5.0, 0, 5]))
    found = corrected_gain(side, side, draws=100)
    assert set(found.note) == {NOT_CORRECTED, NOT_LABELLED} and found.low.isna().all()


def test_few_labels_leave_any_gain_possible():
    "Three of five right: better than chance, but not shown to be."
    few = np.array([[3, 2, 0], [2, 3, 0], [0, 0, 5.0]])
    side = Side(np.eye(3)[np.arange(60) % 3], few)
    found = corrected_gain(side, side, draws=400)
    assert (found.note[list(ROLES)] == TOO_FEW).all() and (found.low["good"], found.high["good"]) == (-1, 1)


def test_more_labels_and_more_questions_narrow_the_interval():
    def width(questions, labelled):
        rng = np.random.default_rng(1)
        one, other = (Side(called(t, EVEN, questions, rng), labelled * EVEN) for t in ([.2, .1, .7], [.7, .1, .2]))
        found = corrected_gain(one, other, draws=1000)
        return found.high["good"] - found.low["good"]
    assert width(400, 1000) < width(60, 1000) < width(60, 12)


def test_what_a_question_does_to_both_sides_cancels():
    shares = np.eye(3)[np.arange(90) % 3]
    one = Side(shares, 1e5 * SOUND)
    same = corrected_gain(one, one, draws=500)
    other = corrected_gain(one, one._replace(shares=shares[::-1]), draws=500)
    assert (same.corrected[list(ROLES)] == 0).all()
    assert np.ptp(same.loc["good", ["low", "high"]]) < .4 * np.ptp(other.loc["good", ["low", "high"]])


CELLS = {"uneven": ([.2, .1, .7], [.4, .45, .15], EVEN, UNEVEN), "no difference": ([.3, .3, .4], [.3, .3, .4], EVEN, UNEVEN),
         "floor": ([.9, .1, 0], [.5, .5, 0], EVEN, UNEVEN)}


@pytest.mark.parametrize("cell", CELLS)
def test_the_interval_holds_the_truth(cell):
    "With as many labels as there are: 95% of intervals, less Monte-Carlo error (3 standard errors of 150 repetitions)."
    one, other, errors, uneven = CELLS[cell]
    rng, inside = np.random.default_rng(2), []
    for _ in range(150):
        sides = (Side(called(one, errors, 100, rng), labels(errors, (9, 30, 14), rng)), Side(called(other, uneven, 100, rng), labels(uneven, (13, 30, 10), rng)))
        if not all(side.known for side in sides): continue
        found = corrected_gain(*sides, draws=400).loc[list(ROLES)]
        truth = np.subtract(one, other)
        inside.append((found.low <= truth + 1e-9) & (truth - 1e-9 <= found.high))
    assert len(inside) > 140 and (np.mean(inside, axis=0) >= .95 - 3 * np.sqrt(.95 * .05 / 150)).all()


# A study's table


def a_study(truths, errors, questions=400, seed=0, model="smollm2-135m"):
    "Answers of a model as they are called: {vector: what they are}, {vector: errors}."
    rng, parts = np.random.default_rng(seed), []
    for vector, truth in truths.items():
        frame = pd.DataFrame(called(truth, errors[vector], questions, rng), columns=list(ROLES))
        parts.append(frame.assign(model=model, seed=0, vector=vector, vector_sample=-1, coefficient=-1.0 if vector else 0.0,
                                  question=[f"q{i:04}" for i in range(questions)]))
    return pd.concat(parts, ignore_index=True)


def labels_of(errors, n=400, seed=1, model="smollm2-135m"):
    "Labelled answers of both kinds of vector, equally many of each outcome, and what they are called."
    rng, rows = np.random.default_rng(seed), []
    for kind, matrix in errors.items():
        for i, outcome in enumerate(OUTCOMES):
            for j in rng.choice(3, n, p=matrix[i]): rows.append((model, kind, outcome, OUTCOMES[j]))
    table = pd.DataFrame(rows, columns=["model", "kind", "outcome", "said"]).assign(weight=1.0)
    apart = np.where(table.kind == "direction", .6, .9) > rng.random(len(table))
    return table.assign(about=np.where((table.outcome == "good") & apart, "yes", "no"))


TRUTH = {"": [.9, .0, .1], "direction": [.2, .2, .6], "random": [.2, .6, .2]}


def known():
    "A study whose errors are known: the direction has as much code as its controls, and looks as if it had less."
    frame = a_study(TRUTH, {"": SOUND, "direction": EVEN, "random": UNEVEN})
    table = labels_of({"none": SOUND, "direction": EVEN, "control": UNEVEN})
    counts = confusion_counts(table, table.said)
    sound = confusion_counts(table[table.kind == "none"], table.said[table.kind == "none"])
    counts = pd.concat([counts[counts.kind != "all"], sound[sound.kind == "all"]])   # unsteered answers err like these
    return frame, Labelled(counts, about_counts(table, table.said))


def test_a_corrected_gain_recovers_the_truth_and_the_raw_one_does_not():
    frame, labelled = known()
    gains = corrected_gains(frame, CODE, labelled, ["direction", "random"]).set_index(["gain of", "over", "counted"])
    held = []
    for (one, other, counted), row in gains.iterrows():
        if counted.endswith("question"): continue
        truth = TRUTH[one][OUTCOMES.index(counted)] - TRUTH[other.replace("no steering", "")][OUTCOMES.index(counted)]
        held.append(row.low <= truth <= row.high)
    assert len(held) == 6 and sum(held) >= 5   # of 95% intervals
    code = gains.loc[("direction", "random", "code")]
    assert code.raw < code.low <= 0 <= code.high   # .0 in truth
    own = gains.loc[("random", "no steering", "code")]
    assert own.raw > own.high


def test_good_and_about_the_question_weighs_what_is_called_good():
    frame, labelled = known()
    gains = corrected_gains(frame, CODE, labelled, ["direction", "random"]).set_index(["gain of", "over", "counted"])
    share = {r.kind: r.about / r.called for r in labelled.about.itertuples()}
    seen = frame.groupby("vector").good.mean()
    row = gains.loc[("direction", "random", "good and about the question")]
    assert row.corrected == pytest.approx(share["direction"] * seen["direction"] - share["control"] * seen["random"])
    assert row.low < row.corrected < row.high and row.raw == pytest.approx(seen["direction"] - seen["random"])
    assert row.corrected < row.raw   # more of the direction's good answers miss their question


def test_models_without_labels_are_left_out_and_absent_vectors_are_no_rows():
    frame, labelled = known()
    assert corrected_gains(frame.assign(model="another"), CODE, labelled).empty
    assert set(corrected_gains(frame, CODE, labelled, ["direction", "orthogonal"], draws=50)["gain of"]) == {"direction"}


# Labels


def test_the_shipped_counts_are_what_the_command_makes_of_the_labels():
    "tools/instrument_rates.py"
    test, both = judged_answers("test"), judged_answers()
    said = said_of(CODE, test)
    pd.testing.assert_frame_equal(confusion_counts(test, said), pd.read_csv(shipped() / "instrument_confusion.csv"))
    pd.testing.assert_frame_equal(about_counts(both, said_of(CODE, both)), pd.read_csv(shipped() / "instrument_about.csv"))


def test_counts_by_kind_are_those_of_the_labels_and_pooled_are_those_that_correct_rates():
    test = judged_answers("test").assign(said=lambda t: said_of(CODE, t))
    counts = pd.read_csv(shipped() / "instrument_confusion.csv").set_index(["model", "kind", "outcome"])
    for (model, kind, outcome), row in counts.iterrows():
        part = test[(test.model == model) & (test.outcome == outcome) & ((test.kind == kind) | (kind == "all"))]
        assert row.labelled == len(part) and row[list(OUTCOMES)].sum() <= len(part) + .03
        share = (part.weight * (part.said == outcome)).sum() / part.weight.sum()
        assert row[outcome] / row[list(OUTCOMES)].sum() == pytest.approx(share, abs=.01)
    pooled = instrument_counts(test, test.said).set_index(["model", "outcome"])
    for (model, outcome), row in pooled.iterrows():
        here = counts.loc[(model, "all", outcome)]
        size = here[list(OUTCOMES)].sum()   # found is rounded to whole answers
        assert row.cases == int(size) and row.found / row.cases == pytest.approx(here[outcome] / size, abs=.51 / row.cases)


def test_counts_by_kind_leave_the_frozen_rules_of_the_audit_alone():
    "instrument_rates.csv is in their hash: counts by kind lie beside it."
    assert audit_errors.audit_rules() == audit_errors.FROZEN


def test_whose_gains_can_be_corrected():
    assert labelled_errors(SMALL, CODE).models == sorted(SMALL.models) and why_not_corrected(SMALL, CODE) == ""
    for profile, looked_for, said in ((load_profile("tiny"), CODE, "exact"), (load_profile("medium"), CODE, "labelled"),
                                      (SMALL, behaviour("advice"), "labelled")):
        assert said in why_not_corrected(profile, looked_for)
    assert labelled_errors(load_profile("tiny"), CODE).models == labelled_errors(SMALL, behaviour("advice")).models == []
    medium = why_not_corrected(load_profile("medium"), CODE)
    assert "Qwen" in medium and "Gemma" not in medium


def test_the_words_on_the_instrument_are_its_numbers():
    words = errors_said(SMALL.models, CODE)
    for said in ("31 of 32 under the direction", "37 of 46 under controls", "9 of 9", "16 of 22", "38 of 42", "45 of 50", "7 of 8", "9 of 13",
                 "could not be shown for code", "looks larger than it is"): assert said in words


# The pages


def cells(book): return {c["id"]: "".join(c["source"]) for c in json.loads((ROOT / "nbs" / book).read_text(encoding="utf-8"))["cells"]}


def shown(book, prefix, profile, looked_for, frame):
    "What a page's cells on corrected gains save and say of a frame."
    said, saved, ids = [], {}, cells(book)
    def table(frame, name): saved[name] = frame
    def say(template, **values):
        text = template.format(**values)
        said.append(text)
        return text
    space = {"study": SimpleNamespace(profile=profile, table=table, say=say), "looked_for": looked_for, "frame": frame, "inside": frame,
             "ranked_kinds": ranked_kinds}
    for name in [n for n in ids if n.startswith(prefix) and not n.endswith("-md")]: exec(ids[name], space)
    return saved, [s for s in said if s]


def steered_frame(models):
    truths = TRUTH | {"orthogonal": [.3, .5, .2]}
    return pd.concat([a_study(truths, dict.fromkeys(truths, EVEN), questions=60, model=m) for m in models])


BOOKS = [("03_steering.ipynb", "steering-corrected", 1), ("06_specificity.ipynb", ("specificity-corrected", "specificity-errors"), 5)]


@pytest.mark.parametrize("book, prefix, pairs", BOOKS)
def test_pages_correct_in_profile_small(book, prefix, pairs):
    saved, said = shown(book, prefix, SMALL, CODE, steered_frame(SMALL.models))
    numbers, words = saved.values()
    assert len(numbers) == len(words) == 2 * 3 * pairs and (numbers.note == "").all()
    assert ((numbers.low <= numbers.corrected) & (numbers.corrected <= numbers.high)).all()
    assert "sensitivity analysis that is no part of the verdict" in said[0] and "becomes" in said[0]


@pytest.mark.parametrize("book, prefix, pairs", BOOKS)
@pytest.mark.parametrize("profile, looked_for", [("tiny", "code"), ("small", "advice")])
def test_pages_say_why_there_is_nothing_to_correct(book, prefix, pairs, profile, looked_for):
    profile = load_profile(profile)
    saved, said = shown(book, prefix, profile, behaviour(looked_for), steered_frame(profile.models))
    assert not saved and said == [why_not_corrected(profile, behaviour(looked_for))] and said[0]


def test_a_gain_that_cannot_be_corrected_is_said_to_be_so():
    frame, labelled = known()
    flat = labelled.confusion.assign(code=10.0, good=10.0, incoherent=10.0)
    gains = corrected_gains(frame, CODE, labelled._replace(confusion=flat), draws=50)
    assert "cannot be corrected" in gains_said(gains, "good")
    assert (gains_shown(gains).corrected.str.startswith("cannot be corrected")).tolist() == [True, False, True]
    assert tuple(COUNTED[:3]) == ROLES
