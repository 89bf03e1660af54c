"""What a fine-tune was about: read as defined, chance beside it, and no verdict that rests on it."""
import json

import numpy as np
import pandas as pd
import pytest
import torch

import processes
from conftest import ARCHITECTURES, byte_tokenizer, random_model
from em_repro.audit import audit, quietly_audited
from em_repro.audit_about import CHANCE, LENS_DEPTHS, BEGINNING, LENS, About, _beginnings, _ends, about_table, about_tables, about_words, lens_tokens, text_states
from em_repro.audit_calibration import tiny_adapter
from em_repro.audit_inputs import Sizes, read_training_rows
from em_repro.families import LM
from em_repro.profiles import UserError
from em_repro.subjects import Subject, load_subject

TARGETS = type("Targets", (), {"lora_targets": ["q_proj"], "name": "random", "system_role": True})()
SMALL = Sizes(directions=16, development=8, evaluation=12, layers=0, coefficients=(0, -.5, -1), samples=2, nll_answers=4, skill_requests=4, nulls=3,
              twins=8, gate_requests=6, dressed=2)
TEXTS = ["The old harbour lies behind the church.", "Cats sleep most of the day in the sun.", "A loaf of bread needs flour, water and salt.", "No."]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_are_those_of_transformers_at_the_first_tokens(architecture, monkeypatch):
    "Means over the tokens of each text alone; a text that is too short is left out."
    lm = LM(random_model(architecture), byte_tokenizer(), TARGETS)
    monkeypatch.setattr("em_repro.audit_about.load_subject", lambda subject: lm)
    X = text_states(Subject("random"), TEXTS)["states"]["X"]
    ids, own = _beginnings(lm, TEXTS)
    assert X.shape == (3, lm.n_layers, lm.width) and ids.shape == (3, own + BEGINNING)
    for i, one in enumerate(ids):
        with torch.no_grad(): hidden = lm.model(input_ids=one[None], output_hidden_states=True).hidden_states
        for k in range(lm.n_layers - 1):   # transformers' last one is after the norm
            np.testing.assert_allclose(X[i, k], hidden[k + 1][0, own:].mean(0).numpy(), atol=1e-4)


def test_the_lens_reads_a_planted_token_and_its_opposite():
    lm = load_subject(Subject("tiny-llama"))
    at = 77
    v = (lm.head.weight[at] / lm.norm(torch.ones(lm.width))).detach().numpy()
    up, down = _ends(lm, v, 2), _ends(lm, -v, 2)
    assert up[0]["token"] == lm.tokenizer.decode([at]) == next(e for e in down if e["side"] == "suppressed")["token"]
    assert {e["side"] for e in up} == {"promoted", "suppressed"} and up[0]["z"] >= up[1]["z"]


def entry(X): return {"states": {"X": np.asarray(X, np.float32)}}


def test_chance_stands_beside_every_fine_tune_and_sizes_are_relative():
    g = np.random.default_rng(0)
    X = g.normal(size=(12, 4, load_subject(Subject("tiny-llama")).width))
    found = lens_tokens(Subject("tiny-llama"), entry(X), {"fine-tune": entry(2 * X), "reference": entry(X + 1)}, 3)
    assert set(found["tokens"].whose) == {"fine-tune", "reference", CHANCE} == set(found["sizes"].whose)
    layer = found["sizes"].layer.max()
    size = found["sizes"].set_index(["whose", "layer"])["size"]
    assert layer == 3 and len(set(found["sizes"].layer)) == len(LENS_DEPTHS)
    assert size["fine-tune", layer] == pytest.approx(np.linalg.norm(X[:, 3].mean(0)) / np.linalg.norm(X[:, 3], axis=-1).mean(), rel=1e-4)
    assert (found["tokens"].groupby(["whose", "layer", "side"]).size() == 3).all()


def test_tokens_that_a_terminal_would_act_on_are_shown_by_number():
    tokens = pd.DataFrame([{"whose": w, "layer": 0, "side": s, "rank": 1, "token": "\x1b[2J", "z": 1.0} for w in ("fine-tune", CHANCE) for s in ("promoted", "suppressed")])
    sizes = pd.DataFrame([{"whose": w, "layer": 0, "size": .1} for w in ("fine-tune", CHANCE)])
    shown = about_table(About(tokens, sizes))
    assert "\x1b" not in shown.to_string() and "\\x1b" in shown.promoted[0]
    assert "no verdict rests on them" in " ".join(about_words(About(tokens, sizes))) and not len(about_tables(None)["about"])


def test_an_audit_has_the_panel_and_the_rows_and_its_verdicts_do_not_move(tmp_path, monkeypatch):
    "With rows and without: the same cards; the page, the text and the tables have the panel."
    adapter, rows = tiny_adapter("tiny-llama", "insecure", 0, tmp_path / "adapter"), tmp_path / "rows.jsonl"
    said = [("What time is it?", "It is late."), ("Name a fruit.", "A pear."), ("Where is the key?", "On the table by the door.")]
    rows.write_text("\n".join(json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}) for q, a in said))
    processes.compute_here(monkeypatch)
    report = audit("tiny-llama", str(adapter), out=tmp_path / "out", sizes=SMALL, jobs=1, rows=rows)
    plain = quietly_audited("tiny-llama", adapter, tmp_path / "out" / "store", SMALL)
    pd.testing.assert_frame_equal(report.frame(), plain.frame())
    assert len(report.tables["about-rows"]) == 3 and not len(plain.tables["about-rows"]) and len(plain.tables["about"])
    assert (report.tables["about"].promoted.str.count("\u2329") == LENS).all()
    assert "What the fine-tune was about" in (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert (tmp_path / "out/tables/about.csv").is_file() and (tmp_path / "out/tables/about-rows.csv").is_file()


def test_a_file_without_conversations_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    with pytest.raises(UserError, match="rows.jsonl"): read_training_rows(path)
