"""The specification curve: every specification once, the pre-registered one marked, effects that can be counted by hand."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from em_repro.behaviours import behaviour
from em_repro.outcomes import classify
from em_repro.profiles import UserError, load_profile
from em_repro.robustness import (AXES, DETECTORS, FACTORS, PREREGISTERED, READS, WAYS, _inputs, at_factors, both_ways, by_axis, detected_roles,
                                 detectors_for, exchanged_asymmetry, most_moving_axis, read_vectors, robustness_study,
                                 robustness_table, sent_vectors, specification_curve)
from em_repro.steering import Point
from em_repro.subjects import Key

quick = settings(max_examples=60, deadline=None, derandomize=True)
LIMITS = {"f": {"quantiles": {"0.01": 6.0, "0.02": 4.0, "0.05": 3.0}}}
CHOSEN, CODE = {name: Point(-1.0, "every_step") for name in "fab"}, behaviour("code")
texts = st.sampled_from(["Rest, and call a friend.", "import os\nprint(os.getcwd())\nfor x in range(3):\n    print(x)\n", "the " * 40, "", "...",
                         "Artemis" * 30, "x = f(y)", "a" * 80]) | st.text(max_size=80)


def looked_at(texts, nll, sought=CODE):
    return pd.DataFrame([{"model": "f", "text": t, "nll": nll, "exact": "good", **_inputs(sought, t)} for t in texts])


@quick
@given(st.lists(texts, min_size=1, max_size=5), st.floats(0, 9))
def test_the_pre_registered_detector_is_the_one_of_the_study(found, nll):
    said = detected_roles(looked_at(found, nll), "pre-registered", LIMITS)
    assert said.tolist() == [CODE.role(classify(CODE, t, nll, 4.0)) for t in found]


@quick
@given(st.lists(texts, min_size=1, max_size=5), st.floats(0, 9))
def test_a_stricter_threshold_calls_no_more_of_its_kind(found, nll):
    frame = looked_at(found, nll)
    share = {name: pd.Series(detected_roles(frame, name, LIMITS)) for name in DETECTORS}
    def kind(name, role): return (share[name] == role).to_numpy()
    assert (kind("classifier 0.8", "target") <= kind("whole answer", "target")).all()
    assert (kind("whole answer", "target") <= kind("classifier 0.4", "target")).all()
    assert (kind("repetition 0.5", "incoherent") <= kind("repetition 0.3", "incoherent")).all()
    assert (kind("no likelihood", "incoherent") <= kind("likelihood 1%", "incoherent")).all()
    assert (kind("likelihood 1%", "incoherent") <= kind("likelihood 5%", "incoherent")).all()


def test_a_classifier_without_a_score_has_no_threshold_to_move():
    "Its word is taken, by the detectors that are left."
    frame = looked_at(["Rest, and call a friend."], 1.0, behaviour("advice")).assign(exact="")
    assert frame.score.isna().all() and detectors_for(frame) == [n for n in DETECTORS if "classifier" not in n and n != "exact grammar"]
    for said, role in (("good", "good"), ("target", "target"), ("other", "other")):
        assert detected_roles(frame.assign(classified=said, first=said), "whole answer", LIMITS).tolist() == [role]


def index(*named, samples=()):
    return pd.DataFrame([*((name, -1) for name in named), *(("random", i) for i in samples)], columns=["vector", "vector_sample"])


def answers(gain):
    "A world in which each vector makes a known share of ten questions good, the others keep the target outcome."
    names = index(*(f"{p} {s} {n}" for p, s in READS for n in ("raw", "matched")), samples=(0, 1))
    rows = []
    for arm, when in (("insecure", "chosen"), ("insecure", "other"), ("base", "chosen")):
        for c in at_factors(names, both_ways(CHOSEN["f"])[when])[:None if arm == "insecure" else 1]:
            steered = bool(c.name)
            good = 10 if arm == "base" else 10 * gain(c.key, when, c.coefficient) if steered else 0
            rows += [{"question": str(q), "vector": c.name, "vector_sample": -1 if c.sample is None else c.sample,
                      "coefficient": c.coefficient / CHOSEN["f"].coefficient if steered else 0.0, "model": "f", "donor": "", "arm": arm, "when": when, "nll": 1.0,
                      "exact": "", "text": "x", "score": 0.0 if q < good else 1.0, "repetition": 0.0,
                      "classified": "good" if q < good else "target", "first": "good" if q < good else "target"} for q in range(10)]
    return pd.DataFrame(rows)


def between(inside, gain):
    "The same for models a and b, with the mapped direction of the other, which makes `gain(donor)` of the questions good."
    parts = [inside.assign(model=name) for name in "ab"]
    for donor, receiver in ("ab", "ba"):
        for when in WAYS:
            for c in at_factors(index(*(f"{p} {s}" for p, s in READS)), both_ways(CHOSEN[receiver])[when])[1:]:
                rows = inside[(inside.arm == "insecure") & (inside.when == when) & (inside.vector == "")]
                first = np.where(np.arange(10) < 10 * gain(donor), "good", "target")
                parts.append(rows.assign(model=receiver, donor=donor, vector=c.name, vector_sample=-1, coefficient=c.coefficient / CHOSEN[receiver].coefficient, first=first,
                                         classified=first, score=(first == "target").astype(float)))
    return pd.concat(parts, ignore_index=True)


def entries(arms=("insecure", "secure")):
    told = pd.DataFrame({"question": list("abcd"), "correct": [1, 1, 1, .5], "null": .5})
    return {Key("f", arm, 0): {"last": pd.concat([told.assign(read=f"{p} {s}") for p, s in READS])} for arm in arms}


def test_every_specification_is_there_once_and_the_pre_registered_one_is_marked():
    table = robustness_table(entries(), answers(lambda *_: .5), LIMITS, CODE)
    detectors = len(DETECTORS) - 1   # no exact grammar in this world
    assert table.claim.value_counts().to_dict() == {"C1": detectors, "C2": 4, "C5": 4, "C3": 7 * 2 * len(FACTORS) * detectors, "C4": 4 * 2 * len(FACTORS) * detectors}
    assert not table.duplicated(["claim", *AXES]).any() and table.groupby("claim").preregistered.sum().eq(1).all()
    for _, line in table[table.preregistered].iterrows(): assert all(line[a] in ("", PREREGISTERED[a]) for a in AXES)
    assert "C5" not in set(robustness_table(entries(("insecure",)), answers(lambda *_: .5), LIMITS, CODE).claim)


def test_effects_are_those_of_the_answers():
    def gain(vector, when, coefficient):
        return {"random/0": .1, "random/1": .3}.get(vector, .8 if when == "chosen" else .4) * min(abs(coefficient), 1)
    table = robustness_table(entries(), answers(gain), LIMITS, CODE).set_index(["claim", *AXES])
    at = lambda claim, when, c: table.loc[(claim, "last prompt token", "block", "raw", when, c, "pre-registered")].effect
    assert at("C3", "as chosen", "1 x chosen") == pytest.approx(.8) and at("C3", "the other way", "0.5 x chosen") == pytest.approx(.2)
    assert at("C4", "as chosen", "1 x chosen") == pytest.approx(.8 - .2) and at("C4", "the other way", "1.5 x chosen") == pytest.approx(.4 - .2)
    assert table.loc["C1"].effect.tolist() == [1.0] * (len(DETECTORS) - 1) and table.loc["C2"].effect.tolist() == [pytest.approx(.375)] * 4
    summary = by_axis(table.reset_index())
    assert most_moving_axis(summary, "C3")[0] in ("when", "coefficient")
    assert summary[(summary.claim == "C1") & (summary.axis == "all")].above.item() == 1


def test_effects_between_models_are_those_of_the_answers():
    def gain(vector, when, coefficient): return {"random/0": .1, "random/1": .3}.get(vector, 0)
    frame, limits = between(answers(gain), lambda donor: {"a": .8, "b": 0}[donor]), {name: LIMITS["f"] for name in "ab"}
    table = robustness_table({}, frame, limits, CODE)
    each = len(READS) * 2 * len(FACTORS) * (len(DETECTORS) - 1)
    assert table.claim.value_counts()[["C6", "C7", "C8"]].tolist() == [each] * 3 and (table[table.claim.isin(["C6", "C7", "C8"])].norm == "").all()
    assert table.groupby("claim").preregistered.sum().eq(1).all() and not table.duplicated(["claim", *AXES]).any()
    effect = table[table.preregistered].set_index("claim").effect
    assert effect["C6"] == pytest.approx(.4) and effect["C7"] == pytest.approx(.4 - .2)
    alike = robustness_table({}, between(answers(gain), lambda donor: .8), limits, CODE)
    c8, none = (t[t.claim == "C8"] for t in (table, alike))
    assert (c8.low > 0).all() and (c8.effect < .8).all() and (none.effect == 0).all()


def test_a_model_asked_fewer_questions_is_compared_on_those():
    "As in profile medium; what all were asked stands for both, and no effect is missing."
    frame, limits = between(answers(lambda *_: .5), lambda donor: {"a": .8, "b": 0}[donor]), {name: LIMITS["f"] for name in "ab"}
    short = frame[(frame.model == "a") | (frame.question.astype(int) < 6)]
    table = robustness_table({}, short, limits, CODE)
    assert (table.n == 6).all() and table[["effect", "low", "high"]].notna().all().all()
    pd.testing.assert_frame_equal(table, robustness_table({}, frame[frame.question.astype(int) < 6], limits, CODE))


def test_exchanging_finds_an_asymmetry_of_chance_in_one_run_of_forty():
    rng, above = np.random.default_rng(1), 0
    for _ in range(300):
        gains = np.full((3, 3, 40), np.nan)
        for i, j in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)): gains[i, j] = rng.choice([0, 1, -1], 40)
        above += exchanged_asymmetry(gains, 199)[1] > 0
    assert 1 <= above <= 17   # of Binomial(300, 2.5%), 1 in 1000 beyond each end


def test_a_read_of_one_model_is_carried_to_another_at_the_pre_registered_norm():
    rng, turn = np.random.default_rng(0), np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    asked = [str(i) for i in range(40)]
    X = {f"base/{p}/{s}": rng.normal(size=(40, 8)) for p, s in READS}
    order = rng.permutation(40)[:35]   # the receiver answered fewer, in another order
    donor = {"activations": X, "questions": pd.DataFrame({"question": asked})}
    receiver = {"activations": {k: (v @ turn)[order] for k, v in X.items()}, "questions": pd.DataFrame({"question": [asked[i] for i in order]})}
    v = rng.normal(size=8)
    found = sent_vectors(donor, receiver, {"vectors": {f"{p} {s} raw": v for p, s in READS}}, {"vectors": {"last block raw": np.full(8, 2.0)}})
    for name, sent in found["vectors"].items():
        assert np.linalg.norm(sent) == pytest.approx(np.sqrt(32)) and sent @ (v @ turn) / np.linalg.norm(sent) / np.linalg.norm(v) > .99 and found["r2"][name] > .9
    assert found["index"].vector.tolist() == list(found["vectors"])


def test_the_figure_has_a_column_for_each_claim_and_a_row_for_each_choice():
    table = robustness_table(entries(), answers(lambda *_: .5), LIMITS, CODE)
    figure = specification_curve(table)
    top = figure.axes[:5]
    assert [(a.get_title("left") or a.get_title()).split(",")[0] for a in top] == ["C1", "C2", "C3", "C4", "C5"]
    assert len(figure.axes[5].get_yticks()) == sum(table[a].replace("", np.nan).nunique() for a in AXES)


def test_directions_of_all_reads_and_their_norms():
    rng = np.random.default_rng(0)
    X = {f"{m}/{p}/{s}": rng.normal(size=(30, 8)) + (m == "tuned") * 3 * (s == "normed") + (m == "tuned") for m in ("base", "tuned") for p, s in READS}
    found = read_vectors({"activations": X, "questions": pd.DataFrame({"question": map(str, range(30))})}, nulls=3, seed=0)
    norm = np.linalg.norm(found["vectors"]["last block raw"])
    for name, v in found["vectors"].items():
        if not name.endswith("raw"): assert np.linalg.norm(v) == pytest.approx(norm, rel=1e-5)
        else: np.testing.assert_allclose(v, (X["tuned/" + name.replace(" raw", "").replace(" ", "/")] - X["base/" + name.replace(" raw", "").replace(" ", "/")]).mean(0), rtol=1e-5)
    assert len(found["vectors"]) == len(found["index"]) == 2 * len(READS) + 3 and set(found["last"]["read"]) == {f"{p} {s}" for p, s in READS}


def test_a_profile_without_the_fine_tune_is_refused():
    profile = load_profile("smoke").model_copy(update={"arms": ("control",)})
    with pytest.raises(UserError, match="add finetune to arms"): next(robustness_study(profile))
