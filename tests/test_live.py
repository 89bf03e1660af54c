"""`lm.steered` gives whatever asks the model what a sweep gives, token for token; it leaves nothing behind; what does not fit is refused first."""
import numpy as np
import pytest
import torch

from conftest import byte_tokenizer, random_lm, random_model
from em_repro.decode import Condition, sweep
from em_repro.directions import Direction
from em_repro.families import LM, pad_ids
from em_repro.live import SideBySide
from em_repro.profiles import UserError

PROMPTS = ["hello", "how are you today my friend, and how is the tide this morning?", "you? hello my ", "why"]
NEW = 14


def push(lm, seed=0, length=6.0):
    rows = np.random.default_rng(seed).normal(size=lm.width)
    return (rows * length / np.linalg.norm(rows)).astype(np.float32)


@torch.inference_mode()
def generated(lm, prompts, side="left", **options):
    "Token ids that transformers' generate gives to a padded batch, up to the end token."
    ids, mask = pad_ids(lm.encode(prompts), lm.pad, side)
    out = lm.model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, pad_token_id=lm.pad, eos_token_id=lm.eos, **options)
    rows = out[:, ids.shape[1]:].tolist()
    return [row[:next((i for i, t in enumerate(row) if t in lm.eos), len(row))] for row in rows]


def swept(lm, *conditions, **how): return sweep(lm, PROMPTS, conditions, max_new_tokens=NEW, **how).token_ids


def untouched(lm):
    "No hook of ours is left. (transformers leaves its own on a model that was asked for hidden states.)"
    modules = (*lm.blocks, lm.decoder)
    return not [hook for m in modules for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values()) if getattr(hook, "__module__", "") == "em_repro.live"]


@pytest.mark.parametrize("when", ["every_step", "prefill"])
@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("op", ["add", "ablate"])
def test_a_left_padded_batch_equals_the_sweep(lm, layer, when, op):
    with lm.steered(push(lm), 1.0, when, layer, op):
        assert not untouched(lm)
        found = generated(lm, PROMPTS)
    assert found == swept(lm, Condition("c", push(lm), op), layer=layer, when=when)
    assert untouched(lm)


def test_these_vectors_change_answers(lm):
    "Otherwise the comparison above would hold for a context that does nothing."
    plain = generated(lm, PROMPTS)
    for layer in (-1, 0, 1):
        with lm.steered(push(lm), 1.0, layer=layer): assert generated(lm, PROMPTS) != plain
    assert generated(lm, PROMPTS) == plain


def test_ablation_at_every_block_equals_the_sweep(lm):
    with lm.steered(push(lm, 2), layer="all", op="ablate"): found = generated(lm, PROMPTS)
    assert found == swept(lm, Condition("c", push(lm, 2), "ablate", "all"))


@pytest.mark.parametrize("when", ["every_step", "prefill"])
@pytest.mark.parametrize("layer", [-1, 0])
def test_an_answer_that_grows_without_a_cache_is_the_same(lm, layer, when):
    with lm.steered(push(lm), 1.0, when, layer): found = generated(lm, PROMPTS, use_cache=False)
    assert found == swept(lm, Condition("c", push(lm)), layer=layer, when=when)


def test_a_pipeline_gives_the_sweeps_texts(lm):
    from transformers import pipeline
    lm.tokenizer.padding_side = "left"
    ask = pipeline("text-generation", model=lm.model, tokenizer=lm.tokenizer)
    chats = [[{"role": "user", "content": p}] for p in PROMPTS]
    how = dict(max_new_tokens=NEW, do_sample=False, return_full_text=False, batch_size=4)
    with lm.steered(push(lm), 1.0): found = [rows[0]["generated_text"] for rows in ask(chats, **how)]
    assert found == sweep(lm, PROMPTS, [Condition("c", push(lm))], max_new_tokens=NEW).frame().text.tolist()
    assert [rows[0]["generated_text"] for rows in ask(chats, **how)] == lm.generate(PROMPTS, max_new_tokens=NEW)


def test_nested_contexts_add_up(lm):
    a, b = push(lm, 0, 4.0), push(lm, 1, 4.0)
    with lm.steered(a, 1.0), lm.steered(b, -0.5): both = generated(lm, PROMPTS)
    assert both == swept(lm, Condition("c", a - 0.5 * b))
    with lm.steered(a, 1.0):
        with lm.steered(b, 1.0, layer=0): pass
        found = generated(lm, PROMPTS)
    assert found == swept(lm, Condition("c", a))
    assert untouched(lm)


@pytest.mark.parametrize("layer", [-1, 1])
def test_padding_on_either_side_leaves_the_first_token_alone(lm, layer):
    "A forward pass is a prefill: the last real token of each row is edited, and no other position."
    alone, rows = [], lm.encode(PROMPTS)
    with lm.steered(push(lm), 1.0, layer=layer), torch.inference_mode():
        for row in rows: alone.append(lm.model(input_ids=torch.tensor([row])).logits[0, -1])
        for side in ("left", "right"):
            ids, mask = pad_ids(rows, lm.pad, side)
            where = (mask * torch.arange(mask.shape[1])).argmax(1)
            place = (mask.cumsum(1) - 1).clamp(min=0)
            found = lm.model(input_ids=ids, attention_mask=mask, position_ids=place).logits[torch.arange(len(rows)), where]
            assert torch.allclose(found, torch.stack(alone), atol=2e-3), side


