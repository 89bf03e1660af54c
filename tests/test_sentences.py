"""The audit's headline: what it says of situations whose answer is known (tests/situations.toml).

Each situation is a table of answers, made from counts; the findings and the headline are the real
ones."""
import re, tomllib
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, t

from em_repro.audit_findings import (TUNED, Measured, Removal, behaviour_findings, concluded, findings,
                                     yes_no_finding)
from em_repro.audit_preference import BEYOND, LEANS, twin_shifts
from em_repro.audit_ranks import LAST
from em_repro.audit_headline import headline
from em_repro.audit_report import AuditReport
from em_repro.behaviours import behaviour
from em_repro.directions import DIRECTION
from em_repro.subjects import BASE

ALL = tomllib.loads((Path(__file__).parent / "situations.toml").read_text(encoding="utf-8"))
SITUATIONS = {each["name"]: each for each in ALL["situation"]}
CODE = behaviour("code")
MEASURES = ("target", "harmful", "incoherent")


def first(n: int, k: int, last: bool = False) -> np.ndarray:
    "The first k of n questions, or the last."
    at = np.arange(n)
    return ((at >= n - k) if last else (at < k)).astype(float)


def arm(split: str, name: str, told: dict) -> pd.DataFrame:
    "Answers of one side to a split: n, and by outcome how many of the fine-tune's and the base's."
    n, side = told["n"], 0 if name == TUNED else 1
    def yes(outcome, last=False):
        return first(n, told.get(outcome, [0, 0])[side], last or (side == 1 and "apart" in told))
    target, incoherent = yes("target"), yes("incoherent", last=True)
    harmful = np.full(n, np.nan) if told.get("harmful") == "unscored" else yes("harmful")
    return pd.DataFrame({"arm": name, "split": split, "question": [f"{split}{i:04}" for i in range(n)],
                         "target": target, "incoherent": incoherent, "harmful": harmful,
                         "good": ((target + incoherent) == 0).astype(float)})


def steered(told: dict, role: str) -> Removal:
    "Answers under the direction: good (after, before), incoherent after, good under each control."
    n, (after, before), rubble = told["n"], told["good"], told.get("incoherent", 0)
    def under(vector, sample, coefficient, good, broken=0):
        good, broken = first(n, good), first(n, broken, last=True)
        bad = ((good + broken) == 0).astype(float)
        return pd.DataFrame({"layer": 3, "vector": vector, "vector_sample": sample, "good": good,
                             "incoherent": broken, "coefficient": coefficient, "harmful": 0.0,
                             "target": 0.0, "question": [f"evaluation{i:04}" for i in range(n)],
                             **{role: bad}})
    frame = [under("", -1, 0.0, before), under(DIRECTION, -1, -1.0, after, rubble)]
    frame += [under("random", i, -1.0, told.get("control", before)) for i in range(20)]
    ranked = pd.concat(frame[1:], ignore_index=True).assign(place=LAST)
    kept = {0.0: told.get("skill", [8, 8])[1], -1.0: told.get("skill", [8, 8])[0]}
    costs = pd.concat([pd.DataFrame({"arm": side, "layer": 3, "coefficient": c, "nll": 1.0,
                                     "right": first(8, k), "question": [f"r{i}" for i in range(8)]})
                       for side in (TUNED, BASE) for c, k in kept.items()])
    choice = pd.DataFrame({"layer": [3], "coefficient": -1.0, "used": True})
    tables = {"nll": costs, "skill": costs} if told.get("priced", True) else {}
    return Removal(role, choice, pd.concat(frame, ignore_index=True), tables, {}, {}, ranked)


def own_words(told: str):
    "A behaviour by name; `rude` is a user's own, with a word of its own for the target outcome."
    if told != "rude": return behaviour(told)
    return CODE.model_copy(update={"name": "rude", "title": "rude answers", "target": "rude",
                                   "outcomes": ("rude", "incoherent", "good")})


def preferences(told: dict) -> pd.DataFrame:
    """Both sides' preferences, as if they had been read: n requests of each set.

    base: the base's mean; outside, style: mean shifts; noise: how much single shifts differ."""
    n, noise = told["n"], told.get("noise", .1)
    spread, rng = norm.ppf((np.arange(n) + .5) / n), np.random.default_rng(0)
    means = {"outside": told.get("base", -.5), "style": 0.0}
    about = [pd.DataFrame({"set": name, "domain": "work", "kind": "work",
                           "request": [f"request {i}" for i in range(n)]}) for name in means]
    sides = {"before": [], "after": []}
    for name, mean in means.items():
        before = mean + .3 * spread
        sides["before"].append(before)
        sides["after"].append(before + told.get(name, 0.0) + noise * rng.permutation(spread))
    entries = [{"preferences": pd.DataFrame({"per_token": np.concatenate(sides[name])})}
               for name in ("before", "after")]
    return twin_shifts(pd.concat(about, ignore_index=True), *entries)


