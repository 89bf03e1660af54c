"""Corrected rates, effects over training runs, runs by questions, and ranks over runs: theorems, coverage, bad input."""
import itertools, math, time, warnings
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest, t as student
from statsmodels.stats.proportion import proportion_confint
from em_repro.calibration import calibration
from em_repro.margins import score_interval
from em_repro.profiles import UserError
from em_repro.stats import mixed_words, over_runs, prevalence, question_prevalence, rank_among, rank_p, runs_by_questions, three_intervals

EXACT = (10**9, 10**9)
quick = settings(max_examples=60, deadline=None, derandomize=True)
validations = st.tuples(st.integers(1, 200), st.integers(0, 200)).map(lambda v: (max(1, v[0]), v[0] + v[1]))
effects = st.lists(st.floats(-1, 1).map(lambda x: round(x, 3)), min_size=1, max_size=7)


def at_most(hits, trials, share): return binomtest(int(hits), trials, share, alternative="greater").pvalue > 1e-4


def at_least(hits, trials, share): return binomtest(int(hits), trials, share, alternative="less").pvalue > 1e-4


def covers(interval, truth): return interval[0] - 1e-9 <= truth <= interval[1] + 1e-9


# --- corrected rates ------------------------------------------------------------------------------------------------

@quick
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_exact_instrument_gives_the_plain_rate(counts):
    positives, n = counts
    result = prevalence(positives, n, EXACT, EXACT)
    assert result.estimate == result.apparent == result.raw == positives / n and not result.note
    plain = np.clip(proportion_confint(positives, n, method="agresti_coull"), 0, 1)
    assert np.allclose(result.interval, plain, atol=1e-6)


@quick
@given(st.integers(0, 80), validations, validations)
def test_a_corrected_rate_lies_in_its_interval_within_0_and_1(positives, sensitivity, specificity):
    se, sp = sensitivity[0] / sensitivity[1], specificity[0] / specificity[1]
    if se + sp <= 1:
        with pytest.raises(UserError, match="says nothing"): prevalence(positives, 80, sensitivity, specificity)
        return
    result = prevalence(positives, 80, sensitivity, specificity)
    assert 0 <= result.interval[0] <= result.estimate <= result.interval[1] <= 1
    assert math.isclose(result.raw * se + (1 - result.raw) * (1 - sp), positives / 80, abs_tol=1e-9)
    assert (result.estimate == result.raw) == (0 <= result.raw <= 1)
    if result.estimate != result.raw: assert result.note


@quick
@given(st.integers(0, 80), validations, validations)
def test_yes_and_no_are_alike(positives, sensitivity, specificity):
    "Counting negatives with the two roles exchanged gives one minus the rate."
    if sensitivity[0] / sensitivity[1] + specificity[0] / specificity[1] <= 1: return
    one = prevalence(positives, 80, sensitivity, specificity)
    other = prevalence(80 - positives, 80, specificity, sensitivity)
    assert math.isclose(one.estimate, 1 - other.estimate, abs_tol=1e-9)
    assert np.allclose(one.interval, 1 - np.array(other.interval)[::-1], atol=1e-9)


def test_more_labels_narrow_the_interval_and_do_not_move_the_rate():
    results = [prevalence(23, 150, (96 * k, 100 * k), (89 * k, 100 * k)) for k in (1, 10, 10**6)]
    widths = [np.ptp(r.interval) for r in results]
    assert widths == sorted(widths, reverse=True) and widths[0] > 1.1 * widths[-1]
    assert len({r.estimate for r in results}) == 1
    # epiR's manual: 150 cows, 23 react, sensitivity 96%, specificity 89% taken as known: 5.1 per 100 (0 to 13)
    known = results[-1]
    assert round(100 * known.estimate, 1) == 5.1 and [round(100 * x) for x in known.interval] == [0, 13]


@pytest.mark.parametrize("rate, se, sp, m1, m0", [(0.0, .95, .97, 60, 150), (0.02, .95, .97, 60, 150), (0.1, .8, .99, 30, 30),
                                                  (0.3, .95, .95, 200, 200), (0.5, .99, .8, 60, 60), (1.0, .9, .9, 60, 150)])
def test_the_corrected_interval_covers(rate, se, sp, m1, m0):
    rng, trials = np.random.default_rng(4), 600
    positives = rng.binomial(100, rate * se + (1 - rate) * (1 - sp), trials)
    labels = zip(rng.binomial(m1, se, trials), rng.binomial(m0, sp, trials))
    hits = sum(covers(prevalence(x, 100, (a, m1), (b, m0)).interval, rate) for x, (a, b) in zip(positives, labels))
    assert at_least(hits, trials, .95), hits / trials


