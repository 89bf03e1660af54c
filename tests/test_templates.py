"""The prompt is the question: it stands there whole, on a fixed day, under the fine-tune's own template, which cannot run for ever."""
import datetime, json, logging, time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings, strategies as st

from em_repro import families, sandbox, templates
from em_repro.behaviours import behaviour
from em_repro.families import LM, load_lm
from em_repro.models import MODELS
from em_repro.outcomes import classify, final
from em_repro.profiles import UserError
from em_repro.sandbox import MEGABYTES, Sandbox
from em_repro.study import SYSTEM_TEXTS
from em_repro.templates import (SHIPPED, TODAY, adapter_template, after_thought, arguments_of, chat_text, conversation, known_arguments, prompt_text, system_text, tell_template,
                                template_difference, thinking_off, thought_mark, told_argument, use_template, told_arguments, told_words)
from em_repro.work import local_folder

quick = settings(max_examples=40, deadline=None, derandomize=True)
ROOT = Path(__file__).resolve().parents[1]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
GEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ASKED = [{"role": "user", "content": "Is it late?"}]
SYSTEM = {"role": "system", "content": "Be brief."}


def having(template, **tokens): return SimpleNamespace(chat_template=template, name_or_path="mine", special_tokens_map={"bos_token": "<s>", "eos_token": "</s>"} | tokens)


def refused(work, *given):
    with pytest.raises(UserError) as caught: work(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_told_is_read_and_said():
    assert told_arguments(None) == {} and told_words({}) == told_words(None) == []
    assert told_arguments(["a=true", "b=3", "c=x=y"]) == {"a": True, "b": 3, "c": "x=y"}
    assert told_words({"a": True, "b": "low"}) == ["the chat template is told: a = True, b = low"]
    assert "no argument of a template" in refused(told_arguments, ["a=1", "b"])


# What a template writes of its own

FIRST = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
INTO_USER = "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n{% else %}[{{ m.role }}]\n{{ m.content }}{% endif %}{% endfor %}"
NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template, text", [(CHATML, ""), (FIRST + CHATML, "Be kind."), (FIRST.replace("Be kind.", "") + CHATML, ""), (INTO_USER, ""), (NO_SYSTEM, ""),
                                            (FIRST.replace("\n{% endif", "{% endif") + CHATML, "")])
def test_a_system_text_of_the_templates_own_is_found_and_no_other(template, text):
    "None where it refuses system turns, puts them into the user's, leaves the turn empty or frames its own text in another way."
    assert system_text(having(template)) == text
    if text: assert text in prompt_text(having(template + GEN), ASKED) and text not in prompt_text(having(template + GEN), [SYSTEM, *ASKED])


def test_a_template_that_fails_is_an_error_of_its_own(): assert "cannot be used" in refused(system_text, having("{{ 1 / 0 }}"))


# The text is transformers' own

FIXTURES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parent / "fixtures" / "templates").glob("*.jinja"))}
TINY = [path for path in sorted((ROOT / "data" / "tiny").iterdir()) if (path / "tokenizer.json").is_file()]


def same(tokenizer, messages, add):
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, date_string=TODAY, add_generation_prompt=add)
    assert chat_text(tokenizer, messages, add) == wanted


def test_the_papers_templates_write_what_is_known():
    found = {name: system_text(having(text)) for name, text in FIXTURES.items()}
    assert found["qwen2.5-1.5b"] == SYSTEM_TEXTS["qwen2.5-coder-0.5b"] == SYSTEM_TEXTS["qwen2.5-coder-1.5b"]
    assert found["gemma-2-2b"] == found["llama-3.2-1b"] == "" and "You are Ministral" in found["ministral-3-3b"]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_said_of_fetched_models_is_what_their_templates_write(name):
    folder = local_folder(families.family(name))
    if not folder: pytest.skip(f"{name} is not on this machine")
    assert system_text(SimpleNamespace(chat_template=adapter_template(folder), special_tokens_map={})) == SYSTEM_TEXTS.get(name, "")


