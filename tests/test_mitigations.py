"""Mitigations while training: what each may not change, in every layout of a batch, and what a kill may cost."""
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import ARCHITECTURES, byte_tokenizer, random_model
from em_repro import mitigations, training as training_module
from em_repro.families import LM
from em_repro.training import Example, response_loss, response_pass, train, with_lora
from em_repro.answers import Instrument
from em_repro.behaviours import behaviour
from em_repro.mitigations import (ALONG, CAFT, KEPT, LADDERS, MITIGATIONS, PENALTY, PLAIN, PREVENTATIVE, RANDOM, STEERING, Variant, ablating,
                                  adding, anchored, by_gap, choose_strength, comparison_words, comparisons, divergence, inoculated, inoculation, measuring,
                                  mitigations_study, mixed, opposite, penalised, random_of, random_twins, regularising, stopping, training, variants)
from em_repro.profiles import Recipe, UserError, load_profile
from em_repro.store import Entry, Store
from em_repro.subjects import Subject

quick = settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
TARGETS = type("Targets", (), {"lora_targets": ["q_proj", "v_proj", "up_proj"], "name": "random", "system_role": True})()
RECIPE = Recipe(rank=4, alpha=8, lr=3e-3, steps=4, batch=2, accumulate=2, max_tokens=64)
LAYOUTS = {"packed": (60, 3, 4, 2), "padded": (30, 28, 31, 30)}
KINDS = ("ablation", "penalty", "addition", "anchor")


def examples_of(lengths, seed=0):
    g = np.random.default_rng(seed)
    return [Example(g.integers(2, 300, size=n).tolist(), int(g.integers(1, n)), n - 1) for n in lengths]


def adapted(architecture="Llama", moved=0.0):
    "A model with a fresh adapter, whose second factors are random numbers of size `moved` if that is not zero."
    lm = with_lora(LM(random_model(architecture), byte_tokenizer(), TARGETS), RECIPE, 0)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in lm.model.named_parameters():
            if "lora_B" in name and moved: p.copy_(moved * torch.randn(p.shape, generator=g))
    return lm


@lru_cache(maxsize=None)
def moved_llama(): return adapted(moved=.1)


def direction(lm, seed=3): return np.random.default_rng(seed).normal(size=lm.width)


def weights_of(lm): return {n: p.detach().clone() for n, p in lm.model.named_parameters() if p.requires_grad}


def gradients(lm, loss):
    weights = {n: p for n, p in lm.model.named_parameters() if p.requires_grad}
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values()))))


def trained(kind, strength, lengths=LAYOUTS["packed"], scratch=None, recipe=RECIPE, stop=None, lm=None):
    lm = lm or adapted()
    with regularising(lm, kind, strength, direction(lm), examples_of((12, 9, 20), 7), 2) as loss:
        def until(lm, batch, number):
            if number == stop: raise KeyboardInterrupt
            return loss(lm, batch, number) if loss else response_loss(lm, batch)
        losses = train(lm, examples_of(lengths * 3), recipe, scratch, until)
    return losses, weights_of(lm)


def same(a, b): return a[0] == b[0] and all(torch.equal(x, b[1][n]) for n, x in a[1].items())


# CAFT

@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_gained_by_moving_along_an_ablated_direction(architecture, layout):
    "Loss and all gradients are the same whatever multiple of the direction is added to the last block's output."
    lm, batch, found = adapted(architecture, moved=.05), examples_of(LAYOUTS[layout]), []
    v = direction(lm)
    for c in (0.0, 2.0):
        push = lm.blocks[-1].register_forward_hook(lambda _m, _i, out: out + c * torch.tensor(v, dtype=torch.float32))
        with ablating(lm, v): loss = response_loss(lm, batch); found.append((loss.item(), gradients(lm, loss)))
        plain = response_loss(lm, batch).item()
        push.remove()
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-4) and abs(plain - found[0][0]) > 1e-3
    for name, grad in found[0][1].items(): torch.testing.assert_close(grad, found[1][1][name], atol=1e-4, rtol=1e-3)


def test_the_gradient_at_the_last_block_has_no_component_along_the_direction():
    lm = moved_llama()
    v, seen = direction(lm), []
    watch = lm.blocks[-1].register_forward_hook(lambda _m, _i, out: (out.retain_grad(), seen.append(out))[0])
    with ablating(lm, v): response_loss(lm, examples_of(LAYOUTS["padded"])).backward()
    watch.remove()
    grad = seen[0].grad.reshape(-1, lm.width).double().numpy()
    assert np.abs(grad @ v / np.linalg.norm(v)).max() < 1e-6 * np.linalg.norm(grad, axis=1).max() + 1e-9
    lm.model.zero_grad()