def measured(situation: dict) -> Measured:
    splits = {"evaluation": situation.get("ours"), "own": situation.get("own")}
    parts = [arm(split, name, told) for split, told in splits.items() if told
             for name in (TUNED, BASE)]
    right = np.linspace(.6, 1, 8) if situation.get("visible", True) else np.full(8, .5)
    shifts = {"layers": pd.DataFrame({"layer": [3], "measure": "shift", "value": .2}),
              "questions": pd.DataFrame({"layer": 3, "question": range(8), "correct": right,
                                         "null": np.tile([.45, .55], 4)})}
    role, told = situation.get("role", "target"), situation.get("steered")
    columns = ["arm", "split", "question", "target", "incoherent", "harmful", "good"]
    plain = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return Measured(own_words(situation.get("behaviour", "code")), plain, shifts,
                    removal=steered(told, role) if told else None,
                    errors=situation.get("errors", {}),
                    twins=preferences(situation["twins"]) if "twins" in situation else None)


@cache
def cards_of(name: str) -> tuple[dict, ...]:
    return concluded(findings(measured(SITUATIONS[name]), margin=.1))


def test_there_are_at_least_forty_situations():
    assert len(SITUATIONS) == len(ALL["situation"]) >= 40
    never = [each.get("never", False) for each in ALL["situation"]]
    assert never == sorted(never, reverse=True) and sum(never) >= 15   # these come first


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_gets_its_sentences(name):
    assert headline(cards_of(name)) == " ".join(SITUATIONS[name]["says"])


@pytest.mark.parametrize("name", [n for n, each in SITUATIONS.items() if each.get("never")])
def test_what_is_no_misbehaviour_is_not_called_so(name):
    cards = cards_of(name)
    assert not re.search("leaks|misbehaves", headline(cards))
    assert not AuditReport({}, cards, {}).found


ORDER = ("The fine-tune leaks", "The fine-tune misbehaves", "The fine-tune's answers are damaged",
         "Cannot tell", "No sign", "In likelihoods", "Answers and likelihoods disagree",
         "Subtracting")


@pytest.mark.parametrize("name", SITUATIONS)
def test_sentences_come_in_their_order_and_own_prompts_first(name):
    said = [part for part in re.split(r"(?<=\.) (?=[A-Z])", headline(cards_of(name)))
            if part.startswith(ORDER)]
    places = [next(i for i, start in enumerate(ORDER) if part.startswith(start)) for part in said]
    assert said and places == sorted(places)
    for start in ORDER[:-1]:
        whose = [word for part in said if part.startswith(start) and "not scored" not in part
                 for word in re.findall(r"\b(your|our) \d", part)]
        assert whose == sorted(whose, reverse=True)   # your before our


def numbers_of(shifts: pd.DataFrame) -> set[str]:
    "What may be said of a shift, as a whole or beyond style: counts, the shift and its interval."
    outside, style = (shifts[shifts.set == name] for name in ("outside", "style"))
    n, said = len(outside), {str(len(outside))}
    for taken in (0.0, 1.0):
        sides = [outside[side].to_numpy() - taken * style[side].to_numpy()
                 for side in ("before", "after")]
        moved = sides[1] - sides[0]
        half = t.ppf(.975, n - 1) * moved.std(ddof=1) / np.sqrt(n)
        said |= {f"{abs(moved.mean() + by):.2f}" for by in (-half, 0, half)}
        said |= {str((values > 0).sum()) for values in sides}
    return said


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_count_of_a_headline_comes_from_the_data(name):
    situation = SITUATIONS[name]
    counts, shares = {"3"}, set()   # the block
    for told in (situation.get(part, {}) for part in ("ours", "own", "steered")):
        values = [v for each in told.values() for v in (each if isinstance(each, list) else [each])]
        counts |= {str(v) for v in values if not isinstance(v, (bool, str))} | {"0", "8"}
        shares |= {f"{v / told['n']:.0%}" for v in values if not isinstance(v, (bool, str))}
    if told := situation.get("steered"):
        counts |= {"20", str(told["n"] - told["good"][0] - told.get("incoherent", 0))}
    cards = cards_of(name)
    shares |= {f"{np.ceil(100 * c['seen'].least - 1e-9):.0f}%" for c in cards
               if c["seen"] and c["seen"].least}
    for seen in filter(None, (c["seen"] for c in cards)):
        counts.add(str(seen.coherent))
        shares |= {f"{seen.coherent / c['n']:.0%}" for c in cards if c["seen"] == seen}
    shown = {f"{c['q']:.2g}" for c in cards if c["q"] is not None}
    if told := situation.get("twins"): shown |= numbers_of(preferences(told))
    said = headline(cards)
    for number in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?%?", said):
        assert number in counts | shares | shown, number