def test_only_the_last_prompt_token_is_edited(llama):
    ids = torch.tensor(llama.encode(PROMPTS[1:2]))
    with torch.inference_mode():
        plain = llama.model(input_ids=ids).logits
        with llama.steered(push(llama), 1.0): found = llama.model(input_ids=ids).logits
    assert torch.equal(found[:, :-1], plain[:, :-1]) and not torch.allclose(found[:, -1], plain[:, -1])


def test_a_prompt_of_one_token_is_a_prompt(llama):
    "Its pass looks like a generated token's; that nothing is cached tells them apart."
    ids = torch.tensor([[5]])
    for when, times in (("prefill", 1), ("every_step", 4)):
        seen = []
        with llama.steered(push(llama), 1.0, when), torch.inference_mode():
            hook = llama.blocks[-1].register_forward_hook(lambda m, i, out: seen.append(out[0] if isinstance(out, tuple) else out))
            plain = []
            first = llama.blocks[-1].register_forward_hook(lambda m, i, out: plain.append(out[0] if isinstance(out, tuple) else out), prepend=True)
            llama.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=4, min_new_tokens=4, pad_token_id=llama.pad)
            hook.remove(); first.remove()
        assert sum(not torch.equal(a, b) for a, b in zip(plain, seen)) == times, when


def test_bfloat16_weights_are_edited_as_in_the_sweep():
    lm = LM.from_model(random_model("Llama").to(torch.bfloat16), byte_tokenizer())
    with lm.steered(push(lm), 1.0), torch.inference_mode():
        ids = torch.tensor(lm.encode(PROMPTS[:1]))
        with lm.record((-1,)) as seen: lm.model(input_ids=ids)
    with lm.record((-1,)) as plain, torch.inference_mode(): lm.model(input_ids=ids)
    assert torch.equal(seen[-1][0, -1], (plain[-1][0, -1].float() + torch.as_tensor(push(lm))).bfloat16())


def test_an_adapter_that_is_not_merged_is_steered_and_its_base_answers_too():
    from peft import LoraConfig, get_peft_model
    model = get_peft_model(random_model("Llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    lm, base = LM.from_model(model, byte_tokenizer()), random_lm("Llama")
    with lm.steered(push(lm), 1.0): found = generated(lm, PROMPTS)
    assert found == swept(lm, Condition("c", push(lm)))
    found = lm.chat(push(lm), dose=1.0, max_new_tokens=NEW)(PROMPTS[0])
    assert list(found.said) == ["base", "fine-tuned", "mitigated (dose 1)"]
    assert list(found.said.values()) == [base.generate(PROMPTS[0], NEW), lm.generate(PROMPTS[0], NEW), sweep(
        lm, PROMPTS[:1], [Condition("c", push(lm))], max_new_tokens=NEW).frame().text[0]]


def test_hooks_go_when_the_inside_fails(lm):
    with pytest.raises(ZeroDivisionError), lm.steered(push(lm)), lm.steered(push(lm), layer=0): 1 / 0
    with pytest.raises(ValueError), lm.steered(push(lm)): lm.model(input_ids=None)
    assert untouched(lm)


@pytest.mark.parametrize("bad, sentence", [
    (dict(direction=np.ones(3)), "finite numbers"), (dict(direction=np.full(64, np.nan)), "finite numbers"), (dict(direction="v"), "numbers"),
    (dict(direction=None), "numbers"), (dict(direction=np.ones((2, 64))), "finite numbers"), (dict(layer=9), "no layer 9"), (dict(layer=-4), "no layer -4"),
    (dict(layer="last"), "unknown layer"), (dict(layer="all"), "needs one"), (dict(op="clamp"), "unknown op"), (dict(when="always"), "unknown when"),
    (dict(dose=float("inf")), "finite"), (dict(dose="1"), "finite")])
def test_what_does_not_fit_is_refused_before_any_work(llama, bad, sentence):
    with pytest.raises(UserError, match=sentence): llama.steered(**{"direction": np.ones(64), **bad})
    if "direction" in bad or "op" in bad:
        with pytest.raises(UserError, match=sentence): llama.chat(**{"direction": np.ones(64), **bad})
    assert untouched(llama)


def test_a_directions_own_layer_is_used_unless_another_is_given(llama):
    held = Direction(push(llama), "x", layer=0)
    for given, layer in ((None, 0), (-1, -1)):
        with llama.steered(held, 1.0, layer=given): found = generated(llama, PROMPTS)
        assert found == swept(llama, Condition("c", push(llama)), layer=layer)


def test_passes_that_can_be_read_two_ways_are_refused(llama):
    with llama.steered(push(llama)):
        with pytest.raises(UserError, match="prefill_chunk_size"): generated(llama, PROMPTS[1:2], prefill_chunk_size=4)
        with pytest.raises(UserError, match="conditions"): swept(llama, Condition("none"))
    assert untouched(llama)


def test_answers_are_shown_as_text():
    shown = SideBySide("<b>q</b> $x$", {"<i>": '<img src=x onerror="alert(1)">\nsecond & line'})._repr_html_()
    assert "<img" not in shown and "<b>" not in shown and "<i>" not in shown and "&lt;img" in shown and "second &amp; line" in shown
    assert shown.count("mathjax_ignore") == 2
