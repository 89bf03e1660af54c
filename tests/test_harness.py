"""What lm-eval asks is what the rest asks: same text, same tokens, a fixed day, and no template without an end."""
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import byte_tokenizer, random_model
from em_repro import harness
from em_repro.audit import capability
from em_repro.decode import Condition
from em_repro.families import LM, load_lm
from em_repro.harness import task_prompt, task_reader
from em_repro.profiles import UserError
from em_repro.subjects import Subject

ASKED = [{"role": "user", "content": "Is it late?"}]
SYSTEM, BEGUN = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "It is"}
HEAD = ("<eos>{{ strftime_now('%d %b %Y') }}{% if enable_thinking is defined and not enable_thinking %}[plain]{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}")


class Reader:
    "lm-eval's HFLM as far as prompts go (0.4.13): by itself it renders through the tokenizer, and begins with the tokenizer's first token."
    def __init__(self, pretrained, tokenizer, batch_size=1, add_bos_token=None):
        self.tokenizer, self.add_bos_token = tokenizer, add_bos_token

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return self.tokenizer.apply_chat_template(chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                                                  continue_final_message=not add_generation_prompt)

    def tok_encode(self, string):
        told = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        return self.tokenizer.encode(string, **told)


@pytest.fixture
def stub(monkeypatch): monkeypatch.setattr(harness, "huggingface", SimpleNamespace(HFLM=Reader))


def lm_with(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return LM.from_model(random_model("Llama"), tokenizer)


def asks_as_the_rest(reader, lm):
    "The reader's tokens are those of `encode`, which every other question takes."
    for messages in (ASKED, [SYSTEM, *ASKED], [*ASKED, BEGUN, *ASKED]):
        assert reader.tok_encode(reader.apply_chat_template(messages)) == lm.encode([messages])[0]
    begun = reader.apply_chat_template([*ASKED, BEGUN], add_generation_prompt=False)
    assert begun == reader.apply_chat_template(ASKED) + "It is"


def test_the_day_stands_still_and_thinking_is_off(stub):
    lm = lm_with(HEAD)
    text = task_reader(lm).apply_chat_template(ASKED)
    assert "26 Jul 2024" in text and "[plain]" in text
    told = Reader(lm.model, lm.tokenizer).apply_chat_template(ASKED)
    assert "26 Jul 2024" not in told and "[plain]" not in told   # what the reader would have asked by itself
    asks_as_the_rest(task_reader(lm), lm)


def test_a_told_template_is_told_in_tasks_too(stub):
    lm = LM(random_model("Llama"), lm_with(HEAD).tokenizer, template={"enable_thinking": True})
    assert "[plain]" not in task_reader(lm).apply_chat_template(ASKED)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2"])
def test_tokens_are_those_of_every_other_question(name, stub):
    lm = load_lm(name)
    asks_as_the_rest(task_reader(lm), lm)


def test_a_model_without_a_system_role_reads_the_description_with_the_question():
    lm = load_lm("tiny-gemma2")
    assert not lm.family.system_role
    assert task_prompt(lm, [SYSTEM, *ASKED]) == task_prompt(lm, [{"role": "user", "content": "Be brief.\n\nIs it late?"}])
    with pytest.raises(UserError, match="system"): lm.encode([[SYSTEM, *ASKED]])


@pytest.mark.parametrize("template, words", [("{{ 1 }}", "leaves out"), ("{{ raise_exception('no') }}", "cannot be used"),
                                             ("{% for i in range(10 ** 9) %}{% for j in range(10 ** 9) %}{% endfor %}{% endfor %}", "cannot be used")])
def test_a_template_that_drops_the_question_or_does_not_end_is_refused(template, words, stub):
    lm = lm_with(HEAD)
    lm.tokenizer.chat_template = template
    with pytest.raises(UserError, match=words): task_reader(lm).apply_chat_template(ASKED)


def test_the_audits_tasks_are_asked_through_the_reader(stub, monkeypatch):
    seen = []
    def simple_evaluate(reader, tasks, limit, **how):
        seen.append((reader.apply_chat_template(ASKED), tasks, limit, how["apply_chat_template"]))
        return {"samples": {"own": [{"doc_id": i, "acc": float(i % 2)} for i in range(limit)]}}
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=simple_evaluate))
    monkeypatch.setattr(harness.lm_eval, "_module", None)
    found = capability(subject=Subject("tiny-llama"), conditions=[Condition()], tasks=["own"], items=4)["right"]
    assert seen == [(task_prompt(load_lm("tiny-llama"), ASKED), ["own"], 4, True)]
    assert np.array_equal(found.right, [0, 1, 0, 1])


def test_lm_evals_own_reader_asks_so_too():
    pytest.importorskip("lm_eval", reason="pip install lm-eval to run this")
    for lm in (load_lm("tiny-llama"), lm_with(HEAD)): asks_as_the_rest(task_reader(lm), lm)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_lm_eval_the_reader_is_refused():
    with pytest.raises(UserError, match="pip install"): task_reader(load_lm("tiny-llama"))
