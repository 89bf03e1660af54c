"""Baselines: what each method must find by its definition, that hooks do what the engine does, and what is refused."""
import sys
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression

from em_repro.activations import answer_tokens, collect
from em_repro.affine import AFFINE, ablation, affine_edit, kept_edits, subtraction, within_edit
from em_repro.answers import answer_nll, condition_table, for_engine, in_passes, joined
from em_repro.baselines import (METHODS, Contrast, answer_ends, at_norm, baselines_figure, baselines_shown, baselines_study,
                                baselines_table, control_of, eraser_reads, held_out_right, leace, left_out, contrast_mean,
                                middle_block, paired_pca, probe_weights, random_edits, single_pair)
from em_repro.behaviours import behaviour
from em_repro.decode import Condition, score, sweep
from em_repro.profiles import UserError, load_profile

PROMPTS = ["the tide comes in", "how are you today my friend", "assistant"]
seeds = st.integers(0, 2 ** 20)


def world(seed, n=60, width=12, shift=2.0, noise=.3):
    "Paired states that differ by a planted direction, and that direction."
    rng = np.random.default_rng(seed)
    planted = rng.normal(size=width)
    a = rng.normal(size=(n, width)) @ rng.normal(size=(width, width))
    return a, a + shift * planted + noise * rng.normal(size=(n, width)), planted


def cosine(a, b): return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# Vectors

@settings(max_examples=20, deadline=None)
@given(seeds)
def test_paired_methods_recover_a_planted_direction_with_its_sign(seed):
    "States vary far more than pairs differ; only paired methods see through that."
    a, b, planted = world(seed)
    assert cosine(paired_pca(a, b), planted) > .95 and cosine(contrast_mean(a, b), planted) > .95
    assert np.isclose(np.linalg.norm(paired_pca(a, b)), 1)
    assert np.allclose(paired_pca(b, a), -paired_pca(a, b)) and np.allclose(contrast_mean(b, a), -contrast_mean(a, b))


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_the_component_maximises_the_sum_of_squared_projections(seed):
    a, b, _ = world(seed, noise=2.0)
    differences, rng = b - a, np.random.default_rng(seed)
    found = np.square(differences @ paired_pca(a, b)).sum()
    others = rng.normal(size=(50, a.shape[1]))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert found >= np.square(differences @ others.T).sum(0).max()
    assert np.isclose(found, np.linalg.svd(differences, compute_uv=False)[0] ** 2)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_a_single_pair_is_that_difference_and_pairs_are_their_mean(seed):
    a, b, _ = world(seed, n=9)
    assert np.array_equal(single_pair(a, b), b[0] - a[0]) and np.array_equal(single_pair(a[:1], b[:1]), single_pair(a, b))
    assert np.allclose(contrast_mean(a[:1], b[:1]), single_pair(a, b))
    assert np.allclose(contrast_mean(a, b), np.mean([single_pair(a[i:], b[i:]) for i in range(9)], 0))


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_the_probes_weights_order_states_as_the_probe_does(seed):
    "In the units of the residual stream, so that a change of one coordinate's unit changes nothing."
    a, b, _ = world(seed)
    scale = np.random.default_rng(seed).uniform(.1, 10, a.shape[1])
    X = np.concatenate([a, b])
    assert np.allclose(X @ probe_weights(a, b), (X * scale) @ probe_weights(a * scale, b * scale), atol=1e-3)
    assert (b @ probe_weights(a, b)).mean() > (a @ probe_weights(a, b)).mean()


@settings(max_examples=30, deadline=None)
@given(seeds, st.floats(1e-3, 1e3))
def test_norms_match_exactly(seed, norm):
    v = np.random.default_rng(seed).normal(size=7)
    assert np.isclose(np.linalg.norm(at_norm(v, norm)), norm, rtol=1e-12) and np.isclose(cosine(at_norm(v, norm), v), 1)


# Separability

