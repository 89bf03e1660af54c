"""Verdicts: declared first, decided by one rule, kept as they were."""
import ast, hashlib, importlib, json, re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import ttest_1samp, zscore

from em_repro import claims as claims_module
from em_repro.claims import (LEDGER_COLUMNS, LOG_COLUMNS, RULE, Claim, Matrix, Verdict, by_seed, claims, claims_log, decide, decide_asymmetry, declared, detectable,
                             hypothesis, last_logged, ledger, logged_changes, pair_row, record, rule_sha256)
from em_repro.margins import Sampling, margin_test, score_interval
from em_repro.profiles import UserError
from em_repro.store import logic_of
from em_repro.verdicts import VERDICTS

quick = settings(max_examples=15, deadline=None, derandomize=True)
ROOT = Path(__file__).resolve().parents[1]
KNOWN_TO_WORK, KNOWN_TO_FAIL = margin_test(np.ones(100), np.zeros(100), 0.1), margin_test(np.zeros(100), np.zeros(100), 0.1)


# The declarations

def test_the_papers_eight_claims_are_declared_in_order_with_ours_beside_them():
    papers = [name for name in claims() if not name[-1].isalpha()]
    assert papers == [f"C{i}" for i in range(1, 9)] and list(claims()) == sorted(claims())
    for claim in claims().values():
        optional = ("secondary", "rank", "assay")
        assert all(getattr(claim, key) for key in Claim.model_fields if key not in optional) and 0 < claim.margin <= 0.2
        assert claim.secondary == ("target" if claim.outcome == "good" and claim.id != "C8" else "")
        assert (claim.paper == "not in the paper") == (claim.id[-1].isalpha() and claim.id != "C1b")


def test_every_change_of_the_declarations_is_in_the_log(tmp_path, monkeypatch):
    log = claims_log()
    assert list(log.columns) == list(LOG_COLUMNS) and log.date.is_monotonic_decreasing and (log != "").all(axis=None)
    for name in ("claims.toml", "claims_log.toml"): (tmp_path / name).write_bytes((ROOT / "data" / name).read_bytes())
    monkeypatch.setattr(claims_module, "shipped", lambda: tmp_path)
    text = (tmp_path / "claims.toml").read_text(encoding="utf-8")
    (tmp_path / "claims.toml").write_text(text.replace("margin = 0.10", "margin = 0.05", 1), encoding="utf-8")
    with pytest.raises(UserError, match="without a line in claims_log.toml.*sha256") as caught: claims_log()
    assert declared() in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "claims_log.toml").write_text('[[change]]\ndate = "2026-01-01"\nwhat = "x"\n', encoding="utf-8")
    with pytest.raises(UserError, match="2026-01-01 lacks claim, seen, why"): claims_log()


# The log is append-only. A digest that stands here is never changed and never taken out: whoever edits an old line of data/claims_log.toml, its hashes among them,
# has to touch this list too, and is seen to. A new line of the log is one digest more at the end. (On 2026-11-29 a change of claims.toml overwrote the hash in the
# line before it, and the test that compared the last hash alone was content.)
PINNED = ["98347e7841800129", "bc7921ecbdb18678", "99bcb00c670e155f", "7528cefdbebef783", "616bd1ebeb4e8c65", "5011f6fbfe1bb86d",
          "be49a34227722730", "d232e97e2fba6ef2", "038783070bdf0de6", "ba0e77ff6564360c", "9a936e4ecb6688bd", "5a21dc556cdbc6fa",
          "02a8223353a52b72", "1433c3d82dd1be3c", "5e82b689c5d4c86f"]


def digest_of(line): return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()[:16]


def test_a_line_of_the_log_that_stands_is_never_edited():
    found = [digest_of(line) for line in logged_changes()]
    edited = [i for i, (now, then) in enumerate(zip(found, PINNED), 1) if now != then]
    assert not edited, f"line {edited[0]} of data/claims_log.toml was edited, and a line that stands is not: put it back and add a new one"
    assert len(found) >= len(PINNED), "a line was taken out of data/claims_log.toml: put it back"
    assert len(found) == len(PINNED), f"data/claims_log.toml has a new line: add its digest {found[len(PINNED):]} to the end of PINNED"


