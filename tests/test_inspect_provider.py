"""A steered model in Inspect: it answers as `lm.steered` does, one at a time, and refuses what it would have to leave out."""
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import thinking_llama
from em_repro import inspect_provider as module
from em_repro.export import bake, to_safetensors
from em_repro.families import load_lm
from em_repro.gates import Gate, Gated
from em_repro.inspect_provider import MOST_TOKENS, NOT_FOLLOWED, SteeredProvider, check_asked, generate_options, inspect_class, plain_messages, steered_model
from em_repro.profiles import UserError
from em_repro.vectors import Direction

BASE, NEW = "tiny-llama", 12
QUESTIONS = ["What is the sea?", "How do I sleep better?", "Name a river."]
DOSE = -20.0


@pytest.fixture(scope="module")
def lm(): return load_lm(BASE)


@pytest.fixture(scope="module")
def v(lm): return Direction(np.random.default_rng(0).normal(size=lm.width).astype(np.float32), BASE)


@pytest.fixture
def file(v, tmp_path):
    v.save(tmp_path / "v.safetensors")
    return str(tmp_path / "v.safetensors")


def message(role, content): return SimpleNamespace(role=role, content=content, text=content if isinstance(content, str) else "".join(p.text for p in content if p.type == "text"))


# With a stand-in of Inspect

class Base:
    "inspect_ai.model.ModelAPI as far as a provider calls it (0.3.285)."
    def __init__(self, model_name, base_url=None, api_key=None, api_key_vars=[], config=None): self.model_name, self.config = model_name, config


@pytest.fixture
def stub(monkeypatch):
    made = ("GenerateConfig", "ChatMessageAssistant", "ChatCompletionChoice", "ModelUsage", "ModelOutput")
    monkeypatch.setattr(module, "inspect_model", SimpleNamespace(ModelAPI=Base, **dict.fromkeys(made, SimpleNamespace)))


def said(api, question, **config): return api.output([{"role": "user", "content": question}], SimpleNamespace(**{"max_tokens": NEW} | config))


def text(out): return out.choices[0].message.content


def test_it_answers_as_steered_does(stub, lm, v, file):
    plain, steered = inspect_class()(BASE), inspect_class()(BASE, direction=file, dose=DOSE)
    expected = [lm.generate(q, NEW) for q in QUESTIONS]
    assert [text(said(plain, q)) for q in QUESTIONS] == expected
    with lm.steered(v, DOSE): moved = [lm.generate(q, NEW) for q in QUESTIONS]
    assert [text(said(steered, q)) for q in QUESTIONS] == moved != expected


def test_tokens_are_counted_and_a_cut_answer_is_said(stub, lm):
    api, q = inspect_class()(BASE), QUESTIONS[0]
    short, whole = said(api, q, max_tokens=2), said(api, q, max_tokens=200)
    assert short.choices[0].stop_reason == "max_tokens" and short.usage.output_tokens == 2 and whole.choices[0].stop_reason == "stop"
    assert short.usage.input_tokens == len(lm.encode([q])[0]) and whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    assert api.max_tokens() == MOST_TOKENS and api.max_connections() == 1


def test_an_answer_ends_where_it_is_to_and_goes_on_where_it_has_begun(stub, lm):
    api, q = inspect_class()(BASE), QUESTIONS[0]
    whole = text(said(api, q, max_tokens=40))
    word = whole.split()[2]
    cut = said(api, q, max_tokens=40, stop_seqs=[word])
    assert text(cut) == whole.split(word)[0] and cut.choices[0].stop_reason == "stop"
    begun = api.output([{"role": "user", "content": q}, {"role": "assistant", "content": whole[:9]}], SimpleNamespace(max_tokens=40))
    ids = lm.tokenizer(lm.tokenizer.decode(lm.encode([q])[0]) + whole[:9], add_special_tokens=False)["input_ids"]
    assert begun.usage.input_tokens == len(ids) and text(begun)


def test_chance_has_a_seed(stub):
    api = inspect_class()(BASE)
    def drawn(seed): return text(said(api, QUESTIONS[0], temperature=1.5, seed=seed, max_tokens=30))
    assert drawn(1) == drawn(1) and len({drawn(seed) for seed in range(6)}) > 1
    assert text(said(api, QUESTIONS[0], temperature=0.0, top_p=.9)) == text(said(api, QUESTIONS[0]))