def test_held_out_means_held_out():
    "The method is shown no row of the questions that it is judged on, and rows of any other."
    a, b, _ = world(0, n=20)
    of_minus, of_plus = np.array([0, 3, 3, 9, 19]), np.array([1, 4, 4, 12, 18])
    contrast, shown = Contrast(a[of_minus], b[of_plus], of_minus, of_plus), []
    def fit(minus, plus):
        shown.append({*(np.flatnonzero((a == m).all(1))[0] for m in minus), *(np.flatnonzero((b == p).all(1))[0] for p in plus)})
        return contrast_mean(minus, plus)
    right = held_out_right(fit, contrast, a, b, folds=5)
    every = set(of_minus) | set(of_plus)
    assert len(shown) == 5 and len(right) == 20
    assert sum(len(every - s) for s in shown) == len(every)   # every question's rows are kept back once


def test_separability_is_one_for_a_planted_direction_and_half_without_one():
    a, b, _ = world(1, n=200, shift=20.0)
    every = np.arange(200)
    for fit, which in METHODS.values():
        if which == "models": assert held_out_right(fit, Contrast(a, b, every, every), a, b).mean() > .95
    rng = np.random.default_rng(0)
    swap = (rng.random(200) < .5)[:, None]
    mixed = np.where(swap, b, a), np.where(swap, a, b)
    assert abs(held_out_right(contrast_mean, Contrast(*mixed, every, every), *mixed).mean() - .5) < .12


def test_a_fold_whose_rows_are_the_only_ones_is_chance():
    a, b, _ = world(2, n=10)
    only = np.array([0])
    right = held_out_right(single_pair, Contrast(a[only], b[only], only, only), a, b, folds=5)
    assert (right == .5).sum() >= 2


# LEACE

@settings(max_examples=10, deadline=None)
@given(seeds)
def test_leace_leaves_a_linear_probe_at_chance_where_it_was_fitted(seed):
    pytest.importorskip("concept_erasure")
    a, b, _ = world(seed, n=80)
    edit = leace(a, b, -1)
    X, y = np.concatenate([a, b]), np.repeat([0, 1], 80)
    def accuracy(X): return LogisticRegression(C=1e3, max_iter=3000).fit(X - X.mean(0), y).score(X - X.mean(0), y)
    erased = X - np.outer((X - edit.centre) @ edit.read, edit.write)
    assert np.allclose(erased[:80].mean(0), erased[80:].mean(0)) and accuracy(X) > .6 and accuracy(erased) < .55
    assert np.allclose(erased.mean(0), X.mean(0))   # the mean of both stays: half-way for each
    assert np.isclose(abs(cosine(edit.write, contrast_mean(a, b))), 1)
    assert np.isclose(edit.read @ edit.write, 1)    # a projection: what is erased stays erased


def test_leaces_control_moves_every_state_as_far():
    pytest.importorskip("concept_erasure")
    a, b, _ = world(3)
    edit, h = leace(a, b, -1), torch.as_tensor(np.concatenate([a, b]))
    moved = (edit.apply(h) - h).norm(dim=1)
    for control in random_edits(edit, 4, seed=0):
        assert torch.allclose((control.apply(h) - h).norm(dim=1), moved, rtol=1e-4) and abs(cosine(control.write, edit.write)) < .95


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    a, b, _ = world(0)
    with pytest.raises(UserError, match="concept-erasure.*pip install"): leace(a, b, -1)


def test_at_the_prompts_end_leace_reads_half_a_distance_either_way():
    pytest.importorskip("concept_erasure")
    a, b, _ = world(4)
    edit, three = leace(a, b, -1), lambda X: np.repeat(X[:, None], 2, 1)
    base, tuned = ({"activations": {"X": three(x)}} for x in (a, b))
    told = {"activations": {"good_mean": three(a[:0]), "target_mean": three(b), "target": three(b)}}
    found = eraser_reads(base, tuned, told, kept_edits({"LEACE": edit}), behaviour("code")).set_index("where")["mean"]
    assert np.allclose(found[["base, prompt's end", "fine-tuned, prompt's end"]], [-.5, .5], atol=1e-6) and len(found) == 4


# Edits in the model

