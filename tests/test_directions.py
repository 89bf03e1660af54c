"""Directions, their controls and their separability: lengths, angles, and what is found where there is nothing."""
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.controls import sampled_kinds
from em_repro.directions import DifferenceInMeans, Direction, separability   # where users find them
from em_repro.profiles import UserError
from em_repro.separability import layer_separability, learning_curve
from em_repro.store import RunError
from em_repro.vectors import vectors

quick = settings(max_examples=15, deadline=None, derandomize=True)


def activations(seed=0, n=40, layers=3, width=12, shift=2.0, other=1.0):
    "Entries of base, fine-tune and control fine-tune: a shift along one axis, and another along a second."
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, layers, width))
    b = a + rng.normal(size=a.shape) * .3 + shift * np.eye(width)[0]
    c = a + rng.normal(size=a.shape) * .3 + other * np.eye(width)[1]
    return [{"activations": {"X": x.astype(np.float32)}} for x in (a, b, c)]


@quick
@given(st.integers(0, 50), st.integers(2, 4), st.booleans())
def test_every_control_has_the_directions_norm_and_the_projected_ones_no_part_of_it(seed, samples, arm):
    base, tuned, other = activations(seed)
    found = vectors(base, tuned, other if arm else None, samples, seed)
    v = found["vectors"]["direction"].astype(np.float64)
    for name, x in found["vectors"].items():
        assert np.linalg.norm(x) == pytest.approx(np.linalg.norm(v), rel=1e-5), name
        if "orthogonal" in name: assert abs(x @ v) < 1e-4 * (v @ v), name
    kinds = {name.split("/")[0] for name in found["vectors"]}
    related = ("content" in kinds, "other_arm" in kinds, "content_orthogonal" in kinds)
    assert set(sampled_kinds()) < kinds and related == (arm,) * 3
    for kind in ("covariance_orthogonal/", "random/"):
        assert sum(name.startswith(kind) for name in found["vectors"]) == samples


def test_the_direction_points_from_the_base_to_the_fine_tune():
    "Along what was added, so that a negative coefficient takes it out."
    base, tuned, other = activations(shift=2.0)
    found = vectors(base, tuned, other, 2, 0)["vectors"]
    for name in ("direction", "layer/0", "content"): assert found[name] @ np.eye(12)[0] > .9 * np.linalg.norm(found[name]) / (1 + (name == "content")), name
    a, b = (entry["activations"]["X"][:, -1] for entry in (base, tuned))
    fitted = DifferenceInMeans().fit(np.concatenate([a, b]), np.repeat([0, 1], len(a)))
    assert fitted.direction_[0] > 0 and fitted.score(np.concatenate([a, b]), np.repeat([0, 1], len(a))) > .7


def test_samples_of_a_control_are_vectors_of_their_own():
    "A rank among copies of one vector would be a coin's. Other seeds give other samples."
    base, tuned, _ = activations()
    one, two = (vectors(base, tuned, None, 4, seed)["vectors"] for seed in (0, 1))
    for kind in sampled_kinds():
        rows = np.stack([found[f"{kind}/{i}"] for found in (one, two) for i in range(4)])
        cosines = np.abs(rows @ rows.T)[np.triu_indices(8, 1)] / np.linalg.norm(rows[0]) ** 2
        assert cosines.max() < .999, kind


def test_the_direction_is_the_other_arms_and_what_the_arms_do_not_share():
    base, tuned, other = activations()
    found = vectors(base, tuned, other, 2, 0)["vectors"]
    means = [e["activations"]["X"][:, -1].astype(np.float64).mean(0) for e in (base, tuned, other)]
    def unit(x): return x / np.linalg.norm(x)
    np.testing.assert_allclose(unit(found["other_arm"]), unit(means[2] - means[0]), atol=1e-5)
    np.testing.assert_allclose(unit(found["content"]), unit(means[1] - means[2]), atol=1e-5)
    v = found["direction"]
    rest = found["content"] - (found["content"] @ v) / (v @ v) * v
    np.testing.assert_allclose(unit(found["content_orthogonal"]), unit(rest), atol=1e-5)


def test_the_stages_direction_is_the_estimators():
    base, tuned, _ = activations()
    a, b = (entry["activations"]["X"][:, -1] for entry in (base, tuned))
    fitted = DifferenceInMeans().fit(np.concatenate([a, b]), np.repeat([0, 1], len(a)))
    made = vectors(base, tuned, None, 2, 0)["vectors"]["direction"]
    np.testing.assert_array_equal(made, fitted.direction_.astype(np.float32))
    with pytest.raises(UserError, match="the direction is zero"): vectors(base, base, None, 2, 0)


def test_a_direction_claims_no_fine_tune_that_it_was_not_told():
    assert Direction(np.ones(3), "tiny-llama").card()["arm"] == ""


def test_activations_that_are_not_finite_stop_the_stage():
    base, tuned, _ = activations()
    tuned["activations"]["X"][0, 0] = np.nan   # an earlier layer's control
    with pytest.raises(RunError, match="have not the direction's norm"): vectors(base, tuned, None, 2, 0)


@quick
@given(st.integers(0, 30))
def test_every_measure_has_a_null_at_chance_and_a_shift_is_above_it(seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(60, 8))
    found = separability(a, rng.normal(size=a.shape) + 1.5 * np.eye(8)[0], nulls=12, seed=seed, probe_nulls=4)
    assert len(found.null) == len(found.null_auc) == len(found.null_d) == 12 and len(found.null_probe) == 4
    for value, null, chance, slack in ((found.accuracy, found.null, .5, .12), (found.auc, found.null_auc, .5, .15),
                                       (found.d, found.null_d, 0, .6), (found.probe, found.null_probe, .5, .15)):
        assert abs(np.mean(null) - chance) < slack and value > np.mean(null)


def test_separability_by_layer_names_every_null():
    base, tuned, _ = activations()
    table = layer_separability(base, tuned, 3, 0)["layers"]
    assert table.null_probe.isna().tolist() == [True, True, False] and table[["null", "null_auc", "null_d"]].notna().all().all()
    with pytest.raises(UserError, match="paired by question"): separability(np.zeros((10, 3)), np.zeros((9, 3)))


def test_a_direction_from_more_questions_is_nearer_to_that_from_all():
    base, tuned, _ = activations(n=100, shift=1.0)
    curve = learning_curve(base, tuned, 0)["curve"].groupby("size").mean()
    assert curve.index.tolist() == [2, 4, 8, 16, 32, 64]
    assert curve.cosine.is_monotonic_increasing and curve.cosine.iloc[-1] > .97 and curve.accuracy.iloc[-1] >= curve.accuracy.iloc[0]
    same = learning_curve(base, tuned, 0)["curve"]
    assert same.equals(learning_curve(base, tuned, 0)["curve"]) and not same.equals(learning_curve(base, tuned, 1)["curve"])
