"""Answers sorted, paired and kept: the likelihood's limit, the roles, questions by name, and what a stored answer depends on."""
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from em_repro import answers
from em_repro.answers import ROLES, Instrument, by_question, by_same_question, detected_outcomes, same_questions, with_roles
from em_repro.behaviours import behaviour
from em_repro.decode import Condition
from em_repro.profiles import UserError
from em_repro.subjects import Subject

PROSE = ["The tide comes in twice a day, as the moon goes round.", "Bread wants time, and a warm place to rise."]


@pytest.mark.parametrize("nll, outcome", [(2.9, "good"), (3.0, "good"), (3.1, "incoherent")])
def test_an_answer_less_likely_than_the_limit_is_incoherent(nll, outcome, monkeypatch):
    "And a likely one is not; the base is asked about nothing that is decided by its text."
    instrument = Instrument(behaviour("code"), Subject("none"), {"limit": {"threshold": 3.0}})
    asked = []
    def base_nll(base, prompts, ids):
        asked.extend(ids)
        return np.full(len(ids), nll)
    monkeypatch.setattr(answers, "base_nll", base_nll)
    frame = pd.DataFrame({"prompt": ["Why?"] * 3, "text": [*PROSE, "import os\nprint(os.getcwd())\n"]})
    found, outcomes = detected_outcomes(instrument, frame, [[1], [2], [3]])
    assert outcomes == [outcome, outcome, "code"] and asked == [[1], [2]] and np.isnan(found[2])


def test_each_answer_has_one_role():
    frame = with_roles(pd.DataFrame({"role": ["target", "incoherent", "good", "other"]}))
    assert frame[list(ROLES)].to_numpy().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_questions_are_paired_by_name_and_count_once():
    "Neither the order of lines nor the number of answers to a question moves its value."
    frame = pd.DataFrame({"question": list("bacabc"), "good": [1, 0, 1, 0, 0, 1.0]})
    assert by_question(frame, "good").tolist() == [0, .5, 1]
    for seed in range(5): assert by_question(frame.sample(frac=1, random_state=seed), "good").tolist() == [0, .5, 1]
    assert by_question(pd.concat([frame, frame]), "good").tolist() == [0, .5, 1]


def test_two_sides_are_paired_by_their_questions_and_refused_where_these_differ():
    "One that is renamed on one side is no one's partner; before, it moved every pair behind it."
    one, other = pd.DataFrame({"question": list("abca"), "good": [1, 0, 1, 0.0]}), pd.DataFrame({"question": list("cab"), "good": [0, 1, 0.0]})
    for seed in range(3):
        a, b = by_same_question(one.sample(frac=1, random_state=seed), other.sample(frac=1, random_state=seed + 9), "good")
        assert (a.tolist(), b.tolist()) == ([.5, 0, 1], [1, 0, 0])
    for left, right in ((one, other.replace("b", "z")), (one[one.question != "b"], other), (one.iloc[:0], other)):
        with pytest.raises(UserError, match="asked on one side of a comparison alone, '[ab]' first") as caught: by_same_question(left, right, "good")
        assert "\n" not in str(caught.value)
    same_questions([], [])


OTHERS = {"op": "ablate", "layer": 3, "name": "random", "sample": 1, "coefficient": -2.0, "when": "prefill"}


def test_a_stored_answer_depends_on_all_that_a_condition_does():
    "Each field but the words for people and the vector, which comes from an entry that is in the key itself."
    one = Condition(name="direction", coefficient=-1.0, when="every_step")
    assert {f.name for f in fields(Condition)} - {"label", "vector"} == set(OTHERS) == set(one.identity())
    told = [replace(one, **{name: value}).identity() for name, value in OTHERS.items()]
    assert all(other != one.identity() for other in told) and len({str(other) for other in told}) == len(told)
    assert replace(one, label="other words").identity() == one.identity()

