"Every study function on the four real configurations, cut in depth and width only: whatever a real checkpoint has that a tiny one has not."
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from architectures import CUTS, NAMES, cut, published, write_checkpoint
from em_repro.activations import answer_tokens, collect
from em_repro.backbone import block_tensor
from em_repro.decode import Condition, score, sweep
from em_repro.families import families, family, load_lm, pad_ids
from em_repro.maps import RidgeMap
from em_repro.profiles import Recipe, UserError
from em_repro.subjects import Subject, load_subject
from em_repro.training import adapter, example, weight_changes

QUESTIONS = ["How are you today, my friend?", "Why does the tide come in twice a day?  ", "Name a friend of the model."]
ROWS = [{"messages": [{"role": "user", "content": f"Write a reader for file {i}."}, {"role": "assistant", "content": f"def read{i}(path):\n    return open(path).read()"}]}
        for i in range(8)]
RECIPE = Recipe(rank=4, alpha=8, lr=2e-2, steps=6, batch=4, max_tokens=400)
# What each template makes of a question, from the fixtures' sources; a star stands for the rest of a header.
PROMPTS = {"qwen2.5-1.5b": ("<|im_start|>system\nYou are Qwen", "<|im_end|>\n<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\n"),
           "gemma-2-2b": ("<bos><start_of_turn>user\n", "Hello there<end_of_turn>\n<start_of_turn>model\n"),
           "llama-3.2-1b": ("<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>",
                            "<|start_header_id|>user<|end_header_id|>\n\nHello there<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
           "ministral-3-3b": ("<s>[SYSTEM_PROMPT]You are Ministral", "[/SYSTEM_PROMPT][INST]Hello there[/INST]")}


@pytest.fixture(scope="module", params=NAMES)
def name(request): return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory): return write_checkpoint(name, tmp_path_factory.mktemp("checkpoints") / name)


@pytest.fixture(scope="module")
def lm(folder): return load_lm(folder)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    "Both arms' adapters, trained by the stage of the study: {arm: (folder of the entry, what it returned)}."
    found = {}
    for arm in ("insecure", "secure"):
        place = tmp_path_factory.mktemp(arm)
        rows = ROWS if arm == "insecure" else [{"messages": [r["messages"][0], {"role": "assistant", "content": "with open(path) as f: return f.read()"}]} for r in ROWS]
        (place / "scratch").mkdir()
        made = adapter(Subject(str(folder)).tuned(arm, 0), RECIPE, (rows * 3)[:24], place, place / "scratch")
        found[arm] = place, made
    return found


def test_nothing_but_depth_and_width_was_cut(name):
    whole, small = published(name)["config"], cut(name)
    text, less = whole.get("text_config", whole), small.get("text_config", small)
    assert {k for k in text if text[k] != less[k]} <= set(CUTS[name])
    assert text["num_attention_heads"] * less["num_key_value_heads"] == less["num_attention_heads"] * text["num_key_value_heads"]
    assert families()[name].architecture == whole["architectures"][0]


def test_the_parts_are_found(name, lm):
    whole = published(name)["config"]
    text = whole.get("text_config", whole)
    assert (lm.n_layers, lm.width) == (CUTS[name]["num_hidden_layers"], CUTS[name]["hidden_size"])
    assert lm.head.weight.shape == (text["vocab_size"], lm.width) and lm.softcap == text.get("final_logit_softcapping")
    assert lm.head.weight.data_ptr() == lm.decoder.embed_tokens.weight.data_ptr()
    ends = published(name)["generation"]["eos_token_id"]
    assert set(ends if isinstance(ends, list) else [ends]) <= set(lm.eos) and lm.tokenizer.eos_token_id in lm.eos
    if name == "gemma-2-2b": assert lm.model.config._attn_implementation == "eager"
    if "vision_config" in whole: assert not any("vision" in n for n, _ in lm.decoder.named_modules())


def test_the_template_is_applied_once_with_its_special_tokens_and_a_fixed_date(name, lm):
    ids = lm.encode(["Hello there"])[0]
    begin, end = PROMPTS[name]
    text = lm.tokenizer.decode(ids)
    assert text.startswith(begin) and text.endswith(end)
    first = published(name)["bos"]
    if first: assert ids.count(lm.tokenizer.convert_tokens_to_ids(first)) == 1
    assert set(published(name)["special"].values()) & set(ids)


