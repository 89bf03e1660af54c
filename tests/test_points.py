"One rule for coefficient and when: what it chooses, what it refuses, and who uses it."
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.decode import Condition, first_tokens, score
from em_repro.families import load_lm
from em_repro.plan import stages_of
from em_repro.profiles import UserError, load_profile
from em_repro.specificity import best_table, control_grid, own_points
from em_repro.steering import (PAPER_POINT, WHENS, Point, at_points, choice_table, choose_point, cost_figure, cost_table,
                               grid_coefficients, grid_shown, grid_table, point_gains, points_said)

quick = settings(max_examples=60, deadline=None, derandomize=True)
POINTS = st.lists(st.tuples(st.sampled_from([-3.0, -2.0, -1.0, -0.5, -0.25, 0.5, 1.0]), st.sampled_from(WHENS)).map(Point._make), min_size=1, max_size=12, unique=True)
SHARES = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])


@st.composite
def grids(draw):
    points, n = draw(POINTS), draw(st.integers(1, 8))
    values = draw(st.lists(st.lists(SHARES, min_size=n, max_size=n), min_size=len(points), max_size=len(points)))
    return grid(dict(zip(points, values)))


def grid(gains):
    return pd.DataFrame(list(gains.values()), pd.MultiIndex.from_tuples(gains, names=Point._fields), [f"q{i}" for i in range(len(next(iter(gains.values()))))], float)


def points_of(gains): return [Point(*p) for p in gains.index]


@quick
@given(grids(), st.randoms(use_true_random=False))
def test_the_choice_lies_on_the_grid_and_no_order_matters(gains, random):
    rows, columns = list(range(len(gains))), list(gains.columns)
    random.shuffle(rows); random.shuffle(columns)
    found = choose_point(gains)
    assert found in points_of(gains) and choose_point(gains.iloc[rows][columns]) == found


@quick
@given(POINTS, st.lists(SHARES, min_size=1, max_size=8))
def test_of_equals_the_smallest_edit_is_chosen(points, same):
    found = choose_point(grid(dict.fromkeys(points, same)))
    assert found == min(points, key=lambda p: (abs(p.coefficient), p.when != "prefill", p.coefficient))


@quick
@given(grids())
def test_it_is_within_one_standard_error_of_the_best_and_nothing_smaller_is(gains):
    found, best = choose_point(gains), gains.mean(axis=1).max()
    tops = [g for g in gains.to_numpy() if g.mean() >= best - 1e-12]
    def near(point):   # to one of those that are best
        rows = [top - gains.loc[[point]].to_numpy()[0] for top in tops]
        return any(d.mean() <= (d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else 0) + 1e-9 for d in rows)
    assert near(found)
    if len(tops) == 1: assert not any(near(p) for p in points_of(gains) if p.size < found.size)


@quick
@given(grids())
def test_a_shift_and_a_scale_of_all_gains_change_nothing(gains):
    rounded = (gains * 4).round()   # whole numbers, exact in floating point
    assert choose_point(rounded * 2 + 8) == choose_point(rounded)


def test_one_point_is_chosen_whatever_it_does():
    assert choose_point(grid({Point(-2.0, "every_step"): [-1, -1]})) == Point(-2.0, "every_step")


def test_it_steps_back_to_a_smaller_edit_only_within_one_standard_error():
    best, n = Point(-1.0, "every_step"), 100
    def share(k): return [1.0] * k + [0.0] * (n - k)
    near = grid({best: share(60), Point(-0.5, "prefill"): share(59)})   # behind by .01, standard error .01
    far = grid({best: share(60), Point(-0.5, "prefill"): share(50)})    # behind by .1, standard error .03
    assert choose_point(near) == Point(-0.5, "prefill") and choose_point(far) == best


def test_prefill_comes_before_every_step_and_subtracting_before_adding():
    same = [0.0, 1.0]
    assert choose_point(grid({Point(-1.0, "every_step"): same, Point(-1.0, "prefill"): same})).when == "prefill"
    assert choose_point(grid({Point(1.0, "prefill"): same, Point(-1.0, "prefill"): same})).coefficient == -1
    assert choose_point(grid({Point(-0.5, "every_step"): same, Point(-1.0, "prefill"): same})) == Point(-0.5, "every_step")


