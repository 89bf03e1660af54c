"""The short form of `tools/calibrate.py`, and worlds whose answer is known: the tests of the study keep what they promise."""
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from em_repro.audit_inputs import FULL, QUICK
from em_repro import calibration as calibration_module
from em_repro.calibration import (ABOVE_LEVEL, AT_LEAST, IN_USE, POWER, RHO, SIMULATIONS, USES, WORLDS, _own_ranks, _row, _two_sides, calibrate,
                                  calibration, clustered_shares, lacking, promises, worst_cells, write_calibration)
from em_repro.directions import DifferenceInMeans, control_directions
from em_repro.profiles import UserError
from em_repro.stats import paired_difference, rank_p

SHIFTS = Path(__file__).parents[1] / "data/reference/small-advice/tables/advice-money/preferences.csv"
KEY = ["test", "setting", "rho", "quantity"]
COLUMNS = [*KEY, "nominal", "observed", "low", "high", "simulations", "keeps"]


BEFORE = len(WORLDS) - len(IN_USE)  # places of the other worlds
WRONG = ("false positives", "false verdicts")


@pytest.fixture(scope="module")
def short():
    "40 simulations of each world, 6 of each cell in use."
    return pd.concat([calibrate(40, seed=1, places=range(BEFORE)),
                      calibrate(6, seed=1, places=range(BEFORE, len(WORLDS)))], ignore_index=True)


@pytest.fixture(scope="module")
def full(): return calibration()


def at_most(hits, trials, share): return binomtest(int(hits), trials, share, alternative="greater").pvalue > 1e-4


# --- the table that ships -------------------------------------------------------------------------------------------

def test_the_shipped_table_is_the_full_form(full):
    assert list(full.columns) == COLUMNS and (full.simulations == SIMULATIONS).all()
    assert not full.duplicated(KEY).any() and not full.isna().any().any() and set(full.rho) == set(RHO)
    assert ((full.low <= full.observed + 1e-12) & (full.observed <= full.high + 1e-12)).all()
    kept = np.where(full.quantity.isin(AT_LEAST), full.high >= full.nominal, full.low <= full.nominal)
    assert (kept == full.keeps).all()


def test_the_short_form_agrees_with_the_shipped_table(short, full):
    "The same promises in both, and for each the two Monte-Carlo intervals overlap: other seed, other number."
    both = short.merge(full, on=KEY, how="outer", suffixes=("", "_full"), indicator=True)
    assert (both._merge == "both").all()
    apart = (both.low > both.high_full) | (both.high < both.low_full)
    assert not apart.any(), both[apart].to_string()


def test_what_is_kept_in_full_is_kept_in_short(short, full):
    both = short.merge(full[full.keeps], on=KEY, suffixes=("", "_full"))
    lost = both[~both.keeps]
    # each row is lost by chance at most once in 2000, where the truth lies at the nominal value itself
    assert at_most(len(lost), len(both), (1 - 0.999) / 2), lost.to_string()


@pytest.mark.parametrize("test, quantity", [
    ("paired t", "false positives"), ("sign-flip", "false positives"), ("Wilcoxon", "false positives"),
    ("McNemar", "false positives"), ("rank among 20 controls", "false positives"), ("asymmetry", "false positives"),
    ("asymmetry of roles", "false positives"), ("Benjamini-Hochberg", "false discovery rate"),
    ("Benjamini-Yekutieli", "false discovery rate"), ("step-down max-T", "family-wise error")])
def test_tests_that_decide_claims_keep_their_level_in_every_world(full, test, quantity):
    rows = full[(full.test == test) & (full.quantity == quantity)]
    assert len(rows) >= len(RHO) and rows.keeps.all(), rows[~rows.keeps].to_string()


@pytest.mark.parametrize("test", [test for test in USES if test not in ABOVE_LEVEL])
def test_tests_in_use_keep_their_level_in_every_cell_in_use(short, full, test):
    rows = full[(full.test == test) & full.quantity.isin(WRONG)]
    assert len(rows) >= len(RHO) and rows.keeps.all(), rows[~rows.keeps].to_string()
    few = short[(short.test == test) & short.quantity.isin(WRONG)]
    hits = (few.observed * few.simulations).sum()
    assert at_most(round(hits), few.simulations.sum(), 0.06)  # all cells of the short form together


@pytest.mark.parametrize("cell", ["200 questions x 1,", "100 questions x 1,", "60 questions x 1,", "40 questions x 1,",
                                  "100 questions x 2,", "100 questions x 2 runs", "100 questions x 3 runs", "100 questions x 5 runs that",
                                  "100 questions x 5 runs against", "100 questions x 1 against the mean", "100 questions x 1 each way",
                                  "100 questions x 1 against 20 vectors", "100 questions x 1 against 40 vectors"])
