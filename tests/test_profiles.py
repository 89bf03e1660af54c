"""Profiles: what ships is valid, what a user gets wrong is one sentence that names file and setting."""
import json, math, os
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from em_repro import profiles
from em_repro.families import families
from em_repro.profiles import (Decoding, Mitigation, Profile, Questions, Recipe, Statistics, Steering, UserError, load_profile, part_of, profile_names, run_dir, shipped,
                               writable)

GOOD = """description = "d"
models = ["tiny-llama", "tiny-qwen2"]
seeds = [0, 3]
[questions]
source = "synthetic"
[recipe]
rank = 8
[overrides.tiny-qwen2]
lr = 1e-4
"""


def written(tmp_path, text, name="own.toml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(message, name):
    with pytest.raises(UserError, match=message) as caught: load_profile(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_loads_and_names_known_models(name):
    profile = load_profile(name)
    assert profile.name == name and profile.description
    assert set(profile.models) <= set(families())
    assert 0 in profile.steering.coefficients and any(profile.steering.coefficients)
    for name in profile.models: assert isinstance(profile.recipe_for(name), Recipe)


def test_the_profiles_that_the_commands_use_ship():
    assert {"smoke", "tiny"} <= set(profile_names())


def test_tiny_is_the_full_study():
    tiny = load_profile("tiny")
    assert len(tiny.models) == 4 and len(tiny.seeds) == 2 and set(tiny.arms) == {"finetune", "control"}
    assert (tiny.questions.evaluation, tiny.questions.directions, tiny.questions.maps) == (100, 200, 100)
    assert tiny.steering.coefficients == (0, -0.25, -0.5, -1, -1.5, -2, -2.5, -3) and tiny.steering.samples >= 20


def test_a_file_of_the_users_own(tmp_path):
    profile = load_profile(written(tmp_path, GOOD))
    assert profile.name == "own" and profile.seeds == (0, 3) and profile.models == ("tiny-llama", "tiny-qwen2")
    assert load_profile(str(tmp_path / "own.toml")) == profile
    assert load_profile(written(tmp_path, 'name = "mine"\n' + GOOD)).name == "mine"


def test_overrides_lie_over_the_common_recipe(tmp_path):
    profile = load_profile(written(tmp_path, GOOD))
    assert profile.recipe_for("tiny-llama") == profile.recipe
    assert profile.recipe_for("tiny-qwen2") == profile.recipe.model_copy(update={"lr": 1e-4})


@pytest.mark.parametrize("more, message", [
    ("[decoding]\nmax_new_tokenz = 3", "decoding.max_new_tokenz: is not a known setting"),
    ("[stearing]\nmain = -1", "stearing: is not a known setting"),
    ("[statistics]\nresamples = \"many\"", "statistics.resamples: input should be a valid integer"),
    ("[statistics]\nalpha = 1.5", "statistics.alpha: input should be less than 1"),
    ("[steering]\ncoefficients = [0]", "steering: coefficients must hold 0 and at least one other"),
    ("[steering]\nmain = -1", "steering: main is no longer a setting, since the coefficient is chosen on development questions"),
    ("[steering]\ncoefficients = [0, -1, -1.0]", "steering: coefficients must differ from each other"),
    ("[steering]\ncoefficients = [-1]", "steering: coefficients must hold 0 and at least one other"),
    ("[steering]\nsamples = 4\nother_samples = 5", "steering: other_samples is at most samples"),
    ("[overrides.tiny-llama]\nstpes = 3", "overrides.tiny-llama.stpes: is not a known setting"),
    ("[overrides.tiny-gemma2]\nsteps = 3", "overrides for tiny-gemma2, which are not among the models"),
    ("[decoding]\nbatch_rows = 0", "decoding.batch_rows: input should be greater than or equal to 1"),
])
def test_a_wrong_setting_is_named(tmp_path, more, message):
    path = written(tmp_path, GOOD + more)
    assert str(path) in refused(message, path)


@pytest.mark.parametrize("text, message", [
    ("", "description: field required"),
    ("retrained_seeds = [3, 7]\n" + GOOD, "retrained_seeds has 7, which are not among the seeds"),
    (GOOD.replace('"tiny-llama", "tiny-qwen2"', ""), "models: tuple should have at least 1 item"),
    (GOOD.replace("[0, 3]", "[]"), "seeds: tuple should have at least 1 item"),
    (GOOD.replace("[0, 3]", '"0"'), "seeds: input should be a valid tuple"),
    (GOOD.replace('source = "synthetic"', 'source = "real"'), "questions.source: input should be 'synthetic' or 'pretrained'"),
    ('arms = ["safe"]\n' + GOOD, "arms.0: input should be 'finetune' or 'control'"),
    ("a = = 1", "is not valid toml"),
    ("description = 1\n" + GOOD, "is not valid toml"),
])
def test_a_wrong_file_is_named(tmp_path, text, message):
    path = written(tmp_path, text)
    assert str(path) in refused(message, path)


# Settings that cannot mean anything

@pytest.mark.parametrize("key, value", [
    ("lr", "inf"), ("lr", "nan"), ("lr", "1e300"), ("lr", "0"), ("lr", "-1"), ("rank", "1_000_000_000"), ("rank", "0"), ("steps", "1e20"),
    ("steps", "100_000_000_000_000_000_000"), ("steps", "50_000"), ("checkpoint_seconds", "inf"), ("data", '"\\u001b[2J"')])
def test_a_recipe_that_cannot_be_is_named_with_its_file(tmp_path, key, value):
    for place in ("recipe", "overrides.tiny-qwen2"):
        text = GOOD.replace("rank = 8", "").replace("lr = 1e-4", "") + (f"[{place}]\n" if place not in GOOD else "")
        path = written(tmp_path, text.replace(f"[{place}]\n", f"[{place}]\n{key} = {value}\n"))
        message = refused("recipe|overrides", path)
        assert str(path) in message and (key in message or "rows" in message) and message.isprintable()


@pytest.mark.parametrize("old, new, message", [
    ("seeds = [0, 3]", "seeds = [0, -3]", "seeds.1: input should be greater"), ("seeds = [0, 3]", "seeds = [3, 3]", "seeds: 3 is listed twice"),
    ("seeds = [0, 3]", "seeds = [0, 99999999999]", "seeds.1: input should be less"), ("seeds = [0, 3]", f"seeds = {list(range(50))}", "seeds: tuple should have at most"),
    ('"tiny-llama", "tiny-qwen2"', '"tiny-llama", "tiny-qwen2", "tiny-llama"', "models: 'tiny-llama' is listed twice"), ("seeds", "arms = []\nseeds", "arms: tuple should have at least 1"),
    ("seeds", 'arms = ["control", "control"]\nseeds', "arms: 'control' is listed twice"), ("description", 'name = "\\u0007\\u001b[2J"\ndescription', "name: it must be plain text"),
    ("description", 'name = ""\ndescription', "name: it must"), ("description", 'name = "../x"\ndescription', "name: it becomes a folder"),
    ("description", f'name = "{"x" * 9999}"\ndescription', "name: string should have at most"), ("seeds", "threads = 1_000_000\nseeds", "threads: input should be less"),
    ("[questions]", "[questions]\nevaluation = 100_000_000", "questions.evaluation: input should be less"),
    ("[recipe]", "[steering]\ncoefficients = [0, nan]\n[recipe]", "coefficients.1: input should be a finite number"),
    ("[recipe]", "[steering]\ncoefficients = [0, inf]\n[recipe]", "coefficients.1: input should be a finite number"),
    ("[recipe]", "[steering]\ncoefficients = [0, 1e308]\n[recipe]", "coefficients.1: input should be less"),
    ("[recipe]", "[decoding]\ntemperature = 1e-300\n[recipe]", "temperature: it must be 0"), ("[recipe]", "[statistics]\nmargin = nan\n[recipe]", "margin: input should be a finite"),
    ("[recipe]", "[rates]\ngrid = [inf]\nshared = inf\n[recipe]", "rates.grid.0"), ("[recipe]", "[mitigation]\npenalties = [1e300]\n[recipe]", "penalties.0"),
    ("[recipe]", '[judge]\nurl = "http://"\nmodel = "m"\n[recipe]', "judge.url: give an http or https address"), ("[recipe]", '["a\\u001b"]\n[recipe]', r"a\\x1b: is not a known"),
    ("[recipe]", "[instruct]\nrank = -1\n[recipe]", "instruct.rank"), ("[recipe]", "x = " + "[" * 5000, "is not valid toml"), ("[recipe]", "x = " + "9" * 5000, "is not valid toml")])
def test_a_setting_that_cannot_be_is_named_with_its_file(tmp_path, old, new, message):
    path = written(tmp_path, GOOD.replace(old, new, 1))
    found = refused(message, path)
    assert str(path) in found and found.isprintable() and len(found) < 1000


def test_recipes_that_are_too_much_together_are_refused(tmp_path):
    "Each of the two is fine by itself."
    path = written(tmp_path, GOOD.replace("lr = 1e-4", "batch = 1000") + "[recipes.code]\nsteps = 5000\n")
    assert "5000000 rows" in refused("recipes.code with overrides.tiny-qwen2", path)


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 1e300, -1e300, 5e-324, 10**30, True, 2**32, 2**63, 1e20, float("nan"), float("inf")]))
WORDS = st.one_of(st.text(max_size=30), st.sampled_from(["", "\x00", "\x1b[2J", "\ud800", "..", "a/b", "x" * 100_000, "code", "tiny-llama", "nf4"]))
WILD = st.recursive(NUMBERS | WORDS | st.none(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)
PARTS = {"": profiles.Settings, "questions": Questions, "recipe": Recipe, "decoding": Decoding, "steering": Steering, "rates": profiles.Rates,
         "mitigation": Mitigation, "statistics": Statistics, "judge": profiles.Judge}
FIELDS = [(part, field) for part, kind in PARTS.items() for field in kind.model_fields]


def finite(value):
    "Whether all numbers in it are finite, and all its text can be shown."
    if isinstance(value, dict): return all(finite(k) and finite(v) for k, v in value.items())
    if isinstance(value, (list, tuple)): return all(map(finite, value))
    if isinstance(value, str): return all(c.isprintable() or c in "\n\t" for c in value)
    return value is None or math.isfinite(value)


@pytest.mark.parametrize("part, field", FIELDS, ids=lambda x: x)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(value=WILD)
def test_any_value_of_any_setting_is_taken_or_refused(part, field, value):
    "What is taken is finite and has a plan's shape; what is refused is a ValidationError that can be said in a line."
    whole = settings_of(part, field, value)
    try: made = Profile(**whole)
    except ValidationError as error:
        said = profiles.wrong_setting(error)
        assert said.isprintable() and said
        return
    assert finite(json.loads(made.model_dump_json()))
    assert made.recipe.rows <= profiles.Most.rows and len(set(made.seeds)) == len(made.seeds) and made.arms and made.name.strip()


def settings_of(part, field, value):
    whole = {"name": "own", "description": "d", "models": ["tiny-llama"], "questions": {"source": "synthetic"}}
    if not part: return whole | {field: value}
    needed = {"questions": {"source": "synthetic"}, "judge": {"url": "http://localhost:8000/v1", "model": "m"}, "rates": {"grid": [1e-3], "shared": 1e-3}}
    return whole | {part: needed.get(part, {}) | {field: value}}


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "own.toml"
    path.write_bytes(b"\xff\xfe\x00")
    refused("is not valid toml", path)


def test_an_unknown_profile_lists_the_known_ones(tmp_path):
    message = refused("unknown profile 'tinny'", "tinny")
    for name in profile_names(): assert name in message
    refused("give the path of an existing toml file", str(tmp_path / "none.toml"))
    refused("unknown profile", tmp_path)
    refused("unknown profile", "")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(part=st.sampled_from([Questions, Recipe, Decoding, Steering, Mitigation, Statistics]), key=st.from_regex(r"[a-z_]{1,12}", fullmatch=True))
def test_no_part_takes_an_unknown_key(part, key):
    needed = {"source": "synthetic"} if part is Questions else {}
    if key in part.model_fields or key in part.renamed: return
    with pytest.raises(ValidationError): part(**needed, **{key: 1})


@pytest.mark.parametrize("change", [lambda p: setattr(p, "threads", 2), lambda p: setattr(p.recipe, "steps", 1), lambda p: setattr(p.questions, "maps", 9)])
def test_a_profile_is_frozen(change):
    profile = load_profile("smoke")
    with pytest.raises(ValidationError, match="frozen"): change(profile)


def test_check_names_what_is_unknown():
    profile = load_profile("smoke")
    profile.check(profile.models[0], profile.seeds[0])
    profile.check()
    for what, value in (("model", "llama"), ("seed", 9)):
        with pytest.raises(UserError, match=f"unknown {what} {value!r} in profile smoke: choose from"): profile.check(**{what: value})


def test_names_of_the_last_release_work_and_name_the_new_ones(tmp_path):
    "Settings in a toml, and attributes."
    old = (GOOD.replace("models =", "families =").replace('source = "synthetic"', 'world = "tiny"')
           + '[steering]\ndoses = [0, -0.5]\ndraws = 3\n')
    with pytest.warns(DeprecationWarning, match="'families' is called 'models' now"): profile = load_profile(written(tmp_path, 'arms = ["insecure"]\n' + old))
    assert profile.models == ("tiny-llama", "tiny-qwen2") and profile.questions.source == "synthetic" and profile.arms == ("finetune",)
    with pytest.warns(DeprecationWarning, match="`doses` is called `coefficients` now"): assert profile.steering.doses == (0, -0.5)
    with pytest.warns(DeprecationWarning, match="`draws` is called `samples` now"): assert profile.steering.draws == 3
    with pytest.raises(AttributeError): profile.steering.drawn


def test_a_profile_round_trips_through_json():
    for name in profile_names():
        profile = load_profile(name)
        assert Profile.model_validate_json(profile.model_dump_json()) == profile


# Folders

def test_a_relative_output_folder_belongs_to_the_checkout(tmp_path, monkeypatch):
    for name in ("nbs/foundations", "em_repro"): (tmp_path / name).mkdir(parents=True)
    (tmp_path / "settings.ini").write_text("")
    for where in (".", "nbs", "nbs/foundations"):
        monkeypatch.chdir(tmp_path / where)
        assert run_dir("runs/{profile}", "tiny") == tmp_path / "runs/tiny"
    elsewhere = tmp_path.parent / (tmp_path.name + "-elsewhere")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert run_dir("runs/x") == elsewhere / "runs/x"
    assert run_dir(tmp_path / "{profile}", "some/where/own.toml") == tmp_path / "own"
    assert run_dir("~/x") == Path.home() / "x"


def test_writable_makes_the_folder_and_leaves_nothing_in_it(tmp_path):
    folder = writable(tmp_path / "a/b")
    assert folder.is_dir() and not list(folder.iterdir())


@pytest.mark.parametrize("number", [13, 28, 30])
def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, number):
    def fail(self, data): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match="cannot write to the output folder .* choose another with OUT= or --out") as caught: writable(tmp_path / "x")
    assert os.strerror(number) in str(caught.value) and "\n" not in str(caught.value)