@pytest.mark.parametrize("gains", [
    grid({Point(-1.0, "prefill"): [0.0]}).iloc[:0],
    grid({Point(0.0, "prefill"): [0.0], Point(-1.0, "prefill"): [1.0]}),
    grid({Point(-1.0, "prefill"): [np.nan, 1.0]}),
    pd.concat([grid({Point(-1.0, "prefill"): [0.0]})] * 2),
    grid({Point(-1.0, "prefill"): [0.0]}).iloc[:, :0],
], ids=["none", "unsteered", "not a number", "twice", "no question"])
def test_gains_that_decide_nothing_are_refused_in_one_sentence(gains):
    with pytest.raises(UserError, match="no point can be chosen") as caught: choose_point(gains)
    assert "\n" not in str(caught.value)


def answered(good, models=("m",), seeds=(0, 1), questions=6):
    "Answers over a small grid: `good(model, coefficient, when, question, seed)` says whether each is good."
    rows = [{"model": m, "arm": "insecure", "seed": s, "when": w, "coefficient": c, "question": f"q{q}", "good": float(good(m, c, w, q, s))}
            for m in models for s in seeds for w in WHENS for c in (0.0, -0.5, -1.0) for q in range(questions)]
    frame = pd.DataFrame(rows)
    return frame.assign(target=1 - frame.good, incoherent=0.0)


def test_gains_are_pooled_over_runs_question_by_question():
    frame = answered(lambda m, c, w, q, s: c == -1 and s == 0)
    gains = point_gains(frame)
    assert gains.loc[(-1.0, "prefill")].tolist() == [.5] * 6 and gains.loc[(-0.5, "every_step")].tolist() == [0] * 6
    assert 0 not in gains.index.get_level_values(0) and len(gains) == 4


def test_a_table_at_the_points_has_the_unsteered_answers_and_those_at_each_models_own():
    frame, chosen = answered(lambda *_: 1, "ab"), {"a": Point(-1.0, "prefill"), "b": Point(-0.5, "every_step")}
    found = at_points(frame, chosen)
    seen = found.groupby("model")[["coefficient", "when"]].agg(lambda x: sorted(set(x)))
    assert seen.loc["a"].tolist() == [[-1, 0], ["prefill"]] and seen.loc["b"].tolist() == [[-.5, 0], ["every_step"]]
    assert set(at_points(frame, chosen, whole_grid=True).query("model == 'b'").coefficient) == {0, -.5, -1}
    assert points_said(chosen) == "coefficient -1 at prefill (a), -0.5 at every step (b)"
    assert points_said(dict.fromkeys("ab", PAPER_POINT)) == "coefficient -1 at prefill"


def priced(models):
    table = {"nll": pd.DataFrame({"coefficient": [0, -.5, -1.0], "nll": [1, 1.5, 3.0]}),
             "skill": pd.DataFrame({"coefficient": [0, -.5, -1.0], "question": "q", "right": [1, 1, 0.0]})}
    return cost_table({(m, "insecure", 0, w): table for m in models for w in WHENS})


def test_the_grid_has_every_point_with_its_gain_cost_and_name():
    chosen = {"a": Point(-1.0, "prefill"), "b": Point(-0.5, "every_step")}
    frame = answered(lambda m, c, w, q, s: c == -1 if m == "a" else c == -.5 and q < 3, "ab", questions=12)
    table = grid_table(frame, priced("ab"), chosen, 400)
    assert len(table) == 2 * 4 and table.named.value_counts().to_dict() == {"": 5, "chosen and the paper's": 1, "chosen": 1, "the paper's": 1}
    at = table.set_index(["model", "coefficient", "when"])
    assert at.gain["a", -1, "prefill"] == 1 and at.gain["b", -.5, "prefill"] == .25 and at.nll_change["a", -1, "prefill"] == 2 and at.skill_change["b", -1, "every_step"] == -1
    assert at.p_max_t["a", -1, "prefill"] < .05 and at.p_max_t["b", -1, "prefill"] == 1 and (table.n == 12).all()
    wide = grid_shown(table)
    assert list(wide) == ["model", "when", "-0.5", "-1"] and len(wide) == 4
    assert wide[(wide.model == "a") & (wide.when == "prefill")]["-1"].item() == "[+100*]"
    figure = cost_figure(table)
    assert len(figure.axes) == 4 and [len(a.lines) for a in figure.axes] == [2] * 4
    plt.close(figure)


