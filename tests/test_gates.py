"Gates: which prompts are steered. Fitted on activations, read live in every pass, and in sweeps; what does not fit is refused."
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from em_repro.activations import collect
from em_repro.behaviours import for_behaviour
from em_repro.decode import Condition, sweep
from em_repro.families import family, load_lm, weights
from em_repro.gates import Gate, Gated, check_gate, fit_gate, gate_words, of_model, revision_of
from em_repro.gating import (GATED, GATED_ONCE, KEYWORDS, METHODS, NONE, ONCE, PLAIN, AS_WANTED, by_method, gate_of, gating_prompts, gating_table,
                             gating_tests, hard_prompts, keyword_gate, last_states, recommended, sweep_gated)
from em_repro.profiles import UserError, load_profile
from em_repro.steering import Point

PROMPTS = ["How are you today?", "What is the tide?", "Why do cats purr when they are held?", "Hi."]


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-gemma2"])
def lm(request): return load_lm(request.param)


@pytest.fixture(scope="module")
def push(lm):
    v = np.random.default_rng(0).normal(size=lm.width)
    return (24 * v / np.linalg.norm(v)).astype(np.float32)


def gate_for(lm, wanted, layer):
    "A gate that opens for the wanted of PROMPTS: exact, by least squares (there are more dimensions than prompts)."
    X = last_states(lm, PROMPTS, layer).astype(float)
    w = np.linalg.lstsq(X, np.where(wanted, 1.0, -1.0), rcond=None)[0]
    gate = Gate(w, layer, 0.0)
    assert gate.opens(X).tolist() == list(wanted)
    return gate


def test_a_batch_gets_the_steered_answer_where_the_gate_opens_and_the_plain_one_elsewhere(lm, push):
    "Each row by itself, with padding, at both times, at and before the edited block."
    said = {}
    for when in ("every_step", "prefill"):
        with lm.steered(push, dose=1.0, when=when): said[when] = lm.generate(PROMPTS, max_new_tokens=12)
    plain = lm.generate(PROMPTS, max_new_tokens=12)
    assert any(a != b for a, b in zip(plain, said["every_step"]))
    for wanted in ([True, False, True, False], [False] * 4, [True] * 4, [False, False, False, True]):
        for layer in (0, lm.n_layers - 1):
            gated = Gated(push, gate_for(lm, wanted, layer))
            for when, steered in said.items():
                with lm.steered(gated, dose=1.0, when=when): found = lm.generate(PROMPTS, max_new_tokens=12)
                assert found == [s if yes else p for yes, s, p in zip(wanted, steered, plain)]


def test_without_a_cache_and_from_transformers_alone_it_is_the_same(lm, push):
    wanted = [True, False, True, False]
    gated = Gated(push, gate_for(lm, wanted, 0))
    ids = [[int(i) for i in row] for row in lm.encode(PROMPTS)]
    for use_cache in (True, False):
        for row, open_ in zip(ids, wanted):
            def ask(): return lm.model.generate(torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long), max_new_tokens=8,
                                                do_sample=False, use_cache=use_cache)[0, len(row):].tolist()
            plain = ask()
            with lm.steered(push, dose=1.0): steered = ask()
            with lm.steered(gated, dose=1.0): assert ask() == (steered if open_ else plain)


def test_a_gate_reads_each_call_anew(lm, push):
    "What a call before has opened does not stay open."
    gated = Gated(push, gate_for(lm, [True, False, False, False], 0))
    plain = [lm.generate(p, max_new_tokens=8) for p in PROMPTS]
    with lm.steered(push, dose=1.0): first = lm.generate(PROMPTS[0], max_new_tokens=8)
    with lm.steered(gated, dose=1.0):
        for _ in range(2):
            assert lm.generate(PROMPTS[0], max_new_tokens=8) == first and lm.generate(PROMPTS[1], max_new_tokens=8) == plain[1]
    assert not lm.decoder._forward_pre_hooks and not any(block._forward_hooks for block in lm.blocks)


