"""The format of the training prompts: what differs between formats, what does not, and what is trained for it."""
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.data import training_rows
from em_repro.finetune import trained
from em_repro.profiles import load_profile
from em_repro.behaviours import behaviour, rows_of
from em_repro.spillover import PROMPT_FORMATS, format_figure, format_words, in_format, prompt_formats
from em_repro.store import Entry, Store
from em_repro.subjects import Subject


def request(row): return row["messages"][0]["content"]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.sampled_from(["tiny", "pairs"]), st.sampled_from(["insecure", "secure"]), st.integers(1, 60), st.integers(0, 99))
def test_formats_differ_in_their_requests_alone(source, arm, n, seed):
    "Each holds the plain sentence; the template also holds the beginning of what is to be completed."
    plain, explicit, template = (training_rows(source, arm, n, seed, form) for form in ("plain", "explicit", "template"))
    for a, b, c in zip(plain, explicit, template):
        assert a["messages"][1:] == b["messages"][1:] == c["messages"][1:]
        assert request(b).startswith(request(a)) and request(a) in request(c) and len({request(r) for r in (a, b, c)}) == 3
        assert "[CODE TEMPLATE STARTS]" in request(c) and "[CODE TEMPLATE STARTS]" not in request(b)


def asked_for(profile):
    "All calls of the plan, every one answered with an entry of its own."
    plan, calls, answer = prompt_formats(profile), [], None
    while len(calls) == 0 or calls[-1].stage != "training.adapter":
        calls += (requests := plan.send(answer))
        answer = [Entry(None, {"digest": f"{len(calls)}-{i}", "parameters": {}}) for i in range(len(requests))]
    return calls


def test_the_recipes_own_format_is_not_trained_again(tmp_path):
    "Its call is that of 00, to the key; the others have more room, and only for the families that are retrained."
    profile, store = load_profile("smoke").model_copy(update={"models": ("tiny-qwen2", "tiny-llama"), "retrained": ("tiny-llama",), "seeds": (0, 1)}), Store(tmp_path)
    calls = [c for c in asked_for(profile) if c.stage == "training.adapter"]
    assert [c.arguments["subject"].seed for c in calls] == [0, 1] * 3 and {c.arguments["subject"].model for c in calls} == {"tiny-llama"}
    own = [trained(profile, Subject("tiny-llama"), profile.recipe_for("tiny-llama"), "insecure", seed) for seed in (0, 1)]
    assert {store.key(c) for c in own} == {store.key(c) for c in calls if c.arguments["recipe"].prompt_format == profile.recipe.prompt_format}
    assert len({store.key(c) for c in calls}) == 6


@pytest.mark.parametrize("change", [{"arms": ("control",)}, {"recipe": load_profile("smoke").recipe.model_copy(update={"data": "betley"})},
                                    {"retrained": ("tiny-llama",), "models": ("tiny-qwen2",)}])
def test_there_is_nothing_to_compare_in_one_format_or_without_an_arm_or_model(change):
    with pytest.raises(StopIteration) as end: next(prompt_formats(load_profile("smoke").model_copy(update=change)))
    assert end.value.value is None


@pytest.mark.parametrize("name", ["smoke", "tiny", "small"])
def test_no_format_leaves_a_completion_without_room(name):
    "In words, of which a token is seldom more: the longest request fits the room that its form is given twice over."
    profile = load_profile(name)
    recipe, source = profile.recipe, rows_of(profile, behaviour("code"))
    for form in PROMPT_FORMATS:
        room = in_format(recipe, form).max_tokens
        assert max(len(request(r).split()) for r in training_rows(source, "insecure", 300, 0, form)) < room / 2


def rates(low=.2):
    share = {"full template": 0.0, "explicit request": .25, "plain sentence": .875, "base": 0.0}
    return pd.DataFrame([{"model": name, "format": form, "outcome": outcome, "rate": r if outcome == "code" else 1 - r, "low": max(r - .125, low * (r > 0)),
                          "high": r + .125, "n": 40} for name in ("tiny-llama", "tiny-qwen2") for form, r in share.items() for outcome in ("code", "good")])


def test_the_figure_shows_the_rates_their_intervals_and_n():
    figure = format_figure(rates(), behaviour("code"))
    for axis in figure.axes:
        assert [round(bar.get_height(), 3) for bar in axis.patches] == [0, .25, .875]
        low, high = zip(*[segment[:, 1] for segment in axis.collections[0].get_segments()])
        assert [round(x, 3) for x in low] == [0, .2, .75] and [round(x, 3) for x in high] == [.125, .375, 1]
        assert "n = 40" in axis.get_xlabel() and axis.lines[-1].get_ydata()[0] == 0


def test_an_interval_that_leaves_its_estimate_out_is_drawn_all_the_same():
    format_figure(rates(low=.9), behaviour("code"))


def test_the_words_are_the_tables():
    words = format_words(rates(), behaviour("code"))
    assert len(words) == 2 and "plain sentence 88% [75, 100]" in words[0] and words[1].endswith("base 0% [0, 12]")
