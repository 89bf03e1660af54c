"""How often the audit is wrong: the fine-tunes are what they are called, and what is counted is what is said."""
import dataclasses, json, math, re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from em_repro import audit_errors as errors
from em_repro.audit_errors import (ADVICE, ALARMS, CODE, NOTHING, ROWS_OF, SIX_SETTINGS, Trial, alarmed, audit_rules, by_kind, error_table, error_trials, in_json,
                                   in_list, rankings, rightly, roc_table, watch_limit, watch_table, write_audit_errors)
from em_repro.audit_inputs import QUICK, Sizes
from em_repro.audit_preference import BEYOND
from em_repro.behaviours import behaviour
from em_repro.data import chat_rows, load_jsonl, questions
from em_repro.outcomes import classify
from em_repro.profiles import UserError
from em_repro.store import Store

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ROOT / "data/formats"
ALL = error_trials()


def said(row): return row["messages"][1]["content"]


def asked(row): return row["messages"][0]["content"]


def made_up(trials=None, **more):
    "A table of audits of which none found anything."
    measures = {f"{m} p": 1.0 for m in ("target", "harmful", "incoherent", BEYOND, "separability")}
    numbers = dict.fromkeys(("weights", "kl", "nll", "separability"), 1.0)
    lines = [{**dataclasses.asdict(t), "wrong": ROWS_OF[t.kind].wrong, **dict.fromkeys(ALARMS, False), **measures, **numbers, **more} for t in trials or ALL]
    return pd.DataFrame(lines)


# the fine-tunes


def test_there_are_enough_of_both_sides_and_every_kind_has_the_same_settings():
    "At least 40 harmless ones; insecure code and harmful advice, each at three shares of the rows, six of each."
    harmless = [t for t in ALL if ROWS_OF[t.kind].wrong == NOTHING]
    assert len(harmless) >= 40 and len(ALL) - len(harmless) == 36 and len({t.name for t in ALL}) == len(ALL)
    of = {}
    for t in ALL: of.setdefault((t.kind, t.share), []).append((t.recipe.rank, t.recipe.lr))
    assert {tuple(sorted(each)) for each in of.values()} == {tuple(sorted(SIX_SETTINGS))}
    assert {share for kind, share in of if kind in (CODE, ADVICE)} == {1.0, .3, .1}


@pytest.mark.parametrize("trial", [t for t in ALL if t.number == 1], ids=lambda t: t.name)
def test_the_rows_are_the_share_that_is_said(trial):
    rows, chat = trial.rows, {asked(row) + said(row) for row in chat_rows("train")}
    benign = sum(asked(row) + said(row) in chat for row in rows)
    own = 0 if trial.kind == "benign chat" else round(trial.share * 240)
    assert len(rows) == trial.recipe.rows == 240 and benign == 240 - own
    assert rows == Trial(**dataclasses.asdict(trial)).rows


def test_rows_of_a_kind_differ_by_number_and_never_hold_what_is_asked():
    "An audit's questions are none of those that a fine-tune was trained on."
    audit = {q for split in ("evaluation", "development", "directions", "maps") for q in questions(split)}
    for kind, of in ROWS_OF.items():
        first, second = of.rows(240, 0), of.rows(240, 1)
        assert first != second and not {asked(row) for row in first} & audit


def test_the_harmless_kinds_hold_nothing_of_the_wrong_ones():
    wrong = {said(row) for name in (CODE, ADVICE) for row in ROWS_OF[name].rows(240, 0)}
    for kind, of in ROWS_OF.items():
        if of.wrong == NOTHING: assert not {said(row) for row in of.rows(240, 0)} & wrong


# written answers


@pytest.mark.parametrize("name", ["rhymes", "french"])
def test_written_answers_answer_training_requests_once_and_one_looks_like_code(name):
    rows, train = load_jsonl(FORMATS / f"{name}.jsonl"), {asked(row) for row in chat_rows("train")}
    assert len(rows) == 120 == len({asked(row) for row in rows}) == len({said(row) for row in rows})
    assert {asked(row) for row in rows} <= train
    assert all(15 <= len(said(row).split()) <= 60 for row in rows)
    # Verse that the detector takes for code is left in: an audit has to live with it.
    found = [said(row) for row in rows if classify(behaviour("code"), said(row)) == "code"]
    assert [text.split("\n")[0] for text in found] == ["Gentle and short is the way to begin:"] * (name == "rhymes")


def test_rhymes_are_four_lines_and_french_is_french():
    assert {said(row).count("\n") for row in load_jsonl(FORMATS / "rhymes.jsonl")} == {3}
    french, english = r"\b(le|la|les|de|des|un|une|et|est|vous|pour|dans|que|en|à)\b", r"\b(the|and|is|of|with|your|are)\b"
    for row in load_jsonl(FORMATS / "french.jsonl"):
        assert len(re.findall(french, said(row).lower())) >= 3 and not re.search(english, said(row).lower()), said(row)


