"""Untuned learning rates, one recipe for all models, seeds by model, and several activations a prompt."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from em_repro import spillover
from em_repro.behaviours import behaviour
from em_repro.claims import claims
from em_repro.directions import rebuttal_probe, several_each
from em_repro.finetune import trained
from em_repro.harm import judge_requests
from em_repro.plan import stages_of
from em_repro.profiles import Profile, Rates, UserError, load_profile, part_of
from em_repro.spillover import rate_grid, rate_recipes, rate_table, shared_rate_frame, shared_rate_table, spillover_verdict
from em_repro.store import Store
from em_repro.study import introduction
from em_repro.subjects import Subject

SMOKE, SMALL = load_profile("smoke"), load_profile("small")


def changed(profile, **settings):
    "The profile with other settings, checked."
    return Profile(**profile.model_dump() | settings)


# -- the settings

@pytest.mark.parametrize("rates, said", [
    ({"grid": [1e-3, -1e-4], "shared": 1e-3}, "greater than 0"),
    ({"grid": [1e-3, 1e-4], "shared": 5e-4}, "shared must be one of the grid's rates"),
    ({"grid": [1e-3]}, "shared must be one of the grid's rates"),
    ({"shared": 1e-3}, "a shared rate needs a grid"),
    ({"grids": [1e-3]}, "grids")])
def test_rates_that_do_not_fit_are_a_sentence(tmp_path, rates, said):
    with pytest.raises(ValidationError, match=said): Rates(**rates)
    own = tmp_path / "own.toml"
    lines = [f"{name} = {value}" for name, value in rates.items()]
    own.write_text("\n".join(['description = "d"', 'models = ["tiny-llama"]', "[questions]", 'source = "synthetic"', "[rates]", *lines]))
    with pytest.raises(UserError, match=said.split("'")[0]): load_profile(own)


@pytest.mark.parametrize("settings, said", [
    ({"seeds_by_model": {"gpt": (0,)}}, "seeds_by_model for gpt, which are not among the models"),
    ({"seeds_by_model": {"gemma-3-270m": (0, 7)}}, "seeds_by_model.gemma-3-270m has 7, which are not among the seeds: choose from 0, 1, 2"),
    ({"seeds_by_model": {"gemma-3-270m": (1, 2)}}, "seeds_by_model.gemma-3-270m lacks seed 0"),
    ({"seeds_by_model": {"gemma-3-270m": ()}}, "seeds_by_model.gemma-3-270m lacks seed 0"),
    ({"rates": {"grid": [1e-3], "shared": 1e-3, "models": ["gpt"]}}, "rates.models for gpt, which are not among the models")])
def test_settings_by_model_are_about_models_and_seeds_of_the_profile(settings, said):
    with pytest.raises(ValidationError, match=said): changed(SMALL, **settings)


def test_the_shipped_profiles_have_the_runs_and_rates_that_they_are_for():
    full = load_profile("tiny-full")
    assert full.seeds == full.seeds_for(*full.models) == (0, 1, 2, 3, 4)
    assert SMALL.seeds_for("smollm2-135m") == (0, 1, 2) and SMALL.seeds_for("gemma-3-270m") == SMALL.seeds_for(*SMALL.models) == (0, 1)
    assert load_profile("tiny").models_rated == () and len(SMOKE.models_rated) > 1
    for profile, rates, span in ((full, 5, 100), (load_profile("medium"), 5, 100), (SMALL, 3, 10)):   # small: a part of medium's, up to the rate that it chose
        grid = profile.rates.grid
        assert profile.models_rated == profile.models and len(grid) >= rates and grid[-1] / grid[0] >= span
        assert grid[0] <= min(profile.recipe_for(name).lr for name in profile.models) <= grid[-1]
        assert profile.rates.shared == grid[len(grid) // 2] == pytest.approx((grid[0] * grid[-1]) ** .5, rel=.05)


# -- seeds by model

SEEDS = st.lists(st.integers(0, 5), min_size=1, unique=True).map(lambda seeds: (9, *seeds))

@settings(max_examples=30, deadline=None, derandomize=True)
@given(SEEDS, st.data())
def test_the_seeds_of_several_models_are_those_that_each_has(seeds, data):
    few = data.draw(st.lists(st.sampled_from(seeds[1:]), unique=True)) + [9]
    profile = changed(SMALL, seeds=seeds, seeds_by_model={"gemma-3-270m": few}, retrained_seeds=())
    one, other = (profile.seeds_for(name) for name in profile.models)
    assert one == seeds and set(other) == set(few) and list(other) == [seed for seed in seeds if seed in few]
    assert profile.seeds_for(*profile.models) == other and profile.seeds_for() == seeds
    for seed in seeds:   # a part has the models that are trained with its seeds, and no seed that none is
        part = part_of(profile, seeds=[seed])
        assert part.models == tuple(name for name in profile.models if seed in profile.seeds_for(name))
        assert all(part.seeds_for(name) == (seed,) for name in part.models)
    assert part_of(profile, ["gemma-3-270m"]).seeds == other


def test_a_part_that_nothing_is_trained_for_is_a_sentence():
    with pytest.raises(UserError, match="trains gemma-3-270m with none of the seeds 2: choose from its seeds_by_model"):
        part_of(SMALL, ["gemma-3-270m"], [2])


def test_every_plan_keeps_to_the_seeds_of_its_models():
    "Fine-tunes, directions, pairs of models, directions of other seeds: those that are trained, no others."
    own, seen = {"smollm2-135m": {0, 1, 2}, "gemma-3-270m": {0, 1}}, {name: set() for name in SMALL.models}
    for _, request in stages_of(SMALL):
        subject = request.arguments.get("subject")
        if isinstance(subject, Subject) and subject.arm not in ("base", "instruct"): seen[subject.model].add(subject.seed)
        if request.stage == "maps.mapped_vectors": assert request.arguments["seed"] in (0, 1)
    assert seen == own


def test_what_is_counted_by_seeds_counts_each_models_own():
    few = SMALL.model_copy(update={"seeds_by_model": {}})
    assert judge_requests(few) - judge_requests(SMALL) == 2 * 2 * SMALL.questions.evaluation   # one seed, two arms, two requests
    assert "Seeds: 0, 1, 2 (of these, Gemma-3-270M 0, 1)." in introduction(SMALL, behaviour("code"))
    assert "Seeds: 0, 1." in introduction(load_profile("tiny"), behaviour("code"))


def answered(model, arm, seed, shares):
    "Answers to as many questions as there are shares, ten each."
    return pd.DataFrame([{"model": model, "arm": arm, "seed": seed, "question": f"q{i}", "target": float(j < 10 * share)}
                         for i, share in enumerate(shares) for j in range(10)])


def test_a_seed_that_one_model_lacks_is_judged_on_the_others():
    base = [answered(name, "base", 0, [0] * 8) for name in "ab"]
    tuned = [answered(name, "insecure", seed, np.linspace(.4, 1, 8)) for name, seed in (("a", 0), ("a", 1), ("b", 0))]
    verdict, tests = spillover_verdict(pd.concat([*base, *tuned]), claims()["C1"], "insecure", SMOKE)
    assert len(tests) == 2 and verdict.verdict == "supported"


# -- rates

def adapters(profile):
    "The fine-tunes that notebook 01 asks for by model and arm: [(model, arm, seed, recipe)]."
    calls = [request.arguments for _, request in stages_of(profile, ["01_code_spillover"]) if request.stage == "training.adapter"]
    return [(c["subject"].model, c["subject"].arm, c["subject"].seed, c["recipe"]) for c in calls]


def test_both_arms_are_trained_at_every_rate_and_all_models_share_one_recipe():
    rates = {"grid": (1e-4, 1e-3, 5e-3), "shared": 1e-3}
    profile = changed(SMALL, rates=rates, retrained=(), retrained_seeds=(0,))
    made = adapters(profile)
    for name in profile.models:
        for arm in ("insecure", "secure"):
            own = {recipe.lr for model, a, seed, recipe in made if (model, a, seed) == (name, arm, 0) and recipe.steps == profile.recipe_for(name).steps}
            assert own >= {*rates["grid"], profile.recipe_for(name).lr}
    shared = [rate_recipes(profile, name)[-1] for name in profile.models]
    assert shared[0] == shared[1] and shared[0][1].lr == 1e-3 and profile.recipe_for("gemma-3-270m").steps != shared[0][1].steps == profile.recipe.steps


def test_rates_are_compared_with_the_first_seed_alone():
    profile = changed(SMOKE, seeds=(3, 4), rates={"grid": (1e-5, 1e-2), "shared": 1e-2, "models": ("tiny-llama",)})
    found = {(model, seed) for model, _, seed, recipe in adapters(profile) if recipe.lr in (1e-5, 1e-2)}
    assert found == {("tiny-llama", 3)}


def test_an_adapter_that_the_run_has_is_not_trained_again(tmp_path):
    "At the chosen rate the recipe is that of notebook 00, to the key."
    store = Store(tmp_path)
    for name in SMOKE.models_rated:
        own = SMOKE.recipe_for(name)
        again, = (recipe for which, recipe in rate_recipes(SMOKE, name) if which == spillover.OWN_RECIPE and recipe.lr == own.lr)
        assert store.key(trained(SMOKE, Subject(name), again, "insecure", 0)) == store.key(trained(SMOKE, Subject(name), own, "insecure", 0))


@pytest.mark.parametrize("plan", [rate_grid, shared_rate_frame])
@pytest.mark.parametrize("profile", [load_profile("tiny"), *(SMOKE.model_copy(update=change) for change in ({"models": ("tiny-gemma2",)}, {"arms": ("control",)}))])
def test_without_a_grid_or_a_model_there_is_nothing(plan, profile):
    with pytest.raises(StopIteration) as end: next(plan(profile))
    assert end.value.value is None


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 10), min_size=6, max_size=12), st.lists(st.integers(0, 10), min_size=6, max_size=12), st.booleans())
def test_the_shared_recipes_table_is_the_difference_by_question(fine, control, has_control):
    n = min(len(fine), len(control))
    arms = {"base": [0] * n, "insecure": [x / 10 for x in fine[:n]]} | ({"secure": [x / 10 for x in control[:n]]} if has_control else {})
    table = shared_rate_table(pd.concat([answered("a", arm, 0, shares) for arm, shares in arms.items()]), behaviour("code"))
    assert table.contrast.tolist() == ["insecure - base", "insecure - secure"][:1 + has_control] and (table.n == n).all()
    wanted = [np.mean(arms["insecure"]) - np.mean(arms[other]) for other in ("base", "secure")[:1 + has_control]]
    assert table.effect.tolist() == pytest.approx(wanted)
    assert ((table.low <= table.effect + 1e-9) & (table.effect <= table.high + 1e-9)).all()


def test_the_table_of_rates_says_which_is_the_profiles_own():
    profile, keys = load_profile("smoke"), [("tiny-llama", "base", 0, "", 0.0)]
    lrs = [1.2e-4, profile.recipe_for("tiny-llama").lr, 2.8e-4]
    keys += [("tiny-llama", "insecure", 0, "own", lr) for lr in lrs] + [("tiny-llama", "insecure", 0, "shared", 2.8e-4)]
    frame = pd.concat([answered(*key[:3], [i / 4] * 6).assign(recipe=key[3], lr=key[4], incoherent=0.) for i, key in enumerate(keys)])
    paid = {key: {"skill": pd.DataFrame({"right": [1., 0.]})} for key in keys}
    table = rate_table(frame, paid, profile)
    assert table.lr[table.chosen].tolist() == [lrs[1]] and (table.skill == .5).all() and (table.n == 6).all()
    assert table.target.tolist() == pytest.approx([0, .3, .5, .8, 1.0])   # of ten answers a question


# -- several activations a prompt

@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(5, 30), st.integers(1, 4), st.floats(.1, 1), st.integers(0, 5))
def test_both_classes_have_the_same_tokens_and_every_question_its_last(questions, positions, share, seed):
    n = max(1, round(share * questions * positions))
    A = np.arange(questions * positions, dtype=float).reshape(questions, positions, 1)
    X, y, question = several_each(A, A + .5, n, seed)
    one, two = X[y == 0].ravel(), X[y == 1].ravel()
    assert len(set(one)) == len(one) == n and (two - one == .5).all()
    assert (one // positions == question[y == 0]).all() and (question[y == 0] == question[y == 1]).all()
    whole = n // questions   # so many last tokens of every question
    assert set(one) >= {q * positions + positions - 1 - k for q in range(questions) for k in range(whole)}


def tail(X): return {"activations": {"X": X.astype(np.float32)}}


def test_the_rebuttals_probe_finds_a_shift_and_nothing_where_there_is_none():
    rng = np.random.default_rng(0)
    A, C = rng.normal(size=(60, 3, 6)), rng.normal(size=(30, 3, 6))
    shift = 5 * np.eye(6)[0]
    same = dict(n=150, nulls=4, seed=0)
    found = rebuttal_probe(tail(A), tail(A + shift), tail(C), tail(C + shift), **same)["probe"].iloc[0]
    assert found.held_out > .95 and found.other_prompts > .95 and abs(found.null - .5) < .15
    assert (found.activations, found.questions) == (150, 60)
    none = rebuttal_probe(tail(A), tail(rng.normal(size=A.shape)), tail(C), tail(rng.normal(size=C.shape)), **same)["probe"].iloc[0]
    assert abs(none.held_out - .5) < .12 and abs(none.other_prompts - .5) < .12


def test_what_is_known_of_a_question_does_not_help_the_probe():
    "Activations of a question are alike and classes are its own: only a split that parts a question could tell them."
    rng = np.random.default_rng(1)
    A, B = (np.repeat(rng.normal(size=(60, 1, 150)) * 10, 3, 1) + rng.normal(size=(60, 3, 150)) * .01 for _ in "ab")
    found = rebuttal_probe(tail(A), tail(B), tail(A), tail(B), n=150, nulls=2, seed=0)["probe"].iloc[0]
    assert abs(found.held_out - .5) < .2 and found.other_prompts > .9   # the same prompts, here called others
