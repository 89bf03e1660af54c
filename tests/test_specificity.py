"Which controls are decoded, in which calls, in what order they come back, and how many of them a test knows of."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.answers import sampling_by_vector
from em_repro.claims import claims
from em_repro.controls import ranked_kinds, sampled_kinds
from em_repro.decode import vector_key
from em_repro.plan import stages_of
from em_repro.profiles import Steering, load_profile
from em_repro.specificity import across_hypotheses, across_table, in_calls, kept, samples_said, within_hypotheses
from em_repro.steering import WHENS, assays, choose_point

quick = settings(max_examples=60, deadline=None, derandomize=True)
KINDS = st.dictionaries(st.sampled_from([*sampled_kinds(), "layer", "direction", "content"]), st.integers(1, 30), min_size=1)


def index(kinds): return pd.DataFrame([(kind, i) for kind, n in kinds.items() for i in range(n)], columns=["vector", "vector_sample"])


def named(table): return sorted(vector_key(*row) for row in table.itertuples(index=False))


@quick
@given(KINDS, st.integers(2, 40))
def test_ranked_kinds_keep_every_sample_and_the_others_the_first(kinds, others):
    taken = kept(index(kinds), others)
    for kind, n in kinds.items():
        fewer = kind in sampled_kinds() and kind not in ranked_kinds()
        numbers = sorted(taken.vector_sample[taken.vector == kind])
        assert numbers == list(range(min(n, others) if fewer else n))


@quick
@given(KINDS, st.integers(1, 40))
def test_calls_hold_every_vector_once_and_divide_no_kind(kinds, most):
    calls = in_calls(index(kinds), most)
    assert sorted(name for call in calls for name in named(call)) == named(index(kinds))
    of = [set(call.vector) for call in calls]
    assert sum(map(len, of)) == len(set.union(*of))
    assert all(len(call) <= most or len(kinds_here) == 1 for call, kinds_here in zip(calls, of))


def conditions(profile, notebook):
    asked = [request.arguments for name, request in stages_of(profile, [notebook]) if request.stage == "answers.answers" and name.startswith(notebook)]
    return [row for one in asked for row in one["conditions"]]


def test_a_profile_with_fewer_other_samples_decodes_fewer_of_those_alone():
    whole = load_profile("smoke").model_copy(update={"steering": load_profile("smoke").steering.model_copy(update={"samples": 4, "controls_best": False})})
    part = whole.model_copy(update={"steering": whole.steering.model_copy(update={"other_samples": 2})})
    planned = choose_point(pd.DataFrame(0.0, pd.MultiIndex.from_product([whole.steering.coefficients[1:], WHENS]), ["?"]))   # nothing is known yet
    def count(profile):
        rows = [*conditions(profile, "06"), *conditions(profile, "05")]
        return pd.Series([c.name for c in rows if (c.coefficient, c.when) == planned]).value_counts()
    more, fewer = count(whole), count(part)
    halved = {"mapped_random", *sampled_kinds()} - set(ranked_kinds())
    assert halved <= set(more.index) and all(fewer[kind] * (2 if kind in halved else 1) == more[kind] for kind in more.index)


def test_the_words_say_how_many_there_are():
    def said(**steering): return samples_said(load_profile("smoke").model_copy(update={"steering": Steering(**steering)}))
    assert said(samples=20) == said(samples=20, other_samples=20) == "20 samples a kind"
    assert said(samples=20, other_samples=10) == "20 random and 20 orthogonal samples, 10 of every other kind"


# Tests against the mean of sampled vectors

def answers(seed=0, samples=20, runs=2, spread=.15, n=60):
    "Answers of one model under its own vectors and another's mapped ones; each sample does something of its own."
    rng = np.random.default_rng(seed)
    def lines(vector, rate, draws=None, **labels):
        keys = [(run, i) for run in range(runs) for i in ([-1] if draws is None else range(draws))]
        return pd.concat([pd.DataFrame({"question": [f"q{j:02}" for j in range(n)], "vector": vector, "vector_sample": i, "seed": run, "model": "a", "donor": "b",
                                        "arm": "insecure", "coefficient": -1.0 if vector else 0.0,
                                        "good": (rng.random(n) < rate + (spread * rng.normal() if i >= 0 else 0)).astype(float)} | labels) for run, i in keys])
    plain = lines("", .1)
    kinds = [plain, lines("direction", .9), lines("other_arm", .8), *(lines(k, .3, samples) for k in ("random", "orthogonal", "covariance"))]
    sent = pd.concat([plain, lines("mapped", .4), lines("mapped_random", .3, samples)], ignore_index=True)
    inside = pd.concat(kinds, ignore_index=True)
    return inside.assign(target=1 - inside.good, incoherent=0.0), sent.assign(target=1 - sent.good, incoherent=0.0)


def test_claims_against_sampled_kinds_know_of_it_and_those_against_one_vector_do_not():
    inside, outside = answers()
    for claim, kinds, sampled in (("C4", None, True), ("C4b", ["covariance"], True), ("C4a", ["other_arm"], False)):
        for row in within_hypotheses(inside, claims()[claim], kinds=kinds): assert ("vectors_se" in row) == sampled
    first = within_hypotheses(inside, claims()["C4"])[0]
    means = inside[inside.vector == "random"].groupby(["seed", "vector_sample"]).good.mean().unstack()
    assert first["vectors_se"] == pytest.approx(np.sqrt((means.var(axis=1) / 20).sum() / 4))   # two runs
    across = across_hypotheses(inside, outside, claims()["C7"])
    assert len(across) == 3 and all(row["vectors_se"] > .01 for row in across)
    table = across_table(inside, outside, .1)
    for row, line in zip(across, table.itertuples()): assert (row["low"], row["high"]) == pytest.approx((line.low, line.high), abs=1e-5)


def test_an_assay_counts_its_random_vectors():
    inside, _ = answers(samples=4)
    found, one = assays(inside, .1)["a"], inside[inside.vector == "random"].groupby(["question", "seed"], as_index=False).good.mean()
    alike = pd.concat([inside[inside.vector != "random"], one.assign(vector="random", vector_sample=0, model="a")])
    plain = assays(alike, .1)["a"]
    assert found.effect == pytest.approx(plain.effect) and found.low < plain.low and found.p_above > plain.p_above
    assert sampling_by_vector(inside[inside.vector == "direction"], "good").variance == 0