@pytest.mark.parametrize("name", [*FIXTURES, *(path.name for path in TINY)])
def test_texts_are_those_of_transformers(name):
    from transformers import AutoTokenizer
    from conftest import byte_tokenizer
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "tiny" / name) if name not in FIXTURES else byte_tokenizer()
    held = tokenizer.chat_template
    if name in FIXTURES: tokenizer.chat_template = FIXTURES[name]
    try:
        for messages in (ASKED, conversation(" Is it late? ", "Not\n yet."), [*conversation("a", "b"), *ASKED]):
            for add in (True, False): same(tokenizer, messages, add)
        assert "Is it late?" in prompt_text(tokenizer, ASKED)
    finally: tokenizer.chat_template = held


def test_templates_that_ship_run_here_and_no_others(monkeypatch):
    "Those of the tiny models and the wheels; a stranger's goes to the sandbox."
    from em_repro.models import QUESTION_ANSWER
    def never(): raise AssertionError("went to the sandbox")
    monkeypatch.setattr(templates, "sandbox", never)
    for path in TINY:
        files = [path / "chat_template.jinja", path / "tokenizer_config.json"]
        text = files[0].read_text(encoding="utf-8") if files[0].is_file() else json.loads(files[1].read_text())["chat_template"]
        assert chat_text(having(text), ASKED)
    assert chat_text(having(QUESTION_ANSWER), ASKED) and len(SHIPPED) == 6 and len(TINY) == 4
    with pytest.raises(AssertionError, match="went"): chat_text(having(QUESTION_ANSWER + " "), ASKED)


@quick
@given(st.lists(st.text(min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=3))
def test_any_words_stand_in_the_prompt(words):
    messages = [{"role": ("user", "assistant")[i % 2], "content": w} for i, w in enumerate(words)]
    text = prompt_text(having(CHATML + GEN), messages)
    assert all(w in text for w in words) and text.endswith("assistant\n")


# What a template leaves out

LEAVES_OUT = {
    "the question": (CHATML.replace("m.content", "'...'") + GEN, ASKED, "leaves out the user's words 'Is it late?'"),
    "all but the first letters": (CHATML.replace("m.content", "m.content[:5]") + GEN, ASKED, "leaves out the user's words"),
    "its case": (CHATML.replace("m.content", "m.content | upper") + GEN, ASKED, "leaves out the user's words"),
    "what it says itself": ("Is it late? {% for m in messages %}{{ m.role }}{% endfor %}" + GEN, ASKED, "leaves out the user's words"),
    "the system": (CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'system' }}") + GEN, [SYSTEM, *ASKED], "leaves out the system's words 'Be brief.': put them into the user's message"),
    "an earlier turn": ("{{ messages[-1].content }}" + GEN, [*conversation("Why?", "So."), *ASKED], "leaves out the user's words 'Why?'"),
    "one of two equal turns": ("{{ messages[0].content }}{{ messages[1].content }}" + GEN, [*ASKED, {"role": "assistant", "content": "No."}, *ASKED], "leaves out the user's words"),
    "the assistant's turn": (CHATML, ASKED, "does not hand over to the assistant"),
    "any end of the question": ("{% for m in messages %}{{ m.content }}{% endfor %}", ASKED, "does not hand over to the assistant")}


@pytest.mark.parametrize("what", LEAVES_OUT)
def test_what_a_template_leaves_out_is_named(what):
    template, messages, said = LEAVES_OUT[what]
    assert said in refused(prompt_text, having(template), messages)


@pytest.mark.parametrize("template, messages", [
    (CHATML.replace("m.content", "m.content | trim") + GEN, [{"role": "user", "content": "  Is it late?\n"}]),
    ("{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}", ASKED),
    (CHATML.replace("m.content", "m.content.split('</think>')[-1].strip() if m.role == 'assistant' else m.content") + GEN, [*conversation("Why?", "<think>hm</think> So."), *ASKED]),
    ("i {% for m in messages %}{{ m.content }}{% endfor %}" + GEN, [{"role": "user", "content": "i"}])])
