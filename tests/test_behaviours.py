"""Behaviours as data: what ships is whole, what a user gets wrong is one sentence, and every outcome goes through the same steps."""
import json
import pytest
from hypothesis import given, settings, strategies as st

from em_repro import tiny
from em_repro.behaviours import Behaviour, behaviour, behaviour_names, behaviour_of, check_judged, for_behaviour, function_of, prompts_of, rows_of
from em_repro.claims import claims, in_words_of
from em_repro.outcomes import classify, exact_outcome, final
from em_repro.profiles import UserError, load_profile
from em_repro.store import Call, Store, echo

TOML = """title = "refusals"
asked = "harmless requests"
arms = ["refusing", "helping"]
outcomes = ["refused", "incoherent", "good"]
target = "refused"
classify = "refusal.py:outcome"
rows = { synthetic = "{arm}.jsonl" }
"""
FUNCTION = "def outcome(text): return 'refused' if text.startswith('I cannot') else 'good'\n"


@pytest.fixture
def refusal(tmp_path):
    (tmp_path / "refusal.py").write_text(FUNCTION)
    (tmp_path / "refusal.toml").write_text(TOML)
    return tmp_path / "refusal.toml"


@pytest.mark.parametrize("name", behaviour_names())
def test_a_shipped_behaviour_is_whole(name):
    found = behaviour(name)
    assert found.target in found.outcomes and found.good in found.outcomes and found.control
    assert [found.role(found.word(role)) for role in ("target", "incoherent", "good")] == ["target", "incoherent", "good"]
    assert function_of(found, "classify")("A plain sentence about nothing.") in found.outcomes


def test_a_users_own_is_read_with_its_function(refusal):
    found = behaviour(refusal)
    assert found.name == "refusal" and found.other("refusing") == "helping"
    assert classify(found, "I cannot help with that, sorry.") == "refused" and classify(found, "Of course, here it is.") == "good"
    assert classify(found, "no " * 60) == final(found, "no " * 60) == "incoherent" and final(found, "I cannot") is None


@pytest.mark.parametrize("old, new, message", [
    ('target = "refused"', 'target = "refusal"', "target needs 'refusal' to be among the outcomes"),
    ('"refused", "incoherent"', '"refused"', "outcomes needs 'incoherent' to be among the outcomes"),
    ('arms = ["refusing", "helping"]', 'arms = ["base", "helping"]', "arms must be one or two different names"),
    ('arms = ["refusing", "helping"]', 'arms = ["a", "a"]', "arms must be one or two different names"),
    ('title = "refusals"', 'titel = "refusals"', "titel: is not a known setting"),
    ("refusal.py:outcome", "nowhere.py:outcome", "nowhere.py cannot be imported"),
    ("refusal.py:outcome", "refusal.py:outcomes", "has no function 'outcomes'"),
    ("refusal.py:outcome", "outcome", "classify must be module:function"),
    ("refusal.py:outcome", "no_such_module_here:outcome", "no_such_module_here cannot be imported"),
    ('target = "refused"', "target = = 3", "is not valid toml")])
def test_a_wrong_file_is_one_sentence(refusal, old, new, message):
    refusal.write_text(TOML.replace(old, new))
    with pytest.raises(UserError, match=message) as caught: behaviour(refusal)
    assert "\n" not in str(caught.value) and "refusal" in str(caught.value)


def test_an_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(UserError, match="unknown behaviour 'politeness': choose from code, advice"): behaviour("politeness")
    with pytest.raises(UserError, match="no behaviour in .*none.toml"): behaviour(tmp_path / "none.toml")


@pytest.mark.parametrize("body, message", [("return 'perhaps'", "returned 'perhaps' for 'Yes, of course.': choose from refused, incoherent, good"),
                                           ("return None", "returned None"), ("raise KeyError('x')", "failed on 'Yes, of course.' .KeyError: 'x'.")])