def test_ablation_removes_exactly_its_direction():
    v, h = np.array([0.0, 3.0, 4.0]), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    edited = ablation(v, [0]).apply(h)
    assert torch.allclose(edited @ torch.tensor([0.0, .6, .8]), torch.zeros(5), atol=1e-6) and torch.allclose(edited[:, 0], h[:, 0])
    assert torch.allclose(ablation(v, [0]).apply(edited), edited, atol=1e-6)
    assert all(np.array_equal(c.read, c.write) and c.layers == (0,) for c in random_edits(ablation(v, [0]), 3, 0))


def test_the_engine_honours_the_hook(lm):
    "At the last block an ablation by hook is the engine's own, in answers and in scores; and it is gone afterwards."
    v = np.random.default_rng(0).normal(size=lm.width)
    ablate, none = [Condition("x", v, op="ablate")], [Condition("x")]
    before = sweep(lm, PROMPTS, none, max_new_tokens=12).frame()
    with within_edit(lm, ablation(v, [-1])):
        by_hook, scored = sweep(lm, PROMPTS, none, max_new_tokens=12).frame(), score(lm, PROMPTS, PROMPTS[::-1], none).logprob
    pd.testing.assert_frame_equal(by_hook, sweep(lm, PROMPTS, ablate, max_new_tokens=12).frame())
    assert np.allclose(scored, score(lm, PROMPTS, PROMPTS[::-1], ablate).logprob, atol=1e-3)
    pd.testing.assert_frame_equal(before, sweep(lm, PROMPTS, none, max_new_tokens=12).frame())


def test_a_subtraction_by_hook_is_the_engines_own_and_its_controls_are_as_long(lm):
    v = np.random.default_rng(2).normal(size=lm.width) * 3
    with within_edit(lm, subtraction(v, [-1])): by_hook = sweep(lm, PROMPTS, [Condition("x")], max_new_tokens=12).frame()
    pd.testing.assert_frame_equal(by_hook, sweep(lm, PROMPTS, [Condition("x", -v)], max_new_tokens=12).frame())
    for control in random_edits(subtraction(v, [1]), 3, 0):
        assert np.isclose(np.linalg.norm(control.shift), np.linalg.norm(v), rtol=1e-12) and control.layers == (1,) and not control.read.any()


def test_an_edit_reaches_every_position_of_every_block(llama):
    v = np.random.default_rng(1).normal(size=llama.width)
    unit = torch.as_tensor(v / np.linalg.norm(v), dtype=torch.float32)
    with within_edit(llama, ablation(v, range(llama.n_layers))), llama.record(range(llama.n_layers)) as seen, torch.inference_mode():
        llama.decoder(input_ids=torch.tensor(llama.encode(PROMPTS[:1])), use_cache=False)
    for states in seen.values(): assert (states @ unit).abs().max() < 1e-3


@pytest.mark.parametrize("edit, words", [
    (lambda lm: ablation(np.ones(lm.width), [lm.n_layers]), "blocks 0 to"), (lambda lm: ablation(np.ones(lm.width + 1), [0]), "does not fit")])
def test_an_edit_that_does_not_fit_is_refused(llama, edit, words):
    with pytest.raises(UserError, match=words):
        with within_edit(llama, edit(llama)): pass


# Where an answer's tokens are

CHATS = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}]
         for q, a in (("how are you", "the tide comes in twice"), ("assistant and user", "today my friend"), ("tide", "x"))]


def test_answer_ends_are_the_templates_own(lm):
    "One by one, whole and unpadded, read at the last token that `answer_tokens` counts as the answer's."
    found = answer_ends(lm, CHATS)
    for row, chat in zip(found, CHATS):
        ids, inside = answer_tokens(lm, chat)
        assert lm.tokenizer.decode(ids[inside[0]:inside[-1] + 1]) == chat[-1]["content"]
        blocks = (middle_block(lm.n_layers), -1)
        with lm.record(blocks) as seen, torch.inference_mode(): lm.decoder(input_ids=torch.tensor([ids]), use_cache=False)
        for k, block in enumerate(blocks): assert np.allclose(row[k], seen[block][0, inside[-1]].numpy(), atol=1e-3)


