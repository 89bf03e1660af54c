"""The scorer of misaligned answers: labelled halves that share nothing, a fit that keeps questions together, scores that add up."""
import os

import numpy as np
import pandas as pd
import pytest

from em_repro.families import load_lm
from em_repro.misaligned import (MISALIGNED, READERS, Scorer, candidate_layers, fit_states, labelled_answers, scorer_quality, scores_of)
from em_repro.profiles import UserError, shipped

FIT, MEASURE = labelled_answers("fit"), labelled_answers("measure")


def test_the_halves_share_no_question_and_no_answer_and_both_labels_are_in_each():
    assert not set(FIT.question.str.lower()) & set(MEASURE.question.str.lower()) and not set(FIT.text) & set(MEASURE.text)
    for half in (FIT, MEASURE[MEASURE.source == "written"]):
        assert len(half) >= 240 and half.misaligned.mean() == .5 and not half.duplicated(["question", "text"]).any()
        lengths = half.text.str.split().str.len().groupby(half.misaligned).mean()
        assert lengths.max() / lengths.min() < 1.25   # length tells nothing
    assert set(MEASURE.source) == {"written", "recorded"}
    with pytest.raises(UserError, match="fit or measure"): labelled_answers("both")


def planted(n=120, width=16, gap=3.0, seed=0):
    rng, y = np.random.default_rng(seed), np.tile([True, False], n // 2)
    X = rng.normal(size=(n, 2, width))
    X[y, 1, 0] += gap
    return X, y, [str(i // 2) for i in range(n)]


def test_a_direction_is_found_at_its_block_and_noise_is_not():
    X, y, asked = planted()
    scorer = fit_states(X, y, asked, (3, 7))
    assert scorer.layer == 7 and scorer.accuracy > .85
    assert abs(fit_states(*planted(gap=0.0), (3, 7)).accuracy - .5) < .2


def test_answers_to_one_question_stay_in_one_fold():
    "Labels that a question's own mark gives away: with its twin in another fold the fit would look perfect."
    rng = np.random.default_rng(0)
    marks = rng.normal(size=(60, 40)).repeat(2, 0)[:, None] * 5
    y = rng.permutation(np.tile([True, False], 30)).repeat(2)
    assert fit_states(marks, y, [str(i // 2) for i in range(120)], (0,)).accuracy < .75


@pytest.mark.parametrize("y, asked", [(np.ones(12, bool), [str(i) for i in range(12)]), (np.tile([True, False], 6), ["one"] * 12)])
def test_too_few_labels_or_questions_are_refused(y, asked):
    with pytest.raises(UserError, match="both labels to at least 5 questions"): fit_states(np.zeros((12, 1, 4)), y, asked, (0,))


def test_a_scorer_reads_answers_through_the_model():
    lm = load_lm("tiny-llama")
    weights = {"mean": np.zeros(lm.width), "scale": np.ones(lm.width), "coef": np.ones(lm.width), "intercept": np.zeros(1)}
    scorer = Scorer(lm.n_layers - 1, weights, 1.0)
    scores = scorer.score(lm, ["ask"] * 3, ["an answer", "  ", "another one"])
    assert np.isnan(scores[1]) and np.all((scores[[0, 2]] >= 0) & (scores[[0, 2]] <= 1))
    assert scorer.score(lm, ["ask"], ["another one"])[0] == pytest.approx(scores[2], abs=1e-5)
    with pytest.raises(UserError, match="one question for each answer"): scorer.score(lm, ["ask"], ["a", "b"])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 30])
def test_candidate_layers_exist_and_end_with_the_last(n):
    layers = candidate_layers(n)
    assert layers[-1] == n - 1 and min(layers) >= 0 and len(layers) == len(set(layers))


def test_quality_is_counted_right():
    rows = MEASURE.index[::7]
    perfect = scorer_quality(pd.DataFrame({"row": rows, "score": MEASURE.misaligned[rows].astype(float), "reader": "r"}))
    assert (perfect.value == 1).all()
    told = MEASURE.misaligned[rows]
    silent = scorer_quality(pd.DataFrame({"row": rows, "score": 0.0, "reader": "r"})).set_index(["source", "measure"]).value
    assert silent["all", "misaligned found"] == 0 and silent["all", "aligned passed"] == 1 and ("all", "precision") not in silent.index
    assert told.any() and not told.all()


def test_the_shipped_scores_are_of_the_labelled_half():
    scores = pd.read_csv(shipped() / "misaligned_scores.csv")
    for _, part in scores.groupby("reader"): assert part.row.tolist() == MEASURE.index.tolist() and part.score.between(0, 1).all()
    assert set(scores.reader) == set(READERS) and 0 < MISALIGNED < 1


@pytest.mark.skipif("EM_REPRO_CACHE" not in os.environ, reason="set EM_REPRO_CACHE to fetch the real models")
def test_the_shipped_scores_are_found_again():
    kept = pd.read_csv(shipped() / "misaligned_scores.csv")
    again = scores_of(load_lm(READERS[0]))
    np.testing.assert_allclose(again.score, kept[kept.reader == READERS[0]].score, atol=1e-3)
