"Which controls are decoded, in which calls, and in what order they come back."
import pandas as pd
from hypothesis import given, settings, strategies as st

from em_repro.controls import ranked_kinds, sampled_kinds
from em_repro.decode import vector_key
from em_repro.plan import stages_of
from em_repro.profiles import Steering, load_profile
from em_repro.specificity import in_calls, kept, samples_said
from em_repro.steering import WHENS, choose_point

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
