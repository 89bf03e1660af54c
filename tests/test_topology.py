"""Asymmetry of transfer: what counts is what mapped directions do beyond random vectors through the same maps."""
from functools import partial
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binom

from em_repro.calibration import _GIVEN, _is_said, transfer_world
from em_repro.claims import claims
from em_repro.profiles import UserError
from em_repro.topology import (Transfer, assay_table, asymmetry_verdict, effect_units, gaps, kin_table, lineage, matrix_rank,
                               matrix_verdict, mean_gap, rank_figure, score_table)
from em_repro.verify import tolerances

C8 = claims()["C8"]
decide = partial(matrix_verdict, claim=C8, profile="known", protocol="none")
quick = settings(max_examples=20, deadline=None, derandomize=True)
FLOORS = (.1, .3, .5)


def world(seed, n=100, samples=20, floors=FLOORS, gives=0., runs=1, spread=0., both=0.) -> Transfer:
    """Runs of models whom any vector of the norm leaves `floors` good; the first model's direction adds `gives`.

    spread: sd of what each vector, the direction among them, does of its own to each receiver (the same in all questions);
    both: what every model's direction adds to every other's."""
    adds = np.full((len(floors), len(floors)), both)
    adds[0, 1:] += gives
    made = transfer_world(seed, n, samples, floors, adds, (spread, spread), runs=runs)
    return made._replace(names=list("abcdefgh"[:len(floors)]))


def frames(found: Transfer) -> tuple[pd.DataFrame, pd.DataFrame]:
    "The answers from which `effect_units` makes this."
    names, each = found.names, range(len(found.names))
    def lines(values, **labels):
        return pd.DataFrame({"question": [f"q{i:03}" for i in range(len(values))], "good": values, "target": 1 - values, **labels})
    inside = [lines(values, model=names[i], seed=run, vector=vector, vector_sample=sample)
              for r, run in enumerate(found.runs) for i in each
              for vector, sample, values in [("direction", -1, found.own[r, i]), *(("random", s, x[i]) for s, x in enumerate(found.own_random[r]))]]
    outside = [lines(values, model=names[j], donor=names[i], seed=run, vector=vector, vector_sample=sample)
               for r, run in enumerate(found.runs) for i, j in permutations(each, 2)
               for vector, sample, values in [("mapped", -1, found.mapped[r, i, j]),
                                              *(("mapped_random", s, x[i, j]) for s, x in enumerate(found.mapped_random[r]))]]
    return pd.concat(inside, ignore_index=True), pd.concat(outside, ignore_index=True)


# The statistic

@given(st.integers(0, 1000), st.integers(2, 5))
@quick
def test_the_mean_gap_does_not_depend_on_names_or_on_what_both_ways_share(seed, k):
    rng = np.random.default_rng(seed)
    units, order, shared = rng.normal(size=(k, k, 7)), rng.permutation(k), rng.normal(size=(k, k, 7))
    assert gaps(units).shape == (k * (k - 1) // 2, 7)
    assert np.isclose(mean_gap(units), mean_gap(units[np.ix_(order, order)]))
    assert np.isclose(mean_gap(units), mean_gap(units.swapaxes(0, 1)))
    assert np.isclose(mean_gap(units), mean_gap(units + shared + shared.swapaxes(0, 1)))
    assert np.isclose(mean_gap(units + units.swapaxes(0, 1)), 0)


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(2, 6))
@quick
def test_gains_are_over_the_random_vectors_of_the_same_map(seed, runs, samples):
    found = world(seed, n=6, samples=samples, runs=runs)
    for i, j in permutations(range(3), 2):
        np.testing.assert_allclose(found.units[i, j], (found.mapped - found.mapped_random.mean(1)).mean(0)[i, j])
        others = np.delete(found.mapped_random, 0, axis=1).mean(1)[:, i, j]
        np.testing.assert_allclose(found.of_random[:, 0, i, j], found.mapped_random[:, 0, i, j] - others, atol=1e-12)
    np.testing.assert_allclose(np.diagonal(found.units).T, (found.own - found.own_random.mean(1)).mean(0))
    louder = found._replace(mapped=found.mapped + .2, mapped_random=found.mapped_random + .2)
    assert np.isclose(mean_gap(louder.units), mean_gap(found.units)), "what any vector does is no transfer"