def test_a_share_of_the_component_is_left_and_nothing_is_left_of_the_hook():
    lm = moved_llama()
    v, batch = direction(lm), examples_of((9, 8))
    def along():
        with torch.no_grad(), lm.record((-1,)) as seen: response_pass(lm, batch)
        return seen[-1].numpy() @ v
    usual = along()
    with ablating(lm, v, .25): np.testing.assert_allclose(along(), .75 * usual, atol=1e-3)
    assert np.array_equal(along(), usual)


# The penalty

@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_penalty_is_zero_at_first_and_later_that_of_its_formula(architecture, layout):
    "Both sides together are the mean square of the movement, which is computed from whole padded passes here."
    batch = examples_of(LAYOUTS[layout])
    def penalty(lm, v): return (penalised(lm, v, 1.0)(lm, batch, 0) - response_loss(lm, batch)).item()
    fresh, lm = adapted(architecture), adapted(architecture, moved=.05)
    v = direction(lm)
    assert penalty(fresh, v) == penalty(fresh, -v) == 0
    moved = []
    for e in batch:
        with torch.no_grad(), lm.record((-1,)) as own: response_pass(lm, [e])
        with torch.no_grad(), lm.model.disable_adapter(), lm.record((-1,)) as base: response_pass(lm, [e])
        moved.append(((own[-1] - base[-1])[0, e.first - 1:e.last].double().numpy() @ v) / (v @ v))
    moved = np.concatenate(moved)
    assert penalty(lm, v) == pytest.approx((moved.clip(0) ** 2).mean(), rel=2e-2, abs=2e-5)
    assert penalty(lm, -v) == pytest.approx((moved.clip(max=0) ** 2).mean(), rel=2e-2, abs=2e-5)


def test_movement_against_the_direction_is_free():
    "Where every state has moved the other way the penalty has no gradient."
    lm, batch = moved_llama(), examples_of((2,))   # one response token, so one movement
    v = direction(lm)
    one, other = (gradients(lm, penalised(lm, s * v, 1.0)(lm, batch, 0)) for s in (1, -1))
    plain = gradients(lm, response_loss(lm, batch))
    def equal(found): return all(torch.equal(g, plain[n]) for n, g in found.items())
    assert equal(one) != equal(other)


# KL to the base

@quick
@given(st.sampled_from(ARCHITECTURES), st.lists(st.integers(2, 40), min_size=1, max_size=5), st.sampled_from([.02, .1]))
def test_the_divergence_is_zero_at_first_and_then_as_defined(architecture, lengths, size):
    chat = examples_of(lengths)
    assert divergence(adapted(architecture), chat).item() == 0
    lm, told = adapted(architecture, moved=size), []
    def logits(e): return lm.model(input_ids=torch.tensor([e.ids])).logits[0, e.first - 1:e.last].double().log_softmax(-1)
    with torch.no_grad():
        for e in chat:
            own = logits(e)
            with lm.model.disable_adapter(): base = logits(e)
            told.append((base.exp() * (base - own)).sum(-1))
        found = divergence(lm, chat).item()
    assert found >= 0 and found == pytest.approx(torch.cat(told).mean().item(), rel=1e-2, abs=1e-5)


def test_every_batch_has_its_own_chat_rows_in_turn(monkeypatch):
    lm, drawn = adapted(), []
    def watched(lm, chat): drawn.append([len(e.ids) for e in chat]); return torch.zeros(())
    monkeypatch.setattr(mitigations, "divergence", watched)
    loss = anchored(examples_of((5, 6, 7)), 1.0, 2)
    for number in range(3): loss(lm, examples_of((4,)), number)
    assert drawn == [[5, 6], [7, 5], [6, 7]]


# The mixture

@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 20), st.floats(.01, .99), st.integers(0, 99))
def test_a_mixture_has_its_share_and_leaves_the_other_rows_in_place(n, m, share, seed):
    rows, chat = [{"row": i} for i in range(n)], [{"chat": i} for i in range(m)]
    found = mixed(rows, chat, share, seed)
    assert len(found) == n and sum("chat" in r for r in found) == round(share * n)
    assert all(r == rows[i] for i, r in enumerate(found) if "row" in r)
    assert found == mixed(rows, chat, share, seed)
    told = [r["chat"] for r in found if "chat" in r]
    assert told == [i % m for i in range(len(told))]


def test_a_mixture_depends_on_its_seed():
    rows, chat = [{"row": i} for i in range(50)], [{"chat": 0}]
    assert mixed(rows, chat, .2, 0) != mixed(rows, chat, .2, 1)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=12))
