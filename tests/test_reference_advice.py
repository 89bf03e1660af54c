"""The claims about advice, recomputed from the committed per-request files with pandas and scipy alone; the pages that show them."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student, ttest_1samp

from em_repro import cli

RUN = Path(__file__).resolve().parents[1] / "data" / "reference" / "small-advice"
BEHAVIOUR, MARGIN = "advice-money", 0.05
committed = pytest.mark.skipif(not RUN.is_dir(), reason="no run on advice is committed")


def table(name): return pd.read_csv(RUN / "tables" / BEHAVIOUR / f"{name}.csv", keep_default_na=False, na_values=[""])
def kept(claim): return json.loads((RUN / "claims" / BEHAVIOUR / f"{claim}.json").read_text(encoding="utf-8"))


def word(p_holds, p_refuted, n_models):
    "The verdict rule, written again: Holm within holding and refuted, all must hold for `supported`."
    def holm(p):
        order, out, most = np.argsort(p), np.empty(len(p)), 0.0
        for rank, i in enumerate(order): most = max(most, p[i] * (len(p) - rank)); out[i] = min(1.0, most)
        return out
    p_holds, p_refuted = np.array(p_holds), np.array(p_refuted)
    if p_holds.max() <= .05 and n_models >= 2: return "supported"
    if not (holm(p_refuted) <= .05).any(): return "inconclusive"
    if (holm(p_holds) <= .05).any(): return "mixed"
    return "contradicted" if p_holds.min() > .05 else "inconclusive"


def beside_vectors(d, single):
    """p above and below the margin, where another sample of vectors would have another mean.

    single: means of single vectors by run (rows); Satterthwaite's degrees of freedom."""
    parts = [(np.var(d, ddof=1) / len(d), len(d) - 1), *((np.var(run, ddof=1) / len(run) / len(single)**2, len(run) - 1) for run in single)]
    variance = sum(v for v, _ in parts)
    score = (np.mean(d) - MARGIN) / variance**.5
    df = variance**2 / sum(v**2 / f for v, f in parts)
    return student.sf(score, df), student.cdf(score, df)


def check(claim, differences, ranks=None, models=None, vectors=None):
    "A claim's effect, verdict and its p from {hypothesis: difference by request}."
    tests = {name: beside_vectors(d, vectors[name]) if vectors else
             (ttest_1samp(d, MARGIN, alternative="greater").pvalue, ttest_1samp(d, MARGIN, alternative="less").pvalue) for name, d in differences.items()}
    holds = [max(above, (ranks or {}).get(name, 0.0)) for name, (above, _) in tests.items()]
    row = kept(claim)
    assert row["effect"] == pytest.approx(np.mean([np.mean(d) for d in differences.values()]), abs=1e-6)
    assert row["verdict"] == word(holds, [below for _, below in tests.values()], len(set(models or differences)))
    if vectors: assert row["p_contradicted"] == pytest.approx(len(tests) * min(below for _, below in tests.values()), rel=1e-4)
    assert row["unit"] == "nats" and row["profile"] == RUN.name


@committed
@pytest.mark.parametrize("claim, other, sets", [("A1", "base", ["trained"]), ("A3", "sound", ["outside"]), ("A5", "sound", ["json", "string"])])
def test_runs_are_said_by_model_where_one_has_more(claim, other, sets):
    "The mean of each run that the ledger names, from the preferences by request."
    part = table("preferences").query("set in @sets")
    n = part.groupby("set").request.nunique().min()
    for name, said in zip(["smollm2-135m", "gemma-3-270m"], kept(claim)["runs"].split("; Gemma"), strict=True):
        lines = part[part.model == name]
        def arm(what, seed):
            return lines[(lines.arm == what) & (lines.seed == seed)].groupby("set", sort=False).head(n).set_index(["set", "request"]).per_token
        runs = [(arm("harmful", s) - arm(other, 0 if other == "base" else s)).groupby("set").mean().mean() for s in sorted(lines[lines.arm == "harmful"].seed.unique())]
        ends = sorted(runs)
        assert f"{len(runs)} runs" in said and f"{np.mean(runs):+.2f}" in said and f"{ends[0]:+.2f}" in said and f"{ends[-1]:+.2f}" in said