def test_tables_of_answers_give_back_the_shares_they_were_made_of():
    found = world(0, n=8, samples=3, runs=2)
    inside, outside = frames(found)
    made = effect_units(inside.sample(frac=1, random_state=0).sort_values("model", kind="stable"), outside.sample(frac=1, random_state=1))
    assert (made.names, made.runs) == (found.names, found.runs)
    apart = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(made.own, found.own), np.testing.assert_allclose(made.own_random, found.own_random)
    np.testing.assert_allclose(made.mapped[:, apart], found.mapped[:, apart])
    np.testing.assert_allclose(made.mapped_random[:, :, apart], found.mapped_random[:, :, apart])
    np.testing.assert_allclose(effect_units(inside, outside, "target").by_run, -found.by_run)


def test_a_pair_counts_the_random_vectors_of_both_ways_and_a_receiver_its_own():
    """Written out: variance over vectors of their means over questions, in each run, of each way.

    What all questions of a vector have in common reaches the test; what all vectors have in common does not."""
    found = world(2, n=400, samples=20, runs=2, spread=.15)
    means = found.mapped_random.mean(-1)
    ways = means[:, :, 0, 1].var(1, ddof=1), means[:, :, 1, 0].var(1, ddof=1)
    assert found.sampling(0, 1).variance == pytest.approx(sum(v.sum() / 20 / 4 for v in ways))
    assert found.sampling(0, 1) == pytest.approx(found.sampling(1, 0)) and 19 < found.sampling(0, 1).df <= 76
    pairs = decide(found)[1]
    alike = found._replace(mapped_random=np.broadcast_to(found.mapped_random.mean(1, keepdims=True), found.mapped_random.shape))
    assert (pairs.vectors_se > .02).all() and (decide(alike)[1].vectors_se == 0).all()
    assert ((pairs.high - pairs.low) > (decide(alike)[1].high - decide(alike)[1].low)).all()
    own, plain = assay_table(found, .1), assay_table(found._replace(own_random=found.own_random.mean(1, keepdims=True)), .1)
    assert (own.low < plain.low).all() and (own.effect == plain.effect).all()


def test_runs_are_those_that_all_models_share():
    inside, outside = frames(world(0, n=8, samples=3, runs=3))
    few = effect_units(inside[(inside.model != "b") | (inside.seed > 0)], outside)
    assert few.runs == [1, 2] and few.mapped.shape[0] == few.mapped_random.shape[0] == 2


# The verdict's errors and its power

def supported(found: Transfer) -> bool:
    "Whether the claim is supported; the tests of pairs, the slow part, only where the rank allows it."
    return matrix_rank(found) <= .05 and decide(found)[0].verdict == "supported"


@pytest.mark.parametrize("spread", [0, .15])
@pytest.mark.parametrize("n", [100, 200, 400])
def test_no_transfer_is_called_asymmetric_in_one_of_twenty_at_most(n, spread):
    "Floors that differ by model; any vector, the direction too, may do something of its own to a receiver."
    worlds = 300
    wrong = sum(supported(world(seed, n, spread=spread)) for seed in range(worlds))
    assert wrong <= binom.ppf(.99, worlds, .05), f"{wrong} of {worlds}"


@pytest.mark.parametrize("given", _GIVEN)
def test_calibration_asks_what_the_study_asks(given):
    "Its short cuts (pairs that cannot change the word are not tested) give the words of the study's own verdict."
    more, floors, *_ = _GIVEN[given]
    adds = np.zeros((3, 3))
    adds[0, 1:] = more
    words = set()
    for seed in range(6):
        found = transfer_world(seed, 1500 if seed % 2 else 100, floors=floors, adds=adds, spread=(.15, 0.), rho=.3)
        said = decide(found)[0].verdict
        words.add(said)
        assert [word for word in ("supported", "contradicted") if _is_said(word, found)] == [w for w in (said,) if w != "inconclusive"]
        assert assay_table(found, C8.margin).counts.all()
    assert given != "one gives 40 points" or "supported" in words