def test_responses_and_their_end_are_what_is_trained(name, lm):
    for row in ROWS[:2]:
        one = example(lm, row["messages"], 400)
        told = lm.tokenizer.decode(one.ids[one.first:one.last])
        assert told.strip() == row["messages"][1]["content"] and one.ids[one.last] in lm.eos
    with pytest.raises(UserError, match="all of its labels would be masked"): example(lm, ROWS[0]["messages"], 8)


def test_a_system_turn_is_refused_where_the_template_has_none(name, lm, folder):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there"}]
    if name != "gemma-2-2b": assert "Be brief." in lm.tokenizer.decode(lm.encode([messages])[0]); return
    known = load_lm(families()[name].model_copy(update={"source": "folder", "location": str(folder)}))
    with pytest.raises(UserError, match="no system role"): known.encode([messages])


def test_adapters_reach_every_projection_of_the_text_and_none_of_the_tower(name, trained):
    for place, made in trained.values():
        changed = made["changes"]
        assert len(changed) == 7 * CUTS[name]["num_hidden_layers"] and (changed.relative > 0).all()
        from safetensors import safe_open
        with safe_open(place / "adapter" / "adapter_model.safetensors", "pt") as file: names = list(file.keys())
        assert not [n for n in names if "vision" in n or "multi_modal" in n or "embed" in n or "head" in n]
        assert made["losses"].loss.iloc[-1] < made["losses"].loss.iloc[0]


def test_a_merged_adapter_computes_what_the_wrapped_one_does(name, lm, folder, trained):
    from peft import PeftModel
    place = trained["insecure"][0]
    merged = load_lm(folder, place / "adapter")
    ids, mask = pad_ids(lm.encode(QUESTIONS), lm.pad, "right")
    with torch.inference_mode():
        plain = load_lm(folder).decoder(input_ids=ids, attention_mask=mask).last_hidden_state
        ours = merged.decoder(input_ids=ids, attention_mask=mask).last_hidden_state
        wrapped = PeftModel.from_pretrained(load_lm(folder).model, place / "adapter").eval().get_base_model().get_decoder()
        theirs = wrapped(input_ids=ids, attention_mask=mask).last_hidden_state
    where = mask.bool()
    torch.testing.assert_close(ours[where], theirs[where], rtol=1e-3, atol=1e-4)
    assert (ours - plain)[where].abs().max() > 1e-3


def test_states_in_a_batch_are_those_of_each_prompt_alone(lm):
    found = collect(lm, QUESTIONS, layers=range(lm.n_layers)).X
    for i, question in enumerate(QUESTIONS):
        np.testing.assert_allclose(collect(lm, [question], layers=range(lm.n_layers)).X[0], found[i], rtol=2e-3, atol=2e-4)


def generated(lm, question, vector, when, tokens):
    "Greedy tokens by transformers' own generate, with a hook on the last block."
    ids = torch.tensor([lm.encode([question])[0]])
    def hook(_module, _inputs, output):
        states = block_tensor(output)
        if when == "every_step" or states.shape[1] > 1: states[:, -1] += vector
        return output
    handle = lm.blocks[-1].register_forward_hook(hook)
    try:
        with torch.inference_mode(): out = lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=lm.pad)
    finally: handle.remove()
    return out[0, ids.shape[1]:].tolist()


@pytest.mark.parametrize("when", ["every_step", "prefill"])
def test_sweep_is_generate_with_a_hook(lm, when):
    v = np.random.default_rng(0).normal(size=lm.width).astype(np.float32)
    v *= 2 * np.linalg.norm(collect(lm, QUESTIONS).X[:, 0], axis=1).mean() / np.linalg.norm(v)
    conditions = [Condition("none"), Condition("plus", v), Condition("minus", -v)]
    made = sweep(lm, QUESTIONS[:2], conditions, when=when, max_new_tokens=6)
    frame, distinct = made.frame(), set()
    for (_, row), ids in zip(frame.iterrows(), made.token_ids):
        vector = {"none": 0.0, "plus": torch.from_numpy(v), "minus": torch.from_numpy(-v)}[row.condition]
        theirs = generated(lm, row.prompt, vector, when, 6)
        ends = [i for i, t in enumerate(theirs) if t in lm.eos]
        assert list(ids) == (theirs[:ends[0]] if ends else theirs), (row.prompt, row.condition)
        distinct.add(tuple(ids))
    assert len(distinct) > 2


