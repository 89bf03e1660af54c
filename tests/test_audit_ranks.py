"""The rank of an audit: every vector chooses for itself by one rule, so that a direction that is one of them is not called
specific more often than it should be."""
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from em_repro.audit_findings import concluded, control_findings
from em_repro.audit_inputs import Sizes
from em_repro.audit_ranks import (EARLIER, LAST, edits_of, least_enough, own_places, place_ranks, rank_sentence,
                                  table_ranks, vector_points)
from em_repro.audit_removal import choose_coefficient, chosen, stood_at, tried_vectors
from em_repro.subjects import BASE
from em_repro.vectors import DIRECTION

COEFFICIENTS, LAYERS = (-.5, -1.0, -2.0), (1, 2, 3)


def named(controls): return [(DIRECTION, -1), *((kind, i) for i in range((controls + 1) // 2) for kind in ("random", "orthogonal"))][:1 + controls]


def answered(rates, vectors, points, n, split, rng):
    "Answers of vectors at points (layer, coefficient), good with a rate by vector, block and coefficient."
    parts = []
    for v, layer, c in points:
        good = rng.random(n) < rates[v, LAYERS.index(layer), COEFFICIENTS.index(c)]
        parts.append(pd.DataFrame({"vector": vectors[v][0], "vector_sample": vectors[v][1], "layer": layer, "coefficient": c,
                                   "question": [f"{split} {i}" for i in range(n)], "good": good.astype(float), "bad": 1.0 - good}))
    return pd.concat(parts, ignore_index=True)


def ranked(rates, rng, develop=6, questions=20):
    "Evaluation answers under every vector at the points that the audit's own function chose."
    vectors = named(len(rates) - 1)
    everywhere = [(v, k, c) for v in range(len(rates)) for k in LAYERS for c in COEFFICIENTS]
    tried = answered(rates, vectors, everywhere, develop, "development", rng)
    points = vector_points(tried, pd.DataFrame({"bad": np.zeros(develop), "good": 1.0}), .1)
    stood = [(vectors.index((r.vector, r.vector_sample)), r.layer, r.coefficient) for r in points.itertuples()]
    said = answered(rates, vectors, dict.fromkeys(stood), questions, "evaluation", rng)
    return points.merge(said, on=["vector", "vector_sample", "layer", "coefficient"])


def test_the_rank_of_one_of_many_like_vectors_is_uniform():
    "A direction that differs from its 19 controls by its name alone, at the points that the audit's own rule chose: 2000 audits."
    rng, n = np.random.default_rng(0), 2000
    rates = np.clip(.5 + .2 * rng.normal(size=(n, 20, len(LAYERS), len(COEFFICIENTS))), 0, 1)
    seen, asked = rng.binomial(6, rates) / 6, rng.binomial(400, rates) / 400
    each = np.ogrid[:n, :20]
    good = np.stack([asked[(*each, *at)] for at in own_places(1 - seen, seen, (0.0, 1.0), .1).values()], -1)
    p = np.array([place_ranks(one[0], one[1:]).min() for one in good])
    for level in (.05, .25, .5, .75):
        noise = 3 * np.sqrt(level * (1 - level) / n)
        assert level - noise - .02 <= (p <= level + 1e-9).mean() <= level + noise   # ties count against it
    # At the direction's own best point the same vectors are called special too often.
    (block, at) = own_places(1 - seen, seen, (0.0, 1.0), .1)[EARLIER]
    there = asked[np.arange(n), :, block[:, 0], at[:, 0]]
    assert np.mean([place_ranks(one[:1], one[1:, None])[0] <= .05 for one in there]) > .07


@pytest.mark.parametrize("gain, word", [(0.0, "not shown"), (.45, "specific"), (-.45, "worse than chance")])
def test_a_direction_is_called_what_its_rank_shows(gain, word):
    rng = np.random.default_rng(1)
    rates = np.full((21, len(LAYERS), len(COEFFICIENTS)), .5)
    rates[0] += gain
    table = ranked(rates, rng, questions=60)
    cards = concluded([*control_findings(table, 3), *control_findings(table, 1)])
    assert [card["place"] for card in cards] == ["block 3"] * 2 + ["block 1"] * 2
    assert {card["verdict"] for card in cards} == {word}


def test_a_direction_no_better_than_one_of_its_controls_is_not_specific_however_many_questions():
    "It does far more than the controls' mean, and so does one of them."
    rates = np.full((21, len(LAYERS), len(COEFFICIENTS)), .2)
    rates[[0, 5]] = 1.0
    tests = control_findings(ranked(rates, np.random.default_rng(2), questions=200), 3)
    assert all(test.p < .001 and test.effect > 50 and test.p_rank == pytest.approx(2 / 21) for test in tests)
    assert all(card["verdict"] == "not shown" for card in concluded(tests))


def test_where_a_vector_stands_hangs_on_its_own_answers_alone_and_not_on_its_name():
    rng = np.random.default_rng(3)
    rates, vectors = rng.random((9, len(LAYERS), len(COEFFICIENTS))), named(8)
    tried = answered(rates, vectors, [(v, k, c) for v in range(9) for k in LAYERS for c in COEFFICIENTS], 6, "d", rng)
    base, keys = pd.DataFrame({"bad": np.zeros(6), "good": 1.0}), ["vector", "vector_sample", "place"]
    def points(table): return vector_points(table, base, .1).set_index(keys).sort_index()
    whole = points(tried)
    assert whole.equals(points(tried.sample(frac=1, random_state=0)))
    alone = tried[(tried.vector == DIRECTION) | (tried.vector_sample == 2)]
    assert points(alone).equals(whole.loc[points(alone).index])
    swapped = tried.replace({"vector": {DIRECTION: "random", "random": DIRECTION}})
    assert points(swapped).rename({DIRECTION: "random", "random": DIRECTION}, level=0).sort_index().equals(whole)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(3, 6))
def test_a_vector_chooses_as_the_direction_is_chosen_for(counts, base):
    "`chosen`, which picks where the direction is subtracted, takes the same block and coefficient from the same answers."
    first = lambda k: (np.arange(6) < k).astype(float)
    def table(good, **more): return pd.DataFrame({"question": range(6), "good": good, "target": 1 - good, "bad": 1 - good, "harmful": 0.0, **more})
    tried = pd.concat([table(first(k), layer=layer, coefficient=c, vector=DIRECTION, vector_sample=-1)
                       for layer, told in enumerate(counts) for c, k in zip(COEFFICIENTS, told)])
    own = table(first(base), arm=BASE, split="development")
    rule = chosen(own, tried, "target", .1).query("used").set_index("layer").coefficient.to_dict()
    assert vector_points(tried, own, .1).set_index("layer").coefficient.to_dict() == rule


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 5))
def test_the_choice_is_the_least_coefficient_that_will_do(good, base):
    rate = np.array(good) / 5
    at, met = least_enough(1 - rate, rate, (1 - base / 5, base / 5), .1)
    table = pd.DataFrame({"coefficient": [-(i + 1) / 2 for i in range(len(rate))], "bad": 1 - rate, "good": rate})
    assert (table.coefficient[int(at)], bool(met)) == choose_coefficient(table, 1 - base / 5, base / 5, .1)
    assert met == (rate >= base / 5 - .1).any()


