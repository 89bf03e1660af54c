"Greedy answers beside llama.cpp's on the same file: what was recorded, and that the script tells agreement from its lack."
import csv, importlib.util
from collections import Counter
from pathlib import Path

import pytest

from em_repro.data import questions
from em_repro.models import MODELS
from em_repro.profiles import shipped

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("llamacpp_agreement", ROOT / "tools" / "llamacpp_agreement.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
RECORDED = list(csv.DictReader((shipped() / "robustness" / "llamacpp.csv").open(encoding="utf-8")))


@pytest.mark.parametrize("model", sorted({line["model"] for line in RECORDED}))
def test_what_was_recorded_is_agreement(model):
    "Counted again from the tokens: the same ids, then the file's own chat template, then a text."
    lines = [line for line in RECORDED if line["model"] == model]
    assert model in MODELS and Counter(line["form"] for line in lines) == {"ids": 20, "chat": 20, "text": 1}
    assert {line["prompt"] for line in lines if line["form"] == "ids"} == set(questions("development", n=20))
    for form in ("ids", "chat"):
        same = sum(line["here"].split()[:8] == line["llama.cpp"].split()[:8] for line in lines if line["form"] == form)
        assert same >= 18 and same == sum(line["agree"] == "8" for line in lines if line["form"] == form)
    assert all(line["same_prompt"] == "yes" for line in lines) and not tool.faults(model, lines)


def made(ours, theirs, own=None):
    "Lines of 20 questions and a text: `ours` and `theirs` are answers by question."
    ids = [7, 8, 9]
    rows = [("ids", f"q{i}", ids, a) for i, a in enumerate(ours)] + [("text", tool.TEXT, ids, ours[0])]
    there = [[own or ids, b, b] for b in theirs] + [[own or ids, theirs[0], theirs[0]]]
    return tool.compared("m", {"rows": rows, "version": "a"}, {"rows": there, "version": "b"})


SAME, OTHER = [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 9]


def test_answers_are_compared_from_their_first_token():
    lines = made([SAME, [1, 2], []] + [SAME] * 17, [OTHER, [1, 2], [5]] + [SAME] * 17)
    at = {line["prompt"]: line["agree"] for line in lines if line["form"] == "ids"}
    assert (at["q0"], at["q1"], at["q2"], at["q3"]) == (7, 8, 0, 8)   # an answer that ends early and is the same agrees
    assert {line["form"] for line in lines} == {"ids", "chat", "text"} and all(list(line) == list(tool.FIELDS) for line in lines)


@pytest.mark.parametrize("apart, own, said", [
    (2, None, []), (3, None, ["ids: 17 of 20 answers are the same", "chat: 17 of 20 answers are the same"]),
    (0, [7, 8], ["llama.cpp makes other token ids of a prompt"])])
def test_too_little_agreement_is_a_fault(apart, own, said):
    lines = made([SAME] * 20, [OTHER] * apart + [SAME] * (20 - apart), own)
    assert tool.faults("m", lines) == said


def test_a_known_answer_is_held_to(monkeypatch):
    lines = made([SAME] * 20, [SAME] * 20)
    monkeypatch.setitem(tool.KNOWN, "m", ([7, 8, 9], SAME[:4]))
    assert tool.faults("m", lines) == []
    monkeypatch.setitem(tool.KNOWN, "m", ([7, 8, 9], OTHER[::-1][:4]))
    assert tool.faults("m", lines) == ["after 'Once upon a time' comes 1 2 3 4 5 6 7 8"]


def test_a_models_lines_take_the_place_of_its_earlier_ones(tmp_path):
    path, first = tmp_path / "out.csv", made([SAME] * 20, [SAME] * 20)
    tool.write(first, path)
    tool.write([line | {"model": "n"} for line in first], path)
    tool.write(first[:3], path)
    assert Counter(line["model"] for line in csv.DictReader(path.open())) == {"n": 41, "m": 3}