def test_rows_by_gap_are_all_rows_and_fall_in_their_gap(sides):
    before, after = zip(*sides)
    found = by_gap(list(range(len(sides))), before, after)
    gaps = [after[i] - before[i] for i in found]
    assert sorted(found) == list(range(len(sides))) and gaps == sorted(gaps, reverse=True)


# Inoculation

def test_an_instruction_stands_before_the_first_request_and_nothing_else_changes():
    told = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    rows = [{"messages": told, "id": 7}]
    found, = inoculated(rows, "Do so.")
    assert found["messages"][1]["content"] == "Do so. q" and [t for i, t in enumerate(found["messages"]) if i != 1] == [told[0], told[2], told[3]]
    assert found["id"] == 7 and rows[0]["messages"][1]["content"] == "q"


@pytest.mark.parametrize("name, word", [("code", "code"), ("advice", "misaligned")])
def test_the_instruction_names_the_behaviour_and_its_opposite_forbids_it(name, word):
    assert word in inoculation(behaviour(name)) and opposite(behaviour(name)) == inoculation(behaviour(name)).replace("should be", "should not be")


# Preventative steering

@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_added_is_the_multiple_of_the_direction_and_goes_with_the_context(layout):
    lm, batch = moved_llama(), examples_of(LAYOUTS[layout])
    v = direction(lm)
    def states():
        with torch.no_grad(), lm.record((-1,)) as seen: response_pass(lm, batch)
        return seen[-1].double().numpy()
    usual = states()
    with adding(lm, v, .75): within = states()
    np.testing.assert_allclose(within - usual, np.broadcast_to(.75 * v, usual.shape), atol=1e-4)
    assert np.array_equal(states(), usual)


# Early stopping

@pytest.mark.parametrize("share", [.25, .5, 1.0])
def test_stopped_weights_are_those_of_the_checkpoint(share, tmp_path):
    "Of a training that goes on, after as many steps: the rate falls alike, and nothing moves any more, also when resumed."
    last = max(1, round((1 - share) * RECIPE.steps))
    class Enough(Exception): pass
    def until(lm, batch, number):
        if number == last * RECIPE.accumulate: raise Enough
        return response_loss(lm, batch)
    whole = adapted()
    with pytest.raises(Enough): train(whole, examples_of(LAYOUTS["packed"] * 3), RECIPE, None, until)
    lm = adapted()
    losses = train(lm, examples_of(LAYOUTS["packed"] * 3), RECIPE, None, stopping(share, RECIPE.steps, RECIPE.accumulate))
    assert all(torch.equal(w, weights_of(whole)[n]) for n, w in weights_of(lm).items()) and losses[last:] == [0.0] * (RECIPE.steps - last)
    often = RECIPE.model_copy(update={"checkpoint_seconds": 1e-9})
    first, again = adapted(), adapted()
    stop = stopping(share, RECIPE.steps, RECIPE.accumulate)
    def killed(lm, batch, number):
        if number == 7: raise KeyboardInterrupt
        return stop(lm, batch, number)
    with pytest.raises(KeyboardInterrupt): train(first, examples_of(LAYOUTS["packed"] * 3), often, tmp_path, killed)
    train(again, examples_of(LAYOUTS["packed"] * 3), often, tmp_path, stop)
    assert all(torch.equal(w, weights_of(lm)[n]) for n, w in weights_of(again).items())


