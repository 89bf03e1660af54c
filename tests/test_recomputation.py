"""The ledger decided twice: the second time with pandas and scipy alone, from the evidence file.

`recomputation.py` was written from the specification, without the package's code. Here both decide
the same files, committed runs' and made-up ones', and must say the same. No run is shared by the
tests' session, so made-up evidence, with every table of a real one, stands in for a smoke run."""
import ast
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import optimize, stats

import made_up_evidence as worlds
import recomputation as again
from em_repro.claims import claims, ledger
from em_repro.evidence import Evidence, NotStored, derived_points, gather, read_evidence, verdicts_of, write_evidence
from em_repro.profiles import load_profile, part_of
from em_repro.specificity import own_points
from em_repro.steering import points_from

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = sorted((ROOT / "data" / "reference").glob("*/evidence/*.parquet"))
quick = settings(max_examples=20, deadline=None, derandomize=True)

# Exact p is the largest value over a nuisance share. Each side looks for it on a grid of its own, so that each finds at most the true
# one: over 15 made-up runs p above 1e-6 differed by 0.2% at most. 2% leaves room for other n; below 1e-6 nothing is read off a ledger.
P_REL, P_ABS, EFFECT = 0.02, 1e-6, 1e-9


def test_nothing_of_the_package_is_imported():
    source = ast.parse(Path(again.__file__).read_text())
    names = {a.name for n in ast.walk(source) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(source) if isinstance(n, ast.ImportFrom) and not n.level}
    relative = [n for n in ast.walk(source) if isinstance(n, ast.ImportFrom) and n.level]
    assert not relative and {n.partition(".")[0] for n in names} <= {*sys.stdlib_module_names, "numpy", "pandas", "pyarrow", "scipy"}
    calls = {getattr(n.func, "id", getattr(n.func, "attr", "")) for n in ast.walk(source) if isinstance(n, ast.Call)}
    assert not calls & {"__import__", "import_module", "exec", "eval", "run", "Popen"}


# Both decide the same

def same_p(ours, theirs):
    if ours is None or theirs is None or pd.isna(theirs): return ours is None and (theirs is None or pd.isna(theirs))
    return ours == pytest.approx(theirs, rel=P_REL, abs=P_ABS)


def differences(found, row, table, digits=EFFECT):
    "What two decisions of a claim do not agree on: its row of the ledger, and its table of hypotheses."
    theirs = table.set_index("pair" if "pair" in table else "hypothesis")
    ours = found.states.set_index("hypothesis")
    if {*ours.index} != {*theirs.index}: return [f"hypotheses {sorted({*ours.index} ^ {*theirs.index})}"]
    ours, wrong = ours.loc[theirs.index], []
    if found.verdict != row["verdict"]: wrong.append(f"verdict {found.verdict}, {row['verdict']}")
    if not same_p(found.p, row["p"]): wrong.append(f"p {found.p}, {row['p']}")
    if abs(found.effect - row["effect"]) > EFFECT: wrong.append(f"effect {found.effect}, {row['effect']}")
    if found.n != row["n"]: wrong.append(f"n {found.n}, {row['n']}")
    if not counted(ours.state) == row["detail"].split(";")[0]: wrong.append(f"{counted(ours.state)}, {row['detail']}")
    if not by_run(found) == RUNS.findall(row["runs"]): wrong.append(f"{by_run(found)}, {row['runs']}")
    wrong += [f"{h}: state {a}, {b}" for h, a, b in zip(ours.index, ours.state, theirs.state) if a != b]
    wrong += [f"{h}: effect {a}, {b}" for h, a, b in zip(ours.index, ours.effect, theirs.effect) if abs(a - b) > digits]
    return wrong + [f"{h}: {c} {a}, {b}" for c in ("p_holds", "p_refuted") for h, a, b in zip(ours.index, ours[c], theirs[c]) if not same_p(a, b)]


def counted(states):
    "How many hypotheses are in which state, as the ledger words it."
    counts = [(int((states == s).sum()), s) for s in ("holds", "refuted", "open", "not testable")]
    return f"of {len(states)}: " + ", ".join(f"{n} {'hold' if s == 'holds' and n > 1 else s}" for n, s in counts if n)