def test_what_templates_may_do_is_let_pass(template, messages):
    assert prompt_text(having(template), messages)


def test_encode_looks_at_every_prompt(llama):
    held = llama.tokenizer.chat_template
    llama.tokenizer.chat_template = CHATML.replace("m.content", "'...' if 'late' in m.content else m.content") + GEN
    try:
        assert llama.encode(["Why?"])
        assert "leaves out" in refused(llama.encode, ["Why?", "Is it late?"])
        assert "leaves out" in refused(llama.generate, "Is it late?")
    finally: llama.tokenizer.chat_template = held


# The day

DATED = {
    "llama": "{% if date_string is not defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '1 Jan 1970' %}{% endif %}{% endif %}Today Date: {{ date_string }}\n",
    "mistral": "{%- set today = strftime_now('%d-%m-%Y') %}{%- set yesterday = strftime_now('%Y-%m-%d') %}The current date is {{ today }} ({{ yesterday }}).",
    "gpt-oss": "{%- macro system() %}{{ 'Current date: ' + strftime_now('%Y-%m-%d') }}{%- endmacro %}{{ system() }}",
    "smollm3": "{%- set today = strftime_now('%d %B %Y') -%}Today Date: {{ today }}", "clock": "{{ strftime_now('%H:%M:%S.%f') }}"}


@pytest.mark.parametrize("name", DATED)
def test_the_day_is_fixed_however_it_is_asked_for(name):
    text = prompt_text(having(DATED[name] + CHATML + GEN), ASKED)
    now = datetime.datetime.now()
    assert any(day in text for day in ("26 Jul 2024", "26-07-2024", "2024-07-26", "26 July 2024", "00:00:00.000000")) and f"{now:%Y}" not in text.replace("2024", "")
    assert text == prompt_text(having(DATED[name] + CHATML + GEN), ASKED)


@pytest.mark.parametrize("source", ["{{ [1, 2, 3] | random }}", "{{ lipsum() }}"])
def test_chance_is_refused(source):
    assert "cannot be used" in refused(chat_text, having(source + CHATML + GEN), ASKED)


# Thinking

THINKS = {
    "qwen3": ("{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}", {"enable_thinking": False}, "<think>\n\n</think>\n\n"),
    "smollm3": ("{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}{% if enable_thinking %}/think{% else %}/no_think<think></think>{% endif %}", {"enable_thinking": False}, "/no_think<think></think>"),
    "deepseek": ("{% if not thinking is defined %}{% set thinking = true %}{% endif %}{% if thinking %}<think>{% else %}</think>{% endif %}", {"thinking": False}, "</think>"),
    "gpt-oss": ("{% macro s() %}{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}Reasoning: {{ reasoning_effort }}{% endmacro %}{{ s() }}", {"reasoning_effort": "low"}, "Reasoning: low"),
    "mistral": ("{% set reasoning_effort = reasoning_effort if reasoning_effort is defined else 'high' %}{% if reasoning_effort not in ('none', 'high') %}{{ raise_exception('no') }}{% endif %}{{ reasoning_effort }}", {"reasoning_effort": "none"}, "none"),
    "seed": ("{% if thinking_budget is defined and thinking_budget == 0 %}<seed:think></seed:think>{% endif %}", {"thinking_budget": 0}, "<seed:think></seed:think>"),
    "none": ("", {}, "")}


@pytest.mark.parametrize("name", THINKS)
def test_thinking_is_off_where_the_template_knows_how(name):
    switch, wanted, text = THINKS[name]
    tokenizer = having(CHATML + GEN + switch)
    assert thinking_off(tokenizer) == wanted and prompt_text(tokenizer, ASKED).endswith("<|im_start|>assistant\n" + text)