def test_every_cell_in_use_has_its_power_beside(full, cell):
    here = full[full.setting.str.startswith(cell)]
    wrong, power = (set(here[here.quantity == q].test) for q in ("false positives", POWER))
    sides = {t for t in wrong if "the margin, " in t and "point" not in t and "these vectors" not in t}
    assert len(sides) >= 4 and sides <= power
    shown = here[(here.quantity == POWER) & here.test.str.startswith("above")]
    by_effect = shown.groupby("setting", sort=False)["observed"].mean()
    assert len(by_effect) >= 2 and by_effect.is_monotonic_increasing  # 20 points, then 30


@pytest.mark.parametrize("cell", ["200 questions x 2 activations", "51 requests", "250 requests"])
def test_cells_of_activations_and_of_nats_have_their_power_beside(full, cell):
    here = full[full.setting.str.startswith(cell)]
    wrong, power = (set(here[here.quantity == q].test) for q in ("false positives", POWER))
    assert len(wrong) == 4 and wrong == power
    assert here[here.quantity == POWER].groupby("test")["observed"].max().min() > .8


def test_what_is_in_use_above_its_level_is_named(full):
    "No rank is: at a point that was chosen for one of them, vectors that are all alike lead too often, and none in use stands there."
    assert set(ABOVE_LEVEL) <= set(USES) and not full[full.test.isin(ABOVE_LEVEL)].groupby("test").keeps.all().any()
    assert not [test for test in ABOVE_LEVEL if test.startswith("rank")]
    at_one_point = full[full.test == "rank among 20 controls, at the direction's point"]
    assert at_one_point.observed.max() > .2 and "rank among 20 controls, at the direction's point" not in USES


def test_a_choice_for_every_vector_keeps_the_level_and_one_for_the_kind_does_not(full):
    rows = full[full.test.str.startswith("rank among 20 controls, ")]
    kept = rows.groupby("test").keeps.all()
    assert kept["rank among 20 controls, each at its own best"] and kept.sum() == 1
    most = rows.groupby(["test", "setting"], sort=False)["observed"].max()["rank among 20 controls, at the direction's best"]
    assert most.is_monotonic_increasing   # with the number of points


def test_the_rank_of_an_audit_keeps_its_level_where_every_vector_chooses_and_did_not_before(full):
    rows = full[full.test.str.startswith("rank of an audit, ")]
    wrong = rows[rows.quantity == "false positives"].groupby("test")
    kept, most = wrong.keeps.all(), wrong["observed"].max()
    used, before = "rank of an audit, each at its own best", "rank of an audit, at the direction's coefficient, no longer in use"
    assert set(kept.index) == {used, before} and kept[used] and most[used] <= .05 and not kept[before]
    assert used in USES and before not in USES and not {used, before} & set(ABOVE_LEVEL)
    assert rows[(rows.test == used) & (rows.quantity == POWER)].observed.min() > .4   # 30 points more at every point


@pytest.mark.parametrize("sizes", [FULL, QUICK], ids=["full", "quick"])
def test_the_rank_that_was_simulated_is_that_of_an_audit(sizes):
    "Coefficients, blocks, questions and controls of the cells are those of `Sizes`."
    cell = dict(earlier=sizes.layers, develop=sizes.rank_development, questions=sizes.evaluation)
    (row,) = _own_ranks(2, [0], 0.0, sizes=(len(sizes.rank_coefficients), 2 * sizes.samples), **cell)
    assert row["setting"] in set(calibration().setting)


def test_asymmetry_is_supported_and_contradicted_at_its_level_in_every_cell(full):
    "Contradicted was false in up to 16.5% of cases while the tests of pairs took the mean of the random vectors as exact."
    rows = full[full.test.str.startswith("asymmetry ") & (full.quantity == "false positives")].set_index("test")
    supported, contradicted = rows.loc["asymmetry supported"], rows.loc["asymmetry contradicted"]
    assert len(supported) == 6 * len(RHO) and len(contradicted) == 7 * len(RHO)
    assert supported.keeps.all() and contradicted.keeps.all() and contradicted.observed.max() <= .05
    power = full[full.test.str.startswith("asymmetry supported") & (full.quantity == POWER)]
    assert len(power) == 2 * len(RHO) and power.observed.min() > .4


