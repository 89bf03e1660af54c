"""Verdicts: declared first, decided by one rule, kept as they were."""
import json, re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import ttest_1samp, zscore

from em_repro import claims as claims_module
from em_repro.claims import LEDGER_COLUMNS, Claim, OneTest, Verdict, by_seed, claims, decide, decide_one, declared, detectable, hypothesis, ledger, record
from em_repro.profiles import UserError

quick = settings(max_examples=15, deadline=None, derandomize=True)
ROOT = Path(__file__).resolve().parents[1]
FEW = dict(resamples=100, permutations=100)


# The declarations

def test_the_eight_claims_are_declared_once_in_order():
    assert list(claims()) == [f"C{i}" for i in range(1, 9)]
    for claim in claims().values():
        assert all(getattr(claim, key) for key in Claim.model_fields if key not in ("secondary", "rank")) and 0 < claim.margin <= 0.2
        assert claim.secondary == ("target" if claim.outcome == "good" and claim.id != "C8" else "")
        assert (claim.direction == "equivalent") == claim.test.startswith("two one-sided")


def test_a_claims_notebook_exists_and_tests_it():
    for claim in claims().values():
        source = code_of(ROOT / "nbs" / f"{claim.notebook}.ipynb")
        assert f'study.claim("{claim.id}")' in source and "study.verdict(" in source, claim.id
        assert f'"{claim.table}")' in source, claim.id
        everywhere = source + code_of(ROOT / "nbs" / "02_directions.ipynb")   # C5 shows the separabilities of notebook 02
        assert f'"{claim.figure}")' in everywhere, claim.id