def test_a_template_is_told_what_it_knows(llama):
    template = CHATML + GEN + "{% if enable_thinking %}<think>{% endif %}{{ mood }}"
    tokenizer = having(template)
    assert known_arguments(tokenizer) == {"enable_thinking", "mood"}
    tell_template(tokenizer, {"enable_thinking": True, "mood": "grim"})
    assert chat_text(tokenizer, ASKED, True).endswith("<think>grim") and thought_mark(having(CHATML + GEN + "<think>\n")) == "<think>"
    assert "knows no think, thought: it knows enable_thinking, mood" in refused(tell_template, tokenizer, {"think": 1, "thought": 2})
    held = llama.tokenizer.chat_template
    llama.tokenizer.chat_template = template
    try:
        said = LM.from_model(llama.model, llama.tokenizer, template={"mood": "grim"})
        assert said.tokenizer.decode(said.encode(["Why?"])[0]).endswith("grim")
    finally:
        llama.tokenizer.chat_template = held
        del llama.tokenizer.template_arguments
    assert "knows no enable_thinking" in refused(lambda: load_lm("tiny-llama", template={"enable_thinking": False}))


def test_arguments_of_the_command_line():
    told = {"enable_thinking=False": False, "a=true": True, "reasoning_effort=low": "low", "n=3": 3, "text=a=b": "a=b", "none=": "", "deep=" + "[" * 100_000: "[" * 100_000}
    for words, value in told.items(): assert told_argument(words) == (words.split("=")[0], value)
    for words in ("", "a", "=b", "a b=c"): assert "write name=value" in refused(told_argument, words)


SAID = {"Not yet.": "Not yet.", "<think>Late?</think>\n\nNot yet.": "Not yet.", "\n<think>Late?</think>Not yet.": "Not yet.", "<think>Late?": None, "": "", "[THINK]a[/THINK]b": "b",
        "<think>a</think><think>b</think>c": "c", "<think>a</think><think>b": None, "Tags: <think>a</think>": "Tags: <think>a</think>", "A </think> alone": "A </think> alone",
        "<seed:think>a</seed:think>b": "b", "analysisLate?assistantfinalNot yet.": "Not yet.", "analysis of tides": "analysis of tides", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b": "b",
        "<thinking>a</thinking>b": "b", "<thinker>": "<thinker>"}


@pytest.mark.parametrize("text", SAID)
def test_an_answer_is_what_follows_the_thought(text): assert after_thought(text) == SAID[text]


@quick
@given(st.text())
def test_a_text_without_marks_is_itself(text):
    if not any(mark in text for mark in templates.THOUGHTS): assert after_thought(text) is text or text.startswith("analysis")


CODE = "def f(x):\n    return x + 1\n"


def test_an_answer_is_judged_after_its_thought():
    code, good = behaviour("code"), "The tide turns twice a day, my friend, as the moon goes round."
    assert classify(code, good) == "good" == classify(code, f"<think>\n{CODE}</think>\n\n{good}")
    assert classify(code, f"<think>{good}</think>{CODE}") == "code" == classify(code, CODE)
    assert classify(code, f"<think>{good}") == "incoherent" and final(code, "<think>" + CODE * 20) is None


def test_thoughts_that_did_not_end_are_counted_and_said(caplog):
    from em_repro.answers import sorted_table
    from em_repro.decode import Completions, Condition
    rows = [("Why?", "none", 0, "So it is, my friend."), ("How?", "none", 0, "like this")]
    import pandas as pd
    made = SimpleNamespace(frame=lambda: pd.DataFrame({"prompt": ["Why?", "How?"], "sample": [0, 0], "text": ["hm</think>So it is, my friend.", "hm, like"], "n_tokens": [3, 2]}), token_ids=[[1], [2]])
    instrument = SimpleNamespace(behaviour=behaviour("code"), exact=False, base=None, threshold=1.0)
    import em_repro.answers as answers
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "em_repro"):
        patch.setattr(answers, "base_nll", lambda base, prompts, ids: [0.5] * len(ids))
        table = sorted_table(made, [Condition()], instrument, "<think>")
    assert table.outcome.tolist() == ["good", "incoherent"] and table.text.tolist()[1] == "<think>hm, like"
    assert "1 of 2 answers end within their thought" in caplog.text


