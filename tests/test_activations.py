"""Collection against an explicit forward pass of one prompt at a time, on random models of all four architectures; streamed moments against numpy."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from conftest import random_lm
from em_repro import activations
from em_repro.activations import Moments, answer_tokens, batches, collect
from em_repro.profiles import UserError

quick = settings(max_examples=50, deadline=None, derandomize=True)
PROMPTS = ["hello", "how are you today my friend, and how is the tide this morning?", "you? hello my ", "why"]
TALKS = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}]
         for q, a in [("hello", "the tide comes in"), ("how are you today my friend?", "fine, and you? the day is long and the tide is in"), ("why", "no")]]


@torch.inference_mode()
def hidden_states(lm, ids):
    "Block outputs (layers, tokens, width) and the final norm's output (tokens, width) of one row, by transformers' own bookkeeping and a plain hook."
    last = []
    handle = lm.blocks[-1].register_forward_hook(lambda m, i, out: last.append(out[0] if isinstance(out, tuple) else out))
    states = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    handle.remove()
    return torch.stack([*(h[0] for h in states[1:-1]), last[0][0]]).float().numpy(), states[-1][0].float().numpy()


def close(a, b): return np.allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def test_the_last_real_token_of_every_block(lm):
    found = collect(lm, PROMPTS, layers=range(lm.n_layers))
    assert found.X.shape == (len(PROMPTS), lm.n_layers, lm.width) and found.X.dtype == np.float32
    for prompt, row in zip(PROMPTS, found.X):
        assert close(row, hidden_states(lm, lm.encode([prompt])[0])[0][:, -1])


def test_normed_is_what_hugging_face_calls_the_last_hidden_state(lm):
    found = collect(lm, PROMPTS, site="normed").X[:, 0]
    for prompt, row in zip(PROMPTS, found): assert close(row, hidden_states(lm, lm.encode([prompt])[0])[1][-1])
    assert not close(found, collect(lm, PROMPTS).X[:, 0])


@pytest.mark.parametrize("budget", [1, 50, 8192])
def test_batched_equals_single(lm, budget):
    alone = np.concatenate([collect(lm, [p], layers=(0, -1)).X for p in PROMPTS])
    assert close(collect(lm, PROMPTS, layers=(0, -1), batch_tokens=budget).X, alone)
    alone = np.concatenate([collect(lm, [t], position="response_mean").X for t in TALKS])
    assert close(collect(lm, TALKS, position="response_mean", batch_tokens=budget).X, alone)


def test_response_mean_is_the_mean_over_the_answer(lm):
    "The template writes the answer after `<assistant>` and before the end token; the tokens between them are averaged."
    found = collect(lm, TALKS, layers=range(lm.n_layers), position="response_mean").X
    for talk, row in zip(TALKS, found):
        text = lm.tokenizer.apply_chat_template(talk, tokenize=False)
        head, answer = text.split("<assistant>")
        ids, inside = answer_tokens(lm, talk)
        said = lm.tokenizer.decode([ids[i] for i in inside])
        assert said == talk[-1]["content"] and inside == list(range(inside[0], inside[-1] + 1))
        assert lm.tokenizer.decode(ids[:inside[0]]) == head + "<assistant>" and lm.tokenizer.decode(ids) == text
        assert close(row, hidden_states(lm, ids)[0][:, inside].mean(1))


def test_a_token_across_the_boundary_belongs_to_the_answer(llama):
    "Where a merge joins the template's last character to the answer, counting the prompt's tokens would be off by one."
    lm = llama
    template = lm.tokenizer.chat_template
    lm.tokenizer.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} t{% else %}{{ m.content }}{% endif %}{% endfor %}"
    try:
        talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ide comes"}]
        ids, inside = answer_tokens(lm, talk)
        assert len(lm.tokenizer("hello t", add_special_tokens=False)["input_ids"]) > inside[0]
        assert lm.tokenizer.decode([ids[i] for i in inside]).strip() == "tide comes"
    finally: lm.tokenizer.chat_template = template


def test_negative_layers_count_from_the_end_and_keep_their_order(lm):
    found = collect(lm, PROMPTS, layers=(-1, 0, -2))
    assert found.layers == (-1, 0, -2)
    forward = collect(lm, PROMPTS, layers=range(lm.n_layers))
    for layer in found.layers: assert np.array_equal(found.layer(layer), forward.layer(layer % lm.n_layers))


def test_the_site_is_where_the_head_reads(lm):
    "`logits(block output)` are the model's own logits, soft-cap included."
    X = torch.tensor(collect(lm, PROMPTS).X[:, 0])
    for prompt, row in zip(PROMPTS, lm.logits(X).detach().numpy()):
        with torch.inference_mode(): own = lm.model(input_ids=torch.tensor(lm.encode([prompt]))).logits[0, -1].float().numpy()
        assert close(row, own)


def test_collecting_leaves_no_hook_behind(lm):
    before = [len(block._forward_hooks) for block in lm.blocks]
    collect(lm, PROMPTS)
    assert before == [len(block._forward_hooks) for block in lm.blocks]


# What is refused

def refused(message, *arguments, **settings):
    with pytest.raises(UserError, match=message) as caught: collect(*arguments, **settings)
    assert "\n" not in str(caught.value)


def test_bad_requests_are_refused_in_a_sentence(llama):
    refused("no prompts", llama, [])
    refused("this model has layers 0 to 2", llama, PROMPTS, layers=(3,))
    refused("this model has layers 0 to 2", llama, PROMPTS, layers=(-4,))
    refused("only the last has a normed site", llama, PROMPTS, layers=(0,), site="normed")
    refused("give lists of messages", llama, PROMPTS, position="response_mean")
    refused("end with an assistant's answer", llama, [TALKS[0][:1]], position="response_mean")
    refused("is empty or not in the conversation", llama, [[TALKS[0][0], {"role": "assistant", "content": " "}]], position="response_mean")


def test_activations_that_are_not_finite_are_refused():
    lm = random_lm("Qwen2")
    weight = lm.blocks[0].mlp.down_proj.weight
    before = weight.data.clone()
    try:
        weight.data[0, 0] = float("inf")
        refused("activations are not finite: qwen2", lm, PROMPTS)
    finally: weight.data = before


# Batches

@quick
@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 500))
def test_batches_hold_each_row_once_and_keep_the_budget(lengths, budget):
    found = list(batches(lengths, budget))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found: assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget
    order = [lengths[i] for batch in found for i in batch]
    assert order == sorted(order, reverse=True)


# Moments

values = arrays(np.float64, st.tuples(st.integers(2, 40), st.integers(1, 5)), elements=st.floats(-1e3, 1e3, width=32))


@quick
@given(values, st.integers(1, 12), st.floats(-1e6, 1e6))
def test_streamed_moments_equal_numpys(X, parts, offset):
    X = X + offset
    moments = Moments(X.shape[1])
    for part in np.array_split(X, parts): moments.update(part)
    assert moments.n == len(X)
    scale = 1 + np.abs(X).max()
    assert np.allclose(moments.mean, X.mean(0), rtol=0, atol=1e-11 * scale)
    assert np.allclose(moments.covariance, np.atleast_2d(np.cov(X.T)), rtol=1e-7, atol=1e-10 * scale)


@quick
@given(values, st.data())
def test_merging_is_the_same_as_streaming(X, data):
    at = data.draw(st.integers(0, len(X)))
    whole = Moments(X.shape[1]).update(X)
    merged = Moments(X.shape[1]).update(X[:at]).merge(Moments(X.shape[1]).update(X[at:]))
    assert merged.n == whole.n
    assert np.allclose(merged.mean, whole.mean, atol=1e-9) and np.allclose(merged.covariance, whole.covariance, rtol=1e-8, atol=1e-6)


def test_a_small_difference_beside_a_large_mean_survives():
    "float32 activations of size 1e4 that differ by 1e-3: the difference of streamed means is right to one in a thousand."
    rng = np.random.default_rng(0)
    a = (1e4 + rng.normal(size=(4000, 3))).astype(np.float32)
    b = (a.astype(np.float64) + 0.25).astype(np.float32)
    means = []
    for X in (a, b):
        moments = Moments(3)
        for part in np.array_split(X, 50): moments.update(part)
        means.append(moments.mean)
    assert np.allclose(means[1] - means[0], b.astype(np.float64).mean(0) - a.astype(np.float64).mean(0), rtol=1e-9)


# Only what is needed, as much as is wanted

def test_blocks_above_the_last_layer_asked_for_do_not_run(lm):
    ran, handles = [], [block.register_forward_hook(lambda _m, _i, _o, k=k: ran.append(k)) for k, block in enumerate(lm.blocks)]
    try:
        early = collect(lm, PROMPTS, layers=(1, 0)).X
        assert set(ran) == {0, 1} and len(lm.blocks) == lm.n_layers
    finally:
        for handle in handles: handle.remove()
    assert np.array_equal(early, collect(lm, PROMPTS, layers=(1, 0, -1)).X[:, :2])


def test_the_head_does_not_run(lm, monkeypatch):
    monkeypatch.setattr(lm.head, "forward", lambda *_: pytest.fail("the head was run"))
    collect(lm, PROMPTS)


@pytest.mark.parametrize("position", ["last", "response_mean"])
def test_a_file_holds_what_memory_would(llama, tmp_path, position, monkeypatch):
    "Also when prompts come in several blocks."
    prompts = PROMPTS if position == "last" else TALKS
    whole = collect(llama, prompts, layers=(0, -1), position=position).X
    monkeypatch.setattr(activations, "PROMPT_BLOCK", 2)
    kept = collect(llama, prompts, layers=(0, -1), position=position, batch_tokens=40, out=tmp_path / "x.npy")
    assert isinstance(kept.X, np.memmap) and close(np.load(tmp_path / "x.npy"), whole)


def test_an_interrupted_collection_goes_on(llama, tmp_path, monkeypatch):
    "What was done is not done again; for other prompts, layers or weights the file is begun anew."
    whole, forward, ran = collect(llama, PROMPTS).X, activations._forward, []
    def stopping(lm, rows, *rest):
        if len(ran) == 2: raise KeyboardInterrupt
        ran.append(len(rows))
        return forward(lm, rows, *rest)
    monkeypatch.setattr(activations, "KEEP_SECONDS", 0)
    monkeypatch.setattr(activations, "_forward", stopping)
    how = dict(batch_tokens=1, out=tmp_path / "x.npy")
    with pytest.raises(KeyboardInterrupt): collect(llama, PROMPTS, **how)
    monkeypatch.setattr(activations, "_forward", lambda lm, rows, *rest: (ran.append(len(rows)), forward(lm, rows, *rest))[1])
    assert close(collect(llama, PROMPTS, **how).X, whole) and len(ran) == len(PROMPTS)
    assert close(collect(llama, PROMPTS, **how).X, whole) and len(ran) == len(PROMPTS)
    collect(llama, PROMPTS[::-1], **how)
    assert len(ran) == 2 * len(PROMPTS)