def test_one_run_cannot_contradict_asymmetry_where_vectors_differ_and_five_can(full):
    "The price, said on the page: twenty vectors that differ by 15 points do not show that two ways are alike; a hundred do, sometimes."
    power = full[(full.test == "asymmetry contradicted") & (full.quantity == POWER)]
    differ = power.setting.str.contains("differ by 15%")
    runs = power.setting.str.contains("in 5 runs")
    assert power.observed[differ & ~runs].max() < .01 < .15 < power.observed[differ & runs].min()
    assert power.observed[~differ & power.setting.str.contains("400")].min() > .3


@pytest.mark.parametrize("draws", [20, 40])
def test_a_mean_of_vectors_that_differ_is_tested_at_its_level_and_not_as_if_it_were_exact(short, full, draws):
    def cells(table, form): return table[table.test.str.endswith(f"the margin, {form}") & table.setting.str.contains(f"against {draws} vectors that differ by 15%")]
    wrong = {form: cells(full, form)[cells(full, form).quantity == "false positives"] for form in ("sampled vectors", "these vectors")}
    assert len(wrong["sampled vectors"]) == len(wrong["these vectors"]) == 4 * len(RHO)
    assert wrong["sampled vectors"].keeps.all() and not wrong["these vectors"].groupby("test").keeps.all().drop("outside the margin, these vectors").any()
    coverage = full[full.test.str.startswith("score interval, ") & full.setting.str.contains(f"against {draws} vectors that differ by 15%")].groupby("test").keeps
    assert coverage.all()["score interval, sampled vectors"] and not coverage.any()["score interval, these vectors"]
    power = cells(full, "sampled vectors").query("quantity == @POWER").groupby(["setting", "test"])["observed"].min().unstack()
    above = power["above the margin, sampled vectors"].dropna()
    assert above.is_monotonic_increasing and above.iloc[-1] > .9 and 0 < power["within the margin, sampled vectors"].max() < .2
    few = cells(short, "sampled vectors").query("quantity == 'false positives'")
    assert at_most(round((few.observed * few.simulations).sum()), few.simulations.sum(), .06)


def test_changed_tests_are_simulated_anew_in_their_places(tmp_path, short, monkeypatch):
    "`--again`: rows of the named tests are replaced where they stand, all others stay, and what is lacking comes last."
    place = next(i for i, (world, settings) in enumerate(WORLDS) if settings.get("given") == "no transfer" and settings["questions"] == 100)
    monkeypatch.setattr(calibration_module, "settings_of", lambda tests: [place] if tests == "asymmetry supported" else [])
    monkeypatch.setattr(calibration_module, "lacking", lambda table: [])
    row = _row_of(short, "asymmetry supported", WORLDS[place][1])
    old = short.copy()
    old.loc[row, "observed"] = .5
    write_calibration(tmp_path, simulations=6, seed=1, known=old, again="asymmetry supported")
    made = pd.read_csv(tmp_path / "calibration.csv")
    assert made[KEY].equals(short[KEY]) and made.observed.to_numpy() == pytest.approx(short.observed.to_numpy())


def _row_of(table, test, settings):
    return table.index[(table.test == test) & table.setting.str.startswith(f"3 models, {settings['questions']} questions") &
                       table.setting.str.endswith(f"differ by {settings['spread']:.0%}") & table.setting.str.contains(settings["given"])]


def test_nats_are_tested_at_their_level_unless_they_are_more_skewed_than_any_that_were_met(full):
    rows = full[full.test.str.endswith("the margin, t") & (full.quantity == "false positives")]
    assert rows[rows.setting.str.contains("normal")].keeps.all()
    met = pd.read_csv(SHIFTS)
    keys = ["model", "set", "request"]
    base = met[met.arm == "base"].groupby(keys).per_token.mean()
    shifts = met[met.arm != "base"].groupby(["arm", *keys]).per_token.mean().sub(base).dropna()
    skewness = shifts.groupby(["arm", "model", "set"]).skew()
    assert len(skewness) == 28 and skewness.between(-.65, .65).all()


def test_what_the_study_does_not_do_is_shown_not_to_work(full):
    for test in ("above the margin, point chosen on the same questions", "equivalence on a floor, no assay"):
        rows = full[full.test == test]
        assert len(rows) and not rows.keeps.any() and rows.observed.min() > 0.15


def test_no_false_verdict_is_above_its_level(full):
    rows = full[full.quantity == "false verdicts"]
    assert set(rows.test) == {"verdict supported", "verdict contradicted", "verdict mixed"}
    assert {2, 6, 36} == set(rows.setting.str.extract(r"(\d+) hypotheses")[0].astype(int))
    assert rows.setting.str.contains("greater").any() and rows.setting.str.contains("equivalent").any()
    assert rows.keeps.all(), rows[~rows.keeps].to_string()
    assert at_most((rows.observed * rows.simulations).sum(), rows.simulations.sum(), 0.05)