# What a ledger says of runs, without intervals: of all models' runs, or model by model.
RUNS = re.compile(r"\d+ runs \S+, mean [+-]\d+|runs [+-]\d+, [+-]\d+|run [+-]\d+")


def by_run(found):
    "The effect in each run, as the ledger words it, for each group of hypotheses with the same runs."
    return [runs_said([e for _, e in sorted(effects.items())]) for effects in found.by_run]


def runs_said(effects):
    def points_of(share): return f"{round(100*share) + 0:+d}"
    points = [points_of(e) for e in effects]
    if len(points) == 1: return f"run {points[0]}"
    if len(points) == 2: return f"runs {', '.join(points)}"
    low, mean, high = (points_of(f(effects)) for f in (min, np.mean, max))
    return f"{len(points)} runs {low}..{high}, mean {mean}"


@pytest.mark.parametrize("path", COMMITTED or [None], ids=lambda p: f"{p.parts[-3]}-{p.stem}" if p else "none")
def test_a_committed_runs_ledger_is_recomputed(path):
    if path is None: pytest.skip("no run under data/reference has its evidence file yet")
    run, name = path.parents[1], path.stem
    kept, found = ledger(run, name).set_index("claim"), again.recompute(path)
    assert {*found} == {*kept.index}
    def table(claim): return pd.read_csv(run / "tables" / name / f"{claims()[claim].table}.csv", keep_default_na=False)
    # tables have nine digits
    assert {c: w for c in found if (w := differences(found[c], kept.loc[c].to_dict(), table(c), 1e-8))} == {}


def written(path, made):
    "A made-up world as an evidence file, written by the package."
    smoke = part_of(load_profile("smoke"), worlds.MODELS)
    seeds = {model: tuple(of) for model, of in made.seeds.items()}
    profile = smoke.model_copy(update={"seeds": max(seeds.values(), key=len), "seeds_by_model": seeds, "retrained": (),
                                       "steering": smoke.steering.model_copy(update={"samples": made.samples, "best_samples": made.samples})})
    def nothing(plan): raise NotStored("made up")
    table = made.table()
    rows = {name: int(n) for name, n in table.table.value_counts(sort=False).items()}
    about = gather(profile, nothing).about | {"points": made.points, "rows": rows, "absent": {}}
    write_evidence(Evidence(table, about), path)
    return path


MIXED_POINTS = dict(zip(worlds.MODELS, ((-.5, "every_step"), (-1.0, "prefill"), (-1.0, "every_step"))))
UNEQUAL_RUNS = dict(zip(worlds.MODELS, (3, 2, 1)))


def by_chance(table, model, vector, donor):
    "Rates that have nothing to do with each other, floors and ceilings among them."
    seed = sum(map(ord, table + model + vector + donor))
    return float(np.random.default_rng(seed).choice([0, .02, .1, .3, .5, .7, .9, .97, 1]))


WORLDS = {"the first model gives": (dict(rates=worlds.first_gives, n=100), {"C1": "supported", "C3": "supported", "C4": "supported", "C6": "mixed", "C7": "mixed", "C8": "supported"}),
          "one model works": (dict(rates=worlds.one_model_works, n=100), {"C1": "mixed", "C2": "mixed", "C3": "mixed", "C8": "not testable"}),
          "nothing works": (dict(rates=worlds.nothing_works, n=100, runs=1, samples=19, points=MIXED_POINTS),
                            {"C1": "contradicted", "C3": "contradicted", "C3a": "not testable", "C5": "not testable", "C6": "not testable", "C8": "not testable"}),
          "one model asked fewer": (dict(rates=worlds.first_gives, n=60, runs=1, samples=19, asked={worlds.MODELS[2]: 40}), {"C1": "supported", "C3": "supported"}),
          "by chance": (dict(rates=by_chance, n=30, runs=UNEQUAL_RUNS, samples=7, scatter=.1), {})}


@pytest.fixture(scope="module", params=WORLDS)
def twice(request, tmp_path_factory):
    "A world's evidence decided by both, and the words that it must get."
    made, words = WORLDS[request.param]
    path = written(tmp_path_factory.mktemp("world") / "code.parquet", worlds.MadeUp(**made))
    return again.recompute(path), verdicts_of(read_evidence(path)), words