def test_overwriting_a_hash_of_the_log_is_noticed():
    "What commit 4471b8f did: the declarations change, the last line's hash with them, and no line is added."
    lines = logged_changes()
    other = [*lines[:-1], lines[-1] | {"sha256": "0" * 64}]
    assert digest_of(other[-1]) != PINNED[-1] and [digest_of(line) for line in lines] == PINNED


def test_the_rule_is_that_of_the_log():
    now = rule_sha256()
    assert now == last_logged("rule_sha256"), f'the rule changed: add a line to data/claims_log.toml, with rule_sha256 = "{now}", and its digest to PINNED'


def test_all_that_decides_is_hashed():
    "Of the two modules of the rule, everything that a listed function uses is listed, but for types, words and intervals."
    shown = {"margins": {"Bounds", "MarginTest", "score_interval"}, "verdicts": {"Ruling", "STATES", "VERDICTS"}}
    for module, names in RULE.items():
        assert all(logic_of(f"em_repro.{module}", name) for name in names.split())
        if module not in shown: continue
        tree = ast.parse(Path(importlib.import_module(f"em_repro.{module}").__file__).read_text(encoding="utf-8"))
        own = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        own |= {t.id: n for n in tree.body if isinstance(n, ast.Assign) for a in n.targets for t in ast.walk(a) if isinstance(t, ast.Name)}
        used = {n.id for name in names.split() for n in ast.walk(own[name]) if isinstance(n, ast.Name)} & {*own}
        assert used <= {*names.split()} | shown[module]
    assert {"ruling", "asymmetry_ruling", "hypothesis", "margin_test", "choose_point"} <= {n for names in RULE.values() for n in names.split()}


RULED = 'def rule(p, alpha=0.05):\n    "Whether it holds."\n    if p < 0: raise ValueError(f"no p: {p}")\n    return "holds" if p <= alpha else f"open, {p}"\n'


@pytest.mark.parametrize("old, new, same", [("Whether it holds.", "Does it?", True), ("no p:", "a p that is none:", True), ("open, ", "not shown, ", True), ("    if p", "    # a comment\n    if p", True),
                                            ("(p, alpha=0.05)", "(p: float, alpha: float = 0.05) -> str", True), ("0.05", "0.1", False), ("<= alpha", "< alpha", False),
                                            ('"holds"', '"supported"', False), ("p < 0", "p < 1", False)])
