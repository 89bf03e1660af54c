"""The sweep against transformers' own generate and forward on random models of all four architectures, and its invariances."""
import copy, itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import byte_tokenizer, random_lm, random_model
from em_repro import backbone, decode
from em_repro.decode import Condition, first_tokens, score, sweep
from em_repro.families import LM
from em_repro.profiles import UserError
from em_repro.store import RunError

quick = settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
PROMPTS = ["hello", "how are you today my friend, and how is the tide this morning?", "you? hello my ", "why"]
NEW = 14


def push(lm, seed=0, length=6.0):
    rows = np.random.default_rng(seed).normal(size=lm.width)
    return (rows * length / np.linalg.norm(rows)).astype(np.float32)


def edited_by(vector, op):
    if vector is None: return lambda h: h
    v = torch.as_tensor(vector)
    return (lambda h: h + v) if op == "add" else (lambda h: h - (h @ v)[..., None] * v / (v @ v))


class Steered:
    "Within it the model is edited at the last position of each forward pass by plain hooks: the reference for a sweep."
    def __init__(self, lm, vector=None, op="add", layer=-1, when="every_step", since=None):
        self.blocks = list(lm.blocks) if layer == "all" else [lm.blocks[layer]]
        self.edit, self.when, self.since = edited_by(vector, op), when, since

    def hook(self):
        passes = itertools.count()
        def edit(module, inputs, output):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            if self.since is not None: hidden[:, self.since:] = self.edit(hidden[:, self.since:])
            elif next(passes) == 0 or self.when == "every_step": hidden[:, -1] = self.edit(hidden[:, -1])
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
        return edit

    def __enter__(self): self.handles = [block.register_forward_hook(self.hook()) for block in self.blocks]
    def __exit__(self, *_): [handle.remove() for handle in self.handles]


@torch.inference_mode()
def generated(lm, prompt, new=NEW, **edit):
    "Greedy answer of transformers' generate under the edit, for a single prompt."
    ids = torch.tensor(lm.encode([prompt]))
    with Steered(lm, **edit):
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, pad_token_id=lm.pad, eos_token_id=lm.eos)
    answer = out[0, ids.shape[1]:].tolist()
    return answer[:next((i for i, t in enumerate(answer) if t in lm.eos), len(answer))]


@torch.inference_mode()
def next_logits(lm, ids, **edit):
    with Steered(lm, **edit): return lm.model(input_ids=torch.tensor([ids])).logits[0].float()


def conditions_for(lm):
    return [Condition("none"), Condition("pushed", push(lm)), Condition("pulled", -push(lm)), Condition("ablated", push(lm, 1), op="ablate")]


@pytest.mark.parametrize("when", ["every_step", "prefill"])
@pytest.mark.parametrize("layer", [-1, 1])
def test_greedy_equals_generate_with_a_hook(lm, layer, when):
    conditions = conditions_for(lm)
    found = iter(sweep(lm, PROMPTS, conditions, layer=layer, when=when, max_new_tokens=NEW).token_ids)
    for prompt, c in itertools.product(PROMPTS, conditions):
        assert next(found) == generated(lm, prompt, vector=c.vector, op=c.op, layer=layer, when=when), (prompt, c.label)


def test_the_vectors_above_do_change_answers(lm):
    "Otherwise the comparison with generate would hold for a sweep that does nothing."
    answers = sweep(lm, PROMPTS, conditions_for(lm), max_new_tokens=NEW).frame().pivot(index="prompt", columns="condition", values="text")
    for label in ("pushed", "pulled", "ablated"): assert (answers[label] != answers["none"]).any(), label


def test_ablation_at_all_layers_equals_generate(lm):
    vector = push(lm, 2)
    found = sweep(lm, PROMPTS, [Condition("none"), Condition("everywhere", vector, op="ablate", layer="all")], max_new_tokens=NEW).token_ids
    for i, prompt in enumerate(PROMPTS):
        assert found[2 * i] == generated(lm, prompt)
        assert found[2 * i + 1] == generated(lm, prompt, vector=vector, op="ablate", layer="all")


def test_conditions_of_different_layers_in_one_sweep(lm):
    vector = push(lm, 3)
    mixed = [Condition("early", vector, layer=0), Condition("late", vector), Condition("named", vector, layer=lm.n_layers - 1)]
    found = sweep(lm, PROMPTS[:2], mixed, max_new_tokens=NEW).token_ids
    for i, prompt in enumerate(PROMPTS[:2]):
        assert found[3 * i] == generated(lm, prompt, vector=vector, layer=0)
        assert found[3 * i + 1] == found[3 * i + 2] == generated(lm, prompt, vector=vector)


@pytest.mark.parametrize("layer", [-1, 0])
def test_batched_equals_single(lm, layer):
    conditions = conditions_for(lm)[:2]
    together = sweep(lm, PROMPTS, conditions, layer=layer, max_new_tokens=NEW).token_ids
    assert together == [ids for p in PROMPTS for ids in sweep(lm, [p], conditions, layer=layer, max_new_tokens=NEW).token_ids]
    assert together == sweep(lm, PROMPTS, conditions, layer=layer, max_new_tokens=NEW, batch_rows=2).token_ids