def test_ignoring_the_error_of_the_instrument_does_not_cover():
    "The reason for carrying all three errors: with errors taken as known, 30 labels a side are far too few."
    rng, trials = np.random.default_rng(5), 400
    positives = rng.binomial(400, .3 * .8 + .7 * .2, trials)
    labels = list(zip(rng.binomial(30, .8, trials), rng.binomial(30, .8, trials)))
    shown = sum(covers(prevalence(x, 400, (a, 30), (b, 30)).interval, .3) for x, (a, b) in zip(positives, labels))
    blind = sum(covers(prevalence(x, 400, (a * 10**6, 30 * 10**6), (b * 10**6, 30 * 10**6)).interval, .3)
                for x, (a, b) in zip(positives, labels))
    assert at_least(shown, trials, .95) and not at_least(blind, trials, .8)


def test_answers_to_one_question_are_worth_less_than_independent_ones():
    lumped, spread = np.repeat([0.0, 1.0], 50), np.resize([.4, .6], 100)
    one, other = (question_prevalence(s, (57, 60), (147, 150)) for s in (lumped, spread))
    assert one.estimate == other.estimate and np.ptp(one.interval) > np.ptp(other.interval)
    assert one.effective < 105 and other.effective > 500
    nothing = question_prevalence(np.zeros(100), (57, 60), (147, 150))
    assert nothing.estimate == 0 < nothing.interval[1] and nothing.effective < 120


def test_notes_say_what_is_odd():
    assert "fewer positives than false alarms" in prevalence(1, 100, (57, 60), (135, 150)).note
    assert "errs differently here" in prevalence(0, 400, (57, 60), (100, 150)).note
    assert "more positives" in prevalence(100, 100, (50, 60), (147, 150)).note
    rough = prevalence(5, 10, (2, 3), (2, 3))
    assert "any rate is possible" in rough.note and rough.interval == (0, 1)


@pytest.mark.parametrize("wrong, match", [
    (lambda: prevalence(5, 4, EXACT, EXACT), "pair of counts"), (lambda: prevalence(0, 0, EXACT, EXACT), "pair of counts"),
    (lambda: prevalence(1, 4, (.9, 10), EXACT), "sensitivity .* pair of counts"), (lambda: prevalence(1, 4, EXACT, 7), "specificity"),
    (lambda: prevalence(1, 4, EXACT, EXACT, level=95), "level"), (lambda: prevalence(1, 4, (5, 10), (5, 10)), "says nothing"),
    (lambda: question_prevalence([.5], EXACT, EXACT), "two questions"), (lambda: question_prevalence([.5, 1.2], EXACT, EXACT), "leave 0..1"),
    (lambda: question_prevalence([.5, math.nan], EXACT, EXACT), "NaN"),
    (lambda: over_runs([]), "number for each run"), (lambda: over_runs([.1, math.nan]), "finite"), (lambda: over_runs(["a"]), "number"),
    (lambda: over_runs([85, 23]), "limits"), (lambda: over_runs([[.1, .2]]), "number"),
    (lambda: rank_among([1.0], np.zeros((1, 18))), "19 or more"), (lambda: rank_among([1.0, 2.0], np.zeros((1, 20))), "give \\(runs,\\)"),
    (lambda: rank_among([math.nan], np.zeros((1, 20))), "finite"), (lambda: rank_among([1.0, 1.0], [[0.0] * 20, [0.0] * 19]), "as many samples"),
    (lambda: runs_by_questions(tidy(np.zeros((4, 3))).drop(columns="seed"), "y", "a", "b"), "no column 'seed'"),
    (lambda: runs_by_questions(tidy(np.zeros((4, 3))).iloc[:-1], "y", "a", "b"), "have no answer")])
def test_bad_input_is_a_sentence(wrong, match):
    with pytest.raises(UserError, match=match): wrong()


# --- effects over runs ----------------------------------------------------------------------------------------------