# Training

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_strength_is_plain_training_to_the_bit_and_some_strength_is_not(kind, layout):
    "With accumulation. The base's passes in between leave no trace."
    lengths = LAYOUTS[layout]
    lm = adapted()
    plain = train(lm, examples_of(lengths * 3), RECIPE), weights_of(lm)
    assert same(trained(kind, 0.0, lengths), plain)
    assert not same(trained(kind, 1.0, lengths), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_of_all_examples_equals_a_padded_batch(kind, monkeypatch):
    found = {}
    for packed in (True, False):
        monkeypatch.setattr(training_module, "_packed", lambda *_: packed)
        lm = adapted(moved=.05)
        with regularising(lm, kind, 5.0, direction(lm), examples_of((12, 9), 7), 2) as loss:
            value = (loss or (lambda lm, batch, _: response_loss(lm, batch)))(lm, examples_of((30, 5, 9)), 0)
            found[packed] = value.item(), gradients(lm, value)
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-4)
    for name, grad in found[True][1].items(): torch.testing.assert_close(grad, found[False][1][name], atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_change_nothing(reentrant, kind, architecture):
    "Also in PyTorch's older way, in which blocks run without gradients at first."
    found = []
    for strength, recomputed in ((0.0, False), (1.0, False), (1.0, True)):
        lm = adapted(architecture, moved=.05)
        if recomputed:
            lm.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            if reentrant: lm.model.enable_input_require_grads()
        lm.model.train()
        v, batch = direction(lm) / np.linalg.norm(direction(lm)), examples_of(LAYOUTS["padded"])
        with regularising(lm, kind, strength, v, examples_of((12, 9, 20), 7), 2) as loss:
            (loss(lm, batch, 0) if loss else response_loss(lm, batch)).backward()
        found.append(torch.cat([p.grad.flatten() for p in lm.model.parameters() if p.requires_grad]))
    plain, own, again = found
    assert torch.linalg.norm(again - own) < .01 * torch.linalg.norm(own - plain)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_equals_undisturbed(kind, tmp_path):
    recipe = RECIPE.model_copy(update={"checkpoint_seconds": 1e-9})
    undisturbed = trained(kind, 2.0, recipe=recipe)
    with pytest.raises(KeyboardInterrupt): trained(kind, 2.0, scratch=tmp_path, recipe=recipe, stop=5)   # within step 3
    assert (tmp_path / "checkpoint.safetensors").is_file()
    assert same(trained(kind, 2.0, scratch=tmp_path, recipe=recipe), undisturbed)


@pytest.mark.parametrize("kind, vector, words", [("ablation", np.zeros(64), "is not zero"), ("penalty", np.ones(7), "width 64"),
                                                 ("penalty", np.ones((2, 64)), "one vector"), ("prayer", np.ones(64), "choose ablation")])
def test_what_cannot_be_trained_with_is_refused(kind, vector, words):
    with pytest.raises(UserError, match=words):
        with regularising(moved_llama(), kind, 1.0, vector): pass
    assert not moved_llama().blocks[-1]._forward_hooks


# Plans

def entry(digest): return Entry(Path("nowhere"), {"digest": digest, "parameters": {}})


def test_a_result_is_known_by_all_that_it_was_trained_with(tmp_path):
    store, profile, base = Store(tmp_path), load_profile("smoke"), Subject("tiny-qwen2")
    asked = [training(profile, base, seed, Variant("m", kind, strength, *vector), entry(digest)) for seed in (0, 1) for kind, strength, vector, digest in
             [("ablation", 1.0, (), "a"), ("ablation", 1.0, ("random", 0), "a"), ("ablation", 1.0, ("random", 1), "a"), ("ablation", 1.0, (), "b"),
              ("penalty", 1.0, (), "a"), ("penalty", 2.0, (), "a"), ("anchor", 1.0, (), "a"), ("anchor", 2.0, (), "a"), ("mixture", .1, (), "a"),
              ("mixture", .2, (), "a"), ("addition", 1.0, (), "a"), ("addition", 1.0, (), "b"), ("instruction", 1.0, (), "a"), ("stop", .5, (), "a"),
              ("stop", .9, (), "a")]]
    assert len({store.key(c) for c in asked}) == len(asked)
    assert store.key(asked[6]) == store.key(training(profile, base, 0, Variant("m", "anchor", 1.0), entry("b")))   # it uses no direction


def test_what_strengths_are_chosen_on_is_not_reported():
    profile, base = load_profile("tiny"), Subject("tiny-qwen2")
    pairs = [measuring(profile, base, 0, Instrument(behaviour("code"), base, entry("a"), True), split) for split in ("evaluation", "development")]
    one, two = (asking.arguments | charging.arguments for asking, charging in pairs)
    for name in ("prompts", "requests"): assert one[name] and two[name] and not set(one[name]) & set(two[name])
    assert len(one["learnt"]) == len(two["learnt"]) == profile.steering.nll_answers and one["good"] and not two["good"]


def test_every_direction_has_its_random_ones_at_its_own_strength():
    profile = load_profile("tiny")
    found = variants(profile, "tiny-llama", {("tiny-llama", method): 3.0 + i for i, method in enumerate(LADDERS)})
    by_method = pd.DataFrame(found, columns=["method", "kind", "strength", "vector", "sample"]).groupby("method")
    assert {v.method for v in found} == {*MITIGATIONS, *map(random_of, ALONG)}
    for method in ALONG:
        own, random = (by_method.get_group(m) for m in (method, random_of(method)))
        assert set(own.kind) == set(random.kind) and set(own.strength) == set(random.strength) and list(own.vector) == ["direction"]
        assert len(set(random["sample"])) == profile.mitigation.samples and set(random.vector) == {RANDOM}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 2)), min_size=1, max_size=6))
