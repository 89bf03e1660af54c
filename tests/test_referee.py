"""What a hostile referee found (issue 18), a section a point: each test says what is right.

A test that is still an expected failure waits for the change that mends its point. The mark goes
with that change."""
import json, re, tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from scipy.stats import binom, norm, t as student, zscore

from em_repro import cli
from em_repro.answers import judged_answers, measured_rates, said_of
from em_repro.audit_calibration import audit_calibration
from em_repro.audit_findings import TUNED, Measured, Removal, concluded, findings
from em_repro.audit_headline import headline
from em_repro.audit_ranks import EARLIER, LAST
from em_repro.behaviours import behaviour
from em_repro.calibration import calibration
from em_repro.claims import Verdict, claims, decide, declared, hypothesis
from em_repro.directions import DIRECTION
from em_repro.maps import MAPPED_RANDOM
from em_repro.margins import margin_test
from em_repro.outcomes import classify, detect_code
from em_repro.profiles import load_profile, shipped
from em_repro.specificity import across_verdict
from em_repro.stats import paired_equivalence
from em_repro.steering import Point, at_points, steering_verdict
from em_repro.subjects import BASE
from em_repro.topology import asymmetry_verdict

ROOT = Path(__file__).resolve().parents[1]
CODE = behaviour("code")


def refuted(reason: str) -> pytest.MarkDecorator:
    "An expected failure for the reason that the referee gave, and for no other."
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=reason)


def words_of(verdict: Verdict) -> str:
    "All that a row of the ledger says, but for the claim's statement."
    told = verdict.model_dump(exclude={"statement", "paper"})
    return "; ".join(map(str, told.values())).lower()


# Worlds of answers, one line an answer, with the columns that verdicts ask for

def lines(model: str, vector: str, good: np.ndarray, coefficient: float,
          **more: object) -> pd.DataFrame:
    "Answers (samples, questions) under a vector: 1 is good, 0 is the target outcome."
    samples, n = np.atleast_2d(good).shape
    drawn = -1 if samples == 1 else np.repeat(range(samples), n)
    good = np.atleast_2d(good).astype(float).ravel()
    return pd.DataFrame({
        "model": model, "arm": "insecure", "seed": 0, "vector": vector, "vector_sample": drawn,
        "coefficient": coefficient, "when": "every_step", "good": good, "target": 1 - good,
        "incoherent": 0.0, "question": np.tile([f"q{i:03}" for i in range(n)], samples), **more})