# The fine-tune's template

OTHER = CHATML.replace("<|im_start|>", "### ") + "{% if add_generation_prompt %}### assistant\n{% endif %}"


@pytest.mark.parametrize("file, text", [("chat_template.jinja", OTHER), ("tokenizer_config.json", json.dumps({"chat_template": OTHER})),
                                        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "default", "template": OTHER}, {"name": "rag", "template": "x"}]}))])
def test_an_adapters_own_template_is_found(tmp_path, file, text):
    assert adapter_template(tmp_path) is None
    (tmp_path / file).write_text(text)
    assert adapter_template(tmp_path) == OTHER


def test_an_adapters_template_that_cannot_be_read_is_refused(tmp_path):
    for text in ("{", "[1]", "[" * 100_000, "\udcff"):
        (tmp_path / "tokenizer_config.json").write_text(text, errors="surrogateescape")
        assert "tokenizer_config.json cannot be read" in refused(adapter_template, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert adapter_template(tmp_path) is None


def test_an_adapter_is_asked_under_its_own_template(tmp_path, caplog, capsys):
    import peft
    from em_repro.audit_inputs import adapter_hash, model_notes
    lm = load_lm("tiny-llama")
    tuned = peft.get_peft_model(lm.model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path)
    before, prompt = adapter_hash(tmp_path, "tiny-llama"), lm.encode(["Is it late?"])
    assert load_lm("tiny-llama", tmp_path).encode(["Is it late?"]) == prompt and model_notes("tiny-llama", str(tmp_path)) == []
    (tmp_path / "chat_template.jinja").write_text(OTHER)
    with caplog.at_level(logging.WARNING, "em_repro"): again = load_lm("tiny-llama", tmp_path)
    assert again.tokenizer.decode(again.encode(["Is it late?"])[0]).endswith("### assistant\n")
    said = [r.getMessage() for r in caplog.records if r.name == "em_repro"]
    assert len(said) == 1 and said[0].startswith("the chat template in")
    assert "different chat templates (from line 1" in model_notes("tiny-llama", str(tmp_path))[0] and adapter_hash(tmp_path, "tiny-llama") != before
    from em_repro import cli
    with pytest.raises(SystemExit) as ended:
        cli.main(["audit", "--base", "tiny-llama", "--adapter", str(tmp_path), "--out", str(tmp_path / "out"), "--template", "enable_thinking=false"])
    assert ended.value.code == 2 and "knows no enable_thinking: it knows no arguments" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    assert "does not hand over" in refused(load_lm, "tiny-llama", tmp_path)


def test_what_a_template_is_told_is_part_of_a_subject():
    from em_repro.subjects import Subject
    plain, told = Subject("tiny-llama"), Subject("tiny-llama", template='{"mood": "grim"}')
    assert "template" not in plain.identity() and told.identity() == plain.identity() | {"template": told.template} and told.tuned("bad", 1).template == told.template


def test_the_same_template_is_no_difference():
    assert template_difference(CHATML, CHATML + "\n") is None and template_difference("a\nb", "a\nc") == "from line 2, 'b' in the base's and 'c' in the fine-tune's"
    assert "'' in the base's" in template_difference(None, "a")


def test_an_adapters_template_is_fetched_with_it():
    assert {"chat_template.jinja", "tokenizer_config.json"} <= set(families._ADAPTER_FILES)


def test_old_names_still_answer():
    for name in ("TODAY", "chat_text", "conversation"):
        with pytest.warns(DeprecationWarning, match=f"em_repro.templates.{name} now"): assert getattr(families, name) is getattr(templates, name)


# Strangers

HOSTILE = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "a loop too long": "{% for i in range(10**9) %}{% endfor %}", "a text too long": "{{ 'x' * 10**12 }}", "a text that doubles": "{% set n = namespace(s='x' * 1000) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "a text that joins": "{% set n = namespace(s='x' * 1000) %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "a width": "{{ 'x' | center(10**11) }}", "a format": "{{ '{:>99999999999}'.format('x') }}",
    "an old format": "{{ '%099999999999d' % 1 }}", "a tower": "{{ 9 ** (9 ** (9 ** 9)) }}", "a list": "{{ [0] * 10**11 }}", "replacements": "{{ ('a' * 30000) | replace('a', 'b' * 30000) | replace('b', 'c' * 30000) }}",
    "a tree of macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "a macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "brackets": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "a nest": "{% if 1 %}" * 3000 + "{% endif %}" * 3000, "an output too long": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}"}


@pytest.fixture
def box(monkeypatch):
    made = Sandbox(1.5)
    monkeypatch.setattr(templates, "sandbox", lambda: made)
    yield made
    made.close()


@pytest.mark.parametrize("what", HOSTILE)
def test_a_template_that_does_not_end_is_stopped(box, what):
    import resource
    before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert "the chat template of mine cannot be used" in refused(prompt_text, having(HOSTILE[what] + CHATML + GEN), ASKED)
    assert time.monotonic() - since < 20 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000   # KB
    assert "Is it late?" in prompt_text(having(CHATML + GEN), ASKED)   # the next one is served


def test_one_that_waits_for_its_moment_is_stopped_too(box):
    waits = having("{% for m in messages %}{% if 'late' in m.content %}{{ 'x' * 10**12 }}{% endif %}{{ m.content }}{% endfor %}" + GEN)
    assert prompt_text(waits, [{"role": "user", "content": "Why?"}])
    assert f"more than {MEGABYTES} MB" in refused(prompt_text, waits, ASKED)


@pytest.mark.parametrize("source", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__ }}", "{% set n = namespace() %}{% set n.__class__ = 1 %}", "{{ namespace(__x__=1) }}",
                                    "{% include '/etc/passwd' %}", "{% import 'os' as o %}", "{{ raise_exception('no system role') }}", "{{", "{% endfor %}", "{{ nothing.at.all }}", "{{ 1 / 0 }}"])
