"Maps between models: what each of them must do whatever the data, and that later notebooks take only ridge's for the mapped direction."
import warnings
from functools import partial
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import ortho_group
from sklearn.base import clone
from sklearn.linear_model import Ridge
from em_repro.maps import (ALPHAS, MAPS, AutoencoderMap, LeastSquaresMap, ProcrustesMap, RidgeMap, edge_note, fit_maps,
                           map_table, mapped_vectors, read_maps, map_comparison, share_above_null, transfer_table)
from em_repro.profiles import UserError
from em_repro.answers import COLUMNS
from em_repro.behaviours import behaviour
from em_repro.specificity import across_hypotheses, across_table
from em_repro.topology import effect_units

MAKERS = {**MAPS, "autoencoder": partial(AutoencoderMap, hidden=48)}  # a smaller one, for time
each_map = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
quick = settings(max_examples=15, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(6, 40), st.integers(1, 12), st.integers(1, 12))


def world(n=60, source=8, target=6, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    X, carry = rng.normal(size=(n, source)) * rng.uniform(.5, 3, source), rng.normal(size=(source, target))
    return X, X @ carry + 5 + noise * rng.normal(size=(n, target)), carry


# What a map must do

@given(st.integers(2, 12), st.integers(0, 1000))
@quick
def test_procrustes_recovers_a_planted_rotation_and_its_scale(width, seed):
    X, turn = world(2 * width + 8, width, seed=seed)[0], ortho_group.rvs(width, random_state=seed)
    found = ProcrustesMap().fit(X, 2.5 * X @ turn + 7)
    v = np.random.default_rng(seed).normal(size=(3, width))
    assert np.allclose(found.map_direction(v), 2.5 * v @ turn) and found.r2_ > 1 - 1e-9


@pytest.mark.parametrize("source, target", [(9, 5), (5, 9)])
def test_procrustes_between_widths_finds_a_planted_embedding(source, target):
    "The narrower model's space is a part of the wider one's: what lies in it is carried, lengths and angles kept."
    turn = ortho_group.rvs(max(source, target), random_state=0)[:, :min(source, target)]
    inner = world(60, min(source, target))[0]
    X, Y = (inner, inner @ turn.T) if source < target else (inner @ turn.T, inner)
    found = ProcrustesMap().fit(X, Y)
    assert np.allclose(found.map_direction(X), Y)


@given(sizes, st.integers(0, 1000))
@quick
def test_least_squares_is_numpys(size, seed):
    X, Y, _ = world(*size, noise=1.0, seed=seed)
    found = LeastSquaresMap().fit(X, Y)
    if len(X) > X.shape[1] + 1:  # unique: the columns' scales do not matter
        ours, theirs = found.predict(X + 1), np.column_stack([X + 1, np.ones(len(X))]) @ np.linalg.lstsq(
            np.column_stack([X, np.ones(len(X))]), Y, rcond=None)[0]
        assert np.allclose(ours, theirs, atol=1e-6)
    else:
        A, B = (X - X.mean(0)) / X.std(0), (Y - Y.mean(0)) / Y.std(0)
        assert np.allclose(found.coef_, np.linalg.pinv(A) @ B, atol=1e-6)


def test_least_squares_interpolates_below_the_width():
    X, Y, _ = world(20, 19, noise=9.0)
    found = LeastSquaresMap().fit(X, Y)
    assert found.r2_fitted_ == pytest.approx(1) and found.r2_ < RidgeMap().fit(X, Y).r2_


@pytest.mark.parametrize("n", [40, 6], ids=["more prompts than dimensions", "fewer"])
def test_ridge_goes_from_least_squares_to_the_mean(n):
    X, Y, _ = world(n, noise=1.0)
    v = np.random.default_rng(1).normal(size=8)
    # Not 1e-9: until 1.9 scikit-learn's RidgeCV subtracts 1 / penalty from numbers of its size, and loses what remains.
    assert np.allclose(RidgeMap((1e-6,)).fit(X, Y).map_direction(v), LeastSquaresMap().fit(X, Y).map_direction(v), atol=1e-5)
    none = RidgeMap((1e12,)).fit(X, Y)
    assert np.allclose(none.predict(X), Y.mean(0)) and np.allclose(none.map_direction(v), 0, atol=1e-8)


def test_ridge_is_scikit_learns_with_the_penalty_of_least_leave_one_out_error():
    X, Y, _ = world(30, 10, 4, noise=3.0)
    A, B = (X - X.mean(0)) / X.std(0), (Y - Y.mean(0)) / Y.std(0)
    def error(alpha): return np.mean([(B[i] - Ridge(alpha).fit(np.delete(A, i, 0), np.delete(B, i, 0)).predict(A[i:i + 1])) ** 2 for i in range(30)])
    errors, found = [error(alpha) for alpha in ALPHAS], RidgeMap().fit(X, Y)
    assert np.allclose(found.errors_, errors) and found.alpha_ == ALPHAS[int(np.argmin(errors))]
    assert np.allclose(found.coef_, Ridge(found.alpha_).fit(A, B).coef_.T)


@pytest.mark.parametrize("alpha", [min(ALPHAS), max(ALPHAS)])
def test_at_both_ends_of_the_grid_ridge_is_the_closed_form(alpha):
    "To nine digits with every scikit-learn that is allowed."
    X, Y, _ = world(40, noise=1.0)
    A, B = (X - X.mean(0)) / X.std(0), (Y - Y.mean(0)) / Y.std(0)
    expected = np.linalg.solve(A.T @ A + alpha * np.eye(A.shape[1]), A.T @ B)
    assert np.allclose(RidgeMap((alpha,)).fit(X, Y).coef_, expected, rtol=1e-9, atol=0)


def test_ridge_says_when_its_penalty_is_at_the_edge():
    X, Y, _ = world(noise=0)
    unrelated = np.random.default_rng(1).normal(size=Y.shape)
    assert RidgeMap().fit(X, Y).edge_ == "lowest" and RidgeMap((.1, 1., 10.)).fit(X, unrelated).edge_ == "highest"
    assert RidgeMap((1e-12, *ALPHAS)).fit(*world(40, 10, noise=3.0)[:2]).edge_ == "" and RidgeMap((1.0,)).fit(X, Y).edge_ == ""


@each_map
@given(st.floats(-50, 50), st.floats(-50, 50))
@settings(max_examples=2, deadline=None, derandomize=True)
def test_a_direction_does_not_see_the_means(make, a, b):
    "Adding a constant to the source's or the target's activations changes no mapped direction and no R2."
    X, Y, _ = world(40)
    v = np.random.default_rng(1).normal(size=(2, 8))
    plain, moved = make().fit(X, Y), make().fit(X + a, Y + b)
    assert np.allclose(plain.map_direction(v), moved.map_direction(v), atol=1e-6)
    assert np.allclose(plain.predict(X) + b, moved.predict(X + a), atol=1e-6) and plain.r2_ == pytest.approx(moved.r2_, abs=1e-6)


@each_map
def test_a_direction_is_the_mean_difference_of_predictions(make):
    X, Y, _ = world()
    found, v = make().fit(X, Y), np.random.default_rng(1).normal(size=8)
    assert np.allclose(found.map_direction(v), (found.predict(X + v) - found.predict(X)).mean(0))
    assert np.allclose(found.map_direction(np.stack([v, 2 * v]))[0], found.map_direction(v))


@pytest.mark.parametrize("make", [RidgeMap, LeastSquaresMap, ProcrustesMap])
def test_linear_maps_are_linear(make):
    X, Y, _ = world()
    found, (v, w) = make().fit(X, Y), np.random.default_rng(1).normal(size=(2, 8))
    assert np.allclose(found.map_direction(2 * v - 3 * w), 2 * found.map_direction(v) - 3 * found.map_direction(w))


@each_map
def test_held_out_r2_of_noise_is_not_above_zero(make):
    rng = np.random.default_rng(0)
    drawn = [make().fit(rng.normal(size=(40, 8)), rng.normal(size=(40, 6))) for _ in range(4 if make is MAKERS["autoencoder"] else 20)]
    assert np.mean([m.r2_ for m in drawn]) < 0.02 and np.mean([m.r2_dimensions_ for m in drawn]) < 0.02


@each_map
def test_r2_by_dimension_finds_the_one_that_is_predictable(make):
    X, Y, _ = world(120, 8, 8, noise=0)
    Y = np.where(np.arange(8) == 3, X @ np.eye(8), np.random.default_rng(1).normal(size=Y.shape))
    Y[:, 5] = 2.0
    found = make().fit(X, Y)
    assert np.nanargmax(found.r2_dimensions_) == 3 and found.r2_dimensions_[3] > .2
    assert np.isnan(found.r2_dimensions_[5]) and np.isfinite(np.delete(found.r2_dimensions_, 5)).all() and np.isfinite(found.r2_)


def test_the_autoencoder_is_decided_by_its_seed_and_leaves_global_randomness_alone():
    X, Y, _ = world()
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first, again, other = (AutoencoderMap(seed=s).fit(X, Y) for s in (0, 0, 1))
    assert (np.random.get_state()[1] == before).all()
    assert (first.predict(X) == again.predict(X)).all() and first.r2_ == again.r2_
    assert not np.allclose(first.predict(X), other.predict(X))


def test_the_autoencoder_learns_a_linear_map_and_one_that_no_linear_map_can():
    X, Y, carry = world(200)
    found, v = AutoencoderMap().fit(X, Y), np.random.default_rng(1).normal(size=8)
    sent = found.map_direction(v)
    assert found.r2_ > .5 and sent @ (v @ carry) / np.linalg.norm(sent) / np.linalg.norm(v @ carry) > .9
    X = np.random.default_rng(0).normal(size=(400, 8))
    assert AutoencoderMap().fit(X, np.abs(X)).r2_ > .5 > .2 > RidgeMap().fit(X, np.abs(X)).r2_


@each_map
def test_a_map_is_an_estimator(make):
    assert clone(make()).get_params() == make().get_params()
    assert MAPS["mapped"] is RidgeMap


# Bad input

@each_map
def test_rows_that_are_not_pairs_are_refused(make):
    X, Y, _ = world()
    for wrong in ((X, Y[1:]), (X[0], Y[0]), (X[:0], Y[:0])):
        with pytest.raises(UserError, match="same prompts in both models"): make().fit(*wrong)


@each_map
def test_one_prompt_is_refused(make):
    X, Y, _ = world()
    with pytest.raises(UserError, match=r"at least \d.*got \(1, 8\) and \(1, 6\)"): make().fit(X[:1], Y[:1])


@each_map
@pytest.mark.parametrize("whose, value", [("source", np.nan), ("target", np.inf)])
def test_rows_that_are_not_finite_are_named(make, whose, value):
    X, Y, _ = world()
    (X if whose == "source" else Y)[7, 2] = value
    with pytest.raises(UserError, match=f"row 7 of the {whose} model's activations is not finite"): make().fit(X, Y)


@each_map
def test_a_direction_of_another_width_is_refused(make):
    found = make().fit(*world()[:2])
    for wrong in (np.ones(7), np.ones((2, 6)), np.full(8, np.nan)):
        with pytest.raises(UserError, match="directions of width 8"): found.map_direction(wrong)
    with pytest.raises(UserError, match="activations of width 8"): found.predict(np.ones((3, 6)))


@each_map
def test_constant_dimensions_and_few_prompts_give_numbers(make):
    X, Y, _ = world(8)
    X[:, 1] = Y[:, 2] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = make().fit(X, Y)
    assert np.isfinite(found.map_direction(np.ones(8))).all() and np.isfinite(found.r2_)


# The stages, and what reads them

def pair(n=40, source=8, target=6, nulls=3):
    "Entries of a donor and a receiver, as dicts: fitted maps and both directions."
    X, Y, _ = world(n, source, target)
    fitted = fit_maps({"activations": {"X": X[:, None]}}, {"activations": {"X": Y[:, None]}}, nulls, 0)
    rng = np.random.default_rng(3)
    donor, receiver = ({"vectors": {"direction": rng.normal(size=d).astype(np.float32)}} for d in (source, target))
    return X, Y, fitted, donor, receiver


def test_kept_maps_are_the_fitted_ones():
    X, Y, fitted, donor, _ = pair()
    for name, found in read_maps(fitted).items():
        whole = MAPS[name]().fit(X, Y)
        assert np.allclose(found.predict(X), whole.predict(X)) and fitted["quality"]["r2"][name] == whole.r2_
        assert np.allclose(found.map_direction(donor["vectors"]["direction"]), whole.map_direction(donor["vectors"]["direction"]))
    assert fitted["dimensions"]["null"].shape == (3, 6) and share_above_null(fitted) == 1.0


def test_every_mapped_vector_has_the_norm_of_the_receivers_own():
    *_, fitted, donor, receiver = pair()
    made = mapped_vectors(fitted, donor, receiver, samples=4, seed=0)
    assert list(made["vectors"]) == [*MAPS, *(f"mapped_random/{i}" for i in range(4))]
    norm = np.linalg.norm(receiver["vectors"]["direction"])
    assert np.allclose([np.linalg.norm(v) for v in made["vectors"].values()], norm)
    for name in MAPS:
        expected = made["vectors"][name] @ receiver["vectors"]["direction"] / norm ** 2
        assert made["facts"]["cosine"][name] == pytest.approx(expected, abs=1e-5)


CODE = behaviour("code")
KINDS = (("", -1), ("mapped", -1), ("mapped_random", 0), ("mapped_random", 1))


def answers(kinds, good, question_count=12, model="b", **labels):
    "A table of answers; good(vector, question) is the share."
    assert {"question", "vector", "vector_sample", "coefficient"} <= set(COLUMNS)
    return pd.DataFrame([{"model": model, "question": f"q{q:02}", "vector": k, "vector_sample": i, "coefficient": -float(k != ""),
                          "good": good(k, q), "target": 1 - good(k, q), "incoherent": 0.0, **labels}
                         for k, i in kinds for q in range(question_count)])


def share(vector, question): return ((len(vector) * 7 + question * 5) % 11) / 11


def test_other_maps_are_not_taken_for_the_mapped_direction():
    "Tables with the other maps' answers give notebooks 06 and 07 what frames without them give."
    inside = answers((("", -1), ("direction", -1), *((kind, i) for kind in ("random", "orthogonal") for i in (0, 1))), share, seed=0)
    inside = pd.concat([inside, inside.assign(model="a")], ignore_index=True)
    rivals = [(name, -1) for name in MAPS if name != "mapped"]
    plain, more = (answers((*KINDS, *names), share, donor="a", seed=0) for names in ((), rivals))
    assert not {name for name, _ in rivals} & {"mapped", "mapped_random", "direction", "random"}
    pd.testing.assert_frame_equal(across_table(inside, plain, .1), across_table(inside, more, .1))
    for one, other in zip(effect_units(inside, plain), effect_units(inside, more)): np.testing.assert_array_equal(one, other)
    pd.testing.assert_frame_equal(transfer_table(plain, CODE, 200), transfer_table(more, CODE, 200))
    from em_repro.claims import claims
    assert across_hypotheses(inside, plain, claims()["C7"]) == across_hypotheses(inside, more, claims()["C7"])


def test_tables_have_a_line_for_every_map_of_every_pair():
    *_, fitted, donor, receiver = pair()
    sent = {("a", "b", 0): mapped_vectors(fitted, donor, receiver, 2, 0)}
    frame = answers((*KINDS, *((name, -1) for name in list(MAPS)[1:])), lambda k, q: float(k == "procrustes"), donor="a")
    table = map_comparison({("a", "b"): fitted}, sent, frame, CODE, 200)
    assert table["map"].tolist() == ["ridge", "Procrustes", "least squares", "autoencoder"]
    assert table.good.tolist() == [0, 1, 0, 0] and table.code.tolist() == [0, -1, 0, 0] and (table.n == 12).all()
    assert table["randoms as good"].tolist() == [1, 0, 1, 1]
    line = map_table({("a", "b"): fitted}, sent).iloc[0]
    assert line.n == 40 and line["dimensions above null"] == 1 and line.cosine == table.cosine[0]


def test_a_penalty_at_the_edge_is_said_in_words():
    def fit(alpha, edge): return {"quality": {"alpha": alpha, "edge": edge}}
    assert edge_note({("a", "b"): fit(10.0, "")}) == "All 1 chosen penalties lie inside the grid."
    said = edge_note({("a", "b"): fit(1e6, "highest"), ("b", "a"): fit(10.0, "")})
    assert "Warning" in said and "1 of 2" in said and "a to b: 1e+06, the highest" in said and "least squares" not in said