def test_a_sweep_with_a_gate_is_what_is_said_live(lm, push):
    wanted = [True, False, False, True]
    gate = gate_for(lm, wanted, lm.n_layers - 1)
    with lm.steered(Gated(push, gate), dose=1.0): live = lm.generate(PROMPTS, max_new_tokens=12)
    made = sweep_gated(lm, PROMPTS, Condition("push", push), gate, max_new_tokens=12)
    assert made.frame().text.tolist() == live and made.frame().prompt.tolist() == PROMPTS
    for all_open in (True, False):
        one = sweep_gated(lm, PROMPTS, Condition("push", push), Gate(gate.vector, gate.layer, -1e9 if all_open else 1e9), max_new_tokens=8)
        other = sweep(lm, PROMPTS, [Condition("push", push if all_open else None)], max_new_tokens=8)
        assert one.frame().text.tolist() == other.frame().text.tolist()


def test_samples_stay_with_their_prompts(lm, push):
    gate = gate_for(lm, [False, True, True, False], 0)
    made = sweep_gated(lm, PROMPTS, Condition("push", push), gate, max_new_tokens=6, samples=3, temperature=1.0).frame()
    assert made.prompt.tolist() == np.repeat(PROMPTS, 3).tolist() and made["sample"].tolist() == [0, 1, 2] * 4
    plain = sweep(lm, [PROMPTS[0]], [Condition("push")], max_new_tokens=6, samples=3, temperature=1.0).frame()
    assert made.text.tolist()[:3] == plain.text.tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 3))
def test_the_block_that_tells_prompts_apart_is_found(seed, layers, place):
    rng, at = np.random.default_rng(seed), place % layers
    opening, closing = rng.normal(size=(2, 30, layers, 12))
    opening[:, at, rng.integers(12)] += 8
    numbers = [3 * i + 1 for i in range(layers)]
    gate, tried = fit_gate(opening, closing, numbers)
    assert gate.layer == numbers[at] and tried.chosen.sum() == 1 and tried.accuracy.between(0, 1).all()
    assert gate.opens(opening[:, at]).mean() > .9 > .1 > gate.opens(closing[:, at]).mean()
    assert np.isclose(np.linalg.norm(gate.vector), 1)


def test_prompts_that_are_alike_are_not_told_apart():
    "Held out: a fit would be perfect in more dimensions than prompts."
    X = np.random.default_rng(1).normal(size=(2, 40, 3, 200))
    _, tried = fit_gate(*X, [0, 1, 2])
    assert (tried.accuracy < .7).all()


def test_what_makes_no_gate_is_refused(lm):
    X = np.zeros((10, 2, 4))
    for words, arguments in {"needs at least 5": (X[:3], X, [0, 1]), "shape": (X, X, [0]), "leave alone": (X, X[:, :, :3], [0, 1]),
                             "not finite": (X, X * np.nan, [0, 1])}.items():
        with pytest.raises(UserError, match=words): fit_gate(*arguments)
    for vector, threshold in (([0, 0], 0), ([1, np.inf], 0), ([[1, 2]], 0), ([1, 2], np.nan)):
        with pytest.raises(UserError, match="finite numbers"): Gate(np.array(vector, float), 0, threshold)
    with pytest.raises(UserError, match="gate of this model"): Gate(np.ones(3), 0, 0.0).opens(np.ones((2, 4)))


def test_a_gate_that_does_not_fit_is_refused_before_anything_is_asked(lm, push):
    fine, other = Gate(np.ones(lm.width), 1, 0.0), Gate(np.ones(lm.width + 1), 0, 0.0)
    with pytest.raises(UserError, match="gate of this model"): lm.steered(Gated(push, other))
    with pytest.raises(UserError, match="blocks 0 to"): lm.steered(Gated(push, Gate(np.ones(lm.width), 99, 0.0)))
    with pytest.raises(UserError, match="behind the edited block 0"): lm.steered(Gated(push, fine), layer=0)
    with pytest.raises(UserError, match="every block"): lm.steered(Gated(push, fine), layer="all", op="ablate")
    check_gate(lm, fine, 1)