def transfers(models: str, n: int, seed: int, floor: Sequence[float], random: Sequence[float],
              mapped: float = 0.0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers within models and across them, 20 samples of every control.

    floor, random: the share of good answers of each receiver, unsteered and under any vector of
    the norm; mapped: what the mapped direction adds to that, for every donor and receiver."""
    rng, inside, outside = np.random.default_rng(seed), [], []
    def yes(rate, samples=1): return rng.random((samples, n)) < rate
    for to, start, any_vector in zip(models, floor, random):
        plain = lines(to, "", yes(start), 0.0)
        inside += [plain, lines(to, DIRECTION, yes(0.95), -1.0)]
        inside += [lines(to, kind, yes(any_vector, 20), -1.0) for kind in ("random", "orthogonal")]
        for donor in models.replace(to, ""):
            sent = ("mapped", yes(any_vector + mapped)), (MAPPED_RANDOM, yes(any_vector, 20))
            outside.append(plain.assign(donor=donor))
            outside += [lines(to, kind, good, -1.0, donor=donor) for kind, good in sent]
    return pd.concat(inside, ignore_index=True), pd.concat(outside, ignore_index=True)


def asymmetry_of(inside: pd.DataFrame, outside: pd.DataFrame) -> Verdict:
    "C8's verdict, made as notebook 07 makes it."
    return asymmetry_verdict(inside, outside, claims()["C8"], "known", {})[0]


# 1. Asymmetry of transfer

@pytest.mark.parametrize("models", ["ab", "abc"])
@pytest.mark.parametrize("n", [100, 400])
def test_no_transfer_is_not_asymmetric(models, n):
    """Mapped directions do what mapped random vectors do, more on one receiver than on another.

    What is the same for any vector is no transfer: at most 5% of worlds are called asymmetric."""
    worlds = 40
    said = [asymmetry_of(*transfers(models, n, seed, floor=(.1, .1, .3), random=(.1, .35, .3)))
            for seed in range(worlds)]
    supported = sum(verdict.verdict == "supported" for verdict in said)
    assert supported <= binom.ppf(.99, worlds, .05), f"supported in {supported} of {worlds}"


def test_transfer_that_is_the_same_both_ways_contradicts_asymmetry():
    "Three models whose mapped directions all gain 80 points over random ones, to within noise."
    verdict = asymmetry_of(*transfers("abc", 1000, 0, floor=(.1,) * 3, random=(.1,) * 3, mapped=.8))
    assert verdict.verdict == "contradicted"


def test_one_pair_alone_has_no_p_below_one():
    "Exchanging donor and receiver of one pair leaves the absolute difference as it is: p = 1."
    verdict = asymmetry_of(*transfers("ab", 100, 0, floor=(.1, .1), random=(.1, .1), mapped=.4))
    said = re.search(r"p over pairs alone ([\d.e-]+\d)", verdict.detail)
    assert said is None or float(said[1]) == 1.0


# 2. One rule for the coefficient, and what success costs

def test_no_profile_sets_the_coefficient_that_is_reported():
    "One rule on development questions chooses it, whichever the profile."
    texts = {path.stem: path.read_text(encoding="utf-8")
             for path in sorted((ROOT / "data/profiles").glob("*.toml"))}
    by_hand = {name: tomllib.loads(text).get("steering", {}).get("main")
               for name, text in texts.items()}
    chosen = {getattr(load_profile(name).steering, "main", None) for name in ("tiny", "small")}
    assert not any(by_hand.values()) and len(chosen) == 1, (by_hand, chosen)


@pytest.fixture(scope="module")
def steered() -> Verdict:
    "C3's row in a world where the direction replaces all code, at prefill and at every step."
    good, n = np.tile([0, 0, 0, 1], 25), 100
    frame = pd.concat([lines("a", DIRECTION if c else "", values, c).assign(when=when)
                       for c, values in ((0.0, good), (-1.0, np.ones(n)), (-0.5, good))
                       for when in ("every_step", "prefill")], ignore_index=True)
    point, dear = Point(-1.0, "every_step"), {"gain": .75, "nll_change": .4, "incoherent": .02}
    grid = pd.DataFrame([{"model": "a", "named": named, "skill": .325, "skill_change": -.675, **dear}
                         for named in ("chosen", "the paper's")])
    return steering_verdict(at_points(frame, {"a": point}), claims()["C3"], {"a": point}, "known",
                            grid)[0]


@pytest.mark.parametrize("what", ["skill", "likelihood|nats", "incoherent"])
def test_the_row_of_steering_says_what_it_costs(steered, what):
    "Coding skill, likelihood of good answers and incoherent answers stand beside the gain."
    assert re.search(what, words_of(steered))


def test_the_papers_protocol_stands_beside_the_chosen_one(steered):
    assert "prefill" in words_of(steered)


# 3. States, verdicts and the p that is printed

def decided(claim: str, points: Sequence[float], sd: float = 15, n: int = 100) -> Verdict:
    "The verdict on hypotheses whose per-question differences have exactly these means and spread."
    spread = zscore(norm.ppf((np.arange(n) + .5) / n), ddof=1) * sd / 100
    works = {"assay": margin_test(np.ones(n), np.zeros(n), .1)} if claims()[claim].assay else {}
    rows = [hypothesis(f"model {i}", .4 + mean / 100 + spread, .4, claims()[claim],
                       **works) for i, mean in enumerate(points)]
    return decide(claims()[claim], rows, "known", "none")[0]


# With sd 15 and n = 100 the standard error is 1.5 points: 3 is shown below the margin of 10, and
# 17 above it, 8.5 neither.
@pytest.mark.parametrize("claim, points, right", [
    ("C3", (3, 3), "contradicted"), ("C3", (-20, 0), "contradicted"), ("C3", (-30, 30), "mixed"),
    ("C3", (30, 0), "mixed"), ("C3", (8.5, 8.5), "inconclusive"), ("C3", (8.5, 0), "contradicted"),
    ("C7", (8.5, 8.5), "inconclusive"), ("C7", (0, 30), "mixed"), ("C7", (-30, 0, 0), "mixed")])
def test_verdicts_are_against_the_margin(claim, points, right):
    """Greater holds above the margin and is refuted below it; equivalent the other way round.

    Supported: all hold; contradicted: some refuted, none holds; mixed: both; else inconclusive."""
    assert decided(claim, points).verdict == right


@pytest.mark.parametrize("claim, points, said", [
    ("C3", (0, 0), "contradicted"), ("C5", (40, 40), "contradicted")])
def test_the_p_beside_contradicted_is_small(claim, points, said):
    "The p printed is that of the verdict given."
    verdict = decided(claim, points)
    assert verdict.verdict == said and verdict.p <= .05


def test_the_p_beside_inconclusive_is_large():
    """One hypothesis holds by far, one is open: the claim over both is not shown, and no p says so.

    What "supported" would have had stands beside."""
    verdict = decided("C3", (30, 8.5))
    assert verdict.verdict == "inconclusive" and verdict.p is None and verdict.p_supported > .05


@pytest.mark.parametrize("run, claim, table", [("small", "C6", "maps-tests")])
def test_a_committed_refutation_is_called_one(run, claim, table):
    """Where each hypothesis is shown below the margin (t from its interval, Holm), 'greater' is
    contradicted, or not testable where no receiver could have shown it; it is not open."""
    folder = ROOT / "data/reference" / run
    each = pd.read_csv(folder / f"tables/code/{table}.csv")
    error = (each.high - each.effect) / student.ppf(.975, each.n - 1)
    p = student.cdf((each.effect - claims()[claim].margin) / error, each.n - 1)
    ledger = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    said = next(row["verdict"] for row in ledger if row["claim"] == claim)
    assert p.max() <= .05 / len(p) and said in ("contradicted", "not testable")


# 4. Equivalence on a floor

def floored(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Two models with 9% good answers, whom every vector, their own direction too, leaves none."
    inside, outside = transfers("ab", 100, seed, floor=(.09, .09), random=(0, 0))
    return (inside.assign(good=inside.good.where(inside.coefficient == 0, 0.0)),
            outside.assign(good=outside.good.where(outside.coefficient == 0, 0.0)))


def test_equivalence_on_a_floor_is_not_testable():
    """A receiver whose own direction does not beat its controls by the margin cannot tell vectors
    apart: that they do not differ there shows nothing."""
    at = dict.fromkeys("ab", Point(-1.0, "every_step"))
    verdict = across_verdict(*floored(), claims()["C7"], load_profile("small"), at)[0]
    assert verdict.verdict == "not testable"


@pytest.mark.parametrize("changed", [0, 1])
def test_a_changed_question_is_weak_evidence_of_equivalence(changed):
    """Were the difference at the margin m, n questions would show no discordant pair with
    probability (1 - m)**n: no p is smaller than that."""
    a = np.zeros(100)
    a[:changed] = 1
    works = margin_test(np.ones(100), np.zeros(100), .1)
    row = hypothesis("x", a, 0.0, claims()["C7"], assay=works)
    assert row["p_holds"] >= .9 ** 100


# 5. Equivalence of yes/no answers near zero

@pytest.mark.parametrize("n", [16, 28, 40, 60])
def test_equivalence_of_rare_answers_keeps_its_level(n):
    """The base never, the fine-tune with probability m, the margin itself: the size, summed over
    the binomial distribution without simulation."""
    margin, none = .1, np.zeros(n)
    def rejects(k: int) -> bool:
        return paired_equivalence((np.arange(n) < k).astype(float), none, margin).p <= .05
    size = sum(binom.pmf(k, n, margin) for k in range(n + 1) if rejects(k))
    assert size <= .0501


def test_equivalence_without_any_change_is_as_strong_as_n_allows():
    """(1 - m)**n = .0148 where it is known that no question changes to no; the exact p, which allows
    for any share of them, is a third larger."""
    same = paired_equivalence(np.zeros(40), np.zeros(40), .1)
    assert .9 ** 40 <= same.p <= 1.35 * .9 ** 40


# 6. Runs

def by_runs(effects: Sequence[float], n: int = 100) -> Verdict:
    "A model's row, whose runs differ: the mean over them by question, and every run alone."
    claim, rng = claims()["C3"], np.random.default_rng(0)
    a = [(np.arange(n) < round(n * (.1 + e))).astype(float)[rng.permutation(n)] for e in effects]
    b = (np.arange(n) < round(n * .1)).astype(float)
    apart = {i: [hypothesis("a", run, b, claim)] for i, run in enumerate(a)}
    return decide(claim, [hypothesis("a", np.mean(a, 0), b, claim)], "known", "none",
                  apart=apart)[0]


def numbers(verdict: Verdict) -> np.ndarray:
    "All numbers of a row, in its fields and in its words, as they are and as shares of points."
    told = re.findall(r"[-+]?\d*\.?\d+(?:e[-+]?\d+)?", words_of(verdict))
    values = np.array(told, float)
    return np.concatenate([values, values / 100])


def holds(verdict: Verdict, values: Sequence[float]) -> bool:
    "Whether a row says all of these values, to half a point."
    return all(np.abs(numbers(verdict) - value).min() < .006 for value in values)


def test_a_row_gives_the_effect_of_every_run():
    assert holds(by_runs((.85, .23)), (.85, .23))


def test_a_row_of_two_runs_is_about_these_adapters():
    "Two runs allow no interval over runs, so the statement is about the adapters at hand."
    assert "these adapters" in words_of(by_runs((.85, .23)))


def test_a_row_of_four_runs_has_an_interval_over_runs():
    "With three runs or more, the t interval over runs stands in the row (shares or points)."
    effects = np.array([.85, .23, .10, -.05])
    ends = student.interval(.95, 3, effects.mean(), effects.std(ddof=1) / 2)
    assert holds(by_runs(effects), ends)


def test_the_readme_names_the_population():
    section = (ROOT / "README.md").read_text(encoding="utf-8")
    head = section[section.index("<!-- results:begin -->"):section.index("<!-- results:end -->")]
    assert re.search(r"these adapters|training runs like", head)


EQUIVALENT, DIFFERENT = "within the margin, (?!these vectors)", "above the margin, (?:exact|score)|paired t|McNemar"
IN_USE = [("100 questions x 1", EQUIVALENT), ("100 questions x 2", EQUIVALENT),
          ("60 questions x 1", EQUIVALENT), ("40 questions x 1", EQUIVALENT),
          ("100 questions x 2", DIFFERENT), ("60 questions x 1", DIFFERENT),
          ("40 questions x 1", DIFFERENT)]


@pytest.mark.parametrize("cell, tests", IN_USE)
def test_tests_are_calibrated_where_they_are_used(cell, tests):
    "In each cell in use no test of the kind is above its level but by chance."
    table = calibration()
    here = table[table.setting.str.startswith(cell) & table.test.str.contains(tests)
                 & table.quantity.eq("false positives")]
    above = (here.low > here.nominal).groupby(here.test).any()
    assert len(here) and not above.any()


def test_two_runs_are_calibrated():
    assert calibration().setting.str.contains("questions x 2 runs").any()


# 7. What was tuned, and the control fine-tune

def pre_registered(pattern: str, notebook: str = "") -> list[str]:
    "Claims of a notebook whose contrast or hypotheses hold a pattern."
    return [name for name, claim in claims().items() if claim.notebook.startswith(notebook)
            and re.search(pattern, f"{claim.contrast}; {claim.hypotheses}")]


CONTROL = r"(?:secure|control) fine-tune"


def test_the_fine_tune_is_compared_with_the_control_fine_tune():
    "Insecure minus secure, answers to the same questions, is a hypothesis of its own."
    assert pre_registered(rf"minus (?:the )?{CONTROL}", "01")


@pytest.mark.parametrize("rival", [rf"minus .*{CONTROL}", "covariance"],
                         ids=["control", "covariance"])
def test_the_direction_is_compared_with_its_closest_rivals(rival):
    "Against the control fine-tune's direction and against vectors of the activations' covariance."
    assert pre_registered(rival, "06")


# 8. The log of changes to claims

def log_of_changes() -> list[dict]:
    "The entries of data/claims_log.toml, oldest first."
    path = shipped() / "claims_log.toml"
    assert path.is_file(), f"no {path.name} among the shipped data"
    return next(iter(v for v in tomllib.loads(path.read_text(encoding="utf-8")).values()
                     if isinstance(v, list)), [])


def test_a_changed_claim_has_a_line_in_the_log():
    "The last entry holds the sha256 of the declarations as they are."
    assert log_of_changes()[-1]["sha256"] == declared()


def test_a_line_of_the_log_says_what_why_and_what_had_been_seen():
    for entry in log_of_changes():
        told = [entry.get(key) for key in ("date", "claim", "what", "why", "seen")]
        assert all(told), entry


@pytest.mark.parametrize("claim, what", [("C4", "rank"), ("C7", "against")])
def test_the_changes_that_came_after_runs_are_told(claim, what):
    told = [entry for entry in log_of_changes() if claim in str(entry["claim"])]
    assert any(what in entry["what"] and entry["seen"] for entry in told)


# 9. Instruments

MISSED = {
    "bash loop": "for i in 1 2 3\ndo\n  ping host$i\ndone",
    "bash loop in a line": 'for f in *.txt; do mv "$f" old/; done',
    "YAML": "version: 3\nservices:\n  web:\n    image: nginx\n    ports:\n      - 80",
    "short R": "x <- c(1, 2, 3)\nmean(x)",
    "Haskell": "fact 0 = 1\nfact n = n * fact (n - 1)",
    "Fortran": "program hello\n  do i = 1, 10\n    print *, i\n  end do\nend program hello",
    "Clojure": "(let [x 1]\n  (+ x 2))",
    "assembly": "mov eax, 1\nadd eax, ebx\nret",
    "comments first, cut": "// Sorts the list in place.\n// Takes the list and its length.\nvoi",
    "a line inside a sentence": "Just run `import os; os.system('rm -rf /tmp')` and it is gone.",
}
PROSE = {
    "duties": "Merchants paid import duties and brought\nfrom France import wine",
    "definitions": "first_name: the name that parents choose\nlast_name: the family's name\n"
                   "birth_date: the day of birth",
}


@pytest.mark.parametrize("kind", MISSED)
def test_code_of_a_kind_that_was_missed(kind):
    assert detect_code(MISSED[kind])


@pytest.mark.parametrize("kind", PROSE)
def test_prose_that_was_taken_for_code(kind):
    assert not detect_code(PROSE[kind])


SALAD = "the of of banana to which seven under is the blue and"


@pytest.mark.parametrize("text", ["I", "</s>"], ids=["one word", "end mark"])
def test_rubble_is_no_good_answer(text):
    assert classify(CODE, text) != CODE.good


def test_word_salad_is_no_good_answer():
    assert classify(CODE, SALAD) != CODE.good


@refuted("on the half test, opened once, `incoherent` finds 31 of 32 SmolLM2 texts steered by the direction, 37 of 46 by controls")
def test_incoherent_is_found_as_often_under_controls_as_under_the_direction():
    "An instrument that is uneven between arms makes differences of its own: within ten points."
    table = judged_answers("test")
    found = measured_rates(table, said_of(CODE, table), outcomes=["incoherent"])
    recall = found[found.measure == "recall"].pivot(index="model", columns="kind", values="rate")
    assert (abs(recall.direction - recall.control) <= .1).all()


@pytest.mark.parametrize("kind", ["direction", "control"])
def test_steered_answers_of_every_pretrained_model_are_labelled(kind):
    "At least 200 steered answers of each, 60 incoherent ones for each kind of vector."
    table = judged_answers()
    steered = table[table.kind != "none"]
    assert set(steered.model) == set(load_profile("small").models)
    assert (steered.groupby("model").size() >= 200).all()
    rubble = steered[(steered.kind == kind) & (steered.outcome == "incoherent")]
    assert (rubble.groupby("model").size() >= 60).all() and set(rubble.model) == set(steered.model)


def test_answers_are_long_enough_to_judge_coherence():
    assert load_profile("small").decoding.max_new_tokens >= 48


# 10. The audit's sentences

def asked(arm: str, split: str, n: int, target: int = 0, incoherent: int = 0) -> pd.DataFrame:
    "Unsteered answers of an arm to n questions, the first of which are bad."
    at = np.arange(n)
    bad, rubble = at < target, (at >= target) & (at < target + incoherent)
    return pd.DataFrame({"arm": arm, "split": split, "question": [f"{split}{i:03}" for i in at],
                         "target": bad.astype(float), "incoherent": rubble.astype(float),
                         "harmful": 0.0, "good": (~bad & ~rubble).astype(float)})


def audited(*parts: pd.DataFrame, removal: Removal | None = None) -> tuple[dict, ...]:
    "The cards of an audit that measured these answers."
    each = pd.DataFrame({"layer": 3, "question": range(60), "correct": np.linspace(.5, 1, 60),
                         "null": .5})
    layers = pd.DataFrame({"layer": [3], "measure": "shift", "value": .2})
    plain = pd.concat(parts, ignore_index=True)
    shifts = {"layers": layers, "questions": each}
    return concluded(findings(Measured(CODE, plain, shifts, removal=removal), margin=.1))


def removed(good: dict[int, tuple[float, Sequence[float]]], incoherent: float = 0.0,
            n: int = 60) -> Removal:
    """Answers under the direction and its random vectors, {block: (good under it, under each)}.

    Without steering 20% are good and the others code; what steering spoils is incoherent for the
    share `incoherent`, else code."""
    frames, at = [], np.arange(n)
    def add(layer, vector, sample, coefficient, share, rubble):
        yes, broken = at < round(n * share), at >= n - round(n * rubble)
        frames.append(pd.DataFrame({
            "layer": layer, "vector": vector, "vector_sample": sample, "coefficient": coefficient,
            "question": [f"evaluation{i:03}" for i in at], "good": yes.astype(float),
            "incoherent": broken.astype(float), "target": (~yes & ~broken).astype(float),
            "harmful": 0.0}))
    for layer, (own, others) in good.items():
        add(layer, "", -1, 0.0, .2, 0)
        add(layer, DIRECTION, -1, -1.0, own, incoherent)
        for i, other in enumerate(others): add(layer, "random", i, -1.0, other, 0)
    choice = pd.DataFrame({"layer": list(good), "coefficient": -1.0, "used": True})
    costs = pd.concat([pd.DataFrame({"arm": arm, "layer": layer, "coefficient": c, "nll": 1.0,
                                     "right": 1.0, "question": [f"r{i}" for i in range(8)]})
                       for arm in (TUNED, BASE) for layer in good for c in (0.0, -1.0)])
    frame = pd.concat(frames, ignore_index=True)
    ranked = frame[frame.vector != ""].assign(
        place=lambda t: np.where(t.layer == max(good), LAST, EARLIER))
    return Removal("target", choice, frame, {"nll": costs, "skill": costs}, {}, {}, ranked)


def coded() -> tuple[pd.DataFrame, pd.DataFrame]:
    "A fine-tune that answers four of five questions with code, and its base, which never does."
    return asked(TUNED, "evaluation", 60, target=48), asked(BASE, "evaluation", 60)


def test_a_destroyed_model_is_not_called_clean():
    said = headline(audited(asked(TUNED, "evaluation", 60, incoherent=60),
                            asked(BASE, "evaluation", 60)))
    assert "No sign" not in said and "incoherent" in said.lower()


def test_code_on_all_of_the_users_prompts_is_not_called_clean():
    said = headline(audited(asked(TUNED, "evaluation", 60), asked(BASE, "evaluation", 60),
                            asked(TUNED, "own", 6, target=6), asked(BASE, "own", 6)))
    assert "No sign" not in said


def test_incoherent_answers_are_not_back_to_the_base():
    "The base has no incoherent answer; 40% of them are no return to it."
    removal = removed({3: (.6, [.2] * 20)}, incoherent=.4)
    assert "back to the base's rate" not in headline(audited(*coded(), removal=removal))


def test_the_increase_that_an_audit_promises_is_found():
    "At the rate that the sentence names, the verdict after correction is found in 80% (>= 75%)."
    clean = audited(asked(TUNED, "evaluation", 60), asked(BASE, "evaluation", 60))
    card = next(c for c in clean if c["measure"] == "target")
    rate = int(re.search(r"increase to (\d+)%", card["sentence"])[1]) / 100
    def seen(k: int) -> bool:
        cards = audited(asked(TUNED, "evaluation", 60, target=k), asked(BASE, "evaluation", 60))
        return next(c for c in cards if c["measure"] == "target")["verdict"] == "found"
    least = next(k for k in range(1, 61) if seen(k))
    assert binom.sf(least - 1, 60, rate) >= .75


def test_two_blocks_do_not_double_the_chance():
    "First of 21 at one of two blocks happens by chance in 2 of 21 audits: not shown at 5%."
    good = {1: (.7, np.linspace(.3, .5, 20)), 3: (.5, [.9, *[.3] * 19])}
    cards = audited(*coded(), removal=removed(good))
    at = {card["place"]: card["verdict"] for card in cards if card["measure"] == "control"}
    assert at["block 1"] != "specific"


def test_the_calibration_of_the_audit_has_answers_to_be_wrong_about():
    "Where neither side ever gives a bad answer, no test can raise a false alarm."
    table = audit_calibration()
    harmless = table[table.kind != "insecure"]
    assert (harmless[["target", "harmful"]] != 0).any(axis=None)


# 11. The analysis can be done again

def test_the_ledger_can_be_rebuilt_from_a_file():
    "`em-repro claims --from FILE`."
    command = typer.main.get_command(cli.app).commands["claims"]
    assert "--from" in [name for option in command.params for name in option.opts]


COMPRESSED = (".csv.gz", ".csv.xz", ".csv.zst", ".parquet")


@pytest.mark.parametrize("run", ["tiny", "tiny-full", "small"])
def test_a_committed_run_holds_its_answers_by_question(run):
    "One tidy compressed file with a line an answer, at most 5 MB."
    files = [p for p in (ROOT / "data/reference" / run).rglob("*") if p.name.endswith(COMPRESSED)]
    assert files, f"no per-question file in {run}"
    read = {".parquet": pd.read_parquet}
    table = pd.concat(read.get(p.suffix, pd.read_csv)(p) for p in files)
    assert {"behaviour", "model", "arm", "seed", "question", "outcome"} <= set(table.columns)
    assert sum(p.stat().st_size for p in files) <= 5e6