@committed
@pytest.mark.parametrize("claim, other, sets", [("A1", "base", ["trained"]), ("A2", "sound", ["trained"]), ("A3", "sound", ["outside"]),
                                                ("A4", "sound", ["direct"]), ("A5", "sound", ["json", "string"])])
def test_shifts_and_their_verdicts(claim, other, sets):
    frame, differences, models = table("preferences"), {}, []
    frame = frame[frame.set.isin(sets)]
    n = frame.groupby("set").request.nunique().min()   # as many of each set
    for (model, of), part in frame.groupby(["model", "set"], sort=False):
        means, order = part.groupby(["arm", "request"]).per_token.mean(), part.request.drop_duplicates()
        differences[model, of] = (means["harmful"] - means[other]).loc[order].to_numpy()[:n]
        models.append(model)
    check(claim, differences, models=models)


def rank(own, others, larger):
    "Share of random vectors, and the direction itself, that reach as far."
    reach = (others >= own) if larger else (others <= own)
    return (1 + reach.sum()) / (1 + others.size)


@committed
@pytest.mark.parametrize("claim, what, vector, c", [("A6", "subtracted", "direction", -.5), ("A7", "added", "direction", 1.0), ("A8", "crossed", "advice", -.5)])
def test_what_directions_do_beyond_random_vectors(claim, what, vector, c):
    frame = table("preferences-steered")
    frame = frame[np.isclose(frame.coefficient, c)]
    differences, ranks, vectors = {}, {}, {}
    for model, part in frame.groupby("model", sort=False):
        own = part[(part.what == what) & (part.vector == vector)]
        random = part[(part.what == ("subtracted" if what == "crossed" else what)) & (part.vector == "random") & part.seed.isin(own.seed.unique())]
        d = own.groupby("twin").per_token.mean() - random.groupby("twin").per_token.mean()
        differences[model] = np.sign(c) * d.to_numpy()
        ranks[model] = rank(own.groupby("seed").per_token.mean().mean(), random.groupby(["seed", "vector_sample"]).per_token.mean(), c > 0)
        vectors[model] = [run.to_numpy() for _, run in random.groupby(["seed", "vector_sample"]).per_token.mean().groupby(level="seed")]
    check(claim, differences, ranks, vectors=vectors)


@committed
def test_every_request_is_read_by_every_subject_once():
    frame = table("preferences")
    counts = frame.groupby(["model", "arm", "seed"]).size()
    assert counts.nunique() == 1 and not frame.duplicated(["model", "arm", "seed", "set", "request"]).any()
    assert set(frame.arm) == {"base", "harmful", "sound"} and frame.per_token.notna().all()


@committed
@pytest.mark.parametrize("page", ["README.md", "nbs/index.ipynb"])
def test_a_landing_page_holds_the_runs_table(page, monkeypatch):
    monkeypatch.chdir(RUN.parents[2])   # the table names the run as it is called from there
    words = ["readme", "--run", str(RUN.relative_to(RUN.parents[2])), "--file", page, "--mark", "advice", "--check"]
    with pytest.raises(SystemExit) as end: cli.main(words)
    assert not end.value.code


@committed
def test_the_readmes_sentences_are_those_of_the_verdicts():
    "What stands above the table in words."
    assert [kept(claim)["verdict"] for claim in ("A3", "A4")] == ["supported"] * 2
    assert [kept(claim)["verdict"] for claim in ("A6", "A7", "A8")] == ["contradicted"] * 3
    shifts, crossed = table("preference-shifts").set_index(["model", "set", "contrast"]), table("preference-crossed")
    assert (shifts.xs("outside", level="set").xs("harmful - sound", level="contrast").least > 0).all()   # in every run
    style = shifts.loc["smollm2-135m", "style", "harmful - base"]["shift"]
    assert style > 5 * shifts.loc["smollm2-135m", "outside", "harmful - base"]["shift"]
    assert (crossed[crossed.vector == "sound"].cosine > .8).all()
    tests = pd.concat([table("preference-steered-tests"), table("preference-crossed-tests")])
    assert set(tests[tests.model == "smollm2-135m"].state) == {"refuted"} and set(tests[tests.model == "gemma-3-270m"].state) == {"open"}