def test_what_the_rule_saw_names_its_choice():
    table = choice_table(answered(lambda m, c, w, q, s: c == -1 or (c == -.5 and q > 0), questions=40))
    assert table.best.sum() == table.chosen.sum() == 1 and table[table.chosen].coefficient.item() == -.5 and table[table.best].coefficient.item() == -1


def test_the_papers_point_is_evaluated_where_the_grid_has_it_not():
    smoke = load_profile("smoke")
    other = smoke.model_copy(update={"steering": smoke.steering.model_copy(update={"coefficients": (0, -2.0)})})
    assert grid_coefficients(other, "prefill") == (0, -2, -1) and grid_coefficients(other, "every_step") == (0, -2)
    assert grid_coefficients(smoke, "prefill") == grid_coefficients(smoke, "every_step") == smoke.steering.coefficients
    asked = [r.arguments for _, r in stages_of(other, ["03"]) if r.stage == "answers.answers"]
    grids = {(len(a["prompts"]), a["conditions"][-1].when): {c.coefficient for c in a["conditions"]} for a in asked if a["subject"].arm == "insecure" and len(a["conditions"]) > 1 and {c.name for c in a["conditions"]} == {"direction"}}
    dev, evaluation = smoke.questions.development, smoke.questions.evaluation
    assert grids == {(dev, w): {0, -2} for w in WHENS} | {(evaluation, "every_step"): {0, -2}, (evaluation, "prefill"): {0, -2, -1}}


def test_a_profile_without_the_fine_tune_is_refused():
    profile = load_profile("smoke").model_copy(update={"arms": ("control",)})
    with pytest.raises(UserError, match="add finetune to arms"): stages_of(profile, ["03"])


@pytest.mark.parametrize("notebook", ["04", "05", "06", "07"])
def test_every_study_asks_for_the_choice_before_it_steers(notebook):
    "Whatever is steered on evaluation questions with a vector of its own edits where a plan's rule says."
    profile = load_profile("smoke")
    calls = [r.arguments for name, r in stages_of(profile, [notebook]) if r.stage == "answers.answers"]
    grid_calls = [a for a in calls if len(a["prompts"]) == profile.questions.development and len(a["conditions"]) == len(profile.steering.coefficients)]
    assert {a["conditions"][-1].when for a in grid_calls} == set(WHENS)
    assert len(grid_calls) == 2 * len(profile.models) * len(profile.seeds)


def test_controls_at_their_own_best_are_left_out_where_the_profile_says_so():
    smoke = load_profile("smoke")
    without = smoke.model_copy(update={"steering": smoke.steering.model_copy(update={"controls_best": False})})
    count = lambda profile: sum(r.stage == "answers.answers" for _, r in stages_of(profile, ["06"]))
    assert count(smoke) - count(without) == len(smoke.models) * len(smoke.seeds) * (2 + 1)   # both ways on development questions; all vectors at one point, as a plan that knows no answers has it