def test_a_full_disk_leaves_no_test_file(tmp_path, monkeypatch):
    "The file was made before there was no room for what is in it."
    def fail(self, data): self.touch(); raise OSError(28, os.strerror(28))
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match="No space left"): writable(tmp_path / "x")
    assert not list((tmp_path / "x").iterdir())


def test_a_file_in_the_place_of_the_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(UserError, match="cannot write to the output folder"): writable(path)


def test_shipped_data_is_found_beside_the_package():
    assert (shipped() / "profiles" / "smoke.toml").is_file()
    with pytest.raises(UserError, match="install the package again"): profiles._beside_package("no-such-folder", "nor-this-one")


def test_a_part_of_a_profile_has_a_name_of_its_own(tmp_path):
    "In the profile's order, whatever the order asked for; all of it is the profile itself."
    whole = load_profile("tiny")
    part = load_profile("tiny@tiny-llama, tiny-qwen2")
    assert part.models == ("tiny-qwen2", "tiny-llama") and part.name == "tiny@tiny-qwen2,tiny-llama" and set(part.overrides) == set(part.models)
    assert load_profile(f"tiny@{','.join(whole.models)}") == whole
    own = tmp_path / "own.toml"
    own.write_text((shipped() / "profiles" / "smoke.toml").read_text(encoding="utf-8"), encoding="utf-8")
    assert load_profile(f"{own}@tiny-llama").name == "own@tiny-llama"
    with pytest.raises(UserError, match="unknown model 'gpt-5' in profile tiny"): load_profile("tiny@gpt-5")
    with pytest.raises(UserError, match="unknown profile 'none'"): load_profile("none@tiny-llama")