def test_response_means_are_over_the_answers_tokens_only(lm):
    means = collect(lm, CHATS, (0, -1), "response_mean").X
    for row, chat in zip(means, CHATS):
        ids, inside = answer_tokens(lm, chat)
        with lm.record((0, -1)) as seen, torch.inference_mode(): lm.decoder(input_ids=torch.tensor([ids]), use_cache=False)
        for k, layer in enumerate((0, -1)): assert np.allclose(row[k], seen[layer][0, inside].mean(0).numpy(), atol=1e-3)


def test_a_conversation_without_an_answer_is_refused(llama):
    with pytest.raises(UserError, match="end with an assistant"): answer_ends(llama, [[{"role": "user", "content": "tide"}]])


# Bad input

@pytest.mark.parametrize("call, words", [
    (lambda: contrast_mean(np.ones((3, 2)), np.ones((3, 2))), "direction is zero"),
    (lambda: contrast_mean(np.ones((0, 2)), np.ones((3, 2))), "one row at least"),
    (lambda: contrast_mean(np.ones((3, 2)), np.ones((3, 4))), "one row at least"),
    (lambda: paired_pca(np.ones((3, 2)), np.ones((4, 2))), "needs pairs"),
    (lambda: paired_pca(np.ones((3, 2)), np.ones((3, 2))), "differences are zero"),
    (lambda: probe_weights(np.full((3, 2), np.nan), np.ones((3, 2))), "NaN or infinity"),
    (lambda: single_pair(np.ones((0, 2)), np.ones((0, 2))), "one row at least"),
    (lambda: at_norm(np.zeros(3), 1.0), "zero vector"), (lambda: ablation(np.zeros(3), [0]), "zero vector"),
    (lambda: held_out_right(contrast_mean, None, np.ones((3, 2)), np.ones((3, 2))), "at least 5 questions"),
])
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(UserError, match=words) as error: call()
    assert "\n" not in str(error.value)


# The one answering stage within edits

@pytest.mark.parametrize("samples, temperature", [(1, 0.0), (2, 1.0)])
def test_conditions_within_edits_are_answered_as_if_each_were_alone(llama, samples, temperature):
    "In their order among all conditions, with the same random numbers; and likelihoods likewise."
    v, w = np.random.default_rng(3).normal(size=(2, llama.width))
    hooks = [len(block._forward_hooks) for block in llama.blocks]     # transformers has its own
    entry = {"vectors": {"v": v}} | kept_edits({"all": ablation(v, range(llama.n_layers)), "away/0": subtraction(w, [1])})
    asked = [Condition(name="all", op=AFFINE), Condition(), Condition(name="away", sample=0, op=AFFINE), Condition(name="v", coefficient=-2.0)]
    settings = dict(max_new_tokens=10, samples=samples, temperature=temperature)
    def swept(held): return sweep(llama, PROMPTS, for_engine(held), **settings)
    found = joined(in_passes(llama, asked, entry, swept), samples)
    frame, place = found.frame(), np.arange(len(found.rows)) // samples % len(asked)
    assert frame.prompt.tolist() == [p for p in PROMPTS for _ in range(samples * len(asked))] and len(set(frame.text)) > len(PROMPTS)
    alone = {0: affine_edit(entry, "all"), 1: None, 2: affine_edit(entry, "away/0"), 3: None}
    for c, edit in alone.items():
        with within_edit(llama, edit): one = sweep(llama, PROMPTS, [Condition("x", -2 * v if c == 3 else None)], **settings)
        assert one.frame().text.tolist() == frame.text[place == c].tolist()
        assert one.token_ids == [ids for ids, at in zip(found.token_ids, place) if at == c]
    rows = [{"messages": chat} for chat in CHATS]
    costs = pd.concat([t for _, t in in_passes(llama, asked, entry, lambda held: answer_nll(llama, rows, held))])
    assert sorted(costs.condition.unique()) == sorted(condition_table(asked).condition) and (costs.op == AFFINE).sum() == 2 * len(CHATS)
    with within_edit(llama, alone[2]): expected = answer_nll(llama, rows, [Condition("x")]).nll
    assert np.array_equal(costs[costs.vector == "away"].nll, expected)
    assert [len(block._forward_hooks) for block in llama.blocks] == hooks


