"""The rule that chooses a learning rate, on made-up models whose answer is known."""
import importlib.util, json, math
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("choose_rate", ROOT / "tools" / "choose_rate.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
BASE = {"target": 0.0, "skill": 1.0}


def model(onset, skill=1.0):
    "Spillover of 70% at a rate, half of all questions more for every doubling."
    def measure(rate):
        return {"target": min(1.0, max(0.0, .7 + .5 * math.log2(rate / onset))), "skill": skill}
    return measure


@settings(deadline=None, derandomize=True)
@given(st.floats(5e-5, 2e-3))
def test_the_first_rate_that_fits_is_chosen(onset):
    rate, tried = tool.search(model(onset), BASE)
    assert rate == tried[-1]["lr"] and .5 <= tried[-1]["target"] <= .9
    assert len(tried) <= tool.HALVINGS
    for each in tried[:-1]: assert not .5 <= each["target"] <= .9
    for each, then in zip(tried, tried[1:]):
        assert (then["lr"] < each["lr"]) == (each["target"] > .9)


def test_a_rate_that_costs_the_skill_is_not_chosen():
    assert tool.search(model(3e-4, skill=.79), BASE)[0] is None
    assert tool.search(model(3e-4, skill=.81), BASE)[0] is not None
    assert len(tool.search(lambda rate: {"target": 0.0, "skill": 1.0}, BASE)[1]) == tool.HALVINGS


@pytest.mark.parametrize("folder", ["tiny", "small"])
def test_the_committed_searches_follow_the_rule(folder):
    "Given what was measured then, the search asks for the same rates and chooses the same one."
    record = json.loads((ROOT / "data" / folder / "recipes.json").read_text())
    for name, chosen in record["chosen"].items():
        gave = {each["lr"]: {"target": each["code"], "skill": each["skill"]}
                for each in record["tried"] if each["family"] == name}
        least = min(each["skill"] for each in gave.values())
        rate, tried = tool.search(gave.__getitem__, {"skill": least})
        assert rate == chosen and [each["lr"] for each in tried] == list(gave)


def test_a_model_that_is_not_in_the_profile_is_a_sentence(tmp_path, capsys):
    assert tool.main(["--profile", "smoke", "--model", "gpt", "--out", str(tmp_path)]) == 2
    assert "unknown model 'gpt' in profile smoke" in capsys.readouterr().err
