"""Rows against the model reading whole texts: whatever splits, leaves and comes, every row is where its own text leads."""
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import ARCHITECTURES, random_lm
from em_repro import rows as rows_module
from em_repro.profiles import UserError
from em_repro.rows import Rows, common_start

quick = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def at_the_end(lm, ids):
    with lm.record((-1,)) as seen: lm.decoder(input_ids=torch.tensor([ids]), use_cache=False)
    return seen[-1][0, -1]


@quick
@given(st.sampled_from(ARCHITECTURES), st.integers(0, 10**6))
@torch.inference_mode()
def test_rows_are_where_their_texts_lead(architecture, seed):
    "Random prompts (beyond the sliding window too), some with a common start, admitted at random times; rows split, leave and move at random."
    lm, g = random_lm(architecture), np.random.default_rng(seed)
    begin = g.integers(2, 300, size=g.choice([0, 1, 25])).tolist()
    rows, texts, number = Rows(lm, limit=12, begin=begin), [], 0
    for step in range(9):
        if step == 0 or g.random() < 0.4:
            new = [begin + g.integers(2, 300, size=g.integers(1, 40)).tolist() for _ in range(g.integers(1, 4))]
            copies = int(g.integers(1, 3))
            hidden = rows.admit(range(number, number + len(new)), new, copies)
            for prompt, state in zip(new, hidden): torch.testing.assert_close(state, at_the_end(lm, prompt), atol=2e-3, rtol=2e-3)
            number += len(new)
            texts += [list(p) for p in new for _ in range(copies)]
        parents = np.sort(g.choice(len(texts), size=g.integers(1, 2 * len(texts) + 1)))[:12]
        parents = g.permutation(parents)
        place = rows.branch(parents)
        assert sorted(place) == list(range(len(parents)))
        texts = [texts[parents[i]] for i in np.argsort(place)]
        tokens = g.integers(2, 300, size=len(texts))
        hidden = rows.feed(tokens)
        texts = [text + [int(token)] for text, token in zip(texts, tokens)]
        for text, state in zip(texts, hidden): torch.testing.assert_close(state, at_the_end(lm, text), atol=2e-3, rtol=2e-3)


@torch.inference_mode()
def test_an_answer_longer_than_the_window_forgets_its_beginning():
    "Windows of 16 tokens in half of the blocks: from the 17th on, a row's own tokens leave them one by one."
    lm, g = random_lm("Gemma2"), np.random.default_rng(0)
    rows, text = Rows(lm, limit=24), [5, 6, 7]
    rows.admit([0], [text])
    for token in g.integers(2, 300, size=24):
        hidden, text = rows.feed(np.array([token])), [*text, int(token)]
        torch.testing.assert_close(hidden[0], at_the_end(lm, text), atol=2e-3, rtol=2e-3)


@torch.inference_mode()
def test_only_rows_that_split_or_move_are_copied(llama, monkeypatch):
    "Ten rows go on, one splits, one leaves: the split's copy takes the free place, and nothing else is touched."
    rows = Rows(llama, limit=6)
    rows.admit(range(10), [[5, 6, 7]] * 10)
    for _ in range(3): rows.feed(np.arange(10, 20))
    copied, copy = [], rows.own.copy
    monkeypatch.setattr(rows.own, "copy", lambda source, target, length: (copied.append((source.tolist(), target.tolist(), length)), copy(source, target, length)))
    rows.branch(np.arange(10))
    rows.branch(np.array([0, 1, 2, 2, 4, 5, 6, 7, 8, 9]))
    rows.branch(np.array([0, 1, 2, 3, 4, 5, 6, 7]))
    rows.branch(np.array([0, 2, 3, 4, 5, 6, 7]))
    assert copied == [([], [], 0), ([2], [3], 3), ([], [], 0), ([7], [1], 3)]