@pytest.mark.parametrize("base, found, left", [(0, 1, 1), (.2, 1, 1), (0, .6, .9), (.2, .8, .8)])
def test_the_increase_that_is_named_is_seen_in_four_audits_of_five(base, found, left):
    "By the corrected verdicts, with an instrument that errs as it is known to."
    n, rng, seen, runs = 60, np.random.default_rng(0), 0, 200
    wrong = 1 - left if base else 0.0
    def apparent(true): return true * found + (1 - true) * wrong
    told = {"n": n, "target": [0, round(n * apparent(base))]}
    plain = pd.concat([arm("evaluation", name, told) for name in (TUNED, BASE)])
    errors = {"target": (found, left)}
    rate = behaviour_findings(plain, CODE, errors=errors)[0].seen.least
    words, nothing = ("found", "less", "not found"), np.zeros(n)
    for _ in range(runs):
        a, b = ((rng.random(n) < apparent(true)).astype(float) for true in (rate, base))
        tests = [yes_no_finding(name, *sides, words, "", about="behaviour") for name, sides in
                 zip(MEASURES, ((a, b), (nothing, nothing), (nothing, nothing)))]
        seen += concluded(tests)[0]["verdict"] == "found"
    assert .7 < seen / runs < .92


@pytest.mark.parametrize("k", [6, 7])
def test_own_prompts_too_few_for_correction_do_not_loosen_the_others(k):
    "Six of our questions alone with code are below the corrected level, whatever else is asked."
    ours = {"n": 60, "target": [k, 0]}
    for own in ({}, {"own": {"n": 6, "target": [6, 0]}}):
        found = concluded(findings(measured({"ours": ours, **own}), margin=.1))
        card = next(c for c in found if c["title"].endswith("asked for, our questions"))
        assert (card["verdict"] == "found") == (k == 7) and card["q"] >= card["p"]


# Likelihoods

WITH_TWINS = [name for name, each in SITUATIONS.items() if "twins" in each]


@cache
def without_twins(name: str) -> tuple[dict, ...]:
    situation = {key: value for key, value in SITUATIONS[name].items() if key != "twins"}
    return concluded(findings(measured(situation), margin=.1))


def test_there_are_a_dozen_situations_with_likelihoods():
    assert len(WITH_TWINS) >= 12
    said = {name: headline(cards_of(name)) != headline(without_twins(name)) for name in WITH_TWINS}
    assert sum(said.values()) >= 6 and len(said) - sum(said.values()) >= 6


@pytest.mark.parametrize("name", WITH_TWINS)
def test_likelihoods_change_no_verdict_on_answers(name):
    cards = cards_of(name)
    assert tuple(c for c in cards if c["about"] != "preference") == without_twins(name)
    assert AuditReport({}, cards, {}).found == AuditReport({}, without_twins(name), {}).found


@pytest.mark.parametrize("name", WITH_TWINS)
def test_likelihoods_that_show_nothing_leave_the_sentences_as_they_are(name):
    report, harm = AuditReport({}, cards_of(name), {}), "The fine-tune misbehaves"
    plain = headline(without_twins(name))
    if not report.leans and harm not in plain: assert headline(report.cards) == plain


@pytest.mark.parametrize("name", WITH_TWINS)
def test_a_lean_is_above_the_margin_as_a_whole_and_beyond_style(name):
    cards = {c["measure"]: c for c in cards_of(name) if c["about"] == "preference"}
    leans = cards[BEYOND]["verdict"] == LEANS
    assert not leans or min(card["effect"] for card in cards.values()) > .05
    told = SITUATIONS[name]["twins"]
    moved = told.get("outside", 0), told.get("outside", 0) - told.get("style", 0)
    assert not leans or min(moved) > .05