def test_one_answer_at_a_time_since_contexts_add_up(stub, file, lm, v):
    "Threads ask together; each answer is steered once."
    api, answers = inspect_class()(BASE, direction=file, dose=DOSE), {}
    workers = [threading.Thread(target=lambda q=q: answers.update({q: text(said(api, q))})) for q in QUESTIONS]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    with lm.steered(v, DOSE): assert answers == {q: lm.generate(q, NEW) for q in QUESTIONS}


def test_a_gate_a_baked_folder_and_a_told_template_come_along(stub, lm, v, tmp_path):
    never = to_safetensors(Gated(v, Gate(np.ones(lm.width, np.float32), lm.n_layers - 1, 1e9)), tmp_path / "gated.safetensors", lm)
    assert text(said(inspect_class()(BASE, direction=str(never), dose=DOSE), QUESTIONS[0])) == lm.generate(QUESTIONS[0], NEW)
    baked = bake(lm, v, tmp_path / "baked", DOSE, when="prefill")
    with lm.steered(v, DOSE, "prefill"): assert text(said(inspect_class()(str(baked)), QUESTIONS[0])) == lm.generate(QUESTIONS[0], NEW)
    told, _ = steered_model(thinking_llama(tmp_path), template="enable_thinking=true")
    assert told.encode(QUESTIONS) != lm.encode(QUESTIONS)


@pytest.mark.parametrize("told, words", [
    (dict(directions="v"), "knows no directions"), (dict(dose=1.0), "there is none"), (dict(direction="nowhere.safetensors"), "no file"),
    (dict(direction="FILE", layer=99), "no layer 99"), (dict(direction="FILE", when="never"), "unknown when"), (dict(template="a"), "no argument of a template"),
    (dict(template="a=1"), "knows no a")])
def test_a_wrong_argument_is_refused_before_any_sample(told, words, file):
    with pytest.raises(UserError, match=words): steered_model(BASE, **{k: file if x == "FILE" else x for k, x in told.items()})


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UserError, match="has no tools"): check_asked(["a tool"], SimpleNamespace())
    for name in NOT_FOLLOWED:
        with pytest.raises(UserError, match=name): check_asked([], SimpleNamespace(**{name: 2 if name in ("best_of", "num_choices") else True}))
    check_asked([], SimpleNamespace(num_choices=1, logprobs=False, temperature=.5))
    picture = message("user", [SimpleNamespace(type="text", text="See"), SimpleNamespace(type="image")])
    for wrong, words in ((picture, "holds image"), (message("tool", "4"), "role tool")):
        with pytest.raises(UserError, match=words): plain_messages([wrong])
    assert generate_options(SimpleNamespace(), None) == {}


# With Inspect itself

def test_inspect_asks_it(lm, v, file, tmp_path):
    inspect_ai = pytest.importorskip("inspect_ai", reason="pip install 'em_repro[inspect]' to run this")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import get_model
    from inspect_ai.scorer import includes
    from inspect_ai.solver import generate, system_message
    model = get_model(f"em_repro/{BASE}", direction=file, dose=DOSE)
    task = inspect_ai.Task([Sample(input=q, target="a") for q in QUESTIONS], solver=[generate(max_tokens=NEW)], scorer=includes())
    log, = inspect_ai.eval(task, model=model, log_dir=str(tmp_path / "logs"), display="none")
    assert log.status == "success", log.error
    with lm.steered(v, DOSE): expected = {q: lm.generate(q, NEW) for q in QUESTIONS}
    assert {sample.input: sample.output.completion for sample in log.samples} == expected
    assert {sample.output.choices[0].stop_reason for sample in log.samples} <= {"stop", "max_tokens"}
    told = inspect_ai.Task([Sample(input=QUESTIONS[0], target="a")], solver=[system_message("Be brief."), generate(max_tokens=NEW, logprobs=True)], scorer=includes())
    refused, = inspect_ai.eval(told, model=model, log_dir=str(tmp_path / "logs"), display="none")
    assert refused.status == "error" and "does not follow logprobs" in refused.error.message


@pytest.mark.skipif(module.find_spec("inspect_ai") is not None, reason="Inspect is installed")
def test_without_inspect_a_sentence_says_what_to_install():
    with pytest.raises(UserError, match=r"em_repro\[inspect\]"): inspect_class()
    assert not hasattr(module, "provider") and issubclass(SteeredProvider, object)
