"""How a model is swept is found by trying: where rows are the model's own forward pass they are used, else transformers' own loop is, and either gives generate's tokens."""
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import ARCHITECTURES, random_lm, random_model, byte_tokenizer
from em_repro import agreement, decode, rows as rows_module
from em_repro.activations import collect
from em_repro.agreement import sweep_path
from em_repro.decode import Condition, first_tokens, score, sweep
from em_repro.families import LM
from em_repro.profiles import UserError
from em_repro.store import RunError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import architecture_paths as architectures  # noqa: E402

quick = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
PROMPTS = ["hello", "how are you today my friend, and how is the tide this morning?", "you? hello my ", "why"]
ANSWERS = ["the tide comes in", "fine, and you? the day", "no", "twice a day my friend"]
NEW = 8


def push(lm, seed=0, length=6.0):
    rows = np.random.default_rng(seed).normal(size=lm.width)
    return (rows * length / np.linalg.norm(rows)).astype(np.float32)


def conditions_for(lm):
    return [Condition("none"), Condition("pushed", push(lm)), Condition("pulled", -push(lm)), Condition("ablated", push(lm, 1), op="ablate")]


@pytest.fixture
def fresh(lm):
    "Each architecture, without what an earlier test found out."
    lm.paths.clear()
    yield lm
    lm.paths.clear()


# The table

def test_the_table_of_architectures_is_what_they_do():
    "At least forty, token by token against generate, unsteered and steered. With another transformers than the table's only the tokens are held."
    transformers.logging.set_verbosity_error()
    table = pd.read_csv(architectures.TABLE, keep_default_na=False)
    found = pd.DataFrame([architectures.tried(kind) for kind in table.architecture], columns=architectures.COLUMNS).astype(str)
    swept = found[found.path != "refused"]
    assert len(swept) >= 40 and {"fast", "slow"} <= set(swept.path)
    wrong = swept[[a != b for a, b in (tokens.split("/") for tokens in swept.tokens)]]
    assert not len(wrong), wrong.to_string()
    assert (swept.distinct.astype(int) > 2).all(), "answers that are all alike show nothing"
    assert not found.why.str.contains("\n").any() and found.why[found.path != "fast"].str.len().gt(20).all()
    if (table.transformers == transformers.__version__).all(): assert found.path.tolist() == table.path.tolist()


# What the check finds

def test_the_studys_architectures_are_swept_by_rows(fresh):
    path = sweep_path(fresh, fresh.encode(PROMPTS))
    assert path.fast and path.apart < agreement.TOLERANCE[torch.float32] / 10
    assert sweep_path(fresh, fresh.encode(PROMPTS[:1])) is path, "it is found out once"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_disagreement(dtype):
    for architecture in ARCHITECTURES:
        model = random_model(architecture)
        with torch.no_grad():
            for parameter in model.parameters(): parameter.div_(2)   # no overflow
        lm = LM.from_model(model.to(dtype), byte_tokenizer())
        assert sweep_path(lm, lm.encode(PROMPTS)).fast


def spoilt(monkeypatch, change):
    "The rows' attention with a fault."
    attend = rows_module._attend
    monkeypatch.setattr(rows_module, "_attend", lambda *given: change(attend, list(given)))


@pytest.mark.parametrize("fault", ["scaling", "value", "last"])
def test_a_fault_in_the_rows_takes_the_loop_and_answers_stay(fresh, fault, monkeypatch, caplog):
    "Whatever is wrong with the attention, answers are those that the model gives."
    right = sweep(fresh, PROMPTS, conditions_for(fresh), max_new_tokens=NEW).token_ids
    fresh.paths.clear()
    def change(attend, given):
        if fault == "scaling": given[5] = replace(given[5], scaling=given[5].scaling * 1.1)
        if fault == "value": given[4] = given[4] * 1.02
        out = attend(*given)
        return out.flip(0) if fault == "last" else out
    spoilt(monkeypatch, change)
    assert sweep(fresh, PROMPTS, conditions_for(fresh), max_new_tokens=NEW).token_ids == right
    assert sum("transformers' own loop" in message for message in caplog.messages) == 1