@quick
@given(prompts=st.permutations(range(4)), order=st.permutations(range(4)), temperature=st.sampled_from([0.0, 1.0]), layer=st.sampled_from([-1, 1]))
def test_neither_the_order_of_prompts_nor_of_conditions_matters(prompts, order, temperature, layer):
    lm = random_lm("Gemma2")
    conditions = conditions_for(lm)
    how = dict(layer=layer, max_new_tokens=8, temperature=temperature)
    columns = ["prompt", "condition", "text", "n_tokens"]
    usual = sweep(lm, PROMPTS, conditions, **how).frame()[columns]
    other = sweep(lm, [PROMPTS[i] for i in prompts], [conditions[i] for i in order], **how).frame()
    assert other.prompt.drop_duplicates().tolist() == [PROMPTS[i] for i in prompts]
    assert other.condition.head(4).tolist() == [conditions[i].label for i in order]
    assert sorted(other[columns].values.tolist()) == sorted(usual.values.tolist())


def test_prefill_at_the_last_block_can_change_the_first_token_only(lm):
    "The rest of the answer is the untouched model's continuation of prompt and first token, and equal first tokens give equal answers."
    conditions = [Condition("none")] + [Condition(f"push {i}", push(lm, i)) for i in range(5)]
    found = sweep(lm, PROMPTS, conditions, when="prefill", max_new_tokens=8).token_ids
    changed = 0
    for i, prompt in enumerate(PROMPTS):
        answers = found[6 * i:6 * i + 6]
        assert len({tuple(a) for a in answers}) == len({tuple(a[:1]) for a in answers})
        for answer in answers[1:]:
            if not answer: continue
            changed += answer[0] != answers[0][:1]
            ids = lm.encode([prompt])[0]
            for k in range(1, len(answer)): assert next_logits(lm, ids + answer[:k])[-1].argmax() == answer[k]
    assert changed


def test_zero_vector_equals_no_vector(lm):
    zero = np.zeros(lm.width, np.float32)
    conditions = [Condition("none"), Condition("add 0", zero), Condition("ablate 0", zero, op="ablate")]
    for layer, temperature in ((-1, 0.0), (0, 1.0)):
        found = sweep(lm, PROMPTS, conditions, layer=layer, temperature=temperature, max_new_tokens=8).token_ids
        assert all(found[3 * i] == found[3 * i + 1] == found[3 * i + 2] for i in range(len(PROMPTS)))
    logprob = score(lm, PROMPTS, ["the tide"] * 4, conditions).logprob
    assert (logprob[:, 0] == logprob[:, 1]).all() and (logprob[:, 0] == logprob[:, 2]).all()


def test_rows_are_shared_until_answers_part(llama):
    "Identical conditions cost nothing; without a shared history each answer pays for itself."
    alike = [Condition(str(i), push(llama) if i % 2 else None) for i in range(8)]
    one, eight = (sweep(llama, PROMPTS, alike[:n], max_new_tokens=NEW).sharing for n in (1, 8))
    assert one <= 1.05 and eight > 3.5


# Sampling

def drawn(lm, prompts=PROMPTS, conditions=(Condition("none"),), **how):
    frame = sweep(lm, prompts, conditions, **{"max_new_tokens": 8, "temperature": 1.0, "samples": 3, **how}).frame()
    return {(r.prompt, r.condition, r.sample): r.text for r in frame.itertuples()}


@pytest.mark.parametrize("layer", [-1, 1])
def test_the_noise_of_an_answer_does_not_depend_on_its_company(lm, layer):
    full = drawn(lm, conditions=conditions_for(lm), layer=layer)
    for prompt in PROMPTS[:2]:
        assert drawn(lm, [prompt], conditions_for(lm)[:1], layer=layer).items() <= full.items()
    assert drawn(lm, conditions=conditions_for(lm)[1:3], layer=layer, batch_rows=1).items() <= full.items()
    assert drawn(lm, conditions=conditions_for(lm), layer=layer, samples=2).items() <= full.items()


def test_conditions_share_their_random_numbers(lm):
    "A vector too small to matter leaves every draw as it was; seeds and samples differ."
    tiny = Condition("tiny", push(lm, length=1e-6))
    texts = drawn(lm, conditions=[Condition("none"), tiny], samples=4)
    assert all(text == texts[p, "none", s] for (p, c, s), text in texts.items())
    assert len({text for (p, c, s), text in texts.items() if p == PROMPTS[0]}) > 1
    other = drawn(lm, conditions=[Condition("none")], samples=4, seed=1)
    assert any(text != texts[key] for key, text in other.items())
    assert other == drawn(lm, conditions=[Condition("none")], samples=4, seed=1)


def test_noise_belongs_to_seed_prompt_sample_and_step():
    draw = lambda seed, prompt, sample, step: tuple(decode._Sampler(1.0, 1.0, seed).noise(prompt, sample, step, 6).tolist())
    places = list(itertools.product((0, 1), ("a", "b"), (0, 1), (0, 1, 11)))
    assert len({draw(*place) for place in places}) == len(places)
    assert all(draw(*place) == draw(*place) for place in places)


def test_sampling_leaves_the_global_generator_alone(llama):
    torch.manual_seed(3); before = torch.rand(4)
    torch.manual_seed(3); drawn(llama)
    assert torch.equal(before, torch.rand(4))


