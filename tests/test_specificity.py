"Which controls are decoded, in which calls, and in what order they come back."
import pandas as pd
from hypothesis import given, settings, strategies as st

from em_repro.directions import RANDOM_KINDS
from em_repro.plan import stages_of
from em_repro.profiles import Steering, load_profile
from em_repro.specificity import RANKED_KINDS, draws_said, drawn, in_calls, kind_of

quick = settings(max_examples=60, deadline=None, derandomize=True)
KINDS = st.dictionaries(st.sampled_from([*RANDOM_KINDS, "layer", "target", "content"]), st.integers(1, 30), min_size=1)


def named(kinds): return [f"{kind}/{i}" for kind, n in kinds.items() for i in range(n)]


@quick
@given(KINDS, st.integers(2, 40))
def test_ranked_kinds_keep_every_draw_and_the_others_the_first(kinds, others):
    taken = pd.Series(drawn(named(kinds), others))
    for kind, n in kinds.items():
        fewer = kind in RANDOM_KINDS and kind not in RANKED_KINDS
        numbers = sorted(int(name.split("/")[1]) for name in taken[kind_of(taken) == kind])
        assert numbers == list(range(min(n, others) if fewer else n))


@quick
@given(KINDS, st.integers(1, 40))
def test_calls_hold_every_vector_once_and_divide_no_kind(kinds, most):
    calls = in_calls(sorted(named(kinds)), most)
    assert sorted(name for call in calls for name in call) == sorted(named(kinds))
    of = [set(kind_of(pd.Series(call))) for call in calls]
    assert sum(map(len, of)) == len(set.union(*of))
    assert all(len(call) <= most or len(kinds_here) == 1 for call, kinds_here in zip(calls, of))


def conditions(profile, notebook):
    asked = [request.arguments for name, request in stages_of(profile, [notebook]) if request.stage == "spillover.answers" and name.startswith(notebook)]
    return [row for one in asked for row in one["conditions"]]


def test_a_profile_with_fewer_other_draws_decodes_fewer_of_those_alone():
    whole = load_profile("smoke").model_copy(update={"steering": load_profile("smoke").steering.model_copy(update={"draws": 4})})
    part = whole.model_copy(update={"steering": whole.steering.model_copy(update={"other_draws": 2})})
    def count(profile):
        rows = [*conditions(profile, "06"), *conditions(profile, "05")]
        return kind_of(pd.Series([name or "" for _, name, dose in rows if dose == profile.steering.main])).value_counts()
    more, fewer = count(whole), count(part)
    halved = {"mapped_random", *RANDOM_KINDS} - set(RANKED_KINDS)
    assert halved <= set(more.index) and all(fewer[kind] * (2 if kind in halved else 1) == more[kind] for kind in more.index)


def test_the_words_say_how_many_there_are():
    def said(**steering): return draws_said(load_profile("smoke").model_copy(update={"steering": Steering(**steering)}))
    assert said(draws=20) == said(draws=20, other_draws=20) == "20 draws a kind"
    assert said(draws=20, other_draws=10) == "20 random and 20 orthogonal draws, 10 of every other kind"