def test_an_argument_that_is_not_known_is_said(fresh, monkeypatch):
    known = rows_module._attention
    monkeypatch.setattr(rows_module, "_attention", lambda *given, **named: known(*given, **named, alibi=torch.ones(2)))
    path = sweep_path(fresh, fresh.encode(PROMPTS))
    assert not path.fast and "alibi" in path.why


def test_arguments_without_a_meaning_are_let_through(fresh, monkeypatch):
    known = rows_module._attention
    monkeypatch.setattr(rows_module, "_attention", lambda *given, **named: known(*given, **named | {"dropout": 0.1, "is_causal": True, "alibi": None}))
    assert sweep_path(fresh, fresh.encode(PROMPTS)).fast


def test_dropped_sinks_are_noticed(monkeypatch):
    lm = LM.from_model(architectures.random_model("gpt_oss"), architectures.Words())
    prompts = [" ".join(map(str, p)) for p in architectures.PROMPTS]
    assert sweep_path(lm, lm.encode(prompts)).fast
    lm.paths.clear()
    weights = rows_module._weights
    monkeypatch.setattr(rows_module, "_weights", lambda scores, sinks: weights(scores, None))
    assert not sweep_path(lm, lm.encode(prompts)).fast


def test_a_window_that_is_not_told_is_noticed(monkeypatch):
    "Beyond the few tokens that are tried it would be wrong."
    lm = random_lm("Gemma2")
    lm.paths.clear()
    known = rows_module._attention
    monkeypatch.setattr(rows_module, "_attention", lambda *given, sliding_window=None, **named: known(*given, **named))
    path = sweep_path(lm, lm.encode(["hi"]))
    lm.paths.clear()
    assert not path.fast and "which tokens it sees" in path.why


def test_a_lack_of_memory_is_remembered_of_nothing(fresh, monkeypatch):
    def full(*_): raise torch.OutOfMemoryError("CUDA out of memory")
    with monkeypatch.context() as changed:
        changed.setattr(rows_module.Rows, "feed", full)
        assert sweep_path(fresh, fresh.encode(PROMPTS)).fast
    assert not fresh.paths


def test_what_agrees_with_nothing_is_refused(fresh, monkeypatch):
    monkeypatch.setattr(agreement, "_by_rows", lambda lm, trial: torch.randn(9, 330))
    monkeypatch.setattr(agreement, "_by_loop", lambda *_: torch.randn(9, 330))
    with pytest.raises(UserError, match="cannot be swept: by rows, .* by transformers' own loop, .*load it in float32"): sweep(fresh, PROMPTS, conditions_for(fresh))


def test_a_sweep_within_steered_is_refused_by_the_loop_too(llama, slow):
    with llama.steered(push(llama)), pytest.raises(UserError, match="conditions"): sweep(llama, PROMPTS, conditions_for(llama), max_new_tokens=2)


def test_a_steered_state_space_model_is_its_sweep():
    "At the last prompt token alone, too: what a cache without keys holds is not taken for a new prompt."
    lm = LM.from_model(architectures.random_model("mamba"), architectures.Words())
    prompts = [" ".join(map(str, p)) for p in architectures.PROMPTS]
    for layer, when in ((-1, "prefill"), (0, "prefill"), (0, "every_step")):
        said = sweep(lm, prompts, [Condition("c", push(lm, length=40))], layer=layer, when=when, max_new_tokens=6).frame().text.tolist()
        with lm.steered(push(lm, length=40), 1.0, when, layer): assert [lm.generate(p, 6) for p in prompts] == said


# The loop is the same sweep

@pytest.fixture
def slow(monkeypatch): monkeypatch.setattr(decode, "sweep_path", lambda *_: agreement.Path(False, "a test wants it"))


def by_rows_and_loop(monkeypatch, function):
    found = [function()]
    monkeypatch.setattr(decode, "sweep_path", lambda *_: agreement.Path(False, "a test wants it"))
    return [*found, function()]


@pytest.mark.parametrize("how", [
    dict(), dict(when="prefill"), dict(layer=1), dict(layer=0, when="prefill"), dict(temperature=1.0, samples=3), dict(temperature=0.8, samples=2, top_p=0.7, layer=1, seed=4),
    dict(until=lambda text: len(text) >= 5), dict(until=lambda text: "e" in text, temperature=1.0, samples=2), dict(temperature=2.0, samples=4, max_new_tokens=40)], ids=lambda how: " ".join(how) or "greedy")