def test_a_test_in_use_names_the_cell_where_it_is_wrong_most(full):
    used = worst_cells(full).set_index("test")
    rows = full[(full.test == "McNemar") & (full.quantity == "false positives")]
    assert list(used.index) == list(USES) and used.most["McNemar"] == rows.observed.max()
    assert used.cells["McNemar"] == len(rows) and used["where"]["McNemar"].split(",")[0] in set(
        rows.setting.str.split(",").str[0])


def test_counting_answers_as_independent_does_not(short, full):
    for table in (short, full):
        naive = table[(table.test == "answers as the unit") & (table.setting == "24 questions x 10, 50% yes")]
        assert naive.set_index("rho").keeps.to_dict()[0.0] and not naive[naive.rho >= 0.6].keeps.any()
        assert naive[naive.rho == 0.9].observed.item() > 0.25


def test_one_seed_does_not_answer_for_others(full):
    one = full[full.setting.str.startswith("1 seed,") & (full.rho > 0)]
    ten = full[full.setting.str.startswith("10 seeds,")]
    assert not one.keeps.any() and ten.observed.min() > one.observed.max()


# --- the simulation itself ------------------------------------------------------------------------------------------

def test_numbers_depend_on_the_seed_and_not_on_processes():
    places = range(0, len(WORLDS), 12)
    one, two = (calibrate(2, seed=3, jobs=jobs, places=places) for jobs in (1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(calibrate(2, seed=4, places=places)) and len(places) * len(RHO) <= len(one)
    some = calibrate(2, seed=3, places=places[1:3])
    kept = one.merge(some[KEY], on=KEY)
    pd.testing.assert_frame_equal(kept, some)


@pytest.mark.parametrize("kind, effect", [(kind, 0.3) for kind in
                                          ("", "two runs", "three runs", "five runs", "controls", "five runs, controls", "pair", "accuracy")])
def test_two_sides_differ_by_the_effect(kind, effect):
    a, b = _two_sides(kind, 40, [0], 0.3, 2000, 1, (0.15 + effect, 0.15))
    assert a.shape == b.shape == (40, 2000) and math.isclose((a - b).mean(), effect, abs_tol=0.01)
    steps = {"": 1, "two runs": 2, "three runs": 3, "five runs": 5, "five runs, controls": 100, "accuracy": 40}.get(kind, 20)
    assert np.allclose(b * steps, np.round(b * steps))


def test_rates_of_none_and_all_do_not_vary():
    yes = clustered_shares(3, [0.0, 1.0], 50, 2, 0.6, seed=0)
    assert (yes[:, 0] == 0).all() and (yes[:, 1] == 1).all()


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_variance_of_a_difference_is_the_one_in_the_formula(rho, shared):
    "Factor 1 + (m - 1) rho - m rho c over independent answers; c is 0 and 1 at the ends of `shared`."
    rate, m, n = 0.3, 5, 200_000
    yes = clustered_shares(1, [rate, rate], n, m, rho, shared, seed=5)[0]
    c = {0.0: 0.0, 1.0: 1.0}.get(shared)
    if c is None:
        exact = clustered_shares(1, [rate, rate], n, 100_000, rho, shared, seed=6)[0]
        c = np.corrcoef(exact)[0, 1] if rho else 0.0
    factor = 1 + (m - 1) * rho - m * rho * c
    assert math.isclose((yes[0] - yes[1]).var(), 2 * rate * (1 - rate) / m * factor, rel_tol=0.03)
    assert abs(yes.mean() - rate) < 0.01


def test_the_monte_carlo_interval_is_clopper_pearson():
    for hits, n in ((0, 40), (7, 100), (100, 100)):
        row = _row("x", "y", 0.0, "coverage", 0.95, np.arange(n) < hits)
        exact = binomtest(hits, n).proportion_ci(0.999, method="exact")
        assert np.allclose([row["low"], row["high"]], [exact.low, exact.high], atol=1e-10)
    assert _row("x", "y", 0, "power", 0.9, np.arange(100) < 99)["keeps"]
    assert not _row("x", "y", 0, "false positives", 0.05, np.arange(100) < 30)["keeps"]
    assert not _row("x", "y", 0, "coverage", 0.95, np.arange(100) < 70)["keeps"]


def test_a_summary_names_the_worst():
    rows = [_row("a", f"world {i}", 0.0, "coverage", 0.95, np.arange(100) < k) for i, k in enumerate((95, 60, 100))]
    summary = promises(pd.DataFrame(rows)).iloc[0]
    assert (summary.worst, summary.kept, summary.settings) == (0.6, 2, 3) and "world 1" in summary["where"]


def test_settings_that_were_added_are_simulated_alone(tmp_path, monkeypatch):
    "The same table as one made as a whole; settings that moved are refused."
    whole = WORLDS[8:11]
    monkeypatch.setattr("em_repro.calibration.WORLDS", whole[:2])
    write_calibration(tmp_path, simulations=5)
    monkeypatch.setattr("em_repro.calibration.WORLDS", whole)
    known = pd.read_csv(tmp_path / "calibration.csv")
    assert lacking(known) == [2]
    write_calibration(tmp_path / "added", simulations=5, known=known)
    write_calibration(tmp_path / "whole", simulations=5)
    added, anew = ((tmp_path / name / "calibration.csv").read_bytes() for name in ("added", "whole"))
    assert added == anew
    assert "0 simulated" in write_calibration(tmp_path / "again", simulations=5, known=pd.read_csv(tmp_path / "added" / "calibration.csv"))
    monkeypatch.setattr("em_repro.calibration.WORLDS", (whole[2], *whole[:2]))
    with pytest.raises(UserError, match="without --add"): lacking(known)


def test_the_shipped_table_lacks_no_setting(full): assert lacking(full) == []


def test_writing_and_bad_input(tmp_path, monkeypatch):
    monkeypatch.setattr("em_repro.calibration.WORLDS", WORLDS[6:7])
    assert "promises not kept" in write_calibration(tmp_path, simulations=5)
    assert list(pd.read_csv(tmp_path / "calibration.csv").columns) == COLUMNS
    for wrong in (lambda: calibrate(1), lambda: calibrate(5, jobs=0), lambda: clustered_shares(2, [0.5], 3, 2, rho=1.0)):
        with pytest.raises(UserError, match=": "): wrong()
    monkeypatch.setattr("em_repro.calibration.shipped", lambda: tmp_path / "none")
    with pytest.raises(UserError, match="tools/calibrate.py"): calibration()


# --- known-answer worlds --------------------------------------------------------------------------------------------

def specificity(seed, kind, questions=24, samples=4, width=32, draws=20):
    """Rank p and paired contrast p of a fitted direction against random ones of its norm, in a world of linear states.

    A fine-tuned state is a base state plus twice a hidden direction. Clean answers depend on what steering leaves of it
    (planted), on no direction at all (none), or on an unrelated random direction (unrelated).
    """
    rng = np.random.default_rng([seed, 7])
    hidden, other = (w / np.linalg.norm(w) for w in rng.normal(size=(2, width)))
    base, tuned = rng.normal(size=(2, 100, width))
    X, y = np.vstack([base, tuned + 2 * hidden]), np.repeat([0, 1], 100)
    v = DifferenceInMeans().fit(X, y).direction_
    vectors = np.vstack([v, control_directions(v, "random", draws, seed=seed)])
    assert np.allclose(np.linalg.norm(vectors, axis=1), np.linalg.norm(v))
    states = rng.normal(size=(questions, width)) + 2 * hidden
    read = {"planted": hidden, "unrelated": other, "none": np.zeros(width)}[kind]
    left = (states[None] - vectors[:, None]) @ read  # (vectors, questions)
    propensity = 1 / (1 + np.exp(2 * left - 2 + rng.normal(size=questions)))
    clean = rng.binomial(samples, propensity) / samples
    target, controls = clean[0], clean[1:]
    return (rank_p(target.mean(), controls.mean(1)),
            paired_difference(target, controls.mean(0), resamples=20, permutations=19).p)


def test_a_planted_direction_is_specific():
    p = np.array([specificity(seed, "planted") for seed in range(40)])
    assert (p[:, 0] == 1 / 21).all() and (p[:, 1] < 0.001).all()


def test_where_no_direction_acts_none_is_specific():
    p = np.array([specificity(seed, "none") for seed in range(400)])
    for column in p.T: assert at_most((column <= 0.05).sum(), len(p), 0.05)
    assert (p[:, 1] <= 0.05).mean() > 0.01  # the test is not dead


def test_an_unrelated_direction_is_told_by_its_rank_and_not_by_the_contrast():
    "Any one direction differs from the average control; whether it is extreme among them is the rank's question."
    p = np.array([specificity(seed, "unrelated") for seed in range(200)])
    assert at_most((p[:, 0] <= 0.05).sum(), len(p), 0.05) and not at_most((p[:, 1] <= 0.05).sum(), len(p), 0.05)