def test_a_true_asymmetry_is_found():
    "One of three models gives 40 points, 100 questions, one run of 20 random vectors."
    assert sum(decide(world(seed, gives=.4))[0].verdict == "supported" for seed in range(20)) >= 16


def test_transfer_that_is_alike_both_ways_contradicts():
    for both in (0., .4):
        verdict, pairs = decide(world(0, n=1500, both=both))
        assert verdict.verdict == "contradicted" and verdict.p <= .05 and (pairs.state == "refuted").all()


# Too little to tell

def test_two_models_are_not_testable():
    verdict, pairs = decide(world(0, floors=(.1, .1), gives=.8))
    assert verdict.verdict == "not testable" and verdict.p is None and pairs.state.tolist() == ["not testable"]
    assert verdict.effect > .5, "it is shown all the same"


@pytest.mark.parametrize("own", [1., 0.])
def test_receivers_at_the_floor_are_left_out(own):
    "Of four models one works under nothing: its pairs are not tested, though it seems to give. Of three, two are left."
    def numb(found): return found._replace(own=found.own * (np.array(found.names) != "a")[:, None])
    verdict, pairs = decide(numb(world(0, floors=(.1,) * 4, gives=.8)))
    left_out = pairs.pair.str.contains("a ")
    assert pairs.state[left_out].tolist() == ["not testable"] * 3 and len(pairs) == 6
    assert verdict.verdict != "supported" and "3 models" in verdict.detail
    assert decide(numb(world(0, floors=(.1,) * 3, gives=.8)))[0].verdict == "not testable"


@pytest.mark.parametrize("value", [0., 1.])
def test_an_outcome_that_never_varies_shows_nothing(value):
    found = world(0)
    flat = found._replace(**{name: np.full_like(getattr(found, name), value) for name in found._fields[2:]})
    verdict, pairs = decide(flat)
    assert verdict.verdict == "not testable" and matrix_rank(flat) == 1 and not assay_table(flat, C8.margin).counts.any()
    assert verdict.effect == 0 and pairs.effect.tolist() == [0, 0, 0] and len(score_table(flat, 100)) == 6


@pytest.mark.parametrize("samples, runs, enough", [(2, 1, False), (9, 2, False), (10, 2, True), (19, 1, True)])
def test_nineteen_random_vectors_over_all_runs_are_needed(samples, runs, enough):
    verdict, _ = decide(world(0, samples=samples, runs=runs, gives=.45))
    k = samples * runs
    assert matrix_rank(world(0, samples=samples, runs=runs, gives=.45)) == pytest.approx(1 / (1 + k))
    assert (verdict.verdict == "supported") == enough and (f"{k} random vectors" in verdict.detail) != enough


def test_one_run_speaks_of_itself_and_three_of_runs_like_them():
    one, three = (decide(world(0, runs=runs, gives=.4))[0] for runs in (1, 3))
    assert "no interval" in one.runs and "these adapters" in one.population
    assert "over training runs" in three.runs and three.runs != one.runs


def test_gaps_of_more_than_all_questions_are_no_error():
    "A direction that does all where random vectors do nothing, and nothing the other way where they do all."
    found = world(0, floors=(1., 0., 0.), gives=1.)
    extreme = found._replace(mapped=np.where(np.arange(3)[:, None] == 0, 0., found.mapped))
    assert decide(extreme)[0].effect > 1


BAD = {
    "no pair of models": lambda inside, outside: (inside, None),
    "no seed that all": lambda inside, outside: (inside.assign(seed=inside.model.map({"a": 0, "b": 1, "c": 2})), outside),
    "1 sample": lambda inside, outside: (inside, outside[outside.vector_sample < 1]),
    "0 sample": lambda inside, outside: (inside[inside.vector != "random"], outside),
    "'mapped' are missing": lambda inside, outside: (inside, outside[(outside.vector != "mapped") | (outside.question != "q003")]),
    "'direction' are missing": lambda inside, outside: (inside[inside.vector != "direction"], outside),
    "'mapped_random' are missing": lambda inside, outside: (inside, outside[(outside.donor != "b") | (outside.vector_sample != 1)]),
    "b's mapped direction": lambda inside, outside: (inside, outside[(outside.donor != "b") | (outside.model != "a")])}


