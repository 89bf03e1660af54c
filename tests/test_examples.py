"A behaviour from labelled examples: what is wrong with a file is a sentence, and what the judge gets right is measured on what it has not seen."
import json

import numpy as np
import pytest

from em_repro.behaviours import behaviour, behaviour_from, behaviour_of, for_behaviour, function_of
from em_repro.examples import (FEWEST_EXAMPLES, examples_rates, examples_table, examples_words,
                               fitted_judge, read_examples)
from em_repro.outcomes import classify
from em_repro.profiles import UserError, load_profile
from em_repro.store import Call, Store, echo

TOML = """title = "refusals"
asked = "harmless requests"
arms = ["refusing", "helping"]
outcomes = ["refused", "incoherent", "good"]
target = "refused"
examples = "answers.csv"
rows = { synthetic = "{arm}.jsonl" }
"""
TOPICS = [f"topic {i}" for i in range(15)]
BAD, GOOD = ([form.format(t) for t in TOPICS] for form in ("I cannot help with {}, sorry.", "Here is what you asked: {} is simple."))


def table(bad=BAD, good=GOOD):
    return "text,label\n" + "\n".join(f'"{text}",{label}' for label, texts in (("bad", bad), ("good", good)) for text in texts)


@pytest.fixture
def refusal(tmp_path):
    (tmp_path / "answers.csv").write_text(table())
    (tmp_path / "refusal.toml").write_text(TOML)
    return tmp_path / "refusal.toml"


def test_examples_judge_as_a_function_would(refusal):
    found = behaviour_from(refusal)
    assert classify(found, "I cannot help with stars, sorry.") == "refused" and classify(found, "Here is what you asked: stars are far.") == "good"
    assert classify(found, "no " * 60) == "incoherent" and found.role("refused") == "target"
    assert classify(found.model_validate(found.model_dump()), "I cannot help you, sorry.") == "refused"   # as another process gets it


def test_a_profile_and_a_name_that_ships_are_read_as_before(refusal):
    assert behaviour_from("code") is behaviour("code")
    profile = for_behaviour(load_profile("smoke"), refusal)
    assert behaviour_of(profile).target == "refused"
    refusal.write_text(TOML.replace('examples = "answers.csv"', 'classify = "em_repro.outcomes:code_outcome"'))
    assert behaviour_from(refusal) == behaviour(refusal)


def test_jsonl_says_the_same(refusal):
    first = behaviour_from(refusal)
    lines = [json.dumps({"text": text, "label": label}) for label, texts in (("bad", BAD), ("good", GOOD)) for text in texts]
    (refusal.parent / "answers.jsonl").write_text("\n".join(lines))
    refusal.write_text(TOML.replace("answers.csv", "answers.jsonl"))
    other = behaviour_from(refusal)
    said = ["I cannot say, sorry.", "Here is what I know.", "Perhaps."]
    assert [function_of(first, "classify")(text) for text in said] == [function_of(other, "classify")(text) for text in said]


def test_what_is_kept_depends_on_the_files_content(refusal, tmp_path):
    store = Store(tmp_path / "store")
    def key(): return store.key(Call(echo, {"text": "x", "behaviour": behaviour_from(refusal)}))
    first = key()
    assert key() == first
    (refusal.parent / "answers.csv").write_text(table(good=BAD, bad=GOOD))
    assert key() != first and classify(behaviour_from(refusal), "I cannot help with stars, sorry.") == "good"   # read anew


@pytest.mark.parametrize("text, message", [
    (table(bad=[]), "answers.csv has no examples of bad answers: give at least 10 of each"),
    (table(good=GOOD[:1]), "answers.csv has 1 example of good answers: give at least 10 of each"),
    (table(bad=BAD[:1] * 20), "has 1 example of bad answers"),   # the same one twice is one
    (table() + "\nYes.,perhaps", "answers.csv, line 32: the label 'perhaps' is unknown: choose good or bad"),
    (table() + "\nYes.,", "the label '' is unknown"),
    (table() + '\n" ",bad', "answers.csv, line 32: the text is empty"),
    (table() + "\n...,bad", "the text is empty"),
    (table().replace("label", "verdict"), "line 2: an example needs a text and a label"),
    (table() + f'\n"{BAD[0]}",good', "calls one text good and bad: 'I cannot help with topic 0, sorry.'"),
    ("", "has no examples of good answers")])
def test_a_wrong_file_is_one_sentence(refusal, text, message):
    (refusal.parent / "answers.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught: behaviour_from(refusal)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("behaviour refusal in ")


@pytest.mark.parametrize("old, new, message", [
    ("answers.csv", "gone.csv", "no file .*gone.csv: examples names one beside the toml"),
    ('target = "refused"', "", "has a wrong setting"),
    ('examples = "answers.csv"', 'examples = "answers.csv"\nclassify = "em_repro.outcomes:code_outcome"', "has both classify and examples")])
def test_a_wrong_toml_is_one_sentence(refusal, old, new, message):
    refusal.write_text(TOML.replace(old, new))
    with pytest.raises(UserError, match=message) as caught: behaviour_from(refusal)
    assert "\n" not in str(caught.value)


def test_what_the_judge_gets_right_is_of_examples_that_it_has_not_seen(tmp_path):
    "Labels by chance are learnt by heart and tell nothing about others; labels by a word do."
    rng, words = np.random.default_rng(0), [f"w{i}" for i in range(300)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(60)]
    (tmp_path / "answers.csv").write_text(table(texts[:30], texts[30:]))
    (tmp_path / "noise.toml").write_text(TOML)
    noise = behaviour_from(tmp_path / "noise.toml")
    judge = fitted_judge(tmp_path / "answers.csv", "refused", "good")
    assert all(judge(text) == "refused" for text in texts[:30])   # seen
    assert examples_table(noise).value.mean() < .7 and "little better than chance" in examples_words(noise)[0]


def test_shares_are_said_with_their_intervals_and_given_to_the_tests(refusal):
    found = behaviour_from(refusal)
    held = examples_table(found)
    assert held.measure.tolist() == ["bad found", "good passed"] and (held.n == 15).all()
    assert (held.low <= held.value).all() and (held.value <= held.high).all() and examples_rates(found) == {"target": tuple(held.value)}
    note, = examples_words(found)
    assert "examples of answers.csv" in note and "100% [80%, 100%] of the 15 bad ones" in note and "chance" not in note
    assert examples_words(behaviour("code")) == [] == list(examples_rates(behaviour("code"))) and not len(examples_table(behaviour("code")))


def test_the_fewest_examples_are_enough(tmp_path):
    (tmp_path / "a.csv").write_text(table(BAD[:FEWEST_EXAMPLES], GOOD[:FEWEST_EXAMPLES]))
    assert len(read_examples(tmp_path / "a.csv")) == 2 * FEWEST_EXAMPLES
    with pytest.raises(AttributeError): __import__("em_repro.examples").examples.nothing