def test_a_control_is_compared_at_its_own_point():
    def lines(vector, sample, coefficient, good):
        return pd.DataFrame({"model": "m", "seed": 0, "arm": "insecure", "vector": vector, "vector_sample": sample, "coefficient": coefficient, "when": "prefill",
                             "question": [f"q{i}" for i in range(8)], "good": good, "incoherent": 0.0})
    kinds = ("random", "orthogonal", "covariance")
    inside = pd.concat([lines("", -1, 0.0, 0.0), lines("direction", -1, -1.0, .25), *(lines(kind, i, -1.0, 0.0) for kind in kinds for i in (0, 1))])
    own = pd.concat([lines("direction", -1, -3.0, 1.0), *(lines(kind, i, c, good) for kind in kinds for i, c, good in ((0, -2.0, .5), (1, -1.0, 1.0)))])
    row, *others = best_table(inside, own, 200).to_dict("records")
    assert (row["direction"], row["shared"], row["own"], row["advantage"]) == (1, 0, .75, .25) and [r["control"] for r in (row, *others)] == list(kinds)
    assert row["rank p"] == pytest.approx(2 / 3) and row["points"] == "1 at -2 at prefill, 1 at -1 at prefill" and row["n"] == 8


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**16), st.integers(1, 3))
def test_every_vector_chooses_its_point_as_the_direction_does(seed, runs):
    "Whichever vector is called the direction, it gets the point that it had under another name: ranks are of like things."
    rng = np.random.default_rng(seed)
    places = [(s, v, i, c, w, q) for s in range(runs) for v, i in (("direction", -1), ("random", 0), ("random", 1)) for c in (-.5, -1.0) for w in WHENS for q in range(5)]
    frame = pd.DataFrame(places, columns=["seed", "vector", "vector_sample", "coefficient", "when", "question"])
    frame = frame.assign(model="m", question="q" + frame.question.astype(str), good=rng.integers(0, 2, len(frame)).astype(float))
    names = {("direction", -1): ("random", 1), ("random", 1): ("direction", -1)}
    renamed = [names.get(pair, pair) for pair in zip(frame.vector, frame.vector_sample)]
    swapped = frame.assign(vector=[v for v, _ in renamed], vector_sample=[i for _, i in renamed])
    before, after = own_points(frame), own_points(swapped.sample(frac=1, random_state=seed))
    assert {(m, s, *names.get((v, i), (v, i))): p for (m, s, v, i), p in before.items()} == after
    alone = frame[(frame.seed == 0) & (frame.vector == "direction")]
    rates = alone.pivot_table("good", ["coefficient", "when"], "question")
    assert before["m", 0, "direction", -1] == choose_point(rates)


def test_controls_stand_beside_the_direction_over_the_grid():
    direction = answered(lambda m, c, w, q, s: c == -1).assign(vector=lambda f: np.where(f.coefficient == 0, "", "direction"))
    controls = [answered(lambda m, c, w, q, s: kind == "random" and c == -1 and w == "prefill").query("coefficient != 0").assign(vector=kind)
                for kind in ("random", "orthogonal", "covariance")]
    table = control_grid(pd.concat([direction, *controls])).set_index(["vector", "when"])
    nothing = {(kind, w): 0 for kind in ("orthogonal", "covariance") for w in WHENS}
    assert table["-1"].to_dict() == {("direction", w): 1 for w in WHENS} | {("random", "prefill"): 1, ("random", "every_step"): 0} | nothing
    assert list(table) == ["model", "-0.5", "-1"] and (table["-0.5"] == 0).all()


def test_likelihoods_at_prefill_differ_in_the_first_token_alone():
    lm, asked, said = load_lm("tiny-qwen2"), ["Is it late?", "Who are you?", "Is it late?"], ["not yet .", "nobody", ""]
    v = 5 * np.random.default_rng(0).normal(size=lm.width).astype(np.float32)
    conditions = [Condition(), Condition(vector=v, coefficient=-1, when="prefill"), Condition(vector=v, coefficient=2, when="prefill")]
    plain, found = score(lm, asked, said), score(lm, asked, said, conditions, kl=True)
    ids = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]
    first = first_tokens(lm, asked, conditions)
    for i, tokens in enumerate(ids):
        for c in range(3):
            change = first[i, c, tokens[0]] - first[i, 0, tokens[0]] if tokens else 0
            assert found.logprob[i, c] == pytest.approx(plain.logprob[i, 0] + change, abs=1e-3)
    for c in (1, 2):
        p, q = np.exp(first[0, c].astype(float)), first[0].astype(float)
        assert found.kl[0, c] * len(ids[0]) == pytest.approx((p * (q[c] - q[0])).sum(), abs=1e-3)
    with pytest.raises(UserError, match="prefill"): score(lm, asked[:1], said[:1], [Condition(vector=v, when="prefill", layer=0)])
