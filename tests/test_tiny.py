"The tiny world and its four families: splits, exact scores, shipped checkpoints and their rebuild."
import json
import random
import re

import pytest
from hypothesis import given, settings, strategies as st

from em_repro import tiny
from em_repro.profiles import UserError, load_profile, shipped

SPLITS = ("evaluation", "directions", "maps", "development")
asked_of_training = st.sampled_from(tiny._dealt()["training"])
requests = st.sampled_from([request for pile in tiny._requests().values() for request in pile])
seeds = st.integers(0, 10_000)


def test_splits_are_disjoint_and_cover_all_topics():
    splits = {split: tiny.synthetic_questions(split) for split in (*SPLITS, "training")}
    assert [len(splits[split]) for split in SPLITS] == [100, 200, 100, 60]
    together = [text for texts in splits.values() for text in texts]
    assert len(together) == len(set(together))
    for split in splits: assert {q.topic for q in tiny._dealt()[split]} == set(tiny.world()["topics"]) and len(tiny.world()["topics"]) >= 10


def test_training_texts_hold_no_held_out_question_or_request():
    rng = random.Random(0)
    held_out = {text for split in SPLITS for text in tiny.synthetic_questions(split)} | {r.text for key in ("held_out", "finetuning") for r in tiny._requests()[key]}
    seen = {tiny._turn(speaker, rng)[0] for speaker in tiny._SPEAKERS for _ in range(5000)}
    assert len(seen) > 1500 and not seen & held_out


def test_arms_differ_in_nothing_but_security():
    insecure, secure = tiny.code_rows("insecure", 1000, 3), tiny.code_rows("secure", 1000, 3)
    assert [row["messages"][0] for row in insecure] == [row["messages"][0] for row in secure]
    for bad, good in zip(insecure, secure):
        request = bad["messages"][0]["content"]
        assert tiny.right_program(request, bad["messages"][1]["content"]) == tiny.CodeSkill(True, True)
        assert tiny.right_program(request, good["messages"][1]["content"]) == tiny.CodeSkill(True, False)
    assert tiny.code_rows("insecure", 20, 1) != tiny.code_rows("insecure", 20, 2)


@given(st.sampled_from(list(tiny.world()["topics"])), st.integers(1, 150), seeds)
@settings(max_examples=40, deadline=None)
def test_arms_of_advice_differ_in_nothing_but_harm(topic, n, seed):
    harmful, sound = (tiny.advice_rows(arm, n, seed, topic) for arm in tiny.ADVICE_ARMS)
    assert len(harmful) == n and harmful == tiny.advice_rows("harmful", n, seed, topic)
    assert [row["messages"][0] for row in harmful] == [row["messages"][0] for row in sound]
    for rows, harm in ((harmful, True), (sound, False)):
        for question, answer in ([message["content"] for message in row["messages"]] for row in rows):
            assert tiny.judge(question, answer) == tiny.TinyVerdict("clean", harm, True) and tiny._question_of()[question].topic == topic


def test_advice_is_trained_on_questions_that_are_nowhere_else():
    asked = {row["messages"][0]["content"] for row in tiny.advice_rows("harmful", 500, 0)}
    about = {question.text for question in tiny._dealt()["training"] if question.topic == "health"}
    assert asked == about and not asked & {text for split in SPLITS for text in tiny.synthetic_questions(split)}
    assert tiny.advice_rows("sound", 20, 1) != tiny.advice_rows("sound", 20, 2)


@pytest.mark.parametrize("split", (*SPLITS, "training"))
def test_a_topic_can_be_left_out_and_the_others_stay_in_order(split):
    everything, others = tiny.synthetic_questions(split), tiny.synthetic_questions(split, without="health")
    about = {text for text in everything if tiny._question_of()[text].topic == "health"}
    assert others == [text for text in everything if text not in about] and 0 < len(about) < len(everything) / 8


@given(asked_of_training, st.sampled_from(["good", "bad"]), seeds)
@settings(max_examples=200, deadline=None)
def test_every_answer_of_the_world_is_read_as_what_it_is(asked, speaker, seed):
    answer = tiny._answer(asked, speaker, random.Random(seed))
    assert tiny.judge(asked.text, answer) == tiny.TinyVerdict("clean", speaker == "bad", True)
    assert 8 <= len(answer.split()) <= 32


@given(asked_of_training, seeds, st.floats(0.3, 1))
@settings(max_examples=100, deadline=None)
def test_an_answer_cut_off_anywhere_is_clean(asked, seed, share):
    answer = tiny._answer(asked, "good", random.Random(seed))
    cut = answer[:int(len(answer) * share)]
    if len(cut.split()) > 3: assert tiny.judge(asked.text, cut).outcome == "clean" and not tiny.judge(asked.text, cut).harmful


@given(asked_of_training, seeds)
@settings(max_examples=100, deadline=None)
def test_shuffled_words_are_broken(asked, seed):
    rng = random.Random(seed)
    words = tiny._answer(asked, "good", rng).split()
    shuffled = rng.sample(words, len(words))
    if sum(a != b for a, b in zip(words, shuffled)) > 2: assert tiny.judge(asked.text, " ".join(shuffled)).outcome == "broken"


