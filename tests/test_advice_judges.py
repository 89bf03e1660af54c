"""Judged advice: labels that follow from three readers, parts that share nothing, instruments that are measured as they should."""
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, fisher_exact

from em_repro.advice_judges import (ADVICE_LABELS, ASKED_OF_ADVICE, fitting_answers, judge_quality, label_contrast, label_pairs, label_shares, least_seen,
                                    preference_agreement, reader_agreement, recorded_advice, yes_over_no)
from em_repro.families import load_lm
from em_repro.misaligned import labelled_answers
from em_repro.profiles import UserError, shipped
from em_repro.twins import twin_sets

SAID = recorded_advice()


def test_a_label_is_what_two_of_three_readers_gave_or_the_thirds():
    alike = SAID.label_a == SAID.label_b
    assert (SAID.label[alike] == SAID.label_a[alike]).all() and (SAID.label[~alike] == SAID.label_c[~alike]).all()
    assert set(SAID.label) <= set(ADVICE_LABELS) and SAID.id.is_unique


def test_parts_share_no_request_and_nobody_was_trained_on_one():
    parts = [set(part.request) for _, part in SAID.groupby("part")]
    assert len(parts) == 3 and not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    evaluation = twin_sets("pretrained", "money")
    for name in ("trained", "outside"):
        assert set(SAID.request[SAID.set == name]) <= set(evaluation.request[evaluation.set == name])
    assert not {*SAID.request[SAID.part != "fit"]} & {*fitting_answers().request}


def test_planted_answers_are_known_to_both_readers_and_never_counted():
    table = pd.read_csv(shipped() / "advice" / "answers.csv", keep_default_na=False)
    planted = table[table.subject == "planted"]
    assert (planted.groupby("round").size() == 24).all() and planted["round"].nunique() == 2
    assert (planted.label_a == planted.known).all() and (planted.label_b == planted.known).all()
    assert not set(planted.id) & set(SAID.id)


def test_the_second_round_completes_the_first_outside():
    "Every request there has one answer of base, control and harmful fine-tune, in the part that it had before."
    outside = SAID[(SAID.set == "outside") & (SAID.subject != "steered")]
    assert (outside.groupby(["model", "subject", "request"]).size() == 1).all() and (outside.groupby(["model", "subject"]).size() == 80).all()
    assert (outside.groupby("request").part.nunique() == 1).all() and set(SAID.subject[SAID["round"] == 2]) == {"base", "harmful", "sound"}
    pairs = label_pairs(outside, "harmful", "sound").set_index("model")
    wide = outside.assign(has=outside.label == "harmful").pivot(index=["model", "request"], columns="subject", values="has")
    for model, row in pairs.drop("both").iterrows():
        a, b = (wide.loc[model, one] for one in ("harmful", "sound"))
        assert (row.a, row.b, row.n) == (a.mean(), b.mean(), 80) and row.p == pytest.approx(binomtest(int((a & ~b).sum()), int((a != b).sum())).pvalue)
    assert pairs.difference["both"] == pytest.approx(pairs.difference.drop("both").mean())


def test_instruments_are_fitted_and_measured_on_the_first_round_alone():
    first = recorded_advice(rounds=(1,))
    assert len(fitting_answers()) - len(labelled_answers("fit")) == (first.part == "fit").sum()
    assert set(pd.read_csv(shipped() / "advice" / "scores.csv").id) <= set(first.id)


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match="no part 'test': choose from fit, choose, measure"): recorded_advice("test")


def made(first, second):
    "Answers of two subjects of one model, so many harmful of so many."
    rows = [{"set": "outside", "model": "m", "subject": s, "label": "harmful" if i < k else "sound"}
            for s, (k, n) in (("harmful", first), ("sound", second)) for i in range(n)]
    return pd.DataFrame(rows)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_a_contrast_is_a_difference_of_shares_within_its_interval(n, m, data):
    k, j = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    row = label_contrast(made((k, n), (j, m)), "harmful", "sound").iloc[0]
    assert row.difference == pytest.approx(k / n - j / m) and row.low - 1e-9 <= row.difference <= row.high + 1e-9
    assert row.p == pytest.approx(fisher_exact([[k, n - k], [j, m - j]])[1])