def test_one_block_is_one_place_and_two_places_are_corrected_for_together():
    good = np.full((21, 1, 2), .5)
    assert list(own_places(1 - good, good, (0.0, 1.0), .1)) == [LAST]
    others = np.column_stack([np.full(20, .1), [.9, *[.3] * 19]])
    p = place_ranks(np.array([.5, .2]), others)
    assert np.allclose(p, [2 / 21, 1])   # it leads all at the first place, and one of them does better at the other
    assert place_ranks(np.array([.95, .2]), others)[0] == pytest.approx(1 / 21)


def test_so_few_controls_cannot_show_it_and_the_sentence_says_so():
    rng = np.random.default_rng(4)
    rates = np.zeros((7, len(LAYERS), len(COEFFICIENTS)))
    rates[0] = 1.0
    table = ranked(rates, rng, questions=60)
    test = control_findings(table, 3)[0]
    assert test.p_rank == pytest.approx(1 / 7) and concluded([test])[0]["verdict"] == "not shown"
    assert "so few make it no less than 0.14" in test.sentence and "block 3" in test.sentence
    assert "coefficient and block that its own answers" in rank_sentence(table, EARLIER, "random", .2)


def test_development_questions_choose_and_so_few_are_asked_under_controls():
    "Counts of what is asked: `rank_development` questions under every vector, at every block and coefficient."
    asked, index = [], pd.DataFrame(named(4), columns=["vector", "vector_sample"])
    sizes = Sizes(rank_development=3, development=4)
    edits = tried_vectors({k: index for k in LAYERS}, sizes.rank_coefficients)
    assert {k: len(each) for k, each in edits.items()} == dict.fromkeys(LAYERS, 5 * 3)
    rng, rates = np.random.default_rng(5), np.full((5, len(LAYERS), len(COEFFICIENTS)), .5)
    from em_repro import audit_removal
    def steered(bench, vectors, split, conditions, scored, first):
        asked.append((split, first, conditions))
        everywhere = [(v, k, c) for v in range(5) for k in LAYERS for c in COEFFICIENTS]
        yield
        return answered(rates, named(4), everywhere, first, split, rng).assign(target=lambda t: t.bad, harmful=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_removal, "steered_answers", steered)
        patch.setattr(audit_removal, "questions_of", lambda setup, split: [f"{split} {i}" for i in range(4)])
        plain = pd.DataFrame({"arm": BASE, "split": "development", "question": [f"development {i}" for i in range(4)],
                              "target": [0, 0, 0, 1.0], "good": [1.0, 1, 1, 0], "harmful": 0.0, "incoherent": 0.0})
        bench = SimpleNamespace(setup=SimpleNamespace(sizes=sizes, margin=.1))
        plan = stood_at(bench, plain, "target", dict.fromkeys(LAYERS, {"index": index}))
        next(plan)
        try: next(plan)
        except StopIteration as end: points = end.value
    assert [(split, first) for split, first, _ in asked] == [("development", 3)] and asked[0][2] == edits
    assert len(points) == 2 * 5 and sum(map(len, edits_of(points).values())) == 10


@pytest.mark.parametrize("wrong", [dict(rank_coefficients=()), dict(rank_coefficients=(0,)), dict(rank_coefficients=(-1, .5)),
                                   dict(rank_coefficients=(-1, -1)), dict(rank_development=1), dict(shown=0)])
def test_sizes_that_choose_nothing_are_refused(wrong):
    with pytest.raises((ValidationError, ValueError)): Sizes(**wrong)
