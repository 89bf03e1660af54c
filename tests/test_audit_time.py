"How long an audit takes: more to ask takes longer, and it is said before anything is asked."
import pytest
import torch

from em_repro import audit as audits
from em_repro import audit_time as module
from em_repro.audit_inputs import QUICK, AdapterFile, Setup, Sizes
from em_repro.audit_time import audit_minutes, this_machine, time_words
from em_repro.plan import machine
from em_repro.profiles import UserError
from em_repro.subjects import Subject

TWO = machine("cpu-2")


def of(sizes=QUICK, base="tiny-llama", **more):
    return Setup(Subject(base), AdapterFile("an/adapter", ""), None, (), sizes, .1, 0, **more)


@pytest.fixture(scope="module")
def quick(): return audit_minutes(of(), TWO)


@pytest.mark.parametrize("name, value", [
    ("evaluation", 60), ("development", 40), ("directions", 80), ("twins", 120), ("max_new_tokens", 64)])
def test_more_to_ask_takes_longer_whatever_is_found(name, value, quick):
    more = audit_minutes(of(QUICK.model_copy(update={name: value})), TWO)
    assert more[0] > quick[0] and more[1] > quick[1]


@pytest.mark.parametrize("name, value", [
    ("layers", 2), ("coefficients", (0, -.25, -.5, -1, -2, -4)), ("samples", 20),
    ("skill_requests", 60), ("nll_answers", 32)])
def test_more_to_subtract_takes_longer_where_there_is_something(name, value, quick):
    more = audit_minutes(of(QUICK.model_copy(update={name: value})), TWO)
    assert more[0] == pytest.approx(quick[0]) and more[1] > quick[1]


def test_a_larger_model_and_fewer_processes_take_longer(quick):
    large = audit_minutes(of(base="smollm2-135m"), TWO)
    assert large[0] > quick[0] and large[1] > quick[1] and large[1] > 1.5 * large[0]
    assert audit_minutes(of(), machine("cpu-1")) == pytest.approx([2 * x for x in quick])
    own = audit_minutes(Setup(Subject("tiny-llama"), AdapterFile("a", ""), None, ("Why?",) * 50, QUICK, .1, 0), TWO)
    assert own[0] > quick[0]


def test_the_line_has_whole_minutes_and_says_what_they_hang_on(monkeypatch):
    for minutes, words in (((2.2, 7.9), "about 3 to 8 minutes on this machine"), ((.1, .4), "about 1 minute on this machine"),
                           ((30.0, 63.0), "about 30 to 65 minutes on this machine")):
        monkeypatch.setattr(module, "audit_minutes", lambda *_: minutes)
        assert time_words(of(), 2).startswith(words)
    assert "lm-eval apart" in time_words(of(tasks=("arc",)), 2)


def test_what_cannot_be_known_is_said_and_stops_nothing(monkeypatch):
    def unlike(*_): raise UserError("its configuration does not ship")
    monkeypatch.setattr(module, "audit_minutes", unlike)
    assert time_words(of(), 2) == "How long it takes is not known for this model."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert this_machine(2).name == "h200"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Other Card")
    assert this_machine(2) is None and time_words(of(), 2) == "How long it takes is not known for this GPU."


class Stopped(Exception): pass


def test_it_is_said_before_the_first_stage(monkeypatch, tmp_path, capsys):
    names = {"base": "tiny-llama", "tuned": "tuned", "reference": ""}
    monkeypatch.setattr(audits, "hashes_of", lambda _: {"base": "a", "tuned": "b"})
    def stopping(*_): raise Stopped
    monkeypatch.setattr(audits, "driven", stopping)
    events = []
    def audit_in(watch):
        with pytest.raises(Stopped): audits._audit_in(tmp_path / "out", of(), names, [], 1, 1, watch)
    audit_in(lambda *event: events.append(event))
    (event, line), = events
    assert event == "estimate" and line.startswith("about ") and capsys.readouterr().out == ""
    audit_in(None)
    assert capsys.readouterr().out.splitlines()[0] == line