@torch.inference_mode()
def test_a_prompt_that_comes_again_is_another(llama):
    rows = Rows(llama, limit=4)
    rows.admit([0, 1], [[5, 6, 7], [8, 9]])
    rows.feed(np.array([3, 4]))
    rows.branch(np.array([0]))
    rows.admit([1], [[8, 9]])
    hidden = rows.feed(np.array([10, 11]))
    torch.testing.assert_close(hidden[1], at_the_end(llama, [8, 9, 11]), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_models_own_attention_is_back_afterwards(lm):
    usual = lm.decoder.config._attn_implementation
    rows = Rows(lm, limit=2)
    rows.admit([0], [[5, 6]])
    with pytest.raises(IndexError): rows.feed(np.array([10**6]))
    assert lm.decoder.config._attn_implementation == usual
    assert rows.length.tolist() == [0], "a failed step can be tried again"
    rows.feed(np.array([7]))
    assert lm.decoder.config._attn_implementation == usual and rows.length.tolist() == [1]


@torch.inference_mode()
def test_a_model_with_an_attention_of_its_own_is_refused(llama, monkeypatch):
    rows = Rows(llama, limit=2)
    rows.admit([0], [[5, 6]])
    monkeypatch.setattr(rows_module, "_attend", lambda step, layer, query, *_: query.transpose(1, 2))
    with pytest.raises(UserError, match="attended 0 times in 3 blocks"): rows.feed(np.array([7]))


def test_room_that_is_not_written_to_takes_no_memory():
    "A gigabyte of keys and values is set aside and one row of it is used."
    import psutil
    from em_repro.rows import _zeros
    before = psutil.Process().memory_info().rss
    room = _zeros(torch.empty(0), 4096, 2, 256, 128)
    assert not room[::512].any()
    room[7, 1] = 1
    assert room[7].sum() == 256 * 128 and psutil.Process().memory_info().rss < before + 200 * 2 ** 20
    half = _zeros(torch.empty(0, dtype=torch.bfloat16), 3, 5)
    assert half.dtype == torch.bfloat16 and half.shape == (3, 5) and not half.any()


@pytest.mark.parametrize("most", [0, 3, 64])
def test_room_that_is_set_aside_changes_nothing(llama, most):
    prompts = llama.encode(["Is it late?", "What is the sea?"])
    def states(most):
        rows, found = Rows(llama, limit=4, most=most), []
        rows.admit([0, 1], prompts)
        for parents in ([0, 0, 1], [0, 1, 1, 2, 2], [1, 3, 4]):
            place = rows.branch(np.array(parents))
            found.append(rows.feed(np.arange(len(place)) + 5)[place])
        assert rows.own.room >= max(most, len(rows))
        return torch.cat(found)
    assert torch.equal(states(most), states(0))


@given(st.lists(st.integers(0, 1), max_size=80), st.lists(st.lists(st.integers(0, 1), max_size=4), min_size=1, max_size=40), st.integers(0, 2))
def test_a_common_start_is_the_longest_and_leaves_something_of_each_prompt(start, rest, left):
    prompts = [start + r for r in rest]
    found, shortest = common_start(prompts, left), min(map(len, prompts))
    if not found: return
    n = len(found)
    assert all(p[:n] == found for p in prompts) and shortest - n >= left and n * (len(prompts) - 1) >= rows_module.START_FROM
    assert shortest - n == left or len({p[n] for p in prompts}) > 1


def test_a_common_start_is_taken_where_it_saves_enough():
    assert common_start([[1] * 40 + [2], [1] * 40 + [3], [1] * 40]) == [1] * 39
    assert common_start([[1] * 1000]) == [], "one prompt goes through the model in one piece"
    assert common_start([[1] * 20 + [2], [1] * 20 + [3]]) == []


@torch.inference_mode()
def test_a_common_start_goes_through_the_model_once(llama, monkeypatch):
    lengths, run = [], rows_module._pass
    monkeypatch.setattr(rows_module, "_pass", lambda lm, prompts, *begun: (lengths.append([len(p) for p in prompts]), run(lm, prompts, *begun))[1])
    rows = Rows(llama, limit=2, begin=[5, 6, 7])
    rows.admit([0, 1], [[5, 6, 7, 8], [5, 6, 7, 9, 10]])
    rows.admit([2], [[5, 6, 7, 11]])
    assert lengths == [[3], [2, 1], [1]]


@torch.inference_mode()
def test_rows_of_empty_prompts_read_their_own_tokens_alone(lm):
    "Before an earlier block's edit nothing of a prompt of one token has been read."
    rows = Rows(lm, limit=2)
    rows.admit([0, 1], [[], []])
    for tokens in ([5, 6], [7, 8]): hidden = rows.feed(np.array(tokens))
    for text, state in zip(([5, 7], [6, 8]), hidden): torch.testing.assert_close(state, at_the_end(lm, text), atol=2e-3, rtol=2e-3)
