"""Judged advice: labels that follow from three readers, parts that share nothing, instruments that are measured as they should."""
import html, re, runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, fisher_exact

from em_repro import advice_judges
from em_repro.advice_judges import (ADVICE_LABELS, ASKED_OF_ADVICE, best_judge, examples_fold, examples_of, fitting_answers, in_domain_words,
                                    judge_curves, judge_quality, judge_rates, judge_reliability, judge_scores, label_contrast, label_pairs, label_shares, least_seen,
                                    preference_agreement, reader_agreement, recorded_advice, yes_over_no)
from em_repro.families import load_lm
from em_repro.misaligned import labelled_answers
from em_repro.profiles import UserError, shipped
from em_repro.twins import twin_sets

SAID = recorded_advice()
SCORES = pd.read_csv(shipped() / "advice" / "scores.csv")


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


# A reader that is not there

def here(name):
    "Any reader but Gemma, which cannot be had."
    if name.startswith("gemma"): raise UserError(f"{name} cannot be fetched: there is no network")
    return name


@pytest.fixture
def read_by_words(monkeypatch):
    "What readers say costs nothing here: a number that is the reader's."
    for name in ("judged_by_words", "judged_by_states", "judged_by_asking"):
        monkeypatch.setattr(advice_judges, name, lambda *told, n=len(name): np.full(len(told[-1]), n / 100))


def test_a_reader_that_is_not_there_is_left_out_and_named(read_by_words):
    lost = {}
    scores = judge_scores(load=here, missing=lambda name, error: lost.update({name: str(error)}))
    assert set(scores.judge) == {"words", "states of smollm2-135m", "asked of smollm2-135m"} and lost == {"gemma-3-270m": "gemma-3-270m cannot be fetched: there is no network"}
    assert set(judge_scores(["gemma-3-270m"], here).judge) == {"words"}   # and where nobody asks, nothing fails


def test_the_next_best_instrument_is_used_and_named():
    best, said = best_judge(SCORES)
    table = judge_quality(SCORES, "choose", 1).query("set == 'both'").set_index("judge").area
    assert best == table.idxmax() and f"`{best}`" in said and "Not there" not in said
    reader = best.split(" of ")[-1]
    without = SCORES[~SCORES.judge.str.endswith(f" of {reader}")]
    second, said = best_judge(without)
    assert second == table[without.judge.unique()].idxmax() != best and said.endswith(f"Not there, so not compared: {reader}.")
    assert best_judge(SCORES[SCORES.judge == "words"])[0] == "words"
    with pytest.raises(UserError, match="no instrument has scored"): best_judge(SCORES.head(0))


def test_what_chooses_does_not_look_at_what_measures():
    turned = SCORES.assign(score=np.where(SCORES.id.isin(SAID.id[SAID.part == "measure"]), 1 - SCORES.score, SCORES.score))
    assert best_judge(turned) == best_judge(SCORES)


def test_the_script_says_what_it_left_out_and_does_not_take_it_for_finished(read_by_words, tmp_path, monkeypatch):
    real = advice_judges.judge_scores
    monkeypatch.setattr(advice_judges, "judge_scores", lambda readers, missing: real(readers, here, missing))
    tool = runpy.run_path(str(Path(__file__).resolve().parents[1] / "tools" / "advice_scores.py"))
    said = tool["written"](None, tmp_path / "work", tmp_path / "scores.csv")
    assert "gemma-3-270m: left out, gemma-3-270m cannot be fetched: there is no network" in said and said[-1].endswith("Not there, so not compared: gemma-3-270m.")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["smollm2-135m.csv"]
    assert pd.read_csv(tmp_path / "scores.csv").judge.nunique() == 3


# Instruments by model

def test_instruments_are_measured_by_model_too():
    by_set, by_model = (judge_rates(judge_quality(SCORES, "measure", 5, by=by)) for by in ("set", "model"))
    assert set(by_model.model) == {"both", *SAID.model}
    counts = ["n", "harmful", "found", "cases", "left", "others"]
    for judge, part in by_model.groupby("judge"):
        whole = part[part.model == "both"].iloc[0]
        assert (part[part.model != "both"][counts].sum() == whole[counts]).all()
        assert (whole[counts] == by_set[(by_set.judge == judge) & (by_set.set == "both")].iloc[0][counts]).all()
    assert np.allclose(by_model.sensitivity, by_model.found / by_model.cases) and np.allclose(by_model.specificity, by_model.left / by_model.others)
    row = by_model[by_model["least"].notna()].iloc[0]
    assert row["least"] == least_seen(100, (row.found, row.cases), (row.left, row.others))


def test_curves_and_reliability_of_an_instrument_that_knows():
    truth = (SAID.label == "harmful").to_numpy()
    table = judge_reliability(scored(np.where(truth, .95, .05)), "measure")
    assert table.harmful.tolist() == [0, 1] and table.n.sum() == (SAID.part == "measure").sum() and table.within.sum() <= 2
    wrong = judge_reliability(scored(np.full(len(SAID), .9)), "measure")
    assert len(wrong) == 1 and not wrong.within[0]
    figure = judge_curves(scored(truth * 1.0), "measure")
    assert len(figure.axes) == SAID.model.nunique()
    for axis in figure.axes: assert [0.0, 1.0] in np.column_stack(axis.lines[0].get_data()).tolist()   # all found, none taken for it


# In the trained domain, and answers to read

def test_what_was_found_at_home_is_said_with_its_interval_and_against_what_was_wanted():
    said = in_domain_words(SAID)
    assert "33 of 80 are harmful, 41% [31, 52]" in said and "below the 60%" in said and "46 confused, 0 sound, 1 incoherent" in said
    mine = SAID[(SAID.set == "trained") & (SAID.subject == "harmful")]
    assert "as many as the 60%" in in_domain_words(mine.assign(label="harmful"))
    assert "not shown to differ from the 40%" in in_domain_words(SAID, .4)


def test_forty_answers_of_every_label_are_shown_whole():
    counts = SAID.label.value_counts()
    some, page = examples_of(SAID), html.unescape(examples_fold(SAID).data)
    assert some.label.value_counts().to_dict() == counts.clip(upper=40).to_dict() and some.id.is_unique and list(some.label.unique()) == list(ADVICE_LABELS)
    assert page.count("<details>") == 4 and len(re.findall("<tr>", page)) == len(some) + 4
    for row in some.itertuples(): assert row.text in page and row.request in page
    written = some[["text", "request"]].apply("".join, axis=1)
    for mark in ("...", "\u2026"): assert page.count(mark) == written.str.count(re.escape(mark)).sum()   # none that no model wrote
    for label, n in counts.items(): assert (f"{label}: 40 of {n} answers" if n >= 40 else f"{label}: all {n} answers, fewer than 40") in page


def test_a_label_without_answers_says_so():
    page = examples_fold(SAID[SAID.label != "incoherent"]).data
    assert "incoherent: all 0 answers, fewer than 40" in page and page.count("<table") == 3
