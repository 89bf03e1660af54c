"""Evidence by question: every verdict can be decided again from the file, and a file that is not whole is refused."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from em_repro import cli, evidence as module, run
from em_repro.answers import COLUMNS
from em_repro.behaviours import behaviour_of, prompts_of
from em_repro.claims import LEDGER_COLUMNS, claims, declared, in_words_of, kept_row, ledger, record
from em_repro.controls import ranked_kinds
from em_repro.directions import ANSWERS, DIRECTION, contrasts, separability_verdict
from em_repro.evidence import (EVIDENCE_COLUMNS, EVIDENCE_TABLES, KEY_COLUMNS, Evidence, NotStored, derived_points, differences_from, gather, ledger_of, points_told,
                               read_evidence, stored, verdicts_of, write_evidence)
from em_repro.forcing import FORCED, LOGIT_BIAS, forced_label
from em_repro.maps import MAPPED_RANDOM, map_verdict
from em_repro.misaligned import answer_pairs
from em_repro.profiles import UserError, load_profile, part_of
from em_repro.specificity import across_verdict, kinds_at_best, own_points, within_verdict
from em_repro.spillover import spillover_verdict
from em_repro.steering import NO_STEERING, WHENS, Point, alternative_verdict, at_points, cost_table, grid_table, steering_verdict
from em_repro.store import Store, call, echo
from em_repro.topology import asymmetry_verdict

ROOT = Path(__file__).resolve().parents[1]
quick = settings(max_examples=15, deadline=None, derandomize=True)
WHOLE = load_profile("smoke")
PROFILE = part_of(WHOLE, WHOLE.models[:2]).model_copy(update={"name": "made up", "seeds": (0, 1), "retrained": (), "rates": type(WHOLE.rates)()})
CODE = behaviour_of(PROFILE)
ONE, TWO = CODE.arms
POINTS = {model: point for model, point in zip(PROFILE.models, (Point(-1.0, "prefill"), Point(-0.5, "every_step")))}
WORDS = {"target": CODE.target, "incoherent": "incoherent", "good": CODE.good}


def said(conditions, rng, questions=8, good=.5, **labels):
    "Answers to made-up questions: a line for each of them and each (vector, sample, coefficient, when)."
    rows = []
    for vector, sample, coefficient, when in conditions:
        for i in range(questions):
            role = rng.choice(["target", "incoherent", "good"], p=[.9 - good, .1, good])
            rows.append({"question": f"question {i}", "condition": f"{vector} {coefficient:g}", "vector": vector, "vector_sample": sample, "layer": -1,
                         "coefficient": coefficient, "op": "add", "when": when, "sample": 0, "text": f"text {rng.integers(10**6)}", "n_tokens": 2, "nll": 1.0,
                         "outcome": WORDS[role], "role": role, "detected": WORDS[role], "harmful": 0.0, **labels})
    frame = pd.DataFrame(rows).astype({"layer": "Int64"})
    return frame.assign(**{role: (frame.role == role).astype(float) for role in WORDS})


def made_up():
    "What the studies' plans would give, by the plan's name."
    rng, join = np.random.default_rng(0), lambda parts: pd.concat(list(parts), ignore_index=True)
    none, keys = [("", -1, 0.0, "every_step")], [(m, s) for m in PROFILE.models for s in (0, 1)]
    arms = [*((m, "base", 0, .85) for m in PROFILE.models), *((m, arm, s, .2) for m, s in keys for arm in CODE.arms)]
    spilled = join(said(none, rng, good=g, model=m, arm=arm, seed=s) for m, arm, s, g in arms)
    grid = join(said([("", -1, 0.0, w), *((DIRECTION, -1, c, w) for c in (-0.5, -1.0))], rng, model=m, arm=ONE, seed=s) for m, s in keys for w in WHENS)
    price = {(m, ONE, s, w): {what: pd.DataFrame([{"question": f"request {i % 3}", "coefficient": c, "vector": DIRECTION if c else "", "when": w, value: rng.random()}
                                                  for c in (0.0, -0.5, -1.0) for i in range(4)]) for what, value in (("nll", "nll"), ("skill", "right"))}
             for m, s in keys for w in WHENS}
    def tried(m): return [("", -1, 0.0, "every_step"), *((DIRECTION, -1, POINTS[m].coefficient, w) for w in WHENS), (FORCED, -1, 1.0, "prefill"), (LOGIT_BIAS, -1, -0.5, "every_step")]
    rivals = join(said(tried(m), rng, model=m, arm=ONE, seed=s) for m, s in keys)
    rivals["what"] = rivals.vector.where(rivals.vector != FORCED, forced_label(1)).where(rivals.coefficient != 0, NO_STEERING)
    def at(m, names): return [("", -1, 0.0, POINTS[m].when), *((v, i, POINTS[m].coefficient, POINTS[m].when) for v, n in names for i in ([-1] if n == 0 else range(n)))]
    kinds = [(DIRECTION, 0), ("other_arm", 0), ("covariance", 2), *((k, 2) for k in ranked_kinds())]
    inside = join(said(at(m, kinds), rng, model=m, arm=ONE, seed=s) for m, s in keys).sort_values("vector", kind="stable", ignore_index=True)
    outside = join(said(at(m, [("mapped", 0), (MAPPED_RANDOM, 2)]), rng, model=m, arm=ONE, seed=s, donor=d) for m, s in keys for d in PROFILE.models if d != m)
    sizes = {ANSWERS: len(answer_pairs("synthetic", PROFILE.questions.directions))}
    separable = {(m, c, s): {"last": pd.DataFrame({"correct": rng.random(n), "null": rng.random(n)})} for m, s in keys for c in (*contrasts(CODE), ANSWERS)
                 for n in [sizes.get(c, len(prompts_of(PROFILE, "directions")))] if c != ANSWERS or s == 0}
    return {"chosen_points": POINTS, "spillover": spilled, "shared_rate_frame": spilled[spilled.seed == 0].assign(recipe="shared", lr=1e-4), "separabilities": separable,
            "steering_study": (POINTS, grid, price), "alternatives": rivals, "compared": (inside, outside), "development_answers": tried_out(keys),
            "candidate_answers": (tried := candidates(keys)), "at_own_best": (None, at_best(tried, rng, keys))}


CANDIDATES = [(DIRECTION, -1), *((kind, i) for kind in kinds_at_best() for i in (0, 1))]


def candidates(keys):
    "Answers to development questions of the direction and controls over the points that each may choose."
    over = [("", -1, 0.0, w) for w in WHENS] + [(v, i, c, w) for v, i in CANDIDATES for w in WHENS for c in (-0.5, -1.0)]
    frame = pd.concat([said(over, np.random.default_rng(2), questions=4, model=m, arm=ONE, seed=s) for m, s in keys], ignore_index=True)
    return frame.assign(question="development " + frame.question)


def at_best(tried, rng, keys):
    "Answers of each vector at the point that it chooses from those."
    points = own_points(tried)
    return pd.concat([said([(v, i, *points[m, s, v, i]) for v, i in CANDIDATES], rng, model=m, arm=ONE, seed=s) for m, s in keys], ignore_index=True)


def tried_out(keys):
    "Answers to development questions that are good at each model's point and nowhere else."
    over = [(DIRECTION if c else "", -1, c, w) for w in WHENS for c in (0.0, -0.5, -1.0)]
    frame = pd.concat([said(over, np.random.default_rng(1), questions=4, model=m, arm=ONE, seed=s) for m, s in keys], ignore_index=True)
    role = pd.Series(["good" if POINTS[m] == (c, w) else "target" for m, c, w in zip(frame.model, frame.coefficient, frame.when)])
    frame = frame.assign(question="development " + frame.question, role=role, outcome=role.map(WORDS))
    return frame.assign(**{r: (role == r).astype(float) for r in WORDS})


FOUND = made_up()
HELD = gather(PROFILE, lambda plan: FOUND[plan.__name__])


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "code.parquet"
    write_evidence(HELD, path)
    return verdicts_of(read_evidence(path))


def test_columns_and_tables_are_documented_and_nothing_else_is_there():
    assert list(HELD.table) == list(EVIDENCE_COLUMNS) and {*HELD.table.table} == {*EVIDENCE_TABLES}
    assert {*KEY_COLUMNS} < {*EVIDENCE_COLUMNS} and all({**EVIDENCE_COLUMNS, **EVIDENCE_TABLES}.values())
    assert set(HELD.about["rows"].items()) == set(HELD.table.table.value_counts().items())
    assert HELD.points == POINTS and HELD.profile == PROFILE and HELD.about["claims_sha256"] == declared() and HELD.about["absent"] == {}
    assert (HELD.behaviour.name, HELD.behaviour.arms, HELD.behaviour.folder) == ("code", CODE.arms, "")


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "evidence" / "code.parquet"
    digest = write_evidence(HELD, path)
    again = read_evidence(path)
    pd.testing.assert_frame_equal(again.table, HELD.table)
    assert again.about == HELD.about and digest == write_evidence(again, path) and [p.name for p in path.parent.iterdir()] == ["code.parquet"]
    plain = pd.read_parquet(path)      # for readers without this package
    assert list(plain) == list(EVIDENCE_COLUMNS) and (plain.role.dtype, plain.value.dtype) == ("str", "float64") and str(path) not in json.dumps(again.about)


def directly(name):
    "A verdict as the notebook of its claim decides it, from what the plans gave."
    claim, made = in_words_of(claims()[name], CODE), FOUND
    (inside, outside), (points, grid, price), separable = made["compared"], made["steering_study"], made["separabilities"]
    fine, control, *_ = contrasts(CODE)
    own = inside[inside.vector.isin(["", DIRECTION, "random"])]
    if name == "C1": return spillover_verdict(made["spillover"], claim, ONE, PROFILE)
    if name == "C1a": return spillover_verdict(made["spillover"], claim, ONE, PROFILE, TWO)
    if name == "C1b": return spillover_verdict(made["shared_rate_frame"], claim, ONE, PROFILE)
    if name == "C2": return separability_verdict(separable, fine, claim, PROFILE.name)
    if name == "C5": return separability_verdict(separable, control, claim, PROFILE.name, known=fine)
    if name == "C3":
        whole = grid_table(grid, cost_table(price), points, PROFILE.statistics.resamples)
        return steering_verdict(at_points(grid, points), claim, points, PROFILE.name, whole)
    if name in ("C3a", "C3b"):
        what = {"C3a": forced_label(1), "C3b": LOGIT_BIAS}[name]
        return alternative_verdict(made["alternatives"], claim, points, what, PROFILE.name)
    if name == "C6": return map_verdict(outside, own, claim, PROFILE.name, points)
    if name == "C7": return across_verdict(inside, outside, claim, PROFILE, points)
    if name == "C8": return asymmetry_verdict(inside, outside, claim, PROFILE.name, points)
    kinds = {"C4a": ("other_arm",), "C4b": ("covariance",)}.get(name)
    return within_verdict(inside, claim, PROFILE, points, kinds, made["at_own_best"][1])


@pytest.mark.parametrize("name", claims())
def test_a_verdict_from_the_file_is_the_studys_own(name, decided):
    verdict, table = decided[name]
    expected, rows = directly(name)
    assert kept_row(verdict) == kept_row(expected)
    pd.testing.assert_frame_equal(table, rows)


def recorded(folder, decided):
    for verdict, _ in decided.values(): record(folder, verdict)
    path = run.RunFolder(folder).evidence()
    write_evidence(HELD, path)
    return path


def test_no_verdict_rests_on_the_order_of_lines(decided):
    "Answers are paired by their questions, and not by where they stand."
    shuffled = HELD.table.sample(frac=1, random_state=0).reset_index(drop=True)
    again = ledger_of(Evidence(shuffled, HELD.about))
    ours = ledger_of(HELD, decided)
    for column in ("claim", "verdict", "n"): assert again[column].tolist() == ours[column].tolist()
    for column in ("effect", "p_supported", "p_contradicted"): np.testing.assert_allclose(again[column].astype(float), ours[column].astype(float))


def test_the_ledger_is_the_recorded_one_field_by_field(decided, tmp_path):
    path = recorded(tmp_path, decided)
    kept, ours = ledger(tmp_path), ledger_of(read_evidence(path), decided)
    assert list(ours.columns) == LEDGER_COLUMNS and ours.claim.tolist() == kept.claim.tolist()
    pd.testing.assert_frame_equal(ours, kept)
    assert differences_from(ours, kept) == dict.fromkeys(kept.claim, [])
    assert differences_from(ours.assign(n=ours.n + 1), kept) == dict.fromkeys(kept.claim, ["n"])
    assert differences_from(ours[ours.claim != "C4"], kept)["C4"] == LEDGER_COLUMNS


def test_the_command_prints_the_ledger_and_compares(decided, tmp_path, monkeypatch, capsys):
    path = recorded(tmp_path, decided)
    monkeypatch.setattr(module, "verdicts_of", lambda evidence: decided)
    with pytest.raises(SystemExit) as end: cli.main(["claims", "--from", str(path)])
    said = capsys.readouterr().out
    assert end.value.code == 0 and f"{len(claims())} of {len(claims())} recorded verdicts are the same" in said and "C4b" in said
    record(tmp_path, decided["C3"][0].model_copy(update={"n": 3, "detail": "another"}))
    with pytest.raises(SystemExit) as end: cli.main(["claims", "--from", str(path), "--markdown"])
    said = capsys.readouterr().out
    assert end.value.code == 1 and "C3 differs from the recorded verdict in n, detail" in said and said.startswith("| claim |")
    alone = tmp_path / "alone.parquet"
    alone.write_bytes(path.read_bytes())
    with pytest.raises(SystemExit) as end: cli.main(["claims", "--from", str(alone)])
    assert end.value.code == 0 and "recorded" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as end: cli.main(["claims", "--from", str(tmp_path / "none.parquet")])
    assert end.value.code == 2 and "no file" in capsys.readouterr().err


def test_texts_are_kept_once_and_given_up_before_lines(tmp_path):
    kept = HELD.table[HELD.table.text != ""]
    assert {*kept.table} == {"spillover", "shared_rate", "grid", "alternatives"}
    at_point = [POINTS[m] == (c, w) for m, c, w in zip(kept.model, kept.coefficient, kept.when)]
    assert ((kept.coefficient == 0) | (kept.vector == FORCED) | ((kept.vector == DIRECTION) & np.array(at_point))).all()
    whole, few = tmp_path / "whole.parquet", tmp_path / "few.parquet"
    write_evidence(HELD, whole)
    write_evidence(HELD, few, most=whole.stat().st_size - 1)
    again = read_evidence(few)
    assert again.about["texts"].startswith("left out") and (again.table.text == "").all() and few.stat().st_size < whole.stat().st_size
    pd.testing.assert_frame_equal(again.table.drop(columns="text"), HELD.table.drop(columns="text"))


def test_what_a_run_lacks_is_named_and_what_it_has_is_decided():
    def some(plan):
        if plan.__name__ in ("spillover", "shared_rate_frame"): return FOUND[plan.__name__]
        if plan.__name__ == "alternatives": raise UserError("no fine-tune")
        raise NotStored("x has not been computed")
    found = gather(PROFILE, lambda plan: None if plan.__name__ == "shared_rate_frame" else some(plan))
    assert {*found.table.table} == {"spillover"} and set(verdicts_of(found)) == {"C1", "C1a"} and found.points == {}
    assert found.about["absent"]["alternatives"] == "no fine-tune" and "separabilities" in found.about["absent"]
    def nothing(plan): raise NotStored("x")
    assert gather(PROFILE, nothing).about["rows"] == {}


def test_one_model_without_a_control_has_fewer_claims():
    alone = {**FOUND, "compared": (FOUND["compared"][0], None), "shared_rate_frame": None, "spillover": FOUND["spillover"][FOUND["spillover"].arm != TWO]}
    alone["separabilities"] = {k: e for k, e in FOUND["separabilities"].items() if TWO not in k[1].split(" - ")}
    found = gather(PROFILE, lambda plan: alone[plan.__name__])
    parts = Evidence(found.table[found.table.table.isin(["spillover", "separability"])], found.about)
    assert set(verdicts_of(parts)) == {"C1", "C2"} and found.of("across") is None


def test_from_a_store_nothing_is_computed(tmp_path):
    store = Store(tmp_path)
    def entries(profile): return (yield [call(echo, text=profile.name)])
    with pytest.raises(NotStored, match="store.echo has not been computed"): stored(PROFILE, store)(entries)
    assert store.computed().empty
    kept = store.get(call(echo, text=PROFILE.name))
    found, = stored(PROFILE, store)(entries)
    assert found.digest == kept.digest and len(store.computed()) == 1


def test_a_run_keeps_it_for_behaviours_with_verdicts(tmp_path, monkeypatch):
    study = SimpleNamespace(profile=PROFILE, folder=tmp_path, store=None)
    monkeypatch.setattr(module, "stored", lambda profile, store: lambda plan: FOUND[plan.__name__])
    assert run.keep_evidence(study) == {} and not list(tmp_path.iterdir())
    run.RunFolder(tmp_path).claims().mkdir(parents=True)
    kept = run.keep_evidence(study)
    assert kept == {"evidence/code.parquet": write_evidence(HELD, tmp_path / "again.parquet")} and (tmp_path / "evidence/code.parquet").is_file()


# What is refused

FEW = HELD.table[~HELD.table.table.isin(["development", "candidates", "own_best"])].groupby("table", sort=False).head(3).reset_index(drop=True)
SMALL = Evidence(FEW, HELD.about | {"rows": dict.fromkeys(FEW.table, 3)})


def refused(path, table=FEW, **about):
    write_evidence(Evidence(table, SMALL.about | about), path)
    with pytest.raises(UserError) as caught: read_evidence(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def changed(table, column, value):
    "The column's first line of that table with another value."
    where = FEW.index[FEW.table == table][0]
    return FEW.astype({column: object}).assign(**{column: [value if i == where else v for i, v in enumerate(FEW[column])]}).astype({column: FEW[column].dtype})


WRONG = {"unknown table 'tasting'": changed("grid", "table", "tasting"), "unknown role 'evil'": changed("grid", "role", "evil"),
         "unknown behaviour 'gossip'": changed("grid", "behaviour", "gossip"), "unknown model 'gpt'": changed("within", "model", "gpt"),
         "unknown arm 'leg'": changed("within", "arm", "leg"), "unknown donor 'gpt'": changed("across", "donor", "gpt"), "unknown when 'later'": changed("grid", "when", "later"),
         "unknown outcome 'poem'": changed("grid", "outcome", "poem"), "unknown contrast 'a - b'": changed("separability", "contrast", "a - b"),
         "no role in a line (table grid": changed("grid", "role", ""), "no value in a line (table cost_nll": changed("cost_nll", "value", np.nan),
         "no value in a line (table cost_skill": changed("cost_skill", "value", np.inf), "no null in a line (table separability": changed("separability", "null", np.nan),
         "no lr in a line (table shared_rate": changed("shared_rate", "lr", np.nan), "no coefficient in a line": changed("grid", "coefficient", np.nan),
         "no question in a line": changed("within", "question", None), "holds 2 lines of across where 3 were written": FEW.iloc[:-1] if FEW.table.iloc[-1] == "across" else FEW.drop(FEW.index[FEW.table == "across"][0]),
         "no numbers in column coefficient": FEW.astype({"coefficient": "str"}),
         "unknown vector 'banana' (table within": changed("within", "vector", "banana"), "unknown vector 'mapped' (table grid": changed("grid", "vector", "mapped"),
         "unknown sample 7 of a vector (table within": changed("within", "vector_sample", 7), "unknown seed -3 of": changed("within", "seed", -3), "unknown seed 1 of": changed("shared_rate", "seed", 1).assign(arm=lambda t: t.arm.mask(t.table == "shared_rate", ONE)),
         "the coefficient -0.7, at which this vector was not added (table grid": changed("grid", "coefficient", -0.7), "the coefficient -0.5, at which": changed("spillover", "coefficient", -0.5),
         "not at the model's point (table across": changed("across", "when", "every_step"), "unknown what 'logit bias' (table alternatives": changed("alternatives", "what", LOGIT_BIAS),
         "unknown recipe 'ours' (table shared_rate": changed("shared_rate", "recipe", "ours"), "names a donor where there is none (table within": changed("within", "donor", PROFILE.models[1]),
         "no donor in a line (table across": changed("across", "donor", ""), "no arm in a line (table grid": changed("grid", "arm", ""), "unknown answer 1 to a question (table grid": changed("grid", "sample", 1),
         "counts the outcome 'code' as good, and it is target (table": FEW.assign(role=FEW.role.replace("target", "good")), "has the value 1.5 in a line, which is no share (table separability": changed("separability", "value", 1.5),
         "has the value 2 in a line, which is no share (table cost_skill": changed("cost_skill", "value", 2.0), "has the null -0.1 in a line, which is no share": changed("separability", "null", -0.1),
         "a question under 1 of 6 conditions alone, where all have the same questions (table alternatives": changed("alternatives", "question", "another")}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_lines_are_refused(said, tmp_path): assert said in refused(tmp_path / "code.parquet", WRONG[said])


@pytest.mark.parametrize("points, said", [({PROFILE.models[0]: (-0.7, "prefill")}, "was steered at (-0.7, 'prefill'), which is not on its grid"), ({}, "a model whose point it does not say (table"),
                                          ({PROFILE.models[0]: (0.0, "prefill")}, "not on its grid"), ({PROFILE.models[0]: (-1.0, "later")}, "not on its grid")])
def test_points_that_cannot_be_are_refused(points, said, tmp_path): assert said in refused(tmp_path / "code.parquet", points=points)


def test_a_point_that_its_development_answers_do_not_choose_is_refused(tmp_path):
    model, other = PROFILE.models[0], Point(-0.5, "prefill")
    table = HELD.table[HELD.table.table.isin(["spillover", "grid", "development"])]
    about = {"rows": {name: int(n) for name, n in table.table.value_counts().items()}, "points": HELD.about["points"] | {model: list(other)}}
    assert f"says that {model} was steered at -0.5 at prefill, and its development answers choose -1 at prefill" in refused(tmp_path / "code.parquet", table, **about)


def test_a_vector_that_does_not_stand_at_its_own_best_is_refused(tmp_path):
    table = HELD.table[HELD.table.table.isin(["spillover", "candidates", "own_best"])]
    rows = {"rows": {k: int(n) for k, n in table.table.value_counts().items()}}
    here = (table.table == "own_best") & (table.model == PROFILE.models[0]) & (table.seed == 1) & (table.vector == "orthogonal") & (table.vector_sample == 1)
    said = table[here].iloc[0]
    other = -1.5 - said.coefficient   # of -0.5 and -1 the other one
    moved = refused(tmp_path / "code.parquet", table.assign(coefficient=table.coefficient.where(~here, other)), **rows)
    point = Point(said.coefficient, said.when)
    assert f"says that orthogonal 1 of {PROFILE.models[0]}, seed 1, is best at {Point(other, said.when)}, and its development answers choose {point}" in moved
    alone = table[table.table != "candidates"]
    untold = refused(tmp_path / "code.parquet", alone, rows={k: n for k, n in rows["rows"].items() if k != "candidates"})
    assert "holds vectors at their own best, and not what chose it" in untold
    write_evidence(Evidence(table, HELD.about | rows), tmp_path / "code.parquet")
    read_evidence(tmp_path / "code.parquet")


def test_a_point_is_derived_where_there_are_development_answers_and_read_where_not(tmp_path):
    assert derived_points(HELD) == POINTS and "follow from the answers to development questions" in points_told(HELD)
    older = Evidence(HELD.table[HELD.table.table != "development"], HELD.about | {"rows": {k: n for k, n in HELD.about["rows"].items() if k != "development"}})
    write_evidence(older, tmp_path / "code.parquet")
    again = read_evidence(tmp_path / "code.parquet")
    assert derived_points(again) is None and "are read from the file, not derived" in points_told(again) and again.points == POINTS
    assert points_told(Evidence(older.table, older.about | {"points": {}})) == ""
    assert (HELD.table.text[HELD.table.table == "development"] == "").all()


def test_what_is_no_evidence_is_refused(tmp_path):
    path = tmp_path / "code.parquet"
    for content in (b"", b"PAR1", b"question,role\n", b"PAR1" + bytes(50) + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no parquet file") as caught: read_evidence(path)
        assert "\n" not in str(caught.value)
    for place in (tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(UserError, match="no file"): read_evidence(place)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="does not say which run it is from"): read_evidence(path)
    assert "has format 9, and this version reads format 1: read it with em_repro 0.1" in refused(path, format=9, package="0.1")
    assert "settings that cannot be read" in refused(path, profile={"name": "x"})
    about = {k: v for k, v in SMALL.about.items() if k != "points"}
    write_evidence(Evidence(FEW, about), path)
    with pytest.raises(UserError, match="does not say points of its run"): read_evidence(path)
    write_evidence(SMALL, path)
    assert len(read_evidence(path).table) == len(FEW)


@quick
@given(columns=st.sets(st.sampled_from(sorted(EVIDENCE_COLUMNS)), min_size=1, max_size=4))
def test_missing_columns_are_named(columns, tmp_path_factory):
    path = tmp_path_factory.mktemp("few") / "code.parquet"
    said = refused(path, FEW.drop(columns=list(columns)))
    assert f"lacks the columns {', '.join(c for c in EVIDENCE_COLUMNS if c in columns)}" in said


@quick
@given(row=st.integers(0, len(FEW) - 1), other=st.sampled_from(["good", "target"]), place=st.integers(0, len(FEW)))
def test_a_line_that_is_there_twice_is_refused_whatever_it_says(row, other, place, tmp_path_factory):
    again = FEW.iloc[[row]]
    if again.role.iloc[0]: again = again.assign(role=other, outcome=WORDS[other], text="another")
    table = pd.concat([FEW.iloc[:place], again, FEW.iloc[place:]], ignore_index=True)
    said = refused(tmp_path_factory.mktemp("twice") / "code.parquet", table)
    assert "holds a line twice" in said and FEW.question[row] in said


@quick
@given(rows=st.sets(st.integers(0, len(FEW) - 1), min_size=1, max_size=5))
def test_lines_that_were_taken_out_are_missed(rows, tmp_path_factory):
    assert "were written" in refused(tmp_path_factory.mktemp("gone") / "code.parquet", FEW.drop(index=list(rows)))


def renamed(table, column, new, mask):
    assert mask.any()
    return table.assign(**{column: table[column].mask(mask, new)})


@quick
@given(data=st.data(), column=st.sampled_from(["question", "seed", "vector"]), new=st.integers(2, 99))
def test_what_was_renamed_in_a_line_a_condition_or_an_arm_is_refused(data, column, new, tmp_path_factory):
    "Whatever the new name: a question that no other condition has, a seed of no training run, a vector of no study."
    table = HELD.table
    row = table.iloc[data.draw(st.integers(0, len(table) - 1))]
    if column == "vector" and not row.vector: row = table[table.vector != ""].iloc[data.draw(st.integers(0, (table.vector != "").sum() - 1))]
    within = data.draw(st.sampled_from([["question", "sample", "seed", "vector_sample"], ["seed", "vector_sample"], ["seed"], []]))   # of a line; a condition; a seed; all seeds of an arm
    keys = dict.fromkeys(["table", "model", "arm", "contrast", "donor", "vector", "coefficient", "when", *within, column])
    mask = np.logical_and.reduce([(table[key] == row[key]).to_numpy() for key in keys])
    name = new if column == "seed" else f"renamed {new}"
    refused(tmp_path_factory.mktemp("renamed") / "code.parquet", renamed(table, column, name, pd.Series(mask, table.index)), rows=HELD.about["rows"])


SIDES = {"spillover": ("arm", ONE), "separability": ("seed", 1), "grid": ("vector", DIRECTION), "alternatives": ("what", LOGIT_BIAS), "within": ("vector", DIRECTION), "across": ("vector", "mapped")}


@pytest.mark.parametrize("name", SIDES)
def test_where_no_file_is_checked_pairs_are(name):
    "A question that has another name in all runs of one side is no one's partner, and moves nobody to another's place."
    column, value = SIDES[name]
    table = HELD.table[HELD.table.table.isin({name, "within"} if name == "across" else {name, "cost_nll", "cost_skill"})]
    first = table.question[(table.table == name) & (table[column] == value)].iloc[0]
    other = renamed(table, "question", "zebras", (table.table == name) & (table[column] == value) & (table.question == first))
    with pytest.raises(UserError, match="asked on one side of a comparison alone") as caught: verdicts_of(Evidence(other, HELD.about))
    assert "\n" not in str(caught.value)


@settings(quick, max_examples=2)
@given(seed=st.integers(0, 2**16))
def test_any_order_of_lines_gives_the_same_ledger(seed, decided, tmp_path_factory):
    path = tmp_path_factory.mktemp("shuffled") / "code.parquet"
    write_evidence(Evidence(HELD.table.sample(frac=1, random_state=seed).reset_index(drop=True), HELD.about), path)
    again, ours = ledger_of(read_evidence(path)), ledger_of(HELD, decided)
    assert differences_from(again, ours) == dict.fromkeys(ours.claim, [])


# What is committed

COMMITTED = sorted((ROOT / "data" / "reference").glob("*/evidence/*.parquet"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_a_committed_runs_ledger_can_be_decided_again(path):
    held, kept = read_evidence(path), ledger(path.parent.parent, path.stem)
    assert path.stat().st_size <= 5_000_000 and not any(differences_from(ledger_of(held), kept).values())


@pytest.mark.parametrize("about", [b"[]", b"null", b"3", b"[" * 100_000, b"\xff", b'{"format": 1}'] + [
    json.dumps({"format": 1, **dict.fromkeys(["package", "claims_sha256", "profile", "behaviour", "points", "rows", "absent"], junk)}).encode() for junk in (None, 3, [], "x", {"a": []})])
def test_metadata_of_any_shape_is_a_sentence(tmp_path, about):
    "The table is whole; what is said of the run is not."
    import pyarrow as pa, pyarrow.parquet as pq
    from em_repro.evidence import EVIDENCE_COLUMNS, read_evidence
    columns = {name: pa.array([0.0] if name in ("seed", "vector_sample", "layer", "coefficient", "lr", "sample", "value", "null") else ["x"]) for name in EVIDENCE_COLUMNS}
    pq.write_table(pa.table(columns).replace_schema_metadata({b"em_repro": about}), tmp_path / "code.parquet")
    with pytest.raises(UserError) as caught: read_evidence(tmp_path / "code.parquet")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