def test_the_rules_hash_follows_what_is_done_and_no_word(old, new, same, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    def logic(name, text):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()
        return logic_of(name, "rule").removeprefix(name)
    assert old in RULED and (logic("ruled_before", RULED) == logic(f"ruled_{digest_of(new)}", RULED.replace(old, new))) == same
    with pytest.raises(ValueError, match="ruled_before defines no verdict"): logic_of("ruled_before", "verdict")


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
                         ('outcome = "target"', 'outcome = "politeness"'), ('test = "margin"', 'test = "t"'), ('unit = "question"', 'unit = "answer"'),
                         ('id = "C1"', 'id = "1"'), ('test = "asymmetry"\ndirection = "greater"', 'test = "asymmetry"\ndirection = "equivalent"')):
            (tmp_path / "claims.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
            claims_module.claims.cache_clear()
            with pytest.raises(UserError, match="claims.toml has a wrong entry") as caught: claims()
            assert "\n" not in str(caught.value)
            if "politeness" in new: assert "C1, outcome: unknown outcome 'politeness', choose from target, good, incoherent, accuracy" in str(caught.value)
    finally: claims_module.claims.cache_clear()


# Decisions on answers whose truth is known; the rule itself is tested in test_verdicts.py

def rows_of(claim_id, *shifts, n=400, seed=0, spread=0.3, assay=KNOWN_TO_WORK):
    "Hypotheses of models whose shares move by the given shifts from one half."
    rng, claim = np.random.default_rng(seed), claims()[claim_id]
    more = {"assay": assay} if claim.assay else {}
    return [hypothesis(f"model {i}", np.clip(0.5 + shift + rng.normal(scale=spread / 3, size=n), 0, 1), np.full(n, 0.5), claim, **more)
            for i, shift in enumerate(shifts)]


def world(claim_id, *shifts, **more): return decide(claims()[claim_id], rows_of(claim_id, *shifts, **more), "known", "none")


@pytest.mark.parametrize("claim, shifts, expected", [
    ("C3", (0.3, 0.0), "mixed"), ("C3", (0.0, 0.0), "contradicted"), ("C3", (-0.3, -0.3), "contradicted"), ("C3", (0.03, 0.03), "contradicted"),
    ("C3", (0.085, 0.085), "contradicted"), ("C3", (0.1, 0.1), "inconclusive"), ("C3", (0.3, -0.3), "mixed"), ("C3", (0.4,), "inconclusive"),
    ("C7", (0.3, 0.3), "contradicted"), ("C7", (0.3, -0.3), "contradicted"), ("C7", (0.0, 0.3), "mixed"), ("C7", (0.0,), "inconclusive"),
    ("C3", (0.3, 0.3), "supported"), ("C7", (0.0, 0.0), "supported"), ("C7", (0.03, 0.03), "supported")])
def test_the_decision_is_what_is_there(claim, shifts, expected):
    verdict, table = world(claim, *shifts, spread=0.1)
    assert verdict.verdict == expected
    assert len(table) == len(shifts) and verdict.n == 400 and set(table.state) <= {"holds", "refuted", "open", "not testable"}
    assert verdict.low <= verdict.effect <= verdict.high and verdict.effect == pytest.approx(np.mean(shifts), abs=0.1)
    assert (verdict.p is None) == (expected == "inconclusive") and (verdict.p is None or verdict.q <= verdict.p + 1e-12)


def test_few_questions_decide_nothing():
    for claim in ("C3", "C7"): assert world(claim, 0.15, 0.15, n=8, spread=1.0)[0].verdict == "inconclusive"


def test_where_nothing_known_to_work_works_nothing_is_shown():
    "On a floor two vectors that both destroy cannot differ: no assay sensitivity, no equivalence."
    verdict, table = world("C7", 0.0, 0.0, assay=KNOWN_TO_FAIL)
    assert verdict.verdict == "not testable" and verdict.p is None and "no assay sensitivity" in verdict.detail
    assert (table.state == "not testable").all()
    with pytest.raises(UserError, match="C7 asks for the direction's assay"): hypothesis("x", [0.0] * 9, [0.0] * 9, claims()["C7"])


def test_where_there_is_no_room_a_gain_cannot_be_refuted():
    full, claim = np.tile([1.0] * 9 + [0.0], 10), claims()["C3"]
    row = hypothesis("model", full, full, claim)
    assert row["untestable"] == "no room: the baseline is at 90%"
    assert decide(claim, [row, row], "known", "none")[0].verdict == "not testable"
    assert hypothesis("model", full, full * (np.arange(100) % 9 > 0), claim)["untestable"] == ""   # 80%: twice the margin is left


def alike(*good, claim="C3a", n=200):
    "Hypotheses of models with so many good answers under the direction and under its rival."
    def yes(k): return (np.arange(n) < k).astype(float)
    return [hypothesis(f"model {i}", yes(a), yes(b), claims()[claim]) for i, (a, b) in enumerate(good)]


@pytest.mark.parametrize("good, verdict, said", [
    ([(190, 190), (188, 190)], "not testable", "no room; within 10 points of each other in 2 of 2 (largest p "),   # as well, at the ceiling
    ([(120, 190), (190, 190)], "not testable", "no room; within 10 points of each other in 1 of 2 (largest p "),   # worse in one
    ([(120, 190), (110, 190)], "not testable", "no room; within 10 points of each other in none of 2"),
    ([(190, 190), (120, 100)], "inconclusive", "of 2: 1 open, 1 not testable; no room; within 10 points of each other in 1 of 2 (largest p ")])
def test_a_rival_that_does_as_well_is_seen_where_there_is_no_room(good, verdict, said):
    found, table = decide(claims()["C3a"], alike(*good), "known", "none")
    assert found.verdict == verdict and said in found.detail and found.p is None
    assert found.p_within == table.p_within.max() and (found.p_within <= .05) == ("in 2 of 2" in said)


def test_within_the_margin_in_some_is_corrected_and_in_all_is_not():
    "Each of four at p = .03: all hold at the full level; beside a fifth that does not, Holm leaves none."
    claim = claims()["C3a"]
    rows = [row | {"p_within": .03} for row in alike(*[(190, 190)] * 4)]
    assert "in 4 of 4 (largest p 0.03)" in decide(claim, rows, "known", "none")[0].detail
    assert "in none of 5" in decide(claim, rows + [rows[0] | {"p_within": .9}], "known", "none")[0].detail


def test_likeness_without_assay_sensitivity_counts_for_nothing():
    "Two vectors are alike wherever neither does anything."
    rows = rows_of("C6", 0.0, 0.0, assay=KNOWN_TO_FAIL)
    found, _ = decide(claims()["C6"], rows, "known", "none")
    assert found.verdict == "not testable" and found.p_within == 1 and "in none of 2" in found.detail
    assert all(row["p_within"] < .01 for row in rows_of("C6", 0.0, 0.0))


def test_likeness_moves_no_verdict_and_is_said_where_nothing_else_is():
    "Of greater claims that are inconclusive or cannot be tested; others name a p, a mixed one its models."
    for shifts, word in (((.3, .3), "supported"), ((0., 0.), "contradicted"), ((.3, 0.), "mixed"), ((.1, .1), "inconclusive")):
        rows = rows_of("C3", *shifts, spread=.1)
        one, other = (decide(claims()["C3"], [row | {"p_within": p} for row in rows], "known", "none")[0] for p in (0., 1.))
        assert one.verdict == other.verdict == word and ("within" in one.detail) == (word == "inconclusive")
        kept = {"p_within", "detail"}
        assert one.model_dump(exclude=kept) == other.model_dump(exclude=kept)
    assert decide(claims()["C3"], rows_of("C3", .3, 0., spread=.1), "known", "none")[0].detail.endswith("holding in model 0; refuted in model 1")
    assert "within" not in world("C7", .1, .1)[0].detail   # an equivalent claim says it by holding


def test_models_with_several_hypotheses_are_counted():
    rows = [row | {"model": model} for row, model in zip(rows_of("C3", .3, .3, 0., .3, spread=.1), "aabb")]
    assert decide(claims()["C3"], rows, "known", "none")[0].detail.endswith("holding in a 2, b 1; refuted in b 1")


@quick
@given(order=st.permutations(range(4)), claim=st.sampled_from(["C3", "C7"]))
def test_the_order_of_hypotheses_does_not_matter(order, claim):
    rows = rows_of(claim, 0.4, 0.1, 0.0, 0.3, n=50)
    one, other = (decide(claims()[claim], r, "known", "none")[0] for r in (rows, [rows[i] for i in order]))
    near = {"effect", "low", "high", "runs"}
    assert one.model_dump(exclude=near) == other.model_dump(exclude=near)
    assert (one.effect, one.low, one.high) == pytest.approx((other.effect, other.low, other.high))


@quick
@given(st.lists(st.integers(-5, 5), min_size=4, max_size=12).map(np.array))
def test_exchanging_the_sides_turns_the_sign(differences):
    claim, zero = claims()["C7"], np.zeros(len(differences))
    there, back = (hypothesis("x", a, b, claim, assay=KNOWN_TO_WORK) for a, b in ((differences / 5, zero), (zero, differences / 5)))
    assert there["effect"] == pytest.approx(-back["effect"]) and there["n"] == back["n"] == len(differences)
    assert there["p_holds"] == pytest.approx(back["p_holds"]) and there["p_refuted"] == pytest.approx(back["p_refuted"])
    assert there["differences"] == [-d for d in back["differences"]]


def test_no_change_at_all_has_an_honest_p():
    verdict, _ = decide(claims()["C3"], [hypothesis(str(i), [0.0] * 40, [0.0] * 40, claims()["C3"]) for i in range(2)], "known", "none")
    assert verdict.verdict == "contradicted" and 0.9**40 <= verdict.p <= 0.05


def test_a_direction_is_special_only_when_it_leads_its_samples_too():
    claim, values = claims()["C4"], np.tile([1.0, 1, 1, 0], 20)
    def verdict(*ranks): return decide(claim, [hypothesis(str(i), values, 0.0, claim, rank=r) for i, r in enumerate(ranks)], "known", "none")[0]
    assert verdict(1 / 21, 1 / 21).verdict == "supported" and verdict(1 / 21, 2 / 21).verdict == "inconclusive"
    assert verdict(1 / 21, 1 / 21).p == 1 / 21 and verdict(1 / 21, 2 / 21).p_supported == 2 / 21
    assert "largest p of a rank 0.095" in verdict(1 / 21, 2 / 21).detail
    assert verdict(1 / 9, 1 / 9).verdict == "inconclusive"   # eight samples cannot show it
    with pytest.raises(UserError, match="C4 asks for the direction's rank"): hypothesis("x", values, 0.0, claim)


def test_asymmetry_needs_a_pair_that_differs_and_a_matrix_unlike_random_vectors():
    claim, rng = claims()["C8"], np.random.default_rng(0)
    def row(gap): return pair_row("a, b", np.clip(gap + rng.normal(scale=.1, size=100), -1, 1), np.zeros(100), claim)
    def verdict(rows, rank, models=3): return decide_asymmetry(claim, rows, Matrix(.2, .1, .3, rank, models), "known", "none")[0]
    some, none = [row(.5), row(0), row(0)], [row(0), row(0), row(0)]
    assert verdict(some, 0.33).verdict == "inconclusive" and verdict(none, 0.01).verdict == "contradicted"
    assert verdict(some, 0.01, models=2).verdict == "not testable" and verdict(some, 0.01).verdict == "supported"
    assert verdict(some, 0.01).p == 0.01 and "rank among mapped random vectors p = 0.01" in verdict(some, 0.01).detail


# What could have been seen, and whether the seed matters

@pytest.mark.parametrize("claim_id", ["C3", "C7"])
def test_what_is_detectable_is_shown_in_four_runs_of_five(claim_id):
    "An effect of that size is shown to be above the margin (for equivalence: none, within that margin) in data of the same spread."
    claim, rng, n, spread = claims()[claim_id], np.random.default_rng(3), 30, 0.4
    known = spread * zscore(rng.normal(size=n), ddof=1)   # exactly this spread
    smallest = detectable(claim, [known, known / 2])
    assert smallest == pytest.approx(detectable(claim, [known]))
    samples = rng.normal(size=(2000, n)) * spread
    if claim_id == "C3": found = ttest_1samp(samples + smallest, claim.margin, axis=1, alternative="greater").pvalue < 0.05
    else: found = (ttest_1samp(samples, smallest, axis=1, alternative="less").pvalue < 0.05) & (ttest_1samp(samples, -smallest, axis=1, alternative="greater").pvalue < 0.05)
    assert abs(found.mean() - 0.8) < 0.04   # Monte-Carlo error 0.009; the formula for equivalence leaves out a correlation


def test_the_ledger_says_what_training_runs_it_speaks_of():
    claim = claims()["C3"]
    def said(*shifts): return decide(claim, rows_of("C3", float(np.mean(shifts)), n=60), "known", "none", apart={i: rows_of("C3", s, n=60, seed=i) for i, s in enumerate(shifts)})[0]
    two, five = said(.4, 0.0), said(.1, .2, .3, .2, .1)
    assert "no interval" in two.runs and two.population == "for these adapters"
    assert five.runs.startswith("5 runs") and "[" in five.runs and five.population != two.population
    assert decide(claim, rows_of("C3", .3), "known", "none")[0].population == "for these adapters"


def test_models_may_be_asked_different_numbers_of_questions():
    "Each hypothesis rests on the questions of its model; the interval of the mean is no narrower than that of the larger share."
    claim = claims()["C3"]
    many, few = rows_of("C3", .4, n=100), [row | {"hypothesis": "model 1", "model": "model 1"} for row in rows_of("C3", .2, n=60, seed=1)]
    found, table = decide(claim, [*many, *few], "known", "none", apart={0: [*many, *few]}, secondary=[*many, *few])
    alone = [decide(claim, part, "known", "none")[0] for part in (many, few)]
    assert found.n == 60 and list(table.n) == [100, 60] and found.verdict == "supported"
    assert found.effect == pytest.approx(np.mean([one.effect for one in alone]))
    assert (found.low, found.high) == pytest.approx([np.mean([getattr(one, end) for one in alone]) for end in ("low", "high")])
    single = [decide(claim, part, "known", "none")[1].p_max_t.iloc[0] for part in (many, few)]
    assert list(table.p_max_t) == pytest.approx([min(1, 2 * p) for p in single])
    same = decide(claim, [*many, *(row | {"hypothesis": "b", "model": "b"} for row in many)], "known", "none")[0]
    assert (same.low, same.high) == pytest.approx((alone[0].low, alone[0].high))


def test_runs_that_one_model_lacks_are_not_averaged_with_those_of_all():
    "Nothing differs between runs here, only between models: a run of one model alone says nothing else."
    claim, shifts = claims()["C3"], (.4, .1)
    apart = {i: rows_of("C3", *(shifts if i < 2 else shifts[:1]), n=60, spread=0.0) for i in range(3)}
    found = decide(claim, rows_of("C3", *shifts, n=60, spread=0.0), "known", "none", apart=apart)[0]
    assert found.runs == "model 0: 3 runs, all +40: no interval; model 1: runs +10, +10; mean +10; 2 runs: no interval"
    assert found.population == "for these adapters"


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_every_run_of_every_hypothesis_is_said_once(runs, random):
    "Models with the same runs share a mean; each other model stands with the runs that it has."
    claim, of = claims()["C3"], {f"model {i}": {s: round(random.uniform(-.4, .4), 3) for s in range(k)} for i, k in enumerate(runs)}
    apart = {s: [{"hypothesis": m, "model": m, "effect": e[s]} for m, e in of.items() if s in e] for s in range(max(runs))}
    found = claims_module._effects_by_run(apart)
    assert [len(effects) for effects in found.values()] == sorted({*runs}, reverse=True)
    for names, effects in found.items():
        those = [of[name] for name in names.split(", ")]
        assert effects == {s: pytest.approx(np.mean([e[s] for e in those])) for s in those[0]} and len({*map(len, those)}) == 1


def test_runs_are_judged_beside_the_same_base():
    frame = pd.DataFrame({"arm": ["base", "insecure", "insecure"], "seed": [0, 0, 1], "value": [1, 2, 3]})
    assert by_seed(frame, lambda part: part.value.tolist()) == {0: [1, 2], 1: [1, 3]}
    assert by_seed(frame[frame.seed == 0], lambda part: part.value.tolist()) == {0: [1, 2]}


def test_the_secondary_outcome_and_the_cost_are_shown_and_decide_nothing():
    claim = claims()["C3"]
    rows, fall = [hypothesis("model", np.tile([1., 1, 1, 0], 20), 0.0, claim)], [hypothesis("model", np.tile([0., 0, 0, 1], 20), 1.0, claim)]
    plain, beside = decide(claim, rows, "known", "none")[0], decide(claim, rows, "known", "none", secondary=fall, cost="skill 90% to 80%")[0]
    assert beside.secondary.startswith("target answers -0.75 [") and beside.cost == "skill 90% to 80%"
    assert beside.model_copy(update={"secondary": "", "cost": ""}) == plain
    with pytest.raises(UserError, match="C3 has no hypothesis"): decide(claim, [], "known", "none")


# The ledger

numbers = st.floats(allow_nan=False, allow_infinity=False)
verdicts = st.builds(Verdict, claim=st.sampled_from(list(claims())), statement=st.text(), paper=st.text(), effect=numbers, low=numbers, high=numbers,
                     p=st.none() | st.floats(0, 1), q=st.none() | st.floats(0, 1), n=st.integers(0, 10**6), verdict=st.sampled_from(VERDICTS),
                     detail=st.text(), profile=st.text(), protocol=st.text())


@quick
@given(st.lists(verdicts, min_size=1, max_size=8, unique_by=lambda v: v.claim))
def test_a_ledger_holds_what_was_recorded(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("run")
    for verdict in found: record(folder, verdict)
    frame = ledger(folder)
    assert list(frame.columns) == LEDGER_COLUMNS
    expected = [v.model_dump() for v in sorted(found, key=lambda v: v.claim)]
    def known(table): return table.astype(object).where(table.notna(), None).to_dict("records")
    assert known(frame) == expected
    whole = tmp_path_factory.mktemp("published")
    (whole / "claims.json").write_text(json.dumps(expected), encoding="utf-8")
    assert known(ledger(whole)) == expected


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


def test_a_mean_of_sampled_vectors_counts_in_row_ledger_and_what_could_have_been_seen():
    "Twenty vectors that differ: the row says by how much, its interval and the claim's are wider, and verdicts follow p."
    claim, rng = claims()["C4"], np.random.default_rng(0)
    a, b = rng.binomial(1, .75, (2, 200)), rng.random((2, 200)) * .6 + .2
    def row(i, sampling): return hypothesis(f"model {i}, random", a[i], b[i], claim, rank=.04, model=f"model {i}", sampling=sampling)
    vectors = Sampling(.15**2 / 20, 19)
    plain, sampled = ([row(i, s) for i in (0, 1)] for s in (None, vectors))
    assert all(s["vectors_se"] == vectors.variance**.5 and s["low"] < p["low"] and s["p_holds"] >= p["p_holds"] for p, s in zip(plain, sampled))
    one, many = (decide(claim, rows, "known", "none") for rows in (plain, sampled))
    assert many[0].effect == one[0].effect and many[0].low < one[0].low and many[0].detectable > one[0].detectable
    assert "vectors_se" in many[1] and not {"vectors_se", "sampling"} & {*one[1]} and "sampling" not in many[1]
    # two models, with vectors of their own: the variance of the mean is half of one's
    d = np.mean([row["differences"] for row in sampled], axis=0)
    assert (many[0].low, many[0].high) == pytest.approx(score_interval(d, sampling=Sampling(vectors.variance / 2, 38)), abs=1e-5)


def test_hypotheses_about_one_model_may_share_their_vectors_and_count_as_if_they_did():
    claim, vectors = claims()["C7"], Sampling(.0004, 19)
    def interval(models):
        rows = [hypothesis(f"{i}", np.tile([.5, .25], 50), np.tile([.25, .5], 50), claim, assay=KNOWN_TO_WORK, model=m, sampling=vectors) for i, m in enumerate(models)]
        verdict = decide(claim, rows, "known", "none")[0]
        return verdict.high - verdict.low
    assert interval("aaaa") > interval("aabb") > interval("abcd")


def test_a_pair_with_sampled_vectors_is_shown_alike_only_beyond_their_error():
    claim, rng = claims()["C8"], np.random.default_rng(0)
    there, back = np.clip(rng.normal(scale=.2, size=(2, 400)), -1, 1)
    plain, sampled = pair_row("a, b", there, back, claim), pair_row("a, b", there, back, claim, Sampling(.15**2 / 5, 38))
    assert plain["p_refuted"] < .05 < sampled["p_refuted"] and sampled["vectors_se"] == pytest.approx(.067, abs=.001)