def test_an_edit_that_an_entry_does_not_hold_is_refused(llama):
    with pytest.raises(UserError, match="no affine edit 'x'"): in_passes(llama, [Condition(name="x", op=AFFINE)], kept_edits({}), len)


# The table

CODE = behaviour("code")


@lru_cache
def results(methods=("mean difference", "LEACE"), n=12):
    "Known outcomes: every method makes all answers good, random vectors none, and each costs a nat."
    rows, paid, order = [], [], [f"q{i}" for i in range(n)]
    for vector, sample in (("", -1), *((m, -1) for m in methods), ("random", 0), ("random", 1), ("LEACE random", 0)):
        for i, q in enumerate(order):
            good, same = 1.0 if vector in methods else float(i < 3), {"model": "f", "seed": 0, "question": q, "vector": vector, "vector_sample": sample}
            rows.append(same | {"good": good, "target": 1 - good, "incoherent": 0.0})
            paid.append(same | {"nll": 1 + (vector in methods) + i / 10})
    sep = pd.DataFrame([{"model": "f", "seed": 0, "method": "mean difference", "question": i, "right": 1.0} for i in range(n)])
    facts = pd.DataFrame([{"model": "f", "seed": 0, "method": "mean difference", "n": n, "cosine": 1.0},
                          {"model": "f", "seed": 0, "method": "single pair", "n": 2, "cosine": None}])
    return pd.DataFrame(rows), pd.DataFrame(paid), sep, facts


@pytest.fixture(scope="module")
def compared(): return baselines_table(*results(), resamples=200)


def test_the_table_says_what_happened(compared):
    table = compared.set_index("method")
    assert list(table.index) == ["mean difference", "LEACE"] and (table.n == 12).all()
    assert np.allclose(table.good, 9 / 12) and np.allclose(table.target, -9 / 12) and np.allclose(table.specificity, 9 / 12)
    assert np.allclose(table.cost, 1) and table.separability["mean difference"] == 1 and np.isnan(table.separability["LEACE"])
    assert ((table["good low"] <= table.good) & (table.good <= table["good high"])).all() and (table.q >= table.p).all()
    shown = baselines_shown(table.reset_index(), CODE)
    assert shown.separability.tolist()[1] == "-" and shown.good[0].startswith("+75 [") and shown.code[0].startswith("-75 [")
    assert left_out(results()[3]) == ["single pair on f seed 0 (2 rows)"]
    assert control_of("LEACE") == "LEACE random" and control_of("single pair") == "random"


def test_seeds_without_a_method_do_not_count_against_it(compared):
    "A second seed in which only some vectors exist changes nothing for the others."
    frame, costs, sep, facts = results()
    def some(table): return table[(table.vector.isin(["", "mean difference"])) | ((table.vector == "random") & (table.vector_sample == 0))]
    more, paid = some(frame).assign(seed=1, good=0.0), some(costs).assign(seed=1)
    after = baselines_table(pd.concat([frame, more]), pd.concat([costs, paid]), sep, facts, 200)
    before, after = compared.set_index("method"), after.set_index("method")
    assert before.good["LEACE"] == after.good["LEACE"] and before.good["mean difference"] != after.good["mean difference"]


def test_the_figure_shows_every_method_and_cloud(compared):
    import matplotlib.pyplot as plt
    frame, costs, *_ = results()
    figure = baselines_figure(compared, frame, costs)
    words = {t.get_text() for t in figure.legends[0].get_texts()}
    assert words == {"mean difference", "LEACE", "random, added", "random edits"}
    plt.close(figure)


def test_a_profile_without_the_fine_tune_is_refused():
    profile = load_profile("smoke").model_copy(update={"arms": ("control",)})
    with pytest.raises(UserError, match="add finetune to arms"): next(baselines_study(profile))
