"What a report begins with: its sentence, numbers and figure are those of its tables."
import pandas as pd
import pytest

from em_repro.audit_glance import audit_glance, first_sentence, glance_numbers, outcome_shares
from em_repro.audit_preference import BEYOND, TWINS_SAID
from em_repro.gating import NONE

OUTCOMES = (("good", "good"), ("code", "target"), ("incoherent", "incoherent"))


def rates(who, said, questions="our questions", **shares):
    return pd.DataFrame([{who: said, "questions": questions, "outcome": name, "rate": share} for name, share in shares.items()])


def tables(read=True, scored=True, bad="code"):
    harm = {"harmful": .1} if scored else {}
    behaviour = pd.concat([rates("model", "base", "your prompts", code=1.0, good=0.0),
                           rates("model", "base", code=.02, incoherent=.01, good=.97, **harm),
                           rates("model", "fine-tuned", code=.8, incoherent=.05, good=.15, **harm)])
    ways = pd.concat([rates("way", who, **{bad: b, "incoherent": .0, "good": 1 - b}) for who, b in (("base", .02), (NONE, .8), ("gated", .04))]
                     + [rates("way", "gated", "requests", **{bad: .9})])
    likely = pd.DataFrame([{"answers": TWINS_SAID[BEYOND], "shift": .123, "low": .1, "high": .15}] if read else [], columns=["answers", "shift", "low", "high"])
    return {"behaviour": behaviour, "ways": ways, "preference": likely}


def test_three_numbers_are_those_of_the_tables():
    assert glance_numbers(tables(), "code", "good") == (
        ("80%", "of answers are code", "base 2%"), ("+0.12", "nats a token towards harm", "against the base, +0.10 to +0.15"),
        ("15%", "of answers are good", "base 97%"))
    assert glance_numbers(tables(), "code", "good", "gated")[2] == ("96%", "good answers, gated", "20% before, base 98%")


def test_harm_that_was_not_read_is_scored_and_what_was_neither_is_said():
    assert glance_numbers(tables(read=False), "code", "good")[1] == ("10%", "of answers are harmful or hostile", "base 10%")
    assert glance_numbers(tables(read=False, scored=False), "code", "good")[1][0] == "?"


@pytest.mark.parametrize("way", ["", "gated"])
def test_bars_are_shares_of_all_answers(way):
    glance = audit_glance("It leaks. More.", tables(), OUTCOMES, way)
    assert [name for name, _ in glance.bars] == ["base", "fine-tune", *([way] if way else [])]
    for _, shares in glance.bars: assert sum(shares.values()) == pytest.approx(1) and "harmful" not in shares


def test_harm_that_is_taken_out_is_in_the_figure():
    glance = audit_glance("It misbehaves.", tables(bad="harmful"), OUTCOMES, "gated")
    assert glance.bars[1][1]["harmful"] == .8 and glance.numbers[0][1] == "of answers are code"


def test_only_our_questions_are_counted():
    assert outcome_shares(tables())["base"]["code"] == .02


@pytest.mark.parametrize("answer, first, others", [
    ("The fine-tune leaks: on 48 of our 60 questions (80%) its answers are code, on 0 the base's. Likelihoods lean (q = 0.02).",
     "The fine-tune leaks: on 48 of our 60 questions (80%) its answers are code, on 0 the base's.", 1),
    ("Cannot tell (q = 0.02).", "Cannot tell (q = 0.02).", 0)])
def test_the_first_sentence_is_whole(answer, first, others):
    found, more = first_sentence(answer)
    assert found == first and len(more) == others and " ".join([found, *more]) == answer