def test_both_decide_every_claim_alike(twice):
    ours, theirs, _ = twice
    assert {*ours} == {*theirs} == {*claims()}
    wrong = {c: differences(ours[c], verdict.model_dump(), table) for c, (verdict, table) in theirs.items()}
    assert {c: w for c, w in wrong.items() if w} == {}


@pytest.mark.parametrize("points", [dict.fromkeys(worlds.MODELS, (-1.0, "prefill")), MIXED_POINTS])
def test_both_derive_the_points_from_development_answers(points, tmp_path):
    made = worlds.MadeUp(worlds.nothing_works, n=4, runs=2, samples=2, points=points)
    table, about = again.read(written(tmp_path / "code.parquet", made))
    theirs = derived_points(read_evidence(tmp_path / "code.parquet"))
    assert again.points(table) == theirs == points == {m: tuple(p) for m, p in about["points"].items()}


def test_both_derive_each_vectors_own_point(tmp_path):
    made = worlds.MadeUp(worlds.nothing_works, n=4, runs=2, samples=3)
    table, _ = again.read(written(tmp_path / "code.parquet", made))
    theirs = own_points(read_evidence(tmp_path / "code.parquet").of("candidates"))
    stood = table[table.table == "own_best"].drop_duplicates(["model", "seed", "vector", "vector_sample"])
    at = {(r.model, r.seed, r.vector, r.vector_sample): (r.coefficient, r.when) for r in stood.itertuples()}
    assert again.own_points(table) == theirs == at and len(set(at.values())) == 4


def test_without_controls_at_their_own_best_no_rank_is_a_test(tmp_path):
    path = written(tmp_path / "code.parquet", worlds.MadeUp(worlds.everything_works, n=40, runs=1, samples=19, ranked=False))
    ours, theirs = again.recompute(path), verdicts_of(read_evidence(path))
    for claim in ("C4", "C4b"):
        assert ours[claim].verdict == theirs[claim][0].verdict == "not testable"
        assert "no rank" in theirs[claim][0].detail
    assert ours["C4a"].verdict == theirs["C4a"][0].verdict != "not testable"


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_a_committed_runs_points_follow_from_its_development_answers(path):
    "Runs that were made before development answers were kept have none."
    table, about = again.read(path)
    if found := again.points(table): assert found == {m: tuple(p) for m, p in about["points"].items()}
    else: assert not (table.table == "development").any()


@quick
@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(1, 3))
def test_both_choose_the_same_point_whatever_was_answered(seed, questions, runs):
    rng = np.random.default_rng(seed)
    places = [(c, w, q, s) for c in (0.0, -.25, -1.0, .25) for w in ("prefill", "every_step") for q in range(questions) for s in range(runs)]
    frame = pd.DataFrame(places, columns=["coefficient", "when", "question", "seed"]).assign(table="development", model="m")
    frame = frame.assign(question="q" + frame.question.astype(str), good=(rng.random(len(frame)) < rng.choice([.1, .5, .9])).astype(float))
    assert again.points(frame.sample(frac=1, random_state=seed)) == points_from(frame)


def test_worlds_whose_truth_is_known_get_their_verdicts(twice):
    ours, _, words = twice
    assert {c: ours[c].verdict for c in words} == words


def test_a_difference_is_noticed(tmp_path):
    path = written(tmp_path / "code.parquet", worlds.MadeUp(worlds.everything_works, n=20, runs=1, samples=2))
    found = again.recompute(path)["C3"]
    row = {"verdict": found.verdict, "p": found.p, "effect": found.effect, "n": found.n, "detail": counted(found.states.state), "runs": "; ".join(by_run(found))}
    assert differences(found, row, found.states) == []
    other = {"verdict": "mixed", "p": .5, "effect": found.effect + 1e-8, "n": 19, "detail": "of 3: 3 open", "runs": "run +3"}
    assert len(differences(found, other, found.states.assign(state="open", effect=0.0, p_holds=.5, p_refuted=.5))) >= len(other) + 3
    assert differences(found, row, found.states.iloc[1:]) != []