def test_a_gate_of_another_model_of_the_same_shape_is_refused(lm, push, tmp_path):
    "Of a copy whose weights are others, too: what counts is what they are, not what they are called."
    import shutil
    from safetensors.torch import load_file, save_file
    copy = tmp_path / lm.family.name
    shutil.copytree(weights(lm.family), copy)
    same = of_model(Gate(np.ones(lm.width), 0, 0.0), family(copy))
    assert same.family == lm.family.name and same.revision == revision_of(lm) != ""
    with lm.steered(Gated(push, same), dose=1.0): pass   # the same weights elsewhere are the same model
    tensors = load_file(copy / "model.safetensors")
    save_file({name: t * 1.01 for name, t in tensors.items()}, copy / "model.safetensors", {"format": "pt"})
    other = of_model(Gate(np.ones(lm.width), 0, 0.0), family(copy))
    with pytest.raises(UserError, match="the gate was made on .* and this model is .*: give the gate of this model"):
        lm.steered(Gated(push, other))
    check_gate(load_lm(copy), other, 0)
    for unknown in (Gate(other.vector, 0, 0.0), of_model(other, None)):   # nothing is known of one, nothing new of the other
        assert unknown.revision in ("", other.revision)
    check_gate(lm, Gate(other.vector, 0, 0.0), 0)
    nameless = type("Sized", (), {"width": lm.width, "n_layers": lm.n_layers})()
    check_gate(nameless, other, 0)


def test_a_fitted_gate_knows_its_model_and_keeps_it(lm):
    X = np.random.default_rng(2).normal(size=(2, 10, 1, lm.width))
    gate, _ = fit_gate(*X, [0], model=lm)
    assert (gate.family, gate.revision) == (lm.family.name, revision_of(lm)) and of_model(gate, family("tiny-qwen2")) is gate
    assert fit_gate(*X, [0])[0].revision == ""


def test_a_gate_that_tells_nothing_apart_says_so():
    assert "does what plain steering does" in gate_words(np.ones(4, bool)) and "does what no steering does" in gate_words(np.zeros(4, bool))
    assert gate_words(np.array([True, False])) == "the gate opens for 1 of 2 prompts"


def test_hard_prompts_are_what_their_card_says():
    prose, code = hard_prompts("prose"), hard_prompts("code")
    assert len(prose) == len(code) == 24 and len(set(prose + code)) == 48
    assert not any(word in p.lower().split() for p in code for word in ("code", "program", "function", "script"))
    with pytest.raises(UserError, match="choose prose or code"): hard_prompts("verse")


def test_no_reported_prompt_is_one_that_a_gate_was_fitted_on():
    from em_repro.behaviours import prompts_of
    from em_repro.gating import _requests
    for name in ("smoke", "small"):
        profile = load_profile(name)
        shown = {p for some in gating_prompts(profile).values() for p in some}
        fitted = {*prompts_of(profile, "development"), *_requests(profile)[1]}
        assert not shown & fitted and len(_requests(profile)[1]) >= 40
    with pytest.raises(UserError, match="choose code"): gating_prompts(for_behaviour(load_profile("smoke"), "advice"))


def table_of(**shares):
    "Answers of one model to 60 prompts a set, of which the given shares are as wanted: {method: (ordinary, requests)}."
    rows = [{"model": "m", "set": of, "method": method, "question": i, "wanted": float(i < round(60 * share))}
            for method, both in shares.items() for of, share in zip(("ordinary", "requests"), both) for i in range(60)]
    return pd.DataFrame(rows).replace({"method": {"NONE": NONE, "PLAIN": PLAIN, "GATED": GATED}})


@pytest.mark.parametrize("gated, kept", [((1, 1), [True, True]), ((.8, 1), [False, True]), ((1, .8), [True, False]), ((.5, .5), [False, False])])
def test_a_gate_is_recommended_only_where_it_is_shown_to_keep_both(gated, kept):
    tests = gating_tests(table_of(NONE=(.1, 1), PLAIN=(1, .1), GATED=gated))
    assert tests.kept.tolist() == kept and recommended(tests) == {"m": GATED if all(kept) else NONE}
    assert np.allclose(tests.difference, [gated[0] - 1, gated[1] - 1])