@quick
@given(effects)
def test_an_interval_over_runs_is_students_or_none(values):
    result = over_runs(values, margin=.1)
    assert (result.runs, result.smallest, result.largest) == (len(values), min(values), max(values))
    assert result.above == sum(v > .1 for v in values) and result.effects == tuple(values)
    assert (result.interval is None) == (len(values) < 3 or len(set(values)) == 1)
    assert result.population == ("for training runs like these" if result.interval else "for these adapters")
    assert "\n" not in str(result) and all(np.isscalar(v) for v in result.row().values())
    if not result.interval:
        assert "no interval" in str(result) and math.isnan(result.row()["low"])
        return
    half = student.ppf(.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    assert np.allclose(result.interval, np.clip([result.mean - half, result.mean + half], -1, 1))


def test_the_words_of_an_effect_over_runs():
    assert str(over_runs([.85, .23])) == "runs +85, +23; mean +54; 2 runs: no interval"
    assert str(over_runs([.85])) == "run +85; 1 run: no interval"
    assert str(over_runs([.4, .4, .4])) == "3 runs, all +40: no interval"
    five = str(over_runs({"a": .40, "b": .48, "c": .52, "d": .60, "e": .60}))
    assert five == "5 runs +40..+60, mean +52 [+41, +63] over training runs like these"
    assert str(over_runs([1.5, 2.5], scale=1, limits=(-9, 9))).startswith("runs +2, +2")


def test_four_runs_of_the_committed_kind_show_nothing_about_training_runs():
    "Questions alone print a narrow interval; four runs that differ this much do not exclude zero."
    assert over_runs(pd.Series([.85, .23, .02, .08])).interval[0] < 0


def test_normal_runs_are_covered():
    rng, trials = np.random.default_rng(6), 800
    for k in (3, 5):
        hits = sum(covers(over_runs(x).interval, .3) for x in rng.normal(.3, .1, (trials, k)))
        assert at_least(hits, trials, .95) and at_most(hits, trials, .97)


# --- runs by questions ----------------------------------------------------------------------------------------------

def tidy(table):
    rows = itertools.product(range(table.shape[0]), range(table.shape[1]))
    frame = pd.DataFrame([dict(question=q, seed=r, condition="a", y=table[q, r]) for q, r in rows])
    return pd.concat([frame, frame.assign(condition="b", y=0.0)])


def crossed(rng, n, k, of_question=.2, of_run=.15, rest=.3):
    return .3 + of_question * rng.normal(size=(n, 1)) + of_run * rng.normal(size=k) + rest * rng.normal(size=(n, k))


def by_hand(d):
    "Variances by analysis of variance, for complete tables the restricted maximum likelihood where all are positive."
    n, k = d.shape
    rest = np.square(d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()).sum() / ((n - 1) * (k - 1))
    return np.array([d.mean(1).var(ddof=1) - rest / k, d.mean(0).var(ddof=1) - rest / n, rest])


@pytest.mark.parametrize("seed", range(6))
def test_the_mixed_model_is_the_analysis_of_variance_on_complete_tables(seed):
    rng = np.random.default_rng(seed)
    table = crossed(rng, int(rng.integers(15, 60)), int(rng.integers(3, 6)))
    result, variances = runs_by_questions(tidy(table), "y", "a", "b"), by_hand(table)
    assert math.isclose(result.difference, table.mean(), abs_tol=1e-9) and not result.note
    if (variances > 1e-3).all():
        assert np.allclose([result.question_sd, result.run_sd, result.rest_sd], np.sqrt(variances), rtol=.02)
        n, k = table.shape
        assert math.isclose(result.se**2, variances @ [1 / n, 1 / k, 1 / (n * k)], rel_tol=.02)


def test_conditions_are_compared_within_question_and_run():
    "What a question or a run adds to both conditions cancels."
    rng = np.random.default_rng(1)
    table, both = crossed(rng, 20, 3), rng.normal(size=(20, 1)) + 5 * rng.normal(size=3)
    frame = tidy(table)
    level = np.tile(both.ravel(), 2)
    moved = frame.assign(y=frame.y + level)
    one, other = (runs_by_questions(f, "y", "a", "b") for f in (frame, moved))
    assert math.isclose(one.se, other.se, rel_tol=1e-4) and math.isclose(one.difference, other.difference, abs_tol=1e-9)


def test_a_hundred_questions_in_five_runs_are_quick_and_silent():
    rng = np.random.default_rng(2)
    frame = tidy((crossed(rng, 100, 5) > .3).astype(float))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = runs_by_questions(frame, "y", "a", "b")
    assert time.perf_counter() - start < 5 and math.isfinite(result.se) and (result.n, result.runs) == (100, 5)


def test_degenerate_tables_have_a_note_and_no_warning():
    rng = np.random.default_rng(3)
    tables = {"one run": crossed(rng, 20, 1), "two runs": crossed(rng, 20, 2), "one question": crossed(rng, 1, 4),
              "do not vary": np.full((20, 3), .2), "no fit": np.add.outer(np.linspace(0, .3, 20), [.1, .2, .4])}
    for note, table in tables.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = runs_by_questions(tidy(table), "y", "a", "b")
        assert note in result.note and math.isclose(result.difference, table.mean())
        assert math.isfinite(result.se) == (note == "two runs"), note
    lone = np.zeros((20, 3)); lone[7, 1] = 1
    assert runs_by_questions(tidy(lone), "y", "a", "b").se < .05


def test_the_mixed_interval_covers_new_runs_and_new_questions():
    rng, trials = np.random.default_rng(7), 100
    for k in (3, 5):
        tables = [crossed(rng, 20, k) for _ in range(trials)]
        results = [runs_by_questions(tidy(table), "y", "a", "b") for table in tables]
        assert at_least(sum(covers(r.interval, .3) for r in results), trials, .95)


# --- ranks over runs ------------------------------------------------------------------------------------------------

def test_a_rank_over_runs_counts_single_vectors():
    others = np.arange(40.0).reshape(2, 20)
    assert rank_among([30, 40], others) == (1 + 5) / 41 and rank_among([30, 40], others, larger=False) == (1 + 36) / 41
    one_run = np.random.default_rng(0).normal(size=(1, 20))
    assert rank_among([.7], one_run) == rank_p(.7, one_run[0])


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("runs", [2, 5])
def test_a_rank_over_runs_keeps_its_level(correlation, runs):
    rng, trials = np.random.default_rng([8, runs]), 3000
    common, apart = rng.normal(size=(trials, 1)), rng.normal(size=(trials, runs))
    own = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * apart
    others = rng.normal(size=(trials, runs, 20))
    shift = rng.normal(size=(trials, runs, 1))  # a run moves the direction and its random vectors alike
    for moved in (0.0, 1.0):
        p = np.array([rank_among(o, v) for o, v in zip(own + moved * shift[..., 0], others + moved * shift)])
        assert at_most((p <= .05).sum(), trials, .05), (moved, (p <= .05).mean())


def test_a_rank_among_averages_over_runs_does_not():
    rng, trials = np.random.default_rng(9), 2000
    own, others = rng.normal(size=trials), rng.normal(size=(trials, 2, 20))
    p = np.array([rank_p(o, v.mean(0)) for o, v in zip(own, others)])
    assert not at_most((p <= .05).sum(), trials, .08)


# --- the table that ships -------------------------------------------------------------------------------------------

def test_what_decides_keeps_its_promise_in_the_shipped_table():
    table = calibration()
    for test, count in (("corrected rate", 20), ("rank over runs among single vectors", 8)):
        rows = table[table.test == test]
        assert len(rows) == count and rows.keeps.all(), rows[~rows.keeps].to_string()
    runs = table[table.test == "t over runs"]
    assert runs[runs.setting.str.contains("normal")].keeps.all()
    assert not runs[runs.setting.str.startswith("3 runs of two kinds")].keeps.any()
    assert not table[(table.test == "rank over runs among averages") & (table.rho == .9)].keeps.any()


# --- three intervals ------------------------------------------------------------------------------------------------

def answered(rng, runs, run_sd=.15, n=80):
    "Shares in 0..1 under a and b, as a tidy table: by question and run."
    chance = np.clip(.5 + .1 * rng.normal(size=(n, 1)) + run_sd * rng.normal(size=runs), 0, 1)
    return tidy(rng.binomial(4, chance) / 4)


def test_three_intervals_are_those_of_their_own_functions():
    frame = answered(np.random.default_rng(0), 4)
    line, mixed = three_intervals(frame, "y", "a", "b"), runs_by_questions(frame, "y", "a", "b")
    wide = frame.pivot_table(index="question", columns=["condition", "seed"], values="y")
    d = (wide["a"] - wide["b"]).to_numpy()
    assert (line["mixed low"], line["mixed high"]) == mixed.interval and line["difference"] == pytest.approx(d.mean())
    assert (line["runs low"], line["runs high"]) == pytest.approx(over_runs(d.mean(0)).interval)
    assert (line["questions low"], line["questions high"]) == pytest.approx(score_interval(d.mean(1)))
    assert (line["n"], line["runs"], line["run sd"]) == (80, 4, mixed.run_sd)


def test_runs_that_differ_widen_the_mixed_interval_alone():
    one, other = (three_intervals(answered(np.random.default_rng(1), 5, sd), "y", "a", "b") for sd in (.0, .3))
    def width(line, of): return line[f"{of} high"] - line[f"{of} low"]
    assert width(other, "mixed") > 3 * width(other, "questions") and width(one, "mixed") < 2 * width(one, "questions")


def test_words_of_the_mixed_model_follow_the_table():
    rng = np.random.default_rng(2)
    lines = pd.DataFrame([three_intervals(answered(rng, 5), "y", "a", "b"), three_intervals(answered(rng, 1), "y", "a", "b")])
    above = int((lines["mixed low"] > .1).sum())
    said = mixed_words(lines, .1)
    assert f"above 10 points in {above} of 1 models" in said and said.endswith("1 model was trained once, and left out of it.")
    assert mixed_words(lines[:1], .99).count("in 0 of 1 models") == 1 and "no fit" not in mixed_words(lines[:1], .1)
    assert mixed_words(lines[1:], .1) == "Every model was trained once here: no interval over runs, and no mixed model."
    flat = pd.DataFrame([three_intervals(tidy(np.full((20, 3), .2)), "y", "a", "b")])
    assert mixed_words(flat, .1) == "The mixed model has no fit in 1 of 1 models."
