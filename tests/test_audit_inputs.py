"What an audit refuses before any work: pairs, adapters, questions, folders."
import json, shutil

import pytest
from safetensors.torch import load_file, save_file

from adapters import changed
from conftest import thinking_llama
from em_repro import audit_inputs
from em_repro.audit_inputs import (FULL, QUICK, AdapterFile, Setup, Sizes, adapter_hash,
                                   check_judges, check_model, check_tasks, choose_prompts, claimed,
                                   located, model_notes, prepared, read_prompts, told_setup,
                                   what_was_cut)
from em_repro.behaviours import behaviour
from em_repro.families import family, load_lm, weights
from em_repro.training import with_lora
from em_repro.profiles import Recipe, UserError
from em_repro.subjects import Subject

BASE = "tiny-qwen2"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    "An adapter on the base whose lora_B are not zero."
    folder = tmp_path_factory.mktemp("adapters") / "some"
    with_lora(load_lm(BASE), Recipe(rank=4), seed=0).model.save_pretrained(folder)
    return changed(folder, folder.parent / "changed", lambda name, t: t + .01)


def copied(name, folder):
    shutil.copytree(weights(family(name)), folder)
    return folder


# Sizes

def test_quick_says_what_was_cut():
    full, quick = FULL.model_dump().values(), QUICK.model_dump().values()
    assert what_was_cut(FULL) == []
    assert len(what_was_cut(QUICK)) == sum(a != b for a, b in zip(full, quick))


def test_sizes_answer_to_the_names_of_the_first_release():
    with pytest.warns(DeprecationWarning, match="'doses' is called 'coefficients'"):
        assert Sizes(doses=(0, -1)).coefficients == (0, -1)
    with pytest.warns(DeprecationWarning, match="'draws' is called 'samples'"):
        assert Sizes(draws=3).samples == 3


# Pairs

def test_a_zero_adapter_is_refused(adapter, tmp_path):
    zero = changed(adapter, tmp_path / "zero", lambda name, t: t * ("lora_A" in name))
    with pytest.raises(UserError, match="changes no weight"): adapter_hash(zero, BASE)


def test_an_adapter_of_another_width_or_depth_is_refused(adapter, tmp_path):
    for other in ("tiny-llama", "tiny-gemma2", "tiny-ministral3"):
        with pytest.raises(UserError, match="give the base that it was trained on"):
            adapter_hash(adapter, other)
    deep = tmp_path / "deep"
    shutil.copytree(adapter, deep)
    tensors = load_file(deep / "adapter_model.safetensors")
    save_file({n.replace("layers.3.", "layers.9."): t for n, t in tensors.items()},
              deep / "adapter_model.safetensors")
    with pytest.raises(UserError, match="changes block 9, but the base has 4 blocks"):
        adapter_hash(deep, BASE)


def test_adapters_that_cannot_be_read_are_refused(adapter, tmp_path):
    for name in ("pickled", "damaged"): shutil.copytree(adapter, tmp_path / name)
    pickled = tmp_path / "pickled"
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    (tmp_path / "damaged/adapter_model.safetensors").write_bytes(b"not tensors")
    for name, words in (("pickled", "pickled weights are not read"), ("damaged", "is damaged"),
                        ("gone", "no PEFT adapter")):
        with pytest.raises(UserError, match=words): adapter_hash(tmp_path / name, BASE)


def test_models_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(UserError, match="width .* and .*number of blocks"):
        check_model(BASE, "tiny-llama")
    with pytest.raises(UserError, match="same weights"):
        check_model(BASE, located(copied(BASE, tmp_path / "copy")))
    other = copied(BASE, tmp_path / "other")
    told = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = told["model"]["vocab"]
    one, two = [w for w in vocabulary if len(w) > 2][:2]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(UserError, match="2 tokens of the base's vocabulary have another number"):
        check_model(BASE, str(other))


def test_a_reference_is_an_adapter(adapter):
    sizes = Sizes()
    with pytest.raises(UserError, match="is no PEFT adapter"):
        prepared(BASE, str(adapter), None, "tiny-llama", sizes, .1, 0)
    with pytest.raises(UserError, match="margin"):
        prepared(BASE, str(adapter), None, None, sizes, 0.0, 0)


def test_a_card_that_differs_is_trusted_only_with_fitting_shapes(adapter, tmp_path):
    carded = tmp_path / "carded"
    shutil.copytree(adapter, carded)
    (carded / "em_repro.json").write_text('{"family": "another"}')
    given = (str(carded), None, None, Sizes(), .1, 0)
    with pytest.raises(UserError, match="--trust-base"): prepared(BASE, *given)
    assert prepared(BASE, *given, trust_base=True)[0].tuned.folder == str(carded)
    with pytest.raises(UserError, match="give the base that it was trained on"):
        prepared("tiny-llama", *given, trust_base=True)


def test_a_base_that_is_named_otherwise_is_a_note(adapter, tmp_path):
    for name, notes in (("Qwen/Qwen2.5-14B", 1), ("unsloth/Qwen2.5-1.5B-Instruct-bnb-4bit", 0)):
        named = changed(adapter, tmp_path / str(notes), lambda name, t: t)
        said = json.loads((named / "adapter_config.json").read_text())
        said["base_model_name_or_path"] = name
        (named / "adapter_config.json").write_text(json.dumps(said))
        found = [note for note in model_notes("qwen2.5-1.5b", str(named)) if "names" in note]
        assert len(found) == notes and all(name in note for note in found)