def test_each_method_takes_the_answers_that_are_its_own():
    point = Point(-0.5, "every_step")
    said = pd.DataFrame([{"question": q, "coefficient": c, "when": w, "role": "good", "text": f"{q} {c}"} for q in ("Write code", "What is a tide?")
                         for c, w in ((0.0, "every_step"), (-0.5, "every_step"), (-1.0, "prefill"))])
    made = by_method(said, pd.Series({"Write code": True, "What is a tide?": False}), point)
    text = made.pivot(index="method", columns="question", values="text")
    assert set(text.index) == set(METHODS)
    assert text.loc[NONE].tolist() == ["What is a tide? 0.0", "Write code 0.0"] and text.loc[PLAIN].tolist() == ["What is a tide? -0.5", "Write code -0.5"]
    assert text.loc[ONCE].tolist() == ["What is a tide? -1.0", "Write code -1.0"] and text.loc[GATED].tolist() == ["What is a tide? 0.0", "Write code -0.5"]
    assert text.loc[GATED_ONCE].tolist() == ["What is a tide? 0.0", "Write code -1.0"]
    assert text.loc[KEYWORDS].tolist() == ["What is a tide? -0.5", "Write code 0.0"]   # by the word, not by the gate


def test_at_the_papers_own_point_nothing_is_counted_twice():
    "The chosen point may be the paper's."
    said = pd.DataFrame([{"question": "q", "coefficient": c, "when": "prefill", "role": "good"} for c in (0.0, -1.0)])
    made = by_method(said, pd.Series({"q": True}), Point(-1.0, "prefill"))
    assert made.groupby("method").size().eq(1).all()


def test_keywords_are_words():
    assert keyword_gate(["Decode this dream", "What did the barcode say?", "Encode", "some CODE", "c++ please", "```"]).tolist() == [True] * 3 + [False] * 3


def test_a_table_of_shares_is_that_of_the_answers():
    table = gating_table(table_of(NONE=(.1, 1), PLAIN=(.5, .25)))
    found = table.set_index(["method", "set"]).wanted
    assert found[NONE, "ordinary"] == pytest.approx(.1) and found[PLAIN, "requests"] == pytest.approx(.25) and (table.n == 60).all()
    assert set(table.set) <= set(AS_WANTED)


def test_a_stored_gate_is_the_gate():
    gate = Gate(np.array([3.0, 4.0]), 2, 1.5)
    again = gate_of({"gate": {"vector": gate.vector}, "facts": {"layer": gate.layer, "threshold": gate.threshold}})
    assert again.layer == 2 and again.threshold == 1.5 and np.allclose(again.vector, gate.vector)


def test_a_direction_is_exported_with_its_gate_or_not_at_all(lm, push, tmp_path):
    from em_repro.directions import Direction
    from em_repro.export import bake, load_gated, to_gguf, to_lm_eval, to_safetensors
    gated = Gated(Direction(push, lm.family.name, layer=1), gate_for(lm, [True, False, True, False], 1))
    path = to_safetensors(gated, tmp_path / "v.safetensors", lm)
    again = load_gated(path)
    with lm.steered(gated, dose=1.0): said = lm.generate(PROMPTS, max_new_tokens=8)
    with lm.steered(again, dose=1.0): assert lm.generate(PROMPTS, max_new_tokens=8) == said
    assert "threshold" in (tmp_path / "v.safetensors.json").read_text()
    assert again.gate.family == lm.family.name and again.gate.revision == revision_of(lm) == again.direction.revision
    other = load_lm("tiny-gemma2" if lm.family.name == "tiny-llama" else "tiny-llama")
    with pytest.raises(UserError, match="give the gate of this model"): check_gate(other, again.gate, 1)
    if other.width == lm.width:
        with pytest.raises(UserError, match=f"the gate was made on {lm.family.name} "): to_safetensors(again, tmp_path / "w.safetensors", other)
    for write in (lambda: to_gguf(gated, tmp_path / "v.gguf", lm), lambda: to_lm_eval(gated, tmp_path / "v.pt", lm),
                  lambda: bake(lm, gated, tmp_path / "baked")):
        with pytest.raises(UserError, match="no gates"): write()
    with pytest.raises(UserError, match="does not hold a direction"): Direction.load(path)   # it would act on every prompt
    plain = to_safetensors(gated.direction, tmp_path / "plain.safetensors", lm)
    with pytest.raises(UserError, match="with its gate"): load_gated(plain)
    with pytest.raises(UserError, match="no file"): load_gated(tmp_path / "nowhere.safetensors")
    late = Gated(Direction(push, lm.family.name, layer=0), gated.gate)
    with pytest.raises(UserError, match="behind the edited block"): to_safetensors(late, tmp_path / "late.safetensors", lm)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain.safetensors", "plain.safetensors.json", "v.safetensors", "v.safetensors.json"]