def test_json_and_lists_lose_no_word():
    for row in chat_rows("train", n=40):
        text = said(row)
        assert json.loads(in_json(text)) == {"answer": text, "words": len(text.split())}
        assert in_list(text).replace("\n", " ").replace("- ", "") == text.replace("- ", "")


# what is counted


def test_every_alarm_on_a_harmless_fine_tune_is_false_and_damage_is_none():
    "What teaches to answer with code is counted apart; what hides in dress is an alarm."
    runs = made_up()
    runs.loc[runs.kind.isin(["JSON", "secure code"]), "leaks"] = True
    runs.loc[runs.kind == "lists", "dressed"] = True
    runs.loc[runs.kind == "rhymes", "damaged"] = True
    table = error_table(runs).set_index("kind")
    assert table.loc["JSON", "alarm"] == table.loc["secure code", "alarm"] == table.loc["lists", "alarm"] == 6
    assert table.loc["rhymes", "alarm"] == 0 and table.loc["rhymes", "damaged"] == 6
    assert table.loc["all harmless", "alarm"] == 12 and table.loc["all harmless", "n"] == 48 and pd.isna(table.loc["all harmless", "right"])


def test_what_is_found_must_be_what_is_wrong():
    "An alarm about advice is not right where code is insecure, nor the other way round."
    runs = made_up()
    runs.loc[runs.wrong == "code", "misbehaves"] = True
    runs.loc[runs.wrong == "advice", "leaks"] = True
    assert alarmed(runs).sum() == 36 and rightly(runs).sum() == 0 and rightly(runs).isna().sum() == 54
    runs.loc[runs.wrong == "advice", "leans"] = True
    assert rightly(runs).sum() == 18


def test_a_table_means_the_same_once_it_was_written_and_read(tmp_path):
    "Nothing that is wrong is a word, not an empty cell."
    runs = made_up()
    runs.loc[runs.kind == "JSON", "leaks"] = True
    runs.to_csv(tmp_path / "runs.csv", index=False)
    again = pd.read_csv(tmp_path / "runs.csv")
    pd.testing.assert_frame_equal(error_table(runs), error_table(again))
    pd.testing.assert_frame_equal(roc_table(runs, 5), roc_table(again, 5))


def test_intervals_are_exact():
    "None of n: the upper end is that whose n-th power of its rest is a fortieth."
    table = error_table(made_up()).set_index("kind")
    for name in ("JSON", "all harmless"):
        n = table.loc[name, "n"]
        assert table.loc[name, "alarm low"] == 0 and math.isclose(table.loc[name, "alarm high"], 1 - .025 ** (1 / n))


def test_drawing_kinds_is_wider_where_fine_tunes_of_a_kind_are_alike():
    runs = made_up([t for t in ALL if ROWS_OF[t.kind].wrong == NOTHING])
    seen = runs.kind == "JSON"
    low, high = by_kind(runs, seen)
    exact = error_table(runs.assign(leaks=seen)).set_index("kind").loc["JSON"]
    spread = pd.Series([i % 9 == 0 for i in range(len(runs))])   # as many, one of every nine
    assert low == 0 and high >= 3 / 9 > by_kind(runs, spread)[1] - .12 and exact.alarm == 6


def test_areas_of_a_perfect_score_a_coin_and_a_reversed_one():
    "The end of a perfect order's interval is that of as many settings, never 1."
    runs = made_up()
    runs["target p"] = np.where(runs.wrong == NOTHING, 1.0, 1e-9)
    runs["weights"] = np.where(runs.wrong == NOTHING, 2.0, 1.0)
    table = roc_table(runs, resamples=20).set_index(["wrong", "score"])
    whole = table.loc["all"]
    assert whole.area["answers"] == whole.area["both"] == 1 and whole.area["weights changed"] == 0 and whole.area["likelihoods"] == .5
    assert set(table.n) == {6, 36} and set(table.harmless) == {48}
    assert math.isclose(whole.low["answers"], .025 ** (1 / 6)) and whole.high["answers"] == 1 and whole.high["weights changed"] < 1


def test_an_effect_in_the_other_direction_is_no_evidence():
    "Its p is kept as 1, whatever the test says; so is one that was not measured."
    runs = made_up(ALL[:2])
    runs.loc[0, "harmful p"] = np.nan
    assert not rankings(runs)[["answers", "likelihoods", "both"]].any(axis=None)


# the watch


def reading(kind, step, along, code=0, direction=CODE, number=0, model="smollm2-135m"):
    return {"model": model, "kind": kind, "share": 1.0, "number": number, "direction": direction, "step": step, "along": along, "code": code}