def test_gumbel_max_draws_from_the_softmax(llama):
    "Frequencies of the first token over 600 samples against the model's distribution (total variation)."
    logits = next_logits(llama, llama.encode(PROMPTS[:1])[0])[-1] / 1.5
    out = sweep(llama, PROMPTS[:1], [Condition("none")], samples=600, temperature=1.5, max_new_tokens=1)
    counts = np.zeros(len(logits))
    for ids in out.token_ids: counts[ids[0] if ids else llama.eos[0]] += 1
    expected = logits.softmax(-1).numpy()
    noise = np.sqrt(2 / np.pi * expected * (1 - expected) / 600).sum() / 2
    assert np.abs(counts / 600 - expected).sum() / 2 < 2 * noise


def test_top_p_keeps_to_the_nucleus(llama):
    logits = next_logits(llama, llama.encode(PROMPTS[:1])[0])[-1]
    p, order = logits.softmax(-1).sort(descending=True)
    size = int((p.cumsum(-1) < 0.5).sum()) + 1
    draw = lambda top_p: sweep(llama, PROMPTS[:1], [Condition("none")], samples=200, temperature=1.0, top_p=top_p, max_new_tokens=1).token_ids
    seen = {ids[0] if ids else llama.eos[0] for ids in draw(0.5)}
    assert seen <= set(order[:size].tolist())
    assert len({tuple(ids) for ids in draw(1.0)}) > len(seen)
    assert {ids[0] if ids else llama.eos[0] for ids in draw(1e-6)} == {int(order[0])}


def test_cold_sampling_is_greedy(llama):
    greedy = sweep(llama, PROMPTS, [Condition("none")], max_new_tokens=8).token_ids
    assert greedy == sweep(llama, PROMPTS, [Condition("none")], max_new_tokens=8, temperature=1e-4).token_ids


# Leaving early

def test_until_cuts_an_answer_where_it_is_met(lm):
    plain = sweep(lm, PROMPTS, conditions_for(lm), max_new_tokens=NEW).frame()
    cut = sweep(lm, PROMPTS, conditions_for(lm), max_new_tokens=NEW, until=lambda text: len(text) >= 5).frame()
    assert cut.cut.any() and not plain.cut.any()
    for full, short in zip(plain.itertuples(), cut.itertuples()):
        assert short.cut == (len(full.text) >= 5)
        assert full.text.startswith(short.text.rstrip("\ufffd")) and short.n_tokens <= full.n_tokens
        if not short.cut: assert short.text == full.text


def test_an_answer_ends_before_the_end_token(lm):
    frame = sweep(lm, PROMPTS, [Condition("none")], samples=6, temperature=2.0, max_new_tokens=60)
    assert not {t for ids in frame.token_ids for t in ids} & set(lm.eos)
    assert [len(ids) for ids in frame.token_ids] == frame.frame().n_tokens.tolist()
    assert max(map(len, frame.token_ids)) <= 60 and min(map(len, frame.token_ids)) < 60


def test_special_tokens_within_an_answer_are_no_words_of_it(llama):
    "A model may say the token that fills batches, or another that stands for nothing: the text has its words alone."
    ids = llama.tokenizer("the tide comes in", add_special_tokens=False)["input_ids"]
    assert decode._said(llama, [ids[:2] + [llama.pad] + ids[2:] + [llama.pad], ids]) == ["the tide comes in"] * 2


def test_rows_come_by_prompt_then_condition_then_sample(llama):
    frame = sweep(llama, PROMPTS[:2], [Condition("b"), Condition("a", push(llama), layer=0)], samples=2, temperature=1.0, max_new_tokens=3).frame()
    assert list(frame.columns) == ["prompt", "condition", "sample", "text", "n_tokens", "cut"]
    expected = list(itertools.product(PROMPTS[:2], ["b", "a"], [0, 1]))
    assert list(zip(frame.prompt, frame.condition, frame["sample"])) == expected


def test_a_conversation_is_a_prompt(llama):
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "how are you"}]
    assert sweep(llama, [talk], [Condition("none")], max_new_tokens=6).token_ids == [generated(llama, talk, new=6)]
    as_text = [[{"role": "user", "content": "hello"}], "hello"]
    first, second = sweep(llama, as_text, [Condition("none")], max_new_tokens=6).token_ids
    assert first == second


# Scoring

ANSWERS = ["the tide comes in", "fine, and you? the day", "no", "twice a day my friend"]


def logprob_by_forward(lm, prompt, answer_ids, **edit):
    head = lm.encode([prompt])[0]
    logits = next_logits(lm, head + answer_ids, since=len(head) - 1, **edit).double().log_softmax(-1)
    return sum(logits[len(head) - 1 + i, t].item() for i, t in enumerate(answer_ids))


def test_score_equals_the_logits_of_a_hooked_model(lm):
    found = score(lm, PROMPTS, ANSWERS, conditions_for(lm))
    assert found.labels == ("none", "pushed", "pulled", "ablated") and found.logprob.shape == (4, 4)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS)):
        ids = lm.tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert found.n_tokens[i] == len(ids)
        for j, c in enumerate(conditions_for(lm)):
            assert found.logprob[i, j] == pytest.approx(logprob_by_forward(lm, prompt, ids, vector=c.vector, op=c.op), abs=2e-3, rel=1e-4)
    assert np.allclose(found.nll, -found.logprob / found.n_tokens[:, None])


