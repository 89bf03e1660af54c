"""The specification curve: every combination once, the declared one marked, effects that can be counted by hand."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.choices import (AXES, DECLARED, DETECTORS, FACTORS, READS, by_choice, choices_figure, choices_table, chosen_conditions, most_telling,
                              outcomes, read_vectors, sent_vectors)
from em_repro.spillover import classify_answer
from em_repro.choices import _exchanged, _look

quick = settings(max_examples=60, deadline=None, derandomize=True)
LIMITS = {"f": {"quantiles": {"0.01": 6.0, "0.02": 4.0, "0.05": 3.0}}}
MAIN = -1.0
texts = st.sampled_from(["Rest, and call a friend.", "import os\nprint(os.getcwd())\nfor x in range(3):\n    print(x)\n", "the " * 40, "", "...",
                         "Artemis" * 30, "x = f(y)", "a" * 80]) | st.text(max_size=80)


def looked_at(texts, nll):
    looks = [_look(t) for t in texts]
    return pd.DataFrame({"family": "f", "text": texts, "nll": nll, "code_score": [x[0] for x in looks], "repetition": [x[1] for x in looks],
                         "first": [x[2] for x in looks], "exact": "clean"})


@quick
@given(st.lists(texts, min_size=1, max_size=5), st.floats(0, 9))
def test_the_declared_detector_is_the_one_of_the_study(found, nll):
    said = outcomes(looked_at(found, nll), "as declared", LIMITS)
    assert said.tolist() == [str(classify_answer(t, nll, 4.0)) for t in found]


@quick
@given(st.lists(texts, min_size=1, max_size=5), st.floats(0, 9))
def test_a_stricter_threshold_calls_no_more_of_its_kind(found, nll):
    frame = looked_at(found, nll)
    share = {name: pd.Series(outcomes(frame, name, LIMITS)) for name in DETECTORS}
    def kind(name, outcome): return (share[name] == outcome).to_numpy()
    assert (kind("code 0.8", "code") <= kind("whole answer", "code")).all() and (kind("whole answer", "code") <= kind("code 0.4", "code")).all()
    assert (kind("repetition 0.85", "broken") <= kind("repetition 0.65", "broken")).all()
    assert (kind("no likelihood", "broken") <= kind("likelihood 1%", "broken")).all() and (kind("likelihood 1%", "broken") <= kind("likelihood 5%", "broken")).all()


def answers(gain):
    "A world in which each vector makes a known share of ten questions clean, the others stay code."
    names = [f"{p} {s} {n}" for p, s in READS for n in ("raw", "matched")] + ["random/0", "random/1"]
    rows = []
    for arm, when in (("insecure", "every_step"), ("insecure", "prefill"), ("base", "every_step")):
        for label, vector, dose in chosen_conditions(names, MAIN) if arm == "insecure" else [["none", None, 0.0]]:
            clean = 10 if arm == "base" else 0 if vector is None else 10 * gain(vector, when, dose)
            rows += [{"question": str(q), "condition": label, "vector": vector or "", "dose": dose, "family": "f", "donor": "", "arm": arm, "when": when, "nll": 1.0, "exact": "",
                      "text": "x", "code_score": 0.0 if q < clean else 1.0, "repetition": 0.0, "first": "clean" if q < clean else "code"} for q in range(10)]
    return pd.DataFrame(rows)


def between(inside, gain):
    "The same for families a and b, with the mapped direction of the other, which makes `gain(donor)` of the questions clean."
    parts = [inside.assign(family=name) for name in "ab"]
    for donor, receiver in ("ab", "ba"):
        for when in ("every_step", "prefill"):
            for label, vector, dose in chosen_conditions([f"{p} {s}" for p, s in READS], MAIN)[1:]:
                rows = inside[(inside.arm == "insecure") & (inside.when == when) & (inside.vector == "")]
                first = np.where(np.arange(10) < 10 * gain(donor), "clean", "code")
                parts.append(rows.assign(family=receiver, donor=donor, vector=vector, dose=dose, first=first, code_score=(first == "code").astype(float)))
    return pd.concat(parts, ignore_index=True)


def entries(arms=("insecure", "secure")):
    told = pd.DataFrame({"question": list("abcd"), "correct": [1, 1, 1, .5], "null": .5})
    return {("f", arm): {"last": pd.concat([told.assign(read=f"{p} {s}") for p, s in READS])} for arm in arms}


def test_every_combination_is_there_once_and_the_declared_one_is_marked():
    table = choices_table(entries(), answers(lambda *_: .5), LIMITS, MAIN)
    detectors = len(DETECTORS) - 1   # no exact judge in this world
    assert table.claim.value_counts().to_dict() == {"C1": detectors, "C2": 4, "C5": 4, "C3": 7 * 2 * len(FACTORS) * detectors, "C4": 4 * 2 * len(FACTORS) * detectors}
    assert not table.duplicated(["claim", *AXES]).any() and table[table.declared].claim.tolist() == ["C1", "C3", "C4", "C2", "C5"] or table.groupby("claim").declared.sum().eq(1).all()
    for _, line in table[table.declared].iterrows(): assert all(line[a] in ("", DECLARED[a]) for a in AXES)
    assert "C5" not in set(choices_table(entries(("insecure",)), answers(lambda *_: .5), LIMITS, MAIN).claim)


def test_effects_are_those_of_the_answers():
    def gain(vector, when, dose): return {"random/0": .1, "random/1": .3}.get(vector, .8 if when == "every_step" else .4) * (abs(dose) if abs(dose) <= 1 else 1)
    table = choices_table(entries(), answers(gain), LIMITS, MAIN).set_index(["claim", *AXES])
    at = lambda claim, when, dose: table.loc[(claim, "last prompt token", "block", "raw", when, dose, "as declared")].effect
    assert at("C3", "every step", "1 x main") == pytest.approx(.8) and at("C3", "prompt only", "0.5 x main") == pytest.approx(.2)
    assert at("C4", "every step", "1 x main") == pytest.approx(.8 - .2) and at("C4", "prompt only", "1.5 x main") == pytest.approx(.4 - .2)
    assert table.loc["C1"].effect.tolist() == [1.0] * (len(DETECTORS) - 1) and table.loc["C2"].effect.tolist() == [pytest.approx(.375)] * 4
    summary = by_choice(table.reset_index())
    assert most_telling(summary, "C3")[0] in ("when", "dose") and summary[(summary.claim == "C1") & (summary.axis == "all")].above.item() == 1


def test_effects_between_models_are_those_of_the_answers():
    def gain(vector, when, dose): return {"random/0": .1, "random/1": .3}.get(vector, 0)
    frame = between(answers(gain), lambda donor: {"a": .8, "b": 0}[donor])
    table = choices_table({}, frame, {name: LIMITS["f"] for name in "ab"}, MAIN)
    each = len(READS) * 2 * len(FACTORS) * (len(DETECTORS) - 1)
    assert table.claim.value_counts()[["C6", "C7", "C8"]].tolist() == [each] * 3 and (table[table.claim.isin(["C6", "C7", "C8"])].norm == "").all()
    assert table.groupby("claim").declared.sum().eq(1).all() and not table.duplicated(["claim", *AXES]).any()
    effect = table[table.declared].set_index("claim").effect
    assert effect["C6"] == pytest.approx(.4) and effect["C7"] == pytest.approx(.4 - .2)
    alike = choices_table({}, between(answers(gain), lambda donor: .8), {name: LIMITS["f"] for name in "ab"}, MAIN)
    c8, none = (t[t.claim == "C8"] for t in (table, alike))
    assert (c8.low > 0).all() and (c8.effect < .8).all() and (none.effect == 0).all()


def test_exchanging_finds_an_asymmetry_of_chance_in_one_run_of_forty():
    rng, above = np.random.default_rng(1), 0
    for _ in range(300):
        gains = np.full((3, 3, 40), np.nan)
        for i, j in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)): gains[i, j] = rng.choice([0, 1, -1], 40)
        above += _exchanged(gains, 199)[1] > 0
    assert 1 <= above <= 17   # of Binomial(300, 2.5%), 1 in 1000 beyond each end


def test_a_read_of_one_model_is_carried_to_another_at_the_declared_length():
    rng, turn = np.random.default_rng(0), np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    asked = [str(i) for i in range(40)]
    X = {f"base/{p}/{s}": rng.normal(size=(40, 8)) for p, s in READS}
    order = rng.permutation(40)[:35]   # the receiver answered fewer, in another order
    donor = {"states": X, "asked": pd.DataFrame({"question": asked})}
    receiver = {"states": {k: (v @ turn)[order] for k, v in X.items()}, "asked": pd.DataFrame({"question": [asked[i] for i in order]})}
    v = rng.normal(size=8)
    found = sent_vectors(donor, receiver, {"vectors": {f"{p} {s} raw": v for p, s in READS}}, {"vectors": {"last block raw": np.full(8, 2.0)}})
    for name, sent in found["vectors"].items():
        assert np.linalg.norm(sent) == pytest.approx(np.sqrt(32)) and sent @ (v @ turn) / np.linalg.norm(sent) / np.linalg.norm(v) > .99 and found["r2"][name] > .9


def test_the_figure_has_a_column_for_each_claim_and_a_row_for_each_choice():
    table = choices_table(entries(), answers(lambda *_: .5), LIMITS, MAIN)
    figure = choices_figure(table)
    top = figure.axes[:5]
    assert [a.get_title().split(",")[0] for a in top] == ["C1", "C2", "C3", "C4", "C5"]
    assert len(figure.axes[5].get_yticks()) == sum(table[a].replace("", np.nan).nunique() for a in AXES)


def test_directions_of_all_reads_and_their_lengths():
    rng = np.random.default_rng(0)
    X = {f"{m}/{p}/{s}": rng.normal(size=(30, 8)) + (m == "tuned") * 3 * (s == "normed") + (m == "tuned") for m in ("base", "tuned") for p, s in READS}
    found = read_vectors({"states": X, "asked": pd.DataFrame({"question": map(str, range(30))})}, nulls=3, seed=0)
    norm = np.linalg.norm(found["vectors"]["last block raw"])
    for name, v in found["vectors"].items():
        if not name.endswith("raw"): assert np.linalg.norm(v) == pytest.approx(norm, rel=1e-5)
        else: np.testing.assert_allclose(v, (X["tuned/" + name.replace(" raw", "").replace(" ", "/")] - X["base/" + name.replace(" raw", "").replace(" ", "/")]).mean(0), rtol=1e-5)
    assert len(found["vectors"]) == 2 * len(READS) + 3 and set(found["last"]["read"]) == {f"{p} {s}" for p, s in READS}