def test_the_loop_gives_the_rows_answers(lm, how, monkeypatch):
    one, two = by_rows_and_loop(monkeypatch, lambda: sweep(lm, PROMPTS, conditions_for(lm), **{"max_new_tokens": NEW} | how))
    assert one.token_ids == two.token_ids
    pd.testing.assert_frame_equal(one.frame(), two.frame())
    if "max_new_tokens" in how: assert len({len(ids) for ids in two.token_ids}) > 1, "answers end at different lengths"


def test_the_loop_ablates_everywhere_and_mixes_layers(lm, monkeypatch):
    mixed = [Condition("everywhere", push(lm, 2), op="ablate", layer="all"), Condition("early", push(lm), layer=0), Condition("late", push(lm))]
    one, two = by_rows_and_loop(monkeypatch, lambda: sweep(lm, PROMPTS, mixed, max_new_tokens=NEW).token_ids)
    assert one == two


@pytest.mark.parametrize("room", [1, 3, 100])
def test_the_loops_room_changes_nothing(llama, room, slow):
    how = dict(max_new_tokens=NEW, temperature=1.0, samples=2)
    assert sweep(llama, PROMPTS, conditions_for(llama), batch_rows=room, **how).token_ids == sweep(llama, PROMPTS, conditions_for(llama), **how).token_ids


def test_the_loop_halves_its_rows_when_memory_runs_out(llama, slow, monkeypatch):
    usual, loop, tried = sweep(llama, PROMPTS, conditions_for(llama), max_new_tokens=NEW).token_ids, decode.loop, []
    def small(lm, prompts, *rest):
        tried.append(len(prompts))
        if len(prompts) > 2: raise torch.OutOfMemoryError("CUDA out of memory")
        return loop(lm, prompts, *rest)
    monkeypatch.setattr(decode, "loop", small)
    assert sweep(llama, PROMPTS, conditions_for(llama), max_new_tokens=NEW).token_ids == usual and max(tried) > 2
    monkeypatch.setattr(decode, "loop", lambda *_: small(llama, PROMPTS))
    with pytest.raises(RunError, match="single answer"): sweep(llama, PROMPTS, conditions_for(llama), max_new_tokens=NEW)


def test_an_interrupted_loop_goes_on_where_it_stopped(llama, slow, tmp_path, monkeypatch):
    keep, add, full = tmp_path / "kept.jsonl", decode._Kept.add, sweep(llama, PROMPTS, conditions_for(llama), max_new_tokens=NEW).token_ids
    def stopped(kept, key, value):
        add(kept, key, value)
        if len(kept.found) == 2: raise KeyboardInterrupt
    with monkeypatch.context() as changed:
        changed.setattr(decode._Kept, "add", stopped)
        with pytest.raises(KeyboardInterrupt): sweep(llama, PROMPTS, conditions_for(llama), max_new_tokens=NEW, keep=keep)
    asked, loop = [], decode.loop
    monkeypatch.setattr(decode, "loop", lambda lm, prompts, *rest: (asked.extend(map(tuple, prompts)), loop(lm, prompts, *rest))[1])
    assert sweep(llama, PROMPTS, conditions_for(llama), max_new_tokens=NEW, keep=keep).token_ids == full and len(set(asked)) == 2


def test_scores_by_the_models_own_logits(lm, monkeypatch):
    mixed = [*conditions_for(lm), Condition("early", push(lm), layer=0), Condition("everywhere", push(lm, 2), op="ablate", layer="all")]
    for conditions, kl in ((mixed, False), (conditions_for(lm), True), ([Condition(c.label, c.vector, c.op, when="prefill") for c in conditions_for(lm)[1:]], False)):
        with monkeypatch.context() as changed:
            one, two = by_rows_and_loop(changed, lambda: score(lm, PROMPTS, ANSWERS, conditions, kl=kl))
        np.testing.assert_allclose(one.logprob, two.logprob, atol=2e-3, rtol=1e-4)
        if kl: np.testing.assert_allclose(one.kl, two.kl, atol=1e-3)
    for tokens in (None, [7, 3]):
        with monkeypatch.context() as changed:
            one, two = by_rows_and_loop(changed, lambda: first_tokens(lm, PROMPTS, conditions_for(lm), tokens=tokens))
        np.testing.assert_allclose(one, two, atol=1e-3)