@pytest.mark.parametrize("said", BAD)
def test_answers_that_are_missing_are_named(said):
    with pytest.raises(UserError, match=said): asymmetry_verdict(*BAD[said](*frames(world(0, n=8, samples=3))), C8, "known", {})


def test_the_figure_has_a_point_for_every_random_vector():
    drawn = rank_figure(world(0, runs=2)).axes[0].collections
    assert [len(points.get_offsets()) for points in drawn] == [40, 2]


# Within one family, across families

SIZES = ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]


def relatives(names, within, across, runs=2, noise=0.) -> Transfer:
    "Models of these names; what mapped directions gain within and across families is known, what each model gains itself is not asked."
    found = world(3, n=200, floors=(.2, .3, .4, .5)[:len(names)], runs=runs)
    gains = np.where([[lineage(a) == lineage(b) for b in names] for a in names], within, across)[:, :, None]
    own = np.random.default_rng(0).normal(0, noise, found.mapped.shape)
    return found._replace(names=list(names), mapped=found.mapped_random.mean(1) + gains + own)


def test_sizes_of_one_family_are_kin_and_one_architecture_alone_is_not_enough():
    families = [lineage(name) for name in ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "qwen2.5-1.5b", "smollm2-135m", "llama-3.2-1b", "tiny-llama",
                                           "tiny-qwen2", "tiny-gemma2", "tiny-ministral3")]
    assert len(set(families[:3])) == 1 and len(set(families)) == 7
    assert families[3][0] == families[4][0] == families[5][0]


@pytest.mark.parametrize("within, across", [(.3, .1), (.1, .3), (.2, .2)])
def test_a_known_difference_between_kin_and_others_is_given_back(within, across):
    table = kin_table(relatives([*SIZES, "smollm2-135m", "gemma-3-270m"], within, across), 200)
    assert table.between.tolist() == ["within a family", "across families", "difference"] and table.ways.tolist() == [2, 10, 12]
    np.testing.assert_allclose(table.gain, [within, across, within - across], atol=1e-12)
    assert [tolerances().of("topology-kin", column).kind for column in table] == ["line", "count", "share", "share", "share", "count"]
    assert (table.n == 200).all() and (table.low <= table.gain + 1e-12).all() and (table.gain <= table.high + 1e-12).all()


def test_what_questions_share_does_not_widen_the_difference():
    "Paired by question: noise that all ways have in common is in both gains and not in their difference."
    found = relatives([*SIZES, "smollm2-135m"], .3, .1)
    shared = np.random.default_rng(1).normal(0, .5, found.mapped.shape[-1])
    wide = kin_table(found._replace(mapped=found.mapped + shared), 500).set_index("between")
    span = wide.high - wide.low
    assert span["difference"] < 1e-9 < .05 < span["within a family"] and wide.gain["difference"] == pytest.approx(.2)


def test_the_interval_of_no_difference_holds_zero_in_most_worlds():
    names = [*SIZES, "smollm2-135m"]
    tables = [kin_table(world(seed, floors=(.2, .3, .4), both=.2)._replace(names=names), 300).iloc[2] for seed in range(40)]
    holds = sum(row.low <= 0 <= row.high for row in tables)
    assert holds >= binom.ppf(.001, 40, .95), f"{holds} of 40"


@pytest.mark.parametrize("names", [["tiny-qwen2", "tiny-gemma2", "tiny-llama"], [SIZES[0], "smollm2-135m"], SIZES])
def test_without_kin_or_without_others_nothing_is_compared(names):
    table = kin_table(relatives(names, .3, .1), 200)
    assert table.empty and list(table) == ["between", "ways", "gain", "low", "high", "n"]


def test_a_model_whose_configuration_is_not_here_is_named():
    with pytest.raises(UserError, match="unknown family 'a'"): kin_table(world(0, n=8, samples=3))