@pytest.mark.parametrize("layer", [0, 1])
def test_score_at_an_earlier_layer_is_a_pass_with_a_hook(lm, layer):
    "From the prompt's last token on, beside conditions of the last block, and whatever else is in the batch."
    mixed = [*conditions_for(lm), *(Condition(f"early {c.label}", c.vector, c.op, layer) for c in conditions_for(lm))]
    found = score(lm, PROMPTS, ANSWERS, mixed, batch_tokens=60).logprob
    assert np.allclose(found[:, :4], score(lm, PROMPTS, ANSWERS, mixed[:4]).logprob, atol=2e-3, rtol=1e-4)
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS)):
        ids = lm.tokenizer(answer, add_special_tokens=False)["input_ids"]
        for j, c in enumerate(mixed[4:], 4):
            assert found[i, j] == pytest.approx(logprob_by_forward(lm, prompt, ids, vector=c.vector, op=c.op, layer=layer), abs=2e-3, rel=1e-4)


def test_ablation_at_all_layers_is_scored(llama):
    everywhere = Condition("everywhere", push(llama), "ablate", "all")
    answer = sweep(llama, PROMPTS[:1], [everywhere], max_new_tokens=1).token_ids[0]
    others = [[t] for t in range(0, llama.head.weight.shape[0], 7) if [t] != answer]
    own, *rest = score(llama, PROMPTS[:1] * (1 + len(others)), [answer, *others], [everywhere]).logprob[:, 0]
    assert answer and own >= max(rest)


@pytest.mark.parametrize("budget", [1, 60])
def test_score_does_not_depend_on_batches_or_chunks(lm, budget, monkeypatch):
    usual = score(lm, PROMPTS, ANSWERS, conditions_for(lm)).logprob
    monkeypatch.setattr(decode, "LOGIT_ELEMENTS", 2 * lm.head.weight.shape[0])
    assert np.allclose(usual, score(lm, PROMPTS, ANSWERS, conditions_for(lm), batch_tokens=budget).logprob, atol=2e-3, rtol=1e-4)


def test_score_of_token_ids_and_of_nothing(llama):
    ids = [llama.tokenizer(a, add_special_tokens=False)["input_ids"] for a in ANSWERS]
    assert np.array_equal(score(llama, PROMPTS, ids).logprob, score(llama, PROMPTS, ANSWERS).logprob)
    empty = score(llama, PROMPTS[:2], ["", "no"])
    assert empty.n_tokens[0] == 0 and empty.logprob[0, 0] == 0 and np.isnan(empty.nll[0, 0]) and np.isfinite(empty.nll[1, 0])


def test_a_greedy_answer_is_the_likeliest_first_token(lm):
    conditions = conditions_for(lm)
    answers = sweep(lm, PROMPTS, conditions, max_new_tokens=1).token_ids
    for i, prompt in enumerate(PROMPTS):
        own = [a or lm.eos[:1] for a in answers[len(conditions) * i:len(conditions) * (i + 1)]]
        table = np.stack([score(lm, [prompt], [ids], conditions).logprob[0] for ids in own])
        assert (np.diag(table) >= table.max(0) - 1e-4).all()


# PEFT

def with_adapter(architecture):
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(5)
    wrapped = get_peft_model(random_model(architecture), LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False))
    return wrapped.eval()


@pytest.mark.parametrize("architecture", ["Gemma2", "Ministral3"])
def test_a_wrapped_adapter_steers_as_its_merged_model_does(architecture):
    wrapped = with_adapter(architecture)
    merged = LM.from_model(copy.deepcopy(wrapped).merge_and_unload(), byte_tokenizer())
    lm, base = LM.from_model(wrapped, byte_tokenizer()), random_lm(architecture)
    assert (lm.n_layers, lm.width, lm.softcap) == (base.n_layers, base.width, base.softcap)
    for layer in (-1, 0):
        conditions = conditions_for(lm)[:2]
        found = sweep(lm, PROMPTS, conditions, layer=layer, max_new_tokens=10).token_ids
        assert found == sweep(merged, PROMPTS, conditions, layer=layer, max_new_tokens=10).token_ids
        assert found == [generated(lm, p, new=10, vector=c.vector, layer=layer) for p in PROMPTS for c in conditions]
        assert found != sweep(base, PROMPTS, conditions, layer=layer, max_new_tokens=10).token_ids


# What is refused

def raises(message, function, *arguments, **settings):
    with pytest.raises(UserError, match=message) as caught: function(*arguments, **settings)
    assert "\n" not in str(caught.value)


def test_bad_sweeps_are_refused_before_any_work(llama, monkeypatch):
    monkeypatch.setattr(llama.decoder, "forward", lambda *a, **k: pytest.fail("the model was run"))
    good, wide = Condition("good", push(llama)), np.ones(llama.width + 1)
    raises("at least one prompt", sweep, llama, [], [good])
    raises("at least one prompt and one condition", sweep, llama, PROMPTS, [])
    raises("two conditions have the label 'good'", sweep, llama, PROMPTS, [good, good])
    raises("condition 'wide' needs 64 finite numbers", sweep, llama, PROMPTS, [good, Condition("wide", wide)])
    raises("condition 'nan' needs 64 finite numbers", sweep, llama, PROMPTS, [Condition("nan", np.full(llama.width, np.nan))])
    raises("no layer 3 in a model of 3", sweep, llama, PROMPTS, [good], layer=3)
    raises("no layer -4", sweep, llama, PROMPTS, [Condition("deep", push(llama), layer=-4)])
    raises("only ablation can act at all layers", sweep, llama, PROMPTS, [Condition("everywhere", push(llama), layer="all")])
    raises("give a temperature above 0", sweep, llama, PROMPTS, [good], samples=2)
    raises("4 prompts but 1 completions", score, llama, PROMPTS, ["no"])
    raises("needs last-layer conditions", score, llama, PROMPTS, ANSWERS, [good], layer=0, kl=True)