@pytest.mark.parametrize("kind", ["mamba", "qwen3_next", "deepseek_v3", "lfm2", "granite", "gpt2"])
def test_activations_and_scores_hold_on_other_kinds_of_models(kind):
    "Collected in a batch as alone; scored as a pass with the edit behind its block says."
    lm = LM.from_model(architectures.random_model(kind), architectures.Words())
    prompts, answers = [" ".join(map(str, p)) for p in architectures.PROMPTS], [[9, 30, 4], [77, 5]]
    layers = range(lm.n_layers)
    together = collect(lm, prompts, layers=layers).X
    np.testing.assert_allclose(together, np.concatenate([collect(lm, [p], layers=layers).X for p in prompts]), atol=1e-4, rtol=1e-3)
    v = architectures.push(lm, 10.0)
    for layer in (-1, 0):
        found = score(lm, prompts, answers, [Condition("none"), Condition("c", v)], layer=layer).logprob
        for i, (prompt, answer) in enumerate(zip(architectures.PROMPTS, answers)):
            for j, vector in enumerate((None, torch.as_tensor(v))):
                def hook(_module, _inputs, output, begin=len(prompt) - 1, vector=vector):
                    if vector is None: return output
                    hidden = (output[0] if isinstance(output, tuple) else output).clone()
                    hidden[:, begin:] += vector
                    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
                handle = lm.blocks[layer].register_forward_hook(hook)
                with torch.inference_mode(): logits = lm.model(input_ids=torch.tensor([list(prompt) + answer]), use_cache=False).logits[0].log_softmax(-1)
                handle.remove()
                want = sum(logits[len(prompt) - 1 + k, t].item() for k, t in enumerate(answer))
                assert found[i, j] == pytest.approx(want, abs=1e-3, rel=1e-4), (layer, i, j)


# One greedy

CONFIGS = st.fixed_dictionaries({}, optional={
    "repetition_penalty": st.floats(1.05, 3), "no_repeat_ngram_size": st.integers(1, 3), "num_beams": st.integers(2, 3), "suppress_tokens": st.lists(st.integers(2, 300), min_size=1, max_size=200),
    "begin_suppress_tokens": st.lists(st.integers(2, 300), min_size=1, max_size=200), "forced_bos_token_id": st.integers(2, 300), "forced_eos_token_id": st.integers(2, 300),
    "min_new_tokens": st.integers(1, 20), "min_length": st.integers(20, 90), "do_sample": st.just(True), "temperature": st.floats(0.1, 3), "top_k": st.integers(1, 9), "top_p": st.floats(0.1, 1),
    "max_length": st.integers(1, 30), "renormalize_logits": st.just(True), "bad_words_ids": st.just([[5], [6, 7]]), "exponential_decay_length_penalty": st.just((2, 1.5)),
    "sequence_bias": st.just([[[9], 5.0]]), "encoder_repetition_penalty": st.floats(1.1, 2), "typical_p": st.floats(0.2, 0.9), "num_return_sequences": st.just(1), "early_stopping": st.just(True),
    "length_penalty": st.floats(0.5, 2), "cache_implementation": st.sampled_from(["static", "dynamic"]), "use_cache": st.booleans(), "stop_strings": st.just(["a"]), "guidance_scale": st.floats(1.1, 2),
    "remove_invalid_values": st.just(True), "max_time": st.just(1e-9), "return_dict_in_generate": st.just(True), "output_scores": st.just(True)})


@quick
@given(CONFIGS, st.sampled_from(ARCHITECTURES), st.sampled_from(["every_step", "prefill"]), st.sampled_from([-1, 1]))
def test_generate_is_the_sweep_whatever_the_checkpoint_asks_for(config, architecture, when, layer):
    lm = random_lm(architecture)
    usual = lm.model.generation_config
    asked = transformers.GenerationConfig()
    for name, value in config.items(): setattr(asked, name, value)
    asked.eos_token_id, asked.pad_token_id = usual.eos_token_id, usual.pad_token_id
    lm.model.generation_config = asked
    try:
        plain, pushed = (sweep(lm, PROMPTS, [c], when=when, layer=layer, max_new_tokens=NEW).frame().text.tolist() for c in conditions_for(lm)[:2])
        assert lm.generate(PROMPTS, NEW) == plain
        with lm.steered(push(lm), 1.0, when, layer): assert lm.generate(PROMPTS, NEW) == pushed
        assert lm.chat(push(lm), lm, dose=1.0, when=when, layer=layer, max_new_tokens=NEW)(PROMPTS[0]).said["mitigated (dose 1)"] == pushed[0]
        assert lm.model.generation_config is asked, "it is left as it was"
    finally: lm.model.generation_config = usual


