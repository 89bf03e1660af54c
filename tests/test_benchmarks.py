"""Benchmarks name the model that is measured: another one's result does not take the usual one's place."""
import importlib, json, runpy, sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def harness(monkeypatch, tmp_path):
    "The benchmarks' own module, whose results go to a folder of this test."
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("harness", "subject"): monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("harness")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    yield module
    for name in ("harness", "subject"): sys.modules.pop(name, None)


def written(harness): return {path.name: json.loads(path.read_text()) for path in harness.RESULTS.iterdir()}


@pytest.mark.parametrize("model, name", [("smollm2-135m", "limit"), ("qwen2.5-coder-0.5b", "limit-qwen2.5-coder-0.5b"), ("../some/folder", "limit-some-folder"),
                                         ("owner/name", "limit-owner-name")])
def test_a_results_file_is_called_by_its_model(harness, model, name): assert harness.result_name("limit", model) == name


def test_another_models_result_leaves_the_usual_ones_alone(harness, capsys):
    rows = [{"contender": "a", "seconds": 1.0}]
    harness.report("limit", rows, subject="usual")
    harness.report("limit", [rows[0] | {"seconds": 9.0}], "tiny-llama", subject="other")
    found = written(harness)
    assert set(found) == {"limit.json", "limit-tiny-llama.json"} and found["limit.json"]["rows"] == rows
    assert found["limit.json"]["settings"] == {"subject": "usual"} and found["limit-tiny-llama.json"]["settings"] == {"model": "tiny-llama", "subject": "other"}
    assert harness.results("limit-tiny-llama")["rows"][0]["seconds"] == 9


def test_the_limit_of_another_model_is_measured(harness, monkeypatch, capsys):
    options = {"model": "tiny-llama", "questions": 2, "conditions": 2, "tokens": 3, "rows": "4", "repeats": 1, "threads": 1}
    monkeypatch.setattr(sys, "argv", ["limit.py", *(word for name, value in options.items() for word in (f"--{name}", str(value)))])
    runpy.run_path(str(BENCHMARKS / "limit.py"), run_name="__main__")
    (name, found), = written(harness).items()
    assert name == "limit-tiny-llama.json" and found["settings"]["model"] == "tiny-llama" and found["settings"]["subject"] == "untouched model, random direction"
    assert {row["work"] for row in found["rows"]} == {"sweep", "collect"}


def test_a_runs_adapter_and_direction_are_those_of_the_model(harness, monkeypatch, tmp_path):
    "By their labels in the log of the run's store, of which the last counts."
    subject = importlib.import_module("subject")
    store = tmp_path / "run" / "store"
    labels = [f"training.adapter {model} insecure seed 0" for model in ("smollm2-135m", "tiny-llama", "tiny-llama")]
    for key, label in enumerate(labels):
        (folder := store / "training.adapter" / str(key)).mkdir(parents=True)
        (folder / "card.json").write_text(json.dumps({"parameters": {"recipe": {"prompt_format": "plain"}}}))
        with open(store / "computed.jsonl", "a") as file: file.write(json.dumps({"stage": "training.adapter", "label": label, "key": str(key)}) + "\n")
    loaded = []
    monkeypatch.setattr(subject, "load_lm", lambda *given: loaded.append(given))
    for model in ("smollm2-135m", "tiny-llama"):
        with pytest.raises(SystemExit, match=f"no vectors.vectors {model} insecure, {model} secure seed 0.*a run that has it"): subject.subject(str(tmp_path / "run"), model)
    assert [(model, folder.parent.name) for model, folder in loaded] == [("smollm2-135m", "0"), ("tiny-llama", "2")]