def test_hooks_are_gone_after_a_failure(llama):
    before = [len(block._forward_hooks) for block in llama.blocks]
    def fail(text): raise RuntimeError("from until")
    with pytest.raises(RuntimeError, match="from until"):
        sweep(llama, PROMPTS, [Condition("early", push(llama), layer=0)], max_new_tokens=4, until=fail)
    assert before == [len(block._forward_hooks) for block in llama.blocks]


# Room, memory and interruption change nothing

@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("room", [1, 3, 6])
def test_prompts_step_back_and_come_again(lm, layer, room, monkeypatch):
    "A room that is far too small makes prompts start again, at different times, and changes no answer."
    prompts, conditions = PROMPTS + [f"{p} again" for p in PROMPTS], conditions_for(lm) + [Condition(str(i), push(lm, i)) for i in range(5, 11)]
    came, fewer = [], decode._fewer
    def counted(run, *arguments):
        found = fewer(run, *arguments)
        came.append(len(run.waiting))
        return found
    full = sweep(lm, prompts, conditions, layer=layer, max_new_tokens=NEW)
    monkeypatch.setattr(decode, "_fewer", counted)
    monkeypatch.setattr(type(lm), "pass_tokens", 60)
    monkeypatch.setattr(decode, "FIRST_GUESS", 1)
    tight = sweep(lm, prompts, conditions, layer=layer, max_new_tokens=NEW, batch_rows=room)
    assert tight.token_ids == full.token_ids and tight.sharing <= full.sharing * 1.01
    assert came or room == 1 or layer == 1


@pytest.mark.parametrize("layer", [-1, 1])
def test_a_common_start_of_prompts_changes_no_answer(lm, layer, monkeypatch):
    conditions, (answers, totals, spent) = conditions_for(lm), ([], [], [])
    for least in (1, 10 ** 9):
        monkeypatch.setattr("em_repro.rows.START_FROM", least)
        made = sweep(lm, PROMPTS, conditions, layer=layer, max_new_tokens=NEW)
        answers.append(made.token_ids); spent.append(made.sharing)
        totals.append(score(lm, [p for p in PROMPTS for _ in range(5)], [f"{i} or so" for _ in PROMPTS for i in range(5)], conditions).logprob)
    assert answers[0] == answers[1] and spent[0] > spent[1]
    np.testing.assert_allclose(totals[0], totals[1], atol=1e-3)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(0, 3), st.integers(10, 60), st.integers(1, 12))