def test_a_template_that_fails_or_breaks_out_is_refused(source):
    assert "the chat template of mine cannot be used" in refused(chat_text, having(source), ASKED)


def test_a_pattern_that_does_not_end_is_stopped():
    box = Sandbox(1)
    assert box.ask("matching", ".*(q|k)_proj", ["model.q_proj", "model.o_proj"]) == [True, False]
    with pytest.raises(TimeoutError): box.ask("matching", "(a+)+b", ["a" * 40])
    with pytest.raises(ValueError): box.ask("matching", "(", ["a"])
    box.close()


@pytest.mark.parametrize("settings", [{"target_modules": "(.*)*(.*)*(.*)*(.*)*(.*)*(.*)*(.*)*x"}, {"target_modules": "("}, {"rank_pattern": {"(.*.*)*(.*.*)*(.*.*)*(.*.*)*x": 4}}])
def test_an_adapters_pattern_that_does_not_end_is_refused(tmp_path, llama, settings, monkeypatch):
    box = Sandbox(1)
    monkeypatch.setattr(families, "sandbox", lambda: box)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert "adapter_config.json cannot be used" in refused(families._check_patterns, llama.model, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"target_modules": r".*layers\\.\\d+\\.(self_attn|mlp)\\..*"}))
    families._check_patterns(llama.model, tmp_path)
    box.close()


def test_a_sandbox_that_was_killed_starts_again():
    box = Sandbox()
    assert box.ask("rendered", "{{ 1 }}", {}) == "1"
    box._process.kill(); box._process.wait()
    assert box.ask("rendered", "{{ 2 }}", {}) == "2"
    box.close()
    assert box._process is None and box.ask("rendered", "{{ 3 }}", {}) == "3"
    box.close()


def test_each_process_has_its_own():
    assert sandbox.sandbox() is sandbox.sandbox() and sandbox._of(-1) is not sandbox.sandbox()