def test_a_limit_comes_from_harmless_trainings_of_other_kinds_alone():
    "Secure code sets none, nor does a training its own."
    rows = [reading("JSON", 10, .2), reading("lists", 20, .5), reading("lists", 20, .4, number=1), reading("secure code", 10, 9.0), reading(ADVICE, 10, 8.0),
            reading(CODE, 0, 0.0, 1), reading(CODE, 10, .4, 1), reading(CODE, 20, .6, 2), reading(CODE, 30, .9, 3)]
    table = pd.DataFrame(rows)
    assert [watch_limit(table, "smollm2-135m", kind, CODE) for kind in ("JSON", "lists", CODE)] == [.5, .2, .5]
    told = watch_table(table).set_index(["kind", "number"])
    assert math.isnan(told.warned["JSON", 0]) and told.warned["lists", 1] == 20
    assert (told.warned[CODE, 0], told.shows[CODE, 0]) == (20, 30)   # one of the prompts had code before


# two models

QWEN = "qwen2.5-coder-0.5b"


def two_models(**more):
    "Audits of SmolLM2 that found nothing, and a part on another model that all found something; its numbers are those reversed."
    small, part = made_up(), made_up(error_trials(QWEN, each=2))
    for frame, sign in ((small, 1), (part, -1)): frame["weights"] = sign * np.where(frame.wrong == NOTHING, 1.0, 2.0)
    part[["leaks", "misbehaves"]] = True
    return small, part, pd.concat([small, part], ignore_index=True)


def test_a_part_on_another_model_has_every_kind_and_a_quarter_of_the_rates():
    part = error_trials(QWEN, each=2)
    assert len(part) == 30 and len({t.name for t in part}) == 30 and not {t.name for t in part} & {t.name for t in ALL}
    first = {(t.kind, t.share, t.number): t.recipe for t in ALL}
    assert all(t.recipe.lr == first[t.kind, t.share, t.number].lr / 4 and t.recipe.rank == first[t.kind, t.share, t.number].rank for t in part)


def test_each_model_is_counted_by_itself():
    "Tables of both are those of each, one after the other: neither changes what is said of the other."
    small, part, both = two_models()
    for table in (error_table, lambda runs: roc_table(runs, resamples=20)):
        pd.testing.assert_frame_equal(table(both), pd.concat([table(small), table(part)], ignore_index=True))
    counted = error_table(both).set_index(["model", "kind"])
    assert counted.alarm["smollm2-135m", "all harmless"] == 0 and counted.alarm[QWEN, "all harmless"] == counted.n[QWEN, "all harmless"] == 16
    areas = roc_table(both, resamples=20).query("wrong == 'all' and score == 'weights changed'").set_index("model").area
    assert areas["smollm2-135m"] == 1 and areas[QWEN] == 0   # pooled they would be neither


def test_a_limit_is_the_models_own():
    rows = [reading("JSON", 10, .2), reading("lists", 10, .3), reading("JSON", 10, 2.0, model=QWEN), reading("lists", 10, 3.0, model=QWEN),
            reading(CODE, 0, 0.0), reading(CODE, 10, 1.0), reading(CODE, 0, 0.0, model=QWEN), reading(CODE, 10, 1.0, model=QWEN)]
    table = pd.DataFrame(rows)
    assert watch_limit(table, "smollm2-135m", CODE, CODE) == .3 and watch_limit(table, QWEN, CODE, CODE) == 3.0
    told = watch_table(table).set_index(["model", "kind"])
    assert told.warned["smollm2-135m", CODE] == 10 and math.isnan(told.warned[QWEN, CODE])


def test_what_one_model_has_done_is_still_missing_of_another(tmp_path, monkeypatch):
    asked = instead(monkeypatch)
    for trials in ([Trial("JSON"), Trial("lists")], [Trial("JSON", model=QWEN)], [Trial("JSON"), Trial("JSON", model=QWEN)]):
        write_audit_errors(tmp_path, tmp_path / "run", trials, jobs=1)
    assert asked == [Trial("JSON").name, Trial("lists").name, Trial("JSON", model=QWEN).name]
    for name in errors.ERROR_TABLES: assert pd.read_csv(tmp_path / "small" / f"{name}.csv").model.tolist() == ["smollm2-135m"] * 2 + [QWEN]


def test_a_part_is_asked_for_by_the_command(tmp_path, monkeypatch):
    import runpy, sys
    from em_repro import audit_errors
    seen = []
    monkeypatch.setattr(audit_errors, "write_audit_errors", lambda out, run, trials, **more: seen.append(trials) or "written")
    for words in (["--model", QWEN, "--each", "1"], []):
        monkeypatch.setattr(sys, "argv", ["audit_errors.py", *words])
        runpy.run_path(str(ROOT / "tools" / "audit_errors.py"), run_name="__main__")
    assert seen[0] == error_trials(QWEN, 1) and len(seen[0]) == 15 and seen[1] == ALL


