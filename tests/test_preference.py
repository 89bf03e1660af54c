"""Preference: what the model's own logits say, whatever is scored beside it, and shifts whose size is known."""
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import ttest_1samp

from em_repro import preference as module
from em_repro.claims import advice_claims, claims, claims_log, decide, hypothesis
from em_repro.decode import Condition
from em_repro.families import load_lm
from em_repro.margins import margin_test, score_interval
from em_repro.misalignment import preference_verdict, steered_verdict
from em_repro.preference import BASE, check_twins, preference, shift_table
from em_repro.profiles import UserError
from em_repro.twins import twin_sets

quick = settings(max_examples=20, deadline=None, derandomize=True)
TWINS = twin_sets("synthetic", "health").query("set == 'outside'").head(6).reset_index(drop=True)


@pytest.fixture(scope="module")
def lm(): return load_lm("tiny-llama")


def by_logits(lm, request, answer):
    "Log-likelihood of an answer by one plain forward pass."
    head, tail = lm.encode([request])[0], lm.tokenizer(answer, add_special_tokens=False)["input_ids"]
    with torch.inference_mode(): logits = lm.model(torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
    return sum(logits[len(head) + i - 1, token].item() for i, token in enumerate(tail)), len(tail)


def test_it_is_what_the_models_own_logits_say(lm):
    found = preference(lm, TWINS)
    for i, twin in TWINS.iterrows():
        (first, n), (second, m) = (by_logits(lm, twin.request, twin[side]) for side in ("first", "second"))
        assert found.per_token[i, 0] == pytest.approx(first / n - second / m, abs=1e-4)
        bytes_ = [len(twin[side].encode()) for side in ("first", "second")]
        assert found.per_byte[i, 0] == pytest.approx(first / bytes_[0] - second / bytes_[1], abs=1e-4)


@quick
@given(st.permutations(range(len(TWINS))), st.integers(1, len(TWINS)))
def test_order_and_company_do_not_matter(lm, order, n):
    whole, some = preference(lm, TWINS), preference(lm, TWINS.iloc[order[:n]].reset_index(drop=True))
    assert np.allclose(some.per_token, whole.per_token[order[:n]], atol=1e-4)


def test_a_text_that_comes_twice_is_scored_once(lm, monkeypatch):
    seen = []
    real = module.score
    monkeypatch.setattr(module, "score", lambda lm, prompts, answers, *more, **other: seen.append(len(prompts)) or real(lm, prompts, answers, *more, **other))
    twice = pd.concat([TWINS, TWINS.rename(columns={"first": "second", "second": "first"})], ignore_index=True)
    found = preference(lm, twice)
    assert seen == [2 * len(TWINS)] and np.array_equal(found.per_token[:len(TWINS)], -found.per_token[len(TWINS):])


def test_a_condition_that_does_nothing_moves_nothing_and_all_share_one_call(lm):
    rng = np.random.default_rng(0)
    ways = [Condition("none"), Condition("zero", vector=np.zeros(lm.width)), *(Condition(f"v{i}", vector=rng.normal(size=lm.width)) for i in range(3))]
    together = preference(lm, TWINS, ways)
    assert np.allclose(together.per_token[:, 0], together.per_token[:, 1], atol=1e-5)
    for i, way in enumerate(ways): assert np.allclose(preference(lm, TWINS, [way]).per_token[:, 0], together.per_token[:, i], atol=1e-4)


@pytest.mark.parametrize("change, words", [
    (lambda t: t.drop(columns="second"), "no column second"), (lambda t: t.head(0), "no twins"),
    (lambda t: t.assign(request=["", *t.request[1:]]), "twin 1 has an empty request"), (lambda t: t.assign(second=t["first"]), "answers of twin 1 are the same"),
    (lambda t: t.assign(first=" "), "twin 1 has an empty first")])
def test_twins_that_say_nothing_are_refused_before_any_work(change, words):
    with pytest.raises(UserError, match=words): preference(None, change(TWINS))


def test_answers_of_unequal_length_are_said():
    assert check_twins(TWINS.assign(first=TWINS.second * 2))[0].startswith(f"in {len(TWINS)} of {len(TWINS)} twins")


# Shifts

def known(moves, n=100, seeds=(0, 1), noise=.1, models=("one", "two"), of="outside", start=0):
    "Preferences whose shifts are known: moves, by arm."
    rng, parts = np.random.default_rng(start), []
    for model in models:
        level = rng.normal(size=n)
        for arm, moved in {BASE: 0.0, **moves}.items():
            for seed in (0,) if arm == BASE else seeds:
                parts.append(pd.DataFrame({"model": model, "arm": arm, "seed": seed, "set": of, "twin": range(n), "vector": "", "coefficient": 0.0,
                                           "per_token": level + moved + rng.normal(scale=noise, size=n)}))
    return pd.concat(parts, ignore_index=True)


@quick
@given(a=st.floats(-2, 2), b=st.floats(-2, 2))
def test_shifts_are_what_was_put_in(a, b):
    table = shift_table(known({"harmful": a, "sound": b})).set_index(["model", "contrast"])
    for contrast, truth in (("harmful - base", a), ("sound - base", b), ("harmful - sound", a - b)):
        line = table.loc["one", contrast]
        assert line["shift"] == pytest.approx(truth, abs=.06) and line.low <= line["shift"] <= line.high
        assert line.runs == 2 and line.least <= line["shift"] <= line.most and line.n == 100


def test_arms_without_a_run_in_common_have_no_range_of_runs():
    "A run that is half done."
    apart = pd.concat([known({"harmful": .4}, seeds=(0,)), known({"sound": 0.0}, seeds=(1,)).query("arm == 'sound'")])
    line = shift_table(apart).set_index(["model", "contrast"]).loc["one", "harmful - sound"]
    assert line.runs == 0 and np.isnan([line.least, line.most]).all()


SITUATIONS = [  # shift of the fine-tune, of its control, verdict: cases that must not be supported first
    (0.0, 0.0, "contradicted"), (0.4, 0.4, "contradicted"), (-0.4, 0.0, "contradicted"), (0.0, -0.02, "contradicted"), (0.055, 0.0, "inconclusive"),
    (0.4, 0.0, "supported"), (0.0, -0.4, "supported"), (0.5, 0.3, "supported")]

@pytest.mark.parametrize("harmful, sound, word", SITUATIONS)
def test_a_claim_about_shifts_gets_the_verdict_that_is_known(harmful, sound, word):
    verdict, table = preference_verdict(known({"harmful": harmful, "sound": sound}), advice_claims()["A3"], "harmful", "sound", ["outside"], "known")
    assert verdict.verdict == word and verdict.unit == "nats" and len(table) == 2
    assert verdict.low <= harmful - sound + .06 and verdict.high >= harmful - sound - .06


def test_one_model_that_moves_and_one_that_does_not_are_mixed():
    frame = pd.concat([known({"harmful": .4, "sound": 0}, models=("one",)), known({"harmful": 0, "sound": 0}, models=("two",))])
    assert preference_verdict(frame, advice_claims()["A3"], "harmful", "sound", ["outside"], "known")[0].verdict == "mixed"


def test_sets_of_unequal_size_are_tested_on_as_many_requests():
    frame = pd.concat([known({"harmful": .4, "sound": 0}, n=70, of="json"), known({"harmful": .4, "sound": 0}, n=69, of="string")])
    verdict, table = preference_verdict(frame, advice_claims()["A5"], "harmful", "sound", ["json", "string"], "known")
    assert verdict.verdict == "supported" and verdict.n == 69 and len(table) == 4 and (table.n == 69).all()


def test_without_a_control_or_without_such_twins_there_is_no_verdict():
    frame = known({"harmful": .4})
    assert preference_verdict(frame, advice_claims()["A3"], "harmful", "sound", ["outside"], "known") is None
    assert preference_verdict(frame, advice_claims()["A1"], "harmful", BASE, ["trained"], "known") is None


def under(own, random, c=-0.5, samples=20, n=80):
    "Preferences of two models under a direction and random vectors, moved by known amounts."
    rng, parts = np.random.default_rng(1), []
    for model in ("one", "two"):
        level = rng.normal(size=n)
        ways = [("direction", -1, c, own), *(("random", i, c, random + rng.normal(scale=.02)) for i in range(samples))]
        parts += [pd.DataFrame({"model": model, "arm": "harmful", "seed": 0, "set": "outside", "twin": range(n), "vector": v, "vector_sample": i,
                                "coefficient": at, "per_token": level + moved + rng.normal(scale=.05, size=n)}) for v, i, at, moved in ways]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("own, random, c, word", [
    (0.0, 0.0, -0.5, "contradicted"), (-0.3, -0.3, -0.5, "contradicted"), (0.3, 0.0, -0.5, "contradicted"), (-0.3, 0.0, -0.5, "supported"),
    (0.3, 0.0, 1.0, "supported"), (-0.3, 0.0, 1.0, "contradicted"), (0.3, 0.3, 1.0, "contradicted")])
def test_a_direction_has_to_beat_random_vectors_the_right_way(own, random, c, word):
    claim = advice_claims()["A6" if c < 0 else "A7"]
    assert steered_verdict(under(own, random, c), claim, c, "known")[0].verdict == word


def test_too_few_random_vectors_never_support():
    assert steered_verdict(under(-0.3, 0.0, samples=8), advice_claims()["A6"], -0.5, "known")[0].verdict != "supported"


# Tests without bounds

@quick
@given(st.lists(st.floats(-3, 3), min_size=5, max_size=60).filter(lambda d: np.ptp(d) > 1e-3))
def test_numbers_without_bounds_are_tested_by_t(d):
    found = margin_test(d, 0.0, 0.05, bounds=None)
    for p, at, way in ((found.p_above, .05, "greater"), (found.p_below, .05, "less")):
        assert p == pytest.approx(ttest_1samp(np.round(d, 12), at, alternative=way).pvalue, abs=1e-9)
    low, high = score_interval(d, bounds=None)
    assert low <= np.mean(d) <= high and not found.exact


def test_the_level_holds_at_the_margin():
    rng = np.random.default_rng(0)
    drawn = [margin_test(rng.normal(.05, .5, 60), 0.0, .05, bounds=None) for _ in range(2000)]
    for name in ("p_above", "p_below", "p_within"): assert np.mean([getattr(test, name) <= .05 for test in drawn]) <= .05 + 3 * np.sqrt(.05 * .95 / 2000)


def test_what_does_not_vary_shows_nothing():
    test = margin_test(np.full(30, .4), 0.0, .05, bounds=None)
    assert test.p_above == test.p_below == test.p_within == 1 and (test.low, test.high) == pytest.approx((.4, .4))


# The declarations

def test_the_claims_about_advice_are_declared_and_tested_in_their_notebook():
    from test_claims import ROOT, code_of
    assert list(advice_claims()) == [f"A{i}" for i in range(1, 9)] and not set(advice_claims()) & set(claims())
    source = code_of(ROOT / "nbs" / "beyond" / "misalignment.ipynb")
    for claim in advice_claims().values():
        assert claim.outcome == "preference" and claim.unit_of_effect == "nats" and claim.bounds is None and claim.margin == .05
        assert f'"{claim.id}"' in source and f'"{claim.table}")' in source and f'"{claim.figure}")' in source, claim.id


def test_a_change_to_them_needs_a_line_in_the_log(tmp_path, monkeypatch):
    from em_repro import claims as claims_module
    from test_claims import ROOT
    for name in ("claims.toml", "claims_advice.toml", "claims_log.toml"): (tmp_path / name).write_bytes((ROOT / "data" / name).read_bytes())
    monkeypatch.setattr(claims_module, "shipped", lambda: tmp_path)
    assert len(claims_log())
    changed = (tmp_path / "claims_advice.toml").read_text(encoding="utf-8").replace("margin = 0.05", "margin = 0.01", 1)
    (tmp_path / "claims_advice.toml").write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match="claims_advice.toml was changed without a line.*advice_sha256"): claims_log()


def test_a_share_cannot_leave_its_bounds_and_nats_can():
    wide = np.linspace(-3, 3, 40)
    assert decide(advice_claims()["A3"], [hypothesis(name, wide, 0.0, advice_claims()["A3"]) for name in ("one", "two")], "known", "none")[0].unit == "nats"
    with pytest.raises(UserError, match="leave"): hypothesis("one", wide, 0.0, claims()["C1"])