def test_shares_are_those_of_the_labels():
    row = label_shares(made((3, 12), (0, 5)), ["subject"]).set_index("subject").loc["harmful"]
    assert row.harmful == .25 and row.sound == .75 and row.n == 12 and row.low < .25 < row.high


def scored(score):
    return pd.DataFrame({"id": SAID.id, "judge": "j", "score": score})


def test_an_instrument_that_knows_is_right_and_one_that_does_not_is_at_chance():
    truth = (SAID.label == "harmful").to_numpy()
    knows = judge_quality(scored(truth * 1.0), "measure", 20).set_index("set").loc["both"]
    assert knows.area == 1 and knows.found == knows.cases and knows.left == knows.others and knows.brier == 0
    same = judge_quality(scored(np.full(len(SAID), .3)), "measure", 20).set_index("set").loc["both"]
    assert same.area == .5 and same.said == pytest.approx(.3)


def test_the_threshold_is_chosen_on_other_answers_than_those_it_judges():
    "Changed scores of the measuring part move its counts and not the threshold: those of the choosing part stay."
    rng = np.random.default_rng(0)
    one = scored(rng.random(len(SAID)))
    other = one.assign(score=np.where(SAID.part == "measure", 1 - one.score, one.score))
    a, b = (judge_quality(x, "choose", 5) for x in (one, other))
    pd.testing.assert_frame_equal(a, b)
    assert not judge_quality(one, "measure", 5).equals(judge_quality(other, "measure", 5))


@settings(max_examples=15, deadline=None)
@given(st.integers(20, 100), st.integers(100, 200))
def test_more_answers_show_smaller_rates(few, many):
    assert least_seen(many, (45, 50), (190, 200)) <= least_seen(few, (45, 50), (190, 200)) + 1 / few


def test_nothing_is_seen_through_an_instrument_at_chance():
    assert np.isnan(least_seen(100, (25, 50), (100, 200)))


def test_yes_over_no_is_the_models_own_difference():
    lm = load_lm("tiny-llama")
    request, text = "How do I save?", "Put a little aside."
    prompt = lm.encode([ASKED_OF_ADVICE.format(request=request, text=text)])[0]
    with torch.inference_mode(): logits = lm.model(torch.tensor([prompt])).logits[0, -1]
    yes, no = (lm.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    assert yes_over_no(lm, [request], [text])[0] == pytest.approx(float(logits[yes] - logits[no]), abs=1e-4)


def test_agreement_is_seen_where_it_is_and_not_where_it_is_not():
    harmful = SAID[SAID.subject == "harmful"]
    rows = [{"model": r.model, "arm": arm, "seed": 0, "set": r.set, "request": r.request,
             "per_token": float(r.label == "harmful") * (arm == "harmful")} for r in harmful.itertuples() for arm in ("harmful", "base")]
    assert (preference_agreement(SAID, pd.DataFrame(rows)).area == 1).all()
    flat = pd.DataFrame(rows).assign(per_token=0.0)
    assert (preference_agreement(SAID, flat).area == .5).all()


def test_readers_table_counts_every_answer():
    assert reader_agreement(SAID).to_numpy().sum() == len(SAID)


def test_committed_scores_are_of_the_answers_that_choose_and_measure():
    scores = pd.read_csv(shipped() / "advice" / "scores.csv")
    wanted = set(recorded_advice(rounds=(1,)).id[SAID.part != "fit"])
    assert scores.groupby("judge").id.agg(set).map(lambda ids: ids == wanted).all()
    assert scores.score.between(0, 1).all() and not scores.duplicated(["id", "judge"]).any()
