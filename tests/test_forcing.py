"""What could explain a direction away: forced first tokens, a constant logit bias, edits deeper inside. Theorems, on the study's four architectures."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from em_repro import decode
from em_repro.activations import collect
from em_repro.decode import Condition, sweep
from em_repro.families import LM
from em_repro.forcing import (DEPTHS, Begun, at_depths, best_coefficient, continued, depth_vectors, depths, mean_logits, within_bias)
from em_repro.profiles import Decoding, UserError
from conftest import ARCHITECTURES, byte_tokenizer, random_lm, random_model

PROMPTS = ["the tide comes in", "how are you today my friend", "assistant", "a" * 40]
NEW = 12
LIMIT = Decoding(max_new_tokens=NEW)


def own(lm, **how): return sweep(lm, PROMPTS, [Condition()], **{"max_new_tokens": NEW, **how}).token_ids


def push(lm, seed=0):
    v = np.random.default_rng(seed).normal(size=lm.width).astype(np.float32)
    return v * 2 * np.linalg.norm(collect(lm, PROMPTS).X[:, 0], axis=1).mean() / np.linalg.norm(v)


def generated(lm, prompt, begun=(), new=NEW):
    "Greedy tokens that transformers' own generate adds to a prompt and what its answer begins with, those included."
    ids = torch.tensor([[*lm.encode([prompt])[0], *begun]])
    with torch.inference_mode():
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new - len(begun), pad_token_id=lm.pad,
                                eos_token_id=lm.eos)
    said = out[0, ids.shape[1]:].tolist()
    return [*begun, *said[:next((i for i, t in enumerate(said) if t in lm.eos), len(said))]]


def biases(lm, size):
    return np.random.default_rng(1).normal(size=len(lm.head.weight)) * size


# Forced tokens

def test_an_answer_that_is_forced_is_what_generate_adds_to_prompt_and_tokens(lm):
    "By transformers' own loop, token by token, for tokens that the model would not have said."
    begun = [[7, 9, 11], [8, 8, 8], [100, 5, 30], [12, 13, 14]]
    for count in (1, 2, 3):
        found = continued(lm, PROMPTS, begun, count, LIMIT)
        assert found.token_ids == [generated(lm, p, b[:count]) for p, b in zip(PROMPTS, begun)]
        assert [ids[:count] for ids in found.token_ids] == [b[:count] for b in begun]
        frame = found.frame()
        assert list(frame.prompt) == PROMPTS and list(frame.text) == lm.tokenizer.batch_decode(found.token_ids, skip_special_tokens=True)
        assert list(frame.n_tokens) == [len(ids) for ids in found.token_ids] and not frame.cut.any()


def test_no_token_forced_is_no_steering(lm):
    assert continued(lm, PROMPTS, own(lm), 0, LIMIT).token_ids == own(lm)


def test_all_tokens_forced_is_the_other_models_answer(llama):
    "Whatever the model that is forced would say: nothing of it is left."
    other = LM.from_model(random_model("Llama", seed=3), byte_tokenizer())
    said = own(other)
    assert said != own(llama)
    assert continued(llama, PROMPTS, said, NEW, LIMIT).token_ids == said


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2 ** 16), st.floats(.1, 4))
def test_a_prefill_edit_of_the_last_block_is_its_first_token_and_nothing_more(architecture, seed, size):
    "The theorem of the design's section 6: forcing the edit's first token, nothing steered, gives the edit's answer."
    lm = random_lm(architecture)
    edited = sweep(lm, PROMPTS, [Condition(vector=size * push(lm, seed))], when="prefill", max_new_tokens=NEW).token_ids
    assert continued(lm, PROMPTS, edited, 1, LIMIT).token_ids == edited


@pytest.mark.parametrize("how", [{"when": "every_step"}, {"when": "prefill", "layer": 1}])
def test_other_edits_are_more_than_their_first_token(lm, how):
    "Otherwise the theorem would hold for an engine that edits nothing but first tokens."
    edited = sweep(lm, PROMPTS, [Condition(vector=push(lm))], max_new_tokens=NEW, **how).token_ids
    assert continued(lm, PROMPTS, edited, 1, LIMIT).token_ids != edited


@settings(max_examples=15, deadline=None)
@given(st.integers(0, NEW + 3), st.lists(st.lists(st.integers(6, 300), max_size=NEW + 3), min_size=4, max_size=4))
def test_answers_begin_as_told_end_where_told_and_are_no_longer_than_told(count, begun):
    lm = random_lm("Llama")
    found = continued(lm, PROMPTS, begun, count, LIMIT).token_ids
    for said, ids in zip(found, begun):
        assert said[:count] == ids[:count][:NEW] and len(said) <= NEW
        if len(ids) < count: assert said == ids[:NEW]   # its model had ended it


def test_samples_go_on_from_the_same_tokens_each_in_its_own_way(llama):
    drawn = Decoding(max_new_tokens=NEW, samples=3, temperature=1.0)
    begun = [[9], [], [9], [10]]   # the second had ended before its first token
    found = continued(llama, PROMPTS, begun, 1, drawn)
    assert list(found.frame()["sample"]) == [0, 1, 2] * 4 and list(found.frame().prompt) == [p for p in PROMPTS for _ in range(3)]
    assert found.token_ids[3:6] == [[]] * 3 and len({tuple(ids) for ids in found.token_ids[:3]}) > 1
    assert {ids[0] for ids in found.token_ids[:3]} == {9} and continued(llama, PROMPTS, begun, 1, drawn).token_ids == found.token_ids
    assert continued(llama, PROMPTS, begun, 0, drawn).token_ids == own(llama, samples=3, temperature=1.0)


def test_a_begun_model_is_the_model_and_knows_its_prompts(llama):
    begun = Begun(llama, [[1], [2, 3]])
    assert begun.model is llama.model and begun.eos == llama.eos and begun.encode(["a", "b"]) == [llama.encode(["a"])[0] + [1], llama.encode(["b"])[0] + [2, 3]]
    with pytest.raises(ValueError): begun.encode(["a"])


# A constant logit bias

@pytest.mark.parametrize("size", [0, 1, 10])
@pytest.mark.parametrize("screened", [False, True])
def test_biased_answers_are_those_of_generate_with_the_bias(lm, size, screened, monkeypatch):
    "Token by token, where the fast engine would screen the head in bfloat16 too."
    if screened:
        monkeypatch.setattr(decode, "SCREENED_FROM", 1)
        monkeypatch.setattr(decode, "_multiplies_bfloat16", lambda: True)
    bias, plain = biases(lm, size), own(lm)
    with within_bias(lm, bias):
        found = own(lm)
        assert found == [generated(lm, p) for p in PROMPTS]
    assert (found != plain) == (size > 0) and own(lm) == plain


def test_the_bias_is_added_before_the_cap_and_left_behind_by_nobody(lm):
    bias, h = biases(lm, 1), torch.randn(3, lm.width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = lm.head(lm.norm(h)) + torch.tensor(bias, dtype=torch.float32)
        if lm.softcap: wanted = lm.softcap * torch.tanh(wanted / lm.softcap)
        with within_bias(lm, bias):
            assert torch.allclose(lm.logits(h), wanted, atol=1e-4)
            with pytest.raises(ZeroDivisionError), within_bias(lm, bias): 1 / 0   # nested: both act, the inner one is taken off
            assert torch.allclose(lm.logits(h), wanted, atol=1e-4)
    assert lm.head.bias is None and not [n for n, _ in lm.model.named_parameters() if n.endswith("head.bias")]


def test_a_huge_bias_on_one_token_forces_it(lm):
    bias = np.zeros(len(lm.head.weight)); bias[42] = 1e6
    with within_bias(lm, bias): assert own(lm) == [[42] * NEW] * len(PROMPTS)


def test_a_huge_bias_on_the_end_says_nothing(lm):
    bias = np.zeros(len(lm.head.weight)); bias[lm.eos] = 1e6
    with within_bias(lm, bias): assert own(lm) == [[]] * len(PROMPTS)


def test_a_bias_that_does_not_fit_is_refused_before_anything_is_changed(llama):
    with pytest.raises(UserError, match="each of its tokens"), within_bias(llama, np.zeros(5)): pass
    assert llama.head.bias is None


def test_mean_logits_are_the_mean_of_logits(lm):
    h = np.random.default_rng(0).normal(size=(9, lm.width)).astype(np.float32)
    with torch.inference_mode(): one_by_one = lm.head(lm.norm(torch.tensor(h))).mean(0).numpy()
    assert mean_logits(lm, h).dtype == np.float32 and np.allclose(mean_logits(lm, h), one_by_one, atol=1e-4)


# Deeper inside

@given(st.integers(1, 200))
def test_depths_are_inner_blocks_in_order_each_once(n):
    found = depths(n)
    blocks = list(found.values())
    assert blocks == sorted(set(blocks)) and all(0 <= k < n - 1 for k in blocks) and list(found) == [w for w in DEPTHS if w in found]
    for words, block in found.items(): assert abs((block + 1) / n - DEPTHS[words]) <= 1 / n
    if n >= 4: assert len(found) == 3


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 5))
def test_vectors_at_depths_are_that_blocks_own_shift_and_random_ones_are_of_its_norm(layers, samples, seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 12, layers, 6)).astype(np.float32)
    made = depth_vectors({"activations": {"X": a}}, {"activations": {"X": b}}, samples=samples, seed=seed)
    conditions = at_depths(made["index"], -.5, "prefill")
    assert [c.key for c in conditions] == list(made["vectors"]) and len(conditions) == (samples + 1) * len(depths(layers))
    for c in conditions:
        v, shift = made["vectors"][c.key], (b - a)[:, c.layer].mean(0)
        assert np.isclose(np.linalg.norm(v), np.linalg.norm(shift), rtol=1e-4) and c.coefficient == -.5 and c.when == "prefill"
        if c.sample is None: assert np.allclose(v, shift, atol=1e-5)
    rows = [v for name, v in made["vectors"].items() if name.startswith("random")]
    assert len({v.tobytes() for v in rows}) == len(rows)   # no random vector comes twice


def test_the_best_coefficient_has_most_good_answers_and_is_the_smallest_of_equals():
    import pandas as pd
    table = pd.DataFrame({"coefficient": [-1.] * 3 + [-.25] * 3 + [-.5] * 3, "role": ["good", "good", "target"] * 2 + ["incoherent"] * 3})
    assert best_coefficient(table) == -.25 and best_coefficient(table.iloc[::-1]) == -.25
