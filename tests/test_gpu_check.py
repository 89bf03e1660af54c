"`make gpu-check` on a processor: its parts on a tiny model, and that one which fails, hangs or says nothing hides no other."
import argparse, importlib.util, json, os, re, sys
from pathlib import Path

import pytest
import torch

from em_repro import families as module
from em_repro.families import families

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tools" / "gpu_check.py")
gpu_check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu_check)


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(device="cpu", quick=True, model="tiny-llama", models=None, patience=1, out=tmp_path / "found.json")


@pytest.fixture
def dtypes():
    "A part says in its own process which numbers the model has; here the table is put back."
    before = families()["tiny-llama"]
    yield
    families()["tiny-llama"] = before


def test_all_of_it_is_at_most_eight_minutes():
    assert sum(gpu_check.LIMITS.values()) <= 8 * 60 and set(gpu_check.PARTS) == set(gpu_check.LIMITS)


@pytest.mark.parametrize("part", ["agreement", "benchmark", "nf4", "small, float32", "small, bfloat16"])
def test_a_part_does_what_it_says(args, tmp_path, part, dtypes, monkeypatch):
    "Smoke is `make smoke` of one family and runs in CI by itself. The kind of numbers reaches every model that is loaded."
    torch.set_num_threads(1)
    seen, load = set(), module.load_checkpoint
    monkeypatch.setattr(module, "load_checkpoint", lambda kind, folder, **settings: seen.add(str(settings["dtype"])) or load(kind, folder, **settings))
    if part == "nf4": pytest.importorskip("bitsandbytes")
    found = gpu_check.PARTS[part](args, tmp_path)
    assert found["ok"] is (found["ratio"] >= 1 if part == "benchmark" else True)   # a speed is not for a busy machine to decide
    assert found["said"] and json.loads(json.dumps(found)) == found
    if part == "agreement": assert found["float32"] == 1 and found["bfloat16 by rows"]
    if part.startswith("small"): assert found["coefficient"] in (-0.5, -1) and found["stages"] > 10 and seen == {f"torch.{part.split()[-1]}"}


def test_bitsandbytes_that_is_missing_fails_nothing(args, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert gpu_check.nf4(args, tmp_path) == {"ok": None, "said": "bitsandbytes is not installed: pip install bitsandbytes"}


FATES = {"fine": "import json; print('a line before'); print(json.dumps({'ok': True, 'said': 'all well'}))",
         "fails": "raise ValueError('the card is on fire')", "hangs": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
         "killed": "import os; os.kill(os.getpid(), 9)", "junk": "print('{')"}
SAID = {"fine": (True, "all well"), "fails": (False, "ValueError: the card is on fire"), "hangs": (False, "not done in 3 s"),
        "killed": (False, "ended with -9"), "junk": (False, "ended with 0")}


def test_what_becomes_of_one_part_hides_no_other(args, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "LIMITS", dict.fromkeys(FATES, 60) | {"hangs": 3})
    monkeypatch.setattr(gpu_check, "command", lambda part, args: [sys.executable, "-c", FATES[part]])
    rows = [gpu_check.outcome(part, args) for part in FATES]
    assert {row["part"]: (row["ok"], row["said"]) for row in rows} == SAID
    assert gpu_check.report(rows, args) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in told[:5]] == ["ok", "FAILED", "FAILED", "FAILED", "FAILED"] and "nothing about a GPU is verified" in told[-1]
    kept = json.loads(args.out.read_text())
    assert [row["part"] for row in kept["parts"]] == list(FATES) and {"device", "torch", "transformers"} <= set(kept["machine"])


def test_what_could_not_be_tried_is_no_failure(args, capsys):
    rows = [{"part": "nf4", "ok": None, "seconds": 1, "said": "bitsandbytes is not installed"}, {"part": "smoke", "ok": True, "seconds": 2, "said": "11 verdicts"}]
    assert gpu_check.report(rows, args) == 0 and "not tried" in capsys.readouterr().out


def test_without_a_gpu_a_part_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="PyTorch sees no GPU here"): gpu_check.run_part(argparse.Namespace(device="cuda", part="nf4"))


@pytest.mark.parametrize("words, said", [
    (["--parts", "nf5"], "no part nf5"), (["--model", "smollm2-135m", "--models", "nowhere"], "smollm2-135m is not in .*nowhere: fetch it where there is a network"),
    (["--model", "gpt"], "gpt is no shipped model")])
def test_what_cannot_be_done_is_said_before_anything(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *words])
    with pytest.raises(SystemExit) as end: gpu_check.main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert re.search(said, error)


def test_the_processes_are_told_where_models_are_and_have_no_network(args, tmp_path):
    args.models = tmp_path
    given = gpu_check.environment(args)
    assert given["EM_REPRO_CACHE"] == str(tmp_path) and given["HF_HUB_OFFLINE"] == "1" and given["CUDA_VISIBLE_DEVICES"] == ""
    args.device = "cuda"
    assert gpu_check.environment(args).get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")