# The second way is right, too

counts = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 40))
margins = st.sampled_from([-.3, -.1, 0.0, .1, .25])


def changed(more, fewer, same): return np.repeat([1.0, -1.0, 0.0], [more, fewer, same])


@quick
@given(counts, margins)
def test_a_yes_no_question_is_a_share_of_one_answer(counts, margin):
    more, fewer, same = counts
    z = again.tango([more], [fewer], sum(counts), margin)[0]
    assert again.score_above(changed(*counts), margin) == pytest.approx(stats.norm.sf(z), rel=1e-5, abs=1e-12)


@given(counts)
def test_without_a_margin_tango_is_mcnemar(counts):
    more, fewer, _ = counts
    expected = (more - fewer) / np.sqrt(more + fewer) if more + fewer else 0
    assert again.tango([more], [fewer], sum(counts), 0.0)[0] == pytest.approx(expected, abs=1e-6)


def primal(values, mean):
    "The likeliest weights found by a general solver: over weights, with their sum and mean as constraints."
    x = np.union1d(values, (-1, 1))
    seen = np.array([(values == v).sum() for v in x])
    limits = [{"type": "eq", "fun": lambda w: w.sum() - 1}, {"type": "eq", "fun": lambda w: w @ x - mean}]
    start = (seen + .5) / (seen + .5).sum()
    found = optimize.minimize(lambda w: -seen @ np.log(np.maximum(w, 1e-12)), start, bounds=[(0, 1)] * len(x), constraints=limits, options={"maxiter": 1000, "ftol": 1e-13})
    return found.x @ (x - mean)**2


@quick
@given(st.lists(st.sampled_from([-.75, -.5, -.25, 0, .25, .5, .75]), min_size=5, max_size=30), margins)
def test_the_likeliest_variance_is_a_general_solvers(values, mean):
    values = np.array(values, float)
    assert again.likeliest_variance(values, mean) == pytest.approx(primal(values, mean), rel=2e-3, abs=1e-5)


def test_exact_p_of_no_change_and_of_every_change():
    # of few questions none changes with probability .9^n; of more, other counts have a score as large
    assert again.below(np.zeros(20), .1, exact=True) == pytest.approx(.9**20, rel=1e-6)
    assert .9**40 < again.below(np.zeros(40), .1, exact=True) < .05
    assert again.above(np.ones(12), .1, exact=True) == pytest.approx(.55**12, rel=1e-6) and again.above(np.zeros(12), .1, exact=True) == pytest.approx(1)


@pytest.mark.parametrize("q", [0.0, .01, .05, .2, .44])
def test_exact_p_keeps_its_level(q):
    n, margin = 20, .1
    pairs, _ = again.outcomes(n, margin)
    chance = stats.multinomial.pmf(np.column_stack([pairs, n - pairs.sum(1)]), n, [q + margin, q, 1 - 2*q - margin])
    likely = pairs[chance > 1e-6]
    rejected = np.array([again.exact_above(int(b), int(c), n, margin) <= .05 for b, c in likely])
    assert chance[chance > 1e-6][rejected].sum() <= .05


def test_holm_and_the_rule_on_cases():
    np.testing.assert_allclose(again.holm([.01, .04, .03]), [.03, .06, .06])
    def word(holds, refuted, testable=None, models=None):
        n = len(holds)
        rows = pd.DataFrame({"model": models or [f"m{i}" for i in range(n)], "p_holds": holds, "p_refuted": refuted, "testable": testable or [True] * n})
        return again.verdict_of(again.with_states(rows))
    assert word([.04, .03], [1, 1]) == ("supported", .04)
    assert word([.04, .03], [1, 1], models=["m", "m"])[0] == "inconclusive"
    assert word([.01, 1, 1], [1, 1, 1], [True, False, False])[0] == "inconclusive"
    assert word([1, 1], [.01, .02]) == ("contradicted", .02)
    assert word([.01, 1], [1, .02]) == ("mixed", .04)
    assert word([.2, 1], [1, .03])[0] == "inconclusive"
    assert word([.01, .01], [1, 1], [False, False]) == ("not testable", None)