def code_of(path):
    return "\n".join("".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code")


def test_no_notebook_tests_what_is_not_declared_for_it():
    for path in sorted((ROOT / "nbs").glob("0*.ipynb")):
        source = code_of(path)
        decided = re.findall(r'(?:decide|decide_one|_verdict)\([^"]*?study\.claim\("(\w+)"\)', source)
        assert {claims()[c].notebook for c in decided} <= {path.stem}, path.name
        for name in re.findall(r'study\.claim\("(\w+)"\)', source): assert name in claims(), (path.name, name)


def test_declarations_are_read_and_hashed_whole(tmp_path, monkeypatch):
    before = declared()
    assert re.fullmatch("[0-9a-f]{64}", before)
    text = (ROOT / "data/claims.toml").read_text(encoding="utf-8")
    (tmp_path / "claims.toml").write_text(text.replace("margin = 0.10", "margin = 0.20", 1), encoding="utf-8")
    monkeypatch.setattr(claims_module, "shipped", lambda: tmp_path)
    claims_module.claims.cache_clear()
    try:
        assert declared() != before and claims()["C1"].margin == 0.2
        for old, new in (('direction = "greater"', 'direction = "less"'), ("statement =", "sentence ="), ("margin = 0.10\n", ""), ('id = "C2"', 'id = "C1"'),
                         ('outcome = "target"', 'outcome = "politeness"'), ('test = "paired t"', 'test = "t"'), ('unit = "question"', 'unit = "answer"'),
                         ('test = "paired t"', 'test = "two one-sided t"'), ('correction = "bh"', 'correction = "none"')):
            (tmp_path / "claims.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
            claims_module.claims.cache_clear()
            with pytest.raises(UserError, match="claims.toml has a wrong entry") as caught: claims()
            assert "\n" not in str(caught.value)
            if "politeness" in new: assert "C1, outcome: unknown outcome 'politeness', choose from target, good, incoherent, accuracy" in str(caught.value)
    finally: claims_module.claims.cache_clear()


# The rule, on worlds whose answer is known

def world(claim_id, *shifts, n=100, seed=0, spread=0.3):
    "A verdict for families whose per-question differences are around the given shifts."
    rng = np.random.default_rng(seed)
    rows = [hypothesis(f"family {i}", shift + rng.normal(scale=spread, size=n), rng.normal(scale=spread / 10, size=n), claims()[claim_id], **FEW)
            for i, shift in enumerate(shifts)]
    return decide(claims()[claim_id], rows, "known", "none")


@pytest.mark.parametrize("claim, shifts, expected", [
    ("C3", (0.6, 0.5), "supported"), ("C3", (0.6, 0.0), "inconclusive"), ("C3", (0.0, 0.0), "contradicted"), ("C3", (-0.5, -0.6), "contradicted"),
    ("C3", (0.5, -0.5), "inconclusive"), ("C3", (0.5,), "supported"), ("C7", (0.0, 0.0), "supported"), ("C7", (0.5, 0.5), "contradicted"),
    ("C7", (0.5, -0.5), "contradicted"), ("C7", (0.0, 0.5), "inconclusive"), ("C7", (0.0,), "supported"),
])
def test_the_rule_finds_what_is_there(claim, shifts, expected):
    verdict, table = world(claim, *shifts)
    assert verdict.verdict == expected
    assert len(table) == len(shifts) and verdict.n == 100
    assert verdict.low <= verdict.effect <= verdict.high and verdict.effect == pytest.approx(np.mean(shifts), abs=0.1)


def test_few_questions_decide_nothing():
    "Eight questions with a spread as large as the effect: neither different nor equivalent."
    for claim in ("C3", "C7"): assert world(claim, 0.15, 0.15, n=8, spread=0.6)[0].verdict == "inconclusive"


@quick
@given(shifts=st.lists(st.sampled_from([-0.5, -0.05, 0.0, 0.05, 0.5]), min_size=1, max_size=5), claim=st.sampled_from(["C3", "C7"]), seed=st.integers(0, 99))
def test_the_verdict_is_the_tables_and_nothing_elses(shifts, claim, seed):
    verdict, table = world(claim, *shifts, n=40, seed=seed)
    different, same, up = table.q < 0.05, table.q_equivalent < 0.05, table.effect > 0
    greater = claim == "C3"
    if greater and (different & up).all() or not greater and same.all(): expected = "supported"
    elif greater and ((different & ~up).all() or same.all()) or not greater and different.all(): expected = "contradicted"
    else: expected = "inconclusive"
    assert verdict.verdict == expected
    p = table.p if greater else table.p_equivalent
    assert verdict.p == p.max() and verdict.q >= verdict.p - 1e-15 and (table.q >= table.p - 1e-15).all()
    assert f"of {len(shifts)}: {(different & up).sum()} above zero, {(different & ~up).sum()} below, {same.sum()} equivalent" in verdict.detail


@quick
@given(order=st.permutations(range(4)), claim=st.sampled_from(["C3", "C7"]))
def test_the_order_of_hypotheses_does_not_matter(order, claim):
    rng = np.random.default_rng(1)
    rows = [hypothesis(str(i), s + rng.normal(scale=0.3, size=50), 0.0, claims()[claim], **FEW) for i, s in enumerate((0.4, 0.1, 0.0, 0.3))]
    one, other = (decide(claims()[claim], r, "known", "none")[0] for r in (rows, [rows[i] for i in order]))
    assert one.model_dump(exclude={"effect", "low", "high"}) == other.model_dump(exclude={"effect", "low", "high"})
    assert (one.effect, one.low, one.high) == pytest.approx((other.effect, other.low, other.high))


@settings(quick, max_examples=5)
@given(st.lists(st.integers(-5, 5), min_size=4, max_size=12).map(np.array), st.integers(0, 5))
def test_exchanging_the_sides_turns_the_sign(differences, seed):
    claim, zero = claims()["C3"], np.zeros(len(differences))
    there, back = (hypothesis("x", a, b, claim, seed=seed, **FEW) for a, b in ((differences / 5, zero), (zero, differences / 5)))
    assert there["effect"] == pytest.approx(-back["effect"]) and there["n"] == back["n"] == len(differences)
    assert there["p"] == pytest.approx(back["p"], nan_ok=True) and there["p_equivalent"] == pytest.approx(back["p_equivalent"], nan_ok=True)
    assert there["differences"] == [-d for d in back["differences"]]


def test_no_difference_at_all_is_equivalence():
    rows = [hypothesis(str(i), np.ones(20), 1.0, claims()["C3"], **FEW) for i in range(3)]
    verdict, _ = decide(claims()["C3"], rows, "known", "none")
    assert (verdict.verdict, verdict.effect) == ("contradicted", 0) and decide(claims()["C7"], rows, "known", "none")[0].verdict == "supported"


def test_false_alarms_under_the_null_are_rare():
    "One hypothesis, no effect, too few questions for equivalence: `greater` is supported about once in forty (one side of 5%)."
    claim, rng = claims()["C3"], np.random.default_rng(5)
    found = [decide(claim, [hypothesis("x", rng.normal(size=20), 0.0, claim, **FEW)], "null", "none")[0].verdict for _ in range(100)]
    assert found.count("supported") <= 8 and found.count("contradicted") <= 8


@pytest.mark.parametrize("p, expected", [(0.049, "supported"), (0.05, "inconclusive"), (1.0, "inconclusive")])
def test_a_claim_with_a_test_of_its_own(p, expected):
    verdict = decide_one(claims()["C8"], OneTest(0.3, 0.1, 0.5, p, 100), "detail", "known", "none")
    assert (verdict.verdict, verdict.p, verdict.q, verdict.claim) == (expected, p, p, "C8")


def test_a_direction_is_special_only_when_it_leads_its_draws_too():
    claim, values = claims()["C4"], np.tile([1.0, 1, 1, 0], 20)
    def verdict(*ranks): return decide(claim, [hypothesis(str(i), values, 0.0, claim, rank=r, **FEW) for i, r in enumerate(ranks)], "known", "none")[0]
    assert verdict(1 / 21, 1 / 21).verdict == "supported" and verdict(1 / 21, 2 / 21).verdict == "inconclusive"
    assert verdict(1 / 21, 2 / 21).p == verdict(1 / 21, 2 / 21).q == 2 / 21 and "rank among draws 0.095" in verdict(1 / 21, 2 / 21).detail
    assert verdict(1 / 9).verdict == "inconclusive"   # eight draws cannot show it
    with pytest.raises(UserError, match="C4 asks for the direction's rank"): hypothesis("x", values, 0.0, claim, **FEW)


# What could have been seen, and whether the seed matters

@pytest.mark.parametrize("claim_id", ["C3", "C7"])
def test_what_is_detectable_is_found_in_four_runs_of_five(claim_id):
    "An effect of that size (for equivalence: none, and that margin) in data of the same spread."
    claim, rng, n, spread = claims()[claim_id], np.random.default_rng(3), 30, 0.4
    known = spread * zscore(rng.normal(size=n), ddof=1)   # exactly this spread
    smallest = detectable(claim, [known, known / 2])
    assert smallest == pytest.approx(detectable(claim, [known])) and smallest == pytest.approx(2 * detectable(claim, [known / 2]))
    draws = rng.normal(size=(2000, n)) * spread
    if claim_id == "C3": found = ttest_1samp(draws + smallest, 0, axis=1).pvalue < 0.05
    else: found = (ttest_1samp(draws, smallest, axis=1, alternative="less").pvalue < 0.05) & (ttest_1samp(draws, -smallest, axis=1, alternative="greater").pvalue < 0.05)
    assert abs(found.mean() - 0.8) < 0.04   # Monte-Carlo error 0.009; the formula for equivalence leaves out a correlation


def test_the_ledger_says_whether_the_seed_of_training_matters():
    claim, rng = claims()["C3"], np.random.default_rng(0)
    def rows(*shifts): return [hypothesis("family", np.mean([s + rng.normal(scale=.3, size=60) for s in shifts], 0), 0.0, claim, **FEW)]
    def words(*shifts, **more): return decide(claim, rows(*shifts), "known", "none", apart={i: rows(s) for i, s in enumerate(shifts)}, **more)[0].seeds
    assert words(.5, .5) == "the same with each of 2 seeds alone"
    assert words(.5, 0.0) == "unstable: seed 0 supported, seed 1 contradicted"
    assert decide(claim, rows(.5), "known", "none")[0].seeds == "one seed"
    one = decide_one(claims()["C8"], OneTest(0.3, 0.1, 0.5, 0.01, 100), "detail", "known", "none", apart={0: 0.01, 1: 0.2}, detectable=0.07)
    assert one.detectable == 0.07
    assert one.seeds == "unstable: seed 0 supported, seed 1 inconclusive"


def test_seeds_are_judged_beside_the_same_base():
    frame = pd.DataFrame({"arm": ["base", "insecure", "insecure"], "seed": [0, 0, 1], "value": [1, 2, 3]})
    assert by_seed(frame, lambda part: part.value.tolist()) == {0: [1, 2], 1: [1, 3]}
    assert by_seed(frame[frame.seed == 0], lambda part: part.value.tolist()) == {}


def test_the_secondary_outcome_is_shown_and_decides_nothing():
    claim = claims()["C3"]
    rows, fall = [hypothesis("family", np.tile([1., 1, 1, 0], 20), 0.0, claim, **FEW)], [hypothesis("family", np.tile([0., 0, 0, 1], 20), 1.0, claim, **FEW)]
    plain, beside = decide(claim, rows, "known", "none")[0], decide(claim, rows, "known", "none", secondary=fall)[0]
    assert beside.secondary.startswith("target answers -0.75 [") and beside.model_copy(update={"secondary": ""}) == plain
    with pytest.raises(UserError, match="C3 has no hypothesis"): decide(claim, [], "known", "none")


# The ledger

numbers = st.floats(allow_nan=False, allow_infinity=False)
verdicts = st.builds(Verdict, claim=st.sampled_from(list(claims())), statement=st.text(), paper=st.text(), effect=numbers, low=numbers, high=numbers,
                     p=st.floats(0, 1), q=st.floats(0, 1), n=st.integers(0, 10**6), verdict=st.sampled_from(["supported", "contradicted", "inconclusive"]),
                     detail=st.text(), profile=st.text(), protocol=st.text())


@quick
@given(st.lists(verdicts, min_size=1, max_size=8, unique_by=lambda v: v.claim))
def test_a_ledger_holds_what_was_recorded(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("run")
    for verdict in found: record(folder, verdict)
    frame = ledger(folder)
    assert list(frame.columns) == LEDGER_COLUMNS
    expected = [v.model_dump() for v in sorted(found, key=lambda v: v.claim)]
    assert frame.to_dict("records") == expected
    whole = tmp_path_factory.mktemp("published")
    (whole / "claims.json").write_text(json.dumps(expected), encoding="utf-8")
    assert ledger(whole).to_dict("records") == expected


def test_a_later_verdict_replaces_the_earlier_and_nan_becomes_missing(tmp_path):
    verdict = world("C3", 0.5)[0]
    record(tmp_path, verdict)
    record(tmp_path, verdict.model_copy(update={"low": float("nan"), "verdict": "inconclusive"}))
    row, = ledger(tmp_path).to_dict("records")
    assert row["verdict"] == "inconclusive" and pd.isna(row["low"])
    assert "NaN" not in (tmp_path / "claims/code/C3.json").read_text()


def test_a_missing_claim_is_missing_and_no_claims_at_all_is_an_error(tmp_path):
    record(tmp_path, world("C3", 0.5)[0])
    assert ledger(tmp_path).claim.tolist() == ["C3"]
    with pytest.raises(UserError, match="no claims in .*run `em-repro reproduce` first"): ledger(tmp_path / "elsewhere")