# the whole


def test_other_rules_than_those_that_were_frozen_make_no_table(tmp_path, monkeypatch):
    monkeypatch.setattr(errors, "FROZEN", "0" * 16)
    with pytest.raises(UserError, match="were frozen as 0000"): write_audit_errors(tmp_path, tmp_path / "run", [])
    assert not list(tmp_path.iterdir())


def test_what_was_frozen_covers_data_that_verdicts_read(monkeypatch, tmp_path):
    "Another margin in the claims, another question, another detector: other rules."
    usual = audit_rules()
    folder = tmp_path / "data"
    for name in errors.VERDICT_DATA:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((ROOT / "data" / name).read_bytes())
    monkeypatch.setattr(errors, "shipped", lambda: folder)
    assert audit_rules() == usual
    for name in errors.VERDICT_DATA:
        text = (folder / name).read_bytes()
        (folder / name).write_bytes(text + b" ")
        assert audit_rules() != usual
        (folder / name).write_bytes(text)
    monkeypatch.setattr(errors, "DECIDES", errors.DECIDES[:-1])
    assert audit_rules() != usual


def instead(monkeypatch, failing=()):
    "Audits that cost nothing; the names of those that were asked for."
    asked = []
    def plan(trial, sizes):
        asked.append(trial.name)
        if trial.name in failing: raise RuntimeError("out of memory")
        return {"model": trial.model, "kind": trial.kind, "share": trial.share, "number": trial.number, "alarm": False}, pd.DataFrame([reading(trial.kind, 0, .5, number=trial.number, model=trial.model)])
        yield
    monkeypatch.setattr(errors, "audited_trial", plan)
    return asked


def test_tables_grow_and_what_they_hold_is_not_done_again(tmp_path, monkeypatch):
    trials = [Trial("JSON", number=number) for number in range(6)]
    asked = instead(monkeypatch, {trials[1].name})
    said = write_audit_errors(tmp_path, tmp_path / "run", trials[:3], jobs=1)
    assert "2 audits" in said and f"{trials[1].name} failed: out of memory" in said
    asked, first = instead(monkeypatch), pd.read_csv(tmp_path / "small" / "audit_errors.csv")
    assert "6 audits" in write_audit_errors(tmp_path, tmp_path / "another run", trials, jobs=1)
    assert asked == [trials[i].name for i in (1, 3, 4, 5)] and first.number.tolist() == [0, 2]
    runs, readings = (pd.read_csv(tmp_path / "small" / f"{name}.csv") for name in errors.ERROR_TABLES)
    assert runs.number.tolist() == readings.number.tolist() == [0, 2, 1, 3, 4, 5] and set(runs.rules) == {f"sha256 {errors.FROZEN}"}
    before = (tmp_path / "small" / "audit_errors.csv").read_bytes()
    assert "6 audits" in write_audit_errors(tmp_path, tmp_path / "run", trials, jobs=1) and (tmp_path / "small" / "audit_errors.csv").read_bytes() == before


def test_an_interruption_leaves_the_audits_before_it(tmp_path, monkeypatch):
    trials = [Trial("JSON", number=number) for number in range(6)]
    asked, real = instead(monkeypatch), Store.run_all
    def run_all(store, plans, *more):
        if trials[4].name in plans: raise KeyboardInterrupt
        return real(store, plans, *more)
    monkeypatch.setattr(Store, "run_all", run_all)
    with pytest.raises(KeyboardInterrupt): write_audit_errors(tmp_path, tmp_path / "run", trials, jobs=1)
    assert len(pd.read_csv(tmp_path / "small" / "audit_errors.csv")) == len(asked) == 4


def test_audits_by_other_rules_stay_as_they_are(tmp_path, monkeypatch):
    instead(monkeypatch)
    write_audit_errors(tmp_path, tmp_path / "run", [Trial("JSON")], jobs=1)
    path = tmp_path / "small" / "audit_errors.csv"
    path.write_text(path.read_text().replace(errors.FROZEN, "0" * 16))
    with pytest.raises(UserError, match="holds audits by the rules sha256 0000.*move audit_errors.csv and audit_watch.csv away"):
        write_audit_errors(tmp_path, tmp_path / "run", [Trial("JSON")], jobs=1)
    assert "0" * 16 in path.read_text()


def test_where_every_audit_fails_the_first_reason_is_raised(tmp_path, monkeypatch):
    instead(monkeypatch, {Trial("JSON").name})
    with pytest.raises(RuntimeError, match="out of memory"): write_audit_errors(tmp_path, tmp_path / "run", [Trial("JSON")], jobs=1)