def test_a_hash_of_an_adapter_covers_what_is_read(adapter, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    before = adapter_hash(copy, BASE)
    (copy / "README.md").write_text("for people")
    assert adapter_hash(copy, BASE) == before
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert adapter_hash(copy, BASE) != before


def test_tasks_without_lm_eval_are_refused(monkeypatch):
    monkeypatch.setattr(audit_inputs, "find_spec", lambda name: None)
    check_tasks([])
    with pytest.raises(UserError, match="pip install lm-eval"): check_tasks(["arc_easy"])


# Questions of the user's

@pytest.mark.parametrize("text", ["", "\n \n\t\n", "\ufeff\n"])
def test_a_file_without_questions_is_refused(tmp_path, text):
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="holds no questions"): read_prompts(tmp_path / "own.txt")


def test_of_a_hundred_thousand_lines_some_are_drawn(tmp_path):
    sizes = Sizes(prompts=60)
    (tmp_path / "own.txt").write_text("\n".join(f"Question {i}?" for i in range(100_000)))
    asked = read_prompts(tmp_path / "own.txt")
    kept, notes = choose_prompts(asked, BASE, sizes)
    assert len(asked) == 100_000 and len(set(kept)) == sizes.prompts and set(kept) <= set(asked)
    assert kept != asked[:sizes.prompts] and choose_prompts(asked, BASE, sizes)[0] == kept
    assert notes == [f"{sizes.prompts} of your 100000 prompts were drawn at random."]


def test_questions_longer_than_the_context_are_left_out():
    long = ["short?", "long " * 3000, "x" * 10_000_000]
    kept, notes = choose_prompts(long, BASE, Sizes())
    assert kept == ["short?"] and "2 of your prompts did not fit" in notes[0]
    with pytest.raises(UserError, match="none of the 1 prompts fits"):
        choose_prompts(["long " * 3000], BASE, Sizes())


USER, SYSTEM = ({"role": role, "content": "a"} for role in ("user", "system"))
ROWS = {'{"prompt": 7}': 'give a "prompt"', "{": "not valid json", "[1]": 'give a "prompt"',
        json.dumps({"messages": [USER, USER]}): "one question",
        json.dumps({"messages": [SYSTEM, USER]}): "one question"}


@pytest.mark.parametrize("row", ROWS)
def test_rows_that_hold_no_question_are_named(tmp_path, row):
    (tmp_path / "own.jsonl").write_text('{"prompt": "fine?"}\n' + row)
    with pytest.raises(UserError, match=f"line 2.*{ROWS[row]}"):
        read_prompts(tmp_path / "own.jsonl")


def test_rows_of_both_kinds_are_read(tmp_path):
    asked = {"messages": [{"role": "user", "content": "b?"}, {"role": "assistant", "content": "c"}]}
    (tmp_path / "own.jsonl").write_text(f'{{"prompt": " a? "}}\n\n{json.dumps(asked)}\n"d?"\n')
    assert read_prompts(tmp_path / "own.jsonl") == ["a?", "b?", "d?"]
    (tmp_path / "latin.txt").write_bytes("caf\xe9?".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"): read_prompts(tmp_path / "latin.txt")


# The folder

def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no audit wrote"): claimed(tmp_path / "mine", {"base": "a"})
    with pytest.raises(UserError, match="is a file"): claimed(tmp_path / "file", {"base": "a"})
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    claimed(tmp_path / "own", {"base": "a"})
    with pytest.raises(UserError, match="another pair"): claimed(tmp_path / "own", {"base": "b"})
    (tmp_path / "own/audit.json").write_text("{")
    with pytest.raises(UserError, match="another pair"): claimed(tmp_path / "own", {"base": "a"})


# Behaviours and templates

def setup_of(base, tuned=None, **more):
    tuned = tuned or Subject("tiny-llama", "tuned")
    return Setup(Subject(base), tuned, None, (), QUICK, .1, 0, **more)


@pytest.mark.parametrize("base, name, judged", [
    ("tiny-llama", "advice", True), ("smollm2-135m", "advice", False),
    ("smollm2-135m", "advice-money", False), ("smollm2-135m", "code", True)])
def test_a_behaviour_that_nothing_judges_is_refused(base, name, judged):
    "Each of 410 harmful answers about money would have been counted as good."
    setup = setup_of(base, behaviour=behaviour(name))
    if judged: return check_judges(setup)
    with pytest.raises(UserError, match=f"behaviour {name} has nothing that judges the answers of "
                                        "pretrained models: leave --behaviour out"):
        check_judges(setup)


def test_thinking_that_is_turned_off_unasked_is_said(tmp_path):
    base = thinking_llama(tmp_path)
    setup = setup_of(base, Subject(base, "tuned"))
    same, (note,) = told_setup(setup, None)
    assert same == setup and "without being asked: enable_thinking = false." in note
    _, (asked,) = told_setup(setup, {"enable_thinking": True})
    assert "was told: enable_thinking = True" in asked   # by the user, and by nobody else
    assert told_setup(setup_of("tiny-llama"), None)[1] == []


def test_the_template_of_an_adapter_is_looked_at_too(adapter, tmp_path):
    place = changed(adapter, tmp_path / "own", lambda name, t: t)
    template = "{% if thinking %}<think>{% endif %}" + audit_inputs.load_tokenizer(
        weights(family(BASE))).chat_template
    (place / "chat_template.jinja").write_text(template)
    notes = told_setup(setup_of(BASE, AdapterFile(str(place), "")), None)[1]
    assert len(notes) == 1 and "thinking = false" in notes[0]