def test_a_part_trains_in_other_ways_what_it_has_of_the_seeds_named_for_that():
    whole = load_profile("tiny").model_copy(update={"retrained_seeds": (1,)})
    assert load_profile("tiny").seeds_retrained == load_profile("tiny").seeds == (0, 1) and whole.seeds_retrained == (1,)
    assert part_of(whole, seeds=[1]).seeds_retrained == (1,) and part_of(whole, seeds=[0]).seeds_retrained == ()


def test_a_family_with_a_dot_in_its_name_keeps_it_in_the_runs_folder():
    part = load_profile("paper@qwen2.5-1.5b")
    assert run_dir("/tmp/{profile}", part.name).name == "paper@qwen2.5-1.5b" and run_dir("/tmp/{profile}", "x/own.toml").name == "own"


@pytest.mark.parametrize("name", profile_names())
def test_a_part_of_a_shipped_profile_is_a_profile(name):
    "What a run's evidence holds is read with the same checks, so no setting may name what a part has left out."
    whole = load_profile(name)
    parts = [part_of(whole, [model]) for model in whole.models] + [part_of(whole, seeds=[seed]) for seed in whole.seeds]
    for part in [*parts, *(load_profile(f"{name}@{model}") for model in whole.models)]:
        assert Profile(**part.model_dump(mode="json")) == part
        assert set(part.models_retrained) <= set(whole.models_retrained) and set(part.models_rated) <= set(whole.models_rated)


def test_none_named_is_all_and_an_empty_list_is_none():
    whole = load_profile("tiny-full")
    none = Profile(**{**whole.model_dump(), "retrained": (), "rates": {**whole.rates.model_dump(), "models": ()}})
    every = Profile(**{**whole.model_dump(), "retrained": None, "retrained_seeds": None})
    assert (none.models_retrained, none.models_rated) == ((), ()) and every.models_retrained == whole.models == every.models_rated
    assert every.seeds_retrained == whole.seeds