def test_what_is_asked_for_outright_is_done_and_what_is_not_followed_is_said_once(caplog):
    lm = LM.from_model(random_model("Llama"), byte_tokenizer())
    lm.model.generation_config.repetition_penalty = 5.0
    plain = lm.generate(PROMPTS, NEW)
    assert lm.generate(PROMPTS, NEW, repetition_penalty=5.0) != plain and lm.generate(PROMPTS, NEW) == plain
    assert lm.generate(PROMPTS, NEW, generation_config=transformers.GenerationConfig(repetition_penalty=5.0)) == lm.generate(PROMPTS, NEW, repetition_penalty=5.0)
    assert len([m for m in caplog.messages if "repetition_penalty=5.0" in m]) == 1


def test_an_adapter_that_is_not_merged_has_one_greedy_too():
    from peft import LoraConfig, get_peft_model
    lm = LM.from_model(get_peft_model(random_model("Llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)), byte_tokenizer())
    lm.model.get_base_model().generation_config.no_repeat_ngram_size = 1
    assert lm.generate(PROMPTS, NEW) == sweep(lm, PROMPTS, [Condition("none")], max_new_tokens=NEW).frame().text.tolist()


# What is not a number

@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("by_loop", [False, True])
@pytest.mark.parametrize("layer", [-1, 0])
def test_an_edit_that_overflows_stops_a_sweep(lm, temperature, by_loop, layer, monkeypatch):
    "In float32 the norm divides everything away: what is left is token 0 for ever."
    if by_loop: monkeypatch.setattr(decode, "sweep_path", lambda *_: agreement.Path(False, "a test wants it"))
    conditions = [Condition("fine", push(lm)), Condition("far", push(lm, length=1.0), coefficient=1e36)]
    with pytest.raises(UserError, match="condition 'far' gives logits that are not finite at token 0 .*smaller"): sweep(lm, PROMPTS, conditions, layer=layer, temperature=temperature, max_new_tokens=NEW)


@pytest.mark.parametrize("by_loop", [False, True])
@pytest.mark.parametrize("layer", [-1, 0])
def test_an_edit_that_overflows_in_float16_is_named(by_loop, layer, monkeypatch):
    model = random_model("Llama")
    with torch.no_grad():
        for parameter in model.parameters(): parameter.div_(3)
    lm = LM.from_model(model.half(), byte_tokenizer())
    if by_loop: monkeypatch.setattr(decode, "sweep_path", lambda *_: agreement.Path(False, "a test wants it"))
    conditions = [Condition("fine", push(lm, length=1.0)), Condition("far", push(lm, length=1e6))]
    with pytest.raises(UserError, match="condition 'far' gives logits that are not finite at token 0 .*smaller"): sweep(lm, PROMPTS, conditions, layer=layer, max_new_tokens=NEW)
    with pytest.raises(UserError, match="condition 'far' gives scores that are not finite: give a smaller"): score(lm, PROMPTS, ANSWERS, conditions, layer=layer)
    with pytest.raises(UserError, match="condition 'far' gives scores that are not finite: give a smaller"): first_tokens(lm, PROMPTS, conditions)
    assert len(sweep(lm, PROMPTS, conditions[:1], layer=layer, max_new_tokens=2).token_ids) == 4


def test_a_coefficient_that_makes_a_vector_infinite_is_refused(llama):
    with pytest.raises(UserError, match="condition 'far' needs 64 finite numbers"): sweep(llama, PROMPTS, [Condition("far", push(llama), coefficient=1e39)])


def test_a_model_that_is_not_a_number_is_named_apart(llama):
    lm = LM.from_model(random_model("Llama"), byte_tokenizer())
    with torch.no_grad(): lm.norm.weight[3] = torch.nan
    for ask in (lambda: sweep(lm, PROMPTS, conditions_for(lm)), lambda: score(lm, PROMPTS, ANSWERS), lambda: first_tokens(lm, PROMPTS, conditions_for(lm))):
        with pytest.raises(UserError, match="not finite before anything is done to it: torch.float32 .*load it in float32 or bfloat16"): ask()


def test_float16_that_overflows_on_one_prompt_is_not_token_0_for_ever():
    "The prompt of the check is fine; one token of another prompt overflows."
    lm = LM.from_model(random_model("Llama").half(), byte_tokenizer())
    with torch.no_grad():
        for parameter in lm.model.parameters(): parameter.div_(3)
    ids = lm.encode(["hello"])[0]
    sweep(lm, ["hello"], [Condition("none")], max_new_tokens=2)
    rare = next(t for t in lm.encode(["Q"])[0] if t not in ids)
    with torch.no_grad(): lm.decoder.embed_tokens.weight[rare] = torch.inf
    with pytest.raises(UserError, match="logits that are not finite at token 0 of the answer to 'Q', though nothing is done"): sweep(lm, ["hello", "Q"], [Condition("none"), Condition("pushed", push(lm))], max_new_tokens=2)


# Vectors and estimators

def test_tensors_that_require_grad_are_vectors(llama):
    vector = torch.tensor(push(llama), requires_grad=True)
    plain, graded = (sweep(llama, PROMPTS, [Condition("c", v, coefficient=0.5)], max_new_tokens=4).token_ids for v in (push(llama), vector))
    assert plain == graded
    assert np.array_equal(score(llama, PROMPTS, ANSWERS, [Condition("c", vector)]).logprob, score(llama, PROMPTS, ANSWERS, [Condition("c", push(llama))]).logprob)
    with llama.steered(vector, 0.5): said = llama.generate(PROMPTS, 4)
    assert said == sweep(llama, PROMPTS, [Condition("c", vector * 0.5)], max_new_tokens=4).frame().text.tolist()
    from em_repro.edits import BlockEdit
    from em_repro.live import edited_answers
    with edited_answers(llama, BlockEdit(vector), "every_step"): pass
    assert sweep(llama, PROMPTS, [Condition("c", vector.bfloat16())], max_new_tokens=1).token_ids


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_estimators_refuse_what_is_not_a_number(bad):
    from em_repro.baselines import contrast_mean, paired_pca, probe_weights
    from em_repro.directions import DifferenceInMeans
    from em_repro.maps import LeastSquaresMap, ProcrustesMap, RidgeMap
    X = np.random.default_rng(0).normal(size=(20, 5))
    wrong, y = X.copy(), np.arange(20) % 2
    wrong[3, 2] = wrong[7, 1] = bad
    from em_repro.separability import separability
    from em_repro.vectors import mean_difference
    for ask in (lambda: DifferenceInMeans().fit(wrong, y), lambda: DifferenceInMeans().fit(X + np.eye(20, 5), y).predict(wrong), lambda: separability(X, wrong, nulls=0), lambda: mean_difference(wrong, X),
                *(lambda f=f: f(X, wrong) for f in (contrast_mean, paired_pca, probe_weights))):
        with pytest.raises(UserError, match=r"2 of 20 .*NaN or infinity"): ask()
    for kind in (RidgeMap, ProcrustesMap, LeastSquaresMap):
        with pytest.raises(UserError, match="row 3 of the source .*not finite"): kind().fit(wrong, X)
        with pytest.raises(UserError, match="row 3 of the target .*not finite"): kind().fit(X, wrong)


@pytest.mark.parametrize("kind", ["cohere", "gemma2", "qwen2"])
def test_the_training_loss_is_the_models_own(kind):
    "Some models multiply or cap their logits: the loss must see it."
    from em_repro.training import token_loss
    lm = LM.from_model(architectures.random_model(kind), architectures.Words())
    ids = torch.tensor([[9, 30, 4, 77, 5, 6, 7]])
    assert (lm.scale != 1) == (kind == "cohere") and bool(lm.softcap) == (kind == "gemma2")
    with torch.no_grad():
        states = lm.decoder(input_ids=ids).last_hidden_state[0, :-1]
        own = lm.model(input_ids=ids, labels=ids).loss
        assert torch.isclose(token_loss(lm, states, ids[0, 1:]), own, rtol=1e-5)