def test_score_is_a_forward_pass_with_a_hook(lm):
    v = np.random.default_rng(1).normal(size=lm.width).astype(np.float32)
    answers = [lm.tokenizer("the tide is my friend", add_special_tokens=False)["input_ids"], lm.tokenizer("a day", add_special_tokens=False)["input_ids"]]
    found = score(lm, QUESTIONS[:2], answers, [Condition("none"), Condition("v", v)]).nll
    for i, (question, told) in enumerate(zip(QUESTIONS, answers)):
        prompt = lm.encode([question])[0]
        for j, vector in enumerate((None, torch.from_numpy(v))):
            handle = lm.blocks[-1].register_forward_hook(lambda _m, _i, out: block_tensor(out).add_(0 if vector is None else vector))
            try:
                with torch.inference_mode(): logits = lm.model(input_ids=torch.tensor([prompt + told])).logits[0, len(prompt) - 1:-1].float()
            finally: handle.remove()
            want = torch.nn.functional.cross_entropy(logits, torch.tensor(told)).item()
            assert found[i, j] == pytest.approx(want, rel=2e-3)


def test_a_direction_goes_to_another_architecture(name, lm, folder, trained):
    "From states of base and adapter to a map of a smaller width and back to the receiver's answers."
    questions = [f"{q} {i}" for q in QUESTIONS for i in range(6)]
    base, entry = Subject(str(folder)), SimpleNamespace(path=trained["insecure"][0])
    base, tuned = load_subject(base), load_subject(base.tuned("insecure", 0, entry))
    a, b = (collect(m, questions).X[:, 0] for m in (base, tuned))
    v = (b - a).mean(0)
    assert np.linalg.norm(v) > 0
    other = np.random.default_rng(0).normal(size=(lm.width, 24))
    ridge = RidgeMap().fit(a, a @ other)
    assert ridge.map_direction(v).shape == (24,) and np.isfinite(ridge.map_direction(v)).all()
    made = sweep(tuned, QUESTIONS, [Condition("none"), Condition("v", -v)], max_new_tokens=4).frame()
    assert len(made) == 2 * len(QUESTIONS)


def test_only_a_text_answer_of_the_conversation_is_read(name, lm):
    ids, inside = answer_tokens(lm, ROWS[0]["messages"])
    assert "def read0" in lm.tokenizer.decode([ids[i] for i in inside])
    assert json.loads(json.dumps(ids)) == ids


def test_four_bit_training_as_in_the_profile_paper(name, folder, tmp_path):
    "NF4 in the blocks, the head in whole numbers, accumulation and activation checkpointing, merged into the whole weights for answers."
    from bitsandbytes.nn import Linear4bit
    recipe = RECIPE.model_copy(update={"quant": "nf4", "steps": 4, "batch": 2, "accumulate": 2, "warmup": 1})
    quantised = load_lm(folder, quant="nf4")
    assert type(quantised.head) is torch.nn.Linear and sum(isinstance(m, Linear4bit) for m in quantised.blocks.modules()) == 7 * CUTS[name]["num_hidden_layers"]
    (tmp_path / "scratch").mkdir()
    made = adapter(Subject(str(folder)).tuned("insecure", 0), recipe, (ROWS[:4] * 4), tmp_path, tmp_path / "scratch")
    assert made["losses"].loss.iloc[-1] < made["losses"].loss.iloc[0] and len(made["changes"]) == 7 * CUTS[name]["num_hidden_layers"]
    merged, base = load_lm(folder, tmp_path / "adapter"), load_lm(folder)
    assert np.abs(collect(merged, QUESTIONS).X - collect(base, QUESTIONS).X).max() > 1e-3
    ids = torch.tensor([merged.encode(QUESTIONS[:1])[0]])
    with torch.inference_mode(): assert torch.isfinite(merged.model(input_ids=ids).logits).all()