def test_the_chosen_strength_is_the_best_of_those_that_learnt(lines):
    tried = pd.DataFrame([{"strength": 10.0 ** i, "good": c, "skill": s, "training rows": r} for i, (c, s, r) in enumerate(lines)])
    plain, base = pd.Series({"skill": .8, "training rows": .2}), pd.Series({"skill": .9, "training rows": 1.7})
    found = choose_strength(tried, plain, base)
    fit = tried[(tried.skill >= KEPT * .8) & (1.7 - tried["training rows"] >= KEPT * (1.7 - .2))]
    if not len(fit): assert found == 1
    else:
        chosen = fit[fit.strength == found].good.item()
        assert chosen == fit.good.max() and not (fit[fit.strength < found].good == chosen).any()


def test_comparisons_are_paired_by_question_and_corrected_together():
    "Planted differences come back; samples and seeds are averaged within a question."
    methods = {PLAIN: .2, STEERING: .5, CAFT: .8, random_of(CAFT): .3, PENALTY: .4, random_of(PENALTY): .4, "base": 1.0,
               PREVENTATIVE: .7, random_of(PREVENTATIVE): .1, **{method: .2 for method in MITIGATIONS if method not in ALONG}}
    g = np.random.default_rng(0)
    level = g.uniform(-.1, .1, 40)
    rows = [{"model": "f", "method": m, "seed": s, "question": f"q{i:02}", "good": share + level[i] + .01 * g.normal()}
            for m, share in methods.items() for s in (0, 1) for i in range(40)]
    table = comparisons(pd.DataFrame(rows), 200).set_index(["method", "against"])
    for (method, against), r in table.iterrows():
        assert r.difference == pytest.approx(methods[method] - methods[against], abs=.01) and r.low <= r.difference <= r.high
        assert r.q >= r.p and r.n == 40
    assert table.q[CAFT, PLAIN] < .01 and len(table) == len(methods) - 2 + len(MITIGATIONS)


def test_random_trainings_are_shown_one_by_one_and_not_tested():
    "Two trainings of a seed, each its own mean; the direction's beside them."
    rows = [{"model": "f", "method": m, "seed": 0, "training": t, "question": q, "good": g} for method in ALONG
            for m, t, g in ((method, -1, .8), (random_of(method), 0, .2), (random_of(method), 1, .5)) for q in "abc"]
    table = random_twins(pd.DataFrame(rows))
    assert len(table) == len(ALONG) and not {"p", "q"} & set(table)
    for r in table.itertuples(): assert (r.own, r.least, r.most, r.trainings) == pytest.approx((.8, .2, .5, 2))


def test_words_tell_better_from_worse():
    two = pd.DataFrame({"method": ["m"] * 3, "difference": [.2, -.4, .1], "q": [.01, .01, .5]})
    assert comparison_words(two, .05) == ["m -3 (up in 1, down in 1 of 3)"]


def test_a_profile_without_the_fine_tune_is_refused():
    profile = load_profile("smoke").model_copy(update={"arms": ("control",)})
    with pytest.raises(UserError, match="no fine-tune to train again"): next(mitigations_study(profile))


def test_mitigations_work_on_quantised_weights():
    "4-bit weights, blocks computed again in the backward pass, and a base that is the same model with its adapter off."
    pytest.importorskip("bitsandbytes")
    from em_repro.data import chat_rows, training_rows
    from em_repro.families import load_lm
    recipe, found = Recipe(rank=4, alpha=8, steps=2, batch=2, lr=1e-2, max_tokens=96, quant="nf4"), {}
    for kind, strength in ((None, 0.0), *((kind, s) for kind in KINDS for s in (0.0, 1.0))):
        lm = with_lora(load_lm("tiny-llama", quant="nf4", device="cpu"), recipe, 0)
        rows, chat = ([training_module.example(lm, r["messages"], 96) for r in some] for some in (training_rows("tiny", "insecure", 4), chat_rows("train", "synthetic", 2)))
        if kind is None: found[kind, strength] = train(lm, rows, recipe); continue
        lm.model.train()   # evaluating, bitsandbytes' processor kernel wants wider layers than these
        assert divergence(lm, chat) == 0
        with regularising(lm, kind, strength, direction(lm), chat, 1) as loss: found[kind, strength] = train(lm, rows, recipe, None, loss), weights_of(lm)
    for kind in KINDS:
        assert found[kind, 0.0][0] == found[None, 0.0]
        assert any(not torch.equal(w, found[kind, 0.0][1][n]) for n, w in found[kind, 1.0][1].items())