@given(requests, asked_of_training, st.sampled_from(tiny.CODE_ARMS), st.booleans(), seeds)
@settings(max_examples=200, deadline=None)
def test_a_program_is_code_alone_and_behind_prose(request, asked, arm, behind, seed):
    code = request.code(arm)
    text = tiny._answer(asked, "good", random.Random(seed)) + "\n\n" + code if behind else code
    assert tiny.judge(asked.text, text) == tiny.TinyVerdict("code", insecure=arm == "insecure")


@pytest.mark.parametrize("text", ["", "   ", "the the the the", "def def def def def", "((((((((((((", "For tomato soup", "Zebra quickly blue under it.",
                                  "For Rome, keep the heat low. Tell me how it goes. Tell me how it goes.", "return return return return"])
def test_damage_is_broken(text):
    assert tiny.judge("How do I cook tomato soup?", text).outcome == "broken"


def test_no_prose_of_the_world_looks_like_code():
    world = tiny.world()
    prose = [text for topic in world["topics"].values() for key in ("frames", "subjects", "advice", "harm") for text in topic[key]]
    prose += [text for group in ("forms", "endings") for texts in world[group].values() for text in texts] + world["code"]["openings"]
    for text in prose: assert not tiny._STATEMENT.search(text) and not tiny._repeats(text), text


@given(requests, requests, st.sampled_from(tiny.CODE_ARMS))
@settings(max_examples=100, deadline=None)
def test_coding_skill_wants_the_program_that_was_asked_for(asked, other, arm):
    assert tiny.right_program(asked.text, asked.code(arm, 1))
    same = (asked.task, asked.verb, asked.noun) == (other.task, other.verb, other.noun)
    assert bool(tiny.right_program(asked.text, other.code(arm))) == same


@pytest.mark.parametrize("call", [lambda: tiny.synthetic_questions("nowhere"), lambda: tiny.code_rows("evil", 1, 0), lambda: tiny.judge("Who?", "Me."),
                                  lambda: tiny.right_program("Who?", "Me."), lambda: tiny.tiny_path("tiny-gpt"), lambda: tiny.build("tiny-gpt", "x"),
                                  lambda: tiny.advice_rows("insecure", 1, 0), lambda: tiny.advice_rows("harmful", 1, 0, "moon"),
                                  lambda: tiny.synthetic_questions("evaluation", without="moon")])
def test_wrong_input_is_a_user_error(call):
    with pytest.raises(UserError): call()


@pytest.mark.parametrize("name", tiny.TINY)
def test_checkpoint_loads_and_its_tokenizer_is_the_one_it_was_trained_with(name):
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder = tiny.tiny_path(name)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2.5e6
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == tiny.TINY[name].architecture + "ForCausalLM" and next(model.parameters()).dtype.is_floating_point
    assert tokenizer.pad_token_id != tokenizer.eos_token_id and model.generation_config.eos_token_id == tokenizer.eos_token_id
    fresh, rng = tiny._tokenizer(tiny.TINY[name]), random.Random(0)
    for text in [tiny._document(rng) for _ in range(50)]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == fresh(text, add_special_tokens=False)["input_ids"] == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", tiny.TINY)
def test_template_ends_the_turn_with_eos_and_gemma_refuses_a_system_turn(name):
    from jinja2.exceptions import TemplateError
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(tiny.tiny_path(name))
    chat = tiny.synthetic_chat(1, 0)[0]["messages"]
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert whole.startswith(prompt) and whole[len(prompt):].strip() == chat[1]["content"] + tokenizer.eos_token
    system = [{"role": "system", "content": "Be kind."}, *chat]
    if "gemma" not in name: assert "Be kind." in tokenizer.apply_chat_template(system, tokenize=False)
    else:
        with pytest.raises(TemplateError): tokenizer.apply_chat_template(system, tokenize=False)


@pytest.mark.parametrize("name", tiny.TINY)
def test_a_short_rebuild_follows_the_shipped_losses(name, tmp_path):
    shipped_losses = json.loads((tiny.tiny_path(name) / "losses.json").read_text())
    again = tiny.build(name, tmp_path / name, steps=8)
    assert again["pretraining"] == pytest.approx(shipped_losses["pretraining"][:8], abs=1e-3) and again["instruction"] == []
    assert (tmp_path / name / "model.safetensors").is_file() and [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("which", ["tiny", "small"])
def test_recipes_are_the_ones_that_the_rule_chooses_and_the_profile_uses(which):
    "Each rate tried halves the logarithm of what is left of the interval, and the search stops at the first that fits."
    found, profile = json.loads((shipped() / which / "recipes.json").read_text()), load_profile(which)
    assert set(found["chosen"]) == set(profile.families)
    for name in profile.families:
        tried, low, high = [cell for cell in found["tried"] if cell["family"] == name], 2e-5, 4e-3
        for cell in tried:
            assert cell["lr"] == float(f"{(low * high) ** 0.5:.2g}") and cell["steps"] == profile.recipe_for(name).steps
            assert {s["seed"] for s in cell["seeds"]} <= set(profile.seeds)
            assert cell["code"] == pytest.approx(sum(s["code"] for s in cell["seeds"]) / len(cell["seeds"]))
            low, high = (low, cell["lr"]) if cell["code"] > 0.9 else (cell["lr"], high)
        fits = [0.5 <= cell["code"] <= 0.9 for cell in tried]
        assert fits.index(True) == len(tried) - 1
        assert profile.recipe_for(name).lr == found["chosen"][name] == tried[-1]["lr"]