def test_prompts_come_as_the_room_allows_and_no_more(rows, gone, room, guess):
    "Prompts that all grow and shrink alike: once a whole life was seen, those that come never need more than the room."
    life, limit = np.array([1, *rows] + [0] * gone), 1 + len(rows) + gone
    growth, alive = decode._Growth(1, guess, limit), np.zeros(limit, int)
    for step in range(6 * limit):
        new, each = growth.room_for(room, int(alive @ life))
        new = max(new, 0 if alive.any() else 1)
        if step > 2 * limit:
            assert each == life.max()
            ahead = [(alive[:limit - age] * life[age:]).sum() for age in range(limit)]
            assert new == max(min((room - a) // r for a, r in zip(ahead, life) if r), 0 if alive.any() else 1)
        alive[0] += new; growth.under_way[0] += new
        alive = np.concatenate([[0], alive[:-1]])
        growth.step(np.repeat(np.arange(limit), alive * life))
        if step > 3 * limit: assert alive @ life <= room or alive.sum() == 1


def test_out_of_memory_halves_the_room(lm, monkeypatch):
    conditions, feed, admit, refused = conditions_for(lm), decode.Rows.feed, decode.Rows.admit, []
    full = sweep(lm, PROMPTS, conditions, max_new_tokens=NEW).token_ids
    def small_feed(rows, tokens, first=0):
        if len(tokens) > 5: refused.append("feed"); raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return feed(rows, tokens, first)
    def small_admit(rows, numbers, prompts, copies=1):
        if len(numbers) > 2: refused.append("admit"); raise torch.OutOfMemoryError("CUDA out of memory")
        return admit(rows, numbers, prompts, copies)
    monkeypatch.setattr(decode.Rows, "feed", small_feed)
    monkeypatch.setattr(decode.Rows, "admit", small_admit)
    assert sweep(lm, PROMPTS, conditions, max_new_tokens=NEW).token_ids == full
    assert "admit" in refused


def test_out_of_memory_with_a_single_prompt_says_what_was_needed(llama, monkeypatch):
    def full(*_): raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    monkeypatch.setattr(decode.Rows, "feed", full)
    with pytest.raises(RunError, match=r"single prompt: its 1 rows need .* GB .*Tried to allocate 2.00 GiB"):
        sweep(llama, PROMPTS[:1], [Condition("none")], max_new_tokens=NEW)


def test_other_errors_are_not_taken_for_a_lack_of_memory(llama, monkeypatch):
    sweep(llama, PROMPTS, [Condition("none")], max_new_tokens=1)   # by now it is known that its rows can be made
    def wrong(*_): raise RuntimeError("shapes do not match")
    monkeypatch.setattr(decode.Rows, "feed", wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"): sweep(llama, PROMPTS, [Condition("none")], max_new_tokens=NEW)


@pytest.mark.parametrize("layer", [-1, 0])
def test_an_interrupted_sweep_goes_on_where_it_stopped(llama, layer, tmp_path, monkeypatch):
    "Finished prompts are not decoded again, half a line is not read, and another sweep's file is not used."
    keep, conditions, add = tmp_path / "kept.jsonl", conditions_for(llama), decode._Kept.add
    how = dict(layer=layer, max_new_tokens=NEW, batch_rows=4)
    full = sweep(llama, PROMPTS, conditions, **how).token_ids
    def stopped(kept, key, value):
        add(kept, key, value)
        if len(kept.found) == 2: raise KeyboardInterrupt
    monkeypatch.setattr(decode._Kept, "add", stopped)
    with pytest.raises(KeyboardInterrupt): sweep(llama, PROMPTS, conditions, keep=keep, **how)
    monkeypatch.undo()
    with open(keep, "a", encoding="utf-8") as file: file.write('["0/3", {"ids": [[1,')
    started, start = [], decode._start
    monkeypatch.setattr(decode, "_start", lambda run, new: (started.extend(new), start(run, new))[1])
    assert sweep(llama, PROMPTS, conditions, keep=keep, **how).token_ids == full
    assert len(set(started)) == 2, "two of four prompts were finished"
    started.clear()
    assert sweep(llama, PROMPTS, conditions, keep=keep, **how).token_ids == full and not started
    other = sweep(llama, PROMPTS, conditions[:2], keep=keep, **how).token_ids
    assert len(other) == 8 and started


# The end of the model under many edits

@quick
@given(st.integers(0, 10**6), st.sampled_from(["Qwen2", "Gemma2", "Llama", "Ministral3"]), st.floats(-3, 2), st.booleans())
def test_edits_laid_on_shared_logits_give_the_models_own(seed, architecture, size, screened):
    "Greedy tokens, and logits, by the shared product equal those of the norm and head on every edited state, for weak and strong edits."
    lm, g = random_lm(architecture), np.random.default_rng(seed)
    vectors = (g.normal(size=(6, lm.width)) * 10 ** size).astype(np.float32)
    edits = decode.Edits(lm, [Condition("none")] + [Condition(str(i), v, op="add" if i % 2 else "ablate") for i, v in enumerate(vectors)])
    hidden = torch.as_tensor(g.normal(size=(3, lm.width)).astype(np.float32) * 4)
    rows, slots = torch.arange(3).repeat_interleave(7), torch.arange(7).repeat(3)
    with torch.inference_mode():
        tail = decode._Tail(lm, edits, screen=decode._Screen(lm.head.weight) if screened else None)
        assert tail.gain is not None
        own = lm.logits(edits.apply(hidden[rows], slots))
        best = own.topk(2).values
        clear = best[:, 0] - best[:, 1] > 1e-4
        assert (decode._greedy(tail, hidden, rows, slots) == own.argmax(-1))[clear].all() and clear.float().mean() > 0.8
        for slot, logits in decode._edited_logits(tail, hidden, list(range(7))):
            torch.testing.assert_close(logits, own[slots == slot], atol=2e-4, rtol=2e-4)


def test_a_norm_that_is_no_scaled_division_is_not_folded(llama, monkeypatch):
    monkeypatch.setattr(llama, "norm", torch.nn.LayerNorm(llama.width))
    assert decode._norm_gain(llama) is None
    monkeypatch.setattr(llama, "head", torch.nn.Linear(llama.width, 7, bias=True))
    assert decode._norm_gain(llama) is None


def test_completions_of_one_prompt_share_a_pass(lm, monkeypatch):
    "Scoring by rows equals scoring whole texts, with completions of different lengths, shared beginnings and empty ones."
    words = ["", "the tide", "the tide comes in twice a day", "the tide comes", "how", "my friend and you"]
    prompts, told = [p for p in PROMPTS for _ in words], words * len(PROMPTS)
    conditions = conditions_for(lm)
    assert len(words) >= decode.SHARED_FROM
    by_rows = score(lm, prompts, told, conditions)
    assert np.array_equal(by_rows.logprob, score(lm, prompts, told, conditions).logprob)
    monkeypatch.setattr(decode, "SCORED_ROWS", 5)
    in_parts = score(lm, prompts, told, conditions, batch_tokens=70)
    monkeypatch.setattr(decode, "SHARED_FROM", 10**9)
    whole = score(lm, prompts, told, conditions)
    np.testing.assert_allclose(by_rows.logprob, whole.logprob, atol=1e-3)
    np.testing.assert_allclose(in_parts.logprob, whole.logprob, atol=1e-3)


def test_prompts_that_cannot_be_answered_are_refused(llama, monkeypatch):
    monkeypatch.setattr(llama.decoder, "forward", lambda *a, **k: pytest.fail("the model was run"))
    raises("prompt 1 is empty", sweep, llama, ["hello", "  "], [Condition("none")])
    monkeypatch.setattr(llama.decoder.config, "max_position_embeddings", 20)
    raises("prompt 0 has .* tokens and 64 more were asked for, but the model's context is 20", sweep, llama, PROMPTS, [Condition("none")])
    with pytest.raises(UserError, match="prompt 1 has .* and 99 more"): score(llama, PROMPTS[:2], [[3], [3] * 99])
    raises("max_new_tokens and samples must be at least 1", sweep, llama, PROMPTS, [Condition("none")], max_new_tokens=0)


def test_a_long_completion_of_one_prompt_does_not_count_against_another(llama, monkeypatch):
    prompts = ["hi", "a much longer question than that one, is it not?"]
    short, long = map(len, llama.encode(prompts))
    monkeypatch.setattr(llama.decoder.config, "max_position_embeddings", long + 1)
    found = score(llama, prompts, [[3] * (long - short), [3]])
    assert found.logprob.shape == (2, 1)
    raises("prompt 1 has .* and 2 more", score, llama, prompts, [[3], [3] * 2])


def test_divergence_is_that_of_the_distributions(lm, monkeypatch):
    "By whole texts and by rows: mean over the answer's tokens of KL(steered || unsteered), zero without an edit."
    conditions, words = conditions_for(lm)[1:] + [Condition("weak", push(lm, 4, 1e-3))], ["the tide comes", "how are you", "my friend", "you"]
    prompts, told = [p for p in PROMPTS[:2] for _ in words], words * 2
    found = {}
    for least in (1, 10**9):
        monkeypatch.setattr(decode, "SHARED_FROM", least)
        found[least] = score(lm, prompts, told, conditions, kl=True).kl
    np.testing.assert_allclose(found[1], found[10**9], atol=1e-4)
    for i, (prompt, answer) in enumerate(zip(prompts, told)):
        head, tail = lm.encode([prompt])[0], lm.tokenizer(answer, add_special_tokens=False)["input_ids"]
        plain = next_logits(lm, head + tail).log_softmax(-1)[len(head) - 1:-1]
        for j, c in enumerate(conditions):
            steered = next_logits(lm, head + tail, vector=c.vector, op=c.op, since=0).log_softmax(-1)[len(head) - 1:-1]
            assert found[1][i, j] == pytest.approx((steered.exp() * (steered - plain)).sum(-1).mean().item(), abs=1e-3)
    assert (found[1] >= -1e-5).all() and found[1][:, -1].max() < 1e-3 < found[1][:, 0].max()
    assert score(lm, PROMPTS, ["you"] * 4, [Condition("none")], kl=True).kl == pytest.approx(0)


def test_first_tokens_are_the_models_own(lm):
    conditions = conditions_for(lm)
    found = first_tokens(lm, PROMPTS, conditions)
    for i, prompt in enumerate(PROMPTS):
        for j, c in enumerate(conditions):
            own = next_logits(lm, lm.encode([prompt])[0], vector=c.vector, op=c.op)[-1].log_softmax(-1)
            np.testing.assert_allclose(found[i, j], own.numpy(), atol=1e-3)
    assert np.array_equal(first_tokens(lm, PROMPTS, conditions, tokens=[7, 3]), found[..., [7, 3]])
    raises("needs last-layer conditions", first_tokens, lm, PROMPTS, [Condition("early", push(lm), layer=0)])


# Memory

def test_keys_and_values_are_gone_when_a_sweep_or_a_score_returns(lm, monkeypatch):
    "By counting references alone: what waits for the garbage collector waits with a gigabyte."
    import gc, weakref
    made = []
    class Watched(decode.Rows):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(weakref.ref(self))
    monkeypatch.setattr(decode, "Rows", Watched)
    gc.disable()
    try:
        for layer in (-1, 0): sweep(lm, PROMPTS, conditions_for(lm), layer=layer, max_new_tokens=3)
        score(lm, PROMPTS[:1] * decode.SHARED_FROM, ANSWERS[:1] * decode.SHARED_FROM)
        assert len(made) == 3 and all(rows() is None for rows in made)
    finally: gc.enable()


# The head a piece of the vocabulary at a time

@pytest.mark.parametrize("columns", [1, 7, 10 ** 9])
def test_the_size_of_a_piece_of_the_vocabulary_changes_nothing(lm, monkeypatch, columns):
    conditions, texts = conditions_for(lm), ["the tide", "", "no, not yet", "why not?"]
    asked = [p for p in PROMPTS for _ in range(decode.SHARED_FROM)]
    def everything(): return (sweep(lm, PROMPTS, conditions, max_new_tokens=NEW).token_ids, score(lm, PROMPTS, texts).logprob,
                              score(lm, asked, texts * decode.SHARED_FROM).logprob)
    usual = everything()
    monkeypatch.setattr(decode, "HEAD_COLUMNS", columns)
    pieced = everything()
    assert pieced[0] == usual[0]
    for a, b in zip(pieced[1:], usual[1:]): np.testing.assert_allclose(a, b, atol=1e-4)


def with_head(weight):
    head = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
    head.weight = torch.nn.Parameter(weight, requires_grad=False)
    return SimpleNamespace(head=head)


def test_the_first_of_equal_logits_is_chosen_across_pieces(monkeypatch):
    "As argmax does: a tie within a piece and between pieces goes to the smaller token."
    monkeypatch.setattr(decode, "HEAD_COLUMNS", 3)
    weight = torch.ones(8, 4)
    assert decode._best(with_head(weight), torch.ones(5, 4)).tolist() == [0] * 5
    weight[4:6] += 1
    assert decode._best(with_head(weight), torch.ones(5, 4)).tolist() == [4] * 5


# Greedy tokens by screening in bfloat16

@quick
@given(st.integers(0, 10 ** 6), st.sampled_from([1, 31, 32, 64]), st.integers(2, 300), st.floats(-3, 3), st.booleans())
def test_screening_gives_the_token_of_float32(seed, width, tokens, size, near):
    "Bounds hold for any lengths, and the token is argmax's, also where logits are nearer to each other than bfloat16 tells apart."
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(tokens, width, generator=rng) * torch.rand(tokens, 1, generator=rng) * 10 ** size
    if near: weight = weight[:1] * (1 + 1e-4 * torch.randn(tokens, 1, generator=rng))
    states = torch.randn(70, width, generator=rng) * 10 ** (3 * torch.rand(70, 1, generator=rng))
    screen, logits = decode._Screen(weight), states.double() @ weight.double().T
    assert (screen.bounds(states)[:, :tokens].double() >= logits).all()
    found = decode._screened(screen, with_head(weight), states)   # where all tokens are near each other more are left than are looked at one by one
    reached, most = logits.gather(1, found[:, None])[:, 0], logits.amax(-1)
    assert ((most - reached) <= 1e-5 * states.norm(dim=-1) * weight.norm(dim=-1).max()).all()


@quick
@given(st.integers(0, 10 ** 6), st.integers(2, 300), st.floats(-3, 3))
def test_the_first_few_by_bounds_leave_nothing_larger_out(seed, tokens, size):
    "Their logits are float32's in falling order, and no other token's exceeds what is said of the rest; zeros do not leave the vocabulary."
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(tokens, 32, generator=rng) * torch.rand(tokens, 1, generator=rng) * 10 ** size
    states = torch.cat([torch.randn(20, 32, generator=rng), torch.zeros(1, 32)])
    logits, token, rest = decode._first_by_bounds(decode._Screen(weight), states)
    own = states @ weight.T
    torch.testing.assert_close(logits, own.gather(1, token), rtol=1e-4, atol=1e-4 * 10 ** size)
    assert (logits.diff(dim=-1) <= 0).all()
    assert (own.scatter(1, token, -torch.inf) <= rest[:, None]).all()


def test_screening_takes_the_first_of_equals_and_does_not_lose_what_is_no_number():
    weight = torch.tensor([[0.0, 1], [1, 0], [1, 0], [-1, -1]])
    states = torch.tensor([[1.0, 0], [0, 2], [-3, -3], [torch.nan, 0], [0, 0]])
    found = decode._screened(decode._Screen(weight), with_head(weight), states)
    assert found[:3].tolist() == [1, 0, 3] and found[4] == 0 and found[3] == -1


@pytest.mark.parametrize("size", [1, 2 ** 25])
def test_a_sweep_with_screening_is_the_sweep_without(lm, monkeypatch, size):
    monkeypatch.setattr(decode, "LOGIT_ELEMENTS", size)
    monkeypatch.setattr(decode, "SCREENED_FROM", 0)
    conditions, found = conditions_for(lm) + [Condition(f"r{i}", push(lm, i)) for i in range(6)], []
    for able in (True, False):
        monkeypatch.setattr(decode, "_multiplies_bfloat16", lambda able=able: able)
        found.append(sweep(lm, PROMPTS, conditions, max_new_tokens=NEW).token_ids)
    assert found[0] == found[1]


# Products by oneDNN

@pytest.fixture
def onednn(monkeypatch):
    "oneDNN's product, which is then used whatever the processor."
    monkeypatch.setattr(backbone, "_by_intel", lambda: False)
    find = backbone._onednn
    find.cache_clear()
    if find() is None: pytest.skip("this PyTorch has no oneDNN to call")
    yield find()
    find.cache_clear()


@pytest.mark.parametrize("name, kept", [("Intel Xeon", True), ("AMD EPYC", False), (None, False)])
def test_intels_processors_keep_to_mkl(llama, onednn, monkeypatch, name, kept):
    monkeypatch.undo()   # what the fixture says of the processor; it forgets what was found at the end
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {} if name is None else {"cpu_name": name}, raising=False)
    backbone._onednn.cache_clear()
    linears = [m for m in llama.model.modules() if type(m) is torch.nn.Linear]   # some releases give norms one of their own
    with llama.fast(): assert kept != any("forward" in vars(m) for m in linears)


def test_products_by_onednn_change_nothing(lm, onednn, monkeypatch):
    "Answers and scores are those without it; gradients and small inputs go the usual way; nothing stays behind."
    conditions, how = conditions_for(lm), dict(max_new_tokens=NEW)
    with monkeypatch.context() as changed:
        changed.setattr(backbone, "FAST_ROWS", 1)
        fast, scored = sweep(lm, PROMPTS, conditions, **how).token_ids, score(lm, PROMPTS, ["the tide"] * 4, conditions).logprob
        changed.setattr(backbone, "_onednn", lambda: None)
        assert fast == sweep(lm, PROMPTS, conditions, **how).token_ids
        np.testing.assert_allclose(scored, score(lm, PROMPTS, ["the tide"] * 4, conditions).logprob, atol=1e-3)
    called = []
    monkeypatch.setattr(backbone, "_onednn", lambda: lambda *a: (called.append(len(a[0])), onednn(*a))[1])
    with lm.fast(), lm.fast():
        x = torch.randn(backbone.FAST_ROWS, lm.width)
        with torch.inference_mode(): lm.head(x); lm.head(x[1:])
        lm.head(x).sum().backward()
    lm.head.weight.grad = None
    assert called == [backbone.FAST_ROWS]
    assert not any("forward" in vars(m) for m in lm.model.modules() if type(m) is torch.nn.Linear)