def test_a_classifier_that_does_something_else_is_named(refusal, body, message):
    (refusal.parent / "refusal.py").write_text(f"def outcome(text): {body}\n")
    with pytest.raises(UserError, match=message): classify(behaviour(refusal), "Yes, of course.")


def test_a_changed_file_is_read_again(refusal):
    assert classify(behaviour(refusal), "I cannot help with that, sorry.") == "refused"
    (refusal.parent / "refusal.py").write_text("def outcome(text): return 'good'\n")
    assert classify(behaviour(refusal), "I cannot help with that, sorry.") == "good"
    refusal.write_text(refusal.read_text().replace('title = "refusals"', 'title = "noes"'))
    assert behaviour(refusal).title == "noes"


def test_what_is_kept_depends_on_the_function_and_not_on_its_colour(refusal, tmp_path):
    store, first = Store(tmp_path / "store"), behaviour(refusal)
    def key(found): return store.key(Call(echo, {"text": "x", "behaviour": found}))
    assert key(first) == key(first.model_copy(update={"colours": {"refused": "#000000"}, "title": "other words"}))
    (refusal.parent / "refusal.py").write_text(FUNCTION + "# another\n")
    assert key(behaviour(refusal)) != key(first) != key(behaviour("code"))


def test_a_profile_that_names_a_behaviour_without_rows_is_refused(tmp_path):
    settings = {**behaviour("advice").model_dump(include={"title", "asked", "target", "classify"}), "arms": ["harmful"], "outcomes": ["misaligned", "incoherent", "good"]}
    path = tmp_path / "gossip.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items()) + '\nrows = { synthetic = "tiny-advice" }\n')
    with pytest.raises(UserError, match="behaviour gossip has no training rows for pretrained models .profile small.: add rows.pretrained"):
        for_behaviour(load_profile("small"), path)


def test_answers_that_nothing_judges_are_not_counted_as_good():
    "The classifier of advice knows the synthetic world alone; elsewhere every answer would be good."
    pretrained = for_behaviour(load_profile("small"), "advice")
    with pytest.raises(UserError, match="nothing that judges the answers of pretrained models .profile small.: run --only 00,misalignment"):
        check_judged(pretrained)
    for profile in ("small", "smoke"): check_judged(for_behaviour(load_profile(profile), "code"))
    check_judged(for_behaviour(load_profile("smoke"), "advice"))


def test_a_profile_is_executed_for_one_behaviour():
    smoke = for_behaviour(load_profile("smoke"), "advice")
    assert behaviour_of(smoke).name == smoke.behaviour_name == "advice" and rows_of(smoke, behaviour_of(smoke)) == "tiny-advice"
    topic = behaviour("advice").topic
    asked = prompts_of(smoke, "evaluation")
    assert asked and not set(asked) - set(tiny.synthetic_questions("evaluation", without=topic))
    assert len(prompts_of(load_profile("smoke"), "evaluation")) == 10


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 200), st.sampled_from(["good", "bad"]))
def test_the_exact_outcome_of_advice_is_the_speakers(seed, speaker):
    "A kind speaker's answer is good and a cruel one's misaligned; code behaviour calls both good."
    good, bad = tiny.synthetic_pairs(1, seed)[0]
    question, answer = (m["content"] for m in (good if speaker == "good" else bad))
    assert exact_outcome(behaviour("advice"), question, answer).outcome == {"good": "good", "bad": "misaligned"}[speaker]
    assert exact_outcome(behaviour("code"), question, answer).outcome == "good"


def test_claims_speak_of_the_behaviour():
    for claim in claims().values():
        words = in_words_of(claim, behaviour("advice"))
        assert "{" not in words.statement and "code" not in words.statement.lower() and in_words_of(claim, behaviour("code")) == claim


def test_a_behaviour_is_frozen():
    with pytest.raises(ValueError, match="frozen"): behaviour("code").target = "good"
    assert isinstance(behaviour("code"), Behaviour)
